//! Who may ask: bearer tokens of the API with their roles, and what each webhook's sender must prove.
//!
//! Invariant: secrets are compared in a time that does not depend on how much of them is right.

use axum::http::{HeaderMap, header};
use hmac::{Hmac, KeyInit, Mac};
use protocol::Timestamp;
use service::config::{Role, Secret, SignedTime, Source, Token};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::Problem;

/// Longest time of signing that is read, in digits; Unix seconds have ten for the next two hundred years.
const TIME_DIGITS_MAX: usize = 12;

/// The tokens of the API, as hashes, so that neither their text nor their length is told.
pub struct Tokens(Vec<([u8; 32], Role)>);

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody in particular: no token was sent.
    Nobody,
    /// Who sent a token that is not known.
    Stranger,
    /// Who has a token that is.
    Known {
        /// Its place in the list.
        index: usize,
        /// What it lets do.
        role: Role,
    },
}

impl Tokens {
    /// The tokens of the configuration.
    pub fn new(tokens: &[Token]) -> Self {
        let hashed = |token: &Token| (hash(token.secret.expose()), token.role);
        Self(tokens.iter().map(hashed).collect())
    }

    /// Whose request this is.
    pub fn holder(&self, headers: &HeaderMap) -> Holder {
        let Some(given) = bearer(headers) else {
            return Holder::Nobody;
        };
        let given = hash(given);
        // Every token is looked at, so that the time does not tell which one was nearly right.
        self.0
            .iter()
            .enumerate()
            .fold(Holder::Stranger, |found, (index, (token, role))| {
                match token.ct_eq(&given).into() {
                    true => Holder::Known { index, role: *role },
                    false => found,
                }
            })
    }

    /// Checks that a request may do what needs this role; without tokens in the configuration all may.
    ///
    /// # Errors
    /// 401 for who is not known, 403 for whose token does not reach so far.
    pub fn check(&self, holder: Holder, needed: Role) -> Result<(), Problem> {
        let remedy = "send `Authorization: Bearer TOKEN` with one of the tokens that `http.tokens`, `http.run_tokens` and `http.read_tokens` name";
        match holder {
            _ if self.0.is_empty() => Ok(()),
            Holder::Known { role, .. } if role >= needed => Ok(()),
            Holder::Known { role, .. } => Err(Problem::forbidden(role, needed)),
            Holder::Nobody => Err(Problem::unauthorized(
                format!("this API asks for a token: {remedy}"),
                "Bearer",
            )),
            Holder::Stranger => Err(Problem::unauthorized(
                format!("this token is not known: {remedy}"),
                "Bearer error=\"invalid_token\"",
            )),
        }
    }
}

/// Checks what the sender of a webhook must prove: every secret that its source has.
///
/// # Errors
/// 401.
pub fn webhook(
    headers: &HeaderMap,
    body: &[u8],
    name: &str,
    source: &Source,
    now: Timestamp,
) -> Result<(), Problem> {
    if let Some(token) = &source.bearer_token {
        let is_right = bearer(headers).is_some_and(|given| hash(given).ct_eq(&hash(token.expose())).into());
        if !is_right {
            return Err(Problem::unauthorized(
                format!(
                    "source {name} asks for its token: send `Authorization: Bearer TOKEN` with `sources.{name}.bearer_token`"
                ),
                "Bearer",
            ));
        }
    }
    let Some(secret) = &source.hmac_secret else {
        return Ok(());
    };
    let refused = |why: String| Err(Problem::unauthorized(why, "HMAC-SHA256"));
    let header = source.hmac_header.as_str();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(time) = &source.hmac_timestamp else {
        return match text(header).is_some_and(|signature| is_signed(&[body], signature, secret)) {
            true => Ok(()),
            false => refused(format!(
                "source {name} asks for a signature: send {header} with the body's HMAC-SHA256 under `sources.{name}.hmac_secret`, in hexadecimal"
            )),
        };
    };
    let SignedTime {
        header: time_header,
        separator,
        tolerance_seconds,
    } = time;
    let at = text(time_header).map(str::trim).unwrap_or_default();
    let parts = [at.as_bytes(), separator.as_bytes(), body];
    if !text(header).is_some_and(|signature| is_signed(&parts, signature, secret)) {
        return refused(format!(
            "source {name} asks for a signature: send {time_header} with the time in Unix seconds, and {header} with the HMAC-SHA256 of this time, `{separator}` and the body under `sources.{name}.hmac_secret`, in hexadecimal"
        ));
    }
    // Only now, so that what is said of the time is said to who knows the secret.
    match seconds(at) {
        Some(at) if at.abs_diff(now.as_millis() / 1000) <= *tolerance_seconds => Ok(()),
        Some(at) => refused(format!(
            "source {name} takes what was signed within {tolerance_seconds} seconds (`sources.{name}.hmac_tolerance_seconds`); this was signed {} seconds {}: sign each attempt anew, and check the clocks of both sides",
            at.abs_diff(now.as_millis() / 1000),
            if at < now.as_millis() / 1000 {
                "ago"
            } else {
                "in the future"
            },
        )),
        None => refused(format!(
            "source {name} asks for the time of signing: send {time_header} with whole Unix seconds, such as 1767225600"
        )),
    }
}

/// Unix seconds in plain digits: no sign, no fraction.
fn seconds(text: &str) -> Option<i64> {
    let is_plain =
        (1..=TIME_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What is compared in place of a secret, so that its length is not told either.
fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn is_signed(parts: &[&[u8]], signature: &str, secret: &Secret) -> bool {
    let digits = signature.trim();
    let digits = digits.strip_prefix("sha256=").unwrap_or(digits);
    let Some(signature) = from_hex(digits) else {
        return false;
    };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else {
        return false;
    };
    for part in parts {
        mac.update(part);
    }
    mac.verify_slice(&signature).is_ok()
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || digits.len() != 64 {
        return None;
    }
    let pairs = (0..digits.len())
        .step_by(2)
        .map(|index| digits.get(index..index + 2));
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    fn token(secret: &str, role: Role) -> Token {
        Token {
            secret: Secret::new(secret),
            role,
        }
    }

    #[test]
    fn tokens_of_the_api() {
        let tokens = Tokens::new(&[token("first", Role::Admin), token("second", Role::Read)]);
        let given = |value| tokens.holder(&headers("authorization", value));
        assert!(Tokens::new(&[]).check(Holder::Nobody, Role::Admin).is_ok());
        assert_eq!(tokens.holder(&HeaderMap::new()), Holder::Nobody);
        for (good, index, role) in [("Bearer first", 0, Role::Admin), ("bearer second", 1, Role::Read)] {
            assert_eq!(given(good), Holder::Known { index, role }, "{good}");
        }
        for bad in [
            "Bearer third",
            "Bearer",
            "Bearer ",
            "Basic first",
            "first",
            "Bearer firs",
            "Bearer first2",
        ] {
            let problem = tokens.check(given(bad), Role::Read).unwrap_err();
            assert_eq!(problem.status(), 401, "{bad}");
            assert!(!problem.detail().contains("second"), "{}", problem.detail());
        }
    }

    #[test]
    fn a_role_does_what_the_lesser_ones_do() {
        let tokens = Tokens::new(&[token("x", Role::Admin)]);
        let roles = [Role::Read, Role::Run, Role::Admin];
        for role in roles {
            for needed in roles {
                let checked = tokens.check(Holder::Known { index: 0, role }, needed);
                let status = checked.err().map(|problem| problem.status().as_u16());
                assert_eq!(status, (role < needed).then_some(403), "{role:?} {needed:?}");
            }
        }
    }

    #[test]
    fn signatures() {
        // RFC 4231, test case 2.
        let secret = Secret::new("Jefe");
        let body = b"what do ya want for nothing?";
        let right = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        for good in [right.to_owned(), format!("sha256={right}"), right.to_uppercase()] {
            assert!(is_signed(&[body], &good, &secret), "{good}");
        }
        for bad in [
            "",
            "sha256=",
            &right[2..],
            &right.replace('5', "6"),
            "zz",
            &"ä".repeat(32),
        ] {
            assert!(!is_signed(&[body], bad, &secret), "{bad}");
        }
        assert!(!is_signed(&[b"something else"], right, &secret));
    }

    #[test]
    fn times_are_plain_digits() {
        assert_eq!(seconds("1767225600"), Some(1_767_225_600));
        for bad in [
            "",
            "-1",
            "+1",
            "1.5",
            " 1",
            "1e3",
            "1767225600000",
            "999999999999999999999",
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
