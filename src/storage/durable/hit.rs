//! Reading a durable object: the inline body, or the blob its manifest names.

use std::{ops::Range, rc::Rc};

use bytes::{Bytes, BytesMut};
use engine::rt::Rt;

use super::Inner;
use crate::{
    cache::{COPY_BYTES_MAX, CacheError, HitHandler, Tier},
    reason::Reason,
    storage::traits::{BlobId, BlobRead, BlobStore, Body, IndexStore, Manifest, StoreError},
};

/// A hit in L3. A blob is opened by the first read, so that a hit nobody reads costs no file.
pub struct DurableHit<B: BlobStore, I, R> {
    inner: Rc<Inner<B, I, R>>,
    length: u64,
    checksum: u32,
    rest: Range<u64>,
    /// Checksum so far, while it is the whole body that is read.
    whole: Option<crc32fast::Hasher>,
    source: Source<B::Read>,
    begun: bool,
}

enum Source<O> {
    Inline(Bytes),
    Closed(BlobId),
    Open(O),
    /// Damaged, gone or failed: nothing more is given.
    Cut,
}

impl<B: BlobStore, I: IndexStore, R: Rt> DurableHit<B, I, R> {
    /// `None`: the inline body is not what the manifest says.
    pub(super) fn new(inner: Rc<Inner<B, I, R>>, manifest: Manifest) -> Option<Self> {
        let Manifest { length, checksum, body, .. } = manifest;
        let source = match body {
            Body::Inline(bytes) if bytes.len() as u64 == length && crc32fast::hash(&bytes) == checksum => {
                Source::Inline(bytes)
            }
            Body::Blob(id) => Source::Closed(id),
            Body::Inline(_) | Body::Tombstone => return None,
        };
        let whole = Some(crc32fast::Hasher::new());
        Some(Self { inner, length, checksum, rest: 0..length, whole, source, begun: false })
    }

    fn take_inline(&mut self) -> Option<Bytes> {
        let Source::Inline(bytes) = &self.source else { return None };
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.slice(at(self.rest.start)..at(self.rest.end));
        self.rest.start = self.rest.end;
        Some(rest)
    }

    async fn open(&mut self) -> Result<(), CacheError> {
        let Source::Closed(id) = &self.source else { return Ok(()) };
        let range = self.whole.is_none().then(|| self.rest.clone());
        let blob = self.inner.blobs.get(id, range).await.map_err(|failed| self.failed(failed))?;
        let Some(blob) = blob else {
            self.inner.count(|stats| stats.blobs_missing += 1);
            return Err(CacheError::Gone);
        };
        if blob.length() != self.length {
            return Err(self.damaged(format!("blob {id:?} has {} bytes, its manifest {}", blob.length(), self.length)));
        }
        self.source = Source::Open(blob);
        Ok(())
    }

    async fn read_blob(&mut self) -> Result<Bytes, CacheError> {
        self.open().await?;
        let Source::Open(blob) = &mut self.source else { return Err(CacheError::Gone) };
        let chunk = match blob.chunk().await {
            Ok(chunk) => chunk.unwrap_or_default(),
            Err(failed) => return Err(self.failed(failed)),
        };
        if chunk.is_empty() || chunk.len() as u64 > self.rest.end - self.rest.start {
            return Err(self.damaged("a blob that is not as long as it said".into()));
        }
        self.rest.start += chunk.len() as u64;
        if let Some(whole) = &mut self.whole {
            whole.update(&chunk);
            // Before the last chunk leaves: after it the reader has a whole body.
            if self.rest.is_empty() && whole.clone().finalize() != self.checksum {
                return Err(self.damaged("a body with another checksum than its manifest".into()));
            }
        }
        Ok(chunk)
    }

    fn damaged(&self, what: String) -> CacheError {
        self.inner.count(|stats| stats.corrupted += 1);
        tracing::error!(what, "a damaged body was cut");
        CacheError::Corrupted { what }
    }

    fn failed(&self, failed: StoreError) -> CacheError {
        match failed {
            StoreError::Corrupted { what } => self.damaged(what),
            failed => super::unreadable(failed),
        }
    }
}

impl<B: BlobStore, I: IndexStore, R: Rt> HitHandler for DurableHit<B, I, R> {
    fn remaining(&self) -> u64 {
        self.rest.end - self.rest.start
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        if self.begun || self.rest != (0..self.length) || range.start > range.end || range.end > self.length {
            return Err(CacheError::Refused(Reason::Internal));
        }
        if range != self.rest {
            self.whole = None;
        }
        self.rest = range;
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        self.begun = true;
        if self.rest.is_empty() {
            return Ok(None);
        }
        if let Some(bytes) = self.take_inline() {
            return Ok(Some(bytes));
        }
        let chunk = self.read_blob().await;
        if chunk.is_err() {
            self.source = Source::Cut;
            // A body that was cut stays unfinished, also if its last bytes were the damaged ones.
            self.rest.start = self.rest.start.min(self.rest.end - 1);
        }
        chunk.map(Some)
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        if self.remaining() > COPY_BYTES_MAX as u64 {
            return None;
        }
        let bytes = self.take_inline()?;
        self.begun = true;
        out.extend_from_slice(&bytes);
        Some(bytes.len())
    }

    fn tier(&self) -> Tier {
        Tier::L3
    }
}
