//! Seeded runs: safety under every kind of end and fault, and proof that planted faults are caught.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use engine::{
    device::sim::Faults,
    log,
    rt::{Rt, sim::Sim},
};
use serde_json::{Value, json};
use strata::{
    reason::Reason,
    storage::{
        memory::{Fault, blob::BlobOp, index::IndexOp},
        multi_tier::Sabotage,
    },
};

use crate::{
    clients::{Client, KEYS, Run, SPACES},
    oracle::Outcome,
    world::{Planted, World},
};

const CLIENTS: usize = 6;
const CALLS: usize = 25;

/// Seeds of each plan, unless the environment asks for others.
const SEEDS: u64 = 150;

/// How a run may go wrong from outside.
#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    /// Ends of the process in mid-work, of all kinds.
    ends: bool,
    /// Many short lives, each of which begins with nothing in L0: reads promote all the time.
    cold: bool,
    /// The stores fail, stall, and leave outcomes unknown.
    store_faults: bool,
    /// Reads of flash fail or flip bits; nothing is written wrong.
    read_faults: bool,
    /// Writes to flash fail.
    write_faults: bool,
    planted: Planted,
}

fn policy(draw: &mut impl FnMut(u64) -> u64) -> Value {
    let promotion = |on: bool| if on { "on_stream_commit_at_finish" } else { "never" };
    json!({
        "l0_max": 2000 + draw(3) * 8000,
        "promote_l0": promotion(draw(5) > 0),
        "promote_l2": promotion(draw(5) > 0),
        "namespaces": {
            "durable": {"mode": "durable"},
            "onevict": {"mode": "cache_only", "tiers": ["l0", "l2"], "l2_fill": "on_evict"},
            "onwrite": {"mode": "cache_only", "tiers": ["l0", "l2"], "l2_fill": "on_write"},
        },
    })
}

fn faults(world: &mut World, plan: &Plan, seed: u64) {
    let latency = world.faults.latency;
    world.faults = Faults { latency, torn_pages: true, ..Faults::default() };
    if plan.read_faults {
        world.faults.read_flip_one_in = 20;
        world.faults.read_error_one_in = 40;
    }
    if plan.write_faults {
        world.faults.write_error_one_in = 150;
        world.faults.sync_error_one_in = 100;
    }
    let stalls = Some(Duration::ZERO..Duration::from_millis(8));
    world.blobs.set_latency(stalls.clone());
    world.index.set_latency(stalls);
    if !plan.store_faults {
        return;
    }
    world.blobs.faults().reseed(seed);
    world.index.faults().reseed(seed + 1);
    for op in [BlobOp::Get, BlobOp::Read, BlobOp::Put, BlobOp::Write, BlobOp::Finish] {
        world.blobs.faults().chance(op, Fault::Failed(Reason::Io), 10);
    }
    for op in [IndexOp::Get, IndexOp::PutNew, IndexOp::CasUpdate] {
        world.index.faults().chance(op, Fault::Failed(Reason::Io), 15);
    }
    for op in [IndexOp::PutNew, IndexOp::CasUpdate] {
        world.index.faults().chance(op, Fault::UnknownBefore, 30);
        world.index.faults().chance(op, Fault::UnknownAfter, 30);
    }
}

/// One run. `Err` is what the oracle found; a panic is an invariant that broke on the spot.
fn run(seed: u64, plan: &Plan) -> Result<std::rc::Rc<Run>, String> {
    let rt = Sim::new(seed ^ 0x5eed).rt();
    let mut draw = |n: u64| rt.random() % n;
    let mut world = World::new(seed, policy(&mut draw), plan.planted);
    let run = Run::new();
    let lives = if plan.cold {
        16
    } else if plan.ends {
        2 + draw(3)
    } else {
        1
    };
    for _ in 0..lives {
        faults(&mut world, plan, seed);
        // Nothing fails while a process starts: that is a test of its own.
        let device = world.faults;
        quiet(&world);
        world.faults = Faults { latency: device.latency, ..Faults::default() };
        let killed_early = plan.ends && draw(8) == 0;
        let steps = if killed_early { draw(60) } else { u64::MAX };
        if world.start(steps).is_none() {
            end(&mut world, &mut draw, false);
            continue;
        }
        faults(&mut world, plan, seed + draw(1 << 32));
        world.set_device_faults(device);
        let done = std::rc::Rc::new(std::cell::Cell::new(0));
        for _ in 0..CLIENTS {
            let client = Client { rt: world.sim.rt(), tiers: world.node().tiers.clone(), run: run.clone() };
            let (done, cold) = (done.clone(), plan.cold);
            world.sim.rt().spawn(async move {
                client.work(if cold { CALLS / 2 } else { CALLS }).await;
                done.set(done.get() + 1);
            });
        }
        let steps = if plan.ends { 500 + draw(20_000) } else { u64::MAX };
        for _ in 0..steps {
            if done.get() == CLIENTS || !world.sim.step() {
                break;
            }
        }
        assert!(plan.ends || done.get() == CLIENTS, "a client hangs");
        if plan.ends {
            end(&mut world, &mut draw, done.get() == CLIENTS);
            run.restart();
        }
    }
    settle(&mut world, &run, plan);
    run.check().map(|()| run)
}

/// Takes the stores' faults away.
fn quiet(world: &World) {
    world.blobs.faults().clear();
    world.index.faults().clear();
}

fn end(world: &mut World, draw: &mut impl FnMut(u64) -> u64, idle: bool) {
    quiet(world);
    match draw(4) {
        0 => world.power_cut(true),
        1 if idle => world.stop(),
        _ => world.kill(),
    }
    if draw(6) == 0 {
        world.change_flash();
    }
}

/// When all is quiet, what is left is what was acknowledged last; and nothing is left over.
fn settle(world: &mut World, run: &std::rc::Rc<Run>, plan: &Plan) {
    quiet(world);
    if plan.ends {
        world.faults = Faults { latency: world.faults.latency, ..Faults::default() };
        world.start(u64::MAX).expect("nothing ends it");
    }
    world.set_device_faults(Faults { latency: world.faults.latency, ..Faults::default() });
    world.sim.run_for(Duration::from_secs(30));
    for (space, _) in SPACES.iter().enumerate() {
        for key in 0..KEYS {
            for how in [5, 1] {
                let client = Client { rt: world.sim.rt(), tiers: world.node().tiers.clone(), run: run.clone() };
                world.sim.block_on(async move { client.get(space, key, how).await });
            }
        }
    }
    world.sim.run_for(Duration::from_secs(30));
    let node = world.node();
    assert_eq!(node.l0.stats().staged_bytes, 0, "staged bytes are left in L0");
    assert_eq!(node.tiers.stats().fills.get(), 0, "fills are left");
    assert_eq!(node.tiers.stats().lane_bytes.get(), 0, "bytes are left between tiers");
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the plan's seeds: a fixed range, and as many fresh ones.
fn all(name: &str, plan: &Plan) {
    let count = environment("STRATA_SIM_SEEDS").unwrap_or(SEEDS);
    let fresh = fastrand::u64(1 << 20..u64::MAX / 2);
    let seeds: Vec<u64> = match environment("STRATA_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..count).chain(fresh..fresh + count / 3).collect(),
    };
    println!("{name}: fresh seeds from {fresh}");
    let (mut calls, mut found, mut written) = (0, 0, 0);
    for seed in seeds {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, plan)));
        match outcome {
            Ok(Ok(run)) => {
                calls += run.calls();
                found += run.count(|outcome| matches!(outcome, Outcome::Found { .. }));
                written += run.count(|outcome| matches!(outcome, Outcome::Written { .. }));
            }
            Ok(Err(wrong)) => panic!("STRATA_SIM_SEED={seed} ({name}): {wrong}"),
            Err(panicked) => {
                eprintln!("STRATA_SIM_SEED={seed} ({name})");
                std::panic::resume_unwind(panicked);
            }
        }
    }
    println!("{name}: {calls} calls, {found} objects found, {written} written");
    // Histories in which nothing succeeds prove nothing.
    assert!(found * 10 > calls && written * 10 > calls, "{found} found, {written} written in {calls} calls");
}

#[test]
fn nothing_goes_wrong() {
    all("quiet", &Plan::default());
}

#[test]
fn processes_end() {
    all("ends", &Plan { ends: true, ..Plan::default() });
}

#[test]
fn stores_fail() {
    all("stores", &Plan { store_faults: true, ..Plan::default() });
}

#[test]
fn stores_fail_and_processes_end() {
    all("stores and ends", &Plan { store_faults: true, ends: true, ..Plan::default() });
}

#[test]
fn flash_reads_fail() {
    all("reads", &Plan { read_faults: true, ..Plan::default() });
}

#[test]
fn flash_reads_fail_and_processes_end() {
    all("reads and ends", &Plan { read_faults: true, ends: true, ..Plan::default() });
}

#[test]
fn flash_writes_fail() {
    all("writes", &Plan { write_faults: true, ..Plan::default() });
}

/// Seeds within which a planted fault must be noticed.
const PLANTED_SEEDS: u64 = 1_000;

/// The oracle, or an invariant, notices what is planted; without it the same seed is fine.
fn caught(plan: &Plan) {
    std::panic::set_hook(Box::new(|_| {}));
    let noticed =
        (0..PLANTED_SEEDS).find(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, plan).is_err())).unwrap_or(true));
    drop(std::panic::take_hook());
    let seed = noticed.expect("a planted fault went unnoticed");
    println!("noticed with seed {seed}");
    let sound = Plan { planted: Planted::default(), ..*plan };
    if let Err(wrong) = run(seed, &sound) {
        panic!("seed {seed} fails without the planted fault too: {wrong}");
    }
}

#[test]
fn a_promotion_committed_after_a_purge_is_noticed() {
    let tiers = Sabotage { commit_promotion_after_purge: true };
    // After a start nothing is in L0, and reads promote.
    let planted = Planted { tiers, ..Planted::default() };
    caught(&Plan { ends: true, cold: true, planted, ..Plan::default() });
}

#[test]
fn a_skipped_checksum_is_noticed() {
    let log = log::Sabotage { skip_body_checksum: true, ..log::Sabotage::default() };
    caught(&Plan { read_faults: true, planted: Planted { log, ..Planted::default() }, ..Plan::default() });
}

#[test]
fn a_tombstone_forgotten_at_recovery_is_noticed() {
    let log = log::Sabotage { forget_tombstones: true, ..log::Sabotage::default() };
    caught(&Plan { ends: true, planted: Planted { log, ..Planted::default() }, ..Plan::default() });
}

#[test]
fn flash_writes_fail_and_processes_end() {
    all("writes and ends", &Plan { write_faults: true, ends: true, ..Plan::default() });
}
