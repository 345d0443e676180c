//! The rows of the small tables. Little endian, except in keys, where big endian keeps the order.
//!
//! redb verifies its pages only in a repair, so each row begins with a CRC-32 of its key and of what follows: a purge
//! record or a counter that is read wrong would bring back what is dead (INV-2).
//!
//! ```text
//! meta      "counters"             crc (4), id of the file (8), objects (8), tombstones (8), bytes (8),
//!                                  bytes inline (8), changed (8), newest (8)
//! meta      namespaces             spaces.rs
//! changes   sequence (u64)         crc (4), version (8), live (1), path
//! purges    kind (1), text         crc (4), version (8)
//! ```
//!
//! Kinds of purges: 0 all, 1 namespace, 2 key, 3 prefix, 4 tag (namespace, `/`, tag).

use bytes::Bytes;
use redb::{ReadableTable, Table};

use super::{IndexStats, failed};
use crate::{
    cache::Version,
    storage::traits::{Change, PurgeRecord, PurgeScope, StoreError},
};

const COUNTERS: &str = "counters";
const CRC_BYTES: usize = 4;

/// What is counted in the same transaction as what it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Random, of this file: a cursor of another file's changes is none of this one's.
    pub(super) id: u64,
    pub(super) objects: u64,
    pub(super) tombstones: u64,
    pub(super) bytes: u64,
    pub(super) bytes_inline: u64,
    /// Sequence of the last change.
    pub(super) changed: u64,
    /// Highest version there ever was.
    pub(super) newest: u64,
}

impl Counters {
    /// Of an empty index.
    pub(super) fn fresh() -> Self {
        Self { id: fastrand::u64(..), ..Self::default() }
    }

    pub(super) fn load(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Self, StoreError> {
        let row = meta.get(COUNTERS).map_err(failed)?;
        row.and_then(|row| Self::read(row.value()))
            .ok_or_else(|| StoreError::Corrupted { what: "the counters of the index".into() })
    }

    fn read(row: &[u8]) -> Option<Self> {
        let (fields, []) = checked(COUNTERS.as_bytes(), row)?.as_chunks::<8>() else { return None };
        let [id, objects, tombstones, bytes, bytes_inline, changed, newest] =
            <[[u8; 8]; 7]>::try_from(fields).ok()?.map(u64::from_le_bytes);
        Some(Self { id, objects, tombstones, bytes, bytes_inline, changed, newest })
    }

    fn row(&self) -> Vec<u8> {
        let Self { id, objects, tombstones, bytes, bytes_inline, changed, newest } = *self;
        let fields = [id, objects, tombstones, bytes, bytes_inline, changed, newest].map(u64::to_le_bytes);
        sealed(COUNTERS.as_bytes(), fields.as_flattened())
    }

    pub(super) fn store(&self, meta: &mut Table<'_, &'static str, &'static [u8]>) -> Result<(), redb::StorageError> {
        meta.insert(COUNTERS, &self.row()[..]).map(drop)
    }

    /// Copies the gauges.
    pub(super) fn show(&self, stats: &mut IndexStats) {
        stats.objects = self.objects;
        stats.tombstones = self.tombstones;
        stats.bytes = self.bytes;
        stats.bytes_inline = self.bytes_inline;
    }
}

pub(super) fn write_change(sequence: u64, version: Version, live: bool, path: &[u8]) -> Vec<u8> {
    sealed(&sequence.to_be_bytes(), &[&version.0.to_le_bytes()[..], &[u8::from(live)], path].concat())
}

pub(super) fn read_change(sequence: u64, row: &[u8]) -> Option<Change> {
    let (version, rest) = checked(&sequence.to_be_bytes(), row)?.split_first_chunk::<8>()?;
    let (live, path) = rest.split_first()?;
    let version = Version(u64::from_le_bytes(*version));
    Some(Change { path: Bytes::copy_from_slice(path), version, live: *live != 0 })
}

pub(super) fn write_scope(scope: &PurgeScope) -> Vec<u8> {
    match scope {
        PurgeScope::All => vec![0],
        PurgeScope::Namespace(namespace) => [&[1], namespace.as_bytes()].concat(),
        PurgeScope::Key(path) => [&[2], &path[..]].concat(),
        PurgeScope::Prefix(prefix) => [&[3], &prefix[..]].concat(),
        // A namespace has no slash, a tag may.
        PurgeScope::Tag { namespace, tag } => [&[4], namespace.as_bytes(), b"/", tag.as_bytes()].concat(),
    }
}

fn read_scope(bytes: &[u8]) -> Option<PurgeScope> {
    let (kind, rest) = bytes.split_first()?;
    Some(match kind {
        0 if rest.is_empty() => PurgeScope::All,
        1 => PurgeScope::Namespace(std::str::from_utf8(rest).ok()?.into()),
        2 => PurgeScope::Key(Bytes::copy_from_slice(rest)),
        3 => PurgeScope::Prefix(Bytes::copy_from_slice(rest)),
        4 => {
            let (namespace, tag) = std::str::from_utf8(rest).ok()?.split_once('/')?;
            PurgeScope::Tag { namespace: namespace.into(), tag: tag.into() }
        }
        _ => return None,
    })
}

/// The row of a purge record under the key `scope`.
pub(super) fn write_purge(scope: &[u8], version: Version) -> Vec<u8> {
    sealed(scope, &version.0.to_le_bytes())
}

/// The version in the row under the key `scope`.
pub(super) fn purge_version(scope: &[u8], row: &[u8]) -> Result<Version, StoreError> {
    let version = checked(scope, row).and_then(|rest| rest.try_into().ok());
    version.map(|bytes| Version(u64::from_le_bytes(bytes))).ok_or_else(|| damaged_purge(scope))
}

/// The purge record under the key `scope`.
pub(super) fn read_purge(scope: &[u8], row: &[u8]) -> Result<PurgeRecord, StoreError> {
    let version = purge_version(scope, row)?;
    read_scope(scope).map(|scope| PurgeRecord { scope, version }).ok_or_else(|| damaged_purge(scope))
}

fn damaged_purge(scope: &[u8]) -> StoreError {
    StoreError::Corrupted { what: format!("the purge record {} of the index", scope.escape_ascii()) }
}

fn crc(key: &[u8], rest: &[u8]) -> [u8; CRC_BYTES] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(rest);
    crc.finalize().to_le_bytes()
}

pub(super) fn sealed(key: &[u8], rest: &[u8]) -> Vec<u8> {
    [&crc(key, rest)[..], rest].concat()
}

/// What follows the crc, if that is right.
pub(super) fn checked<'a>(key: &[u8], row: &'a [u8]) -> Option<&'a [u8]> {
    let (found, rest) = row.split_first_chunk::<CRC_BYTES>()?;
    (crc(key, rest) == *found).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: Counters = Counters {
        id: 0x11,
        objects: 0x22,
        tombstones: 0x33,
        bytes: 0x44,
        bytes_inline: 0x55,
        changed: 0x66,
        newest: 0x77,
    };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&SAMPLE.row()),
            "60fab41b\
             1100000000000000220000000000000033000000000000004400000000000000\
             550000000000000066000000000000007700000000000000"
        );
        assert_eq!(hex(&write_change(7, Version(0x22), true, b"ns/k")), "c16eb98f2200000000000000016e732f6b");
        let scope = write_scope(&PurgeScope::Tag { namespace: "ns".into(), tag: "t".into() });
        assert_eq!(hex(&scope), "046e732f74");
        assert_eq!(hex(&write_purge(&scope, Version(0x22))), "5f0824c12200000000000000");
    }

    #[test]
    fn no_changed_bit_and_no_other_key_is_read() {
        let record = PurgeRecord { scope: PurgeScope::Prefix("ns/a".into()), version: Version(5) };
        let scope = write_scope(&record.scope);
        let (change, purge) = (write_change(7, Version(9), true, b"ns/k"), write_purge(&scope, record.version));
        assert_eq!(Counters::read(&SAMPLE.row()), Some(SAMPLE));
        assert_eq!(read_purge(&scope, &purge).expect("whole"), record);
        assert_eq!(read_change(7, &change).expect("whole").path, "ns/k");
        assert!(read_change(8, &change).is_none() && read_purge(b"\x03ns/b", &purge).is_err());
        let refused = |row: &[u8], is_read: &dyn Fn(&[u8]) -> bool| {
            (0..row.len() * 8).all(|bit| {
                let mut row = row.to_vec();
                row[bit / 8] ^= 1 << (bit % 8);
                !is_read(&row)
            }) && (0..row.len()).all(|length| !is_read(&row[..length]))
        };
        assert!(refused(&SAMPLE.row(), &|row| Counters::read(row).is_some()));
        assert!(refused(&change, &|row| read_change(7, row).is_some()));
        assert!(refused(&purge, &|row| read_purge(&scope, row).is_ok()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(
            key in proptest::collection::vec(any::<u8>(), 0..12),
            rest in proptest::collection::vec(any::<u8>(), 0..70),
        ) {
            let _ = Counters::read(&rest);
            let _ = Counters::read(&sealed(COUNTERS.as_bytes(), &rest));
            let _ = read_change(1, &sealed(&1_u64.to_be_bytes(), &rest));
            if let Ok(record) = read_purge(&key, &sealed(&key, &rest)) {
                prop_assert_eq!(write_scope(&record.scope), key);
            }
        }
    }
}
