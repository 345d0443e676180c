//! Sound histories pass, and every kind of lie is found.

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
        (Call::Write { value: 6, expects: Expects::Version(5) }, Outcome::Written { version: 6, replaced: Some(5) }),
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
        ("after 2 was acknowledged", Kind::Cache, &[(write(1), written(1)), (write(2), written(2)), (READ, found(1))]),
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
            &[(write(1), written(1)), (REMOVE, Outcome::Removed { removed: None, tombstone: None }), (READ, found(1))],
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

#[test]
fn a_restart_settles_what_was_under_way() {
    let mut history = history(Kind::Durable, &[(write(1), written(1))]);
    let left = history.begin(1, REMOVE);
    let gone = history.begin(1, READ);
    history.end(gone, Outcome::Missing);
    let mut early = history.clone();
    early.check().expect("the removal may have happened");
    for restarted in [false, true] {
        if restarted {
            early.restart();
        }
        let second = early.begin(1, write(2 + u64::from(restarted)));
        early.end(second, written(2 + u64::from(restarted)));
        let lost = early.begin(1, READ);
        early.end(lost, Outcome::Missing);
        let judged = early.check();
        assert_eq!(judged.is_err(), restarted, "{judged:?}");
    }
    history.end(left, removed(1));
    history.check().expect("and so it was");
}

/// A write at 100 ms that ends at 200 ms, then a read that finds it or nothing between these times.
fn short_lived(kind: Kind, begun_ms: u64, ended_ms: u64, told: Option<u64>, outcome: Outcome) -> Result<(), String> {
    let mut history = History::new(kind);
    history.set_time(100);
    let write = history.begin(1, write(1));
    history.expires(write, Some(200));
    history.end(write, written(1));
    history.set_time(begun_ms);
    let read = history.begin(1, READ);
    if told.is_some() {
        history.expires(read, told);
    }
    history.set_time(ended_ms);
    history.end(read, outcome);
    history.check()
}

#[test]
fn what_has_ended_is_not_seen_and_not_missed() {
    let wrong = |judged: Result<(), String>, what: &str| {
        let text = judged.expect_err(what);
        assert!(text.contains(what), "{text}");
    };
    short_lived(Kind::Durable, 150, 199, Some(200), found(1)).expect("within its time");
    short_lived(Kind::Durable, 199, 400, Some(200), found(1)).expect("the look began within its time");
    wrong(short_lived(Kind::Cache, 200, 201, None, found(1)), "which had ended");
    wrong(short_lived(Kind::Durable, 150, 199, None, Outcome::Missing), "nobody removed it");
    short_lived(Kind::Durable, 150, 200, None, Outcome::Missing).expect("it ended in mid-look");
    wrong(short_lived(Kind::Durable, 150, 160, Some(300), found(1)), "was told that 1 ends at 300");
}

#[test]
fn a_changed_end_holds_from_its_acknowledgement() {
    // Written at 100 ms to end at 200 ms; changed to `end`, with `outcome`; read at `read_ms`.
    let judged = |kind: Kind, end: u64, outcome: Outcome, restart: bool, read_ms: u64, seen: Outcome| {
        let mut history = History::new(kind);
        history.set_time(100);
        let write = history.begin(1, write(1));
        history.expires(write, Some(200));
        history.end(write, written(1));
        let update = history.begin(1, Call::Update { version: 1 });
        history.expires(update, Some(end));
        history.end(update, outcome);
        if restart {
            history.restart();
        }
        history.set_time(read_ms);
        let read = history.begin(1, READ);
        history.end(read, seen);
        history.check()
    };
    let (done, refused) = (Outcome::Updated { done: true }, Outcome::Updated { done: false });
    let ok = [
        (Kind::Durable, 300, done, false, 250, found(1)),
        (Kind::Durable, 150, done, false, 170, Outcome::Missing),
        (Kind::Durable, 150, Outcome::Unknown, false, 170, Outcome::Missing),
        (Kind::Durable, 300, Outcome::Unknown, true, 250, found(1)),
        (Kind::Durable, 300, refused, false, 250, Outcome::Missing),
        (Kind::Cache, 150, done, true, 170, found(1)),
    ];
    for (kind, end, outcome, restart, at, seen) in ok {
        judged(kind, end, outcome, restart, at, seen).unwrap_or_else(|wrong| panic!("{end} {outcome:?}: {wrong}"));
    }
    let wrong = [
        (Kind::Durable, 300, done, false, 250, Outcome::Missing),
        (Kind::Durable, 150, done, false, 170, found(1)),
        (Kind::Durable, 150, done, true, 170, found(1)),
        (Kind::Cache, 150, done, false, 170, found(1)),
        (Kind::Durable, 300, refused, false, 250, found(1)),
        (Kind::Durable, 300, Outcome::Unknown, false, 350, found(1)),
    ];
    for (kind, end, outcome, restart, at, seen) in wrong {
        judged(kind, end, outcome, restart, at, seen).expect_err("what it sees cannot be");
    }
}

#[test]
fn of_two_that_expect_nothing_one_wins() {
    let absent = |value| Call::Write { value, expects: Expects::Absent };
    let judged = |kind: Kind, removed_between: bool| {
        let mut history = History::new(kind);
        let (one, two) = (history.begin(1, absent(1)), history.begin(1, absent(2)));
        if removed_between {
            let remove = history.begin(1, REMOVE);
            history.end(remove, removed(1));
        }
        history.end(one, written(1));
        history.end(two, written(2));
        history.check()
    };
    judged(Kind::Durable, false).expect_err("both have won");
    judged(Kind::Durable, true).expect("one after the other");
    judged(Kind::Cache, false).expect("the first may have been evicted");
    // And a refusal has a reason.
    let refused = [(write(1), written(1)), (absent(2), Outcome::Conflict { current: None })];
    history(Kind::Durable, &refused).check().expect_err("nothing was in its way");
    let exists = Call::Write { value: 1, expects: Expects::Exists };
    history(Kind::Durable, &[(exists, written(1))]).check().expect_err("there was nothing");
}
