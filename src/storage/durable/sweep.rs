//! The sweep: gives back what expired, was deleted, purged or replaced, or never came to be named.
//!
//! One lap reads every entry of the index once, a page a turn. Blobs that were old enough before the lap began and
//! that no entry names by its end are orphans: a commit that could still name one is refused by its age, and the
//! tier's own uploads are known. Everything is removed by compare-and-swap, so that a write that comes meanwhile
//! wins. Replaced blobs do not wait for a lap; they go after `blob_grace`.
//!
//! Bounds: [`SWEEP_PAGE`] entries or blobs a turn, [`ORPHAN_CANDIDATES_MAX`] candidates a lap (the next lap goes on
//! from there).

use std::{collections::BTreeSet, time::Duration};

use engine::{clock::Clock, rt::Rt};

use super::{DurableTier, Inner};
use crate::{
    cache::Version,
    reason::Reason,
    storage::traits::{BlobId, BlobInfo, BlobStore, Body, Cursor, IndexStore, Manifest, StoreError, Swap},
};

/// Entries or blobs looked at in one turn.
pub const SWEEP_PAGE: usize = 128;

/// Blobs one lap compares with the index. About 4 MiB.
pub const ORPHAN_CANDIDATES_MAX: usize = 65_536;

/// An expired object is removed no sooner than this after its end: a touch that saw it alive may still be under way,
/// and keeps its version.
pub const EXPIRY_MARGIN: Duration = Duration::from_secs(30);

/// A lap is followed by so many times its own length of rest.
const REST_PER_LAP: u32 = 9;

/// But by no more than this: a lap also takes long when the machine was suspended.
const REST_MAX: Duration = Duration::from_secs(3600);

impl<B: BlobStore + 'static, I: IndexStore + 'static, R: Rt> DurableTier<B, I, R> {
    /// Starts the sweep as tasks of their own. They end with the scheduler.
    pub fn start_sweep(&self) {
        let (laps, replaced) = (self.clone(), self.clone());
        self.inner.rt.spawn(async move { laps.sweep_laps().await });
        self.inner.rt.spawn(async move { replaced.sweep_replaced().await });
    }

    async fn sweep_laps(&self) {
        let inner = &self.inner;
        let mut after = None;
        loop {
            let begun = inner.rt.clock().elapsed();
            after = self.lap(after).await;
            let took = inner.rt.clock().elapsed().saturating_sub(begun);
            inner.rt.sleep(took.saturating_mul(REST_PER_LAP).min(REST_MAX).max(inner.settings.lap_pause)).await;
        }
    }

    async fn sweep_replaced(&self) {
        loop {
            let wait = self.take_replaced().await.unwrap_or(self.inner.settings.blob_grace);
            self.inner.rt.sleep(wait.max(self.inner.settings.turn_pause)).await;
        }
    }

    /// Deletes replaced blobs whose grace is over, one page at most; gives the time until the next is due.
    pub async fn take_replaced(&self) -> Option<Duration> {
        let inner = &self.inner;
        for _ in 0..SWEEP_PAGE {
            let now = inner.rt.clock().elapsed();
            let id = match inner.replaced.borrow_mut().front() {
                None => return None,
                Some((due, _)) if *due > now => return Some(*due - now),
                Some((_, id)) => id.clone(),
            };
            let deleted = inner.blobs.delete(&id).await;
            // Only this task takes from the front.
            inner.replaced.borrow_mut().pop_front();
            match deleted {
                Ok(deleted) => inner.count(|stats| stats.sweep.replaced += u64::from(deleted)),
                Err(failed) => tracing::warn!(?id, error = %failed, "a replaced blob is left to the orphan sweep"),
            }
        }
        Some(Duration::ZERO)
    }

    /// One lap, listing blobs from `blobs_after` on; gives where the next lap's listing goes on. A store that fails
    /// ends the lap, counted, with nothing removed that was not certain.
    pub async fn lap(&self, blobs_after: Option<Cursor>) -> Option<Cursor> {
        let lap = Lap { inner: &self.inner };
        match lap.run(blobs_after).await {
            Ok(after) => {
                self.inner.count(|stats| stats.sweep.laps += 1);
                after
            }
            Err(failed) => {
                self.inner.count(|stats| stats.sweep.failures += 1);
                tracing::warn!(error = %failed, "a lap of the sweep ended early");
                None
            }
        }
    }
}

struct Lap<'a, B, I, R> {
    inner: &'a Inner<B, I, R>,
}

impl<B: BlobStore, I: IndexStore, R: Rt> Lap<'_, B, I, R> {
    async fn run(&self, blobs_after: Option<Cursor>) -> Result<Option<Cursor>, StoreError> {
        let inner = self.inner;
        let began = inner.versions.next(inner.now_ms(), Version::NONE);
        let (mut candidates, after) = self.old_blobs(blobs_after).await?;
        let mut cursor = None;
        loop {
            let (page, next) = inner.index.scan(cursor, SWEEP_PAGE).await?;
            for manifest in page {
                if let Body::Blob(id) = &manifest.body {
                    candidates.remove(id);
                }
                self.sweep_entry(manifest).await?;
            }
            cursor = next;
            if cursor.is_none() {
                break;
            }
            inner.rt.sleep(inner.settings.turn_pause).await;
        }
        self.delete_orphans(candidates).await?;
        self.retire_purges(began).await?;
        Ok(after)
    }

    /// Whether a blob is old enough to be an orphan.
    fn is_old(&self, blob: &BlobInfo) -> bool {
        let age_ms = self.inner.now_ms().saturating_sub(blob.created_ms);
        u128::from(age_ms) > self.inner.settings.orphan_age.as_millis()
            && !self.inner.uploads.borrow().contains(&blob.id)
    }

    async fn old_blobs(&self, after: Option<Cursor>) -> Result<(BTreeSet<BlobId>, Option<Cursor>), StoreError> {
        let (mut candidates, mut cursor) = (BTreeSet::new(), after);
        loop {
            let (page, next) = self.inner.blobs.list(cursor, SWEEP_PAGE).await?;
            candidates.extend(page.into_iter().filter(|blob| self.is_old(blob)).map(|blob| blob.id));
            cursor = next;
            if cursor.is_none() || candidates.len() + SWEEP_PAGE > ORPHAN_CANDIDATES_MAX {
                return Ok((candidates, cursor));
            }
            self.inner.rt.sleep(self.inner.settings.turn_pause).await;
        }
    }

    /// Removes an entry that is over. One that was replaced meanwhile is left alone.
    async fn sweep_entry(&self, manifest: Manifest) -> Result<(), StoreError> {
        let inner = self.inner;
        let Some(reason) = inner.dead(&manifest) else { return Ok(()) };
        let over_ms = manifest.expires_ms.map_or(0, |expires| inner.now_ms().saturating_sub(expires));
        if reason != Reason::Purged && u128::from(over_ms) < EXPIRY_MARGIN.as_millis() {
            return Ok(());
        }
        if inner.index.delete(&manifest.path, manifest.version).await? == Swap::Done {
            inner.count(|stats| match reason {
                Reason::Deleted => stats.sweep.tombstones += 1,
                Reason::Purged => stats.sweep.purged += 1,
                _ => stats.sweep.expired += 1,
            });
            inner.retire_blob(Some(manifest));
        }
        Ok(())
    }

    async fn delete_orphans(&self, candidates: BTreeSet<BlobId>) -> Result<(), StoreError> {
        for (i, id) in candidates.iter().enumerate() {
            // Looked at again: the name may have been deleted and, by a store of another node, used since.
            let still = self.inner.blobs.head(id).await?.is_some_and(|blob| self.is_old(&blob));
            if still && self.inner.blobs.delete(id).await? {
                self.inner.count(|stats| stats.sweep.orphans += 1);
                tracing::info!(?id, "an orphan blob was deleted");
            }
            if i % SWEEP_PAGE == SWEEP_PAGE - 1 {
                self.inner.rt.sleep(self.inner.settings.turn_pause).await;
            }
        }
        Ok(())
    }

    /// Forgets purge records from before this lap, whose objects it has removed, once flash has none of them either.
    async fn retire_purges(&self, lap_began: Version) -> Result<(), StoreError> {
        let inner = self.inner;
        let below = lap_began.min(inner.flash_lapped.get());
        for record in inner.index.purges().await? {
            if record.version < below {
                inner.index.retire_purge(&record).await?;
                inner.purges.borrow_mut().remove(&record);
                inner.count(|stats| stats.sweep.purge_records += 1);
            }
        }
        Ok(())
    }
}
