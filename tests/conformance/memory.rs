//! The doubles pass the suites of what they stand for, and their faults strike as they say.

use engine::{
    clock::Clock,
    rt::{Rt, sim::Sim},
};
use strata::{
    cache::{CacheError, CacheMeta, MissHandler, Precondition, Storage, Tier, Version},
    reason::Reason,
    storage::{
        memory::{Fault, Gate, InMemoryBlobStore, InMemoryIndexStore, MemoryStore, Op, blob::BlobOp, index::IndexOp},
        traits::{BlobStore, BlobWrite, IndexStore, StoreError, Swap},
    },
    version::VersionClock,
};

use crate::{
    storage::{Caps, pressed, suite},
    stores::{blob_id, blob_suite, index_suite, manifest, put_blob},
    support::{body, get, key, meta_of, on_tokio, put, put_with},
};

fn tier<C: Clock>(tier: Tier, bytes_max: u64, clock: &C) -> MemoryStore<C> {
    MemoryStore::new(tier, bytes_max, clock.clone(), VersionClock::new(1))
}

#[test]
fn a_memory_store_is_a_storage() {
    for level in Tier::ALL {
        let sim = Sim::new(1);
        let caps = match level {
            Tier::L0 => Caps::ram(),
            Tier::L1 | Tier::L2 => Caps::cache(level),
            Tier::L3 => Caps { updates_headers: true, ..Caps::durable() },
        };
        sim.block_on(suite(async || tier(level, 64 << 20, sim.clock()), sim.clock(), caps));
    }
}

#[test]
fn a_memory_store_makes_room() {
    for level in [Tier::L0, Tier::L1, Tier::L2] {
        let sim = Sim::new(1);
        let caps = Caps { keeps: false, ..Caps::cache(level) };
        sim.block_on(pressed(async || tier(level, 400 << 10, sim.clock()), sim.clock(), caps));
    }
}

#[test]
fn the_doubles_keep_their_promises_on_an_executor_thread() {
    on_tokio(async |rt, clock| {
        suite(async || tier(Tier::L0, 64 << 20, &clock), &clock, Caps::ram()).await;
        blob_suite(async || InMemoryBlobStore::new(rt.clone()), &clock).await;
        index_suite(async || InMemoryIndexStore::new(rt.clone())).await;
    });
}

#[test]
fn an_in_memory_blob_store_is_a_blob_store() {
    let sim = Sim::new(2);
    sim.block_on(blob_suite(async || InMemoryBlobStore::new(sim.rt()), sim.clock()));
}

#[test]
fn an_in_memory_index_is_an_index_store() {
    let sim = Sim::new(3);
    sim.block_on(index_suite(async || InMemoryIndexStore::new(sim.rt())));
}

#[test]
fn a_full_memory_store_evicts_its_oldest_and_a_full_durable_one_refuses() {
    let sim = Sim::new(4);
    sim.block_on(async {
        let store = tier(Tier::L0, 10_000, sim.clock());
        for i in 0..20 {
            put(&store, &key(&format!("k{i}")), &body(i, 900)).await;
            assert!(store.used_bytes() <= 10_000);
        }
        assert_eq!(store.objects() as u64 + store.evicted(), 20);
        assert!(get(&store, &key("k19")).await.is_some() && get(&store, &key("k0")).await.is_none());
        assert!(matches!(
            store.get_miss_handler(&key("huge"), meta_of(&body(0, 10_001)), Precondition::None).await,
            Err(CacheError::Refused(Reason::TooLarge))
        ));

        let store = tier(Tier::L3, 2_000, sim.clock());
        put(&store, &key("a"), &body(1, 1_500)).await;
        let refused = put_with(&store, &key("b"), CacheMeta::default(), Precondition::None, &body(2, 600), 600).await;
        assert!(matches!(refused, Err(CacheError::Refused(Reason::QuotaFull))));
        assert_eq!((store.staged_bytes(), store.objects()), (0, 1));
        assert_eq!(get(&store, &key("a")).await.expect("untouched").1, body(1, 1_500));
    });
}

#[test]
fn staged_bytes_are_given_back() {
    let sim = Sim::new(5);
    sim.block_on(async {
        let store = tier(Tier::L2, 10_000, sim.clock());
        let mut miss =
            store.get_miss_handler(&key("a"), CacheMeta::default(), Precondition::None).await.expect("begun");
        miss.write_body(body(1, 700), false).await.expect("written");
        assert_eq!(store.staged_bytes(), 700);
        drop(miss);
        assert_eq!((store.staged_bytes(), store.used_bytes()), (0, 0));
    });
}

#[test]
fn faults_of_a_memory_store_strike_once_and_say_what_they_did() {
    let sim = Sim::new(6);
    sim.block_on(async {
        let store = tier(Tier::L3, 1 << 20, sim.clock());
        let (name, bytes) = (key("faulty"), body(1, 100));
        let try_put = async || put_with(&store, &name, meta_of(&bytes), Precondition::None, &bytes, 100).await;
        store.faults().inject(Op::Finish, Fault::UnknownBefore);
        assert!(matches!(try_put().await, Err(CacheError::OutcomeUnknown { .. })));
        assert_eq!(store.peek(&name), None);
        store.faults().inject(Op::Finish, Fault::UnknownAfter);
        assert!(matches!(try_put().await, Err(CacheError::OutcomeUnknown { .. })));
        assert!(store.peek(&name).is_some());
        store.faults().inject(Op::Lookup, Fault::Failed(Reason::Io));
        assert!(matches!(store.lookup(&name).await, Err(CacheError::Unavailable { reason: Reason::Io, .. })));
        assert!(get(&store, &name).await.is_some());

        let gate = Gate::new();
        store.faults().inject(Op::Finish, Fault::Hold(gate.clone()));
        let (rt, held) = (sim.rt(), store.clone());
        let old = store.peek(&name);
        rt.spawn(async move {
            put(&held, &key("faulty"), &body(2, 100)).await;
        });
        while gate.arrived() == 0 {
            rt.yield_now().await;
        }
        assert_eq!(store.peek(&name), old);
        gate.open();
        while store.peek(&name) == old {
            rt.yield_now().await;
        }
        assert_eq!(get(&store, &name).await.expect("a hit").1, body(2, 100));
    });
}

#[test]
fn a_crash_keeps_what_was_acknowledged_and_some_of_what_was_not() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..64 {
        let sim = Sim::new(seed);
        let (blobs, index) = (InMemoryBlobStore::new(sim.rt()), InMemoryIndexStore::new(sim.rt()));
        let gates = [Gate::new(), Gate::new()];
        sim.block_on(async {
            put_blob(&blobs, 1, &body(1, 100)).await;
            assert_eq!(index.put_new(manifest("acked", 5)).await.expect("put"), Swap::Done);
            blobs.faults().inject(BlobOp::Finish, Fault::Hold(gates[0].clone()));
            index.faults().inject(IndexOp::PutNew, Fault::Hold(gates[1].clone()));
            let (held_blobs, held_index, rt) = (blobs.clone(), index.clone(), sim.rt());
            rt.spawn(async move {
                let mut write = held_blobs.put(&blob_id(2), None).await.expect("begun");
                write.chunk(body(2, 100)).await.expect("written");
                assert!(matches!(write.finish().await, Err(StoreError::Unknown(_))));
            });
            rt.spawn(async move {
                assert!(matches!(held_index.put_new(manifest("unacked", 6)).await, Err(StoreError::Unknown(_))));
            });
            while gates.iter().any(|gate| gate.arrived() == 0) {
                rt.yield_now().await;
            }
            blobs.crash(seed);
            index.crash(seed);
            gates.iter().for_each(Gate::open);
            sim.rt().sleep(std::time::Duration::from_secs(1)).await;
            assert!(blobs.head(&blob_id(1)).await.expect("an answer").is_some());
            assert_eq!(index.get(b"ns/acked").await.expect("an answer").expect("kept").version, Version(5));
            for survived in [
                blobs.head(&blob_id(2)).await.expect("an answer").is_some(),
                index.get(b"ns/unacked").await.expect("an answer").is_some(),
            ] {
                *(if survived { &mut kept } else { &mut lost }) += 1;
            }
        });
    }
    assert!(kept > 10 && lost > 10, "{kept} kept, {lost} lost");
}
