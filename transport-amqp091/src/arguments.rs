//! Queues, exchanges and consumers as the protocol declares them.

use lapin::{
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use postrider_core::{Exchange, ExchangeKind, Queue, StreamStart};
use postrider_rabbitmq::Argument;

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text.as_bytes()))
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

/// Arguments as a table.
pub(crate) fn table(arguments: Vec<(&'static str, Argument)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(value) => text(&value),
            Argument::Number(number) => AMQPValue::LongLongInt(number),
            Argument::Bool(value) => AMQPValue::Boolean(value),
        };
        table.insert(name.into(), value);
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
