//! Response heads: statuses, validators, `Cache-Status` (RFC 9211), `Strata-Stored` (RFC 8941) and problem
//! documents (RFC 9457).
//!
//! A GET and a HEAD of one object have the same headers; that holds because both come from [`Object::head`].

use std::ops::Range;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{
        ACCEPT_RANGES, AGE, ALLOW, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH,
        CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, RETRY_AFTER,
    },
};
use serde_json::json;

use super::{
    METHODS,
    conditions::{Current, seconds},
    stored,
};
use crate::{
    cache::{CacheError, CacheKey, CacheMeta, PurgeReport, Stored, Tier, TierOutcome, Version},
    policy::Mode,
    protocol::{Fault, Refusal},
    reason::Reason,
};

/// Where an answer came from (RFC 9211).
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Which tiers kept a written object, and why the others did not.
pub const STRATA_STORED: HeaderName = HeaderName::from_static("strata-stored");

/// After how many seconds a client told to go away may come again.
pub const RETRY_AFTER_S: u32 = 1;

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An object that was found, in HTTP's words.
#[derive(Debug)]
pub struct Object {
    length: u64,
    version: Version,
    modified_s: u64,
    /// The headers of a 200, all but `Content-Length` and `Cache-Status`.
    headers: HeaderMap,
}

impl Object {
    /// Reads what was stored. `mode` is that of the namespace; `now_ms` is wall time.
    ///
    /// # Errors
    /// [`CacheError::Corrupted`]: the stored headers cannot be read, or the length is missing.
    pub fn read(meta: &CacheMeta, mode: Mode, now_ms: u64) -> Result<Self, CacheError> {
        let length =
            meta.length.ok_or_else(|| CacheError::Corrupted { what: "an object without its length".to_owned() })?;
        let mut headers = HeaderMap::with_capacity(12);
        stored::decode(meta.headers.clone(), &mut headers)?;
        if !headers.contains_key(ETAG) {
            headers.insert(ETAG, version_etag(meta.version));
        }
        let modified_s = match headers.get(LAST_MODIFIED).and_then(|value| seconds(value.as_bytes())) {
            Some(modified_s) => modified_s,
            None => {
                let modified_s = meta.created_ms / 1000;
                headers.insert(LAST_MODIFIED, http_date(modified_s));
                modified_s
            }
        };
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if mode == Mode::CacheOnly {
            headers.insert(AGE, (now_ms.saturating_sub(meta.created_ms) / 1000).into());
        }
        Ok(Self { length, version: meta.version, modified_s, headers })
    }

    /// The body's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The validators, for conditions.
    #[must_use]
    pub fn current(&self) -> Current<'_> {
        Current {
            etag: self.headers.get(ETAG).map_or(&[], HeaderValue::as_bytes),
            version: self.version,
            modified_s: self.modified_s,
        }
    }

    /// 200 for the whole, 206 for a part of it.
    #[must_use]
    pub fn head(self, tier: Tier, part: Option<&Range<u64>>) -> Response<()> {
        let mut head = Response::new(());
        *head.headers_mut() = self.headers;
        let headers = head.headers_mut();
        headers.insert(CACHE_STATUS, hit(tier));
        match part {
            None => {
                headers.insert(CONTENT_LENGTH, self.length.into());
            }
            Some(range) => {
                headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
                let last = range.end.saturating_sub(1);
                headers.insert(CONTENT_RANGE, text(format!("bytes {}-{last}/{}", range.start, self.length)));
                *head.status_mut() = StatusCode::PARTIAL_CONTENT;
            }
        }
        head
    }

    /// 304: what lets a cache keep its copy, without what describes a body (RFC 9110 section 15.4.5).
    #[must_use]
    pub fn not_modified(self, tier: Tier) -> Response<()> {
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::NOT_MODIFIED;
        *head.headers_mut() = self.headers;
        let headers = head.headers_mut();
        for about_the_body in [CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_DISPOSITION] {
            headers.remove(about_the_body);
        }
        headers.insert(CACHE_STATUS, hit(tier));
        head
    }

    /// 416: the range holds no byte of it.
    #[must_use]
    pub fn unsatisfiable(self, tier: Tier) -> Response<Bytes> {
        let detail = format!("the object has {} bytes", self.length);
        let mut answer = problem(&Refusal::new(Fault::Range, Reason::Range, detail));
        let headers = answer.headers_mut();
        headers.insert(CONTENT_RANGE, text(format!("bytes */{}", self.length)));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CACHE_STATUS, hit(tier));
        answer
    }
}

/// The entity tag of an object whose writer gave none.
#[must_use]
pub fn version_etag(version: Version) -> HeaderValue {
    text(format!("\"{version}\""))
}

/// `seconds` since the Unix epoch, as an HTTP date.
#[must_use]
pub fn http_date(seconds: u64) -> HeaderValue {
    /// 9999-12-31T23:59:59Z: the last second an HTTP date can name.
    const SECONDS_MAX: u64 = 253_402_300_799;
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.min(SECONDS_MAX));
    text(httpdate::fmt_http_date(at))
}

fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).expect("made of visible ASCII here")
}

fn hit(tier: Tier) -> HeaderValue {
    HeaderValue::from_static(match tier {
        Tier::L0 => "Strata; hit; detail=l0",
        Tier::L1 => "Strata; hit; detail=l1",
        Tier::L2 => "Strata; hit; detail=l2",
        Tier::L3 => "Strata; hit; detail=l3",
    })
}

/// 404 of a read that found nothing, and why.
#[must_use]
pub fn miss(key: &CacheKey, reason: Reason) -> Response<Bytes> {
    let detail = format!("there is no object {}", String::from_utf8_lossy(key.path()));
    let mut answer = problem(&Refusal::new(Fault::NotFound, reason, detail));
    answer.headers_mut().insert(CACHE_STATUS, text(format!("Strata; fwd=uri-miss; detail={reason}")));
    answer
}

/// 201 for a new object, 204 for a replaced one. `etag` is the client's own strong tag, if it gave one.
#[must_use]
pub fn stored(stored: &Stored, etag: Option<HeaderValue>) -> Response<()> {
    let mut head = Response::new(());
    let headers = head.headers_mut();
    headers.insert(ETAG, etag.unwrap_or_else(|| version_etag(stored.version)));
    headers.insert(STRATA_STORED, strata_stored(stored));
    if stored.replaced.is_some() {
        *head.status_mut() = StatusCode::NO_CONTENT;
    } else {
        headers.insert(CONTENT_LENGTH, 0.into());
        *head.status_mut() = StatusCode::CREATED;
    }
    head
}

/// `L2, L3, L0=?0;reason=gate`: who holds it first, then who does not.
fn strata_stored(stored: &Stored) -> HeaderValue {
    let mut kept = Vec::with_capacity(4);
    let mut dropped = Vec::with_capacity(4);
    for tier in Tier::ALL {
        let name = tier.name().to_ascii_uppercase();
        match stored.tiers[tier as usize] {
            None => {}
            Some(TierOutcome::Kept) => kept.push(name),
            Some(TierOutcome::Queued) => kept.push(format!("{name};queued")),
            Some(TierOutcome::Dropped(reason)) => dropped.push(format!("{name}=?0;reason={reason}")),
        }
    }
    kept.append(&mut dropped);
    text(kept.join(", "))
}

/// 204 of a DELETE that removed something.
#[must_use]
pub fn deleted() -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = StatusCode::NO_CONTENT;
    head
}

/// 200 of a PURGE: what was removed where.
#[must_use]
pub fn purged(key: &CacheKey, report: &PurgeReport) -> Response<Bytes> {
    let tiers: serde_json::Map<_, _> =
        Tier::ALL.iter().map(|tier| (tier.name().to_owned(), report.tiers[*tier as usize].into())).collect();
    json_answer(
        StatusCode::OK,
        HeaderValue::from_static("application/json"),
        &json!({
            "key": String::from_utf8_lossy(key.path()),
            "removed": report.removed.map(|version| version.to_string()),
            "tombstone": report.tombstone.map(|version| version.to_string()),
            "tiers": tiers,
        }),
    )
}

/// The answer to a request that was refused.
#[must_use]
pub fn problem(refusal: &Refusal) -> Response<Bytes> {
    let status = status(refusal.fault);
    let mut answer = json_answer(
        status,
        PROBLEM_JSON,
        &json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "reason": refusal.reason.name(),
            "detail": refusal.detail,
        }),
    );
    if refusal.is_temporary() {
        answer.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_S.into());
    }
    if refusal.fault == Fault::Method {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
    }
    answer
}

/// The answer to a read that was refused: [`problem`], and a `Cache-Status` that names the reason without claiming
/// a hit or a miss.
#[must_use]
pub fn unread(refusal: &Refusal) -> Response<Bytes> {
    let mut answer = problem(refusal);
    answer.headers_mut().insert(CACHE_STATUS, text(format!("Strata; detail={}", refusal.reason)));
    answer
}

/// The status of a fault.
#[must_use]
pub const fn status(fault: Fault) -> StatusCode {
    match fault {
        Fault::Malformed => StatusCode::BAD_REQUEST,
        Fault::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        Fault::Expectation => StatusCode::EXPECTATION_FAILED,
        Fault::LengthRequired => StatusCode::LENGTH_REQUIRED,
        Fault::NotFound => StatusCode::NOT_FOUND,
        Fault::Method => StatusCode::METHOD_NOT_ALLOWED,
        Fault::Precondition => StatusCode::PRECONDITION_FAILED,
        Fault::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Fault::KeyTooLong => StatusCode::URI_TOO_LONG,
        Fault::Range => StatusCode::RANGE_NOT_SATISFIABLE,
        Fault::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
        Fault::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Fault::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Fault::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Fault::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
    }
}

fn json_answer(status: StatusCode, content_type: HeaderValue, value: &serde_json::Value) -> Response<Bytes> {
    let body = Bytes::from(format!("{value}\n"));
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let length = answer.body().len();
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer.headers_mut().insert(CONTENT_LENGTH, length.into());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(headers: &[(HeaderName, &'static str)]) -> CacheMeta {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        CacheMeta {
            version: Version(0xabc),
            length: Some(10),
            created_ms: 784_111_777_900,
            headers: stored::encode(&headers).expect("fits"),
            ..CacheMeta::default()
        }
    }

    fn lines<T>(answer: &Response<T>) -> Vec<String> {
        let value = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut lines: Vec<_> = answer.headers().iter().map(|(name, v)| format!("{name}: {}", value(v))).collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_durable_hit_has_no_age_and_a_cached_one_does() {
        let read = |mode| Object::read(&meta(&[(CONTENT_TYPE, "a/b")]), mode, 784_111_780_000).expect("readable");
        let expected = [
            "accept-ranges: bytes",
            "cache-status: Strata; hit; detail=l2",
            "content-length: 10",
            "content-type: a/b",
            "etag: \"0000000000000abc\"",
            "last-modified: Sun, 06 Nov 1994 08:49:37 GMT",
        ];
        let head = read(Mode::Durable).head(Tier::L2, None);
        assert_eq!((head.status(), lines(&head)), (StatusCode::OK, expected.map(String::from).to_vec()));
        let head = read(Mode::CacheOnly).head(Tier::L2, None);
        assert_eq!(lines(&head), [&expected[..1], &["age: 2"], &expected[1..]].concat());
        // A clock that stepped back does not make it negative.
        let early = Object::read(&meta(&[]), Mode::CacheOnly, 0).expect("readable").head(Tier::L0, None);
        assert_eq!(early.headers()[AGE], "0");
    }

    #[test]
    fn parts_not_modified_and_unsatisfiable() {
        let object = || {
            let given = [(ETAG, "\"mine\""), (CONTENT_TYPE, "a/b"), (http::header::CACHE_CONTROL, "max-age=9")];
            Object::read(&meta(&given), Mode::Durable, 0).expect("readable")
        };
        let part = object().head(Tier::L0, Some(&(2..5)));
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(
            (&part.headers()[CONTENT_RANGE], &part.headers()[CONTENT_LENGTH]),
            (&HeaderValue::from_static("bytes 2-4/10"), &HeaderValue::from_static("3"))
        );
        let not_modified = object().not_modified(Tier::L3);
        assert_eq!(not_modified.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(
            lines(&not_modified),
            [
                "accept-ranges: bytes",
                "cache-control: max-age=9",
                "cache-status: Strata; hit; detail=l3",
                "etag: \"mine\"",
                "last-modified: Sun, 06 Nov 1994 08:49:37 GMT",
            ]
        );
        let unsatisfiable = object().unsatisfiable(Tier::L1);
        assert_eq!(unsatisfiable.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(unsatisfiable.headers()[CONTENT_RANGE], "bytes */10");
    }

    #[test]
    fn damaged_metadata_is_an_error() {
        let damaged = CacheMeta { headers: Bytes::from_static(b"\x09"), ..meta(&[]) };
        assert!(matches!(Object::read(&damaged, Mode::Durable, 0), Err(CacheError::Corrupted { .. })));
        let headless = CacheMeta { length: None, ..meta(&[]) };
        assert!(matches!(Object::read(&headless, Mode::Durable, 0), Err(CacheError::Corrupted { .. })));
    }

    #[test]
    fn what_was_stored_is_told_tier_by_tier() {
        let mut report = Stored::kept(Tier::L3, Version(1), 5, None);
        report.tiers[0] = Some(TierOutcome::Dropped(Reason::Gate));
        report.tiers[1] = Some(TierOutcome::Queued);
        report.tiers[2] = Some(TierOutcome::Kept);
        let head = stored(&report, None);
        assert_eq!(
            (head.status(), lines(&head)),
            (
                StatusCode::CREATED,
                vec![
                    "content-length: 0".into(),
                    "etag: \"0000000000000001\"".into(),
                    "strata-stored: L1;queued, L2, L3, L0=?0;reason=gate".into(),
                ]
            )
        );
        report.replaced = Some(Version(0));
        let head = stored(&report, Some(HeaderValue::from_static("\"mine\"")));
        assert_eq!(
            (head.status(), &head.headers()[ETAG]),
            (StatusCode::NO_CONTENT, &HeaderValue::from_static("\"mine\""))
        );
    }

    #[test]
    fn problems_say_why_and_what_to_do() {
        let answer = problem(&Refusal::new(Fault::Unavailable, Reason::Overload, "later"));
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            (&answer.headers()[RETRY_AFTER], &answer.headers()[CONTENT_TYPE]),
            (&HeaderValue::from_static("1"), &PROBLEM_JSON)
        );
        let read: serde_json::Value = serde_json::from_slice(answer.body()).expect("JSON");
        assert_eq!(
            read,
            json!({
                "type": "about:blank", "title": "Service Unavailable", "status": 503, "reason": "overload",
                "detail": "later"
            })
        );
        let answer = problem(&Refusal::new(Fault::Method, Reason::Method, "no"));
        assert_eq!((answer.status().as_u16(), &answer.headers()[ALLOW]), (405, &HeaderValue::from_static(METHODS)));
    }

    #[test]
    fn a_purge_report_is_json() {
        let key = CacheKey::new("img", b"a%20b", 0).expect("valid");
        let report = PurgeReport { removed: Some(Version(2)), tombstone: None, tiers: [true, false, true, false] };
        let read: serde_json::Value = serde_json::from_slice(purged(&key, &report).body()).expect("JSON");
        assert_eq!(
            read,
            json!({
                "key": "img/a%20b", "removed": "0000000000000002", "tombstone": null,
                "tiers": {"l0": true, "l1": false, "l2": true, "l3": false}
            })
        );
    }
}
