//! The client side: a [`Storage`] whose medium is a thread.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use engine::mailbox::{Answer, PipeError, PipeReader, PipeWriter, Reply, Sender, oneshot, pipe};

use super::{
    Answered, Ask, Body, Commit, INLINE_BYTES_MAX, Incoming, Kind, Result, Start, WINDOW_BYTES, gone, in_doubt,
};
use crate::{
    cache::{
        COPY_BYTES_MAX, CacheError, CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, PurgeReport,
        Storage, Stored, Tier, Trust,
    },
    reason::Reason,
};

/// A [`Storage`] on another thread. Clones share the credits of one client.
#[derive(Clone)]
pub struct Bridge {
    sender: Sender<Ask>,
    window_bytes: usize,
}

impl Bridge {
    /// The client of the server that drains `sender`'s mailbox. Its credits bound the requests of this client that
    /// wait to be taken up; at the bound a request waits for a credit.
    #[must_use]
    pub fn new(sender: Sender<Ask>) -> Self {
        Self { sender, window_bytes: WINDOW_BYTES }
    }

    /// The same, for bodies with at most `window_bytes` unread (or one chunk, if that is larger).
    #[must_use]
    pub fn with_window(self, window_bytes: usize) -> Self {
        Self { window_bytes, ..self }
    }

    /// Whether the server is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    async fn send(&self, kind: Kind) -> Result<()> {
        self.sender.send(Ask(kind)).await.map_err(|_| gone())
    }
}

impl Storage for Bridge {
    type Hit = BridgeHit;
    type Miss = BridgeMiss;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, BridgeHit)>> {
        Ok(self.find(key).await?.hit())
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<BridgeHit>> {
        let (reply, answer) = oneshot();
        self.send(Kind::Find { key: key.clone(), reply }).await?;
        Ok(match answer.await.ok_or_else(gone)?? {
            Answered::Miss(reason) => Found::Miss(reason),
            Answered::Hit { meta, tier, trust, body } => {
                let (length, source) = match body {
                    Body::Whole(bytes) => (bytes.len() as u64, Source::Whole(bytes)),
                    Body::Later { length, start } => (length, Source::Later(start)),
                };
                Found::Hit(
                    meta,
                    BridgeHit {
                        tier,
                        trust,
                        length,
                        rest: 0..length,
                        begun: false,
                        source,
                        window_bytes: self.window_bytes,
                    },
                )
            }
        })
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<BridgeMiss> {
        let stage = if meta.length.is_some_and(|length| length <= INLINE_BYTES_MAX) {
            Stage::Gather { bridge: self.clone(), key: key.clone(), precondition, chunks: Vec::new() }
        } else {
            Stage::Stream(self.begin(key, meta.clone(), precondition).await?)
        };
        Ok(BridgeMiss { announced: meta.length, meta, sent: 0, whole: false, stage })
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport> {
        let (reply, answer) = oneshot();
        self.send(Kind::Purge { key: key.clone(), precondition, reply }).await?;
        answer.await.ok_or_else(in_doubt)?
    }

    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool> {
        let (reply, answer) = oneshot();
        self.send(Kind::Update { key: key.clone(), meta, reply }).await?;
        answer.await.ok_or_else(in_doubt)?
    }
}

impl Bridge {
    async fn begin(&self, key: &CacheKey, meta: CacheMeta, precondition: Precondition) -> Result<Outgoing> {
        let (begun, has_begun) = oneshot();
        let (failed, failure) = oneshot();
        let (commit, commits) = oneshot();
        let (writer, body) = pipe(self.window_bytes);
        let write = Incoming { begun, body, failed, commit: commits };
        self.send(Kind::Begin { key: key.clone(), meta, precondition, write }).await?;
        has_begun.await.ok_or_else(gone)??;
        Ok(Outgoing { body: Some(writer), failure, commit })
    }
}

/// A hit on another thread.
pub struct BridgeHit {
    tier: Tier,
    trust: Trust,
    length: u64,
    /// What reads still give.
    rest: Range<u64>,
    begun: bool,
    source: Source,
    window_bytes: usize,
}

enum Source {
    /// The whole body.
    Whole(Bytes),
    /// Nothing yet, until it is asked for.
    Later(Reply<Start>),
    Stream(PipeReader<CacheError>),
    /// Nothing more can be read.
    Cut,
}

impl BridgeHit {
    /// Takes the rest of a body that came whole.
    fn take_whole(&mut self) -> Option<Bytes> {
        let Source::Whole(bytes) = &self.source else { return None };
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.slice(at(self.rest.start)..at(self.rest.end));
        self.rest.start = self.rest.end;
        Some(rest)
    }

    async fn read_stream(&mut self) -> Result<Bytes> {
        if matches!(self.source, Source::Later(_)) {
            let (body, reader) = pipe(self.window_bytes);
            if let Source::Later(start) = std::mem::replace(&mut self.source, Source::Stream(reader)) {
                // A server that left has dropped the pipe with it: the read below says so.
                drop(start.send(Start { start: self.rest.start, end: self.rest.end, body }));
            }
        }
        let Source::Stream(reader) = &mut self.source else { return Err(gone()) };
        let left = self.rest.end - self.rest.start;
        match reader.read().await {
            Ok(Some(chunk)) if chunk.len() as u64 <= left => {
                self.rest.start += chunk.len() as u64;
                Ok(chunk)
            }
            Ok(_) => {
                self.source = Source::Cut;
                Err(CacheError::Corrupted { what: "a body that is not as long as its tier said".into() })
            }
            Err(why) => {
                self.source = Source::Cut;
                Err(match why {
                    PipeError::Aborted => gone(),
                    PipeError::Failed(why) => why,
                })
            }
        }
    }
}

impl HitHandler for BridgeHit {
    fn remaining(&self) -> u64 {
        self.rest.end - self.rest.start
    }

    fn seek(&mut self, range: Range<u64>) -> Result<()> {
        if self.begun || self.rest != (0..self.length) || range.start > range.end || range.end > self.length {
            return Err(CacheError::Refused(Reason::Internal));
        }
        self.rest = range;
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        self.begun = true;
        if self.rest.is_empty() {
            return Ok(None);
        }
        match self.take_whole() {
            Some(rest) => Ok(Some(rest)),
            None => self.read_stream().await.map(Some),
        }
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        if self.remaining() > COPY_BYTES_MAX as u64 {
            return None;
        }
        // It came whole, so it is in this thread's RAM whatever tier it came from.
        let rest = self.take_whole()?;
        self.begun = true;
        out.extend_from_slice(&rest);
        Some(rest.len())
    }

    fn tier(&self) -> Tier {
        self.tier
    }

    fn trust(&self) -> Trust {
        self.trust
    }
}

/// A write to another thread.
pub struct BridgeMiss {
    announced: Option<u64>,
    meta: CacheMeta,
    sent: u64,
    whole: bool,
    stage: Stage,
}

enum Stage {
    /// Small: kept here until the commit takes all of it over.
    Gather {
        bridge: Bridge,
        key: CacheKey,
        precondition: Precondition,
        chunks: Vec<Bytes>,
    },
    Stream(Outgoing),
}

/// The client's ends of a streamed write.
struct Outgoing {
    /// `None` once its end mark was sent.
    body: Option<PipeWriter<CacheError>>,
    failure: Answer<CacheError>,
    commit: Reply<Commit>,
}

impl Outgoing {
    /// Why the server takes no more.
    async fn why(&mut self) -> CacheError {
        (&mut self.failure).await.unwrap_or_else(gone)
    }
}

impl MissHandler for BridgeMiss {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        &mut self.meta
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<()> {
        self.sent += chunk.len() as u64;
        let cut = |announced| self.sent > announced || (eof && self.sent < announced);
        if self.whole || self.announced.is_some_and(cut) {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        match &mut self.stage {
            // Bounded by the announced length; empty chunks are not kept, so that their number is too.
            Stage::Gather { chunks, .. } => chunks.extend((!chunk.is_empty()).then_some(chunk)),
            Stage::Stream(outgoing) => {
                let Some(body) = &mut outgoing.body else { return Err(CacheError::Refused(Reason::BodyCut)) };
                if body.write(chunk).await.is_err() {
                    return Err(outgoing.why().await);
                }
                if eof && let Some(body) = outgoing.body.take() {
                    body.end();
                }
            }
        }
        self.whole = eof;
        Ok(())
    }

    async fn finish(self) -> Result<Stored> {
        if !self.whole {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        let (reply, answer) = oneshot();
        match self.stage {
            Stage::Gather { bridge, key, precondition, chunks } => {
                bridge.send(Kind::Put { key, meta: self.meta, precondition, body: chunks, reply }).await?;
            }
            Stage::Stream(mut outgoing) => {
                let commit = std::mem::replace(&mut outgoing.commit, oneshot().0);
                if commit.send(Commit { meta: self.meta, reply }).is_err() {
                    return Err(outgoing.why().await);
                }
                return match answer.await {
                    Some(result) => result,
                    // It left before it took the commit up if it said why, and in the middle of it otherwise.
                    None => Err((&mut outgoing.failure).await.unwrap_or_else(in_doubt)),
                };
            }
        }
        answer.await.ok_or_else(in_doubt)?
    }
}
