//! What is kept where: gates, promotion and the tiers of a namespace. Pure: no I/O, no clock.
//!
//! Owns [`Effective`], the policy of one namespace with every default filled in, which is all that the data path
//! reads. A policy is one immutable, versioned value; shards swap it whole.

use crate::cache::Tier;

/// Whether an object read from a lower tier is copied into a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// Not at all; costs nothing.
    Never,
    /// Tee the stream, and commit only when the whole verified body has passed.
    OnStreamCommitAtFinish,
}

/// When an object is written to flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Fill {
    /// With the write.
    OnWrite,
    /// When it leaves L0.
    OnEvict,
}

/// In which order L1 and L2 are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupOrder {
    /// L0, L1, L2, L3.
    L1First,
    /// L0, L2, L1, L3 when L2's RAM index holds the key.
    L2First,
}

/// What acknowledges a write of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// L3: what was acknowledged survives a crash.
    Durable,
    /// L0 or L2: a cache.
    CacheOnly,
}

/// The policy of one namespace with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// What acknowledges a write.
    pub mode: Mode,
    /// Tiers the namespace uses, indexed by [`Tier`].
    pub tiers: [bool; 4],
    /// Largest admitted body in bytes per tier, indexed by [`Tier`]; `None` is unlimited. An object exactly at its
    /// gate is admitted.
    pub gates: [Option<u64>; 4],
    /// Promotion into L0, L1 and L2, indexed by [`Tier`].
    pub promote: [Promotion; 3],
    /// When L2 is filled with objects of at most the L0 gate; `None`: on write in durable namespaces, on eviction in
    /// cache-only ones. Larger objects are always written at once.
    pub l2_fill: Option<L2Fill>,
    /// Order of look-ups.
    pub lookup_order: LookupOrder,
    /// Time to live when the writer gives none, milliseconds; `None`: for ever.
    pub ttl_default_ms: Option<u64>,
    /// Cap on every time to live, milliseconds.
    pub ttl_max_ms: Option<u64>,
    /// Largest body accepted at all, in bytes; `None`: the node's `body_bytes_max` alone.
    pub body_bytes_max: Option<u64>,
}

impl Effective {
    /// Whether `tier` takes part and admits a body of `length` bytes (of so many so far, in mid-stream).
    #[must_use]
    pub fn admits(&self, tier: Tier, length: u64) -> bool {
        self.tiers[tier as usize] && self.gates[tier as usize].is_none_or(|gate| length <= gate)
    }

    /// When a body of `length` bytes goes to flash.
    #[must_use]
    pub fn l2_fill(&self, length: u64) -> L2Fill {
        if !self.admits(Tier::L0, length) {
            return L2Fill::OnWrite;
        }
        self.l2_fill.unwrap_or(match self.mode {
            Mode::Durable => L2Fill::OnWrite,
            Mode::CacheOnly => L2Fill::OnEvict,
        })
    }
}
