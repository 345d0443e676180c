//! What a hit in L0 costs below the doors: one key found through the tiers and its body copied, in one thread.

use std::{
    future::Future,
    hint::black_box,
    pin::pin,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    task::{Context as TaskContext, Poll, Waker},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use engine::{
    rt::sim::{Sim, SimClock, SimRt},
    slab,
};
use serde_json::json;
use strata::{
    cache::{CacheError, CacheKey, CacheMeta, HitHandler, MissHandler, Precondition, Storage},
    namespace::{Namespaces, Registry},
    policy::{Policy, VersionedPolicy},
    stats::ShardStats,
    storage::{
        bridge::Bridge,
        multi_tier::{Context, MultiTier, Settings, Stack},
        ram::RamTier,
    },
    version::VersionClock,
};

const ABOUT: &str = "\
Hits in L0, below the doors: the key is found through MultiTier over RAM alone, and the body copied into a buffer that
is used again (head: nothing is read). Objects with and without 60 bytes of stored headers. One thread, one hot key.

usage  hit [CASE HITS]     one case alone, and nothing timed. Instructions a hit are the difference of two runs under
                           valgrind --tool=callgrind (or perf stat), over the difference of their HITS.
left out  sockets, HTTP, the clock's real price (a simulated one is read), cold memory, evictions.";

const HITS: u64 = 1_000_000;
const BODIES: [(&str, usize); 5] = [("100", 100), ("4k-", 4095), ("4k", 4096), ("16k", 16 << 10), ("64k", 64 << 10)];

type Tiers = MultiTier<RamTier<SimClock>, Bridge, Bridge, Bridge, SimRt>;

struct Case {
    name: String,
    key: CacheKey,
    bytes: usize,
    read: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("{failed}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), CacheError> {
    let sim = Sim::new(1);
    let tiers = tiers(&sim);
    let cases = sim.block_on(fill(&tiers))?;
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [name, hits] = &args[..] {
        let hits = hits.parse().unwrap_or(HITS);
        let case = cases.iter().find(|case| case.name == *name);
        return case.map_or(Ok(()), |case| repeat(&tiers, case, hits));
    }
    // `cargo test --all-targets` only wants to know that it works.
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("hit: measures nothing in a test run; use cargo bench --bench hit");
        return cases.iter().try_for_each(|case| repeat(&tiers, case, 10));
    }
    println!("{ABOUT}\n\n{:14}{:>10}", "case", "ns/hit");
    for case in &cases {
        repeat(&tiers, case, HITS / 10)?;
        let began = Instant::now();
        repeat(&tiers, case, HITS)?;
        println!("{:14}{:>10.1}", case.name, began.elapsed().as_nanos() as f64 / HITS as f64);
    }
    Ok(())
}

fn tiers(sim: &Sim) -> Tiers {
    let policy = json!({"namespaces": {"hot": {"mode": "cache_only", "tiers": ["l0"]}}});
    let policy = Policy::from_json(&policy).expect("a policy");
    let versions = VersionClock::new(1);
    let l0 = RamTier::new(slab::Config::new(64 << 20), sim.clock().clone(), versions.clone(), ()).expect("memory");
    let context = Context {
        rt: sim.rt(),
        namespaces: Rc::new(Namespaces::new(Registry::new(), VersionedPolicy { version: 1, policy: Arc::new(policy) })),
        versions,
        stats: ShardStats::new(),
        settings: Settings::default(),
    };
    // The simulated world goes on without its owner: nothing here waits for it.
    MultiTier::new(Stack { l0, l1: None, l2: None, l3: None }, context)
}

async fn fill(tiers: &Tiers) -> Result<Vec<Case>, CacheError> {
    let mut cases = Vec::new();
    for (headers, suffix) in [(Bytes::new(), ""), (Bytes::from_static(&[b'h'; 60]), "+h")] {
        for (name, bytes) in BODIES {
            let name = format!("{name}{suffix}");
            let key = CacheKey::new("hot", name.as_bytes(), 7).expect("a key");
            let meta = CacheMeta { length: Some(bytes as u64), headers: headers.clone(), ..CacheMeta::default() };
            let mut miss = tiers.get_miss_handler(&key, meta, Precondition::None).await?;
            miss.write_body(vec![7; bytes].into(), true).await?;
            miss.finish().await?;
            if bytes == 100 || bytes == 64 << 10 {
                cases.push(Case { name: format!("head-{name}"), key: key.clone(), bytes, read: false });
            }
            cases.push(Case { name, key, bytes, read: true });
        }
    }
    Ok(cases)
}

fn repeat(tiers: &Tiers, case: &Case, hits: u64) -> Result<(), CacheError> {
    let mut out = BytesMut::with_capacity(case.bytes);
    for _ in 0..hits {
        out.clear();
        now(hit(tiers, case, &mut out))?;
    }
    Ok(())
}

/// As a door does it: small bodies in one copy, others in pieces.
async fn hit(tiers: &Tiers, case: &Case, out: &mut BytesMut) -> Result<(), CacheError> {
    let (meta, mut hit) = tiers.lookup(black_box(&case.key)).await?.expect("it stays in L0");
    if case.read && hit.try_copy(out).is_none() {
        while let Some(chunk) = hit.read_body().await? {
            black_box(chunk);
        }
    }
    black_box((meta, &out));
    Ok(())
}

/// RAM answers in the step it is asked in.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing here waits"),
    }
}
