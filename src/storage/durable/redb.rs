//! The index in one redb file.
//!
//! ```text
//! meta        text -> bytes       "format": u32; "counters": rows; "namespaces", "namespace/NAME": spaces
//! manifests   path -> bytes       manifest_format
//! changes     sequence -> bytes   rows; the last CHANGES_MAX
//! purges      scope -> bytes      rows
//! ```
//!
//! Writes go to one thread, which puts everything that waits into one transaction and answers after its commit: a
//! commit costs an fsync whatever it holds, so 64 writers share a few. Reads run on a [`Pool`] of their own against
//! the last committed snapshot: they may touch the disk, and an executor thread must not.
//!
//! Invariants: an answer means durable, and a read shows only what is; a commit that failed leaves every waiter in
//! doubt ([`StoreError::Unknown`]) and the store poisoned for writes; a file that is refused was not changed (`held`);
//! a damaged row is never read as another. redb is believed to keep its commits whole (one fsync, checksums looked at
//! in the repair after a crash), and not to look at checksums otherwise: what it panics over is caught and told as
//! damage, and a damaged inner page may hide an entry. After an I/O error redb touches its file no more: reads go on
//! from its cache and fail beyond it, until the next start.

mod held;
mod open;
mod rows;
mod spaces;
mod writer;

use std::{
    collections::BTreeMap,
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

pub use self::{
    open::OpenError,
    writer::{BATCH_BYTES_MAX, BATCH_MAX, QUEUE_MAX},
};
use self::{
    rows::{Counters, read_change, read_purge},
    spaces::Spaces,
    writer::{Job, Mutation},
};
use super::{manifest_format, pool::Pool};
use crate::{
    cache::{Cause, Version},
    namespace::Held,
    storage::traits::{Change, Cursor, IndexStore, Manifest, PurgeRecord, StoreError, Swap},
};

/// The format of the file.
pub const FORMAT: u32 = 1;

/// Changes kept for [`IndexStore::changes_since`]; older ones are forgotten.
pub const CHANGES_MAX: u64 = 100_000;

/// A page of a listing takes no more from here on, whatever its limit; at most one row above it.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const MANIFESTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("manifests");
const CHANGES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("changes");
const PURGES: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("purges");

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
    /// `None`: nobody knows.
    spaces: Mutex<Option<Spaces>>,
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

    /// What each namespace has here; `None` if the entries could not be counted at the start.
    #[must_use]
    pub fn held(&self) -> Option<BTreeMap<Box<str>, Held>> {
        let spaces = self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.as_ref().map(|spaces| spaces.held().clone())
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let reader = Reader { db: self.db.clone(), shared: self.shared.clone() };
        // redb trusts its pages: what it stumbles over is damage.
        let stumbled = || StoreError::Corrupted { what: "pages of the index contradict each other".into() };
        self.pool.run(move || job(&reader)).await.unwrap_or_else(|| Err(stumbled()))
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

    fn holds(&self, prefix: &[u8]) -> Result<bool, StoreError> {
        let read = self.db.begin_read().map_err(failed)?;
        let table = read.open_table(MANIFESTS).map_err(failed)?;
        let first = table.range::<&[u8]>(prefix..).map_err(failed)?.next().transpose().map_err(failed)?;
        Ok(first.is_some_and(|(path, _)| path.value().starts_with(prefix)))
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
        let (mut last, mut bytes) = (after.to_vec(), 0);
        let start = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        for entry in table.range::<&[u8]>((start, Bound::Unbounded)).map_err(failed)? {
            let (path, value) = entry.map_err(failed)?;
            if page.len() == limit || bytes >= PAGE_BYTES_MAX {
                return Ok((page, Some(scan_cursor(passed, &last))));
            }
            last = path.value().to_vec();
            bytes += path.value().len() + value.value().len();
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
        let Counters { id, changed, .. } = Counters::load(&read.open_table(META).map_err(failed)?)?;
        let table = read.open_table(CHANGES).map_err(failed)?;
        let oldest = table.first().map_err(failed)?.map_or(changed + 1, |(sequence, _)| sequence.value());
        let after = match cursor {
            None => oldest - 1,
            Some(cursor) => match read_change_cursor(id, cursor) {
                Some(after) if (oldest - 1..=changed).contains(&after) => after,
                _ => return Ok(None),
            },
        };
        let (mut page, mut last, mut bytes) = (Vec::new(), after, 0);
        for entry in table.range(after + 1..).map_err(failed)?.take(limit) {
            let (sequence, value) = entry.map_err(failed)?;
            if bytes >= PAGE_BYTES_MAX {
                break;
            }
            last = sequence.value();
            bytes += value.value().len();
            page.push(
                read_change(last, value.value())
                    .ok_or_else(|| StoreError::Corrupted { what: format!("change {last} of the index") })?,
            );
        }
        Ok(Some((page, change_cursor(id, last))))
    }

    fn purges(&self) -> Result<Vec<PurgeRecord>, StoreError> {
        let read = self.db.begin_read().map_err(failed)?;
        let table = read.open_table(PURGES).map_err(failed)?;
        let mut records = Vec::new();
        for entry in table.iter().map_err(failed)? {
            let (scope, row) = entry.map_err(failed)?;
            records.push(read_purge(scope.value(), row.value())?);
        }
        Ok(records)
    }
}

fn scan_cursor(passed: u8, path: &[u8]) -> Cursor {
    Cursor([&[passed], path].concat().into())
}

/// A position of [`IndexStore::changes_since`]: the file, then the last change told.
fn change_cursor(id: u64, sequence: u64) -> Cursor {
    Cursor([id.to_be_bytes(), sequence.to_be_bytes()].concat().into())
}

/// The last change told, if the cursor is of the file `id`.
fn read_change_cursor(id: u64, cursor: &[u8]) -> Option<u64> {
    let (of, sequence) = cursor.split_first_chunk()?;
    let sequence = sequence.try_into().ok().map(u64::from_be_bytes);
    sequence.filter(|_| u64::from_be_bytes(*of) == id)
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

    async fn holds(&self, prefix: &[u8]) -> Result<bool, StoreError> {
        let prefix = prefix.to_vec();
        self.read(move |reader| reader.holds(&prefix)).await
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
