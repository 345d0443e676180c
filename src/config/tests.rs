//! Relations between settings, defaults by machine, printing and the documentation.

use super::*;

const MACHINE: Machine = Machine {
    cpus: 4,
    memory_bytes: 8 << 30,
    memory_note: String::new(),
    memlock: Some(8 << 20),
    nofile: None,
    disk: |_| Some(Disk { total: 500 << 30, free: 50 << 30 }),
    l2_bytes_before: |_| None,
};

fn sources(settings: &[(&str, &str)]) -> Sources {
    let flag = |(name, value): &(&str, &str)| ((*name).into(), (*value).into(), format!("--{name}"));
    Sources { flags: settings.iter().map(flag).collect(), ..Sources::default() }
}

fn load(settings: &[(&str, &str)]) -> Config {
    Config::load(&sources(settings), &MACHINE).expect("valid")
}

fn wrong(settings: &[(&str, &str)]) -> String {
    Config::load(&sources(settings), &MACHINE).expect_err(&format!("{settings:?}")).to_string()
}

fn origin(config: &Config, name: &str) -> String {
    config.settings.iter().find(|setting| setting.name == name).expect(name).origin.to_string()
}

#[test]
fn without_any_setting_the_machine_decides() {
    let machine = Machine { memory_note: "the cgroup's limit".into(), ..MACHINE };
    let config = Config::load(&Sources::default(), &machine).expect("valid");
    assert_eq!((config.shards, config.memory.memory_max, config.l2.bytes), (4, 4 << 30, 5 << 30));
    assert_eq!(origin(&config, "memory_max"), "default: half of the cgroup's limit");
    assert_eq!(origin(&config, "l2_bytes"), "default: a tenth of the free disk");
    assert_eq!(config.l2.paths, [PathBuf::from("./strata-data/l2")]);
    assert_eq!(config.doors.http.expect("open").to_string(), "127.0.0.1:7800");
    assert!(config.memory.l0_bytes_per_shard > 512 << 20, "{}", config.memory);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(*config.policy, Policy::default());
}

#[test]
fn the_default_of_l2_bytes() {
    let l2 = |machine: &Machine| {
        let config = Config::load(&Sources::default(), machine).expect("valid");
        (config.l2.bytes, origin(&config, "l2_bytes"))
    };
    for (disk, bytes, note) in [
        ((|_| Some(Disk { total: 1 << 40, free: 1 << 40 })) as fn(&std::path::Path) -> _, 10 << 30, "10GiB"),
        (|_| Some(Disk { total: 1 << 40, free: 100 << 20 }), 0, "off: too little free disk"),
        (|_| None, 0, "off: the free disk is not known"),
    ] {
        assert_eq!(l2(&Machine { disk, ..MACHINE }), (bytes, format!("default: {note}")));
    }
    let again = Machine { l2_bytes_before: |_| Some(3 << 30), ..MACHINE };
    assert_eq!(l2(&again), (3 << 30, "default: as in the last run".into()));
    let small = Machine { cpus: 1, memory_bytes: 256 << 20, ..MACHINE };
    assert_eq!(l2(&small).1, "default: as much as an index of memory_max / 8 can hold");
}

#[test]
fn small_machines_start_with_their_defaults() {
    let machine = Machine { cpus: 4, memory_bytes: 256 << 20, ..MACHINE };
    let config = Config::load(&Sources::default(), &machine).expect("without flash");
    assert_eq!((config.l2.bytes, config.memory.fits()), (0, true));
    assert!(
        config.warnings[0].contains("no flash tier (off: memory_max is too small for it)"),
        "{:?}",
        config.warnings
    );
    for (cpus, mib) in [(1, 256), (2, 512), (4, 1024), (64, 4096), (256, 32768)] {
        let machine = Machine { cpus, memory_bytes: mib << 20, ..MACHINE };
        let config = Config::load(&Sources::default(), &machine).unwrap_or_else(|e| panic!("{cpus} {mib}: {e}"));
        assert!(config.memory.fits() && config.l2.bytes > 0, "{cpus} CPUs, {mib} MiB");
    }
}

#[test]
fn the_tiny_profile_is_consistent() {
    let config = Config::tiny(&[("shards", "1")]).expect("valid");
    assert_eq!((config.profile, config.shards, config.memory.memory_max), (Profile::Tiny, 1, 80 << 20));
    assert!(config.l2.bytes_per_shard(1) / config.l2.segment_bytes >= L2_SEGMENTS_MIN);
    let config = Config::tiny(&[]).expect("valid");
    assert_eq!(config.policy.to_json()["l0_max"], 64 << 10);
    assert!(config.l2.bytes_per_shard(2) >= 8 * config.l2.segment_bytes);
}

#[test]
fn connections_fit_memory_and_files() {
    for (nofile, connections) in
        [(None, 2048), (Some(1 << 20), 2048), (Some(5_000), 1154), (Some(1024), 160), (Some(9), 64)]
    {
        let config = Config::load(&Sources::default(), &Machine { nofile, ..MACHINE }).expect("valid");
        assert_eq!(config.limits.connections_max_per_shard, connections, "{nofile:?}");
    }
}

#[test]
fn segments_follow_the_log() {
    for (l2_bytes, segment) in [("64MiB", 1), ("1GiB", 16), ("100GiB", 32)] {
        let config = load(&[("l2_bytes", l2_bytes), ("shards", "4"), ("l2.object_bytes_mean", "64KiB")]);
        assert_eq!(config.l2.segment_bytes, segment << 20, "{l2_bytes}");
        assert_eq!(config.l2.bytes_per_shard(4) % config.l2.segment_bytes, 0);
    }
}

#[test]
fn doors_stay_on_loopback_unless_allowed() {
    for name in ["http_listen", "memcached_listen", "admin_listen"] {
        for address in ["0.0.0.0:9000", "[::]:9000", "10.1.2.3:9000"] {
            let message = wrong(&[(name, address)]);
            assert!(message.contains(name) && message.contains("allow_open = true"), "{message}");
            load(&[(name, address), ("allow_open", "true")]);
        }
        load(&[(name, "[::1]:9000")]);
    }
    let closed = load(&[("http_listen", "off"), ("memcached_listen", "off"), ("admin_listen", "off")]).doors;
    assert_eq!((closed.http, closed.memcached, closed.admin), (None, None, None));
    let message = wrong(&[("http_listen", "127.0.0.1:1"), ("admin_listen", "127.0.0.1:1")]);
    assert!(message.contains("--admin_listen: admin_listen: 127.0.0.1:1 is also http_listen"), "{message}");
    load(&[("http_listen", "127.0.0.1:0"), ("admin_listen", "127.0.0.1:0")]);
}

#[test]
fn relations_name_their_settings() {
    for (settings, wanted) in [
        (&[("shards", "0")][..], "shards: 0 shards; 1 to 1024"),
        (&[("shards", "1025")], "shards: 1025 shards"),
        (&[("l2_bytes", "1MiB")], "l2_bytes: \"1MiB\" is too little for 4 shards"),
        (&[("l2_bytes", "512MiB"), ("l2.segment_bytes", "64MiB")], "at least \"1GiB\""),
        (&[("l2.segment_bytes", "3MiB")], "l2.segment_bytes: a segment is a power of two"),
        (&[("l2.write_buffer_bytes", "1KiB")], "l2.write_buffer_bytes: 256KiB"),
        (&[("l2.object_bytes_mean", "1")], "l2.object_bytes_mean: an object takes"),
        (&[("l2.flush_interval", "0")], "l2.flush_interval: at least 1ms"),
        (&[("l2_paths", "/a:/b:/a")], "l2_paths: a folder is there twice"),
        (&[("l2_paths", "[\"/a\"]")], "outside of a file the folders are written as /a:/b"),
        (&[("l3.inline_bytes_max", "65KiB")], "l3.inline_bytes_max: at most \"64KiB\""),
        (&[("l3.blob_grace", "25h")], "l3.blob_grace: longer than l3.orphan_age"),
        (&[("l3.orphan_age", "0"), ("l3.blob_grace", "0")], "l3.orphan_age: at least 1s"),
        (&[("l3.tombstone_ttl", "0")], "l3.tombstone_ttl: more than 0s"),
        (&[("l3.index_cache_bytes", "0")], "l3.index_cache_bytes: at least 1MiB"),
        (&[("limits.connections_max", "0")], "limits.connections_max: 1 to"),
        (&[("limits.body_window_bytes", "1KiB")], "limits.body_window_bytes: 4KiB to 64MiB"),
        (&[("limits.inflight_bytes", "4MiB")], "limits.inflight_bytes: at least"),
        (&[("fanout_lag_max", "0")], "fanout_lag_max: more than 0"),
        (&[("disk_reserve", "100%")], "disk_reserve: \"100%\" is not 0% to 99%"),
    ] {
        let message = wrong(settings);
        assert!(message.contains(wanted), "{settings:?}: {message}");
        let origin = format!("--{}: ", wanted.split(':').next().unwrap_or_default());
        if settings.iter().any(|(name, _)| wanted.starts_with(name)) {
            assert!(message.starts_with(&origin), "{settings:?}: {message}");
        }
    }
}

#[test]
fn memory_that_does_not_suffice_is_explained() {
    let message = wrong(&[("memory_max", "128MiB"), ("l2_bytes", "100GiB")]);
    for part in ["--memory_max: memory_max: too little is left for L0", "- flash index", "400 MiB", "= L0", "at least"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    // The advice holds.
    let advice = message.split('"').nth(1).expect("a size");
    load(&[("memory_max", "128MiB"), ("l2_bytes", "1GiB"), ("shards", "1")]);
    let settings = [("l2_bytes", "100GiB"), ("memory_max", advice), ("limits.inflight_bytes", "16MiB")];
    load(&[&settings[..], &[("limits.connections_max", "64"), ("l3.index_cache_bytes", "4MiB")]].concat());
    assert!(load(&[("memory_max", "9GiB")]).warnings[0].contains("above"), "more than the machine has");
}

#[test]
fn what_is_printed_starts_the_same_node() {
    let config = load(&[
        ("memory_max", "1GiB"),
        ("l2_paths", "/a:/b"),
        ("policy.ttl_max", "1h"),
        ("policy.namespaces.img.tiers", "l0,l3"),
        ("policy.namespaces.img.l0_max", "none"),
        ("namespaces", "declared"),
        ("admin_listen", "off"),
    ]);
    let text = config.print();
    let squeezed: String =
        text.lines().flat_map(|line| [line.split_whitespace().collect::<Vec<_>>().join(" "), "\n".into()]).collect();
    for part in [
        "memory_max = \"1GiB\" # --memory_max\n",
        "shards = 4 # default: CPUs this process may use\n",
        "namespaces = \"declared\"",
        "policy.namespaces.img = { l0_max = \"none\", tiers = [\"l0\", \"l3\"] }",
        "policy.l2_max = \"none\" # default\n",
        "# Where memory_max goes:",
    ] {
        assert!(squeezed.contains(part), "{part} in\n{text}");
    }
    let again = Sources { file: Some(("printed.toml".into(), text)), ..Sources::default() };
    let again = Config::load(&again, &Machine { cpus: 64, ..MACHINE }).expect("valid");
    let values = |config: &Config| -> Vec<_> {
        config.settings.iter().map(|setting| (setting.name.clone(), setting.value.clone())).collect()
    };
    assert_eq!(values(&again), values(&config));
    assert_eq!((again.policy, again.memory), (config.policy, config.memory));
    assert!(again.settings.iter().all(|setting| matches!(setting.origin, Origin::File { .. })));
}

/// docs/04-operating.md holds the generated table; `UPDATE_DOCS=1 cargo test` writes it.
#[test]
fn the_documentation_has_this_table() {
    const BEGIN: &str = "<!-- settings: generated from src/config/table.rs -->\n";
    const END: &str = "<!-- settings: end -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/04-operating.md");
    let text = std::fs::read_to_string(path).expect("docs/04-operating.md");
    let (before, rest) = text.split_once(BEGIN).expect("the mark before the table");
    let (table, after) = rest.split_once(END).expect("the mark after the table");
    if table == docs_table() {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", docs_table())).expect("written");
        return;
    }
    panic!("docs/04-operating.md does not have the table that the code gives; UPDATE_DOCS=1 cargo test writes it");
}
