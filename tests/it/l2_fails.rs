//! The device under L2 fails while the node runs: it goes on without L2, says so, and serves nothing that is wrong.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    client::Body,
    disk::Mount,
    node::{Node, files_below},
};

const DEVICE_BYTES: u64 = 128 << 20;

/// Objects that are on flash before the device fails.
const OLD: usize = 120;

/// A bound on the writes after which both shards must have noticed.
const WRITES_MAX: usize = 1500;

const PATIENCE: Duration = Duration::from_secs(20);

/// L3 on the machine's disk, L2 on a device of its own. Taken down in the order of the fields.
struct Place {
    device: Mount,
    /// What the device's image lies in, if that is short of room.
    ram: Option<Mount>,
    root: tempfile::TempDir,
}

impl Place {
    /// A new device; `room` bounds what can really be kept of it.
    fn new(room: Option<u64>) -> Self {
        let root = tempfile::tempdir().unwrap();
        for name in ["ram", "flash", "data"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let ram = room.map(|bytes| Mount::tmpfs(&root.path().join("ram"), bytes));
        let device = Mount::ext4(&root.path().join("flash"), &root.path().join("ram/image"), DEVICE_BYTES);
        Self { device, ram, root }
    }

    /// The same place with another device, empty.
    fn with_another_device(self) -> Self {
        let Self { device, ram, root } = self;
        drop(device);
        let device = Mount::ext4(&root.path().join("flash"), &root.path().join("ram/image"), DEVICE_BYTES);
        Self { device, ram, root }
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    fn flash(&self) -> PathBuf {
        self.root.path().join("flash")
    }

    fn settings(&self) -> Vec<String> {
        let flash = format!("l2_paths={}", self.flash().display());
        let cache = "policy.namespaces.cache";
        let sets =
            [flash, "l2_bytes=64MiB".into(), format!("{cache}.mode=cache_only"), format!("{cache}.l2_fill=on_write")];
        let sets = sets.into_iter().flat_map(|set| ["--set".to_owned(), set]);
        ["--memory-max".to_owned(), "256MiB".to_owned()].into_iter().chain(sets).collect()
    }

    fn start(&self) -> Node {
        let settings = self.settings();
        Node::start(&self.data(), &settings.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A node whose objects are on the device: L0 was left by a restart.
    fn start_filled(&self) -> Node {
        let node = self.start();
        put(&node, "old", OLD, 1);
        put(&node, "cache", OLD, 1);
        assert!(node.stop().status.success());
        let node = self.start();
        assert_eq!(read(&node, "old", OLD / 2, 1), OLD / 2, "from L2");
        node
    }
}

/// Of many sizes, small ones packed together and large ones in chunks; different for every object and round.
fn body(i: usize, round: u8) -> Vec<u8> {
    (0..700 + i * 61 % 30_000 + (i % 40 / 39) * 900_000).map(|at| (at / 7 + i) as u8 ^ round).collect()
}

fn put(node: &Node, name: &str, count: usize, round: u8) {
    let mut client = node.client();
    for i in 0..count {
        let answer = client.put(&format!("/{name}/{i}"), &body(i, round));
        assert!(matches!(answer.status, 201 | 204), "{name}/{i}: {} {}", answer.status, answer.text());
    }
}

/// Reads all, each of which must be there whole; how many came from L2.
fn read(node: &Node, name: &str, count: usize, round: u8) -> usize {
    let mut client = node.client();
    let mut from_l2 = 0;
    for i in 0..count {
        let answer = client.get(&format!("/{name}/{i}"));
        assert_eq!(answer.status, 200, "{name}/{i}: {}", answer.text());
        assert!(answer.body == body(i, round), "{name}/{i} from {}", answer.tier());
        from_l2 += usize::from(answer.tier() == "l2");
    }
    from_l2
}

fn poisoned(stats: &Value) -> usize {
    let shards = stats["shards"].as_array().expect("shards");
    shards.iter().filter(|shard| shard["tiers"]["l2"]["state"] == "poisoned").count()
}

/// Writes until every shard has noticed; gives how many objects are in `/new`.
fn write_until_poisoned(node: &Node) -> usize {
    let mut client = node.client();
    for i in 0..WRITES_MAX {
        let answer = client.put(&format!("/new/{i}"), &body(i, 3));
        assert_eq!(answer.status, 201, "new/{i}: {}", answer.text());
        if i % 20 == 19 && poisoned(&node.stats()) == 2 {
            return i + 1;
        }
    }
    panic!("{WRITES_MAX} writes, and the failure was not noticed: {}", node.stats()["totals"]["tiers"]["l2"]);
}

/// Ready, degraded, and L2 named for both shards.
fn assert_degraded(node: &Node) {
    let begun = Instant::now();
    loop {
        let answer = node.admin().get("/readyz");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let health = answer.json();
        let named = |shard: usize| {
            let begins = format!("L2 of shard {shard} ");
            health["reasons"].as_array().expect("reasons").iter().any(|reason| {
                reason["code"] == "tier-poisoned" && reason["message"].as_str().is_some_and(|m| m.starts_with(&begins))
            })
        };
        if health["status"] == "degraded" && named(0) && named(1) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{health}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What holds of a node whose L2 is gone: it takes, changes, deletes and gives, in both kinds of namespace.
fn assert_goes_on(node: &Node, new: usize) {
    assert_degraded(node);
    let errors = |node: &Node| node.stats()["totals"]["tiers"]["l2"]["errors"].as_u64().expect("a count");
    let before = errors(node);
    assert_eq!(read(node, "old", OLD, 1) + read(node, "new", new, 3), 0, "from a poisoned tier");
    put(node, "old", OLD / 4, 2);
    put(node, "cache", OLD / 2, 2);
    assert_eq!(read(node, "old", OLD / 4, 2) + read(node, "cache", OLD / 2, 2), 0);
    let mut client = node.client();
    for name in ["old", "cache"] {
        // Of `cache`, L0 holds this one.
        let target = format!("/{name}/0");
        assert_eq!(client.request("DELETE", &target, &[], &Body::None).status, 204, "{target}");
        assert_eq!(client.get(&target).status, 404, "{target}");
    }
    assert_eq!(client.put("/old/0", &body(0, 2)).status, 201);
    assert!(errors(node) > before, "not counted");
    assert_eq!(node.stats()["totals"]["tiers"]["l2"]["state"], "poisoned");
}

#[test]
fn a_device_that_takes_no_more_writes_poisons_l2_and_its_records_are_there_when_it_is_well() {
    let mut place = Place::new(Some(48 << 20));
    let node = place.start_filled();
    assert_eq!(read(&node, "cache", OLD / 4, 1), OLD / 4, "from L2");

    // What a device that fails badly may be left with: rings that say nothing of its failure.
    let rings: Vec<_> =
        files_below(&place.flash()).into_iter().filter(|file| file.extension() == Some("ring".as_ref())).collect();
    assert_eq!(rings.len(), 2);
    let forgotten: Vec<_> = rings.iter().map(|ring| fs::read(ring).unwrap()).collect();
    let identity = place.data().join("identity.json");
    let served = fs::read(&identity).unwrap();

    // The device promised more than there is: what was never written finds no room.
    let filler = place.root.path().join("ram/filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    let new = write_until_poisoned(&node);
    assert_goes_on(&node, new);
    let begun = Instant::now();
    while fs::read(&identity).unwrap() == served {
        assert!(begun.elapsed() < PATIENCE, "the failure is not recorded");
        std::thread::sleep(Duration::from_millis(20));
    }
    node.kill();

    fs::remove_file(&filler).unwrap();
    place.device.repair();
    rings.iter().zip(&forgotten).for_each(|(ring, bytes)| fs::write(ring, bytes).unwrap());
    let node = place.start();
    assert_eq!(node.admin().get("/readyz").json()["status"], "ok");
    read(&node, "old", OLD / 4, 2);
    read(&node, "new", new, 3);
    let mut client = node.client();
    let mut from_l2 = 0;
    for i in OLD / 4..OLD {
        let answer = client.get(&format!("/old/{i}"));
        assert!(answer.body == body(i, 1), "{i} from {}", answer.tier());
        from_l2 += usize::from(answer.tier() == "l2");
    }
    assert!(from_l2 >= (OLD - OLD / 4) * 9 / 10, "only {from_l2} records were found again");
    for i in 0..OLD {
        // Superseded in RAM only, while L2 could not note it: what comes back is the last write, or nothing.
        let (answer, round) = (client.get(&format!("/cache/{i}")), if i < OLD / 2 { 2 } else { 1 });
        assert!(answer.status == 404 || (i > 0 && answer.body == body(i, round)), "cache/{i}: {}", answer.status);
    }
    let stored = client.put("/old/again", &body(9, 4));
    assert!(stored.header("strata-stored").contains("L2,"), "{stored:?}");
}

#[test]
fn a_device_that_dies_is_survived_and_one_in_its_place_starts_empty() {
    let place = Place::new(None);
    let node = place.start_filled();

    place.device.break_device();
    // A read that fails is an error of that read: the rest comes from L3.
    assert_eq!(read(&node, "old", OLD, 1), 0, "from a dead device");
    let l2 = &node.stats()["totals"]["tiers"]["l2"];
    assert!(l2["errors"].as_u64() >= Some(OLD as u64 / 4), "{l2}");
    let new = write_until_poisoned(&node);
    put(&node, "cache", OLD / 2, 2);
    assert_goes_on(&node, new);
    node.kill();

    // Still dead: refused, and the device named. Another in its place is empty, and L3 has everything.
    let settings = place.settings();
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let refused = Node::try_start(&place.data(), &settings).err().expect("the device is dead");
    assert!(refused.text.contains(&place.flash().display().to_string()), "{}", refused.text);
    let place = place.with_another_device();
    assert!(files_below(&place.flash()).is_empty());
    let node = place.start();
    assert_eq!(node.admin().get("/readyz").json()["status"], "ok");
    assert_eq!(read(&node, "old", OLD / 4, 2) + read(&node, "new", new, 3), 0, "from a new device");
    let mut client = node.client();
    for i in OLD / 4..OLD {
        assert!(client.get(&format!("/old/{i}")).body == body(i, 1), "{i}");
    }
    assert!((0..OLD).all(|i| client.get(&format!("/cache/{i}")).status == 404));
    assert!(client.put("/old/again", &body(9, 4)).header("strata-stored").contains("L2,"));
}
