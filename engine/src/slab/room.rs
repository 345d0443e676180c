//! Room for a new extent: by what is free, by eviction, by moving what lies in the way.
//!
//! Owns the order of these. Eviction follows S3-FIFO whatever the sizes and places; it leaves free space in pieces.
//! When the sum would do and no piece does, a *window* is cleared: a large free extent is widened by moving what
//! lies behind it. So one large object among small ones costs the eviction of about its own size and a bounded copy,
//! not a slab emptied by chance; and no mix of sizes is ever cast in stone.
//!
//! - INV-ROOM-1: an extent in use is the head of an indexed entry, or is in [`Slab::large`] with its owner. (Between
//!   the return of an extent from here and its entry, the caller makes no other room.)
//! - INV-ROOM-2: pinned extents are neither moved nor freed.
//!
//! Positions are only valid until the next call of [`Slab::room`]: it may move or evict any entry or stage.

use super::{
    Evicted, OnEvict, Reason, Slab,
    arena::{At, UNIT_BYTES},
    extent::Align,
    layout::{Body, Head},
};

/// Eviction goes on until the request and this share of the arena (one part in so many) are free in pieces, before
/// anything is moved: the less is free, the more must move.
const SLACK_SHARE: u32 = 64;
/// Windows tried for a request before more is evicted.
const WINDOWS_MAX: usize = 4;
/// Units moved for one window: this many times the request ...
const MOVED_FACTOR: u32 = 2;
/// ... and this much more (4 KiB).
const MOVED_UNITS_MIN: u32 = 4096 / UNIT_BYTES as u32;
/// Times that more is evicted after all windows failed. At the end the request is refused.
const ROUNDS_MAX: u32 = 8;

/// Free space on its way to become one piece; in no free list.
struct Window {
    at: At,
    units: u32,
}

impl Window {
    fn end(&self) -> At {
        self.at.plus(self.units)
    }
}

/// Who an extent belongs to that is not the head of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The body of the entry whose head is there.
    Entry(At),
    /// What a stage has written so far.
    Stage(u32),
    /// A body that left the slab and is still pinned.
    Limbo,
}

/// Such an extent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large {
    pub(super) units: u32,
    pub(super) owner: Owner,
}

impl Slab {
    /// An extent of `units`, at the cost of other entries if need be. `None` when it cannot be had within the
    /// bounds above.
    pub(super) fn room(&mut self, units: u32, align: Align, on_evict: OnEvict<'_>) -> Option<At> {
        self.settle();
        if let Some(at) = self.extents.alloc(units, align) {
            return Some(at);
        }
        let want = units + align.units() - 1;
        if want > self.evictable_units() {
            return None;
        }
        let slack = self.extents.arena().units() / SLACK_SHARE;
        let mut goal = want.saturating_add(slack);
        for _ in 0..ROUNDS_MAX {
            while self.extents.free_units() < goal {
                if !self.evict_one(on_evict) {
                    break;
                }
                if let Some(at) = self.extents.alloc(units, align) {
                    return Some(at);
                }
            }
            if let Some(at) = self.clear_window(units, align) {
                return Some(at);
            }
            goal = goal.saturating_add(want.max(slack));
        }
        None
    }

    /// Units that are free or that eviction could free.
    fn evictable_units(&self) -> u32 {
        let pinned = u32::try_from(self.extents.arena().pinned_bytes() / UNIT_BYTES).expect("less than the arena");
        self.extents.arena().units().saturating_sub(self.staged_units).saturating_sub(pinned)
    }

    /// Evicts the next victim of S3-FIFO; `false` when there is none.
    pub(super) fn evict_one(&mut self, on_evict: OnEvict<'_>) -> bool {
        let arena = self.extents.arena_mut();
        let held_max = arena.pinned_ranges();
        let victim = self.queues.victim(arena, held_max, |arena, head| match head.body {
            Body::Own { at, .. } => arena.is_pinned(at),
            Body::Inline(_) => false,
        });
        let Some(at) = victim else { return false };
        self.evict(at, on_evict);
        true
    }

    fn evict(&mut self, at: At, on_evict: OnEvict<'_>) {
        self.queues.remember(&Head::load(self.extents.arena(), at));
        self.counts.evictions += 1;
        self.show(at, Reason::Evicted, on_evict);
        self.discard(at);
    }

    /// Shows an entry that is about to leave to the tier above.
    pub(super) fn show(&self, at: At, reason: Reason, on_evict: OnEvict<'_>) {
        let arena = self.extents.arena();
        let head = Head::load(arena, at);
        on_evict(Evicted {
            key: head.key(arena, at),
            hash: head.hash,
            version: head.version,
            meta: head.meta(arena, at),
            body: head.body(arena, at),
            expires_ms: head.expires_ms,
            flags: head.flags,
            hits: head.hits,
            reason,
        });
    }

    /// Takes an entry out of index and queue, and frees it.
    pub(super) fn discard(&mut self, at: At) {
        let head = Head::load(self.extents.arena(), at);
        self.index.remove(head.hash, at);
        self.queues.remove(self.extents.arena_mut(), &head);
        self.release(at, &head);
    }

    /// Frees the extents of an entry that is in neither index nor queue any more; a pinned body goes to limbo.
    pub(super) fn release(&mut self, at: At, head: &Head) {
        self.changed();
        self.extents.free(at, head.units());
        if let Body::Own { at, .. } = head.body {
            let pinned = self.extents.arena().is_pinned(at);
            let large = self.large.get_mut(&at).expect("a body extent is known (INV-ROOM-1)");
            if pinned {
                large.owner = Owner::Limbo;
                self.limbo_units += large.units;
            } else {
                let units = large.units;
                self.large.remove(&at);
                self.extents.free(at, units);
            }
        }
    }

    /// Takes back what other hands let go of: dropped stages, and bodies in limbo whose last pin was dropped. Called
    /// before room is made, by sweeps and by statistics; costs one load when there is nothing.
    pub(super) fn settle(&mut self) {
        let mut over = std::mem::take(&mut self.over);
        self.extents.arena_mut().unpin(|at| over.push(at));
        for at in over.drain(..) {
            if let Some(&Large { units, owner: Owner::Limbo }) = self.large.get(&at) {
                self.large.remove(&at);
                self.limbo_units -= units;
                self.extents.free(at, units);
            }
        }
        self.over = over;
        self.settle_stages();
    }

    /// Brings pieces of free space together until `units` are free in one piece.
    fn clear_window(&mut self, units: u32, align: Align) -> Option<At> {
        // A failed attempt changes the lists, so each looks anew.
        (0..WINDOWS_MAX).find_map(|skip| {
            let anchor = self.extents.largest(skip)?;
            self.clear_from(anchor, units, align)
        })
    }

    /// The window starts as the free extent at `anchor`. What follows it is copied to another free extent, or else
    /// down to the window's start, so that the window moves up and swallows each free extent it meets.
    fn clear_from(&mut self, anchor: At, units: u32, align: Align) -> Option<At> {
        // In no free list, so that nothing moves from one part of the window into another.
        let mut window = Window { at: anchor, units: self.extents.take_free(anchor) };
        let mut may_move = units.saturating_mul(MOVED_FACTOR).saturating_add(MOVED_UNITS_MIN);
        loop {
            let start = At(window.at.0.next_multiple_of(align.units()));
            if start.holds(units, window.end()) {
                self.extents.give_back(window.at, start.0 - window.at.0);
                let after = window.end().0 - start.0 - units;
                if after > 0 {
                    // What follows may be free, too.
                    self.extents.free(start.plus(units), after);
                }
                return Some(start);
            }
            let next = window.end();
            if self.extents.is_free(next) {
                window.units += self.extents.take_free(next);
            } else if next.0 >= self.extents.arena().units() || !self.clear(&mut window, &mut may_move) {
                self.extents.free(window.at, window.units);
                return None;
            }
        }
    }

    /// Moves the extent behind the window out of its way.
    fn clear(&mut self, window: &mut Window, may_move: &mut u32) -> bool {
        let at = window.end();
        let large = self.large.get(&at).copied();
        let units = large.map_or_else(|| Head::load(self.extents.arena(), at).units(), |large| large.units);
        if units > *may_move || self.extents.arena().is_pinned(at) {
            return false;
        }
        let align = if large.is_some() { Align::Line } else { Align::Unit };
        let to = match self.extents.alloc(units, align) {
            Some(to) => {
                window.units += units;
                to
            }
            None => {
                let to = At(window.at.0.next_multiple_of(align.units()));
                if to >= at {
                    return false;
                }
                self.extents.give_back(window.at, to.0 - window.at.0);
                *window = Window { at: to.plus(units), units: at.0 - to.0 };
                to
            }
        };
        *may_move -= units;
        self.counts.moved_bytes += u64::from(units) * UNIT_BYTES as u64;
        self.changed();
        self.extents.arena_mut().copy((at, 0), (to, 0), units as usize * UNIT_BYTES);
        match large {
            None => self.moved_head(at, to),
            Some(large) => self.moved_large(at, to, large),
        }
        true
    }

    fn moved_head(&mut self, at: At, to: At) {
        let head = Head::load(self.extents.arena(), to);
        self.index.replace(head.hash, at, to);
        self.queues.replace(self.extents.arena_mut(), &head, to, head);
        if let Body::Own { at: body, .. } = head.body {
            self.large.get_mut(&body).expect("a body extent is known (INV-ROOM-1)").owner = Owner::Entry(to);
        }
    }

    fn moved_large(&mut self, at: At, to: At, large: Large) {
        self.large.remove(&at);
        self.large.insert(to, large);
        match large.owner {
            Owner::Entry(entry) => {
                let mut head = Head::load(self.extents.arena(), entry);
                if let Body::Own { at, .. } = &mut head.body {
                    *at = to;
                }
                head.store(self.extents.arena_mut(), entry);
            }
            Owner::Stage(stage) => self.stages[stage as usize].at = to,
            Owner::Limbo => unreachable!("bodies in limbo are pinned, and pinned bodies stay (INV-ROOM-2)"),
        }
    }
}
