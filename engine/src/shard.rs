//! The threads of a node: one pinned executor per shard, and what runs on it.
//!
//! Owns [`ShardRt`] (the [`Rt`] of a shard, over glommio), [`launch()`] and [`Shards`] (start, watch, stop and join the
//! threads), [`Signal`] and [`Rendezvous`] (how a stop is told and ordered). Invariants:
//!
//! - Every task is tracked. A shard ends only when each of them has completed or was dropped on its own thread, so
//!   that no fd, port or file outlives it (the executor itself never drops pending tasks).
//! - A panic in a task ends that task: caught, counted, logged, told to the [`Supervisor`]. A panic in a shard's main
//!   future, or in the executor, is a [`Failure`] and is meant to end the process.
//! - Every shard beats each [`HEARTBEAT`], less often while it has little to do ([`HEARTBEAT_IDLE`]): this bounds a lost
//!   park (the executor can park although tasks are runnable when the kernel deschedules it for 100 ms in a narrow
//!   window), and the watchdog reads it.
//! - The preempt timer of the executor stays at its default; a shorter one makes that window wide.
//! - The run queue is drained, and I/O, timers and wakes from other threads are looked at, at least every
//!   [`IO_TURN_MAX`] as long as tasks that keep themselves runnable do it with [`Rt::yield_now`].
//!
//! Not used here, on purpose: the executor's blocking threads (a panic there hangs its caller) and its join handles
//! for tasks that other threads wake (not safe against a wake during the drop). Left to others: signals of the
//! process, what shards serve, how many tasks may run (the doors bound connections, tiers their workers).

mod launch;
mod memory;
mod probe;
mod signal;
mod tasks;
mod watchdog;

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    io,
    rc::Rc,
    time::Duration,
};

use glommio::GlommioError;

pub use self::{
    launch::{Failure, LaunchError, Options, SHARDS_MAX, Shards, Supervisor, allowed_cpus, launch},
    memory::{BufferReport, io_memory},
    signal::{Rendezvous, Signal},
    watchdog::Heart,
};
use self::{probe::IoTurn, tasks::Tasks};
use crate::{clock::Clock, clock::MachineClock, rt::Rt};

/// How often every shard's timer fires and its [`Heart`] beats ...
pub const HEARTBEAT: Duration = Duration::from_millis(10);

/// ... while more than one task is polled in that time; otherwise the pause is doubled up to this, because waking up is
/// nearly all that an idle shard does. A park can only be lost after a longer stop of the thread than this.
pub const HEARTBEAT_IDLE: Duration = Duration::from_millis(80);

/// How long tasks that yield may keep I/O, timers and foreign wakes waiting.
pub const IO_TURN_MAX: Duration = Duration::from_micros(500);

/// The number of a shard, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    /// As an index into a table with one entry per shard.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The scheduler of the shard that this thread runs. Handed to the shard's main by [`launch()`]; stays on its thread.
#[derive(Clone)]
pub struct ShardRt {
    inner: Rc<Inner>,
}

struct Inner {
    shard: ShardId,
    clock: MachineClock,
    random: RefCell<fastrand::Rng>,
    tasks: Rc<Tasks>,
    stop: Signal,
    turn: IoTurn,
    /// When I/O was last known to be looked at.
    turned: Cell<Duration>,
}

impl ShardRt {
    /// Which shard this is.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.inner.shard
    }

    /// Raised by [`Shards::stop`]: the main future should finish its requests and return within
    /// [`Options::grace`], after which it is dropped where it stands, and its tasks with it.
    #[must_use]
    pub fn stop_signal(&self) -> &Signal {
        &self.inner.stop
    }

    /// Tasks spawned and not finished: a gauge.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.inner.tasks.live()
    }

    /// Tasks of this shard that ended by a panic, since start.
    #[must_use]
    pub fn task_panics(&self) -> u64 {
        self.inner.tasks.panics()
    }

    /// Completes after the executor has looked at I/O, timers and wakes from other threads.
    pub async fn io_turn(&self) {
        self.inner.turn.take().await;
        self.inner.turned.set(self.inner.clock.elapsed());
    }
}

impl fmt::Debug for ShardRt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardRt").field("shard", &self.inner.shard).field("tasks", &self.tasks()).finish()
    }
}

impl Rt for ShardRt {
    type Clock = MachineClock;

    fn clock(&self) -> &MachineClock {
        &self.inner.clock
    }

    /// As [`Rt::spawn`]. A panic in the task is caught, counted, logged and told to the [`Supervisor`].
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.inner.tasks.spawn(Box::pin(task));
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        sleep(duration)
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        let rt = self.clone();
        async move {
            // The executor looks at its rings only when no task is runnable: yielding alone would starve them.
            if rt.inner.clock.elapsed().saturating_sub(rt.inner.turned.get()) >= IO_TURN_MAX {
                rt.io_turn().await;
            } else {
                futures_lite::future::yield_now().await;
            }
        }
    }

    fn random(&self) -> u64 {
        self.inner.random.borrow_mut().u64(..)
    }
}

async fn sleep(duration: Duration) {
    glommio::timer::Timer::new(duration).await;
}

/// The system's error under one of glommio's, with its errno; `From` of the two types loses it.
pub(crate) fn io_error<T: fmt::Debug>(error: GlommioError<T>) -> io::Error {
    match error {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
