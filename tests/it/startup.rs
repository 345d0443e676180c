//! Starting: the banner, the refusals, the subcommands.

use std::{fs, net::TcpListener, path::Path};

use crate::node::{Node, strata};

#[test]
fn help_and_subcommands_answer() {
    for (args, wants) in [
        (&["--help"][..], &["serve", "check-config", "doctor"][..]),
        (&["serve", "--help"], &["--data-dir", "--memory-max", "--set", "--http-listen"]),
        (&["serve", "--print-config", "--shards", "1"], &["memory_max", "shards", "# --shards", "# default"]),
    ] {
        let output = strata(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{args:?}: {output:?}");
        wants.iter().for_each(|want| assert!(text.contains(want), "{args:?} lacks {want}:\n{text}"));
    }
    let dir = tempfile::tempdir().unwrap();
    let output = strata(&["doctor", "--data-dir", dir.path().to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for check in ["io_uring", "O_DIRECT", "MEMLOCK", "NOFILE", "memory"] {
        assert!(text.contains(check), "{check}:\n{text}");
    }
}

#[test]
fn doctor_refuses_what_serve_refuses_and_neither_leaves_a_trace() {
    let in_memory = format!("/dev/shm/strata-test-{}", std::process::id());
    for (data, l2_bytes, wants) in [
        (in_memory.as_str(), "64MiB", Some("O_DIRECT")),
        ("/proc/strata", "0", Some("data_dir")),
        (in_memory.as_str(), "0", None),
    ] {
        let l2_bytes = format!("l2_bytes={l2_bytes}");
        let settings = ["--data-dir", data, "--shards", "1", "--memory-max", "256MiB", "--set", &l2_bytes];
        let doors = ["--http-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let output = strata(&["doctor"]).args(settings).args(doors).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.success(), wants.is_none(), "{data} {l2_bytes}: {text}");
        if let Some(check) = wants {
            let failed = text.lines().any(|line| line.starts_with("fail") && line.contains(check));
            assert!(failed, "{data} {l2_bytes}: {text}");
            let output = strata(&["serve"]).args(settings).args(doors).output().unwrap();
            assert!(!output.status.success(), "{data} {l2_bytes}: {output:?}");
        }
        assert!(!Path::new(data).exists(), "{data} was made");
    }
}

#[test]
fn bad_settings_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("strata.toml");
    for (toml, args, wants) in [
        ("memory_maxx = \"1GiB\"\n", &[][..], &["memory_maxx", "memory_max"][..]),
        ("memory_max = \"1 parsec\"\n", &[], &["memory_max", "1 parsec"]),
        ("[policy]\nl0_max = true\n", &[], &["l0_max"]),
        ("", &["--http-listen", "0.0.0.0:0"], &["http_listen", "allow_open"]),
        ("", &["--memory-max", "1MiB"], &["memory_max"]),
        ("", &["--set", "nonsense=1"], &["nonsense"]),
    ] {
        fs::write(&file, toml).unwrap();
        let data = dir.path().join("data");
        let output = strata(&["serve", "--config", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()])
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{toml} {args:?}");
        wants.iter().for_each(|want| assert!(text.contains(want), "{toml} {args:?} lacks {want}:\n{text}"));
        assert!(!data.exists(), "a refused start left {data:?}");
    }
}

#[test]
fn the_banner_tells_where_everything_is_and_what_to_try() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"]);
    let log = node.log();
    for want in ["objects", "admin", "memcached", "L0", "L1", "L2", "L3", "data", "curl"] {
        assert!(log.contains(want), "{want}:\n{log}");
    }
    assert!(log.contains(&node.http.to_string()) && log.contains(&dir.path().display().to_string()), "{log}");
}

#[test]
fn a_second_node_and_a_port_in_use_stop_with_a_clear_message() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"]);
    let second = Node::try_start(dir.path(), &["--memory-max", "256MiB"]).err().expect("the directory is locked");
    assert!(!second.status.success());
    assert!(second.text.contains(&dir.path().display().to_string()), "{}", second.text);
    assert!(second.text.contains(&node.pid().to_string()), "the holder's pid: {}", second.text);

    let other = tempfile::tempdir().unwrap();
    for (flag, address) in [
        ("--http-listen", node.http.to_string()),
        ("--admin-listen", node.admin.to_string()),
        (
            "--http-listen",
            TcpListener::bind("127.0.0.1:0")
                .map(|l| {
                    let a = l.local_addr().unwrap().to_string();
                    std::mem::forget(l);
                    a
                })
                .unwrap(),
        ),
    ] {
        let ended =
            Node::try_start(other.path(), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB", flag, &address]);
        let ended = ended.err().unwrap_or_else(|| panic!("{flag} {address} is taken"));
        let setting = flag.trim_start_matches("--").replace('-', "_");
        assert!(ended.text.contains(&setting) && ended.text.contains(&address), "{}", ended.text);
    }
    assert_eq!(node.client().put("/still/here", b"x").status, 201);

    // Another data directory, the same flash folder.
    let flash = format!("l2_paths={}", dir.path().join("l2").display());
    let args = ["--memory-max", "256MiB", "--set", "l2_bytes=128MiB", "--set", &flash];
    let ended = Node::try_start(other.path(), &args).err().expect("the flash folder is locked");
    assert!(ended.text.contains("/l2 is in use") && ended.text.contains(&node.pid().to_string()), "{}", ended.text);
    assert_eq!(node.client().put("/still/here", b"y").status, 204);
}
