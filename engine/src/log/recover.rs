//! Opening a log: what is believed of what was found.
//!
//! The header decides whether the file is ours at all; if not, nothing is changed. The state page and the boot id
//! say how the last run ended ([`STOPS`]). Each segment is taken by its footer or scanned block by block
//! (`scan::SEGMENTS`); then every record that speaks for a key meets the index in the order of the log ([`ENTRIES`]).
//! All three are tables, walked row by row by the tests.
//!
//! What recovery cannot see, it says. Three marks on the state page remember, by epoch, which segments lived through
//! a kill, a power cut, or damage that may hide newer records; they outlive later clean stops, because the records
//! do. With each record the owner is told the worst its segment lived through ([`Stop`]) and answers what to do with
//! it ([`Keep`]).
//!
//! *Damage that may hide newer records*: a footer names every record of its segment, so damage inside a sealed
//! segment costs only the records it hit. A segment without a sound footer is scanned; a block that is missing or
//! broken there may be the torn end of the log, which was never promised to anyone, or rot over something that was.
//! It is rot if a later block says that it was durable, if it was followed by another one in a process that was
//! merely killed (blocks are written one by one), or if the log was closed. A damaged head is the same: its segment
//! may have been free.
//!
//! Opening makes two things durable before it returns. The clean mark is void: a commit may be acknowledged by a note
//! alone, and after a power cut nothing but the missing mark tells that one was lost. And a segment found without a
//! footer has one, so that a tear is not taken for rot at the next start.

mod scan;

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read},
    path::Path,
    rc::Rc,
};

use super::{
    Config, Inner, Life, Log, LogError, State,
    format::{
        BadHeader, FORMAT_VERSION, FooterEntry, Head, Header, Kind, Layout, Run, RunState, SEGMENT_BYTES_MIN,
        SEGMENTS_MIN, STATE_AT, StatePage, Trailer, read_header,
    },
    index::{Entry, Index, Place, extra},
    segments::Segments,
    signal::Signal,
    supersede::{NoteStore, Ring},
    writer::{Buffer, seal_writes},
};
use scan::{Lap, Reader, Take};

use crate::{
    clock::Clock,
    device::{Device, DeviceError, PAGE},
    rt::Rt,
};

/// The worst that a record's segment lived through, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Only clean stops: the record is as trustworthy as when it was written.
    Clean,
    /// A kill: everything noted in the superseding ring or flushed was kept.
    Killed,
    /// A power cut, or a kill whose ring was lost: only what was flushed was surely kept.
    PowerCut,
    /// Damage, or runs of the node that the log was not part of: even a flushed newer record may be missing.
    Damaged,
}

/// What the owner wants of a recovered record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Serve it.
    Trust,
    /// Keep it, and mark its hits [`super::Found::suspect`] until [`Log::mark_verified`].
    Suspect,
    /// Never serve it.
    Discard,
}

/// A record that recovery found, for the owner to decide on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Hash of its key.
    pub hash: u64,
    /// Its version.
    pub version: u64,
    /// The flags it was committed with: what the owner must know to decide should be in them.
    pub flags: u16,
    /// The worst its segment lived through, this time included.
    pub stop: Stop,
}

/// How opening went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The file was blank, or was formatted anew.
    pub is_new: bool,
    /// How the last run ended.
    pub stop: Stop,
    /// The last run was in this boot of the machine.
    pub same_boot: bool,
    /// The node served without this log since it was last open: newer versions, and removals, may be missing.
    pub missed_runs: bool,
    /// The highest version found, in records, tombstones and notes: later ones must be above.
    pub version_max: u64,
    /// Objects the index serves.
    pub objects: u64,
    /// Records the owner discarded.
    pub discarded: u64,
    /// Objects past their time to live.
    pub expired: u64,
    /// Segments that had to be scanned.
    pub scanned: u32,
    /// Segments with damage that may hide newer records.
    pub damaged: u32,
    /// Notes applied from the superseding ring.
    pub notes: u64,
}

/// Why a log was not opened. Refused for its header, the file is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A later version of this program wrote it.
    #[error("{device}: log format {found}, this program reads {supported}")]
    NewerFormat {
        /// The device's name.
        device: String,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// The header is not one, or is damaged.
    #[error("{device}: unreadable log header: {reason}")]
    Damaged {
        /// The device's name.
        device: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It was written for other shards or another hash seed: no key in it would be found. [`Log::format`] starts
    /// anew.
    #[error("{device}: the log is for {what} {found}, this node has {expected}")]
    DifferentShards {
        /// The device's name.
        device: String,
        /// What differs.
        what: &'static str,
        /// In the header.
        found: u64,
        /// In the configuration.
        expected: u64,
    },
    /// Too small for four segments, or too large for an index address.
    #[error(
        "{device}: a log needs room for {SEGMENTS_MIN} segments of {SEGMENT_BYTES_MIN} bytes or more and at most 4 TiB; the file has {bytes} bytes"
    )]
    Size {
        /// The device's name.
        device: String,
        /// Its length.
        bytes: u64,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The log was poisoned while the notes of the ring were made tombstones.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What the state page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StateSeen {
    Clean,
    Running,
    Unreadable,
}

/// How the last run ended: state page, same boot, ring intact -> stop. `None` matches either.
const STOPS: [(StateSeen, Option<bool>, Option<bool>, Stop); 5] = [
    (StateSeen::Clean, None, None, Stop::Clean),
    (StateSeen::Running, Some(true), Some(true), Stop::Killed),
    (StateSeen::Running, Some(true), Some(false), Stop::PowerCut),
    (StateSeen::Running, Some(false), None, Stop::PowerCut),
    (StateSeen::Unreadable, None, None, Stop::Damaged),
];

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Become {
    /// The index has something newer for its class: left out, and its segment is blind.
    Nothing,
    Tombstone,
    /// In the index, not served: it still hides what is older.
    Dead,
    Suspect,
    Live,
}

type EntryRow = (bool, Option<bool>, Option<bool>, Option<Keep>, Become);

/// Newer than what the index holds, tombstone, expired, the owner's wish -> becomes.
const ENTRIES: [EntryRow; 6] = [
    (false, None, None, None, Become::Nothing),
    (true, Some(true), None, None, Become::Tombstone),
    (true, Some(false), Some(true), None, Become::Dead),
    (true, Some(false), Some(false), Some(Keep::Discard), Become::Dead),
    (true, Some(false), Some(false), Some(Keep::Suspect), Become::Suspect),
    (true, Some(false), Some(false), Some(Keep::Trust), Become::Live),
];

fn is<T: PartialEq>(row: &Option<T>, seen: &T) -> bool {
    row.as_ref().is_none_or(|row| row == seen)
}

fn stop_of(state: StateSeen, same_boot: bool, ring_intact: bool) -> Stop {
    let row = STOPS.iter().find(|row| row.0 == state && is(&row.1, &same_boot) && is(&row.2, &ring_intact));
    row.map_or(Stop::Damaged, |row| row.3)
}

/// Zeros name no boot: the machine gives none, and any start may be after a power cut.
fn is_same_boot(before: &[u8; 16], now: &[u8; 16]) -> bool {
    before == now && *now != [0; 16]
}

fn become_of(newer: bool, tombstone: bool, expired: bool, keep: Keep) -> Become {
    let row = ENTRIES
        .iter()
        .find(|row| row.0 == newer && is(&row.1, &tombstone) && is(&row.2, &expired) && is(&row.3, &keep));
    row.map_or(Become::Dead, |row| row.4)
}

/// Reads the header of the log file at `path`: which node, shards and hash seed it was made for, and how long it is.
/// `None`: there is no such file, or it is blank. Blocks for two system calls; changes nothing.
///
/// # Errors
/// The file cannot be read, is damaged, shorter than it should be, or newer.
pub fn inspect(path: &Path) -> Result<Option<Header>, OpenError> {
    let name = path.display().to_string();
    let fail = |source: io::Error| OpenError::Device(DeviceError::new("open", &name, 0, source));
    let file = match File::open(path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(fail)?,
    };
    let mut page = Vec::with_capacity(PAGE);
    (&file).take(PAGE as u64).read_to_end(&mut page).map_err(fail)?;
    // Shorter than a page: its making was interrupted.
    if page.len() < PAGE {
        return Ok(None);
    }
    let header = match Header::decode(&page) {
        Err(BadHeader::Blank) => return Ok(None),
        header => header.map_err(|bad| refuse(&name, &bad))?,
    };
    if file.metadata().map_err(fail)?.len() < header.file_bytes {
        return Err(OpenError::Damaged { device: name, reason: "the file is shorter than it was made" });
    }
    Ok(Some(header))
}

fn refuse(name: &str, bad: &BadHeader) -> OpenError {
    let device = name.to_owned();
    match *bad {
        BadHeader::Newer(found) => OpenError::NewerFormat { device, found, supported: FORMAT_VERSION },
        BadHeader::Damaged(reason) => OpenError::Damaged { device, reason },
        BadHeader::Blank => OpenError::Damaged { device, reason: "it is blank" },
    }
}

impl<D: Device, R: Rt> Log<D, R> {
    /// Opens the log on `device` and starts its tasks; a blank file is formatted. `keep` is asked of every record
    /// that would be served. Reads the heads and footers of all segments, and all of those that have no sound
    /// footer; voids the clean mark.
    ///
    /// # Errors
    /// See [`OpenError`]. A file that is refused for its header is as it was.
    pub async fn open(
        device: Rc<D>,
        rt: R,
        notes: impl NoteStore,
        config: Config,
        keep: impl Fn(&Recovered) -> Keep,
    ) -> Result<(Self, Opened), OpenError> {
        let header = match read_header(&*device).await? {
            Ok(header) => header,
            Err(BadHeader::Blank) => {
                let same_boot = true;
                let log = Self::format(device, rt, notes, config).await?;
                return Ok((log, Opened { is_new: true, ..Opened::nothing(Stop::Clean, same_boot) }));
            }
            Err(bad) => return Err(refuse(device.name(), &bad)),
        };
        let ours = [
            ("shard", u64::from(header.shard), u64::from(config.shard)),
            ("a node of so many shards:", u64::from(header.shards), u64::from(config.shards)),
            ("hash seed", header.hash_seed, config.hash_seed),
        ];
        if let Some((what, found, expected)) = ours.into_iter().find(|(_, found, expected)| found != expected) {
            return Err(OpenError::DifferentShards { device: device.name().into(), what, found, expected });
        }
        let Some(layout) = Layout::of(&header, device.len()) else {
            let reason = "its segments do not fit the file";
            return Err(OpenError::Damaged { device: device.name().into(), reason });
        };
        Recovery::read(device, layout).await?.open(rt, Ring::new(notes), config, keep).await
    }

    /// Makes a new, empty log on `device`, whatever was there, and starts its tasks. What an earlier log left in
    /// the file never validates again.
    ///
    /// # Errors
    /// The file is too small or too large, or the device failed.
    pub async fn format(device: Rc<D>, rt: R, notes: impl NoteStore, config: Config) -> Result<Self, OpenError> {
        let size = || OpenError::Size { device: device.name().into(), bytes: device.len() };
        let (segment_bytes, segments) = Layout::choose(device.len(), config.segment_bytes).ok_or_else(size)?;
        let header = Header {
            log_id: rt.random(),
            node: config.node,
            shard: config.shard,
            shards: config.shards,
            hash_seed: config.hash_seed,
            file_bytes: device.len(),
            segment_bytes,
            segments,
            created_ms: rt.clock().wall_ms(),
        };
        let layout = Layout::of(&header, device.len()).ok_or_else(size)?;
        let page = StatePage {
            state: RunState::Running,
            killed_below: 0,
            power_cut_below: 0,
            damaged_below: 0,
            boot: config.boot,
            written_ms: header.created_ms,
            run: config.run,
        };
        write_page(&*device, STATE_AT, |block| page.encode(layout.salt, block)).await?;
        for segment in 0..segments {
            let void = Head { segment, epoch: 0, first_block: 0 };
            write_page(&*device, layout.segment_at(segment), |block| void.encode(layout.salt, block)).await?;
        }
        device.sync().await?;
        write_page(&*device, 0, |block| header.encode(block)).await?;
        device.sync().await?;
        let mut ring = Ring::new(notes);
        ring.clear();
        ring.set_intact(true);
        let state = State {
            index: Index::new(&layout, config.objects(device.len())),
            segments: Segments::new(segments, 1),
            buffer: Buffer::new(config.buffer_bytes_max, &layout, 0),
            ring,
            life: Life::Open,
            poisoned: None,
            tasks: 0,
            stats: super::Stats::default(),
        };
        Ok(Self::start(device, rt, layout, config, page, state))
    }

    fn start(device: Rc<D>, rt: R, layout: Layout, config: Config, page: StatePage, mut state: State) -> Self {
        state.tasks = 2;
        let state = RefCell::new(state);
        let (progress, work) = (Signal::default(), Signal::default());
        let inner = Rc::new(Inner { device, rt, layout, config, page, state, progress, work });
        inner.rt.spawn(inner.clone().flush_loop());
        inner.rt.spawn(inner.clone().reclaim_loop());
        Self { inner }
    }
}

async fn write_page<D: Device>(device: &D, offset: u64, fill: impl FnOnce(&mut [u8])) -> Result<(), DeviceError> {
    let mut block = device.block(PAGE);
    fill(&mut block);
    device.write(offset, block.into()).await
}

impl Opened {
    fn nothing(stop: Stop, same_boot: bool) -> Self {
        Self {
            is_new: false,
            stop,
            same_boot,
            missed_runs: false,
            version_max: 0,
            objects: 0,
            discarded: 0,
            expired: 0,
            scanned: 0,
            damaged: 0,
            notes: 0,
        }
    }
}

/// Everything read from the device, before any decision on records.
struct Recovery<D> {
    device: Rc<D>,
    layout: Layout,
    page: Option<StatePage>,
    /// In the order of the log.
    laps: Vec<Lap>,
    next_epoch: u32,
}

impl<D: Device> Recovery<D> {
    async fn read(device: Rc<D>, layout: Layout) -> Result<Self, DeviceError> {
        let mut reader = Reader::new(device.clone(), layout);
        let page = StatePage::decode(layout.salt, &reader.read(STATE_AT, PAGE).await?);
        let mut laps = Vec::new();
        for segment in 0..layout.segments {
            if let Some(lap) = reader.lap(segment).await? {
                laps.push(lap);
            }
        }
        laps.sort_by_key(|lap| lap.epoch);
        let last = laps.last().map_or(0, |lap| lap.epoch);
        // Room for laps that damage may hide: an epoch is not used twice.
        let hidden = laps.iter().any(|lap| lap.take == Take::ScanDamaged);
        let next_epoch = last.saturating_add(if hidden { layout.segments } else { 1 });
        let marks = page.map_or(0, |page| page.killed_below.max(page.power_cut_below).max(page.damaged_below));
        let next_epoch = next_epoch.max(marks);
        Ok(Self { device, layout, page, laps, next_epoch })
    }

    /// Whether a missing or broken block of this sequence is rot: see the module.
    fn must_be_whole(&self, stop: Stop) -> impl Fn(u64) -> bool + use<D> {
        let blocks = || self.laps.iter().flat_map(|lap| &lap.blocks).map(|(block, _)| block);
        let last = blocks().map(|block| block.sequence).chain(self.laps.iter().filter_map(|lap| lap.next_block)).max();
        // Before a segment is opened, everything before it is durable.
        let opened = self.laps.iter().filter(|lap| lap.take != Take::ScanDamaged).map(|lap| lap.first_block);
        let durable = blocks().map(|block| block.durable).chain(opened).max().unwrap_or(0);
        let below = match stop {
            Stop::Clean => u64::MAX,
            Stop::Killed => last.unwrap_or(0),
            Stop::PowerCut | Stop::Damaged => durable,
        };
        move |sequence| sequence < below
    }

    async fn open<R: Rt>(
        mut self,
        rt: R,
        mut ring: Ring,
        config: Config,
        keep: impl Fn(&Recovered) -> Keep,
    ) -> Result<(Log<D, R>, Opened), OpenError> {
        let same_boot = self.page.is_some_and(|page| is_same_boot(&page.boot, &config.boot));
        let missed_runs = self.page.is_some_and(|page| page.missed_runs(config.run));
        let seen = match self.page.map(|page| page.state) {
            Some(RunState::Clean) => StateSeen::Clean,
            Some(RunState::Running) => StateSeen::Running,
            None => StateSeen::Unreadable,
        };
        // Whatever it was, the log has not seen what came after.
        let stop = if missed_runs { Stop::Damaged } else { stop_of(seen, same_boot, ring.is_intact()) };
        let mut opened = Opened { missed_runs, ..Opened::nothing(stop, same_boot) };
        let hiding = self.hiding(stop);
        opened.damaged = hiding.len() as u32;
        opened.scanned = self.laps.iter().filter(|lap| lap.take != Take::Footer).count() as u32;
        let page = self.next_page(stop, hiding.iter().map(|lap| self.laps[*lap].epoch).max(), &config, &rt);
        self.begin(&page).await?;
        // The page remembers what became of the notes before.
        ring.set_intact(true);
        let mut state = State {
            index: Index::new(&self.layout, config.objects(self.device.len())),
            segments: Segments::new(self.layout.segments, 1),
            buffer: Buffer::new(config.buffer_bytes_max, &self.layout, self.next_sequence()),
            ring,
            life: Life::Open,
            poisoned: None,
            tasks: 0,
            stats: super::Stats::default(),
        };
        for lap in &self.laps {
            state.segments.restore(lap.segment, lap.epoch);
            state.segments.counters(lap.segment).bytes = u64::from(lap.used).saturating_sub(PAGE as u64);
        }
        hiding.iter().for_each(|lap| state.segments.mark_blind(self.laps[*lap].segment));
        state.segments.skip_to(self.next_epoch);
        let now_s = rt.clock().wall_ms() / 1000;
        for lap in &mut self.laps {
            let survived = page.survived(lap.epoch);
            for record in std::mem::take(&mut lap.records) {
                if config.sabotage.forget_tombstones && record.kind == Kind::Tombstone {
                    continue;
                }
                state.meet(lap.segment, &record, survived, now_s, &keep, &mut opened);
            }
        }
        if !config.sabotage.forget_tombstones {
            opened.notes = state.apply_notes(&mut opened.version_max);
        }
        opened.objects = state.index.live() as u64;
        let log = Log::start(self.device, rt, self.layout, config, page, state);
        log.inner.bury_notes().await?;
        Ok((log, opened))
    }

    /// Laps with damage that may hide newer records.
    fn hiding(&self, stop: Stop) -> Vec<usize> {
        let must_be_whole = self.must_be_whole(stop);
        let hides = |(i, lap): (usize, &Lap)| {
            let end = lap.next_block.or_else(|| self.laps.get(i + 1).map(|next| next.first_block));
            let hides = match lap.take {
                Take::Free | Take::Footer => false,
                Take::Scan => lap.hides(end, &must_be_whole),
                Take::ScanDamaged => true,
            };
            hides.then_some(i)
        };
        self.laps.iter().enumerate().filter_map(hides).collect()
    }

    /// The state page of the new run: this stop's mark on everything there is.
    fn next_page<R: Rt>(&self, stop: Stop, hiding: Option<u32>, config: &Config, rt: &R) -> StatePage {
        let mark = |old: Option<u32>, now: bool| if now { self.next_epoch } else { old.unwrap_or(0) };
        let damaged = mark(self.page.map(|page| page.damaged_below), stop == Stop::Damaged);
        StatePage {
            state: RunState::Running,
            killed_below: mark(self.page.map(|page| page.killed_below), stop == Stop::Killed),
            power_cut_below: mark(self.page.map(|page| page.power_cut_below), stop == Stop::PowerCut),
            damaged_below: damaged.max(hiding.map_or(0, |epoch| epoch + 1)),
            boot: config.boot,
            written_ms: rt.clock().wall_ms(),
            run: config.run,
        }
    }

    fn next_sequence(&self) -> u64 {
        let ends = self.laps.iter().map(|lap| lap.found_end().max(lap.next_block.unwrap_or(0)));
        ends.max().unwrap_or(0)
    }

    /// Makes this run's beginning durable: first the new state, so that what was seen of the last stop is not lost,
    /// then footers for the segments that have none.
    async fn begin(&self, page: &StatePage) -> Result<(), DeviceError> {
        let device = &*self.device;
        write_page(device, STATE_AT, |block| page.encode(self.layout.salt, block)).await?;
        device.sync().await?;
        let open = self.laps.iter().enumerate().filter(|(_, lap)| lap.take != Take::Footer);
        for (i, lap) in open {
            let mut footer = Vec::new();
            lap.records.iter().for_each(|record| record.encode(&mut footer));
            let next = self.laps.get(i + 1).map_or(0, |next| next.first_block);
            let trailer = Trailer {
                segment: lap.segment,
                epoch: lap.epoch,
                first_block: lap.first_block,
                next_block: next.max(lap.found_end()),
                entries: lap.records.len() as u32,
                footer_crc: 0,
                used: lap.used,
            };
            // The writer keeps room for the footer; only damage can have taken it, and then it stays without.
            if lap.used as usize > self.layout.footer_at(lap.records.len()) {
                continue;
            }
            let head = Head { segment: lap.segment, epoch: lap.epoch, first_block: lap.first_block };
            let head_at = self.layout.segment_at(lap.segment);
            write_page(device, head_at, |block| head.encode(self.layout.salt, block)).await?;
            for (offset, block) in seal_writes(device, &self.layout, trailer, &footer) {
                device.write(offset, block).await?;
            }
        }
        device.sync().await
    }
}

impl StatePage {
    /// Whether the node served since this page was written, without the log. A start that wrote the page and failed
    /// before it served has missed nothing.
    fn missed_runs(&self, now: Run) -> bool {
        self.run.id != now.before && self.run.before != now.before
    }

    /// The worst that segments of this epoch lived through.
    fn survived(&self, epoch: u32) -> Stop {
        let marks = [
            (self.damaged_below, Stop::Damaged),
            (self.power_cut_below, Stop::PowerCut),
            (self.killed_below, Stop::Killed),
        ];
        marks.into_iter().find(|(below, _)| epoch < *below).map_or(Stop::Clean, |(_, stop)| stop)
    }
}

impl State {
    /// Lets a record, or a tombstone, meet the index. Called in the order of the log.
    fn meet(
        &mut self,
        segment: u32,
        record: &FooterEntry,
        survived: Stop,
        now_s: u64,
        keep: &impl Fn(&Recovered) -> Keep,
        opened: &mut Opened,
    ) {
        let FooterEntry { hash, version, position, span, flags, .. } = *record;
        opened.version_max = opened.version_max.max(version);
        let tombstone = record.kind == Kind::Tombstone;
        let newer = self.index.get(hash).is_none_or(|held| {
            let held_tombstone = matches!(held.place, Place::Tombstone { .. });
            // At one version the record wins, wherever it is: a tombstone speaks of what is below it.
            version > held.version || (version == held.version && (!tombstone || held_tombstone))
        });
        let expired = record.expires_s != 0 && u64::from(record.expires_s) <= now_s;
        let wish = match newer && !tombstone && !expired {
            true => keep(&Recovered { hash, version, flags, stop: survived }),
            false => Keep::Discard,
        };
        let becomes = become_of(newer, tombstone, expired, wish);
        let (place, suspect) = match becomes {
            Become::Nothing => {
                // It lies behind the record the index keeps, which may be another key's and go first. A tombstone
                // brings nothing back.
                if !tombstone {
                    self.segments.mark_blind(segment);
                }
                return;
            }
            Become::Tombstone => (Place::Tombstone { segment, extra: extra(hash) }, false),
            Become::Dead => (Place::Record { segment, position, span, live: false }, false),
            Become::Suspect => (Place::Record { segment, position, span, live: true }, true),
            Become::Live => (Place::Record { segment, position, span, live: true }, false),
        };
        if becomes == Become::Dead {
            *if expired { &mut opened.expired } else { &mut opened.discarded } += 1;
        }
        self.publish(hash, &Entry { place, version, hits: 0, suspect });
    }

    /// Makes dead what a note supersedes; the tombstones follow when the log runs.
    fn apply_notes(&mut self, version_max: &mut u64) -> u64 {
        let notes = self.ring.notes();
        for (_, note) in &notes {
            *version_max = (*version_max).max(note.version);
            self.kill(note.hash, |held| held.version < note.version);
        }
        notes.len() as u64
    }
}

impl<D: Device, R: Rt> Inner<D, R> {
    /// Turns the notes of an earlier process into tombstones, so that they are not needed any more.
    async fn bury_notes(&self) -> Result<(), LogError> {
        let notes = self.state.borrow().ring.notes();
        for (id, note) in notes {
            let mut id = Some(id);
            self.until_room(|state| {
                Ok(self.bury(state, note.hash, &[], note.version, false).map(|buried| match (buried, id.take()) {
                    (true, Some(id)) => state.buffer.bind(id),
                    (false, Some(id)) => state.ring.free(id),
                    (_, None) => {}
                }))
            })
            .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_has_exactly_one_row_in_each_table() {
        for state in [StateSeen::Clean, StateSeen::Running, StateSeen::Unreadable] {
            for (boot, ring) in [(false, false), (false, true), (true, false), (true, true)] {
                let rows = STOPS.iter().filter(|row| row.0 == state && is(&row.1, &boot) && is(&row.2, &ring));
                assert_eq!(rows.count(), 1, "{state:?} {boot} {ring}");
            }
        }
        use scan::{HeadSeen, SEGMENTS};
        for head in [HeadSeen::Lap, HeadSeen::Void, HeadSeen::Damaged] {
            for footer in [false, true] {
                assert_eq!(SEGMENTS.iter().filter(|row| row.0 == head && is(&row.1, &footer)).count(), 1);
            }
        }
        for (newer, tombstone, expired) in (0..8).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0)) {
            for keep in [Keep::Trust, Keep::Suspect, Keep::Discard] {
                let rows = ENTRIES.iter().filter(|row| {
                    row.0 == newer && is(&row.1, &tombstone) && is(&row.2, &expired) && is(&row.3, &keep)
                });
                assert_eq!(rows.count(), 1, "{newer} {tombstone} {expired} {keep:?}");
            }
        }
    }

    #[test]
    fn a_stop_is_at_least_as_bad_as_its_marks() {
        let page = StatePage {
            state: RunState::Running,
            killed_below: 30,
            power_cut_below: 20,
            damaged_below: 10,
            boot: [0; 16],
            written_ms: 0,
            run: Run::default(),
        };
        let survived = [9, 10, 19, 20, 29, 30].map(|epoch| page.survived(epoch));
        let expected = [Stop::Damaged, Stop::PowerCut, Stop::PowerCut, Stop::Killed, Stop::Killed, Stop::Clean];
        assert_eq!(survived, expected);
    }
}
