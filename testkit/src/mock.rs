//! Mocks of the transport traits, for unit tests of code that is written against them.
//!
//! A mock says what is called and how often; what a broker does with it is the business of the
//! in-memory transport, which most tests are better off with. A mock is for what a broker does not
//! do on command, such as failing this very call.
//!
//! # Example: a service that sends one message
//!
//! ```
//! use std::sync::Arc;
//!
//! use postrider_core::{Address, Confirm, Envelope, Error, Message};
//! use postrider_core::{PublisherExt, PublisherOptions, Transport, Verdict};
//! use postrider_testkit::mock::{MockPublisher, MockTransport};
//!
//! /// The code under test: it knows no broker.
//! async fn ship(transport: &dyn Transport, order: &str) -> Result<(), Error> {
//!     let publisher = transport.publisher(PublisherOptions::default()).await?;
//!     let message = Message::new(order.to_owned()).with_type("order.shipped");
//!     publisher.publish(Envelope::new(Address::queue("shipped"), message)).await
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let mut publisher = MockPublisher::new();
//! publisher
//!     .expect_send()
//!     .once()
//!     .withf(|envelope| {
//!         envelope.address == Address::queue("shipped")
//!             && envelope.message.message_type.as_deref() == Some("order.shipped")
//!     })
//!     .returning(|_| Ok(Confirm::ready(Verdict::Accepted)));
//!
//! let publisher = Arc::new(publisher);
//! let mut transport = MockTransport::new();
//! transport.expect_publisher().once().returning(move |_| Ok(publisher.clone()));
//!
//! ship(&transport, "order 7").await.unwrap();
//! # });
//! ```
//!
//! # Example: a verdict that no broker gives on command
//!
//! ```
//! use postrider_core::{Address, Confirm, Envelope, ErrorKind, Message, PublisherExt, Verdict};
//! use postrider_testkit::mock::MockPublisher;
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let mut publisher = MockPublisher::new();
//! publisher
//!     .expect_send()
//!     .returning(|_| Ok(Confirm::ready(Verdict::Unknown("the connection was lost".into()))));
//!
//! let envelope = Envelope::new(Address::queue("shipped"), Message::new("order 7"));
//! let error = publisher.publish(envelope).await.unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::Unknown);
//! # });
//! ```

// What mockall generates cannot be given documentation or the project's style.
#![allow(missing_docs, clippy::missing_panics_doc, clippy::must_use_candidate)]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use postrider_core::{
    Capabilities, Confirm, Consumer, ConsumerOptions, Env, Envelope, Health, Plan, Publisher,
    PublisherOptions, QueueInfo, Result, Topology, Transport, TransportEvent,
};

mockall::mock! {
    /// A transport whose calls are expected one by one, by `expect_publisher()` and the like.
    #[derive(Debug)]
    pub Transport {}

    #[async_trait]
    impl Transport for Transport {
        fn url(&self) -> &str;
        fn env(&self) -> &Env;
        fn capabilities(&self) -> &Capabilities;
        async fn plan(&self, topology: &Topology) -> Result<Plan>;
        async fn declare(&self, topology: &Topology) -> Result<()>;
        async fn remove(&self, topology: &Topology) -> Result<()>;
        async fn queue_info(&self, queue: &str) -> Result<Option<QueueInfo>>;
        async fn purge(&self, queue: &str) -> Result<u64>;
        async fn publisher(&self, options: PublisherOptions) -> Result<Arc<dyn Publisher>>;
        async fn consumer(&self, queue: &str, options: ConsumerOptions) -> Result<Consumer>;
        fn events(&self) -> BoxStream<'static, TransportEvent>;
        fn health(&self) -> Health;
        async fn close(&self, deadline: Duration) -> Result<()>;
    }
}

mockall::mock! {
    /// A publisher whose sends are expected one by one, by `expect_send()`.
    #[derive(Debug)]
    pub Publisher {}

    #[async_trait]
    impl Publisher for Publisher {
        async fn send(&self, envelope: Envelope) -> Result<Confirm>;
        async fn send_batch(&self, envelopes: Vec<Envelope>) -> Result<Vec<Confirm>>;
        async fn flush(&self) -> Result<()>;
    }
}
