//! The write buffer, and the one task that writes.
//!
//! Records are appended to the block being filled; a full block, or one that has waited for the flush interval, is
//! sealed and joins the queue. The flusher performs the queue in order, one operation at a time: a segment's head
//! before its blocks, its footer and trailer after them,
//! then a sync, then the next segment. So
//!
//! - what a killed process leaves is a prefix of the queue plus at most one write in pieces, and
//! - before any byte of a segment is overwritten, everything of the lap that reused the segments before it is
//!   durable: no power cut brings an older segment back while a newer one is already gone.
//!
//! A block in the queue is shared with the device and readable until its write completed. Bound: `blocks_max` blocks
//! of at most [`IO_MAX`]; at the bound an append is refused, and waiting callers wait for the flusher.

use std::{collections::VecDeque, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    Inner, Life, Log, LogError, State,
    format::{
        BLOCK_HEADER, BlockHeader, FooterEntry, Head, Layout, Pointer, RECORD_ALIGN, RECORD_HEADER, RecordHeader,
        RunState, STATE_AT, StatePage, Trailer,
    },
    segments::Phase,
    supersede::NoteId,
};
use crate::{
    clock::Clock,
    device::{Block, Device, DeviceError, IO_MAX, PAGE},
    rt::Rt,
};

/// Why a record cannot be appended now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// The flusher is behind.
    Blocks,
    /// Reclaim is behind.
    Segments,
    /// Every slot of the ring is taken.
    Notes,
}

/// The segment being filled.
struct OpenSegment {
    segment: u32,
    epoch: u32,
    first_block: u64,
    /// Where the next block begins, in bytes.
    next_at: usize,
    footer: Vec<u8>,
    entries: usize,
}

/// The block being filled.
struct Filling {
    segment: u32,
    epoch: u32,
    offset: usize,
    block: Block,
    used: usize,
    records: u32,
    since: Duration,
    notes: Vec<NoteId>,
}

/// A sealed block whose write has not completed.
struct Unwritten {
    segment: u32,
    offset: usize,
    block: Arc<Block>,
}

/// What the flusher does next.
pub(super) enum Op {
    Write { offset: u64, block: Arc<Block>, then: Then },
    Sync { appends: u64, sequence: u64, voided: Option<u32> },
}

/// What a completed write means.
pub(super) enum Then {
    Nothing,
    /// The first unwritten block is on flash.
    Written(Vec<NoteId>),
    /// The segment is on flash.
    Sealed(u32),
}

enum Next {
    Do(Op),
    Wait(Option<Duration>),
    Stop,
}

/// See the module.
pub(super) struct Buffer {
    open: Option<OpenSegment>,
    filling: Option<Filling>,
    unwritten: VecDeque<Unwritten>,
    ops: VecDeque<Op>,
    blocks_max: usize,
    /// Records appended, of these in sealed blocks, of these durable.
    appends: u64,
    sealed: u64,
    synced: u64,
    next_sequence: u64,
    durable_sequence: u64,
    flush_wanted: bool,
    /// The flusher is performing an operation it took from the queue.
    busy: bool,
}

impl Buffer {
    pub(super) fn new(bytes_max: usize, layout: &Layout, next_sequence: u64) -> Self {
        Self {
            open: None,
            filling: None,
            unwritten: VecDeque::new(),
            ops: VecDeque::new(),
            blocks_max: (bytes_max / block_bytes(layout)).max(2),
            appends: 0,
            sealed: 0,
            synced: 0,
            next_sequence,
            durable_sequence: next_sequence,
            flush_wanted: false,
            busy: false,
        }
    }

    /// Bytes of blocks in RAM.
    pub(super) fn bytes(&self) -> usize {
        let unwritten: usize = self.unwritten.iter().map(|unwritten| unwritten.block.len()).sum();
        unwritten + self.filling.as_ref().map_or(0, |filling| filling.used)
    }

    /// The bytes at `pointer` as far as they are in RAM: to the end of their block, or `bytes` of it when the block
    /// is still being filled.
    pub(super) fn peek(&self, pointer: Pointer, bytes: usize) -> Option<Bytes> {
        let at = pointer.position as usize * RECORD_ALIGN;
        let holds = |segment: u32, offset: usize, len: usize| {
            segment == pointer.segment && (offset..offset + len).contains(&at)
        };
        if let Some(filling) = &self.filling
            && holds(filling.segment, filling.offset, filling.used)
        {
            let start = at - filling.offset;
            return Some(Bytes::copy_from_slice(&filling.block[start..filling.used.min(start + bytes)]));
        }
        let found = self.unwritten.iter().find(|found| holds(found.segment, found.offset, found.block.len()))?;
        struct Shared(Arc<Block>);
        impl AsRef<[u8]> for Shared {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Some(Bytes::from_owner(Shared(found.block.clone())).slice(at - found.offset..))
    }

    /// Binds notes to the block being filled: they are freed when it is on flash.
    pub(super) fn bind(&mut self, note: NoteId) {
        let filling = self.filling.as_mut().expect("a record was appended for the note just now");
        filling.notes.push(note);
    }

    /// Whether the queue is empty and nothing is under way.
    fn is_idle(&self) -> bool {
        self.ops.is_empty() && !self.busy
    }

    fn sync(&mut self) {
        self.ops.push_back(Op::Sync { appends: self.sealed, sequence: self.next_sequence, voided: None });
    }
}

/// Bytes of the blocks that records are gathered in.
fn block_bytes(layout: &Layout) -> usize {
    IO_MAX.min(layout.segment_bytes as usize)
}

impl<D: Device, R: Rt> Inner<D, R> {
    /// Appends a record made of a header and the parts that follow it; epoch and position are filled in. No await:
    /// what the caller checked before still holds after.
    pub(super) fn append(&self, state: &mut State, header: RecordHeader, parts: &[&[u8]]) -> Result<Pointer, NoRoom> {
        let bytes = RECORD_HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        assert!(bytes <= self.layout.record_bytes_max, "a record of {bytes} bytes");
        self.make_room(state, bytes, usize::from(header.kind.is_listed()))?;
        let (Some(open), Some(filling)) = (&mut state.buffer.open, &mut state.buffer.filling) else {
            unreachable!("make_room leaves a block to fill")
        };
        let position = ((filling.offset + filling.used) / RECORD_ALIGN) as u32;
        let header = RecordHeader { epoch: filling.epoch, position, ..header };
        let record = &mut filling.block[filling.used..];
        let mut end = RECORD_HEADER;
        for part in parts {
            record[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        record[end..end.next_multiple_of(RECORD_ALIGN)].fill(0);
        header.encode(&self.layout, &mut record[..end]);
        filling.used += end.next_multiple_of(RECORD_ALIGN);
        filling.records += 1;
        if header.kind.is_listed() {
            FooterEntry::of(&self.layout, &header).encode(&mut open.footer);
            open.entries += 1;
        }
        let pointer = Pointer { segment: filling.segment, epoch: filling.epoch, position };
        state.buffer.appends += 1;
        state.segments.counters(pointer.segment).bytes += bytes as u64;
        state.stats.appended_bytes += bytes as u64;
        if filling.records == 1 {
            // The flusher must learn of the deadline.
            self.work.notify();
        }
        Ok(pointer)
    }

    /// Sees to it that a record of `bytes` fits the block being filled.
    fn make_room(&self, state: &mut State, bytes: usize, listed: usize) -> Result<(), NoRoom> {
        let bytes = bytes.next_multiple_of(RECORD_ALIGN);
        let layout = &self.layout;
        let buffer = &state.buffer;
        // The footer grows with every record it lists; blocks end before it.
        let end = buffer.open.as_ref().map_or(0, |open| layout.footer_at(open.entries + listed));
        if let Some(filling) = &buffer.filling
            && filling.used + bytes <= filling.block.len()
            && filling.offset + filling.used + bytes <= end
        {
            return Ok(());
        }
        if buffer.unwritten.len() + usize::from(buffer.filling.is_some()) >= buffer.blocks_max {
            return Err(NoRoom::Blocks);
        }
        let next_at = match (&buffer.filling, &buffer.open) {
            (Some(filling), _) => (filling.offset + filling.used).next_multiple_of(PAGE),
            (None, Some(open)) => open.next_at,
            (None, None) => usize::MAX / 2,
        };
        let fits_segment = next_at + BLOCK_HEADER + bytes <= end;
        if !fits_segment && state.segments.free() == 0 {
            return Err(NoRoom::Segments);
        }
        self.seal_block(state);
        if !fits_segment {
            self.seal_segment(state);
            self.open_segment(state);
        }
        self.start_block(state);
        Ok(())
    }

    fn start_block(&self, state: &mut State) {
        let open = state.buffer.open.as_ref().expect("the caller opened one");
        let room = self.layout.footer_at(open.entries) - open.next_at;
        let mut block = self.device.block(block_bytes(&self.layout));
        if room < block.len() {
            block.truncate(room);
        }
        state.buffer.filling = Some(Filling {
            segment: open.segment,
            epoch: open.epoch,
            offset: open.next_at,
            block,
            used: BLOCK_HEADER,
            records: 0,
            since: self.rt.clock().elapsed(),
            notes: Vec::new(),
        });
    }

    /// Moves the block being filled, if any, to the queue.
    pub(super) fn seal_block(&self, state: &mut State) {
        let buffer = &mut state.buffer;
        let Some(mut filling) = buffer.filling.take() else { return };
        let padded = filling.used.next_multiple_of(PAGE);
        filling.block.truncate(padded);
        filling.block[filling.used..].fill(0);
        let header = BlockHeader {
            segment: filling.segment,
            epoch: filling.epoch,
            offset: filling.offset as u32,
            used: filling.used as u32,
            sequence: buffer.next_sequence,
            durable: buffer.durable_sequence,
            records: filling.records,
        };
        header.encode(self.layout.salt, &mut filling.block);
        buffer.next_sequence += 1;
        buffer.sealed = buffer.appends;
        let block = Arc::new(filling.block);
        let offset = self.layout.segment_at(filling.segment) + filling.offset as u64;
        let open = buffer.open.as_mut().expect("a block belongs to the open segment");
        open.next_at = filling.offset + padded;
        buffer.unwritten.push_back(Unwritten {
            segment: filling.segment,
            offset: filling.offset,
            block: block.clone(),
        });
        buffer.ops.push_back(Op::Write { offset, block, then: Then::Written(filling.notes) });
        state.stats.flushes += 1;
        self.work.notify();
    }

    /// Closes the open segment, if any, with its footer and trailer. The block being filled is sealed.
    pub(super) fn seal_segment(&self, state: &mut State) {
        let Some(open) = state.buffer.open.take() else { return };
        let trailer = Trailer {
            segment: open.segment,
            epoch: open.epoch,
            first_block: open.first_block,
            next_block: state.buffer.next_sequence,
            entries: open.entries as u32,
            footer_crc: 0,
            used: open.next_at as u32,
        };
        state.segments.enter(open.segment, Phase::Sealing);
        let mut writes = seal_writes(&*self.device, &self.layout, trailer, &open.footer);
        let last = writes.pop();
        let footer = writes.into_iter().map(|(offset, block)| Op::Write { offset, block, then: Then::Nothing });
        state.buffer.ops.extend(footer);
        let sealed = |(offset, block)| Op::Write { offset, block, then: Then::Sealed(open.segment) };
        state.buffer.ops.extend(last.map(sealed));
        state.buffer.sync();
        self.work.notify();
    }

    fn open_segment(&self, state: &mut State) {
        let (segment, epoch) = state.segments.open().expect("the caller saw a free segment");
        let first_block = state.buffer.next_sequence;
        let mut page = self.device.block(PAGE);
        Head { segment, epoch, first_block }.encode(self.layout.salt, &mut page);
        let offset = self.layout.segment_at(segment);
        state.buffer.ops.push_back(Op::Write { offset, block: Arc::new(page), then: Then::Nothing });
        state.buffer.open =
            Some(OpenSegment { segment, epoch, first_block, next_at: PAGE, footer: Vec::new(), entries: 0 });
        // Reclaim keeps one free ahead.
        self.progress.notify();
    }

    /// Queues an empty head for a segment about to be freed, after what was re-inserted from it, and a sync.
    pub(super) fn void_segment(&self, state: &mut State, segment: u32) {
        self.seal_block(state);
        let mut page = self.device.block(PAGE);
        Head { segment, epoch: 0, first_block: 0 }.encode(self.layout.salt, &mut page);
        let offset = self.layout.segment_at(segment);
        state.buffer.ops.push_back(Op::Write { offset, block: Arc::new(page), then: Then::Nothing });
        let (appends, sequence) = (state.buffer.sealed, state.buffer.next_sequence);
        state.buffer.ops.push_back(Op::Sync { appends, sequence, voided: Some(segment) });
        self.work.notify();
    }

    /// Tries until there is room. `attempt` runs without await between its checks and its effect.
    pub(super) async fn until_room<T>(
        &self,
        mut attempt: impl FnMut(&mut State) -> Result<Result<T, NoRoom>, LogError>,
    ) -> Result<T, LogError> {
        loop {
            let seen = self.progress.generation();
            {
                let mut state = self.state.borrow_mut();
                state.check_open()?;
                match attempt(&mut state)? {
                    Ok(done) => return Ok(done),
                    Err(NoRoom::Notes) => {
                        // What frees a slot may be in the block still being filled.
                        state.stats.ring_waits += 1;
                        self.seal_block(&mut state);
                    }
                    Err(NoRoom::Blocks | NoRoom::Segments) => {}
                }
            }
            self.progress.changed(seen).await;
        }
    }

    fn next_op(&self) -> Next {
        let mut state = self.state.borrow_mut();
        if state.poisoned.is_some() {
            return Next::Stop;
        }
        if state.buffer.flush_wanted && !state.buffer.ops.iter().any(|op| matches!(op, Op::Sync { .. })) {
            self.seal_block(&mut state);
            state.buffer.sync();
            state.buffer.flush_wanted = false;
        }
        let age = |state: &State| {
            let filling = state.buffer.filling.as_ref()?;
            Some(self.rt.clock().elapsed().saturating_sub(filling.since))
        };
        if age(&state).is_some_and(|age| age >= self.config.flush_interval) {
            self.seal_block(&mut state);
        }
        match state.buffer.ops.pop_front() {
            Some(op) => {
                state.buffer.busy = true;
                Next::Do(op)
            }
            None if state.life == Life::Closed => Next::Stop,
            None => Next::Wait(age(&state).map(|age| self.config.flush_interval.saturating_sub(age))),
        }
    }

    async fn perform(&self, op: Op) -> Result<(), DeviceError> {
        match op {
            Op::Write { offset, block, then } => {
                let bytes = block.len() as u64;
                self.device.write(offset, block).await?;
                let mut state = self.state.borrow_mut();
                state.stats.written_bytes += bytes;
                match then {
                    Then::Nothing => {}
                    Then::Written(notes) => {
                        state.buffer.unwritten.pop_front();
                        notes.into_iter().for_each(|note| state.ring.free(note));
                    }
                    Then::Sealed(segment) => state.segments.enter(segment, Phase::Sealed),
                }
            }
            Op::Sync { appends, sequence, voided } => {
                self.device.sync().await?;
                let mut state = self.state.borrow_mut();
                state.buffer.synced = appends;
                state.buffer.durable_sequence = sequence;
                state.stats.syncs += 1;
                voided.into_iter().for_each(|segment| state.segments.enter(segment, Phase::Voided));
            }
        }
        Ok(())
    }

    /// The flusher: runs until the log is closed or poisoned.
    pub(super) async fn flush_loop(self: Rc<Self>) {
        loop {
            let seen = self.work.generation();
            match self.next_op() {
                Next::Do(op) => {
                    let done = self.perform(op).await;
                    self.state.borrow_mut().buffer.busy = false;
                    match done {
                        Ok(()) => self.progress.notify(),
                        Err(failed) => self.poison(&failed),
                    }
                }
                Next::Wait(None) => self.work.changed(seen).await,
                Next::Wait(Some(left)) => {
                    futures_lite::future::or(self.work.changed(seen), self.rt.sleep(left)).await;
                }
                Next::Stop => break,
            }
        }
        self.task_ended();
    }

    pub(super) fn task_ended(&self) {
        self.state.borrow_mut().tasks -= 1;
        self.progress.notify();
    }

    fn poison(&self, failed: &DeviceError) {
        tracing::error!(device = self.device.name(), error = %failed, "flash log poisoned");
        let mut state = self.state.borrow_mut();
        state.poisoned = Some(failed.to_string().into());
        // From now on something may be superseded above that this log cannot note: nothing that it holds may be
        // trusted after a kill unless somebody else vouches for it.
        state.ring.set_intact(false);
        self.progress.notify();
        self.work.notify();
    }

    async fn until(&self, mut done: impl FnMut(&State) -> bool) -> Result<(), LogError> {
        loop {
            let seen = self.progress.generation();
            {
                let state = self.state.borrow();
                state.check_readable()?;
                if done(&state) {
                    return Ok(());
                }
            }
            self.progress.changed(seen).await;
        }
    }

    pub(super) async fn flush(&self) -> Result<(), LogError> {
        let mark = {
            let mut state = self.state.borrow_mut();
            state.check_readable()?;
            let mark = state.buffer.appends;
            state.buffer.flush_wanted |= state.buffer.synced < mark;
            mark
        };
        self.work.notify();
        self.until(|state| state.buffer.synced >= mark).await
    }
}

/// The writes that seal a segment, offset and bytes: its footer in pieces, then its trailer (whose footer crc is
/// filled in).
pub(super) fn seal_writes<D: Device>(
    device: &D,
    layout: &Layout,
    trailer: Trailer,
    footer: &[u8],
) -> Vec<(u64, Arc<Block>)> {
    let base = layout.segment_at(trailer.segment);
    let footer_at = layout.footer_at(trailer.entries as usize);
    let mut writes = Vec::new();
    for (i, piece) in footer.chunks(IO_MAX).enumerate() {
        let mut block = device.block(piece.len().next_multiple_of(PAGE));
        block[..piece.len()].copy_from_slice(piece);
        block[piece.len()..].fill(0);
        writes.push((base + (footer_at + i * IO_MAX) as u64, Arc::new(block)));
    }
    let mut page = device.block(PAGE);
    let footer_crc = super::format::crc(layout.salt, &[footer]);
    Trailer { footer_crc, ..trailer }.encode(layout.salt, &mut page);
    writes.push((layout.trailer_at(trailer.segment), Arc::new(page)));
    writes
}

impl<D: Device, R: Rt> Log<D, R> {
    /// Completes when everything appended before is written and synced. Callers at the same time share syncs.
    /// Dropping the future gives up the wait, not the flush.
    ///
    /// # Errors
    /// The log is poisoned or closed; what was not flushed before may be lost.
    pub async fn flush(&self) -> Result<(), LogError> {
        self.inner.flush().await
    }

    /// Stops for good: takes nothing more, flushes, seals the open segment, marks the stop as clean, and waits for
    /// its tasks to end. Reads end with [`LogError::Closed`]. A second call returns at once.
    ///
    /// # Errors
    /// The log is poisoned: the stop is not clean.
    pub async fn close(&self) -> Result<(), LogError> {
        let inner = &self.inner;
        {
            let mut state = inner.state.borrow_mut();
            if state.life != Life::Open {
                return Ok(());
            }
            state.life = Life::Closing;
        }
        inner.progress.notify();
        let flushed = inner.close_segment().await;
        inner.state.borrow_mut().life = Life::Closed;
        inner.progress.notify();
        inner.work.notify();
        loop {
            let seen = inner.progress.generation();
            if inner.state.borrow().tasks == 0 {
                return flushed;
            }
            inner.progress.changed(seen).await;
        }
    }
}

impl<D: Device, R: Rt> Inner<D, R> {
    async fn close_segment(&self) -> Result<(), LogError> {
        {
            let mut state = self.state.borrow_mut();
            state.check_readable()?;
            self.seal_block(&mut state);
            self.seal_segment(&mut state);
            state.buffer.sync();
        }
        self.work.notify();
        self.until(|state| state.buffer.is_idle()).await?;
        let clean = StatePage { state: RunState::Clean, written_ms: self.rt.clock().wall_ms(), ..self.page };
        {
            let mut state = self.state.borrow_mut();
            let mut page = self.device.block(PAGE);
            clean.encode(self.layout.salt, &mut page);
            state.buffer.ops.push_back(Op::Write { offset: STATE_AT, block: page.into(), then: Then::Nothing });
            state.buffer.sync();
        }
        self.work.notify();
        self.until(|state| state.buffer.is_idle()).await
    }
}
