//! The tiers, and what stands behind them.
//!
//! `ram` and `flash` are the shard's own tiers; `multi_tier` joins all four. `traits` are the contracts of durable
//! storage; `durable` makes a tier of any two that keep them, `network` is the shared cache's place. `bridge` carries any
//! `Storage` across threads, `executor` is such a thread. `memory` holds the models and doubles.

pub mod bridge;
pub mod durable;
pub mod executor;
pub mod flash;
pub mod memory;
pub mod multi_tier;
pub mod network;
pub mod ram;
pub mod traits;
