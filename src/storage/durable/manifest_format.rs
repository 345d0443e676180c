//! The bytes of a manifest in the embedded index. Little endian; format 1. The key of the entry is the path.
//!
//! ```text
//!   0   1  format version
//!   1   1  kind: 0 inline, 1 blob, 2 tombstone
//!   2   1  flags: bit 0, it expires
//!   3   1  zero
//!   4   4  CRC-32 of the path, bytes 0..4 and bytes 8..
//!   8   8  version
//!  16   8  length
//!  24   8  created, milliseconds since the Unix epoch
//!  32   8  expires, likewise; 0 without
//!  40   8  nonce
//!  48   4  CRC-32 of the body
//!  52   4  client flags
//!  56   4  bytes of headers, H
//!  60   4  bytes of tags, T
//!  64   H  headers
//!       T  tags, each a u32 of bytes and the bytes
//!          the rest: inline, the body; blob, its name (36 bytes); tombstone, nothing
//! ```

use bytes::{Buf, BufMut, Bytes};

use crate::{
    cache::Version,
    storage::traits::{BlobId, Body, Manifest},
};

/// The format written.
pub const VERSION: u8 = 1;
/// Bytes before headers, tags and body.
pub const HEAD_BYTES: usize = 64;

const CRC_AT: usize = 4;
const CRC_END: usize = 8;
const INLINE: u8 = 0;
const BLOB: u8 = 1;
const TOMBSTONE: u8 = 2;
const _: () = assert!(CRC_END == CRC_AT + 4 && HEAD_BYTES == CRC_END + 5 * 8 + 4 * 4);
const EXPIRES: u8 = 1;

/// The bytes of `manifest`.
///
/// # Panics
/// Headers or tags of 4 GiB and more; nothing that large gets past the doors.
#[must_use]
pub fn encode(manifest: &Manifest) -> Vec<u8> {
    let u32_of = |length: usize| u32::try_from(length).expect("headers and tags are bounded far below 4 GiB");
    let tags_bytes: usize = manifest.tags.iter().map(|tag| 4 + tag.len()).sum();
    let (kind, rest) = match &manifest.body {
        Body::Inline(bytes) => (INLINE, &bytes[..]),
        Body::Blob(id) => (BLOB, id.as_str().as_bytes()),
        Body::Tombstone => (TOMBSTONE, &[][..]),
    };
    let mut out = Vec::with_capacity(HEAD_BYTES + manifest.headers.len() + tags_bytes + rest.len());
    out.put_slice(&[VERSION, kind, if manifest.expires_ms.is_some() { EXPIRES } else { 0 }, 0]);
    out.put_u32_le(0);
    out.put_u64_le(manifest.version.0);
    out.put_u64_le(manifest.length);
    out.put_u64_le(manifest.created_ms);
    out.put_u64_le(manifest.expires_ms.unwrap_or(0));
    out.put_u64_le(manifest.nonce);
    out.put_u32_le(manifest.checksum);
    out.put_u32_le(manifest.client_flags);
    out.put_u32_le(u32_of(manifest.headers.len()));
    out.put_u32_le(u32_of(tags_bytes));
    debug_assert_eq!(out.len(), HEAD_BYTES);
    out.put_slice(&manifest.headers);
    for tag in &manifest.tags {
        out.put_u32_le(u32_of(tag.len()));
        out.put_slice(tag.as_bytes());
    }
    out.put_slice(rest);
    let crc = checksum(&manifest.path, &out);
    out[CRC_AT..CRC_END].copy_from_slice(&crc.to_le_bytes());
    out
}

fn checksum(path: &[u8], value: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(path);
    crc.update(&value[..CRC_AT]);
    crc.update(&value[CRC_END..]);
    crc.finalize()
}

/// Reads the manifest of `path`. Its body and headers share `value`'s memory.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode(path: Bytes, value: Bytes) -> Result<Manifest, String> {
    let name = || String::from_utf8_lossy(&path);
    if value.len() < HEAD_BYTES || (&value[CRC_AT..CRC_END]).get_u32_le() != checksum(&path, &value) {
        return Err(format!("the manifest of {:?} fails its checksum", name()));
    }
    if value[0] != VERSION {
        return Err(format!("the manifest of {:?} has format {}, this program reads {VERSION}", name(), value[0]));
    }
    read(path.clone(), value).ok_or_else(|| format!("the manifest of {:?} makes no sense", name()))
}

fn read(path: Bytes, mut value: Bytes) -> Option<Manifest> {
    let (kind, flags) = (value[1], value[2]);
    value.advance(CRC_END);
    let version = Version(value.get_u64_le());
    let length = value.get_u64_le();
    let created_ms = value.get_u64_le();
    let expires_ms = Some(value.get_u64_le()).filter(|_| flags & EXPIRES != 0);
    let nonce = value.get_u64_le();
    let checksum = value.get_u32_le();
    let client_flags = value.get_u32_le();
    let headers_bytes = usize::try_from(value.get_u32_le()).ok()?;
    let tags_bytes = usize::try_from(value.get_u32_le()).ok()?;
    if headers_bytes.checked_add(tags_bytes)? > value.len() {
        return None;
    }
    let headers = value.split_to(headers_bytes);
    let tags = read_tags(value.split_to(tags_bytes))?;
    let body = match kind {
        INLINE => Body::Inline(value),
        BLOB => Body::Blob(BlobId::parse(std::str::from_utf8(&value).ok()?)?),
        TOMBSTONE if value.is_empty() => Body::Tombstone,
        _ => return None,
    };
    Some(Manifest { path, version, body, length, checksum, created_ms, expires_ms, client_flags, headers, tags, nonce })
}

fn read_tags(mut bytes: Bytes) -> Option<Vec<Box<str>>> {
    let mut tags = Vec::new();
    while !bytes.is_empty() {
        if bytes.len() < 4 {
            return None;
        }
        let length = usize::try_from(bytes.get_u32_le()).ok()?;
        if length > bytes.len() {
            return None;
        }
        tags.push(std::str::from_utf8(&bytes.split_to(length)).ok()?.into());
    }
    Some(tags)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(body: Body) -> Manifest {
        Manifest {
            path: Bytes::from_static(b"ns/key"),
            version: Version(0x0102_0304_0506_0708),
            length: 3,
            checksum: 0x1122_3344,
            created_ms: 1_700_000_000_000,
            expires_ms: Some(1_800_000_000_000),
            client_flags: 9,
            headers: Bytes::from_static(b"h: v"),
            tags: vec!["red".into(), "".into()],
            nonce: 0xffee_ddcc_bbaa_9988,
            body,
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = encode(&manifest(Body::Inline(Bytes::from_static(b"abc"))));
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "010001008cb73d66080706050403020103000000000000000068e5cf8b010000\
             00505c18a30100008899aabbccddeeff4433221109000000040000000b000000\
             683a20760300000072656400000000616263"
        );
    }

    #[test]
    fn all_kinds_come_back_and_no_changed_bit_does() {
        let id = BlobId::fresh(5, 6);
        for body in [Body::Inline(Bytes::from_static(b"abc")), Body::Blob(id), Body::Tombstone] {
            let good = Manifest { expires_ms: None, ..manifest(body.clone()) };
            assert_eq!(decode(good.path.clone(), encode(&good).into()), Ok(good));
            let good = manifest(body);
            let bytes = encode(&good);
            assert_eq!(decode(good.path.clone(), bytes.clone().into()), Ok(good.clone()));
            assert!(decode(Bytes::from_static(b"ns/kez"), bytes.clone().into()).is_err(), "another key's");
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(good.path.clone(), bad.into()).is_err(), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert!(decode(good.path.clone(), bytes[..length].to_vec().into()).is_err(), "{length} bytes");
            }
        }
    }

    /// Bytes that pass their checksum and are still no manifest: a bug, or somebody else's.
    #[test]
    fn nonsense_with_a_good_checksum_is_refused() {
        let good = encode(&manifest(Body::Tombstone));
        let changes: [(usize, &[u8]); 7] = [
            (0, &[2]),
            (1, &[3]),
            (1, &[BLOB]),
            (56, &[0xff, 0xff, 0xff, 0xff]),
            (60, &[0xff, 0xff, 0xff, 0xff]),
            (60, &[3, 0, 0, 0]),
            (68, &[0xff]),
        ];
        for (at, bytes) in changes {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            let crc = checksum(b"ns/key", &bad);
            bad[CRC_AT..CRC_END].copy_from_slice(&crc.to_le_bytes());
            assert!(decode(Bytes::from_static(b"ns/key"), bad.into()).is_err(), "{bytes:?} at {at}");
        }
    }

    fn sealed(path: &[u8], mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.len() >= HEAD_BYTES {
            let crc = checksum(path, &bytes);
            bytes[CRC_AT..CRC_END].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            path in proptest::collection::vec(any::<u8>(), 0..80),
            [version, length, created_ms, nonce] in any::<[u64; 4]>(),
            (checksum, client_flags, expires_ms) in any::<(u32, u32, Option<u64>)>(),
            headers in proptest::collection::vec(any::<u8>(), 0..200),
            tags in proptest::collection::vec(".{0,12}", 0..5),
            kind in 0..3,
            inline in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let body = match kind {
                0 => Body::Inline(inline.into()),
                1 => Body::Blob(BlobId::fresh(length, nonce)),
                _ => Body::Tombstone,
            };
            let manifest = Manifest {
                path: path.into(), version: Version(version), body, length, checksum, created_ms, expires_ms,
                client_flags, headers: headers.into(), tags: tags.into_iter().map(Into::into).collect(), nonce,
            };
            prop_assert_eq!(decode(manifest.path.clone(), encode(&manifest).into()), Ok(manifest));
        }

        /// Of any bytes, and of a manifest's with some changed, both under a right checksum.
        #[test]
        fn no_bytes_make_reading_panic(
            any_bytes in proptest::collection::vec(any::<u8>(), 0..300),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let path = Bytes::from_static(b"ns/key");
            let mut near = encode(&manifest(Body::Inline(Bytes::from_static(b"abc"))));
            for (at, byte) in damage {
                let at = at.index(near.len());
                near[at] = byte;
            }
            for bytes in [any_bytes.clone(), sealed(&path, any_bytes), sealed(&path, near)] {
                if let Ok(manifest) = decode(path.clone(), bytes.into()) {
                    prop_assert_eq!(decode(path.clone(), encode(&manifest).into()), Ok(manifest));
                }
            }
        }
    }
}
