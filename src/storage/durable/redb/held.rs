//! The file below redb, looked at before it is touched.
//!
//! [`Held`] keeps what redb writes while it opens a file (the repair after a crash, the mark that it is open) in
//! memory until the caller has seen that the file is an index it understands; then it lets the writes go, in their
//! order and with their syncs, and passes everything through. A file that is refused was not written to.
//!
//! A write that finds no room is tried once more with the [`Headroom`] given up: an I/O error would be the last thing
//! redb does.
//!
//! [`Headroom`]: crate::storage::durable::headroom::Headroom

use std::{
    io,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{BackendError, StorageBackend};

use crate::storage::durable::room::{Room, is_full};

/// Most bytes kept back; a repair writes some pages. More fails the opening.
const HELD_BYTES_MAX: usize = 16 << 20;

/// A backend that holds its writes back until [`Held::release`]. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Held(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    below: Box<dyn StorageBackend>,
    room: Room,
    /// Nothing is held any more: the way past the lock.
    released: AtomicBool,
    held: Mutex<Option<Writes>>,
}

#[derive(Debug)]
struct Writes {
    log: Vec<Write>,
    bytes: usize,
    /// Length of the file as redb sees it.
    len: u64,
}

#[derive(Debug)]
enum Write {
    Bytes(u64, Box<[u8]>),
    Length(u64),
    Sync,
}

impl Held {
    pub(super) fn new(below: Box<dyn StorageBackend>, room: Room) -> io::Result<Self> {
        let len = below.len()?;
        let held = Mutex::new(Some(Writes { log: Vec::new(), bytes: 0, len }));
        Ok(Self(Arc::new(Inner { below, room, released: AtomicBool::new(false), held })))
    }

    /// Writes what was held back, and holds nothing any more.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut held = self.held();
        if let Some(writes) = held.take() {
            for write in writes.log {
                match write {
                    Write::Bytes(offset, bytes) => self.with_headroom(|below| below.write(offset, &bytes))?,
                    Write::Length(len) => self.with_headroom(|below| below.set_len(len))?,
                    Write::Sync => self.0.below.sync_data()?,
                }
            }
        }
        self.0.released.store(true, Ordering::Release);
        Ok(())
    }

    fn with_headroom(&self, write: impl Fn(&dyn StorageBackend) -> io::Result<()>) -> io::Result<()> {
        match write(&*self.0.below) {
            Err(error) if is_full(&error) && self.0.room.headroom().give_up() => write(&*self.0.below),
            written => written,
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Writes>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `held` to what is held back, or `through` to the file if nothing is.
    fn either<T>(
        &self,
        through: impl FnOnce(&dyn StorageBackend) -> io::Result<T>,
        held: impl FnOnce(&mut Writes, &dyn StorageBackend) -> io::Result<T>,
    ) -> io::Result<T> {
        let below = &*self.0.below;
        if self.0.released.load(Ordering::Acquire) {
            return through(below);
        }
        match &mut *self.held() {
            Some(writes) => held(writes, below),
            None => through(below),
        }
    }
}

impl Writes {
    /// Reads what the file would hold had nothing been held back.
    fn read(&self, below: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = below.len()?.clamp(offset, end) - offset;
        // At most the length of `out`.
        let (from_file, beyond) = out.split_at_mut(there as usize);
        beyond.fill(0);
        if !from_file.is_empty() {
            below.read(offset, from_file)?;
        }
        for write in &self.log {
            match write {
                Write::Bytes(at, bytes) => {
                    let from = (*at).clamp(offset, end);
                    let to = (at + bytes.len() as u64).clamp(from, end);
                    if from < to {
                        let source = &bytes[(from - at) as usize..(to - at) as usize];
                        out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
                    }
                }
                // What is cut off comes back as zeros.
                Write::Length(len) => out[((*len).clamp(offset, end) - offset) as usize..].fill(0),
                Write::Sync => {}
            }
        }
        Ok(())
    }

    fn push(&mut self, write: Write) -> io::Result<()> {
        match &write {
            Write::Bytes(at, bytes) => {
                self.bytes += bytes.len();
                self.len = self.len.max(at + bytes.len() as u64);
            }
            Write::Length(len) => self.len = *len,
            Write::Sync => {}
        }
        if self.bytes > HELD_BYTES_MAX {
            return Err(io::Error::other("the repair writes more than it may before the file is known"));
        }
        self.log.push(write);
        Ok(())
    }
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        self.either(|below| below.len(), |held, _| Ok(held.len))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        // Both would borrow `out`, and only one runs.
        let out = std::cell::RefCell::new(out);
        self.either(
            |below| below.read(offset, &mut out.borrow_mut()),
            |held, below| held.read(below, offset, &mut out.borrow_mut()),
        )
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.either(|_| self.with_headroom(|below| below.set_len(len)), |held, _| held.push(Write::Length(len)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.either(|below| below.sync_data(), |held, _| held.push(Write::Sync))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.either(
            |_| self.with_headroom(|below| below.write(offset, data)),
            |held, _| held.push(Write::Bytes(offset, data.into())),
        )
    }

    fn close(&self) -> io::Result<()> {
        self.0.below.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.below.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.below.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.below.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.below.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.below.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.below.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use redb::backends::InMemoryBackend;

    use super::*;
    use crate::{config::Reserve, storage::durable::headroom::HEADROOM_BYTES};

    fn room() -> Room {
        Room::new(Path::new("/"), None, Reserve::Bytes(0))
    }

    /// A file that shares its disk with the headroom and nothing else.
    #[derive(Debug)]
    struct Tight {
        file: InMemoryBackend,
        headroom: PathBuf,
    }

    impl StorageBackend for Tight {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if fs::metadata(&self.headroom)?.len() > 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.file.write(offset, data)
        }
    }

    #[test]
    fn a_write_that_finds_no_room_is_given_the_headroom() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("headroom");
        let room = Room::new(dir.path(), None, Reserve::Bytes(0));
        room.headroom().hold(&path).expect("a folder with room");
        let below = Tight { file: InMemoryBackend::new(), headroom: path };
        below.set_len(64).expect("in memory");
        let held = Held::new(Box::new(below), room.clone()).expect("a length");
        held.write(0, &[7; 8]).expect("kept");
        assert_eq!(room.headroom().times_given_up(), 0, "nothing was written yet");
        held.release().expect("with the headroom");
        assert_eq!((room.headroom().times_given_up(), room.headroom().missing()), (1, HEADROOM_BYTES));
        room.headroom().regain().expect("a folder with room");
        held.write(8, &[8; 8]).expect("with the headroom");
        assert_eq!(room.headroom().times_given_up(), 2);
        let mut out = [0; 16];
        held.read(0, &mut out).expect("within");
        assert_eq!(out, [[7; 8], [8; 8]].as_flattened());
    }

    #[test]
    fn what_is_held_back_reads_as_written_and_is_written_on_release() {
        // Random writes and lengths, against a plain vector.
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let below = InMemoryBackend::new();
            let mut model = vec![7_u8; 64];
            below.set_len(64).expect("in memory");
            below.write(0, &model).expect("in memory");
            let held = Held::new(Box::new(below), room()).expect("a length");
            for step in 0..40 {
                if step == 30 {
                    let before = held.0.below.len().expect("in memory");
                    assert_eq!(before, 64, "nothing was written yet");
                    held.release().expect("written");
                }
                if random.u8(..4) == 0 {
                    let len = random.usize(1..120);
                    model.resize(len, 0);
                    held.set_len(len as u64).expect("kept");
                } else {
                    let from = random.usize(..model.len());
                    let to = random.usize(from..=model.len());
                    let bytes: Vec<u8> = (from..to).map(|_| random.u8(..)).collect();
                    model[from..to].copy_from_slice(&bytes);
                    held.write(from as u64, &bytes).expect("kept");
                }
                let (from, to) = (random.usize(..model.len()), random.usize(..=model.len()));
                let (from, to) = (from.min(to), from.max(to));
                let mut out = vec![1; to - from];
                held.read(from as u64, &mut out).expect("within");
                assert_eq!(out, model[from..to], "seed {seed}, step {step}");
                assert_eq!(held.len().expect("kept"), model.len() as u64);
                assert!(held.read(from as u64, &mut vec![0; model.len() - from + 1]).is_err(), "beyond the end");
            }
        }
    }

    #[test]
    fn it_holds_only_so_much() {
        let held = Held::new(Box::new(InMemoryBackend::new()), room()).expect("a length");
        held.write(0, &vec![1; HELD_BYTES_MAX]).expect("just enough");
        assert!(held.write(0, &[1]).is_err());
    }
}
