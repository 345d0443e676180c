//! Histories: many clients on few keys, with stalls, faults, evictions and crashes, judged by the oracle.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{
    oracle::{Call, Expects, History, Kind, Outcome},
    *,
};
use crate::storage::memory::{Fault, Op, blob::BlobOp, index::IndexOp};

const KEYS: u64 = 3;
const CLIENTS: usize = 6;
const CALLS: usize = 12;

/// Seeds a test runs; a failure prints its seed, and `STRATA_SEEDS=FROM..TO` runs others.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let given = std::env::var("STRATA_SEEDS").ok();
    let given = given.as_deref().and_then(|range| range.split_once(".."));
    given.and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?)).unwrap_or(0..count)
}

struct Plan {
    kind: Kind,
    sabotage: Sabotage,
    faults: bool,
    crash: bool,
    /// L3 is the durable tier over stores in memory, not a double of it.
    real_l3: bool,
}

struct Run {
    history: Rc<RefCell<History>>,
    values: Rc<std::cell::Cell<u64>>,
    kind: Kind,
}

impl Run {
    fn path(&self, key: u64) -> String {
        match self.kind {
            Kind::Durable => format!("img/{key}"),
            Kind::Cache => format!("memcached/{key}"),
        }
    }
}

/// A body that says which write it is, in every eight bytes of it.
fn body_of(value: u64, words: usize) -> Bytes {
    value.to_le_bytes().repeat(words).into()
}

/// INV-1: the bytes are those of one write.
fn value_of(body: &[u8]) -> u64 {
    let value = u64::from_le_bytes(body[..8].try_into().expect("eight bytes"));
    assert!(body.len().is_multiple_of(8) && body.chunks(8).all(|word| word == value.to_le_bytes()), "a mixed body");
    value
}

fn policy(draw: &mut impl FnMut(u64) -> u64) -> Value {
    let (fill, order) = (["on_write", "on_evict"][draw(2) as usize], ["l1_first", "l2_first"][draw(2) as usize]);
    let promotion = |on: bool| if on { "on_stream_commit_at_finish" } else { "never" };
    json!({
        "l0_max": 500 + draw(3) * 1000,
        "l2_max": 1500 + draw(2) * 1000,
        "promote_l0": promotion(draw(4) > 0),
        "promote_l1": promotion(draw(4) > 0),
        "promote_l2": promotion(draw(4) > 0),
        "l2_fill": fill,
        "lookup_order": order,
        // L1 takes part in the cache too.
        "namespaces": {"memcached": {"tiers": ["l0", "l1", "l2"]}},
    })
}

fn history(seed: u64, plan: &Plan) -> Result<History, String> {
    let rt = Sim::new(seed ^ 0x5eed).rt();
    let mut draw = |n: u64| rt.random() % n;
    let setup = Setup {
        seed,
        policy: policy(&mut draw),
        settings: Settings {
            fanout_lag_max: 2000,
            promote_lag_max: 2000,
            publish_wait: Duration::from_millis(30),
            stage_wait: Duration::from_millis(10),
            in_doubt_max: 64,
            ..Settings::default()
        },
        sabotage: plan.sabotage,
        l0_bytes: 3000 + draw(3) * 2000,
        l1: draw(2) == 0,
        real_l3: plan.real_l3,
    };
    let mut world = World::new(setup);
    world.stalls.set(100 + 200 * u32::try_from(draw(4)).expect("small"));
    if plan.faults {
        faults(&world, seed, plan.kind);
    }
    if let Some((blobs, index)) = &world.real {
        let latency = Some(Duration::ZERO..Duration::from_millis(1 + draw(20)));
        blobs.set_latency(latency.clone());
        index.set_latency(latency);
    }
    let run = Rc::new(Run {
        history: Rc::new(RefCell::new(History::new(plan.kind))),
        values: Rc::default(),
        kind: plan.kind,
    });
    for _ in 0..if plan.crash { 3 } else { 1 } {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| start(&world.sim.rt(), client(world.handle(), run.clone()))).collect();
        let evictor = start(&world.sim.rt(), evictor(world.handle(), run.clone()));
        let steps = if plan.crash { draw(3000) } else { u64::MAX };
        for _ in 0..steps {
            if clients.iter().all(|client| client.borrow().is_some()) || !world.sim.step() {
                break;
            }
        }
        assert!(plan.crash || clients.iter().all(|client| client.borrow().is_some()), "seed {seed}: a client hangs");
        drop(evictor);
        if plan.crash {
            world.restart(&mut draw, plan);
        }
    }
    // What is left when all is quiet is what was acknowledged last.
    world.stalls.set(0);
    world.stalls.set_late_commits(0);
    Tier::ALL.iter().for_each(|tier| world.store(*tier).faults().clear());
    if let Some((blobs, index)) = &world.real {
        blobs.faults().clear();
        index.faults().clear();
    }
    world.sim.run_for(Duration::from_secs(30));
    for key in 0..KEYS {
        for _ in 0..2 {
            let handle = world.handle();
            world.run(get(&handle, &run, key, u64::MAX));
        }
    }
    assert_eq!(world.staged(), 0, "seed {seed}: staged bytes are left");
    assert_eq!(world.sim.tasks(), 0, "seed {seed}: tasks are left");
    let busy = world.tier.node.keys.len();
    assert!(busy <= world.tier.in_doubt(), "seed {seed}: {busy} keys are left in the table");
    let history = run.history.borrow().clone();
    history.check().map(|()| history).map_err(|wrong| format!("seed {seed}: {wrong}"))
}

fn faults(world: &World, seed: u64, kind: Kind) {
    for (tier, store) in [&world.l0, &world.l1, &world.l2].into_iter().enumerate() {
        store.faults().reseed(seed + tier as u64);
        for op in [Op::Lookup, Op::Begin, Op::Write, Op::Finish, Op::Read, Op::Update] {
            store.faults().chance(op, Fault::Failed(Reason::Io), 30);
        }
        // Fences are global: more of them, and nothing but L3 would be tested.
        store.faults().chance(Op::Purge, Fault::Failed(Reason::Timeout), if tier == 0 { 0 } else { 4 });
    }
    if let Some((blobs, index)) = &world.real {
        blobs.faults().reseed(seed + 4);
        index.faults().reseed(seed + 5);
        for op in [BlobOp::Get, BlobOp::Read, BlobOp::Put, BlobOp::Write, BlobOp::Finish] {
            blobs.faults().chance(op, Fault::Failed(Reason::Io), 10);
        }
        for op in [IndexOp::Get, IndexOp::PutNew, IndexOp::CasUpdate] {
            index.faults().chance(op, Fault::Failed(Reason::Io), 15);
        }
        for op in [IndexOp::PutNew, IndexOp::CasUpdate] {
            index.faults().chance(op, Fault::UnknownBefore, 40);
            index.faults().chance(op, Fault::UnknownAfter, 40);
        }
    } else if kind == Kind::Durable {
        world.l3.faults().reseed(seed + 3);
        for op in [Op::Lookup, Op::Begin, Op::Write, Op::Finish, Op::Purge, Op::Read] {
            world.l3.faults().chance(op, Fault::Failed(Reason::Unavailable), 20);
        }
        for op in [Op::Finish, Op::Purge] {
            world.l3.faults().chance(op, Fault::UnknownBefore, 40);
            world.l3.faults().chance(op, Fault::UnknownAfter, 40);
        }
        world.stalls.set_late_commits(60);
    }
}

/// What a client holds of a world.
#[derive(Clone)]
struct Handle {
    rt: SimRt,
    tier: Under,
    l0: Store,
    real_l3: bool,
}

impl World {
    fn handle(&self) -> Handle {
        Handle { rt: self.sim.rt(), tier: self.tier.clone(), l0: self.l0.clone(), real_l3: self.real.is_some() }
    }

    /// Kill -9, and a start on what is left.
    fn restart(&mut self, draw: &mut impl FnMut(u64) -> u64, plan: &Plan) {
        let setup = Setup { policy: policy(draw), real_l3: plan.real_l3, ..Setup::default() };
        self.sim.crash();
        if let Some((blobs, index)) = &self.real {
            blobs.faults().clear();
            index.faults().clear();
            blobs.crash(draw(u64::MAX));
            index.crash(draw(u64::MAX));
        }
        self.l0.clear();
        self.l2.suspect_all();
        // No process is back before the clock has moved on: what RAM alone knew of versions lies in the past.
        self.sim.clock().advance(Duration::from_millis(100));
        let stores = [&self.l0, &self.l1, &self.l2, &self.l3];
        let tier = Self::tier(&self.sim, &self.stalls, stores, self.real.as_ref(), &setup);
        // As recovery does: later versions are above everything on flash.
        for key in 0..KEYS {
            for path in [format!("img/{key}"), format!("memcached/{key}")] {
                let known = stores.iter().filter_map(|store| store.peek(&super::key(&path))).max();
                tier.node.versions.observe(known.unwrap_or(Version::NONE));
            }
        }
        self.tier = tier;
    }
}

async fn client(handle: Handle, run: Rc<Run>) {
    for _ in 0..CALLS {
        let draw = |n: u64| handle.rt.random() % n;
        let key = draw(KEYS);
        match draw(10) {
            0..=4 => get(&handle, &run, key, draw(8)).await,
            5..=7 => put(&handle, &run, key).await,
            _ => remove(&handle, &run, key).await,
        }
        if draw(3) == 0 {
            handle.rt.sleep(Duration::from_millis(draw(20))).await;
        }
    }
}

/// Reads; a `patience` of 0 leaves after the first chunk, of 1 asks for a range only.
async fn get(handle: &Handle, run: &Run, key: u64, patience: u64) {
    let call = run.history.borrow_mut().begin(key, Call::Read);
    let outcome = match handle.tier.lookup(&super::key(&run.path(key))).await {
        Ok(None) => Outcome::Missing,
        Ok(Some((meta, mut hit))) => {
            let (mut body, mut cut) = (Vec::new(), false);
            let range = patience == 1 && hit.remaining() >= 16;
            if range {
                hit.seek(8..16).expect("within");
            }
            loop {
                match hit.read_body().await {
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                    Ok(None) => break,
                    Err(_) => {
                        cut = true;
                        break;
                    }
                }
                if patience == 0 {
                    cut = true;
                    break;
                }
            }
            // The first eight bytes tell the write, also of a body that was cut.
            if cut && body.len() < 8 {
                Outcome::Failed
            } else {
                let value = value_of(&body[..body.len() / 8 * 8]);
                assert!(cut || range || Some(body.len() as u64) == meta.length, "a short body");
                Outcome::Found { version: meta.version.0, value }
            }
        }
        Err(_) => Outcome::Failed,
    };
    run.history.borrow_mut().end(call, outcome);
}

async fn put(handle: &Handle, run: &Run, key: u64) {
    let draw = |n: u64| handle.rt.random() % n;
    run.values.set(run.values.get() + 1);
    let value = run.values.get();
    let path = run.path(key);
    let (expects, precondition) = match draw(6) {
        0 => (Expects::Absent, Precondition::Absent),
        1 => (Expects::Exists, Precondition::Exists),
        2 | 3 => match handle.tier.lookup(&super::key(&path)).await {
            Ok(Some((meta, _))) => (Expects::Version(meta.version.0), Precondition::Version(meta.version)),
            _ => (Expects::Anything, Precondition::None),
        },
        _ => (Expects::Anything, Precondition::None),
    };
    // Now and then one that the durable tier keeps as a blob.
    let words = if handle.real_l3 && draw(16) == 0 { 8193 } else { 1 + draw(350) as usize };
    let body = body_of(value, words);
    let length = (draw(2) == 0).then_some(body.len() as u64);
    let call = run.history.borrow_mut().begin(key, Call::Write { value, expects });
    let writing = write(&handle.tier, &path, &body, length, precondition);
    // Some clients do not wait for the end.
    let leaves = draw(8) == 0;
    let outcome = if leaves {
        let late = async {
            handle.rt.sleep(Duration::from_millis(draw(10))).await;
            None
        };
        futures_lite::future::or(async { Some(writing.await) }, late).await
    } else {
        Some(writing.await)
    };
    let outcome = match outcome {
        Some(Ok(stored)) => {
            assert!(stored.tiers.contains(&Some(TierOutcome::Kept)));
            Outcome::Written { version: stored.version.0, replaced: stored.replaced.map(|version| version.0) }
        }
        Some(Err(CacheError::Precondition { current })) => Outcome::Conflict { current: current.map(|v| v.0) },
        Some(Err(CacheError::OutcomeUnknown { .. })) | None => Outcome::Unknown,
        Some(Err(CacheError::Refused(_) | CacheError::Unavailable { .. })) => Outcome::Failed,
        Some(Err(other)) => panic!("not an answer to a write: {other}"),
    };
    run.history.borrow_mut().end(call, outcome);
}

async fn remove(handle: &Handle, run: &Run, key: u64) {
    let call = run.history.borrow_mut().begin(key, Call::Remove);
    let outcome = match handle.tier.purge(&super::key(&run.path(key)), Precondition::None).await {
        Ok(report) => Outcome::Removed {
            removed: report.removed.map(|version| version.0),
            tombstone: report.tombstone.map(|version| version.0),
        },
        // A purge that cannot be certain in every tier may have happened in some.
        Err(_) => Outcome::Unknown,
    };
    run.history.borrow_mut().end(call, outcome);
}

/// L0 evicts now and then, and shows what it evicts.
async fn evictor(handle: Handle, run: Rc<Run>) {
    for _ in 0..40 {
        handle.rt.sleep(Duration::from_millis(1 + handle.rt.random() % 15)).await;
        let key = super::key(&run.path(handle.rt.random() % KEYS));
        // In one step, as eviction is.
        let evicted = futures_lite::future::block_on(async {
            let (meta, mut hit) = handle.l0.lookup(&key).await.ok()??;
            let mut body = Vec::new();
            while let Some(chunk) = hit.read_body().await.ok()? {
                body.extend_from_slice(&chunk);
            }
            handle.l0.purge(&key, Precondition::None).await.ok()?;
            Some((meta, body))
        });
        if let Some((meta, body)) = evicted {
            handle.tier.evicted_from_l0(key, meta, body.into());
        }
    }
}

fn run_all(count: u64, plan: &Plan) {
    let (mut calls, mut found, mut written) = (0, 0, 0);
    for seed in seeds(count) {
        match catch_unwind(AssertUnwindSafe(|| history(seed, plan))) {
            Ok(Ok(history)) => {
                calls += history.calls();
                found += history.count(|outcome| matches!(outcome, Outcome::Found { .. }));
                written += history.count(|outcome| matches!(outcome, Outcome::Written { .. }));
            }
            Ok(Err(wrong)) => panic!("{wrong}"),
            Err(panicked) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panicked);
            }
        }
    }
    // A history in which nothing succeeds proves nothing.
    assert!(found * 10 > calls && written * 10 > calls, "{found} reads and {written} writes of {calls} calls succeed");
}

fn plan(kind: Kind, faults: bool, crash: bool, real_l3: bool) -> Plan {
    Plan { kind, sabotage: Sabotage::default(), faults, crash, real_l3 }
}

#[test]
fn durable_keys() {
    run_all(300, &plan(Kind::Durable, false, false, false));
}

#[test]
fn durable_keys_with_faults() {
    run_all(300, &plan(Kind::Durable, true, false, false));
}

#[test]
fn durable_keys_with_crashes() {
    run_all(200, &plan(Kind::Durable, true, true, false));
}

#[test]
fn durable_keys_over_the_durable_tier() {
    run_all(200, &plan(Kind::Durable, false, false, true));
}

#[test]
fn durable_keys_over_the_durable_tier_with_faults_and_crashes() {
    run_all(200, &plan(Kind::Durable, true, false, true));
    run_all(200, &plan(Kind::Durable, true, true, true));
}

#[test]
fn cached_keys() {
    run_all(300, &plan(Kind::Cache, false, false, false));
}

#[test]
fn cached_keys_with_faults() {
    run_all(300, &plan(Kind::Cache, true, false, false));
}

#[test]
fn cached_keys_with_crashes() {
    run_all(200, &plan(Kind::Cache, true, true, false));
}

#[test]
fn the_planted_fault_is_found() {
    for (kind, real_l3) in [(Kind::Durable, false), (Kind::Durable, true), (Kind::Cache, false)] {
        let sabotage = Sabotage { commit_promotion_after_purge: true };
        let plan = Plan { sabotage, ..plan(kind, false, false, real_l3) };
        let caught = (0..300).filter(|seed| history(*seed, &plan).is_err()).count();
        assert!(caught > 0, "{kind:?}: no history shows it");
    }
}
