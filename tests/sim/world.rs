//! One simulated node: production tiers over simulated flash, stores, clock and scheduler, and what outlives it.

use std::{cell::OnceCell, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use engine::{
    device::sim::{Faults, Medium, SimDevice},
    log::{self, Log, Opened, supersede::RingMemory},
    mailbox::mailbox,
    rt::{
        Rt,
        sim::{Sim, SimClock, SimRt},
    },
    slab,
};
use serde_json::Value;
use strata::{
    cache::{CacheKey, Version},
    namespace::{Namespaces, Registry},
    policy::{L2Fill, Policy, VersionedPolicy},
    stats::ShardStats,
    storage::{
        bridge::{Ask, Bridge, serve},
        durable::{DurableSettings, DurableTier},
        flash::{FlashTier, keep},
        memory::{InMemoryBlobStore, InMemoryIndexStore},
        multi_tier::{Context, MultiTier, Sabotage, Settings, Stack},
        ram::{EvictSink, Leaving, RamTier},
    },
    version::VersionClock,
};

/// The log of the simulated shard: small, so that it laps.
const LOG_BYTES: u64 = (16 << 10) + 10 * (64 << 10);
const SEGMENT_BYTES: u32 = 64 << 10;
const RING_SLOTS: usize = 8;
const ARENA_BYTES: u64 = 256 << 10;
const ASKS: usize = 64;

type L0 = RamTier<SimClock, Demote>;
type L2 = FlashTier<SimDevice<SimRt>, SimRt>;
pub(crate) type Tiers = MultiTier<L0, Bridge, L2, Bridge, SimRt>;

/// What a run plants to see that it is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planted {
    pub(crate) tiers: Sabotage,
    pub(crate) log: log::Sabotage,
}

/// As the shard does it: what leaves L0 goes to `MultiTier`, which is made after it.
#[derive(Clone, Default)]
pub(crate) struct Demote(Rc<OnceCell<Tiers>>);

impl EvictSink for Demote {
    fn leaving(&self, object: Leaving<'_>) {
        let (Some(tiers), Some((key, meta, body))) = (self.0.get(), object.copied()) else { return };
        let rules = tiers.namespaces().for_read(key.namespace());
        if rules.with(|rules| rules.l2_fill(body.len() as u64) == L2Fill::OnEvict) {
            tiers.evicted_from_l0(key, meta, body);
        }
    }
}

/// A running process.
pub(crate) struct Node {
    pub(crate) tiers: Tiers,
    pub(crate) l0: L0,
    pub(crate) l2: L2,
    pub(crate) opened: Opened,
    device: Rc<SimDevice<SimRt>>,
}

/// What outlives processes, and the process of now.
pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) medium: Medium,
    pub(crate) faults: Faults,
    pub(crate) blobs: InMemoryBlobStore<SimRt>,
    pub(crate) index: InMemoryIndexStore<SimRt>,
    pub(crate) policy: Value,
    ring: RingMemory,
    /// Flash of other `l2_paths`, as an earlier run left it.
    other: (Medium, RingMemory),
    boot: u8,
    /// Starts so far, and the last one that served.
    starts: u64,
    served: u64,
    planted: Planted,
    node: Option<Node>,
}

pub(crate) fn key(path: &str) -> CacheKey {
    CacheKey::from_path(Bytes::copy_from_slice(path.as_bytes()), 0).expect("a valid key")
}

impl World {
    pub(crate) fn new(seed: u64, policy: Value, planted: Planted) -> Self {
        let sim = Sim::new(seed);
        Self {
            medium: Medium::new(LOG_BYTES, seed ^ 0xf1a5),
            faults: Faults { latency: (Duration::from_micros(50), Duration::from_millis(3)), ..Faults::default() },
            blobs: InMemoryBlobStore::new(sim.rt()),
            index: InMemoryIndexStore::new(sim.rt()),
            policy,
            ring: RingMemory::new(RING_SLOTS),
            other: (Medium::new(LOG_BYTES, seed ^ 0x07e4), RingMemory::new(RING_SLOTS)),
            boot: 1,
            starts: 0,
            served: 0,
            planted,
            node: None,
            sim,
        }
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().expect("it was started")
    }

    /// What goes wrong with flash from now on.
    pub(crate) fn set_device_faults(&self, faults: Faults) {
        self.node().device.set_faults(faults);
    }

    /// Starts a process on what is there. `None`: it was killed while it recovered, after `steps`.
    pub(crate) fn start(&mut self, steps: u64) -> Option<()> {
        let started: Rc<OnceCell<Node>> = Rc::default();
        self.starts += 1;
        let (opening, slot) = (self.opening(), started.clone());
        let rt = self.sim.rt();
        let own = rt.clone();
        rt.spawn(async move {
            drop(slot.set(opening.open(own).await));
        });
        for _ in 0..steps {
            if started.get().is_some() {
                break;
            }
            assert!(self.sim.step(), "seed {}: recovery hangs", self.sim.seed());
        }
        self.node = Some(Rc::into_inner(started)?.into_inner()?);
        self.served = self.starts;
        Some(())
    }

    fn opening(&self) -> Opening {
        Opening {
            device: Rc::new(self.medium.open(self.sim.rt(), self.faults)),
            clock: self.sim.clock().clone(),
            blobs: self.blobs.clone(),
            index: self.index.clone(),
            policy: self.policy.clone(),
            ring: self.ring.clone(),
            boot: [self.boot; 16],
            run: log::Run { id: self.starts, before: self.served },
            planted: self.planted,
        }
    }

    /// The process dies where it stands. The page cache, and with it the ring, lives on.
    pub(crate) fn kill(&mut self) {
        self.end();
        self.medium.kill();
    }

    /// The power goes: what was not synced may be lost, the ring with it.
    pub(crate) fn power_cut(&mut self, torn_pages: bool) {
        self.end();
        self.medium.power_cut(torn_pages);
        self.other.0.power_cut(torn_pages);
        self.ring.lose();
        self.other.1.lose();
        self.boot += 1;
    }

    /// The next run has the flash of other folders: what is on this one misses what happens in it.
    pub(crate) fn change_flash(&mut self) {
        std::mem::swap(&mut self.medium, &mut self.other.0);
        std::mem::swap(&mut self.ring, &mut self.other.1);
    }

    fn end(&mut self) {
        self.node = None;
        self.sim.crash();
        let seed = self.sim.rt().random();
        self.blobs.crash(seed);
        self.index.crash(seed);
        // No process is back before the clock has moved on.
        self.sim.clock().advance(Duration::from_millis(100));
    }

    /// SIGTERM, in the shard's order, and the end of the process.
    pub(crate) fn stop(&mut self) {
        let node = self.node.take().expect("it was started");
        self.sim.block_on(async move {
            node.tiers.close().await;
            drop(node.l2.close().await);
        });
        self.end();
    }
}

struct Opening {
    device: Rc<SimDevice<SimRt>>,
    clock: SimClock,
    blobs: InMemoryBlobStore<SimRt>,
    index: InMemoryIndexStore<SimRt>,
    policy: Value,
    ring: RingMemory,
    boot: [u8; 16],
    run: log::Run,
    planted: Planted,
}

impl Opening {
    async fn open(self, rt: SimRt) -> Node {
        let versions = VersionClock::new(1);
        let policy = Arc::new(Policy::from_json(&self.policy).expect("a valid policy"));
        let policy = VersionedPolicy { version: 1, policy };
        let namespaces = Rc::new(Namespaces::new(Registry::new(), policy));
        let config = log::Config {
            segment_bytes: Some(SEGMENT_BYTES),
            flush_interval: Duration::from_millis(20),
            buffer_bytes_max: 256 << 10,
            object_bytes_mean: 1 << 10,
            sabotage: self.planted.log,
            run: self.run,
            ..log::Config::new(0, self.boot)
        };
        let (log, opened) =
            Log::open(self.device.clone(), rt.clone(), self.ring, config, keep).await.expect("the log opens");
        versions.observe(Version(opened.version_max));
        let sink = Demote::default();
        let slab = slab::Config::new(ARENA_BYTES);
        let l0 = RamTier::new(slab, self.clock, versions.clone(), sink.clone()).expect("memory");
        let l2 = FlashTier::new(log, rt.clone(), versions.clone(), namespaces.clone());
        // The durable executor, on the same scheduler: the bridge is the production one.
        let settings = DurableSettings {
            inline_bytes_max: 8 << 10,
            blob_grace: Duration::from_millis(200),
            lap_pause: Duration::from_secs(1),
            ..DurableSettings::default()
        };
        let durable = DurableTier::open(rt.clone(), self.blobs, self.index, VersionClock::new(1), settings).await;
        let durable = durable.expect("the stores answer");
        durable.start_sweep();
        let asks = mailbox::<Ask>(ASKS);
        let bridge = Bridge::new(asks.sender(ASKS).expect("all of them"));
        rt.spawn(serve(rt.clone(), Rc::new(durable), asks));
        let settings = Settings {
            fanout_lag_max: 64 << 10,
            promote_lag_max: 32 << 10,
            lane_bytes_max: 256 << 10,
            refill_bytes: 64 << 10,
            demote_bytes_max: 64 << 10,
            in_doubt_max: 64,
            publish_wait: Duration::from_millis(200),
            stage_wait: Duration::from_millis(50),
            ..Settings::default()
        };
        let stack = Stack { l0: l0.clone(), l1: None, l2: Some(l2.clone()), l3: Some(bridge) };
        let context = Context { rt, namespaces, versions, stats: ShardStats::new(), settings };
        let tiers = MultiTier::sabotaged(stack, context, self.planted.tiers);
        drop(sink.0.set(tiers.clone()));
        Node { tiers, l0, l2, opened, device: self.device }
    }
}
