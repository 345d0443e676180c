//! Answers: JSON, text, and problems (RFC 9457).

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use crate::{json::JsonError, view::Problem};

/// Every body of this door is whole and in memory.
pub(crate) type Reply = Response<Full<Bytes>>;

pub(crate) const JSON: &str = "application/json";
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// Seconds a client is asked to wait before it tries again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A body with its content type. Nothing here may be stored by caches, and no browser may guess another type.
pub(crate) fn body(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// A status without a body.
pub(crate) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// A value as JSON, indented: people read this with curl.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    document(status, JSON, value)
}

fn document(status: StatusCode, content_type: &'static str, value: &impl Serialize) -> Reply {
    let mut text = serde_json::to_vec_pretty(value).expect("views have string keys and no failing serialiser");
    text.push(b'\n');
    body(status, content_type, text)
}

/// Why a request was not done, to be answered as it is. Boxed: refusals are rare, and travel in every result.
pub(crate) type Refusal = Box<Problem>;

/// A refusal; the caller adds particulars to its public members.
pub(crate) fn refuse(status: StatusCode, reason: &str, detail: impl Into<String>) -> Refusal {
    Box::new(Problem {
        kind: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or_default().to_owned(),
        status: status.as_u16(),
        reason: reason.to_owned(),
        detail: detail.into(),
        ..Problem::default()
    })
}

/// A member of the request says something impossible (422).
pub(crate) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Refusal {
    let mut refusal = refuse(StatusCode::UNPROCESSABLE_ENTITY, "invalid-field", detail);
    refusal.field = Some(field.into());
    refusal
}

/// The node cannot answer now (503).
pub(crate) fn unavailable(detail: impl Into<String>) -> Refusal {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
}

/// The answer that says so.
pub(crate) fn problem(refusal: &Problem) -> Reply {
    let status = StatusCode::from_u16(refusal.status).expect("made from a StatusCode in this module");
    let mut reply = document(status, PROBLEM_JSON, refusal);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        reply.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    reply
}

impl From<JsonError> for Refusal {
    fn from(error: JsonError) -> Refusal {
        match error {
            JsonError::Syntax { message, line, column } => {
                let detail = format!("the body is not JSON: {message} at line {line}, column {column}");
                let mut refusal = refuse(StatusCode::BAD_REQUEST, "json-syntax", detail);
                refusal.line = Some(line);
                refusal.column = Some(column);
                refusal
            }
            JsonError::Duplicate { field } => {
                let detail = format!("{field} is given twice");
                invalid(field, detail)
            }
        }
    }
}
