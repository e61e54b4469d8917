//! Message routing: the Enterprise Integration Patterns by their names.
//!
//! | pattern | by |
//! |---|---|
//! | content-based router, recipient list, fan-out, message filter, wire tap | [`Router`] |
//! | dynamic router | [`Router::controlled`], [`ChangeRules`] |
//! | splitter, aggregator | [`Splitter`], [`Aggregator`] |
//! | fan-in | an [`Intake`] of several queues |
//! | partitions | [`Partitioner`], [`Route::partition`] |
//!
//! Each takes messages from the queues of its [`Intake`], sends others, and acknowledges what it
//! took when the broker has all that it sent. So nothing is lost, and after a failure in between
//! some may be sent twice, with the same ids. What cannot be sent on is tried again by the retry
//! policy and then dead-lettered. Where the broker itself can route, by key or by headers
//! ([`Exchange::topic`](postrider_core::Exchange::topic),
//! [`Exchange::headers`](postrider_core::Exchange::headers)), that is cheaper than a router.
//!
//! # Example: large orders go to one queue, the rest to another
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postrider_core::{
//!     Address, ConsumerOptions, Envelope, Message, PublisherExt, PublisherOptions, Queue, Topology,
//!     Transport,
//! };
//! use postrider_patterns::routing::{Condition, Field, Otherwise, Route, Router, Rule};
//! use postrider_transport_inmemory::InMemory;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let queues = Topology::new().queue(Queue::durable("large")).queue(Queue::durable("small"));
//! transport.declare(&queues).await?;
//!
//! let large = Condition::at_least(Field::body("order.total"), 100);
//! let router = Router::new("orders")
//!     .rule(Rule::new("large", large, [Route::queue("large")]))
//!     .otherwise(Otherwise::Send(vec![Route::queue("small")]))
//!     .start(&transport)
//!     .await?;
//!
//! let order = Message::new(r#"{"order":{"total":117}}"#).with_content_type("application/json");
//! let publisher = transport.publisher(PublisherOptions::default()).await?;
//! publisher.publish(Envelope::new(Address::queue("orders"), order)).await?;
//! let mut consumer = transport.consumer("large", ConsumerOptions::default()).await?;
//! consumer.recv().await.ok_or("the consumer ended")??.ack();
//! router.stop(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

mod aggregating;
mod aggregator;
mod change;
mod condition;
mod control;
mod copies;
mod field;
mod flow;
mod forwarding;
mod groups;
mod inbound;
mod intake;
mod partition;
mod past;
mod route;
mod router;
mod seen;
mod splitter;
mod table;
mod tap;
mod value;

pub use aggregator::{Aggregator, Completion, Group, Incomplete};
pub use change::Change;
pub use condition::Condition;
pub use control::{ChangeRules, InMemoryTables, ListRules, RulesChanged, TableStore};
pub use field::Field;
pub use flow::{Flow, FlowStats};
pub use inbound::Inbound;
pub use intake::Intake;
pub use partition::Partitioner;
pub use route::Route;
pub use router::Router;
pub use splitter::Splitter;
pub use table::{Matching, Otherwise, RoutingTable, Rule};
pub use value::Value;
