//! All tiers behind one key as a storage, in both modes of a namespace: as a shard runs them, on one, over real files
//! and the embedded L3; and over simulated flash and stores, under any schedule.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use engine::{
    device::{
        Device,
        file::FileDevice,
        sim::{Faults, Medium},
    },
    log::supersede::{NoteStore, RING_SLOTS, RingFile, RingMemory},
    mailbox::mailbox,
    rt::{
        Rt,
        sim::{Sim, SimRt},
    },
    slab,
};
use strata::{
    cache::Tier,
    policy::L2Fill,
    stats::ShardStats,
    storage::{
        bridge::{Ask, Bridge, serve},
        durable::{DurableSettings, DurableTier, executor::DurableExecutor},
        flash::FlashTier,
        memory::{InMemoryBlobStore, InMemoryIndexStore, MemoryStore},
        multi_tier::{Context, MultiTier, Settings, Stack},
        ram::{EvictSink, Leaving, RamTier},
    },
    version::VersionClock,
};
use tempfile::TempDir;

use crate::{
    embedded,
    flash::{LOG_BYTES, MODES, SMALL_LOG_BYTES, fresh, namespaces},
    storage::{Caps, Versions, pressed, suite},
    support::{Timed, disk, on_shard},
};

/// Little, so that objects leave RAM.
const RAM_BYTES: u64 = 256 << 10;

type L0<R> = RamTier<<R as Rt>::Clock, Demote>;
type L1<R> = MemoryStore<<R as Rt>::Clock>;
type Tiers<D, R> = MultiTier<L0<R>, L1<R>, FlashTier<D, R>, Bridge, R>;

/// As the shard does it: what leaves L0 is offered to `MultiTier`, which is made after it.
#[derive(Clone, Default)]
struct Demote(Rc<RefCell<Option<Box<Leave>>>>);

type Leave = dyn Fn(Leaving<'_>);

impl EvictSink for Demote {
    fn leaving(&self, object: Leaving<'_>) {
        if let Some(demote) = &*self.0.borrow() {
            demote(object);
        }
    }
}

/// The tiers of a shard, and what has to be ended with them.
struct Shard<D: Device, R: Rt> {
    tiers: Tiers<D, R>,
    l2: FlashTier<D, R>,
    sink: Demote,
}

impl<D: Device, R: Rt> Shard<D, R> {
    async fn open(
        rt: &R,
        device: D,
        notes: impl NoteStore,
        (l1, l3): (Option<L1<R>>, Option<Bridge>),
        mode: &str,
    ) -> Self {
        let (versions, namespaces, sink) = (VersionClock::new(1), namespaces(mode), Demote::default());
        let slab = slab::Config::new(RAM_BYTES);
        let l0 = RamTier::new(slab, rt.clock().clone(), versions.clone(), sink.clone()).expect("memory");
        let l2 = fresh(device, rt, notes, &versions, &namespaces).await;
        let stack = Stack { l0, l1, l2: Some(l2.clone()), l3 };
        let settings = Settings::default();
        let context = Context { rt: rt.clone(), namespaces, versions, stats: ShardStats::new(), settings };
        let tiers = MultiTier::new(stack, context);
        let above = tiers.clone();
        sink.0.replace(Some(Box::new(move |object| {
            let Some((key, meta, body)) = object.copied() else { return };
            let rules = above.namespaces().for_read(key.namespace());
            if rules.with(|rules| rules.l2_fill(body.len() as u64) == L2Fill::OnEvict) {
                above.evicted_from_l0(key, meta, body);
            }
        })));
        Self { tiers, l2, sink }
    }

    async fn close(&self) {
        self.tiers.close().await;
        self.l2.close().await.expect("closes");
        self.sink.0.take();
    }
}

fn caps(mode: &str) -> Caps {
    match mode {
        "durable" => Caps { answers: &Tier::ALL, versions: Versions::Own, copies: true, ..Caps::durable() },
        _ => Caps {
            acknowledges: &[Tier::L0, Tier::L2],
            answers: &[Tier::L0, Tier::L2],
            versions: Versions::Own,
            counts_expired: true,
            ..Caps::ram()
        },
    }
}

/// Hits of the suite, per tier: that it did not go past one of them.
fn add_hits<D: Device, R: Rt>(hits: &Cell<[u64; 4]>, tiers: &Tiers<D, R>) {
    let more = Tier::ALL.map(|tier| tiers.stats().tier(tier).hits.get());
    hits.set(std::array::from_fn(|i| hits.get()[i] + more[i]));
}

#[test]
fn the_tiers_of_a_shard_are_a_storage() {
    on_shard(async |rt| {
        let rt = Timed::over(rt);
        for mode in MODES {
            let hits = Cell::default();
            let last: RefCell<Option<(Shard<_, _>, Option<DurableExecutor>, TempDir)>> = RefCell::default();
            let end = async || {
                let Some((shard, executor, _dir)) = last.take() else { return };
                add_hits(&hits, &shard.tiers);
                shard.close().await;
                drop(shard);
                if let Some(executor) = executor {
                    executor.stop();
                }
            };
            let make = async |log_bytes| {
                end().await;
                let dir = disk();
                let device = FileDevice::open(&dir.path().join("log"), log_bytes).await.expect("opens");
                let ring = RingFile::open(&dir.path().join("ring"), RING_SLOTS).expect("opens");
                let (executor, l3) = match mode {
                    "durable" => Some(embedded::start(dir.path(), rt.clock())).unzip(),
                    _ => (None, None),
                };
                let shard = Shard::open(&rt, device, ring, (None, l3), mode).await;
                let tiers = shard.tiers.clone();
                last.replace(Some((shard, executor, dir)));
                tiers
            };
            suite(async || make(LOG_BYTES).await, rt.clock(), caps(mode)).await;
            let keeps = mode == "durable";
            pressed(async || make(SMALL_LOG_BYTES).await, rt.clock(), Caps { keeps, ..caps(mode) }).await;
            end().await;
            let used = hits.get().map(|hits| hits > 0);
            assert_eq!(used, [true, false, true, mode == "durable"], "{mode}: {hits:?}");
        }
    });
}

#[test]
fn the_tiers_of_a_shard_are_a_storage_under_any_schedule() {
    let faults = Faults { latency: (Duration::from_micros(50), Duration::from_millis(3)), ..Faults::default() };
    for (seed, mode) in [0, 1, 2].into_iter().flat_map(|seed| MODES.map(|mode| (seed, mode))) {
        let sim = Sim::new(seed);
        let rt = Timed::over(sim.rt());
        let (hits, last) = (Cell::default(), RefCell::<Option<Shard<_, _>>>::default());
        let end = async || {
            if let Some(shard) = last.take() {
                add_hits(&hits, &shard.tiers);
                shard.close().await;
            }
        };
        let make = async |log_bytes| {
            end().await;
            let (l1, l3) = match mode {
                "durable" => (Some(network(&rt)), Some(models(&rt, &sim).await)),
                _ => (None, None),
            };
            let device = Medium::new(log_bytes, seed).open(rt.clone(), faults);
            let shard = Shard::open(&rt, device, RingMemory::new(64), (l1, l3), mode).await;
            let tiers = shard.tiers.clone();
            last.replace(Some(shard));
            tiers
        };
        sim.block_on(async {
            suite(async || make(LOG_BYTES).await, rt.clock(), caps(mode)).await;
            let keeps = mode == "durable";
            pressed(async || make(SMALL_LOG_BYTES).await, rt.clock(), Caps { keeps, ..caps(mode) }).await;
            end().await;
        });
        let used = hits.get().map(|hits| hits > 0);
        assert_eq!(used, [true, mode == "durable", true, mode == "durable"], "{mode}: {hits:?}");
    }
}

/// The double of a shared network cache.
fn network<R: Rt>(rt: &R) -> L1<R> {
    MemoryStore::new(Tier::L1, 64 << 20, rt.clock().clone(), VersionClock::new(2))
}

/// The durable tier over the models of its stores, behind the bridge.
async fn models(rt: &Timed<SimRt>, sim: &Sim) -> Bridge {
    let (blobs, index) = (InMemoryBlobStore::new(sim.rt()), InMemoryIndexStore::new(sim.rt()));
    blobs.set_latency(Some(Duration::ZERO..Duration::from_millis(3)));
    index.set_latency(Some(Duration::ZERO..Duration::from_millis(3)));
    let settings = DurableSettings::default();
    let tier = DurableTier::open(rt.clone(), blobs, index, VersionClock::new(1), settings).await.expect("opens");
    let asks = mailbox::<Ask>(64);
    let bridge = Bridge::new(asks.sender(64).expect("all of them"));
    rt.spawn(serve(rt.clone(), Rc::new(tier), asks));
    bridge
}
