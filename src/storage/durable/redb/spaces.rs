//! What each namespace has in the index, counted in the same transaction as what it counts.
//!
//! The rows are in `meta`, each under `namespace/` and the name, and under `namespaces` the sequence of the change
//! they were last brought up to. Where that is not the last change of the file, or a row is damaged, they say nothing:
//! the entries are counted once, at the start, and all rows are written with the next transaction.
//!
//! Bound: [`NAMESPACES_MAX`] names. Objects of further ones are counted together under [`OTHER`], as well as can be.

use std::collections::BTreeMap;

use redb::{ReadableTable, StorageError, Table};

use super::rows::{checked, sealed};
use crate::{
    namespace::{Held, OTHER},
    storage::traits::{Body, Manifest},
};

/// Names that are told apart.
pub(super) const NAMESPACES_MAX: usize = 8_192;

/// The row that says how far the others were brought.
const UP_TO: &str = "namespaces";

/// Before the name, in the key of its row.
const PREFIX: &str = "namespace/";

/// After the last of those keys.
const PREFIX_END: &str = "namespace0";

/// The figures by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Spaces {
    held: BTreeMap<Box<str>, Held>,
    /// The rows in the file are not these.
    rewrite: bool,
}

impl Spaces {
    /// The rows, if they are up to the change `changed` and whole.
    pub(super) fn load(meta: &impl ReadableTable<&'static str, &'static [u8]>, changed: u64) -> Option<Self> {
        let up_to = meta.get(UP_TO).ok()??;
        if checked(UP_TO.as_bytes(), up_to.value())? != changed.to_le_bytes() {
            return None;
        }
        let mut held = BTreeMap::new();
        for row in meta.range(PREFIX..PREFIX_END).ok()? {
            let (key, row) = row.ok()?;
            held.insert(key.value().strip_prefix(PREFIX)?.into(), read(key.value(), row.value())?);
        }
        Some(Self { held, rewrite: false })
    }

    /// The figures of all entries that `decode` can read, counted. Reads the whole table.
    pub(super) fn count(
        manifests: &impl ReadableTable<&'static [u8], &'static [u8]>,
        decode: impl Fn(&[u8], &[u8]) -> Option<Manifest>,
    ) -> Result<Self, StorageError> {
        let mut spaces = Self { held: BTreeMap::new(), rewrite: true };
        let mut changes = Changes::default();
        for row in manifests.iter()? {
            let (path, value) = row?;
            if let Some(manifest) = decode(path.value(), value.value()) {
                changes.put(&manifest);
                spaces.apply(&std::mem::take(&mut changes));
            }
        }
        Ok(spaces)
    }

    /// The figures by name.
    pub(super) fn held(&self) -> &BTreeMap<Box<str>, Held> {
        &self.held
    }

    /// Puts `changes` in force; to be called when their transaction is committed.
    pub(super) fn apply(&mut self, changes: &Changes) {
        for (name, now) in self.after(changes) {
            match now.objects {
                0 => self.held.remove(&name),
                _ => self.held.insert(name, now),
            };
        }
    }

    /// Writes the rows that `changes` change, up to the change `changed`. `tight`: the disk has no room for more than
    /// that, so that rows which say nothing are left so.
    pub(super) fn store(
        &self,
        meta: &mut Table<'_, &'static str, &'static [u8]>,
        changes: &Changes,
        changed: u64,
        tight: bool,
    ) -> Result<Stored, StorageError> {
        let mut now = self.after(changes);
        if self.rewrite {
            if tight {
                return Ok(Stored::Left);
            }
            meta.retain_in(PREFIX..PREFIX_END, |_, _| false)?;
            for (name, held) in &self.held {
                now.entry(name.clone()).or_insert(*held);
            }
        }
        for (name, held) in &now {
            let key = format!("{PREFIX}{name}");
            match held.objects {
                0 => drop(meta.remove(&*key)?),
                _ => drop(meta.insert(&*key, &row(&key, held)[..])?),
            }
        }
        meta.insert(UP_TO, &sealed(UP_TO.as_bytes(), &changed.to_le_bytes())[..])?;
        Ok(Stored::Whole)
    }

    /// The transaction with what was stored is committed.
    pub(super) fn committed(&mut self, changes: &Changes, stored: Stored) {
        self.apply(changes);
        self.rewrite = stored == Stored::Left;
    }

    /// The figures that `changes` change, as they are after them.
    fn after(&self, changes: &Changes) -> BTreeMap<Box<str>, Held> {
        let mut now = BTreeMap::<Box<str>, Held>::new();
        for (name, (objects, bytes)) in &changes.0 {
            let is_known = self.held.contains_key(name) || self.held.len() + now.len() < NAMESPACES_MAX;
            let name = if is_known { &**name } else { OTHER };
            let held = self.held.get(name).copied().unwrap_or_default();
            let held = now.entry(name.into()).or_insert(held);
            held.objects = held.objects.saturating_add_signed(*objects);
            held.bytes = held.bytes.saturating_add_signed(*bytes);
        }
        now
    }
}

/// Whether all rows are in the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Whole,
    /// Those of the file still say nothing.
    Left,
}

/// What a transaction changes: objects and bytes, by name.
#[derive(Debug, Default)]
pub(super) struct Changes(BTreeMap<Box<str>, (i64, i64)>);

impl Changes {
    /// An entry is put.
    pub(super) fn put(&mut self, manifest: &Manifest) {
        if manifest.body != Body::Tombstone {
            self.add(&manifest.path, 1, length(manifest));
        }
    }

    /// The entry of `path` is taken away; `None` if it is damaged: taken for an object, whose length nobody knows.
    pub(super) fn take(&mut self, path: &[u8], old: Option<&Manifest>) {
        match old {
            Some(old) if old.body == Body::Tombstone => {}
            old => self.add(path, -1, old.map_or(0, |old| -length(old))),
        }
    }

    fn add(&mut self, path: &[u8], objects: i64, bytes: i64) {
        let name = path.split(|byte| *byte == b'/').next().and_then(|name| str::from_utf8(name).ok());
        let sums = self.0.entry(name.unwrap_or(OTHER).into()).or_default();
        *sums = (sums.0 + objects, sums.1.saturating_add(bytes));
    }
}

fn length(manifest: &Manifest) -> i64 {
    i64::try_from(manifest.length).unwrap_or(i64::MAX)
}

/// The row under `key`: crc (4), objects (8), bytes (8).
fn row(key: &str, held: &Held) -> Vec<u8> {
    sealed(key.as_bytes(), [held.objects, held.bytes].map(u64::to_le_bytes).as_flattened())
}

fn read(key: &str, row: &[u8]) -> Option<Held> {
    let (fields, []) = checked(key.as_bytes(), row)?.as_chunks::<8>() else { return None };
    let [objects, bytes] = <[[u8; 8]; 2]>::try_from(fields).ok()?.map(u64::from_le_bytes);
    Some(Held { objects, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_nothing_damaged_is_read() {
        let held = Held { objects: 0x11, bytes: 0x22 };
        let bytes = row("namespace/n", &held);
        assert_eq!(bytes[4..], [0x11, 0, 0, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read("namespace/n", &bytes), Some(held));
        assert_eq!(read("namespace/m", &bytes), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read("namespace/n", &damaged), None, "{bit}");
        }
    }

    #[test]
    fn names_beyond_the_bound_are_counted_together() {
        let mut spaces = Spaces::default();
        let change = |name: &str, objects| Changes(BTreeMap::from([(name.into(), (objects, 10 * objects))]));
        for i in 0..NAMESPACES_MAX + 2 {
            spaces.apply(&change(&format!("n{i:05}"), 1));
        }
        let other = spaces.held[OTHER];
        assert!(spaces.held.len() <= NAMESPACES_MAX + 1 && other == Held { objects: 2, bytes: 20 }, "{other:?}");
        spaces.apply(&change("n99999", -1));
        assert_eq!(spaces.held[OTHER], Held { objects: 1, bytes: 10 });
        spaces.apply(&change("n00000", -1));
        assert!(!spaces.held.contains_key("n00000"));
    }
}
