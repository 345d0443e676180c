//! HTTP as this node speaks it: from request heads to values, from outcomes to response heads.
//!
//! In reading order: [`framing`] (where it ends), [`target`] (which key), [`conditions`] (whether), [`range`] (how much), [`freshness`] (how
//! long), [`stored`] (what is kept beside the body), [`answer`] (what is said). Uses the vocabulary of crate `http`
//! only: no server library, no body, no I/O; the current time is an argument.
//!
//! Invariant: a header that decides whether or what is written is understood or refused; one that only shapes an
//! answer is understood or ignored.

pub mod answer;
pub mod conditions;
pub mod framing;
pub mod freshness;
pub mod range;
pub mod stored;
pub mod target;

use bytes::Bytes;
use http::{
    HeaderMap, Method, Uri,
    header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE},
};

use self::{conditions::Conditions, range::Spec};
use super::{Fault, Operation, Refusal};
use crate::{cache::CacheKey, policy::Effective, reason::Reason};

/// What `Allow` says.
pub const METHODS: &str = "GET, HEAD, PUT, DELETE, PURGE";

/// A request head, understood.
#[derive(Debug)]
pub struct Request<'a> {
    /// What is asked.
    pub operation: Operation,
    /// Of which object.
    pub key: CacheKey,
    /// On which conditions.
    pub conditions: Conditions<'a>,
    /// How much of it; only ever of a GET (RFC 9110 section 14.2).
    pub range: Option<Spec>,
}

impl<'a> Request<'a> {
    /// Reads a request head; `seed` is the node's hash seed.
    ///
    /// # Errors
    /// The target, the method or a condition is not one of ours.
    pub fn read(method: &Method, uri: &Uri, headers: &'a HeaderMap, seed: u64) -> Result<Self, Refusal> {
        // The path of an absolute-form target is its path; that of the asterisk form is "*", which is no key.
        let key = target::key(uri.path_and_query().map_or("", |target| target.as_str()), seed)?;
        let operation = operation(method).ok_or_else(|| {
            Refusal::new(Fault::Method, Reason::Method, format!("the methods of an object are {METHODS}"))
        })?;
        let conditions = Conditions::read(headers)?;
        let range = match operation {
            Operation::Get => only_range(headers),
            _ => None,
        };
        Ok(Self { operation, key, conditions, range })
    }
}

/// The operation a method asks for.
#[must_use]
pub fn operation(method: &Method) -> Option<Operation> {
    Some(match method.as_str() {
        "GET" => Operation::Get,
        "HEAD" => Operation::Head,
        "PUT" => Operation::Put,
        "DELETE" => Operation::Delete,
        "PURGE" => Operation::Purge,
        _ => return None,
    })
}

fn only_range(headers: &HeaderMap) -> Option<Spec> {
    let mut values = headers.get_all(RANGE).iter();
    let only = values.next()?;
    values.next().is_none().then(|| range::parse(only.as_bytes())).flatten()
}

/// What the head of a PUT says of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The announced length in bytes, if there is one.
    pub length: Option<u64>,
    /// Wall time of expiry, milliseconds since the Unix epoch.
    pub expires_ms: Option<u64>,
    /// The headers to keep, encoded by [`stored`].
    pub headers: Bytes,
}

impl Written {
    /// Reads the head of a PUT at `now_ms` into a namespace of `policy`. `body_bytes_max` is the node's limit; the
    /// namespace may be stricter.
    ///
    /// # Errors
    /// What the namespace or the node would refuse, so that it is refused before the body is sent.
    pub fn read(headers: &HeaderMap, policy: &Effective, body_bytes_max: u64, now_ms: u64) -> Result<Self, Refusal> {
        if headers.contains_key(CONTENT_RANGE) {
            // RFC 9110 section 14.5: storing a part as the whole would be damage.
            return Err(Refusal::malformed("a PUT writes the whole object; Content-Range is not supported"));
        }
        let length = announced(headers);
        let max = length_max(policy, body_bytes_max);
        if length.is_some_and(|length| length > max) {
            return Err(body_max(max));
        }
        let expires_ms = freshness::expiry(headers, policy, now_ms)?;
        Ok(Self { length, expires_ms, headers: stored::encode(headers)? })
    }
}

/// The length a request announces for its body. Framing is the server library's; this only reads it again.
#[must_use]
pub fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|digits| digits.parse().ok())
}

/// The largest body a namespace of `policy` takes on a node whose limit is `body_bytes_max`.
#[must_use]
pub fn length_max(policy: &Effective, body_bytes_max: u64) -> u64 {
    policy.body_bytes_max.map_or(body_bytes_max, |max| max.min(body_bytes_max))
}

/// The body is, or grew, larger than `max` bytes.
#[must_use]
pub fn body_max(max: u64) -> Refusal {
    Refusal::new(Fault::TooLarge, Reason::BodyMax, format!("bodies of this namespace are at most {max} bytes"))
}
