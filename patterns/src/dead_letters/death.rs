use std::fmt;

use chrono::{DateTime, Utc};
use postrider_core::{HeaderValue, Headers};

/// Why a message is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadReason {
    /// Its handler failed, and its retry policy gave it up.
    Failed,
    /// It was rejected by a consumer that is none of Postrider's patterns.
    Rejected,
    /// It waited longer than its time to live.
    Expired,
    /// Its queue was full.
    MaxLength,
    /// Its deliveries failed as often as its queue allows, for example because it killed its
    /// process.
    DeliveryLimit,
    /// It does not say.
    Unknown,
}

impl DeadReason {
    /// Its text: `failed`, or the word that brokers have for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
            Self::Unknown => "unknown",
        }
    }

    fn of_broker(word: &str) -> Self {
        let known = [Self::Rejected, Self::Expired, Self::MaxLength, Self::DeliveryLimit];
        known.into_iter().find(|reason| reason.as_str() == word).unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a broker noted when it gave a message up; one for each pair of queue and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Death {
    /// The queue that the message was in.
    pub queue: String,
    /// Why it left.
    pub reason: DeadReason,
    /// How often it left that queue for that reason.
    pub count: u32,
    /// The exchange that it had been published to; empty for a queue.
    pub exchange: String,
    /// The routing key that it had been published with.
    pub routing_key: String,
    /// When: over AMQP 0.9.1 to the second; the last time or, over AMQP 1.0, the first.
    pub time: Option<DateTime<Utc>>,
}

impl Death {
    pub(super) fn read(table: &Headers) -> Option<Self> {
        let text = |name| table.get(name).and_then(HeaderValue::as_text);
        let key = table.get("routing-keys").and_then(HeaderValue::as_list);
        let key = key.and_then(|keys| keys.first()).and_then(HeaderValue::as_text);
        let count = table.get("count").and_then(HeaderValue::as_int);
        Some(Self {
            queue: text("queue")?.to_owned(),
            reason: DeadReason::of_broker(text("reason")?),
            count: count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1),
            exchange: text("exchange").unwrap_or_default().to_owned(),
            routing_key: key.unwrap_or_default().to_owned(),
            time: table.get("time").and_then(moment),
        })
    }
}

/// Text of a header of Postrider, or a timestamp of a broker.
pub(super) fn moment(value: &HeaderValue) -> Option<DateTime<Utc>> {
    match value {
        HeaderValue::Timestamp(time) => Some(*time),
        HeaderValue::Text(text) => Some(DateTime::parse_from_rfc3339(text).ok()?.to_utc()),
        _ => None,
    }
}
