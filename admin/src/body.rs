//! What is checked of a request that changes something, before its body means anything: where it comes from, what
//! it claims to carry, how long it is and how long it takes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use crate::respond::{self, Refusal, refuse};

/// Bytes of an unwanted body that are taken and thrown away before the connection is closed instead.
const DISCARD_BYTES_MAX: usize = 8 << 20;
/// And for how long: the answer waits for it.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Refuses a change that a page of another site makes a browser send (403): this door has no password by default,
/// and a browser on the same machine reaches loopback. Clients that are not browsers send no `Origin`.
pub(crate) fn same_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let same = match (origin_host(origin), headers.get(header::HOST).map(HeaderValue::to_str)) {
        (Some((origin, port)), Some(Ok(host))) => {
            let host = host.strip_suffix(port).unwrap_or(host);
            origin.eq_ignore_ascii_case(host)
        }
        _ => false,
    };
    if same {
        return Ok(());
    }
    Err(refuse(
        StatusCode::FORBIDDEN,
        "cross-origin",
        "a page of another origin may not change this node: its Origin must name this Host",
    ))
}

/// Host and port of an origin, without the port that its scheme implies, which is returned beside it.
fn origin_host(origin: &HeaderValue) -> Option<(&str, &'static str)> {
    let origin = origin.to_str().ok()?;
    let (host, port) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(host), _) => (host, ":80"),
        (None, Some(host)) => (host, ":443"),
        (None, None) => return None,
    };
    Some((host.strip_suffix(port).unwrap_or(host), port))
}

/// Requires one of `accepted` (415). A browser cannot send these to another origin without asking first.
pub(crate) fn content_type(headers: &HeaderMap, accepted: &[&str]) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = given.map(|value| value.split(';').next().unwrap_or(value).trim());
    if essence.is_some_and(|essence| accepted.iter().any(|accepted| accepted.eq_ignore_ascii_case(essence))) {
        return Ok(());
    }
    let found = match given {
        Some(given) => format!("found {given:?}"),
        None => "found none".to_owned(),
    };
    let detail = format!("Content-Type must be {}; {found}", accepted.join(" or "));
    Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail))
}

/// Reads the whole body, at most `bytes_max` of it (413) and for at most `timeout` (408). A body that announces
/// its length is refused before its first byte, and before `100 Continue`. What is left of a refused body stays in
/// `body`, for [`discard`].
pub(crate) async fn read(body: &mut Incoming, bytes_max: usize, timeout: Duration) -> Result<Bytes, Refusal> {
    let too_large = || {
        let detail = format!("the body exceeds {bytes_max} bytes");
        let mut refusal = refuse(StatusCode::PAYLOAD_TOO_LARGE, "body-max", detail);
        refusal.max_bytes = Some(bytes_max as u64);
        refusal
    };
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > bytes_max {
        return Err(too_large());
    }
    let mut whole = BytesMut::with_capacity(announced);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                refuse(StatusCode::BAD_REQUEST, "body-cut", format!("the body did not arrive whole: {error}"))
            })?;
            let chunk = frame.into_data().unwrap_or_default();
            if whole.len() + chunk.len() > bytes_max {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(())
    };
    match tokio::time::timeout(timeout, reading).await {
        Ok(read) => read.map(|()| whole.freeze()),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            format!("the body did not arrive within {} ms", timeout.as_millis()),
        )),
    }
}

/// Takes what is left of a body nobody wants, within bounds, and says whether that was all of it. Closing a socket
/// with bytes unread resets it, and the client may then never see the answer that told it why.
pub(crate) async fn discard(body: &mut Incoming) -> bool {
    let mut taken = 0;
    let discarding = async {
        while taken <= DISCARD_BYTES_MAX {
            match body.frame().await {
                Some(Ok(frame)) => taken += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) => return false,
                None => return true,
            }
        }
        false
    };
    tokio::time::timeout(DISCARD_TIMEOUT, discarding).await.unwrap_or(false)
}

/// The members of a JSON object.
pub(crate) fn object(body: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>, Refusal> {
    match crate::json::parse(body)? {
        serde_json::Value::Object(members) => Ok(members),
        _ => Err(respond::invalid("", "the body must be a JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_the_own_origin_may_write() {
        let table = [
            ("http://127.0.0.1:7801", "127.0.0.1:7801", true),
            ("https://Node.example", "node.example", true),
            ("http://node", "node:80", true),
            ("http://node:80", "node", true),
            ("https://node:443", "node", true),
            ("http://[::1]:7801", "[::1]:7801", true),
            ("http://node:443", "node", false),
            ("http://127.0.0.1:8080", "127.0.0.1:7801", false),
            ("http://evil.example", "127.0.0.1:7801", false),
            ("http://127.0.0.1:7801.evil.example", "127.0.0.1:7801", false),
            ("null", "127.0.0.1:7801", false),
            ("file://", "127.0.0.1:7801", false),
            ("", "", false),
        ];
        for (origin, host, allowed) in table {
            let headers = headers(&[(header::ORIGIN, origin), (header::HOST, host)]);
            assert_eq!(same_origin(&headers).is_ok(), allowed, "{origin} to {host}");
        }
        assert!(same_origin(&headers(&[(header::ORIGIN, "http://node")])).is_err(), "no Host to compare with");
        assert!(same_origin(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn content_types_compare_by_essence() {
        let accepted = ["application/json", "application/merge-patch+json"];
        for (value, ok) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/merge-patch+json", true),
            ("text/plain", false),
            ("application/jsonx", false),
            ("", false),
        ] {
            let headers = headers(&[(header::CONTENT_TYPE, value)]);
            assert_eq!(content_type(&headers, &accepted).is_ok(), ok, "{value}");
        }
        assert!(content_type(&HeaderMap::new(), &accepted).is_err());
    }
}
