//! The superseding ring: what a killed process had acknowledged and not yet written to flash.
//!
//! A cache-only overwrite or delete is acknowledged before its record or tombstone is on flash. So that the older
//! copy there cannot come back after kill -9, the superseding version is first noted here, in a small file mapped
//! MAP_SHARED: its pages outlive the process. A note is freed when the block with its record is written. Recovery
//! drops every record of that hash with a lower version, and turns the notes into tombstones. After a power cut the
//! notes are worth nothing, and the cache-only contents they protect are discarded; an old note that survived by
//! chance does no harm, for what it says stays true.
//!
//! ```text
//! FILE   page 0: header                        SLOT (24 bytes)
//!         0  8  magic "STRARING"                0  8  key hash
//!         8  4  format version                  8  8  version; the slot is free when the crc does not match
//!        12  4  crc of 0..20, this field zero  16  4  crc of the 16 bytes, started from the slot's number + 1
//!        16  4  slots                          20  4  zero
//!        page 1..: slots
//! ```
//!
//! Bound: the slots. When all are taken, the note waits for a flush of the log's open buffer.
#![expect(unsafe_code, reason = "a shared mapping of a file")]

use std::{
    cell::{Cell, RefCell},
    io,
    path::Path,
    rc::Rc,
};

use crate::device::PAGE;

use super::format::crc;

/// Slots of a ring file unless the owner asks for others.
pub const RING_SLOTS: u32 = 16 << 10;

const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"STRARING";
const HEADER: usize = 20;
const SLOT: usize = 24;

/// "Versions of this key below this one are dead."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Hash of the key.
    pub hash: u64,
    /// The superseding version.
    pub version: u64,
}

/// Where notes are kept. Never blocks.
pub trait NoteStore: 'static {
    /// How many notes fit.
    fn slots(&self) -> usize;

    /// What a slot holds.
    fn get(&self, slot: usize) -> Option<Note>;

    /// Fills or frees a slot; visible to the next process at once.
    fn set(&mut self, slot: usize, note: Option<Note>);

    /// Whether what an earlier process noted is here. `false`: the store is new, was damaged, or was given up by
    /// [`NoteStore::set_intact`].
    fn is_intact(&self) -> bool;

    /// Says to the next process whether it may rely on the notes; it learns at once. A poisoned log gives its notes
    /// up, since what supersedes can be noted no more; a log that has opened, and remembers on flash what became of
    /// the notes before, vouches for those to come.
    fn set_intact(&mut self, intact: bool);
}

/// A [`NoteStore`] in a file.
pub struct RingFile {
    map: memmap2::MmapMut,
    slots: usize,
    is_intact: bool,
}

impl RingFile {
    /// Opens or makes the file at `path`. Blocks for the system calls; called at start. A damaged file is made anew
    /// and says so through [`NoteStore::is_intact`] until [`NoteStore::set_intact`]; one with another number of slots keeps it.
    ///
    /// # Errors
    /// The file cannot be opened, sized or mapped, or a newer version wrote it.
    pub fn open(path: &Path, slots: u32) -> io::Result<Self> {
        let named = |source: io::Error| io::Error::new(source.kind(), format!("{}: {source}", path.display()));
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(named)?;
        let found = read_header(&file).map_err(named)?;
        let kept = found.unwrap_or(slots.max(1)) as usize;
        let len = PAGE + (kept * SLOT).next_multiple_of(PAGE);
        let was = file.metadata().map_err(named)?.len();
        if found.is_none() {
            file.set_len(0).map_err(named)?;
        }
        // Really allocated: a store into a hole of a full disk would kill the process.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len as u64)
            .map_err(|refused| named(refused.into()))?;
        // SAFETY: the mapping is shared with the file by design. Nobody shortens it: the data directory is locked
        // by this process, and what changes in it is read through crcs.
        let map = unsafe { memmap2::MmapOptions::new().len(len).map_mut(&file) }.map_err(named)?;
        Ok(Self { map, slots: kept, is_intact: found.is_some() && was >= len as u64 })
    }

    /// Whether [`RingFile::open`] would take the file at `path`, if there is one. Blocks for two system calls; changes
    /// nothing.
    ///
    /// # Errors
    /// The file cannot be read, or a newer version wrote it.
    pub fn inspect(path: &Path) -> io::Result<()> {
        let named = |source: io::Error| io::Error::new(source.kind(), format!("{}: {source}", path.display()));
        let file = match std::fs::File::open(path) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(named)?,
        };
        read_header(&file).map(drop).map_err(named)
    }

    fn at(slot: usize) -> usize {
        PAGE + slot * SLOT
    }
}

/// Slots of a sound header; `None` where there is none.
fn read_header(file: &std::fs::File) -> io::Result<Option<u32>> {
    let mut header = [0; HEADER];
    match std::os::unix::fs::FileExt::read_exact_at(file, &mut header, 0) {
        Ok(()) => decode_header(&header),
        Err(short) if short.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(other) => Err(other),
    }
}

fn encode_header(slots: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[16..20].copy_from_slice(&slots.to_le_bytes());
    let crc = crc(0, &[&header]);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    header
}

fn decode_header(header: &[u8; HEADER]) -> io::Result<Option<u32>> {
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..8] != *MAGIC || crc(0, &[&header[..12], &[0; 4], &header[16..]]) != field(12) {
        return Ok(None);
    }
    match field(8) {
        FORMAT_VERSION => Ok(Some(field(16)).filter(|slots| (1..=1 << 24).contains(slots))),
        newer => Err(io::Error::other(format!(
            "the superseding ring has format {newer}, this program reads {FORMAT_VERSION}"
        ))),
    }
}

fn encode_slot(slot: usize, note: Option<Note>) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    if let Some(Note { hash, version }) = note {
        bytes[..8].copy_from_slice(&hash.to_le_bytes());
        bytes[8..16].copy_from_slice(&version.to_le_bytes());
        let crc = crc(slot as u32 + 1, &[&bytes[..16]]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

fn decode_slot(slot: usize, bytes: &[u8]) -> Option<Note> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let note = Note { hash: word(0), version: word(8) };
    (bytes == encode_slot(slot, Some(note))).then_some(note)
}

impl NoteStore for RingFile {
    fn slots(&self) -> usize {
        self.slots
    }

    fn get(&self, slot: usize) -> Option<Note> {
        decode_slot(slot, &self.map[Self::at(slot)..Self::at(slot) + SLOT])
    }

    fn set(&mut self, slot: usize, note: Option<Note>) {
        self.map[Self::at(slot)..Self::at(slot) + SLOT].copy_from_slice(&encode_slot(slot, note));
    }

    fn is_intact(&self) -> bool {
        self.is_intact
    }

    fn set_intact(&mut self, intact: bool) {
        let header = if intact { encode_header(self.slots as u32) } else { [0; HEADER] };
        self.map[..HEADER].copy_from_slice(&header);
    }
}

/// A [`NoteStore`] in memory for simulations: clones share it, so it outlives a simulated process.
#[derive(Clone, Debug)]
pub struct RingMemory {
    notes: Rc<RefCell<Vec<Option<Note>>>>,
    is_intact: Rc<Cell<bool>>,
}

impl RingMemory {
    /// A store of `slots` free slots.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self { notes: Rc::new(RefCell::new(vec![None; slots])), is_intact: Rc::new(Cell::new(true)) }
    }

    /// What a power cut does to pages that were never written back.
    pub fn lose(&self) {
        self.notes.borrow_mut().fill(None);
    }
}

impl NoteStore for RingMemory {
    fn slots(&self) -> usize {
        self.notes.borrow().len()
    }

    fn get(&self, slot: usize) -> Option<Note> {
        self.notes.borrow()[slot]
    }

    fn set(&mut self, slot: usize, note: Option<Note>) {
        self.notes.borrow_mut()[slot] = note;
    }

    fn is_intact(&self) -> bool {
        self.is_intact.get()
    }

    fn set_intact(&mut self, intact: bool) {
        self.is_intact.set(intact);
    }
}

/// A note's place, to be freed when its record is on flash.
#[derive(Debug)]
pub(super) struct NoteId(usize);

/// The notes of a running log: a store, and which of its slots are free.
pub(super) struct Ring {
    store: Box<dyn NoteStore>,
    free: Vec<usize>,
}

impl Ring {
    /// Takes over a store. Notes of an earlier process stay until [`Ring::free`] of what [`Ring::notes`] gives.
    pub(super) fn new(store: impl NoteStore) -> Self {
        let free = (0..store.slots()).rev().filter(|slot| store.get(*slot).is_none()).collect();
        Self { store: Box::new(store), free }
    }

    pub(super) fn is_intact(&self) -> bool {
        self.store.is_intact()
    }

    pub(super) fn set_intact(&mut self, intact: bool) {
        self.store.set_intact(intact);
    }

    /// What is noted.
    pub(super) fn notes(&self) -> Vec<(NoteId, Note)> {
        (0..self.store.slots()).filter_map(|slot| Some((NoteId(slot), self.store.get(slot)?))).collect()
    }

    /// Notes; `None` when every slot is taken.
    pub(super) fn put(&mut self, note: Note) -> Option<NoteId> {
        let slot = self.free.pop()?;
        self.store.set(slot, Some(note));
        Some(NoteId(slot))
    }

    /// Frees a note.
    pub(super) fn free(&mut self, NoteId(slot): NoteId) {
        self.store.set(slot, None);
        self.free.push(slot);
    }

    /// Forgets everything: for a log that starts empty.
    pub(super) fn clear(&mut self) {
        self.notes().into_iter().for_each(|(id, _)| self.free(id));
    }

    /// Slots taken, and all.
    pub(super) fn fill(&self) -> (usize, usize) {
        (self.store.slots() - self.free.len(), self.store.slots())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&encode_header(16)), GOLDEN[0]);
        assert_eq!(hex(&encode_slot(3, Some(Note { hash: 0x1122, version: 0x42 }))), GOLDEN[1]);
        assert_eq!(encode_slot(3, None), [0; SLOT]);
    }

    const GOLDEN: [&str; 2] =
        ["5354524152494e47010000009f416afb10000000", "22110000000000004200000000000000fbd8343e00000000"];

    #[test]
    fn notes_outlive_the_mapping_and_bad_ones_are_no_notes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ring");
        let note = |n: u64| Note { hash: n, version: n * 10 };
        let mut ring = Ring::new(RingFile::open(&path, 4).expect("made"));
        assert!(!ring.is_intact(), "a new file knows of no earlier process");
        assert!(!RingFile::open(&path, 4).expect("opened").is_intact(), "and is not vouched for by being there");
        ring.set_intact(true);
        let ids: Vec<_> = (1..=4).map(|n| ring.put(note(n)).expect("room")).collect();
        assert!(ring.put(note(5)).is_none(), "full");
        ring.free(ids.into_iter().nth(1).expect("the second"));
        drop(ring);
        let again = Ring::new(RingFile::open(&path, 99).expect("opened"));
        assert!(again.is_intact());
        assert_eq!(again.notes().into_iter().map(|(_, note)| note).collect::<Vec<_>>(), [note(1), note(3), note(4)]);
        assert_eq!(again.fill(), (3, 4), "it keeps its slots");
        drop(again);

        let mut bytes = std::fs::read(&path).expect("there");
        bytes[PAGE + 8] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        let torn = RingFile::open(&path, 4).expect("opened");
        assert!(torn.is_intact() && torn.get(0).is_none() && torn.get(2) == Some(note(3)));
        drop(torn);
        bytes[16] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        let damaged = RingFile::open(&path, 4).expect("made anew");
        assert!(!damaged.is_intact() && (0..4).all(|slot| damaged.get(slot).is_none()));
        drop(damaged);
        let mut newer = encode_header(4);
        newer[8] = 9;
        newer[12..16].fill(0);
        let crc = crc(0, &[&newer]);
        newer[12..16].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, newer).expect("written");
        let refused = RingFile::open(&path, 4).err().expect("refused").to_string();
        assert!(refused.contains("format 9") && refused.contains("ring"), "{refused}");
        assert_eq!(std::fs::read(&path).expect("there"), newer, "nothing was changed");
    }
}
