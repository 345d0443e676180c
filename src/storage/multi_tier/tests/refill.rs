//! What was too fast for flash comes later.

use super::{
    super::refill::{PAUSE, PAUSES_MAX, QUEUE_MAX, ROOM_TRIES_MAX, ROOM_WAIT},
    *,
};
use crate::storage::memory::{Fault, Gate, Op};

const LAG_MAX: usize = 5000;

fn world_with(policy: Value) -> World {
    let settings = Settings { fanout_lag_max: LAG_MAX, promote_lag_max: LAG_MAX, ..Settings::default() };
    World::new(Setup { policy, settings, ..Setup::default() })
}

fn world() -> World {
    world_with(json!({}))
}

/// Holds the next operation of L3's or L2's.
fn hold(store: &Store, op: Op) -> Gate {
    let gate = Gate::new();
    store.faults().inject(op, Fault::Hold(gate.clone()));
    gate
}

/// Puts an object that L2 is too slow for. A refill has begun unless something holds it.
fn put_lagging(world: &World, path: &str, bytes: &Bytes) {
    let gate = hold(&world.l2, Op::Write);
    let stored = world.put(path, bytes).expect("stored");
    assert_eq!(dropped(&stored, Tier::L2), Some(Reason::Lag));
    gate.open();
    lanes_empty(world);
}

/// Lets the worker that lagged find out, and the refill that gave way to what it held.
fn lanes_empty(world: &World) {
    world.sim.run_for(PAUSE * 2);
    world.sim.run_until_idle();
}

/// Reads an object from L3 with a promotion that L2 is too slow for.
fn read_lagging(world: &World, path: &str, bytes: &Bytes) {
    let gate = hold(&world.l2, Op::Write);
    assert_eq!(world.got(path, bytes), Tier::L3);
    gate.open();
    lanes_empty(world);
    assert!(world.promotion_drops(Tier::L2).contains(&(Reason::QueueFull, 1)));
}

fn promotions(world: &World) -> u64 {
    world.tier.stats().tier(Tier::L2).promotions.get()
}

fn drops(world: &World, reason: Reason) -> u64 {
    world.tier.stats().tier(Tier::L2).promotion_drops.get(reason)
}

/// Nothing is left of it.
fn assert_idle(world: &World) {
    let stats = world.tier.stats().snapshot();
    assert_eq!((world.staged(), world.sim.tasks(), stats.fills, stats.lane_bytes), (0, 0, 0, 0));
}

#[test]
fn a_write_that_was_too_fast_for_flash_arrives_later() {
    let world = world();
    let body = body(50_000, 1);
    let gate = hold(&world.l3, Op::Read);
    put_lagging(&world, KEY, &body);
    assert_eq!((world.held(KEY), gate.arrived()), ("03".into(), 1), "the refill is on its way");
    assert_eq!(world.tier.stats().snapshot().lane_bytes, Settings::default().refill_bytes as u64);
    gate.open();
    world.sim.run_until_idle();
    assert_eq!((world.held(KEY), promotions(&world)), ("023".into(), 1));
    world.run(world.l0.purge(&key(KEY), Precondition::None)).expect("purged");
    assert_eq!(world.got(KEY, &body), Tier::L2);
    assert_idle(&world);
}

#[test]
fn a_promotion_that_was_too_fast_for_flash_arrives_later() {
    let world = world();
    let body = body(50_000, 1);
    world.put_below(KEY, &body, &[Tier::L0, Tier::L2]);
    read_lagging(&world, KEY, &body);
    assert_eq!((world.held(KEY), promotions(&world)), ("023".into(), 1));
    assert_idle(&world);
}

#[test]
fn never_means_promotions_not_writes() {
    let never = || json!({"promote_l2": "never"});
    let body = body(50_000, 1);
    let world = world_with(never());
    put_lagging(&world, KEY, &body);
    assert_eq!(world.held(KEY), "023");
    world.put_below(KEY, &body, &[Tier::L0, Tier::L2]);
    assert_eq!((world.got(KEY, &body), world.held(KEY)), (Tier::L3, "03".into()));

    // Switched off while the refill waits for its turn behind another.
    let world = self::world();
    let gate = hold(&world.l3, Op::Read);
    put_lagging(&world, "img/first", &body);
    for path in ["img/read", "img/written"] {
        world.put_below(path, &body, &[Tier::L0, Tier::L2]);
    }
    read_lagging(&world, "img/read", &body);
    put_lagging(&world, "img/written", &body);
    let policy = Arc::new(Policy::from_json(&never()).expect("a policy"));
    world.tier.namespaces().set_policy(VersionedPolicy { version: 2, policy });
    gate.open();
    world.sim.run_until_idle();
    assert_eq!([world.held("img/read"), world.held("img/written")], ["03", "023"]);
    assert_eq!(drops(&world, Reason::Never), 1);
    assert_idle(&world);
}

#[test]
fn the_rules_of_the_moment_apply() {
    for (policy, reason) in [
        (json!({"l2_max": 49_999}), Reason::Gate),
        (json!({"namespaces": {"img": {"tiers": ["l0", "l3"]}}}), Reason::TierOff),
        (json!({"l2_fill": "on_evict"}), Reason::OnEvict),
    ] {
        let (world, body) = (world(), body(50_000, 1));
        let gate = hold(&world.l3, Op::Lookup);
        put_lagging(&world, KEY, &body);
        let policy = Arc::new(Policy::from_json(&policy).expect("a policy"));
        world.tier.namespaces().set_policy(VersionedPolicy { version: 2, policy });
        gate.open();
        world.sim.run_until_idle();
        assert_eq!((world.held(KEY), drops(&world, reason)), ("03".into(), 1), "{reason}");
        assert_idle(&world);
    }
}

#[test]
fn a_refill_that_was_overtaken_publishes_nothing() {
    for sabotage in [false, true] {
        for (remove, at) in [(false, 0), (false, 20_000), (true, 0), (true, 20_000), (true, 50_000)] {
            let sabotage = Sabotage { commit_promotion_after_purge: sabotage };
            let settings = Settings { fanout_lag_max: LAG_MAX, ..Settings::default() };
            let world = World::new(Setup { sabotage, settings, ..Setup::default() });
            let (old, new) = (body(50_000, 1), body(50_000, 2));
            // Held where the refill has `at` bytes on flash.
            for _ in 0..at / 1000 {
                let passed = hold(&world.l3, Op::Read);
                passed.open();
            }
            let gate = if at == 50_000 { hold(&world.l2, Op::Finish) } else { hold(&world.l3, Op::Read) };
            put_lagging(&world, KEY, &old);
            assert_eq!((gate.arrived(), world.l2.staged_bytes()), (1, at));
            if remove {
                world.run(world.tier.purge(&key(KEY), Precondition::None)).expect("purged");
            } else {
                world.put(KEY, &new).expect("stored");
                // As eviction does.
                world.run(world.l2.purge(&key(KEY), Precondition::None)).expect("purged");
                world.run(world.l0.purge(&key(KEY), Precondition::None)).expect("purged");
            }
            gate.open();
            world.sim.run_until_idle();
            let got = world.get(KEY).expect("readable").map(|(_, _, got)| got);
            // A refill that is being published already is removed by who overtakes it.
            match (sabotage.commit_promotion_after_purge && at < 50_000, remove) {
                (true, _) => assert_eq!(got, Some(old), "the planted fault shows the old object"),
                (false, true) => assert_eq!(got, None),
                (false, false) => assert_eq!(got, Some(new)),
            }
            let poisoned = u64::from(!sabotage.commit_promotion_after_purge && at < 50_000);
            assert_eq!(drops(&world, Reason::Poisoned), poisoned);
            assert_idle(&world);
        }
    }
}

#[test]
fn another_version_is_another_writes_matter() {
    let (world, body) = (world(), body(50_000, 1));
    let gate = hold(&world.l3, Op::Read);
    put_lagging(&world, "img/first", &body);
    put_lagging(&world, KEY, &body);
    world.put(KEY, &body).expect("stored");
    gate.open();
    world.sim.run_until_idle();
    assert_eq!((promotions(&world), drops(&world, Reason::Superseded)), (1, 1));
    put_lagging(&world, "img/gone", &body);
    assert_eq!(world.held("img/gone"), "023");
    assert_idle(&world);
}

#[test]
fn the_queue_is_bounded_and_holds_a_key_once() {
    let world = world();
    let bytes = body(10_000, 1);
    let path = |i: usize| format!("img/{i}");
    let gate = hold(&world.l3, Op::Read);
    // One runs, the others wait, and the last one is one too many.
    for i in 0..QUEUE_MAX + 2 {
        put_lagging(&world, &path(i), &bytes);
    }
    assert_eq!(drops(&world, Reason::QueueFull), 1);
    let newer = body(10_000, 2);
    put_lagging(&world, &path(5), &newer);
    assert_eq!(drops(&world, Reason::QueueFull), 1, "it has its place");
    gate.open();
    world.sim.run_until_idle();
    for i in 0..=QUEUE_MAX {
        assert_eq!(world.held(&path(i)), "023");
    }
    assert_eq!((world.held(&path(QUEUE_MAX + 1)), promotions(&world)), ("03".into(), QUEUE_MAX as u64 + 1));
    world.run(world.l0.purge(&key(&path(5)), Precondition::None)).expect("purged");
    assert_eq!(world.got(&path(5), &newer), Tier::L2);
    assert_idle(&world);
}

#[test]
fn it_ends_when_the_shard_stops() {
    let (world, body) = (world(), body(50_000, 1));
    let gate = hold(&world.l3, Op::Read);
    put_lagging(&world, KEY, &body);
    put_lagging(&world, "img/waiting", &body);
    // The stop does not wait for it.
    world.run(world.tier.close());
    let reads = world.l3.faults().seen(Op::Read);
    gate.open();
    world.sim.run_until_idle();
    assert!(world.l3.faults().seen(Op::Read) <= reads + 1, "not to the end of the body");
    assert_eq!([world.held(KEY), world.held("img/waiting")], ["03", "03"]);
    assert_eq!((promotions(&world), drops(&world, Reason::Stopping)), (0, 2));
    assert_idle(&world);
}

/// Begins a write of which some waits for flash, where its worker must be held.
fn begin_waiting(world: &World) -> <Under as Storage>::Miss {
    world.run(async {
        let opened = world.tier.get_miss_handler(&key("img/other"), CacheMeta::default(), Precondition::None).await;
        let mut miss = opened.expect("opened");
        miss.write_body(body(2000, 9), false).await.expect("room");
        miss
    })
}

#[test]
fn it_gives_way_to_the_lanes_and_not_for_ever() {
    let (world, body) = (world(), body(50_000, 1));
    let gate = hold(&world.l2, Op::Begin);
    let other = begin_waiting(&world);
    let began = world.sim.clock().elapsed();
    put_lagging(&world, KEY, &body);
    let steps = || world.sim.step() && world.held(KEY) == "03";
    while steps() {}
    assert_eq!((world.held(KEY), promotions(&world)), ("023".into(), 1));
    assert_eq!(world.sim.clock().elapsed() - began, PAUSE * PAUSES_MAX * 50, "before each of 50 chunks");

    // Once the lanes are empty it goes on at once.
    let began = world.sim.clock().elapsed();
    put_lagging(&world, KEY, &body);
    drop(other);
    gate.open();
    while steps() {}
    assert_eq!((world.held(KEY), world.sim.clock().elapsed() - began), ("023".into(), PAUSE * 3));
    world.sim.run_until_idle();
    assert_idle(&world);
}

#[test]
fn it_waits_for_room_and_not_for_ever() {
    let refill_bytes = 10_000;
    for freed in [true, false] {
        let settings =
            Settings { fanout_lag_max: LAG_MAX, lane_bytes_max: 11_000, refill_bytes, ..Settings::default() };
        let world = World::new(Setup { settings, ..Setup::default() });
        let body = body(50_000, 1);
        let gate = hold(&world.l2, Op::Begin);
        let other = begin_waiting(&world);
        put_lagging(&world, KEY, &body);
        world.sim.run_for(ROOM_WAIT * (ROOM_TRIES_MAX - 2));
        assert_eq!((world.held(KEY), drops(&world, Reason::Overload)), ("03".into(), 0), "it waits");
        if !freed {
            world.sim.run_for(ROOM_WAIT * 2);
        }
        drop(other);
        gate.open();
        world.sim.run_for(ROOM_WAIT);
        world.sim.run_until_idle();
        let (held, dropped) = if freed { ("023", 0) } else { ("03", 1) };
        assert_eq!((world.held(KEY), drops(&world, Reason::Overload)), (held.into(), dropped));
        assert_idle(&world);
    }
}

#[test]
fn what_l3_gives_is_held_against_its_checksum() {
    let (world, body) = (world(), body(50_000, 1));
    world.l3.faults().inject(Op::Read, Fault::WrongBytes);
    put_lagging(&world, KEY, &body);
    assert_eq!((world.held(KEY), drops(&world, Reason::BodyMismatch)), ("03".into(), 1));
    // A failure of L3 or L2 is counted and that is all.
    for (store, op) in [(&world.l3, Op::Lookup), (&world.l3, Op::Read), (&world.l2, Op::Finish)] {
        store.faults().inject(op, Fault::Failed(Reason::Io));
        put_lagging(&world, KEY, &body);
        assert_eq!(world.held(KEY), "03", "{op:?}");
    }
    assert_eq!((promotions(&world), drops(&world, Reason::Io)), (0, 3));
    assert_idle(&world);
}
