//! `/`: one self-contained page that polls `/v1/stats` and `/readyz`. It asks no other host for anything, and its
//! script writes text nodes only, so that no name of a namespace can become markup.

use http::{HeaderValue, StatusCode, header};

use crate::respond::{self, Reply};

const PAGE: &str = include_str!("dashboard.html");

/// Nothing from elsewhere, nothing framed; scripts and styles only those in the page.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                                       img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                                       frame-ancestors 'none'";

pub(crate) fn page() -> Reply {
    let mut reply = respond::body(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    let policy = HeaderValue::from_static(CONTENT_SECURITY_POLICY);
    reply.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    reply
}
