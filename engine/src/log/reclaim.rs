//! Making room: first in first out, segment by segment, with what was hit re-inserted at the end.
//!
//! A task keeps [`FREE_SEGMENTS_MIN`] free segments ahead of the writer. It walks the footer of the oldest sealed
//! segment; an object that the index still points at and that was hit since it was written is appended again, as
//! long as the budget lasts and no segment must be waited for (that would be waiting for oneself). Then the
//! segment's head is voided on flash, and synced: only now may the index forget what is in it, for a restart would
//! have brought it back, and an owner asks the index whether there is anything to fear
//! ([`super::Log::needs_tombstone`]). Then its entries leave the index, its epoch ends, and it is free. Nobody is
//! waited for: a reader that comes too late sees the epoch gone.
//!
//! Re-insertion reads the record, then, without an await, checks that the index still points at it, appends and
//! publishes: a newer version or a tombstone that came meanwhile wins. Objects of one record are re-inserted, and
//! chunked ones whose body lies in this very segment; a larger body began in segments that are gone.
//!
//! A tombstone simply goes: whatever it covered went before it (INV-3). A footer that cannot be read costs a sweep
//! over the whole index, in slices, and re-inserts nothing.

use std::rc::Rc;

use bytes::Bytes;

use super::{
    Inner, Life, State,
    format::{FOOTER_ENTRY, FooterEntry, Kind, Layout, POINTER, Pointer, RECORD_HEADER, RecordHeader, Trailer, crc},
    index::{Entry, Place, SlotId},
    segments::Phase,
    writer::NoRoom,
};
use crate::{
    clock::Clock,
    device::{Device, DeviceError, IO_MAX, PAGE},
    rt::Rt,
};

/// Free segments kept ahead of the writer.
pub(super) const FREE_SEGMENTS_MIN: usize = 1;

/// A reclaimed segment may re-insert one part in so many of its bytes: reclaim always gains most of a segment.
const REINSERT_SHARE: u64 = 4;

/// Waits for the flusher before a re-insertion is given up.
const ROOM_TRIES: usize = 64;

/// Footer entries or index slots looked at between two yields.
const SLICE: usize = 4096;

impl<D: Device, R: Rt> Inner<D, R> {
    /// The reclaim task: runs until the log is closed or poisoned.
    pub(super) async fn reclaim_loop(self: Rc<Self>) {
        loop {
            let seen = self.progress.generation();
            let (stopped, victim) = {
                let state = self.state.borrow();
                let short = state.segments.free() < FREE_SEGMENTS_MIN && state.life == Life::Open;
                let victim = if short { state.segments.oldest_sealed() } else { None };
                (state.life == Life::Closed || state.poisoned.is_some(), victim)
            };
            match victim {
                _ if stopped => break,
                Some(segment) => self.reclaim(segment).await,
                None => self.progress.changed(seen).await,
            }
        }
        self.task_ended();
    }

    async fn reclaim(self: &Rc<Self>, segment: u32) {
        let epoch = {
            let mut state = self.state.borrow_mut();
            state.segments.enter(segment, Phase::Reclaiming);
            state.segments.epoch(segment)
        };
        let footer = match self.read_footer(segment).await {
            Ok(Some((trailer, footer))) if trailer.epoch == epoch => Some(footer),
            Ok(_) => None,
            Err(failed) => {
                tracing::warn!(error = %failed, "footer not read, its objects are dropped");
                None
            }
        };
        if let Some(footer) = &footer {
            self.reinsert_hit(segment, epoch, footer).await;
        }
        if !self.void(segment).await {
            return;
        }
        match footer {
            Some(footer) => self.empty_by_footer(segment, &footer).await,
            None => self.empty_by_sweep(segment).await,
        }
        let mut state = self.state.borrow_mut();
        state.segments.release(segment);
        state.stats.reclaimed_segments += 1;
        drop(state);
        self.progress.notify();
    }

    /// Writes and syncs an empty head. `false`: the log was poisoned or closed.
    async fn void(&self, segment: u32) -> bool {
        {
            let mut state = self.state.borrow_mut();
            if state.life == Life::Closed {
                return false;
            }
            self.void_segment(&mut state, segment);
        }
        loop {
            let seen = self.progress.generation();
            {
                let state = self.state.borrow();
                if state.poisoned.is_some() || state.segments.get(segment).phase == Phase::Voided {
                    return state.poisoned.is_none();
                }
            }
            self.progress.changed(seen).await;
        }
    }

    async fn reinsert_hit(&self, segment: u32, epoch: u32, footer: &[FooterEntry]) {
        let mut budget = u64::from(self.layout.segment_bytes) / REINSERT_SHARE;
        for slice in footer.chunks(SLICE) {
            for line in slice {
                let entry = self.state.borrow().pointed_at(segment, line).map(|(_, entry)| entry);
                let Some(entry) = entry.filter(|entry| entry.is_live() && entry.hits > 0) else { continue };
                let pointer = Pointer { segment, epoch, position: line.position };
                budget -= self.reinsert(line.hash, &entry, pointer, budget).await.unwrap_or(0);
            }
            self.rt.yield_now().await;
        }
    }

    async fn empty_by_footer(&self, segment: u32, footer: &[FooterEntry]) {
        for slice in footer.chunks(SLICE) {
            {
                let mut state = self.state.borrow_mut();
                for line in slice {
                    let Some((slot, _)) = state.pointed_at(segment, line) else { continue };
                    let entry = state.index.clear(slot);
                    state.segments.counters(segment).live -= u32::from(entry.is_live());
                    state.stats.reclaimed_objects += u64::from(entry.is_live());
                }
            }
            self.rt.yield_now().await;
        }
    }

    async fn empty_by_sweep(&self, segment: u32) {
        let mut from = Some(0);
        while let Some(at) = from {
            {
                let mut state = self.state.borrow_mut();
                let (dropped, next) = state.index.sweep(segment, at, SLICE);
                state.segments.counters(segment).live -= dropped as u32;
                state.stats.reclaimed_objects += dropped as u64;
                from = next;
            }
            self.rt.yield_now().await;
        }
    }

    /// Appends the object again if it is sound and within the budget; returns the bytes spent, or `None` when it is
    /// not, or there is no room.
    async fn reinsert(&self, hash: u64, entry: &Entry, pointer: Pointer, budget: u64) -> Option<u64> {
        let Place::Record { span, .. } = entry.place else { return None };
        let (header, record) = self.read_checked(pointer, usize::from(span)).await.ok()?;
        let now_ms = self.rt.clock().wall_ms();
        let expired = header.is_expired(now_ms);
        let head = header.pointers_at();
        if expired || header.hash != hash || header.length + head as u64 > budget {
            return None;
        }
        let rest = record.slice(head..header.record_bytes(&self.layout));
        let rest = match header.kind {
            Kind::Commit => self.copy_chunks(pointer, &header, &rest).await?,
            _ => rest,
        };
        let bytes = head + rest.len();
        let (key, meta) = (&record[RECORD_HEADER..header.meta_at()], &record[header.meta_at()..head]);
        self.append_soon(|state| {
            let same = |now: &Entry| now.place == entry.place && now.version == entry.version;
            let current = state.index.get(hash).filter(same)?;
            Some(self.append(state, header, &[key, meta, &rest]).map(|pointer| {
                let place = self.record_place(pointer, bytes);
                state.publish(hash, &Entry { place, hits: 0, ..current });
                state.stats.reinserted_objects += 1;
                state.stats.reinserted_bytes += header.length + head as u64;
            }))
        })
        .await?;
        Some(header.length + head as u64)
    }

    /// Tries until there is a block to write to; gives up when a segment is missing, the flusher does not keep up,
    /// the log closes, or `attempt` does.
    async fn append_soon<T>(&self, mut attempt: impl FnMut(&mut State) -> Option<Result<T, NoRoom>>) -> Option<T> {
        for _ in 0..ROOM_TRIES {
            let seen = self.progress.generation();
            {
                let mut state = self.state.borrow_mut();
                state.check_open().ok()?;
                match attempt(&mut state)? {
                    Ok(done) => return Some(done),
                    Err(NoRoom::Blocks) => {}
                    Err(NoRoom::Segments | NoRoom::Notes) => return None,
                }
            }
            self.progress.changed(seen).await;
        }
        None
    }

    /// Appends the chunks of a body that lies within the segment of its commit record; returns the new pointers.
    async fn copy_chunks(&self, commit: Pointer, header: &RecordHeader, pointers: &[u8]) -> Option<Bytes> {
        let inside = |pointer: Pointer| (pointer.segment, pointer.epoch) == (commit.segment, commit.epoch);
        if header.level != 0 || !pointers.chunks_exact(POINTER).all(|bytes| inside(Pointer::decode(bytes))) {
            return None;
        }
        let mut copied = vec![0; pointers.len()];
        let chunk_bytes = self.layout.chunk_bytes as u64;
        for (index, (old, new)) in pointers.chunks_exact(POINTER).zip(copied.chunks_exact_mut(POINTER)).enumerate() {
            let pointer = Pointer::decode(old);
            let bytes = chunk_bytes.min(header.length - index as u64 * chunk_bytes);
            let record_bytes = RECORD_HEADER + bytes as usize;
            let span = Layout::span(pointer.position, record_bytes);
            let (chunk, record) = self.read_checked(pointer, span).await.ok()?;
            let expected = (Kind::Chunk, header.hash, index as u64, bytes);
            if (chunk.kind, chunk.hash, chunk.created_ms, chunk.length) != expected {
                return None;
            }
            let payload = &record[RECORD_HEADER..record_bytes];
            self.append_soon(|state| Some(self.append(state, chunk, &[payload]))).await?.encode(new);
        }
        Some(copied.into())
    }

    /// Reads trailer and footer of a segment; `None` when either is damaged or missing.
    pub(super) async fn read_footer(&self, segment: u32) -> Result<Option<(Trailer, Vec<FooterEntry>)>, DeviceError> {
        read_footer(&*self.device, &self.layout, segment).await
    }
}

/// Reads trailer and footer of a segment; `None` when either is damaged or missing.
pub(super) async fn read_footer<D: Device>(
    device: &D,
    layout: &Layout,
    segment: u32,
) -> Result<Option<(Trailer, Vec<FooterEntry>)>, DeviceError> {
    let page = device.read(layout.trailer_at(segment), PAGE).await?;
    let Some(trailer) = Trailer::decode(layout, segment, &page) else { return Ok(None) };
    let bytes = trailer.entries as usize * FOOTER_ENTRY;
    let base = layout.segment_at(segment) + layout.footer_at(trailer.entries as usize) as u64;
    let mut footer = Vec::with_capacity(bytes);
    while footer.len() < bytes {
        let piece = (bytes - footer.len()).min(IO_MAX);
        let block = device.read(base + footer.len() as u64, piece.next_multiple_of(PAGE)).await?;
        footer.extend_from_slice(&block[..piece]);
    }
    if crc(layout.salt, &[&footer]) != trailer.footer_crc {
        return Ok(None);
    }
    let entries = footer.chunks_exact(FOOTER_ENTRY).map(|line| FooterEntry::decode(layout, line)).collect();
    Ok(Option::map(entries, |entries| (trailer, entries)))
}

impl State {
    /// The index entry that this line of a segment's footer put there, if it is still there.
    fn pointed_at(&self, segment: u32, line: &FooterEntry) -> Option<(SlotId, Entry)> {
        let slot = self.index.find(line.hash)?;
        let entry = self.index.entry(slot);
        let same = match entry.place {
            Place::Record { segment: held, position, .. } => (held, position) == (segment, line.position),
            Place::Tombstone { segment: held, .. } => held == segment && line.kind == Kind::Tombstone,
        };
        same.then_some((slot, entry))
    }
}
