//! A dead letter as a file: everything of it, in JSON that people can read.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use postrider_core::{Address, Envelope, HeaderValue, Headers, Message};
use serde::{Deserialize, Serialize};

use super::DeadMessage;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fixture {
    /// For people; nobody reads it back.
    #[serde(default, rename = "what")]
    _what: Option<String>,
    body: Body,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    message_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    causation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(default = "yes")]
    durable: bool,
    #[serde(default)]
    headers: Vec<Header>,
}

fn yes() -> bool {
    true
}

/// Text where it is text.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body {
    Text(String),
    Hex(String),
}

#[derive(Serialize, Deserialize)]
struct Header {
    name: String,
    #[serde(flatten)]
    value: Value,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(String),
    Timestamp(DateTime<Utc>),
    List(Vec<Self>),
    Map(Vec<Header>),
}

impl From<DeadMessage> for Fixture {
    fn from(dead: DeadMessage) -> Self {
        let Message { body, headers, .. } = dead.message();
        let message = dead.message();
        let text = |text: &Option<Cow<'static, str>>| text.as_deref().map(str::to_owned);
        Self {
            _what: Some(dead.to_string()),
            body: match std::str::from_utf8(body) {
                Ok(text) => Body::Text(text.to_owned()),
                Err(_) => Body::Hex(hex(body)),
            },
            content_type: text(&message.content_type),
            message_type: text(&message.message_type),
            message_id: text(&message.message_id),
            correlation_id: text(&message.correlation_id),
            causation_id: text(&message.causation_id),
            reply_to: text(&message.reply_to),
            key: text(&message.key),
            timestamp: message.timestamp,
            deadline: message.deadline,
            ttl_ms: message.ttl.and_then(|ttl| u64::try_from(ttl.as_millis()).ok()),
            priority: message.priority,
            durable: message.durable,
            headers: write_headers(headers),
        }
    }
}

impl TryFrom<Fixture> for DeadMessage {
    type Error = NotHex;

    fn try_from(fixture: Fixture) -> Result<Self, NotHex> {
        let mut message = Message::new(match fixture.body {
            Body::Text(text) => Bytes::from(text),
            Body::Hex(hex) => bytes_of(&hex)?,
        });
        message.content_type = fixture.content_type.map(Into::into);
        message.message_type = fixture.message_type.map(Into::into);
        message.message_id = fixture.message_id.map(Into::into);
        message.correlation_id = fixture.correlation_id.map(Into::into);
        message.causation_id = fixture.causation_id.map(Into::into);
        message.reply_to = fixture.reply_to.map(Into::into);
        message.key = fixture.key.map(Into::into);
        message.timestamp = fixture.timestamp;
        message.deadline = fixture.deadline;
        message.ttl = fixture.ttl_ms.map(Duration::from_millis);
        message.priority = fixture.priority;
        message.durable = fixture.durable;
        message.headers = read_headers(fixture.headers)?;
        // It has been published nowhere yet.
        Ok(Self::new(Arc::new(Envelope::new(Address::queue(""), message))))
    }
}

fn write_headers(headers: &Headers) -> Vec<Header> {
    let write = |(name, value): (&str, &HeaderValue)| Header {
        name: name.to_owned(),
        value: write_value(value),
    };
    headers.iter().map(write).collect()
}

fn write_value(value: &HeaderValue) -> Value {
    match value {
        HeaderValue::Bool(value) => Value::Bool(*value),
        HeaderValue::Int(number) => Value::Int(*number),
        HeaderValue::Float(number) => Value::Float(*number),
        HeaderValue::Text(text) => Value::Text(text.clone().into_owned()),
        HeaderValue::Bytes(bytes) => Value::Bytes(hex(bytes)),
        HeaderValue::Timestamp(time) => Value::Timestamp(*time),
        HeaderValue::List(items) => Value::List(items.iter().map(write_value).collect()),
        HeaderValue::Map(headers) => Value::Map(write_headers(headers)),
        other => Value::Text(format!("{other:?}")),
    }
}

fn read_headers(headers: Vec<Header>) -> Result<Headers, NotHex> {
    headers.into_iter().map(|header| Ok((header.name, read_value(header.value)?))).collect()
}

fn read_value(value: Value) -> Result<HeaderValue, NotHex> {
    Ok(match value {
        Value::Bool(value) => HeaderValue::Bool(value),
        Value::Int(number) => HeaderValue::Int(number),
        Value::Float(number) => HeaderValue::Float(number),
        Value::Text(text) => HeaderValue::Text(text.into()),
        Value::Bytes(hex) => HeaderValue::Bytes(bytes_of(&hex)?),
        Value::Timestamp(time) => HeaderValue::Timestamp(time),
        Value::List(items) => {
            HeaderValue::List(items.into_iter().map(read_value).collect::<Result<_, _>>()?)
        }
        Value::Map(headers) => HeaderValue::Map(read_headers(headers)?),
    })
}

/// Bytes in a fixture that are not pairs of hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("bytes in a fixture are pairs of hexadecimal digits, not '{0}'")]
pub(super) struct NotHex(String);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hex: &str) -> Result<Bytes, NotHex> {
    let digit =
        |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    let bytes: Option<Bytes> =
        hex.as_bytes().chunks(2).map(byte).collect::<Option<Vec<_>>>().map(Bytes::from);
    bytes.ok_or_else(|| NotHex(hex.to_owned()))
}

#[cfg(test)]
mod tests {
    use postrider_core::Env;

    use super::*;

    fn everything() -> Message {
        let map: Headers =
            [("deep", HeaderValue::List(vec![HeaderValue::Int(1)]))].into_iter().collect();
        let mut message = Message::new(vec![0x81, 0xa1, 0xff])
            .with_content_type("application/msgpack")
            .with_type("order.created")
            .with_message_id("7")
            .with_correlation_id("8")
            .with_causation_id("9")
            .with_reply_to("answers")
            .with_key("customer-3")
            .with_timestamp(Env::system().timestamp())
            .with_deadline(Env::system().timestamp())
            .with_ttl(Duration::from_millis(1_500))
            .with_priority(9)
            .transient();
        let values = [
            HeaderValue::Bool(true),
            HeaderValue::Int(i64::MIN),
            HeaderValue::Float(0.1),
            "ä".into(),
            Bytes::from_static(&[0, 255]).into(),
            Env::system().timestamp().into(),
            HeaderValue::List(vec![HeaderValue::Int(1), "two".into()]),
            map.into(),
        ];
        for (number, value) in values.into_iter().enumerate() {
            message.headers.set(format!("header-{number}"), value);
        }
        message
    }

    #[test]
    fn a_dead_letter_survives_its_file() {
        for message in [everything(), Message::new(r#"{"order": 7}"#), Message::new("")] {
            let envelope = Envelope::new(Address::queue("dead"), message);
            let dead = DeadMessage::new(Arc::new(envelope));
            let json = serde_json::to_string_pretty(&dead).unwrap();
            let read: DeadMessage = serde_json::from_str(&json).unwrap();
            assert_eq!(read.message(), dead.message(), "{json}");
        }
    }

    #[test]
    fn people_can_read_and_write_it() {
        let json = r#"{"body": {"text": "{\"order\": 7}"}, "type": "order.created",
            "headers": [{"name": "tenant", "text": "north"}, {"name": "tries", "int": 3}]}"#;
        let read: DeadMessage = serde_json::from_str(json).unwrap();
        let message = Message::new(r#"{"order": 7}"#)
            .with_type("order.created")
            .with_header("tenant", "north")
            .with_header("tries", 3);
        assert_eq!(*read.message(), message);
        assert!(serde_json::to_string(&read).unwrap().starts_with(r#"{"what":"order.created "#));
        for wrong in [
            r#"{"body": {"hex": "abc"}}"#,
            r#"{"body": {"hex": "äß"}}"#,
            r#"{"body": {"hex": "+1"}}"#,
            r#"{"body": {"text": ""}, "tpye": ""}"#,
        ] {
            assert!(serde_json::from_str::<DeadMessage>(wrong).is_err(), "{wrong}");
        }
    }
}
