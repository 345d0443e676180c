//! The suite over every [`Storage`].
//!
//! Owns [`Caps`], what may differ between one storage and another, and the checks of writes, purges and metadata.
//! Hits being read: [`reading`]. Writes that are given up: [`dropped`], and side by side: [`racing`]. A long random
//! walk: [`model`].

mod dropped;
mod model;
mod racing;
mod reading;

use std::time::Duration;

use bytes::Bytes;
use strata::{
    cache::{
        CacheError, CacheKey, CacheMeta, Found, HEADERS_BYTES_MAX, HitHandler, KEY_BYTES_MAX, MissHandler,
        Precondition, PurgeReport, Storage, Tier, Version,
    },
    reason::Reason,
};

use crate::support::{SetTime, body, get, key, meta_of, put, put_with};

/// How a storage gives versions to commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    /// The version given, unless something newer is there; its own only when none is given.
    Given,
    /// Its own, above the one given and above what is there.
    Above,
    /// Its own, above what is there; one that is given is not looked at.
    Own,
}

/// What a storage can do; everything else is the same for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    /// Of these, one at least has kept what is acknowledged.
    pub(crate) acknowledges: &'static [Tier],
    /// Hits come from these.
    pub(crate) answers: &'static [Tier],
    /// Whose versions commits get.
    pub(crate) versions: Versions,
    /// `update_meta` may change headers and flags; others only the expiry.
    pub(crate) updates_headers: bool,
    /// Misses tell deleted objects from those never seen.
    pub(crate) tells_deleted: bool,
    /// Where no client's precondition is worth a read of its medium, it goes by its index, which has versions and no
    /// times: a copy that expired unnoticed is reported as replaced or removed, and is not older than it is.
    pub(crate) counts_expired: bool,
    /// What was acknowledged stays until it is removed or expires; others may lose it to make room.
    pub(crate) keeps: bool,
    /// Commits of one key may run side by side; others rely on their caller to take turns.
    pub(crate) arbitrates: bool,
    /// Small hits are given by [`HitHandler::try_copy`].
    pub(crate) copies: bool,
    /// Largest body the suite may write.
    pub(crate) body_bytes_max: usize,
}

impl Caps {
    /// What a tier of RAM, network or flash can do.
    pub(crate) fn cache(tier: Tier) -> Self {
        let alone = match tier {
            Tier::L0 => &[Tier::L0],
            Tier::L1 => &[Tier::L1],
            Tier::L2 => &[Tier::L2],
            Tier::L3 => &[Tier::L3],
        };
        Self {
            acknowledges: alone,
            answers: alone,
            versions: Versions::Given,
            updates_headers: true,
            tells_deleted: false,
            counts_expired: false,
            keeps: true,
            arbitrates: true,
            copies: false,
            body_bytes_max: 300_000,
        }
    }

    /// What RAM can do.
    pub(crate) fn ram() -> Self {
        Self { copies: true, ..Self::cache(Tier::L0) }
    }

    /// What a durable tier can do.
    pub(crate) fn durable() -> Self {
        Self {
            versions: Versions::Above,
            updates_headers: false,
            tells_deleted: true,
            body_bytes_max: 700_000,
            ..Self::cache(Tier::L3)
        }
    }
}

/// Runs every check, each over a fresh storage that `make` gives.
pub(crate) async fn suite<S: Storage>(make: impl AsyncFn() -> S, time: &impl SetTime, caps: Caps) {
    bodies_of_all_sizes_come_back(&make().await, caps).await;
    staged_bytes_are_invisible(&make().await).await;
    dropped::dropped_writes_leave_nothing(&make().await, caps).await;
    dropped::a_dropped_commit_happens_or_not(&make().await).await;
    reading::ranges_read_what_they_name(&make().await, caps).await;
    reading::copies_are_whole_or_not_made(&make().await, caps).await;
    for length in [700, 30_000, 250_000] {
        reading::readers_keep_one_version_or_are_cut(&make().await, time, length).await;
    }
    preconditions_decide(&make().await).await;
    versions_only_grow(&make().await, caps).await;
    expiry_ends_an_object(&make().await, time).await;
    purges_remove_and_stay(&make().await, caps).await;
    metadata_changes_under_the_same_version(&make().await, time, caps).await;
    cut_and_mismatched_bodies_change_nothing(&make().await).await;
    racing::the_last_to_finish_wins(&make().await, caps).await;
    if caps.arbitrates {
        racing::one_of_many_that_expect_the_same_wins(&make().await).await;
        racing::every_version_ends_once(&make().await).await;
    }
    keys_and_headers_of_any_bytes(&make().await).await;
    for seed in 0..4 {
        model::agrees_with_a_map(&make().await, time, caps, seed, 12).await;
    }
}

/// What changes when there is room for less than is written: objects may go, where the storage may lose them, and are
/// what they were until then. Each check over a fresh storage that `make` gives, with room for a megabyte at most.
pub(crate) async fn pressed<S: Storage>(make: impl AsyncFn() -> S, time: &impl SetTime, caps: Caps) {
    reading::readers_outlive_what_is_read_or_are_cut(&make().await, caps).await;
    let mut lost = 0;
    for seed in 0..4 {
        lost += model::agrees_with_a_map(&make().await, time, caps, seed, 60).await;
    }
    assert_eq!(lost > 0, !caps.keeps, "{lost} objects lost");
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
            assert!(caps.acknowledges.iter().any(|tier| stored.kept_by(*tier)), "{stored:?}");
            assert!(stored.version > Version::NONE);
            let (got, bytes) = get(store, &name).await.expect("a hit");
            assert!(bytes == body, "{length} bytes came back wrong");
            let (length, checksum) = (Some(length as u64), Some(crc32fast::hash(&body)));
            let expected = CacheMeta { version: stored.version, length, checksum, ..meta };
            assert_eq!(got, expected);
            let Found::Hit(found, hit) = store.find(&name).await.expect("an answer") else { panic!("no hit") };
            assert_eq!(found, expected);
            assert!(caps.answers.contains(&hit.tier()), "{:?}", hit.tier());
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
    if caps.versions == Versions::Given {
        assert_eq!(third, ahead);
        assert!(matches!(put_at(second, 4).await, Err(CacheError::Refused(Reason::Superseded))));
        assert_eq!(get(store, &name).await.expect("a hit").1, body(3, 60));
    } else {
        assert!(third > if caps.versions == Versions::Above { ahead } else { second });
        assert!(put_at(second, 4).await.expect("stored").version > third);
        assert_eq!(get(store, &name).await.expect("a hit").1, body(4, 60));
    }
    let last = put_at(Version::NONE, 5).await.expect("stored").version;
    assert!(last > third, "a version of its own is above what was there");
    // What takes older copies away leaves room for a commit of exactly the version it names.
    let next = Version(last.0 + 1);
    assert_eq!(store.purge(&name, Precondition::OlderThan(next)).await.expect("purged").removed, Some(last));
    let stored = put_at(next, 6).await.expect("stored").version;
    assert!(stored == next || caps.versions != Versions::Given && stored > last, "{stored} for {next}");
    assert_eq!(get(store, &name).await.expect("a hit").1, body(6, 60));
}

async fn reason_of<S: Storage>(store: &S, name: &CacheKey) -> Reason {
    match store.find(name).await.expect("an answer") {
        Found::Miss(reason) => reason,
        Found::Hit(meta, _) => panic!("a hit: {meta:?}"),
    }
}

async fn expiry_ends_an_object<S: Storage>(store: &S, time: &impl SetTime) {
    let (name, bytes) = (key("expiring"), body(1, 100));
    let meta = CacheMeta { expires_ms: Some(time.now_ms() + 60_000), ..meta_of(&bytes) };
    let first = put_with(store, &name, meta.clone(), Precondition::None, &bytes, 100).await.expect("stored");
    assert_eq!(get(store, &name).await.expect("a hit").0.expires_ms, meta.expires_ms);
    time.advance(Duration::from_secs(61));
    assert_eq!(reason_of(store, &name).await, Reason::Expired);
    assert_eq!(store.purge(&name, Precondition::None).await.expect("nothing to do").removed, None);
    let second = put_with(store, &name, meta_of(&bytes), Precondition::Absent, &bytes, 100).await.expect("stored");
    assert!(second.version > first.version);
    assert_eq!(second.replaced, None);
    assert!(get(store, &name).await.is_some());

    // The millisecond named is the first one without the object; one in the past is never seen.
    let ends = time.now_ms() + 1_000;
    let ending = CacheMeta { expires_ms: Some(ends), ..meta_of(&bytes) };
    put_with(store, &name, ending, Precondition::None, &bytes, 100).await.expect("stored");
    time.advance(Duration::from_millis(ends - time.now_ms() - 1));
    assert!(get(store, &name).await.is_some());
    time.advance(Duration::from_millis(1));
    assert_eq!(reason_of(store, &name).await, Reason::Expired);
    let past = CacheMeta { expires_ms: Some(time.now_ms() - 1), ..meta_of(&bytes) };
    put_with(store, &name, past, Precondition::None, &bytes, 100).await.expect("stored");
    assert_eq!(reason_of(store, &name).await, Reason::Expired);
    assert!(matches!(store.purge(&name, Precondition::Exists).await, Err(CacheError::Precondition { current: None })));
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
    assert!(caps.acknowledges.iter().any(|tier| report.tiers[*tier as usize]), "{report:?}");
    assert!(report.tombstone.is_none_or(|tombstone| tombstone > first));
    let reason = reason_of(store, &name).await;
    assert!(reason == Reason::Deleted || !caps.tells_deleted, "{reason}");
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
        // Nothing follows the end.
        let mut miss = store.get_miss_handler(&name, CacheMeta::default(), Precondition::None).await.expect("begun");
        miss.write_body(bytes.clone(), true).await.expect("written");
        let late = miss.write_body(body(3, 1), true).await;
        assert!(matches!(late, Err(CacheError::Refused(Reason::BodyCut))), "{late:?}");
        drop(miss);
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
