//! Deletes, purges and changes of metadata, in the key's turn.
//!
//! A delete and a purge are the same here: after the acknowledgement no tier shows what was removed, whatever crash
//! follows. In a durable namespace L3 leaves its tombstone first; the copies above go after it. In a cache-only one
//! L2 goes first and flushes, since it alone can fail in a way that must be reported. All of it runs to its end once
//! begun: a caller that leaves cannot leave a key half removed.

use std::rc::Rc;

use super::{
    Node, Tiers,
    commit::{Held, UPPER, unavailable},
};
use crate::{
    cache::{CacheError, CacheKey, CacheMeta, Precondition, PurgeReport, Storage, Tier, Version},
    policy::Mode,
    reason::Reason,
};

impl<T: Tiers> Node<T> {
    pub(super) async fn purge(
        self: &Rc<Self>,
        key: &CacheKey,
        precondition: Precondition,
    ) -> Result<PurgeReport, CacheError> {
        let space = self.namespaces.for_read(key.namespace());
        let (mode, key) = (space.with(|rules| rules.mode), key.clone());
        let purged = self.remove(key, precondition, mode).await;
        purged.inspect_err(|failed| space.counters.refused(failed.reason()))
    }

    /// [`Node::purge`], not counted.
    pub(super) async fn remove(
        self: &Rc<Self>,
        key: CacheKey,
        precondition: Precondition,
        mode: Mode,
    ) -> Result<PurgeReport, CacheError> {
        self.run(async move |node| {
            let turn = node.take_turn(&key).await.map_err(unavailable)?;
            match mode {
                Mode::Durable => node.purge_durable(&key, precondition, turn).await,
                Mode::CacheOnly => node.purge_cached(&key, precondition, turn).await,
            }
        })
        .await
    }

    async fn purge_durable(
        self: &Rc<Self>,
        key: &CacheKey,
        precondition: Precondition,
        mut turn: Held,
    ) -> Result<PurgeReport, CacheError> {
        if self.l3.is_none() {
            return Err(unavailable(Reason::TierOff));
        }
        turn.turn.decide().map_err(unavailable)?;
        let mut report = match self.purge_tier(Tier::L3, key, precondition).await {
            Ok(report) => report,
            Err(CacheError::OutcomeUnknown { base, cause }) => {
                turn.turn.doubted(base);
                self.clear(key, turn).await;
                return Err(CacheError::OutcomeUnknown { base, cause });
            }
            Err(failed) => {
                turn.turn.decided(false);
                self.failed(Tier::L3, &failed);
                return Err(failed);
            }
        };
        let (older, version, past_doubt) = match (report.tombstone, precondition) {
            (Some(tombstone), _) => {
                self.versions.observe(tombstone);
                (Precondition::OlderThan(tombstone), tombstone, true)
            }
            // Nothing live was there, or what is not older: that stays above as well, and so does a doubt about it.
            (None, Precondition::OlderThan(version)) => (precondition, version, false),
            // Nothing live was there; neither should anything be above.
            (None, _) => (Precondition::None, self.versions.next(self.now_ms(), Version::NONE), true),
        };
        turn.turn.decided(past_doubt);
        // The moment: L3 holds nothing live below `version`, and what is above of that is hidden until it is gone.
        turn.turn.raise(version);
        let mut stays = None;
        for tier in UPPER {
            match self.retire(tier, key, older, version).await {
                Ok(upper) => report.tiers[tier as usize] |= upper.tiers[tier as usize],
                // L1 is shared: a copy there is its own node's to invalidate, and fenced here.
                Err(reason) if tier != Tier::L1 => stays = Some(reason),
                Err(_) => {}
            }
        }
        self.release_later(turn, key, older, version);
        // The object is gone, but a copy may come back after a restart: the caller must ask again.
        stays.map_or(Ok(report), |reason| Err(unavailable(reason)))
    }

    async fn purge_cached(
        self: &Rc<Self>,
        key: &CacheKey,
        precondition: Precondition,
        turn: Held,
    ) -> Result<PurgeReport, CacheError> {
        let removed = self.live(key).await?;
        if !precondition.holds(removed) {
            return precondition.spares(removed);
        }
        let version = self.versions.next(self.now_ms(), removed.unwrap_or(Version::NONE));
        let flash = self.retire(Tier::L2, key, Precondition::None, version).await.map_err(unavailable)?;
        turn.turn.raise(version);
        let mut report = PurgeReport { removed, ..flash };
        for tier in [Tier::L1, Tier::L0] {
            if let Ok(upper) = self.retire(tier, key, Precondition::None, version).await {
                report.tiers[tier as usize] |= upper.tiers[tier as usize];
            }
        }
        self.release_later(turn, key, Precondition::OlderThan(version), version);
        Ok(report)
    }

    pub(super) async fn update_meta(self: &Rc<Self>, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        let space = self.namespaces.for_read(key.namespace());
        let rules = space.effective();
        let (mode, key, meta) = (rules.mode, key.clone(), self.within_rules(&rules, meta));
        let updated = self.run(async move |node| {
            let turn = node.take_turn(&key).await.map_err(unavailable)?;
            // Without a limit: a stuck fill has the old metadata under the same version, and no floor would hide it.
            turn.turn.settled().await;
            match mode {
                Mode::Durable => node.update_durable(&key, &meta, turn).await,
                Mode::CacheOnly => node.update_cached(&key, &meta).await,
            }
        });
        updated.await.inspect_err(|failed| space.counters.refused(failed.reason()))
    }

    async fn update_durable(
        self: &Rc<Self>,
        key: &CacheKey,
        meta: &CacheMeta,
        mut turn: Held,
    ) -> Result<bool, CacheError> {
        let Some(l3) = &self.l3 else { return Err(unavailable(Reason::TierOff)) };
        turn.turn.decide().map_err(unavailable)?;
        match l3.update_meta(key, meta.clone()).await {
            Ok(updated) => {
                // Not a new version: an earlier doubt stays.
                turn.turn.decided(false);
                if updated {
                    self.update_upper(key, meta).await;
                }
                Ok(updated)
            }
            Err(CacheError::OutcomeUnknown { base, cause }) => {
                // Old and new metadata have one version, so no answer of L3 tells them apart.
                turn.turn.doubted(None);
                self.clear(key, turn).await;
                Err(CacheError::OutcomeUnknown { base, cause })
            }
            Err(failed) => {
                turn.turn.decided(false);
                self.failed(Tier::L3, &failed);
                Err(failed)
            }
        }
    }

    async fn update_cached(&self, key: &CacheKey, meta: &CacheMeta) -> Result<bool, CacheError> {
        if self.live(key).await? != Some(meta.version) {
            return Ok(false);
        }
        Ok(self.update_upper(key, meta).await)
    }

    /// Brings the copies above L3 up to date; one that cannot be goes. Whether any copy was.
    async fn update_upper(&self, key: &CacheKey, meta: &CacheMeta) -> bool {
        let mut any = false;
        let above = Version(meta.version.0.saturating_add(1));
        for tier in UPPER {
            let updated = match (tier, &self.l1, &self.l2) {
                (Tier::L0, ..) => self.l0.update_meta(key, meta.clone()).await,
                (Tier::L1, Some(l1), _) => l1.update_meta(key, meta.clone()).await,
                (Tier::L2, _, Some(l2)) => l2.update_meta(key, meta.clone()).await,
                _ => Ok(false),
            };
            match updated {
                Ok(updated) => any |= updated,
                Err(failed) => {
                    self.failed(tier, &failed);
                    let _ = self.retire(tier, key, Precondition::OlderThan(above), above).await;
                }
            }
        }
        any
    }
}
