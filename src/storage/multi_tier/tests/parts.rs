//! The parts by themselves: key table, lanes, tasks.

use std::{
    cell::Cell,
    pin::pin,
    task::{Context, Poll, Waker},
};

use super::{
    super::{
        keys::{Keys, TURN_WAITERS_MAX},
        lane::{self, Refused, Room},
        task,
    },
    *,
};

fn keys(fills_max: usize) -> Rc<Keys> {
    Keys::new(fills_max, 2, ShardStats::new())
}

/// Polls once.
fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[test]
fn turns_are_first_come_first_served_and_may_be_given_up() {
    let (keys, key) = (keys(10), key(KEY));
    let first = poll(&mut Box::pin(keys.turn(&key))).expect("free").expect("taken");
    let mut waiting: Vec<_> = (0..5).map(|_| Box::pin(keys.turn(&key))).collect();
    assert!(waiting.iter_mut().all(|turn| poll(turn).is_none()));
    let other = self::key("img/other");
    assert!(poll(&mut Box::pin(keys.turn(&other))).is_some(), "another key has its own");
    // The second leaves the queue; the first is given the turn and leaves without having seen it.
    drop(waiting.remove(1));
    drop(first);
    drop(waiting.remove(0));
    assert!(poll(&mut waiting[1]).is_none() && poll(&mut waiting[2]).is_none(), "not yet");
    let third = poll(&mut waiting[0]).expect("its turn").expect("taken");
    assert!(poll(&mut waiting[1]).is_none());
    drop((third, waiting));
    assert_eq!(keys.len(), 0, "nothing is left of it");
}

#[test]
fn too_many_waiting_are_refused() {
    let (keys, key) = (keys(10), key(KEY));
    let turn = poll(&mut Box::pin(keys.turn(&key))).expect("free").expect("taken");
    let mut waiting: Vec<_> = (0..TURN_WAITERS_MAX).map(|_| Box::pin(keys.turn(&key))).collect();
    assert!(waiting.iter_mut().all(|turn| poll(turn).is_none()));
    let refused = poll(&mut Box::pin(keys.turn(&key))).expect("at once");
    assert_eq!(refused.err(), Some(Reason::Overload));
    drop((turn, waiting));
    assert_eq!(keys.len(), 0);
}

#[test]
fn tickets_allow_fills_only_while_nothing_goes_on() {
    let (keys, key) = (keys(3), key(KEY));
    let ticket = keys.ticket(&key);
    assert_eq!(ticket.refused(), None);
    let fill = ticket.fill(Tier::L0).expect("the only one");
    assert!(ticket.fill(Tier::L0).is_none() && keys.ticket(&key).fill(Tier::L0).is_none(), "one a tier");
    let late = ticket.fill(Tier::L2).expect("another tier");
    assert_eq!(keys.ticket(&key).refused(), Some(Reason::Overload));

    let publication = fill.publish().expect("nothing came between");
    let turn = poll(&mut Box::pin(keys.turn(&key))).expect("free").expect("taken");
    assert_eq!(turn.publishing(), [true, false, false]);
    let mut settled = Box::pin(turn.settled());
    assert!(poll(&mut settled).is_none());
    assert_eq!(keys.ticket(&key).refused(), Some(Reason::Poisoned));
    assert!(late.publish().is_none(), "poisoned");
    drop(publication);
    assert!(poll(&mut settled).is_some());
    drop(settled);
    // What the turn itself leaves behind may go on until the next.
    let own = turn.fill(Tier::L1).expect("free");
    drop((turn, ticket));
    let next = poll(&mut Box::pin(keys.turn(&key))).expect("free").expect("taken");
    assert!(own.publish().is_none());
    drop(next);
    assert_eq!(keys.len(), 0);
}

#[test]
fn the_floor_outlives_the_turn_for_those_it_overtook() {
    let (keys, key) = (keys(10), key(KEY));
    assert_eq!(keys.floor(&key).version, Version::NONE);
    keys.shown(&key, Some(Version(9)));
    assert_eq!(keys.floor(&key).version, Version::NONE, "no commit runs");
    let reader = keys.ticket(&key);
    let turn = poll(&mut Box::pin(keys.turn(&key))).expect("free").expect("taken");
    keys.shown(&key, Some(Version(5)));
    keys.shown(&key, Some(Version(4)));
    keys.shown(&key, None);
    assert_eq!((keys.floor(&key).version, keys.floor(&key).l3_only), (Version(5), true));
    turn.raise(Version(7));
    drop(turn);
    assert_eq!((keys.floor(&key).version, keys.floor(&key).l3_only), (Version(7), false));
    drop(reader);
    assert_eq!((keys.floor(&key).version, keys.len()), (Version::NONE, 0));
}

#[test]
fn a_turn_that_is_dropped_undecided_leaves_a_doubt() {
    let (keys, key) = (keys(10), key(KEY));
    let mut turn = poll(&mut Box::pin(keys.turn(&key))).expect("free").expect("taken");
    turn.decide().expect("room");
    drop(turn);
    assert_eq!((keys.in_doubt(), keys.ticket(&key).refused()), (1, Some(Reason::OutcomeUnknown)));
    let stale = keys.doubt(&key).expect("in doubt");
    // A later doubt is not settled by an answer to a question from before it.
    let mut turn = poll(&mut Box::pin(keys.turn(&key))).expect("free").expect("taken");
    turn.decide().expect("it has its place");
    turn.doubted(Some(Version(3)));
    drop(turn);
    keys.answered(&key, stale, None);
    assert_eq!(keys.in_doubt(), 1);
    let doubt = keys.doubt(&key).expect("in doubt");
    keys.answered(&key, doubt, Some(Version(3)));
    assert_eq!(keys.in_doubt(), 1, "the base proves nothing");
    keys.answered(&key, doubt, Some(Version(4)));
    assert_eq!((keys.in_doubt(), keys.len()), (0, 0));
}

#[test]
fn a_lane_holds_its_bytes_and_no_more() {
    let sim = Sim::new(1);
    let room = Room::new(10_000);
    let (sender, receiver) = lane::lane(2000, &room);
    let chunk = body(1000, 0);
    assert_eq!([sender.push(&chunk), sender.push(&chunk)], [Ok(()), Err(Refused::Full)]);
    let (wide, _other) = lane::lane(100_000, &room);
    assert_eq!(wide.push(&body(8500, 0)), Ok(()), "one chunk fits an empty lane");
    assert_eq!(wide.push(&chunk), Err(Refused::Full), "the room of all lanes is used up");
    drop((wide, _other));
    assert!(room.used() < 2000);
    let store = Store::new(Tier::L2, 1 << 20, sim.clock().clone(), VersionClock::new(1));
    let task = start(&sim.rt(), async move {
        receiver.stage(&store, &key(KEY), CacheMeta::default(), Precondition::None).await.map(drop)
    });
    sim.run_until_idle();
    assert_eq!((room.used(), sender.push(&chunk)), (0, Ok(())));
    sender.cut(Reason::Gate);
    sim.run_until_idle();
    assert_eq!((task.borrow_mut().take(), room.used()), (Some(Err(Reason::Gate)), 0));
}

#[test]
fn work_that_waits_becomes_a_task_and_work_that_does_not_is_done() {
    let sim = Sim::new(1);
    let done = Rc::new(Cell::new(0));
    let add = |by: u32| {
        let done = done.clone();
        async move { done.set(done.get() + by) }
    };
    task::detach(&sim.rt(), add(1));
    assert_eq!((done.get(), sim.tasks()), (1, 0));
    let rt = sim.rt();
    let slow = Box::pin({
        let (rt, add) = (sim.rt(), add(10));
        async move {
            rt.yield_now().await;
            add.await;
            7
        }
    });
    let mut waiting = Box::pin(task::to_the_end(&rt, slow));
    assert!(poll(&mut waiting).is_none());
    assert_eq!((done.get(), sim.tasks()), (1, 1));
    drop(waiting);
    sim.run_until_idle();
    assert_eq!((done.get(), sim.tasks()), (11, 0), "nobody waits, and it is done all the same");
    let world = Sim::new(2);
    let rt = world.rt();
    let never = Box::pin(std::future::pending::<()>());
    let mut waiting = Box::pin(task::to_the_end(&rt, never));
    assert!(poll(&mut waiting).is_none());
    world.crash();
    assert_eq!(poll(&mut waiting), Some(None), "the scheduler stopped");
}
