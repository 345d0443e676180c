//! What a hit gives: ranges, copies, and one version of the body whatever becomes of the object meanwhile.

use std::{ops::Range, time::Duration};

use bytes::{Bytes, BytesMut};
use strata::{
    cache::{COPY_BYTES_MAX, CacheError, CacheKey, CacheMeta, HitHandler, Precondition, Storage},
    reason::Reason,
};

use super::Caps;
use crate::support::{SetTime, body, drain, get, key, meta_of, put, put_with};

pub(super) async fn ranges_read_what_they_name<S: Storage>(store: &S, caps: Caps) {
    for length in [0_usize, 1, 9_000, 65_536, 200_001] {
        let length = length.min(caps.body_bytes_max);
        let (name, whole) = (key("ranges"), body(length as u64, length));
        put(store, &name, &whole).await;
        let mut ranges =
            vec![(0, length), (0, 0), (length, length), (0, length.min(1)), (length.saturating_sub(1), length)];
        let mut random = fastrand::Rng::with_seed(length as u64);
        ranges.extend((0..20).map(|_| {
            let start = random.usize(..=length);
            (start, random.usize(start..=length))
        }));
        for (start, end) in ranges {
            let (_, mut hit) = store.lookup(&name).await.expect("an answer").expect("a hit");
            hit.seek(start as u64..end as u64).expect("within the body");
            assert_eq!(hit.remaining(), (end - start) as u64);
            let got = drain(hit).await.expect("a whole range");
            assert!(got == whole.slice(start..end), "{start}..{end} of {length}");
        }
        let (_, mut hit) = store.lookup(&name).await.expect("an answer").expect("a hit");
        assert!(hit.seek(0..length as u64 + 1).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "a range no caller should ask for")]
        let reversed = hit.seek(1..0);
        assert!(reversed.is_err());
        assert_eq!(hit.remaining(), length as u64, "a refused seek changes nothing");
        assert_eq!(hit.read_body().await.expect("readable").is_some(), length > 0);
        assert!(hit.seek(0..length as u64).is_err() || length == 0, "reading has begun");
    }
}

pub(super) async fn copies_are_whole_or_not_made<S: Storage>(store: &S, caps: Caps) {
    for length in [0, 1, 3_000, COPY_BYTES_MAX, COPY_BYTES_MAX + 1, 100_000] {
        let (name, whole) = (key("copied"), body(length as u64, length));
        put(store, &name, &whole).await;
        for range in [0..length, length / 3..length, 0..0] {
            let (_, mut hit) = store.lookup(&name).await.expect("an answer").expect("a hit");
            if range != (0..length) {
                hit.seek(range.start as u64..range.end as u64).expect("within the body");
            }
            let expected = &whole[range.clone()];
            let mut out = BytesMut::from(&b"before"[..]);
            match hit.try_copy(&mut out) {
                Some(copied) => {
                    assert!(copied <= COPY_BYTES_MAX && copied == expected.len(), "{copied} of {range:?}");
                    assert!(out[..] == [&b"before"[..], expected].concat());
                    assert_eq!((hit.remaining(), hit.read_body().await.expect("readable")), (0, None));
                }
                None => {
                    assert!(!caps.copies || length > COPY_BYTES_MAX, "{range:?} of {length}");
                    assert_eq!(out[..], b"before"[..]);
                    assert!(drain(hit).await.expect("readable") == expected);
                }
            }
        }
    }
}

/// What becomes of an object while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Overwrite,
    Purge,
    PurgeAndWrite,
    Expire,
}

/// The version found, to its end or to a visible cut: never a mixture, never a short whole.
pub(super) async fn readers_keep_one_version_or_are_cut<S: Storage>(store: &S, time: &impl SetTime, length: usize) {
    for change in [Change::Overwrite, Change::Purge, Change::PurgeAndWrite, Change::Expire] {
        for range in [0..length, length / 3..length - 1] {
            for begun in [false, true] {
                read_through(store, time, length, range.clone(), begun, change).await;
            }
        }
    }
}

async fn read_through<S: Storage>(
    store: &S,
    time: &impl SetTime,
    length: usize,
    range: Range<usize>,
    begun: bool,
    change: Change,
) {
    let context = format!("{change:?} of {range:?}, begun: {begun}");
    let name = key(&context);
    let (old, new) = (body(1, length), body(2, length));
    let expires_ms = (change == Change::Expire).then(|| time.now_ms() + 60_000);
    let meta = CacheMeta { expires_ms, ..meta_of(&old) };
    put_with(store, &name, meta, Precondition::None, &old, 40_000).await.expect("stored");
    let (_, mut hit) = store.lookup(&name).await.expect("an answer").expect("a hit");
    if range != (0..length) {
        hit.seek(range.start as u64..range.end as u64).expect("within the body");
    }
    let mut got = Vec::new();
    if begun {
        got.extend_from_slice(&hit.read_body().await.expect("readable").expect("a chunk"));
    }
    match change {
        Change::Overwrite => drop(put(store, &name, &new).await),
        Change::Expire => time.advance(Duration::from_secs(61)),
        Change::Purge | Change::PurgeAndWrite => {
            assert!(store.purge(&name, Precondition::None).await.expect("purged").removed.is_some());
            if change == Change::PurgeAndWrite {
                put(store, &name, &new).await;
            }
        }
    }
    read_out(hit, got, &old[range], &context).await;
    // And the reader left nothing of the past behind.
    let left = matches!(change, Change::Overwrite | Change::PurgeAndWrite).then_some(new);
    assert!(get(store, &name).await.map(|(_, bytes)| bytes) == left, "{context}");
}

/// Readers that stand half-way while much more is written than there is room for. A storage that loses nothing reads on.
pub(super) async fn readers_outlive_what_is_read_or_are_cut<S: Storage>(store: &S, caps: Caps) {
    for length in [700, 30_000, 90_000] {
        let mut readers = Vec::new();
        for begun in [false, true] {
            let (name, whole) = (key(&format!("read-{length}-{begun}")), body(length as u64, length));
            let mut tries = 0;
            let mut hit = loop {
                if is_taken(store, &name, &whole).await
                    && let Some((_, hit)) = store.lookup(&name).await.expect("an answer")
                {
                    break hit;
                }
                tries += 1;
                assert!(tries < 20 && !caps.keeps, "refused or lost {tries} times");
            };
            let mut got = Vec::new();
            if begun {
                match hit.read_body().await {
                    Ok(chunk) => got.extend_from_slice(&chunk.expect("a chunk")),
                    Err(gone) => assert!(!caps.keeps, "{gone}"),
                }
            }
            readers.push((whole, hit, got));
        }
        for i in 0..150 {
            let taken = is_taken(store, &key(&format!("other-{i}")), &body(i, 20_000)).await;
            assert!(taken || !caps.keeps, "refused");
        }
        for (whole, hit, got) in readers {
            let all = read_out(hit, got, &whole, &format!("{length} bytes")).await;
            assert!(all || !caps.keeps, "cut although nothing was to be lost");
        }
    }
}

/// Writes, unless there is no room: a log may lap what is on its way into it.
async fn is_taken<S: Storage>(store: &S, name: &CacheKey, bytes: &Bytes) -> bool {
    match put_with(store, name, meta_of(bytes), Precondition::None, bytes, 7_000).await {
        Ok(_) => true,
        Err(CacheError::Refused(Reason::NoRoom)) => false,
        Err(failed) => panic!("{failed}"),
    }
}

/// Reads on from `got`: `expected`, or a visible cut of it. Whether it was all.
async fn read_out(mut hit: impl HitHandler, mut got: Vec<u8>, expected: &[u8], context: &str) -> bool {
    let whole = loop {
        match hit.read_body().await {
            Ok(Some(chunk)) => got.extend_from_slice(&chunk),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    assert!(expected.starts_with(&got), "{context}: {} bytes of another body", got.len());
    assert_eq!(whole, got.len() == expected.len(), "{context}: {} of {} bytes", got.len(), expected.len());
    whole
}
