//! Time limits, the limit of connections, stopping, and what clients may do with a connection.

use std::time::Duration;

use engine::{clock::Clock as _, rt::Rt as _};

use super::world::{Client, World, get, put};
use crate::{
    cache::Tier,
    server::connection::{BUFFER_BYTES_MAX, Limits, SWEEP},
    storage::memory::{Fault, Gate, Op},
};

const LIMITS: Limits = Limits {
    connections_max: 2,
    header_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(75),
    stall_timeout: Duration::from_secs(60),
};

fn world(seed: u64) -> World {
    World::with(seed, Tier::L2, LIMITS)
}

/// How long the server keeps the connection.
fn time_to_close(world: &World, client: &mut Client) -> Duration {
    let began = world.sim.clock().elapsed();
    world.sim.block_on(async { while client.read_some().await {} });
    world.sim.clock().elapsed() - began
}

fn assert_about(took: Duration, limit: Duration) {
    assert!(took >= limit - SWEEP && took <= limit + 2 * SWEEP, "{took:?}, limit {limit:?}");
}

#[test]
fn a_slow_head_and_an_idle_client_are_let_go() {
    for seed in 0..8 {
        let world = world(seed);
        let mut idle = world.connect();
        assert_about(time_to_close(&world, &mut idle), LIMITS.idle_timeout);
        let mut slow = world.connect();
        world.sim.block_on(slow.send("GET /img/x HTTP/1.1\r\nhost:"));
        assert_about(time_to_close(&world, &mut slow), LIMITS.header_timeout);
        let mut used = world.connect();
        world.sim.block_on(used.ask(get("/img/x")));
        assert_about(time_to_close(&world, &mut used), LIMITS.idle_timeout);
        assert_eq!(world.door.stats().snapshot().connections_timed_out, 3);
        assert_eq!(world.connections.open(), 0);
    }
}

#[test]
fn trickling_a_head_gains_no_time() {
    let world = world(1);
    let mut client = world.connect();
    let sent = world.sim.block_on(async {
        let mut sent = 0;
        while client.send("x").await {
            sent += 1;
            world.sim.rt().sleep(Duration::from_secs(1)).await;
        }
        sent
    });
    assert!((10..=12).contains(&sent), "{sent}");
}

#[test]
fn a_stalled_upload_and_a_stalled_download_are_let_go_but_a_slow_store_is_not_the_clients_fault() {
    for seed in 0..8 {
        let world = world(seed);
        let mut upload = world.connect();
        world.sim.block_on(upload.send("PUT /img/x HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf"));
        assert_about(time_to_close(&world, &mut upload), LIMITS.stall_timeout);
        assert!(world.holds_nothing_of("img/x"));

        assert_eq!(world.put("/img/large", &vec![7; 1 << 20]).status, 201);
        let mut download = world.connect();
        world.sim.block_on(download.send(get("/img/large")));
        world.sim.run_for(LIMITS.stall_timeout + 2 * SWEEP);
        assert_eq!(world.connections.open(), 0);
        assert!(world.sim.block_on(download.rest()).len() < 1 << 20);

        let gate = Gate::new();
        world.store.faults().inject(Op::Lookup, Fault::Hold(gate.clone()));
        let mut patient = world.connect();
        world.sim.block_on(patient.send(get("/img/large")));
        world.sim.run_for(10 * LIMITS.stall_timeout);
        gate.open();
        let answer = world.sim.block_on(patient.answer(false)).expect("it was not the client's fault");
        assert_eq!((answer.status, answer.body.len()), (200, 1 << 20));
    }
}

#[test]
fn one_connection_too_many_is_told_so_and_the_next_finds_room() {
    for seed in 0..8 {
        let world = world(seed);
        let (mut first, mut second) = (world.connect(), world.connect());
        world.sim.block_on(async {
            assert_eq!(first.ask(get("/img/x")).await.status, 404);
            assert_eq!(second.ask(get("/img/x")).await.status, 404);
        });
        let mut third = world.connect();
        let refusal = world.sim.block_on(third.ask(get("/img/x")));
        assert_eq!((refusal.status, refusal.header("retry-after")), (503, Some("1")));
        assert_eq!((refusal.reason().as_str(), refusal.header("connection")), ("overload", Some("close")));
        assert!(world.sim.block_on(third.is_closed()));
        drop(first);
        world.sim.run_until_idle();
        assert_eq!(world.get("/img/x").status, 404);
        assert_eq!(world.door.stats().snapshot().connections_refused, 1);
    }
}

#[test]
fn stopping_answers_what_is_under_way_and_closes_the_rest() {
    for seed in 0..8 {
        let world = world(seed);
        let gate = Gate::new();
        world.store.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
        let (mut idle, mut busy) = (world.connect(), world.connect());
        world.sim.block_on(async {
            idle.ask(get("/img/y")).await;
            busy.send(put("/img/x", b"body")).await;
        });
        world.sim.run_until_idle();
        assert_eq!(gate.arrived(), 1);
        let stopped = std::rc::Rc::new(std::cell::Cell::new(None));
        let (connections, late) = (world.connections.clone(), std::rc::Rc::clone(&stopped));
        world.sim.rt().spawn(async move { late.set(Some(connections.stop(Duration::from_secs(30)).await)) });
        assert!(world.sim.block_on(idle.is_closed()));
        assert_eq!(stopped.get(), None, "it waits for the request under way");
        gate.open();
        let answer = world.sim.block_on(busy.answer(false)).expect("an answer");
        assert_eq!((answer.status, answer.header("connection")), (201, Some("close")));
        assert!(world.sim.block_on(busy.is_closed()));
        world.sim.run_for(SWEEP * 2);
        assert_eq!((stopped.get(), world.connections.open()), (Some(0), 0));
        assert_eq!(world.sim.tasks(), 0, "nothing goes on after the stop");
    }
}

#[test]
fn stopping_waits_no_longer_than_its_grace() {
    let world = world(1);
    world.store.faults().inject(Op::Finish, Fault::Hold(Gate::new()));
    let mut busy = world.connect();
    world.sim.block_on(busy.send(put("/img/x", b"body")));
    world.sim.run_until_idle();
    assert_eq!(world.sim.block_on(world.connections.stop(Duration::from_secs(5))), 1);
    assert!(world.sim.block_on(busy.is_closed()));
    assert!(world.holds_nothing_of("img/x"));
}

#[test]
fn pipelined_requests_are_answered_in_order_and_a_half_one_holds_back_nothing() {
    for seed in 0..8 {
        let world = world(seed);
        let mut client = world.connect();
        let sent = [put("/img/a", b"A"), put("/img/b", b"B"), get("/img/a").into(), get("/img/b").into()].concat();
        world.sim.block_on(async {
            client.send([&sent[..], b"GET /img/"].concat()).await;
            for (status, body) in [(201, ""), (201, ""), (200, "A"), (200, "B")] {
                let answer = client.answer(false).await.expect("an answer");
                assert_eq!((answer.status, answer.body.as_slice()), (status, body.as_bytes()));
            }
            client.send("a HTTP/1.1\r\nhost: h\r\n\r\n").await;
            assert_eq!(client.answer(false).await.expect("an answer").body, b"A");
        });
    }
}

#[test]
fn a_client_that_shut_its_side_still_gets_its_answer() {
    for seed in 0..8 {
        let world = world(seed);
        world.put("/img/a", &[b'a'; 100_000]);
        let mut client = world.connect();
        let rest = world.sim.block_on(async {
            client.send(get("/img/a")).await;
            client.send_end().await;
            client.rest().await
        });
        assert!(rest.ends_with(&[b'a'; 100_000]) && rest.starts_with(b"HTTP/1.1 200 "));
    }
}

#[test]
fn an_answer_before_the_end_of_a_large_body_is_read_and_the_connection_ends() {
    for seed in 0..8 {
        let world = world(seed);
        let mut client = world.connect();
        let length = 300_000;
        world.sim.block_on(async {
            let head = format!("PUT /tiny/x HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n");
            client.send(head).await;
            // Pushes on without listening, as simple clients do; what is thrown away does not block them.
            assert!(client.send(vec![0; length]).await);
            let answer = client.answer(false).await.expect("an answer");
            assert_eq!((answer.status, answer.header("connection")), (413, Some("close")));
            assert!(client.is_closed().await || !client.send("more").await);
        });
        // One that never stops is listened to for a moment only.
        let mut stubborn = world.connect();
        world.sim.block_on(async {
            stubborn.send("PUT /tiny/x HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999\r\n\r\n").await;
            while stubborn.send([0; 1000]).await {
                world.sim.rt().sleep(Duration::from_millis(100)).await;
            }
        });
        assert_eq!(world.connections.open(), 0);
    }
}

#[test]
fn a_head_may_be_as_long_as_the_bound_and_no_longer() {
    for (seed, read_max) in [(1, usize::MAX), (2, 999)] {
        for (more, status) in [(0, 404), (1, 431)] {
            let world = World::new(seed);
            let before = "GET /img/x HTTP/1.1\r\nhost: h\r\nx-long: ";
            let long = "x".repeat(BUFFER_BYTES_MAX - before.len() - 4 + more);
            let mut client = world.connect_slow(read_max);
            let answer = world.sim.block_on(client.ask(format!("{before}{long}\r\n\r\n")));
            assert_eq!(answer.status, status, "{more} bytes beyond");
        }
    }
}
