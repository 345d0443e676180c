//! The tiers, and what stands behind them.
//!
//! `ram` and `flash` are the shard's own tiers; `multi_tier` joins all four. `traits` are the contracts of durable
//! storage; `durable` makes a tier of any two that keep them. `bridge` carries any `Storage` across threads. `memory`
//! holds the models and doubles.

pub mod bridge;
pub mod durable;
pub mod flash;
pub mod memory;
pub mod multi_tier;
pub mod ram;
pub mod traits;
