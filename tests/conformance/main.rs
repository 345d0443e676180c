//! One suite over every `Storage`, every `BlobStore` and every `IndexStore`, doubles included; and beside it the
//! tests of what only real stores have: crashes, damage, full disks, formats.

mod bridge;
mod disk;
mod durable;
mod embedded;
mod flash;
mod local;
mod memory;
mod multi_tier;
mod network;
mod planted;
mod redb;
mod redb_faults;
mod storage;
mod stores;
mod support;
mod tiers;
