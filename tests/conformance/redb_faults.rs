//! The embedded index over a disk that is held, cut off, full, failing or damaged.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Waker},
};

use bytes::Bytes;
use futures_lite::future::block_on;
use redb::{Database, ReadableTable, TableDefinition};
use strata::{
    cache::Version,
    config::Reserve,
    reason::Reason,
    storage::{
        durable::{
            Poisoned,
            pool::Pool,
            redb::{FORMAT, OpenError, PAGE_BYTES_MAX, RedbIndexStore},
            room::Room,
        },
        traits::{Body, IndexStore, Manifest, PurgeRecord, PurgeScope, StoreError, Swap},
    },
};
use tempfile::TempDir;

use crate::disk::{Disk, Step};

const CACHE_BYTES: usize = 4 << 20;

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const PURGES: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("purges");

fn entry(name: &str, version: u64, bytes: usize) -> Manifest {
    Manifest {
        path: format!("ns/{name}").into(),
        version: Version(version),
        body: Body::Inline(vec![version as u8; bytes].into()),
        length: bytes as u64,
        checksum: 0,
        created_ms: 0,
        expires_ms: None,
        client_flags: 0,
        headers: Bytes::new(),
        tags: vec!["red".into()],
        nonce: version,
    }
}

fn pool() -> Pool {
    Pool::start("test-index").expect("threads")
}

fn room() -> Room {
    Room::new(Path::new("/"), None, Reserve::Bytes(0))
}

fn open(disk: &Disk) -> RedbIndexStore {
    RedbIndexStore::open_on(disk.clone(), CACHE_BYTES, pool(), room()).expect("opens")
}

fn open_file(file: &Path) -> Result<RedbIndexStore, OpenError> {
    RedbIndexStore::open(file, CACHE_BYTES, pool(), room())
}

fn fresh() -> (Disk, RedbIndexStore) {
    let disk = Disk::default();
    let index = open(&disk);
    (disk, index)
}

/// Polls each once; gives those that wait.
fn poll_once<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<Pin<Box<F>>> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut waiting: Vec<_> = futures.into_iter().map(Box::pin).collect();
    waiting.retain_mut(|future| future.as_mut().poll(&mut cx).is_pending());
    waiting
}

fn wait_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T> + Unpin>) -> Vec<T> {
    futures.into_iter().map(block_on).collect()
}

fn done(swap: Result<Swap, StoreError>) {
    assert_eq!(swap.expect("an answer"), Swap::Done);
}

fn is_poisoned(answer: &Result<Swap, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Failed(cause)) if cause.is::<Poisoned>())
}

#[test]
fn what_queued_while_a_commit_ran_is_one_transaction() {
    let (disk, index) = fresh();
    disk.hold_syncs(true);
    let first = poll_once([index.put_new(entry("first", 1, 10))]);
    disk.wait_for_held_sync();
    let names: Vec<_> = (0..64).map(|i| format!("k{i}")).collect();
    let rest = poll_once(names.iter().map(|name| index.put_new(entry(name, 2, 10))));
    assert_eq!((first.len(), rest.len()), (1, 64), "nothing is answered before its sync");
    disk.hold_syncs(false);
    wait_all(first).into_iter().for_each(done);
    wait_all(rest).into_iter().for_each(done);
    assert_eq!((index.stats().commits, index.stats().mutations), (2, 65));
}

#[test]
fn changes_of_one_transaction_see_each_other() {
    let (disk, index) = fresh();
    disk.hold_syncs(true);
    let first = poll_once([index.put_new(entry("first", 1, 10))]);
    disk.wait_for_held_sync();
    let raced = poll_once((1..=16).map(|version| index.put_new(entry("raced", version, 10))));
    let swaps = poll_once([
        Box::pin(index.cas_update(Version(1), entry("raced", 20, 10))) as Pin<Box<dyn Future<Output = _>>>,
        Box::pin(index.cas_update(Version(1), entry("raced", 21, 10))),
        Box::pin(index.touch_ttl(b"ns/raced", Version(20), Some(5))),
        Box::pin(index.delete(b"ns/raced", Version(1))),
        Box::pin(index.delete(b"ns/raced", Version(20))),
        Box::pin(index.put_new(entry("raced", 30, 10))),
    ]);
    disk.hold_syncs(false);
    wait_all(first).into_iter().for_each(done);
    let raced: Vec<_> = wait_all(raced).into_iter().map(|swap| swap.expect("an answer")).collect();
    assert_eq!(raced[0], Swap::Done);
    assert!(raced[1..].iter().all(|swap| *swap == Swap::Conflict(Some(Version(1)))));
    let swaps: Vec<_> = wait_all(swaps).into_iter().map(|swap| swap.expect("an answer")).collect();
    let at = |version| Swap::Conflict(Some(Version(version)));
    assert_eq!(swaps, [Swap::Done, at(20), Swap::Done, at(20), Swap::Done, Swap::Done]);
    assert_eq!(index.stats().commits, 2);
    assert_eq!(block_on(index.get(b"ns/raced")).expect("an answer"), Some(entry("raced", 30, 10)));
}

/// Everything acknowledged is there after a power cut, and what was under way is there whole or not at all.
#[test]
fn a_power_cut_takes_nothing_acknowledged() {
    for seed in 0..24 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (disk, index) = fresh();
        let mut acknowledged = BTreeMap::<String, Manifest>::new();
        for version in 1..random.u64(2..40) {
            let name = format!("k{}", random.u8(..12));
            let manifest = entry(&name, version, random.usize(..20_000));
            done(block_on(async {
                match acknowledged.get(&name) {
                    None => index.put_new(manifest.clone()).await,
                    Some(old) => index.cas_update(old.version, manifest.clone()).await,
                }
            }));
            acknowledged.insert(name, manifest);
        }
        disk.hold_syncs(true);
        let under_way = poll_once([index.put_new(entry("under way", 99, 5_000))]);
        disk.wait_for_held_sync();
        let image = Disk::with(disk.after_power_cut(seed));
        disk.hold_syncs(false);
        drop(under_way);
        drop(index);

        let index = open(&image);
        let (mut found, next) = block_on(index.scan(None, 100)).expect("an answer");
        let inline: u64 = found.iter().map(|manifest| manifest.length).sum();
        let late = found.iter().position(|manifest| manifest.path == "ns/under way").map(|at| found.remove(at));
        assert!(late.is_none_or(|late| late == entry("under way", 99, 5_000)), "seed {seed}");
        assert!(next.is_none() && found.iter().eq(acknowledged.values()), "seed {seed}");
        assert_eq!(index.stats().bytes_inline, inline, "seed {seed}");
        done(block_on(index.put_new(entry("after", 100, 5))));
    }
}

#[test]
fn a_failed_commit_is_unknown_and_reads_show_what_lasts() {
    for step in [Step::Sync, Step::Write] {
        let (disk, index) = fresh();
        done(block_on(index.put_new(entry("a", 1, 10))));
        disk.hold_syncs(true);
        let first = poll_once([index.put_new(entry("b", 2, 10))]);
        disk.wait_for_held_sync();
        let group = poll_once(["c", "d"].map(|name| index.put_new(entry(name, 3, 10))));
        disk.fail(0, step, ErrorKind::Other);
        disk.hold_syncs(false);
        wait_all(first).into_iter().for_each(done);
        for swap in wait_all(group) {
            assert!(matches!(swap, Err(StoreError::Unknown(_))), "{step:?}: {swap:?}");
        }
        assert!(is_poisoned(&block_on(index.put_new(entry("e", 4, 10)))));
        // What is cached is still read, and never what may not last.
        assert_eq!(block_on(index.get(b"ns/a")).expect("cached"), Some(entry("a", 1, 10)));
        assert_eq!(block_on(index.get(b"ns/c")).expect("cached"), None);
        let image = disk.after_power_cut(1);
        drop(index);
        let index = open(&Disk::with(image));
        assert!(block_on(index.get(b"ns/b")).expect("an answer").is_some());
        done(block_on(index.put_new(entry("e", 4, 10))));
    }
}

/// The file grows before the commit: what fails there has changed nothing. redb takes no more after it, and the
/// index must say so rather than fail each write anew.
#[test]
fn an_error_before_the_commit_is_certain_and_poisons() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        let (disk, index) = fresh();
        disk.fail(0, Step::Length, kind);
        let put = |i: u64| block_on(index.put_new(entry(&format!("{i}"), 1, 60_000)));
        let failed = (0..40).map(put).find(Result::is_err).expect("the file must grow");
        match (kind, &failed) {
            (ErrorKind::StorageFull, Err(StoreError::Full { reason: Reason::DiskFull })) => {}
            (ErrorKind::Other, Err(StoreError::Failed(_))) => {}
            other => panic!("{other:?}"),
        }
        let after = block_on(index.put_new(entry("x", 1, 10)));
        assert!(is_poisoned(&after), "{kind:?}: {after:?}");
        assert!(index.stats().poisoned);
    }
}

/// `/proc` stands for a disk without a free byte.
#[test]
fn a_full_disk_is_told_before_it_is_met() {
    let (disk, index) = fresh();
    done(block_on(index.put_new(entry("a", 1, 10))));
    drop(index);
    let full_room = Room::new(Path::new("/proc"), None, Reserve::Bytes(0));
    let index = RedbIndexStore::open_on(disk.clone(), CACHE_BYTES, pool(), full_room).expect("opens");
    let before = disk.bytes();
    block_on(async {
        let full = |swap| assert!(matches!(swap, Err(StoreError::Full { reason: Reason::DiskFull })), "{swap:?}");
        full(index.put_new(entry("b", 2, 10)).await);
        full(index.delete(b"ns/a", Version(1)).await);
        let record = PurgeRecord { scope: PurgeScope::All, version: Version(3) };
        assert!(matches!(index.put_purge(record).await, Err(StoreError::Full { .. })));
        assert_eq!(index.get(b"ns/a").await.expect("reads go on"), Some(entry("a", 1, 10)));
    });
    assert!(disk.bytes() == before && !index.stats().poisoned);
    drop(index);
    done(block_on(open(&disk).delete(b"ns/a", Version(1))));
}

/// A file as a crash leaves it, after `change` by another program.
fn crashed(dir: &TempDir, change: impl FnOnce(&redb::WriteTransaction)) -> PathBuf {
    let (file, copy) = (dir.path().join("live.redb"), dir.path().join("index.redb"));
    let index = open_file(&file).expect("made");
    done(block_on(index.put_new(entry("a", 1, 10))));
    drop(index);
    let db = Database::open(&file).expect("opens");
    let write = db.begin_write().expect("begins");
    change(&write);
    write.commit().expect("commits");
    fs::copy(&file, &copy).expect("copied");
    copy
}

fn refused_unchanged(file: &Path) -> OpenError {
    let before = fs::read(file).expect("the file");
    let error = open_file(file).err().expect("refused");
    assert!(error.to_string().contains("index.redb"), "{error}");
    assert!(fs::read(file).expect("the file") == before, "not a byte has changed: {error}");
    error
}

#[test]
fn a_newer_format_is_left_alone_after_a_crash_too() {
    let dir = TempDir::new().expect("a directory");
    let file = crashed(&dir, |write| {
        let newer = (FORMAT + 1).to_le_bytes();
        write.open_table(META).expect("opens").insert("format", &newer[..]).expect("inserted");
    });
    let error = refused_unchanged(&file);
    assert!(matches!(error, OpenError::Newer { found, .. } if found == FORMAT + 1), "{error}");
}

#[test]
fn damaged_counters_are_refused_and_left_alone() {
    for bit in [0, 200, 400] {
        let dir = TempDir::new().expect("a directory");
        let file = crashed(&dir, |write| {
            let mut meta = write.open_table(META).expect("opens");
            let mut row = meta.get("counters").expect("read").expect("there").value().to_vec();
            let bit = bit % (row.len() * 8);
            row[bit / 8] ^= 1 << (bit % 8);
            meta.insert("counters", &row[..]).expect("inserted");
        });
        assert!(matches!(refused_unchanged(&file), OpenError::Unreadable { .. }));
    }
}

#[test]
fn a_whole_file_after_a_crash_is_repaired() {
    let dir = TempDir::new().expect("a directory");
    let file = crashed(&dir, |_| ());
    let index = open_file(&file).expect("repaired");
    assert_eq!(block_on(index.get(b"ns/a")).expect("an answer"), Some(entry("a", 1, 10)));
    done(block_on(index.put_new(entry("b", 2, 10))));
    drop(index);
    assert!(block_on(open_file(&file).expect("opens").get(b"ns/b")).expect("an answer").is_some());
}

/// A purge record read wrong would bring back what was purged.
#[test]
fn a_damaged_purge_record_is_told() {
    let (disk, index) = fresh();
    let record = PurgeRecord { scope: PurgeScope::Prefix("ns/a".into()), version: Version(9) };
    assert!(block_on(index.put_purge(record)).expect("kept"));
    drop(index);
    let db = Database::builder().create_with_backend(disk.clone()).expect("opens");
    let write = db.begin_write().expect("begins");
    {
        let mut table = write.open_table(PURGES).expect("opens");
        let (key, mut row) =
            table.first().expect("read").map(|(k, v)| (k.value().to_vec(), v.value().to_vec())).expect("there");
        *row.last_mut().expect("bytes") ^= 1;
        table.insert(&key[..], &row[..]).expect("inserted");
    }
    write.commit().expect("commits");
    drop(db);
    assert!(matches!(block_on(open(&disk).purges()), Err(StoreError::Corrupted { .. })));
}

/// Damage anywhere in the file is refused without changing it, or told where it is read; it is never served.
#[test]
fn damage_anywhere_is_never_served() {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("index.redb");
    let index = open_file(&file).expect("made");
    let entries: Vec<_> = (0..60).map(|i| entry(&format!("{i:02}"), i + 1, 700)).collect();
    entries.iter().for_each(|entry| done(block_on(index.put_new(entry.clone()))));
    drop(index);
    let whole = fs::read(&file).expect("the file");
    let (mut opened, mut told) = (0, 0);
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = whole.clone();
        let at = random.usize(..bytes.len() - 64);
        random.fill(&mut bytes[at..at + 64]);
        fs::write(&file, &bytes).expect("written");
        let Ok(index) = open_file(&file) else {
            assert!(fs::read(&file).expect("the file") == bytes, "seed {seed}: nothing was changed");
            continue;
        };
        opened += 1;
        for entry in &entries {
            match block_on(index.get(&entry.path)) {
                Ok(Some(found)) => assert_eq!(&found, entry, "seed {seed}"),
                Ok(None) => {}
                Err(StoreError::Corrupted { .. }) => told += 1,
                Err(other) => panic!("seed {seed}: {other:?}"),
            }
        }
        // Writes in its way: what is acknowledged is there.
        let puts: Vec<_> = (0..60).map(|i| entry(&format!("{i:02}+"), 100, 50)).collect();
        let swaps = wait_all(poll_once(puts.iter().map(|put| index.put_new(put.clone()))));
        for (put, swap) in puts.iter().zip(&swaps) {
            match swap {
                Ok(swap) => {
                    assert_eq!(*swap, Swap::Done, "seed {seed}");
                    assert_eq!(block_on(index.get(&put.path)).expect("read"), Some(put.clone()), "seed {seed}");
                }
                Err(StoreError::Corrupted { .. } | StoreError::Failed(_) | StoreError::Unknown(_)) => {}
                Err(other) => panic!("seed {seed}: {other:?}"),
            }
        }
    }
    assert!(opened > 0 && told > 0, "{opened} {told}");
}

#[test]
fn pages_of_large_entries_are_short() {
    let (_, index) = fresh();
    let names: Vec<_> = (0..40).map(|i| format!("{i:02}")).collect();
    wait_all(poll_once(names.iter().map(|name| index.put_new(entry(name, 1, 64 << 10))))).into_iter().for_each(done);
    let (mut cursor, mut scanned, mut pages) = (None, 0, 0);
    while pages == 0 || cursor.is_some() {
        let (page, next) = block_on(index.scan(cursor, 1_000)).expect("an answer");
        assert!(page.len() <= PAGE_BYTES_MAX / (64 << 10) + 1, "{}", page.len());
        (scanned, pages, cursor) = (scanned + page.len(), pages + 1, next);
    }
    assert_eq!(scanned, 40);
}

/// A cursor of an index that was made anew would skip changes.
#[test]
fn another_index_does_not_take_a_cursor() {
    let (_, first) = fresh();
    let (disk, second) = fresh();
    for index in [&first, &second] {
        done(block_on(index.put_new(entry("a", 1, 1))));
    }
    let cursor =
        |index| block_on(RedbIndexStore::changes_since(index, None, 9)).expect("an answer").expect("covered").1;
    let (of_first, of_second) = (cursor(&first), cursor(&second));
    assert_eq!(block_on(second.changes_since(Some(of_first), 9)).expect("an answer"), None);
    drop(second);
    let second = open(&disk);
    assert!(block_on(second.changes_since(Some(of_second), 9)).expect("an answer").is_some(), "its own survives");
}
