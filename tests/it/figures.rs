//! What the admin door shows: every refusal with its reason, and figures that are true of what the node did.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{client::Body, node::Node};

const SETTINGS: [&str; 4] = ["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"];

/// Waits until `what` of the figures holds.
fn wait(node: &Node, what: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let stats = node.stats();
        if what(&stats) {
            return stats;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{stats:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn everything_the_door_refuses_is_shown_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["--shards", "1", "--set", "limits.connections_max=64"];
    let node = Node::start(dir.path(), &[&SETTINGS[..], &more].concat());
    let mut client = node.client();
    assert_eq!(client.put("/a/k", b"0123456789").status, 201);
    assert_eq!(client.get("/a/k").status, 200);
    assert_eq!(client.get("/a/none").status, 404);
    assert_eq!(client.request("POST", "/a/k", &[], &Body::None).status, 405);
    assert_eq!(client.get("/UPPER/k").status, 400);
    // A body that is shorter than it said.
    let mut short = TcpStream::connect(node.http).unwrap();
    short.write_all(b"PUT /a/short HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\nonly this").unwrap();
    short.shutdown(Shutdown::Write).unwrap();
    let _ = short.read_to_end(&mut Vec::new());
    // One connection too many: told so, or closed.
    let open: Vec<_> = (0..64).map(|_| TcpStream::connect(node.http).unwrap()).collect();
    let stats = wait(&node, |stats| {
        let http = &stats["totals"]["doors"]["http"];
        http["connections_refused"].as_u64() > Some(0) && http["refusals"]["body-cut"].as_u64() == Some(1)
    });
    drop(open);
    let http = &stats["totals"]["doors"]["http"];
    assert_eq!((&http["refusals"]["method"], &http["refusals"]["bad-key"]), (&1.into(), &1.into()), "{http:#}");
    let answers = &http["answers"];
    assert_eq!(
        (&answers["put"]["2xx"], &answers["get"]["2xx"], &answers["get"]["4xx"]),
        (&1.into(), &1.into(), &2.into())
    );
    assert_eq!(answers["other"]["4xx"], 1, "{answers:#}");
    assert!(http["received_bytes"].as_u64() >= Some(10) && http["sent_bytes"].as_u64() >= Some(10), "{http:#}");
    assert!(http["connections_accepted"].as_u64() >= Some(2), "{http:#}");
    assert_eq!(stats["shards"][0]["doors"]["http"], *http, "one shard is all of them");
    let l0 = &stats["totals"]["tiers"]["l0"];
    assert_eq!(l0["misses"], l0["misses_by_reason"]["not-found"], "{l0:#}");
    let metrics = node.admin().get("/metrics").text();
    for line in [
        r#"strata_door_refusals_total{door="http",reason="method"} 1"#,
        r#"strata_door_refusals_total{door="http",reason="body-cut"} 1"#,
        r#"strata_door_answers_total{door="http",op="get",class="2xx"} 1"#,
        r#"strata_tier_misses_total{tier="l0",reason="not-found"} "#,
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

#[test]
fn a_namespace_s_figures_are_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [&SETTINGS[..], &["--set", "policy.l0_max=64KiB"]].concat();
    let node = Node::start(dir.path(), &settings);
    let mut client = node.client();
    let cache = r#"{"namespaces": {"cache": {"mode": "cache_only"}}}"#;
    assert_eq!(node.patch_policy(cache).status, 200);
    for i in 0..10 {
        assert_eq!(client.put(&format!("/small/{i}"), &[1; 1000]).status, 201);
        assert_eq!(client.put(&format!("/cache/{i}"), &[1; 2000]).status, 201);
    }
    assert_eq!(client.put("/small/large", &vec![2; 100_000]).status, 201);
    assert_eq!(client.put("/small/0", &[1; 500]).status, 204);
    assert_eq!(client.request("DELETE", "/small/1", &[], &Body::None).status, 204);
    let stats = node.stats();
    let tier = |namespace: &str, tier: &str| stats["namespaces"][namespace]["tiers"][tier].clone();
    let l0 = tier("small", "l0");
    assert_eq!((&l0["objects"], &l0["bytes"]), (&9.into(), &8_500.into()), "{l0}");
    assert_eq!((&l0["drops"]["gate"], &l0["evictions"]), (&1.into(), &0.into()), "{l0}");
    let cached = tier("cache", "l0");
    assert_eq!((&cached["objects"], &cached["bytes"]), (&10.into(), &20_000.into()), "{cached}");
    assert_eq!(tier("cache", "l2")["drops"]["on-evict"], 10);
    assert!(tier("small", "l2").get("bytes").is_none(), "nobody knows");
    let l1 = tier("small", "l1");
    assert!(l1.get("promotions").is_none() && l1["drops"]["tier-off"].as_u64() > Some(0), "L1 is off: {l1}");
    // Bytes are those of objects: tables are named apart.
    let total = &stats["totals"]["tiers"]["l0"];
    let bytes = total["bytes"].as_u64().unwrap();
    assert!((28_500..60_000).contains(&bytes), "{total}");
    assert!(total["overhead_bytes"].as_u64() > Some(bytes), "{total}");
    let l3 = &stats["shards"][0]["tiers"]["l3"];
    for unknown in ["bytes", "objects", "evictions", "promotions"] {
        assert!(l3.get(unknown).is_none(), "{l3}");
    }
    assert_eq!(stats["totals"]["tiers"]["l3"]["objects"], 10, "the tombstone is none");

    let l3 = tier("small", "l3");
    assert_eq!((&l3["objects"], &l3["bytes"]), (&10.into(), &108_500.into()), "{l3}");
    assert_eq!(tier("cache", "l3")["objects"], 0);

    // What left RAM comes back to it, and is counted where it was promoted.
    assert!(node.stop().status.success());
    let node = Node::start(dir.path(), &settings);
    let mut client = node.client();
    let l3 = node.stats()["namespaces"]["small"]["tiers"]["l3"].clone();
    assert_eq!((&l3["objects"], &l3["bytes"]), (&10.into(), &108_500.into()), "known before it is used: {l3}");
    assert_eq!(client.put("/small/new", b"makes the name known").status, 201);
    assert_eq!(client.get("/small/2").status, 200);
    wait(&node, |stats| {
        let tiers = &stats["namespaces"]["small"]["tiers"];
        (&tiers["l0"]["promotions"], &tiers["l0"]["objects"]) == (&1.into(), &2.into())
    });
}

#[test]
fn a_purge_by_the_admin_door_is_counted_and_says_which_tier_is_off() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=0"]);
    assert_eq!(node.client().put("/b/k", b"x").status, 201);
    let purge = || {
        let body = Body::Sized(br#"{"namespace": "b", "key": "k"}"#);
        node.admin().request("POST", "/v1/purge", &[("content-type", "application/json")], &body).json()
    };
    let outcomes = |report: &Value| ["l0", "l1", "l2", "l3"].map(|tier| report["tiers"][tier]["outcome"].clone());
    assert_eq!(outcomes(&purge()), ["removed", "off", "off", "removed"]);
    assert_eq!(outcomes(&purge()), ["absent", "off", "off", "absent"]);
    wait(&node, |stats| stats["namespaces"]["b"]["purges"] == 2);
    assert!(node.admin().get("/metrics").text().contains(r#"strata_purges_total{namespace="b"} 2"#));
}

#[test]
fn a_change_of_policy_that_changes_nothing_keeps_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &SETTINGS);
    let changed = node.patch_policy(r#"{"l0_max": "1MiB"}"#);
    assert_eq!((changed.status, changed.header("etag")), (200, "\"2\""));
    for same in [r#"{"l0_max": "1MiB"}"#, r#"{"l0_max": 1048576}"#, "{}"] {
        let again = node.patch_policy(same);
        assert_eq!((again.status, again.header("etag")), (200, "\"2\""), "{same}");
        assert_eq!(again.json(), changed.json(), "{same}");
    }
    assert_eq!(node.patch_policy(r#"{"l0_max": "2MiB"}"#).header("etag"), "\"3\"");
}

#[test]
fn a_node_that_refuses_durable_writes_for_want_of_room_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[&SETTINGS[..], &["--set", "l3_bytes_max=4MiB"]].concat());
    let mut client = node.client();
    let codes = || {
        let ready = node.admin().get("/readyz");
        assert_eq!(ready.status, 200, "degraded is no reason to send traffic elsewhere");
        let reasons = ready.json()["reasons"].as_array().unwrap().clone();
        reasons.iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(codes(), [""; 0]);
    let full = (0..).find(|i| client.put(&format!("/a/{i}"), &vec![3; 500_000]).status == 507).unwrap();
    assert!((6..9).contains(&full), "{full}");
    let begun = Instant::now();
    while codes() != ["quota-full"] {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", codes());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(node.stats()["totals"]["tiers"]["l3"]["state"], "degraded");
    assert!(node.admin().get("/metrics").text().contains(r#"strata_degraded{reason="quota-full"} 1"#));
    // A refused body ends its connection.
    let mut client = node.client();
    for i in 0..full {
        assert_eq!(client.request("DELETE", &format!("/a/{i}"), &[], &Body::None).status, 204);
    }
    assert_eq!(client.get("/a/0").status, 404);
}
