//! The suite notices: a storage with one fault planted at a time, each of which some check must catch.

use std::{
    cell::Cell,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

use bytes::{Bytes, BytesMut};
use engine::rt::sim::{Sim, SimClock};
use futures_lite::future::{block_on, yield_now};
use strata::{
    cache::{
        CacheError, CacheKey, CacheMeta, Found, HitHandler, MissHandler, Precondition, PurgeReport, Storage, Stored,
        Tier, Version,
    },
    reason::Reason,
    storage::memory::{MemoryHit, MemoryMiss, MemoryStore},
    version::VersionClock,
};

use crate::{
    storage::{Caps, suite},
    support::key,
};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plant {
    Nothing,
    /// Ranges begin a byte late.
    RangeOff,
    /// A whole body ends a byte early, as if it were all.
    ShortBody,
    /// Seeking is taken in the middle of a read.
    LateSeek,
    /// A chunk may be empty.
    EmptyChunk,
    /// What is left unread is not counted down.
    Remaining,
    /// A reader goes on with whatever body is there now.
    MixedBodies,
    /// A copy leaves something for the next read.
    CopyTwice,
    /// Small hits are not copied.
    NoCopy,
    /// A body is readable with its last chunk.
    VisibleEarly,
    /// A write that is given up after its end is committed.
    CommitOnDrop,
    /// A write that is given up takes the old object with it.
    RemoveOnDrop,
    /// A body without its end is committed.
    CutBody,
    /// The announced checksum is not looked at.
    Checksum,
    /// The precondition of a write holds when it begins, and may not when it ends.
    EarlyPrecondition,
    /// The precondition of a write is looked at when it ends, and others may come between that and the commit.
    RacyCommit,
    /// A purge looks at no precondition.
    PurgeAnything,
    /// A purge that spares what is not older calls that a failure.
    SparedIsFailure,
    /// A purge of older copies takes the one of exactly that version too.
    PurgesEqual,
    /// A purge says that it removed, and does not.
    PurgesNothing,
    /// A purge does not say what it removed.
    SilentPurge,
    /// A commit does not say what it replaced.
    SilentCommit,
    /// Commits get the version after the one given.
    OtherVersion,
    /// The time to live is for ever.
    Immortal,
    /// Objects live a millisecond longer.
    LivesLonger,
    /// New metadata is taken for any version.
    UpdatesAnything,
    /// Every hundredth look-up misses what is there.
    Forgets,
    /// What says why there is no hit finds less than a look-up does.
    FindMisses,
    /// Misses do not tell why.
    SilentMiss,
    /// Headers are not kept.
    NoHeaders,
    /// Namespaces are not apart.
    OneNamespace,
    /// Hits are said to come from elsewhere.
    OtherTier,
}

const PLANTS: [Plant; 31] = [
    Plant::RangeOff,
    Plant::ShortBody,
    Plant::LateSeek,
    Plant::EmptyChunk,
    Plant::Remaining,
    Plant::MixedBodies,
    Plant::CopyTwice,
    Plant::NoCopy,
    Plant::VisibleEarly,
    Plant::CommitOnDrop,
    Plant::RemoveOnDrop,
    Plant::CutBody,
    Plant::Checksum,
    Plant::EarlyPrecondition,
    Plant::RacyCommit,
    Plant::PurgeAnything,
    Plant::SparedIsFailure,
    Plant::PurgesEqual,
    Plant::PurgesNothing,
    Plant::SilentPurge,
    Plant::SilentCommit,
    Plant::OtherVersion,
    Plant::Immortal,
    Plant::LivesLonger,
    Plant::UpdatesAnything,
    Plant::Forgets,
    Plant::FindMisses,
    Plant::SilentMiss,
    Plant::NoHeaders,
    Plant::OneNamespace,
    Plant::OtherTier,
];

fn passes(plant: Plant) -> bool {
    let sim = Sim::new(1);
    let make = async || Planted {
        plant,
        looks: Rc::default(),
        store: MemoryStore::new(Tier::L0, 64 << 20, sim.clock().clone(), VersionClock::new(1)),
    };
    catch_unwind(AssertUnwindSafe(|| sim.block_on(suite(make, sim.clock(), Caps::ram())))).is_ok()
}

#[test]
fn every_planted_fault_is_caught() {
    assert!(passes(Plant::Nothing));
    let missed: Vec<_> = PLANTS.into_iter().filter(|plant| passes(*plant)).collect();
    assert_eq!(missed, []);
}

#[derive(Clone)]
struct Planted {
    plant: Plant,
    looks: Rc<Cell<u32>>,
    store: MemoryStore<SimClock>,
}

impl Planted {
    fn is(&self, plant: Plant) -> bool {
        self.plant == plant
    }

    /// The key that is really used.
    fn key(&self, name: &CacheKey) -> CacheKey {
        if self.is(Plant::OneNamespace) { key(&String::from_utf8_lossy(name.key())) } else { name.clone() }
    }

    /// The metadata that is really kept.
    fn meta(&self, meta: CacheMeta) -> CacheMeta {
        match self.plant {
            Plant::Immortal => CacheMeta { expires_ms: None, ..meta },
            Plant::LivesLonger => CacheMeta { expires_ms: meta.expires_ms.map(|ms| ms + 1), ..meta },
            Plant::NoHeaders => CacheMeta { headers: Bytes::new(), ..meta },
            Plant::Checksum => CacheMeta { checksum: None, ..meta },
            Plant::CutBody => CacheMeta { length: None, ..meta },
            _ => meta,
        }
    }
}

impl Storage for Planted {
    type Hit = PlantedHit;
    type Miss = PlantedMiss;

    async fn lookup(&self, key: &CacheKey) -> Result<Option<(CacheMeta, PlantedHit)>, CacheError> {
        self.looks.set(self.looks.get() + 1);
        if self.is(Plant::Forgets) && self.looks.get().is_multiple_of(100) {
            return Ok(None);
        }
        let whole =
            Planted { plant: if self.is(Plant::FindMisses) { Plant::Nothing } else { self.plant }, ..self.clone() };
        Ok(whole.find(key).await?.hit())
    }

    async fn find(&self, key: &CacheKey) -> Result<Found<PlantedHit>, CacheError> {
        let key = self.key(key);
        Ok(match self.store.find(&key).await? {
            // Of large objects alone, so that only who compares the two can tell.
            Found::Hit(meta, _) if self.is(Plant::FindMisses) && meta.length > Some(70_000) && meta.created_ms == 0 => {
                Found::Miss(Reason::PinnedMax)
            }
            Found::Hit(meta, hit) => {
                let length = meta.length.expect("known");
                let hit = PlantedHit { planted: self.clone(), key, hit, length, given: 0, sought: None, empty: false };
                // What is kept is what was asked for, as far as readers are told.
                let told = if self.is(Plant::LivesLonger) { meta.expires_ms.map(|ms| ms - 1) } else { meta.expires_ms };
                Found::Hit(CacheMeta { expires_ms: told, ..meta }, hit)
            }
            Found::Miss(_) if self.is(Plant::SilentMiss) => Found::Miss(Reason::NotFound),
            Found::Miss(reason) => Found::Miss(reason),
        })
    }

    async fn get_miss_handler(
        &self,
        key: &CacheKey,
        meta: CacheMeta,
        precondition: Precondition,
    ) -> Result<PlantedMiss, CacheError> {
        let key = self.key(key);
        let begun = self.store.get_miss_handler(&key, self.meta(meta.clone()), precondition).await?;
        let miss = if self.is(Plant::EarlyPrecondition) || self.is(Plant::RacyCommit) {
            self.store.get_miss_handler(&key, self.meta(meta), Precondition::None).await?
        } else {
            begun
        };
        Ok(PlantedMiss { planted: self.clone(), key, precondition, miss: Some(miss), early: None, ended: false })
    }

    async fn purge(&self, key: &CacheKey, precondition: Precondition) -> Result<PurgeReport, CacheError> {
        let key = self.key(key);
        let there = self.store.lookup(&key).await?.map(|(meta, _)| meta.version);
        let precondition = match precondition {
            _ if self.is(Plant::PurgeAnything) => Precondition::None,
            Precondition::OlderThan(version) if self.is(Plant::PurgesEqual) => {
                Precondition::OlderThan(Version(version.0 + 1))
            }
            other => other,
        };
        if self.is(Plant::SparedIsFailure) && !precondition.holds(there) {
            return Err(CacheError::Precondition { current: there });
        }
        if self.is(Plant::PurgesNothing) && precondition.holds(there) {
            let mut report = PurgeReport { removed: there, ..PurgeReport::default() };
            report.tiers[0] = there.is_some();
            return Ok(report);
        }
        let report = self.store.purge(&key, precondition).await?;
        Ok(if self.is(Plant::SilentPurge) { PurgeReport { removed: None, ..report } } else { report })
    }

    async fn update_meta(&self, key: &CacheKey, meta: CacheMeta) -> Result<bool, CacheError> {
        let key = self.key(key);
        if !self.is(Plant::UpdatesAnything) {
            return self.store.update_meta(&key, self.meta(meta)).await;
        }
        let Some((there, _)) = self.store.lookup(&key).await? else { return Ok(false) };
        self.store.update_meta(&key, CacheMeta { version: there.version, ..meta }).await
    }
}

struct PlantedHit {
    planted: Planted,
    key: CacheKey,
    hit: MemoryHit<SimClock>,
    length: u64,
    given: u64,
    sought: Option<Range<u64>>,
    empty: bool,
}

impl HitHandler for PlantedHit {
    fn remaining(&self) -> u64 {
        if self.planted.is(Plant::Remaining) { self.length } else { self.hit.remaining() }
    }

    fn seek(&mut self, range: Range<u64>) -> Result<(), CacheError> {
        if self.planted.is(Plant::LateSeek) && self.given > 0 && range.end <= self.length {
            return Ok(());
        }
        let late = u64::from(self.planted.is(Plant::RangeOff) && range.start > 0 && range.end < self.length);
        self.hit.seek(range.start + late..range.end + late)?;
        self.sought = Some(range);
        Ok(())
    }

    async fn read_body(&mut self) -> Result<Option<Bytes>, CacheError> {
        if self.planted.is(Plant::MixedBodies)
            && self.hit.remaining() > 0
            && let Some((_, mut now)) = self.planted.store.lookup(&self.key).await?
        {
            let range = self.sought.clone().unwrap_or(0..self.length);
            if range.end <= now.remaining() {
                now.seek(range.start + self.given..range.end)?;
                self.hit = now;
            }
        }
        if self.planted.is(Plant::EmptyChunk) && self.hit.remaining() == 0 && !std::mem::replace(&mut self.empty, true)
        {
            return Ok(Some(Bytes::new()));
        }
        let chunk = self.hit.read_body().await?;
        self.given += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        let short = self.planted.is(Plant::ShortBody) && self.hit.remaining() == 0;
        Ok(chunk.map(|chunk| if short && chunk.len() > 1 { chunk.slice(..chunk.len() - 1) } else { chunk }))
    }

    fn try_copy(&mut self, out: &mut BytesMut) -> Option<usize> {
        let Planted { plant, .. } = self.planted;
        if plant == Plant::NoCopy {
            return None;
        }
        let copied = self.hit.try_copy(out)?;
        if plant == Plant::CopyTwice {
            let again = out[out.len() - copied..].to_vec();
            out.extend_from_slice(&again);
        }
        Some(copied)
    }

    fn tier(&self) -> Tier {
        if self.planted.is(Plant::OtherTier) { Tier::L1 } else { self.hit.tier() }
    }
}

struct PlantedMiss {
    planted: Planted,
    key: CacheKey,
    precondition: Precondition,
    /// `None`: committed, or on its way to be.
    miss: Option<MemoryMiss<SimClock>>,
    early: Option<Stored>,
    ended: bool,
}

impl PlantedMiss {
    fn inner(&mut self) -> &mut MemoryMiss<SimClock> {
        self.miss.as_mut().expect("not committed yet")
    }
}

impl MissHandler for PlantedMiss {
    fn meta_mut(&mut self) -> &mut CacheMeta {
        self.inner().meta_mut()
    }

    async fn write_body(&mut self, chunk: Bytes, eof: bool) -> Result<(), CacheError> {
        if self.miss.is_none() {
            return Err(CacheError::Refused(Reason::BodyCut));
        }
        self.inner().write_body(chunk, eof).await?;
        self.ended |= eof;
        if eof && self.planted.is(Plant::VisibleEarly) {
            self.early = Some(self.miss.take().expect("just written").finish().await?);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Stored, CacheError> {
        if let Some(stored) = self.early.take() {
            return Ok(stored);
        }
        let mut miss = self.miss.take().expect("not committed yet");
        match self.planted.plant {
            Plant::CutBody if !self.ended => miss.write_body(Bytes::new(), true).await?,
            Plant::Checksum => miss.meta_mut().checksum = None,
            Plant::RacyCommit => {
                let current = self.planted.store.lookup(&self.key).await?.map(|(meta, _)| meta.version);
                if !self.precondition.holds(current) {
                    return Err(CacheError::Precondition { current });
                }
                yield_now().await;
            }
            Plant::OtherVersion if miss.meta_mut().version != Version::NONE => miss.meta_mut().version.0 += 1,
            _ => {}
        }
        let stored = miss.finish().await?;
        Ok(if self.planted.is(Plant::SilentCommit) { Stored { replaced: None, ..stored } } else { stored })
    }
}

impl Drop for PlantedMiss {
    fn drop(&mut self) {
        let Some(miss) = self.miss.take() else { return };
        match self.planted.plant {
            Plant::CommitOnDrop if self.ended => drop(block_on(miss.finish())),
            Plant::RemoveOnDrop => drop(block_on(self.planted.store.purge(&self.key, Precondition::None))),
            _ => {}
        }
    }
}
