//! Which addresses a tool may connect to.
//!
//! Invariant: an address is public only if no registry reserves it; what embeds an IPv4 address (mapped,
//! translated, tunnelled) is as bad as that address, or refused altogether.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Reads `10.0.0.0/8`, `fd00::/8`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no network in CIDR notation, such as 10.0.0.0/8");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let bits: u8 = bits
            .parse()
            .ok()
            .filter(|bits| *bits <= bits_max)
            .ok_or_else(wrong)?;
        Ok(Self { address, bits })
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, plain(address)) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// An IPv4 address where an IPv6 one only wraps it.
pub fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// What kind of address it is, where it is not simply one of the internet.
pub fn reserved(address: IpAddr) -> Option<&'static str> {
    match plain(address) {
        IpAddr::V4(address) => reserved_v4(address),
        IpAddr::V6(address) => reserved_v6(address),
    }
}

/// Whether it is of the kind that clouds serve credentials on, or leads to one of these.
pub fn is_link_local(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(address) => is_link_local_v4(address),
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || METADATA_V6.contains(&address)
                || embedded(address).into_iter().any(is_link_local_v4)
        }
    }
}

fn is_link_local_v4(address: Ipv4Addr) -> bool {
    address.is_link_local() || METADATA_V4.contains(&address)
}

/// The IPv4 addresses that an IPv6 address may lead to: of tunnels, translations and the old compatible form.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        // 6to4, RFC 3056.
        [0x2002, high, low, ..] => vec![v4(high, low)],
        // Teredo, RFC 4380: the server's, and the client's with its bits turned round.
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            vec![v4(server_high, server_low), v4(!high, !low)]
        }
        // RFC 8215's prefix has 48 bits, or more where an operator divides it; RFC 6052 says where the address is.
        [0x0064, 0xff9b, 1, high, middle, low, last_high, last_low] => {
            vec![v4(high, middle << 8 | low >> 8), v4(last_high, last_low)]
        }
        // RFC 6052's well-known prefix, the compatible form (::a.b.c.d) and RFC 2765's (::ffff:0:a.b.c.d).
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0 | 0xffff, 0, high, low] => {
            vec![v4(high, low)]
        }
        _ => Vec::new(),
    }
}

/// Azure's wire server: public by its number, and the host's own by its meaning.
const AZURE_METADATA: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
/// Metadata services that are not at a link-local address: Azure, Alibaba, Oracle.
const METADATA_V4: [Ipv4Addr; 3] = [
    AZURE_METADATA,
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// The same by IPv6: AWS, Google.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254),
];

fn reserved_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        _ if address == AZURE_METADATA => Some("a metadata address"),
        (0, ..) => Some("an address of this host"),
        (127, ..) => Some("a loopback address"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("a private address"),
        (100, 64..=127, _) => Some("a carrier's private address"),
        (169, 254, _) => Some("a link-local address, as metadata services have"),
        (192, 0, 0) | (192, 88, 99) => Some("a special address"),
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => Some("an address of documentation"),
        (198, 18..=19, _) => Some("an address of benchmarks"),
        (224..=239, ..) => Some("a multicast address"),
        (240..=255, ..) => Some("a reserved address"),
        _ => None,
    }
}

fn reserved_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    match segments[0] {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_unspecified() => Some("an address of this host"),
        0xfe80..=0xfebf => Some("a link-local address"),
        0xfc00..=0xfdff => Some("a private address"),
        0xfec0..=0xfeff => Some("a site-local address"),
        0xff00..=0xffff => Some("a multicast address"),
        // Tunnels and translations carry an IPv4 address that would be reached in the end.
        0x2002 => Some("a 6to4 address"),
        0x2001 if segments[1] == 0 => Some("a Teredo address"),
        0x2001 if segments[1] == 0xdb8 => Some("an address of documentation"),
        0x0064 if segments[1] == 0xff9b => Some("a translated address"),
        // Only 2000::/3 is given out as the internet's.
        0x2000..=0x3fff => None,
        _ => Some("a reserved address"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_that_are_not_the_internets_are_known() {
        for text in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:a9fe:a9fe",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::7f00:1",
            "2002:7f00:1::",
            "2001::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "fec0::1",
            "2001:db8::1",
            "100::1",
            "4000::1",
        ] {
            assert!(reserved(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert_eq!(reserved(text.parse().unwrap()), None, "{text}");
        }
        for text in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "fd20:ce::254",
            "2002:a9fe:a9fe::1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00::",
            "2001:0:a9fe:a9fe::1",
            "2001::5601:5601",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
        ] {
            assert!(is_link_local(text.parse().unwrap()), "{text}");
        }
        for text in [
            "8.8.8.8",
            "10.0.0.1",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "fd00::1",
            "::1",
        ] {
            assert!(!is_link_local(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn networks_hold_their_addresses() {
        let holds = |network: &str, address: &str| {
            Network::parse(network)
                .unwrap()
                .contains(address.parse().unwrap())
        };
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("127.0.0.1/32", "127.0.0.1") && !holds("127.0.0.1/32", "127.0.0.2"));
        assert!(holds("fd00::/8", "fdff::1") && !holds("fd00::/8", "fc00::1"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/-1"] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
    }
}
