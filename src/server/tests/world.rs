//! A door in a simulated world: sockets in memory, virtual time, one seed.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use engine::rt::{
    Rt as _,
    sim::{Sim, SimClock, SimRt},
};
use serde_json::json;

use crate::{
    cache::{CacheKey, Tier},
    namespace::{Namespaces, Registry},
    policy::{Policy, VersionedPolicy},
    server::{
        connection::{Connections, Limits},
        listener::{Accept, listen},
        service::{ObjectSettings, Objects},
        wire::Socket,
    },
    storage::memory::MemoryStore,
    version::VersionClock,
};

/// Largest body of the node under test.
pub(super) const BODY_BYTES_MAX: u64 = 1 << 20;

/// Bodies in flight of the node under test: three large ones.
pub(super) const INFLIGHT_BYTES: u64 = 4 << 20;

/// What a simulated socket buffers.
const SOCKET_BYTES: usize = 16 << 10;

#[derive(Default)]
struct Half {
    bytes: VecDeque<u8>,
    ended: bool,
    reader_gone: bool,
    waiting: Vec<Waker>,
}

impl Half {
    fn wake(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

/// One end of a connection.
pub(super) struct End {
    incoming: Rc<RefCell<Half>>,
    outgoing: Rc<RefCell<Half>>,
    /// Most bytes a read gives.
    read_max: usize,
}

/// Both ends of a connection; the second gives at most `read_max` bytes a read.
fn duplex(read_max: usize) -> (End, End) {
    let (to, fro) = (Rc::<RefCell<Half>>::default(), Rc::<RefCell<Half>>::default());
    let near = End { incoming: Rc::clone(&fro), outgoing: Rc::clone(&to), read_max: usize::MAX };
    (near, End { incoming: to, outgoing: fro, read_max })
}

impl Drop for End {
    fn drop(&mut self) {
        let mut incoming = self.incoming.borrow_mut();
        incoming.reader_gone = true;
        incoming.wake();
        let mut outgoing = self.outgoing.borrow_mut();
        outgoing.ended = true;
        outgoing.wake();
    }
}

impl Socket for End {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut half = self.incoming.borrow_mut();
        if half.bytes.is_empty() && !half.ended {
            half.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes = half.bytes.len().min(buf.len()).min(self.read_max);
        for slot in &mut buf[..bytes] {
            *slot = half.bytes.pop_front().unwrap_or_default();
        }
        half.wake();
        Poll::Ready(Ok(bytes))
    }

    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut half = self.outgoing.borrow_mut();
        if half.reader_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = SOCKET_BYTES - half.bytes.len();
        if room == 0 {
            half.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        let before = half.bytes.len();
        half.bytes.extend(bufs.iter().flat_map(|buf| buf.iter()).take(room));
        half.wake();
        Poll::Ready(Ok(half.bytes.len() - before))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut half = self.outgoing.borrow_mut();
        half.ended = true;
        half.wake();
        Poll::Ready(Ok(()))
    }
}

/// One answer, as its client sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Names in lower case, in the order they came.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The reason of a problem document.
    pub(super) fn reason(&self) -> String {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).expect("a problem document");
        problem["reason"].as_str().expect("a reason").to_owned()
    }
}

/// A client's connection.
pub(super) struct Client {
    end: End,
    read: Vec<u8>,
}

impl Client {
    /// Sends all of it, or as much as the server takes before it closes.
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let mut rest = bytes.as_ref();
        while !rest.is_empty() {
            match poll_fn(|cx| self.end.poll_write_vectored(cx, &[IoSlice::new(rest)])).await {
                Ok(written) => rest = &rest[written..],
                Err(_) => return false,
            }
        }
        true
    }

    pub(super) async fn send_end(&mut self) {
        poll_fn(|cx| self.end.poll_shutdown(cx)).await.expect("never fails");
    }

    /// Reads some more; `false` at the end.
    pub(super) async fn read_some(&mut self) -> bool {
        let mut buf = [0; 4096];
        let bytes = poll_fn(|cx| self.end.poll_read(cx, &mut buf)).await.expect("never fails");
        self.read.extend_from_slice(&buf[..bytes]);
        bytes > 0
    }

    /// The next answer; `None` when the server closed before its end. `to_head`: it has no body whatever it says.
    pub(super) async fn answer(&mut self, to_head: bool) -> Option<Answer> {
        let head_bytes = loop {
            match self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if self.read_some().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8(self.read[..head_bytes].to_vec()).expect("ASCII");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let headers: Vec<_> = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| line.split_once(':').expect("a header line")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut answer = Answer { status: status.parse().expect("a number"), headers, body: Vec::new() };
        let has_no_body = to_head || matches!(answer.status, 100 | 204 | 304);
        assert!(answer.header("transfer-encoding").is_none(), "lengths are always known");
        let length = match answer.header("content-length") {
            Some(length) if !has_no_body => length.parse().expect("a number"),
            _ => 0,
        };
        while self.read.len() < head_bytes + length {
            if !self.read_some().await {
                return None;
            }
        }
        answer.body = self.read[head_bytes..head_bytes + length].to_vec();
        self.read.drain(..head_bytes + length);
        Some(answer)
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request).await;
        self.answer(false).await.expect("an answer")
    }

    /// Whether the server closes without another byte.
    pub(super) async fn is_closed(&mut self) -> bool {
        self.read.is_empty() && !self.read_some().await
    }

    /// Everything up to the end.
    pub(super) async fn rest(mut self) -> Vec<u8> {
        while self.read_some().await {}
        self.read
    }
}

/// Where a world's connections come from.
#[derive(Clone, Default)]
struct Queue(Rc<RefCell<(VecDeque<End>, Option<Waker>)>>);

impl Accept for Queue {
    type Socket = End;

    async fn accept(&mut self) -> Option<End> {
        poll_fn(|cx| {
            let mut queue = self.0.borrow_mut();
            queue.1 = Some(cx.waker().clone());
            queue.0.pop_front().map_or(Poll::Pending, |end| Poll::Ready(Some(end)))
        })
        .await
    }
}

pub(super) type Store = MemoryStore<SimClock>;
pub(super) type Door = Objects<Store, SimClock>;

/// A node's door, and who visits it.
pub(super) struct World {
    pub(super) sim: Sim,
    pub(super) store: Store,
    pub(super) namespaces: Rc<Namespaces>,
    pub(super) door: Rc<Door>,
    pub(super) connections: Connections<SimRt>,
    queue: Queue,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(seed, Tier::L2, Limits::default())
    }

    /// A world whose store plays `tier`. Namespaces are durable, but for `cache` (a cache, 100 s at most) and
    /// `tiny` (bodies up to 10 bytes); there must be no others but `img`.
    pub(super) fn with(seed: u64, tier: Tier, limits: Limits) -> Self {
        let sim = Sim::new(seed);
        let store = MemoryStore::new(tier, 8 << 20, sim.clock().clone(), VersionClock::new(1));
        let policy = Policy::from_json(&json!({
            "namespaces_mode": "declared",
            "namespaces": {
                "img": {},
                "tiny": {"body_bytes_max": 10},
                "cache": {"mode": "cache_only", "ttl_max": 100},
            },
        }))
        .expect("valid");
        let policy = VersionedPolicy { version: 1, policy: Arc::new(policy) };
        let namespaces = Rc::new(Namespaces::new(Registry::new(), policy));
        let settings = ObjectSettings {
            hash_seed: 7,
            body_bytes_max: BODY_BYTES_MAX,
            inflight_bytes: INFLIGHT_BYTES,
            body_window_bytes: 64 << 10,
        };
        let door = Rc::new(Objects::new(store.clone(), Rc::clone(&namespaces), sim.clock().clone(), settings));
        let connections = Connections::new(sim.rt(), limits, Rc::clone(door.stats()), Rc::clone(door.inflight()));
        let queue = Queue::default();
        sim.rt().spawn(listen(queue.clone(), connections.clone(), Rc::clone(&door)));
        Self { sim, store, namespaces, door, connections, queue }
    }

    pub(super) fn connect(&self) -> Client {
        self.connect_slow(usize::MAX)
    }

    /// A client whose bytes reach the server at most `read_max` at a time.
    pub(super) fn connect_slow(&self, read_max: usize) -> Client {
        let (near, far) = duplex(read_max);
        let mut queue = self.queue.0.borrow_mut();
        queue.0.push_back(far);
        queue.1.take().into_iter().for_each(Waker::wake);
        Client { end: near, read: Vec::new() }
    }

    /// Asks on a connection of its own.
    pub(super) fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = self.connect();
        self.sim.block_on(client.ask(request))
    }

    pub(super) fn put(&self, target: &str, body: &[u8]) -> Answer {
        self.ask(put(target, body))
    }

    pub(super) fn get(&self, target: &str) -> Answer {
        self.ask(get(target))
    }

    /// Whether nothing of `path` is there or staged.
    pub(super) fn holds_nothing_of(&self, path: &str) -> bool {
        let (namespace, key) = path.split_once('/').expect("namespace/key");
        let key = CacheKey::new(namespace, key.as_bytes(), 7).expect("valid");
        self.store.peek(&key).is_none() && self.store.staged_bytes() == 0
    }
}

pub(super) fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n")
}

pub(super) fn put(target: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("PUT {target} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
