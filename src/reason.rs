//! Why something was not done: one enum for every miss, refusal, eviction, dropped promotion and rejected request
//! (INV-6).
//!
//! The names are stable: they are the metric labels, and appear in `Cache-Status`, `Strata-Stored` and problem
//! documents. Adding a reason is fine; renaming or reusing one is not.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// Why something was not done. Ordered by declaration; that order is not stable, the names are.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant,)+
        }

        impl Reason {
            /// Every reason, in declaration order; `ALL[reason as usize] == reason`.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant),+];

            /// The stable name: lower case, words joined by `-`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$variant => $name,)+
                }
            }
        }
    };
}

reasons! {
    // Misses.
    /// No tier holds the key.
    NotFound = "not-found",
    /// The object's time to live is over.
    Expired = "expired",
    /// A delete left a tombstone.
    Deleted = "deleted",
    /// A purge record covers the object.
    Purged = "purged",
    /// Stored bytes failed a checksum; they were dropped.
    Corrupted = "corrupted",
    /// Another key holds the flash index entry.
    IndexCollision = "index-collision",
    /// The record was reclaimed while it was read.
    Reclaimed = "reclaimed",
    /// In RAM, but readers pin as many of its bytes as they may; a lower tier is asked.
    PinnedMax = "pinned-max",
    /// A copy that could not be compared with the index yet.
    Suspect = "suspect",

    // Admission.
    /// Larger than the tier's byte gate.
    Gate = "gate",
    /// The namespace does not use this tier, or the tier is switched off.
    TierOff = "tier-off",
    /// Larger than any object the tier can hold.
    TooLarge = "too-large",
    /// Larger than `body_bytes_max`, or than the namespace allows.
    BodyMax = "body-max",
    /// `Cache-Control: no-store` in a cache-only namespace.
    NoStore = "no-store",
    /// The namespace is not declared and `namespaces = "declared"`.
    NamespaceUndeclared = "namespace-undeclared",
    /// Too many namespaces.
    NamespaceMax = "namespace-max",
    /// The key's name is malformed or too long.
    BadKey = "bad-key",
    /// A header of the request makes no sense.
    BadRequest = "bad-request",
    /// The door has no such method.
    Method = "method",
    /// The range asked for lies outside the object.
    Range = "range",
    /// The headers to be stored need more room than an object has for them.
    HeadersMax = "headers-max",
    /// The policy fills this tier only when the object leaves L0.
    OnEvict = "on-evict",

    // Writes and fills.
    /// The condition of the request does not hold.
    Precondition = "precondition",
    /// A newer version of the key was committed first.
    Superseded = "superseded",
    /// A write or purge of the key came while the fill ran.
    Poisoned = "poisoned",
    /// The body ended before or after its announced length, or the sender left.
    BodyCut = "body-cut",
    /// The body does not match its announced checksum.
    BodyMismatch = "body-mismatch",
    /// The outcome of a durable commit is not known.
    OutcomeUnknown = "outcome-unknown",
    /// Too many keys whose last commit has an unknown outcome.
    InDoubtMax = "in-doubt-max",
    /// Promotion is switched off.
    Never = "never",
    /// Another fill of the same key and tier runs.
    FillRunning = "fill-running",
    /// The reader left before the whole body had passed.
    Partial = "partial",
    /// The queue to the tier is full.
    QueueFull = "queue-full",
    /// The tier fell too far behind the writer.
    Lag = "lag",

    // Room.
    /// Evicted to make room.
    Evicted = "evicted",
    /// Removed by a purge, a delete or a newer copy above.
    Removed = "removed",
    /// No room could be made in RAM.
    NoRoom = "no-room",
    /// The disk or the tier's byte limit is full.
    DiskFull = "disk-full",
    /// `l3_bytes_max` is reached.
    QuotaFull = "quota-full",

    // Health.
    /// The tier reported an I/O error.
    Io = "io",
    /// The tier is poisoned by an earlier write error.
    TierPoisoned = "tier-poisoned",
    /// The tier or its executor does not answer.
    Unavailable = "unavailable",
    /// The operation took longer than its limit.
    Timeout = "timeout",
    /// The node is stopping.
    Stopping = "stopping",
    /// Too many requests or connections.
    Overload = "overload",
    /// An internal error: a bug. The log has the cause.
    Internal = "internal",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A counter per reason. Single-threaded; shards are summed by the reader.
#[derive(Clone, Debug)]
pub struct ReasonCounts([u64; Reason::ALL.len()]);

impl Default for ReasonCounts {
    fn default() -> Self {
        Self([0; Reason::ALL.len()])
    }
}

impl ReasonCounts {
    /// Counts one.
    pub fn count(&mut self, reason: Reason) {
        self.add(reason, 1);
    }

    /// Counts `n`.
    pub fn add(&mut self, reason: Reason, n: u64) {
        self.0[reason as usize] += n;
    }

    /// How often `reason` was counted.
    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// The reasons that were counted, with how often.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.iter().copied().zip(self.0).filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_well_formed() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{reason}");
            assert!(Reason::ALL.iter().filter(|other| other.name() == reason.name()).count() == 1, "{reason}");
        }
    }
}
