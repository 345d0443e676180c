//! The index in RAM: which record speaks for a key.
//!
//! A table of fixed size, allocated once: 16 bytes an entry, buckets of eight. A key has two buckets and a tag of 16
//! bits; the pair of buckets is the same for all keys that share a tag and one of them, so that these keys form a
//! class and there is **one entry per class**. The full key is compared on flash; a mismatch is a collision, which
//! costs a miss.
//!
//! Invariant (INV-3 rests on it): *while any record of a class is on flash and not in a blind segment, the class has
//! an entry, whose record lies no earlier than that record.* So an owner that asks before it overwrites a key
//! ([`super::Log::needs_tombstone`]) learns of every older copy. It holds because
//!
//! - a new record of the class takes the entry over, and its position is the latest there is;
//! - an entry is never taken out while its record is on flash: a removal or a failed checksum marks it dead, a
//!   tombstone takes its place;
//! - reclaim takes it out only together with its segment, and by then, first in first out, everything earlier is
//!   gone too;
//! - the one exception is a full pair of buckets: the entry of the oldest segment is evicted, and that segment is
//!   marked blind until it is reclaimed, which tells owners to assume the worst of every key.
//!
//! Bound: the table. Left to others: blind marks and epochs (`segments`), reading keys (`reader`).

use super::format::{Layout, RECORD_ALIGN, SEGMENTS_AT};

/// Entries in a bucket: two cache lines.
const BUCKET: usize = 8;

/// Slots per expected object: with two buckets to choose from, hardly a pair is full at four fifths.
const SLACK: (u64, u64) = (5, 4);

/// Most hits an entry counts.
pub(super) const HITS_MAX: u8 = 3;

const ADDRESS_BITS: u32 = 38;
const SEGMENT_BITS: u32 = 18;
const SPAN_AT: u32 = 38;
const HITS_AT: u32 = 44;
const SUSPECT: u64 = 1 << 46;
const DEAD: u64 = 1 << 47;
const TAG_AT: u32 = 48;
/// The span that marks a tombstone; real spans are at most 33.
const TOMBSTONE: u64 = 63;

const _: () = assert!(size_of::<Slot>() == 16);

/// What an entry points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An object or commit record.
    Record {
        /// Its segment.
        segment: u32,
        /// Its position there.
        position: u32,
        /// Pages one read must span.
        span: u8,
        /// `false`: it must not be served any more, but is still on flash.
        live: bool,
    },
    /// A tombstone somewhere in a segment.
    Tombstone {
        /// Its segment.
        segment: u32,
        /// 20 more bits of the key's hash.
        extra: u32,
    },
}

/// One entry, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What it points at.
    pub(super) place: Place,
    /// The version of that record.
    pub(super) version: u64,
    /// Hits since it was written, up to [`HITS_MAX`].
    pub(super) hits: u8,
    /// Survived a stop after which its version must be checked.
    pub(super) suspect: bool,
}

impl Entry {
    /// The segment of its record.
    #[must_use]
    pub(super) fn segment(&self) -> u32 {
        match self.place {
            Place::Record { segment, .. } | Place::Tombstone { segment, .. } => segment,
        }
    }

    /// Whether a look-up may serve it.
    #[must_use]
    pub(super) fn is_live(&self) -> bool {
        matches!(self.place, Place::Record { live: true, .. })
    }

    /// Whether it is a tombstone of the key with this hash, as far as its bucket and 36 more bits tell.
    #[must_use]
    pub(super) fn is_tombstone_of(&self, hash: u64) -> bool {
        matches!(self.place, Place::Tombstone { extra, .. } if extra == self::extra(hash))
    }
}

/// Hash bits kept beside a tombstone's segment.
#[must_use]
pub(super) fn extra(hash: u64) -> u32 {
    (hash.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 44) as u32
}

/// Spreads the owner's hash, whose high bits chose the shard.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Address, span, hits, suspect, dead, tag. Zero is empty: no record has address zero.
    word: u64,
    version: u64,
}

/// The number of a slot, good until the table next changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId(usize);

/// The table.
pub(super) struct Index {
    slots: Box<[Slot]>,
    buckets: u64,
    units_per_segment: u64,
    used: usize,
    live: usize,
}

impl Index {
    /// A table for `objects` objects in a log of this layout.
    #[must_use]
    pub(super) fn new(layout: &Layout, objects: u64) -> Self {
        let buckets = (objects.max(1) * SLACK.0).div_ceil(SLACK.1 * BUCKET as u64).max(2);
        Self {
            slots: vec![Slot::default(); usize::try_from(buckets).unwrap_or(usize::MAX / BUCKET) * BUCKET].into(),
            buckets,
            units_per_segment: u64::from(layout.segment_bytes) / RECORD_ALIGN as u64,
            used: 0,
            live: 0,
        }
    }

    /// RAM of a table for `objects` objects, in bytes.
    #[must_use]
    pub(super) fn bytes_for(objects: u64) -> u64 {
        (objects.max(1) * SLACK.0).div_ceil(SLACK.1 * BUCKET as u64).max(2) * (BUCKET * size_of::<Slot>()) as u64
    }

    /// RAM it takes, in bytes.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot>()
    }

    /// Entries that a look-up may serve.
    #[must_use]
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Entries of any kind, and slots.
    #[must_use]
    pub(super) fn fill(&self) -> (usize, usize) {
        (self.used, self.slots.len())
    }

    fn class(&self, hash: u64) -> (u64, [usize; 2]) {
        let mixed = mix(hash);
        let tag = mixed & 0xffff;
        let first = ((mixed >> 32) * self.buckets) >> 32;
        // An involution: from either bucket and the tag, the other.
        let second = (mix(tag) % self.buckets + self.buckets - first) % self.buckets;
        (tag, [first as usize * BUCKET, second as usize * BUCKET])
    }

    /// The entry of the class of `hash`.
    #[must_use]
    pub(super) fn find(&self, hash: u64) -> Option<SlotId> {
        let (tag, starts) = self.class(hash);
        starts.into_iter().flat_map(|start| start..start + BUCKET).map(SlotId).find(|slot| {
            let word = self.slots[slot.0].word;
            word != 0 && word >> TAG_AT == tag
        })
    }

    /// The entry of the class of `hash`, decoded.
    #[must_use]
    pub(super) fn get(&self, hash: u64) -> Option<Entry> {
        self.find(hash).map(|slot| self.entry(slot))
    }

    /// Decodes a slot that [`Index::find`] found.
    #[must_use]
    pub(super) fn entry(&self, slot: SlotId) -> Entry {
        let Slot { word, version } = self.slots[slot.0];
        let address = word & ((1 << ADDRESS_BITS) - 1);
        let span = word >> SPAN_AT & 0x3f;
        let place = if span == TOMBSTONE {
            let segment = (address & ((1 << SEGMENT_BITS) - 1)) as u32;
            Place::Tombstone { segment, extra: (address >> SEGMENT_BITS) as u32 }
        } else {
            let unit = address - SEGMENTS_AT / RECORD_ALIGN as u64;
            Place::Record {
                segment: (unit / self.units_per_segment) as u32,
                position: (unit % self.units_per_segment) as u32,
                span: span as u8,
                live: word & DEAD == 0,
            }
        };
        Entry { place, version, hits: (word >> HITS_AT & 3) as u8, suspect: word & SUSPECT != 0 }
    }

    fn encode(&self, tag: u64, entry: &Entry) -> Slot {
        let place = match entry.place {
            Place::Record { segment, position, span, live } => {
                let unit = u64::from(segment) * self.units_per_segment + u64::from(position);
                let dead = if live { 0 } else { DEAD };
                (unit + SEGMENTS_AT / RECORD_ALIGN as u64) | u64::from(span) << SPAN_AT | dead
            }
            Place::Tombstone { segment, extra } => {
                u64::from(segment) | u64::from(extra) << SEGMENT_BITS | TOMBSTONE << SPAN_AT | DEAD
            }
        };
        let hits = u64::from(entry.hits.min(HITS_MAX)) << HITS_AT;
        let suspect = if entry.suspect { SUSPECT } else { 0 };
        Slot { word: place | hits | suspect | tag << TAG_AT, version: entry.version }
    }

    /// Replaces the entry in a slot that [`Index::find`] found.
    pub(super) fn set(&mut self, slot: SlotId, entry: &Entry) {
        let old = self.slots[slot.0];
        debug_assert!(old.word != 0, "an empty slot was found");
        self.live -= usize::from(old.word & DEAD == 0);
        self.live += usize::from(entry.is_live());
        self.slots[slot.0] = self.encode(old.word >> TAG_AT, entry);
    }

    /// Adds an entry for the class of `hash`, which has none. When both buckets are full, the entry whose segment
    /// has the lowest `epoch` makes room and is returned.
    pub(super) fn insert(&mut self, hash: u64, entry: &Entry, epoch: impl Fn(u32) -> u32) -> Option<Entry> {
        let (tag, starts) = self.class(hash);
        let free = starts.map(|start| (start..start + BUCKET).filter(|slot| self.slots[*slot].word == 0).count());
        let emptier = starts[usize::from(free[1] > free[0])];
        let empty = (emptier..emptier + BUCKET).find(|slot| self.slots[*slot].word == 0);
        let (slot, evicted) = match empty {
            Some(slot) => (slot, None),
            None => {
                let all = starts.into_iter().flat_map(|start| start..start + BUCKET);
                let oldest = all.min_by_key(|slot| epoch(self.entry(SlotId(*slot)).segment())).unwrap_or(starts[0]);
                (oldest, Some(self.clear(SlotId(oldest))))
            }
        };
        self.slots[slot] = self.encode(tag, entry);
        self.used += 1;
        self.live += usize::from(entry.is_live());
        evicted
    }

    /// Takes an entry out.
    pub(super) fn clear(&mut self, slot: SlotId) -> Entry {
        let entry = self.entry(slot);
        self.used -= 1;
        self.live -= usize::from(entry.is_live());
        self.slots[slot.0] = Slot::default();
        entry
    }

    /// Takes out every entry of `segment` among the slots from `from` on, at most `count` of them; returns the live
    /// ones taken out and where to go on, `None` at the end. For a segment whose footer cannot be read.
    pub(super) fn sweep(&mut self, segment: u32, from: usize, count: usize) -> (usize, Option<usize>) {
        let end = from.saturating_add(count).min(self.slots.len());
        let live = self.live;
        for slot in from..end {
            if self.slots[slot].word != 0 && self.entry(SlotId(slot)).segment() == segment {
                self.clear(SlotId(slot));
            }
        }
        (live - self.live, (end < self.slots.len()).then_some(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::{Header, SEGMENT_BYTES_MIN};

    fn layout() -> Layout {
        let header = Header {
            log_id: 1,
            node: 0,
            shard: 0,
            shards: 1,
            hash_seed: 0,
            file_bytes: 1 << 26,
            segment_bytes: SEGMENT_BYTES_MIN,
            segments: 512,
            created_ms: 0,
        };
        Layout::of(&header, 1 << 26).expect("possible")
    }

    fn record(segment: u32, position: u32) -> Entry {
        Entry {
            place: Place::Record { segment, position, span: 33, live: true },
            version: u64::MAX - 3,
            hits: 2,
            suspect: true,
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was_put() {
        let mut index = Index::new(&layout(), 100);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let hash = random.u64(..);
            let place = match random.u8(0..3) {
                0 => Place::Tombstone { segment: random.u32(0..512), extra: extra(hash) },
                n => Place::Record {
                    segment: random.u32(0..512),
                    position: random.u32(256..4096),
                    span: random.u8(1..34),
                    live: n == 1,
                },
            };
            let entry = Entry { place, version: random.u64(..), hits: random.u8(0..4), suspect: random.bool() };
            match index.find(hash) {
                Some(slot) => index.set(slot, &entry),
                None => drop(index.insert(hash, &entry, |segment| segment)),
            }
            assert_eq!(index.get(hash), Some(entry));
            assert_eq!(entry.is_tombstone_of(hash), matches!(place, Place::Tombstone { .. }));
        }
    }

    #[test]
    fn it_agrees_with_a_model_until_it_is_full_and_then_evicts_the_oldest_segment() {
        let mut index = Index::new(&layout(), 2000);
        let mut random = fastrand::Rng::with_seed(7);
        let hashes: Vec<u64> = (0..2000).map(|_| random.u64(..)).collect();
        let mut evicted = 0;
        let mut model = std::collections::BTreeMap::new();
        for (i, hash) in hashes.iter().enumerate() {
            let entry = record(i as u32 / 100, 256 + i as u32);
            match index.find(*hash) {
                // A collision of tags: the newer key takes the class over.
                Some(slot) => index.set(slot, &entry),
                None => evicted += usize::from(index.insert(*hash, &entry, |segment| segment).is_some()),
            }
            model.insert(*hash, entry);
        }
        let held = model.iter().filter(|(hash, entry)| index.get(**hash) == Some(**entry)).count();
        assert!(evicted == 0 && held > 1990, "{held} of 2000 held, {evicted} evicted at the size asked for");
        for i in 0..4000_u32 {
            let hash = random.u64(..);
            if index.find(hash).is_none()
                && let Some(out) = index.insert(hash, &record(100 + i / 100, 256), |segment| segment)
            {
                evicted += 1;
                assert!(out.segment() < 100 + i / 100, "evicted itself");
            }
        }
        let (used, slots) = index.fill();
        assert!(evicted > 1000 && used <= slots && index.live() == used);
        let (swept, end) = index.sweep(139, 0, usize::MAX);
        assert!(swept > 50 && end.is_none());
        assert_eq!(index.fill().0, used - swept);
        assert_eq!(index.sweep(139, 0, usize::MAX).0, 0);
    }
}
