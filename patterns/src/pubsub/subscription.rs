use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use postrider_core::Queue;

use super::{Event, EventSet, Gap, RawEvent, gap::GapHandler, pattern};
use crate::{
    codec::Limits,
    consuming::{KeyFailure, Settings},
    handler::{Context, HandlerError, codes},
    middleware::{Layers, Middleware},
    resilience::RetryPolicy,
};

type Handler =
    Arc<dyn Fn(RawEvent, Context) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync>;

/// A service's interest in events: which ones, what to do with them, and what to do when it fails.
///
/// Handlers run several at once, so that the order of events is not kept, unless it is
/// [ordered by key](Subscription::ordered_by_key). Several handlers may take the same event: they
/// run in the order they were added, and when one fails, all run again on the next try.
#[must_use = "pass it to EventBus::subscribe"]
pub struct Subscription {
    pub(super) kind: Kind,
    pub(super) handlers: Vec<Registered>,
    pub(super) settings: Settings,
    pub(super) retry: RetryPolicy,
    pub(super) delivery_limit: u32,
    pub(super) unknown: UnknownEvents,
    pub(super) limits: Limits,
    pub(super) on_gap: Option<GapHandler>,
    pub(super) layers: Layers,
    /// Into how many queues its events are spread by key.
    pub(super) partitions: Option<u32>,
    pub(super) key_failure: KeyFailure,
}

/// Who shares the events.
pub(super) enum Kind {
    Durable { service: String, name: String },
    Ephemeral { name: String },
}

/// A handler and the types it is for.
pub(super) struct Registered {
    /// A type, or a pattern of types.
    pub(super) key: String,
    exact: bool,
    pub(super) handler: Handler,
}

impl Registered {
    /// A type with a wildcard in it would be bound as a pattern and never be equal to anything.
    pub(super) fn is_sound(&self) -> bool {
        !self.exact || !self.key.split('.').any(|word| word == "*" || word == "#")
    }

    pub(super) fn takes(&self, event_type: &str) -> bool {
        if self.exact { self.key == event_type } else { pattern::matches(&self.key, event_type) }
    }
}

/// What becomes of events that no handler of a subscription takes. They come by bindings that an
/// earlier version of the subscription made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum UnknownEvents {
    /// They are dropped, and counted as [`ignored`](crate::RunStats::ignored).
    #[default]
    Ignore,
    /// They are kept in the dead-letter queue.
    DeadLetter,
}

impl Subscription {
    /// A subscription that outlives its subscribers: events wait for them in a queue named after
    /// `service` and `name`, and all instances share it. The name of a service has no dot, so that
    /// no two subscriptions have one queue.
    pub fn durable(service: impl Into<String>, name: impl Into<String>) -> Self {
        Self::new(Kind::Durable { service: service.into(), name: name.into() })
    }

    /// A subscription of this instance alone, which gets its own copy of each event while it is
    /// connected and none of those before and after.
    ///
    /// After a lost connection it has a new queue, without what was published meanwhile:
    /// [`on_gap`](Self::on_gap) tells. Its retries run in the process and keep their place among the handlers at work. What fails
    /// for good is kept in the dead-letter queue of `name`.
    pub fn ephemeral(name: impl Into<String>) -> Self {
        Self::new(Kind::Ephemeral { name: name.into() })
    }

    fn new(kind: Kind) -> Self {
        Self {
            kind,
            handlers: Vec::new(),
            settings: Settings::default(),
            retry: RetryPolicy::default(),
            delivery_limit: Queue::DEFAULT_DELIVERY_LIMIT,
            unknown: UnknownEvents::default(),
            limits: Limits::default(),
            on_gap: None,
            layers: Layers::default(),
            partitions: None,
            key_failure: KeyFailure::default(),
        }
    }

    /// Adds a handler for the events of one type.
    pub fn on<E, F, Fut>(self, handler: F) -> Self
    where
        E: Event,
        F: Fn(E, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.register(E::TYPE.to_owned(), true, move |raw, context| {
            let handler = Arc::clone(&handler);
            Box::pin(async move {
                let event = raw.data().map_err(|error| HandlerError::undecodable(&error))?;
                handler(event, context).await
            })
        })
    }

    /// Adds a handler for all events whose type matches `pattern`, with their data undecoded. In a
    /// pattern `*` is one word, `#` any number of words.
    pub fn on_pattern<F, Fut>(self, pattern: impl Into<String>, handler: F) -> Self
    where
        F: Fn(RawEvent, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.register(pattern.into(), false, move |raw, context| {
            let handler = Arc::clone(&handler);
            Box::pin(async move { handler(raw, context).await })
        })
    }

    /// Adds a handler for all events of an enum.
    pub fn on_any<S, F, Fut>(mut self, handler: F) -> Self
    where
        S: EventSet,
        F: Fn(S, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let handler: Handler = Arc::new(move |raw: RawEvent, context| {
            let handler = Arc::clone(&handler);
            Box::pin(async move {
                match S::decode(&raw).map_err(|error| HandlerError::undecodable(&error))? {
                    Some(event) => handler(event, context).await,
                    None => Err(HandlerError::unsupported(format!(
                        "the enum has no variant for events of type '{}'",
                        raw.event_type()
                    ))
                    .with_code(codes::UNKNOWN_EVENT)),
                }
            })
        });
        let types: BTreeSet<_> = S::TYPES.iter().collect();
        self.handlers.extend(types.into_iter().map(|event_type| Registered {
            key: (*event_type).to_owned(),
            exact: true,
            handler: Arc::clone(&handler),
        }));
        self
    }

    fn register<H>(mut self, key: String, exact: bool, handler: H) -> Self
    where
        H: Fn(RawEvent, Context) -> BoxFuture<'static, Result<(), HandlerError>>
            + Send
            + Sync
            + 'static,
    {
        self.handlers.push(Registered { key, exact, handler: Arc::new(handler) });
        self
    }

    /// Tells of each [`Gap`]: after a lost connection, when events come again, so that state that was
    /// built from events can be read anew. It is called for one gap after the other, beside the
    /// handlers of events; where it fails, that is logged. Default: gaps are logged. Ephemeral
    /// subscriptions only: a durable one has none.
    pub fn on_gap<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Gap) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.on_gap = Some(Arc::new(move |gap| Box::pin(handler(gap))));
        self
    }

    /// Puts a middleware around the handlers, within those that were added before it. Each try of
    /// an event passes through all of them.
    pub fn with(mut self, middleware: impl Middleware) -> Self {
        self.layers.push(middleware);
        self
    }

    /// Keeps the order of events of one key, their
    /// [`aggregate_id`](Event::aggregate_id): the events are spread by key over `partitions`
    /// queues, 1 to 64, each of which has one instance that takes from it at a time, and of one key
    /// one event is handled after the other. Events without a key keep no order.
    ///
    /// An event that fails blocks its key: it is tried again in its place by the
    /// [retry policy](Self::retry), while other keys go on, and what is behind it waits. That is
    /// bounded: by the tries of the policy, by 15 minutes of pauses in all, and by the
    /// [prefetch](Self::prefetch) of the partition, for once it is full of what waits, other keys
    /// of that partition wait too. When the event is given up it is dead-lettered, and those of its
    /// key follow it until it is [drained](super::EventBus::drain_key), or
    /// [go on](Self::key_failure) without it. Each partition has dead letters of its own.
    ///
    /// After a lost connection handlers at work are given up at their await, because another
    /// instance may work on their keys already. Another number of partitions is refused while the
    /// exchange of the old number is there. Durable subscriptions only; see the guide,
    /// `docs/events.md`, on where order ends. Default: no order.
    pub fn ordered_by_key(mut self, partitions: u32) -> Self {
        self.partitions = Some(partitions);
        self
    }

    /// What becomes of a key whose event is given up. Default: [`KeyFailure::BlockKey`]. Only for
    /// subscriptions that are [ordered by key](Self::ordered_by_key), and the same in every instance.
    pub fn key_failure(mut self, policy: KeyFailure) -> Self {
        self.key_failure = policy;
        self
    }

    /// How many events are handled at once. Default: 16.
    pub fn concurrency(mut self, events: usize) -> Self {
        self.settings.concurrency = events;
        self
    }

    /// How many events are taken in advance, those at work included; of each partition, where there
    /// are some. Default: three times the
    /// concurrency, at most 1,000.
    pub fn prefetch(mut self, events: u16) -> Self {
        self.settings.prefetch = Some(events);
        self
    }

    /// How long a handler may take with one event. When the time is over the handler is given up at
    /// its await, its [`Context::cancellation`] tells what it started elsewhere, and the event has
    /// failed with the class [`DeadlineExceeded`](crate::ErrorClass::DeadlineExceeded) and the code
    /// [`HANDLER_TIMEOUT`](crate::codes::HANDLER_TIMEOUT). A handler that holds its thread cannot be
    /// given up. Default: as long as it takes, though RabbitMQ itself takes a message back after its
    /// consumer timeout, 30 minutes unless it is set otherwise.
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.settings.handler_timeout = Some(limit);
        self
    }

    /// What people call it.
    pub(crate) fn name(&self) -> String {
        match &self.kind {
            Kind::Durable { service, name } => format!("{service}.{name}"),
            Kind::Ephemeral { name } => name.clone(),
        }
    }

    /// When failed events are tried again. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// How many failed deliveries the broker itself allows, for events that kill their process. It
    /// is above what the retry policy uses, and the same in every instance. Default: 20. Durable
    /// subscriptions only.
    pub fn delivery_limit(mut self, failures: u32) -> Self {
        self.delivery_limit = failures;
        self
    }

    /// What becomes of events that no handler takes. Default: they are dropped.
    pub fn unknown_events(mut self, policy: UnknownEvents) -> Self {
        self.unknown = policy;
        self
    }

    /// How large bodies may be. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (service, name) = match &self.kind {
            Kind::Durable { service, name } => (Some(service), name),
            Kind::Ephemeral { name } => (None, name),
        };
        let keys: Vec<_> = self.handlers.iter().map(|handler| &handler.key).collect();
        f.debug_struct("Subscription")
            .field("service", &service)
            .field("name", name)
            .field("events", &keys)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
