//! INV-1 as a client meets it: whole bodies or visible errors, in both directions.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use engine::rt::sim::Sim;
use http_body_util::BodyExt;
use proptest::prelude::*;

use super::world::{Answer, World, get, put};
use crate::{
    cache::{CacheError, CacheKey, HitHandler, Storage, Tier},
    reason::Reason,
    server::{
        body::{Body, Sent},
        connection::Limits,
    },
    storage::memory::{Fault, Gate, Op},
};

fn body(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

#[test]
fn bodies_of_all_sizes_come_back_whole_and_by_range() {
    for (seed, tier) in [(1, Tier::L0), (2, Tier::L2)] {
        let world = World::with(seed, tier, Limits::default());
        for (chunk, length) in [(1000, 0), (1000, 1), (1000, 999), (1000, 1000), (1000, 5000), (70_000, 300_000)] {
            world.store.set_chunk_bytes(chunk);
            let body = body(length);
            assert!(matches!(world.put("/img/x", &body).status, 201 | 204));
            let got = world.get("/img/x");
            assert!(got.status == 200 && got.body == body, "{length} bytes by {chunk}");
            for (from, to) in [(0, 0), (1, 999), (999, 1000), (length / 2, length), (length.saturating_sub(1), length)]
            {
                if from >= length || to < from {
                    continue;
                }
                let request = format!("GET /img/x HTTP/1.1\r\nhost: h\r\nrange: bytes={from}-{to}\r\n\r\n");
                let got = world.ask(request);
                assert_eq!(got.status, 206);
                assert!(got.body == body[from..=to.min(length - 1)], "{from}-{to} of {length} by {chunk}");
            }
        }
    }
}

#[test]
fn a_read_that_fails_before_the_head_is_told_and_one_that_fails_later_cuts() {
    for seed in 0..8 {
        let world = World::new(seed);
        world.store.set_chunk_bytes(1000);
        world.put("/img/x", &body(5000));
        world.store.faults().inject(Op::Read, Fault::Corrupted);
        let told = world.get("/img/x");
        assert_eq!((told.status, told.reason().as_str()), (503, "corrupted"));
        assert_eq!(told.header("cache-status"), Some("Strata; detail=corrupted"));

        // The second of five chunks.
        let gate = Gate::new();
        gate.open();
        world.store.faults().inject(Op::Read, Fault::Hold(gate));
        world.store.faults().inject(Op::Read, Fault::Failed(Reason::Io));
        let mut client = world.connect();
        world.sim.block_on(client.send(get("/img/x")));
        assert_eq!(world.sim.block_on(client.answer(false)), None, "no whole answer");
        let got = world.sim.block_on(client.rest());
        let head = b"\r\n\r\n";
        let at = got.windows(4).position(|four| four == head);
        assert!(at.is_none_or(|at| got.len() - at - 4 < 5000), "fewer bytes than announced, then the end");
        assert_eq!(world.door.stats().snapshot().cuts.get(Reason::Io), 1);
    }
}

#[test]
fn a_reader_that_leaves_ends_the_read() {
    let world = World::new(3);
    world.store.set_chunk_bytes(1000);
    world.put("/img/x", &body(1_000_000));
    let mut client = world.connect();
    world.sim.block_on(async {
        client.send(get("/img/x")).await;
        client.read_some().await;
    });
    drop(client);
    world.sim.run_until_idle();
    assert_eq!(world.connections.open(), 0);
    let sent = world.door.stats().snapshot().bytes_out;
    assert!(sent < 200_000, "nobody reads on for a client that is gone: {sent}");
}

/// Sends a broken upload of `img/x` and says what came back.
fn upload(world: &World, sent: &str, then_end: bool) -> Option<Answer> {
    let mut client = world.connect();
    let answer = world.sim.block_on(async {
        client.send(sent).await;
        if !then_end {
            return None;
        }
        client.send_end().await;
        client.answer(false).await
    });
    drop(client);
    world.sim.run_until_idle();
    answer
}

#[test]
fn an_upload_that_is_cut_leaves_nothing() {
    const SIZED: &str = "PUT /img/x HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n";
    const CHUNKED: &str = "PUT /img/x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    for seed in 0..8 {
        for (head, some) in
            [(SIZED, ""), (SIZED, "123456789"), (CHUNKED, ""), (CHUNKED, "5\r\nhello\r\n"), (CHUNKED, "5\r\nhel")]
        {
            let world = World::new(seed);
            assert_eq!(upload(&world, &format!("{head}{some}"), false), None);
            assert!(world.holds_nothing_of("img/x"), "{head}{some} and gone");
            let told = upload(&world, &format!("{head}{some}"), true).expect("an answer");
            assert_eq!((told.status, told.reason().as_str()), (400, "body-cut"), "{head}{some}");
            assert!(world.holds_nothing_of("img/x"), "{head}{some} and no more");
            assert_eq!(world.connections.open(), 0);
        }
        let world = World::new(seed);
        for broken in ["x\r\nhello\r\n0\r\n\r\n", "5\r\nhelloworld\r\n0\r\n\r\n", "-1\r\n\r\n", "fffffffffffffffff\r\n"]
        {
            let told = upload(&world, &format!("{CHUNKED}{broken}"), true).expect("an answer");
            assert_eq!((told.status, told.reason().as_str()), (400, "body-cut"), "{broken}");
            assert!(world.holds_nothing_of("img/x"), "{broken}");
        }
    }
}

#[test]
fn bytes_beyond_the_length_are_no_part_of_the_object() {
    let world = World::new(5);
    let mut client = world.connect();
    let (stored, then) = world.sim.block_on(async {
        client.send("PUT /img/x HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabcdefg\r\n\r\n").await;
        (client.answer(false).await.expect("an answer"), client.answer(false).await.expect("an answer"))
    });
    assert_eq!((stored.status, then.status), (201, 400));
    assert!(world.sim.block_on(client.is_closed()));
    assert_eq!(world.get("/img/x").body, b"abc");
}

#[test]
fn a_body_that_outgrows_the_node_in_mid_stream_is_refused() {
    let world = World::new(6);
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut client = world.connect();
    let answer = world.sim.block_on(async {
        client.send("PUT /img/x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").await;
        for _ in 0..17 {
            client.send(&chunk).await;
        }
        client.answer(false).await.expect("an answer")
    });
    assert_eq!((answer.status, answer.reason().as_str()), (413, "body-max"));
    world.sim.run_until_idle();
    assert!(world.holds_nothing_of("img/x"));
}

#[test]
fn what_the_storage_says_is_what_the_client_hears() {
    let cases = [
        (Op::Begin, Fault::Failed(Reason::TierPoisoned), 503, "tier-poisoned"),
        (Op::Begin, Fault::Refused(Reason::TooLarge), 413, "too-large"),
        (Op::Write, Fault::Refused(Reason::DiskFull), 507, "disk-full"),
        (Op::Write, Fault::Failed(Reason::Io), 503, "io"),
        (Op::Finish, Fault::Refused(Reason::QuotaFull), 507, "quota-full"),
        (Op::Finish, Fault::UnknownBefore, 503, "outcome-unknown"),
        (Op::Finish, Fault::UnknownAfter, 503, "outcome-unknown"),
    ];
    for (op, fault, status, reason) in cases {
        let world = World::new(7);
        world.store.faults().inject(op, fault);
        let mut client = world.connect();
        let (answer, next) = world
            .sim
            .block_on(async { (client.ask(put("/img/x", &[1; 1000])).await, client.ask(put("/img/y", b"")).await) });
        assert_eq!((answer.status, answer.reason().as_str()), (status, reason));
        assert_eq!(answer.header("retry-after"), (status == 503).then_some("1"));
        assert_eq!(next.status, 201, "a small body is drained, and the connection goes on");
    }
    let world = World::new(8);
    world.store.faults().inject(Op::Lookup, Fault::Failed(Reason::Unavailable));
    assert_eq!(world.get("/img/x").status, 503);
    world.store.faults().inject(Op::Purge, Fault::Failed(Reason::Unavailable));
    assert_eq!(world.ask("DELETE /img/x HTTP/1.1\r\nhost: h\r\n\r\n").status, 503);
}

#[test]
fn nothing_slips_between_a_comparison_and_its_commit() {
    for op in [Op::Begin, Op::Finish] {
        let world = World::new(9);
        world.ask("PUT /img/x HTTP/1.1\r\nhost: h\r\netag: \"mine\"\r\ncontent-length: 1\r\n\r\n1");
        let gate = Gate::new();
        world.store.faults().inject(op, Fault::Hold(gate.clone()));
        let mut slow = world.connect();
        let swap = "PUT /img/x HTTP/1.1\r\nhost: h\r\nif-match: \"mine\"\r\ncontent-length: 1\r\n\r\n2";
        world.sim.block_on(slow.send(swap));
        world.sim.run_until_idle();
        assert_eq!(gate.arrived(), 1, "it has compared, and waits");
        // The same tag again, but another write.
        world.ask("PUT /img/x HTTP/1.1\r\nhost: h\r\netag: \"mine\"\r\ncontent-length: 1\r\n\r\n3");
        gate.open();
        let answer = world.sim.block_on(slow.answer(false)).expect("an answer");
        assert_eq!((answer.status, answer.reason().as_str()), (412, "precondition"));
        assert_eq!(world.get("/img/x").body, b"3");
    }
}

#[test]
fn a_namespace_counts_what_happened_in_it() {
    let world = World::new(10);
    world.put("/img/x", &body(500));
    world.get("/img/x");
    world.get("/img/nothing");
    world.ask("DELETE /img/x HTTP/1.1\r\nhost: h\r\n\r\n");
    world.ask("PURGE /img/x HTTP/1.1\r\nhost: h\r\n\r\n");
    world.ask("PUT /img/x HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999\r\n\r\n");
    let img = world.namespaces.snapshot().into_iter().find(|s| &*s.name == "img").expect("counted");
    // Hits, misses and writes are counted by the storage, which a double here is not.
    assert_eq!((img.deletes, img.purges, img.refused.get(Reason::BodyMax)), (1, 1, 1));
    assert_eq!((img.hits, img.writes), ([0; 4], 0));
    let door = world.door.stats().snapshot();
    assert_eq!((door.bytes_in, door.connections_accepted), (500, 6));
    assert_eq!(door.latency_us.iter().map(hdrhistogram::Histogram::len).collect::<Vec<_>>(), [2, 0, 2, 1, 1]);
}

/// A hit that gives other bytes than it announced, or fails at its end.
struct Liar {
    announced: u64,
    chunks: Vec<Result<&'static [u8], ()>>,
}

impl HitHandler for Liar {
    fn remaining(&self) -> u64 {
        self.announced
    }

    fn seek(&mut self, _: Range<u64>) -> Result<(), CacheError> {
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        if self.chunks.is_empty() {
            return Ok(None);
        }
        self.chunks.remove(0).map(|chunk| Some(Bytes::from_static(chunk))).map_err(|()| CacheError::Gone)
    }

    fn try_copy(&mut self, _: &mut BytesMut) -> Option<usize> {
        None
    }

    fn tier(&self) -> Tier {
        Tier::L3
    }
}

#[test]
fn no_body_ends_well_unless_it_is_whole_and_its_end_was_confirmed() {
    const AB: Result<&[u8], ()> = Ok(b"ab");
    let given = |announced: u64, chunks: &[Result<&'static [u8], ()>]| {
        let liar = Liar { announced, chunks: chunks.to_vec() };
        Sim::new(1).block_on(async {
            let sent = Sent { stats: std::rc::Rc::default() };
            let mut body = Body::begin(liar, sent).await.map_err(|_| 0_usize)?;
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => bytes += frame.into_data().map_or(0, |data| data.len()),
                    Err(_) => return Err(bytes),
                }
            }
            Ok(bytes)
        })
    };
    assert_eq!(given(4, &[AB, AB]), Ok(4));
    assert_eq!(given(2, &[AB]), Ok(2));
    assert_eq!(given(4, &[AB]), Err(2), "too short");
    assert_eq!(given(4, &[AB, Ok(b"abc")]), Err(2), "too long, in one chunk");
    assert_eq!(given(4, &[AB, AB, AB]), Err(2), "too long: the last announced byte is held back");
    assert_eq!(given(4, &[AB, AB, Err(())]), Err(2), "damage found at the end cuts the body");
    assert_eq!(given(2, &[AB, Err(())]), Err(0), "and is told when nothing was said yet");
    assert_eq!(given(2, &[]), Err(0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_pieces_a_put_comes_back(
        seed in any::<u64>(),
        sizes in prop::collection::vec(0usize..3000, 0..6),
        read_max in 1usize..4000,
        chunk in 1usize..2000,
    ) {
        let world = World::new(seed);
        world.store.set_chunk_bytes(chunk);
        let body = body(sizes.iter().sum());
        let mut sent = b"PUT /img/x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        let mut at = 0;
        for size in sizes.into_iter().filter(|size| *size > 0) {
            sent.extend_from_slice(format!("{size:x}\r\n").as_bytes());
            sent.extend_from_slice(&body[at..at + size]);
            sent.extend_from_slice(b"\r\n");
            at += size;
        }
        sent.extend_from_slice(b"0\r\n\r\n");
        let mut client = world.connect_slow(read_max);
        let put = world.sim.block_on(client.ask(sent));
        prop_assert_eq!(put.status, 201);
        let got = world.sim.block_on(client.ask(get("/img/x")));
        prop_assert!(got.status == 200 && got.body == body);
        let key = CacheKey::new("img", b"x", 7).expect("valid");
        let found = world.sim.block_on(world.store.lookup(&key)).expect("no fault was planned");
        prop_assert_eq!(found.expect("just written").0.length, Some(body.len() as u64));
    }
}
