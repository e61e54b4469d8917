use std::{cell::Cell, fmt};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

/// How many values a body may have that is looked into, those inside others included. A body of a
/// few megabytes can have millions, each of which takes many times its bytes in memory.
pub(super) const MAX_VALUES: usize = 100_000;

/// A decoded body of any shape, in MessagePack or JSON. Written again in its codec it is the same.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number that is larger than [`Int`](Self::Int) holds.
    Large(u64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes; in MessagePack only.
    Bytes(Bytes),
    /// A list.
    List(Vec<Self>),
    /// Keys and values in their order; in MessagePack keys need not be text.
    Map(Vec<(Self, Self)>),
    /// What MessagePack calls an extension: its type and its bytes.
    Extension(i8, Bytes),
}

impl Value {
    /// The value at the end of a path: names in maps, numbers from 0 in lists.
    pub fn at<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Option<&Self> {
        path.into_iter().try_fold(self, |value, step| value.step(step))
    }

    /// The text, when it is text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The items, when it is a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        if let Self::List(items) = self { Some(items) } else { None }
    }

    /// How many entries a [step](Self::step) may have to look at.
    pub(super) fn width(&self) -> usize {
        if let Self::Map(entries) = self { entries.len() } else { 1 }
    }

    pub(super) fn step(&self, step: &str) -> Option<&Self> {
        match self {
            Self::List(items) => items.get(step.parse::<usize>().ok()?),
            Self::Map(entries) => {
                let is_it = |(key, _): &&(Self, Self)| key.as_text() == Some(step);
                entries.iter().find(is_it).map(|(_, value)| value)
            }
            _ => None,
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let left = Cell::new(MAX_VALUES);
        Counted { left: &left }.deserialize(from)
    }
}

/// Reads a value, and no more of them than are left.
#[derive(Clone, Copy)]
struct Counted<'a> {
    left: &'a Cell<usize>,
}

/// What is set aside for a list before its items are there: what it says of itself may be a lie.
const MOST_AHEAD: usize = 256;

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1);
        let too_many = || D::Error::custom(format!("it has more than {MAX_VALUES} values"));
        self.left.set(left.ok_or_else(too_many)?);
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Int(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(i64::try_from(number).map_or(Value::Large(number), Value::Int))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(Value::Bytes(Bytes::copy_from_slice(bytes)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::with_capacity(items.size_hint().unwrap_or(0).min(MOST_AHEAD));
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::with_capacity(entries.size_hint().unwrap_or(0).min(MOST_AHEAD));
        while let Some(entry) = entries.next_entry_seed(self, self)? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }

    /// An extension of MessagePack comes as its type and its bytes.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        match from.deserialize_any(self)? {
            Value::List(parts) => match <[Value; 2]>::try_from(parts) {
                Ok([Value::Int(kind), Value::Bytes(bytes)]) => {
                    let kind = i8::try_from(kind).map_err(D::Error::custom)?;
                    Ok(Value::Extension(kind, bytes))
                }
                Ok(parts) => Ok(Value::List(parts.into())),
                Err(parts) => Ok(Value::List(parts)),
            },
            value => Ok(value),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => to.serialize_unit(),
            Self::Bool(value) => to.serialize_bool(*value),
            Self::Int(number) => to.serialize_i64(*number),
            Self::Large(number) => to.serialize_u64(*number),
            Self::Float(number) => to.serialize_f64(*number),
            Self::Text(text) => to.serialize_str(text),
            Self::Bytes(bytes) => to.serialize_bytes(bytes),
            Self::List(items) => to.collect_seq(items),
            Self::Map(entries) => to.collect_map(entries.iter().map(|(key, value)| (key, value))),
            Self::Extension(kind, bytes) => to.serialize_newtype_struct(
                rmp_serde::MSGPACK_EXT_STRUCT_NAME,
                &(*kind, AsBytes(bytes)),
            ),
        }
    }
}

struct AsBytes<'a>(&'a [u8]);

impl Serialize for AsBytes<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;

    fn read(content_type: &str, body: &[u8]) -> Result<Value, crate::CodecError> {
        Codec::decode(Some(content_type), body)
    }

    #[test]
    fn what_messagepack_has_beyond_json_stays_what_it_is() {
        let value = Value::Map(vec![
            (Value::Int(1), Value::Bytes(Bytes::from_static(b"\xff"))),
            ("at".into(), Value::Extension(-1, Bytes::from_static(b"\0\0\0\x01"))),
            ("many".into(), Value::Large(u64::MAX)),
            ("none".into(), Value::Null),
        ]);
        let body = Codec::MessagePack.encode(&value).unwrap();
        assert_eq!(read("application/msgpack", &body).unwrap(), value);
    }

    #[test]
    fn paths_lead_through_maps_and_lists() {
        let value = read("application/json", br#"{"order":{"lines":[{"sku":"cd-1"}]}}"#).unwrap();
        let at = |path: &str| value.at(path.split('.')).and_then(Value::as_text);
        assert_eq!(at("order.lines.0.sku"), Some("cd-1"));
        assert_eq!(at("order.lines.1.sku"), None);
        assert_eq!(at("order.lines.x"), None);
        assert_eq!(at("order.lines.0.sku.more"), None);
    }

    #[test]
    fn a_body_of_too_many_values_is_refused_before_they_take_the_memory() {
        let many = vec![0xc0; 2_000_000];
        let mut body = vec![0xdd];
        body.extend_from_slice(&2_000_000_u32.to_be_bytes());
        body.extend_from_slice(&many);
        let error = read("application/msgpack", &body).unwrap_err();
        assert!(error.to_string().contains("100000 values"), "{error}");
        // What a list says of its length is not believed.
        let error = read("application/msgpack", &[0xdd, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
        assert!(matches!(error, crate::CodecError::Decode { .. }), "{error}");
    }
}
