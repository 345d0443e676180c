//! A node double: a policy of three members under a lock, and switches for what can go wrong.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use admin::{
    Answer, Control, Health, PolicyError, PurgeError, Reason, Unavailable,
    view::{
        BuildView, CommitsView, ConfigView, DoorView, HeartbeatView, LatencyView, MemoryView, NamespaceMode,
        NamespaceTierView, NamespaceView, Origin, PolicyView, PurgeOutcome, PurgeReport, PurgeRequest, PurgeTierView,
        SettingView, ShardView, StatsView, TierState, TierView, TiersView, TotalsView,
    },
};
use serde_json::{Map, Value, json};

pub(crate) struct FakeControl {
    pub(crate) health: Mutex<Health>,
    pub(crate) policy: Mutex<PolicyView>,
    /// Changes by others that come just before each of the next replacements.
    pub(crate) rivals: AtomicU64,
    /// The node answers nothing that takes an answer.
    pub(crate) stalled: AtomicBool,
    /// The node says that it cannot.
    pub(crate) unavailable: AtomicBool,
    pub(crate) purged: Mutex<Vec<PurgeRequest>>,
}

impl Default for FakeControl {
    fn default() -> Self {
        Self {
            health: Mutex::new(Health { live: true, ready: true, degraded: Vec::new() }),
            policy: Mutex::new(PolicyView { document: complete(Map::new()), version: 7 }),
            rivals: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            unavailable: AtomicBool::new(false),
            purged: Mutex::new(Vec::new()),
        }
    }
}

fn complete(mut members: Map<String, Value>) -> Value {
    for (name, default) in [("l0_max", json!("2MiB")), ("l2_max", Value::Null), ("namespaces", json!({}))] {
        members.entry(name).or_insert(default);
    }
    Value::Object(members)
}

fn check(document: &Value) -> Result<Value, PolicyError> {
    let invalid = |field: &str, message: &str| PolicyError::Invalid { field: field.into(), message: message.into() };
    let members = document.as_object().expect("the door sends objects only");
    for (name, value) in members {
        match name.as_str() {
            "l0_max" | "l2_max" if value.is_null() || value.is_u64() || value.is_string() => {}
            "namespaces" if value.is_object() => {}
            "l0_max" | "l2_max" | "namespaces" => return Err(invalid(&format!("/{name}"), "wrong type")),
            _ => return Err(invalid(&format!("/{name}"), "unknown member")),
        }
    }
    if let (Some(l0), Some(l2)) = (members.get("l0_max"), members.get("l2_max"))
        && l0.as_u64() > l2.as_u64()
        && l2.is_u64()
    {
        return Err(invalid("/l0_max", "contradicts l2_max: it must not be above it"));
    }
    Ok(complete(members.clone()))
}

pub(crate) fn reasons(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

pub(crate) fn stats() -> StatsView {
    let tier = |hits, drops: &[(&str, u64)]| TierView {
        hits,
        misses: 10,
        misses_by_reason: reasons(&[("expired", 10)]),
        errors: 1,
        errors_by_reason: reasons(&[("io", 1)]),
        bytes: Some(1000),
        overhead_bytes: Some(300),
        capacity_bytes: Some(4000),
        objects: Some(3),
        evictions: Some(2),
        promotions: Some(1),
        drops: reasons(drops),
        ..TierView::default()
    };
    let door = DoorView {
        answers: [("get", reasons(&[("2xx", 110), ("4xx", 40)])), ("other", reasons(&[("4xx", 1)]))]
            .map(|(op, classes)| (op.to_owned(), classes))
            .into(),
        refusals: reasons(&[("method", 1)]),
        cuts: reasons(&[("corrupted", 2)]),
        received_bytes: 700,
        sent_bytes: 9000,
        connections_accepted: 8,
        connections_refused: 6,
        connections_timed_out: 4,
    };
    let shard = |id| ShardView {
        id,
        tiers: TiersView {
            l0: Some(tier(90, &[("gate", 4)])),
            l2: Some(TierView { state: TierState::Poisoned, ..tier(20, &[("gate", 1), ("io", 2)]) }),
            // What only the node as a whole knows is absent, not 0.
            l3: Some(TierView { hits: 5, ..TierView::default() }),
            ..TiersView::default()
        },
        doors: BTreeMap::from([("http".to_owned(), door.clone())]),
        connections: 3,
        requests: 100,
        requests_in_flight: 1,
        inflight_bytes: 4096,
        inflight_waits: 2,
        heartbeat: HeartbeatView { beats: 9, age_ms: 5, gap_ms_max: 1250 },
    };
    let shards = vec![shard(0), shard(1)];
    let namespaces = BTreeMap::from([
        (
            "images".to_owned(),
            NamespaceView {
                hits: reasons(&[("l0", 180), ("l2", 60)]),
                // Ratios that a binary fraction holds exactly survive JSON.
                misses: reasons(&[("not-found", 76), ("expired", 3)]),
                writes: 12,
                tiers: [
                    (
                        "l0",
                        NamespaceTierView {
                            bytes: Some(2000),
                            objects: Some(6),
                            evictions: Some(4),
                            promotions: Some(2),
                            drops: reasons(&[("gate", 8)]),
                        },
                    ),
                    ("l2", NamespaceTierView { promotions: Some(1), ..NamespaceTierView::default() }),
                ]
                .map(|(tier, held)| (tier.to_owned(), held))
                .into(),
                ..NamespaceView::default()
            },
        ),
        (
            "memcached".to_owned(),
            NamespaceView {
                mode: NamespaceMode::CacheOnly,
                misses: reasons(&[("not-found", 1)]),
                ..Default::default()
            },
        ),
    ]);
    let latency = LatencyView {
        door: "http".to_owned(),
        op: "get".to_owned(),
        count: 230,
        p50_us: 90,
        p90_us: 150,
        p99_us: 700,
        p999_us: 1500,
        max_us: 2500,
    };
    StatsView {
        version: "1.2.3".to_owned(),
        uptime_seconds: 61,
        policy_version: 7,
        memory: MemoryView { max_bytes: 1 << 30, resident_bytes: None },
        totals: TotalsView::of(&shards, &namespaces),
        shards,
        namespaces,
        commits: Some(CommitsView { commits: 3, mutations: 25, sizes: [1, 0, 2, 0, 0] }),
        latency: vec![latency],
    }
}

impl FakeControl {
    pub(crate) fn degrade(&self, live: bool, ready: bool, reasons: &[(&'static str, &str)]) {
        let reasons = reasons.iter().map(|(code, message)| Reason { code, message: (*message).to_owned() });
        *self.health.lock().unwrap() = Health { live, ready, degraded: reasons.collect() };
    }

    fn answer<'a, T: Send + 'a, E: Send + 'a>(
        &'a self,
        refusal: fn(String) -> E,
        answer: impl FnOnce() -> Result<T, E> + Send + 'a,
    ) -> Answer<'a, Result<T, E>> {
        Box::pin(async move {
            if self.stalled.load(SeqCst) {
                pending::<()>().await;
            }
            if self.unavailable.load(SeqCst) {
                return Err(refusal("shard 1 is restarting".to_owned()));
            }
            answer()
        })
    }
}

impl Control for FakeControl {
    fn health(&self) -> Health {
        self.health.lock().unwrap().clone()
    }

    fn build(&self) -> BuildView {
        let revision = Some("abc123".to_owned());
        BuildView { name: "strata".to_owned(), version: "1.2.3".to_owned(), revision, profile: "debug".to_owned() }
    }

    fn config(&self) -> ConfigView {
        let setting = |name: &str, value: Value, origin, unit: Option<&str>| SettingView {
            name: name.to_owned(),
            value,
            origin,
            source: (origin == Origin::Flag).then(|| "--memory-max".to_owned()),
            unit: unit.map(str::to_owned),
            secret: false,
        };
        ConfigView {
            settings: vec![
                setting("memory_max", json!(1 << 30), Origin::Flag, Some("bytes")),
                setting("l1.url", json!("redis://app:hunter2@cache:6379"), Origin::File, None),
                setting("l3.secret_access_key", json!("hunter2"), Origin::Environment, None),
                setting("auth.token", Value::Null, Origin::Default, None),
            ],
        }
    }

    fn policy(&self) -> PolicyView {
        self.policy.lock().unwrap().clone()
    }

    fn policy_replace(&self, document: Value, expected: Option<u64>) -> Answer<'_, Result<PolicyView, PolicyError>> {
        self.answer(PolicyError::Unavailable, move || {
            let mut policy = self.policy.lock().unwrap();
            if self.rivals.fetch_update(SeqCst, SeqCst, |rivals| rivals.checked_sub(1)).is_ok() {
                policy.version += 1;
                policy.document["namespaces"]["rival"] = json!({"l0_max": policy.version});
            }
            if expected.is_some_and(|expected| expected != policy.version) {
                return Err(PolicyError::VersionMismatch { current: policy.version });
            }
            policy.document = check(&document)?;
            policy.version += 1;
            Ok(policy.clone())
        })
    }

    fn stats(&self) -> Answer<'_, Result<StatsView, Unavailable>> {
        self.answer(Unavailable, || Ok(stats()))
    }

    fn purge(&self, request: PurgeRequest) -> Answer<'_, Result<PurgeReport, PurgeError>> {
        self.answer(PurgeError::Unavailable, move || {
            if request.namespace == "nowhere" {
                return Err(PurgeError::NamespaceUnknown(request.namespace));
            }
            if request.key.contains(' ') {
                let message = "a space must be encoded".to_owned();
                return Err(PurgeError::Invalid { field: "/key".to_owned(), message });
            }
            self.purged.lock().unwrap().push(request.clone());
            let tier = |outcome| PurgeTierView { outcome };
            let tiers = BTreeMap::from([
                ("l0".to_owned(), tier(PurgeOutcome::Removed)),
                ("l2".to_owned(), tier(PurgeOutcome::Absent)),
            ]);
            Ok(PurgeReport { namespace: request.namespace, key: request.key, tiers })
        })
    }
}
