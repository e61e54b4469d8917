//! Dead letters: the record RabbitMQ keeps of a message's deaths, and the headers it writes.

use std::{borrow::Cow, sync::Arc};

use chrono::{DateTime, Utc};
use postrider_core::{Address, DeadLetter, Envelope, HeaderValue, Headers};

use crate::queue::Entry;

/// Why a message left its queue without being acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Rejected,
    Expired,
    MaxLength,
    DeliveryLimit,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}

/// The deaths of one message, the latest first; one for each pair of queue and reason.
///
/// They are kept beside the message and not read from its headers: RabbitMQ 4 does not trust the
/// `x-death` that a client sends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deaths {
    list: Vec<Death>,
    /// The failures that it had at its last death. The next queue goes on counting from them, as
    /// RabbitMQ 4.3 does.
    pub(crate) failures: u32,
}

#[derive(Debug, Clone)]
struct Death {
    queue: Arc<str>,
    reason: Reason,
    count: i64,
    exchange: String,
    routing_key: String,
    time: DateTime<Utc>,
    original_expiration: Option<u128>,
}

impl Deaths {
    /// Whether sending the message to `queue` once more would let it circle for ever: it has died
    /// there before, and since then nobody has rejected it (RabbitMQ's rule).
    pub(crate) fn is_cycle(&self, queue: &str) -> bool {
        let before = self.list.iter().position(|death| &*death.queue == queue);
        before
            .is_some_and(|at| self.list[..=at].iter().all(|death| death.reason != Reason::Rejected))
    }

    fn add(&mut self, queue: &Arc<str>, reason: Reason, envelope: &Envelope, time: DateTime<Utc>) {
        let known =
            self.list.iter().position(|death| death.queue == *queue && death.reason == reason);
        let death = if let Some(index) = known {
            let mut death = self.list.remove(index);
            death.count += 1;
            death.time = time;
            death
        } else {
            Death {
                queue: queue.clone(),
                reason,
                count: 1,
                exchange: envelope.address.exchange_name().to_owned(),
                routing_key: envelope.address.routing_key().to_owned(),
                time,
                original_expiration: envelope.message.ttl.map(|ttl| ttl.as_millis()),
            }
        };
        self.list.insert(0, death);
    }

    fn write(&self, headers: &mut Headers) {
        let table = |death: &Death| {
            let mut table = Headers::new();
            table.set("count", death.count);
            table.set("reason", death.reason.as_str());
            table.set("queue", death.queue.to_string());
            table.set("time", death.time);
            table.set("exchange", death.exchange.clone());
            table.set("routing-keys", vec![HeaderValue::from(death.routing_key.clone())]);
            if let Some(millis) = death.original_expiration {
                table.set("original-expiration", millis.to_string());
            }
            HeaderValue::Map(table)
        };
        headers.set("x-death", self.list.iter().map(table).collect::<Vec<_>>());
        let mut name = |which: [&'static str; 3], death: &Death, replace: bool| {
            let values = [
                death.queue.to_string().into(),
                HeaderValue::from(death.reason.as_str()),
                death.exchange.clone().into(),
            ];
            for (name, value) in which.into_iter().zip(values) {
                if replace || headers.get(name).is_none() {
                    headers.set(name, value);
                }
            }
        };
        if let (Some(first), Some(last)) = (self.list.last(), self.list.first()) {
            let names = ["x-first-death-queue", "x-first-death-reason", "x-first-death-exchange"];
            name(names, first, false);
            let names = ["x-last-death-queue", "x-last-death-reason", "x-last-death-exchange"];
            name(names, last, true);
        }
    }
}

/// The message as it goes to the dead-letter exchange, and its deaths with this one added.
///
/// Its time to live is taken off, so that it does not expire again where it goes.
pub(crate) fn dead_letter(
    entry: &Entry,
    queue: &Arc<str>,
    target: &DeadLetter,
    reason: Reason,
    text: Option<Cow<'static, str>>,
    time: DateTime<Utc>,
) -> (Envelope, Deaths) {
    let envelope = &entry.envelope;
    let mut deaths = entry.deaths.as_deref().cloned().unwrap_or_default();
    deaths.add(queue, reason, envelope, time);
    deaths.failures = entry.failures;

    let mut message = envelope.message.clone();
    message.ttl = None;
    deaths.write(&mut message.headers);
    if let Some(text) = text {
        message.headers.set("postrider-reason", text.into_owned());
    }

    let key = target
        .routing_key
        .clone()
        .unwrap_or_else(|| Cow::Owned(envelope.address.routing_key().to_owned()));
    (Envelope::new(Address::exchange(target.exchange.clone(), key), message), deaths)
}
