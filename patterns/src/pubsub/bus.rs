use std::{future, sync::Arc};

use postrider_core::{
    Address, Capabilities, Envelope, Exchange, Message, Publisher, PublisherExt, PublisherOptions,
    Result, Topology, Transport,
};
use tokio_util::sync::CancellationToken;

use super::{
    Event, EventSet, EventVariant, Subscription,
    gap::{self, GapHandler},
    partitions,
    place::{self, Place},
    subscriber::Subscriber,
    wire::{self, EventBody, Metadata},
};
use crate::{
    codec::{Codec, Limits},
    consuming::{Counters, Order, Outline, Parking, Runner, Running, drain},
    dead_letters::DeadLetters,
    error::PublishError,
    handler::Context,
    headers,
    middleware::{PublisherMiddleware, around_publisher},
    naming::Naming,
    publishing::{MessageId, publish_each, stored_or_unwanted},
    resilience::{By, Keeper, Retrying},
    wire_time,
};

/// Publishes events and opens subscriptions. Cloning shares it.
#[derive(Debug, Clone)]
pub struct EventBus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    transport: Arc<dyn Transport>,
    /// With its middleware.
    publisher: Arc<dyn Publisher>,
    /// Without, for dead letters.
    bare_publisher: Arc<dyn Publisher>,
    exchange: String,
    naming: Naming,
    codec: Codec,
    limits: Limits,
    source: Option<String>,
}

impl EventBus {
    /// A bus with the defaults of [`EventBusBuilder`]. Cancellation safe, as
    /// [`EventBusBuilder::connect`].
    ///
    /// # Errors
    ///
    /// As [`EventBusBuilder::connect`].
    pub async fn new(transport: &Arc<dyn Transport>) -> Result<Self> {
        Self::builder(transport).connect().await
    }

    /// A bus to be set up.
    pub fn builder(transport: &Arc<dyn Transport>) -> EventBusBuilder {
        EventBusBuilder {
            transport: Arc::clone(transport),
            naming: Naming::default(),
            codec: Codec::default(),
            limits: Limits::default(),
            source: None,
            layers: Vec::new(),
        }
    }

    /// Publishes an event and waits until every subscription's queue has it. That nobody
    /// subscribed is no error.
    ///
    /// Not cancellation safe: when the future is dropped, the event may have been published.
    ///
    /// # Errors
    ///
    /// [`PublishError`]. After [`ErrorKind::Unknown`](postrider_core::ErrorKind::Unknown) it may be
    /// published all the same.
    pub async fn publish<E: Event>(&self, event: &E) -> Result<MessageId, PublishError> {
        self.publish_one(EventVariant::of(event), None).await
    }

    /// Publishes an event that the message of `context` caused: its causation id is that message's
    /// id, its correlation id that message's conversation. Else as [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_from<E: Event>(
        &self,
        context: &Context,
        event: &E,
    ) -> Result<MessageId, PublishError> {
        self.publish_one(EventVariant::of(event), Some(context)).await
    }

    /// Publishes the event within a value of an enum, under its own type. Else as
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_any<S: EventSet>(&self, event: &S) -> Result<MessageId, PublishError> {
        self.publish_one(event.variant(), None).await
    }

    /// Publishes the event within a value of an enum, caused by the message of `context`. Else as
    /// [`publish_from`](Self::publish_from).
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_any_from<S: EventSet>(
        &self,
        context: &Context,
        event: &S,
    ) -> Result<MessageId, PublishError> {
        self.publish_one(event.variant(), Some(context)).await
    }

    async fn publish_one(
        &self,
        event: EventVariant<'_>,
        cause: Option<&Context>,
    ) -> Result<MessageId, PublishError> {
        let (id, envelope) = event.envelope(&self.inner, cause)?;
        let verdict = self.inner.publisher.send(envelope).await?.await;
        stored_or_unwanted(verdict)
            .map_err(|error| error.with_context("event", event.event_type()))
            .map_err(PublishError::from)?;
        Ok(id)
    }

    /// Publishes events in their order, many at a time, and waits for all of them.
    ///
    /// Not cancellation safe: when the future is dropped, some may have been published.
    ///
    /// # Errors
    ///
    /// The first failure, after which no further event is sent; those before it are published.
    pub async fn publish_all<'a, E: Event>(
        &self,
        events: impl IntoIterator<Item = &'a E, IntoIter: Send>,
    ) -> Result<Vec<MessageId>, PublishError> {
        let mut ids = Vec::new();
        let envelopes = events.into_iter().map(|event| {
            let (id, envelope) = self.inner.envelope(event, None)?;
            ids.push(id);
            Ok(envelope)
        });
        publish_each(&*self.inner.publisher, envelopes, stored_or_unwanted).await?;
        Ok(ids)
    }

    pub(crate) fn outline(
        &self,
        subscription: &Subscription,
        capabilities: &Capabilities,
    ) -> Result<Outline> {
        place::outline(subscription, &self.inner.naming, capabilities)
    }

    /// Has the dead letters of a key handled, of a subscription that is
    /// [ordered by key](Subscription::ordered_by_key): in their order, by the instance that has the
    /// partition of the key. When all of them are done, the key goes on; when one fails again, it
    /// and those behind it stay. It is done when the broker has the order to do so, which waits in
    /// the partition behind what is there, and is carried out at least once.
    ///
    /// Not cancellation safe: when the future is dropped, the order may have been given.
    ///
    /// # Errors
    ///
    /// [`PublishError`]; [`ErrorKind::Unroutable`](postrider_core::ErrorKind::Unroutable) or
    /// [`ErrorKind::NotFound`](postrider_core::ErrorKind::NotFound) where there is no such
    /// subscription.
    pub async fn drain_key(
        &self,
        service: &str,
        subscription: &str,
        key: &str,
    ) -> Result<(), PublishError> {
        let exchange = self.inner.naming.durable_subscription_queue(service, subscription);
        // Events of plain clients have no slot and are in the partition for those.
        let of_plain = drain(key);
        let mut of_slot = of_plain.clone();
        of_slot.headers.set(headers::KEY_SLOT, partitions::slot(key));
        for order in [of_slot, of_plain] {
            let order = Envelope::new(Address::exchange(exchange.clone(), ""), order);
            self.inner.bare_publisher.publish(order).await?;
        }
        Ok(())
    }

    /// Declares what a subscription needs and begins to handle its events.
    ///
    /// Not cancellation safe: when the future is dropped, nothing is handled, but the queue may have
    /// been declared and collect events: a durable one until somebody subscribes again or deletes
    /// it, an ephemeral one until the connection ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a subscription without handlers, a type that is a pattern, a
    /// middleware that stands twice where it [must not](crate::Middleware::held), or options out of
    /// range, [`ErrorKind::Unsupported`] for a retry policy that the broker cannot
    /// carry out, [`ErrorKind::Mismatch`] when the queue exists with another delivery limit, and
    /// what [`Transport::declare`] and [`Transport::consumer`] fail with.
    ///
    /// [`ErrorKind::Invalid`]: postrider_core::ErrorKind::Invalid
    /// [`ErrorKind::Unsupported`]: postrider_core::ErrorKind::Unsupported
    /// [`ErrorKind::Mismatch`]: postrider_core::ErrorKind::Mismatch
    pub async fn subscribe(&self, subscription: Subscription) -> Result<Running> {
        self.inner.subscribe(subscription).await
    }
}

impl Inner {
    pub(super) fn envelope<E: Event>(
        &self,
        event: &E,
        cause: Option<&Context>,
    ) -> Result<(MessageId, Envelope), PublishError> {
        let env = self.transport.env();
        let (id, now) = (env.new_id().to_string(), env.timestamp());
        let mut message = Message::new("")
            .with_content_type(self.codec.content_type())
            .with_message_id(id.clone())
            .with_type(E::TYPE)
            .with_timestamp(now);
        match cause {
            Some(context) => context.mark_caused(&mut message),
            // An event that nothing caused begins a conversation.
            None => message.correlation_id = Some(id.clone().into()),
        }
        let aggregate_id = event.aggregate_id();
        message.body = wire::encode(
            self.codec,
            self.limits,
            &EventBody {
                event_id: &id,
                event_type: E::TYPE,
                aggregate_id: aggregate_id.as_deref(),
                data: event,
                timestamp: &wire_time::text(now),
                version: E::VERSION,
                metadata: Metadata {
                    source: self.source.as_deref(),
                    correlation_id: message.correlation_id.as_deref(),
                    causation_id: message.causation_id.as_deref(),
                },
            },
        )?;
        if let Some(key) = aggregate_id {
            message.headers.set(headers::KEY_SLOT, partitions::slot(&key));
            message.key = Some(key.into_owned().into());
        }
        let address = Address::exchange(self.exchange.clone(), E::TYPE);
        Ok((MessageId::new(id), Envelope::new(address, message)))
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Running> {
        place::check(&subscription, self.transport.capabilities())?;
        let env = self.transport.env();
        let place = Place::of(&subscription, &self.naming, || env.new_id().to_string())?;
        let topology = place.topology(&subscription, &self.naming);
        let Place { queue, parked_as, by, partitions } = place;
        if let Some(partitions) = &partitions {
            partitions.check(&*self.transport).await?;
        }
        // Before there is anything to lose.
        let events = (by == By::Process).then(|| self.transport.events());
        self.transport.declare(&topology).await?;
        let gaps = events.map(|events| {
            let (stop, env) = (CancellationToken::new(), env.clone());
            let handler = subscription.on_gap.unwrap_or_else(|| logged(parked_as.clone()));
            tokio::spawn(gap::tell(events, env, handler, stop.clone()));
            stop.drop_guard()
        });
        let (key_failure, delivery_limit) = (subscription.key_failure, subscription.delivery_limit);
        let mut settings = subscription.settings;
        if by == By::Broker {
            let capabilities = self.transport.capabilities();
            settings.most_failures = subscription.retry.most_failures(capabilities);
        }
        let counters = Arc::new(Counters::default());
        let runner = Runner {
            keeper: Keeper::new(
                &self.transport,
                Arc::clone(&self.bare_publisher),
                &self.naming,
                &parked_as,
            ),
            settings,
            counters: Arc::clone(&counters),
            process: Subscriber {
                handlers: subscription.handlers,
                unknown: subscription.unknown,
                limits: subscription.limits,
                layers: subscription.layers,
                retrying: Retrying::new(
                    subscription.retry,
                    env.clone(),
                    by,
                    subscription.settings.handler_timeout,
                ),
                env: env.clone(),
                counters,
                _gaps: gaps,
            },
        };
        let Some(partitions) = partitions else {
            return runner.start(&self.transport, &queue).await;
        };
        runner.settings.check()?;
        let losses = self.transport.events();
        let consumer = partitions.consumer(&*self.transport, runner.settings).await?;
        let limits = runner.process.limits;
        let parking = |queue: &String| {
            let letters = DeadLetters::of(&self.transport, queue.clone());
            let publisher = Arc::clone(&self.bare_publisher);
            let keeper = Keeper::new(&self.transport, publisher, &self.naming, queue);
            let letters = letters.with_naming(self.naming.clone());
            let parking = Parking::new(letters, keeper, key_failure, delivery_limit);
            (queue.clone(), Arc::new(parking))
        };
        let order = Order {
            key: Box::new(move |envelope| partitions::key_of(envelope, limits)),
            partitions: partitions.queues().iter().map(parking).collect(),
        };
        Ok(runner.run_in_order(consumer, losses, order, &queue))
    }
}

/// What is done about gaps where nothing else was asked for.
fn logged(subscription: String) -> GapHandler {
    Arc::new(move |gap| {
        tracing::warn!(
            subscription,
            cause = gap.cause,
            "events that were published during a lost connection did not come here"
        );
        Box::pin(future::ready(Ok(())))
    })
}

/// Sets up an [`EventBus`].
#[derive(Debug, Clone)]
#[must_use = "call connect"]
pub struct EventBusBuilder {
    transport: Arc<dyn Transport>,
    naming: Naming,
    codec: Codec,
    limits: Limits,
    source: Option<String>,
    layers: Vec<Arc<dyn PublisherMiddleware>>,
}

impl EventBusBuilder {
    /// The names of exchanges and queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// The codec of published events. Default: MessagePack.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How large published bodies may be. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The service that publishes, for the metadata of its events. Default: none.
    pub fn source(mut self, service: impl Into<String>) -> Self {
        self.source = Some(service.into());
        self
    }

    /// Puts a middleware around the publisher, within those that were added before it.
    pub fn with(mut self, middleware: impl PublisherMiddleware) -> Self {
        self.layers.push(Arc::new(middleware));
        self
    }

    /// Declares the exchange of events and opens a publisher.
    ///
    /// Cancellation safe: when the future is dropped, the exchange may stay, which costs nothing.
    ///
    /// # Errors
    ///
    /// What [`Transport::declare`] and [`Transport::publisher`] fail with.
    pub async fn connect(self) -> Result<EventBus> {
        let exchange = self.naming.event_exchange();
        let topology = Topology::new().exchange(Exchange::topic(exchange.clone()));
        self.transport.declare(&topology).await?;
        let options = PublisherOptions::default();
        let bare_publisher = self.transport.publisher(options).await?;
        let within = Arc::clone(&bare_publisher);
        let publisher = around_publisher(&self.layers, within, self.transport.env());
        Ok(EventBus {
            inner: Arc::new(Inner {
                transport: self.transport,
                publisher,
                bare_publisher,
                exchange,
                naming: self.naming,
                codec: self.codec,
                limits: self.limits,
                source: self.source,
            }),
        })
    }
}
