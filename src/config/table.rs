//! THE table of settings: one row each. The TOML file, the environment, flags, `--print-config`, the admin door and
//! the documentation are all driven by it, so that no two of them can disagree.
//!
//! Left to others: the policy's fields, which have rows of their own in `policy::FIELDS`.

use std::{fmt, path::PathBuf};

use super::value::{
    Auto, Bytes, Count, Input, Kind, Limit, Listen, LogFormat, LogLevel, Paths, Profile, Reserve, Span,
};

/// Where a value came from, weakest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in, or worked out from the machine as the note says.
    Default(String),
    /// The defaults of `profile = "tiny"`.
    Profile,
    /// The configuration file.
    File {
        /// Its path.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag, as it was given.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default(note) if note.is_empty() => f.write_str("default"),
            Self::Default(note) => write!(f, "default: {note}"),
            Self::Profile => f.write_str("profile tiny"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Sourced<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

impl<T> Sourced<Auto<T>> {
    /// Fills in what nobody gave.
    pub(super) fn resolve(&mut self, value: T, note: impl Into<String>) {
        if self.value.0.is_none() {
            self.value.0 = Some(value);
            self.origin = Origin::Default(note.into());
        }
    }
}

/// One row: a setting.
pub(super) struct Setting {
    /// Its dotted name in TOML, `--set` and messages.
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    /// The default as text; `auto` is explained by `about`.
    pub(super) default: &'static str,
    /// The default of the tiny profile, where it differs.
    pub(super) tiny: Option<&'static str>,
    pub(super) about: &'static str,
    pub(super) set: fn(&mut Values, &Input, Origin) -> Result<(), String>,
    pub(super) get: fn(&Values) -> (String, &Origin),
}

impl Setting {
    /// Its environment variable.
    pub(super) fn variable(&self) -> String {
        variable(self.name)
    }
}

/// `STRATA_` and the name in capitals, its dots as `_`.
pub(super) fn variable(name: &str) -> String {
    format!("STRATA_{}", name.to_uppercase().replace('.', "_"))
}

/// Sections and settings that are known but have no effect yet: setting one is refused rather than ignored.
pub(super) const NOT_YET: [(&str, &str); 4] = [
    ("flash_write_budget", "writes to flash are not limited by a budget yet"),
    ("l1", "the shared network cache is not available yet"),
    ("tls", "TLS is not available yet; put a TLS proxy in front, or bind to loopback"),
    ("auth", "authentication is not available yet; bind to loopback, or let a proxy in front check"),
];

macro_rules! settings {
    ($($field:ident, $name:literal, $kind:ty, $default:literal, $tiny:expr, $about:literal;)+) => {
        /// The value of every setting.
        #[derive(Clone, Debug)]
        pub(super) struct Values {
            $(pub(super) $field: Sourced<$kind>,)+
        }

        impl Values {
            /// Every setting at its default; `auto` stays to be resolved.
            pub(super) fn defaults() -> Self {
                Self {
                    $($field: Sourced {
                        value: Kind::take(&Input::Text($default.into())).expect("a test reads every default"),
                        origin: Origin::Default(String::new()),
                    },)+
                }
            }
        }

        /// Every setting, in the order of the documentation.
        pub(super) static SETTINGS: &[Setting] = &[
            $(Setting {
                name: $name,
                unit: <$kind as Kind>::UNIT,
                default: $default,
                tiny: $tiny,
                about: $about,
                set: |values, input, origin| {
                    values.$field = Sourced { value: Kind::take(input)?, origin };
                    Ok(())
                },
                get: |values| (values.$field.value.write(), &values.$field.origin),
            },)+
        ];
    };
}

settings! {
    profile, "profile", Profile, "default", None,
        "Which defaults are taken. `tiny` is for tests: every tier so small that its edges are met all the time.";
    data_dir, "data_dir", PathBuf, "./strata-data", None,
        "Where everything durable lives. Locked: one node at a time.";
    shards, "shards", Auto<Count>, "auto", Some("2"),
        "Shards, one thread each. `auto`: the CPUs the process may use. Another number than in the last run drops what \
         is on flash.";
    memory_max, "memory_max", Auto<Bytes>, "auto", Some("80MiB"),
        "All memory of the process. Indexes, buffers and bodies in flight come off it, L0 gets the rest. `auto`: half \
         of what the cgroup or the machine allows.";
    l2_bytes, "l2_bytes", Auto<Bytes>, "auto", Some("32MiB"),
        "Flash of the whole node; `0` runs without. `auto`: as in the last run; at first a tenth of the free disk, at \
         most 10GiB.";
    l2_paths, "l2_paths", Auto<Paths>, "auto", None,
        "Folders for the flash files; shards are spread over them. In the environment and flags joined by `:`. \
         `auto`: `l2` in `data_dir`.";
    l3_bytes_max, "l3_bytes_max", Limit, "none", None,
        "Bytes of durable bodies and index. Beyond it writes to durable namespaces are refused with 507.";
    disk_reserve, "disk_reserve", Reserve, "5%", None,
        "Part of the file system of `data_dir` that durable writes leave free; beyond it they are refused with 507.";
    body_bytes_max, "body_bytes_max", Bytes, "64GiB", None,
        "Largest body accepted by any door; larger ones get 413. Meant to stop a writer that never ends, so it is \
         above disk images and model files.";
    fanout_lag_max, "fanout_lag_max", Bytes, "8MiB", Some("256KiB"),
        "How far a tier may fall behind a write that it does not acknowledge, or behind a read that fills it, before \
         it is dropped from that. What L2 missed so in a durable namespace is copied there from L3 afterwards.";
    http_listen, "http_listen", Listen, "127.0.0.1:7800", None,
        "The HTTP door.";
    memcached_listen, "memcached_listen", Listen, "127.0.0.1:11211", None,
        "The memcached door.";
    admin_listen, "admin_listen", Listen, "127.0.0.1:7801", None,
        "The admin door.";
    allow_open, "allow_open", bool, "false", None,
        "Lets doors listen beyond loopback without authentication.";
    log_format, "log_format", LogFormat, "text", None,
        "How log lines look.";
    log_level, "log_level", LogLevel, "info", None,
        "What is logged: this and everything graver.";
    connections_max, "limits.connections_max", Auto<Count>, "auto", Some("64"),
        "Connections of one shard. `auto`: what a sixteenth of `memory_max` and RLIMIT_NOFILE have room for, 64 to 16384.";
    body_window_bytes, "limits.body_window_bytes", Bytes, "128KiB", Some("64KiB"),
        "Unread bytes of one body between two threads: two shards, or a shard and L3.";
    inflight_bytes, "limits.inflight_bytes", Auto<Bytes>, "auto", Some("16MiB"),
        "Bytes of all bodies in flight, whole node; half of them wait for tiers that lag behind. A streamed body takes 768KiB \
         and two windows of `limits.body_window_bytes`. Beyond, requests wait their turn, small \
         bodies first, for 5s at most, and get 503. `auto`: an eighth of `memory_max`, at least 4MiB a shard.";
    stop_grace, "limits.stop_grace", Span, "30s", Some("5s"),
        "How long a stop waits for requests in flight.";
    object_bytes_mean, "l2.object_bytes_mean", Bytes, "4KiB", Some("1KiB"),
        "Mean size of an object on flash: the index has room for `l2_bytes` over this, at 16 bytes of RAM each.";
    segment_bytes, "l2.segment_bytes", Auto<Bytes>, "auto", Some("1MiB"),
        "What is reclaimed at a time. `auto`: a sixteenth of a shard's log, 1MiB to 32MiB.";
    write_buffer_bytes, "l2.write_buffer_bytes", Bytes, "4MiB", Some("1MiB"),
        "Memory of one shard for what is not on flash yet.";
    flush_interval, "l2.flush_interval", Span, "100ms", Some("10ms"),
        "How old what is not on flash yet may become.";
    inline_bytes_max, "l3.inline_bytes_max", Bytes, "64KiB", Some("1KiB"),
        "Largest body kept in the index rather than in a file of its own; at most 64KiB.";
    index_cache_bytes, "l3.index_cache_bytes", Auto<Bytes>, "auto", Some("4MiB"),
        "Memory for pages of the index. `auto`: a thirty-second of `memory_max`, 4MiB to 256MiB.";
    orphan_age, "l3.orphan_age", Span, "24h", Some("4s"),
        "How old a file that no manifest names must be to be swept. A write that takes longer than half of it is \
         refused.";
    blob_grace, "l3.blob_grace", Span, "1h", Some("1s"),
        "How long a replaced body is kept for those who still read it.";
    tombstone_ttl, "l3.tombstone_ttl", Span, "24h", Some("10s"),
        "How long a delete is remembered.";
    sweep_interval, "l3.sweep_interval", Span, "10m", Some("200ms"),
        "Pause between sweeps for what expired and what nobody names.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_default_reads_and_every_name_is_unique() {
        let mut values = Values::defaults();
        let mut names = BTreeSet::new();
        for setting in SETTINGS {
            assert!(names.insert(setting.variable()), "{} is there twice", setting.name);
            assert!(setting.about.ends_with('.'), "{}", setting.name);
            for text in [Some(setting.default), setting.tiny].into_iter().flatten() {
                (setting.set)(&mut values, &Input::Text(text.into()), Origin::Profile)
                    .unwrap_or_else(|e| panic!("{} = {text}: {e}", setting.name));
            }
        }
        for field in crate::policy::FIELDS {
            assert!(names.insert(variable(&format!("policy.{}", field.name))), "{}", field.name);
        }
    }
}
