//! The durable executor: the thread that owns the embedded L3.
//!
//! One thread runs [`DurableTier`] over [`LocalBlobStore`] and [`RedbIndexStore`], serves it and sweeps it; the disk is touched by its pools and the
//! index writer only. The directory:
//!
//! ```text
//! index.redb       manifests (redb)
//! index.headroom   room for removals on a full disk
//! blobs/ tmp/      bodies (local)
//! ```
//!
//! Start: the index first, because it knows the format and refuses before anything is changed; then the blobs.
//! Stop: as every [`executor`](crate::storage::executor); then the writer commits what is queued and the file is closed. Blobs and index have pools of their own, so that large bodies do not starve small reads.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use engine::{
    clock::Clock,
    mailbox::{Receiver, Reply, Sender, mailbox, oneshot},
    rt::Rt,
};

use super::{
    DurableSettings, DurableTier,
    local::{LocalBlobStore, LocalStats},
    pool::Pool,
    redb::{IndexStats, OpenError, RedbIndexStore},
    room::{Room, Used},
    stats::TierStats,
};
use crate::{
    cache::{CacheError, Version},
    config::Reserve,
    namespace::Held,
    reason::Reason,
    storage::{
        bridge::Bridge,
        executor::{Executor, ExecutorError},
        traits::{IndexStore, PurgeRecord, PurgeScope, StoreError},
    },
    tokio_rt::TokioRt,
    version::VersionClock,
};

/// Control requests that may wait; at the bound their senders wait.
pub const CONTROL_MAX: usize = 16;

const INDEX_FILE: &str = "index.redb";

/// What the executor is started with.
#[derive(Clone, Debug)]
pub struct DurableConfig {
    /// Where everything is kept; made if need be. The caller holds the lock of the data directory.
    pub dir: PathBuf,
    /// Most bytes of blobs and manifests together; `None`: only the disk's reserve limits them.
    pub bytes_max: Option<u64>,
    /// Part of the file system kept free.
    pub disk_reserve: Reserve,
    /// Memory for the index's pages, in bytes.
    pub index_cache_bytes: usize,
    /// This node, in versions.
    pub node_id: u16,
    /// Nothing was ever kept in `dir`: an index that is not there is made, and not missed.
    pub is_new: bool,
    /// How many [`Bridge`]s are handed out.
    pub clients: usize,
    /// Times of the tier and its sweep.
    pub settings: DurableSettings,
}

/// Why the executor did not start. Nothing was changed when the index refused.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The index file is gone. With an empty one every object would be an orphan, and swept.
    #[error("{} is missing, and without it nothing in L3 can be found: restore it, or name another data_dir. Nothing was changed", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The index file cannot be used.
    #[error(transparent)]
    Index(#[from] OpenError),
    /// The directory cannot be used, or the system has no more threads.
    #[error("{}: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A store failed at its first use.
    #[error("the durable tier does not open")]
    Store(#[source] StoreError),
    /// The thread ended before it said anything: a bug. The log has the cause.
    #[error("the durable executor ended while it started")]
    Ended,
}

/// Everything the embedded L3 counts.
#[derive(Clone, Debug, Default)]
pub struct DurableStats {
    /// The tier and its sweep.
    pub tier: TierStats,
    /// The blob files.
    pub blobs: LocalStats,
    /// The index.
    pub index: IndexStats,
    /// What each namespace has in it; `None` if nobody knows.
    pub held: Option<BTreeMap<Box<str>, Held>>,
    /// Bytes in use.
    pub used: Used,
}

enum Control {
    Stats(Reply<DurableStats>),
    PurgeScope(PurgeScope, Reply<Result<Option<PurgeRecord>, CacheError>>),
    FlashLapped(Version),
    Holds(Box<str>, Reply<Result<bool, StoreError>>),
}

/// What can be asked of the executor beside its data. Clones share one queue; usable on any thread.
#[derive(Clone)]
pub struct DurableControl {
    sender: Sender<Control>,
    room: Room,
}

impl DurableControl {
    /// The counters now; `None`: the executor is gone.
    pub async fn stats(&self) -> Option<DurableStats> {
        let (reply, answer) = oneshot();
        self.sender.send(Control::Stats(reply)).await.ok()?;
        answer.await
    }

    /// Why a write of a small body would be refused now for want of room. Blocks on the file system.
    #[must_use]
    pub fn full(&self) -> Option<Reason> {
        self.room.full()
    }

    /// See [`DurableTier::purge_scope`].
    ///
    /// # Errors
    /// As there, or the executor is gone.
    pub async fn purge_scope(&self, scope: PurgeScope) -> Result<Option<PurgeRecord>, CacheError> {
        let (reply, answer) = oneshot();
        let gone = || CacheError::Unavailable { reason: Reason::Unavailable, cause: None };
        self.sender.send(Control::PurgeScope(scope, reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or(Err(CacheError::OutcomeUnknown { base: None, cause: None }))
    }

    /// Whether the index has an entry of any kind in `namespace`: an object, or the tombstone of one. `None`: the
    /// executor is gone.
    ///
    /// # Errors
    /// The index failed.
    pub async fn holds(&self, namespace: &str) -> Option<Result<bool, StoreError>> {
        let (reply, answer) = oneshot();
        self.sender.send(Control::Holds(namespace.into(), reply)).await.ok()?;
        answer.await
    }

    /// See [`DurableTier::flash_lapped`].
    pub async fn flash_lapped(&self, version: Version) {
        // An executor that is gone retires no purge records.
        drop(self.sender.send(Control::FlashLapped(version)).await);
    }
}

/// The running executor. Dropping it stops it, as [`DurableExecutor::stop`] does.
pub struct DurableExecutor {
    control: DurableControl,
    _executor: Executor,
}

impl DurableExecutor {
    /// Starts the thread and waits until the stores are open: after an unclean stop that reads the index file and
    /// lists the blobs. Gives one bridge per client.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start<C: Clock + Send>(config: DurableConfig, clock: C) -> Result<(Self, Vec<Bridge>), StartError> {
        let controls = mailbox(CONTROL_MAX);
        let sender = controls.sender(CONTROL_MAX).ok_or(StartError::Ended)?;
        let (dir, clients) = (config.dir.clone(), config.clients);
        let room = Room::new(&dir, config.bytes_max, config.disk_reserve);
        let control = DurableControl { sender, room: room.clone() };
        let main = async move |rt: TokioRt<C>| {
            let Opened { tier, room } = open(&rt, &config, room).await?;
            tier.start_sweep();
            rt.spawn(answer(controls, tier.clone(), room));
            Ok(tier)
        };
        let (executor, bridges) = Executor::start("durable", clock, clients, main).map_err(|error| match error {
            ExecutorError::Open(error) => error,
            ExecutorError::Thread { source, .. } => StartError::Io { dir, source },
            ExecutorError::Ended(_) => StartError::Ended,
        })?;
        Ok((Self { control, _executor: executor }, bridges))
    }

    /// A handle to its counters and controls.
    #[must_use]
    pub fn control(&self) -> DurableControl {
        self.control.clone()
    }

    /// Gives up the index's headroom if the disk has less than `bytes`, for the small files that a start writes: a node
    /// that cannot start deletes nothing. The next write of the index takes back what is left. Blocks.
    pub fn make_room(&self, bytes: u64) {
        let room = &self.control.room;
        if room.free_bytes().is_ok_and(|free| free < bytes) {
            room.headroom().give_up();
        }
    }

    /// Stops in order, and waits for it: at most [`STOP_GRACE`](crate::storage::executor::STOP_GRACE) and the commits
    /// under way. Blocks. Requests that were not taken up fail at their clients.
    pub fn stop(self) {
        drop(self);
    }
}

type EmbeddedTier<C> = DurableTier<LocalBlobStore<C>, RedbIndexStore, TokioRt<C>>;

struct Opened<C: Clock> {
    tier: EmbeddedTier<C>,
    room: Room,
}

async fn open<C: Clock>(rt: &TokioRt<C>, config: &DurableConfig, room: Room) -> Result<Opened<C>, StartError> {
    let io = |source| StartError::Io { dir: config.dir.clone(), source };
    let file = config.dir.join(INDEX_FILE);
    if !config.is_new && !file.try_exists().map_err(io)? {
        return Err(StartError::Missing { file });
    }
    fs::create_dir_all(&config.dir).map_err(io)?;
    let index_pool = Pool::start("index").map_err(io)?;
    let index = RedbIndexStore::open(&file, config.index_cache_bytes, index_pool, room.clone())?;
    let blob_pool = Pool::start("blobs").map_err(io)?;
    let blobs = LocalBlobStore::open(&config.dir, rt.clock().clone(), blob_pool, room.clone()).map_err(io)?;
    let versions = VersionClock::new(config.node_id);
    let tier = DurableTier::open(rt.clone(), blobs, index, versions, config.settings).await;
    Ok(Opened { tier: tier.map_err(StartError::Store)?, room })
}

/// Answers controls until nobody can ask any more, or the thread ends.
async fn answer<C: Clock>(mut controls: Receiver<Control>, tier: EmbeddedTier<C>, room: Room) {
    while let Some(control) = controls.recv().await {
        match control {
            Control::Stats(reply) => {
                let stats = DurableStats {
                    tier: tier.stats(),
                    blobs: tier.blobs().stats(),
                    index: tier.index().stats(),
                    held: tier.index().held(),
                    used: room.used(),
                };
                drop(reply.send(stats));
            }
            Control::PurgeScope(scope, reply) => drop(reply.send(tier.purge_scope(scope).await)),
            Control::FlashLapped(version) => tier.flash_lapped(version),
            Control::Holds(namespace, reply) => {
                drop(reply.send(tier.index().holds(format!("{namespace}/").as_bytes()).await));
            }
        }
    }
}
