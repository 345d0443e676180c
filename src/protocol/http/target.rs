//! From a request target to a key.
//!
//! The key is the rest of the target after the namespace, query included, in the normal form of RFC 3986 section
//! 6.2.2.2 and still percent-encoded: escapes of unreserved characters are decoded, all others have upper-case hex.
//! Bytes that no URI may hold but clients send all the same (UTF-8, `|`, `[`, ...) are encoded, as RFC 3987 section
//! 3.1 does, so that every key is a valid URI and `é` means the same from every client.
//!
//! Invariants: normalising twice changes nothing; two different normal targets are two keys. Nothing else is made
//! equal: no dot segments, no empty segments, no query order, no `+`.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    cache::{CacheKey, KeyError},
    protocol::{Fault, Refusal},
    reason::Reason,
};

/// Reads the path and query of a target (`/namespace/key...`).
///
/// # Errors
/// The target is not of that form, an escape is broken, or the key is too long.
pub fn key(path_and_query: &str, seed: u64) -> Result<CacheKey, Refusal> {
    let rest = path_and_query.strip_prefix('/').ok_or_else(|| bad("the target must be /{namespace}/{key}"))?;
    let path = normalise(rest.as_bytes()).ok_or_else(|| {
        bad("the target holds a broken percent-encoding or a control character; write % itself as %25")
    })?;
    if !path.contains(&b'/') {
        return Err(bad("the target must be /{namespace}/{key}, and there is no key"));
    }
    CacheKey::from_path(path, seed).map_err(|error| match error {
        KeyError::TooLong => Refusal::new(Fault::KeyTooLong, Reason::BadKey, error.to_string()),
        KeyError::Namespace | KeyError::Empty => bad(format!("the target must be /{{namespace}}/{{key}}: {error}")),
    })
}

fn bad(detail: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(Fault::Malformed, Reason::BadKey, detail)
}

/// The normal form of `target`; `None` when an escape is broken or a control character or space occurs.
#[must_use]
pub fn normalise(target: &[u8]) -> Option<Bytes> {
    if target.iter().all(|byte| stands_raw(*byte)) {
        return Some(Bytes::copy_from_slice(target));
    }
    let mut out = BytesMut::with_capacity(target.len() + 16);
    let mut rest = target;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (hex, tail) = rest.split_first_chunk::<2>()?;
            rest = tail;
            let decoded = hex_value(hex[0])? << 4 | hex_value(hex[1])?;
            if is_unreserved(decoded) { out.put_u8(decoded) } else { put_escape(&mut out, decoded) }
        } else if stands_raw(byte) {
            out.put_u8(byte);
        } else if byte <= b' ' || byte == 0x7f {
            return None;
        } else {
            put_escape(&mut out, byte);
        }
    }
    Some(out.freeze())
}

fn put_escape(out: &mut BytesMut, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.put_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether a path or query may hold the byte unescaped (RFC 3986 section 3.3 `pchar`, and `/` and `?`).
fn stands_raw(byte: u8) -> bool {
    const TABLE: [bool; 256] = {
        let mut table = [false; 256];
        let raw = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/?";
        let mut i = 0;
        while i < raw.len() {
            table[raw[i] as usize] = true;
            i += 1;
        }
        table
    };
    TABLE[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::KEY_BYTES_MAX;

    fn normal(target: &str) -> Option<String> {
        normalise(target.as_bytes()).map(|out| String::from_utf8(out.to_vec()).expect("normal forms are ASCII"))
    }

    #[test]
    fn escapes_are_put_into_one_form_and_nothing_else_is_touched() {
        for (target, expected) in [
            ("img/a/b.png", Some("img/a/b.png")),
            ("img/%61%2d%2E%5f%7E", Some("img/a-._~")),
            ("img/%2f%3f%3a%c3%a9", Some("img/%2F%3F%3A%C3%A9")),
            ("img/a?b=c&d=%20+", Some("img/a?b=c&d=%20+")),
            ("img/./../a//b/", Some("img/./../a//b/")),
            ("img/é|[x]\"{}^`\\<>", Some("img/%C3%A9%7C%5Bx%5D%22%7B%7D%5E%60%5C%3C%3E")),
            ("img/%25", Some("img/%25")),
            ("img/%2561", Some("img/%2561")),
            ("img/%", None),
            ("img/%4", None),
            ("img/%4g", None),
            ("img/%+1", None),
            ("img/a b", None),
            ("img/a\u{1}", None),
            ("img/a\u{7f}", None),
        ] {
            assert_eq!(normal(target).as_deref(), expected, "{target}");
        }
    }

    #[test]
    fn a_target_is_a_namespace_and_a_key() {
        let key_of = |target: &str| key(target, 1).map(|key| (key.namespace().to_owned(), key.key().to_vec()));
        assert_eq!(key_of("/img/a?b"), Ok(("img".into(), b"a?b".to_vec())));
        assert_eq!(key_of("/im%67/%41"), Ok(("img".into(), b"A".to_vec())));
        for bad in ["", "*", "/", "/img", "/img/", "/IMG/a", "/img%2Fa/", "/i?g/a", "//a", "/img/%zz"] {
            let refusal = key_of(bad).expect_err(bad);
            assert_eq!((refusal.fault, refusal.reason), (Fault::Malformed, Reason::BadKey), "{bad}");
        }
        let longest = format!("/n/{}", "k".repeat(KEY_BYTES_MAX));
        assert!(key_of(&longest).is_ok());
        assert_eq!(key_of(&format!("{longest}k")).map_err(|refusal| refusal.fault), Err(Fault::KeyTooLong));
        // The limit is on the normal form: an escape that shrinks is counted as what it becomes.
        assert!(key_of(&format!("/n/{}%6B", "k".repeat(KEY_BYTES_MAX - 1))).is_ok());
    }

    proptest! {
        #[test]
        fn normalising_is_idempotent(target in "[ -~é]{0,60}") {
            if let Some(once) = normalise(target.as_bytes()) {
                prop_assert_eq!(normalise(&once), Some(once));
            }
        }

        #[test]
        fn different_octets_are_different_keys(a in prop::collection::vec(any::<u8>(), 1..24), b in prop::collection::vec(any::<u8>(), 1..24)) {
            // However it is spelled, one string of octets has one normal form, and two strings have two.
            let spell = |octets: &[u8]| octets.iter().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let (left, right) = (normal(&spell(&a)), normal(&spell(&b)));
            prop_assert!(left.is_some() && right.is_some());
            prop_assert_eq!(a == b, left == right);
        }

        #[test]
        fn normal_targets_stand_for_themselves(target in "[A-Za-z0-9._~!$&'()*+,;=:@/?-]{1,60}") {
            let normal_form = normal(&target);
            prop_assert_eq!(normal_form.as_deref(), Some(target.as_str()));
        }
    }
}
