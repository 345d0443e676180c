//! Strict JSON for request bodies: plain [`Value`]s, except that a member named twice is refused by its pointer
//! instead of the last one winning silently.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a body is not a document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum JsonError {
    /// Not JSON (or nested deeper than the parser's 128 levels, or a number out of range).
    Syntax { message: String, line: u64, column: u64 },
    /// The member at this JSON pointer is named twice.
    Duplicate { field: String },
}

/// Parses one document that fills the whole body.
pub(crate) fn parse(body: &[u8]) -> Result<Value, JsonError> {
    let duplicate = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let seed = Strict { path: &Path::Root, duplicate: &duplicate };
    let parsed = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    parsed.map_err(|error| match duplicate.take() {
        Some(field) => JsonError::Duplicate { field },
        None => JsonError::Syntax {
            message: without_position(&error.to_string()),
            line: error.line() as u64,
            // The parser counts a line break as column 0 of the line it begins.
            column: error.column().max(1) as u64,
        },
    })
}

/// Appends one member name to a JSON pointer (RFC 6901).
pub(crate) fn push_pointer(pointer: &mut String, name: &str) {
    pointer.push('/');
    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
}

/// The position travels in members of its own.
fn without_position(message: &str) -> String {
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message.to_owned(),
    }
}

/// Where the parser is, as a list on its own stack: the pointer is only built when something is wrong.
enum Path<'a> {
    Root,
    Member(&'a Path<'a>, &'a str),
    Element(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn pointer(&self) -> String {
        match self {
            Path::Root => String::new(),
            Path::Member(parent, name) => {
                let mut pointer = parent.pointer();
                push_pointer(&mut pointer, name);
                pointer
            }
            Path::Element(parent, index) => format!("{}/{index}", parent.pointer()),
        }
    }
}

struct Strict<'a> {
    path: &'a Path<'a>,
    duplicate: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        loop {
            let path = Path::Element(self.path, elements.len());
            match access.next_element_seed(Strict { path: &path, duplicate: self.duplicate })? {
                Some(element) => elements.push(element),
                None => return Ok(Value::Array(elements)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let path = Path::Member(self.path, &name);
            if members.contains_key(&name) {
                self.duplicate.replace(Some(path.pointer()));
                return Err(A::Error::custom("member named twice"));
            }
            let value = access.next_value_seed(Strict { path: &path, duplicate: self.duplicate })?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_parse_as_serde_json_parses_them() {
        for text in ["null", " [1, -2, 3.5, true, \"a\\u00e9\\n\"] ", r#"{"a": {"b": []}, "": 18446744073709551615}"#] {
            assert_eq!(parse(text.as_bytes()), Ok(serde_json::from_str(text).expect("valid")), "{text}");
        }
    }

    #[test]
    fn syntax_errors_have_a_position() {
        let table: [(&[u8], u64, u64); 6] = [
            (b"{\n  \"a\": trux\n}", 2, 11),
            (b"{\n\"a\": 1,\n\n}", 4, 1),
            (b"", 1, 1),
            (b"{} {}", 1, 4),
            (b"[1,\n2", 2, 1),
            (b"\"\xff\"", 1, 2),
        ];
        for (text, expected_line, expected_column) in table {
            let Err(JsonError::Syntax { line, column, message }) = parse(text) else { panic!("{text:?} parsed") };
            assert_eq!((line, column), (expected_line, expected_column), "{}: {message}", text.escape_ascii());
            assert!(!message.contains("line"), "{message}");
        }
        assert!(matches!(parse(b"[1e999]"), Err(JsonError::Syntax { .. })));
        let deep = "[".repeat(100_000);
        assert!(matches!(parse(deep.as_bytes()), Err(JsonError::Syntax { .. })));
    }

    #[test]
    fn a_member_named_twice_is_refused_by_its_pointer() {
        let table = [
            (r#"{"a":1,"a":1}"#, "/a"),
            (r#"{"n":[0,{"x/y~z":1,"x/y~z":2}]}"#, "/n/1/x~1y~0z"),
            (r#"{"":1,"":1}"#, "/"),
        ];
        for (text, field) in table {
            assert_eq!(parse(text.as_bytes()), Err(JsonError::Duplicate { field: field.to_owned() }));
        }
    }
}
