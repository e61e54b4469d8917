//! RabbitMQ 4 over AMQP 1.0, and other brokers that speak it, on fe2o3-amqp.
//!
//! # Example: publish and consume
//!
//! ```no_run
//! use postrider_core::{Address, ConsumerOptions, Envelope, Message, Queue, Topology};
//! use postrider_core::{PublisherExt, PublisherOptions, Transport};
//! use postrider_transport_amqp10::Amqp10;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), postrider_core::Error> {
//! let shop = Amqp10::connect("amqp10://guest:guest@localhost").await?;
//! shop.declare(&Topology::new().queue(Queue::durable("orders"))).await?;
//! let mut orders = shop.consumer("orders", ConsumerOptions::default()).await?;
//!
//! let publisher = shop.publisher(PublisherOptions::default()).await?;
//! publisher.publish(Envelope::new(Address::queue("orders"), Message::new("3 CDs"))).await?;
//!
//! let order = orders.recv().await.expect("the consumer goes on")?;
//! assert_eq!(order.message().body, "3 CDs");
//! order.ack();
//! # Ok(()) }
//! ```

mod address;
mod admin;
mod clock;
mod connection;
mod consumer;
mod dial;
mod dialect;
#[cfg_attr(not(feature = "tls"), path = "no_encryption.rs")]
mod encryption;
mod error;
mod frames;
mod ladder;
mod lanes;
mod ledger;
mod link;
mod management;
mod message;
mod observed;
mod options;
mod own_queues;
mod owner;
mod pipeline;
mod profile;
mod provisioned;
mod publisher;
mod replies;
mod restoring;
mod sasl;
mod sections;
mod sessions;
mod stay;
mod supervisor;
mod transport;
mod uri;
mod wire;

/// The guide's programs, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/amqp10.md")]
struct Guide;

pub use options::Options;
pub use postrider_rabbitmq::Tls;
pub use profile::{Broker, Profile};
pub use transport::Amqp10;
