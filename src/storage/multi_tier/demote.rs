//! What leaves L0 and is written to flash then (`l2_fill = on_evict`).
//!
//! Owns a bounded queue and the one task that empties it. A demotion is a fill like any other: registered in the key
//! table at the moment of eviction, when L0's copy was the current one, poisoned by any commit after it. An object is
//! in neither tier while it is on its way, which a cache may. What does not fit the queue is dropped, counted.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use bytes::Bytes;
use engine::rt::Rt;

use super::{Node, Tiers, keys::Fill, promote::why};
use crate::{
    cache::{CacheKey, CacheMeta, MissHandler, Precondition, Storage, Tier},
    namespace::Namespace,
    policy::L2Fill,
    reason::Reason,
    stats::add,
};

/// What a queued object counts for besides its body, in bytes.
const OVERHEAD_BYTES: usize = 512;

/// Objects on their way from L0 to L2.
#[derive(Default)]
pub(super) struct Demotions {
    queue: RefCell<VecDeque<Demotion>>,
    bytes: Cell<usize>,
    running: Cell<bool>,
}

struct Demotion {
    fill: Fill,
    key: CacheKey,
    meta: CacheMeta,
    body: Bytes,
}

impl Demotion {
    fn cost(&self) -> usize {
        self.body.len() + self.meta.headers.len() + self.key.path().len() + OVERHEAD_BYTES
    }
}

impl<T: Tiers> Node<T> {
    pub(super) fn evicted_from_l0(self: &Rc<Self>, key: CacheKey, meta: CacheMeta, body: Bytes) {
        add(&self.stats.tier(Tier::L0).evictions, 1);
        let space = self.namespaces.for_read(key.namespace());
        match self.queue_demotion(&space, key, meta, body) {
            Ok(true) if !self.demotions.running.replace(true) => {
                let node = self.clone();
                self.rt.spawn(async move { node.demote_all().await });
            }
            Ok(_) => {}
            Err(reason) => self.demotion_dropped(&space, reason),
        }
    }

    fn demotion_dropped(&self, space: &Namespace, reason: Reason) {
        self.stats.tier(Tier::L2).demotion_drops.count(reason);
        space.counters.dropped(Tier::L2, reason);
    }

    /// `false`: the rules do not want it on flash.
    fn queue_demotion(&self, space: &Namespace, key: CacheKey, meta: CacheMeta, body: Bytes) -> Result<bool, Reason> {
        let length = body.len() as u64;
        let admitted = space.with(|rules| match self.admits(rules, Tier::L2, length) {
            _ if rules.l2_fill(length) != L2Fill::OnEvict => Ok(false),
            Err(Reason::TierOff) => Ok(false),
            admitted => admitted.map(|()| true),
        })?;
        if !admitted {
            return Ok(false);
        }
        if meta.is_expired(self.now_ms()) {
            return Err(Reason::Expired);
        }
        if self.is_fenced(Tier::L0, meta.version) || self.is_fenced(Tier::L2, meta.version) {
            return Err(Reason::Superseded);
        }
        let ticket = self.keys.ticket(&key);
        let fill = ticket.refused().map_or_else(|| ticket.fill(Tier::L2).ok_or(Reason::FillRunning), Err)?;
        let demotion = Demotion { fill, key, meta, body };
        let bytes = self.demotions.bytes.get() + demotion.cost();
        if bytes > self.settings.demote_bytes_max {
            return Err(Reason::QueueFull);
        }
        self.demotions.bytes.set(bytes);
        self.demotions.queue.borrow_mut().push_back(demotion);
        Ok(true)
    }

    async fn demote_all(&self) {
        loop {
            let next = self.demotions.queue.borrow_mut().pop_front();
            let Some(demotion) = next else { break };
            self.demotions.bytes.set(self.demotions.bytes.get() - demotion.cost());
            let space = self.namespaces.for_read(demotion.key.namespace());
            match self.demote(demotion).await {
                Ok(()) => add(&self.stats.tier(Tier::L2).demotions, 1),
                Err(reason) => self.demotion_dropped(&space, reason),
            }
        }
        self.demotions.running.set(false);
    }

    async fn demote(&self, demotion: Demotion) -> Result<(), Reason> {
        let Demotion { fill, key, meta, body } = demotion;
        let Some(l2) = &self.l2 else { return Err(Reason::TierOff) };
        let older = Precondition::OlderThan(meta.version);
        let mut miss = l2.get_miss_handler(&key, meta, older).await.map_err(|failed| why(&failed))?;
        miss.write_body(body, true).await.map_err(|failed| why(&failed))?;
        self.commit_fill::<T::L2>(fill, miss).await
    }
}
