//! What an earlier run left in the data directory: refused whole, dropped loudly, or worth what it is worth.

use std::{collections::BTreeMap, fs, path::Path};

use sha2::{Digest, Sha256};

use crate::node::{Node, files_below};

const SETTINGS: [&str; 4] = ["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"];

/// Every file but the locks, by its digest.
fn contents(dir: &Path) -> BTreeMap<String, [u8; 32]> {
    let files = files_below(dir).into_iter().filter(|path| !path.ends_with("LOCK"));
    files.map(|path| (path.display().to_string(), Sha256::digest(fs::read(&path).unwrap()).into())).collect()
}

/// Starts a node that must refuse; gives what it said.
fn refused(dir: &Path) -> String {
    let before = contents(dir);
    let ended = Node::try_start(dir, &SETTINGS).err().unwrap_or_else(|| panic!("it was accepted"));
    assert!(!ended.status.success());
    let after = contents(dir);
    let changed: Vec<_> = before.iter().filter(|(path, digest)| after.get(*path) != Some(digest)).collect();
    assert!(changed.is_empty() && before.len() == after.len(), "changed: {changed:?}");
    ended.text
}

/// A log header as a later program would write it: sound, of another format.
fn of_format(format: u32, mut log: Vec<u8>) -> Vec<u8> {
    log[8..12].copy_from_slice(&format.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    [&log[..12], &[0; 4], &log[16..4096]].iter().for_each(|part| crc.update(part));
    log[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
    log
}

#[test]
fn a_damaged_or_newer_data_directory_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &SETTINGS);
    assert_eq!(node.client().put("/keep/me", &[5; 100_000]).status, 201);
    assert!(node.stop().status.success());
    let files = files_below(dir.path());
    let identity = files.iter().find(|p| p.ends_with("identity.json")).expect("the identity file");
    let index = files.iter().find(|p| p.extension().is_some_and(|e| e == "redb")).expect("the index");
    let policy = files.iter().find(|p| p.ends_with("policy.json")).expect("the policy");
    // The last shard's: the others must not have been touched before it is looked at.
    let log = files.iter().rfind(|p| p.extension().is_some_and(|e| e == "log")).expect("a flash log");
    let ring = log.with_extension("ring");

    let newer_identity = fs::read_to_string(identity).unwrap().replace("\"format\": 1", "\"format\": 99");
    let damaged_index = vec![0xee; fs::metadata(index).unwrap().len() as usize];
    let sound_log = fs::read(log).unwrap();
    let mut damaged_log = sound_log.clone();
    damaged_log[..4096].fill(0xee);
    let mut newer_ring = fs::read(&ring).unwrap();
    newer_ring[8..12].copy_from_slice(&99u32.to_le_bytes());
    let mut header = [0; 4096];
    let header_bytes = 20;
    header[..header_bytes].copy_from_slice(&newer_ring[..header_bytes]);
    header[12..16].fill(0);
    newer_ring[12..16].copy_from_slice(&crc32fast::hash(&header[..header_bytes]).to_le_bytes());
    for (path, bytes, says) in [
        (identity, newer_identity.into_bytes(), "format 99"),
        (identity, b"{".to_vec(), "not JSON"),
        (policy, b"{}".to_vec(), "format"),
        (index, damaged_index, "not a readable index"),
        (log, damaged_log, "unreadable log header"),
        (log, sound_log[..1 << 20].to_vec(), "shorter"),
        (log, of_format(99, sound_log.clone()), "log format 99"),
        (&ring, newer_ring, "format 99"),
    ] {
        let sound = fs::read(path).unwrap();
        assert_ne!(sound, bytes, "{path:?}");
        fs::write(path, &bytes).unwrap();
        let text = refused(dir.path());
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(text.contains(&*name) && text.contains(says), "{name} and \"{says}\" are not named: {text}");
        fs::write(path, sound).unwrap();
    }
    // With another index every blob would be an orphan.
    let aside = index.with_extension("aside");
    fs::rename(index, &aside).unwrap();
    let text = refused(dir.path());
    assert!(text.contains("index.redb is missing"), "{text}");
    fs::rename(&aside, index).unwrap();

    let node = Node::start(dir.path(), &SETTINGS);
    assert_eq!(node.client().get("/keep/me").body, vec![5; 100_000]);
}

#[test]
fn logs_of_other_shards_or_another_size_are_dropped_loudly_and_l3_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &SETTINGS);
    for i in 0..50 {
        assert_eq!(node.client().put(&format!("/n/{i}"), format!("body {i}").as_bytes()).status, 201);
    }
    assert!(node.stop().status.success());
    let (three, larger) = (["--shards", "3"], ["--set", "l2_bytes=192MiB"]);
    for (more, says, capacity) in [
        (&three[..], "the number of shards has changed from 2 to 3", 128 << 20),
        (&[&three[..], &larger].concat(), "l2_bytes has changed", 192 << 20),
        (&larger, "the number of shards has changed from 3 to 2", 192 << 20),
    ] {
        let node = Node::start(dir.path(), &[&SETTINGS[..], more].concat());
        assert!(node.log().contains(says), "not loud: {}", node.log());
        for i in 0..50 {
            let answer = node.client().get(&format!("/n/{i}"));
            assert_eq!((answer.text(), answer.tier()), (format!("body {i}"), "l3"));
        }
        let stats = node.stats();
        assert_eq!(stats["namespaces"]["n"]["hits"]["l3"], 50, "a namespace is known by what is found in it");
        let is = stats["totals"]["tiers"]["l2"]["capacity_bytes"].as_u64().unwrap_or_else(|| panic!("{stats}"));
        assert!(is > capacity / 4 * 3 && is <= capacity, "{is} of {capacity}");
        let ended = node.stop();
        assert!(ended.status.success());
        // And once: the next start finds its logs.
        let node = Node::start(dir.path(), &[&SETTINGS[..], more].concat());
        assert!(!node.log().contains("dropped"), "{}", node.log());
        assert!(node.stop().status.success());
    }
}

#[test]
fn flash_that_was_left_out_of_a_run_does_not_bring_back_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = ["--set", "policy.namespaces.co.mode=cache_only", "--set", "policy.namespaces.co.l2_fill=on_write"];
    let with = [&SETTINGS[..], &cache].concat();
    let without = [&SETTINGS[..2], &["--set", "l2_bytes=0"], &cache].concat();
    let node = Node::start(dir.path(), &with);
    let mut client = node.client();
    for target in ["/co/changed", "/co/purged", "/co/deleted", "/co/alone", "/du/changed", "/du/deleted"] {
        assert_eq!(client.put(target, b"old").status, 201, "{target}");
    }
    drop(client);
    assert!(node.stop().status.success());
    // Flash answers, as long as it was always there.
    let node = Node::start(dir.path(), &with);
    let answer = node.client().get("/co/alone");
    assert_eq!((answer.text().as_str(), answer.tier()), ("old", "l2"));
    assert!(node.stop().status.success());

    let node = Node::start(dir.path(), &without);
    let mut client = node.client();
    for target in ["/co/changed", "/du/changed"] {
        assert!([201, 204].contains(&client.put(target, b"new").status));
    }
    assert_eq!(client.request("PURGE", "/co/purged", &[], &crate::client::Body::None).status, 200);
    for target in ["/co/deleted", "/du/deleted"] {
        let deleted = client.request("DELETE", target, &[], &crate::client::Body::None).status;
        assert!([204, 404].contains(&deleted), "{target}: {deleted}");
    }
    drop(client);
    assert!(node.stop().status.success());

    for _ in 0..2 {
        let node = Node::start(dir.path(), &with);
        let mut client = node.client();
        for target in ["/co/changed", "/co/purged", "/co/deleted", "/co/alone", "/du/deleted"] {
            let answer = client.get(target);
            assert_eq!(answer.status, 404, "{target} came back: {}", answer.text());
        }
        assert_eq!(client.get("/du/changed").text(), "new");
        drop(client);
        assert!(node.stop().status.success());
    }
    // What is written from now on is kept again.
    let node = Node::start(dir.path(), &with);
    assert_eq!(node.client().put("/co/fresh", b"fresh").status, 201);
    assert!(node.stop().status.success());
    let node = Node::start(dir.path(), &with);
    assert_eq!(node.client().get("/co/fresh").text(), "fresh");
}

#[test]
fn a_log_whose_making_was_interrupted_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &SETTINGS);
    assert_eq!(node.client().put("/keep/me", b"kept").status, 201);
    assert!(node.stop().status.success());
    let files = files_below(dir.path());
    let logs: Vec<_> = files.iter().filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
    fs::write(logs[0], [0; 4096]).unwrap();
    fs::write(logs[1], [0; 100]).unwrap();
    let node = Node::start(dir.path(), &SETTINGS);
    assert_eq!(node.client().get("/keep/me").text(), "kept");
}
