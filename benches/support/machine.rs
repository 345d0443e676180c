//! The machine under the figures: its processors, its disk, and the processor time a process has used.

use std::{fs, hint::spin_loop, path::Path, sync::mpsc, thread, time::Duration};

use rustix::{
    process::nice,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use super::Failure;

/// `f_type` of a file system in memory, where an fsync costs nothing.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The processors this thread may use.
pub(crate) fn cpus() -> Result<Vec<usize>, Failure> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect())
}

/// The nice value that gives way to everything else.
const NICE_MAX: i32 = 19;

/// Keeps every processor that may be used busy until the process ends, with a thread that gives way to any other.
pub(crate) fn keep_awake() -> Result<(), Failure> {
    for cpu in cpus()? {
        let (started, starts) = mpsc::channel();
        thread::Builder::new().name("awake".into()).spawn(move || {
            let mut only = CpuSet::new();
            only.set(cpu);
            // On Linux the nice value is the thread's own.
            let placed = sched_setaffinity(None, &only).and_then(|()| nice(NICE_MAX).map(drop));
            let failed = placed.is_err();
            if started.send(placed).is_err() || failed {
                return;
            }
            loop {
                spin_loop();
            }
        })?;
        starts.recv()??;
    }
    println!("NOTE      the processors are kept awake");
    Ok(())
}

/// Processor time used so far by all threads below `/proc/.../task` or by the one whose folder is given.
pub(crate) fn cpu_time(proc: &Path) -> Result<Duration, Failure> {
    let used = |folder: &Path| -> Result<u64, Failure> {
        let text = fs::read_to_string(folder.join("schedstat"))?;
        Ok(text.split(' ').next().ok_or("schedstat is empty")?.parse()?)
    };
    if !proc.join("task").is_dir() {
        return Ok(Duration::from_nanos(used(proc)?));
    }
    let mut nanos = 0;
    for task in fs::read_dir(proc.join("task"))? {
        nanos += used(&task?.path())?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Prints what the figures depend on.
pub(crate) fn say_machine(dir: &Path) -> Result<(), Failure> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    println!("machine   {} CPUs to use, {}", cpus()?.len(), model.unwrap_or("of unknown make"));
    if rustix::fs::statfs(dir)?.f_type.cast_unsigned() == TMPFS_MAGIC {
        println!("NOTE      {} is in memory: nothing here is durable; give --dir on a disk", dir.display());
    }
    Ok(())
}
