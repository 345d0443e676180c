//! Every knob, with its unit, and the relations between them, checked once.
//!
//! Owns [`Config`], which is what a node is started with. It is made from four layers, the later over the earlier:
//! defaults, the TOML file, the environment (`STRATA_*`), flags. One table (`config/table.rs`) drives all of them and
//! the documentation. A `Config` that exists is consistent: its parts of memory add up, its doors may be opened.
//!
//! Left to others: whether the machine is fit for it (`doctor`), who owns the data directory (`datadir`), and the
//! policy, which can change while the node runs (`policy`).

mod machine;
mod memory;
mod print;
mod source;
mod table;
mod value;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

pub use self::{
    machine::{Disk, Machine, disk},
    memory::{
        BASE_BYTES, CONNECTION_BYTES, L0_SHARD_BYTES_MIN, L2_INDEX_OBJECT_BYTES, L2_IO_BYTES, MemoryPlan,
        SHARD_BASE_BYTES,
    },
    print::{SettingValue, docs_table},
    source::{FILE_VARIABLE, Sources},
    table::Origin,
    value::{LogFormat, LogLevel, Profile, Reserve},
};
use self::{
    memory::Demand,
    table::{Sourced, Values},
    value::{Auto, Bytes, Count, Kind, Paths},
};
use crate::{policy::Policy, server::inflight, storage::traits::INLINE_BYTES_MAX};

/// Most shards of a node.
pub const SHARDS_MAX: u64 = engine::shard::SHARDS_MAX as u64;

/// Least flash of one shard, in bytes: below it the log is all edges.
pub const L2_SHARD_BYTES_MIN: u64 = 4 << 20;

/// Fewest segments of a shard's log: one open, one being reclaimed, two to hold objects.
pub const L2_SEGMENTS_MIN: u64 = 4;

/// Flash of the whole node by default, at most, in bytes.
const L2_BYTES_DEFAULT_MAX: u64 = 10 << 30;

const MIB: u64 = 1 << 20;

/// Files that a node of `shards` shards has open besides connections, at most.
#[must_use]
pub fn files_base(shards: u64) -> u64 {
    256 + 32 * shards
}

/// What is wrong with the settings: one line each, with file and line, variable or flag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    /// The lines.
    pub problems: Vec<String>,
}

/// Where the doors are. `None` is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doors {
    /// HTTP objects.
    pub http: Option<SocketAddr>,
    /// The memcached protocol.
    pub memcached: Option<SocketAddr>,
    /// The admin API.
    pub admin: Option<SocketAddr>,
    /// Whether they may be beyond loopback without authentication.
    pub allow_open: bool,
}

/// How the node logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// This and everything graver.
    pub level: LogLevel,
}

/// Bounds on what requests may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest body any door accepts, in bytes.
    pub body_bytes_max: u64,
    /// Connections of one shard.
    pub connections_max_per_shard: u64,
    /// Unread bytes of one body between two threads.
    pub body_window_bytes: u64,
    /// How far a tier may fall behind a write, or a read that fills it, before it is dropped from it, in bytes.
    pub fanout_lag_max: u64,
    /// How long a stop waits for requests in flight.
    pub stop_grace: Duration,
}

/// The flash tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2 {
    /// Flash of the whole node in bytes; 0 runs without.
    pub bytes: u64,
    /// Folders for the shards' files: shard `i` uses `paths[i % paths.len()]`.
    pub paths: Vec<PathBuf>,
    /// Mean size of an object in bytes, which sizes the index.
    pub object_bytes_mean: u64,
    /// What is reclaimed at a time, in bytes.
    pub segment_bytes: u64,
    /// Memory of one shard for what is not on flash yet, in bytes.
    pub write_buffer_bytes: u64,
    /// How old what is not on flash yet may become.
    pub flush_interval: Duration,
}

impl L2 {
    /// The log of one of `shards` shards, in bytes: whole segments.
    #[must_use]
    pub fn bytes_per_shard(&self, shards: u64) -> u64 {
        self.bytes / shards.max(1) / self.segment_bytes * self.segment_bytes
    }
}

/// Durable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L3 {
    /// Most bytes of bodies and index.
    pub bytes_max: Option<u64>,
    /// Part of the file system that writes leave free.
    pub disk_reserve: Reserve,
    /// Largest body kept in the index, in bytes.
    pub inline_bytes_max: u64,
    /// Memory for pages of the index, in bytes.
    pub index_cache_bytes: u64,
    /// How old a file that no manifest names must be to be swept.
    pub orphan_age: Duration,
    /// How long a replaced body is kept.
    pub blob_grace: Duration,
    /// How long a delete is remembered.
    pub tombstone_ttl: Duration,
    /// Pause between sweeps.
    pub sweep_interval: Duration,
}

/// Everything a node is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which defaults were taken.
    pub profile: Profile,
    /// Where everything durable lives.
    pub data_dir: PathBuf,
    /// Shards, at least 1.
    pub shards: u64,
    /// Where `memory_max` goes.
    pub memory: MemoryPlan,
    /// Where the doors are.
    pub doors: Doors,
    /// How the node logs.
    pub log: Log,
    /// Bounds on what requests may use.
    pub limits: Limits,
    /// The flash tier.
    pub l2: L2,
    /// Durable storage.
    pub l3: L3,
    /// The policy as configured; one persisted by the admin door may take its place (`datadir::PolicyFile`).
    pub policy: Arc<Policy>,
    /// What deserves a log line at start.
    pub warnings: Vec<String>,
    /// Every setting in effect with its origin, in the order of the documentation.
    pub settings: Vec<SettingValue>,
}

impl Config {
    /// Joins the layers, works out what nobody gave, and checks how everything fits. Called once at start; reads
    /// no files but through `machine`.
    ///
    /// # Errors
    /// Every mistake found.
    pub fn load(sources: &Sources, machine: &Machine) -> Result<Self, ConfigError> {
        let joined = source::join(sources).map_err(|problems| ConfigError { problems })?;
        let mut values = joined.values;
        let mut checks = Checks { problems: Vec::new(), warnings: joined.warnings };
        resolve(&mut values, machine);
        let memory = MemoryPlan::new(&demand(&values, machine));
        checks.all(&values, &memory, machine);
        if !checks.problems.is_empty() {
            return Err(ConfigError { problems: checks.problems });
        }
        let settings = print::settings(&values, &joined.policy, &joined.policy_origins);
        Ok(assemble(values, memory, Arc::new(joined.policy), checks.warnings, settings))
    }

    /// The tiny profile with `settings` (name, value) over it, on a machine of 2 CPUs, 1 GiB of memory and 64 GiB of
    /// disk: for tests.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn tiny(settings: &[(&str, &str)]) -> Result<Self, ConfigError> {
        let flag = |(name, value): &(&str, &str)| ((*name).into(), (*value).into(), format!("--set {name}={value}"));
        let flags = [("profile", "tiny")].iter().chain(settings).map(flag).collect();
        let machine = Machine {
            cpus: 2,
            memory_bytes: 1 << 30,
            memory_note: "assumed by the test".into(),
            memlock: Some(8 << 20),
            nofile: None,
            disk: |_| Some(Disk { total: 64 << 30, free: 64 << 30 }),
            l2_bytes_before: |_| None,
        };
        Self::load(&Sources { flags, ..Sources::default() }, &machine)
    }
}

/// The value of a setting that [`resolve`] has filled in.
fn given<T: Clone>(setting: &Sourced<Auto<T>>) -> T {
    setting.value.0.clone().expect("resolve fills in every auto value before anything reads one")
}

/// Works out every `auto` value from the machine and from the values before it.
fn resolve(values: &mut Values, machine: &Machine) {
    values.shards.resolve(Count(machine.cpus.clamp(1, SHARDS_MAX)), "CPUs this process may use");
    let shards = given(&values.shards).0.max(1);

    let half = machine.memory_bytes / 2 / MIB * MIB;
    values.memory_max.resolve(Bytes(half), format!("half of {}", machine.memory_note));
    let memory_max = given(&values.memory_max).0;

    values.index_cache_bytes.resolve(Bytes((memory_max / 32 / MIB * MIB).clamp(4 * MIB, 256 * MIB)), "memory_max / 32");
    let by_memory = memory_max / 16 / CONNECTION_BYTES / shards;
    let files = machine.nofile.unwrap_or(u64::MAX).saturating_sub(files_base(shards));
    let connections = by_memory.min(files / shards).clamp(64, 16384);
    let note = if files / shards < by_memory { "by RLIMIT_NOFILE" } else { "memory_max / 16" };
    values.connections_max.resolve(Count(connections), note);
    let least = (4 * MIB).saturating_mul(shards);
    values
        .inflight_bytes
        .resolve(Bytes((memory_max / 8 / MIB * MIB).max(least)), "memory_max / 8, at least 4MiB a shard");

    if values.l2_bytes.value.0.is_none() {
        let (l2_bytes, note) = l2_bytes_default(values, machine, memory_max, shards);
        values.l2_bytes.resolve(Bytes(l2_bytes), note);
        // A small machine serves from RAM and disk rather than not at all.
        if l2_bytes > 0 && !MemoryPlan::new(&demand(values, machine)).fits() {
            values.l2_bytes.value.0 = Some(Bytes(0));
            values.l2_bytes.origin = Origin::Default("off: memory_max is too small for it".into());
        }
    }
    let paths = Paths(vec![values.data_dir.value.join("l2")]);
    values.l2_paths.resolve(paths, "in data_dir");
    let share = given(&values.l2_bytes).0 / shards / 16;
    let segment = if share < 2 * MIB { MIB } else { 1 << share.ilog2() };
    values.segment_bytes.resolve(Bytes(segment.min(32 * MIB)), "a sixteenth of a shard's log");
}

/// As in the last run, or by the free disk: the default must not drift with the disk's filling, since a log of
/// another size is another log.
fn l2_bytes_default(values: &Values, machine: &Machine, memory_max: u64, shards: u64) -> (u64, &'static str) {
    let data_dir = &values.data_dir.value;
    if let Some(before) = (machine.l2_bytes_before)(data_dir) {
        return (before, "as in the last run");
    }
    let path = values.l2_paths.value.0.as_ref().and_then(|paths| paths.0.first()).unwrap_or(data_dir);
    let Some(disk) = (machine.disk)(path) else {
        return (0, "off: the free disk is not known");
    };
    // An index of at most an eighth of the memory, so that the defaults of a small machine fit.
    let by_index = memory_max / 8 / L2_INDEX_OBJECT_BYTES * values.object_bytes_mean.value.0;
    let by_disk = disk.free / 10;
    let (bytes, note) = if by_index < by_disk.min(L2_BYTES_DEFAULT_MAX) {
        (by_index, "as much as an index of memory_max / 8 can hold")
    } else if by_disk < L2_BYTES_DEFAULT_MAX {
        (by_disk, "a tenth of the free disk")
    } else {
        (L2_BYTES_DEFAULT_MAX, "10GiB")
    };
    let bytes = bytes / MIB * MIB;
    if bytes / shards < 4 * L2_SHARD_BYTES_MIN { (0, "off: too little free disk") } else { (bytes, note) }
}

fn demand(values: &Values, machine: &Machine) -> Demand {
    let shards = given(&values.shards).0;
    let registered = engine::shard::io_memory(machine.memlock, usize::try_from(shards).unwrap_or(usize::MAX));
    Demand {
        memory_max: given(&values.memory_max).0,
        shards,
        registered_bytes_per_shard: registered as u64,
        index_cache: given(&values.index_cache_bytes).0,
        connections_max_per_shard: given(&values.connections_max).0,
        inflight_bytes: given(&values.inflight_bytes).0,
        write_buffer_bytes_per_shard: values.write_buffer_bytes.value.0,
        l2_bytes: given(&values.l2_bytes).0,
        object_bytes_mean: values.object_bytes_mean.value.0,
    }
}

/// What does not fit, and what is odd.
struct Checks {
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Checks {
    fn all(&mut self, values: &Values, memory: &MemoryPlan, machine: &Machine) {
        self.shards(values, machine);
        self.doors(values);
        self.flash(values);
        self.durable(values);
        self.memory(values, memory, machine);
        let (l2_bytes, origin) = (given(&values.l2_bytes).0, &values.l2_bytes.origin);
        if let (0, Origin::Default(note)) = (l2_bytes, origin) {
            self.warnings.push(format!("there is no flash tier ({note}); set l2_bytes, or l2_bytes = 0 to agree"));
        }
    }

    fn require(&mut self, holds: bool, name: &str, origin: &Origin, message: impl Into<String>) {
        if !holds {
            self.problems.push(format!("{origin}: {name}: {}", message.into()));
        }
    }

    fn shards(&mut self, values: &Values, machine: &Machine) {
        let shards = given(&values.shards).0;
        let range = format!("{shards} shards; 1 to {SHARDS_MAX} are possible");
        self.require((1..=SHARDS_MAX).contains(&shards), "shards", &values.shards.origin, range);
        if shards > machine.cpus {
            self.warnings.push(format!("{shards} shards share {} CPUs; one each is best", machine.cpus));
        }
    }

    fn doors(&mut self, values: &Values) {
        let doors = [
            ("http_listen", &values.http_listen),
            ("memcached_listen", &values.memcached_listen),
            ("admin_listen", &values.admin_listen),
        ];
        for (i, (name, door)) in doors.iter().enumerate() {
            let Some(address) = door.value.0 else { continue };
            self.require(
                address.ip().is_loopback() || values.allow_open.value,
                name,
                &door.origin,
                format!(
                    "{address} is reachable from other machines, and there is no authentication yet; use a loopback \
                     address such as 127.0.0.1:{}, or set allow_open = true if everyone who can reach it may read, \
                     write and delete",
                    address.port()
                ),
            );
            let twin = doors[..i].iter().find(|(_, other)| other.value.0 == Some(address) && address.port() != 0);
            if let Some((other, _)) = twin {
                self.require(false, name, &door.origin, format!("{address} is also {other}"));
            }
        }
    }

    fn flash(&mut self, values: &Values) {
        let (bytes, shards) = (given(&values.l2_bytes).0, given(&values.shards).0.max(1));
        let segment = given(&values.segment_bytes).0;
        let mean = values.object_bytes_mean.value.0;
        self.require(
            mean >= 64,
            "l2.object_bytes_mean",
            &values.object_bytes_mean.origin,
            "an object takes at least 64B on flash",
        );
        let origin = &values.segment_bytes.origin;
        let is_segment = segment.is_power_of_two() && (64 << 10..=256 << 20).contains(&segment);
        self.require(is_segment, "l2.segment_bytes", origin, "a segment is a power of two, 64KiB to 256MiB");
        self.require(
            !values.flush_interval.value.0.is_zero(),
            "l2.flush_interval",
            &values.flush_interval.origin,
            "at least 1ms",
        );
        let paths = given(&values.l2_paths).0;
        if paths.len() as u64 > shards {
            self.warnings
                .push(format!("l2_paths names {} folders for {shards} shards; the rest is unused", paths.len()));
        }
        let mut sorted = paths.clone();
        sorted.sort();
        sorted.dedup();
        self.require(sorted.len() == paths.len(), "l2_paths", &values.l2_paths.origin, "a folder is there twice");
        if bytes == 0 {
            return;
        }
        let least = L2_SHARD_BYTES_MIN.max(segment.saturating_mul(L2_SEGMENTS_MIN)).saturating_mul(shards);
        let message = format!(
            "{} is too little for {shards} shards with segments of {}: at least {}, or 0 to run without flash",
            Bytes(bytes).write(),
            Bytes(segment).write(),
            Bytes(least).write()
        );
        self.require(bytes >= least, "l2_bytes", &values.l2_bytes.origin, message);
        let buffer = values.write_buffer_bytes.value.0;
        self.require(
            (256 << 10..=1 << 30).contains(&buffer),
            "l2.write_buffer_bytes",
            &values.write_buffer_bytes.origin,
            "256KiB to 1GiB",
        );
    }

    fn durable(&mut self, values: &Values) {
        let inline = values.inline_bytes_max.value.0;
        let message = format!("at most {}", Bytes(INLINE_BYTES_MAX).write());
        self.require(inline <= INLINE_BYTES_MAX, "l3.inline_bytes_max", &values.inline_bytes_max.origin, message);
        let cache = given(&values.index_cache_bytes).0;
        self.require(cache >= MIB, "l3.index_cache_bytes", &values.index_cache_bytes.origin, "at least 1MiB");
        let (orphan, grace) = (values.orphan_age.value.0, values.blob_grace.value.0);
        self.require(
            orphan >= Duration::from_secs(1),
            "l3.orphan_age",
            &values.orphan_age.origin,
            "at least 1s: a write under way would be swept",
        );
        self.require(
            grace <= orphan,
            "l3.blob_grace",
            &values.blob_grace.origin,
            "longer than l3.orphan_age, by which a body nobody names is swept in any case",
        );
        for (name, span) in [("l3.tombstone_ttl", &values.tombstone_ttl), ("l3.sweep_interval", &values.sweep_interval)]
        {
            self.require(!span.value.0.is_zero(), name, &span.origin, "more than 0s");
        }
    }

    fn memory(&mut self, values: &Values, plan: &MemoryPlan, machine: &Machine) {
        let window = values.body_window_bytes.value.0;
        self.require(
            (4 << 10..=64 << 20).contains(&window),
            "limits.body_window_bytes",
            &values.body_window_bytes.origin,
            "4KiB to 64MiB",
        );
        let least = memory::inflight_bytes_for(inflight::budget_min(window.min(64 << 20)));
        self.require(
            plan.inflight_bytes_per_shard >= least,
            "limits.inflight_bytes",
            &values.inflight_bytes.origin,
            format!(
                "at least {}, so that each shard can stream a body with windows of limits.body_window_bytes",
                Bytes(least.saturating_mul(plan.shards)).write()
            ),
        );
        let lag = values.fanout_lag_max.value.0;
        self.require(lag > 0, "fanout_lag_max", &values.fanout_lag_max.origin, "more than 0");
        let connections = plan.connections_max_per_shard;
        self.require(
            (1..=1 << 20).contains(&connections),
            "limits.connections_max",
            &values.connections_max.origin,
            "1 to 1048576 for each shard",
        );
        if (1..=SHARDS_MAX).contains(&plan.shards) {
            self.require(
                plan.fits(),
                "memory_max",
                &values.memory_max.origin,
                format!(
                    "too little is left for L0. Raise memory_max to {} or more, or lower one of the settings at the \
                     right:\n{plan}",
                    Bytes(plan.memory_max_min().div_ceil(MIB).saturating_mul(MIB)).write()
                ),
            );
        }
        if plan.memory_max > machine.memory_bytes {
            let (max, have) = (Bytes(plan.memory_max).write(), Bytes(machine.memory_bytes).write());
            self.warnings.push(format!("memory_max is {max}, above {} ({have})", machine.memory_note));
        }
    }
}

fn assemble(
    values: Values,
    memory: MemoryPlan,
    policy: Arc<Policy>,
    warnings: Vec<String>,
    settings: Vec<SettingValue>,
) -> Config {
    Config {
        profile: values.profile.value,
        shards: memory.shards,
        memory,
        doors: Doors {
            http: values.http_listen.value.0,
            memcached: values.memcached_listen.value.0,
            admin: values.admin_listen.value.0,
            allow_open: values.allow_open.value,
        },
        log: Log { format: values.log_format.value, level: values.log_level.value },
        limits: Limits {
            body_bytes_max: values.body_bytes_max.value.0,
            connections_max_per_shard: memory.connections_max_per_shard,
            body_window_bytes: values.body_window_bytes.value.0,
            fanout_lag_max: values.fanout_lag_max.value.0,
            stop_grace: values.stop_grace.value.0,
        },
        l2: L2 {
            bytes: given(&values.l2_bytes).0,
            paths: given(&values.l2_paths).0,
            object_bytes_mean: values.object_bytes_mean.value.0,
            segment_bytes: given(&values.segment_bytes).0,
            write_buffer_bytes: values.write_buffer_bytes.value.0,
            flush_interval: values.flush_interval.value.0,
        },
        l3: L3 {
            bytes_max: values.l3_bytes_max.value.0,
            disk_reserve: values.disk_reserve.value,
            inline_bytes_max: values.inline_bytes_max.value.0,
            index_cache_bytes: memory.index_cache,
            orphan_age: values.orphan_age.value.0,
            blob_grace: values.blob_grace.value.0,
            tombstone_ttl: values.tombstone_ttl.value.0,
            sweep_interval: values.sweep_interval.value.0,
        },
        policy,
        warnings,
        settings,
        data_dir: values.data_dir.value,
    }
}

#[cfg(test)]
mod tests;
