//! RabbitMQ over AMQP 0.9.1, on lapin.
//!
//! # Example: publish and consume
//!
//! ```no_run
//! use postrider_core::{Address, ConsumerOptions, Envelope, Message, Queue, Topology};
//! use postrider_core::{PublisherExt, PublisherOptions, Transport};
//! use postrider_transport_amqp091::Amqp091;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), postrider_core::Error> {
//! let shop = Amqp091::connect("amqp://guest:guest@localhost").await?;
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
//!
//! # Verdicts
//!
//! Every publish is mandatory and confirmed, and each verdict belongs to its own message. A message
//! without an id of its own, or whose id is under way already, travels with the header
//! `postrider-publish-id`, which is taken off where Postrider consumes it.
//!
//! # Delays
//!
//! A delay is a queue `postrider.delay.…` with that time to live, whose dead letters go to the
//! address; delays are rounded up to at most 1/32 more. A message cannot have both a
//! delay and a time to live. A delayed retry is a copy of the message in such a queue, sent to its
//! own queue again with what it went through in the headers `postrider-attempt` and
//! `postrider-failures`; the original is acknowledged when the copy is stored. The delivery limit of
//! a queue holds for such retries where this connection declared the queue.
//!
//! A queue with a [retry delay](postrider_core::Queue::with_retry_delay) of its own delays failures
//! itself on RabbitMQ 4.3 and later (there it is called delayed retry), without a copy and for
//! crashes too. On older brokers the retries of a connection that declared the queue go by the
//! delay queues above. The protocol cannot name a delay for one message, so a retry that does is
//! a copy on every version.
//!
//! # Consumers
//!
//! On a quorum queue there are no exclusive consumers; declare a single active consumer. Whoever
//! consumes such a queue should declare it on the same connection: then a consumer that is dropped
//! keeps its place until all it handed out is settled, and the next goes on in order.
//!
//! # Streams
//!
//! A [stream queue](postrider_core::Queue::stream) is read from the position that
//! [`ConsumerOptions::start`](postrider_core::ConsumerOptions::start) names. After a loss its
//! consumer reads on from the first message that was not settled, where it named a start or the same
//! connection declared the stream; a consumer of
//! [`StreamStart::Next`](postrider_core::StreamStart::Next) that had no delivery yet begins anew.
//!
//! # Encryption
//!
//! `amqps://` needs the crate feature `tls`, which is rustls on ring. It trusts the authorities of
//! the platform, and those that [`Options::with_tls`] adds; the certificate must be for the host of
//! the URL. With [`Tls::with_identity`] it shows a client certificate. A broker that has the plugin
//! `rabbitmq_auth_mechanism_ssl` and the mechanism `EXTERNAL` takes that for the password when the
//! URL ends in `?auth_mechanism=external`; the user is the one that the certificate names.
//!
//! # Recovery
//!
//! When a connection is lost, both are made anew, with capped and jittered pauses. What goes with a
//! connection is declared again (exclusive and auto-delete queues, auto-delete exchanges, and their
//! bindings); what is durable is not, so that what somebody deleted stays deleted.

mod admin;
mod arguments;
mod clock;
mod consumer;
mod delivered;
mod dial;
#[cfg_attr(not(feature = "tls"), path = "no_encryption.rs")]
mod encryption;
mod error;
mod exchanges;
mod flight;
mod ladder;
mod ledger;
mod link;
mod options;
mod owner;
mod pipeline;
mod properties;
mod publisher;
mod session;
mod stay;
mod supervisor;
mod transport;
mod uri;
mod version;

pub use options::Options;
pub use postrider_rabbitmq::Tls;
pub use transport::Amqp091;
