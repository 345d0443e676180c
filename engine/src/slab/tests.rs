//! What the slab promises, on small arenas where every edge is near.

mod model;
mod replay;

use bytes::Bytes;

use super::{room::Owner, *};

/// The arena of most tests.
const ARENA: u64 = 1 << 20;

fn slab(arena_bytes: u64) -> Slab {
    // Room for a copy of any body: what happens without is a test of its own.
    let config = Config { copied_bytes_max: arena_bytes, ..Config::new(arena_bytes) };
    Slab::new(config).expect("memory for a small arena")
}

fn hash_of(key: &[u8]) -> u64 {
    // Constant low bits, as the hashes of one shard may have them.
    xxhash_rust::xxh3::xxh3_64(key) << 3 | 5
}

fn entry(key: &[u8], version: u64) -> Entry<'_> {
    Entry { key, hash: hash_of(key), version, meta: b"", expires_ms: 0, flags: 0 }
}

fn put(slab: &mut Slab, key: &[u8], version: u64, body: &[u8]) -> Outcome {
    slab.insert(entry(key, version), body, &mut |_| {})
}

fn body_of(slab: &mut Slab, key: &[u8]) -> Option<Vec<u8>> {
    match slab.get(hash_of(key), key, 0) {
        Lookup::Hit(hit) => Some(hit.body().to_vec()),
        Lookup::Expired(_) | Lookup::Miss => None,
    }
}

fn pin_of(slab: &mut Slab, key: &[u8]) -> Option<Bytes> {
    match slab.get(hash_of(key), key, 0) {
        Lookup::Hit(hit) => hit.pin(),
        Lookup::Expired(_) | Lookup::Miss => None,
    }
}

/// Bytes that tell their key and version.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

/// Walks arena, index and queues and holds every account against the others.
fn check(slab: &mut Slab) {
    slab.settle();
    let slab = &*slab;
    let arena = slab.extents.arena();
    let (mut at, mut free, mut staged, mut limbo, mut heads) = (At(0), 0, 0, 0, 0);
    let mut was_free = false;
    let mut large_seen = 0;
    while at.0 < arena.units() {
        let units = if slab.extents.is_free(at) {
            assert!(!was_free, "free neighbours at {at:?} (INV-EXT-1)");
            let units = slab.extents.free_units_at(at);
            free += units;
            was_free = true;
            units
        } else if let Some(large) = slab.large.get(&at) {
            was_free = false;
            large_seen += 1;
            match large.owner {
                Owner::Entry(head) => {
                    let head = Head::load(arena, head);
                    assert_eq!(head.body, Body::Own { at, bytes: head.body_bytes() as u32 });
                    assert_eq!(large.units, layout::body_units(head.body_bytes()));
                }
                Owner::Stage(stage) => {
                    assert_eq!(slab.stages[stage as usize].at, at);
                    assert_eq!(slab.stages[stage as usize].units, large.units);
                    staged += large.units;
                }
                Owner::Limbo => {
                    assert!(arena.is_pinned(at), "limbo is for pinned bodies");
                    limbo += large.units;
                }
            }
            assert_eq!(at.byte() % 64, 0);
            large.units
        } else {
            was_free = false;
            heads += 1;
            let head = Head::load(arena, at);
            assert_eq!(slab.index.find(arena, head.hash, head.key(arena, at)), Some(at), "every head is indexed");
            head.units()
        };
        assert!(units > 0);
        at = at.plus(units);
    }
    assert_eq!(at.0, arena.units(), "extents fill the arena (INV-EXT-1)");
    assert_eq!(large_seen, slab.large.len(), "no large extent inside another");
    assert_eq!((free, staged, limbo), (slab.extents.free_units(), slab.staged_units, slab.limbo_units));
    assert_eq!(heads, slab.index.len());
    assert_eq!(slab.queues.check(arena), heads);
    let mut counted = slab.staged_units + slab.limbo_units + slab.extents.free_units();
    counted += ((slab.queues.small().bytes() + slab.queues.main().bytes()) / UNIT_BYTES as u64) as u32;
    assert_eq!(counted, arena.units(), "every unit is live, staged, in limbo or free");
}

#[test]
fn a_hit_gives_what_was_stored() {
    let mut slab = slab(ARENA);
    for len in [0, 1, 4095, 4096, 4097, 100_000, 128 << 10] {
        let body = pattern(len as u64, len);
        let key = format!("key-{len}");
        let new = Entry { meta: b"content-type: text/plain", expires_ms: 77, flags: 9, ..entry(key.as_bytes(), 5) };
        assert_eq!(slab.insert(new, &body, &mut |_| {}), Outcome::Stored);
        let Lookup::Hit(hit) = slab.get(new.hash, new.key, 76) else { panic!("{len} bytes are stored") };
        assert_eq!((hit.version(), hit.expires_ms(), hit.flags(), hit.hits()), (5, 77, 9, 0));
        assert_eq!((hit.meta(), hit.body(), hit.body_bytes()), (new.meta, &body[..], len as u64));
        assert_eq!(hit.pin().as_deref(), Some(&body[..]));
        check(&mut slab);
    }
    assert!(matches!(slab.get(hash_of(b"other"), b"other", 0), Lookup::Miss));
    let stats = slab.stats();
    assert_eq!((stats.pins, stats.pins_copied), (3, 1), "below 4 KiB is never pinned, 128 KiB is above the bound");
}

#[test]
fn equal_hashes_do_not_mix_keys() {
    let mut slab = slab(ARENA);
    for key in [b"a", b"b"] {
        let same = Entry { hash: 1, ..entry(key, 1) };
        assert_eq!(slab.insert(same, key, &mut |_| {}), Outcome::Stored);
    }
    let Lookup::Hit(hit) = slab.get(1, b"a", 0) else { panic!("stored") };
    assert_eq!(hit.body(), b"a");
    assert_eq!(slab.remove(1, b"b"), Some(1));
    assert!(matches!(slab.get(1, b"b", 0), Lookup::Miss));
    assert!(matches!(slab.get(1, b"a", 0), Lookup::Hit(_)));
}

#[test]
fn versions_never_go_back() {
    let mut slab = slab(ARENA);
    assert_eq!(put(&mut slab, b"k", 5, b"five"), Outcome::Stored);
    assert_eq!(put(&mut slab, b"k", 4, b"four"), Outcome::Older { current: 5 });
    assert_eq!(body_of(&mut slab, b"k").as_deref(), Some(&b"five"[..]));
    let mut seen = Vec::new();
    let outcome = slab.insert(entry(b"k", 5), b"again", &mut |old| {
        seen.push((old.version, old.body.to_vec(), old.hits, old.reason));
    });
    assert_eq!(outcome, Outcome::Stored);
    assert_eq!(seen, [(5, b"five".to_vec(), 1, Reason::Replaced)]);
    assert_eq!(slab.remove_older(hash_of(b"k"), b"k", 4), None);
    let older = slab.update_meta(entry(b"k", 4), &mut |_| {});
    assert_eq!(older, Update::Older { current: 5 });
    assert_eq!(slab.peek(hash_of(b"k"), b"k").map(|peek| peek.version), Some(5));
    assert_eq!(slab.remove_older(hash_of(b"k"), b"k", 5), Some(5));
    assert_eq!(slab.remove(hash_of(b"k"), b"k"), None);
    let stats = slab.stats();
    assert_eq!((stats.free_bytes, stats.objects, stats.removed), (ARENA, 0, 1));
}

#[test]
fn what_is_above_a_bound_is_refused() {
    let mut slab = slab(ARENA);
    let long = vec![0; META_BYTES_MAX + 1];
    assert_eq!(put(&mut slab, &long[..KEY_BYTES_MAX + 1], 1, b""), Outcome::TooLarge);
    assert_eq!(put(&mut slab, &long[..KEY_BYTES_MAX], 1, b"body"), Outcome::Stored);
    assert_eq!(slab.insert(Entry { meta: &long, ..entry(b"k", 1) }, b"", &mut |_| {}), Outcome::TooLarge);
    assert_eq!(slab.update_meta(Entry { meta: &long, ..entry(b"k", 1) }, &mut |_| {}), Update::TooLarge);
    let full = Entry { meta: &long[1..], ..entry(b"k", 1) };
    assert_eq!(slab.insert(full, b"body", &mut |_| {}), Outcome::Stored);
    assert_eq!(body_of(&mut slab, b"k").as_deref(), Some(&b"body"[..]));
    assert_eq!(put(&mut slab, b"k", 2, &vec![0; (ARENA / 8) as usize + 1]), Outcome::TooLarge);
    assert!(slab.stage(Some(ARENA / 8 + 1), u64::MAX, &mut |_| {}).is_err());
    check(&mut slab);
}

#[test]
fn meta_is_updated_in_place_and_by_moving() {
    let mut slab = slab(ARENA);
    for (key, len) in [(&b"small"[..], 100), (b"large", 50_000)] {
        let body = pattern(1, len);
        assert_eq!(put(&mut slab, key, 1, &body), Outcome::Stored);
        for (version, meta) in [(2, &b"longer than before"[..]), (2, b"as long as before."), (3, b"")] {
            let new = Entry { meta, expires_ms: version, flags: 4, ..entry(key, version) };
            assert_eq!(slab.update_meta(new, &mut |_| panic!("nothing need leave")), Update::Done);
            check(&mut slab);
            let Lookup::Hit(hit) = slab.get(hash_of(key), key, 0) else { panic!("still there") };
            assert_eq!((hit.version(), hit.meta(), hit.expires_ms(), hit.flags()), (version, meta, version, 4));
            assert_eq!(hit.body(), body);
        }
    }
    assert_eq!(slab.update_meta(entry(b"none", 9), &mut |_| {}), Update::Missing);
}

#[test]
fn expired_entries_are_told_from_missing_ones_and_freed() {
    let mut slab = slab(ARENA);
    for number in 0..100u64 {
        let key = number.to_le_bytes();
        let new = Entry { expires_ms: 1_000 + number, ..entry(&key, 1) };
        assert_eq!(slab.insert(new, b"body", &mut |_| {}), Outcome::Stored);
    }
    let first = 0u64.to_le_bytes();
    assert!(matches!(slab.get(hash_of(&first), &first, 999), Lookup::Hit(_)));
    let Lookup::Expired(gone) = slab.get(hash_of(&first), &first, 1_000) else { panic!("past its time") };
    assert_eq!((gone.version, gone.expires_ms, gone.body_bytes), (1, 1_000, 4));
    assert!(matches!(slab.get(hash_of(&first), &first, 1_000), Lookup::Miss));
    let mut swept = Vec::new();
    let mut turns = 0;
    while swept.len() < 49 {
        slab.sweep(1_049, 64, &mut |old| {
            assert_eq!(old.reason, Reason::Expired);
            swept.push(old.expires_ms);
        });
        turns += 1;
        assert!(turns * 64 <= slab.index.buckets() + 64, "one lap finds all");
    }
    swept.sort_unstable();
    assert_eq!(swept, (1_001..=1_049).collect::<Vec<_>>());
    assert_eq!((slab.stats().objects, slab.stats().expired), (50, 50));
    check(&mut slab);
}

#[test]
fn a_scan_sees_every_entry_once_and_removes_what_is_not_kept() {
    let mut slab = slab(ARENA);
    for number in 0..500u32 {
        assert_eq!(put(&mut slab, &number.to_le_bytes(), 1, b"v1"), Outcome::Stored);
    }
    let (mut cursor, mut seen, mut removed) = (Cursor::default(), Vec::new(), 0);
    loop {
        let visited = slab.retain(cursor, 100, &mut |shown| {
            let number = u32::from_le_bytes(shown.key.try_into().expect("four bytes"));
            seen.push(number);
            number % 5 != 0
        });
        removed += visited.removed;
        // New versions keep their place, so that none is seen twice.
        assert_eq!(put(&mut slab, &seen[0].max(1).to_le_bytes(), 2, b"a longer second version"), Outcome::Stored);
        let Some(next) = visited.next else { break };
        cursor = next;
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (0..500).collect::<Vec<_>>());
    assert_eq!(removed, 100);
    check(&mut slab);
}

#[test]
fn a_stage_is_invisible_until_published_and_leaves_nothing_when_dropped() {
    let mut slab = slab(ARENA);
    let body = pattern(3, 100_000);
    for declared in [None, Some(100_000), Some(10)] {
        let mut stage = slab.stage(declared, u64::MAX, &mut |_| {}).expect("room");
        for chunk in body.chunks(7_001) {
            slab.append(&mut stage, chunk, &mut |_| {}).expect("room");
        }
        assert_eq!(slab.staged(&stage), body);
        assert!(slab.stats().staged_bytes >= 100_000);
        assert_eq!(slab.stats().objects, 0);
        drop(stage);
        assert_eq!((slab.stats().staged_bytes, slab.stats().free_bytes), (0, ARENA));
        check(&mut slab);
    }
    for len in [0, 17, 4_095, 4_096, 100_000] {
        let mut stage = slab.stage(None, u64::MAX, &mut |_| {}).expect("room");
        for chunk in body[..len].chunks(7_001) {
            slab.append(&mut stage, chunk, &mut |_| {}).expect("room");
        }
        assert_eq!(slab.publish(stage, entry(b"k", len as u64), &mut |_| {}), Outcome::Stored);
        assert_eq!(body_of(&mut slab, b"k").as_deref(), Some(&body[..len]));
        check(&mut slab);
    }
    let stage = slab.stage(Some(50_000), u64::MAX, &mut |_| {}).expect("room");
    assert_eq!(slab.publish(stage, entry(b"k", 1), &mut |_| {}), Outcome::Older { current: 100_000 });
    assert_eq!(slab.remove(hash_of(b"k"), b"k"), Some(100_000));
    assert_eq!(slab.stats().free_bytes, ARENA);
}

#[test]
fn stages_have_a_bound_and_a_refused_chunk_changes_nothing() {
    let mut slab = slab(ARENA);
    let max = ARENA / 8;
    let mut first = slab.stage(Some(max), max, &mut |_| {}).expect("an eighth");
    let second = slab.stage(Some(max), max, &mut |_| {}).expect("another");
    assert_eq!(slab.stage(Some(1), max, &mut |_| {}).err(), Some(StageError::NoRoom));
    let mut third = slab.stage(None, 10, &mut |_| {}).expect("nothing is taken yet");
    assert_eq!(slab.append(&mut third, b"x", &mut |_| {}), Err(StageError::NoRoom));
    let body = pattern(1, max as usize);
    slab.append(&mut first, &body, &mut |_| {}).expect("declared");
    let more = slab.append(&mut first, b"x", &mut |_| {});
    assert_eq!(more, Err(StageError::TooLarge { bytes_max: max }));
    drop(second);
    slab.append(&mut third, b"0123456789", &mut |_| {}).expect("room again");
    let over = slab.append(&mut third, b"x", &mut |_| {});
    assert_eq!(over, Err(StageError::TooLarge { bytes_max: 10 }));
    assert_eq!(slab.staged(&third), b"0123456789");
    assert_eq!(slab.staged(&first), body);
    check(&mut slab);
}

#[test]
fn pins_dropped_on_other_threads_give_their_bytes_back() {
    let mut slab = slab(ARENA);
    let mut rng = fastrand::Rng::with_seed(11);
    let (send, receive) = std::sync::mpsc::sync_channel::<(Bytes, Vec<u8>)>(8);
    let reader = std::thread::spawn(move || {
        for (pin, body) in receive {
            assert_eq!(pin, body);
            let part = pin.slice(7..);
            drop(pin);
            assert_eq!(part, body[7..]);
        }
    });
    for round in 0..2_000u64 {
        let key = [rng.u8(..90)];
        if rng.bool() {
            let body = pattern(round, rng.usize(4_096..30_000));
            let _ = put(&mut slab, &key, round, &body);
        }
        let body = body_of(&mut slab, &key);
        if let (Some(pin), Some(body)) = (pin_of(&mut slab, &key), body) {
            assert_eq!(pin, body);
            send.send((pin, body)).expect("the reader runs");
        }
        if round % 64 == 0 {
            check(&mut slab);
        }
    }
    drop(send);
    reader.join().expect("every pin kept its bytes");
    let stats = slab.stats();
    assert!(stats.pins > 100 && stats.evictions > 100, "{stats:?}");
    assert_eq!((stats.pinned_bytes, stats.limbo_bytes), (0, 0));
    check(&mut slab);
}

#[test]
fn a_pin_outlives_replacement_removal_and_the_slab() {
    let mut slab = slab(ARENA);
    let (one, two) = (pattern(1, 20_000), pattern(2, 20_000));
    assert_eq!(put(&mut slab, b"k", 1, &one), Outcome::Stored);
    let first = pin_of(&mut slab, b"k").expect("stored");
    assert_eq!(put(&mut slab, b"k", 2, &two), Outcome::Stored);
    let second = pin_of(&mut slab, b"k").expect("stored");
    assert_eq!(slab.stats().limbo_bytes, 20_032);
    assert_eq!(slab.remove(hash_of(b"k"), b"k"), Some(2));
    for number in 0..200u64 {
        assert_eq!(put(&mut slab, &number.to_le_bytes(), 1, &pattern(number, 10_000)), Outcome::Stored);
    }
    check(&mut slab);
    drop(slab);
    assert_eq!((first, second), (Bytes::from(one), Bytes::from(two)));
}

#[test]
fn pins_above_their_bound_are_counted_copies() {
    let mut slab = slab(ARENA);
    let body = pattern(1, 40_000);
    for key in [b"a", b"b", b"c"] {
        assert_eq!(put(&mut slab, key, 1, &body), Outcome::Stored);
    }
    let pins: Vec<_> =
        [b"a", b"b", b"c", b"a"].iter().map(|key| pin_of(&mut slab, &key[..]).expect("stored")).collect();
    assert!(pins.iter().all(|pin| pin == &body));
    let stats = slab.stats();
    assert_eq!((stats.pins, stats.pins_copied, stats.pinned_bytes), (3, 1, 80_000), "an object is charged once");
    drop(pins);
    assert!(pin_of(&mut slab, b"c").is_some());
    assert_eq!((slab.stats().pins, slab.stats().pinned_bytes), (4, 0));
}

#[test]
fn copies_have_a_bound_and_are_charged_until_dropped() {
    let config = Config { pinned_bytes_max: 0, copied_bytes_max: 50_000, ..Config::new(ARENA) };
    let mut slab = Slab::new(config).expect("memory");
    for (key, len) in [(b"a", 30_000), (b"b", 30_000), (b"s", 16 << 10)] {
        assert_eq!(put(&mut slab, key, 1, &pattern(1, len)), Outcome::Stored);
    }
    let copy = pin_of(&mut slab, b"a").expect("below the bound");
    assert_eq!(pin_of(&mut slab, b"b"), None, "two are above it");
    assert!(pin_of(&mut slab, b"s").is_some(), "16 KiB are always given");
    assert_eq!((slab.stats().pins, slab.stats().pins_copied, slab.stats().pins_refused), (0, 2, 1));
    let part = copy.slice(5..6);
    drop(copy);
    assert_eq!(pin_of(&mut slab, b"b"), None, "a part of it is still there");
    std::thread::spawn(move || drop(part)).join().expect("dropped");
    assert!(pin_of(&mut slab, b"b").is_some());
}

#[test]
fn an_arena_full_of_pins_refuses_and_loses_nothing() {
    let mut slab = Slab::new(Config { pinned_bytes_max: ARENA, ..Config::new(ARENA) }).expect("memory");
    let keys: Vec<_> = (0..31u8).map(|number| [number]).collect();
    for key in &keys {
        assert_eq!(put(&mut slab, key, 1, &pattern(key[0].into(), 32_000)), Outcome::Stored);
    }
    let pins: Vec<_> = keys.iter().map(|key| pin_of(&mut slab, key).expect("stored")).collect();
    assert_eq!(slab.stats().evictions, 0);
    let refused = slab.insert(entry(b"new", 1), &[1; 100_000], &mut |_| panic!("nothing may leave"));
    assert_eq!(refused, Outcome::NoRoom);
    assert!(slab.stage(Some(100_000), ARENA, &mut |_| panic!("nothing may leave")).is_err());
    // A second version finds no room beside the pinned first one, which stays.
    let refused = slab.insert(entry(&keys[3], 2), &[1; 100_000], &mut |_| panic!("nothing may leave"));
    assert_eq!(refused, Outcome::NoRoom);
    for (key, pin) in keys.iter().zip(&pins) {
        let body = pattern(key[0].into(), 32_000);
        assert_eq!(pin, &body);
        assert_eq!(body_of(&mut slab, key), Some(body));
    }
    check(&mut slab);
    drop(pins);
    assert_eq!(put(&mut slab, b"new", 1, &[1; 100_000]), Outcome::Stored);
    check(&mut slab);
}

#[test]
fn the_index_never_grows() {
    let mut slab = Slab::new(Config { object_bytes_mean: 4096, ..Config::new(ARENA) }).expect("memory");
    let before = slab.stats();
    for number in 0..20_000u32 {
        assert_eq!(put(&mut slab, &number.to_le_bytes(), 1, b"tiny"), Outcome::Stored);
        // Removals in the midst leave the tombstones that would make a fuller table grow.
        let key = (number / 3 * 3).to_le_bytes();
        slab.remove(hash_of(&key), &key);
    }
    let after = slab.stats();
    assert_eq!(after.objects, before.objects_max);
    assert!(after.evictions > 10_000);
    assert!(after.metadata_bytes <= slab.config().metadata_bytes_max(), "{after:?}");
    assert_eq!(after.metadata_bytes, before.metadata_bytes);
    check(&mut slab);
}

#[test]
fn arena_and_tables_fit_into_the_memory_given() {
    for memory in [1 << 20, 3 << 20, 100 << 20, 5 << 30, 300 << 30] {
        let config = Config::within(memory);
        let total = config.arena_bytes + config.metadata_bytes_max();
        assert!(total <= memory, "{memory}: {config:?}");
        assert!(total * 100 >= memory.min(ARENA_BYTES_MAX) * 85, "{memory}: only {total} used");
    }
    let config = Config::within(2 << 20);
    let mut slab = Slab::new(config).expect("memory");
    for number in 0..2_000u32 {
        let len = if number % 10 == 0 { 5_000 } else { 50 };
        assert_eq!(put(&mut slab, &number.to_le_bytes(), 1, &vec![1; len]), Outcome::Stored);
        assert!(slab.stats().metadata_bytes <= config.metadata_bytes_max());
    }
}
