//! What happens to a connection, and how it fares.

use futures_util::{StreamExt, stream::BoxStream};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

/// Something that happened to a transport.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportEvent {
    /// The connection is gone; recovery has begun.
    Lost {
        /// Why, as far as it is known.
        cause: String,
    },
    /// Connection, topology, publishers and consumers are back.
    Restored {
        /// The number of connections made so far, the first counted.
        epoch: u64,
    },
    /// Something that this connection declared could not be restored with it.
    NotRestored {
        /// What it is.
        entity: String,
        /// Why.
        cause: String,
    },
    /// The broker takes no publishes for now.
    Blocked {
        /// Why, in the broker's words.
        reason: String,
    },
    /// The broker takes publishes again.
    Unblocked,
    /// A consumer was ended by the broker.
    ConsumerCancelled {
        /// The queue it consumed.
        queue: String,
        /// Why.
        cause: String,
    },
    /// A settlement came after its connection was gone; it was dropped, and the broker delivers
    /// the message again.
    StaleSettlement {
        /// The queue of the delivery.
        queue: String,
    },
    /// Whoever listens did not take events in time, and the oldest are lost to it.
    Missed {
        /// How many.
        events: u64,
    },
    /// A delivery was dropped unsettled; it went back to its queue.
    Abandoned {
        /// The queue of the delivery.
        queue: String,
    },
}

/// Hands events to whoever listens; for transports. A listener that falls 256 events behind loses
/// the oldest, and is told so by [`TransportEvent::Missed`].
#[derive(Debug, Clone)]
pub struct EventSender(broadcast::Sender<TransportEvent>);

impl Default for EventSender {
    fn default() -> Self {
        Self(broadcast::Sender::new(256))
    }
}

impl EventSender {
    /// Hands out an event; nobody may be listening.
    pub fn send(&self, event: TransportEvent) {
        let _nobody = self.0.send(event);
    }

    /// The events from now on, until the last sender is gone.
    #[must_use]
    pub fn subscribe(&self) -> BoxStream<'static, TransportEvent> {
        let missed = |BroadcastStreamRecvError::Lagged(events)| TransportEvent::Missed { events };
        BroadcastStream::new(self.0.subscribe())
            .map(move |event| event.unwrap_or_else(missed))
            .boxed()
    }
}

/// How a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Open.
    Connected,
    /// Open, and the broker takes no publishes.
    Blocked,
    /// Lost; being restored.
    Reconnecting,
    /// Closed by its user.
    Closed,
}

/// What one consumer has in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerHealth {
    /// The queue it consumes.
    pub queue: String,
    /// Deliveries taken in advance that nobody has asked for yet. A number that stays up is a
    /// consumer that is not read.
    pub buffered: u64,
    /// Deliveries handed out and not settled.
    pub unsettled: u64,
}

impl ConsumerHealth {
    /// The figures of a consumer of `queue`.
    #[must_use]
    pub const fn new(queue: String, buffered: u64, unsettled: u64) -> Self {
        Self { queue, buffered, unsettled }
    }
}

/// How a transport fares.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// How its connection stands.
    pub state: ConnectionState,
    /// Its live consumers.
    pub consumers: Vec<ConsumerHealth>,
}

impl Health {
    /// The health of a transport.
    #[must_use]
    pub const fn new(state: ConnectionState, consumers: Vec<ConsumerHealth>) -> Self {
        Self { state, consumers }
    }

    /// Whether it can publish and consume now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state == ConnectionState::Connected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_told_how_much_it_missed() {
        let sender = EventSender::default();
        let mut events = sender.subscribe();
        for epoch in 0..300 {
            sender.send(TransportEvent::Restored { epoch });
        }
        assert_eq!(events.next().await, Some(TransportEvent::Missed { events: 44 }));
        assert_eq!(events.next().await, Some(TransportEvent::Restored { epoch: 44 }));
    }
}
