//! One listening socket, and the thread that deals its connections to the shards.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures_lite::future::{block_on, or};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen as start_listening, socket_with, sockopt},
};

use super::Stream;
use crate::{
    mailbox::{Receiver, Sender, TrySendError, mailbox},
    shard::Signal,
};

/// Connections that the kernel completes and keeps until they are accepted; beyond, it lets clients try again.
pub const LISTEN_BACKLOG: i32 = 1024;

/// Accepted connections that one shard has not taken yet. With all shards at it, the kernel's backlog fills.
pub const UNTAKEN_MAX: usize = 128;

/// How long accepting pauses when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program, or another node, has it.
    #[error("cannot listen on {addr}: another program is using that port")]
    InUse {
        /// What was asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The address is not one of this machine, or the port is privileged, or anything else.
    #[error("cannot listen on {addr}: {source}")]
    Refused {
        /// What was asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on `addr` (port 0: any free one) for `shards` shards. Clients can connect from now on, and are served once
/// [`Port::open`] was called. The listeners are moved to one shard each.
///
/// # Errors
/// See [`BindError`].
pub fn listen(addr: SocketAddr, shards: usize) -> Result<(Port, Vec<Listener>), BindError> {
    let bound = bind_exclusively(addr).and_then(|socket| Ok((socket.local_addr()?, socket, bell()?)));
    let (local_addr, socket, bell) = bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { addr, source },
        _ => BindError::Refused { addr, source },
    })?;
    let inboxes: Vec<_> = (0..shards).map(|_| mailbox(UNTAKEN_MAX)).collect();
    let takers = inboxes.iter().map(|inbox| inbox.sender(UNTAKEN_MAX).expect("the whole capacity")).collect();
    let shared =
        Arc::new(Shared { bell, closing: Signal::new(), accepted: AtomicU64::new(0), dropped: AtomicU64::new(0) });
    let dealer = Dealer { socket, takers, next: 0, shared: shared.clone() };
    let port = Port { local_addr, shared, dealer: Some(dealer), thread: None };
    Ok((port, inboxes.into_iter().map(|inbox| Listener { inbox, local_addr }).collect()))
}

fn bind_exclusively(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // Past connections in TIME_WAIT must not keep a restarted node from its port. Unlike SO_REUSEPORT, this does not
    // let two sockets listen.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &addr)?;
    start_listening(&socket, LISTEN_BACKLOG)?;
    Ok(socket.into())
}

fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// A port of this process. Dropping it closes it.
#[derive(Debug)]
pub struct Port {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    /// `Some` until it is opened.
    dealer: Option<Dealer>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// The address with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Starts accepting, on a thread of its own. Again: nothing.
    ///
    /// # Errors
    /// No thread can be started; the port is closed then.
    pub fn open(&mut self) -> io::Result<()> {
        if let Some(dealer) = self.dealer.take() {
            let name = format!("accept-{}", self.local_addr.port());
            self.thread = Some(std::thread::Builder::new().name(name).spawn(move || dealer.run())?);
        }
        Ok(())
    }

    /// Stops accepting and frees the port. What is in the backlog is still dealt out, as far as shards have room;
    /// listeners give what they were dealt, and then `None`. Blocks for moments only.
    pub fn close(mut self) {
        self.shut();
    }

    /// Connections accepted since the port was opened.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections dropped right after they were accepted, because no shard had room or lived at the close.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    fn shut(&mut self) {
        self.shared.closing.raise();
        // The counter of an eventfd takes 2^64 - 2 of these.
        let _ = rustix::io::write(&self.shared.bell, &1_u64.to_ne_bytes());
        self.dealer = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and closed the port as well.
            drop(thread.join());
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.shut();
    }
}

/// One shard's share of the connections of a [`Port`].
pub struct Listener {
    inbox: Receiver<Accepted>,
    local_addr: SocketAddr,
}

impl Listener {
    /// The next connection, bound to the executor of the calling shard; `None` once the port is closed and everything
    /// accepted before has been given. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Stream> {
        let Accepted { socket, peer } = self.inbox.recv().await?;
        Some(Stream::adopt(socket, peer, self.local_addr))
    }

    /// The address of the port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

/// A connection on its way to a shard.
struct Accepted {
    socket: TcpStream,
    peer: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    /// Readable once the port is being closed.
    bell: OwnedFd,
    closing: Signal,
    accepted: AtomicU64,
    dropped: AtomicU64,
}

/// The accepting thread.
struct Dealer {
    socket: TcpListener,
    takers: Vec<Sender<Accepted>>,
    /// Whose turn it is.
    next: usize,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Dealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dealer").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Dealer {
    fn run(mut self) {
        loop {
            // Looked at before the backlog is emptied: what came before the close is dealt out.
            let closing = self.shared.closing.is_raised();
            match self.empty_backlog() {
                Ok(()) if closing => return,
                Ok(()) => self.wait(true, None),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    if closing {
                        return;
                    }
                    self.wait(false, Some(ACCEPT_PAUSE));
                }
            }
        }
    }

    /// Waits for the close and, if asked, for a connection.
    fn wait(&self, connections: bool, pause: Option<Duration>) {
        let pause = pause.map(|pause| Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) });
        let mut fds = [PollFd::new(&self.shared.bell, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
        let waited = poll(&mut fds[..1 + usize::from(connections)], pause.as_ref());
        if let Err(error) = waited
            && error != Errno::INTR
        {
            tracing::warn!(%error, "cannot wait for connections");
        }
    }

    fn empty_backlog(&mut self) -> io::Result<()> {
        loop {
            match self.socket.accept() {
                Ok((socket, peer)) => self.deal(Accepted { socket, peer }),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    // Out of descriptors or memory: what is left stays in the backlog.
                    _ if is_ours(&error) => return Err(error),
                    // The connection's own error (accept(2) passes them on): the next one may be well.
                    _ => {}
                },
            }
        }
    }

    /// Gives a connection to the first shard, from the one whose turn it is, that has room.
    fn deal(&mut self, accepted: Accepted) {
        self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        let mut homeless = accepted;
        let mut full = None;
        for turn in 0..self.takers.len() {
            let shard = (self.next + turn) % self.takers.len();
            homeless = match self.takers[shard].try_send(homeless) {
                Ok(()) => {
                    self.next = shard + 1;
                    return;
                }
                Err(TrySendError::Full(back)) => {
                    full.get_or_insert(shard);
                    back
                }
                Err(TrySendError::Closed(back)) => back,
            };
        }
        let Some(shard) = full.filter(|_| !self.shared.closing.is_raised()) else { return self.give_up() };
        let sent = block_on(or(async { self.takers[shard].send(homeless).await.is_ok() }, async {
            self.shared.closing.raised().await;
            false
        }));
        if sent { self.next = shard + 1 } else { self.give_up() }
    }

    fn give_up(&self) {
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether accepting failed for lack of something of this process or machine.
fn is_ours(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::BADF, Errno::INVAL, Errno::NOTSOCK];
    error.raw_os_error().is_none_or(|code| lacking.iter().any(|errno| errno.raw_os_error() == code))
}
