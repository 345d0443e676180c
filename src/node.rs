//! The node: which concrete parts there are, and the order they start and stop in.
//!
//! Starting: lock the data directory, read what it says of itself and the heads of the flash logs, bind the doors (a
//! port in use is told before anything is written), open L3 on the durable executor, open every shard, record the run,
//! then accept. Stopping: say so at `/readyz`, accept no more, finish what is
//! under way, close the shards' logs, then L3, then the admin door, and let go of the directory. A step that fails
//! ends the node with its reason; whatever was started before it is stopped in the same order.
//!
//! A shard that panics or stalls ends the process at once: nothing that was acknowledged is lost (INV-3), and a
//! supervisor restarts it.

mod banner;
mod command;
mod control;
mod logs;
mod shard;
mod shortage;
mod view;

use std::{
    io,
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use admin::{AdminError, AdminServer, Running};
use engine::{
    clock::{Clock, MachineClock},
    log::{Opened, Run},
    mailbox::{Answer, mailbox, oneshot},
    mesh::mesh,
    net::{BindError, Listener, Port, listen},
    shard::{Failure, LaunchError, Options, Rendezvous, ShardId, ShardRt, Shards, Signal, Supervisor, launch},
};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    command::COMMANDS_MAX,
    control::NodeControl,
    logs::Logs,
    shard::{LogSeed, Seed},
};
pub use self::{logs::LogsError, shard::ShardError};
use crate::{
    config::Config,
    datadir::{DataDir, DataDirError, PolicyFile},
    namespace::Registry,
    policy::{Mode, Policy, VersionedPolicy},
    storage::{
        bridge::Bridge,
        durable::{
            DurableSettings,
            executor::{DurableConfig, DurableExecutor, StartError},
        },
    },
};

/// Requests in flight from one shard to another, each way.
const MESH_CREDITS: usize = 1024;

/// Keys the admin door may be purging on one shard.
const ADMIN_CREDITS: usize = 64;

/// How often the node looks whether something is wrong.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Room for what a start writes beside logs and index: policy and identity.
const START_BYTES: u64 = 1 << 20;

/// A process that lost a shard ends with this code.
const SHARD_LOST: i32 = 70;

/// Why a node did not start, or did not stop well.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The HTTP door.
    #[error("http_listen")]
    Http(#[source] BindError),
    /// The admin door.
    #[error("admin_listen")]
    Admin(#[source] AdminError),
    /// L3.
    #[error("L3 cannot be opened")]
    Durable(#[from] StartError),
    /// The policy makes a cache of a namespace that is durable.
    #[error(
        "policy.namespaces.{namespace}.mode: L3 holds objects of `{namespace}`, or tombstones of deleted ones, so that it \
         is durable and stays it: declare another namespace as cache_only"
    )]
    Mode {
        /// The namespace.
        namespace: Box<str>,
    },
    /// The threads.
    #[error("the shards cannot be started")]
    Launch(#[from] LaunchError),
    /// A shard.
    #[error("shard {shard} cannot open")]
    Shard {
        /// Which.
        shard: usize,
        /// What the system or the part below said.
        #[source]
        source: ShardError,
    },
    /// A shard ended while it opened.
    #[error("shard {0} ended while it opened; the log above has the cause")]
    ShardEnded(usize),
    /// L2's files.
    #[error(transparent)]
    Logs(#[from] LogsError),
    /// The process's signals, or its runtime.
    #[error("the system refuses {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system or the part below said.
        #[source]
        source: io::Error,
    },
}

/// Runs a node until SIGTERM or SIGINT; a second signal ends it at once. Blocks the thread.
///
/// # Errors
/// It could not start, and what it had started was stopped again.
pub fn run(config: Config) -> Result<(), NodeError> {
    let config = Arc::new(config);
    let clock = MachineClock::start();
    let mut dir =
        DataDir::open(&config.data_dir, (config.shards, config.l2.bytes), clock.wall_ms(), &mut || fastrand::u64(..))?;
    let (policy_file, policy, note) = PolicyFile::open(&dir, config.policy.clone(), config.l2.bytes > 0)?;
    // Not 0: that is what a directory says that has not served yet.
    let run = Run { id: fastrand::u64(1..), before: dir.identity().run };
    if config.l2.bytes > 0 {
        dir.claim(&config.l2.paths)?;
    }
    let logs = Logs::inspect(&config, dir.identity(), run)?;
    let shards = usize::try_from(config.shards).unwrap_or(usize::MAX);
    let (mut port, listeners) = bind_http(&config, shards)?;
    let admin = config.doors.admin.map(AdminServer::bind).transpose().map_err(NodeError::Admin)?;

    let (durable, bridges) = DurableExecutor::start(durable_config(&config, &dir), clock)?;
    check_caches(&policy.policy, &durable)?;
    durable.make_room(START_BYTES);
    if let Some(note) = note {
        tracing::warn!("{note}");
    }
    if let Some(warning) = shard::gates_above_ram(&config, &policy.policy) {
        tracing::warn!("{warning}");
    }
    let logs = logs.prepare()?;
    let window = usize::try_from(config.limits.body_window_bytes).unwrap_or(usize::MAX);
    let bridges = bridges.into_iter().map(|bridge| bridge.with_window(window)).collect();
    let node = Parts { config: &config, clock, dir: &dir, policy: &policy, durable: &durable };
    let (running, opened) = node.start_shards(logs, listeners, bridges)?;
    let control = Arc::new(node.control(&running, policy_file.clone(), policy.clone()));
    // From here on a log that is not open misses what is written and removed.
    dir.record_run(config.shards, config.l2.bytes, run.id)?;
    policy_file.begin(&policy)?;
    let admin = match admin {
        None => None,
        Some(server) => Some(server.serve(control.clone()).map_err(NodeError::Admin)?),
    };
    running.go.raise();
    if let Some(port) = &mut port {
        port.open().map_err(|source| NodeError::System { what: "a thread for accepting", source })?;
    }
    if let Some(addr) = config.doors.memcached {
        tracing::info!(%addr, "memcached_listen: the memcached door is not available yet; its port stays closed");
    }
    banner::print(&config, port.as_ref().map(Port::local_addr), admin.as_ref().map(Running::local_addr), &opened);

    let waited = wait(&control, &running.flash_lost, || {
        // What is overwritten and removed from now on the log cannot note, and a device that fails may forget that it
        // said so: it is as if it had been left out of a run.
        durable.make_room(START_BYTES);
        if let Err(error) = dir.record_run(config.shards, config.l2.bytes, fastrand::u64(1..)) {
            tracing::error!(%error, "a flash log has failed, and that cannot be recorded: remove it before the next start");
        }
    });
    control.stopping.store(true, Ordering::SeqCst);
    tracing::info!("stopping: requests under way are finished");
    stop(port, running, durable, admin);
    waited
}

fn bind_http(config: &Config, shards: usize) -> Result<(Option<Port>, Vec<Option<Listener>>), NodeError> {
    let Some(addr) = config.doors.http else { return Ok((None, (0..shards).map(|_| None).collect())) };
    let (port, listeners) = listen(addr, shards).map_err(NodeError::Http)?;
    Ok((Some(port), listeners.into_iter().map(Some).collect()))
}

fn durable_config(config: &Config, dir: &DataDir) -> DurableConfig {
    let l3 = &config.l3;
    DurableConfig {
        dir: dir.path().join("l3"),
        bytes_max: l3.bytes_max,
        disk_reserve: l3.disk_reserve,
        index_cache_bytes: usize::try_from(l3.index_cache_bytes).unwrap_or(usize::MAX),
        node_id: dir.identity().version_node(),
        // Once it has served, it has an index.
        is_new: dir.identity().run == 0,
        clients: usize::try_from(config.shards).unwrap_or(usize::MAX),
        settings: DurableSettings {
            orphan_age: l3.orphan_age,
            blob_grace: l3.blob_grace,
            inline_bytes_max: l3.inline_bytes_max,
            tombstone_ttl: l3.tombstone_ttl,
            lap_pause: l3.sweep_interval,
            flash: config.l2.bytes > 0,
            ..DurableSettings::default()
        },
    }
}

/// A namespace that the policy makes a cache must not be in L3, where nobody would look for it any more.
fn check_caches(policy: &Policy, durable: &DurableExecutor) -> Result<(), NodeError> {
    let control = durable.control();
    for (name, _) in policy.declared().filter(|(_, rules)| rules.mode == Mode::CacheOnly) {
        match futures_lite::future::block_on(control.holds(name)) {
            Some(Ok(false)) => {}
            Some(Ok(true)) => return Err(NodeError::Mode { namespace: name.into() }),
            Some(Err(source)) => return Err(StartError::Store(source).into()),
            None => return Err(StartError::Ended.into()),
        }
    }
    Ok(())
}

/// What the shards are made from.
struct Parts<'a> {
    config: &'a Arc<Config>,
    clock: MachineClock,
    dir: &'a DataDir,
    policy: &'a VersionedPolicy,
    durable: &'a DurableExecutor,
}

/// Shards that are open.
struct RunningShards {
    shards: Shards,
    commands: Vec<engine::mailbox::Sender<command::Command>>,
    asks: Vec<Bridge>,
    registry: Arc<Registry>,
    go: Signal,
    /// Raised when a log is poisoned.
    flash_lost: Signal,
}

/// What one shard said when it had opened, or not.
type Opening = Answer<Result<Option<Opened>, ShardError>>;

impl Parts<'_> {
    fn start_shards(
        &self,
        logs: Vec<Option<LogSeed>>,
        listeners: Vec<Option<Listener>>,
        bridges: Vec<Bridge>,
    ) -> Result<(RunningShards, Vec<Option<Opened>>), NodeError> {
        let count = logs.len();
        let registry = Registry::new();
        let (go, flash_lost, drained) = (Signal::new(), Signal::new(), Rendezvous::new(count));
        let (mut commands, mut asks, mut openings, mut mains) =
            (Vec::new(), Vec::new(), Vec::<Opening>::new(), Vec::new());
        let parts = mesh(count, MESH_CREDITS).into_iter().zip(logs).zip(listeners).zip(bridges);
        for (((mesh, log), listener), durable) in parts {
            let (command_rx, ask_rx) = (mailbox(COMMANDS_MAX), mailbox(ADMIN_CREDITS));
            commands.push(command_rx.sender(COMMANDS_MAX).expect("a new mailbox has all its credits"));
            asks.push(Bridge::new(ask_rx.sender(ADMIN_CREDITS).expect("a new mailbox has all its credits")));
            let (opened, opening) = oneshot();
            openings.push(opening);
            let seed = Seed {
                config: self.config.clone(),
                node_id: self.dir.identity().node_id,
                version_node: self.dir.identity().version_node(),
                hash_seed: self.dir.identity().hash_seed,
                log,
                registry: registry.clone(),
                policy: self.policy.clone(),
                mesh,
                asks: ask_rx,
                commands: command_rx,
                durable,
                listener,
                opened,
                go: go.clone(),
                flash_lost: flash_lost.clone(),
                drained: drained.clone(),
            };
            mains.push(move |rt: ShardRt, id: ShardId| shard::run(rt, id, seed));
        }
        let mut probe_dirs = self.config.l2.paths.clone();
        probe_dirs.retain(|_| self.config.l2.bytes > 0);
        let options = Options {
            probe_dirs,
            // The shard's own grace, and then its log's last flush.
            grace: self.config.limits.stop_grace * 2,
            clock: self.clock,
            ..Options::default()
        };
        let shards = launch(&options, mains, Arc::new(Ender))?;
        if shards.buffers().registered == Some(false) {
            tracing::warn!(
                limit = ?shards.buffers().limit,
                "the kernel did not register the I/O buffers; raise RLIMIT_MEMLOCK for cheaper flash I/O"
            );
        }
        let mut opened = Vec::new();
        for (shard, opening) in openings.into_iter().enumerate() {
            // Dropping `shards` on the way out stops and joins the others.
            let opening = opening.wait_blocking().ok_or(NodeError::ShardEnded(shard))?;
            opened.push(opening.map_err(|source| NodeError::Shard { shard, source })?);
        }
        Ok((RunningShards { shards, commands, asks, registry, go, flash_lost }, opened))
    }

    fn control(&self, running: &RunningShards, policy_file: PolicyFile, policy: VersionedPolicy) -> NodeControl {
        NodeControl {
            config: self.config.clone(),
            hash_seed: self.dir.identity().hash_seed,
            clock: self.clock,
            started: self.clock.elapsed(),
            commands: running.commands.clone(),
            asks: running.asks.clone(),
            hearts: running.shards.hearts().to_vec(),
            durable: self.durable.control(),
            policy_file,
            policy: Mutex::new(policy),
            registry: running.registry.clone(),
            changing: tokio::sync::Mutex::new(()),
            wrong: Mutex::default(),
            shortage: Mutex::default(),
            stopping: AtomicBool::new(false),
        }
    }
}

/// Ends the process when a shard is lost.
struct Ender;

impl Supervisor for Ender {
    fn shard_failed(&self, failure: Failure) {
        // Not an orderly stop: it would wait for the very shard that does not answer.
        eprintln!("strata: {failure}; ending, to be started again");
        std::process::exit(SHARD_LOST);
    }
}

/// Waits for the first signal, and looks after the node's health meanwhile. Calls `on_flash_lost` once, if it comes to
/// that.
fn wait(control: &Arc<NodeControl>, flash_lost: &Signal, on_flash_lost: impl FnOnce()) -> Result<(), NodeError> {
    let system = |what| move |source| NodeError::System { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("a runtime"))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(system("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("SIGINT"))?;
        let mut watch = tokio::time::interval(WATCH_INTERVAL);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut on_flash_lost = Some(on_flash_lost);
        loop {
            tokio::select! {
                () = flash_lost.raised(), if on_flash_lost.is_some() => {
                    on_flash_lost.take().into_iter().for_each(|record| record());
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = watch.tick() => control.watch().await,
            }
        }
        Ok::<_, NodeError>(())
    })?;
    // From here on a second signal has its default effect again only if it is asked for.
    std::thread::Builder::new()
        .name("second-signal".into())
        .spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                let (Ok(mut terminate), Ok(mut interrupt)) =
                    (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
                else {
                    return;
                };
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                eprintln!("strata: second signal: ending at once");
                std::process::exit(1);
            });
        })
        .map_err(system("a thread"))?;
    Ok(())
}

fn stop(port: Option<Port>, running: RunningShards, durable: DurableExecutor, admin: Option<Running>) {
    if let Some(port) = port {
        port.close();
    }
    let RunningShards { shards, .. } = running;
    shards.stop();
    for failure in shards.join() {
        tracing::error!(%failure, "a shard did not end well");
    }
    durable.stop();
    if let Some(admin) = admin
        && let Err(error) = admin.stop()
    {
        tracing::warn!(%error, "the admin door did not end well");
    }
    tracing::info!("stopped");
}
