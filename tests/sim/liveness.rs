//! Liveness: a node that always misses is safe, and of no use.

use std::time::Duration;

use serde_json::json;
use strata::cache::{Precondition, Tier};

use crate::{
    clients::{SPACES, body_of, path, read_all, write},
    world::{Planted, World},
};

const OBJECTS: u64 = 40;
const WORDS: usize = 150;

fn world(seed: u64) -> World {
    let policy = json!({"namespaces": {
        "durable": {"mode": "durable"},
        "onevict": {"mode": "cache_only", "tiers": ["l0", "l2"], "l2_fill": "on_evict"},
        "onwrite": {"mode": "cache_only", "tiers": ["l0", "l2"], "l2_fill": "on_write"},
    }});
    let mut world = World::new(seed, policy, Planted::default());
    world.start(u64::MAX).expect("nothing ends it");
    world
}

fn fill(world: &World) {
    let tiers = world.node().tiers.clone();
    world.sim.block_on(async move {
        for space in 0..SPACES.len() {
            for id in 0..OBJECTS {
                let body = body_of(id + 1, WORDS);
                write(&tiers, &path(space, id), &body, None, Precondition::None, 700).await.expect("written");
            }
        }
    });
}

/// Which tier answers for each object, by namespace; every answer is right.
fn answers(world: &World, spaces: &[usize]) -> Vec<Option<Tier>> {
    let (tiers, spaces) = (world.node().tiers.clone(), spaces.to_vec());
    world.sim.block_on(async move {
        let mut answers = Vec::new();
        for space in spaces {
            for id in 0..OBJECTS {
                let found = read_all(&tiers, &path(space, id)).await.expect("no fault");
                if let Some((_, body)) = &found {
                    assert!(body[..] == body_of(id + 1, WORDS)[..], "{} of {space}", id);
                }
                answers.push(found.map(|(tier, _)| tier));
            }
        }
        answers
    })
}

#[test]
fn what_fits_and_was_acknowledged_hits() {
    for seed in 0..10 {
        let world = world(seed);
        fill(&world);
        assert!(answers(&world, &[0, 1, 2]).iter().all(|tier| *tier == Some(Tier::L0)), "seed {seed}");
    }
}

#[test]
fn after_a_kill_flash_answers_and_what_it_answers_is_promoted() {
    for seed in 0..10 {
        let mut world = world(seed);
        fill(&world);
        // Beyond the flush interval.
        world.sim.run_for(Duration::from_secs(1));
        world.kill();
        world.start(u64::MAX).expect("nothing ends it");
        // On flash were the durable objects and those written through; the others had not left L0.
        let first = answers(&world, &[0, 2]);
        let from_flash = first.iter().filter(|tier| **tier == Some(Tier::L2)).count();
        assert!(from_flash * 100 >= first.len() * 99, "seed {seed}: {from_flash} of {} from flash", first.len());
        world.sim.run_for(Duration::from_secs(1));
        assert!(answers(&world, &[0, 2]).iter().all(|tier| *tier == Some(Tier::L0)), "seed {seed}: not promoted");
    }
}

#[test]
fn after_a_clean_stop_cache_only_objects_are_there_too() {
    for seed in 0..5 {
        let mut world = world(seed);
        fill(&world);
        world.stop();
        world.start(u64::MAX).expect("nothing ends it");
        let found = answers(&world, &[2]).iter().filter(|tier| tier.is_some()).count();
        assert!(found as u64 * 1000 >= OBJECTS * 999, "seed {seed}: {found} of {OBJECTS}");
        assert_eq!(world.node().opened.stop, engine::log::Stop::Clean);
        assert!(world.node().l2.poisoned().is_none());
    }
}

#[test]
fn after_a_power_cut_durable_objects_are_all_there() {
    for seed in 0..5 {
        let mut world = world(seed);
        fill(&world);
        world.power_cut(true);
        world.start(u64::MAX).expect("nothing ends it");
        assert!(answers(&world, &[0]).iter().all(Option::is_some), "seed {seed}");
        // What nobody can vouch for is not served.
        assert!(answers(&world, &[1, 2]).iter().all(Option::is_none), "seed {seed}");
    }
}
