//! L2's bytes (being written).
pub mod format;
