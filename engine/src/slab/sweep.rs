//! Expired entries in small steps, scans for whoever looks for entries by other means than their key, and counts.
//!
//! Owns the order of a scan: the index's places, one after the other. An entry keeps its place as long as it lives,
//! through versions and moves, so that a scan from start to end sees every entry that lived all the while; after the
//! index was rehashed (rare) a scan begins again.

use super::{Evicted, OnEvict, Reason, Slab, arena::UNIT_BYTES, layout::Head};

/// A position in a scan. [`Cursor::default`] is the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    bucket: usize,
    epoch: u32,
}

/// What a bounded scan or sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visited {
    /// Entries removed.
    pub removed: u64,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// Counters since the slab was made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) inserts: u64,
    pub(super) evictions: u64,
    pub(super) expired: u64,
    pub(super) removed: u64,
    pub(super) pins: u64,
    pub(super) pins_copied: u64,
    pub(super) pins_refused: u64,
    pub(super) moved_bytes: u64,
}

/// The slab in numbers: gauges first, then counters since it was made. Bytes unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries.
    pub objects: u64,
    /// Entries it takes at most.
    pub objects_max: u64,
    /// The arena.
    pub arena_bytes: u64,
    /// Extents of entries: key, blob, body, head and rounding.
    pub live_bytes: u64,
    /// Of these, in the small queue.
    pub small_bytes: u64,
    /// Free in the arena, in pieces of any size.
    pub free_bytes: u64,
    /// Extents of staged bodies.
    pub staged_bytes: u64,
    /// Pinned bodies, in entries or in limbo.
    pub pinned_bytes: u64,
    /// Bodies whose entry is gone and that are still pinned.
    pub limbo_bytes: u64,
    /// Tables beside the arena.
    pub metadata_bytes: u64,
    /// Whether the kernel took the advice to use huge pages for the arena.
    pub huge_pages: bool,
    /// Entries stored.
    pub inserts: u64,
    /// Entries evicted to make room.
    pub evictions: u64,
    /// Entries freed because their time was over.
    pub expired: u64,
    /// Entries removed by key or scan.
    pub removed: u64,
    /// New entries that went to the main queue because they were evicted lately.
    pub ghost_hits: u64,
    /// Bodies pinned.
    pub pins: u64,
    /// Bodies copied because pins were at their bound.
    pub pins_copied: u64,
    /// Hits whose bytes were not given because copies were at their bound as well.
    pub pins_refused: u64,
    /// Bytes copied within the arena to make room in one piece.
    pub moved_bytes: u64,
}

impl Slab {
    /// Looks at the next `places_max` places of the index, in turns, and frees entries past their time; also gives
    /// back dropped stages and pins. Returns how many entries it freed.
    pub fn sweep(&mut self, now_ms: u64, places_max: usize, on_evict: OnEvict<'_>) -> u64 {
        self.settle();
        let buckets = self.index.buckets();
        let mut freed = 0;
        for _ in 0..places_max.min(buckets) {
            let bucket = self.sweep_at;
            self.sweep_at = (bucket + 1) % buckets;
            let Some(at) = self.index.bucket(bucket) else { continue };
            if Head::load(self.extents.arena(), at).is_expired(now_ms) {
                self.show(at, Reason::Expired, on_evict);
                self.discard(at);
                freed += 1;
            }
        }
        self.counts.expired += freed;
        freed
    }

    /// Shows the entries in the next `places_max` places of the index to `keep`, expired ones too, and removes those
    /// for which it is `false`.
    pub fn retain(&mut self, from: Cursor, places_max: usize, keep: &mut dyn FnMut(Evicted<'_>) -> bool) -> Visited {
        let epoch = self.index.epoch();
        let start = if from.epoch == epoch { from.bucket } else { 0 };
        let end = start.saturating_add(places_max).min(self.index.buckets());
        let mut removed = 0;
        for bucket in start..end {
            let Some(at) = self.index.bucket(bucket) else { continue };
            let mut kept = true;
            self.show(at, Reason::Purged, &mut |entry| kept = keep(entry));
            if !kept {
                self.discard(at);
                removed += 1;
            }
        }
        self.counts.removed += removed;
        Visited { removed, next: (end < self.index.buckets()).then_some(Cursor { bucket: end, epoch }) }
    }

    /// Gauges and counters; gives back dropped stages and pins first, so that the gauges are current.
    pub fn stats(&mut self) -> Stats {
        self.settle();
        let arena = self.extents.arena();
        let bytes = |units: u32| u64::from(units) * UNIT_BYTES as u64;
        Stats {
            objects: self.index.len() as u64,
            objects_max: self.index.objects_max() as u64,
            arena_bytes: bytes(arena.units()),
            live_bytes: self.queues.small().bytes() + self.queues.main().bytes(),
            small_bytes: self.queues.small().bytes(),
            free_bytes: bytes(self.extents.free_units()),
            staged_bytes: bytes(self.staged_units),
            pinned_bytes: arena.pinned_bytes() as u64,
            limbo_bytes: bytes(self.limbo_units),
            metadata_bytes: self.metadata_bytes(),
            huge_pages: arena.huge_pages(),
            inserts: self.counts.inserts,
            evictions: self.counts.evictions,
            expired: self.counts.expired,
            removed: self.counts.removed,
            ghost_hits: self.queues.ghost_hits(),
            pins: self.counts.pins,
            pins_copied: self.counts.pins_copied,
            pins_refused: self.counts.pins_refused,
            moved_bytes: self.counts.moved_bytes,
        }
    }

    fn metadata_bytes(&self) -> u64 {
        let large = self.large.len() * 2 * size_of::<(super::At, super::Large)>();
        let stages = self.stages.capacity() * size_of::<super::Slot>();
        let tables = self.extents.table_bytes() + self.index.table_bytes() + self.queues.table_bytes();
        (tables + large + stages) as u64
    }
}
