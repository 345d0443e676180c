//! `/v1/purge`: one key.

use http::StatusCode;
use serde_json::{Map, Value};

use crate::{
    body,
    control::PurgeError,
    json,
    respond::{self, Refusal, Reply, refuse},
    routes::Door,
    view::PurgeRequest,
};

/// Bytes in the name of a namespace at most.
const NAMESPACE_BYTES_MAX: usize = 64;
/// Bytes in a key, encoded, at most.
const KEY_BYTES_MAX: usize = 4096;

/// Purges and reports what was removed where.
pub(crate) async fn key(door: &Door, body: &[u8]) -> Result<Reply, Refusal> {
    let request = request(body::object(body)?)?;
    let report = door.wait(door.control.purge(request)).await?.map_err(|error| match error {
        PurgeError::NamespaceUnknown(_) => {
            let mut refusal = refuse(StatusCode::NOT_FOUND, "namespace-unknown", error.to_string());
            refusal.field = Some("/namespace".to_owned());
            refusal
        }
        PurgeError::Invalid { field, message } => respond::invalid(field, message),
        PurgeError::Unavailable(detail) => respond::unavailable(detail),
    });
    Ok(respond::json(StatusCode::OK, &report?))
}

fn request(mut members: Map<String, Value>) -> Result<PurgeRequest, Refusal> {
    let namespace = text(&mut members, "namespace")?;
    let key = text(&mut members, "key")?;
    if let Some(name) = members.keys().next() {
        let mut field = String::new();
        json::push_pointer(&mut field, name);
        return Err(respond::invalid(field, format!("a purge has no member {name:?}")));
    }
    let named = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if !(1..=NAMESPACE_BYTES_MAX).contains(&namespace.len()) || !namespace.bytes().all(named) {
        let detail = format!("a namespace is 1 to {NAMESPACE_BYTES_MAX} of a-z, 0-9, _ and -; found {namespace:?}");
        return Err(respond::invalid("/namespace", detail));
    }
    if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
        let detail = format!("a key is 1 to {KEY_BYTES_MAX} bytes; found {}", key.len());
        return Err(respond::invalid("/key", detail));
    }
    Ok(PurgeRequest { namespace, key })
}

fn text(members: &mut Map<String, Value>, name: &str) -> Result<String, Refusal> {
    match members.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(respond::invalid(format!("/{name}"), format!("{name} must be a string"))),
        None => Err(respond::invalid(format!("/{name}"), format!("{name} is missing"))),
    }
}
