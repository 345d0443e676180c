//! The judge of histories: what reads may return, given what was written, removed and acknowledged when.
//!
//! Owns [`History`], a record of calls and outcomes of some clients on some keys, and [`History::check`], which finds
//! an outcome that no order of the calls explains in which each takes effect at one moment between its begin and its
//! end. A call without an end, or whose outcome is unknown, may take effect at any moment after its begin, or never.
//!
//! Because every committed write has a version, and versions order the writes of a key, this needs no search. Knows
//! nothing of the system under test but numbers: keys, versions, and values that are never written twice. Checks
//! safety only: a node that always misses passes as a [`Kind::Cache`]; liveness is for whoever drives the history.

use std::{collections::BTreeMap, fmt::Write as _};

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
    /// The write's condition does not hold, given this live version.
    Conflict {
        /// What is there.
        current: Option<u64>,
    },
    /// It failed and certainly changed nothing.
    Failed,
    /// It may take effect yet.
    Unknown,
}

/// A call on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallId(usize);

#[derive(Clone, Debug)]
struct Entry {
    key: u64,
    call: Call,
    begun: u64,
    /// Moment and outcome.
    ended: Option<(u64, Outcome)>,
}

impl Entry {
    /// The moment from which it is certain to be over; never, if its outcome is not known.
    fn over(&self) -> u64 {
        match self.ended {
            Some((_, Outcome::Unknown)) | None => u64::MAX,
            Some((at, _)) => at,
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
    moments: u64,
    entries: Vec<Entry>,
}

impl History {
    /// Nothing yet, of keys that promise `kind`.
    #[must_use]
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, moments: 0, entries: Vec::new() }
    }

    fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    /// A client calls.
    pub(crate) fn begin(&mut self, key: u64, call: Call) -> CallId {
        let begun = self.moment();
        self.entries.push(Entry { key, call, begun, ended: None });
        CallId(self.entries.len() - 1)
    }

    /// A client is answered.
    pub(crate) fn end(&mut self, call: CallId, outcome: Outcome) {
        let at = self.moment();
        self.entries[call.0].ended = Some((at, outcome));
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
    /// What is wrong, and the history of that key.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut keys: BTreeMap<u64, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            keys.entry(entry.key).or_default().push(entry);
        }
        for (key, entries) in keys {
            OfKey::new(self.kind, &entries).and_then(|of_key| of_key.check()).map_err(|wrong| {
                let mut text = format!("key {key}: {wrong}\n");
                for (i, Entry { call, begun, ended, .. }) in entries.iter().enumerate() {
                    let _ = match ended {
                        Some((at, outcome)) => writeln!(text, "  #{i} [{begun}, {at}] {call:?} -> {outcome:?}"),
                        None => writeln!(text, "  #{i} [{begun}, ..] {call:?}"),
                    };
                }
                text
            })?;
        }
        Ok(())
    }
}

/// A committed write, as far as the history shows it.
struct Commit {
    begun: u64,
    /// From when it was there for certain: acknowledged or seen.
    known: u64,
    /// When it was acknowledged.
    acknowledged: u64,
}

/// A look at the key: `version` was live, or nothing was, at some moment between.
struct Look {
    entry: usize,
    begun: u64,
    ended: u64,
    version: Option<u64>,
}

struct OfKey<'a> {
    kind: Kind,
    entries: &'a [&'a Entry],
    commits: BTreeMap<u64, Commit>,
    looks: Vec<Look>,
}

impl<'a> OfKey<'a> {
    fn new(kind: Kind, entries: &'a [&'a Entry]) -> Result<Self, String> {
        let mut this = Self { kind, entries, commits: BTreeMap::new(), looks: Vec::new() };
        let mut values = BTreeMap::new();
        for (i, entry) in entries.iter().enumerate() {
            if let Call::Write { value, .. } = entry.call
                && values.insert(value, i).is_some()
            {
                return Err(format!("value {value} is written twice: the history is of no use"));
            }
            if let Some((at, Outcome::Written { version, .. })) = entry.ended {
                let commit = Commit { begun: entry.begun, known: at, acknowledged: at };
                if this.commits.insert(version, commit).is_some() {
                    return Err(format!("#{i}: version {version} was given before"));
                }
            }
        }
        let mut seen = BTreeMap::new();
        for (i, entry) in entries.iter().enumerate() {
            let Some((at, outcome)) = entry.ended else { continue };
            if let Outcome::Found { version, value } = outcome {
                this.bind(i, at, version, value, &values, &mut seen)?;
            }
            this.look_of(i, entry, at, outcome);
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
        if entry.begun > at {
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
        let commit = self.commits.entry(version).or_insert(Commit {
            begun: entry.begun,
            known: u64::MAX,
            acknowledged: u64::MAX,
        });
        if commit.begun != entry.begun {
            return Err(format!("#{read} found {value} under {version}, the version of another write"));
        }
        commit.known = commit.known.min(at);
        Ok(())
    }

    fn look_of(&mut self, entry: usize, of: &Entry, ended: u64, outcome: Outcome) {
        let durable = self.kind == Kind::Durable;
        let version = match (outcome, of.call) {
            (Outcome::Found { version, .. }, _) => Some(version),
            (Outcome::Conflict { current: Some(version) }, _) => Some(version),
            (Outcome::Removed { removed: Some(version), .. }, _) => Some(version),
            // Absence says nothing of a cache.
            (Outcome::Missing | Outcome::Conflict { current: None } | Outcome::Removed { .. }, _) if durable => None,
            (Outcome::Written { .. }, Call::Write { expects: Expects::Absent, .. }) if durable => None,
            (Outcome::Written { .. }, Call::Write { expects: Expects::Version(version), .. }) => Some(version),
            _ => return,
        };
        self.looks.push(Look { entry, begun: of.begun, ended, version });
    }

    fn check(&self) -> Result<(), String> {
        self.check_versions()?;
        self.check_steps()?;
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
            let expected = match entry.call {
                Call::Write { expects: Expects::Version(expected), .. } => Some(expected),
                _ => replaced.filter(|_| self.kind == Kind::Durable),
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

    fn check_found(&self, look: &Look, version: u64) -> Result<(), String> {
        let i = look.entry;
        let of = self.commits.get(&version);
        for (newer, commit) in self.commits.range(version + 1..) {
            if commit.acknowledged < look.begun {
                return Err(format!("#{i} saw {version} after {newer} was acknowledged"));
            }
        }
        for earlier in self.looks.iter().filter(|earlier| earlier.ended < look.begun) {
            match earlier.version {
                Some(newer) if newer > version => {
                    return Err(format!("#{i} saw {version} after #{} saw {newer}", earlier.entry));
                }
                None if of.is_some_and(|commit| commit.known < earlier.begun) => {
                    return Err(format!("#{i} saw {version} again, which #{} saw gone", earlier.entry));
                }
                _ => {}
            }
        }
        for (j, entry) in self.entries.iter().enumerate() {
            let Some((at, Outcome::Removed { removed, tombstone })) = entry.ended else { continue };
            // What is removed by a call may be seen while it runs.
            let gone = tombstone.map_or(of.is_some_and(|commit| commit.known < entry.begun), |t| version < t)
                || removed.is_some_and(|removed| version <= removed);
            if at < look.begun && gone {
                return Err(format!("#{i} saw {version} after #{j} had removed it"));
            }
        }
        Ok(())
    }

    /// Nothing was live at some moment of `look`: whatever was there before must have been removed by somebody.
    fn check_absent(&self, look: &Look) -> Result<(), String> {
        for (version, commit) in self.commits.iter().filter(|(_, commit)| commit.known < look.begun) {
            let removed = self.entries.iter().any(|entry| {
                let removes = match (entry.call, entry.outcome()) {
                    (Call::Remove, Some(Outcome::Removed { removed, .. })) => removed.is_some_and(|r| r >= *version),
                    (Call::Remove, Some(Outcome::Unknown) | None) => true,
                    _ => false,
                };
                removes && entry.begun < look.ended && entry.over() > commit.begun
            });
            if !removed {
                return Err(format!("#{} saw nothing, but {version} was there and nobody removed it", look.entry));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One call after the other on one key.
    fn history(kind: Kind, calls: &[(Call, Outcome)]) -> History {
        let mut history = History::new(kind);
        for (call, outcome) in calls {
            let id = history.begin(1, *call);
            history.end(id, *outcome);
        }
        history
    }

    const READ: Call = Call::Read;
    const REMOVE: Call = Call::Remove;

    fn write(value: u64) -> Call {
        Call::Write { value, expects: Expects::Anything }
    }

    fn written(version: u64) -> Outcome {
        Outcome::Written { version, replaced: None }
    }

    fn found(version: u64) -> Outcome {
        Outcome::Found { version, value: version }
    }

    fn removed(version: u64) -> Outcome {
        Outcome::Removed { removed: Some(version), tombstone: None }
    }

    #[test]
    fn sound_histories_pass() {
        let calls = [
            (READ, Outcome::Missing),
            (write(1), written(1)),
            (READ, found(1)),
            (write(2), Outcome::Unknown),
            (READ, found(1)),
            (READ, found(2)),
            (write(9), Outcome::Failed),
            (REMOVE, removed(2)),
            (READ, Outcome::Missing),
            (write(5), written(5)),
            (
                Call::Write { value: 6, expects: Expects::Version(5) },
                Outcome::Written { version: 6, replaced: Some(5) },
            ),
            (Call::Write { value: 7, expects: Expects::Version(5) }, Outcome::Conflict { current: Some(6) }),
        ];
        history(Kind::Durable, &calls).check().expect("sound");
        let evicted = [(write(1), written(1)), (READ, Outcome::Missing), (READ, found(1))];
        history(Kind::Cache, &evicted).check().expect("a cache may");
    }

    #[test]
    fn every_kind_of_lie_is_found() {
        type Case<'a> = (&'a str, Kind, &'a [(Call, Outcome)]);
        let cases: [Case<'_>; 11] = [
            (
                "after 2 was acknowledged",
                Kind::Cache,
                &[(write(1), written(1)), (write(2), written(2)), (READ, found(1))],
            ),
            (
                "saw 1 after #3 saw 2",
                Kind::Cache,
                &[
                    (write(1), written(1)),
                    (write(2), Outcome::Unknown),
                    (READ, found(1)),
                    (READ, found(2)),
                    (READ, found(1)),
                ],
            ),
            ("had removed it", Kind::Cache, &[(write(1), written(1)), (REMOVE, removed(1)), (READ, found(1))]),
            (
                "had removed it",
                Kind::Cache,
                &[
                    (write(1), written(1)),
                    (REMOVE, Outcome::Removed { removed: None, tombstone: None }),
                    (READ, found(1)),
                ],
            ),
            ("nobody removed it", Kind::Durable, &[(write(1), written(1)), (READ, Outcome::Missing)]),
            (
                "saw gone",
                Kind::Durable,
                &[(write(1), written(1)), (REMOVE, Outcome::Unknown), (READ, Outcome::Missing), (READ, found(1))],
            ),
            ("failed to write", Kind::Cache, &[(write(1), Outcome::Failed), (READ, found(1))]),
            ("never written", Kind::Cache, &[(READ, found(1))]),
            ("under 7", Kind::Cache, &[(write(1), written(1)), (READ, Outcome::Found { version: 7, value: 1 })]),
            ("was there already", Kind::Cache, &[(write(2), written(2)), (write(1), written(1))]),
            (
                "lies between",
                Kind::Cache,
                &[
                    (write(1), written(1)),
                    (write(2), written(2)),
                    (Call::Write { value: 3, expects: Expects::Version(1) }, written(3)),
                ],
            ),
        ];
        for (wrong, kind, calls) in cases {
            let found = history(kind, calls).check().expect_err(wrong);
            assert!(found.contains(wrong), "{wrong}: {found}");
        }
    }

    #[test]
    fn what_overlaps_may_be_seen_either_way() {
        let mut history = History::new(Kind::Durable);
        let first = history.begin(1, write(1));
        history.end(first, written(1));
        let second = history.begin(1, write(2));
        let early = history.begin(1, READ);
        history.end(second, written(2));
        history.end(early, found(1));
        history.check().expect("the read began before the acknowledgement");
        let late = history.begin(1, READ);
        history.end(late, found(1));
        history.check().expect_err("this one did not");
    }
}
