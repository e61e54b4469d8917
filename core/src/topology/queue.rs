use std::{borrow::Cow, fmt, time::Duration};

/// What stores a queue's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueKind {
    /// On one node; may be exclusive, temporary, and have declared priorities.
    Classic,
    /// Replicated and durable, with a delivery limit.
    Quorum,
    /// An append-only log that is read without taking from it.
    Stream,
}

impl fmt::Display for QueueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
            Self::Stream => "stream",
        })
    }
}

/// What happens to a publish when the queue is at its maximum length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Overflow {
    /// The oldest message goes, to the dead-letter exchange if there is one.
    #[default]
    DropHead,
    /// The new message is refused: its verdict is `Rejected`.
    RejectPublish,
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DropHead => "drop-head",
            Self::RejectPublish => "reject-publish",
        })
    }
}

/// Where a queue sends what was rejected, expired, dropped for length or delivered too often.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeadLetter {
    /// The exchange; the empty name is the default exchange.
    pub exchange: Cow<'static, str>,
    /// The routing key; without one the message keeps its own.
    pub routing_key: Option<Cow<'static, str>>,
}

impl DeadLetter {
    /// To `exchange`, under the message's own routing key.
    pub fn to(exchange: impl Into<Cow<'static, str>>) -> Self {
        Self { exchange: exchange.into(), routing_key: None }
    }

    /// Sets [`routing_key`](Self::routing_key).
    #[must_use]
    pub fn with_routing_key(mut self, key: impl Into<Cow<'static, str>>) -> Self {
        self.routing_key = Some(key.into());
        self
    }
}

impl fmt::Display for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.routing_key {
            Some(key) => write!(f, "exchange '{}' with key '{key}'", self.exchange),
            None => write!(f, "exchange '{}'", self.exchange),
        }
    }
}

/// How long a message that failed stays hidden from the consumers of its queue: the shortest delay
/// times the number of its failures, up to the longest.
///
/// The queue does it by itself where the broker can (quorum queues of RabbitMQ 4.3 and later, there
/// named delayed retry), for every kind of failure: a retry, a crash, a lost connection. Elsewhere
/// the transport does it for retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryDelay {
    /// The delay after the first failure, in whole milliseconds.
    pub shortest: Duration,
    /// The most that the delay grows to, in whole milliseconds.
    pub longest: Duration,
}

impl RetryDelay {
    /// The delay after the last of `failures`.
    #[must_use]
    pub fn after(self, failures: u32) -> Duration {
        self.shortest.saturating_mul(failures).min(self.longest)
    }
}

impl fmt::Display for RetryDelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} for each failure, up to {:?}", self.shortest, self.longest)
    }
}

/// A queue to declare.
///
/// # Example: a work queue that parks what fails
///
/// ```
/// use std::time::Duration;
/// use postrider_core::{DeadLetter, Queue, QueueKind};
///
/// let queue = Queue::durable("invoices")
///     .with_delivery_limit(5)
///     .with_message_ttl(Duration::from_secs(3600))
///     .with_dead_letter(DeadLetter::to("dead_letter_exchange"));
/// assert_eq!(queue.kind, QueueKind::Quorum);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queue {
    /// Its name, at most 255 bytes.
    pub name: Cow<'static, str>,
    /// What stores it.
    pub kind: QueueKind,
    /// Whether it outlives a restart of the broker.
    pub durable: bool,
    /// Whether it belongs to the connection that declared it and goes with it.
    pub exclusive: bool,
    /// Whether it goes when its last consumer goes.
    pub auto_delete: bool,
    /// How long a message may wait before it expires, in whole milliseconds. Default: for ever.
    pub message_ttl: Option<Duration>,
    /// How long the queue lives without a consumer, in whole milliseconds. Default: for ever.
    pub expires: Option<Duration>,
    /// The most messages that may wait. Default: no limit.
    pub max_length: Option<u64>,
    /// The most bytes of bodies that may wait. Default: no limit.
    pub max_length_bytes: Option<u64>,
    /// What happens at the maximum length. Default: the oldest goes.
    pub overflow: Overflow,
    /// Where dead messages go. Default: nowhere, they are dropped.
    pub dead_letter: Option<DeadLetter>,
    /// How often a delivery may fail before the message is dead: with limit N it is delivered at
    /// most N + 1 times. Quorum queues only. Default there: 20, RabbitMQ's own; `None` is no limit.
    pub delivery_limit: Option<u32>,
    /// How long a message that failed stays hidden, unless whoever settles it names a delay.
    /// Quorum queues only. Default: not at all.
    pub retry_delay: Option<RetryDelay>,
    /// The highest priority of a classic queue. Default: no priorities. A quorum queue has
    /// priorities without being asked.
    pub max_priority: Option<u8>,
    /// Whether one consumer gets everything and the others wait for it to go. Default: false.
    pub single_active_consumer: bool,
}

impl Queue {
    /// The delivery limit of quorum queues unless it is set: RabbitMQ's own default.
    pub const DEFAULT_DELIVERY_LIMIT: u32 = 20;

    fn new(name: Cow<'static, str>, kind: QueueKind) -> Self {
        Self {
            name,
            kind,
            durable: true,
            exclusive: false,
            auto_delete: false,
            message_ttl: None,
            expires: None,
            max_length: None,
            max_length_bytes: None,
            overflow: Overflow::default(),
            dead_letter: None,
            delivery_limit: None,
            retry_delay: None,
            max_priority: None,
            single_active_consumer: false,
        }
    }

    /// A durable, replicated queue: the right one for messages that must not be lost.
    pub fn durable(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name.into(), QueueKind::Quorum).with_delivery_limit(Self::DEFAULT_DELIVERY_LIMIT)
    }

    /// A durable classic queue.
    pub fn classic(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name.into(), QueueKind::Classic)
    }

    /// A transient classic queue that belongs to the declaring connection and goes with it.
    pub fn exclusive(name: impl Into<Cow<'static, str>>) -> Self {
        let mut queue = Self::classic(name);
        queue.durable = false;
        queue.exclusive = true;
        queue
    }

    /// A log that is read from [any position](crate::StreamStart). Its consumers take nothing from
    /// it: settling a delivery, in whatever way, only makes room for the next.
    pub fn stream(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name.into(), QueueKind::Stream)
    }

    /// Sets [`durable`](Self::durable) to false.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.durable = false;
        self
    }

    /// Sets [`auto_delete`](Self::auto_delete).
    #[must_use]
    pub fn auto_delete(mut self) -> Self {
        self.auto_delete = true;
        self
    }

    /// Sets [`message_ttl`](Self::message_ttl).
    #[must_use]
    pub fn with_message_ttl(mut self, ttl: Duration) -> Self {
        self.message_ttl = Some(ttl);
        self
    }

    /// Sets [`expires`](Self::expires).
    #[must_use]
    pub fn with_expires(mut self, unused: Duration) -> Self {
        self.expires = Some(unused);
        self
    }

    /// Sets [`max_length`](Self::max_length).
    #[must_use]
    pub fn with_max_length(mut self, messages: u64) -> Self {
        self.max_length = Some(messages);
        self
    }

    /// Sets [`max_length_bytes`](Self::max_length_bytes).
    #[must_use]
    pub fn with_max_length_bytes(mut self, bytes: u64) -> Self {
        self.max_length_bytes = Some(bytes);
        self
    }

    /// Sets [`overflow`](Self::overflow).
    #[must_use]
    pub fn with_overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Sets [`dead_letter`](Self::dead_letter).
    #[must_use]
    pub fn with_dead_letter(mut self, dead_letter: DeadLetter) -> Self {
        self.dead_letter = Some(dead_letter);
        self
    }

    /// Sets [`delivery_limit`](Self::delivery_limit).
    #[must_use]
    pub fn with_delivery_limit(mut self, failures: u32) -> Self {
        self.delivery_limit = Some(failures);
        self
    }

    /// Sets [`delivery_limit`](Self::delivery_limit) to no limit: a message that kills its
    /// consumer comes back for ever.
    #[must_use]
    pub fn without_delivery_limit(mut self) -> Self {
        self.delivery_limit = None;
        self
    }

    /// Sets [`retry_delay`](Self::retry_delay): `shortest` after the first failure, as much again
    /// for each further one, at most `longest`.
    #[must_use]
    pub fn with_retry_delay(mut self, shortest: Duration, longest: Duration) -> Self {
        self.retry_delay = Some(RetryDelay { shortest, longest });
        self
    }

    /// Sets [`max_priority`](Self::max_priority).
    #[must_use]
    pub fn with_max_priority(mut self, highest: u8) -> Self {
        self.max_priority = Some(highest);
        self
    }

    /// Sets [`single_active_consumer`](Self::single_active_consumer).
    #[must_use]
    pub fn single_active_consumer(mut self) -> Self {
        self.single_active_consumer = true;
        self
    }
}

/// What a queue holds at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueInfo {
    /// Messages that wait for a consumer.
    pub ready: u64,
    /// Messages delivered and not settled, where the broker tells.
    pub unsettled: Option<u64>,
    /// Messages held back until their delay is over, where the broker tells.
    pub delayed: Option<u64>,
    /// Consumers.
    pub consumers: u32,
}

impl QueueInfo {
    /// A queue with `ready` messages and `consumers`, and nothing known beyond.
    #[must_use]
    pub const fn new(ready: u64, consumers: u32) -> Self {
        Self { ready, unsettled: None, delayed: None, consumers }
    }
}
