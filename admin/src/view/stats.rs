//! What `/v1/stats` answers, and the sums in it.
//!
//! A figure that a part of the node cannot tell is absent rather than 0: the bytes of L3 by shard, the bytes on flash
//! by namespace. Whoever sums takes the absent for nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Reasons;

/// Everything counted on a node, per shard, tier and namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatsView {
    /// Package version of the node.
    pub version: String,
    /// Seconds since the process started to serve.
    pub uptime_seconds: u64,
    /// Version of the policy in effect.
    pub policy_version: u64,
    /// Memory of the process.
    pub memory: MemoryView,
    /// One entry a shard, in order of id.
    pub shards: Vec<ShardView>,
    /// By name of the namespace.
    pub namespaces: BTreeMap<String, NamespaceView>,
    /// The whole node. See [`TotalsView::of`].
    pub totals: TotalsView,
    /// Transactions of the index of L3; absent if the node has no L3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commits: Option<CommitsView>,
    /// One entry for each operation of each door that was used.
    pub latency: Vec<LatencyView>,
}

/// Group commit: how many changes of the index of L3 share a transaction, and with it an fsync.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommitsView {
    /// Transactions committed.
    pub commits: u64,
    /// Changes in them: objects written or deleted, times to live set, purge records.
    pub mutations: u64,
    /// Transactions by how many changes they held: 1, up to 4, up to 16, up to 64, more.
    pub sizes: [u64; 5],
}

/// Memory of the process against its limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryView {
    /// The setting `memory_max`.
    pub max_bytes: u64,
    /// Resident set and huge pages now, if the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
}

/// One shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShardView {
    /// Number of the shard, from 0.
    pub id: u32,
    /// Its share of each tier.
    pub tiers: TiersView,
    /// Client connections open now.
    pub connections: u64,
    /// Requests taken from its connections.
    pub requests: u64,
    /// Requests under way now.
    pub requests_in_flight: u64,
    /// Bytes that the bodies under way are charged: upper bounds of what they hold.
    pub inflight_bytes: u64,
    /// Requests that waited their turn because too many bytes of bodies were under way.
    pub inflight_waits: u64,
    /// What its doors did: `http`.
    pub doors: BTreeMap<String, DoorView>,
    /// Whether its loop turns.
    pub heartbeat: HeartbeatView,
}

/// One door, of one shard or of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoorView {
    /// Answers by operation (`get`; `other` is what the door does not know) and class of status (`2xx`).
    pub answers: BTreeMap<String, BTreeMap<String, u64>>,
    /// Requests that the door or a tier refused or failed, by reason.
    pub refusals: Reasons,
    /// Bodies that were cut while they were sent, by reason.
    pub cuts: Reasons,
    /// Body bytes taken from clients, stored or not.
    pub received_bytes: u64,
    /// Body bytes given to clients, those of error messages included.
    pub sent_bytes: u64,
    /// Connections served, open ones included.
    pub connections_accepted: u64,
    /// Connections turned away because as many were open as may be.
    pub connections_refused: u64,
    /// Connections closed because the client was too slow, or idle for too long.
    pub connections_timed_out: u64,
}

impl DoorView {
    /// Adds another shard's share.
    pub fn add(&mut self, other: &Self) {
        for (op, classes) in &other.answers {
            add_reasons(self.answers.entry(op.clone()).or_default(), classes);
        }
        add_reasons(&mut self.refusals, &other.refusals);
        add_reasons(&mut self.cuts, &other.cuts);
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.connections_accepted += other.connections_accepted;
        self.connections_refused += other.connections_refused;
        self.connections_timed_out += other.connections_timed_out;
    }
}

/// Whether the loop of a shard turns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatView {
    /// Beats so far.
    pub beats: u64,
    /// Milliseconds since the last beat.
    pub age_ms: u64,
    /// Longest gap between two beats so far, in milliseconds.
    pub gap_ms_max: u64,
}

/// The tiers that exist here; one that is off is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TiersView {
    /// RAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l0: Option<TierView>,
    /// Shared network cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l1: Option<TierView>,
    /// Flash log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<TierView>,
    /// Durable storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l3: Option<TierView>,
}

impl TiersView {
    /// The tiers that exist, with their names, top down.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &TierView)> {
        let tiers = [("l0", &self.l0), ("l1", &self.l1), ("l2", &self.l2), ("l3", &self.l3)];
        tiers.into_iter().filter_map(|(name, tier)| tier.as_ref().map(|tier| (name, tier)))
    }

    /// Adds another shard's share.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.l0, &other.l0),
            (&mut self.l1, &other.l1),
            (&mut self.l2, &other.l2),
            (&mut self.l3, &other.l3),
        ];
        for (sum, part) in pairs {
            if let Some(part) = part {
                sum.get_or_insert_default().add(part);
            }
        }
    }
}

/// How a tier is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TierState {
    /// Works.
    #[default]
    Ok,
    /// Works in part: L3 reads and deletes, but has no room for writes.
    Degraded,
    /// Failed in a way it will not come back from before a restart.
    Poisoned,
}

/// One tier, of one shard or of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierView {
    /// How it is; of several shards, the worst.
    pub state: TierState,
    /// Lookups it answered.
    pub hits: u64,
    /// Lookups it was asked and did not answer.
    pub misses: u64,
    /// `misses`, by reason.
    pub misses_by_reason: Reasons,
    /// Objects committed to it, fills and promotions included.
    pub writes: u64,
    /// Operations that failed on the medium.
    pub errors: u64,
    /// `errors`, by reason.
    pub errors_by_reason: Reasons,
    /// Bytes its objects take now: keys, metadata and bodies. Of L2 an estimate. Absent where only the node as a whole
    /// knows (L3 by shard).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes of RAM that its tables take besides, however many objects there are; absent if nobody counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead_bytes: Option<u64>,
    /// Bytes it can hold; absent if nothing bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Objects it holds now; absent as `bytes` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
    /// Objects that left to make room; absent where nothing does (L3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evictions: Option<u64>,
    /// Objects copied up into it because a lower tier answered; absent where there is none (L3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotions: Option<u64>,
    /// Bytes read from the medium.
    pub read_bytes: u64,
    /// Bytes written to the medium.
    pub written_bytes: u64,
    /// What was not kept here, or not promoted here, by reason.
    pub drops: Reasons,
}

impl TierView {
    /// Adds another shard's share.
    pub fn add(&mut self, other: &Self) {
        self.state = self.state.max(other.state);
        self.hits += other.hits;
        self.misses += other.misses;
        add_reasons(&mut self.misses_by_reason, &other.misses_by_reason);
        self.writes += other.writes;
        self.errors += other.errors;
        add_reasons(&mut self.errors_by_reason, &other.errors_by_reason);
        add_known(&mut self.bytes, other.bytes);
        add_known(&mut self.overhead_bytes, other.overhead_bytes);
        add_known(&mut self.capacity_bytes, other.capacity_bytes);
        add_known(&mut self.objects, other.objects);
        add_known(&mut self.evictions, other.evictions);
        add_known(&mut self.promotions, other.promotions);
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        add_reasons(&mut self.drops, &other.drops);
    }
}

/// What the objects of a namespace survive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// Kept in L3; acknowledged when committed there.
    #[default]
    Durable,
    /// Never in L3; may be evicted at any time.
    CacheOnly,
}

/// One namespace, over all shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamespaceView {
    /// What its objects survive.
    pub mode: NamespaceMode,
    /// Reads answered, by the tier that answered (`l0` to `l3`).
    pub hits: Reasons,
    /// Reads answered with "not here", by reason.
    pub misses: Reasons,
    /// Writes, deletes and purges refused or failed, by reason.
    pub rejections: Reasons,
    /// Objects acknowledged.
    pub writes: u64,
    /// Objects deleted by clients.
    pub deletes: u64,
    /// Purges of single keys, by clients and through the admin door.
    pub purges: u64,
    /// Body bytes sent to clients.
    pub sent_bytes: u64,
    /// Body bytes taken from clients.
    pub received_bytes: u64,
    /// What the tiers (`l0` to `l3`) did for it and hold of it, as far as they tell namespaces apart.
    pub tiers: BTreeMap<String, NamespaceTierView>,
}

/// One namespace in one tier, over all shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamespaceTierView {
    /// Bytes of the bodies of its objects now. Absent in L2, whose index has no room for names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Its objects now; absent as `bytes` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
    /// Its objects that left to make room. Absent in L2, which gives up whole segments unread, and in L3, where
    /// nothing leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evictions: Option<u64>,
    /// Its objects copied up into this tier because a lower one answered; absent in L3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotions: Option<u64>,
    /// What was not kept here, or not promoted here, by reason.
    pub drops: Reasons,
}

/// The whole node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TotalsView {
    /// Client connections open now.
    pub connections: u64,
    /// Requests taken.
    pub requests: u64,
    /// Requests under way now.
    pub requests_in_flight: u64,
    /// Bytes that the bodies under way are charged.
    pub inflight_bytes: u64,
    /// Requests that waited their turn because too many bytes of bodies were under way.
    pub inflight_waits: u64,
    /// Reads answered from some tier.
    pub hits: u64,
    /// Reads answered with "not here".
    pub misses: u64,
    /// `hits / (hits + misses)` since the start, 0 to 1; 0 before the first read.
    pub hit_ratio: f64,
    /// `misses`, by reason.
    pub misses_by_reason: Reasons,
    /// Writes, deletes and purges refused or failed, by reason.
    pub rejections: Reasons,
    /// Objects acknowledged.
    pub writes: u64,
    /// Every tier over all shards.
    pub tiers: TiersView,
    /// Every door over all shards.
    pub doors: BTreeMap<String, DoorView>,
}

impl TotalsView {
    /// Sums shards (connections, requests, tiers, doors) and namespaces (reads and writes). What a tier counts for the
    /// node as a whole, such as the bytes in L3, the caller sets on the result.
    #[must_use]
    pub fn of(shards: &[ShardView], namespaces: &BTreeMap<String, NamespaceView>) -> Self {
        let mut totals = Self::default();
        for shard in shards {
            totals.connections += shard.connections;
            totals.requests += shard.requests;
            totals.requests_in_flight += shard.requests_in_flight;
            totals.inflight_bytes += shard.inflight_bytes;
            totals.inflight_waits += shard.inflight_waits;
            totals.tiers.add(&shard.tiers);
            for (name, door) in &shard.doors {
                totals.doors.entry(name.clone()).or_default().add(door);
            }
        }
        for namespace in namespaces.values() {
            totals.hits += namespace.hits.values().sum::<u64>();
            totals.misses += namespace.misses.values().sum::<u64>();
            totals.writes += namespace.writes;
            add_reasons(&mut totals.misses_by_reason, &namespace.misses);
            add_reasons(&mut totals.rejections, &namespace.rejections);
        }
        let reads = totals.hits + totals.misses;
        totals.hit_ratio = if reads == 0 { 0.0 } else { totals.hits as f64 / reads as f64 };
        totals
    }
}

/// Latency of one operation of one door, from the first byte taken to the last byte given to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LatencyView {
    /// `http`, `memcached`, `admin`.
    pub door: String,
    /// Lower-case name of the operation: `get`, `put`.
    pub op: String,
    /// Operations measured.
    pub count: u64,
    /// Median, microseconds.
    pub p50_us: u64,
    /// 90th percentile, microseconds.
    pub p90_us: u64,
    /// 99th percentile, microseconds.
    pub p99_us: u64,
    /// 99.9th percentile, microseconds.
    pub p999_us: u64,
    /// Longest, microseconds.
    pub max_us: u64,
}

fn add_known(sum: &mut Option<u64>, part: Option<u64>) {
    if let Some(part) = part {
        *sum = Some(sum.unwrap_or_default() + part);
    }
}

fn add_reasons(sum: &mut Reasons, part: &Reasons) {
    for (reason, count) in part {
        match sum.get_mut(reason) {
            Some(total) => *total += count,
            None => {
                sum.insert(reason.clone(), *count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(pairs: &[(&str, u64)]) -> Reasons {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn totals_sum_shards_and_namespaces() {
        let tier = |hits, capacity_bytes, state| TierView {
            hits,
            capacity_bytes,
            state,
            bytes: Some(hits),
            misses_by_reason: reasons(&[("expired", hits)]),
            drops: reasons(&[("gate", hits)]),
            ..TierView::default()
        };
        let door = DoorView {
            answers: BTreeMap::from([("get".to_owned(), reasons(&[("2xx", 3)]))]),
            cuts: reasons(&[("corrupted", 1)]),
            connections_refused: 4,
            ..DoorView::default()
        };
        let shard = |l0, l2| ShardView {
            connections: 2,
            requests: 5,
            tiers: TiersView { l0: Some(l0), l2, l3: Some(TierView::default()), ..TiersView::default() },
            doors: BTreeMap::from([("http".to_owned(), door.clone())]),
            ..ShardView::default()
        };
        let shards = [
            shard(tier(3, Some(10), TierState::Ok), None),
            shard(tier(4, Some(20), TierState::Poisoned), Some(tier(1, None, TierState::Ok))),
        ];
        let namespace = NamespaceView {
            hits: reasons(&[("l0", 6), ("l3", 3)]),
            misses: reasons(&[("absent", 2), ("expired", 1)]),
            writes: 9,
            ..NamespaceView::default()
        };
        let namespaces = BTreeMap::from([("a".to_owned(), namespace.clone()), ("b".to_owned(), namespace)]);
        let totals = TotalsView::of(&shards, &namespaces);
        assert_eq!((totals.connections, totals.requests, totals.writes), (4, 10, 18));
        assert_eq!((totals.hits, totals.misses, totals.hit_ratio), (18, 6, 0.75));
        assert_eq!(totals.misses_by_reason, reasons(&[("absent", 4), ("expired", 2)]));
        let names: Vec<_> = totals.tiers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["l0", "l2", "l3"]);
        assert_eq!(
            (totals.tiers.l3.expect("both").bytes, &totals.doors["http"].answers["get"]),
            (None, &reasons(&[("2xx", 6)]))
        );
        assert_eq!((totals.doors["http"].connections_refused, totals.doors["http"].cuts["corrupted"]), (8, 2));
        let l0 = totals.tiers.l0.expect("both shards have one");
        assert_eq!((l0.hits, l0.capacity_bytes, l0.state), (7, Some(30), TierState::Poisoned));
        assert_eq!((l0.bytes, l0.objects, l0.misses_by_reason), (Some(7), None, reasons(&[("expired", 7)])));
        assert_eq!(l0.drops, reasons(&[("gate", 7)]));
        assert_eq!(TotalsView::of(&[], &BTreeMap::new()).hit_ratio, 0.0);
    }
}
