//! What RabbitMQ 4.3 refuses to declare, with its reasons in plain words.

use std::{collections::HashMap, time::Duration};

use postrider_core::{
    Binding, Difference, Error, ErrorKind, Exchange, Queue, QueueKind, Result, Topology,
    check_declared_name, check_name,
};

use crate::matching;

/// The longest time of a queue: what RabbitMQ's timers take, 2^32 - 1 milliseconds.
const MAX_MILLIS: u128 = u32::MAX as u128;

fn refuse(kind: ErrorKind, queue: &Queue, argument: &'static str, why: &'static str) -> Error {
    Error::new(kind, "declare", why)
        .with_context("queue", queue.name.clone())
        .with_context("argument", argument)
}

pub(crate) fn check_queue(queue: &Queue) -> Result<()> {
    check_declared_name("declare", &queue.name)?;
    let invalid = |argument, why| Err(refuse(ErrorKind::Invalid, queue, argument, why));
    match queue.kind {
        QueueKind::Stream => {
            return Err(refuse(
                ErrorKind::Unsupported,
                queue,
                "kind",
                "the in-memory broker has no stream queues",
            ));
        }
        QueueKind::Quorum => {
            if !queue.durable {
                return invalid("durable", "a quorum queue is always durable");
            }
            if queue.exclusive {
                return invalid(
                    "exclusive",
                    "a quorum queue cannot be exclusive; use a classic one",
                );
            }
            if queue.max_priority.is_some() {
                return invalid(
                    "max_priority",
                    "a quorum queue has its priorities without being asked; leave it out",
                );
            }
        }
        _ => {
            if !queue.durable && !queue.exclusive {
                return invalid(
                    "durable",
                    "a transient queue must be exclusive (RabbitMQ 4.3); make it durable",
                );
            }
            if queue.delivery_limit.is_some() {
                return invalid("delivery_limit", "only quorum queues have a delivery limit");
            }
        }
    }
    let too_long = |time: Option<Duration>| time.is_some_and(|time| time.as_millis() > MAX_MILLIS);
    if too_long(queue.expires) {
        return invalid("expires", "the time without use is longer than 49 days");
    }
    if too_long(queue.message_ttl) {
        return invalid("message_ttl", "the time to live is longer than 49 days");
    }
    if queue.expires.is_some_and(|unused| unused.as_millis() == 0) {
        return invalid("expires", "the time without use must be at least a millisecond");
    }
    if let Some(dead_letter) = &queue.dead_letter {
        check_name("declare", &dead_letter.exchange)?;
        check_name("declare", dead_letter.routing_key.as_deref().unwrap_or_default())?;
    }
    Ok(())
}

pub(crate) fn check_exchange(exchange: &Exchange) -> Result<()> {
    check_declared_name("declare", &exchange.name)?;
    check_name("declare", exchange.alternate.as_deref().unwrap_or_default())
}

pub(crate) fn check_binding(binding: &Binding) -> Result<()> {
    if binding.exchange.is_empty() {
        return Err(Error::new(
            ErrorKind::Unauthorized,
            "declare",
            "the default exchange routes to each queue by its name and takes no bindings",
        )
        .with_context("binding", binding.to_string()));
    }
    check_name("declare", &binding.key)?;
    matching::check_arguments(binding)
}

/// Refuses a topology that has one queue or exchange in two forms.
pub(crate) fn check_consistency(topology: &Topology) -> Result<()> {
    let twice = |name: &str, difference: Difference| {
        Err(Error::new(
            ErrorKind::Mismatch,
            "declare",
            format!("the topology has '{name}' twice, with different {}", difference.argument),
        )
        .with_context("argument", difference.argument))
    };
    let mut queues = HashMap::new();
    for queue in &topology.queues {
        let same = queues.insert(&*queue.name, queue);
        if let Some(difference) = same.and_then(|known| Difference::of_queues(queue, known)) {
            return twice(&queue.name, difference);
        }
    }
    let mut exchanges = HashMap::new();
    for exchange in &topology.exchanges {
        let same = exchanges.insert(&*exchange.name, exchange);
        if let Some(difference) = same.and_then(|known| Difference::of_exchanges(exchange, known)) {
            return twice(&exchange.name, difference);
        }
    }
    Ok(())
}
