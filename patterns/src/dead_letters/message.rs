use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use postrider_core::{Address, Envelope, HeaderValue, Message};
use serde::{Deserialize, Serialize};

use super::{
    death::{DeadReason, Death, moment},
    fixture::Fixture,
};
use crate::{
    handler::{ErrorClass, codes},
    headers,
};

/// What brokers write beside the deaths of a message.
const OF_BROKERS: [&str; 9] = [
    "x-death",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-first-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-last-death-exchange",
    "x-delivery-count",
    "postrider-reason",
];

/// What Postrider writes when it gives a message up.
const OF_POSTRIDER: [&str; 12] = [
    headers::PARKED_KEY,
    headers::PARKED_NUMBER,
    headers::ERROR_CLASS,
    headers::ERROR_CODE,
    headers::ERROR_MESSAGE,
    headers::ATTEMPTS,
    headers::HOST,
    headers::ORIGIN_QUEUE,
    headers::ORIGIN_EXCHANGE,
    headers::ORIGIN_KEY,
    headers::FIRST_FAILED_AT,
    headers::DEAD_LETTERED_AT,
];

/// A message in a queue of dead letters, and what is known of how it came there. Cloning is cheap.
///
/// Whatever is not known is `None`: what the broker itself gave up has no class and no host, and a
/// plain client may have put anything there.
///
/// It serializes, whole, to a form that people can read, so that a dead letter becomes the fixture
/// of a test.
///
/// # Example: a dead letter in a test
///
/// ```
/// use postrider_patterns::{DeadMessage, ErrorClass};
///
/// // A file that was written by `serde_json::to_string_pretty(&dead)`.
/// let file = r#"{
///     "body": {"text": "{\"type\": \"send_email\", \"params\": {}}"},
///     "content_type": "application/json",
///     "headers": [
///         {"name": "tenant", "text": "north"},
///         {"name": "postrider-error-class", "text": "INVALID"}
///     ]
/// }"#;
/// let dead: DeadMessage = serde_json::from_str(file)?;
/// assert_eq!(dead.class(), Some(ErrorClass::Invalid));
/// let message = dead.original();
/// assert_eq!(message.headers.len(), 1);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(into = "Fixture", try_from = "Fixture")]
pub struct DeadMessage(Arc<Envelope>);

impl DeadMessage {
    /// The view of a message that was taken from a queue of dead letters.
    #[must_use]
    pub const fn new(envelope: Arc<Envelope>) -> Self {
        Self(envelope)
    }

    /// The message as it lies there: body, properties, its own headers, and the reason among them.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.0.message
    }

    /// The message as it was before it was given up, but for its time to live, which was taken off.
    /// It is durable now.
    #[must_use]
    pub fn original(&self) -> Message {
        let mut message = self.message().clone();
        for name in OF_POSTRIDER.iter().chain(&OF_BROKERS) {
            message.headers.remove(name);
        }
        if self.code() == Some(codes::TOO_MANY_HOPS) {
            // Else it would be here again after the next one.
            message.headers.remove(headers::HOPS);
        }
        message
    }

    /// Why it is here.
    #[must_use]
    pub fn reason(&self) -> DeadReason {
        if self.code().is_some() {
            return DeadReason::Failed;
        }
        self.deaths().first().map_or(DeadReason::Unknown, |death| death.reason)
    }

    /// The class of its last failure.
    #[must_use]
    pub fn class(&self) -> Option<ErrorClass> {
        self.text(headers::ERROR_CLASS)?.parse().ok()
    }

    /// The code of its last failure.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.text(headers::ERROR_CODE)
    }

    /// What failed the last time, with its causes, for people; what a consumer rejected it with,
    /// where the broker carries that.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.text(headers::ERROR_MESSAGE).or_else(|| self.text("postrider-reason"))
    }

    /// The machine on which it failed the last time.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.text(headers::HOST)
    }

    /// How often it was delivered.
    #[must_use]
    pub fn attempts(&self) -> Option<u32> {
        let attempts = self.message().headers.get(headers::ATTEMPTS)?.as_int()?;
        u32::try_from(attempts).ok()
    }

    /// The queue that it says it was given up in, which may be anybody's word.
    pub(super) fn noted_queue(&self) -> Option<&str> {
        self.text(headers::ORIGIN_QUEUE)
    }

    /// The queue it was given up in, as its headers say.
    #[must_use]
    pub fn origin_queue(&self) -> Option<String> {
        let noted = self.noted_queue().map(str::to_owned);
        noted.or_else(|| self.deaths().into_iter().next().map(|death| death.queue))
    }

    /// Where it was published to.
    #[must_use]
    pub fn origin_address(&self) -> Option<Address> {
        let noted = self.text(headers::ORIGIN_EXCHANGE).zip(self.text(headers::ORIGIN_KEY));
        let noted = noted.map(|(exchange, key)| (exchange.to_owned(), key.to_owned()));
        let (exchange, key) = noted.or_else(|| {
            self.deaths().into_iter().next().map(|death| (death.exchange, death.routing_key))
        })?;
        Some(if exchange.is_empty() {
            Address::queue(key)
        } else {
            Address::exchange(exchange, key)
        })
    }

    /// When it was published, as its publisher says (the property `timestamp`, whole seconds over
    /// AMQP 0.9.1).
    #[must_use]
    pub fn published_at(&self) -> Option<DateTime<Utc>> {
        self.message().timestamp
    }

    /// When it failed for the first time, as far as that is
    /// [noted](postrider_core::DeliveryInfo::first_failed), if a handler gave it up.
    #[must_use]
    pub fn first_failed_at(&self) -> Option<DateTime<Utc>> {
        self.message().headers.get(headers::FIRST_FAILED_AT).and_then(moment)
    }

    /// When it was given up, after its last failure.
    #[must_use]
    pub fn dead_lettered_at(&self) -> Option<DateTime<Utc>> {
        let noted = self.message().headers.get(headers::DEAD_LETTERED_AT).and_then(moment);
        noted.or_else(|| self.deaths().first().and_then(|death| death.time))
    }

    /// What brokers noted of it, the latest first.
    #[must_use]
    pub fn deaths(&self) -> Vec<Death> {
        let list = self.message().headers.get("x-death").and_then(HeaderValue::as_list);
        let tables = list.unwrap_or_default().iter().filter_map(HeaderValue::as_map);
        tables.filter_map(Death::read).collect()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.message().headers.get(name).and_then(HeaderValue::as_text)
    }
}

impl fmt::Display for DeadMessage {
    /// One line: what it is, why it is here, after how many attempts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message();
        let id = message.message_id.as_deref().unwrap_or("without an id");
        write!(f, "{} {id}: ", message.message_type.as_deref().unwrap_or("message"))?;
        match (self.code(), self.error()) {
            (Some(code), error) => write!(f, "{code}: {}", error.unwrap_or_default())?,
            (None, Some(error)) => write!(f, "{}: {error}", self.reason())?,
            (None, None) => write!(f, "{}", self.reason())?,
        }
        match self.attempts() {
            Some(1) => f.write_str(", at the first attempt"),
            Some(attempts) => write!(f, ", after {attempts} attempts"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::{Env, Headers};

    use super::*;

    fn dead(message: Message) -> DeadMessage {
        let address = Address::exchange("dead_letter_exchange", "dead_letter_orders");
        DeadMessage::new(Arc::new(Envelope::new(address, message)))
    }

    fn expired() -> Message {
        let death: Headers = [
            ("count", HeaderValue::Int(2)),
            ("reason", "expired".into()),
            ("queue", "orders".into()),
            ("time", Env::system().timestamp().into()),
            ("exchange", "event_bus".into()),
            ("routing-keys", vec![HeaderValue::from("order.created")].into()),
        ]
        .into_iter()
        .collect();
        Message::new("{}")
            .with_header("tenant", "north")
            .with_header("x-death", vec![HeaderValue::Map(death)])
            .with_header("x-first-death-queue", "orders")
    }

    #[test]
    fn what_the_broker_gave_up_is_read_like_the_rest() {
        let dead = dead(expired());
        assert_eq!(dead.reason(), DeadReason::Expired);
        assert_eq!(dead.origin_queue().as_deref(), Some("orders"));
        let address = Address::exchange("event_bus", "order.created");
        assert_eq!(dead.origin_address(), Some(address));
        assert_eq!(dead.deaths()[0].count, 2);
        assert!(dead.dead_lettered_at().is_some());
        assert_eq!((dead.class(), dead.code(), dead.attempts()), (None, None, None));
        assert_eq!(dead.to_string(), "message without an id: expired");
        assert_eq!(dead.original(), Message::new("{}").with_header("tenant", "north"));
    }

    #[test]
    fn what_a_handler_gave_up_says_so_whatever_the_broker_noted_before() {
        let message = expired()
            .with_type("order.created")
            .with_message_id("7")
            .with_header(headers::ERROR_CLASS, "TRANSIENT")
            .with_header(headers::ERROR_CODE, "LOCKED")
            .with_header(headers::ERROR_MESSAGE, "the ledger is locked")
            .with_header(headers::ATTEMPTS, 9)
            .with_header(headers::ORIGIN_QUEUE, "billing.orders");
        let dead = dead(message);
        assert_eq!(dead.reason(), DeadReason::Failed);
        assert_eq!(dead.class(), Some(ErrorClass::Transient));
        assert_eq!(dead.origin_queue().as_deref(), Some("billing.orders"));
        let line = "order.created 7: LOCKED: the ledger is locked, after 9 attempts";
        assert_eq!(dead.to_string(), line);
        assert_eq!(dead.original().headers.len(), 1);
    }

    #[test]
    fn headers_that_make_no_sense_are_not_known() {
        let message = Message::new("")
            .with_header("x-death", vec![HeaderValue::Int(1), HeaderValue::Map(Headers::new())])
            .with_header(headers::ERROR_CLASS, "HOT")
            .with_header(headers::ATTEMPTS, -1)
            .with_header(headers::DEAD_LETTERED_AT, "yesterday");
        let dead = dead(message);
        assert_eq!(dead.reason(), DeadReason::Unknown);
        assert_eq!((dead.class(), dead.attempts()), (None, None));
        assert_eq!((dead.dead_lettered_at(), dead.origin_queue()), (None, None));
    }
}
