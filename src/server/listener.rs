//! The accept loop of one shard.
//!
//! At the limit of connections a client is told 503 with `Retry-After` and let go; [`REFUSALS_MAX`] of these
//! farewells may be under way, further clients are closed without a word. The loop ends with the port, or when the
//! connections are told to stop. Left to others: the port itself, and what to do when no descriptor is left.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    rc::Rc,
    task::{Poll, ready},
};

use engine::{clock::Clock, rt::Rt};
use futures_lite::future::or;

use super::{
    connection::{Connections, serve},
    service::Objects,
    wire::{LINGER, LINGER_BYTES_MAX, Socket},
};
use crate::{
    cache::Storage,
    protocol::{Fault, Refusal, http::answer},
    reason::Reason,
};

/// Clients that are being told that there is no room, at once.
pub const REFUSALS_MAX: usize = 64;

/// Where connections come from: `engine::net`'s listener, or a test's.
pub trait Accept {
    /// What a connection is.
    type Socket: Socket;

    /// The next connection; `None`: there will be no more. Dropping the future loses none.
    fn accept(&mut self) -> impl Future<Output = Option<Self::Socket>>;
}

impl Accept for engine::net::Listener {
    type Socket = engine::net::Stream;

    async fn accept(&mut self) -> Option<engine::net::Stream> {
        self.accept().await
    }
}

/// Accepts and serves until [`Connections::stop`] or the end of the port; connections then go on by themselves. Runs on the shard that
/// serves them; one task each.
pub async fn listen<A, R, S, C>(mut listener: A, connections: Connections<R>, objects: Rc<Objects<S, C>>)
where
    A: Accept,
    R: Rt,
    S: Storage + 'static,
    S::Hit: 'static,
    C: Clock,
{
    let farewell: Rc<[u8]> = farewell().into();
    let refusing = Rc::new(Cell::new(0));
    let stopping = connections.stopping().clone();
    let stopped = async || {
        stopping.raised().await;
        None
    };
    while let Some(socket) = or(stopped(), listener.accept()).await {
        match connections.admit() {
            Some(place) => connections.rt().spawn(serve(socket, place, Rc::clone(&objects))),
            None => refuse(socket, &connections, &farewell, &refusing),
        }
    }
}

fn refuse<I: Socket, R: Rt>(
    mut socket: I,
    connections: &Connections<R>,
    farewell: &Rc<[u8]>,
    refusing: &Rc<Cell<usize>>,
) {
    connections.stats().connection_refused();
    connections.stats().refused(Reason::Overload);
    if refusing.get() >= REFUSALS_MAX {
        return;
    }
    let place = Refusing::new(refusing);
    let (farewell, patience) = (Rc::clone(farewell), connections.rt().sleep(LINGER));
    let stopping = connections.stopping().clone();
    connections.rt().spawn(async move {
        let _place = place;
        // Whether the client heard it is its own affair.
        or(async { drop(say_goodbye(&mut socket, &farewell).await) }, or(patience, stopping.raised())).await;
    });
}

/// Writes the farewell, then reads on until the client has closed, so that no reset overtakes it.
async fn say_goodbye<I: Socket>(socket: &mut I, farewell: &[u8]) -> io::Result<()> {
    let mut rest = farewell;
    while !rest.is_empty() {
        let written = poll_fn(|cx| socket.poll_write_vectored(cx, &[IoSlice::new(rest)])).await?;
        rest = rest.get(written..).filter(|_| written > 0).ok_or(io::ErrorKind::WriteZero)?;
    }
    let (mut scratch, mut discarded) = ([0; 4096], 0);
    poll_fn(|cx| {
        ready!(socket.poll_flush(cx))?;
        Poll::Ready(ready!(socket.poll_shutdown(cx)))
    })
    .await?;
    while discarded < LINGER_BYTES_MAX {
        match poll_fn(|cx| socket.poll_read(cx, &mut scratch)).await? {
            0 => break,
            bytes => discarded += bytes as u64,
        }
    }
    Ok(())
}

/// One farewell under way.
struct Refusing(Rc<Cell<usize>>);

impl Refusing {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The whole answer to a connection for which there is no room.
fn farewell() -> Vec<u8> {
    let refusal = Refusal::new(Fault::Unavailable, Reason::Overload, "this node has as many connections as it takes");
    let answer = answer::problem(&refusal);
    let mut bytes = format!("HTTP/1.1 {}\r\nconnection: close\r\n", answer.status()).into_bytes();
    for (name, value) in answer.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(answer.body());
    bytes
}
