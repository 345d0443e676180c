//! The commit of durable writes, deletes and changes.

use std::time::Duration;

use super::*;
use crate::storage::memory::{Fault, Gate, Op};

#[test]
fn a_commit_goes_on_when_its_client_leaves() {
    let world = durable();
    let (old, new) = (body(2500, 1), body(2500, 2));
    world.put(KEY, &old).expect("stored");
    let gate = Gate::new();
    world.l3.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
    world.run(async {
        let writing = write(&world.tier, KEY, &new, None, Precondition::None);
        let leaving = async {
            while gate.arrived() == 0 {
                world.sim.rt().yield_now().await;
            }
            None
        };
        let left = futures_lite::future::or(async { Some(writing.await) }, leaving).await;
        assert!(left.is_none(), "the client left before the answer");
    });
    assert_eq!(world.got(KEY, &old), Tier::L0, "nothing has changed yet");
    gate.open();
    world.sim.run_until_idle();
    assert_eq!((world.got(KEY, &new), world.held(KEY)), (Tier::L0, "023".into()));

    let gate = Gate::new();
    world.l3.faults().inject(Op::Purge, Fault::Hold(gate.clone()));
    world.run(async {
        let purging = async { Some(world.tier.purge(&key(KEY), Precondition::None).await) };
        let leaving = async {
            while gate.arrived() == 0 {
                world.sim.rt().yield_now().await;
            }
            None
        };
        assert!(futures_lite::future::or(purging, leaving).await.is_none());
    });
    gate.open();
    world.sim.run_until_idle();
    assert_eq!((world.get(KEY).expect("readable"), world.held(KEY)), (None, String::new()));
}

#[test]
fn reads_see_the_old_object_until_l3_has_answered() {
    let world = durable();
    let (old, new) = (body(2500, 1), body(2500, 2));
    for below in [&[][..], &[Tier::L0], &[Tier::L0, Tier::L2]] {
        world.put_below(KEY, &old, below);
        let gate = Gate::new();
        world.l3.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
        let (tier, bytes) = (world.tier.clone(), new.clone());
        let writer = start(&world.sim.rt(), async move { write(&tier, KEY, &bytes, None, Precondition::None).await });
        world.sim.run_until_idle();
        assert!(writer.borrow().is_none());
        world.got(KEY, &old);
        assert!(world.held(KEY).len() + below.len() <= 3, "a read beside a commit fills nothing");
        gate.open();
        world.sim.run_until_idle();
        writer.borrow_mut().take().expect("done").expect("stored");
        assert_eq!(world.got(KEY, &new), Tier::L0);
    }
}

#[test]
fn compare_and_swap_has_one_winner() {
    for path in [KEY, CACHED] {
        let world = World::new(Setup { seed: 3, ..Setup::default() });
        world.stalls.set(500);
        let base = world.put(path, &body(10, 0)).expect("stored").version;
        let writers: Vec<_> = (1..=20)
            .map(|salt| {
                let tier = world.tier.clone();
                let precondition = if salt % 2 == 0 { Precondition::Version(base) } else { Precondition::Absent };
                start(&world.sim.rt(), async move { write(&tier, path, &body(10, salt), None, precondition).await })
            })
            .collect();
        world.sim.run_for(Duration::from_secs(10));
        let outcomes: Vec<_> = writers.iter().map(|writer| writer.borrow_mut().take().expect("done")).collect();
        let won: Vec<_> = outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_ok()).collect();
        assert_eq!(won.len(), 1, "{path}");
        assert!(won[0].0 % 2 == 1, "it was there");
        let version = won[0].1.as_ref().expect("won").version;
        let found = world.get(path).expect("readable").expect("there");
        assert_eq!((found.1, found.2), (version, body(10, won[0].0 as u8 + 1)));
        for lost in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert!(matches!(lost, CacheError::Precondition { current: Some(_) }), "{lost}");
        }
        world.stalls.set(0);
        let missing = world.run(write(&world.tier, path, &body(1, 0), None, Precondition::Version(base)));
        assert!(matches!(missing, Err(CacheError::Precondition { current }) if current == Some(version)));
        world.run(world.tier.purge(&key(path), Precondition::Version(base))).expect_err("not that version");
        world.run(world.tier.purge(&key(path), Precondition::Version(version))).expect("that one");
        let exists = world.run(write(&world.tier, path, &body(1, 0), None, Precondition::Exists));
        assert!(matches!(exists, Err(CacheError::Precondition { current: None })));
        world.run(write(&world.tier, path, &body(1, 0), None, Precondition::Absent)).expect("absent");
    }
}

#[test]
fn the_report_of_a_purge_names_the_tiers() {
    let world = World::new(Setup { l1: true, ..Setup::default() });
    let version = world.put_below(KEY, &body(10, 0), &[Tier::L2]);
    let report = world.run(world.tier.purge(&key(KEY), Precondition::None)).expect("purged");
    assert_eq!((report.removed, report.tiers), (Some(version), [true, true, false, true]));
    assert!(report.tombstone.is_some_and(|tombstone| tombstone > version));
    let again = world.run(world.tier.purge(&key(KEY), Precondition::None)).expect("nothing to purge is no error");
    assert_eq!((again.removed, again.tiers), (None, [false; 4]));
    let stored = world.put(KEY, &body(10, 0)).expect("stored");
    assert!(stored.version > report.tombstone.expect("left one"));
}

#[test]
fn l1_is_written_after_the_acknowledgement_unless_overtaken() {
    let world = World::new(Setup { l1: true, ..Setup::default() });
    let gate = Gate::new();
    world.l1.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
    let stored = world.put(KEY, &body(10, 1)).expect("stored");
    assert_eq!(stored.tiers[Tier::L1 as usize], Some(TierOutcome::Queued));
    assert_eq!(world.held(KEY), "023");
    gate.open();
    world.sim.run_until_idle();
    assert_eq!(world.held(KEY), "0123");

    // A worker that has not begun to publish when the next write comes is poisoned.
    let gate = Gate::new();
    world.l1.faults().inject(Op::Write, Fault::Hold(gate.clone()));
    world.put(KEY, &body(10, 2)).expect("stored");
    let newest = world.put(KEY, &body(10, 3)).expect("stored").version;
    gate.open();
    world.sim.run_until_idle();
    assert_eq!(world.l1.peek(&key(KEY)), Some(newest));
    assert_eq!(world.tier.stats().tier(Tier::L1).write_drops.get(Reason::Poisoned), 1);
}

#[test]
fn a_tier_that_hangs_after_the_decision_does_not_hold_up_the_answer() {
    let world = durable();
    let (old, new, newer) = (body(100, 1), body(100, 2), body(100, 3));
    world.put(KEY, &old).expect("stored");
    let gate = Gate::new();
    world.l2.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
    let stored = world.put(KEY, &new).expect("stored");
    assert_eq!(stored.tiers[Tier::L2 as usize], Some(TierOutcome::Queued));
    // L2 still has the old object; nobody is given it, not even when L0 has lost the new one.
    world.run(world.l0.purge(&key(KEY), Precondition::None)).expect("purged");
    assert_eq!(world.got(KEY, &new), Tier::L3);
    let (tier, bytes) = (world.tier.clone(), newer.clone());
    let writer = start(&world.sim.rt(), async move { write(&tier, KEY, &bytes, None, Precondition::None).await });
    world.sim.run_for(Duration::from_secs(5));
    assert!(writer.borrow().is_none(), "the next writer of the key waits");
    gate.open();
    world.sim.run_until_idle();
    writer.borrow_mut().take().expect("done").expect("stored");
    assert_eq!((world.got(KEY, &newer), world.held(KEY)), (Tier::L0, "023".into()));
}

#[test]
fn a_tier_that_cannot_forget_is_fenced() {
    let world = World::new(Setup { policy: json!({"l2_max": 1000}), ..Setup::default() });
    let (old, new) = (body(100, 1), body(2000, 2));
    let other = world.put("img/other", &old).expect("stored").version;
    world.put(KEY, &old).expect("stored");
    world.sim.clock().advance(Duration::from_millis(5));
    world.l2.faults().inject(Op::Purge, Fault::Failed(Reason::Timeout));
    world.put(KEY, &new).expect("L3 has it");
    assert_eq!(world.held(KEY), "023");
    assert_eq!(world.tier.stats().tier(Tier::L2).fences.get(), 1);
    world.run(world.l0.purge(&key(KEY), Precondition::None)).expect("purged");
    assert_eq!(world.got(KEY, &new), Tier::L3, "the old copy in L2 is shut out");
    world.run(world.l0.purge(&key("img/other"), Precondition::None)).expect("purged");
    assert_eq!(world.l2.peek(&key("img/other")), Some(other));
    assert_eq!(world.got("img/other", &old), Tier::L3, "and so is everything of its age");
    world.put("img/other", &old).expect("stored");
    world.run(world.l0.purge(&key("img/other"), Precondition::None)).expect("purged");
    assert_eq!(world.got("img/other", &old), Tier::L2, "what is written later is not");
    // A purge is not acknowledged as long as a copy may come back.
    world.l2.faults().inject(Op::Purge, Fault::Failed(Reason::Timeout));
    let failed = world.run(world.tier.purge(&key("img/other"), Precondition::None)).expect_err("not sure");
    assert!(matches!(failed, CacheError::Unavailable { reason: Reason::Timeout, .. }));
    assert!(world.get("img/other").expect("readable").is_none());
    world.run(world.tier.purge(&key("img/other"), Precondition::None)).expect("now it is");
}

#[test]
fn a_change_of_metadata_reaches_every_tier() {
    for path in [KEY, CACHED] {
        let world = World::new(Setup { policy: json!({"l2_fill": "on_write"}), ..Setup::default() });
        let version = world.put(path, &body(2500, 0)).expect("stored").version;
        assert!(world.held(path).contains("02"));
        let expires = now_ms(&world) + 60_000;
        let change = |version| CacheMeta { version, expires_ms: Some(expires), ..CacheMeta::default() };
        assert!(!world.run(world.tier.update_meta(&key(path), change(Version(version.0 + 1)))).expect("no such"));
        assert!(world.run(world.tier.update_meta(&key(path), change(version))).expect("updated"));
        for tier in [Tier::L0, Tier::L2] {
            let (meta, _) = world.run(world.store(tier).lookup(&key(path))).expect("readable").expect("there");
            assert_eq!((meta.expires_ms, meta.version, meta.length), (Some(expires), version, Some(2500)));
        }
        // A tier that cannot take it loses its copy: it would be read too long.
        world.l2.faults().inject(Op::Update, Fault::Failed(Reason::Io));
        assert!(world.run(world.tier.update_meta(&key(path), change(version))).expect("updated"));
        assert_eq!(world.l2.peek(&key(path)), None);
        world.sim.clock().advance(Duration::from_secs(61));
        let found = world.run(world.tier.find(&key(path))).expect("readable");
        assert!(matches!(found, crate::cache::Found::Miss(Reason::Expired)));
    }
}

#[test]
fn a_fill_with_the_old_metadata_is_overtaken_by_a_change() {
    let world = durable();
    let version = world.put_below(KEY, &body(2500, 0), &[Tier::L0, Tier::L2]);
    let expires = now_ms(&world) + 1000;
    world.run(async {
        let (_, mut hit) = world.tier.lookup(&key(KEY)).await.expect("readable").expect("there");
        assert!(hit.read_body().await.expect("sound").is_some());
        let meta = CacheMeta { version, expires_ms: Some(expires), ..CacheMeta::default() };
        assert!(world.tier.update_meta(&key(KEY), meta).await.expect("updated"));
        while hit.read_body().await.expect("sound").is_some() {}
    });
    assert_eq!(world.held(KEY), "3");
    world.sim.clock().advance(Duration::from_secs(2));
    assert!(world.get(KEY).expect("readable").is_none());
}

#[test]
fn the_cap_on_time_to_live_holds() {
    let world = World::new(Setup { policy: json!({"ttl_max": "10s"}), ..Setup::default() });
    world.put(KEY, &body(10, 0)).expect("stored");
    world.sim.clock().advance(Duration::from_secs(9));
    assert!(world.get(KEY).expect("readable").is_some());
    world.sim.clock().advance(Duration::from_secs(2));
    assert!(world.get(KEY).expect("readable").is_none());
}

#[test]
fn closing_waits_for_commits_and_refuses_new_ones() {
    let world = durable();
    let (one, two) = (body(100, 1), body(100, 2));
    let gate = Gate::new();
    world.l3.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
    let (tier, bytes) = (world.tier.clone(), one.clone());
    let writer = start(&world.sim.rt(), async move { write(&tier, KEY, &bytes, None, Precondition::None).await });
    world.sim.run_until_idle();
    let tier = world.tier.clone();
    let closing = start(&world.sim.rt(), async move { tier.close().await });
    world.sim.run_until_idle();
    assert!(closing.borrow().is_none());
    let refused = world.put("img/b", &two).expect_err("stopping");
    assert!(matches!(refused, CacheError::Unavailable { reason: Reason::Stopping, .. }));
    let refused = world.run(world.tier.purge(&key("img/b"), Precondition::None)).expect_err("stopping");
    assert!(matches!(refused, CacheError::Unavailable { reason: Reason::Stopping, .. }));
    gate.open();
    world.sim.run_until_idle();
    assert!(closing.borrow().is_some());
    writer.borrow_mut().take().expect("done").expect("stored");
    world.got(KEY, &one);
}

#[test]
fn namespaces_that_are_not_declared_are_refused_writes() {
    let policy = json!({"namespaces_mode": "declared", "namespaces": {"img": {}}});
    let world = World::new(Setup { policy, ..Setup::default() });
    world.put(KEY, &body(10, 0)).expect("declared");
    let refused = world.put("other/a", &body(10, 0)).expect_err("not declared");
    assert!(matches!(refused, CacheError::Refused(Reason::NamespaceUndeclared)));
    assert!(world.get("other/a").expect("a miss").is_none());
    let counted = world.tier.namespaces().snapshot();
    let img = counted.iter().find(|space| &*space.name == "img").expect("counted");
    assert_eq!((img.writes, img.bytes_in), (1, 10));
}
