use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::mailbox::mailbox;

/// Eight tasks that yield and sleep, each noting its turns.
fn chatter(seed: u64) -> (Vec<u32>, u64, u64) {
    let sim = Sim::new(seed);
    let turns = Rc::new(RefCell::new(Vec::new()));
    for task in 0..8 {
        let (rt, turns) = (sim.rt(), turns.clone());
        sim.rt().spawn(async move {
            for turn in 0..20 {
                turns.borrow_mut().push(task);
                if turn % 5 == 0 {
                    rt.sleep(Duration::from_micros(rt.random() % 1000)).await;
                } else {
                    rt.yield_now().await;
                }
            }
        });
    }
    while sim.step() {}
    assert_eq!(sim.tasks(), 0);
    let turns = turns.borrow().clone();
    (turns, sim.trace(), sim.steps())
}

#[test]
fn a_seed_is_a_run_and_another_seed_is_another() {
    let first = chatter(7);
    assert_eq!(first.0.len(), 160);
    assert_eq!(first, chatter(7));
    let others: Vec<_> = (8..24).map(chatter).collect();
    assert!(others.iter().all(|other| other.0 != first.0 && other.1 != first.1));
}

#[test]
fn timers_fire_in_order_of_their_deadlines_and_time_is_virtual() {
    let sim = Sim::starting_at(1, 5_000);
    let woken = Rc::new(RefCell::new(Vec::new()));
    for hours in [5_u64, 1, 9, 3] {
        let (rt, woken) = (sim.rt(), woken.clone());
        sim.rt().spawn(async move {
            rt.sleep(Duration::from_hours(hours)).await;
            woken.borrow_mut().push((hours, rt.clock().elapsed(), rt.clock().wall_ms()));
        });
    }
    while sim.step() {}
    let expected: Vec<_> = [1, 3, 5, 9].map(|h| (h, Duration::from_hours(h), 5_000 + h * 3_600_000)).to_vec();
    assert_eq!(*woken.borrow(), expected);
}

#[test]
fn idle_does_not_move_time_and_run_for_does() {
    let sim = Sim::new(2);
    let rt = sim.rt();
    let beats = Rc::new(Cell::new(0));
    let counted = beats.clone();
    sim.rt().spawn(async move {
        loop {
            rt.sleep(Duration::from_millis(10)).await;
            counted.set(counted.get() + 1);
        }
    });
    sim.run_until_idle();
    assert_eq!((beats.get(), sim.clock().elapsed()), (0, Duration::ZERO));
    sim.run_for(Duration::from_secs(1));
    assert!((99..=100).contains(&beats.get()), "{}", beats.get());
    assert_eq!(sim.clock().elapsed(), Duration::from_secs(1));
}

#[test]
fn a_dropped_sleep_leaves_no_timer() {
    let sim = Sim::new(3);
    let rt = sim.rt();
    sim.block_on(async {
        let long = rt.sleep(Duration::from_hours(1));
        let short = rt.sleep(Duration::from_millis(1));
        futures_lite::future::or(long, short).await;
    });
    assert_eq!(sim.clock().elapsed(), Duration::from_millis(1));
    assert!(!sim.step());
}

#[test]
fn the_wall_may_be_set_back_and_monotonic_time_never_goes_back() {
    let sim = Sim::starting_at(4, 10_000);
    sim.clock().step_wall_ms(-9_500);
    sim.run_for(Duration::from_secs(2));
    assert_eq!((sim.clock().wall_ms(), sim.clock().elapsed()), (2_500, Duration::from_secs(2)));
    sim.clock().step_wall_ms(-9_500);
    assert_eq!(sim.clock().wall_ms(), 0);
}

#[test]
fn a_timer_close_by_can_fire_among_runnable_tasks_and_a_far_one_never_does() {
    let early = |sleep: Duration| {
        (0..20).filter(move |seed| {
            let sim = Sim::new(*seed);
            let rt = sim.rt();
            let fired = Rc::new(Cell::new(false));
            let (sleeper, seen) = (rt.clone(), fired.clone());
            sim.rt().spawn(async move {
                sleeper.sleep(sleep).await;
                seen.set(true);
            });
            sim.block_on(async {
                for _ in 0..200 {
                    rt.yield_now().await;
                }
                fired.get()
            })
        })
    };
    assert!(early(EARLY_MAX).count() > 0);
    assert_eq!(early(EARLY_MAX + Duration::from_nanos(1)).count(), 0);
}

#[test]
fn a_deadlock_is_told_with_its_seed() {
    let sim = Sim::new(0xdead);
    let rx = mailbox::<u8>(1);
    let tx = rx.sender(1).expect("the one");
    sim.rt().spawn(async move {
        tx.send(1).await.expect("the receiver lives");
        tx.send(2).await.expect("nobody takes the first");
    });
    let message = catch_unwind(AssertUnwindSafe(|| sim.block_on(std::future::pending::<()>())))
        .expect_err("nothing can run")
        .downcast::<String>()
        .expect("a formatted message");
    assert!(message.contains("deadlock, seed 57005") && message.contains("1 tasks wait"), "{message}");
}

#[test]
fn a_livelock_is_told_with_its_seed() {
    let sim = Sim::new(5);
    sim.steps_max(1_000);
    let rt = sim.rt();
    let spin = async {
        loop {
            rt.yield_now().await;
        }
    };
    let message = catch_unwind(AssertUnwindSafe(|| sim.block_on::<()>(spin)))
        .expect_err("it never ends")
        .downcast::<String>()
        .expect("a formatted message");
    assert!(message.contains("livelock, seed 5"), "{message}");
}

#[test]
fn a_crash_at_every_step_drops_everything_in_an_order_of_the_seed() {
    struct Noted(u32, Rc<RefCell<Vec<u32>>>, SimRt);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.1.borrow_mut().push(self.0);
            // What a destructor spawns during a crash must not live on, nor break the crash.
            let again = self.1.clone();
            self.2.spawn(async move { again.borrow_mut().push(99) });
        }
    }
    let crash_after = |seed, steps| {
        let sim = Sim::new(seed);
        let dropped = Rc::new(RefCell::new(Vec::new()));
        for task in 0..4 {
            let (rt, noted) = (sim.rt(), Noted(task, dropped.clone(), sim.rt()));
            sim.rt().spawn(async move {
                rt.sleep(Duration::from_millis(u64::from(task))).await;
                rt.yield_now().await;
                std::future::pending::<()>().await;
                drop(noted);
            });
        }
        (0..steps).for_each(|_| assert!(sim.step()));
        sim.crash();
        assert_eq!(sim.tasks(), 0);
        assert!(!sim.step());
        dropped.take()
    };
    let mut orders = Vec::new();
    for seed in 0..10 {
        for steps in 0..11 {
            let order = crash_after(seed, steps);
            assert_eq!(order, crash_after(seed, steps));
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            orders.push(order);
        }
    }
    orders.sort();
    orders.dedup();
    assert!(orders.len() > 10, "{}", orders.len());
}

#[test]
fn a_world_goes_on_after_a_crash() {
    let sim = Sim::new(6);
    let rt = sim.rt();
    sim.rt().spawn(std::future::pending());
    sim.run_for(Duration::from_secs(1));
    sim.crash();
    let (done, check) = (Rc::new(Cell::new(false)), sim.rt());
    let seen = done.clone();
    rt.spawn(async move {
        check.sleep(Duration::from_secs(1)).await;
        seen.set(true);
    });
    while sim.step() {}
    assert!(done.get());
    assert_eq!(sim.clock().elapsed(), Duration::from_secs(2));
}

#[test]
fn mailboxes_work_between_its_tasks() {
    for seed in 0..50 {
        let sim = Sim::new(seed);
        let (mut there, mut back) = (mailbox::<u32>(2), mailbox::<u32>(2));
        let (to, from) = (there.sender(2).expect("room"), back.sender(2).expect("room"));
        sim.rt().spawn(async move {
            while let Some(value) = there.recv().await {
                from.send(value * 2).await.expect("the other end lives");
            }
        });
        sim.rt().spawn(async move {
            for value in 0..100 {
                to.send(value).await.expect("the other end lives");
            }
        });
        let doubled = sim.block_on(async {
            let mut all = Vec::new();
            while let Some(value) = back.recv().await {
                all.push(value);
            }
            all
        });
        assert_eq!(doubled, (0..100).map(|value| value * 2).collect::<Vec<_>>());
    }
}
