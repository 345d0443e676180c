//! The policy in force, kept across restarts.
//!
//! The change made last wins, wherever it was made. `policy.json` holds the policy in force with its version, and
//! the configured policy (`[policy]`, environment, flags) of the start it was written under. As long as the
//! configuration says the same, a start takes the file's policy; when the configuration says something new, that is
//! the later change and takes its place. What lost is told, and kept as `policy.json.old` if the admin API made it.
//!
//! With the policy the file remembers the mode of every declared namespace. A configured policy that gives one another
//! mode, or no longer declares one that is a cache, is refused, and the file left as it is. In a run without flash it
//! may give a cache up: that run holds nothing of it, and flash that misses a run brings nothing cached back.
//!
//! Versions grow by one with each change and never go back, so that an `ETag` names one policy for ever.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{DataDir, DataDirError, FORMAT, read_json, write_json};
use crate::policy::{Policy, VersionedPolicy};

const FILE: &str = "policy.json";

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    version: u64,
    policy: Value,
    configured: Value,
}

/// Where the policy in force is kept. Cheap to clone; writes block on the disk, and their order is the caller's.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    dir: PathBuf,
    configured: Arc<Policy>,
}

impl PolicyFile {
    /// The policy to start with, out of what is kept and what is configured, and a line for the log if one of them
    /// lost. `flash`: this run has an L2. Called once, at start; writes nothing, see [`PolicyFile::begin`].
    ///
    /// # Errors
    /// The file is damaged or newer or cannot be read, or the configured policy changes a namespace's mode.
    pub fn open(
        dir: &DataDir,
        configured: Arc<Policy>,
        flash: bool,
    ) -> Result<(Self, VersionedPolicy, Option<String>), DataDirError> {
        let this = Self { dir: dir.path().into(), configured };
        let path = this.dir.join(FILE);
        let Some(kept) = read_json::<Kept>(&path)? else {
            let first = VersionedPolicy { version: 1, policy: Arc::clone(&this.configured) };
            return Ok((this, first, None));
        };
        let [policy, basis] = [read(&path, &kept.policy)?, read(&path, &kept.configured)?];
        if basis == *this.configured {
            let line = (policy != basis).then(|| {
                format!(
                    "the policy is version {} from {}, changed through the admin API since it was configured; change \
                     the configured policy to leave it",
                    kept.version,
                    path.display()
                )
            });
            let policy = VersionedPolicy { version: kept.version, policy: Arc::new(policy) };
            return Ok((this, policy, line));
        }
        this.configured.keeps_modes_of(&policy, flash).map_err(|refused| DataDirError::Mode {
            setting: setting(&refused.pointer),
            reason: refused.message,
            file: path.clone(),
        })?;
        let next = VersionedPolicy { version: kept.version.saturating_add(1), policy: Arc::clone(&this.configured) };
        let line = (policy != basis).then(|| {
            format!(
                "the configured policy has changed and takes the place of version {}, which the admin API had made; \
                 that is kept in {}.old",
                kept.version,
                path.display()
            )
        });
        Ok((this, next, line))
    }

    /// Keeps the policy that [`PolicyFile::open`] gave, and what it takes the place of; called when nothing speaks
    /// against the start any more, so that one that is refused forgets no mode and records none, and after the run is
    /// recorded: a cache that was given up must not be found by a start that does not know of the run without flash.
    ///
    /// # Errors
    /// The system refuses; the policy kept before is still there.
    pub fn begin(&self, policy: &VersionedPolicy) -> Result<(), DataDirError> {
        match read_json::<Kept>(&self.dir.join(FILE))? {
            Some(kept) if kept.version == policy.version => return Ok(()),
            Some(kept) if kept.policy != kept.configured => write_json(&self.dir, &format!("{FILE}.old"), &kept)?,
            _ => {}
        }
        self.save(policy)
    }

    /// Keeps `policy`, durably. The admin door answers a change only after this.
    ///
    /// # Errors
    /// The system refuses; the policy kept before is still there.
    pub fn save(&self, policy: &VersionedPolicy) -> Result<(), DataDirError> {
        let kept = Kept {
            format: FORMAT,
            version: policy.version,
            policy: policy.policy.to_json(),
            configured: self.configured.to_json(),
        };
        write_json(&self.dir, FILE, &kept)
    }
}

/// The setting at a pointer into the policy.
fn setting(pointer: &str) -> String {
    format!("policy{}", pointer.replace('/', "."))
}

fn read(file: &Path, value: &Value) -> Result<Policy, DataDirError> {
    Policy::from_json(value).map_err(|e| DataDirError::Unusable { file: file.into(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Node {
        folder: tempfile::TempDir,
    }

    impl Node {
        fn start(&self, configured: &Value) -> (PolicyFile, VersionedPolicy, Option<String>) {
            let dir = DataDir::open(self.folder.path(), (1, 0), 0, &mut || 0).expect("opened");
            let opened = PolicyFile::open(&dir, policy(configured), true).expect("readable");
            opened.0.begin(&opened.1).expect("kept");
            opened
        }
    }

    fn policy(value: &Value) -> Arc<Policy> {
        Arc::new(Policy::from_json(value).expect("valid"))
    }

    #[test]
    fn the_change_made_last_wins() {
        let node = Node { folder: tempfile::tempdir().expect("a folder") };
        let (a, b, c) = (json!({}), json!({"l0_max": 2}), json!({"l0_max": 3}));
        let is = |(_, got, line): &(PolicyFile, VersionedPolicy, Option<String>), version, value: &Value| {
            assert_eq!((got.version, &got.policy), (version, &policy(value)), "{line:?}");
        };
        let first = node.start(&a);
        is(&first, 1, &a);
        assert_eq!(first.2, None);
        first.0.save(&VersionedPolicy { version: 2, policy: policy(&b) }).expect("saved");

        let kept = node.start(&a);
        is(&kept, 2, &b);
        assert!(kept.2.expect("a line").contains("version 2"));

        let edited = node.start(&c);
        is(&edited, 3, &c);
        assert!(edited.2.expect("a line").contains("policy.json.old"));
        let old = std::fs::read_to_string(node.folder.path().join("policy.json.old")).expect("kept");
        assert!(old.contains("\"l0_max\": 2"), "{old}");

        let again = node.start(&c);
        is(&again, 3, &c);
        assert_eq!(again.2, None);

        let quietly = node.start(&a);
        is(&quietly, 4, &a);
        assert_eq!(quietly.2, None, "the admin API changed nothing");
    }

    #[test]
    fn a_configured_policy_changes_no_mode() {
        let node = Node { folder: tempfile::tempdir().expect("a folder") };
        let cache = json!({"mode": "cache_only"});
        let configured = json!({"namespaces": {"a": cache, "b": {}}});
        let (file, ..) = node.start(&configured);
        let made = policy(&json!({"namespaces": {"a": cache, "b": {}, "made": cache}}));
        file.save(&VersionedPolicy { version: 2, policy: made }).expect("saved");
        let path = node.folder.path().join(FILE);
        let before = std::fs::read_to_string(&path).expect("kept");
        for (configured, setting) in [
            (json!({"namespaces": {"a": {}, "b": {}, "made": cache}}), "policy.namespaces.a.mode"),
            (json!({"namespaces": {"a": cache, "b": cache, "made": cache}}), "policy.namespaces.b.mode"),
            // What the admin API made is known here, and the configured policy would take it back.
            (json!({"l0_max": 2, "namespaces": {"a": cache, "b": {}}}), "policy.namespaces.made.mode"),
        ] {
            let dir = DataDir::open(node.folder.path(), (1, 0), 0, &mut || 0).expect("opened");
            let message = PolicyFile::open(&dir, policy(&configured), true).expect_err(setting).to_string();
            assert!(message.starts_with(&format!("{setting}: ")) && message.contains(FILE), "{message}");
            assert_eq!(std::fs::read_to_string(&path).expect("there"), before, "{setting}");
        }
        let dir = DataDir::open(node.folder.path(), (1, 0), 0, &mut || 0).expect("opened");
        for (without, allowed) in
            [(json!({"namespaces": {"b": {}}}), true), (json!({"namespaces": {"b": cache}}), false)]
        {
            assert_eq!(PolicyFile::open(&dir, policy(&without), false).is_ok(), allowed, "{without} without flash");
        }
        drop(dir);
        let (_, kept, _) = node.start(&configured);
        assert_eq!(kept.version, 2);
        let (_, next, _) = node.start(&json!({"l0_max": 2, "namespaces": {"a": cache, "made": cache}}));
        assert_eq!(next.version, 3, "a durable namespace need not be declared");
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let node = Node { folder: tempfile::tempdir().expect("a folder") };
        node.start(&json!({}));
        let path = node.folder.path().join(FILE);
        let good = std::fs::read_to_string(&path).expect("kept");
        for (text, wanted) in [
            ("{".to_string(), "not JSON"),
            (good.replace("\"format\": 1", "\"format\": 9"), "has format 9"),
            (good.replace("\"l0_max\": 2097152", "\"l0_max\": -2"), "policy/l0_max"),
        ] {
            std::fs::write(&path, &text).expect("written");
            let dir = DataDir::open(node.folder.path(), (1, 0), 0, &mut || 0).expect("opened");
            let message = PolicyFile::open(&dir, policy(&json!({"l0_max": 5})), true).expect_err(&text).to_string();
            assert!(message.contains(wanted) && message.contains("policy.json"), "{text}: {message}");
            assert_eq!(std::fs::read_to_string(&path).expect("there"), text);
        }
    }
}
