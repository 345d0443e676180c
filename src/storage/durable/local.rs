//! Blobs as files of a local directory.
//!
//! ```text
//! blobs/hh/name    committed blobs, `hh` the first two digits of the name
//! tmp/             blobs being written; emptied at start
//! ```
//!
//! What is believed of the medium: an fsync that succeeded made the file's bytes durable, and one of a directory its
//! names; a rename is atomic; anything else may or may not survive a crash. So a blob is written under a temporary
//! name, synced, renamed, and acknowledged when the directory is synced too. A deletion syncs nothing: what comes
//! back after a crash is an orphan for the sweep. A failed sync is never tried again: the blob is given up.
//!
//! All calls that may block run on the [`Pool`]. Owns the files and the [`Room`] they take; the bytes in them are
//! `blob_format`'s.

mod read;
mod write;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::UNIX_EPOCH,
};

use bytes::Bytes;
use engine::clock::Clock;

pub use self::{read::LocalBlobRead, write::LocalBlobWrite};
use super::{
    blob_format::{self as format, HEADER_BYTES, TRAILER_BYTES, Trailer},
    pool::Pool,
    room::{Room, failed, panicked},
};
use crate::storage::traits::{BlobId, BlobInfo, BlobStore, Cursor, StoreError};

/// Bytes of one disk read or write: four blocks.
const BATCH_BLOCKS: usize = 4;

/// A directory of blobs. Clones are the same store.
#[derive(Clone)]
pub struct LocalBlobStore<C> {
    files: Arc<Files>,
    pool: Pool,
    clock: C,
}

/// The directory, as the pool's threads see it.
struct Files {
    blobs: PathBuf,
    tmp: PathBuf,
    room: Room,
    /// Fan-out directories whose own names are durable.
    made: Mutex<BTreeSet<String>>,
    names: AtomicU64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    syncs: AtomicU64,
    leftovers: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

/// Counters of a [`LocalBlobStore`] since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalStats {
    /// Files and directories synced.
    pub syncs: u64,
    /// Temporary files of an earlier run, removed at start.
    pub leftovers: u64,
    /// Bytes read from blob files.
    pub bytes_read: u64,
    /// Bytes written to blob files.
    pub bytes_written: u64,
}

impl<C: Clock> LocalBlobStore<C> {
    /// Opens or makes the directories under `dir`, removes what an earlier run left in `tmp`, and counts the blobs
    /// into `room`. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn open(dir: &Path, clock: C, pool: Pool, room: Room) -> io::Result<Self> {
        let files = Files {
            blobs: dir.join("blobs"),
            tmp: dir.join("tmp"),
            room,
            made: Mutex::default(),
            names: AtomicU64::new(0),
            counts: Counts::default(),
        };
        files.start(dir)?;
        Ok(Self { files: Arc::new(files), pool, clock })
    }

    /// The counters so far.
    #[must_use]
    pub fn stats(&self) -> LocalStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.files.counts;
        LocalStats {
            syncs: get(&counts.syncs),
            leftovers: get(&counts.leftovers),
            bytes_read: get(&counts.read),
            bytes_written: get(&counts.written),
        }
    }

    /// Runs `job` on the pool.
    async fn on_disk<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Arc<Files>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = self.files.clone();
        self.pool.run(move || job(&files)).await.unwrap_or_else(|| Err(panicked()))
    }
}

impl Files {
    fn start(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(&self.blobs)?;
        fs::create_dir_all(&self.tmp)?;
        for leftover in fs::read_dir(&self.tmp)? {
            fs::remove_file(leftover?.path())?;
            self.counts.leftovers.fetch_add(1, Ordering::Relaxed);
        }
        let mut bytes = 0;
        let mut made = BTreeSet::new();
        for fan in self.fans()? {
            for name in self.names_in(&fan)? {
                bytes += fs::metadata(self.blobs.join(&name))?.len();
            }
            made.insert(fan);
        }
        self.room.set_blobs(bytes);
        // A fan-out directory may have been made just before a crash, and its name not been synced.
        self.sync_dir(&self.blobs)?;
        self.sync_dir(dir)?;
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = made;
        Ok(())
    }

    fn path(&self, id: &BlobId) -> PathBuf {
        self.blobs.join(id.as_str())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sync(&File::open(dir)?)
    }

    /// Makes a file's bytes, or a directory's names, durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the fan-out directory of `id`, durably, if it is not there.
    fn make_fan(&self, id: &BlobId) -> io::Result<PathBuf> {
        let fan = &id.as_str()[..2];
        let dir = self.blobs.join(fan);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.contains(fan) {
            fs::create_dir_all(&dir)?;
            self.sync_dir(&self.blobs)?;
            made.insert(fan.to_owned());
        }
        Ok(dir)
    }

    /// Fan-out directories, in order.
    fn fans(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.blobs)?.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
        let mut fans: Vec<_> = names.collect::<io::Result<_>>()?;
        fans.retain(|name| name.len() == 2 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        fans.sort_unstable();
        Ok(fans)
    }

    /// Names of the blobs of a fan-out directory, in order. Other files are nobody's and left alone.
    fn names_in(&self, fan: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.blobs.join(fan))? {
            let name = entry?.file_name().into_string().unwrap_or_default();
            let name = format!("{fan}/{name}");
            if BlobId::parse(&name).is_some() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What is known of a blob, also of a damaged one: its size then says how much it may have held.
    fn info(&self, id: BlobId) -> Result<Option<BlobInfo>, StoreError> {
        let file = match File::open(self.path(&id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let stored = file.metadata().map_err(failed)?;
        let stored_bytes = stored.len();
        Ok(Some(match read_ends(&file, &id, stored_bytes)? {
            Ok(trailer) => BlobInfo { id, length: trailer.length, stored_bytes, created_ms: trailer.created_ms },
            Err(_) => {
                let changed = stored.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                let created_ms = changed.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
                let length = format::body_bytes(stored_bytes).unwrap_or(stored_bytes);
                BlobInfo { id, length, stored_bytes, created_ms }
            }
        }))
    }

    fn delete(&self, id: &BlobId) -> Result<bool, StoreError> {
        let path = self.path(id);
        let bytes = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            metadata => metadata.map_err(failed)?.len(),
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            removed => removed.map_err(failed)?,
        }
        self.room.free_blob(bytes);
        Ok(true)
    }

    fn list(&self, after: &str, limit: usize) -> Result<(Vec<BlobInfo>, Option<Cursor>), StoreError> {
        let mut page: Vec<BlobInfo> = Vec::new();
        for fan in self.fans().map_err(failed)? {
            if after.get(..2).is_some_and(|begun| fan.as_str() < begun) {
                continue;
            }
            for name in self.names_in(&fan).map_err(failed)? {
                if name.as_str() <= after {
                    continue;
                }
                if let (true, Some(last)) = (page.len() == limit, page.last()) {
                    let cursor = Cursor(Bytes::copy_from_slice(last.id.as_str().as_bytes()));
                    return Ok((page, Some(cursor)));
                }
                let Some(id) = BlobId::parse(&name) else { continue };
                // Deleted since the directory was read: not there.
                page.extend(self.info(id)?);
            }
        }
        Ok((page, None))
    }
}

/// Reads and checks what is before and after the blocks. The inner error is damage.
fn read_ends(file: &File, id: &BlobId, file_length: u64) -> Result<Result<Trailer, String>, StoreError> {
    let Some(end) = file_length.checked_sub((HEADER_BYTES + TRAILER_BYTES) as u64) else {
        return Ok(Err(format!("the file of blob {id:?} is too short for one")));
    };
    let (mut header, mut trailer) = ([0; HEADER_BYTES], [0; TRAILER_BYTES]);
    file.read_exact_at(&mut header, 0).map_err(failed)?;
    file.read_exact_at(&mut trailer, end + HEADER_BYTES as u64).map_err(failed)?;
    Ok(format::check_header(&header, id).and_then(|()| Trailer::decode(&trailer, id, file_length)))
}

impl<C: Clock> BlobStore for LocalBlobStore<C> {
    type Read = LocalBlobRead;
    type Write = LocalBlobWrite<C>;

    async fn get(&self, id: &BlobId, range: Option<Range<u64>>) -> Result<Option<LocalBlobRead>, StoreError> {
        LocalBlobRead::open(self, id.clone(), range).await
    }

    async fn head(&self, id: &BlobId) -> Result<Option<BlobInfo>, StoreError> {
        let id = id.clone();
        self.on_disk(move |files| files.info(id)).await
    }

    async fn put(&self, id: &BlobId, length: Option<u64>) -> Result<LocalBlobWrite<C>, StoreError> {
        LocalBlobWrite::begin(self, id.clone(), length).await
    }

    async fn delete(&self, id: &BlobId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.on_disk(move |files| files.delete(&id)).await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<(Vec<BlobInfo>, Option<Cursor>), StoreError> {
        let after = cursor.map_or_else(String::new, |cursor| String::from_utf8_lossy(&cursor.0).into_owned());
        self.on_disk(move |files| files.list(&after, limit)).await
    }
}
