//! The credits of one sender of a mailbox, and who waits for one.
//!
//! Invariants: credits are neither made nor lost; as long as a credit is free and somebody waits, somebody has been
//! woken and has not looked yet (so no wake is lost, also when the one who was woken gives up); a waiter that gives
//! up leaves nothing behind. loom walks through every interleaving, with up to three preemptions, of the tests at the
//! end:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --package engine --lib --release mailbox::credits
//! ```

use std::{collections::VecDeque, task::Waker};

#[cfg(loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};

use std::sync::PoisonError;

/// In `Credits::state`: somebody waits in the queue.
const WAITING: usize = 1;

/// In `Credits::state`: one free credit.
const CREDIT: usize = 2;

#[derive(Debug)]
pub(super) struct Credits {
    // One word, so that who gives back and who begins to wait cannot miss each other: whichever comes second sees what
    // the first did. Changed to and from `WAITING` under the lock of the queue.
    state: AtomicUsize,
    // Touched only when credits ran out: the path that waits anyway.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The ticket given last.
    ticket: u64,
    waiting: VecDeque<(u64, Waker)>,
}

impl Credits {
    pub(super) fn new(count: usize) -> Self {
        Self { state: AtomicUsize::new(count * CREDIT), queue: Mutex::new(Queue::default()) }
    }

    pub(super) fn try_take(&self) -> bool {
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| state.checked_sub(CREDIT)).is_ok()
    }

    pub(super) fn give_back(&self) {
        if self.state.fetch_add(CREDIT, Ordering::AcqRel) & WAITING != 0 {
            self.wake_one();
        }
    }

    /// Wakes the one who has waited longest. One: with many waiting for few credits, all would look in vain.
    fn wake_one(&self) {
        let woken = {
            let mut queue = self.queue();
            let woken = queue.waiting.pop_front();
            self.note_emptiness(&queue);
            woken
        };
        if let Some((_, waker)) = woken {
            waker.wake();
        }
    }

    /// Wakes all, credits or not: the receiver is gone.
    pub(super) fn wake_all(&self) {
        let woken = {
            let mut queue = self.queue();
            let woken = std::mem::take(&mut queue.waiting);
            self.note_emptiness(&queue);
            woken
        };
        woken.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn note_emptiness(&self, queue: &Queue) {
        if queue.waiting.is_empty() {
            self.state.fetch_and(!WAITING, Ordering::AcqRel);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One sender's wait for a credit. Dropping it ends the wait.
pub(super) struct Turn<'a> {
    credits: &'a Credits,
    ticket: Option<u64>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(credits: &'a Credits) -> Self {
        Self { credits, ticket: None }
    }

    /// Takes a credit, or has `waker` woken when one may be free.
    pub(super) fn take(&mut self, waker: &Waker) -> bool {
        if self.credits.try_take() {
            self.leave();
            return true;
        }
        self.wait(waker);
        // A credit given back before the waker was in place woke nobody.
        if self.credits.try_take() {
            self.leave();
            return true;
        }
        false
    }

    fn wait(&mut self, waker: &Waker) {
        let mut queue = self.credits.queue();
        match self.ticket {
            None => {
                queue.ticket += 1;
                let ticket = queue.ticket;
                self.ticket = Some(ticket);
                queue.waiting.push_back((ticket, waker.clone()));
            }
            Some(ticket) => match queue.waiting.iter_mut().find(|(waiting, _)| *waiting == ticket) {
                Some((_, known)) => known.clone_from(waker),
                // Woken, but somebody else was faster: the place in front is kept.
                None => queue.waiting.push_front((ticket, waker.clone())),
            },
        }
        self.credits.state.fetch_or(WAITING, Ordering::AcqRel);
    }

    fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let removed = {
            let mut queue = self.credits.queue();
            let place = queue.waiting.iter().position(|(waiting, _)| *waiting == ticket);
            let removed = place.and_then(|place| queue.waiting.remove(place));
            self.credits.note_emptiness(&queue);
            removed
        };
        // It was woken for a credit; if one is free still, the wake belongs to the next.
        let state = self.credits.state.load(Ordering::Acquire);
        if removed.is_none() && state >= CREDIT && state & WAITING != 0 {
            self.credits.wake_one();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::{sync::Arc, task::Wake};

    use loom::{sync::Notify, thread};

    use super::*;

    struct Bell(Notify);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.notify();
        }
    }

    /// Above, the number of interleavings explodes; bugs of this kind show with one or two.
    const PREEMPTIONS_MAX: usize = 3;

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(PREEMPTIONS_MAX);
        builder.check(model);
    }

    /// Waits for a credit; a lost wake is a deadlock, which loom reports.
    fn take(credits: &Credits) {
        let bell = Arc::new(Bell(Notify::new()));
        let waker = Waker::from(bell.clone());
        let mut turn = Turn::new(credits);
        while !turn.take(&waker) {
            bell.0.wait();
        }
    }

    /// Looks for a credit once and gives up.
    fn give_up(credits: &Credits) -> bool {
        let waker = Waker::from(Arc::new(Bell(Notify::new())));
        Turn::new(credits).take(&waker)
    }

    #[test]
    fn two_who_wait_both_get_the_one_credit_in_turn() {
        explore(|| {
            let credits = Arc::new(Credits::new(1));
            let others: Vec<_> = (0..2)
                .map(|_| {
                    let credits = credits.clone();
                    thread::spawn(move || {
                        take(&credits);
                        credits.give_back();
                    })
                })
                .collect();
            others.into_iter().for_each(|other| other.join().expect("it does not panic"));
            assert!(credits.try_take() && !credits.try_take());
            assert!(credits.queue().waiting.is_empty());
        });
    }

    #[test]
    fn two_credits_given_back_at_once_serve_two_who_wait() {
        explore(|| {
            let credits = Arc::new(Credits::new(0));
            let waiting = credits.clone();
            let waiter = thread::spawn(move || {
                take(&waiting);
                take(&waiting);
            });
            let giving = credits.clone();
            let giver = thread::spawn(move || giving.give_back());
            credits.give_back();
            waiter.join().expect("it does not panic");
            giver.join().expect("it does not panic");
            assert!(!credits.try_take());
        });
    }

    #[test]
    fn who_gives_up_passes_its_wake_on() {
        explore(|| {
            let credits = Arc::new(Credits::new(0));
            let (fickle, waiting) = (credits.clone(), credits.clone());
            let fickle = thread::spawn(move || {
                if give_up(&fickle) {
                    fickle.give_back();
                }
            });
            let waiter = thread::spawn(move || take(&waiting));
            credits.give_back();
            fickle.join().expect("it does not panic");
            waiter.join().expect("it does not panic");
            assert!(!credits.try_take());
            assert!(credits.queue().waiting.is_empty());
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::Arc, task::Wake};

    use super::*;

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Count {
        fn new() -> (Arc<Self>, Waker) {
            let count = Arc::new(Self::default());
            (count.clone(), Waker::from(count))
        }

        fn get(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn one_credit_wakes_one_in_order_and_a_wake_not_used_is_passed_on() {
        let credits = Credits::new(0);
        let ((first, w1), (second, w2), (third, w3)) = (Count::new(), Count::new(), Count::new());
        let (mut t1, mut t2, mut t3) = (Turn::new(&credits), Turn::new(&credits), Turn::new(&credits));
        assert!(!t1.take(&w1) && !t2.take(&w2) && !t3.take(&w3) && !t1.take(&w1));
        credits.give_back();
        assert_eq!((first.get(), second.get(), third.get()), (1, 0, 0));
        // Somebody else is faster: the first keeps its place.
        assert!(credits.try_take() && !t1.take(&w1));
        credits.give_back();
        assert_eq!((first.get(), second.get(), third.get()), (2, 0, 0));
        drop(t1);
        assert_eq!((first.get(), second.get(), third.get()), (2, 1, 0));
        assert!(t2.take(&w2));
        drop(t2);
        assert_eq!((first.get(), second.get(), third.get()), (2, 1, 0));
        drop(t3);
        assert!(credits.queue().waiting.is_empty() && credits.state.load(Ordering::SeqCst) == 0);
        credits.give_back();
        assert!(credits.try_take() && !credits.try_take());
    }

    #[test]
    fn all_are_woken_when_there_is_nothing_to_wait_for() {
        let credits = Credits::new(0);
        let (count, waker) = Count::new();
        let mut turns: Vec<_> = (0..5).map(|_| Turn::new(&credits)).collect();
        assert!(turns.iter_mut().all(|turn| !turn.take(&waker)));
        credits.wake_all();
        assert_eq!(count.get(), 5);
    }
}
