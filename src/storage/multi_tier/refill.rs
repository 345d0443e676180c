//! What was too fast for flash, brought there afterwards.
//!
//! A write that outruns L2 goes on without it, and so does a read whose promotion lags: nobody waits for flash.
//! Without more, an object that is too large for the lanes would never reach flash over a fast link, however often it
//! is read. So the key is noted here, and one worker a shard copies the object from L3 to L2 at the pace of flash,
//! chunk by chunk. Durable namespaces only: there is nothing to copy from in others.
//!
//! A refill is a fill like any other: registered before L3 is asked, poisoned by any change of the key that comes
//! meanwhile (INV-2), its body held against its checksum (INV-1), under the rules of the namespace as they are when it
//! starts. It is best effort (INV-5): it is counted as a promotion into L2, or as one that was dropped. Nothing is
//! tried twice; the next read that lags notes the key again.
//!
//! Bounds: [`QUEUE_MAX`] keys wait; one more is dropped. One object at a time, of which [`Settings::refill_bytes`] are in
//! memory; they are taken from the room of the lanes, and a refill that gets none for [`ROOM_TRIES_MAX`] times
//! [`ROOM_WAIT`] is dropped. When the shard stops, the worker ends after the chunk it is at.
//!
//! Clients come first (INV-8): as long as anything of theirs waits in a lane, the worker pauses before each chunk, though
//! not for ever, so that a busy shard gets its large objects to flash as well.
//!
//! [`Settings::refill_bytes`]: super::Settings::refill_bytes

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use engine::rt::Rt;

use super::{
    Node, Tiers,
    keys::Fill,
    lane::Reserved,
    promote::{Whole, why},
};
use crate::{
    cache::{CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, Storage, Tier, Version},
    policy::{L2Fill, Mode, Promotion},
    reason::Reason,
};

/// Keys that may wait for their refill; beyond, they are dropped as [`Reason::QueueFull`].
pub(super) const QUEUE_MAX: usize = 16;

/// How long a refill waits before it asks for room again.
pub(super) const ROOM_WAIT: Duration = Duration::from_millis(100);

/// How often a refill asks for room; then it is dropped as [`Reason::Overload`].
pub(super) const ROOM_TRIES_MAX: u32 = 600;

/// How long a refill pauses at a time while lanes hold what clients write or read.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// Pauses before one chunk; then it goes on beside the lanes.
pub(super) const PAUSES_MAX: u32 = 10;

/// What was too fast for L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// A promotion, which the policy may switch off.
    Read,
    /// A write.
    Write,
}

/// Objects to be copied from L3 to L2.
#[derive(Default)]
pub(super) struct Refills {
    queue: RefCell<VecDeque<Refill>>,
    running: Cell<bool>,
}

struct Refill {
    key: CacheKey,
    version: Version,
    cause: Cause,
}

impl<T: Tiers> Node<T> {
    /// Notes that L2 is to be given `version` of `key` from L3. Never blocks.
    pub(super) fn refill_later(self: &Rc<Self>, key: &CacheKey, version: Version, cause: Cause) {
        match self.queue_refill(key, version, cause) {
            Ok(()) if !self.refills.running.replace(true) => {
                let node = self.clone();
                self.rt.spawn(async move { node.refill_all().await });
            }
            Ok(()) => {}
            Err(reason) => {
                let space = self.namespaces.for_read(key.namespace());
                self.count_promotion(&space, Tier::L2, Err(reason));
            }
        }
    }

    fn queue_refill(&self, key: &CacheKey, version: Version, cause: Cause) -> Result<(), Reason> {
        if self.keys.is_stopping() {
            return Err(Reason::Stopping);
        }
        let mut queue = self.refills.queue.borrow_mut();
        if let Some(waiting) = queue.iter_mut().find(|waiting| waiting.key == *key) {
            waiting.version = waiting.version.max(version);
            waiting.cause = waiting.cause.max(cause);
            return Ok(());
        }
        if queue.len() >= QUEUE_MAX {
            return Err(Reason::QueueFull);
        }
        queue.push_back(Refill { key: key.clone(), version, cause });
        Ok(())
    }

    async fn refill_all(&self) {
        loop {
            let next = self.refills.queue.borrow_mut().pop_front();
            let Some(refill) = next else { break };
            let space = self.namespaces.for_read(refill.key.namespace());
            let outcome = self.refill(refill).await;
            self.count_promotion(&space, Tier::L2, outcome);
        }
        self.refills.running.set(false);
    }

    async fn refill(&self, refill: Refill) -> Result<(), Reason> {
        let Refill { key, version, cause } = refill;
        let (Some(l2), Some(l3)) = (&self.l2, &self.l3) else { return Err(Reason::TierOff) };
        let room = self.room_for_refill().await?;
        // Before L3 is asked: see `lookup`.
        let ticket = self.keys.ticket(&key);
        let fill = ticket.refused().map_or_else(|| ticket.fill(Tier::L2).ok_or(Reason::FillRunning), Err)?;
        let (meta, mut hit) = match l3.find(&key).await.map_err(|failed| self.failed(Tier::L3, &failed))? {
            Found::Hit(meta, hit) => (meta, hit),
            Found::Miss(reason) => return Err(reason),
        };
        if meta.version != version {
            return Err(Reason::Superseded);
        }
        let mut whole = Whole::new(&meta, hit.remaining());
        self.wants_refill(&key, &meta, hit.remaining(), cause)?;
        let older = Precondition::OlderThan(version);
        let mut miss = l2.get_miss_handler(&key, meta, older).await.map_err(|failed| why(&failed))?;
        loop {
            self.give_way(&room).await;
            self.goes_on(&fill)?;
            let chunk = hit.read_body().await.map_err(|failed| self.failed(Tier::L3, &failed))?.unwrap_or_default();
            let last = whole.pass(&chunk).map_err(|_| Reason::BodyMismatch)?;
            miss.write_body(chunk, last).await.map_err(|failed| why(&failed))?;
            if last {
                return self.commit_fill::<T::L2>(fill, miss).await;
            }
        }
    }

    /// Waits until the lanes have room for a refill.
    async fn room_for_refill(&self) -> Result<Reserved, Reason> {
        for _ in 0..ROOM_TRIES_MAX {
            if self.keys.is_stopping() {
                return Err(Reason::Stopping);
            }
            if let Some(room) = self.room.reserve(self.settings.refill_bytes) {
                return Ok(room);
            }
            self.rt.sleep(ROOM_WAIT).await;
        }
        Err(Reason::Overload)
    }

    /// Pauses while anything but the refill itself is on its way through the lanes.
    async fn give_way(&self, refill: &Reserved) {
        for _ in 0..PAUSES_MAX {
            if self.room.used() <= refill.bytes() {
                return;
            }
            self.rt.sleep(PAUSE).await;
        }
    }

    /// Whether the rules, as they are now, want the object on flash.
    fn wants_refill(&self, key: &CacheKey, meta: &CacheMeta, length: u64, cause: Cause) -> Result<(), Reason> {
        self.namespaces.for_read(key.namespace()).with(|rules| {
            if rules.mode != Mode::Durable {
                return Err(Reason::TierOff);
            }
            self.admits(rules, Tier::L2, length)?;
            if cause == Cause::Read && rules.promote[Tier::L2 as usize] == Promotion::Never {
                return Err(Reason::Never);
            }
            // Flash that is filled from what leaves L0 gets it from there.
            if rules.l2_fill(length) == L2Fill::OnEvict {
                return Err(Reason::OnEvict);
            }
            Ok(())
        })?;
        if self.is_fenced(Tier::L2, meta.version) {
            return Err(Reason::Superseded);
        }
        Ok(())
    }

    /// Whether there is still a point in the rest of the body.
    fn goes_on(&self, fill: &Fill) -> Result<(), Reason> {
        if self.keys.is_stopping() {
            return Err(Reason::Stopping);
        }
        if fill.is_poisoned() && !self.sabotage.commit_promotion_after_purge {
            return Err(Reason::Poisoned);
        }
        Ok(())
    }
}
