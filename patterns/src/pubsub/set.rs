use postrider_core::Envelope;

use super::{Event, RawEvent, bus::Inner};
use crate::{codec::CodecError, error::PublishError, handler::Context, publishing::MessageId};

/// An enum of events: one handler for a family of them, whose `match` the compiler keeps complete.
///
/// On the wire there is only the variant, under its own type and version: whoever subscribes to a
/// single type understands what was published from an enum, and the other way round.
///
/// # Example: what happens to an order
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use postrider_core::Transport;
/// use postrider_patterns::{
///     CodecError, Event, EventBus, EventSet, EventVariant, RawEvent, Subscription,
/// };
/// use postrider_transport_inmemory::InMemory;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Created { order: u64 }
/// impl Event for Created { const TYPE: &'static str = "order.created"; }
///
/// #[derive(Serialize, Deserialize)]
/// struct Paid { order: u64, cents: u64 }
/// impl Event for Paid { const TYPE: &'static str = "order.paid"; }
///
/// enum OrderEvent { Created(Created), Paid(Paid) }
///
/// impl EventSet for OrderEvent {
///     const TYPES: &'static [&'static str] = &[Created::TYPE, Paid::TYPE];
///
///     fn decode(event: &RawEvent) -> Result<Option<Self>, CodecError> {
///         Ok(match event.event_type() {
///             Created::TYPE => Some(Self::Created(event.data()?)),
///             Paid::TYPE => Some(Self::Paid(event.data()?)),
///             _ => None,
///         })
///     }
///
///     fn variant(&self) -> EventVariant<'_> {
///         match self {
///             Self::Created(event) => EventVariant::of(event),
///             Self::Paid(event) => EventVariant::of(event),
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
/// let bus = EventBus::new(&transport).await?;
/// let (seen, mut told) = tokio::sync::mpsc::channel(8);
/// let ledger = Subscription::durable("ledger", "orders").on_any(move |event, _context| {
///     let seen = seen.clone();
///     async move {
///         Ok(seen.send(match event {
///             OrderEvent::Created(Created { order }) => format!("{order} created"),
///             OrderEvent::Paid(Paid { order, cents }) => format!("{order} paid {cents}"),
///         }).await?)
///     }
/// });
/// let running = bus.subscribe(ledger).await?;
/// bus.publish_any(&OrderEvent::Paid(Paid { order: 7, cents: 1177 })).await?;
/// assert_eq!(told.recv().await.as_deref(), Some("7 paid 1177"));
/// bus.publish(&Created { order: 8 }).await?;
/// assert_eq!(told.recv().await.as_deref(), Some("8 created"));
/// running.stop(Duration::from_secs(5)).await;
/// # Ok(())
/// # }
/// ```
pub trait EventSet: Sized + Send + Sync + 'static {
    /// The types of its variants.
    const TYPES: &'static [&'static str];

    /// The variant that an event is; `None` for a type that is not among [`TYPES`](Self::TYPES).
    /// An event of such a type that this says `None` to is dead-lettered.
    ///
    /// # Errors
    ///
    /// [`CodecError`] when its data is not the variant's.
    fn decode(event: &RawEvent) -> Result<Option<Self>, CodecError>;

    /// What is published: the event within.
    fn variant(&self) -> EventVariant<'_>;
}

/// The event within a value of an [`EventSet`].
#[derive(Clone, Copy)]
#[must_use = "it is what EventSet::variant gives back"]
pub struct EventVariant<'a>(&'a dyn Outgoing);

impl<'a> EventVariant<'a> {
    /// This event.
    pub fn of<E: Event>(event: &'a E) -> Self {
        Self(event)
    }

    pub(super) fn event_type(self) -> &'static str {
        self.0.event_type()
    }

    pub(super) fn envelope(
        self,
        bus: &Inner,
        cause: Option<&Context>,
    ) -> Result<(MessageId, Envelope), PublishError> {
        self.0.envelope(bus, cause)
    }
}

impl std::fmt::Debug for EventVariant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EventVariant").field(&self.event_type()).finish()
    }
}

/// An event whose type only the value knows.
trait Outgoing: Send + Sync {
    fn event_type(&self) -> &'static str;

    fn envelope(
        &self,
        bus: &Inner,
        cause: Option<&Context>,
    ) -> Result<(MessageId, Envelope), PublishError>;
}

impl<E: Event> Outgoing for E {
    fn event_type(&self) -> &'static str {
        E::TYPE
    }

    fn envelope(
        &self,
        bus: &Inner,
        cause: Option<&Context>,
    ) -> Result<(MessageId, Envelope), PublishError> {
        bus.envelope(self, cause)
    }
}
