//! A plain blocking HTTP/1.1 client over one kept-alive connection: it shows what is on the wire and hides nothing.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A wait for one read or write that means the node hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }

    /// The tier that answered, by `Cache-Status`.
    pub(crate) fn tier(&self) -> &str {
        self.header("cache-status").split("detail=").nth(1).unwrap_or("")
    }
}

/// Bytes of a request's body.
pub(crate) enum Body<'a> {
    None,
    Sized(&'a [u8]),
    Chunked(&'a [u8], usize),
    /// Announces more than it sends, then closes its half.
    Short(&'a [u8], usize),
}

impl Client {
    pub(crate) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::with_capacity(256 << 10, stream) }
    }

    pub(crate) fn raw(&mut self) -> &mut TcpStream {
        self.stream.get_mut()
    }

    pub(crate) fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &Body<'_>,
    ) -> io::Result<()> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: test\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match body {
            Body::None => {}
            Body::Sized(bytes) => head.push_str(&format!("content-length: {}\r\n", bytes.len())),
            Body::Short(_, announced) => head.push_str(&format!("content-length: {announced}\r\n")),
            Body::Chunked(..) => head.push_str("transfer-encoding: chunked\r\n"),
        }
        head.push_str("\r\n");
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        match body {
            Body::None => Ok(()),
            Body::Sized(bytes) => stream.write_all(bytes),
            Body::Short(bytes, _) => {
                stream.write_all(bytes)?;
                stream.shutdown(std::net::Shutdown::Write)
            }
            Body::Chunked(bytes, size) => {
                for chunk in bytes.chunks(*size) {
                    write!(stream, "{:x}\r\n", chunk.len())?;
                    stream.write_all(chunk)?;
                    stream.write_all(b"\r\n")?;
                }
                stream.write_all(b"0\r\n\r\n")
            }
        }
    }

    /// Reads one answer; `Err` when the connection is cut before its end.
    pub(crate) fn receive(&mut self, method: &str) -> io::Result<Answer> {
        loop {
            let (status, headers) = self.head()?;
            if status == 100 {
                continue;
            }
            let mut body = Vec::new();
            if method != "HEAD" && status != 204 && status != 304 {
                if headers.get("transfer-encoding").is_some_and(|v| v == "chunked") {
                    self.chunks(&mut body)?;
                } else if let Some(length) = headers.get("content-length") {
                    let length: usize = length.parse().map_err(io::Error::other)?;
                    body.resize(length, 0);
                    self.stream.read_exact(&mut body)?;
                } else {
                    self.stream.read_to_end(&mut body)?;
                }
            }
            return Ok(Answer { status, headers, body });
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn head(&mut self) -> io::Result<(u16, BTreeMap<String, String>)> {
        let status = self.line()?;
        let status = status
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not a status line: {status:?}")))?;
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(line.clone()))?;
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).map_err(io::Error::other)?;
            let start = body.len();
            body.resize(start + size, 0);
            self.stream.read_exact(&mut body[start..])?;
            self.line()?;
            if size == 0 {
                return Ok(());
            }
        }
    }

    pub(crate) fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &Body<'_>) -> Answer {
        self.try_request(method, target, headers, body).unwrap_or_else(|e| panic!("{method} {target}: {e}"))
    }

    pub(crate) fn try_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &Body<'_>,
    ) -> io::Result<Answer> {
        let sent = self.send(method, target, headers, body);
        // An early refusal closes the connection under the body: its answer is what matters.
        match self.receive(method) {
            Ok(answer) => Ok(answer),
            Err(error) => Err(sent.err().unwrap_or(error)),
        }
    }

    pub(crate) fn get(&mut self, target: &str) -> Answer {
        self.request("GET", target, &[], &Body::None)
    }

    pub(crate) fn get_range(&mut self, target: &str, first: u64, last: u64) -> Answer {
        self.request("GET", target, &[("range", &format!("bytes={first}-{last}"))], &Body::None)
    }

    pub(crate) fn put(&mut self, target: &str, body: &[u8]) -> Answer {
        self.request("PUT", target, &[], &Body::Sized(body))
    }
}
