//! What the curl tool asks, and what it refuses: a corpus of addresses, with a listener that would notice.
#![allow(clippy::unwrap_used)]

use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};

use super::*;

fn curl(hosts: &[&str], networks: &[&str], resolved: &[(&'static str, &'static str)]) -> Curl {
    let mut tools = service::Config::default().tools;
    tools.curl_allowed_hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    tools.curl_allowed_networks = networks.iter().map(|network| (*network).to_owned()).collect();
    tools.curl_bytes_max = 1024;
    let table: Vec<(&str, IpAddr)> = resolved
        .iter()
        .map(|(name, ip)| (*name, ip.parse().unwrap()))
        .collect();
    let resolve: Resolve = Arc::new(move |host, port| {
        let found = table.iter().filter(|(name, _)| *name == host);
        let found: Vec<SocketAddr> = found.map(|(_, ip)| SocketAddr::new(*ip, port)).collect();
        Box::pin(async move { Ok(found) })
    });
    Curl::new(&tools, resolve).unwrap()
}

async fn refused(curl: &Curl, url: &str) -> String {
    match curl.request(url, Method::GET).await {
        Err(ToolError::Refused(text)) => text,
        other => panic!("{url}: {other:?}"),
    }
}

#[tokio::test]
async fn addresses_of_the_inside_are_refused_however_they_are_written() {
    let names = [
        ("inside.example.com", "10.0.0.5"),
        ("loop.example.com", "127.0.0.1"),
        ("mapped.example.com", "::ffff:127.0.0.1"),
        ("six.example.com", "::1"),
        ("meta.example.com", "169.254.169.254"),
        ("mixed.example.com", "93.184.216.34"),
        ("mixed.example.com", "192.168.1.1"),
        ("named.example.org", "169.254.169.254"),
    ];
    let curl = curl(&["*.example.com", "named.example.org"], &[], &names);
    for url in [
        // Covered by the wildcard, and at home.
        "http://inside.example.com/",
        "http://loop.example.com/",
        "http://mapped.example.com/",
        "http://six.example.com/",
        "https://meta.example.com/latest",
        "http://mixed.example.com/",
        "http://LOOP.EXAMPLE.COM/",
        "http://loop.example.com./",
        "http://named.example.org/",
        // Loopback and metadata in all spellings.
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.0.0.1.:80/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::]/",
        "http://0.0.0.0/",
        "http://0/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0xa9fea9fe/",
        "http://2852039166/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[64:ff9b::7f00:1]/",
        "http://192.168.0.1/",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://１２７.0.0.1/",
        "http://localhost/",
        "http://localhost:8080/",
        "http://LocalHost/",
        // Not listed, and tricks with what is.
        "http://evil.test/",
        "http://example.com/",
        "http://example.com.evil.test/",
        "http://xexample.com/",
        "http://a.example.com@127.0.0.1/",
        "http://a.example.com:x@evil.test/",
        "http://user@a.example.com/",
        "http://127.0.0.1#a.example.com",
        "http://127.0.0.1?a.example.com",
        "http://127.0.0.1\\a.example.com",
        "http://a.example.com%2eevil.test/",
        "http://8.8.8.8/",
        // Other schemes.
        "file:///etc/passwd",
        "ftp://a.example.com/",
        "gopher://127.0.0.1:6379/_x",
        "data:text/plain,x",
        "/etc/passwd",
        "javascript:1",
        "",
    ] {
        refused(&curl, url).await;
    }
    assert!(
        refused(&curl, "http://inside.example.com/")
            .await
            .contains("at a private address")
    );
    assert!(
        refused(&curl, "http://meta.example.com/")
            .await
            .contains("link-local")
    );
}

/// A server on loopback.
async fn server() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = |target: String| get(move || async move { (StatusCode::FOUND, [("location", target)]) });
    let app = Router::new()
        .route(
            "/text",
            get(|| async { ([("content-type", "text/plain"), ("x-other", "no")], "hello") }),
        )
        .route("/long", get(|| async { "x".repeat(5000) }))
        .route(
            "/binary",
            get(|| async { ([("content-type", "image/png")], vec![0_u8, 1, 2]) }),
        )
        .route(
            "/nul",
            get(|| async { ([("content-type", "text/plain")], vec![0_u8, 1, 2]) }),
        )
        .route(
            "/broken",
            get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "oh").into_response() }),
        )
        .route("/relative", to("/text".to_owned()))
        .route("/to-loopback", to(format!("http://127.0.0.1:{port}/text")))
        .route("/to-decimal", to(format!("http://2130706433:{port}/text")))
        .route("/to-file", to("file:///etc/passwd".to_owned()))
        .route("/to-user", to(format!("http://x@named.test:{port}/text")))
        .route("/for-ever", to("/for-ever".to_owned()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

#[tokio::test]
async fn a_named_host_may_be_at_home_and_its_redirects_are_checked_again() {
    let port = server().await;
    let curl = curl(&["named.test"], &[], &[("named.test", "127.0.0.1")]);
    let at = |path: &str| format!("http://named.test:{port}{path}");
    let text = curl.request(&at("/text"), Method::GET).await.unwrap();
    assert!(
        text.starts_with("HTTP 200 OK\ncontent-type: text/plain\n") && text.ends_with("\nhello"),
        "{text}"
    );
    assert!(!text.contains("x-other"), "{text}");
    let head = curl.request(&at("/text"), Method::HEAD).await.unwrap();
    assert!(
        head.contains("content-length: 5") && !head.contains("hello"),
        "{head}"
    );
    let relative = curl.request(&at("/relative"), Method::GET).await.unwrap();
    assert!(
        relative.starts_with("302 redirected to ") && relative.ends_with("hello"),
        "{relative}"
    );
    let long = curl.request(&at("/long"), Method::GET).await.unwrap();
    assert!(
        long.ends_with("x\n[… cut after 1024 bytes]"),
        "{}",
        &long[long.len() - 60..]
    );
    for path in ["/binary", "/nul"] {
        let shown = curl.request(&at(path), Method::GET).await.unwrap();
        assert!(
            shown.ends_with("(the body is not text, and is not shown)"),
            "{shown}"
        );
    }
    let broken = curl.request(&at("/broken"), Method::GET).await.unwrap();
    assert!(broken.starts_with("HTTP 500"), "{broken}");
    for path in ["/to-loopback", "/to-decimal", "/to-file", "/to-user"] {
        refused(&curl, &at(path)).await;
    }
    let forever = curl.request(&at("/for-ever"), Method::GET).await.unwrap_err();
    assert!(matches!(forever, ToolError::Failed(text) if text.contains("more than 5 redirects")));
}

#[tokio::test]
async fn a_listed_network_permits_its_addresses() {
    let port = server().await;
    let curl = curl(
        &["*.example.com"],
        &["127.0.0.0/8"],
        &[("a.example.com", "127.0.0.1"), ("b.example.com", "10.0.0.1")],
    );
    for url in [
        format!("http://a.example.com:{port}/text"),
        format!("http://127.0.0.1:{port}/text"),
    ] {
        assert!(curl.request(&url, Method::GET).await.is_ok(), "{url}");
    }
    refused(&curl, "http://b.example.com/").await;
}

#[tokio::test]
async fn without_a_list_nothing_is_asked() {
    let text = refused(&curl(&[], &[], &[("a.test", "93.184.216.34")]), "https://a.test/").await;
    assert!(text.contains("allowed are: none"), "{text}");
}

/// Counts who connects, on both loopback addresses.
struct Trap {
    port: u16,
    accepted: tokio::sync::watch::Receiver<usize>,
}

impl Trap {
    async fn set() -> Self {
        let v4 = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        let (count, accepted) = tokio::sync::watch::channel(0);
        let count = Arc::new(count);
        // A machine may have no IPv6, and then nothing can be reached by it.
        let v6 = tokio::net::TcpListener::bind(("::1", port)).await.ok();
        for listener in [Some(v4), v6].into_iter().flatten() {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                while listener.accept().await.is_ok() {
                    count.send_modify(|count| *count += 1);
                }
            });
        }
        Self { port, accepted }
    }

    /// Connections are accepted in their order: with our own counted, all before it are.
    async fn assert_untouched(mut self) {
        let own = tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .unwrap();
        let first = self.accepted.wait_for(|count| *count > 0);
        let count = *tokio::time::timeout(Duration::from_secs(30), first)
            .await
            .unwrap()
            .unwrap();
        drop(own);
        assert_eq!(count, 1, "somebody else connected");
    }
}

/// Names as a hostile server of names would answer them, all covered by `*.example.com`.
const HOSTILE_NAMES: [(&str, &str); 24] = [
    ("loop.example.com", "127.0.0.1"),
    ("loop9.example.com", "127.9.9.9"),
    ("here.example.com", "0.0.0.0"),
    ("six.example.com", "::1"),
    ("unspecified.example.com", "::"),
    ("mapped.example.com", "::ffff:127.0.0.1"),
    ("compatible.example.com", "::127.0.0.1"),
    ("siit.example.com", "::ffff:0:127.0.0.1"),
    ("6to4.example.com", "2002:7f00:1::1"),
    ("nat64.example.com", "64:ff9b::127.0.0.1"),
    ("nat64-local.example.com", "64:ff9b:1::7f00:1"),
    ("teredo.example.com", "2001:0:7f00:1::1"),
    ("aws.example.com", "169.254.169.254"),
    ("ecs.example.com", "169.254.170.2"),
    ("aws6.example.com", "fd00:ec2::254"),
    ("azure.example.com", "168.63.129.16"),
    ("alibaba.example.com", "100.100.100.200"),
    ("mapped-aws.example.com", "::ffff:169.254.169.254"),
    ("private.example.com", "10.0.0.5"),
    ("benchmark.example.com", "198.18.0.1"),
    ("multicast.example.com", "224.0.0.1"),
    ("broadcast.example.com", "255.255.255.255"),
    ("site.example.com", "fec0::1"),
    ("127.0.0.1.example.com", "127.0.0.1"),
];

/// Names that the operator lists, at addresses that credentials are served on.
const METADATA_NAMES: [(&str, &str); 8] = [
    ("metadata.google.internal", "169.254.169.254"),
    ("metadata", "169.254.169.254"),
    ("instance-data.ec2.internal", "fd00:ec2::254"),
    ("metadata.goog", "fd20:ce::254"),
    ("metadata.nat64", "64:ff9b::a9fe:a9fe"),
    ("metadata.6to4", "2002:a9fe:a9fe::1"),
    ("metadata.ali", "100.100.100.200"),
    ("metadata.oracle", "192.0.0.192"),
];

/// Addresses as they are written; `PORT` is the trap's.
const HOSTILE: [&str; 72] = [
    // Loopback as decimal, octal, hexadecimal, mixed and shortened numbers, and in other digits.
    "http://127.0.0.1:PORT/",
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://2130706433:PORT/",
    "http://017700000001:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://0177.0.0.0x1:PORT/",
    "http://0x7f000001:PORT/",
    "http://0x7F.0x0.0x0.0x1:PORT/",
    "http://0x7f.1:PORT/",
    "http://00000177.0.0.1:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://127.0.0.2:PORT/",
    "http://１２７.0.0.1:PORT/",
    "http://①②⑦.⓪.⓪.①:PORT/",
    "http://127。0。0。1:PORT/",
    "http://%31%32%37.0.0.1:PORT/",
    "http://127%2e0%2e0%2e1:PORT/",
    "http://0.0.0.0:PORT/",
    "http://0:PORT/",
    "http://0x0:PORT/",
    // IPv6, and IPv4 within it.
    "http://[::1]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[::]:PORT/",
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[2002:7f00:1::]:PORT/",
    "http://[64:ff9b::127.0.0.1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/",
    "http://[::1%25lo]:PORT/",
    "http://[fe80::1]:PORT/",
    // Names of this machine.
    "http://localhost:PORT/",
    "http://LocalHost.:PORT/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/",
    "http://localhost.localdomain:PORT/",
    "http://ip6-localhost:PORT/",
    // Metadata by number.
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[fd00:ec2::254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://metadata.google.internal./",
    // Users, and what looks like the host and is none.
    "http://a.example.com@127.0.0.1:PORT/",
    "http://a.example.com:80@127.0.0.1:PORT/",
    "http://a.example.com%40127.0.0.1:PORT/",
    "http://user@loop.example.com:PORT/",
    "http://:secret@loop.example.com:PORT/",
    "http://127.0.0.1:PORT#a.example.com",
    "http://127.0.0.1:PORT?a.example.com",
    "http://127.0.0.1:PORT\\@a.example.com/",
    "http:\\\\127.0.0.1:PORT\\a.example.com",
    "http:///127.0.0.1:PORT/",
    "http:127.0.0.1:PORT/",
    "http:/\\127.0.0.1:PORT/",
    "ht\ntp://127.0.\t0.1:PORT/",
    "//127.0.0.1:PORT/",
    // Names that only look listed.
    "http://example.com:PORT/",
    "http://.example.com:PORT/",
    "http://xexample.com:PORT/",
    "http://a.example.com.evil.test:PORT/",
    "http://a.example.com%2eevil.test:PORT/",
    "http://a.example.com%00.evil.test:PORT/",
    "http://evil.test%23.example.com:PORT/",
    "http://xn--localhost-:PORT/",
    "http://a.еxample.com:PORT/",
    // Ports that are none, and other schemes.
    "http://loop.example.com:99999/",
    "gopher://127.0.0.1:PORT/_x",
    "file:///etc/passwd",
    "ws://loop.example.com:PORT/",
];

#[tokio::test]
async fn no_hostile_address_is_fetched() {
    let trap = Trap::set().await;
    let names: Vec<(&str, &str)> = HOSTILE_NAMES.into_iter().chain(METADATA_NAMES).collect();
    let hosts: Vec<&str> = METADATA_NAMES
        .iter()
        .map(|(name, _)| *name)
        .chain(["*.example.com", "*.xample.com"])
        .collect();
    let curl = curl(&hosts, &[], &names);
    let by_name = names.iter().map(|(name, _)| format!("http://{name}:PORT/"));
    for url in HOSTILE.iter().map(|url| (*url).to_owned()).chain(by_name) {
        let url = url.replace("PORT", &trap.port.to_string());
        for method in [Method::GET, Method::HEAD] {
            let given = curl.request(&url, method).await;
            assert!(matches!(given, Err(ToolError::Refused(_))), "{url}: {given:?}");
        }
    }
    trap.assert_untouched().await;
}

#[tokio::test]
async fn no_redirect_leads_to_a_hostile_address() {
    let trap = Trap::set().await;
    // Redirects to what the query says, with the status that the path says.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let app = Router::new().fallback(async |request: axum::extract::Request| {
        let url = Url::parse(&format!("http://x{}", request.uri())).unwrap();
        let status = url.path().trim_matches('/').parse().ok();
        let status = status.and_then(|code| StatusCode::from_u16(code).ok());
        let target = url.query_pairs().next().map(|(_, target)| target.into_owned());
        match (status, target) {
            (Some(status), Some(target)) => (status, [("location", target)], "moved").into_response(),
            _ => "home".into_response(),
        }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    let hosts: Vec<&str> = METADATA_NAMES
        .iter()
        .map(|(name, _)| *name)
        .chain(["*.example.com", "named.test"])
        .collect();
    let names: Vec<(&str, &str)> = HOSTILE_NAMES
        .into_iter()
        .chain(METADATA_NAMES)
        .chain([("named.test", "127.0.0.1")])
        .collect();
    let curl = curl(&hosts, &[], &names);
    let leads = |status: u16, target: &str| {
        let mut url = Url::parse(&format!("http://named.test:{own}/{status}")).unwrap();
        url.query_pairs_mut().append_pair("to", target);
        url.to_string()
    };
    let by_name = HOSTILE_NAMES
        .iter()
        .map(|(name, _)| format!("http://{name}:PORT/"));
    let more = [
        "//127.0.0.1:PORT/",
        "\\\\127.0.0.1:PORT/",
        "https://127.0.0.1:PORT/",
        "ftp://named.test/",
        "data:text/plain,x",
    ];
    // A header holds no letters but ASCII, and without a host of its own a target is one of the same server.
    let written = HOSTILE
        .iter()
        .filter(|url| url.is_ascii() && url.contains("//") && !url.contains(['\n', '\\']));
    let targets = written.copied().chain(more).map(str::to_owned).chain(by_name);
    for (at, target) in targets.enumerate() {
        let target = target.replace("PORT", &trap.port.to_string());
        let status = [301, 302, 303, 307, 308][at % 5];
        match curl.request(&leads(status, &target), Method::GET).await {
            Err(ToolError::Refused(_)) => {}
            Err(ToolError::Failed(text)) if text.contains("a target that is no address") => {}
            other => panic!("{status} {target}: {other:?}"),
        }
    }
    // Two steps, of which only the second is hostile.
    let twice = leads(302, &leads(307, &format!("http://127.0.0.1:{}/", trap.port)));
    refused(&curl, &twice).await;
    // The operator's own host, with a user that the redirect brings along.
    refused(&curl, &leads(302, &format!("http://user:pass@named.test:{own}/"))).await;
    // Rounds end: to itself, and between two.
    let mut round = format!("http://named.test:{own}/home");
    for _ in 0..6 {
        round = leads(302, &round);
    }
    let failed = curl.request(&round, Method::GET).await.unwrap_err();
    assert!(matches!(failed, ToolError::Failed(text) if text.contains("more than 5 redirects")));
    // A target without the status of a redirect is only shown.
    let shown = curl
        .request(
            &leads(200, &format!("http://127.0.0.1:{}/", trap.port)),
            Method::GET,
        )
        .await;
    assert!(shown.unwrap().contains("location: http://127.0.0.1"));
    trap.assert_untouched().await;
}

#[tokio::test]
async fn a_name_whose_second_answer_is_private_is_not_followed() {
    let trap = Trap::set().await;
    // What is permitted is at another loopback address, on the same port.
    let listener = tokio::net::TcpListener::bind(("127.0.0.2", trap.port))
        .await
        .unwrap();
    let app = Router::new()
        .route("/", get(async || "public"))
        .route("/again", get(async || (StatusCode::FOUND, [("location", "/")])));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let rebinding = |first_are_good: usize| {
        let mut curl = curl(&["*.example.com"], &["127.0.0.2/32"], &[]);
        let asked = Arc::clone(&asked);
        asked.store(0, std::sync::atomic::Ordering::Relaxed);
        curl.resolve = Arc::new(move |_, port| {
            let count = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let address = if count < first_are_good {
                [127, 0, 0, 2]
            } else {
                [127, 0, 0, 1]
            };
            Box::pin(async move { Ok(vec![SocketAddr::from((address, port))]) })
        });
        curl
    };
    let url = |path: &str| format!("http://rebind.example.com:{}{path}", trap.port);
    // The connection goes to what was checked: the name is asked once.
    let curl = rebinding(1);
    let text = curl.request(&url("/"), Method::GET).await.unwrap();
    assert!(text.ends_with("\npublic"), "{text}");
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
    refused(&curl, &url("/")).await;
    // A redirect to itself is a new request, whose answer is checked.
    refused(&rebinding(1), &url("/again")).await;
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 2);
    let text = rebinding(2).request(&url("/again"), Method::GET).await.unwrap();
    assert!(text.ends_with("\npublic"), "{text}");
    trap.assert_untouched().await;
}

#[tokio::test]
async fn what_the_operator_permits_is_fetched_however_it_is_written() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let to = |target: String| get(move || async move { (StatusCode::FOUND, [("location", target)]) });
    let app = Router::new()
        .route("/relative", to("text".to_owned()))
        .route("/other", to(format!("http://a.example.com:{port}/text")))
        .route("/one", to("/two".to_owned()))
        .route("/two", to("/three".to_owned()))
        .route("/three", to("/four".to_owned()))
        .route("/four", to("/five".to_owned()))
        .route("/five", to("/text".to_owned()))
        .fallback(async || "hello");
    tokio::spawn(async move { axum::serve(listener, app).await });
    let hosts = ["Named.test.", "*.Example.com", "bücher.test", "2130706433"];
    let names = [
        ("named.test", "127.0.0.1"),
        ("a.example.com", "127.0.0.3"),
        ("a.example.com", "127.0.0.1"),
        ("deep.a.example.com", "127.0.0.1"),
        ("xn--bcher-kva.test", "127.0.0.1"),
    ];
    let curl = curl(&hosts, &["127.0.0.3/32", "127.0.0.1/32"], &names);
    for url in [
        "http://named.test:PORT",
        "http://named.test:PORT/text?a=1&b=%20#part",
        "HTTP://NAMED.test:PORT/",
        "http://named.test.:PORT/",
        "  http://named.test:PORT/  ",
        "http://named.test:PORT/../a/./b%2fc",
        "http:\\\\named.test:PORT\\a",
        "http://na\tmed.te\nst:PORT/",
        "http://ｎａｍｅｄ.test:PORT/",
        "http://n%61med.test:PORT/",
        "http://a.example.com:PORT/",
        "http://deep.a.example.com.:PORT/",
        "http://bücher.test:PORT/",
        "http://BÜCHER.test:PORT/",
        "http://xn--bcher-kva.test:PORT/",
        "http://127.0.0.1:PORT/",
        "http://127.1:PORT/",
        "http://0x7f000001:PORT/",
        "http://[::ffff:127.0.0.1]:PORT/",
        "http://named.test:PORT/relative",
        "http://named.test:PORT/other",
        "http://named.test:PORT/one",
    ] {
        let url = url.replace("PORT", &port);
        let text = curl.request(&url, Method::GET).await;
        assert!(
            text.as_ref().is_ok_and(|text| text.ends_with("\nhello")),
            "{url}: {text:?}"
        );
        let text = curl.request(&url, Method::HEAD).await;
        assert!(
            text.as_ref().is_ok_and(|text| text.contains("HTTP 200 OK")),
            "{url}: {text:?}"
        );
    }
}

#[test]
fn entries_of_the_list_are_compared_as_hosts_are() {
    for (entry, wanted) in [
        (" Status.Example.com. ", "status.example.com"),
        ("*.Example.com", "*.example.com"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("*.bücher.test", "*.xn--bcher-kva.test"),
        ("10.0.0.1", "10.0.0.1"),
        ("[::1]", "::1"),
        ("FD00::1", "fd00::1"),
        // What is no host stays what it is, and permits nothing.
        ("example.com:8080", "example.com:8080"),
        ("example.com/path", "example.com/path"),
        ("http://example.com", "http://example.com"),
        ("*", "*"),
        ("", ""),
    ] {
        assert_eq!(listed(entry), wanted, "{entry}");
    }
}
