//! What the suites share: a clock that tests move, bodies, small helpers over the contracts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use engine::{
    clock::{Clock, MachineClock},
    rt::sim::SimClock,
};
use strata::{
    cache::{CacheError, CacheKey, CacheMeta, HitHandler, MissHandler, Precondition, Storage, Stored},
    tokio_rt::TokioRt,
};

/// Moves the time a store under test lives by.
pub(crate) trait SetTime {
    fn now_ms(&self) -> u64;
    fn advance(&self, by: Duration);
}

impl SetTime for SimClock {
    fn now_ms(&self) -> u64 {
        self.wall_ms()
    }

    fn advance(&self, by: Duration) {
        SimClock::advance(self, by);
    }
}

/// The machine's clock, moved ahead: for stores that live on real threads. The wall stands still between moves, so
/// that nothing expires while it is looked at.
#[derive(Clone)]
pub(crate) struct TestClock {
    machine: MachineClock,
    ahead_ms: Arc<AtomicU64>,
    wall_ms: Arc<AtomicU64>,
}

impl TestClock {
    pub(crate) fn start() -> Self {
        let machine = MachineClock::start();
        Self { machine, ahead_ms: Arc::default(), wall_ms: Arc::new(AtomicU64::new(machine.wall_ms())) }
    }

    /// Moves the wall clock alone: who is pausing meanwhile does not think that it took long.
    pub(crate) fn advance_wall(&self, by: Duration) {
        self.wall_ms.fetch_add(u64::try_from(by.as_millis()).expect("small"), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn elapsed(&self) -> Duration {
        self.machine.elapsed() + Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }
}

impl SetTime for TestClock {
    fn now_ms(&self) -> u64 {
        self.wall_ms()
    }

    fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(u64::try_from(by.as_millis()).expect("small"), Ordering::SeqCst);
        self.advance_wall(by);
    }
}

/// Runs `test` on an executor thread as the node makes them.
pub(crate) fn on_tokio<T>(test: impl AsyncFnOnce(TokioRt<TestClock>, TestClock) -> T) -> T {
    let clock = TestClock::start();
    TokioRt::run(clock.clone(), async |rt| test(rt, clock).await).expect("a runtime")
}

pub(crate) fn key(name: &str) -> CacheKey {
    CacheKey::new("ns", name.as_bytes(), 7).expect("a good key")
}

/// `length` bytes that no two seeds share.
pub(crate) fn body(seed: u64, length: usize) -> Bytes {
    let mut bytes = BytesMut::zeroed(length);
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.freeze()
}

pub(crate) fn meta_of(body: &[u8]) -> CacheMeta {
    CacheMeta { length: Some(body.len() as u64), ..CacheMeta::default() }
}

/// Writes `body` in chunks of `chunk` bytes.
pub(crate) async fn put_with<S: Storage>(
    store: &S,
    key: &CacheKey,
    meta: CacheMeta,
    precondition: Precondition,
    body: &Bytes,
    chunk: usize,
) -> Result<Stored, CacheError> {
    let mut miss = store.get_miss_handler(key, meta, precondition).await?;
    let mut rest = body.clone();
    while rest.len() > chunk {
        miss.write_body(rest.split_to(chunk), false).await?;
    }
    miss.write_body(rest, true).await?;
    miss.finish().await
}

pub(crate) async fn put<S: Storage>(store: &S, key: &CacheKey, body: &Bytes) -> Stored {
    put_with(store, key, meta_of(body), Precondition::None, body, 10_000).await.expect("stored")
}

/// Reads a hit to its end.
pub(crate) async fn drain(mut hit: impl HitHandler) -> Result<Bytes, CacheError> {
    let mut got = BytesMut::new();
    while let Some(chunk) = hit.read_body().await? {
        assert!(!chunk.is_empty(), "chunks are never empty");
        got.extend_from_slice(&chunk);
        assert!(got.len() < 1 << 30, "a read that does not end");
    }
    assert_eq!(hit.remaining(), 0);
    Ok(got.freeze())
}

pub(crate) async fn get<S: Storage>(store: &S, key: &CacheKey) -> Option<(CacheMeta, Bytes)> {
    let (meta, hit) = store.lookup(key).await.expect("an answer")?;
    assert_eq!(Some(hit.remaining()), meta.length);
    let body = drain(hit).await.expect("a whole body");
    assert_eq!(Some(body.len() as u64), meta.length);
    assert_eq!(Some(crc32fast::hash(&body)), meta.checksum);
    Some((meta, body))
}
