//! Who was evicted from the small queue lately.
//!
//! Owns a table of fixed size: four bytes a ghost, a 20-bit fingerprint and a 12-bit stamp of when it came, in
//! buckets of eight; the oldest of a bucket makes way. A ghost counts as long as fewer ghosts than the limit came
//! after it, so the table follows the number of objects that the main queue holds without being resized.
//! Approximations, all towards a slightly wrong queue and never wrong data: a false match once in 100,000 look-ups,
//! ages to 1/512 of the table, and a ghost lost early when nine meet in one bucket.

const WAYS: usize = 8;
const STAMP_BITS: u32 = 12;
const STAMP_MASK: u32 = (1 << STAMP_BITS) - 1;
/// Stamps that one lap of the table takes; the stamps go round eight times as far.
const STAMPS_A_LAP: usize = 512;

/// Fingerprints in order of arrival, as far as eviction needs it.
pub(super) struct Ghost {
    buckets: Box<[[u32; WAYS]]>,
    came: u64,
    stamp_every: u64,
}

/// Memory of a table for `objects_max`: bytes, before it exists.
pub(super) fn table_bytes_for(objects_max: usize) -> usize {
    objects_max.div_ceil(WAYS).next_power_of_two() * WAYS * size_of::<u32>()
}

impl Ghost {
    /// A table for at most `objects_max` ghosts.
    pub(super) fn new(objects_max: usize) -> Self {
        let buckets = objects_max.div_ceil(WAYS).next_power_of_two();
        let stamp_every = (buckets * WAYS / STAMPS_A_LAP).max(1) as u64;
        Self { buckets: vec![[0; WAYS]; buckets].into_boxed_slice(), came: 0, stamp_every }
    }

    /// Remembers a hash.
    pub(super) fn insert(&mut self, hash: u64) {
        self.came += 1;
        let now = self.stamp();
        let (bucket, tag) = self.place(hash);
        let bucket = &mut self.buckets[bucket];
        let slot = bucket.iter().position(|&ghost| ghost == 0 || ghost >> STAMP_BITS == tag).unwrap_or_else(|| {
            let oldest = (0..WAYS).max_by_key(|&slot| age(now, bucket[slot]));
            oldest.expect("a bucket has ways")
        });
        bucket[slot] = tag << STAMP_BITS | now;
    }

    /// Forgets a hash; whether it was among the last `limit` that came.
    pub(super) fn remove(&mut self, hash: u64, limit: usize) -> bool {
        let now = self.stamp();
        let (bucket, tag) = self.place(hash);
        let bucket = &mut self.buckets[bucket];
        let Some(slot) = bucket.iter().position(|&ghost| ghost != 0 && ghost >> STAMP_BITS == tag) else {
            return false;
        };
        let ghost = std::mem::take(&mut bucket[slot]);
        u64::from(age(now, ghost)) * self.stamp_every <= limit as u64
    }

    /// Bytes of memory of the table.
    pub(super) fn table_bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    fn stamp(&self) -> u32 {
        (self.came / self.stamp_every) as u32 & STAMP_MASK
    }

    fn place(&self, hash: u64) -> (usize, u32) {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = mixed ^ mixed >> 32;
        let tag = (mixed >> 40) as u32 & 0xf_ffff;
        // Tag 0 would look like an empty slot at stamp 0.
        (mixed as usize & (self.buckets.len() - 1), tag.max(1))
    }
}

fn age(now: u32, ghost: u32) -> u32 {
    now.wrapping_sub(ghost & STAMP_MASK) & STAMP_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(seed: u64) -> u64 {
        fastrand::Rng::with_seed(seed).u64(..)
    }

    #[test]
    fn remembers_the_latest_and_each_once() {
        let mut ghost = Ghost::new(4096);
        (0..10_000).for_each(|seed| ghost.insert(hash(seed)));
        assert!((0..6_000).all(|seed| !ghost.remove(hash(seed), 1_000)), "too old");
        let kept = (9_100..10_000).filter(|&seed| ghost.remove(hash(seed), 1_000)).count();
        assert!(kept >= 890, "{kept} of 900");
        assert!((9_100..10_000).all(|seed| !ghost.remove(hash(seed), 1_000)), "only once");
    }

    #[test]
    fn a_limit_of_nothing_soon_forgets() {
        let mut ghost = Ghost::new(4096);
        ghost.insert(hash(1));
        (2..200).for_each(|seed| ghost.insert(hash(seed)));
        assert!(!ghost.remove(hash(1), 0));
    }
}
