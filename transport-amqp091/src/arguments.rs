//! Queues and exchanges as the broker's arguments, and its refusals as differences.

use std::time::Duration;

use lapin::{
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use postrider_core::{Difference, Exchange, ExchangeKind, Overflow, Queue, QueueKind, StreamStart};

use crate::version::Version;

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text.as_bytes()))
}

fn millis(time: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

fn number(number: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX))
}

pub(crate) fn queue_options(queue: &Queue) -> QueueDeclareOptions {
    QueueDeclareOptions {
        passive: false,
        durable: queue.durable,
        exclusive: queue.exclusive,
        auto_delete: queue.auto_delete,
        nowait: false,
    }
}

/// The arguments of a queue for a broker. All that it says is written, so that nothing is left to a default that
/// differs from one broker to the next.
pub(crate) fn queue_arguments(queue: &Queue, version: Version) -> FieldTable {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), text(&queue.kind.to_string()));
    if let Some(ttl) = queue.message_ttl {
        table.insert("x-message-ttl".into(), millis(ttl));
    }
    if let Some(unused) = queue.expires {
        table.insert("x-expires".into(), millis(unused));
    }
    if let Some(messages) = queue.max_length {
        table.insert("x-max-length".into(), number(messages));
    }
    if let Some(bytes) = queue.max_length_bytes {
        table.insert("x-max-length-bytes".into(), number(bytes));
    }
    if queue.overflow != Overflow::default() {
        table.insert("x-overflow".into(), text(&queue.overflow.to_string()));
    }
    if let Some(dead_letter) = &queue.dead_letter {
        table.insert("x-dead-letter-exchange".into(), text(&dead_letter.exchange));
        if let Some(key) = &dead_letter.routing_key {
            table.insert("x-dead-letter-routing-key".into(), text(key));
        }
    }
    if queue.kind == QueueKind::Quorum {
        let limit = queue.delivery_limit.map_or(-1, i64::from);
        table.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
    }
    if let Some(delay) = queue.retry_delay.filter(|_| version.delays_retries()) {
        table.insert("x-delayed-retry-type".into(), text("failed"));
        table.insert("x-delayed-retry-min".into(), millis(delay.shortest));
        table.insert("x-delayed-retry-max".into(), millis(delay.longest));
    }
    if let Some(highest) = queue.max_priority {
        table.insert("x-max-priority".into(), number(highest.into()));
    }
    if queue.single_active_consumer {
        table.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    table
}

/// The arguments of a consumer that reads a stream from `start`.
pub(crate) fn consume_arguments(start: Option<StreamStart>) -> FieldTable {
    let mut table = FieldTable::default();
    let offset = start.map(|start| match start {
        StreamStart::First => text("first"),
        StreamStart::Last => text("last"),
        StreamStart::Offset(offset) => number(offset),
        StreamStart::Time(time) => {
            AMQPValue::Timestamp(u64::try_from(time.timestamp()).unwrap_or(0))
        }
        _ => text("next"),
    });
    if let Some(offset) = offset {
        table.insert("x-stream-offset".into(), offset);
    }
    table
}

pub(crate) fn exchange_kind(exchange: &Exchange) -> lapin::ExchangeKind {
    match exchange.kind {
        ExchangeKind::Direct => lapin::ExchangeKind::Direct,
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
        ExchangeKind::Headers => lapin::ExchangeKind::Headers,
        other => lapin::ExchangeKind::Custom(other.to_string()),
    }
}

pub(crate) fn exchange_options(exchange: &Exchange) -> ExchangeDeclareOptions {
    ExchangeDeclareOptions {
        passive: false,
        durable: exchange.durable,
        auto_delete: exchange.auto_delete,
        internal: exchange.internal,
        nowait: false,
    }
}

pub(crate) fn exchange_arguments(exchange: &Exchange) -> FieldTable {
    let mut table = FieldTable::default();
    if let Some(alternate) = &exchange.alternate {
        table.insert("alternate-exchange".into(), text(alternate));
    }
    table
}

/// Our name of an argument that the broker names.
fn field(argument: &str) -> &'static str {
    match argument {
        "x-queue-type" | "type" => "kind",
        "durable" => "durable",
        "exclusive" => "exclusive",
        "auto_delete" => "auto_delete",
        "internal" => "internal",
        "alternate-exchange" => "alternate",
        "x-message-ttl" => "message_ttl",
        "x-expires" => "expires",
        "x-max-length" => "max_length",
        "x-max-length-bytes" => "max_length_bytes",
        "x-overflow" => "overflow",
        "x-dead-letter-exchange" | "x-dead-letter-routing-key" => "dead_letter",
        "x-delivery-limit" => "delivery_limit",
        "x-delayed-retry-type" | "x-delayed-retry-min" | "x-delayed-retry-max" => "retry_delay",
        "x-max-priority" => "max_priority",
        "x-single-active-consumer" => "single_active_consumer",
        _ => "arguments",
    }
}

/// What the broker's words on an inequivalent argument say, for example `inequivalent arg
/// 'x-message-ttl' for queue 'q' in vhost '/': received the value '60000' of type 'signedint' but
/// current is none`.
pub(crate) fn difference(reply: &str) -> Option<Difference> {
    let (_, rest) = reply.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once('\'')?;
    let (wanted, found) = match rest.rsplit_once(": received ") {
        Some((_, values)) => values.split_once(" but current is ").unwrap_or((values, "otherwise")),
        None => ("otherwise", "otherwise"),
    };
    let value = |text: &str| {
        let text = text.strip_prefix("the value ").unwrap_or(text);
        let text = text.split(" of type ").next().unwrap_or(text);
        text.trim_matches('\'').to_owned()
    };
    Some(Difference { argument: field(argument), wanted: value(wanted), found: value(found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_words_name_argument_and_values() {
        let found = difference(
            "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'a: received' in \
             vhost '/': received the value '60000' of type 'signedint' but current is none",
        )
        .unwrap();
        assert_eq!(
            (found.argument, &*found.wanted, &*found.found),
            ("message_ttl", "60000", "none")
        );
        let found = difference(
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/': \
             received 'topic' but current is 'direct'",
        )
        .unwrap();
        assert_eq!((found.argument, &*found.wanted, &*found.found), ("kind", "topic", "direct"));
        assert_eq!(difference("PRECONDITION_FAILED - unknown delivery tag 7"), None);
    }

    #[test]
    fn a_quorum_queue_says_its_limit_or_that_it_has_none() {
        let newest = Version { major: 4, minor: 3 };
        let limit =
            |queue: &Queue| queue_arguments(queue, newest).inner().get("x-delivery-limit").cloned();
        assert_eq!(limit(&Queue::durable("q")), Some(AMQPValue::LongLongInt(20)));
        let endless = Queue::durable("q").without_delivery_limit();
        assert_eq!(limit(&endless), Some(AMQPValue::LongLongInt(-1)));
        assert_eq!(limit(&Queue::classic("q")), None);
    }
}
