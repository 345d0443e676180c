//! The real binary, on a temporary data folder and ports of the system's choice.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::Failure;

/// A start, or an answer of the admin door, that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running node. Dropping it kills it; its data is the caller's to remove.
pub(crate) struct Node {
    child: Child,
    pub(crate) http: SocketAddr,
    admin: SocketAddr,
}

impl Node {
    /// Starts a node with its data below `dir` and waits until it is ready.
    pub(crate) fn start(dir: &Path, settings: &[&str]) -> Result<Self, Failure> {
        let said = dir.join("said");
        let log = File::create(&said)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_strata"))
            .args([
                "serve",
                "--http-listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--memcached-listen",
                "off",
            ])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env_clear()
            .spawn()?;
        let begun = Instant::now();
        let (http, admin) = loop {
            let text = fs::read_to_string(&said)?;
            if let (Some(http), Some(admin)) = (address(&text, "objects"), address(&text, "admin")) {
                break (http, admin);
            }
            if begun.elapsed() > PATIENCE || child.try_wait()?.is_some() {
                drop(child.kill());
                return Err(format!("the node did not start:\n{text}").into());
            }
            thread::sleep(Duration::from_millis(10));
        };
        Ok(Self { child, http, admin })
    }

    /// Where the kernel tells of it.
    pub(crate) fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.child.id()))
    }

    /// Its figures now.
    pub(crate) fn stats(&self) -> Result<Value, Failure> {
        self.ask("GET", "/v1/stats", "")
    }

    /// Asks its admin door.
    pub(crate) fn ask(&self, method: &str, target: &str, body: &str) -> Result<Value, Failure> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\
             content-type: application/merge-patch+json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(serde_json::from_str(body)?),
            _ => Err(format!("{method} {target}: {answer}").into()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The address the banner names for a door.
fn address(said: &str, door: &str) -> Option<SocketAddr> {
    let line = said.lines().find(|line| line.trim_start().starts_with(door))?;
    line.split("http://").nth(1)?.split_whitespace().next()?.parse().ok()
}
