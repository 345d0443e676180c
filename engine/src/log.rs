//! L2's bytes: a log of records on one flash file, with its index in RAM.
//!
//! In reading order: [`format`](mod@format) (the table of bytes), `segments` (laps), [`index`] (which record speaks for a key,
//! and why no older one can come back), `writer` (the write buffer and the only task that writes), `stage` (staged
//! objects and their commit), [`reader`], `reclaim`, [`recover`] (opening, as a table of decisions) and
//! [`supersede`] (what a killed process had acknowledged).
//!
//! Invariants:
//!
//! - INV-1: every byte given was checked against a crc that was written with it, and a body is given only as long as
//!   all of it is there: a chunk that is gone or damaged is an error, never a short body.
//! - INV-2: a look-up never gives a version older than one committed or tombstoned before. The index is changed and
//!   the record appended without an await between.
//! - INV-3: what recovery brings back is the highest version on flash of its key. What may still be older than
//!   something acknowledged, the owner is told of: per record ([`Keep`]), in time ([`Log::needs_tombstone`]).
//!   Tombstones need no life of their own: one lies behind every older record of its key (those are re-inserted
//!   only while the index points at them, and after the tombstone it does not), so first in first out it goes last.
//! - INV-7: only the flusher writes, from buffers shared with the device; dropping any caller's future cancels
//!   nothing half-way. Blocks are written one after the other, so a killed process leaves at most its last write
//!   in pieces.
//! - After a failed write or sync the log is poisoned: nothing is written any more, everything answers with the
//!   reason. A failed read is an error of that read, a failed checksum a counted miss.
//!
//! Left to others: namespaces, admission, which versions to trust, and when to flush.

pub mod format;
mod index;
mod reader;
mod reclaim;
mod recover;
mod segments;
mod signal;
mod stage;
pub mod supersede;
mod writer;

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

pub use format::{Header, Run, SEGMENT_BYTES_MIN};
pub use reader::{Body, Found, Lookup, Miss};
pub use recover::{Keep, OpenError, Opened, Recovered, Stop, inspect};
pub use stage::{Commit, Committed, StagedWrite};

use crate::{
    device::{Device, DeviceError, IO_MAX},
    rt::Rt,
};
use format::{Layout, StatePage};
use index::{Entry, Index, Place};
use segments::Segments;
use signal::Signal;
use supersede::Ring;
use writer::Buffer;

/// How a log is set up. All of it is fixed while the log is open.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's id; kept in the header for people.
    pub node: u64,
    /// The shard the log belongs to, of how many. Another answer in the header means other keys.
    pub shard: u32,
    /// Shards of the node.
    pub shards: u32,
    /// Seed of the key hash. Another one in the header means other hashes.
    pub hash_seed: u64,
    /// The machine's boot id: after another boot, what was not synced may be missing.
    pub boot: [u8; 16],
    /// This run of the node and the one that served last, by which a log that was left out of a run is told.
    pub run: Run,
    /// Bytes of a segment, for a new log; `None` chooses tens of MiB, less on a small file.
    pub segment_bytes: Option<u32>,
    /// Mean object, header and key included, in bytes: sizes the index.
    pub object_bytes_mean: u32,
    /// A record is on flash (not synced) this long after it was appended, if the device keeps up.
    pub flush_interval: Duration,
    /// Most bytes of records in RAM waiting for flash; at least two blocks are kept. Footers of sealed segments come
    /// on top, about 2 % of a segment each.
    pub buffer_bytes_max: usize,
    /// Planted faults; none but in tests of the simulator.
    #[doc(hidden)]
    pub sabotage: Sabotage,
}

/// Faults that a simulation plants to see that it would notice them. Not reachable from any setting.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sabotage {
    /// What was read is believed without its checksum.
    pub skip_body_checksum: bool,
    /// Recovery passes over tombstones, and over the notes of the superseding ring.
    pub forget_tombstones: bool,
}

impl Config {
    /// Usual values for shard 0 of 1.
    #[must_use]
    pub fn new(hash_seed: u64, boot: [u8; 16]) -> Self {
        Self {
            node: 0,
            shard: 0,
            shards: 1,
            hash_seed,
            boot,
            run: Run::default(),
            segment_bytes: None,
            object_bytes_mean: 4 << 10,
            flush_interval: Duration::from_millis(100),
            buffer_bytes_max: 8 * IO_MAX,
            sabotage: Sabotage::default(),
        }
    }

    /// RAM the index of a file of `file_bytes` will take.
    #[must_use]
    pub fn index_bytes(&self, file_bytes: u64) -> u64 {
        Index::bytes_for(self.objects(file_bytes))
    }

    fn objects(&self, file_bytes: u64) -> u64 {
        file_bytes / u64::from(self.object_bytes_mean.max(1))
    }
}

/// Why the log did not do something. Each variant is a decision for the caller.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A read failed; the record may be fine.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A write failed earlier: the log takes nothing and gives nothing any more.
    #[error("the log is poisoned: {reason}")]
    Poisoned {
        /// What failed.
        reason: Arc<str>,
    },
    /// The log is closing or closed.
    #[error("the log is closed")]
    Closed,
    /// The body is larger than a quarter of the log.
    #[error("a body of {length} bytes or more; this log takes {max}")]
    TooLarge {
        /// Declared, or written so far.
        length: u64,
        /// The most this log takes.
        max: u64,
    },
    /// Key and metadata together are larger than a record.
    #[error("key and metadata of {bytes} bytes; a record of this log holds {max}")]
    HeadTooLarge {
        /// Bytes of key and metadata.
        bytes: usize,
        /// The most that fits.
        max: usize,
    },
    /// No room in the write buffer, no free segment ahead, or no free slot in the ring, and the caller would not
    /// wait.
    #[error("no room in the write buffer")]
    NoRoom,
    /// The index holds a newer version.
    #[error("superseded by version {held:#x}")]
    Superseded {
        /// That version.
        held: u64,
    },
    /// The caller's own check refused the commit at the last moment.
    #[error("the commit was refused by its owner")]
    Refused,
    /// The bytes were reclaimed while the object was read or written.
    #[error("the bytes were reclaimed")]
    Gone,
    /// A checksum failed; the object is not served any more.
    #[error("damaged bytes in {device} at {offset}")]
    Corrupted {
        /// The device's name.
        device: String,
        /// Byte offset of the record.
        offset: u64,
    },
    /// The range is not within the body, or reading has begun.
    #[error("the range is not within the body, or reading has begun")]
    BadRange,
}

/// Counters since the log was opened, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it; units are bytes, segments, objects or times")]
pub struct Stats {
    pub objects: u64,
    /// An estimate: objects of one segment are taken to be of one size.
    pub live_bytes: u64,
    /// Of the file.
    pub capacity_bytes: u64,
    pub index_entries: u64,
    pub index_slots: u64,
    pub index_bytes: u64,
    pub segments: u64,
    pub segments_free: u64,
    pub segments_blind: u64,
    pub buffered_bytes: u64,
    pub ring_used: u64,
    pub ring_slots: u64,
    pub poisoned: bool,

    pub committed: u64,
    pub tombstones: u64,
    /// Bytes of records, as their callers gave them.
    pub appended_bytes: u64,
    /// Bytes written to the device, padding and footers included.
    pub written_bytes: u64,
    pub flushes: u64,
    pub syncs: u64,
    pub reclaimed_segments: u64,
    pub reclaimed_objects: u64,
    pub reinserted_objects: u64,
    pub reinserted_bytes: u64,
    pub hits: u64,
    pub corrupted: u64,
    pub collisions: u64,
    pub expired: u64,
    pub gone: u64,
    pub index_evicted: u64,
    pub superseded: u64,
    pub aborted: u64,
    pub no_room: u64,
    pub too_large: u64,
    /// Waits for a flush because every slot of the ring was taken.
    pub ring_waits: u64,
}

/// How far along its life a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Closing,
    Closed,
}

/// What changes. Borrowed for stretches without await only.
struct State {
    index: Index,
    segments: Segments,
    buffer: Buffer,
    ring: Ring,
    life: Life,
    poisoned: Option<Arc<str>>,
    /// Background tasks that have not ended.
    tasks: usize,
    stats: Stats,
}

struct Inner<D, R> {
    device: Rc<D>,
    rt: R,
    layout: Layout,
    config: Config,
    /// What the state page says while the log runs.
    page: StatePage,
    state: RefCell<State>,
    /// Room was made, something was flushed, or the log was poisoned.
    progress: Signal,
    /// The flusher has something to do.
    work: Signal,
}

/// A log on one device. Clones share it; it belongs to one thread. It must be closed before it is forgotten: its
/// tasks keep it alive.
pub struct Log<D, R> {
    inner: Rc<Inner<D, R>>,
}

impl<D, R> Clone for Log<D, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<D: Device, R: Rt> Log<D, R> {
    /// Whether a look-up of this key would read flash: the index holds a live entry for it or for another key of its
    /// class. `false` is certain. RAM only.
    #[must_use]
    pub fn may_contain(&self, hash: u64) -> bool {
        self.inner.state.borrow().index.get(hash).is_some_and(|entry| entry.is_live())
    }

    /// Whether an older copy of this key could be on flash, so that an overwrite or delete that is acknowledged
    /// without one must leave a tombstone ([`Log::tombstone`] asks by itself). RAM only. True for every key while
    /// any segment is blind (see `index`).
    #[must_use]
    pub fn needs_tombstone(&self, hash: u64) -> bool {
        self.inner.state.borrow().needs_tombstone(hash)
    }

    /// The version of the record that speaks for this key's class, dead or alive: usually this key's, rarely
    /// another's. RAM only; a hint.
    #[must_use]
    pub fn version_hint(&self, hash: u64) -> Option<u64> {
        self.inner.state.borrow().index.get(hash).map(|entry| entry.version)
    }

    /// Stops serving what the index holds for this key's class, until a commit. RAM only: after a restart the record
    /// is back. Rarely takes another key with it, as a miss. Returns whether anything was served before.
    pub fn remove(&self, hash: u64) -> bool {
        self.inner.state.borrow_mut().kill(hash, |_| true)
    }

    /// Notes that `version` of this key was compared with the durable index and holds.
    pub fn mark_verified(&self, hash: u64, version: u64) {
        let mut state = self.inner.state.borrow_mut();
        if let Some(slot) = state.index.find(hash) {
            let entry = state.index.entry(slot);
            if entry.version == version {
                state.index.set(slot, &Entry { suspect: false, ..entry });
            }
        }
    }

    /// The largest body taken, in bytes: a quarter of the log.
    #[must_use]
    pub fn object_bytes_max(&self) -> u64 {
        self.inner.layout.object_bytes_max()
    }

    /// Why the log is poisoned, if it is.
    #[must_use]
    pub fn poisoned(&self) -> Option<Arc<str>> {
        self.inner.state.borrow().poisoned.clone()
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Rc<D> {
        &self.inner.device
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.inner.state.borrow();
        let (index_entries, index_slots) = state.index.fill();
        let (ring_used, ring_slots) = state.ring.fill();
        Stats {
            objects: state.index.live() as u64,
            live_bytes: state.segments.live_bytes(),
            capacity_bytes: self.inner.device.len(),
            index_entries: index_entries as u64,
            index_slots: index_slots as u64,
            index_bytes: state.index.bytes() as u64,
            segments: u64::from(self.inner.layout.segments),
            segments_free: state.segments.free() as u64,
            segments_blind: state.segments.blind() as u64,
            buffered_bytes: state.buffer.bytes() as u64,
            ring_used: ring_used as u64,
            ring_slots: ring_slots as u64,
            poisoned: state.poisoned.is_some(),
            ..state.stats
        }
    }
}

impl State {
    fn needs_tombstone(&self, hash: u64) -> bool {
        match self.index.get(hash) {
            // Its own tombstone covers everything older, and nothing newer was written since.
            Some(entry) => !entry.is_tombstone_of(hash),
            None => self.segments.blind() > 0,
        }
    }

    fn check_open(&self) -> Result<(), LogError> {
        self.check_readable()?;
        if self.life == Life::Open { Ok(()) } else { Err(LogError::Closed) }
    }

    fn check_readable(&self) -> Result<(), LogError> {
        match &self.poisoned {
            Some(reason) => Err(LogError::Poisoned { reason: reason.clone() }),
            None if self.life == Life::Closed => Err(LogError::Closed),
            None => Ok(()),
        }
    }

    /// Marks the entry dead if it is live and `condition` holds of it. Its record stays on flash, so it stays.
    fn kill(&mut self, hash: u64, condition: impl Fn(&Entry) -> bool) -> bool {
        let Some(slot) = self.index.find(hash) else { return false };
        let entry = self.index.entry(slot);
        let Place::Record { segment, position, span, live: true } = entry.place else { return false };
        if !condition(&entry) {
            return false;
        }
        self.index.set(slot, &Entry { place: Place::Record { segment, position, span, live: false }, ..entry });
        self.segments.counters(segment).live -= 1;
        true
    }

    /// Makes `entry` the one of its class.
    fn publish(&mut self, hash: u64, entry: &Entry) {
        match self.index.find(hash) {
            Some(slot) => {
                let old = self.index.entry(slot);
                self.segments.counters(old.segment()).live -= u32::from(old.is_live());
                self.index.set(slot, entry);
            }
            None => {
                let segments = &self.segments;
                if let Some(evicted) = self.index.insert(hash, entry, |segment| segments.epoch(segment)) {
                    self.segments.counters(evicted.segment()).live -= u32::from(evicted.is_live());
                    self.segments.mark_blind(evicted.segment());
                    self.stats.index_evicted += 1;
                }
            }
        }
        if entry.is_live() {
            let segment = self.segments.counters(entry.segment());
            segment.live += 1;
            segment.objects += 1;
        }
    }
}

#[cfg(test)]
mod tests;
