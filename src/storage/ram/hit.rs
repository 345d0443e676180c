//! A hit in L0, and what it costs.
//!
//! Owns [`RamHit`] and [`HeadersBuffer`]. A body of up to [`COPY_BYTES_MAX`] is not touched by the look-up: the hit
//! keeps its [`Place`], and [`HitHandler::try_copy`] copies it from the arena into the reader's buffer, which neither
//! allocates nor touches an atomic. Larger bodies are pinned by the look-up, so that they can be sent from where they
//! are: one allocation, and one atomic operation when the pin ends.
//!
//! INV-2: a small body that leaves L0 before it is read is [`CacheError::Gone`]. One that may have moved is looked for by
//! hash and version, and held against the checksum it was found with: it is the version found, or an error. Doors read
//! in the step that found the object, so their clients do not meet this.
//!
//! [`HitHandler::read_body`] gives `Bytes` and so allocates a copy of a small body; who can, copies.

use std::{cell::RefCell, ops::Range, rc::Rc};

use bytes::{BufMut, Bytes, BytesMut};
use engine::slab::{self, Place, Slab};

use crate::{
    cache::{COPY_BYTES_MAX, CacheError, HitHandler, Tier},
    reason::Reason,
};

/// Headers of hits are cut from buffers of so many bytes; longer ones have an allocation of their own. One buffer may be
/// kept alive by a few bytes of it, so this is what a hit held for long costs at most.
const HEADERS_BUFFER_BYTES: usize = 4 << 10;

/// Where the headers of hits are copied to: one buffer a shard, from which each hit is given a piece.
///
/// When it is used up it begins again from its start, without allocation, unless a piece of it is still held. Pieces
/// are `Bytes`, whose count of references is atomic; it is this thread's alone as long as they are.
#[derive(Default)]
pub(super) struct HeadersBuffer(RefCell<BytesMut>);

impl HeadersBuffer {
    /// A copy of `headers`; nothing is done for none.
    pub(super) fn copy(&self, headers: &[u8]) -> Bytes {
        if headers.is_empty() {
            return Bytes::new();
        }
        if headers.len() > HEADERS_BUFFER_BYTES {
            return Bytes::copy_from_slice(headers);
        }
        let mut buffer = self.0.borrow_mut();
        if buffer.capacity() < headers.len() {
            // All of it, so that one that nobody holds a piece of is taken back whole.
            buffer.reserve(HEADERS_BUFFER_BYTES);
        }
        buffer.put_slice(headers);
        buffer.split().freeze()
    }
}

/// A hit in RAM. Outlives the entry; whether its bytes do, see the module.
pub struct RamHit {
    body: Body,
    /// What reads still give.
    rest: Range<usize>,
    /// Nothing was read or sought yet.
    fresh: bool,
}

enum Body {
    /// In the arena, where it is looked for when it is read.
    Placed { slab: Rc<RefCell<Slab>>, place: Place, checksum: u32 },
    /// Pinned, or a copy in the place of a pin.
    Held(Bytes),
    /// It is there and cannot be given: readers hold as many bytes as they may.
    Withheld,
}

impl RamHit {
    /// A hit of the entry `hit` in `slab`, whose body has `checksum`.
    pub(super) fn new(slab: &Rc<RefCell<Slab>>, hit: slab::Hit<'_>, checksum: u32) -> Self {
        let bytes = usize::try_from(hit.body_bytes()).unwrap_or(usize::MAX);
        let body = if bytes <= COPY_BYTES_MAX {
            Body::Placed { slab: Rc::clone(slab), place: hit.place(), checksum }
        } else {
            hit.pin().map_or(Body::Withheld, Body::Held)
        };
        Self { body, rest: 0..bytes, fresh: true }
    }

    /// Whether its bytes cannot be given.
    pub(super) fn is_withheld(&self) -> bool {
        matches!(self.body, Body::Withheld)
    }

    /// Shows what reads still give to `take`.
    fn show<T>(&self, take: impl FnOnce(&[u8]) -> T) -> Result<T, CacheError> {
        match &self.body {
            Body::Placed { slab, place, checksum } => {
                let slab = slab.borrow();
                let sought = || slab.body_sought(place).filter(|body| crc32fast::hash(body) == *checksum);
                let body = slab.body_in_place(place).or_else(sought).ok_or(CacheError::Gone)?;
                Ok(take(&body[self.rest.clone()]))
            }
            Body::Held(body) => Ok(take(&body[self.rest.clone()])),
            Body::Withheld => Err(withheld()),
        }
    }

    fn take_rest(&mut self) -> Range<usize> {
        let end = self.rest.end;
        std::mem::replace(&mut self.rest, end..end)
    }
}

fn withheld() -> CacheError {
    CacheError::Unavailable { reason: Reason::PinnedMax, cause: None }
}

impl HitHandler for RamHit {
    fn remaining(&self) -> u64 {
        self.rest.len() as u64
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        if self.is_withheld() {
            return Err(withheld());
        }
        let within = |at: u64| usize::try_from(at).ok().filter(|at| *at <= self.rest.end);
        let (Some(start), Some(end), true) = (within(range.start), within(range.end), self.fresh) else {
            return Err(CacheError::Refused(Reason::Internal));
        };
        if start > end {
            return Err(CacheError::Refused(Reason::Internal));
        }
        self.rest = start..end;
        self.fresh = false;
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        self.fresh = false;
        if self.rest.is_empty() {
            return Ok(None);
        }
        let chunk = match &self.body {
            Body::Held(body) => body.slice(self.rest.clone()),
            Body::Placed { .. } | Body::Withheld => self.show(Bytes::copy_from_slice)?,
        };
        self.take_rest();
        Ok(Some(chunk))
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        if self.rest.len() > COPY_BYTES_MAX {
            return None;
        }
        // Nothing is left to copy, or it cannot be had; the latter is for `read_body` to say.
        if !self.rest.is_empty() {
            self.show(|rest| out.extend_from_slice(rest)).ok()?;
        }
        self.fresh = false;
        Some(self.take_rest().len())
    }

    fn tier(&self) -> Tier {
        Tier::L0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_share_a_buffer_that_is_used_again() {
        let buffer = HeadersBuffer::default();
        assert_eq!(buffer.copy(b"").as_ptr(), Bytes::new().as_ptr());
        let first = buffer.copy(&[1; 100]);
        let start = first.as_ptr();
        drop(first);
        let mut rounds = 0;
        while buffer.copy(&[2; 100]).as_ptr() != start {
            rounds += 1;
            assert!(rounds <= HEADERS_BUFFER_BYTES / 100, "it never came back to its start");
        }
        let held = buffer.copy(&[3; 100]);
        for _ in 0..2 * HEADERS_BUFFER_BYTES / 100 {
            assert_eq!(buffer.copy(&[4; 100]), [4; 100][..]);
        }
        assert_eq!(held, [3; 100][..], "what is held is not written over");
        let long = vec![5; HEADERS_BUFFER_BYTES + 1];
        assert_eq!(buffer.copy(&long), long);
        assert!(buffer.0.borrow().capacity() <= HEADERS_BUFFER_BYTES);
    }
}
