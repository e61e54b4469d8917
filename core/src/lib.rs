//! The contract between Postrider's patterns and its brokers.
//!
//! A [`Transport`] is a connection to one broker. It declares a [`Topology`], opens a
//! [`Publisher`] and a [`Consumer`], and tells by [`Capabilities`] what its broker can do. Patterns
//! are written against these traits; a transport crate implements them. Nothing here knows a
//! broker, a codec or a pattern.
//!
//! # Example: publish, receive and settle
//!
//! ```
//! use postrider_core::{Address, ConsumerOptions, Envelope, Error, Message, Queue, Topology};
//! use postrider_core::{PublisherExt, PublisherOptions, Transport};
//!
//! async fn greet(transport: &dyn Transport) -> Result<(), Error> {
//!     transport.declare(&Topology::new().queue(Queue::durable("greetings"))).await?;
//!
//!     let publisher = transport.publisher(PublisherOptions::default()).await?;
//!     let hello = Message::new("hello").with_content_type("text/plain");
//!     publisher.publish(Envelope::new(Address::queue("greetings"), hello)).await?;
//!
//!     let mut consumer = transport.consumer("greetings", ConsumerOptions::default()).await?;
//!     while let Some(delivery) = consumer.recv().await {
//!         let delivery = delivery?;
//!         println!("{:?}", delivery.message().body);
//!         delivery.ack();
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Delivery guarantee
//!
//! Delivery is at least once. A publish is known to be stored when its [`Confirm`] says
//! [`Verdict::Accepted`]; a message leaves its queue when its delivery is acknowledged, and not
//! before. After a lost connection, unsettled messages come again.

mod address;
mod capabilities;
mod confirm;
mod consumer;
mod delivery;
mod env;
mod error;
mod event;
mod headers;
mod message;
mod name;
mod publisher;
mod replies;
mod topology;
mod transport;

pub use address::{Address, Envelope};
pub use capabilities::{Capabilities, Delay, ReplyMode};
pub use confirm::{Confirm, ConfirmSender, Verdict};
pub use consumer::{Consumer, ConsumerOptions, StreamStart};
pub use delivery::{Delivery, DeliveryInfo, Settlement, SettlementSink};
pub use env::Env;
pub use error::{Error, ErrorKind, Result};
pub use event::{ConnectionState, ConsumerHealth, EventSender, Health, TransportEvent};
pub use headers::{CAUSATION_ID_HEADER, DEADLINE_HEADER, HeaderValue, Headers, KEY_HEADER};
pub use message::{MAX_HEADER_BYTES, MAX_HEADER_LEVELS, Message};
pub use name::{MAX_NAME_BYTES, check_declared_name, check_name, is_reserved_name};
pub use publisher::{Publisher, PublisherExt, PublisherOptions};
pub use replies::{Replies, ReplyAddress, ReplyAddressSender, ReplyOptions};
pub use topology::{
    Action, Binding, DeadLetter, Difference, Entity, Exchange, ExchangeKind, Overflow, Plan, Queue,
    QueueInfo, QueueKind, RetryDelay, Step, Target, Topology,
};
pub use transport::Transport;
