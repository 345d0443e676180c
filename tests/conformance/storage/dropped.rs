//! Writes that are given up: before, within and after their body, and in their commit.

use std::pin::pin;

use futures_lite::future::poll_once;
use strata::cache::{CacheMeta, MissHandler, Precondition, Storage};

use super::Caps;
use crate::support::{body, get, key, meta_of, put};

/// How far a write comes.
#[derive(Clone, Copy, Debug)]
enum Until {
    Begun,
    Half,
    /// In the middle of its second half: the future of `write_body` goes first.
    HalfAndSome,
    /// All of it, but for the word that it is.
    All,
    Ended,
}

pub(super) async fn dropped_writes_leave_nothing<S: Storage>(store: &S, caps: Caps) {
    let old = body(1, 300);
    for length in [10, 20_000, 200_000].map(|length: usize| length.min(caps.body_bytes_max)) {
        let new = body(2, length);
        for until in [Until::Begun, Until::Half, Until::HalfAndSome, Until::All, Until::Ended] {
            for (announced, there) in [(false, false), (false, true), (true, false), (true, true)] {
                let name = key(&format!("{length} {until:?} {announced} {there}"));
                if there {
                    put(store, &name, &old).await;
                }
                let meta = if announced { meta_of(&new) } else { CacheMeta::default() };
                let mut miss = store.get_miss_handler(&name, meta, Precondition::None).await.expect("begun");
                let (half, rest) = (new.slice(..length / 2), new.slice(length / 2..));
                if !matches!(until, Until::Begun) {
                    miss.write_body(half, false).await.expect("written");
                }
                match until {
                    Until::Begun | Until::Half => {}
                    Until::HalfAndSome => drop(poll_once(miss.write_body(rest, true)).await),
                    Until::All => miss.write_body(rest, false).await.expect("written"),
                    Until::Ended => miss.write_body(rest, true).await.expect("written"),
                }
                drop(miss);
                let left = get(store, &name).await.map(|(_, bytes)| bytes);
                assert!(left == there.then(|| old.clone()), "{name:?}");
                // Nor does it stand in the way of the next.
                put(store, &name, &new).await;
                assert!(get(store, &name).await.expect("a hit").1 == new, "{name:?}");
            }
        }
    }
}

/// A commit whose future is dropped has happened whole or not at all, or will have.
pub(super) async fn a_dropped_commit_happens_or_not<S: Storage>(store: &S) {
    for polls in 0..12 {
        for length in [50, 150_000] {
            let name = key(&format!("{polls} {length}"));
            let (old, new) = (body(1, 400), body(2, length));
            put(store, &name, &old).await;
            let mut miss = store.get_miss_handler(&name, meta_of(&new), Precondition::None).await.expect("begun");
            miss.write_body(new.clone(), true).await.expect("written");
            let mut committed = false;
            {
                let mut commit = pin!(miss.finish());
                for _ in 0..polls {
                    if let Some(outcome) = poll_once(commit.as_mut()).await {
                        outcome.expect("stored");
                        committed = true;
                        break;
                    }
                }
            }
            let mut seen_new = false;
            for _ in 0..3 {
                let left = get(store, &name).await.expect("one of them").1;
                assert!(left == new || (left == old && !committed && !seen_new), "{name:?}");
                seen_new |= left == new;
            }
        }
    }
}
