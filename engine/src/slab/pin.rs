//! The word between a pinned body and its shard: the only atomics of the slab.
//!
//! Owns [`Released`], the stack onto which any thread pushes the slot of a pin whose last `Bytes` was dropped, and
//! which the owning shard empties in one swap.
//!
//! - INV-PIN-1: a slot is pushed at most once between two times the owner hands it out. The owner hands a slot out
//!   again only after it took it off the stack, so a push never meets its own slot there, and the stack needs no
//!   tags against ABA.
//! - INV-PIN-2: all that a reader did with the bytes happens before the owner sees the slot (release on push,
//!   acquire on take; every push is a read-modify-write of the head and so continues the release sequence).
//!
//! Leaves to [`super::arena`]: which bytes a slot stands for, and how many pins they still have.

use std::sync::atomic::{AtomicU32, Ordering};

/// The end of the stack; slots are stored plus one.
const END: u32 = 0;

/// Slots whose pins are over, linked through a table of fixed size. Neither side blocks or allocates.
pub(super) struct Released {
    head: AtomicU32,
    below: Box<[AtomicU32]>,
}

impl Released {
    /// A stack for slots `0..slots_max`.
    pub(super) fn new(slots_max: u32) -> Self {
        Self { head: AtomicU32::new(END), below: (0..slots_max).map(|_| AtomicU32::new(END)).collect() }
    }

    /// Marks the pin of `slot` as over. Any thread, once a pin.
    pub(super) fn push(&self, slot: u32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.below[slot as usize].store(head, Ordering::Relaxed);
            match self.head.compare_exchange_weak(head, slot + 1, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes every slot marked so far, the latest first. The owning thread only.
    pub(super) fn take(&self) -> Taken<'_> {
        // The plain load keeps a writer's cache line shared while nothing was dropped, which is nearly always.
        let empty = self.head.load(Ordering::Relaxed) == END;
        let next = if empty { END } else { self.head.swap(END, Ordering::Acquire) };
        Taken { stack: self, next }
    }

    /// Bytes of memory of the table.
    pub(super) fn table_bytes(&self) -> usize {
        size_of_val(&*self.below)
    }
}

/// What [`Released::take`] took off the stack. A slot may be handed out again once it was yielded.
pub(super) struct Taken<'a> {
    stack: &'a Released,
    next: u32,
}

impl Iterator for Taken<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let slot = self.next.checked_sub(1)?;
        self.next = self.stack.below[slot as usize].load(Ordering::Relaxed);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_each_pushed_slot_once_latest_first() {
        let released = Released::new(4);
        assert_eq!(released.take().count(), 0);
        for slot in [2, 0, 3] {
            released.push(slot);
        }
        assert_eq!(released.take().collect::<Vec<_>>(), [3, 0, 2]);
        assert_eq!(released.take().count(), 0);
    }

    #[test]
    fn loses_no_slot_between_threads() {
        const THREADS: u32 = 4;
        const EACH: u32 = 2_000;
        let released = Released::new(THREADS * EACH);
        let mut seen = vec![0u32; (THREADS * EACH) as usize];
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let released = &released;
                scope.spawn(move || (thread * EACH..(thread + 1) * EACH).for_each(|slot| released.push(slot)));
            }
            let mut taken = 0;
            while taken < THREADS * EACH {
                for slot in released.take() {
                    seen[slot as usize] += 1;
                    taken += 1;
                }
                std::thread::yield_now();
            }
        });
        assert!(seen.iter().all(|&count| count == 1));
    }
}
