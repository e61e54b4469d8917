use std::{sync::Arc, time::Duration};

use postrider_core::{
    Address, Binding, DeadLetter, Delay, DeliveryInfo, Env, Envelope, Exchange, Publisher,
    PublisherExt, Queue, Result, Topology, Transport,
};

use crate::{handler::HandlerError, headers, naming::Naming, wire_time};

/// The longest error message that a dead letter carries, in bytes; headers must stay small.
const MAX_MESSAGE_BYTES: usize = 2_000;

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
pub(crate) struct DeadLetters {
    publisher: Arc<dyn Publisher>,
    env: Env,
    exchange: String,
    key: String,
    retry_after: Duration,
}

impl DeadLetters {
    pub(crate) fn new(
        transport: &Arc<dyn Transport>,
        publisher: Arc<dyn Publisher>,
        naming: &Naming,
        queue: &str,
    ) -> Self {
        // Without means to delay, trying again at once is what is left.
        let retry_after = match transport.capabilities().delayed_retry {
            Delay::None => Duration::ZERO,
            _ => Duration::from_secs(1),
        };
        Self {
            publisher,
            env: transport.env().clone(),
            exchange: naming.dead_letter_exchange(),
            key: naming.dead_letter_queue(queue),
            retry_after,
        }
    }

    /// When a message that could not be kept is tried again.
    pub(crate) fn retry_after(&self) -> Duration {
        self.retry_after
    }

    /// Publishes a copy with the reason beside it and waits until the broker has it. The original
    /// is settled only after that, so a failure here loses nothing.
    pub(crate) async fn keep(
        &self,
        envelope: &Envelope,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) -> Result<()> {
        let address = Address::exchange(self.exchange.clone(), self.key.clone());
        let mut message = envelope.message.clone();
        // A dead letter waits for a person.
        message.ttl = None;
        message.durable = true;
        let note = &mut message.headers;
        note.set(headers::ERROR_CLASS, error.class().as_str());
        note.set(headers::ERROR_CODE, error.code().to_owned());
        note.set(headers::ERROR_MESSAGE, shorten(error.message()).to_owned());
        note.set(headers::ATTEMPTS, i64::from(info.attempt));
        note.set(headers::ORIGIN_QUEUE, info.queue.to_string());
        note.set(headers::ORIGIN_EXCHANGE, envelope.address.exchange_name().to_owned());
        note.set(headers::ORIGIN_KEY, envelope.address.routing_key().to_owned());
        note.set(headers::DEAD_LETTERED_AT, wire_time::text(self.env.timestamp()));
        self.publisher.publish(Envelope::new(address, message)).await
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
