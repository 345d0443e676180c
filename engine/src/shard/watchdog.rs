//! A plain thread that notices when a shard's heart stops.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Failure, ShardId, Supervisor};

/// Looks per `stall_max`.
const LOOKS: u32 = 16;

const NOT_STARTED: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// The pulse of one shard, readable from any thread.
#[derive(Debug)]
pub struct Heart {
    shard: ShardId,
    beats: AtomicU64,
    state: AtomicU8,
    born: Instant,
    /// Microseconds from `born` to the last beat.
    last_us: AtomicU64,
    gap_us_max: AtomicU64,
}

impl Heart {
    pub(super) fn new(shard: ShardId) -> Arc<Self> {
        Arc::new(Self {
            shard,
            beats: AtomicU64::new(0),
            state: AtomicU8::new(NOT_STARTED),
            born: Instant::now(),
            last_us: AtomicU64::new(0),
            gap_us_max: AtomicU64::new(0),
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Beats since start, one per [`super::HEARTBEAT`], or per [`super::HEARTBEAT_IDLE`] at least, as long as the shard
    /// takes its turns.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Time since the last beat; while the shard runs, much more than [`super::HEARTBEAT_IDLE`] is a stall.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_micros(self.last_us.load(Ordering::Relaxed)))
    }

    /// The longest time between two beats so far, less what was meant to be longer than [`super::HEARTBEAT`].
    #[must_use]
    pub fn gap_max(&self) -> Duration {
        Duration::from_micros(self.gap_us_max.load(Ordering::Relaxed))
    }

    /// Whether the shard runs: started, and not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state.load(Ordering::SeqCst) == RUNNING
    }

    /// A beat, meant to come `pause` after the last.
    pub(super) fn beat(&self, pause: Duration) {
        let now_us = u64::try_from(self.born.elapsed().as_micros()).unwrap_or(u64::MAX);
        let last_us = self.last_us.swap(now_us, Ordering::Relaxed);
        // Up to the first beat the shard was starting.
        if self.beats.fetch_add(1, Ordering::Relaxed) > 0 {
            let idle_us = u64::try_from(pause.saturating_sub(super::HEARTBEAT).as_micros()).unwrap_or(u64::MAX);
            self.gap_us_max.fetch_max(now_us.saturating_sub(last_us).saturating_sub(idle_us), Ordering::Relaxed);
        }
    }

    pub(super) fn start(&self) {
        self.state.store(RUNNING, Ordering::SeqCst);
    }

    pub(super) fn end(&self) {
        self.state.store(ENDED, Ordering::SeqCst);
    }
}

pub(super) struct Watchdog {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Reports each of `hearts` once if it runs without a beat for `stall_max`.
    pub(super) fn start(
        hearts: Vec<Arc<Heart>>,
        stall_max: Duration,
        supervisor: Arc<dyn Supervisor>,
    ) -> io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watch(&hearts, stall_max, supervisor.as_ref(), &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        // A supervisor that panicked took the watchdog with it; the process is on its way out.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// What is known of one heart.
struct Pulse {
    beats: u64,
    silent_for: Duration,
    reported: bool,
}

impl Pulse {
    /// Takes one look after `waited`; `true` when the heart has now been silent for `stall_max`.
    fn look(&mut self, heart: &Heart, waited: Duration, stall_max: Duration) -> bool {
        let beats = heart.beats();
        if !heart.is_running() || beats != self.beats {
            (self.beats, self.silent_for, self.reported) = (beats, Duration::ZERO, false);
            return false;
        }
        self.silent_for += waited;
        let stalled = self.silent_for >= stall_max && !self.reported;
        self.reported |= stalled;
        stalled
    }
}

fn watch(hearts: &[Arc<Heart>], stall_max: Duration, supervisor: &dyn Supervisor, stop: &(Mutex<bool>, Condvar)) {
    let every = (stall_max / LOOKS).max(Duration::from_millis(1));
    let mut pulses: Vec<_> =
        hearts.iter().map(|_| Pulse { beats: 0, silent_for: Duration::ZERO, reported: false }).collect();
    let mut stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopped {
        let looked = Instant::now();
        stopped = stop.1.wait_timeout(stopped, every).unwrap_or_else(PoisonError::into_inner).0;
        if *stopped {
            return;
        }
        drop(stopped);
        // A look that comes late (the whole process was stopped or starved) counts as one look: the shards did not
        // run either.
        let waited = looked.elapsed().min(every * 2);
        for (pulse, heart) in pulses.iter_mut().zip(hearts) {
            if pulse.look(heart, waited, stall_max) {
                let failure = Failure::Stalled { shard: heart.shard(), silent_for: pulse.silent_for };
                tracing::error!(%failure, "shard failed");
                supervisor.shard_failed(failure);
            }
        }
        stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_heart_that_is_silent_for_long_enough_is_reported_and_once() {
        let heart = Heart::new(ShardId(3));
        let mut pulse = Pulse { beats: 0, silent_for: Duration::ZERO, reported: false };
        let (tick, max) = (Duration::from_secs(1), Duration::from_secs(3));
        let mut looks = |heart: &Heart, count| (0..count).filter(|_| pulse.look(heart, tick, max)).count();
        assert_eq!(looks(&heart, 10), 0);
        heart.start();
        assert_eq!(looks(&heart, 2), 0);
        heart.beat(Duration::ZERO);
        assert_eq!(looks(&heart, 3), 0);
        assert_eq!(looks(&heart, 1), 1);
        assert_eq!(looks(&heart, 10), 0);
        heart.beat(Duration::ZERO);
        assert_eq!(looks(&heart, 4), 1);
        heart.beat(Duration::ZERO);
        heart.end();
        assert_eq!(looks(&heart, 10), 0);
    }
}
