//! Writes and purges of one key side by side.

use std::collections::BTreeSet;

use strata::cache::{CacheError, MissHandler, Precondition, Storage, Version};

use super::Caps;
use crate::{
    stores::all,
    support::{body, get, key, meta_of, put, put_with},
};

pub(super) async fn the_last_to_finish_wins<S: Storage>(store: &S, caps: Caps) {
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

/// Of commits that expect the same one happens, and the others are told so.
pub(super) async fn one_of_many_that_expect_the_same_wins<S: Storage>(store: &S) {
    for length in [60, 30_000, 120_000] {
        let name = key(&format!("raced-{length}"));
        let bodies: Vec<_> = (0..8).map(|i| body(i, length)).collect();
        let race = async |precondition| {
            let puts = bodies.iter().map(|bytes| put_with(store, &name, meta_of(bytes), precondition, bytes, 20_000));
            let (version, i) = winner(all(puts).await.into_iter().map(|put| put.map(|stored| stored.version)));
            let (meta, bytes) = get(store, &name).await.expect("a hit");
            assert!(meta.version == version && bytes == bodies[i], "{version} of writer {i}, found {meta:?}");
            version
        };
        let first = race(Precondition::Absent).await;
        let second = race(Precondition::Version(first)).await;
        assert!(second > first);
        let purges = all((0..8).map(|_| store.purge(&name, Precondition::Version(second)))).await;
        let (removed, _) = winner(purges.into_iter().map(|purge| purge.map(|report| report.removed)));
        assert_eq!(removed, Some(second));
        assert!(get(store, &name).await.is_none());
    }
}

/// The one that was done, and its place.
fn winner<T: std::fmt::Debug>(outcomes: impl Iterator<Item = Result<T, CacheError>>) -> (T, usize) {
    let mut done = Vec::new();
    for (i, outcome) in outcomes.enumerate() {
        match outcome {
            Ok(outcome) => done.push((outcome, i)),
            Err(CacheError::Precondition { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(done.len(), 1, "{done:?}");
    done.remove(0)
}

/// Of writes and purges that expect nothing, each says which version it ended: none is ended twice, and the one that
/// was not is there.
pub(super) async fn every_version_ends_once<S: Storage>(store: &S) {
    for length in [60, 30_000, 120_000] {
        for round in 0..4 {
            let name = key(&format!("ended-{length}-{round}"));
            let initial = put(store, &name, &body(9, length)).await.version;
            let change = async |i: u64| {
                if i % 4 == round % 4 {
                    let report = store.purge(&name, Precondition::None).await.expect("purged");
                    return (None, report.removed);
                }
                let bytes = body(i, length);
                let stored = put_with(store, &name, meta_of(&bytes), Precondition::None, &bytes, 20_000).await;
                let stored = stored.expect("stored");
                (Some(stored.version), stored.replaced)
            };
            let changes = all((0..8).map(change)).await;
            let mut there: BTreeSet<Version> = changes.iter().filter_map(|(made, _)| *made).collect();
            assert_eq!(there.len(), 6, "a version is given once: {changes:?}");
            there.insert(initial);
            for ended in changes.iter().filter_map(|(_, ended)| *ended) {
                assert!(there.remove(&ended), "{ended} ends twice, or was never there: {changes:?}");
            }
            let found = get(store, &name).await.map(|(meta, _)| meta.version);
            assert_eq!(Vec::from_iter(there), Vec::from_iter(found), "{changes:?}");
        }
    }
}
