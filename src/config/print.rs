//! The settings in effect, and the table of the documentation.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::Value;

use super::{
    Config,
    source::origin_of,
    table::{NOT_YET, Origin, SETTINGS, Values},
    value::quoted,
};
use crate::policy::{FIELDS, Field, Policy};

/// Column at which the origins begin.
const ORIGIN_COLUMN: usize = 48;

/// One setting in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingValue {
    /// Its dotted name.
    pub name: String,
    /// What its value is: `size`, `duration`, `number`, ...
    pub unit: &'static str,
    /// Its value as TOML.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Every setting in effect, the policy's fields among them, in the order of the documentation.
pub(super) fn settings(values: &Values, policy: &Policy, origins: &BTreeMap<String, Origin>) -> Vec<SettingValue> {
    let mut settings: Vec<_> = SETTINGS
        .iter()
        .map(|setting| {
            let (value, origin) = (setting.get)(values);
            SettingValue { name: setting.name.into(), unit: setting.unit, value, origin: origin.clone() }
        })
        .collect();
    let origin = |pointer: &str| origin_of(origins, pointer).cloned().unwrap_or(Origin::Default(String::new()));
    let document = policy.to_json();
    for field in FIELDS {
        let value = match (&document[field.name], field.name.ends_with("_max") && !field.name.starts_with("ttl")) {
            (Value::Number(bytes), true) => quoted(&crate::human::bytes(bytes.as_u64().unwrap_or_default())),
            (Value::Number(seconds), _) => quoted(&format!("{seconds}s")),
            (value, _) => toml(value),
        };
        let origin = origin(&format!("/{}", field.name));
        settings.push(SettingValue { name: name_of(&field), unit: field.unit, value, origin });
    }
    for (name, stated) in document["namespaces"].as_object().into_iter().flatten() {
        settings.push(SettingValue {
            name: format!("policy.namespaces.{name}"),
            unit: "what the namespace does not take from the root",
            value: toml(stated),
            origin: origin(&format!("/namespaces/{name}")),
        });
    }
    settings
}

/// The name of a policy's field among the settings.
fn name_of(field: &Field) -> String {
    match field.name {
        "namespaces_mode" => "namespaces".into(),
        name => format!("policy.{name}"),
    }
}

fn toml(value: &Value) -> String {
    match value {
        Value::Null => quoted("none"),
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(members) if members.is_empty() => "{}".into(),
        Value::Object(members) => {
            let members: Vec<_> = members.iter().map(|(name, value)| format!("{name} = {}", toml(value))).collect();
            format!("{{ {} }}", members.join(", "))
        }
        Value::Number(_) | Value::Bool(_) => value.to_string(),
    }
}

impl Config {
    /// Every setting in effect with its origin, and the memory plan: a TOML file that starts the same node.
    #[must_use]
    pub fn print(&self) -> String {
        let mut out = String::from("# The settings in effect. This is a configuration file.\n");
        for SettingValue { name, value, origin, .. } in &self.settings {
            let line = format!("{name} = {value}");
            let _ = writeln!(out, "{line:<ORIGIN_COLUMN$}  # {origin}");
        }
        out.push_str("\n# Where memory_max goes:\n");
        for line in self.memory.to_string().lines() {
            let _ = writeln!(out, "# {line}");
        }
        out
    }
}

/// The table of settings for the documentation, in Markdown. A test compares docs/04-operating.md with it.
#[must_use]
pub fn docs_table() -> String {
    let mut out = String::from("| setting | value | default | what it does |\n|---|---|---|---|\n");
    let mut row = |name: &str, unit: &str, default: &str, about: &str| {
        let cell = |text: &str| text.replace('|', "\\|");
        let _ = writeln!(out, "| `{name}` | {} | `{}` | {} |", cell(unit), cell(default), cell(about));
    };
    let (plain, sections): (Vec<_>, Vec<_>) = SETTINGS.iter().partition(|setting| !setting.name.contains('.'));
    for setting in plain {
        row(setting.name, setting.unit, setting.default, setting.about);
    }
    let (mode, fields): (Vec<_>, Vec<_>) = FIELDS.iter().partition(|field| field.name == "namespaces_mode");
    for field in mode.into_iter().chain(fields) {
        row(&name_of(field), field.unit, field.default, field.about);
    }
    let overrides = "What one namespace does differently: the fields above, `mode`, `tiers`, `body_bytes_max`.";
    row("policy.namespaces.NAME", "table", "{}", overrides);
    for setting in sections {
        row(setting.name, setting.unit, setting.default, setting.about);
    }
    out.push_str("\nKnown, but refused until they have an effect:");
    for (i, (name, why)) in NOT_YET.iter().enumerate() {
        let _ = write!(out, "{} `{name}` ({why})", if i == 0 { "" } else { ";" });
    }
    out.push_str(".\n");
    out
}
