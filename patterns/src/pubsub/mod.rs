//! Events: published once, handled by every subscription.
//!
//! An [`EventBus`] publishes typed events to a topic exchange, each under its type as the routing
//! key. A [`Subscription`] is a service's interest in some of them. A durable one has a queue of its
//! own that collects events while nobody is there and whose instances share the work; an ephemeral
//! one gets its own copy of each event while it is connected, and is told of each [`Gap`] it asks for. Handling is at least once; what fails
//! is retried by policy and then kept in the dead-letter queue.
//!
//! # Example: an event and its subscriber
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postrider_core::Transport;
//! use postrider_patterns::{Event, EventBus, Subscription};
//! use postrider_transport_inmemory::InMemory;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct OrderCreated { order: u64 }
//!
//! impl Event for OrderCreated {
//!     const TYPE: &'static str = "order.created";
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let bus = EventBus::new(&transport).await?;
//! let (seen, mut orders) = tokio::sync::mpsc::channel(8);
//! let running = bus
//!     .subscribe(Subscription::durable("billing", "orders").on(
//!         move |event: OrderCreated, _context| {
//!             let seen = seen.clone();
//!             async move { Ok(seen.send(event.order).await?) }
//!         },
//!     ))
//!     .await?;
//!
//! bus.publish(&OrderCreated { order: 7 }).await?;
//! assert_eq!(orders.recv().await, Some(7));
//! running.stop(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

mod bus;
mod event;
mod gap;
mod partitions;
mod pattern;
mod place;
mod set;
mod subscriber;
mod subscription;
mod wire;

pub use bus::{EventBus, EventBusBuilder};
pub use event::{Event, RawEvent};
pub use gap::Gap;
pub(crate) use pattern::matches as matches_pattern;
pub use set::{EventSet, EventVariant};
pub use subscription::{Subscription, UnknownEvents};
