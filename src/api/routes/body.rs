//! The body of an answer: whole, or in parts that are read while it is sent.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http_body_util::Full;
use hyper::body::{Frame, SizeHint};

use crate::api::error::Error;

/// The body of an answer.
pub enum Body {
    Whole(Full<Bytes>),
    /// If one cannot be read the connection breaks, so that nobody takes a half answer for a whole one.
    Parts(BoxStream<'static, Result<Bytes, Error>>),
}

/// The rest of an answer could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the rest of the answer could not be read")]
pub struct Broken;

impl Default for Body {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl<T> From<T> for Body
where
    Full<Bytes>: From<T>,
{
    fn from(whole: T) -> Self {
        Self::Whole(whole.into())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole(whole) => {
                let frame = Pin::new(whole).poll_frame(context);
                frame.map_err(|never| match never {})
            }
            Self::Parts(parts) => parts.as_mut().poll_next(context).map(|part| {
                Some(part?.map(Frame::data).map_err(|error| {
                    tracing::error!(cause = error.chain(), "an answer breaks off");
                    Broken
                }))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Parts(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Parts(_) => SizeHint::default(),
        }
    }
}
