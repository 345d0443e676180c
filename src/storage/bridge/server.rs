//! The serving side: each request is a task of its own, so that one slow read blocks none behind it.

use std::{
    cell::{Cell, RefCell},
    future::{Future, pending, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use engine::{
    mailbox::{Answer, PipeError, PipeReader, Receiver, Reply, oneshot},
    rt::Rt,
};
use futures_lite::future::or;

use super::{Answered, Ask, Body, INLINE_BYTES_MAX, Incoming, Kind, Result, STREAMS_MAX, Start, TASKS_MAX};
use crate::{
    cache::{
        COPY_BYTES_MAX, CacheError, CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, Storage, Stored,
    },
    reason::Reason,
};

/// Serves `storage` to every [`Bridge`](super::Bridge) over `asks` until all of them are gone, then waits for the
/// tasks it started.
pub async fn serve<S: Storage + 'static, R: Rt>(rt: R, storage: Rc<S>, asks: Receiver<Ask>) {
    serve_until(rt, storage, asks, pending()).await;
}

/// As [`serve`], but stops taking requests when `stop` completes: those not taken up are dropped, which their
/// clients notice; those under way are finished. A body that a client reads or writes at leisure counts as under
/// way, so the caller bounds the time it waits.
pub async fn serve_until<S: Storage + 'static, R: Rt>(
    rt: R,
    storage: Rc<S>,
    mut asks: Receiver<Ask>,
    stop: impl Future<Output = ()>,
) {
    let places = Rc::new(Places::default());
    let mut stop = pin!(stop);
    loop {
        let next = async {
            places.wait(|places| places.tasks.get() < TASKS_MAX).await;
            asks.recv().await
        };
        let stopped = async {
            stop.as_mut().await;
            None
        };
        let Some(Ask(kind)) = or(stopped, next).await else { break };
        let task = Task { storage: storage.clone(), place: places.enter_task() };
        rt.spawn(task.run(kind));
    }
    drop(asks);
    places.wait(|places| places.tasks.get() + places.streams.get() == 0).await;
}

/// What is under way.
#[derive(Default)]
struct Places {
    tasks: Cell<usize>,
    streams: Cell<usize>,
    /// The serving loop: the only one that waits.
    waiting: RefCell<Option<Waker>>,
}

impl Places {
    async fn wait(&self, until: impl Fn(&Self) -> bool) {
        poll_fn(|cx| {
            if until(self) {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn enter_task(self: &Rc<Self>) -> Place {
        self.tasks.set(self.tasks.get() + 1);
        Place { places: self.clone(), stream: false }
    }
}

/// One place, given back on drop.
struct Place {
    places: Rc<Places>,
    stream: bool,
}

impl Place {
    /// Gives the task's place back for one among the streams: from here on the client sets the pace.
    fn into_stream(mut self) -> Result<Self> {
        let streams = &self.places.streams;
        if streams.get() == STREAMS_MAX {
            return Err(CacheError::Unavailable { reason: Reason::Overload, cause: None });
        }
        streams.set(streams.get() + 1);
        self.places.tasks.set(self.places.tasks.get() - 1);
        self.stream = true;
        self.places.wake();
        Ok(self)
    }
}

impl Places {
    fn wake(&self) {
        let waiting = self.waiting.borrow_mut().take();
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let count = if self.stream { &self.places.streams } else { &self.places.tasks };
        count.set(count.get() - 1);
        self.places.wake();
    }
}

/// One request being carried out.
struct Task<S> {
    storage: Rc<S>,
    place: Place,
}

impl<S: Storage> Task<S> {
    async fn run(self, kind: Kind) {
        // An answer nobody waits for is dropped, and what it holds with it.
        match kind {
            Kind::Find { key, reply } => {
                let given_up = async {
                    reply.closed().await;
                    None
                };
                let found = or(async { Some(find(&*self.storage, &key).await) }, given_up).await;
                match found {
                    None => {}
                    Some(Err(failed)) => drop(reply.send(Err(failed))),
                    Some(Ok(Located::Answer(answer))) => drop(reply.send(Ok(answer))),
                    Some(Ok(Located::Large(meta, hit))) => self.stream_hit(meta, hit, reply).await,
                }
            }
            Kind::Put { key, meta, precondition, body, reply } => {
                drop(reply.send(put(&*self.storage, &key, meta, precondition, body).await));
            }
            Kind::Begin { key, meta, precondition, write } => self.take_write(&key, meta, precondition, write).await,
            Kind::Purge { key, precondition, reply } => {
                drop(reply.send(self.storage.purge(&key, precondition).await));
            }
            Kind::Update { key, meta, reply } => drop(reply.send(self.storage.update_meta(&key, meta).await)),
        }
    }

    async fn stream_hit(self, meta: CacheMeta, hit: S::Hit, reply: Reply<Result<Answered>>) {
        let place = match self.place.into_stream() {
            Ok(place) => place,
            Err(overload) => return drop(reply.send(Err(overload))),
        };
        let (start, started) = oneshot();
        let (tier, trust) = (hit.tier(), hit.trust());
        let body = Body::Later { length: hit.remaining(), start };
        if reply.send(Ok(Answered::Hit { meta, tier, trust, body })).is_ok() {
            stream(hit, started).await;
        }
        drop(place);
    }

    async fn take_write(self, key: &CacheKey, meta: CacheMeta, precondition: Precondition, write: Incoming) {
        let Incoming { begun, mut body, failed, commit } = write;
        let given_up = async {
            begun.closed().await;
            None
        };
        let begin = async { Some(self.storage.get_miss_handler(key, meta, precondition).await) };
        let Some(handler) = or(begin, given_up).await else { return };
        let (mut miss, place) = match handler.and_then(|miss| Ok((miss, self.place.into_stream()?))) {
            Ok(both) => both,
            Err(refused) => return drop(begun.send(Err(refused))),
        };
        if begun.send(Ok(())).is_err() {
            return;
        }
        match take_body(&mut miss, &mut body).await {
            Err(Left::Client) => return,
            Err(Left::Handler(why)) => {
                // Said before the pipe closes, which is what makes the client look for it.
                drop(failed.send(why));
                return;
            }
            Ok(()) => {}
        }
        if let Some(commit) = commit.await {
            *miss.meta_mut() = commit.meta;
            drop(commit.reply.send(miss.finish().await));
        }
        drop(place);
    }
}

enum Located<H> {
    Answer(Answered),
    Large(CacheMeta, H),
}

async fn find<S: Storage>(storage: &S, key: &CacheKey) -> Result<Located<S::Hit>> {
    let (meta, mut hit) = match storage.find(key).await? {
        Found::Hit(meta, hit) => (meta, hit),
        Found::Miss(reason) => return Ok(Located::Answer(Answered::Miss(reason))),
    };
    if hit.remaining() > INLINE_BYTES_MAX {
        return Ok(Located::Large(meta, hit));
    }
    let (tier, trust) = (hit.tier(), hit.trust());
    Ok(Located::Answer(match whole(&mut hit).await {
        Ok(bytes) => Answered::Hit { meta, tier, trust, body: Body::Whole(bytes) },
        // To the client this is the look-up, and damage found by a look-up is a miss.
        Err(CacheError::Corrupted { .. }) => Answered::Miss(Reason::Corrupted),
        Err(CacheError::Gone) => Answered::Miss(Reason::Reclaimed),
        Err(failed) => return Err(failed),
    }))
}

/// Reads a small body to its end.
async fn whole(hit: &mut impl HitHandler) -> Result<Bytes> {
    let length = usize::try_from(hit.remaining()).unwrap_or(usize::MAX);
    let mut all = BytesMut::new();
    if length <= COPY_BYTES_MAX {
        all.reserve(length);
        if hit.try_copy(&mut all).is_some() {
            return Ok(all.freeze());
        }
    }
    let Some(first) = hit.read_body().await? else { return Ok(Bytes::new()) };
    if first.len() == length {
        // The end must be seen: some tiers verify the whole body only there.
        return match hit.read_body().await? {
            None => Ok(first),
            Some(_) => Err(too_long()),
        };
    }
    all.reserve(length);
    all.extend_from_slice(&first);
    while let Some(chunk) = hit.read_body().await? {
        if all.len() + chunk.len() > length {
            return Err(too_long());
        }
        all.extend_from_slice(&chunk);
    }
    if all.len() < length {
        return Err(CacheError::Gone);
    }
    Ok(all.freeze())
}

fn too_long() -> CacheError {
    CacheError::Corrupted { what: "a body longer than its tier said".into() }
}

/// Sends the range that the client asks for, once it does.
async fn stream(mut hit: impl HitHandler, started: Answer<Start>) {
    let Some(Start { start, end, mut body }) = started.await else { return };
    if (start, end) != (0, hit.remaining())
        && let Err(refused) = hit.seek(start..end)
    {
        return body.fail(refused);
    }
    loop {
        let left = async {
            body.closed().await;
            None
        };
        match or(async { Some(hit.read_body().await) }, left).await {
            None => return,
            Some(Err(why)) => return body.fail(why),
            Some(Ok(None)) => return body.end(),
            Some(Ok(Some(chunk))) => {
                if body.write(chunk).await.is_err() {
                    return;
                }
            }
        }
    }
}

enum Left {
    Client,
    Handler(CacheError),
}

async fn take_body(miss: &mut impl MissHandler, body: &mut PipeReader<CacheError>) -> std::result::Result<(), Left> {
    loop {
        let (chunk, eof) = match body.read().await {
            Ok(Some(chunk)) => (chunk, false),
            Ok(None) => (Bytes::new(), true),
            Err(PipeError::Aborted | PipeError::Failed(_)) => return Err(Left::Client),
        };
        miss.write_body(chunk, eof).await.map_err(Left::Handler)?;
        if eof {
            return Ok(());
        }
    }
}

/// A small write, from beginning to commit.
async fn put<S: Storage>(
    storage: &S,
    key: &CacheKey,
    meta: CacheMeta,
    precondition: Precondition,
    body: Vec<Bytes>,
) -> Result<Stored> {
    let mut miss = storage.get_miss_handler(key, meta, precondition).await?;
    let last = body.len().saturating_sub(1);
    if body.is_empty() {
        miss.write_body(Bytes::new(), true).await?;
    }
    for (i, chunk) in body.into_iter().enumerate() {
        miss.write_body(chunk, i == last).await?;
    }
    miss.finish().await
}
