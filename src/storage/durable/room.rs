//! How much the embedded stores may take: `l3_bytes_max` over blobs and manifests together, and `disk_reserve` of
//! the file system.
//!
//! Invariant: `used` is exact: bytes of committed blob files, plus bytes reserved by writes under way, plus keys and
//! values in the index. It is counted as things happen and found again by listing at start. Behaviour at the bound:
//! writes are refused with [`Reason::QuotaFull`] or [`Reason::DiskFull`]; deletions and tombstones are not: they may
//! use the disk's reserve, and the [`Headroom`] of the index when there is none.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::headroom::Headroom;
use crate::{
    cache::Cause,
    config::Reserve,
    reason::Reason,
    storage::traits::{INLINE_BYTES_MAX, StoreError},
};

/// The room shared by a blob store and an index. Clones are the same room; it crosses threads.
#[derive(Clone, Debug)]
pub struct Room {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    bytes_max: Option<u64>,
    reserve: Reserve,
    used: Mutex<Used>,
    headroom: Headroom,
}

/// Bytes in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Committed blob files.
    pub blobs: u64,
    /// Reserved by blobs being written.
    pub staged: u64,
    /// Keys and values of the index.
    pub index: u64,
}

impl Used {
    /// All of it.
    #[must_use]
    pub fn total(self) -> u64 {
        self.blobs + self.staged + self.index
    }
}

impl Room {
    /// At most `bytes_max` bytes, on the file system of `dir`, of which `reserve` stays free.
    #[must_use]
    pub fn new(dir: &Path, bytes_max: Option<u64>, reserve: Reserve) -> Self {
        let shared =
            Shared { dir: dir.into(), bytes_max, reserve, used: Mutex::default(), headroom: Headroom::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Bytes in use now.
    #[must_use]
    pub fn used(&self) -> Used {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Used> {
        self.shared.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what listing the blobs found.
    pub fn set_blobs(&self, bytes: u64) {
        self.lock().blobs = bytes;
    }

    /// Sets what the index counted.
    pub fn set_index(&self, bytes: u64) {
        self.lock().index = bytes;
    }

    /// Gives back a deleted blob's bytes.
    pub fn free_blob(&self, bytes: u64) {
        let mut used = self.lock();
        used.blobs = used.blobs.saturating_sub(bytes);
    }

    /// Whether the index may grow by `bytes`.
    ///
    /// # Errors
    /// [`StoreError::Full`].
    pub fn check_index(&self, bytes: u64) -> Result<(), StoreError> {
        self.fits(&self.lock(), bytes)
    }

    fn fits(&self, used: &Used, bytes: u64) -> Result<(), StoreError> {
        match self.shared.bytes_max {
            Some(bytes_max) if used.total().saturating_add(bytes) > bytes_max => {
                Err(StoreError::Full { reason: Reason::QuotaFull })
            }
            _ => Ok(()),
        }
    }

    /// What removals have for themselves.
    #[must_use]
    pub fn headroom(&self) -> &Headroom {
        &self.shared.headroom
    }

    /// Whether the disk takes `bytes` more above its reserve, to which belongs what is missing of the headroom. A
    /// system call; for threads that may block.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the file system does not answer.
    pub fn check_disk(&self, bytes: u64) -> Result<(), StoreError> {
        let disk = rustix::fs::statvfs(&self.shared.dir).map_err(|errno| failed(errno.into()))?;
        let reserve = self.shared.reserve.of(disk.f_blocks * disk.f_frsize);
        let kept = reserve.saturating_add(self.headroom().missing());
        if (disk.f_bavail * disk.f_frsize).saturating_sub(kept) < bytes {
            return Err(StoreError::Full { reason: Reason::DiskFull });
        }
        Ok(())
    }

    /// Bytes the disk takes at all, its reserve used up. A system call; for threads that may block.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let disk = rustix::fs::statvfs(&self.shared.dir).map_err(|errno| failed(errno.into()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Why a write of a small body would be refused now; `None` where it would not, or nobody can tell. A system call;
    /// for threads that may block.
    #[must_use]
    pub fn full(&self) -> Option<Reason> {
        // What the index's writer wants to see for one, pages included.
        let wanted = 3 * INLINE_BYTES_MAX;
        let fits = self.check_index(INLINE_BYTES_MAX).and_then(|()| self.check_disk(INLINE_BYTES_MAX));
        match fits.and_then(|()| self.free_bytes()) {
            Err(StoreError::Full { reason }) => Some(reason),
            Ok(free) if free < wanted => Some(Reason::DiskFull),
            Ok(_) | Err(_) => None,
        }
    }

    /// An empty reservation for a blob.
    #[must_use]
    pub fn reservation(&self) -> Reservation {
        Reservation { room: self.clone(), bytes: 0 }
    }
}

/// Bytes set aside for a blob being written; given back on drop.
#[derive(Debug)]
pub struct Reservation {
    room: Room,
    bytes: u64,
}

impl Reservation {
    /// Makes it at least `bytes` in all.
    ///
    /// # Errors
    /// [`StoreError::Full`]; what was reserved stays so.
    pub fn raise_to(&mut self, bytes: u64) -> Result<(), StoreError> {
        let more = bytes.saturating_sub(self.bytes);
        let mut used = self.room.lock();
        self.room.fits(&used, more)?;
        used.staged += more;
        self.bytes += more;
        Ok(())
    }

    /// Turns it into a committed blob of `bytes`.
    pub fn commit(&mut self, bytes: u64) {
        let mut used = self.room.lock();
        used.staged -= std::mem::take(&mut self.bytes);
        used.blobs += bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.lock().staged -= self.bytes;
    }
}

/// Whether the system has no room, or none for us.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An I/O error as a store's: a full disk by its name, anything else as certainly not done.
pub(super) fn failed(error: io::Error) -> StoreError {
    if is_full(&error) {
        return StoreError::Full { reason: Reason::DiskFull };
    }
    StoreError::Failed(Arc::new(error))
}

/// A job that panicked: a bug, and the state of what it did is not known.
#[derive(Debug, thiserror::Error)]
#[error("a disk thread panicked")]
pub(super) struct Panicked;

pub(super) fn panicked() -> StoreError {
    StoreError::Unknown(Arc::new(Panicked) as Cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_count_until_they_are_dropped_or_committed() {
        let room = Room::new(Path::new("/"), Some(100), Reserve::Bytes(0));
        room.set_index(30);
        let mut first = room.reservation();
        first.raise_to(50).expect("fits");
        first.raise_to(20).expect("never shrinks");
        let mut second = room.reservation();
        assert!(matches!(second.raise_to(21), Err(StoreError::Full { reason: Reason::QuotaFull })));
        second.raise_to(20).expect("fits exactly");
        assert!(room.check_index(1).is_err());
        assert_eq!(room.full(), Some(Reason::QuotaFull));
        drop(second);
        first.commit(45);
        assert_eq!(room.used(), Used { blobs: 45, staged: 0, index: 30 });
        room.free_blob(45);
        assert_eq!(room.used().total(), 30);
    }

    #[test]
    fn a_full_disk_is_told_by_its_name() {
        for (errno, full) in [(28, true), (122, true), (5, false), (13, false)] {
            let error = failed(io::Error::from_raw_os_error(errno));
            assert_eq!(matches!(error, StoreError::Full { reason: Reason::DiskFull }), full, "errno {errno}");
        }
    }

    #[test]
    fn a_reserve_of_everything_leaves_no_room() {
        let free = Room::new(Path::new("/"), None, Reserve::Bytes(0));
        assert!(free.check_disk(0).is_ok() && free.full().is_none());
        let full = Room::new(Path::new("/"), None, Reserve::Bytes(u64::MAX));
        assert!(matches!(full.check_disk(1), Err(StoreError::Full { reason: Reason::DiskFull })));
        assert_eq!(full.full(), Some(Reason::DiskFull));
    }
}
