//! Requests to a server that may be killed before it answers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use reqwest::Method;
use serde_json::Value;

/// The way to a server process.
#[derive(Clone)]
pub(super) struct Line {
    http: reqwest::Client,
    is_cut: Arc<AtomicBool>,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Answer {
    /// The body of an answer that must be 200.
    #[track_caller]
    pub(super) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// A text of an answer that must be 200.
    #[track_caller]
    pub(super) fn text(self, field: &str) -> String {
        let body = self.ok();
        let text = body[field].as_str();
        text.unwrap_or_else(|| panic!("no {field}: {body}"))
            .to_owned()
    }
}

impl Line {
    pub(super) fn new(http: reqwest::Client) -> Self {
        Self {
            http,
            is_cut: Arc::default(),
        }
    }

    /// From now on requests may stay without an answer.
    pub(super) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    /// `None`: there was no answer because the server was killed. `path` as it goes out, with the query.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<&Value>,
    ) -> Option<Answer> {
        let url = format!("http://hearth.test{path}");
        let mut request = self.http.request(method, url);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answered = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            Ok::<_, reqwest::Error>((status, response.bytes().await?))
        };
        let is_cut = || self.is_cut.load(Ordering::SeqCst);
        match answered.await {
            // It could not tell any more what it has written.
            Ok((503, _)) if is_cut() => None,
            Ok((status, body)) => {
                let body = serde_json::from_slice(&body).unwrap_or_default();
                assert!(status < 500, "{path}: {status}: {body}");
                Some(Answer { status, body })
            }
            Err(error) => {
                assert!(
                    is_cut(),
                    "{path}: no answer from a living server: {error:?}"
                );
                None
            }
        }
    }

    pub(super) async fn get(&self, path: &str, token: &str) -> Option<Answer> {
        self.request(Method::GET, path, token, None).await
    }

    pub(super) async fn put(&self, path: &str, token: &str, body: &Value) -> Option<Answer> {
        self.request(Method::PUT, path, token, Some(body)).await
    }

    pub(super) async fn post(&self, path: &str, token: &str, body: &Value) -> Option<Answer> {
        self.request(Method::POST, path, token, Some(body)).await
    }
}

/// The order in which things were known to have happened, over all rounds.
#[derive(Default)]
pub(super) struct Order(AtomicU64);

impl Order {
    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}
