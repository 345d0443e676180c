//! L0: a thin `Storage` over `engine::slab`.
//!
//! Owns the encoding of [`CacheMeta`] into the slab's opaque blob (the table below) and what a version means there;
//! reading a hit, and what that costs, is [`hit`]'s.
//! Everything is synchronous inside: no future of this tier ever waits, which is what lets `MultiTier` publish to
//! L0 without a window. Bytes that leave to make room are shown to an [`EvictSink`] first. What each namespace has here
//! is counted as it comes and goes ([`held`]).
//!
//! The blob, little endian: `checksum: u32`, `created_ms: u64`, `client_flags: u32`, then the headers.

pub mod held;
mod hit;

use std::{cell::RefCell, io, rc::Rc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use engine::{
    clock::Clock,
    slab::{self, Config, Entry, Evicted, Lookup, Outcome, Slab, Stage, StageError, Stats, Update},
};

use self::hit::HeadersBuffer;
pub use self::hit::RamHit;
use crate::{
    cache::{
        CacheError, CacheKey, CacheMeta, Found, MissHandler, Precondition, PurgeReport, Storage, Stored, Tier, Version,
    },
    namespace::Held,
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

impl Leaving<'_> {
    /// A copy that outlives the eviction, in one allocation. `None` when the path is not a key.
    #[must_use]
    pub fn copied(&self) -> Option<(CacheKey, CacheMeta, Bytes)> {
        let mut bytes = BytesMut::with_capacity(self.path.len() + self.headers.len() + self.body.len());
        bytes.put_slice(self.path);
        bytes.put_slice(self.headers);
        bytes.put_slice(self.body);
        let mut body = bytes.freeze();
        let path = body.split_to(self.path.len());
        let headers = body.split_to(self.headers.len());
        let meta = CacheMeta {
            version: self.version,
            length: Some(body.len() as u64),
            checksum: Some(self.checksum),
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            client_flags: self.client_flags,
            headers: if headers.is_empty() { Bytes::new() } else { headers },
        };
        Some((CacheKey::with_hash(path, self.hash)?, meta, body))
    }
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
    slab: Rc<RefCell<Slab>>,
    held: RefCell<held::Table>,
    headers: HeadersBuffer,
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
        let slab = Rc::new(RefCell::new(Slab::new(config)?));
        let (held, headers) = (RefCell::default(), HeadersBuffer::default());
        Ok(Self(Rc::new(Shared { slab, held, headers, clock, versions, sink })))
    }

    /// Gives back the room of some expired objects. A turn looks at [`SWEEP_PLACES_MAX`] places of the index and goes
    /// on from there the next time; returns how many objects it freed.
    pub fn sweep(&self) -> u64 {
        let now_ms = self.0.clock.wall_ms();
        self.0.evicting(|slab, on_evict| slab.sweep(now_ms, SWEEP_PLACES_MAX, on_evict))
    }

    /// What each namespace has here, in no order. At most [`held::ROWS_MAX`] rows and one for the rest.
    #[must_use]
    pub fn held(&self) -> Vec<(Box<str>, Held)> {
        self.0.held.borrow().snapshot()
    }

    /// Figures of the slab.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.slab.borrow_mut().stats()
    }

    /// An object, and its bytes if they can be given.
    fn look(&self, key: &CacheKey) -> Result<(CacheMeta, RamHit), Reason> {
        let now_ms = self.0.clock.wall_ms();
        match self.0.slab.borrow_mut().get(key.hash(), key.path(), now_ms) {
            Lookup::Hit(hit) => {
                let (fixed, headers) = decode(&hit);
                let meta = CacheMeta { headers: self.0.headers.copy(headers), ..fixed };
                let checksum = meta.checksum.unwrap_or_default();
                Ok((meta, RamHit::new(&self.0.slab, hit, checksum)))
            }
            Lookup::Expired(gone) => {
                self.0.held.borrow_mut().remove(key.path(), gone.flags, gone.body_bytes);
                Err(Reason::Expired)
            }
            Lookup::Miss => Err(Reason::NotFound),
        }
    }

    fn live_version(&self, key: &CacheKey) -> Option<Version> {
        let now_ms = self.0.clock.wall_ms();
        let peek = self.0.slab.borrow().peek(key.hash(), key.path())?;
        (peek.expires_ms == 0 || peek.expires_ms > now_ms).then_some(Version(peek.version))
    }
}

impl<C, E: EvictSink> Shared<C, E> {
    /// Runs `f` on the slab, with what leaves counted and, if it makes room, shown to the sink.
    fn evicting<T>(&self, f: impl FnOnce(&mut Slab, slab::OnEvict<'_>) -> T) -> T {
        f(&mut self.slab.borrow_mut(), &mut |evicted: Evicted<'_>| {
            self.held.borrow_mut().remove(evicted.key, evicted.flags, evicted.body.len() as u64);
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

fn entry<'a>(key: &'a CacheKey, meta: &CacheMeta, blob: &'a [u8], flags: u8) -> Entry<'a> {
    Entry {
        key: key.path(),
        hash: key.hash(),
        version: meta.version.0,
        meta: blob,
        expires_ms: expires_to(meta.expires_ms),
        flags,
    }
}

/// What an entry says of itself, and its headers apart, which have yet to be copied.
fn decode<'a>(hit: &'a slab::Hit<'_>) -> (CacheMeta, &'a [u8]) {
    let mut blob = hit.meta();
    let (checksum, created_ms, client_flags) = (blob.get_u32_le(), blob.get_u64_le(), blob.get_u32_le());
    let meta = CacheMeta {
        version: Version(hit.version()),
        length: Some(hit.body_bytes()),
        checksum: Some(checksum),
        created_ms,
        expires_ms: expires_from(hit.expires_ms()),
        client_flags,
        headers: Bytes::new(),
    };
    (meta, blob)
}

impl<C: Clock, E: EvictSink> Storage for RamTier<C, E> {
    type Hit = RamHit;
    type Miss = RamMiss<C, E>;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, RamHit)>, CacheError> {
        // Its metadata are true whether its bytes can be given or not.
        Ok(self.look(key).ok())
    }

    /// An object whose bytes cannot be given, because readers hold as many as they may, is a miss
    /// ([`Reason::PinnedMax`]): a lower tier reads it in pieces.
    async fn find(&self, key: &CacheKey) -> Result<Found<RamHit>, CacheError> {
        Ok(match self.look(key) {
            Ok((_, hit)) if hit.is_withheld() => Found::Miss(Reason::PinnedMax),
            Ok((meta, hit)) => Found::Hit(meta, hit),
            Err(reason) => Found::Miss(reason),
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
        let stage = self.0.evicting(|slab, on_evict| slab.stage(meta.length, u64::MAX, on_evict)).map_err(refused)?;
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
        let there = slab.peek(key.hash(), key.path());
        let removed = if let Precondition::OlderThan(version) = precondition {
            // Also where the copy is expired: the slab knows the version, whatever `current` is.
            slab.remove_older(key.hash(), key.path(), version.0.saturating_sub(1))
        } else if precondition.holds(current) {
            slab.remove(key.hash(), key.path())
        } else {
            return precondition.spares(current);
        };
        if let (Some(_), Some(gone)) = (removed, there) {
            self.0.held.borrow_mut().remove(key.path(), gone.flags, gone.body_bytes);
        }
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
        // The checksum is the body's, which stays; so does where it is counted.
        let (checksum, flags) = {
            let mut slab = self.0.slab.borrow_mut();
            match slab.get(key.hash(), key.path(), self.0.clock.wall_ms()) {
                Lookup::Hit(hit) => (decode(&hit).0.checksum, hit.flags()),
                Lookup::Expired(gone) => {
                    self.0.held.borrow_mut().remove(key.path(), gone.flags, gone.body_bytes);
                    return Ok(false);
                }
                Lookup::Miss => return Ok(false),
            }
        };
        let blob = encode(&CacheMeta { checksum, ..meta.clone() });
        let update = self.0.evicting(|slab, on_evict| slab.update_meta(entry(key, &meta, &blob, flags), on_evict));
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
        let flags = tier.0.held.borrow().flags(key.path());
        let entry = entry(&key, &meta, &blob, flags);
        let outcome = tier.0.evicting(|slab, on_evict| slab.publish(stage, entry, on_evict));
        match outcome {
            Outcome::Stored => {
                tier.0.held.borrow_mut().add(key.path(), flags, length);
                Ok(Stored::kept(Tier::L0, meta.version, length, replaced))
            }
            Outcome::Older { .. } => Err(CacheError::Refused(Reason::Superseded)),
            Outcome::TooLarge => Err(CacheError::Refused(Reason::TooLarge)),
            Outcome::NoRoom => Err(CacheError::Refused(Reason::NoRoom)),
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::rt::sim::{Sim, SimClock};

    use super::*;
    use crate::cache::{COPY_BYTES_MAX, HitHandler};

    #[derive(Debug, PartialEq)]
    struct Left {
        path: Vec<u8>,
        version: Version,
        client_flags: u32,
        headers: Vec<u8>,
    }

    #[derive(Clone, Default)]
    struct Seen(Rc<RefCell<Vec<Left>>>);

    impl EvictSink for Seen {
        fn leaving(&self, object: Leaving<'_>) {
            assert_eq!(crc32fast::hash(object.body), object.checksum);
            self.0.borrow_mut().push(Left {
                path: object.path.into(),
                version: object.version,
                client_flags: object.client_flags,
                headers: object.headers.into(),
            });
        }
    }

    fn tier(sim: &Sim, sink: Seen) -> RamTier<SimClock, Seen> {
        RamTier::new(Config::new(1 << 20), sim.clock().clone(), VersionClock::new(1), sink).expect("memory")
    }

    fn key(name: &str) -> CacheKey {
        CacheKey::new("n", name.as_bytes(), 0).expect("valid")
    }

    async fn put(tier: &RamTier<SimClock, Seen>, name: &str, body: &[u8], meta: CacheMeta) -> Stored {
        let mut miss = tier.get_miss_handler(&key(name), meta, Precondition::None).await.expect("admitted");
        miss.write_body(Bytes::copy_from_slice(body), true).await.expect("room");
        miss.finish().await.expect("stored")
    }

    #[test]
    fn bytes_that_cannot_be_given_are_a_miss_of_a_known_version() {
        let sim = Sim::new(1);
        let config = Config { pinned_bytes_max: 0, copied_bytes_max: 0, ..Config::new(1 << 20) };
        let tier = RamTier::new(config, sim.clock().clone(), VersionClock::new(1), ()).expect("memory");
        sim.block_on(async {
            for (name, length) in [("small", COPY_BYTES_MAX), ("large", COPY_BYTES_MAX + 1)] {
                let mut miss =
                    tier.get_miss_handler(&key(name), CacheMeta::default(), Precondition::None).await.expect("room");
                miss.write_body(vec![7; length].into(), true).await.expect("room");
                let stored = miss.finish().await.expect("stored");
                let (meta, mut hit) = tier.lookup(&key(name)).await.expect("RAM").expect("it is there");
                assert_eq!((meta.version, hit.remaining()), (stored.version, length as u64));
                let given = hit.read_body().await;
                assert_eq!(given.is_ok(), name == "small", "{given:?}");
            }
            assert!(matches!(tier.find(&key("small")).await, Ok(Found::Hit(..))));
            assert!(matches!(tier.find(&key("large")).await, Ok(Found::Miss(Reason::PinnedMax))));
        });
        let stats = tier.stats();
        assert_eq!((stats.pins, stats.pins_copied, stats.pins_refused), (0, 0, 2), "small ones need no pin");
    }

    #[test]
    fn what_leaves_is_shown_with_everything_a_lower_tier_needs() {
        let sim = Sim::new(1);
        let seen = Seen::default();
        let tier = tier(&sim, seen.clone());
        sim.block_on(async move {
            let meta = CacheMeta { client_flags: 7, headers: Bytes::from_static(b"h: v"), ..CacheMeta::default() };
            let stored = put(&tier, "first", &[1; 5000], meta.clone()).await;
            let (found, mut hit) = tier.lookup(&key("first")).await.expect("answers").expect("there");
            assert_eq!((found.version, found.client_flags, &found.headers[..]), (stored.version, 7, &b"h: v"[..]));
            assert_eq!(hit.read_body().await.expect("in RAM").as_deref(), Some(&[1; 5000][..]));
            drop(hit);
            // A replaced version is not shown, an evicted one is.
            put(&tier, "first", &[2; 5000], CacheMeta::default()).await;
            let once = put(&tier, "once", &[4; 5000], meta).await;
            for i in 0..400 {
                put(&tier, &format!("fill {i}"), &[3; 5000], CacheMeta::default()).await;
            }
            let seen = seen.0.borrow();
            let objects = tier.stats().objects;
            assert!(objects < 400, "some left");
            assert_eq!(tier.held(), [("n".into(), Held { objects, bytes: objects * 5000 })], "INV-HELD-1");
            assert!(seen.iter().all(|left| left.version != stored.version));
            let left: Vec<_> = seen.iter().filter(|left| left.path == b"n/once").collect();
            let whole =
                Left { path: b"n/once".into(), version: once.version, client_flags: 7, headers: b"h: v".into() };
            assert_eq!(left, [&whole]);
        });
    }

    #[test]
    fn an_expired_object_is_swept_without_being_looked_up() {
        let sim = Sim::new(1);
        let tier = tier(&sim, Seen::default());
        let now_ms = sim.clock().wall_ms();
        let swept = tier.clone();
        sim.block_on(async move {
            let meta = CacheMeta { expires_ms: Some(now_ms + 10), ..CacheMeta::default() };
            put(&tier, "short", b"x", meta).await;
        });
        sim.clock().advance(std::time::Duration::from_millis(11));
        let freed: u64 = (0..1000).map(|_| swept.sweep()).sum();
        assert_eq!((freed, swept.stats().objects, swept.held()), (1, 0, vec![]));
    }

    #[test]
    fn what_a_namespace_holds_is_counted_however_it_comes_and_goes() {
        let sim = Sim::new(1);
        let tier = tier(&sim, Seen::default());
        let now_ms = sim.clock().wall_ms();
        let (clock, short) = (sim.clock().clone(), CacheMeta { expires_ms: Some(now_ms + 10), ..CacheMeta::default() });
        sim.block_on(async move {
            let held = |objects, bytes| vec![("n".into(), Held { objects, bytes })];
            put(&tier, "a", &[1; 100], CacheMeta::default()).await;
            put(&tier, "b", &[1; 5000], short.clone()).await;
            put(&tier, "c", &[1; 50], short).await;
            assert_eq!(tier.held(), held(3, 5150));
            let version = put(&tier, "a", &[2; 70], CacheMeta::default()).await.version;
            assert_eq!(tier.held(), held(3, 5120), "replaced");
            let meta = CacheMeta { version, headers: Bytes::from_static(b"h: v"), ..CacheMeta::default() };
            assert!(tier.update_meta(&key("a"), meta).await.expect("room"));
            assert_eq!(tier.held(), held(3, 5120), "the same body");
            clock.advance(std::time::Duration::from_millis(11));
            assert!(tier.lookup(&key("b")).await.expect("answers").is_none());
            assert_eq!(tier.held(), held(2, 120), "expired, and met by a look-up");
            tier.purge(&key("c"), Precondition::None).await.expect("answers");
            assert_eq!(tier.held(), held(1, 70), "expired, and met by a purge");
            tier.purge(&key("a"), Precondition::OlderThan(version)).await.expect("answers");
            assert_eq!(tier.held(), held(1, 70), "not older");
            tier.purge(&key("a"), Precondition::None).await.expect("answers");
            assert_eq!((tier.held(), tier.stats().objects), (vec![], 0));
        });
    }
}
