//! One transaction: its body, and what the answer means.
//!
//! Spec: s2s, "Transactions".

use std::collections::BTreeMap;

use bytes::Bytes;
use ruma::ServerName;
use serde::Deserialize;

use crate::federation::Error;

/// PDUs that make the body larger wait for the next transaction.
const MAX_BODY_BYTES: usize = 2 << 20;

/// What a transaction holds: the stored JSON of each PDU, and EDUs in canonical JSON.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) pdus: Vec<Bytes>,
    pub(super) edus: Vec<String>,
}

impl Contents {
    pub(super) fn is_empty(&self) -> bool {
        self.pdus.is_empty() && self.edus.is_empty()
    }

    /// How many of these PDUs fit one body.
    pub(super) fn fitting(sizes: impl IntoIterator<Item = usize>) -> usize {
        let mut bytes = 0;
        let fits = |size: &usize| {
            bytes += size;
            bytes <= MAX_BODY_BYTES
        };
        sizes.into_iter().take_while(fits).count().max(1)
    }

    /// The body, in canonical JSON: all parts are.
    pub(super) fn body(&self, origin: &ServerName, now_ms: u64) -> Bytes {
        let pdus: usize = self.pdus.iter().map(|pdu| pdu.len() + 1).sum();
        let edus: usize = self.edus.iter().map(|edu| edu.len() + 1).sum();
        let mut body = Vec::with_capacity(pdus + edus + origin.as_bytes().len() + 80);
        body.extend_from_slice(b"{");
        if !self.edus.is_empty() {
            body.extend_from_slice(b"\"edus\":[");
            join(&mut body, self.edus.iter().map(String::as_bytes));
            body.extend_from_slice(b"],");
        }
        body.extend_from_slice(b"\"origin\":\"");
        body.extend_from_slice(origin.as_bytes());
        body.extend_from_slice(b"\",\"origin_server_ts\":");
        body.extend_from_slice(now_ms.to_string().as_bytes());
        body.extend_from_slice(b",\"pdus\":[");
        join(&mut body, self.pdus.iter().map(AsRef::as_ref));
        body.extend_from_slice(b"]}");
        body.into()
    }
}

fn join<'a>(to: &mut Vec<u8>, parts: impl Iterator<Item = &'a [u8]>) {
    for (at, part) in parts.enumerate() {
        if at > 0 {
            to.push(b',');
        }
        to.extend_from_slice(part);
    }
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The server has it.
    Taken,
    /// The server is there and will never take it as it is.
    Refused(Error),
    /// The server is to be tried again later.
    Failed(Error),
}

impl Outcome {
    /// Reads the answer. Events that the server does not want are its own affair: it has seen them.
    pub(super) fn of(answer: Result<http::Response<Bytes>, Error>, server: &ServerName) -> Self {
        match answer {
            Ok(answer) => {
                note_refused_events(server, answer.body());
                Self::Taken
            }
            // The body is not what it should be, or too large: smaller parts tell which part it is.
            Err(error @ Error::Request(_)) => Self::Refused(error),
            Err(error)
                if [400, 413, 414, 422]
                    .iter()
                    .any(|status| error.is_status(*status)) =>
            {
                Self::Refused(error)
            }
            Err(error) => Self::Failed(error),
        }
    }
}

fn note_refused_events(server: &ServerName, body: &[u8]) {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow, default)]
        pdus: BTreeMap<std::borrow::Cow<'a, str>, Outcome<'a>>,
    }
    #[derive(Deserialize)]
    struct Outcome<'a> {
        #[serde(borrow, default)]
        error: Option<std::borrow::Cow<'a, str>>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer<'_>>(body) else {
        return;
    };
    for (event, outcome) in answer.pdus {
        if let Some(error) = outcome.error {
            tracing::debug!(%server, %event, %error, "the server did not take an event");
        }
    }
}

#[cfg(test)]
mod tests;
