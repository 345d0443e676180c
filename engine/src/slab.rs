//! L0's bytes: a bounded arena per shard, with S3-FIFO eviction.
//!
//! Owns [`Slab`]: entries of key, opaque metadata blob and body under a version, staged bodies, pinned bodies. One
//! thread; nothing here blocks, awaits, locks, reads a clock or draws random numbers, so the same calls always give
//! the same slab.
//!
//! In reading order: [`layout`] (THE table of an entry), [`arena`] (memory, the only `unsafe`), [`pin`] (the only
//! atomics), [`copies`] (bodies that could not be pinned), [`place`] (bodies that are not held), [`extent`] (free space),
//! [`index`], [`evict`] and [`ghost`] (S3-FIFO), [`room`] (eviction and moving), [`stage`] (bodies on their way in),
//! [`sweep`] (expiry, scans and counts).
//!
//! - INV-SLAB-1: a hit gives exactly the bytes of the last published version of its key. A version below the
//!   current one is refused, never stored.
//! - INV-SLAB-2: everything is inside the arena of fixed size and tables of fixed bounds
//!   ([`Config::metadata_bytes_max`]).
//! - INV-SLAB-3: an entry that is evicted, replaced or swept is shown to the caller while its bytes are intact.
//! - INV-SLAB-4: bytes that a `Bytes` pins are neither written, moved nor reused before its drop was seen.
//! - INV-PLACE-1: the body that a [`Place`] names has not changed while [`Slab`]'s count of changes stands.
//! - A hit takes no lock, no atomic operation and no allocation, unless [`Hit::pin`] is called.
//!
//! Leaves to the tier above: what a version, a flag or the blob means, which tiers an evicted entry goes to, and
//! checksums. Absent on purpose: any reading of the blob, any clock, any thread.

mod arena;
mod copies;
mod evict;
mod extent;
mod ghost;
mod index;
mod layout;
mod pin;
mod place;
mod room;
mod stage;
mod sweep;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, io};

use bytes::Bytes;

pub use self::place::Place;
pub use self::stage::{Stage, StageError};
pub use self::sweep::{Cursor, Stats, Visited};
use self::{
    arena::{Arena, At, UNIT_BYTES},
    copies::Copies,
    evict::{S3Fifo, raised},
    extent::{Align, Extents},
    index::Index,
    layout::{BODY_OWN_BYTES_MIN, Body, Head},
    room::{Large, Owner},
    stage::{Dropped, Slot},
    sweep::Counts,
};

/// Longest key, in bytes: 4 KiB of path and a namespace.
pub const KEY_BYTES_MAX: usize = 4096 + 64;
/// Longest metadata blob, in bytes.
pub const META_BYTES_MAX: usize = 64 << 10;
/// Smallest arena, in bytes.
pub const ARENA_BYTES_MIN: u64 = 256 << 10;
/// Largest arena, in bytes: positions are 32 bits of 16-byte units.
pub const ARENA_BYTES_MAX: u64 = (u32::MAX as u64 / 4096) * 4096 * UNIT_BYTES as u64;

/// A body takes at most this part of the arena (one in so many), unless configured otherwise.
const BODY_SHARE: u64 = 8;
/// All stages together take at most this part of the arena.
const STAGED_SHARE: u64 = 4;
/// Pinned bodies take at most this part of the arena; further pins are copies ...
const PINNED_SHARE: u64 = 10;
/// ... which together take at most as much memory as this part of the arena; beyond, the bytes are not given.
const COPIED_SHARE: u64 = 32;
/// A body up to this many bytes is copied whatever copies there are: its reader answers for so much.
const COPY_FREE_BYTES: u32 = 16 << 10;
/// Mean footprint of an entry that the index is made for, in bytes. Smaller means reach the objects' bound first.
const OBJECT_BYTES_MEAN: u64 = 256;
/// Pins alive at a time: one for so many bytes of the arena ...
const PIN_BYTES: u64 = 16 << 10;
/// ... but not above this, since each costs up to 64 bytes of tables. Further pins are copies.
const PINS_MAX: u64 = 16 << 10;

const _: () = assert!(KEY_BYTES_MAX <= layout::KEY_BYTES_FIELD_MAX && META_BYTES_MAX <= layout::META_BYTES_FIELD_MAX);

/// Sizes of a slab. All in bytes unless named otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The arena; rounded down to whole pages, and into [`ARENA_BYTES_MIN`]..=[`ARENA_BYTES_MAX`].
    pub arena_bytes: u64,
    /// Largest body. Larger ones are [`Outcome::TooLarge`].
    pub body_bytes_max: u64,
    /// All stages together.
    pub staged_bytes_max: u64,
    /// All pinned bodies together; a pin above it is a copy.
    pub pinned_bytes_max: u64,
    /// All copies made in the place of pins together, of bodies above 16 KiB; see [`Hit::pin`].
    pub copied_bytes_max: u64,
    /// Mean footprint of an entry (key, blob, body and head) that the index is made for: it takes at least
    /// `arena_bytes / object_bytes_mean` objects.
    pub object_bytes_mean: u64,
    /// Pins alive at a time; one above it is a copy.
    pub pins_max: u32,
}

impl Config {
    /// The defaults for an arena of that size.
    #[must_use]
    pub fn new(arena_bytes: u64) -> Self {
        let arena_bytes = arena_bytes.clamp(ARENA_BYTES_MIN, ARENA_BYTES_MAX) / 4096 * 4096;
        Self {
            arena_bytes,
            body_bytes_max: arena_bytes / BODY_SHARE,
            staged_bytes_max: arena_bytes / STAGED_SHARE,
            pinned_bytes_max: arena_bytes / PINNED_SHARE,
            copied_bytes_max: arena_bytes / COPIED_SHARE,
            object_bytes_mean: OBJECT_BYTES_MEAN,
            pins_max: u32::try_from((arena_bytes / PIN_BYTES).min(PINS_MAX)).expect("a small bound"),
        }
    }

    /// The defaults for the largest arena that, with all its tables and copies, fits into `memory_bytes`; or for the smallest
    /// arena, if none does.
    #[must_use]
    pub fn within(memory_bytes: u64) -> Self {
        // The tables' sizes are powers of two, so the sum jumps: search by pages rather than invert it.
        let (mut low, mut high) = (ARENA_BYTES_MIN / 4096, (memory_bytes / 4096).max(ARENA_BYTES_MIN / 4096));
        while low < high {
            let middle = (low + high).div_ceil(2);
            let config = Self::new(middle * 4096);
            if config.arena_bytes + config.copied_bytes_max + config.metadata_bytes_max() <= memory_bytes {
                low = middle
            } else {
                high = middle - 1
            }
        }
        Self::new(low * 4096)
    }

    /// Bound on the memory that the slab uses beside the arena: index, ghosts, free-space bits, body and pin tables.
    #[must_use]
    pub fn metadata_bytes_max(&self) -> u64 {
        let objects = self.objects();
        let index = index::table_bytes_for(objects) as u64;
        let ghosts = ghost::table_bytes_for(index::buckets_for(objects) / 16 * 7) as u64;
        let bits = self.arena_bytes / UNIT_BYTES as u64 / 8;
        // A B-tree's leaves are at least half full.
        let large = self.arena_bytes / BODY_OWN_BYTES_MIN as u64 * 2 * size_of::<(At, Large)>() as u64;
        let pins = u64::from(self.pins_max) * (16 + 2 * 24);
        index + ghosts + bits + large + pins + size_of::<Slab>() as u64
    }

    fn objects(&self) -> usize {
        usize::try_from(self.arena_bytes / self.object_bytes_mean.max(1)).unwrap_or(usize::MAX)
    }
}

/// The fields of an entry to be stored, but its body.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// At most [`KEY_BYTES_MAX`].
    pub key: &'a [u8],
    /// The caller's hash of the key; the same key always comes with the same hash.
    pub hash: u64,
    /// Higher is newer.
    pub version: u64,
    /// At most [`META_BYTES_MAX`], opaque.
    pub meta: &'a [u8],
    /// Wall time in milliseconds at which it is gone; 0 = never. Times after the year 2527 are kept as that.
    pub expires_ms: u64,
    /// The caller's.
    pub flags: u8,
}

/// What became of an entry to be stored. Nothing changes unless `Stored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It is the key's entry now.
    Stored,
    /// The slab holds a newer version, which stays.
    Older {
        /// That version.
        current: u64,
    },
    /// Key, blob or body is above its bound.
    TooLarge,
    /// Pinned and staged bytes leave no room. (Other entries may have been evicted in the attempt.) An older version
    /// of the key stays: who has the write acknowledged elsewhere must call [`Slab::remove_older`].
    NoRoom,
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Update {
    /// The entry carries the new fields.
    Done,
    /// No entry of that key, or it had to leave to make room.
    Missing,
    /// The slab holds a newer version, which stays.
    Older {
        /// That version.
        current: u64,
    },
    /// The blob is above its bound.
    TooLarge,
    /// No room for the larger blob; the entry is as it was.
    NoRoom,
}

/// Why an entry leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// To make room.
    Evicted,
    /// By a newer (or equal) version of its key.
    Replaced,
    /// Past its time.
    Expired,
    /// By a scan that [`Slab::retain`] makes, unless it keeps the entry.
    Purged,
}

/// An entry about to leave, its bytes still in place.
#[derive(Clone, Copy, Debug)]
pub struct Evicted<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// The hash it was stored with.
    pub hash: u64,
    /// Its version.
    pub version: u64,
    /// Its blob.
    pub meta: &'a [u8],
    /// Its body, whole.
    pub body: &'a [u8],
    /// Wall time in milliseconds; 0 = never.
    pub expires_ms: u64,
    /// The caller's.
    pub flags: u8,
    /// Hits of the key since it was first stored, counted up to 15.
    pub hits: u8,
    /// Why it leaves.
    pub reason: Reason,
}

/// Called with each entry that leaves during an operation, before its space is reused. Entries that the caller
/// removes, or finds expired in a look-up, are not shown: the answer tells.
pub type OnEvict<'a> = &'a mut dyn FnMut(Evicted<'_>);

/// What a look-up found.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// The entry.
    Hit(Hit<'a>),
    /// It was there and past its time; it is freed now.
    Expired(Peek),
    /// Not there.
    Miss,
}

/// What is known of an entry without counting a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// Its version.
    pub version: u64,
    /// Wall time in milliseconds; 0 = never. May be past.
    pub expires_ms: u64,
    /// The caller's.
    pub flags: u8,
    /// Bytes of the body.
    pub body_bytes: u64,
}

impl Peek {
    fn of(head: &Head) -> Self {
        Self {
            version: head.version,
            expires_ms: head.expires_ms,
            flags: head.flags,
            body_bytes: head.body_bytes() as u64,
        }
    }
}

/// The bytes of one shard's L0. See the module for its invariants.
pub struct Slab {
    config: Config,
    extents: Extents,
    index: Index,
    queues: S3Fifo,
    /// Extents in use that are not heads (INV-ROOM-1).
    large: BTreeMap<At, Large>,
    stages: Vec<Slot>,
    stages_free: Vec<u32>,
    dropped: Dropped,
    staged_units: u32,
    limbo_units: u32,
    copies: Copies,
    /// Kept for its capacity.
    over: Vec<At>,
    sweep_at: usize,
    /// See [`place`].
    changes: u64,
    counts: Counts,
}

impl Slab {
    /// Maps the arena and allocates index and ghosts. Blocks for the system calls; fails when memory is refused.
    pub fn new(config: Config) -> io::Result<Self> {
        let arena_bytes = config.arena_bytes.clamp(ARENA_BYTES_MIN, ARENA_BYTES_MAX) / 4096 * 4096;
        let body_bytes_max = config.body_bytes_max.min(arena_bytes).min(u64::from(u32::MAX));
        let config = Config { arena_bytes, body_bytes_max, ..config };
        let units = u32::try_from(arena_bytes / UNIT_BYTES as u64).expect("clamped to what 32 bits count");
        let index = Index::new(config.objects());
        let queues = S3Fifo::new(units, index.objects_max());
        Ok(Self {
            config,
            extents: Extents::new(Arena::new(units, config.pins_max)?),
            index,
            queues,
            large: BTreeMap::new(),
            stages: Vec::new(),
            stages_free: Vec::new(),
            dropped: Dropped::default(),
            staged_units: 0,
            limbo_units: 0,
            copies: Copies::new(config.copied_bytes_max),
            over: Vec::new(),
            sweep_at: 0,
            changes: 0,
            counts: Counts::default(),
        })
    }

    /// The sizes in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Looks a key up and counts the hit. `now_ms` is wall time.
    pub fn get(&mut self, hash: u64, key: &[u8], now_ms: u64) -> Lookup<'_> {
        let Some(at) = self.index.find(self.extents.arena(), hash, key) else { return Lookup::Miss };
        let head = Head::load(self.extents.arena(), at);
        if head.is_expired(now_ms) {
            self.counts.expired += 1;
            self.discard(at);
            return Lookup::Expired(Peek::of(&head));
        }
        layout::touch(self.extents.arena_mut(), at, &head);
        Lookup::Hit(Hit { slab: self, at, head })
    }

    /// The entry of a key, expired or not; counts nothing.
    #[must_use]
    pub fn peek(&self, hash: u64, key: &[u8]) -> Option<Peek> {
        let at = self.index.find(self.extents.arena(), hash, key)?;
        Some(Peek::of(&Head::load(self.extents.arena(), at)))
    }

    /// Stores an entry whose body is at hand.
    pub fn insert(&mut self, entry: Entry<'_>, body: &[u8], on_evict: OnEvict<'_>) -> Outcome {
        if let Some(refused) = self.refuse(&entry, body.len() as u64) {
            return refused;
        }
        if body.len() < BODY_OWN_BYTES_MIN {
            let inline = Body::Inline(u32::try_from(body.len()).expect("below 4096"));
            let Some((at, head)) = self.begin(&entry, inline, on_evict) else { return Outcome::NoRoom };
            let arena = self.extents.arena_mut();
            arena.bytes_mut(at, head.body_skip(), body.len()).copy_from_slice(body);
            self.commit(at, head, &entry, on_evict);
            return Outcome::Stored;
        }
        // A stage, because room for the head may move what was written for the body.
        let bytes_max = self.config.body_bytes_max;
        let Ok(mut stage) = self.stage(Some(body.len() as u64), bytes_max, on_evict) else { return Outcome::NoRoom };
        match self.append(&mut stage, body, on_evict) {
            Ok(()) => self.publish_own(stage, &entry, on_evict),
            Err(_) => Outcome::NoRoom,
        }
    }

    /// Makes a staged body the body of an entry. Unless it is stored, the stage is dropped and what was there stays.
    pub fn publish(&mut self, stage: Stage, entry: Entry<'_>, on_evict: OnEvict<'_>) -> Outcome {
        self.check_stage(&stage);
        let body_bytes = self.slot(&stage).bytes;
        if let Some(refused) = self.refuse(&entry, body_bytes as u64) {
            return refused;
        }
        if body_bytes >= BODY_OWN_BYTES_MIN {
            return self.publish_own(stage, &entry, on_evict);
        }
        let inline = Body::Inline(u32::try_from(body_bytes).expect("below 4096"));
        let Some((at, head)) = self.begin(&entry, inline, on_evict) else { return Outcome::NoRoom };
        if body_bytes > 0 {
            let from = self.slot(&stage).at;
            self.extents.arena_mut().copy((from, 0), (at, head.body_skip()), body_bytes);
        }
        self.commit(at, head, &entry, on_evict);
        Outcome::Stored
    }

    fn publish_own(&mut self, stage: Stage, entry: &Entry<'_>, on_evict: OnEvict<'_>) -> Outcome {
        let bytes = u32::try_from(self.slot(&stage).bytes).expect("an arena's part");
        let place = Body::Own { at: At::NONE, bytes };
        let Some((at, head)) = self.begin(entry, place, on_evict) else { return Outcome::NoRoom };
        let body_at = self.stage_take(&stage);
        self.large.insert(body_at, Large { units: layout::body_units(bytes as usize), owner: Owner::Entry(at) });
        self.commit(at, Head { body: Body::Own { at: body_at, bytes }, ..head }, entry, on_evict);
        Outcome::Stored
    }

    /// Changes blob, expiry and flags under a version that is not below the current one; the body stays. Counts no
    /// hit. May evict when the blob's size changes.
    pub fn update_meta(&mut self, entry: Entry<'_>, on_evict: OnEvict<'_>) -> Update {
        if entry.meta.len() > META_BYTES_MAX {
            return Update::TooLarge;
        }
        let find = |slab: &Self| slab.index.find(slab.extents.arena(), entry.hash, entry.key);
        let Some(at) = find(self) else { return Update::Missing };
        let old = Head::load(self.extents.arena(), at);
        if old.version > entry.version {
            return Update::Older { current: old.version };
        }
        let fields = |old: Head| Head {
            version: entry.version,
            expires_ms: entry.expires_ms,
            flags: entry.flags,
            meta_bytes: entry.meta.len(),
            ..old
        };
        if old.meta_bytes == entry.meta.len() {
            let arena = self.extents.arena_mut();
            fields(old).store(arena, at);
            arena.bytes_mut(at, old.meta_skip(), entry.meta.len()).copy_from_slice(entry.meta);
            return Update::Done;
        }
        let units = fields(old).units();
        let Some(to) = self.room(units, Align::Unit, on_evict) else { return Update::NoRoom };
        // Room may have moved the entry, or evicted it.
        let Some(at) = find(self) else {
            self.extents.free(to, units);
            return Update::Missing;
        };
        let old = Head::load(self.extents.arena(), at);
        let new = fields(old);
        let arena = self.extents.arena_mut();
        new.store(arena, to);
        new.store_names(arena, to, entry.key, entry.meta);
        match new.body {
            Body::Inline(bytes) => arena.copy((at, old.body_skip()), (to, new.body_skip()), bytes as usize),
            Body::Own { at: body, .. } => {
                self.large.get_mut(&body).expect("a body extent is known (INV-ROOM-1)").owner = Owner::Entry(to);
            }
        }
        self.queues.replace(self.extents.arena_mut(), &old, to, new);
        self.index.replace(entry.hash, at, to);
        self.changed();
        self.extents.free(at, old.units());
        Update::Done
    }

    /// Removes a key, whatever its version; returns the version that was there.
    pub fn remove(&mut self, hash: u64, key: &[u8]) -> Option<u64> {
        self.remove_older(hash, key, u64::MAX)
    }

    /// Removes a key if its version is at most `version`; returns the version that was removed. A delete or write
    /// at `version` calls this where it does not store, so that nothing it supersedes is found again.
    pub fn remove_older(&mut self, hash: u64, key: &[u8], version: u64) -> Option<u64> {
        let at = self.index.find(self.extents.arena(), hash, key)?;
        let current = Head::load(self.extents.arena(), at).version;
        if current > version {
            return None;
        }
        self.discard(at);
        self.counts.removed += 1;
        Some(current)
    }

    fn may_pin(&self, at: At, bytes: u32) -> bool {
        let arena = self.extents.arena();
        let more = if arena.is_pinned(at) { 0 } else { bytes as usize };
        (arena.pinned_bytes() + more) as u64 <= self.config.pinned_bytes_max
    }

    fn refuse(&self, entry: &Entry<'_>, body_bytes: u64) -> Option<Outcome> {
        let too_large = entry.key.len() > KEY_BYTES_MAX || entry.meta.len() > META_BYTES_MAX;
        if too_large || body_bytes > self.config.body_bytes_max {
            return Some(Outcome::TooLarge);
        }
        let current = self.peek(entry.hash, entry.key)?.version;
        (current > entry.version).then_some(Outcome::Older { current })
    }

    /// Finds room for a head, and in the index; writes key and blob. The entry is in neither index nor queue yet,
    /// so `commit` must follow before any other room is made.
    fn begin(&mut self, entry: &Entry<'_>, body: Body, on_evict: OnEvict<'_>) -> Option<(At, Head)> {
        let head = Head {
            hash: entry.hash,
            version: entry.version,
            next: At::NONE,
            prev: At::NONE,
            expires_ms: entry.expires_ms,
            key_bytes: entry.key.len(),
            meta_bytes: entry.meta.len(),
            body,
            flags: entry.flags,
            hits: 0,
            freq: 0,
            main: false,
        };
        if self.index.is_full() && !self.evict_one(on_evict) {
            return None;
        }
        let at = self.room(head.units(), Align::Unit, on_evict)?;
        head.store_names(self.extents.arena_mut(), at, entry.key, entry.meta);
        Some((at, head))
    }

    /// Makes a written entry the entry of its key.
    fn commit(&mut self, at: At, head: Head, entry: &Entry<'_>, on_evict: OnEvict<'_>) {
        self.counts.inserts += 1;
        let Some(old_at) = self.index.find(self.extents.arena(), entry.hash, entry.key) else {
            self.queues.admit(self.extents.arena_mut(), at, head);
            self.index.insert(self.extents.arena(), head.hash, at);
            return;
        };
        // A new version keeps its key's place in the queue, and counts as one more access to it: order of arrival
        // and popularity are the key's.
        self.show(old_at, Reason::Replaced, on_evict);
        let old = Head::load(self.extents.arena(), old_at);
        let head = Head { hits: old.hits, freq: raised(old.freq), ..head };
        self.queues.replace(self.extents.arena_mut(), &old, at, head);
        self.index.replace(entry.hash, old_at, at);
        self.release(old_at, &old);
    }
}

/// An entry found, borrowed from its slab.
pub struct Hit<'a> {
    slab: &'a mut Slab,
    at: At,
    head: Head,
}

impl Hit<'_> {
    /// Its version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.head.version
    }

    /// Wall time in milliseconds at which it is gone; 0 = never.
    #[must_use]
    pub fn expires_ms(&self) -> u64 {
        self.head.expires_ms
    }

    /// The caller's.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.head.flags
    }

    /// Hits before this one, counted up to 15.
    #[must_use]
    pub fn hits(&self) -> u8 {
        self.head.hits
    }

    /// Its blob.
    #[must_use]
    pub fn meta(&self) -> &[u8] {
        self.head.meta(self.slab.extents.arena(), self.at)
    }

    /// Bytes of the body.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.head.body_bytes() as u64
    }

    /// The body in place, to be copied from; for small bodies.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.head.body(self.slab.extents.arena(), self.at)
    }

    /// The body as `Bytes` that may outlive entry and slab, and be dropped on any thread. Its bytes are not copied,
    /// unless it is below 4 KiB, or pins are at their bound (counted in [`Stats::pins_copied`]). `None`: copies are at
    /// theirs, too (counted in [`Stats::pins_refused`]); never for a body of at most 16 KiB.
    #[must_use]
    pub fn pin(self) -> Option<Bytes> {
        let Body::Own { at, bytes } = self.head.body else { return Some(Bytes::copy_from_slice(self.body())) };
        for look_again in [true, false] {
            if self.slab.may_pin(at, bytes)
                && let Some(pin) = self.slab.extents.arena_mut().pin(at, bytes as usize)
            {
                self.slab.counts.pins += 1;
                return Some(pin);
            }
            if look_again {
                // Dropped pins count until they are seen.
                self.slab.settle();
            }
        }
        let body = self.slab.extents.arena().bytes(at, 0, bytes as usize);
        let copy =
            if bytes <= COPY_FREE_BYTES { Some(Bytes::copy_from_slice(body)) } else { self.slab.copies.copy(body) };
        let counts = &mut self.slab.counts;
        *(if copy.is_some() { &mut counts.pins_copied } else { &mut counts.pins_refused }) += 1;
        copy
    }
}

impl std::fmt::Debug for Hit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hit").field("version", &self.version()).field("body_bytes", &self.body_bytes()).finish()
    }
}
