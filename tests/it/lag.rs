//! Bodies that come faster than flash takes them: with the lags as they are by default they are on flash after a while.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    client::{Body, Client},
    node::{Node, files_below},
};

const LENGTH: usize = 100_000_000;
const TARGET: &str = "/large/body";

/// An L2 that takes bodies of a quarter of its shard's log.
const L2: [&str; 2] = ["--set", "l2_bytes=1GiB"];

fn body() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; LENGTH];
    random.fill(&mut bytes);
    bytes
}

/// Waits until flash answers, asking for no body: a HEAD promotes nothing.
fn comes_to_flash(client: &mut Client) {
    let begun = Instant::now();
    while client.request("HEAD", TARGET, &[], &Body::None).tier() != "l2" {
        assert!(begun.elapsed() < Duration::from_secs(60), "the body does not arrive in L2");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("on flash after {:?}", begun.elapsed());
}

fn reads(client: &mut Client, bytes: &[u8]) -> String {
    let answer = client.get(TARGET);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.body == bytes, "other bytes");
    answer.tier().to_owned()
}

fn lose_flash(data: &Path) {
    let logs = files_below(&data.join("l2"));
    assert!(!logs.is_empty(), "no logs in {}", data.display());
    for file in logs {
        fs::remove_file(file).expect("ours");
    }
}

#[test]
fn a_large_body_comes_to_flash_after_a_write_and_after_a_read() {
    let bytes = body();
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &L2);
    let mut client = node.client();
    let answer = client.request("PUT", TARGET, &[], &Body::Sized(&bytes));
    assert_eq!(answer.status, 201, "{answer:?}");
    println!("stored: {}", answer.header("strata-stored"));
    comes_to_flash(&mut client);
    assert_eq!(reads(&mut client, &bytes), "l2");
    assert!(node.stop().status.success());

    // Flash was lost: the first read is L3's, and brings the body back to flash, by its promotion or after it.
    lose_flash(dir.path());
    let node = Node::start(dir.path(), &L2);
    let mut client = node.client();
    assert_eq!(reads(&mut client, &bytes), "l3");
    comes_to_flash(&mut client);
    assert_eq!(reads(&mut client, &bytes), "l2");
    assert!(node.stop().status.success());
}

#[test]
fn a_stop_does_not_wait_for_what_is_on_its_way_to_flash() {
    let bytes = body();
    let dir = tempfile::tempdir().unwrap();
    // No lag at all: whatever flash does not take at once is copied later.
    let node = Node::start(dir.path(), &[&L2[..], &["--set", "fanout_lag_max=1"]].concat());
    let mut client = node.client();
    for i in 0..3 {
        let answer = client.request("PUT", &format!("{TARGET}{i}"), &[], &Body::Sized(&bytes));
        assert_eq!(answer.status, 201, "{answer:?}");
        println!("stored: {}", answer.header("strata-stored"));
    }
    drop(client);
    let begun = Instant::now();
    let ended = node.stop();
    assert!(ended.status.success(), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
}
