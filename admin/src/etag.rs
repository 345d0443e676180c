//! Entity tags of the policy and the preconditions on them (RFC 9110, sections 8.8.3 and 13.1).
//!
//! The tag of version 7 is `"7"`, always strong. `If-Match` compares strongly, so a weak tag never matches;
//! `If-None-Match` compares weakly.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{IF_MATCH, IF_NONE_MATCH},
};

/// Tags in one header at most; more is refused as malformed.
const TAGS_MAX: usize = 64;

/// The tag of a policy version.
pub(crate) fn tag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits in quotes are a valid header value")
}

/// A header that is not a list of entity tags.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} must be `*` or a list of quoted entity tags, {TAGS_MAX} at most")]
pub(crate) struct Malformed(HeaderName);

/// The preconditions of one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Preconditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

#[derive(Debug, PartialEq, Eq)]
enum Tags {
    Any,
    Listed(Vec<Tag>),
}

#[derive(Debug, PartialEq, Eq)]
struct Tag {
    weak: bool,
    opaque: Vec<u8>,
}

impl Preconditions {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Malformed> {
        Ok(Self { if_match: tags(headers, IF_MATCH)?, if_none_match: tags(headers, IF_NONE_MATCH)? })
    }

    /// Whether a change may replace `current`.
    pub(crate) fn allow_change(&self, current: u64) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.contain(current, Comparison::Strong))
            && self.if_none_match.as_ref().is_none_or(|tags| !tags.contain(current, Comparison::Weak))
    }

    /// Whether the client already has `current` (304).
    pub(crate) fn already_has(&self, current: u64) -> bool {
        self.if_none_match.as_ref().is_some_and(|tags| tags.contain(current, Comparison::Weak))
    }

    /// Whether `If-Match` holds for a read (412 if not).
    pub(crate) fn allow_read(&self, current: u64) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.contain(current, Comparison::Strong))
    }

    /// Whether the request names versions, so that it must replace exactly one of them.
    pub(crate) fn name_versions(&self) -> bool {
        let listed = |tags: &Option<Tags>| matches!(tags, Some(Tags::Listed(_)));
        listed(&self.if_match) || listed(&self.if_none_match)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

impl Tags {
    fn contain(&self, version: u64, comparison: Comparison) -> bool {
        let opaque = version.to_string();
        match self {
            Tags::Any => true,
            Tags::Listed(tags) => tags
                .iter()
                .any(|tag| tag.opaque == opaque.as_bytes() && !(tag.weak && comparison == Comparison::Strong)),
        }
    }
}

/// Several header lines are one list (RFC 9110, 5.3).
fn tags(headers: &HeaderMap, name: HeaderName) -> Result<Option<Tags>, Malformed> {
    let mut lines = headers.get_all(&name).iter().peekable();
    if lines.peek().is_none() {
        return Ok(None);
    }
    let mut value = Vec::new();
    for line in lines {
        if !value.is_empty() {
            value.push(b',');
        }
        value.extend_from_slice(line.as_bytes());
    }
    if value.trim_ascii() == b"*" {
        return Ok(Some(Tags::Any));
    }
    match listed(&value) {
        Some(tags) => Ok(Some(Tags::Listed(tags))),
        None => Err(Malformed(name)),
    }
}

/// `1#entity-tag`, with the empty elements a recipient must accept. An opaque tag may hold a comma, so this does
/// not split.
fn listed(value: &[u8]) -> Option<Vec<Tag>> {
    let mut tags = Vec::new();
    let mut rest = value.trim_ascii_start();
    while !rest.is_empty() {
        if rest[0] != b',' {
            let weak = rest.starts_with(b"W/");
            let quoted = if weak { &rest[2..] } else { rest };
            let inner = quoted.strip_prefix(b"\"")?;
            let end = inner.iter().position(|byte| *byte == b'"')?;
            let opaque = inner[..end].to_vec();
            if !opaque.iter().all(|byte| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..)) {
                return None;
            }
            tags.push(Tag { weak, opaque });
            rest = inner[end + 1..].trim_ascii_start();
        }
        rest = match rest.split_first() {
            None => rest,
            Some((b',', after)) => after.trim_ascii_start(),
            Some(_) => return None,
        };
    }
    (1..=TAGS_MAX).contains(&tags.len()).then_some(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preconditions(pairs: &[(HeaderName, &str)]) -> Result<Preconditions, Malformed> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.clone(), HeaderValue::from_str(value).expect("valid"));
        }
        Preconditions::of(&headers)
    }

    #[test]
    fn if_match_compares_strongly() {
        let table = [
            ("*", true),
            (" * ", true),
            ("\"7\"", true),
            ("\"6\"", false),
            ("W/\"7\"", false),
            ("\"6\", \"7\"", true),
            ("\"6\",W/\"7\" ,\"8\"", false),
            (",, \"a,b\" ,\"7\",", true),
            ("\"07\"", false),
            ("\"\"", false),
        ];
        for (value, allowed) in table {
            assert_eq!(preconditions(&[(IF_MATCH, value)]).expect("valid").allow_change(7), allowed, "{value}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly() {
        let table = [("*", true), ("\"7\"", true), ("W/\"7\"", true), ("\"6\", W/\"7\"", true), ("\"6\"", false)];
        for (value, has) in table {
            let preconditions = preconditions(&[(IF_NONE_MATCH, value)]).expect("valid");
            assert_eq!(preconditions.already_has(7), has, "{value}");
            assert_eq!(preconditions.allow_change(7), !has, "{value}");
        }
    }

    #[test]
    fn lines_join_and_names_are_told_from_any() {
        let two = preconditions(&[(IF_MATCH, "\"6\""), (IF_MATCH, "\"7\"")]).expect("valid");
        assert!(two.allow_change(7) && two.allow_change(6) && !two.allow_change(5) && two.name_versions());
        assert!(!preconditions(&[(IF_MATCH, "*")]).expect("valid").name_versions());
        assert!(preconditions(&[]).expect("valid").allow_change(7));
        assert!(!preconditions(&[]).expect("valid").already_has(7));
    }

    #[test]
    fn malformed_lists_are_refused() {
        let many = vec!["\"1\""; TAGS_MAX + 1].join(",");
        for value in ["", "7", "\"7", "\"7\" \"8\"", "w/\"7\"", "\"7\";q=1", "*, \"7\"", "\"7 8\"", ",", &many] {
            assert_eq!(preconditions(&[(IF_MATCH, value)]), Err(Malformed(IF_MATCH)), "{value}");
        }
    }
}
