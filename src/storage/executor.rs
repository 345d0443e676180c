//! Threads that serve a storage to the shards: what the durable and the network executor have in common.
//!
//! One thread with a tokio scheduler makes the storage and serves it through [`bridge`](super::bridge): requests and
//! bodies cross in bounded channels, answers wake the shard that asked, and a shard never blocks. Owned here: the
//! thread, its start and its stop. Stop: no new requests, those under way are finished within [`STOP_GRACE`].
//!
//! Left to others: what the storage is, and what else is asked of its thread.

use std::{
    io,
    rc::Rc,
    thread::{self, JoinHandle},
    time::Duration,
};

use engine::{
    clock::Clock,
    mailbox::{Answer, Reply, mailbox, oneshot},
    rt::Rt,
};
use futures_lite::future::or;

use super::bridge::{Ask, Bridge, serve_until};
use crate::{cache::Storage, tokio_rt::TokioRt};

/// Requests one client may have waiting in an executor's mailbox; at the bound it waits for a credit.
pub const CREDITS_PER_CLIENT: usize = 256;

/// How long a stop waits for what is under way.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// Why an executor did not start.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError<E> {
    /// The storage does not open.
    #[error(transparent)]
    Open(E),
    /// The system has no more threads.
    #[error("the system has no thread for the {name} executor")]
    Thread {
        /// The executor.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread ended before it said anything: a bug. The log has the cause.
    #[error("the {0} executor ended while it started")]
    Ended(&'static str),
}

/// A running executor. Dropping it stops it, in order, and waits for that: at most [`STOP_GRACE`] and what the storage
/// still does when it is dropped. Requests that were not taken up fail at their clients.
pub struct Executor {
    name: &'static str,
    stop: Option<Reply<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Executor {
    /// Starts the thread and waits until `open`, which runs on it, has made the storage. Gives one bridge a client.
    /// Blocks as long as `open` takes.
    ///
    /// # Errors
    /// See [`ExecutorError`].
    pub fn start<C, S, E>(
        name: &'static str,
        clock: C,
        clients: usize,
        open: impl AsyncFnOnce(TokioRt<C>) -> Result<S, E> + Send + 'static,
    ) -> Result<(Self, Vec<Bridge>), ExecutorError<E>>
    where
        C: Clock + Send,
        S: Storage + 'static,
        E: Send + 'static,
    {
        let (started, starts) = oneshot();
        let (stop, stops) = oneshot();
        let run = move || {
            let main = async |rt: TokioRt<C>| match open(rt.clone()).await {
                Ok(storage) => serve(name, rt, storage, clients, started, stops).await,
                Err(error) => drop(started.send(Err(error))),
            };
            if let Err(error) = TokioRt::run(clock, main) {
                tracing::error!(%error, "the {name} executor has no scheduler");
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run);
        let thread = thread.map_err(|source| ExecutorError::Thread { name, source })?;
        let executor = Self { name, stop: Some(stop), thread: Some(thread) };
        // On an error the drop of `executor` waits for the thread, which has closed what it had opened.
        match starts.wait_blocking() {
            Some(bridges) => Ok((executor, bridges.map_err(ExecutorError::Open)?)),
            None => Err(ExecutorError::Ended(name)),
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if let Some(stop) = self.stop.take() {
            // A thread that has ended need not be told.
            let _ = stop.send(());
        }
        if thread.join().is_err() {
            tracing::error!("the {} executor panicked", self.name);
        }
    }
}

async fn serve<C: Clock, S: Storage + 'static, E: Send + 'static>(
    name: &'static str,
    rt: TokioRt<C>,
    storage: S,
    clients: usize,
    started: Reply<Result<Vec<Bridge>, E>>,
    stops: Answer<()>,
) {
    let asks = mailbox::<Ask>(clients * CREDITS_PER_CLIENT);
    // The capacity is exactly theirs.
    let bridges = (0..clients).filter_map(|_| asks.sender(CREDITS_PER_CLIENT)).map(Bridge::new).collect();
    if started.send(Ok(bridges)).is_err() {
        return;
    }
    let (stopping, stopped) = oneshot();
    let stop = async move {
        stops.await;
        drop(stopping.send(()));
    };
    let grace = async {
        stopped.await;
        rt.sleep(STOP_GRACE).await;
        tracing::warn!("the {name} executor stops with requests under way");
    };
    or(serve_until(rt.clone(), Rc::new(storage), asks, stop), grace).await;
}
