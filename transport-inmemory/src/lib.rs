//! A real broker inside the process, for development and tests.
//!
//! It has exchanges, bindings and queues, confirms and unroutable messages, prefetch and
//! competing consumers, times to live, priorities, dead letters and delivery limits, and it refuses
//! what RabbitMQ 4.3 refuses. A program that works on it works on RabbitMQ by another URL.
//!
//! # Example: two services on one broker
//!
//! ```
//! use postrider_core::{Address, ConsumerOptions, Envelope, Message, Queue, Topology};
//! use postrider_core::{PublisherExt, PublisherOptions, Transport};
//! use postrider_transport_inmemory::InMemory;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), postrider_core::Error> {
//! let shop = InMemory::connect("memory://shop")?;
//! let warehouse = InMemory::connect("memory://shop")?;
//!
//! warehouse.declare(&Topology::new().queue(Queue::durable("orders"))).await?;
//! let mut orders = warehouse.consumer("orders", ConsumerOptions::default()).await?;
//!
//! let publisher = shop.publisher(PublisherOptions::default()).await?;
//! publisher.publish(Envelope::new(Address::queue("orders"), Message::new("3 CDs"))).await?;
//!
//! let order = orders.recv().await.expect("the consumer goes on")?;
//! assert_eq!(order.message().body, "3 CDs");
//! order.ack();
//! # Ok(()) }
//! ```
//!
//! # Time
//!
//! The broker keeps time by tokio's clock, so a test on a paused clock runs hours of expiry, delay
//! and backoff in milliseconds.
//!
//! # Faults
//!
//! [`InMemory::drop_connection`] loses and restores a connection. The [`Broker`] behind it can
//! [raise an alarm](Broker::raise_alarm), [hold confirms back](Broker::hold_confirms), and be
//! [stopped](Broker::stop) and [started](Broker::start).
//!
//! # What it does not have
//!
//! Stream queues, and messages that outlive the process.

mod broker;
mod connection;
mod consumer;
mod death;
mod flow;
mod matching;
mod publisher;
mod queue;
mod record;
mod registry;
mod roster;
mod rules;
mod stage;
mod timer;
mod topology;
mod transport;

pub use broker::Broker;
pub use transport::InMemory;
