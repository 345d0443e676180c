//! Random histories against a plain model, with kills, power cuts, clean stops and rot between them.
//!
//! The oracle: a look-up gives exactly one committed version of its key, whole, and never one below what was
//! acknowledged in the way its owner asked for: *noted* keys (cache-only: the ring speaks for them) survive kills,
//! *flushed* keys (each change followed by a flush) survive everything. A miss is always legal for safety, so
//! liveness is checked on its own.

use std::collections::BTreeMap;

use super::*;

/// Half of the operations are on the first few; the others are cold enough to be reclaimed.
const KEYS: u64 = 96;
const HOT_KEYS: u64 = 12;
/// A key whose changes are acknowledged after a flush.
const FLUSHED: u16 = 1;

/// What is known of one key.
#[derive(Clone, Default, Debug)]
struct Known {
    /// The lowest version a look-up may give.
    floor: u64,
    /// Committed bodies by version; acknowledged or begun.
    bodies: BTreeMap<u64, Brief>,
    /// Deleted at the floor: no version up to it may be given.
    deleted: bool,
}

#[derive(Clone, Default)]
struct Model {
    keys: Rc<RefCell<BTreeMap<u64, Known>>>,
    next: Rc<std::cell::Cell<u64>>,
}

fn name(key: u64) -> Vec<u8> {
    format!("key-{key}").into_bytes()
}

fn is_flushed(key: u64) -> bool {
    key.is_multiple_of(3)
}

impl Model {
    fn next_version(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    fn check(&self, key: u64, found: (u64, Brief), context: &str) {
        let keys = self.keys.borrow();
        let known = &keys[&key];
        let (version, body) = found;
        assert_eq!(
            known.bodies.get(&version),
            Some(&body),
            "{context}: damaged, or never written: key {key}, {version}"
        );
        let least = known.floor + u64::from(known.deleted);
        assert!(version >= least, "{context}: key {key} gave {version}, {least} was acknowledged ({known:?})");
    }

    /// Acknowledged: nothing older than this may be given any more.
    fn raise(&self, key: u64, version: u64, deleted: bool) {
        let mut keys = self.keys.borrow_mut();
        let known = keys.entry(key).or_default();
        if version >= known.floor {
            (known.floor, known.deleted) = (version, deleted);
        }
    }
}

fn keep(record: &Recovered) -> Keep {
    match (record.flags & FLUSHED != 0, record.stop) {
        (_, Stop::Clean | Stop::Killed) | (true, Stop::PowerCut) => Keep::Trust,
        (_, Stop::PowerCut | Stop::Damaged) => Keep::Discard,
    }
}

/// One user of its own keys (`user` modulo `users`), so that its acknowledgements are in order.
async fn use_log(log: SimLog, model: Model, seed: u64, user: u64, users: u64, steps: usize) -> Result<(), LogError> {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..steps {
        let keys = if random.bool() { HOT_KEYS } else { KEYS };
        let key = random.u64(0..keys / users) * users + user;
        let path = name(key);
        let flags = if is_flushed(key) { FLUSHED } else { 0 };
        match random.u8(0..12) {
            0..=5 => {
                let version = model.next_version();
                let length = match random.u8(0..10) {
                    0 => 0,
                    1..=6 => random.usize(0..3000),
                    7 | 8 => random.usize(3000..17_000),
                    _ => random.usize(17_000..60_000),
                };
                let body = body_of(version, length);
                let brief = Brief(length, crc32fast::hash(&body));
                model.keys.borrow_mut().entry(key).or_default().bodies.insert(version, brief);
                let commit = Commit { flags, ..commit(&path, version, b"m") };
                if random.bool() {
                    let mut staged = log.stage(commit.hash, None)?;
                    for part in body.chunks(random.usize(1..20_000)) {
                        staged.append(body.slice_ref(part)).await?;
                        if random.u8(0..40) == 0 {
                            break;
                        }
                    }
                    if staged.length() < length as u64 {
                        drop(staged);
                        model.keys.borrow_mut().entry(key).or_default().bodies.remove(&version);
                        continue;
                    }
                    match staged.commit(&commit).await {
                        Err(LogError::Gone | LogError::Superseded { .. }) => continue,
                        other => drop(other?),
                    }
                } else {
                    match log.try_append(&commit, &body) {
                        Err(LogError::NoRoom | LogError::Superseded { .. }) => continue,
                        other => drop(other?),
                    }
                }
                if is_flushed(key) {
                    log.flush().await?;
                }
                model.raise(key, version, false);
            }
            6 => {
                let version = model.next_version();
                log.tombstone(hash(&path), &path, version).await?;
                if is_flushed(key) {
                    log.flush().await?;
                }
                model.raise(key, version, true);
            }
            // A cache-only overwrite that stays in RAM above: only the older copies are buried.
            7 => {
                let version = model.next_version();
                match log.try_tombstone(hash(&path), &path, version) {
                    Err(LogError::NoRoom) => continue,
                    other => drop(other?),
                }
                if is_flushed(key) {
                    log.flush().await?;
                }
                model.raise(key, version, true);
            }
            8 => {
                let version = log.version_hint(hash(&path)).unwrap_or(1);
                log.update_meta(hash(&path), &path, version, b"changed", None, 0).await?;
            }
            9 if random.bool() => drop(log.remove(hash(&path))),
            _ => {
                if let Lookup::Found(found) = log.get(hash(&path), &path, 0).await? {
                    let version = found.version;
                    match read(found.body).await {
                        Ok(body) => model.check(key, (version, Brief(body.len(), crc32fast::hash(&body))), "running"),
                        Err(LogError::Gone) => {}
                        Err(other) => return Err(other),
                    }
                }
            }
        }
    }
    Ok(())
}

fn check_all(world: &World, log: &SimLog, model: &Model, context: &str) -> usize {
    world.sim.block_on(async {
        let mut held = 0;
        for key in 0..KEYS {
            let path = name(key);
            let Lookup::Found(found) = log.get(hash(&path), &path, 0).await.expect("reads") else { continue };
            let version = found.version;
            match read(found.body).await {
                Ok(body) => {
                    model.check(key, (version, Brief(body.len(), crc32fast::hash(&body))), context);
                    held += 1;
                }
                Err(LogError::Gone | LogError::Corrupted { .. }) => {}
                Err(other) => panic!("{context}: {other}"),
            }
        }
        held
    })
}

/// Runs a history of several process lives from one seed.
fn history(seed: u64, segments: u64, with_rot: bool) {
    let mut world = World::new(seed, segments);
    world.ring = RingMemory::new(8);
    world.config.buffer_bytes_max = 2 * SEGMENT as usize;
    // Every other index is too small.
    world.config.object_bytes_mean = if seed.is_multiple_of(2) { 256 } else { 16 << 10 };
    let model = Model::default();
    let mut random = fastrand::Rng::with_seed(seed ^ 0xfeed);
    for life in 0..6 {
        let context = format!("seed {seed}, life {life}");
        let (log, opened) = world.try_open(keep).unwrap_or_else(|failed| panic!("{context}: {failed}"));
        assert!(opened.version_max <= model.next.get(), "{context}");
        if !with_rot {
            assert_eq!(opened.damaged, 0, "{context}: tears are not damage: {opened:?}");
        }
        check_all(&world, &log, &model, &context);
        // Recovery may bring back a record whose bytes were torn.
        let corrupted = log.stats().corrupted;
        if opened.stop >= Stop::PowerCut {
            // Noted keys were discarded: what they had acknowledged is gone, and must not come back either.
            for key in (0..KEYS).filter(|key| !is_flushed(*key)) {
                assert!(world.sim.block_on(look(&log, &name(key))).is_err(), "{context}: key {key}");
            }
        }
        if random.bool() {
            let latency = (Duration::ZERO, Duration::from_millis(random.u64(1..30)));
            log.device().set_faults(Faults { latency, ..Faults::default() });
        }
        let users = 4;
        let running = Rc::new(std::cell::Cell::new(users));
        for user in 0..users {
            let (log, model, running) = (log.clone(), model.clone(), running.clone());
            let (user_seed, steps) = (random.u64(..), random.usize(5..120));
            let context = context.clone();
            world.sim.rt().spawn(async move {
                if let Err(failed) = use_log(log, model, user_seed, user, users, steps).await {
                    panic!("{context}, user {user}: {failed}");
                }
                running.set(running.get() - 1);
            });
        }
        let end = random.u8(0..4);
        if end == 0 {
            while running.get() > 0 {
                assert!(world.sim.step(), "{context}: deadlock");
            }
            world.sim.block_on(log.close()).expect("closed");
            assert_eq!(world.sim.tasks(), 0, "{context}");
            world.medium.kill();
        } else {
            for _ in 0..random.u32(1..4000) {
                world.sim.step();
            }
            if end == 1 { world.power_cut() } else { world.kill() }
        }
        assert!(with_rot || log.stats().corrupted == corrupted, "{context}: {:?}", log.stats());
        drop(log);
        world.sim.crash();
        if with_rot && end == 0 {
            let at = random.u64(4096..format::SEGMENTS_AT + segments * u64::from(SEGMENT));
            let len = random.usize(1..64);
            world.medium.rot(at, |page, i| page[i..].iter_mut().take(len).for_each(|b| *b ^= 0xa5));
        }
    }
}

#[test]
fn histories_with_crashes_never_go_back() {
    for seed in 0..100 {
        history(seed, 4 + seed % 9, false);
    }
}

#[test]
fn histories_with_rot_never_go_back_and_never_give_damage() {
    for seed in 1000..1100 {
        history(seed, 4 + seed % 9, true);
    }
}

#[test]
fn what_fits_is_all_there_after_a_kill() {
    for seed in 0..10 {
        let world = World::new(seed, 24);
        let (log, _) = world.open();
        let model = Model::default();
        world.sim.block_on(async {
            for key in 0..KEYS {
                let version = model.next_version();
                let body = body_of(version, 100 * key as usize);
                put(&log, &name(key), version, &body).await.expect("put");
                model.keys.borrow_mut().entry(key).or_default().bodies.insert(version, brief(version, body.len()));
                model.raise(key, version, false);
            }
            log.flush().await.expect("flushed");
        });
        world.kill();
        let (log, _) = world.open();
        assert_eq!(check_all(&world, &log, &model, "liveness") as u64, KEYS, "seed {seed}");
    }
}

#[test]
fn one_seed_is_one_history() {
    let trace = |seed| {
        let world = World::new(seed, 8);
        let (log, _) = world.open();
        let model = Model::default();
        world.sim.block_on(use_log(log.clone(), model, seed, 0, 1, 150)).expect("runs");
        (world.sim.trace(), log.stats())
    };
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3).0, trace(4).0);
}
