//! The bytes of the log on flash: the one table, and nothing but encoding and checking.
//!
//! All integers are little-endian. Pages are 4,096 bytes. Everything is covered by a CRC-32 (crc32fast). All but
//! the file header's start from the log's *salt*, which is derived from the random log id, so that bytes left by
//! an earlier log in the same file never validate. A body's own checksum is unsalted: it is the object's.
//!
//! ```text
//! FILE     page 0        header            never rewritten
//!          page 1        state             written at start (running) and at a clean stop
//!          pages 2..16   reserved, zero
//!          page 16..     segments 0..n, each `segment bytes` long
//!
//! SEGMENT  page 0        head              written first, before any block
//!          pages 1..     blocks            each starts on a page and is padded to one; never rewritten
//!          ...           footer            one entry an object, commit or tombstone; ends where the trailer begins
//!          last page     trailer           written when the segment is full: it is sealed
//!
//! BLOCK    0..48 header, then records, each starting on a multiple of 16 bytes of the segment
//!
//! HEADER (page 0)                              STATE (page 1)
//!  0  8  magic "STRATALG"                       0  4  magic "STAT"
//!  8  4  format version                         4  4  crc of the page, this field zero
//! 12  4  crc of the page, this field zero       8  4  state: 1 running, 2 stopped cleanly
//!        (unsalted)                            12  4  entries of epochs below this survived a kill
//! 16  8  log id                                16  4  ... survived a power cut
//! 24  8  node id                               20  4  ... survived damage that may hide newer records
//! 32  4  shard                                 24 16  boot id
//! 36  4  shards                                40  8  written at, ms since the epoch
//! 40  8  hash seed                             48  8  run of the node that wrote it
//! 48  8  file bytes                            56  8  run of the node that served before that
//! 56  4  segment bytes
//! 60  4  segments                              HEAD (page 0 of a segment)
//! 64  8  created at, ms since the epoch         0  4  magic "HEAD"
//!                                               4  4  crc of the page, this field zero
//! BLOCK HEADER (48 bytes)                       8  4  segment
//!                                              12  4  epoch; 0: the segment holds nothing
//!                                              16  8  sequence of its first block
//!  0  4  magic "BLCK"
//!  4  4  crc of the 48 bytes, this field zero  TRAILER (last page of a segment)
//!  8  4  segment                                0  4  magic "TRLR"
//! 12  4  epoch                                  4  4  crc of the page, this field zero
//! 16  4  offset in the segment, bytes           8  4  segment
//! 20  4  bytes used, header included           12  4  epoch
//! 24  8  sequence, counts blocks               16  8  sequence of its first block
//! 32  8  blocks below this sequence were       24  8  sequence after its last block
//!        durable when this one was written     32  4  footer entries
//! 40  4  records                               36  4  crc of the footer
//! 44  4  reserved, zero                        40  4  bytes used by blocks, head included
//!
//! RECORD HEADER (64 bytes)                     FOOTER ENTRY (28 bytes)
//!  0  2  magic "RC"                             0  8  key hash
//!  2  1  kind                                   8  8  version
//!  3  1  pointer level (commit)                16  4  position
//!  4  4  crc of header (this field zero),      20  4  expires, s since the epoch, rounded up; 0 never
//!        key, meta, pointers                   24  2  flags
//!  8  4  epoch                                 26  1  kind
//! 12  4  position                              27  1  pages spanned
//! 16  8  key hash
//! 24  8  version (chunk, map: write id)        POINTER (12 bytes)
//! 32  8  length                                 0  4  segment
//! 40  6  created at, ms (chunk, map: index)     4  4  epoch
//! 46  2  key bytes                              8  4  position
//! 48  6  expires at, ms; 0 never
//! 54  2  flags                                 POSITION: offset in the segment / 16
//! 56  4  checksum of the body or payload
//! 60  4  meta bytes
//!
//! kind       length is        followed by
//! 1 object   body bytes       key, meta, body
//! 2 commit   body bytes       key, meta, pointers: to the chunks in order (level 0) or to maps (level 1)
//! 3 chunk    payload bytes    part of a body; every chunk but the last has `Layout::chunk_bytes`
//! 4 map      payload bytes    pointers to chunks; every map but the last is full
//! 5 tombstone  0              key (may be empty: a tombstone acts by hash)
//! ```
//!
//! Golden bytes in the tests of this module pin every structure; a change of one byte is a new format version.

mod record;

pub use record::{FooterEntry, Kind, Pointer, RecordHeader};

use crate::device::{Device, IO_MAX, PAGE};

/// The format written and read by this code.
pub const FORMAT_VERSION: u32 = 1;

/// Where the first segment begins, in bytes.
pub const SEGMENTS_AT: u64 = 16 * PAGE as u64;

/// Where the state page is.
pub const STATE_AT: u64 = PAGE as u64;

/// Bytes of a block's header.
pub const BLOCK_HEADER: usize = 48;

/// Bytes of a record's header.
pub const RECORD_HEADER: usize = 64;

/// Records start on multiples of this; positions count in it.
pub const RECORD_ALIGN: usize = 16;

/// Bytes of a footer entry.
pub const FOOTER_ENTRY: usize = 28;

/// Bytes of a pointer.
pub const POINTER: usize = 12;

/// Smallest segment, in bytes.
pub const SEGMENT_BYTES_MIN: u32 = 64 << 10;

/// Largest segment, in bytes.
pub const SEGMENT_BYTES_MAX: u32 = 256 << 20;

/// Segment size aimed at on a large file, in bytes.
const SEGMENT_BYTES_USUAL: u64 = 32 << 20;

/// Segments aimed at on a file too small for usual ones.
const SEGMENTS_WANTED: u64 = 16;

/// A log needs this many segments: one open, one free ahead of it, and two that hold objects.
pub const SEGMENTS_MIN: u32 = 4;

/// Most segments: an index entry has 18 bits for one.
pub const SEGMENTS_MAX: u32 = 1 << 18;

/// Largest file, in bytes: an index entry has 38 bits for a record's address.
pub const FILE_BYTES_MAX: u64 = (RECORD_ALIGN as u64) << 38;

/// Largest record, in bytes, on segments that allow it: four fill a block of the largest I/O.
pub const RECORD_BYTES_MAX: usize = (IO_MAX - BLOCK_HEADER) / 4 / RECORD_ALIGN * RECORD_ALIGN;

/// Pages that the largest record can touch.
pub const SPAN_MAX: usize = (RECORD_BYTES_MAX + PAGE - RECORD_ALIGN).div_ceil(PAGE);

const _: () = assert!(RECORD_BYTES_MAX == 131_056 && SPAN_MAX == 33);
const _: () = assert!(BLOCK_HEADER.is_multiple_of(RECORD_ALIGN) && RECORD_HEADER.is_multiple_of(RECORD_ALIGN));
const _: () = assert!(FILE_BYTES_MAX == 4 << 40);

const HEADER_MAGIC: &[u8; 8] = b"STRATALG";
const STATE_MAGIC: &[u8; 4] = b"STAT";
const HEAD_MAGIC: &[u8; 4] = b"HEAD";
const TRAILER_MAGIC: &[u8; 4] = b"TRLR";
const BLOCK_MAGIC: &[u8; 4] = b"BLCK";

mod at {
    //! Offsets of the table above.
    pub(super) mod header {
        pub(in super::super) const VERSION: usize = 8;
        pub(in super::super) const CRC: usize = 12;
        pub(in super::super) const LOG_ID: usize = 16;
        pub(in super::super) const NODE: usize = 24;
        pub(in super::super) const SHARD: usize = 32;
        pub(in super::super) const SHARDS: usize = 36;
        pub(in super::super) const HASH_SEED: usize = 40;
        pub(in super::super) const FILE_BYTES: usize = 48;
        pub(in super::super) const SEGMENT_BYTES: usize = 56;
        pub(in super::super) const SEGMENTS: usize = 60;
        pub(in super::super) const CREATED: usize = 64;
    }
    /// The crc of every page but the file header, and of block headers and records.
    pub(super) const CRC: usize = 4;
    pub(super) mod state {
        pub(in super::super) const STATE: usize = 8;
        pub(in super::super) const KILLED: usize = 12;
        pub(in super::super) const POWER_CUT: usize = 16;
        pub(in super::super) const DAMAGED: usize = 20;
        pub(in super::super) const BOOT: usize = 24;
        pub(in super::super) const WRITTEN: usize = 40;
        pub(in super::super) const RUN: usize = 48;
        pub(in super::super) const RUN_BEFORE: usize = 56;
    }
    /// Head, trailer and block header begin alike.
    pub(super) const SEGMENT: usize = 8;
    pub(super) const EPOCH: usize = 12;
    pub(super) const FIRST_BLOCK: usize = 16;
    pub(super) mod trailer {
        pub(in super::super) const NEXT_BLOCK: usize = 24;
        pub(in super::super) const ENTRIES: usize = 32;
        pub(in super::super) const FOOTER_CRC: usize = 36;
        pub(in super::super) const USED: usize = 40;
    }
    pub(super) mod block {
        pub(in super::super) const OFFSET: usize = 16;
        pub(in super::super) const USED: usize = 20;
        pub(in super::super) const SEQUENCE: usize = 24;
        pub(in super::super) const DURABLE: usize = 32;
        pub(in super::super) const RECORDS: usize = 40;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u48_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u16_at(bytes, at + 4)) << 32
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// Times are kept in 48 bits (until the year 10889); a later one is kept as the last.
fn put_ms(bytes: &mut [u8], at: usize, ms: u64) {
    put(bytes, at, &ms.min((1 << 48) - 1).to_le_bytes()[..6]);
}

/// CRC-32 of the parts one after the other, starting from `salt`.
pub fn crc(salt: u32, parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// The crc of `bytes` with the four bytes at `at` taken as zero.
fn crc_around(salt: u32, bytes: &[u8], at: usize) -> u32 {
    crc(salt, &[&bytes[..at], &[0; 4], &bytes[at + 4..]])
}

fn seal(salt: u32, bytes: &mut [u8], at: usize) {
    let crc = crc_around(salt, bytes, at);
    put(bytes, at, &crc.to_le_bytes());
}

fn is_sealed(salt: u32, bytes: &[u8], at: usize) -> bool {
    crc_around(salt, bytes, at) == u32_at(bytes, at)
}

/// Page 0 of the file: what the log is and whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Random, new for every log.
    pub log_id: u64,
    /// The node that wrote it.
    pub node: u64,
    /// The shard it belongs to, of how many.
    pub shard: u32,
    /// Shards of the node.
    pub shards: u32,
    /// Seed of the key hash.
    pub hash_seed: u64,
    /// Length of the file when the log was made, in bytes.
    pub file_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// How many there are.
    pub segments: u32,
    /// When the log was made, in milliseconds since the epoch.
    pub created_ms: u64,
}

/// Why page 0 is not a header we can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// All zero: nothing was ever written here.
    Blank,
    /// Written by a later version of this format.
    Newer(u32),
    /// Not a header, or a damaged one.
    Damaged(&'static str),
}

impl Header {
    /// Encodes the page.
    pub fn encode(&self, page: &mut [u8]) {
        use at::header::*;
        page.fill(0);
        put(page, 0, HEADER_MAGIC);
        put(page, VERSION, &FORMAT_VERSION.to_le_bytes());
        put(page, LOG_ID, &self.log_id.to_le_bytes());
        put(page, NODE, &self.node.to_le_bytes());
        put(page, SHARD, &self.shard.to_le_bytes());
        put(page, SHARDS, &self.shards.to_le_bytes());
        put(page, HASH_SEED, &self.hash_seed.to_le_bytes());
        put(page, FILE_BYTES, &self.file_bytes.to_le_bytes());
        put(page, SEGMENT_BYTES, &self.segment_bytes.to_le_bytes());
        put(page, SEGMENTS, &self.segments.to_le_bytes());
        put(page, CREATED, &self.created_ms.to_le_bytes());
        seal(0, page, CRC);
    }

    /// Decodes and checks the page. Magic, version and crc stay where they are in every later format.
    ///
    /// # Errors
    /// See [`BadHeader`].
    pub fn decode(page: &[u8]) -> Result<Self, BadHeader> {
        use at::header::*;
        if page.iter().all(|b| *b == 0) {
            return Err(BadHeader::Blank);
        }
        if page[..8] != *HEADER_MAGIC {
            return Err(BadHeader::Damaged("it does not begin with the magic of a log"));
        }
        if !is_sealed(0, page, CRC) {
            return Err(BadHeader::Damaged("its checksum does not match"));
        }
        match u32_at(page, VERSION) {
            FORMAT_VERSION => {}
            newer if newer > FORMAT_VERSION => return Err(BadHeader::Newer(newer)),
            _ => return Err(BadHeader::Damaged("its version never existed")),
        }
        Ok(Self {
            log_id: u64_at(page, LOG_ID),
            node: u64_at(page, NODE),
            shard: u32_at(page, SHARD),
            shards: u32_at(page, SHARDS),
            hash_seed: u64_at(page, HASH_SEED),
            file_bytes: u64_at(page, FILE_BYTES),
            segment_bytes: u32_at(page, SEGMENT_BYTES),
            segments: u32_at(page, SEGMENTS),
            created_ms: u64_at(page, CREATED),
        })
    }
}

/// The geometry of one log and the salt of its checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// How many there are.
    pub segments: u32,
    /// Largest record, in bytes.
    pub record_bytes_max: usize,
    /// Body bytes in every chunk but the last.
    pub chunk_bytes: usize,
    /// Pointers in every map but the last.
    pub map_pointers: usize,
    /// Start value of checksums.
    pub salt: u32,
}

impl Layout {
    /// The geometry a header describes; `None` when it cannot be one of ours on a file of `file_bytes`.
    #[must_use]
    pub fn of(header: &Header, file_bytes: u64) -> Option<Self> {
        let segments_end = SEGMENTS_AT + u64::from(header.segment_bytes) * u64::from(header.segments);
        let possible = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&header.segment_bytes)
            && (header.segment_bytes as usize).is_multiple_of(PAGE)
            && (SEGMENTS_MIN..=SEGMENTS_MAX).contains(&header.segments)
            && segments_end <= file_bytes
            && segments_end <= FILE_BYTES_MAX;
        if !possible {
            return None;
        }
        let record_bytes_max = RECORD_BYTES_MAX.min(header.segment_bytes as usize / 4 / RECORD_ALIGN * RECORD_ALIGN);
        Some(Self {
            segment_bytes: header.segment_bytes,
            segments: header.segments,
            record_bytes_max,
            chunk_bytes: record_bytes_max - RECORD_HEADER,
            map_pointers: (record_bytes_max - RECORD_HEADER) / POINTER,
            salt: crc(0, &[&header.log_id.to_le_bytes()]),
        })
    }

    /// Segment bytes and count for a file: `wanted` if given, else tens of MiB, and smaller on small files so that
    /// there are always at least [`SEGMENTS_MIN`]. `None`: the file is too small or too large.
    #[must_use]
    pub fn choose(file_bytes: u64, wanted: Option<u32>) -> Option<(u32, u32)> {
        let room = file_bytes.min(FILE_BYTES_MAX).checked_sub(SEGMENTS_AT)?;
        let usual = (room / SEGMENTS_WANTED).clamp(u64::from(SEGMENT_BYTES_MIN), SEGMENT_BYTES_USUAL);
        let bytes = wanted.map_or(usual, u64::from).clamp(u64::from(SEGMENT_BYTES_MIN), u64::from(SEGMENT_BYTES_MAX));
        let bytes = bytes / PAGE as u64 * PAGE as u64;
        let count = (room / bytes).min(u64::from(SEGMENTS_MAX));
        let (bytes, count) = (u32::try_from(bytes).ok()?, u32::try_from(count).ok()?);
        (count >= SEGMENTS_MIN && file_bytes <= FILE_BYTES_MAX).then_some((bytes, count))
    }

    /// Byte offset in the file of `segment`.
    #[must_use]
    pub fn segment_at(&self, segment: u32) -> u64 {
        SEGMENTS_AT + u64::from(segment) * u64::from(self.segment_bytes)
    }

    /// Byte offset in the file of a position in a segment.
    #[must_use]
    pub fn byte_at(&self, segment: u32, position: u32) -> u64 {
        self.segment_at(segment) + u64::from(position) * RECORD_ALIGN as u64
    }

    /// Where in its segment the footer of `entries` begins, in bytes: right before the trailer.
    #[must_use]
    pub fn footer_at(&self, entries: usize) -> usize {
        self.segment_bytes as usize - PAGE - (entries * FOOTER_ENTRY).next_multiple_of(PAGE)
    }

    /// Chunks of a body of `length` bytes.
    #[must_use]
    pub fn chunks(&self, length: u64) -> u64 {
        length.div_ceil(self.chunk_bytes as u64)
    }

    /// Pages touched by `bytes` at `position` of a segment.
    #[must_use]
    pub fn span(position: u32, bytes: usize) -> usize {
        ((position as usize * RECORD_ALIGN) % PAGE + bytes).div_ceil(PAGE)
    }

    /// Largest body this log takes: a quarter of its segments.
    #[must_use]
    pub fn object_bytes_max(&self) -> u64 {
        u64::from(self.segment_bytes) * u64::from(self.segments) / 4
    }

    /// The page of a device at `segment`'s end.
    #[must_use]
    pub fn trailer_at(&self, segment: u32) -> u64 {
        self.segment_at(segment + 1) - PAGE as u64
    }
}

/// What the log was doing when the state page was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Writing, or about to.
    Running,
    /// Nothing: it had stopped and flushed.
    Clean,
}

/// Page 1: how the last run ended, and what earlier ends did to what is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatePage {
    /// Running or stopped cleanly.
    pub state: RunState,
    /// Entries in segments of lower epochs survived the kill of a process.
    pub killed_below: u32,
    /// Entries in segments of lower epochs survived a power cut.
    pub power_cut_below: u32,
    /// Entries in segments of lower epochs survived damage that may hide newer records.
    pub damaged_below: u32,
    /// The boot during which it was written.
    pub boot: [u8; 16],
    /// When, in milliseconds since the epoch. For people.
    pub written_ms: u64,
    /// The run of the node that wrote it.
    pub run: Run,
}

/// A run of the node, by random numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// This one.
    pub id: u64,
    /// The last one before it in which the node served requests. A log that was not open then missed what was
    /// overwritten and removed.
    pub before: u64,
}

impl StatePage {
    /// Encodes the page.
    pub fn encode(&self, salt: u32, page: &mut [u8]) {
        use at::state::*;
        page.fill(0);
        put(page, 0, STATE_MAGIC);
        let state = match self.state {
            RunState::Running => 1_u32,
            RunState::Clean => 2,
        };
        put(page, STATE, &state.to_le_bytes());
        put(page, KILLED, &self.killed_below.to_le_bytes());
        put(page, POWER_CUT, &self.power_cut_below.to_le_bytes());
        put(page, DAMAGED, &self.damaged_below.to_le_bytes());
        put(page, BOOT, &self.boot);
        put(page, WRITTEN, &self.written_ms.to_le_bytes());
        put(page, RUN, &self.run.id.to_le_bytes());
        put(page, RUN_BEFORE, &self.run.before.to_le_bytes());
        seal(salt, page, at::CRC);
    }

    /// Decodes and checks the page.
    #[must_use]
    pub fn decode(salt: u32, page: &[u8]) -> Option<Self> {
        use at::state::*;
        if page[..4] != *STATE_MAGIC || !is_sealed(salt, page, at::CRC) {
            return None;
        }
        Some(Self {
            state: match u32_at(page, STATE) {
                1 => RunState::Running,
                2 => RunState::Clean,
                _ => return None,
            },
            killed_below: u32_at(page, KILLED),
            power_cut_below: u32_at(page, POWER_CUT),
            damaged_below: u32_at(page, DAMAGED),
            boot: page[BOOT..BOOT + 16].try_into().expect("sixteen bytes"),
            written_ms: u64_at(page, WRITTEN),
            run: Run { id: u64_at(page, RUN), before: u64_at(page, RUN_BEFORE) },
        })
    }
}

/// Page 0 of a segment: its lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which segment this is; a misdirected write does not validate.
    pub segment: u32,
    /// Counts the laps of all segments together; the higher, the newer. 0: the segment holds nothing.
    pub epoch: u32,
    /// Sequence of the first block.
    pub first_block: u64,
}

impl Head {
    /// Encodes the page.
    pub fn encode(&self, salt: u32, page: &mut [u8]) {
        page.fill(0);
        put(page, 0, HEAD_MAGIC);
        put(page, at::SEGMENT, &self.segment.to_le_bytes());
        put(page, at::EPOCH, &self.epoch.to_le_bytes());
        put(page, at::FIRST_BLOCK, &self.first_block.to_le_bytes());
        seal(salt, page, at::CRC);
    }

    /// Decodes and checks the page against the place it was read from.
    #[must_use]
    pub fn decode(salt: u32, segment: u32, page: &[u8]) -> Option<Self> {
        let head = Self {
            segment: u32_at(page, at::SEGMENT),
            epoch: u32_at(page, at::EPOCH),
            first_block: u64_at(page, at::FIRST_BLOCK),
        };
        (page[..4] == *HEAD_MAGIC && is_sealed(salt, page, at::CRC) && head.segment == segment).then_some(head)
    }
}

/// The last page of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Which segment this is.
    pub segment: u32,
    /// Its lap; another one than the head's is a leftover of an earlier lap.
    pub epoch: u32,
    /// Sequence of the first block.
    pub first_block: u64,
    /// Sequence after the last block.
    pub next_block: u64,
    /// Footer entries.
    pub entries: u32,
    /// Salted crc of the footer's entries.
    pub footer_crc: u32,
    /// Bytes of the segment used by head and blocks.
    pub used: u32,
}

impl Trailer {
    /// Encodes the page.
    pub fn encode(&self, salt: u32, page: &mut [u8]) {
        use at::trailer::*;
        page.fill(0);
        put(page, 0, TRAILER_MAGIC);
        put(page, at::SEGMENT, &self.segment.to_le_bytes());
        put(page, at::EPOCH, &self.epoch.to_le_bytes());
        put(page, at::FIRST_BLOCK, &self.first_block.to_le_bytes());
        put(page, NEXT_BLOCK, &self.next_block.to_le_bytes());
        put(page, ENTRIES, &self.entries.to_le_bytes());
        put(page, FOOTER_CRC, &self.footer_crc.to_le_bytes());
        put(page, USED, &self.used.to_le_bytes());
        seal(salt, page, at::CRC);
    }

    /// Decodes and checks the page against the place it was read from and the room there is.
    #[must_use]
    pub fn decode(layout: &Layout, segment: u32, page: &[u8]) -> Option<Self> {
        use at::trailer::*;
        let trailer = Self {
            segment: u32_at(page, at::SEGMENT),
            epoch: u32_at(page, at::EPOCH),
            first_block: u64_at(page, at::FIRST_BLOCK),
            next_block: u64_at(page, NEXT_BLOCK),
            entries: u32_at(page, ENTRIES),
            footer_crc: u32_at(page, FOOTER_CRC),
            used: u32_at(page, USED),
        };
        let fits = (trailer.entries as usize) < layout.segment_bytes as usize / FOOTER_ENTRY
            && trailer.used as usize + (trailer.entries as usize * FOOTER_ENTRY).next_multiple_of(PAGE) + PAGE
                <= layout.segment_bytes as usize;
        let whole = page[..4] == *TRAILER_MAGIC && is_sealed(layout.salt, page, at::CRC);
        (whole && trailer.segment == segment && fits).then_some(trailer)
    }
}

/// The first bytes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The segment it belongs to.
    pub segment: u32,
    /// That segment's lap.
    pub epoch: u32,
    /// Where in the segment it begins, in bytes.
    pub offset: u32,
    /// Bytes used, header included; the rest of the last page is padding.
    pub used: u32,
    /// Counts blocks over the life of the log.
    pub sequence: u64,
    /// Every block of a lower sequence was durable when this one was written.
    pub durable: u64,
    /// Records in it.
    pub records: u32,
}

impl BlockHeader {
    /// Encodes into the first [`BLOCK_HEADER`] bytes.
    pub fn encode(&self, salt: u32, block: &mut [u8]) {
        use at::block::*;
        let header = &mut block[..BLOCK_HEADER];
        header.fill(0);
        put(header, 0, BLOCK_MAGIC);
        put(header, at::SEGMENT, &self.segment.to_le_bytes());
        put(header, at::EPOCH, &self.epoch.to_le_bytes());
        put(header, OFFSET, &self.offset.to_le_bytes());
        put(header, USED, &self.used.to_le_bytes());
        put(header, SEQUENCE, &self.sequence.to_le_bytes());
        put(header, DURABLE, &self.durable.to_le_bytes());
        put(header, RECORDS, &self.records.to_le_bytes());
        seal(salt, header, at::CRC);
    }

    /// Decodes and checks a header against the place it was read from.
    #[must_use]
    pub fn decode(layout: &Layout, segment: u32, offset: usize, bytes: &[u8]) -> Option<Self> {
        use at::block::*;
        let bytes = bytes.get(..BLOCK_HEADER)?;
        if bytes[..4] != *BLOCK_MAGIC || !is_sealed(layout.salt, bytes, at::CRC) {
            return None;
        }
        let header = Self {
            segment: u32_at(bytes, at::SEGMENT),
            epoch: u32_at(bytes, at::EPOCH),
            offset: u32_at(bytes, OFFSET),
            used: u32_at(bytes, USED),
            sequence: u64_at(bytes, SEQUENCE),
            durable: u64_at(bytes, DURABLE),
            records: u32_at(bytes, RECORDS),
        };
        let here = header.segment == segment && header.offset as usize == offset;
        let fits = (BLOCK_HEADER..=IO_MAX).contains(&(header.used as usize))
            && offset + header.used as usize <= layout.segment_bytes as usize;
        (here && fits).then_some(header)
    }
}

/// Reads and checks the header page of a device.
///
/// # Errors
/// The device failed; the inner result is about the bytes.
pub async fn read_header<D: Device>(device: &D) -> Result<Result<Header, BadHeader>, crate::device::DeviceError> {
    if device.len() < PAGE as u64 {
        return Ok(Err(BadHeader::Damaged("the file is shorter than one page")));
    }
    Ok(Header::decode(&device.read(0, PAGE).await?))
}

#[cfg(test)]
mod tests;
