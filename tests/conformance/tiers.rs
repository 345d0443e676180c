//! The shard's own tiers are storages like the doubles.

use engine::{rt::sim::Sim, slab::Config};
use strata::{storage::ram::RamTier, version::VersionClock};

use crate::storage::{Caps, suite};

#[test]
fn the_ram_tier_is_a_storage() {
    let sim = Sim::new(1);
    let make =
        async || RamTier::new(Config::new(64 << 20), sim.clock().clone(), VersionClock::new(1), ()).expect("memory");
    sim.block_on(suite(make, sim.clock(), Caps::ram()));
}
