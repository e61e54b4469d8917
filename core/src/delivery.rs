//! A message on its way to a handler, and its settlement.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use crate::{Address, Envelope, Message};

/// A longer delay is cut to this: 2^32 - 1 milliseconds, what brokers take.
const LONGEST_RETRY: Duration = Duration::from_millis(u32::MAX as u64);

/// What becomes of a delivered message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// It is done with; the queue forgets it.
    Ack,
    /// It failed and comes again after this time, counted as a failure. Without a delay it goes
    /// back to the front, after the queue's own [retry delay](crate::Queue::retry_delay) if it has
    /// one: to its old place in a classic queue, behind what came back before it in a quorum queue.
    Retry {
        /// How long it stays hidden; nothing leaves that to the queue.
        after: Duration,
    },
    /// It will never succeed; it goes to the queue's dead-letter exchange, or is dropped where
    /// there is none.
    Reject {
        /// Why, for people.
        reason: Cow<'static, str>,
    },
    /// It goes back to the front, as a retry without a delay, and is not counted as a failure.
    Release,
    /// Its delivery was dropped unsettled: as [`Release`](Self::Release), and reported as an event.
    Abandon,
}

/// Takes settlements; implemented by transports.
///
/// Settling is synchronous and only enqueues: whoever owns the channel applies it and may gather
/// several into one frame, but never settles a tag that was not given here.
pub trait SettlementSink: fmt::Debug + Send + Sync {
    /// Settles the delivery `tag`. A tag of an epoch that has ended is dropped and reported as
    /// [`TransportEvent::StaleSettlement`](crate::TransportEvent::StaleSettlement).
    fn settle(&self, tag: u64, settlement: Settlement);
}

/// What a broker says about one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryInfo {
    /// The queue it was taken from.
    pub queue: Arc<str>,
    /// The how-manieth delivery of this message from this queue it is, from 1. On classic queues
    /// of brokers without [`exact_attempts`](crate::Capabilities::exact_attempts) it is 1 or 2.
    pub attempt: u32,
    /// How many earlier deliveries count as failures toward the queue's delivery limit. A dead letter
    /// may bring those it had (RabbitMQ since 4.3, the in-memory broker).
    pub failures: u32,
    /// When it was settled as failed for the first time, as far as that is noted: brokers count
    /// failures and do not date them. The in-memory broker notes it, and so do quorum queues over
    /// AMQP 1.0, where it comes with the retry. Over AMQP 0.9.1 it is noted with the first retry that
    /// has a delay, which is a copy. A crash is noted nowhere.
    pub first_failed: Option<DateTime<Utc>>,
    /// Whether it was delivered before, to anyone.
    pub redelivered: bool,
    /// Its place in the stream that it was read from; `None` for other queues.
    pub offset: Option<u64>,
}

impl DeliveryInfo {
    /// The first delivery of a message from `queue`.
    #[must_use]
    pub const fn first(queue: Arc<str>) -> Self {
        Self {
            queue,
            attempt: 1,
            failures: 0,
            first_failed: None,
            redelivered: false,
            offset: None,
        }
    }
}

/// A message on its way to a handler. It is settled once, by value.
///
/// Dropping it unsettled gives it back as [`release`](Self::release) does, and the transport
/// reports that as an event. Settling does not wait for the broker: when the connection is lost
/// first, the message is delivered again.
///
/// # Example: settling twice does not compile
///
/// ```compile_fail,E0382
/// fn handle(delivery: postrider_core::Delivery) {
///     delivery.ack();
///     delivery.release();
/// }
/// ```
#[derive(Debug)]
#[must_use = "a delivery dropped unsettled goes back to its queue"]
pub struct Delivery {
    envelope: Arc<Envelope>,
    info: DeliveryInfo,
    settle: Settle,
}

/// The way back to the transport, used once.
#[derive(Debug)]
struct Settle {
    tag: u64,
    sink: Option<Arc<dyn SettlementSink>>,
}

impl Delivery {
    /// A delivery that is settled through `sink` under `tag`; for transports.
    pub fn new(
        envelope: Arc<Envelope>,
        info: DeliveryInfo,
        tag: u64,
        sink: Arc<dyn SettlementSink>,
    ) -> Self {
        Self { envelope, info, settle: Settle { tag, sink: Some(sink) } }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.envelope.message
    }

    /// Where it was published to; a dead letter's address is that of its last routing.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.envelope.address
    }

    /// Message and address, shared with the transport.
    #[must_use]
    pub const fn envelope(&self) -> &Arc<Envelope> {
        &self.envelope
    }

    /// What the broker says about this delivery.
    #[must_use]
    pub const fn info(&self) -> &DeliveryInfo {
        &self.info
    }

    /// Done: the queue forgets the message. Call it once the effect is durable.
    pub fn ack(self) {
        self.settle(Settlement::Ack);
    }

    /// Failed for now: it comes again after `after`, at most after 2^32 - 1 milliseconds (49 days),
    /// counted as a failure. See [`Settlement::Retry`].
    pub fn retry(self, after: Duration) {
        self.settle(Settlement::Retry { after });
    }

    /// Failed for good: it goes to the dead-letter exchange. See [`Settlement::Reject`].
    pub fn reject(self, reason: impl Into<Cow<'static, str>>) {
        self.settle(Settlement::Reject { reason: reason.into() });
    }

    /// Back to the queue, uncounted: somebody else should have it.
    pub fn release(self) {
        self.settle(Settlement::Release);
    }

    /// Settles it as `settlement` says.
    pub fn settle(self, settlement: Settlement) {
        let Self { envelope, info, settle } = self;
        let settlement = match settlement {
            Settlement::Retry { after } => Settlement::Retry { after: after.min(LONGEST_RETRY) },
            other => other,
        };
        // First, so that a transport that keeps the message until it is settled has the last share.
        drop((envelope, info));
        settle.with(settlement);
    }
}

impl Settle {
    fn with(mut self, settlement: Settlement) {
        if let Some(sink) = self.sink.take() {
            sink.settle(self.tag, settlement);
        }
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.settle(self.tag, Settlement::Abandon);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(u64, Settlement)>>);

    impl SettlementSink for Recorder {
        fn settle(&self, tag: u64, settlement: Settlement) {
            self.0.lock().unwrap().push((tag, settlement));
        }
    }

    #[test]
    fn a_delivery_is_settled_once_even_when_it_is_dropped() {
        let sink = Arc::new(Recorder::default());
        let deliver = |tag| {
            let envelope = Arc::new(Envelope::new(Address::queue("q"), Message::new("")));
            Delivery::new(envelope, DeliveryInfo::first("q".into()), tag, sink.clone())
        };
        deliver(1).ack();
        drop(deliver(2));
        deliver(3).retry(Duration::from_secs(1));
        assert_eq!(
            *sink.0.lock().unwrap(),
            [
                (1, Settlement::Ack),
                (2, Settlement::Abandon),
                (3, Settlement::Retry { after: Duration::from_secs(1) }),
            ]
        );
    }
}
