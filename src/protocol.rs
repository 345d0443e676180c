//! What a request asks and what became of it, in words that every door shares.
//!
//! Owns [`Operation`] and [`Refusal`]; the wire forms are below: [`http`]. Everything here is sans-I/O: bytes and
//! header maps in, values out, no clock and no socket, so that each rule is tested as a table.
//! Left to others: carrying an operation out (`server::service`), and moving bytes (`server::connection`).

pub mod http;

use std::borrow::Cow;

use crate::{cache::CacheError, reason::Reason};

/// What a client wants done with one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Read the object.
    Get,
    /// Read what is known of the object, without its body.
    Head,
    /// Write the object.
    Put,
    /// Remove the object, which must exist.
    Delete,
    /// Remove every copy of the object, there or not, and say where they were.
    Purge,
}

impl Operation {
    /// Every operation; `ALL[operation as usize] == operation`.
    pub const ALL: [Operation; 5] =
        [Operation::Get, Operation::Head, Operation::Put, Operation::Delete, Operation::Purge];

    /// Stable name: the metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Head => "head",
            Operation::Put => "put",
            Operation::Delete => "delete",
            Operation::Purge => "purge",
        }
    }

    /// Whether it only reads.
    #[must_use]
    pub const fn is_read(self) -> bool {
        matches!(self, Operation::Get | Operation::Head)
    }
}

/// Whose fault a refusal is, and what the client can do about it: one HTTP status each, one memcached error line
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request makes no sense.
    Malformed,
    /// The request needs something of the protocol that this node does not do.
    NotImplemented,
    /// The client expects what this node does not do.
    Expectation,
    /// The body must be announced.
    LengthRequired,
    /// The method is not one of the door's.
    Method,
    /// The key is too long.
    KeyTooLong,
    /// The headers to be stored are too many.
    HeadersTooLarge,
    /// There is no such object.
    NotFound,
    /// The condition of the request does not hold.
    Precondition,
    /// The range lies outside the object.
    Range,
    /// The body is larger than may be stored.
    TooLarge,
    /// Understood, and against the rules of the namespace.
    Unprocessable,
    /// There is no room for the object.
    NoRoom,
    /// Not now; the client may try again.
    Unavailable,
    /// A bug of ours.
    Internal,
}

/// A request that was not carried out, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    /// Whose fault, and the way out.
    pub fault: Fault,
    /// The stable name, for counters.
    pub reason: Reason,
    /// What was wrong and what would be right, for people.
    pub detail: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with its words.
    pub fn new(fault: Fault, reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { fault, reason, detail: detail.into() }
    }

    /// The request makes no sense, in the words of `detail`.
    pub fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Fault::Malformed, Reason::BadRequest, detail)
    }

    /// The condition of the request does not hold.
    #[must_use]
    pub fn precondition() -> Self {
        Self::new(Fault::Precondition, Reason::Precondition, "the condition of the request does not hold")
    }

    /// Whether trying again later, unchanged, may succeed.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.fault == Fault::Unavailable
    }
}

/// The one place where a storage error becomes an answer.
impl From<CacheError> for Refusal {
    fn from(error: CacheError) -> Self {
        let reason = error.reason();
        let fault = match &error {
            CacheError::Precondition { .. } => Fault::Precondition,
            CacheError::Refused(reason) => refused(*reason),
            CacheError::Unavailable { reason: Reason::Internal, .. } => Fault::Internal,
            // Damaged or vanished bytes are not the object, and neither are they its absence: the client may ask
            // again, and meanwhile the tier has dropped them.
            CacheError::Unavailable { .. }
            | CacheError::OutcomeUnknown { .. }
            | CacheError::Corrupted { .. }
            | CacheError::Gone => Fault::Unavailable,
        };
        Self::new(fault, reason, error.to_string())
    }
}

/// What a refusal by policy or capacity is, by its reason.
#[must_use]
pub fn refused(reason: Reason) -> Fault {
    match reason {
        Reason::BodyMax | Reason::TooLarge | Reason::Gate => Fault::TooLarge,
        Reason::DiskFull | Reason::QuotaFull | Reason::NoRoom | Reason::NamespaceMax => Fault::NoRoom,
        Reason::BodyCut | Reason::BodyMismatch | Reason::BadKey | Reason::BadRequest => Fault::Malformed,
        Reason::HeadersMax => Fault::HeadersTooLarge,
        Reason::Precondition => Fault::Precondition,
        Reason::Overload | Reason::Stopping | Reason::Unavailable | Reason::Timeout => Fault::Unavailable,
        Reason::Internal => Fault::Internal,
        _ => Fault::Unprocessable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Version;

    #[test]
    fn operations_are_their_own_index() {
        for (i, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, i, "{}", operation.name());
        }
    }

    #[test]
    fn storage_errors_keep_their_reason_and_find_their_fault() {
        let unavailable = |reason| CacheError::Unavailable { reason, cause: None };
        for (error, fault) in [
            (CacheError::Precondition { current: Some(Version(7)) }, Fault::Precondition),
            (CacheError::Refused(Reason::BodyMax), Fault::TooLarge),
            (CacheError::Refused(Reason::TooLarge), Fault::TooLarge),
            (CacheError::Refused(Reason::NoStore), Fault::Unprocessable),
            (CacheError::Refused(Reason::NamespaceUndeclared), Fault::Unprocessable),
            (CacheError::Refused(Reason::DiskFull), Fault::NoRoom),
            (CacheError::Refused(Reason::QuotaFull), Fault::NoRoom),
            (CacheError::Refused(Reason::BodyCut), Fault::Malformed),
            (unavailable(Reason::TierPoisoned), Fault::Unavailable),
            (unavailable(Reason::Internal), Fault::Internal),
            (CacheError::OutcomeUnknown { base: None, cause: None }, Fault::Unavailable),
            (CacheError::Corrupted { what: "page 3".into() }, Fault::Unavailable),
            (CacheError::Gone, Fault::Unavailable),
        ] {
            let reason = error.reason();
            let refusal = Refusal::from(error);
            assert_eq!((refusal.fault, refusal.reason), (fault, reason), "{refusal}");
        }
    }
}
