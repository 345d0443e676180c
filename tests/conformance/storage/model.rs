//! A random walk over a storage and a map.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use strata::{
    cache::{CacheError, CacheMeta, Precondition, PurgeReport, Storage, Version},
    reason::Reason,
};

use super::Caps;
use crate::support::{SetTime, body, get, key, meta_of, put_with};

const STEPS: u64 = 300;

/// Some hundreds of random operations on `keys` keys, against what a map would answer. How many objects the storage
/// has lost: none, unless it may.
pub(super) async fn agrees_with_a_map<S: Storage>(
    store: &S,
    time: &impl SetTime,
    caps: Caps,
    seed: u64,
    keys: u8,
) -> u64 {
    let random = fastrand::Rng::with_seed(seed);
    let mut walk = Walk {
        store,
        time,
        caps,
        random,
        model: BTreeMap::new(),
        expired: BTreeMap::new(),
        context: "".into(),
        lost: 0,
    };
    for step in 0..STEPS {
        walk.step(seed << 32 | step, keys).await;
    }
    walk.lost
}

struct Object {
    version: Version,
    expires_ms: Option<u64>,
    bytes: Bytes,
}

struct Walk<'a, S, T> {
    store: &'a S,
    time: &'a T,
    caps: Caps,
    random: fastrand::Rng,
    model: BTreeMap<String, Object>,
    /// What expired and was not written or removed since.
    expired: BTreeMap<String, Version>,
    /// The step that is made, for people.
    context: String,
    lost: u64,
}

impl<S: Storage, T: SetTime> Walk<'_, S, T> {
    async fn step(&mut self, unique: u64, keys: u8) {
        let name = format!("k{}", self.random.u8(..keys));
        let now_ms = self.time.now_ms();
        let ended = |object: &Object| object.expires_ms.is_some_and(|expires| expires <= now_ms);
        let ended = self.model.extract_if(.., |_, object| ended(object));
        self.expired.extend(ended.map(|(name, object)| (name, object.version)));
        let current = self.current(&name);
        let precondition = match self.random.u8(..8) {
            0 => Precondition::Absent,
            1 => Precondition::Exists,
            2 => Precondition::Version(current.unwrap_or(Version(3))),
            3 => Precondition::OlderThan(current.unwrap_or(Version(3))),
            _ => Precondition::None,
        };
        self.context = format!("step {unique:x} {name} {precondition:?} {current:?}");
        match self.random.u8(..10) {
            0..=3 => self.put(&name, precondition, unique).await,
            4 => self.purge(&name, precondition).await,
            5 => self.touch(&name).await,
            6 => self.time.advance(Duration::from_millis(self.random.u64(..5_000))),
            _ => self.get(&name).await,
        }
    }

    fn current(&self, name: &str) -> Option<Version> {
        self.model.get(name).map(|object| object.version)
    }

    /// What the storage may take to be there when it judges by `precondition`.
    fn views(&self, name: &str, precondition: Precondition) -> Vec<Option<Version>> {
        let mut views = vec![self.current(name)];
        let by_index =
            self.caps.counts_expired && matches!(precondition, Precondition::None | Precondition::OlderThan(_));
        if let (Some(expired), None, true) = (self.expired.get(name), views[0], by_index) {
            views.push(Some(*expired));
        }
        if !self.caps.keeps {
            views.push(None);
        }
        views
    }

    /// The object is not there although nobody removed it.
    fn lose(&mut self, name: &str) {
        assert!(!self.caps.keeps, "{}: lost", self.context);
        self.lost += u64::from(self.model.remove(name).is_some());
    }

    async fn put(&mut self, name: &str, precondition: Precondition, unique: u64) {
        let large = self.random.u8(..4) == 0;
        let length = self.random.usize(..if large { 120_000.min(self.caps.body_bytes_max) } else { 500 });
        let bytes = body(unique, length);
        let lives_ms = self.random.u64(1_000..60_000);
        let expires_ms = (self.random.u8(..4) == 0).then(|| self.time.now_ms() + lives_ms);
        let meta = CacheMeta { expires_ms, ..meta_of(&bytes) };
        let chunk = 1 + self.random.usize(..30_000);
        let result = put_with(self.store, &key(name), meta, precondition, &bytes, chunk).await;
        let (views, context) = (self.views(name, precondition), &self.context);
        match result {
            Ok(stored) => {
                let seen = |view: &Option<Version>| precondition.holds(*view) && stored.replaced == *view;
                assert!(views.iter().any(seen), "{context}: {stored:?}");
                assert!(Some(stored.version) > self.current(name), "{context}: {stored:?}");
                self.expired.remove(name);
                self.model.insert(name.into(), Object { version: stored.version, expires_ms, bytes });
            }
            Err(CacheError::Precondition { current }) => {
                let seen = |view: &Option<Version>| !precondition.holds(*view) && current == *view;
                assert!(views.iter().any(seen), "{context}: {current:?} fails it");
            }
            // Room was made, or not enough: the old one is there or lost.
            Err(CacheError::Refused(Reason::NoRoom | Reason::TooLarge)) if !self.caps.keeps => {}
            Err(other) => panic!("{context}: {other}"),
        }
    }

    async fn purge(&mut self, name: &str, precondition: Precondition) {
        let result = self.store.purge(&key(name), precondition).await;
        let (views, context, current) = (self.views(name, precondition), &self.context, self.current(name));
        let older = matches!(precondition, Precondition::OlderThan(_));
        match result {
            Ok(report) => {
                let done = views.iter().any(|view| precondition.holds(*view) && report.removed == *view);
                let spared = older && report == PurgeReport::default();
                let spared = spared && views.iter().any(|view| !precondition.holds(*view));
                assert!(done || spared, "{context}: {report:?}");
                if precondition.holds(current) && report.removed == current {
                    self.model.remove(name);
                } else if precondition.holds(current) {
                    self.lose(name);
                }
                if !spared {
                    self.expired.remove(name);
                }
            }
            Err(CacheError::Precondition { current }) => {
                let seen = |view: &Option<Version>| !precondition.holds(*view) && current == *view;
                assert!(!older && views.iter().any(seen), "{context}: {current:?} fails it");
            }
            Err(other) => panic!("{context}: {other}"),
        }
    }

    async fn touch(&mut self, name: &str) {
        let expires_ms = Some(self.time.now_ms() + self.random.u64(1_000..60_000));
        let found = self.store.lookup(&key(name)).await.expect("an answer").map(|(meta, _)| meta);
        let Some(meta) = found else {
            if self.current(name).is_some() {
                self.lose(name);
            }
            return;
        };
        assert_eq!(Some(meta.version), self.current(name), "{}", self.context);
        if self.store.update_meta(&key(name), CacheMeta { expires_ms, ..meta }).await.expect("an answer") {
            self.model.get_mut(name).expect("just found").expires_ms = expires_ms;
        } else {
            self.lose(name);
        }
    }

    async fn get(&mut self, name: &str) {
        let found = self.store.find(&key(name)).await.expect("an answer").hit().map(|(meta, _)| meta);
        let got = get(self.store, &key(name)).await;
        let looked_up = got.as_ref().map(|(meta, _)| meta);
        let same = found.as_ref() == looked_up;
        assert!(same || !self.caps.keeps, "{}: found {found:?}, looked up {looked_up:?}", self.context);
        match (got, self.model.get(name)) {
            (None, None) => {}
            (None, Some(_)) => self.lose(name),
            (Some((meta, bytes)), there) => {
                let there = there.map(|there| (there.version, there.expires_ms, &there.bytes));
                assert!(Some((meta.version, meta.expires_ms, &bytes)) == there, "{}: found {meta:?}", self.context);
            }
        }
    }
}
