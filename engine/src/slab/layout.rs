//! The bytes of an entry in the arena. THE table:
//!
//! ```text
//! head extent, any unit:
//!  0  hash        u64
//!  8  version     u64
//! 16  next        u32   neighbour in its queue, towards the newest; units, all ones = none
//! 20  prev        u32   towards the oldest
//! 24  state       u64   bits  0..44 expires_ms (0 = never; the last value stands for all later times, year 2527)
//!                            44..57 key bytes
//!                            57..61 hits since stored, at most 15
//!                            61..63 S3-FIFO counter, at most 3
//!                                63 in the main queue
//! 32  lengths     u40   bits  0..17 meta bytes
//!                            17..30 body bytes, if below 4096; 4096 = the body has its own extent
//!                            30..32 zero
//!                            32..40 flags, the owner's
//! 37  body extent u32   unit      \  only if the body has its own extent
//! 41  body bytes  u32             /
//!  .  key, meta, body (if below 4096 bytes), packed
//! body extent, on 64 bytes: the body
//! ```
//!
//! Little-endian. Never leaves the process, so it may change freely.
//!
//! Metadata of an object: 37 bytes of head (45 with its own body extent), up to 15 bytes of rounding, and what
//! [`super::index`], [`super::evict`] and [`super::extent`] hold for it.

use super::arena::{Arena, At, UNIT_BYTES, units_for};
use super::extent::Align;

const HEAD_BYTES: usize = 37;
const BODY_AT_BYTES: usize = 8;
/// What is read of every head at once. No head extent is smaller (see [`Head::units`]).
const READ_BYTES: usize = 48;
const _: () = assert!(READ_BYTES.is_multiple_of(UNIT_BYTES) && READ_BYTES >= HEAD_BYTES + BODY_AT_BYTES);

/// Bodies of this size and more have their own extent, aligned to 64 bytes, and can be pinned.
pub(super) const BODY_OWN_BYTES_MIN: usize = 4096;
/// Hits are counted up to here.
pub(super) const HITS_MAX: u8 = 15;
/// The S3-FIFO counter has two bits.
pub(super) const FREQ_MAX: u8 = 3;
/// The last expiry that is kept; later ones are taken for it.
pub(super) const EXPIRES_MS_MAX: u64 = (1 << 44) - 1;
/// Bytes that the key's field can count.
pub(super) const KEY_BYTES_FIELD_MAX: usize = (1 << 13) - 1;
/// Bytes that the meta blob's field can count.
pub(super) const META_BYTES_FIELD_MAX: usize = (1 << 17) - 1;

const BODY_OWN_MARK: u64 = BODY_OWN_BYTES_MIN as u64;
const FREQ_ONE: u64 = 1 << 61;
const HITS_ONE: u64 = 1 << 57;

/// Where a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes after key and meta.
    Inline(u32),
    /// In its own extent.
    Own {
        /// Start of the extent.
        at: At,
        /// Bytes in use.
        bytes: u32,
    },
}

/// An entry's fixed fields, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) hash: u64,
    pub(super) version: u64,
    pub(super) next: At,
    pub(super) prev: At,
    pub(super) expires_ms: u64,
    pub(super) key_bytes: usize,
    pub(super) meta_bytes: usize,
    pub(super) body: Body,
    pub(super) flags: u8,
    pub(super) hits: u8,
    pub(super) freq: u8,
    pub(super) main: bool,
}

impl Head {
    /// The head at `at`, which must be the start of a head extent.
    pub(super) fn load(arena: &Arena, at: At) -> Self {
        let raw: &[u8; READ_BYTES] =
            arena.bytes(at, 0, READ_BYTES).try_into().expect("as many bytes as were asked for");
        let state = u64_at(raw, 24);
        let lengths = u64_at(raw, 32) & ((1 << 40) - 1);
        let body = match (lengths >> 17) & 0x1fff {
            BODY_OWN_MARK => Body::Own { at: At(u32_at(raw, 37)), bytes: u32_at(raw, 41) },
            inline => Body::Inline(inline as u32),
        };
        Self {
            hash: u64_at(raw, 0),
            version: u64_at(raw, 8),
            next: At(u32_at(raw, 16)),
            prev: At(u32_at(raw, 20)),
            expires_ms: state & EXPIRES_MS_MAX,
            key_bytes: (state >> 44) as usize & KEY_BYTES_FIELD_MAX,
            meta_bytes: lengths as usize & META_BYTES_FIELD_MAX,
            body,
            flags: (lengths >> 32) as u8,
            hits: (state >> 57) as u8 & HITS_MAX,
            freq: (state >> 61) as u8 & FREQ_MAX,
            main: state >> 63 == 1,
        }
    }

    /// Writes the fixed fields; key, meta and body are left alone.
    pub(super) fn store(&self, arena: &mut Arena, at: At) {
        let (body_bytes, fixed_bytes) = match self.body {
            Body::Inline(bytes) => (u64::from(bytes), HEAD_BYTES),
            Body::Own { .. } => (BODY_OWN_MARK, HEAD_BYTES + BODY_AT_BYTES),
        };
        let state = self.expires_ms.min(EXPIRES_MS_MAX)
            | (self.key_bytes as u64) << 44
            | u64::from(self.hits) << 57
            | u64::from(self.freq) << 61
            | u64::from(self.main) << 63;
        let lengths = self.meta_bytes as u64 | body_bytes << 17 | u64::from(self.flags) << 32;
        let raw = arena.bytes_mut(at, 0, fixed_bytes);
        raw[0..8].copy_from_slice(&self.hash.to_le_bytes());
        raw[8..16].copy_from_slice(&self.version.to_le_bytes());
        raw[16..20].copy_from_slice(&self.next.0.to_le_bytes());
        raw[20..24].copy_from_slice(&self.prev.0.to_le_bytes());
        raw[24..32].copy_from_slice(&state.to_le_bytes());
        raw[32..37].copy_from_slice(&lengths.to_le_bytes()[..5]);
        if let Body::Own { at, bytes } = self.body {
            raw[37..41].copy_from_slice(&at.0.to_le_bytes());
            raw[41..45].copy_from_slice(&bytes.to_le_bytes());
        }
    }

    /// Bytes before the key.
    fn fixed_bytes(&self) -> usize {
        match self.body {
            Body::Inline(_) => HEAD_BYTES,
            Body::Own { .. } => HEAD_BYTES + BODY_AT_BYTES,
        }
    }

    /// Where the meta blob starts, in bytes from the head.
    pub(super) fn meta_skip(&self) -> usize {
        self.fixed_bytes() + self.key_bytes
    }

    /// Where an inline body starts, in bytes from the head.
    pub(super) fn body_skip(&self) -> usize {
        self.meta_skip() + self.meta_bytes
    }

    /// Bytes of the body.
    pub(super) fn body_bytes(&self) -> usize {
        match self.body {
            Body::Inline(bytes) | Body::Own { bytes, .. } => bytes as usize,
        }
    }

    /// Units of the head extent.
    pub(super) fn units(&self) -> u32 {
        let inline = match self.body {
            Body::Inline(bytes) => bytes as usize,
            Body::Own { .. } => 0,
        };
        units_for((self.body_skip() + inline).max(READ_BYTES))
    }

    /// Units of both extents: what the entry weighs in its queue.
    pub(super) fn units_all(&self) -> u32 {
        match self.body {
            Body::Inline(_) => self.units(),
            Body::Own { bytes, .. } => self.units() + body_units(bytes as usize),
        }
    }

    /// The key of the entry at `at`.
    pub(super) fn key<'a>(&self, arena: &'a Arena, at: At) -> &'a [u8] {
        arena.bytes(at, self.fixed_bytes(), self.key_bytes)
    }

    /// The meta blob of the entry at `at`.
    pub(super) fn meta<'a>(&self, arena: &'a Arena, at: At) -> &'a [u8] {
        arena.bytes(at, self.meta_skip(), self.meta_bytes)
    }

    /// The body of the entry at `at`.
    pub(super) fn body<'a>(&self, arena: &'a Arena, at: At) -> &'a [u8] {
        let (at, skip, bytes) = self.body_place(at);
        arena.bytes(at, skip, bytes)
    }

    /// Where the body of the entry at `at` is: an extent, bytes to skip there, and bytes of the body.
    pub(super) fn body_place(&self, at: At) -> (At, usize, usize) {
        match self.body {
            Body::Inline(bytes) => (at, self.body_skip(), bytes as usize),
            Body::Own { at, bytes } => (at, 0, bytes as usize),
        }
    }

    /// Writes key and meta behind the fixed fields.
    pub(super) fn store_names(&self, arena: &mut Arena, at: At, key: &[u8], meta: &[u8]) {
        arena.bytes_mut(at, self.fixed_bytes(), key.len()).copy_from_slice(key);
        arena.bytes_mut(at, self.meta_skip(), meta.len()).copy_from_slice(meta);
    }

    /// Whether the entry is past its time.
    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms != 0 && self.expires_ms <= now_ms
    }
}

/// Units of the extent of a body of its own: whole 64-byte lines, so that no other body's line is shared.
pub(super) fn body_units(bytes: usize) -> u32 {
    units_for(bytes).next_multiple_of(Align::Line.units())
}

/// The hash of the entry at `at`.
pub(super) fn hash_at(arena: &Arena, at: At) -> u64 {
    u64::from_le_bytes(arena.bytes(at, 0, 8).try_into().expect("eight bytes were asked for"))
}

/// Counts a hit in place; writes nothing once both counters are full, so that a hot entry's line stays clean.
pub(super) fn touch(arena: &mut Arena, at: At, head: &Head) {
    let mut more = 0;
    if head.freq < FREQ_MAX {
        more += FREQ_ONE;
    }
    if head.hits < HITS_MAX {
        more += HITS_ONE;
    }
    if more != 0 {
        let raw = arena.bytes_mut(at, 24, 8);
        let state = u64_at(raw, 0) + more;
        raw.copy_from_slice(&state.to_le_bytes());
    }
}

fn u64_at(raw: &[u8], from: usize) -> u64 {
    u64::from_le_bytes(raw[from..from + 8].try_into().expect("eight bytes"))
}

fn u32_at(raw: &[u8], from: usize) -> u32 {
    u32::from_le_bytes(raw[from..from + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heads() -> impl Strategy<Value = Head> {
        let body = prop_oneof![
            (0..BODY_OWN_BYTES_MIN as u32).prop_map(Body::Inline),
            (any::<u32>(), any::<u32>()).prop_map(|(at, bytes)| Body::Own { at: At(at), bytes }),
        ];
        let links = (any::<u32>(), any::<u32>());
        let sizes = (0..=KEY_BYTES_FIELD_MAX, 0..=META_BYTES_FIELD_MAX);
        let small = (any::<u8>(), 0..=HITS_MAX, 0..=FREQ_MAX, any::<bool>());
        (any::<(u64, u64)>(), links, 0..=EXPIRES_MS_MAX, sizes, body, small).prop_map(
            |((hash, version), (next, prev), expires_ms, (key_bytes, meta_bytes), body, small)| Head {
                hash,
                version,
                next: At(next),
                prev: At(prev),
                expires_ms,
                key_bytes,
                meta_bytes,
                body,
                flags: small.0,
                hits: small.1,
                freq: small.2,
                main: small.3,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_stored_is_loaded(head in heads()) {
            let mut arena = Arena::new(256, 1).expect("maps");
            head.store(&mut arena, At(3));
            prop_assert_eq!(Head::load(&arena, At(3)), head);
            prop_assert_eq!(hash_at(&arena, At(3)), head.hash);
            touch(&mut arena, At(3), &head);
            let touched =
                Head { hits: (head.hits + 1).min(HITS_MAX), freq: (head.freq + 1).min(FREQ_MAX), ..head };
            prop_assert_eq!(Head::load(&arena, At(3)), touched);
        }
    }

    #[test]
    fn an_expiry_beyond_the_field_is_the_last_one_not_never() {
        let mut arena = Arena::new(256, 1).expect("maps");
        let head = Head {
            hash: 1,
            version: 1,
            next: At::NONE,
            prev: At::NONE,
            expires_ms: u64::MAX,
            key_bytes: 0,
            meta_bytes: 0,
            body: Body::Inline(0),
            flags: 0,
            hits: 0,
            freq: 0,
            main: false,
        };
        head.store(&mut arena, At(0));
        assert_eq!(Head::load(&arena, At(0)).expires_ms, EXPIRES_MS_MAX);
        assert_eq!(head.units(), 3, "the smallest head extent holds all that a load reads");
    }
}
