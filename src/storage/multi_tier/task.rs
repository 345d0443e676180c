//! Work that nobody can cancel half-way, and the answer of a task to another of the same shard.
//!
//! A commit, once begun, must run to its end even if the client leaves: a future in the client's own task would be
//! dropped with it. So it becomes a task of its own, but only if it has to wait; what is done at its first poll (a
//! commit into RAM) costs no task.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use engine::rt::Rt;

/// Polls once; what is not done then is to be spawned. The first poll's waker is a dummy: a spawned task is polled
/// anew.
fn begin<T>(work: &mut Pin<Box<impl Future<Output = T>>>) -> Poll<T> {
    work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Runs `work` to its end whatever happens to the caller. The caller waits for the outcome; `None`: the scheduler
/// stopped before the end.
pub(super) async fn to_the_end<R: Rt, T: 'static>(
    rt: &R,
    mut work: Pin<Box<impl Future<Output = T> + 'static>>,
) -> Option<T> {
    if let Poll::Ready(outcome) = begin(&mut work) {
        return Some(outcome);
    }
    let (outcome, answer) = once();
    rt.spawn(async move { outcome.set(work.await) });
    answer.wait().await
}

/// Runs `work` to its end whatever happens to the caller, who does not wait for it.
pub(super) fn detach<R: Rt>(rt: &R, work: impl Future<Output = ()> + 'static) {
    let mut work = Box::pin(work);
    if begin(&mut work).is_pending() {
        rt.spawn(work);
    }
}

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
    setter_gone: bool,
}

/// One value from one task to another of the same thread.
pub(super) fn once<T>() -> (Outcome<T>, Answer<T>) {
    let slot = Rc::new(RefCell::new(Slot { value: None, waker: None, setter_gone: false }));
    (Outcome(slot.clone()), Answer(slot))
}

/// The end that sets the value. Dropping it unset answers `None`.
pub(super) struct Outcome<T>(Rc<RefCell<Slot<T>>>);

impl<T> Outcome<T> {
    pub(super) fn set(self, value: T) {
        self.0.borrow_mut().value = Some(value);
    }
}

impl<T> Drop for Outcome<T> {
    fn drop(&mut self) {
        let waker = {
            let mut slot = self.0.borrow_mut();
            slot.setter_gone = true;
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The end that waits.
pub(super) struct Answer<T>(Rc<RefCell<Slot<T>>>);

impl<T> Answer<T> {
    pub(super) async fn wait(self) -> Option<T> {
        poll_fn(|cx| {
            let mut slot = self.0.borrow_mut();
            if slot.value.is_some() || slot.setter_gone {
                return Poll::Ready(slot.value.take());
            }
            slot.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}
