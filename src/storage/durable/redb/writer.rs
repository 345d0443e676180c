//! The thread that writes: everything that waits goes into one transaction.
//!
//! | what goes wrong                       | its mutations                         | later ones           |
//! |---------------------------------------|---------------------------------------|----------------------|
//! | too little room, asked before         | [`StoreError::Full`]; removals go on  | go on                |
//! | damage that redb tells                | [`StoreError::Corrupted`]             | go on                |
//! | I/O error or panic before the commit  | `Full` or `Failed`: nothing changed   | refused: [`Poisoned`]|
//! | anything in the commit                | [`StoreError::Unknown`]               | refused: [`Poisoned`]|
//!
//! On a full disk entries are removed in small transactions, into the headroom if need be, and pages that this freed
//! inside the file take new ones again. redb does not say how many are free; but the file has held a known number of
//! bytes when it last had to grow ([`Writer::held_max`]), and up to [`REFILL`] of that is taken without asking the
//! disk. If that is once too much, the headroom pays, and the number is corrected.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    thread::{self, JoinHandle},
};

use engine::mailbox::{Receiver, Reply};
use redb::{Database, ReadableTable, ReadableTableMetadata, Table};

use super::{
    CHANGES, CHANGES_MAX, MANIFESTS, META, PURGES, Shared, decode, failed,
    open::begin,
    rows::{Counters, purge_version, write_change, write_purge, write_scope},
    spaces::{Changes, Spaces, Stored},
};
use crate::{
    cache::{Cause, Version},
    reason::Reason,
    storage::{
        durable::{
            Poisoned, manifest_format,
            room::{Panicked, Room},
        },
        traits::{Body, Manifest, PURGE_RECORDS_MAX, PurgeRecord, StoreError, Swap},
    },
};

/// Mutations that may wait for the writer; more callers wait for a credit.
pub const QUEUE_MAX: usize = 512;

/// Mutations in one transaction.
pub const BATCH_MAX: usize = 256;

/// Bytes of manifests after which a transaction takes no more.
pub const BATCH_BYTES_MAX: u64 = 8 << 20;

/// Room a mutation may take beside its own bytes: the pages on its way are copied, in four tables.
const PAGES_BYTES: u64 = 64 << 10;

/// Room a mutation may take on a full disk, beside its own bytes: leaves with large bodies are copied, too.
const TIGHT_PAGES_BYTES: u64 = 256 << 10;

/// How much of what the index once held fits into its file again, whatever the sizes: numerator, denominator.
const REFILL: (u64, u64) = (7, 8);

/// Bytes the file may take of the disk for each byte held: leaves are at least a third full.
const SPREAD: u64 = 3;

/// What a file takes that holds nothing.
const EMPTY_FILE_BYTES: u64 = 8 << 20;

pub(super) enum Mutation {
    Put { expected: Option<Version>, manifest: Manifest },
    Delete { path: Vec<u8>, expected: Version },
    Touch { path: Vec<u8>, expected: Version, expires_ms: Option<u64> },
    PutPurge(PurgeRecord),
    RetirePurge(PurgeRecord),
}

impl Mutation {
    /// About the bytes it adds.
    fn bytes(&self) -> u64 {
        match self {
            Mutation::Put { manifest, .. } => {
                let inline = match &manifest.body {
                    Body::Inline(bytes) => bytes.len(),
                    Body::Blob(_) | Body::Tombstone => 0,
                };
                (manifest_format::HEAD_BYTES + manifest.path.len() + manifest.headers.len() + inline) as u64
            }
            _ => manifest_format::HEAD_BYTES as u64,
        }
    }
}

pub(super) struct Job {
    pub(super) mutation: Mutation,
    pub(super) reply: Reply<Result<Swap, StoreError>>,
}

/// Starts the writer on a file that takes `file_bytes` of the disk. It ends, with all that was queued committed, when
/// every sender is gone.
pub(super) fn start(
    db: Arc<Database>,
    mut jobs: Receiver<Job>,
    shared: Arc<Shared>,
    room: Room,
    counters: Counters,
    file_bytes: u64,
) -> io::Result<JoinHandle<()>> {
    let held_max = counters.bytes.max(file_bytes.saturating_sub(EMPTY_FILE_BYTES) / SPREAD);
    let spaces = shared.spaces.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut writer = Writer { db, shared, room, counters, spaces, held_max };
    thread::Builder::new().name("index-writer".into()).spawn(move || {
        while let Some(first) = jobs.recv_blocking() {
            let mut bytes = first.mutation.bytes();
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && bytes < BATCH_BYTES_MAX
                && let Ok(job) = jobs.try_recv()
            {
                bytes += job.mutation.bytes();
                batch.push(job);
            }
            writer.write(batch, bytes);
        }
    })
}

struct Writer {
    db: Arc<Database>,
    shared: Arc<Shared>,
    room: Room,
    counters: Counters,
    /// The same as the shared ones, which are locked for moments only.
    spaces: Option<Spaces>,
    /// Bytes of entries for which the file has pages.
    held_max: u64,
}

/// A transaction that was not committed, or may have been.
struct Failure {
    /// What it means for each of its mutations.
    answer: StoreError,
    /// Why no later transaction can succeed, if so.
    fatal: Option<Cause>,
}

impl Failure {
    /// Before the commit: certainly nothing has changed. redb goes on after damage only.
    fn certain(error: impl Into<redb::Error>) -> Self {
        let error = error.into();
        let fatal = (!matches!(error, redb::Error::Corrupted(_))).then(|| Arc::new(Said(error.to_string())) as Cause);
        Self { answer: failed(error), fatal }
    }

    /// In the commit.
    fn in_doubt(cause: Cause) -> Self {
        Self { answer: StoreError::Unknown(cause.clone()), fatal: Some(cause) }
    }
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::certain(error)
    }
}

/// What redb said; the error itself went to those who waited.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

impl Writer {
    fn write(&mut self, batch: Vec<Job>, bytes: u64) {
        let (mutations, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|job| (job.mutation, job.reply)).unzip();
        if let Err(error) = self.room.headroom().regain() {
            tracing::warn!(%error, "the headroom of the index cannot be taken back");
        }
        // An I/O error would be the last thing redb does: a full disk is told before it is met.
        let wanted = PAGES_BYTES * mutations.len() as u64 + 2 * bytes;
        let outcomes = match self.room.check_disk(bytes).and_then(|()| self.room.free_bytes()) {
            Ok(free) if free >= wanted => self.outcomes(&mutations, &Ok(())),
            Ok(_) | Err(StoreError::Full { .. }) => self.tight(&mutations),
            Err(failed) => vec![Err(failed); mutations.len()],
        };
        // Whoever left meanwhile does not want to know.
        replies.into_iter().zip(outcomes).for_each(|(reply, outcome)| drop(reply.send(outcome)));
    }

    /// The outcome of each mutation on a full disk, in transactions as large as its last room allows.
    fn tight(&mut self, mutations: &[Mutation]) -> Vec<Result<Swap, StoreError>> {
        let full = StoreError::Full { reason: Reason::DiskFull };
        let mut outcomes = Vec::with_capacity(mutations.len());
        while let Some(rest) = mutations.get(outcomes.len()..).filter(|rest| !rest.is_empty()) {
            let mut last = self.room.free_bytes().unwrap_or(0).saturating_add(self.room.headroom().held());
            let fitting = rest.iter().take_while(|mutation| {
                let left = last.checked_sub(TIGHT_PAGES_BYTES + 2 * mutation.bytes());
                last = left.unwrap_or(0);
                left.is_some()
            });
            match fitting.count() {
                0 => outcomes.push(Err(full.clone())),
                count => outcomes.extend(self.outcomes(&rest[..count], &Err(full.clone()))),
            }
        }
        outcomes
    }

    /// The outcome of each mutation, in one transaction.
    fn outcomes(&mut self, mutations: &[Mutation], disk: &Result<(), StoreError>) -> Vec<Result<Swap, StoreError>> {
        let poisoned = self.shared.poisoned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(cause) = poisoned {
            return vec![Err(StoreError::Failed(Arc::new(Poisoned(cause)))); mutations.len()];
        }
        let mut committing = false;
        let transacted = catch_unwind(AssertUnwindSafe(|| self.transact(mutations, disk, &mut committing)));
        let failure = match transacted {
            Ok(Ok(outcomes)) => return outcomes,
            Ok(Err(failure)) => failure,
            Err(_) if committing => Failure::in_doubt(Arc::new(Panicked)),
            Err(_) => Failure { answer: StoreError::Failed(Arc::new(Panicked)), fatal: Some(Arc::new(Panicked)) },
        };
        if let Some(cause) = failure.fatal {
            tracing::error!(error = %cause, "the index failed: writes are off until the next start");
            *self.shared.poisoned.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
        }
        vec![Err(failure.answer); mutations.len()]
    }

    /// One transaction; gives the outcome of each mutation. Sets `committing` where it may take effect.
    fn transact(
        &mut self,
        mutations: &[Mutation],
        disk: &Result<(), StoreError>,
        committing: &mut bool,
    ) -> Result<Vec<Result<Swap, StoreError>>, Failure> {
        let write = begin(&self.db)?;
        let count = mutations.len();
        let mut counters = self.counters;
        let given_up = self.room.headroom().times_given_up();
        let mut outcomes = Vec::with_capacity(count);
        let mut changes = Changes::default();
        let mut stored = Stored::Left;
        {
            let mut batch = Batch {
                manifests: write.open_table(MANIFESTS)?,
                changes: write.open_table(CHANGES)?,
                purges: write.open_table(PURGES)?,
                counters: &mut counters,
                bytes_before: self.counters.bytes,
                room: &self.room,
                shared: &self.shared,
                disk,
                spaces: &mut changes,
                refill_to: self.held_max / REFILL.1 * REFILL.0,
            };
            for mutation in mutations {
                outcomes.push(batch.apply(mutation)?);
            }
            let mut meta = write.open_table(META)?;
            counters.store(&mut meta)?;
            if let Some(spaces) = &self.spaces {
                stored = spaces.store(&mut meta, &changes, counters.changed, disk.is_err())?;
            }
        }
        if !outcomes.iter().any(|outcome| matches!(outcome, Ok(Swap::Done))) {
            // Nothing to make durable: no fsync for a lost race.
            write.abort()?;
            return Ok(outcomes);
        }
        *committing = true;
        write.commit().map_err(|error| Failure::in_doubt(Arc::new(error)))?;
        self.held_max = if self.room.headroom().times_given_up() == given_up {
            self.held_max.max(counters.bytes)
        } else {
            self.counters.bytes
        };
        if let Some(spaces) = &mut self.spaces {
            spaces.committed(&changes, stored);
        }
        if let Some(shown) = &mut *self.shared.spaces.lock().unwrap_or_else(PoisonError::into_inner) {
            shown.apply(&changes);
        }
        self.counters = counters;
        self.room.set_index(counters.bytes);
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.commits += 1;
        stats.mutations += count as u64;
        stats.commit_sizes[[1, 4, 16, 64].iter().position(|size| count <= *size).unwrap_or(4)] += 1;
        counters.show(&mut stats);
        Ok(outcomes)
    }
}

/// One transaction being filled.
struct Batch<'a, 't> {
    manifests: Table<'t, &'static [u8], &'static [u8]>,
    changes: Table<'t, u64, &'static [u8]>,
    purges: Table<'t, &'static [u8], &'static [u8]>,
    counters: &'a mut Counters,
    bytes_before: u64,
    room: &'a Room,
    shared: &'a Shared,
    disk: &'a Result<(), StoreError>,
    spaces: &'a mut Changes,
    /// Bytes of entries up to which the disk is not asked for more.
    refill_to: u64,
}

/// An entry as the counters see it.
struct Old {
    /// `None`: damaged.
    manifest: Option<Manifest>,
    bytes: u64,
}

impl Batch<'_, '_> {
    fn apply(&mut self, mutation: &Mutation) -> Result<Result<Swap, StoreError>, redb::Error> {
        match mutation {
            Mutation::Put { expected, manifest } => self.put(*expected, manifest),
            Mutation::Delete { path, expected } => self.delete(path, *expected),
            Mutation::Touch { path, expected, expires_ms } => self.touch(path, *expected, *expires_ms),
            Mutation::PutPurge(record) => self.put_purge(record),
            Mutation::RetirePurge(record) => {
                let scope = write_scope(&record.scope);
                match self.purge_version(&scope)? {
                    Some(Ok(version)) if version == record.version => {}
                    Some(Err(damaged)) => return Ok(Err(damaged)),
                    Some(Ok(_)) | None => return Ok(Ok(Swap::Conflict(None))),
                }
                self.purges.remove(&scope[..])?;
                Ok(Ok(Swap::Done))
            }
        }
    }

    fn old(&self, path: &[u8]) -> Result<Option<Old>, redb::Error> {
        Ok(self.manifests.get(path)?.map(|value| {
            let bytes = (path.len() + value.value().len()) as u64;
            Old { manifest: decode(self.shared, path, value.value()).ok(), bytes }
        }))
    }

    /// A damaged entry counts as none: a new one may replace it.
    fn put(&mut self, expected: Option<Version>, manifest: &Manifest) -> Result<Result<Swap, StoreError>, redb::Error> {
        let old = self.old(&manifest.path)?;
        let current = old.as_ref().and_then(|old| old.manifest.as_ref()).map(|manifest| manifest.version);
        if current != expected {
            return Ok(Ok(Swap::Conflict(current)));
        }
        let value = manifest_format::encode(manifest);
        if manifest.body != Body::Tombstone {
            let more =
                ((manifest.path.len() + value.len()) as u64).saturating_sub(old.as_ref().map_or(0, |old| old.bytes));
            let grown = (self.counters.bytes + more).saturating_sub(self.bytes_before);
            let is_refill = self.counters.bytes + more <= self.refill_to;
            let disk = if is_refill { Ok(()) } else { self.disk.clone() };
            if let Err(full) = disk.and_then(|()| self.room.check_index(grown)) {
                return Ok(Err(full));
            }
        }
        self.manifests.insert(&manifest.path[..], &value[..])?;
        self.recount(&manifest.path, old, Some((manifest, value.len())));
        self.note(&manifest.path, manifest.version, manifest.body != Body::Tombstone)?;
        Ok(Ok(Swap::Done))
    }

    fn delete(&mut self, path: &[u8], expected: Version) -> Result<Result<Swap, StoreError>, redb::Error> {
        let old = self.old(path)?;
        let current = old.as_ref().and_then(|old| old.manifest.as_ref()).map(|manifest| manifest.version);
        if current != Some(expected) {
            return Ok(Ok(Swap::Conflict(current)));
        }
        self.manifests.remove(path)?;
        self.recount(path, old, None);
        self.note(path, expected, false)?;
        Ok(Ok(Swap::Done))
    }

    fn touch(
        &mut self,
        path: &[u8],
        expected: Version,
        expires_ms: Option<u64>,
    ) -> Result<Result<Swap, StoreError>, redb::Error> {
        let Some(mut manifest) = self.old(path)?.and_then(|old| old.manifest) else {
            return Ok(Ok(Swap::Conflict(None)));
        };
        if manifest.version != expected {
            return Ok(Ok(Swap::Conflict(Some(manifest.version))));
        }
        manifest.expires_ms = expires_ms;
        // Of the same length: the counters stay.
        self.manifests.insert(path, &manifest_format::encode(&manifest)[..])?;
        self.note(path, expected, manifest.body != Body::Tombstone)?;
        Ok(Ok(Swap::Done))
    }

    fn purge_version(&self, scope: &[u8]) -> Result<Option<Result<Version, StoreError>>, redb::Error> {
        Ok(self.purges.get(scope)?.map(|row| purge_version(scope, row.value())))
    }

    fn put_purge(&mut self, record: &PurgeRecord) -> Result<Result<Swap, StoreError>, redb::Error> {
        let scope = write_scope(&record.scope);
        let version = match self.purge_version(&scope)? {
            Some(Ok(old)) => old.max(record.version),
            Some(Err(damaged)) => return Ok(Err(damaged)),
            None if self.purges.len()? >= PURGE_RECORDS_MAX as u64 => return Ok(Ok(Swap::Conflict(None))),
            None => record.version,
        };
        self.purges.insert(&scope[..], &write_purge(&scope, version)[..])?;
        self.counters.newest = self.counters.newest.max(record.version.0);
        Ok(Ok(Swap::Done))
    }

    fn recount(&mut self, path: &[u8], old: Option<Old>, new: Option<(&Manifest, usize)>) {
        let counters = &mut *self.counters;
        let inline = |manifest: &Manifest| match &manifest.body {
            Body::Inline(bytes) => bytes.len() as u64,
            Body::Blob(_) | Body::Tombstone => 0,
        };
        if let Some(old) = old {
            self.spaces.take(path, old.manifest.as_ref());
            counters.bytes = counters.bytes.saturating_sub(old.bytes);
            // Of a damaged entry it is not known what it was: taken for an object, as most are.
            let tombstone = old.manifest.as_ref().is_some_and(|manifest| manifest.body == Body::Tombstone);
            let count = if tombstone { &mut counters.tombstones } else { &mut counters.objects };
            *count = count.saturating_sub(1);
            counters.bytes_inline = counters.bytes_inline.saturating_sub(old.manifest.as_ref().map_or(0, inline));
        }
        if let Some((manifest, value_bytes)) = new {
            self.spaces.put(manifest);
            counters.bytes += (manifest.path.len() + value_bytes) as u64;
            counters.bytes_inline += inline(manifest);
            *(if manifest.body == Body::Tombstone { &mut counters.tombstones } else { &mut counters.objects }) += 1;
            counters.newest = counters.newest.max(manifest.version.0);
        }
    }

    fn note(&mut self, path: &[u8], version: Version, live: bool) -> Result<(), redb::Error> {
        self.counters.changed += 1;
        self.changes.insert(self.counters.changed, &write_change(self.counters.changed, version, live, path)[..])?;
        if let Some(forgotten) = self.counters.changed.checked_sub(CHANGES_MAX) {
            self.changes.remove(forgotten)?;
        }
        Ok(())
    }
}
