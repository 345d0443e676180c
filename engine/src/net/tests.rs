use std::{
    future::poll_fn,
    io::{IoSlice, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_lite::future::{or, poll_once};
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};

use super::*;
use crate::{
    rt::Rt,
    shard::{Failure, Options, ShardId, ShardRt, Shards, Supervisor, launch},
};

/// Long enough for a loaded machine, short enough to tell a hang.
const SOON: Duration = Duration::from_secs(20);

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Counts the panics of tasks: the assertions inside them.
#[derive(Default)]
struct Panics(AtomicU64);

impl Supervisor for Panics {
    fn shard_failed(&self, failure: Failure) {
        eprintln!("{failure}");
    }

    fn task_panicked(&self, _: ShardId, _: &str) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A port and the shards that serve it.
struct Server {
    port: Port,
    shards: Shards,
    panics: Arc<Panics>,
}

impl Server {
    fn stop(self) {
        self.port.close();
        self.shards.stop();
        assert_eq!(self.shards.join(), []);
        assert_eq!(self.panics.0.load(Ordering::SeqCst), 0, "a task panicked");
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// Runs `serve` for each connection, on as many shards.
fn start<F>(shards: usize, grace: Duration, serve: impl Fn(ShardRt, Stream) -> F + Clone + Send + 'static) -> Server
where
    F: Future<Output = ()> + 'static,
{
    let (mut port, listeners) = listen(ANY, shards).expect("a free port");
    let mains = listeners.into_iter().map(|mut listener| {
        let serve = serve.clone();
        move |rt: ShardRt, _: ShardId| async move {
            while let Some(stream) = or(listener.accept(), async {
                rt.stop_signal().raised().await;
                None
            })
            .await
            {
                rt.spawn(serve(rt.clone(), stream));
            }
        }
    });
    let options = Options { grace, ..Options::default() };
    let panics = Arc::<Panics>::default();
    let shards = launch(&options, mains.collect(), panics.clone()).expect("this machine runs shards");
    port.open().expect("a thread");
    Server { port, shards, panics }
}

fn connect(port: &Port) -> TcpStream {
    let client = TcpStream::connect(port.local_addr()).expect("it listens");
    client.set_read_timeout(Some(SOON)).expect("a socket");
    client.set_write_timeout(Some(SOON)).expect("a socket");
    client
}

/// Sends back what comes, until the end.
async fn echo(_: ShardRt, mut stream: Stream) {
    let mut buf = [0; 1000];
    loop {
        let read = stream.read(&mut buf).await.expect("the client is well");
        if read == 0 {
            return poll_fn(|cx| stream.poll_shutdown(cx)).await.expect("the client is well");
        }
        stream.write_all(&buf[..read]).await.expect("the client is well");
    }
}

#[test]
fn connections_are_dealt_evenly_and_both_shards_echo() {
    let served = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let counts = served.clone();
    let server = start(2, SOON, move |rt: ShardRt, stream: Stream| {
        counts[rt.shard().index()].fetch_add(1, Ordering::SeqCst);
        assert!(stream.peer_addr().ip().is_loopback() && stream.local_addr().ip().is_loopback());
        echo(rt, stream)
    });
    let mut clients: Vec<_> = (0..64).map(|_| connect(&server.port)).collect();
    for round in 0..10_u8 {
        let bytes = vec![round; 1 + usize::from(round) * 300];
        clients.iter_mut().for_each(|client| client.write_all(&bytes).expect("it takes it"));
        for client in &mut clients {
            let mut back = vec![0; bytes.len()];
            client.read_exact(&mut back).expect("it answers");
            assert_eq!(back, bytes);
        }
    }
    assert_eq!([served[0].load(Ordering::SeqCst), served[1].load(Ordering::SeqCst)], [32, 32]);
    assert_eq!((server.port.accepted(), server.port.dropped()), (64, 0));
    drop(clients);
    server.stop();
}

#[test]
fn a_port_belongs_to_one_process() {
    let (port, _listeners) = listen(ANY, 2).expect("a free port");
    let addr = port.local_addr();
    assert_ne!(addr.port(), 0);
    let error = listen(addr, 2).err().expect("it is taken");
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    // Not even one who is willing to share.
    let intruder = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    sockopt::set_socket_reuseport(&intruder, true).expect("an option");
    sockopt::set_socket_reuseaddr(&intruder, true).expect("an option");
    assert_eq!(bind(&intruder, &addr), Err(rustix::io::Errno::ADDRINUSE));

    let other = TcpListener::bind(ANY).expect("a free port");
    let theirs = other.local_addr().expect("it is bound");
    assert!(matches!(listen(theirs, 1), Err(BindError::InUse { addr, .. }) if addr == theirs));
    let nowhere = SocketAddr::from(([192, 0, 2, 1], 0));
    assert!(matches!(listen(nowhere, 1), Err(BindError::Refused { addr, .. }) if addr == nowhere));
}

#[test]
fn who_connects_before_the_opening_is_served_after_it() {
    let (mut port, mut listeners) = listen(ANY, 1).expect("a free port");
    let mut client = connect(&port);
    client.write_all(b"early").expect("the kernel takes it");
    let mut listener = listeners.pop().expect("one");
    let main = move |rt: ShardRt, _| async move {
        let stream = listener.accept().await.expect("the early one");
        rt.spawn(echo(rt.clone(), stream));
        assert!(listener.accept().await.is_none());
    };
    let panics = Arc::<Panics>::default();
    let shards = launch(&Options::default(), vec![main], panics.clone()).expect("this machine runs shards");
    assert_eq!(port.accepted(), 0);
    port.open().expect("a thread");
    port.open().expect("nothing");
    let mut back = [0; 5];
    client.read_exact(&mut back).expect("it answers");
    assert_eq!(&back, b"early");
    drop(client);
    port.close();
    assert_eq!((shards.join(), panics.0.load(Ordering::SeqCst)), (vec![], 0));
}

#[test]
fn a_closed_port_is_free_and_what_it_had_accepted_or_queued_is_served() {
    let (mut port, mut listeners) = listen(ANY, 1).expect("a free port");
    let addr = port.local_addr();
    let mut clients: Vec<_> = (0..10).map(|_| connect(&port)).collect();
    port.open().expect("a thread");
    port.close();
    drop(TcpListener::bind(addr).expect("it is free"));
    let mut listener = listeners.pop().expect("one");
    let main = move |rt: ShardRt, _| async move {
        while let Some(stream) = listener.accept().await {
            rt.spawn(echo(rt.clone(), stream));
        }
    };
    let panics = Arc::<Panics>::default();
    let shards = launch(&Options::default(), vec![main], panics.clone()).expect("this machine runs shards");
    for client in &mut clients {
        client.write_all(b"x").expect("it takes it");
        client.read_exact(&mut [0]).expect("it answers");
    }
    drop(clients);
    assert_eq!((shards.join(), panics.0.load(Ordering::SeqCst)), (vec![], 0));
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn a_stop_with_open_connections_leaves_no_port_no_thread_and_tells_the_clients() {
    let server = start(2, Duration::from_millis(50), echo);
    let addr = server.port.local_addr();
    let mut clients: Vec<_> = (0..8).map(|_| connect(&server.port)).collect();
    for client in &mut clients {
        client.write_all(b"x").expect("it takes it");
        client.read_exact(&mut [0]).expect("it answers");
    }
    server.stop();
    drop(TcpListener::bind(addr).expect("it is free"));
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).expect("a regular end"), 0);
    }
}

#[test]
fn vectored_writes_go_out_in_order_and_wait_for_a_slow_reader() {
    const SLICES: usize = 1500;
    const SLICE: usize = 10_000;
    let (waited, at_work) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (saw_wait, wrote) = (waited.clone(), at_work.clone());
    let server = start(1, SOON, move |_, mut stream: Stream| {
        let (saw_wait, wrote) = (saw_wait.clone(), wrote.clone());
        async move {
            let bytes: Vec<u8> = (0..SLICES * SLICE).map(|at| (at / 7 % 251) as u8).collect();
            let mut sent = 0;
            while sent < bytes.len() {
                // More slices than one call takes, empty ones among them.
                let slices: Vec<_> =
                    bytes[sent..].chunks(SLICE).flat_map(|c| [IoSlice::new(&[]), IoSlice::new(c)]).collect();
                let mut polls = 0;
                sent += poll_fn(|cx| {
                    polls += 1;
                    let polled = stream.poll_write_vectored(cx, &slices);
                    saw_wait.fetch_or(polled.is_pending(), Ordering::SeqCst);
                    polled
                })
                .await
                .expect("the client is well");
                wrote.store(sent as u64, Ordering::SeqCst);
            }
            poll_fn(|cx| stream.poll_flush(cx)).await.expect("nothing to do");
            poll_fn(|cx| stream.poll_shutdown(cx)).await.expect("the client is well");
        }
    });
    let mut client = connect(&server.port);
    wait_until("it waits for the reader", || waited.load(Ordering::SeqCst));
    assert!(at_work.load(Ordering::SeqCst) < (SLICES * SLICE) as u64);
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("it sends all");
    assert_eq!(all.len(), SLICES * SLICE);
    assert!(all.iter().enumerate().all(|(at, byte)| *byte == (at / 7 % 251) as u8));
    server.stop();
}

#[test]
fn a_read_that_was_dropped_has_read_nothing() {
    let server = start(1, SOON, |rt: ShardRt, mut stream: Stream| async move {
        let mut sum = Vec::new();
        loop {
            let mut lost = [0; 64];
            let timed = or(async { Some(stream.read(&mut lost).await) }, async {
                rt.sleep(Duration::from_micros(rt.random() % 300)).await;
                None
            });
            match timed.await {
                Some(read) => match read.expect("the client is well") {
                    0 => break,
                    read => sum.extend_from_slice(&lost[..read]),
                },
                None => drop(poll_once(stream.peer_closed()).await),
            }
        }
        stream.write_all(&sum).await.expect("the client reads");
    });
    let mut client = connect(&server.port);
    let bytes: Vec<u8> = (0..20_000_u32).map(|at| (at % 241) as u8).collect();
    for chunk in bytes.chunks(37) {
        client.write_all(chunk).expect("it takes it");
    }
    client.shutdown(std::net::Shutdown::Write).expect("it is open");
    let mut back = Vec::new();
    client.read_to_end(&mut back).expect("it answers");
    assert_eq!(back, bytes);
    server.stop();
}

#[test]
fn reads_into_fresh_memory_give_what_was_read() {
    let server = start(1, SOON, |_, mut stream: Stream| async move {
        let mut back = Vec::new();
        loop {
            let mut fresh = [const { std::mem::MaybeUninit::uninit() }; 100];
            let read = poll_fn(|cx| match stream.poll_read_uninit(cx, &mut fresh) {
                std::task::Poll::Ready(read) => std::task::Poll::Ready(read.map(|read| read.to_vec())),
                std::task::Poll::Pending => std::task::Poll::Pending,
            });
            match &read.await.expect("the client is well")[..] {
                [] => break,
                read => back.extend_from_slice(read),
            }
        }
        stream.write_all(&back).await.expect("the client reads");
        assert_eq!(stream.read(&mut []).await.expect("nothing is read"), 0);
    });
    let mut client = connect(&server.port);
    let bytes: Vec<u8> = (0..=255).cycle().take(3210).collect();
    client.write_all(&bytes).expect("it takes it");
    client.shutdown(std::net::Shutdown::Write).expect("it is open");
    let mut back = Vec::new();
    client.read_to_end(&mut back).expect("it answers");
    assert_eq!(back, bytes);
    server.stop();
}

#[test]
fn a_client_that_ended_its_half_is_noticed_with_bytes_unread_and_can_still_be_answered() {
    let server = start(1, SOON, |rt: ShardRt, mut stream: Stream| async move {
        assert!(!stream.is_peer_closed());
        assert_eq!(poll_once(stream.peer_closed()).await, None);
        stream.write_all(b"go").await.expect("the client is well");
        stream.peer_closed().await;
        assert!(stream.is_peer_closed());
        let (mut buf, mut read) = ([0; 10], 0);
        while read < 6 {
            read += stream.read(&mut buf[read..]).await.expect("bytes before the end");
        }
        assert_eq!(stream.read(&mut buf[6..]).await.expect("the end"), 0);
        assert_eq!(&buf[..6], b"unread");
        rt.yield_now().await;
        stream.write_all(b"done").await.expect("the client reads still");
    });
    let mut client = connect(&server.port);
    let mut back = [0; 2];
    client.read_exact(&mut back).expect("it is at work");
    client.write_all(b"unread").expect("it takes it");
    client.shutdown(std::net::Shutdown::Write).expect("it is open");
    let mut last = String::new();
    client.read_to_string(&mut last).expect("it answers");
    assert_eq!(last, "done");
    server.stop();
}

#[test]
fn an_aborted_connection_is_no_clean_end() {
    let server = start(1, SOON, |_, mut stream: Stream| async move {
        stream.write_all(b"half of the bo").await.expect("the client is well");
        let mut buf = [0; 3];
        assert_eq!(stream.read(&mut buf).await.expect("the client is well"), 3);
        stream.abort();
    });
    let mut client = connect(&server.port);
    client.read_exact(&mut [0; 14]).expect("it came");
    client.write_all(b"got").expect("it takes it");
    let error = client.read(&mut [0]).expect_err("not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    server.stop();
}

#[test]
fn a_reset_by_the_client_is_an_error_of_reads_and_writes() {
    let seen = Arc::new(AtomicU64::new(0));
    let told = seen.clone();
    let server = start(1, SOON, move |rt: ShardRt, mut stream: Stream| {
        let told = told.clone();
        async move {
            stream.write_all(b"hello").await.expect("the client is well");
            let mut buf = [0; 3];
            // The first may be the reset itself; after it, an end.
            let read = stream.read(&mut buf).await;
            assert!(read.is_err() || read.is_ok_and(|read| read == 0));
            assert!(stream.is_peer_closed());
            while stream.write_all(b"anybody there?").await.is_ok() {
                rt.yield_now().await;
            }
            told.fetch_add(1, Ordering::SeqCst);
        }
    });
    let client = connect(&server.port);
    // Closing with unread bytes resets.
    client.peek(&mut [0]).expect("it came");
    drop(client);
    wait_until("the server has noticed", || seen.load(Ordering::SeqCst) == 1);
    server.stop();
}
