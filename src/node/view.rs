//! From what shards report to what the admin door shows. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use admin::{
    Reason as HealthReason,
    view::{
        BuildView, CommitsView, ConfigView, DoorView, HeartbeatView, LatencyView, MemoryView, NamespaceMode,
        NamespaceTierView, NamespaceView, PurgeOutcome, PurgeReport, PurgeRequest, PurgeTierView, Reasons, SettingView,
        ShardView, StatsView, TierState, TierView, TiersView, TotalsView,
    },
};
use engine::shard::Heart;

use super::command::ShardReport;
use crate::{
    cache::{self, Tier},
    config::{Config, Origin},
    human,
    namespace::{Held, NamespaceSnapshot},
    policy::{Effective, Mode, VersionedPolicy},
    protocol::Operation,
    reason::{Reason, ReasonCounts},
    server::stats::DoorSnapshot,
    stats::TierSnapshot,
    storage::durable::executor::DurableStats,
};

/// The name of the door that shards serve.
const HTTP: &str = "http";

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
            doors: BTreeMap::from([(HTTP.to_owned(), door(&report.door))]),
            heartbeat: hearts.get(id).map_or_else(HeartbeatView::default, |heart| HeartbeatView {
                beats: heart.beats(),
                age_ms: millis(heart.age()),
                gap_ms_max: millis(heart.gap_max()),
            }),
        })
        .collect();
    let namespaces = namespaces(reports, durable, policy, tiers_on(config));
    let mut totals = TotalsView::of(&shards, &namespaces);
    if let Some(l3) = &mut totals.tiers.l3 {
        l3.bytes = Some(durable.used.total());
        l3.objects = Some(durable.index.objects);
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
        bytes: Some(slab.live_bytes),
        overhead_bytes: Some(slab.metadata_bytes),
        capacity_bytes: Some(slab.arena_bytes),
        objects: Some(slab.objects),
        evictions: Some(slab.evictions),
        ..of(Tier::L0)
    };
    let l2 = report.log.as_ref().map(|log| TierView {
        state: if log.poisoned { TierState::Poisoned } else { TierState::Ok },
        bytes: Some(log.live_bytes),
        overhead_bytes: Some(log.index_bytes),
        capacity_bytes: Some(log.capacity_bytes),
        objects: Some(log.objects),
        evictions: Some(log.reclaimed_objects + log.index_evicted),
        written_bytes: log.written_bytes,
        ..corrupted(of(Tier::L2), log.corrupted)
    });
    // What L3 holds, the node knows and no shard; nothing is promoted to it, and nothing makes room in it.
    let l3 = TierView { promotions: None, ..of(Tier::L3) };
    TiersView { l0: Some(l0), l1: None, l2, l3: Some(l3) }
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
        misses_by_reason: reasons(&tier.misses),
        writes: tier.writes + tier.promotions + tier.demotions,
        errors: sum(&tier.errors),
        errors_by_reason: reasons(&tier.errors),
        promotions: Some(tier.promotions),
        read_bytes: tier.bytes_served,
        written_bytes: tier.bytes_written,
        drops: reasons(&drops),
        ..TierView::default()
    }
}

/// The tiers the node runs with. L1 has no client yet.
pub(super) fn tiers_on(config: &Config) -> [bool; 4] {
    [true, false, config.l2.bytes > 0, true]
}

/// What a shard's door did.
fn door(door: &DoorSnapshot) -> DoorView {
    let classes = |counts: &[u64; 5]| -> BTreeMap<String, u64> {
        let counted = (1..).zip(counts).filter(|(_, n)| **n > 0);
        counted.map(|(class, n)| (format!("{class}xx"), *n)).collect()
    };
    let known = Operation::ALL.map(|operation| (operation.name(), &door.answers[operation as usize]));
    let answers = known.into_iter().chain([("other", &door.other_answers)]);
    let answers = answers.map(|(name, counts)| (name.to_owned(), classes(counts)));
    DoorView {
        answers: answers.filter(|(_, classes)| !classes.is_empty()).collect(),
        refusals: reasons(&door.refusals),
        cuts: reasons(&door.cuts),
        received_bytes: door.bytes_in,
        sent_bytes: door.bytes_out,
        connections_accepted: door.connections_accepted,
        connections_refused: door.connections_refused,
        connections_timed_out: door.connections_timed_out,
    }
}

fn namespaces(
    reports: &[ShardReport],
    durable: &DurableStats,
    policy: &VersionedPolicy,
    on: [bool; 4],
) -> BTreeMap<String, NamespaceView> {
    let mut counted = BTreeMap::<&str, (NamespaceSnapshot, Held)>::new();
    for report in reports {
        for snapshot in &report.namespaces {
            counted.entry(&snapshot.name).or_default().0.merge(snapshot);
        }
        for (name, held) in &report.slab_held {
            counted.entry(name).or_default().1.merge(held);
        }
    }
    // What an earlier run left in L3 is there, whether anybody asks for it or not.
    for name in durable.held.iter().flat_map(BTreeMap::keys) {
        counted.entry(name).or_default();
    }
    let mode = |name: &str| match policy.policy.mode(name) {
        Mode::CacheOnly => NamespaceMode::CacheOnly,
        Mode::Durable => NamespaceMode::Durable,
    };
    let views = counted.iter().map(|(name, (counted, l0))| {
        let l3 = durable.held.as_ref().map(|held| held.get(*name).copied().unwrap_or_default());
        let view = NamespaceView { mode: mode(name), ..namespace(counted, *l0, l3, on) };
        ((*name).to_owned(), view)
    });
    views.collect()
}

fn namespace(counted: &NamespaceSnapshot, l0: Held, l3: Option<Held>, on: [bool; 4]) -> NamespaceView {
    let tiers = Tier::ALL.map(|tier| {
        let drops = counted.drops.iter().filter(|((dropped, _), _)| *dropped == tier);
        let held = match tier {
            Tier::L0 => Some(l0),
            Tier::L1 | Tier::L2 => None,
            Tier::L3 => l3,
        };
        let view = NamespaceTierView {
            bytes: held.map(|held| held.bytes),
            objects: held.map(|held| held.objects),
            evictions: (tier == Tier::L0).then_some(counted.evictions),
            promotions: (tier != Tier::L3 && on[tier as usize]).then_some(counted.promotions[tier as usize]),
            drops: drops.map(|((_, reason), n)| (reason.name().to_owned(), *n)).collect(),
        };
        (tier.name().to_owned(), view)
    });
    NamespaceView {
        mode: NamespaceMode::default(),
        hits: Tier::ALL.map(|tier| (tier.name().to_owned(), counted.hits[tier as usize])).into(),
        misses: reasons(&counted.misses),
        rejections: reasons(&counted.refused),
        writes: counted.writes,
        deletes: counted.deletes,
        purges: counted.purges,
        sent_bytes: counted.bytes_out,
        received_bytes: counted.bytes_in,
        // A tier that is off has nothing to tell but what it was not given.
        tiers: tiers.into_iter().filter(|(_, view)| *view != NamespaceTierView::default()).collect(),
    }
}

fn latency(reports: &[ShardReport]) -> Vec<LatencyView> {
    let mut doors = reports.iter().map(|report| report.door.clone());
    let Some(mut door): Option<DoorSnapshot> = doors.next() else { return Vec::new() };
    doors.for_each(|other| door.merge(&other));
    let view = |operation: &Operation| {
        let us = &door.latency_us[*operation as usize];
        LatencyView {
            door: HTTP.into(),
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

/// L3 refuses writes for want of room.
pub(super) fn no_room(reason: Reason, config: &Config) -> HealthReason {
    let message = match (reason, config.l3.bytes_max) {
        (Reason::QuotaFull, Some(bytes_max)) => format!(
            "durable writes are refused: L3 holds as much as l3_bytes_max allows, {}; raise it, or delete objects",
            human::bytes(bytes_max)
        ),
        _ => format!(
            "durable writes are refused: the file system of {} has no more room than disk_reserve keeps free; make \
             room there, or lower disk_reserve",
            config.data_dir.display()
        ),
    };
    HealthReason { code: reason.name(), message }
}

/// Whether that is what is wrong.
pub(super) fn is_no_room(wrong: &HealthReason) -> bool {
    [Reason::DiskFull.name(), Reason::QuotaFull.name()].contains(&wrong.code)
}

/// Shows that L3 works in part.
pub(super) fn no_room_in_l3(stats: &mut StatsView) {
    let tiers = stats.shards.iter_mut().map(|shard| &mut shard.tiers).chain([&mut stats.totals.tiers]);
    for l3 in tiers.filter_map(|tiers| tiers.l3.as_mut()) {
        l3.state = l3.state.max(TierState::Degraded);
    }
}

/// What a purge removed, tier by tier of its namespace. `on`: the tiers this node runs with.
pub(super) fn purge(
    request: PurgeRequest,
    report: &cache::PurgeReport,
    rules: &Effective,
    on: [bool; 4],
) -> PurgeReport {
    let tiers = Tier::ALL.into_iter().filter(|tier| rules.tiers[*tier as usize] || report.tiers[*tier as usize]);
    let outcome = |tier: Tier| {
        let outcome = match (report.tiers[tier as usize], on[tier as usize]) {
            (true, _) => PurgeOutcome::Removed,
            (false, true) => PurgeOutcome::Absent,
            (false, false) => PurgeOutcome::Off,
        };
        (tier.name().to_owned(), PurgeTierView { outcome })
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
