//! Black-box tests: the real binary, real files, real kills.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod client;
mod disk;
mod doors;
mod faults;
mod figures;
mod files;
mod gates;
mod l2_fails;
mod lag;
mod memory;
mod modes;
mod node;
mod readme;
mod restarts;
mod startup;
