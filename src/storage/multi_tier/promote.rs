//! Hits, and what they copy upwards while they are read (INV-5).
//!
//! A hit in L1 is a [`HitFromL1PromoteL0`], one in L2 or L3 a [`HitFromLower`]. Reading the whole body tees it: into
//! L0 in the reader's own task (RAM does not wait), into L1 and L2 through lanes to workers that start with the
//! first chunk. When the last chunk has passed and the checksum of the whole body holds, the copies are committed,
//! each under the key table's publication rule; nothing is committed otherwise. A reader never waits for a lane and
//! never fails because of a copy.
//!
//! A hit whose promotion is off, whose length is above the gates, that is read by range or not at all (HEAD) has no
//! worker, no lane and no allocation.
//!
//! A read that loses its L2 copy half-way (reclaimed, damaged) goes on from L3 if L3 still holds the same version;
//! otherwise the body is cut.

use std::{ops::Range, rc::Rc};

use bytes::{Bytes, BytesMut};
use engine::rt::Rt;

use super::{
    Node, Tiers,
    keys::{Fill, Publication, Ticket},
    lane::{self, Receiver, Refused, Sender},
    lookup::Served,
    refill::Cause,
    task,
};
use crate::{
    cache::{CacheError, CacheKey, CacheMeta, HitHandler, MissHandler, Precondition, Storage, Tier, Version},
    namespace::Namespace,
    policy::{Effective, L2Fill, Promotion},
    reason::Reason,
    stats::add,
};

type Hit<S> = <S as Storage>::Hit;
type Miss<S> = <S as Storage>::Miss;

/// A hit of `MultiTier`.
pub enum MultiHit<T: Tiers> {
    /// In RAM.
    L0(HitFromL0<Hit<T::L0>>),
    /// In the shared network cache.
    L1(HitFromL1PromoteL0<T>),
    /// On flash or in durable storage.
    Lower(HitFromLower<T>),
}

impl<T: Tiers> HitHandler for MultiHit<T> {
    fn remaining(&self) -> u64 {
        match self {
            Self::L0(hit) => hit.remaining(),
            Self::L1(hit) => hit.remaining(),
            Self::Lower(hit) => hit.remaining(),
        }
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        match self {
            Self::L0(hit) => hit.seek(range),
            Self::L1(hit) => hit.seek(range),
            Self::Lower(hit) => hit.seek(range),
        }
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        match self {
            Self::L0(hit) => hit.read_body().await,
            Self::L1(hit) => hit.read_body().await,
            Self::Lower(hit) => hit.read_body().await,
        }
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        match self {
            Self::L0(hit) => hit.try_copy(out),
            // What passes through a copy would not pass through the tee.
            Self::L1(_) | Self::Lower(_) => None,
        }
    }

    fn tier(&self) -> Tier {
        match self {
            Self::L0(hit) => hit.tier(),
            Self::L1(hit) => hit.tier(),
            Self::Lower(hit) => hit.tier(),
        }
    }
}

/// A hit in L0: its bytes are counted, and that is all.
pub struct HitFromL0<H> {
    hit: H,
    served: Served,
}

impl<H> HitFromL0<H> {
    pub(super) fn new(hit: H, served: Served) -> Self {
        Self { hit, served }
    }
}

impl<H: HitHandler> HitHandler for HitFromL0<H> {
    fn remaining(&self) -> u64 {
        self.hit.remaining()
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        self.hit.seek(range)
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        let chunk = self.hit.read_body().await?;
        self.served.bytes(Tier::L0, chunk.as_ref().map_or(0, Bytes::len));
        Ok(chunk)
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        let copied = self.hit.try_copy(out)?;
        self.served.bytes(Tier::L0, copied);
        Some(copied)
    }

    fn tier(&self) -> Tier {
        Tier::L0
    }
}

/// Checks that the chunks of a whole body are the body (INV-1). Off when the read is a range.
pub(super) struct Whole {
    crc: Option<crc32fast::Hasher>,
    passed: u64,
    length: u64,
    checksum: Option<u32>,
}

impl Whole {
    pub(super) fn new(meta: &CacheMeta, length: u64) -> Self {
        Self { crc: Some(crc32fast::Hasher::new()), passed: 0, length, checksum: meta.checksum }
    }

    /// Takes note of a chunk; whether it was the last one.
    pub(super) fn pass(&mut self, chunk: &Bytes) -> Result<bool, CacheError> {
        let Some(crc) = &mut self.crc else { return Ok(false) };
        crc.update(chunk);
        self.passed += chunk.len() as u64;
        // An empty chunk stands for the end: of nothing, or come too soon.
        if self.passed < self.length && !chunk.is_empty() {
            return Ok(false);
        }
        let sum = self.crc.take().map(crc32fast::Hasher::finalize);
        if self.passed == self.length && (self.checksum.is_none() || self.checksum == sum) {
            return Ok(true);
        }
        Err(CacheError::Corrupted { what: format!("body of {} bytes, checksum {sum:08x?}", self.passed) })
    }
}

/// A hit in L1: reading it whole fills L0.
pub struct HitFromL1PromoteL0<T: Tiers> {
    hit: Hit<T::L1>,
    whole: Whole,
    tee: Tee<T>,
    served: Served,
}

impl<T: Tiers> HitFromL1PromoteL0<T> {
    pub(super) fn new(hit: Hit<T::L1>, meta: &CacheMeta, tee: Tee<T>, served: Served) -> Self {
        let whole = Whole::new(meta, hit.remaining());
        Self { hit, whole, tee, served }
    }
}

impl<T: Tiers> HitHandler for HitFromL1PromoteL0<T> {
    fn remaining(&self) -> u64 {
        self.hit.remaining()
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        self.hit.seek(range.clone())?;
        if range != (0..self.whole.length) {
            self.whole.crc = None;
            self.tee.give_up(Reason::Partial);
        }
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        let chunk = self.hit.read_body().await?;
        pass(chunk, &mut self.whole, &mut self.tee, &self.served, Tier::L1).await
    }

    fn tier(&self) -> Tier {
        Tier::L1
    }
}

/// The tiers that [`HitFromLower`] reads from.
pub(super) enum Lower<T: Tiers> {
    L2(Hit<T::L2>),
    L3(Hit<T::L3>),
}

/// A hit in L2 or L3: reading it whole fills L0, and through workers L1 and L2.
pub struct HitFromLower<T: Tiers> {
    source: Lower<T>,
    /// The bytes of the body still to be given.
    rest: Range<u64>,
    version: Version,
    whole: Whole,
    tee: Tee<T>,
    served: Served,
    /// Where to go on if the source is L2 and fails.
    resume: Option<(Rc<Node<T>>, CacheKey)>,
}

impl<T: Tiers> HitFromLower<T> {
    pub(super) fn new(
        source: Lower<T>,
        meta: &CacheMeta,
        tee: Tee<T>,
        served: Served,
        resume: Option<(Rc<Node<T>>, CacheKey)>,
    ) -> Self {
        let length = match &source {
            Lower::L2(hit) => hit.remaining(),
            Lower::L3(hit) => hit.remaining(),
        };
        let whole = Whole::new(meta, length);
        Self { source, rest: 0..length, version: meta.version, whole, tee, served, resume }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, CacheError> {
        let failed = match &mut self.source {
            Lower::L3(hit) => return hit.read_body().await,
            Lower::L2(hit) => match hit.read_body().await {
                Ok(chunk) => return Ok(chunk),
                Err(failed) => failed,
            },
        };
        let Some((node, key)) = self.resume.take() else { return Err(failed) };
        node.stats.tier(Tier::L2).errors.count(failed.reason());
        let Some(l3) = &node.l3 else { return Err(failed) };
        match l3.lookup(&key).await {
            Ok(Some((meta, mut hit))) if meta.version == self.version => {
                if self.rest != (0..hit.remaining()) && hit.seek(self.rest.clone()).is_err() {
                    return Err(failed);
                }
                add(&node.stats.reads_continued, 1);
                let first = hit.read_body().await;
                self.source = Lower::L3(hit);
                first
            }
            // What L3 says or suffers is not why this body is cut.
            Ok(_) | Err(_) => Err(failed),
        }
    }
}

impl<T: Tiers> HitHandler for HitFromLower<T> {
    fn remaining(&self) -> u64 {
        self.rest.end - self.rest.start
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        match &mut self.source {
            Lower::L2(hit) => hit.seek(range.clone())?,
            Lower::L3(hit) => hit.seek(range.clone())?,
        }
        if range != (0..self.whole.length) {
            self.whole.crc = None;
            self.tee.give_up(Reason::Partial);
        }
        self.rest = range;
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        let chunk = self.next().await?;
        self.rest.start += chunk.as_ref().map_or(0, Bytes::len) as u64;
        if self.rest.start > self.rest.end || (chunk.is_none() && !self.rest.is_empty()) {
            self.tee.give_up(Reason::BodyMismatch);
            return Err(CacheError::Corrupted { what: format!("{} ends {:?} off", self.tier().name(), self.rest) });
        }
        let source = self.tier();
        pass(chunk, &mut self.whole, &mut self.tee, &self.served, source).await
    }

    fn tier(&self) -> Tier {
        match self.source {
            Lower::L2(_) => Tier::L2,
            Lower::L3(_) => Tier::L3,
        }
    }
}

/// A chunk on its way from `source` to the reader.
async fn pass<T: Tiers>(
    chunk: Option<Bytes>,
    whole: &mut Whole,
    tee: &mut Tee<T>,
    served: &Served,
    source: Tier,
) -> Result<Option<Bytes>, CacheError> {
    let empty = Bytes::new();
    let bytes = chunk.as_ref().unwrap_or(&empty);
    served.bytes(source, bytes.len());
    match whole.pass(bytes) {
        Ok(last) => tee.pass(bytes, last).await,
        Err(damaged) => {
            tee.give_up(Reason::BodyMismatch);
            return Err(damaged);
        }
    }
    Ok(chunk)
}

/// What a hit copies upwards.
pub(super) struct Tee<T: Tiers> {
    stage: Stage<T>,
}

#[expect(clippy::large_enum_variant, reason = "a look-up that is never read must not allocate")]
enum Stage<T: Tiers> {
    /// Nothing (any more).
    Off,
    /// To be begun with the first chunk.
    Planned(Plan<T>),
    Running(Box<Running<T>>),
}

struct Plan<T: Tiers> {
    node: Rc<Node<T>>,
    space: Rc<Namespace>,
    key: CacheKey,
    meta: CacheMeta,
    ticket: Ticket,
    /// Which of L0, L1, L2.
    tiers: [bool; 3],
}

struct Running<T: Tiers> {
    node: Rc<Node<T>>,
    space: Rc<Namespace>,
    l0: Option<(Fill, Miss<T::L0>)>,
    /// To the workers of L1 and L2.
    lanes: [Option<(Tier, Sender)>; 2],
}

impl<T: Tiers> Tee<T> {
    pub(super) fn off() -> Self {
        Self { stage: Stage::Off }
    }

    /// Decides where a hit of `source` is copied to. `ticket` was asked for before the tier was.
    pub(super) fn plan(
        node: &Rc<Node<T>>,
        key: &CacheKey,
        rules: &Effective,
        source: Tier,
        meta: &CacheMeta,
        ticket: Ticket,
    ) -> Self {
        let Some(length) = meta.length else { return Self::off() };
        let space = node.namespaces.for_read(key.namespace());
        let mut tiers = [false; 3];
        for tier in [Tier::L0, Tier::L1, Tier::L2].into_iter().filter(|tier| *tier < source) {
            let reason = match (node.admits(rules, tier, length), ticket.refused()) {
                (Err(Reason::TierOff), _) => continue,
                (Err(reason), _) => reason,
                _ if rules.promote[tier as usize] == Promotion::Never => Reason::Never,
                _ if node.is_fenced(tier, meta.version) => Reason::Superseded,
                // Flash that is filled from what leaves L0 gets it from there.
                _ if tier == Tier::L2 && tiers[0] && rules.l2_fill(length) == L2Fill::OnEvict => Reason::OnEvict,
                (Ok(()), Some(reason)) => reason,
                (Ok(()), None) => {
                    tiers[tier as usize] = true;
                    continue;
                }
            };
            node.count_promotion(&space, tier, Err(reason));
        }
        if tiers == [false; 3] {
            return Self::off();
        }
        let plan = Plan { node: node.clone(), space, key: key.clone(), meta: meta.clone(), ticket, tiers };
        Self { stage: Stage::Planned(plan) }
    }

    /// Copies a chunk; after the last one the copies are committed.
    async fn pass(&mut self, chunk: &Bytes, last: bool) {
        if matches!(self.stage, Stage::Off) {
            return;
        }
        // Out of `self` while waiting: if the reader leaves in mid-chunk, everything is dropped and counted.
        let mut running = match std::mem::replace(&mut self.stage, Stage::Off) {
            Stage::Off => return,
            Stage::Planned(plan) => plan.begin().await,
            Stage::Running(running) => running,
        };
        running.pass(chunk, last).await;
        if last {
            running.commit();
        } else if running.l0.is_some() || running.lanes.iter().any(Option::is_some) {
            self.stage = Stage::Running(running);
        }
    }

    /// Drops the copies for `reason`. Before the first chunk that costs nothing.
    fn give_up(&mut self, reason: Reason) {
        match std::mem::replace(&mut self.stage, Stage::Off) {
            Stage::Off => {}
            Stage::Planned(plan) => {
                for tier in [Tier::L0, Tier::L1, Tier::L2].into_iter().filter(|tier| plan.tiers[*tier as usize]) {
                    plan.node.count_promotion(&plan.space, tier, Err(reason));
                }
            }
            Stage::Running(mut running) => running.give_up(reason),
        }
    }
}

impl<T: Tiers> Plan<T> {
    /// Opens the copies. An error or a fill that runs already drops that copy only.
    async fn begin(self) -> Box<Running<T>> {
        let Self { node, space, key, meta, ticket, tiers } = self;
        // From here on every wanted copy is counted as committed or dropped, whatever happens to this future.
        let fill = |tier: Tier| {
            let fill = tiers[tier as usize].then(|| ticket.fill(tier))?;
            if fill.is_none() {
                node.count_promotion(&space, tier, Err(Reason::FillRunning));
            }
            fill
        };
        let mut running = Box::new(Running { node: node.clone(), space: space.clone(), l0: None, lanes: [None, None] });
        if let Some(fill) = fill(Tier::L1) {
            running.lanes[0] = Some((Tier::L1, start(&node, &space, |node| node.l1.as_ref(), fill, &key, &meta)));
        }
        if let Some(fill) = fill(Tier::L2) {
            running.lanes[1] = Some((Tier::L2, start(&node, &space, |node| node.l2.as_ref(), fill, &key, &meta)));
        }
        if let Some(fill) = fill(Tier::L0) {
            let older = Precondition::OlderThan(meta.version);
            match node.l0.get_miss_handler(&key, meta, older).await {
                Ok(miss) => running.l0 = Some((fill, miss)),
                Err(failed) => node.count_promotion(&space, Tier::L0, Err(why(&failed))),
            }
        }
        running
    }
}

impl<T: Tiers> Running<T> {
    async fn pass(&mut self, chunk: &Bytes, last: bool) {
        if let Some((fill, mut miss)) = self.l0.take() {
            match miss.write_body(chunk.clone(), last).await {
                Ok(()) => self.l0 = Some((fill, miss)),
                Err(failed) => self.node.count_promotion(&self.space, Tier::L0, Err(why(&failed))),
            }
        }
        if chunk.is_empty() {
            return;
        }
        let mut full = self.push(chunk, [true; 2]);
        for _ in 0..lane::YIELDS_MAX {
            if full == [false; 2] {
                return;
            }
            self.node.rt.yield_now().await;
            full = self.push(chunk, full);
        }
        for (lane, _) in self.lanes.iter_mut().zip(full).filter(|(_, full)| *full) {
            if let Some((_, lane)) = lane.take() {
                lane.cut(Reason::QueueFull);
            }
        }
    }

    /// Pushes to the chosen lanes; which of them are full. One whose worker is gone was counted by it.
    fn push(&mut self, chunk: &Bytes, chosen: [bool; 2]) -> [bool; 2] {
        let mut full = [false; 2];
        for ((lane, full), _) in self.lanes.iter_mut().zip(&mut full).zip(chosen).filter(|(_, chosen)| *chosen) {
            match lane.as_ref().map(|(_, lane)| lane.push(chunk)) {
                Some(Err(Refused::Full)) => *full = true,
                Some(Err(Refused::Closed)) => *lane = None,
                Some(Ok(())) | None => {}
            }
        }
        full
    }

    /// The whole verified body has passed.
    fn commit(&mut self) {
        for (_, lane) in self.lanes.iter_mut().filter_map(Option::take) {
            lane.end();
        }
        if let Some((fill, miss)) = self.l0.take() {
            let (node, space) = (self.node.clone(), self.space.clone());
            // RAM commits at once; one that does not is not the reader's to wait for.
            task::detach(&self.node.rt, async move {
                let outcome = node.commit_fill::<T::L0>(fill, miss).await;
                node.count_promotion(&space, Tier::L0, outcome);
            });
        }
    }

    fn give_up(&mut self, reason: Reason) {
        for (_, lane) in self.lanes.iter_mut().filter_map(Option::take) {
            lane.cut(reason);
        }
        if self.l0.take().is_some() {
            self.node.count_promotion(&self.space, Tier::L0, Err(reason));
        }
    }
}

impl<T: Tiers> Drop for Running<T> {
    fn drop(&mut self) {
        self.give_up(Reason::Partial);
    }
}

/// Starts the worker that fills a tier behind the reader.
fn start<T: Tiers, S: Storage + 'static>(
    node: &Rc<Node<T>>,
    space: &Rc<Namespace>,
    pick: impl Fn(&Node<T>) -> Option<&S> + 'static,
    fill: Fill,
    key: &CacheKey,
    meta: &CacheMeta,
) -> Sender {
    let (sender, receiver) = lane::lane(node.settings.promote_lag_max, &node.room);
    let (key, meta, version) = (key.clone(), meta.clone(), meta.version);
    let (worker, space) = (node.clone(), space.clone());
    node.rt.spawn(async move {
        let tier = fill.tier();
        let outcome = match pick(&worker) {
            Some(storage) => worker.fill(storage, fill, &key, meta, receiver).await,
            None => Err(Reason::TierOff),
        };
        worker.count_promotion(&space, tier, outcome);
        // The fill is over by now, and in nobody's way.
        if tier == Tier::L2 && outcome == Err(Reason::QueueFull) {
            worker.refill_later(&key, version, Cause::Read);
        }
    });
    sender
}

impl<T: Tiers> Node<T> {
    /// Fills a tier from a lane: stages the whole body, then commits it unless it was poisoned.
    async fn fill<S: Storage>(
        &self,
        storage: &S,
        fill: Fill,
        key: &CacheKey,
        meta: CacheMeta,
        receiver: Receiver,
    ) -> Result<(), Reason> {
        let older = Precondition::OlderThan(meta.version);
        let miss = receiver.stage(storage, key, meta, older).await?;
        self.commit_fill::<S>(fill, miss).await
    }

    /// Commits a staged fill under the publication rule.
    pub(super) async fn commit_fill<S: Storage>(&self, fill: Fill, miss: S::Miss) -> Result<(), Reason> {
        let publication = self.publish(fill)?;
        let outcome = miss.finish().await;
        drop(publication);
        outcome.map(drop).map_err(|failed| why(&failed))
    }

    fn publish(&self, fill: Fill) -> Result<Publication, Reason> {
        if self.sabotage.commit_promotion_after_purge {
            return Ok(fill.publish_unchecked());
        }
        fill.publish().ok_or(Reason::Poisoned)
    }

    /// Counts what became of a promotion, for the tier and for the namespace.
    pub(super) fn count_promotion(&self, space: &Namespace, tier: Tier, outcome: Result<(), Reason>) {
        let stats = self.stats.tier(tier);
        match outcome {
            Ok(()) => {
                add(&stats.promotions, 1);
                space.counters.promoted(tier);
            }
            Err(reason) => {
                stats.promotion_drops.count(reason);
                space.counters.dropped(tier, reason);
            }
        }
    }
}

/// Why a fill failed: when "older than this" does not hold, the tier has it already, or something newer.
pub(super) fn why(failed: &CacheError) -> Reason {
    match failed {
        CacheError::Precondition { .. } => Reason::Superseded,
        failed => failed.reason(),
    }
}
