//! What only a directory of blobs has: leftovers, damage, quotas, restarts.

use std::{fs, path::Path};

use strata::{
    config::Reserve,
    reason::Reason,
    storage::{
        durable::{
            blob_format::{BLOCK_BYTES, file_bytes},
            local::LocalBlobStore,
            pool::Pool,
            room::{Room, Used},
        },
        traits::{BlobStore, BlobWrite, StoreError},
    },
};
use tempfile::TempDir;

use crate::{
    stores::{all, blob_id, blob_suite, put_blob, read_blob},
    support::{TestClock, body, on_tokio},
};

fn open_in(dir: &Path, room: &Room, clock: &TestClock) -> LocalBlobStore<TestClock> {
    let pool = Pool::start("test-disk").expect("threads");
    LocalBlobStore::open(dir, clock.clone(), pool, room.clone()).expect("opens")
}

fn roomy(dir: &Path) -> Room {
    Room::new(dir, None, Reserve::Bytes(0))
}

fn files_in(dir: &Path) -> usize {
    fs::read_dir(dir).expect("a directory").count()
}

#[test]
fn a_local_blob_store_is_a_blob_store() {
    on_tokio(async |_, clock| {
        let dirs = std::cell::RefCell::new(Vec::new());
        let make = async || {
            let dir = TempDir::new().expect("a directory");
            let store = open_in(dir.path(), &roomy(dir.path()), &clock);
            dirs.borrow_mut().push(dir);
            store
        };
        blob_suite(make, &clock).await;
    });
}

#[test]
fn blobs_and_the_room_they_take_are_found_again() {
    on_tokio(async |_, clock| {
        let dir = TempDir::new().expect("a directory");
        let room = roomy(dir.path());
        let store = open_in(dir.path(), &room, &clock);
        let mut infos = Vec::new();
        for n in 0..20 {
            let fans = files_in(&dir.path().join("blobs")) as u64;
            let syncs = store.stats().syncs;
            let length = [0, 10, 65_536, 200_000][n as usize % 4];
            infos.push(put_blob(&store, n, &body(n, length)).await);
            assert_eq!(infos[n as usize].stored_bytes, file_bytes(length as u64));
            // The file, its directory, and once the directory's own name.
            let new_fans = files_in(&dir.path().join("blobs")) as u64 - fans;
            assert_eq!(store.stats().syncs - syncs, 2 + new_fans);
        }
        store.delete(&infos.remove(3).id).await.expect("an answer");
        let used = room.used();
        assert_eq!((used.staged, used.index), (0, 0));
        assert_eq!(used.blobs, infos.iter().map(|info| info.stored_bytes).sum::<u64>());
        drop(store);
        let room = roomy(dir.path());
        let store = open_in(dir.path(), &room, &clock);
        assert_eq!(room.used(), used);
        for info in &infos {
            assert_eq!(store.head(&info.id).await.expect("an answer").as_ref(), Some(info));
        }
    });
}

#[test]
fn unfinished_files_go_when_they_are_dropped_or_at_the_next_start() {
    on_tokio(async |_, clock| {
        let dir = TempDir::new().expect("a directory");
        let room = roomy(dir.path());
        let store = open_in(dir.path(), &room, &clock);
        let mut write = store.put(&blob_id(1), None).await.expect("begun");
        write.chunk(body(1, 1_000_000)).await.expect("written");
        assert_eq!(files_in(&dir.path().join("tmp")), 1);
        assert!(room.used().staged > 500_000);
        drop(write);
        // The pool ends when its last job has run.
        drop(store);
        assert_eq!(files_in(&dir.path().join("tmp")), 0);
        assert_eq!(room.used(), Used::default());

        for name in ["0000000000000007", "anything"] {
            fs::write(dir.path().join("tmp").join(name), b"left by a crash").expect("written");
        }
        let store = open_in(dir.path(), &room, &clock);
        assert_eq!((files_in(&dir.path().join("tmp")), store.stats().leftovers), (0, 2));
        // What is nobody's is left alone and not listed.
        fs::create_dir_all(dir.path().join("blobs/zz")).expect("made");
        fs::create_dir_all(dir.path().join("blobs/ab")).expect("made");
        fs::write(dir.path().join("blobs/ab/readme"), b"not a blob").expect("written");
        assert_eq!(store.list(None, 10).await.expect("an answer"), (vec![], None));
    });
}

#[test]
fn no_damaged_byte_is_ever_given() {
    on_tokio(async |_, clock| {
        let dir = TempDir::new().expect("a directory");
        let store = open_in(dir.path(), &roomy(dir.path()), &clock);
        let length = 2 * BLOCK_BYTES + 1_000;
        let bytes = body(1, length);
        let info = put_blob(&store, 1, &bytes).await;
        let path = dir.path().join("blobs").join(info.id.as_str());
        let good = fs::read(&path).expect("the file");
        assert_eq!(good.len() as u64, file_bytes(length as u64));
        // A byte of every region, and some at random.
        let mut places: Vec<usize> = (0..64).chain(good.len() - 40..good.len()).collect();
        let mut random = fastrand::Rng::with_seed(1);
        places.extend((0..60).map(|_| random.usize(..good.len())));
        for at in places {
            let mut bad = good.clone();
            bad[at] ^= 1 << random.u8(..8);
            fs::write(&path, &bad).expect("written");
            let whole = match store.get(&info.id, None).await {
                Ok(read) => read_blob(read.expect("there")).await,
                Err(error) => Err(error),
            };
            assert!(matches!(whole, Err(StoreError::Corrupted { .. })), "byte {at}: {whole:?}");
            // A range gives its own bytes or an error; where the damage is elsewhere, its own bytes.
            let block = random.u64(..3);
            let range = block * BLOCK_BYTES as u64..((block + 1) * BLOCK_BYTES as u64).min(length as u64);
            if let Ok(Some(read)) = store.get(&info.id, Some(range.clone())).await
                && let Ok(got) = read_blob(read).await
            {
                let at = |offset| usize::try_from(offset).expect("small");
                assert!(got == bytes.slice(at(range.start)..at(range.end)), "{range:?}");
            }
            let (listed, _) = store.list(None, 5).await.expect("damage does not end a listing");
            assert_eq!(listed.len(), 1);
            assert_eq!(listed[0].stored_bytes, good.len() as u64);
        }
        // Cut short or grown, at any length.
        for length in [0, 1, 63, 64, 95, 96, 97, 65_600, good.len() - 1, good.len() + 1] {
            let mut bad = good.clone();
            bad.resize(length, 0);
            fs::write(&path, &bad).expect("written");
            assert!(matches!(store.get(&info.id, None).await, Err(StoreError::Corrupted { .. })), "{length} bytes");
            assert_eq!(store.list(None, 5).await.expect("an answer").0.len(), 1);
        }
        // Another blob's file under this name.
        let other = put_blob(&store, 2, &bytes).await;
        fs::copy(dir.path().join("blobs").join(other.id.as_str()), &path).expect("copied");
        assert!(matches!(store.get(&info.id, None).await, Err(StoreError::Corrupted { .. })));
        fs::write(&path, &good).expect("written");
        let read = store.get(&info.id, None).await.expect("an answer").expect("there");
        assert!(read_blob(read).await.expect("whole again") == bytes);
    });
}

#[test]
fn quota_and_reserve_refuse_and_are_given_back() {
    on_tokio(async |_, clock| {
        let dir = TempDir::new().expect("a directory");
        let bytes_max = file_bytes(300_000) + file_bytes(100_000);
        let room = Room::new(dir.path(), Some(bytes_max), Reserve::Bytes(0));
        let store = open_in(dir.path(), &room, &clock);
        put_blob(&store, 1, &body(1, 300_000)).await;
        let full = |result: Result<(), StoreError>| {
            assert!(matches!(result, Err(StoreError::Full { reason: Reason::QuotaFull })), "{result:?}");
        };
        full(store.put(&blob_id(2), Some(100_001)).await.map(drop));
        put_blob(&store, 2, &body(2, 100_000)).await;
        assert_eq!(room.used().total(), bytes_max, "exactly full");
        store.delete(&blob_id(2)).await.expect("an answer");
        // Of unknown length: refused on the way, or at the end.
        for length in [100_001, 400_000] {
            let mut write = store.put(&blob_id(3), None).await.expect("begun");
            let result = async {
                write.chunk(body(3, length)).await?;
                write.finish().await.map(drop)
            };
            full(result.await);
        }
        drop(store);
        assert_eq!(room.used(), Used { blobs: file_bytes(300_000), ..Used::default() });

        let room = Room::new(dir.path(), None, Reserve::Bytes(u64::MAX));
        let store = open_in(dir.path(), &room, &clock);
        let refused = store.put(&blob_id(4), None).await.map(drop);
        assert!(matches!(refused, Err(StoreError::Full { reason: Reason::DiskFull })), "{refused:?}");
        assert!(store.get(&blob_id(1), None).await.expect("an answer").is_some(), "reads go on");
        assert!(store.delete(&blob_id(1)).await.expect("deletions too"));
        assert_eq!(room.used(), Used::default());
    });
}

#[test]
fn a_directory_in_the_way_leaves_nothing_behind() {
    on_tokio(async |_, clock| {
        let dir = TempDir::new().expect("a directory");
        let room = roomy(dir.path());
        let store = open_in(dir.path(), &room, &clock);
        // Directories that cannot take a file: the error is kept, nothing is left.
        fs::remove_dir_all(dir.path().join("tmp")).expect("removed");
        assert!(matches!(store.put(&blob_id(1), None).await.map(drop), Err(StoreError::Failed(_))));
        assert_eq!(room.used(), Used::default());
        fs::create_dir(dir.path().join("tmp")).expect("made");
        put_blob(&store, 1, &body(1, 10)).await;
        // The final directory is a file: the blob is given up, and its temporary file with it.
        let id = blob_id(2);
        fs::write(dir.path().join("blobs").join(&id.as_str()[..2]), b"in the way").expect("written");
        let mut write = store.put(&id, None).await.expect("begun");
        write.chunk(body(2, 100)).await.expect("written");
        assert!(matches!(write.finish().await, Err(StoreError::Failed(_))));
        assert_eq!(files_in(&dir.path().join("tmp")), 0);
        assert_eq!(room.used().blobs, file_bytes(10));
    });
}

#[test]
fn many_writers_and_readers_at_once() {
    on_tokio(async |_, clock| {
        let dir = TempDir::new().expect("a directory");
        let room = roomy(dir.path());
        let store = open_in(dir.path(), &room, &clock);
        let work = (0..40).map(|n| {
            let store = store.clone();
            async move {
                let bytes = body(n, 30_000 * (n as usize % 11));
                put_blob(&store, n, &bytes).await;
                let read = store.get(&blob_id(n), None).await.expect("an answer").expect("there");
                assert!(read_blob(read).await.expect("whole") == bytes);
                file_bytes(bytes.len() as u64)
            }
        });
        let total: u64 = all(work).await.into_iter().sum();
        assert_eq!(room.used(), Used { blobs: total, ..Used::default() });
    });
}
