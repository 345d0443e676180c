//! What a shard counts for its tiers, and the sum over shards.
//!
//! Owns [`ShardStats`], plain cells that the data path of one shard bumps without atomics, and [`StatsSnapshot`],
//! the same figures as data that crosses threads and adds up. Counters only grow until the process ends; gauges say
//! what is so now. Everything that was not done is counted under its [`Reason`] (INV-6).
//!
//! Left to others: counters per namespace (`namespace`), what a tier counts inside (its own statistics: bytes held,
//! evictions), and how any of it is shown (the admin door).

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use crate::{
    cache::Tier,
    reason::{Reason, ReasonCounts},
};

/// A counter by reason.
#[derive(Debug, Default)]
pub struct Reasons(RefCell<ReasonCounts>);

impl Reasons {
    /// Counts one.
    pub fn count(&self, reason: Reason) {
        self.0.borrow_mut().count(reason);
    }

    /// How often `reason` was counted.
    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.borrow().get(reason)
    }

    /// All of it.
    #[must_use]
    pub fn snapshot(&self) -> ReasonCounts {
        self.0.borrow().clone()
    }
}

/// Adds `n` to a counter.
pub fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get().wrapping_add(n));
}

/// What one tier of a shard did.
#[derive(Debug, Default)]
pub struct TierStats {
    /// Look-ups it answered with an object that was served.
    pub hits: Cell<u64>,
    /// Look-ups it did not answer, by reason; [`Reason::Expired`] among them.
    pub misses: Reasons,
    /// Operations that failed, by reason. A look-up that fails above L3 is a miss as well.
    pub errors: Reasons,
    /// Body bytes served from it.
    pub bytes_served: Cell<u64>,
    /// Written objects it kept.
    pub writes: Cell<u64>,
    /// Body bytes of those.
    pub bytes_written: Cell<u64>,
    /// Committed objects it was not given or did not keep, by reason.
    pub write_drops: Reasons,
    /// Objects copied into it from below.
    pub promotions: Cell<u64>,
    /// Promotions into it that were not done or given up, by reason.
    pub promotion_drops: Reasons,
    /// Objects that left it to make room, as far as the tier shows them to `MultiTier` (L0).
    pub evictions: Cell<u64>,
    /// Objects written to it (L2) when they left the tier above.
    pub demotions: Cell<u64>,
    /// Objects that left the tier above for good, by reason.
    pub demotion_drops: Reasons,
    /// Times that copies older than a version were shut out, because the tier could not be told to remove one.
    pub fences: Cell<u64>,
}

/// What one shard counts. Shared by everything on the shard.
#[derive(Debug, Default)]
pub struct ShardStats {
    tiers: [TierStats; 4],
    /// Keys whose last durable commit has an unknown outcome: a gauge.
    pub in_doubt: Cell<u64>,
    /// Durable commits whose outcome was unknown when they ended.
    pub outcomes_unknown: Cell<u64>,
    /// Look-ups below L0 and fills that are registered in the key table: a gauge.
    pub fills: Cell<u64>,
    /// Bytes between writers or readers and tiers that run behind them: a gauge.
    pub lane_bytes: Cell<u64>,
    /// Suspect copies that the index confirmed.
    pub suspects_confirmed: Cell<u64>,
    /// Suspect copies that the index did not know and that were removed.
    pub suspects_removed: Cell<u64>,
    /// Reads that lost their L2 copy half-way and went on from L3.
    pub reads_continued: Cell<u64>,
}

impl ShardStats {
    /// All zero.
    #[must_use]
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// The counters of `tier`.
    #[must_use]
    pub fn tier(&self, tier: Tier) -> &TierStats {
        &self.tiers[tier as usize]
    }

    /// The figures now.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            tiers: self.tiers.each_ref().map(TierStats::snapshot),
            in_doubt: self.in_doubt.get(),
            outcomes_unknown: self.outcomes_unknown.get(),
            fills: self.fills.get(),
            lane_bytes: self.lane_bytes.get(),
            suspects_confirmed: self.suspects_confirmed.get(),
            suspects_removed: self.suspects_removed.get(),
            reads_continued: self.reads_continued.get(),
        }
    }
}

impl TierStats {
    fn snapshot(&self) -> TierSnapshot {
        TierSnapshot {
            hits: self.hits.get(),
            misses: self.misses.snapshot(),
            errors: self.errors.snapshot(),
            bytes_served: self.bytes_served.get(),
            writes: self.writes.get(),
            bytes_written: self.bytes_written.get(),
            write_drops: self.write_drops.snapshot(),
            promotions: self.promotions.get(),
            promotion_drops: self.promotion_drops.snapshot(),
            evictions: self.evictions.get(),
            demotions: self.demotions.get(),
            demotion_drops: self.demotion_drops.snapshot(),
            fences: self.fences.get(),
        }
    }
}

/// [`TierStats`] at one moment; fields as there.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each field is documented where it is counted, under the same name")]
pub struct TierSnapshot {
    pub hits: u64,
    pub misses: ReasonCounts,
    pub errors: ReasonCounts,
    pub bytes_served: u64,
    pub writes: u64,
    pub bytes_written: u64,
    pub write_drops: ReasonCounts,
    pub promotions: u64,
    pub promotion_drops: ReasonCounts,
    pub evictions: u64,
    pub demotions: u64,
    pub demotion_drops: ReasonCounts,
    pub fences: u64,
}

impl TierSnapshot {
    fn merge(&mut self, other: &Self) {
        self.hits += other.hits;
        self.misses.merge(&other.misses);
        self.errors.merge(&other.errors);
        self.bytes_served += other.bytes_served;
        self.writes += other.writes;
        self.bytes_written += other.bytes_written;
        self.write_drops.merge(&other.write_drops);
        self.promotions += other.promotions;
        self.promotion_drops.merge(&other.promotion_drops);
        self.evictions += other.evictions;
        self.demotions += other.demotions;
        self.demotion_drops.merge(&other.demotion_drops);
        self.fences += other.fences;
    }
}

/// [`ShardStats`] at one moment, of one shard or summed over several; fields as there.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each field is documented where it is counted, under the same name")]
pub struct StatsSnapshot {
    pub tiers: [TierSnapshot; 4],
    pub in_doubt: u64,
    pub outcomes_unknown: u64,
    pub fills: u64,
    pub lane_bytes: u64,
    pub suspects_confirmed: u64,
    pub suspects_removed: u64,
    pub reads_continued: u64,
}

impl StatsSnapshot {
    /// The figures of `tier`.
    #[must_use]
    pub fn tier(&self, tier: Tier) -> &TierSnapshot {
        &self.tiers[tier as usize]
    }

    /// Adds what another shard counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.tiers.iter_mut().zip(&other.tiers) {
            mine.merge(theirs);
        }
        self.in_doubt += other.in_doubt;
        self.outcomes_unknown += other.outcomes_unknown;
        self.fills += other.fills;
        self.lane_bytes += other.lane_bytes;
        self.suspects_confirmed += other.suspects_confirmed;
        self.suspects_removed += other.suspects_removed;
        self.reads_continued += other.reads_continued;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_add_up() {
        let stats = ShardStats::new();
        add(&stats.tier(Tier::L2).hits, 2);
        stats.tier(Tier::L2).misses.count(Reason::Expired);
        stats.tier(Tier::L0).promotion_drops.count(Reason::Poisoned);
        stats.in_doubt.set(3);
        let mut sum = stats.snapshot();
        let other = std::thread::spawn({
            let snapshot = stats.snapshot();
            move || snapshot
        });
        sum.merge(&other.join().expect("snapshots cross threads"));
        assert_eq!((sum.tier(Tier::L2).hits, sum.in_doubt), (4, 6));
        assert_eq!(sum.tier(Tier::L2).misses.get(Reason::Expired), 2);
        assert_eq!(sum.tier(Tier::L0).promotion_drops.iter().collect::<Vec<_>>(), [(Reason::Poisoned, 2)]);
    }
}
