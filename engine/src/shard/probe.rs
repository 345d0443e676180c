//! What a shard's executor needs before its first real file: a decided I/O polling probe, and a way to take a turn.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, Write},
    path::Path,
    rc::Rc,
};

use glommio::io::{BufferedFile, DmaFile};

use super::{ShardId, io_error};
use crate::device::PAGE;

/// Opens a really written and synced file in `dir` as this thread's first one of that disk.
///
/// The executor decides per thread and disk, by reading a block of the first file it opens there, whether reads are
/// polled. A file without blocks on disk (empty, sparse or preallocated) answers that read although the disk has no
/// polled queue, and every later read then fails with EOPNOTSUPP.
///
/// # Errors
/// The directory cannot be written, or does not support direct I/O.
pub(super) async fn settle_polling(dir: &Path, shard: ShardId) -> io::Result<()> {
    let path = dir.join(format!(".polling-probe-{}-{shard}", std::process::id()));
    let settled = async {
        let mut file = File::create(&path)?;
        file.write_all(&[0x5a; PAGE])?;
        file.sync_all()?;
        drop(file);
        let file = DmaFile::open(&path).await.map_err(io_error)?;
        let read = file.read_at_aligned(0, PAGE).await.map_err(io_error)?;
        let whole = read.len() == PAGE && read.iter().all(|byte| *byte == 0x5a);
        drop(read);
        file.close().await.map_err(io_error)?;
        if whole { Ok(()) } else { Err(io::Error::other("the probe file reads back differently")) }
    }
    .await;
    let removed = fs::remove_file(&path);
    settled.and(removed)
}

/// A read that always completes, and only once the executor has looked at its rings.
pub(super) struct IoTurn {
    /// `None` once closed.
    zero: RefCell<Option<Rc<BufferedFile>>>,
}

impl IoTurn {
    pub(super) async fn open() -> io::Result<Self> {
        let zero = BufferedFile::open("/dev/zero").await.map_err(io_error)?;
        Ok(Self { zero: RefCell::new(Some(Rc::new(zero))) })
    }

    pub(super) async fn take(&self) {
        let zero = self.zero.borrow().clone();
        match zero {
            Some(zero) => {
                if let Err(error) = zero.read_at(0, 1).await {
                    // It has made the turn all the same.
                    tracing::debug!(%error, "the read that makes an I/O turn failed");
                }
            }
            None => futures_lite::future::yield_now().await,
        }
    }

    /// Closes the file here and now: dropped, its close would wait for a turn that an ending executor never takes.
    pub(super) async fn close(&self) {
        let zero = self.zero.borrow_mut().take();
        if let Some(Ok(zero)) = zero.map(Rc::try_unwrap)
            && let Err(error) = zero.close().await
        {
            tracing::debug!(%error, "/dev/zero did not close");
        }
    }
}
