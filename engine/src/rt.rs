//! The seam to a single-threaded scheduler: spawn, sleep, yield.
//!
//! Owns the [`Rt`] trait. Shards implement it over glommio ([`crate::shard`]), executor threads over tokio (in
//! the crate above), the simulator over a seeded run queue ([`sim`]). Values cross between any of them through
//! [`crate::mailbox`], whose wakes are plain [`std::task::Waker`]s and so need no seam of their own.

pub mod sim;

use std::{future::Future, time::Duration};

use crate::clock::Clock;

/// A handle to the scheduler of the current thread. Cheap to clone; not `Send`.
pub trait Rt: Clone + 'static {
    /// The time this scheduler sleeps by.
    type Clock: Clock;

    /// The clock.
    fn clock(&self) -> &Self::Clock;

    /// Starts a task that nobody joins. It is dropped unfinished only when the scheduler stops after its grace
    /// period; results leave it through [`crate::mailbox`].
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Completes after at least `duration`. Dropping the future cancels the timer.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;

    /// Gives other runnable tasks a turn, and I/O and timers theirs when this one has been running for long. In the
    /// simulator the seed chooses who runs next.
    fn yield_now(&self) -> impl Future<Output = ()> + 'static;

    /// Uniform random bits, from the machine's entropy or, in the simulator, from its seed. Not for secrets.
    fn random(&self) -> u64;
}
