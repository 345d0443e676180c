//! A random walk over a storage and a map.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use strata::cache::{CacheError, CacheMeta, Precondition, PurgeReport, Storage, Version};

use super::Caps;
use crate::support::{SetTime, body, get, key, meta_of, put_with};

/// Some hundreds of random operations, against what a map would answer.
pub(super) async fn agrees_with_a_map<S: Storage>(store: &S, time: &impl SetTime, caps: Caps, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: BTreeMap<String, (Version, Option<u64>, Bytes)> = BTreeMap::new();
    let mut expired: BTreeMap<String, Version> = BTreeMap::new();
    for step in 0..300_u64 {
        let name = format!("k{}", random.u8(..12));
        let now_ms = time.now_ms();
        let ended = model.extract_if(.., |_, (_, expires_ms, _)| expires_ms.is_some_and(|expires| expires <= now_ms));
        expired.extend(ended.map(|(name, (version, ..))| (name, version)));
        let current = model.get(&name).map(|(version, ..)| *version);
        let precondition = match random.u8(..8) {
            0 => Precondition::Absent,
            1 => Precondition::Exists,
            2 => Precondition::Version(current.unwrap_or(Version(3))),
            3 => Precondition::OlderThan(current.unwrap_or(Version(3))),
            _ => Precondition::None,
        };
        let context = format!("seed {seed} step {step} {name} {precondition:?} {current:?}");
        // What is there may be judged by, or reported as, a copy that expired unnoticed.
        let by_index = caps.counts_expired && matches!(precondition, Precondition::None | Precondition::OlderThan(_));
        let unnoticed = expired.get(&name).copied().filter(|_| by_index && current.is_none());
        let is_there = |version: Option<Version>| version == current || unnoticed.is_some() && version == unnoticed;
        let may = |done: bool| {
            done == precondition.holds(current) || unnoticed.is_some() && done == precondition.holds(unnoticed)
        };
        match random.u8(..10) {
            0..=3 => {
                let large = random.u8(..4) == 0;
                let length = random.usize(..if large { 120_000.min(caps.body_bytes_max) } else { 500 });
                let bytes = body(seed << 32 | step, length);
                let expires_ms = (random.u8(..4) == 0).then(|| now_ms + random.u64(1_000..60_000));
                let meta = CacheMeta { expires_ms, ..meta_of(&bytes) };
                let result = put_with(store, &key(&name), meta, precondition, &bytes, 1 + random.usize(..30_000)).await;
                assert!(may(result.is_ok()), "{context}: {result:?}");
                if let Ok(stored) = result {
                    assert!(is_there(stored.replaced), "{context}: {stored:?}");
                    assert!(Some(stored.version) > current, "{context}");
                    expired.remove(&name);
                    model.insert(name, (stored.version, expires_ms, bytes));
                }
            }
            4 => {
                let result = store.purge(&key(&name), precondition).await;
                match result {
                    Ok(report) if precondition.holds(current) => {
                        assert!(is_there(report.removed), "{context}: {report:?}");
                        model.remove(&name);
                        expired.remove(&name);
                    }
                    // What is not older is spared.
                    Ok(report) => {
                        assert!(matches!(precondition, Precondition::OlderThan(_)), "{context}");
                        assert_eq!(report, PurgeReport::default(), "{context}");
                    }
                    Err(failed) => {
                        assert!(!precondition.holds(current), "{context}");
                        assert!(!matches!(precondition, Precondition::OlderThan(_)), "{context}");
                        assert!(matches!(failed, CacheError::Precondition { .. }), "{context}: {failed}");
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
