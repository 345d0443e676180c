//! Behaviour on the simulated device; the model and the faults have files of their own.

mod faults;
mod model;

use bytes::Bytes;

use super::{supersede::RingMemory, *};
use crate::{
    clock::Clock,
    device::{
        file::FileDevice,
        sim::{Faults, Medium, SimDevice},
    },
    rt::sim::{Sim, SimRt},
};

pub(super) type SimLog = Log<SimDevice<SimRt>, SimRt>;

pub(super) const SEGMENT: u32 = SEGMENT_BYTES_MIN;
/// An expiry far ahead of the simulated clock.
const LATE_MS: u64 = 4_000_000_000_000;
pub(super) const BOOT: [u8; 16] = [1; 16];

/// A machine with one disk, one ring and one log on them.
pub(super) struct World {
    pub(super) sim: Sim,
    pub(super) medium: Medium,
    pub(super) ring: RingMemory,
    pub(super) config: Config,
}

impl World {
    pub(super) fn new(seed: u64, segments: u64) -> Self {
        let bytes = format::SEGMENTS_AT + segments * u64::from(SEGMENT);
        let config = Config {
            segment_bytes: Some(SEGMENT),
            object_bytes_mean: 256,
            buffer_bytes_max: 4 * SEGMENT as usize,
            ..Config::new(7, BOOT)
        };
        Self { sim: Sim::new(seed), medium: Medium::new(bytes, seed), ring: RingMemory::new(64), config }
    }

    pub(super) fn try_open(&self, keep: impl Fn(&Recovered) -> Keep) -> Result<(SimLog, Opened), OpenError> {
        let device = Rc::new(self.medium.open(self.sim.rt(), Faults::default()));
        self.sim.block_on(Log::open(device, self.sim.rt(), self.ring.clone(), self.config.clone(), keep))
    }

    pub(super) fn open(&self) -> (SimLog, Opened) {
        self.try_open(|_| Keep::Trust).expect("opens")
    }

    pub(super) fn kill(&self) {
        self.medium.kill();
        self.sim.crash();
    }

    pub(super) fn power_cut(&mut self) {
        self.medium.power_cut(true);
        self.sim.crash();
        self.ring.lose();
        self.config.boot[0] += 1;
    }
}

pub(super) fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

pub(super) fn body_of(version: u64, length: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(version);
    let mut body = vec![0; length];
    random.fill(&mut body);
    body.into()
}

pub(super) fn commit<'a>(key: &'a [u8], version: u64, meta: &'a [u8]) -> Commit<'a> {
    Commit { hash: hash(key), key, version, meta, created_ms: 5, expires_ms: None, flags: 0, note: true }
}

pub(super) async fn put(log: &SimLog, key: &[u8], version: u64, body: &Bytes) -> Result<Committed, LogError> {
    let mut staged = log.stage(hash(key), None)?;
    for part in body.chunks(7000) {
        staged.append(body.slice_ref(part)).await?;
    }
    staged.commit(&commit(key, version, b"meta")).await
}

pub(super) async fn read<D: Device, R: Rt>(mut body: Body<D, R>) -> Result<Vec<u8>, LogError> {
    let mut whole = Vec::new();
    while let Some(chunk) = body.next().await? {
        assert!(!chunk.is_empty());
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}

/// A body in brief: two are equal when their lengths and checksums are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Brief(usize, u32);

pub(super) fn brief(version: u64, length: usize) -> Brief {
    Brief(length, crc32fast::hash(&body_of(version, length)))
}

/// The version and body the log gives for a key, or why not.
pub(super) async fn look(log: &SimLog, key: &[u8]) -> Result<(u64, Brief), Miss> {
    match log.get(hash(key), key, 0).await.expect("no device errors here") {
        Lookup::Miss(miss) => Err(miss),
        Lookup::Found(found) => {
            let body = read(found.body).await.expect("whole");
            Ok((found.version, Brief(body.len(), crc32fast::hash(&body))))
        }
    }
}

#[test]
fn objects_of_every_size_come_back_before_and_after_the_flush_and_after_a_restart() {
    let world = World::new(1, 40);
    let (log, opened) = world.open();
    assert!(opened.is_new);
    let sizes = [0, 1, 100, 4096, 16_000, 16_384, 20_000, 65_536, 200_000, 500_000];
    let check = async |log: &SimLog| {
        for (i, size) in sizes.iter().enumerate() {
            let key = format!("k{i}");
            let version = 100 + i as u64;
            let Lookup::Found(found) = log.get(hash(key.as_bytes()), key.as_bytes(), 0).await.expect("reads") else {
                panic!("{key} of {size} bytes is not there")
            };
            let body = body_of(version, *size);
            assert_eq!((found.version, found.length, &found.meta[..]), (version, *size as u64, &b"meta"[..]));
            assert_eq!((found.checksum, found.created_ms, found.suspect), (crc32fast::hash(&body), 5, false));
            assert_eq!(read(found.body).await.expect("whole"), body);
        }
    };
    world.sim.block_on(async {
        for (i, size) in sizes.iter().enumerate() {
            put(&log, format!("k{i}").as_bytes(), 100 + i as u64, &body_of(100 + i as u64, *size)).await.expect("put");
        }
        check(&log).await;
        log.flush().await.expect("flushed");
        check(&log).await;
        log.close().await.expect("closed");
        assert!(matches!(log.get(1, b"k", 0).await, Err(LogError::Closed)));
    });
    let (log, opened) = world.open();
    assert_eq!((opened.stop, opened.objects, opened.version_max, opened.scanned), (Stop::Clean, 10, 109, 0));
    world.sim.block_on(check(&log));
    world.sim.block_on(put(&log, b"k0", 200, &body_of(200, 9))).expect("put");
    world.sim.block_on(log.flush()).expect("flushed");
    world.kill();
    let (log, opened) = world.open();
    assert_eq!((opened.stop, opened.objects, opened.version_max, opened.scanned), (Stop::Killed, 10, 200, 1));
    world.sim.block_on(async {
        assert_eq!(look(&log, b"k0").await, Ok((200, brief(200, 9))));
        assert_eq!(look(&log, b"k9").await, Ok((109, brief(109, 500_000))));
    });
}

#[test]
fn a_range_reads_only_the_chunks_it_needs() {
    let world = World::new(2, 40);
    let (log, _) = world.open();
    let body = body_of(1, 300_000);
    world.sim.block_on(async {
        put(&log, b"k", 1, &body).await.expect("put");
        log.flush().await.expect("flushed");
        let chunk = log.inner.layout.chunk_bytes as u64;
        for range in [0..0, 0..1, 5..chunk, chunk - 1..chunk + 1, 123_456..234_567, 299_999..300_000, 0..300_000] {
            let Ok(Lookup::Found(mut found)) = log.get(hash(b"k"), b"k", 0).await else { panic!("a hit") };
            found.body.seek(range.clone()).expect("within");
            assert_eq!(found.body.remaining(), range.end - range.start);
            assert_eq!(read(found.body).await.expect("read"), body[range.start as usize..range.end as usize]);
        }
        let Ok(Lookup::Found(mut found)) = log.get(hash(b"k"), b"k", 0).await else { panic!("a hit") };
        assert!(matches!(found.body.seek(0..300_001), Err(LogError::BadRange)));
        // Damage outside the range does not matter, inside it is an error.
        let pointer_of = |n: usize| {
            let state = log.inner.state.borrow();
            let Some(Place::Record { segment, position, .. }) = state.index.get(hash(b"k")).map(|entry| entry.place)
            else {
                panic!("indexed")
            };
            let at = log.inner.layout.byte_at(segment, position);
            let record = world.medium.peek(at, 4096);
            let pointers = format::RECORD_HEADER + 1 + 4;
            format::Pointer::decode(&record[pointers + n * format::POINTER..])
        };
        let third = pointer_of(3);
        let at = log.inner.layout.byte_at(third.segment, third.position) + 500;
        world.medium.rot(at, |page, i| page[i] ^= 1);
        found.body.seek(0..3 * chunk).expect("within");
        assert_eq!(read(found.body).await.expect("not touched"), body[..3 * chunk as usize]);
        let Ok(Lookup::Found(mut found)) = log.get(hash(b"k"), b"k", 0).await else { panic!("a hit") };
        found.body.seek(3 * chunk..3 * chunk + 1).expect("within");
        assert!(matches!(found.body.next().await, Err(LogError::Corrupted { .. })));
        assert_eq!(look(&log, b"k").await, Err(Miss::Removed));
        assert!(!log.may_contain(hash(b"k")) && log.needs_tombstone(hash(b"k")));
        assert_eq!(log.stats().corrupted, 1);
    });
}

#[test]
fn an_abandoned_or_refused_write_is_never_found_and_its_bytes_are_taken_off() {
    let world = World::new(3, 40);
    let (log, _) = world.open();
    world.sim.block_on(async {
        let mut staged = log.stage(hash(b"k"), None).expect("staged");
        staged.append(body_of(1, 100_000)).await.expect("room");
        assert!(log.stats().live_bytes > 60_000);
        drop(staged);
        assert!(log.stats().live_bytes < 20_000, "{}", log.stats().live_bytes);
        let mut staged = log.stage(hash(b"k"), None).expect("staged");
        staged.append(body_of(1, 100_000)).await.expect("room");
        let refused = staged.commit_if(&commit(b"k", 1, b""), || false).await;
        assert!(matches!(refused, Err(LogError::Refused)));
        assert_eq!(look(&log, b"k").await, Err(Miss::Absent));
        assert_eq!((log.stats().aborted, log.stats().objects), (2, 0));
        log.flush().await.expect("flushed");
    });
    world.kill();
    assert_eq!(world.open().1.objects, 0);
}

#[test]
fn the_highest_version_stays_and_tombstones_hide_what_is_below_them() {
    let world = World::new(4, 40);
    let (log, _) = world.open();
    world.sim.block_on(async {
        put(&log, b"a", 10, &body_of(10, 10)).await.expect("put");
        put(&log, b"a", 12, &body_of(12, 20)).await.expect("put");
        let stale = put(&log, b"a", 11, &body_of(11, 10)).await;
        assert!(matches!(stale, Err(LogError::Superseded { held: 12 })));
        assert_eq!(look(&log, b"a").await, Ok((12, brief(12, 20))));
        assert!(!log.tombstone(hash(b"b"), b"b", 5).await.expect("open"), "there is nothing to bury");
        assert!(log.tombstone(hash(b"a"), b"a", 12).await.expect("open"));
        assert_eq!(look(&log, b"a").await.map(|found| found.0), Ok(12), "a copy of that very version stays");
        assert!(log.tombstone(hash(b"a"), b"a", 13).await.expect("open"));
        assert_eq!(look(&log, b"a").await, Err(Miss::Removed));
        assert!(!log.needs_tombstone(hash(b"a")), "its own tombstone is enough");
        assert!(matches!(put(&log, b"a", 12, &body_of(12, 1)).await, Err(LogError::Superseded { held: 13 })));
        log.flush().await.expect("flushed");
    });
    world.kill();
    let (log, opened) = world.open();
    assert_eq!((opened.objects, opened.version_max), (0, 13));
    world.sim.block_on(async {
        assert_eq!(look(&log, b"a").await, Err(Miss::Removed));
        put(&log, b"a", 13, &body_of(13, 10)).await.expect("the version of the tombstone is the new copy's");
        assert_eq!(look(&log, b"a").await.map(|found| found.0), Ok(13));
        log.close().await.expect("closed");
    });
    let (log, _) = world.open();
    assert_eq!(world.sim.block_on(look(&log, b"a")).map(|found| found.0), Ok(13));
}

#[test]
fn a_quarter_of_the_log_is_the_most_one_object_takes() {
    let world = World::new(5, 8);
    let (log, _) = world.open();
    let max = log.object_bytes_max();
    assert_eq!(max, 2 * u64::from(SEGMENT));
    world.sim.block_on(async {
        assert!(matches!(log.stage(1, Some(max + 1)), Err(LogError::TooLarge { .. })));
        let mut staged = log.stage(hash(b"k"), None).expect("unknown length");
        staged.append(body_of(1, max as usize)).await.expect("exactly the most");
        assert!(matches!(staged.append(Bytes::from_static(b"x")).await, Err(LogError::TooLarge { .. })));
        put(&log, b"k", 1, &body_of(1, max as usize)).await.expect("exactly the most");
        assert_eq!(look(&log, b"k").await, Ok((1, brief(1, max as usize))));
        assert_eq!(log.stats().too_large, 2);
        let long = vec![b'k'; 20_000];
        assert!(matches!(put(&log, &long, 1, &Bytes::new()).await, Err(LogError::HeadTooLarge { .. })));
    });
}

#[test]
fn expiry_is_a_miss_at_its_millisecond_and_after_a_restart() {
    let world = World::new(6, 8);
    let (log, _) = world.open();
    let start = world.sim.clock().wall_ms();
    world.sim.block_on(async {
        let expiring = Commit { expires_ms: Some(start + 5000), ..commit(b"k", 1, b"") };
        log.try_append(&expiring, b"short-lived").expect("room");
        let at = |now| log.get(hash(b"k"), b"k", now);
        assert!(matches!(at(start + 4999).await, Ok(Lookup::Found(found)) if found.expires_ms == Some(start + 5000)));
        assert!(matches!(at(start + 5000).await, Ok(Lookup::Miss(Miss::Expired))));
        log.try_append(&Commit { version: 2, ..expiring }, b"short-lived").expect("room");
        log.close().await.expect("closed");
    });
    world.sim.clock().advance(Duration::from_secs(7));
    let (log, opened) = world.open();
    assert_eq!((opened.expired, opened.objects), (2, 0), "both versions");
    assert!(log.needs_tombstone(hash(b"k")), "what expired still lies there");
}

#[test]
fn metadata_is_replaced_without_the_body() {
    let world = World::new(7, 40);
    let (log, _) = world.open();
    // The second fills its record to the last byte.
    let sizes = [(&b"small"[..], 100), (b"full", 16_384 - 64 - 8), (b"large", 200_000)];
    world.sim.block_on(async {
        for (key, size) in sizes {
            put(&log, key, 1, &body_of(1, size)).await.expect("put");
            let before = log.stats().appended_bytes;
            assert!(log.update_meta(hash(key), key, 1, b"other", Some(LATE_MS), 0).await.expect("open"));
            assert!(log.stats().appended_bytes - before < 600 || key == b"full");
            assert!(!log.update_meta(hash(key), key, 2, b"no", None, 0).await.expect("open"), "no such version");
            assert!(!log.update_meta(hash(key), key, 1, b"no", None, LATE_MS).await.expect("open"), "it has ended");
        }
        log.flush().await.expect("flushed");
    });
    world.kill();
    let (log, _) = world.open();
    world.sim.block_on(async {
        for (key, size) in sizes {
            let Ok(Lookup::Found(found)) = log.get(hash(key), key, 0).await else { panic!("a hit") };
            assert_eq!((&found.meta[..], found.expires_ms), (&b"other"[..], Some(LATE_MS)));
            assert_eq!(read(found.body).await.expect("whole"), body_of(1, size));
        }
    });
}

#[test]
fn laps_keep_the_newest_and_what_is_hit_and_serve_at_least_half_the_log() {
    let mut world = World::new(8, 128);
    world.config.segment_bytes = Some(16 * SEGMENT);
    let (log, _) = world.open();
    let (hot, chunked) = (brief(1, 2000), brief(1, 150_000));
    world.sim.block_on(async {
        let put_and_read_the_favourite = async |i: u64| {
            put(&log, format!("k{i}").as_bytes(), 1 + i, &body_of(1 + i, 6000)).await.expect("put");
            assert_eq!(look(&log, b"hot").await, Ok((1, hot)), "after {i}");
            assert_eq!(look(&log, b"chunked").await, Ok((1, chunked)), "after {i}");
        };
        put(&log, b"hot", 1, &body_of(1, 2000)).await.expect("put");
        put(&log, b"chunked", 1, &body_of(1, 150_000)).await.expect("put");
        for i in 0..5000 {
            put_and_read_the_favourite(i).await;
        }
        let stats = log.stats();
        assert!(stats.reclaimed_segments > 20 && stats.reinserted_objects >= 4, "{stats:?}");
        assert_eq!((stats.corrupted, stats.gone), (0, 0), "{stats:?}");
        let mut held = 0;
        for i in 0..5000 {
            match look(&log, format!("k{i}").as_bytes()).await {
                Ok(found) => {
                    assert_eq!(found, (1 + i, brief(1 + i, 6000)));
                    held += 1;
                }
                Err(miss) => assert!(i < 4500, "k{i}: {miss:?}"),
            }
        }
        assert!(held > 8 * 1024 / 6 / 2, "{held}");
        log.flush().await.expect("flushed");
    });
    let objects = log.stats().objects;
    world.kill();
    let (log, opened) = world.open();
    assert!(opened.objects >= objects && opened.damaged == 0, "{opened:?}, {objects} before");
    assert_eq!(world.sim.block_on(look(&log, b"k4999")).map(|found| found.0), Ok(5000));
    assert_eq!(world.sim.block_on(look(&log, b"hot")).map(|found| found.0), Ok(1));
}

#[test]
fn a_reader_that_is_lapped_is_told() {
    let world = World::new(9, 8);
    let (log, _) = world.open();
    world.sim.block_on(async {
        put(&log, b"large", 1, &body_of(1, 100_000)).await.expect("put");
        let Ok(Lookup::Found(mut found)) = log.get(hash(b"large"), b"large", 0).await else { panic!("a hit") };
        assert!(found.body.next().await.expect("read").is_some());
        let mut staged = log.stage(hash(b"slow"), None).expect("staged");
        staged.append(body_of(1, 50_000)).await.expect("room");
        for i in 0..300 {
            put(&log, format!("k{i}").as_bytes(), 1, &body_of(1, 3000)).await.expect("put");
        }
        assert!(matches!(found.body.next().await, Err(LogError::Gone)));
        assert!(look(&log, b"large").await.is_err());
        assert!(matches!(staged.commit(&commit(b"slow", 2, b"")).await, Err(LogError::Gone)));
        assert_eq!(look(&log, b"slow").await, Err(Miss::Absent));
    });
}

#[test]
fn an_object_whose_beginning_was_reclaimed_is_a_miss_not_a_cut_body() {
    let world = World::new(16, 12);
    let (log, _) = world.open();
    world.sim.block_on(async {
        put(&log, b"large", 1, &body_of(1, 150_000)).await.expect("put");
        for i in 0..500 {
            put(&log, format!("k{i}").as_bytes(), 1, &body_of(1, 3000)).await.expect("put");
            // A cut body would not be whole.
            match look(&log, b"large").await {
                Ok(found) => assert_eq!(found.0, 1),
                Err(miss) => {
                    assert_eq!(miss, Miss::Gone, "its commit record is still there");
                    assert_eq!((log.stats().gone, log.stats().corrupted), (1, 0));
                    return;
                }
            }
        }
        panic!("never reclaimed");
    });
}

#[test]
fn a_read_that_reclaim_overtakes_is_gone_not_damaged() {
    let world = World::new(17, 8);
    let (log, _) = world.open();
    let slow = Faults { latency: (Duration::ZERO, Duration::from_secs(5)), ..Faults::default() };
    let mut gone = 0;
    for round in 0..40 {
        world.sim.block_on(async {
            put(&log, b"victim", 1 + round, &body_of(1, 30_000)).await.expect("put");
            log.flush().await.expect("flushed");
            let Ok(Lookup::Found(mut found)) = log.get(hash(b"victim"), b"victim", 0).await else { panic!("a hit") };
            log.device().set_faults(slow);
            let mut read = Box::pin(found.body.next());
            assert!(futures_lite::future::poll_once(&mut read).await.is_none());
            log.device().set_faults(Faults::default());
            for i in 0..200 {
                put(&log, format!("k{i}").as_bytes(), 1 + round, &body_of(1, 3000)).await.expect("put");
            }
            gone += u32::from(matches!(read.await, Err(LogError::Gone)));
        });
    }
    assert!(gone > 20 && log.stats().corrupted == 0, "{gone} gone, {:?}", log.stats());
}

#[test]
fn a_sealed_segment_is_durable_before_the_next_is_begun() {
    for seed in 0..20 {
        let mut world = World::new(seed, 16);
        let (log, _) = world.open();
        world.sim.block_on(async {
            for i in 0..100 {
                put(&log, format!("k{i}").as_bytes(), 1 + i, &body_of(1, 3000)).await.expect("put");
            }
            world.sim.rt().sleep(Duration::from_secs(1)).await;
        });
        world.power_cut();
        let (log, opened) = world.open();
        assert_eq!((opened.stop, opened.damaged), (Stop::PowerCut, 0), "seed {seed}");
        world.sim.block_on(async {
            for i in 0..60 {
                assert!(look(&log, format!("k{i}").as_bytes()).await.is_ok(), "seed {seed}: k{i}");
            }
        });
    }
}

#[test]
fn without_waiting_there_is_a_point_where_the_buffer_is_full() {
    let world = World::new(10, 40);
    let (log, _) = world.open();
    let refused = (0..1000).find(|i| {
        let key = format!("k{i}");
        match log.try_append(&commit(key.as_bytes(), 1, b""), &body_of(1, 3000)) {
            Ok(_) => false,
            Err(LogError::NoRoom) => true,
            Err(other) => panic!("{other}"),
        }
    });
    let refused = refused.expect("the buffer is bounded");
    assert!((60..90).contains(&refused), "{refused}");
    assert!(log.stats().buffered_bytes <= 4 * u64::from(SEGMENT));
    assert!(matches!(log.try_append(&commit(b"large", 1, b""), &body_of(1, 100_000)), Err(LogError::NoRoom)));
    world.sim.block_on(async {
        log.flush().await.expect("flushed");
        assert!(log.try_append(&commit(b"large", 1, b""), &body_of(1, 100_000)).is_ok());
        assert_eq!(look(&log, b"large").await, Ok((1, brief(1, 100_000))));
        assert_eq!(look(&log, b"k0").await.map(|found| found.0), Ok(1));
    });
}

#[test]
fn a_lone_record_is_on_flash_after_the_flush_interval_and_flushes_share_syncs() {
    let world = World::new(11, 40);
    let (log, _) = world.open();
    world.sim.block_on(async {
        put(&log, b"k", 1, &body_of(1, 10)).await.expect("put");
        let rt = world.sim.rt();
        rt.sleep(Duration::from_millis(50)).await;
        assert_eq!(log.stats().flushes, 0);
        rt.sleep(Duration::from_millis(80)).await;
        assert_eq!((log.stats().flushes, log.stats().buffered_bytes), (1, 0));
        let syncs = log.stats().syncs;
        for i in 0..64_u64 {
            let log = log.clone();
            world.sim.rt().spawn(async move {
                put(&log, format!("k{i}").as_bytes(), 2, &body_of(2, 10)).await.expect("put");
                log.flush().await.expect("flushed");
            });
        }
        rt.sleep(Duration::from_millis(50)).await;
        let syncs = log.stats().syncs - syncs;
        assert!((1..20).contains(&syncs), "{syncs} syncs for 64 flushes");
        log.flush().await.expect("flushed");
    });
}

#[test]
fn colliding_keys_cost_misses_never_old_copies() {
    let mut world = World::new(12, 40);
    // A small table has few classes.
    world.config.object_bytes_mean = 1 << 20;
    let (log, _) = world.open();
    // Two hashes of one class.
    let (mut random, first) = (fastrand::Rng::with_seed(1), 42);
    let at = |hash: u64, key: &'static [u8], version: u64| Commit { hash, ..commit(key, version, b"") };
    log.try_append(&at(first, b"first", 1), b"one").expect("room");
    let second = std::iter::repeat_with(|| random.u64(..)).find(|hash| log.may_contain(*hash)).expect("soon");
    world.sim.block_on(async {
        assert!(matches!(log.get(second, b"second", 0).await, Ok(Lookup::Miss(Miss::Collision))));
        assert_eq!(log.stats().collisions, 1);
        log.try_append(&at(second, b"second", 2), b"two").expect("room");
        assert!(matches!(log.get(first, b"first", 0).await, Ok(Lookup::Miss(Miss::Collision))));
        assert!(log.needs_tombstone(first), "its record still lies there");
        assert!(log.tombstone(first, b"first", 3).await.expect("open"));
        assert!(matches!(log.get(second, b"second", 0).await, Ok(Lookup::Miss(Miss::Removed))), "a miss, no more");
        assert!(log.needs_tombstone(second) && !log.needs_tombstone(first));
        log.flush().await.expect("flushed");
    });
    world.kill();
    let (log, opened) = world.open();
    assert_eq!(opened.objects, 0);
    assert!(log.needs_tombstone(second) && !log.needs_tombstone(first));
}

#[test]
fn a_full_index_forgets_the_oldest_and_remembers_that_it_forgot() {
    let mut world = World::new(13, 8);
    world.config.object_bytes_mean = 16 << 10;
    let (log, _) = world.open();
    let forgotten = world.sim.block_on(async {
        assert!(!log.needs_tombstone(1));
        let (_, slots) = log.inner.state.borrow().index.fill();
        for i in 0..slots as u64 + 20 {
            put(&log, format!("k{i}").as_bytes(), 1 + i, &body_of(1, 100)).await.expect("put");
        }
        let stats = log.stats();
        assert!(stats.index_evicted >= 20 && stats.index_entries <= stats.index_slots, "{stats:?}");
        assert!(log.needs_tombstone(hash(b"any")), "blind until the segment is reclaimed");
        let forgotten = (0..slots).map(|i| format!("k{i}")).find(|key| !log.may_contain(hash(key.as_bytes())));
        let forgotten = forgotten.expect("one of them");
        assert!(log.tombstone(hash(forgotten.as_bytes()), forgotten.as_bytes(), 5000).await.expect("open"));
        log.flush().await.expect("flushed");
        forgotten
    });
    world.kill();
    let (log, _) = world.open();
    world.sim.block_on(async {
        assert!(look(&log, forgotten.as_bytes()).await.is_err());
        // A lap later nothing is blind.
        for i in 0..200 {
            put(&log, b"same", 6000 + i, &body_of(1, 3000)).await.expect("put");
        }
        assert_eq!(log.stats().segments_blind, 0);
        assert!(!log.needs_tombstone(hash(b"any")));
    });
}

#[test]
fn recovery_goes_by_version_not_by_position() {
    let mut world = World::new(18, 8);
    world.config.object_bytes_mean = 16 << 10;
    let (log, _) = world.open();
    world.sim.block_on(async {
        put(&log, b"k", 50, &body_of(50, 10)).await.expect("put");
        // The index forgets, and a stale writer that its owner should have stopped gets through.
        for i in 0.. {
            if !log.may_contain(hash(b"k")) {
                break;
            }
            put(&log, format!("k{i}").as_bytes(), 1000, &body_of(1, 100)).await.expect("put");
        }
        put(&log, b"k", 40, &body_of(40, 10)).await.expect("put");
        log.flush().await.expect("flushed");
    });
    world.kill();
    world.config.object_bytes_mean = 256;
    let (log, _) = world.open();
    assert_eq!(world.sim.block_on(look(&log, b"k")), Ok((50, brief(50, 10))));
    assert!(log.needs_tombstone(hash(b"any")), "the older one lies behind: blind");
}

#[test]
fn a_killed_process_does_not_bring_back_what_it_had_acknowledged_as_gone() {
    let world = World::new(14, 8);
    let (log, _) = world.open();
    world.sim.block_on(async {
        for key in [b"set", b"del", b"old"] {
            put(&log, key, 1, &body_of(1, 100)).await.expect("put");
        }
        log.flush().await.expect("flushed");
        put(&log, b"set", 2, &body_of(2, 100)).await.expect("put");
        assert!(log.tombstone(hash(b"del"), b"del", 2).await.expect("open"));
        assert_eq!(log.stats().ring_used, 2);
    });
    world.kill();
    let (log, opened) = world.open();
    assert_eq!((opened.notes, opened.objects, opened.stop), (2, 1, Stop::Killed));
    world.sim.block_on(async {
        assert_eq!(look(&log, b"set").await, Err(Miss::Removed));
        assert_eq!(look(&log, b"del").await, Err(Miss::Removed));
        assert_eq!(look(&log, b"old").await.map(|found| found.0), Ok(1));
        assert_eq!(log.stats().ring_used, 2, "until the tombstones are on flash");
        log.flush().await.expect("flushed");
        assert_eq!(log.stats().ring_used, 0);
    });
    world.kill();
    let (log, opened) = world.open();
    assert_eq!((opened.notes, opened.objects), (0, 1), "{:?}", log.stats());
}

#[test]
fn a_full_ring_forces_the_flush_first() {
    let mut world = World::new(15, 40);
    world.ring = RingMemory::new(4);
    world.config.flush_interval = Duration::from_secs(3600);
    let (log, _) = world.open();
    world.sim.block_on(async {
        for i in 0..20_u64 {
            put(&log, format!("k{i}").as_bytes(), 1, &body_of(1, 10)).await.expect("put");
        }
        assert_eq!((log.stats().flushes, log.stats().ring_used), (0, 0), "nothing older is on flash: nothing to note");
        for i in 0..20_u64 {
            put(&log, format!("k{i}").as_bytes(), 2, &body_of(2, 10)).await.expect("put");
            assert!(log.stats().ring_used <= 4);
        }
        assert!(log.stats().ring_waits >= 4 && log.stats().flushes >= 4, "{:?}", log.stats());
        for i in 0..4 {
            let key = format!("k{i}");
            drop(log.try_tombstone(hash(key.as_bytes()), key.as_bytes(), 3));
        }
        let full = log.try_tombstone(hash(b"k9"), b"k9", 3);
        assert!(matches!(full, Err(LogError::NoRoom)));
        assert_eq!(look(&log, b"k9").await.map(|found| found.0), Ok(2), "a refused tombstone does nothing");
    });
}

#[test]
fn the_real_file_keeps_objects_across_a_restart() {
    #[derive(Clone)]
    struct GlommioRt(crate::clock::MachineClock);
    impl Rt for GlommioRt {
        type Clock = crate::clock::MachineClock;
        fn clock(&self) -> &Self::Clock {
            &self.0
        }
        fn spawn(&self, task: impl Future<Output = ()> + 'static) {
            glommio::spawn_local(task).detach();
        }
        fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
            glommio::timer::sleep(duration)
        }
        fn yield_now(&self) -> impl Future<Output = ()> + 'static {
            futures_lite::future::yield_now()
        }
        fn random(&self) -> u64 {
            fastrand::u64(..)
        }
    }
    let binary = std::env::current_exe().expect("a test binary");
    let folder = tempfile::tempdir_in(binary.parent().expect("in a folder")).expect("a folder on a disk");
    let (path, ring_path) = (folder.path().join("log"), folder.path().join("ring"));
    let clock = crate::clock::MachineClock::start();
    glommio::LocalExecutor::default().run(async move {
        let open = async || {
            let device = Rc::new(FileDevice::open(&path, 16 << 20).await.expect("opens"));
            let ring = supersede::RingFile::open(&ring_path, 64).expect("opens");
            let config = Config::new(1, BOOT);
            Log::open(device, GlommioRt(clock), ring, config, |_| Keep::Suspect).await.expect("opens")
        };
        let (log, opened) = open().await;
        assert!(opened.is_new);
        let sizes: Vec<usize> = (0..60).map(|i| i * i * 301 % 700_000).collect();
        for (i, size) in sizes.iter().enumerate() {
            let key = format!("k{i}");
            let mut staged = log.stage(hash(key.as_bytes()), None).expect("staged");
            staged.append(body_of(i as u64, *size)).await.expect("room");
            staged.commit(&commit(key.as_bytes(), 1 + i as u64, b"m")).await.expect("committed");
        }
        log.close().await.expect("closed");
        log.device().close().await.expect("closed");
        drop(log);

        let (log, opened) = open().await;
        assert_eq!(opened.stop, Stop::Clean);
        let mut held = 0;
        for (i, size) in sizes.iter().enumerate() {
            let key = format!("k{i}");
            let Ok(Lookup::Found(found)) = log.get(hash(key.as_bytes()), key.as_bytes(), 0).await else { continue };
            assert!(found.suspect);
            assert_eq!(read(found.body).await.expect("whole"), body_of(i as u64, *size));
            log.mark_verified(hash(key.as_bytes()), found.version);
            let Ok(Lookup::Found(again)) = log.get(hash(key.as_bytes()), key.as_bytes(), 0).await else { panic!() };
            assert!(!again.suspect);
            held += 1;
        }
        assert!(held >= 30, "{held} of 60 held: {:?}", log.stats());
        log.close().await.expect("closed");
        log.device().close().await.expect("closed");
    });
}
