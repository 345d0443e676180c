//! `/metrics`: the numbers of [`StatsView`] as OpenMetrics text, made at each scrape and kept nowhere.
//!
//! Names and labels are stable. A family without a sample is left out. Label values are names of tiers,
//! namespaces, reasons, doors and operations, all of them bounded in number by the node.

use std::fmt::Error;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::{Registry, Unit},
};

use crate::{
    control::Health,
    view::{BuildView, DoorView, NamespaceTierView, NamespaceView, Reasons, StatsView, TierState, TierView},
};

/// What a scraper is told it gets.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// The whole page.
pub(crate) fn text(stats: StatsView, health: Health, build: BuildView) -> String {
    let mut registry = Registry::with_prefix("strata");
    registry.register_collector(Box::new(Scrape { stats, health, build }));
    let mut page = String::new();
    text::encode(&mut page, &registry).expect("writing to a string does not fail");
    page
}

#[derive(Debug)]
struct Scrape {
    stats: StatsView,
    health: Health,
    build: BuildView,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut page = Page(encoder);
        self.node(&mut page)?;
        self.reads(&mut page)?;
        self.doors(&mut page)?;
        self.tiers(&mut page)?;
        self.commits(&mut page)?;
        self.namespaces(&mut page)?;
        self.shards(&mut page)?;
        self.latency(&mut page)
    }
}

impl Scrape {
    fn node(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let mut build = vec![("version", self.build.version.as_str()), ("profile", self.build.profile.as_str())];
        build.extend(self.build.revision.as_deref().map(|revision| ("revision", revision)));
        let one = |value: u64| std::iter::once((Labels::new(), value));
        page.0.encode_descriptor("build", "What was built", None, MetricType::Info)?.encode_info(&build)?;
        page.gauge("uptime", "Since the node started", Some(Unit::Seconds), one(self.stats.uptime_seconds))?;
        page.gauge("ready", "1 if traffic should be sent here", None, one(u64::from(self.health.ready)))?;
        let reasons = self.health.degraded.iter().map(|reason| (vec![("reason", reason.code)], 1));
        // Two shards may be degraded for the same reason; a series may appear only once.
        let reasons: std::collections::BTreeSet<_> = reasons.collect();
        page.gauge("degraded", "1 for each reason the node is not at its best", None, reasons.into_iter())?;
        page.gauge("policy_version", "Version of the policy in effect", None, one(self.stats.policy_version))?;
        let memory = &self.stats.memory;
        page.gauge("memory_max", "The setting memory_max", Some(Unit::Bytes), one(memory.max_bytes))?;
        let resident = memory.resident_bytes.into_iter().map(|bytes| (Labels::new(), bytes));
        page.gauge("memory_resident", "Resident set and huge pages", Some(Unit::Bytes), resident)
    }

    fn reads(&self, page: &mut Page<'_>) -> Result<(), Error> {
        page.by("hits", "Reads answered, by the tier that answered", self, "tier", |namespace| &namespace.hits)?;
        page.by("misses", "Reads answered with not here", self, "reason", |namespace| &namespace.misses)?;
        page.by("rejections", "Writes, deletes and purges refused or failed", self, "reason", |namespace| {
            &namespace.rejections
        })
    }

    fn namespaces(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let mut counter = |name, help, unit, value: fn(&NamespaceView) -> u64| {
            let samples = self.stats.namespaces.iter();
            page.counter(
                name,
                help,
                unit,
                samples.map(|(name, view)| (vec![("namespace", name.as_str())], value(view))),
            )
        };
        counter("writes", "Objects acknowledged", None, |view| view.writes)?;
        counter("deletes", "Objects deleted by clients", None, |view| view.deletes)?;
        counter("purges", "Purges of single keys", None, |view| view.purges)?;
        counter("sent", "Body bytes sent to clients", Some(Unit::Bytes), |view| view.sent_bytes)?;
        counter("received", "Body bytes taken from clients", Some(Unit::Bytes), |view| view.received_bytes)?;
        let each = || {
            let namespaces = self.stats.namespaces.iter();
            namespaces.flat_map(|(name, view)| view.tiers.iter().map(move |(tier, held)| (name, tier, held)))
        };
        let known = |value: fn(&NamespaceTierView) -> Option<u64>| {
            each().filter_map(move |(name, tier, held)| {
                Some((vec![("namespace", name.as_str()), ("tier", tier.as_str())], value(held)?))
            })
        };
        let bytes = known(|held| held.bytes);
        page.gauge("namespace", "Bytes of the bodies of a namespace", Some(Unit::Bytes), bytes)?;
        page.gauge("namespace_objects", "Objects of a namespace", None, known(|held| held.objects))?;
        let evictions = known(|held| held.evictions);
        page.counter("namespace_evictions", "Objects of a namespace that left a tier to make room", None, evictions)?;
        let promotions = known(|held| held.promotions);
        page.counter("namespace_promotions", "Objects of a namespace copied up into a tier", None, promotions)?;
        let drops = each().flat_map(|(name, tier, held)| {
            let labels = move |reason| vec![("namespace", name.as_str()), ("tier", tier.as_str()), ("reason", reason)];
            held.drops.iter().map(move |(reason, count)| (labels(reason.as_str()), *count))
        });
        page.counter("namespace_drops", "What a tier did not keep of a namespace, or was not promoted", None, drops)
    }

    fn doors(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let doors = || self.stats.totals.doors.iter().map(|(name, view)| (name.as_str(), view));
        let answers = doors().flat_map(|(door, view)| {
            view.answers.iter().flat_map(move |(op, classes)| {
                let labels = move |class| vec![("door", door), ("op", op.as_str()), ("class", class)];
                classes.iter().map(move |(class, count)| (labels(class.as_str()), *count))
            })
        });
        page.counter("door_answers", "Answers by operation and class of status", None, answers)?;
        let mut by_reason = |name, help, counts: fn(&DoorView) -> &Reasons| {
            let samples = doors().flat_map(|(door, view)| {
                let labels = move |reason| vec![("door", door), ("reason", reason)];
                counts(view).iter().map(move |(reason, count)| (labels(reason.as_str()), *count))
            });
            page.counter(name, help, None, samples)
        };
        by_reason("door_refusals", "Requests that the door or a tier refused or failed", |view| &view.refusals)?;
        by_reason("door_cuts", "Bodies cut while they were sent", |view| &view.cuts)?;
        let mut counter = |name, help, unit, value: fn(&DoorView) -> u64| {
            page.counter(name, help, unit, doors().map(|(door, view)| (vec![("door", door)], value(view))))
        };
        counter("door_received", "Body bytes taken, stored or not", Some(Unit::Bytes), |view| view.received_bytes)?;
        counter("door_sent", "Body bytes given, messages included", Some(Unit::Bytes), |view| view.sent_bytes)?;
        counter("door_connections_accepted", "Connections served", None, |view| view.connections_accepted)?;
        counter("door_connections_refused", "Connections beyond the bound", None, |view| view.connections_refused)?;
        counter("door_connections_timed_out", "Connections of clients too slow or idle", None, |view| {
            view.connections_timed_out
        })
    }

    fn tiers(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let mut counter = |name, help, unit, value: fn(&TierView) -> Option<u64>| {
            let samples = self.stats.totals.tiers.iter();
            let known = samples.filter_map(|(name, tier)| Some((vec![("tier", name)], value(tier)?)));
            page.counter(name, help, unit, known)
        };
        counter("tier_hits", "Lookups a tier answered", None, |tier| Some(tier.hits))?;
        counter("tier_writes", "Objects committed to a tier", None, |tier| Some(tier.writes))?;
        counter("evictions", "Objects that left a tier to make room", None, |tier| tier.evictions)?;
        counter("promotions", "Objects copied up into a tier", None, |tier| tier.promotions)?;
        counter("tier_read", "Bytes read from the medium", Some(Unit::Bytes), |tier| Some(tier.read_bytes))?;
        counter("tier_written", "Bytes written to the medium", Some(Unit::Bytes), |tier| Some(tier.written_bytes))?;
        let mut gauge = |name, help, unit, value: fn(&TierView) -> Option<u64>| {
            let samples = self.stats.totals.tiers.iter();
            page.gauge(name, help, unit, samples.filter_map(|(name, tier)| Some((vec![("tier", name)], value(tier)?))))
        };
        gauge("tier", "Bytes the objects of a tier take", Some(Unit::Bytes), |tier| tier.bytes)?;
        gauge("tier_overhead", "RAM of the tables of a tier", Some(Unit::Bytes), |tier| tier.overhead_bytes)?;
        gauge("tier_capacity", "Bytes a tier can hold", Some(Unit::Bytes), |tier| tier.capacity_bytes)?;
        gauge("tier_objects", "Objects a tier holds", None, |tier| tier.objects)?;
        gauge("tier_ok", "1 if a tier works in full", None, |tier| Some(u64::from(tier.state == TierState::Ok)))?;
        let mut by_reason = |name, help, counts: fn(&TierView) -> &Reasons| {
            let samples = self.stats.totals.tiers.iter().flat_map(|(tier, view)| {
                let labels = move |reason| vec![("tier", tier), ("reason", reason)];
                counts(view).iter().map(move |(reason, count)| (labels(reason.as_str()), *count))
            });
            page.counter(name, help, None, samples)
        };
        by_reason("tier_misses", "Lookups a tier did not answer", |tier| &tier.misses_by_reason)?;
        by_reason("tier_errors", "Operations that failed on the medium", |tier| &tier.errors_by_reason)?;
        by_reason("drops", "What a tier did not keep or was not promoted to it", |tier| &tier.drops)
    }

    fn commits(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let commits = || self.stats.commits.iter();
        let count = commits().map(|view| (Labels::new(), view.commits));
        page.counter("index_commits", "Transactions of the index of L3, one fsync each", None, count)?;
        let mutations = commits().map(|view| (Labels::new(), view.mutations));
        page.counter("index_mutations", "Changes in transactions of the index of L3", None, mutations)
    }

    fn shards(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let ids: Vec<String> = self.stats.shards.iter().map(|shard| shard.id.to_string()).collect();
        let shards = || ids.iter().zip(&self.stats.shards).map(|(id, view)| (vec![("shard", id.as_str())], view));
        let requests = shards().map(|(labels, view)| (labels, view.requests));
        page.counter("requests", "Requests taken", None, requests)?;
        let connections = shards().map(|(labels, view)| (labels, view.connections));
        page.gauge("connections", "Client connections open", None, connections)?;
        let inflight = shards().map(|(labels, view)| (labels, view.inflight_bytes));
        page.gauge("inflight", "Bytes that bodies under way are charged", Some(Unit::Bytes), inflight)?;
        let waits = shards().map(|(labels, view)| (labels, view.inflight_waits));
        page.counter("inflight_waits", "Requests that waited for bodies under way", None, waits)?;
        let age = shards().map(|(labels, view)| (labels, seconds(view.heartbeat.age_ms, 1e3)));
        page.gauge("heartbeat_age", "Since the loop of a shard turned", Some(Unit::Seconds), age)?;
        let gap = shards().map(|(labels, view)| (labels, seconds(view.heartbeat.gap_ms_max, 1e3)));
        page.gauge("heartbeat_gap_max", "Longest time a loop did not turn", Some(Unit::Seconds), gap)
    }

    fn latency(&self, page: &mut Page<'_>) -> Result<(), Error> {
        let ops = || self.stats.latency.iter().map(|view| (vec![("door", view.door.as_str()), ("op", &view.op)], view));
        let counts = ops().map(|(labels, view)| (labels, view.count));
        page.counter("operations", "Operations measured", None, counts)?;
        let quantiles = ops().flat_map(|(labels, view)| {
            let of = |quantile, us| {
                let mut labels = labels.clone();
                labels.push(("quantile", quantile));
                (labels, seconds(us, 1e6))
            };
            [
                of("0.5", view.p50_us),
                of("0.9", view.p90_us),
                of("0.99", view.p99_us),
                of("0.999", view.p999_us),
                of("1", view.max_us),
            ]
        });
        page.gauge("latency", "Latency of an operation by quantile", Some(Unit::Seconds), quantiles)
    }
}

fn seconds(count: u64, per_second: f64) -> f64 {
    count as f64 / per_second
}

/// The families, one after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A counter by namespace and one more label.
    fn by(
        &mut self,
        name: &str,
        help: &str,
        scrape: &Scrape,
        label: &'static str,
        counts: fn(&NamespaceView) -> &Reasons,
    ) -> Result<(), Error> {
        let samples = scrape.stats.namespaces.iter().flat_map(|(namespace, view)| {
            let labels = move |value| vec![(label, value), ("namespace", namespace.as_str())];
            counts(view).iter().map(move |(value, count)| (labels(value.as_str()), *count))
        });
        self.counter(name, help, None, samples)
    }

    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Iterator<Item = (Labels<'l>, u64)>,
    ) -> Result<(), Error> {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut metric = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in samples {
            let exemplar = None::<&Exemplar<NoLabelSet, u64>>;
            // An empty label set would be written as `{}`.
            match labels.is_empty() {
                true => metric.encode_counter(&value, exemplar)?,
                false => metric.encode_family(&labels)?.encode_counter(&value, exemplar)?,
            }
        }
        Ok(())
    }

    fn gauge<'l, V: prometheus_client::encoding::EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl Iterator<Item = (Labels<'l>, V)>,
    ) -> Result<(), Error> {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut metric = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in samples {
            match labels.is_empty() {
                true => metric.encode_gauge(&value)?,
                false => metric.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}
