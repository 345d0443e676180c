//! The key table of a shard: who may change a key, which fills of it run, and whether its last commit is in doubt.
//!
//! Owns one entry per key with something going on, and nothing for any other key:
//!
//! - the **turn**, a first-come lock. A write, purge or change of metadata holds it from before its precondition is
//!   decided until every tier agrees with the outcome;
//! - **tickets** of look-ups and fills. A turn that begins poisons every ticket given out before it, so a fill of
//!   what was read before a commit can not publish after it (INV-2). No ticket given out while a turn is held or the
//!   key is in doubt allows a fill. A ticket is taken *before* the tier it fills from is asked, so that nothing slips
//!   between the read and its registration;
//! - **publications**: a fill whose tier is committing it right now. It is the shared side of the turn's lock and
//!   never waits: a turn poisons first and then waits until publications are over, so a tier whose commit really
//!   takes time (a log that waits for a buffer) cannot bring an old version back after a newer one was acknowledged;
//! - the **floor**: the highest version that a commit has made true or a read beside it has shown. Reads do not fall
//!   below it as long as the entry lives, which is as long as there is one that could: a look-up that found the old
//!   copy in L2, say, and was overtaken on its way back. L0 answers look-ups in the step it is asked in and so needs
//!   no ticket;
//! - the **doubt** of a durable commit whose outcome is not known, until the store shows what became of it.
//!
//! Bounds: [`TURN_WAITERS_MAX`] a key, [`super::Settings::fills_max`] tickets that allow fills and [`super::Settings::in_doubt_max`]
//! doubts a shard; what a request beyond them gets is said at each function. Left to others: what is committed and
//! filled, and what to do about it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::{
    cache::{CacheKey, Tier, Version},
    reason::Reason,
    stats::ShardStats,
};

/// Commits of one key that may wait for its turn; one more is refused as [`Reason::Overload`].
pub(super) const TURN_WAITERS_MAX: usize = 1024;

/// The key table. One per shard, shared by everything that reads or writes on it.
pub(super) struct Keys {
    table: RefCell<Table>,
    /// Turns begun or ended so far: tells a look-up whether anything was committed beside it.
    changes: Cell<u64>,
    fills_max: usize,
    in_doubt_max: usize,
    stats: Rc<ShardStats>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<CacheKey, Entry, FixedState>,
    tickets: usize,
    in_doubt: usize,
    /// Durable commits under way: each may yet need a doubt, so a place is kept for it.
    deciding: usize,
    /// Turns held or waited for, and publications.
    busy: usize,
    stopping: bool,
    doubts: u64,
    idle: Vec<Waker>,
}

#[derive(Default)]
struct Entry {
    /// Counts turns; a ticket of an earlier count is poisoned.
    epoch: u64,
    held: bool,
    waiters: VecDeque<Rc<Waiter>>,
    tickets: usize,
    /// The epoch of the fill that runs into L0, L1, L2.
    filling: [Option<u64>; 3],
    /// Publications under way into L0, L1, L2.
    publishing: [u32; 3],
    /// The holder of the turn, while it waits for publications.
    settling: Option<Waker>,
    floor: Floor,
    doubt: Option<Doubt>,
}

impl Entry {
    fn is_idle(&self) -> bool {
        // A publication holds a ticket.
        !self.held && self.waiters.is_empty() && self.tickets == 0 && self.doubt.is_none()
    }
}

/// What reads of a key may show at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Floor {
    /// Copies in L0, L1 and L2 below this version are passed over.
    pub(super) version: Version,
    /// Only L3 answers.
    pub(super) l3_only: bool,
}

#[derive(Clone, Copy)]
struct Doubt {
    /// Which doubt: an answer of L3 settles only a doubt that was there when it was asked for.
    id: u64,
    /// The version the unknown commit replaces, if known.
    base: Option<Version>,
}

/// A doubt as a look-up met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DoubtId(u64);

#[derive(Default)]
struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Keys {
    pub(super) fn new(fills_max: usize, in_doubt_max: usize, stats: Rc<ShardStats>) -> Rc<Self> {
        Rc::new(Self { table: RefCell::default(), changes: Cell::new(0), fills_max, in_doubt_max, stats })
    }

    /// Waits for the key's turn, first come first served, and poisons every fill of the key. Dropping the future
    /// gives up the place in the queue.
    ///
    /// # Errors
    /// [`Reason::Stopping`], or [`Reason::Overload`] when too many wait.
    pub(super) async fn turn(self: &Rc<Self>, key: &CacheKey) -> Result<Turn, Reason> {
        let waiter = {
            let mut table = self.table.borrow_mut();
            if table.stopping {
                return Err(Reason::Stopping);
            }
            let entry = table.entries.entry(key.clone()).or_default();
            let waiter = if entry.held {
                if entry.waiters.len() >= TURN_WAITERS_MAX {
                    return Err(Reason::Overload);
                }
                let waiter = Rc::<Waiter>::default();
                entry.waiters.push_back(waiter.clone());
                Some(waiter)
            } else {
                entry.held = true;
                None
            };
            table.busy += 1;
            waiter
        };
        if let Some(waiter) = waiter {
            let mut place = Place { keys: self, key, waiter: Some(&waiter) };
            poll_fn(|cx| {
                if waiter.granted.get() {
                    return Poll::Ready(());
                }
                *waiter.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            place.waiter = None;
        }
        self.changes.set(self.changes.get() + 1);
        if let Some(entry) = self.table.borrow_mut().entries.get_mut(key) {
            entry.epoch += 1;
        }
        Ok(Turn { keys: self.clone(), key: key.clone(), deciding: false })
    }

    /// Hands the turn to the next in line.
    fn pass_on(&self, key: &CacheKey) {
        let mut table = self.table.borrow_mut();
        self.changes.set(self.changes.get() + 1);
        let Some(entry) = table.entries.get_mut(key) else { return };
        entry.floor.l3_only = false;
        entry.settling = None;
        let next = entry.waiters.pop_front();
        // Held without a gap when handed over: nobody else may come between.
        entry.held = next.is_some();
        let woken = next.and_then(|next| {
            next.granted.set(true);
            next.waker.borrow_mut().take()
        });
        table.tidy(key);
        let idle = table.less_busy();
        drop(table);
        woken.into_iter().chain(idle).for_each(Waker::wake);
    }

    fn leave_queue(&self, key: &CacheKey, waiter: &Rc<Waiter>) {
        let mut table = self.table.borrow_mut();
        if let Some(entry) = table.entries.get_mut(key) {
            entry.waiters.retain(|other| !Rc::ptr_eq(other, waiter));
        }
        let idle = table.less_busy();
        drop(table);
        idle.into_iter().for_each(Waker::wake);
    }

    /// Registers a look-up of `key`, which may lead to fills unless the ticket says why not. Must be called before
    /// the tiers below L0 are asked. There are as many as requests under way.
    pub(super) fn ticket(self: &Rc<Self>, key: &CacheKey) -> Ticket {
        let mut table = self.table.borrow_mut();
        let (stopping, full) = (table.stopping, table.tickets >= self.fills_max);
        let entry = table.entries.entry(key.clone()).or_default();
        let refused = if stopping {
            Some(Reason::Stopping)
        } else if entry.held {
            Some(Reason::Poisoned)
        } else if entry.doubt.is_some() {
            Some(Reason::OutcomeUnknown)
        } else if full {
            Some(Reason::Overload)
        } else {
            None
        };
        entry.tickets += 1;
        let epoch = entry.epoch;
        table.tickets += 1;
        self.stats.fills.set(table.tickets as u64);
        Ticket { keys: self.clone(), key: key.clone(), epoch, refused }
    }

    /// What reads of `key` may show now. Free when nothing goes on in the shard.
    pub(super) fn floor(&self, key: &CacheKey) -> Floor {
        let table = self.table.borrow();
        if table.entries.is_empty() {
            return Floor::default();
        }
        table.entries.get(key).map_or_else(Floor::default, |entry| Floor {
            l3_only: entry.floor.l3_only || entry.doubt.is_some(),
            ..entry.floor
        })
    }

    /// Whether somebody holds the key's turn.
    pub(super) fn is_held(&self, key: &CacheKey) -> bool {
        self.table.borrow().entries.get(key).is_some_and(|entry| entry.held)
    }

    /// Notes what a read is about to show (`None`: L3 holds nothing live). While a turn is held, what one read has
    /// shown no later one falls below: the commit may have taken effect before its holder knows.
    pub(super) fn shown(&self, key: &CacheKey, version: Option<Version>) {
        let mut table = self.table.borrow_mut();
        if table.entries.is_empty() {
            return;
        }
        let Some(entry) = table.entries.get_mut(key).filter(|entry| entry.held) else { return };
        match version {
            Some(version) => entry.floor.version = entry.floor.version.max(version),
            None => entry.floor.l3_only = true,
        }
    }

    /// The doubt of `key`, to be taken before L3 is asked.
    pub(super) fn doubt(&self, key: &CacheKey) -> Option<DoubtId> {
        self.table.borrow().entries.get(key)?.doubt.map(|doubt| DoubtId(doubt.id))
    }

    /// Ends the doubt `id` if what L3 answered since proves it over.
    ///
    /// The unknown commit is a compare-and-swap on its base. Another live version than the base: it has happened or
    /// never will. Nothing live: no copy of anything older can exist above L3 (they were removed when the doubt
    /// began, and fills come from live answers only), so even a commit that still comes true shows nothing old after
    /// something new. The base itself: it may still come true, and a copy filled now would be old then.
    pub(super) fn answered(&self, key: &CacheKey, id: DoubtId, live: Option<Version>) {
        let mut table = self.table.borrow_mut();
        let Some(entry) = table.entries.get_mut(key) else { return };
        let Some(doubt) = entry.doubt.filter(|doubt| doubt.id == id.0 && !entry.held) else { return };
        if live.is_none() || doubt.base.is_some_and(|base| live != Some(base)) {
            entry.doubt = None;
            self.set_in_doubt(&mut table, -1);
            table.tidy(key);
        }
    }

    /// Turns begun or ended so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Keys in doubt.
    pub(super) fn in_doubt(&self) -> usize {
        self.table.borrow().in_doubt
    }

    /// Keys with anything going on.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.borrow().entries.len()
    }

    /// Refuses turns and tickets from now on, and completes when no turn is held or waited for and nothing is being
    /// published.
    pub(super) async fn close(&self) {
        self.table.borrow_mut().stopping = true;
        poll_fn(|cx| {
            let mut table = self.table.borrow_mut();
            if table.busy == 0 {
                return Poll::Ready(());
            }
            table.idle.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether [`Keys::close`] was called.
    pub(super) fn is_stopping(&self) -> bool {
        self.table.borrow().stopping
    }

    fn set_in_doubt(&self, table: &mut Table, change: isize) {
        table.in_doubt = table.in_doubt.saturating_add_signed(change);
        self.stats.in_doubt.set(table.in_doubt as u64);
    }
}

impl Table {
    fn tidy(&mut self, key: &CacheKey) {
        if self.entries.get(key).is_some_and(Entry::is_idle) {
            self.entries.remove(key);
        }
    }

    /// One turn or publication less; who waits for the last one.
    fn less_busy(&mut self) -> Vec<Waker> {
        self.busy -= 1;
        if self.busy == 0 { std::mem::take(&mut self.idle) } else { Vec::new() }
    }
}

/// A place in the queue for a turn.
struct Place<'a> {
    keys: &'a Keys,
    key: &'a CacheKey,
    /// `None` once the turn was taken.
    waiter: Option<&'a Rc<Waiter>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        match self.waiter {
            // Granted and never taken: the next in line gets it.
            Some(waiter) if waiter.granted.get() => self.keys.pass_on(self.key),
            Some(waiter) => self.keys.leave_queue(self.key, waiter),
            None => {}
        }
    }
}

/// The right to change a key. Dropping it hands it on.
pub(super) struct Turn {
    keys: Rc<Keys>,
    key: CacheKey,
    deciding: bool,
}

impl Turn {
    fn with<T>(&self, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.keys.table.borrow_mut().entries.get_mut(&self.key).map(change)
    }

    /// Completes when nothing of the key is being published any more.
    pub(super) async fn settled(&self) {
        poll_fn(|cx| {
            let settled = self.with(|entry| {
                let settled = entry.publishing == [0; 3];
                entry.settling = (!settled).then(|| cx.waker().clone());
                settled
            });
            if settled.unwrap_or(true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The tiers that are publishing a fill of the key at this moment, indexed by [`Tier`].
    pub(super) fn publishing(&self) -> [bool; 3] {
        self.with(|entry| entry.publishing.map(|n| n > 0)).unwrap_or_default()
    }

    /// From now on no read shows a copy below `version`.
    pub(super) fn raise(&self, version: Version) {
        self.with(|entry| entry.floor.version = entry.floor.version.max(version));
    }

    /// Keeps a place for a doubt, to be called before L3 is asked to commit. Until [`Turn::decided`] or
    /// [`Turn::doubted`], dropping the turn leaves the key in doubt.
    ///
    /// # Errors
    /// [`Reason::InDoubtMax`], or [`Reason::Overload`] when only the commits that run now keep the places.
    pub(super) fn decide(&mut self) -> Result<(), Reason> {
        let mut table = self.keys.table.borrow_mut();
        // A key in doubt has its place, and a commit is how it gets rid of it.
        let has_place = table.entries.get(&self.key).is_some_and(|entry| entry.doubt.is_some());
        if !has_place && table.in_doubt >= self.keys.in_doubt_max {
            return Err(Reason::InDoubtMax);
        }
        if !has_place && table.in_doubt + table.deciding >= self.keys.in_doubt_max {
            return Err(Reason::Overload);
        }
        table.deciding += 1;
        self.deciding = true;
        Ok(())
    }

    /// The outcome is certain. `committed`: L3 is past what any earlier commit in doubt could replace, so the key is
    /// in doubt no more.
    pub(super) fn decided(&mut self, committed: bool) {
        if !std::mem::take(&mut self.deciding) {
            return;
        }
        let mut table = self.keys.table.borrow_mut();
        table.deciding -= 1;
        let doubt = table.entries.get_mut(&self.key).filter(|_| committed).and_then(|entry| entry.doubt.take());
        if doubt.is_some() {
            self.keys.set_in_doubt(&mut table, -1);
        }
    }

    /// The outcome is not known: the key is in doubt from now on, and only L3 answers for it.
    pub(super) fn doubted(&mut self, base: Option<Version>) {
        if !std::mem::take(&mut self.deciding) {
            return;
        }
        let mut table = self.keys.table.borrow_mut();
        table.deciding -= 1;
        table.doubts += 1;
        let id = table.doubts;
        let Some(entry) = table.entries.get_mut(&self.key) else { return };
        // An earlier doubt is covered: the later commit saw L3 at its base after the earlier one was asked for.
        let earlier = entry.doubt.replace(Doubt { id, base });
        if earlier.is_none() {
            self.keys.set_in_doubt(&mut table, 1);
        }
    }

    /// A fill of what this turn committed that goes on after the turn; the next turn poisons it.
    pub(super) fn fill(&self, tier: Tier) -> Option<Fill> {
        let mut table = self.keys.table.borrow_mut();
        let entry = table.entries.get_mut(&self.key)?;
        entry.tickets += 1;
        let epoch = entry.epoch;
        table.tickets += 1;
        self.keys.stats.fills.set(table.tickets as u64);
        drop(table);
        Ticket { keys: self.keys.clone(), key: self.key.clone(), epoch, refused: None }.fill(tier)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Dropped between the question and its answer.
        self.doubted(None);
        self.keys.pass_on(&self.key);
    }
}

/// A registered look-up. Costs no allocation. Dropping it ends the registration.
pub(super) struct Ticket {
    keys: Rc<Keys>,
    key: CacheKey,
    epoch: u64,
    /// Why it allows no fill.
    refused: Option<Reason>,
}

impl Ticket {
    /// Why it allows no fill, if it does not: [`Reason::Poisoned`] (given out beside a commit),
    /// [`Reason::OutcomeUnknown`] (in doubt), [`Reason::Overload`] (too many), [`Reason::Stopping`].
    pub(super) fn refused(&self) -> Option<Reason> {
        self.refused
    }

    /// Whether a turn of the key began since the ticket was given out.
    pub(super) fn is_poisoned(&self) -> bool {
        self.keys.table.borrow().entries.get(&self.key).is_none_or(|entry| entry.epoch != self.epoch)
    }

    /// Begins a fill of `tier` (not L3), which the ticket must allow; `None` when another one of the key and tier
    /// runs already.
    pub(super) fn fill(&self, tier: Tier) -> Option<Fill> {
        let mut table = self.keys.table.borrow_mut();
        let entry = table.entries.get_mut(&self.key)?;
        let filling = &mut entry.filling[tier as usize];
        // One that was poisoned may run on for a while; it is in nobody's way.
        if *filling == Some(self.epoch) {
            return None;
        }
        *filling = Some(self.epoch);
        entry.tickets += 1;
        table.tickets += 1;
        let ticket = Ticket { keys: self.keys.clone(), key: self.key.clone(), epoch: self.epoch, refused: None };
        Some(Fill { ticket, tier })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.keys.table.borrow_mut();
        table.tickets -= 1;
        self.keys.stats.fills.set(table.tickets as u64);
        if let Some(entry) = table.entries.get_mut(&self.key) {
            entry.tickets -= 1;
        }
        table.tidy(&self.key);
    }
}

/// A fill of one tier. Dropping it ends the fill.
pub(super) struct Fill {
    ticket: Ticket,
    tier: Tier,
}

impl Fill {
    /// The tier it fills.
    pub(super) fn tier(&self) -> Tier {
        self.tier
    }

    /// Whether a turn of the key began since: it will not be published.
    pub(super) fn is_poisoned(&self) -> bool {
        self.ticket.is_poisoned()
    }

    /// Begins the publication; `None` when the fill was poisoned. There must be no await between this and the first
    /// poll of the tier's `finish`, and the publication must live until `finish` is over.
    pub(super) fn publish(self) -> Option<Publication> {
        if self.ticket.is_poisoned() { None } else { Some(self.begin()) }
    }

    /// [`Fill::publish`] without the check: the fault that the simulator plants.
    pub(super) fn publish_unchecked(self) -> Publication {
        self.begin()
    }

    fn begin(self) -> Publication {
        let mut table = self.ticket.keys.table.borrow_mut();
        table.busy += 1;
        if let Some(entry) = table.entries.get_mut(&self.ticket.key) {
            entry.publishing[self.tier as usize] += 1;
        }
        drop(table);
        Publication { fill: self }
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        if let Some(entry) = self.ticket.keys.table.borrow_mut().entries.get_mut(&self.ticket.key) {
            let filling = &mut entry.filling[self.tier as usize];
            if *filling == Some(self.ticket.epoch) {
                *filling = None;
            }
        }
    }
}

/// A fill that its tier is committing. Turns wait until it is dropped.
pub(super) struct Publication {
    fill: Fill,
}

impl Drop for Publication {
    fn drop(&mut self) {
        let ticket = &self.fill.ticket;
        let mut table = ticket.keys.table.borrow_mut();
        let settling = table.entries.get_mut(&ticket.key).and_then(|entry| {
            entry.publishing[self.fill.tier as usize] -= 1;
            if entry.publishing == [0; 3] { entry.settling.take() } else { None }
        });
        let idle = table.less_busy();
        drop(table);
        settling.into_iter().chain(idle).for_each(Waker::wake);
    }
}
