//! What a program is made of, and how a person reads it.

use std::{fmt, time::Duration};

use postrider_core::{
    Address, Binding, Entity, Exchange, HeaderValue, Headers, Message, Queue, Topology,
};

/// The time to live and the delay of what is to pass while a program waits.
pub(super) const SHORT: Duration = Duration::from_millis(150);

/// The time to live of what is not to pass.
pub(super) const LONG: Duration = Duration::from_secs(3_600);

/// How long a program of times waits after each step: what expires may go to a queue where it
/// expires again.
pub(super) const WAIT: Duration = Duration::from_millis(450);

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Ack,
    Release,
    Retry,
    /// Only where nothing else of its queue could come before it; see `delayed-retry`.
    RetryLater,
    Reject,
    Abandon,
}

/// One step. Names are without the program's prefix; an index counts what is there when the step
/// is taken and begins anew behind the last, so that a program stays one when steps are left out.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Declare { connection: usize, topology: Topology },
    Remove { connection: usize, topology: Topology },
    Publish { address: Address, message: Box<Message>, delay: Duration },
    Consume { connection: usize, queue: String, prefetch: u16, exclusive: bool },
    Receive { consumer: usize, most: usize },
    Settle { held: usize, how: How },
    DropConsumer { consumer: usize },
    Purge { connection: usize, queue: String },
    Ask { connection: usize, queue: String },
    Lose { connection: usize },
}

/// A program.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) seed: u64,
    /// Whether it is about time: then it waits after each step until what is short has passed.
    pub(super) timed: bool,
    pub(super) steps: Vec<Step>,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting =
            if self.timed { format!(", waits {WAIT:?} after each step") } else { String::new() };
        writeln!(f, "program {}{waiting}:", self.seed)?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {number:2}. {step}")?;
        }
        Ok(())
    }
}

impl How {
    /// Whether the delivery is back in its queue at once.
    pub(super) const fn gives_back(self) -> bool {
        matches!(self, Self::Release | Self::Retry | Self::Abandon)
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ack => "ack",
            Self::Release => "release",
            Self::Retry => "retry",
            Self::RetryLater => "retry later",
            Self::Reject => "reject",
            Self::Abandon => "abandon",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declare { connection, topology } => {
                write!(f, "[{connection}] declare ")?;
                write_topology(f, topology)
            }
            Self::Remove { connection, topology } => {
                write!(f, "[{connection}] remove ")?;
                write_topology(f, topology)
            }
            Self::Publish { address, message, delay } => {
                let body = String::from_utf8_lossy(&message.body);
                write!(f, "publish {body:?} to {address}")?;
                write_option(f, "ttl", message.ttl.as_ref())?;
                write_option(f, "priority", message.priority.as_ref())?;
                write_option(f, "delay", (!delay.is_zero()).then_some(delay))?;
                write_headers(f, &message.headers)
            }
            Self::Consume { connection, queue, prefetch, exclusive } => {
                let alone = if *exclusive { ", exclusive" } else { "" };
                write!(f, "[{connection}] consume '{queue}' with prefetch {prefetch}{alone}")
            }
            Self::Receive { consumer, most } => {
                write!(f, "receive up to {most} by consumer #{consumer}")
            }
            Self::Settle { held, how } => write!(f, "{how} held #{held}"),
            Self::DropConsumer { consumer } => write!(f, "drop consumer #{consumer}"),
            Self::Purge { connection, queue } => write!(f, "[{connection}] purge '{queue}'"),
            Self::Ask { connection, queue } => write!(f, "[{connection}] ask about '{queue}'"),
            Self::Lose { connection } => write!(f, "[{connection}] lose the connection"),
        }
    }
}

fn write_option<T: fmt::Debug>(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    value: Option<T>,
) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, ", {name} {value:?}"))
}

fn write_headers(f: &mut fmt::Formatter<'_>, headers: &Headers) -> fmt::Result {
    for (name, value) in headers.iter() {
        match value {
            HeaderValue::Text(text) => write!(f, ", {name}={text:?}")?,
            HeaderValue::Int(number) => write!(f, ", {name}={number}")?,
            other => write!(f, ", {name}={other:?}")?,
        }
    }
    Ok(())
}

fn write_topology(f: &mut fmt::Formatter<'_>, topology: &Topology) -> fmt::Result {
    for exchange in &topology.exchanges {
        write_exchange(f, exchange)?;
    }
    for queue in &topology.queues {
        write_queue(f, queue)?;
    }
    for binding in &topology.bindings {
        write_binding(f, binding)?;
    }
    Ok(())
}

fn write_flag(f: &mut fmt::Formatter<'_>, name: &str, is_set: bool) -> fmt::Result {
    if is_set { write!(f, ", {name}") } else { Ok(()) }
}

fn write_exchange(f: &mut fmt::Formatter<'_>, exchange: &Exchange) -> fmt::Result {
    write!(f, "{}", Entity::Exchange(exchange.clone()))?;
    write_flag(f, "transient", !exchange.durable)?;
    write_flag(f, "auto-delete", exchange.auto_delete)?;
    write_flag(f, "internal", exchange.internal)?;
    write_option(f, "alternate", exchange.alternate.as_ref())
}

fn write_queue(f: &mut fmt::Formatter<'_>, queue: &Queue) -> fmt::Result {
    write!(f, "{}", Entity::Queue(Box::new(queue.clone())))?;
    write_flag(f, "transient", !queue.durable)?;
    write_flag(f, "exclusive", queue.exclusive)?;
    write_flag(f, "auto-delete", queue.auto_delete)?;
    write_flag(f, "single active consumer", queue.single_active_consumer)?;
    write_option(f, "ttl", queue.message_ttl)?;
    write_option(f, "expires", queue.expires)?;
    write_option(f, "max length", queue.max_length)?;
    write_option(f, "max bytes", queue.max_length_bytes)?;
    write_option(f, "overflow", (queue.overflow != Default::default()).then_some(queue.overflow))?;
    write_option(f, "delivery limit", queue.delivery_limit)?;
    write_option(f, "max priority", queue.max_priority)?;
    match &queue.dead_letter {
        Some(target) => write!(f, ", dead letters to {target}"),
        None => Ok(()),
    }
}

fn write_binding(f: &mut fmt::Formatter<'_>, binding: &Binding) -> fmt::Result {
    write!(f, "{}", Entity::Binding(binding.clone()))?;
    write_headers(f, &binding.arguments)
}
