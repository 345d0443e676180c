//! Reads: L0, then L1 and L2 in the order of the policy, then L3; the first that may answer does.
//!
//! Above L3 an error is a miss, counted. L3's error is the read's: a durable object that may exist is not reported
//! missing. A suspect copy of a durable object is compared with L3 before it is served; a key in doubt is answered
//! by L3 alone (both: see the module above).
//!
//! Where nothing goes on in the shard, a hit in L0 costs one look at an empty table here, and no allocation, lock or
//! atomic operation here or in RAM when its body has at most 16 KiB and is read with `try_copy`, or not at all (tested).
//! Stored headers add their reference counts, which are atomic; larger bodies a pin (see `storage::ram::hit`).

use std::rc::Rc;

use super::{
    Node, Tiers,
    keys::Floor,
    promote::{HitFromL0, HitFromL1PromoteL0, HitFromLower, Lower, MultiHit, Tee},
};
use crate::{
    cache::{CacheError, CacheKey, CacheMeta, Found, HitHandler, Precondition, Storage, Tier, Trust, Version},
    namespace::Namespace,
    policy::{LookupOrder, Mode},
    reason::Reason,
    stats::{ShardStats, add},
};

/// Times a look-up in a cache-only namespace starts over because commits of the shard ran beside it. A key that is
/// moved from one tier to another under the look-up's eyes would be missed in both.
const LOOKUP_TRIES_MAX: usize = 3;

type L3Hit<T> = <<T as Tiers>::L3 as Storage>::Hit;

/// Why a tier above L3 does not answer.
enum Passed<T: Tiers> {
    /// It has nothing to show.
    Missed(Reason),
    /// It had a suspect copy, and L3 another version.
    Replaced(CacheMeta, L3Hit<T>),
    /// It had a suspect copy, and L3 none.
    Absent(Reason),
}

impl<T: Tiers> Node<T> {
    pub(super) async fn find(self: &Rc<Self>, key: &CacheKey) -> Result<Found<MultiHit<T>>, CacheError> {
        let space = self.namespaces.for_read(key.namespace());
        let mut tries = 0;
        loop {
            let changes = self.keys.changes();
            let found = self.look(key, &space).await;
            tries += 1;
            if let Ok(Found::Miss(reason)) = &found {
                let overtaken = self.keys.changes() != changes && space.with(|rules| rules.mode == Mode::CacheOnly);
                if overtaken && tries < LOOKUP_TRIES_MAX {
                    continue;
                }
                space.counters.miss(*reason);
            }
            return found;
        }
    }

    async fn look(self: &Rc<Self>, key: &CacheKey, space: &Rc<Namespace>) -> Result<Found<MultiHit<T>>, CacheError> {
        let (uses_l0, durable) = space.with(|rules| (rules.tiers[0], rules.mode == Mode::Durable));
        let mut why = Reason::NotFound;
        if uses_l0 {
            match self.ask(Tier::L0, Some(&self.l0), key, durable).await? {
                Ok((meta, hit)) => {
                    let served = self.served(key, space, Tier::L0, &meta);
                    return Ok(Found::Hit(meta, MultiHit::L0(HitFromL0::new(hit, served))));
                }
                Err(Passed::Missed(reason)) => why = reason,
                Err(Passed::Replaced(meta, hit)) => return Ok(self.from_l3(key, space, meta, hit, Tee::off())),
                Err(Passed::Absent(reason)) => return Ok(self.absent(key, reason)),
            }
        }
        let rules = space.effective();
        // Before any tier below is asked: a commit that slips between the answer and its registration would not
        // poison the fill, nor raise the floor for this read.
        let ticket = self.keys.ticket(key);
        let order = match rules.lookup_order {
            LookupOrder::L1First => [Tier::L1, Tier::L2],
            // L2 misses at no cost when its index in RAM does not hold the key.
            LookupOrder::L2First => [Tier::L2, Tier::L1],
        };
        for tier in order.into_iter().filter(|tier| rules.tiers[*tier as usize]) {
            let passed = if tier == Tier::L1 {
                match self.ask(tier, self.l1.as_ref(), key, durable).await? {
                    Ok((meta, hit)) => {
                        let tee = Tee::plan(self, key, &rules, tier, &meta, ticket);
                        let served = self.served(key, space, tier, &meta);
                        let hit = HitFromL1PromoteL0::new(hit, &meta, tee, served);
                        return Ok(Found::Hit(meta, MultiHit::L1(hit)));
                    }
                    Err(passed) => passed,
                }
            } else {
                match self.ask(tier, self.l2.as_ref(), key, durable).await? {
                    Ok((meta, hit)) => {
                        let tee = Tee::plan(self, key, &rules, tier, &meta, ticket);
                        let served = self.served(key, space, tier, &meta);
                        let resume = durable.then(|| (self.clone(), key.clone()));
                        let hit = HitFromLower::new(Lower::L2(hit), &meta, tee, served, resume);
                        return Ok(Found::Hit(meta, MultiHit::Lower(hit)));
                    }
                    Err(passed) => passed,
                }
            };
            match passed {
                Passed::Missed(reason) if why == Reason::NotFound => why = reason,
                Passed::Missed(_) => {}
                Passed::Replaced(meta, hit) => {
                    let tee = Tee::plan(self, key, &rules, Tier::L3, &meta, ticket);
                    return Ok(self.from_l3(key, space, meta, hit, tee));
                }
                Passed::Absent(reason) => return Ok(self.absent(key, reason)),
            }
        }
        if !durable {
            return Ok(Found::Miss(why));
        }
        Ok(match self.ask_l3(key).await? {
            Found::Hit(meta, hit) => {
                let tee = Tee::plan(self, key, &rules, Tier::L3, &meta, ticket);
                self.from_l3(key, space, meta, hit, tee)
            }
            Found::Miss(reason) => self.absent(key, reason),
        })
    }

    fn from_l3(
        self: &Rc<Self>,
        key: &CacheKey,
        space: &Rc<Namespace>,
        meta: CacheMeta,
        hit: L3Hit<T>,
        tee: Tee<T>,
    ) -> Found<MultiHit<T>> {
        let served = self.served(key, space, Tier::L3, &meta);
        let hit = HitFromLower::new(Lower::L3(hit), &meta, tee, served, None);
        Found::Hit(meta, MultiHit::Lower(hit))
    }

    /// L3 holds nothing live, and the reader is told so.
    fn absent(&self, key: &CacheKey, reason: Reason) -> Found<MultiHit<T>> {
        self.keys.shown(key, None);
        Found::Miss(reason)
    }

    /// Asks one tier above L3 for a copy that may be served. A suspect copy of a durable object may if L3 holds the
    /// same version. One in a cache-only namespace is from a time when that was durable, and nobody can say any more
    /// whether it was removed.
    async fn ask<S: Storage>(
        &self,
        tier: Tier,
        storage: Option<&S>,
        key: &CacheKey,
        durable: bool,
    ) -> Result<Result<(CacheMeta, S::Hit), Passed<T>>, CacheError> {
        let Some(storage) = storage else { return Ok(Err(Passed::Missed(Reason::NotFound))) };
        let (meta, mut hit) = match self.probe(tier, storage, key).await {
            Found::Hit(meta, hit) => (meta, hit),
            Found::Miss(reason) => return Ok(Err(Passed::Missed(reason))),
        };
        if hit.trust() == Trust::Trusted {
            return Ok(Ok((meta, hit)));
        }
        let passed = if durable {
            match self.ask_l3(key).await? {
                Found::Hit(theirs, _) if theirs.version == meta.version => {
                    hit.confirm();
                    add(&self.stats.suspects_confirmed, 1);
                    return Ok(Ok((meta, hit)));
                }
                Found::Hit(theirs, hit) => Passed::Replaced(theirs, hit),
                Found::Miss(reason) => Passed::Absent(reason),
            }
        } else {
            Passed::Missed(Reason::Suspect)
        };
        add(&self.stats.suspects_removed, 1);
        let stats = self.stats.tier(tier);
        stats.misses.count(Reason::Suspect);
        // This copy and older ones: a commit may have put a newer one there meanwhile. If it fails, the copy stays
        // suspect and is compared again.
        let above = Precondition::OlderThan(Version(meta.version.0.saturating_add(1)));
        if let Err(failed) = self.purge_tier(tier, key, above).await {
            stats.errors.count(failed.reason());
        }
        Ok(Err(passed))
    }

    /// What a tier above L3 may show, suspect or not.
    async fn probe<S: Storage>(&self, tier: Tier, storage: &S, key: &CacheKey) -> Found<S::Hit> {
        if self.keys.floor(key).l3_only {
            return Found::Miss(Reason::OutcomeUnknown);
        }
        let stats = self.stats.tier(tier);
        let reason = match storage.find(key).await {
            Ok(Found::Hit(meta, hit)) => {
                // Looked at again: what may be shown can have changed while the tier was asked.
                let Floor { version, l3_only } = self.keys.floor(key);
                if !l3_only && meta.version >= version && !self.is_fenced(tier, meta.version) {
                    return Found::Hit(meta, hit);
                }
                Reason::Superseded
            }
            Ok(Found::Miss(reason)) => reason,
            Err(failed) => {
                stats.errors.count(failed.reason());
                failed.reason()
            }
        };
        stats.misses.count(reason);
        Found::Miss(reason)
    }

    /// Counts a hit that is about to be served.
    fn served(&self, key: &CacheKey, space: &Rc<Namespace>, tier: Tier, meta: &CacheMeta) -> Served {
        self.versions.observe(meta.version);
        self.keys.shown(key, Some(meta.version));
        add(&self.stats.tier(tier).hits, 1);
        let space = self.namespaces.for_hit(space, key.namespace());
        space.counters.hit(tier);
        Served { stats: self.stats.clone(), space: space.into_owned() }
    }

    /// Asks L3. Its answer may end the key's doubt.
    async fn ask_l3(&self, key: &CacheKey) -> Result<Found<L3Hit<T>>, CacheError> {
        let Some(l3) = &self.l3 else {
            return Err(CacheError::Unavailable { reason: Reason::TierOff, cause: None });
        };
        let doubt = self.keys.doubt(key);
        let stats = self.stats.tier(Tier::L3);
        let found = l3.find(key).await.inspect_err(|failed| stats.errors.count(failed.reason()))?;
        let live = match &found {
            Found::Hit(meta, _) => Some(meta.version),
            Found::Miss(reason) => {
                stats.misses.count(*reason);
                None
            }
        };
        if let Some(doubt) = doubt {
            self.keys.answered(key, doubt, live);
        }
        Ok(found)
    }
}

/// Where the bytes of a hit are counted.
pub(super) struct Served {
    stats: Rc<ShardStats>,
    space: Rc<Namespace>,
}

impl Served {
    pub(super) fn bytes(&self, tier: Tier, bytes: usize) {
        add(&self.stats.tier(tier).bytes_served, bytes as u64);
        self.space.counters.sent(bytes as u64);
    }
}
