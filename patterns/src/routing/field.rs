use std::{fmt, str::FromStr};

use postrider_core::{ErrorKind, Message};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{inbound::Inbound, seen::Seen, value::Value};
use crate::handler::HandlerError;

/// What of a message is looked at. It is data, with a text form:
///
/// | text | what |
/// |---|---|
/// | `type`, `id`, `correlation_id`, `content_type`, `reply_to`, `priority`, `key` | properties |
/// | `exchange`, `routing_key` | where it was published to; for a queue, an empty exchange and its name |
/// | `queue` | where it was taken from |
/// | `header.NAME` | a header; the name may have dots |
/// | `body`, `body.a.b`, `body.lines.0` | the body or what is in it, names parted by dots; `\.` is a dot in a name |
///
/// # Example: a field of the body
///
/// ```
/// use postrider_patterns::routing::Field;
///
/// let field: Field = "body.order.total".parse()?;
/// assert_eq!(field, Field::body("order.total"));
/// assert_eq!(field.to_string(), "body.order.total");
/// assert!("body..total".parse::<Field>().is_err());
/// # Ok::<(), postrider_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Field {
    /// The message's type.
    Type,
    /// Its id.
    Id,
    /// Its correlation id.
    CorrelationId,
    /// Its content type.
    ContentType,
    /// Where an answer should go.
    ReplyTo,
    /// Its priority.
    Priority,
    /// Its ordering key.
    Key,
    /// The exchange it was published to.
    Exchange,
    /// The routing key it was published with.
    RoutingKey,
    /// The queue it was taken from.
    Queue,
    /// A header by its name.
    Header(String),
    /// A path into the decoded body; the empty path is all of it.
    Body(Vec<String>),
}

const PLAIN: [(&str, Field); 10] = [
    ("type", Field::Type),
    ("id", Field::Id),
    ("correlation_id", Field::CorrelationId),
    ("content_type", Field::ContentType),
    ("reply_to", Field::ReplyTo),
    ("priority", Field::Priority),
    ("key", Field::Key),
    ("exchange", Field::Exchange),
    ("routing_key", Field::RoutingKey),
    ("queue", Field::Queue),
];

impl Field {
    /// A header by its name.
    pub fn header(name: impl Into<String>) -> Self {
        Self::Header(name.into())
    }

    /// What is in the body at the end of a path whose names are parted by dots; all of the body for
    /// an empty path. Where a name in it is empty, as in `a..b`, whatever would use the field does
    /// not start.
    #[must_use]
    pub fn body(path: &str) -> Self {
        Self::Body(if path.is_empty() { Vec::new() } else { split(path) })
    }

    /// Refuses what has no text form.
    pub(super) fn check(&self) -> postrider_core::Result<()> {
        let why = match self {
            Self::Header(name) if name.is_empty() => "a header has a name",
            Self::Body(path) if path.iter().any(String::is_empty) => {
                "between two dots of a path is a name"
            }
            _ => return Ok(()),
        };
        let error = postrider_core::Error::new(ErrorKind::Invalid, "field", why);
        Err(error.with_context("field", self.to_string()))
    }

    /// What the message has there, if it has it.
    ///
    /// # Errors
    ///
    /// When the body has to be read and cannot be.
    pub(super) fn see<'a>(&self, inbound: &'a Inbound) -> Result<Option<Seen<'a>>, HandlerError> {
        let Message { message_type, message_id, correlation_id, content_type, reply_to, .. } =
            inbound.message();
        let text =
            |text: &'a Option<std::borrow::Cow<'static, str>>| text.as_deref().map(Seen::text);
        Ok(match self {
            Self::Type => text(message_type),
            Self::Id => text(message_id),
            Self::CorrelationId => text(correlation_id),
            Self::ContentType => text(content_type),
            Self::ReplyTo => text(reply_to),
            Self::Priority => inbound.message().priority.map(|level| Seen::Int(level.into())),
            Self::Key => text(&inbound.message().key),
            Self::Exchange => Some(Seen::text(inbound.address().exchange_name())),
            Self::RoutingKey => Some(Seen::text(inbound.address().routing_key())),
            Self::Queue => Some(Seen::text(inbound.queue())),
            Self::Header(name) => {
                let headers = &inbound.message().headers;
                inbound.spend(headers.len())?;
                headers.get(name).map(Seen::from)
            }
            Self::Body(path) => in_body(path, inbound)?.map(Seen::from),
        })
    }

    /// What the message has there as text, for keys: numbers and truth values too.
    ///
    /// # Errors
    ///
    /// As [`see`](Self::see).
    pub(super) fn key(&self, inbound: &Inbound) -> Result<Option<String>, HandlerError> {
        Ok(match self.see(inbound)? {
            Some(Seen::Text(text)) => Some(text.into_owned()),
            Some(Seen::Int(number)) => Some(number.to_string()),
            Some(Seen::Bool(value)) => Some(value.to_string()),
            _ => None,
        })
    }

    /// The value that the body has there.
    pub(super) fn value<'a>(
        &self,
        inbound: &'a Inbound,
    ) -> Result<Option<&'a Value>, HandlerError> {
        match self {
            Self::Body(path) => in_body(path, inbound),
            _ => Ok(None),
        }
    }
}

fn in_body<'a>(path: &[String], inbound: &'a Inbound) -> Result<Option<&'a Value>, HandlerError> {
    let mut value = inbound.body()?;
    for step in path {
        inbound.spend(value.width())?;
        match value.step(step) {
            Some(within) => value = within,
            None => return Ok(None),
        }
    }
    Ok(Some(value))
}

fn split(path: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match (character, names.last_mut()) {
            ('.', _) => names.push(String::new()),
            ('\\', Some(name)) => name.extend(characters.next()),
            (character, Some(name)) => name.push(character),
            (_, None) => {}
        }
    }
    names
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header.{name}"),
            Self::Body(path) => {
                f.write_str("body")?;
                for name in path {
                    write!(f, ".{}", name.replace('\\', "\\\\").replace('.', "\\."))?;
                }
                Ok(())
            }
            plain => {
                let text = PLAIN.iter().find(|(_, field)| field == plain);
                f.write_str(text.map_or("", |(text, _)| text))
            }
        }
    }
}

impl FromStr for Field {
    type Err = postrider_core::Error;

    fn from_str(text: &str) -> postrider_core::Result<Self> {
        if let Some((_, field)) = PLAIN.iter().find(|(known, _)| *known == text) {
            return Ok(field.clone());
        }
        let field = match text.split_once('.') {
            None if text == "body" => Some(Self::body("")),
            Some(("header", name)) => Some(Self::header(name)),
            Some(("body", path)) => Some(Self::Body(split(path))),
            _ => None,
        };
        field.filter(|field| field.check().is_ok()).ok_or_else(|| {
            let why = "no field of a message is called that; see the table of fields";
            postrider_core::Error::new(ErrorKind::Invalid, "field", why)
                .with_context("field", text.to_owned())
        })
    }
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_one_text_each() {
        for text in [
            "type",
            "id",
            "correlation_id",
            "content_type",
            "reply_to",
            "priority",
            "key",
            "exchange",
            "routing_key",
            "queue",
            "header.x.y",
            "body",
            "body.a.0.b",
            r"body.a\.b.c\\d",
        ] {
            assert_eq!(text.parse::<Field>().unwrap().to_string(), text);
        }
        assert_eq!(Field::body(r"a\.b.c"), Field::Body(vec!["a.b".to_owned(), "c".to_owned()]));
        for text in ["", "header", "header.", "body.", "body.a.", "body.a..b", "types", "Type"] {
            assert!(text.parse::<Field>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_path_is_the_whole_body_and_an_empty_name_is_none() {
        assert_eq!(Field::body(""), Field::Body(Vec::new()));
        assert_eq!(Field::body("").to_string().parse::<Field>().unwrap(), Field::body(""));
        Field::body("").check().unwrap();
        for wrong in [".", "a..b", ".a", "a."] {
            let error = Field::body(wrong).check().unwrap_err();
            assert!(error.to_string().contains("body"), "{wrong}: {error}");
        }
        assert!(Field::header("").check().is_err());
    }
}
