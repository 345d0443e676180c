//! The four tiers of a shard behind one key: reads go down, fills go up, commits agree on one version.
//!
//! Owns the order of everything: which tier is asked when ([`lookup`]), what a read copies upwards ([`promote`],
//! [`HitFromL1PromoteL0`] and [`HitFromLower`]), how a write reaches all tiers at once ([`fanout`], [`FanoutMiss`]),
//! the moment it becomes true ([`commit`]), how it ceases to be ([`remove`]), and what leaves L0 for flash
//! ([`demote`]), and what comes to flash later because it was too fast for it ([`refill`]). [`keys`] is the table that all of them meet at.
//!
//! # How INV-2 (no going back) is kept
//!
//! *One commit at a time.* A write, purge or change of metadata holds the key's turn from before its precondition is
//! decided until every tier agrees with the outcome. The part from the turn on runs as a task of its own: a client
//! that leaves cannot stop it half-way.
//!
//! *One moment of change.* In a durable namespace L3 decides; the instant its answer is here, the turn raises the
//! key's floor to the new version, and from then on no read is given an older copy, whatever order L0, L1 and L2
//! are brought up in. In a cache-only namespace the floor is raised once L2 has forgotten (or superseded) the old
//! copy. Before that instant the commit may already be visible in L3 to a read that found nothing above; what such
//! a read shows becomes the floor as well, so the next read does not fall behind it. Look-ups below L0 are
//! registered, and the floor stays as long as one of them is under way: it may come back late with an old copy.
//!
//! *Nothing old after the acknowledgement.* A commit publishes the new version in a tier or removes older ones from
//! it, in every tier that exists, used by the namespace or not (its policy may change). Fills registered before the
//! turn are poisoned; none are registered while it is held; and a turn waits for fills that are inside a tier's
//! `finish` at that moment (see [`keys`]). The alternative, fills that take the turn themselves, makes a reader wait
//! behind a writer and a writer queue behind readers for nothing: a fill that finds the turn held is worthless
//! anyway. That a tier lets the highest version win is the second line, and does not help after a delete.
//!
//! *A tier that hangs holds up its key, not its readers.* A turn waits [`Settings::publish_wait`] for a fill that
//! hangs in a tier's `finish`, then commits and acknowledges; the turn itself is kept until the fill has come to an
//! end and been removed, and the floor hides it meanwhile. Only the next writer of that key waits.
//!
//! *A tier that cannot obey is fenced.* When an upper tier fails to remove an old copy, its copies below the new
//! version are shut out of reads from then on, of all keys, since versions are times. It loses what it had cached,
//! and nothing else.
//!
//! # Doubt
//!
//! A durable commit of unknown outcome leaves the key in doubt: cached copies are removed, nothing is filled, only
//! L3 answers, until it shows what became of the commit (see [`keys`]). Doubts are bounded; beyond the bound durable
//! commits are refused, since an uncounted one could not be remembered.
//!
//! # What is left to others
//!
//! Each tier keeps its own copies straight (staged bytes are invisible, checksums hold, the highest version wins, a
//! superseded copy on flash does not come back after a crash, a poisoned tier serves nothing it held, now or after
//! a restart). `l2.finish` supersedes what L2 itself holds; `l2.purge(OlderThan(v))` must leave a later commit of
//! exactly `v` possible. Namespaces and their rules: `namespace`, `policy`. Requests: the doors, which also count
//! deletes and purges of a namespace. Removing by tag or prefix, and other nodes: later.

pub mod commit;
pub mod demote;
pub mod fanout;
mod keys;
mod lane;
pub mod lookup;
pub mod promote;
mod refill;
pub mod remove;
mod task;

use std::{cell::Cell, fmt, marker::PhantomData, rc::Rc, time::Duration};

use bytes::Bytes;
use engine::{clock::Clock, rt::Rt};

use self::{demote::Demotions, keys::Keys, lane::Room, refill::Refills};
pub use self::{
    fanout::FanoutMiss,
    promote::{HitFromL0, HitFromL1PromoteL0, HitFromLower, MultiHit},
};
use crate::{
    cache::{CacheError, CacheKey, CacheMeta, Found, Precondition, PurgeReport, Storage, Tier, Version},
    namespace::Namespaces,
    policy::Effective,
    reason::Reason,
    stats::{ShardStats, add},
    version::VersionClock,
};

/// A storage that can be a tier: tasks may keep it, and what it hands out.
pub trait TierStorage: Storage<Hit: 'static, Miss: 'static> + 'static {}

impl<S: Storage<Hit: 'static, Miss: 'static> + 'static> TierStorage for S {}

/// The types of the four tiers and of their scheduler, as one parameter.
pub trait Tiers: 'static {
    /// RAM.
    type L0: TierStorage;
    /// Shared network cache.
    type L1: TierStorage;
    /// Flash.
    type L2: TierStorage;
    /// Durable storage.
    type L3: TierStorage;
    /// The shard's scheduler.
    type Rt: Rt;
}

/// [`Tiers`] spelled out.
pub struct TypesOf<L0, L1, L2, L3, R>(PhantomData<(L0, L1, L2, L3, R)>);

impl<L0, L1, L2, L3, R> Tiers for TypesOf<L0, L1, L2, L3, R>
where
    L0: TierStorage,
    L1: TierStorage,
    L2: TierStorage,
    L3: TierStorage,
    R: Rt,
{
    type L0 = L0;
    type L1 = L1;
    type L2 = L2;
    type L3 = L3;
    type Rt = R;
}

/// The tiers of a shard; one that is off is `None`.
pub struct Stack<L0, L1, L2, L3> {
    /// RAM; always there.
    pub l0: L0,
    /// Shared network cache.
    pub l1: Option<L1>,
    /// Flash.
    pub l2: Option<L2>,
    /// Durable storage. Without it durable namespaces answer nothing and refuse writes.
    pub l3: Option<L3>,
}

/// What a [`MultiTier`] works with besides its tiers.
pub struct Context<R> {
    /// The shard's scheduler.
    pub rt: R,
    /// The shard's namespaces.
    pub namespaces: Rc<Namespaces>,
    /// The shard's version clock. Must have been shown every version that L2 recovered.
    pub versions: VersionClock,
    /// Where to count.
    pub stats: Rc<ShardStats>,
    /// Bounds.
    pub settings: Settings,
}

/// The bounds of a [`MultiTier`], per shard.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes by which a tier that does not acknowledge may fall behind one write before it is dropped from it.
    pub fanout_lag_max: usize,
    /// Bytes by which L1 or L2 may fall behind one read before its promotion is dropped.
    pub promote_lag_max: usize,
    /// Bytes of all lagging writes and promotions together; beyond, tiers are dropped as if they lagged.
    pub lane_bytes_max: usize,
    /// Bytes in memory of the object that is copied from L3 to L2 after a lag, window of L3's thread included; part of
    /// `lane_bytes_max`.
    pub refill_bytes: usize,
    /// Bytes evicted from L0 that may wait for L2; beyond, they are dropped.
    pub demote_bytes_max: usize,
    /// Look-ups below L0 and fills under way; beyond, further reads fill nothing.
    pub fills_max: usize,
    /// Durable commits that run or whose outcome is unknown; beyond, durable commits are refused.
    pub in_doubt_max: usize,
    /// How long a commit waits for L2 to have staged the rest of the body before it leaves that to a fill; for twice
    /// as long at most, the writer waits for the tiers that do not acknowledge.
    pub stage_wait: Duration,
    /// How long a commit waits for fills that are inside a tier's `finish` before it goes on.
    pub publish_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            fanout_lag_max: 4 << 20,
            promote_lag_max: 1 << 20,
            lane_bytes_max: 64 << 20,
            refill_bytes: 1 << 20,
            demote_bytes_max: 8 << 20,
            fills_max: 4096,
            in_doubt_max: 1024,
            stage_wait: Duration::from_millis(250),
            publish_wait: Duration::from_secs(2),
        }
    }
}

/// Faults that a simulation plants to see that it finds them. No setting reaches them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sabotage {
    /// Skip the poison check: a promotion commits although the key was written or purged while it ran.
    pub commit_promotion_after_purge: bool,
}

/// The tiers of one shard as one [`Storage`]. Cheap to clone; not `Send`.
pub struct MultiTier<L0, L1, L2, L3, R>
where
    L0: TierStorage,
    L1: TierStorage,
    L2: TierStorage,
    L3: TierStorage,
    R: Rt,
{
    node: SharedNode<L0, L1, L2, L3, R>,
}

type SharedNode<L0, L1, L2, L3, R> = Rc<Node<TypesOf<L0, L1, L2, L3, R>>>;

impl<L0, L1, L2, L3, R> Clone for MultiTier<L0, L1, L2, L3, R>
where
    L0: TierStorage,
    L1: TierStorage,
    L2: TierStorage,
    L3: TierStorage,
    R: Rt,
{
    fn clone(&self) -> Self {
        Self { node: self.node.clone() }
    }
}

impl<L0, L1, L2, L3, R> MultiTier<L0, L1, L2, L3, R>
where
    L0: TierStorage,
    L1: TierStorage,
    L2: TierStorage,
    L3: TierStorage,
    R: Rt,
{
    /// Joins the tiers of a shard.
    #[must_use]
    pub fn new(stack: Stack<L0, L1, L2, L3>, context: Context<R>) -> Self {
        Self::sabotaged(stack, context, Sabotage::default())
    }

    /// [`MultiTier::new`] with faults, for simulations.
    #[must_use]
    pub fn sabotaged(stack: Stack<L0, L1, L2, L3>, context: Context<R>, sabotage: Sabotage) -> Self {
        let Stack { l0, l1, l2, l3 } = stack;
        let Context { rt, namespaces, versions, stats, settings } = context;
        let node = Node {
            l0,
            l1,
            l2,
            l3,
            rt,
            namespaces,
            versions,
            keys: Keys::new(settings.fills_max, settings.in_doubt_max, stats.clone()),
            room: Room::new(settings.lane_bytes_max),
            demotions: Demotions::default(),
            refills: Refills::default(),
            fences: Default::default(),
            stats,
            settings,
            sabotage,
        };
        Self { node: Rc::new(node) }
    }

    /// Takes note of an object that L0 evicted to make room, and writes it to L2 in the background if the rules of
    /// its namespace say so. Called by L0, possibly from inside an operation of its own; never blocks, and calls no
    /// tier before it returns.
    pub fn evicted_from_l0(&self, key: CacheKey, meta: CacheMeta, body: Bytes) {
        self.node.evicted_from_l0(key, meta, body);
    }

    /// Refuses writes, purges, changes and fills from now on, and completes when every commit that runs has ended.
    /// Reads go on.
    pub async fn close(&self) {
        self.node.keys.close().await;
    }

    /// What this shard's tiers did. Gauges that are only read now and then are brought up to date.
    #[must_use]
    pub fn stats(&self) -> &Rc<ShardStats> {
        self.node.stats.lane_bytes.set(self.node.room.used() as u64);
        &self.node.stats
    }

    /// The namespaces this shard serves.
    #[must_use]
    pub fn namespaces(&self) -> &Rc<Namespaces> {
        &self.node.namespaces
    }

    /// Keys whose last durable commit has an unknown outcome.
    #[must_use]
    pub fn in_doubt(&self) -> usize {
        self.node.keys.in_doubt()
    }
}

impl<L0, L1, L2, L3, R> Storage for MultiTier<L0, L1, L2, L3, R>
where
    L0: TierStorage,
    L1: TierStorage,
    L2: TierStorage,
    L3: TierStorage,
    R: Rt,
{
    type Hit = MultiHit<TypesOf<L0, L1, L2, L3, R>>;
    type Miss = FanoutMiss<TypesOf<L0, L1, L2, L3, R>>;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, Self::Hit)>, CacheError> {
        Ok(self.node.find(key).await?.hit())
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<Self::Hit>, CacheError> {
        self.node.find(key).await
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self::Miss, CacheError> {
        FanoutMiss::open(&self.node, key, meta, precondition).await
    }

    /// As the contract; and once begun it runs to its end even if the future is dropped.
    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        self.node.purge(key, precondition).await
    }

    /// As the contract; and once begun it runs to its end even if the future is dropped.
    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        self.node.update_meta(key, meta).await
    }
}

impl<L0, L1, L2, L3, R> fmt::Debug for MultiTier<L0, L1, L2, L3, R>
where
    L0: TierStorage,
    L1: TierStorage,
    L2: TierStorage,
    L3: TierStorage,
    R: Rt,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiTier").field("settings", &self.node.settings).finish_non_exhaustive()
    }
}

/// What all parts of a [`MultiTier`] share. No `RefCell` of it is borrowed while a tier is called: L0 calls back.
pub(crate) struct Node<T: Tiers> {
    l0: T::L0,
    l1: Option<T::L1>,
    l2: Option<T::L2>,
    l3: Option<T::L3>,
    rt: T::Rt,
    namespaces: Rc<Namespaces>,
    versions: VersionClock,
    keys: Rc<Keys>,
    room: Rc<Room>,
    demotions: Demotions,
    refills: Refills,
    /// Copies below these are shut out of L0, L1, L2.
    fences: [Cell<Version>; 3],
    stats: Rc<ShardStats>,
    settings: Settings,
    sabotage: Sabotage,
}

impl<T: Tiers> Node<T> {
    fn has(&self, tier: Tier) -> bool {
        match tier {
            Tier::L0 => true,
            Tier::L1 => self.l1.is_some(),
            Tier::L2 => self.l2.is_some(),
            Tier::L3 => self.l3.is_some(),
        }
    }

    /// Whether `tier` is there, used by the namespace, and admits a body of `length` bytes; if not, why.
    fn admits(&self, rules: &Effective, tier: Tier, length: u64) -> Result<(), Reason> {
        if !self.has(tier) || !rules.tiers[tier as usize] {
            Err(Reason::TierOff)
        } else if !rules.admits(tier, length) {
            Err(Reason::Gate)
        } else {
            Ok(())
        }
    }

    fn now_ms(&self) -> u64 {
        self.rt.clock().wall_ms()
    }

    /// Shuts copies below `version` out of `tier` (not L3), for good.
    fn fence(&self, tier: Tier, version: Version) {
        let fence = &self.fences[tier as usize];
        fence.set(fence.get().max(version));
        add(&self.stats.tier(tier).fences, 1);
    }

    /// Whether `tier` (not L3) may show a copy of `version`.
    fn is_fenced(&self, tier: Tier, version: Version) -> bool {
        version < self.fences[tier as usize].get()
    }
}

#[cfg(test)]
mod tests;
