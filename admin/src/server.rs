//! The socket, the thread and the bounds of the door.
//!
//! One thread with a tokio current-thread runtime serves everything. Every wait on a peer has a timeout and every
//! queue a size ([`Limits`]); whoever is beyond them is told so (503) and closed.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use crate::{
    control::Control,
    io::{Socket, TokioTimer},
    respond,
    routes::Door,
};

/// Header lines in a request at most (431).
const HEADERS_MAX: usize = 64;
/// Bytes in the head of a request at most (431).
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Connections beyond `connections_max` that are told why at one time; any beyond these are closed at once.
const REFUSALS_MAX: usize = 16;
/// For telling one of them; then it is closed untold.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after the system refuses to accept (no file descriptor left), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Bounds on what peers may take of the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at one time; more are answered 503 and closed.
    pub connections_max: usize,
    /// For a whole request head, also while a kept-alive connection is idle; then the connection is closed.
    pub head_timeout: Duration,
    /// For a whole request body; then 408.
    pub body_timeout: Duration,
    /// For the node to answer; then 503.
    pub answer_timeout: Duration,
    /// For a peer to take any byte of an answer; then the connection is closed.
    pub stall_timeout: Duration,
    /// For requests under way when the door closes; then they are cut.
    pub shutdown_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(5),
        }
    }
}

/// Why the door does not open or did not close well. Each ends the start (or stop) of a node.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be listened on.
    #[error("cannot listen on admin_listen = {addr}: {source}{}", hint(source))]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread or its runtime cannot be made.
    #[error("cannot start the admin thread: {0}")]
    Start(#[source] io::Error),
    /// The thread ended by a panic.
    #[error("the admin thread panicked")]
    Panicked,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another process, perhaps another node, has this port: choose another or `off`)",
        io::ErrorKind::AddrNotAvailable => " (this machine has no such address)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
        _ => "",
    }
}

/// A bound door that does not answer yet: peers that connect wait.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    addr: SocketAddr,
    limits: Limits,
}

impl AdminServer {
    /// Binds `addr`, whose port may be 0. Does not block; called at start, before anything is served.
    ///
    /// # Errors
    /// [`AdminError::Bind`].
    pub fn bind(addr: SocketAddr) -> Result<Self, AdminError> {
        let bound = TcpListener::bind(addr).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let addr = listener.local_addr()?;
            Ok(Self { listener, addr, limits: Limits::default() })
        });
        bound.map_err(|source| AdminError::Bind { addr, source })
    }

    /// Replaces the bounds, which are sensible by default.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Where it listens, with the port the system chose if it was 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves `control` on a thread of its own until [`Running::stop`] or drop.
    ///
    /// # Errors
    /// [`AdminError::Start`].
    pub fn serve(self, control: Arc<dyn Control>) -> Result<Running, AdminError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Start)?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(self.listener).map_err(AdminError::Start)?
        };
        let (stop, stopped) = watch::channel(());
        let (addr, limits) = (self.addr, self.limits);
        let door = Arc::new(Door::new(control, limits));
        let thread = thread::Builder::new().name("admin".to_owned());
        let thread = thread.spawn(move || runtime.block_on(accept(listener, door, stopped)));
        Ok(Running { addr, stop: Some(stop), thread: Some(thread.map_err(AdminError::Start)?) })
    }
}

/// A door that answers. Dropping it closes it as [`Running::stop`] does, and waits for that.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    /// Dropping the sender is the signal.
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no new connections, finishes requests under way for at most [`Limits::shutdown_timeout`], and joins
    /// the thread. Blocks for that long at most, so it is not for a shard to call.
    ///
    /// # Errors
    /// [`AdminError::Panicked`] if the thread had ended before by a panic.
    pub fn stop(mut self) -> Result<(), AdminError> {
        self.close()
    }

    fn close(&mut self) -> Result<(), AdminError> {
        self.stop = None;
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(AdminError::Panicked),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "admin door");
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, door: Arc<Door>, mut stopped: watch::Receiver<()>) {
    let places = Arc::new(Semaphore::new(door.limits.connections_max));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.changed() => break,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin door cannot accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if let Ok(place) = places.clone().try_acquire_owned() {
            connections.spawn(serve(stream, door.clone(), stopped.clone(), place));
        } else if let Ok(place) = refusals.clone().try_acquire_owned() {
            connections.spawn(refuse(stream, door.limits.connections_max, place));
        }
    }
    drop(listener);
    let finish = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(door.limits.shutdown_timeout, finish).await.is_err() {
        tracing::warn!("admin requests were cut at shutdown");
    }
}

/// A panic while serving ends its connection only, but must be seen.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an admin connection failed");
    }
}

async fn serve(stream: TcpStream, door: Arc<Door>, mut stopped: watch::Receiver<()>, place: OwnedSemaphorePermit) {
    // Answers are written whole; waiting to fill a segment would only delay their end.
    let _ = stream.set_nodelay(true);
    let limits = door.limits;
    let service = service_fn(|request: Request<Incoming>| {
        let door = door.clone();
        async move { Ok::<_, std::convert::Infallible>(door.handle(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer).header_read_timeout(limits.head_timeout);
    builder.max_headers(HEADERS_MAX).max_header_size(HEAD_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(Socket::new(stream, limits.stall_timeout), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an admin connection ended early");
    }
    drop(place);
}

/// Says why and closes. What the peer sent is taken first, or the reset would overtake the answer.
async fn refuse(mut stream: TcpStream, connections_max: usize, place: OwnedSemaphorePermit) {
    let detail = format!("the admin door serves {connections_max} connections at most; close one and try again");
    let problem = respond::refuse(http::StatusCode::SERVICE_UNAVAILABLE, "overload", detail);
    let body = serde_json::to_string(&problem).expect("views have string keys and no failing serialiser");
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {}\r\ncontent-length: {}\r\nretry-after: 1\r\n\
         connection: close\r\n\r\n{body}",
        respond::PROBLEM_JSON,
        body.len()
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        let mut sink = [0; 1024];
        while stream.read(&mut sink).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    // Refused either way: a peer that does not listen has nothing more to be told.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, told).await;
    drop(place);
}
