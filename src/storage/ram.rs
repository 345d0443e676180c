//! L0: a thin `Storage` over `engine::slab`.
//!
//! Owns the encoding of [`CacheMeta`] into the slab's opaque blob (the table below) and what a version means there.
//! Everything is synchronous inside: no future of this tier ever waits, which is what lets `MultiTier` publish to
//! L0 without a window. Bytes that leave to make room are shown to an [`EvictSink`] first.
//!
//! The blob, little endian: `checksum: u32`, `created_ms: u64`, `client_flags: u32`, then the headers.

use std::{cell::RefCell, io, ops::Range, rc::Rc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use engine::{
    clock::Clock,
    slab::{self, Config, Entry, Evicted, Lookup, Outcome, Slab, Stage, StageError, Stats, Update},
};

use crate::{
    cache::{
        COPY_BYTES_MAX, CacheError, CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, PurgeReport,
        Storage, Stored, Tier, Version,
    },
    reason::Reason,
    version::VersionClock,
};

const CHECKSUM_AT: usize = 0;
const CREATED_AT: usize = 4;
const CLIENT_FLAGS_AT: usize = 12;
const HEADERS_AT: usize = 16;
const _: () = assert!(HEADERS_AT == CHECKSUM_AT + size_of::<u32>() + size_of::<u64>() + size_of::<u32>());
const _: () = assert!(CREATED_AT == 4 && CLIENT_FLAGS_AT == 12);

/// Index places looked at by one [`RamTier::sweep`]: bounds how long the shard is kept from its sockets.
pub const SWEEP_PLACES_MAX: usize = 256;

/// An object that leaves L0 to make room, its bytes still in place.
#[derive(Clone, Copy, Debug)]
pub struct Leaving<'a> {
    /// `namespace/key`.
    pub path: &'a [u8],
    /// As [`CacheKey::hash`].
    pub hash: u64,
    /// Its version.
    pub version: Version,
    /// CRC-32 of the body.
    pub checksum: u32,
    /// As in [`CacheMeta`].
    pub created_ms: u64,
    /// As in [`CacheMeta`].
    pub expires_ms: Option<u64>,
    /// As in [`CacheMeta`].
    pub client_flags: u32,
    /// As in [`CacheMeta`].
    pub headers: &'a [u8],
    /// The whole body.
    pub body: &'a [u8],
}

/// Where objects go that leave L0. Called in the middle of an eviction: must not touch L0, wait or take long.
pub trait EvictSink: 'static {
    /// Takes a copy or not; counts its own refusals.
    fn leaving(&self, object: Leaving<'_>);
}

/// No one takes what leaves L0.
impl EvictSink for () {
    fn leaving(&self, _: Leaving<'_>) {}
}

struct Shared<C, E> {
    slab: RefCell<Slab>,
    clock: C,
    versions: VersionClock,
    sink: E,
}

/// The RAM tier of one shard. Clones share it.
pub struct RamTier<C, E = ()>(Rc<Shared<C, E>>);

impl<C, E> Clone for RamTier<C, E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: Clock, E: EvictSink> RamTier<C, E> {
    /// Maps the arena. Blocks for that.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn new(config: Config, clock: C, versions: VersionClock, sink: E) -> io::Result<Self> {
        Ok(Self(Rc::new(Shared { slab: RefCell::new(Slab::new(config)?), clock, versions, sink })))
    }

    /// Gives back the room of some expired objects. A turn looks at [`SWEEP_PLACES_MAX`] places of the index and goes
    /// on from there the next time; returns how many objects it freed.
    pub fn sweep(&self) -> u64 {
        let now_ms = self.0.clock.wall_ms();
        self.0.slab.borrow_mut().sweep(now_ms, SWEEP_PLACES_MAX, &mut |_| {})
    }

    /// Figures of the slab.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.slab.borrow_mut().stats()
    }

    fn live_version(&self, key: &CacheKey) -> Option<Version> {
        let now_ms = self.0.clock.wall_ms();
        let peek = self.0.slab.borrow().peek(key.hash(), key.path())?;
        (peek.expires_ms == 0 || peek.expires_ms > now_ms).then_some(Version(peek.version))
    }
}

impl<C, E: EvictSink> Shared<C, E> {
    /// Runs `f` on the slab with the sink as its eviction hook.
    fn evicting<T>(&self, f: impl FnOnce(&mut Slab, slab::OnEvict<'_>) -> T) -> T {
        f(&mut self.slab.borrow_mut(), &mut |evicted: Evicted<'_>| {
            if evicted.reason == slab::Reason::Evicted
                && let Some(object) = leaving(&evicted)
            {
                self.sink.leaving(object);
            }
        })
    }
}

fn leaving<'a>(evicted: &Evicted<'a>) -> Option<Leaving<'a>> {
    let mut fixed = evicted.meta.get(..HEADERS_AT)?;
    Some(Leaving {
        path: evicted.key,
        hash: evicted.hash,
        version: Version(evicted.version),
        checksum: fixed.get_u32_le(),
        created_ms: fixed.get_u64_le(),
        client_flags: fixed.get_u32_le(),
        expires_ms: expires_from(evicted.expires_ms),
        headers: &evicted.meta[HEADERS_AT..],
        body: evicted.body,
    })
}

fn expires_from(slab_ms: u64) -> Option<u64> {
    (slab_ms != 0).then_some(slab_ms)
}

/// An expiry at the epoch itself is one millisecond after it: 0 says "never" in the slab.
fn expires_to(expires_ms: Option<u64>) -> u64 {
    expires_ms.map_or(0, |ms| ms.max(1))
}

fn encode(meta: &CacheMeta) -> BytesMut {
    let mut blob = BytesMut::with_capacity(HEADERS_AT + meta.headers.len());
    blob.put_u32_le(meta.checksum.unwrap_or_default());
    blob.put_u64_le(meta.created_ms);
    blob.put_u32_le(meta.client_flags);
    blob.put_slice(&meta.headers);
    blob
}

fn entry<'a>(key: &'a CacheKey, meta: &CacheMeta, blob: &'a [u8]) -> Entry<'a> {
    Entry {
        key: key.path(),
        hash: key.hash(),
        version: meta.version.0,
        meta: blob,
        expires_ms: expires_to(meta.expires_ms),
        flags: 0,
    }
}

fn decode(hit: &slab::Hit<'_>) -> CacheMeta {
    let mut blob = hit.meta();
    let (checksum, created_ms, client_flags) = (blob.get_u32_le(), blob.get_u64_le(), blob.get_u32_le());
    CacheMeta {
        version: Version(hit.version()),
        length: Some(hit.body_bytes()),
        checksum: Some(checksum),
        created_ms,
        expires_ms: expires_from(hit.expires_ms()),
        client_flags,
        headers: if blob.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(blob) },
    }
}

impl<C: Clock, E: EvictSink> Storage for RamTier<C, E> {
    type Hit = RamHit;
    type Miss = RamMiss<C, E>;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, RamHit)>, CacheError> {
        Ok(self.find(key).await?.hit())
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<RamHit>, CacheError> {
        let now_ms = self.0.clock.wall_ms();
        let mut slab = self.0.slab.borrow_mut();
        Ok(match slab.get(key.hash(), key.path(), now_ms) {
            Lookup::Hit(hit) => {
                let meta = decode(&hit);
                Found::Hit(meta, RamHit { rest: hit.pin(), fresh: true })
            }
            Lookup::Expired => Found::Miss(Reason::Expired),
            Lookup::Miss => Found::Miss(Reason::NotFound),
        })
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<RamMiss<C, E>, CacheError> {
        let current = self.live_version(key);
        if !precondition.holds(current) {
            return Err(CacheError::Precondition { current });
        }
        let stage = self
            .0
            .evicting(|slab, on_evict| slab.stage(meta.length, u64::MAX, on_evict))
            .map_err(refused)?;
        Ok(RamMiss {
            tier: self.clone(),
            key: key.clone(),
            meta,
            precondition,
            stage,
            hasher: crc32fast::Hasher::new(),
            length: 0,
            whole: false,
        })
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        let current = self.live_version(key);
        let mut slab = self.0.slab.borrow_mut();
        let removed = if let Precondition::OlderThan(version) = precondition {
            // What is there and newer stays: between tiers that is an answer, not a failure.
            slab.remove_older(key.hash(), key.path(), version.0.saturating_sub(1))
        } else if precondition.holds(current) {
            slab.remove(key.hash(), key.path())
        } else {
            return Err(CacheError::Precondition { current });
        };
        let removed = removed.map(Version).filter(|version| current == Some(*version));
        let mut report = PurgeReport { removed, ..PurgeReport::default() };
        report.tiers[Tier::L0 as usize] = removed.is_some();
        Ok(report)
    }

    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        let Some(current) = self.live_version(key).filter(|version| *version == meta.version) else {
            return Ok(false);
        };
        debug_assert_eq!(current, meta.version);
        // The checksum is the body's, which stays.
        let checksum = {
            let mut slab = self.0.slab.borrow_mut();
            match slab.get(key.hash(), key.path(), self.0.clock.wall_ms()) {
                Lookup::Hit(hit) => decode(&hit).checksum,
                Lookup::Expired | Lookup::Miss => return Ok(false),
            }
        };
        let blob = encode(&CacheMeta { checksum, ..meta.clone() });
        let update = self.0.evicting(|slab, on_evict| slab.update_meta(entry(key, &meta, &blob), on_evict));
        match update {
            Update::Done => Ok(true),
            Update::Missing | Update::Older { .. } => Ok(false),
            Update::TooLarge => Err(CacheError::Refused(Reason::TooLarge)),
            Update::NoRoom => Err(CacheError::Refused(Reason::NoRoom)),
        }
    }
}

fn refused(error: StageError) -> CacheError {
    CacheError::Refused(match error {
        StageError::TooLarge { .. } => Reason::TooLarge,
        _ => Reason::NoRoom,
    })
}

/// A hit in RAM: pinned bytes, or a copy when they are few. Outlives the entry.
#[derive(Debug)]
pub struct RamHit {
    rest: Bytes,
    /// Nothing was read or sought yet.
    fresh: bool,
}

impl HitHandler for RamHit {
    fn remaining(&self) -> u64 {
        self.rest.len() as u64
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        let within = |at: u64| usize::try_from(at).ok().filter(|at| *at <= self.rest.len());
        let (Some(start), Some(end), true) = (within(range.start), within(range.end), self.fresh) else {
            return Err(CacheError::Refused(Reason::Internal));
        };
        if start > end {
            return Err(CacheError::Refused(Reason::Internal));
        }
        self.rest = self.rest.slice(start..end);
        self.fresh = false;
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        self.fresh = false;
        Ok(if self.rest.is_empty() { None } else { Some(std::mem::take(&mut self.rest)) })
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        if self.rest.len() > COPY_BYTES_MAX {
            return None;
        }
        self.fresh = false;
        out.extend_from_slice(&self.rest);
        Some(std::mem::take(&mut self.rest).len())
    }

    fn tier(&self) -> Tier {
        Tier::L0
    }
}

/// A body on its way into RAM, staged in the arena.
pub struct RamMiss<C, E> {
    tier: RamTier<C, E>,
    key: CacheKey,
    meta: CacheMeta,
    precondition: Precondition,
    stage: Stage,
    hasher: crc32fast::Hasher,
    length: u64,
    whole: bool,
}

impl<C: Clock, E: EvictSink> MissHandler for RamMiss<C, E> {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        &mut self.meta
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        self.length += chunk.len() as u64;
        let (length, announced) = (self.length, self.meta.length);
        if self.whole || announced.is_some_and(|announced| length > announced || (eof && length < announced)) {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        let stage = &mut self.stage;
        self.tier.0.evicting(|slab, on_evict| slab.append(stage, &chunk, on_evict)).map_err(refused)?;
        self.hasher.update(&chunk);
        self.whole = eof;
        Ok(())
    }

    async fn finish(self) -> Result<Stored, CacheError> {
        let Self { tier, key, mut meta, precondition, stage, hasher, length, whole } = self;
        if !whole {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        let checksum = hasher.finalize();
        if meta.checksum.is_some_and(|announced| announced != checksum) {
            return Err(CacheError::Refused(Reason::BodyMismatch));
        }
        let replaced = tier.live_version(&key);
        if !precondition.holds(replaced) {
            return Err(CacheError::Precondition { current: replaced });
        }
        let newest = tier.0.slab.borrow().peek(key.hash(), key.path()).map_or(Version::NONE, |p| Version(p.version));
        if meta.version == Version::NONE {
            meta.version = tier.0.versions.next(tier.0.clock.wall_ms(), newest);
        }
        meta.checksum = Some(checksum);
        let blob = encode(&meta);
        let outcome = tier.0.evicting(|slab, on_evict| slab.publish(stage, entry(&key, &meta, &blob), on_evict));
        match outcome {
            Outcome::Stored => Ok(Stored::kept(Tier::L0, meta.version, length, replaced)),
            Outcome::Older { .. } => Err(CacheError::Refused(Reason::Superseded)),
            Outcome::TooLarge => Err(CacheError::Refused(Reason::TooLarge)),
            Outcome::NoRoom => Err(CacheError::Refused(Reason::NoRoom)),
        }
    }
}
