//! Mechanism for Strata: threads, memory, bytes on flash, sockets.
//!
//! In reading order:
//!
//! - [`clock`], [`rt`]: the seams to time and to the scheduler; everything above is generic over them.
//! - [`mailbox`]: the one way a value crosses threads: bounded, by credits, woken by [`std::task::Waker`].
//! - [`shard`], [`mesh`]: pinned executors, and the links between them.
//! - [`net`]: sockets of a shard.
//! - [`device`]: the seam to a flash file.
//! - [`slab`]: L0's bytes. [`log`]: L2's bytes.
//!
//! Absent on purpose: HTTP, policy, tiers, namespaces. A key is a byte string with a 64-bit hash, a body is
//! [`bytes::Bytes`], and what either means is decided by the crate above. Nothing outside this crate names
//! glommio.

pub mod clock;
pub mod device;
pub mod log;
pub mod mailbox;
pub mod mesh;
pub mod net;
pub mod rt;
pub mod shard;
pub mod slab;
