//! What RabbitMQ is, whatever the protocol: for the transports that reach it, and not for users.
//!
//! # Example: what a queue is to the broker
//!
//! ```
//! use postrider_core::Queue;
//! use postrider_rabbitmq::{Argument, Version, queue_arguments};
//!
//! let newest = Version { major: 4, minor: 3 };
//! let arguments = queue_arguments(&Queue::durable("orders"), newest);
//! assert!(arguments.contains(&("x-queue-type", Argument::Text("quorum".into()))));
//! assert!(arguments.contains(&("x-delivery-limit", Argument::Number(20))));
//! ```

mod arguments;
pub mod delay;
#[cfg(feature = "tls")]
pub mod encryption;
mod record;
mod roster;
mod tls;
mod url;
mod version;

pub use arguments::{Argument, difference, exchange_arguments, queue_arguments};
pub use record::{Record, exchange_goes_by_itself, queue_goes_by_itself};
pub use roster::Roster;
pub use tls::Tls;
pub use url::{check_connection_name, lower_scheme, unescaped};
pub use version::Version;

/// The header that tells messages apart on their way over AMQP 0.9.1 where their ids do not. It is
/// taken off where they are consumed, over any protocol, and nobody else's to set.
pub const PUBLISH_ID_HEADER: &str = "postrider-publish-id";
