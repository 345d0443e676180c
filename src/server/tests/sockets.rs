//! The door on two real shards and real sockets: everything that the simulated world leaves out.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use engine::{
    clock::MachineClock,
    mailbox::{Receiver, Sender, mailbox},
    net::{Listener, Port, listen as bind},
    rt::Rt as _,
    shard::{Failure, Options, ShardId, ShardRt, Shards, Supervisor, launch},
};
use serde_json::json;

use super::world::{get, put};
use crate::{
    cache::Tier,
    namespace::{Namespaces, Registry},
    policy::{Policy, VersionedPolicy},
    server::{
        connection::{Connections, Limits},
        dispatch::Dispatch,
        listener::listen,
        service::{ObjectSettings, Objects},
    },
    storage::{
        bridge::{Ask, Bridge, serve},
        memory::MemoryStore,
    },
    version::VersionClock,
};

const SHARDS: usize = 2;

/// Longer than any step takes on a loaded machine, shorter than a hang.
const SOON: Duration = Duration::from_secs(30);

struct Loud;

impl Supervisor for Loud {
    fn shard_failed(&self, failure: Failure) {
        panic!("{failure}");
    }
}

struct Node {
    port: Port,
    shards: Shards,
}

impl Node {
    fn start() -> Self {
        let (mut port, listeners) = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SHARDS).expect("a free port");
        let inboxes: Vec<_> = (0..SHARDS).map(|_| mailbox::<Ask>(16 * SHARDS)).collect();
        let links: Vec<Vec<_>> = (0..SHARDS)
            .map(|from| inboxes.iter().enumerate().map(|(to, inbox)| (from != to).then(|| inbox.sender(16))).collect())
            .map(|links: Vec<Option<Option<Sender<Ask>>>>| links.into_iter().map(Option::flatten).collect())
            .collect();
        let registry = Registry::new();
        let mains = listeners
            .into_iter()
            .zip(inboxes)
            .zip(links)
            .map(|((listener, inbox), links)| {
                let registry = Arc::clone(&registry);
                move |rt: ShardRt, id: ShardId| shard(rt, id, listener, inbox, links, registry)
            })
            .collect();
        let shards = launch(&Options::default(), mains, Arc::new(Loud)).expect("two shards");
        port.open().expect("a thread");
        Self { port, shards }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.port.local_addr()).expect("the port is open");
        client.set_read_timeout(Some(SOON)).expect("a timeout");
        client.set_write_timeout(Some(SOON)).expect("a timeout");
        client
    }

    fn stop(self) {
        self.port.close();
        self.shards.stop();
        assert_eq!(self.shards.join(), []);
    }
}

async fn shard(
    rt: ShardRt,
    id: ShardId,
    listener: Listener,
    inbox: Receiver<Ask>,
    links: Vec<Option<Sender<Ask>>>,
    registry: Arc<Registry>,
) {
    let clock: MachineClock = *rt.clock();
    let store = Rc::new(MemoryStore::new(Tier::L0, 64 << 20, clock, VersionClock::new(1)));
    rt.spawn(serve(rt.clone(), Rc::clone(&store), inbox));
    let storage = Dispatch::new(id.index(), store, links.into_iter().map(|link| link.map(Bridge::new)).collect());
    let policy = Arc::new(Policy::from_json(&json!({})).expect("valid"));
    let namespaces = Rc::new(Namespaces::new(registry, VersionedPolicy { version: 1, policy }));
    let settings = ObjectSettings {
        hash_seed: 7,
        body_bytes_max: 32 << 20,
        inflight_bytes: 256 << 20,
        body_window_bytes: 256 << 10,
    };
    let door = Rc::new(Objects::new(storage, namespaces, clock, settings));
    let connections =
        Connections::new(rt.clone(), Limits::default(), Rc::clone(door.stats()), Rc::clone(door.inflight()));
    rt.spawn(listen(listener, connections.clone(), door));
    rt.stop_signal().raised().await;
    assert_eq!(connections.stop(SOON).await, 0, "every request was answered");
}

/// The status and the body of the next answer.
fn answer(client: &mut TcpStream) -> (u16, Vec<u8>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("ASCII").to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |l| l.parse().expect("a number"));
    let mut body = vec![0; length];
    client.read_exact(&mut body).expect("the whole body");
    (head[9..12].parse().expect("a status"), body)
}

fn body(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 131 + salt) % 251) as u8).collect()
}

#[test]
fn small_and_large_objects_of_both_shards_through_either() {
    let node = Node::start();
    // The port deals its connections in turn, so these are on different shards.
    let mut clients = [node.connect(), node.connect()];
    for (i, length) in [0, 1, 1000, 16 << 10, 70_000, 5 << 20].into_iter().enumerate() {
        for key in 0..4 {
            let (target, body) = (format!("/img/{i}/{key}"), body(length, key));
            clients[key % 2].write_all(&put(&target, &body)).expect("sent");
            assert_eq!(answer(&mut clients[key % 2]).0, 201);
            for client in &mut clients {
                client.write_all(get(&target).as_bytes()).expect("sent");
                assert!(answer(client) == (200, body.clone()), "{target}");
                let range = format!("GET {target} HTTP/1.1\r\nhost: h\r\nrange: bytes=-900\r\n\r\n");
                client.write_all(range.as_bytes()).expect("sent");
                let expected = &body[length.saturating_sub(900)..];
                assert!(answer(client) == (if length == 0 { 200 } else { 206 }, expected.to_vec()), "{target}");
            }
        }
    }
    node.stop();
}

#[test]
fn many_pipelined_requests_and_slow_readers() {
    let node = Node::start();
    let mut client = node.connect();
    let large = body(8 << 20, 3);
    client.write_all(&put("/img/large", &large)).expect("sent");
    assert_eq!(answer(&mut client).0, 201);
    // A reader that does not read must not hold up the others of its shard.
    let mut idle: Vec<_> = (0..4).map(|_| node.connect()).collect();
    for reader in &mut idle {
        reader.write_all(get("/img/large").as_bytes()).expect("sent");
    }
    let batch: String = (0..500).map(|i| get(&format!("/img/nothing/{i}"))).collect();
    let mut sender = client.try_clone().expect("a second handle");
    let writer = std::thread::spawn(move || sender.write_all(batch.as_bytes()).expect("sent"));
    for i in 0..500 {
        let (status, body) = answer(&mut client);
        let body = String::from_utf8(body).expect("JSON");
        assert!(status == 404 && body.contains(&format!("img/nothing/{i}\"")), "{i}: {body}");
    }
    writer.join().expect("no panic");
    for mut reader in idle {
        assert!(answer(&mut reader) == (200, large.clone()));
    }
    node.stop();
}

#[test]
fn a_refused_upload_hears_why_before_the_reset() {
    let node = Node::start();
    for _ in 0..8 {
        let mut client = node.connect();
        let length = (32 << 20) + 1;
        let head = format!("PUT /img/x HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n");
        client.write_all(head.as_bytes()).expect("sent");
        // The client pushes on, as simple ones do, until the server has heard enough.
        let _ = client.write_all(&vec![0; 900 << 10]);
        assert_eq!(answer(&mut client).0, 413);
    }
    node.stop();
}

#[test]
fn a_stop_answers_what_is_under_way() {
    let node = Node::start();
    let (mut busy, mut idle) = (node.connect(), node.connect());
    busy.write_all(b"PUT /img/x HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        .expect("sent");
    // The server asks for the body, so it is at work on the request.
    assert_eq!(answer(&mut busy).0, 100);
    idle.write_all(get("/img/x").as_bytes()).expect("sent");
    assert_eq!(answer(&mut idle).0, 404);
    let stopping = std::thread::spawn(move || node.stop());
    assert_eq!(idle.read(&mut [0]).expect("an end"), 0, "an idle connection is closed");
    busy.write_all(b"body").expect("sent");
    assert_eq!(answer(&mut busy).0, 201);
    assert_eq!(busy.read(&mut [0]).expect("an end"), 0);
    stopping.join().expect("an orderly stop");
}
