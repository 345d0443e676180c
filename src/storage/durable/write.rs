//! Writing a durable object: the body into the manifest or into a blob, then the commit.

use std::{rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use engine::{clock::Clock, rt::Rt};

use super::{CAS_RETRIES_MAX, Inner, unavailable, unreadable};
use crate::{
    cache::{CacheError, CacheKey, CacheMeta, HEADERS_BYTES_MAX, MissHandler, Precondition, Stored, Tier, Version},
    reason::Reason,
    storage::traits::{BlobId, BlobStore, BlobWrite, Body, IndexStore, Manifest, Swap},
};

/// A write to L3. Keeps at most `inline_bytes_max` bytes before it opens a blob. Dropped before its commit it
/// leaves nothing that a reader could find; what it wrote goes with the blob handle or the sweep.
pub struct DurableMiss<B: BlobStore, I, R> {
    inner: Rc<Inner<B, I, R>>,
    key: CacheKey,
    announced: Option<u64>,
    meta: CacheMeta,
    precondition: Precondition,
    began: Duration,
    length: u64,
    checksum: crc32fast::Hasher,
    whole: bool,
    staged: Staged<B::Write>,
    upload: Upload<B, I, R>,
}

enum Staged<W> {
    Inline(BytesMut),
    Blob(W),
}

/// The blob of a write under way: known to the sweep, which leaves it alone.
struct Upload<B, I, R> {
    inner: Rc<Inner<B, I, R>>,
    id: Option<BlobId>,
}

impl<B, I, R> Drop for Upload<B, I, R> {
    fn drop(&mut self) {
        if let Some(id) = &self.id {
            self.inner.uploads.borrow_mut().remove(id);
        }
    }
}

impl<B: BlobStore, I: IndexStore, R: Rt> DurableMiss<B, I, R> {
    pub(super) async fn begin(
        inner: Rc<Inner<B, I, R>>,
        key: CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<Self, CacheError> {
        let mut miss = Self {
            key,
            announced: meta.length,
            precondition,
            began: inner.rt.clock().elapsed(),
            length: 0,
            checksum: crc32fast::Hasher::new(),
            whole: false,
            staged: Staged::Inline(BytesMut::new()),
            upload: Upload { inner: inner.clone(), id: None },
            meta,
            inner,
        };
        if miss.announced.is_some_and(|length| length > miss.inner.settings.inline_bytes_max) {
            // Now, so that a full store says so before the body comes.
            miss.open_blob().await?;
        }
        Ok(miss)
    }

    /// Moves on from the manifest to a blob.
    async fn open_blob(&mut self) -> Result<(), CacheError> {
        let id = BlobId::fresh(self.key.hash(), self.inner.rt.random());
        self.inner.uploads.borrow_mut().insert(id.clone());
        self.upload.id = Some(id.clone());
        let failed = |failed| self.inner.refused(unreadable(failed));
        let mut blob = self.inner.blobs.put(&id, self.announced).await.map_err(failed)?;
        if let Staged::Inline(bytes) = &mut self.staged
            && !bytes.is_empty()
        {
            blob.chunk(bytes.split().freeze()).await.map_err(failed)?;
        }
        self.staged = Staged::Blob(blob);
        Ok(())
    }

    /// Makes the body durable; gives what the manifest says of it.
    async fn seal(inner: &Inner<B, I, R>, staged: Staged<B::Write>, id: Option<&BlobId>) -> Result<Body, CacheError> {
        match (staged, id) {
            (Staged::Inline(bytes), _) => Ok(Body::Inline(bytes.freeze())),
            (Staged::Blob(blob), Some(id)) => match blob.finish().await {
                Ok(_) => Ok(Body::Blob(id.clone())),
                Err(failed) => {
                    // Not yet named by anything: whether it is there or not, the object is not.
                    inner.delete_blob(id).await;
                    Err(unreadable(failed))
                }
            },
            (Staged::Blob(_), None) => Err(CacheError::Unavailable { reason: Reason::Internal, cause: None }),
        }
    }
}

impl<B: BlobStore, I: IndexStore, R: Rt> MissHandler for DurableMiss<B, I, R> {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        &mut self.meta
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        self.length += chunk.len() as u64;
        let cut = |announced| self.length > announced || (eof && self.length < announced);
        if self.whole || self.announced.is_some_and(cut) {
            return Err(self.inner.refused(CacheError::Refused(Reason::BodyCut)));
        }
        self.checksum.update(&chunk);
        if self.length > self.inner.settings.inline_bytes_max && matches!(self.staged, Staged::Inline(_)) {
            self.open_blob().await?;
        }
        match &mut self.staged {
            Staged::Inline(bytes) => bytes.extend_from_slice(&chunk),
            Staged::Blob(_) if chunk.is_empty() => {}
            Staged::Blob(blob) => {
                blob.chunk(chunk).await.map_err(|failed| self.inner.refused(unreadable(failed)))?;
            }
        }
        self.whole = eof;
        Ok(())
    }

    async fn finish(self) -> Result<Stored, CacheError> {
        let Self { inner, key, meta, precondition, began, length, checksum, whole, staged, upload, .. } = self;
        let checksum = checksum.finalize();
        let refusal = if !whole {
            Some(Reason::BodyCut)
        } else if meta.checksum.is_some_and(|announced| announced != checksum) {
            Some(Reason::BodyMismatch)
        } else if meta.headers.len() > HEADERS_BYTES_MAX {
            Some(Reason::HeadersMax)
        } else {
            None
        };
        if let Some(reason) = refusal {
            return Err(inner.refused(CacheError::Refused(reason)));
        }
        let committed = async {
            let body = Self::seal(&inner, staged, upload.id.as_ref()).await?;
            let draft = Manifest {
                path: key.path().clone(),
                version: meta.version,
                body,
                length,
                checksum,
                created_ms: meta.created_ms,
                expires_ms: meta.expires_ms,
                client_flags: meta.client_flags,
                headers: meta.headers,
                tags: Vec::new(),
                nonce: inner.rt.random(),
            };
            inner.commit(draft, precondition, began).await
        }
        .await;
        drop(upload);
        committed.map_err(|failed| inner.refused(failed))
    }
}

impl<B: BlobStore, I: IndexStore, R: Rt> Inner<B, I, R> {
    /// Makes `draft` the entry of its key under a version above `draft.version` and above what is there. Deletes its
    /// blob when that certainly failed.
    async fn commit(&self, draft: Manifest, precondition: Precondition, began: Duration) -> Result<Stored, CacheError> {
        let (length, inline) = (draft.length, matches!(draft.body, Body::Inline(_)));
        let blob = match &draft.body {
            Body::Blob(id) => Some(id.clone()),
            Body::Inline(_) | Body::Tombstone => None,
        };
        match self.swap_in(draft, precondition, began).await {
            Ok((version, replaced)) => {
                self.count(|stats| {
                    stats.commits += 1;
                    stats.commits_inline += u64::from(inline);
                    stats.bytes_committed += length;
                });
                Ok(Stored::kept(Tier::L3, version, length, replaced))
            }
            Err(failed) => {
                if let (Some(id), false) = (blob, matches!(failed, CacheError::OutcomeUnknown { .. })) {
                    self.delete_blob(&id).await;
                }
                Err(failed)
            }
        }
    }

    /// The compare-and-swap; gives the version committed and the live one it replaced.
    async fn swap_in(
        &self,
        mut draft: Manifest,
        precondition: Precondition,
        began: Duration,
    ) -> Result<(Version, Option<Version>), CacheError> {
        for _ in 0..=CAS_RETRIES_MAX {
            let current = self.current(&draft.path).await?;
            if !precondition.holds(current.live) {
                return Err(CacheError::Precondition { current: current.live });
            }
            // After the last wait before the swap: the sweep may take the blob from `orphan_age` on.
            if self.rt.clock().elapsed().saturating_sub(began) > self.settings.orphan_age / 2 {
                return Err(CacheError::Unavailable { reason: Reason::Timeout, cause: None });
            }
            draft.version = self.versions.next(self.now_ms(), current.base().max(draft.version));
            match self.swap(&current, draft.clone()).await {
                Ok(Swap::Done) => {
                    self.retire_blob(current.entry);
                    return Ok((draft.version, current.live));
                }
                Ok(Swap::Conflict(_)) => self.count(|stats| stats.conflicts += 1),
                Err(failed) => return Err(unavailable(failed, Some(current.base()))),
            }
        }
        Err(CacheError::Unavailable { reason: Reason::Overload, cause: None })
    }

    /// Deletes a blob that nothing names. What fails here is left to the orphan sweep.
    async fn delete_blob(&self, id: &BlobId) {
        if let Err(failed) = self.blobs.delete(id).await {
            tracing::warn!(?id, error = %failed, "a blob that is not needed could not be deleted yet");
        }
    }
}
