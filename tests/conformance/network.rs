//! L1's executor: any storage on it is that storage to the shards, and it starts and stops in order.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use engine::rt::Rt;
use futures_lite::future::{block_on, zip};
use strata::{
    cache::{CacheError, Precondition, Storage, Tier},
    storage::{
        bridge::Bridge,
        executor::ExecutorError,
        memory::{Fault, Gate, MemoryStore, Op},
        network::NetworkExecutor,
    },
    tokio_rt::TokioRt,
    version::VersionClock,
};

use crate::{
    storage::{Caps, suite},
    support::{TestClock, body, get, key, meta_of, put, put_with},
};

fn store(clock: &TestClock) -> MemoryStore<TestClock> {
    MemoryStore::new(Tier::L1, 512 << 20, clock.clone(), VersionClock::new(1))
}

fn start(clients: usize, clock: &TestClock) -> (NetworkExecutor, Vec<Bridge>) {
    let client = clock.clone();
    let connect = async move |_| Ok::<_, Infallible>(store(&client));
    NetworkExecutor::start(clock.clone(), clients, connect).expect("a thread")
}

#[test]
fn what_runs_on_it_is_a_storage_to_the_shards() {
    let clock = TestClock::start();
    let make = async || {
        let (executor, mut bridges) = start(1, &clock);
        // It lives as long as the process: the suite keeps the bridge only.
        std::mem::forget(executor);
        bridges.pop().expect("one client")
    };
    block_on(suite(make, &clock, Caps::cache(Tier::L1)));
}

#[test]
fn every_shard_has_its_own_way_in_and_sees_the_same() {
    let clock = TestClock::start();
    let (executor, bridges) = start(3, &clock);
    assert_eq!(bridges.len(), 3);
    let bytes = body(1, 300_000);
    block_on(async {
        put(&bridges[0], &key("a"), &bytes).await;
        let both = zip(get(&bridges[1], &key("a")), get(&bridges[2], &key("a"))).await;
        for (_, found) in [both.0.expect("a hit"), both.1.expect("a hit")] {
            assert_eq!(found, bytes);
        }
    });
    drop(executor);
    for bridge in bridges {
        assert!(bridge.is_closed());
        assert!(matches!(block_on(bridge.lookup(&key("a"))), Err(CacheError::Unavailable { .. })));
    }
}

#[test]
fn a_client_that_does_not_connect_says_why() {
    let clock = TestClock::start();
    let connect = async |_| Err::<MemoryStore<TestClock>, _>(io::Error::other("nobody there"));
    match NetworkExecutor::start(clock, 2, connect) {
        Err(ExecutorError::Open(error)) => assert_eq!(error.to_string(), "nobody there"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    }
}

#[test]
fn a_stop_finishes_what_is_under_way() {
    let clock = TestClock::start();
    let (arrived, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (client, tell, told) = (clock.clone(), arrived.clone(), open.clone());
    let connect = async move |rt: TokioRt<TestClock>| {
        let (store, gate) = (store(&client), Gate::new());
        store.faults().inject(Op::Write, Fault::Hold(gate.clone()));
        rt.clone().spawn(async move {
            while !told.load(Ordering::SeqCst) {
                tell.store(gate.arrived() > 0, Ordering::SeqCst);
                rt.sleep(Duration::from_millis(1)).await;
            }
            gate.open();
        });
        Ok::<_, Infallible>(store)
    };
    let (executor, mut bridges) = NetworkExecutor::start(clock, 1, connect).expect("a thread");
    let bridge = bridges.pop().expect("one client");
    let bytes = body(1, 200_000);
    thread::scope(|scope| {
        // A bridge belongs to one thread; this is its.
        let writer = scope.spawn(move || {
            let name = key("a");
            block_on(put_with(&bridge, &name, meta_of(&bytes), Precondition::None, &bytes, 9_000)).map(|_| bridge)
        });
        while !arrived.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        let stop = scope.spawn(move || drop(executor));
        open.store(true, Ordering::SeqCst);
        let bridge = writer.join().expect("no panic").expect("it was under way before the stop");
        stop.join().expect("no panic");
        assert!(bridge.is_closed());
    });
}
