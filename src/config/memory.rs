//! Where `memory_max` goes: a sum, worked out once at start (INV-4).
//!
//! Owns the constants that stand for memory which no setting names. L0 gets what is left; if that is less than
//! [`L0_SHARD_BYTES_MIN`] a shard, the node does not start and the sum is the explanation.

use std::fmt;

use crate::human::about_bytes;

/// The process without shards: code, stacks of the executor threads, tokio, the allocator's slack.
pub const BASE_BYTES: u64 = 24 << 20;

/// One shard's thread and ring, its mailboxes, tables of fills and namespaces.
pub const SHARD_BASE_BYTES: u64 = 6 << 20;

/// One connection: its task and its buffers, beside the bodies and the long heads that are charged as in flight.
/// Measured: 17 KiB when new, 19 after a request; after an upload its read buffer has grown from 8 to 16.
pub const CONNECTION_BYTES: u64 = 32 << 10;

/// RAM of the flash index for one object, in bytes.
pub const L2_INDEX_OBJECT_BYTES: u64 = 16;

/// Pages that reclaim and recovery read and write on flash, per shard, in bytes. What requests read is in flight.
pub const L2_IO_BYTES: u64 = 4 << 20;

/// Bodies streamed, of what is in flight, in eighths.
const BODIES_EIGHTHS: u64 = 3;

/// What waits for tiers behind a write or read, of what is in flight, in eighths.
const LANES_EIGHTHS: u64 = 4;

/// What left L0 and waits for flash, of what is in flight, in eighths.
const DEMOTIONS_EIGHTHS: u64 = 1;

const _: () = assert!(BODIES_EIGHTHS + LANES_EIGHTHS + DEMOTIONS_EIGHTHS == 8);

/// Bytes in flight a shard needs so that its door can stream `bodies` bytes of bodies.
pub(super) fn inflight_bytes_for(bodies: u64) -> u64 {
    bodies.div_ceil(BODIES_EIGHTHS) * 8
}

/// The least that is worth calling L0, per shard, in bytes.
pub const L0_SHARD_BYTES_MIN: u64 = 4 << 20;

/// Where `memory_max` goes. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The whole.
    pub memory_max: u64,
    /// Shards that the per-shard parts are for.
    pub shards: u64,
    /// Connections of one shard.
    pub connections_max_per_shard: u64,
    /// The process itself, shards' threads included.
    pub base: u64,
    /// Buffers that one shard's executor registers with the kernel, by RLIMIT_MEMLOCK.
    pub registered_per_shard: u64,
    /// Pages of the embedded index (redb).
    pub index_cache: u64,
    /// Buffers of one shard's connections.
    pub connections_per_shard: u64,
    /// Bodies in flight, one shard's part.
    pub inflight_bytes_per_shard: u64,
    /// What is not on flash yet, one shard.
    pub l2_write_buffer_per_shard: u64,
    /// Pages on their way from and to flash, one shard.
    pub l2_io_bytes_per_shard: u64,
    /// The flash index of one shard.
    pub l2_index_bytes_per_shard: u64,
    /// What is left for L0 of one shard: arena and its metadata. 0 when nothing is.
    pub l0_bytes_per_shard: u64,
}

/// What a plan is made from, in bytes unless named otherwise; whole node unless named otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    pub(super) memory_max: u64,
    pub(super) shards: u64,
    pub(super) registered_bytes_per_shard: u64,
    pub(super) index_cache: u64,
    pub(super) connections_max_per_shard: u64,
    pub(super) inflight_bytes: u64,
    pub(super) write_buffer_bytes_per_shard: u64,
    pub(super) l2_bytes: u64,
    pub(super) object_bytes_mean: u64,
}

impl MemoryPlan {
    pub(super) fn new(demand: &Demand) -> Self {
        let shards = demand.shards.max(1);
        let per_shard = |bytes: u64| bytes.div_ceil(shards);
        let mut plan = Self {
            memory_max: demand.memory_max,
            shards,
            connections_max_per_shard: demand.connections_max_per_shard,
            base: BASE_BYTES.saturating_add(SHARD_BASE_BYTES.saturating_mul(shards)),
            registered_per_shard: demand.registered_bytes_per_shard,
            index_cache: demand.index_cache,
            connections_per_shard: demand.connections_max_per_shard.saturating_mul(CONNECTION_BYTES),
            inflight_bytes_per_shard: per_shard(demand.inflight_bytes),
            l2_write_buffer_per_shard: if demand.l2_bytes == 0 { 0 } else { demand.write_buffer_bytes_per_shard },
            l2_io_bytes_per_shard: if demand.l2_bytes == 0 { 0 } else { L2_IO_BYTES },
            l2_index_bytes_per_shard: per_shard(index_bytes(demand.l2_bytes, demand.object_bytes_mean)),
            l0_bytes_per_shard: 0,
        };
        plan.l0_bytes_per_shard = demand.memory_max.saturating_sub(plan.reserved()) / shards;
        plan
    }

    /// Everything but L0, whole node, in bytes.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        let per_shard = [
            self.registered_per_shard,
            self.connections_per_shard,
            self.inflight_bytes_per_shard,
            self.l2_write_buffer_per_shard,
            self.l2_io_bytes_per_shard,
            self.l2_index_bytes_per_shard,
        ];
        let shards = per_shard.iter().fold(0u64, |sum, part| sum.saturating_add(part.saturating_mul(self.shards)));
        self.base.saturating_add(self.index_cache).saturating_add(shards)
    }

    /// Bodies that one shard's door streams, in bytes.
    #[must_use]
    pub fn bodies_per_shard(&self) -> u64 {
        self.inflight_bytes_per_shard / 8 * BODIES_EIGHTHS
    }

    /// What may wait on one shard for tiers behind a write or read, in bytes.
    #[must_use]
    pub fn lanes_per_shard(&self) -> u64 {
        self.inflight_bytes_per_shard / 8 * LANES_EIGHTHS
    }

    /// What left one shard's L0 and may wait for flash, in bytes.
    #[must_use]
    pub fn demotions_per_shard(&self) -> u64 {
        self.inflight_bytes_per_shard / 8 * DEMOTIONS_EIGHTHS
    }

    /// Whether every shard's L0 is at least [`L0_SHARD_BYTES_MIN`].
    #[must_use]
    pub fn fits(&self) -> bool {
        self.l0_bytes_per_shard >= L0_SHARD_BYTES_MIN
    }

    /// The smallest `memory_max` with which the other parts as they are would fit, in bytes.
    #[must_use]
    pub fn memory_max_min(&self) -> u64 {
        self.reserved().saturating_add(L0_SHARD_BYTES_MIN.saturating_mul(self.shards))
    }
}

/// RAM of the flash index for `l2_bytes`, in bytes.
pub(super) fn index_bytes(l2_bytes: u64, object_bytes_mean: u64) -> u64 {
    (l2_bytes / object_bytes_mean.max(1)).saturating_mul(L2_INDEX_OBJECT_BYTES)
}

/// The sum as a small table, each part with the setting that moves it.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards = self.shards;
        writeln!(f, "  {:<24}{:>10}", "memory_max", about_bytes(self.memory_max))?;
        let mut row =
            |what: &str, bytes: u64, from: &str| writeln!(f, "  {what:<24}{:>10}  {from}", about_bytes(bytes));
        let each = |part: u64| part.saturating_mul(shards);
        row("- process and threads", self.base, &format!("{shards} shards"))?;
        row("- registered buffers", each(self.registered_per_shard), "by RLIMIT_MEMLOCK")?;
        row("- index pages", self.index_cache, "l3.index_cache_bytes")?;
        let connections = format!("{shards} x {} limits.connections_max", self.connections_max_per_shard);
        row("- connections", each(self.connections_per_shard), &connections)?;
        row("- bodies in flight", each(self.inflight_bytes_per_shard), "limits.inflight_bytes")?;
        row("- flash write buffers", each(self.l2_write_buffer_per_shard), "l2.write_buffer_bytes")?;
        row("- flash pages in flight", each(self.l2_io_bytes_per_shard), "none with l2_bytes = 0")?;
        row("- flash index", each(self.l2_index_bytes_per_shard), "16 B x l2_bytes / l2.object_bytes_mean")?;
        let left = self.memory_max.saturating_sub(self.reserved());
        let least = about_bytes(L0_SHARD_BYTES_MIN.saturating_mul(shards));
        write!(f, "  {:<24}{:>10}  at least {least}", "= L0", about_bytes(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand {
        memory_max: 1 << 30,
        shards: 4,
        registered_bytes_per_shard: 1 << 20,
        index_cache: 32 << 20,
        connections_max_per_shard: 1024,
        inflight_bytes: 128 << 20,
        write_buffer_bytes_per_shard: 4 << 20,
        l2_bytes: 10 << 30,
        object_bytes_mean: 4096,
    };

    #[test]
    fn the_parts_add_up_to_the_whole() {
        for shards in [1, 3, 4, 7] {
            let plan = MemoryPlan::new(&Demand { shards, ..DEMAND });
            let sum = plan.reserved() + plan.l0_bytes_per_shard * shards;
            assert!(sum <= plan.memory_max && plan.memory_max - sum < shards, "{plan}");
            assert!(plan.fits());
        }
        let plan = MemoryPlan::new(&DEMAND);
        assert_eq!(plan.l2_index_bytes_per_shard, 10 << 20, "16 bytes for every 4 KiB of 2.5 GiB");
        assert_eq!(plan.base, 48 << 20);
        let without_flash = MemoryPlan::new(&Demand { l2_bytes: 0, ..DEMAND });
        assert_eq!((without_flash.l2_index_bytes_per_shard, without_flash.l2_write_buffer_per_shard), (0, 0));
    }

    #[test]
    fn the_least_memory_fits_and_one_byte_less_does_not() {
        let least = MemoryPlan::new(&DEMAND).memory_max_min();
        assert!(MemoryPlan::new(&Demand { memory_max: least, ..DEMAND }).fits());
        assert!(!MemoryPlan::new(&Demand { memory_max: least - 1, ..DEMAND }).fits());
        let absurd = Demand { shards: u64::MAX, l2_bytes: u64::MAX, object_bytes_mean: 0, ..DEMAND };
        assert!(!MemoryPlan::new(&absurd).fits());
    }

    #[test]
    fn the_table_names_the_settings() {
        let table = MemoryPlan::new(&DEMAND).to_string();
        for part in ["1.00 GiB", "4 x 1024 limits.connections_max", "- flash index", "40.0 MiB", "= L0", "16.0 MiB"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }
}
