//! Look-ups and bodies.
//!
//! One read of the pages a record spans serves a small object; a large one is read chunk by chunk, and only those a
//! range touches. Nothing pins a segment: what was read counts only if the segment's epoch is still the same after
//! the read, and reclaim ends the epoch before it lets go of the first byte. Records that are not on flash yet are
//! read from the write buffer.

use std::{ops::Range, rc::Rc};

use bytes::Bytes;

use super::{
    Inner, Log, LogError, State,
    format::{Kind, Layout, POINTER, Pointer, RECORD_HEADER, RecordHeader},
    index::{Entry, HITS_MAX, Place},
};
use crate::{
    device::{Device, IO_MAX, PAGE},
    rt::Rt,
};

/// Tries of a look-up against reclaim moving the record meanwhile.
const LOOKUP_TRIES: usize = 4;

/// Why a look-up found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The index has no entry for the key's class.
    Absent,
    /// The entry was removed or tombstoned.
    Removed,
    /// The object is past its time to live.
    Expired,
    /// The entry is another key's.
    Collision,
    /// A checksum failed; the object is dropped.
    Corrupted,
    /// The record, or the beginning of its body, was reclaimed.
    Gone,
}

/// What a look-up found.
#[expect(clippy::large_enum_variant, reason = "a hit moves once; a box would be an allocation a hit")]
pub enum Lookup<D: Device, R: Rt> {
    /// The object.
    Found(Found<D, R>),
    /// Nothing, and why.
    Miss(Miss),
}

/// A committed object.
pub struct Found<D: Device, R: Rt> {
    /// Its version.
    pub version: u64,
    /// The owner's metadata. Shares the memory that was read, up to 132 KiB: copy what is kept.
    pub meta: Bytes,
    /// Body bytes.
    pub length: u64,
    /// CRC-32 of the body.
    pub checksum: u32,
    /// Creation, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Expiry, in milliseconds since the epoch; `None` never.
    pub expires_ms: Option<u64>,
    /// The owner's.
    pub flags: u16,
    /// Survived a stop after which its version must be checked, and was not yet: see [`super::Keep`].
    pub suspect: bool,
    /// The body.
    pub body: Body<D, R>,
}

/// A body being read. Every byte it gives was checked. Dropping it ends the read.
pub struct Body<D: Device, R: Rt> {
    inner: Rc<Inner<D, R>>,
    hash: u64,
    entry: Entry,
    length: u64,
    source: Source,
    /// What is still to be given.
    range: Range<u64>,
    begun: bool,
}

enum Source {
    /// The whole body, checked.
    Whole(Bytes),
    /// Pointers to chunks (level 0), or to maps and the pointers of the map read last.
    Chunks { pointers: Bytes, level: u8, map: Option<(usize, Bytes)> },
}

/// A record that was read and checked.
pub(super) struct Held {
    pub(super) entry: Entry,
    pub(super) header: RecordHeader,
    /// The whole record, and perhaps what follows it.
    pub(super) record: Bytes,
}

/// Why the bytes at a pointer are of no use.
pub(super) enum Unread {
    Gone,
    Corrupted,
    Failed(LogError),
}

impl<D: Device, R: Rt> Log<D, R> {
    /// Finds the object of `key`. An object whose expiry is at or before `now_ms` is a miss. A small body is read and
    /// checked with it, a large one is not touched. Counts the hit. Dropping the future gives up the look-up.
    ///
    /// # Errors
    /// The read failed, or the log is poisoned or closed. Damage is a miss, not an error.
    pub async fn get(&self, hash: u64, key: &[u8], now_ms: u64) -> Result<Lookup<D, R>, LogError> {
        let inner = &self.inner;
        let held = match inner.read_entry(hash, key).await? {
            Ok(held) => held,
            Err(miss) => return Ok(Lookup::Miss(miss)),
        };
        let Held { entry, header, record } = held;
        if header.is_expired(now_ms) {
            let mut state = inner.state.borrow_mut();
            state.stats.expired += 1;
            state.kill(hash, |now| now.place == entry.place);
            return Ok(Lookup::Miss(Miss::Expired));
        }
        let rest = record.slice(header.pointers_at()..header.record_bytes(&inner.layout));
        let source = match header.kind {
            Kind::Object => Source::Whole(rest),
            _ => Source::Chunks { pointers: rest, level: header.level, map: None },
        };
        let mut body = Body {
            inner: inner.clone(),
            hash,
            entry,
            length: header.length,
            source,
            range: 0..header.length,
            begun: false,
        };
        match body.check_beginning().await {
            Ok(()) => {}
            Err(LogError::Gone) => return Ok(Lookup::Miss(Miss::Gone)),
            Err(LogError::Corrupted { .. }) => return Ok(Lookup::Miss(Miss::Corrupted)),
            Err(failed) => return Err(failed),
        }
        let mut state = inner.state.borrow_mut();
        state.stats.hits += 1;
        if let Some(slot) = state.index.find(hash) {
            let now = state.index.entry(slot);
            if now.place == entry.place && now.hits < HITS_MAX {
                state.index.set(slot, &Entry { hits: now.hits + 1, ..now });
            }
        }
        Ok(Lookup::Found(Found {
            version: header.version,
            meta: record.slice(header.meta_at()..header.pointers_at()),
            length: header.length,
            checksum: header.checksum,
            created_ms: header.created_ms,
            expires_ms: (header.expires_ms != 0).then_some(header.expires_ms),
            flags: header.flags,
            suspect: entry.suspect,
            body,
        }))
    }
}

impl<D: Device, R: Rt> Body<D, R> {
    /// Bytes that reads will still give.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The body, when it is in RAM whole and checked (and no range was set): a small object's.
    #[must_use]
    pub fn whole(&self) -> Option<&Bytes> {
        match &self.source {
            Source::Whole(body) if self.remaining() == self.length => Some(body),
            _ => None,
        }
    }

    /// Restricts reading to `range` of the body. Before the first read only.
    ///
    /// # Errors
    /// [`LogError::BadRange`].
    pub fn seek(&mut self, range: Range<u64>) -> Result<(), LogError> {
        if self.begun || range.start > range.end || range.end > self.length {
            return Err(LogError::BadRange);
        }
        self.range = range;
        Ok(())
    }

    /// The next chunk, never empty; `None` at the end. Dropping the future loses nothing: the next call reads the
    /// same chunk.
    ///
    /// # Errors
    /// [`LogError::Gone`] when reclaim was faster; [`LogError::Corrupted`], and the object is dropped; a failed
    /// read; poisoned or closed. What was given so far is a cut body.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        self.begun = true;
        if self.range.is_empty() {
            return Ok(None);
        }
        let chunk_bytes = self.inner.layout.chunk_bytes as u64;
        let (chunk, from) = match &self.source {
            Source::Whole(body) => (body.clone(), self.range.start),
            Source::Chunks { .. } => {
                (self.chunk(self.range.start / chunk_bytes).await?, self.range.start % chunk_bytes)
            }
        };
        let take = (chunk.len() as u64 - from).min(self.remaining());
        self.range.start += take;
        Ok(Some(chunk.slice(from as usize..(from + take) as usize)))
    }

    /// Whether all of the body is there: first in first out, that is so while its first chunk is. Reads the first
    /// map of a body that has maps, nothing else.
    async fn check_beginning(&mut self) -> Result<(), LogError> {
        if matches!(self.source, Source::Whole(_)) {
            return Ok(());
        }
        let first = self.pointer(0).await?;
        let mut state = self.inner.state.borrow_mut();
        if state.is_there(first) {
            return Ok(());
        }
        state.stats.gone += 1;
        state.kill(self.hash, |now| now.place == self.entry.place);
        Err(LogError::Gone)
    }

    async fn chunk(&mut self, index: u64) -> Result<Bytes, LogError> {
        let pointer = self.pointer(index).await?;
        let chunk_bytes = self.inner.layout.chunk_bytes as u64;
        let bytes = chunk_bytes.min(self.length - index * chunk_bytes);
        self.part(pointer, Kind::Chunk, index, bytes).await
    }

    /// Where chunk `index` is.
    async fn pointer(&mut self, index: u64) -> Result<Pointer, LogError> {
        let layout = self.inner.layout;
        let index = index as usize;
        let nth = |pointers: &[u8], n: usize| Pointer::decode(&pointers[n * POINTER..(n + 1) * POINTER]);
        let (wanted, map_at) = match &self.source {
            Source::Chunks { pointers, level: 0, .. } => return Ok(nth(pointers, index)),
            Source::Chunks { map: Some((held, map)), .. } if *held == index / layout.map_pointers => {
                return Ok(nth(map, index % layout.map_pointers));
            }
            Source::Chunks { pointers, .. } => {
                let wanted = index / layout.map_pointers;
                (wanted, nth(pointers, wanted))
            }
            Source::Whole(_) => unreachable!("a whole body has no chunks"),
        };
        let all = layout.chunks(self.length) as usize;
        let entries = layout.map_pointers.min(all - wanted * layout.map_pointers);
        let read = self.part(map_at, Kind::Map, wanted as u64, (entries * POINTER) as u64).await?;
        let pointer = nth(&read, index % layout.map_pointers);
        if let Source::Chunks { map, .. } = &mut self.source {
            *map = Some((wanted, read));
        }
        Ok(pointer)
    }

    /// Reads and checks the payload of a chunk or map.
    async fn part(&self, pointer: Pointer, kind: Kind, index: u64, bytes: u64) -> Result<Bytes, LogError> {
        let inner = &self.inner;
        let record_bytes = RECORD_HEADER + bytes as usize;
        let checked = inner.read_checked(pointer, Layout::span(pointer.position, record_bytes)).await;
        let checked = checked.and_then(|(header, record)| {
            let expected = (kind, index, bytes, self.hash, RECORD_HEADER);
            let found = (header.kind, header.created_ms, header.length, header.hash, header.pointers_at());
            if found == expected { Ok(record.slice(RECORD_HEADER..record_bytes)) } else { Err(Unread::Corrupted) }
        });
        checked.map_err(|unread| {
            let mut state = inner.state.borrow_mut();
            match unread {
                Unread::Failed(failed) => return failed,
                Unread::Gone => state.stats.gone += 1,
                Unread::Corrupted => state.stats.corrupted += 1,
            }
            state.kill(self.hash, |now| now.place == self.entry.place);
            match unread {
                Unread::Corrupted => inner.corrupted(pointer),
                _ => LogError::Gone,
            }
        })
    }
}

impl State {
    fn is_there(&self, pointer: Pointer) -> bool {
        pointer.epoch != 0 && self.segments.epoch(pointer.segment) == pointer.epoch
    }
}

impl<D: Device, R: Rt> Inner<D, R> {
    fn corrupted(&self, pointer: Pointer) -> LogError {
        let offset = self.layout.byte_at(pointer.segment, pointer.position);
        LogError::Corrupted { device: self.device.name().into(), offset }
    }

    /// Reads and checks the record the index holds for `key`; the body of a small object too.
    pub(super) async fn read_current(&self, hash: u64, key: &[u8]) -> Result<Option<Held>, LogError> {
        Ok(self.read_entry(hash, key).await?.ok())
    }

    async fn read_entry(&self, hash: u64, key: &[u8]) -> Result<Result<Held, Miss>, LogError> {
        for _ in 0..LOOKUP_TRIES {
            let (entry, pointer, span) = {
                let state = self.state.borrow();
                state.check_readable()?;
                let Some(entry) = state.index.get(hash) else { return Ok(Err(Miss::Absent)) };
                let Place::Record { segment, position, span, live: true } = entry.place else {
                    return Ok(Err(Miss::Removed));
                };
                (entry, Pointer { segment, epoch: state.segments.epoch(segment), position }, usize::from(span))
            };
            let (header, record) = match self.read_checked(pointer, span).await {
                Ok(read) => read,
                // Re-inserted or replaced meanwhile: the index knows.
                Err(Unread::Gone) => continue,
                Err(Unread::Failed(failed)) => return Err(failed),
                Err(Unread::Corrupted) => return Ok(Err(self.drop_corrupted(hash, &entry, pointer))),
            };
            if !matches!(header.kind, Kind::Object | Kind::Commit) {
                return Ok(Err(self.drop_corrupted(hash, &entry, pointer)));
            }
            if header.hash != hash || record[RECORD_HEADER..header.meta_at()] != *key {
                self.state.borrow_mut().stats.collisions += 1;
                return Ok(Err(Miss::Collision));
            }
            return Ok(Ok(Held { entry, header, record }));
        }
        self.state.borrow_mut().stats.gone += 1;
        Ok(Err(Miss::Gone))
    }

    fn drop_corrupted(&self, hash: u64, entry: &Entry, pointer: Pointer) -> Miss {
        tracing::warn!(error = %self.corrupted(pointer), "object dropped");
        let mut state = self.state.borrow_mut();
        state.stats.corrupted += 1;
        state.kill(hash, |now| now.place == entry.place);
        Miss::Corrupted
    }

    /// [`Inner::read_record`] that also checks that all of the record is there, and the checksum of what it carries:
    /// the body of an object, the payload of a chunk or map.
    pub(super) async fn read_checked(&self, pointer: Pointer, span: usize) -> Result<(RecordHeader, Bytes), Unread> {
        let (header, record) = self.read_record(pointer, span).await?;
        let whole = record.get(..header.record_bytes(&self.layout)).ok_or(Unread::Corrupted)?;
        let carries = matches!(header.kind, Kind::Object | Kind::Chunk | Kind::Map);
        if carries
            && !self.config.sabotage.skip_body_checksum
            && crc32fast::hash(&whole[header.pointers_at()..]) != header.checksum
        {
            return Err(Unread::Corrupted);
        }
        Ok((header, record))
    }

    /// Reads what begins at `pointer` and spans so many pages, from the write buffer or the device, and checks its
    /// header. The bytes begin with the record; the caller checks that they hold all of it.
    async fn read_record(&self, pointer: Pointer, span: usize) -> Result<(RecordHeader, Bytes), Unread> {
        let at = self.layout.byte_at(pointer.segment, pointer.position);
        let page_at = at / PAGE as u64 * PAGE as u64;
        let in_ram = {
            let state = self.state.borrow();
            state.check_readable().map_err(Unread::Failed)?;
            if !state.is_there(pointer) {
                return Err(Unread::Gone);
            }
            state.buffer.peek(pointer, span * PAGE)
        };
        let bytes = match in_ram {
            Some(bytes) => bytes,
            None => {
                if span == 0 || span * PAGE > IO_MAX || page_at + (span * PAGE) as u64 > self.device.len() {
                    return Err(Unread::Corrupted);
                }
                let block = self.device.read(page_at, span * PAGE).await;
                if !self.state.borrow().is_there(pointer) {
                    return Err(Unread::Gone);
                }
                let block = block.map_err(|failed| Unread::Failed(LogError::Device(failed)))?;
                Bytes::from_owner(block).slice((at - page_at) as usize..)
            }
        };
        let header = RecordHeader::decode(&self.layout, &bytes);
        let here = header.filter(|header| header.epoch == pointer.epoch && header.position == pointer.position);
        Ok((here.ok_or(Unread::Corrupted)?, bytes))
    }
}
