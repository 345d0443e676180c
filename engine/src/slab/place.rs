//! Coming back for the body of an entry that was found, without holding it.
//!
//! Owns [`Place`]. A reader of a small body keeps one instead of a pin or a copy: it costs nothing, binds nothing, and
//! may be too late. [`Slab::changes`] counts everything that makes an entry leave, move or give its extents up; as long
//! as it stands, the bytes are where they were (INV-PLACE-1). Afterwards the entry is looked for anew, by hash and
//! version: keys are not kept, so a caller that must be sure beyond these 128 bits checks what it gets.
//!
//! Leaves to the tier above: that check, and which bodies are small.

use super::{Hit, Slab, arena::At, layout::Head};

/// Where the body of an entry is, or was. Holds nothing: the entry may move or leave meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    hash: u64,
    pub(super) version: u64,
    changes: u64,
    at: At,
    skip: u32,
    bytes: u32,
}

impl Hit<'_> {
    /// Where its body is, to be read later with [`Slab::body_in_place`] or [`Slab::body_sought`].
    #[must_use]
    pub fn place(&self) -> Place {
        let (at, skip, bytes) = self.head.body_place(self.at);
        let narrow = |bytes: usize| u32::try_from(bytes).expect("lengths in an entry have at most 32 bits");
        Place {
            hash: self.head.hash,
            version: self.head.version,
            changes: self.slab.changes,
            at,
            skip: narrow(skip),
            bytes: narrow(bytes),
        }
    }
}

impl Slab {
    /// The body, if nothing has left or moved in the slab since it was found there; counts nothing.
    #[must_use]
    pub fn body_in_place(&self, place: &Place) -> Option<&[u8]> {
        (place.changes == self.changes)
            .then(|| self.extents.arena().bytes(place.at, place.skip as usize, place.bytes as usize))
    }

    /// The body of the entry with the same hash, version and length, wherever it is now; `None` when it left. Counts
    /// nothing.
    #[must_use]
    pub fn body_sought(&self, place: &Place) -> Option<&[u8]> {
        let arena = self.extents.arena();
        let at = self.index.find_version(arena, place.hash, place.version)?;
        let body = Head::load(arena, at).body(arena, at);
        (body.len() == place.bytes as usize).then_some(body)
    }

    /// An entry leaves, moves, or gives an extent up: no [`Place`] of before is to be trusted.
    pub(super) fn changed(&mut self) {
        self.changes += 1;
    }
}
