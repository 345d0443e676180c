//! What reads copy upwards, and what they do not.

use std::time::Duration;

use super::*;
use crate::storage::memory::{Fault, Gate, Op};

const L0_ONLY: &[Tier] = &[Tier::L0];

/// The object in L1 and L3 / in L2 and L3 / in L3.
fn world_with(policy: Value, l1: bool) -> World {
    World::new(Setup { policy, l1, ..Setup::default() })
}

#[test]
fn the_matrix() {
    let all = [Tier::L0, Tier::L1, Tier::L2];
    // From, what is promoted into L0, L1, L2 by policy, and which tiers hold it then.
    for (from, promote, held) in [
        (Tier::L1, [true, true, true], "013"),
        (Tier::L1, [false, true, true], "13"),
        (Tier::L2, [true, true, true], "0123"),
        (Tier::L2, [false, true, true], "123"),
        (Tier::L2, [true, false, true], "023"),
        (Tier::L3, [true, true, true], "0123"),
        (Tier::L3, [true, false, false], "03"),
        (Tier::L3, [false, true, false], "13"),
        (Tier::L3, [false, false, true], "23"),
        (Tier::L3, [false, false, false], "3"),
    ] {
        let [l0, l1, l2] = promote.map(|on| if on { "on_stream_commit_at_finish" } else { "never" });
        let world = world_with(json!({"promote_l0": l0, "promote_l1": l1, "promote_l2": l2}), true);
        let body = body(2500, 0);
        let others: Vec<Tier> = all.into_iter().filter(|tier| *tier != from).collect();
        world.put_below(KEY, &body, &others);
        assert_eq!(world.got(KEY, &body), from, "{promote:?}");
        assert_eq!(world.held(KEY), held, "from {from:?}, {promote:?}");
        let committed: u64 = all.iter().map(|tier| world.tier.stats().tier(*tier).promotions.get()).sum();
        assert_eq!(committed as usize, held.len() - if from == Tier::L3 { 1 } else { 2 });
        assert_eq!((world.staged(), world.sim.tasks(), world.tier.stats().snapshot().fills), (0, 0, 0));
    }
}

#[test]
fn an_empty_object_is_promoted_too() {
    let world = durable();
    world.put_below(KEY, &Bytes::new(), &[Tier::L0, Tier::L2]);
    assert_eq!(world.got(KEY, &Bytes::new()), Tier::L3);
    assert_eq!(world.held(KEY), "023");
}

/// A key whose bytes are shared already, as those of a request are: the first clone of others allocates.
fn shared_key() -> CacheKey {
    key(KEY).clone()
}

#[test]
fn what_is_not_promoted_costs_nothing() {
    let never = json!({"promote_l0": "never", "promote_l1": "never", "promote_l2": "never"});
    let (body, key) = (body(2500, 0), shared_key());
    for policy in [never, json!({"l0_max": 2499, "l2_max": 2499})] {
        let world = world_with(policy, false);
        world.put_below(KEY, &body, &[Tier::L0, Tier::L2]);
        let (begins, finishes) = (world.l0.faults().seen(Op::Begin), world.l2.faults().seen(Op::Begin));
        let through = || {
            futures_lite::future::block_on(async {
                let (_, hit) = world.tier.lookup(&key).await.expect("readable").expect("there");
                drain(hit).await;
            })
        };
        let straight = || {
            futures_lite::future::block_on(async {
                let (_, hit) = world.l3.lookup(&key).await.expect("readable").expect("there");
                drain(hit).await;
            })
        };
        // Once to warm tables up.
        through();
        straight();
        let (through, straight) = (allocations::count(through).0, allocations::count(straight).0);
        assert_eq!(through, straight, "allocations");
        assert_eq!(world.sim.tasks(), 0, "workers");
        assert_eq!((world.l0.faults().seen(Op::Begin), world.l2.faults().seen(Op::Begin)), (begins, finishes));
        assert_eq!(world.held(KEY), "3");
    }
}

#[test]
fn ranges_and_heads_cost_nothing() {
    let world = durable();
    let (body, key) = (body(2500, 0), shared_key());
    world.put_below(KEY, &body, &[Tier::L0, Tier::L2]);
    let range = |world: &World| {
        futures_lite::future::block_on(async {
            let (_, mut hit) = world.tier.lookup(&key).await.expect("readable").expect("there");
            hit.seek(100..1200).expect("within");
            let mut got = 0;
            while let Some(chunk) = hit.read_body().await.expect("sound") {
                assert_eq!(chunk, body.slice(100 + got..100 + got + chunk.len()));
                got += chunk.len();
            }
            assert_eq!(got, 1100);
        });
    };
    let head = |world: &World| {
        let found = futures_lite::future::block_on(world.tier.lookup(&key)).expect("readable");
        assert_eq!(found.expect("there").0.length, Some(2500));
    };
    for read in [&range as &dyn Fn(&World), &head] {
        read(&world);
        let (allocations, ()) = allocations::count(|| read(&world));
        assert_eq!((allocations, world.sim.tasks()), (0, 0));
    }
    assert_eq!((world.held(KEY), world.tier.stats().snapshot().fills), ("3".into(), 0));
    assert_eq!(world.l0.faults().seen(Op::Begin), 1, "the put");
    // A range that is the whole body is a whole read.
    world.run(async {
        let (_, mut hit) = world.tier.lookup(&key).await.expect("readable").expect("there");
        hit.seek(0..2500).expect("within");
        while hit.read_body().await.expect("sound").is_some() {}
    });
    assert_eq!(world.held(KEY), "023");
}

/// Begins a read of the key and takes the first chunk.
async fn first_chunk(tier: &Under, path: &str) -> <Under as Storage>::Hit {
    let (_, mut hit) = tier.lookup(&key(path)).await.expect("readable").expect("there");
    assert!(hit.read_body().await.expect("sound").is_some());
    hit
}

async fn drain(mut hit: impl HitHandler) {
    while hit.read_body().await.expect("sound").is_some() {}
}

#[test]
fn a_reader_who_leaves_promotes_nothing() {
    let world = world_with(json!({}), true);
    world.put_below(KEY, &body(2500, 0), &[Tier::L0, Tier::L1, Tier::L2]);
    world.run(async {
        let hit = first_chunk(&world.tier, KEY).await;
        assert_eq!(world.l0.staged_bytes(), 1000);
        drop(hit);
    });
    assert_eq!((world.held(KEY), world.staged(), world.sim.tasks()), ("3".into(), 0, 0));
    for tier in [Tier::L0, Tier::L1, Tier::L2] {
        assert_eq!(world.promotion_drops(tier), [(Reason::Partial, 1)], "{tier:?}");
    }
}

#[test]
fn a_full_channel_drops_the_promotion_and_not_the_reader() {
    let settings = Settings { promote_lag_max: 5000, ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() });
    let body = body(50_000, 0);
    world.put_below(KEY, &body, &[Tier::L0, Tier::L2]);
    let gate = Gate::new();
    world.l2.faults().inject(Op::Write, Fault::Hold(gate.clone()));
    let started = world.sim.clock().elapsed();
    assert_eq!(world.got(KEY, &body), Tier::L3);
    assert_eq!(world.sim.clock().elapsed(), started, "the reader did not wait");
    gate.open();
    world.sim.run_for(Duration::from_secs(1));
    assert_eq!(world.promotion_drops(Tier::L2), [(Reason::QueueFull, 1)]);
    assert_eq!((world.held(KEY), world.staged()), ("023".into(), 0), "L2 got it at its own pace");
    assert_eq!(world.tier.stats().snapshot().lane_bytes, 0);
}

#[test]
fn errors_above_are_not_the_readers() {
    let world = durable();
    let body = body(2500, 0);
    for op in [Op::Begin, Op::Write, Op::Finish] {
        world.put_below(KEY, &body, &[Tier::L0, Tier::L2]);
        world.l0.faults().inject(op, Fault::Refused(Reason::NoRoom));
        world.l2.faults().inject(op, Fault::Failed(Reason::Io));
        assert_eq!(world.got(KEY, &body), Tier::L3, "{op:?}");
        assert_eq!((world.held(KEY), world.staged()), ("3".into(), 0));
    }
    assert_eq!(world.promotion_drops(Tier::L0), [(Reason::NoRoom, 3)]);
    assert_eq!(world.promotion_drops(Tier::L2), [(Reason::Io, 3)]);
    world.put_below(KEY, &body, L0_ONLY);
    for (tier, from) in [(Tier::L2, Tier::L3), (Tier::L0, Tier::L3)] {
        world.store(tier).faults().inject(Op::Lookup, Fault::Failed(Reason::Io));
        world.run(world.l0.purge(&key(KEY), Precondition::None)).expect("purged");
        world.l2.faults().inject(Op::Lookup, Fault::Failed(Reason::Io));
        assert_eq!(world.got(KEY, &body), from);
        world.l2.faults().clear();
    }
}

#[test]
fn a_fill_that_was_overtaken_publishes_nothing() {
    for sabotage in [false, true] {
        for remove in [false, true] {
            let sabotage = Sabotage { commit_promotion_after_purge: sabotage };
            let world = World::new(Setup { sabotage, ..Setup::default() });
            let (old, new) = (body(2500, 1), body(2500, 2));
            world.put_below(KEY, &old, &[Tier::L0, Tier::L2]);
            let overtaken = world.run(async {
                let hit = first_chunk(&world.tier, KEY).await;
                if remove {
                    world.tier.purge(&key(KEY), Precondition::None).await.expect("purged");
                } else {
                    write(&world.tier, KEY, &new, None, Precondition::None).await.expect("stored");
                    // As eviction does.
                    world.l0.purge(&key(KEY), Precondition::None).await.expect("purged");
                    world.l2.purge(&key(KEY), Precondition::None).await.expect("purged");
                }
                drain(hit).await;
                world.sim.rt().sleep(Duration::from_millis(1)).await;
                read(&world.tier, KEY).await.expect("readable").map(|(_, _, got)| got)
            });
            match (sabotage.commit_promotion_after_purge, remove) {
                (true, _) => assert_eq!(overtaken, Some(old), "the planted fault shows the old object"),
                (false, true) => assert_eq!(overtaken, None),
                (false, false) => assert_eq!(overtaken, Some(new)),
            }
            let poisoned = world.promotion_drops(Tier::L0).contains(&(Reason::Poisoned, 1))
                && world.promotion_drops(Tier::L2).contains(&(Reason::Poisoned, 1));
            assert_eq!(poisoned, !sabotage.commit_promotion_after_purge);
        }
    }
}

#[test]
fn a_purge_outruns_a_fill_that_hangs_in_its_tier() {
    let world = durable();
    let body = body(2500, 0);
    world.put_below(KEY, &body, &[Tier::L0, Tier::L2]);
    let gate = Gate::new();
    world.l2.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
    world.got(KEY, &body);
    assert_eq!((gate.arrived(), world.staged()), (1, 2500), "the worker is inside L2's finish");
    let started = world.sim.clock().elapsed();
    let report = world.run(world.tier.purge(&key(KEY), Precondition::None)).expect("purged");
    assert!(report.removed.is_some() && report.tiers[Tier::L0 as usize]);
    assert!(world.sim.clock().elapsed() - started >= Settings::default().publish_wait);
    assert!(world.get(KEY).expect("readable").is_none());

    gate.open();
    // Between the publication of what was purged and its removal there are awaits; no read sees it at any of them.
    while world.sim.tasks() > 0 && world.sim.step() {
        let found = futures_lite::future::block_on(world.tier.lookup(&key(KEY))).expect("readable");
        assert!(found.is_none());
    }
    assert_eq!((world.held(KEY), world.staged()), (String::new(), 0));
    world.put(KEY, &body).expect("the turn is free again");
}

#[test]
fn a_write_waits_for_a_fill_inside_its_tier_and_not_longer() {
    let world = durable();
    let (old, new) = (body(2500, 1), body(2500, 2));
    world.put_below(KEY, &old, &[Tier::L0, Tier::L2]);
    let gate = Gate::new();
    world.l2.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
    world.got(KEY, &old);
    let tier = world.tier.clone();
    let writer = start(&world.sim.rt(), {
        let new = new.clone();
        async move { write(&tier, KEY, &new, None, Precondition::None).await }
    });
    world.sim.run_until_idle();
    assert!(writer.borrow().is_none(), "it waits");
    assert_eq!(world.got(KEY, &old), Tier::L0, "readers do not");
    gate.open();
    world.sim.run_until_idle();
    writer.borrow_mut().take().expect("done").expect("stored");
    assert_eq!((world.held(KEY), world.got(KEY, &new)), ("023".into(), Tier::L0));
}

#[test]
fn one_fill_a_key_and_tier_is_enough() {
    let world = durable();
    world.put_below(KEY, &body(2500, 0), &[Tier::L0, Tier::L2]);
    world.run(async {
        let one = first_chunk(&world.tier, KEY).await;
        let two = first_chunk(&world.tier, KEY).await;
        assert_eq!(world.l0.staged_bytes(), 1000);
        drain(two).await;
        drain(one).await;
    });
    assert_eq!(world.held(KEY), "023");
    assert_eq!(world.promotion_drops(Tier::L0), [(Reason::FillRunning, 1)]);
}

#[test]
fn a_read_that_loses_its_flash_copy_goes_on_from_l3() {
    let world = durable();
    let (body, other) = (body(2500, 0), body(2500, 9));
    for (reads_before, fault) in [(0, Fault::Failed(Reason::Io)), (1, Fault::Corrupted), (2, Fault::Corrupted)] {
        world.put_below(KEY, &body, L0_ONLY);
        let got = world.run(async {
            let (_, mut hit) = world.tier.lookup(&key(KEY)).await.expect("readable").expect("there");
            assert_eq!(hit.tier(), Tier::L2);
            let mut got = Vec::new();
            for _ in 0..reads_before {
                got.extend_from_slice(&hit.read_body().await.expect("sound").expect("more"));
            }
            world.l2.faults().inject(Op::Read, fault);
            while let Some(chunk) = hit.read_body().await.expect("L3 has it") {
                got.extend_from_slice(&chunk);
            }
            assert_eq!((hit.tier(), hit.remaining()), (Tier::L3, 0));
            got
        });
        assert_eq!(got, body);
        assert_eq!(world.held(KEY), "023");
    }
    assert_eq!(world.tier.stats().snapshot().reads_continued, 3);
    // Replaced meanwhile: the body is cut.
    world.put_below(KEY, &body, L0_ONLY);
    world.run(async {
        let mut hit = first_chunk(&world.tier, KEY).await;
        write(&world.tier, KEY, &other, None, Precondition::None).await.expect("stored");
        world.l2.faults().inject(Op::Read, Fault::Corrupted);
        assert!(matches!(hit.read_body().await, Err(CacheError::Corrupted { .. })));
    });
    world.got(KEY, &other);
}

#[test]
fn a_body_that_is_not_the_object_is_cut_and_not_promoted() {
    let world = durable();
    world.put_below(KEY, &body(2500, 0), &[Tier::L0, Tier::L2]);
    world.l3.faults().inject(Op::Read, Fault::WrongBytes);
    let cut = world.get(KEY).expect_err("cut");
    assert!(matches!(cut, CacheError::Corrupted { .. }), "{cut}");
    assert_eq!((world.held(KEY), world.staged()), ("3".into(), 0));
    assert_eq!(world.promotion_drops(Tier::L0), [(Reason::BodyMismatch, 1)]);
}
