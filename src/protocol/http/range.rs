//! Byte ranges (RFC 9110 section 14), one at a time.
//!
//! A header that is malformed, names another unit, or asks for several ranges is as if it were not there: the
//! answer is the whole body, which section 14.2 allows.

use std::ops::Range;

/// What a `Range` header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spec {
    /// From this offset to the end.
    From(u64),
    /// These bytes, last included.
    Within(u64, u64),
    /// So many bytes at the end.
    Last(u64),
}

/// What a [`Spec`] comes to for a body of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// All of it, as an ordinary answer: an empty body has no range that could be named.
    Whole,
    /// These bytes; never empty.
    Part(Range<u64>),
    /// No byte of the body: 416.
    Unsatisfiable,
}

/// Reads a `Range` header; `None` when there is nothing to heed.
#[must_use]
pub fn parse(value: &[u8]) -> Option<Spec> {
    let value = std::str::from_utf8(value).ok()?;
    let (unit, set) = value.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Empty list elements are to be ignored (section 5.6.1.2).
    let mut specs = set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).filter(|spec| !spec.is_empty());
    let only = specs.next()?;
    if specs.next().is_some() {
        return None;
    }
    let (first, last) = only.split_once('-')?;
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => number(last).map(Spec::Last),
        (false, true) => number(first).map(Spec::From),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::Within(first, last))
        }
    }
}

/// Digits, as large as they like: beyond u64 is beyond every body.
fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().unwrap_or(u64::MAX))
}

impl Spec {
    /// What this means for a body of `length` bytes.
    #[must_use]
    pub fn resolve(self, length: u64) -> Resolved {
        let part = |first: u64, end: u64| match first < end {
            true => Resolved::Part(first..end),
            false => Resolved::Unsatisfiable,
        };
        match self {
            Spec::Last(0) => Resolved::Unsatisfiable,
            Spec::Last(_) if length == 0 => Resolved::Whole,
            Spec::Last(count) => part(length.saturating_sub(count), length),
            Spec::From(first) => part(first, length),
            Spec::Within(first, last) => part(first, length.min(last.saturating_add(1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_are_read_or_ignored() {
        for (value, expected) in [
            ("bytes=0-0", Some(Spec::Within(0, 0))),
            ("bytes=5-", Some(Spec::From(5))),
            ("bytes=-5", Some(Spec::Last(5))),
            ("BYTES = 1-2", Some(Spec::Within(1, 2))),
            ("bytes=,\t 1-2 ,,", Some(Spec::Within(1, 2))),
            ("bytes=0-99999999999999999999999", Some(Spec::Within(0, u64::MAX))),
            ("bytes=0-1,3-4", None),
            ("bytes=2-1", None),
            ("bytes=-", None),
            ("bytes=", None),
            ("bytes=a-b", None),
            ("bytes=+1-2", None),
            ("bytes=1-2-3", None),
            ("bytes 1-2", None),
            ("items=1-2", None),
            ("", None),
        ] {
            assert_eq!(parse(value.as_bytes()), expected, "{value:?}");
        }
        assert_eq!(parse(b"bytes=\xff-"), None);
    }

    #[test]
    fn ranges_meet_bodies() {
        use Resolved::{Part, Unsatisfiable, Whole};
        for (spec, length, expected) in [
            (Spec::Within(0, 0), 10, Part(0..1)),
            (Spec::Within(0, u64::MAX), 10, Part(0..10)),
            (Spec::Within(9, 9), 10, Part(9..10)),
            (Spec::Within(10, 12), 10, Unsatisfiable),
            (Spec::From(0), 10, Part(0..10)),
            (Spec::From(10), 10, Unsatisfiable),
            (Spec::From(u64::MAX), 10, Unsatisfiable),
            (Spec::Last(3), 10, Part(7..10)),
            (Spec::Last(30), 10, Part(0..10)),
            (Spec::Last(0), 10, Unsatisfiable),
            (Spec::From(0), 0, Unsatisfiable),
            (Spec::Last(1), 0, Whole),
            (Spec::Last(0), 0, Unsatisfiable),
        ] {
            assert_eq!(spec.resolve(length), expected, "{spec:?} of {length}");
        }
    }

    proptest! {
        #[test]
        fn a_part_is_what_a_slice_would_give(first in 0u64..40, last in 0u64..40, length in 0u64..40) {
            let body: Vec<u64> = (0..length).collect();
            let wanted = |keep: &dyn Fn(u64) -> bool| body.iter().copied().filter(|i| keep(*i)).collect::<Vec<_>>();
            let cases: [(Spec, Vec<u64>); 3] = [
                (Spec::Within(first.min(last), first.max(last)), wanted(&|i| i >= first.min(last) && i <= first.max(last))),
                (Spec::From(first), wanted(&|i| i >= first)),
                (Spec::Last(last), wanted(&|i| i + last >= length)),
            ];
            for (spec, wanted) in cases {
                match spec.resolve(length) {
                    Resolved::Part(range) => prop_assert_eq!(range.collect::<Vec<_>>(), wanted),
                    Resolved::Whole | Resolved::Unsatisfiable => prop_assert!(wanted.is_empty()),
                }
            }
        }

        #[test]
        fn no_header_panics(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&value);
        }
    }
}
