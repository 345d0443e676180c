//! The tiers, and what stands behind them.
//!
//! `multi_tier` joins the tiers of a shard. `traits` are the contracts of durable storage; `durable` makes a tier of
//! any two that keep them. `memory` holds the models and doubles. `bridge` carries any `Storage` across threads.

pub mod bridge;
pub mod durable;
pub mod memory;
pub mod multi_tier;
pub mod ram;
pub mod traits;
