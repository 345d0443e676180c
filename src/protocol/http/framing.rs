//! What a request head must say of its message before anything else of it counts (RFC 9112, RFC 9110 section 10.1.1).
//!
//! The server library finds out where a body ends, and is more lenient than a store may be: it takes a coding it does
//! not undo for the body itself, and a PUT without a length for an empty object. Who is refused here may be in the
//! middle of a body that nobody can find the end of: the connection is closed after the answer.

use http::{
    HeaderMap, Version,
    header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING},
};

use crate::{
    protocol::{Fault, Operation, Refusal},
    reason::Reason,
};

/// Checks the framing of a request; HTTP/2 has its own, which the library checks.
///
/// # Errors
/// It must be refused, and its connection closed.
pub fn check(version: Version, operation: Option<Operation>, headers: &HeaderMap) -> Result<(), Refusal> {
    if version >= Version::HTTP_2 {
        return Ok(());
    }
    let hosts = headers.get_all(HOST).iter().take(2).count();
    if hosts > 1 || hosts == 0 && version >= Version::HTTP_11 {
        return Err(Refusal::malformed("a request has one Host"));
    }
    let is_chunked = headers.contains_key(TRANSFER_ENCODING);
    if is_chunked && !is_only(headers, &TRANSFER_ENCODING, b"chunked") {
        return Err(refusal(Fault::NotImplemented, "the only transfer coding of this node is chunked, once"));
    }
    // HTTP/1.0 does not know expectations.
    if version >= Version::HTTP_11 && headers.contains_key(EXPECT) && !is_only(headers, &EXPECT, b"100-continue") {
        return Err(refusal(Fault::Expectation, "the only expectation this node meets is 100-continue"));
    }
    if operation == Some(Operation::Put) && !is_chunked && !headers.contains_key(CONTENT_LENGTH) {
        return Err(refusal(Fault::LengthRequired, "a PUT says its Content-Length, also when it is 0, or is chunked"));
    }
    Ok(())
}

/// Whether there is one such header, and it says `token`, in any case.
fn is_only(headers: &HeaderMap, name: &http::HeaderName, token: &[u8]) -> bool {
    let mut values = headers.get_all(name).iter();
    let is_token = |value: &http::HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(token);
    values.next().is_some_and(is_token) && values.next().is_none()
}

fn refusal(fault: Fault, detail: &'static str) -> Refusal {
    Refusal::new(fault, Reason::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_its_fault() {
        const V11: Version = Version::HTTP_11;
        const V10: Version = Version::HTTP_10;
        let (put, get) = (Some(Operation::Put), Some(Operation::Get));
        for (version, operation, lines, expected) in [
            (V11, get, "host: h", None),
            (V10, get, "", None),
            (V11, get, "", Some(Fault::Malformed)),
            (V11, get, "host: h\nhost: h", Some(Fault::Malformed)),
            (V10, get, "host: h\nhost: i", Some(Fault::Malformed)),
            (Version::HTTP_2, put, "", None),
            (V11, put, "host: h\ntransfer-encoding: chunked", None),
            (V11, put, "host: h\ntransfer-encoding: CHUNKED", None),
            (V11, put, "host: h\ntransfer-encoding: gzip, chunked", Some(Fault::NotImplemented)),
            (V11, put, "host: h\ntransfer-encoding: gzip\ntransfer-encoding: chunked", Some(Fault::NotImplemented)),
            (V11, get, "host: h\ntransfer-encoding: gzip, chunked", Some(Fault::NotImplemented)),
            (V11, put, "host: h\ncontent-length: 1\nexpect: 100-Continue", None),
            (V11, put, "host: h\ncontent-length: 1\nexpect: 200-maybe", Some(Fault::Expectation)),
            (V11, get, "host: h\nexpect: 100-continue\nexpect: x", Some(Fault::Expectation)),
            (V10, get, "expect: 200-maybe", None),
            (V11, put, "host: h", Some(Fault::LengthRequired)),
            (V10, put, "", Some(Fault::LengthRequired)),
            (V10, put, "content-length: 0", None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines.lines().filter_map(|line| line.split_once(": ")) {
                let name: http::HeaderName = name.parse().expect("a name");
                headers.append(name, value.parse().expect("a value"));
            }
            let found = check(version, operation, &headers).err().map(|refusal| refusal.fault);
            assert_eq!(found, expected, "{version:?} {lines}");
        }
    }
}
