//! `/metrics` and the dashboard.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::Door;

/// Parses one sample line: name, labels, value.
fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
    let value = value.parse().unwrap_or_else(|_| panic!("no number in {line:?}"));
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}').expect(line)),
    };
    let word = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') && !text.is_empty()
    };
    assert!(word(name), "{line:?}");
    let mut found = BTreeMap::new();
    for label in labels.split_terminator(',') {
        let (name, value) = label.split_once("=\"").expect(line);
        let value = value.strip_suffix('"').expect(line);
        assert!(word(name) && !value.contains(['"', '\\']), "{line:?}");
        assert!(found.insert(name.to_owned(), value.to_owned()).is_none(), "{line:?} repeats a label");
    }
    (name.to_owned(), found, value)
}

#[test]
fn every_line_of_the_metrics_parses_and_belongs_to_a_family() {
    let door = Door::open();
    door.control.degrade(true, true, &[("tier-poisoned", "shard 0"), ("tier-poisoned", "shard 1")]);
    let reply = door.get("/metrics");
    assert_eq!(reply.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = reply.body.strip_suffix("# EOF\n").expect("the page is whole");

    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let mut series = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (keyword, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            match keyword {
                "HELP" => assert!(!rest.is_empty()),
                "TYPE" => {
                    assert!(["counter", "gauge", "info"].contains(&rest), "{line}");
                    assert!(families.insert(name.to_owned(), rest.to_owned()).is_none(), "{name} comes twice");
                    current = name.to_owned();
                }
                "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, labels, value) = sample(line);
        let suffix = match families[&current].as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        assert_eq!(name, format!("{current}{suffix}"), "{line}");
        assert!(name.starts_with("strata_"));
        assert!(series.insert(line[..line.rfind(' ').unwrap()].to_owned(), value).is_none(), "{line} comes twice");
        assert!(!labels.values().any(String::is_empty), "{line}");
    }

    for (name, value) in [
        (r#"strata_hits_total{tier="l0",namespace="images"}"#, 180.0),
        (r#"strata_misses_total{reason="expired",namespace="images"}"#, 3.0),
        (r#"strata_misses_total{reason="not-found",namespace="memcached"}"#, 1.0),
        (r#"strata_drops_total{tier="l2",reason="io"}"#, 4.0),
        (r#"strata_tier_hits_total{tier="l2"}"#, 40.0),
        (r#"strata_tier_bytes{tier="l0"}"#, 2000.0),
        (r#"strata_tier_capacity_bytes{tier="l0"}"#, 8000.0),
        (r#"strata_tier_ok{tier="l2"}"#, 0.0),
        (r#"strata_evictions_total{tier="l0"}"#, 4.0),
        (r#"strata_promotions_total{tier="l0"}"#, 2.0),
        (r#"strata_tier_misses_total{tier="l2",reason="expired"}"#, 20.0),
        (r#"strata_tier_errors_total{tier="l0",reason="io"}"#, 2.0),
        (r#"strata_tier_overhead_bytes{tier="l0"}"#, 600.0),
        (r#"strata_tier_hits_total{tier="l3"}"#, 10.0),
        (r#"strata_door_answers_total{door="http",op="get",class="4xx"}"#, 80.0),
        (r#"strata_door_answers_total{door="http",op="other",class="4xx"}"#, 2.0),
        (r#"strata_door_refusals_total{door="http",reason="method"}"#, 2.0),
        (r#"strata_door_cuts_total{door="http",reason="corrupted"}"#, 4.0),
        (r#"strata_door_sent_bytes_total{door="http"}"#, 18000.0),
        (r#"strata_door_connections_accepted_total{door="http"}"#, 16.0),
        (r#"strata_door_connections_refused_total{door="http"}"#, 12.0),
        (r#"strata_door_connections_timed_out_total{door="http"}"#, 8.0),
        (r#"strata_namespace_bytes{namespace="images",tier="l0"}"#, 2000.0),
        (r#"strata_namespace_objects{namespace="images",tier="l0"}"#, 6.0),
        (r#"strata_namespace_evictions_total{namespace="images",tier="l0"}"#, 4.0),
        (r#"strata_namespace_promotions_total{namespace="images",tier="l2"}"#, 1.0),
        (r#"strata_namespace_drops_total{namespace="images",tier="l0",reason="gate"}"#, 8.0),
        ("strata_index_commits_total", 3.0),
        ("strata_index_mutations_total", 25.0),
        (r#"strata_requests_total{shard="1"}"#, 100.0),
        (r#"strata_heartbeat_gap_max_seconds{shard="0"}"#, 1.25),
        (r#"strata_latency_seconds{door="http",op="get",quantile="0.999"}"#, 0.0015),
        (r#"strata_operations_total{door="http",op="get"}"#, 230.0),
        (r#"strata_degraded{reason="tier-poisoned"}"#, 1.0),
        (r#"strata_build_info{version="1.2.3",profile="debug",revision="abc123"}"#, 1.0),
        ("strata_uptime_seconds", 61.0),
        ("strata_policy_version", 7.0),
        ("strata_ready", 1.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name} in\n{text}");
    }
    assert!(!families.contains_key("strata_memory_resident_bytes"), "what is unknown is left out");
    for never in ["strata_tier_bytes", "strata_tier_objects", "strata_evictions_total", "strata_promotions_total"] {
        assert!(!series.contains_key(&format!("{never}{{tier=\"l3\"}}")), "{never} of L3");
    }
    assert!(!series.contains_key(r#"strata_namespace_evictions_total{namespace="images",tier="l2"}"#));
}

#[test]
fn the_dashboard_is_one_page_that_asks_nobody_else() {
    let reply = Door::open().get("/");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    for foreign in ["src=\"http", "href=\"http", "url(http", "@import", "innerHTML", "<link rel=\"stylesheet"] {
        assert!(!reply.body.contains(foreign), "{foreign}");
    }
    // Every path it polls is one that is served.
    let door = Door::open();
    let polled: BTreeSet<&str> =
        reply.body.split("load(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(polled, BTreeSet::from(["/readyz", "/v1/stats"]));
    for path in polled {
        assert_eq!(door.get(path).status, 200, "{path}");
    }
}
