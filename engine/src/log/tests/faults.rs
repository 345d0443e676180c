//! What the device does wrong, and what recovery decides, row by row, on a log of a few objects.

use super::*;
use crate::log::format::{self, Head};

/// A log with objects `k0`.. in several segments, the first `closed_segments` of them sealed, stopped as asked.
fn written(seed: u64, stop: Stop) -> World {
    let mut world = World::new(seed, 16);
    let (log, _) = world.open();
    world.sim.block_on(async {
        for i in 0..60 {
            put(&log, format!("k{i}").as_bytes(), 100 + i, &body_of(i, 3000)).await.expect("put");
        }
        log.flush().await.expect("flushed");
        if stop == Stop::Clean {
            log.close().await.expect("closed");
        }
    });
    match stop {
        Stop::Clean => world.sim.crash(),
        Stop::PowerCut => world.power_cut(),
        _ => world.kill(),
    }
    world
}

async fn held(log: &SimLog) -> Vec<u64> {
    let mut held = Vec::new();
    for i in 0..60 {
        if let Ok(found) = look(log, format!("k{i}").as_bytes()).await {
            assert_eq!(found, (100 + i, brief(i, 3000)));
            held.push(i);
        }
    }
    held
}

fn segment_at(segment: u64) -> u64 {
    format::SEGMENTS_AT + segment * u64::from(SEGMENT)
}

fn garble(world: &World, offset: u64) {
    world.medium.rot(offset, |page, _| page.iter_mut().for_each(|b| *b = b.wrapping_mul(31) ^ 0x5a));
}

#[test]
fn how_the_last_run_ended_is_told_for_every_row() {
    for (stop, expected) in [(Stop::Clean, Stop::Clean), (Stop::Killed, Stop::Killed), (Stop::PowerCut, Stop::PowerCut)]
    {
        let world = written(1, stop);
        let seen = RefCell::new(Vec::new());
        let (log, opened) = world
            .try_open(|record| {
                seen.borrow_mut().push(record.stop);
                Keep::Suspect
            })
            .expect("opens");
        assert_eq!((opened.stop, opened.damaged, opened.objects), (expected, 0, 60));
        assert_eq!(*seen.borrow(), vec![expected; 60]);
        assert_eq!(world.sim.block_on(held(&log)).len(), 60);
    }
    // A kill whose ring is new: what it had noted is lost.
    let world = written(1, Stop::Killed);
    struct NewRing(RingMemory);
    impl supersede::NoteStore for NewRing {
        fn slots(&self) -> usize {
            self.0.slots()
        }
        fn get(&self, slot: usize) -> Option<supersede::Note> {
            self.0.get(slot)
        }
        fn set(&mut self, slot: usize, note: Option<supersede::Note>) {
            self.0.set(slot, note);
        }
        fn is_intact(&self) -> bool {
            false
        }
        fn set_intact(&mut self, _: bool) {}
    }
    let device = Rc::new(world.medium.open(world.sim.rt(), Faults::default()));
    let ring = NewRing(RingMemory::new(4));
    let open = Log::open(device, world.sim.rt(), ring, world.config.clone(), |_| Keep::Trust);
    assert_eq!(world.sim.block_on(open).expect("opens").1.stop, Stop::PowerCut);
    // A state page that cannot be read.
    let world = written(1, Stop::Clean);
    garble(&world, format::STATE_AT);
    assert_eq!(world.open().1.stop, Stop::Damaged);
}

#[test]
fn marks_of_an_unclean_stop_outlive_clean_ones_and_new_records_do_not_bear_them() {
    let mut world = written(2, Stop::PowerCut);
    let stops = |world: &World| {
        let stops = RefCell::new(Vec::new());
        let (log, opened) = world
            .try_open(|record| {
                stops.borrow_mut().push((record.version, record.stop));
                if record.stop < Stop::PowerCut { Keep::Trust } else { Keep::Discard }
            })
            .expect("opens");
        (log, opened, stops.into_inner())
    };
    let (log, opened, _) = stops(&world);
    assert_eq!((opened.objects, opened.discarded), (0, 60));
    assert!(log.needs_tombstone(hash(b"k1")), "discarded is not gone");
    world.sim.block_on(async {
        put(&log, b"new", 1000, &body_of(1, 10)).await.expect("put");
        log.close().await.expect("closed");
    });
    let (log, opened, seen) = stops(&world);
    assert_eq!((opened.stop, opened.objects, opened.discarded), (Stop::Clean, 1, 60));
    assert!(seen.contains(&(1000, Stop::Clean)) && seen.contains(&(101, Stop::PowerCut)));
    world.sim.block_on(put(&log, b"newer", 1001, &body_of(1, 10))).expect("put");
    world.sim.block_on(log.flush()).expect("flushed");
    world.kill();
    let (_, opened, seen) = stops(&world);
    assert_eq!((opened.stop, opened.objects), (Stop::Killed, 2));
    assert!(seen.contains(&(1001, Stop::Killed)) && seen.contains(&(101, Stop::PowerCut)));
    world.power_cut();
    assert_eq!(stops(&world).1.objects, 0);
}

#[test]
fn each_kind_of_segment_is_taken_as_its_row_says() {
    // The segments in use, and objects in each: 20 or 21 to a segment.
    let clean = |segment: u64, page: u64| {
        let world = written(3, Stop::Clean);
        garble(&world, segment_at(segment) + page * 4096);
        let (log, opened) = world.open();
        let count = world.sim.block_on(held(&log)).len();
        (opened.scanned, opened.damaged, opened.objects, count)
    };
    let trailer = u64::from(SEGMENT) / 4096 - 1;
    assert_eq!(clean(0, trailer), (1, 0, 60, 60), "without trailer: scanned, whole");
    assert_eq!(clean(0, trailer - 1), (1, 0, 60, 60), "without footer: the same");
    let (scanned, damaged, objects, count) = clean(0, 5);
    assert_eq!((scanned, damaged, objects), (0, 0, 60), "with footer: every record is known");
    assert!((57..60).contains(&count), "and what was hit is a miss: {count}");
    assert_eq!(clean(1, 0), (1, 1, 60, 60), "a damaged head: scanned, and nothing before is sure to be newest");
    assert_eq!(clean(9, 0), (0, 0, 60, 60), "a damaged head of a segment never used");

    // Footer and a block: something may be hidden, and what lies before is told so.
    let world = written(3, Stop::Clean);
    garble(&world, segment_at(1) + trailer * 4096);
    garble(&world, segment_at(1) + 4096);
    let stops = RefCell::new(Vec::new());
    let (log, opened) = world
        .try_open(|record| {
            stops.borrow_mut().push((record.version, record.stop));
            Keep::Trust
        })
        .expect("opens");
    assert_eq!((opened.scanned, opened.damaged), (1, 1));
    let stops = stops.into_inner();
    assert!(stops.contains(&(100, Stop::Damaged)) && stops.contains(&(159, Stop::Clean)), "{stops:?}");
    assert!(log.needs_tombstone(hash(b"any")), "blind");
    drop(log);
    world.kill();
    let stops = RefCell::new(Vec::new());
    let again = world.try_open(|record| {
        stops.borrow_mut().push((record.version, record.stop));
        Keep::Trust
    });
    assert_eq!(again.expect("opens").1.damaged, 0, "it has a footer now");
    let stops = stops.into_inner();
    assert!(stops.contains(&(100, Stop::Damaged)) && stops.contains(&(159, Stop::Killed)), "{stops:?}");
}

#[test]
fn a_void_head_is_a_free_segment_whatever_else_lies_there() {
    let world = written(4, Stop::Clean);
    let (log, _) = world.open();
    let salt = log.inner.layout.salt;
    world.kill();
    world.medium.rot(segment_at(0), |page, _| Head { segment: 0, epoch: 0, first_block: 0 }.encode(salt, page));
    let (log, opened) = world.open();
    let held = world.sim.block_on(held(&log));
    assert!(opened.damaged == 0 && opened.objects < 45 && held[0] > 15, "{opened:?}");
}

#[test]
fn a_torn_tail_is_no_damage_but_a_hole_before_a_durable_block_is() {
    // The last block of a killed process in pieces.
    let last_block = |world: &World| {
        let header = Header::decode(&world.medium.peek(0, 4096)).expect("a header");
        let layout = format::Layout::of(&header, header.file_bytes).expect("possible");
        let blocks = (0..16_u32).flat_map(|segment| {
            (4096..SEGMENT as usize).step_by(4096).filter_map(move |at| {
                let page = world.medium.peek(layout.segment_at(segment) + at as u64, 4096);
                format::BlockHeader::decode(&layout, segment, at, &page)
            })
        });
        let mut blocks: Vec<_> = blocks.collect();
        blocks.sort_by_key(|block| block.sequence);
        (layout, blocks)
    };
    let world = written(5, Stop::Killed);
    let (layout, blocks) = last_block(&world);
    let last = blocks.last().expect("written");
    assert!(last.used > 8192, "{last:?}");
    let at = layout.segment_at(last.segment) + u64::from(last.offset);
    garble(&world, at + 4096);
    let (log, opened) = world.open();
    assert_eq!((opened.scanned, opened.damaged), (1, 0));
    assert!(opened.objects >= 56, "a hole does not end the scan: {opened:?}");
    world.sim.block_on(put(&log, b"next", 1000, &body_of(1, 10))).expect("put");
    world.sim.block_on(log.flush()).expect("flushed");
    world.kill();
    let (_, opened) = world.open();
    assert_eq!((opened.damaged, opened.scanned), (0, 1), "the tear has a footer now");

    // Two blocks in the open segment, the first durable: a hole in it is rot.
    for (stop, flush_again) in [(Stop::Killed, false), (Stop::PowerCut, true)] {
        let mut world = World::new(6, 16);
        let (log, _) = world.open();
        world.sim.block_on(async {
            put(&log, b"old", 1, &body_of(1, 10)).await.expect("put");
            log.flush().await.expect("flushed");
            put(&log, b"new", 2, &body_of(1, 10)).await.expect("put");
            log.flush().await.expect("flushed");
            if flush_again {
                put(&log, b"newer", 3, &body_of(1, 10)).await.expect("put");
                log.flush().await.expect("flushed");
            }
        });
        if stop == Stop::PowerCut {
            world.power_cut()
        } else {
            world.kill()
        }
        garble(&world, segment_at(0) + 4096);
        let (_, opened) = world.open();
        assert_eq!((opened.stop, opened.damaged), (stop, 1));
    }
}

#[test]
fn headers_that_are_not_ours_are_refused_and_nothing_is_changed() {
    let world = written(7, Stop::Clean);
    let before = world.medium.peek(0, 1 << 16);
    let refused = |config: Config| {
        let world = World { config, medium: world.medium.clone(), ring: world.ring.clone(), sim: Sim::new(1) };
        world.try_open(|_| Keep::Trust).err().expect("refused")
    };
    let config = || world.config.clone();
    let other = refused(Config { shards: 2, ..config() });
    assert!(matches!(other, OpenError::DifferentShards { found: 1, expected: 2, .. }), "{other}");
    let other = refused(Config { shard: 1, ..config() });
    assert!(matches!(other, OpenError::DifferentShards { what: "shard", .. }), "{other}");
    let other = refused(Config { hash_seed: 1, ..config() });
    assert!(matches!(other, OpenError::DifferentShards { what: "hash seed", .. }), "{other}");
    assert_eq!(world.medium.peek(0, 1 << 16), before);
    world.medium.rot(100, |page, i| page[i] ^= 1);
    let damaged = refused(config());
    assert!(matches!(damaged, OpenError::Damaged { .. }) && damaged.to_string().contains("checksum"), "{damaged}");
    world.medium.rot(100, |page, i| page[i] ^= 1);
    world.medium.rot(8, |page, _| {
        page[8] = 2;
        page[12..16].fill(0);
        let crc = crc32fast::hash(page);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    let newer = refused(config());
    assert!(matches!(newer, OpenError::NewerFormat { found: 2, supported: 1, .. }), "{newer}");
    // Formatting anew is the caller's decision, and forgets everything.
    let device = Rc::new(world.medium.open(world.sim.rt(), Faults::default()));
    let format = Log::format(device, world.sim.rt(), world.ring.clone(), config());
    let log = world.sim.block_on(format).expect("formatted");
    assert_eq!(log.stats().objects, 0);
    world.kill();
    let (log, opened) = world.open();
    assert_eq!((opened.objects, opened.is_new, opened.damaged), (0, false, 0));
    assert!(world.sim.block_on(held(&log)).is_empty());
}

#[test]
fn a_clean_mark_is_durably_void_before_the_log_is_open() {
    for seed in 0..20 {
        let mut world = written(seed, Stop::Clean);
        let (log, opened) = world.open();
        assert_eq!(opened.stop, Stop::Clean);
        // Acknowledged by a note in a ring that the power cut takes along: only the mark can tell.
        world.sim.block_on(put(&log, b"k1", 1000, &body_of(1, 10))).expect("put");
        world.power_cut();
        let (_, opened) = world.try_open(|_| Keep::Discard).expect("opens");
        assert_eq!((opened.stop, opened.objects), (Stop::PowerCut, 0), "seed {seed}");
    }
}

#[test]
fn a_failed_write_or_sync_poisons_and_a_failed_read_does_not() {
    for faults in [
        Faults { write_error_one_in: 1, ..Faults::default() },
        Faults { sync_error_one_in: 1, ..Faults::default() },
        Faults { no_space_one_in: 1, ..Faults::default() },
    ] {
        let world = World::new(9, 16);
        let (log, _) = world.open();
        world.sim.block_on(async {
            put(&log, b"a", 1, &body_of(1, 100)).await.expect("put");
            log.flush().await.expect("flushed");
            log.device().set_faults(Faults { read_error_one_in: 1, ..Faults::default() });
            assert!(matches!(log.get(hash(b"a"), b"a", 0).await, Err(LogError::Device(_))));
            log.device().set_faults(Faults::default());
            assert_eq!(look(&log, b"a").await.map(|found| found.0), Ok(1));
            log.device().set_faults(faults);
            put(&log, b"b", 2, &body_of(1, 100)).await.expect("in the buffer");
            assert!(matches!(log.flush().await, Err(LogError::Poisoned { .. })));
            log.device().set_faults(Faults::default());
            assert!(log.poisoned().is_some_and(|reason| reason.contains("simulated flash")) && log.stats().poisoned);
            let before = world.medium.peek(0, 1 << 20);
            assert!(matches!(put(&log, b"c", 3, &body_of(1, 100)).await, Err(LogError::Poisoned { .. })));
            assert!(matches!(log.get(hash(b"a"), b"a", 0).await, Err(LogError::Poisoned { .. })));
            assert!(matches!(log.tombstone(hash(b"a"), b"a", 9).await, Err(LogError::Poisoned { .. })));
            assert!(matches!(log.close().await, Err(LogError::Poisoned { .. })));
            assert!(world.medium.peek(0, 1 << 20) == before, "no more writes");
        });
        assert_eq!(world.sim.tasks(), 0, "its tasks have ended");
    }
}

#[test]
fn a_flipped_bit_is_a_counted_miss() {
    let world = World::new(10, 16);
    let (log, _) = world.open();
    world.sim.block_on(async {
        for i in 0..50 {
            put(&log, format!("k{i}").as_bytes(), 1, &body_of(1, 4000)).await.expect("put");
        }
        log.flush().await.expect("flushed");
        log.device().set_faults(Faults { read_flip_one_in: 2, ..Faults::default() });
        let (mut hits, mut missed) = (0, 0);
        for i in 0..50 {
            let key = format!("k{i}");
            match look(&log, key.as_bytes()).await {
                Ok(found) => {
                    assert_eq!(found, (1, brief(1, 4000)));
                    hits += 1;
                }
                Err(miss) => {
                    assert!(log.needs_tombstone(hash(key.as_bytes())), "its record is still there, perhaps whole");
                    assert!(matches!(miss, Miss::Corrupted | Miss::Collision), "{miss:?}");
                    missed += 1;
                }
            }
        }
        assert!(hits >= 10 && missed >= 5 && log.stats().corrupted == missed, "{hits} hits, {missed} missed");
    });
}

#[test]
fn a_log_that_was_left_out_of_a_run_is_worth_what_a_damaged_one_is() {
    let mut world = World::new(11, 8);
    // Run, the last that served before it, whether the log is part of it, and what recovery says.
    let (first, second, third, fourth) = (10, 20, 30, 40);
    let mut open = |id, before| {
        world.config.run = Run { id, before };
        let seen = std::cell::Cell::new(None);
        let (log, opened) = world
            .try_open(|record| {
                seen.set(Some(record.stop));
                Keep::Trust
            })
            .expect("opens");
        if opened.is_new {
            world.sim.block_on(put(&log, b"k", 5, &body_of(5, 100))).expect("put");
        }
        world.sim.block_on(log.close()).expect("closes");
        (opened.missed_runs, opened.stop, seen.get())
    };
    assert_eq!(open(first, 0), (false, Stop::Clean, None));
    assert_eq!(open(second, first), (false, Stop::Clean, Some(Stop::Clean)));
    // A start that failed before it served changes nothing, however often.
    assert_eq!(open(third, second), (false, Stop::Clean, Some(Stop::Clean)));
    assert_eq!(open(third + 1, second), (false, Stop::Clean, Some(Stop::Clean)));
    // One that served without the log does, for good.
    assert_eq!(open(fourth, third + 2), (true, Stop::Damaged, Some(Stop::Damaged)));
    assert_eq!(open(fourth + 1, fourth), (false, Stop::Clean, Some(Stop::Damaged)));
}

#[test]
fn zeros_name_no_boot() {
    let mut world = World::new(12, 8);
    world.config.boot = [0; 16];
    let (log, _) = world.open();
    world.sim.block_on(put(&log, b"k", 5, &body_of(5, 100))).expect("put");
    drop(log);
    world.kill();
    assert_eq!(world.open().1.stop, Stop::PowerCut);
}
