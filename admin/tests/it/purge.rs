//! `/v1/purge`.

use std::sync::atomic::Ordering::SeqCst;

use serde_json::json;

use crate::client::{Door, JSON};

const PATH: &str = "/v1/purge";

#[test]
fn a_purge_reports_every_tier() {
    let door = Door::open();
    let reply = door.ask("POST", PATH, &[JSON], r#"{"namespace": "images", "key": "a%20b/c?w=1"}"#);
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let tiers = json!({"l0": {"outcome": "removed"}, "l2": {"outcome": "absent"}});
    assert_eq!(reply.json(), json!({"namespace": "images", "key": "a%20b/c?w=1", "tiers": tiers}));
    let purged = door.control.purged.lock().unwrap();
    assert_eq!(purged.len(), 1);
    assert_eq!((purged[0].namespace.as_str(), purged[0].key.as_str()), ("images", "a%20b/c?w=1"));
}

#[test]
fn what_cannot_be_purged_is_refused_by_its_field() {
    let door = Door::open();
    let long_name = json!({"namespace": "n".repeat(65), "key": "k"}).to_string();
    let long_key = json!({"namespace": "n", "key": "k".repeat(4097)}).to_string();
    for (body, field) in [
        (r#"{"key": "k"}"#, "/namespace"),
        (r#"{"namespace": "n"}"#, "/key"),
        (r#"{"namespace": "n", "key": 1}"#, "/key"),
        (r#"{"namespace": "N", "key": "k"}"#, "/namespace"),
        (r#"{"namespace": "", "key": "k"}"#, "/namespace"),
        (r#"{"namespace": "n", "key": ""}"#, "/key"),
        (r#"{"namespace": "n", "key": "a b"}"#, "/key"),
        (r#"{"namespace": "n", "key": "k", "prefix": "p"}"#, "/prefix"),
        (r#"{"namespace": "n", "key": "k", "key": "l"}"#, "/key"),
        (&long_name, "/namespace"),
        (&long_key, "/key"),
        ("[]", ""),
    ] {
        let problem = door.ask("POST", PATH, &[JSON], body).problem(422, "invalid-field");
        assert_eq!(problem["field"], field, "{body}");
    }
    let unknown = door.ask("POST", PATH, &[JSON], r#"{"namespace": "nowhere", "key": "k"}"#);
    assert_eq!(unknown.problem(404, "namespace-unknown")["field"], "/namespace");
    door.ask("POST", PATH, &[JSON], "{").problem(400, "json-syntax");
    assert!(door.control.purged.lock().unwrap().is_empty());
}

#[test]
fn the_longest_key_fits_with_every_byte_escaped() {
    let door = Door::open();
    let escaped = "\\u0041".repeat(4096);
    let reply = door.ask("POST", PATH, &[JSON], &format!(r#"{{"namespace": "n", "key": "{escaped}"}}"#));
    assert_eq!((reply.status, reply.json()["key"].as_str().unwrap().len()), (200, 4096));
}

#[test]
fn a_node_that_cannot_says_so() {
    let door = Door::open();
    door.control.unavailable.store(true, SeqCst);
    door.ask("POST", PATH, &[JSON], r#"{"namespace": "n", "key": "k"}"#).problem(503, "unavailable");
}
