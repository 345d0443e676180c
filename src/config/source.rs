//! The layers of settings, and their joining: defaults, the file, the environment, flags; the later wins.
//!
//! Everything that is wrong is collected, so that one look tells all. An unknown name in the file or a flag is an
//! error; an unknown variable `STRATA_*` only a warning, because container platforms make such variables up for a
//! service that is called strata.
//!
//! Left to others: whether the values fit one another (`config`).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    table::{NOT_YET, Origin, SETTINGS, Setting, Values, variable},
    value::{Input, Profile},
};
use crate::{
    human::did_you_mean,
    policy::{FIELDS, Policy},
};

/// Largest configuration file, in bytes: 1,024 namespaces with every field fit several times.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The variable that names the configuration file.
pub const FILE_VARIABLE: &str = "STRATA_CONFIG";

/// What the tiny profile says of the policy.
const TINY_POLICY: [(&str, &str); 1] = [("l0_max", "64KiB")];

/// Everything that settings are taken from. Plain data: nothing is read from the process.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file's path and text.
    pub file: Option<(PathBuf, String)>,
    /// The environment; only names that begin with `STRATA_` are looked at.
    pub environment: BTreeMap<String, String>,
    /// Name, value, and the flag as it was given, in order.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// Reads the file that `config`, or else the environment, names; none is fine.
    ///
    /// # Errors
    /// The file cannot be read, is not UTF-8, or is larger than 4 MiB.
    pub fn read(
        config: Option<&Path>,
        environment: BTreeMap<String, String>,
        flags: Vec<(String, String, String)>,
    ) -> Result<Self, String> {
        let path = config.map(PathBuf::from).or_else(|| environment.get(FILE_VARIABLE).map(PathBuf::from));
        let file = path.map(|path| read_file(&path).map(|text| (path, text))).transpose()?;
        Ok(Self { file, environment, flags })
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: cannot read the configuration: {e}", path.display());
    let length = std::fs::metadata(path).map_err(|e| failed(&e))?.len();
    if length > FILE_BYTES_MAX {
        return Err(failed(&format_args!("{length} bytes; the most is {FILE_BYTES_MAX}")));
    }
    std::fs::read_to_string(path).map_err(|e| failed(&e))
}

/// All layers joined: what each setting is, before relations are checked.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) values: Values,
    pub(super) policy: Policy,
    /// Origins by JSON pointer, of what the layers said of the policy.
    pub(super) policy_origins: BTreeMap<String, Origin>,
    pub(super) warnings: Vec<String>,
}

/// Joins the layers.
///
/// # Errors
/// Every mistake found, one line each.
pub(super) fn join(sources: &Sources) -> Result<Joined, Vec<String>> {
    let mut join = Join::default();
    if let Some((path, text)) = &sources.file {
        join.file(path, text);
    }
    join.environment(&sources.environment);
    for (name, value, flag) in &sources.flags {
        join.flag(name, value, flag);
    }
    // The profile decides defaults, so it is known last and applied first.
    let given = std::mem::take(&mut join.given);
    let profile = given.iter().rev().find(|(setting, ..)| setting.name == "profile");
    if let Some((_, Input::Text(word), _)) = profile
        && word == Profile::Tiny.name()
    {
        join.tiny();
    }
    for (setting, input, origin) in given {
        let at = origin.to_string();
        if let Err(message) = (setting.set)(&mut join.values, &input, origin) {
            join.wrong(&at, setting.name, &message);
        }
    }
    join.done()
}

struct Join {
    values: Values,
    /// What the layers said, weakest first.
    given: Vec<(&'static Setting, Input, Origin)>,
    policy: Value,
    policy_origins: BTreeMap<String, Origin>,
    wrong: Vec<String>,
    warnings: Vec<String>,
}

impl Default for Join {
    fn default() -> Self {
        Self {
            values: Values::defaults(),
            given: Vec::new(),
            policy: Value::Object(Map::new()),
            policy_origins: BTreeMap::new(),
            wrong: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl Join {
    fn wrong(&mut self, at: &str, name: &str, message: &str) {
        self.wrong.push(format!("{at}: {name}: {message}"));
    }

    fn done(mut self) -> Result<Joined, Vec<String>> {
        let policy = Policy::from_json(&self.policy).unwrap_or_else(|error| {
            let at = origin_of(&self.policy_origins, &error.pointer).map(|origin| format!("{origin}: "));
            let name = dotted(&error.pointer);
            self.wrong.push(format!("{}{name}: {}", at.unwrap_or_default(), error.message));
            Policy::default()
        });
        let Self { values, policy_origins, warnings, .. } = self;
        if self.wrong.is_empty() { Ok(Joined { values, policy, policy_origins, warnings }) } else { Err(self.wrong) }
    }

    fn tiny(&mut self) {
        for setting in SETTINGS {
            if let Some(text) = setting.tiny {
                let set = (setting.set)(&mut self.values, &Input::Text(text.into()), Origin::Profile);
                debug_assert!(set.is_ok(), "a test reads every default");
            }
        }
        for (name, text) in TINY_POLICY {
            if self.policy.get(name).is_none() {
                self.policy[name] = text.into();
                self.policy_origins.insert(format!("/{name}"), Origin::Profile);
            }
        }
    }

    fn file(&mut self, path: &Path, text: &str) {
        let line = |at: usize| 1 + text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count();
        match DeTable::parse(text) {
            Ok(table) => self.table("", table.get_ref(), &|at| Origin::File { path: path.into(), line: line(at) }),
            Err(error) => {
                let at = error.span().map_or(1, |span| line(span.start));
                self.wrong.push(format!("{}:{at}: not TOML: {}", path.display(), error.message()));
            }
        }
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let at = origin(key.span().start);
            match (find(&name), value.get_ref()) {
                (Some(setting), value) => match input(value) {
                    Some(input) => self.given.push((setting, input, at)),
                    None => self.wrong(&at.to_string(), &name, &format!("expected {}", setting.unit)),
                },
                (None, DeValue::Table(table)) if name == "policy" => self.policy_table("", table, origin),
                (None, DeValue::Table(table)) if is_section(&name) => self.table(&format!("{name}."), table, origin),
                (None, _) if is_section(&name) || name == "policy" => {
                    self.wrong(&at.to_string(), &name, &format!("this is a section; write [{name}]"));
                }
                (None, DeValue::String(mode)) if name == "namespaces" => {
                    self.policy("/namespaces_mode", mode.as_ref().into(), at);
                }
                (None, _) => self.unknown(&name, &at),
            }
        }
    }

    /// The `[policy]` table, and what it holds, as the policy's JSON.
    fn policy_table(&mut self, prefix: &str, table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let pointer = format!("{prefix}/{}", key.get_ref().replace('~', "~0").replace('/', "~1"));
            let at = origin(key.span().start);
            // The root, `namespaces`, and a namespace: deeper tables are mistakes that the policy refuses.
            match value.get_ref() {
                DeValue::Table(table) if pointer.matches('/').count() < 3 => {
                    self.policy(&pointer, Value::Object(Map::new()), at);
                    self.policy_table(&pointer, table, origin);
                }
                _ => self.policy(&pointer, json(value), at),
            }
        }
    }

    fn environment(&mut self, environment: &BTreeMap<String, String>) {
        for (name, value) in
            environment.iter().filter(|(name, _)| name.starts_with("STRATA_") && *name != FILE_VARIABLE)
        {
            let origin = Origin::Environment(name.clone());
            let field = FIELDS.iter().find(|field| {
                let alias = field.name == "namespaces_mode" && name == "STRATA_NAMESPACES";
                alias || *name == variable(&format!("policy.{}", field.name))
            });
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == *name) {
                self.given.push((setting, Input::Text(value.clone()), origin));
            } else if let Some(field) = field {
                self.policy(&format!("/{}", field.name), value.as_str().into(), origin);
            } else if let Some((not_yet, why)) =
                NOT_YET.iter().find(|(n, _)| *name == variable(n) || name.starts_with(&format!("{}_", variable(n))))
            {
                self.wrong(name, not_yet, why);
            } else {
                let known: Vec<_> = SETTINGS.iter().map(Setting::variable).collect();
                let hint = did_you_mean(name, known.iter().map(String::as_str));
                self.warnings.push(format!("{name}: no setting has this variable; it is ignored{hint}"));
            }
        }
    }

    fn flag(&mut self, name: &str, value: &str, flag: &str) {
        let origin = Origin::Flag(flag.into());
        if let Some(setting) = find(name) {
            self.given.push((setting, Input::Text(value.into()), origin));
        } else if name == "namespaces" {
            self.policy("/namespaces_mode", value.into(), origin);
        } else if let Some(path) = name.strip_prefix("policy.") {
            let list = || value.split(',').filter(|item| !item.is_empty()).map(Value::from).collect();
            let value = if path.ends_with(".tiers") { list() } else { Value::from(value) };
            self.policy(&format!("/{}", path.replace('.', "/")), value, origin);
        } else {
            self.unknown(name, &origin);
        }
    }

    /// Puts a value into the policy's document, over what weaker layers said.
    fn policy(&mut self, pointer: &str, value: Value, origin: Origin) {
        let mut target = &mut self.policy;
        for token in pointer.split('/').skip(1) {
            let token = token.replace("~1", "/").replace("~0", "~");
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            target = &mut target[token];
        }
        // A table adds to what is there.
        if !(value.is_object() && target.is_object()) {
            *target = value;
        }
        self.policy_origins.insert(pointer.into(), origin);
    }

    fn unknown(&mut self, name: &str, origin: &Origin) {
        let section = name.split('.').next().unwrap_or_default();
        let message = match NOT_YET.iter().find(|(not_yet, _)| *not_yet == section) {
            Some((_, why)) => (*why).to_string(),
            None => {
                let sections = SETTINGS.iter().filter_map(|setting| setting.name.split_once('.')).map(|(s, _)| s);
                let known = SETTINGS.iter().map(|setting| setting.name).chain(sections);
                let known = known.chain(["policy", "namespaces"]);
                format!("there is no such setting{}", did_you_mean(name, known))
            }
        };
        self.wrong(&origin.to_string(), name, &message);
    }
}

/// The origin of a part of the policy: its own, or that of what holds it.
pub(super) fn origin_of<'a>(origins: &'a BTreeMap<String, Origin>, pointer: &str) -> Option<&'a Origin> {
    let mut pointer = pointer;
    loop {
        if let Some(origin) = origins.get(pointer) {
            return Some(origin);
        }
        pointer = pointer.rsplit_once('/')?.0;
    }
}

/// A JSON pointer into the policy as a dotted name.
fn dotted(pointer: &str) -> String {
    format!("policy{}", pointer.replace('/', ".").replace("~1", "/").replace("~0", "~"))
}

fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

fn is_section(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// A scalar or a list of strings, as text; numbers as they stand, in decimal.
fn input(value: &DeValue<'_>) -> Option<Input> {
    let text = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_string()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    };
    match value {
        DeValue::Array(items) => items.iter().map(|item| text(item.get_ref())).collect::<Option<_>>().map(Input::List),
        value => text(value).map(Input::Text),
    }
}

/// A TOML value as JSON; what JSON lacks becomes text, which the policy refuses where it is not wanted.
fn json(value: &Spanned<DeValue<'_>>) -> Value {
    match value.get_ref() {
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or_else(|_| number.as_str().into(), Value::from)
        }
        DeValue::Boolean(flag) => Value::from(*flag),
        DeValue::Array(items) => items.iter().map(json).collect(),
        DeValue::Table(table) => table.iter().map(|(key, value)| (key.get_ref().to_string(), json(value))).collect(),
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Datetime(date) => date.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
        let pairs = |(name, value): &(&str, &str)| ((*name).to_string(), (*value).to_string());
        Sources {
            file: Some(("f.toml".into(), file.into())),
            environment: environment.iter().map(pairs).collect(),
            flags: flags.iter().map(pairs).map(|(n, v)| (n.clone(), v.clone(), format!("--set {n}={v}"))).collect(),
        }
    }

    fn joined(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Joined {
        join(&sources(file, environment, flags)).expect("valid")
    }

    fn get(joined: &Joined, name: &str) -> (String, String) {
        let (value, origin) = (find(name).expect(name).get)(&joined.values);
        (value, origin.to_string())
    }

    #[test]
    fn the_later_layer_wins_and_says_where_it_is_from() {
        let file = "# first\nbody_bytes_max = \"1MiB\"\n[l3]\norphan_age = 60\nblob_grace = \"5s\"\n";
        let environment = [("STRATA_BODY_BYTES_MAX", "2MiB"), ("STRATA_L3_BLOB_GRACE", "6s"), ("HOME", "x")];
        let joined = joined(file, &environment, &[("body_bytes_max", "3MiB"), ("body_bytes_max", "4MiB")]);
        for (name, value, origin) in [
            ("body_bytes_max", "\"4MiB\"", "--set body_bytes_max=4MiB"),
            ("l3.blob_grace", "\"6s\"", "STRATA_L3_BLOB_GRACE"),
            ("l3.orphan_age", "\"1m\"", "f.toml:4"),
            ("log_format", "\"text\"", "default"),
        ] {
            assert_eq!(get(&joined, name), (value.into(), origin.into()), "{name}");
        }
        assert!(joined.warnings.is_empty(), "{:?}", joined.warnings);
    }

    #[test]
    fn kinds_of_toml_values() {
        let file = "allow_open = true\nshards = 0x10\nmemory_max = 1_073_741_824\nl2_paths = [\"/a\", \"/b\"]\n";
        let joined = joined(file, &[], &[("l2.segment_bytes", "2MiB")]);
        for (name, value) in [
            ("allow_open", "true"),
            ("shards", "16"),
            ("memory_max", "\"1GiB\""),
            ("l2_paths", "[\"/a\", \"/b\"]"),
            ("l2.segment_bytes", "\"2MiB\""),
        ] {
            assert_eq!(get(&joined, name).0, value, "{name}");
        }
    }

    #[test]
    fn mistakes_name_file_and_line_and_the_nearest_name() {
        for (file, wanted) in [
            ("\nmemory_mx = 1", "f.toml:2: memory_mx: there is no such setting; did you mean `memory_max`?"),
            (
                "[l3]\norphan_agee = 1",
                "f.toml:2: l3.orphan_agee: there is no such setting; did you mean `l3.orphan_age`",
            ),
            ("[l4]\nx = 1", "f.toml:1: l4: there is no such setting"),
            ("l3 = 1", "write [l3]"),
            ("policy = 1", "write [policy]"),
            ("memory_max = 1.5", "f.toml:1: memory_max: \"1.5\": fractions"),
            ("memory_max = -1", "f.toml:1: memory_max: "),
            ("memory_max = [1]", "a list is not size"),
            ("memory_max = {a = 1}", "expected size"),
            ("memory_max = \"2M\"", "unknown unit \"M\""),
            ("http_listen = 7800", "f.toml:1: http_listen: \"7800\" is not an address"),
            ("a b", "f.toml:1: not TOML"),
            ("data_dir = \"a\"\ndata_dir = \"b\"", "f.toml:2: not TOML: duplicate"),
            ("[l1]\nurl = \"x\"", "f.toml:1: l1: the shared network cache is not available yet"),
            ("[tls]\n", "f.toml:1: tls: TLS is not available yet"),
            ("auth.token = \"x\"", "f.toml:1: auth: authentication is not available yet"),
            ("flash_write_budget = \"1GiB\"", "flash_write_budget: writes to flash are not limited"),
            ("[policy]\nl0max = 1", "f.toml:2: policy.l0max: there is no such field; did you mean `l0_max`?"),
            ("[policy.namespaces.a]\n\ntiers = [\"l0\"]", "f.toml:3: policy.namespaces.a.tiers: a durable namespace"),
            ("[policy.namespaces.A]\n", "f.toml:1: policy.namespaces.A: a namespace is"),
            ("[policy]\nl0_max = 2020-01-01", "f.toml:2: policy.l0_max: \"2020-01-01\" is not a size"),
            ("namespaces = \"closed\"", "f.toml:1: policy.namespaces_mode: \"closed\" is not one of"),
        ] {
            let wrong = join(&sources(file, &[], &[])).expect_err(file);
            assert!(wrong.len() == 1 && wrong[0].contains(wanted), "{file}: {wrong:?}");
        }
        let wrong =
            join(&sources("a = 1", &[("STRATA_SHARDS", "x")], &[("b", "1"), ("tls.cert", "x")])).expect_err("4");
        assert_eq!(wrong.len(), 4, "all of them: {wrong:?}");
    }

    #[test]
    fn an_unknown_variable_is_a_warning_and_a_known_section_an_error() {
        let joined = joined("", &[("STRATA_PORT", "tcp://10.0.0.1:7800"), ("STRATA_MEMORY_MX", "1")], &[]);
        assert_eq!(joined.warnings.len(), 2);
        assert!(joined.warnings[0].contains("did you mean `STRATA_MEMORY_MAX`"), "{:?}", joined.warnings);
        let wrong = join(&sources("", &[("STRATA_TLS_CERT", "x")], &[])).expect_err("tls");
        assert!(wrong[0].contains("TLS is not available yet"), "{wrong:?}");
    }

    #[test]
    fn the_policy_is_joined_field_by_field() {
        let file = "namespaces = \"declared\"\n[policy]\nl0_max = \"1KiB\"\nl1_max = 5\n\
                    [policy.namespaces.img]\nttl_max = \"1h\"\n";
        let environment = [("STRATA_POLICY_L1_MAX", "6")];
        let flags = [("policy.namespaces.img.tiers", "l0,l3"), ("policy.namespaces.tmp.mode", "cache_only")];
        let joined = joined(file, &environment, &flags);
        let policy = joined.policy.to_json();
        assert_eq!((&policy["l0_max"], &policy["l1_max"]), (&1024.into(), &6.into()));
        assert_eq!(policy["namespaces"]["img"], serde_json::json!({"tiers": ["l0", "l3"], "ttl_max": 3600}));
        assert_eq!(policy["namespaces"]["tmp"]["mode"], "cache_only");
        assert_eq!(policy["namespaces_mode"], "declared");
        let origin = |pointer| origin_of(&joined.policy_origins, pointer).map(ToString::to_string);
        assert_eq!(origin("/l0_max").as_deref(), Some("f.toml:3"));
        assert_eq!(origin("/l1_max").as_deref(), Some("STRATA_POLICY_L1_MAX"));
        assert_eq!(origin("/namespaces/img/tiers/0").as_deref(), Some("--set policy.namespaces.img.tiers=l0,l3"));
        assert_eq!(origin("/l2_max"), None);
    }

    #[test]
    fn the_tiny_profile_is_weaker_than_everything_given() {
        let joined = joined("profile = \"tiny\"\nshards = 3", &[("STRATA_POLICY_L0_MAX", "9")], &[]);
        assert_eq!(get(&joined, "shards"), ("3".into(), "f.toml:2".into()));
        assert_eq!(get(&joined, "l2_bytes"), ("\"32MiB\"".into(), "profile tiny".into()));
        assert_eq!(joined.policy.to_json()["l0_max"], 9);
        let by_flag = join(&sources("", &[], &[("profile", "tiny")])).expect("valid");
        assert_eq!(by_flag.policy.to_json()["l0_max"], 64 << 10);
    }

    #[test]
    fn files_that_cannot_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.toml");
        let read = |path: &Path| Sources::read(Some(path), BTreeMap::new(), vec![]);
        assert!(read(&path).expect_err("missing").contains("c.toml: cannot read the configuration"));
        std::fs::write(&path, [0xff, 0xfe]).expect("written");
        assert!(read(&path).expect_err("not UTF-8").contains("UTF-8"));
        std::fs::File::create(&path).and_then(|f| f.set_len(FILE_BYTES_MAX + 1)).expect("sparse");
        assert!(read(&path).expect_err("too large").contains("the most is"));
        std::fs::write(&path, "shards = 1").expect("written");
        let environment = BTreeMap::from([(FILE_VARIABLE.to_string(), path.display().to_string())]);
        let sources = Sources::read(None, environment, vec![]).expect("named by the environment");
        assert_eq!(sources.file, Some((path, "shards = 1".into())));
    }
}
