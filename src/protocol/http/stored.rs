//! The headers that are kept with an object, and their bytes in [`CacheMeta::headers`].
//!
//! ```text
//! no header kept: no bytes at all. Otherwise:
//! offset  size  field
//! 0       1     format: 1
//! then for each header line, in the order they came:
//! +0      1     name: an index into the table below, or 0 for X-Strata-Meta-*
//!         1     only when 0: length n of what follows "x-strata-meta-"
//!         n     only when 0: that rest, in lower case
//! +       2     length of the value, little endian
//! +       v     the value
//! ```
//! The table: 1 cache-control, 2 content-disposition, 3 content-encoding, 4 content-language, 5 content-location,
//! 6 content-type, 7 etag (strong ones only), 8 expires, 9 last-modified (readable ones only), 10 surrogate-key.
//!
//! These bytes outlive the process: indexes are never reused, and a change of layout is a new format. No checksum
//! here; the tiers check what they stored. What cannot be read is an error for the caller, never a panic.
//!
//! [`CacheMeta::headers`]: crate::cache::CacheMeta::headers

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION, CONTENT_TYPE, ETAG,
        EXPIRES, LAST_MODIFIED,
    },
};

use super::conditions::{is_strong_etag, seconds};
use crate::{
    cache::{CacheError, HEADERS_BYTES_MAX},
    protocol::{Fault, Refusal},
    reason::Reason,
};

const FORMAT: u8 = 1;
const META: &str = "x-strata-meta-";

/// Purge tags of an object, separated by spaces.
pub const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");

/// Position is the index on disk.
static NAMES: [Option<HeaderName>; 11] = [
    None,
    Some(CACHE_CONTROL),
    Some(CONTENT_DISPOSITION),
    Some(CONTENT_ENCODING),
    Some(CONTENT_LANGUAGE),
    Some(CONTENT_LOCATION),
    Some(CONTENT_TYPE),
    Some(ETAG),
    Some(EXPIRES),
    Some(LAST_MODIFIED),
    Some(SURROGATE_KEY),
];

/// Takes what is kept from the headers of a PUT.
///
/// # Errors
/// They need more than [`HEADERS_BYTES_MAX`]: 431.
pub fn encode(headers: &HeaderMap) -> Result<Bytes, Refusal> {
    let mut out = BytesMut::new();
    for (name, value) in headers {
        let meta = name.as_str().strip_prefix(META).filter(|rest| !rest.is_empty());
        let index = NAMES.iter().position(|known| known.as_ref() == Some(name));
        if (index.is_none() && meta.is_none()) || !is_kept(name, value) {
            continue;
        }
        if out.is_empty() {
            out.put_u8(FORMAT);
        }
        let meta = meta.filter(|_| index.is_none());
        out.put_u8(index.and_then(|index| u8::try_from(index).ok()).unwrap_or(0));
        if let Some(rest) = meta {
            out.put_u8(u8::try_from(rest.len()).map_err(|_| too_large())?);
            out.put_slice(rest.as_bytes());
        }
        out.put_u16_le(u16::try_from(value.len()).map_err(|_| too_large())?);
        out.put_slice(value.as_bytes());
        if out.len() > HEADERS_BYTES_MAX {
            return Err(too_large());
        }
    }
    Ok(out.freeze())
}

/// Validators that are none are left out, and ours take their place.
fn is_kept(name: &HeaderName, value: &HeaderValue) -> bool {
    match *name {
        ETAG => is_strong_etag(value.as_bytes()),
        LAST_MODIFIED => seconds(value.as_bytes()).is_some(),
        _ => true,
    }
}

fn too_large() -> Refusal {
    Refusal::new(
        Fault::HeadersTooLarge,
        Reason::HeadersMax,
        format!("the headers to be stored need more than {HEADERS_BYTES_MAX} bytes, or one of them is too long"),
    )
}

/// Appends the headers kept in `stored` to `out`. Values share `stored`'s memory.
///
/// # Errors
/// [`CacheError::Corrupted`]: these are not bytes of this format. `out` may then hold some of them.
pub fn decode(mut stored: Bytes, out: &mut HeaderMap) -> Result<(), CacheError> {
    if stored.is_empty() {
        return Ok(());
    }
    let format = stored.get_u8();
    if format != FORMAT {
        return Err(corrupted(format!("format {format} of stored headers, expected {FORMAT}")));
    }
    while stored.has_remaining() {
        let (name, value) = next(&mut stored).ok_or_else(|| corrupted("a stored header line".into()))?;
        out.append(name, value);
    }
    Ok(())
}

fn next(stored: &mut Bytes) -> Option<(HeaderName, HeaderValue)> {
    let name = match stored.try_get_u8().ok()? {
        0 => {
            let length = stored.try_get_u8().ok()?;
            let rest = take(stored, usize::from(length))?;
            HeaderName::from_lowercase(&[META.as_bytes(), &rest].concat()).ok()?
        }
        index => NAMES.get(usize::from(index))?.clone()?,
    };
    let length = stored.try_get_u16_le().ok()?;
    let value = HeaderValue::from_maybe_shared(take(stored, usize::from(length))?).ok()?;
    Some((name, value))
}

fn take(stored: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= stored.len()).then(|| stored.split_to(length))
}

fn corrupted(what: String) -> CacheError {
    CacheError::Corrupted { what }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            map.append(name, HeaderValue::from_str(value).expect("a header value"));
        }
        map
    }

    fn roundtrip(headers: &HeaderMap) -> HeaderMap {
        let mut out = HeaderMap::new();
        decode(encode(headers).expect("fits"), &mut out).expect("own bytes");
        out
    }

    #[test]
    fn golden_bytes() {
        let headers = map(&[("Content-Type", "text/plain"), ("X-Strata-Meta-Owner", "me"), ("Surrogate-Key", "a b")]);
        let golden = b"\x01\x06\x0a\x00text/plain\x00\x05owner\x02\x00me\x0a\x03\x00a b";
        assert_eq!(encode(&headers).expect("fits"), &golden[..]);
        let mut out = HeaderMap::new();
        decode(Bytes::from_static(golden), &mut out).expect("golden");
        assert_eq!(out, headers);
        let indexes: Vec<_> = NAMES.iter().flatten().map(HeaderName::as_str).collect();
        assert_eq!(indexes[0], "cache-control");
        assert_eq!(indexes[9], "surrogate-key");
    }

    #[test]
    fn only_what_belongs_to_the_object_is_kept() {
        let dropped = [
            ("host", "h"),
            ("content-length", "5"),
            ("content-digest", "sha-256=:x:"),
            ("strata-ttl", "5"),
            ("x-strata-meta-", "nameless"),
            ("etag", "W/\"weak\""),
            ("last-modified", "long ago"),
            ("cookie", "c"),
        ];
        assert_eq!(encode(&map(&dropped)), Ok(Bytes::new()));
        let kept = [
            ("cache-control", "max-age=5"),
            ("cache-control", "public"),
            ("content-disposition", "inline"),
            ("content-encoding", "gzip"),
            ("content-language", "eo"),
            ("content-location", "/x"),
            ("content-type", "a/b"),
            ("etag", "\"strong\""),
            ("expires", "0"),
            ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("surrogate-key", "k"),
            ("x-strata-meta-a", ""),
        ];
        assert_eq!(roundtrip(&map(&kept)), map(&kept));
    }

    #[test]
    fn room_is_bounded() {
        let fits = "v".repeat(HEADERS_BYTES_MAX - 4);
        assert!(encode(&map(&[("content-type", &fits)])).is_ok());
        for (name, value) in [
            ("content-type".to_owned(), format!("{fits}v")),
            ("content-type".to_owned(), "v".repeat(1 << 16)),
            (format!("x-strata-meta-{}", "n".repeat(256)), String::new()),
        ] {
            let refusal = encode(&map(&[(&name, &value)])).expect_err("too large");
            assert_eq!((refusal.fault, refusal.reason), (Fault::HeadersTooLarge, Reason::HeadersMax));
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back(
            lines in prop::collection::vec(("(cache-control|content-type|surrogate-key|x-strata-meta-[a-z0-9-]{1,9})", "[!-~]([ -~]{0,20}[!-~])?"), 0..8)
        ) {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            prop_assert_eq!(roundtrip(&map(&lines)), map(&lines));
        }

        #[test]
        fn foreign_bytes_are_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), cut in 0usize..30) {
            let _ = decode(bytes.into(), &mut HeaderMap::new());
            let whole = encode(&map(&[("content-type", "text/plain"), ("x-strata-meta-a", "b")])).expect("fits");
            let cut = cut.min(whole.len() - 1);
            let read = decode(whole.slice(..cut), &mut HeaderMap::new());
            // Cut between lines it is whole again; anywhere else it is damage.
            prop_assert_eq!(read.is_ok(), matches!(cut, 0 | 1 | 14), "cut at {}", cut);
        }
    }
}
