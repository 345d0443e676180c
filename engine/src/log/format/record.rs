//! Records, pointers and footer entries. The table is at the head of the parent.

use super::{
    Layout, POINTER, RECORD_ALIGN, RECORD_HEADER, SPAN_MAX, is_sealed, put, put_ms, seal, u16_at, u32_at, u48_at,
    u64_at,
};
use crate::device::PAGE;

const MAGIC: &[u8; 2] = b"RC";

mod at {
    //! Offsets in the table of the parent.
    pub(super) const KIND: usize = 2;
    pub(super) const LEVEL: usize = 3;
    pub(super) const EPOCH: usize = 8;
    pub(super) const POSITION: usize = 12;
    pub(super) const HASH: usize = 16;
    pub(super) const VERSION: usize = 24;
    pub(super) const LENGTH: usize = 32;
    pub(super) const CREATED: usize = 40;
    pub(super) const KEY_BYTES: usize = 46;
    pub(super) const EXPIRES: usize = 48;
    pub(super) const FLAGS: usize = 54;
    pub(super) const CHECKSUM: usize = 56;
    pub(super) const META_BYTES: usize = 60;
    pub(super) const CRC: usize = 4;
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A whole object.
    Object = 1,
    /// An object whose body is in chunks.
    Commit = 2,
    /// A part of a body.
    Chunk = 3,
    /// Pointers to chunks.
    Map = 4,
    /// "Older versions of this key are dead."
    Tombstone = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Kind::Object,
            2 => Kind::Commit,
            3 => Kind::Chunk,
            4 => Kind::Map,
            5 => Kind::Tombstone,
            _ => return None,
        })
    }

    /// Whether the record speaks for a key, and so is listed in the footer.
    #[must_use]
    pub fn is_listed(self) -> bool {
        matches!(self, Kind::Object | Kind::Commit | Kind::Tombstone)
    }
}

/// The fields of a record's header, without its crc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it is.
    pub kind: Kind,
    /// 0: pointers to chunks, 1: to maps. Only commits have any.
    pub level: u8,
    /// The segment's lap.
    pub epoch: u32,
    /// Where in the segment it begins.
    pub position: u32,
    /// Hash of the key.
    pub hash: u64,
    /// Version; the write's id for chunks and maps.
    pub version: u64,
    /// Body or payload bytes.
    pub length: u64,
    /// Creation, in milliseconds since the epoch; the index of a chunk or map.
    pub created_ms: u64,
    /// Expiry, in milliseconds since the epoch; 0 never.
    pub expires_ms: u64,
    /// The owner's.
    pub flags: u16,
    /// CRC-32 of the whole body, or of the payload of a chunk or map.
    pub checksum: u32,
    /// Bytes of the key.
    pub key_bytes: u16,
    /// Bytes of the owner's metadata.
    pub meta_bytes: u32,
}

impl RecordHeader {
    /// Whether the object is past its time to live at `now_ms`.
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms != 0 && self.expires_ms <= now_ms
    }

    /// Encodes into the first [`RECORD_HEADER`] bytes of `record`, whose key, meta and pointers are in place.
    pub fn encode(&self, layout: &Layout, record: &mut [u8]) {
        use at::*;
        record[..RECORD_HEADER].fill(0);
        put(record, 0, MAGIC);
        record[KIND] = self.kind as u8;
        record[LEVEL] = self.level;
        put(record, EPOCH, &self.epoch.to_le_bytes());
        put(record, POSITION, &self.position.to_le_bytes());
        put(record, HASH, &self.hash.to_le_bytes());
        put(record, VERSION, &self.version.to_le_bytes());
        put(record, LENGTH, &self.length.to_le_bytes());
        put_ms(record, CREATED, self.created_ms);
        put(record, KEY_BYTES, &self.key_bytes.to_le_bytes());
        put_ms(record, EXPIRES, self.expires_ms);
        put(record, FLAGS, &self.flags.to_le_bytes());
        put(record, CHECKSUM, &self.checksum.to_le_bytes());
        put(record, META_BYTES, &self.meta_bytes.to_le_bytes());
        let covered = self.covered_bytes(layout);
        seal(layout.salt, &mut record[..covered], CRC);
    }

    /// Decodes a header and checks everything its crc covers. `bytes` begins with the record and may be longer;
    /// `None` when it is shorter than what must be checked, or nothing valid.
    #[must_use]
    pub fn decode(layout: &Layout, bytes: &[u8]) -> Option<Self> {
        use at::*;
        if bytes.len() < RECORD_HEADER || bytes[..2] != *MAGIC {
            return None;
        }
        let header = Self {
            kind: Kind::of(bytes[KIND])?,
            level: bytes[LEVEL],
            epoch: u32_at(bytes, EPOCH),
            position: u32_at(bytes, POSITION),
            hash: u64_at(bytes, HASH),
            version: u64_at(bytes, VERSION),
            length: u64_at(bytes, LENGTH),
            created_ms: u48_at(bytes, CREATED),
            expires_ms: u48_at(bytes, EXPIRES),
            flags: u16_at(bytes, FLAGS),
            checksum: u32_at(bytes, CHECKSUM),
            key_bytes: u16_at(bytes, KEY_BYTES),
            meta_bytes: u32_at(bytes, META_BYTES),
        };
        // Lengths are not to be believed before the crc is checked, and the crc needs the lengths.
        if header.meta_bytes as usize > layout.record_bytes_max || header.record_bytes(layout) > layout.record_bytes_max
        {
            return None;
        }
        let covered = bytes.get(..header.covered_bytes(layout))?;
        is_sealed(layout.salt, covered, CRC).then_some(header)
    }

    /// Pointers that follow the metadata.
    #[must_use]
    pub fn pointers(&self, layout: &Layout) -> usize {
        let chunks = usize::try_from(layout.chunks(self.length)).unwrap_or(usize::MAX / POINTER / 2);
        match (self.kind, self.level) {
            (Kind::Commit, 0) => chunks.min(layout.record_bytes_max),
            (Kind::Commit, _) => chunks.div_ceil(layout.map_pointers).min(layout.record_bytes_max),
            _ => 0,
        }
    }

    /// Bytes before the body or payload: header, key, meta and pointers.
    fn covered_bytes(&self, layout: &Layout) -> usize {
        self.pointers_at() + self.pointers(layout) * POINTER
    }

    /// Where the metadata begins.
    #[must_use]
    pub fn meta_at(&self) -> usize {
        RECORD_HEADER + usize::from(self.key_bytes)
    }

    /// Where what follows the metadata begins: body, payload or pointers.
    #[must_use]
    pub fn pointers_at(&self) -> usize {
        self.meta_at() + self.meta_bytes as usize
    }

    /// Bytes of the record, without padding.
    #[must_use]
    pub fn record_bytes(&self, layout: &Layout) -> usize {
        match self.kind {
            Kind::Object | Kind::Chunk | Kind::Map => {
                self.pointers_at().saturating_add(usize::try_from(self.length).unwrap_or(usize::MAX))
            }
            Kind::Commit | Kind::Tombstone => self.covered_bytes(layout),
        }
    }
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// The segment.
    pub segment: u32,
    /// Its lap when the record was written.
    pub epoch: u32,
    /// The position in it.
    pub position: u32,
}

impl Pointer {
    /// Encodes into [`POINTER`] bytes.
    pub fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, &self.segment.to_le_bytes());
        put(bytes, 4, &self.epoch.to_le_bytes());
        put(bytes, 8, &self.position.to_le_bytes());
    }

    /// Decodes [`POINTER`] bytes whose crc was checked.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self { segment: u32_at(bytes, 0), epoch: u32_at(bytes, 4), position: u32_at(bytes, 8) }
    }
}

/// One line of a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// Hash of the key.
    pub hash: u64,
    /// Version of the record.
    pub version: u64,
    /// Where it begins.
    pub position: u32,
    /// Expiry in seconds since the epoch, rounded up; 0 never.
    pub expires_s: u32,
    /// The owner's.
    pub flags: u16,
    /// Object, commit or tombstone.
    pub kind: Kind,
    /// Pages one read must span.
    pub span: u8,
}

impl FooterEntry {
    /// The line for a record.
    #[must_use]
    pub fn of(layout: &Layout, header: &RecordHeader) -> Self {
        let span = Layout::span(header.position, header.record_bytes(layout));
        Self {
            hash: header.hash,
            version: header.version,
            position: header.position,
            expires_s: u32::try_from(header.expires_ms.div_ceil(1000)).unwrap_or(u32::MAX),
            flags: header.flags,
            kind: header.kind,
            span: u8::try_from(span).unwrap_or(u8::MAX),
        }
    }

    /// Appends the encoded line.
    pub fn encode(&self, footer: &mut Vec<u8>) {
        footer.extend_from_slice(&self.hash.to_le_bytes());
        footer.extend_from_slice(&self.version.to_le_bytes());
        footer.extend_from_slice(&self.position.to_le_bytes());
        footer.extend_from_slice(&self.expires_s.to_le_bytes());
        footer.extend_from_slice(&self.flags.to_le_bytes());
        footer.extend_from_slice(&[self.kind as u8, self.span]);
    }

    /// Decodes [`super::FOOTER_ENTRY`] bytes of a footer whose crc was checked; `None` for what no writer of this format
    /// writes.
    #[must_use]
    pub fn decode(layout: &Layout, bytes: &[u8]) -> Option<Self> {
        let entry = Self {
            hash: u64_at(bytes, 0),
            version: u64_at(bytes, 8),
            position: u32_at(bytes, 16),
            expires_s: u32_at(bytes, 20),
            flags: u16_at(bytes, 24),
            kind: Kind::of(bytes[26])?,
            span: bytes[27],
        };
        let end = entry.position as usize * RECORD_ALIGN / PAGE * PAGE + usize::from(entry.span) * PAGE;
        let possible = entry.kind.is_listed()
            && (1..=SPAN_MAX).contains(&usize::from(entry.span))
            && end <= layout.segment_bytes as usize;
        possible.then_some(entry)
    }
}
