//! Byte gates, seen from outside.

use crate::{client::Body, node::Node};

const MIB: usize = 1 << 20;

#[test]
fn an_object_that_outgrows_the_l0_gate_in_mid_stream_ends_in_l2_and_l3_only() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=256MiB"]);
    let mut client = node.client();
    let body: Vec<u8> = (0..3 * MIB).map(|i| (i / 7) as u8).collect();

    let answer = client.request("PUT", "/gates/grows", &[], &Body::Chunked(&body, 10_000));
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.header("strata-stored"), "L2, L3, L0=?0;reason=gate, L1=?0;reason=tier-off", "{answer:?}");
    let read = client.get("/gates/grows");
    assert_eq!((read.status, read.tier()), (200, "l2"));
    assert!(read.body == body);
    // Reading it whole does not bring it into L0 either.
    assert_eq!(client.get("/gates/grows").tier(), "l2");

    // Exactly at the gate is admitted; one byte more is not, announced or not.
    for (extra, sized, tier) in [(0, true, "l0"), (0, false, "l0"), (1, true, "l2"), (1, false, "l2")] {
        let target = format!("/gates/at-{extra}-{sized}");
        let body = vec![b'x'; 2 * MIB + extra];
        let body = if sized { Body::Sized(&body) } else { Body::Chunked(&body, 65_536) };
        assert_eq!(client.request("PUT", &target, &[], &body).status, 201);
        assert_eq!(client.get(&target).tier(), tier, "{target}");
    }
}

#[test]
fn a_policy_change_holds_for_the_next_object() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=256MiB"]);
    let mut client = node.client();
    let before = node.admin().get("/v1/policy");
    assert_eq!(client.put("/gates/before", &[1; 2048]).status, 201);
    assert_eq!(client.get("/gates/before").tier(), "l0");

    let answer = node.patch_policy(r#"{"l0_max": "1KiB"}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_ne!(answer.header("etag"), before.header("etag"));
    assert_eq!(client.put("/gates/after", &[1; 2048]).status, 201);
    assert_eq!(client.get("/gates/after").tier(), "l2");
    assert_eq!(client.put("/gates/at", &[1; 1024]).status, 201);
    assert_eq!(client.get("/gates/at").tier(), "l0");

    // Refused changes name the field, and change nothing.
    for (patch, field) in [(r#"{"l0_maxx": 1}"#, "l0_maxx"), (r#"{"l0_max": "1 parsec"}"#, "l0_max")] {
        let answer = node.patch_policy(patch);
        assert_eq!(answer.status, 422, "{}", answer.text());
        assert!(answer.text().contains(field), "{}", answer.text());
    }
    // A stale If-Match is refused.
    let headers = [("content-type", "application/merge-patch+json"), ("if-match", before.header("etag"))];
    let stale = node.admin().request("PATCH", "/v1/policy", &headers, &Body::Sized(br#"{"l0_max": 1}"#));
    assert_eq!(stale.status, 412, "{}", stale.text());
    assert_eq!(client.put("/gates/still", &[1; 1024]).status, 201);
    assert_eq!(client.get("/gates/still").tier(), "l0");

    // The change survives a restart.
    assert!(node.stop().status.success());
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=256MiB"]);
    assert_eq!(node.client().put("/gates/restarted", &[1; 2048]).status, 201);
    assert_eq!(node.client().get("/gates/restarted").tier(), "l2");
}

#[test]
fn namespaces_choose_their_tiers_and_count_apart() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=256MiB"]);
    let patch = r#"{"namespaces": {"scratch": {"mode": "cache_only", "tiers": ["l0", "l2"], "l0_max": "4KiB"},
                                   "vault": {"tiers": ["l3"]}}}"#;
    assert_eq!(node.patch_policy(patch).status, 200);
    let mut client = node.client();

    let small = client.put("/scratch/small", &[1; 100]);
    assert_eq!(
        small.header("strata-stored"),
        "L0, L1=?0;reason=tier-off, L2=?0;reason=on-evict, L3=?0;reason=tier-off"
    );
    let large = client.put("/scratch/large", &[1; 5000]);
    assert_eq!(large.header("strata-stored"), "L2, L0=?0;reason=gate, L1=?0;reason=tier-off, L3=?0;reason=tier-off");
    assert_eq!(client.get("/scratch/large").tier(), "l2");
    assert_eq!(client.put("/vault/a", &[1; 100]).status, 201);
    for _ in 0..2 {
        assert_eq!(client.get("/vault/a").tier(), "l3", "no tier above was to be filled");
    }
    let stats = node.stats();
    assert_eq!(stats["namespaces"]["vault"]["hits"]["l3"], 2, "{}", stats["namespaces"]);
    assert_eq!(stats["namespaces"]["scratch"]["hits"]["l2"], 1, "{}", stats["namespaces"]);
}
