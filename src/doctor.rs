//! Whether this machine can run a node with these settings, and what to do where it cannot.
//!
//! Owns the checks of `strata doctor`, which `serve` runs before it starts anything. Each says what it found, and
//! what to do about it unless all is well. Facts are gathered in [`examine`]; each judgement is a function of them.
//! Nothing is left behind: probe files have no name or lose it at once.
//!
//! Left to others: whether the settings fit one another (`config`, before this), and taking the data directory
//! (`datadir`).

mod uring;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use engine::device::file::refuse_memory;
use rustix::{
    fs::{Access, Mode, OFlags, access, open},
    io::Errno,
    process::{Resource, getrlimit, setrlimit},
};
use serde_json::{Value, json};

use crate::{
    config::{Config, Disk, disk, files_base},
    datadir,
    human::about_bytes,
};

/// The oldest kernel that glommio runs on.
const KERNEL_MIN: (u32, u32) = (5, 8);

/// Each shard registers its buffers with so many rings, and each counts against RLIMIT_MEMLOCK.
const RINGS: u64 = 3;

/// What direct I/O is aligned to, in bytes.
const PAGE: usize = 4096;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// All is well.
    Ok,
    /// The node runs, but worse than it could.
    Warn,
    /// The node cannot run.
    Fail,
}

impl Status {
    /// `ok`, `warn` or `fail`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do; empty when all is well.
    pub advice: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), advice: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), advice: advice.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), advice: advice.into() }
    }
}

/// Every check. Displayed as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In the order they were made.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst of them.
    #[must_use]
    pub fn status(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }

    /// For programs: `{"status": "ok", "checks": [{"name", "status", "found", "advice"}]}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let check =
            |c: &Check| json!({"name": c.name, "status": c.status.name(), "found": c.found, "advice": c.advice});
        json!({"status": self.status().name(), "checks": self.checks.iter().map(check).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            writeln!(f, "{:<5} {:<18} {}", check.status.name(), check.name, check.found)?;
            if !check.advice.is_empty() {
                writeln!(f, "{:<24} -> {}", "", check.advice)?;
            }
        }
        Ok(())
    }
}

/// Looks at everything. Blocks for some system calls and a few small writes; leaves nothing behind.
#[must_use]
pub fn examine(config: &Config) -> Report {
    let mut checks = vec![
        kernel(rustix::system::uname().release().to_string_lossy().as_ref()),
        ring(sysctl("kernel/io_uring_disabled"), uring::probe()),
        memlock(getrlimit(Resource::Memlock).current, config.shards),
        nofile(getrlimit(Resource::Nofile).maximum, config),
        memory(config),
        data_dir(&config.data_dir),
    ];
    if config.l2.bytes > 0 {
        checks.extend(config.l2.paths.iter().map(|path| direct(path, write_direct(path))));
    }
    checks.extend(disks(config));
    // The memcached door stays closed for now, so whoever has its port may keep it.
    let doors = [("http_listen", config.doors.http), ("admin_listen", config.doors.admin)];
    checks.extend(
        doors.into_iter().filter_map(|(name, address)| address.map(|address| port(name, address, bind(address)))),
    );
    Report { checks }
}

/// Raises the soft limit of open files to the hard one, which a process may always do; gives the limit then in force
/// (`None`: unlimited). Called once at start, before any socket is opened.
///
/// # Errors
/// The system refuses.
pub fn raise_nofile() -> io::Result<Option<u64>> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current)
}

fn sysctl(name: &str) -> Option<u32> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

fn kernel(release: &str) -> Check {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = parts.next().and_then(Result::ok).zip(parts.next().and_then(Result::ok));
    let (major, minor) = KERNEL_MIN;
    match version {
        Some(version) if version >= KERNEL_MIN => Check::ok("kernel", release),
        Some(_) => Check::fail(
            "kernel",
            release,
            format!("run Linux {major}.{minor} or later: older ones lack parts of io_uring"),
        ),
        None => Check::warn(
            "kernel",
            format!("\"{release}\" tells no version"),
            format!("Linux {major}.{minor} or later is needed"),
        ),
    }
}

fn ring(disabled: Option<u32>, probe: Result<(), Errno>) -> Check {
    const NAME: &str = "io_uring";
    let Err(error) = probe else {
        return Check::ok(NAME, "a ring could be set up");
    };
    let found = format!("no ring could be set up: {error}");
    let advice = match (error, disabled) {
        (Errno::PERM, Some(level @ 1..)) => format!(
            "the sysctl kernel.io_uring_disabled is {level}: `sysctl -w kernel.io_uring_disabled=0` as root{}",
            if level == 1 { ", or add this user's group to kernel.io_uring_group" } else { "" }
        ),
        (Errno::PERM | Errno::ACCESS, _) => "something forbids the system call: in a container its seccomp profile \
             (Docker's default does): allow io_uring_setup, io_uring_enter and io_uring_register in a profile of your \
             own, with --security-opt seccomp=FILE"
            .into(),
        (Errno::NOSYS, _) => {
            "the kernel was built without io_uring, or a sandbox (gVisor, an old seccomp profile) hides \
             it: run outside of it, or on a kernel with CONFIG_IO_URING"
                .into()
        }
        (Errno::NOMEM, _) => {
            "too little lockable memory: raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK= in systemd)".into()
        }
        (Errno::MFILE | Errno::NFILE, _) => "too many open files: raise RLIMIT_NOFILE".into(),
        _ => "the node cannot run without io_uring".into(),
    };
    Check::fail(NAME, found, advice)
}

fn memlock(limit: Option<u64>, shards: u64) -> Check {
    const NAME: &str = "RLIMIT_MEMLOCK";
    let count = usize::try_from(shards).unwrap_or(usize::MAX);
    let each = |limit| engine::shard::io_memory(limit, count) as u64;
    let wanted = each(None).saturating_mul(RINGS).saturating_mul(shards).saturating_mul(2);
    let Some(limit) = limit else {
        return Check::ok(NAME, "unlimited");
    };
    let (has, needs) = (each(Some(limit)), each(Some(limit)).saturating_mul(RINGS).saturating_mul(shards));
    let found =
        format!("{}: {} of registered buffers for each of {shards} shards", about_bytes(limit), about_bytes(has));
    if needs <= limit {
        return Check::ok(NAME, found);
    }
    let advice = format!(
        "buffers will not be registered, which costs file I/O up to twice the CPU: allow {} (`ulimit -l`, LimitMEMLOCK= in \
         systemd), or run fewer shards",
        about_bytes(wanted)
    );
    Check::warn(NAME, found, advice)
}

fn nofile(hard: Option<u64>, config: &Config) -> Check {
    const NAME: &str = "RLIMIT_NOFILE";
    let base = files_base(config.shards);
    let wanted = base + config.shards * config.limits.connections_max_per_shard;
    match hard {
        None => Check::ok(NAME, "unlimited"),
        Some(hard) if hard >= wanted => Check::ok(NAME, format!("{hard}, of which {wanted} may be used")),
        Some(hard) if hard > base => Check::warn(
            NAME,
            format!("{hard}; limits.connections_max asks for {wanted}"),
            format!(
                "connections beyond {} a shard will be refused: raise the limit (`ulimit -Hn`, LimitNOFILE= in \
                 systemd), or lower limits.connections_max",
                (hard - base) / config.shards
            ),
        ),
        Some(hard) => Check::fail(
            NAME,
            format!("{hard}; the node itself uses up to {base}"),
            "raise the limit (`ulimit -Hn`, LimitNOFILE= in systemd), or run fewer shards",
        ),
    }
}

/// The plan fits, or there would be no `Config`.
fn memory(config: &Config) -> Check {
    let plan = &config.memory;
    let found = format!(
        "{}: L0 {}, flash index {}, the rest {}",
        about_bytes(plan.memory_max),
        about_bytes(plan.l0_bytes_per_shard * plan.shards),
        about_bytes(plan.l2_index_bytes_per_shard * plan.shards),
        about_bytes(plan.reserved() - plan.l2_index_bytes_per_shard * plan.shards),
    );
    match config.warnings.iter().find(|warning| warning.starts_with("memory_max")) {
        Some(warning) => Check::warn("memory", found, format!("{warning}: lower it, or the kernel may end the node")),
        None => Check::ok("memory", found),
    }
}

fn data_dir(path: &Path) -> Check {
    const NAME: &str = "data_dir";
    let shown = path.display();
    match datadir::inspect(path) {
        Err(error) => Check::fail(NAME, error.to_string(), "a node cannot start on it"),
        Ok(exists) => match if exists { may_write(path) } else { try_make(path) } {
            Ok(()) if exists => Check::ok(NAME, format!("{shown}: free, writable")),
            Ok(()) => Check::ok(NAME, format!("{shown}: will be made")),
            Err(error) => Check::fail(
                NAME,
                format!("{shown}: {error}"),
                "let this user write there, or name another folder with --data-dir",
            ),
        },
    }
}

fn may_write(folder: &Path) -> io::Result<()> {
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Makes a folder where `path` would begin, and removes it: permissions alone do not tell, of root and of file systems
/// that are none.
fn try_make(path: &Path) -> io::Result<()> {
    let probe = nearest(path).join(probe_name());
    fs::create_dir(&probe)?;
    fs::remove_dir(&probe)
}

fn probe_name() -> String {
    format!(".strata-probe-{}", std::process::id())
}

fn direct(path: &Path, tried: io::Result<()>) -> Check {
    const NAME: &str = "O_DIRECT";
    let shown = path.display();
    match tried {
        Ok(()) => Check::ok(NAME, format!("{shown}: a page was written")),
        Err(error) => Check::fail(
            NAME,
            format!("{shown}: {error}"),
            "put l2_paths on a file system with direct I/O (ext4, xfs), or run without flash: l2_bytes = 0",
        ),
    }
}

/// Writes one page past the page cache into a file without a name.
fn write_direct(path: &Path) -> io::Result<()> {
    let folder = nearest(path);
    refuse_memory(folder)?;
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = match open(folder, flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
        // Not every file system has nameless files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
            let name = folder.join(probe_name());
            let file = open(&name, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?;
            fs::remove_file(&name)?;
            file
        }
        other => other?,
    };
    let buffer = vec![0x5a_u8; 2 * PAGE];
    let start = buffer.as_ptr().align_offset(PAGE);
    let written = rustix::io::pwrite(&file, &buffer[start..start + PAGE], 0)?;
    if written == PAGE { Ok(()) } else { Err(io::Error::other(format!("only {written} bytes of {PAGE} were written"))) }
}

/// Room for the flash files and the reserve, by file system.
fn disks(config: &Config) -> Vec<Check> {
    let mut systems: BTreeMap<u64, Room> = BTreeMap::new();
    let paths = &config.l2.paths;
    let used = paths.len().min(usize::try_from(config.shards).unwrap_or(usize::MAX));
    let device = |path: &Path| fs::metadata(nearest(path)).map_or(0, |metadata| metadata.dev());
    if config.l2.bytes > 0 {
        for (i, path) in paths.iter().enumerate().take(used) {
            let shards_here = (config.shards - i as u64).div_ceil(paths.len() as u64);
            let wanted = config.l2.bytes_per_shard(config.shards) * shards_here;
            let room = systems.entry(device(path)).or_insert_with(|| Room::of(path));
            // Flash files that are there already have their room.
            room.wanted += wanted.saturating_sub(bytes_in(path));
        }
    }
    let room = systems.entry(device(&config.data_dir)).or_insert_with(|| Room::of(&config.data_dir));
    room.reserve = room.disk.map(|disk| config.l3.disk_reserve.of(disk.total));
    systems.values().map(Room::judge).collect()
}

/// One file system, and what is asked of it, in bytes.
struct Room {
    path: PathBuf,
    disk: Option<Disk>,
    wanted: u64,
    /// Kept free by durable writes; only where the data directory is.
    reserve: Option<u64>,
}

impl Room {
    fn of(path: &Path) -> Self {
        Self { path: path.into(), disk: disk(path), wanted: 0, reserve: None }
    }

    fn judge(&self) -> Check {
        const NAME: &str = "disk";
        let shown = self.path.display();
        let Some(disk) = self.disk else {
            return Check::warn(NAME, format!("{shown}: its file system cannot be asked"), "see that it has room");
        };
        let mut found = format!("{shown}: {} of {} free", about_bytes(disk.free), about_bytes(disk.total));
        if self.wanted > 0 {
            found += &format!(", flash files take {} more", about_bytes(self.wanted));
        }
        let Some(left) = disk.free.checked_sub(self.wanted) else {
            return Check::fail(NAME, found, "lower l2_bytes, free some room, or name other l2_paths");
        };
        match self.reserve {
            Some(reserve) if left <= reserve => Check::warn(
                NAME,
                format!("{found}; disk_reserve keeps {}", about_bytes(reserve)),
                "durable writes will be refused with 507: free some room, or lower l2_bytes or disk_reserve",
            ),
            _ => Check::ok(NAME, found),
        }
    }
}

/// Bytes allocated to the files of one folder.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|m| m.is_file()).map(|m| m.blocks() * 512).sum()
}

fn bind(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

fn port(name: &'static str, address: SocketAddr, tried: io::Result<()>) -> Check {
    let Err(error) = tried else {
        return Check::ok(name, format!("{address} is free"));
    };
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => format!("another program listens there (`ss -ltnp`): stop it, or set {name}"),
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need CAP_NET_BIND_SERVICE: set {name} to a higher one")
        }
        io::ErrorKind::AddrNotAvailable => format!("no interface of this machine has that address: set {name}"),
        _ => format!("set {name} to another address, or to off"),
    };
    Check::fail(name, format!("{address}: {error}"), advice)
}

/// `path`, or what of it exists.
fn nearest(path: &Path) -> &Path {
    let exists = path.ancestors().find(|path| path.exists());
    // A relative path's last ancestor is empty.
    exists.filter(|path| !path.as_os_str().is_empty()).unwrap_or(if path.is_absolute() {
        Path::new("/")
    } else {
        Path::new(".")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        for (release, status) in [
            ("6.18.0-virt", Status::Ok),
            ("5.8.0", Status::Ok),
            ("5.10", Status::Ok),
            ("5.7.19-generic", Status::Fail),
            ("4.19.0-27-amd64", Status::Fail),
            ("odd", Status::Warn),
            ("", Status::Warn),
        ] {
            assert_eq!(kernel(release).status, status, "{release}");
        }
    }

    #[test]
    fn a_ring_that_is_refused_is_explained() {
        assert_eq!(ring(Some(2), Ok(())).status, Status::Ok);
        for (disabled, error, wanted) in [
            (Some(2), Errno::PERM, "io_uring_disabled is 2: `sysctl -w kernel.io_uring_disabled=0`"),
            (Some(1), Errno::PERM, "io_uring_group"),
            (Some(0), Errno::PERM, "seccomp"),
            (None, Errno::PERM, "seccomp"),
            (None, Errno::NOSYS, "CONFIG_IO_URING"),
            (Some(0), Errno::NOMEM, "LimitMEMLOCK"),
            (Some(0), Errno::MFILE, "RLIMIT_NOFILE"),
            (Some(0), Errno::INVAL, "cannot run"),
        ] {
            let check = ring(disabled, Err(error));
            assert!(check.status == Status::Fail && check.advice.contains(wanted), "{check:?}");
        }
    }

    #[test]
    fn limits() {
        for (limit, shards, status) in
            [(None, 64, Status::Ok), (Some(8 << 20), 2, Status::Ok), (Some(64 << 10), 2, Status::Warn)]
        {
            let check = memlock(limit, shards);
            assert_eq!(check.status, status, "{check:?}");
        }
        let config = Config::tiny(&[("limits.connections_max", "1000"), ("memory_max", "1GiB")]).expect("valid");
        for (hard, status, wanted) in [
            (None, Status::Ok, ""),
            (Some(2320), Status::Ok, ""),
            (Some(2319), Status::Warn, "beyond 999 a shard"),
            (Some(320), Status::Fail, "raise the limit"),
        ] {
            let check = nofile(hard, &config);
            assert!(check.status == status && check.advice.contains(wanted), "{check:?}");
        }
        let raised = raise_nofile().expect("always allowed");
        assert_eq!((getrlimit(Resource::Nofile).current, getrlimit(Resource::Nofile).maximum), (raised, raised));
    }

    #[test]
    fn room() {
        let room =
            |free, wanted, reserve| Room { path: "/x".into(), disk: Some(Disk { total: 1000, free }), wanted, reserve };
        for (room, status) in [
            (room(500, 100, Some(50)), Status::Ok),
            (room(500, 500, None), Status::Ok),
            (room(500, 501, None), Status::Fail),
            (room(500, 450, Some(50)), Status::Warn),
            (Room { disk: None, ..room(0, 0, None) }, Status::Warn),
        ] {
            let check = room.judge();
            assert_eq!(check.status, status, "{check:?}");
        }
    }

    #[test]
    fn ports() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        let check = port("http_listen", address, bind(address));
        assert!(check.status == Status::Fail && check.advice.contains("set http_listen"), "{check:?}");
        drop(taken);
        assert_eq!(port("http_listen", address, bind(address)).status, Status::Ok);
        let nowhere = port("admin_listen", address, bind("192.0.2.1:1".parse().expect("an address")));
        assert!(nowhere.advice.contains("no interface"), "{nowhere:?}");
    }

    #[test]
    fn folders() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/data");
        assert!(data_dir(&path).found.contains("will be made"));
        assert_eq!(nearest(&path), folder.path());
        assert_eq!(nearest(Path::new("no-such-folder/x")), Path::new("."));
        let node = datadir::DataDir::open(&path, (1, 0), 0, &mut || 1).expect("made");
        let check = data_dir(&path);
        assert!(check.status == Status::Fail && check.found.contains("in use by process"), "{check:?}");
        drop(node);
        assert!(data_dir(&path).found.contains("free, writable"));
        fs::write(path.join("identity.json"), "{").expect("written");
        assert!(data_dir(&path).found.contains("identity.json cannot be used"));
        let nowhere = data_dir(Path::new("/proc/no-such-folder/x"));
        assert!(nowhere.status == Status::Fail && nowhere.advice.contains("--data-dir"), "{nowhere:?}");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "no probe is left");
        assert_eq!(direct(&path, Err(Errno::INVAL.into())).status, Status::Fail);
        let memory = Path::new("/dev/shm/no-such-folder");
        let check = direct(memory, write_direct(memory));
        assert!(check.status == Status::Fail && check.advice.contains("l2_bytes = 0"), "{check:?}");
    }

    #[test]
    fn a_report_of_this_machine_is_complete_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_string_lossy().into_owned();
        let doors = [("http_listen", "127.0.0.1:0"), ("admin_listen", "127.0.0.1:0"), ("memcached_listen", "off")];
        let config = Config::tiny(&[&[("data_dir", path.as_str())], &doors[..]].concat()).expect("valid");
        let report = examine(&config);
        let names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
        let wanted = ["kernel", "io_uring", "RLIMIT_MEMLOCK", "RLIMIT_NOFILE", "memory", "data_dir"];
        assert_eq!(names, [&wanted[..], &["O_DIRECT", "disk", "http_listen", "admin_listen"]].concat());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
        let text = report.to_string();
        assert!(text.contains("ok    kernel"), "{text}");
        assert_eq!(report.to_json()["checks"].as_array().expect("a list").len(), names.len());
        for check in &report.checks {
            assert_eq!(check.status == Status::Ok, check.advice.is_empty(), "{check:?}");
        }
    }
}
