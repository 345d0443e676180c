//! Hits in the real RAM tier under `MultiTier`: what they cost, and what becomes of one that is read late.

use bytes::BytesMut;
use engine::slab;

use super::*;
use crate::{
    cache::COPY_BYTES_MAX,
    storage::{bridge::Bridge, ram::RamTier},
};

type Ram = RamTier<SimClock>;
type Tiers = MultiTier<Ram, Bridge, Bridge, Bridge, SimRt>;

struct Shard {
    sim: Sim,
    l0: Ram,
    tiers: Tiers,
}

impl Shard {
    fn new(arena_bytes: u64) -> Self {
        let sim = Sim::new(1);
        let policy = json!({"namespaces": {"hot": {"mode": "cache_only", "tiers": ["l0"]}}});
        let policy = Policy::from_json(&policy).expect("a policy");
        let versions = VersionClock::new(1);
        let config = slab::Config::new(arena_bytes);
        let l0 = Ram::new(config, sim.clock().clone(), versions.clone(), ()).expect("memory");
        let policy = VersionedPolicy { version: 1, policy: Arc::new(policy) };
        let context = Context {
            rt: sim.rt(),
            namespaces: Rc::new(Namespaces::new(Registry::new(), policy)),
            versions,
            stats: ShardStats::new(),
            settings: Settings::default(),
        };
        let tiers = MultiTier::new(Stack { l0: l0.clone(), l1: None, l2: None, l3: None }, context);
        Self { sim, l0, tiers }
    }

    fn put(&self, key: &CacheKey, bytes: &Bytes, headers: &'static [u8]) -> Version {
        self.sim.block_on(async {
            let headers = Bytes::from_static(headers);
            let meta = CacheMeta { length: Some(bytes.len() as u64), headers, ..CacheMeta::default() };
            let mut miss = self.tiers.get_miss_handler(key, meta, Precondition::None).await.expect("admitted");
            miss.write_body(bytes.clone(), true).await.expect("room");
            miss.finish().await.expect("kept").version
        })
    }

    fn find(&self, key: &CacheKey) -> (CacheMeta, <Tiers as Storage>::Hit) {
        futures_lite::future::block_on(self.tiers.lookup(key)).expect("RAM answers").expect("it is there")
    }
}

fn hot(name: &str) -> CacheKey {
    CacheKey::new("hot", name.as_bytes(), 7).expect("a key")
}

/// Allocations of the last of several rounds: the first ones make the buffers that are used again.
fn allocated(mut round: impl FnMut()) -> u64 {
    (0..3).map(|_| allocations::count(&mut round).0).last().expect("three rounds")
}

const HITS: u64 = 200;

#[test]
fn a_hit_up_to_16_kib_allocates_nothing() {
    let shard = Shard::new(8 << 20);
    let mut out = BytesMut::with_capacity(COPY_BYTES_MAX);
    for headers in [&b""[..], &[b'h'; 60], &[b'h'; 4000]] {
        for length in [0, 1, 100, 4095, 4 << 10, 16 << 10] {
            let (key, whole) = (hot("k"), body(length, 3));
            let version = shard.put(&key, &whole, headers);
            let get = || {
                for _ in 0..HITS {
                    let (meta, mut hit) = shard.find(&key);
                    out.clear();
                    assert_eq!(hit.try_copy(&mut out), Some(length));
                    assert!(meta.version == version && meta.headers == headers && out == whole);
                }
            };
            assert_eq!(allocated(get), 0, "GET of {length} bytes, {} of headers", headers.len());
            let head = || (0..HITS).for_each(|_| assert_eq!(shard.find(&key).0.length, Some(length as u64)));
            assert_eq!(allocated(head), 0, "HEAD of {length} bytes, {} of headers", headers.len());
            let part = length / 3..length;
            let range = || {
                let mut hit = shard.find(&key).1;
                hit.seek(part.start as u64..part.end as u64).expect("within");
                out.clear();
                assert_eq!(hit.try_copy(&mut out), Some(part.len()));
                assert!(out == whole[part.clone()]);
            };
            assert_eq!(allocated(range), 0, "a range of {length} bytes");
        }
    }
    let stats = shard.l0.stats();
    assert_eq!((stats.pins, stats.pins_copied), (0, 0), "small bodies are never pinned");
}

/// Where the contract asks for `Bytes`: a copy of a small body, the owner of the pin of a large one.
#[test]
fn what_bytes_cost() {
    let shard = Shard::new(8 << 20);
    for length in [100, 16 << 10, (16 << 10) + 1, 256 << 10] {
        let key = hot("k");
        shard.put(&key, &body(length, 3), b"");
        let read = || {
            let mut hit = shard.find(&key).1;
            let chunk = futures_lite::future::block_on(hit.read_body()).expect("in RAM").expect("all of it");
            assert_eq!(chunk.len(), length);
        };
        assert_eq!(allocated(read), 1, "{length} bytes");
    }
}

/// INV-2: whatever comes between the look-up and the read, it gives the version found or fails.
#[test]
fn a_small_hit_read_late_gives_its_own_version_or_none() {
    let shard = Shard::new(256 << 10);
    let mut random = fastrand::Rng::with_seed(5);
    let keys: Vec<_> = (0..120).map(|i| hot(&format!("k{i}"))).collect();
    let mut written = std::collections::BTreeMap::new();
    let (mut late, mut whole, mut gone) = (Vec::new(), 0, 0);
    for step in 0..6000_u32 {
        let key = &keys[random.usize(..keys.len())];
        match random.u8(..8) {
            0..4 => {
                let bytes = body(random.usize(..COPY_BYTES_MAX / 2), step as u8);
                let version = shard.put(key, &bytes, if random.bool() { b"h" } else { b"" });
                written.insert((key.clone(), version), bytes);
            }
            4 => {
                let purged = shard.sim.block_on(shard.tiers.purge(key, Precondition::None));
                purged.expect("RAM forgets");
            }
            _ => {
                let found = futures_lite::future::block_on(shard.tiers.lookup(key)).expect("RAM answers");
                late.extend(found.map(|(meta, hit)| (key.clone(), meta.version, hit)));
            }
        }
        if late.len() < 8 {
            continue;
        }
        let (key, version, mut hit) = late.swap_remove(random.usize(..late.len()));
        let (expected, mut out) = (&written[&(key, version)], BytesMut::new());
        match hit.try_copy(&mut out) {
            Some(_) => {
                assert!(out == expected, "the bytes of another version");
                whole += 1;
            }
            None => {
                for _ in 0..2 {
                    let failed = futures_lite::future::block_on(hit.read_body());
                    assert!(matches!(failed, Err(CacheError::Gone)), "a cut body never ends well: {failed:?}");
                }
                assert!(out.is_empty() && hit.remaining() == expected.len() as u64);
                gone += 1;
            }
        }
    }
    let stats = shard.l0.stats();
    assert!(stats.evictions > 0 && stats.moved_bytes > 0, "{stats:?}");
    assert!(whole > 500 && gone > 100, "{whole} whole, {gone} gone");
}
