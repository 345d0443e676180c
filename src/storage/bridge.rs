//! The one way to use a [`Storage`](crate::cache::Storage) that lives on another thread.
//!
//! [`Bridge`] is the client side, a `Storage` like any other; [`serve()`] is the thread that owns the real one. Used
//! alike from a shard to the durable executor, to the network executor, and across the mesh to another shard.
//!
//! How things cross, counted in hops (one message there or back):
//!
//! - A look-up: one each way. A body of at most [`INLINE_BYTES_MAX`] comes with it; a larger one is not touched
//!   before the first read, which sends the chosen range over and gets the body as a stream against a window of
//!   [`WINDOW_BYTES`], or what [`Bridge::with_window`] says.
//! - A write announced with at most [`INLINE_BYTES_MAX`]: nothing until `finish`, then one each way.
//! - Any other write: one each way to begin, so that a refusal comes before the body; chunks against the window;
//!   one each way to finish. An error in mid-body is told at the next `write_body`, at the latest by `finish`.
//!
//! Invariants:
//!
//! - Aborting is leaving: a dropped look-up, hit or write is noticed through its channel and given up on the other
//!   side. `finish`, `purge` and `update_meta` run to their end there once they were sent.
//! - When the other thread is gone, what was certainly not carried out is [`CacheError::Unavailable`]; a `finish`,
//!   `purge` or `update_meta` that may have been is [`CacheError::OutcomeUnknown`].
//! - The serving loop never waits for a send, and no task that waits for its client holds one of the
//!   [`TASKS_MAX`] places: however the threads of a node ask each other, no ring of them can stop.
//!
//! Left to others: timeouts, and how many credits a client gets (the node).

mod client;
mod server;

use bytes::Bytes;
use engine::mailbox::{Answer, PipeReader, PipeWriter, Reply};

pub use self::{
    client::{Bridge, BridgeHit, BridgeMiss},
    server::{serve, serve_until},
};
use crate::{
    cache::{CacheError, CacheKey, CacheMeta, Precondition, PurgeReport, Stored, Tier, Trust},
    reason::Reason,
};

/// Bodies up to this many bytes cross with the message that asks for them or brings them.
pub const INLINE_BYTES_MAX: u64 = 64 << 10;

/// Unread bytes of one body on its way, unless the client says otherwise.
pub const WINDOW_BYTES: usize = 256 << 10;

/// Requests a server works on at once. Beyond it they wait in the mailbox, and clients for their credits.
pub const TASKS_MAX: usize = 256;

/// Bodies a server has open at once for clients that read or write at their own pace. Beyond it a large hit or
/// write is refused with [`Reason::Overload`]; waiting for a place could wait for ever.
pub const STREAMS_MAX: usize = 1_024;

type Result<T> = std::result::Result<T, CacheError>;

/// A request to a [`Storage`](crate::cache::Storage) on another thread. Made by [`Bridge`], read by [`serve()`].
pub struct Ask(Kind);

enum Kind {
    Find { key: CacheKey, reply: Reply<Result<Answered>> },
    Put { key: CacheKey, meta: CacheMeta, precondition: Precondition, body: Vec<Bytes>, reply: Reply<Result<Stored>> },
    Begin { key: CacheKey, meta: CacheMeta, precondition: Precondition, write: Incoming },
    Purge { key: CacheKey, precondition: Precondition, reply: Reply<Result<PurgeReport>> },
    Update { key: CacheKey, meta: CacheMeta, reply: Reply<Result<bool>> },
}

/// What a look-up found over there.
enum Answered {
    Hit { meta: CacheMeta, tier: Tier, trust: Trust, body: Body },
    Miss(Reason),
}

/// The body of a hit.
enum Body {
    Whole(Bytes),
    /// `length` bytes, sent when the client says which.
    Later {
        length: u64,
        start: Reply<Start>,
    },
}

/// A client begins to read: bytes `start..end` into `body`.
struct Start {
    start: u64,
    end: u64,
    body: PipeWriter<CacheError>,
}

/// The server's ends of a streamed write.
struct Incoming {
    begun: Reply<Result<()>>,
    body: PipeReader<CacheError>,
    /// Why the body is not taken any more.
    failed: Reply<CacheError>,
    commit: Answer<Commit>,
}

/// A client commits what it streamed.
struct Commit {
    meta: CacheMeta,
    reply: Reply<Result<Stored>>,
}

/// The other thread is gone, and what was asked did certainly not happen.
fn gone() -> CacheError {
    CacheError::Unavailable { reason: Reason::Unavailable, cause: None }
}

/// The other thread is gone, and what was asked may have happened.
fn in_doubt() -> CacheError {
    CacheError::OutcomeUnknown { base: None, cause: None }
}
