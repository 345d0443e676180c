//! A bridge is a `Storage` wherever the real one lives, alone or as the way to another shard; and what it does when
//! either side leaves.

use std::{collections::BTreeSet, rc::Rc, thread, time::Duration};

use engine::{
    mailbox::{self, oneshot},
    rt::{
        Rt,
        sim::{Sim, SimClock},
    },
};
use futures_lite::future::{block_on, or, poll_once};
use strata::{
    cache::{CacheError, CacheMeta, Found, HitHandler, MissHandler, Precondition, Storage, Tier, Trust, Version},
    reason::Reason,
    server::dispatch::Dispatch,
    storage::{
        bridge::{Ask, Bridge, STREAMS_MAX, TASKS_MAX, serve},
        memory::{Fault, Gate, MemoryStore, Op},
    },
    tokio_rt::TokioRt,
    version::VersionClock,
};

use crate::{
    storage::{Caps, suite},
    support::{TestClock, body, drain, get, key, meta_of, put, put_with},
};

const CREDITS: usize = 64;

/// A store of the given tier behind a bridge, both in one simulated world.
fn bridged(sim: &Sim, tier: Tier) -> (Bridge, MemoryStore<SimClock>) {
    let store = MemoryStore::new(tier, 512 << 20, sim.clock().clone(), VersionClock::new(1));
    let asks = mailbox::mailbox::<Ask>(CREDITS);
    let bridge = Bridge::new(asks.sender(CREDITS).expect("all credits"));
    sim.rt().spawn(serve(sim.rt(), Rc::new(store.clone()), asks));
    (bridge, store)
}

/// Lets the other tasks run until `done`.
async fn until(rt: &impl Rt, done: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if done() {
            return;
        }
        rt.yield_now().await;
    }
    panic!("it never came to it");
}

#[test]
fn a_bridge_is_a_storage_under_any_schedule() {
    for seed in 0..6 {
        let sim = Sim::new(seed);
        let tier = if seed % 2 == 0 { Tier::L0 } else { Tier::L3 };
        let caps = match tier {
            Tier::L3 => Caps { updates_headers: true, ..Caps::durable() },
            _ => Caps::cache(tier),
        };
        sim.block_on(suite(async || bridged(&sim, tier).0, sim.clock(), caps));
    }
}

/// The door's view of three shards: the middle one's own storage and bridges to the others.
#[test]
fn all_shards_behind_one_are_a_storage() {
    for seed in 0..3 {
        let sim = Sim::new(seed);
        let make = async || {
            let own = MemoryStore::new(Tier::L0, 512 << 20, sim.clock().clone(), VersionClock::new(1));
            let other = || Some(bridged(&sim, Tier::L0).0);
            Dispatch::new(1, Rc::new(own), vec![other(), None, other()])
        };
        sim.block_on(suite(make, sim.clock(), Caps::cache(Tier::L0)));
    }
    let owners: BTreeSet<_> = (0..12).map(|i| key(&format!("k{i}")).shard(3)).collect();
    assert_eq!(owners.len(), 3, "the suite's walk goes to all of them");
}

#[test]
fn a_bridge_crosses_real_threads() {
    let clock = TestClock::start();
    let (client, clients) = oneshot();
    let server_clock = clock.clone();
    let server = thread::spawn(move || {
        TokioRt::run(server_clock.clone(), async |rt| {
            let asks = mailbox::mailbox::<Ask>(CREDITS);
            assert!(client.send(asks.sender(CREDITS).expect("all credits")).is_ok());
            let store = MemoryStore::new(Tier::L2, 512 << 20, server_clock, VersionClock::new(1));
            serve(rt, Rc::new(store), asks).await;
        })
    });
    let sender = clients.wait_blocking().expect("the server starts");
    // All checks share one store: their keys differ, but not between seeds of the random one.
    let bridge = Bridge::new(sender);
    block_on(async {
        for i in 0..200 {
            let length = [0, 10, 65_536, 65_537, 1_000_000][i % 5];
            let (name, bytes) = (key(&format!("k{}", i % 7)), body(i as u64, length));
            put(&bridge, &name, &bytes).await;
            assert_eq!(get(&bridge, &name).await.expect("a hit").1, bytes);
        }
    });
    drop(bridge);
    server.join().expect("no panic").expect("the server ends when its clients are gone");
}

#[test]
fn small_writes_say_nothing_before_they_finish() {
    let sim = Sim::new(1);
    sim.block_on(async {
        let (bridge, store) = bridged(&sim, Tier::L0);
        let bytes = body(1, 1_000);
        let mut miss = bridge.get_miss_handler(&key("a"), meta_of(&bytes), Precondition::Absent).await.expect("begun");
        miss.write_body(bytes.clone(), true).await.expect("kept");
        sim.rt().sleep(Duration::from_secs(1)).await;
        assert_eq!(store.faults().seen(Op::Begin), 0);
        miss.finish().await.expect("stored");
        assert_eq!(get(&bridge, &key("a")).await.expect("a hit").1, bytes);
        // What is refused over there comes back from `finish`.
        let refused = put_with(&bridge, &key("a"), meta_of(&bytes), Precondition::Absent, &bytes, 100).await;
        assert!(matches!(refused, Err(CacheError::Precondition { current: Some(_) })));
    });
}

#[test]
fn large_writes_are_refused_before_their_body() {
    let sim = Sim::new(2);
    sim.block_on(async {
        let (bridge, store) = bridged(&sim, Tier::L2);
        store.faults().inject(Op::Begin, Fault::Refused(Reason::DiskFull));
        let meta = CacheMeta { length: Some(1 << 20), ..CacheMeta::default() };
        let refused = bridge.get_miss_handler(&key("a"), meta.clone(), Precondition::None).await;
        assert!(matches!(refused, Err(CacheError::Refused(Reason::DiskFull))));
        // An error in the middle is told where it is noticed, under its own name.
        store.faults().inject(Op::Write, Fault::Refused(Reason::NoRoom));
        let bytes = body(1, 1 << 20);
        let failed = put_with(&bridge, &key("a"), meta.clone(), Precondition::None, &bytes, 50_000).await;
        assert!(matches!(failed, Err(CacheError::Refused(Reason::NoRoom))), "{failed:?}");
        // Even when all of the body was sent by then.
        let gate = Gate::new();
        store.faults().inject(Op::Write, Fault::Hold(gate.clone()));
        store.faults().inject(Op::Write, Fault::Failed(Reason::Io));
        let short = body(2, 100_000);
        let mut miss =
            bridge.get_miss_handler(&key("a"), CacheMeta::default(), Precondition::None).await.expect("begun");
        miss.write_body(short.slice(..50_000), false).await.expect("sent");
        miss.write_body(short.slice(50_000..), true).await.expect("sent");
        gate.open();
        assert!(matches!(miss.finish().await, Err(CacheError::Unavailable { reason: Reason::Io, .. })));
        assert_eq!((store.objects(), store.staged_bytes()), (0, 0));
    });
}

#[test]
fn a_look_up_carries_tier_trust_and_reason_and_reads_no_large_body() {
    let sim = Sim::new(3);
    sim.block_on(async {
        let (bridge, store) = bridged(&sim, Tier::L2);
        let large = body(1, 1 << 20);
        put(&bridge, &key("large"), &large).await;
        put(&bridge, &key("small"), &body(2, 60_000)).await;
        store.suspect_all();
        for name in ["large", "small"] {
            let (_, hit) = bridge.lookup(&key(name)).await.expect("an answer").expect("a hit");
            assert_eq!((hit.tier(), hit.trust()), (Tier::L2, Trust::Suspect));
        }
        let reads = store.faults().seen(Op::Read);
        let (_, mut hit) = bridge.lookup(&key("large")).await.expect("an answer").expect("a hit");
        assert_eq!(hit.remaining(), 1 << 20);
        sim.rt().sleep(Duration::from_secs(1)).await;
        assert_eq!(store.faults().seen(Op::Read), reads);
        hit.seek((1 << 20) - 10..1 << 20).expect("within");
        assert_eq!(drain(hit).await.expect("whole"), large.slice((1 << 20) - 10..));
        assert_eq!(store.faults().seen(Op::Read), reads + 1, "only what the range needs");

        store.faults().inject(Op::Lookup, Fault::Corrupted);
        assert!(matches!(bridge.find(&key("small")).await, Ok(Found::Miss(Reason::Corrupted))));
        put(&bridge, &key("small"), &body(2, 60_000)).await;
        store.faults().inject(Op::Read, Fault::Corrupted);
        assert!(
            matches!(bridge.find(&key("small")).await, Ok(Found::Miss(Reason::Corrupted))),
            "damage of a small body"
        );
        store.faults().inject(Op::Lookup, Fault::Failed(Reason::Io));
        assert!(matches!(bridge.find(&key("small")).await, Err(CacheError::Unavailable { reason: Reason::Io, .. })));
        store.set_chunk_bytes(100_000);
        let (_, mut hit) = bridge.lookup(&key("large")).await.expect("an answer").expect("a hit");
        hit.read_body().await.expect("readable").expect("a chunk");
        store.faults().inject(Op::Read, Fault::Corrupted);
        assert!(matches!(drain(hit).await, Err(CacheError::Corrupted { .. })), "a cut body says why");
    });
}

#[test]
fn whoever_leaves_is_noticed() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        sim.block_on(async {
            let (bridge, store) = bridged(&sim, Tier::L2);
            let (rt, large) = (sim.rt(), body(1, 2 << 20));
            // A write dropped in the middle.
            let mut miss =
                bridge.get_miss_handler(&key("a"), meta_of(&large), Precondition::None).await.expect("begun");
            miss.write_body(large.slice(..1_000_000), false).await.expect("sent");
            drop(miss);
            until(&rt, || store.staged_bytes() == 0).await;
            // One dropped after its whole body, and one while it waits to begin.
            let mut miss =
                bridge.get_miss_handler(&key("a"), meta_of(&large), Precondition::None).await.expect("begun");
            miss.write_body(large.clone(), true).await.expect("sent");
            drop(miss);
            let gate = Gate::new();
            store.faults().inject(Op::Begin, Fault::Hold(gate.clone()));
            let begin = async {
                drop(bridge.get_miss_handler(&key("a"), meta_of(&large), Precondition::None).await);
            };
            or(begin, until(&rt, || gate.arrived() == 1)).await;
            until(&rt, || store.staged_bytes() == 0).await;
            assert_eq!(store.objects(), 0);
            // A look-up given up, a hit dropped unread, and one dropped half-read.
            put(&bridge, &key("a"), &large).await;
            store.faults().inject(Op::Lookup, Fault::Hold(gate.clone()));
            or(async { drop(bridge.lookup(&key("a")).await) }, until(&rt, || gate.arrived() == 2)).await;
            drop(bridge.lookup(&key("a")).await.expect("an answer").expect("a hit"));
            let (_, mut hit) = bridge.lookup(&key("a")).await.expect("an answer").expect("a hit");
            hit.read_body().await.expect("readable").expect("a chunk");
            drop(hit);
            // Then nothing is left over there but the serving loop.
            until(&rt, || sim.tasks() == 1).await;
            drop(bridge);
            until(&rt, || sim.tasks() == 0).await;
        });
    }
}

#[test]
fn a_commit_and_a_purge_run_to_their_end_without_their_client() {
    for (seed, length) in [(1, 100), (2, 200_000), (3, 100), (4, 200_000)] {
        let sim = Sim::new(seed);
        sim.block_on(async {
            let (bridge, store) = bridged(&sim, Tier::L3);
            let (rt, bytes, gate) = (sim.rt(), body(1, length), Gate::new());
            store.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
            let mut miss =
                bridge.get_miss_handler(&key("a"), meta_of(&bytes), Precondition::None).await.expect("begun");
            miss.write_body(bytes.clone(), true).await.expect("sent");
            or(async { drop(miss.finish().await) }, until(&rt, || gate.arrived() == 1)).await;
            gate.open();
            until(&rt, || store.objects() == 1).await;
            assert_eq!(get(&bridge, &key("a")).await.expect("a hit").1, bytes);

            let gate = Gate::new();
            store.faults().inject(Op::Purge, Fault::Hold(gate.clone()));
            let purge = async { drop(bridge.purge(&key("a"), Precondition::None).await) };
            or(purge, until(&rt, || gate.arrived() == 1)).await;
            gate.open();
            until(&rt, || store.objects() == 0).await;
        });
    }
}

#[test]
fn places_that_wait_for_clients_stop_nobody() {
    let sim = Sim::new(9);
    sim.block_on(async {
        let (bridge, store) = bridged(&sim, Tier::L2);
        let large = body(1, 70_000);
        put(&bridge, &key("a"), &large).await;
        let mut hits = Vec::new();
        for _ in 0..STREAMS_MAX {
            hits.push(bridge.lookup(&key("a")).await.expect("an answer").expect("a hit").1);
        }
        let overload = bridge.lookup(&key("a")).await;
        assert!(matches!(overload, Err(CacheError::Unavailable { reason: Reason::Overload, .. })));
        // Small requests go on, and so do the bodies that have their place.
        put(&bridge, &key("b"), &body(2, 10)).await;
        assert!(drain(hits.pop().expect("many")).await.expect("whole") == large);
        until(&sim.rt(), || sim.tasks() < STREAMS_MAX + 1).await;
        let mut miss = bridge.get_miss_handler(&key("c"), meta_of(&large), Precondition::None).await.expect("a place");
        // Every place for requests taken by slow ones: a write that has begun can still finish.
        let gate = Gate::new();
        for _ in 0..TASKS_MAX {
            store.faults().inject(Op::Lookup, Fault::Hold(gate.clone()));
            let bridge = bridge.clone();
            sim.rt().spawn(async move { drop(bridge.lookup(&key("a")).await) });
        }
        until(&sim.rt(), || gate.arrived() == TASKS_MAX).await;
        miss.write_body(large.clone(), true).await.expect("sent");
        miss.finish().await.expect("stored");
        let name = key("b");
        let behind = bridge.lookup(&name);
        let mut behind = std::pin::pin!(behind);
        assert!(poll_once(behind.as_mut()).await.is_none());
        gate.open();
        assert!(behind.await.expect("an answer").is_some());
    });
}

#[test]
fn a_server_that_dies_leaves_doubt_only_where_there_is_any() {
    // The store holds whatever is asked of it next, and the thread ends while it does.
    fn dying(op: Op, ask: impl AsyncFnOnce(Bridge) -> CacheError) -> CacheError {
        let (client, clients) = oneshot();
        let server = thread::spawn(move || {
            let clock = TestClock::start();
            TokioRt::run(clock.clone(), async |rt| {
                let asks = mailbox::mailbox::<Ask>(CREDITS);
                let sender = asks.sender(CREDITS).expect("all credits");
                let store = MemoryStore::new(Tier::L3, 512 << 20, clock, VersionClock::new(1));
                put(&store, &key("there"), &body(1, 200_000)).await;
                let gate = Gate::new();
                store.faults().inject(op, Fault::Hold(gate.clone()));
                rt.spawn(serve(rt.clone(), Rc::new(store), asks));
                assert!(client.send(sender).is_ok());
                while gate.arrived() == 0 {
                    rt.sleep(Duration::from_millis(1)).await;
                }
            })
        });
        let bridge = Bridge::new(clients.wait_blocking().expect("the server starts"));
        let error = block_on(ask(bridge.clone()));
        server.join().expect("no panic").expect("a runtime");
        assert!(bridge.is_closed());
        assert!(matches!(block_on(bridge.lookup(&key("there"))), Err(CacheError::Unavailable { .. })));
        assert!(matches!(
            block_on(bridge.purge(&key("there"), Precondition::None)),
            Err(CacheError::Unavailable { .. })
        ));
        error
    }
    let put_of = |length| {
        async move |bridge: Bridge| {
            let bytes = body(3, length);
            put_with(&bridge, &key("a"), meta_of(&bytes), Precondition::None, &bytes, 9_000).await.expect_err("it died")
        }
    };
    let unavailable = |error: CacheError| matches!(error, CacheError::Unavailable { reason: Reason::Unavailable, .. });
    let unknown = |error: CacheError| matches!(error, CacheError::OutcomeUnknown { .. });
    assert!(unavailable(dying(Op::Lookup, async |bridge| bridge.lookup(&key("there")).await.err().expect("it died"))));
    assert!(unavailable(dying(Op::Begin, put_of(300_000))));
    assert!(unavailable(dying(Op::Write, put_of(3_000_000))));
    assert!(unavailable(dying(Op::Read, async |bridge| {
        let (_, hit) = bridge.lookup(&key("there")).await.expect("an answer").expect("a hit");
        drain(hit).await.expect_err("it died")
    })));
    assert!(unknown(dying(Op::Finish, put_of(10))));
    assert!(unknown(dying(Op::Finish, put_of(300_000))));
    assert!(unknown(dying(Op::Purge, async |bridge| {
        bridge.purge(&key("there"), Precondition::None).await.expect_err("it died")
    })));
    assert!(unknown(dying(Op::Update, async |bridge| {
        let meta = CacheMeta { version: Version(1), ..CacheMeta::default() };
        bridge.update_meta(&key("there"), meta).await.expect_err("it died")
    })));
}
