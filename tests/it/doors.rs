//! The doors, end to end: methods, conditions, lifetimes, purges, shutdown.

use std::time::{Duration, Instant};

use crate::{client::Body, node::Node};

#[test]
fn a_key_s_life_over_http() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"]);
    let mut c = node.client();

    let miss = c.get("/docs/a");
    assert_eq!((miss.status, miss.header("cache-status")), (404, "Strata; fwd=uri-miss; detail=not-found"));
    let put =
        c.request("PUT", "/docs/a", &[("if-none-match", "*"), ("content-type", "text/plain")], &Body::Sized(b"one"));
    assert_eq!(put.status, 201, "{put:?}");
    let etag = put.header("etag").to_owned();
    let get = c.get("/docs/a");
    assert_eq!((get.status, get.header("etag"), get.text().as_str()), (200, etag.as_str(), "one"));
    assert_eq!(get.header("cache-status"), "Strata; hit; detail=l0");
    let head = c.request("HEAD", "/docs/a", &[], &Body::None);
    assert_eq!((head.status, head.header("content-length"), head.header("content-type")), (200, "3", "text/plain"));
    assert_eq!(c.request("GET", "/docs/a", &[("if-none-match", &etag)], &Body::None).status, 304);

    // Compare-and-swap.
    assert_eq!(c.request("PUT", "/docs/a", &[("if-none-match", "*")], &Body::Sized(b"no")).status, 412);
    assert_eq!(c.request("PUT", "/docs/a", &[("if-match", "\"0000000000000001\"")], &Body::Sized(b"no")).status, 412);
    let two = c.request("PUT", "/docs/a", &[("if-match", &etag)], &Body::Sized(b"two"));
    assert_eq!(two.status, 204, "{two:?}");
    assert_eq!(c.request("PUT", "/docs/a", &[("if-match", &etag)], &Body::Sized(b"no")).status, 412);
    assert_eq!(c.get("/docs/a").text(), "two");

    // Ranges.
    assert_eq!(c.put("/docs/r", b"0123456789").status, 201);
    for (range, want) in [("bytes=2-4", "234"), ("bytes=7-", "789"), ("bytes=-2", "89"), ("bytes=5-99", "56789")] {
        let part = c.request("GET", "/docs/r", &[("range", range)], &Body::None);
        assert_eq!((part.status, part.text().as_str()), (206, want), "{range}");
    }
    let beyond = c.request("GET", "/docs/r", &[("range", "bytes=10-")], &Body::None);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */10"));

    // Delete and purge.
    assert_eq!(c.request("DELETE", "/docs/a", &[], &Body::None).status, 204);
    assert_eq!(c.request("DELETE", "/docs/a", &[], &Body::None).status, 404);
    assert_eq!(c.get("/docs/a").header("cache-status"), "Strata; fwd=uri-miss; detail=deleted");
    let purge = c.request("PURGE", "/docs/r", &[], &Body::None);
    assert_eq!(purge.status, 200);
    assert_eq!(c.get("/docs/r").status, 404);
    assert_eq!(c.put("/docs/a", b"three").status, 201);
    let by_admin = node.admin().request(
        "POST",
        "/v1/purge",
        &[("content-type", "application/json")],
        &Body::Sized(br#"{"namespace": "docs", "key": "a"}"#),
    );
    assert_eq!(by_admin.status, 200, "{}", by_admin.text());
    assert_eq!(c.get("/docs/a").status, 404);

    // None of it comes back, not even after a kill.
    node.kill();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"]);
    assert_eq!((node.client().get("/docs/a").status, node.client().get("/docs/r").status), (404, 404));
}

#[test]
fn objects_expire_by_strata_ttl_and_no_store_is_refused_in_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"]);
    assert_eq!(
        node.patch_policy(r#"{"namespaces": {"c": {"mode": "cache_only", "tiers": ["l0", "l2"]}}}"#).status,
        200
    );
    let mut client = node.client();
    for target in ["/durable/a", "/c/a"] {
        assert_eq!(client.request("PUT", target, &[("strata-ttl", "1")], &Body::Sized(b"x")).status, 201);
        let begun = Instant::now();
        loop {
            let answer = client.get(target);
            if answer.status == 404 {
                assert_eq!(answer.header("cache-status"), "Strata; fwd=uri-miss; detail=expired", "{target}");
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{target} does not expire");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let refused = client.request("PUT", "/c/b", &[("cache-control", "no-store")], &Body::Sized(b"x"));
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("no-store"), "{}", refused.text());
    assert_eq!(client.request("PUT", "/durable/b", &[("cache-control", "no-store")], &Body::Sized(b"x")).status, 201);
    assert_eq!(client.get("/durable/b").header("cache-control"), "no-store");
}

#[test]
fn cache_only_overwrites_and_deletes_hold_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"];
    let node = Node::start(dir.path(), &settings);
    assert_eq!(
        node.patch_policy(
            r#"{"namespaces": {"c": {"mode": "cache_only", "tiers": ["l0", "l2"], "l2_fill": "on_write"}}}"#
        )
        .status,
        200
    );
    let mut client = node.client();
    for i in 0..200 {
        assert_eq!(client.put(&format!("/c/{i}"), format!("old {i}").as_bytes()).status, 201);
    }
    // On flash for sure: a clean stop flushes.
    assert!(node.stop().status.success());
    let node = Node::start(dir.path(), &settings);
    let mut client = node.client();
    assert_eq!(client.get("/c/7").text(), "old 7", "a cache outlives a clean restart");
    for i in 0..100 {
        assert_eq!(client.put(&format!("/c/{i}"), format!("new {i}").as_bytes()).status, 204);
    }
    for i in 100..150 {
        assert_eq!(client.request("DELETE", &format!("/c/{i}"), &[], &Body::None).status, 204);
    }
    node.kill();
    let node = Node::start(dir.path(), &settings);
    let mut client = node.client();
    for i in 0..200 {
        let answer = client.get(&format!("/c/{i}"));
        match i {
            0..100 => assert!(answer.status == 404 || answer.text() == format!("new {i}"), "{i}: {answer:?}"),
            100..150 => assert_eq!(answer.status, 404, "{i} came back"),
            _ => assert_eq!(answer.text(), format!("old {i}")),
        }
    }
}

#[test]
fn a_stop_finishes_the_requests_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"]);
    let body = vec![9; 8 << 20];
    let mut client = node.client();
    use std::io::Write;
    let head = format!("PUT /stop/in-flight HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n", body.len());
    client.raw().write_all(head.as_bytes()).unwrap();
    client.raw().write_all(&body[..1 << 20]).unwrap();
    // The node has the request once it counts it.
    let begun = Instant::now();
    while node.stats()["totals"]["requests_in_flight"].as_u64().unwrap_or(0) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", node.stats()["totals"]);
    }
    node.signal(rustix::process::Signal::TERM);
    let begun = Instant::now();
    while std::net::TcpStream::connect(node.http).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(20), "still accepts");
        std::thread::sleep(Duration::from_millis(5));
    }
    client.raw().write_all(&body[1 << 20..]).unwrap();
    assert_eq!(client.receive("PUT").unwrap().status, 201);
    let ended = node.ended();
    assert!(ended.status.success(), "{ended:?}");
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"]);
    assert!(node.client().get("/stop/in-flight").body == body);
}
