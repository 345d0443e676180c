//! Opening the index file: made whole or not at all, refused unchanged when it is not ours to read.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use engine::mailbox::mailbox;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend,
    Table, WriteTransaction,
};

use super::{
    CHANGES, FORMAT, IndexStats, MANIFESTS, META, PURGES, RedbIndexStore, Shared, Writer, failed,
    writer::{self, QUEUE_MAX},
};
use crate::storage::{
    durable::{pool::Pool, room::Room},
    traits::StoreError,
};

/// Why an index file was not opened. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer program wrote it.
    #[error("{} has format {found}; this program reads up to {FORMAT}: run the newer program, or use another data directory", file.display())]
    Newer {
        /// Which file.
        file: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is no index, or a damaged one.
    #[error("{} is not a readable index: {what}", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system refused.
    #[error("{}: {source}", file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RedbIndexStore {
    /// Opens or makes the index `file`, caching at most `cache_bytes` of it, with reads on `pool` and its bytes
    /// counted into `room`. Blocks; after an unclean stop it reads the whole file.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed then.
    pub fn open(file: &Path, cache_bytes: usize, pool: Pool, room: Room) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { file: file.into(), source };
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        if !file.try_exists().map_err(io)? {
            make(&builder, file)?;
        }
        // First without touching it: a format of the future must be left as it is.
        guarded(file, || match builder.open_read_only(file) {
            Ok(db) => check_format(file, &db.begin_read().map_err(|error| unreadable(file, &error))?),
            // It was not closed, and only a writing open repairs it; the format is checked after that.
            Err(DatabaseError::RepairAborted) => Ok(()),
            Err(error) => Err(unreadable(file, &error)),
        })?;
        guarded(file, || {
            let db = builder.open(file).map_err(|error| unreadable(file, &error))?;
            check_format(file, &db.begin_read().map_err(|error| unreadable(file, &error))?)?;
            Self::start(db, pool, room).map_err(|error| unreadable(file, &error))
        })
    }

    /// An index on any storage redb can use: for tests of failing ones. An empty one is filled in.
    ///
    /// # Errors
    /// The storage failed.
    pub fn open_on(
        backend: impl StorageBackend,
        cache_bytes: usize,
        pool: Pool,
        room: Room,
    ) -> Result<Self, StoreError> {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        let db = builder.create_with_backend(backend).map_err(failed)?;
        fill_in(&db).map_err(failed)?;
        Self::start(db, pool, room)
    }

    fn start(db: Database, pool: Pool, room: Room) -> Result<Self, StoreError> {
        let counters = Counters::load(&db.begin_read().map_err(failed)?.open_table(META).map_err(failed)?)?;
        room.set_index(counters.bytes);
        let shared = Arc::new(Shared::default());
        counters.show(&mut shared.stats.lock().unwrap_or_else(PoisonError::into_inner));
        let db = Arc::new(db);
        let jobs = mailbox(QUEUE_MAX);
        let sender = jobs.sender(QUEUE_MAX);
        let thread = writer::start(db.clone(), jobs, shared.clone(), room, counters)
            .map_err(|error| StoreError::Failed(Arc::new(error)))?;
        let writer = Arc::new(Writer { jobs: sender, thread: Some(thread) });
        Ok(Self { db, pool, shared, writer })
    }
}

/// Makes a new file under another name first, so that a crash on the way leaves no half-made index.
fn make(builder: &Builder, file: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { file: file.into(), source };
    let draft = file.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let db = builder.create(&draft).map_err(|error| unreadable(file, &error))?;
    fill_in(&db).map_err(|error| unreadable(file, &error))?;
    db.close().map_err(|error| unreadable(file, &error))?;
    File::open(&draft).and_then(|made| made.sync_all()).map_err(io)?;
    fs::rename(&draft, file).map_err(io)?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

fn fill_in(db: &Database) -> Result<(), redb::Error> {
    let mut write = begin(db)?;
    {
        let mut meta = write.open_table(META)?;
        if meta.get("format")?.is_none() {
            meta.insert("format", &FORMAT.to_le_bytes()[..])?;
            Counters::default().store(&mut meta)?;
        }
        write.open_table(MANIFESTS)?;
        write.open_table(CHANGES)?;
        write.open_table(PURGES)?;
    }
    write.set_durability(Durability::Immediate)?;
    Ok(write.commit()?)
}

/// A write transaction whose commit is durable.
pub(super) fn begin(db: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut write = db.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    Ok(write)
}

fn check_format(file: &Path, read: &ReadTransaction) -> Result<(), OpenError> {
    let unreadable = |what: &str| OpenError::Unreadable { file: file.into(), what: what.into() };
    let meta = read.open_table(META).map_err(|_| unreadable("it is a database of something else"))?;
    let format = meta.get("format").map_err(|error| unreadable(&error.to_string()))?;
    let found = format.and_then(|format| format.value().try_into().ok()).map(u32::from_le_bytes);
    match found {
        None => Err(unreadable("it does not say its format")),
        Some(found) if found > FORMAT => Err(OpenError::Newer { file: file.into(), found }),
        Some(_) => Ok(()),
    }
}

fn unreadable(file: &Path, error: &dyn std::error::Error) -> OpenError {
    OpenError::Unreadable { file: file.into(), what: error.to_string() }
}

/// redb may panic over a file that was changed behind its back.
fn guarded<T>(file: &Path, open: impl FnOnce() -> Result<T, OpenError>) -> Result<T, OpenError> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| {
        Err(OpenError::Unreadable { file: file.into(), what: "its pages contradict each other".into() })
    })
}

/// What is counted in the same transaction as what it counts. Stored as six u64, little endian, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) objects: u64,
    pub(super) tombstones: u64,
    pub(super) bytes: u64,
    pub(super) bytes_inline: u64,
    /// Sequence of the last change.
    pub(super) changed: u64,
    /// Highest version there ever was.
    pub(super) newest: u64,
}

impl Counters {
    pub(super) fn load(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Self, StoreError> {
        let damaged = || StoreError::Corrupted { what: "the counters of the index".into() };
        let row = meta.get("counters").map_err(failed)?.ok_or_else(damaged)?;
        let (fields, []) = row.value().as_chunks::<8>() else { return Err(damaged()) };
        let [objects, tombstones, bytes, bytes_inline, changed, newest] = fields else { return Err(damaged()) };
        let read = |field: &[u8; 8]| u64::from_le_bytes(*field);
        Ok(Self {
            objects: read(objects),
            tombstones: read(tombstones),
            bytes: read(bytes),
            bytes_inline: read(bytes_inline),
            changed: read(changed),
            newest: read(newest),
        })
    }

    pub(super) fn store(&self, meta: &mut Table<'_, &'static str, &'static [u8]>) -> Result<(), redb::StorageError> {
        let fields = [self.objects, self.tombstones, self.bytes, self.bytes_inline, self.changed, self.newest];
        let bytes = fields.map(u64::to_le_bytes).concat();
        meta.insert("counters", &bytes[..]).map(drop)
    }

    /// Copies the gauges.
    pub(super) fn show(&self, stats: &mut IndexStats) {
        stats.objects = self.objects;
        stats.tombstones = self.tombstones;
        stats.bytes = self.bytes;
        stats.bytes_inline = self.bytes_inline;
    }
}
