//! How long an object lives, from the headers of its PUT.
//!
//! A cache-only namespace is a cache: `Strata-TTL`, else `s-maxage`, `max-age`, `Expires` (RFC 9111 section 4.2.1),
//! else the namespace's default. A durable namespace is the origin: cache headers are for those downstream, and only
//! `Strata-TTL` or the policy ends an object. The cap of the namespace holds in both.

use http::{
    HeaderMap, HeaderName,
    header::{CACHE_CONTROL, DATE, EXPIRES},
};

use super::conditions::seconds;
use crate::{
    policy::{Effective, Mode},
    protocol::{Fault, Refusal},
    reason::Reason,
};

/// The client's own word on the time to live, in whole seconds.
pub const STRATA_TTL: HeaderName = HeaderName::from_static("strata-ttl");

/// When an object written at `now_ms` expires, in milliseconds since the Unix epoch; `None`: never.
///
/// # Errors
/// `Strata-TTL` is malformed, or the object is not to be stored by a cache at all.
pub fn expiry(headers: &HeaderMap, policy: &Effective, now_ms: u64) -> Result<Option<u64>, Refusal> {
    let own = strata_ttl_ms(headers)?;
    let ttl_ms = match policy.mode {
        Mode::Durable => own,
        Mode::CacheOnly => {
            let directives = Directives::read(headers);
            if directives.no_store {
                return Err(Refusal::new(
                    Fault::Unprocessable,
                    Reason::NoStore,
                    "Cache-Control says no-store, and this namespace is a cache",
                ));
            }
            own.or(directives.shared_ms).or(directives.max_age_ms).or_else(|| expires_ms(headers, now_ms))
        }
    };
    let ttl_ms = ttl_ms.or(policy.ttl_default_ms);
    let capped = match (ttl_ms, policy.ttl_max_ms) {
        (Some(ttl), Some(max)) => Some(ttl.min(max)),
        (ttl, max) => ttl.or(max),
    };
    Ok(capped.map(|ttl| now_ms.saturating_add(ttl)))
}

fn strata_ttl_ms(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut values = headers.get_all(STRATA_TTL).iter();
    match (values.next(), values.next()) {
        (None, _) => Some(None),
        (Some(only), None) => delta_ms(only.as_bytes()).map(Some),
        (Some(_), Some(_)) => None,
    }
    .ok_or_else(|| Refusal::malformed("Strata-TTL must be one whole number of seconds"))
}

/// Time from the `Date` of the message, or from now, to its `Expires`. A date that cannot be read (`0`) is past.
fn expires_ms(headers: &HeaderMap, now_ms: u64) -> Option<u64> {
    let expires_ms = headers.get(EXPIRES).map(|value| seconds(value.as_bytes()).unwrap_or(0).saturating_mul(1000))?;
    let date_ms = headers.get(DATE).and_then(|value| seconds(value.as_bytes())).map(|date| date.saturating_mul(1000));
    Some(expires_ms.saturating_sub(date_ms.unwrap_or(now_ms)))
}

/// The directives of `Cache-Control` that bear on storing. One that is given twice counts at its smallest, one
/// whose number cannot be read as zero: stale is the safe side (RFC 9111 section 4.2.1).
#[derive(Default)]
struct Directives {
    no_store: bool,
    shared_ms: Option<u64>,
    max_age_ms: Option<u64>,
}

impl Directives {
    fn read(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            for directive in split_outside_quotes(value.as_bytes()) {
                let (name, argument) = match directive.iter().position(|byte| *byte == b'=') {
                    Some(at) => (&directive[..at], &directive[at + 1..]),
                    None => (directive, &[][..]),
                };
                let least = |old: Option<u64>| {
                    let new = delta_ms(unquoted(argument)).unwrap_or(0);
                    Some(old.map_or(new, |old| old.min(new)))
                };
                let name = name.trim_ascii();
                if name.eq_ignore_ascii_case(b"no-store") {
                    found.no_store = true;
                } else if name.eq_ignore_ascii_case(b"s-maxage") {
                    found.shared_ms = least(found.shared_ms);
                } else if name.eq_ignore_ascii_case(b"max-age") {
                    found.max_age_ms = least(found.max_age_ms);
                }
            }
        }
        found
    }
}

fn split_outside_quotes(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    value.split(move |byte| {
        let literal = std::mem::take(&mut escaped);
        match byte {
            b'"' if !literal => quoted = !quoted,
            b'\\' if quoted && !literal => escaped = true,
            b',' => return !quoted,
            _ => {}
        }
        false
    })
}

fn unquoted(argument: &[u8]) -> &[u8] {
    let argument = argument.trim_ascii();
    argument.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")).unwrap_or(argument)
}

/// Whole seconds as milliseconds; a number beyond any clock is the largest there is.
fn delta_ms(digits: &[u8]) -> Option<u64> {
    let digits = digits.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX);
    Some(seconds.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{LookupOrder, Promotion};

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const NOW: u64 = 784_111_777_000;

    fn policy(mode: Mode, ttl_default_ms: Option<u64>, ttl_max_ms: Option<u64>) -> Effective {
        Effective {
            mode,
            tiers: [true; 4],
            gates: [None; 4],
            promote: [Promotion::Never; 3],
            l2_fill: None,
            lookup_order: LookupOrder::L1First,
            ttl_default_ms,
            ttl_max_ms,
            body_bytes_max: None,
        }
    }

    fn ttl(list: &[(&'static str, &'static str)], policy: &Effective) -> Result<Option<u64>, Reason> {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, HeaderValue::from_static(value));
        }
        expiry(&headers, policy, NOW).map(|at| at.map(|at| at - NOW)).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_cache_goes_by_the_most_specific_header() {
        let cache = policy(Mode::CacheOnly, Some(7_000), Some(100_000));
        for (list, expected) in [
            (&[][..], Ok(Some(7_000))),
            (&[("strata-ttl", "5"), ("cache-control", "s-maxage=6")], Ok(Some(5_000))),
            (&[("strata-ttl", "0")], Ok(Some(0))),
            (&[("cache-control", "max-age=8, s-maxage=6")], Ok(Some(6_000))),
            (&[("cache-control", "public, Max-Age=\"8\"")], Ok(Some(8_000))),
            (&[("cache-control", "max-age=8"), ("cache-control", "max-age=3")], Ok(Some(3_000))),
            (&[("cache-control", "max-age=soon")], Ok(Some(0))),
            (&[("cache-control", "max-age")], Ok(Some(0))),
            (&[("cache-control", "x=\"a, max-age=1\", max-age=9")], Ok(Some(9_000))),
            (&[("cache-control", "x=\"a\\\", max-age=1\", max-age=9")], Ok(Some(9_000))),
            (&[("cache-control", "max-age=99999999999999999999")], Ok(Some(100_000))),
            (&[("cache-control", "max-age=4"), ("expires", "0")], Ok(Some(4_000))),
            (&[("expires", "Sun, 06 Nov 1994 08:49:47 GMT")], Ok(Some(10_000))),
            (
                &[("expires", "Sun, 06 Nov 1994 08:49:47 GMT"), ("date", "Sun, 06 Nov 1994 08:49:44 GMT")],
                Ok(Some(3_000)),
            ),
            (&[("expires", "0")], Ok(Some(0))),
            (&[("cache-control", "no-store")], Err(Reason::NoStore)),
            (&[("cache-control", "max-age=5, No-Store"), ("strata-ttl", "5")], Err(Reason::NoStore)),
            (&[("strata-ttl", "-1")], Err(Reason::BadRequest)),
            (&[("strata-ttl", "")], Err(Reason::BadRequest)),
            (&[("strata-ttl", "1.5")], Err(Reason::BadRequest)),
            (&[("strata-ttl", "1"), ("strata-ttl", "2")], Err(Reason::BadRequest)),
        ] {
            assert_eq!(ttl(list, &cache), expected, "{list:?}");
        }
    }

    #[test]
    fn an_origin_goes_by_its_own_word() {
        let origin = policy(Mode::Durable, None, None);
        for (list, expected) in [
            (&[][..], Ok(None)),
            (&[("cache-control", "no-store, max-age=5"), ("expires", "0")], Ok(None)),
            (&[("strata-ttl", "5"), ("cache-control", "max-age=9")], Ok(Some(5_000))),
            (&[("strata-ttl", "x")], Err(Reason::BadRequest)),
        ] {
            assert_eq!(ttl(list, &origin), expected, "{list:?}");
        }
        assert_eq!(ttl(&[], &policy(Mode::Durable, Some(9), None)), Ok(Some(9)));
        // A cap holds for those who ask for nothing, too.
        assert_eq!(ttl(&[], &policy(Mode::Durable, None, Some(8))), Ok(Some(8)));
        assert_eq!(ttl(&[("strata-ttl", "1")], &policy(Mode::Durable, Some(9), Some(8))), Ok(Some(8)));
    }

    proptest! {
        #[test]
        fn no_header_panics_and_the_cap_holds(value in "[ -~]{0,40}", ttl in "[ -~]{0,8}", max in any::<u64>()) {
            let mut headers = HeaderMap::new();
            for (name, value) in [("cache-control", &value), ("expires", &value), ("strata-ttl", &ttl)] {
                headers.append(name, HeaderValue::from_str(value).expect("visible ASCII"));
            }
            if let Ok(at) = expiry(&headers, &policy(Mode::CacheOnly, None, Some(max)), NOW) {
                prop_assert!(at.is_some_and(|at| at <= NOW.saturating_add(max)));
            }
        }
    }
}
