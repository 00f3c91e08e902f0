//! A server in this process and people who use it, all through HTTP.
//!
//! A test says what it is about with words such as `alice.create_room()`; what the words lack is sent with
//! [`User::get`], [`User::post`] and the like. Tests wait for conditions, never for time.

pub mod federated;

use std::{path::Path, sync::Arc, time::Duration};

use hearth::{
    clock::Clock,
    config::{Config, Sources},
    run::{self, Running},
    server::Server,
    storage::Store,
};
use reqwest::Method;
use serde_json::{Value, json};

/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with a store in memory on a port of its own. It stops when it is dropped with its runtime.
pub struct TestServer {
    /// Looks for failures when the server is dropped.
    _watch: Watch,
    pub running: Running,
    pub http: reqwest::Client,
    pub base: String,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    /// The body of an answer that must be 200.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Asserts an error with this status and code.
    #[track_caller]
    pub fn fails(&self, status: u16, errcode: &str) {
        let body = self.json();
        let found = (self.status, body["errcode"].as_str().unwrap_or_default());
        assert_eq!(found, (status, errcode), "{}", self.text);
        assert!(
            body["error"].is_string(),
            "an error has a text: {}",
            self.text
        );
        assert_eq!(self.headers["access-control-allow-origin"], "*");
    }
}

/// Looks at the end of a test whether anything failed that no answer told of.
struct Watch(Option<Arc<Server>>);

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(server) = self.0.take() else { return };
        if std::thread::panicking() {
            return;
        }
        let page = server.metrics.encode().expect("metrics");
        let is_failure = |line: &str| {
            let (name, count) = line.rsplit_once(' ').unwrap_or_default();
            let is_counted = name.starts_with("hearth_http_panics_total")
                || name.starts_with("hearth_task_failures_total")
                || (name.starts_with("hearth_http_requests_total")
                    && name.contains("code=\"500\""));
            is_counted && count != "0"
        };
        let failures: Vec<&str> = page.lines().filter(|line| is_failure(line)).collect();
        assert!(failures.is_empty(), "the server failed: {failures:#?}");
    }
}

impl TestServer {
    /// A server with open registration and without rate limits.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A server with more settings, written as with `-o`.
    pub async fn start_with(settings: &[&str]) -> Self {
        let store = Store::memory_with(Clock::system());
        Self::start_on(store, settings).await
    }

    /// As [`TestServer::start_with`], on a store that may hold something.
    pub async fn start_on(store: Store, settings: &[&str]) -> Self {
        let server = Server::build(config(settings), Clock::system(), store)
            .await
            .expect("the parts can be built");
        Self::run(server)
    }

    /// A server with a store in `folder`, which [`TestServer::stop`] leaves for the next one.
    pub async fn start_in(folder: &Path, settings: &[&str]) -> Self {
        let place = format!("server.data_dir={}", folder.display());
        let config = config(&[&[place.as_str()], settings].concat());
        let server = Server::open(config, Clock::system())
            .await
            .expect("the parts can be built");
        Self::run(server)
    }

    fn run(server: Arc<Server>) -> Self {
        let running = run::start(server).expect("the server starts");
        let address = running.addresses.first().expect("it has a listener");
        let base = format!("http://{address}");
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            .build()
            .expect("a client");
        Self {
            _watch: Watch(Some(Arc::clone(&running.server))),
            running,
            http,
            base,
        }
    }

    /// Ends the server, so that another one can have its store.
    pub async fn stop(self) {
        let Self {
            running, _watch, ..
        } = self;
        drop(_watch);
        running.stop().await;
    }

    /// The name of the server in user IDs.
    pub fn name(&self) -> &str {
        self.running.server.config.server_name()
    }

    /// Sends a request of any kind.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        answer(request).await
    }

    /// A request without an access token.
    pub async fn request(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.send(request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(Method::POST, path, Some(body)).await
    }
}

/// Somebody who is signed in.
pub struct User {
    pub server: String,
    http: reqwest::Client,
    pub id: String,
    pub device: String,
    pub token: String,
}

/// The password of every user that a test does not give another one.
pub const PASSWORD: &str = "correct horse";

impl TestServer {
    /// Registers `name` and signs in.
    pub async fn user(&self, name: &str) -> User {
        let body = json!({
            "username": name,
            "password": PASSWORD,
            "auth": { "type": "m.login.dummy" },
        });
        let answer = self.post("/_matrix/client/v3/register", body).await;
        self.signed_in(&answer)
    }

    /// Signs `name` in on a new device.
    pub async fn login(&self, name: &str, password: &str) -> User {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": password,
        });
        let answer = self.post("/_matrix/client/v3/login", body).await;
        self.signed_in(&answer)
    }

    /// The user whom the answer to a login or a registration is about.
    #[track_caller]
    pub fn signed_in(&self, answer: &Answer) -> User {
        let body = answer.ok();
        let field = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        User {
            server: self.base.clone(),
            http: self.http.clone(),
            id: field("user_id"),
            device: field("device_id"),
            token: field("access_token"),
        }
    }
}

impl User {
    /// A request of this user. `path` without the host.
    pub async fn request(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let url = format!("{}{path}", self.server);
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.request(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.request(Method::DELETE, path, None).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("the server answers");
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.text().await.expect("the answer ends"),
    }
}

pub fn config(settings: &[&str]) -> Config {
    let listener = "listeners=[{ bind = \"127.0.0.1:0\", resources = [\"client\", \"web\", \"health\", \"metrics\"] }]";
    let mut overrides = vec!["server.name=hearth.test".to_owned(), listener.to_owned()];
    // Passwords that cost nothing, and anybody may register.
    for setting in [
        "registration.mode=open",
        "registration.i_accept_open_registration=true",
        "accounts.password.min_score=0",
        "accounts.password.m_cost=64",
        "accounts.password.t_cost=1",
    ] {
        overrides.push(setting.to_owned());
    }
    for bucket in [
        "login",
        "registration",
        "message",
        "join",
        "invite",
        "profile",
        "delayed",
        "user_directory",
        "search",
        "reports",
    ] {
        overrides.push(format!("rate_limits.{bucket}=\"off\""));
    }
    overrides.extend(settings.iter().map(|setting| (*setting).to_owned()));
    let sources = Sources {
        overrides,
        ..Sources::default()
    };
    sources
        .load()
        .map_err(|problems| problems.to_string())
        .expect("the settings are right")
        .config
}
