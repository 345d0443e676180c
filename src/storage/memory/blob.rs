//! The model of a blob store.
//!
//! A `BTreeMap` of whole blobs, with a CRC-32 per block as the real stores keep it. What it believes of the medium:
//! a blob whose `finish` was not acknowledged may or may not be there after a crash, and a deletion may be undone by
//! one (nobody syncs a directory for it); what was acknowledged stays.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use engine::{clock::Clock, rt::Rt};

use super::{
    fault::{Faults, flip},
    flight::{Flight, failed},
};
use crate::{
    reason::Reason,
    storage::traits::{BlobId, BlobInfo, BlobRead, BlobStore, BlobWrite, Cursor, StoreError},
};

/// Bytes under one checksum, and the largest chunk read.
const BLOCK_BYTES: usize = 64 << 10;

/// Deletions since the last crash that the next may undo.
const DELETED_MAX: usize = 64;

/// The operations of an [`InMemoryBlobStore`] that [`Faults`] can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlobOp {
    /// [`BlobStore::get`].
    Get,
    /// [`BlobRead::chunk`].
    Read,
    /// [`BlobStore::head`].
    Head,
    /// [`BlobStore::put`].
    Put,
    /// [`BlobWrite::chunk`].
    Write,
    /// [`BlobWrite::finish`].
    Finish,
    /// [`BlobStore::delete`].
    Delete,
    /// [`BlobStore::list`].
    List,
}

/// A blob store in memory. Clones share the contents.
#[derive(Clone)]
pub struct InMemoryBlobStore<R> {
    flight: Rc<Flight<State, BlobOp, R>>,
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<BlobId, Blob>,
    deleted: VecDeque<(BlobId, Blob)>,
    bytes_max: Option<u64>,
    staged: u64,
}

#[derive(Clone)]
struct Blob {
    info: BlobInfo,
    body: Bytes,
    checksums: Rc<[u32]>,
    acknowledged: bool,
}

impl State {
    fn used(&self) -> u64 {
        self.blobs.values().map(|blob| blob.info.length).sum()
    }

    fn remove(&mut self, id: &BlobId) -> bool {
        let Some(blob) = self.blobs.remove(id) else { return false };
        if self.deleted.len() == DELETED_MAX {
            self.deleted.pop_front();
        }
        self.deleted.push_back((id.clone(), blob));
        true
    }
}

impl<R: Rt> InMemoryBlobStore<R> {
    /// An empty store that takes its time, and any latency, from `rt`.
    #[must_use]
    pub fn new(rt: R) -> Self {
        Self { flight: Flight::new(rt, State::default()) }
    }

    /// The plan of faults.
    #[must_use]
    pub fn faults(&self) -> &Faults<BlobOp> {
        &self.flight.faults
    }

    /// Makes every operation take a random time within `latency`, half before and half after its effect.
    pub fn set_latency(&self, latency: Option<Range<Duration>>) {
        self.flight.set_latency(latency);
    }

    /// Refuses bodies beyond `bytes_max` in all with [`Reason::QuotaFull`].
    pub fn set_bytes_max(&self, bytes_max: Option<u64>) {
        self.flight.state.borrow_mut().bytes_max = bytes_max;
    }

    /// Loses power: keeps what was acknowledged and, by `seed`, some of what was not.
    pub fn crash(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        self.flight.crash(&mut random);
        let mut state = self.flight.state.borrow_mut();
        state.blobs.retain(|_, blob| blob.acknowledged || random.bool());
        for (id, blob) in std::mem::take(&mut state.deleted) {
            if random.bool() {
                state.blobs.entry(id).or_insert(blob);
            }
        }
        state.blobs.values_mut().for_each(|blob| blob.acknowledged = true);
        state.staged = 0;
    }

    /// Damages one byte of a stored blob, as a disk does; `false`: it has no such byte.
    pub fn damage(&self, id: &BlobId, offset: u64) -> bool {
        let mut state = self.flight.state.borrow_mut();
        let Some(blob) = state.blobs.get_mut(id).filter(|blob| offset < blob.info.length) else { return false };
        let mut body = BytesMut::from(&blob.body[..]);
        body[usize::try_from(offset).unwrap_or(0)] ^= 0x10;
        blob.body = body.freeze();
        true
    }

    /// Every blob held, in the order of their names.
    #[must_use]
    pub fn ids(&self) -> Vec<BlobId> {
        self.flight.state.borrow().blobs.keys().cloned().collect()
    }
}

impl<R: Rt> BlobStore for InMemoryBlobStore<R> {
    type Read = InMemoryBlobRead<R>;
    type Write = InMemoryBlobWrite<R>;

    async fn get(&self, id: &BlobId, range: Option<Range<u64>>) -> Result<Option<Self::Read>, StoreError> {
        self.flight.read(BlobOp::Get).await?;
        let state = self.flight.state.borrow();
        let Some(blob) = state.blobs.get(id).cloned() else { return Ok(None) };
        let range = range.unwrap_or(0..blob.info.length);
        if range.start > range.end || range.end > blob.info.length {
            return Err(failed(Reason::Internal));
        }
        Ok(Some(InMemoryBlobRead { flight: self.flight.clone(), blob, range }))
    }

    async fn head(&self, id: &BlobId) -> Result<Option<BlobInfo>, StoreError> {
        self.flight.read(BlobOp::Head).await?;
        Ok(self.flight.state.borrow().blobs.get(id).map(|blob| blob.info.clone()))
    }

    async fn put(&self, id: &BlobId, length: Option<u64>) -> Result<Self::Write, StoreError> {
        self.flight.read(BlobOp::Put).await?;
        let write = InMemoryBlobWrite { flight: self.flight.clone(), id: id.clone(), body: BytesMut::new() };
        write.check_room(length.unwrap_or(0))?;
        Ok(write)
    }

    async fn delete(&self, id: &BlobId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.flight.mutate(BlobOp::Delete, move |state| state.remove(&id)).await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<(Vec<BlobInfo>, Option<Cursor>), StoreError> {
        self.flight.read(BlobOp::List).await?;
        let state = self.flight.state.borrow();
        let after = cursor.as_ref().map_or(&b""[..], |cursor| &cursor.0);
        let mut rest = state.blobs.values().filter(|blob| blob.info.id.as_str().as_bytes() > after);
        let page: Vec<_> = rest.by_ref().take(limit).map(|blob| blob.info.clone()).collect();
        let next = rest.next().and(page.last()).map(|last| Cursor(Bytes::copy_from_slice(last.id.as_str().as_bytes())));
        Ok((page, next))
    }
}

/// A read of an [`InMemoryBlobStore`].
pub struct InMemoryBlobRead<R> {
    flight: Rc<Flight<State, BlobOp, R>>,
    blob: Blob,
    range: Range<u64>,
}

impl<R: Rt> BlobRead for InMemoryBlobRead<R> {
    fn length(&self) -> u64 {
        self.blob.info.length
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let wrong = self.flight.read(BlobOp::Read).await?;
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let start = at(self.range.start);
        let index = start / BLOCK_BYTES;
        let block = index * BLOCK_BYTES..self.blob.body.len().min((index + 1) * BLOCK_BYTES);
        if crc32fast::hash(&self.blob.body[block.clone()]) != self.blob.checksums[index] {
            return Err(StoreError::Corrupted { what: format!("block {index} of blob {:?}", self.blob.info.id) });
        }
        let chunk = self.blob.body.slice(start..block.end.min(at(self.range.end)));
        self.range.start += chunk.len() as u64;
        Ok(Some(if wrong { flip(&chunk) } else { chunk }))
    }
}

/// A write of an [`InMemoryBlobStore`].
pub struct InMemoryBlobWrite<R> {
    flight: Rc<Flight<State, BlobOp, R>>,
    id: BlobId,
    body: BytesMut,
}

impl<R> InMemoryBlobWrite<R> {
    fn check_room(&self, more: u64) -> Result<(), StoreError> {
        let state = self.flight.state.borrow();
        match state.bytes_max {
            Some(bytes_max) if state.used() + state.staged + more > bytes_max => {
                Err(StoreError::Full { reason: Reason::QuotaFull })
            }
            _ => Ok(()),
        }
    }
}

impl<R> Drop for InMemoryBlobWrite<R> {
    fn drop(&mut self) {
        // A crash may have zeroed it.
        let mut state = self.flight.state.borrow_mut();
        state.staged = state.staged.saturating_sub(self.body.len() as u64);
    }
}

impl<R: Rt> BlobWrite for InMemoryBlobWrite<R> {
    async fn chunk(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.flight.read(BlobOp::Write).await?;
        self.check_room(bytes.len() as u64)?;
        self.flight.state.borrow_mut().staged += bytes.len() as u64;
        self.body.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(mut self) -> Result<BlobInfo, StoreError> {
        let flight = self.flight.clone();
        let body = std::mem::take(&mut self.body).freeze();
        let length = body.len() as u64;
        {
            let mut state = flight.state.borrow_mut();
            state.staged = state.staged.saturating_sub(length);
        }
        let info =
            BlobInfo { id: self.id.clone(), length, stored_bytes: length, created_ms: flight.rt.clock().wall_ms() };
        let checksums = body.chunks(BLOCK_BYTES).map(crc32fast::hash).collect();
        let blob = Blob { info: info.clone(), body, checksums, acknowledged: false };
        flight.mutate(BlobOp::Finish, move |state| drop(state.blobs.insert(blob.info.id.clone(), blob))).await?;
        if let Some(blob) = flight.state.borrow_mut().blobs.get_mut(&self.id) {
            blob.acknowledged = true;
        }
        Ok(info)
    }
}
