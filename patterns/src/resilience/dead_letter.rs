use std::{borrow::Cow, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use postrider_core::{
    Address, Binding, DeadLetter, DeliveryInfo, Envelope, ErrorKind, Exchange, Publisher,
    PublisherExt, Queue, Result, Topology, Transport,
};
use tokio::time::sleep;

use crate::{handler::HandlerError, headers, naming::Naming, wire_time};

/// The longest text for people in a small body, in bytes.
const MAX_MESSAGE_BYTES: usize = 2_000;

/// The longest code, and the longest chain of messages, in the headers of a dead letter, in bytes.
const MAX_CODE: usize = 128;
const MAX_CHAIN: usize = 4_096;

/// How long a message that could not be kept is held before the next try, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The exchange, the queue and the binding that keep the dead letters of `queue`.
///
/// The dead-letter queue has no delivery limit, because looking at its messages must not use them
/// up.
#[must_use]
pub fn dead_letter_topology(naming: &Naming, queue: &str) -> Topology {
    let (exchange, parked) = (naming.dead_letter_exchange(), naming.dead_letter_queue(queue));
    Topology::new()
        .exchange(Exchange::direct(exchange.clone()))
        .queue(Queue::durable(parked.clone()).without_delivery_limit())
        .bind(Binding::queue(exchange, parked.clone(), parked))
}

/// Where the broker itself sends the dead letters of `queue`: to the same place.
#[must_use]
pub fn dead_letter_route(naming: &Naming, queue: &str) -> DeadLetter {
    DeadLetter::to(naming.dead_letter_exchange()).with_routing_key(naming.dead_letter_queue(queue))
}

/// What a dead letter can do without.
const DETAILS: [&str; 4] =
    [headers::ERROR_MESSAGE, headers::HOST, headers::ORIGIN_EXCHANGE, headers::ORIGIN_KEY];

/// Keeps the dead letters of one queue.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    transport: Arc<dyn Transport>,
    publisher: Arc<dyn Publisher>,
    topology: Topology,
    exchange: String,
    key: String,
}

impl Keeper {
    pub(crate) fn new(
        transport: &Arc<dyn Transport>,
        publisher: Arc<dyn Publisher>,
        naming: &Naming,
        queue: &str,
    ) -> Self {
        Self {
            transport: Arc::clone(transport),
            publisher,
            topology: dead_letter_topology(naming, queue),
            exchange: naming.dead_letter_exchange(),
            key: naming.dead_letter_queue(queue),
        }
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.transport.env().timestamp()
    }

    /// Publishes a copy with the reason beside it and waits until the broker has it. The original
    /// is settled only after that.
    ///
    /// It tries until it succeeds, and declares the queue of dead letters again where somebody
    /// deleted it. Dropped, it may have published.
    ///
    /// # Errors
    ///
    /// Those that waiting does not help against: the transport was closed, or it does not take the
    /// copy, not even with the shortest reason.
    pub(crate) async fn keep(
        &self,
        envelope: &Envelope,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) -> Result<()> {
        self.keep_parked(envelope, info, error, None).await
    }

    /// As [`keep`](Self::keep), with the key that the copy parks and its number among those of the
    /// key.
    pub(crate) async fn keep_parked(
        &self,
        envelope: &Envelope,
        info: &DeliveryInfo,
        error: &HandlerError,
        parked: Option<(&str, i64)>,
    ) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        let mut is_short = false;
        loop {
            let mut letter = self.letter(envelope, info, error);
            if let Some((key, number)) = parked {
                letter.message.headers.set(headers::PARKED_KEY, key.to_owned());
                letter.message.headers.set(headers::PARKED_NUMBER, number);
                // A death in the partition would say that the broker gave it up.
                letter.message.headers.remove("x-death");
            }
            if is_short {
                for name in DETAILS {
                    letter.message.headers.remove(name);
                }
            }
            let Err(failed) = self.publisher.publish(letter).await else { return Ok(()) };
            tracing::error!(
                queue = %info.queue, %error, %failed, "message could not be dead-lettered"
            );
            let is_missing = matches!(failed.kind(), ErrorKind::Unroutable | ErrorKind::Rejected);
            if !is_missing && !failed.is_retryable() {
                if is_short || failed.kind() == ErrorKind::Closed {
                    return Err(failed);
                }
                // With the reason it may be larger than the broker takes.
                is_short = true;
                continue;
            }
            if is_missing && let Err(failed) = self.transport.declare(&self.topology).await {
                tracing::error!(queue = %info.queue, %failed, "no queue for its dead letters");
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn letter(&self, envelope: &Envelope, info: &DeliveryInfo, error: &HandlerError) -> Envelope {
        let address = Address::exchange(self.exchange.clone(), self.key.clone());
        let mut message = envelope.message.clone();
        // A dead letter waits for a person.
        message.ttl = None;
        message.durable = true;
        let env = self.transport.env();
        let note = &mut message.headers;
        // It may have been kept before, or say so.
        note.remove(headers::PARKED_KEY);
        note.remove(headers::PARKED_NUMBER);
        note.set(headers::ERROR_CLASS, error.class().as_str());
        note.set(headers::ERROR_CODE, cut(error.code(), MAX_CODE).into_owned());
        note.set(headers::ERROR_MESSAGE, cut(error.message(), MAX_CHAIN).into_owned());
        note.set(headers::ATTEMPTS, i64::from(info.attempt));
        note.set(headers::HOST, env.host());
        note.set(headers::ORIGIN_QUEUE, info.queue.to_string());
        note.set(headers::ORIGIN_EXCHANGE, envelope.address.exchange_name().to_owned());
        note.set(headers::ORIGIN_KEY, envelope.address.routing_key().to_owned());
        let now = self.now();
        // Without earlier failures this is the first; else who failed first may not have said when.
        let is_first = info.failures == 0 && !info.redelivered;
        match info.first_failed.or(is_first.then_some(now)) {
            Some(time) => note.set(headers::FIRST_FAILED_AT, wire_time::text(time)),
            None => drop(note.remove(headers::FIRST_FAILED_AT)),
        }
        note.set(headers::DEAD_LETTERED_AT, wire_time::text(now));
        Envelope::new(address, message)
    }
}

/// A text for people, cut between characters to what a small body takes.
pub(crate) fn shorten(text: &str) -> &str {
    first(text, MAX_MESSAGE_BYTES)
}

/// A text of at most `most` bytes, which shows where it was cut.
fn cut(text: &str, most: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}{MARK}", first(text, most.saturating_sub(MARK.len()))))
}

/// As many whole characters as have at most `most` bytes.
fn first(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use postrider_core::{Confirm, HeaderValue, Message, PublisherOptions};
    use postrider_transport_inmemory::InMemory;

    use super::*;

    /// Takes no header of more than so many bytes.
    #[derive(Debug)]
    struct Narrow(Arc<dyn Publisher>, usize);

    #[async_trait]
    impl Publisher for Narrow {
        async fn send(&self, envelope: Envelope) -> Result<Confirm> {
            let texts = envelope.message.headers.iter().filter_map(|(_, value)| value.as_text());
            if texts.map(str::len).max().unwrap_or_default() > self.1 {
                return Err(postrider_core::Error::new(ErrorKind::Invalid, "publish", "too large"));
            }
            self.0.send(envelope).await
        }

        async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
            self.0.send_batch(envelopes).await
        }

        async fn flush(&self) -> Result<()> {
            self.0.flush().await
        }
    }

    /// Keeps a message with an endless reason by way of a publisher, and gives the dead letter.
    async fn kept(widest: usize) -> Result<Message> {
        let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
        let naming = Naming::default();
        transport.declare(&dead_letter_topology(&naming, "orders")).await?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let keeper =
            Keeper::new(&transport, Arc::new(Narrow(publisher, widest)), &naming, "orders");
        let endless = "ä".repeat(1_000_000);
        let error = HandlerError::invalid(endless.clone()).with_code(endless);
        // From outside, and not to be believed.
        let message = Message::new("x").with_header(headers::ORIGIN_QUEUE, "elsewhere");
        let envelope = Envelope::new(Address::queue("orders"), message);
        keeper.keep(&envelope, &DeliveryInfo::first("orders".into()), &error).await?;
        let options = postrider_core::ConsumerOptions::default();
        let mut letters = transport.consumer("dead_letter_orders", options).await?;
        let letter = letters.recv().await.expect("a dead letter")?;
        let message = letter.message().clone();
        letter.ack();
        Ok(message)
    }

    fn text<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
        message.headers.get(name).and_then(HeaderValue::as_text)
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_reason_is_cut_and_kept() {
        let letter = kept(MAX_CHAIN).await.unwrap();
        let code = text(&letter, headers::ERROR_CODE).unwrap();
        let chain = text(&letter, headers::ERROR_MESSAGE).unwrap();
        assert!(code.len() <= MAX_CODE && chain.len() <= MAX_CHAIN);
        assert!(code.ends_with("ä…") && chain.ends_with("ä…"));
        assert_eq!(text(&letter, headers::ORIGIN_QUEUE), Some("orders"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_letter_that_is_refused_is_kept_without_details_or_given_back() {
        let letter = kept(MAX_CODE).await.unwrap();
        assert_eq!(text(&letter, headers::ERROR_MESSAGE), None);
        assert_eq!(text(&letter, headers::ORIGIN_QUEUE), Some("orders"));
        assert!(text(&letter, headers::ERROR_CODE).is_some());
        assert_eq!(kept(1).await.unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(shorten("short"), "short");
        let long = "ä".repeat(MAX_MESSAGE_BYTES);
        assert_eq!(shorten(&format!("x{long}")).len(), MAX_MESSAGE_BYTES - 1);
    }

    #[test]
    fn both_ways_into_the_dead_letter_queue_meet() {
        let naming = Naming::default();
        let topology = dead_letter_topology(&naming, "billing.orders");
        let route = dead_letter_route(&naming, "billing.orders");
        assert_eq!(topology.exchanges[0].name, route.exchange);
        assert_eq!(Some(&topology.bindings[0].key), route.routing_key.as_ref());
        assert_eq!(topology.queues[0].name, "dead_letter_billing.orders");
    }
}
