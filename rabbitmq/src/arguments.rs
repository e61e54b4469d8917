//! Queues and exchanges as the broker's arguments, and its refusals as differences.

use std::{borrow::Cow, time::Duration};

use postrider_core::{Difference, Exchange, Overflow, Queue, QueueKind};

use crate::version::Version;

/// The value of an argument, which each protocol writes in its own way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// Text.
    Text(Cow<'static, str>),
    /// A whole number; times are in milliseconds.
    Number(i64),
    /// Yes or no.
    Bool(bool),
}

fn text(text: impl Into<Cow<'static, str>>) -> Argument {
    Argument::Text(text.into())
}

fn millis(time: Duration) -> Argument {
    Argument::Number(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

fn number(number: u64) -> Argument {
    Argument::Number(i64::try_from(number).unwrap_or(i64::MAX))
}

/// The arguments of a queue for a broker. All that it says is written, so that nothing is left to a
/// default that differs from one broker to the next.
#[must_use]
pub fn queue_arguments(queue: &Queue, version: Version) -> Vec<(&'static str, Argument)> {
    let mut arguments = vec![("x-queue-type", text(queue.kind.to_string()))];
    if let Some(ttl) = queue.message_ttl {
        arguments.push(("x-message-ttl", millis(ttl)));
    }
    if let Some(unused) = queue.expires {
        arguments.push(("x-expires", millis(unused)));
    }
    if let Some(messages) = queue.max_length {
        arguments.push(("x-max-length", number(messages)));
    }
    if let Some(bytes) = queue.max_length_bytes {
        arguments.push(("x-max-length-bytes", number(bytes)));
    }
    if queue.overflow != Overflow::default() {
        arguments.push(("x-overflow", text(queue.overflow.to_string())));
    }
    if let Some(dead_letter) = &queue.dead_letter {
        arguments.push(("x-dead-letter-exchange", text(dead_letter.exchange.clone())));
        if let Some(key) = &dead_letter.routing_key {
            arguments.push(("x-dead-letter-routing-key", text(key.clone())));
        }
    }
    if queue.kind == QueueKind::Quorum {
        let limit = queue.delivery_limit.map_or(-1, i64::from);
        arguments.push(("x-delivery-limit", Argument::Number(limit)));
    }
    if let Some(delay) = queue.retry_delay.filter(|_| version.delays_retries()) {
        arguments.push(("x-delayed-retry-type", text("failed")));
        arguments.push(("x-delayed-retry-min", millis(delay.shortest)));
        arguments.push(("x-delayed-retry-max", millis(delay.longest)));
    }
    if let Some(highest) = queue.max_priority {
        arguments.push(("x-max-priority", number(highest.into())));
    }
    if queue.single_active_consumer {
        arguments.push(("x-single-active-consumer", Argument::Bool(true)));
    }
    arguments
}

/// The arguments of an exchange.
#[must_use]
pub fn exchange_arguments(exchange: &Exchange) -> Vec<(&'static str, Argument)> {
    let alternate = exchange.alternate.clone();
    alternate.map(|name| ("alternate-exchange", text(name))).into_iter().collect()
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
#[must_use]
pub fn difference(reply: &str) -> Option<Difference> {
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
        let limit = |queue: &Queue| {
            let arguments = queue_arguments(queue, newest);
            let limit = arguments.into_iter().find(|(name, _)| *name == "x-delivery-limit");
            limit.map(|(_, value)| value)
        };
        assert_eq!(limit(&Queue::durable("q")), Some(Argument::Number(20)));
        let endless = Queue::durable("q").without_delivery_limit();
        assert_eq!(limit(&endless), Some(Argument::Number(-1)));
        assert_eq!(limit(&Queue::classic("q")), None);
    }
}
