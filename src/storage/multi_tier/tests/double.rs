//! A double that takes its time: before and after each operation it may stall, as a seed decides.

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

/// A [`Store`] that stalls.
pub(super) struct Double {
    tier: Tier,
    store: Store,
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
    pub(super) fn new(tier: Tier, store: Store, rt: SimRt, stalls: Stalls) -> Self {
        Self { tier, store, rt, stalls }
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
        let found = self.store.find(key).await;
        if stalls {
            pace.stall().await;
        }
        Ok(match found? {
            Found::Hit(meta, hit) => Found::Hit(meta, DoubleHit { hit, pace }),
            Found::Miss(reason) => Found::Miss(reason),
        })
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<DoubleMiss, CacheError> {
        let pace = self.pace();
        pace.stall().await;
        let miss = self.store.get_miss_handler(key, meta, precondition).await;
        pace.stall().await;
        Ok(DoubleMiss { miss: miss?, store: self.store.clone(), key: key.clone(), pace })
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        let pace = self.pace();
        pace.stall().await;
        let purged = self.store.purge(key, precondition).await;
        pace.stall().await;
        purged
    }

    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        let pace = self.pace();
        pace.stall().await;
        let updated = self.store.update_meta(key, meta).await;
        pace.stall().await;
        updated
    }
}

pub(super) struct DoubleHit {
    hit: <Store as Storage>::Hit,
    pace: Pace,
}

impl HitHandler for DoubleHit {
    fn remaining(&self) -> u64 {
        self.hit.remaining()
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        self.hit.seek(range)
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        self.pace.stall().await;
        self.hit.read_body().await
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        self.hit.try_copy(out)
    }

    fn tier(&self) -> Tier {
        self.hit.tier()
    }

    fn trust(&self) -> Trust {
        self.hit.trust()
    }

    fn confirm(&mut self) {
        self.hit.confirm();
    }
}

pub(super) struct DoubleMiss {
    miss: <Store as Storage>::Miss,
    store: Store,
    key: CacheKey,
    pace: Pace,
}

impl MissHandler for DoubleMiss {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        self.miss.meta_mut()
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        self.pace.stall().await;
        self.miss.write_body(chunk, eof).await
    }

    async fn finish(self) -> Result<Stored, CacheError> {
        let Self { mut miss, store, key, pace } = self;
        pace.stall().await;
        let versionless = miss.meta_mut().version == Version::NONE;
        if versionless && pace.draw(pace.stalls.0.late_per_mille.get()) {
            return Err(lose_reply(miss, store, key, pace));
        }
        let stored = miss.finish().await;
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
