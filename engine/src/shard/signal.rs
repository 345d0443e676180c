//! One-way flags that threads raise and tasks wait for.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
};

/// A flag that is raised once and stays raised. Clones are the same flag; works across threads.
#[derive(Clone, Debug, Default)]
pub struct Signal {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    raised: AtomicBool,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    /// The ticket given last.
    ticket: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Signal {
    /// A flag that is not raised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag and wakes all who wait. Raising it again does nothing. Never blocks.
    pub fn raise(&self) {
        self.inner.raised.store(true, Ordering::SeqCst);
        let wakers = std::mem::take(&mut self.waiters().wakers);
        wakers.into_values().for_each(Waker::wake);
    }

    /// Whether the flag is raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.inner.raised.load(Ordering::SeqCst)
    }

    /// Completes once the flag is raised. Cancel-safe; a dropped future leaves nothing behind.
    pub fn raised(&self) -> impl Future<Output = ()> + use<> {
        let mut place = Place { signal: self.clone(), ticket: None };
        poll_fn(move |cx| {
            let mut waiters = place.signal.waiters();
            // Looked at under the lock that `raise` takes after setting it: no wake falls between.
            if place.signal.is_raised() {
                return Poll::Ready(());
            }
            let ticket = place.ticket.unwrap_or_else(|| {
                waiters.ticket += 1;
                waiters.ticket
            });
            let replaced = waiters.wakers.insert(ticket, cx.waker().clone());
            drop(waiters);
            drop(replaced);
            place.ticket = Some(ticket);
            Poll::Pending
        })
    }

    fn waiters(&self) -> std::sync::MutexGuard<'_, Waiters> {
        self.inner.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one waiting future, given up with it.
struct Place {
    signal: Signal,
    ticket: Option<u64>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let removed = self.signal.waiters().wakers.remove(&ticket);
            drop(removed);
        }
    }
}

/// A point that a fixed number of parties reach in any order: it is complete when the last has arrived.
///
/// The shards use it to stop in order: a shard that has no connection left goes on answering the mesh until all
/// have none.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    missing: Arc<AtomicUsize>,
    complete: Signal,
}

impl Rendezvous {
    /// A point that waits for `parties`; complete at once when that is zero.
    #[must_use]
    pub fn new(parties: usize) -> Self {
        let complete = Signal::new();
        if parties == 0 {
            complete.raise();
        }
        Self { missing: Arc::new(AtomicUsize::new(parties)), complete }
    }

    /// One party has arrived. Each calls it once; more arrivals than parties change nothing.
    pub fn arrive(&self) {
        let missing = self.missing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |missing| missing.checked_sub(1));
        if missing == Ok(1) {
            self.complete.raise();
        }
    }

    /// Raised when all have arrived.
    #[must_use]
    pub fn complete(&self) -> &Signal {
        &self.complete
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, or, poll_once};

    use super::*;

    #[test]
    fn a_signal_wakes_all_who_wait_on_any_thread_and_stays_raised() {
        let signal = Signal::new();
        let threads: Vec<_> =
            (0..4).map(|_| signal.raised()).map(|wait| std::thread::spawn(|| block_on(wait))).collect();
        signal.raise();
        signal.raise();
        threads.into_iter().for_each(|thread| thread.join().expect("it was woken"));
        assert!(signal.is_raised());
        block_on(signal.raised());
    }

    #[test]
    fn a_dropped_wait_leaves_no_waker() {
        let signal = Signal::new();
        for _ in 0..100 {
            let mut wait = std::pin::pin!(signal.raised());
            assert_eq!(block_on(poll_once(wait.as_mut())), None);
            assert_eq!(block_on(poll_once(wait.as_mut())), None);
            assert_eq!(signal.waiters().wakers.len(), 1);
        }
        assert!(signal.waiters().wakers.is_empty());
        block_on(or(signal.raised(), async {}));
        assert!(signal.waiters().wakers.is_empty());
    }

    #[test]
    fn a_rendezvous_is_complete_with_its_last_party() {
        assert!(Rendezvous::new(0).complete().is_raised());
        let meeting = Rendezvous::new(2);
        meeting.arrive();
        assert!(!meeting.complete().is_raised());
        meeting.arrive();
        assert!(meeting.complete().is_raised());
        meeting.arrive();
        assert!(meeting.complete().is_raised());
    }
}
