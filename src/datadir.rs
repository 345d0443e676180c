//! The data directory: who owns it, and what it says of itself.
//!
//! Owns three files. `LOCK` is locked (flock) as long as a node runs and holds its process id. `identity.json` says
//! the format of the directory, the node's id and hash seed (both fixed for its life), and what the last run was
//! like. `policy.json` is the policy in force ([`PolicyFile`]). The JSON files are replaced whole: temporary name,
//! fsync, rename, fsync of the folder.
//!
//! Invariants: at most one node runs on a directory; a directory that is not understood (newer, damaged, or
//! somebody else's) is refused before anything in it is changed.
//!
//! Left to others: what is inside `l2/` and `l3/`, and what a changed number of shards means for it.

mod policy;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

pub use self::policy::PolicyFile;
use crate::version::NODE_ID_MAX;

/// The format this program writes, and the only one it reads.
pub const FORMAT: u32 = 1;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "identity.json";

/// Largest JSON file of the directory, in bytes.
const JSON_BYTES_MAX: u64 = 16 << 20;

/// Why a data directory is refused. Each names a file or folder.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error("{dir} is in use by {}; one node at a time", .pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}")))]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, if the lock file says so.
        pid: Option<u32>,
    },
    /// Written by a later program.
    #[error("{file} has format {found}, and this program knows {FORMAT}: start the newer program it was written by")]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Not what it should be.
    #[error("{file} cannot be used: {reason}. Nothing was changed; restore it, or name another data_dir")]
    Unusable {
        /// The file or folder.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The configured policy gives a namespace another mode than it has here. Nothing was changed.
    #[error("{setting}: {reason} ({file} remembers it)")]
    Mode {
        /// The setting.
        setting: String,
        /// What is wrong with it.
        reason: String,
        /// Where the mode is remembered.
        file: PathBuf,
    },
    /// The system refused.
    #[error("cannot {operation} {file}: {source}")]
    Io {
        /// `create`, `read`, `write`, `lock`.
        operation: &'static str,
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DataDirError {
    fn io(operation: &'static str, file: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { operation, file, source }
    }
}

/// What a data directory says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    format: u32,
    /// Random, in hex; names the node in logs and decides ties between versions.
    #[serde(with = "hex")]
    pub node_id: u64,
    /// Seed of every key's hash.
    #[serde(with = "hex")]
    pub hash_seed: u64,
    /// When the directory was made: milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Shards of the last run. For people: each flash log says for how many it was made.
    pub shards: u64,
    /// `l2_bytes` of the last run that had flash; 0 if none had.
    pub l2_bytes: u64,
    /// The last run that served, by a random number; 0 if none has. What was not there in that run (a flash log) has
    /// missed what was written and removed in it.
    #[serde(with = "hex", default)]
    pub run: u64,
}

impl Identity {
    /// The node id as it fits into a version.
    #[must_use]
    pub fn version_node(&self) -> u16 {
        u16::try_from(self.node_id & u64::from(NODE_ID_MAX)).unwrap_or_default()
    }
}

/// 64 bits as text: JSON numbers of other programs have 53.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(|_| D::Error::custom(format!("\"{text}\" is not 16 hex digits")))
    }
}

/// A data directory that this process owns. Dropping it lets the next node in.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    fresh: bool,
    /// Held for their locks: the directory's, and those of claimed folders.
    locks: Vec<File>,
}

impl DataDir {
    /// Takes possession of `path`, making it if it is not there; called once, at start, and blocks on the disk.
    /// `shards` and `l2_bytes` are recorded only in a new directory: see [`DataDir::record_run`].
    ///
    /// # Errors
    /// Another node has it, it is not understood, or the system refuses; nothing was changed then.
    pub fn open(
        path: &Path,
        (shards, l2_bytes): (u64, u64),
        now_ms: u64,
        random: &mut impl FnMut() -> u64,
    ) -> Result<Self, DataDirError> {
        fs::create_dir_all(path).map_err(DataDirError::io("create", path))?;
        check_ours(path)?;
        let mut lock = lock(path)?;
        // Under the lock: another node may have made it since.
        let file = path.join(IDENTITY);
        let (identity, fresh) = match read_json::<Identity>(&file)? {
            Some(identity) => (identity, false),
            None => {
                check_ours(path)?;
                let [node_id, hash_seed] = [random(), random()];
                (Identity { format: FORMAT, node_id, hash_seed, created_ms: now_ms, shards, l2_bytes, run: 0 }, true)
            }
        };
        if identity.shards == 0 {
            return Err(DataDirError::Unusable { file, reason: "it says that the last run had no shards".into() });
        }
        sign(&mut lock, path)?;
        let dir = Self { path: path.into(), identity, fresh, locks: vec![lock] };
        if fresh {
            dir.write_identity()?;
        }
        Ok(dir)
    }

    /// Takes possession of further folders, making them if they are not there: flash files may live outside of the
    /// directory, where another node's settings may point, too.
    ///
    /// # Errors
    /// Another node has one of them, or the system refuses.
    pub fn claim(&mut self, folders: &[PathBuf]) -> Result<(), DataDirError> {
        for folder in folders {
            fs::create_dir_all(folder).map_err(DataDirError::io("create", folder))?;
            let mut lock = lock(folder)?;
            sign(&mut lock, folder)?;
            self.locks.push(lock);
        }
        Ok(())
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it was made by this [`DataDir::open`].
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Records what this run is like, durably: after everything the node needs is open, and before it serves.
    ///
    /// # Errors
    /// The system refuses.
    pub fn record_run(&mut self, shards: u64, l2_bytes: u64, run: u64) -> Result<(), DataDirError> {
        let l2_bytes = if l2_bytes > 0 { l2_bytes } else { self.identity.l2_bytes };
        self.identity = Identity { shards, l2_bytes, run, ..self.identity.clone() };
        self.write_identity()
    }

    fn write_identity(&self) -> Result<(), DataDirError> {
        write_json(&self.path, IDENTITY, &self.identity)
    }
}

/// `l2_bytes` of the last run in `data_dir`, if it can be told and was not 0. Takes no lock and judges nothing.
#[must_use]
pub fn l2_bytes_before(data_dir: &Path) -> Option<u64> {
    let identity = read_json::<Identity>(&data_dir.join(IDENTITY)).ok()??;
    Some(identity.l2_bytes).filter(|bytes| *bytes > 0)
}

/// Whether `data_dir` exists, and could be opened as far as can be told without changing anything.
///
/// # Errors
/// As [`DataDir::open`] would give.
pub fn inspect(data_dir: &Path) -> Result<bool, DataDirError> {
    match fs::metadata(data_dir) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(DataDirError::io("read", data_dir)(e)),
    }
    check_ours(data_dir)?;
    if let Some(pid) = holder(data_dir)? {
        return Err(DataDirError::Locked { dir: data_dir.into(), pid });
    }
    read_json::<Identity>(&data_dir.join(IDENTITY))?;
    Ok(true)
}

/// The process that holds `data_dir`, if one does: `Some(None)` when it does not say which. Changes nothing.
///
/// # Errors
/// The lock file is there and cannot be opened.
fn holder(data_dir: &Path) -> Result<Option<Option<u32>>, DataDirError> {
    let path = data_dir.join(LOCK);
    match File::open(&path) {
        Ok(file) if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() => Ok(None),
        Ok(mut file) => Ok(Some(pid_in(&mut file))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(DataDirError::io("lock", path)(e)),
    }
}

/// Refuses a folder without identity that holds anything: it is somebody else's, or lost what makes it ours.
fn check_ours(path: &Path) -> Result<(), DataDirError> {
    if path.join(IDENTITY).exists() {
        return Ok(());
    }
    let entries = fs::read_dir(path).map_err(DataDirError::io("read", path))?;
    for entry in entries {
        let name = entry.map_err(DataDirError::io("read", path))?.file_name();
        let name = name.to_string_lossy();
        // What a crash may leave of the first start, and what a fresh file system holds.
        if ![LOCK, "identity.json.tmp", "lost+found"].contains(&&*name) {
            let reason = format!("it holds \"{name}\" but no {IDENTITY}, so it is not known to be a data directory");
            return Err(DataDirError::Unusable { file: path.into(), reason });
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let file = path.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file);
    let mut lock = open.map_err(DataDirError::io("lock", &file))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DataDirError::Locked { dir: path.into(), pid: pid_in(&mut lock) }),
        Err(e) => Err(DataDirError::io("lock", file)(e.into())),
    }
}

/// Writes this process's id into a lock it holds.
fn sign(lock: &mut File, folder: &Path) -> Result<(), DataDirError> {
    let signed = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    signed.map_err(DataDirError::io("write", folder.join(LOCK)))
}

fn pid_in(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Reads a JSON file of this directory; `None` if it is not there.
fn read_json<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<Option<T>, DataDirError> {
    let unusable = |reason: String| DataDirError::Unusable { file: file.into(), reason };
    let mut bytes = Vec::new();
    match File::open(file) {
        Ok(open) => open.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(DataDirError::io("read", file))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(DataDirError::io("read", file)(e)),
    };
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(unusable(format!("it is larger than {JSON_BYTES_MAX} bytes")));
    }
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| unusable(format!("not JSON: {e}")))?;
    // The format first: a newer file may have other fields.
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(0) | None => return Err(unusable("it does not say its format".into())),
        Some(found) => return Err(DataDirError::Newer { file: file.into(), found }),
    }
    serde_json::from_value(value).map(Some).map_err(|e| unusable(e.to_string()))
}

/// Replaces a file of `dir` so that after a crash the old or the new one is there, whole.
fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<(), DataDirError> {
    let (file, temporary) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| DataDirError::io("write", &file)(e.into()))?;
    bytes.push(b'\n');
    let write = || -> io::Result<()> {
        let mut open = File::create(&temporary)?;
        open.write_all(&bytes)?;
        open.sync_all()?;
        fs::rename(&temporary, &file)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(DataDirError::io("write", &file))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn open(path: &Path) -> Result<DataDir, DataDirError> {
        let mut seed = 0x0123_4567_89ab_cdef_u64;
        DataDir::open(path, (2, 1 << 30), 1_700_000_000_000, &mut || {
            seed = seed.rotate_left(8) ^ 0xff;
            seed
        })
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    /// Every file with its bytes, without the lock.
    fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry"));
        let files = entries.filter(|entry| entry.file_name() != LOCK && entry.path().is_file());
        files.map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).expect("readable"))).collect()
    }

    #[test]
    fn identity_is_made_once_and_kept() {
        let folder = folder();
        let path = folder.path().join("a/b");
        let first = open(&path).expect("made");
        assert!(first.is_fresh());
        let identity = first.identity().clone();
        assert!(identity.node_id != identity.hash_seed && identity.version_node() <= NODE_ID_MAX);
        drop(first);
        let second = DataDir::open(&path, (7, 0), 5, &mut || 9).expect("opened");
        assert!(!second.is_fresh());
        assert_eq!(*second.identity(), identity);
        assert_eq!(contents(&path).keys().collect::<Vec<_>>(), ["identity.json"]);
    }

    #[test]
    fn a_second_node_is_told_who_has_it() {
        let folder = folder();
        let first = open(folder.path()).expect("made");
        let message = open(folder.path()).expect_err("locked").to_string();
        let pid = std::process::id();
        assert!(message.contains(&format!("process {pid}")) && message.contains(&*folder.path().to_string_lossy()));
        assert_eq!(holder(folder.path()).expect("readable"), Some(Some(pid)));
        drop(first);
        assert_eq!(holder(folder.path()).expect("readable"), None);
        open(folder.path()).expect("free again");
    }

    #[test]
    fn two_nodes_do_not_share_a_flash_folder() {
        let folder = folder();
        let flash = [folder.path().join("disk1/l2"), folder.path().join("disk2/l2")];
        let mut one = open(&folder.path().join("one")).expect("made");
        one.claim(&flash).expect("free");
        let mut two = open(&folder.path().join("two")).expect("made");
        let message = two.claim(&flash[1..]).expect_err("taken").to_string();
        assert!(message.contains("disk2/l2 is in use by process"), "{message}");
        drop(one);
        two.claim(&flash).expect("free again");
    }

    #[test]
    fn what_is_not_understood_is_refused_and_left_alone() {
        let good = {
            let folder = folder();
            open(folder.path()).expect("made");
            fs::read_to_string(folder.path().join(IDENTITY)).expect("written")
        };
        for (text, wanted) in [
            (String::new(), "not JSON"),
            ("{".into(), "not JSON"),
            ("{}".into(), "does not say its format"),
            ("[1]".into(), "does not say its format"),
            (good.replace("\"format\": 1", "\"format\": 2"), "has format 2, and this program knows 1"),
            (good.replace("\"format\": 1", "\"format\": 2, \"later\": true"), "has format 2"),
            (good.replace("\"format\": 1", "\"format\": 0"), "does not say its format"),
            (good.replace("\"format\": 1", "\"format\": \"1\""), "does not say its format"),
            (good.replace("\"shards\": 2", "\"shards\": 0"), "no shards"),
            (good.replace("\"shards\": 2,", ""), "missing field `shards`"),
            (good.replace("\"shards\": 2", "\"shards\": 2, \"x\": 1"), "unknown field `x`"),
            (good.replace("\"hash_seed\": \"", "\"hash_seed\": \"z"), "is not 16 hex digits"),
        ] {
            let folder = folder();
            fs::write(folder.path().join(IDENTITY), &text).expect("written");
            fs::create_dir(folder.path().join("l3")).expect("made");
            fs::write(folder.path().join("data"), "precious").expect("written");
            let before = contents(folder.path());
            let message = open(folder.path()).expect_err(&text).to_string();
            assert!(message.contains(wanted) && message.contains(IDENTITY), "{text}: {message}");
            assert_eq!(contents(folder.path()), before, "{text}");
        }
    }

    #[test]
    fn a_folder_that_is_not_ours_is_refused() {
        let folder = folder();
        fs::write(folder.path().join("photo.jpg"), "x").expect("written");
        let message = open(folder.path()).expect_err("not ours").to_string();
        assert!(message.contains("photo.jpg") && message.contains("not known to be a data directory"), "{message}");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "not even a lock");
        let file = folder.path().join("photo.jpg");
        assert!(matches!(open(&file), Err(DataDirError::Io { operation: "create", .. })));
    }

    #[test]
    fn a_first_start_that_was_cut_short_is_begun_again() {
        let folder = folder();
        fs::write(folder.path().join("identity.json.tmp"), "{").expect("written");
        fs::write(folder.path().join(LOCK), "99999\n").expect("written");
        fs::create_dir(folder.path().join("lost+found")).expect("made");
        assert!(open(folder.path()).expect("begun again").is_fresh());
    }

    #[test]
    fn a_run_is_known_when_it_was_recorded() {
        let folder = folder();
        assert_eq!(l2_bytes_before(folder.path()), None);
        drop(open(folder.path()).expect("made"));
        let mut dir = DataDir::open(folder.path(), (3, 7), 0, &mut || 0).expect("opened");
        assert_eq!((dir.identity().shards, dir.identity().run), (2, 0), "opening records nothing");
        dir.record_run(3, 7, 11).expect("written");
        drop(dir);
        let mut dir = open(folder.path()).expect("opened");
        assert_eq!((dir.identity().shards, dir.identity().run), (3, 11));
        assert_eq!(l2_bytes_before(folder.path()), Some(7));
        dir.record_run(3, 0, 12).expect("written");
        assert_eq!(l2_bytes_before(folder.path()), Some(7), "a run without flash says nothing of its size");
    }
}
