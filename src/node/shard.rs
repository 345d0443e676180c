//! The life of one shard: open its tiers, serve, stop in order.
//!
//! The only code that knows a shard's concrete types. Runs on the shard's own thread, as its main future. A shard
//! that cannot open says so and ends; the node then stops the others.
//!
//! Stopping: accept no more and finish what is under way; wait until no shard has a connection left (others may still
//! need this one); let running commits end; close the log, which marks the stop as clean.

use std::{cell::OnceCell, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use engine::{
    clock::Clock,
    device::{DeviceError, file::FileDevice},
    log::{self, Log, OpenError, Opened, supersede::RingFile},
    mailbox::{Receiver, Reply},
    mesh::MeshEnd,
    net::Listener,
    rt::Rt,
    shard::{Rendezvous, ShardId, ShardRt, Signal},
    slab,
};
use futures_lite::future::or;

use super::command::{Command, ShardReport};
use crate::{
    cache::{Tier, Version},
    config::Config,
    human,
    namespace::{Namespaces, Registry},
    policy::{L2Fill, Policy, VersionedPolicy},
    server::{
        connection::{Connections, Limits},
        dispatch::Dispatch,
        inflight,
        listener::listen,
        service::{ObjectSettings, Objects},
    },
    stats::ShardStats,
    storage::{
        bridge::{self, Ask, Bridge},
        flash::{FlashTier, keep},
        multi_tier::{Context, MultiTier, Settings, Stack},
        ram::{EvictSink, Leaving, RamTier},
    },
    version::VersionClock,
};

/// How often some of L0's index is looked at for expired objects, as long as there are any ...
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// ... and when there are none: the pause is doubled up to this.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_millis(160);

type Clk = <ShardRt as Rt>::Clock;
type L0 = RamTier<Clk, Demote>;
type L2 = FlashTier<FileDevice, ShardRt>;
type ShardTiers = MultiTier<L0, Bridge, L2, Bridge, ShardRt>;

/// What a shard is started with.
pub(super) struct Seed {
    pub(super) config: Arc<Config>,
    /// Of the data directory: ties between versions, and the logs' header.
    pub(super) node_id: u64,
    /// The same, as it fits into a version.
    pub(super) version_node: u16,
    /// Of the data directory.
    pub(super) hash_seed: u64,
    /// The flash log, if L2 is on.
    pub(super) log: Option<LogSeed>,
    pub(super) registry: Arc<Registry>,
    pub(super) policy: VersionedPolicy,
    /// To and from the other shards.
    pub(super) mesh: MeshEnd<Ask>,
    /// What the admin door asks of this shard's keys.
    pub(super) asks: Receiver<Ask>,
    pub(super) commands: Receiver<Command>,
    /// To the durable executor.
    pub(super) durable: Bridge,
    /// The HTTP door, if it is open.
    pub(super) listener: Option<Listener>,
    /// Where to say that it is open, or why not.
    pub(super) opened: Reply<Result<Option<Opened>, ShardError>>,
    /// Raised when every shard is open.
    pub(super) go: Signal,
    /// Raised when a log is poisoned.
    pub(super) flash_lost: Signal,
    /// Reached when this shard has no connection left.
    pub(super) drained: Rendezvous,
}

/// Where a shard's log is.
#[derive(Clone, Debug)]
pub(super) struct LogSeed {
    /// The log file.
    pub(super) file: PathBuf,
    /// The superseding ring's file.
    pub(super) ring: PathBuf,
    /// Bytes of the file if it has to be made.
    pub(super) bytes: u64,
    /// This boot of the machine.
    pub(super) boot: [u8; 16],
    /// This run of the node, and the one before.
    pub(super) run: log::Run,
}

/// Why a shard could not open.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The arena.
    #[error("L0: the system refuses {bytes} bytes of memory; lower memory_max")]
    Memory {
        /// How much was asked for.
        bytes: u64,
        /// What the system or the part below said.
        #[source]
        source: std::io::Error,
    },
    /// The log's device.
    #[error("L2: {}", .file.display())]
    Device {
        /// The log file.
        file: PathBuf,
        /// What the system or the part below said.
        #[source]
        source: DeviceError,
    },
    /// The log.
    #[error("L2: the flash log cannot be opened, and was left as it is")]
    Log(#[from] OpenError),
    /// The superseding ring.
    #[error("L2: the superseding ring cannot be opened")]
    Ring(#[source] std::io::Error),
}

/// Hands what leaves L0 to `MultiTier`, which is made after L0.
#[derive(Clone, Default)]
struct Demote(Rc<OnceCell<Rc<ShardTiers>>>);

impl EvictSink for Demote {
    fn leaving(&self, object: Leaving<'_>) {
        let Some(tiers) = self.0.get() else { return };
        let namespace = object.path.split(|byte| *byte == b'/').next().and_then(|name| str::from_utf8(name).ok());
        let space = tiers.namespaces().for_read(namespace.unwrap_or_default());
        space.counters.evicted();
        // Most objects are on flash or in L3 already, and not worth the copy.
        if space.with(|rules| rules.l2_fill(object.body.len() as u64) != L2Fill::OnEvict) {
            return;
        }
        if let Some((key, meta, body)) = object.copied() {
            tiers.evicted_from_l0(key, meta, body);
        }
    }
}

/// What a running shard consists of.
struct Shard {
    rt: ShardRt,
    config: Arc<Config>,
    namespaces: Rc<Namespaces>,
    l0: L0,
    l2: Option<L2>,
    flash_lost: Signal,
    tiers: Rc<ShardTiers>,
}

/// A shard's main: opens, serves until the stop signal, ends in order.
pub(super) async fn run(rt: ShardRt, id: ShardId, seed: Seed) {
    let Seed { mesh, asks, commands, listener, opened, go, drained, hash_seed, .. } = seed;
    let opening = Opening {
        config: seed.config,
        node_id: seed.node_id,
        version_node: seed.version_node,
        hash_seed,
        log: seed.log,
        registry: seed.registry,
        policy: seed.policy,
        durable: seed.durable,
        flash_lost: seed.flash_lost,
    };
    let shard = match opening.open(&rt, id).await {
        Ok((shard, log)) => {
            drop(opened.send(Ok(log)));
            shard
        }
        Err(error) => {
            // The others, on their way out, must not wait for this one.
            drained.arrive();
            drop(opened.send(Err(error)));
            return;
        }
    };
    shard.serve(id, hash_seed, Doors { mesh, asks, commands, listener, go, drained }).await;
}

struct Opening {
    config: Arc<Config>,
    node_id: u64,
    version_node: u16,
    hash_seed: u64,
    log: Option<LogSeed>,
    registry: Arc<Registry>,
    policy: VersionedPolicy,
    durable: Bridge,
    flash_lost: Signal,
}

impl Opening {
    async fn open(self, rt: &ShardRt, id: ShardId) -> Result<(Shard, Option<Opened>), ShardError> {
        let versions = VersionClock::new(self.version_node);
        let namespaces = Rc::new(Namespaces::new(self.registry.clone(), self.policy.clone()));
        let l0_bytes = self.config.memory.l0_bytes_per_shard;
        let sink = Demote::default();
        let slab = slab::Config::within(l0_bytes);
        let l0 = RamTier::new(slab, *rt.clock(), versions.clone(), sink.clone())
            .map_err(|source| ShardError::Memory { bytes: l0_bytes, source })?;
        let (log, opened) = match &self.log {
            None => (None, None),
            Some(seed) => {
                let (log, opened) = self.open_log(rt, id, seed).await?;
                versions.observe(Version(opened.version_max));
                (Some(log), Some(opened))
            }
        };
        let l2 = log.map(|log| FlashTier::new(log, rt.clone(), versions.clone(), namespaces.clone()));
        let settings = bounds(&self.config);
        let stack = Stack { l0: l0.clone(), l1: None, l2: l2.clone(), l3: Some(self.durable) };
        let context =
            Context { rt: rt.clone(), namespaces: namespaces.clone(), versions, stats: ShardStats::new(), settings };
        let tiers = Rc::new(MultiTier::new(stack, context));
        drop(sink.0.set(tiers.clone()));
        let flash_lost = self.flash_lost;
        Ok((Shard { rt: rt.clone(), config: self.config, namespaces, l0, l2, flash_lost, tiers }, opened))
    }

    async fn open_log(
        &self,
        rt: &ShardRt,
        id: ShardId,
        seed: &LogSeed,
    ) -> Result<(Log<FileDevice, ShardRt>, Opened), ShardError> {
        let device = FileDevice::open(&seed.file, seed.bytes)
            .await
            .map_err(|source| ShardError::Device { file: seed.file.clone(), source })?;
        let l2 = &self.config.l2;
        let config = log::Config {
            node: self.node_id,
            shard: u32::from(id.0),
            shards: u32::try_from(self.config.shards).unwrap_or(u32::MAX),
            segment_bytes: (l2.segment_bytes > 0).then(|| u32::try_from(l2.segment_bytes).unwrap_or(u32::MAX)),
            object_bytes_mean: u32::try_from(l2.object_bytes_mean).unwrap_or(u32::MAX),
            flush_interval: l2.flush_interval,
            buffer_bytes_max: usize::try_from(l2.write_buffer_bytes).unwrap_or(usize::MAX),
            run: seed.run,
            ..log::Config::new(self.hash_seed, seed.boot)
        };
        let ring = RingFile::open(&seed.ring, log::supersede::RING_SLOTS).map_err(ShardError::Ring)?;
        Ok(Log::open(Rc::new(device), rt.clone(), ring, config, keep).await?)
    }
}

/// The shard's part of what may be in flight, but for the bodies its door streams.
fn bounds(config: &Config) -> Settings {
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let lanes = config.memory.lanes_per_shard();
    Settings {
        fanout_lag_max: bytes(config.limits.fanout_lag_max.min(lanes)),
        // What waits behind a read is as good as what waits behind a write.
        promote_lag_max: bytes(config.limits.fanout_lag_max.min(lanes)),
        lane_bytes_max: bytes(lanes),
        // As a body that a door streams from L3: the same pieces and a window.
        refill_bytes: bytes(inflight::STREAM_BYTES.saturating_add(config.limits.body_window_bytes)),
        demote_bytes_max: bytes(config.memory.demotions_per_shard()),
        ..Settings::default()
    }
}

/// Where the policy admits larger bodies to L0 than its slab takes: those go to the tiers below.
pub(super) fn gates_above_ram(config: &Config, policy: &Policy) -> Option<String> {
    let body_max = slab::Config::within(config.memory.l0_bytes_per_shard).body_bytes_max;
    // No gate at all means: what fits.
    let gate = policy.undeclared().gates[Tier::L0 as usize].filter(|gate| *gate > body_max)?;
    Some(format!(
        "policy.l0_max is {}, but L0 takes bodies of at most {}, an eighth of a shard's arena; larger ones are \
             kept below L0: raise memory_max, lower shards, or lower policy.l0_max",
        human::bytes(gate),
        human::bytes(body_max)
    ))
}

struct Doors {
    mesh: MeshEnd<Ask>,
    asks: Receiver<Ask>,
    commands: Receiver<Command>,
    listener: Option<Listener>,
    go: Signal,
    drained: Rendezvous,
}

impl Shard {
    async fn serve(self, id: ShardId, hash_seed: u64, doors: Doors) {
        let Doors { mesh, asks, commands, listener, go, drained } = doors;
        let rt = self.rt.clone();
        let stop = rt.stop_signal().clone();
        for inbox in [mesh.inbox, asks] {
            rt.spawn(bridge::serve_until(rt.clone(), self.tiers.clone(), inbox, drained.complete().raised()));
        }
        let window = usize::try_from(self.config.limits.body_window_bytes).unwrap_or(usize::MAX);
        let remote = |link| Bridge::new(link).with_window(window);
        let remotes = mesh.links.into_senders().into_iter().map(|link| link.map(remote)).collect();
        let dispatch = Dispatch::new(id.index(), self.tiers.clone(), remotes);
        let settings = ObjectSettings {
            hash_seed,
            body_bytes_max: self.config.limits.body_bytes_max,
            inflight_bytes: self.config.memory.bodies_per_shard(),
            body_window_bytes: self.config.limits.body_window_bytes,
        };
        let objects = Rc::new(Objects::new(dispatch, self.namespaces.clone(), *rt.clock(), settings));
        let limits = Limits {
            connections_max: usize::try_from(self.config.limits.connections_max_per_shard).unwrap_or(usize::MAX),
            ..Limits::default()
        };
        let connections = Connections::new(rt.clone(), limits, objects.stats().clone(), objects.inflight().clone());
        let shard = Rc::new(self);
        rt.spawn(shard.clone().obey(commands, objects.clone(), connections.clone()));
        rt.spawn(shard.clone().sweep());

        let wait = or(
            async {
                go.raised().await;
                true
            },
            async {
                stop.raised().await;
                false
            },
        );
        if let (true, Some(listener)) = (wait.await, listener) {
            rt.spawn(listen(listener, connections.clone(), objects.clone()));
        }
        stop.raised().await;
        let late = connections.stop(shard.config.limits.stop_grace).await;
        if late > 0 {
            tracing::warn!(shard = %id, connections = late, "requests did not end within limits.stop_grace and were cut");
        }
        drained.arrive();
        drained.complete().raised().await;
        shard.tiers.close().await;
        if let Some(l2) = &shard.l2
            && let Err(error) = l2.close().await
        {
            tracing::error!(shard = %id, %error, "the flash log was not closed cleanly: the next start takes it as a kill");
        }
    }

    /// Answers the node's commands until the node is gone or stops.
    async fn obey<S, C: Clock>(
        self: Rc<Self>,
        mut commands: Receiver<Command>,
        objects: Rc<Objects<S, C>>,
        connections: Connections<ShardRt>,
    ) where
        S: crate::cache::Storage,
        S::Hit: 'static,
    {
        let stop = self.rt.stop_signal().clone();
        loop {
            let command = or(commands.recv(), async {
                stop.raised().await;
                None
            });
            match command.await {
                None => return,
                Some(Command::Policy(policy, done)) => {
                    self.namespaces.set_policy(policy);
                    drop(done.send(()));
                }
                Some(Command::Purged(namespace)) => self.namespaces.for_read(&namespace).counters.purged(),
                Some(Command::Report(reply)) => {
                    let report = ShardReport {
                        tiers: self.tiers.stats().snapshot(),
                        namespaces: self.namespaces.snapshot(),
                        door: objects.stats().snapshot(),
                        connections: connections.open() as u64,
                        requests_in_flight: connections.busy() as u64,
                        inflight_bytes: objects.inflight().used(),
                        slab: self.l0.stats(),
                        slab_held: self.l0.held(),
                        log: self.l2.as_ref().map(FlashTier::stats),
                        log_poisoned: self.l2.as_ref().and_then(FlashTier::poisoned).map(|why| why.to_string()),
                        task_panics: self.rt.task_panics(),
                    };
                    drop(reply.send(Box::new(report)));
                }
            }
        }
    }

    /// Gives the room of expired objects back, a bounded step at a time.
    async fn sweep(self: Rc<Self>) {
        let stop = self.rt.stop_signal().clone();
        let mut pause = SWEEP_INTERVAL;
        while !stop.is_raised() {
            pause = if self.l0.sweep() > 0 { SWEEP_INTERVAL } else { (pause * 2).min(SWEEP_INTERVAL_MAX) };
            if self.l2.as_ref().is_some_and(|l2| l2.poisoned().is_some()) {
                self.flash_lost.raise();
            }
            or(self.rt.sleep(pause), stop.raised()).await;
        }
    }
}
