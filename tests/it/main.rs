//! Black-box tests: the real binary, real files, real kills.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod client;
mod doors;
mod faults;
mod files;
mod gates;
mod modes;
mod node;
mod readme;
mod startup;
