//! L2: a thin `Storage` over `engine::log`.
//!
//! Owns the encoding of [`CacheMeta`] into the log's opaque metadata (`client_flags: u32` little endian, then the
//! headers), the record flag that says which kind of namespace wrote it, and what a removal must leave behind:
//!
//! - In a *durable* namespace nothing: recovered copies are suspects, compared with L3's index before their first
//!   answer, so a removal is the index entry's alone.
//! - In a *cache-only* namespace a tombstone, and until that is on flash a note in the superseding ring (INV-3). A
//!   removal that supersedes (`OlderThan`) is acknowledged with the note; an explicit one waits for the flush.
//!
//! Left to others: which objects come here and when (`multi_tier`), bytes and their checks (`engine::log`).

use std::{ops::Range, rc::Rc, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use engine::{
    clock::Clock,
    device::{Device, DeviceError},
    log::{Body, Commit, Keep, Log, LogError, Lookup, Miss, Recovered, StagedWrite, Stats, Stop},
    rt::Rt,
};

use crate::{
    cache::{
        CacheError, CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, PurgeReport, Storage, Stored,
        Tier, Trust, Version,
    },
    namespace::Namespaces,
    policy::Mode,
    reason::Reason,
    version::VersionClock,
};

/// Flag of a record: its namespace was cache-only when it was written, so nobody can check its version later.
pub const RECORD_CACHE_ONLY: u16 = 1;

/// What a recovered record is worth. A durable object is compared with L3's index before its first answer, however the
/// last run ended. A cache-only one is trusted as long as nothing newer of its key can have been lost.
#[must_use]
pub fn keep(record: &Recovered) -> Keep {
    match (record.flags & RECORD_CACHE_ONLY != 0, record.stop) {
        (false, _) => Keep::Suspect,
        (true, Stop::Clean | Stop::Killed) => Keep::Trust,
        (true, Stop::PowerCut | Stop::Damaged) => Keep::Discard,
    }
}

/// Bytes of the log's metadata before the headers.
const HEADERS_AT: usize = size_of::<u32>();

struct Shared<D: Device, R: Rt> {
    log: Log<D, R>,
    rt: R,
    versions: VersionClock,
    namespaces: Rc<Namespaces>,
}

/// The flash tier of one shard. Clones share it.
pub struct FlashTier<D: Device, R: Rt>(Rc<Shared<D, R>>);

impl<D: Device, R: Rt> Clone for FlashTier<D, R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Device, R: Rt> FlashTier<D, R> {
    /// A tier over an open log. `versions` must have been shown every version the log recovered.
    #[must_use]
    pub fn new(log: Log<D, R>, rt: R, versions: VersionClock, namespaces: Rc<Namespaces>) -> Self {
        Self(Rc::new(Shared { log, rt, versions, namespaces }))
    }

    /// Figures of the log.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.log.stats()
    }

    /// Why the log takes and gives nothing any more, if so.
    #[must_use]
    pub fn poisoned(&self) -> Option<Arc<str>> {
        self.0.log.poisoned()
    }

    /// The largest body the log takes, in bytes.
    #[must_use]
    pub fn object_bytes_max(&self) -> u64 {
        self.0.log.object_bytes_max()
    }

    /// Whether a look-up of this key would read flash. RAM only; `false` is certain.
    #[must_use]
    pub fn may_contain(&self, key: &CacheKey) -> bool {
        self.0.log.may_contain(key.hash())
    }

    /// Flushes, marks the log as cleanly stopped and closes it. Requests must have ended.
    ///
    /// # Errors
    /// The log is poisoned, or the device fails: the next start takes it as an unclean stop.
    pub async fn close(&self) -> Result<(), CacheError> {
        self.0.log.close().await.map_err(failed)
    }

    fn is_cache_only(&self, key: &CacheKey) -> bool {
        self.0.namespaces.for_read(key.namespace()).with(|rules| rules.mode == Mode::CacheOnly)
    }

    /// The live version of exactly this key; reads flash.
    async fn live_version(&self, key: &CacheKey) -> Result<Option<Version>, CacheError> {
        Ok(match self.0.log.get(key.hash(), key.path(), self.0.rt.clock().wall_ms()).await.map_err(failed)? {
            Lookup::Found(found) => Some(Version(found.version)),
            Lookup::Miss(_) => None,
        })
    }

    /// What `precondition` is judged by. Only a client's is worth a read of flash: between tiers the index will do, as
    /// the log itself lets the highest version win.
    async fn current(&self, key: &CacheKey, precondition: Precondition) -> Result<Option<Version>, CacheError> {
        match precondition {
            Precondition::None | Precondition::OlderThan(_) => Ok(self.served_hint(key)),
            Precondition::Exists | Precondition::Absent | Precondition::Version(_) => self.live_version(key).await,
        }
    }

    /// The version of what the index serves for the key's class, without reading flash: a hint.
    fn served_hint(&self, key: &CacheKey) -> Option<Version> {
        let hint = self.0.log.version_hint(key.hash()).map(Version);
        hint.filter(|_| self.0.log.may_contain(key.hash()))
    }

    /// Makes copies below `version` unreadable, now and after a kill; gives whether one was served before.
    async fn supersede(&self, key: &CacheKey, version: Version) -> Result<bool, CacheError> {
        let served = self.served_hint(key).is_some_and(|held| held < version);
        if self.is_cache_only(key) {
            self.0.log.tombstone(key.hash(), key.path(), version.0).await.map_err(failed)?;
        } else if served {
            self.0.log.remove(key.hash());
        }
        Ok(served)
    }
}

fn failed(error: LogError) -> CacheError {
    match error {
        LogError::Device(DeviceError::NoSpace { .. }) => CacheError::unavailable(Reason::DiskFull, error),
        LogError::Device(_) => CacheError::unavailable(Reason::Io, error),
        LogError::Poisoned { .. } => CacheError::unavailable(Reason::TierPoisoned, error),
        LogError::Closed => CacheError::unavailable(Reason::Stopping, error),
        LogError::TooLarge { .. } | LogError::HeadTooLarge { .. } => CacheError::Refused(Reason::TooLarge),
        LogError::NoRoom => CacheError::Refused(Reason::NoRoom),
        LogError::Superseded { .. } => CacheError::Refused(Reason::Superseded),
        LogError::Refused => CacheError::Refused(Reason::Poisoned),
        LogError::Gone => CacheError::Gone,
        LogError::Corrupted { .. } => CacheError::Corrupted { what: error.to_string() },
        LogError::BadRange => CacheError::Refused(Reason::Internal),
    }
}

fn missed(miss: Miss) -> Reason {
    match miss {
        Miss::Absent => Reason::NotFound,
        Miss::Removed => Reason::Removed,
        Miss::Expired => Reason::Expired,
        Miss::Collision => Reason::IndexCollision,
        Miss::Corrupted => Reason::Corrupted,
        Miss::Gone => Reason::Reclaimed,
    }
}

fn encode(meta: &CacheMeta) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(HEADERS_AT + meta.headers.len());
    bytes.put_u32_le(meta.client_flags);
    bytes.put_slice(&meta.headers);
    bytes
}

impl<D: Device, R: Rt> Storage for FlashTier<D, R> {
    type Hit = FlashHit<D, R>;
    type Miss = FlashMiss<D, R>;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, Self::Hit)>, CacheError> {
        Ok(self.find(key).await?.hit())
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<Self::Hit>, CacheError> {
        let log = &self.0.log;
        let found = match log.get(key.hash(), key.path(), self.0.rt.clock().wall_ms()).await.map_err(failed)? {
            Lookup::Found(found) => found,
            Lookup::Miss(miss) => return Ok(Found::Miss(missed(miss))),
        };
        let mut fixed = &found.meta[..];
        let Ok(client_flags) = fixed.try_get_u32_le() else {
            // A record whose checksum holds and whose metadata is not ours: never served.
            log.remove(key.hash());
            return Ok(Found::Miss(Reason::Corrupted));
        };
        let meta = CacheMeta {
            version: Version(found.version),
            length: Some(found.length),
            checksum: Some(found.checksum),
            created_ms: found.created_ms,
            expires_ms: found.expires_ms,
            client_flags,
            headers: if fixed.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(fixed) },
        };
        let trust = if found.suspect { Trust::Suspect } else { Trust::Trusted };
        let hit = FlashHit { log: log.clone(), hash: key.hash(), version: found.version, body: found.body, trust };
        Ok(Found::Hit(meta, hit))
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self::Miss, CacheError> {
        let current = self.current(key, precondition).await?;
        if !precondition.holds(current) {
            return Err(CacheError::Precondition { current });
        }
        let staged = self.0.log.stage(key.hash(), meta.length).map_err(failed)?;
        Ok(FlashMiss { tier: self.clone(), key: key.clone(), meta, precondition, staged, whole: false })
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        let mut report = PurgeReport::default();
        if let Precondition::OlderThan(version) = precondition {
            // From the index alone: a commit does not read flash for this.
            report.removed = self.served_hint(key).filter(|held| *held < version);
            report.tiers[Tier::L2 as usize] = self.supersede(key, version).await?;
            return Ok(report);
        }
        let current = self.live_version(key).await?;
        if !precondition.holds(current) {
            return precondition.spares(current);
        }
        let held = self.0.log.version_hint(key.hash()).map_or(Version::NONE, Version);
        let version = self.0.versions.next(self.0.rt.clock().wall_ms(), held);
        self.supersede(key, version).await?;
        if self.is_cache_only(key) {
            self.0.log.flush().await.map_err(failed)?;
        }
        report.removed = current;
        report.tiers[Tier::L2 as usize] = current.is_some();
        Ok(report)
    }

    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        let (encoded, now_ms) = (encode(&meta), self.0.rt.clock().wall_ms());
        let log = &self.0.log;
        let updated = log.update_meta(key.hash(), key.path(), meta.version.0, &encoded, meta.expires_ms, now_ms);
        updated.await.map_err(failed)
    }
}

/// A hit on flash.
pub struct FlashHit<D: Device, R: Rt> {
    log: Log<D, R>,
    hash: u64,
    version: u64,
    body: Body<D, R>,
    trust: Trust,
}

impl<D: Device, R: Rt> HitHandler for FlashHit<D, R> {
    fn remaining(&self) -> u64 {
        self.body.remaining()
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        self.body.seek(range).map_err(failed)
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        self.body.next().await.map_err(failed)
    }

    fn tier(&self) -> Tier {
        Tier::L2
    }

    fn trust(&self) -> Trust {
        self.trust
    }

    fn confirm(&mut self) {
        self.trust = Trust::Trusted;
        self.log.mark_verified(self.hash, self.version);
    }
}

/// A write on its way to flash.
pub struct FlashMiss<D: Device, R: Rt> {
    tier: FlashTier<D, R>,
    key: CacheKey,
    meta: CacheMeta,
    precondition: Precondition,
    staged: StagedWrite<D, R>,
    whole: bool,
}

impl<D: Device, R: Rt> MissHandler for FlashMiss<D, R> {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        &mut self.meta
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        let length = self.staged.length() + chunk.len() as u64;
        let announced = self.meta.length;
        if self.whole || announced.is_some_and(|announced| length > announced || (eof && length < announced)) {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        self.staged.append(chunk).await.map_err(failed)?;
        self.whole = eof;
        Ok(())
    }

    async fn finish(self) -> Result<Stored, CacheError> {
        let Self { tier, key, mut meta, precondition, staged, whole } = self;
        if !whole {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        if meta.checksum.is_some_and(|announced| announced != staged.checksum()) {
            return Err(CacheError::Refused(Reason::BodyMismatch));
        }
        let replaced = tier.current(&key, precondition).await?;
        if !precondition.holds(replaced) {
            return Err(CacheError::Precondition { current: replaced });
        }
        let shared = &tier.0;
        if meta.version == Version::NONE {
            let held = shared.log.version_hint(key.hash()).map_or(Version::NONE, Version);
            meta.version = shared.versions.next(shared.rt.clock().wall_ms(), held);
        }
        let cache_only = tier.is_cache_only(&key);
        let encoded = encode(&meta);
        let commit = Commit {
            hash: key.hash(),
            key: key.path(),
            version: meta.version.0,
            meta: &encoded,
            created_ms: meta.created_ms,
            expires_ms: meta.expires_ms,
            flags: if cache_only { RECORD_CACHE_ONLY } else { 0 },
            note: cache_only,
        };
        let committed = staged.commit(&commit).await.map_err(failed)?;
        Ok(Stored::kept(Tier::L2, meta.version, committed.length, replaced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_recovered_record_is_worth() {
        let worth = |flags, stop| keep(&Recovered { hash: 0, version: 1, flags, stop });
        for stop in [Stop::Clean, Stop::Killed, Stop::PowerCut, Stop::Damaged] {
            assert_eq!(worth(0, stop), Keep::Suspect, "{stop:?}");
        }
        assert_eq!(worth(RECORD_CACHE_ONLY, Stop::Clean), Keep::Trust);
        assert_eq!(worth(RECORD_CACHE_ONLY, Stop::Killed), Keep::Trust);
        assert_eq!(worth(RECORD_CACHE_ONLY, Stop::PowerCut), Keep::Discard);
        assert_eq!(worth(RECORD_CACHE_ONLY, Stop::Damaged), Keep::Discard);
    }
}
