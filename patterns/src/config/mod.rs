//! Configuration over the broker: typed values, published to a service and in force at once.
//!
//! A [`ConfigPublisher`] publishes a setting of a service; each instance of the service holds a
//! [`Config`] of it.
//!
//! - **The last value is kept by the broker**, in a queue that has room for one, and a newcomer
//!   looks at it. The same publish goes to the keeper and to every instance.
//! - **Versions grow by one**, and what is older than what was seen is refused. Publishers take
//!   turns, so [`publish_if`](ConfigPublisher::publish_if) compares and sets.
//! - **A value is replaced as a whole**, through a [`watch`](tokio::sync::watch).
//! - **What cannot be read or does not pass a check is rejected**, with a reason that the publisher
//!   reads in [`reports`](ConfigPublisher::reports); the old value stays in force.
//!
//! Two publishes get the same version only where a publisher loses its connection, or stands still
//! for half a minute, in the midst of one. All instances take the same of the two then, and the
//! next publish is above both. Secrets do not belong here: who may read from the exchange reads
//! them.
//!
//! # Example: a limit that is changed, and one that makes no sense
//!
//! ```
//! use std::sync::Arc;
//! use postrider_core::Transport;
//! use postrider_patterns::config::{Config, ConfigPublisher};
//! use postrider_transport_inmemory::InMemory;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Pricing {
//!     discount_percent: u8,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let publisher = ConfigPublisher::new(&transport, "orders", "pricing").await?;
//! publisher.publish(&Pricing { discount_percent: 10 }).await?;
//!
//! // An instance that starts later.
//! let pricing = Config::builder("orders", "pricing")
//!     .check(|pricing: &Pricing| match pricing.discount_percent {
//!         0..=50 => Ok(()),
//!         percent => Err(format!("nobody gives {percent} percent")),
//!     })
//!     .instance("orders-1")
//!     .start(&transport)
//!     .await?;
//! let in_force = || pricing.current().map(|it| (it.version, it.value.discount_percent));
//! assert_eq!(in_force(), Some((1, 10)));
//!
//! let mut reports = publisher.reports();
//! publisher.publish(&Pricing { discount_percent: 90 }).await?;
//! let reports = reports.wait_for(|reports| {
//!     reports.get("orders-1").is_some_and(|report| report.rejected.is_some())
//! });
//! let report = reports.await?["orders-1"].clone();
//! assert_eq!(report.version, Some(1));
//! assert_eq!(report.rejected.map(|it| it.reason).as_deref(), Some("nobody gives 90 percent"));
//! assert_eq!(in_force(), Some((1, 10)));
//! # Ok(())
//! # }
//! ```

mod applying;
mod board;
mod error;
mod following;
mod keeper;
mod publisher;
mod reader;
mod report;
mod turn;
mod wire;

pub use error::ConfigError;
pub use publisher::ConfigPublisher;
pub use reader::{Config, ConfigBuilder, ConfigStats};
pub use report::{ConfigReport, Rejection, Versioned};
