//! The body of an answer: bytes at hand, or a hit being read while it is sent.
//!
//! INV-1: a streamed body gives exactly the announced bytes or fails, and a failure cuts the connection. The last
//! chunk is given only after the read has confirmed its end, so that damage found there still cuts.
//! Bound: one chunk of the hit is in flight; the next is read when the connection has taken it. Nothing is read
//! for a client that takes nothing.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use super::{inflight::Ticket, stats::DoorStats};
use crate::cache::{COPY_BYTES_MAX, CacheError, HitHandler};

/// Who is told of what was sent.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) stats: Rc<DoorStats>,
}

impl Sent {
    fn count(&self, bytes: u64) {
        self.stats.sent(bytes);
    }
}

/// The body of an answer. Dropping it ends the read behind it.
pub struct Body {
    kind: Kind,
    sent: Sent,
    ticket: Option<Ticket>,
}

enum Kind {
    Whole(Bytes),
    Streaming(Streaming),
    /// It failed before; it never ends well.
    Cut,
}

struct Streaming {
    /// Bytes not yet given to the connection.
    left: u64,
    next: Rc<Cell<Option<Bytes>>>,
    // One allocation a body, not one a chunk: the whole read is one future that stops at every chunk.
    read: Pin<Box<dyn Future<Output = Result<(), CacheError>>>>,
}

impl Body {
    /// Bytes at hand; empty for an answer without a body.
    pub(super) fn whole(bytes: Bytes, sent: Sent) -> Self {
        Self { kind: Kind::Whole(bytes), sent, ticket: None }
    }

    /// Whether nothing more is read for it.
    pub(super) fn is_at_hand(&self) -> bool {
        matches!(self.kind, Kind::Whole(_))
    }

    /// Bytes still to be given to the connection.
    pub(super) fn length(&self) -> u64 {
        match &self.kind {
            Kind::Whole(bytes) => bytes.len() as u64,
            Kind::Streaming(streaming) => streaming.left,
            Kind::Cut => 0,
        }
    }

    /// Keeps what the request is charged until the body is gone.
    pub(super) fn holds(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    /// The charge, for who still holds the body's bytes when it has ended.
    pub(super) fn take_ticket(&mut self) -> Option<Ticket> {
        self.ticket.take()
    }

    /// Reads the first chunk of `hit`, and the rest as it is sent.
    ///
    /// # Errors
    /// The first chunk could not be read: nothing was said to the client yet, so it can be told.
    pub(super) async fn begin<H: HitHandler + 'static>(mut hit: H, sent: Sent) -> Result<Self, CacheError> {
        let mut left = hit.remaining();
        if left == 0 {
            return Ok(Self::whole(Bytes::new(), sent));
        }
        if let Some(copy) = copied(&mut hit, left)? {
            return Ok(Self::whole(copy, sent));
        }
        let first = next_chunk(&mut hit, &mut left).await?;
        if left == 0 {
            return Ok(Self::whole(first, sent));
        }
        let unsent = left + first.len() as u64;
        let next = Rc::new(Cell::new(Some(first)));
        let read = Box::pin(read_rest(hit, left, Rc::clone(&next)));
        Ok(Self { kind: Kind::Streaming(Streaming { left: unsent, next, read }), sent, ticket: None })
    }
}

/// A small hit in RAM, in one copy and without a wait. The copy is an allocation of its own and not a piece of a shared
/// buffer: HTTP gives it back at the client's pace, and what is held meanwhile is to be what is charged (INV-4).
fn copied<H: HitHandler>(hit: &mut H, length: u64) -> Result<Option<Bytes>, CacheError> {
    let Some(bytes) = usize::try_from(length).ok().filter(|bytes| *bytes <= COPY_BYTES_MAX) else { return Ok(None) };
    let mut copy = BytesMut::with_capacity(bytes);
    match hit.try_copy(&mut copy) {
        None => Ok(None),
        Some(_) if copy.len() == bytes => Ok(Some(copy.freeze())),
        Some(_) => Err(wrong_length()),
    }
}

/// The next chunk of `hit`, of which `left` bytes are to come.
async fn next_chunk<H: HitHandler>(hit: &mut H, left: &mut u64) -> Result<Bytes, CacheError> {
    let chunk = hit.read_body().await?.ok_or_else(wrong_length)?;
    *left = left.checked_sub(chunk.len() as u64).ok_or_else(wrong_length)?;
    if *left == 0 && hit.read_body().await?.is_some() {
        return Err(wrong_length());
    }
    Ok(chunk)
}

async fn read_rest<H: HitHandler>(mut hit: H, mut left: u64, next: Rc<Cell<Option<Bytes>>>) -> Result<(), CacheError> {
    while left > 0 {
        taken(&next).await;
        let chunk = next_chunk(&mut hit, &mut left).await?;
        next.set(Some(chunk));
    }
    Ok(())
}

/// Waits until the connection has taken the chunk. It is polled again only after that, so nobody need be woken.
async fn taken(next: &Cell<Option<Bytes>>) {
    poll_fn(|_| {
        let chunk = next.take();
        let waiting = chunk.is_some();
        next.set(chunk);
        if waiting { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

fn wrong_length() -> CacheError {
    CacheError::Corrupted { what: "a body of another length than its object".to_owned() }
}

impl Streaming {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CacheError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = self.next.take();
        if chunk.is_none() {
            let read = self.read.as_mut().poll(cx);
            chunk = self.next.take();
            match (&chunk, read) {
                (Some(_), _) => {}
                (None, Poll::Pending) => return Poll::Pending,
                (None, Poll::Ready(Err(error))) => return Poll::Ready(Some(Err(error))),
                (None, Poll::Ready(Ok(()))) => return Poll::Ready(Some(Err(wrong_length()))),
            }
        }
        let chunk = chunk.unwrap_or_default();
        self.left = self.left.saturating_sub(chunk.len() as u64);
        Poll::Ready(Some(Ok(chunk)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = CacheError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CacheError>>> {
        let body = self.get_mut();
        let chunk = match &mut body.kind {
            Kind::Whole(bytes) if bytes.is_empty() => None,
            Kind::Whole(bytes) => Some(Ok(std::mem::take(bytes))),
            Kind::Streaming(streaming) => std::task::ready!(streaming.poll_chunk(cx)),
            Kind::Cut => Some(Err(CacheError::Gone)),
        };
        Poll::Ready(chunk.map(|chunk| match chunk {
            Ok(chunk) => {
                body.sent.count(chunk.len() as u64);
                Ok(Frame::data(chunk))
            }
            Err(error) => {
                // The headers are gone out; all that is left is not to end well (INV-1).
                tracing::debug!(%error, "a body was cut");
                body.sent.stats.cut(error.reason());
                body.kind = Kind::Cut;
                Err(error)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Streaming(streaming) => streaming.left == 0,
            Kind::Cut => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streaming(streaming) => SizeHint::with_exact(streaming.left),
            Kind::Cut => SizeHint::default(),
        }
    }
}
