//! "Look again": wakes every task that waits for a change of shared state on one thread.
//!
//! A waiter reads the generation first, looks, and then waits for another generation, so no change is missed
//! wherever it happens. All waiters are woken: one that was cancelled must not swallow another's wake.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Poll, Waker},
};

#[derive(Default)]
pub(super) struct Signal {
    generation: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// To be read before looking.
    pub(super) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Something changed.
    pub(super) fn notify(&self) {
        self.generation.set(self.generation.get() + 1);
        let woken = std::mem::take(&mut *self.waiting.borrow_mut());
        woken.into_iter().for_each(Waker::wake);
    }

    /// Completes when something changed since `seen`.
    pub(super) async fn changed(&self, seen: u64) {
        poll_fn(|cx| {
            if self.generation.get() != seen {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
