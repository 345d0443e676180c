//! The purge records in force, arranged for the one question asked on every look-up.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    cache::Version,
    storage::traits::{Manifest, PurgeRecord, PurgeScope},
};

/// Live purge records, at most [`PURGE_RECORDS_MAX`](crate::storage::traits::PURGE_RECORDS_MAX) of them.
#[derive(Debug, Default)]
pub struct PurgeSet {
    all: Option<Version>,
    namespaces: BTreeMap<Box<str>, Version>,
    keys: BTreeMap<Bytes, Version>,
    tags: BTreeMap<Box<str>, BTreeMap<Box<str>, Version>>,
    prefixes: BTreeMap<Bytes, Version>,
    /// How many prefixes have this length: a look-up tries each length once.
    prefix_lengths: BTreeMap<usize, usize>,
}

impl PurgeSet {
    /// Adds a record, or raises the one of the same scope.
    pub fn insert(&mut self, record: PurgeRecord) {
        let PurgeRecord { scope, version } = record;
        let slot = match scope {
            PurgeScope::All => self.all.get_or_insert_default(),
            PurgeScope::Namespace(namespace) => self.namespaces.entry(namespace).or_default(),
            PurgeScope::Key(path) => self.keys.entry(path).or_default(),
            PurgeScope::Tag { namespace, tag } => self.tags.entry(namespace).or_default().entry(tag).or_default(),
            PurgeScope::Prefix(prefix) => {
                if !self.prefixes.contains_key(&prefix) {
                    *self.prefix_lengths.entry(prefix.len()).or_default() += 1;
                }
                self.prefixes.entry(prefix).or_default()
            }
        };
        *slot = version.max(*slot);
    }

    /// Forgets a record if its version is still `record.version`.
    pub fn remove(&mut self, record: &PurgeRecord) {
        let PurgeRecord { scope, version } = record;
        match scope {
            PurgeScope::All => drop(self.all.take_if(|at| at == version)),
            PurgeScope::Namespace(namespace) => drop(remove_at(&mut self.namespaces, namespace, *version)),
            PurgeScope::Key(path) => drop(remove_at(&mut self.keys, path, *version)),
            PurgeScope::Tag { namespace, tag } => {
                if let Some(tags) = self.tags.get_mut(namespace) {
                    remove_at(tags, tag, *version);
                    if tags.is_empty() {
                        self.tags.remove(namespace);
                    }
                }
            }
            PurgeScope::Prefix(prefix) => {
                if remove_at(&mut self.prefixes, prefix, *version)
                    && let Some(count) = self.prefix_lengths.get_mut(&prefix.len())
                {
                    *count -= 1;
                    if *count == 0 {
                        self.prefix_lengths.remove(&prefix.len());
                    }
                }
            }
        }
    }

    /// Records held.
    #[must_use]
    pub fn len(&self) -> usize {
        let tags: usize = self.tags.values().map(BTreeMap::len).sum();
        usize::from(self.all.is_some()) + self.namespaces.len() + self.keys.len() + tags + self.prefixes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a record says that this entry is dead.
    #[must_use]
    pub fn covers(&self, manifest: &Manifest) -> bool {
        let path = &manifest.path[..];
        let above = |record: Option<&Version>| record.is_some_and(|version| manifest.version < *version);
        if above(self.all.as_ref()) || above(self.keys.get(path)) {
            return true;
        }
        let mut by_length = self.prefix_lengths.keys().take_while(|length| **length <= path.len());
        if by_length.any(|length| above(self.prefixes.get(&path[..*length]))) {
            return true;
        }
        let namespace = path.split(|b| *b == b'/').next().and_then(|name| std::str::from_utf8(name).ok());
        let Some(namespace) = namespace else { return false };
        above(self.namespaces.get(namespace))
            || self.tags.get(namespace).is_some_and(|tags| manifest.tags.iter().any(|tag| above(tags.get(tag))))
    }
}

fn remove_at<K: Ord>(records: &mut BTreeMap<K, Version>, scope: &K, version: Version) -> bool {
    let there = records.get(scope) == Some(&version);
    if there {
        records.remove(scope);
    }
    there
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::traits::Body;

    fn manifest(path: &'static str, version: u64, tags: &[&str]) -> Manifest {
        Manifest {
            path: Bytes::from_static(path.as_bytes()),
            version: Version(version),
            body: Body::Inline(Bytes::new()),
            length: 0,
            checksum: 0,
            created_ms: 0,
            expires_ms: None,
            client_flags: 0,
            headers: Bytes::new(),
            tags: tags.iter().map(|tag| (*tag).into()).collect(),
            nonce: 0,
        }
    }

    #[test]
    fn every_scope_covers_what_it_names_and_is_older() {
        let scopes: [(PurgeScope, &[&str], &[&str]); 6] = [
            (PurgeScope::All, &["a/b", "x/y"], &[]),
            (PurgeScope::Namespace("a".into()), &["a/b", "a/c/d"], &["ab/c", "x/y"]),
            (PurgeScope::Key("a/b".into()), &["a/b"], &["a/bc", "a/b/", "b/a/b"]),
            (PurgeScope::Prefix("a/b".into()), &["a/b", "a/bc", "a/b/"], &["a/", "a/c", "x/a/b"]),
            (PurgeScope::Prefix("a/".into()), &["a/b"], &["aa/b"]),
            (PurgeScope::Tag { namespace: "a".into(), tag: "t".into() }, &["a/tagged"], &["x/tagged", "a/b"]),
        ];
        for (scope, covered, others) in scopes {
            let record = PurgeRecord { scope, version: Version(5) };
            let mut set = PurgeSet::default();
            set.insert(PurgeRecord { version: Version(3), ..record.clone() });
            set.insert(record.clone());
            set.insert(PurgeRecord { version: Version(4), ..record.clone() });
            assert_eq!(set.len(), 1);
            let tags = |path: &str| if path.ends_with("tagged") { &["s", "t"][..] } else { &["s"][..] };
            for path in covered {
                assert!(set.covers(&manifest(path, 4, tags(path))), "{record:?} {path}");
                assert!(!set.covers(&manifest(path, 5, tags(path))), "{record:?} {path}: not older");
            }
            for path in others {
                assert!(!set.covers(&manifest(path, 4, tags(path))), "{record:?} {path}");
            }
            set.remove(&PurgeRecord { version: Version(4), ..record.clone() });
            assert_eq!(set.len(), 1, "raised meanwhile");
            set.remove(&record);
            assert!(set.is_empty() && set.prefix_lengths.is_empty() && set.tags.is_empty());
        }
    }
}
