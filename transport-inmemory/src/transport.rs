//! The transport that users hold.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use postrider_core::{
    Capabilities, Consumer, ConsumerOptions, Env, Error, ErrorKind, Health, Plan, Publisher,
    PublisherOptions, QueueInfo, Result, Topology, Transport, TransportEvent, check_name,
};

use crate::{
    broker::Broker, connection::Connection, consumer::Deliveries, publisher::InMemoryPublisher,
};

/// A connection to a [`Broker`] inside this process.
///
/// When it, its publishers and its consumers are dropped, it closes as by
/// [`close`](Transport::close) without time to drain.
pub struct InMemory(Arc<Connection>);

impl InMemory {
    /// Connects to the broker of this process that the URL names: `memory://shop` is one broker
    /// for all who use that name, `memory://` a new one for each connection.
    ///
    /// It must be called inside a tokio runtime, which then keeps the broker's time.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for another URL and outside a runtime, [`ErrorKind::Unavailable`]
    /// when the broker is stopped.
    pub fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, Env::system())
    }

    /// Connects as [`connect`](Self::connect), with time, randomness and identity from `env`. A
    /// broker that is made by it uses the same.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_with(url: &str, env: Env) -> Result<Self> {
        let name = url.strip_prefix("memory://").ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "connect",
                "the in-memory broker's URL is memory://name, or memory:// for one of your own",
            )
        })?;
        if name.contains(['/', '?', '#', '@']) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "connect",
                "the name of an in-memory broker has no path, options or credentials",
            ));
        }
        let broker =
            if name.is_empty() { Broker::new(env.clone()) } else { Broker::named(name, &env) };
        Connection::open(&broker, url.to_owned(), env).map(Self)
    }

    /// Connects to a broker in hand.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_to(broker: &Broker) -> Result<Self> {
        let env = broker.shared().env().clone();
        Connection::open(broker, "memory://".to_owned(), env).map(Self)
    }

    /// The broker it is connected to.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        self.0.broker()
    }

    /// Loses the connection, as by a network failure, and restores it at once. See
    /// [`lose_connection`](Self::lose_connection).
    pub fn drop_connection(&self) {
        self.lose_connection();
        self.restore_connection();
    }

    /// Loses the connection until [`restore_connection`](Self::restore_connection). What it had
    /// unsettled comes again, counted as failed; its exclusive queues go with what is in them;
    /// verdicts that are held back are `Unknown`; sends wait.
    pub fn lose_connection(&self) {
        self.0.lose("the connection was dropped");
    }

    /// Brings the connection back with what it declared and its consumers; its exclusive queues are
    /// made anew and are empty.
    pub fn restore_connection(&self) {
        self.0.restore();
    }
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InMemory").field(&self.0.url()).finish()
    }
}

#[async_trait]
impl Transport for InMemory {
    fn url(&self) -> &str {
        self.0.url()
    }

    fn env(&self) -> &Env {
        self.0.env()
    }

    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    async fn plan(&self, topology: &Topology) -> Result<Plan> {
        self.0.ready("plan").await?;
        self.0.plan(topology)
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        self.0.ready("declare").await?;
        self.0.declare(topology)
    }

    async fn remove(&self, topology: &Topology) -> Result<()> {
        self.0.ready("remove").await?;
        self.0.remove(topology)
    }

    async fn queue_info(&self, queue: &str) -> Result<Option<QueueInfo>> {
        self.0.ready("queue_info").await?;
        self.0.queue_info(queue)
    }

    async fn purge(&self, queue: &str) -> Result<u64> {
        self.0.ready("purge").await?;
        let queue = self.0.existing_queue("purge", queue)?;
        Ok(self.0.broker().shared().update(&queue, |state, _| state.purge()))
    }

    async fn publisher(&self, options: PublisherOptions) -> Result<Arc<dyn Publisher>> {
        self.0.ready("publisher").await?;
        Ok(Arc::new(InMemoryPublisher::new(self.0.clone(), options)?))
    }

    async fn consumer(&self, queue: &str, options: ConsumerOptions) -> Result<Consumer> {
        self.0.ready("consume").await?;
        check_name("consume", queue)?;
        options.check()?;
        if options.start.is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "consume",
                "only a stream is read from a position, and the in-memory broker has no streams",
            )
            .with_context("queue", queue.to_owned()));
        }
        let subscriber = self.0.subscribe(queue, &options)?;
        Ok(Consumer::new(Deliveries::new(self.0.clone(), subscriber)))
    }

    fn events(&self) -> BoxStream<'static, TransportEvent> {
        self.0.events().subscribe()
    }

    fn health(&self) -> Health {
        self.0.health()
    }

    async fn close(&self, deadline: Duration) -> Result<()> {
        self.0.close(deadline).await
    }
}
