//! What the machine offers: CPUs, memory, disk. Defaults are worked out from it.
//!
//! Facts only, read once; every one may be missing. Left to others: what is made of them (`config`), and whether
//! the machine is fit to run a node (`doctor`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, getrlimit};

/// The memory assumed when nothing says how much there is, in bytes.
const MEMORY_BYTES_UNKNOWN: u64 = 1 << 30;

/// A version 1 cgroup without a limit reports a number near 2^63.
const CGROUP_V1_UNLIMITED: u64 = 1 << 60;

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// What this user may still write, in bytes.
    pub free: u64,
}

/// What the machine offers.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs that this process may run on.
    pub cpus: u64,
    /// Memory in bytes: the tightest limit of the process's control groups, or what is installed.
    pub memory_bytes: u64,
    /// Where that number is from, for people.
    pub memory_note: String,
    /// Memory that the process may lock, in bytes; `None`: unlimited.
    pub memlock: Option<u64>,
    /// Files that the process may open once it has raised its soft limit; `None`: unlimited.
    pub nofile: Option<u64>,
    /// The file system that holds a path, which need not exist yet.
    pub disk: fn(&Path) -> Option<Disk>,
    /// `l2_bytes` of the last run in a data directory, if it used flash.
    pub l2_bytes_before: fn(&Path) -> Option<u64>,
}

impl Machine {
    /// Looks. Reads a few files of /proc and /sys; never fails.
    #[must_use]
    pub fn probe() -> Self {
        let (memory_bytes, memory_note) = memory(Path::new("/"));
        let cpus = engine::shard::allowed_cpus().map_or(1, |cpus| cpus.len().max(1) as u64);
        let memlock = getrlimit(Resource::Memlock).current;
        let nofile = getrlimit(Resource::Nofile).maximum;
        let l2_bytes_before = crate::datadir::l2_bytes_before;
        Self { cpus, memory_bytes, memory_note, memlock, nofile, disk, l2_bytes_before }
    }
}

/// The file system that holds `path` or its nearest ancestor that exists.
#[must_use]
pub fn disk(path: &Path) -> Option<Disk> {
    let path = std::path::absolute(path).ok()?;
    let stat = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok())?;
    Some(Disk { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
}

/// Memory in bytes and its source, from the files below `root`.
fn memory(root: &Path) -> (u64, String) {
    let installed = mem_total(root);
    match (cgroup_limit(root), installed) {
        (Some(limit), Some(installed)) if limit >= installed => (installed, "the machine's memory".into()),
        (Some(limit), _) => (limit, "the cgroup's limit".into()),
        (None, Some(installed)) => (installed, "the machine's memory".into()),
        (None, None) => (MEMORY_BYTES_UNKNOWN, "nothing says how much memory there is; 1 GiB is assumed".into()),
    }
}

fn mem_total(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit on the way from the process's group to the root, of either version.
fn cgroup_limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
        let (mount, file) = match (id, controllers) {
            ("0", "") => ("sys/fs/cgroup", "memory.max"),
            (_, controllers) if controllers.split(',').any(|c| c == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let group = PathBuf::from(group.trim_start_matches('/'));
        let read = |group: &Path| -> Option<u64> {
            fs::read_to_string(root.join(mount).join(group).join(file)).ok()?.trim().parse().ok()
        };
        group.ancestors().filter_map(read).filter(|limit| *limit < CGROUP_V1_UNLIMITED).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (u64, String) {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("written");
        }
        memory(root.path())
    }

    #[test]
    fn memory_is_the_tightest_limit() {
        let installed = ("proc/meminfo", "MemFree: 1 kB\nMemTotal:   8 kB\n");
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        let v1 = ("proc/self/cgroup", "7:cpu:/x\n4:memory:/a\n");
        for (files, bytes, note) in [
            (vec![installed], 8192, "machine"),
            (vec![installed, v2], 8192, "machine"),
            (vec![installed, v2, ("sys/fs/cgroup/a/b/memory.max", "4096\n")], 4096, "cgroup"),
            (
                vec![installed, v2, ("sys/fs/cgroup/a/b/memory.max", "4096"), ("sys/fs/cgroup/a/memory.max", "1024")],
                1024,
                "cgroup",
            ),
            (vec![installed, v2, ("sys/fs/cgroup/a/b/memory.max", "max\n")], 8192, "machine"),
            (vec![installed, v2, ("sys/fs/cgroup/a/memory.max", "9000\n")], 8192, "machine"),
            (vec![installed, v1, ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2048")], 2048, "cgroup"),
            (
                vec![installed, v1, ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712")],
                8192,
                "machine",
            ),
            (vec![("proc/meminfo", "garbage")], 1 << 30, "assumed"),
        ] {
            let got = machine(&files);
            assert!(got.0 == bytes && got.1.contains(note), "{files:?}: {got:?}");
        }
    }

    #[test]
    fn this_machine_has_something() {
        let machine = Machine::probe();
        assert!(machine.cpus > 0 && machine.memory_bytes > 1 << 20, "{machine:?}");
        let disk = disk(Path::new("/no/such/folder")).expect("the root's");
        assert!(disk.total >= disk.free && disk.total > 0);
    }
}
