//! A double that takes its time: before and after each operation it may stall, as a seed decides. Under it is a
//! [`Store`], or, for L3, the real durable tier over stores in memory.

use std::{cell::Cell, ops::Range, rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use engine::rt::{Rt, sim::SimRt};

use super::Store;
use crate::{
    cache::{
        CacheError, CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, PurgeReport, Storage, Stored,
        Tier, Trust, Version,
    },
    reason::Reason,
    storage::{
        durable::DurableTier,
        memory::{InMemoryBlobStore, InMemoryIndexStore},
    },
};

/// How often and how long doubles stall. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Stalls(Rc<Settings>);

#[derive(Default)]
struct Settings {
    per_mille: Cell<u32>,
    /// One commit of L3 in a thousand of which the reply is lost, and that takes effect a while later.
    late_per_mille: Cell<u32>,
}

impl Stalls {
    pub(super) fn set(&self, per_mille: u32) {
        self.0.per_mille.set(per_mille);
    }

    pub(super) fn set_late_commits(&self, per_mille: u32) {
        self.0.late_per_mille.set(per_mille);
    }
}

pub(super) type Blobs = InMemoryBlobStore<SimRt>;
pub(super) type Index = InMemoryIndexStore<SimRt>;
pub(super) type Real = DurableTier<Blobs, Index, SimRt>;

/// What is under a double.
#[derive(Clone)]
pub(super) enum Under {
    Store(Store),
    Real(Real),
}

/// Of either.
pub(super) enum Either<S, R> {
    Store(S),
    Real(R),
}

/// A tier that stalls.
pub(super) struct Double {
    tier: Tier,
    under: Under,
    rt: SimRt,
    stalls: Stalls,
}

#[derive(Clone)]
struct Pace {
    rt: SimRt,
    stalls: Stalls,
}

impl Pace {
    fn draw(&self, per_mille: u32) -> bool {
        per_mille > 0 && self.rt.random() % 1000 < u64::from(per_mille)
    }

    async fn stall(&self) {
        if !self.draw(self.stalls.0.per_mille.get()) {
            return;
        }
        match self.rt.random() % 4 {
            0 => self.rt.sleep(Duration::from_millis(1 + self.rt.random() % 20)).await,
            turns => {
                for _ in 0..turns {
                    self.rt.yield_now().await;
                }
            }
        }
    }
}

impl Double {
    pub(super) fn new(tier: Tier, under: Under, rt: SimRt, stalls: Stalls) -> Self {
        Self { tier, under, rt, stalls }
    }

    fn pace(&self) -> Pace {
        Pace { rt: self.rt.clone(), stalls: self.stalls.clone() }
    }
}

impl Storage for Double {
    type Hit = DoubleHit;
    type Miss = DoubleMiss;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, DoubleHit)>, CacheError> {
        Ok(self.find(key).await?.hit())
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<DoubleHit>, CacheError> {
        let pace = self.pace();
        // RAM answers in the step it is asked in.
        let stalls = self.tier != Tier::L0;
        if stalls {
            pace.stall().await;
        }
        let found = match &self.under {
            Under::Store(store) => store.find(key).await.map(|found| found.map(Either::Store)),
            Under::Real(real) => real.find(key).await.map(|found| found.map(Either::Real)),
        };
        if stalls {
            pace.stall().await;
        }
        Ok(found?.map(|hit| DoubleHit { hit, pace }))
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<DoubleMiss, CacheError> {
        let pace = self.pace();
        pace.stall().await;
        let miss = match &self.under {
            Under::Store(store) => store.get_miss_handler(key, meta, precondition).await.map(Either::Store),
            Under::Real(real) => real.get_miss_handler(key, meta, precondition).await.map(Either::Real),
        };
        pace.stall().await;
        Ok(DoubleMiss { miss: miss?, under: self.under.clone(), key: key.clone(), pace })
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        let pace = self.pace();
        pace.stall().await;
        let purged = match &self.under {
            Under::Store(store) => store.purge(key, precondition).await,
            Under::Real(real) => real.purge(key, precondition).await,
        };
        pace.stall().await;
        purged
    }

    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        let pace = self.pace();
        pace.stall().await;
        let updated = match &self.under {
            Under::Store(store) => store.update_meta(key, meta).await,
            Under::Real(real) => real.update_meta(key, meta).await,
        };
        pace.stall().await;
        updated
    }
}

pub(super) struct DoubleHit {
    hit: Either<<Store as Storage>::Hit, <Real as Storage>::Hit>,
    pace: Pace,
}

impl HitHandler for DoubleHit {
    fn remaining(&self) -> u64 {
        match &self.hit {
            Either::Store(hit) => hit.remaining(),
            Either::Real(hit) => hit.remaining(),
        }
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        match &mut self.hit {
            Either::Store(hit) => hit.seek(range),
            Either::Real(hit) => hit.seek(range),
        }
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        self.pace.stall().await;
        match &mut self.hit {
            Either::Store(hit) => hit.read_body().await,
            Either::Real(hit) => hit.read_body().await,
        }
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        match &mut self.hit {
            Either::Store(hit) => hit.try_copy(out),
            Either::Real(hit) => hit.try_copy(out),
        }
    }

    fn tier(&self) -> Tier {
        match &self.hit {
            Either::Store(hit) => hit.tier(),
            Either::Real(hit) => hit.tier(),
        }
    }

    fn trust(&self) -> Trust {
        match &self.hit {
            Either::Store(hit) => hit.trust(),
            Either::Real(hit) => hit.trust(),
        }
    }

    fn confirm(&mut self) {
        match &mut self.hit {
            Either::Store(hit) => hit.confirm(),
            Either::Real(hit) => hit.confirm(),
        }
    }
}

pub(super) struct DoubleMiss {
    miss: Either<<Store as Storage>::Miss, <Real as Storage>::Miss>,
    under: Under,
    key: CacheKey,
    pace: Pace,
}

impl MissHandler for DoubleMiss {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        match &mut self.miss {
            Either::Store(miss) => miss.meta_mut(),
            Either::Real(miss) => miss.meta_mut(),
        }
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        self.pace.stall().await;
        match &mut self.miss {
            Either::Store(miss) => miss.write_body(chunk, eof).await,
            Either::Real(miss) => miss.write_body(chunk, eof).await,
        }
    }

    async fn finish(self) -> Result<Stored, CacheError> {
        let Self { miss, under, key, pace } = self;
        pace.stall().await;
        let stored = match (miss, under) {
            (Either::Store(mut miss), Under::Store(store)) => {
                let versionless = miss.meta_mut().version == Version::NONE;
                if versionless && pace.draw(pace.stalls.0.late_per_mille.get()) {
                    return Err(lose_reply(miss, store, key, pace));
                }
                miss.finish().await
            }
            (Either::Store(miss), Under::Real(_)) => miss.finish().await,
            (Either::Real(miss), _) => miss.finish().await,
        };
        pace.stall().await;
        stored
    }
}

/// The reply of a commit is lost on the way; the commit itself, a compare-and-swap, comes true a while later if
/// nothing came between.
fn lose_reply(miss: <Store as Storage>::Miss, store: Store, key: CacheKey, pace: Pace) -> CacheError {
    let base = store.peek(&key);
    let rt = pace.rt.clone();
    rt.spawn(async move {
        pace.rt.sleep(Duration::from_millis(pace.rt.random() % 200)).await;
        if store.peek(&key) == base {
            drop(miss.finish().await);
        }
    });
    let cause = std::sync::Arc::new(crate::storage::memory::Injected(Reason::Timeout));
    CacheError::OutcomeUnknown { base: Some(base.unwrap_or(Version::NONE)), cause: Some(cause) }
}
