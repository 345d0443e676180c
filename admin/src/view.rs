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

mod stats;

pub use self::stats::{
    CommitsView, DoorView, HeartbeatView, LatencyView, MemoryView, NamespaceMode, NamespaceTierView, NamespaceView,
    ShardView, StatsView, TierState, TierView, TiersView, TotalsView,
};

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
    /// By tier (`l0` to `l3`); a tier that the namespace does not use is absent.
    pub tiers: BTreeMap<String, PurgeTierView>,
}

/// What a purge did in one tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PurgeTierView {
    /// What happened.
    pub outcome: PurgeOutcome,
}

/// What a purge did in one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PurgeOutcome {
    /// A copy was there and is gone.
    Removed,
    /// No copy was there.
    Absent,
    /// The node runs without this tier.
    Off,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Reason;

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
}
