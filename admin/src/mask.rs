//! Keeps secrets out of the configuration view (INV-ADMIN-3).
//!
//! A setting is hidden if the node says it is secret or if its name says so; inside any other string, the password
//! of a URL or of a `key=value` connection string is hidden. It errs on the side of hiding.

use serde_json::Value;

use crate::view::{ConfigView, SettingView};

/// What stands in place of a secret.
const MASK: &str = "***";

/// Words that make a name secret wherever they stand in its last part.
const SECRET_WORDS: [&str; 6] = ["secret", "password", "passwd", "passphrase", "token", "credential"];

/// Hides what must not leave.
pub(crate) fn config(mut view: ConfigView) -> ConfigView {
    for setting in &mut view.settings {
        setting.secret |= is_secret(&setting.name);
        hide(setting);
    }
    view
}

fn hide(setting: &mut SettingView) {
    if setting.secret {
        if !setting.value.is_null() {
            setting.value = MASK.into();
        }
    } else {
        inside(&mut setting.value);
    }
}

fn inside(value: &mut Value) {
    match value {
        Value::String(text) => *text = connection_string(&url(text)),
        Value::Array(elements) => elements.iter_mut().for_each(inside),
        Value::Object(members) => {
            for (name, member) in members {
                if is_secret(name) && !member.is_null() {
                    *member = MASK.into();
                } else {
                    inside(member);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_secret(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| last.contains(word)) || last == "key" || last == "keys" || last.ends_with("_key")
}

/// `scheme://user:password@host` with the password hidden, in every URL of the text.
fn url(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + "://".len());
        shown.push_str(before);
        // A password may hold a raw `/` or `?`; only white space, a comma and quotes surely end the URL.
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, ',' | '"' | '\'')).unwrap_or(after.len());
        let (whole, following) = after.split_at(end);
        match whole.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?.0, host))) {
            Some((user, host)) => {
                shown.push_str(user);
                shown.push(':');
                shown.push_str(MASK);
                shown.push('@');
                shown.push_str(host);
            }
            None => shown.push_str(whole),
        }
        rest = following;
    }
    shown.push_str(rest);
    shown
}

/// `password=...` and its like with the value hidden, up to white space, `&` or `;`, or the closing quote.
fn connection_string(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(equals) = rest.find('=') {
        let (before, after) = rest.split_at(equals + 1);
        shown.push_str(before);
        let name = before[..equals].trim_end().rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next();
        if name.is_some_and(is_secret) {
            let after = after.trim_start();
            let quoted = after.strip_prefix('\'').map(|inner| inner.find('\'').map_or(after.len(), |end| end + 2));
            let plain = after.find(|c: char| c.is_whitespace() || matches!(c, '&' | ';'));
            let end = quoted.unwrap_or(plain.unwrap_or(after.len()));
            shown.push_str(MASK);
            rest = &after[end..];
        } else {
            rest = after;
        }
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::Origin;

    fn shown(name: &str, value: Value, secret: bool) -> Value {
        let setting =
            SettingView { name: name.to_owned(), value, origin: Origin::File, source: None, unit: None, secret };
        config(ConfigView { settings: vec![setting] }).settings.remove(0).value
    }

    #[test]
    fn secrets_are_hidden_by_mark_and_by_name() {
        assert_eq!(shown("plain", json!("x"), true), MASK);
        for name in ["l1.password", "l3.secret_access_key", "auth.tokens", "l3.sse_key", "auth.Token", "tls.key"] {
            assert_eq!(shown(name, json!(["x"]), false), MASK, "{name}");
            assert_eq!(shown(name, Value::Null, false), Value::Null, "{name} unset shows as unset");
        }
        for name in ["secrets.path", "l3.access_key_id", "tls.key_file", "memory_max", "keyspace"] {
            assert_eq!(shown(name, json!("x"), false), "x", "{name}");
        }
    }

    #[test]
    fn secrets_inside_values_are_hidden() {
        let table = [
            ("redis://u:p@h:6379/0", "redis://u:***@h:6379/0"),
            ("redis://:p@h", "redis://:***@h"),
            ("redis://u:p/?#@w@h", "redis://u:***@h"),
            ("redis://a:x@h,redis://b:y@i", "redis://a:***@h,redis://b:***@i"),
            ("http://u@h/a:b", "http://u@h/a:b"),
            ("http://h:80/p?q=1", "http://h:80/p?q=1"),
            ("host=h password=p user=u", "host=h password=*** user=u"),
            ("host=h password = 'a b' user=u", "host=h password =*** user=u"),
            ("host=h PASSWORD='open", "host=h PASSWORD=***"),
            ("postgres://h/db?user=u&password=p&x=1", "postgres://h/db?user=u&password=***&x=1"),
            ("/var/lib/strata", "/var/lib/strata"),
        ];
        for (value, expected) in table {
            assert_eq!(shown("x", json!(value), false), expected);
        }
        let nested = json!([{"url": "redis://u:p@h", "password": "p", "n": 1, "token": null}]);
        let hidden = json!([{"url": "redis://u:***@h", "password": "***", "n": 1, "token": null}]);
        assert_eq!(shown("l1.nodes", nested, false), hidden);
    }
}
