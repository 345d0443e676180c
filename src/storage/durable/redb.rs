//! The index in one redb file.
//!
//! ```text
//! meta        text -> bytes       "format": u32, "counters": see Counters
//! manifests   path -> bytes       manifest_format
//! changes     sequence -> bytes   version (8), live (1), path; the last CHANGES_MAX
//! purges      scope -> version    scope: kind (1), text
//! ```
//!
//! Writes go to one thread, which puts everything that waits into one transaction and answers after its commit: a
//! commit costs an fsync whatever it holds, so 64 writers share a few. Reads run on a [`Pool`] of their own against
//! the last committed snapshot: they may touch the disk, and an executor thread must not.
//!
//! Invariants: an answer means durable; a commit that failed leaves every waiter in doubt
//! ([`StoreError::Unknown`]) and the store poisoned for writes, reads go on; a damaged manifest is never read as
//! another. redb itself is believed to keep its pages whole (one fsync and checksums per commit); what it panics
//! over is caught and reported.

mod open;
mod writer;

use std::{
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use engine::mailbox::{Sender, oneshot};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use self::{
    open::Counters,
    writer::{Job, Mutation},
};
pub use self::{
    open::OpenError,
    writer::{BATCH_BYTES_MAX, BATCH_MAX, QUEUE_MAX},
};
use super::{manifest_format, pool::Pool, room::panicked};
use crate::{
    cache::{Cause, Version},
    storage::traits::{Change, Cursor, IndexStore, Manifest, PurgeRecord, PurgeScope, StoreError, Swap},
};

/// The format of the file.
pub const FORMAT: u32 = 1;

/// Changes kept for [`IndexStore::changes_since`]; older ones are forgotten.
pub const CHANGES_MAX: u64 = 100_000;

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const MANIFESTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("manifests");
const CHANGES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("changes");
const PURGES: TableDefinition<'static, &[u8], u64> = TableDefinition::new("purges");

/// An index in a redb file. Clones are the same index; the last one to go ends the writer and closes the file.
#[derive(Clone)]
pub struct RedbIndexStore {
    db: Arc<Database>,
    pool: Pool,
    shared: Arc<Shared>,
    writer: Arc<Writer>,
}

/// What the writer's thread and the handles share.
#[derive(Default)]
struct Shared {
    stats: Mutex<IndexStats>,
    poisoned: Mutex<Option<Cause>>,
    damaged: AtomicU64,
}

struct Writer {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // What is queued is committed first; the writer catches its own panics.
            drop(thread.join());
        }
    }
}

/// Counters of a [`RedbIndexStore`] since it was opened, and gauges of its contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Transactions committed: one fsync each.
    pub commits: u64,
    /// Mutations in them.
    pub mutations: u64,
    /// Transactions by how many mutations they held: 1, up to 4, 16, 64, and more.
    pub commit_sizes: [u64; 5],
    /// Manifests found damaged.
    pub damaged: u64,
    /// Whether writes are off since a commit failed.
    pub poisoned: bool,
    /// Gauge: entries that are objects, live or expired.
    pub objects: u64,
    /// Gauge: entries that are tombstones.
    pub tombstones: u64,
    /// Gauge: bytes of keys and values.
    pub bytes: u64,
    /// Gauge: of those, inline bodies.
    pub bytes_inline: u64,
}

impl RedbIndexStore {
    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> IndexStats {
        let stats = *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let poisoned = self.shared.poisoned.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        IndexStats { damaged: self.shared.damaged.load(Ordering::Relaxed), poisoned, ..stats }
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = Reader { db: self.db.clone(), shared: self.shared.clone() };
        self.pool.run(move || job(&reader)).await.unwrap_or_else(|| Err(panicked()))
    }

    async fn write(&self, mutation: Mutation) -> Result<Swap, StoreError> {
        let gone = || StoreError::Failed(Arc::new(WriterGone));
        let jobs = self.writer.jobs.as_ref().ok_or_else(gone)?;
        let (reply, answer) = oneshot();
        jobs.send(Job { mutation, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|| Err(StoreError::Unknown(Arc::new(WriterGone))))
    }
}

/// The writer's thread ended: the process is about to.
#[derive(Debug, thiserror::Error)]
#[error("the index writer is gone")]
struct WriterGone;

/// A read's view from a pool thread.
struct Reader {
    db: Arc<Database>,
    shared: Arc<Shared>,
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::Corrupted { what: format!("the index file: {what}") },
        redb::Error::Io(error) => super::room::failed(error),
        other => StoreError::Failed(Arc::new(other)),
    }
}

/// Reads a stored manifest; counts it when it is damaged.
fn decode(shared: &Shared, path: &[u8], value: &[u8]) -> Result<Manifest, StoreError> {
    manifest_format::decode(Bytes::copy_from_slice(path), Bytes::copy_from_slice(value)).map_err(|what| {
        shared.damaged.fetch_add(1, Ordering::Relaxed);
        StoreError::Corrupted { what }
    })
}

/// A position of [`IndexStore::scan`]: whether damaged entries were passed over, then the last path.
const PASSED_NONE: u8 = 0;
const PASSED_DAMAGE: u8 = 1;
/// Every entry was seen, and damage among them: all that is left to say.
const ONLY_DAMAGE_LEFT: u8 = 2;

impl Reader {
    fn get(&self, path: &[u8]) -> Result<Option<Manifest>, StoreError> {
        let read = self.db.begin_read().map_err(failed)?;
        let table = read.open_table(MANIFESTS).map_err(failed)?;
        let Some(value) = table.get(path).map_err(failed)? else { return Ok(None) };
        decode(&self.shared, path, value.value()).map(Some)
    }

    /// Damaged entries are passed over, and told once at the end: the sweep goes on, and knows that it must not
    /// take what they may have named for orphans.
    fn scan(&self, cursor: &[u8], limit: usize) -> Result<(Vec<Manifest>, Option<Cursor>), StoreError> {
        let (mut passed, after) = cursor.split_first().map_or((PASSED_NONE, &[][..]), |(flag, path)| (*flag, path));
        if passed == ONLY_DAMAGE_LEFT {
            return Err(StoreError::Corrupted { what: "some manifests of the index".into() });
        }
        let read = self.db.begin_read().map_err(failed)?;
        let table = read.open_table(MANIFESTS).map_err(failed)?;
        let mut page: Vec<Manifest> = Vec::new();
        let mut last = after.to_vec();
        let start = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        for entry in table.range::<&[u8]>((start, Bound::Unbounded)).map_err(failed)? {
            let (path, value) = entry.map_err(failed)?;
            if page.len() == limit {
                return Ok((page, Some(scan_cursor(passed, &last))));
            }
            last = path.value().to_vec();
            match decode(&self.shared, path.value(), value.value()) {
                Ok(manifest) => page.push(manifest),
                Err(damaged) => {
                    tracing::error!(error = %damaged, "a manifest is passed over");
                    passed = PASSED_DAMAGE;
                }
            }
        }
        Ok((page, (passed == PASSED_DAMAGE).then(|| scan_cursor(ONLY_DAMAGE_LEFT, &[]))))
    }

    fn changes(&self, cursor: Option<&[u8]>, limit: usize) -> Result<Option<(Vec<Change>, Cursor)>, StoreError> {
        let read = self.db.begin_read().map_err(failed)?;
        let changed = Counters::load(&read.open_table(META).map_err(failed)?)?.changed;
        let table = read.open_table(CHANGES).map_err(failed)?;
        let oldest = table.first().map_err(failed)?.map_or(changed + 1, |(sequence, _)| sequence.value());
        let after = match cursor {
            None => oldest - 1,
            Some(bytes) => match bytes.try_into().map(u64::from_be_bytes) {
                Ok(after) if (oldest - 1..=changed).contains(&after) => after,
                _ => return Ok(None),
            },
        };
        let (mut page, mut last) = (Vec::new(), after);
        for entry in table.range(after + 1..).map_err(failed)?.take(limit) {
            let (sequence, value) = entry.map_err(failed)?;
            last = sequence.value();
            page.push(
                read_change(value.value())
                    .ok_or_else(|| StoreError::Corrupted { what: format!("change {last} of the index") })?,
            );
        }
        Ok(Some((page, Cursor(Bytes::copy_from_slice(&last.to_be_bytes())))))
    }

    fn purges(&self) -> Result<Vec<PurgeRecord>, StoreError> {
        let read = self.db.begin_read().map_err(failed)?;
        let table = read.open_table(PURGES).map_err(failed)?;
        let mut records = Vec::new();
        for entry in table.iter().map_err(failed)? {
            let (scope, version) = entry.map_err(failed)?;
            let scope = read_scope(scope.value())
                .ok_or_else(|| StoreError::Corrupted { what: "a purge record of the index".into() })?;
            records.push(PurgeRecord { scope, version: Version(version.value()) });
        }
        Ok(records)
    }
}

fn scan_cursor(passed: u8, path: &[u8]) -> Cursor {
    Cursor([&[passed], path].concat().into())
}

fn write_change(version: Version, live: bool, path: &[u8]) -> Vec<u8> {
    [&version.0.to_le_bytes()[..], &[u8::from(live)], path].concat()
}

fn read_change(bytes: &[u8]) -> Option<Change> {
    let (version, rest) = bytes.split_first_chunk::<8>()?;
    let (live, path) = rest.split_first()?;
    let version = Version(u64::from_le_bytes(*version));
    Some(Change { path: Bytes::copy_from_slice(path), version, live: *live != 0 })
}

fn write_scope(scope: &PurgeScope) -> Vec<u8> {
    match scope {
        PurgeScope::All => vec![0],
        PurgeScope::Namespace(namespace) => [&[1], namespace.as_bytes()].concat(),
        PurgeScope::Key(path) => [&[2], &path[..]].concat(),
        PurgeScope::Prefix(prefix) => [&[3], &prefix[..]].concat(),
        // A namespace has no slash, a tag may.
        PurgeScope::Tag { namespace, tag } => [&[4], namespace.as_bytes(), b"/", tag.as_bytes()].concat(),
    }
}

fn read_scope(bytes: &[u8]) -> Option<PurgeScope> {
    let (kind, rest) = bytes.split_first()?;
    Some(match kind {
        0 => PurgeScope::All,
        1 => PurgeScope::Namespace(std::str::from_utf8(rest).ok()?.into()),
        2 => PurgeScope::Key(Bytes::copy_from_slice(rest)),
        3 => PurgeScope::Prefix(Bytes::copy_from_slice(rest)),
        4 => {
            let (namespace, tag) = std::str::from_utf8(rest).ok()?.split_once('/')?;
            PurgeScope::Tag { namespace: namespace.into(), tag: tag.into() }
        }
        _ => return None,
    })
}

impl IndexStore for RedbIndexStore {
    async fn get(&self, path: &[u8]) -> Result<Option<Manifest>, StoreError> {
        let path = path.to_vec();
        self.read(move |reader| reader.get(&path)).await
    }

    async fn put_new(&self, manifest: Manifest) -> Result<Swap, StoreError> {
        self.write(Mutation::Put { expected: None, manifest }).await
    }

    async fn cas_update(&self, expected: Version, manifest: Manifest) -> Result<Swap, StoreError> {
        assert!(manifest.version > expected, "a manifest replaces only an older one");
        self.write(Mutation::Put { expected: Some(expected), manifest }).await
    }

    async fn delete(&self, path: &[u8], expected: Version) -> Result<Swap, StoreError> {
        self.write(Mutation::Delete { path: path.to_vec(), expected }).await
    }

    async fn touch_ttl(&self, path: &[u8], expected: Version, expires_ms: Option<u64>) -> Result<Swap, StoreError> {
        self.write(Mutation::Touch { path: path.to_vec(), expected, expires_ms }).await
    }

    async fn scan(&self, cursor: Option<Cursor>, limit: usize) -> Result<(Vec<Manifest>, Option<Cursor>), StoreError> {
        self.read(move |reader| reader.scan(cursor.as_ref().map_or(&[], |cursor| &cursor.0), limit)).await
    }

    async fn changes_since(
        &self,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Option<(Vec<Change>, Cursor)>, StoreError> {
        self.read(move |reader| reader.changes(cursor.as_ref().map(|cursor| &cursor.0[..]), limit)).await
    }

    async fn newest(&self) -> Result<Version, StoreError> {
        self.read(|reader| {
            let read = reader.db.begin_read().map_err(failed)?;
            Ok(Version(Counters::load(&read.open_table(META).map_err(failed)?)?.newest))
        })
        .await
    }

    async fn put_purge(&self, record: PurgeRecord) -> Result<bool, StoreError> {
        Ok(self.write(Mutation::PutPurge(record)).await? == Swap::Done)
    }

    async fn purges(&self) -> Result<Vec<PurgeRecord>, StoreError> {
        self.read(Reader::purges).await
    }

    async fn retire_purge(&self, record: &PurgeRecord) -> Result<(), StoreError> {
        self.write(Mutation::RetirePurge(record.clone())).await.map(drop)
    }
}
