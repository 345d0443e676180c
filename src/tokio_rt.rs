//! The scheduler seam over tokio, for executor threads.
//!
//! Owns [`TokioRt`]. One thread, one current-thread runtime, one `LocalSet`: tasks need not be `Send`, and every
//! executor of the node (durable, network) is made the same way. Left to others: which thread, and when it stops.

use std::{future::Future, io, time::Duration};

use engine::{
    clock::{Clock, MachineClock},
    rt::Rt,
};
use tokio::{runtime::Builder, task::LocalSet};

/// A handle to the executor of the current thread. Useful only inside [`TokioRt::run`].
#[derive(Clone, Debug)]
pub struct TokioRt<C = MachineClock> {
    clock: C,
}

impl<C: Clock> TokioRt<C> {
    /// Runs `main` on this thread to its end, and the tasks it spawns as long as that lasts: those still unfinished
    /// then are dropped. Blocks.
    ///
    /// # Errors
    /// The runtime could not be made: no file descriptors left.
    pub fn run<T>(clock: C, main: impl AsyncFnOnce(Self) -> T) -> io::Result<T> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        let value = tasks.block_on(&runtime, main(Self { clock }));
        // Tasks go before the runtime whose timers and sockets they hold.
        drop(tasks);
        Ok(value)
    }
}

impl<C: Clock> Rt for TokioRt<C> {
    type Clock = C;

    fn clock(&self) -> &C {
        &self.clock
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        tokio::time::sleep(duration)
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        tokio::task::yield_now()
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    #[test]
    fn tasks_run_beside_main_and_end_with_it() {
        struct OnDrop(Rc<Cell<bool>>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let (ran, dropped) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let guard = OnDrop(dropped.clone());
        let (ran_too, clock) = (ran.clone(), MachineClock::start());
        TokioRt::run(clock, async |rt: TokioRt| {
            rt.spawn(async move {
                ran_too.set(true);
                let _held = guard;
                std::future::pending::<()>().await;
            });
            let begun = rt.clock().elapsed();
            rt.sleep(Duration::from_millis(2)).await;
            assert!(rt.clock().elapsed() - begun >= Duration::from_millis(2));
        })
        .expect("a runtime");
        assert!(ran.get() && dropped.get());
    }
}
