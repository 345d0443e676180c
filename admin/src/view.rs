//! The only serialised types of the admin door.
//!
//! Names are stable, snake_case, and carry their unit (`_bytes`, `_seconds`, `_ms`, `_us`); a number without one
//! is a count. Counters count from the start of the process and only grow. Maps are ordered, so that two equal
//! states give equal bytes. A member may be added at any time; none is renamed or given another meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::control::Health;

/// Counts by the stable name of a reason.
pub type Reasons = BTreeMap<String, u64>;

/// The policy in effect. Served as the bare document with the version in `ETag`, so that what was read can be
/// edited and put back as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyView {
    /// The whole policy: a JSON object whose members the node defines.
    pub document: Value,
    /// Grows with every change.
    pub version: u64,
}

/// Answer of `/healthz` and `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// The worst that holds.
    pub status: HealthStatus,
    /// The process works.
    pub live: bool,
    /// Requests should be sent here.
    pub ready: bool,
    /// Why the status is not `ok`.
    pub reasons: Vec<ReasonView>,
}

/// One word for the state of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// All is well.
    Ok,
    /// Serving, with something wrong: see the reasons.
    Degraded,
    /// Alive, but not to be sent traffic.
    Unready,
    /// To be restarted.
    Down,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasonView {
    /// Stable name.
    pub code: String,
    /// One sentence for people.
    pub message: String,
}

impl From<Health> for HealthView {
    fn from(health: Health) -> Self {
        let status = match (health.live, health.ready, health.degraded.is_empty()) {
            (false, _, _) => HealthStatus::Down,
            (true, false, _) => HealthStatus::Unready,
            (true, true, false) => HealthStatus::Degraded,
            (true, true, true) => HealthStatus::Ok,
        };
        let reasons = health.degraded.into_iter();
        let reasons = reasons.map(|reason| ReasonView { code: reason.code.to_owned(), message: reason.message });
        Self { status, live: health.live, ready: health.ready, reasons: reasons.collect() }
    }
}

/// What was built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildView {
    /// Package name.
    pub name: String,
    /// Package version.
    pub version: String,
    /// Source revision, if the build knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// `release` or `debug`.
    pub profile: String,
}

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
    /// Whether its loop turns.
    pub heartbeat: HeartbeatView,
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
    /// Works in part, or is out of reach for now.
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
    /// Objects committed to it, fills and promotions included.
    pub writes: u64,
    /// Operations that failed on the medium; none of them is a miss.
    pub errors: u64,
    /// Bytes it holds now, its own overhead included.
    pub bytes: u64,
    /// Bytes it can hold; absent if nothing bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Objects it holds now.
    pub objects: u64,
    /// Objects that left to make room.
    pub evictions: u64,
    /// Objects copied up into it because a lower tier answered.
    pub promotions: u64,
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
        self.writes += other.writes;
        self.errors += other.errors;
        self.bytes += other.bytes;
        self.capacity_bytes = match (self.capacity_bytes, other.capacity_bytes) {
            (None, capacity) | (capacity, None) => capacity,
            (Some(mine), Some(theirs)) => Some(mine + theirs),
        };
        self.objects += other.objects;
        self.evictions += other.evictions;
        self.promotions += other.promotions;
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
    /// Requests refused or failed, by reason.
    pub rejections: Reasons,
    /// Objects acknowledged.
    pub writes: u64,
    /// Objects deleted by clients.
    pub deletes: u64,
    /// Purges of single keys.
    pub purges: u64,
    /// Body bytes sent to clients.
    pub sent_bytes: u64,
    /// Body bytes taken from clients.
    pub received_bytes: u64,
    /// Bytes its objects take now, if the node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Objects it has now, if the node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
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
    /// Requests refused or failed, by reason.
    pub rejections: Reasons,
    /// Objects acknowledged.
    pub writes: u64,
    /// Every tier over all shards.
    pub tiers: TiersView,
}

impl TotalsView {
    /// Sums shards (connections, requests, tiers) and namespaces (reads and writes). What a tier counts for the
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

/// Body of `POST /v1/purge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    /// Name of the namespace.
    #[schema(pattern = "^[a-z0-9_-]{1,64}$")]
    pub namespace: String,
    /// The key in its URL form: what follows `/{namespace}/` in the request target, still encoded, query included.
    #[schema(min_length = 1, max_length = 4096)]
    pub key: String,
}

/// What a purge removed, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PurgeReport {
    /// As requested.
    pub namespace: String,
    /// As requested, in normal form.
    pub key: String,
    /// By tier (`l0` to `l3`); a tier that is off or not used by the namespace is absent.
    pub tiers: BTreeMap<String, PurgeTierView>,
}

/// What a purge did in one tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PurgeTierView {
    /// What happened.
    pub outcome: PurgeOutcome,
    /// Stable name of the reason, if the outcome has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a purge did in one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PurgeOutcome {
    /// A copy was there and is gone.
    Removed,
    /// No copy was there.
    Absent,
    /// The tier could not be asked; nothing it holds of the key will be served.
    Skipped,
}

/// Every setting in effect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConfigView {
    /// In the order of the documentation.
    pub settings: Vec<SettingView>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SettingView {
    /// Dotted name: `l3.bucket`.
    pub name: String,
    /// The value in effect; `***` in place of a secret, `null` if unset.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
    /// Which file, variable or flag that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Unit of the value: `bytes`, `ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The value is hidden here.
    pub secret: bool,
}

/// Where a setting came from, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Built in, or computed from the machine.
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// The command line.
    Flag,
}

/// An error, as RFC 9457 problem details (`application/problem+json`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: `reason` tells problems apart.
    #[serde(rename = "type")]
    pub kind: String,
    /// The phrase of the status.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable name of the problem, words joined by `-`.
    pub reason: String,
    /// What happened and what to do about it.
    pub detail: String,
    /// JSON pointer (RFC 6901) to the member of the request that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Line of a JSON syntax error, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Column of a JSON syntax error, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// The policy version in effect, when a precondition failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_version: Option<u64>,
    /// The bound that was exceeded, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
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
    use crate::control::Reason;

    fn reasons(pairs: &[(&str, u64)]) -> Reasons {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn health_takes_the_worst_status() {
        let poisoned = vec![Reason { code: "tier-poisoned", message: "shard 1".into() }];
        let table = [
            (true, true, vec![], HealthStatus::Ok),
            (true, true, poisoned.clone(), HealthStatus::Degraded),
            (true, false, poisoned, HealthStatus::Unready),
            (false, true, vec![], HealthStatus::Down),
        ];
        for (live, ready, degraded, status) in table {
            assert_eq!(HealthView::from(Health { live, ready, degraded }).status, status);
        }
    }

    #[test]
    fn totals_sum_shards_and_namespaces() {
        let tier = |hits, capacity_bytes, state| TierView {
            hits,
            capacity_bytes,
            state,
            drops: reasons(&[("gate", hits)]),
            ..TierView::default()
        };
        let shard = |l0, l2| ShardView {
            connections: 2,
            requests: 5,
            tiers: TiersView { l0: Some(l0), l2, ..TiersView::default() },
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
        assert_eq!(names, ["l0", "l2"]);
        let l0 = totals.tiers.l0.expect("both shards have one");
        assert_eq!((l0.hits, l0.capacity_bytes, l0.state), (7, Some(30), TierState::Poisoned));
        assert_eq!(l0.drops, reasons(&[("gate", 7)]));
        assert_eq!(TotalsView::of(&[], &BTreeMap::new()).hit_ratio, 0.0);
    }
}
