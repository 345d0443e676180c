//! The shard's own tiers are storages like the doubles.

use engine::{rt::sim::Sim, slab::Config};
use strata::{storage::ram::RamTier, version::VersionClock};

use crate::storage::{Caps, pressed, suite};

#[test]
fn the_ram_tier_is_a_storage() {
    let sim = Sim::new(1);
    let make =
        async || RamTier::new(Config::new(64 << 20), sim.clock().clone(), VersionClock::new(1), ()).expect("memory");
    sim.block_on(suite(make, sim.clock(), Caps::ram()));
}

#[test]
fn the_ram_tier_makes_room() {
    let sim = Sim::new(1);
    // Little room, all of which readers may hold: so much is read of it at once.
    let arena_bytes = 512 << 10;
    let config = Config { pinned_bytes_max: arena_bytes, body_bytes_max: 120_000, ..Config::new(arena_bytes) };
    let make = async || RamTier::new(config, sim.clock().clone(), VersionClock::new(1), ()).expect("memory");
    sim.block_on(pressed(make, sim.clock(), Caps { keeps: false, ..Caps::ram() }));
}
