//! The one way a value crosses between shards and executors: bounded, by credits.
//!
//! Three shapes, all over crossbeam channels and woken by [`std::task::Waker`], so that they work alike on a
//! shard, under tokio, on a plain thread and in the simulator:
//!
//! - [`mailbox`]: many senders, one receiver. Each [`Sender`] holds credits reserved from the queue's capacity, so
//!   a send that has a credit never finds the queue full, and one busy sender cannot starve another.
//! - [`oneshot`]: the reserved room for one reply.
//! - [`pipe`]: one body, as chunks against a window of bytes, closed by an end mark. A pipe that closes without
//!   its mark was aborted; nothing else says "abort", so nothing can be lost that would.
//!
//! Invariants: a receiver never waits for a sender's send to complete (no ring of receivers can deadlock);
//! dropping either end is noticed by the other at its next poll; no wake is lost (register, then check again).
//! Left to others: what the messages mean, and timeouts.

mod credits;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;
use crossbeam_channel as queue;

use self::credits::{Credits, Turn};

/// The other end is gone. Carries back what could not be delivered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end of the channel is gone")]
pub struct Closed<T>(pub T);

/// Why [`Sender::try_send`] did not send.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<T> {
    /// Every credit of this sender is in use.
    #[error("no credit left")]
    Full(T),
    /// The receiver is gone.
    #[error("the receiver is gone")]
    Closed(T),
}

/// Why [`Receiver::try_recv`] returned nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TryRecvError {
    /// Nothing is queued now.
    #[error("the mailbox is empty")]
    Empty,
    /// Nothing is queued and every sender is gone.
    #[error("every sender is gone")]
    Closed,
}

struct Envelope<T> {
    value: T,
    share: Arc<Share>,
}

/// What one sender and its clones have of the capacity. Goes back when they and their queued values are gone.
struct Share {
    credits: Credits,
    count: usize,
    inner: Arc<Inner>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.inner.unreserved.fetch_add(self.count, Ordering::SeqCst);
    }
}

struct Inner {
    waker: AtomicWaker,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
    /// Credits not handed to a sender.
    unreserved: AtomicUsize,
    shares: Mutex<Vec<Weak<Share>>>,
}

/// Makes a mailbox that holds at most `capacity` values, whose credits are handed out by
/// [`Receiver::sender`].
#[must_use]
pub fn mailbox<T: Send>(capacity: usize) -> Receiver<T> {
    let (tx, rx) = queue::bounded(capacity);
    Receiver {
        queue: rx,
        template: tx,
        inner: Arc::new(Inner {
            waker: AtomicWaker::new(),
            senders: AtomicUsize::new(0),
            receiver_gone: AtomicBool::new(false),
            unreserved: AtomicUsize::new(capacity),
            shares: Mutex::new(Vec::new()),
        }),
    }
}

/// The receiving end of a [`mailbox`]. Dropping it returns every queued value to nobody: they are dropped, and
/// every sender learns of it.
pub struct Receiver<T> {
    queue: queue::Receiver<Envelope<T>>,
    template: queue::Sender<Envelope<T>>,
    inner: Arc<Inner>,
}

impl<T: Send> Receiver<T> {
    /// A new sender with `credits` of its own; `None` when the capacity is spoken for already. They go back when the
    /// sender, its clones and what they sent are gone.
    #[must_use]
    pub fn sender(&self, credits: usize) -> Option<Sender<T>> {
        self.inner
            .unreserved
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(credits))
            .ok()?;
        self.inner.senders.fetch_add(1, Ordering::SeqCst);
        let share = Arc::new(Share { credits: Credits::new(credits), count: credits, inner: self.inner.clone() });
        let mut shares = self.inner.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.retain(|share| share.strong_count() > 0);
        shares.push(Arc::downgrade(&share));
        Some(Sender { queue: self.template.clone(), share })
    }

    /// Takes the next value if one is queued. Never blocks.
    ///
    /// # Errors
    /// [`TryRecvError::Closed`] once every sender is gone and the queue is drained.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        if let Ok(envelope) = self.queue.try_recv() {
            envelope.share.credits.give_back();
            return Ok(envelope.value);
        }
        if self.inner.senders.load(Ordering::SeqCst) > 0 {
            return Err(TryRecvError::Empty);
        }
        // A last value may have come between the two looks.
        match self.queue.try_recv() {
            Ok(envelope) => {
                envelope.share.credits.give_back();
                Ok(envelope.value)
            }
            Err(_) => Err(TryRecvError::Closed),
        }
    }

    /// Polls for the next value; `None` once every sender is gone and the queue is drained.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        for first_look in [true, false] {
            match self.try_recv() {
                Ok(value) => return Poll::Ready(Some(value)),
                Err(TryRecvError::Closed) => return Poll::Ready(None),
                Err(TryRecvError::Empty) if first_look => self.inner.waker.register(cx.waker()),
                Err(TryRecvError::Empty) => {}
            }
        }
        Poll::Pending
    }

    /// Waits for the next value. Cancel-safe: a dropped future has taken nothing.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Waits on a plain thread; blocks it. For executor threads without a scheduler.
    pub fn recv_blocking(&mut self) -> Option<T> {
        futures_lite::future::block_on(self.recv())
    }

    /// Values queued now: a gauge.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.inner.receiver_gone.store(true, Ordering::SeqCst);
        while self.queue.try_recv().is_ok() {}
        let shares = std::mem::take(&mut *self.inner.shares.lock().unwrap_or_else(PoisonError::into_inner));
        for share in shares.iter().filter_map(Weak::upgrade) {
            share.credits.wake_all();
        }
    }
}

/// A sending end of a [`mailbox`], with credits of its own. Clones share them.
pub struct Sender<T> {
    queue: queue::Sender<Envelope<T>>,
    share: Arc<Share>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.share.inner.senders.fetch_add(1, Ordering::SeqCst);
        Self { queue: self.queue.clone(), share: self.share.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.share.inner.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.share.inner.waker.wake();
        }
    }
}

impl<T: Send> Sender<T> {
    /// Sends if a credit is free. Never blocks.
    ///
    /// # Errors
    /// The value comes back when no credit is free or the receiver is gone.
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.is_closed() {
            return Err(TrySendError::Closed(value));
        }
        if !self.share.credits.try_take() {
            return Err(TrySendError::Full(value));
        }
        self.put(value).map_err(|Closed(value)| TrySendError::Closed(value))
    }

    /// Waits for a credit and sends. Waiting senders get freed credits in the order they came, as long as nobody who
    /// did not wait takes them first. Cancel-safe: a dropped future has sent nothing and holds no credit.
    ///
    /// # Errors
    /// The value comes back when the receiver is gone.
    pub async fn send(&self, value: T) -> Result<(), Closed<T>> {
        let mut turn = Turn::new(&self.share.credits);
        let granted = poll_fn(|cx| {
            if self.is_closed() {
                Poll::Ready(false)
            } else if turn.take(cx.waker()) {
                Poll::Ready(true)
            } else if self.is_closed() {
                // It left before the waker was in place.
                Poll::Ready(false)
            } else {
                Poll::Pending
            }
        })
        .await;
        if granted { self.put(value) } else { Err(Closed(value)) }
    }

    /// Queues a value for which a credit was taken.
    fn put(&self, value: T) -> Result<(), Closed<T>> {
        match self.queue.try_send(Envelope { value, share: self.share.clone() }) {
            Ok(()) => {
                self.share.inner.waker.wake();
                Ok(())
            }
            // Full cannot be: credits never exceed the capacity. Disconnected: the receiver is gone.
            Err(refused) => Err(Closed(refused.into_inner().value)),
        }
    }

    /// Whether the receiver is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.share.inner.receiver_gone.load(Ordering::SeqCst)
    }
}

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
    /// Of the answering end, which waits for the other to leave.
    leave_waker: Option<Waker>,
    sender_gone: bool,
    receiver_gone: bool,
}

/// Makes the reserved room for one reply.
#[must_use]
pub fn oneshot<T: Send>() -> (Reply<T>, Answer<T>) {
    let slot = Arc::new(Mutex::new(Slot {
        value: None,
        waker: None,
        leave_waker: None,
        sender_gone: false,
        receiver_gone: false,
    }));
    (Reply { slot: slot.clone() }, Answer { slot })
}

/// The end that answers, once. Dropping it unanswered is itself an answer: the other end gets `None`.
pub struct Reply<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

impl<T: Send> Reply<T> {
    /// Answers. Never blocks.
    ///
    /// # Errors
    /// The value comes back when nobody waits any more.
    pub fn send(self, value: T) -> Result<(), Closed<T>> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.receiver_gone {
            return Err(Closed(value));
        }
        slot.value = Some(value);
        // `drop` wakes the other end.
        Ok(())
    }

    /// Whether nobody waits for this answer any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).receiver_gone
    }

    /// Completes when nobody waits for this answer any more: work for it can be given up. One waiter at a time.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.receiver_gone {
                return Poll::Ready(());
            }
            slot.leave_waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        // The own waker, if a wait for the other end was given up, is dropped outside the lock.
        let (waker, _unused) = {
            let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.sender_gone = true;
            (slot.waker.take(), slot.leave_waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The end that waits: a future of the value, or of `None` when the other end was dropped unanswered.
pub struct Answer<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

impl<T> Future for Answer<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = slot.value.take() {
            return Poll::Ready(Some(value));
        }
        if slot.sender_gone {
            return Poll::Ready(None);
        }
        if !slot.waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl<T: Send> Answer<T> {
    /// Waits on a plain thread; blocks it.
    pub fn wait_blocking(self) -> Option<T> {
        futures_lite::future::block_on(self)
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        // Outside the lock: a value that was never taken may hold a `Reply` of its own. The own waker goes too: a reply
        // that takes long must not keep the task of a client that left.
        let (leave_waker, _untaken) = {
            let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.receiver_gone = true;
            (slot.leave_waker.take(), (slot.value.take(), slot.waker.take()))
        };
        if let Some(waker) = leave_waker {
            waker.wake();
        }
    }
}

enum Part<E> {
    Data(Bytes),
    End,
    Failed(E),
}

struct PipeInner {
    /// Bytes sent and not yet taken.
    in_flight: AtomicUsize,
    reader: AtomicWaker,
    writer: AtomicWaker,
    reader_gone: AtomicBool,
    writer_gone: AtomicBool,
}

/// Chunks a pipe can hold whatever their size, so that tiny chunks are bounded too.
pub const PIPE_CHUNKS_MAX: usize = 256;

/// What a pipe's reader sees when the writer left without an end mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PipeError<E> {
    /// The writer was dropped before the end of the body.
    #[error("the body was cut before its end")]
    Aborted,
    /// The writer said why it could not go on.
    #[error("the body failed: {0}")]
    Failed(E),
}

/// Makes a pipe for one body whose unread bytes stay within `window` (one chunk above it when a single chunk is
/// larger).
#[must_use]
pub fn pipe<E: Send>(window: usize) -> (PipeWriter<E>, PipeReader<E>) {
    let (tx, rx) = queue::bounded(PIPE_CHUNKS_MAX + 1);
    let inner = Arc::new(PipeInner {
        in_flight: AtomicUsize::new(0),
        reader: AtomicWaker::new(),
        writer: AtomicWaker::new(),
        reader_gone: AtomicBool::new(false),
        writer_gone: AtomicBool::new(false),
    });
    (
        PipeWriter { queue: tx, inner: inner.clone(), window, ended: false },
        PipeReader { queue: rx, inner, ended: false },
    )
}

/// The writing end of a [`pipe`]. Dropping it before [`PipeWriter::end`] aborts the body.
pub struct PipeWriter<E> {
    queue: queue::Sender<Part<E>>,
    inner: Arc<PipeInner>,
    window: usize,
    ended: bool,
}

impl<E: Send> PipeWriter<E> {
    fn has_room(&self, bytes: usize) -> bool {
        let in_flight = self.inner.in_flight.load(Ordering::SeqCst);
        self.queue.len() < PIPE_CHUNKS_MAX && (in_flight == 0 || in_flight + bytes <= self.window)
    }

    /// Waits until a chunk of `bytes` fits the window. `false`: the reader is gone.
    pub async fn ready(&mut self, bytes: usize) -> bool {
        poll_fn(|cx| {
            for first_look in [true, false] {
                if self.inner.reader_gone.load(Ordering::SeqCst) {
                    return Poll::Ready(false);
                }
                if self.has_room(bytes) {
                    return Poll::Ready(true);
                }
                if first_look {
                    self.inner.writer.register(cx.waker());
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Sends one chunk, waiting for room in the window. Empty chunks are swallowed. Cancel-safe.
    ///
    /// # Errors
    /// The chunk comes back when the reader is gone.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), Closed<Bytes>> {
        if chunk.is_empty() {
            return Ok(());
        }
        if !self.ready(chunk.len()).await {
            return Err(Closed(chunk));
        }
        self.try_write(chunk).map_err(|refused| match refused {
            TrySendError::Full(chunk) | TrySendError::Closed(chunk) => Closed(chunk),
        })
    }

    /// Sends one chunk if the window has room for it now. Never blocks.
    ///
    /// # Errors
    /// The chunk comes back when there is no room or the reader is gone.
    pub fn try_write(&mut self, chunk: Bytes) -> Result<(), TrySendError<Bytes>> {
        if self.inner.reader_gone.load(Ordering::SeqCst) {
            return Err(TrySendError::Closed(chunk));
        }
        if !self.has_room(chunk.len()) {
            return Err(TrySendError::Full(chunk));
        }
        self.inner.in_flight.fetch_add(chunk.len(), Ordering::SeqCst);
        self.put(Part::Data(chunk));
        Ok(())
    }

    fn put(&self, part: Part<E>) {
        // Room is certain: data stops one short of the capacity. A reader that left drops the queue with it.
        drop(self.queue.try_send(part));
        self.inner.reader.wake();
    }

    /// Marks the body as whole. Never blocks.
    pub fn end(mut self) {
        self.ended = true;
        self.put(Part::End);
    }

    /// Cuts the body and says why. Never blocks.
    pub fn fail(mut self, why: E) {
        self.ended = true;
        self.put(Part::Failed(why));
    }

    /// Whether the reader is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.reader_gone.load(Ordering::SeqCst)
    }

    /// Completes when the reader is gone.
    pub async fn closed(&self) {
        poll_fn(|cx| {
            if self.is_closed() {
                return Poll::Ready(());
            }
            self.inner.writer.register(cx.waker());
            if self.is_closed() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl<E> Drop for PipeWriter<E> {
    fn drop(&mut self) {
        self.inner.writer_gone.store(true, Ordering::SeqCst);
        self.inner.reader.wake();
    }
}

/// The reading end of a [`pipe`]. Dropping it tells the writer at its next write.
pub struct PipeReader<E> {
    queue: queue::Receiver<Part<E>>,
    inner: Arc<PipeInner>,
    ended: bool,
}

impl<E: Send> PipeReader<E> {
    /// The next chunk, or `None` at the end mark (and ever after).
    ///
    /// # Errors
    /// The writer aborted or failed; every later read says [`PipeError::Aborted`].
    pub async fn read(&mut self) -> Result<Option<Bytes>, PipeError<E>> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Polls for the next chunk; see [`PipeReader::read`].
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, PipeError<E>>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        for first_look in [true, false] {
            // Read the flag before the queue: a writer sends first and leaves after.
            let writer_gone = self.inner.writer_gone.load(Ordering::SeqCst);
            match self.queue.try_recv() {
                Ok(Part::Data(chunk)) => {
                    self.inner.in_flight.fetch_sub(chunk.len(), Ordering::SeqCst);
                    self.inner.writer.wake();
                    return Poll::Ready(Ok(Some(chunk)));
                }
                Ok(Part::End) => {
                    self.ended = true;
                    return Poll::Ready(Ok(None));
                }
                Ok(Part::Failed(why)) => return Poll::Ready(Err(PipeError::Failed(why))),
                Err(_) if writer_gone => return Poll::Ready(Err(PipeError::Aborted)),
                Err(_) if first_look => self.inner.reader.register(cx.waker()),
                Err(_) => {}
            }
        }
        Poll::Pending
    }

    /// Waits on a plain thread; blocks it. See [`PipeReader::read`].
    ///
    /// # Errors
    /// As [`PipeReader::read`].
    pub fn read_blocking(&mut self) -> Result<Option<Bytes>, PipeError<E>> {
        futures_lite::future::block_on(self.read())
    }
}

impl<E> Drop for PipeReader<E> {
    fn drop(&mut self) {
        self.inner.reader_gone.store(true, Ordering::SeqCst);
        self.inner.writer.wake();
        while self.queue.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests;
