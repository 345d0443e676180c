//! `MultiTier` over doubles of its four tiers, in simulated time.

mod allocations;
mod cached;
mod commits;
mod double;
mod doubt;
mod gates;
mod history;
#[path = "../../../tests/sim/oracle.rs"]
mod oracle;
mod parts;
mod promotion;
mod ram;
mod refill;

use std::{cell::RefCell, future::Future, rc::Rc, sync::Arc};

use bytes::Bytes;
use engine::{
    clock::Clock,
    rt::{
        Rt,
        sim::{Sim, SimClock, SimRt},
    },
};
use serde_json::{Value, json};

use self::double::{Blobs, Double, Index, Real, Stalls, Under as UnderDouble};
use super::{Context, MultiTier, Sabotage, Settings, Stack};
use crate::{
    cache::{
        CacheError, CacheKey, CacheMeta, HitHandler, MissHandler, Precondition, Storage, Stored, Tier, TierOutcome,
        Version,
    },
    namespace::{Namespaces, Registry},
    policy::{Policy, VersionedPolicy},
    reason::Reason,
    stats::ShardStats,
    storage::{durable::DurableSettings, memory::MemoryStore},
    version::VersionClock,
};

type Store = MemoryStore<SimClock>;
type Under = MultiTier<Double, Double, Double, Double, SimRt>;

/// A shard: four doubles, and a `MultiTier` over them.
struct World {
    sim: Sim,
    l0: Store,
    l1: Store,
    l2: Store,
    l3: Store,
    /// What the real durable tier stands on, if that is L3 and `l3` is not used.
    real: Option<(Blobs, Index)>,
    stalls: Stalls,
    tier: Under,
}

/// What a test wants other than the usual.
struct Setup {
    seed: u64,
    policy: Value,
    settings: Settings,
    sabotage: Sabotage,
    l0_bytes: u64,
    l1: bool,
    real_l3: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 1,
            policy: json!({}),
            settings: Settings::default(),
            sabotage: Sabotage::default(),
            l0_bytes: 1 << 20,
            l1: false,
            real_l3: false,
        }
    }
}

const KEY: &str = "img/a";
/// A key of the cache-only namespace that is always there.
const CACHED: &str = "memcached/a";

fn key(path: &str) -> CacheKey {
    CacheKey::from_path(Bytes::copy_from_slice(path.as_bytes()), 7).expect("a key")
}

fn body(bytes: usize, salt: u8) -> Bytes {
    (0..bytes).map(|i| (i % 251) as u8 ^ salt).collect()
}

fn durable() -> World {
    World::new(Setup::default())
}

impl World {
    fn new(setup: Setup) -> Self {
        let sim = Sim::new(setup.seed);
        let stalls = Stalls::default();
        let store = |tier, bytes_max, node| {
            let store = Store::new(tier, bytes_max, sim.clock().clone(), VersionClock::new(node));
            // Small, so that bodies come in several chunks.
            store.set_chunk_bytes(1000);
            store
        };
        let (l0, l1) = (store(Tier::L0, setup.l0_bytes, 1), store(Tier::L1, 1 << 20, 1));
        let (l2, l3) = (store(Tier::L2, 1 << 20, 1), store(Tier::L3, 1 << 30, 1));
        let real = setup.real_l3.then(|| (Blobs::new(sim.rt()), Index::new(sim.rt())));
        let tier = Self::tier(&sim, &stalls, [&l0, &l1, &l2, &l3], real.as_ref(), &setup);
        Self { sim, l0, l1, l2, l3, real, stalls, tier }
    }

    fn tier(sim: &Sim, stalls: &Stalls, stores: [&Store; 4], real: Option<&(Blobs, Index)>, setup: &Setup) -> Under {
        let double = |tier: Tier| {
            let under = match real.filter(|_| tier == Tier::L3) {
                Some((blobs, index)) => {
                    let (blobs, index, settings) = (blobs.clone(), index.clone(), DurableSettings::default());
                    let opened = Real::open(sim.rt(), blobs, index, VersionClock::new(1), settings);
                    UnderDouble::Real(sim.block_on(opened).expect("opens"))
                }
                None => UnderDouble::Store(stores[tier as usize].clone()),
            };
            Double::new(tier, under, sim.rt(), stalls.clone())
        };
        let policy = Policy::from_json(&setup.policy).expect("a policy");
        let policy = VersionedPolicy { version: 1, policy: Arc::new(policy) };
        let stack = Stack {
            l0: double(Tier::L0),
            l1: setup.l1.then(|| double(Tier::L1)),
            l2: Some(double(Tier::L2)),
            l3: Some(double(Tier::L3)),
        };
        let context = Context {
            rt: sim.rt(),
            namespaces: Rc::new(Namespaces::new(Registry::new(), policy)),
            versions: VersionClock::new(1),
            stats: ShardStats::new(),
            settings: setup.settings,
        };
        MultiTier::sabotaged(stack, context, setup.sabotage)
    }

    fn store(&self, tier: Tier) -> &Store {
        [&self.l0, &self.l1, &self.l2, &self.l3][tier as usize]
    }

    /// Which tiers hold the key, as letters: `"023"`.
    fn held(&self, path: &str) -> String {
        let held = |tier: &Tier| self.store(*tier).peek(&key(path)).is_some();
        Tier::ALL.iter().filter(|tier| held(tier)).map(|tier| tier.name()[1..].to_owned()).collect()
    }

    fn staged(&self) -> u64 {
        Tier::ALL.iter().map(|tier| self.store(*tier).staged_bytes()).sum()
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let value = self.sim.block_on(work);
        self.sim.run_until_idle();
        value
    }

    fn put(&self, path: &str, bytes: &Bytes) -> Result<Stored, CacheError> {
        self.run(write(&self.tier, path, bytes, Some(bytes.len() as u64), Precondition::None))
    }

    fn get(&self, path: &str) -> Result<Option<(Tier, Version, Bytes)>, CacheError> {
        self.run(read(&self.tier, path))
    }

    /// The tier that answers, having checked that it answers with `bytes`.
    fn got(&self, path: &str, bytes: &Bytes) -> Tier {
        let (tier, _, got) = self.get(path).expect("readable").expect("there");
        assert_eq!(&got, bytes);
        tier
    }

    /// Puts an object and removes it from the given tiers again.
    fn put_below(&self, path: &str, bytes: &Bytes, not_in: &[Tier]) -> Version {
        let stored = self.put(path, bytes).expect("stored");
        for tier in not_in {
            self.run(self.store(*tier).purge(&key(path), Precondition::None)).expect("purged");
        }
        stored.version
    }

    fn promotion_drops(&self, tier: Tier) -> Vec<(Reason, u64)> {
        self.tier.stats().tier(tier).promotion_drops.snapshot().iter().collect()
    }
}

/// Writes in chunks of 700 bytes.
async fn write(
    tier: &Under,
    path: &str,
    bytes: &Bytes,
    length: Option<u64>,
    precondition: Precondition,
) -> Result<Stored, CacheError> {
    let meta = CacheMeta { length, ..CacheMeta::default() };
    let mut miss = tier.get_miss_handler(&key(path), meta, precondition).await?;
    let mut rest = bytes.clone();
    while rest.len() > 700 {
        miss.write_body(rest.split_to(700), false).await?;
    }
    miss.write_body(rest, true).await?;
    miss.finish().await
}

/// Reads whole: the tier, the version and the body.
async fn read(tier: &Under, path: &str) -> Result<Option<(Tier, Version, Bytes)>, CacheError> {
    let Some((meta, mut hit)) = tier.lookup(&key(path)).await? else { return Ok(None) };
    let (from, mut whole) = (hit.tier(), Vec::new());
    while let Some(chunk) = hit.read_body().await? {
        whole.extend_from_slice(&chunk);
    }
    Ok(Some((from, meta.version, whole.into())))
}

fn dropped(stored: &Stored, tier: Tier) -> Option<Reason> {
    match stored.tiers[tier as usize] {
        Some(TierOutcome::Dropped(reason)) => Some(reason),
        _ => None,
    }
}

/// Starts `work` as a task; its outcome is there once it is done.
fn start<T: 'static>(rt: &SimRt, work: impl Future<Output = T> + 'static) -> Rc<RefCell<Option<T>>> {
    let outcome = Rc::new(RefCell::new(None));
    let slot = outcome.clone();
    rt.spawn(async move {
        let value = work.await;
        *slot.borrow_mut() = Some(value);
    });
    outcome
}

fn now_ms(world: &World) -> u64 {
    world.sim.clock().wall_ms()
}
