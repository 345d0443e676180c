//! The tasks of one shard: every one is known until it ended, and a panic ends only the one it happened in.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{ShardId, Supervisor};

pub(super) type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

pub(super) struct Tasks {
    shard: ShardId,
    supervisor: Arc<dyn Supervisor>,
    slots: RefCell<Slots>,
    cancelled: Cell<bool>,
    panics: Cell<u64>,
    polls: Cell<u64>,
}

#[derive(Default)]
struct Slots {
    /// The waker of each task, for `cancel`; `None` before its first poll and in free slots.
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
    live: usize,
    /// Waits for `live == 0`.
    drained: Option<Waker>,
}

impl Tasks {
    pub(super) fn new(shard: ShardId, supervisor: Arc<dyn Supervisor>) -> Rc<Self> {
        Rc::new(Self {
            shard,
            supervisor,
            slots: RefCell::default(),
            cancelled: Cell::new(false),
            panics: Cell::new(0),
            polls: Cell::new(0),
        })
    }

    pub(super) fn live(&self) -> usize {
        self.slots.borrow().live
    }

    pub(super) fn panics(&self) -> u64 {
        self.panics.get()
    }

    /// Polls of all tasks so far.
    pub(super) fn polls(&self) -> u64 {
        self.polls.get()
    }

    /// Starts a task, or drops it when the shard is past its grace period.
    pub(super) fn spawn(self: &Rc<Self>, future: BoxFuture) {
        if self.cancelled.get() {
            return self.guarded(|| drop(future));
        }
        let slot = {
            let mut slots = self.slots.borrow_mut();
            slots.live += 1;
            slots.free.pop().unwrap_or_else(|| {
                slots.wakers.push(None);
                slots.wakers.len() - 1
            })
        };
        // Detached, without a join handle: the executor's is not safe for tasks that other threads wake.
        drop(glommio::spawn_local(Tracked { tasks: self.clone(), slot, future: Some(future) }).detach());
    }

    /// Makes every task be dropped at its next poll, and wakes it for that. [`Tasks::drained`] tells when it is done.
    pub(super) fn cancel(&self) {
        self.cancelled.set(true);
        let wakers: Vec<_> = self.slots.borrow().wakers.iter().flatten().cloned().collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Completes when no task is left. One waiter at a time.
    pub(super) async fn drained(&self) {
        poll_fn(|cx| {
            let mut slots = self.slots.borrow_mut();
            if slots.live == 0 {
                return Poll::Ready(());
            }
            slots.drained = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn release(&self, slot: usize) {
        let (waker, drained) = {
            let mut slots = self.slots.borrow_mut();
            slots.live -= 1;
            slots.free.push(slot);
            let drained = if slots.live == 0 { slots.drained.take() } else { None };
            (slots.wakers[slot].take(), drained)
        };
        drop(waker);
        if let Some(drained) = drained {
            drained.wake();
        }
    }

    fn remember(&self, slot: usize, waker: &Waker) {
        let mut slots = self.slots.borrow_mut();
        if !slots.wakers[slot].as_ref().is_some_and(|known| known.will_wake(waker)) {
            slots.wakers[slot] = Some(waker.clone());
        }
    }

    fn guarded(&self, run: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            self.panicked(panic.as_ref());
        }
    }

    fn panicked(&self, panic: &(dyn Any + Send)) {
        self.panics.set(self.panics.get() + 1);
        let message = panic_message(panic);
        tracing::error!(shard = self.shard.0, message, "a task panicked");
        self.supervisor.task_panicked(self.shard, message);
    }
}

struct Tracked {
    tasks: Rc<Tasks>,
    slot: usize,
    future: Option<BoxFuture>,
}

impl Future for Tracked {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let Some(future) = &mut this.future else { return Poll::Ready(()) };
        this.tasks.polls.set(this.tasks.polls.get() + 1);
        if !this.tasks.cancelled.get() {
            this.tasks.remember(this.slot, cx.waker());
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(())) => {}
                Err(panic) => this.tasks.panicked(panic.as_ref()),
            }
        }
        // A destructor that panics must not take the shard down either.
        let future = this.future.take();
        this.tasks.guarded(|| drop(future));
        this.tasks.release(this.slot);
        Poll::Ready(())
    }
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    if let Some(message) = panic.downcast_ref::<&str>() {
        message
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message
    } else {
        "a panic without a message"
    }
}
