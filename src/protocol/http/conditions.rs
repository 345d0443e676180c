//! Conditional requests (RFC 9110 section 13): entity tags, dates, and what they decide.
//!
//! A read is decided here against the object found. A write becomes a [`Precondition`], which its commit decides
//! again in the key's turn: tags of a client's own making are compared with the object found now, and the commit
//! is then pinned to that object's version, so that nothing can slip in between (compare-and-swap).
//!
//! Malformed lists are refused, never ignored: ignoring `If-Match` would lose an update.

use std::time::UNIX_EPOCH;

use http::{
    HeaderMap, HeaderValue,
    header::{GetAll, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE},
};

use crate::{
    cache::{Precondition, Version},
    protocol::Refusal,
};

/// The validators of the object that is there now.
#[derive(Clone, Copy, Debug)]
pub struct Current<'a> {
    /// Its strong entity tag, quotes included.
    pub etag: &'a [u8],
    /// Its version.
    pub version: Version,
    /// Its `Last-Modified`, seconds since the Unix epoch.
    pub modified_s: u64,
}

/// What the conditions say of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer as if there were none.
    Proceed,
    /// The client has it: 304.
    NotModified,
    /// 412.
    Failed,
}

/// The conditions of one request. Borrows its headers; absent conditions cost a look-up each and nothing more.
#[derive(Debug)]
pub struct Conditions<'a> {
    if_match: Option<Tags<'a>>,
    if_none_match: Option<Tags<'a>>,
    /// Seconds since the Unix epoch.
    modified_since: Option<u64>,
    unmodified_since: Option<u64>,
    if_range: Option<&'a HeaderValue>,
}

#[derive(Debug)]
enum Tags<'a> {
    Any,
    /// At least one value; every one is a well-formed list.
    Listed(GetAll<'a, HeaderValue>),
}

impl<'a> Conditions<'a> {
    /// Reads the conditions of a request.
    ///
    /// # Errors
    /// A list of entity tags is malformed.
    pub fn read(headers: &'a HeaderMap) -> Result<Self, Refusal> {
        let date = |name: HeaderName| headers.get(name).and_then(|value| seconds(value.as_bytes()));
        Ok(Self {
            if_match: tags(headers, &IF_MATCH)?,
            if_none_match: tags(headers, &IF_NONE_MATCH)?,
            // A date that cannot be read is ignored (sections 13.1.3 and 13.1.4).
            modified_since: date(IF_MODIFIED_SINCE),
            unmodified_since: date(IF_UNMODIFIED_SINCE),
            if_range: headers.get(IF_RANGE),
        })
    }

    /// Decides a GET or HEAD of `current`, in the order of section 13.2.2. Nothing there is 404 whatever the
    /// conditions (section 13.2.1).
    #[must_use]
    pub fn of_read(&self, current: &Current<'_>) -> Verdict {
        if !self.still_holds(current) {
            return Verdict::Failed;
        }
        let known = match &self.if_none_match {
            Some(tags) => tags.has(current.etag, Comparison::Weak),
            None => self.modified_since.is_some_and(|since| current.modified_s <= since),
        };
        if known { Verdict::NotModified } else { Verdict::Proceed }
    }

    /// Whether a `Range` may be heeded: there is no `If-Range`, or it names the current object by strong tag.
    /// A date never does: two writes within its second could not be told apart (section 8.8.2.2).
    #[must_use]
    pub fn range_applies(&self, current: &Current<'_>) -> bool {
        self.if_range.is_none_or(|value| value.as_bytes() == current.etag)
    }

    /// The precondition of a write, if it follows from the headers alone; otherwise look up the object and ask
    /// [`Conditions::of_write`].
    #[must_use]
    pub fn known_precondition(&self) -> Option<Precondition> {
        match (&self.if_match, &self.if_none_match, self.unmodified_since) {
            (None, None, None) => Some(Precondition::None),
            (Some(Tags::Any), None, _) => Some(Precondition::Exists),
            (None, Some(Tags::Any), None) => Some(Precondition::Absent),
            _ => None,
        }
    }

    /// The precondition of a write whose key holds `current` now; `None` when it fails already.
    #[must_use]
    pub fn of_write(&self, current: Option<&Current<'_>>) -> Option<Precondition> {
        let Some(current) = current else {
            return self.if_match.is_none().then_some(Precondition::Absent);
        };
        let known = self.if_none_match.as_ref().is_some_and(|tags| tags.has(current.etag, Comparison::Weak));
        (self.still_holds(current) && !known).then_some(Precondition::Version(current.version))
    }

    /// `If-Match`, or without it `If-Unmodified-Since`.
    fn still_holds(&self, current: &Current<'_>) -> bool {
        match &self.if_match {
            Some(tags) => tags.has(current.etag, Comparison::Strong),
            None => self.unmodified_since.is_none_or(|since| current.modified_s <= since),
        }
    }
}

/// Seconds since the Unix epoch of an HTTP date, in any of its three forms.
#[must_use]
pub fn seconds(date: &[u8]) -> Option<u64> {
    let date = httpdate::parse_http_date(std::str::from_utf8(date).ok()?).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Whether `tag` is one strong entity tag, quotes included.
#[must_use]
pub fn is_strong_etag(tag: &[u8]) -> bool {
    matches!(next_tag(tag), Some((Tag { weak: false, .. }, [])))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

impl Tags<'_> {
    fn has(&self, current: &[u8], comparison: Comparison) -> bool {
        match self {
            Tags::Any => true,
            Tags::Listed(values) => values
                .iter()
                .flat_map(|value| List(value.as_bytes()))
                .flatten()
                .any(|tag| tag.quoted == current && (comparison == Comparison::Weak || !tag.weak)),
        }
    }
}

fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<Tags<'a>>, Refusal> {
    let values = headers.get_all(name);
    let mut each = values.iter();
    let Some(first) = each.next() else { return Ok(None) };
    if each.next().is_none() && first.as_bytes().trim_ascii() == b"*" {
        return Ok(Some(Tags::Any));
    }
    let well_formed = values.iter().all(|value| List(value.as_bytes()).all(|tag| tag.is_some()));
    // A list of nothing names no object, and says so by being empty; it is not the absence of a condition.
    if !well_formed {
        return Err(Refusal::malformed(format!("{name} must be * or a list of quoted entity tags")));
    }
    Ok(Some(Tags::Listed(values)))
}

#[derive(Clone, Copy)]
struct Tag<'a> {
    weak: bool,
    quoted: &'a [u8],
}

/// The tags of one header value; `None` once for what cannot be read, and then no more.
struct List<'a>(&'a [u8]);

impl<'a> Iterator for List<'a> {
    type Item = Option<Tag<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        while let [b' ' | b'\t' | b',', rest @ ..] = self.0 {
            self.0 = rest;
        }
        if self.0.is_empty() {
            return None;
        }
        let read = next_tag(self.0).filter(|(_, rest)| matches!(rest.trim_ascii_start(), [] | [b',', ..]));
        self.0 = read.map_or(&[], |(_, rest)| rest);
        Some(read.map(|(tag, _)| tag))
    }
}

/// One entity tag at the start of `bytes`, and what follows it (section 8.8.3).
fn next_tag(bytes: &[u8]) -> Option<(Tag<'_>, &[u8])> {
    let (weak, bytes) = match bytes {
        [b'W', b'/', rest @ ..] => (true, rest),
        _ => (false, bytes),
    };
    let inner = bytes.strip_prefix(b"\"")?;
    let length = inner.iter().position(|byte| !matches!(byte, 0x21 | 0x23..=0x7e | 0x80..))?;
    if inner[length] != b'"' {
        return None;
    }
    let (quoted, rest) = bytes.split_at(length + 2);
    Some((Tag { weak, quoted }, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V: Version = Version(5);
    const NOW: Current<'static> = Current { etag: b"\"a,b\"", version: V, modified_s: 784_111_777 };
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn reads_follow_the_order_of_evaluation() {
        use Verdict::{Failed, NotModified, Proceed};
        for (list, expected) in [
            (&[][..], Proceed),
            (&[("if-match", "*")], Proceed),
            (&[("if-match", "\"a,b\"")], Proceed),
            (&[("if-match", "W/\"a,b\"")], Failed),
            (&[("if-match", "\"x\", \"a,b\"")], Proceed),
            (&[("if-match", "\"x\""), ("if-match", "\"a,b\"")], Proceed),
            (&[("if-match", "\"x\"")], Failed),
            (&[("if-match", "")], Failed),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "W/\"a,b\"")], NotModified),
            (&[("if-none-match", "\"x\" ,, \"a,b\" ,")], NotModified),
            (&[("if-none-match", "\"x\"")], Proceed),
            (&[("if-none-match", "\"x\""), ("if-modified-since", SAME)], Proceed),
            (&[("if-modified-since", SAME)], NotModified),
            (&[("if-modified-since", BEFORE)], Proceed),
            (&[("if-modified-since", "yesterday")], Proceed),
            (&[("if-unmodified-since", SAME)], Proceed),
            (&[("if-unmodified-since", BEFORE)], Failed),
            (&[("if-unmodified-since", BEFORE), ("if-match", "*")], Proceed),
            (&[("if-match", "\"a,b\""), ("if-none-match", "\"a,b\"")], NotModified),
        ] {
            let headers = headers(list);
            let conditions = Conditions::read(&headers).expect("well-formed");
            assert_eq!(conditions.of_read(&NOW), expected, "{list:?}");
        }
    }

    #[test]
    fn writes_are_pinned_to_what_was_compared() {
        use Precondition::{Absent, Exists, Version};
        // (headers, known at once, with the object there, with nothing there)
        for (list, known, there, absent) in [
            (&[][..], Some(Precondition::None), Some(Version(V)), Some(Absent)),
            (&[("if-match", "*")], Some(Exists), Some(Version(V)), None),
            (&[("if-none-match", "*")], Some(Absent), None, Some(Absent)),
            (&[("if-match", "\"a,b\"")], None, Some(Version(V)), None),
            (&[("if-match", "W/\"a,b\"")], None, None, None),
            (&[("if-match", "\"x\"")], None, None, None),
            (&[("if-none-match", "\"x\"")], None, Some(Version(V)), Some(Absent)),
            (&[("if-none-match", "\"a,b\"")], None, None, Some(Absent)),
            (&[("if-match", "*"), ("if-none-match", "*")], None, None, None),
            (&[("if-unmodified-since", BEFORE)], None, None, Some(Absent)),
            (&[("if-unmodified-since", SAME)], None, Some(Version(V)), Some(Absent)),
        ] {
            let headers = headers(list);
            let conditions = Conditions::read(&headers).expect("well-formed");
            assert_eq!(conditions.known_precondition(), known, "{list:?}");
            assert_eq!(conditions.of_write(Some(&NOW)), there, "{list:?} there");
            assert_eq!(conditions.of_write(None), absent, "{list:?} absent");
        }
    }

    #[test]
    fn broken_lists_are_refused() {
        for value in ["a", "\"a", "\"a\" \"b\"", "W\"a\"", "w/\"a\"", "\"a b\"", "*, \"a\"", "\"a\"x", "\"a\", b"] {
            for name in ["if-match", "if-none-match"] {
                let headers = headers(&[(name, value)]);
                let refusal = Conditions::read(&headers).expect_err(value);
                assert_eq!(refusal.fault, crate::protocol::Fault::Malformed);
            }
        }
        assert!(Conditions::read(&headers(&[("if-match", "*"), ("if-match", "*")])).is_err());
    }

    #[test]
    fn if_range_needs_the_strong_tag() {
        for (list, expected) in [
            (&[][..], true),
            (&[("if-range", "\"a,b\"")], true),
            (&[("if-range", "W/\"a,b\"")], false),
            (&[("if-range", "\"x\"")], false),
            (&[("if-range", SAME)], false),
        ] {
            let headers = headers(list);
            let conditions = Conditions::read(&headers).expect("well-formed");
            assert_eq!(conditions.range_applies(&NOW), expected, "{list:?}");
        }
    }

    #[test]
    fn strong_tags_are_told_from_the_rest() {
        for (tag, expected) in
            [("\"\"", true), ("\"x,y\"", true), ("W/\"x\"", false), ("x", false), ("\"x\" ", false), ("\"", false)]
        {
            assert_eq!(is_strong_etag(tag.as_bytes()), expected, "{tag}");
        }
    }

    proptest! {
        #[test]
        fn no_value_panics_or_loops(value in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(List(&value).count() <= value.len());
            let _ = (is_strong_etag(&value), seconds(&value));
        }

        #[test]
        fn a_list_gives_back_its_tags(tags in prop::collection::vec("[!#-~]{0,6}", 1..5)) {
            let list = tags.iter().map(|tag| format!("\"{tag}\"")).collect::<Vec<_>>().join(", ");
            let read: Option<Vec<_>> = List(list.as_bytes()).map(|tag| tag.map(|tag| tag.quoted.to_vec())).collect();
            let expected = tags.iter().map(|tag| format!("\"{tag}\"").into_bytes()).collect::<Vec<_>>();
            prop_assert_eq!(read, Some(expected));
        }
    }
}
