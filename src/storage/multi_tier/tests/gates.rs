//! What a write admits where, while it streams.

use std::time::Duration;

use super::*;
use crate::{
    cache::TierOutcome,
    storage::memory::{Fault, Gate, Op},
};

fn gated() -> World {
    World::new(Setup { policy: json!({"l0_max": 1000, "l2_max": 3000}), ..Setup::default() })
}

#[test]
fn an_object_exactly_at_a_gate_is_admitted() {
    let world = gated();
    for (bytes, held) in [(0, "023"), (1000, "023"), (1001, "23"), (3000, "23"), (3001, "3")] {
        let body = body(bytes, 0);
        let stored = world.put(KEY, &body).expect("stored");
        assert_eq!(world.held(KEY), held, "{bytes}");
        assert_eq!(dropped(&stored, Tier::L0), (bytes > 1000).then_some(Reason::Gate), "{bytes}");
        assert_eq!(dropped(&stored, Tier::L2), (bytes > 3000).then_some(Reason::Gate), "{bytes}");
        assert_eq!(dropped(&stored, Tier::L1), Some(Reason::TierOff));
        assert!(stored.kept_by(Tier::L3));
        assert_eq!((stored.length, world.staged()), (bytes as u64, 0));
        world.got(KEY, &body);
    }
    let drops = world.tier.stats().tier(Tier::L0).write_drops.get(Reason::Gate);
    assert_eq!(drops, 3);
}

#[test]
fn one_that_grows_past_a_gate_leaves_that_tier_in_mid_stream() {
    let world = gated();
    let whole = body(2000, 0);
    let (first, rest) = (whole.slice(..1000), whole.slice(1000..));
    world.run(async {
        let mut miss =
            world.tier.get_miss_handler(&key(KEY), CacheMeta::default(), Precondition::None).await.expect("open");
        miss.write_body(first, false).await.expect("at the gate");
        assert_eq!(world.l0.staged_bytes(), 1000);
        miss.write_body(rest, false).await.expect("above it");
        assert_eq!(world.l0.staged_bytes(), 0, "what L0 had staged is gone at once");
        miss.write_body(Bytes::new(), true).await.expect("the end");
        let stored = miss.finish().await.expect("stored");
        assert_eq!(dropped(&stored, Tier::L0), Some(Reason::Gate));
        assert!(stored.kept_by(Tier::L2) && stored.kept_by(Tier::L3));
    });
    assert_eq!(world.held(KEY), "23");
    assert_eq!(world.got(KEY, &whole), Tier::L2);
}

#[test]
fn a_body_that_is_not_what_was_announced_stores_nothing() {
    let world =
        World::new(Setup { policy: json!({"namespaces": {"img": {"body_bytes_max": 5000}}}), ..Setup::default() });
    let old = body(10, 1);
    world.put(KEY, &old).expect("stored");
    let whole = body(100, 2);
    let attempt = |announced: CacheMeta, bytes: Bytes| {
        world.run(async {
            let mut miss = world.tier.get_miss_handler(&key(KEY), announced, Precondition::None).await?;
            miss.write_body(bytes, true).await?;
            miss.finish().await
        })
    };
    let of = |length: Option<u64>, checksum| CacheMeta { length, checksum, ..CacheMeta::default() };
    let sum = crc32fast::hash(&whole);
    for (announced, reason) in [
        (of(Some(99), None), Reason::BodyCut),
        (of(Some(101), None), Reason::BodyCut),
        (of(None, Some(sum ^ 1)), Reason::BodyMismatch),
        (of(Some(5001), None), Reason::BodyMax),
    ] {
        let refused = attempt(announced, whole.clone()).expect_err("refused");
        assert!(matches!(refused, CacheError::Refused(why) if why == reason), "{refused}");
        assert_eq!(world.staged(), 0);
    }
    let refused = attempt(of(None, None), body(5001, 0)).expect_err("too long");
    assert!(matches!(refused, CacheError::Refused(Reason::BodyMax)), "{refused}");
    world.got(KEY, &old);
    attempt(of(Some(100), Some(sum)), whole.clone()).expect("as announced");
    world.got(KEY, &whole);
}

#[test]
fn a_write_that_is_dropped_leaves_nothing() {
    let world = World::new(Setup { l1: true, ..Setup::default() });
    let old = body(10, 1);
    world.put(KEY, &old).expect("stored");
    for end in [false, true] {
        world.run(async {
            let mut miss =
                world.tier.get_miss_handler(&key(KEY), CacheMeta::default(), Precondition::None).await.expect("open");
            miss.write_body(body(5000, 0), end).await.expect("room");
            world.sim.rt().yield_now().await;
        });
        assert_eq!(world.staged(), 0);
    }
    assert_eq!(world.sim.tasks(), 0);
    assert_eq!(world.tier.stats().snapshot().lane_bytes, 0);
    world.got(KEY, &old);
}

#[test]
fn a_tier_that_falls_behind_is_dropped_and_the_writer_is_not_slowed() {
    let settings = Settings { fanout_lag_max: 10_000, ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() });
    let gate = Gate::new();
    world.l2.faults().inject(Op::Write, Fault::Hold(gate.clone()));
    let (short, long) = (body(5000, 1), body(50_000, 2));

    let started = world.sim.clock().elapsed();
    let stored = world.put(KEY, &long).expect("stored");
    assert_eq!(dropped(&stored, Tier::L2), Some(Reason::Lag));
    assert_eq!(world.sim.clock().elapsed(), started, "nobody waited");
    assert_eq!(world.held(KEY), "03");
    world.sim.run_for(Duration::from_secs(5));
    assert_eq!(world.held(KEY), "023", "L2 got it from L3, at its own pace");

    // Within the lag the end of the body is waited for, but not for ever: then the writer leaves it behind.
    world.l2.faults().inject(Op::Write, Fault::Hold(gate.clone()));
    let stored = world.put(KEY, &short).expect("stored");
    assert_eq!(stored.tiers[Tier::L2 as usize], Some(TierOutcome::Queued));
    assert_eq!(world.held(KEY), "03");
    // The next write poisons what is still under way: it comes too late even if it ends last.
    let next = body(5000, 3);
    world.put(KEY, &next).expect("stored");
    gate.open();
    world.sim.run_until_idle();
    assert_eq!((world.held(KEY), world.staged()), ("023".into(), 0));
    world.got(KEY, &next);
    let drops = &world.tier.stats().tier(Tier::L2).write_drops;
    assert_eq!((drops.get(Reason::Lag), drops.get(Reason::Poisoned)), (1, 1));

    // Left alone, it arrives.
    let gate = Gate::new();
    world.l2.faults().inject(Op::Write, Fault::Hold(gate.clone()));
    world.put(KEY, &short).expect("stored");
    gate.open();
    world.sim.run_until_idle();
    assert_eq!((world.held(KEY), world.staged()), ("023".into(), 0));
    world.got(KEY, &short);
}

#[test]
fn a_burst_of_small_chunks_is_no_lag() {
    let world = durable();
    let stored = world.run(async {
        let mut miss =
            world.tier.get_miss_handler(&key(KEY), CacheMeta::default(), Precondition::None).await.expect("open");
        for _ in 0..50_000 {
            miss.write_body(Bytes::from_static(b"x"), false).await.expect("room");
        }
        miss.write_body(Bytes::new(), true).await.expect("the end");
        miss.finish().await.expect("stored")
    });
    assert!(stored.kept_by(Tier::L2), "{stored:?}");
}

#[test]
fn a_tier_that_fails_is_dropped_unless_it_acknowledges() {
    let world = durable();
    let (old, new) = (body(2000, 1), body(2000, 2));
    for op in [Op::Begin, Op::Write, Op::Finish] {
        for tier in [Tier::L0, Tier::L2] {
            world.put(KEY, &old).expect("stored");
            world.store(tier).faults().inject(op, Fault::Failed(Reason::Io));
            let stored = world.put(KEY, &new).expect("L3 has it");
            assert_eq!(dropped(&stored, tier), Some(Reason::Io), "{op:?}");
            assert_eq!(world.store(tier).peek(&key(KEY)), None, "the old copy is gone: {op:?}");
            assert_ne!(world.got(KEY, &new), tier);
        }
        world.put(KEY, &old).expect("stored");
        world.l3.faults().inject(op, Fault::Failed(Reason::Unavailable));
        let failed = world.put(KEY, &new).expect_err("L3 acknowledges");
        assert!(matches!(failed, CacheError::Unavailable { reason: Reason::Unavailable, .. }), "{op:?}: {failed}");
        assert_eq!((world.held(KEY), world.staged()), ("023".into(), 0));
        world.got(KEY, &old);
    }
    assert_eq!(world.tier.in_doubt(), 0);
}

#[test]
fn flash_filled_by_eviction_takes_what_turns_out_too_large_for_ram() {
    let policy = json!({"l0_max": 1000, "l2_fill": "on_evict"});
    let world = World::new(Setup { policy, ..Setup::default() });
    let stored = world.put(KEY, &body(1000, 0)).expect("stored");
    assert_eq!((dropped(&stored, Tier::L2), &*world.held(KEY)), (Some(Reason::OnEvict), "03"));
    for path in [KEY, CACHED] {
        for (bytes, held) in [(1000, "0"), (1001, "2")] {
            let body = body(bytes, 3);
            world.run(write(&world.tier, path, &body, None, Precondition::None)).expect("stored");
            let held = if path == KEY { format!("{held}3") } else { held.into() };
            assert_eq!(world.held(path), held, "{path}, {bytes} bytes of unknown length");
            world.got(path, &body);
        }
    }
    assert_eq!(world.staged(), 0);
}
