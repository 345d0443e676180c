//! A simulated flash file with seeded faults.
//!
//! A [`Medium`] is what survives: pages as they are now, and as they would be after a power cut. A [`SimDevice`] is
//! one process's access to it; after [`Medium::kill`] or [`Medium::power_cut`] a new device over the same medium is
//! the restart. The faults are those the module above says we believe in, each switched on by [`Faults`]; by
//! default there are none. All randomness comes from the medium's seed.
//!
//! This is a test instrument that ships with the engine so that every crate's simulation drives the production
//! code over it; a node never opens one.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use super::{Block, BlockPool, Device, DeviceError, PAGE};
use crate::rt::Rt;

/// Unused buffers kept by one simulated device, in bytes.
const POOL_BYTES_MAX: usize = 1 << 20;

/// The smallest unit a torn page is cut at, in bytes.
const SECTOR: usize = 512;

/// What goes wrong, and how often. Every `_one_in` is "once in this many operations on average"; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A bit of what a read returns is flipped; the medium is intact.
    pub read_flip_one_in: u32,
    /// A read fails with EIO.
    pub read_error_one_in: u32,
    /// A write fails with EIO; some of its pages may be written.
    pub write_error_one_in: u32,
    /// A write fails with ENOSPC; nothing is written.
    pub no_space_one_in: u32,
    /// A sync fails with EIO; what was written since the last one is lost or not at the next power cut.
    pub sync_error_one_in: u32,
    /// A write reports success and never reaches the medium.
    pub write_lost_one_in: u32,
    /// A write reports success and lands somewhere else.
    pub write_misdirected_one_in: u32,
    /// A power cut leaves some unsynced pages half old, half new.
    pub torn_pages: bool,
    /// Shortest and longest time of one operation.
    pub latency: (Duration, Duration),
}

struct Pages {
    len: u64,
    /// What reads see.
    now: BTreeMap<u64, Box<[u8]>>,
    /// What a power cut may fall back to, oldest first, for every page written since the last sync: the content at
    /// that sync, then each later one but the last (which is in `now`).
    unsynced: BTreeMap<u64, Vec<Option<Box<[u8]>>>>,
    /// Writes the device has taken and not completed.
    in_flight: BTreeMap<u64, (u64, Arc<Block>)>,
    writes_begun: u64,
    random: fastrand::Rng,
    /// Devices of earlier processes have smaller numbers and no access any more.
    process: u64,
    syncs: u64,
}

impl Pages {
    fn put(&mut self, page: u64, bytes: &[u8]) {
        let old = self.now.insert(page, bytes.into());
        self.unsynced.entry(page).or_default().push(old);
    }

    fn apply(&mut self, offset: u64, bytes: &[u8]) {
        for (i, bytes) in bytes.chunks(PAGE).enumerate() {
            self.put(offset / PAGE as u64 + i as u64, bytes);
        }
    }

    /// Some pages of every write in flight reach the medium: nobody ever said they would not.
    fn settle_in_flight(&mut self) {
        for (offset, block) in std::mem::take(&mut self.in_flight).into_values() {
            for (i, bytes) in block.chunks(PAGE).enumerate() {
                if self.random.bool() {
                    self.put(offset / PAGE as u64 + i as u64, bytes);
                }
            }
        }
    }
}

/// The bytes of one simulated flash file, which outlive the processes that use it. Clones share it.
#[derive(Clone)]
pub struct Medium {
    pages: Rc<RefCell<Pages>>,
}

impl Medium {
    /// A medium of `len` bytes, all zero.
    ///
    /// # Panics
    /// `len` is not a multiple of [`PAGE`].
    #[must_use]
    pub fn new(len: u64, seed: u64) -> Self {
        assert!(len.is_multiple_of(PAGE as u64));
        Self {
            pages: Rc::new(RefCell::new(Pages {
                len,
                now: BTreeMap::new(),
                unsynced: BTreeMap::new(),
                in_flight: BTreeMap::new(),
                writes_begun: 0,
                random: fastrand::Rng::with_seed(seed),
                process: 0,
                syncs: 0,
            })),
        }
    }

    /// Gives a (new) process access to the medium.
    #[must_use]
    pub fn open<R: Rt>(&self, rt: R, faults: Faults) -> SimDevice<R> {
        let process = self.pages.borrow().process;
        SimDevice {
            pages: self.pages.clone(),
            rt,
            faults: Cell::new(faults),
            process,
            pool: BlockPool::new(POOL_BYTES_MAX),
        }
    }

    /// The process dies: completed writes stay, those in flight reach the medium page by page or not at all.
    pub fn kill(&self) {
        let mut pages = self.pages.borrow_mut();
        pages.settle_in_flight();
        pages.process += 1;
    }

    /// The power goes: of every page written since the last sync, any state it had since then remains.
    pub fn power_cut(&self, torn_pages: bool) {
        let mut pages = self.pages.borrow_mut();
        pages.settle_in_flight();
        pages.process += 1;
        for (page, olds) in std::mem::take(&mut pages.unsynced) {
            let zeroes = || vec![0; PAGE].into_boxed_slice();
            let choice = pages.random.usize(0..=olds.len());
            let newest = pages.now.get(&page).cloned();
            let pick = |i: usize| if i < olds.len() { olds[i].clone() } else { newest.clone() }.unwrap_or_else(zeroes);
            let mut left = pick(choice);
            if torn_pages && pages.random.u8(0..4) == 0 {
                let cut = pages.random.usize(1..PAGE / SECTOR) * SECTOR;
                let other = pick(pages.random.usize(0..=olds.len()));
                left[cut..].copy_from_slice(&other[cut..]);
            }
            pages.now.insert(page, left);
        }
    }

    /// Changes bytes where they lie, as rot does: `change` gets the page that holds byte `offset`, and the index of
    /// that byte in it.
    pub fn rot(&self, offset: u64, change: impl FnOnce(&mut [u8], usize)) {
        let mut pages = self.pages.borrow_mut();
        let page = pages.now.entry(offset / PAGE as u64).or_insert_with(|| vec![0; PAGE].into_boxed_slice());
        change(page, usize::try_from(offset % PAGE as u64).unwrap_or_default());
    }

    /// A copy of `len` bytes at `offset`, as a read without faults sees them.
    #[must_use]
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let pages = self.pages.borrow();
        (offset..offset + len as u64)
            .map(|at| pages.now.get(&(at / PAGE as u64)).map_or(0, |page| page[(at % PAGE as u64) as usize]))
            .collect()
    }

    /// Syncs that succeeded so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.pages.borrow().syncs
    }
}

/// One process's access to a [`Medium`]. A device of a process that was killed fails every operation with EIO.
pub struct SimDevice<R> {
    pages: Rc<RefCell<Pages>>,
    rt: R,
    faults: Cell<Faults>,
    process: u64,
    pool: BlockPool,
}

/// A write the device has taken. Left behind by a dropped future it still happens.
struct InFlight<'a> {
    pages: &'a RefCell<Pages>,
    id: u64,
}

impl InFlight<'_> {
    fn take(&self) -> Option<(u64, Arc<Block>)> {
        self.pages.borrow_mut().in_flight.remove(&self.id)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some((offset, block)) = self.take() {
            self.pages.borrow_mut().apply(offset, &block);
        }
    }
}

impl<R: Rt> SimDevice<R> {
    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.faults.set(faults);
    }

    fn happens(&self, one_in: u32) -> bool {
        one_in > 0 && self.pages.borrow_mut().random.u32(0..one_in) == 0
    }

    fn error(&self, operation: &'static str, offset: u64, errno: i32) -> DeviceError {
        DeviceError::new(operation, "simulated flash", offset, io::Error::from_raw_os_error(errno))
    }

    fn alive(&self, operation: &'static str, offset: u64) -> Result<(), DeviceError> {
        match self.pages.borrow().process == self.process {
            true => Ok(()),
            false => Err(self.error(operation, offset, libc::EIO)),
        }
    }

    async fn take_time(&self) {
        let (least, most) = self.faults.get().latency;
        if most.is_zero() {
            return self.rt.yield_now().await;
        }
        let spread = u64::try_from((most.saturating_sub(least)).as_nanos()).unwrap_or(u64::MAX);
        let extra = self.pages.borrow_mut().random.u64(0..=spread);
        self.rt.sleep(least + Duration::from_nanos(extra)).await;
    }
}

impl<R: Rt> Device for SimDevice<R> {
    fn len(&self) -> u64 {
        self.pages.borrow().len
    }

    fn block(&self, len: usize) -> Block {
        self.pool.block(len)
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Block, DeviceError> {
        assert!(offset.is_multiple_of(PAGE as u64) && len.is_multiple_of(PAGE));
        self.take_time().await;
        self.alive("read", offset)?;
        let faults = self.faults.get();
        if self.happens(faults.read_error_one_in) || offset + len as u64 > self.len() {
            return Err(self.error("read", offset, libc::EIO));
        }
        let mut block = self.pool.block(len);
        let mut pages = self.pages.borrow_mut();
        for (i, bytes) in block.chunks_mut(PAGE).enumerate() {
            match pages.now.get(&(offset / PAGE as u64 + i as u64)) {
                Some(page) => bytes.copy_from_slice(page),
                None => bytes.fill(0),
            }
        }
        if faults.read_flip_one_in > 0 && pages.random.u32(0..faults.read_flip_one_in) == 0 {
            let at = pages.random.usize(0..len);
            block[at] ^= 1 << pages.random.u8(0..8);
        }
        Ok(block)
    }

    async fn write(&self, offset: u64, block: Arc<Block>) -> Result<(), DeviceError> {
        assert!(offset.is_multiple_of(PAGE as u64));
        self.alive("write", offset)?;
        let faults = self.faults.get();
        if self.happens(faults.no_space_one_in) || offset + block.len() as u64 > self.len() {
            return Err(self.error("write", offset, libc::ENOSPC));
        }
        let id = {
            let mut pages = self.pages.borrow_mut();
            pages.writes_begun += 1;
            let id = pages.writes_begun;
            pages.in_flight.insert(id, (offset, block));
            id
        };
        let write = InFlight { pages: &self.pages, id };
        self.take_time().await;
        self.alive("write", offset)?;
        if self.happens(faults.write_error_one_in) {
            let mut pages = self.pages.borrow_mut();
            if let Some((offset, block)) = pages.in_flight.remove(&id) {
                let written = pages.random.usize(0..=block.len() / PAGE) * PAGE;
                pages.apply(offset, &block[..written]);
            }
            return Err(self.error("write", offset, libc::EIO));
        }
        let Some((mut offset, block)) = write.take() else { return Ok(()) };
        if self.happens(faults.write_lost_one_in) {
            return Ok(());
        }
        if self.happens(faults.write_misdirected_one_in) {
            let places = (self.len() - block.len() as u64) / PAGE as u64;
            offset = self.pages.borrow_mut().random.u64(0..=places) * PAGE as u64;
        }
        self.pages.borrow_mut().apply(offset, &block);
        Ok(())
    }

    async fn sync(&self) -> Result<(), DeviceError> {
        self.alive("sync", 0)?;
        // What was complete when the sync began is what it makes durable.
        let begun: Vec<(u64, usize)> =
            self.pages.borrow().unsynced.iter().map(|(page, olds)| (*page, olds.len())).collect();
        self.take_time().await;
        self.alive("sync", 0)?;
        if self.happens(self.faults.get().sync_error_one_in) {
            return Err(self.error("sync", 0, libc::EIO));
        }
        let mut pages = self.pages.borrow_mut();
        pages.syncs += 1;
        for (page, olds_then) in begun {
            let Some(olds) = pages.unsynced.get_mut(&page) else { continue };
            olds.drain(..olds_then.min(olds.len()));
            if olds.is_empty() {
                pages.unsynced.remove(&page);
            }
        }
        Ok(())
    }

    fn name(&self) -> &'static str {
        "simulated flash"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::sim::Sim;

    fn page_of<R: Rt>(device: &SimDevice<R>, byte: u8) -> Arc<Block> {
        let mut block = device.block(PAGE);
        block.fill(byte);
        Arc::new(block)
    }

    #[test]
    fn a_kill_keeps_what_completed_and_a_power_cut_only_what_was_synced() {
        let mut lost = 0;
        for seed in 0..64 {
            let sim = Sim::new(seed);
            let medium = Medium::new(1 << 20, seed);
            let device = medium.open(sim.rt(), Faults::default());
            sim.block_on(async {
                device.write(0, page_of(&device, 1)).await.expect("written");
                device.sync().await.expect("synced");
                device.write(0, page_of(&device, 2)).await.expect("written");
                device.write(4096, page_of(&device, 3)).await.expect("written");
            });
            medium.kill();
            assert_eq!((medium.peek(0, 1), medium.peek(4096, 1)), (vec![2], vec![3]));
            assert!(sim.block_on(device.read(0, PAGE)).is_err(), "a dead process has no device");
            medium.power_cut(false);
            let left = (medium.peek(0, 1)[0], medium.peek(4096, 1)[0]);
            assert!(matches!(left, (1 | 2, 0 | 3)), "{left:?}");
            lost += u32::from(left == (1, 0)) + u32::from(left == (2, 0));
        }
        assert!((8..56).contains(&lost), "the second page was lost {lost} times of 64");
    }

    #[test]
    fn a_dropped_write_still_happens_and_a_killed_one_may() {
        let mut reached = 0;
        for seed in 0..64 {
            let sim = Sim::new(seed);
            let medium = Medium::new(1 << 20, seed);
            let device = medium.open(sim.rt(), Faults::default());
            let mut write = Box::pin(device.write(0, page_of(&device, 1)));
            sim.block_on(async { assert!(futures_lite::future::poll_once(&mut write).await.is_none()) });
            drop(write);
            assert_eq!(medium.peek(0, 1), [1]);
            let mut write = Box::pin(device.write(4096, page_of(&device, 2)));
            sim.block_on(async { assert!(futures_lite::future::poll_once(&mut write).await.is_none()) });
            medium.kill();
            drop(write);
            reached += u32::from(medium.peek(4096, 1) == [2]);
        }
        assert!((8..56).contains(&reached), "{reached} of 64");
    }

    #[test]
    fn each_fault_happens_and_only_when_asked_for() {
        let sim = Sim::new(1);
        let medium = Medium::new(1 << 20, 1);
        let device = medium.open(sim.rt(), Faults::default());
        let errno = |failed: DeviceError| match failed {
            DeviceError::NoSpace { source, .. } | DeviceError::Io { source, .. } => source.raw_os_error(),
        };
        sim.block_on(async {
            for _ in 0..100 {
                device.write(0, page_of(&device, 1)).await.expect("no faults");
                assert_eq!(device.read(0, PAGE).await.expect("no faults")[..], [1; PAGE]);
            }
            device.set_faults(Faults { read_flip_one_in: 1, ..Faults::default() });
            assert_ne!(device.read(0, PAGE).await.expect("flipped")[..], [1; PAGE]);
            assert_eq!(medium.peek(0, PAGE), [1; PAGE], "the medium is intact");
            device.set_faults(Faults { read_error_one_in: 1, ..Faults::default() });
            assert_eq!(device.read(0, PAGE).await.map_err(errno).err(), Some(Some(libc::EIO)));
            device.set_faults(Faults { no_space_one_in: 1, ..Faults::default() });
            let full = device.write(0, page_of(&device, 2)).await.expect_err("full");
            assert!(matches!(full, DeviceError::NoSpace { .. }));
            device.set_faults(Faults { write_error_one_in: 1, ..Faults::default() });
            assert!(device.write(0, page_of(&device, 1)).await.is_err());
            device.set_faults(Faults { sync_error_one_in: 1, ..Faults::default() });
            assert!(device.sync().await.is_err());
            device.set_faults(Faults { write_lost_one_in: 1, ..Faults::default() });
            device.write(0, page_of(&device, 2)).await.expect("so it says");
            assert_eq!(medium.peek(0, PAGE), [1; PAGE]);
        });
    }
}
