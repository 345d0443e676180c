//! Writing a blob file: framed as it comes, durable and named at the end.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use bytes::{Bytes, BytesMut};
use engine::clock::Clock;

use super::{
    super::{
        blob_format::{self as format, BLOCK_BYTES, FRAME_BYTES, HEADER_BYTES, TRAILER_BYTES, Trailer},
        room::{Reservation, failed},
    },
    BATCH_BLOCKS, Files, LocalBlobStore,
};
use crate::storage::traits::{BlobId, BlobInfo, BlobWrite, StoreError};

/// A blob file under its temporary name. Dropped unfinished, the file goes and its room is given back.
pub struct LocalBlobWrite<C: Clock> {
    store: LocalBlobStore<C>,
    id: BlobId,
    /// `None` once `finish` took it over.
    draft: Option<Draft>,
    /// Framed bytes not yet written: at most a batch and a header.
    framed: BytesMut,
    /// Where the block being filled begins in `framed`.
    block_at: usize,
    block: u64,
    /// Where `framed` begins in the file.
    offset: u64,
    length: u64,
    table: crc32fast::Hasher,
}

/// The file on disk, and the room it takes, which is given back when the file is gone and not before.
struct Draft {
    file: Arc<File>,
    /// `None` once it has its final name.
    path: Option<PathBuf>,
    reservation: Reservation,
}

impl Drop for Draft {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "a temporary file stays until the next start");
        }
    }
}

impl<C: Clock> LocalBlobWrite<C> {
    pub(super) async fn begin(store: &LocalBlobStore<C>, id: BlobId, length: Option<u64>) -> Result<Self, StoreError> {
        let mut reservation = store.files.room.reservation();
        let bytes = format::file_bytes(length.unwrap_or(0));
        reservation.raise_to(bytes)?;
        let name = store.files.names.fetch_add(1, Ordering::Relaxed);
        let path = store.files.tmp.join(format!("{name:016x}"));
        let temporary = path.clone();
        let draft = store.on_disk(move |files| {
            files.room.check_disk(bytes)?;
            let file = File::create_new(&temporary).map_err(failed)?;
            Ok(Draft { file: Arc::new(file), path: Some(temporary), reservation })
        });
        let draft = draft.await?;
        let framed = BytesMut::from(&format::header(&id)[..]);
        Ok(Self {
            store: store.clone(),
            id,
            draft: Some(draft),
            block_at: framed.len(),
            framed,
            block: 0,
            offset: 0,
            length: 0,
            table: crc32fast::Hasher::new(),
        })
    }

    /// Ends the block being filled with its checksum.
    fn close_block(&mut self) {
        let checksum = format::block_checksum(&self.id, self.block, &self.framed[self.block_at..]).to_le_bytes();
        self.table.update(&checksum);
        self.framed.extend_from_slice(&checksum);
        self.block_at = self.framed.len();
        self.block += 1;
    }

    /// Takes what fits into the block being filled.
    fn fill(&mut self, bytes: &mut Bytes) {
        let room = BLOCK_BYTES - (self.framed.len() - self.block_at);
        let part = bytes.split_to(room.min(bytes.len()));
        self.length += part.len() as u64;
        self.framed.extend_from_slice(&part);
        if self.framed.len() - self.block_at == BLOCK_BYTES {
            self.close_block();
        }
    }

    /// Writes all whole blocks.
    async fn flush(&mut self) -> Result<(), StoreError> {
        let Some(draft) = &mut self.draft else { return Err(failed(io::ErrorKind::BrokenPipe.into())) };
        let bytes = self.framed.split_to(self.block_at).freeze();
        let offset = self.offset;
        let end = offset + bytes.len() as u64;
        draft.reservation.raise_to(end + (FRAME_BYTES + TRAILER_BYTES) as u64)?;
        let file = draft.file.clone();
        self.block_at = 0;
        self.offset = end;
        self.store
            .on_disk(move |files| {
                files.room.check_disk(bytes.len() as u64)?;
                files.write(&file, &bytes, offset)
            })
            .await
    }
}

impl Files {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        file.write_all_at(bytes, offset).map_err(failed)?;
        self.counts.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the rest, makes the file durable and gives it its name.
    fn commit(&self, mut draft: Draft, id: &BlobId, rest: &[u8], offset: u64) -> Result<(), StoreError> {
        self.room.check_disk(rest.len() as u64)?;
        self.write(&draft.file, rest, offset)?;
        self.sync(&draft.file).map_err(failed)?;
        let dir = self.make_fan(id).map_err(failed)?;
        if let Some(path) = &draft.path {
            fs::rename(path, self.path(id)).map_err(failed)?;
        }
        draft.path = None;
        draft.reservation.commit(offset + rest.len() as u64);
        // It has its name now; whether that survives a crash is not known if this fails.
        self.sync_dir(&dir).map_err(|error| StoreError::Unknown(Arc::new(error)))
    }
}

impl<C: Clock> BlobWrite for LocalBlobWrite<C> {
    async fn chunk(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            self.fill(&mut bytes);
            if self.block_at >= BATCH_BLOCKS * FRAME_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<BlobInfo, StoreError> {
        if self.framed.len() > self.block_at {
            self.close_block();
        }
        let trailer = Trailer {
            length: self.length,
            created_ms: self.store.clock.wall_ms(),
            table: std::mem::take(&mut self.table).finalize(),
        };
        self.framed.extend_from_slice(&trailer.encode(&self.id));
        let stored_bytes = self.offset + self.framed.len() as u64;
        let Some(mut draft) = self.draft.take() else { return Err(failed(io::ErrorKind::BrokenPipe.into())) };
        if let Err(full) = draft.reservation.raise_to(stored_bytes) {
            self.draft = Some(draft);
            return Err(full);
        }
        let (id, rest, offset) = (self.id.clone(), self.framed.split().freeze(), self.offset);
        let store = self.store.clone();
        store.on_disk(move |files| files.commit(draft, &id, &rest, offset)).await?;
        let id = self.id.clone();
        Ok(BlobInfo { id, length: trailer.length, stored_bytes, created_ms: trailer.created_ms })
    }
}

impl<C: Clock> Drop for LocalBlobWrite<C> {
    fn drop(&mut self) {
        let Some(draft) = self.draft.take() else { return };
        self.store.pool.clean_up(move || drop(draft));
    }
}

const _: () = assert!(HEADER_BYTES < FRAME_BYTES, "a header and a batch are bounded by a batch and a frame");
