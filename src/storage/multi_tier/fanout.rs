//! Writes: one body to every tier the policy admits.
//!
//! Owns [`FanoutMiss`]. The tier that acknowledges (L3; L0 and L2 in a cache-only namespace) takes each chunk while
//! the writer waits. L0 takes it in passing. L1, and L2 where L3 acknowledges, run behind in workers, each fed
//! through a lane; one that falls [`super::Settings::fanout_lag_max`] behind is dropped from the write. So is one
//! whose gate the running size passes, and one that fails, unless it was the last that could acknowledge. The
//! checksum of the body is computed here once, and length and checksum that the sender announced are held against
//! it. What happens at the end is in [`super::commit`].

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use engine::rt::Rt;

use super::{
    Node, Tiers,
    lane::{self, Refused, Sender},
    task::{self, Answer},
};
use crate::{
    cache::{CacheError, CacheKey, CacheMeta, MissHandler, Precondition, Storage, Stored, Tier},
    namespace::Namespace,
    policy::{Effective, L2Fill, Mode},
    reason::Reason,
};

type Miss<S> = <S as Storage>::Miss;

/// A write of `MultiTier`.
pub struct FanoutMiss<T: Tiers> {
    pub(super) node: Rc<Node<T>>,
    pub(super) key: CacheKey,
    pub(super) space: Rc<Namespace>,
    /// Taken once: a change of policy does not meet the write half-way.
    pub(super) rules: Arc<Effective>,
    pub(super) precondition: Precondition,
    pub(super) meta: CacheMeta,
    pub(super) l0: Option<Miss<T::L0>>,
    pub(super) l1: Option<Behind<Miss<T::L1>>>,
    pub(super) l2: Flash<Miss<T::L2>>,
    pub(super) l3: Option<Miss<T::L3>>,
    /// Why a tier does not get the body, indexed by [`Tier`].
    pub(super) dropped: [Option<Reason>; 4],
    pub(super) written: u64,
    crc: crc32fast::Hasher,
    whole: bool,
}

/// How L2 takes part in a write.
pub(super) enum Flash<M> {
    /// Not.
    Off,
    /// In the writer's own step: it may be the one to acknowledge.
    Direct(M),
    /// Behind a lane.
    Behind(Behind<M>),
}

impl<M: 'static> Flash<M> {
    /// As [`Behind::push`].
    fn push(&mut self, chunk: &Bytes) -> bool {
        match self {
            Self::Behind(behind) => behind.push(chunk),
            Self::Direct(_) | Self::Off => false,
        }
    }
}

/// A tier that is written by a worker behind the writer.
pub(super) struct Behind<M> {
    /// `None` once the body has ended.
    lane: Option<Sender>,
    /// The staged body, or why there is none.
    staged: Answer<Result<M, Reason>>,
}

impl<M: 'static> Behind<M> {
    fn start<T: Tiers, S: Storage<Miss = M> + 'static>(
        node: &Rc<Node<T>>,
        pick: impl Fn(&Node<T>) -> Option<&S> + 'static,
        key: &CacheKey,
        meta: &CacheMeta,
    ) -> Self {
        let (lane, receiver) = lane::lane(node.settings.fanout_lag_max, &node.room);
        let (outcome, staged) = task::once();
        let (worker, key, meta) = (node.clone(), key.clone(), meta.clone());
        node.rt.spawn(async move {
            outcome.set(match pick(&worker) {
                Some(storage) => receiver.stage(storage, &key, meta, Precondition::None).await,
                None => Err(Reason::TierOff),
            });
        });
        Self { lane: Some(lane), staged }
    }

    /// Queues a chunk; whether the lane was full. A worker that left says why when it is asked for the body.
    fn push(&mut self, chunk: &Bytes) -> bool {
        match self.lane.as_ref().map(|lane| lane.push(chunk)) {
            Some(Err(Refused::Full)) => true,
            Some(Err(Refused::Closed)) => {
                self.lane = None;
                false
            }
            Some(Ok(())) | None => false,
        }
    }

    fn end(&mut self) {
        if let Some(lane) = self.lane.take() {
            lane.end();
        }
    }

    /// Waits for the staged body.
    pub(super) async fn staged(self) -> Result<M, Reason> {
        self.staged.wait().await.unwrap_or(Err(Reason::Stopping))
    }
}

impl<T: Tiers> FanoutMiss<T> {
    pub(super) async fn open(
        node: &Rc<Node<T>>,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self, CacheError> {
        if node.keys.is_stopping() {
            return Err(CacheError::Unavailable { reason: Reason::Stopping, cause: None });
        }
        let space = node.namespaces.for_write(key.namespace()).map_err(CacheError::Refused)?;
        let opened = Self::open_tiers(node, key, &space, meta, precondition).await;
        opened.inspect_err(|failed| space.counters.refused(failed.reason()))
    }

    async fn open_tiers(
        node: &Rc<Node<T>>,
        key: &CacheKey,
        space: &Rc<Namespace>,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self, CacheError> {
        let rules = space.effective();
        let meta = node.within_rules(&rules, meta);
        let mut write = Self {
            node: node.clone(),
            key: key.clone(),
            space: space.clone(),
            rules,
            precondition,
            meta,
            l0: None,
            l1: None,
            l2: Flash::Off,
            l3: None,
            dropped: [Some(Reason::TierOff); 4],
            written: 0,
            crc: crc32fast::Hasher::new(),
            whole: false,
        };
        // What is known of the length: a body of unknown length has at least none.
        let least = write.meta.length.unwrap_or(0);
        if write.rules.body_bytes_max.is_some_and(|max| least > max) {
            return Err(CacheError::Refused(Reason::BodyMax));
        }
        match write.rules.mode {
            Mode::Durable => write.open_l3().await?,
            Mode::CacheOnly => write.check_early().await?,
        }
        write.open_l0(least).await;
        write.open_l2(least).await;
        match node.admits(&write.rules, Tier::L1, least) {
            Ok(()) => {
                write.l1 = Some(Behind::start(node, |node| node.l1.as_ref(), key, &write.meta));
                write.dropped[Tier::L1 as usize] = None;
            }
            Err(reason) => write.dropped[Tier::L1 as usize] = Some(reason),
        }
        write.keep_going().await?;
        Ok(write)
    }

    async fn open_l3(&mut self) -> Result<(), CacheError> {
        let Some(l3) = self.node.l3.as_ref().filter(|_| self.rules.tiers[Tier::L3 as usize]) else {
            return Err(CacheError::Unavailable { reason: Reason::TierOff, cause: None });
        };
        let opened = l3.get_miss_handler(&self.key, self.meta.clone(), self.precondition).await;
        if let Err(CacheError::Precondition { current }) = &opened {
            // It may name a commit whose own turn does not know of it yet; no read may fall behind that.
            self.node.keys.shown(&self.key, *current);
        }
        self.l3 = Some(opened?);
        self.dropped[Tier::L3 as usize] = None;
        Ok(())
    }

    /// Refuses at once what L0 alone shows to fail. Whatever L0 does not show is decided in the turn.
    async fn check_early(&self) -> Result<(), CacheError> {
        if self.precondition == Precondition::None || self.node.keys.is_held(&self.key) {
            return Ok(());
        }
        match self.node.l0.lookup(&self.key).await {
            Ok(Some((meta, _))) if !self.precondition.holds(Some(meta.version)) => {
                Err(CacheError::Precondition { current: Some(meta.version) })
            }
            _ => Ok(()),
        }
    }

    async fn open_l0(&mut self, least: u64) {
        let opened = match self.node.admits(&self.rules, Tier::L0, least) {
            Ok(()) => {
                let opened = self.node.l0.get_miss_handler(&self.key, self.meta.clone(), Precondition::None).await;
                opened.map_err(|failed| self.node.failed(Tier::L0, &failed))
            }
            Err(reason) => Err(reason),
        };
        self.dropped[Tier::L0 as usize] = opened.as_ref().err().copied();
        self.l0 = opened.ok();
    }

    /// Opens L2, also when it is filled by eviction but the body may yet turn out to be too large for L0: what L0
    /// was given cannot be had back.
    async fn open_l2(&mut self, least: u64) {
        let on_evict = self.rules.l2_fill(least) == L2Fill::OnEvict && self.l0.is_some();
        let dropped = match self.node.admits(&self.rules, Tier::L2, least) {
            Ok(()) if on_evict && self.meta.length.is_some() => Some(Reason::OnEvict),
            Ok(()) => None,
            Err(reason) => Some(reason),
        };
        self.dropped[Tier::L2 as usize] = dropped;
        let Some(l2) = self.node.l2.as_ref().filter(|_| dropped.is_none()) else { return };
        if self.rules.mode == Mode::Durable {
            self.l2 = Flash::Behind(Behind::start(&self.node, |node| node.l2.as_ref(), &self.key, &self.meta));
            return;
        }
        match l2.get_miss_handler(&self.key, self.meta.clone(), Precondition::None).await {
            Ok(miss) => self.l2 = Flash::Direct(miss),
            Err(failed) => self.dropped[Tier::L2 as usize] = Some(self.node.failed(Tier::L2, &failed)),
        }
    }

    /// Drops `tier` from the write. What it has staged goes with it.
    pub(super) fn give_up(&mut self, tier: Tier, reason: Reason) {
        let behind = match tier {
            Tier::L0 => self.l0.take().is_some(),
            Tier::L1 => self.l1.take().is_some(),
            Tier::L2 => !matches!(std::mem::replace(&mut self.l2, Flash::Off), Flash::Off),
            Tier::L3 => self.l3.take().is_some(),
        };
        if behind {
            self.dropped[tier as usize] = Some(reason);
        }
    }

    /// In a cache-only namespace, ends the write when no tier is left that could acknowledge it. The old copy goes
    /// then: the writer was told that its value is not here, and must not read another.
    async fn keep_going(&mut self) -> Result<(), CacheError> {
        let acknowledges = self.l3.is_some() || self.l0.is_some() || !matches!(self.l2, Flash::Off);
        if acknowledges {
            return Ok(());
        }
        // Boxed: the size of what happens rarely would be paid with every chunk.
        Box::pin(self.node.remove(self.key.clone(), self.precondition, Mode::CacheOnly)).await?;
        Err(CacheError::Refused(self.nowhere()))
    }

    /// Why a body is in none of the tiers that could acknowledge it in a cache-only namespace: too large for all that
    /// there are, or no room for the moment.
    pub(super) fn nowhere(&self) -> Reason {
        let dropped = |tier: Tier| self.dropped[tier as usize];
        let gated = |tier: Tier| matches!(dropped(tier), Some(Reason::Gate | Reason::TierOff));
        let any = [Tier::L0, Tier::L2].into_iter().any(|tier| dropped(tier) == Some(Reason::Gate));
        if any && gated(Tier::L0) && gated(Tier::L2) { Reason::Gate } else { Reason::NoRoom }
    }

    /// Holds the body so far against what was announced and allowed.
    fn check(&self, total: u64, eof: bool) -> Result<(), CacheError> {
        let announced = self.meta.length;
        if self.whole || announced.is_some_and(|length| total > length || (eof && total < length)) {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        if self.rules.body_bytes_max.is_some_and(|max| total > max) {
            return Err(CacheError::Refused(Reason::BodyMax));
        }
        Ok(())
    }

    async fn write(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        let total = self.written + chunk.len() as u64;
        self.check(total, eof)?;
        self.crc.update(&chunk);
        self.written = total;
        let checksum = self.crc.clone().finalize();
        if eof && self.meta.checksum.is_some_and(|announced| announced != checksum) {
            return Err(CacheError::Refused(Reason::BodyMismatch));
        }
        for tier in [Tier::L0, Tier::L1, Tier::L2] {
            if self.rules.tiers[tier as usize] && !self.rules.admits(tier, total) {
                self.give_up(tier, Reason::Gate);
            }
        }
        if let Some(l0) = &mut self.l0
            && let Err(failed) = l0.write_body(chunk.clone(), eof).await
        {
            let reason = self.node.failed(Tier::L0, &failed);
            self.give_up(Tier::L0, reason);
        }
        if !chunk.is_empty() {
            self.push(&chunk).await;
        }
        if let Flash::Direct(l2) = &mut self.l2
            && let Err(failed) = l2.write_body(chunk.clone(), eof).await
        {
            let reason = self.node.failed(Tier::L2, &failed);
            self.give_up(Tier::L2, reason);
        }
        if let Some(l3) = &mut self.l3 {
            l3.write_body(chunk, eof).await?;
        }
        self.keep_going().await?;
        if eof {
            self.whole = true;
            (self.meta.length, self.meta.checksum) = (Some(total), Some(checksum));
        }
        Ok(())
    }

    /// Feeds the tiers behind lanes. One whose lane stays full is given up.
    async fn push(&mut self, chunk: &Bytes) {
        let mut l1_full = self.l1.as_mut().is_some_and(|l1| l1.push(chunk));
        let mut l2_full = self.l2.push(chunk);
        for _ in 0..lane::YIELDS_MAX {
            if !l1_full && !l2_full {
                return;
            }
            self.node.rt.yield_now().await;
            l1_full = l1_full && self.l1.as_mut().is_some_and(|l1| l1.push(chunk));
            l2_full = l2_full && self.l2.push(chunk);
        }
        for (tier, full) in [(Tier::L1, l1_full), (Tier::L2, l2_full)] {
            if full {
                self.give_up(tier, Reason::Lag);
            }
        }
    }
}

impl<T: Tiers> MissHandler for FanoutMiss<T> {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        &mut self.meta
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        let written = self.write(chunk, eof).await;
        written.inspect_err(|failed| self.space.counters.refused(failed.reason()))
    }

    /// As the contract; and once begun it runs to its end even if the future is dropped.
    async fn finish(mut self) -> Result<Stored, CacheError> {
        let passed = self.crc.clone().finalize();
        let refusal = if !self.whole {
            Some(Reason::BodyCut)
        } else if self.meta.checksum.is_some_and(|announced| announced != passed) {
            // Announced after the body. Here, before the turn: a tier that refuses its copy there drops the old one.
            Some(Reason::BodyMismatch)
        } else {
            None
        };
        if let Some(reason) = refusal {
            self.space.counters.refused(reason);
            return Err(CacheError::Refused(reason));
        }
        if let Some(l1) = &mut self.l1 {
            l1.end();
        }
        if let Flash::Behind(l2) = &mut self.l2 {
            l2.end();
        }
        let rt = self.node.rt.clone();
        // `None`: the scheduler stopped under it.
        let committed = task::to_the_end(&rt, Box::pin(self.commit())).await;
        committed.unwrap_or(Err(CacheError::OutcomeUnknown { base: None, cause: None }))
    }
}

impl<T: Tiers> Node<T> {
    /// The metadata of a write as the rules of its namespace allow it. A default time to live is the doors' matter:
    /// here "none" and "for ever" look alike.
    pub(super) fn within_rules(&self, rules: &Effective, mut meta: CacheMeta) -> CacheMeta {
        if meta.created_ms == 0 {
            meta.created_ms = self.now_ms();
        }
        if let Some(ttl_max) = rules.ttl_max_ms {
            let latest = self.now_ms().saturating_add(ttl_max);
            meta.expires_ms = Some(meta.expires_ms.map_or(latest, |expires| expires.min(latest)));
        }
        meta
    }

    /// Counts a failure of a tier, unless it only said no.
    pub(super) fn failed(&self, tier: Tier, failed: &CacheError) -> Reason {
        let reason = failed.reason();
        if !matches!(failed, CacheError::Refused(_) | CacheError::Precondition { .. }) {
            self.stats.tier(tier).errors.count(reason);
        }
        reason
    }
}
