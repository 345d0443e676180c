//! The bytes of one connection: gathered on the way out, and a goodbye that is heard.
//!
//! Small answers are gathered and sent once a turn of the connection's task, so that pipelined requests cost one
//! send. (hyper's own `pipeline_flush` does not do: with half a request in its buffer it holds back answers, and
//! takes a streamed body into memory without bound.) The buffers are the shard's, not the connection's: an idle
//! connection holds neither.
//!
//! Bounds: [`READ_BYTES_MAX`] on one read, [`GATHER_BYTES_MAX`] on gathered bytes (beyond, the socket must take some first), [`LINGER`] and
//! [`LINGER_BYTES_MAX`] on what is still read from a client that was told to stop.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use engine::rt::Rt;
use hyper::rt::ReadBufCursor;

use super::connection::{Connections, Link, Phase};
use crate::reason::Reason;

/// How long a client that must stop sending is still listened to, so that it reads its answer before the reset.
pub const LINGER: Duration = Duration::from_secs(1);

/// How many bytes of it.
pub const LINGER_BYTES_MAX: u64 = 1 << 20;

/// Writes up to this many bytes are gathered.
const GATHER_WRITE_MAX: usize = 4 << 10;

/// Bytes taken from the socket at a time. hyper doubles its buffer whenever a read filled it, up to the longest request
/// head: one byte less than 16 KiB keeps it there, which is what an idle connection then holds.
pub const READ_BYTES_MAX: usize = (16 << 10) - 1;

/// Gathered bytes that make a send.
pub const GATHER_BYTES_MAX: usize = 16 << 10;

/// Bytes a connection moves before the others get a turn.
const TURN_BYTES: u64 = 1 << 20;

/// The byte stream of a connection: `engine::net`'s, or a test's. Polled by one task.
pub trait Socket: 'static {
    /// Reads what is there into `buf`; 0 is the end.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Writes some of `bufs`, in order.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Passes on what was written.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Closes the direction to the client, after what was written.
    ///
    /// # Errors
    /// The connection is broken.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Socket for engine::net::Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_read(cx, buf)
    }

    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, bufs)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_shutdown(cx)
    }
}

/// A socket with what is gathered for it.
pub(super) struct Wire<I> {
    socket: I,
    out: Vec<u8>,
    /// Bytes of `out` that are sent.
    gone: usize,
    /// Bytes moved since the last turn.
    moved: u64,
    /// hyper has nothing left to write.
    flushed: bool,
    /// Bytes thrown away while closing; `None` before.
    lingering: Option<u64>,
}

impl<I: Socket> Wire<I> {
    pub(super) fn new(socket: I) -> Self {
        Self { socket, out: Vec::new(), gone: 0, moved: 0, flushed: true, lingering: None }
    }

    /// Whether it has moved so much that others should come first; then its next turn begins.
    pub(super) fn has_had_its_turn(&mut self) -> bool {
        let had = self.moved >= TURN_BYTES;
        if had {
            self.moved = 0;
        }
        had
    }

    fn poll_write<R: Rt>(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
        link: &Link,
        connections: &Connections<R>,
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        self.flushed = false;
        if bytes <= GATHER_WRITE_MAX && self.out.len() + bytes <= GATHER_BYTES_MAX {
            if self.out.capacity() == 0 {
                self.out = connections.spare();
            }
            bufs.iter().for_each(|buf| self.out.extend_from_slice(buf));
            return Poll::Ready(Ok(bytes));
        }
        ready!(self.poll_drain(cx, link, connections))?;
        let written = self.socket.poll_write_vectored(cx, bufs);
        self.note(&written, link, connections);
        written
    }

    /// Sends what is gathered.
    pub(super) fn poll_drain<R: Rt>(
        &mut self,
        cx: &mut Context<'_>,
        link: &Link,
        connections: &Connections<R>,
    ) -> Poll<io::Result<()>> {
        while self.gone < self.out.len() {
            let written = self.socket.poll_write_vectored(cx, &[IoSlice::new(&self.out[self.gone..])]);
            self.note(&written, link, connections);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.gone += bytes,
            }
        }
        if self.out.capacity() > 0 {
            self.out.clear();
            self.gone = 0;
            connections.leave_spare(std::mem::take(&mut self.out));
        }
        if self.flushed {
            link.sent();
        }
        Poll::Ready(Ok(()))
    }

    /// Takes down whether the client makes us wait.
    fn note<R: Rt>(&mut self, moved: &Poll<io::Result<usize>>, link: &Link, connections: &Connections<R>) {
        match moved {
            Poll::Ready(Ok(bytes)) => {
                self.moved += *bytes as u64;
                link.moved(connections);
            }
            Poll::Pending => link.waits(connections),
            Poll::Ready(Err(_)) => {}
        }
    }

    /// Says goodbye, and listens on for a moment if the client may be in the middle of a sentence: closing with
    /// unread bytes resets the connection, and the reset overtakes the answer.
    fn poll_close<R: Rt>(
        &mut self,
        cx: &mut Context<'_>,
        link: &Link,
        connections: &Connections<R>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx, link, connections))?;
        if self.lingering.is_none() {
            ready!(self.socket.poll_flush(cx))?;
            ready!(self.socket.poll_shutdown(cx))?;
            if !link.is_interrupted() {
                return Poll::Ready(Ok(()));
            }
            link.enter(Phase::Closing, connections.now());
            self.lingering = Some(0);
        }
        let mut scratch = connections.scratch();
        let mut discarded = self.lingering.unwrap_or(0);
        let ended = loop {
            match self.socket.poll_read(cx, &mut scratch) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => break Poll::Ready(Ok(())),
                Poll::Ready(Ok(bytes)) => discarded += bytes as u64,
            }
            if discarded >= LINGER_BYTES_MAX {
                break Poll::Ready(Ok(()));
            }
        };
        self.lingering = Some(discarded);
        connections.give_back(scratch);
        ended
    }
}

/// The wire as hyper wants it.
pub(super) struct Io<I, R: Rt> {
    wire: Rc<RefCell<Wire<I>>>,
    link: Rc<Link>,
    connections: Connections<R>,
}

impl<I: Socket, R: Rt> Io<I, R> {
    pub(super) fn new(wire: Rc<RefCell<Wire<I>>>, link: Rc<Link>, connections: Connections<R>) -> Self {
        Self { wire, link, connections }
    }
}

impl<I: Socket, R: Rt> hyper::rt::Read for Io<I, R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.wire.borrow_mut();
        let mut scratch = self.connections.scratch();
        // A copy of what came, rather than clearing all of hyper's buffer before each read: requests are short.
        let room = buf.remaining().min(READ_BYTES_MAX);
        let read = wire.socket.poll_read(cx, &mut scratch[..room]);
        if let Poll::Ready(Ok(bytes)) = read {
            buf.put_slice(&scratch[..bytes]);
            if bytes > 0 && self.link.phase() == Phase::Idle {
                self.link.enter(Phase::Head, self.connections.now());
            }
            if self.link.phase() == Phase::Head && !self.link.head_grows(bytes, &self.connections) {
                self.connections.stats().refused(Reason::Overload);
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            }
        }
        self.connections.give_back(scratch);
        wire.note(&read, &self.link, &self.connections);
        read.map_ok(|_| ())
    }
}

impl<I: Socket, R: Rt> hyper::rt::Write for Io<I, R> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wire.borrow_mut().poll_write(cx, bufs, &self.link, &self.connections)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is gathered goes out at the end of the turn, which comes before anything else is waited for.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.wire.borrow_mut();
        wire.flushed = true;
        if wire.out.is_empty() { wire.socket.poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.borrow_mut().poll_close(cx, &self.link, &self.connections)
    }
}
