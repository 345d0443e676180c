//! What the suites share: a clock that tests move, bodies, small helpers over the contracts.

use std::{
    env,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use engine::{
    clock::{Clock, MachineClock},
    rt::{Rt, sim::SimClock},
    shard::{Failure, Options, ShardRt, Supervisor, launch},
};
use strata::{
    cache::{CacheError, CacheKey, CacheMeta, HitHandler, MissHandler, Precondition, Storage, Stored},
    tokio_rt::TokioRt,
};
use tempfile::TempDir;

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

/// A clock that is moved ahead. The wall stands still between moves, so that nothing expires while it is looked at;
/// intervals pass as they do below.
#[derive(Clone)]
pub(crate) struct TestClock<C = MachineClock> {
    below: C,
    ahead_ms: Arc<AtomicU64>,
    wall_ms: Arc<AtomicU64>,
}

impl TestClock {
    /// Over the machine's.
    pub(crate) fn start() -> Self {
        Self::over(MachineClock::start())
    }
}

impl<C: Clock> TestClock<C> {
    pub(crate) fn over(below: C) -> Self {
        let wall_ms = Arc::new(AtomicU64::new(below.wall_ms()));
        Self { below, ahead_ms: Arc::default(), wall_ms }
    }

    /// Moves the wall clock alone: who is pausing meanwhile does not think that it took long.
    pub(crate) fn advance_wall(&self, by: Duration) {
        self.wall_ms.fetch_add(u64::try_from(by.as_millis()).expect("small"), Ordering::SeqCst);
    }
}

impl<C: Clock> Clock for TestClock<C> {
    fn elapsed(&self) -> Duration {
        self.below.elapsed() + Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }

    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }
}

impl<C: Clock> SetTime for TestClock<C> {
    fn now_ms(&self) -> u64 {
        self.wall_ms()
    }

    fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(u64::try_from(by.as_millis()).expect("small"), Ordering::SeqCst);
        self.advance_wall(by);
    }
}

/// A scheduler whose users live by a [`TestClock`].
#[derive(Clone)]
pub(crate) struct Timed<R: Rt> {
    rt: R,
    clock: TestClock<R::Clock>,
}

impl<R: Rt> Timed<R> {
    pub(crate) fn over(rt: R) -> Self {
        let clock = TestClock::over(rt.clock().clone());
        Self { rt, clock }
    }
}

impl<R: Rt> Rt for Timed<R> {
    type Clock = TestClock<R::Clock>;

    fn clock(&self) -> &Self::Clock {
        &self.clock
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.rt.spawn(task);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.rt.sleep(duration)
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        self.rt.yield_now()
    }

    fn random(&self) -> u64 {
        self.rt.random()
    }
}

/// Runs `test` on an executor thread as the node makes them.
pub(crate) fn on_tokio<T>(test: impl AsyncFnOnce(TokioRt<TestClock>, TestClock) -> T) -> T {
    let clock = TestClock::start();
    TokioRt::run(clock.clone(), async |rt| test(rt, clock).await).expect("a runtime")
}

/// Runs `test` on a shard as the node makes them.
pub(crate) fn on_shard(test: impl AsyncFnOnce(ShardRt) + Send + 'static) {
    struct Silent;
    impl Supervisor for Silent {
        fn shard_failed(&self, _: Failure) {}
    }
    let main = move |rt: ShardRt, _| async move { test(rt).await };
    let options = Options { probe_dirs: vec![target()], stall_max: Duration::from_secs(60), ..Options::default() };
    let shards = launch(&options, vec![main], Arc::new(Silent)).expect("this machine runs shards");
    assert_eq!(shards.join().iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
}

/// Where this test lies: on a disk, which the folder for temporary files may not be.
fn target() -> PathBuf {
    env::current_exe().expect("a test binary").parent().expect("in a folder").to_owned()
}

/// A folder on a disk that takes direct I/O.
pub(crate) fn disk() -> TempDir {
    tempfile::tempdir_in(target()).expect("a folder")
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
