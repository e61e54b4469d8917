//! One of the two brokers under a program: its connections, and names that are the program's own.

use std::{borrow::Cow, sync::Arc, time::Duration};

use futures_util::StreamExt;
use postrider_core::{
    Address, Binding, Capabilities, Consumer, ConsumerOptions, DeadLetter, Delivery, Env, Envelope,
    Message, Publisher, PublisherOptions, Result, Target, Topology, Transport, TransportEvent,
};
use tokio::time;

use super::observe::{Counts, Seen, SeenDelivery, of_delivery};
use crate::harness::{Connection, TestBroker};

/// How many connections a program has.
pub(super) const CONNECTIONS: usize = 2;

/// How long a lost connection may take to come back.
const RESTORED_WITHIN: Duration = Duration::from_secs(30);

/// One broker, as the programs of one worker use it.
pub(super) struct Side {
    connections: Vec<Connection>,
    publisher: Arc<dyn Publisher>,
}

impl Side {
    pub(super) async fn open(broker: &dyn TestBroker) -> Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(broker.connect().await?);
        }
        let publisher = connections[0].transport.publisher(PublisherOptions::default()).await?;
        Ok(Self { connections, publisher })
    }

    pub(super) fn transport(&self, connection: usize) -> &Arc<dyn Transport> {
        &self.connections[connection % CONNECTIONS].transport
    }

    pub(super) fn env(&self) -> &Env {
        self.transport(0).env()
    }

    pub(super) fn capabilities(&self) -> &Capabilities {
        self.transport(0).capabilities()
    }

    pub(super) async fn declare(&self, connection: usize, topology: &Topology) -> Seen {
        Seen::of_call(self.transport(connection).declare(topology).await)
    }

    pub(super) async fn remove(&self, connection: usize, topology: &Topology) -> Seen {
        Seen::of_call(self.transport(connection).remove(topology).await)
    }

    pub(super) async fn publish(&self, envelope: Envelope) -> Seen {
        match self.publisher.send(envelope).await {
            Ok(confirm) => Seen::of_verdict(&confirm.await),
            Err(error) => Seen::Failed(error.kind()),
        }
    }

    pub(super) async fn consume(
        &self,
        connection: usize,
        queue: &str,
        prefetch: u16,
        exclusive: bool,
    ) -> Result<Consumer> {
        let mut options = ConsumerOptions::default().with_prefetch(prefetch);
        options.exclusive = exclusive;
        self.transport(connection).consumer(queue, options).await
    }

    pub(super) async fn purge(&self, connection: usize, queue: &str) -> Seen {
        match self.transport(connection).purge(queue).await {
            Ok(messages) => Seen::Purged(messages),
            Err(error) => Seen::Failed(error.kind()),
        }
    }

    pub(super) async fn counts(&self, connection: usize, queue: &str) -> Counts {
        Counts::of(self.transport(connection).queue_info(queue).await)
    }

    /// Breaks a connection and waits until it is back.
    pub(super) async fn lose(&self, connection: usize) -> Seen {
        let connection = &self.connections[connection % CONNECTIONS];
        let mut events = connection.transport.events();
        connection.cut().await;
        let restored = async {
            while let Some(event) = events.next().await {
                if matches!(event, TransportEvent::Restored { .. }) {
                    return Seen::Done;
                }
            }
            Seen::Failed(postrider_core::ErrorKind::Closed)
        };
        let late = Seen::Failed(postrider_core::ErrorKind::TimedOut);
        time::timeout(RESTORED_WITHIN, restored).await.unwrap_or(late)
    }

    pub(super) async fn close(&self) {
        for connection in &self.connections {
            // A program may have left deliveries unsettled.
            let _late = connection.transport.close(Duration::from_millis(200)).await;
        }
    }
}

/// What a consumer gives within `limit`.
pub(super) async fn receive(
    consumer: &mut Consumer,
    limit: Duration,
    prefix: &str,
) -> (SeenDelivery, Option<Delivery>) {
    match time::timeout(limit, consumer.recv()).await {
        Err(_) => (SeenDelivery::Nothing, None),
        Ok(None) => (SeenDelivery::End(None), None),
        Ok(Some(Err(error))) => (SeenDelivery::End(Some(error.kind())), None),
        Ok(Some(Ok(delivery))) => {
            let seen = of_delivery(&delivery, prefix);
            (SeenDelivery::Message(Box::new(seen)), Some(delivery))
        }
    }
}

/// `name` with the prefix of a program. The empty name and those of the broker stay as they are.
pub(super) fn named(prefix: &str, name: &str) -> String {
    if name.is_empty() || name.starts_with("amq.") {
        name.to_owned()
    } else {
        format!("{prefix}{name}")
    }
}

/// A topology with all names prefixed.
pub(super) fn named_topology(prefix: &str, topology: &Topology) -> Topology {
    let own = |name: &str| Cow::Owned(named(prefix, name));
    let mut topology = topology.clone();
    for exchange in &mut topology.exchanges {
        exchange.name = own(&exchange.name);
        exchange.alternate = exchange.alternate.as_deref().map(own);
    }
    for queue in &mut topology.queues {
        queue.name = own(&queue.name);
        if let Some(DeadLetter { exchange, routing_key }) = &mut queue.dead_letter {
            // On the default exchange the key is a queue's name.
            *routing_key = routing_key
                .as_deref()
                .map(|key| if exchange.is_empty() { own(key) } else { Cow::Owned(key.to_owned()) });
            *exchange = own(exchange);
        }
    }
    for binding in &mut topology.bindings {
        let Binding { exchange, target, .. } = binding;
        *exchange = own(exchange);
        *target = match target {
            Target::Queue(name) => Target::Queue(own(name)),
            Target::Exchange(name) => Target::Exchange(own(name)),
        };
    }
    topology
}

/// A message with its destination under a prefixed name.
pub(super) fn named_envelope(
    prefix: &str,
    address: &Address,
    message: &Message,
    delay: Duration,
) -> Envelope {
    let address = match address {
        Address::Queue(name) => Address::queue(named(prefix, name)),
        Address::Exchange { exchange, routing_key } => {
            Address::exchange(named(prefix, exchange), routing_key.clone())
        }
    };
    Envelope::new(address, message.clone()).after(delay)
}
