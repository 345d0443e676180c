//! Which ranges of the arena are in use: a segregated fit with immediate coalescing, in constant time.
//!
//! Owns free space. Free extents hang in lists by size class (16 linear classes below 256 bytes, then 16 to each
//! power of two, in the manner of Masmano et al., "TLSF", ECRTS 2004). The records of a free extent are in the
//! extent itself; an extent in use carries nothing: one bit a unit, set for the first and last unit of a free
//! extent, tells whether a neighbour is free, and the owner of an extent in use knows its size.
//!
//! ```text
//! free extent: | first unit: units u32 | next u32 | prev u32 | (units, if alone) | ... | last unit: ... | units u32 |
//! ```
//!
//! - INV-EXT-1: extents partition the arena; two free extents are never neighbours.
//! - INV-EXT-2: an edge bit is set exactly for the first and last unit of each free extent.
//!
//! Leaves to [`super::room`]: what to do when nothing fits.

use super::arena::{Arena, At, UNIT_BYTES};

/// Classes to a power of two.
const STEPS: usize = 16;
/// Powers of two that a `u32` of units can have, after the first 16 sizes.
const POWERS: usize = 29;
/// Extents of the request's own class that are tried before a larger class is split: most workloads repeat their
/// sizes, and an exact fit leaves no remainder.
const FITS_TRIED_MAX: usize = 8;

/// Where an extent must start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// On any unit.
    Unit,
    /// On 64 bytes, for large bodies: copies between addresses that differ by 16 modulo 4096 are many times slower
    /// on some processors, and a multiple of 64 never gives that difference.
    Line,
}

impl Align {
    /// Units that an aligned extent's start and size are a multiple of.
    pub(super) fn units(self) -> u32 {
        match self {
            Self::Unit => 1,
            Self::Line => 64 / UNIT_BYTES as u32,
        }
    }

    fn first_at(self, at: At) -> At {
        At(at.0.next_multiple_of(self.units()))
    }
}

/// The arena and the account of its free space.
pub(super) struct Extents {
    arena: Arena,
    edges: Vec<u64>,
    lists: [[At; STEPS]; POWERS],
    powers_used: u32,
    steps_used: [u16; POWERS],
    free_units: u32,
}

impl Extents {
    /// All of `arena` as one free extent.
    pub(super) fn new(arena: Arena) -> Self {
        let units = arena.units();
        let mut extents = Self {
            arena,
            edges: vec![0; (units as usize).div_ceil(64)],
            lists: [[At::NONE; STEPS]; POWERS],
            powers_used: 0,
            steps_used: [0; POWERS],
            free_units: 0,
        };
        extents.add(At(0), units);
        extents
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(super) fn arena_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// Units in free extents.
    pub(super) fn free_units(&self) -> u32 {
        self.free_units
    }

    /// Bytes of memory beside the arena.
    pub(super) fn table_bytes(&self) -> usize {
        self.edges.capacity() * size_of::<u64>() + size_of::<Self>() + self.arena.table_bytes()
    }

    /// An extent of `units`, or `None` when no free extent was found that holds it.
    pub(super) fn alloc(&mut self, units: u32, align: Align) -> Option<At> {
        assert!(units > 0, "an extent has a size");
        let (free, start) = self.fit(units, align)?;
        let free_units = self.drop_free(free);
        self.give_back(free, start.0 - free.0);
        self.give_back(start.plus(units), free.0 + free_units - start.0 - units);
        Some(start)
    }

    /// Returns an extent, joined with its free neighbours.
    pub(super) fn free(&mut self, at: At, units: u32) {
        let (mut at, mut units) = (at, units);
        let after = at.plus(units);
        if self.is_free(after) {
            units += self.drop_free(after);
        }
        if at.0 > 0 && self.is_edge(at.0 - 1) {
            let before_units = self.word(At(at.0 - 1), 3);
            at = At(at.0 - before_units);
            units += self.drop_free(at);
        }
        self.add(at, units);
    }

    /// Makes an extent larger where it is, if what follows is free.
    pub(super) fn grow(&mut self, at: At, units: u32, to_units: u32) -> bool {
        let after = at.plus(units);
        let more = to_units - units;
        if !self.is_free(after) || self.free_units_at(after) < more {
            return false;
        }
        let free_units = self.drop_free(after);
        self.give_back(after.plus(more), free_units - more);
        true
    }

    /// Returns the end of an extent.
    pub(super) fn shrink(&mut self, at: At, units: u32, to_units: u32) {
        if to_units < units {
            self.free(at.plus(to_units), units - to_units);
        }
    }

    /// Whether the extent that starts at `at` is free; `at` must be the start of an extent or the arena's end.
    pub(super) fn is_free(&self, at: At) -> bool {
        at.0 < self.arena.units() && self.is_edge(at.0)
    }

    /// Takes a whole free extent out of the lists; returns its units. The caller owns it from now on.
    pub(super) fn take_free(&mut self, at: At) -> u32 {
        self.drop_free(at)
    }

    /// The free extent that comes `skip` after the first, counted from the largest class down.
    pub(super) fn largest(&self, skip: usize) -> Option<At> {
        let mut skip = skip;
        for power in (0..POWERS).rev().filter(|power| self.powers_used & (1 << power) != 0) {
            for step in (0..STEPS).rev() {
                let mut at = self.lists[power][step];
                while at != At::NONE {
                    if skip == 0 {
                        return Some(at);
                    }
                    skip -= 1;
                    at = At(self.word(at, 1));
                }
            }
        }
        None
    }

    /// Units of the free extent at `at`.
    pub(super) fn free_units_at(&self, at: At) -> u32 {
        self.word(at, 0)
    }

    fn fit(&self, units: u32, align: Align) -> Option<(At, At)> {
        let (power, step) = class_of(units);
        let mut at = self.lists[power][step];
        for _ in 0..FITS_TRIED_MAX {
            if at == At::NONE {
                break;
            }
            let start = align.first_at(at);
            if start.holds(units, at.plus(self.free_units_at(at))) {
                return Some((at, start));
            }
            at = At(self.word(at, 1));
        }
        let (power, step) = class_above(units + align.units() - 1);
        let at = self.first_from(power, step)?;
        Some((at, align.first_at(at)))
    }

    /// The first extent of that class or a larger one.
    fn first_from(&self, power: usize, step: usize) -> Option<At> {
        if power >= POWERS {
            return None;
        }
        let steps = u32::from(self.steps_used[power]) & (u32::MAX << step);
        if steps != 0 {
            return Some(self.lists[power][steps.trailing_zeros() as usize]);
        }
        let powers = self.powers_used & u32::MAX.checked_shl(power as u32 + 1).unwrap_or(0);
        if powers == 0 {
            return None;
        }
        let power = powers.trailing_zeros() as usize;
        Some(self.lists[power][self.steps_used[power].trailing_zeros() as usize])
    }

    /// Adds a free extent whose neighbours are both in use.
    fn add(&mut self, at: At, units: u32) {
        let (power, step) = class_of(units);
        let next = self.lists[power][step];
        self.set_word(at, 0, units);
        self.set_word(at, 1, next.0);
        self.set_word(at, 2, At::NONE.0);
        self.set_word(at.plus(units - 1), 3, units);
        if next != At::NONE {
            self.set_word(next, 2, at.0);
        }
        self.lists[power][step] = at;
        self.powers_used |= 1 << power;
        self.steps_used[power] |= 1 << step;
        self.set_edge(at.0, true);
        self.set_edge(at.0 + units - 1, true);
        self.free_units += units;
    }

    /// Returns a part, perhaps empty, of an extent that was free; the neighbours of the whole are in use (INV-EXT-1),
    /// and so is the rest of it.
    pub(super) fn give_back(&mut self, at: At, units: u32) {
        if units > 0 {
            self.add(at, units);
        }
    }

    fn drop_free(&mut self, at: At) -> u32 {
        let (units, next, prev) = (self.word(at, 0), At(self.word(at, 1)), At(self.word(at, 2)));
        let (power, step) = class_of(units);
        if next != At::NONE {
            self.set_word(next, 2, prev.0);
        }
        if prev != At::NONE {
            self.set_word(prev, 1, next.0);
        } else {
            self.lists[power][step] = next;
            if next == At::NONE {
                self.steps_used[power] &= !(1 << step);
                if self.steps_used[power] == 0 {
                    self.powers_used &= !(1 << power);
                }
            }
        }
        self.set_edge(at.0, false);
        self.set_edge(at.0 + units - 1, false);
        self.free_units -= units;
        units
    }

    fn word(&self, at: At, index: usize) -> u32 {
        let bytes = self.arena.bytes(at, index * 4, 4);
        u32::from_le_bytes(bytes.try_into().expect("four bytes were asked for"))
    }

    fn set_word(&mut self, at: At, index: usize, value: u32) {
        self.arena.bytes_mut(at, index * 4, 4).copy_from_slice(&value.to_le_bytes());
    }

    fn is_edge(&self, unit: u32) -> bool {
        self.edges[unit as usize / 64] & (1 << (unit % 64)) != 0
    }

    fn set_edge(&mut self, unit: u32, free: bool) {
        let word = &mut self.edges[unit as usize / 64];
        let bit = 1 << (unit % 64);
        *word = if free { *word | bit } else { *word & !bit };
    }
}

/// The class that holds extents of `units`.
fn class_of(units: u32) -> (usize, usize) {
    if units < STEPS as u32 {
        return (0, units as usize);
    }
    let log = units.ilog2();
    (log as usize - 3, (units >> (log - 4)) as usize % STEPS)
}

/// The smallest class all of whose extents hold `units`.
fn class_above(units: u32) -> (usize, usize) {
    if units < STEPS as u32 {
        return (0, units as usize);
    }
    let round = (1u32 << (units.ilog2() - 4)) - 1;
    units.checked_add(round).map_or((POWERS, 0), class_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(units: u32) -> Extents {
        Extents::new(Arena::new(units, 1).expect("maps"))
    }

    #[test]
    fn classes_are_ordered_and_the_class_above_always_fits() {
        let mut last = (0, 0);
        for units in 1..5_000 {
            let class = class_of(units);
            assert!(class >= last);
            last = class;
            let above = class_above(units);
            let smallest = (1..).find(|&candidate| class_of(candidate) >= above).expect("some size is as large");
            assert!(smallest >= units, "{units}: class {above:?} holds {smallest}");
        }
        assert_eq!(class_of(u32::MAX), (POWERS - 1, STEPS - 1));
        assert_eq!(class_above(u32::MAX).0, POWERS);
    }

    #[test]
    fn freed_neighbours_coalesce_in_any_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut extents = extents(48);
            let parts = [1, 17, 30].map(|units| (extents.alloc(units, Align::Unit).expect("fits"), units));
            assert_eq!(extents.free_units(), 0);
            assert_eq!(extents.alloc(1, Align::Unit), None);
            for part in order {
                extents.free(parts[part].0, parts[part].1);
            }
            assert_eq!(extents.alloc(48, Align::Unit), Some(At(0)), "{order:?}");
        }
    }

    #[test]
    fn aligned_extents_start_on_a_line_and_lose_nothing() {
        let mut extents = extents(4096);
        let small = extents.alloc(1, Align::Unit).expect("fits");
        let line = extents.alloc(256, Align::Line).expect("fits");
        assert_eq!(line.byte() % 64, 0);
        assert_eq!(extents.free_units(), 4096 - 257);
        extents.free(line, 256);
        extents.free(small, 1);
        assert_eq!(extents.alloc(4096, Align::Unit), Some(At(0)));
    }

    #[test]
    fn grows_into_free_space_and_shrinks_back() {
        let mut extents = extents(100);
        let first = extents.alloc(10, Align::Unit).expect("fits");
        assert!(extents.grow(first, 10, 60));
        let second = extents.alloc(40, Align::Unit).expect("fits");
        assert!(!extents.grow(first, 60, 61));
        extents.shrink(first, 60, 10);
        assert_eq!(extents.free_units(), 50);
        extents.free(second, 40);
        assert!(extents.grow(first, 10, 100));
    }
}
