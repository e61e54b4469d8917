use std::cmp::Ordering;

use postrider_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{field::Field, inbound::Inbound, seen::Seen, value::Value};
use crate::{handler::HandlerError, pubsub::matches_pattern};

/// How many conditions a condition may have in it, at most, and how deep.
const MAX_CONDITIONS: usize = 1_000;
const MAX_DEPTH: usize = 32;

/// What a message must be. It is data: on the wire a map with one entry, the name of the condition.
///
/// A field that a message has not satisfies none but [`Not`](Self::Not), and values of different
/// kinds are never equal, more or less; all numbers are of one kind. Conditions are looked at from
/// left to right and no further than needed, so that one on the body can stand behind one that says
/// which messages have a body of that kind.
///
/// # Example: a condition as data
///
/// ```
/// use postrider_patterns::routing::{Condition, Field};
///
/// let large = Condition::equals(Field::Type, "order.placed")
///     .and(Condition::at_least(Field::body("order.total"), 100));
/// let json = r#"{"all":[{"equals":["type","order.placed"]},{"at_least":["body.order.total",100]}]}"#;
/// assert_eq!(serde_json::to_string(&large)?, json);
/// assert_eq!(serde_json::from_str::<Condition>(json)?, large);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Condition {
    /// Every message.
    Always,
    /// The message has the field, and it is not null.
    Exists(Field),
    /// The field has this value.
    Equals(Field, Value),
    /// The field has one of these values.
    OneOf(Field, Vec<Value>),
    /// The field is this or less.
    AtMost(Field, Value),
    /// The field is less than this.
    Below(Field, Value),
    /// The field is this or more.
    AtLeast(Field, Value),
    /// The field is more than this.
    Above(Field, Value),
    /// The field is a text that begins with this.
    StartsWith(Field, String),
    /// The field is a text that ends with this.
    EndsWith(Field, String),
    /// The field is a text that has this in it.
    Contains(Field, String),
    /// The field is a text that matches this pattern, as routing keys do in a topic exchange: words
    /// parted by dots, `*` is one, `#` any number.
    Matches(Field, String),
    /// All of these hold.
    All(Vec<Self>),
    /// At least one of these holds.
    Any(Vec<Self>),
    /// This does not hold.
    Not(Box<Self>),
}

impl Condition {
    /// The field has this value.
    pub fn equals(field: Field, value: impl Into<Value>) -> Self {
        Self::Equals(field, value.into())
    }

    /// The field is this or more.
    pub fn at_least(field: Field, value: impl Into<Value>) -> Self {
        Self::AtLeast(field, value.into())
    }

    /// The field is less than this.
    pub fn below(field: Field, value: impl Into<Value>) -> Self {
        Self::Below(field, value.into())
    }

    /// The message is of this type.
    pub fn is_type(message_type: impl Into<String>) -> Self {
        Self::equals(Field::Type, message_type.into())
    }

    /// The message has this header with this value.
    pub fn has_header(name: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::equals(Field::header(name), value)
    }

    /// Both this and the other.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::All(mut all) => {
                all.push(other);
                Self::All(all)
            }
            one => Self::All(vec![one, other]),
        }
    }

    /// This or the other, or both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Any(mut any) => {
                any.push(other);
                Self::Any(any)
            }
            one => Self::Any(vec![one, other]),
        }
    }

    /// Not this.
    #[must_use]
    pub fn negated(self) -> Self {
        Self::Not(Box::new(self))
    }

    /// Whether it holds for the message.
    ///
    /// # Errors
    ///
    /// When it has to look into a body that cannot be read, or further than a router's rules may.
    pub fn holds(&self, inbound: &Inbound) -> std::result::Result<bool, HandlerError> {
        let ordering = |field: &Field, value| {
            let seen = field.see(inbound)?;
            Ok::<_, HandlerError>(seen.and_then(|seen| seen.compare(&Seen::from(value))))
        };
        let text = |field: &Field, is_it: &dyn Fn(&str) -> bool| {
            let seen = field.see(inbound)?;
            Ok::<_, HandlerError>(seen.as_ref().and_then(Seen::as_text).is_some_and(is_it))
        };
        // For what looks at the whole of a text, so many times.
        let searched = |field: &Field, times: usize, is_it: &dyn Fn(&str) -> bool| {
            let seen = field.see(inbound)?;
            let Some(text) = seen.as_ref().and_then(Seen::as_text) else { return Ok(false) };
            inbound.spend(text.len().saturating_mul(times))?;
            Ok(is_it(text))
        };
        inbound.spend(1)?;
        match self {
            Self::Always => Ok(true),
            Self::Exists(field) => Ok(field.see(inbound)?.is_some_and(|seen| seen != Seen::Null)),
            Self::Equals(field, value) => Ok(ordering(field, value)?.is_some_and(Ordering::is_eq)),
            Self::OneOf(field, values) => {
                let Some(seen) = field.see(inbound)? else { return Ok(false) };
                inbound.spend(values.len())?;
                let is_it = |value| seen.compare(&Seen::from(value)).is_some_and(Ordering::is_eq);
                Ok(values.iter().any(is_it))
            }
            Self::AtMost(field, value) => Ok(ordering(field, value)?.is_some_and(Ordering::is_le)),
            Self::Below(field, value) => Ok(ordering(field, value)?.is_some_and(Ordering::is_lt)),
            Self::AtLeast(field, value) => Ok(ordering(field, value)?.is_some_and(Ordering::is_ge)),
            Self::Above(field, value) => Ok(ordering(field, value)?.is_some_and(Ordering::is_gt)),
            Self::StartsWith(field, with) => text(field, &|text| text.starts_with(with)),
            Self::EndsWith(field, with) => text(field, &|text| text.ends_with(with)),
            Self::Contains(field, part) => searched(field, 1, &|text| text.contains(part)),
            Self::Matches(field, pattern) => {
                let words = pattern.split('.').count();
                searched(field, words, &|text| matches_pattern(pattern, text))
            }
            Self::All(all) => {
                for condition in all {
                    if !condition.holds(inbound)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Any(any) => {
                for condition in any {
                    if condition.holds(inbound)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Not(condition) => Ok(!condition.holds(inbound)?),
        }
    }

    const fn field(&self) -> Option<&Field> {
        match self {
            Self::Exists(field)
            | Self::Equals(field, _)
            | Self::OneOf(field, _)
            | Self::AtMost(field, _)
            | Self::Below(field, _)
            | Self::AtLeast(field, _)
            | Self::Above(field, _)
            | Self::StartsWith(field, _)
            | Self::EndsWith(field, _)
            | Self::Contains(field, _)
            | Self::Matches(field, _) => Some(field),
            Self::Always | Self::All(_) | Self::Any(_) | Self::Not(_) => None,
        }
    }

    /// Refuses what is too much to be looked at for each message, and what nothing can satisfy.
    pub(super) fn check(&self) -> Result<()> {
        let mut left = MAX_CONDITIONS;
        self.check_within(&mut left, MAX_DEPTH)
    }

    fn check_within(&self, left: &mut usize, depth: usize) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Invalid, "condition", why));
        let Some(deeper) = depth.checked_sub(1) else {
            return refuse(format!("conditions are in one another at most {MAX_DEPTH} deep"));
        };
        let weight = if let Self::OneOf(_, values) = self { values.len().max(1) } else { 1 };
        let Some(rest) = left.checked_sub(weight) else {
            return refuse(format!("a rule has at most {MAX_CONDITIONS} conditions and values"));
        };
        *left = rest;
        self.field().map_or(Ok(()), Field::check)?;
        let scalar = |value| match Seen::from(value) {
            Seen::Opaque => refuse("bytes, lists and maps are equal to nothing".to_owned()),
            Seen::Float(number) if number.is_nan() => refuse("nothing is NaN".to_owned()),
            _ => Ok(()),
        };
        match self {
            Self::Equals(_, value)
            | Self::AtMost(_, value)
            | Self::Below(_, value)
            | Self::AtLeast(_, value)
            | Self::Above(_, value) => scalar(value),
            Self::OneOf(_, values) => values.iter().try_for_each(scalar),
            Self::All(several) | Self::Any(several) => {
                several.iter().try_for_each(|one| one.check_within(left, deeper))
            }
            Self::Not(one) => one.check_within(left, deeper),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postrider_core::{Address, DeliveryInfo, Envelope, Message};

    use super::*;
    use crate::{codec::Limits, codes};

    fn inbound(message: Message) -> Inbound {
        let envelope = Envelope::new(Address::exchange("shop", "order.placed.eu"), message);
        let info = DeliveryInfo::first("orders".into());
        Inbound::new(&Arc::new(envelope), &info, Limits::default())
    }

    fn order() -> Inbound {
        let body = r#"{"order":{"total":1177,"note":null,"lines":[{"sku":"cd-1"}]},"rate":0.5}"#;
        let message = Message::new(body).with_content_type("application/json");
        let message = message.with_type("order.placed").with_priority(7).with_key("customer-4");
        inbound(message.with_header("tenant", "north").with_header("tries", 3))
    }

    #[test]
    fn each_condition_holds_where_it_should_and_nowhere_else() {
        let order = order();
        for (json, expected) in [
            (r#""always""#, true),
            (r#"{"equals":["type","order.placed"]}"#, true),
            (r#"{"equals":["type","order.paid"]}"#, false),
            (r#"{"equals":["id","x"]}"#, false),
            (r#"{"equals":["body.order.total",1177]}"#, true),
            (r#"{"equals":["body.order.total",1177.0]}"#, true),
            (r#"{"equals":["body.order.total","1177"]}"#, false),
            (r#"{"equals":["body.order.note",null]}"#, true),
            (r#"{"equals":["body.order.lines.0.sku","cd-1"]}"#, true),
            (r#"{"equals":["priority",7]}"#, true),
            (r#"{"equals":["key","customer-4"]}"#, true),
            (r#"{"equals":["exchange","shop"]}"#, true),
            (r#"{"equals":["queue","orders"]}"#, true),
            (r#"{"equals":["header.tenant","north"]}"#, true),
            (r#"{"equals":["header.tries",3]}"#, true),
            (r#"{"exists":"header.tenant"}"#, true),
            (r#"{"exists":"header.other"}"#, false),
            (r#"{"exists":"body.order"}"#, true),
            (r#"{"exists":"body.order.note"}"#, false),
            (r#"{"one_of":["header.tenant",["south","north"]]}"#, true),
            (r#"{"one_of":["header.tenant",[]]}"#, false),
            (r#"{"at_least":["body.order.total",1177]}"#, true),
            (r#"{"above":["body.order.total",1177]}"#, false),
            (r#"{"below":["body.rate",1]}"#, true),
            (r#"{"at_most":["body.rate",0.49]}"#, false),
            (r#"{"below":["header.tenant",5]}"#, false),
            (r#"{"starts_with":["key","customer-"]}"#, true),
            (r#"{"ends_with":["key","-5"]}"#, false),
            (r#"{"contains":["key","mer-4"]}"#, true),
            (r#"{"contains":["priority","7"]}"#, false),
            (r#"{"matches":["routing_key","order.*.eu"]}"#, true),
            (r#"{"matches":["routing_key","order.*"]}"#, false),
            (r#"{"all":[]}"#, true),
            (r#"{"any":[]}"#, false),
            (r#"{"any":[{"equals":["type","x"]},{"exists":"key"}]}"#, true),
            (r#"{"not":{"exists":"reply_to"}}"#, true),
        ] {
            let condition: Condition = serde_json::from_str(json).unwrap();
            condition.check().unwrap();
            assert_eq!(condition.holds(&order).unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn a_body_is_read_only_when_it_is_needed() {
        let opaque =
            inbound(Message::new("\u{1}").with_content_type("image/png").with_type("cover"));
        let total = Condition::at_least(Field::body("total"), 5);
        assert!(!Condition::is_type("order").and(total.clone()).holds(&opaque).unwrap());
        assert!(Condition::is_type("cover").or(total.clone()).holds(&opaque).unwrap());
        // Neither that it holds nor that it does not would be true.
        let error = total.negated().holds(&opaque).unwrap_err();
        assert_eq!(error.code(), codes::UNDECODABLE);
    }

    #[test]
    fn a_look_ends_when_it_has_cost_enough() {
        let list = |number: usize| {
            let body = format!("{{\"texts\":[\"{}\"]}}", "a.".repeat(number));
            inbound(Message::new(body).with_content_type("application/json"))
        };
        let contains = Condition::Contains(Field::body("texts.0"), "b".to_owned());
        let matches = Condition::Matches(Field::body("texts.0"), "#.b".to_owned());
        for (condition, times) in [(contains, 2), (matches, 3)] {
            let long = list(10_000);
            long.allow(times * 20_000 + 50);
            assert!(!condition.holds(&long).unwrap(), "the body once, and the text");
            assert_eq!(condition.holds(&long).unwrap_err().code(), codes::TOO_COSTLY);
        }
        let never = inbound(Message::new("").with_type("cover"));
        never.allow(500);
        let always = Condition::All(vec![Condition::Always; 600]);
        assert_eq!(always.holds(&never).unwrap_err().code(), codes::TOO_COSTLY);
        never.allow(500);
        let values = Condition::OneOf(Field::Type, vec![Value::Null; 600]);
        assert_eq!(values.holds(&never).unwrap_err().code(), codes::TOO_COSTLY);
    }

    #[test]
    fn what_would_take_too_long_or_never_hold_is_refused() {
        let nested = |depth| (1..depth).fold(Condition::Always, |inner, _| inner.negated());
        nested(MAX_DEPTH).check().unwrap();
        assert!(nested(MAX_DEPTH + 1).check().is_err());
        let many = |number| Condition::All(vec![Condition::Always; number]);
        many(MAX_CONDITIONS - 1).check().unwrap();
        assert!(many(MAX_CONDITIONS).check().is_err());
        let list = Condition::Equals(Field::Type, Value::List(Vec::new()));
        assert!(list.check().is_err());
        let values = Condition::OneOf(Field::Type, vec![Value::Null; MAX_CONDITIONS + 1]);
        assert!(values.check().is_err());
    }
}
