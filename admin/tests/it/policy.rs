//! `/v1/policy`: versions, preconditions, merge, refusals.

use std::sync::atomic::Ordering::SeqCst;

use serde_json::{Value, json};

use crate::client::{Door, JSON};

const PATH: &str = "/v1/policy";
const MERGE: &str = "Content-Type: application/merge-patch+json";

#[test]
fn a_read_carries_its_version_and_is_validated() {
    let door = Door::open();
    let reply = door.get(PATH);
    assert_eq!((reply.status, reply.header("etag")), (200, Some("\"7\"")));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    assert_eq!(reply.json(), json!({"l0_max": "2MiB", "l2_max": null, "namespaces": {}}));
    for (header, status) in [
        ("If-None-Match: \"7\"", 304),
        ("If-None-Match: W/\"7\"", 304),
        ("If-None-Match: \"1\", \"7\"", 304),
        ("If-None-Match: *", 304),
        ("If-None-Match: \"6\"", 200),
        ("If-Match: \"7\"", 200),
        ("If-Match: \"6\"", 412),
        ("If-None-Match: 7", 400),
    ] {
        let reply = door.ask("GET", PATH, &[header], "");
        assert_eq!(reply.status, status, "{header}");
        if status == 304 {
            assert_eq!((reply.header("etag"), reply.body.as_str()), (Some("\"7\""), ""));
        }
    }
}

#[test]
fn put_replaces_and_what_was_read_can_be_put_back() {
    let door = Door::open();
    let reply = door.ask("PUT", PATH, &[JSON], r#"{"l0_max": 1024}"#);
    assert_eq!((reply.status, reply.header("etag")), (200, Some("\"8\"")));
    assert_eq!(reply.json(), json!({"l0_max": 1024, "l2_max": null, "namespaces": {}}));
    let read = door.get(PATH);
    assert_eq!((read.header("etag"), &read.json()), (Some("\"8\""), &reply.json()));
    let again = door.ask("PUT", PATH, &[JSON, "If-Match: \"8\""], &read.body);
    assert_eq!((again.status, again.header("etag"), again.json()), (200, Some("\"9\""), read.json()));
}

#[test]
fn patch_merges_under_both_content_types() {
    let door = Door::open();
    let set = door.ask("PATCH", PATH, &[MERGE], r#"{"namespaces": {"a": {"x": 1, "y": 2}}}"#);
    assert_eq!((set.status, set.header("etag")), (200, Some("\"8\"")));
    let reply = door.ask("PATCH", PATH, &[JSON], r#"{"l0_max": null, "namespaces": {"a": {"x": null}, "b": null}}"#);
    assert_eq!(reply.json(), json!({"l0_max": "2MiB", "l2_max": null, "namespaces": {"a": {"y": 2}}}));
    assert_eq!(door.get(PATH).json(), reply.json());
}

#[test]
fn preconditions_decide_before_anything_changes() {
    let body = r#"{"l0_max": 1}"#;
    for method in ["PUT", "PATCH"] {
        for (header, status) in [
            ("If-Match: \"7\"", 200),
            ("If-Match: *", 200),
            ("If-Match: \"3\", \"7\"", 200),
            ("If-None-Match: \"6\"", 200),
            ("If-Match: \"6\"", 412),
            ("If-Match: W/\"7\"", 412),
            ("If-None-Match: *", 412),
            ("If-None-Match: W/\"7\"", 412),
            ("If-Match: 7", 400),
        ] {
            let door = Door::open();
            let reply = door.ask(method, PATH, &[JSON, header], body);
            assert_eq!(reply.status, status, "{method} {header}");
            assert_eq!(door.control.policy.lock().unwrap().version, if status == 200 { 8 } else { 7 });
            match status {
                412 => assert_eq!(reply.problem(412, "precondition")["current_version"], 7),
                400 => drop(reply.problem(400, "bad-request")),
                _ => assert_eq!(reply.header("etag"), Some("\"8\"")),
            }
        }
    }
}

#[test]
fn a_rival_change_is_never_overwritten() {
    let body = r#"{"l0_max": 1}"#;
    let rivals = |count| {
        let door = Door::open();
        door.control.rivals.store(count, SeqCst);
        door
    };

    let door = rivals(3);
    let merged = door.ask("PATCH", PATH, &[MERGE], body);
    assert_eq!((merged.status, merged.header("etag")), (200, Some("\"11\"")));
    assert_eq!(merged.json()["l0_max"], 1);
    assert_eq!(merged.json()["namespaces"]["rival"]["l0_max"], 10, "the last rival's change is kept");

    for method in ["PUT", "PATCH"] {
        let door = rivals(1);
        let refused = door.ask(method, PATH, &[JSON, "If-Match: \"7\""], body);
        assert_eq!(refused.problem(412, "precondition")["current_version"], 8);
        assert_eq!(door.control.policy.lock().unwrap().document["l0_max"], "2MiB");

        let door = rivals(1);
        let either = door.ask(method, PATH, &[JSON, "If-Match: \"7\", \"8\""], body);
        assert_eq!((either.status, either.header("etag")), (200, Some("\"9\"")));
    }

    let door = rivals(1000);
    door.ask("PATCH", PATH, &[MERGE], body).problem(409, "policy-busy");
    assert!(door.control.rivals.load(SeqCst) >= 900, "the retries are bounded");
}

#[test]
fn concurrent_patches_all_take_effect() {
    let door = Door::open();
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let door = &door;
            scope.spawn(move || {
                for round in 0..10 {
                    let body = json!({"namespaces": {format!("n{writer}-{round}"): {"l0_max": round}}});
                    assert_eq!(door.ask("PATCH", PATH, &[MERGE], &body.to_string()).status, 200);
                }
            });
        }
    });
    let policy = door.control.policy.lock().unwrap().clone();
    assert_eq!(policy.version, 67);
    assert_eq!(policy.document["namespaces"].as_object().unwrap().len(), 60);
}

#[test]
fn what_a_policy_cannot_say_is_refused_by_its_field() {
    let door = Door::open();
    for (method, body, field) in [
        ("PUT", r#"{"l0_mx": 1}"#, "/l0_mx"),
        ("PATCH", r#"{"l0_mx": 1}"#, "/l0_mx"),
        ("PATCH", r#"{"l0_mx": null}"#, "/l0_mx"),
        ("PATCH", r#"{"a/b": null}"#, "/a~1b"),
        ("PUT", r#"{"l0_max": []}"#, "/l0_max"),
        ("PUT", r#"{"l0_max": 2, "l2_max": 1}"#, "/l0_max"),
        ("PUT", r#"{"l0_max": 2, "l0_max": 3}"#, "/l0_max"),
        ("PATCH", r#"{"namespaces": {"a": {"x": 1, "x": 1}}}"#, "/namespaces/a/x"),
        ("PUT", "[]", ""),
        ("PUT", "null", ""),
        ("PATCH", "7", ""),
    ] {
        let reply = door.ask(method, PATH, &[JSON], body);
        assert_eq!(reply.problem(422, "invalid-field")["field"], field, "{method} {body}");
    }
    assert_eq!(door.control.policy.lock().unwrap().version, 7);
}

#[test]
fn what_is_not_json_is_refused_by_its_position() {
    let door = Door::open();
    for (body, line, column) in [("{\n  \"l0_max\": 1,\n  oops\n}", 3, 3), ("{", 1, 1), ("{} x", 1, 4)] {
        let problem = door.ask("PUT", PATH, &[JSON], body).problem(400, "json-syntax");
        assert_eq!((&problem["line"], &problem["column"]), (&Value::from(line), &Value::from(column)), "{problem}");
    }
    door.ask("PUT", PATH, &[JSON, "Content-Length: 0"], "").problem(400, "json-syntax");
}

#[test]
fn a_node_that_cannot_says_so() {
    let door = Door::open();
    door.control.unavailable.store(true, SeqCst);
    for method in ["PUT", "PATCH"] {
        let problem = door.ask(method, PATH, &[JSON], "{}").problem(503, "unavailable");
        assert_eq!(problem["detail"], "shard 1 is restarting");
    }
    assert_eq!(door.get(PATH).status, 200, "reading needs no shard");
}
