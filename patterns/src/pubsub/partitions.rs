//! How the events of a subscription that is ordered by key come to its partitions.
//!
//! The publisher notes a slot, a hash of the event's key, in a header. A headers exchange of the
//! subscription's own, bound to the exchange of events, spreads the slots over the partitions. So
//! publishers know no subscribers, each subscription has as many partitions as it likes, and the
//! broker does all of it: nothing stands between a publisher and a partition that could stop, send
//! twice or change the order. Hash exchanges would do it too; they are plugins, and not in memory.

use std::{num::NonZeroU32, sync::Arc, task::Poll};

use futures_util::{StreamExt, stream};
use postrider_core::{
    Binding, Consumer, Envelope, Error, ErrorKind, Exchange, Queue, Result, Topology, Transport,
};

use super::RawEvent;
use crate::{codec::Limits, consuming::Settings, headers, naming::Naming, routing::Partitioner};

/// How many slots there are; it stands on the wire and does not change.
const SLOTS: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// The slot of a key, as the header holds it: text, because brokers compare types of numbers.
pub(super) fn slot(key: &str) -> String {
    Partitioner::slot(key, SLOTS).to_string()
}

/// The key of an event that came; of a plain client's, what its body says.
pub(super) fn key_of(envelope: &Arc<Envelope>, limits: Limits) -> Option<String> {
    if let Some(key) = &envelope.message.key {
        return Some(key.to_string());
    }
    let event = RawEvent::read(envelope, limits).ok()?;
    event.aggregate_id().map(str::to_owned)
}

/// The partitions of one subscription.
pub(super) struct Partitions {
    events: String,
    name: String,
    queues: Vec<String>,
}

impl Partitions {
    /// `count` partitions of the subscription whose queue would be `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for none, or more than there are slots.
    pub(super) fn new(naming: &Naming, name: &str, count: u32) -> Result<Self> {
        if !(1..=SLOTS.get()).contains(&count) {
            let why = format!("a subscription has 1 to {SLOTS} partitions, not {count}");
            return Err(Error::new(ErrorKind::Invalid, "subscribe", why));
        }
        let queues = (0..count).map(|number| naming.partition_queue(name, number)).collect();
        Ok(Self { events: naming.event_exchange(), name: name.to_owned(), queues })
    }

    pub(super) fn queues(&self) -> &[String] {
        &self.queues
    }

    /// Refuses to stand beside a queue of the subscription from before it was ordered: it would go
    /// on to collect every event, and nobody would take them.
    pub(super) async fn check(&self, transport: &dyn Transport) -> Result<()> {
        if transport.queue_info(&self.name).await?.is_none() {
            return Ok(());
        }
        let why = "the subscription has a queue from before it was ordered by key; let its events \
                   be handled, then delete it";
        Err(Error::new(ErrorKind::Mismatch, "subscribe", why)
            .with_context("queue", self.name.clone()))
    }

    /// The exchanges, queues and bindings, for events of `keys`; each queue is made of `queue`.
    ///
    /// The name of the exchange for events without a slot tells how many partitions there are, so
    /// that the broker itself refuses an instance that has another number. All those events come
    /// to the first partition: what plain clients publish keeps its order there.
    pub(super) fn topology<'a>(
        &self,
        keys: impl Iterator<Item = &'a str>,
        queue: impl Fn(String) -> Queue,
    ) -> Topology {
        let others = format!("{}.of.{}", self.name, self.queues.len());
        let spread = Exchange::headers(self.name.clone()).with_alternate(others.clone());
        let mut topology = Topology::new()
            .exchange(Exchange::topic(self.events.clone()))
            .exchange(Exchange::fanout(others.clone()))
            .exchange(spread);
        for name in &self.queues {
            topology = topology.queue(queue(name.clone()).single_active_consumer());
        }
        topology = topology.bind(Binding::queue(others, self.queues[0].clone(), ""));
        for (slot, name) in (0..SLOTS.get()).zip(self.queues.iter().cycle()) {
            let binding = Binding::queue(self.name.clone(), name.clone(), slot.to_string());
            topology = topology.bind(binding.with_argument(headers::KEY_SLOT, slot.to_string()));
        }
        // Last, so that nothing comes before it can go on.
        for key in keys {
            let binding = Binding::exchange(self.events.clone(), self.name.clone(), key.to_owned());
            if !topology.bindings.contains(&binding) {
                topology = topology.bind(binding);
            }
        }
        topology
    }

    /// One consumer of all of them; each has the whole prefetch.
    pub(super) async fn consumer(
        &self,
        transport: &dyn Transport,
        settings: Settings,
    ) -> Result<Consumer> {
        let mut consumers = Vec::new();
        for queue in &self.queues {
            consumers.push(transport.consumer(queue, settings.options()).await?);
        }
        // All are polled each time: a transport may give out credit anew only when it is asked. It
        // ends when one of them does.
        let mut turn = 0;
        Ok(Consumer::new(stream::poll_fn(move |cx| {
            for _ in 0..consumers.len() {
                turn = (turn + 1) % consumers.len();
                if let Poll::Ready(next) = consumers[turn].poll_next_unpin(cx) {
                    return Poll::Ready(next);
                }
            }
            Poll::Pending
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_one_partition_and_slots_do_not_change() {
        let partitions = Partitions::new(&Naming::default(), "billing.orders", 5).unwrap();
        let topology = partitions.topology(["a", "b", "a"].into_iter(), Queue::durable);
        assert!(topology.queues.iter().all(|queue| queue.single_active_consumer));
        let slots: Vec<_> = topology
            .bindings
            .iter()
            .filter(|binding| binding.exchange == "billing.orders")
            .map(|binding| binding.arguments.get(headers::KEY_SLOT).unwrap().as_text().unwrap())
            .collect();
        assert_eq!(slots, (0..64).map(|slot| slot.to_string()).collect::<Vec<_>>());
        let events = topology.bindings.iter().filter(|binding| binding.exchange == "event_bus");
        assert_eq!(events.count(), 2);
        assert_eq!(["order-7", "customer-4", ""].map(slot), ["52", "2", "27"]);
    }
}
