//! Delays for brokers that cannot delay a message: a rung is a queue whose time to live is the delay
//! address. A rung serves one delay and one address, so that no message waits behind another, and
//! exchange and routing key are restored by the broker itself.
//!
//! Delays are rounded up to at most 1/32 more, so that few rungs serve many delays. A
//! rung that is not used any more goes by itself, long after the last message that it may hold.

use std::{borrow::Cow, time::Duration};

use chrono::{DateTime, Utc};
use postrider_core::{
    Address, DeadLetter, DeliveryInfo, Envelope, HeaderValue, Headers, Overflow, Queue,
};
use uuid::Uuid;

use crate::Argument;

/// What the names of all rungs begin with.
const PREFIX: &str = "postrider.delay.";

/// How long a rung outlives the last message that it may hold.
const GRACE: Duration = Duration::from_secs(600);

/// How long a queue may be unused before it goes, at most: 32 bits of milliseconds.
const LONGEST_EXPIRY: Duration = Duration::from_millis(u32::MAX as u64);

/// The header with the deliveries before a delayed retry.
const ATTEMPTS_HEADER: &str = "postrider-attempt";

/// The header with the failures before a delayed retry.
const FAILURES_HEADER: &str = "postrider-failures";

/// The annotation with the time, in milliseconds of the epoch, when a quorum queue delivers a
/// message again: "Delayed Retry" of RabbitMQ 4.3's documentation on quorum queues. The message keeps
/// it ever after, over either protocol, so that whoever reads one takes it off.
pub const DELIVERY_TIME: &str = "x-opt-delivery-time";

/// The annotation, or over AMQP 0.9.1 the header, with the time of the first failure in milliseconds
/// of the epoch. A message keeps it, so that whoever reads one takes it off.
pub const FIRST_FAILED: &str = "x-opt-postrider-first-failed";

/// The longest delay of a retry; longer ones are cut to it.
pub const LONGEST: Duration = Duration::from_secs(47 * 24 * 60 * 60);

/// What a message went through before a delayed retry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Deliveries.
    pub attempts: u32,
    /// Those that failed.
    pub failures: u32,
}

/// The next step of a grid that grows with the delay.
fn rounded(delay: Duration) -> Duration {
    // What is less than a millisecond is one, so that it is never early.
    let millis = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
    let step = (millis / 64).max(1).next_power_of_two();
    Duration::from_millis(millis.div_ceil(step).saturating_mul(step))
}

/// The rung for messages to `address` that wait for `delay`; `None` when that is too long, more than
/// about 49 days. Its time to live is the delay rounded up.
#[must_use]
pub fn rung(address: &Address, delay: Duration) -> Option<Queue> {
    let ttl = rounded(delay);
    (ttl + GRACE <= LONGEST_EXPIRY).then(|| rung_of(address, ttl))
}

/// The strategy by which a message leaves its rung only when the address has it, as an argument
/// beside those of the queue.
pub const STRATEGY: (&str, Argument) =
    ("x-dead-letter-strategy", Argument::Text(Cow::Borrowed("at-least-once")));

fn rung_of(address: &Address, ttl: Duration) -> Queue {
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

/// What becomes of a failed message that a retry copies: it comes again later, or died of its
/// failures.
#[derive(Debug)]
pub enum Retried {
    /// Published to its queue with a delay, it comes again.
    Again(Envelope),
    /// It failed too often, and this is its dead letter.
    Dead(Envelope),
    /// It failed too often, and nobody wants its dead letter.
    Gone,
}

/// The copy of a failed delivery that comes again after `after`. `spec` is its queue, where that is
/// known, and says how often a message may fail.
#[must_use]
pub fn retried(
    spec: Option<&Queue>,
    envelope: &Envelope,
    info: &DeliveryInfo,
    after: Duration,
    now: DateTime<Utc>,
) -> Retried {
    let failures = info.failures.saturating_add(1);
    let mut message = envelope.message.clone();
    // It would end the wait early, and be over when the message comes again.
    message.ttl = None;
    // Who had a copy of the first has one.
    for name in ["CC", "BCC"] {
        message.headers.remove(name);
    }
    let dead = spec.filter(|spec| spec.delivery_limit.is_some_and(|limit| failures > limit));
    let Some(spec) = dead else {
        message.headers.set(ATTEMPTS_HEADER, info.attempt);
        message.headers.set(FAILURES_HEADER, failures);
        let first_failed = info.first_failed.unwrap_or(now);
        message.headers.set(FIRST_FAILED, first_failed.timestamp_millis());
        let again = Envelope::new(Address::queue(info.queue.to_string()), message);
        let again = again.after(after.min(LONGEST));
        return Retried::Again(again);
    };
    let Some(letter) = &spec.dead_letter else { return Retried::Gone };
    add_death(&mut message.headers, &info.queue, &envelope.address, now);
    let key = letter.routing_key.as_deref().unwrap_or(envelope.address.routing_key());
    let address = Address::exchange(letter.exchange.clone(), key.to_owned());
    Retried::Dead(Envelope::new(address, message))
}

/// Takes a number away that the broker or a transport put among the headers.
pub fn take_count(headers: &mut Headers, name: &str) -> Option<u32> {
    let number = headers.get(name)?.as_int()?;
    headers.remove(name);
    Some(u32::try_from(number).unwrap_or(if number < 0 { 0 } else { u32::MAX }))
}

/// Takes the time of the first failure off a message. Of one that comes for the first time it is not
/// this framework's word.
pub fn take_first_failed(headers: &mut Headers, redelivered: bool) -> Option<DateTime<Utc>> {
    let millis = headers.remove(FIRST_FAILED)?.as_int()?;
    DateTime::from_timestamp_millis(millis).filter(|_| redelivered)
}

/// Takes the counts of earlier deliveries off a message that has waited on a rung. Of any other they
/// are not this framework's word.
pub fn take_counts(headers: &mut Headers) -> Counts {
    if !has_waited(headers) {
        return Counts::default();
    }
    Counts {
        attempts: take_count(headers, ATTEMPTS_HEADER).unwrap_or(0),
        failures: take_count(headers, FAILURES_HEADER).unwrap_or(0),
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
pub fn hide_deaths(headers: &mut Headers) {
    let deaths = deaths(headers);
    if deaths.iter().any(is_on_rung) {
        let left = deaths.iter().filter(|death| !is_on_rung(death)).cloned().collect();
        write_deaths(headers, left);
    }
}

/// Whether a message has waited on a rung since it was published.
#[must_use]
pub fn has_waited(headers: &Headers) -> bool {
    deaths(headers).iter().any(is_on_rung)
}

fn deaths(headers: &Headers) -> &[HeaderValue] {
    headers.get("x-death").and_then(HeaderValue::as_list).unwrap_or_default()
}

fn is_on_rung(death: &HeaderValue) -> bool {
    let queue = death.as_map().and_then(|death| death.get("queue"));
    queue.and_then(HeaderValue::as_text).is_some_and(|queue| queue.starts_with(PREFIX))
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
        let queue = rung_of(&Address::queue("q"), second);
        assert_eq!(queue.name, rung_of(&Address::exchange("", "q"), second).name);
        assert_ne!(queue.name, rung_of(&Address::exchange("q", ""), second).name);
        assert_ne!(queue.name, rung_of(&Address::queue("q"), second * 2).name);
        queue.check().unwrap();
    }

    #[test]
    fn counts_are_taken_only_of_what_has_waited() {
        let address = Address::queue("orders");
        let mut headers: Headers =
            [(FAILURES_HEADER, HeaderValue::Int(1_000))].into_iter().collect();
        assert_eq!(take_counts(&mut headers), Counts::default());
        add_death(&mut headers, "postrider.delay.1000.x", &address, DateTime::UNIX_EPOCH);
        assert_eq!(take_counts(&mut headers), Counts { attempts: 0, failures: 1_000 });
    }

    #[test]
    fn a_first_failure_is_that_of_what_comes_again() {
        let noted: Headers = [(FIRST_FAILED, HeaderValue::Int(1_000))].into_iter().collect();
        for (redelivered, time) in [(false, None), (true, DateTime::from_timestamp(1, 0))] {
            let mut headers = noted.clone();
            assert_eq!(take_first_failed(&mut headers, redelivered), time);
            assert!(headers.is_empty());
        }
    }

    #[test]
    fn a_copy_goes_to_its_queue_alone_and_waits_as_long_as_a_rung_can() {
        let message = postrider_core::Message::new("x").with_header("CC", "audit");
        let envelope = Envelope::new(Address::queue("orders"), message);
        let info = DeliveryInfo::first("orders".into());
        let copy = retried(None, &envelope, &info, Duration::MAX, DateTime::UNIX_EPOCH);
        let Retried::Again(copy) = copy else { panic!("{copy:?}") };
        assert_eq!(copy.message.headers.get("CC"), None);
        assert!(rung(&copy.address, copy.delay).is_some(), "{:?}", copy.delay);
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
