#![expect(unsafe_code, reason = "the executor's stream is made from, and lends, a raw descriptor only")]
//! One connection, read and written by readiness.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_lite::io::{AsyncRead, AsyncWrite};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, connect_unspec, recv, sendmsg, shutdown, sockopt},
};

/// Slices that one vectored write can take (IOV_MAX); the rest is for the next.
const SLICES_MAX: usize = 1024;

/// How often [`Stream::peer_closed`] looks while bytes wait to be read, which no readiness tells apart.
const PEER_LOOK: Duration = Duration::from_millis(100);

/// A TCP connection of the shard that accepted it. Not `Send`.
///
/// Reads and writes copy between the caller's buffer and the kernel's when the socket is ready, so every future and
/// every buffer may be dropped at any time, and what was not reported as read or written was not. One task reads and
/// writes at a time (`&mut`), and the waker of the last poll of each direction is the one woken.
///
/// Dropping it closes the connection in the regular way; see [`Stream::abort`] for the other one.
#[derive(Debug)]
pub struct Stream {
    // Its own reads and writes are used to wait for readiness: it has no vectored write, and reads into initialised
    // memory only.
    tcp: glommio::net::TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    /// The last read filled its buffer, or there was none: more may be there, so look before waiting.
    maybe_readable: bool,
    aborted: bool,
}

impl Stream {
    /// Takes an accepted connection to the executor of this thread.
    pub(super) fn adopt(socket: TcpStream, peer: SocketAddr, local: SocketAddr) -> Self {
        // Answers are written whole: holding back the last segment for the client's acknowledgement only costs time.
        if let Err(error) = socket.set_nodelay(true) {
            // The client has gone already; the first read says so.
            tracing::debug!(%error, %peer, "no TCP_NODELAY");
        }
        let local = socket.local_addr().unwrap_or(local);
        let fd = socket.into_raw_fd();
        // SAFETY: `fd` is an open TCP socket that `socket` owned and has just given up.
        let tcp = unsafe { glommio::net::TcpStream::from_raw_fd(fd) };
        Self { tcp, peer, local, maybe_readable: true, aborted: false }
    }

    /// The client's address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Our address, as the client sees it.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sets TCP_NODELAY, which is on at first.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        Ok(sockopt::set_tcp_nodelay(self.fd(), nodelay)?)
    }

    /// Reads what is there, up to the length of `buf`, or waits until something is. 0: the client will send no more
    /// (it may still read), or `buf` is empty.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let len = buf.len();
        self.poll_recv(cx, len, |fd| recv(fd, &mut *buf, RecvFlags::DONTWAIT).map(|(_, read)| read))
    }

    /// As [`Stream::poll_read`], into memory that need not be initialised; what was read is returned.
    ///
    /// # Errors
    /// As [`Stream::poll_read`].
    pub fn poll_read_uninit<'b>(
        &mut self,
        cx: &mut Context<'_>,
        buf: &'b mut [MaybeUninit<u8>],
    ) -> Poll<io::Result<&'b mut [u8]>> {
        let len = buf.len();
        let read = ready!(self.poll_recv(cx, len, |fd| {
            recv(fd, &mut *buf, RecvFlags::DONTWAIT).map(|((filled, _), _)| filled.len())
        }))?;
        // SAFETY: the kernel has written the first `read` bytes of `buf` just now: `filled` was that part of it.
        Poll::Ready(Ok(unsafe { buf[..read].assume_init_mut() }))
    }

    /// Writes as much of `buf` as the socket takes, or waits until it takes some.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// As [`Stream::poll_write`], from many slices in one system call.
    ///
    /// # Errors
    /// As [`Stream::poll_write`].
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bufs = &bufs[..bufs.len().min(SLICES_MAX)];
        let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) else { return Poll::Ready(Ok(0)) };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(self.fd(), bufs, &mut SendAncillaryBuffer::default(), flags) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(Errno::INTR) => {}
                // Tries again and, having failed too, waits for room.
                Err(Errno::AGAIN) => return Pin::new(&mut self.tcp).poll_write(cx, first),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Always ready: what was written is the kernel's.
    ///
    /// # Errors
    /// None.
    pub fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the writing half: the client reads what was written, then the end. Reading goes on. Always ready.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match shutdown(self.fd(), Shutdown::Write) {
            // The client was faster.
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }

    /// As [`Stream::poll_read`], as a future. Cancel-safe: dropped, it has read nothing.
    ///
    /// # Errors
    /// As [`Stream::poll_read`].
    pub async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buf)).await
    }

    /// Writes all of `buf`. Dropped, it may have written a part.
    ///
    /// # Errors
    /// As [`Stream::poll_write`].
    pub async fn write_all(&mut self, mut buf: &[u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let written = poll_fn(|cx| self.poll_write(cx, buf)).await?;
            buf = &buf[written..];
        }
        Ok(())
    }

    /// Whether the client has ended its writing half or the connection is broken, also while bytes it sent before
    /// wait to be read. One system call; never blocks.
    #[must_use]
    pub fn is_peer_closed(&self) -> bool {
        let fd = self.fd();
        let mut state = [PollFd::new(&fd, PollFlags::RDHUP)];
        let looked = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        looked.is_ok() && state[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    /// Completes when [`Stream::is_peer_closed`]; reads nothing. At once, or up to 100 ms later when bytes are
    /// waiting to be read. Cancel-safe.
    pub async fn peer_closed(&mut self) {
        while !self.is_peer_closed() {
            // An error is a state that the next look sees.
            drop(poll_fn(|cx| self.poll_readable(cx)).await);
            if !self.is_peer_closed() {
                glommio::timer::Timer::new(PEER_LOOK).await;
            }
        }
    }

    /// Breaks the connection so that the client cannot take what it got for the end: it sees a reset.
    pub fn abort(mut self) {
        self.aborted = true;
        // Unlike a close with linger 0, it does not wait until the executor's ring lets go of the socket.
        if let Err(error) = connect_unspec(self.fd()) {
            tracing::debug!(%error, peer = %self.peer, "a connection was gone before it was aborted");
        }
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        len: usize,
        mut recv: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        for _ in 0..2 {
            if !self.maybe_readable {
                ready!(self.poll_readable(cx))?;
            }
            match recv(self.fd()) {
                Ok(read) => {
                    self.maybe_readable = read == len;
                    return Poll::Ready(Ok(read));
                }
                Err(Errno::AGAIN) => self.maybe_readable = false,
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        // Ready, yet nothing to read, twice: let others go first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready when a read would not block: bytes, the end, or an error.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // On TCP, a receive of no bytes fails with EAGAIN exactly when one of many would.
        Pin::new(&mut self.tcp).poll_read(cx, &mut []).map_ok(|_| ())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `self.tcp` owns the descriptor and closes it only when it is dropped, after this borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.tcp.as_raw_fd()) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.aborted {
            // A poll of the executor's ring may hold the socket beyond the close until the ring's next turn: the client
            // hears of the end now, and the poll completes.
            let _ = shutdown(self.fd(), Shutdown::Both);
        }
    }
}
