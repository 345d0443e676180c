//! Strata: a cache node with four tiers behind one key.
//!
//! In reading order:
//!
//! - [`reason`]: why something was not done; [`cache`]: what a tier is; [`version`]: the order of writes.
//! - [`policy`]: what is kept where. [`human`]: how people write sizes and durations.
//! - [`namespace`]: which namespaces exist, and what is counted for each.
//! - [`config`]: every knob. [`datadir`]: who owns the data directory. [`doctor`]: whether the machine is fit.
//!   [`cli`]: flags and subcommands.
//! - [`storage`]: the tiers, and `MultiTier` that joins them. [`stats`]: what is counted there.
//! - [`protocol`]: what requests mean on the wire. [`server`]: the doors that answer them.
//! - [`node`]: the concrete parts, and the order they start and stop in.
//! - [`node`]: the concrete parts, and the order they start and stop in.
//! - [`tokio_rt`]: the scheduler of the executor threads.

pub mod cache;
pub mod cli;
pub mod config;
pub mod datadir;
pub mod doctor;
pub mod human;
pub mod namespace;
pub mod node;
pub mod policy;
pub mod protocol;
pub mod reason;
pub mod server;
pub mod stats;
pub mod storage;
pub mod tokio_rt;
pub mod version;
