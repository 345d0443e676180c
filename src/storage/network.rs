//! L1: a cache shared by nodes, behind the network executor.
//!
//! Owns [`NetworkExecutor`], the thread that a client of such a cache runs on, and with it L1's place among the tiers:
//! a shard holds a [`Bridge`] to it, as it does to L3. Everything that goes that way is bounded (requests by
//! [`CREDITS_PER_CLIENT`](super::executor::CREDITS_PER_CLIENT), bodies by their windows), and `multi_tier` lets L1 lag
//! and fail without the client of the node noticing more than a miss.
//!
//! Left to others: the client itself. There is none yet, so no setting turns L1 on, a node starts no such thread, and
//! `/v1/stats` says that the tier is off.

use engine::clock::Clock;

use super::{
    bridge::Bridge,
    executor::{Executor, ExecutorError},
};
use crate::{cache::Storage, tokio_rt::TokioRt};

/// The running executor. Dropping it stops it, as [`Executor`] does.
pub struct NetworkExecutor {
    _executor: Executor,
}

impl NetworkExecutor {
    /// Starts the thread, on which `connect` makes the client, and gives one bridge for each of `clients` shards.
    /// Blocks as long as `connect` takes.
    ///
    /// # Errors
    /// `connect`'s, or the thread did not start.
    pub fn start<C, S, E>(
        clock: C,
        clients: usize,
        connect: impl AsyncFnOnce(TokioRt<C>) -> Result<S, E> + Send + 'static,
    ) -> Result<(Self, Vec<Bridge>), ExecutorError<E>>
    where
        C: Clock + Send,
        S: Storage + 'static,
        E: Send + 'static,
    {
        let (executor, bridges) = Executor::start("network", clock, clients, connect)?;
        Ok((Self { _executor: executor }, bridges))
    }
}
