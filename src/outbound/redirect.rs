//! Fetching a URL, wherever it leads.

use bytes::Bytes;
use http::{StatusCode, Uri, header, uri::PathAndQuery};

use super::{Error, Limits, Outbound, Target};

/// Redirects that are followed from one URL.
pub const MAX_REDIRECTS: usize = 5;

impl Outbound {
    /// Gets an https URL and follows at most [`MAX_REDIRECTS`] redirects, all within `limits`.
    ///
    /// # Errors
    /// There is no answer within `limits`, or it leads to what is not https.
    pub async fn get(&self, url: &Uri, limits: Limits) -> Result<http::Response<Bytes>, Error> {
        match tokio::time::timeout(limits.timeout, self.follow(url, limits)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Error::TimedOut("waiting for the answer")),
        }
    }

    async fn follow(&self, url: &Uri, limits: Limits) -> Result<http::Response<Bytes>, Error> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let target = target_of(&url)?;
            let path = url.path_and_query().map_or("/", PathAndQuery::as_str);
            let mut request = http::Request::new(Bytes::new());
            *request.uri_mut() = path
                .parse()
                .map_err(|_error| Error::BadUrl(url.to_string().into()))?;
            let answer = self.request(&target, request, limits).await?;
            match next(&url, &answer)? {
                Some(place) => url = place,
                None => return Ok(answer),
            }
        }
        Err(Error::TooManyRedirects)
    }
}

fn target_of(url: &Uri) -> Result<Target, Error> {
    let bad = || Error::BadUrl(url.to_string().into());
    if url.scheme_str() != Some("https") {
        return Err(bad());
    }
    let host = url.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
    Ok(Target::https(host, url.port_u16().unwrap_or(443)))
}

/// Where `answer` sends whoever asked for `url`; none if it is an answer of its own.
pub(super) fn next(url: &Uri, answer: &http::Response<Bytes>) -> Result<Option<Uri>, Error> {
    let is_redirect = matches!(
        answer.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let Some(location) = answer
        .headers()
        .get(header::LOCATION)
        .filter(|_| is_redirect)
    else {
        return Ok(None);
    };
    let location = location
        .to_str()
        .map_err(|_error| Error::BadUrl("a location that is no text".into()))?;
    join(url, location)
        .map(Some)
        .ok_or_else(|| Error::BadUrl(location.into()))
}

/// A location as seen from `url`.
///
/// Spec: RFC 3986, "Relative Resolution", without dot segments, which servers do not send.
fn join(url: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    if location.contains("://") {
        return location.parse().ok();
    }
    if let Some(rest) = location.strip_prefix("//") {
        return format!("https://{rest}").parse().ok();
    }
    let authority = url.authority()?;
    let path = if location.starts_with('/') {
        location.to_owned()
    } else {
        let (folder, _file) = url.path().rsplit_once('/').unwrap_or_default();
        format!("{folder}/{location}")
    };
    format!("https://{authority}{path}").parse().ok()
}

#[cfg(test)]
mod tests;
