//! README's curl examples, run as written against a node on the default ports' stand-ins.

use std::{fs, process::Command};

use crate::node::Node;

#[test]
fn the_curl_examples_of_the_readme_work_as_written() {
    let readme = include_str!("../../README.md");
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&dir.path().join("data"), &["--memory-max", "256MiB", "--set", "l2_bytes=128MiB"]);
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    fs::write(work.join("README.md"), readme).unwrap();

    let mut ran = 0;
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    for block in blocks.filter(|block| block.contains("curl ")) {
        // Only the ports differ: a test cannot claim the real ones.
        let script =
            block.replace("127.0.0.1:7800", &node.http.to_string()).replace("127.0.0.1:7801", &node.admin.to_string());
        let script =
            format!("set -euo pipefail\nshopt -s expand_aliases\nalias curl='curl --fail-with-body'\n{script}");
        let output = Command::new("bash").arg("-c").arg(&script).current_dir(&work).output().unwrap();
        assert!(
            output.status.success(),
            "{block}\n{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        // What the example promises stands behind "# ->".
        let stdout = String::from_utf8_lossy(&output.stdout);
        for promise in block.lines().filter_map(|line| line.split("# -> ").nth(1)) {
            assert!(stdout.contains(promise.trim()), "{block}\npromises {promise:?} and printed\n{stdout}");
        }
        ran += block.matches("curl ").count();
    }
    assert!(ran >= 6, "only {ran} curl examples were found");
}
