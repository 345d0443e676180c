//! The real binary, started, stopped and killed. Readiness is probed, never slept for.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::client::{Answer, Body, Client};

/// A start or stop that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// What the binary said and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) text: String,
}

pub(crate) fn strata(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command.args(args).stdin(Stdio::null()).env_clear();
    command
}

/// A node's arguments for tests: every port chosen by the system, small memory.
pub(crate) fn serve_args(data: &Path) -> Vec<String> {
    let data = data.display().to_string();
    ["serve", "--data-dir", &data, "--http-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        .into_iter()
        .chain(["--shards", "2"])
        .map(str::to_owned)
        .collect()
}

impl Node {
    /// Starts a node and waits until it is ready.
    pub(crate) fn start(data: &Path, more: &[&str]) -> Self {
        Self::try_start(data, more).unwrap_or_else(|ended| panic!("the node did not start: {ended:?}"))
    }

    pub(crate) fn try_start(data: &Path, more: &[&str]) -> Result<Self, Ended> {
        let mut args = serve_args(data);
        // What a test says replaces what all tests say.
        for flag in more.iter().filter(|arg| arg.starts_with("--") && **arg != "--set") {
            if let Some(at) = args.iter().position(|arg| arg == flag) {
                args.drain(at..at + 2);
            }
        }
        let mut child = strata(&[])
            .args(&args)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let log = Arc::new(Mutex::new(String::new()));
        collect(child.stderr.take().expect("piped"), log.clone());
        collect(child.stdout.take().expect("piped"), log.clone());
        let begun = Instant::now();
        loop {
            let text = log.lock().unwrap().clone();
            if let (Some(http), Some(admin)) = (address(&text, "objects"), address(&text, "admin")) {
                let node = Self { child, log, http, admin };
                node.wait_ready(begun);
                return Ok(node);
            }
            if let Some(status) = child.try_wait().expect("our child") {
                thread::sleep(Duration::from_millis(50)); // the readers' last lines
                let text = log.lock().unwrap().clone();
                return Err(Ended { status, text });
            }
            assert!(begun.elapsed() < PATIENCE, "no banner:\n{text}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_ready(&self, begun: Instant) {
        while self.admin().get("/readyz").status != 200 {
            assert!(begun.elapsed() < PATIENCE, "never ready:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.http)
    }

    pub(crate) fn admin(&self) -> Client {
        Client::connect(self.admin)
    }

    pub(crate) fn stats(&self) -> serde_json::Value {
        self.admin().get("/v1/stats").json()
    }

    pub(crate) fn patch_policy(&self, patch: &str) -> Answer {
        let headers = [("content-type", "application/merge-patch+json")];
        self.admin().request("PATCH", "/v1/policy", &headers, &Body::Sized(patch.as_bytes()))
    }

    /// SIGTERM, and the end.
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for the end.
    pub(crate) fn ended(mut self) -> Ended {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return Ended { status, text: self.log() };
            }
            assert!(begun.elapsed() < PATIENCE, "does not stop:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("our child lives");
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// A figure of /proc/PID/status in bytes.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("our child");
        let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn collect(from: impl Read + Send + 'static, into: Arc<Mutex<String>>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut log = into.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
}

/// The address the banner names for a door.
fn address(log: &str, door: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.trim_start().starts_with(door) && line.contains("http://"))?;
    line.split("http://").nth(1)?.split_whitespace().next()?.parse().ok()
}

/// Every file below `dir`.
pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}
