//! The moment a write becomes true, in the key's turn.
//!
//! Durable namespace: L3 decides, by its own compare-and-swap. Its success raises the floor in the same step; then
//! L0 and L2 publish, older copies go from where the new one is not, L1 is queued, and the writer is told. Its
//! refusal or failure changes nothing. Its silence leaves the key in doubt.
//!
//! The writer waits for L3 and RAM. For the rest it waits [`super::Settings::stage_wait`]. A body that L2 is still
//! writing by then goes on as a fill, which the next turn of the key poisons. A removal that is not done by then is
//! done after the acknowledgement by a task that keeps the turn: the floor hides from reads whatever a slow tier still
//! holds of the past, and only the next writer of the same key has to wait for it.
//!
//! Cache-only namespace: this shard decides, against the live copy in L0, L1 and L2 (flash is read when the
//! precondition needs it). First L2 commits the new version or is told of it (it notes the version where a killed
//! process cannot lose it), then L0 publishes. That order, because only L2 can fail in a way that must refuse the
//! write: until it has answered nothing has changed. When neither keeps the object the old one is gone all the same.

use std::{future::Future, rc::Rc};

use engine::rt::Rt;

use super::{FanoutMiss, Node, Tiers, fanout::Flash, keys::Turn, refill::Cause, task};
use crate::{
    cache::{
        CacheError, CacheKey, CacheMeta, HitHandler, MissHandler, Precondition, PurgeReport, Storage, Stored, Tier,
        TierOutcome, Trust, Version,
    },
    namespace::Namespace,
    policy::{L2Fill, Mode},
    reason::Reason,
    stats::add,
};

/// The tiers above L3.
pub(super) const UPPER: [Tier; 3] = [Tier::L0, Tier::L1, Tier::L2];

pub(super) fn unavailable(reason: Reason) -> CacheError {
    CacheError::Unavailable { reason, cause: None }
}

impl<T: Tiers> FanoutMiss<T> {
    /// Commits what was staged. Runs to its end: the caller has seen to that.
    pub(super) async fn commit(self) -> Result<Stored, CacheError> {
        let (node, space) = (self.node.clone(), self.space.clone());
        let outcome = match node.take_turn(&self.key).await {
            Ok(turn) => match self.rules.mode {
                // Boxed, so that a commit into RAM does not move it.
                Mode::Durable => Box::pin(self.commit_durable(turn)).await,
                Mode::CacheOnly => self.commit_cached(turn).await,
            },
            Err(reason) => Err(unavailable(reason)),
        };
        match &outcome {
            Ok(stored) => {
                space.counters.stored(stored);
                node.count_stored(&space, stored);
            }
            Err(failed) => space.counters.refused(failed.reason()),
        }
        outcome
    }

    async fn commit_durable(mut self, mut turn: Held) -> Result<Stored, CacheError> {
        let node = self.node.clone();
        let Some(mut l3) = self.l3.take() else { return Err(unavailable(Reason::TierOff)) };
        turn.turn.decide().map_err(unavailable)?;
        *l3.meta_mut() = CacheMeta { version: Version::NONE, ..self.meta.clone() };
        let decided = match l3.finish().await {
            Ok(decided) => decided,
            Err(CacheError::OutcomeUnknown { base, cause }) => {
                turn.turn.doubted(base);
                let key = self.key.clone();
                // Staged bodies first: their room is wanted more than their order matters.
                drop(self);
                node.clear(&key, turn).await;
                return Err(CacheError::OutcomeUnknown { base, cause });
            }
            Err(failed) => {
                turn.turn.decided(false);
                node.failed(Tier::L3, &failed);
                return Err(failed);
            }
        };
        let version = decided.version;
        // The moment: from here on no read is given an older copy.
        turn.turn.raise(version);
        turn.turn.decided(true);
        node.versions.observe(version);
        self.meta.version = version;
        let length = self.written;
        let mut tiers = decided.tiers;
        let l0 = self.publish_l0().await;
        tiers[Tier::L0 as usize] = Some(l0);
        (tiers[Tier::L1 as usize], tiers[Tier::L2 as usize]) = self.publish_rest(turn, l0).await;
        Ok(Stored { version, replaced: decided.replaced, length, tiers })
    }

    async fn commit_cached(mut self, turn: Held) -> Result<Stored, CacheError> {
        let node = self.node.clone();
        let current = match self.precondition {
            // Only to say what was replaced: not worth a read of flash.
            Precondition::None => node.live_in(Tier::L0, &self.key).await.unwrap_or(None),
            _ => node.live(&self.key).await?,
        };
        if !self.precondition.holds(current) {
            return Err(CacheError::Precondition { current });
        }
        let version = node.versions.next(node.now_ms(), current.unwrap_or(Version::NONE));
        self.meta.version = version;
        if self.l0.is_some() && self.rules.l2_fill(self.written) == L2Fill::OnEvict {
            self.give_up(Tier::L2, Reason::OnEvict);
        }
        let mut replaced = current;
        let l2 = match std::mem::replace(&mut self.l2, Flash::Off) {
            Flash::Direct(mut miss) => {
                *miss.meta_mut() = self.meta.clone();
                miss.finish().await.map_err(|failed| node.failed(Tier::L2, &failed))
            }
            Flash::Behind(_) | Flash::Off => Err(self.why_not(Tier::L2)),
        };
        let l2 = match l2 {
            Ok(stored) => {
                replaced = replaced.max(stored.replaced);
                TierOutcome::Kept
            }
            Err(reason) => {
                let older = Precondition::OlderThan(version);
                let report = node.retire(Tier::L2, &self.key, older, version).await.map_err(unavailable)?;
                replaced = replaced.max(report.removed);
                TierOutcome::Dropped(reason)
            }
        };
        // The moment: L2 will not show the old copy again, and nothing after this can refuse the write without
        // ending the old copy as well.
        turn.turn.raise(version);
        let length = self.written;
        let l0 = self.publish_l0().await;
        node.count_outcome(&self.space, Tier::L2, l2, length);
        let acknowledged = l0 == TierOutcome::Kept || l2 == TierOutcome::Kept;
        if !acknowledged {
            // L1 alone cannot acknowledge, and must not show what was refused.
            self.give_up(Tier::L1, Reason::NoRoom);
        }
        let (l1, _) = self.publish_rest(turn, l0).await;
        if !acknowledged {
            return Err(CacheError::Refused(Reason::NoRoom));
        }
        let tiers = [Some(l0), l1, Some(l2), Some(TierOutcome::Dropped(Reason::TierOff))];
        Ok(Stored { version, replaced, length, tiers })
    }

    fn why_not(&self, tier: Tier) -> Reason {
        self.dropped[tier as usize].unwrap_or(Reason::Internal)
    }

    /// Publishes in L0, or removes what is older there.
    async fn publish_l0(&mut self) -> TierOutcome {
        let finished = match self.l0.take() {
            Some(mut miss) => {
                *miss.meta_mut() = self.meta.clone();
                miss.finish().await.map_err(|failed| self.node.failed(Tier::L0, &failed))
            }
            None => Err(self.why_not(Tier::L0)),
        };
        self.kept_or_retired(Tier::L0, finished.map(drop)).await
    }

    /// Brings L1 and (where L3 acknowledges) L2 up to date and ends the turn; what takes long goes on without the
    /// writer. What became of L1 and L2, as far as it is known by then.
    async fn publish_rest(mut self, turn: Held, l0: TierOutcome) -> (Option<TierOutcome>, Option<TierOutcome>) {
        let on_evict = l0 == TierOutcome::Kept && self.rules.l2_fill(self.written) == L2Fill::OnEvict;
        if on_evict {
            self.give_up(Tier::L2, Reason::OnEvict);
        }
        let (node, durable) = (self.node.clone(), self.rules.mode == Mode::Durable);
        let lagged = durable && !on_evict && self.dropped[Tier::L2 as usize] == Some(Reason::Lag);
        if !durable && !node.has(Tier::L1) && turn.stuck == [false; 3] {
            node.count_write(&self.space, Tier::L1, Err(Reason::TierOff));
            return (Some(self.not_kept(Tier::L1)), None);
        }
        let known_l1 = if self.l1.is_some() { TierOutcome::Queued } else { self.not_kept(Tier::L1) };
        let mut rest = Box::pin(async move {
            let mut l2 = None;
            if durable {
                l2 = Some(self.publish_l2(&turn).await);
            }
            self.publish_l1(&turn).await;
            self.node.release(turn, &self.key, Precondition::OlderThan(self.meta.version), self.meta.version).await;
            // After the turn, which allows no fill.
            if lagged {
                self.node.refill_later(&self.key, self.meta.version, Cause::Write);
            }
            l2
        });
        let l2 = match within(&node.rt, node.settings.stage_wait * 2, rest.as_mut()).await {
            Some(l2) => l2,
            None => {
                node.rt.spawn(async move {
                    let _ = rest.await;
                });
                durable.then_some(TierOutcome::Queued)
            }
        };
        (Some(known_l1), l2)
    }

    /// Publishes in L2 what its worker staged. A device that is slower than L3 is not waited for for long: the rest
    /// of its way is a fill's, and the next writer of the key does not wait for that.
    async fn publish_l2(&mut self, turn: &Held) -> TierOutcome {
        let staged = match std::mem::replace(&mut self.l2, Flash::Off) {
            Flash::Behind(behind) => {
                let mut staged = Box::pin(behind.staged());
                match within(&self.node.rt, self.node.settings.stage_wait, staged.as_mut()).await {
                    Some(staged) => staged,
                    None => return self.leave::<T::L2>(Tier::L2, turn, staged).await,
                }
            }
            Flash::Direct(_) | Flash::Off => Err(self.why_not(Tier::L2)),
        };
        let kept = match staged {
            Ok(mut miss) => {
                *miss.meta_mut() = self.meta.clone();
                miss.finish().await.map(drop).map_err(|failed| self.node.failed(Tier::L2, &failed))
            }
            Err(reason) => Err(reason),
        };
        self.node.count_write(&self.space, Tier::L2, kept.map(|()| self.written));
        self.kept_or_retired(Tier::L2, kept).await
    }

    async fn kept_or_retired(&self, tier: Tier, finished: Result<(), Reason>) -> TierOutcome {
        match finished {
            Ok(()) => TierOutcome::Kept,
            Err(reason) => {
                let version = self.meta.version;
                // A tier that cannot is fenced, and that is enough: what it holds is compared with L3 after a crash.
                let _ = self.node.retire(tier, &self.key, Precondition::OlderThan(version), version).await;
                TierOutcome::Dropped(reason)
            }
        }
    }

    /// Removes what is older from a tier and leaves the new version to a task: a fill, which the next turn poisons.
    async fn leave<S: Storage + 'static>(
        &self,
        tier: Tier,
        turn: &Held,
        staged: impl Future<Output = Result<S::Miss, Reason>> + 'static,
    ) -> TierOutcome {
        let version = self.meta.version;
        let _ = self.node.retire(tier, &self.key, Precondition::OlderThan(version), version).await;
        let Some(fill) = turn.turn.fill(tier) else {
            self.node.count_write(&self.space, tier, Err(Reason::Overload));
            return TierOutcome::Dropped(Reason::Overload);
        };
        let (node, space, meta) = (self.node.clone(), self.space.clone(), self.meta.clone());
        self.node.rt.spawn(async move {
            let length = meta.length.unwrap_or(0);
            let outcome = match staged.await {
                Ok(mut miss) => {
                    *miss.meta_mut() = meta;
                    node.commit_fill::<S>(fill, miss).await.map(|()| length)
                }
                Err(reason) => Err(reason),
            };
            node.count_write(&space, tier, outcome);
        });
        TierOutcome::Queued
    }

    /// As [`Self::leave`], for L1, or why it does not get the body.
    async fn publish_l1(&mut self, turn: &Held) {
        match self.l1.take() {
            Some(behind) => {
                self.leave::<T::L1>(Tier::L1, turn, behind.staged()).await;
            }
            None => {
                let dropped = Err(self.why_not(Tier::L1));
                self.node.count_write(&self.space, Tier::L1, dropped);
                self.kept_or_retired(Tier::L1, dropped.map(drop)).await;
            }
        }
    }

    fn not_kept(&self, tier: Tier) -> TierOutcome {
        TierOutcome::Dropped(self.why_not(tier))
    }
}

/// A turn, and the tiers whose fills of the key did not come to an end while it was waited for.
pub(super) struct Held {
    pub(super) turn: Turn,
    stuck: [bool; 3],
}

impl<T: Tiers> Node<T> {
    /// Takes the key's turn and waits, within reason, until no fill of the key is being published.
    pub(super) async fn take_turn(&self, key: &CacheKey) -> Result<Held, Reason> {
        let turn = self.keys.turn(key).await?;
        let mut stuck = turn.publishing();
        if stuck != [false; 3] {
            stuck = match within(&self.rt, self.settings.publish_wait, turn.settled()).await {
                Some(()) => [false; 3],
                None => turn.publishing(),
            };
        }
        Ok(Held { turn, stuck })
    }

    /// Ends the turn of a change that removed copies with `precondition`. Where a fill was stuck, what it may yet
    /// have published is removed first, and until then the turn is kept and its floor hides it.
    pub(super) async fn release(&self, held: Held, key: &CacheKey, precondition: Precondition, version: Version) {
        if held.stuck == [false; 3] {
            return;
        }
        held.turn.settled().await;
        for tier in UPPER.into_iter().filter(|tier| held.stuck[*tier as usize]) {
            let _ = self.retire(tier, key, precondition, version).await;
        }
    }

    /// [`Node::release`] for a caller that does not wait for it.
    pub(super) fn release_later(
        self: &Rc<Self>,
        held: Held,
        key: &CacheKey,
        precondition: Precondition,
        version: Version,
    ) {
        if held.stuck != [false; 3] {
            let (node, key) = (self.clone(), key.clone());
            self.rt.spawn(async move { node.release(held, &key, precondition, version).await });
        }
    }

    /// Removes every copy of a key in doubt, and ends the turn.
    pub(super) async fn clear(self: &Rc<Self>, key: &CacheKey, turn: Held) {
        add(&self.stats.outcomes_unknown, 1);
        let now = self.versions.next(self.now_ms(), Version::NONE);
        // The doubt may be over before a read that has found a copy comes back with it.
        turn.turn.raise(now);
        for tier in UPPER {
            let _ = self.retire(tier, key, Precondition::None, now).await;
        }
        self.release_later(turn, key, Precondition::None, now);
    }

    /// Purges one tier; a tier that is not there held nothing.
    pub(super) async fn purge_tier(
        &self,
        tier: Tier,
        key: &CacheKey,
        precondition: Precondition,
    ) -> Result<PurgeReport, CacheError> {
        match (tier, &self.l1, &self.l2, &self.l3) {
            (Tier::L0, ..) => self.l0.purge(key, precondition).await,
            (Tier::L1, Some(l1), ..) => l1.purge(key, precondition).await,
            (Tier::L2, _, Some(l2), _) => l2.purge(key, precondition).await,
            (Tier::L3, _, _, Some(l3)) => l3.purge(key, precondition).await,
            _ => Ok(PurgeReport::default()),
        }
    }

    /// Removes copies from a tier above L3, and shuts out those below `fence` if that fails.
    ///
    /// # Errors
    /// Why the tier may show them again after a restart. A poisoned tier never does.
    pub(super) async fn retire(
        &self,
        tier: Tier,
        key: &CacheKey,
        precondition: Precondition,
        fence: Version,
    ) -> Result<PurgeReport, Reason> {
        match self.purge_tier(tier, key, precondition).await {
            Ok(report) => Ok(report),
            Err(failed) => {
                let reason = self.failed(tier, &failed);
                self.fence(tier, fence);
                if reason == Reason::TierPoisoned { Ok(PurgeReport::default()) } else { Err(reason) }
            }
        }
    }

    /// The newest live version above L3, exactly. To be asked in the key's turn.
    ///
    /// # Errors
    /// L2 could not tell; a poisoned L2, or an L1 that fails, holds nothing that a read would be given.
    pub(super) async fn live(&self, key: &CacheKey) -> Result<Option<Version>, CacheError> {
        let mut newest = None;
        for tier in UPPER {
            match self.live_in(tier, key).await {
                Ok(version) => newest = newest.max(version),
                Err(failed) => {
                    let reason = self.failed(tier, &failed);
                    if tier != Tier::L1 && reason != Reason::TierPoisoned {
                        return Err(failed);
                    }
                }
            }
        }
        Ok(newest)
    }

    /// As [`Self::live`], in one tier of a cache-only namespace.
    pub(super) async fn live_in(&self, tier: Tier, key: &CacheKey) -> Result<Option<Version>, CacheError> {
        let version = match (tier, &self.l1, &self.l2) {
            (Tier::L0, ..) => trusted(self.l0.lookup(key).await?),
            (Tier::L1, Some(l1), _) => trusted(l1.lookup(key).await?),
            (Tier::L2, _, Some(l2)) => trusted(l2.lookup(key).await?),
            _ => None,
        };
        Ok(version.filter(|version| !self.is_fenced(tier, *version)))
    }

    /// Counts what L0 and L3 did; L1 and L2 are counted when that is known.
    fn count_stored(&self, space: &Namespace, stored: &Stored) {
        for tier in [Tier::L0, Tier::L3] {
            if let Some(outcome) = stored.tiers[tier as usize] {
                self.count_outcome(space, tier, outcome, stored.length);
            }
        }
    }

    fn count_outcome(&self, space: &Namespace, tier: Tier, outcome: TierOutcome, length: u64) {
        match outcome {
            TierOutcome::Kept => self.count_write(space, tier, Ok(length)),
            TierOutcome::Dropped(reason) => self.count_write(space, tier, Err(reason)),
            TierOutcome::Queued => {}
        }
    }

    /// Counts what became of a write in one tier, for the tier and for the namespace.
    fn count_write(&self, space: &Namespace, tier: Tier, outcome: Result<u64, Reason>) {
        let stats = self.stats.tier(tier);
        match outcome {
            Ok(bytes) => {
                add(&stats.writes, 1);
                add(&stats.bytes_written, bytes);
            }
            Err(reason) => {
                stats.write_drops.count(reason);
                space.counters.dropped(tier, reason);
            }
        }
    }

    /// Runs a change of this shard to its end, whatever happens to the caller.
    pub(super) async fn run<V: 'static, F>(self: &Rc<Self>, work: impl FnOnce(Rc<Self>) -> F) -> Result<V, CacheError>
    where
        F: Future<Output = Result<V, CacheError>> + 'static,
    {
        let done = task::to_the_end(&self.rt, Box::pin(work(self.clone()))).await;
        done.unwrap_or(Err(CacheError::OutcomeUnknown { base: None, cause: None }))
    }
}

/// The version of a copy that a cache-only namespace may show: a suspect one is from before it was one.
fn trusted<H: HitHandler>(found: Option<(CacheMeta, H)>) -> Option<Version> {
    found.filter(|(_, hit)| hit.trust() == Trust::Trusted).map(|(meta, _)| meta.version)
}

/// The outcome of `work`, if it is there in time.
async fn within<R: Rt, V>(rt: &R, time: std::time::Duration, work: impl Future<Output = V>) -> Option<V> {
    let late = async {
        rt.sleep(time).await;
        None
    };
    futures_lite::future::or(async { Some(work.await) }, late).await
}
