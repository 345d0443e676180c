//! A static HTTP responder: hyper on tokio, one thread, bodies in memory, no cache around them. What a node on the
//! same HTTP library is compared with.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    sync::mpsc,
    task::{Context, Poll, ready},
    thread,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, rt::ReadBufCursor, server::conn::http1, service::service_fn};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Builder,
    task::{LocalSet, spawn_local},
};

use super::support::Failure;

/// Bytes read at a time.
const READ_BYTES: usize = 8 << 10;

/// A responder that runs until the process ends.
pub(crate) struct Responder {
    pub(crate) http: SocketAddr,
    /// Where the kernel tells of its thread.
    pub(crate) proc: PathBuf,
}

impl Responder {
    /// Answers any target that ends in `/{name}-{anything}` with the body of that name. `prepare` is run on its
    /// thread first.
    pub(crate) fn start(
        bodies: BTreeMap<String, Bytes>,
        prepare: impl FnOnce() -> Result<(), Failure> + Send + 'static,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let http = listener.local_addr()?;
        let (started, starts) = mpsc::channel();
        thread::Builder::new().name("responder".into()).spawn(move || {
            let thread = rustix::thread::gettid().as_raw_nonzero();
            let begun = prepare().map(|()| PathBuf::from(format!("/proc/self/task/{thread}")));
            if started.send(begun).is_ok()
                && let Err(failure) = serve(listener, bodies)
            {
                eprintln!("the responder ended: {failure}");
            }
        })?;
        Ok(Self { http, proc: starts.recv()?? })
    }
}

fn serve(listener: TcpListener, bodies: BTreeMap<String, Bytes>) -> Result<(), Failure> {
    let bodies = Rc::new(bodies);
    LocalSet::new().block_on(&Builder::new_current_thread().enable_all().build()?, async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let bodies = Rc::clone(&bodies);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&bodies, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            spawn_local(async move {
                // A load that ends closes its connections: nothing to tell.
                drop(http1::Builder::new().serve_connection(Socket(stream), service).await);
            });
        }
    })
}

fn answer(bodies: &BTreeMap<String, Bytes>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let target = request.uri().path();
    let name = target.rsplit('/').next().and_then(|last| last.split('-').next()).unwrap_or_default();
    let body = bodies.get(name).cloned();
    let mut response = Response::new(Full::new(body.clone().unwrap_or_default()));
    if body.is_none() {
        *response.status_mut() = http::StatusCode::NOT_FOUND;
    }
    response
}

/// tokio's socket as hyper wants it.
struct Socket(TcpStream);

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_BYTES];
        let room = cursor.remaining().min(READ_BYTES);
        let mut buf = ReadBuf::new(&mut bytes[..room]);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut buf))?;
        cursor.put_slice(buf.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
