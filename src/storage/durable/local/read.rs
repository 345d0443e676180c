//! Reading a blob file: whole blocks, each checked before any of its bytes leave.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use engine::clock::Clock;

use super::{
    super::{
        blob_format::{self as format, BLOCK_BYTES, FRAME_BYTES},
        pool::Pool,
        room::{failed, panicked},
    },
    BATCH_BLOCKS, Files, LocalBlobStore, read_ends,
};
use crate::{
    reason::Reason,
    storage::traits::{BlobId, BlobRead, StoreError},
};

/// An open blob file. A blob that is deleted meanwhile is read to its end.
pub struct LocalBlobRead {
    files: Arc<Files>,
    pool: Pool,
    file: Arc<File>,
    id: BlobId,
    length: u64,
    /// What is left of the range to read from disk.
    rest: Range<u64>,
    /// Read, checked and not yet given: at most [`BATCH_BLOCKS`] blocks.
    ready: VecDeque<Bytes>,
}

impl LocalBlobRead {
    pub(super) async fn open<C: Clock>(
        store: &LocalBlobStore<C>,
        id: BlobId,
        range: Option<Range<u64>>,
    ) -> Result<Option<Self>, StoreError> {
        let wanted = id.clone();
        let opened = store.on_disk(move |files| {
            let file = match File::open(files.path(&wanted)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file.map_err(failed)?,
            };
            let file_length = file.metadata().map_err(failed)?.len();
            let trailer = read_ends(&file, &wanted, file_length)?.map_err(|what| StoreError::Corrupted { what })?;
            Ok(Some((file, trailer.length)))
        });
        let Some((file, length)) = opened.await? else { return Ok(None) };
        let rest = range.unwrap_or(0..length);
        if rest.start > rest.end || rest.end > length {
            return Err(StoreError::Failed(Arc::new(OutOfRange { range: rest, length })));
        }
        let (files, pool) = (store.files.clone(), store.pool.clone());
        Ok(Some(Self { files, pool, file: Arc::new(file), id, length, rest, ready: VecDeque::new() }))
    }

    /// The next blocks of the range, checked.
    async fn read_batch(&mut self) -> Result<(), StoreError> {
        let block_bytes = BLOCK_BYTES as u64;
        let first = self.rest.start / block_bytes;
        let last = self.rest.end.div_ceil(block_bytes).min(first + BATCH_BLOCKS as u64);
        let (files, file, id, length) = (self.files.clone(), self.file.clone(), self.id.clone(), self.length);
        let job = move || read_blocks(&files, &file, &id, first..last, length);
        let blocks = self.pool.run(job).await.unwrap_or_else(|| Err(panicked()))?;
        for (i, block) in blocks.into_iter().enumerate() {
            let at = (first + i as u64) * block_bytes;
            let within =
                |offset: u64| usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX).min(block.len());
            let (start, end) = (within(self.rest.start), within(self.rest.end));
            self.ready.push_back(block.slice(start..end));
            self.rest.start += (end - start) as u64;
        }
        Ok(())
    }
}

/// Reads and checks a run of blocks.
fn read_blocks(
    files: &Files,
    file: &File,
    id: &BlobId,
    blocks: Range<u64>,
    length: u64,
) -> Result<Vec<Bytes>, StoreError> {
    let frames = format::frames(blocks.clone(), length);
    let mut bytes = vec![0; usize::try_from(frames.end - frames.start).unwrap_or(0)];
    file.read_exact_at(&mut bytes, frames.start).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => StoreError::Corrupted { what: format!("blob {id:?} became shorter") },
        _ => failed(error),
    })?;
    files.counts.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    let mut bytes = Bytes::from(bytes);
    let mut checked = Vec::new();
    for block in blocks {
        let frame = bytes.split_to(bytes.len().min(FRAME_BYTES));
        let length = format::check_frame(id, block, &frame).map_err(|what| StoreError::Corrupted { what })?;
        checked.push(frame.slice(..length));
    }
    Ok(checked)
}

impl BlobRead for LocalBlobRead {
    fn length(&self) -> u64 {
        self.length
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.ready.is_empty() && !self.rest.is_empty() {
            self.read_batch().await?;
        }
        Ok(self.ready.pop_front())
    }
}

/// A range that is not within the blob: a caller's mistake.
#[derive(Debug, thiserror::Error)]
#[error("range {range:?} of a blob of {length} bytes ({})", Reason::Internal)]
struct OutOfRange {
    range: Range<u64>,
    length: u64,
}
