//! The embedded L3 as the node runs it: real files, real threads, restarts and kills.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use futures_lite::future::block_on;
use strata::{
    cache::{CacheError, CacheKey, CacheMeta, MissHandler, Precondition, Storage},
    config::Reserve,
    namespace::Held,
    reason::Reason,
    storage::{
        bridge::Bridge,
        durable::{
            DurableSettings, DurableTier,
            executor::{DurableConfig, DurableExecutor, StartError},
            local::LocalBlobStore,
            pool::Pool,
            redb::{OpenError, RedbIndexStore},
            room::Room,
        },
        memory::{InMemoryBlobStore, InMemoryIndexStore},
        traits::PurgeScope,
    },
    tokio_rt::TokioRt,
    version::VersionClock,
};
use tempfile::TempDir;

use crate::{
    storage::{Caps, suite},
    stores::all,
    support::{SetTime, TestClock, body, get, key, meta_of, on_tokio, put, put_with},
};

const CACHE_BYTES: usize = 8 << 20;

fn local(dir: &Path, clock: &TestClock, room: &Room) -> LocalBlobStore<TestClock> {
    LocalBlobStore::open(dir, clock.clone(), Pool::start("blobs").expect("threads"), room.clone()).expect("opens")
}

fn index(dir: &Path, room: &Room) -> RedbIndexStore {
    let pool = Pool::start("index").expect("threads");
    RedbIndexStore::open(&dir.join("index.redb"), CACHE_BYTES, pool, room.clone()).expect("opens")
}

async fn over<B, I>(rt: &TokioRt<TestClock>, blobs: B, index: I) -> DurableTier<B, I, TokioRt<TestClock>>
where
    B: strata::storage::traits::BlobStore + 'static,
    I: strata::storage::traits::IndexStore + 'static,
{
    let settings = DurableSettings::default();
    DurableTier::open(rt.clone(), blobs, index, VersionClock::new(1), settings).await.expect("opens")
}

#[test]
fn a_durable_tier_over_any_pair_of_stores_is_a_storage() {
    on_tokio(async |rt, clock| {
        let dirs = RefCell::new(Vec::new());
        let fresh = || {
            let dir = TempDir::new().expect("a directory");
            let (path, room) = (dir.path().to_owned(), Room::new(dir.path(), None, Reserve::Bytes(0)));
            dirs.borrow_mut().push(dir);
            (path, room)
        };
        let embedded = async || {
            let (dir, room) = fresh();
            over(&rt, local(&dir, &clock, &room), index(&dir, &room)).await
        };
        suite(embedded, &clock, Caps::durable()).await;
        let local_blobs = async || {
            let (dir, room) = fresh();
            over(&rt, local(&dir, &clock, &room), InMemoryIndexStore::new(rt.clone())).await
        };
        suite(local_blobs, &clock, Caps::durable()).await;
        let redb_index = async || {
            let (dir, room) = fresh();
            over(&rt, InMemoryBlobStore::new(rt.clone()), index(&dir, &room)).await
        };
        suite(redb_index, &clock, Caps::durable()).await;
    });
}

pub(crate) fn config(dir: &Path) -> DurableConfig {
    DurableConfig {
        dir: dir.join("l3"),
        bytes_max: None,
        disk_reserve: Reserve::Bytes(0),
        index_cache_bytes: CACHE_BYTES,
        node_id: 1,
        is_new: true,
        clients: 1,
        settings: DurableSettings {
            turn_pause: Duration::from_millis(1),
            lap_pause: Duration::from_millis(5),
            blob_grace: Duration::from_millis(20),
            ..DurableSettings::default()
        },
    }
}

pub(crate) fn start(dir: &Path, clock: &TestClock) -> (DurableExecutor, Bridge) {
    let (executor, mut bridges) = DurableExecutor::start(config(dir), clock.clone()).expect("starts");
    (executor, bridges.pop().expect("one client"))
}

#[test]
fn the_executor_serves_a_storage() {
    let clock = TestClock::start();
    let held = RefCell::new(Vec::new());
    let make = async || {
        let dir = TempDir::new().expect("a directory");
        let (executor, bridge) = start(dir.path(), &clock);
        held.borrow_mut().push((executor, dir));
        bridge
    };
    block_on(suite(make, &clock, Caps::durable()));
}

#[test]
fn what_was_stored_is_there_after_a_restart() {
    let (dir, clock) = (TempDir::new().expect("a directory"), TestClock::start());
    let (executor, bridge) = start(dir.path(), &clock);
    let bodies: Vec<_> = (0..30).map(|i| body(i, [10, 65_536, 65_537, 500_000][i as usize % 4])).collect();
    let before = block_on(async {
        for (i, bytes) in bodies.iter().enumerate() {
            put(&bridge, &key(&i.to_string()), bytes).await;
        }
        bridge.purge(&key("3"), Precondition::None).await.expect("purged");
        let record = executor.control().purge_scope(PurgeScope::Key("ns/4".into())).await.expect("an answer");
        assert!(record.is_some());
        executor.control().stats().await.expect("running")
    });
    assert_eq!(before.tier.commits, 30);
    executor.stop();
    assert!(matches!(
        block_on(bridge.lookup(&key("1"))).map(drop),
        Err(CacheError::Unavailable { reason: Reason::Unavailable, .. })
    ));
    let (executor, bridge) = start(dir.path(), &clock);
    block_on(async {
        for (i, bytes) in bodies.iter().enumerate() {
            let found = get(&bridge, &key(&i.to_string())).await.map(|(_, bytes)| bytes);
            assert!(found.as_ref() == (i != 3 && i != 4).then_some(bytes), "object {i}");
        }
        let stats = executor.control().stats().await.expect("running");
        assert_eq!((stats.tier.hits, stats.tier.misses.get(Reason::Deleted)), (28, 1));
        // The sweep may have been there first.
        assert_eq!(stats.tier.misses.get(Reason::Purged) + stats.tier.misses.get(Reason::NotFound), 1);
        assert_eq!(stats.used.staged, 0);
        assert!(stats.used.blobs > 0 && stats.index.objects >= 28);
    });
}

#[test]
fn what_a_namespace_has_is_known_over_restarts() {
    on_tokio(async |rt, clock| {
        let dir = TempDir::new().expect("a directory");
        let room = Room::new(dir.path(), None, Reserve::Bytes(0));
        let open = async || over(&rt, local(dir.path(), &clock, &room), index(dir.path(), &room)).await;
        let held = |objects, bytes| Held { objects, bytes };
        let tier = open().await;
        assert_eq!(tier.index().held(), Some(BTreeMap::new()));
        for i in 0..20_usize {
            put(&tier, &CacheKey::new("a", i.to_string().as_bytes(), 0).expect("valid"), &body(1, 100)).await;
        }
        let large = CacheKey::new("b", b"large", 0).expect("valid");
        put(&tier, &large, &body(2, 90_000)).await;
        put(&tier, &large, &body(3, 80_000)).await;
        let gone = CacheKey::new("a", b"7", 0).expect("valid");
        tier.purge(&gone, Precondition::None).await.expect("purged");
        let both = BTreeMap::from([("a".into(), held(19, 1900)), ("b".into(), held(1, 80_000))]);
        assert_eq!(tier.index().held(), Some(both.clone()), "a tombstone is no object");
        drop(tier);

        let tier = open().await;
        assert_eq!(tier.index().held(), Some(both.clone()), "from the rows");
        drop(tier);
        // As a program that does not know the rows would leave them.
        let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
        for key in ["namespaces", "namespace/a"] {
            let db = redb::Database::open(dir.path().join("index.redb")).expect("closed");
            let write = db.begin_write().expect("opened");
            write.open_table(meta).expect("there").insert(key, &[0; 20][..]).expect("written");
            write.commit().expect("written");
            drop(db);
            let tier = open().await;
            assert_eq!(tier.index().held(), Some(both.clone()), "counted, as {key} is damaged");
            put(&tier, &large, &body(4, 80_000)).await;
            drop(tier);
            assert_eq!(open().await.index().held(), Some(both.clone()), "from the rows again");
        }
        let tier = open().await;
        tier.purge(&large, Precondition::None).await.expect("purged");
        assert_eq!(tier.index().held(), Some(BTreeMap::from([("a".into(), held(19, 1900))])));
    });
}

#[test]
fn sixty_four_writers_share_few_commits() {
    let (dir, clock) = (TempDir::new().expect("a directory"), TestClock::start());
    let (executor, bridge) = start(dir.path(), &clock);
    block_on(async {
        let rounds = 8;
        for round in 0..rounds {
            let bytes = body(round, 1_024);
            let keys: Vec<_> = (0..64).map(|i| key(&format!("{round}-{i}"))).collect();
            all(keys.iter().map(|key| put(&bridge, key, &bytes))).await;
        }
        let stats = executor.control().stats().await.expect("running");
        assert_eq!(stats.tier.commits, 64 * rounds);
        assert!(stats.index.commits <= 16 * rounds, "{} transactions", stats.index.commits);
    });
}

#[test]
fn the_sweep_gives_space_back_by_itself() {
    let (dir, clock) = (TempDir::new().expect("a directory"), TestClock::start());
    let (executor, bridge) = start(dir.path(), &clock);
    block_on(async {
        let large = body(1, 200_000);
        for round in 0..5_u64 {
            for i in 0..4 {
                let meta = CacheMeta { expires_ms: Some(clock.now_ms() + 3_600_000), ..meta_of(&large) };
                put_with(&bridge, &key(&i.to_string()), meta, Precondition::None, &large, 70_000)
                    .await
                    .expect("stored");
            }
            assert!(round == 0 || get(&bridge, &key("0")).await.is_some());
        }
        clock.advance_wall(Duration::from_secs(3_600 + 60));
        let mut empty = false;
        for _ in 0..2_000 {
            let stats = executor.control().stats().await.expect("running");
            let swept = (stats.tier.sweep.expired, stats.tier.sweep.replaced);
            empty = stats.used.total() == 0 && swept == (4, 20);
            if empty {
                break;
            }
            // Another thread works: a probe with a bound.
            thread::sleep(Duration::from_millis(5));
        }
        assert!(empty, "{:?}", executor.control().stats().await);
        let blobs = dir.path().join("l3/blobs");
        let files =
            fs::read_dir(blobs).expect("fans").flat_map(|fan| fs::read_dir(fan.expect("a fan").path()).expect("files"));
        assert_eq!(files.count(), 0);
    });
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_and_left_alone() {
    let (dir, clock) = (TempDir::new().expect("a directory"), TestClock::start());
    let (executor, bridge) = start(dir.path(), &clock);
    block_on(put(&bridge, &key("a"), &body(1, 100)));
    executor.stop();
    drop(bridge);
    let l3 = dir.path().join("l3");
    fs::write(l3.join("tmp/left"), b"by a crash").expect("written");
    let good = fs::read(l3.join("index.redb")).expect("the index");
    fs::write(l3.join("index.redb"), b"not an index").expect("written");
    let error = DurableExecutor::start(config(dir.path()), clock.clone()).err().expect("refused");
    assert!(matches!(error, StartError::Index(OpenError::Unreadable { .. })), "{error}");
    assert!(error.to_string().contains("index.redb"), "{error}");
    assert!(l3.join("tmp/left").exists(), "nothing was changed");
    fs::write(l3.join("index.redb"), good).expect("written");
    let (_executor, bridge) = start(dir.path(), &clock);
    assert_eq!(block_on(get(&bridge, &key("a"))).expect("a hit").1, body(1, 100));
    assert!(!l3.join("tmp/left").exists());

    fs::write(dir.path().join("file"), b"in the way").expect("written");
    let error = DurableExecutor::start(config(&dir.path().join("file")), clock).err().expect("refused");
    assert!(matches!(error, StartError::Io { .. }), "{error}");
}

#[test]
fn a_stop_finishes_what_is_under_way() {
    let (dir, clock) = (TempDir::new().expect("a directory"), TestClock::start());
    let (executor, bridge) = start(dir.path(), &clock);
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let bridge = bridge.clone();
            thread::spawn(move || {
                block_on(async {
                    let mut acknowledged = 0;
                    for i in 0..10_000_u64 {
                        let bytes = body(writer << 32 | i, if i % 8 == 0 { 80_000 } else { 200 });
                        let name = key(&format!("{writer}-{i}"));
                        let result =
                            put_with(&bridge, &name, meta_of(&bytes), Precondition::None, &bytes, 50_000).await;
                        if result.is_err() {
                            break;
                        }
                        acknowledged += 1;
                    }
                    acknowledged
                })
            })
        })
        .collect();
    while block_on(executor.control().stats()).expect("running").tier.commits < 50 {
        thread::yield_now();
    }
    executor.stop();
    let acknowledged: Vec<u64> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
    drop(bridge);
    let (_executor, bridge) = start(dir.path(), &clock);
    for (writer, count) in acknowledged.iter().enumerate() {
        for i in 0..*count {
            let bytes = body((writer as u64) << 32 | i, if i % 8 == 0 { 80_000 } else { 200 });
            let found = block_on(get(&bridge, &key(&format!("{writer}-{i}"))));
            assert!(found.is_some_and(|(_, found)| found == bytes), "{writer}-{i}");
        }
    }
}

const CHILD_DIR: &str = "STRATA_TEST_CHILD_DIR";

/// The content of write `i`; `None`: a delete.
fn content(i: u64) -> Option<bytes::Bytes> {
    (i % 5 != 4).then(|| body(i, if i.is_multiple_of(3) { 100_000 } else { 300 }))
}

/// Writes and deletes the same few keys for ever (in a child that is killed) or some times, telling each
/// acknowledgement.
#[test]
fn a_writer_tells_what_was_acknowledged() {
    let child = env::var_os(CHILD_DIR);
    let own = TempDir::new().expect("a directory");
    let dir = child.as_ref().map_or(own.path(), Path::new);
    let (_executor, bridge) = start(dir, &TestClock::start());
    let writes = if child.is_some() { u64::MAX } else { 40 };
    block_on(async {
        for i in 0..writes {
            let name = key(&format!("{}", i % 7));
            match content(i) {
                Some(bytes) => drop(put(&bridge, &name, &bytes).await),
                None => drop(bridge.purge(&name, Precondition::None).await.expect("purged")),
            }
            if child.is_some() {
                println!("acknowledged {i}");
            }
        }
        for i in 33..40 {
            assert_eq!(get(&bridge, &key(&format!("{}", i % 7))).await.map(|(_, bytes)| bytes), content(i));
        }
    });
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    for round in 0..4_u64 {
        let dir = TempDir::new().expect("a directory");
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "embedded::a_writer_tells_what_was_acknowledged", "--nocapture", "--test-threads=1"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut last = None;
        let enough = 20 + round * 37;
        let read = |line: String| line.strip_prefix("acknowledged ").and_then(|i| i.parse::<u64>().ok());
        while last.is_none_or(|last| last < enough) {
            let line = lines.next().expect("it goes on").expect("text");
            last = read(line).or(last);
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
        last = lines.map_while(Result::ok).filter_map(read).last().or(last);
        let last = last.expect("some were acknowledged");

        let acknowledged: BTreeMap<_, _> = (0..=last).map(|i| (i % 7, i)).collect();
        let (executor, bridge) = start(dir.path(), &TestClock::start());
        block_on(async {
            for (slot, i) in acknowledged {
                let found = get(&bridge, &key(&format!("{slot}"))).await.map(|(_, bytes)| bytes);
                // The one write under way may have got through.
                let under_way = (slot == (last + 1) % 7).then(|| content(last + 1));
                assert!(
                    found == content(i) || Some(&found) == under_way.as_ref(),
                    "round {round}, write {i} of {last}"
                );
            }
            put(&bridge, &key("after"), &body(1, 100_000)).await;
            assert_eq!(executor.control().stats().await.expect("running").tier.corrupted, 0);
        });
        assert_eq!(fs::read_dir(dir.path().join("l3/tmp")).expect("a directory").count(), 0);
    }
}

#[test]
fn a_quota_holds_across_blobs_and_manifests() {
    let (dir, clock) = (TempDir::new().expect("a directory"), TestClock::start());
    let limited = DurableConfig { bytes_max: Some(1_000_000), ..config(dir.path()) };
    let (executor, mut bridges) = DurableExecutor::start(limited, clock).expect("starts");
    let bridge = bridges.pop().expect("one client");
    block_on(async {
        let (mut kept, mut refused) = (Vec::new(), 0);
        for i in 0..60_u64 {
            let bytes = body(i, if i.is_multiple_of(2) { 90_000 } else { 20_000 });
            let name = key(&i.to_string());
            match put_with(&bridge, &name, meta_of(&bytes), Precondition::None, &bytes, 50_000).await {
                Ok(_) => kept.push((name, bytes)),
                Err(CacheError::Refused(Reason::QuotaFull)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            assert!(executor.control().stats().await.expect("running").used.total() <= 1_000_000);
        }
        assert!(kept.len() > 10 && refused > 10);
        for (name, bytes) in &kept {
            assert_eq!(get(&bridge, name).await.expect("kept").1, *bytes);
        }
        for (name, _) in &kept {
            bridge.purge(name, Precondition::None).await.expect("deletes always fit");
        }
        for _ in 0..2_000 {
            if executor.control().stats().await.expect("running").used.blobs == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        put(&bridge, &key("again"), &body(1, 500_000)).await;
    });
}

#[test]
fn a_dropped_upload_leaves_no_file() {
    let (dir, clock) = (TempDir::new().expect("a directory"), TestClock::start());
    let (executor, bridge) = start(dir.path(), &clock);
    block_on(async {
        let large = body(1, 2_000_000);
        let mut miss = bridge.get_miss_handler(&key("a"), meta_of(&large), Precondition::None).await.expect("begun");
        miss.write_body(large.slice(..1_500_000), false).await.expect("sent");
        drop(miss);
        let mut gone = false;
        for _ in 0..2_000 {
            let stats = executor.control().stats().await.expect("running");
            gone = stats.used.staged == 0 && stats.tier.uploads == 0;
            if gone {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert!(gone);
        assert!(get(&bridge, &key("a")).await.is_none());
    });
    assert_eq!(fs::read_dir(dir.path().join("l3/tmp")).expect("a directory").count(), 0);
}
