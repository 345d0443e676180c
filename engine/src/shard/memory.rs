//! How much buffer memory each executor may register with the kernel, and whether it did.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Each executor registers its buffers with this many rings, and each time counts against the limit.
const RINGS: u64 = 3;

/// What an executor takes at least, whatever it is told.
const IO_MEMORY_MIN: u64 = 64 << 10;

/// What an executor gets at most: more buffers than this are never in flight on one shard.
const IO_MEMORY_MAX: u64 = 10 << 20;

/// Bytes of registered buffers for each of `shards` executors under a RLIMIT_MEMLOCK of `limit` bytes (`None`: no
/// limit). Half of the limit is left for other rings of the same user.
#[must_use]
pub fn io_memory(limit: Option<u64>, shards: usize) -> usize {
    let shares = RINGS * shards.max(1) as u64;
    let bytes = limit.map_or(IO_MEMORY_MAX, |limit| (limit / 2 / shares).clamp(IO_MEMORY_MIN, IO_MEMORY_MAX));
    usize::try_from(bytes / 4096 * 4096).unwrap_or(usize::MAX)
}

/// Whether the executors' buffers are registered with the kernel. Unregistered, file I/O works at up to twice the
/// CPU per operation; nothing else changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferReport {
    /// Bytes of buffers per shard.
    pub io_memory: usize,
    /// RLIMIT_MEMLOCK in bytes; `None`: unlimited.
    pub limit: Option<u64>,
    /// The limit has room for the buffers of all shards. (A process with CAP_IPC_LOCK may go beyond it.)
    pub expected: bool,
    /// What the kernel accounts says; `None` when it cannot be read.
    pub registered: Option<bool>,
}

/// A measurement around the start of executors.
pub(super) struct Measure {
    io_memory: usize,
    limit: Option<u64>,
    shards: usize,
    pinned_before: Option<u64>,
}

impl Measure {
    pub(super) fn start(shards: usize) -> Self {
        let limit = getrlimit(Resource::Memlock).current;
        Self { io_memory: io_memory(limit, shards), limit, shards, pinned_before: pinned() }
    }

    pub(super) fn io_memory(&self) -> usize {
        self.io_memory
    }

    pub(super) fn finish(&self) -> BufferReport {
        let needed = RINGS * self.shards as u64 * self.io_memory as u64;
        let grown = pinned().zip(self.pinned_before).map(|(after, before)| after.saturating_sub(before));
        BufferReport {
            io_memory: self.io_memory,
            limit: self.limit,
            expected: self.limit.is_none_or(|limit| needed <= limit),
            registered: grown.map(|grown| grown >= needed),
        }
    }
}

/// Bytes of this process's memory that the kernel has pinned.
fn pinned() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_all_rings_of_all_shards_fit_half_the_limit() {
        for (limit, shards) in [(8 << 20, 1), (8 << 20, 2), (8 << 20, 16), (1 << 30, 64), (64 << 20, 4)] {
            let bytes = io_memory(Some(limit), shards) as u64;
            assert!(bytes * RINGS * shards as u64 <= limit / 2 && bytes.is_multiple_of(4096) && bytes >= IO_MEMORY_MIN);
        }
        assert_eq!(io_memory(None, 2) as u64, IO_MEMORY_MAX);
        assert_eq!(io_memory(Some(u64::MAX), 2) as u64, IO_MEMORY_MAX);
        // Too little for all: the least an executor can have, and `expected` says so.
        assert_eq!(io_memory(Some(1 << 20), 64) as u64, IO_MEMORY_MIN);
    }
}
