//! A namespace is durable or a cache for its life: by the admin API, by the settings, and over restarts.

use std::{fs, path::Path};

use crate::{
    client::{Answer, Body},
    node::{Node, files_below},
};

const SMALL: [&str; 4] = ["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"];

const CACHE: &str = r#"{"namespaces": {"cache": {"mode": "cache_only"}}}"#;

fn start(dir: &Path, settings: &[&str]) -> Node {
    Node::start(dir, &[&SMALL[..], settings].concat())
}

/// A start that is refused; what it said. Nothing in the data directory may have changed but the lock's process id.
fn refused(dir: &Path, settings: &[&str]) -> String {
    let policy = dir.join("policy.json");
    let before = (fs::read(&policy).unwrap(), files_below(dir));
    let ended = Node::try_start(dir, &[&SMALL[..], settings].concat()).err();
    let ended = ended.unwrap_or_else(|| panic!("{settings:?} was accepted"));
    assert!(!ended.status.success());
    assert!((fs::read(&policy).unwrap(), files_below(dir)) == before, "{settings:?} changed the data directory");
    ended.text
}

fn put_policy(node: &Node, document: &str) -> Answer {
    let headers = [("content-type", "application/json")];
    node.admin().request("PUT", "/v1/policy", &headers, &Body::Sized(document.as_bytes()))
}

fn assert_refused(answer: &Answer, pointer: &str) {
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert_eq!(answer.json()["field"], pointer, "{}", answer.text());
    assert!(answer.text().contains("declare another namespace"), "{}", answer.text());
}

#[test]
fn the_admin_api_changes_no_mode() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), &[]);
    assert_eq!(node.patch_policy(CACHE).status, 200);
    let mut client = node.client();
    assert_eq!((client.put("/cache/a", b"1").status, client.put("/plain/a", b"2").status), (201, 201));
    let before = node.admin().get("/v1/policy");

    for (patch, name) in [
        (r#"{"namespaces": {"cache": {"mode": "durable"}}}"#, "cache"),
        (r#"{"namespaces": {"cache": {"mode": null}}}"#, "cache"),
        (r#"{"namespaces": {"cache": null}}"#, "cache"),
        (r#"{"namespaces": null}"#, "cache"),
        (r#"{"l0_max": 1, "namespaces": {"memcached": {"mode": "durable"}}}"#, "memcached"),
        (r#"{"namespaces": {"plain": {"mode": "cache_only"}}}"#, "plain"),
    ] {
        assert_refused(&node.patch_policy(patch), &format!("/namespaces/{name}/mode"));
    }
    for (document, name) in [
        ("{}", "cache"),
        (r#"{"namespaces_mode": "declared"}"#, "cache"),
        (r#"{"namespaces": {"cache": {}}}"#, "cache"),
        (r#"{"namespaces": {"cache": {"mode": "cache_only"}, "plain": {"mode": "cache_only"}}}"#, "plain"),
    ] {
        assert_refused(&put_policy(&node, document), &format!("/namespaces/{name}/mode"));
    }
    let after = node.admin().get("/v1/policy");
    assert_eq!((after.text(), after.header("etag")), (before.text(), before.header("etag")), "nothing changed");

    // The rest of such a namespace may change, a durable one may come and go, and names nobody used may be caches.
    for patch in [
        r#"{"namespaces": {"cache": {"ttl_max": 600}}}"#,
        r#"{"namespaces": {"plain": {"mode": "durable", "l0_max": "1KiB"}}}"#,
        r#"{"namespaces": {"plain": null, "fresh": {"mode": "cache_only"}}}"#,
    ] {
        let answer = node.patch_policy(patch);
        assert_eq!(answer.status, 200, "{patch}: {}", answer.text());
    }
    let back = r#"{"namespaces": {"plain": {"mode": "cache_only"}}}"#;
    assert_refused(&node.patch_policy(back), "/namespaces/plain/mode");
    let fresh = client.put("/fresh/a", b"3");
    assert_eq!(fresh.status, 201, "{}", fresh.text());
    assert!(!fresh.header("strata-stored").contains("L3,"), "{fresh:?}");
    assert_eq!((client.get("/cache/a").text(), client.get("/plain/a").text()), ("1".to_owned(), "2".to_owned()));

    // What L3 holds from an earlier run counts as well, declared since or not.
    assert!(node.stop().status.success());
    let node = start(dir.path(), &[]);
    assert_refused(&node.patch_policy(back), "/namespaces/plain/mode");
    assert_eq!(node.client().get("/plain/a").text(), "2");
}

#[test]
fn a_start_changes_no_mode() {
    let dir = tempfile::tempdir().unwrap();
    let (mode, fill) = ("policy.namespaces.cache.mode=cache_only", "policy.namespaces.cache.l2_fill=on_write");
    let cache = ["--set", mode, "--set", fill];
    let node = start(dir.path(), &cache);
    assert_eq!((node.client().put("/cache/a", b"1").status, node.client().put("/plain/a", b"2").status), (201, 201));
    assert!(node.stop().status.success());

    let durable = ["--set", "policy.namespaces.cache.mode=durable"];
    for settings in [&durable[..], &[]] {
        let text = refused(dir.path(), settings);
        assert!(text.contains("policy.namespaces.cache.mode: "), "{text}");
        assert!(text.contains("declare another namespace") && text.contains("policy.json"), "{text}");
    }
    // A name that is durable without being declared.
    let both = [&cache[..], &["--set", "policy.namespaces.plain.mode=cache_only"]].concat();
    for _ in 0..2 {
        let text = refused(dir.path(), &both);
        assert!(
            text.contains("policy.namespaces.plain.mode: ") && text.contains("declare another namespace"),
            "{text}"
        );
    }
    // Refused starts were not remembered, and other settings may change.
    let node = start(dir.path(), &[&cache[..], &["--set", "policy.l0_max=1MiB"]].concat());
    assert_eq!((node.client().get("/cache/a").text(), node.client().get("/plain/a").text()), ("1".into(), "2".into()));
}

#[test]
fn a_cache_is_given_up_by_a_run_without_flash_and_nothing_of_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), &[]);
    let made = r#"{"namespaces": {"cache": {"mode": "cache_only", "l2_fill": "on_write"}}}"#;
    assert_eq!(node.patch_policy(made).status, 200);
    let mut client = node.client();
    for target in ["/cache/kept", "/cache/over", "/cache/gone"] {
        assert_eq!(client.put(target, b"cached").status, 201);
    }
    let refusal = node.patch_policy(r#"{"namespaces": {"cache": null}}"#);
    assert!(refusal.text().contains("start once with l2_bytes = 0"), "{}", refusal.text());
    assert!(node.stop().status.success());

    // What the refusal says, and only that.
    let durable = ["--set", "policy.namespaces.cache.mode=durable"];
    let text = refused(dir.path(), &durable);
    assert!(text.contains("start once with l2_bytes = 0"), "{text}");
    let node = Node::start(dir.path(), &[&["--memory-max", "256MiB", "--set", "l2_bytes=0"], &durable[..]].concat());
    let mut client = node.client();
    assert_eq!(client.get("/cache/kept").status, 404);
    let over = client.put("/cache/over", b"durable");
    assert!(over.status == 201 && over.header("strata-stored").contains("L3"), "{over:?}");
    assert_eq!(client.put("/cache/gone", b"durable").status, 201);
    assert_eq!(client.request("DELETE", "/cache/gone", &[], &Body::None).status, 204);
    node.kill();

    let node = start(dir.path(), &[]);
    let mut client = node.client();
    assert_eq!((client.get("/cache/kept").status, client.get("/cache/gone").status), (404, 404));
    assert_eq!(client.get("/cache/over").text(), "durable");
    assert_refused(&node.patch_policy(CACHE), "/namespaces/cache/mode");
}
