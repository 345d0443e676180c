//! What the door counts on one shard: answers, bytes, latency, connections.
//!
//! Single-threaded: plain cells, no atomics; the admin door gets a [`DoorSnapshot`] by mailbox and sums the shards.
//! What happens inside a namespace is counted in [`namespace`](crate::namespace), what happens in a tier by the tier.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use hdrhistogram::Histogram;

use crate::{
    protocol::Operation,
    reason::{Reason, ReasonCounts},
};

/// Longest latency told from longer ones.
pub const LATENCY_MAX: Duration = Duration::from_secs(100);

const OPERATIONS: usize = Operation::ALL.len();

/// Counters and latencies of one shard's door. Latencies take about 0.7 MB.
#[derive(Debug)]
pub struct DoorStats {
    answers: [[Cell<u64>; 5]; OPERATIONS],
    unread: [Cell<u64>; 5],
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    reasons: RefCell<ReasonCounts>,
    cuts: RefCell<ReasonCounts>,
    latency: RefCell<[Histogram<u64>; OPERATIONS]>,
    accepted: Cell<u64>,
    refused: Cell<u64>,
    timed_out: Cell<u64>,
    waited: Cell<u64>,
}

/// The counters of one shard's door at one moment. Can be sent to another thread.
#[derive(Clone, Debug)]
pub struct DoorSnapshot {
    /// Answers by [`Operation`] and by class of status: 1xx is never counted, so index 0 is 1xx.
    pub answers: [[u64; 5]; OPERATIONS],
    /// Answers to requests whose method is none of ours, by class of status.
    pub other_answers: [u64; 5],
    /// Body bytes taken from clients, stored or not.
    pub bytes_in: u64,
    /// Body bytes given to connections.
    pub bytes_out: u64,
    /// Requests that were refused, by reason.
    pub refusals: ReasonCounts,
    /// Bodies cut while they were sent, by reason.
    pub cuts: ReasonCounts,
    /// Time from a request's head to its answer's head, in microseconds, by [`Operation`].
    pub latency_us: [Histogram<u64>; OPERATIONS],
    /// Connections served, open ones included.
    pub connections_accepted: u64,
    /// Connections turned away at the limit.
    pub connections_refused: u64,
    /// Connections closed because the client was too slow or idle for too long.
    pub connections_timed_out: u64,
    /// Requests that had to wait for their turn because too many bytes of bodies were in flight.
    pub inflight_waits: u64,
}

impl DoorSnapshot {
    /// Requests answered, whatever their method and status.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.answers.iter().flatten().chain(&self.other_answers).sum()
    }

    /// Adds another shard's.
    pub fn merge(&mut self, other: &Self) {
        let mine = self.answers.iter_mut().flatten().chain(&mut self.other_answers);
        let theirs = other.answers.iter().flatten().chain(&other.other_answers);
        mine.zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.refusals.merge(&other.refusals);
        self.cuts.merge(&other.cuts);
        for (mine, theirs) in self.latency_us.iter_mut().zip(&other.latency_us) {
            mine.add(theirs).expect("both were made with the same bounds");
        }
        self.connections_accepted += other.connections_accepted;
        self.connections_refused += other.connections_refused;
        self.connections_timed_out += other.connections_timed_out;
        self.inflight_waits += other.inflight_waits;
    }
}

impl Default for DoorStats {
    fn default() -> Self {
        Self {
            answers: Default::default(),
            unread: Default::default(),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
            reasons: RefCell::default(),
            cuts: RefCell::default(),
            latency: RefCell::new(std::array::from_fn(|_| histogram())),
            accepted: Cell::default(),
            refused: Cell::default(),
            timed_out: Cell::default(),
            waited: Cell::default(),
        }
    }
}

/// Fixed bounds: it never grows, and two of them can always be added.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(micros(LATENCY_MAX), 3).expect("the bounds are constants within its range")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

impl DoorStats {
    /// An answer of `status` was ready `after` the request's head; `None`: the method was none of ours.
    pub(super) fn answered(&self, operation: Option<Operation>, status: u16, after: Duration) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        let Some(operation) = operation else { return add(&self.unread[class], 1) };
        add(&self.answers[operation as usize][class], 1);
        self.latency.borrow_mut()[operation as usize].saturating_record(micros(after).max(1));
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.reasons.borrow_mut().count(reason);
    }

    pub(super) fn cut(&self, reason: Reason) {
        self.cuts.borrow_mut().count(reason);
    }

    pub(super) fn received(&self, bytes: u64) {
        add(&self.bytes_in, bytes);
    }

    pub(super) fn sent(&self, bytes: u64) {
        add(&self.bytes_out, bytes);
    }

    pub(super) fn connection_accepted(&self) {
        add(&self.accepted, 1);
    }

    pub(super) fn connection_refused(&self) {
        add(&self.refused, 1);
    }

    pub(super) fn connection_timed_out(&self) {
        add(&self.timed_out, 1);
    }

    pub(super) fn waited(&self) {
        add(&self.waited, 1);
    }

    /// What was counted so far.
    #[must_use]
    pub fn snapshot(&self) -> DoorSnapshot {
        let read = |classes: &[Cell<u64>; 5]| std::array::from_fn(|class| classes[class].get());
        DoorSnapshot {
            answers: std::array::from_fn(|operation| read(&self.answers[operation])),
            other_answers: read(&self.unread),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            refusals: self.reasons.borrow().clone(),
            cuts: self.cuts.borrow().clone(),
            latency_us: self.latency.borrow().clone(),
            connections_accepted: self.accepted.get(),
            connections_refused: self.refused.get(),
            connections_timed_out: self.timed_out.get(),
            inflight_waits: self.waited.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_add_up() {
        let stats = DoorStats::default();
        stats.answered(Some(Operation::Get), 206, Duration::from_micros(300));
        stats.answered(Some(Operation::Get), 503, Duration::from_secs(1_000));
        stats.answered(None, 405, Duration::ZERO);
        stats.refused(Reason::Method);
        stats.cut(Reason::Corrupted);
        stats.sent(10);
        stats.received(7);
        let mut twice = stats.snapshot();
        twice.merge(&stats.snapshot());
        assert_eq!(twice.answers[Operation::Get as usize], [0, 2, 0, 0, 2]);
        assert_eq!((twice.other_answers, twice.bytes_in, twice.bytes_out), ([0, 0, 0, 2, 0], 14, 20));
        assert_eq!((twice.refusals.get(Reason::Method), twice.cuts.get(Reason::Corrupted)), (2, 2));
        let gets = &twice.latency_us[Operation::Get as usize];
        assert_eq!(gets.len(), 4);
        assert!((299..=301).contains(&gets.value_at_quantile(0.5)), "{}", gets.value_at_quantile(0.5));
        assert!(gets.max() >= micros(LATENCY_MAX), "what is off the scale counts at its end");
    }
}
