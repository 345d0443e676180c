//! Cache-only namespaces: L0 or L2 acknowledges.

use std::time::Duration;

use super::*;
use crate::storage::memory::{Fault, Gate, Op};

/// A cache with flash that is filled by writes.
fn cache(policy: Value) -> World {
    World::new(Setup { policy, ..Setup::default() })
}

#[test]
fn a_small_object_is_in_ram_and_flash_gets_it_when_it_leaves() {
    let world = cache(json!({}));
    let bytes = body(2500, 1);
    let stored = world.put(CACHED, &bytes).expect("stored");
    assert_eq!(
        (dropped(&stored, Tier::L2), dropped(&stored, Tier::L3)),
        (Some(Reason::OnEvict), Some(Reason::TierOff))
    );
    assert_eq!(world.held(CACHED), "0");
    evict(&world, CACHED);
    assert_eq!(world.held(CACHED), "", "on its way");
    world.sim.run_until_idle();
    assert_eq!(world.held(CACHED), "2");
    assert_eq!(world.got(CACHED, &bytes), Tier::L2);
    assert_eq!(world.held(CACHED), "02");
    let stats = world.tier.stats().snapshot();
    assert_eq!((stats.tier(Tier::L2).demotions, stats.tier(Tier::L0).evictions), (1, 1));
    // A newer copy above invalidates the one on flash at once.
    world.put(CACHED, &body(10, 2)).expect("stored");
    assert_eq!(world.held(CACHED), "0");
}

/// What L0 does when it needs room.
fn evict(world: &World, path: &str) {
    let evicted = futures_lite::future::block_on(async {
        let (meta, mut hit) = world.l0.lookup(&key(path)).await.expect("readable").expect("there");
        let mut body = Vec::new();
        while let Some(chunk) = hit.read_body().await.expect("sound") {
            body.extend_from_slice(&chunk);
        }
        world.l0.purge(&key(path), Precondition::None).await.expect("purged");
        (meta, body)
    });
    world.tier.evicted_from_l0(key(path), evicted.0, evicted.1.into());
}

#[test]
fn a_demotion_is_overtaken_by_writes_and_purges() {
    for purge in [false, true] {
        let world = cache(json!({}));
        world.put(CACHED, &body(100, 1)).expect("stored");
        let gate = Gate::new();
        world.l2.faults().inject(Op::Write, Fault::Hold(gate.clone()));
        evict(&world, CACHED);
        world.sim.run_until_idle();
        if purge {
            let report = world.run(world.tier.purge(&key(CACHED), Precondition::None)).expect("purged");
            assert_eq!(report.removed, None, "it was in no tier");
        } else {
            world.put(CACHED, &body(100, 2)).expect("stored");
        }
        gate.open();
        world.sim.run_until_idle();
        assert_eq!(world.held(CACHED), if purge { "" } else { "0" });
        assert_eq!(world.tier.stats().tier(Tier::L2).demotion_drops.get(Reason::Poisoned), 1);
    }
}

#[test]
fn demotions_are_bounded_and_none_begins_beside_a_commit() {
    let settings = Settings { demote_bytes_max: 2000, ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() });
    let paths = ["memcached/1", "memcached/2", "memcached/3"];
    for path in paths {
        world.put(path, &body(1000, 1)).expect("stored");
    }
    for path in paths {
        evict(&world, path);
    }
    world.sim.run_until_idle();
    assert_eq!(paths.map(|path| world.held(path)), ["2", "", ""]);
    assert_eq!(world.tier.stats().tier(Tier::L2).demotion_drops.get(Reason::QueueFull), 2);

    world.put(CACHED, &body(10, 1)).expect("stored");
    let gate = Gate::new();
    world.l2.faults().inject(Op::Purge, Fault::Hold(gate.clone()));
    let tier = world.tier.clone();
    let writer =
        start(&world.sim.rt(), async move { write(&tier, CACHED, &body(10, 2), None, Precondition::None).await });
    world.sim.run_until_idle();
    assert!(writer.borrow().is_none());
    evict(&world, CACHED);
    gate.open();
    world.sim.run_until_idle();
    assert_eq!(world.held(CACHED), "0");
    // Durable objects are on flash already.
    world.put(KEY, &body(10, 1)).expect("stored");
    let before = world.l2.faults().seen(Op::Begin);
    evict(&world, KEY);
    world.sim.run_until_idle();
    assert_eq!(world.l2.faults().seen(Op::Begin), before);
}

#[test]
fn what_neither_tier_keeps_is_refused_and_the_old_copy_goes() {
    let refused = |outcome: Result<Stored, CacheError>, why| {
        let refused = outcome.expect_err("no tier");
        assert!(matches!(refused, CacheError::Refused(reason) if reason == why), "{refused}");
    };
    let gates = json!({"l0_max": 1000, "l2_max": 2000});
    // By announced length, in mid-stream, and at the end.
    let world = cache(gates);
    for length in [Some(2500), None] {
        world.put(CACHED, &body(10, 1)).expect("stored");
        let large = body(2500, 2);
        refused(world.run(write(&world.tier, CACHED, &large, length, Precondition::None)), Reason::Gate);
        assert_eq!((world.held(CACHED), world.staged()), (String::new(), 0));
        assert!(world.get(CACHED).expect("readable").is_none());
    }
    world.put(CACHED, &body(10, 1)).expect("stored");
    world.l0.faults().inject(Op::Finish, Fault::Refused(Reason::NoRoom));
    refused(world.put(CACHED, &body(10, 2)), Reason::NoRoom);
    assert_eq!((world.held(CACHED), world.staged()), (String::new(), 0));
    // A condition that does not hold protects the old copy.
    let version = world.put(CACHED, &body(10, 1)).expect("stored").version;
    let wrong = Precondition::Version(Version(version.0 + 1));
    let refused = world.run(write(&world.tier, CACHED, &body(2500, 2), Some(2500), wrong)).expect_err("412");
    assert!(matches!(refused, CacheError::Precondition { .. }));
    assert_eq!(world.held(CACHED), "0");
}

#[test]
fn either_tier_is_enough() {
    for failing in [Tier::L0, Tier::L2] {
        for op in [Op::Begin, Op::Write, Op::Finish] {
            let world = cache(json!({"l2_fill": "on_write"}));
            let (old, new) = (body(100, 1), body(100, 2));
            world.put(CACHED, &old).expect("stored");
            assert_eq!(world.held(CACHED), "02");
            world.store(failing).faults().inject(op, Fault::Failed(Reason::Io));
            let stored = world.put(CACHED, &new).expect("the other keeps it");
            assert_eq!(dropped(&stored, failing), Some(Reason::Io));
            assert_eq!(world.held(CACHED), if failing == Tier::L0 { "2" } else { "0" }, "{op:?}");
            world.got(CACHED, &new);
        }
    }
}

#[test]
fn a_flash_that_cannot_note_the_new_version_refuses_the_write() {
    let world = cache(json!({"l2_fill": "on_write"}));
    let (old, new) = (body(100, 1), body(100, 2));
    world.put(CACHED, &old).expect("stored");
    for (op, reason) in [(Op::Finish, Reason::Io), (Op::Purge, Reason::Timeout)] {
        world.l2.faults().inject(op, Fault::Failed(reason));
    }
    let failed = world.put(CACHED, &new).expect_err("the old copy could come back");
    assert!(matches!(failed, CacheError::Unavailable { reason: Reason::Timeout, .. }), "{failed}");
    assert_eq!(world.got(CACHED, &old), Tier::L0);
    // One that is poisoned shows nothing any more, now or after a restart: the node goes on without it.
    for op in [Op::Finish, Op::Purge, Op::Lookup] {
        world.l2.faults().chance(op, Fault::Failed(Reason::TierPoisoned), 1000);
    }
    let stored = world.put(CACHED, &new).expect("L0 keeps it");
    assert_eq!(dropped(&stored, Tier::L2), Some(Reason::TierPoisoned));
    assert_eq!(world.got(CACHED, &new), Tier::L0);
    world.run(write(&world.tier, CACHED, &old, None, Precondition::Version(stored.version))).expect("swapped");
    world.run(world.tier.purge(&key(CACHED), Precondition::None)).expect("purged");
    assert!(world.get(CACHED).expect("readable").is_none());
}

#[test]
fn conditions_are_decided_by_what_flash_holds() {
    let world = cache(json!({"l2_fill": "on_write"}));
    let version = world.put_below(CACHED, &body(100, 1), &[Tier::L0]);
    let refused = world.run(write(&world.tier, CACHED, &body(10, 2), None, Precondition::Absent)).expect_err("there");
    assert!(matches!(refused, CacheError::Precondition { current } if current == Some(version)));
    world.l2.faults().inject(Op::Lookup, Fault::Failed(Reason::Io));
    let failed =
        world.run(write(&world.tier, CACHED, &body(10, 2), None, Precondition::Absent)).expect_err("who knows");
    assert!(matches!(failed, CacheError::Unavailable { reason: Reason::Io, .. }));
    let stored = world.run(write(&world.tier, CACHED, &body(10, 2), None, Precondition::Version(version)));
    assert_eq!(stored.expect("swapped").replaced, Some(version));
    world.run(world.tier.purge(&key(CACHED), Precondition::None)).expect("purged");
    let report = world.run(world.tier.purge(&key(CACHED), Precondition::None)).expect("purged");
    assert_eq!(report.removed, None);
}

#[test]
fn versions_rise_though_the_wall_falls() {
    let world = cache(json!({}));
    let first = world.put(CACHED, &body(10, 1)).expect("stored").version;
    world.sim.clock().step_wall_ms(-3_600_000);
    let second = world.put(CACHED, &body(10, 2)).expect("stored").version;
    assert!(second > first);
    world.sim.clock().advance(Duration::from_secs(1));
    assert_eq!(world.got(CACHED, &body(10, 2)), Tier::L0);
}
