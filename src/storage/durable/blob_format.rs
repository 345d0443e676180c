//! The bytes of a blob file. Little endian; format 1.
//!
//! ```text
//! header, 64 bytes
//!   0   8  magic "STRTBLOB"
//!   8   4  format version
//!  12   4  block bytes, 65,536
//!  16  36  blob name
//!  52   8  zero
//!  60   4  CRC-32 of bytes 0..60
//! blocks: the body in blocks of 65,536 bytes, the last one shorter and never empty, each followed by
//!       4  CRC-32 of the blob name, the block's number as u64, and the block
//! trailer, 32 bytes
//!   0   8  magic "STRTTAIL"
//!   8   8  body length
//!  16   8  when it was committed, milliseconds since the Unix epoch
//!  24   4  CRC-32 of all block checksums, as stored, in order
//!  28   4  CRC-32 of the blob name and bytes 0..28
//! ```
//!
//! The checksum follows its block, so that a body of unknown length is written in one pass and a range reads only
//! its own blocks. Name and number are in the checksum, so that a block at another place, or of another blob, does
//! not pass. The length is certain before the first block is read, and must agree with the size of the file.

use std::ops::Range;

use crate::storage::traits::BlobId;

/// The format written.
pub const VERSION: u32 = 1;
/// Body bytes under one checksum.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Bytes before the first block.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a checksum after a block.
pub const CHECKSUM_BYTES: usize = 4;
/// Bytes after the last block.
pub const TRAILER_BYTES: usize = 32;
/// A full block and its checksum.
pub const FRAME_BYTES: usize = BLOCK_BYTES + CHECKSUM_BYTES;

const MAGIC: [u8; 8] = *b"STRTBLOB";
const TAIL_MAGIC: [u8; 8] = *b"STRTTAIL";
const NAME: Range<usize> = 16..52;
const HEADER_CRC: usize = 60;
const TRAILER_CRC: usize = 28;

const _: () = assert!(HEADER_CRC + CHECKSUM_BYTES == HEADER_BYTES && TRAILER_CRC + CHECKSUM_BYTES == TRAILER_BYTES);
const _: () = assert!(BLOCK_BYTES == 65_536 && NAME.end - NAME.start == 36);

/// What a trailer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Body bytes.
    pub length: u64,
    /// When the blob was committed, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// CRC-32 of the block checksums.
    pub table: u32,
}

/// Size of the file of a body of `length` bytes.
#[must_use]
pub fn file_bytes(length: u64) -> u64 {
    let framing = HEADER_BYTES + TRAILER_BYTES;
    length.saturating_add(length.div_ceil(BLOCK_BYTES as u64) * CHECKSUM_BYTES as u64).saturating_add(framing as u64)
}

/// The body length that makes a file of `bytes`, if one does.
#[must_use]
pub fn body_bytes(bytes: u64) -> Option<u64> {
    let framed = bytes.checked_sub((HEADER_BYTES + TRAILER_BYTES) as u64)?;
    let length = framed.checked_sub(framed.div_ceil(FRAME_BYTES as u64) * CHECKSUM_BYTES as u64)?;
    (file_bytes(length) == bytes).then_some(length)
}

/// Where the frames of blocks `blocks` are in the file of a body of `length` bytes.
#[must_use]
pub fn frames(blocks: Range<u64>, length: u64) -> Range<u64> {
    let start = HEADER_BYTES as u64 + blocks.start * FRAME_BYTES as u64;
    let end = HEADER_BYTES as u64 + blocks.end * FRAME_BYTES as u64;
    start..end.min(file_bytes(length) - TRAILER_BYTES as u64)
}

/// The header of blob `id`.
#[must_use]
pub fn header(id: &BlobId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
    bytes[NAME].copy_from_slice(id.as_str().as_bytes());
    let crc = crc32fast::hash(&bytes[..HEADER_CRC]);
    bytes[HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Checks that `bytes` are the header of blob `id`.
///
/// # Errors
/// What is wrong with them.
pub fn check_header(bytes: &[u8; HEADER_BYTES], id: &BlobId) -> Result<(), String> {
    if bytes[..8] != MAGIC {
        return Err(format!("blob {id:?} does not begin as a blob does"));
    }
    if u32_at(bytes, HEADER_CRC) != crc32fast::hash(&bytes[..HEADER_CRC]) {
        return Err(format!("the header of blob {id:?} fails its checksum"));
    }
    let version = u32_at(bytes, 8);
    if version != VERSION {
        return Err(format!("blob {id:?} has format {version}, this program reads {VERSION}"));
    }
    if bytes[NAME] != *id.as_str().as_bytes() {
        let other = String::from_utf8_lossy(&bytes[NAME]);
        return Err(format!("the file of blob {id:?} is blob {other:?}"));
    }
    Ok(())
}

/// The checksum of block number `block` of blob `id`.
#[must_use]
pub fn block_checksum(id: &BlobId, block: u64, bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(id.as_str().as_bytes());
    crc.update(&block.to_le_bytes());
    crc.update(bytes);
    crc.finalize()
}

/// Checks a block and its checksum, as stored, and gives how many of the bytes are body.
///
/// # Errors
/// What is wrong with them.
pub fn check_frame(id: &BlobId, block: u64, frame: &[u8]) -> Result<usize, String> {
    let length = frame.len().saturating_sub(CHECKSUM_BYTES);
    if length == 0 || u32_at(frame, length) != block_checksum(id, block, &frame[..length]) {
        return Err(format!("block {block} of blob {id:?} fails its checksum"));
    }
    Ok(length)
}

impl Trailer {
    /// Its bytes at the end of blob `id`.
    #[must_use]
    pub fn encode(&self, id: &BlobId) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..8].copy_from_slice(&TAIL_MAGIC);
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.created_ms.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.table.to_le_bytes());
        let crc = trailer_checksum(id, &bytes);
        bytes[TRAILER_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the trailer of blob `id` from the end of a file of `file_length` bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8; TRAILER_BYTES], id: &BlobId, file_length: u64) -> Result<Self, String> {
        if bytes[..8] != TAIL_MAGIC || u32_at(bytes, TRAILER_CRC) != trailer_checksum(id, bytes) {
            return Err(format!("blob {id:?} does not end as a blob does"));
        }
        let trailer = Self { length: u64_at(bytes, 8), created_ms: u64_at(bytes, 16), table: u32_at(bytes, 24) };
        if file_bytes(trailer.length) != file_length {
            return Err(format!("blob {id:?} of {} bytes is a file of {file_length}", trailer.length));
        }
        Ok(trailer)
    }
}

fn trailer_checksum(id: &BlobId, bytes: &[u8; TRAILER_BYTES]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(id.as_str().as_bytes());
    crc.update(&bytes[..TRAILER_CRC]);
    crc.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> BlobId {
        BlobId::fresh(0x0123_4567_89ab_cdef, 0xfedc)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&header(&id())),
            "53545254424c4f420100000000000100\
             30312f303132333435363738396162636465662d303030303030303030303030\
             66656463000000000000000045e705b2"
        );
        let trailer = Trailer { length: 3, created_ms: 1_700_000_000_000, table: 0x0a0b_0c0d };
        assert_eq!(hex(&trailer.encode(&id())), "535452545441494c03000000000000000068e5cf8b0100000d0c0b0a535dd4f0");
        assert_eq!(block_checksum(&id(), 1, b"abc"), 0xa16c_ae5b);
    }

    #[test]
    fn lengths_and_files_agree() {
        for length in [0, 1, 65_535, 65_536, 65_537, 131_072, 131_073, 10_000_000] {
            assert_eq!(body_bytes(file_bytes(length)), Some(length));
            let blocks = length.div_ceil(BLOCK_BYTES as u64);
            assert_eq!(frames(0..blocks, length), HEADER_BYTES as u64..file_bytes(length) - TRAILER_BYTES as u64);
        }
        for no_file in [0, 95, 97, 100, file_bytes(65_536) + 1] {
            assert_eq!(body_bytes(no_file), None, "{no_file}");
        }
        assert_eq!(frames(1..2, 65_537), 64 + 65_540..64 + 65_540 + 5);
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let other = BlobId::fresh(0x0123_4567_89ab_cdef, 0xfedd);
        let good = header(&id());
        assert_eq!(check_header(&good, &id()), Ok(()));
        assert!(check_header(&good, &other).is_err());
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check_header(&bad, &id()).is_err(), "bit {bit}");
        }
        let trailer = Trailer { length: 3, created_ms: 5, table: 7 };
        let good = trailer.encode(&id());
        assert_eq!(Trailer::decode(&good, &id(), file_bytes(3)), Ok(trailer));
        assert!(Trailer::decode(&good, &id(), file_bytes(4)).is_err());
        assert!(Trailer::decode(&good, &other, file_bytes(3)).is_err());
        for bit in 0..TRAILER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(&bad, &id(), file_bytes(3)).is_err(), "bit {bit}");
        }
        let mut frame = b"some bytes".to_vec();
        frame.extend(block_checksum(&id(), 4, b"some bytes").to_le_bytes());
        assert_eq!(check_frame(&id(), 4, &frame), Ok(10));
        assert!(check_frame(&id(), 5, &frame).is_err() && check_frame(&other, 4, &frame).is_err());
        assert!(check_frame(&id(), 4, &frame[..3]).is_err());
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check_frame(&id(), 4, &bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_is_told_by_name() {
        let mut newer = header(&id());
        newer[8] = 2;
        let crc = crc32fast::hash(&newer[..HEADER_CRC]);
        newer[HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        assert!(check_header(&newer, &id()).is_err_and(|what| what.contains("format 2")));
    }
}
