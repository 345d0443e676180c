//! What is kept where: gates, promotion and the tiers of a namespace. Pure: no I/O, no clock.
//!
//! Owns [`Policy`], the immutable value that an operator writes as JSON or TOML, and [`Effective`], the policy of one
//! namespace with every default filled in, which is all that the data path reads. A policy is swapped whole, under a
//! version ([`VersionedPolicy`]).
//!
//! Invariants: a `Policy` that exists is free of contradictions, and `Policy::from_json(&policy.to_json())` is the
//! same policy. Looking up the rules of a namespace allocates nothing.
//!
//! Left to others: which namespaces exist (`namespace`), where a policy is kept (`datadir`), who may change it
//! (the admin door). The JSON is read and written in [`json`](self::json).

mod json;

use std::{collections::BTreeMap, fmt, sync::Arc};

use hashbrown::HashMap;

use crate::cache::Tier;

pub use self::json::{FIELDS, Field, PolicyError};

/// Most namespaces that a policy may declare, and most that may be in use without being declared.
pub const NAMESPACES_MAX: usize = 1024;

/// The namespace of the memcached door: always declared, cache-only unless the policy says otherwise.
pub const MEMCACHED: &str = "memcached";

/// Whether an object read from a lower tier is copied into a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// Not at all; costs nothing.
    Never,
    /// Tee the stream, and commit only when the whole verified body has passed.
    OnStreamCommitAtFinish,
}

/// When an object is written to flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Fill {
    /// With the write.
    OnWrite,
    /// When it leaves L0.
    OnEvict,
}

/// In which order L1 and L2 are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupOrder {
    /// L0, L1, L2, L3.
    L1First,
    /// L0, L2, L1, L3 when L2's RAM index holds the key.
    L2First,
}

/// What acknowledges a write of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// L3: what was acknowledged survives a crash.
    Durable,
    /// L0 or L2: a cache.
    CacheOnly,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(json::mode_name(*self))
    }
}

/// The policy of one namespace with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// What acknowledges a write.
    pub mode: Mode,
    /// Tiers the namespace uses, indexed by [`Tier`].
    pub tiers: [bool; 4],
    /// Largest admitted body in bytes per tier, indexed by [`Tier`]; `None` is unlimited. An object exactly at its
    /// gate is admitted.
    pub gates: [Option<u64>; 4],
    /// Promotion into L0, L1 and L2, indexed by [`Tier`].
    pub promote: [Promotion; 3],
    /// When L2 is filled with objects of at most the L0 gate; `None`: on write in durable namespaces, on eviction in
    /// cache-only ones. Larger objects are always written at once.
    pub l2_fill: Option<L2Fill>,
    /// Order of look-ups.
    pub lookup_order: LookupOrder,
    /// Time to live when the writer gives none, milliseconds; `None`: for ever.
    pub ttl_default_ms: Option<u64>,
    /// Cap on every time to live, milliseconds.
    pub ttl_max_ms: Option<u64>,
    /// Largest body accepted at all, in bytes; `None`: the node's `body_bytes_max` alone.
    pub body_bytes_max: Option<u64>,
}

impl Effective {
    /// Whether `tier` takes part and admits a body of `length` bytes (of so many so far, in mid-stream).
    #[must_use]
    pub fn admits(&self, tier: Tier, length: u64) -> bool {
        self.tiers[tier as usize] && self.gates[tier as usize].is_none_or(|gate| length <= gate)
    }

    /// When a body of `length` bytes goes to flash.
    #[must_use]
    pub fn l2_fill(&self, length: u64) -> L2Fill {
        if !self.admits(Tier::L0, length) {
            return L2Fill::OnWrite;
        }
        self.l2_fill.unwrap_or(match self.mode {
            Mode::Durable => L2Fill::OnWrite,
            Mode::CacheOnly => L2Fill::OnEvict,
        })
    }
}

/// Whether a namespace must be declared before it is written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespacesMode {
    /// Made on first write, under the root fields.
    #[default]
    Open,
    /// Only those under `namespaces` may be written to.
    Declared,
}

/// What a policy states at its root (every field of it) or for one namespace (`None`: as the root says).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stated {
    mode: Option<Mode>,
    tiers: Option<[bool; 4]>,
    /// Indexed by [`Tier`]; L3 has no gate.
    gates: [Option<Option<u64>>; 3],
    promote: [Option<Promotion>; 3],
    l2_fill: Option<Option<L2Fill>>,
    lookup_order: Option<LookupOrder>,
    ttl_default_s: Option<Option<u64>>,
    ttl_max_s: Option<Option<u64>>,
    body_bytes_max: Option<Option<u64>>,
}

/// The root of a policy that states nothing.
const DEFAULTS: Stated = Stated {
    mode: None,
    tiers: None,
    gates: [Some(Some(2 << 20)), Some(Some(64 << 20)), Some(None)],
    promote: [Some(Promotion::OnStreamCommitAtFinish); 3],
    l2_fill: Some(None),
    lookup_order: Some(LookupOrder::L1First),
    ttl_default_s: Some(None),
    ttl_max_s: Some(None),
    body_bytes_max: Some(None),
};

impl Stated {
    /// `self`, and where it is silent `below`.
    fn or(&self, below: &Self) -> Self {
        let each = |i: usize| (self.gates[i].or(below.gates[i]), self.promote[i].or(below.promote[i]));
        let [l0, l1, l2] = [each(0), each(1), each(2)];
        Self {
            mode: self.mode.or(below.mode),
            tiers: self.tiers.or(below.tiers),
            gates: [l0.0, l1.0, l2.0],
            promote: [l0.1, l1.1, l2.1],
            l2_fill: self.l2_fill.or(below.l2_fill),
            lookup_order: self.lookup_order.or(below.lookup_order),
            ttl_default_s: self.ttl_default_s.or(below.ttl_default_s),
            ttl_max_s: self.ttl_max_s.or(below.ttl_max_s),
            body_bytes_max: self.body_bytes_max.or(below.body_bytes_max),
        }
    }

    fn mode(&self) -> Mode {
        self.mode.unwrap_or(Mode::Durable)
    }

    /// A durable namespace uses every tier, a cache-only one RAM and flash, unless it says otherwise.
    fn tiers(&self) -> [bool; 4] {
        self.tiers.unwrap_or(match self.mode() {
            Mode::Durable => [true; 4],
            Mode::CacheOnly => [true, false, true, false],
        })
    }

    /// The rules that follow; `self` has been joined with a complete root. Promotion into a tier that is not used
    /// is `Never`, so that nobody pays for it.
    fn effective(&self) -> Effective {
        let tiers = self.tiers();
        let [l0, l1, l2] = self.gates.map(Option::flatten);
        let mut promote = self.promote.map(|p| p.unwrap_or(Promotion::Never));
        for (promote, used) in promote.iter_mut().zip(tiers) {
            if !used {
                *promote = Promotion::Never;
            }
        }
        Effective {
            mode: self.mode(),
            tiers,
            gates: [l0, l1, l2, None],
            promote,
            l2_fill: self.l2_fill.flatten(),
            lookup_order: self.lookup_order.unwrap_or(LookupOrder::L1First),
            ttl_default_ms: self.ttl_default_s.flatten().map(|s| s * 1000),
            ttl_max_ms: self.ttl_max_s.flatten().map(|s| s * 1000),
            body_bytes_max: self.body_bytes_max.flatten(),
        }
    }
}

/// What is kept where, for every namespace. Immutable; made by [`Policy::from_json`] or [`Policy::default`].
#[derive(Clone, Debug)]
pub struct Policy {
    root: Stated,
    namespaces_mode: NamespacesMode,
    /// Sorted, so that the JSON is canonical. Always holds [`MEMCACHED`].
    namespaces: BTreeMap<Box<str>, Stated>,
    undeclared: Arc<Effective>,
    declared: HashMap<Box<str>, Arc<Effective>, foldhash::fast::FixedState>,
}

impl Policy {
    fn assemble(root: Stated, namespaces_mode: NamespacesMode, mut namespaces: BTreeMap<Box<str>, Stated>) -> Self {
        namespaces.entry(MEMCACHED.into()).or_default().mode.get_or_insert(Mode::CacheOnly);
        let mut declared = HashMap::with_capacity_and_hasher(namespaces.len(), foldhash::fast::FixedState::default());
        for (name, stated) in &namespaces {
            declared.insert(name.clone(), Arc::new(stated.or(&root).effective()));
        }
        Self { undeclared: Arc::new(root.effective()), root, namespaces_mode, namespaces, declared }
    }

    /// The rules of `namespace`; `None` when it is not declared and must be. Allocates nothing.
    #[must_use]
    pub fn effective(&self, namespace: &str) -> Option<Arc<Effective>> {
        match (self.declared.get(namespace), self.namespaces_mode) {
            (Some(effective), _) => Some(Arc::clone(effective)),
            (None, NamespacesMode::Open) => Some(Arc::clone(&self.undeclared)),
            (None, NamespacesMode::Declared) => None,
        }
    }

    /// The rules of a namespace that is not declared: the root fields, durable, every tier.
    #[must_use]
    pub fn undeclared(&self) -> &Arc<Effective> {
        &self.undeclared
    }

    /// Whether namespaces are made on first write.
    #[must_use]
    pub fn namespaces_mode(&self) -> NamespacesMode {
        self.namespaces_mode
    }

    /// What acknowledges a write to `namespace`, declared or not.
    #[must_use]
    pub fn mode(&self, namespace: &str) -> Mode {
        self.declared.get(namespace).map_or(self.undeclared.mode, |rules| rules.mode)
    }

    /// Whether every namespace that `before` declares has the same mode here. What a namespace holds was
    /// acknowledged by the tiers of its mode: under the other, objects of L3 would be there and never found, and
    /// copies in RAM and on flash would be held against an index that never knew them. `cached`: such copies may be
    /// there, or come back; where not, a cache-only namespace may become durable.
    ///
    /// # Errors
    /// The first by name whose mode differs, for one because it is declared no more; the pointer is to its mode.
    pub fn keeps_modes_of(&self, before: &Self, cached: bool) -> Result<(), PolicyError> {
        let keeps = |(name, rules): &(&str, &Arc<Effective>)| {
            rules.mode == self.mode(name) || (rules.mode == Mode::CacheOnly && !cached)
        };
        let Some((name, rules)) = before.declared().find(|declared| !keeps(declared)) else { return Ok(()) };
        let way_out = match rules.mode {
            Mode::Durable => String::new(),
            Mode::CacheOnly => format!(
                ". To give it up with what it caches: configure policy.namespaces.{name}.mode = \"durable\" and start \
                 once with l2_bytes = 0; after that it need not be declared"
            ),
        };
        let message = if self.declared.contains_key(name) {
            format!("`{name}` is {} and stays it: declare another namespace for the other mode{way_out}", rules.mode)
        } else {
            format!(
                "`{name}` is {mode}, and undeclared it would be {}: keep it declared, by \"namespaces\": {{\"{name}\": \
                 {{\"mode\": \"{mode}\"}}}} or [policy.namespaces.{name}] with mode = \"{mode}\", and declare another \
                 namespace for the other mode{way_out}",
                self.undeclared.mode,
                mode = rules.mode
            )
        };
        Err(PolicyError::mode(name, message))
    }

    /// The cache-only namespaces that `before` does not declare, by name: undeclared they were durable.
    pub fn caches_new_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a str> {
        let new = |(name, rules): &(&str, &Arc<Effective>)| {
            rules.mode == Mode::CacheOnly && !before.declared.contains_key(*name)
        };
        self.declared().filter(new).map(|(name, _)| name)
    }

    /// The durable namespaces that `before` declares and this does not, by name.
    pub fn durables_gone_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a str> {
        let gone =
            |(name, rules): &(&str, &Arc<Effective>)| rules.mode == Mode::Durable && !self.declared.contains_key(*name);
        before.declared().filter(gone).map(|(name, _)| name)
    }

    /// The declared namespaces with their rules, by name. At most [`NAMESPACES_MAX`], and [`MEMCACHED`].
    pub fn declared(&self) -> impl Iterator<Item = (&str, &Arc<Effective>)> {
        self.namespaces.keys().filter_map(|name| Some((&**name, self.declared.get(name)?)))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::assemble(DEFAULTS, NamespacesMode::Open, BTreeMap::new())
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        // The rest is derived.
        (&self.root, self.namespaces_mode, &self.namespaces) == (&other.root, other.namespaces_mode, &other.namespaces)
    }
}

impl Eq for Policy {}

/// A policy under its version, as it travels to the shards. Versions only grow, across restarts too.
#[derive(Clone, Debug)]
pub struct VersionedPolicy {
    /// 1 for the first policy of a data directory.
    pub version: u64,
    /// The policy.
    pub policy: Arc<Policy>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_nobody_declared_is_durable_under_the_root() {
        let rules = Policy::default().effective("anything").expect("open");
        assert_eq!((rules.mode, rules.tiers), (Mode::Durable, [true; 4]));
        assert_eq!(rules.gates, [Some(2 << 20), Some(64 << 20), None, None]);
        assert_eq!(rules.promote, [Promotion::OnStreamCommitAtFinish; 3]);
        assert_eq!((rules.ttl_default_ms, rules.ttl_max_ms, rules.body_bytes_max), (None, None, None));
        assert!(rules.admits(Tier::L0, 2 << 20) && !rules.admits(Tier::L0, (2 << 20) + 1));
        assert_eq!(rules.l2_fill(1), L2Fill::OnWrite);
    }

    #[test]
    fn memcached_is_a_cache_in_ram_and_flash_and_always_declared() {
        let policy = Policy::from_json(&json!({"namespaces_mode": "declared"})).expect("valid");
        let rules = policy.effective(MEMCACHED).expect("declared");
        assert_eq!((rules.mode, rules.tiers), (Mode::CacheOnly, [true, false, true, false]));
        assert_eq!(rules.promote[1], Promotion::Never, "into a tier it does not use");
        assert_eq!((rules.l2_fill(100), rules.l2_fill(3 << 20)), (L2Fill::OnEvict, L2Fill::OnWrite));
        assert_eq!(policy.effective("other"), None);
        let durable = Policy::from_json(&json!({"namespaces": {"memcached": {"mode": "durable"}}})).expect("valid");
        assert_eq!(durable.effective(MEMCACHED).expect("declared").tiers, [true; 4]);
    }

    #[test]
    fn a_namespace_inherits_what_it_does_not_state() {
        let policy = Policy::from_json(&json!({
            "l0_max": "1KiB", "ttl_default": "5m",
            "namespaces": {"img": {"l0_max": null, "tiers": ["l3", "l0"], "body_bytes_max": "1GiB"}},
        }))
        .expect("valid");
        let img = policy.effective("img").expect("declared");
        assert_eq!((img.gates[0], img.tiers), (None, [true, false, false, true]));
        assert_eq!((img.ttl_default_ms, img.body_bytes_max), (Some(300_000), Some(1 << 30)));
        assert_eq!(policy.effective("other").expect("open").gates[0], Some(1024));
        assert_eq!(policy.declared().map(|(name, _)| name).collect::<Vec<_>>(), ["img", "memcached"]);
    }

    #[test]
    fn a_namespace_keeps_its_mode() {
        let of = |namespaces: &serde_json::Value| Policy::from_json(&json!({"namespaces": namespaces})).expect("valid");
        let before = of(&json!({"cache": {"mode": "cache_only"}, "kept": {"mode": "durable"}}));
        let cache = json!({"mode": "cache_only"});
        for (after, refused) in [
            (json!({"cache": cache, "kept": {}}), None),
            (json!({"cache": {"mode": "cache_only", "tiers": ["l2"], "ttl_max": 5}, "new": cache}), None),
            (json!({"cache": cache, "kept": cache}), Some(("kept", "is durable"))),
            (json!({"cache": {}, "kept": {}}), Some(("cache", "is cache_only"))),
            (json!({"cache": {"mode": "durable"}}), Some(("cache", "is cache_only"))),
            (json!({"kept": {}}), Some(("cache", "keep it declared"))),
            (json!({"cache": cache, "memcached": {"mode": "durable"}}), Some(("memcached", "is cache_only"))),
        ] {
            let judged = of(&after).keeps_modes_of(&before, true);
            let Some((name, says)) = refused else {
                assert_eq!(judged, Ok(()), "{after}");
                continue;
            };
            let error = judged.expect_err(&after.to_string());
            assert_eq!(error.pointer, format!("/namespaces/{name}/mode"), "{after}");
            assert!(error.message.contains(says) && error.message.contains("another namespace"), "{error}");
            let way_out = format!("policy.namespaces.{name}.mode = \"durable\" and start once with l2_bytes = 0");
            assert_eq!(error.message.contains(&way_out), name != "kept", "{error}");
            // Where nothing is cached, a cache may go; what L3 holds stays durable.
            assert_eq!(of(&after).keeps_modes_of(&before, false).is_ok(), name != "kept", "{after}");
        }
        // Declared only to be written to at all, it is durable as before.
        let closed = Policy::from_json(&json!({"namespaces_mode": "declared"})).expect("valid");
        assert!(closed.keeps_modes_of(&of(&json!({"kept": {}})), true).is_ok());
        assert!(closed.keeps_modes_of(&before, true).is_err());
    }

    #[test]
    fn a_cache_is_new_when_it_was_not_declared() {
        let before = Policy::from_json(&json!({"namespaces": {"a": {"mode": "cache_only"}, "b": {}}})).expect("valid");
        let cache = json!({"mode": "cache_only"});
        let after = json!({"namespaces": {"a": cache, "b": cache, "c": cache, "d": {}}});
        let after = Policy::from_json(&after).expect("valid");
        assert_eq!(after.caches_new_since(&before).collect::<Vec<_>>(), ["c"]);
        assert_eq!(after.caches_new_since(&Policy::default()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(Policy::default().durables_gone_since(&after).collect::<Vec<_>>(), ["d"]);
        assert_eq!(after.durables_gone_since(&before).count(), 0, "b is declared still");
    }

    #[test]
    fn looking_rules_up_shares_them() {
        let policy = Policy::from_json(&json!({"namespaces": {"a": {}}})).expect("valid");
        for name in ["a", "b"] {
            let [one, two] = [policy.effective(name), policy.effective(name)].map(|e| e.expect("open"));
            assert!(Arc::ptr_eq(&one, &two), "{name}");
        }
    }
}
