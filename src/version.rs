//! The hybrid logical clock behind [`Version`]s: one per shard, and one per executor that orders commits.
//!
//! Invariant: readings of one clock strictly increase, and are above everything it was shown. Two clocks may give
//! equal readings for different keys; a key's writes are all ordered by its own shard (and, across nodes, by the
//! index), so one key never sees a version twice. After Kulkarni et al., "Logical Physical Clocks" (2014).

use std::{cell::Cell, rc::Rc};

use crate::cache::Version;

/// 2020-01-01T00:00:00Z in milliseconds since the Unix epoch.
const EPOCH_MS: u64 = 1_577_836_800_000;
const NODE_BITS: u32 = 10;
const COUNTER_BITS: u32 = 12;

/// Largest node id, so that it fits a version's tie-break bits.
pub const NODE_ID_MAX: u16 = (1 << NODE_BITS) - 1;

/// Makes strictly increasing [`Version`]s. Clones share one state.
#[derive(Clone, Debug)]
pub struct VersionClock {
    node: u64,
    /// The last reading, without node bits.
    last: Rc<Cell<u64>>,
}

impl VersionClock {
    /// A clock of node `node_id` (at most [`NODE_ID_MAX`]; higher bits are ignored).
    #[must_use]
    pub fn new(node_id: u16) -> Self {
        Self { node: u64::from(node_id & NODE_ID_MAX), last: Rc::new(Cell::new(0)) }
    }

    /// The next version: after `wall_ms`, after every earlier reading and everything observed, and after `above`.
    /// A millisecond that runs out of counts borrows from the next.
    #[must_use]
    pub fn next(&self, wall_ms: u64, above: Version) -> Version {
        self.observe(above);
        let wall = wall_ms.saturating_sub(EPOCH_MS) << COUNTER_BITS;
        let reading = wall.max(self.last.get() + 1);
        self.last.set(reading);
        Version(reading << NODE_BITS | self.node)
    }

    /// Makes every later reading higher than `seen`.
    pub fn observe(&self, seen: Version) {
        self.last.set(self.last.get().max(seen.0 >> NODE_BITS));
    }
}

/// The wall time a version was made at, in milliseconds since the Unix epoch (its clock may have run ahead).
#[must_use]
pub fn wall_ms(version: Version) -> u64 {
    (version.0 >> (NODE_BITS + COUNTER_BITS)) + EPOCH_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_increase_whatever_the_wall_does() {
        let clock = VersionClock::new(5);
        let now = EPOCH_MS + 1_000_000;
        let a = clock.next(now, Version::NONE);
        let b = clock.next(now, Version::NONE);
        let stepped_back = clock.next(now - 60_000, Version::NONE);
        assert!(a < b && b < stepped_back);
        assert_eq!(wall_ms(a), now);
        let foreign = VersionClock::new(9).next(now + 5_000, Version::NONE);
        assert!(clock.next(now, foreign) > foreign);
        assert_eq!(a.0 & u64::from(NODE_ID_MAX), 5);
    }

    #[test]
    fn a_busy_millisecond_borrows_from_the_next() {
        let clock = VersionClock::new(0);
        let mut last = Version::NONE;
        for _ in 0..10_000 {
            let version = clock.next(EPOCH_MS + 7, Version::NONE);
            assert!(version > last);
            last = version;
        }
        assert_eq!(wall_ms(last), EPOCH_MS + 7 + 2);
    }
}
