//! The kinds of values a setting has: how each is read from text and written as TOML.
//!
//! Invariant: what [`Kind::write`] gives reads back as the same value, from a TOML file. Left to others: which settings
//! there are (`table`), and whether values fit one another (`config`).

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::human;

/// A value as it was given: environment and flags give text, a file text or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Text(String),
    List(Vec<String>),
}

/// A kind of value.
pub(super) trait Kind: Sized {
    /// What is expected, for the documentation and for messages.
    const UNIT: &'static str;

    /// Reads one.
    fn read(text: &str) -> Result<Self, String>;

    /// Reads one that may be a list.
    fn take(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) => Self::read(text),
            Input::List(_) => Err(format!("a list is not {}", Self::UNIT)),
        }
    }

    /// The value in TOML.
    fn write(&self) -> String;
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) u64);

impl Kind for Bytes {
    const UNIT: &'static str = "size";

    fn read(text: &str) -> Result<Self, String> {
        human::parse_bytes(text).map(Self).map_err(|e| e.to_string())
    }

    fn write(&self) -> String {
        quoted(&human::bytes(self.0))
    }
}

/// A size in bytes, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit(pub(super) Option<u64>);

impl Kind for Limit {
    const UNIT: &'static str = "size or `none`";

    fn read(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(Self(None)) } else { Bytes::read(text).map(|Bytes(n)| Self(Some(n))) }
    }

    fn write(&self) -> String {
        self.0.map_or_else(|| quoted("none"), |n| Bytes(n).write())
    }
}

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl Kind for Span {
    const UNIT: &'static str = "duration";

    fn read(text: &str) -> Result<Self, String> {
        human::parse_duration_ms(text).map(Duration::from_millis).map(Self).map_err(|e| e.to_string())
    }

    fn write(&self) -> String {
        quoted(&human::duration(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// How many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count(pub(super) u64);

impl Kind for Count {
    const UNIT: &'static str = "number";

    fn read(text: &str) -> Result<Self, String> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(Self).ok_or_else(|| format!("\"{text}\" is not a whole number"))
    }

    fn write(&self) -> String {
        self.0.to_string()
    }
}

/// A value that the node works out by itself unless it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Auto<T>(pub(super) Option<T>);

impl<T: Kind> Kind for Auto<T> {
    const UNIT: &'static str = T::UNIT;

    fn read(text: &str) -> Result<Self, String> {
        Self::take(&Input::Text(text.into()))
    }

    fn take(input: &Input) -> Result<Self, String> {
        if *input == Input::Text("auto".into()) {
            Ok(Self(None))
        } else {
            T::take(input).map(|value| Self(Some(value)))
        }
    }

    fn write(&self) -> String {
        self.0.as_ref().map_or_else(|| quoted("auto"), T::write)
    }
}

impl Kind for bool {
    const UNIT: &'static str = "`true` or `false`";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("\"{text}\" is neither true nor false"))
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

/// Where a door listens; `None` is `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listen(pub(super) Option<SocketAddr>);

impl Kind for Listen {
    const UNIT: &'static str = "address:port or `off`";

    fn read(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let numeric = text.replacen("localhost:", "127.0.0.1:", usize::from(text.starts_with("localhost:")));
        numeric
            .parse()
            .map(|address| Self(Some(address)))
            .map_err(|_| format!("\"{text}\" is not an address; write for example 127.0.0.1:7800, [::1]:7800 or off"))
    }

    fn write(&self) -> String {
        quoted(&self.0.map_or_else(|| "off".into(), |address| address.to_string()))
    }
}

impl Kind for PathBuf {
    const UNIT: &'static str = "path";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("the path is empty".into()) } else { Ok(text.into()) }
    }

    fn write(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

/// Several paths: a list in TOML, joined by `:` in the environment and in flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Paths(pub(super) Vec<PathBuf>);

impl Kind for Paths {
    const UNIT: &'static str = "paths";

    fn read(text: &str) -> Result<Self, String> {
        // As a file, and what prints the settings, has it.
        if text.starts_with('[') {
            return Err("outside of a file the folders are written as /a:/b".into());
        }
        text.split(':').map(PathBuf::read).collect::<Result<_, _>>().map(Self)
    }

    fn take(input: &Input) -> Result<Self, String> {
        match input {
            Input::Text(text) => Self::read(text),
            Input::List(items) if items.is_empty() => Err("the list is empty".into()),
            Input::List(items) => items.iter().map(|item| PathBuf::read(item)).collect::<Result<_, _>>().map(Self),
        }
    }

    fn write(&self) -> String {
        format!("[{}]", self.0.iter().map(Kind::write).collect::<Vec<_>>().join(", "))
    }
}

/// A part of a file system: so many per cent of it, or so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Per cent of the file system, 0 to 99.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

impl Reserve {
    /// Bytes of a file system of `total` bytes, rounded down.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => total / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Kind for Reserve {
    const UNIT: &'static str = "per cent or size";

    fn read(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return Bytes::read(text).map(|Bytes(n)| Self::Bytes(n));
        };
        let percent = percent.trim().parse().ok().filter(|percent| *percent < 100);
        percent.map(Self::Percent).ok_or_else(|| format!("\"{text}\" is not 0% to 99%"))
    }

    fn write(&self) -> String {
        match self {
            Self::Percent(percent) => quoted(&format!("{percent}%")),
            Self::Bytes(bytes) => Bytes(*bytes).write(),
        }
    }
}

/// A value that is one of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $unit:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The word in the settings.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl Kind for $name {
            const UNIT: &'static str = $unit;

            fn read(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("\"{text}\" is not one of {}", [$($word),+].join(", "))),
                }
            }

            fn write(&self) -> String {
                quoted(self.name())
            }
        }
    };
}

words! {
    /// How log lines look.
    LogFormat, "`text` or `json`" {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// What is logged: this and everything graver.
    LogLevel, "`error`, `warn`, `info`, `debug` or `trace`" {
        /// What stopped working.
        Error = "error",
        /// What works worse than it should.
        Warn = "warn",
        /// Starts, stops, changes.
        Info = "info",
        /// For finding faults.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

words! {
    /// Which defaults are taken.
    Profile, "`default` or `tiny`" {
        /// For use.
        Default = "default",
        /// For tests: every tier so small that its edges are met all the time.
        Tiny = "tiny",
    }
}

/// A TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads_back<T: Kind + PartialEq + std::fmt::Debug>(texts: &[&str]) {
        for text in texts {
            let value = T::read(text).expect(text);
            let line = format!("v = {}", value.write());
            let table: toml::Table = line.parse().expect("TOML");
            let input = match &table["v"] {
                toml::Value::String(text) => Input::Text(text.clone()),
                toml::Value::Array(items) => {
                    Input::List(items.iter().map(|item| item.as_str().expect("text").into()).collect())
                }
                other => Input::Text(other.to_string()),
            };
            assert_eq!(T::take(&input), Ok(value), "{line}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        reads_back::<Bytes>(&["0", "1", "2MiB", "10GB"]);
        reads_back::<Limit>(&["none", "5GiB"]);
        reads_back::<Span>(&["100ms", "24h", "7d"]);
        reads_back::<Count>(&["0", "12"]);
        reads_back::<Auto<Count>>(&["auto", "12"]);
        reads_back::<Auto<Paths>>(&["auto", "/a", "/a:b \"c\""]);
        reads_back::<bool>(&["true", "false"]);
        reads_back::<Listen>(&["off", "127.0.0.1:0", "[::1]:7800", "localhost:1"]);
        reads_back::<Reserve>(&["0%", "5%", "99 %", "10GiB"]);
        reads_back::<LogFormat>(&["text", "json"]);
        reads_back::<LogLevel>(&["error", "trace"]);
        reads_back::<Profile>(&["default", "tiny"]);
    }

    #[test]
    fn mistakes_say_what_is_wanted() {
        assert!(Listen::read("7800").expect_err("no address").contains("127.0.0.1:7800"));
        assert!(Listen::read("example.com:1").expect_err("a name").contains("not an address"));
        assert!(Reserve::read("100%").expect_err("all").contains("0% to 99%"));
        assert!(Count::read("+1").expect_err("a sign").contains("whole number"));
        assert!(LogFormat::read("xml").expect_err("xml").contains("text, json"));
        assert!(bool::read("yes").expect_err("yes").contains("neither"));
        assert!(Paths::take(&Input::List(vec![])).is_err() && Paths::read("/a::/b").is_err());
        assert!(Bytes::take(&Input::List(vec![])).expect_err("a list").contains("size"));
    }

    #[test]
    fn a_reserve_is_a_part_of_the_disk() {
        assert_eq!((Reserve::Percent(5).of(1000), Reserve::Bytes(7).of(1000)), (50, 7));
    }
}
