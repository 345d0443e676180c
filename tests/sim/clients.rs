//! What clients do: a few keys, many conditions, every way to leave early. Each call goes into the history.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::Bytes;
use engine::rt::{Rt, sim::SimRt};
use strata::cache::{CacheError, CacheMeta, HitHandler, MissHandler, Precondition, Storage, Stored, Tier, TierOutcome};

use crate::{
    oracle::{Call, Expects, History, Kind, Outcome},
    world::{Tiers, key},
};

/// Keys of each namespace.
pub(crate) const KEYS: u64 = 4;

/// The namespaces, and what each promises.
pub(crate) const SPACES: [(&str, Kind); 3] =
    [("durable", Kind::Durable), ("onevict", Kind::Cache), ("onwrite", Kind::Cache)];

/// The histories of all namespaces, over restarts.
pub(crate) struct Run {
    histories: RefCell<[History; 3]>,
    values: Cell<u64>,
    /// Calls that have not ended: none may be left when all is quiet.
    pub(crate) running: Cell<u64>,
}

impl Run {
    pub(crate) fn new() -> Rc<Self> {
        let histories = SPACES.map(|(_, kind)| History::new(kind));
        Rc::new(Self { histories: RefCell::new(histories), values: Cell::new(0), running: Cell::new(0) })
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let histories = self.histories.borrow();
        SPACES
            .iter()
            .zip(&*histories)
            .try_for_each(|((name, _), history)| history.check().map_err(|wrong| format!("namespace {name}, {wrong}")))
    }

    /// The process ended: what was under way is over, one way or the other.
    pub(crate) fn restart(&self) {
        self.running.set(0);
        self.histories.borrow_mut().iter_mut().for_each(History::restart);
    }

    pub(crate) fn calls(&self) -> usize {
        self.histories.borrow().iter().map(History::calls).sum()
    }

    pub(crate) fn count(&self, is: impl Fn(Outcome) -> bool) -> usize {
        self.histories.borrow().iter().map(|history| history.count(&is)).sum()
    }

    fn value(&self) -> u64 {
        self.values.set(self.values.get() + 1);
        self.values.get()
    }
}

/// A body that says which write it is, in every eight bytes of it.
pub(crate) fn body_of(value: u64, words: usize) -> Bytes {
    value.to_le_bytes().repeat(words).into()
}

/// INV-1: the bytes are those of one write.
fn value_of(body: &[u8]) -> u64 {
    let value = u64::from_le_bytes(body[..8].try_into().expect("eight bytes"));
    let mixed = !body.len().is_multiple_of(8) || body.chunks(8).any(|word| word != value.to_le_bytes());
    assert!(!mixed, "INV-1: the bytes of no write");
    value
}

/// One client of one process.
pub(crate) struct Client {
    pub(crate) rt: SimRt,
    pub(crate) tiers: Tiers,
    pub(crate) run: Rc<Run>,
}

impl Client {
    pub(crate) async fn work(self, calls: usize) {
        for _ in 0..calls {
            let (space, key) = (self.draw(3) as usize, self.draw(KEYS));
            match self.draw(10) {
                0..=4 => self.get(space, key, self.draw(6)).await,
                5..=7 => self.put(space, key).await,
                8 => self.remove(space, key).await,
                _ => self.fill().await,
            }
            if self.draw(3) == 0 {
                self.rt.sleep(Duration::from_millis(self.draw(30))).await;
            }
        }
    }

    fn draw(&self, n: u64) -> u64 {
        self.rt.random() % n
    }

    fn begin(&self, space: usize, key: u64, call: Call) -> crate::oracle::CallId {
        self.run.running.set(self.run.running.get() + 1);
        self.run.histories.borrow_mut()[space].begin(key, call)
    }

    fn end(&self, space: usize, call: crate::oracle::CallId, outcome: Outcome) {
        self.run.running.set(self.run.running.get() - 1);
        self.run.histories.borrow_mut()[space].end(call, outcome);
    }

    /// Other objects, so that L0 evicts and the log laps.
    async fn fill(&self) {
        let path = format!("{}/fill {}", SPACES[self.draw(3) as usize].0, self.draw(40));
        let body = body_of(0, 1 + self.draw(1500) as usize);
        drop(write(&self.tiers, &path, &body, None, Precondition::None, 10_000).await);
    }

    /// Reads whole; with `how` 0 leaves after the first chunk, with 1 or 2 asks for a range.
    pub(crate) async fn get(&self, space: usize, id: u64, how: u64) {
        let call = self.begin(space, id, Call::Read);
        let outcome = match self.tiers.lookup(&key(&path(space, id))).await {
            Ok(None) => Outcome::Missing,
            Ok(Some((meta, hit))) => self.read(meta, hit, how).await,
            Err(_) => Outcome::Failed,
        };
        self.end(space, call, outcome);
    }

    async fn read(&self, meta: CacheMeta, mut hit: <Tiers as Storage>::Hit, how: u64) -> Outcome {
        let words = hit.remaining() / 8;
        let range = matches!(how, 1 | 2) && words >= 2;
        if range {
            let first = self.draw(words);
            hit.seek(first * 8..(first + 1 + self.draw(words - first)) * 8).expect("within");
        }
        let (wanted, mut body, mut cut) = (hit.remaining(), Vec::new(), false);
        loop {
            match hit.read_body().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(_) => cut = true,
            }
            if cut || how == 0 {
                cut = true;
                break;
            }
        }
        assert!(cut || body.len() as u64 == wanted, "INV-1: a clean end of a short body");
        assert!(meta.length.is_some(), "a hit knows its length");
        // Eight bytes tell the write, also of a body that was cut.
        let whole = body.len() / 8 * 8;
        if whole == 0 {
            return Outcome::Failed;
        }
        Outcome::Found { version: meta.version.0, value: value_of(&body[..whole]) }
    }

    async fn put(&self, space: usize, id: u64) {
        let value = self.run.value();
        let path = path(space, id);
        let (expects, precondition) = match self.draw(6) {
            0 => (Expects::Absent, Precondition::Absent),
            1 => (Expects::Exists, Precondition::Exists),
            2 => match self.tiers.lookup(&key(&path)).await {
                Ok(Some((meta, _))) => (Expects::Version(meta.version.0), Precondition::Version(meta.version)),
                _ => (Expects::Anything, Precondition::None),
            },
            _ => (Expects::Anything, Precondition::None),
        };
        // Mostly small; some above the gate of L0, some that take many chunks on flash.
        let words = match self.draw(8) {
            0 => 3000 + self.draw(9000),
            1 => 1500 + self.draw(1500),
            _ => 1 + self.draw(600),
        };
        let body = body_of(value, words as usize);
        let length = (self.draw(2) == 0).then_some(body.len() as u64);
        let chunk = 1 + self.draw(20_000) as usize;
        let call = self.begin(space, id, Call::Write { value, expects });
        let writing = write(&self.tiers, &path, &body, length, precondition, chunk);
        // Some clients do not wait for the end.
        let leaves = self.draw(8) == 0;
        let outcome = if leaves {
            let late = async {
                self.rt.sleep(Duration::from_millis(self.draw(15))).await;
                None
            };
            futures_lite::future::or(async { Some(writing.await) }, late).await
        } else {
            Some(writing.await)
        };
        self.end(space, call, judged(outcome));
    }

    async fn remove(&self, space: usize, id: u64) {
        let call = self.begin(space, id, Call::Remove);
        let outcome = match self.tiers.purge(&key(&path(space, id)), Precondition::None).await {
            Ok(report) => Outcome::Removed {
                removed: report.removed.map(|version| version.0),
                tombstone: report.tombstone.map(|version| version.0),
            },
            // It may have happened in some tier.
            Err(_) => Outcome::Unknown,
        };
        self.end(space, call, outcome);
    }
}

fn judged(outcome: Option<Result<Stored, CacheError>>) -> Outcome {
    match outcome {
        Some(Ok(stored)) => {
            assert!(stored.tiers.contains(&Some(TierOutcome::Kept)), "acknowledged by nobody");
            Outcome::Written { version: stored.version.0, replaced: stored.replaced.map(|version| version.0) }
        }
        Some(Err(CacheError::Precondition { current })) => Outcome::Conflict { current: current.map(|v| v.0) },
        Some(Err(CacheError::OutcomeUnknown { .. })) | None => Outcome::Unknown,
        Some(Err(CacheError::Refused(_) | CacheError::Unavailable { .. })) => Outcome::Failed,
        Some(Err(other)) => panic!("not an answer to a write: {other}"),
    }
}

pub(crate) fn path(space: usize, id: u64) -> String {
    format!("{}/{id}", SPACES[space].0)
}

/// Writes `body` in chunks of `chunk` bytes.
pub(crate) async fn write(
    tiers: &Tiers,
    path: &str,
    body: &Bytes,
    length: Option<u64>,
    precondition: Precondition,
    chunk: usize,
) -> Result<Stored, CacheError> {
    let meta = CacheMeta { length, ..CacheMeta::default() };
    let mut miss = tiers.get_miss_handler(&key(path), meta, precondition).await?;
    let chunks = body.len().div_ceil(chunk).max(1);
    for i in 0..chunks {
        let part = body.slice((i * chunk).min(body.len())..((i + 1) * chunk).min(body.len()));
        miss.write_body(part, i + 1 == chunks).await?;
    }
    miss.finish().await
}

/// Reads all of an object; which tier it came from.
pub(crate) async fn read_all(tiers: &Tiers, path: &str) -> Result<Option<(Tier, Vec<u8>)>, CacheError> {
    let Some((_, mut hit)) = tiers.lookup(&key(path)).await? else { return Ok(None) };
    let tier = hit.tier();
    let mut body = Vec::new();
    while let Some(chunk) = hit.read_body().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(Some((tier, body)))
}
