//! Typed message headers.

use std::borrow::Cow;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::MAX_NAME_BYTES;

/// The header that carries [`Message::causation_id`](crate::Message::causation_id) where the protocol
/// has no property for it: text.
pub const CAUSATION_ID_HEADER: &str = "postrider-causation-id";

/// The header that carries [`Message::key`](crate::Message::key) where the protocol has no property
/// for it: text.
pub const KEY_HEADER: &str = "postrider-key";

/// The header that carries [`Message::deadline`](crate::Message::deadline): milliseconds since the
/// start of 1970 in UTC, as a whole number.
pub const DEADLINE_HEADER: &str = "postrider-deadline";

/// A header's value: the types that pass unharmed through every broker.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum HeaderValue {
    /// True or false.
    Bool(bool),
    /// A signed whole number.
    Int(i64),
    /// A floating-point number. Brokers close the connection over one that is not finite, so a
    /// send refuses it.
    Float(f64),
    /// Text.
    Text(Cow<'static, str>),
    /// Bytes.
    Bytes(Bytes),
    /// A moment. AMQP 0.9.1 keeps whole seconds only.
    Timestamp(DateTime<Utc>),
    /// A list. Brokers may drop it on the way from one protocol to another, so Postrider itself
    /// only reads lists (those of dead letters) and sends none; see
    /// [`Capabilities::nested_headers`](crate::Capabilities::nested_headers).
    List(Vec<Self>),
    /// A table of headers, with the same reserve as [`List`](Self::List).
    Map(Headers),
}

impl HeaderValue {
    fn wire_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            // Of a list each item says of what kind it is.
            Self::List(items) => items.iter().map(|item| item.wire_bytes() + 1).sum(),
            Self::Map(headers) => headers.wire_bytes(),
            _ => 8,
        }
    }

    /// Whether every floating-point number in it is finite.
    /// Whether there are values in it at more than `levels` levels, itself being the first. It looks no
    /// deeper than that.
    fn is_deeper_than(&self, levels: usize) -> bool {
        let Some(below) = levels.checked_sub(1) else { return true };
        match self {
            Self::List(items) => items.iter().any(|item| item.is_deeper_than(below)),
            Self::Map(headers) => headers.is_deeper_than(below),
            _ => false,
        }
    }

    pub(crate) fn is_finite(&self) -> bool {
        match self {
            Self::Float(number) => number.is_finite(),
            Self::List(items) => items.iter().all(Self::is_finite),
            Self::Map(headers) => headers.iter().all(|(_, value)| value.is_finite()),
            _ => true,
        }
    }

    /// The first name in it that is longer than the protocol takes, at any depth.
    fn too_long_name(&self) -> Option<&str> {
        match self {
            Self::List(items) => items.iter().find_map(Self::too_long_name),
            Self::Map(headers) => headers.too_long_name(),
            _ => None,
        }
    }

    /// The text, when it is text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The number, when it is a whole number.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        if let Self::Int(number) = self { Some(*number) } else { None }
    }

    /// The truth value, when it is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The items, when it is a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        if let Self::List(items) = self { Some(items) } else { None }
    }

    /// The table, when it is one.
    #[must_use]
    pub fn as_map(&self) -> Option<&Headers> {
        if let Self::Map(headers) = self { Some(headers) } else { None }
    }
}

macro_rules! header_value_from {
    ($($from:ty => $variant:ident),* $(,)?) => {$(
        impl From<$from> for HeaderValue {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        }
    )*};
}

header_value_from! {
    bool => Bool, i64 => Int, i32 => Int, u32 => Int, f64 => Float,
    &'static str => Text, String => Text, Bytes => Bytes,
    DateTime<Utc> => Timestamp, Vec<Self> => List, Headers => Map,
}

/// A message's headers, in the order they were set; a name appears once.
///
/// # Example: typed values
///
/// ```
/// use postrider_core::Headers;
///
/// let mut headers = Headers::new();
/// headers.set("tenant", "north");
/// headers.set("retries", 3);
/// assert_eq!(headers.get("retries").and_then(|value| value.as_int()), Some(3));
/// assert_eq!(headers.len(), 2);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Headers(Vec<(Cow<'static, str>, HeaderValue)>);

impl Headers {
    /// No headers.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Sets a header, replacing the value it had.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<HeaderValue>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, slot)) => *slot = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of a header. Names are case-sensitive.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Removes a header and gives its value.
    pub fn remove(&mut self, name: &str) -> Option<HeaderValue> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(index).1)
    }

    /// Name and value of each header, in the order they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value))
    }

    /// About how many bytes they take on the wire; a protocol adds some for each.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.wire_bytes() + 6).sum()
    }

    /// Whether a value in them has more than `levels` levels.
    pub(crate) fn is_deeper_than(&self, levels: usize) -> bool {
        self.iter().any(|(_, value)| value.is_deeper_than(levels))
    }

    /// The first name that is longer than the protocol takes, in headers that are values too.
    pub(crate) fn too_long_name(&self) -> Option<&str> {
        let own = self.iter().map(|(name, _)| name).find(|name| name.len() > MAX_NAME_BYTES);
        own.or_else(|| self.iter().find_map(|(_, value)| value.too_long_name()))
    }

    /// How many headers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<Cow<'static, str>>, V: Into<HeaderValue>> FromIterator<(K, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in pairs {
            headers.set(name, value);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_counted_through_lists_and_maps() {
        let list = HeaderValue::List(vec![HeaderValue::Int(1), HeaderValue::List(Vec::new())]);
        let headers: Headers =
            [("map", Headers::from_iter([("list", list)]))].into_iter().collect();
        assert!(headers.is_deeper_than(2));
        assert!(!headers.is_deeper_than(3));
        assert!(!Headers::new().is_deeper_than(0));
    }

    #[test]
    fn a_long_name_is_found_at_any_depth() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        let inner: Headers = [(long.clone(), HeaderValue::Int(1))].into_iter().collect();
        let mut headers = Headers::new();
        headers.set("short", 1);
        assert_eq!(headers.too_long_name(), None);
        headers.set("list", vec![HeaderValue::Int(1), HeaderValue::Map(inner)]);
        assert_eq!(headers.too_long_name(), Some(&*long));
    }
}
