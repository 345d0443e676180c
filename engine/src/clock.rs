//! Time, as everything below the doors sees it.
//!
//! Owns the [`Clock`] seam and the machine's clock. Code of this workspace that is simulated never calls
//! `Instant::now` or `SystemTime::now`; it asks its `Clock`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of monotonic and wall time. Never blocks, never fails.
pub trait Clock: Clone + 'static {
    /// Time since an arbitrary origin fixed at start; never goes back. For intervals and timeouts.
    fn elapsed(&self) -> Duration;

    /// Milliseconds since the Unix epoch; may jump either way when the machine's clock is set. For expiry and
    /// versions, whose users tolerate steps.
    fn wall_ms(&self) -> u64;
}

/// The machine's clock: `CLOCK_MONOTONIC` and `CLOCK_REALTIME`.
#[derive(Clone, Copy, Debug)]
pub struct MachineClock {
    origin: Instant,
}

impl MachineClock {
    /// A clock whose monotonic origin is now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for MachineClock {
    fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        // A clock set before 1970 reads as the epoch: objects then expire late by nothing and early by nothing,
        // since versions and expiry only ever compare these values with one another.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
