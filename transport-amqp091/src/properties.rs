//! Messages and headers on the wire, both ways.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use lapin::{
    BasicProperties,
    types::{AMQPValue, ByteArray, FieldArray, FieldTable, LongString, ShortString},
};
use postrider_core::{
    CAUSATION_ID_HEADER, DEADLINE_HEADER, HeaderValue, Headers, KEY_HEADER, Message,
};
use postrider_rabbitmq::PUBLISH_ID_HEADER;

const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// The properties of a message. Its lengths were checked before.
pub(crate) fn write(message: &Message) -> BasicProperties {
    let short = |text: &Option<Cow<'static, str>>| text.as_deref().map(ShortString::from);
    let mut properties = BasicProperties::default().with_delivery_mode(if message.durable {
        PERSISTENT
    } else {
        TRANSIENT
    });
    if let Some(id) = short(&message.message_id) {
        properties = properties.with_message_id(id);
    }
    if let Some(id) = short(&message.correlation_id) {
        properties = properties.with_correlation_id(id);
    }
    if let Some(queue) = short(&message.reply_to) {
        properties = properties.with_reply_to(queue);
    }
    if let Some(content_type) = short(&message.content_type) {
        properties = properties.with_content_type(content_type);
    }
    if let Some(kind) = short(&message.message_type) {
        properties = properties.with_type(kind);
    }
    if let Some(moment) = message.timestamp {
        properties = properties.with_timestamp(moment.timestamp().cast_unsigned());
    }
    if let Some(ttl) = message.ttl {
        properties = properties.with_expiration(ttl.as_millis().to_string().into());
    }
    if let Some(priority) = message.priority {
        properties = properties.with_priority(priority);
    }
    let mut table = write_headers(&message.headers);
    if let Some(id) = &message.causation_id {
        table.insert(CAUSATION_ID_HEADER.into(), text(id));
    }
    if let Some(key) = &message.key {
        table.insert(KEY_HEADER.into(), text(key));
    }
    if let Some(deadline) = message.deadline {
        let millis = AMQPValue::LongLongInt(deadline.timestamp_millis());
        table.insert(DEADLINE_HEADER.into(), millis);
    }
    if table.inner().is_empty() { properties } else { properties.with_headers(table) }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text.as_bytes()))
}

/// Headers, or the arguments of a binding, as a table.
pub(crate) fn write_headers(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    // That name is not the user's: by it the verdict of one message would be that of another.
    for (name, value) in headers.iter().filter(|(name, _)| *name != PUBLISH_ID_HEADER) {
        table.insert(name.into(), write_value(value));
    }
    table
}

fn write_value(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
        HeaderValue::Int(number) => AMQPValue::LongLongInt(*number),
        HeaderValue::Float(number) => AMQPValue::Double(*number),
        HeaderValue::Text(value) => text(value),
        HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(ByteArray::from(&bytes[..])),
        HeaderValue::Timestamp(moment) => AMQPValue::Timestamp(moment.timestamp().cast_unsigned()),
        HeaderValue::List(items) => AMQPValue::FieldArray(FieldArray::from(
            items.iter().map(write_value).collect::<Vec<_>>(),
        )),
        HeaderValue::Map(headers) => AMQPValue::FieldTable(write_headers(headers)),
        // A kind of value that this protocol has no type for.
        _ => AMQPValue::Void,
    }
}

/// The message of a body and properties.
pub(crate) fn read(body: Bytes, properties: &BasicProperties) -> Message {
    let owned =
        |text: &Option<ShortString>| text.as_ref().map(|text| Cow::Owned(text.as_str().to_owned()));
    let mut message = Message::new(body);
    message.message_id = owned(properties.message_id());
    message.correlation_id = owned(properties.correlation_id());
    message.reply_to = owned(properties.reply_to());
    message.content_type = owned(properties.content_type());
    message.message_type = owned(properties.kind());
    message.timestamp = properties
        .timestamp()
        .and_then(|seconds| DateTime::from_timestamp(seconds.cast_signed(), 0));
    message.ttl = properties
        .expiration()
        .as_ref()
        .and_then(|millis| millis.as_str().parse().ok())
        .map(Duration::from_millis);
    message.priority = *properties.priority();
    // Who does not say how durable a message is means that it may be lost.
    message.durable = *properties.delivery_mode() == Some(PERSISTENT);
    if let Some(table) = properties.headers() {
        message.headers = read_headers(table);
    }
    message.causation_id = take_text(&mut message.headers, CAUSATION_ID_HEADER);
    message.key = take_text(&mut message.headers, KEY_HEADER);
    let deadline = message.headers.get(DEADLINE_HEADER).and_then(HeaderValue::as_int);
    if let Some(deadline) = deadline.and_then(DateTime::from_timestamp_millis) {
        message.deadline = Some(deadline);
        message.headers.remove(DEADLINE_HEADER);
    }
    message
}

/// Takes a header away that is a property of its own. What is no text stays where it is.
fn take_text(headers: &mut Headers, name: &str) -> Option<Cow<'static, str>> {
    headers.get(name)?.as_text()?;
    match headers.remove(name) {
        Some(HeaderValue::Text(text)) => Some(text),
        _ => None,
    }
}

/// Takes the place of a message in a stream away.
pub(crate) fn take_offset(headers: &mut Headers, name: &str) -> Option<u64> {
    let offset = headers.get(name)?.as_int()?;
    headers.remove(name);
    u64::try_from(offset).ok()
}

fn read_headers(table: &FieldTable) -> Headers {
    table
        .inner()
        .iter()
        // It told messages apart on their way here and is no part of them.
        .filter(|(name, _)| name.as_str() != PUBLISH_ID_HEADER)
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), read_value(value)?)))
        .collect()
}

fn read_value(value: &AMQPValue) -> Option<HeaderValue> {
    Some(match value {
        AMQPValue::Boolean(value) => HeaderValue::Bool(*value),
        AMQPValue::ShortShortInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongLongInt(number) => HeaderValue::Int(*number),
        AMQPValue::Float(number) => HeaderValue::Float(f64::from(*number)),
        AMQPValue::Double(number) => HeaderValue::Float(*number),
        AMQPValue::DecimalValue(decimal) => {
            HeaderValue::Float(f64::from(decimal.value) / 10_f64.powi(i32::from(decimal.scale)))
        }
        AMQPValue::ShortString(text) => HeaderValue::Text(text.as_str().to_owned().into()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned().into()),
            // Other clients send bytes as long strings.
            Err(_) => HeaderValue::Bytes(Bytes::copy_from_slice(text.as_bytes())),
        },
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(Bytes::copy_from_slice(bytes.as_slice())),
        AMQPValue::Timestamp(seconds) => {
            HeaderValue::Timestamp(DateTime::from_timestamp(seconds.cast_signed(), 0)?)
        }
        AMQPValue::FieldArray(items) => {
            HeaderValue::List(items.as_slice().iter().filter_map(read_value).collect())
        }
        AMQPValue::FieldTable(table) => HeaderValue::Map(read_headers(table)),
        // No value is no header.
        AMQPValue::Void => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let inner: Headers = [("a", HeaderValue::Int(-1))].into_iter().collect();
        let message = Message::new("body")
            .with_message_id("id")
            .with_causation_id("cause")
            .with_key("key")
            .with_deadline(DateTime::from_timestamp_millis(1_767_225_600_123).unwrap_or_default())
            .with_timestamp(DateTime::from_timestamp(-5, 0).unwrap_or_default())
            .with_ttl(Duration::from_millis(1_500))
            .with_priority(3)
            .with_header("bytes", Bytes::from_static(b"\xff"))
            .with_header("list", vec![HeaderValue::Bool(true), HeaderValue::Float(0.5)])
            .with_header("map", inner);
        assert_eq!(read(message.body.clone(), &write(&message)), message);
        assert_eq!(read(Bytes::new(), &write(&Message::new(""))), Message::new(""));
    }

    #[test]
    fn who_says_nothing_of_durability_gets_none() {
        assert!(!read(Bytes::new(), &BasicProperties::default()).durable);
    }
}
