//! What each namespace has in RAM: a table beside the slab, kept by everything that enters and leaves.
//!
//! - INV-HELD-1: the figures of a name are the sums over its entries in the slab. An entry's flag [`NAMED`] says
//!   whether it was counted under its name, so that it is taken off where it was added.
//!
//! A name has a row as long as it has objects; there are at most [`ROWS_MAX`] rows. Objects of further names are
//! counted together under [`OTHER`]. Nothing here is touched by a hit.

use hashbrown::HashMap;

use crate::{
    namespace::{Held, OTHER},
    policy::NAMESPACES_MAX,
};

/// As many as are declared and registered at a time, and `memcached`.
pub const ROWS_MAX: usize = 2 * NAMESPACES_MAX + 1;

/// Flag of an entry that is counted under its namespace's name.
pub(super) const NAMED: u8 = 1;

#[derive(Debug, Default)]
pub(super) struct Table {
    rows: HashMap<Vec<u8>, Held, foldhash::fast::FixedState>,
    other: Held,
}

impl Table {
    /// The flags of an entry of `path` that is about to be stored.
    pub(super) fn flags(&self, path: &[u8]) -> u8 {
        if self.rows.len() < ROWS_MAX || self.rows.contains_key(name(path)) { NAMED } else { 0 }
    }

    /// An entry of `path` with a body of `bytes` was stored under `flags`.
    pub(super) fn add(&mut self, path: &[u8], flags: u8, bytes: u64) {
        match flags & NAMED {
            0 => self.other.add(bytes),
            _ => self.rows.entry_ref(name(path)).or_default().add(bytes),
        }
    }

    /// It has left.
    pub(super) fn remove(&mut self, path: &[u8], flags: u8, bytes: u64) {
        let name = name(path);
        match self.rows.get_mut(name) {
            Some(row) if flags & NAMED != 0 => {
                row.remove(bytes);
                if row.objects == 0 {
                    self.rows.remove(name);
                }
            }
            _ => self.other.remove(bytes),
        }
    }

    /// The figures by name, in no order.
    pub(super) fn snapshot(&self) -> Vec<(Box<str>, Held)> {
        let rows = self.rows.iter().map(|(name, held)| (String::from_utf8_lossy(name).into(), *held));
        let other = (self.other != Held::default()).then(|| (OTHER.into(), self.other));
        rows.chain(other).collect()
    }
}

/// The namespace of a path.
fn name(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_taken_off_where_it_was_added() {
        let mut table = Table::default();
        let paths: Vec<_> = (0..ROWS_MAX + 2).map(|i| format!("n{i}/k").into_bytes()).collect();
        let mut flags = Vec::new();
        for path in &paths {
            flags.push(table.flags(path));
            table.add(path, flags[flags.len() - 1], 10);
        }
        assert_eq!(flags.iter().filter(|flags| **flags == 0).count(), 2, "beyond the rows");
        assert_eq!((table.rows.len(), table.other), (ROWS_MAX, Held { objects: 2, bytes: 20 }));
        // A row is free again, and the name that had none gets it for its next object only.
        table.remove(&paths[0], flags[0], 10);
        let late = paths.last().expect("some");
        let flag = table.flags(late);
        table.add(late, flag, 5);
        assert_eq!((flag, table.other.objects), (NAMED, 2));
        table.remove(late, 0, 10);
        assert_eq!((table.other.objects, table.rows[name(late)]), (1, Held { objects: 1, bytes: 5 }));
        table.remove(late, flag, 5);
        assert_eq!(table.rows.len(), ROWS_MAX - 1);
    }
}
