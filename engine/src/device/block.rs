//! Page-aligned buffers and the bounded pool they come from.
//!
//! A [`Block`] is the only memory a device reads into or writes from. It may be dropped on any thread (a chunk of
//! a body that left the shard as [`bytes::Bytes`] still is one), and then goes back to its pool.
//!
//! Bound: a pool keeps at most `free_bytes_max` bytes for reuse; what comes back above that is freed. Buffers in
//! use are bounded by their users: the write buffer of the log, the I/O limit of the device, the windows of bodies.
#![expect(unsafe_code, reason = "pages are viewed as bytes, and are allocated zeroed")]

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{IO_MAX, PAGE};

/// Sizes of pooled buffers, in pages. 34 pages hold the largest record of the log wherever it starts in a page.
const CLASSES: [usize; 7] = [1, 2, 4, 8, 16, 34, IO_MAX / PAGE];

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

const _: () = assert!(size_of::<Page>() == PAGE && align_of::<Page>() == PAGE);

/// Where blocks come from and go back to. Clones share one pool.
#[derive(Clone, Debug)]
pub struct BlockPool {
    shared: Arc<Shared>,
}

struct Shared {
    free: [Mutex<Vec<Box<[Page]>>>; CLASSES.len()],
    free_bytes: AtomicUsize,
    free_bytes_max: usize,
    used_bytes: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockPool").field("free", &self.free_bytes).field("used", &self.used_bytes).finish()
    }
}

impl BlockPool {
    /// A pool that keeps at most `free_bytes_max` bytes of unused buffers.
    #[must_use]
    pub fn new(free_bytes_max: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                free: Default::default(),
                free_bytes: AtomicUsize::new(0),
                free_bytes_max,
                used_bytes: AtomicUsize::new(0),
            }),
        }
    }

    /// A block of `len` bytes with unspecified, initialised content (zeroes or what an earlier user left).
    ///
    /// # Panics
    /// `len` is not a multiple of [`PAGE`] between 1 page and [`IO_MAX`]: a bug of the caller.
    #[must_use]
    pub fn block(&self, len: usize) -> Block {
        assert!(len > 0 && len.is_multiple_of(PAGE) && len <= IO_MAX, "a block of {len} bytes");
        let class = CLASSES.iter().position(|pages| pages * PAGE >= len).expect("the last class is IO_MAX");
        let reused = self.shared.free[class].lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = CLASSES[class] * PAGE;
        let pages = match reused {
            Some(pages) => {
                self.shared.free_bytes.fetch_sub(bytes, Ordering::Relaxed);
                pages
            }
            // SAFETY: a `Page` is an array of bytes, for which all zeroes is a valid value.
            None => unsafe { Box::new_zeroed_slice(CLASSES[class]).assume_init() },
        };
        self.shared.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        Block { pages, len, pool: self.shared.clone() }
    }

    /// Bytes held by blocks in use and kept for reuse. For accounting (INV-4).
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.used_bytes.load(Ordering::Relaxed) + self.shared.free_bytes.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn give_back(&self, pages: Box<[Page]>) {
        let bytes = pages.len() * PAGE;
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let Some(class) = CLASSES.iter().position(|class| *class == pages.len()) else { return };
        // Counted before it is kept, so that racing drops cannot push the pool over its bound.
        if self.free_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.free_bytes_max {
            self.free_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        self.free[class].lock().unwrap_or_else(PoisonError::into_inner).push(pages);
    }
}

/// A page-aligned buffer for device I/O. `Send`; dropping it anywhere gives the memory back to its pool.
pub struct Block {
    pages: Box<[Page]>,
    /// What is visible, in bytes: a multiple of [`PAGE`], at most the memory behind it.
    len: usize,
    pool: Arc<Shared>,
}

impl Block {
    /// Shortens the block to its first `len` bytes; the rest of its memory stays with it.
    ///
    /// # Panics
    /// `len` is not a multiple of [`PAGE`] between 1 page and the current length.
    pub fn truncate(&mut self, len: usize) {
        assert!(len > 0 && len.is_multiple_of(PAGE) && len <= self.len, "cannot shorten {} to {len}", self.len);
        self.len = len;
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.pages));
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `pages` is at least `len` bytes of initialised memory, owned by `self` and borrowed with it.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast::<u8>(), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast::<u8>(), self.len) }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_block_is_aligned_has_its_exact_length_and_can_be_shortened() {
        let pool = BlockPool::new(1 << 20);
        for pages in [1, 2, 3, 33, 34, 35, 128] {
            let mut block = pool.block(pages * PAGE);
            assert_eq!(block.len(), pages * PAGE);
            assert_eq!(block.as_ptr() as usize % PAGE, 0);
            block[pages * PAGE - 1] = 7;
            block.truncate(PAGE);
            assert_eq!(block.len(), PAGE);
        }
    }

    #[test]
    fn dropped_on_another_thread_it_returns_and_the_pool_keeps_its_bound() {
        let pool = BlockPool::new(3 * PAGE);
        let chunks: Vec<Bytes> = (0..8).map(|_| Bytes::from_owner(pool.block(PAGE))).collect();
        assert_eq!(pool.bytes(), 8 * PAGE);
        std::thread::spawn(move || drop(chunks)).join().expect("drops");
        assert_eq!(pool.bytes(), 3 * PAGE, "what is above the bound was freed");
        let again = pool.block(PAGE);
        assert_eq!(pool.bytes(), 3 * PAGE, "reused, not allocated");
        drop(again);
    }
}
