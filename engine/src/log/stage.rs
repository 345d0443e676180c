//! Writing objects: staged in chunks, committed by one record.
//!
//! A body that fits one record together with its key and metadata is kept in RAM until the commit and then is one
//! record. A larger one goes into the log chunk by chunk, interleaved with whatever else is written; nothing points
//! at the chunks before the commit record names them, so an abandoned write is simply never found.
//!
//! The commit is one stretch without await: the owner's last check, the version check against the index, the note
//! in the ring, the record, the index. What the owner sees as committed can be read at once.

use std::rc::Rc;

use bytes::Bytes;

use super::{
    Inner, Log, LogError, State,
    format::{Kind, Layout, POINTER, Pointer, RECORD_HEADER, RecordHeader},
    index::{Entry, Place, extra},
    reader::Held,
    supersede::Note,
    writer::NoRoom,
};
use crate::{device::Device, rt::Rt};

/// Tries of [`Log::update_meta`] against writers that move the object meanwhile.
const UPDATE_TRIES: usize = 4;

/// What is committed besides the body.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// Hash of the key.
    pub hash: u64,
    /// The key, at most 64 KiB - 1.
    pub key: &'a [u8],
    /// Its version.
    pub version: u64,
    /// The owner's metadata, opaque.
    pub meta: &'a [u8],
    /// Creation, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Expiry, in milliseconds since the epoch; `None` never.
    pub expires_ms: Option<u64>,
    /// The owner's, given back on a hit and at recovery.
    pub flags: u16,
    /// The commit will be acknowledged before it is flushed, and nobody can check the version later (a cache-only
    /// namespace): an older copy on flash must not survive a kill. Notes the version in the superseding ring when
    /// there could be one.
    pub note: bool,
}

/// What a commit made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Body bytes.
    pub length: u64,
    /// CRC-32 of the body.
    pub checksum: u32,
}

/// An object being written. Dropping it leaves nothing readable and gives its bytes back to the accounts.
pub struct StagedWrite<D: Device, R: Rt> {
    inner: Rc<Inner<D, R>>,
    hash: u64,
    write_id: u64,
    /// The part of the body not yet in the log, at most a chunk.
    tail: Vec<u8>,
    /// The chunks in the log, and the maps that name them once they are too many for a commit record.
    pointers: Vec<Pointer>,
    maps: Vec<Pointer>,
    /// Body bytes in the log.
    chunked: u64,
    crc: crc32fast::Hasher,
    /// Bytes taken off the accounts by the commit, or never put on.
    settled: bool,
}

impl<D: Device, R: Rt> Log<D, R> {
    /// Begins to write an object, of `length` bytes if that is known.
    ///
    /// # Errors
    /// [`LogError::TooLarge`] by declared length; poisoned or closed.
    pub fn stage(&self, hash: u64, length: Option<u64>) -> Result<StagedWrite<D, R>, LogError> {
        let inner = self.inner.clone();
        inner.state.borrow().check_open()?;
        inner.check_length(length.unwrap_or(0))?;
        let write_id = inner.rt.random();
        Ok(StagedWrite {
            inner,
            hash,
            write_id,
            tail: Vec::new(),
            pointers: Vec::new(),
            maps: Vec::new(),
            chunked: 0,
            crc: crc32fast::Hasher::new(),
            settled: false,
        })
    }

    /// Writes a whole object without waiting: for what leaves RAM and may be lost. All or nothing.
    ///
    /// # Errors
    /// [`LogError::NoRoom`] when it would have to wait; otherwise as a staged write.
    pub fn try_append(&self, commit: &Commit<'_>, body: &[u8]) -> Result<Committed, LogError> {
        let mut staged = self.stage(commit.hash, Some(body.len() as u64))?;
        let inner = self.inner.clone();
        let mut borrowed = inner.state.borrow_mut();
        let state = &mut *borrowed;
        let mut committed = || -> Result<Result<Committed, NoRoom>, LogError> {
            // Asked first: there is no point in chunks of what is not wanted.
            inner.check_version(state, commit)?;
            inner.check_head(commit)?;
            if body.len() <= inner.inline_bytes_max(commit) {
                staged.tail = body.to_vec();
                staged.crc.update(body);
            } else {
                for chunk in body.chunks(inner.layout.chunk_bytes) {
                    staged.crc.update(chunk);
                    if let Err(full) = staged.put_chunk(state, chunk) {
                        return Ok(Err(full));
                    }
                }
                while staged.wants_map(commit) {
                    if let Err(full) = staged.put_map(state) {
                        return Ok(Err(full));
                    }
                }
            }
            staged.publish(state, commit)
        };
        let result = match committed() {
            Ok(Ok(committed)) => Ok(committed),
            Ok(Err(_)) => {
                state.stats.no_room += 1;
                Err(LogError::NoRoom)
            }
            Err(refused) => Err(refused),
        };
        staged.settle(state);
        result
    }

    /// Makes every copy of `key` below `version` on flash dead: it is not served from now on, and does not come back
    /// after a kill (a note in the ring until the tombstone is on flash) or, once [`Log::flush`] was awaited, a
    /// power cut. A copy of exactly `version` is left alone. Writes nothing, and says `false`, when no older copy
    /// can be there. Waits for room; once it returned or was polled to its effect, dropping it changes nothing.
    ///
    /// # Errors
    /// Poisoned or closed.
    pub async fn tombstone(&self, hash: u64, key: &[u8], version: u64) -> Result<bool, LogError> {
        let inner = &self.inner;
        inner.until_room(|state| Ok(inner.bury(state, hash, key, version, true))).await
    }

    /// [`Log::tombstone`] that does not wait.
    ///
    /// # Errors
    /// [`LogError::NoRoom`] when it would have to; poisoned or closed.
    pub fn try_tombstone(&self, hash: u64, key: &[u8], version: u64) -> Result<bool, LogError> {
        let mut state = self.inner.state.borrow_mut();
        state.check_open()?;
        self.inner.bury(&mut state, hash, key, version, true).map_err(|_| {
            state.stats.no_room += 1;
            LogError::NoRoom
        })
    }

    /// Replaces metadata and expiry of the object of exactly `version`, whose body is named again, not copied (but
    /// for bodies that share one record with their key). `false`: that version is not here, or its expiry is at or
    /// before `now_ms`: what has ended is not brought back. Flags and creation stay.
    ///
    /// # Errors
    /// The object could not be read, the new head is too large, or poisoned or closed.
    pub async fn update_meta(
        &self,
        hash: u64,
        key: &[u8],
        version: u64,
        meta: &[u8],
        expires_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<bool, LogError> {
        let inner = &self.inner;
        for _ in 0..UPDATE_TRIES {
            let same = |held: &Held| held.header.version == version && !held.header.is_expired(now_ms);
            let Some(held) = inner.read_current(hash, key).await?.filter(same) else { return Ok(false) };
            let mut header = RecordHeader {
                meta_bytes: u32::try_from(meta.len()).unwrap_or(u32::MAX),
                expires_ms: expires_ms.map_or(0, |expires| expires.max(1)),
                ..held.header
            };
            let mut rest = held.record.slice(held.header.pointers_at()..held.header.record_bytes(&inner.layout));
            let max = inner.layout.record_bytes_max - RECORD_HEADER;
            if held.header.kind == Kind::Object && key.len() + meta.len() + rest.len() > max {
                // The body does not fit beside the longer metadata any more: it becomes a chunk of its own.
                let part = chunk_header(hash, inner.rt.random(), 0, &rest);
                let pointer = inner.until_room(|state| Ok(inner.append(state, part, &[&rest]))).await?;
                header.kind = Kind::Commit;
                rest = encode_pointers(&[pointer]).into();
            }
            let bytes = RECORD_HEADER + key.len() + meta.len() + rest.len();
            if bytes - RECORD_HEADER > max {
                return Err(LogError::HeadTooLarge { bytes: key.len() + meta.len(), max: max - rest.len() });
            }
            let moved = inner
                .until_room(|state| {
                    let current = state.index.get(hash);
                    let same = current.filter(|now| now.place == held.entry.place && now.version == version);
                    let Some(current) = same else { return Ok(Ok(false)) };
                    Ok(inner.append(state, header, &[key, meta, &rest]).map(|pointer| {
                        let place = inner.record_place(pointer, bytes);
                        state.publish(hash, &Entry { place, ..current });
                        true
                    }))
                })
                .await?;
            if moved {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl<D: Device, R: Rt> StagedWrite<D, R> {
    /// Takes the next part of the body; waits for room in the write buffer when a chunk is full.
    ///
    /// # Errors
    /// [`LogError::TooLarge`] in mid-stream, poisoned or closed: the write must then be dropped. Dropping the future
    /// leaves part of `bytes` written: only a drop may follow.
    pub async fn append(&mut self, mut bytes: Bytes) -> Result<(), LogError> {
        let chunk_bytes = self.inner.layout.chunk_bytes;
        let length = self.length() + bytes.len() as u64;
        self.inner.check_length(length)?;
        self.crc.update(&bytes);
        let inner = self.inner.clone();
        // A full chunk waits for the byte after it: the last chunk may yet turn out to be the whole object.
        while self.tail.len() + bytes.len() > chunk_bytes {
            if self.tail.is_empty() {
                let chunk = bytes.split_to(chunk_bytes);
                inner.until_room(|state| Ok(self.put_chunk(state, &chunk))).await?;
            } else {
                let rest = bytes.split_to(chunk_bytes - self.tail.len());
                self.tail.extend_from_slice(&rest);
                self.put_tail().await?;
            }
        }
        self.tail.extend_from_slice(&bytes);
        Ok(())
    }

    /// Body bytes taken so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.chunked + self.tail.len() as u64
    }

    /// CRC-32 of the body bytes taken so far.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        self.crc.clone().finalize()
    }

    /// Commits under `commit.version`; see [`StagedWrite::commit_if`].
    ///
    /// # Errors
    /// As [`StagedWrite::commit_if`].
    pub async fn commit(self, commit: &Commit<'_>) -> Result<Committed, LogError> {
        self.commit_if(commit, || true).await
    }

    /// Waits for room, and then, without a further await: asks `admit` (the owner's last word: a fill that was
    /// poisoned meanwhile says `false`), refuses if the index holds a newer version, writes the record and publishes
    /// it. Readable at once; on flash within the flush interval; durable after [`Log::flush`]. Dropping the future
    /// before it completes commits nothing or everything.
    ///
    /// # Errors
    /// [`LogError::Refused`], [`LogError::Superseded`], [`LogError::HeadTooLarge`]; [`LogError::Gone`] when the log
    /// lapped the body while it was staged; poisoned or closed. Nothing is readable then.
    pub async fn commit_if(
        mut self,
        commit: &Commit<'_>,
        mut admit: impl FnMut() -> bool,
    ) -> Result<Committed, LogError> {
        debug_assert_eq!(self.hash, commit.hash, "one key per staged write");
        let inner = self.inner.clone();
        inner.check_head(commit)?;
        if !self.pointers.is_empty() || self.tail.len() > inner.inline_bytes_max(commit) {
            self.put_tail().await?;
            while self.wants_map(commit) {
                inner.until_room(|state| Ok(self.put_map(state))).await?;
            }
        }
        inner
            .until_room(|state| {
                if !admit() {
                    return Err(LogError::Refused);
                }
                self.publish(state, commit)
            })
            .await
    }

    async fn put_tail(&mut self) -> Result<(), LogError> {
        let mut tail = std::mem::take(&mut self.tail);
        if tail.is_empty() {
            return Ok(());
        }
        let inner = self.inner.clone();
        inner.until_room(|state| Ok(self.put_chunk(state, &tail))).await?;
        // The next chunk is as large: no growing from nothing again.
        tail.clear();
        self.tail = tail;
        Ok(())
    }

    fn put_chunk(&mut self, state: &mut State, chunk: &[u8]) -> Result<(), NoRoom> {
        let pointer = self.put_part(state, Kind::Chunk, self.pointers.len(), chunk)?;
        self.pointers.push(pointer);
        self.chunked += chunk.len() as u64;
        Ok(())
    }

    fn put_part(&self, state: &mut State, kind: Kind, index: usize, payload: &[u8]) -> Result<Pointer, NoRoom> {
        let header = RecordHeader { kind, ..chunk_header(self.hash, self.write_id, index, payload) };
        self.inner.append(state, header, &[payload])
    }

    /// Whether the commit record cannot hold all pointers to chunks, and maps do not name them all yet.
    fn wants_map(&self, commit: &Commit<'_>) -> bool {
        let layout = &self.inner.layout;
        head_bytes(commit) + self.pointers.len() * POINTER > layout.record_bytes_max
            && self.maps.len() < self.pointers.len().div_ceil(layout.map_pointers)
    }

    fn put_map(&mut self, state: &mut State) -> Result<(), NoRoom> {
        let fan = self.inner.layout.map_pointers;
        let pointers = self.pointers.chunks(fan).nth(self.maps.len()).unwrap_or_default();
        let map = self.put_part(state, Kind::Map, self.maps.len(), &encode_pointers(pointers))?;
        self.maps.push(map);
        Ok(())
    }

    /// The commit proper.
    fn publish(&mut self, state: &mut State, commit: &Commit<'_>) -> Result<Result<Committed, NoRoom>, LogError> {
        let inner = self.inner.clone();
        inner.check_version(state, commit)?;
        // First in first out: while the first chunk is there, all are. Maps come after every chunk.
        if self.pointers.first().is_some_and(|first| state.segments.epoch(first.segment) != first.epoch) {
            state.stats.gone += 1;
            return Err(LogError::Gone);
        }
        let note = match commit.note && state.needs_tombstone(commit.hash) {
            true => match state.ring.put(Note { hash: commit.hash, version: commit.version }) {
                Some(note) => Some(note),
                None => return Ok(Err(NoRoom::Notes)),
            },
            false => None,
        };
        let length = self.length();
        let checksum = self.crc.clone().finalize();
        let header = RecordHeader {
            kind: if self.pointers.is_empty() { Kind::Object } else { Kind::Commit },
            level: u8::from(!self.maps.is_empty()),
            epoch: 0,
            position: 0,
            hash: commit.hash,
            version: commit.version,
            length,
            created_ms: commit.created_ms,
            expires_ms: commit.expires_ms.map_or(0, |expires| expires.max(1)),
            flags: commit.flags,
            checksum,
            key_bytes: commit.key.len() as u16,
            meta_bytes: commit.meta.len() as u32,
        };
        let pointers = encode_pointers(if self.maps.is_empty() { &self.pointers } else { &self.maps });
        let last: &[u8] = if self.pointers.is_empty() { &self.tail } else { &pointers };
        let pointer = match inner.append(state, header, &[commit.key, commit.meta, last]) {
            Ok(pointer) => pointer,
            Err(full) => {
                note.into_iter().for_each(|note| state.ring.free(note));
                return Ok(Err(full));
            }
        };
        note.into_iter().for_each(|note| state.buffer.bind(note));
        let place = inner.record_place(pointer, head_bytes(commit) + last.len());
        state.publish(commit.hash, &Entry { place, version: commit.version, hits: 0, suspect: false });
        state.stats.committed += 1;
        self.settled = true;
        Ok(Ok(Committed { length, checksum }))
    }

    /// Takes the bytes of an abandoned body off the accounts.
    fn settle(&mut self, state: &mut State) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        state.stats.aborted += 1;
        let payload = (self.inner.layout.chunk_bytes + RECORD_HEADER) as u64;
        for pointer in &self.pointers {
            if state.segments.epoch(pointer.segment) == pointer.epoch {
                let segment = state.segments.counters(pointer.segment);
                segment.bytes = segment.bytes.saturating_sub(payload);
            }
        }
    }
}

impl<D: Device, R: Rt> Drop for StagedWrite<D, R> {
    fn drop(&mut self) {
        if !self.settled {
            let inner = self.inner.clone();
            self.settle(&mut inner.state.borrow_mut());
        }
    }
}

fn head_bytes(commit: &Commit<'_>) -> usize {
    RECORD_HEADER + commit.key.len() + commit.meta.len()
}

fn chunk_header(hash: u64, write_id: u64, index: usize, payload: &[u8]) -> RecordHeader {
    RecordHeader {
        kind: Kind::Chunk,
        level: 0,
        epoch: 0,
        position: 0,
        hash,
        version: write_id,
        length: payload.len() as u64,
        created_ms: index as u64,
        expires_ms: 0,
        flags: 0,
        checksum: crc32fast::hash(payload),
        key_bytes: 0,
        meta_bytes: 0,
    }
}

fn encode_pointers(pointers: &[Pointer]) -> Vec<u8> {
    let mut bytes = vec![0; pointers.len() * POINTER];
    bytes.chunks_exact_mut(POINTER).zip(pointers).for_each(|(bytes, pointer)| pointer.encode(bytes));
    bytes
}

impl<D: Device, R: Rt> Inner<D, R> {
    fn check_length(&self, length: u64) -> Result<(), LogError> {
        let max = self.layout.object_bytes_max();
        if length <= max {
            return Ok(());
        }
        self.state.borrow_mut().stats.too_large += 1;
        Err(LogError::TooLarge { length, max })
    }

    /// Key and metadata must leave room for a pointer or two in the commit record.
    fn check_head(&self, commit: &Commit<'_>) -> Result<(), LogError> {
        let bytes = commit.key.len() + commit.meta.len();
        // Pointers to as many maps as the largest body of this log needs.
        let chunks = self.layout.chunks(self.layout.object_bytes_max());
        let maps = usize::try_from(chunks).unwrap_or(usize::MAX).div_ceil(self.layout.map_pointers);
        let max = (self.layout.record_bytes_max - RECORD_HEADER).saturating_sub(maps * POINTER);
        match bytes <= max && commit.key.len() <= usize::from(u16::MAX) {
            true => Ok(()),
            false => Err(LogError::HeadTooLarge { bytes, max }),
        }
    }

    fn inline_bytes_max(&self, commit: &Commit<'_>) -> usize {
        self.layout.record_bytes_max.saturating_sub(head_bytes(commit))
    }

    fn check_version(&self, state: &mut State, commit: &Commit<'_>) -> Result<(), LogError> {
        match state.index.get(commit.hash) {
            Some(entry) if entry.version > commit.version => {
                state.stats.superseded += 1;
                Err(LogError::Superseded { held: entry.version })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn record_place(&self, pointer: Pointer, bytes: usize) -> Place {
        let span = Layout::span(pointer.position, bytes) as u8;
        Place::Record { segment: pointer.segment, position: pointer.position, span, live: true }
    }

    /// Appends a tombstone where an older record may be; `noted` asks for a note in the ring until it is on flash.
    pub(super) fn bury(
        &self,
        state: &mut State,
        hash: u64,
        key: &[u8],
        version: u64,
        noted: bool,
    ) -> Result<bool, NoRoom> {
        if !state.needs_tombstone(hash) {
            return Ok(false);
        }
        let note = match noted {
            true => Some(state.ring.put(Note { hash, version }).ok_or(NoRoom::Notes)?),
            false => None,
        };
        // The key is for people; a tombstone acts by hash.
        let key = if RECORD_HEADER + key.len() <= self.layout.record_bytes_max { key } else { &[] };
        let header = RecordHeader {
            kind: Kind::Tombstone,
            level: 0,
            epoch: 0,
            position: 0,
            hash,
            version,
            length: 0,
            created_ms: 0,
            expires_ms: 0,
            flags: 0,
            checksum: 0,
            key_bytes: u16::try_from(key.len()).unwrap_or(0),
            meta_bytes: 0,
        };
        let key = &key[..usize::from(header.key_bytes)];
        let pointer = match self.append(state, header, &[key]) {
            Ok(pointer) => pointer,
            Err(full) => {
                note.into_iter().for_each(|note| state.ring.free(note));
                return Err(full);
            }
        };
        note.into_iter().for_each(|note| state.buffer.bind(note));
        state.stats.tombstones += 1;
        // An entry of this version or a newer one stays: it is newer than what is buried, or another key's.
        if state.index.get(hash).is_none_or(|entry| entry.version < version) {
            let place = Place::Tombstone { segment: pointer.segment, extra: extra(hash) };
            state.publish(hash, &Entry { place, version, hits: 0, suspect: false });
        }
        Ok(true)
    }
}
