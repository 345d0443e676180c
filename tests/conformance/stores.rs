//! The suites over every [`BlobStore`] and every [`IndexStore`].

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_lite::future;
use strata::{
    cache::Version,
    storage::traits::{
        BlobId, BlobInfo, BlobRead, BlobStore, BlobWrite, Body, Cursor, IndexStore, Manifest, PURGE_RECORDS_MAX,
        PurgeRecord, PurgeScope, StoreError, Swap,
    },
};

use crate::support::{SetTime, body};

/// Well spread names, in no particular order.
pub(crate) fn blob_id(n: u64) -> BlobId {
    BlobId::fresh(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n)
}

pub(crate) async fn put_blob<B: BlobStore>(store: &B, n: u64, bytes: &Bytes) -> BlobInfo {
    let mut write = store.put(&blob_id(n), Some(bytes.len() as u64)).await.expect("begun");
    write.chunk(bytes.clone()).await.expect("written");
    write.finish().await.expect("durable")
}

pub(crate) async fn read_blob(mut read: impl BlobRead) -> Result<Bytes, StoreError> {
    let mut got = Vec::new();
    while let Some(chunk) = read.chunk().await? {
        assert!(!chunk.is_empty());
        got.extend_from_slice(&chunk);
    }
    assert!(read.chunk().await?.is_none(), "the end stays the end");
    Ok(got.into())
}

/// Everything a [`BlobStore`] promises.
pub(crate) async fn blob_suite<B: BlobStore>(make: impl AsyncFn() -> B, time: &impl SetTime) {
    blobs_come_back_whole_and_by_range(&make().await, time).await;
    unfinished_blobs_are_nowhere(&make().await).await;
    deleted_blobs_stay_with_their_readers(&make().await).await;
    listing_pages_through_all(&make().await).await;
    blobs_are_written_side_by_side(&make().await).await;
}

async fn blobs_come_back_whole_and_by_range<B: BlobStore>(store: &B, time: &impl SetTime) {
    assert!(store.get(&blob_id(0), None).await.expect("an answer").is_none());
    assert!(store.head(&blob_id(0)).await.expect("an answer").is_none());
    for (n, length) in [0_usize, 1, 65_535, 65_536, 65_537, 200_000, 600_000].into_iter().enumerate() {
        let (n, bytes) = (n as u64, body(n as u64, length));
        let before_ms = time.now_ms();
        // Length known or not, chunks of any size.
        let mut write = store.put(&blob_id(n), n.is_multiple_of(2).then_some(length as u64)).await.expect("begun");
        let mut rest = bytes.clone();
        let mut random = fastrand::Rng::with_seed(n);
        while !rest.is_empty() {
            let chunk = random.usize(1..=rest.len());
            write.chunk(rest.split_to(chunk)).await.expect("written");
        }
        let info = write.finish().await.expect("durable");
        assert_eq!((&info.id, info.length), (&blob_id(n), length as u64));
        assert!(info.stored_bytes >= info.length);
        assert!((before_ms..=time.now_ms()).contains(&info.created_ms));
        assert_eq!(store.head(&blob_id(n)).await.expect("an answer"), Some(info));
        let read = store.get(&blob_id(n), None).await.expect("an answer").expect("there");
        assert_eq!(read.length(), length as u64);
        assert!(read_blob(read).await.expect("whole") == bytes);
        for _ in 0..12 {
            let start = random.usize(..=length);
            let end = random.usize(start..=length);
            let read = store.get(&blob_id(n), Some(start as u64..end as u64)).await.expect("an answer").expect("there");
            assert_eq!(read.length(), length as u64);
            assert!(read_blob(read).await.expect("whole") == bytes.slice(start..end), "{start}..{end}");
        }
        assert!(store.get(&blob_id(n), Some(0..length as u64 + 1)).await.is_err());
    }
}

async fn unfinished_blobs_are_nowhere<B: BlobStore>(store: &B) {
    let mut write = store.put(&blob_id(1), None).await.expect("begun");
    write.chunk(body(1, 500_000)).await.expect("written");
    assert!(store.head(&blob_id(1)).await.expect("an answer").is_none());
    drop(write);
    drop(store.put(&blob_id(2), Some(5)).await.expect("begun"));
    assert!(store.get(&blob_id(1), None).await.expect("an answer").is_none());
    assert_eq!(store.list(None, 10).await.expect("an answer"), (vec![], None));
    // The name is free again.
    put_blob(store, 1, &body(2, 10)).await;
    let read = store.get(&blob_id(1), None).await.expect("an answer").expect("there");
    assert_eq!(read_blob(read).await.expect("whole"), body(2, 10));
}

async fn deleted_blobs_stay_with_their_readers<B: BlobStore>(store: &B) {
    assert!(!store.delete(&blob_id(1)).await.expect("an answer"));
    put_blob(store, 1, &body(1, 300_000)).await;
    let mut read = store.get(&blob_id(1), None).await.expect("an answer").expect("there");
    let first = read.chunk().await.expect("readable").expect("a chunk");
    assert!(store.delete(&blob_id(1)).await.expect("an answer"));
    assert!(!store.delete(&blob_id(1)).await.expect("an answer"));
    assert!(store.get(&blob_id(1), None).await.expect("an answer").is_none());
    assert!(store.head(&blob_id(1)).await.expect("an answer").is_none());
    // A reader goes on to the end or is told; it is never given other bytes.
    if let Ok(rest) = read_blob(read).await {
        assert!([first, rest].concat() == body(1, 300_000));
    }
}

async fn listing_pages_through_all<B: BlobStore>(store: &B) {
    let mut expected = BTreeMap::new();
    for n in 0..23 {
        let info = put_blob(store, n, &body(n, 10 + n as usize)).await;
        expected.insert(info.id.clone(), info);
    }
    for limit in [1, 5, 23, 24] {
        let (mut cursor, mut listed) = (None, Vec::new());
        loop {
            let (page, next) = store.list(cursor, limit).await.expect("an answer");
            assert!(page.len() <= limit && (page.len() == limit || next.is_none()));
            listed.extend(page);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        assert!(listed.iter().eq(expected.values()), "by name, each once, limit {limit}");
    }
    // Blobs that are there throughout are seen once, whatever comes and goes.
    let (first, cursor) = store.list(None, 5).await.expect("an answer");
    for info in expected.values().skip(3).step_by(2) {
        store.delete(&info.id).await.expect("an answer");
    }
    let (rest, _) = store.list(cursor, 100).await.expect("an answer");
    let left: Vec<_> = expected.values().skip(5).filter(|info| rest.contains(info)).collect();
    assert!(rest.iter().all(|info| !first.contains(info)));
    assert_eq!(left.len(), rest.len());
    assert!(expected.values().enumerate().skip(5).all(|(i, info)| i % 2 == 1 || rest.contains(info)));
}

async fn blobs_are_written_side_by_side<B: BlobStore>(store: &B) {
    let mut writes = Vec::new();
    for n in 0..8 {
        writes.push((n, store.put(&blob_id(n), None).await.expect("begun")));
    }
    for part in 0..4_usize {
        for (n, write) in &mut writes {
            write.chunk(body(*n, 200_000).slice(part * 50_000..(part + 1) * 50_000)).await.expect("written");
        }
    }
    for (_, write) in writes {
        write.finish().await.expect("durable");
    }
    for n in 0..8 {
        let read = store.get(&blob_id(n), None).await.expect("an answer").expect("there");
        assert!(read_blob(read).await.expect("whole") == body(n, 200_000));
    }
}

/// A manifest of `ns/{name}` with every field filled in.
pub(crate) fn manifest(name: &str, version: u64) -> Manifest {
    let bytes = body(version, 100);
    Manifest {
        path: format!("ns/{name}").into(),
        version: Version(version),
        length: bytes.len() as u64,
        checksum: crc32fast::hash(&bytes),
        body: Body::Inline(bytes),
        created_ms: 1_700_000_000_000 + version,
        expires_ms: version.is_multiple_of(2).then_some(1_800_000_000_000),
        client_flags: 77,
        headers: Bytes::from_static(b"a: b"),
        tags: vec!["red".into(), "".into(), "blue, or so".into()],
        nonce: version ^ 0xabcd,
    }
}

/// Everything an [`IndexStore`] promises.
pub(crate) async fn index_suite<I: IndexStore>(make: impl AsyncFn() -> I) {
    entries_change_by_compare_and_swap(&make().await).await;
    one_of_many_swaps_wins(&make().await).await;
    manifests_of_all_kinds_come_back(&make().await).await;
    scans_page_through_all(&make().await).await;
    what_begins_with_a_prefix_is_known(&make().await).await;
    changes_are_told_in_order(&make().await).await;
    the_newest_version_is_never_forgotten(&make().await).await;
    purge_records_are_kept_raised_and_bounded(&make().await).await;
}

async fn the_newest_version_is_never_forgotten<I: IndexStore>(index: &I) {
    let newest = async || index.newest().await.expect("an answer");
    assert_eq!(newest().await, Version::NONE);
    index.put_new(manifest("a", 8)).await.expect("an answer");
    index.put_new(manifest("b", 5)).await.expect("an answer");
    assert_eq!(newest().await, Version(8));
    index.cas_update(Version(8), manifest("a", 9)).await.expect("an answer");
    index.delete(b"ns/a", Version(9)).await.expect("an answer");
    assert_eq!(newest().await, Version(9));
    let record = PurgeRecord { scope: PurgeScope::All, version: Version(12) };
    index.put_purge(record.clone()).await.expect("an answer");
    index.retire_purge(&record).await.expect("an answer");
    assert_eq!(newest().await, Version(12));
}

async fn entries_change_by_compare_and_swap<I: IndexStore>(index: &I) {
    let done = |swap: Result<Swap, StoreError>| assert_eq!(swap.expect("an answer"), Swap::Done);
    let conflict = |swap: Result<Swap, StoreError>, version: Option<u64>| {
        assert_eq!(swap.expect("an answer"), Swap::Conflict(version.map(Version)));
    };
    assert_eq!(index.get(b"ns/a").await.expect("an answer"), None);
    conflict(index.cas_update(Version(4), manifest("a", 5)).await, None);
    conflict(index.delete(b"ns/a", Version(4)).await, None);
    conflict(index.touch_ttl(b"ns/a", Version(4), None).await, None);
    done(index.put_new(manifest("a", 5)).await);
    conflict(index.put_new(manifest("a", 6)).await, Some(5));
    assert_eq!(index.get(b"ns/a").await.expect("an answer"), Some(manifest("a", 5)));
    conflict(index.cas_update(Version(4), manifest("a", 6)).await, Some(5));
    done(index.cas_update(Version(5), manifest("a", 6)).await);
    assert_eq!(index.get(b"ns/a").await.expect("an answer"), Some(manifest("a", 6)));
    conflict(index.touch_ttl(b"ns/a", Version(5), Some(1)).await, Some(6));
    done(index.touch_ttl(b"ns/a", Version(6), Some(12)).await);
    let touched = Manifest { expires_ms: Some(12), ..manifest("a", 6) };
    assert_eq!(index.get(b"ns/a").await.expect("an answer"), Some(touched), "the expiry alone changed");
    done(index.touch_ttl(b"ns/a", Version(6), None).await);
    conflict(index.delete(b"ns/a", Version(5)).await, Some(6));
    done(index.delete(b"ns/a", Version(6)).await);
    assert_eq!(index.get(b"ns/a").await.expect("an answer"), None);
    done(index.put_new(manifest("a", 7)).await);
}

/// Runs futures side by side to their ends.
pub(crate) async fn all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    future::poll_fn(|cx| {
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
                *output = Some(value);
            }
        }
        if running.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    running.into_iter().map(|(_, output)| output.expect("all are done")).collect()
}

async fn one_of_many_swaps_wins<I: IndexStore>(index: &I) {
    let wins = |swaps: Vec<Result<Swap, StoreError>>| {
        swaps.into_iter().filter(|swap| matches!(swap.as_ref().expect("an answer"), Swap::Done)).count()
    };
    assert_eq!(wins(all((1..=16).map(|v| index.put_new(manifest("raced", v)))).await), 1);
    let first = index.get(b"ns/raced").await.expect("an answer").expect("one is there").version;
    assert_eq!(wins(all((0..16).map(|v| index.cas_update(first, manifest("raced", 100 + v)))).await), 1);
    let second = index.get(b"ns/raced").await.expect("an answer").expect("one is there").version;
    assert!(second > first);
    assert_eq!(wins(all((0..16).map(|_| index.delete(b"ns/raced", second))).await), 1);
    assert_eq!(index.get(b"ns/raced").await.expect("an answer"), None);
}

async fn manifests_of_all_kinds_come_back<I: IndexStore>(index: &I) {
    let plain = manifest("x", 2);
    let kinds = [
        Manifest { body: Body::Inline(body(1, 64 << 10)), length: 64 << 10, ..plain.clone() },
        Manifest { body: Body::Inline(Bytes::new()), length: 0, tags: vec![], headers: Bytes::new(), ..plain.clone() },
        Manifest { body: Body::Blob(blob_id(8)), length: u64::MAX, expires_ms: None, ..plain.clone() },
        Manifest { body: Body::Tombstone, length: 0, expires_ms: Some(u64::MAX), ..plain.clone() },
        Manifest { headers: body(2, 32 << 10), version: Version(u64::MAX), nonce: u64::MAX, ..plain.clone() },
        Manifest { tags: (0..100).map(|i| format!("tag-{i}").into()).collect(), ..plain },
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        let paths = [format!("ns/{i}"), format!("ns/{}", "k".repeat(4096 - i)), format!("n/\u{0}\u{7f}{i}")];
        for path in paths {
            let manifest = Manifest { path: path.clone().into(), ..kind.clone() };
            assert_eq!(index.put_new(manifest.clone()).await.expect("an answer"), Swap::Done);
            assert_eq!(index.get(path.as_bytes()).await.expect("an answer"), Some(manifest));
        }
    }
}

async fn scans_page_through_all<I: IndexStore>(index: &I) {
    assert_eq!(index.scan(None, 10).await.expect("an answer"), (vec![], None));
    let mut expected = Vec::new();
    for i in 0..21_u64 {
        let mut entry = manifest(&format!("{}", i * 8 % 21), i + 1);
        if i % 5 == 0 {
            entry.body = Body::Tombstone;
        }
        index.put_new(entry.clone()).await.expect("an answer");
        expected.push(entry);
    }
    expected.sort_by(|a, b| a.path.cmp(&b.path));
    for limit in [1, 4, 21, 22] {
        let (mut cursor, mut scanned) = (None, Vec::new());
        loop {
            let (page, next) = index.scan(cursor, limit).await.expect("an answer");
            assert!(page.len() <= limit);
            scanned.extend(page);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(scanned, expected, "limit {limit}");
    }
}

async fn what_begins_with_a_prefix_is_known<I: IndexStore>(index: &I) {
    let held = async || {
        let mut held = Vec::new();
        for prefix in ["a/", "b/", "b-/", "c/", "n/", "ns/", "ns/k", "ns/key", "ns/key2", "ns0/", "zz/"] {
            if index.holds(prefix.as_bytes()).await.expect("an answer") {
                held.push(prefix);
            }
        }
        held
    };
    assert_eq!(held().await, [""; 0]);
    index.put_new(manifest("key", 1)).await.expect("an answer");
    index.put_new(Manifest { path: "b/x".into(), body: Body::Tombstone, ..manifest("", 2) }).await.expect("an answer");
    assert_eq!(held().await, ["b/", "ns/", "ns/k", "ns/key"]);
    index.delete(b"b/x", Version(2)).await.expect("an answer");
    assert_eq!(held().await, ["ns/", "ns/k", "ns/key"]);
}

async fn changes_are_told_in_order<I: IndexStore>(index: &I) {
    let read = async |cursor: Option<Cursor>| index.changes_since(cursor, 100).await.expect("an answer");
    let (none, start) = read(None).await.expect("covered");
    assert_eq!(none, vec![]);
    index.put_new(manifest("a", 1)).await.expect("an answer");
    index.put_new(manifest("b", 1)).await.expect("an answer");
    index.cas_update(Version(1), Manifest { body: Body::Tombstone, ..manifest("a", 2) }).await.expect("an answer");
    index.put_new(manifest("a", 9)).await.expect("a conflict is no change");
    let (changes, middle) = read(Some(start.clone())).await.expect("covered");
    let last: BTreeMap<_, _> = changes.iter().map(|c| (&c.path[..], (c.version, c.live))).collect();
    assert_eq!(last, BTreeMap::from([(&b"ns/a"[..], (Version(2), false)), (b"ns/b", (Version(1), true))]));
    index.touch_ttl(b"ns/b", Version(1), Some(5)).await.expect("an answer");
    index.delete(b"ns/a", Version(2)).await.expect("an answer");
    let (changes, end) = read(Some(middle)).await.expect("covered");
    assert!(changes.iter().any(|c| c.path == "ns/b" && c.live && c.version == Version(1)));
    assert!(changes.iter().any(|c| c.path == "ns/a" && !c.live));
    assert_eq!(read(Some(end.clone())).await.expect("covered"), (vec![], end));
    // Page by page it is the same history.
    let (mut cursor, mut paged) = (start, 0);
    for _ in 0..20 {
        let (page, next) = index.changes_since(Some(cursor), 1).await.expect("an answer").expect("covered");
        assert!(page.len() <= 1);
        paged += page.len();
        cursor = next;
    }
    assert!((2..=5).contains(&paged), "{paged}");
    assert_eq!(read(Some(Cursor(Bytes::from_static(b"no cursor of this store")))).await, None);
}

async fn purge_records_are_kept_raised_and_bounded<I: IndexStore>(index: &I) {
    let record = |scope, version| PurgeRecord { scope, version: Version(version) };
    let scopes = [
        PurgeScope::Key("ns/a".into()),
        PurgeScope::Tag { namespace: "ns".into(), tag: "t".into() },
        PurgeScope::Prefix("ns/a/".into()),
        PurgeScope::Namespace("ns".into()),
        PurgeScope::All,
    ];
    for scope in &scopes {
        assert!(index.put_purge(record(scope.clone(), 5)).await.expect("an answer"));
        assert!(index.put_purge(record(scope.clone(), 7)).await.expect("an answer"));
        assert!(index.put_purge(record(scope.clone(), 6)).await.expect("an answer"));
    }
    let sorted = async || {
        let mut records = index.purges().await.expect("an answer");
        records.sort_by(|a, b| a.scope.cmp(&b.scope));
        records
    };
    let mut expected: Vec<_> = scopes.iter().map(|scope| record(scope.clone(), 7)).collect();
    expected.sort_by(|a, b| a.scope.cmp(&b.scope));
    assert_eq!(sorted().await, expected);
    index.retire_purge(&record(PurgeScope::All, 6)).await.expect("an answer");
    assert_eq!(sorted().await, expected, "raised meanwhile: it stays");
    index.retire_purge(&record(PurgeScope::All, 7)).await.expect("an answer");
    expected.retain(|record| record.scope != PurgeScope::All);
    assert_eq!(sorted().await, expected);
    let more = (expected.len()..PURGE_RECORDS_MAX).map(|i| record(PurgeScope::Key(format!("ns/{i}").into()), 1));
    for batch in more.collect::<Vec<_>>().chunks(500) {
        assert!(all(batch.iter().map(|r| index.put_purge(r.clone()))).await.into_iter().all(|r| r.expect("an answer")));
    }
    assert!(!index.put_purge(record(PurgeScope::All, 8)).await.expect("an answer"), "full");
    assert!(index.put_purge(record(scopes[0].clone(), 8)).await.expect("an answer"), "raising needs no room");
    assert_eq!(index.purges().await.expect("an answer").len(), PURGE_RECORDS_MAX);
}
