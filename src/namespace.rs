//! Which namespaces exist, under which rules, and what is counted for each.
//!
//! Owns the node-wide [`Registry`] of names and, per shard, [`Namespaces`]: the entries with their rules and
//! counters. A request finds its [`Namespace`] by one look-up in a table of its own shard; the registry's lock is
//! taken only when a shard meets a name for the first time.
//!
//! Invariants: reads register nothing, so names made up by readers cost no memory; at most [`NAMESPACES_MAX`] names
//! are declared and as many registered, and a write to one more is refused with [`Reason::NamespaceMax`]. Counters
//! only grow: what an entry counted before it went is kept under [`OTHER`].
//!
//! Left to others: what the rules say (`policy`), and what a tier counts for itself.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hashbrown::{HashMap, HashSet};

use crate::{
    cache::{PurgeReport, Stored, Tier},
    policy::{Effective, NAMESPACES_MAX, VersionedPolicy},
    reason::{Reason, ReasonCounts},
};

/// The name under which requests are counted whose namespace has no entry. Not a valid namespace.
pub const OTHER: &str = "*";

type Hasher = foldhash::fast::FixedState;

/// The names that were written to without being declared, for the whole node. Names are never taken out.
#[derive(Debug, Default)]
pub struct Registry {
    names: Mutex<Names>,
    /// `names.order.len()`, readable without the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Names {
    order: Vec<Arc<str>>,
    known: HashSet<Arc<str>, Hasher>,
    /// Names that must not be registered now.
    reserved: HashSet<Arc<str>, Hasher>,
    /// Names that were declared as durable and are declared no more: a write that began then may still be under way.
    /// At most [`NAMESPACES_MAX`]; at the bound every name is taken for one of them.
    left: HashSet<Arc<str>, Hasher>,
}

/// Names kept from being registered as long as this lives. At most what one policy declares.
#[derive(Debug)]
pub struct Reserved {
    registry: Arc<Registry>,
    names: Vec<Arc<str>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut names = self.registry.names();
        names.reserved.retain(|name| !self.names.contains(name));
    }
}

impl Registry {
    /// An empty registry, to be shared by all shards.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Registers `name`, which must be a valid namespace, if it is new. Takes a lock for a few hundred nanoseconds;
    /// called on a shard's first write to a name, and at start for names found in durable storage.
    ///
    /// # Errors
    /// [`Reason::NamespaceMax`]: it is new and [`NAMESPACES_MAX`] are registered. [`Reason::Unavailable`]: it is
    /// [`Reserved`], for the moment.
    pub fn admit(&self, name: &str) -> Result<(), Reason> {
        let mut names = self.names();
        if names.known.contains(name) {
            return Ok(());
        }
        if names.reserved.contains(name) {
            return Err(Reason::Unavailable);
        }
        if names.order.len() >= NAMESPACES_MAX {
            return Err(Reason::NamespaceMax);
        }
        let name: Arc<str> = name.into();
        names.known.insert(Arc::clone(&name));
        names.order.push(name);
        self.count.store(names.order.len(), Ordering::Release);
        Ok(())
    }

    /// Keeps `names` from being registered, so that nothing is written to them under the rules of undeclared ones,
    /// until a policy that declares them is in force everywhere. One caller at a time.
    ///
    /// # Errors
    /// The first of them that is registered or has [left](Registry::leave): it was written to, or may be being.
    /// Nothing is reserved then.
    pub fn reserve<'a>(self: &Arc<Self>, names: impl Iterator<Item = &'a str>) -> Result<Reserved, Arc<str>> {
        let wanted: Vec<Arc<str>> = names.map(Into::into).collect();
        let mut names = self.names();
        let durable = |name: &&Arc<str>| {
            names.known.contains(*name) || names.left.contains(*name) || names.left.len() >= NAMESPACES_MAX
        };
        if let Some(durable) = wanted.iter().find(durable) {
            return Err(Arc::clone(durable));
        }
        names.reserved.extend(wanted.iter().map(Arc::clone));
        Ok(Reserved { registry: Arc::clone(self), names: wanted })
    }

    /// Remembers that `gone` were declared as durable and are declared no more.
    pub fn leave<'a>(&self, gone: impl Iterator<Item = &'a str>) {
        let mut names = self.names();
        for name in gone {
            if names.left.len() < NAMESPACES_MAX {
                names.left.insert(name.into());
            }
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names after the first `seen`, in order of registration.
    fn since(&self, seen: usize) -> Vec<Arc<str>> {
        if self.count.load(Ordering::Acquire) == seen {
            return Vec::new();
        }
        let names = self.names();
        names.order.get(seen..).unwrap_or_default().to_vec()
    }
}

/// One namespace on one shard.
#[derive(Debug)]
pub struct Namespace {
    name: Arc<str>,
    effective: RefCell<Arc<Effective>>,
    writable: Cell<bool>,
    /// What happened in it on this shard.
    pub counters: NamespaceCounters,
}

impl Namespace {
    fn new(name: Arc<str>, rules: Rules) -> Rc<Self> {
        let (effective, writable) = (RefCell::new(rules.effective), Cell::new(rules.writable));
        Rc::new(Self { name, effective, writable, counters: NamespaceCounters::default() })
    }

    /// Its name, or [`OTHER`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules now. A request takes them once, so that a change of policy does not meet it half-way. The count of
    /// the `Arc` is this shard's own: no other core touches its cache line.
    #[must_use]
    pub fn effective(&self) -> Arc<Effective> {
        Arc::clone(&self.effective.borrow())
    }

    /// Reads the rules without any atomic operation, for the hit path. `read` must not change the policy.
    pub fn with<R>(&self, read: impl FnOnce(&Effective) -> R) -> R {
        read(&self.effective.borrow())
    }
}

/// The rules of one name under one policy, in an allocation of this shard's own.
struct Rules {
    effective: Arc<Effective>,
    writable: bool,
}

impl Rules {
    fn of(policy: &VersionedPolicy, name: &str) -> Self {
        let effective = policy.policy.effective(name);
        let writable = effective.is_some();
        let effective = effective.as_ref().unwrap_or(policy.policy.undeclared());
        Self { effective: Arc::new(Effective::clone(effective)), writable }
    }
}

/// The namespaces of one shard. Single-threaded.
#[derive(Debug)]
pub struct Namespaces {
    registry: Arc<Registry>,
    policy: RefCell<VersionedPolicy>,
    entries: RefCell<HashMap<Arc<str>, Rc<Namespace>, Hasher>>,
    /// Names of the registry that have an entry here.
    seen: Cell<usize>,
    /// The registry had no room for a name.
    full: Cell<bool>,
    other: Rc<Namespace>,
}

impl Namespaces {
    /// The namespaces of a shard, under `policy`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, policy: VersionedPolicy) -> Self {
        let other = Namespace::new(OTHER.into(), Rules::of(&policy, OTHER));
        let entries = RefCell::default();
        let namespaces =
            Self { registry, policy: RefCell::new(policy), entries, seen: Cell::new(0), full: Cell::new(false), other };
        namespaces.apply();
        namespaces
    }

    /// The namespace a write goes to, made if the policy allows. A refusal is counted here.
    ///
    /// # Errors
    /// [`Reason::NamespaceUndeclared`], [`Reason::NamespaceMax`], or [`Reason::Unavailable`] while it is being declared.
    pub fn for_write(&self, name: &str) -> Result<Rc<Namespace>, Reason> {
        let known = match self.find(name) {
            None if self.policy.borrow().policy.effective(name).is_some() => {
                self.registry.admit(name).inspect_err(|reason| self.other.counters.refused(*reason))?;
                self.find(name)
            }
            known => known,
        };
        let namespace = known.filter(|namespace| namespace.writable.get());
        namespace.ok_or(Reason::NamespaceUndeclared).inspect_err(|reason| self.for_read(name).counters.refused(*reason))
    }

    /// The namespace a read, delete or purge goes to. A name without an entry shares [`OTHER`]'s, whose rules are
    /// the root's: nothing was written or found there since the start, but durable storage may hold it.
    #[must_use]
    pub fn for_read(&self, name: &str) -> Rc<Namespace> {
        self.find(name).unwrap_or_else(|| Rc::clone(&self.other))
    }

    /// The namespace that a read of `name` went to, now that something of it was found: it was in use before the start,
    /// and has counters of its own from here on as if it had been written to. [`OTHER`]'s if there is no room for it.
    #[must_use]
    pub fn for_hit<'a>(&'a self, space: &'a Rc<Namespace>, name: &str) -> Cow<'a, Rc<Namespace>> {
        if !Rc::ptr_eq(space, &self.other) || self.full.get() {
            return Cow::Borrowed(space);
        }
        match self.registry.admit(name) {
            Ok(()) => Cow::Owned(self.for_read(name)),
            Err(reason) => {
                // Names stay, so that it will be full whenever it is asked; the lock is not worth that.
                self.full.set(reason == Reason::NamespaceMax);
                Cow::Borrowed(space)
            }
        }
    }

    /// Puts `policy` in force for requests that begin from now on. One older than the policy in force is ignored.
    pub fn set_policy(&self, policy: VersionedPolicy) {
        if policy.version < self.policy.borrow().version {
            return;
        }
        *self.policy.borrow_mut() = policy;
        self.apply();
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> VersionedPolicy {
        self.policy.borrow().clone()
    }

    /// What was counted so far, by name; [`OTHER`] comes first.
    #[must_use]
    pub fn snapshot(&self) -> Vec<NamespaceSnapshot> {
        let entries = self.entries.borrow();
        let mut all: Vec<_> =
            entries.values().chain([&self.other]).map(|entry| entry.counters.snapshot(entry.name())).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn find(&self, name: &str) -> Option<Rc<Namespace>> {
        if let Some(namespace) = self.entries.borrow().get(name) {
            return Some(Rc::clone(namespace));
        }
        // Another shard may have registered it.
        if !self.catch_up() {
            return None;
        }
        self.entries.borrow().get(name).map(Rc::clone)
    }

    /// Gives every name registered since the last time an entry; whether there were any.
    fn catch_up(&self) -> bool {
        let fresh = self.registry.since(self.seen.get());
        self.seen.set(self.seen.get() + fresh.len());
        let policy = self.policy.borrow();
        let mut entries = self.entries.borrow_mut();
        for name in &fresh {
            entries
                .entry(Arc::clone(name))
                .or_insert_with(|| Namespace::new(Arc::clone(name), Rules::of(&policy, name)));
        }
        !fresh.is_empty()
    }

    /// Brings every entry under the policy in force: declared names get one, and names that are neither declared any
    /// more nor registered lose theirs, so that changing policies do not add up.
    fn apply(&self) {
        self.catch_up();
        let registered: HashSet<_, Hasher> = self.registry.since(0).into_iter().collect();
        let policy = self.policy.borrow();
        let mut entries = self.entries.borrow_mut();
        let declared: HashSet<_, Hasher> = policy.policy.declared().map(|(name, _)| name).collect();
        entries.retain(|name, entry| {
            let keep = declared.contains(&**name) || registered.contains(name);
            if !keep {
                self.other.counters.absorb(&entry.counters);
            }
            keep
        });
        for name in declared {
            let name: Arc<str> = name.into();
            entries.entry(name.clone()).or_insert_with(|| Namespace::new(name.clone(), Rules::of(&policy, &name)));
        }
        for entry in entries.values().chain([&self.other]) {
            let rules = Rules::of(&policy, entry.name());
            *entry.effective.borrow_mut() = rules.effective;
            entry.writable.set(rules.writable);
        }
    }
}

/// What the tiers did not keep of a namespace's objects, or were not given, by reason. Most pairs never come up, and
/// a node has thousands of namespaces: only those that did take room.
pub type Drops = BTreeMap<(Tier, Reason), u64>;

/// What a namespace has in one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Objects, expired ones that were not met yet included.
    pub objects: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Held {
    /// Adds what another shard holds.
    pub fn merge(&mut self, other: &Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }

    /// Adds an object.
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    /// Takes an object off.
    pub fn remove(&mut self, bytes: u64) {
        self.objects = self.objects.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What happened in a namespace on one shard. Single-threaded; shards are summed by the reader.
#[derive(Debug, Default)]
pub struct NamespaceCounters {
    hits: [Cell<u64>; 4],
    promotions: [Cell<u64>; 4],
    evictions: Cell<u64>,
    writes: Cell<u64>,
    deletes: Cell<u64>,
    purges: Cell<u64>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    misses: RefCell<ReasonCounts>,
    refused: RefCell<ReasonCounts>,
    drops: RefCell<Drops>,
}

impl NamespaceCounters {
    /// A read answered from `tier`.
    pub fn hit(&self, tier: Tier) {
        add(&self.hits[tier as usize], 1);
    }

    /// A read answered with no object.
    pub fn miss(&self, reason: Reason) {
        self.misses.borrow_mut().count(reason);
    }

    /// Body bytes sent to readers.
    pub fn sent(&self, bytes: u64) {
        add(&self.bytes_out, bytes);
    }

    /// A committed write and its bytes. The tiers that did not keep it are counted as that comes out.
    pub fn stored(&self, stored: &Stored) {
        add(&self.writes, 1);
        add(&self.bytes_in, stored.length);
    }

    /// `tier` did not keep an object of it, or was not given one.
    pub fn dropped(&self, tier: Tier, reason: Reason) {
        *self.drops.borrow_mut().entry((tier, reason)).or_default() += 1;
    }

    /// An object was copied up into `tier`.
    pub fn promoted(&self, tier: Tier) {
        add(&self.promotions[tier as usize], 1);
    }

    /// An object left L0 to make room.
    pub fn evicted(&self) {
        add(&self.evictions, 1);
    }

    /// A write, delete or purge that was not done.
    pub fn refused(&self, reason: Reason) {
        self.refused.borrow_mut().count(reason);
    }

    /// A delete that removed something (`DELETE`, memcached's `delete`).
    pub fn deleted(&self, report: &PurgeReport) {
        add(&self.deletes, u64::from(report.removed.is_some()));
    }

    /// A purge, whether or not there was something to remove.
    pub fn purged(&self) {
        add(&self.purges, 1);
    }

    fn snapshot(&self, name: &str) -> NamespaceSnapshot {
        NamespaceSnapshot {
            name: name.into(),
            hits: self.hits.each_ref().map(Cell::get),
            promotions: self.promotions.each_ref().map(Cell::get),
            evictions: self.evictions.get(),
            writes: self.writes.get(),
            deletes: self.deletes.get(),
            purges: self.purges.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            misses: self.misses.borrow().clone(),
            refused: self.refused.borrow().clone(),
            drops: self.drops.borrow().clone(),
        }
    }

    fn absorb(&self, other: &Self) {
        let by_tier = self.hits.iter().zip(&other.hits).chain(self.promotions.iter().zip(&other.promotions));
        by_tier.for_each(|(mine, theirs)| add(mine, theirs.get()));
        for (mine, theirs) in [
            (&self.evictions, &other.evictions),
            (&self.writes, &other.writes),
            (&self.deletes, &other.deletes),
            (&self.purges, &other.purges),
            (&self.bytes_in, &other.bytes_in),
            (&self.bytes_out, &other.bytes_out),
        ] {
            add(mine, theirs.get());
        }
        for (mine, theirs) in [(&self.misses, &other.misses), (&self.refused, &other.refused)] {
            mine.borrow_mut().merge(&theirs.borrow());
        }
        merge(&mut self.drops.borrow_mut(), &other.drops.borrow());
    }
}

fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

fn merge(mine: &mut Drops, theirs: &Drops) {
    for (what, n) in theirs {
        *mine.entry(*what).or_default() += n;
    }
}

/// The counters of one namespace at one moment, to be sent to the admin door.
#[derive(Clone, Debug, Default)]
pub struct NamespaceSnapshot {
    /// The namespace, or [`OTHER`].
    pub name: Box<str>,
    /// Reads answered, by tier, indexed by [`Tier`].
    pub hits: [u64; 4],
    /// Objects copied up, by tier they were copied into.
    pub promotions: [u64; 4],
    /// Objects that left L0 to make room.
    pub evictions: u64,
    /// Writes committed.
    pub writes: u64,
    /// Deletes that removed something.
    pub deletes: u64,
    /// Purges done.
    pub purges: u64,
    /// Body bytes committed.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Reads answered with no object, by reason.
    pub misses: ReasonCounts,
    /// Writes, deletes and purges not done, by reason.
    pub refused: ReasonCounts,
    /// What tiers did not keep, or were not given.
    pub drops: Drops,
}

impl NamespaceSnapshot {
    /// Adds what another shard counted for the same namespace.
    pub fn merge(&mut self, other: &Self) {
        let by_tier = self.hits.iter_mut().zip(other.hits).chain(self.promotions.iter_mut().zip(other.promotions));
        by_tier.for_each(|(mine, theirs)| *mine += theirs);
        self.evictions += other.evictions;
        self.writes += other.writes;
        self.deletes += other.deletes;
        self.purges += other.purges;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.misses.merge(&other.misses);
        self.refused.merge(&other.refused);
        merge(&mut self.drops, &other.drops);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{cache::Version, policy::Policy};

    fn policy(version: u64, json: &Value) -> VersionedPolicy {
        VersionedPolicy { version, policy: Arc::new(Policy::from_json(json).expect("valid")) }
    }

    fn open() -> (Arc<Registry>, Namespaces) {
        let registry = Registry::new();
        (Arc::clone(&registry), Namespaces::new(registry, policy(1, &json!({}))))
    }

    fn names(namespaces: &Namespaces) -> Vec<Box<str>> {
        namespaces.snapshot().into_iter().map(|snapshot| snapshot.name).collect()
    }

    #[test]
    fn a_write_makes_a_namespace_and_a_read_does_not() {
        let (registry, one) = open();
        let two = Namespaces::new(Arc::clone(&registry), policy(1, &json!({})));
        assert_eq!(one.for_read("img").name(), OTHER);
        assert_eq!(names(&one), ["*".into(), Box::from("memcached")]);
        let written = one.for_write("img").expect("open");
        assert_eq!(written.name(), "img");
        assert!(Rc::ptr_eq(&written, &one.for_read("img")));
        assert!(Rc::ptr_eq(&written, &one.for_write("img").expect("open")));
        assert_eq!(two.for_read("img").name(), "img", "the other shard learns of it");
    }

    #[test]
    fn a_hit_makes_a_namespace_of_one_that_was_used_before() {
        let (registry, one) = open();
        let two = Namespaces::new(Arc::clone(&registry), policy(1, &json!({})));
        let space = one.for_read("img");
        let found = one.for_hit(&space, "img").into_owned();
        assert_eq!(found.name(), "img");
        assert!(Rc::ptr_eq(&found, &one.for_read("img")) && Rc::ptr_eq(&found, &one.for_hit(&found, "img")));
        assert_eq!(two.for_read("img").name(), "img");
        for i in 0..NAMESPACES_MAX {
            drop(one.for_write(&format!("n{i}")));
        }
        let space = one.for_read("late");
        for _ in 0..2 {
            assert_eq!(one.for_hit(&space, "late").name(), OTHER, "there is no room");
        }
    }

    #[test]
    fn one_too_many_is_refused_and_declared_ones_are_not() {
        let (_, namespaces) = open();
        for i in 0..NAMESPACES_MAX {
            namespaces.for_write(&format!("n{i}")).expect("room");
        }
        assert_eq!(namespaces.for_write("more").err(), Some(Reason::NamespaceMax));
        assert_eq!(namespaces.for_read("more").name(), OTHER);
        assert_eq!(namespaces.snapshot()[0].refused.get(Reason::NamespaceMax), 1);
        namespaces.for_write("n0").expect("known");
        namespaces.set_policy(policy(2, &json!({"namespaces": {"more": {}}})));
        namespaces.for_write("more").expect("declared");
    }

    #[test]
    fn a_reserved_name_is_refused_until_it_is_declared() {
        let (registry, namespaces) = open();
        namespaces.for_write("used").expect("open");
        assert_eq!(registry.reserve(["fresh", "used"].into_iter()).expect_err("written to").as_ref(), "used");
        namespaces.for_write("fresh").expect("nothing was reserved");
        let reserved = registry.reserve(["tmp"].into_iter()).expect("unused");
        assert_eq!(namespaces.for_write("tmp").err(), Some(Reason::Unavailable));
        namespaces.for_write("other").expect("not concerned");
        namespaces.set_policy(policy(2, &json!({"namespaces": {"tmp": {"mode": "cache_only"}}})));
        namespaces.for_write("tmp").expect("declared");
        drop(reserved);
        let given_up = registry.reserve(["late"].into_iter()).expect("unused");
        drop(given_up);
        namespaces.for_write("late").expect("free again");
    }

    #[test]
    fn a_name_that_left_is_not_reserved_and_what_is_remembered_of_them_is_bounded() {
        let registry = Registry::new();
        registry.leave(["was"].into_iter());
        assert_eq!(registry.reserve(["new", "was"].into_iter()).expect_err("durable").as_ref(), "was");
        drop(registry.reserve(["new"].into_iter()).expect("never there"));
        registry.leave((0..2 * NAMESPACES_MAX).map(|i| format!("n{i}")).collect::<Vec<_>>().iter().map(String::as_str));
        assert_eq!(registry.names().left.len(), NAMESPACES_MAX);
        assert_eq!(registry.reserve(["new"].into_iter()).expect_err("cannot tell").as_ref(), "new");
    }

    #[test]
    fn undeclared_ones_are_refused_when_they_must_be_declared() {
        let (_, namespaces) = open();
        namespaces.for_write("early").expect("open");
        namespaces.set_policy(policy(2, &json!({"namespaces_mode": "declared", "namespaces": {"img": {}}})));
        namespaces.for_write("img").expect("declared");
        namespaces.for_write("memcached").expect("always declared");
        for name in ["early", "late"] {
            assert_eq!(namespaces.for_write(name).err(), Some(Reason::NamespaceUndeclared), "{name}");
        }
        assert_eq!(namespaces.for_read("early").name(), "early", "what it holds can still be read");
        assert_eq!(namespaces.for_read("early").counters.snapshot("").refused.get(Reason::NamespaceUndeclared), 1);
        namespaces.set_policy(policy(3, &json!({})));
        namespaces.for_write("early").expect("open again");
    }

    #[test]
    fn a_policy_reaches_entries_that_exist_and_an_older_one_is_ignored() {
        let (_, namespaces) = open();
        let img = namespaces.for_write("img").expect("open");
        let before = img.effective();
        namespaces.set_policy(policy(3, &json!({"l0_max": 7})));
        assert_eq!((img.with(|rules| rules.gates[0]), before.gates[0]), (Some(7), Some(2 << 20)));
        assert_eq!(namespaces.for_read("unknown").effective().gates[0], Some(7));
        namespaces.set_policy(policy(2, &json!({"l0_max": 5})));
        assert_eq!((img.effective().gates[0], namespaces.policy().version), (Some(7), 3));
    }

    #[test]
    fn changing_policies_do_not_add_up_and_lose_no_count() {
        let (_, namespaces) = open();
        for version in 2..20 {
            let name = format!("v{version}");
            namespaces.set_policy(policy(version, &json!({"namespaces": {name.as_str(): {}}})));
            let counters = &namespaces.for_write(&name).expect("declared").counters;
            counters.hit(Tier::L2);
            counters.dropped(Tier::L0, Reason::Gate);
            counters.promoted(Tier::L0);
            counters.evicted();
        }
        assert_eq!(names(&namespaces).len(), 3, "other, memcached, v19");
        let hits: u64 = namespaces.snapshot().iter().map(|snapshot| snapshot.hits[2]).sum();
        assert_eq!(hits, 18);
        let mut all = NamespaceSnapshot::default();
        namespaces.snapshot().iter().for_each(|one| all.merge(one));
        assert_eq!((all.promotions[0], all.evictions, all.drops[&(Tier::L0, Reason::Gate)]), (18, 18, 18));
    }

    #[test]
    fn everything_is_counted_once() {
        let (_, namespaces) = open();
        let counters = &namespaces.for_write("img").expect("open").counters;
        counters.stored(&Stored::kept(Tier::L3, Version(1), 10, None));
        counters.dropped(Tier::L0, Reason::Gate);
        counters.promoted(Tier::L2);
        counters.evicted();
        counters.hit(Tier::L0);
        counters.sent(4);
        counters.miss(Reason::Expired);
        counters.refused(Reason::BodyMax);
        counters.deleted(&PurgeReport::default());
        counters.deleted(&PurgeReport { removed: Some(Version(1)), ..PurgeReport::default() });
        counters.purged();
        let mut twice = namespaces.snapshot().into_iter().find(|s| &*s.name == "img").expect("counted");
        twice.merge(&twice.clone());
        assert_eq!((twice.hits, twice.writes, twice.deletes, twice.purges), ([2, 0, 0, 0], 2, 2, 2));
        assert_eq!((twice.bytes_in, twice.bytes_out), (20, 8));
        assert_eq!(twice.misses.iter().collect::<Vec<_>>(), [(Reason::Expired, 2)]);
        assert_eq!(twice.refused.iter().collect::<Vec<_>>(), [(Reason::BodyMax, 2)]);
        assert_eq!((twice.promotions, twice.evictions), ([0, 0, 2, 0], 2));
        assert_eq!(twice.drops, Drops::from([((Tier::L0, Reason::Gate), 2)]));
    }
}
