use std::{borrow::Cow, cmp::Ordering};

use postrider_core::HeaderValue;

use super::value::Value;
use crate::wire_time;

/// One value of a message as conditions see it, without a copy.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen<'a> {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Cow<'a, str>),
    /// Bytes, lists and maps: there, and equal to nothing.
    Opaque,
}

impl<'a> Seen<'a> {
    pub(super) fn text(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// How it compares with another of its kind; numbers are of one kind.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Null, Self::Null) => Some(Ordering::Equal),
            (Self::Bool(one), Self::Bool(other)) => Some(one.cmp(other)),
            (Self::Int(one), Self::Int(other)) => Some(one.cmp(other)),
            (Self::Text(one), Self::Text(other)) => Some(one.cmp(other)),
            (Self::Float(one), Self::Float(other)) => one.partial_cmp(other),
            (Self::Int(one), Self::Float(other)) => compare_mixed(*one, *other),
            (Self::Float(one), Self::Int(other)) => {
                compare_mixed(*other, *one).map(Ordering::reverse)
            }
            _ => None,
        }
    }
}

/// Exact, though not every whole number is a floating-point number.
fn compare_mixed(whole: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    // What is beyond saturates, and every whole number here is far below that.
    #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
    let below = float.floor() as i128;
    Some(whole.cmp(&below).then(if float.fract() == 0.0 {
        Ordering::Equal
    } else {
        Ordering::Less
    }))
}

impl<'a> From<&'a Value> for Seen<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(number) => Self::Int((*number).into()),
            Value::Large(number) => Self::Int((*number).into()),
            Value::Float(number) => Self::Float(*number),
            Value::Text(text) => Self::text(text),
            Value::Bytes(_) | Value::List(_) | Value::Map(_) | Value::Extension(..) => Self::Opaque,
        }
    }
}

impl<'a> From<&'a HeaderValue> for Seen<'a> {
    fn from(value: &'a HeaderValue) -> Self {
        match value {
            HeaderValue::Bool(value) => Self::Bool(*value),
            HeaderValue::Int(number) => Self::Int((*number).into()),
            HeaderValue::Float(number) => Self::Float(*number),
            HeaderValue::Text(text) => Self::text(text),
            HeaderValue::Timestamp(moment) => Self::Text(wire_time::text(*moment).into()),
            _ => Self::Opaque,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_by_what_they_are() {
        let compare = |one: Value, other: Value| Seen::from(&one).compare(&Seen::from(&other));
        assert_eq!(compare(1.into(), 1.0.into()), Some(Ordering::Equal));
        assert_eq!(compare(1.into(), 1.5.into()), Some(Ordering::Less));
        assert_eq!(compare(2.into(), 1.5.into()), Some(Ordering::Greater));
        assert_eq!(compare((-2).into(), (-1.5).into()), Some(Ordering::Less));
        assert_eq!(compare((-1).into(), (-1.5).into()), Some(Ordering::Greater));
        assert_eq!(compare(Value::Large(u64::MAX), (-1).into()), Some(Ordering::Greater));
        // Both are the same floating-point number.
        let (odd, even) = ((1_i64 << 53) + 1, ((1_i64 << 53) as f64).into());
        assert_eq!(compare(odd.into(), even), Some(Ordering::Greater));
        assert_eq!(compare(1.into(), f64::INFINITY.into()), Some(Ordering::Less));
        assert_eq!(compare(1.into(), f64::NAN.into()), None);
        assert_eq!(compare(1.into(), "1".into()), None);
    }
}
