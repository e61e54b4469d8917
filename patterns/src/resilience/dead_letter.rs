use std::{sync::Arc, time::Duration};

use postrider_core::{
    Address, Binding, DeadLetter, DeliveryInfo, Envelope, ErrorKind, Exchange, Publisher,
    PublisherExt, Queue, Result, Topology, Transport,
};
use tokio::time::sleep;

use crate::{handler::HandlerError, headers, naming::Naming, wire_time};

/// The longest error message that a dead letter carries, in bytes; headers must stay small.
const MAX_MESSAGE_BYTES: usize = 2_000;

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

    /// Publishes a copy with the reason beside it and waits until the broker has it. The original
    /// is settled only after that.
    ///
    /// It tries until it succeeds, and declares the queue of dead letters again where somebody
    /// deleted it. Dropped, it may have published.
    ///
    /// # Errors
    ///
    /// Those that waiting does not help against: the transport was closed, or it does not take the
    /// copy.
    pub(crate) async fn keep(
        &self,
        envelope: &Envelope,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        loop {
            let letter = self.letter(envelope, info, error);
            let Err(failed) = self.publisher.publish(letter).await else { return Ok(()) };
            tracing::error!(
                queue = %info.queue, %error, %failed, "message could not be dead-lettered"
            );
            let is_missing = matches!(failed.kind(), ErrorKind::Unroutable | ErrorKind::Rejected);
            if !is_missing && !failed.is_retryable() {
                return Err(failed);
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
        note.set(headers::ERROR_CLASS, error.class().as_str());
        note.set(headers::ERROR_CODE, error.code().to_owned());
        note.set(headers::ERROR_MESSAGE, shorten(error.message()).to_owned());
        note.set(headers::ATTEMPTS, i64::from(info.attempt));
        note.set(headers::HOST, env.host());
        note.set(headers::ORIGIN_QUEUE, info.queue.to_string());
        note.set(headers::ORIGIN_EXCHANGE, envelope.address.exchange_name().to_owned());
        note.set(headers::ORIGIN_KEY, envelope.address.routing_key().to_owned());
        note.set(headers::DEAD_LETTERED_AT, wire_time::text(env.timestamp()));
        Envelope::new(address, message)
    }
}

/// A text for people, cut between characters to what a header or a small body takes.
pub(crate) fn shorten(text: &str) -> &str {
    let mut end = text.len().min(MAX_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

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
