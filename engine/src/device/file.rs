//! A flash file on a real disk, through glommio's direct I/O.
//!
//! Owns opening (preallocated, O_DIRECT or refused), exact lengths, and the translation of glommio's errors. Only
//! glommio's own buffers may cross its I/O calls, and they are counted without atomics, so every byte is copied
//! between them and our [`Block`]s here; none escapes this file (INV-7). The shard's own ring replaces this device
//! for speed; the contract stays.

use std::{cell::Cell, io, path::Path, rc::Rc, sync::Arc};

use glommio::{
    GlommioError,
    io::{DmaFile, OpenOptions},
    sync::Semaphore,
};
use rustix::fs::{FallocateFlags, Mode, OFlags};

use super::{Block, BlockPool, Device, DeviceError, IO_MAX, PAGE};

/// Reads and writes in flight on one file. At the bound an operation waits for another to complete.
pub const IO_IN_FLIGHT_MAX: u64 = 128;

/// Unused buffers kept by one file, in bytes.
const POOL_BYTES_MAX: usize = 8 << 20;

/// A preallocated file opened with O_DIRECT. Belongs to the glommio executor it was opened on.
pub struct FileDevice {
    file: Rc<DmaFile>,
    name: String,
    len: u64,
    pool: BlockPool,
    turns: Rc<Semaphore>,
    closed: Cell<bool>,
}

impl FileDevice {
    /// Opens `path`, or creates it with `len_if_new` bytes (rounded down to whole pages), really allocated. An
    /// existing file keeps its length and content, whatever they are: [`FileDevice::len`] says what was found.
    /// Blocks for the system calls of creation; called at start, on the executor that will use the file.
    ///
    /// # Errors
    /// The disk is full, the file system refuses direct I/O, or any other failure; the path is named.
    pub async fn open(path: &Path, len_if_new: u64) -> Result<Self, DeviceError> {
        let name = path.display().to_string();
        let fail = |source: io::Error| DeviceError::new("open", &name, 0, source);
        let found = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => 0,
            Err(other) => return Err(fail(other)),
        };
        // A file without one whole page is a creation that was interrupted: nothing was ever kept in it.
        let is_new = found < PAGE as u64;
        if is_new {
            create(path, len_if_new / PAGE as u64 * PAGE as u64).map_err(fail)?;
        }
        if let Err(refused) = refuse_buffered(path) {
            if is_new {
                drop(std::fs::remove_file(path));
            }
            return Err(fail(refused));
        }
        let file = OpenOptions::new().read(true).write(true).dma_open(path).await;
        let file = file.map_err(|refused| fail(cause(refused)))?;
        let len = file.file_size().await.map_err(|refused| fail(cause(refused)))? / PAGE as u64 * PAGE as u64;
        Ok(Self {
            file: Rc::new(file),
            name,
            len,
            pool: BlockPool::new(POOL_BYTES_MAX),
            turns: Rc::new(Semaphore::new(IO_IN_FLIGHT_MAX)),
            closed: Cell::new(false),
        })
    }

    /// Closes the file once nobody uses it any more. Every read and write must have completed.
    ///
    /// # Errors
    /// The system call failed.
    pub async fn close(&self) -> Result<(), DeviceError> {
        if self.closed.replace(true) {
            return Ok(());
        }
        let closed = self.file.clone().close_rc().await;
        closed.map(drop).map_err(|refused| DeviceError::new("close", &self.name, 0, cause(refused)))
    }

    /// The pool, for accounting.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    fn fail(&self, operation: &'static str, offset: u64, source: io::Error) -> DeviceError {
        DeviceError::new(operation, &self.name, offset, source)
    }
}

/// Makes the file: the first page is really written and synced before the rest is allocated, because glommio
/// probes a device by reading that page, and a page that was only allocated makes the probe lie.
fn create(path: &Path, len: u64) -> io::Result<()> {
    use std::io::Write;
    if len < PAGE as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a flash file has at least one page"));
    }
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let made = file
        .write_all(&[0; PAGE])
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len)?))
        .and_then(|()| file.sync_all());
    if made.is_err() {
        // Best effort: what matters is the first error. A leftover is recognised by its length.
        drop(std::fs::remove_file(path));
    }
    made
}

/// glommio quietly falls back to buffered I/O on tmpfs; a cache of the page cache is not what anyone asked for.
fn refuse_buffered(path: &Path) -> io::Result<()> {
    match rustix::fs::open(path, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INVAL) => return Err(no_direct_io()),
        Err(other) => return Err(other.into()),
    }
    refuse_memory(path)
}

/// Refuses files and folders that are kept in memory: recent kernels let tmpfs accept the flag for direct I/O without
/// meaning it.
///
/// # Errors
/// `path` is on such a file system, which is then [`io::ErrorKind::Unsupported`], or cannot be asked.
pub fn refuse_memory(path: &Path) -> io::Result<()> {
    match rustix::fs::statfs(path)?.f_type {
        libc::TMPFS_MAGIC => Err(no_direct_io()),
        _ => Ok(()),
    }
}

fn no_direct_io() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this file system does not support direct I/O (O_DIRECT); put the file on ext4, xfs or btrfs, or switch the flash tier off",
    )
}

/// The system's own error, errno included: glommio's conversion loses it.
fn cause<T>(refused: GlommioError<T>) -> io::Error {
    match refused {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
        other => io::Error::other(format!("{other:?}")),
    }
}

impl Device for FileDevice {
    fn len(&self) -> u64 {
        self.len
    }

    fn block(&self, len: usize) -> Block {
        self.pool.block(len)
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Block, DeviceError> {
        assert!(offset.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE) && len <= IO_MAX);
        let _turn = self.turns.acquire_permit(1).await.map_err(|refused| self.fail("read", offset, cause(refused)))?;
        let read = self.file.read_at_aligned(offset, len).await;
        let read = read.map_err(|refused| self.fail("read", offset, cause(refused)))?;
        if read.len() < len {
            let short = format!("{} of {len} bytes", read.len());
            return Err(self.fail("read", offset, io::Error::new(io::ErrorKind::UnexpectedEof, short)));
        }
        let mut block = self.pool.block(len);
        block.copy_from_slice(&read[..len]);
        Ok(block)
    }

    async fn write(&self, offset: u64, block: Arc<Block>) -> Result<(), DeviceError> {
        assert!(offset.is_multiple_of(PAGE as u64));
        let _turn = self.turns.acquire_permit(1).await.map_err(|refused| self.fail("write", offset, cause(refused)))?;
        let mut buffer = self.file.alloc_dma_buffer(block.len());
        buffer.as_bytes_mut()[..block.len()].copy_from_slice(&block);
        let written = self.file.write_at(buffer, offset).await;
        match written {
            Ok(written) if written == block.len() => Ok(()),
            // The kernel reports the full disk only to the write after the short one.
            Ok(written) => Err(DeviceError::NoSpace {
                device: self.name.clone(),
                source: io::Error::new(io::ErrorKind::WriteZero, format!("{written} of {} bytes", block.len())),
            }),
            Err(refused) => Err(self.fail("write", offset, cause(refused))),
        }
    }

    async fn sync(&self) -> Result<(), DeviceError> {
        self.file.fdatasync().await.map_err(|refused| self.fail("sync", 0, cause(refused)))
    }

    fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder beside the test binary: on a disk, where /tmp may be in memory.
    fn folder() -> tempfile::TempDir {
        let binary = std::env::current_exe().expect("a test binary");
        tempfile::tempdir_in(binary.parent().expect("in a folder")).expect("a folder on a disk")
    }

    fn on_executor<T: 'static>(test: impl Future<Output = T> + 'static) -> T {
        glommio::LocalExecutor::default().run(test)
    }

    #[test]
    fn what_was_written_is_read_back_whole_and_an_existing_file_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("flash");
        on_executor(async move {
            let device = FileDevice::open(&path, (4 << 20) + 5).await.expect("created");
            assert_eq!(device.len(), 4 << 20);
            use std::os::unix::fs::MetadataExt;
            assert_eq!(std::fs::metadata(&path).expect("there").blocks() * 512, 4 << 20, "really allocated");
            let mut block = device.block(IO_MAX);
            block.iter_mut().enumerate().for_each(|(i, b)| *b = (i % 251) as u8);
            let block = Arc::new(block);
            device.write(1 << 20, block.clone()).await.expect("written");
            device.sync().await.expect("synced");
            let read = device.read((1 << 20) + PAGE as u64, 3 * PAGE).await.expect("read");
            assert_eq!(&read[..], &block[PAGE..4 * PAGE]);
            let beyond = device.read((4 << 20) - PAGE as u64, 2 * PAGE).await.expect_err("past the end");
            assert!(beyond.to_string().contains("flash"), "{beyond}");
            device.close().await.expect("closed");

            let again = FileDevice::open(&path, 1 << 20).await.expect("opened");
            assert_eq!(again.len(), 4 << 20, "an existing file keeps its length");
            let read = again.read(1 << 20, IO_MAX).await.expect("read");
            assert_eq!(read[..], block[..]);
            again.close().await.expect("closed");
        });
    }

    #[test]
    fn a_disk_without_room_and_a_file_system_without_direct_io_are_clear_errors() {
        let folder = folder();
        let path = folder.path().join("flash");
        let memory = Path::new("/dev/shm").join(format!("strata-test-{}", std::process::id()));
        on_executor(async move {
            match FileDevice::open(&path, 1 << 55).await.err() {
                // ENOSPC, or EFBIG where the file system's own limit comes first.
                Some(refused) => assert!(refused.to_string().contains(&path.display().to_string()), "{refused}"),
                None => panic!("32 PiB were allocated"),
            }
            assert!(!path.exists(), "nothing is left behind");
            let refused = FileDevice::open(&memory, 1 << 20).await.err().expect("tmpfs has no direct I/O");
            assert!(refused.to_string().contains("O_DIRECT"), "{refused}");
            assert!(!memory.exists(), "nothing is left behind");
        });
    }
}
