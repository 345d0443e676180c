//! What the node asks of a shard besides objects: a change of policy, and figures.

use engine::{log, mailbox::Reply, slab};

use crate::{
    namespace::{Held, NamespaceSnapshot},
    policy::VersionedPolicy,
    server::stats::DoorSnapshot,
    stats::StatsSnapshot,
};

/// Commands a shard holds unread at most. Each is answered within a turn of the shard, and the admin door bounds
/// its own requests far below this.
pub(super) const COMMANDS_MAX: usize = 256;

/// A message to a shard. Obeyed on the shard's thread, without waiting for anything.
pub(super) enum Command {
    /// Put a policy in force.
    Policy(VersionedPolicy, Reply<()>),
    /// Count a purge that the admin door made in a namespace.
    Purged(Box<str>),
    /// Tell what was counted.
    Report(Reply<Box<ShardReport>>),
}

/// Everything one shard counts.
#[derive(Clone, Debug)]
pub(super) struct ShardReport {
    /// Tiers, as `MultiTier` sees them.
    pub(super) tiers: StatsSnapshot,
    /// By namespace.
    pub(super) namespaces: Vec<NamespaceSnapshot>,
    /// The HTTP door.
    pub(super) door: DoorSnapshot,
    /// Connections open now.
    pub(super) connections: u64,
    /// Requests under way now.
    pub(super) requests_in_flight: u64,
    /// Bytes that bodies under way are charged.
    pub(super) inflight_bytes: u64,
    /// L0's own figures.
    pub(super) slab: slab::Stats,
    /// What L0 holds of each namespace, in no order.
    pub(super) slab_held: Vec<(Box<str>, Held)>,
    /// L2's own figures, if there is an L2.
    pub(super) log: Option<log::Stats>,
    /// Why L2 is poisoned, if it is.
    pub(super) log_poisoned: Option<String>,
    /// Tasks that ended by a panic.
    pub(super) task_panics: u64,
}
