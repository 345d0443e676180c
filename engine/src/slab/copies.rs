//! Bodies copied out of the arena because they could not be pinned.
//!
//! Owns [`Copies`], the account of their bytes: what is copied is memory beside the arena, so it has a bound of its own,
//! and at it nothing is copied. A copy is charged until its last `Bytes` is dropped, on whatever thread.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

/// Copies alive, in bytes, and their bound.
pub(super) struct Copies {
    alive: Arc<AtomicUsize>,
    bytes_max: u64,
}

impl Copies {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { alive: Arc::default(), bytes_max }
    }

    /// A copy of `body`, or `None` at the bound.
    pub(super) fn copy(&self, body: &[u8]) -> Option<Bytes> {
        // Only the owning thread adds, so what it reads here can only be too much.
        let after = self.alive.load(Ordering::Relaxed) + body.len();
        if after as u64 > self.bytes_max {
            return None;
        }
        self.alive.fetch_add(body.len(), Ordering::Relaxed);
        Some(Bytes::from_owner(Copy { bytes: body.into(), alive: self.alive.clone() }))
    }
}

struct Copy {
    bytes: Box<[u8]>,
    alive: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Copy {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}
