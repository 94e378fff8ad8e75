//! What happens to every request: who asks and how often, which parameters, how much at once, how large, how long.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, BodyDataStream, Bytes},
    extract::{ConnectInfo, RawPathParams, Request},
    http::{HeaderValue, Method, Response, StatusCode, header, request},
    routing::{MethodFilter, MethodRouter},
};
use futures_util::StreamExt;

use super::{
    Answer, App, Call,
    auth::Holder,
    limit::Client,
    params::Params,
    problem::Problem,
    routes::{Door, Route, table},
};

/// Of a body that is too large so much more is read and dropped, so that the client gets to read why.
const DRAINED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The router of the whole table.
pub fn router(app: &Arc<App>) -> Router {
    let mut by_path: BTreeMap<&'static str, Vec<Route>> = BTreeMap::new();
    for route in table() {
        by_path.entry(route.path).or_default().push(route);
    }
    let mut router = Router::new();
    for (path, routes) in by_path {
        router = router.route(path, of_one_path(app, routes));
    }
    router.fallback(|request: Request| async move { unknown_path(&request).into_response() })
}

fn of_one_path(app: &Arc<App>, routes: Vec<Route>) -> MethodRouter {
    let allowed = allowed(&routes);
    let mut methods = MethodRouter::new().fallback(move |request: Request| async move {
        wrong_method(request.method(), allowed.clone()).into_response()
    });
    for route in routes {
        let filter = match route.method {
            Method::POST => MethodFilter::POST,
            Method::DELETE => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        };
        let app = Arc::clone(app);
        let route = Arc::new(route);
        methods = methods.on(filter, move |path: RawPathParams, request: Request| {
            let (app, route) = (Arc::clone(&app), Arc::clone(&route));
            async move { answer(app, &route, &path, request).await }
        });
    }
    methods
}

/// The methods of a path, as in the header `Allow`.
fn allowed(routes: &[Route]) -> HeaderValue {
    let mut methods: Vec<&str> = routes.iter().map(|route| route.method.as_str()).collect();
    if methods.contains(&"GET") {
        methods.push("HEAD");
    }
    HeaderValue::from_str(&methods.join(", ")).unwrap_or(HeaderValue::from_static(""))
}

fn wrong_method(method: &Method, allowed: HeaderValue) -> Problem {
    let detail = format!(
        "{method} is not served here; use {}",
        allowed.to_str().unwrap_or_default()
    );
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).header(header::ALLOW, allowed)
}

fn unknown_path(request: &Request) -> Problem {
    let path: String = request.uri().path().chars().take(200).collect();
    Problem::not_found(format!(
        "nothing is served at {path}; GET /openapi.json lists what is"
    ))
}

async fn answer(app: Arc<App>, route: &Route, path: &RawPathParams, request: Request) -> Response<Body> {
    let limit = Duration::from_millis(app.config.http.request_timeout_ms);
    let answered = tokio::time::timeout(limit, handled(app, route, path, request)).await;
    let too_slow = || {
        Problem::unavailable(format!(
            "no answer within {} ms (http.request_timeout_ms); what was asked may still have happened",
            limit.as_millis()
        ))
    };
    let problem = match answered.unwrap_or_else(|_| Err(too_slow())) {
        Ok(response) => return response,
        Err(problem) => problem,
    };
    if problem.status().is_server_error() {
        tracing::warn!(
            route = route.path,
            status = problem.status().as_u16(),
            reason = problem.detail(),
            "refused"
        );
    }
    problem.into_response()
}

async fn handled(app: Arc<App>, route: &Route, path: &RawPathParams, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let holder = app.tokens.holder(&head.headers);
    // The doors that others watch us through stay open under any load.
    if route.door != Door::Open {
        admitted(&app, route, &head, holder)?;
    }
    let _permit = match route.door {
        Door::Open => None,
        Door::Api(_) | Door::Webhook => Some(app.in_flight.clone().try_acquire_owned().map_err(|_| {
            Problem::unavailable(format!(
                "{} requests are being worked on, which is the limit (http.in_flight_max); try again",
                app.config.http.in_flight_max
            ))
        })?),
    };
    if let Door::Api(role) = route.door {
        app.tokens.check(holder, role)?;
    }
    let query = Params::read(head.uri.query(), route.query)?;
    let encoded = head
        .headers
        .get(header::CONTENT_ENCODING)
        .filter(|value| *value != "identity");
    if encoded.is_some() {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "compressed bodies are not read; send it without Content-Encoding",
        ));
    }
    let body = whole(body.into_data_stream(), app.config.http.body_bytes_max).await?;
    let path = path
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let call = Call {
        path,
        query,
        headers: head.headers,
        body,
    };
    (route.handler)(app, call).await
}

/// Whether this client has not asked too often.
fn admitted(app: &App, route: &Route, head: &request::Parts, holder: Holder) -> Result<(), Problem> {
    let Some(limit) = &app.rate_limit else {
        return Ok(());
    };
    let client = match holder {
        Holder::Known { index, .. } => Client::Token(index),
        // Who guesses tokens is counted by address as well.
        Holder::Nobody | Holder::Stranger => Client::Address(peer(head)),
    };
    let Err(wait) = limit.admit(client) else {
        return Ok(());
    };
    let detail = format!(
        "one client may make {} requests a second (http.requests_per_second_max), and {} at once (http.requests_burst_max); try again later",
        app.config.http.requests_per_second_max, app.config.http.requests_burst_max
    );
    Err(match route.door {
        Door::Webhook => Problem::unavailable(detail).after(wait),
        Door::Api(_) | Door::Open => Problem::too_many(detail).after(wait),
    })
}

/// Where a request comes from. What proxies say about it is not looked at: anybody can say that.
fn peer(head: &request::Parts) -> IpAddr {
    let peer = head.extensions.get::<ConnectInfo<SocketAddr>>();
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.ip())
}

/// A body up to its limit.
async fn whole(mut stream: BodyDataStream, bytes_max: usize) -> Result<Bytes, Problem> {
    let mut body = Vec::new();
    let mut length = 0_usize;
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| Problem::bad_request(format!("the body did not arrive whole: {error}")))?;
        length = length.saturating_add(chunk.len());
        if length <= bytes_max {
            body.extend_from_slice(&chunk);
        } else if length > bytes_max.saturating_add(DRAINED_BYTES_MAX) {
            break;
        }
    }
    if length > bytes_max {
        return Err(Problem::too_large("the body", "http.body_bytes_max", bytes_max));
    }
    Ok(body.into())
}
