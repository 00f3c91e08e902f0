//! What the dispatcher does around handlers.

use http::StatusCode;
use http_body_util::{BodyExt as _, Full};

use super::*;
use crate::{
    clock::Clock,
    config::{Config, Sources},
    storage::Store,
};

async fn dispatcher(settings: &[&str], routes: Routes) -> Dispatcher {
    let clock = Clock::system();
    let mut overrides = vec!["server.name=hearth.test".to_owned()];
    overrides.extend(settings.iter().map(|setting| (*setting).to_owned()));
    let sources = Sources {
        overrides,
        ..Sources::default()
    };
    let config: Config = sources.load().expect("good settings").config;
    let store = Store::memory_with(clock.clone());
    let server = Server::build(config, clock, store).await.expect("a server");
    let limits = Limits::new(
        server.clock.clone(),
        server.config.rate_limits.clone(),
        &server.metrics,
    );
    Dispatcher::new(server, Arc::new(limits), routes)
}

fn request(path: &str) -> http::Request<Full<Bytes>> {
    http::Request::post(path)
        .body(Full::from("{}"))
        .expect("a request")
}

async fn text(response: Response) -> String {
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

const PEER: Peer = Peer::Network(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

#[tokio::test]
async fn a_panic_is_a_500_without_what_was_said() {
    let routes = Routes::default().plain(Method::POST, "/panic", |_server, _request| async {
        assert!(std::hint::black_box(false), "a secret");
        Err(Error::unrecognized())
    });
    let dispatcher = dispatcher(&[], routes).await;
    let response = dispatcher.answer(request("/panic"), PEER).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    let id = response.headers()["x-request-id"]
        .to_str()
        .expect("text")
        .to_owned();
    let text = text(response).await;
    assert!(
        text.contains("M_UNKNOWN") && text.contains(&id) && !text.contains("secret"),
        "{text}"
    );
}

#[tokio::test]
async fn a_body_above_the_limit_is_413() {
    let routes = Routes::default().plain(Method::POST, "/", |_server, _request| async {
        Err(Error::unrecognized())
    });
    let dispatcher = dispatcher(&["limits.request_body=16B"], routes).await;
    let large = request("/").map(|_body| Full::from(vec![b' '; 17]));
    let response = dispatcher.answer(large, PEER).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(text(response).await.contains("M_TOO_LARGE"));
}

#[tokio::test]
async fn the_address_of_a_client_comes_from_trusted_proxies_only() {
    let address = |_server, request: PlainRequest| async move {
        json(StatusCode::OK, &request.client.address.to_string())
    };
    for (trusted, forwarded, expected) in [
        ("[]", "198.51.100.7", "192.0.2.1"),
        ("[\"192.0.2.0/24\"]", "198.51.100.7", "198.51.100.7"),
        (
            "[\"192.0.2.0/24\"]",
            "203.0.113.9, 198.51.100.7",
            "198.51.100.7",
        ),
        (
            "[\"192.0.2.0/24\", \"198.51.100.7\"]",
            "203.0.113.9, 198.51.100.7",
            "203.0.113.9",
        ),
        ("[\"192.0.2.0/24\"]", "nonsense", "192.0.2.1"),
    ] {
        let routes = Routes::default().plain(Method::POST, "/", address);
        let dispatcher = dispatcher(&[&format!("proxy.trusted={trusted}")], routes).await;
        let mut request = request("/");
        let forwarded = HeaderValue::from_str(forwarded).expect("a header");
        request.headers_mut().insert("x-forwarded-for", forwarded);
        assert_eq!(
            text(dispatcher.answer(request, PEER).await).await,
            format!("\"{expected}\"")
        );
    }
}

#[tokio::test]
async fn a_limited_endpoint_says_when_to_come_again() {
    use ruma::api::client::session::get_login_types::v3::{Request, Response};
    async fn handler(
        _server: Arc<Server>,
        _caller: (),
        _request: Request,
    ) -> Result<Response, Error> {
        Ok(Response::new(Vec::new()))
    }
    let routes = Routes::default().limited(Bucket::Login, handler);
    let dispatcher = dispatcher(&["rate_limits.login={ rate = \"1/h\", burst = 1 }"], routes).await;
    let login = || request("/_matrix/client/v3/login").map(|_body| Full::default());
    let get = || {
        let mut request = login();
        *request.method_mut() = Method::GET;
        request
    };
    assert_eq!(
        dispatcher.answer(get(), PEER).await.status(),
        StatusCode::OK
    );
    let refused = dispatcher.answer(get(), PEER).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = refused.headers()["retry-after"]
        .to_str()
        .expect("text")
        .parse()
        .expect("a number");
    assert!((3590..=3600).contains(&seconds), "{seconds}");
    let text = text(refused).await;
    assert!(
        text.contains("M_LIMIT_EXCEEDED") && text.contains("retry_after_ms"),
        "{text}"
    );
    let other = Peer::Network(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)));
    assert_eq!(
        dispatcher.answer(get(), other).await.status(),
        StatusCode::OK
    );
}
