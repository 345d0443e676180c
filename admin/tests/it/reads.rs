//! The JSON reads: health, stats, config, build, and the API description.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering::SeqCst,
};

use admin::view::{BuildView, ConfigView, HealthStatus, HealthView, StatsView};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    client::{Door, Reply},
    fake::stats,
};

fn view<T: DeserializeOwned>(reply: &Reply) -> T {
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    serde_json::from_str(&reply.body).unwrap()
}

#[test]
fn probes_tell_live_ready_and_degraded_apart() {
    let door = Door::open();
    let poisoned: &[(&'static str, &str)] = &[("tier-poisoned", "shard 1: input/output error")];
    for (live, ready, reasons, health, readiness, status) in [
        (true, true, &[][..], 200, 200, HealthStatus::Ok),
        (true, true, poisoned, 200, 200, HealthStatus::Degraded),
        (true, false, poisoned, 200, 503, HealthStatus::Unready),
        (false, false, &[][..], 503, 503, HealthStatus::Down),
    ] {
        door.control.degrade(live, ready, reasons);
        for (path, expected) in [("/healthz", health), ("/readyz", readiness)] {
            let reply = door.get(path);
            assert_eq!(reply.status, expected, "{path} live={live} ready={ready}");
            let view: HealthView = view(&reply);
            assert_eq!((view.status, view.live, view.ready), (status, live, ready));
            let found: Vec<_> = view.reasons.iter().map(|reason| (&*reason.code, &*reason.message)).collect();
            assert_eq!(found, reasons);
        }
    }
}

#[test]
fn stats_arrive_whole() {
    let door = Door::open();
    let reply = door.get("/v1/stats");
    assert_eq!(view::<StatsView>(&reply), stats());
    let json = reply.json();
    assert_eq!(json["shards"][1]["tiers"]["l2"]["drops"]["io"], 2);
    assert_eq!(json["totals"]["tiers"]["l0"]["hits"], 180);
    assert_eq!(json["namespaces"]["memcached"]["mode"], "cache_only");
    assert_eq!(json["latency"][0]["p999_us"], 1500);
    assert_eq!(json["totals"]["tiers"].get("l1"), None, "a tier that is off is absent");
}

#[test]
fn a_shard_that_does_not_answer_is_503() {
    let door = Door::open();
    door.control.unavailable.store(true, SeqCst);
    for path in ["/v1/stats", "/metrics"] {
        assert_eq!(door.get(path).problem(503, "unavailable")["detail"], "shard 1 is restarting");
    }
}

#[test]
fn no_secret_leaves_with_the_config() {
    let door = Door::open();
    let reply = door.get("/v1/config");
    assert!(!reply.body.contains("hunter2"), "{}", reply.body);
    let view: ConfigView = view(&reply);
    let shown: Vec<_> = view.settings.iter().map(|setting| (&*setting.name, &setting.value, setting.secret)).collect();
    let expected = [
        ("memory_max", json!(1 << 30), false),
        ("l1.url", json!("redis://app:***@cache:6379"), false),
        ("l3.secret_access_key", json!("***"), true),
        ("auth.token", Value::Null, true),
    ];
    let expected: Vec<_> = expected.iter().map(|(name, value, secret)| (*name, value, *secret)).collect();
    assert_eq!(shown, expected);
    let json = reply.json();
    assert_eq!(json["settings"][0]["origin"], "flag");
    assert_eq!(json["settings"][0]["source"], "--memory-max");
    assert_eq!(json["settings"][0]["unit"], "bytes");
}

#[test]
fn the_build_is_told() {
    let build: BuildView = view(&Door::open().get("/v1/build"));
    assert_eq!((&*build.version, build.revision.as_deref()), ("1.2.3", Some("abc123")));
}

/// Every method of every documented path is routed, and every routed method is documented: the router answers a
/// method it does not have with the list of those it has.
#[test]
fn the_description_and_the_router_name_the_same_operations() {
    let door = Door::open();
    let openapi = door.get("/openapi.json").json();
    assert_eq!(openapi["openapi"], "3.1.0");
    assert_eq!(openapi["info"]["version"], "1.2.3");
    let documented: BTreeMap<&str, BTreeSet<String>> = openapi["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, item)| (&**path, item.as_object().unwrap().keys().map(|name| name.to_uppercase()).collect()))
        .collect();
    let asked_for = [
        "/",
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/readyz",
        "/v1/build",
        "/v1/config",
        "/v1/policy",
        "/v1/purge",
        "/v1/stats",
    ];
    assert_eq!(documented.keys().copied().collect::<Vec<_>>(), asked_for);
    for (path, methods) in &documented {
        let reply = door.ask("DELETE", path, &[], "");
        reply.problem(405, "method");
        let allowed: BTreeSet<String> = reply.header("allow").unwrap().split(", ").map(str::to_owned).collect();
        let mut expected = methods.clone();
        if methods.contains("GET") {
            expected.insert("HEAD".to_owned());
        }
        expected.insert("OPTIONS".to_owned());
        assert_eq!(allowed, expected, "{path}");
    }
}

#[test]
fn every_reference_and_example_of_the_description_holds() {
    let door = Door::open();
    let openapi = door.get("/openapi.json").json();
    let mut references = Vec::new();
    references_of(&openapi, &mut references);
    assert!(references.len() > 20, "{references:?}");
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(openapi.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let mut ids = BTreeSet::new();
    for item in openapi["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
            assert!(operation["summary"].is_string());
        }
    }
    let responses = |path: &str, method: &str, status: &str| {
        openapi["paths"][path][method]["responses"][status]["content"]["application/json"]["example"].clone()
    };
    assert_eq!(responses("/v1/policy", "get", "200"), door.get("/v1/policy").json(), "the policy in effect");
    let stats: StatsView = serde_json::from_value(responses("/v1/stats", "get", "200")).unwrap();
    assert_eq!(stats.totals.hits, 960);
    let put = &openapi["paths"]["/v1/policy"]["put"];
    let parameters: Vec<_> = put["parameters"].as_array().unwrap().iter().map(|given| &given["name"]).collect();
    assert_eq!(parameters, ["If-Match", "If-None-Match"]);
    for status in ["200", "400", "403", "408", "409", "412", "413", "415", "422", "503"] {
        assert!(put["responses"].get(status).is_some(), "{status}");
    }
}

fn references_of(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member.as_str().filter(|_| name == "$ref") {
                    Some(reference) => references.push(reference.to_owned()),
                    None => references_of(member, references),
                }
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| references_of(element, references)),
        _ => {}
    }
}
