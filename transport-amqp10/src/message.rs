//! Messages on the wire, both ways.
//!
//! What Postrider calls a header is an application property, or a message annotation where its name
//! begins with `x-`, which is how RabbitMQ carries those of AMQP 0.9.1. So a message looks the same
//! over either protocol.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use fe2o3_amqp_types::{
    messaging::{
        ApplicationProperties, Body, Data, Header, Message as Wire, MessageAnnotations, MessageId,
        Priority, Properties, annotations::OwnedKey,
    },
    primitives::{Binary, OrderedMap, SimpleValue, Symbol, Timestamp, Value},
};
use postrider_core::{
    Address, CAUSATION_ID_HEADER, DEADLINE_HEADER, DeliveryInfo, Envelope, Error, ErrorKind,
    HeaderValue, Headers, KEY_HEADER, Message, Result,
};
use postrider_rabbitmq::{
    PUBLISH_ID_HEADER,
    delay::{self, take_count},
};

use crate::{
    dialect::Dialect,
    sections::{DEFAULT_PRIORITY, WRITTEN_OUT},
};

/// What the name of a header begins with that is an annotation.
const ANNOTATION: &str = "x-";

/// The annotation that is the type of a message in AMQP 0.9.1.
const TYPE: &str = "x-basic-type";

/// The annotation that says how durable a message is to who consumes it over AMQP 0.9.1; 4.0 looks for
/// it there alone.
const DELIVERY_MODE: &str = "x-basic-delivery-mode";

/// What it says of a message that may be lost.
const TRANSIENT: u8 = 1;

/// The annotations in which RabbitMQ says where a message was published to.
const EXCHANGE: &str = "x-exchange";
const ROUTING_KEY: &str = "x-routing-key";

/// The annotation in which a quorum queue counts earlier deliveries, since 4.3.
const ACQUIRED_COUNT: &str = "x-acquired-count";

/// The annotation in which a quorum queue counts returns.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// The annotation with the place of a message in a stream.
const STREAM_OFFSET: &str = "x-stream-offset";

/// What the sections of a message have beside texts and headers, at most, in bytes.
const SECTIONS: u64 = 1_024;

/// A message that was delivered, and its counts.
#[derive(Debug, Clone)]
pub(crate) struct Delivered {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) info: DeliveryInfo,
}

/// Checks that a message is not too large with all its sections: a broker counts them in, and ends the
/// link with all that is under way on it.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] for one that is, or nearly is.
pub(crate) fn check_size(operation: &'static str, envelope: &Envelope, most: u64) -> Result<()> {
    let message = &envelope.message;
    let texts = [
        &message.message_id,
        &message.correlation_id,
        &message.causation_id,
        &message.reply_to,
        &message.content_type,
        &message.message_type,
        &message.key,
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| text.len()).sum();
    let address = envelope.address.exchange_name().len() + envelope.address.routing_key().len();
    // A header has a constructor and a length more than is counted, percent-encoding triples.
    let around = texts + 3 * address + message.headers.wire_bytes() + 4 * message.headers.len();
    let bytes = (message.body.len() + around) as u64 + SECTIONS;
    if bytes <= most {
        return Ok(());
    }
    let why = format!("the message has up to {bytes} bytes, the broker takes {most}");
    Err(Error::new(ErrorKind::Invalid, operation, why))
}

/// Checks that a message can be told to the broker.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] for a list or map that would have to be an application property.
pub(crate) fn check(operation: &'static str, message: &Message) -> Result<()> {
    let is_nested = |value| matches!(value, &HeaderValue::List(_) | &HeaderValue::Map(_));
    let nested = message
        .headers
        .iter()
        .find(|(name, value)| !name.starts_with(ANNOTATION) && is_nested(*value));
    let Some((name, _)) = nested else { return Ok(()) };
    let why = "over AMQP 1.0 a header may be a list or a map only if its name begins with 'x-'";
    let error = Error::new(ErrorKind::Unsupported, operation, why);
    Err(error.with_context("header", name.to_owned()))
}

/// A message to its address.
pub(crate) fn write(envelope: &Envelope, dialect: &Dialect) -> Wire<Data> {
    let message = &envelope.message;
    let id =
        |id: &Option<Cow<'static, str>>| id.as_deref().map(|id| MessageId::from(id.to_owned()));
    let properties = Properties {
        message_id: id(&message.message_id),
        to: Some(dialect.target(&envelope.address)),
        subject: dialect.subject(&envelope.address).map(str::to_owned),
        reply_to: message.reply_to.as_deref().map(|queue| dialect.reply_to(queue)),
        correlation_id: id(&message.correlation_id),
        content_type: message.content_type.as_deref().map(Symbol::from),
        creation_time: message.timestamp.map(|moment| moment.timestamp_millis().into()),
        ..Properties::default()
    };
    let mut annotations = OrderedMap::new();
    let mut application = OrderedMap::new();
    if let Some(kind) = &message.message_type {
        annotations.insert(OwnedKey::from(TYPE), Value::String(kind.clone().into_owned()));
    }
    if !message.durable {
        annotations.insert(OwnedKey::from(DELIVERY_MODE), Value::Ubyte(TRANSIENT));
    }
    for (name, value) in message.headers.iter().filter(|(name, _)| *name != PUBLISH_ID_HEADER) {
        if name.starts_with(ANNOTATION) {
            annotations.insert(OwnedKey::from(name), any_value(value));
        } else if let Some(value) = simple_value(value) {
            application.insert(name.to_owned(), value);
        }
    }
    let mut text = |name: &str, text: &str| {
        application.insert(name.to_owned(), SimpleValue::String(text.to_owned()));
    };
    if let Some(id) = &message.causation_id {
        text(CAUSATION_ID_HEADER, id);
    }
    if let Some(key) = &message.key {
        text(KEY_HEADER, key);
    }
    if let Some(deadline) = message.deadline {
        let millis = SimpleValue::Long(deadline.timestamp_millis());
        application.insert(DEADLINE_HEADER.to_owned(), millis);
    }
    Wire {
        header: Some(Header {
            // Always written: without it a broker takes it for durable, or not, by its version.
            durable: message.durable,
            priority: Priority(message.priority.unwrap_or(DEFAULT_PRIORITY)),
            ttl: message.ttl.map(|ttl| u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX)),
            first_acquirer: false,
            delivery_count: match message.priority {
                Some(DEFAULT_PRIORITY) => WRITTEN_OUT,
                _ => 0,
            },
        }),
        delivery_annotations: None,
        message_annotations: (!annotations.is_empty()).then_some(MessageAnnotations(annotations)),
        properties: Some(properties),
        application_properties: (!application.is_empty())
            .then_some(ApplicationProperties(application)),
        body: Data(Binary::from(message.body.to_vec())),
        footer: None,
    }
}

/// What an application property may be: part 3, section 3.2.5.
pub(crate) fn simple_value(value: &HeaderValue) -> Option<SimpleValue> {
    Some(match value {
        HeaderValue::Bool(value) => SimpleValue::Bool(*value),
        HeaderValue::Int(number) => SimpleValue::Long(*number),
        HeaderValue::Float(number) => SimpleValue::Double((*number).into()),
        HeaderValue::Text(text) => SimpleValue::String(text.clone().into_owned()),
        HeaderValue::Bytes(bytes) => SimpleValue::Binary(Binary::from(bytes.to_vec())),
        HeaderValue::Timestamp(moment) => {
            SimpleValue::Timestamp(Timestamp::from(moment.timestamp_millis()))
        }
        _ => return None,
    })
}

/// What an annotation or an argument may be.
pub(crate) fn any_value(value: &HeaderValue) -> Value {
    match value {
        HeaderValue::Bool(value) => Value::Bool(*value),
        HeaderValue::Int(number) => Value::Long(*number),
        HeaderValue::Float(number) => Value::Double((*number).into()),
        HeaderValue::Text(text) => Value::String(text.clone().into_owned()),
        HeaderValue::Bytes(bytes) => Value::Binary(Binary::from(bytes.to_vec())),
        HeaderValue::Timestamp(moment) => {
            Value::Timestamp(Timestamp::from(moment.timestamp_millis()))
        }
        HeaderValue::List(items) => Value::List(items.iter().map(any_value).collect()),
        HeaderValue::Map(headers) => Value::Map(
            headers
                .iter()
                .map(|(name, value)| (Value::String(name.to_owned()), any_value(value)))
                .collect(),
        ),
        _ => Value::Null,
    }
}

/// Reads a delivery from `queue`, which is a stream or is not.
pub(crate) fn read(
    dialect: &Dialect,
    queue: &Arc<str>,
    wire: Wire<Body<Value>>,
    is_stream: bool,
) -> Delivered {
    let mut message = Message::new(body(wire.body));
    let header = wire.header.unwrap_or_default();
    message.durable = header.durable;
    let is_written =
        |priority: &u8| *priority != DEFAULT_PRIORITY || header.delivery_count & WRITTEN_OUT != 0;
    message.priority = Some(header.priority.0).filter(is_written);
    message.ttl = header.ttl.map(|millis| Duration::from_millis(millis.into()));
    if let Some(properties) = wire.properties {
        message.message_id = properties.message_id.map(id);
        message.correlation_id = properties.correlation_id.map(id);
        message.reply_to = properties.reply_to.map(|to| dialect.queue_of(&to).into_owned().into());
        message.content_type = properties.content_type.map(|content_type| content_type.0.into());
        message.timestamp = properties
            .creation_time
            .and_then(|moment| DateTime::from_timestamp_millis(moment.milliseconds()));
    }
    let mut headers = Headers::new();
    for (name, value) in wire.application_properties.into_iter().flat_map(|map| map.0) {
        if let Some(value) = header_of(Value::from(value)) {
            headers.set(name, value);
        }
    }
    let (mut exchange, mut routing_key) = (String::new(), String::new());
    for (key, value) in wire.message_annotations.into_iter().flat_map(|map| map.0) {
        let (OwnedKey::Symbol(name), Some(value)) = (key, header_of(value)) else { continue };
        match (&*name.0, value) {
            (TYPE, HeaderValue::Text(kind)) => message.message_type = Some(kind),
            (EXCHANGE, HeaderValue::Text(name)) => exchange = name.into_owned(),
            (ROUTING_KEY, HeaderValue::Text(key)) => routing_key = key.into_owned(),
            (DELIVERY_MODE, _) => {}
            (_, value) => headers.set(name.0, value),
        }
    }
    let address = match exchange.is_empty() {
        // Of a broker that does not say where it was published to, it is known where it came to.
        true if routing_key.is_empty() => Address::queue(queue.to_string()),
        true => Address::queue(routing_key),
        false => Address::exchange(exchange, routing_key),
    };
    headers.remove(PUBLISH_ID_HEADER);
    headers.remove(delay::DELIVERY_TIME);
    message.causation_id = take_text(&mut headers, CAUSATION_ID_HEADER);
    message.key = take_text(&mut headers, KEY_HEADER);
    let deadline = headers.get(DEADLINE_HEADER).and_then(HeaderValue::as_int);
    if let Some(deadline) = deadline.and_then(DateTime::from_timestamp_millis) {
        message.deadline = Some(deadline);
        headers.remove(DEADLINE_HEADER);
    }
    let failures = header.delivery_count & !WRITTEN_OUT;
    let returned = take_count(&mut headers, DELIVERY_COUNT).unwrap_or(0);
    let acquired = take_count(&mut headers, ACQUIRED_COUNT).unwrap_or(0);
    let redelivered = match dialect.notes_first_acquirer() {
        true => !header.first_acquirer,
        false => failures > 0,
    };
    let failures = if dialect.counts_returns() { failures.max(returned) } else { failures };
    // A dead letter may bring the counts of the queue it comes from.
    let returned = if dialect.counts_acquired() { acquired } else { returned };
    let (failures, returned) = if redelivered { (failures, returned) } else { (0, 0) };
    // On the way to another queue anybody may have written it.
    let offset = headers.get(STREAM_OFFSET).and_then(HeaderValue::as_int).filter(|_| is_stream);
    headers.remove(STREAM_OFFSET);
    if rename_deaths(&mut headers) {
        // Death takes it away, which RabbitMQ does not tell of what came over AMQP 0.9.1.
        message.ttl = None;
    }
    // The broker acquired it on its rung, and says so ever after; a quorum queue counts for itself.
    let redelivered =
        redelivered && !(delay::has_waited(&headers) && returned == 0 && failures == 0);
    let earlier = delay::take_counts(&mut headers);
    delay::hide_deaths(&mut headers);
    let here = returned.max(failures).max(u32::from(redelivered));
    let mut info = DeliveryInfo::first(queue.clone());
    info.failures = failures.saturating_add(earlier.failures);
    info.attempt = here.saturating_add(earlier.attempts).saturating_add(1);
    info.redelivered = info.attempt > 1;
    info.offset = offset.and_then(|offset| u64::try_from(offset).ok());
    info.first_failed = delay::take_first_failed(&mut headers, info.redelivered);
    message.headers = headers;
    Delivered { envelope: Arc::new(Envelope::new(address, message)), info }
}

/// The deaths of a message have other names than over AMQP 0.9.1, which are those that patterns know.
/// Whether there are any.
fn rename_deaths(headers: &mut Headers) -> bool {
    let Some(HeaderValue::List(deaths)) = headers.remove("x-opt-deaths") else { return false };
    let renamed = deaths.into_iter().map(|death| match death {
        HeaderValue::Map(mut death) => {
            if let Some(first) = death.remove("first-time") {
                death.set("time", first);
            }
            death.remove("last-time");
            if let Some(ttl) = death.remove("ttl").and_then(|ttl| ttl.as_int()) {
                let millis = HeaderValue::Text(ttl.to_string().into());
                death.set("original-expiration", millis);
            }
            HeaderValue::Map(death)
        }
        other => other,
    });
    headers.set("x-death", HeaderValue::List(renamed.collect()));
    true
}

fn id(id: MessageId) -> Cow<'static, str> {
    Cow::Owned(match id {
        MessageId::String(text) => text,
        MessageId::Ulong(number) => number.to_string(),
        MessageId::Uuid(uuid) => {
            let hex: String = uuid.as_inner().iter().map(|byte| format!("{byte:02x}")).collect();
            format!(
                "{}-{}-{}-{}-{}",
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..]
            )
        }
        MessageId::Binary(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
    })
}

fn body(body: Body<Value>) -> Bytes {
    match body {
        Body::Data(sections) => {
            let mut sections = sections.into_iter();
            let first = sections.next().map(|Data(bytes)| bytes.into_vec()).unwrap_or_default();
            let all = sections.fold(first, |mut all, Data(bytes)| {
                all.extend_from_slice(&bytes);
                all
            });
            Bytes::from(all)
        }
        Body::Value(value) => match value.0 {
            Value::String(text) => Bytes::from(text),
            Value::Binary(bytes) => Bytes::from(bytes.into_vec()),
            Value::Null => Bytes::new(),
            // Of other shapes nothing is lost: they are bytes in their own encoding.
            other => Bytes::from(serde_amqp::to_vec(&other).unwrap_or_default()),
        },
        Body::Sequence(items) => {
            let items: Vec<_> = items.into_iter().flat_map(|sequence| sequence.0).collect();
            Bytes::from(serde_amqp::to_vec(&Value::List(items)).unwrap_or_default())
        }
        Body::Empty => Bytes::new(),
    }
}

fn header_of(value: Value) -> Option<HeaderValue> {
    Some(match value {
        Value::Bool(value) => HeaderValue::Bool(value),
        Value::Ubyte(number) => HeaderValue::Int(number.into()),
        Value::Ushort(number) => HeaderValue::Int(number.into()),
        Value::Uint(number) => HeaderValue::Int(number.into()),
        Value::Ulong(number) => HeaderValue::Int(i64::try_from(number).unwrap_or(i64::MAX)),
        Value::Byte(number) => HeaderValue::Int(number.into()),
        Value::Short(number) => HeaderValue::Int(number.into()),
        Value::Int(number) => HeaderValue::Int(number.into()),
        Value::Long(number) => HeaderValue::Int(number),
        Value::Float(number) => HeaderValue::Float(f64::from(number.into_inner())),
        Value::Double(number) => HeaderValue::Float(number.into_inner()),
        Value::String(text) => HeaderValue::Text(text.into()),
        Value::Symbol(symbol) => HeaderValue::Text(symbol.0.into()),
        Value::Char(character) => HeaderValue::Text(character.to_string().into()),
        Value::Binary(bytes) => HeaderValue::Bytes(Bytes::from(bytes.into_vec())),
        Value::Timestamp(moment) => {
            HeaderValue::Timestamp(DateTime::from_timestamp_millis(moment.milliseconds())?)
        }
        Value::List(items) => HeaderValue::List(items.into_iter().filter_map(header_of).collect()),
        Value::Array(items) => {
            HeaderValue::List(items.0.into_iter().filter_map(header_of).collect())
        }
        Value::Map(map) => HeaderValue::Map(
            map.into_iter()
                .filter_map(|(name, value)| {
                    let name = match name {
                        Value::String(text) => text,
                        Value::Symbol(symbol) => symbol.0,
                        _ => return None,
                    };
                    Some((name, header_of(value)?))
                })
                .collect(),
        ),
        _ => return None,
    })
}

/// Takes a header away that is a property of its own. What is no text stays where it is.
fn take_text(headers: &mut Headers, name: &str) -> Option<Cow<'static, str>> {
    headers.get(name)?.as_text()?;
    match headers.remove(name) {
        Some(HeaderValue::Text(text)) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use postrider_rabbitmq::Version;

    use super::*;

    const NEWEST: Dialect = Dialect::RabbitMq(Version { major: 4, minor: 3 });

    fn come_back(message: Message) -> Message {
        let address = Address::exchange("events", "order.new");
        let wire = write(&Envelope::new(address, message), &NEWEST);
        let bytes = Wire {
            header: wire.header,
            delivery_annotations: None,
            message_annotations: wire.message_annotations,
            properties: wire.properties,
            application_properties: wire.application_properties,
            body: Body::Data(vec![wire.body].into()),
            footer: None,
        };
        let read = read(&NEWEST, &"q".into(), bytes, false);
        Arc::unwrap_or_clone(read.envelope).message
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let inner: Headers = [("a", HeaderValue::Int(-1))].into_iter().collect();
        let message = Message::new("body")
            .with_message_id("id")
            .with_correlation_id("correlation")
            .with_reply_to("replies/1")
            .with_content_type("application/json")
            .with_type("order.new")
            .with_causation_id("cause")
            .with_key("key")
            .with_deadline(DateTime::from_timestamp_millis(1_767_225_600_123).unwrap_or_default())
            .with_timestamp(DateTime::from_timestamp(-5, 0).unwrap_or_default())
            .with_ttl(Duration::from_millis(1_500))
            .with_priority(3)
            .with_header("bytes", Bytes::from_static(b"\xff"))
            .with_header("float", 0.5)
            .with_header("x-list", vec![HeaderValue::Bool(true), HeaderValue::Float(0.5)])
            .with_header("x-map", inner);
        assert_eq!(come_back(message.clone()), message);
        assert_eq!(come_back(Message::new("").transient()), Message::new("").transient());
    }
}
