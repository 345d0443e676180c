//! The suite over every [`Storage`].

use std::time::Duration;

use bytes::Bytes;
use strata::{
    cache::{
        CacheError, CacheKey, CacheMeta, Found, HEADERS_BYTES_MAX, HitHandler, KEY_BYTES_MAX, MissHandler,
        Precondition, PurgeReport, Storage, Tier, TierOutcome, Version,
    },
    reason::Reason,
};

use crate::support::{SetTime, body, drain, get, key, meta_of, put, put_with};

/// What a tier can do; everything else is the same for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    /// The tier it answers as.
    pub(crate) tier: Tier,
    /// It chooses the version of every commit itself, always above what is there; others obey the version given.
    pub(crate) orders_commits: bool,
    /// `update_meta` may change headers and flags; others only the expiry.
    pub(crate) updates_headers: bool,
    /// Misses tell expired and deleted objects from those never seen.
    pub(crate) explains_misses: bool,
    /// Largest body the suite may write.
    pub(crate) body_bytes_max: usize,
}

impl Caps {
    /// What a tier of RAM, network or flash can do.
    pub(crate) fn cache(tier: Tier) -> Self {
        Self { tier, orders_commits: false, updates_headers: true, explains_misses: false, body_bytes_max: 300_000 }
    }

    /// What a durable tier can do.
    pub(crate) fn durable() -> Self {
        Self {
            tier: Tier::L3,
            orders_commits: true,
            updates_headers: false,
            explains_misses: true,
            body_bytes_max: 700_000,
        }
    }
}

/// Runs every check, each over a fresh storage that `make` gives.
pub(crate) async fn suite<S: Storage>(make: impl AsyncFn() -> S, time: &impl SetTime, caps: Caps) {
    bodies_of_all_sizes_come_back(&make().await, caps).await;
    staged_bytes_are_invisible(&make().await).await;
    ranges_read_what_they_name(&make().await, caps).await;
    preconditions_decide(&make().await).await;
    versions_only_grow(&make().await, caps).await;
    expiry_ends_an_object(&make().await, time, caps).await;
    purges_remove_and_stay(&make().await, caps).await;
    metadata_changes_under_the_same_version(&make().await, time, caps).await;
    cut_and_mismatched_bodies_change_nothing(&make().await).await;
    the_first_of_two_writers_loses(&make().await, caps).await;
    readers_see_one_write(&make().await, caps).await;
    keys_and_headers_of_any_bytes(&make().await).await;
    for seed in 0..4 {
        agrees_with_a_map(&make().await, time, caps, seed).await;
    }
}

async fn bodies_of_all_sizes_come_back<S: Storage>(store: &S, caps: Caps) {
    let sizes = [0, 1, 100, 4_095, 4_096, 4_097, 65_535, 65_536, 65_537, 131_072, 262_144, 699_999];
    for (i, length) in sizes.into_iter().filter(|length| *length <= caps.body_bytes_max).enumerate() {
        for announced in [true, false] {
            let (name, body) = (key(&format!("size-{length}-{announced}")), body(i as u64, length));
            let meta = CacheMeta {
                length: announced.then_some(length as u64),
                checksum: announced.then(|| crc32fast::hash(&body)),
                created_ms: 1_700_000_000_000,
                client_flags: 0xdead_beef,
                headers: Bytes::from_static(b"content-type: a/b"),
                ..CacheMeta::default()
            };
            let stored = put_with(store, &name, meta.clone(), Precondition::None, &body, 7_000).await.expect("stored");
            assert_eq!((stored.length, stored.replaced), (length as u64, None));
            assert_eq!(stored.tiers[caps.tier as usize], Some(TierOutcome::Kept));
            assert!(stored.version > Version::NONE);
            let (got, bytes) = get(store, &name).await.expect("a hit");
            assert!(bytes == body, "{length} bytes came back wrong");
            let (length, checksum) = (Some(length as u64), Some(crc32fast::hash(&body)));
            assert_eq!(got, CacheMeta { version: stored.version, length, checksum, ..meta });
            let (_, hit) = store.lookup(&name).await.expect("an answer").expect("a hit");
            assert_eq!(hit.tier(), caps.tier);
        }
    }
}

async fn staged_bytes_are_invisible<S: Storage>(store: &S) {
    let (name, old, new) = (key("staged"), body(1, 5_000), body(2, 150_000));
    let mut miss = store.get_miss_handler(&name, meta_of(&new), Precondition::None).await.expect("begun");
    miss.write_body(new.slice(..100_000), false).await.expect("written");
    assert!(get(store, &name).await.is_none());
    miss.write_body(new.slice(100_000..), true).await.expect("written");
    assert!(get(store, &name).await.is_none());
    drop(miss);
    assert!(get(store, &name).await.is_none());

    put(store, &name, &old).await;
    let mut miss = store.get_miss_handler(&name, CacheMeta::default(), Precondition::None).await.expect("begun");
    miss.write_body(new.clone(), true).await.expect("written");
    assert_eq!(get(store, &name).await.expect("the old one").1, old);
    miss.finish().await.expect("stored");
    assert_eq!(get(store, &name).await.expect("the new one").1, new);

    let unfinished = store.get_miss_handler(&name, meta_of(&old), Precondition::None).await.expect("begun");
    assert!(matches!(unfinished.finish().await, Err(CacheError::Refused(Reason::BodyCut))));
    assert_eq!(get(store, &name).await.expect("still there").1, new);
}

async fn ranges_read_what_they_name<S: Storage>(store: &S, caps: Caps) {
    for length in [1_usize, 9_000, 65_536, 200_001] {
        let length = length.min(caps.body_bytes_max);
        let (name, whole) = (key("ranges"), body(length as u64, length));
        put(store, &name, &whole).await;
        let mut ranges = vec![(0, length), (0, 0), (length, length), (0, 1), (length - 1, length)];
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
        assert!(hit.read_body().await.expect("readable").is_some());
        assert!(hit.seek(0..1).is_err(), "reading has begun");
    }
}

async fn preconditions_decide<S: Storage>(store: &S) {
    let name = key("conditions");
    let try_put = async |seed, precondition| {
        let body = body(seed, 50);
        put_with(store, &name, meta_of(&body), precondition, &body, 100).await
    };
    let current_of = |result: Result<_, CacheError>| match result {
        Err(CacheError::Precondition { current }) => current,
        Err(other) => panic!("{other}"),
        Ok(stored) => panic!("stored, but should not be: {stored:?}"),
    };
    assert_eq!(current_of(try_put(1, Precondition::Exists).await), None);
    assert_eq!(current_of(try_put(1, Precondition::Version(Version(9))).await), None);
    let first = try_put(1, Precondition::Absent).await.expect("nothing was there");
    assert_eq!(current_of(try_put(2, Precondition::Absent).await), Some(first.version));
    assert_eq!(current_of(try_put(2, Precondition::OlderThan(first.version)).await), Some(first.version));
    assert_eq!(current_of(try_put(2, Precondition::Version(Version(first.version.0 + 1))).await), Some(first.version));
    assert_eq!(get(store, &name).await.expect("unchanged").1, body(1, 50));
    let second = try_put(3, Precondition::Version(first.version)).await.expect("the version is there");
    assert!(second.version > first.version);
    assert_eq!(second.replaced, Some(first.version));
    let third = try_put(4, Precondition::Exists).await.expect("it exists");
    assert_eq!(get(store, &name).await.expect("a hit").1, body(4, 50));

    // The commit decides, not the beginning.
    let mut late =
        store.get_miss_handler(&name, CacheMeta::default(), Precondition::Version(third.version)).await.expect("begun");
    late.write_body(body(5, 50), true).await.expect("written");
    let fourth = try_put(6, Precondition::None).await.expect("stored");
    assert_eq!(current_of(late.finish().await), Some(fourth.version));

    let purge = async |precondition| store.purge(&name, precondition).await;
    assert!(matches!(purge(Precondition::Version(third.version)).await, Err(CacheError::Precondition { .. })));
    // A copy that is not older is spared, and that is no failure.
    for spared in [third.version, fourth.version] {
        assert_eq!(purge(Precondition::OlderThan(spared)).await.expect("a success"), PurgeReport::default());
        assert_eq!(get(store, &name).await.expect("spared").1, body(6, 50));
    }
    assert_eq!(purge(Precondition::Version(fourth.version)).await.expect("purged").removed, Some(fourth.version));
    assert!(matches!(purge(Precondition::Exists).await, Err(CacheError::Precondition { current: None })));
}

async fn versions_only_grow<S: Storage>(store: &S, caps: Caps) {
    let name = key("versions");
    let put_at = async |version, seed| {
        let body = body(seed, 60);
        put_with(store, &name, CacheMeta { version, ..meta_of(&body) }, Precondition::None, &body, 100).await
    };
    let first = put_at(Version::NONE, 1).await.expect("stored").version;
    let second = put_at(Version::NONE, 2).await.expect("stored").version;
    assert!(second > first);
    let ahead = Version(second.0 + (1 << 40));
    let third = put_at(ahead, 3).await.expect("stored").version;
    if caps.orders_commits {
        assert!(third > ahead);
        assert!(put_at(second, 4).await.expect("stored").version > third);
        assert_eq!(get(store, &name).await.expect("a hit").1, body(4, 60));
    } else {
        assert_eq!(third, ahead);
        assert!(matches!(put_at(second, 4).await, Err(CacheError::Refused(Reason::Superseded))));
        assert_eq!(get(store, &name).await.expect("a hit").1, body(3, 60));
    }
    let last = put_at(Version::NONE, 5).await.expect("stored").version;
    assert!(last > third, "a version of its own is above what was there");
}

async fn reason_of<S: Storage>(store: &S, name: &CacheKey) -> Reason {
    match store.find(name).await.expect("an answer") {
        Found::Miss(reason) => reason,
        Found::Hit(meta, _) => panic!("a hit: {meta:?}"),
    }
}

async fn expiry_ends_an_object<S: Storage>(store: &S, time: &impl SetTime, caps: Caps) {
    let (name, bytes) = (key("expiring"), body(1, 100));
    let meta = CacheMeta { expires_ms: Some(time.now_ms() + 60_000), ..meta_of(&bytes) };
    let first = put_with(store, &name, meta.clone(), Precondition::None, &bytes, 100).await.expect("stored");
    assert_eq!(get(store, &name).await.expect("a hit").0.expires_ms, meta.expires_ms);
    time.advance(Duration::from_secs(61));
    let reason = reason_of(store, &name).await;
    assert!(reason == Reason::Expired || !caps.explains_misses, "{reason}");
    assert_eq!(store.purge(&name, Precondition::None).await.expect("nothing to do").removed, None);
    let second = put_with(store, &name, meta_of(&bytes), Precondition::Absent, &bytes, 100).await.expect("stored");
    assert!(second.version > first.version);
    assert_eq!(second.replaced, None);
    assert!(get(store, &name).await.is_some());
}

async fn purges_remove_and_stay<S: Storage>(store: &S, caps: Caps) {
    let (name, other) = (key("purged"), key("kept"));
    let nothing = store.purge(&name, Precondition::None).await.expect("a success");
    assert_eq!((nothing.removed, nothing.tombstone, nothing.tiers), (None, None, [false; 4]));
    assert_eq!(reason_of(store, &name).await, Reason::NotFound);
    let first = put(store, &name, &body(1, 200)).await.version;
    put(store, &other, &body(2, 200)).await;
    let report = store.purge(&name, Precondition::None).await.expect("purged");
    assert_eq!(report.removed, Some(first));
    assert!(report.tiers[caps.tier as usize]);
    assert!(report.tombstone.is_none_or(|tombstone| tombstone > first));
    let reason = reason_of(store, &name).await;
    assert!(reason == Reason::Deleted || !caps.explains_misses, "{reason}");
    assert_eq!(store.purge(&name, Precondition::None).await.expect("again").removed, None);
    let second =
        put_with(store, &name, CacheMeta::default(), Precondition::Absent, &body(3, 10), 10).await.expect("new");
    assert!(second.version > report.tombstone.unwrap_or(first));
    assert_eq!(get(store, &name).await.expect("a hit").1, body(3, 10));
    assert_eq!(get(store, &other).await.expect("untouched").1, body(2, 200));
}

async fn metadata_changes_under_the_same_version<S: Storage>(store: &S, time: &impl SetTime, caps: Caps) {
    let (name, bytes) = (key("meta"), body(1, 100));
    put(store, &name, &bytes).await;
    let (old, _) = get(store, &name).await.expect("a hit");
    let touched = CacheMeta { expires_ms: Some(time.now_ms() + 60_000), ..old.clone() };
    assert!(store.update_meta(&name, touched.clone()).await.expect("an answer"));
    assert_eq!(get(store, &name).await.expect("a hit"), (touched.clone(), bytes.clone()));
    let headers = CacheMeta { headers: Bytes::from_static(b"x: y"), client_flags: 3, ..touched.clone() };
    assert_eq!(store.update_meta(&name, headers.clone()).await.expect("an answer"), caps.updates_headers);
    let (got, _) = get(store, &name).await.expect("a hit");
    assert_eq!(got, if caps.updates_headers { headers } else { touched.clone() });
    let elsewhere = CacheMeta { version: Version(old.version.0 + 1), ..old.clone() };
    assert!(!store.update_meta(&name, elsewhere).await.expect("an answer"));
    assert!(!store.update_meta(&key("never-seen"), old.clone()).await.expect("an answer"));
    time.advance(Duration::from_secs(61));
    assert!(!store.update_meta(&name, CacheMeta { expires_ms: None, ..old }).await.expect("an answer"), "expired");
    assert!(get(store, &name).await.is_none());
}

async fn cut_and_mismatched_bodies_change_nothing<S: Storage>(store: &S) {
    for length in [100_usize, 100_000] {
        let (name, old, bytes) = (key("cut"), body(1, 40), body(2, length));
        put(store, &name, &old).await;
        let refusal = async |meta: CacheMeta| {
            let result = put_with(store, &name, meta, Precondition::None, &bytes, 30_000).await;
            assert_eq!(get(store, &name).await.expect("unchanged").1, old);
            match result {
                Err(CacheError::Refused(reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        let announce = |length| CacheMeta { length: Some(length), ..CacheMeta::default() };
        assert_eq!(refusal(announce(length as u64 + 1)).await, Reason::BodyCut);
        assert_eq!(refusal(announce(length as u64 - 1)).await, Reason::BodyCut);
        let checksum = Some(crc32fast::hash(&bytes) ^ 1);
        assert_eq!(refusal(CacheMeta { checksum, ..meta_of(&bytes) }).await, Reason::BodyMismatch);
        // Set by the caller between the body and the commit, it is checked all the same.
        let mut miss = store.get_miss_handler(&name, meta_of(&bytes), Precondition::None).await.expect("begun");
        miss.write_body(bytes.clone(), true).await.expect("written");
        miss.meta_mut().checksum = checksum;
        assert!(matches!(miss.finish().await, Err(CacheError::Refused(Reason::BodyMismatch))));
        assert_eq!(get(store, &name).await.expect("unchanged").1, old);
    }
}

async fn the_first_of_two_writers_loses<S: Storage>(store: &S, caps: Caps) {
    let name = key("writers");
    let length = 150_000.min(caps.body_bytes_max);
    let (one, two) = (body(1, length), body(2, length));
    let mut first = store.get_miss_handler(&name, meta_of(&one), Precondition::None).await.expect("begun");
    let mut second = store.get_miss_handler(&name, meta_of(&two), Precondition::None).await.expect("begun");
    for start in (0..length).step_by(50_000) {
        let end = length.min(start + 50_000);
        first.write_body(one.slice(start..end), end == length).await.expect("written");
        second.write_body(two.slice(start..end), end == length).await.expect("written");
    }
    let second = second.finish().await.expect("stored");
    assert_eq!(get(store, &name).await.expect("a hit").1, two);
    let first = first.finish().await.expect("stored");
    assert_eq!(first.replaced, Some(second.version));
    assert!(first.version > second.version);
    assert_eq!(get(store, &name).await.expect("a hit").1, one);
}

async fn readers_see_one_write<S: Storage>(store: &S, caps: Caps) {
    let name = key("readers");
    let length = 250_000.min(caps.body_bytes_max);
    let (old, new) = (body(1, length), body(2, length));
    put(store, &name, &old).await;
    let (_, mut hit) = store.lookup(&name).await.expect("an answer").expect("a hit");
    let mut got = hit.read_body().await.expect("readable").expect("a chunk").to_vec();
    put(store, &name, &new).await;
    // The old body to its end, or a visible cut: never a mixture, never a short whole.
    let whole = loop {
        match hit.read_body().await {
            Ok(Some(chunk)) => got.extend_from_slice(&chunk),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    assert!(old.starts_with(&got));
    assert_eq!(whole, got.len() == old.len());
    assert_eq!(get(store, &name).await.expect("a hit").1, new);
}

async fn keys_and_headers_of_any_bytes<S: Storage>(store: &S) {
    let longest = vec![b'k'; KEY_BYTES_MAX];
    let names: [&[u8]; 7] = [b"\0", b"a", b"a/", b"a/b", b"\xff\xfe/..//.", &longest, &longest[1..]];
    for (i, name) in names.iter().enumerate() {
        let key = CacheKey::new("any_bytes-1", name, 7).expect("a good key");
        let bytes = body(i as u64, 10 + i);
        let meta = CacheMeta { headers: body(99, HEADERS_BYTES_MAX), ..meta_of(&bytes) };
        put_with(store, &key, meta, Precondition::Absent, &bytes, 5).await.expect("stored");
    }
    for (i, name) in names.iter().enumerate() {
        let key = CacheKey::new("any_bytes-1", name, 7).expect("a good key");
        let (meta, bytes) = get(store, &key).await.expect("a hit");
        assert_eq!((meta.headers, bytes), (body(99, HEADERS_BYTES_MAX), body(i as u64, 10 + i)));
        let elsewhere = CacheKey::new("any_bytes-2", name, 7).expect("a good key");
        assert!(get(store, &elsewhere).await.is_none(), "namespaces are apart");
    }
}

/// Some hundreds of random operations, against what a map would answer.
async fn agrees_with_a_map<S: Storage>(store: &S, time: &impl SetTime, caps: Caps, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: std::collections::BTreeMap<String, (Version, Option<u64>, Bytes)> = Default::default();
    for step in 0..300_u64 {
        let name = format!("k{}", random.u8(..12));
        let now_ms = time.now_ms();
        model.retain(|_, (_, expires_ms, _)| expires_ms.is_none_or(|expires| expires > now_ms));
        let current = model.get(&name).map(|(version, ..)| *version);
        let precondition = match random.u8(..8) {
            0 => Precondition::Absent,
            1 => Precondition::Exists,
            2 => Precondition::Version(current.unwrap_or(Version(3))),
            3 => Precondition::OlderThan(current.unwrap_or(Version(3))),
            _ => Precondition::None,
        };
        let context = format!("seed {seed} step {step} {name} {precondition:?} {current:?}");
        match random.u8(..10) {
            0..=3 => {
                let large = random.u8(..4) == 0;
                let length = random.usize(..if large { 120_000.min(caps.body_bytes_max) } else { 500 });
                let bytes = body(seed << 32 | step, length);
                let expires_ms = (random.u8(..4) == 0).then(|| now_ms + random.u64(1_000..60_000));
                let meta = CacheMeta { expires_ms, ..meta_of(&bytes) };
                let result = put_with(store, &key(&name), meta, precondition, &bytes, 1 + random.usize(..30_000)).await;
                assert_eq!(result.is_ok(), precondition.holds(current), "{context}");
                if let Ok(stored) = result {
                    assert_eq!(stored.replaced, current, "{context}");
                    assert!(Some(stored.version) > current, "{context}");
                    model.insert(name, (stored.version, expires_ms, bytes));
                }
            }
            4 => {
                let result = store.purge(&key(&name), precondition).await;
                let spared = matches!(precondition, Precondition::OlderThan(_));
                match (precondition.holds(current), result) {
                    (true, result) => {
                        assert_eq!(result.expect("purged").removed, current, "{context}");
                        model.remove(&name);
                    }
                    (false, Ok(report)) => assert_eq!((report, spared), (PurgeReport::default(), true), "{context}"),
                    (false, Err(failed)) => {
                        assert_eq!((failed.reason(), spared), (Reason::Precondition, false), "{context}");
                    }
                }
            }
            5 => {
                let expires_ms = Some(now_ms + random.u64(1_000..60_000));
                let found = store.lookup(&key(&name)).await.expect("an answer").map(|(meta, _)| meta);
                assert_eq!(found.as_ref().map(|meta| meta.version), current, "{context}");
                if let Some(meta) = found {
                    let touched = store.update_meta(&key(&name), CacheMeta { expires_ms, ..meta }).await;
                    assert!(touched.expect("an answer"), "{context}");
                    model.get_mut(&name).expect("just found").1 = expires_ms;
                }
            }
            6 => time.advance(Duration::from_millis(random.u64(..5_000))),
            _ => {
                let got = get(store, &key(&name)).await.map(|(meta, bytes)| (meta.version, bytes));
                let expected = model.get(&name).map(|(version, _, bytes)| (*version, bytes.clone()));
                assert_eq!(got, expected, "{context}");
            }
        }
    }
}
