//! Eviction against what S3-FIFO promises, and against a second, plain S3-FIFO.

use std::collections::{HashMap, VecDeque};

use super::*;

/// Requests a key as a cache in front of a store would; whether it hit.
fn request(slab: &mut Slab, key: u32, len: usize) -> bool {
    let key = key.to_le_bytes();
    if let Lookup::Hit(hit) = slab.get(hash_of(&key), &key, 0) {
        assert_eq!(hit.body_bytes(), len as u64);
        return true;
    }
    assert_eq!(put(slab, &key, 1, &vec![0; len]), Outcome::Stored);
    false
}

/// A zipf-like popularity over `keys` ranks, by inversion of the continuous distribution.
fn zipf(rng: &mut fastrand::Rng, keys: u32, skew: f64) -> u32 {
    let top = f64::from(keys).powf(1.0 - skew);
    let rank = (rng.f64() * (top - 1.0) + 1.0).powf(1.0 / (1.0 - skew));
    (rank as u32).min(keys) - 1
}

/// The paper's algorithm on a map and deques, with the slab's shares and thresholds, charging what the slab charges.
#[derive(Default)]
struct Reference {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghost: VecDeque<u32>,
    /// Counter, bytes, whether in main.
    live: HashMap<u32, (u8, u64, bool)>,
    small_bytes: u64,
    main_bytes: u64,
    bytes_max: u64,
}

impl Reference {
    fn request(&mut self, key: u32, bytes: u64) -> bool {
        if let Some((freq, _, _)) = self.live.get_mut(&key) {
            *freq = (*freq + 1).min(3);
            return true;
        }
        while self.small_bytes + self.main_bytes + bytes > self.bytes_max {
            self.evict();
        }
        let ghost = self.ghost.iter().position(|&ghost| ghost == key);
        if let Some(place) = ghost {
            self.ghost.remove(place);
            self.main.push_back(key);
            self.main_bytes += bytes;
        } else {
            self.small.push_back(key);
            self.small_bytes += bytes;
        }
        self.live.insert(key, (0, bytes, ghost.is_some()));
        false
    }

    fn evict(&mut self) {
        if self.small_bytes >= self.bytes_max / 10 || self.main.is_empty() {
            let threshold = if self.live.len() < 2_048 { 1 } else { 2 };
            let key = self.small.pop_front().expect("something is live");
            let (freq, bytes, _) = self.live[&key];
            self.small_bytes -= bytes;
            if freq >= threshold {
                self.main.push_back(key);
                self.main_bytes += bytes;
                self.live.insert(key, (0, bytes, true));
            } else {
                self.live.remove(&key);
                self.ghost.push_back(key);
                while self.ghost.len() > self.main.len().max(self.live.len() * 9 / 10) {
                    self.ghost.pop_front();
                }
            }
        } else {
            let key = self.main.pop_front().expect("main is not empty");
            let (freq, bytes, _) = self.live[&key];
            if freq > 0 {
                self.main.push_back(key);
                self.live.insert(key, (freq - 1, bytes, true));
            } else {
                self.main_bytes -= bytes;
                self.live.remove(&key);
            }
        }
    }
}

fn charge(len: usize) -> u64 {
    let (inline, own) = if len < BODY_OWN_BYTES_MIN { (len, 0) } else { (8, layout::body_units(len)) };
    u64::from(arena::units_for(37 + 4 + inline) + own) * UNIT_BYTES as u64
}

/// Misses of the slab and of the reference over one trace.
fn replay(arena_bytes: u64, keys: u32, requests: u32, skew: f64, size: impl Fn(u32) -> usize) -> (u32, u32) {
    let mut slab = slab(arena_bytes);
    let mut reference = Reference { bytes_max: arena_bytes, ..Reference::default() };
    let mut rng = fastrand::Rng::with_seed(42);
    let (mut misses, mut expected) = (0, 0);
    for _ in 0..requests {
        let key = zipf(&mut rng, keys, skew);
        misses += u32::from(!request(&mut slab, key, size(key)));
        expected += u32::from(!reference.request(key, charge(size(key))));
    }
    check(&mut slab);
    println!("misses {misses}, reference {expected}, of {requests}; {:?}", slab.stats());
    (misses, expected)
}

fn assert_close(misses: u32, expected: u32) {
    let ratio = f64::from(misses) / f64::from(expected);
    assert!((0.97..1.03).contains(&ratio), "{misses} misses, the reference has {expected}");
}

/// A size that belongs to the key, so that the same key always has the same.
fn spread(key: u32, low: usize, high: usize) -> usize {
    low + xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes()) as usize % (high - low)
}

#[test]
fn misses_like_the_reference_with_small_objects() {
    let (misses, expected) = replay(4 << 20, 60_000, 250_000, 0.9, |key| spread(key, 50, 900));
    assert_close(misses, expected);
}

#[test]
fn misses_like_the_reference_with_mixed_objects() {
    let mixed = |key| if key % 10 == 7 { spread(key, 4_096, 60_000) } else { spread(key, 50, 2_000) };
    let (misses, expected) = replay(16 << 20, 30_000, 100_000, 0.8, mixed);
    assert_close(misses, expected);
}

#[test]
fn misses_like_the_reference_with_few_objects() {
    let (misses, expected) = replay(8 << 20, 3_000, 60_000, 0.8, |key| spread(key, 8_000, 40_000));
    assert_close(misses, expected);
}

#[test]
fn a_scan_does_not_push_out_what_is_used() {
    let mut slab = slab(4 << 20);
    let hot = 1_000..2_000u32;
    for round in 0..4 {
        hot.clone().for_each(|key| assert_eq!(request(&mut slab, key, 1_000), round > 0));
    }
    (1_000_000..1_040_000u32).for_each(|key| assert!(!request(&mut slab, key, 1_000)));
    let hits = hot.filter(|&key| request(&mut slab, key, 1_000)).count();
    assert_eq!(hits, 1_000, "a scan of ten arenas goes through the small queue alone");
}

#[test]
fn what_comes_back_soon_after_eviction_goes_to_main() {
    let mut slab = slab(4 << 20);
    (0..6_000u32).for_each(|key| assert!(!request(&mut slab, key, 1_000)));
    let evicted = slab.stats().evictions as u32;
    assert!(evicted > 1_000, "{evicted}");
    let back = evicted - 500..evicted;
    back.clone().for_each(|key| assert!(!request(&mut slab, key, 1_000)));
    let stats = slab.stats();
    let hits = stats.ghost_hits;
    assert!((495..=500).contains(&hits), "{hits} of 500");
    assert_eq!(stats.live_bytes - stats.small_bytes, hits * charge(1_000), "they and no others are in main");
    // In main they outlive a scan that is long enough to flush the small queue.
    (10_000..20_000u32).for_each(|key| assert!(!request(&mut slab, key, 1_000)));
    assert!(back.filter(|&key| request(&mut slab, key, 1_000)).count() >= 495);
}

#[test]
fn one_large_object_among_small_ones_costs_about_its_size() {
    let mut slab = slab(4 << 20);
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..100_000 {
        let key = zipf(&mut rng, 40_000, 0.8);
        request(&mut slab, key, spread(key, 50, 500));
    }
    for large in 0..8u32 {
        let mut evicted = 0;
        let body = pattern(large.into(), 400_000);
        let outcome = slab.insert(entry(&large.to_be_bytes(), 1), &body, &mut |old| evicted += old.body.len() + 60);
        assert_eq!(outcome, Outcome::Stored);
        assert!(evicted < 600_000, "{evicted} bytes left for 400000");
        check(&mut slab);
        assert_eq!(body_of(&mut slab, &large.to_be_bytes()), Some(body));
    }
}

#[test]
fn space_follows_the_sizes_that_arrive() {
    let arena_bytes = 8 << 20;
    let mut slab = slab(arena_bytes);
    let mut key = 0;
    for len in [200, 50_000, 900_000, 3_000, 200] {
        let mut written = 0;
        // Some are used, so that both queues and their order are in play.
        while written < 2 * arena_bytes {
            key += 1;
            request(&mut slab, key, len);
            if key.is_multiple_of(3) {
                request(&mut slab, key, len);
                request(&mut slab, key, len);
            }
            written += charge(len);
        }
        check(&mut slab);
        let stats = slab.stats();
        // Nine tenths, or all but one where so few fit.
        let floor = (arena_bytes * 9 / 10).min(arena_bytes - charge(len));
        assert!(stats.live_bytes >= floor, "{len}-byte objects: {stats:?}");
    }
}
