//! What a durable tier counts: plain values that cross threads.

use crate::reason::ReasonCounts;

/// Counters of a [`DurableTier`](super::DurableTier) since it was opened, and gauges of now.
#[derive(Clone, Debug, Default)]
pub struct TierStats {
    /// Look-ups that found a live object.
    pub hits: u64,
    /// Look-ups that did not, by reason.
    pub misses: ReasonCounts,
    /// Objects committed.
    pub commits: u64,
    /// Of those, with the body in the manifest.
    pub commits_inline: u64,
    /// Body bytes committed.
    pub bytes_committed: u64,
    /// Compare-and-swaps lost to somebody else and tried again.
    pub conflicts: u64,
    /// Writes, purges and touches that failed, by reason.
    pub refusals: ReasonCounts,
    /// Objects deleted.
    pub purges: u64,
    /// Manifests and bodies found damaged.
    pub corrupted: u64,
    /// Blobs that a manifest named and the store did not have when they were opened: replaced meanwhile, or lost.
    pub blobs_missing: u64,
    /// Replaced blobs left to the orphan sweep because too many waited.
    pub replaced_overflow: u64,
    /// What the sweep did.
    pub sweep: SweepStats,
    /// Gauge: replaced blobs that wait for their deletion.
    pub replaced_waiting: u64,
    /// Gauge: blobs being written.
    pub uploads: u64,
    /// Gauge: live purge records.
    pub purge_records: u64,
}

/// What the sweep removed, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepStats {
    /// Laps over all entries and blobs.
    pub laps: u64,
    /// Laps that ended early because a store failed.
    pub failures: u64,
    /// Entries past their time to live.
    pub expired: u64,
    /// Tombstones past theirs.
    pub tombstones: u64,
    /// Entries covered by a purge record.
    pub purged: u64,
    /// Blobs no manifest named.
    pub orphans: u64,
    /// Blobs whose manifest was replaced or removed.
    pub replaced: u64,
    /// Purge records that had nothing left to cover.
    pub purge_records: u64,
}
