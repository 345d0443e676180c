//! What only the embedded index has: restarts, grouped commits, failing disks, damage, formats.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use redb::{Database, ReadableTable, StorageBackend, TableDefinition, backends::InMemoryBackend};
use strata::{
    cache::Version,
    config::Reserve,
    reason::Reason,
    storage::{
        durable::{
            Poisoned,
            pool::Pool,
            redb::{CHANGES_MAX, OpenError, RedbIndexStore},
            room::Room,
        },
        traits::{Body, Cursor, IndexStore, Manifest, PurgeRecord, PurgeScope, StoreError, Swap},
    },
};
use tempfile::TempDir;

use crate::{
    stores::{all, index_suite, manifest},
    support::{body, on_tokio},
};

const CACHE_BYTES: usize = 4 << 20;

fn room(dir: &Path) -> Room {
    Room::new(dir, None, Reserve::Bytes(0))
}

fn try_open(file: &Path) -> Result<RedbIndexStore, OpenError> {
    let dir = file.parent().expect("a directory");
    RedbIndexStore::open(file, CACHE_BYTES, Pool::start("test-index").expect("threads"), room(dir))
}

fn open(file: &Path) -> RedbIndexStore {
    try_open(file).expect("opens")
}

fn index_in(dir: &TempDir) -> PathBuf {
    dir.path().join("index.redb")
}

#[test]
fn a_redb_index_is_an_index_store() {
    on_tokio(async |_, _| {
        let dirs = std::cell::RefCell::new(Vec::new());
        let make = async || {
            let dir = TempDir::new().expect("a directory");
            let index = open(&index_in(&dir));
            dirs.borrow_mut().push(dir);
            index
        };
        index_suite(make).await;
    });
}

#[test]
fn everything_is_there_after_a_restart() {
    on_tokio(async |_, _| {
        let dir = TempDir::new().expect("a directory");
        let (index, record) = (open(&index_in(&dir)), PurgeRecord { scope: PurgeScope::All, version: Version(3) });
        let tombstone = Manifest { body: Body::Tombstone, ..manifest("c", 9) };
        for entry in [manifest("a", 5), manifest("b", 6), tombstone.clone()] {
            assert_eq!(index.put_new(entry).await.expect("put"), Swap::Done);
        }
        index.delete(b"ns/b", Version(6)).await.expect("deleted");
        assert!(index.put_purge(record.clone()).await.expect("put"));
        let (changes, cursor) = index.changes_since(None, 10).await.expect("read").expect("covered");
        let before = index.stats();
        assert_eq!((before.objects, before.tombstones, before.bytes_inline), (1, 1, 100));
        drop(index);
        let space = room(dir.path());
        let pool = Pool::start("test-index").expect("threads");
        let index = RedbIndexStore::open(&index_in(&dir), CACHE_BYTES, pool, space.clone()).expect("opens");
        assert_eq!(space.used().index, before.bytes);
        let after = index.stats();
        assert_eq!((after.objects, after.tombstones, after.bytes), (1, 1, before.bytes));
        assert_eq!(index.get(b"ns/a").await.expect("read"), Some(manifest("a", 5)));
        assert_eq!(index.get(b"ns/b").await.expect("read"), None);
        assert_eq!(index.get(b"ns/c").await.expect("read"), Some(tombstone));
        assert_eq!(index.purges().await.expect("read"), [record]);
        assert_eq!(index.newest().await.expect("read"), Version(9));
        let (again, end) = index.changes_since(None, 10).await.expect("read").expect("covered");
        assert_eq!((again, &end), (changes, &cursor));
        index.delete(b"ns/a", Version(5)).await.expect("deleted");
        assert_eq!(index.changes_since(Some(cursor), 10).await.expect("read").expect("covered").0.len(), 1);
    });
}

#[test]
fn commits_are_grouped() {
    on_tokio(async |_, _| {
        let dir = TempDir::new().expect("a directory");
        let index = open(&index_in(&dir));
        for round in 0..4 {
            let puts = (0..64).map(|i| index.put_new(manifest(&format!("{round}-{i}"), 1 + i)));
            assert!(all(puts).await.into_iter().all(|swap| swap.expect("put") == Swap::Done));
        }
        let stats = index.stats();
        assert_eq!((stats.mutations, stats.objects), (256, 256));
        assert!(stats.commits <= 32, "256 puts took {} transactions", stats.commits);
        assert_eq!(stats.commit_sizes.iter().sum::<u64>(), stats.commits);
        // A lost race costs no transaction at all.
        assert_eq!(index.put_new(manifest("0-0", 99)).await.expect("an answer"), Swap::Conflict(Some(Version(1))));
        assert_eq!(index.stats().commits, stats.commits);
    });
}

/// A disk whose syncs fail from some moment on.
#[derive(Debug)]
struct FailingDisk {
    inner: InMemoryBackend,
    fail: Arc<AtomicBool>,
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.fail.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }
}

#[test]
fn a_failed_commit_leaves_everybody_in_doubt_and_the_store_poisoned() {
    on_tokio(async |_, _| {
        let dir = TempDir::new().expect("a directory");
        let fail = Arc::new(AtomicBool::new(false));
        let disk = FailingDisk { inner: InMemoryBackend::new(), fail: fail.clone() };
        let pool = Pool::start("test-index").expect("threads");
        let index = RedbIndexStore::open_on(disk, CACHE_BYTES, pool, room(dir.path())).expect("opens");
        index.put_new(manifest("a", 1)).await.expect("put");
        fail.store(true, Ordering::SeqCst);
        let puts = (0..8).map(|i| index.put_new(manifest(&format!("doubt-{i}"), 1)));
        let results = all(puts).await;
        assert!(results.iter().any(|result| matches!(result, Err(StoreError::Unknown(_)))));
        assert!(results.iter().all(|result| matches!(result, Err(StoreError::Unknown(_) | StoreError::Failed(_)))));
        fail.store(false, Ordering::SeqCst);
        let after = index.delete(b"ns/a", Version(1)).await;
        assert!(matches!(&after, Err(StoreError::Failed(cause)) if cause.is::<Poisoned>()), "{after:?}");
        assert!(index.stats().poisoned);
    });
}

#[test]
fn quota_and_reserve_refuse_objects_and_let_tombstones_through() {
    on_tokio(async |_, _| {
        let dir = TempDir::new().expect("a directory");
        let open_with = |room: Room| {
            let pool = Pool::start("test-index").expect("threads");
            RedbIndexStore::open(&index_in(&dir), CACHE_BYTES, pool, room).expect("opens")
        };
        let space = Room::new(dir.path(), Some(200_000), Reserve::Bytes(0));
        let index = open_with(space.clone());
        let large = |name: &str, version| Manifest {
            body: Body::Inline(body(1, 60_000)),
            length: 60_000,
            ..manifest(name, version)
        };
        // Three fit, in one transaction or in several.
        let results = all((0..5).map(|i| index.put_new(large(&i.to_string(), 4)))).await;
        let full =
            |result: &Result<Swap, StoreError>| matches!(result, Err(StoreError::Full { reason: Reason::QuotaFull }));
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
        assert_eq!(results.iter().filter(|result| full(result)).count(), 2);
        assert_eq!(space.used().index, index.stats().bytes);
        let kept = index.scan(None, 1).await.expect("read").0.remove(0);
        let name = String::from_utf8_lossy(&kept.path[3..]).into_owned();
        let replaced = index.cas_update(Version(4), large(&name, 5)).await;
        assert_eq!(replaced.expect("replacing needs no more room"), Swap::Done);
        let tombstone = Manifest { body: Body::Tombstone, headers: body(2, 300), ..manifest(&name, 6) };
        assert_eq!(index.cas_update(Version(5), tombstone.clone()).await.expect("room is made"), Swap::Done);
        assert!(index.put_new(large("again", 7)).await.is_ok());
        drop(index);
        let index = open_with(Room::new(dir.path(), None, Reserve::Bytes(u64::MAX)));
        let refused = index.put_new(large("more", 8)).await;
        assert!(matches!(refused, Err(StoreError::Full { reason: Reason::DiskFull })));
        assert_eq!(
            index.put_new(Manifest { path: "ns/t".into(), ..tombstone }).await.expect("let through"),
            Swap::Done
        );
    });
}

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const MANIFESTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("manifests");

fn with_db(file: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let db = Database::open(file).expect("opens");
    let write = db.begin_write().expect("begins");
    change(&write);
    write.commit().expect("commits");
}

fn set_format(file: &Path, format: u32) {
    with_db(file, |write| {
        write.open_table(META).expect("opens").insert("format", &format.to_le_bytes()[..]).expect("inserted");
    });
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    on_tokio(async |_, _| {
        let dir = TempDir::new().expect("a directory");
        let file = index_in(&dir);
        open(&file).put_new(manifest("a", 1)).await.expect("put");
        set_format(&file, 2);
        let before = fs::read(&file).expect("the file");
        let error = try_open(&file).err().expect("refused");
        assert!(matches!(&error, OpenError::Newer { found: 2, file: named } if *named == file));
        assert!(error.to_string().contains("index.redb has format 2"), "{error}");
        assert!(fs::read(&file).expect("the file") == before, "not a byte has changed");
        set_format(&file, 1);
        assert!(open(&file).get(b"ns/a").await.expect("read").is_some());
    });
}

#[test]
fn what_is_no_index_is_refused_and_left_alone() {
    let dir = TempDir::new().expect("a directory");
    let file = index_in(&dir);
    let refused = |content: &[u8]| {
        fs::write(&file, content).expect("written");
        let error = try_open(&file).err().expect("refused");
        assert!(matches!(&error, OpenError::Unreadable { file: named, .. } if *named == file), "{error}");
        assert!(fs::read(&file).expect("the file") == content, "not a byte has changed");
    };
    refused(b"");
    refused(b"some text that is no database at all");
    refused(&body(1, 100_000));
    fs::remove_file(&file).expect("removed");
    drop(Database::create(&file).expect("made"));
    let error = try_open(&file).err().expect("somebody else's database");
    assert!(error.to_string().contains("something else"), "{error}");
    // A draft that a crash left is no obstacle.
    fs::remove_file(&file).expect("removed");
    fs::write(file.with_extension("new"), b"half-made").expect("written");
    drop(open(&file));
}

#[test]
fn damaged_manifests_are_told_passed_over_and_replaceable() {
    on_tokio(async |_, _| {
        let dir = TempDir::new().expect("a directory");
        let file = index_in(&dir);
        let index = open(&file);
        for i in 0..10 {
            index.put_new(manifest(&i.to_string(), 2)).await.expect("put");
        }
        drop(index);
        with_db(&file, |write| {
            let mut table = write.open_table(MANIFESTS).expect("opens");
            let mut value = table.get(&b"ns/4"[..]).expect("read").expect("there").value().to_vec();
            value[20] ^= 1;
            table.insert(&b"ns/4"[..], &value[..]).expect("inserted");
        });
        let index = open(&file);
        assert!(matches!(index.get(b"ns/4").await, Err(StoreError::Corrupted { .. })));
        assert_eq!(index.get(b"ns/5").await.expect("read"), Some(manifest("5", 2)));
        for limit in [1, 3, 4, 5, 9, 10, 100] {
            let (mut cursor, mut seen) = (None, 0);
            let end = loop {
                match index.scan(cursor, limit).await {
                    Ok((page, next)) => {
                        seen += page.len();
                        cursor = next;
                        assert!(cursor.is_some(), "the end must tell of the damage");
                    }
                    Err(error) => break error,
                }
            };
            assert!(matches!(end, StoreError::Corrupted { .. }));
            assert_eq!(seen, 9, "limit {limit}");
        }
        assert!(index.stats().damaged > 0);
        assert_eq!(index.delete(b"ns/4", Version(2)).await.expect("an answer"), Swap::Conflict(None));
        assert_eq!(index.put_new(manifest("4", 3)).await.expect("an answer"), Swap::Done);
        assert_eq!(index.get(b"ns/4").await.expect("read"), Some(manifest("4", 3)));
        assert_eq!(index.stats().objects, 10);
        let (page, next) = index.scan(None, 100).await.expect("read");
        assert_eq!((page.len(), next), (10, None));
    });
}

#[test]
fn old_changes_are_forgotten_and_their_cursors_told_so() {
    on_tokio(async |_, _| {
        let dir = TempDir::new().expect("a directory");
        let pool = Pool::start("test-index").expect("threads");
        let index = RedbIndexStore::open_on(InMemoryBackend::new(), 64 << 20, pool, room(dir.path())).expect("opens");
        let (_, start) = index.changes_since(None, 1).await.expect("read").expect("covered");
        index.put_new(manifest("a", 1)).await.expect("put");
        let extra = 50;
        let touches = (0..CHANGES_MAX + extra).collect::<Vec<_>>();
        for batch in touches.chunks(256) {
            all(batch.iter().map(|i| index.touch_ttl(b"ns/a", Version(1), Some(*i)))).await;
        }
        assert_eq!(index.changes_since(Some(start), 1).await.expect("read"), None);
        let (page, _) = index.changes_since(None, 10).await.expect("read").expect("covered");
        assert_eq!(page.len(), 10);
        // A cursor ends with the sequence of the last change told.
        let (_, Cursor(some)) = index.changes_since(None, 1).await.expect("read").expect("covered");
        let last = [&some[..some.len() - 8], &(1 + CHANGES_MAX + extra).to_be_bytes()].concat();
        let last = Cursor(Bytes::from(last));
        assert_eq!(index.changes_since(Some(last), 10).await.expect("read").expect("covered").0, vec![]);
    });
}
