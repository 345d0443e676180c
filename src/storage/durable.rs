//! L3: a tier of any [`BlobStore`] and any [`IndexStore`].
//!
//! Owns the commit of durable objects. A body of at most [`INLINE_BYTES_MAX`] bytes lives in its manifest; a larger
//! one is a blob that is durable before the manifest that names it. The index decides what exists: a look-up is the
//! manifest, then the body it names.
//!
//! Invariants:
//!
//! - INV-1: a body is given whole only if its length and checksum are those of its manifest. The last chunk is held
//!   back until the checksum of the whole has been seen; ranges rely on the blob store's block checksums.
//! - INV-2: every commit, and every tombstone, is above the entry it replaces and above every purge record, by one
//!   clock and by compare-and-swap.
//! - INV-3: an acknowledged write is in both stores. After an unknown outcome no blob is deleted: if the manifest is
//!   there, so is its body; if not, the blob is an orphan for the sweep.
//! - A blob is deleted only when no manifest names it and no commit can come to name it: the tier's own uploads are
//!   known, and a commit whose upload began longer ago than half of `orphan_age` is refused.
//!
//! Left to others: which thread it runs on (`executor`), and what the stores keep their promises with.

pub mod blob_format;
pub mod executor;
pub mod headroom;
pub mod hit;
pub mod local;
pub mod manifest_format;
pub mod pool;
pub mod purges;
pub mod redb;
pub mod room;
pub mod stats;
pub mod sweep;
pub mod write;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use engine::{clock::Clock, rt::Rt};

use self::{hit::DurableHit, purges::PurgeSet, stats::TierStats, write::DurableMiss};
use super::traits::{
    BlobId, BlobStore, Body, INLINE_BYTES_MAX, IndexStore, Manifest, PurgeRecord, PurgeScope, StoreError, Swap,
};
use crate::{
    cache::{
        CacheError, CacheKey, CacheMeta, Cause, Found, HEADERS_BYTES_MAX, Precondition, PurgeReport, Storage, Tier,
        Version,
    },
    reason::Reason,
    version::VersionClock,
};

/// How often a commit re-reads the entry after it lost a compare-and-swap. A key's writes are ordered by its shard,
/// so that only the sweep and other nodes can interfere.
pub const CAS_RETRIES_MAX: usize = 8;

/// Replaced blobs that wait for their deletion; beyond it they are left to the orphan sweep, counted.
pub const REPLACED_MAX: usize = 65_536;

/// Times of a [`DurableTier`].
#[derive(Clone, Copy, Debug)]
pub struct DurableSettings {
    /// A blob without manifest is an orphan when it is older than this. A commit is refused when its upload began
    /// longer ago than half of it.
    pub orphan_age: Duration,
    /// How long a replaced blob stays for look-ups that have its manifest and have not opened it yet. With a local
    /// directory a reader that has opened the file keeps it, so seconds do; object stores want an hour.
    pub blob_grace: Duration,
    /// Bodies up to this many bytes live in their manifest; at most [`INLINE_BYTES_MAX`].
    pub inline_bytes_max: u64,
    /// How long a tombstone stays.
    pub tombstone_ttl: Duration,
    /// Pause between two turns of the sweep.
    pub turn_pause: Duration,
    /// Least pause between two laps of the sweep; a lap that took long is followed by nine times as long, at most an
    /// hour.
    pub lap_pause: Duration,
    /// Whether flash copies outlive purge records, which then wait for [`DurableTier::flash_lapped`].
    pub flash: bool,
}

impl Default for DurableSettings {
    fn default() -> Self {
        Self {
            orphan_age: Duration::from_secs(24 * 3600),
            blob_grace: Duration::from_secs(10),
            inline_bytes_max: INLINE_BYTES_MAX,
            tombstone_ttl: Duration::from_secs(24 * 3600),
            turn_pause: Duration::from_millis(50),
            lap_pause: Duration::from_secs(60),
            flash: true,
        }
    }
}

/// A store that takes no more writes after a failed one; the cause of [`StoreError::Failed`] then.
#[derive(Debug, thiserror::Error)]
#[error("writes are off since an earlier one failed: {0}")]
pub struct Poisoned(pub Cause);

/// L3 over blob store `B` and index `I`. Clones are the same tier.
pub struct DurableTier<B, I, R> {
    inner: Rc<Inner<B, I, R>>,
}

impl<B, I, R> Clone for DurableTier<B, I, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

struct Inner<B, I, R> {
    rt: R,
    blobs: B,
    index: I,
    versions: VersionClock,
    settings: DurableSettings,
    purges: RefCell<PurgeSet>,
    /// Every flash copy below this version is gone.
    flash_lapped: Cell<Version>,
    /// Blobs being written or not yet named by a commit under way.
    uploads: RefCell<BTreeSet<BlobId>>,
    /// Blobs no manifest names any more, and when they may go.
    replaced: RefCell<VecDeque<(Duration, BlobId)>>,
    stats: RefCell<TierStats>,
}

impl<B: BlobStore + 'static, I: IndexStore + 'static, R: Rt> DurableTier<B, I, R> {
    /// A tier over `blobs` and `index`; reads the purge records and makes `versions` go on above the index.
    ///
    /// # Errors
    /// The index failed.
    pub async fn open(
        rt: R,
        blobs: B,
        index: I,
        versions: VersionClock,
        settings: DurableSettings,
    ) -> Result<Self, StoreError> {
        versions.observe(index.newest().await?);
        let mut purges = PurgeSet::default();
        index.purges().await?.into_iter().for_each(|record| purges.insert(record));
        let flash_lapped = Cell::new(if settings.flash { Version::NONE } else { Version(u64::MAX) });
        let inner = Inner {
            rt,
            blobs,
            index,
            versions,
            settings,
            purges: RefCell::new(purges),
            flash_lapped,
            uploads: RefCell::default(),
            replaced: RefCell::default(),
            stats: RefCell::default(),
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> TierStats {
        TierStats {
            replaced_waiting: self.inner.replaced.borrow().len() as u64,
            uploads: self.inner.uploads.borrow().len() as u64,
            purge_records: self.inner.purges.borrow().len() as u64,
            ..self.inner.stats.borrow().clone()
        }
    }

    /// The index below.
    #[must_use]
    pub fn index(&self) -> &I {
        &self.inner.index
    }

    /// The blob store below.
    #[must_use]
    pub fn blobs(&self) -> &B {
        &self.inner.blobs
    }

    /// Makes everything in `scope` that was written before now dead, durably; `None`: too many purge records.
    ///
    /// # Errors
    /// [`CacheError::Unavailable`], or [`CacheError::OutcomeUnknown`].
    pub async fn purge_scope(&self, scope: PurgeScope) -> Result<Option<PurgeRecord>, CacheError> {
        let inner = &self.inner;
        let record = PurgeRecord { scope, version: inner.versions.next(inner.now_ms(), Version::NONE) };
        let kept = inner.index.put_purge(record.clone()).await.map_err(|failed| unavailable(failed, None))?;
        if kept {
            inner.purges.borrow_mut().insert(record.clone());
        }
        Ok(kept.then_some(record))
    }

    /// Tells that every flash copy of a version below `version` is gone, so that purge records below it may go.
    pub fn flash_lapped(&self, version: Version) {
        self.inner.flash_lapped.set(self.inner.flash_lapped.get().max(version));
    }
}

/// What the index holds of a key, as a commit sees it.
struct Current {
    /// The entry, live or not; `None`: none, or one too damaged to read, which a new entry replaces.
    entry: Option<Manifest>,
    /// Its version if it is a live object.
    live: Option<Version>,
    damaged: bool,
}

impl Current {
    /// The version of the entry there is.
    fn base(&self) -> Version {
        self.entry.as_ref().map_or(Version::NONE, |entry| entry.version)
    }
}

impl<B: BlobStore, I: IndexStore, R: Rt> Inner<B, I, R> {
    fn now_ms(&self) -> u64 {
        self.rt.clock().wall_ms()
    }

    fn count(&self, what: impl FnOnce(&mut TierStats)) {
        what(&mut self.stats.borrow_mut());
    }

    /// Why `manifest` is not a live object, if it is not.
    fn dead(&self, manifest: &Manifest) -> Option<Reason> {
        if manifest.body == Body::Tombstone {
            Some(Reason::Deleted)
        } else if self.purges.borrow().covers(manifest) {
            Some(Reason::Purged)
        } else if !manifest.is_live(self.now_ms()) {
            Some(Reason::Expired)
        } else {
            None
        }
    }

    async fn current(&self, path: &[u8]) -> Result<Current, CacheError> {
        match self.index.get(path).await {
            Ok(entry) => {
                let live = entry.as_ref().filter(|entry| self.dead(entry).is_none()).map(|entry| entry.version);
                Ok(Current { entry, live, damaged: false })
            }
            Err(StoreError::Corrupted { what }) => {
                self.count(|stats| stats.corrupted += 1);
                tracing::error!(what, "a damaged manifest is being replaced");
                Ok(Current { entry: None, live: None, damaged: true })
            }
            Err(failed) => Err(unreadable(failed)),
        }
    }

    /// Puts `manifest` in the place of `current`.
    async fn swap(&self, current: &Current, manifest: Manifest) -> Result<Swap, StoreError> {
        match &current.entry {
            None => self.index.put_new(manifest).await,
            Some(entry) => self.index.cas_update(entry.version, manifest).await,
        }
    }

    /// Leaves the blob of an entry that is no more to the sweep.
    fn retire_blob(&self, entry: Option<Manifest>) {
        let Some(Manifest { body: Body::Blob(id), .. }) = entry else { return };
        let mut replaced = self.replaced.borrow_mut();
        if replaced.len() == REPLACED_MAX {
            self.count(|stats| stats.replaced_overflow += 1);
            return;
        }
        replaced.push_back((self.rt.clock().elapsed() + self.settings.blob_grace, id));
    }
}

/// A failed read as its caller's failure: a read leaves nothing in doubt.
fn unreadable(failed: StoreError) -> CacheError {
    match failed {
        StoreError::Unknown(cause) => CacheError::Unavailable { reason: Reason::Io, cause: Some(cause) },
        failed => unavailable(failed, None),
    }
}

/// A failed store as its caller's failure; `base` is what a commit of unknown outcome would replace.
fn unavailable(failed: StoreError, base: Option<Version>) -> CacheError {
    match failed {
        StoreError::Full { reason } => CacheError::Refused(reason),
        StoreError::Unknown(cause) => CacheError::OutcomeUnknown { base, cause: Some(cause) },
        StoreError::Failed(cause) => {
            let reason = if cause.is::<Poisoned>() { Reason::TierPoisoned } else { Reason::Io };
            CacheError::Unavailable { reason, cause: Some(cause) }
        }
        damaged @ StoreError::Corrupted { .. } => CacheError::unavailable(Reason::Corrupted, damaged),
    }
}

impl<B: BlobStore + 'static, I: IndexStore + 'static, R: Rt> Storage for DurableTier<B, I, R> {
    type Hit = DurableHit<B, I, R>;
    type Miss = DurableMiss<B, I, R>;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, Self::Hit)>, CacheError> {
        Ok(self.find(key).await?.hit())
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<Self::Hit>, CacheError> {
        let inner = &self.inner;
        let miss = |reason| {
            inner.count(|stats| stats.misses.count(reason));
            Ok(Found::Miss(reason))
        };
        let manifest = match inner.index.get(key.path()).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return miss(Reason::NotFound),
            Err(StoreError::Corrupted { what }) => {
                inner.count(|stats| stats.corrupted += 1);
                tracing::error!(what, "a damaged manifest is a miss");
                return miss(Reason::Corrupted);
            }
            Err(failed) => return Err(unreadable(failed)),
        };
        if let Some(reason) = inner.dead(&manifest) {
            return miss(reason);
        }
        let meta = CacheMeta {
            version: manifest.version,
            length: Some(manifest.length),
            checksum: Some(manifest.checksum),
            created_ms: manifest.created_ms,
            expires_ms: manifest.expires_ms,
            client_flags: manifest.client_flags,
            headers: manifest.headers.clone(),
        };
        match DurableHit::new(inner.clone(), manifest) {
            Some(hit) => {
                inner.count(|stats| stats.hits += 1);
                Ok(Found::Hit(meta, hit))
            }
            None => {
                inner.count(|stats| stats.corrupted += 1);
                tracing::error!(?key, "a damaged inline body is a miss");
                miss(Reason::Corrupted)
            }
        }
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self::Miss, CacheError> {
        if meta.headers.len() > HEADERS_BYTES_MAX {
            return Err(CacheError::Refused(Reason::HeadersMax));
        }
        let small = meta.length.is_some_and(|length| length <= self.inner.settings.inline_bytes_max);
        if precondition != Precondition::None && !small {
            // Worth a read: it may spare the whole body.
            let current = self.inner.current(key.path()).await?.live;
            if !precondition.holds(current) {
                return Err(CacheError::Precondition { current });
            }
        }
        DurableMiss::begin(self.inner.clone(), key.clone(), meta, precondition).await
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        let inner = &self.inner;
        for _ in 0..=CAS_RETRIES_MAX {
            let current = inner.current(key.path()).await?;
            if !precondition.holds(current.live) {
                return precondition.spares(current.live);
            }
            if current.live.is_none() && !current.damaged {
                return Ok(PurgeReport::default());
            }
            let tombstone = inner.tombstone(key, current.base());
            let version = tombstone.version;
            match inner.swap(&current, tombstone).await {
                Ok(Swap::Done) => {
                    let mut report = PurgeReport { removed: current.live, tombstone: Some(version), tiers: [false; 4] };
                    report.tiers[Tier::L3 as usize] = current.live.is_some();
                    inner.count(|stats| stats.purges += 1);
                    inner.retire_blob(current.entry);
                    return Ok(report);
                }
                Ok(Swap::Conflict(_)) => inner.count(|stats| stats.conflicts += 1),
                Err(failed) => return Err(inner.refused(unavailable(failed, Some(current.base())))),
            }
        }
        Err(inner.refused(CacheError::Unavailable { reason: Reason::Overload, cause: None }))
    }

    /// Only the expiry can change under an unchanged version: the index replaces nothing else without a new one.
    /// With other headers or flags nothing is done and the answer is `false`, as for a version that is gone: the
    /// caller writes the object anew.
    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        let inner = &self.inner;
        let current = inner.current(key.path()).await?;
        let Some(entry) = current.entry.filter(|entry| current.live == Some(entry.version)) else { return Ok(false) };
        let same = entry.version == meta.version
            && entry.headers == meta.headers
            && entry.client_flags == meta.client_flags
            && entry.created_ms == meta.created_ms;
        if !same {
            return Ok(false);
        }
        match inner.index.touch_ttl(key.path(), entry.version, meta.expires_ms).await {
            Ok(swap) => Ok(swap == Swap::Done),
            Err(failed) => Err(inner.refused(unavailable(failed, Some(entry.version)))),
        }
    }
}

impl<B: BlobStore, I: IndexStore, R: Rt> Inner<B, I, R> {
    fn tombstone(&self, key: &CacheKey, above: Version) -> Manifest {
        let now_ms = self.now_ms();
        let ttl_ms = u64::try_from(self.settings.tombstone_ttl.as_millis()).unwrap_or(u64::MAX);
        Manifest {
            path: key.path().clone(),
            version: self.versions.next(now_ms, above),
            body: Body::Tombstone,
            length: 0,
            checksum: 0,
            created_ms: now_ms,
            expires_ms: Some(now_ms.saturating_add(ttl_ms)),
            client_flags: 0,
            headers: Bytes::new(),
            tags: Vec::new(),
            nonce: self.rt.random(),
        }
    }

    /// Counts a failed write on its way out.
    fn refused(&self, failed: CacheError) -> CacheError {
        self.count(|stats| stats.refusals.count(failed.reason()));
        failed
    }
}
