//! The table of segments: which lap each is in, which are free, and which are blind.
//!
//! First in, first out: epochs grow with every segment opened, and the sealed segment of the lowest epoch is the one
//! reclaimed next. A segment that is free has no epoch, so whatever still points into it is gone.

use std::collections::VecDeque;

/// What a segment is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Holds nothing.
    Free,
    /// Is being filled.
    Open,
    /// Is full; its last writes are on their way.
    Sealing,
    /// Is on flash.
    Sealed,
    /// Its survivors are being re-inserted; still readable.
    Reclaiming,
    /// A restart would not see it any more; its entries are leaving the index.
    Voided,
}

/// One segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Its lap; 0 when free.
    pub(super) epoch: u32,
    /// What it is doing.
    pub(super) phase: Phase,
    /// An index entry was lost while its record is still here: see `index`.
    pub(super) blind: bool,
    /// Bytes of records, padding not counted, bodies of aborted writes taken off.
    pub(super) bytes: u64,
    /// Objects ever published from here.
    pub(super) objects: u32,
    /// Objects of these that the index still serves.
    pub(super) live: u32,
}

const FREE: Segment = Segment { epoch: 0, phase: Phase::Free, blind: false, bytes: 0, objects: 0, live: 0 };

/// All segments of a log.
pub(super) struct Segments {
    table: Vec<Segment>,
    free: VecDeque<u32>,
    next_epoch: u32,
    blind: usize,
}

impl Segments {
    /// `count` free segments; the first one opened gets `next_epoch`.
    #[must_use]
    pub(super) fn new(count: u32, next_epoch: u32) -> Self {
        Self { table: vec![FREE; count as usize], free: (0..count).collect(), next_epoch: next_epoch.max(1), blind: 0 }
    }

    /// One segment.
    #[must_use]
    pub(super) fn get(&self, segment: u32) -> &Segment {
        &self.table[segment as usize]
    }

    /// One segment, to be changed in its counters.
    pub(super) fn counters(&mut self, segment: u32) -> &mut Segment {
        &mut self.table[segment as usize]
    }

    /// The lap of a segment; 0 when it is free or does not exist.
    #[must_use]
    pub(super) fn epoch(&self, segment: u32) -> u32 {
        self.table.get(segment as usize).map_or(0, |found| found.epoch)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Segment)> {
        (0..).zip(&self.table)
    }

    /// Free ones.
    #[must_use]
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Opens a free segment; the caller has checked that there is one.
    pub(super) fn open(&mut self) -> Option<(u32, u32)> {
        let segment = self.free.pop_front()?;
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        self.table[segment as usize] = Segment { epoch, phase: Phase::Open, ..FREE };
        Some((segment, epoch))
    }

    /// Puts a segment found at recovery in its place.
    pub(super) fn restore(&mut self, segment: u32, epoch: u32) {
        self.free.retain(|free| *free != segment);
        self.table[segment as usize] = Segment { epoch, phase: Phase::Sealed, ..FREE };
        self.next_epoch = self.next_epoch.max(epoch + 1);
    }

    /// The next opened segment gets this epoch or a later one.
    pub(super) fn skip_to(&mut self, epoch: u32) {
        self.next_epoch = self.next_epoch.max(epoch);
    }

    /// Moves a segment on.
    pub(super) fn enter(&mut self, segment: u32, phase: Phase) {
        self.table[segment as usize].phase = phase;
    }

    /// The segment to reclaim next.
    #[must_use]
    pub(super) fn oldest_sealed(&self) -> Option<u32> {
        let sealed = self.iter().filter(|(_, found)| found.phase == Phase::Sealed);
        sealed.min_by_key(|(_, found)| found.epoch).map(|(segment, _)| segment)
    }

    /// Frees a segment: nothing in it can be read any more.
    pub(super) fn release(&mut self, segment: u32) {
        self.blind -= usize::from(self.table[segment as usize].blind);
        self.table[segment as usize] = FREE;
        self.free.push_back(segment);
    }

    /// Marks a segment blind until it is reclaimed.
    pub(super) fn mark_blind(&mut self, segment: u32) {
        let found = &mut self.table[segment as usize];
        if found.epoch != 0 && !found.blind {
            found.blind = true;
            self.blind += 1;
        }
    }

    /// Blind segments.
    #[must_use]
    pub(super) fn blind(&self) -> usize {
        self.blind
    }

    /// Bytes of live objects, as if the objects of one segment were all of one size.
    #[must_use]
    pub(super) fn live_bytes(&self) -> u64 {
        let share = |segment: &Segment| match segment.objects {
            0 => segment.bytes,
            objects => segment.bytes / u64::from(objects) * u64::from(segment.live),
        };
        self.table.iter().map(share).sum()
    }
}
