//! What is seen of a broker: the outcome of a step, a delivery, the counts of a queue.

use postrider_core::{Delivery, ErrorKind, HeaderValue, Headers, QueueInfo, Result, Verdict};

/// What a step showed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    Done,
    Failed(ErrorKind),
    Verdict(&'static str),
    Purged(u64),
    Info(Counts),
    Deliveries(Vec<SeenDelivery>),
}

/// What a consumer gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum SeenDelivery {
    Message(Box<SeenMessage>),
    /// The stream ended, with this error.
    End(Option<ErrorKind>),
    /// Nothing came in time.
    Nothing,
}

/// A delivery, as far as it is compared.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SeenMessage {
    pub(super) body: String,
    pub(super) queue: String,
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) attempt: u32,
    pub(super) failures: u32,
    pub(super) redelivered: bool,
    pub(super) ttl: Option<u128>,
    pub(super) priority: Option<u8>,
    pub(super) durable: bool,
    /// By name, with the times of dead letters left out.
    pub(super) headers: Vec<(String, String)>,
}

/// The counts of a queue: those that every broker tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    Missing,
    There { ready: u64, consumers: u32 },
    Refused(ErrorKind),
}

impl Counts {
    pub(super) fn of(asked: Result<Option<QueueInfo>>) -> Self {
        match asked {
            Ok(None) => Self::Missing,
            Ok(Some(info)) => Self::There { ready: info.ready, consumers: info.consumers },
            Err(error) => Self::Refused(error.kind()),
        }
    }

    pub(super) const fn ready(self) -> u64 {
        match self {
            Self::There { ready, .. } => ready,
            _ => 0,
        }
    }
}

impl Seen {
    pub(super) fn of_call(outcome: Result<()>) -> Self {
        outcome.map_or_else(|error| Self::Failed(error.kind()), |()| Self::Done)
    }

    pub(super) const fn of_verdict(verdict: &Verdict) -> Self {
        Self::Verdict(match verdict {
            Verdict::Accepted => "accepted",
            Verdict::Rejected(_) => "rejected",
            Verdict::Unroutable => "unroutable",
            Verdict::Unknown(_) => "unknown",
        })
    }
}

/// Reads a delivery; names lose the `prefix` of their program.
pub(super) fn of_delivery(delivery: &Delivery, prefix: &str) -> SeenMessage {
    let (message, info) = (delivery.message(), delivery.info());
    let mut headers: Vec<_> = message
        .headers
        .iter()
        .map(|(name, value)| (name.to_owned(), in_words(value).replace(prefix, "")))
        .collect();
    headers.sort();
    SeenMessage {
        body: String::from_utf8_lossy(&message.body).into_owned(),
        queue: info.queue.replace(prefix, ""),
        exchange: delivery.address().exchange_name().replace(prefix, ""),
        routing_key: delivery.address().routing_key().replace(prefix, ""),
        attempt: info.attempt,
        failures: info.failures,
        redelivered: info.redelivered,
        ttl: message.ttl.map(|ttl| ttl.as_millis()),
        priority: message.priority,
        durable: message.durable,
        headers,
    }
}

fn in_words(value: &HeaderValue) -> String {
    match value {
        HeaderValue::List(items) => {
            format!("[{}]", items.iter().map(in_words).collect::<Vec<_>>().join(", "))
        }
        HeaderValue::Map(headers) => in_order(headers),
        HeaderValue::Timestamp(_) => "a time".to_owned(),
        HeaderValue::Text(text) => format!("'{text}'"),
        HeaderValue::Int(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn in_order(headers: &Headers) -> String {
    let mut fields: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", in_words(value))).collect();
    fields.sort();
    format!("{{{}}}", fields.join(", "))
}
