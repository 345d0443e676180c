//! Starting shards, stopping them in order, and saying why one cannot go on.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    future::{Future, poll_fn},
    io::{self, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    thread::JoinHandle,
    time::Duration,
};

use futures_lite::future::or;
use glommio::{LocalExecutorBuilder, Placement};
use rustix::thread::{CpuSet, sched_getaffinity};

use super::{
    BufferReport, HEARTBEAT, HEARTBEAT_IDLE, Heart, Inner, ShardId, ShardRt, Signal, io_error,
    memory::Measure,
    probe::{IoTurn, settle_polling},
    sleep,
    tasks::{BoxFuture, Tasks, panic_message},
    watchdog::Watchdog,
};
use crate::{
    clock::{Clock, MachineClock},
    mailbox::{Answer, Reply, oneshot},
};

/// Shards a process can have.
pub const SHARDS_MAX: usize = 1024;

/// How to start shards.
#[derive(Clone, Debug)]
pub struct Options {
    /// The CPUs to pin to, shard `i` to `cpus[i % cpus.len()]`; empty: [`allowed_cpus`].
    pub cpus: Vec<usize>,
    /// One directory on each disk that shards will open files of; written to at start. Empty if they open none.
    pub probe_dirs: Vec<PathBuf>,
    /// A shard without a heartbeat for this long is a [`Failure`].
    pub stall_max: Duration,
    /// How long a stop waits for a shard's main future and tasks before it drops them.
    pub grace: Duration,
    /// The clock of all shards.
    pub clock: MachineClock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cpus: Vec::new(),
            probe_dirs: Vec::new(),
            stall_max: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            clock: MachineClock::start(),
        }
    }
}

/// Why shards could not be started. None is left running.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Zero, or more than [`SHARDS_MAX`].
    #[error("{0} shards asked for; between 1 and {SHARDS_MAX} are possible")]
    Count(usize),
    /// The process's CPUs, or the random source, cannot be read.
    #[error("cannot read {what}: {source}")]
    System {
        /// What was to be read.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start the thread of shard {shard}: {source}")]
    Thread {
        /// Whose.
        shard: ShardId,
        /// What the system said.
        source: io::Error,
    },
    /// An executor cannot be built: io_uring is missing or forbidden, or RLIMIT_MEMLOCK is below 512 KiB.
    #[error("cannot build the executor of shard {shard} on CPU {cpu}: {source}")]
    Executor {
        /// Whose.
        shard: ShardId,
        /// Where.
        cpu: usize,
        /// What the executor said.
        source: io::Error,
    },
    /// A directory for flash files cannot be written, or its file system has no direct I/O.
    #[error("shard {shard} cannot do direct I/O in {}: {source}", dir.display())]
    Probe {
        /// Whose.
        shard: ShardId,
        /// Where.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why the process should end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The main future of a shard, or its executor, panicked.
    #[error("shard {shard} panicked: {message}")]
    Panicked {
        /// Which.
        shard: ShardId,
        /// What the panic said.
        message: String,
    },
    /// A shard took no turn for [`Options::stall_max`].
    #[error("shard {shard} has stalled for {silent_for:?}")]
    Stalled {
        /// Which.
        shard: ShardId,
        /// How long so far.
        silent_for: Duration,
    },
}

/// Who is told when something on a shard goes wrong. Called on the shard's thread (a panic) or the watchdog's (a
/// stall); must not panic.
pub trait Supervisor: Send + Sync + 'static {
    /// The shard cannot go on: end the process with this reason. When this returns, a shard that panicked drops its
    /// tasks and ends; a stalled one is left alone.
    fn shard_failed(&self, failure: Failure);

    /// A spawned task panicked and was dropped; the shard goes on. Logged and counted already.
    fn task_panicked(&self, shard: ShardId, message: &str) {
        let _ = (shard, message);
    }
}

/// The CPUs that this process may run on, ascending.
///
/// # Errors
/// The system refuses to say, or has more CPUs than the set holds.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Only one start at a time measures what the kernel pins for it.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts one shard per element of `mains`, each on a pinned thread that runs the future its element builds there.
///
/// Blocks until every executor stands; only then are the mains called, so an error means that none of them ran. The
/// process should install its `tracing` subscriber first. Shards run until their mains return, or until
/// [`Shards::stop`].
///
/// # Errors
/// See [`LaunchError`].
pub fn launch<M, F>(options: &Options, mains: Vec<M>, supervisor: Arc<dyn Supervisor>) -> Result<Shards, LaunchError>
where
    M: FnOnce(ShardRt, ShardId) -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let count = mains.len();
    if count == 0 || count > SHARDS_MAX {
        return Err(LaunchError::Count(count));
    }
    let cpus = match &options.cpus[..] {
        [] => allowed_cpus().map_err(|source| LaunchError::System { what: "the allowed CPUs", source })?,
        chosen => chosen.to_vec(),
    };
    let mut seeds = entropy().map_err(|source| LaunchError::System { what: "/dev/urandom", source })?;
    let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let measure = Measure::start(count);
    let mut shards = Shards {
        stop: Signal::new(),
        threads: Vec::new(),
        hearts: Vec::new(),
        failures: Arc::default(),
        watchdog: None,
        buffers: measure.finish(),
    };
    let mut gates = Vec::new();
    for (index, main) in mains.into_iter().enumerate() {
        let shard = ShardId(u16::try_from(index).expect("SHARDS_MAX fits"));
        let (ready, is_ready) = oneshot();
        let (open, gate) = oneshot();
        let heart = Heart::new(shard);
        let seat = Seat {
            shard,
            cpu: cpus[index % cpus.len()],
            io_memory: measure.io_memory(),
            probe_dirs: options.probe_dirs.clone(),
            grace: options.grace,
            clock: options.clock,
            random: seeds.fork(),
            heart: heart.clone(),
            stop: shards.stop.clone(),
            failures: shards.failures.clone(),
            supervisor: supervisor.clone(),
        };
        let thread = std::thread::Builder::new()
            .name(format!("shard-{shard}"))
            .spawn(move || seat.run(main, ready, gate))
            .map_err(|source| LaunchError::Thread { shard, source })?;
        shards.threads.push(thread);
        shards.hearts.push(heart);
        gates.push(open);
        // One after the other, so that what the kernel pins meanwhile is known to be theirs.
        is_ready.wait_blocking().unwrap_or_else(|| {
            let source = io::Error::other("its thread ended");
            Err(LaunchError::Thread { shard, source })
        })?;
    }
    shards.buffers = measure.finish();
    drop(starting);
    let watchdog = Watchdog::start(shards.hearts.clone(), options.stall_max, supervisor)
        .map_err(|source| LaunchError::System { what: "a thread for the watchdog", source })?;
    shards.watchdog = Some(watchdog);
    for gate in gates {
        // A shard that ended already has told its failure.
        drop(gate.send(()));
    }
    Ok(shards)
}

fn entropy() -> io::Result<fastrand::Rng> {
    let mut seed = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(fastrand::Rng::with_seed(u64::from_ne_bytes(seed)))
}

/// The running shards of a process. Dropping it stops and joins them.
pub struct Shards {
    // Fields drop in this order; threads are joined in `Drop` before any of it.
    stop: Signal,
    threads: Vec<JoinHandle<()>>,
    hearts: Vec<Arc<Heart>>,
    failures: Arc<Mutex<Vec<Failure>>>,
    watchdog: Option<Watchdog>,
    buffers: BufferReport,
}

impl Shards {
    /// Raises every shard's stop signal. Returns at once; the shards have [`Options::grace`] to end by themselves.
    pub fn stop(&self) {
        self.stop.raise();
    }

    /// The signal that [`Shards::stop`] raises, for whoever else stops with the shards.
    #[must_use]
    pub fn stop_signal(&self) -> &Signal {
        &self.stop
    }

    /// Waits until every shard has ended; blocks the thread. A stalled shard keeps it waiting, and the watchdog
    /// watching. Empty when no main future panicked.
    #[must_use]
    pub fn join(mut self) -> Vec<Failure> {
        self.join_threads();
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether all shards have ended.
    #[must_use]
    pub fn are_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// The pulse of each shard, in order.
    #[must_use]
    pub fn hearts(&self) -> &[Arc<Heart>] {
        &self.hearts
    }

    /// Whether the executors' buffers are registered with the kernel.
    #[must_use]
    pub fn buffers(&self) -> BufferReport {
        self.buffers
    }

    fn join_threads(&mut self) {
        for thread in self.threads.drain(..) {
            // Panics are caught and told inside the thread.
            drop(thread.join());
        }
        self.watchdog = None;
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        self.stop.raise();
        self.join_threads();
    }
}

/// All that one shard's thread is given.
struct Seat {
    shard: ShardId,
    cpu: usize,
    io_memory: usize,
    probe_dirs: Vec<PathBuf>,
    grace: Duration,
    clock: MachineClock,
    random: fastrand::Rng,
    heart: Arc<Heart>,
    stop: Signal,
    failures: Arc<Mutex<Vec<Failure>>>,
    supervisor: Arc<dyn Supervisor>,
}

/// How a main future ended.
enum Ended {
    Returned,
    Panicked(String),
    /// Dropped at the end of the grace period.
    Overdue,
}

impl Seat {
    /// The life of a shard's thread.
    fn run<M, F>(self, main: M, ready: Reply<Result<(), LaunchError>>, gate: Answer<()>)
    where
        M: FnOnce(ShardRt, ShardId) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        let (shard, cpu) = (self.shard, self.cpu);
        let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name(&format!("shard-{shard}"))
            .io_memory(self.io_memory)
            .make();
        let executor = match executor {
            Ok(executor) => executor,
            Err(error) => {
                let source = io_error(error);
                drop(ready.send(Err(LaunchError::Executor { shard, cpu, source })));
                return;
            }
        };
        let seat = Rc::new(self);
        let life = seat.clone();
        let ran = catch_unwind(AssertUnwindSafe(|| {
            executor.run(async move {
                // The root future is held by a join handle, which is not safe to wake from another thread. So it
                // waits for nothing but this task's end, on this thread.
                let (end, ended) = oneshot::<()>();
                let life = async move {
                    life.live(main, ready, gate).await;
                    drop(end);
                };
                drop(glommio::spawn_local(life).detach());
                ended.await;
            });
        }));
        seat.heart.end();
        if let Err(panic) = ran {
            seat.failed(panic_message(panic.as_ref()));
        }
    }

    async fn live<M, F>(&self, main: M, ready: Reply<Result<(), LaunchError>>, gate: Answer<()>)
    where
        M: FnOnce(ShardRt, ShardId) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        let turn = match self.prepare().await {
            Ok(turn) => turn,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let rt = ShardRt {
            inner: Rc::new(Inner {
                shard: self.shard,
                clock: self.clock,
                random: RefCell::new(self.random.clone()),
                tasks: Tasks::new(self.shard, self.supervisor.clone()),
                stop: self.stop.clone(),
                turn,
                turned: Cell::new(self.clock.elapsed()),
            }),
        };
        let pulse = Tasks::new(self.shard, self.supervisor.clone());
        pulse.spawn(Box::pin(beat(self.heart.clone(), rt.inner.tasks.clone())));
        self.heart.start();
        drop(ready.send(Ok(())));
        if gate.await.is_some() {
            self.serve(main, &rt).await;
        }
        pulse.cancel();
        pulse.drained().await;
        // Files that tasks dropped are closed by the next turn.
        rt.inner.turn.take().await;
        rt.inner.turn.close().await;
    }

    async fn prepare(&self) -> Result<IoTurn, LaunchError> {
        let shard = self.shard;
        for dir in &self.probe_dirs {
            let dir = dir.clone();
            settle_polling(&dir, shard).await.map_err(|source| LaunchError::Probe { shard, dir, source })?;
        }
        IoTurn::open().await.map_err(|source| LaunchError::Executor { shard, cpu: self.cpu, source })
    }

    /// Runs the main future and then the tasks it left behind, to their end or to the end of the grace period.
    async fn serve<M, F>(&self, main: M, rt: &ShardRt)
    where
        M: FnOnce(ShardRt, ShardId) -> F,
        F: Future<Output = ()> + 'static,
    {
        let stopped_at = Cell::new(None);
        let overdue = async {
            self.stop.raised().await;
            stopped_at.set(Some(self.clock.elapsed()));
            sleep(self.grace).await;
            Ended::Overdue
        };
        let (handle, shard) = (rt.clone(), self.shard);
        let future = catch_unwind(AssertUnwindSafe(|| Box::pin(main(handle, shard)) as BoxFuture));
        let ended = match future {
            Ok(future) => or(guarded(future), overdue).await,
            Err(panic) => Ended::Panicked(panic_message(panic.as_ref()).to_owned()),
        };
        let grace_left = match &ended {
            Ended::Returned => stopped_at
                .get()
                .map_or(self.grace, |at| self.grace.saturating_sub(self.clock.elapsed().saturating_sub(at))),
            Ended::Panicked(message) => {
                self.failed(message);
                Duration::ZERO
            }
            Ended::Overdue => {
                tracing::warn!(shard = self.shard.0, grace = ?self.grace, "main did not stop in time: dropped");
                Duration::ZERO
            }
        };
        let tasks = &rt.inner.tasks;
        or(tasks.drained(), sleep(grace_left)).await;
        if tasks.live() > 0 {
            tracing::warn!(shard = self.shard.0, tasks = tasks.live(), "tasks did not end in time: dropped");
        }
        // Also when none is left: what destructors spawn from here on is dropped at once.
        tasks.cancel();
        tasks.drained().await;
    }

    fn failed(&self, message: &str) {
        let failure = Failure::Panicked { shard: self.shard, message: message.to_owned() };
        tracing::error!(%failure, "shard failed");
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure.clone());
        self.supervisor.shard_failed(failure);
    }
}

/// Runs a main future; a panic in it, or in its destructor, is its end.
async fn guarded(future: BoxFuture) -> Ended {
    let mut future = Some(future);
    let polled = poll_fn(|cx| {
        let Some(running) = &mut future else { return Poll::Ready(Ok(())) };
        match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await;
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(future)));
    match polled.and(dropped) {
        Ok(()) => Ended::Returned,
        Err(panic) => Ended::Panicked(panic_message(panic.as_ref()).to_owned()),
    }
}

async fn beat(heart: Arc<Heart>, tasks: Rc<Tasks>) {
    let (mut pause, mut polls) = (HEARTBEAT, 0);
    loop {
        sleep(pause).await;
        heart.beat(pause);
        let polled = tasks.polls() - polls;
        polls += polled;
        pause = pause_after(pause, polled);
    }
}

/// The pause before the next beat, when `polled` tasks were polled in the last `pause`.
fn pause_after(pause: Duration, polled: u64) -> Duration {
    let is_idle = u128::from(polled) * HEARTBEAT.as_nanos() <= pause.as_nanos();
    if is_idle { (pause * 2).min(HEARTBEAT_IDLE) } else { HEARTBEAT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_rare_only_while_little_is_polled() {
        let pauses = |mut pause, polled: &[u64]| -> Vec<_> {
            let next = polled.iter().map(|polled| {
                pause = pause_after(pause, *polled);
                pause.as_millis()
            });
            next.collect()
        };
        assert_eq!(pauses(HEARTBEAT, &[0, 1, 1, 8, 9, 1, 3]), [20, 40, 80, 80, 10, 20, 10]);
    }
}
