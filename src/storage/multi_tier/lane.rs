//! The way from a writer or reader to a tier that must not slow it: one body's chunks, bounded in bytes.
//!
//! Owns [`lane`], a queue between two tasks of one shard, and [`Room`], the bytes all lanes of a shard may hold
//! together. The writing end never waits: a chunk that does not fit is refused, and the caller gives that tier up.
//! Dropping the writing end without [`Sender::end`] cuts the body with a reason; dropping the reading end is seen at
//! the next push.
//!
//! Not `engine::mailbox::pipe`: that one crosses threads and waits; this one does neither and allocates little.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use bytes::Bytes;

use crate::{
    cache::{CacheError, CacheKey, CacheMeta, MissHandler, Precondition, Storage},
    reason::Reason,
};

/// What a chunk counts for besides its bytes, so that tiny chunks are bounded too.
const CHUNK_OVERHEAD_BYTES: usize = 128;

/// Turns of the scheduler that a full lane is given before its tier is given up: its worker may not have run since
/// the chunks came, all at once. Not a wait for the tier.
pub(super) const YIELDS_MAX: usize = 16;

/// Bytes that all lanes of a shard hold together.
pub(super) struct Room {
    used: Cell<usize>,
    bytes_max: usize,
}

impl Room {
    pub(super) fn new(bytes_max: usize) -> Rc<Self> {
        Rc::new(Self { used: Cell::new(0), bytes_max })
    }

    /// Bytes held now.
    pub(super) fn used(&self) -> usize {
        self.used.get()
    }

    /// Takes `bytes` for who moves a body without a lane; `None` when there is no room. All there is, if it is less,
    /// will do.
    pub(super) fn reserve(self: &Rc<Self>, bytes: usize) -> Option<Reserved> {
        let bytes = bytes.min(self.bytes_max);
        if self.used.get() + bytes > self.bytes_max {
            return None;
        }
        self.used.set(self.used.get() + bytes);
        Some(Reserved { room: self.clone(), bytes })
    }
}

/// Bytes of a [`Room`]; dropping it gives them back.
pub(super) struct Reserved {
    room: Rc<Room>,
    bytes: usize,
}

impl Reserved {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.room.used.set(self.room.used.get() - self.bytes);
    }
}

struct Lane {
    chunks: VecDeque<Bytes>,
    cost: usize,
    /// How the body ended, once it has.
    end: Option<Result<(), Reason>>,
    receiver_gone: bool,
    waker: Option<Waker>,
}

struct Shared {
    lane: RefCell<Lane>,
    bytes_max: usize,
    room: Rc<Room>,
}

impl Shared {
    fn end(&self, how: Result<(), Reason>) {
        let waker = {
            let mut lane = self.lane.borrow_mut();
            lane.end.get_or_insert(how);
            lane.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Makes a lane that holds `bytes_max` bytes (or one larger chunk), within what `room` has left.
pub(super) fn lane(bytes_max: usize, room: &Rc<Room>) -> (Sender, Receiver) {
    let lane = Lane { chunks: VecDeque::new(), cost: 0, end: None, receiver_gone: false, waker: None };
    let shared = Rc::new(Shared { lane: RefCell::new(lane), bytes_max, room: room.clone() });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

/// Why a chunk was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The lane or the room is full: the chunk may fit later.
    Full,
    /// Nobody reads any more.
    Closed,
}

/// The writing end.
pub(super) struct Sender {
    shared: Rc<Shared>,
}

impl Sender {
    /// Queues a chunk (a reference to it).
    pub(super) fn push(&self, chunk: &Bytes) -> Result<(), Refused> {
        let room = &self.shared.room;
        let cost = chunk.len() + CHUNK_OVERHEAD_BYTES;
        let waker = {
            let mut lane = self.shared.lane.borrow_mut();
            if lane.receiver_gone {
                return Err(Refused::Closed);
            }
            let fits = lane.cost == 0 || lane.cost + cost <= self.shared.bytes_max;
            if !fits || room.used.get() + cost > room.bytes_max {
                return Err(Refused::Full);
            }
            lane.cost += cost;
            room.used.set(room.used.get() + cost);
            lane.chunks.push_back(chunk.clone());
            lane.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// The body is whole.
    pub(super) fn end(self) {
        self.shared.end(Ok(()));
    }

    /// The body is not for this tier.
    pub(super) fn cut(self, reason: Reason) {
        self.shared.end(Err(reason));
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.end(Err(Reason::Partial));
    }
}

/// The reading end.
pub(super) struct Receiver {
    shared: Rc<Shared>,
}

impl Receiver {
    /// The next chunk; `None` at the end of a whole body. A cut overtakes what is queued: it is wanted no more.
    ///
    /// # Errors
    /// Why the body was cut.
    async fn next(&mut self) -> Result<Option<Bytes>, Reason> {
        poll_fn(|cx| {
            let mut lane = self.shared.lane.borrow_mut();
            if let Some(Err(reason)) = lane.end {
                return Poll::Ready(Err(reason));
            }
            if let Some(chunk) = lane.chunks.pop_front() {
                let cost = chunk.len() + CHUNK_OVERHEAD_BYTES;
                lane.cost -= cost;
                self.shared.room.used.set(self.shared.room.used.get() - cost);
                return Poll::Ready(Ok(Some(chunk)));
            }
            if lane.end.is_some() {
                return Poll::Ready(Ok(None));
            }
            lane.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Opens a write in `tier` and feeds it the whole body: what a lane's worker does. Nothing is committed.
    ///
    /// # Errors
    /// Why the tier does not get the body.
    pub(super) async fn stage<S: Storage>(
        mut self,
        tier: &S,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<S::Miss, Reason> {
        let reason = |failed: CacheError| match failed {
            // "Older than what is filled" fails: the tier has it, or something newer.
            CacheError::Precondition { .. } => Reason::Superseded,
            failed => failed.reason(),
        };
        let mut miss = tier.get_miss_handler(key, meta, precondition).await.map_err(reason)?;
        while let Some(chunk) = self.next().await? {
            miss.write_body(chunk, false).await.map_err(reason)?;
        }
        miss.write_body(Bytes::new(), true).await.map_err(reason)?;
        Ok(miss)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut lane = self.shared.lane.borrow_mut();
        lane.receiver_gone = true;
        self.shared.room.used.set(self.shared.room.used.get() - lane.cost);
        lane.cost = 0;
        lane.chunks.clear();
    }
}
