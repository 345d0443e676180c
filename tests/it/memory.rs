//! INV-4: whatever clients do, the process stays below `memory_max`, and is well afterwards.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::node::Node;

const MEMORY_MAX: u64 = 192 << 20;

/// Of all that is waited for below.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends a request and reads nothing.
fn ask(to: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn get(to: SocketAddr, target: &str) -> TcpStream {
    ask(to, &format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n"))
}

/// The status of the answer, and not a byte of its body.
fn status(stream: &mut TcpStream) -> u16 {
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    String::from_utf8_lossy(&line[9..]).parse().unwrap()
}

/// A client that uploads as fast as it is let, for a moment, and then goes on holding its connection.
fn pour(stream: &mut TcpStream, bytes: &[u8]) {
    stream.set_nonblocking(true).unwrap();
    for _ in 0..4 {
        match stream.write(bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // Refused, and closed.
            Err(_) => break,
        }
    }
    stream.set_nonblocking(false).unwrap();
}

fn in_flight(node: &Node) -> u64 {
    node.stats()["totals"]["inflight_bytes"].as_u64().unwrap()
}

#[test]
fn slow_clients_do_not_take_more_memory_than_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let max = MEMORY_MAX.to_string();
    let connections = "limits.connections_max=600";
    let node = Node::start(dir.path(), &["--memory-max", &max, "--set", "l2_bytes=64MiB", "--set", connections]);
    let peak = |node: &Node| node.memory("VmHWM") + node.memory("HugetlbPages");
    assert!(peak(&node) > 8 << 20, "the figure means something");

    // L0 and L2 are outgrown.
    let mut random = fastrand::Rng::with_seed(1);
    let body: Vec<u8> = (0..50 << 20).map(|_| random.u8(..)).collect();
    let mut client = node.client();
    for huge in 0..2 {
        assert_eq!(client.put(&format!("/m/huge-{huge}"), &body).status, 201);
    }
    for large in 0..50 {
        assert_eq!(client.put(&format!("/m/large-{large}"), &body[large..large + (2 << 20)]).status, 201);
    }

    let mut idle: Vec<_> = (0..150).map(|_| get(node.http, "/m/nothing")).collect();
    assert!(idle.iter_mut().all(|stream| status(stream) == 404));
    let mut readers: Vec<_> = (0..200).map(|i| get(node.http, &format!("/m/large-{}", i % 50))).collect();
    readers.extend((0..200).map(|i| get(node.http, &format!("/m/huge-{}", i % 2))));
    let mut writers: Vec<_> = (0..150)
        .map(|i| ask(node.http, &format!("PUT /m/slow-{i} HTTP/1.1\r\nhost: test\r\ncontent-length: 20000000\r\n\r\n")))
        .collect();
    writers.iter_mut().for_each(|writer| pour(writer, &body[..1 << 20]));
    let told: Vec<_> = readers.iter_mut().map(status).collect();
    let count = |wanted| told.iter().filter(|status| **status == wanted).count();
    println!("{} readers are served, {} refused", count(200), count(503));
    assert_eq!(count(200) + count(503), told.len(), "{told:?}");
    assert!(count(200) >= 4 && count(503) > 0, "some are served, and the bound was met: {told:?}");
    let totals = &node.stats()["totals"];
    assert!(totals["inflight_waits"].as_u64() > Some(0), "{totals}");
    assert!(in_flight(&node) > 1 << 20, "bodies are under way");
    println!("peak {} MiB of {}", peak(&node) >> 20, MEMORY_MAX >> 20);

    // They leave, and everything is as before.
    drop((idle, readers, writers));
    let begun = Instant::now();
    while in_flight(&node) > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} bytes stay in flight", in_flight(&node));
        thread::sleep(Duration::from_millis(20));
    }
    let mut client = node.client();
    for large in [0, 17, 49] {
        let answer = client.get(&format!("/m/large-{large}"));
        assert!(answer.status == 200 && answer.body == body[large..large + (2 << 20)], "{large}: {}", answer.status);
    }
    let huge = client.get("/m/huge-1");
    assert!(huge.status == 200 && huge.body == body, "{}", huge.status);
    assert_eq!(client.put("/m/after", &body[..3 << 20]).status, 201);
    assert_eq!(client.get("/m/slow-3").status, 404, "nothing is readable of what did not end");
    let peak = peak(&node);
    assert!(peak < MEMORY_MAX, "{} MiB of {}", peak >> 20, MEMORY_MAX >> 20);
    let ended = node.stop();
    assert!(ended.status.success(), "{ended:?}");
}
