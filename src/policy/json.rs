//! The policy as JSON: read strictly, written canonically.
//!
//! Root: every field of [`FIELDS`], with `namespaces` holding overrides by name. A size is whole bytes or `"2MiB"`, a
//! time to live whole seconds or `"5m"`; `null` (or `"none"`, for TOML and patches, which have no null of their own)
//! is unlimited. What is absent at the root has its default, what is absent in a namespace is as the root says.
//!
//! Written back, sizes are bytes and times are seconds, the root is complete, and a namespace holds what it states.
//! Unlimited is written `null` where that is what silence means and `"none"` elsewhere, so that a merge patch (RFC
//! 7396), which takes `null` members out, may carry back what was read.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{DEFAULTS, L2Fill, LookupOrder, Mode, NAMESPACES_MAX, NamespacesMode, Policy, Promotion, Stated};
use crate::{cache::Tier, cache::is_namespace, human};

/// Longest time to live, in seconds: 100 years. Sums with any wall time stay far from overflow.
const TTL_S_MAX: u64 = 100 * 365 * 24 * 3600;

/// Why a policy is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy{pointer}: {message}")]
pub struct PolicyError {
    /// JSON pointer (RFC 6901) to the field; empty for the whole document.
    pub pointer: String,
    /// What is wrong with it, for people.
    pub message: String,
}

impl PolicyError {
    /// Something is wrong with the mode of `namespace`.
    #[must_use]
    pub fn mode(namespace: &str, message: String) -> Self {
        Self { pointer: format!("/namespaces/{}/mode", escape(namespace)), message }
    }
}

/// One field of the policy's root, for lists of settings.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What its value is.
    pub unit: &'static str,
    /// Its default, as text.
    pub default: &'static str,
    /// What it does.
    pub about: &'static str,
}

/// The fields of the root, without `namespaces`.
pub const FIELDS: [Field; 11] = {
    const SIZE: &str = "bytes or `none`";
    const PROMOTE: &str = "`never` or `on_stream_commit_at_finish`";
    const fn field(name: &'static str, unit: &'static str, default: &'static str, about: &'static str) -> Field {
        Field { name, unit, default, about }
    }
    [
        field("l0_max", SIZE, "2MiB", "Largest body kept in RAM."),
        field("l1_max", SIZE, "64MiB", "Largest body kept in the shared network cache."),
        field("l2_max", SIZE, "none", "Largest body kept on flash; `none`: a quarter of a shard's log."),
        field("promote_l0", PROMOTE, "on_stream_commit_at_finish", "Whether reads from below fill RAM."),
        field("promote_l1", PROMOTE, "on_stream_commit_at_finish", "Whether reads from below fill the network cache."),
        field("promote_l2", PROMOTE, "on_stream_commit_at_finish", "Whether reads from below fill flash."),
        field(
            "l2_fill",
            "`on_write`, `on_evict` or `none`",
            "none",
            "When bodies up to `l0_max` go to flash; `none`: on write in durable namespaces, when they leave RAM in \
             cache-only ones. Larger bodies go at once.",
        ),
        field("lookup_order", "`l1_first` or `l2_first`", "l1_first", "Which of L1 and L2 is asked first."),
        field("ttl_default", "seconds or `none`", "none", "Time to live when the writer gives none."),
        field("ttl_max", "seconds or `none`", "none", "Cap on every time to live."),
        field(
            "namespaces_mode",
            "`open` or `declared`",
            "open",
            "Whether a namespace is made on its first write or must be declared.",
        ),
    ]
};

/// The fields that only a namespace has.
const NAMESPACE_FIELDS: [&str; 3] = ["mode", "tiers", "body_bytes_max"];

const PROMOTIONS: [(&str, Promotion); 2] =
    [("never", Promotion::Never), ("on_stream_commit_at_finish", Promotion::OnStreamCommitAtFinish)];
const L2_FILLS: [(&str, L2Fill); 2] = [("on_write", L2Fill::OnWrite), ("on_evict", L2Fill::OnEvict)];
const LOOKUP_ORDERS: [(&str, LookupOrder); 2] =
    [("l1_first", LookupOrder::L1First), ("l2_first", LookupOrder::L2First)];
const MODES: [(&str, Mode); 2] = [("durable", Mode::Durable), ("cache_only", Mode::CacheOnly)];

/// How a policy spells `mode`.
pub(super) fn mode_name(mode: Mode) -> &'static str {
    MODES.iter().find(|(_, listed)| *listed == mode).map_or("", |(name, _)| name)
}

const NAMESPACES_MODES: [(&str, NamespacesMode); 2] =
    [("open", NamespacesMode::Open), ("declared", NamespacesMode::Declared)];

impl Policy {
    /// Reads a whole policy. Pure; called by the configuration and the admin door.
    ///
    /// # Errors
    /// The first field, in the document's order, that is unknown, malformed or contradicts another.
    pub fn from_json(value: &Value) -> Result<Self, PolicyError> {
        let mut stated = Stated::default();
        let mut namespaces_mode = NamespacesMode::default();
        let mut namespaces = BTreeMap::new();
        for (name, value) in object(value, "")? {
            let at = format!("/{}", escape(name));
            match name.as_str() {
                "namespaces" => namespaces = read_namespaces(value, &at)?,
                "namespaces_mode" => namespaces_mode = choice(value, &at, &NAMESPACES_MODES)?,
                name if NAMESPACE_FIELDS.contains(&name) => {
                    return refuse(&at, format!("`{name}` belongs to a namespace: write it under /namespaces/NAME"));
                }
                name => read_field(&mut stated, name, value, &at)?,
            }
        }
        let root = stated.or(&DEFAULTS);
        check_ttl(&root, &stated, "")?;
        let policy = Self::assemble(root, namespaces_mode, namespaces);
        for (name, stated) in &policy.namespaces {
            let at = format!("/namespaces/{name}");
            check_tiers(stated, &at)?;
            check_ttl(&stated.or(&policy.root), stated, &at)?;
        }
        Ok(policy)
    }

    /// The canonical form: `from_json` of it is this policy, and its `to_json` the same value again.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut root = write_fields(&self.root);
        // Complete by construction, but a namespace's: at the root the node's `body_bytes_max` holds.
        root.remove("body_bytes_max");
        for gate in ["l0_max", "l1_max"] {
            spell_out(&mut root[gate]);
        }
        root.insert("namespaces_mode".into(), name_of(self.namespaces_mode, &NAMESPACES_MODES));
        let namespaces: Map<_, _> =
            self.namespaces.iter().map(|(name, stated)| (name.to_string(), write_namespace(stated))).collect();
        root.insert("namespaces".into(), namespaces.into());
        root.into()
    }
}

fn read_namespaces(value: &Value, at: &str) -> Result<BTreeMap<Box<str>, Stated>, PolicyError> {
    let entries = object(value, at)?;
    if entries.len() > NAMESPACES_MAX {
        return refuse(at, format!("{} namespaces are declared; the most is {NAMESPACES_MAX}", entries.len()));
    }
    let mut namespaces = BTreeMap::new();
    for (name, value) in entries {
        let at = format!("{at}/{}", escape(name));
        if !is_namespace(name.as_bytes()) {
            return refuse(&at, "a namespace is 1 to 64 characters of a-z, 0-9, _ and -");
        }
        let mut stated = Stated::default();
        for (field, value) in object(value, &at)? {
            let at = format!("{at}/{}", escape(field));
            match field.as_str() {
                "mode" => stated.mode = Some(choice(value, &at, &MODES)?),
                "tiers" => stated.tiers = Some(tiers(value, &at)?),
                "body_bytes_max" => stated.body_bytes_max = Some(size(value, &at)?),
                field => read_field(&mut stated, field, value, &at)?,
            }
        }
        namespaces.insert(name.as_str().into(), stated);
    }
    Ok(namespaces)
}

/// The fields that root and namespaces share.
fn read_field(stated: &mut Stated, name: &str, value: &Value, at: &str) -> Result<(), PolicyError> {
    match name {
        "l0_max" => stated.gates[0] = Some(size(value, at)?),
        "l1_max" => stated.gates[1] = Some(size(value, at)?),
        "l2_max" => stated.gates[2] = Some(size(value, at)?),
        "promote_l0" => stated.promote[0] = Some(choice(value, at, &PROMOTIONS)?),
        "promote_l1" => stated.promote[1] = Some(choice(value, at, &PROMOTIONS)?),
        "promote_l2" => stated.promote[2] = Some(choice(value, at, &PROMOTIONS)?),
        "l2_fill" if is_none(value) => stated.l2_fill = Some(None),
        "l2_fill" => stated.l2_fill = Some(Some(choice(value, at, &L2_FILLS)?)),
        "lookup_order" => stated.lookup_order = Some(choice(value, at, &LOOKUP_ORDERS)?),
        "ttl_default" => stated.ttl_default_s = Some(ttl(value, at)?),
        "ttl_max" => stated.ttl_max_s = Some(ttl(value, at)?),
        _ => {
            let known = FIELDS.iter().map(|field| field.name).chain(NAMESPACE_FIELDS).chain(["namespaces"]);
            return refuse(at, format!("there is no such field{}", human::did_you_mean(name, known)));
        }
    }
    Ok(())
}

/// A namespace that acknowledges by a tier it does not have, or says something about one, is a mistake.
fn check_tiers(stated: &Stated, at: &str) -> Result<(), PolicyError> {
    let tiers = stated.tiers();
    let [l0, l1, l2, l3] = tiers;
    match (stated.mode(), l3) {
        (Mode::Durable, false) => {
            return refuse(
                &format!("{at}/tiers"),
                "a durable namespace needs l3, which acknowledges its writes; add it, or set \"mode\": \"cache_only\"",
            );
        }
        (Mode::CacheOnly, true) => {
            return refuse(
                &format!("{at}/tiers"),
                "a cache-only namespace does not use l3; leave it out, or set \"mode\": \"durable\"",
            );
        }
        (Mode::CacheOnly, false) if !l0 && !l2 => {
            return refuse(&format!("{at}/tiers"), "a cache-only namespace needs l0 or l2 to acknowledge its writes");
        }
        _ => {}
    }
    for (tier, name) in [(Tier::L0, "l0"), (Tier::L1, "l1"), (Tier::L2, "l2")] {
        let i = tier as usize;
        let promotes = stated.promote[i] == Some(Promotion::OnStreamCommitAtFinish);
        for (field, says) in [("max", stated.gates[i].is_some()), ("promote", promotes)] {
            if says && !tiers[i] {
                let field = if field == "max" { format!("{name}_max") } else { format!("promote_{name}") };
                return refuse(&format!("{at}/{field}"), format!("the namespace does not use {name}"));
            }
        }
    }
    match stated.l2_fill {
        Some(Some(_)) if !l2 => refuse(&format!("{at}/l2_fill"), "the namespace does not use l2"),
        Some(Some(L2Fill::OnEvict)) if !l0 => {
            refuse(&format!("{at}/l2_fill"), "nothing is evicted from l0, which the namespace does not use")
        }
        _ if stated.lookup_order == Some(LookupOrder::L2First) && !(l1 && l2) => refuse(
            &format!("{at}/lookup_order"),
            "there is no order between l1 and l2: the namespace does not use both",
        ),
        _ => Ok(()),
    }
}

fn check_ttl(joined: &Stated, stated: &Stated, at: &str) -> Result<(), PolicyError> {
    let (Some(default), Some(max)) = (joined.ttl_default_s.flatten(), joined.ttl_max_s.flatten()) else {
        return Ok(());
    };
    if default <= max {
        return Ok(());
    }
    let field = if stated.ttl_default_s.is_some() { "ttl_default" } else { "ttl_max" };
    refuse(&format!("{at}/{field}"), format!("ttl_default ({default} s) is above ttl_max ({max} s)"))
}

fn write_fields(stated: &Stated) -> Map<String, Value> {
    let mut out = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            out.insert(name.into(), value);
        }
    };
    put("mode", stated.mode.map(|mode| name_of(mode, &MODES)));
    let names = |tiers: [bool; 4]| -> Value {
        Tier::ALL.iter().zip(tiers).filter(|(_, used)| *used).map(|(tier, _)| tier.name()).collect()
    };
    put("tiers", stated.tiers.map(names));
    for (name, gate) in ["l0_max", "l1_max", "l2_max"].iter().zip(stated.gates) {
        put(name, gate.map(Value::from));
    }
    for (name, promote) in ["promote_l0", "promote_l1", "promote_l2"].iter().zip(stated.promote) {
        put(name, promote.map(|promote| name_of(promote, &PROMOTIONS)));
    }
    put("l2_fill", stated.l2_fill.map(|fill| fill.map_or(Value::Null, |fill| name_of(fill, &L2_FILLS))));
    put("lookup_order", stated.lookup_order.map(|order| name_of(order, &LOOKUP_ORDERS)));
    put("ttl_default", stated.ttl_default_s.map(Value::from));
    put("ttl_max", stated.ttl_max_s.map(Value::from));
    put("body_bytes_max", stated.body_bytes_max.map(Value::from));
    out
}

fn write_namespace(stated: &Stated) -> Value {
    let mut out = write_fields(stated);
    out.values_mut().for_each(spell_out);
    out.into()
}

fn spell_out(value: &mut Value) {
    if value.is_null() {
        *value = Value::from("none");
    }
}

fn is_none(value: &Value) -> bool {
    value.is_null() || value == "none"
}

fn size(value: &Value, at: &str) -> Result<Option<u64>, PolicyError> {
    match value {
        value if is_none(value) => Ok(None),
        Value::String(text) => human::parse_bytes(text).map(Some).or_else(|e| refuse(at, e.to_string())),
        value => match value.as_u64() {
            Some(bytes) => Ok(Some(bytes)),
            None => refuse(at, format!("{value} is not a size: whole bytes, \"2MiB\", or null for unlimited")),
        },
    }
}

fn ttl(value: &Value, at: &str) -> Result<Option<u64>, PolicyError> {
    let seconds = match value {
        value if is_none(value) => return Ok(None),
        Value::String(text) => match human::parse_duration_ms(text) {
            Ok(ms) if ms % 1000 == 0 => Some(ms / 1000),
            Ok(_) => None,
            Err(e) => return refuse(at, e.to_string()),
        },
        value => value.as_u64(),
    };
    match seconds {
        Some(s @ 1..=TTL_S_MAX) => Ok(Some(s)),
        Some(_) => refuse(at, format!("{value}: a time to live is 1 second to {TTL_S_MAX} seconds, or null for ever")),
        None => refuse(at, format!("{value} is not a time to live: whole seconds, \"5m\", or null for ever")),
    }
}

fn tiers(value: &Value, at: &str) -> Result<[bool; 4], PolicyError> {
    let Value::Array(names) = value else {
        return refuse(at, format!("{value} is not a list of tiers, as in [\"l0\", \"l3\"]"));
    };
    let mut tiers = [false; 4];
    for (i, name) in names.iter().enumerate() {
        let at = format!("{at}/{i}");
        let tier = choice(name, &at, &Tier::ALL.map(|tier| (tier.name(), tier)))?;
        if std::mem::replace(&mut tiers[tier as usize], true) {
            return refuse(&at, format!("{name} is there twice"));
        }
    }
    Ok(tiers)
}

fn choice<T: Copy>(value: &Value, at: &str, choices: &[(&str, T)]) -> Result<T, PolicyError> {
    let found = choices.iter().find(|(name, _)| value == name);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        PolicyError { pointer: at.into(), message: format!("{value} is not one of {}", names.join(", ")) }
    })
}

fn name_of<T: PartialEq>(value: T, choices: &[(&str, T)]) -> Value {
    choices.iter().find(|(_, choice)| *choice == value).map_or(Value::Null, |(name, _)| Value::from(*name))
}

fn object<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>, PolicyError> {
    match value {
        Value::Object(members) => Ok(members),
        value => refuse(at, format!("{value} is not an object")),
    }
}

fn refuse<T>(at: &str, message: impl Into<String>) -> Result<T, PolicyError> {
    Err(PolicyError { pointer: at.into(), message: message.into() })
}

/// A name as a token of a JSON pointer.
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Policy {
        Policy::from_json(value).expect("a valid policy")
    }

    #[test]
    fn writing_is_canonical() {
        for value in [
            json!({}),
            json!({"l0_max": "1KiB", "l2_max": null, "l2_fill": "on_evict", "ttl_default": "5m", "ttl_max": 86400}),
            json!({"promote_l1": "never", "lookup_order": "l2_first", "namespaces_mode": "declared"}),
            json!({"namespaces": {
                "img": {"tiers": ["l3", "l0"], "l0_max": null, "ttl_max": "none", "body_bytes_max": "1GB"},
                "tmp": {"mode": "cache_only", "l2_fill": null, "promote_l2": "never"},
                "memcached": {"mode": "durable"},
            }}),
        ] {
            let policy = read(&value);
            let written = policy.to_json();
            assert_eq!(read(&written), policy, "{value}");
            assert_eq!(read(&written).to_json(), written, "{value}");
        }
    }

    #[test]
    fn the_root_is_complete_and_agrees_with_its_list_of_fields() {
        let written = read(&json!({})).to_json();
        let members = written.as_object().expect("an object");
        let mut listed: Vec<_> = FIELDS.iter().map(|field| field.name).chain(["namespaces"]).collect();
        listed.sort_unstable();
        assert_eq!(members.keys().collect::<Vec<_>>(), listed);
        for field in FIELDS {
            let stated = Policy::from_json(&json!({field.name: field.default})).expect(field.name);
            assert_eq!(stated, Policy::default(), "{} = {} is the default", field.name, field.default);
        }
        assert_eq!(written["l0_max"], 2 << 20);
        assert_eq!(written["l2_max"], Value::Null);
        assert_eq!(written["namespaces"], json!({"memcached": {"mode": "cache_only"}}));
    }

    #[test]
    fn mistakes_name_their_field() {
        for (value, pointer, message) in [
            (json!([]), "", "not an object"),
            (json!({"l0max": 1}), "/l0max", "did you mean `l0_max`"),
            (json!({"a/b~c": 1}), "/a~1b~0c", "no such field"),
            (json!({"l0_max": -1}), "/l0_max", "not a size"),
            (json!({"l0_max": 1.5}), "/l0_max", "not a size"),
            (json!({"l0_max": "2M"}), "/l0_max", "unknown unit"),
            (json!({"l0_max": true}), "/l0_max", "not a size"),
            (json!({"promote_l0": "always"}), "/promote_l0", "\"never\", \"on_stream_commit_at_finish\""),
            (json!({"promote_l0": null}), "/promote_l0", "not one of"),
            (json!({"promote_l3": "never"}), "/promote_l3", "no such field"),
            (json!({"l2_fill": "later"}), "/l2_fill", "on_evict"),
            (json!({"lookup_order": "l3_first"}), "/lookup_order", "l2_first"),
            (json!({"ttl_default": 0}), "/ttl_default", "1 second"),
            (json!({"ttl_default": "1500ms"}), "/ttl_default", "not a time to live"),
            (json!({"ttl_max": "90000d"}), "/ttl_max", "1 second to"),
            (json!({"ttl_default": 61, "ttl_max": "1m"}), "/ttl_default", "above ttl_max"),
            (json!({"mode": "durable"}), "/mode", "belongs to a namespace"),
            (json!({"namespaces_mode": "closed"}), "/namespaces_mode", "\"open\", \"declared\""),
            (json!({"namespaces": "declared"}), "/namespaces", "not an object"),
            (json!({"namespaces": {"A": {}}}), "/namespaces/A", "a-z"),
            (json!({"namespaces": {"a/b": {}}}), "/namespaces/a~1b", "a-z"),
            (json!({"namespaces": {"a": 1}}), "/namespaces/a", "not an object"),
            (json!({"namespaces": {"a": {"teirs": []}}}), "/namespaces/a/teirs", "did you mean `tiers`"),
            (json!({"namespaces": {"a": {"tiers": ["l4"]}}}), "/namespaces/a/tiers/0", "\"l3\""),
            (json!({"namespaces": {"a": {"tiers": ["l3", "l3"]}}}), "/namespaces/a/tiers/1", "twice"),
            (json!({"namespaces": {"a": {"tiers": ["l0", "l2"]}}}), "/namespaces/a/tiers", "cache_only"),
            (json!({"namespaces": {"a": {"mode": "durable", "tiers": ["l0"]}}}), "/namespaces/a/tiers", "l3"),
            (json!({"namespaces": {"a": {"mode": "cache_only", "tiers": ["l0", "l3"]}}}), "/namespaces/a/tiers", "l3"),
            (json!({"namespaces": {"a": {"mode": "cache_only", "tiers": ["l1"]}}}), "/namespaces/a/tiers", "l0 or l2"),
            (json!({"namespaces": {"a": {"mode": "cache_only", "tiers": []}}}), "/namespaces/a/tiers", "l0 or l2"),
            (
                json!({"namespaces": {"memcached": {"tiers": ["l0", "l3"]}}}),
                "/namespaces/memcached/tiers",
                "cache-only",
            ),
            (json!({"namespaces": {"a": {"mode": "cache_only", "l1_max": 1}}}), "/namespaces/a/l1_max", "not use l1"),
            (
                json!({"namespaces": {"a": {"tiers": ["l3"], "promote_l0": "on_stream_commit_at_finish"}}}),
                "/namespaces/a/promote_l0",
                "not use l0",
            ),
            (
                json!({"namespaces": {"a": {"tiers": ["l0", "l3"], "l2_fill": "on_write"}}}),
                "/namespaces/a/l2_fill",
                "l2",
            ),
            (
                json!({"namespaces": {"a": {"tiers": ["l2", "l3"], "l2_fill": "on_evict"}}}),
                "/namespaces/a/l2_fill",
                "l0",
            ),
            (
                json!({"namespaces": {"a": {"tiers": ["l0", "l3"], "lookup_order": "l2_first"}}}),
                "/namespaces/a/lookup_order",
                "both",
            ),
            (json!({"ttl_max": 60, "namespaces": {"a": {"ttl_default": 61}}}), "/namespaces/a/ttl_default", "61 s"),
            (json!({"ttl_default": 60, "namespaces": {"a": {"ttl_max": 59}}}), "/namespaces/a/ttl_max", "59 s"),
        ] {
            let error = Policy::from_json(&value).expect_err(&value.to_string());
            assert_eq!(error.pointer, pointer, "{value}: {error}");
            assert!(error.message.contains(message), "{value}: {error}");
        }
    }

    #[test]
    fn what_only_inherits_is_not_a_contradiction() {
        // The root promotes everywhere and orders L2 first; a namespace without those tiers says nothing of them.
        read(&json!({"lookup_order": "l2_first", "l2_fill": "on_evict", "namespaces": {
            "a": {"tiers": ["l3"]}, "b": {"mode": "cache_only", "tiers": ["l2"], "promote_l0": "never"},
        }}));
    }

    #[test]
    fn namespaces_are_bounded() {
        let of = |n: usize| -> Value {
            json!({"namespaces": (0..n).map(|i| (format!("n{i}"), json!({}))).collect::<Map<_, _>>()})
        };
        assert_eq!(read(&of(NAMESPACES_MAX)).declared().count(), NAMESPACES_MAX + 1, "and memcached");
        assert_eq!(Policy::from_json(&of(NAMESPACES_MAX + 1)).expect_err("too many").pointer, "/namespaces");
    }

    #[test]
    fn what_is_written_survives_a_merge_patch() {
        // RFC 7396 takes null members out, so unlimited may be written as null only where that is the default.
        fn without_nulls(value: Value) -> Value {
            let Value::Object(members) = value else { return value };
            members.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        let stated = json!({"l0_max": null, "l1_max": "none", "l2_max": 7, "l2_fill": null, "ttl_max": null});
        let both = json!({"l0_max": null, "l1_max": 3, "namespaces": {"a": stated.clone()}});
        for value in [json!({}), stated, both] {
            let policy = read(&value);
            assert_eq!(read(&without_nulls(policy.to_json())), policy, "{value}");
        }
    }
}
