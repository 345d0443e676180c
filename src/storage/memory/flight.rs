//! Mutations of a model store that take time, outlive their caller and may be caught by a crash.
//!
//! A real store goes on with a mutation whose caller left, and a crash in the middle leaves it done or not. Owns
//! [`Flight`]: what was asked and has not taken effect yet. Called by the model stores only.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use engine::{mailbox, rt::Rt};

use super::fault::{Fault, Faults, Injected};
use crate::{reason::Reason, storage::traits::StoreError};

type Effect<S> = Box<dyn FnOnce(&mut S)>;

/// State `S` of a store whose operations are of kind `O`.
pub(super) struct Flight<S, O, R> {
    pub(super) rt: R,
    pub(super) faults: Faults<O>,
    pub(super) state: RefCell<S>,
    latency: Cell<Option<(Duration, Duration)>>,
    pending: RefCell<BTreeMap<u64, Effect<S>>>,
    begun: Cell<u64>,
    crashes: Cell<u64>,
}

impl<S: 'static, O: Copy + Ord + 'static, R: Rt> Flight<S, O, R> {
    pub(super) fn new(rt: R, state: S) -> Rc<Self> {
        Rc::new(Self {
            rt,
            faults: Faults::default(),
            state: RefCell::new(state),
            latency: Cell::new(None),
            pending: RefCell::default(),
            begun: Cell::new(0),
            crashes: Cell::new(0),
        })
    }

    pub(super) fn set_latency(&self, latency: Option<Range<Duration>>) {
        self.latency.set(latency.map(|range| (range.start, range.end)));
    }

    /// Sleeps for a random time within the latency, if one is set.
    async fn lag(&self) {
        if let Some((min, max)) = self.latency.get() {
            let span = u64::try_from(max.saturating_sub(min).as_nanos()).unwrap_or(u64::MAX).max(1);
            self.rt.sleep(min + Duration::from_nanos(self.rt.random() % span)).await;
        }
    }

    /// What a read suffers; `true`: its bytes are to be wrong.
    pub(super) async fn read(&self, op: O) -> Result<bool, StoreError> {
        let fault = self.faults.strike(op);
        self.lag().await;
        match fault {
            None => Ok(false),
            Some(Fault::WrongBytes) => Ok(true),
            Some(Fault::Hold(gate)) => {
                gate.pass().await;
                Ok(false)
            }
            Some(Fault::Corrupted) => Err(StoreError::Corrupted { what: "injected".into() }),
            Some(Fault::Refused(reason)) => Err(StoreError::Full { reason }),
            Some(Fault::Failed(reason)) => Err(failed(reason)),
            // A read has no outcome to be in doubt about.
            Some(Fault::UnknownBefore | Fault::UnknownAfter) => Err(failed(Reason::Unavailable)),
        }
    }

    /// Carries out `apply`, now or after a lag or gate, and then even if the caller leaves.
    pub(super) async fn mutate<T: Send + 'static>(
        self: &Rc<Self>,
        op: O,
        apply: impl FnOnce(&mut S) -> T + 'static,
    ) -> Result<T, StoreError> {
        let gate = match self.faults.strike(op) {
            Some(Fault::Failed(reason)) => return Err(failed(reason)),
            Some(Fault::Refused(reason)) => return Err(StoreError::Full { reason }),
            Some(Fault::Corrupted) => return Err(StoreError::Corrupted { what: "injected".into() }),
            Some(Fault::UnknownBefore) => return Err(unknown()),
            Some(Fault::UnknownAfter) => {
                apply(&mut self.state.borrow_mut());
                return Err(unknown());
            }
            Some(Fault::Hold(gate)) => Some(gate),
            Some(Fault::WrongBytes) | None => None,
        };
        if gate.is_none() && self.latency.get().is_none() {
            return Ok(apply(&mut self.state.borrow_mut()));
        }
        let (reply, answer) = mailbox::oneshot();
        let id = self.begun.get();
        self.begun.set(id + 1);
        let effect: Effect<S> = Box::new(move |state| drop(reply.send(apply(state))));
        self.pending.borrow_mut().insert(id, effect);
        let flight = self.clone();
        self.rt.spawn(async move {
            if let Some(gate) = gate {
                gate.pass().await;
            }
            flight.lag().await;
            let effect = flight.pending.borrow_mut().remove(&id);
            // A crash has taken it otherwise.
            if let Some(effect) = effect {
                effect(&mut flight.state.borrow_mut());
            }
        });
        let crashes = self.crashes.get();
        let done = answer.await;
        self.lag().await;
        match done {
            Some(done) if self.crashes.get() == crashes => Ok(done),
            _ => Err(unknown()),
        }
    }

    /// Decides, from `random`, which mutations under way still happen; those of the others are lost.
    pub(super) fn crash(&self, random: &mut fastrand::Rng) {
        self.crashes.set(self.crashes.get() + 1);
        for (_, effect) in std::mem::take(&mut *self.pending.borrow_mut()) {
            if random.bool() {
                effect(&mut self.state.borrow_mut());
            }
        }
    }
}

pub(super) fn failed(reason: Reason) -> StoreError {
    StoreError::Failed(Arc::new(Injected(reason)))
}

fn unknown() -> StoreError {
    StoreError::Unknown(Arc::new(Injected(Reason::OutcomeUnknown)))
}
