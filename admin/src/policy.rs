//! `/v1/policy`: read, replace, merge.
//!
//! INV-ADMIN-1: a change names the version it was made from whenever that matters (it is a merge, or the client
//! gave versions), and the node refuses it if another change came first. A merge whose client gave no version is
//! merged again with what is now in effect, [`ATTEMPTS_MAX`] times.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Map, Value};

use crate::{
    body,
    control::{Control, PolicyError},
    etag::{self, Preconditions},
    json,
    merge::merge,
    respond::{self, Refusal, Reply, refuse},
    routes::Door,
    view::PolicyView,
};

/// How often a change is tried while other changes keep coming first; then 409.
const ATTEMPTS_MAX: u32 = 8;

/// `GET`: the document, or 304 if the client has it.
pub(crate) fn get(control: &dyn Control, headers: &HeaderMap) -> Result<Reply, Refusal> {
    let preconditions = preconditions(headers)?;
    let current = control.policy();
    if !preconditions.allow_read(current.version) {
        return Err(mismatch(current.version));
    }
    if preconditions.already_has(current.version) {
        return Ok(tagged(respond::empty(StatusCode::NOT_MODIFIED), current.version));
    }
    Ok(reply(&current))
}

/// `PUT`: the document as given.
pub(crate) async fn replace(door: &Door, headers: &HeaderMap, body: &[u8]) -> Result<Reply, Refusal> {
    let document = Value::Object(body::object(body)?);
    let preconditions = preconditions(headers)?;
    let named = preconditions.name_versions();
    change(door, &preconditions, |current| Ok((document.clone(), named.then_some(current.version)))).await
}

/// `PATCH`: the document in effect with the patch merged into it.
pub(crate) async fn patch(door: &Door, headers: &HeaderMap, body: &[u8]) -> Result<Reply, Refusal> {
    let patch = body::object(body)?;
    let preconditions = preconditions(headers)?;
    change(door, &preconditions, |current| {
        known_members(&patch, &current.document)?;
        Ok((merge(current.document, Value::Object(patch.clone())), Some(current.version)))
    })
    .await
}

/// Makes the change from what is in effect, until the node takes it.
async fn change(
    door: &Door,
    preconditions: &Preconditions,
    edit: impl Fn(PolicyView) -> Result<(Value, Option<u64>), Refusal>,
) -> Result<Reply, Refusal> {
    for _ in 0..ATTEMPTS_MAX {
        let current = door.control.policy();
        if !preconditions.allow_change(current.version) {
            return Err(mismatch(current.version));
        }
        let (document, expected) = edit(current)?;
        match door.wait(door.control.policy_replace(document, expected)).await? {
            Ok(view) => return Ok(reply(&view)),
            Err(PolicyError::VersionMismatch { current }) if !preconditions.allow_change(current) => {
                return Err(mismatch(current));
            }
            // Another request of this thread may be about to finish the change that came first.
            Err(PolicyError::VersionMismatch { .. }) => tokio::task::yield_now().await,
            Err(PolicyError::Invalid { field, message }) => return Err(respond::invalid(field, message)),
            Err(PolicyError::Unavailable(detail)) => return Err(respond::unavailable(detail)),
        }
    }
    let detail = format!("the policy changed {ATTEMPTS_MAX} times while this change was made; send it again");
    Err(refuse(StatusCode::CONFLICT, "policy-busy", detail))
}

/// A `null` for a member that no policy has would merge into nothing, and a misspelt name would pass unnoticed:
/// the document names all members of its root, so one that is not there does not exist.
fn known_members(patch: &Map<String, Value>, document: &Value) -> Result<(), Refusal> {
    let unknown = |name: &&String| patch[name.as_str()].is_null() && document.get(name.as_str()).is_none();
    match patch.keys().find(unknown) {
        None => Ok(()),
        Some(name) => {
            let mut field = String::new();
            json::push_pointer(&mut field, name);
            Err(respond::invalid(field, format!("a policy has no member {name:?}")))
        }
    }
}

fn preconditions(headers: &HeaderMap) -> Result<Preconditions, Refusal> {
    let malformed = |error: etag::Malformed| refuse(StatusCode::BAD_REQUEST, "bad-request", error.to_string());
    Preconditions::of(headers).map_err(malformed)
}

fn mismatch(current: u64) -> Refusal {
    let detail = format!("the policy is at version {current}, which the precondition excludes");
    let mut refusal = refuse(StatusCode::PRECONDITION_FAILED, "precondition", detail);
    refusal.current_version = Some(current);
    refusal
}

fn reply(view: &PolicyView) -> Reply {
    tagged(respond::json(StatusCode::OK, &view.document), view.version)
}

/// May be kept by the client, but must be validated before each use.
fn tagged(mut reply: Reply, version: u64) -> Reply {
    reply.headers_mut().insert(header::ETAG, etag::tag(version));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    reply
}
