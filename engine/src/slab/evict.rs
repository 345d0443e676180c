//! Which entry leaves next: S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache
//! eviction", SOSP 2023), weighed in bytes.
//!
//! Owns the small and the main queue, whose links are in the entries' heads, and the ghost table. A new entry joins
//! the small queue, or the main queue if it was evicted from the small one lately. The small queue, once over its
//! share, gives up its oldest: into the main queue if it was hit, else out of the slab. The main queue gives up its
//! oldest that was not hit since it last came round.
//!
//! - INV-EVICT-1: every entry is in exactly one queue; a queue's counts are the sums over its entries.
//!
//! Leaves to [`super::room`]: freeing the victim. Departures from the paper: shares are of bytes, with floors; one
//! hit is enough to move up while few objects fit; a pinned entry is passed over, since evicting it frees nothing.

use super::{
    arena::{Arena, At, UNIT_BYTES},
    ghost::Ghost,
    layout::{FREQ_MAX, Head},
};

/// The small queue's share of the arena, one part in so many.
const SMALL_SHARE: u32 = 10;
/// The small queue is not made smaller than this, in bytes, unless that is over a quarter of the arena ...
const SMALL_BYTES_MIN: u32 = 256 << 10;
/// ... nor below so many objects, unless that is over a quarter of all: it must be long enough for a second request
/// to find its object still there.
const SMALL_OBJECTS_MIN: usize = 8;
/// Below so many resident objects, one hit moves an entry up to the main queue; from there on, two. In a short small
/// queue a second hit comes too rarely to tell anything.
const FEW_OBJECTS: usize = 2_048;

/// One FIFO queue, doubly linked through the heads.
pub(super) struct Queue {
    oldest: At,
    newest: At,
    objects: usize,
    units: u64,
}

impl Queue {
    fn new() -> Self {
        Self { oldest: At::NONE, newest: At::NONE, objects: 0, units: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.units * UNIT_BYTES as u64
    }

    /// Appends `head`, which is to be stored at `at`, and stores it.
    fn push(&mut self, arena: &mut Arena, at: At, head: Head) {
        Head { next: At::NONE, prev: self.newest, ..head }.store(arena, at);
        match self.newest {
            At::NONE => self.oldest = at,
            newest => set_next(arena, newest, at),
        }
        self.newest = at;
        self.objects += 1;
        self.units += u64::from(head.units_all());
    }

    fn unlink(&mut self, arena: &mut Arena, head: &Head) {
        self.join(arena, head.prev, head.next);
        self.objects -= 1;
        self.units -= u64::from(head.units_all());
    }

    /// Puts `new` where `old` is; the new head takes the links of the old.
    fn replace(&mut self, arena: &mut Arena, old: &Head, at: At, new: Head) {
        Head { next: old.next, prev: old.prev, ..new }.store(arena, at);
        match old.prev {
            At::NONE => self.oldest = at,
            prev => set_next(arena, prev, at),
        }
        match old.next {
            At::NONE => self.newest = at,
            next => set_prev(arena, next, at),
        }
        self.units += u64::from(new.units_all());
        self.units -= u64::from(old.units_all());
    }

    fn join(&mut self, arena: &mut Arena, prev: At, next: At) {
        match prev {
            At::NONE => self.oldest = next,
            prev => set_next(arena, prev, next),
        }
        match next {
            At::NONE => self.newest = prev,
            next => set_prev(arena, next, prev),
        }
    }
}

fn set_next(arena: &mut Arena, at: At, next: At) {
    arena.bytes_mut(at, 16, 4).copy_from_slice(&next.0.to_le_bytes());
}

fn set_prev(arena: &mut Arena, at: At, prev: At) {
    arena.bytes_mut(at, 20, 4).copy_from_slice(&prev.0.to_le_bytes());
}

/// Both queues and the ghosts.
pub(super) struct S3Fifo {
    small: Queue,
    main: Queue,
    ghost: Ghost,
    small_units: u64,
    ghost_hits: u64,
}

impl S3Fifo {
    /// Queues for an arena of so many units, and ghosts for at most `objects_max`.
    pub(super) fn new(arena_units: u32, objects_max: usize) -> Self {
        let floor = (SMALL_BYTES_MIN / UNIT_BYTES as u32).min(arena_units / 4);
        let small_units = u64::from((arena_units / SMALL_SHARE).max(floor));
        Self { small: Queue::new(), main: Queue::new(), ghost: Ghost::new(objects_max), small_units, ghost_hits: 0 }
    }

    /// Admits a new entry and stores its head.
    pub(super) fn admit(&mut self, arena: &mut Arena, at: At, head: Head) {
        let main = self.ghost.remove(head.hash, self.ghosts_max());
        self.ghost_hits += u64::from(main);
        let head = Head { freq: 0, main, ..head };
        self.queue(main).push(arena, at, head);
    }

    /// Puts a new version, or a moved copy, in the old one's place and stores its head.
    pub(super) fn replace(&mut self, arena: &mut Arena, old: &Head, at: At, new: Head) {
        self.queue(old.main).replace(arena, old, at, Head { main: old.main, ..new });
    }

    /// Takes an entry out of its queue.
    pub(super) fn remove(&mut self, arena: &mut Arena, head: &Head) {
        self.queue(head.main).unlink(arena, head);
    }

    /// Remembers an evicted entry, if it came from the small queue.
    pub(super) fn remember(&mut self, head: &Head) {
        if !head.main {
            self.ghost.insert(head.hash);
        }
    }

    /// The entry to evict, still in its queue. `None` when there is none, or when `held_max` entries that `is_held`
    /// (evicting them would free nothing) were passed over. Every turn lowers a counter, moves an entry up or passes
    /// a held one over, so the loop ends.
    pub(super) fn victim(
        &mut self,
        arena: &mut Arena,
        held_max: usize,
        is_held: impl Fn(&Arena, &Head) -> bool,
    ) -> Option<At> {
        let mut held_passed = 0;
        loop {
            let from_small = self.is_small_due();
            let at = if from_small { self.small.oldest } else { self.main.oldest };
            if at == At::NONE {
                return None;
            }
            let head = Head::load(arena, at);
            let hot = if from_small { head.freq >= self.freq_to_move_up() } else { head.freq > 0 };
            if !hot {
                if !is_held(arena, &head) {
                    return Some(at);
                }
                held_passed += 1;
                if held_passed > held_max {
                    return None;
                }
            }
            self.remove(arena, &head);
            let freq = if from_small { 0 } else { head.freq.saturating_sub(1) };
            self.main.push(arena, at, Head { main: true, freq, ..head });
        }
    }

    pub(super) fn small(&self) -> &Queue {
        &self.small
    }

    pub(super) fn main(&self) -> &Queue {
        &self.main
    }

    pub(super) fn ghost_hits(&self) -> u64 {
        self.ghost_hits
    }

    /// Bytes of memory of the ghost table.
    pub(super) fn table_bytes(&self) -> usize {
        self.ghost.table_bytes()
    }

    /// Holds links, counts and queue marks against the heads; returns the number of entries.
    #[cfg(test)]
    pub(super) fn check(&self, arena: &Arena) -> usize {
        for (queue, main) in [(&self.small, false), (&self.main, true)] {
            let (mut at, mut prev, mut objects, mut units) = (queue.oldest, At::NONE, 0, 0);
            while at != At::NONE {
                let head = Head::load(arena, at);
                assert_eq!((head.main, head.prev), (main, prev));
                objects += 1;
                units += u64::from(head.units_all());
                (prev, at) = (at, head.next);
            }
            assert_eq!((prev, objects, units), (queue.newest, queue.objects, queue.units), "INV-EVICT-1");
        }
        self.objects()
    }

    fn queue(&mut self, main: bool) -> &mut Queue {
        if main { &mut self.main } else { &mut self.small }
    }

    fn objects(&self) -> usize {
        self.small.objects + self.main.objects
    }

    fn is_small_due(&self) -> bool {
        let over =
            self.small.units >= self.small_units && self.small.objects > SMALL_OBJECTS_MIN.min(self.objects() / 4);
        over || self.main.objects == 0
    }

    /// As many ghosts as the main queue has objects, or will have once it has filled its share.
    fn ghosts_max(&self) -> usize {
        let share = self.objects() - self.objects() / SMALL_SHARE as usize;
        self.main.objects.max(share)
    }

    fn freq_to_move_up(&self) -> u8 {
        if self.objects() < FEW_OBJECTS { 1 } else { 2 }
    }
}

/// The counter after one more access that is not a plain hit (a new version of the entry).
pub(super) fn raised(freq: u8) -> u8 {
    (freq + 1).min(FREQ_MAX)
}
