//! The seam to one flash file: aligned reads and writes at offsets, and a flush.
//!
//! Owns the [`Device`] trait, the buffers that touch a device ([`Block`], from a [`BlockPool`]), the file on a real
//! disk ([`file`](mod@file)) and the simulated one ([`sim`]). What we believe of the medium, and what the simulated one
//! therefore does (docs/03-faults.md):
//!
//! - A write is atomic per 4,096-byte page at best; a crash leaves any subset of the pages of writes not yet
//!   flushed. Nothing is ordered before [`Device::sync`] returns.
//! - A read may return anything: bits rot, writes get lost or land elsewhere. Callers check every byte they use.
//! - After a failed or short write the device is poisoned by its owner: no write is tried again.
//!
//! INV-7: the buffer of an operation belongs to the device until the operation is complete. Dropping the future of
//! a read or write gives up its result, never its buffer; a cancelled write may still reach the medium.

mod block;
pub mod file;
pub mod sim;

use std::{io, sync::Arc};

pub use block::{Block, BlockPool};

/// Offsets, lengths and buffers of device I/O are multiples of this many bytes.
pub const PAGE: usize = 4096;

/// The largest single I/O, in bytes. Larger transfers are cut by the caller.
pub const IO_MAX: usize = 512 << 10;

/// What a device refuses or reports. Never a statement about the bytes read.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No room on the medium (ENOSPC, EDQUOT) or a short write.
    #[error("no space left on {device}: {source}")]
    NoSpace {
        /// The device's name for people: its path.
        device: String,
        /// What the system said.
        source: io::Error,
    },
    /// Any other failure of the operation.
    #[error("{operation} of {device} at {offset} failed: {source}")]
    Io {
        /// `open`, `read`, `write` or `sync`.
        operation: &'static str,
        /// The device's name for people: its path.
        device: String,
        /// Byte offset of the operation.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

impl DeviceError {
    /// Sorts a system error into the two kinds callers tell apart.
    pub(crate) fn new(operation: &'static str, device: &str, offset: u64, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoSpace { device: device.into(), source },
            _ => Self::Io { operation, device: device.into(), offset, source },
        }
    }
}

/// One preallocated flash file, owned by one shard.
#[expect(clippy::len_without_is_empty, reason = "a device has a capacity, it is never empty")]
pub trait Device: 'static {
    /// Its fixed length in bytes, a multiple of [`PAGE`].
    fn len(&self) -> u64;

    /// A buffer of `len` bytes (a multiple of [`PAGE`], at most [`IO_MAX`]), zeroed or not, from the device's pool.
    fn block(&self, len: usize) -> Block;

    /// Reads `len` bytes at `offset`. The block is exactly `len` long.
    ///
    /// # Errors
    /// The device failed, or the file ends before `offset + len`.
    async fn read(&self, offset: u64, len: usize) -> Result<Block, DeviceError>;

    /// Writes the whole block at `offset`. The block is shared, so that its owner can go on reading what is not on
    /// flash yet; it returns to its pool when the last holder lets go. Visible to later reads at once, durable
    /// after [`Device::sync`].
    ///
    /// # Errors
    /// The device failed or wrote less; the region's content is then unknown.
    async fn write(&self, offset: u64, block: Arc<Block>) -> Result<(), DeviceError>;

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// The device failed; what was written since the last success may be lost.
    async fn sync(&self) -> Result<(), DeviceError>;

    /// Its name for people: the path.
    fn name(&self) -> &str;
}
