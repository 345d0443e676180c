//! Commits of unknown outcome, and copies that survived an unclean stop.

use super::*;
use crate::storage::memory::{Fault, Op};

#[test]
fn a_commit_of_unknown_outcome_leaves_the_answer_to_l3() {
    for (fault, landed) in [(Fault::UnknownBefore, false), (Fault::UnknownAfter, true)] {
        let world = durable();
        let (old, new) = (body(2500, 1), body(2500, 2));
        world.put(KEY, &old).expect("stored");
        world.l3.faults().inject(Op::Finish, fault.clone());
        let unknown = world.put(KEY, &new).expect_err("unknown");
        assert!(matches!(unknown, CacheError::OutcomeUnknown { base: Some(_), .. }), "{unknown}");
        assert_eq!((world.held(KEY), world.tier.in_doubt(), world.staged()), ("3".into(), 1, 0));
        assert_eq!(world.got(KEY, if landed { &new } else { &old }), Tier::L3);
        // A version other than the base ends the doubt at once; the base itself leaves it.
        assert_eq!(world.tier.in_doubt(), usize::from(!landed));
        assert_eq!(world.got(KEY, if landed { &new } else { &old }), Tier::L3);
        assert_eq!(world.held(KEY), if landed { "023" } else { "3" }, "nothing is filled in doubt");
        world.put(KEY, &new).expect("stored");
        assert_eq!((world.tier.in_doubt(), world.got(KEY, &new)), (0, Tier::L0));
        assert_eq!(world.tier.stats().snapshot().outcomes_unknown, 1);
    }
}

#[test]
fn in_doubt_and_without_l3_there_is_no_answer() {
    let world = durable();
    world.put(KEY, &body(10, 1)).expect("stored");
    world.l3.faults().inject(Op::Finish, Fault::UnknownBefore);
    world.put(KEY, &body(10, 2)).expect_err("unknown");
    world.l3.faults().inject(Op::Lookup, Fault::Failed(Reason::Unavailable));
    let failed = world.get(KEY).expect_err("503");
    assert!(matches!(failed, CacheError::Unavailable { reason: Reason::Unavailable, .. }));
}

#[test]
fn a_purge_of_unknown_outcome_is_in_doubt_too() {
    for (fault, landed) in [(Fault::UnknownBefore, false), (Fault::UnknownAfter, true)] {
        let world = durable();
        let old = body(10, 1);
        world.put(KEY, &old).expect("stored");
        world.l3.faults().inject(Op::Purge, fault);
        let unknown = world.run(world.tier.purge(&key(KEY), Precondition::None)).expect_err("unknown");
        assert!(matches!(unknown, CacheError::OutcomeUnknown { .. }));
        let got = world.get(KEY).expect("readable");
        assert_eq!((got.is_none(), world.tier.in_doubt()), (landed, usize::from(!landed)));
        world.run(world.tier.purge(&key(KEY), Precondition::None)).expect("purged");
        assert_eq!((world.get(KEY).expect("readable"), world.tier.in_doubt()), (None, 0));
    }
}

#[test]
fn a_change_of_unknown_outcome_is_in_doubt_until_the_next_commit() {
    let world = durable();
    let old = body(10, 1);
    let version = world.put(KEY, &old).expect("stored").version;
    world.l3.faults().inject(Op::Update, Fault::UnknownAfter);
    let meta = CacheMeta { version, client_flags: 5, ..CacheMeta::default() };
    world.run(world.tier.update_meta(&key(KEY), meta.clone())).expect_err("unknown");
    assert_eq!((world.got(KEY, &old), world.held(KEY), world.tier.in_doubt()), (Tier::L3, "3".into(), 1));
    assert!(world.run(world.tier.update_meta(&key(KEY), meta)).expect("known"));
    assert_eq!(world.tier.in_doubt(), 1, "both have one version");
    world.put(KEY, &old).expect("stored");
    assert_eq!(world.tier.in_doubt(), 0);
}

#[test]
fn doubts_are_bounded() {
    let settings = Settings { in_doubt_max: 2, ..Settings::default() };
    let world = World::new(Setup { settings, ..Setup::default() });
    for path in ["img/1", "img/2"] {
        world.put(path, &body(10, 1)).expect("stored");
        world.l3.faults().inject(Op::Finish, Fault::UnknownBefore);
        world.put(path, &body(10, 2)).expect_err("unknown");
    }
    let refuses = |outcome: Result<(), CacheError>| {
        let refused = outcome.expect_err("fails closed");
        assert!(matches!(refused, CacheError::Unavailable { reason: Reason::InDoubtMax, .. }), "{refused}");
    };
    refuses(world.put("img/3", &body(10, 1)).map(drop));
    refuses(world.run(world.tier.purge(&key("img/3"), Precondition::None)).map(drop));
    world.put(CACHED, &body(10, 1)).expect("caches go on");
    world.put("img/2", &body(10, 3)).expect("a key in doubt has its place");
    assert_eq!(world.tier.in_doubt(), 1);
    world.put("img/3", &body(10, 1)).expect("there is a place");
    assert_eq!(world.tier.stats().snapshot().in_doubt, 1);
}

#[test]
fn a_suspect_is_compared_with_l3_once() {
    let world = World::new(Setup { policy: json!({"promote_l0": "never"}), ..Setup::default() });
    let body = body(2500, 1);
    world.put_below(KEY, &body, &[Tier::L0]);
    world.l2.suspect_all();
    let asked = world.l3.faults().seen(Op::Lookup);
    for times in [1, 1] {
        assert_eq!(world.got(KEY, &body), Tier::L2);
        assert_eq!(world.l3.faults().seen(Op::Lookup), asked + times);
    }
    assert_eq!(world.tier.stats().snapshot().suspects_confirmed, 1);
}

#[test]
fn a_suspect_that_l3_does_not_know_is_removed() {
    let (old, new) = (body(2500, 1), body(2500, 2));
    for (replaced, expected) in [(true, Some(&new)), (false, None)] {
        let world = durable();
        world.put_below(KEY, &old, &[Tier::L0]);
        // Behind the shard's back, as what a killed process had committed last.
        world
            .run(async {
                if replaced {
                    let mut miss =
                        world.l3.get_miss_handler(&key(KEY), CacheMeta::default(), Precondition::None).await?;
                    miss.write_body(new.clone(), true).await?;
                    miss.finish().await.map(drop)
                } else {
                    world.l3.purge(&key(KEY), Precondition::None).await.map(drop)
                }
            })
            .expect("changed");
        world.l2.suspect_all();
        world.l3.faults().inject(Op::Lookup, Fault::Failed(Reason::Unavailable));
        world.get(KEY).expect_err("not served without L3");
        assert!(world.l2.peek(&key(KEY)).is_some());
        let got = world.get(KEY).expect("readable").map(|(_, _, got)| got);
        assert_eq!(got.as_ref(), expected);
        assert_eq!(world.held(KEY), if replaced { "023" } else { "" });
        assert_eq!(world.tier.stats().snapshot().suspects_removed, 1);
        assert_eq!(world.tier.stats().tier(Tier::L2).misses.get(Reason::Suspect), 1);
    }
}

#[test]
fn suspects_of_a_cache_are_from_before_it_was_one_and_not_served() {
    let world = World::new(Setup { policy: json!({"l2_fill": "on_write"}), ..Setup::default() });
    let body = body(2500, 1);
    world.put_below(CACHED, &body, &[Tier::L0]);
    assert_eq!(world.got(CACHED, &body), Tier::L2);
    world.put_below(CACHED, &body, &[Tier::L0]);
    world.l2.suspect_all();
    assert!(world.get(CACHED).expect("an answer").is_none());
    assert_eq!(world.held(CACHED), "", "it is gone for good");
    assert_eq!(world.tier.stats().tier(Tier::L2).misses.get(Reason::Suspect), 1);
    // Nor does a write that expects nothing meet it.
    world.put_below(CACHED, &body, &[Tier::L0]);
    world.l2.suspect_all();
    let length = Some(body.len() as u64);
    world.run(write(&world.tier, CACHED, &body, length, Precondition::Absent)).expect("nothing is there");
}
