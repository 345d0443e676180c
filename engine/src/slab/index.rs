//! From a key to its entry.
//!
//! Owns a table of entry positions, four bytes each and one control byte, placed by the caller's hash; the key is
//! compared in the arena on every match.
//!
//! - INV-INDEX-1: the table is allocated once, for `objects_max`, and never grows: it is at most 7/16 full, and
//!   hashbrown then reuses the places of removed entries by rehashing in place.
//!
//! That costs 5 x 16/7, about 11.4 bytes an object when full, all counted by [`Index::table_bytes`].

use hashbrown::HashTable;

use super::{
    arena::{Arena, At},
    layout::{Head, hash_at},
};

/// Entries by key.
pub(super) struct Index {
    table: HashTable<At>,
    objects_max: usize,
    /// Counts rehashes: a scan position of another epoch says nothing about what was seen.
    epoch: u32,
}

/// Places of a table for `objects`, before it exists.
pub(super) fn buckets_for(objects: usize) -> usize {
    (objects * 2 * 8).div_ceil(7).next_power_of_two().max(16)
}

/// Bytes of memory of that table.
pub(super) fn table_bytes_for(objects: usize) -> usize {
    buckets_for(objects) * (size_of::<At>() + 1) + 64
}

impl Index {
    /// A table for `objects` or, its size being a power of two, somewhat more.
    pub(super) fn new(objects: usize) -> Self {
        let table = HashTable::with_capacity(objects * 2);
        let objects_max = table.capacity() / 2;
        Self { table, objects_max, epoch: 0 }
    }

    /// Entries it takes at most.
    pub(super) fn objects_max(&self) -> usize {
        self.objects_max
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.table.len() >= self.objects_max
    }

    /// The entry of `key`.
    pub(super) fn find(&self, arena: &Arena, hash: u64, key: &[u8]) -> Option<At> {
        let is_it = |&at: &At| {
            hash_at(arena, at) == hash && {
                let head = Head::load(arena, at);
                head.key(arena, at) == key
            }
        };
        self.table.find(place(hash), is_it).copied()
    }

    /// The entry of that hash and version, whatever its key.
    pub(super) fn find_version(&self, arena: &Arena, hash: u64, version: u64) -> Option<At> {
        let is_it = |&at: &At| hash_at(arena, at) == hash && Head::load(arena, at).version == version;
        self.table.find(place(hash), is_it).copied()
    }

    /// Adds an entry whose key is not in the table.
    pub(super) fn insert(&mut self, arena: &Arena, hash: u64, at: At) {
        assert!(!self.is_full(), "the caller makes room (INV-INDEX-1)");
        if self.table.capacity() == self.table.len() {
            self.epoch += 1;
        }
        self.table.insert_unique(place(hash), at, |&at| place(hash_at(arena, at)));
    }

    /// Names the new position of an entry that moved, or of its next version.
    pub(super) fn replace(&mut self, hash: u64, old: At, new: At) {
        *self.table.find_mut(place(hash), |&at| at == old).expect("every entry is indexed") = new;
    }

    pub(super) fn remove(&mut self, hash: u64, old: At) {
        match self.table.find_entry(place(hash), |&at| at == old) {
            Ok(found) => drop(found.remove()),
            Err(_) => unreachable!("every entry is indexed"),
        }
    }

    /// The entry in one of [`Index::buckets`] places. An entry, and its later versions, keep their place within an
    /// epoch.
    pub(super) fn bucket(&self, bucket: usize) -> Option<At> {
        self.table.get_bucket(bucket).copied()
    }

    pub(super) fn buckets(&self) -> usize {
        self.table.num_buckets()
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Bytes of memory of the table.
    pub(super) fn table_bytes(&self) -> usize {
        self.table.allocation_size()
    }
}

/// The table takes its place from the low bits; in one shard those may be the same for all keys, since shards are
/// chosen by the same hash. A folded multiply spreads every bit.
fn place(hash: u64) -> u64 {
    let product = u128::from(hash ^ 0x243f_6a88_85a3_08d3) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
    (product >> 64) as u64 ^ product as u64
}
