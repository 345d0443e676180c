//! From what shards report to what the admin door shows. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use admin::{
    Reason as HealthReason,
    view::{
        BuildView, CommitsView, ConfigView, HeartbeatView, LatencyView, MemoryView, NamespaceMode, NamespaceView,
        PurgeOutcome, PurgeReport, PurgeRequest, PurgeTierView, Reasons, SettingView, ShardView, StatsView, TierState,
        TierView, TiersView, TotalsView,
    },
};
use engine::shard::Heart;

use super::command::ShardReport;
use crate::{
    cache::{self, Tier},
    config::{Config, Origin},
    namespace::NamespaceSnapshot,
    policy::{Effective, Mode, VersionedPolicy},
    protocol::Operation,
    reason::{Reason, ReasonCounts},
    server::stats::DoorSnapshot,
    stats::TierSnapshot,
    storage::durable::executor::DurableStats,
};

fn reasons(counts: &ReasonCounts) -> Reasons {
    counts.iter().map(|(reason, n)| (reason.name().to_owned(), n)).collect()
}

fn sum(counts: &ReasonCounts) -> u64 {
    counts.iter().map(|(_, n)| n).sum()
}

/// What was built.
pub(super) fn build() -> BuildView {
    BuildView {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        revision: None,
        profile: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
    }
}

/// Every setting with its origin.
pub(super) fn config(config: &Config) -> ConfigView {
    let settings = config.settings.iter().map(|setting| {
        let origin = match &setting.origin {
            Origin::Default(_) | Origin::Profile => admin::view::Origin::Default,
            Origin::File { .. } => admin::view::Origin::File,
            Origin::Environment(_) => admin::view::Origin::Environment,
            Origin::Flag(_) => admin::view::Origin::Flag,
        };
        SettingView {
            name: setting.name.clone(),
            value: setting.value.clone().into(),
            origin,
            source: Some(setting.origin.to_string()),
            unit: (!setting.unit.is_empty()).then(|| setting.unit.to_owned()),
            secret: false,
        }
    });
    ConfigView { settings: settings.collect() }
}

/// Everything counted.
pub(super) fn stats(
    reports: &[ShardReport],
    hearts: &[Arc<Heart>],
    durable: &DurableStats,
    policy: &VersionedPolicy,
    config: &Config,
    uptime: Duration,
) -> StatsView {
    let shards: Vec<_> = reports
        .iter()
        .enumerate()
        .map(|(id, report)| ShardView {
            id: u32::try_from(id).unwrap_or(u32::MAX),
            tiers: tiers(report),
            connections: report.connections,
            requests: report.door.requests(),
            requests_in_flight: report.requests_in_flight,
            inflight_bytes: report.inflight_bytes,
            inflight_waits: report.door.inflight_waits,
            heartbeat: hearts.get(id).map_or_else(HeartbeatView::default, |heart| HeartbeatView {
                beats: heart.beats(),
                age_ms: millis(heart.age()),
                gap_ms_max: millis(heart.gap_max()),
            }),
        })
        .collect();
    let namespaces = namespaces(reports, policy);
    let mut totals = TotalsView::of(&shards, &namespaces);
    if let Some(l3) = &mut totals.tiers.l3 {
        l3.bytes = durable.used.total();
        l3.objects = durable.index.objects;
        l3.capacity_bytes = config.l3.bytes_max;
        l3.state = durable_state(durable);
        *l3 = corrupted(std::mem::take(l3), durable.tier.corrupted);
    }
    StatsView {
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_seconds: uptime.as_secs(),
        policy_version: policy.version,
        memory: MemoryView { max_bytes: config.memory.memory_max, resident_bytes: resident_bytes() },
        shards,
        namespaces,
        totals,
        commits: Some(CommitsView {
            commits: durable.index.commits,
            mutations: durable.index.mutations,
            sizes: durable.index.commit_sizes,
        }),
        latency: latency(reports),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn tiers(report: &ShardReport) -> TiersView {
    let of = |tier| tier_view(report.tiers.tier(tier));
    let slab = &report.slab;
    let l0 = TierView {
        bytes: slab.live_bytes + slab.metadata_bytes,
        capacity_bytes: Some(slab.arena_bytes),
        objects: slab.objects,
        evictions: slab.evictions,
        ..of(Tier::L0)
    };
    let l2 = report.log.as_ref().map(|log| TierView {
        state: if log.poisoned { TierState::Poisoned } else { TierState::Ok },
        bytes: log.live_bytes,
        capacity_bytes: Some(log.capacity_bytes),
        objects: log.objects,
        evictions: log.reclaimed_objects,
        written_bytes: log.written_bytes,
        ..corrupted(of(Tier::L2), log.corrupted)
    });
    TiersView { l0: Some(l0), l1: None, l2, l3: Some(of(Tier::L3)) }
}

/// Damage that the tier found, before or while it was read, is a drop of the damaged copy.
fn corrupted(mut view: TierView, found: u64) -> TierView {
    if found > 0 {
        view.drops.insert(Reason::Corrupted.name().to_owned(), found);
    }
    view
}

fn tier_view(tier: &TierSnapshot) -> TierView {
    let mut drops = tier.write_drops.clone();
    drops.merge(&tier.promotion_drops);
    drops.merge(&tier.demotion_drops);
    TierView {
        hits: tier.hits,
        misses: sum(&tier.misses),
        writes: tier.writes + tier.promotions + tier.demotions,
        errors: sum(&tier.errors),
        promotions: tier.promotions,
        read_bytes: tier.bytes_served,
        written_bytes: tier.bytes_written,
        drops: reasons(&drops),
        ..TierView::default()
    }
}

fn namespaces(reports: &[ShardReport], policy: &VersionedPolicy) -> BTreeMap<String, NamespaceView> {
    let mut views = BTreeMap::<String, NamespaceView>::new();
    for snapshot in reports.iter().flat_map(|report| &report.namespaces) {
        let view = views.entry(snapshot.name.to_string()).or_default();
        let mode = policy.policy.effective(&snapshot.name).map(|rules| rules.mode);
        view.mode = match mode {
            Some(Mode::CacheOnly) => NamespaceMode::CacheOnly,
            _ => NamespaceMode::Durable,
        };
        add_namespace(view, snapshot);
    }
    views
}

fn add_namespace(view: &mut NamespaceView, snapshot: &NamespaceSnapshot) {
    for tier in Tier::ALL {
        *view.hits.entry(tier.name().to_owned()).or_default() += snapshot.hits[tier as usize];
    }
    for (into, from) in [(&mut view.misses, &snapshot.misses), (&mut view.rejections, &snapshot.refused)] {
        for (reason, n) in from.iter() {
            *into.entry(reason.name().to_owned()).or_default() += n;
        }
    }
    view.writes += snapshot.writes;
    view.deletes += snapshot.deletes;
    view.purges += snapshot.purges;
    view.sent_bytes += snapshot.bytes_out;
    view.received_bytes += snapshot.bytes_in;
}

fn latency(reports: &[ShardReport]) -> Vec<LatencyView> {
    let mut doors = reports.iter().map(|report| report.door.clone());
    let Some(mut door): Option<DoorSnapshot> = doors.next() else { return Vec::new() };
    doors.for_each(|other| door.merge(&other));
    let view = |operation: &Operation| {
        let us = &door.latency_us[*operation as usize];
        LatencyView {
            door: "http".into(),
            op: operation.name().into(),
            count: us.len(),
            p50_us: us.value_at_quantile(0.5),
            p90_us: us.value_at_quantile(0.9),
            p99_us: us.value_at_quantile(0.99),
            p999_us: us.value_at_quantile(0.999),
            max_us: us.max(),
        }
    };
    Operation::ALL.iter().map(view).filter(|view| view.count > 0).collect()
}

fn durable_state(durable: &DurableStats) -> TierState {
    if durable.index.poisoned { TierState::Poisoned } else { TierState::Ok }
}

/// Resident memory of the process, as the kernel counts it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |field: &str| {
        let line = status.lines().find(|line| line.starts_with(field))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some((kib("VmRSS:")? + kib("HugetlbPages:").unwrap_or(0)) * 1024)
}

/// What keeps the node from its best.
pub(super) fn wrong(reports: &[ShardReport], durable: &DurableStats) -> Vec<HealthReason> {
    let mut wrong = Vec::new();
    for (shard, report) in reports.iter().enumerate() {
        if let Some(why) = &report.log_poisoned {
            let message = format!("L2 of shard {shard} takes and gives nothing until a restart: {why}");
            wrong.push(HealthReason { code: "tier-poisoned", message });
        }
        if report.tiers.in_doubt > 0 {
            let message =
                format!("shard {shard} has {} keys in doubt: only L3 answers for them", report.tiers.in_doubt);
            wrong.push(HealthReason { code: "outcome-unknown", message });
        }
        if report.task_panics > 0 {
            let message = format!("{} tasks of shard {shard} panicked; the log has the causes", report.task_panics);
            wrong.push(HealthReason { code: "internal", message });
        }
    }
    if durable.index.poisoned {
        let message = "L3 takes no writes until a restart: a commit of its index failed; the log has the cause".into();
        wrong.push(HealthReason { code: "tier-poisoned", message });
    }
    wrong
}

/// What a purge removed, tier by tier of its namespace.
pub(super) fn purge(request: PurgeRequest, report: &cache::PurgeReport, rules: &Effective) -> PurgeReport {
    let tiers = Tier::ALL.into_iter().filter(|tier| rules.tiers[*tier as usize] || report.tiers[*tier as usize]);
    let outcome = |tier: Tier| {
        let removed = report.tiers[tier as usize];
        let outcome = if removed { PurgeOutcome::Removed } else { PurgeOutcome::Absent };
        (tier.name().to_owned(), PurgeTierView { outcome, reason: None })
    };
    PurgeReport { namespace: request.namespace, key: request.key, tiers: tiers.map(outcome).collect() }
}

/// An error with its causes, for people.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
