//! One client connection: HTTP/1.1 by hyper over a [`Socket`], and the bounds on what it may hold and how long.
//!
//! Bounds: [`Limits`] on the number of connections and on waiting for the client; [`BUFFER_BYTES_MAX`] on a request
//! head (beyond: 431) and on unsent bytes. At a time limit the connection is closed and counted.
//!
//! Time is watched from outside, by one task a shard that looks at every connection each [`SWEEP`]: no timer is set
//! or cancelled for a request, and all waiting is on the shard's own clock.
//!
//! Left to others: what is answered ([`service`](super::service)), accepting ([`listener`](super::listener)), how
//! bytes go out and how a connection says goodbye ([`wire`](super::wire)). A panic in a connection's task ends that
//! connection alone; the scheduler sees to it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use engine::{clock::Clock, rt::Rt, shard::Signal};
use http::{Request, header::CONNECTION};
use http_body::{Frame, SizeHint};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};

use super::{
    body::Body,
    inflight::{Inflight, Ticket},
    service::Objects,
    stats::DoorStats,
    wire::{Io, LINGER, READ_BYTES_MAX, Socket, Wire},
};
use crate::{
    cache::{CacheError, Storage},
    reason::Reason,
};

/// Longest request head, and most bytes of answers buffered before the socket takes them.
pub const BUFFER_BYTES_MAX: usize = 64 << 10;

/// How often connections are looked at for overdue clients: limits are kept to this precision.
pub const SWEEP: Duration = Duration::from_millis(250);

/// Bounds on the connections of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open at once; further ones are answered 503 and closed.
    pub connections_max: usize,
    /// From the first byte of a request head to its last.
    pub header_timeout: Duration,
    /// Between two requests, or before the first.
    pub idle_timeout: Duration,
    /// In a body, without a byte moving, while only the client is waited for.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// What a connection is doing, as far as its client is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request is under way and none of its bytes has come.
    Idle,
    /// Some bytes of a request head have come.
    Head,
    /// A request is being answered.
    Busy,
    /// The answer is out; what the client still sends is thrown away.
    Closing,
}

/// What a connection is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    GoOn,
    /// Answer what is under way, then close.
    Finish,
    /// Close where it stands.
    Stop,
}

/// What the outside knows of a connection.
#[derive(Debug)]
pub(super) struct Link {
    phase: Cell<Phase>,
    /// When the phase began, or the last byte went out in it.
    since: Cell<Duration>,
    /// Since when nothing but the client is waited for.
    waiting: Cell<Option<Duration>>,
    order: Cell<Order>,
    waker: RefCell<Option<Waker>>,
    /// The client may still be sending a body that nobody reads.
    unread: Cell<bool>,
    /// Bytes of the request head that is coming.
    head_bytes: Cell<usize>,
    /// What the answers are charged that have ended and not all gone out, and what long heads are.
    unsent: RefCell<Option<Ticket>>,
}

impl Link {
    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(super) fn enter(&self, phase: Phase, now: Duration) {
        self.phase.set(phase);
        self.head_bytes.set(0);
        self.since.set(now);
        self.waiting.set(None);
    }

    /// `bytes` more of a request head have come. `false`: it is too long for what is in flight already.
    pub(super) fn head_grows<R: Rt>(&self, bytes: usize, connections: &Connections<R>) -> bool {
        let (before, after) = (self.head_bytes.get(), self.head_bytes.get() + bytes);
        self.head_bytes.set(after);
        if !(before <= READ_BYTES_MAX && after > READ_BYTES_MAX) {
            return true;
        }
        let ticket = connections.inner.inflight.try_enter();
        let fits = ticket.is_some();
        ticket.into_iter().for_each(|ticket| self.ended(ticket));
        fits
    }

    /// Bytes went to or came from the client.
    pub(super) fn moved<R: Rt>(&self, connections: &Connections<R>) {
        self.waiting.set(None);
        if self.phase.get() == Phase::Idle {
            self.since.set(connections.now());
        }
    }

    /// Nothing but the client is waited for.
    pub(super) fn waits<R: Rt>(&self, connections: &Connections<R>) {
        if self.waiting.get().is_none() {
            self.waiting.set(Some(connections.now()));
        }
    }

    /// Whether the client may be in the middle of something that nobody will read.
    pub(super) fn is_interrupted(&self) -> bool {
        self.phase.get() == Phase::Head || self.unread.get()
    }

    /// An answer has ended; its bytes may not have gone out.
    fn ended(&self, ticket: Ticket) {
        let mut unsent = self.unsent.borrow_mut();
        match &mut *unsent {
            Some(before) => before.absorb(ticket),
            None => *unsent = Some(ticket),
        }
    }

    /// Everything has gone out.
    pub(super) fn sent(&self) {
        let unsent = self.unsent.borrow_mut().take();
        drop(unsent);
    }

    fn tell(&self, order: Order) {
        if self.order.get() != Order::Stop {
            self.order.set(order);
        }
        let waker = self.waker.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }

    fn is_overdue(&self, limits: &Limits, now: Duration) -> bool {
        let (since, limit) = match self.phase.get() {
            Phase::Idle => (Some(self.since.get()), limits.idle_timeout),
            Phase::Head => (Some(self.since.get()), limits.header_timeout),
            Phase::Busy => (self.waiting.get(), limits.stall_timeout),
            Phase::Closing => (Some(self.since.get()), LINGER),
        };
        since.is_some_and(|since| now.saturating_sub(since) >= limit)
    }
}

/// The connections of one shard. Clones are the same.
#[derive(Clone)]
pub struct Connections<R: Rt> {
    inner: Rc<Inner<R>>,
}

struct Inner<R> {
    rt: R,
    limits: Limits,
    stats: Rc<DoorStats>,
    inflight: Rc<Inflight>,
    open: RefCell<BTreeMap<u64, Rc<Link>>>,
    next_id: Cell<u64>,
    stopping: Signal,
    /// Who waits for the last connection to end.
    drained: RefCell<Option<Waker>>,
    scratch: Cell<Vec<u8>>,
    spare: Cell<Vec<u8>>,
}

impl<R: Rt> Connections<R> {
    /// No connection yet. Starts the task that looks for overdue ones, and for who waits too long at `inflight`; it
    /// ends after [`Connections::stop`].
    pub fn new(rt: R, limits: Limits, stats: Rc<DoorStats>, inflight: Rc<Inflight>) -> Self {
        let inner = Rc::new(Inner {
            rt: rt.clone(),
            limits,
            stats,
            inflight,
            open: RefCell::default(),
            next_id: Cell::new(0),
            stopping: Signal::new(),
            drained: RefCell::default(),
            scratch: Cell::default(),
            spare: Cell::default(),
        });
        let connections = Self { inner };
        let sweeper = connections.clone();
        rt.spawn(async move {
            while !(sweeper.inner.stopping.is_raised() && sweeper.open() == 0) {
                futures_lite::future::or(sweeper.inner.rt.sleep(SWEEP), sweeper.ended()).await;
                sweeper.sweep();
            }
        });
        connections
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.inner.open.borrow().len()
    }

    /// Connections with a request under way now, from its head to the end of its answer's body.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.inner.open.borrow().values().filter(|link| link.phase.get() == Phase::Busy).count()
    }

    /// Raised when no more connections are to be accepted.
    #[must_use]
    pub fn stopping(&self) -> &Signal {
        &self.inner.stopping
    }

    /// Accepts no more, lets every request under way be answered, and closes. What is still open after `grace` is
    /// cut; their number is returned. Dropping the future leaves the rest to go on closing.
    pub async fn stop(&self, grace: Duration) -> usize {
        self.inner.stopping.raise();
        self.tell_all(Order::Finish);
        futures_lite::future::or(self.drained(), self.inner.rt.sleep(grace)).await;
        let late = self.open();
        self.tell_all(Order::Stop);
        self.drained().await;
        late
    }

    /// A place for one more connection; `None` at the limit or while stopping.
    pub(super) fn admit(&self) -> Option<Place<R>> {
        if self.open() >= self.inner.limits.connections_max || self.inner.stopping.is_raised() {
            return None;
        }
        let id = self.inner.next_id.get();
        self.inner.next_id.set(id + 1);
        let link = Rc::new(Link {
            phase: Cell::new(Phase::Idle),
            since: Cell::new(self.now()),
            waiting: Cell::new(None),
            order: Cell::new(Order::GoOn),
            waker: RefCell::default(),
            unread: Cell::new(false),
            head_bytes: Cell::new(0),
            unsent: RefCell::default(),
        });
        self.inner.open.borrow_mut().insert(id, Rc::clone(&link));
        self.inner.stats.connection_accepted();
        Some(Place { id, link, connections: self.clone() })
    }

    pub(super) fn rt(&self) -> &R {
        &self.inner.rt
    }

    pub(super) fn stats(&self) -> &DoorStats {
        &self.inner.stats
    }

    pub(super) fn now(&self) -> Duration {
        self.inner.rt.clock().elapsed()
    }

    /// Room for one read, lent until [`Connections::give_back`]. What a socket reads goes through it into hyper's
    /// buffer; one is enough, as nothing waits while it is used.
    pub(super) fn scratch(&self) -> Vec<u8> {
        let mut scratch = self.inner.scratch.take();
        scratch.resize(BUFFER_BYTES_MAX, 0);
        scratch
    }

    pub(super) fn give_back(&self, scratch: Vec<u8>) {
        self.inner.scratch.set(scratch);
    }

    /// An empty buffer for gathered answers: that of the connection that wrote last.
    pub(super) fn spare(&self) -> Vec<u8> {
        self.inner.spare.take()
    }

    pub(super) fn leave_spare(&self, spare: Vec<u8>) {
        self.inner.spare.set(spare);
    }

    fn tell_all(&self, order: Order) {
        let links: Vec<_> = self.inner.open.borrow().values().cloned().collect();
        links.iter().for_each(|link| link.tell(order));
    }

    fn sweep(&self) {
        let now = self.now();
        self.inner.inflight.sweep(now);
        let limits = &self.inner.limits;
        let overdue: Vec<_> =
            self.inner.open.borrow().values().filter(|link| link.is_overdue(limits, now)).cloned().collect();
        for link in overdue {
            if link.phase.get() != Phase::Closing && link.order.get() != Order::Stop {
                self.inner.stats.connection_timed_out();
            }
            link.tell(Order::Stop);
        }
    }

    async fn drained(&self) {
        poll_fn(|cx| {
            if self.open() == 0 {
                return Poll::Ready(());
            }
            *self.inner.drained.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Completes when the node stops, and never while it already does: then there is only the next sweep to wait for.
    async fn ended(&self) {
        if self.inner.stopping.is_raised() {
            return std::future::pending().await;
        }
        self.inner.stopping.raised().await;
    }
}

/// The place of one connection; given up with it.
pub(super) struct Place<R: Rt> {
    id: u64,
    link: Rc<Link>,
    connections: Connections<R>,
}

impl<R: Rt> Drop for Place<R> {
    fn drop(&mut self) {
        let inner = &self.connections.inner;
        inner.open.borrow_mut().remove(&self.id);
        if inner.open.borrow().is_empty() {
            let waiting = inner.drained.borrow_mut().take();
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

/// Serves one connection until it ends. Never fails: what goes wrong is the client's loss, counted where it is ours.
pub(super) async fn serve<I, R, S, C>(socket: I, place: Place<R>, objects: Rc<Objects<S, C>>)
where
    I: Socket,
    R: Rt,
    S: Storage + 'static,
    S::Hit: 'static,
    C: Clock,
{
    let connections = place.connections.clone();
    let link = Rc::clone(&place.link);
    let wire = Rc::new(RefCell::new(Wire::new(socket)));
    let io = Io::new(Rc::clone(&wire), Rc::clone(&link), connections.clone());
    let service = service_fn(|request: Request<Incoming>| {
        let busy = Busy::begin(&link, &connections);
        let (objects, link) = (Rc::clone(&objects), Rc::clone(&link));
        async move {
            let answer = objects.answer(request).await;
            link.unread.set(answer.headers().contains_key(CONNECTION));
            Ok::<_, Infallible>(answer.map(|body| Exchange { body, busy }))
        }
    });
    let mut http = pin!(
        http1::Builder::new()
            // A client may shut its sending side down after its request and still want the answer.
            .half_close(true)
            .header_read_timeout(None)
            .auto_date_header(false)
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_header_size(BUFFER_BYTES_MAX)
            .serve_connection(io, service)
    );
    let mut finishing = false;
    loop {
        let turn = poll_fn(|cx| {
            *link.waker.borrow_mut() = Some(cx.waker().clone());
            match link.order.get() {
                Order::GoOn => {}
                Order::Finish if finishing => {}
                Order::Finish => {
                    finishing = true;
                    http.as_mut().graceful_shutdown();
                }
                Order::Stop => return Poll::Ready(Some(Ok(()))),
            }
            let polled = http.as_mut().poll(cx);
            let drained = wire.borrow_mut().poll_drain(cx, &link, &connections);
            match (polled, drained) {
                (Poll::Ready(ended), _) => Poll::Ready(Some(ended)),
                (Poll::Pending, Poll::Ready(Err(_broken))) => Poll::Ready(Some(Ok(()))),
                // INV-8: a body that flows without a pause gives way now and then.
                _ if wire.borrow_mut().has_had_its_turn() => Poll::Ready(None),
                _ => Poll::Pending,
            }
        });
        match turn.await {
            None => connections.rt().yield_now().await,
            Some(Ok(())) => return,
            Some(Err(error)) => {
                if error.is_parse() {
                    let too_large = error.is_parse_too_large();
                    connections.stats().refused(if too_large { Reason::HeadersMax } else { Reason::BadRequest });
                }
                return tracing::debug!(%error, "a connection ended badly");
            }
        }
    }
}

/// A request is being answered, until the last of its answer was given to the connection.
struct Busy<R: Rt> {
    link: Rc<Link>,
    connections: Connections<R>,
}

impl<R: Rt> Busy<R> {
    fn begin(link: &Rc<Link>, connections: &Connections<R>) -> Self {
        link.enter(Phase::Busy, connections.now());
        Self { link: Rc::clone(link), connections: connections.clone() }
    }
}

impl<R: Rt> Drop for Busy<R> {
    fn drop(&mut self) {
        self.link.enter(Phase::Idle, self.connections.now());
    }
}

/// An answer's body, and the request it answers.
struct Exchange<R: Rt> {
    body: Body,
    busy: Busy<R>,
}

impl<R: Rt> Drop for Exchange<R> {
    fn drop(&mut self) {
        if let Some(ticket) = self.body.take_ticket() {
            self.busy.link.ended(ticket);
        }
    }
}

impl<R: Rt> http_body::Body for Exchange<R> {
    type Data = Bytes;
    type Error = CacheError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CacheError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
