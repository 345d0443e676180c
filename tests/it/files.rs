//! Real files of the machine through every tier: what went in comes out, whole and by ranges, from the tier that
//! `Cache-Status` names, across restarts and kills.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    ops::Range,
    path::PathBuf,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::{
    client::{Body, Client},
    node::{Node, files_below},
};

const FILES: usize = 2_500;
const BYTES_MAX: u64 = 700 << 20;
const HUGE: u64 = 100 << 20;
const L0_GATE: u64 = 2 << 20;

struct File {
    target: String,
    length: u64,
    digest: [u8; 32],
    path: PathBuf,
}

/// Some thousands of files: the toolchain's largest (over 100 MB), empty ones, and an even sample of the rest.
fn real_files() -> Vec<File> {
    let toolchain = PathBuf::from(env!("CARGO")).parent().and_then(|bin| bin.parent()).expect("bin/cargo").to_owned();
    let mut paths: Vec<(u64, PathBuf)> = [PathBuf::from("/usr/share"), PathBuf::from("/usr/lib"), toolchain]
        .iter()
        .flat_map(|dir| files_below(dir))
        .filter_map(|path| Some((fs::metadata(&path).ok()?.len(), path)))
        .collect();
    paths.sort();
    let huge = paths.iter().filter(|(length, _)| (HUGE..190 << 20).contains(length)).take(1).cloned();
    let empty = paths.iter().filter(|(length, _)| *length == 0).take(5).cloned();
    // The middling ones outgrow L0, the small ones are many.
    let every = |range: Range<u64>, files: usize| {
        let all: Vec<_> = paths.iter().filter(|(length, _)| range.contains(length)).cloned().collect();
        let step = (all.len() / files).max(1);
        all.into_iter().rev().step_by(step).take(files)
    };
    let large = every(L0_GATE + 1..24 << 20, 20);
    let middling = every(300 << 10..L0_GATE + 1, 350);
    let small = every(1..300 << 10, FILES);
    let mut total = 0;
    let mut files = Vec::new();
    for (length, path) in huge.chain(empty).chain(middling).chain(large).chain(small) {
        if total + length > BYTES_MAX {
            continue;
        }
        let Ok(bytes) = fs::read(&path) else { continue };
        total += length;
        let target = format!("/files/{}", escape(path.to_str().unwrap_or("odd")));
        files.push(File { target, length: bytes.len() as u64, digest: Sha256::digest(&bytes).into(), path });
    }
    assert!(files.iter().any(|f| f.length >= HUGE), "no file over 100 MB on this machine");
    assert!(files.iter().any(|f| f.length == 0) && files.len() > 1_000, "{} files", files.len());
    files
}

fn escape(path: &str) -> String {
    path.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// Writes the files; gives those that flash, slower than the writer for a while, has not got whole yet.
fn put_all<'a>(client: &mut Client, files: &'a [File]) -> Vec<&'a File> {
    let mut queued = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let bytes = fs::read(&file.path).expect("read before");
        // Every third of unknown length, in odd chunks.
        let body = if i % 3 == 0 { Body::Chunked(&bytes, 48_611) } else { Body::Sized(&bytes) };
        let answer = client.request("PUT", &file.target, &[("content-type", "application/x-test")], &body);
        assert_eq!(answer.status, 201, "{}: {answer:?}", file.target);
        let stored = answer.header("strata-stored");
        assert!(stored.contains("L3"), "{answer:?}");
        // Uploads over loopback are faster than any disk.
        if stored.contains("L2;queued") || stored.contains("L2=?0;reason=lag") {
            println!("{} of {} bytes: {stored}", file.target, file.length);
            queued.push(file);
        }
    }
    queued
}

/// Waits until flash has a body that was acknowledged before.
fn arrives(client: &mut Client, file: &File) {
    let begun = Instant::now();
    while client.request("HEAD", &file.target, &[], &Body::None).tier() == "l3" {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} does not arrive in L2", file.target);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads a file whole, then by two ranges; gives the tier of the whole read.
fn check(client: &mut Client, file: &File, random: &mut fastrand::Rng) -> String {
    let answer = client.get(&file.target);
    assert_eq!(answer.status, 200, "{}: {}", file.target, answer.text());
    assert_eq!(answer.header("content-type"), "application/x-test");
    assert_eq!(answer.body.len() as u64, file.length, "{}", file.target);
    assert_eq!(<[u8; 32]>::from(Sha256::digest(&answer.body)), file.digest, "{}", file.target);
    for _ in 0..2 {
        if file.length == 0 {
            break;
        }
        let first = random.u64(0..file.length);
        let last = random.u64(first..file.length).min(first + (1 << 20));
        let part = client.get_range(&file.target, first, last);
        assert_eq!(part.status, 206, "{}", file.target);
        assert_eq!(part.header("content-range"), format!("bytes {first}-{last}/{}", file.length));
        let wanted = &answer.body[usize::try_from(first).unwrap()..=usize::try_from(last).unwrap()];
        assert!(part.body == wanted, "{} {first}-{last}", file.target);
    }
    answer.tier().to_owned()
}

fn check_all(node: &Node, files: &[File], random: &mut fastrand::Rng) -> BTreeMap<String, usize> {
    let mut client = node.client();
    let mut tiers = BTreeMap::new();
    for file in files {
        let tier = check(&mut client, file, random);
        if tier == "l3" {
            println!("{} of {} bytes came from l3", file.target, file.length);
        }
        *tiers.entry(tier).or_default() += 1;
    }
    println!("answered by: {tiers:?} of {}", files.len());
    tiers
}

fn share(tiers: &BTreeMap<String, usize>, tier: &str) -> f64 {
    let total: usize = tiers.values().sum();
    *tiers.get(tier).unwrap_or(&0) as f64 / total as f64
}

#[test]
fn real_files_come_back_from_l0_l2_and_after_restarts() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let files = real_files();
    let dir = tempfile::tempdir().unwrap();
    let settings = ["--memory-max", "256MiB", "--set", "l2_bytes=1536MiB"];
    let node = Node::start(dir.path(), &settings);
    let mut client = node.client();

    // After the write: what the gate admits is in RAM, the rest on flash.
    for chunk in files.chunks(50) {
        for file in put_all(&mut client, chunk) {
            arrives(&mut client, file);
        }
        for file in chunk.iter().rev().take(3) {
            let tier = check(&mut client, file, &mut random);
            assert_eq!(tier, if file.length <= L0_GATE { "l0" } else { "l2" }, "{} {}", file.target, file.length);
        }
    }
    // L0 is outgrown: most answers come from flash.
    let tiers = check_all(&node, &files, &mut random);
    assert!(share(&tiers, "l2") > 0.5, "{tiers:?}");
    assert_eq!(tiers.get("l3"), None, "{tiers:?}");
    // A clean restart: flash answers.
    let ended = node.stop();
    assert!(ended.status.success(), "{ended:?}");
    let node = Node::start(dir.path(), &settings);
    let tiers = check_all(&node, &files, &mut random);
    assert!(share(&tiers, "l2") + share(&tiers, "l0") > 0.999, "{tiers:?}");

    // kill -9 in mid-write: of a new key, and over an old one.
    let victim = &files[files.len() / 2];
    for target in ["/files/never-finished", &victim.target] {
        let mut half = node.client();
        let head = format!("PUT {target} HTTP/1.1\r\nhost: t\r\ncontent-length: 50000000\r\n\r\n");
        half.raw().write_all(head.as_bytes()).unwrap();
        half.raw().write_all(&vec![7; 20_000_000]).unwrap();
        std::mem::forget(half); // stays open until the kill
    }
    node.kill();
    let node = Node::start(dir.path(), &settings);
    assert_eq!(node.client().get("/files/never-finished").status, 404);
    let tiers = check_all(&node, &files, &mut random);
    assert!(share(&tiers, "l2") + share(&tiers, "l0") > 0.99, "{tiers:?}");
    assert!(node.stop().status.success());
    let leftovers = files_below(&dir.path().join("l3/tmp"));
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn real_files_come_back_from_l3_and_are_promoted() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let files = real_files();
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=64MiB"]);
    put_all(&mut node.client(), &files);

    // L2 is outgrown many times over: the first files answer from L3, and then from where they were promoted to.
    let early: Vec<&File> = files.iter().filter(|f| f.length > 0).take(200).collect();
    let mut client = node.client();
    let mut from_l3 = 0;
    for file in &early {
        let first = check(&mut client, file, &mut random);
        from_l3 += usize::from(first == "l3");
        if file.length <= L0_GATE && first == "l3" {
            assert_eq!(check(&mut client, file, &mut random), "l0", "{} was not promoted", file.target);
        }
    }
    assert!(from_l3 > early.len() / 2, "{from_l3} of {}", early.len());
    let tiers = check_all(&node, &files, &mut random);
    assert!(tiers.contains_key("l3"), "{tiers:?}");
    let memory = node.memory("VmHWM");
    println!("peak RSS {memory} bytes with memory_max 256 MiB");
    assert!(memory < 256 << 20, "peak RSS {memory} is above memory_max");

    // After kill -9 the durable tier still has every byte.
    node.kill();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=64MiB"]);
    check_all(&node, &files, &mut random);
}
