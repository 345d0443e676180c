//! The shards' flash logs before they are opened: where they are, and what an earlier run left there.
//!
//! Owns the decision which files are of use. Every header is read before anything of the node is opened for writing,
//! so that a start which is refused leaves the data directory as it was. A log made for other shards, another
//! `l2_bytes` or another segment size is dropped, loudly, once nothing speaks against the start: no key in it would
//! be found, or its index would not be the one that `memory_max` was divided for.
//!
//! Left to others: what is inside a log, and what its records are worth after the runs it missed (`engine::log`).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use engine::{
    device::PAGE,
    log::{self, Header, OpenError, Run, format::Layout, supersede::RingFile},
};

use super::shard::LogSeed;
use crate::{config::Config, datadir::Identity};

/// Why the flash logs of the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// A file is damaged or newer.
    #[error("L2 cannot be opened, and nothing was changed. Without the file L2 begins empty; L3 does not need it")]
    Log(#[from] OpenError),
    /// A superseding ring cannot be read, or is newer.
    #[error("L2 cannot be opened, and nothing was changed")]
    Ring(#[source] io::Error),
    /// Another node's file.
    #[error("{} was written by another node (data directory); name another folder in l2_paths", .file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// The system refuses.
    #[error("cannot {operation} {}", .file.display())]
    Io {
        /// `create`, `read`, `remove`.
        operation: &'static str,
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl LogsError {
    fn io(operation: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, file: file.into(), source }
    }
}

/// The logs of a node that is about to start.
pub(super) struct Logs {
    seeds: Vec<Option<LogSeed>>,
    /// What is of no use, and why.
    drops: Vec<(PathBuf, String)>,
}

impl Logs {
    /// Reads what is there. Blocks for a few system calls a file; changes nothing.
    ///
    /// # Errors
    /// A file is not one of ours, damaged, or newer than this program.
    pub(super) fn inspect(config: &Config, identity: &Identity, run: Run) -> Result<Self, LogsError> {
        let l2 = &config.l2;
        if l2.bytes == 0 {
            return Ok(Self { seeds: (0..config.shards).map(|_| None).collect(), drops: Vec::new() });
        }
        let boot = boot_id();
        let bytes = l2.bytes_per_shard(config.shards) / PAGE as u64 * PAGE as u64;
        let seeds: Vec<_> = (0..config.shards)
            .map(|shard| {
                let folder = &l2.paths[usize::try_from(shard).unwrap_or(0) % l2.paths.len()];
                let file = |kind: &str| folder.join(format!("shard-{shard:03}.{kind}"));
                LogSeed { file: file("log"), ring: file("ring"), bytes, boot, run }
            })
            .collect();
        let mut drops = Vec::new();
        for file in found(&l2.paths)? {
            let shard = seeds.iter().position(|seed| seed.file == file);
            let header = log::inspect(&file)?;
            if header.as_ref().is_some_and(|header| header.hash_seed != identity.hash_seed) {
                return Err(LogsError::Foreign { file });
            }
            RingFile::inspect(&file.with_extension("ring")).map_err(LogsError::Ring)?;
            if let Some(why) = why_not(config, bytes, shard, header.as_ref(), length(&file)?) {
                drops.push((file, why));
            }
        }
        Ok(Self { seeds: seeds.into_iter().map(Some).collect(), drops })
    }

    /// Removes what is of no use and makes the folders.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn prepare(self) -> Result<Vec<Option<LogSeed>>, LogsError> {
        for (file, why) in &self.drops {
            tracing::warn!(file = %file.display(), "{why}: this flash log is dropped and fills anew; L3 is kept");
            for file in [file.clone(), file.with_extension("ring")] {
                match fs::remove_file(&file) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(LogsError::io("remove", &file)(error));
                    }
                    _ => {}
                }
            }
        }
        for folder in self.seeds.iter().flatten().filter_map(|seed| seed.file.parent()) {
            fs::create_dir_all(folder).map_err(LogsError::io("create", folder))?;
        }
        Ok(self.seeds)
    }
}

/// Why a log is of no use to this run, if so. `bytes` is the length it should have, `length` the one it has.
fn why_not(config: &Config, bytes: u64, shard: Option<usize>, header: Option<&Header>, length: u64) -> Option<String> {
    // Its making was interrupted: nothing was ever kept in it.
    let Some(header) = header else { return (length != bytes).then(|| "it was never finished".into()) };
    let shards = u64::from(header.shards);
    if shards != config.shards {
        return Some(format!("the number of shards has changed from {shards} to {}", config.shards));
    }
    if shard.and_then(|shard| u32::try_from(shard).ok()) != Some(header.shard) {
        return Some(format!("l2_paths has changed, and shard {}'s log is elsewhere now", header.shard));
    }
    if header.file_bytes != bytes {
        return Some(format!("l2_bytes has changed, and a log has {bytes} bytes now instead of {}", header.file_bytes));
    }
    let asked = u32::try_from(config.l2.segment_bytes).ok().filter(|bytes| *bytes > 0);
    let (segment_bytes, _) = Layout::choose(bytes, asked)?;
    let before = header.segment_bytes;
    (before != segment_bytes).then(|| format!("l2.segment_bytes has changed from {before} to {segment_bytes}"))
}

/// Every log file in the folders.
fn found(folders: &[PathBuf]) -> Result<Vec<PathBuf>, LogsError> {
    let mut files = Vec::new();
    for folder in folders {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(LogsError::io("read", folder))?,
        };
        for entry in entries {
            let file = entry.map_err(LogsError::io("read", folder))?.path();
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("shard-") && name.ends_with(".log") {
                files.push(file);
            }
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn length(file: &Path) -> Result<u64, LogsError> {
    Ok(fs::metadata(file).map_err(LogsError::io("read", file))?.len())
}

/// The kernel's name for this boot; all zero where it gives none, which the log takes for another boot every time.
fn boot_id() -> [u8; 16] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&hex, 16).map(u128::to_be_bytes).unwrap_or_default()
}
