//! A few plain threads for calls that block on a disk.
//!
//! Own threads rather than tokio's blocking pool: their number and the work in hand are bounded by names of ours,
//! they serve whatever scheduler the stores run on, and the end of the pool waits for what was begun, so that no
//! half-done file operation outlives the executor. Bounds: [`POOL_THREADS`] threads; [`POOL_JOBS_MAX`] jobs in hand,
//! and more callers wait their turn in order; [`CLEAN_UPS_MAX`] clean-ups, and more run where they are asked for. The
//! queue has room for both.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use crossbeam_channel as queue;
use engine::mailbox::oneshot;
use tokio::sync::Semaphore;

/// Threads of a pool.
pub const POOL_THREADS: usize = 4;

/// Jobs running or about to.
pub const POOL_JOBS_MAX: usize = 2 * POOL_THREADS;

/// Clean-ups that may wait. Each closes and removes a file that was being written.
pub const CLEAN_UPS_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// A handle to the threads; the last one to go waits for them.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Option<queue::Sender<Job>>,
    places: Arc<Semaphore>,
    clean_ups: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads, named `{name}-0` and so on.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(name: &str) -> io::Result<Self> {
        let (jobs, taken) = queue::bounded::<Job>(POOL_JOBS_MAX + CLEAN_UPS_MAX);
        let start = |i| {
            let taken = taken.clone();
            thread::Builder::new().name(format!("{name}-{i}")).spawn(move || taken.into_iter().for_each(|job| job()))
        };
        let threads = (0..POOL_THREADS).map(start).collect::<io::Result<_>>()?;
        let places = Arc::new(Semaphore::new(POOL_JOBS_MAX));
        let clean_ups = Arc::new(Semaphore::new(CLEAN_UPS_MAX));
        Ok(Self { inner: Arc::new(Inner { jobs: Some(jobs), places, clean_ups, threads }) })
    }

    /// Runs `job` on a thread of the pool; `None`: it panicked. Dropping the future before the job's turn gives it
    /// up; after that the job runs to its end.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let place = self.inner.places.clone().acquire_owned().await.ok()?;
        let (reply, answer) = oneshot();
        self.queue(move || {
            drop(reply.send(guarded(job)));
            drop(place);
        });
        answer.await.flatten()
    }

    /// Runs `job` some time, and tells nobody. For clean-up, from `drop`: does not wait; where too many do, it runs
    /// before this returns.
    pub fn clean_up(&self, job: impl FnOnce() + Send + 'static) {
        match self.inner.clean_ups.clone().try_acquire_owned() {
            Ok(place) => self.queue(move || {
                guarded(job);
                drop(place);
            }),
            Err(_full) => {
                guarded(job);
            }
        }
    }

    /// The caller has a place, so that the queue is never full.
    fn queue(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = &self.inner.jobs {
            // The threads live as long as this handle.
            drop(jobs.send(Box::new(job)));
        }
    }
}

/// A panic must not take the thread with it; `None` tells of it.
fn guarded<T>(job: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(job)).ok();
    if done.is_none() {
        tracing::error!("a job of a disk thread panicked");
    }
    done
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // Its panics were caught.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn jobs_run_panics_are_told_and_the_end_waits() {
        let pool = Pool::start("test").expect("threads");
        futures_lite::future::block_on(async {
            assert_eq!(pool.run(|| 7).await, Some(7));
            for _ in 0..POOL_THREADS {
                assert_eq!(
                    pool.run(|| if true {
                        panic!("on purpose")
                    })
                    .await,
                    None
                );
            }
            assert_eq!(pool.run(|| 8).await, Some(8));
        });
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let done = done.clone();
            pool.clean_up(move || {
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 100);
    }

    #[test]
    fn clean_ups_beyond_the_bound_run_where_they_are() {
        let pool = Pool::start("test").expect("threads");
        let (let_go, held) = queue::bounded::<()>(0);
        for _ in 0..POOL_THREADS {
            let held = held.clone();
            pool.clean_up(move || assert!(held.recv().is_err(), "let go by the drop of the sender"));
        }
        let done = Arc::new(AtomicUsize::new(0));
        for _ in POOL_THREADS..CLEAN_UPS_MAX + 7 {
            let done = done.clone();
            pool.clean_up(move || {
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        assert_eq!(done.load(Ordering::SeqCst), 7, "the others wait");
        // Jobs have places of their own.
        let (late, mut cx) = (pool.run(|| 9), std::task::Context::from_waker(std::task::Waker::noop()));
        let mut late = Box::pin(late);
        assert!(late.as_mut().poll(&mut cx).is_pending());
        drop(let_go);
        assert_eq!(futures_lite::future::block_on(late), Some(9));
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), CLEAN_UPS_MAX + 7 - POOL_THREADS);
    }
}
