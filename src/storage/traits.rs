//! What durable storage is made of: a [`BlobStore`] for bodies and an [`IndexStore`] for manifests.
//!
//! Owns the contracts and [`Manifest`]. Called only by `storage::durable`, on the durable executor's thread; futures
//! are not `Send`. Every store, doubles included, passes `tests/conformance`.
//!
//! The division of labour: a blob is written once under a name never used before and is unreachable until a
//! manifest names it; a manifest changes only by compare-and-swap on its version. So the index alone decides what an
//! object is, and whatever crash or race happens, a blob no manifest names is an orphan for the sweep.

use std::{fmt, ops::Range};

use bytes::Bytes;

use crate::{
    cache::{Cause, Version},
    reason::Reason,
};

/// Bodies up to this many bytes may live inline in the manifest.
pub const INLINE_BYTES_MAX: u64 = 64 << 10;

/// Live purge records an index holds at most; beyond that new ones are refused, never widened.
pub const PURGE_RECORDS_MAX: usize = 10_000;

/// The name of a blob: lower-case hex, `-` and `/`, unique per write attempt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(Box<str>);

impl BlobId {
    /// A fresh name from the writer's nonce and the shard-spread of the key's hash.
    #[must_use]
    pub fn fresh(key_hash: u64, nonce: u64) -> Self {
        Self(format!("{:02x}/{key_hash:016x}-{nonce:016x}", key_hash >> 56).into())
    }

    /// Reads a stored name; `None` when it is not one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        let well_formed = bytes.len() == 36
            && bytes.iter().enumerate().all(|(i, b)| match i {
                2 => *b == b'/',
                19 => *b == b'-',
                _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
            });
        well_formed.then(|| Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the body of a manifest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the manifest; at most [`INLINE_BYTES_MAX`].
    Inline(Bytes),
    /// In the blob store.
    Blob(BlobId),
    /// Nowhere: the key was deleted at this version. Kept until `expires_ms`, then swept.
    Tombstone,
}

/// One key's entry in the index: the truth about a durable object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// `namespace/key`.
    pub path: Bytes,
    /// Version of this write; strictly above the manifest it replaced.
    pub version: Version,
    /// Where the body is.
    pub body: Body,
    /// Body bytes.
    pub length: u64,
    /// CRC-32 of the whole body.
    pub checksum: u32,
    /// Wall time of the write, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Wall time of expiry (of removal, for a tombstone), milliseconds since the Unix epoch.
    pub expires_ms: Option<u64>,
    /// As [`crate::cache::CacheMeta::client_flags`].
    pub client_flags: u32,
    /// As [`crate::cache::CacheMeta::headers`].
    pub headers: Bytes,
    /// Purge tags, as given by the writer.
    pub tags: Vec<Box<str>>,
    /// Random per write attempt: tells one's own commit from another's of unknown outcome.
    pub nonce: u64,
}

impl Manifest {
    /// Whether this is a live object at `now_ms`.
    #[must_use]
    pub fn is_live(&self, now_ms: u64) -> bool {
        self.body != Body::Tombstone && self.expires_ms.is_none_or(|expires| expires > now_ms)
    }
}

/// Why a store failed, as the caller decides on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Bytes that should be there are not, or fail a checksum. Never served.
    #[error("stored bytes are damaged: {what}")]
    Corrupted {
        /// Which bytes, for people.
        what: String,
    },
    /// No room: the disk, the quota, the reserve.
    #[error("no room in the store: {reason}")]
    Full {
        /// [`Reason::DiskFull`] or [`Reason::QuotaFull`].
        reason: Reason,
    },
    /// Failed and certainly changed nothing.
    #[error("the store failed")]
    Failed(#[source] Cause),
    /// May or may not have taken effect.
    #[error("the outcome in the store is not known")]
    Unknown(#[source] Cause),
}

/// Result of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Done, and durable.
    Done,
    /// The entry is not at the expected version; nothing changed. What it is at (`None`: no entry).
    Conflict(Option<Version>),
}

/// Where a listing goes on. Opaque; only its own store reads it. Survives a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub Bytes);

/// What [`BlobStore::head`] and [`BlobStore::list`] tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name.
    pub id: BlobId,
    /// Body bytes.
    pub length: u64,
    /// Bytes it takes in the store, its framing included.
    pub stored_bytes: u64,
    /// When it was committed, milliseconds since the Unix epoch, by the store's clock.
    pub created_ms: u64,
}

/// Bodies, written once, read by range.
pub trait BlobStore {
    /// A body being read.
    type Read: BlobRead;
    /// A body being written.
    type Write: BlobWrite;

    /// Opens `range` of a blob (byte offsets, end exclusive; `None`: all of it); `Ok(None)`: no such blob.
    ///
    /// # Errors
    /// The store failed, the blob is damaged, or the range is not within it.
    async fn get(&self, id: &BlobId, range: Option<Range<u64>>) -> Result<Option<Self::Read>, StoreError>;

    /// What is known of a blob without reading it.
    ///
    /// # Errors
    /// The store failed.
    async fn head(&self, id: &BlobId) -> Result<Option<BlobInfo>, StoreError>;

    /// Begins a blob, of `length` bytes if that is known. Nothing can be read before [`BlobWrite::finish`].
    ///
    /// # Errors
    /// The store failed or is full.
    async fn put(&self, id: &BlobId, length: Option<u64>) -> Result<Self::Write, StoreError>;

    /// Removes a blob; `false`: there was none. Readers that hold it open may go on.
    ///
    /// # Errors
    /// The store failed.
    async fn delete(&self, id: &BlobId) -> Result<bool, StoreError>;

    /// Up to `limit` committed blobs after `cursor`, in the order of their names; the cursor is `None` after the
    /// last. Blobs that come or go meanwhile may be seen or not; others are seen exactly once.
    ///
    /// # Errors
    /// The store failed.
    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<(Vec<BlobInfo>, Option<Cursor>), StoreError>;
}

/// The streaming read of a blob or of a range of it.
pub trait BlobRead {
    /// Length of the whole blob in bytes, whatever the range.
    fn length(&self) -> u64;

    /// The next chunk, verified, never empty; `None` at the end of the range.
    ///
    /// # Errors
    /// Damaged bytes or a failed store; no more may be read.
    async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError>;
}

/// The streaming write of a blob. Dropping it unfinished aborts: nothing stays, at the latest after the sweep.
pub trait BlobWrite {
    /// Takes the next chunk; waits for the medium.
    ///
    /// # Errors
    /// Failed or full: the handle must be dropped.
    async fn chunk(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Makes the blob durable and readable under its name; gives its length.
    ///
    /// # Errors
    /// Nothing is readable, or ([`StoreError::Unknown`]) it may be: then it is an orphan for the sweep.
    async fn finish(self) -> Result<BlobInfo, StoreError>
    where
        Self: Sized;
}

/// What a purge record covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PurgeScope {
    /// One key, by `namespace/key`.
    Key(Bytes),
    /// Every object of a namespace that carries the tag.
    Tag {
        /// The namespace.
        namespace: Box<str>,
        /// The tag.
        tag: Box<str>,
    },
    /// Every key that starts with this `namespace/prefix`.
    Prefix(Bytes),
    /// A whole namespace.
    Namespace(Box<str>),
    /// Everything.
    All,
}

/// Every object in scope whose version is below this one is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeRecord {
    /// What it covers.
    pub scope: PurgeScope,
    /// Objects below this version are dead.
    pub version: Version,
}

/// One change of the index, for [`IndexStore::changes_since`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `namespace/key`.
    pub path: Bytes,
    /// The version it is at after the change.
    pub version: Version,
    /// Whether the change left a live object (and not a tombstone or nothing).
    pub live: bool,
}

/// Manifests, changed by compare-and-swap. What a method acknowledges is durable.
pub trait IndexStore {
    /// The entry of a key, tombstones and expired ones included. Sees every change acknowledged before the call.
    ///
    /// # Errors
    /// The store failed or the entry is damaged.
    async fn get(&self, path: &[u8]) -> Result<Option<Manifest>, StoreError>;

    /// Adds an entry where there is none (a tombstone is an entry).
    ///
    /// # Errors
    /// The store failed; [`StoreError::Unknown`] when the entry may be there.
    async fn put_new(&self, manifest: Manifest) -> Result<Swap, StoreError>;

    /// Replaces the entry whose version is `expected`. `manifest.version` must be above it.
    ///
    /// # Errors
    /// As [`IndexStore::put_new`].
    async fn cas_update(&self, expected: Version, manifest: Manifest) -> Result<Swap, StoreError>;

    /// Forgets the entry whose version is `expected`: the end of a tombstone or of an expired object.
    ///
    /// # Errors
    /// As [`IndexStore::put_new`].
    async fn delete(&self, path: &[u8], expected: Version) -> Result<Swap, StoreError>;

    /// Sets the expiry of the entry whose version is `expected`; its version stays.
    ///
    /// # Errors
    /// As [`IndexStore::put_new`].
    async fn touch_ttl(&self, path: &[u8], expected: Version, expires_ms: Option<u64>) -> Result<Swap, StoreError>;

    /// Up to `limit` entries after `cursor`, in the order of their paths, all kinds; `None` after the last. Entries
    /// that come or go meanwhile may be seen or not; others are seen exactly once.
    ///
    /// # Errors
    /// The store failed.
    async fn scan(&self, cursor: Option<Cursor>, limit: usize) -> Result<(Vec<Manifest>, Option<Cursor>), StoreError>;

    /// Whether there is an entry of any kind whose path begins with `prefix`, which is not empty. Does not read it.
    ///
    /// # Errors
    /// The store failed.
    async fn holds(&self, prefix: &[u8]) -> Result<bool, StoreError>;

    /// Up to `limit` changes after `cursor`, oldest first, and the cursor to go on from; `None` as the cursor starts
    /// at the oldest change still kept. A key changed twice may be told once, with its last version. An index may
    /// forget old changes; a cursor it no longer covers is answered `Ok(None)`, and the caller starts over.
    ///
    /// # Errors
    /// The store failed.
    async fn changes_since(
        &self,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Option<(Vec<Change>, Cursor)>, StoreError>;

    /// The highest version any entry or purge record ever had here, forgotten ones included; [`Version::NONE`] at
    /// first. A clock that was shown it makes only newer ones, whatever happened to the wall clock since.
    ///
    /// # Errors
    /// The store failed.
    async fn newest(&self) -> Result<Version, StoreError>;

    /// Adds a purge record; one of the same scope is raised to the higher version. `false`: full
    /// ([`PURGE_RECORDS_MAX`]), nothing changed.
    ///
    /// # Errors
    /// As [`IndexStore::put_new`].
    async fn put_purge(&self, record: PurgeRecord) -> Result<bool, StoreError>;

    /// Every live purge record.
    ///
    /// # Errors
    /// The store failed.
    async fn purges(&self) -> Result<Vec<PurgeRecord>, StoreError>;

    /// Forgets a purge record if its version is still `record.version`.
    ///
    /// # Errors
    /// As [`IndexStore::put_new`].
    async fn retire_purge(&self, record: &PurgeRecord) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_names_read_back_and_others_do_not() {
        let id = BlobId::fresh(0x0123_4567_89ab_cdef, 42);
        assert_eq!(BlobId::parse(id.as_str()), Some(id.clone()));
        for bad in ["", "01/x", "../../etc/passwd", &id.as_str().to_uppercase(), &format!("{}0", id.as_str())] {
            assert_eq!(BlobId::parse(bad), None, "{bad}");
        }
    }
}
