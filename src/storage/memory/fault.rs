//! Faults of the doubles, injected by tests and by the simulator.
//!
//! Owns [`Faults`], the plan of what the next operations suffer, and [`Gate`], which holds an operation until the
//! test lets it go. Deterministic: one-shot faults come first in the order they were injected, chances are drawn
//! from a seed.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use bytes::{Bytes, BytesMut};

use crate::reason::Reason;

/// What one operation of a double suffers.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails, and nothing was changed.
    Failed(Reason),
    /// It is refused: no room, too large.
    Refused(Reason),
    /// It reports an unknown outcome; nothing was changed.
    UnknownBefore,
    /// It reports an unknown outcome; it took effect.
    UnknownAfter,
    /// It finds damaged bytes, and says so.
    Corrupted,
    /// It gives bytes with one bit changed and does not notice. Reads only.
    WrongBytes,
    /// It waits, before any effect, until the gate opens; then it goes on as if nothing had been.
    Hold(Gate),
}

/// Holds operations until it is opened. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Rc<RefCell<GateState>>);

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    arrived: usize,
    wakers: Vec<Waker>,
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        let wakers = {
            let mut state = self.0.borrow_mut();
            state.open = true;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How many operations ever arrived: what a test waits for before it goes on.
    #[must_use]
    pub fn arrived(&self) -> usize {
        self.0.borrow().arrived
    }

    /// Waits until the gate is open.
    pub async fn pass(&self) {
        self.0.borrow_mut().arrived += 1;
        poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            if state.open {
                return Poll::Ready(());
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// What the next operations of a double suffer, by kind of operation `O`. Clones are the same plan.
#[derive(Debug)]
pub struct Faults<O>(Rc<RefCell<Plan<O>>>);

#[derive(Debug)]
struct Plan<O> {
    once: BTreeMap<O, VecDeque<Fault>>,
    chances: Vec<(O, Fault, u32)>,
    seen: BTreeMap<O, u64>,
    random: fastrand::Rng,
}

impl<O> Clone for Faults<O> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<O: Copy + Ord> Default for Faults<O> {
    fn default() -> Self {
        let plan = Plan {
            once: BTreeMap::new(),
            chances: Vec::new(),
            seen: BTreeMap::new(),
            random: fastrand::Rng::with_seed(0),
        };
        Self(Rc::new(RefCell::new(plan)))
    }
}

impl<O: Copy + Ord> Faults<O> {
    /// Gives `fault` to one coming `op`: the next that has none before it.
    pub fn inject(&self, op: O, fault: Fault) {
        self.0.borrow_mut().once.entry(op).or_default().push_back(fault);
    }

    /// Gives `fault` to `per_mille` of 1,000 of all coming `op`s (1,000: to all), drawn from the seed.
    pub fn chance(&self, op: O, fault: Fault, per_mille: u32) {
        self.0.borrow_mut().chances.push((op, fault, per_mille));
    }

    /// Starts the draws anew from `seed`.
    pub fn reseed(&self, seed: u64) {
        self.0.borrow_mut().random = fastrand::Rng::with_seed(seed);
    }

    /// Forgets every fault that has not struck.
    pub fn clear(&self) {
        let mut plan = self.0.borrow_mut();
        plan.once.clear();
        plan.chances.clear();
    }

    /// How often `op` was begun.
    #[must_use]
    pub fn seen(&self, op: O) -> u64 {
        self.0.borrow().seen.get(&op).copied().unwrap_or(0)
    }

    /// Counts one `op` and draws what it suffers.
    pub(super) fn strike(&self, op: O) -> Option<Fault> {
        let mut plan = self.0.borrow_mut();
        *plan.seen.entry(op).or_default() += 1;
        if let Some(fault) = plan.once.get_mut(&op).and_then(VecDeque::pop_front) {
            return Some(fault);
        }
        let Plan { chances, random, .. } = &mut *plan;
        chances
            .iter()
            .find(|(of, _, per_mille)| *of == op && random.u32(0..1000) < *per_mille)
            .map(|(_, f, _)| f.clone())
    }
}

/// An error that was injected.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("injected: {0}")]
pub struct Injected(pub Reason);

/// The bytes with their first bit changed.
pub(super) fn flip(bytes: &[u8]) -> Bytes {
    let mut wrong = BytesMut::from(bytes);
    if let Some(first) = wrong.first_mut() {
        *first ^= 1;
    }
    wrong.freeze()
}
