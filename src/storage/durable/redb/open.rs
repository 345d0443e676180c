//! Opening the index file: made whole or not at all, refused unchanged when it is not ours to read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use engine::mailbox::mailbox;
use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, WriteTransaction,
    backends::FileBackend,
};

use super::{
    CHANGES, FORMAT, MANIFESTS, META, PURGES, RedbIndexStore, Shared, Writer, decode, failed,
    held::Held,
    rows::Counters,
    spaces::Spaces,
    writer::{self, QUEUE_MAX},
};
use crate::storage::{
    durable::{pool::Pool, room::Room},
    traits::StoreError,
};

/// What the file with the room for removals is called, beside that of the index.
const HEADROOM_EXTENSION: &str = "headroom";

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
    /// counted into `room`, whose headroom is then kept beside it. Blocks; after an unclean stop it reads the whole
    /// file.
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
        let opened = OpenOptions::new().read(true).write(true).open(file).map_err(io)?;
        // redb would take an empty file for one to fill in.
        if opened.metadata().map_err(io)?.len() == 0 {
            return Err(OpenError::Unreadable { file: file.into(), what: "it is empty".into() });
        }
        let backend = FileBackend::new(opened).map_err(|error| refused(file, error.into()))?;
        let held = Held::new(Box::new(backend), room.clone()).map_err(io)?;
        let (db, counters) = guarded(file, || {
            let db = builder.create_with_backend(held.clone()).map_err(|error| refused(file, error.into()))?;
            let counters = check(file, &db.begin_read().map_err(|error| refused(file, error.into()))?)?;
            Ok((db, counters))
        })?;
        // A node that was killed on a full disk comes back: the repair may need room.
        room.headroom().hold(&file.with_extension(HEADROOM_EXTENSION)).map_err(io)?;
        held.release().map_err(io)?;
        let file_bytes = fs::metadata(file).map_err(io)?.blocks() * 512;
        Self::start(db, pool, room, counters, file_bytes).map_err(io)
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
        let counters = Counters::load(&db.begin_read().map_err(failed)?.open_table(META).map_err(failed)?)?;
        Self::start(db, pool, room, counters, 0).map_err(|error| StoreError::Failed(Arc::new(error)))
    }

    /// `file_bytes`: what the file takes of the disk, 0 if that is not known.
    fn start(db: Database, pool: Pool, room: Room, counters: Counters, file_bytes: u64) -> io::Result<Self> {
        room.set_index(counters.bytes);
        let shared = Arc::new(Shared::default());
        counters.show(&mut shared.stats.lock().unwrap_or_else(PoisonError::into_inner));
        *shared.spaces.lock().unwrap_or_else(PoisonError::into_inner) = spaces(&db, &shared, counters.changed);
        let db = Arc::new(db);
        let jobs = mailbox(QUEUE_MAX);
        let sender = jobs.sender(QUEUE_MAX);
        let thread = writer::start(db.clone(), jobs, shared.clone(), room, counters, file_bytes)?;
        let writer = Arc::new(Writer { jobs: sender, thread: Some(thread) });
        Ok(Self { db, pool, shared, writer })
    }
}

/// What each namespace has, by its rows or else by counting. Only figures: where that fails, there are none.
fn spaces(db: &Database, shared: &Shared, changed: u64) -> Option<Spaces> {
    let counted = catch_unwind(AssertUnwindSafe(|| -> Result<Spaces, redb::Error> {
        let read = db.begin_read()?;
        if let Some(spaces) = Spaces::load(&read.open_table(META)?, changed) {
            return Ok(spaces);
        }
        Ok(Spaces::count(&read.open_table(MANIFESTS)?, |path, value| decode(shared, path, value).ok())?)
    }));
    let why = match counted {
        Ok(Ok(spaces)) => return Some(spaces),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its pages contradict each other".into(),
    };
    tracing::warn!(%why, "what each namespace has in the index could not be counted, and is not shown");
    None
}

/// Makes a new file under another name first, so that a crash on the way leaves no half-made index.
fn make(builder: &Builder, file: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { file: file.into(), source };
    let draft = file.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let db = builder.create(&draft).map_err(|error| refused(file, error.into()))?;
    fill_in(&db).map_err(|error| refused(file, error))?;
    db.close().map_err(|error| refused(file, error.into()))?;
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
            Counters::fresh().store(&mut meta)?;
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

/// Makes sure that it is an index of this format; gives its counters.
fn check(file: &Path, read: &ReadTransaction) -> Result<Counters, OpenError> {
    let unreadable = |what: &str| OpenError::Unreadable { file: file.into(), what: what.into() };
    let meta = read.open_table(META).map_err(|_| unreadable("it is a database of something else"))?;
    let format = meta.get("format").map_err(|error| refused(file, error.into()))?;
    let found = format.and_then(|format| format.value().try_into().ok()).map(u32::from_le_bytes);
    match found {
        None => return Err(unreadable("it does not say its format")),
        Some(found) if found > FORMAT => return Err(OpenError::Newer { file: file.into(), found }),
        Some(_) => {}
    }
    Counters::load(&meta).map_err(|error| unreadable(&error.to_string()))
}

/// What redb would not open: a damaged file, unless the system failed.
fn refused(file: &Path, error: redb::Error) -> OpenError {
    match error {
        // redb's words for bytes that are not its own.
        redb::Error::Io(source) if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            OpenError::Io { file: file.into(), source }
        }
        error => OpenError::Unreadable { file: file.into(), what: error.to_string() },
    }
}

/// redb may panic over a file that was changed behind its back.
fn guarded<T>(file: &Path, open: impl FnOnce() -> Result<T, OpenError>) -> Result<T, OpenError> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| {
        Err(OpenError::Unreadable { file: file.into(), what: "its pages contradict each other".into() })
    })
}
