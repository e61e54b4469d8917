//! Messaging patterns for microservices, over any broker.
//!
//! Requests and replies, events, work queues and streams of large payloads are written once. The broker under them is the URL
//! that is given to [`connect`].
//!
//! # Example: a service, and a call to it
//!
//! ```
//! use postrider::{Context, HandlerError, Request, RpcClient, RpcServer};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Greet { name: String }
//!
//! impl Request for Greet {
//!     const METHOD: &'static str = "greet";
//!     type Reply = String;
//! }
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport = postrider::connect("memory://hello").await?;
//! let _server = RpcServer::new("greeter")
//!     .method(|greet: Greet, _: Context| async move { Ok(format!("Hello, {}!", greet.name)) })
//!     .start(&transport)
//!     .await?;
//!
//! let client = RpcClient::new(&transport).await?;
//! let greeting = client.call("greeter", &Greet { name: "Ada".into() }).await?;
//! assert_eq!(greeting, "Hello, Ada!");
//! # Ok(()) }
//! ```
//!
//! # Features
//!
//! | feature | URL | broker |
//! |---|---|---|
//! | `inmemory` (default) | `memory://name` | one inside the process |
//! | `amqp091` | `amqp://user:password@host/vhost` | RabbitMQ over AMQP 0.9.1 |
//! | `amqp10` | `amqp10://user:password@host/vhost` | RabbitMQ 4 and others over AMQP 1.0 |
//! | `tls` with these | `amqps://…`, `amqp10s://…` | the same, encrypted |
//!
//! `metrics` adds the middleware `Measure`, and `admin` the HTTP endpoint of a [`Service`].
//!
//! A program can also depend on `postrider-patterns` and one transport crate, without this one.

mod connect;

/// The README's program, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The guide to calls, compiled and run.
#[cfg(all(doctest, feature = "inmemory"))]
#[doc = include_str!("../../docs/calls.md")]
struct CallsGuide;

/// The guide's programs, compiled.
#[cfg(all(doctest, feature = "amqp091"))]
#[doc = include_str!("../../docs/rabbitmq.md")]
struct RabbitMqGuide;

/// The guide to streams, whose programs are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/streams.md")]
struct StreamsGuide;

/// The guide to retries and dead letters, whose programs are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/dead_letters.md")]
struct DeadLettersGuide;

/// The guide to work queues, whose programs are compiled.
#[cfg(all(doctest, feature = "inmemory"))]
#[doc = include_str!("../../docs/work_queue.md")]
struct WorkQueueGuide;
/// The guide to middleware, whose programs are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/middleware.md")]
struct MiddlewareGuide;

/// The guide to routing, whose programs are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/routing.md")]
struct RoutingGuide;

/// The guide to the host of a service, whose programs are compiled.
#[cfg(all(doctest, feature = "inmemory", feature = "admin"))]
#[doc = include_str!("../../docs/service.md")]
struct ServiceGuide;

/// The guide to discovery, whose programs are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/discovery.md")]
struct DiscoveryGuide;

#[cfg(feature = "amqp10")]
pub use postrider_transport_amqp10 as amqp10;
#[cfg(feature = "amqp091")]
pub use postrider_transport_amqp091 as amqp091;
#[cfg(feature = "inmemory")]
pub use postrider_transport_inmemory as inmemory;

pub use self::connect::{connect, schemes};
pub use postrider_core as core;
pub use postrider_core::{
    Address, Binding, Capabilities, Confirm, Consumer, ConsumerOptions, DeadLetter, Delivery, Env,
    Envelope, Error, ErrorKind, Exchange, HeaderValue, Headers, Message, Plan, Publisher,
    PublisherExt, PublisherOptions, Queue, Replies, ReplyAddress, ReplyMode, ReplyOptions, Result,
    StreamStart, Topology, Transport, TransportEvent, Verdict,
};
pub use postrider_patterns::*;
