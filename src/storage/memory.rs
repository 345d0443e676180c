//! Models and doubles: a tier, a blob store and an index that live in memory.
//!
//! [`MemoryStore`] is one type that plays L0, L1, L2 or L3 for tests of what stands above;
//! [`InMemoryBlobStore`] and [`InMemoryIndexStore`] are the plain models beside the real stores, with crashes and
//! injected [`fault`]s. All pass the conformance suite of the real ones. The running node never uses them.
//!
//! Invariants: deterministic (no time but the given clock, no randomness but the given seeds); staged bytes are
//! invisible and counted until `finish` or drop.

pub mod blob;
pub mod fault;
mod flight;
pub mod index;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Range,
    rc::Rc,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use engine::clock::Clock;

pub use self::{
    blob::InMemoryBlobStore,
    fault::{Fault, Faults, Gate, Injected},
    index::InMemoryIndexStore,
};
use crate::{
    cache::{
        COPY_BYTES_MAX, CacheError, CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, PurgeReport,
        Storage, Stored, Tier, Trust, Version,
    },
    reason::Reason,
    version::VersionClock,
};

/// The chunk size a [`MemoryHit`] reads by, unless set otherwise.
const CHUNK_BYTES_DEFAULT: usize = 64 << 10;

/// The operations of a [`MemoryStore`] that [`Faults`] can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// `lookup` and `find`.
    Lookup,
    /// `get_miss_handler`.
    Begin,
    /// `write_body`.
    Write,
    /// `finish`.
    Finish,
    /// `purge`.
    Purge,
    /// `update_meta`.
    Update,
    /// `read_body`.
    Read,
}

/// A tier in memory: the double of any tier. Clones share the contents.
///
/// Commits follow the rule of every tier: the highest version wins. A commit below what is there is
/// [`Reason::Superseded`], one of the same version replaces it. As L3 it orders its own commits (always above what is
/// there and above the version given), keeps a tombstone after a purge and refuses what does not fit; as any other
/// tier it forgets what was purged and evicts, oldest commit first, to make room.
#[derive(Clone)]
pub struct MemoryStore<C> {
    shared: Rc<Shared<C>>,
}

struct Shared<C> {
    tier: Tier,
    bytes_max: u64,
    clock: C,
    versions: VersionClock,
    faults: Faults<Op>,
    chunk_bytes: Cell<usize>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Bytes, Entry>,
    /// Keys by commit, oldest first.
    order: BTreeMap<u64, Bytes>,
    commits: u64,
    used: u64,
    staged: u64,
    evicted: u64,
}

struct Entry {
    meta: CacheMeta,
    /// `None`: a tombstone.
    body: Option<Bytes>,
    trust: Trust,
    commit: u64,
    bytes: u64,
}

impl Entry {
    fn is_live(&self, now_ms: u64) -> bool {
        self.body.is_some() && !self.meta.is_expired(now_ms)
    }
}

impl State {
    fn live(&self, path: &[u8], now_ms: u64) -> Option<&Entry> {
        self.entries.get(path).filter(|entry| entry.is_live(now_ms))
    }

    fn remove(&mut self, path: &[u8]) -> Option<Entry> {
        let entry = self.entries.remove(path)?;
        self.order.remove(&entry.commit);
        self.used -= entry.bytes;
        Some(entry)
    }

    fn insert(&mut self, path: Bytes, meta: CacheMeta, body: Option<Bytes>) {
        self.remove(&path);
        self.commits += 1;
        let bytes = footprint(&path, &meta, body.as_ref().map_or(0, |body| body.len() as u64));
        self.used += bytes;
        self.order.insert(self.commits, path.clone());
        self.entries.insert(path, Entry { meta, body, trust: Trust::Trusted, commit: self.commits, bytes });
    }

    /// Evicts until `bytes` more fit once the entry of `path` is replaced; `false`: they never will.
    fn make_room(&mut self, path: &[u8], bytes: u64, bytes_max: u64, evict: bool) -> bool {
        let freed = self.entries.get(path).map_or(0, |entry| entry.bytes);
        while self.used - freed + self.staged + bytes > bytes_max {
            let Some(oldest) = self.order.values().find(|key| *key != path).filter(|_| evict) else { return false };
            let oldest = oldest.clone();
            self.remove(&oldest);
            self.evicted += 1;
        }
        true
    }
}

/// Bytes an object counts for.
fn footprint(path: &[u8], meta: &CacheMeta, length: u64) -> u64 {
    (path.len() + meta.headers.len()) as u64 + length
}

impl<C: Clock> MemoryStore<C> {
    /// An empty tier that plays `tier` and holds at most `bytes_max` bytes of keys, headers and bodies, staged ones
    /// included. Commits without a version take one from `versions`.
    #[must_use]
    pub fn new(tier: Tier, bytes_max: u64, clock: C, versions: VersionClock) -> Self {
        let shared = Shared {
            tier,
            bytes_max,
            clock,
            versions,
            faults: Faults::default(),
            chunk_bytes: Cell::new(CHUNK_BYTES_DEFAULT),
            state: RefCell::default(),
        };
        Self { shared: Rc::new(shared) }
    }

    /// The plan of faults.
    #[must_use]
    pub fn faults(&self) -> &Faults<Op> {
        &self.shared.faults
    }

    /// Reads by chunks of `bytes` (at least 1) from the next hit on.
    pub fn set_chunk_bytes(&self, bytes: usize) {
        self.shared.chunk_bytes.set(bytes.max(1));
    }

    /// Marks everything held as surviving an unclean stop.
    pub fn suspect_all(&self) {
        self.shared.state.borrow_mut().entries.values_mut().for_each(|entry| entry.trust = Trust::Suspect);
    }

    /// Forgets everything, as RAM does when the process dies.
    pub fn clear(&self) {
        let mut state = self.shared.state.borrow_mut();
        state.entries.clear();
        state.order.clear();
        state.used = 0;
    }

    /// The version held of `key`, live or expired, without counting as a look-up.
    #[must_use]
    pub fn peek(&self, key: &CacheKey) -> Option<Version> {
        let state = self.shared.state.borrow();
        state.entries.get(key.path()).filter(|entry| entry.body.is_some()).map(|entry| entry.meta.version)
    }

    /// Bytes of committed objects.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.state.borrow().used
    }

    /// Bytes of writes under way.
    #[must_use]
    pub fn staged_bytes(&self) -> u64 {
        self.shared.state.borrow().staged
    }

    /// Objects held, tombstones not counted.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.shared.state.borrow().entries.values().filter(|entry| entry.body.is_some()).count()
    }

    /// Objects evicted so far.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.shared.state.borrow().evicted
    }
}

impl<C: Clock> Shared<C> {
    fn evicts(&self) -> bool {
        self.tier != Tier::L3
    }

    fn no_room(&self) -> CacheError {
        CacheError::Refused(match self.tier {
            Tier::L0 | Tier::L1 => Reason::NoRoom,
            Tier::L2 => Reason::DiskFull,
            Tier::L3 => Reason::QuotaFull,
        })
    }

    /// The version a commit of `path` would replace.
    fn base(&self, path: &[u8]) -> Option<Version> {
        Some(self.state.borrow().entries.get(path).map_or(Version::NONE, |entry| entry.meta.version))
    }

    fn with_base(&self, failed: CacheError, path: &[u8]) -> CacheError {
        match failed {
            CacheError::OutcomeUnknown { cause, .. } => CacheError::OutcomeUnknown { base: self.base(path), cause },
            failed => failed,
        }
    }

    /// What `op` suffers before its effect, and what is left for it to suffer after.
    async fn suffer(&self, op: Op) -> Result<After, CacheError> {
        match self.faults.strike(op) {
            None => Ok(After::Nothing),
            Some(Fault::WrongBytes) => Ok(After::WrongBytes),
            Some(Fault::UnknownAfter) => Ok(After::Unknown),
            Some(Fault::Failed(reason)) => Err(CacheError::unavailable(reason, Injected(reason))),
            Some(Fault::Refused(reason)) => Err(CacheError::Refused(reason)),
            Some(Fault::UnknownBefore) => Err(unknown(None)),
            Some(Fault::Corrupted) => Err(CacheError::Corrupted { what: "injected".into() }),
            Some(Fault::Hold(gate)) => {
                gate.pass().await;
                Ok(After::Nothing)
            }
        }
    }
}

/// What an operation suffers after its effect.
#[derive(PartialEq, Eq)]
enum After {
    Nothing,
    Unknown,
    WrongBytes,
}

fn unknown(base: Option<Version>) -> CacheError {
    CacheError::OutcomeUnknown { base, cause: Some(Arc::new(Injected(Reason::OutcomeUnknown))) }
}

impl<C: Clock> Storage for MemoryStore<C> {
    type Hit = MemoryHit<C>;
    type Miss = MemoryMiss<C>;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, Self::Hit)>, CacheError> {
        Ok(self.find(key).await?.hit())
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<Self::Hit>, CacheError> {
        match self.shared.suffer(Op::Lookup).await {
            Ok(_) => {}
            // Damage is a miss, and the damaged object is gone.
            Err(CacheError::Corrupted { .. }) => {
                self.shared.state.borrow_mut().remove(key.path());
                return Ok(Found::Miss(Reason::Corrupted));
            }
            Err(failed) => return Err(failed),
        }
        let now_ms = self.shared.clock.wall_ms();
        let mut state = self.shared.state.borrow_mut();
        let Some(entry) = state.entries.get(key.path()) else { return Ok(Found::Miss(Reason::NotFound)) };
        let Some(body) = &entry.body else { return Ok(Found::Miss(Reason::Deleted)) };
        if entry.meta.is_expired(now_ms) {
            state.remove(key.path());
            return Ok(Found::Miss(Reason::Expired));
        }
        let hit = MemoryHit {
            shared: self.shared.clone(),
            commit: entry.commit,
            length: body.len() as u64,
            rest: body.clone(),
            begun: false,
            trust: entry.trust,
        };
        Ok(Found::Hit(entry.meta.clone(), hit))
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self::Miss, CacheError> {
        self.shared.suffer(Op::Begin).await?;
        let now_ms = self.shared.clock.wall_ms();
        let state = self.shared.state.borrow();
        let current = state.live(key.path(), now_ms).map(|entry| entry.meta.version);
        if !precondition.holds(current) {
            return Err(CacheError::Precondition { current });
        }
        if footprint(key.path(), &meta, meta.length.unwrap_or(0)) > self.shared.bytes_max {
            return Err(CacheError::Refused(Reason::TooLarge));
        }
        Ok(MemoryMiss {
            shared: self.shared.clone(),
            path: key.path().clone(),
            meta,
            precondition,
            body: BytesMut::new(),
            whole: false,
        })
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        let after = self.shared.suffer(Op::Purge).await.map_err(|failed| self.shared.with_base(failed, key.path()))?;
        let shared = &self.shared;
        let base = shared.base(key.path());
        let now_ms = shared.clock.wall_ms();
        let mut state = shared.state.borrow_mut();
        let removed = state.live(key.path(), now_ms).map(|entry| entry.meta.version);
        if !precondition.holds(removed) {
            return precondition.spares(removed);
        }
        let mut report = PurgeReport { removed, ..PurgeReport::default() };
        if let Some(version) = removed {
            report.tiers[shared.tier as usize] = true;
            state.remove(key.path());
            if shared.tier == Tier::L3 {
                let tombstone = shared.versions.next(now_ms, version);
                let meta = CacheMeta { version: tombstone, created_ms: now_ms, ..CacheMeta::default() };
                state.insert(key.path().clone(), meta, None);
                report.tombstone = Some(tombstone);
            }
        }
        if after == After::Unknown { Err(unknown(base)) } else { Ok(report) }
    }

    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        let after = self.shared.suffer(Op::Update).await?;
        let now_ms = self.shared.clock.wall_ms();
        let mut state = self.shared.state.borrow_mut();
        let Some(old) = state.live(key.path(), now_ms).filter(|entry| entry.meta.version == meta.version) else {
            return Ok(false);
        };
        let (meta, body) =
            (CacheMeta { length: old.meta.length, checksum: old.meta.checksum, ..meta }, old.body.clone());
        state.insert(key.path().clone(), meta, body);
        // The version stays: neither outcome can be told from the other by it.
        if after == After::Unknown { Err(unknown(None)) } else { Ok(true) }
    }
}

/// A hit of a [`MemoryStore`]. Keeps its bytes whatever happens to the entry.
pub struct MemoryHit<C> {
    shared: Rc<Shared<C>>,
    /// Which commit was found: the entry may be another's by now.
    commit: u64,
    length: u64,
    rest: Bytes,
    begun: bool,
    trust: Trust,
}

impl<C: Clock> HitHandler for MemoryHit<C> {
    fn remaining(&self) -> u64 {
        self.rest.len() as u64
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        // Seeking again before the first read would be relative to what the last seek left: refused as well.
        if self.begun || self.rest.len() as u64 != self.length || range.start > range.end || range.end > self.length {
            return Err(CacheError::Refused(Reason::Internal));
        }
        let within = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        self.rest = self.rest.slice(within(range.start)..within(range.end));
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        self.begun = true;
        if self.rest.is_empty() {
            return Ok(None);
        }
        let after = self.shared.suffer(Op::Read).await?;
        let bytes = self.shared.chunk_bytes.get().min(self.rest.len());
        let chunk = self.rest.split_to(bytes);
        Ok(Some(if after == After::WrongBytes { fault::flip(&chunk) } else { chunk }))
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        if self.shared.tier != Tier::L0 || self.rest.len() > COPY_BYTES_MAX {
            return None;
        }
        self.begun = true;
        out.extend_from_slice(&self.rest);
        Some(std::mem::take(&mut self.rest).len())
    }

    fn tier(&self) -> Tier {
        self.shared.tier
    }

    fn trust(&self) -> Trust {
        self.trust
    }

    fn confirm(&mut self) {
        self.trust = Trust::Trusted;
        let state = &mut *self.shared.state.borrow_mut();
        if let Some(entry) = state.order.get(&self.commit).and_then(|path| state.entries.get_mut(path)) {
            entry.trust = Trust::Trusted;
        }
    }
}

/// A write of a [`MemoryStore`]. Its staged bytes count until it is gone.
pub struct MemoryMiss<C> {
    shared: Rc<Shared<C>>,
    path: Bytes,
    meta: CacheMeta,
    precondition: Precondition,
    body: BytesMut,
    whole: bool,
}

impl<C> Drop for MemoryMiss<C> {
    fn drop(&mut self) {
        self.shared.state.borrow_mut().staged -= self.body.len() as u64;
    }
}

impl<C: Clock> MissHandler for MemoryMiss<C> {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        &mut self.meta
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        self.shared.suffer(Op::Write).await?;
        let length = (self.body.len() + chunk.len()) as u64;
        if self.whole || self.meta.length.is_some_and(|announced| length > announced || (eof && length < announced)) {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        if footprint(&self.path, &self.meta, length) > self.shared.bytes_max {
            return Err(CacheError::Refused(Reason::TooLarge));
        }
        {
            let mut state = self.shared.state.borrow_mut();
            if !state.make_room(&[], chunk.len() as u64, self.shared.bytes_max, self.shared.evicts()) {
                return Err(self.shared.no_room());
            }
            state.staged += chunk.len() as u64;
        }
        self.body.extend_from_slice(&chunk);
        self.whole = eof;
        Ok(())
    }

    async fn finish(mut self) -> Result<Stored, CacheError> {
        let after = self.shared.suffer(Op::Finish).await.map_err(|failed| self.shared.with_base(failed, &self.path))?;
        if !self.whole {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        let checksum = crc32fast::hash(&self.body);
        if self.meta.checksum.is_some_and(|announced| announced != checksum) {
            return Err(CacheError::Refused(Reason::BodyMismatch));
        }
        let shared = self.shared.clone();
        let now_ms = shared.clock.wall_ms();
        let mut state = shared.state.borrow_mut();
        let replaced = state.live(&self.path, now_ms).map(|entry| entry.meta.version);
        if !self.precondition.holds(replaced) {
            return Err(CacheError::Precondition { current: replaced });
        }
        let there = state.entries.get(&self.path).map(|entry| (entry.meta.version, entry.body.is_some()));
        let (newest, newest_is_object) = there.unwrap_or((Version::NONE, true));
        let given = self.meta.version;
        let version = if shared.tier == Tier::L3 || given == Version::NONE {
            shared.versions.next(now_ms, newest.max(given))
        } else if given < newest || (given == newest && !newest_is_object) {
            return Err(CacheError::Refused(Reason::Superseded));
        } else {
            given
        };
        shared.versions.observe(version);
        let body = std::mem::take(&mut self.body).freeze();
        let length = body.len() as u64;
        let meta = CacheMeta { version, length: Some(length), checksum: Some(checksum), ..self.meta.clone() };
        // Staged bytes become committed ones: they are not counted twice while room is made.
        state.staged -= length;
        if !state.make_room(&self.path, footprint(&self.path, &meta, length), shared.bytes_max, shared.evicts()) {
            return Err(shared.no_room());
        }
        state.insert(self.path.clone(), meta, Some(body));
        drop(state);
        if after == After::Unknown {
            return Err(unknown(Some(newest)));
        }
        Ok(Stored::kept(shared.tier, version, length, replaced))
    }
}
