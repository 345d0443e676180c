//! The judge of histories: what reads may return, given what was written, removed and acknowledged when.
//!
//! Owns [`History`], a record of calls and outcomes of some clients on some keys, and [`History::check`], which finds
//! an outcome that no order of the calls explains in which each takes effect at one moment between its begin and its
//! end. A call without an end, or whose outcome is unknown, may take effect at any moment after its begin, or never;
//! but not after a restart ([`History::restart`]), which drops everything that was under way.
//!
//! Because every committed write has a version, and versions order the writes of a key, this needs no search. What is
//! held against each outcome:
//!
//! - *One write.* A version stands for one value and a value for one version; a value that was never written, or whose
//!   write failed, is never seen.
//! - *No going back* (INV-2, INV-3). What is seen is not older than anything acknowledged or seen before the look
//!   began, and was not removed before. Restarts are no excuse, whatever the kind of key.
//! - *Nothing is lost.* A durable key is missing only if somebody may have removed it, or its time was over.
//! - *One winner.* Writes that expect a version leave none between; of writes that expect nothing, one succeeds.
//! - *Time to live.* Nothing is seen past its end. Which end is in force is known between two changes of it; of
//!   changes that overlap the look, any may be. A cache may forget a change of the end, never of the value, when it is
//!   restarted: the copy on flash has the end it was written with.
//!
//! Knows nothing of the system under test but numbers: keys, versions, values that are never written twice, and wall
//! time, which must not go back. Checks safety only: a node that always misses passes as a [`Kind::Cache`]; liveness is
//! for whoever drives the history.

use std::{collections::BTreeMap, fmt::Write as _};

/// Calls shown of the history of a key that is wrong: the last ones before the wrong outcome was told.
const SHOWN_MAX: usize = 80;

/// An end that never comes.
const NEVER: u64 = u64::MAX;

/// What a key promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What was acknowledged stays until it is removed.
    Durable,
    /// A miss is always legal.
    Cache,
}

/// What a write expects of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expects {
    /// Nothing.
    Anything,
    /// A live object.
    Exists,
    /// No live object.
    Absent,
    /// This version.
    Version(u64),
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Write `value`.
    Write {
        /// Never written by another call.
        value: u64,
        /// Condition.
        expects: Expects,
    },
    /// Delete or purge.
    Remove,
    /// Read.
    Read,
    /// Change the time to live of this version.
    Update {
        /// The version.
        version: u64,
    },
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The write is committed.
    Written {
        /// Its version.
        version: u64,
        /// The live version it replaced; `None` says nothing.
        replaced: Option<u64>,
    },
    /// The key was removed, or was not there.
    Removed {
        /// The live version that was removed.
        removed: Option<u64>,
        /// The version of the removal, if there is one.
        tombstone: Option<u64>,
    },
    /// The read found an object.
    Found {
        /// Its version.
        version: u64,
        /// Its value.
        value: u64,
    },
    /// The read found none.
    Missing,
    /// The call's condition does not hold, given this live version.
    Conflict {
        /// What is there.
        current: Option<u64>,
    },
    /// The time to live was changed, or the version was not there.
    Updated {
        /// It was changed.
        done: bool,
    },
    /// It failed and certainly changed nothing.
    Failed,
    /// It may take effect yet.
    Unknown,
}

/// A call on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallId(usize);

/// A moment of the history, and of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    at: u64,
    wall_ms: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    key: u64,
    call: Call,
    begun: Moment,
    ended: Option<(Moment, Outcome)>,
    /// The moment from which a call without certain outcome can take effect no more.
    settled: u64,
    /// Wall time of the end that a write or update sets, or that a read was told; [`NEVER`].
    expires_ms: Option<u64>,
}

impl Entry {
    /// The moment from which it is certain to be over.
    fn over(&self) -> u64 {
        match self.ended {
            Some((_, Outcome::Unknown)) | None => self.settled,
            Some((at, _)) => at.at,
        }
    }

    fn outcome(&self) -> Option<Outcome> {
        self.ended.map(|(_, outcome)| outcome)
    }
}

/// What happened, in the order it happened.
#[derive(Clone, Debug)]
pub(crate) struct History {
    kind: Kind,
    now: Moment,
    entries: Vec<Entry>,
    restarts: Vec<u64>,
}

impl History {
    /// Nothing yet, of keys that promise `kind`.
    #[must_use]
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, now: Moment { at: 0, wall_ms: 0 }, entries: Vec::new(), restarts: Vec::new() }
    }

    fn moment(&mut self) -> Moment {
        self.now.at += 1;
        self.now
    }

    /// It is this late, in wall time.
    pub(crate) fn set_time(&mut self, wall_ms: u64) {
        self.now.wall_ms = self.now.wall_ms.max(wall_ms);
    }

    /// A client calls.
    pub(crate) fn begin(&mut self, key: u64, call: Call) -> CallId {
        let begun = self.moment();
        self.entries.push(Entry { key, call, begun, ended: None, settled: u64::MAX, expires_ms: None });
        CallId(self.entries.len() - 1)
    }

    /// When the object ends that the call writes, updates or was told of; `None`: never. A write that says nothing
    /// writes for ever.
    pub(crate) fn expires(&mut self, call: CallId, expires_ms: Option<u64>) {
        self.entries[call.0].expires_ms = Some(expires_ms.unwrap_or(NEVER));
    }

    /// A client is answered.
    pub(crate) fn end(&mut self, call: CallId, outcome: Outcome) {
        let at = self.moment();
        self.entries[call.0].ended = Some((at, outcome));
    }

    /// The system under test is started anew: nothing that was under way takes effect from now on.
    pub(crate) fn restart(&mut self) {
        let at = self.moment().at;
        self.restarts.push(at);
        for entry in &mut self.entries {
            entry.settled = entry.settled.min(at);
        }
    }

    /// Calls so far.
    #[must_use]
    pub(crate) fn calls(&self) -> usize {
        self.entries.len()
    }

    /// Calls with the outcome that `is` says.
    pub(crate) fn count(&self, is: impl Fn(Outcome) -> bool) -> usize {
        self.entries.iter().filter_map(Entry::outcome).filter(|outcome| is(*outcome)).count()
    }

    /// Looks for an outcome that nothing explains.
    ///
    /// # Errors
    /// What is wrong, and the last calls of that key.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut keys: BTreeMap<u64, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            keys.entry(entry.key).or_default().push(entry);
        }
        for (key, entries) in keys {
            OfKey::new(self.kind, &entries, &self.restarts)
                .and_then(|of_key| of_key.check())
                .map_err(|wrong| format!("key {key}: {wrong}\n{}", self.of_key(key)))?;
        }
        Ok(())
    }

    /// The last calls on a key, one a line.
    #[must_use]
    pub(crate) fn of_key(&self, key: u64) -> String {
        let entries: Vec<_> = self.entries.iter().filter(|entry| entry.key == key).enumerate().collect();
        let mut text = format!("  restarts at {:?}\n", self.restarts);
        for (i, Entry { call, begun, ended, expires_ms, .. }) in entries.iter().rev().take(SHOWN_MAX).rev() {
            let _ = write!(text, "  #{i} [{}", begun.at);
            let _ = match ended {
                Some((at, outcome)) => {
                    write!(text, ", {}] {}..{} ms {call:?} -> {outcome:?}", at.at, begun.wall_ms, at.wall_ms)
                }
                None => write!(text, ", ..] {} ms {call:?}", begun.wall_ms),
            };
            let _ = match expires_ms {
                None | Some(NEVER) => writeln!(text),
                Some(at) => writeln!(text, " until {at} ms"),
            };
        }
        text
    }
}

/// A committed write, as far as the history shows it.
struct Commit {
    begun: u64,
    /// From when it was there for certain: acknowledged or seen.
    known: u64,
    /// When it was acknowledged.
    acknowledged: u64,
    /// When it was to end as it was written.
    expires_ms: u64,
}

/// A look at the key: `version` was live, or nothing was, at some moment between.
struct Look {
    entry: usize,
    begun: Moment,
    ended: Moment,
    version: Option<u64>,
    /// The look was part of the commit of this version: everything older counts as being there before.
    committed: Option<u64>,
}

/// One end of a version: as it was written, or changed later.
struct Term {
    begun: u64,
    over: u64,
    acknowledged: Option<u64>,
    expires_ms: u64,
}

struct OfKey<'a> {
    kind: Kind,
    entries: &'a [&'a Entry],
    restarts: &'a [u64],
    commits: BTreeMap<u64, Commit>,
    looks: Vec<Look>,
}

impl<'a> OfKey<'a> {
    fn new(kind: Kind, entries: &'a [&'a Entry], restarts: &'a [u64]) -> Result<Self, String> {
        let mut this = Self { kind, entries, restarts, commits: BTreeMap::new(), looks: Vec::new() };
        let mut values = BTreeMap::new();
        for (i, entry) in entries.iter().enumerate() {
            if let Call::Write { value, .. } = entry.call
                && values.insert(value, i).is_some()
            {
                return Err(format!("value {value} is written twice: the history is of no use"));
            }
            if let Some((Moment { at, .. }, Outcome::Written { version, .. })) = entry.ended {
                let commit = Commit { known: at, acknowledged: at, ..Commit::of(entry) };
                if this.commits.insert(version, commit).is_some() {
                    return Err(format!("#{i}: version {version} was given before"));
                }
            }
        }
        let mut seen = BTreeMap::new();
        for (i, entry) in entries.iter().enumerate() {
            let Some((ended, outcome)) = entry.ended else { continue };
            if let Outcome::Found { version, value } = outcome {
                this.bind(i, ended.at, version, value, &values, &mut seen)?;
            }
            this.look_of(i, entry, ended, outcome);
        }
        Ok(this)
    }

    /// A read found `value` under `version`: somebody must have written it so.
    fn bind(
        &mut self,
        read: usize,
        at: u64,
        version: u64,
        value: u64,
        values: &BTreeMap<u64, usize>,
        seen: &mut BTreeMap<u64, u64>,
    ) -> Result<(), String> {
        let Some(write) = values.get(&value) else { return Err(format!("#{read} found {value}, never written")) };
        let entry = self.entries[*write];
        if entry.begun.at > at {
            return Err(format!("#{read} found what #{write} wrote only later"));
        }
        match entry.outcome() {
            Some(Outcome::Written { version: theirs, .. }) if theirs != version => {
                return Err(format!("#{read} found {value} under {version}, but #{write} wrote it under {theirs}"));
            }
            Some(Outcome::Failed | Outcome::Conflict { .. }) => {
                return Err(format!("#{read} found what #{write} failed to write"));
            }
            _ => {}
        }
        if *seen.entry(version).or_insert(value) != value {
            return Err(format!("#{read} found another value under {version} than an earlier read"));
        }
        let commit = self.commits.entry(version).or_insert_with(|| Commit::of(entry));
        if commit.begun != entry.begun.at {
            return Err(format!("#{read} found {value} under {version}, the version of another write"));
        }
        commit.known = commit.known.min(at);
        Ok(())
    }

    fn look_of(&mut self, entry: usize, of: &Entry, ended: Moment, outcome: Outcome) {
        let durable = self.kind == Kind::Durable;
        let (mut version, mut committed) = (None, None);
        match (outcome, of.call) {
            (Outcome::Found { version: found, .. }, _)
            | (Outcome::Conflict { current: Some(found) }, _)
            | (Outcome::Removed { removed: Some(found), .. }, _)
            | (Outcome::Updated { done: true }, Call::Update { version: found })
            | (Outcome::Written { .. }, Call::Write { expects: Expects::Version(found), .. }) => version = Some(found),
            // Absence says nothing of a cache.
            (Outcome::Missing | Outcome::Conflict { current: None } | Outcome::Removed { .. }, _) if durable => {}
            (Outcome::Written { version, .. }, Call::Write { expects: Expects::Absent, .. }) if durable => {
                committed = Some(version);
            }
            _ => return,
        }
        self.looks.push(Look { entry, begun: of.begun, ended, version, committed });
    }

    fn check(&self) -> Result<(), String> {
        self.check_versions()?;
        self.check_steps()?;
        self.check_conflicts()?;
        for look in &self.looks {
            match look.version {
                Some(version) => self.check_found(look, version)?,
                None => self.check_absent(look)?,
            }
        }
        Ok(())
    }

    /// What was acknowledged before a commit began is below it.
    fn check_versions(&self) -> Result<(), String> {
        for (version, commit) in &self.commits {
            let later = self.commits.range(version + 1..).find(|(_, later)| later.known < commit.begun);
            if let Some((later, _)) = later {
                return Err(format!("{version} was begun when {later} was there already"));
            }
        }
        Ok(())
    }

    /// A commit that names the version before it leaves none between them.
    fn check_steps(&self) -> Result<(), String> {
        for (i, entry) in self.entries.iter().enumerate() {
            let Some(Outcome::Written { version, replaced }) = entry.outcome() else { continue };
            let durable = self.kind == Kind::Durable;
            let expected = match entry.call {
                Call::Write { expects: Expects::Version(expected), .. } => Some(expected),
                Call::Write { expects: Expects::Exists, .. } if durable && replaced.is_none() => {
                    return Err(format!("#{i} replaced nothing, and had to"));
                }
                _ => replaced.filter(|_| durable),
            };
            let Some(before) = expected else { continue };
            if before >= version {
                return Err(format!("#{i} replaced {before} by {version}"));
            }
            let tombstones = self.entries.iter().filter_map(|entry| match entry.outcome() {
                Some(Outcome::Removed { tombstone, .. }) => tombstone,
                _ => None,
            });
            let between = self.commits.range(before + 1..version).map(|(version, _)| *version);
            if let Some(between) = between.chain(tombstones).find(|v| (before + 1..version).contains(v)) {
                return Err(format!("#{i} replaced {before} by {version}, but {between} lies between"));
            }
        }
        Ok(())
    }

    /// A write is refused for its condition only if what is there breaks it.
    fn check_conflicts(&self) -> Result<(), String> {
        for (i, entry) in self.entries.iter().enumerate() {
            let (Call::Write { expects, .. }, Some(Outcome::Conflict { current })) = (entry.call, entry.outcome())
            else {
                continue;
            };
            let holds = match expects {
                Expects::Anything => true,
                Expects::Exists => current.is_some(),
                Expects::Absent => current.is_none(),
                Expects::Version(version) => current == Some(version),
            };
            if holds {
                return Err(format!("#{i} expects {expects:?}, and was refused for {current:?}"));
            }
        }
        Ok(())
    }

    fn check_found(&self, look: &Look, version: u64) -> Result<(), String> {
        let i = look.entry;
        let of = self.commits.get(&version);
        for (newer, commit) in self.commits.range(version + 1..) {
            if commit.acknowledged < look.begun.at {
                return Err(format!("#{i} saw {version} after {newer} was acknowledged"));
            }
        }
        for earlier in self.looks.iter().filter(|earlier| earlier.ended.at < look.begun.at) {
            match earlier.version {
                Some(newer) if newer > version => {
                    return Err(format!("#{i} saw {version} after #{} saw {newer}", earlier.entry));
                }
                // A change of the end may have crossed the end itself.
                None if of.is_some_and(|commit| commit.known < earlier.begun.at)
                    && self.ends(version, earlier).iter().all(|end| *end > earlier.ended.wall_ms) =>
                {
                    return Err(format!("#{i} saw {version} again, which #{} saw gone", earlier.entry));
                }
                _ => {}
            }
        }
        for (j, entry) in self.entries.iter().enumerate() {
            let Some((ended, Outcome::Removed { removed, tombstone })) = entry.ended else { continue };
            // What is removed by a call may be seen while it runs.
            let gone = tombstone.map_or(of.is_some_and(|commit| commit.known < entry.begun.at), |t| version < t)
                || removed.is_some_and(|removed| version <= removed);
            if ended.at < look.begun.at && gone {
                return Err(format!("#{i} saw {version} after #{j} had removed it"));
            }
        }
        self.check_end(look, version)
    }

    /// What was seen was within its time, and the time told is its.
    fn check_end(&self, look: &Look, version: u64) -> Result<(), String> {
        let ends = self.ends(version, look);
        if !ends.is_empty() && ends.iter().all(|end| *end <= look.begun.wall_ms) {
            return Err(format!("#{} saw {version}, which had ended at {:?} ms", look.entry, ends.iter().max()));
        }
        let entry = self.entries[look.entry];
        match entry.expires_ms.filter(|_| entry.call == Call::Read) {
            Some(told) if !ends.is_empty() && !ends.contains(&told) => {
                Err(format!("#{} was told that {version} ends at {told} ms, and it is one of {ends:?}", look.entry))
            }
            _ => Ok(()),
        }
    }

    /// Nothing was live at some moment of `look`: whatever was there before must have been removed by somebody, or
    /// have come to its end.
    fn check_absent(&self, look: &Look) -> Result<(), String> {
        let before = |(version, commit): &(&u64, &Commit)| match look.committed {
            Some(committed) => **version < committed,
            None => commit.known < look.begun.at,
        };
        for (version, commit) in self.commits.iter().filter(before) {
            let removed = self.entries.iter().any(|entry| {
                let removes = match (entry.call, entry.outcome()) {
                    (Call::Remove, Some(Outcome::Removed { removed, .. })) => removed.is_some_and(|r| r >= *version),
                    (Call::Remove, Some(Outcome::Unknown) | None) => true,
                    _ => false,
                };
                removes && entry.begun.at < look.ended.at && entry.over() > commit.begun
            });
            let ended = || self.ends(*version, look).iter().any(|end| *end <= look.ended.wall_ms);
            if !removed && !ended() {
                return Err(format!("#{} saw nothing, but {version} was there and nobody removed it", look.entry));
            }
        }
        Ok(())
    }

    /// The ends of `version` that may be in force during `look`; none if nobody knows who wrote it.
    fn ends(&self, version: u64, look: &Look) -> Vec<u64> {
        let Some(commit) = self.commits.get(&version) else { return Vec::new() };
        let written = Term {
            begun: commit.begun,
            over: commit.begun,
            acknowledged: Some(commit.begun),
            expires_ms: commit.expires_ms,
        };
        let changed = self.entries.iter().filter_map(|entry| {
            let acknowledged = match (entry.call, entry.ended) {
                (Call::Update { version: of }, _) if of != version => return None,
                (Call::Update { .. }, Some((ended, Outcome::Updated { done: true }))) => Some(ended.at),
                (Call::Update { .. }, Some((_, Outcome::Unknown)) | None) => None,
                _ => return None,
            };
            let expires_ms = entry.expires_ms.unwrap_or(NEVER);
            Some(Term { begun: entry.begun.at, over: entry.over(), acknowledged, expires_ms })
        });
        let terms: Vec<Term> = std::iter::once(written).chain(changed).collect();
        let forgotten =
            |since: u64| self.kind == Kind::Cache && self.restarts.iter().any(|at| (since..look.begun.at).contains(at));
        let possible = |term: &&Term| {
            let replaced = terms.iter().any(|later| {
                let before = later.acknowledged.filter(|at| *at < look.begun.at && later.begun > term.over);
                before.is_some_and(|at| !forgotten(at))
            });
            term.begun < look.ended.at && !replaced
        };
        terms.iter().filter(possible).map(|term| term.expires_ms).collect()
    }
}

impl Commit {
    /// A write that nobody has seen yet.
    fn of(entry: &Entry) -> Self {
        let expires_ms = entry.expires_ms.unwrap_or(NEVER);
        Self { begun: entry.begun.at, known: u64::MAX, acknowledged: u64::MAX, expires_ms }
    }
}

#[cfg(test)]
#[path = "oracle/tests.rs"]
mod tests;
