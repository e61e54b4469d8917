//! What RabbitMQ 4.3 refuses to declare, with its reasons in plain words.

use postrider_core::{
    Binding, Error, ErrorKind, Exchange, Queue, QueueKind, Result, check_declared_name, check_name,
};

use crate::matching;

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
