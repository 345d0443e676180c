//! The simulator: a whole shard with its durable executor, in production code, from one seed.
//!
//! Simulated are the device, the blob store, the index, the clock and the scheduler. A run lets clients work, ends
//! the process at some step (a kill, a power cut, a stop), starts the next one on what is left, and asks the oracle
//! whether any answer was impossible. `STRATA_SIM_SEED=N` runs one seed again, `STRATA_SIM_SEEDS=COUNT` more of them.

mod clients;
mod liveness;
mod oracle;
mod runs;
mod world;
