//! What a tier is: `Storage`, its hits and its writes.
//!
//! Owns the vocabulary of the data path ([`CacheKey`], [`Version`], [`CacheMeta`], [`Precondition`], [`Stored`],
//! [`PurgeReport`], [`CacheError`]) and the three contracts every tier keeps: [`Storage`], [`HitHandler`] and
//! [`MissHandler`]. The shape follows Pingora's cache traits. Ownership carries the protocol: `finish(self)`
//! commits, drop discards.
//!
//! Futures are not `Send`: a tier lives on one thread. An error is not a miss, and a miss is not an error.
//! Left to others: which tier is asked when (`storage::multi_tier`), what is admitted (`policy`), and what a key
//! looks like on the wire (`protocol`).

use std::{fmt, ops::Range};

use bytes::{Bytes, BytesMut};

use crate::reason::Reason;

/// Longest key, without its namespace, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// Longest namespace name, in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 64;

/// Hits up to this many bytes may be copied into the connection's send buffer by [`HitHandler::try_copy`].
pub const COPY_BYTES_MAX: usize = 16 << 10;

/// Why bytes are not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The namespace is not `[a-z0-9_-]{1,64}`.
    #[error("a namespace is 1 to 64 characters of a-z, 0-9, _ and -")]
    Namespace,
    /// The key is empty.
    #[error("the key is empty")]
    Empty,
    /// The key is longer than [`KEY_BYTES_MAX`].
    #[error("a key is at most {KEY_BYTES_MAX} bytes")]
    TooLong,
}

/// The name of an object: `namespace/key`, with its hash. Cheap to clone.
///
/// Two keys are equal when their bytes are; the hash is derived from them and from the node's hash seed, which is
/// fixed for the life of a data directory.
#[derive(Clone)]
pub struct CacheKey {
    path: Bytes,
    namespace_len: u8,
    hash: u64,
}

impl CacheKey {
    /// Reads `namespace/key` (no leading slash); the key is everything after the first slash, any bytes.
    ///
    /// # Errors
    /// The namespace is malformed, or the key is empty or too long.
    pub fn from_path(path: Bytes, seed: u64) -> Result<Self, KeyError> {
        let slash = path.iter().take(NAMESPACE_BYTES_MAX + 1).position(|b| *b == b'/').ok_or(KeyError::Namespace)?;
        if !is_namespace(&path[..slash]) {
            return Err(KeyError::Namespace);
        }
        match path.len() - slash - 1 {
            0 => return Err(KeyError::Empty),
            n if n > KEY_BYTES_MAX => return Err(KeyError::TooLong),
            _ => {}
        }
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&path, seed);
        Ok(Self { path, namespace_len: u8::try_from(slash).map_err(|_| KeyError::Namespace)?, hash })
    }

    /// Joins a namespace and a key.
    ///
    /// # Errors
    /// As [`CacheKey::from_path`].
    pub fn new(namespace: &str, key: &[u8], seed: u64) -> Result<Self, KeyError> {
        if namespace.contains('/') {
            return Err(KeyError::Namespace);
        }
        let mut path = BytesMut::with_capacity(namespace.len() + 1 + key.len());
        path.extend_from_slice(namespace.as_bytes());
        path.extend_from_slice(b"/");
        path.extend_from_slice(key);
        Self::from_path(path.freeze(), seed)
    }

    /// A key that a store kept with its hash, both from a `CacheKey` under the same seed. `None` when the path is not
    /// one.
    #[must_use]
    pub fn with_hash(path: Bytes, hash: u64) -> Option<Self> {
        let slash = path.iter().take(NAMESPACE_BYTES_MAX + 1).position(|b| *b == b'/')?;
        Some(Self { namespace_len: u8::try_from(slash).ok()?, path, hash })
    }

    /// `namespace/key`: the bytes stores keep.
    #[must_use]
    pub fn path(&self) -> &Bytes {
        &self.path
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        // Checked to be ASCII at construction.
        std::str::from_utf8(&self.path[..usize::from(self.namespace_len)]).unwrap_or_default()
    }

    /// The key within its namespace.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.path[usize::from(self.namespace_len) + 1..]
    }

    /// xxh3-64 of [`CacheKey::path`] under the node's seed. Stable across restarts: shards, flash index and ring
    /// depend on it.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The shard that owns this key, of `shards`. Multiply-shift on the high bits, so that tables below may use the
    /// low ones.
    #[must_use]
    pub fn shard(&self, shards: usize) -> usize {
        usize::try_from((u128::from(self.hash) * shards as u128) >> 64).unwrap_or_default()
    }
}

/// Whether `name` is `[a-z0-9_-]{1,64}`.
#[must_use]
pub fn is_namespace(name: &[u8]) -> bool {
    (1..=NAMESPACE_BYTES_MAX).contains(&name.len())
        && name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.path == other.path
    }
}

impl Eq for CacheKey {}

impl PartialOrd for CacheKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for CacheKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.path.cmp(&other.path)
    }
}

impl std::hash::Hash for CacheKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.path))
    }
}

/// A point in the history of one key: a hybrid logical clock reading, with the node's id as tie-break.
///
/// Bits, high to low: 42 of milliseconds since 2020-01-01, 12 of a counter within the millisecond, 10 of node id.
/// Versions order the writes of one key (highest wins) and place writes of any key before or after a purge record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// Below every real version: "nothing there".
    pub const NONE: Version = Version(0);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The four tiers, top down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tier {
    /// RAM slab of the key's shard.
    L0,
    /// Shared network cache.
    L1,
    /// Flash log of the key's shard.
    L2,
    /// Durable storage.
    L3,
}

impl Tier {
    /// All tiers, top down.
    pub const ALL: [Tier; 4] = [Tier::L0, Tier::L1, Tier::L2, Tier::L3];

    /// `l0` to `l3`: metric label and `Cache-Status` detail.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Tier::L0 => "l0",
            Tier::L1 => "l1",
            Tier::L2 => "l2",
            Tier::L3 => "l3",
        }
    }
}

/// What is known of an object besides its body.
///
/// On a write, `length` is what the sender announced and `version`, `checksum` are filled in by the commit. On a
/// hit every field is that of the committed object and `length` and `checksum` are `Some`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheMeta {
    /// The version this body was committed under; [`Version::NONE`] before the commit.
    pub version: Version,
    /// Whole body, in bytes; `None` while it is not known (a chunked write).
    pub length: Option<u64>,
    /// CRC-32 (IEEE, as crc32fast) of the whole body.
    pub checksum: Option<u32>,
    /// Wall time of the write, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Wall time from which the object is a miss, milliseconds since the Unix epoch; `None` never expires.
    pub expires_ms: Option<u64>,
    /// Opaque 32 bits of the client (memcached's flags); 0 over HTTP.
    pub client_flags: u32,
    /// What the door wants back on a hit, in the door's own encoding (`protocol::http` keeps headers here). Opaque
    /// to every tier. At most [`HEADERS_BYTES_MAX`]. Empty costs no allocation.
    pub headers: Bytes,
}

/// Most bytes of [`CacheMeta::headers`].
pub const HEADERS_BYTES_MAX: usize = 32 << 10;

impl CacheMeta {
    /// Whether the object is past its time to live at `now_ms`.
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires| expires <= now_ms)
    }
}

/// What must hold of the key at the commit for a write or purge to happen. Checked early where cheap, and again in
/// the key's commit turn, which decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// A live object exists (`If-Match: *`).
    Exists,
    /// No live object exists (`If-None-Match: *`).
    Absent,
    /// The live object has exactly this version (`If-Match`, compare-and-swap).
    Version(Version),
    /// Whatever is there is older than this: a commit that takes older copies away. Only between tiers.
    OlderThan(Version),
}

impl Precondition {
    /// Whether it holds when the live object's version is `current` (`None`: there is none).
    #[must_use]
    pub fn holds(self, current: Option<Version>) -> bool {
        match self {
            Precondition::None => true,
            Precondition::Exists => current.is_some(),
            Precondition::Absent => current.is_none(),
            Precondition::Version(wanted) => current == Some(wanted),
            Precondition::OlderThan(version) => current.is_none_or(|current| current < version),
        }
    }

    /// What a purge answers that this keeps from removing `current`.
    ///
    /// # Errors
    /// [`CacheError::Precondition`], but for [`Precondition::OlderThan`]: a copy that is not older may stay.
    pub fn spares(self, current: Option<Version>) -> Result<PurgeReport, CacheError> {
        match self {
            Precondition::OlderThan(_) => Ok(PurgeReport::default()),
            _ => Err(CacheError::Precondition { current }),
        }
    }
}

/// What became of an object in one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierOutcome {
    /// The tier holds it.
    Kept,
    /// The tier will be tried after the acknowledgement (L1: queued, best effort).
    Queued,
    /// The tier does not hold it.
    Dropped(Reason),
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The version committed.
    pub version: Version,
    /// The live version it replaced, if there was one. L2, and a cache-only namespace that leaves it to L2, goes by an
    /// index without times when the precondition is not worth a read of flash: one that expired unnoticed counts.
    pub replaced: Option<Version>,
    /// Body bytes committed.
    pub length: u64,
    /// Per tier, indexed by [`Tier`]; `None` for tiers this storage does not speak for.
    pub tiers: [Option<TierOutcome>; 4],
}

impl Stored {
    /// The report of a single tier that kept the object.
    #[must_use]
    pub fn kept(tier: Tier, version: Version, length: u64, replaced: Option<Version>) -> Self {
        let mut tiers = [None; 4];
        tiers[tier as usize] = Some(TierOutcome::Kept);
        Self { version, replaced, length, tiers }
    }

    /// Whether `tier` holds the object.
    #[must_use]
    pub fn kept_by(&self, tier: Tier) -> bool {
        self.tiers[tier as usize] == Some(TierOutcome::Kept)
    }
}

/// What a purge or delete removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PurgeReport {
    /// The newest live version that was removed; `None` when nothing live was there.
    pub removed: Option<Version>,
    /// The version of the tombstone left behind, if one was.
    pub tombstone: Option<Version>,
    /// Which tiers held a copy, indexed by [`Tier`].
    pub tiers: [bool; 4],
}

/// Why an operation failed. Each variant is a decision for the caller; the cause is kept as its source.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The precondition does not hold: 412.
    #[error("the precondition does not hold (current version: {})", .current.map_or_else(|| "none".into(), |v| v.to_string()))]
    Precondition {
        /// The live version found, if any.
        current: Option<Version>,
    },
    /// This request cannot be done, and would fail again: 413, 422 or 507 by reason.
    #[error("refused: {0}")]
    Refused(Reason),
    /// The tier cannot answer now; a retry may succeed: 503.
    #[error("unavailable: {reason}")]
    Unavailable {
        /// Why, for metrics and the answer.
        reason: Reason,
        /// What happened below.
        #[source]
        cause: Option<Cause>,
    },
    /// A commit may or may not have happened: 503 `outcome-unknown`, and the key is in doubt.
    #[error("the outcome of the commit is not known")]
    OutcomeUnknown {
        /// The version of the entry the commit replaces ([`Version::NONE`]: of none), if that is known. Once the
        /// store shows another version, the commit has happened or never will, and the doubt is over.
        base: Option<Version>,
        /// What happened below.
        #[source]
        cause: Option<Cause>,
    },
    /// Stored bytes are damaged: never served, counted, treated as a miss or a cut body.
    #[error("stored bytes are damaged: {what}")]
    Corrupted {
        /// Which bytes, for people.
        what: String,
    },
    /// The object went away while it was read (reclaimed, replaced): go on elsewhere or cut the body.
    #[error("the object went away while it was read")]
    Gone,
}

/// The cause of an error, kept across threads.
pub type Cause = std::sync::Arc<dyn std::error::Error + Send + Sync>;

impl CacheError {
    /// An [`CacheError::Unavailable`] with its cause.
    pub fn unavailable(reason: Reason, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { reason, cause: Some(std::sync::Arc::new(cause)) }
    }

    /// The reason this failure is counted under.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            CacheError::Precondition { .. } => Reason::Precondition,
            CacheError::Refused(reason) | CacheError::Unavailable { reason, .. } => *reason,
            CacheError::OutcomeUnknown { .. } => Reason::OutcomeUnknown,
            CacheError::Corrupted { .. } => Reason::Corrupted,
            CacheError::Gone => Reason::Reclaimed,
        }
    }
}

/// Whether a hit may be served as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Known to be the last acknowledged version as far as this tier can tell.
    Trusted,
    /// Survived an unclean stop: in a durable namespace its version must be compared with the index first.
    Suspect,
}

/// What a look-up found.
#[derive(Debug)]
pub enum Found<H> {
    /// A live object.
    Hit(CacheMeta, H),
    /// None, and why.
    Miss(Reason),
}

impl<H> Found<H> {
    /// The same with another kind of hit.
    pub fn map<T>(self, change: impl FnOnce(H) -> T) -> Found<T> {
        match self {
            Found::Hit(meta, hit) => Found::Hit(meta, change(hit)),
            Found::Miss(reason) => Found::Miss(reason),
        }
    }

    /// The hit, if it is one.
    pub fn hit(self) -> Option<(CacheMeta, H)> {
        match self {
            Found::Hit(meta, hit) => Some((meta, hit)),
            Found::Miss(_) => None,
        }
    }
}

/// One tier, or several behind one. Called by `MultiTier` (tiers) and by the doors (`MultiTier` itself), always on
/// the thread that owns it. Implementations wait only on their own medium.
pub trait Storage {
    /// A hit being read.
    type Hit: HitHandler;
    /// A write being staged.
    type Miss: MissHandler;

    /// Finds the live object of `key`. `Ok(None)` is a miss (its reason is counted by the tier); expired, purged
    /// and tombstoned objects are misses. Reads no more of the body than comes with the metadata. Dropping the
    /// future gives up the look-up.
    ///
    /// # Errors
    /// The tier could not tell: [`CacheError::Unavailable`]. Damaged bytes are a miss here, not an error.
    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, Self::Hit)>, CacheError>;

    /// [`Storage::lookup`] that says why there is no hit. The default knows no better than
    /// [`Reason::NotFound`]; a tier that does implements this, and `lookup` through it. An object that is there but
    /// whose bytes cannot be given just now is a miss here, for another tier to answer, and may be a hit of `lookup`,
    /// whose reads fail as unavailable: its version is known all the same.
    ///
    /// # Errors
    /// As [`Storage::lookup`].
    async fn find(&self, key: &CacheKey) -> Result<Found<Self::Hit>, CacheError> {
        Ok(match self.lookup(key).await? {
            Some((meta, hit)) => Found::Hit(meta, hit),
            None => Found::Miss(Reason::NotFound),
        })
    }

    /// Begins a write of `key`. Nothing is visible before [`MissHandler::finish`]. `meta.length` is what was
    /// announced; `precondition` is checked now where that is cheap and decides in `finish`. Dropping the future
    /// stages nothing.
    ///
    /// # Errors
    /// Refused by length, quota or precondition, or the tier is unavailable.
    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self::Miss, CacheError>;

    /// Removes `key` if the precondition holds. After `Ok` no read of this tier gives what was removed, whatever
    /// crash follows (INV-2, INV-3). Purging what is not there is a success that reports nothing removed. So is
    /// purging with [`Precondition::OlderThan`] where the copy is not older: what was asked for, that nothing older
    /// is left, holds, and a newer copy is no concern of the tier that asked. Once polled it may take effect even if
    /// the future is dropped.
    ///
    /// # Errors
    /// Another precondition fails, or the tier cannot make the removal stick.
    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError>;

    /// Replaces the metadata (not length or checksum) of the live object whose version is `meta.version`; `false`
    /// when that version is not here any more. The version does not change, so copies elsewhere stay valid.
    ///
    /// # Errors
    /// The tier is unavailable.
    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError>;
}

/// The streaming read of one hit. Dropping it at any point is sound and ends the read.
pub trait HitHandler {
    /// Bytes that reads will still give: the whole body at first, the range's after [`HitHandler::seek`].
    fn remaining(&self) -> u64;

    /// Restricts reading to `range` of the body (byte offsets, end exclusive, within the length). Before the first
    /// read only. Reads touch only what the range needs.
    ///
    /// # Errors
    /// [`CacheError::Refused`] when the range is not within the body or reading has begun.
    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError>;

    /// The next chunk, never empty; `None` when all was given. Every byte given was verified against a checksum or
    /// never left RAM.
    ///
    /// # Errors
    /// Damaged, gone or unavailable: what was given so far is a cut body, never a whole one (INV-1).
    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError>;

    /// Copies all that remains into `out` and returns its length, without allocation or await, when it is in RAM
    /// and at most [`COPY_BYTES_MAX`]; `None`, and nothing done, otherwise.
    fn try_copy(&mut self, _out: &mut BytesMut) -> Option<usize> {
        None
    }

    /// The tier the bytes come from.
    fn tier(&self) -> Tier;

    /// Whether the hit may be served without asking the index.
    fn trust(&self) -> Trust {
        Trust::Trusted
    }

    /// The index holds exactly this version: a suspect copy, if it is still there, may be trusted from now on. Called
    /// by `MultiTier`, never blocks; without it every read of a suspect asks the index.
    fn confirm(&mut self) {}
}

/// The streaming write of one object. Dropping it unfinished leaves nothing readable and returns its space.
pub trait MissHandler {
    /// The metadata `finish` will commit. `MultiTier` sets the version and the checksum here before it finishes a
    /// tier; with [`Version::NONE`] a tier that orders its own commits (L3) chooses the version.
    fn meta_mut(&mut self) -> &mut CacheMeta;

    /// Takes the next chunk of the body; `eof` with the last one, which may be empty. Waits for room in the tier's
    /// buffers. Dropping the future leaves the chunk half-written: only a drop of the handler may follow.
    ///
    /// # Errors
    /// The body outgrew the tier or its announced length, or the tier failed; the handler must then be dropped.
    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError>;

    /// Commits what was written. The body must have seen its `eof`. Once polled the commit may happen even if the
    /// future is dropped.
    ///
    /// # Errors
    /// Precondition, refusal, unavailability: nothing changed. [`CacheError::OutcomeUnknown`]: it may have.
    async fn finish(self) -> Result<Stored, CacheError>
    where
        Self: Sized;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_namespace_slash_anything() {
        let key = CacheKey::from_path(Bytes::from_static(b"img_1/a/b?c=d"), 7).expect("valid");
        assert_eq!((key.namespace(), key.key()), ("img_1", &b"a/b?c=d"[..]));
        assert_eq!(key, CacheKey::new("img_1", b"a/b?c=d", 7).expect("valid"));
        assert!(key.shard(3) < 3);
        for (bad, why) in [
            (&b"/x"[..], KeyError::Namespace),
            (b"UP/x", KeyError::Namespace),
            (b"nokey", KeyError::Namespace),
            (b"ns/", KeyError::Empty),
        ] {
            assert_eq!(CacheKey::from_path(Bytes::from_static(bad), 7), Err(why), "{bad:?}");
        }
        let longest = [&b"n/"[..], &[b'k'; KEY_BYTES_MAX]].concat();
        assert!(CacheKey::from_path(longest.clone().into(), 7).is_ok());
        let longer = [&longest[..], b"k"].concat();
        assert_eq!(CacheKey::from_path(longer.into(), 7), Err(KeyError::TooLong));
        let ns = [&[b'n'; 65][..], b"/k"].concat();
        assert_eq!(CacheKey::from_path(ns.into(), 7), Err(KeyError::Namespace));
    }

    #[test]
    fn preconditions_against_nothing_older_and_same() {
        let v = |n| Some(Version(n));
        for (precondition, none, five, six) in [
            (Precondition::None, true, true, true),
            (Precondition::Exists, false, true, true),
            (Precondition::Absent, true, false, false),
            (Precondition::Version(Version(5)), false, true, false),
            (Precondition::OlderThan(Version(6)), true, true, false),
        ] {
            let got = [precondition.holds(None), precondition.holds(v(5)), precondition.holds(v(6))];
            assert_eq!(got, [none, five, six], "{precondition:?}");
        }
    }
}
