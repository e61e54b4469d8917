//! Delays: a rung is a queue whose time to live is the delay and whose dead letters go to the
//! address. A rung serves one delay and one address, so that no message waits behind another, and
//! exchange and routing key are restored by the broker itself.
//!
//! Delays are rounded up to at most 1/32 more, so that few rungs serve many delays. A
//! rung that is not used any more goes by itself, long after the last message that it may hold.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use lapin::types::{AMQPValue, LongString};
use postrider_core::{
    Address, DeadLetter, Envelope, Error, ErrorKind, HeaderValue, Headers, Overflow,
    PublisherOptions, Queue, Result, Verdict,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    admin::Admin, arguments, delivered::Delivered, link::Link, properties, publisher::Sender,
};

/// What the names of all rungs begin with.
const PREFIX: &str = "postrider.delay.";

/// How long a rung outlives the last message that it may hold.
const GRACE: Duration = Duration::from_secs(600);

/// For how long a rung that was declared is used without declaring it again.
const FRESH: Duration = Duration::from_secs(30);

/// How long after its rung was looked at a message may be sent.
const LATEST_SEND: Duration = Duration::from_secs(500);

/// How many rungs are remembered.
const REMEMBERED: usize = 1_024;

/// How long a queue may be unused before it goes, at most: 32 bits of milliseconds.
const LONGEST_EXPIRY: Duration = Duration::from_millis(u32::MAX as u64);

/// The header with the deliveries before a delayed retry.
const ATTEMPTS_HEADER: &str = "postrider-attempt";

/// The header with the failures before a delayed retry.
const FAILURES_HEADER: &str = "postrider-failures";

/// What a message went through before a delayed retry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) attempts: u32,
    pub(crate) failures: u32,
}

/// The rungs of a connection.
#[derive(Debug, Default)]
pub(crate) struct Ladder {
    /// When each was declared.
    fresh: Mutex<HashMap<String, Instant>>,
    /// Sends what is retried.
    sender: OnceLock<Sender>,
}

impl Ladder {
    /// Makes ready what a message with a delay needs, and addresses it to its rung.
    pub(crate) async fn on_rung(
        &self,
        link: &Link,
        envelope: Envelope,
        deadline: Instant,
    ) -> Result<Envelope> {
        if envelope.message.ttl.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "publish",
                "over AMQP 0.9.1 a message cannot have both a delay and a time to live; \
                 give the queue a time to live instead",
            )
            .with_context("address", envelope.address.to_string()));
        }
        let rung = self.rung(link, &envelope.address, envelope.delay, deadline).await?;
        Ok(Envelope::new(Address::queue(rung), envelope.message))
    }

    /// The name of a rung that is there.
    async fn rung(
        &self,
        link: &Link,
        address: &Address,
        delay: Duration,
        deadline: Instant,
    ) -> Result<String> {
        let now = link.env().now();
        let ttl = rounded(delay);
        if ttl + GRACE > LONGEST_EXPIRY || deadline > now + LATEST_SEND {
            return Err(Error::new(
                ErrorKind::Invalid,
                "publish",
                "a delay may be up to 49 days over AMQP 0.9.1, and the publisher's timeout with it \
                 up to 8 minutes",
            )
            .with_context("address", address.to_string()));
        }
        let queue = rung(address, ttl);
        let name = queue.name.to_string();
        {
            let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            if fresh.get(&name).is_some_and(|declared| now < *declared + FRESH) {
                return Ok(name);
            }
        }
        let session = link.session_to_publish(deadline).await?;
        let mut table = arguments::queue_arguments(&queue, session.version());
        // A message leaves its rung only when the address has it.
        let strategy = LongString::from("at-least-once".as_bytes());
        table.insert("x-dead-letter-strategy".into(), AMQPValue::LongString(strategy));
        Admin::new(&session, "publish", deadline).declare_queue_with(&queue, table).await?;
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh.len() >= REMEMBERED {
            fresh.retain(|_, declared| now < *declared + FRESH);
        }
        if fresh.len() < REMEMBERED {
            fresh.insert(name.clone(), now);
        }
        Ok(name)
    }

    fn sender(&self, link: &Arc<Link>) -> Result<&Sender> {
        if self.sender.get().is_none() {
            let made = Sender::new(link, PublisherOptions::default())?;
            // Another may have been quicker; then this one ends.
            let _second = self.sender.set(made);
        }
        self.sender.get().ok_or_else(|| crate::error::closed("settle"))
    }
}

/// The next step of a grid that grows with the delay.
fn rounded(delay: Duration) -> Duration {
    // What is less than a millisecond is one, so that it is never early.
    let millis = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
    let step = (millis / 64).max(1).next_power_of_two();
    Duration::from_millis(millis.div_ceil(step).saturating_mul(step))
}

fn rung(address: &Address, ttl: Duration) -> Queue {
    let (exchange, key) = (address.exchange_name(), address.routing_key());
    // Names have no NUL, so that no two addresses look alike.
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{exchange}\0{key}").as_bytes());
    Queue::durable(format!("{PREFIX}{}.{}", ttl.as_millis(), id.simple()))
        .without_delivery_limit()
        .with_message_ttl(ttl)
        .with_expires(ttl + GRACE)
        .with_overflow(Overflow::RejectPublish)
        .with_dead_letter(DeadLetter::to(exchange.to_owned()).with_routing_key(key.to_owned()))
}

/// Publishes the copy of a failed message that comes after `after`, or its dead letter when it
/// failed too often. The original is still unsettled: it is lost in no case, and doubled when its
/// ack is lost.
pub(crate) async fn retry(
    link: &Arc<Link>,
    queue: &str,
    delivered: &Delivered,
    after: Duration,
) -> Result<()> {
    let sender = link.ladder().sender(link)?;
    let deadline = link.operation_deadline();
    let counts = Counts {
        attempts: delivered.info.attempt,
        failures: delivered.info.failures.saturating_add(1),
    };
    let spec = link.record().queue(queue).cloned();
    let mut message = delivered.envelope.message.clone();
    let dead = spec.filter(|spec| spec.delivery_limit.is_some_and(|limit| counts.failures > limit));
    let envelope = match dead {
        Some(spec) => {
            let Some(letter) = &spec.dead_letter else { return Ok(()) };
            let address = &delivered.envelope.address;
            add_death(&mut message.headers, queue, address, link.env().timestamp());
            message.ttl = None;
            let key = letter.routing_key.as_deref().unwrap_or(address.routing_key());
            Envelope::new(Address::exchange(letter.exchange.clone(), key.to_owned()), message)
        }
        None => {
            message.headers.set(ATTEMPTS_HEADER, counts.attempts);
            message.headers.set(FAILURES_HEADER, counts.failures);
            // It would end the wait early, and be over when the message comes again.
            message.ttl = None;
            let envelope = Envelope::new(Address::queue(queue.to_owned()), message).after(after);
            link.ladder().on_rung(link, envelope, deadline).await?
        }
    };
    match sender.send(link, envelope).await?.await {
        Verdict::Accepted => Ok(()),
        // As the broker does with a dead letter that nobody gets.
        Verdict::Unroutable if counts.failures > 0 && is_dead(link, queue, counts) => Ok(()),
        verdict => verdict.into_result(),
    }
}

fn is_dead(link: &Link, queue: &str, counts: Counts) -> bool {
    let record = link.record();
    let limit = record.queue(queue).and_then(|spec| spec.delivery_limit);
    limit.is_some_and(|limit| counts.failures > limit)
}

/// Takes the counts of earlier deliveries off a message.
pub(crate) fn take_counts(headers: &mut Headers) -> Counts {
    Counts {
        attempts: properties::take_count(headers, ATTEMPTS_HEADER).unwrap_or(0),
        failures: properties::take_count(headers, FAILURES_HEADER).unwrap_or(0),
    }
}

/// One entry of `x-death`, as RabbitMQ writes it.
fn add_death(headers: &mut Headers, queue: &str, address: &Address, time: DateTime<Utc>) {
    let text = |text: &str| HeaderValue::Text(text.to_owned().into());
    let death: Headers = [
        ("count", HeaderValue::Int(1)),
        ("reason", text("delivery_limit")),
        ("queue", text(queue)),
        ("time", HeaderValue::Timestamp(time)),
        ("exchange", text(address.exchange_name())),
        ("routing-keys", HeaderValue::List(vec![text(address.routing_key())])),
    ]
    .into_iter()
    .collect();
    let mut deaths = match headers.remove("x-death") {
        Some(HeaderValue::List(deaths)) => deaths,
        _ => Vec::new(),
    };
    deaths.insert(0, HeaderValue::Map(death));
    write_deaths(headers, deaths);
}

/// The end of a wait on a rung is a death to the broker, and none to anybody else.
pub(crate) fn hide_deaths(headers: &mut Headers) {
    let on_rung = |death: &HeaderValue| {
        let queue = death.as_map().and_then(|death| death.get("queue"));
        queue.and_then(HeaderValue::as_text).is_some_and(|queue| queue.starts_with(PREFIX))
    };
    let Some(deaths) = headers.get("x-death").and_then(HeaderValue::as_list) else { return };
    if !deaths.iter().any(on_rung) {
        return;
    }
    let left = deaths.iter().filter(|death| !on_rung(death)).cloned().collect();
    write_deaths(headers, left);
}

/// Writes the deaths of a message, the latest first, and what repeats the first and last of them.
fn write_deaths(headers: &mut Headers, deaths: Vec<HeaderValue>) {
    const FIELDS: [&str; 3] = ["queue", "reason", "exchange"];
    for (which, death) in [("first", deaths.last()), ("last", deaths.first())] {
        for field in FIELDS {
            let name = format!("x-{which}-death-{field}");
            match death.and_then(HeaderValue::as_map).and_then(|death| death.get(field)) {
                Some(value) => headers.set(name, value.clone()),
                None => drop(headers.remove(&name)),
            }
        }
    }
    if deaths.is_empty() {
        headers.remove("x-death");
    } else {
        headers.set("x-death", deaths);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_never_shorter_and_a_little_longer() {
        let mut rungs = std::collections::HashSet::new();
        for micros in (1..200_000_000).step_by(997) {
            let delay = Duration::from_micros(micros);
            let rung = rounded(delay);
            assert!(rung >= delay, "{delay:?} {rung:?}");
            let late = rung - delay;
            assert!(late <= Duration::from_millis(1) + delay / 32, "{delay:?} {rung:?}");
            rungs.insert(rung);
        }
        assert!(rungs.len() < 1_500, "{} rungs", rungs.len());
    }

    #[test]
    fn each_address_and_delay_has_a_rung_of_its_own() {
        let second = Duration::from_secs(1);
        let queue = rung(&Address::queue("q"), second);
        assert_eq!(queue.name, rung(&Address::exchange("", "q"), second).name);
        assert_ne!(queue.name, rung(&Address::exchange("q", ""), second).name);
        assert_ne!(queue.name, rung(&Address::queue("q"), second * 2).name);
        queue.check().unwrap();
    }

    #[test]
    fn waiting_on_a_rung_is_no_death() {
        let address = Address::exchange("events", "order.new");
        let mut headers = Headers::new();
        add_death(&mut headers, "postrider.delay.1000.x", &address, DateTime::UNIX_EPOCH);
        let mut both = headers.clone();
        hide_deaths(&mut headers);
        assert!(headers.is_empty(), "{headers:?}");

        add_death(&mut both, "orders", &address, DateTime::UNIX_EPOCH);
        hide_deaths(&mut both);
        let first = both.get("x-first-death-queue").and_then(HeaderValue::as_text);
        assert_eq!(first, Some("orders"));
        let deaths = both.get("x-death").and_then(HeaderValue::as_list).map(<[_]>::len);
        assert_eq!(deaths, Some(1));
    }
}
