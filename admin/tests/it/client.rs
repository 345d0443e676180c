//! A blocking HTTP/1.1 client that hides nothing, and a running door with a double behind it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use admin::{AdminServer, Limits, Running};
use serde_json::Value;

use crate::fake::FakeControl;

/// No test waits longer for a byte; reaching it is a failure.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) const JSON: &str = "Content-Type: application/json";

pub(crate) struct Door {
    pub(crate) control: Arc<FakeControl>,
    pub(crate) running: Running,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Door {
    pub(crate) fn open() -> Self {
        Self::open_with(Limits::default())
    }

    pub(crate) fn open_with(limits: Limits) -> Self {
        let control = Arc::new(FakeControl::default());
        let server = AdminServer::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().with_limits(limits);
        let running = server.serve(control.clone()).unwrap();
        Self { control, running }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.running.local_addr()).unwrap();
        stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        stream
    }

    /// Sends one request on a connection of its own, and checks that its answer is one `/openapi.json` documents.
    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Reply {
        let reply = self.ask_only(method, path, headers, body);
        let openapi = self.ask_only("GET", "/openapi.json", &[], "").json();
        if let Some(item) = openapi["paths"].get(path) {
            let documented = if method == "HEAD" { "get" } else { &method.to_lowercase() };
            if let Some(operation) = item.get(documented) {
                let response = &operation["responses"][reply.status.to_string()];
                assert!(response.is_object(), "{method} {path} answered {} undocumented", reply.status);
                if !reply.body.is_empty() {
                    let content_type = reply.header("content-type").unwrap();
                    assert!(response["content"].get(content_type).is_some(), "{response} lacks {content_type}");
                }
            }
        }
        reply
    }

    fn ask_only(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Reply {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.running.local_addr());
        for header in headers {
            request.push_str(&format!("{header}\r\n"));
        }
        if !body.is_empty() {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("Connection: close\r\n\r\n");
        request.push_str(body);
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        last(&mut stream)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], "")
    }
}

/// The answer that ends with the connection.
pub(crate) fn last(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&String::from_utf8(bytes).unwrap())
}

/// One answer on a connection that stays open.
pub(crate) fn next(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let mut reply = parse(&String::from_utf8(bytes).unwrap());
    let mut body = vec![0; reply.header("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    reply.body = String::from_utf8(body).unwrap();
    reply
}

fn parse(text: &str) -> Reply {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer in {text:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status in {head:?}"));
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// Checks that this is a whole problem, and gives it.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, reason: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!((&problem["status"], &problem["reason"]), (&Value::from(status), &Value::from(reason)), "{problem}");
        assert_eq!(problem["type"], "about:blank");
        assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()));
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        assert_eq!(self.header("retry-after").is_some(), status == 503);
        problem
    }
}
