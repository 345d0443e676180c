//! How people write values: sizes, durations, and names they nearly got right.
//!
//! Owns the grammar shared by the policy's JSON, the TOML file, the environment and flags. Nothing is rounded: a
//! number that does not come out even in its unit is refused, and what is written here reads back as itself.

/// Why text is not a size or a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

/// Size units, largest first among the binary ones, which is the order [`bytes()`] tries them in.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Duration units in milliseconds, largest first.
const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a size in bytes: `"65536"`, `"64KiB"`, `"2 GB"`. Units may be in any case.
///
/// # Errors
/// No unit we know, a fraction, a sign, or more than 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text);
    let factor = match SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => return Err(UnitError(bad_unit(text, unit, "a size", "2097152, 2MiB, 64KiB or 10GB"))),
    };
    scale(text, number, factor, "a size", "2MiB")
}

/// Reads a duration in milliseconds: `"500ms"`, `"90s"`, `"24h"`; a bare number is seconds.
///
/// # Errors
/// No unit we know, a fraction, a sign, or more than 64 bits.
pub fn parse_duration_ms(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text);
    let factor = match DURATIONS.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1_000,
        None => return Err(UnitError(bad_unit(text, unit, "a duration", "500ms, 90s, 5m, 24h or 7d"))),
    };
    scale(text, number, factor, "a duration", "90s")
}

/// A size that [`parse_bytes`] reads back exactly, in the largest binary unit that comes out even: `"2MiB"`,
/// `"1025B"`.
#[must_use]
pub fn bytes(n: u64) -> String {
    exact(n, &SIZES[..4], "B")
}

/// A duration that [`parse_duration_ms`] reads back exactly: `"24h"`, `"1500ms"`.
#[must_use]
pub fn duration(ms: u64) -> String {
    exact(ms, &DURATIONS[1..4], "ms")
}

/// A size for reading only, to three digits: `"3.91 GiB"`.
#[must_use]
pub fn about_bytes(n: u64) -> String {
    let Some((unit, factor)) = SIZES[..4].iter().find(|(_, factor)| n >= *factor) else {
        return format!("{n} B");
    };
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = n as f64 / *factor as f64;
    let digits = if value >= 100.0 { 0 } else { 1 + usize::from(value < 10.0) };
    format!("{value:.digits$} {unit}")
}

/// The name in `known` that `given` most likely meant: at most two edits away, or a third of its length.
#[must_use]
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (edits(given, name), name))
        .filter(|(edits, name)| *edits <= (name.len() / 3).max(2))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// `"; did you mean NAME?"`, or nothing.
#[must_use]
pub fn did_you_mean<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(given, known).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | '_'))).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

fn bad_unit(text: &str, unit: &str, what: &str, examples: &str) -> String {
    if text.trim().len() == unit.len() {
        return format!("\"{text}\" is not {what}; write for example {examples}");
    }
    format!("\"{text}\": unknown unit \"{unit}\" of {what}; write for example {examples}")
}

fn scale(text: &str, number: &str, factor: u64, what: &str, example: &str) -> Result<u64, UnitError> {
    if number.contains('.') {
        return Err(UnitError(format!("\"{text}\": fractions are not taken; use a smaller unit")));
    }
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError(format!("\"{text}\" is not {what}; write a whole number and a unit, as in {example}")));
    }
    let scaled = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    scaled.ok_or_else(|| UnitError(format!("\"{text}\" is too large for {what}")))
}

fn exact(n: u64, units: &[(&str, u64)], smallest: &str) -> String {
    let even = units.iter().find(|(_, factor)| n > 0 && n.is_multiple_of(*factor));
    even.map_or_else(|| format!("{n}{smallest}"), |(unit, factor)| format!("{}{unit}", n / factor))
}

/// Levenshtein's distance, by bytes. Both names are short: settings and policy fields.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_exactly() {
        for (text, n) in [
            ("0", 0),
            ("1", 1),
            ("1B", 1),
            ("2MiB", 2 << 20),
            (" 2 mib ", 2 << 20),
            ("10GB", 10_000_000_000),
            ("1kB", 1000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(n), "{text}");
        }
        for n in [0, 1, 1023, 1024, 1025, 2 << 20, 3 << 30, 5 << 40, u64::MAX] {
            assert_eq!(parse_bytes(&bytes(n)), Ok(n));
        }
        assert_eq!((bytes(1536 << 10).as_str(), bytes(1025).as_str()), ("1536KiB", "1025B"));
    }

    #[test]
    fn durations_are_read_and_written_exactly() {
        for (text, ms) in [("500ms", 500), ("90s", 90_000), ("90", 90_000), ("5m", 300_000), ("1d", 86_400_000)] {
            assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
        }
        for ms in [0, 1, 999, 1000, 60_000, 86_400_000, 90_061_001] {
            assert_eq!(parse_duration_ms(&duration(ms)), Ok(ms));
        }
        assert_eq!(duration(86_400_000), "24h");
    }

    #[test]
    fn what_is_not_a_size_says_why() {
        for (text, why) in [
            ("", "is not a size"),
            ("MiB", "is not a size"),
            ("many", "is not a size"),
            ("-1", "whole number"),
            ("+1", "whole number"),
            ("1_000", "whole number"),
            ("1.5GiB", "fractions"),
            ("2M", "unknown unit \"M\""),
            ("2Mi", "unknown unit"),
            ("17000000TiB", "too large"),
            ("99999999999999999999", "too large"),
        ] {
            let error = parse_bytes(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(parse_duration_ms("5min").expect_err("min").to_string().contains("unknown unit \"min\""));
    }

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["memory_max", "data_dir", "l0_max", "l1_max"];
        assert_eq!(nearest("memory_mx", known), Some("memory_max"));
        assert_eq!(nearest("l0max", known), Some("l0_max"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn sizes_for_reading() {
        for (n, text) in [(5, "5 B"), (1536, "1.50 KiB"), (40 << 20, "40.0 MiB"), (500 << 30, "500 GiB")] {
            assert_eq!(about_bytes(n), text);
        }
    }
}
