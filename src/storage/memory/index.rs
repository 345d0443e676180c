//! The model of an index store.
//!
//! A `BTreeMap` of manifests and a bounded list of changes. What it believes of the medium: an effect that a reader
//! can see is durable (a real index shows only what it has committed), and a mutation under way when the power goes
//! happens or does not.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, Range},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use engine::rt::Rt;

use super::{fault::Faults, flight::Flight};
use crate::{
    cache::Version,
    storage::traits::{
        Body, Change, Cursor, IndexStore, Manifest, PURGE_RECORDS_MAX, PurgeRecord, PurgeScope, StoreError, Swap,
    },
};

/// Changes kept for [`IndexStore::changes_since`]; older ones are forgotten.
const CHANGES_MAX: usize = 1_000;

/// The operations of an [`InMemoryIndexStore`] that [`Faults`] can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IndexOp {
    /// [`IndexStore::get`].
    Get,
    /// [`IndexStore::put_new`].
    PutNew,
    /// [`IndexStore::cas_update`].
    CasUpdate,
    /// [`IndexStore::delete`].
    Delete,
    /// [`IndexStore::touch_ttl`].
    TouchTtl,
    /// [`IndexStore::scan`] and [`IndexStore::holds`].
    Scan,
    /// [`IndexStore::changes_since`].
    Changes,
    /// [`IndexStore::put_purge`] and [`IndexStore::retire_purge`].
    PutPurge,
    /// [`IndexStore::purges`] and [`IndexStore::newest`].
    Purges,
}

/// An index in memory. Clones share the contents.
#[derive(Clone)]
pub struct InMemoryIndexStore<R> {
    flight: Rc<Flight<State, IndexOp, R>>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Bytes, Manifest>,
    changes: VecDeque<(u64, Change)>,
    changed: u64,
    purges: BTreeMap<PurgeScope, Version>,
    newest: Version,
}

impl State {
    fn version(&self, path: &[u8]) -> Option<Version> {
        self.entries.get(path).map(|entry| entry.version)
    }

    fn note(&mut self, path: Bytes, version: Version, live: bool) {
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changed += 1;
        self.changes.push_back((self.changed, Change { path, version, live }));
    }

    /// Puts `manifest` where the entry is at `expected`.
    fn swap(&mut self, expected: Option<Version>, manifest: Manifest) -> Swap {
        let current = self.version(&manifest.path);
        if current != expected {
            return Swap::Conflict(current);
        }
        self.note(manifest.path.clone(), manifest.version, manifest.body != Body::Tombstone);
        self.newest = self.newest.max(manifest.version);
        self.entries.insert(manifest.path.clone(), manifest);
        Swap::Done
    }

    fn forget(&mut self, path: Bytes, expected: Version) -> Swap {
        let current = self.version(&path);
        if current != Some(expected) {
            return Swap::Conflict(current);
        }
        self.entries.remove(&path);
        self.note(path, expected, false);
        Swap::Done
    }

    fn touch(&mut self, path: Bytes, expected: Version, expires_ms: Option<u64>) -> Swap {
        let current = self.version(&path);
        let Some(entry) = self.entries.get_mut(&path).filter(|_| current == Some(expected)) else {
            return Swap::Conflict(current);
        };
        entry.expires_ms = expires_ms;
        let live = entry.body != Body::Tombstone;
        self.note(path, expected, live);
        Swap::Done
    }
}

impl<R: Rt> InMemoryIndexStore<R> {
    /// An empty index whose latency, if any, is slept through `rt`.
    #[must_use]
    pub fn new(rt: R) -> Self {
        Self { flight: Flight::new(rt, State::default()) }
    }

    /// The plan of faults.
    #[must_use]
    pub fn faults(&self) -> &Faults<IndexOp> {
        &self.flight.faults
    }

    /// Makes every operation take a random time within `latency`, half before and half after its effect.
    pub fn set_latency(&self, latency: Option<Range<Duration>>) {
        self.flight.set_latency(latency);
    }

    /// Loses power: keeps what was acknowledged and, by `seed`, some of what was not.
    pub fn crash(&self, seed: u64) {
        self.flight.crash(&mut fastrand::Rng::with_seed(seed));
    }

    /// Entries of all kinds, in the order of their paths.
    #[must_use]
    pub fn entries(&self) -> Vec<Manifest> {
        self.flight.state.borrow().entries.values().cloned().collect()
    }
}

impl<R: Rt> IndexStore for InMemoryIndexStore<R> {
    async fn get(&self, path: &[u8]) -> Result<Option<Manifest>, StoreError> {
        self.flight.read(IndexOp::Get).await?;
        Ok(self.flight.state.borrow().entries.get(path).cloned())
    }

    async fn put_new(&self, manifest: Manifest) -> Result<Swap, StoreError> {
        self.flight.mutate(IndexOp::PutNew, move |state| state.swap(None, manifest)).await
    }

    async fn cas_update(&self, expected: Version, manifest: Manifest) -> Result<Swap, StoreError> {
        assert!(manifest.version > expected, "a manifest replaces only an older one");
        self.flight.mutate(IndexOp::CasUpdate, move |state| state.swap(Some(expected), manifest)).await
    }

    async fn delete(&self, path: &[u8], expected: Version) -> Result<Swap, StoreError> {
        let path = Bytes::copy_from_slice(path);
        self.flight.mutate(IndexOp::Delete, move |state| state.forget(path, expected)).await
    }

    async fn touch_ttl(&self, path: &[u8], expected: Version, expires_ms: Option<u64>) -> Result<Swap, StoreError> {
        let path = Bytes::copy_from_slice(path);
        self.flight.mutate(IndexOp::TouchTtl, move |state| state.touch(path, expected, expires_ms)).await
    }

    async fn scan(&self, cursor: Option<Cursor>, limit: usize) -> Result<(Vec<Manifest>, Option<Cursor>), StoreError> {
        self.flight.read(IndexOp::Scan).await?;
        let state = self.flight.state.borrow();
        let start = cursor.map_or(Bound::Unbounded, |cursor| Bound::Excluded(cursor.0));
        let mut rest = state.entries.range((start, Bound::Unbounded));
        let page: Vec<_> = rest.by_ref().take(limit).map(|(_, manifest)| manifest.clone()).collect();
        let next = rest.next().and(page.last()).map(|last| Cursor(last.path.clone()));
        Ok((page, next))
    }

    async fn holds(&self, prefix: &[u8]) -> Result<bool, StoreError> {
        self.flight.read(IndexOp::Scan).await?;
        let state = self.flight.state.borrow();
        let first = state.entries.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded)).next();
        Ok(first.is_some_and(|(path, _)| path.starts_with(prefix)))
    }

    async fn changes_since(
        &self,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Option<(Vec<Change>, Cursor)>, StoreError> {
        self.flight.read(IndexOp::Changes).await?;
        let state = self.flight.state.borrow();
        let oldest = state.changes.front().map_or(state.changed + 1, |(at, _)| *at);
        let after = match cursor {
            None => oldest - 1,
            Some(Cursor(bytes)) => match <[u8; 8]>::try_from(&bytes[..]).map(u64::from_be_bytes) {
                Ok(after) if (oldest - 1..=state.changed).contains(&after) => after,
                _ => return Ok(None),
            },
        };
        let page: Vec<_> = state.changes.iter().filter(|(at, _)| *at > after).take(limit).cloned().collect();
        let next = page.last().map_or(after, |(at, _)| *at);
        Ok(Some((
            page.into_iter().map(|(_, change)| change).collect(),
            Cursor(Bytes::copy_from_slice(&next.to_be_bytes())),
        )))
    }

    async fn newest(&self) -> Result<Version, StoreError> {
        self.flight.read(IndexOp::Purges).await?;
        Ok(self.flight.state.borrow().newest)
    }

    async fn put_purge(&self, record: PurgeRecord) -> Result<bool, StoreError> {
        let put = move |state: &mut State| {
            if state.purges.len() == PURGE_RECORDS_MAX && !state.purges.contains_key(&record.scope) {
                return false;
            }
            state.newest = state.newest.max(record.version);
            let version = state.purges.entry(record.scope).or_default();
            *version = record.version.max(*version);
            true
        };
        self.flight.mutate(IndexOp::PutPurge, put).await
    }

    async fn purges(&self) -> Result<Vec<PurgeRecord>, StoreError> {
        self.flight.read(IndexOp::Purges).await?;
        let state = self.flight.state.borrow();
        Ok(state
            .purges
            .iter()
            .map(|(scope, version)| PurgeRecord { scope: scope.clone(), version: *version })
            .collect())
    }

    async fn retire_purge(&self, record: &PurgeRecord) -> Result<(), StoreError> {
        let record = record.clone();
        let retire = move |state: &mut State| {
            if state.purges.get(&record.scope) == Some(&record.version) {
                state.purges.remove(&record.scope);
            }
        };
        self.flight.mutate(IndexOp::PutPurge, retire).await
    }
}
