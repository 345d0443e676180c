//! Bodies on their way in: written to the arena in pieces, visible to no look-up until they are published.
//!
//! Owns the table of stages. A [`Stage`] is a token; the bytes and their position belong to the slab, which may move
//! them. Dropping the token gives the space back at the slab's next operation that makes room, sweeps or counts.
//!
//! - INV-STAGE-1: the extents of all stages together never exceed `staged_bytes_max`; a stage that would is refused.

use std::{cell::RefCell, rc::Rc};

use super::{
    OnEvict, Slab,
    arena::{At, UNIT_BYTES},
    extent::Align,
    layout::body_units,
    room::{Large, Owner},
};

/// Stages alive at a time; a further one is refused with [`StageError::NoRoom`].
const STAGES_MAX: usize = 64 << 10;
/// What a stage of unknown length starts with, in bytes; it then doubles.
const STAGE_BYTES_FIRST: usize = 4096;

/// A body being written. Not `Send`: it belongs to its slab's thread. Dropping it discards what was written.
#[derive(Debug)]
pub struct Stage {
    slot: u32,
    dropped: Dropped,
}

/// Slots whose stage was dropped, as the slab and its stages share it.
pub(super) type Dropped = Rc<RefCell<Vec<u32>>>;

impl Drop for Stage {
    fn drop(&mut self) {
        self.dropped.borrow_mut().push(self.slot);
    }
}

/// Why a stage was not begun, or a chunk not taken. After a refused chunk the stage holds what it held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// The body would be larger than this stage or the slab allows.
    #[error("body is larger than {bytes_max} bytes")]
    TooLarge {
        /// The bound that was passed.
        bytes_max: u64,
    },
    /// The share of the arena for staged bodies is used up, or what eviction can free does not suffice, or there are
    /// too many stages.
    #[error("no room for a staged body")]
    NoRoom,
}

/// The slab's side of a stage.
pub(super) struct Slot {
    /// Its extent, if it has any units.
    pub(super) at: At,
    pub(super) units: u32,
    pub(super) bytes: usize,
    bytes_max: u64,
}

impl Slab {
    /// Begins an invisible body of at most `bytes_max` bytes. With `body_bytes` given its space is taken at once,
    /// so that a body that does not fit is refused before the first byte. May evict.
    pub fn stage(
        &mut self,
        body_bytes: Option<u64>,
        bytes_max: u64,
        on_evict: OnEvict<'_>,
    ) -> Result<Stage, StageError> {
        let bytes_max = bytes_max.min(self.config.body_bytes_max);
        let first = body_bytes.unwrap_or(0);
        if first > bytes_max {
            return Err(StageError::TooLarge { bytes_max });
        }
        self.settle_stages();
        let slot = Slot { at: At::NONE, units: 0, bytes: 0, bytes_max };
        let index = match self.stages_free.pop() {
            Some(index) => {
                self.stages[index as usize] = slot;
                index
            }
            None if self.stages.len() == STAGES_MAX => return Err(StageError::NoRoom),
            None => {
                self.stages.push(slot);
                u32::try_from(self.stages.len() - 1).expect("fewer stages than units")
            }
        };
        let stage = Stage { slot: index, dropped: Rc::clone(&self.dropped) };
        self.stage_reserve(index, usize::try_from(first).expect("bounded by the arena"), on_evict)?;
        Ok(stage)
    }

    /// Adds `chunk` to a staged body. May evict.
    pub fn append(&mut self, stage: &mut Stage, chunk: &[u8], on_evict: OnEvict<'_>) -> Result<(), StageError> {
        self.check_stage(stage);
        if chunk.is_empty() {
            return Ok(());
        }
        let slot = &self.stages[stage.slot as usize];
        let (bytes, bytes_max) = (slot.bytes, slot.bytes_max);
        let total = bytes + chunk.len();
        if total as u64 > bytes_max {
            return Err(StageError::TooLarge { bytes_max });
        }
        if total > slot.units as usize * UNIT_BYTES {
            let doubled = (slot.units as usize * UNIT_BYTES * 2).max(STAGE_BYTES_FIRST);
            let ample = doubled.min(usize::try_from(bytes_max).unwrap_or(usize::MAX)).max(total);
            // Doubling may pass the bound where the bytes themselves would not.
            self.stage_reserve(stage.slot, ample, on_evict)
                .or_else(|_| self.stage_reserve(stage.slot, total, on_evict))?;
        }
        let slot = &mut self.stages[stage.slot as usize];
        slot.bytes = total;
        let at = slot.at;
        self.extents.arena_mut().bytes_mut(at, bytes, chunk.len()).copy_from_slice(chunk);
        Ok(())
    }

    /// What was staged so far.
    pub fn staged<'a>(&'a self, stage: &'a Stage) -> &'a [u8] {
        self.check_stage(stage);
        let slot = &self.stages[stage.slot as usize];
        if slot.units == 0 { &[] } else { self.extents.arena().bytes(slot.at, 0, slot.bytes) }
    }

    pub(super) fn check_stage(&self, stage: &Stage) {
        assert!(Rc::ptr_eq(&stage.dropped, &self.dropped), "a stage is used with the slab that began it");
    }

    /// The slab's side of a stage.
    pub(super) fn slot(&self, stage: &Stage) -> &Slot {
        &self.stages[stage.slot as usize]
    }

    /// Takes the extent out of a stage, cut to its bytes, for the entry that it becomes.
    pub(super) fn stage_take(&mut self, stage: &Stage) -> At {
        let slot = &mut self.stages[stage.slot as usize];
        let (at, units, needed) = (slot.at, slot.units, body_units(slot.bytes));
        slot.units = 0;
        self.staged_units -= units;
        self.large.remove(&at);
        self.extents.shrink(at, units, needed);
        at
    }

    /// Gives dropped stages' space back.
    pub(super) fn settle_stages(&mut self) {
        loop {
            let Some(index) = self.dropped.borrow_mut().pop() else { return };
            let slot = &mut self.stages[index as usize];
            let (at, units) = (slot.at, std::mem::take(&mut slot.units));
            self.stages_free.push(index);
            if units > 0 {
                self.staged_units -= units;
                self.large.remove(&at);
                self.extents.free(at, units);
            }
        }
    }

    /// Makes the extent of a stage hold `bytes`, in place if it can, else by moving what is written.
    fn stage_reserve(&mut self, index: u32, bytes: usize, on_evict: OnEvict<'_>) -> Result<(), StageError> {
        let units = body_units(bytes);
        let Slot { at, units: had, .. } = self.stages[index as usize];
        if units <= had {
            return Ok(());
        }
        self.settle_stages();
        let free = self.staged_units_max().saturating_sub(self.staged_units);
        if units - had > free {
            return Err(StageError::NoRoom);
        }
        if had > 0 && self.extents.grow(at, had, units) {
            self.staged_units += units - had;
            self.stages[index as usize].units = units;
            self.large.get_mut(&at).expect("a staged extent is known (INV-ROOM-1)").units = units;
            return Ok(());
        }
        // Old and new both count while bytes move.
        if units > free {
            return Err(StageError::NoRoom);
        }
        let to = self.room(units, Align::Line, on_evict).ok_or(StageError::NoRoom)?;
        let Slot { at, bytes, .. } = self.stages[index as usize];
        if had > 0 {
            self.extents.arena_mut().copy((at, 0), (to, 0), bytes);
            self.large.remove(&at);
            self.extents.free(at, had);
        }
        self.large.insert(to, Large { units, owner: Owner::Stage(index) });
        self.staged_units += units - had;
        let slot = &mut self.stages[index as usize];
        (slot.at, slot.units) = (to, units);
        Ok(())
    }

    fn staged_units_max(&self) -> u32 {
        u32::try_from(self.config.staged_bytes_max / UNIT_BYTES as u64).unwrap_or(u32::MAX)
    }
}
