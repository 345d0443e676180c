//! Random operations beside a plain map. The slab shows every entry that leaves, so the map knows exactly what must
//! be there, and hits are required as well as allowed.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Insert { key: u8, ahead: u64, len: usize, meta: usize, ttl: u64 },
    Get { key: u8 },
    Pin { key: u8 },
    Unpin { pin: usize },
    Remove { key: u8 },
    RemoveOlder { key: u8, back: u64 },
    Update { key: u8, meta: usize, ttl: u64 },
    Stage { declared: Option<u64> },
    Append { stage: usize, len: usize },
    Publish { stage: usize, key: u8 },
    Abort { stage: usize },
    Sweep { later: u64, places: usize },
    Purge { places: usize, keep: u8 },
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..300usize, 2 => 3_900..4_300usize, 2 => 0..20_000usize, 1 => 30_000..33_000usize]
}

fn ops() -> impl Strategy<Value = Op> {
    let ttl = || prop_oneof![3 => Just(0), 1 => 1..50u64];
    let meta = || prop_oneof![4 => 0..40usize, 1 => 0..9_000usize];
    prop_oneof![
        10 => (any::<u8>(), 0..3u64, sizes(), meta(), ttl())
            .prop_map(|(key, ahead, len, meta, ttl)| Op::Insert { key, ahead, len, meta, ttl }),
        6 => any::<u8>().prop_map(|key| Op::Get { key }),
        3 => any::<u8>().prop_map(|key| Op::Pin { key }),
        3 => any::<usize>().prop_map(|pin| Op::Unpin { pin }),
        1 => any::<u8>().prop_map(|key| Op::Remove { key }),
        1 => (any::<u8>(), 0..3u64).prop_map(|(key, back)| Op::RemoveOlder { key, back }),
        2 => (any::<u8>(), meta(), ttl()).prop_map(|(key, meta, ttl)| Op::Update { key, meta, ttl }),
        2 => prop::option::of(0..40_000u64).prop_map(|declared| Op::Stage { declared }),
        6 => (any::<usize>(), sizes()).prop_map(|(stage, len)| Op::Append { stage, len }),
        3 => (any::<usize>(), any::<u8>()).prop_map(|(stage, key)| Op::Publish { stage, key }),
        1 => any::<usize>().prop_map(|stage| Op::Abort { stage }),
        1 => (0..20u64, 0..3_000usize).prop_map(|(later, places)| Op::Sweep { later, places }),
        1 => (0..3_000usize, any::<u8>()).prop_map(|(places, keep)| Op::Purge { places, keep }),
    ]
}

/// Hits that are looked at again after each step.
const PLACES_MAX: usize = 12;

#[derive(Clone, Debug, PartialEq)]
struct Held {
    version: u64,
    meta: Vec<u8>,
    body: Vec<u8>,
    expires_ms: u64,
    flags: u8,
}

struct Model {
    slab: Slab,
    held: BTreeMap<Vec<u8>, Held>,
    pins: Vec<(Bytes, Vec<u8>)>,
    /// Of the last hits: where, the key, and the bytes found there.
    places: VecDeque<(Place, Vec<u8>, Vec<u8>)>,
    stages: Vec<(Stage, Vec<u8>)>,
    now_ms: u64,
    steps: u64,
    cursor: Cursor,
}

/// Keys are few, so that they meet again, and of several lengths.
fn key_of(key: u8) -> Vec<u8> {
    vec![key % 60; 1 + usize::from(key % 60) * 3]
}

/// What the slab shows as leaving is what the map holds.
fn leaves(held: &mut BTreeMap<Vec<u8>, Held>, old: &Evicted<'_>) {
    let known = held.remove(old.key).expect("only what is there can leave");
    assert_eq!(old.hash, hash_of(old.key));
    let shown = Held {
        version: old.version,
        meta: old.meta.to_vec(),
        body: old.body.to_vec(),
        expires_ms: old.expires_ms,
        flags: old.flags,
    };
    assert!(shown == known, "an entry left with other bytes than it came with");
}

impl Model {
    fn new() -> Self {
        let config = Config { object_bytes_mean: 2_000, pins_max: 6, ..Config::new(ARENA_BYTES_MIN) };
        let slab = Slab::new(config).expect("memory");
        Self {
            slab,
            held: BTreeMap::new(),
            pins: Vec::new(),
            places: VecDeque::new(),
            stages: Vec::new(),
            now_ms: 1_000,
            steps: 0,
            cursor: Cursor::default(),
        }
    }

    fn fields(&self, key: &[u8], ahead: u64, meta: usize, ttl: u64, body: Vec<u8>) -> Held {
        let version = self.held.get(key).map_or(10, |held| held.version) + ahead - 1;
        let expires_ms = if ttl == 0 { 0 } else { self.now_ms + ttl };
        Held { version, meta: pattern(self.steps, meta), body, expires_ms, flags: self.steps as u8 }
    }

    fn stored(&mut self, key: &[u8], new: Held, was: Option<u64>, outcome: Outcome) {
        match outcome {
            Outcome::Stored => {
                assert!(was.is_none_or(|version| version <= new.version));
                self.held.insert(key.to_vec(), new);
            }
            Outcome::Older { current } => assert!(was == Some(current) && current > new.version),
            Outcome::TooLarge => assert!(new.body.len() > 32 << 10),
            Outcome::NoRoom => {
                let stats = self.slab.stats();
                assert!(stats.staged_bytes + stats.pinned_bytes > 0, "{stats:?}");
            }
        }
    }

    fn apply(&mut self, op: Op) {
        self.steps += 1;
        match op {
            Op::Insert { key, ahead, len, meta, ttl } => {
                let key = key_of(key);
                let new = self.fields(&key, ahead, meta, ttl, pattern(self.steps, len));
                let was = self.held.get(&key).map(|held| held.version);
                let held = &mut self.held;
                let outcome = self.slab.insert(as_entry(&key, &new), &new.body, &mut |old| leaves(held, &old));
                self.stored(&key, new, was, outcome);
            }
            Op::Get { key } => {
                self.look(&key_of(key));
            }
            Op::Pin { key } => {
                let key = key_of(key);
                if self.look(&key)
                    && let Lookup::Hit(hit) = self.slab.get(hash_of(&key), &key, self.now_ms)
                {
                    let body = self.held[&key].body.clone();
                    self.pins.extend(hit.pin().map(|pin| (pin, body)));
                }
            }
            Op::Unpin { pin } => {
                if !self.pins.is_empty() {
                    let (pin, body) = self.pins.swap_remove(pin % self.pins.len());
                    assert_eq!(pin, body, "a pin keeps its bytes");
                }
            }
            Op::Remove { key } => {
                let key = key_of(key);
                let was = self.held.remove(&key).map(|held| held.version);
                assert_eq!(self.slab.remove(hash_of(&key), &key), was);
            }
            Op::RemoveOlder { key, back } => {
                let key = key_of(key);
                let current = self.held.get(&key).map(|held| held.version);
                let bound = current.unwrap_or(9) + 1 - back;
                let removed = current.filter(|&version| version <= bound);
                assert_eq!(self.slab.remove_older(hash_of(&key), &key, bound), removed);
                if removed.is_some() {
                    self.held.remove(&key);
                }
            }
            Op::Update { key, meta, ttl } => self.update(&key_of(key), meta, ttl),
            Op::Stage { declared } => {
                let held = &mut self.held;
                if let Ok(stage) = self.slab.stage(declared, 36_000, &mut |old| leaves(held, &old)) {
                    self.stages.push((stage, Vec::new()));
                }
            }
            Op::Append { stage, len } => self.append(stage, len),
            Op::Publish { stage, key } => {
                if !self.stages.is_empty() {
                    let key = key_of(key);
                    let (stage, body) = self.stages.swap_remove(stage % self.stages.len());
                    let new = self.fields(&key, 1, 20, 0, body);
                    let was = self.held.get(&key).map(|held| held.version);
                    let held = &mut self.held;
                    let outcome = self.slab.publish(stage, as_entry(&key, &new), &mut |old| leaves(held, &old));
                    self.stored(&key, new, was, outcome);
                }
            }
            Op::Abort { stage } => {
                if !self.stages.is_empty() {
                    self.stages.swap_remove(stage % self.stages.len());
                }
            }
            Op::Sweep { later, places } => {
                self.now_ms += later;
                let (held, now_ms) = (&mut self.held, self.now_ms);
                self.slab.sweep(now_ms, places, &mut |old| {
                    assert!(old.expires_ms != 0 && old.expires_ms <= now_ms);
                    leaves(held, &old);
                });
            }
            Op::Purge { places, keep } => {
                let held = &mut self.held;
                let visited = self.slab.retain(self.cursor, places, &mut |shown| {
                    let kept = shown.key[0] != keep % 60;
                    if !kept {
                        leaves(held, &shown);
                    }
                    kept
                });
                self.cursor = visited.next.unwrap_or_default();
            }
        }
    }

    /// Looks a key up; whether it hit.
    fn look(&mut self, key: &[u8]) -> bool {
        let known = self.held.get(key);
        match self.slab.get(hash_of(key), key, self.now_ms) {
            Lookup::Hit(hit) => {
                let known = known.expect("nothing is found that was not stored");
                let found = Held {
                    version: hit.version(),
                    meta: hit.meta().to_vec(),
                    body: hit.body().to_vec(),
                    expires_ms: hit.expires_ms(),
                    flags: hit.flags(),
                };
                assert!(&found == known, "INV-SLAB-1");
                assert!(known.expires_ms == 0 || known.expires_ms > self.now_ms);
                let place = hit.place();
                assert_eq!(self.slab.body_in_place(&place), Some(&known.body[..]), "at first it is in place");
                self.places.push_back((place, key.to_vec(), found.body));
                if self.places.len() > PLACES_MAX {
                    self.places.pop_front();
                }
                true
            }
            Lookup::Expired(gone) => {
                let known = self.held.remove(key).expect("nothing expires that was not stored");
                assert_eq!((gone.flags, gone.body_bytes), (known.flags, known.body.len() as u64));
                assert!(known.expires_ms != 0 && known.expires_ms <= self.now_ms);
                false
            }
            Lookup::Miss => {
                assert!(known.is_none(), "nothing leaves unseen (INV-SLAB-3)");
                false
            }
        }
    }

    /// A place gives the bytes found there or nothing; sought, it gives what has its version and length now.
    fn check_places(&self) {
        for (place, key, found) in &self.places {
            let there = self.slab.body_in_place(place);
            assert!(there.is_none_or(|body| body == found), "INV-PLACE-1");
            let held = self.held.get(key).filter(|held| held.version == place.version);
            let held = held.filter(|held| held.body.len() == found.len());
            assert!(self.slab.body_sought(place) == held.map(|held| &held.body[..]));
        }
    }

    fn update(&mut self, key: &[u8], meta: usize, ttl: u64) {
        let was = self.held.get(key).cloned();
        let new = self.fields(key, 2, meta, ttl, was.as_ref().map_or(Vec::new(), |held| held.body.clone()));
        let held = &mut self.held;
        match self.slab.update_meta(as_entry(key, &new), &mut |old| leaves(held, &old)) {
            Update::Done => {
                assert!(was.is_some());
                self.held.insert(key.to_vec(), new);
            }
            Update::Missing => assert!(!self.held.contains_key(key)),
            Update::NoRoom => assert!(was.is_some()),
            outcome => panic!("{outcome:?} for version {}", new.version),
        }
    }

    fn append(&mut self, stage: usize, len: usize) {
        if self.stages.is_empty() {
            return;
        }
        let stage = stage % self.stages.len();
        let chunk = pattern(self.steps, len);
        let held = &mut self.held;
        let (stage, body) = &mut self.stages[stage];
        match self.slab.append(stage, &chunk, &mut |old| leaves(held, &old)) {
            Ok(()) => body.extend(&chunk),
            Err(StageError::TooLarge { bytes_max }) => assert!((body.len() + len) as u64 > bytes_max),
            Err(StageError::NoRoom) => {}
        }
        assert!(self.slab.staged(stage) == body, "a stage holds what was appended");
    }

    fn finish(mut self) {
        for (pin, body) in self.pins.drain(..) {
            assert_eq!(pin, body);
        }
        for (stage, body) in self.stages.drain(..) {
            assert_eq!(self.slab.staged(&stage), body);
        }
        check(&mut self.slab);
        for key in std::mem::take(&mut self.held).into_keys() {
            assert!(self.slab.remove(hash_of(&key), &key).is_some());
        }
        let stats = self.slab.stats();
        assert_eq!(stats.free_bytes, stats.arena_bytes, "everything is freed: {stats:?}");
        assert_eq!((stats.objects, stats.staged_bytes, stats.pinned_bytes, stats.limbo_bytes), (0, 0, 0, 0));
        check(&mut self.slab);
    }
}

fn as_entry<'a>(key: &'a [u8], held: &'a Held) -> Entry<'a> {
    Entry { meta: &held.meta, expires_ms: held.expires_ms, flags: held.flags, ..entry(key, held.version) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_plain_map(ops in prop::collection::vec(ops(), 1..400)) {
        let mut model = Model::new();
        for op in ops {
            model.apply(op);
            check(&mut model.slab);
            model.check_places();
        }
        model.finish();
    }
}
