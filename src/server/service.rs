//! One request to one object: what is asked of the storage, and what is answered.
//!
//! Generic over the [`Storage`], the body's source and the clock: it runs alike behind a socket, in the simulator
//! and in a table of transcripts. Refusals that need no body are made before the first byte of it is asked for, so
//! that `Expect: 100-continue` saves the client the trouble.
//!
//! Invariants: a PUT whose body ends early, grows too large or breaks drops its handler unfinished, and nothing is
//! readable of it. Every refusal is counted under its reason. Left to others: framing and connections.

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use engine::clock::Clock;
use http::{
    HeaderMap, HeaderValue, Response, Version as HttpVersion,
    header::{CONNECTION, DATE, ETAG, EXPECT},
};
use http_body_util::BodyExt;

use super::{
    body::{Body, Sent},
    inflight::{Inflight, Ticket},
    stats::DoorStats,
};
use crate::{
    cache::{COPY_BYTES_MAX, CacheError, CacheMeta, Found, HitHandler, MissHandler, Precondition, Storage, Tier},
    namespace::{Namespace, Namespaces},
    policy::Mode,
    protocol::{
        Fault, Operation, Refusal,
        http::{
            Request, Written, announced, answer,
            answer::Object,
            body_max,
            conditions::{Verdict, is_strong_etag},
            framing, length_max, operation,
            range::Resolved,
        },
        refused,
    },
    reason::Reason,
    storage::bridge::INLINE_BYTES_MAX,
};

/// A body that nobody wants is read to its end when it is announced as no longer than this; otherwise the
/// connection is closed after the answer.
pub const DRAIN_BYTES_MAX: u64 = 64 << 10;

/// Pages and metadata that come with a small body read from below L0, at most, bytes.
const PAGES_BYTES: u64 = 8 << 10;

/// A piece of a body shorter than this is copied: as it is, it keeps all of the buffer it was read into.
const PIECE_BYTES_MIN: usize = 4 << 10;

/// What the door must know of its node.
#[derive(Clone, Copy, Debug)]
pub struct ObjectSettings {
    /// Seed of the hash of keys; fixed for the life of a data directory.
    pub hash_seed: u64,
    /// Largest body of the node, bytes.
    pub body_bytes_max: u64,
    /// Bodies in flight, bytes; see [`Inflight`].
    pub inflight_bytes: u64,
    /// Bytes of one body between two threads.
    pub body_window_bytes: u64,
}

/// The HTTP object door of one shard.
pub struct Objects<S, C> {
    storage: S,
    namespaces: Rc<Namespaces>,
    clock: C,
    settings: ObjectSettings,
    stats: Rc<DoorStats>,
    inflight: Rc<Inflight>,
    /// The last `Date`, and its second.
    date: RefCell<(u64, HeaderValue)>,
}

type Answer = Result<Response<Body>, Refusal>;

impl<S: Storage, C: Clock> Objects<S, C>
where
    S::Hit: 'static,
{
    /// A door to `storage`, which must hold every key of the node.
    pub fn new(storage: S, namespaces: Rc<Namespaces>, clock: C, settings: ObjectSettings) -> Self {
        let date = RefCell::new((u64::MAX, HeaderValue::from_static("")));
        let stats = Rc::<DoorStats>::default();
        let inflight = Inflight::new(settings.inflight_bytes, settings.body_window_bytes, Rc::clone(&stats));
        Self { storage, namespaces, clock, settings, stats, inflight, date }
    }

    /// The bodies in flight through this door.
    pub fn inflight(&self) -> &Rc<Inflight> {
        &self.inflight
    }

    /// The counters of this door.
    pub fn stats(&self) -> &Rc<DoorStats> {
        &self.stats
    }

    /// Answers one request. Dropping the future gives the request up: an unfinished PUT leaves nothing.
    pub async fn answer<B>(&self, request: http::Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let began = self.clock.elapsed();
        let (head, body) = request.into_parts();
        let mut body = Upload { body, over: false };
        let operation = operation(&head.method);
        let mut ticket = None;
        let framed = framing::check(head.version, operation, &head.headers);
        let is_framed = framed.is_ok();
        let read = framed.and_then(|()| Request::read(&head.method, &head.uri, &head.headers, self.settings.hash_seed));
        let answered = match read {
            Ok(request) => match self.inflight.enter(began).await {
                Some(entered) => self.carry_out(&request, &head.headers, &mut body, ticket.insert(entered)).await,
                None => Err(overload()),
            },
            Err(refusal) => Err(refusal),
        };
        let mut response = answered.unwrap_or_else(|refusal| self.refuse(operation, &refusal));
        if let Some(mut ticket) = ticket {
            if response.body().is_at_hand() {
                ticket.hold(response.body().length() + PAGES_BYTES);
            }
            response.body_mut().holds(ticket);
        }
        // Nobody asked for the rest of the body, or knows where it ends. HTTP/2 resets the stream by itself.
        let goes_on = async { is_framed && (body.is_over() || drained(&head.headers, &mut body).await) };
        if head.version < HttpVersion::HTTP_2 && !goes_on.await {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.headers_mut().insert(DATE, self.date());
        self.stats.answered(operation, response.status().as_u16(), self.clock.elapsed().saturating_sub(began));
        response
    }

    async fn carry_out<B>(
        &self,
        request: &Request<'_>,
        headers: &HeaderMap,
        body: &mut Upload<B>,
        ticket: &mut Ticket,
    ) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let name = request.key.namespace();
        match request.operation {
            Operation::Get | Operation::Head => self.read(request, &self.namespaces.for_read(name), ticket).await,
            Operation::Put => {
                let namespace = self.namespaces.for_write(name).map_err(|reason| closed(name, reason))?;
                self.write(request, headers, body, &namespace, ticket).await
            }
            Operation::Delete => {
                let namespace = self.namespaces.for_read(name);
                self.delete(request, &namespace).await
            }
            Operation::Purge => {
                let namespace = self.namespaces.for_read(name);
                self.purge(request, &namespace).await
            }
        }
    }

    async fn read(&self, request: &Request<'_>, namespace: &Rc<Namespace>, ticket: &mut Ticket) -> Answer {
        let found = match self.find(request, ticket).await? {
            // It has waited, with nothing in hand; what is there now may be another object.
            None => self.storage.find(&request.key).await?,
            Some(found) => found,
        };
        let (meta, mut hit) = match found {
            Found::Hit(meta, hit) => (meta, hit),
            Found::Miss(reason) => return Ok(self.whole(answer::miss(&request.key, reason))),
        };
        let tier = hit.tier();
        let object = Object::read(&meta, namespace.with(|rules| rules.mode), self.clock.wall_ms())?;
        match request.conditions.of_read(&object.current()) {
            Verdict::Proceed => {}
            Verdict::NotModified => return Ok(self.bare(object.not_modified(tier))),
            Verdict::Failed => return Err(Refusal::precondition()),
        }
        let range = request.range.filter(|_| request.conditions.range_applies(&object.current()));
        let part = match range.map(|range| range.resolve(object.length())) {
            None | Some(Resolved::Whole) => None,
            Some(Resolved::Part(range)) => Some(range),
            Some(Resolved::Unsatisfiable) => return Ok(self.whole(object.unsatisfiable(tier))),
        };
        let length = part.as_ref().map_or(object.length(), |range| range.end - range.start);
        let head = object.head(tier, part.as_ref());
        if request.operation == Operation::Head {
            return Ok(self.bare(head));
        }
        if let Some(range) = part {
            hit.seek(range)?;
        }
        if hit.remaining() != length {
            return Err(CacheError::Corrupted { what: "a hit of another length than its object".to_owned() }.into());
        }
        // RAM gives bytes in place: they are the arena's, and charged there.
        if tier == Tier::L0 && length > COPY_BYTES_MAX as u64 {
            ticket.hold(0);
        }
        let sent = Sent { stats: Rc::clone(&self.stats) };
        let body = Body::begin(hit, sent).await?;
        Ok(head.map(|()| body))
    }

    /// Looks for the object. `None`: there was no room for its body, but now there is, and it is to be looked for anew.
    async fn find(&self, request: &Request<'_>, ticket: &mut Ticket) -> Result<Option<Found<S::Hit>>, Refusal> {
        let found = self.storage.find(&request.key).await?;
        let Found::Hit(_, hit) = &found else { return Ok(Some(found)) };
        let is_streamed =
            request.operation == Operation::Get && hit.tier() != Tier::L0 && hit.remaining() > INLINE_BYTES_MAX;
        if !is_streamed || ticket.try_stream(Some(hit.remaining())) {
            return Ok(Some(found));
        }
        drop(found);
        if ticket.stream(self.clock.elapsed()).await { Ok(None) } else { Err(overload()) }
    }

    async fn write<B>(
        &self,
        request: &Request<'_>,
        headers: &HeaderMap,
        body: &mut Upload<B>,
        namespace: &Namespace,
        ticket: &mut Ticket,
    ) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let now_ms = self.clock.wall_ms();
        let rules = namespace.effective();
        // What the storage refuses, it counts itself.
        let written = Written::read(headers, &rules, self.settings.body_bytes_max, now_ms)
            .inspect_err(|refusal| namespace.counters.refused(refusal.reason))?;
        if written.length.is_none_or(|length| length > INLINE_BYTES_MAX)
            && !(ticket.try_stream(written.length) || ticket.stream(self.clock.elapsed()).await)
        {
            namespace.counters.refused(Reason::Overload);
            return Err(overload());
        }
        let precondition = self.precondition(request).await?;
        let meta = CacheMeta {
            length: written.length,
            created_ms: now_ms,
            expires_ms: written.expires_ms,
            headers: written.headers,
            ..CacheMeta::default()
        };
        let mut miss = self.storage.get_miss_handler(&request.key, meta, precondition).await?;
        self.receive(body, written.length, length_max(&rules, self.settings.body_bytes_max), &mut miss).await?;
        let stored = miss.finish().await?;
        let own_tag = headers.get(ETAG).filter(|tag| is_strong_etag(tag.as_bytes())).cloned();
        Ok(self.bare(answer::stored(&stored, own_tag)))
    }

    /// Passes the body on, whole or not at all.
    async fn receive<B, M>(
        &self,
        body: &mut Upload<B>,
        length: Option<u64>,
        max: u64,
        miss: &mut M,
    ) -> Result<(), Refusal>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
        M: MissHandler,
    {
        let mut received = 0;
        while let Some(chunk) = body.chunk().await? {
            let bytes = chunk.len() as u64;
            self.stats.received(bytes);
            received += bytes;
            if received > max {
                return Err(body_max(max));
            }
            if length.is_some_and(|length| received > length) {
                return Err(cut("the body is longer than its Content-Length"));
            }
            let whole = length == Some(received);
            let chunk = if whole || chunk.len() >= PIECE_BYTES_MIN { chunk } else { Bytes::copy_from_slice(&chunk) };
            miss.write_body(chunk, whole).await?;
            if whole {
                return Ok(());
            }
        }
        if length.is_some_and(|length| received != length) {
            return Err(cut("the body is shorter than its Content-Length"));
        }
        Ok(miss.write_body(Bytes::new(), true).await?)
    }

    async fn delete(&self, request: &Request<'_>, namespace: &Namespace) -> Answer {
        let precondition = self.precondition(request).await?;
        let report = match self.storage.purge(&request.key, precondition).await {
            // What is not there cannot be deleted, whatever the condition (RFC 9110 section 13.2.1).
            Err(CacheError::Precondition { current: None }) => return Err(absent(request)),
            report => report?,
        };
        namespace.counters.deleted(&report);
        report.removed.map(|_| self.bare(answer::deleted())).ok_or_else(|| absent(request))
    }

    async fn purge(&self, request: &Request<'_>, namespace: &Namespace) -> Answer {
        let precondition = self.precondition(request).await?;
        let report = self.storage.purge(&request.key, precondition).await?;
        namespace.counters.purged();
        Ok(self.whole(answer::purged(&request.key, &report)))
    }

    /// The precondition the commit is to decide. A client's own tags are compared here, and the commit is pinned to
    /// the version they were compared with.
    async fn precondition(&self, request: &Request<'_>) -> Result<Precondition, Refusal> {
        if let Some(precondition) = request.conditions.known_precondition() {
            return Ok(precondition);
        }
        let found = self.storage.lookup(&request.key).await?;
        // Only validators are of interest here: neither mode nor time bears on them.
        let object = found.map(|(meta, _)| Object::read(&meta, Mode::Durable, 0)).transpose()?;
        let current = object.as_ref().map(Object::current);
        request.conditions.of_write(current.as_ref()).ok_or_else(|| match (request.operation, &current) {
            (Operation::Delete, None) => absent(request),
            _ => Refusal::precondition(),
        })
    }

    fn refuse(&self, operation: Option<Operation>, refusal: &Refusal) -> Response<Body> {
        self.stats.refused(refusal.reason);
        if refusal.fault == Fault::Internal {
            tracing::error!(%refusal, "a request met a bug");
        }
        self.whole(match operation {
            Some(operation) if operation.is_read() => answer::unread(refusal),
            _ => answer::problem(refusal),
        })
    }

    fn whole(&self, answer: Response<Bytes>) -> Response<Body> {
        answer.map(|bytes| Body::whole(bytes, Sent { stats: Rc::clone(&self.stats) }))
    }

    fn bare(&self, head: Response<()>) -> Response<Body> {
        self.whole(head.map(|()| Bytes::new()))
    }

    /// Now, as an HTTP date; formatted once a second.
    fn date(&self) -> HeaderValue {
        let second = self.clock.wall_ms() / 1000;
        let mut date = self.date.borrow_mut();
        if date.0 != second {
            *date = (second, answer::http_date(second));
        }
        date.1.clone()
    }
}

fn closed(namespace: &str, reason: Reason) -> Refusal {
    let why = match reason {
        Reason::NamespaceUndeclared => "is not declared in the policy, which asks for that",
        Reason::NamespaceMax => "would be one too many",
        _ => "takes no writes",
    };
    Refusal::new(refused(reason), reason, format!("namespace {namespace} {why}"))
}

fn overload() -> Refusal {
    Refusal::new(
        Fault::Unavailable,
        Reason::Overload,
        "as many bytes of bodies are in flight as this node has room for",
    )
}

fn absent(request: &Request<'_>) -> Refusal {
    let path = String::from_utf8_lossy(request.key.path()).into_owned();
    Refusal::new(Fault::NotFound, Reason::NotFound, format!("there is no object {path}"))
}

fn cut(detail: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(Fault::Malformed, Reason::BodyCut, detail)
}

/// The body of a request, and whether all of it has come.
struct Upload<B> {
    body: B,
    over: bool,
}

impl<B> Upload<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// The next bytes of the body, never empty; `None` at its end. Trailers, which nobody asked for, are skipped.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Refusal> {
        while let Some(frame) = self.body.frame().await {
            match frame.map_err(|error| cut(error.to_string()))?.into_data() {
                Ok(chunk) if !chunk.is_empty() => return Ok(Some(chunk)),
                Ok(_) | Err(_) => {}
            }
        }
        self.over = true;
        Ok(None)
    }

    fn is_over(&self) -> bool {
        self.over || self.body.is_end_stream()
    }
}

/// Reads a small unwanted body to its end; `false` when it was not small, or the client still waits to be asked for
/// it.
async fn drained<B>(headers: &HeaderMap, body: &mut Upload<B>) -> bool
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    if headers.contains_key(EXPECT) || announced(headers).is_none_or(|length| length > DRAIN_BYTES_MAX) {
        return false;
    }
    loop {
        match body.chunk().await {
            Ok(Some(_unwanted)) => {}
            Ok(None) => return true,
            Err(_cut) => return false,
        }
    }
}
