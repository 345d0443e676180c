//! What the admin door needs from a node.
//!
//! Owns the trait and its error types, nothing else. Dynamic dispatch is fine here: an admin request is rare and
//! never on the data path.

use std::{future::Future, pin::Pin};

use serde_json::Value;

use crate::view::{BuildView, ConfigView, PolicyView, PurgeReport, PurgeRequest, StatsView};

/// A boxed answer of the node. Dropping it abandons the answer, not necessarily the work: see each method.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A node, as the admin door sees it. Called on the admin thread only, by at most `connections_max` requests at a
/// time. The plain methods must not block (they read values the node keeps ready); the others may take as long as
/// a shard takes to answer, and are given up after [`crate::Limits::answer_timeout`].
pub trait Control: Send + Sync + 'static {
    /// Whether the process works and whether it should be sent traffic. Never blocks, also not on a stalled shard:
    /// a probe is most useful then.
    fn health(&self) -> Health;

    /// What was built, fixed for the life of the process.
    fn build(&self) -> BuildView;

    /// Every setting with the value in effect. Secrets may be marked or not: the door masks on the way out.
    fn config(&self) -> ConfigView;

    /// The policy in effect on all shards. The document is complete: it names every member a policy may have at
    /// its root, `null` where nothing is set, so that it can be edited and put back, and so that the door can tell
    /// a misspelt member from an unset one.
    fn policy(&self) -> PolicyView;

    /// Replaces the whole policy and answers, once every shard has it, with the policy now in effect. A member the
    /// document leaves out takes its default. With `expected`, only if that is still the version in effect
    /// (compare and swap). Dropping the answer does not undo a change already under way.
    ///
    /// # Errors
    /// [`PolicyError`]; nothing was changed, except that `Unavailable` may leave the outcome unknown.
    fn policy_replace(&self, document: Value, expected: Option<u64>) -> Answer<'_, Result<PolicyView, PolicyError>>;

    /// Counters of all shards, summed and split, as of about now.
    ///
    /// # Errors
    /// [`Unavailable`] when a shard did not answer.
    fn stats(&self) -> Answer<'_, Result<StatsView, Unavailable>>;

    /// Removes one key from every tier of its namespace, and answers when no later read can see it, restarts
    /// included. A key that is nowhere is not an error: the report says so. Dropping the answer does not undo it.
    ///
    /// # Errors
    /// [`PurgeError`]; after `Unavailable` the purge may have happened, so the caller should send it again.
    fn purge(&self, request: PurgeRequest) -> Answer<'_, Result<PurgeReport, PurgeError>>;
}

/// What a probe needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The process works; `false` asks the supervisor for a restart.
    pub live: bool,
    /// Requests should be sent here; `false` while starting, stopping, or unable to serve at all.
    pub ready: bool,
    /// Why the node is not at its best (and, if not ready, why not). Empty in good health.
    pub degraded: Vec<Reason>,
}

/// One thing that is wrong, for people and for alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Stable name, words joined by `-`, also the metric label: `tier-poisoned`.
    pub code: &'static str,
    /// One sentence with the particulars: which shard, which file, which error.
    pub message: String,
}

/// The node cannot answer now; sending the request again later may work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Why a policy was not replaced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// `expected` is no longer in effect; nothing changed.
    #[error("the policy is at version {current}")]
    VersionMismatch {
        /// The version in effect.
        current: u64,
    },
    /// The document says something a policy cannot say; nothing changed.
    #[error("{field}: {message}")]
    Invalid {
        /// JSON pointer (RFC 6901) to the offending member, `""` for the whole document.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A shard did not answer; the change may or may not take effect.
    #[error("{0}")]
    Unavailable(String),
}

/// Why a key was not purged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PurgeError {
    /// No such namespace, and namespaces are not made by a purge.
    #[error("there is no namespace {0:?}")]
    NamespaceUnknown(String),
    /// The request names something impossible.
    #[error("{field}: {message}")]
    Invalid {
        /// JSON pointer to the offending member of the request.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A tier could not forget the key durably; it may have been purged in part.
    #[error("{0}")]
    Unavailable(String),
}
