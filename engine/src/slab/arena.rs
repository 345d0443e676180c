//! The slab's memory: one anonymous mapping, read and written by range, parts of it pinned as [`Bytes`].
//!
//! Owns the mapping, the registry of pinned ranges, and all `unsafe` of the slab. Every function here is safe to
//! call with any argument: a range outside the mapping, or a write into pinned bytes, panics.
//!
//! - INV-ARENA-1: writable access takes `&mut Arena`, and refuses ranges that overlap a registered pin. A pin is
//!   registered before its `Bytes` exists, and until the owner has seen (with acquire) that it was dropped.
//! - INV-ARENA-2: the mapping lives as long as the arena or any pin, whichever is longer: both hold one `Arc`.
//! - INV-ARENA-3: registered ranges do not overlap; the same range may be pinned many times.
//!
//! Leaves to [`super::extent`]: which ranges are in use. To [`super`]: how many bytes may be pinned.

#![expect(unsafe_code, reason = "slices into a mapping that pinned bodies on other threads share")]

use std::{collections::BTreeMap, io, ptr, slice, sync::Arc};

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};

use super::pin::Released;

/// Bytes of one unit, the granularity of positions and of small extents. A free extent of one unit must hold its
/// own links (see [`super::extent`]).
pub(super) const UNIT_BYTES: usize = 16;

/// A position in the arena, in units from its start. Four bytes, so an arena holds at most 64 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At(pub(super) u32);

impl At {
    /// No position.
    pub(super) const NONE: Self = Self(u32::MAX);

    /// The position `units` further on.
    pub(super) fn plus(self, units: u32) -> Self {
        Self(self.0 + units)
    }

    /// Whether `units` fit between here and `end`; their sum may be beyond what a position can say.
    pub(super) fn holds(self, units: u32, end: Self) -> bool {
        end.0.saturating_sub(self.0) >= units
    }

    /// Its distance from the start, in bytes.
    pub(super) fn byte(self) -> usize {
        self.0 as usize * UNIT_BYTES
    }
}

/// Units needed for `bytes`.
pub(super) fn units_for(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).expect("sizes are checked against the arena, which has fewer units")
}

/// What arena and pins share; freed with the last of them.
struct Shared {
    map: MmapRaw,
    released: Released,
}

/// A pinned range: its bytes, and the pins that are not known to be over.
#[derive(Clone, Copy)]
struct Pinned {
    bytes: usize,
    pins: u32,
}

/// The mapping and its pins. One owner, one thread.
pub(super) struct Arena {
    shared: Arc<Shared>,
    units: u32,
    huge_pages: bool,
    pinned: BTreeMap<usize, Pinned>,
    pinned_bytes: usize,
    /// Start byte of the range each slot in use pins.
    slots: Vec<usize>,
    slots_free: Vec<u32>,
}

impl Arena {
    /// Maps `units`; pages are the kernel's zero page until first written. At most `pins_max` pins at a time.
    /// Blocks for the system calls.
    pub(super) fn new(units: u32, pins_max: u32) -> io::Result<Self> {
        let map = MmapOptions::new().len(units as usize * UNIT_BYTES).map_anon()?;
        map.advise(Advice::DontDump)?;
        // Kernels without transparent huge pages refuse; the arena then works with more TLB misses.
        let huge_pages = map.advise(Advice::HugePage).is_ok();
        let shared = Arc::new(Shared { map: MmapRaw::from(map), released: Released::new(pins_max) });
        let slots_free = (0..pins_max).rev().collect();
        Ok(Self {
            shared,
            units,
            huge_pages,
            pinned: BTreeMap::new(),
            pinned_bytes: 0,
            slots: vec![0; pins_max as usize],
            slots_free,
        })
    }

    /// Units in the arena.
    pub(super) fn units(&self) -> u32 {
        self.units
    }

    /// Whether the kernel took the advice to use huge pages.
    pub(super) fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// `len` bytes, `skip` bytes after `at`.
    pub(super) fn bytes(&self, at: At, skip: usize, len: usize) -> &[u8] {
        let from = self.check(at, skip, len);
        // SAFETY: `check` keeps the range inside the mapping; anonymous pages are initialised; bytes change only
        // through `&mut self`, which cannot coexist with the returned borrow.
        unsafe { slice::from_raw_parts(self.shared.map.as_ptr().add(from), len) }
    }

    /// The same, to write. Panics when a pin holds any of the bytes.
    pub(super) fn bytes_mut(&mut self, at: At, skip: usize, len: usize) -> &mut [u8] {
        let from = self.check(at, skip, len);
        self.check_unpinned(from, len);
        // SAFETY: inside the mapping (`check`); the borrow of `self` excludes every other access through the
        // arena, and pins, the only other readers, do not overlap (`check_unpinned`, INV-ARENA-1).
        unsafe { slice::from_raw_parts_mut(self.shared.map.as_mut_ptr().add(from), len) }
    }

    /// Copies `len` bytes that begin `from.1` bytes after `from.0` to `to`. Ranges may overlap.
    pub(super) fn copy(&mut self, from: (At, usize), to: (At, usize), len: usize) {
        let source = self.check(from.0, from.1, len);
        let target = self.check(to.0, to.1, len);
        self.check_unpinned(target, len);
        let base = self.shared.map.as_mut_ptr();
        // SAFETY: both ranges are inside the mapping; the target is not pinned, and `&mut self` excludes every
        // other access; `ptr::copy` allows overlap.
        unsafe { ptr::copy(base.add(source), base.add(target), len) }
    }

    /// The range as [`Bytes`] that may outlive the arena and be dropped on any thread; its bytes cannot be written
    /// until [`Arena::unpin`] reports it. `None` when all pins are in use. Allocates the owner of the `Bytes`.
    pub(super) fn pin(&mut self, at: At, len: usize) -> Option<Bytes> {
        let from = self.check(at, 0, len);
        let known = self.pinned.get(&from).copied();
        match known {
            Some(range) => assert_eq!(range.bytes, len, "one range, one length (INV-ARENA-3)"),
            None => self.check_unpinned(from, len),
        }
        let slot = self.slots_free.pop()?;
        self.slots[slot as usize] = from;
        self.pinned.insert(from, Pinned { bytes: len, pins: known.map_or(0, |range| range.pins) + 1 });
        if known.is_none() {
            self.pinned_bytes += len;
        }
        Some(Bytes::from_owner(Pin { shared: Arc::clone(&self.shared), from, len, slot }))
    }

    /// Takes note of dropped pins; calls `over` with the start of each range that is no longer pinned at all.
    pub(super) fn unpin(&mut self, mut over: impl FnMut(At)) {
        for slot in self.shared.released.take() {
            let from = self.slots[slot as usize];
            self.slots_free.push(slot);
            let range = self.pinned.get_mut(&from).expect("a slot in use names a registered range");
            range.pins -= 1;
            if range.pins == 0 {
                self.pinned_bytes -= range.bytes;
                self.pinned.remove(&from);
                over(At(u32::try_from(from / UNIT_BYTES).expect("inside the arena")));
            }
        }
    }

    /// Whether a pin of the range that starts at `at` may still be alive.
    pub(super) fn is_pinned(&self, at: At) -> bool {
        !self.pinned.is_empty() && self.pinned.contains_key(&at.byte())
    }

    /// Distinct ranges pinned.
    pub(super) fn pinned_ranges(&self) -> usize {
        self.pinned.len()
    }

    /// Bytes in distinct pinned ranges.
    pub(super) fn pinned_bytes(&self) -> usize {
        self.pinned_bytes
    }

    /// Bytes of memory beside the mapping.
    pub(super) fn table_bytes(&self) -> usize {
        let slots = self.slots.capacity() * size_of::<usize>() + self.slots_free.capacity() * size_of::<u32>();
        let ranges = self.pinned.len() * 2 * size_of::<(usize, Pinned)>();
        slots + ranges + self.shared.released.table_bytes()
    }

    fn check(&self, at: At, skip: usize, len: usize) -> usize {
        let from = at.byte().checked_add(skip).expect("a position in the arena");
        let end = from.checked_add(len).expect("a range in the arena");
        assert!(end <= self.units as usize * UNIT_BYTES, "range {from}..{end} leaves the arena");
        from
    }

    fn check_unpinned(&self, from: usize, len: usize) {
        // Ranges do not overlap one another, so only the last that starts before the end can reach into this one.
        if !self.pinned.is_empty()
            && let Some((&start, range)) = self.pinned.range(..from + len).next_back()
        {
            assert!(start + range.bytes <= from, "write into pinned bytes at {start} (INV-ARENA-1)");
        }
    }
}

/// What a pinned [`Bytes`] owns: the mapping, and the duty to say when it is dropped.
struct Pin {
    shared: Arc<Shared>,
    from: usize,
    len: usize,
    slot: u32,
}

impl AsRef<[u8]> for Pin {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range was checked when it was pinned, `shared` keeps the mapping, and no byte of it is
        // written before `drop` has run (INV-ARENA-1).
        unsafe { slice::from_raw_parts(self.shared.map.as_ptr().add(self.from), self.len) }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.shared.released.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "INV-ARENA-1")]
    fn refuses_a_write_into_pinned_bytes() {
        let mut arena = Arena::new(256, 4).expect("maps");
        let _pin = arena.pin(At(16), 100).expect("a pin is free");
        arena.bytes_mut(At(10), 0, 97);
    }

    #[test]
    fn room_is_judged_without_passing_the_last_position() {
        let end = At(u32::MAX - 1);
        assert!(At(10).holds(u32::MAX - 11, end));
        assert!(!At(10).holds(u32::MAX - 10, end));
        assert!(!At(10).holds(1, At(4)), "an aligned start may lie behind the end");
    }

    #[test]
    fn pinned_bytes_outlive_the_arena() {
        let mut arena = Arena::new(256, 4).expect("maps");
        arena.bytes_mut(At(16), 0, 5).copy_from_slice(b"bytes");
        let pin = arena.pin(At(16), 5).expect("a pin is free");
        arena.bytes_mut(At(15), 0, 16).fill(7);
        arena.bytes_mut(At(16), 5, 16).fill(7);
        drop(arena);
        assert_eq!(&pin[..], b"bytes");
    }

    #[test]
    fn a_range_is_free_when_its_last_pin_is_dropped() {
        let mut arena = Arena::new(256, 2).expect("maps");
        let first = arena.pin(At(16), 64).expect("a pin is free");
        let second = arena.pin(At(16), 64).expect("a pin is free");
        assert!(arena.pin(At(32), 64).is_none(), "both slots are in use");
        assert_eq!((arena.pinned_bytes(), arena.pinned_ranges()), (64, 1));
        drop(first);
        arena.unpin(|_| panic!("one pin is left"));
        drop(second);
        assert!(arena.is_pinned(At(16)), "until the owner looks");
        let mut over = Vec::new();
        arena.unpin(|at| over.push(at));
        assert_eq!(over, [At(16)]);
        assert_eq!((arena.pinned_bytes(), arena.pinned_ranges()), (0, 0));
        arena.bytes_mut(At(16), 0, 64).fill(1);
    }
}
