//! The transport that users hold.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use lapin::tcp::OwnedTLSConfig;
use postrider_core::{
    Capabilities, Consumer, ConsumerOptions, Env, Error, ErrorKind, Health, Plan, Publisher,
    PublisherOptions, QueueInfo, Result, Topology, Transport, TransportEvent, check_name,
};
use tokio::runtime::Handle;

use crate::{
    admin::{self, Admin},
    consumer::{Deliveries, Subscriber},
    link::{Guard, Link},
    options::Options,
    publisher::Amqp091Publisher,
    session::Dial,
    supervisor, uri, version,
};

/// A connection to RabbitMQ over AMQP 0.9.1, which restores itself when it is lost.
///
/// It is two connections to the broker: one publishes, the other consumes and administers. When it,
/// its publishers and its consumers are dropped, it closes as by [`close`](Transport::close)
/// without time to drain.
pub struct Amqp091(Arc<Guard>);

impl Amqp091 {
    /// Connects to the broker of a URL such as `amqp://user:password@host:5672/vhost`. Without a
    /// path the virtual host is `/`; names in it are percent-encoded. Its options `heartbeat`
    /// (seconds, 30 by default), `connection_timeout` (milliseconds), `frame_max`, `channel_max` and
    /// `auth_mechanism` are honoured. `amqps` needs the crate feature `tls`.
    ///
    /// It must be called inside a tokio runtime. Not cancellation safe: a connection may be left
    /// that the broker closes when it gets no heartbeat.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for another URL and outside a runtime, [`ErrorKind::Unavailable`] when
    /// the broker cannot be reached in time, [`ErrorKind::Unauthorized`] for credentials or a
    /// virtual host that it refuses, [`ErrorKind::NotFound`] for a virtual host that is not there,
    /// [`ErrorKind::Unsupported`] for a server that is no RabbitMQ.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, Options::default()).await
    }

    /// Connects as [`connect`](Self::connect), with `options`.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with(url: &str, options: Options) -> Result<Self> {
        if let Err(source) = Handle::try_current() {
            let why = "a connection needs a tokio runtime to live in";
            return Err(Error::new(ErrorKind::Invalid, "connect", why).with_source(source));
        }
        let uri = uri::parse(url)?;
        let shown = uri.shown.clone();
        let in_context = |error: Error| error.with_context("url", shown.clone());
        let tls = Arc::new(OwnedTLSConfig::default());
        let limit = options.connect_timeout;
        let version = version::ask(&uri.broker, &tls, limit).await.map_err(in_context)?;
        let name =
            options.name.clone().unwrap_or_else(|| format!("postrider {}", options.env.new_id()));
        let dial = Dial { uri: uri.broker, tls, name, limit };
        let (session, listener) = dial.session(1).await.map_err(in_context)?;
        let link = Link::new(uri.shown, options, version, session.clone());
        tokio::spawn(supervisor::supervise(link.clone(), dial, session, listener));
        Ok(Self(Arc::new(Guard::new(link))))
    }

    fn link(&self) -> &Arc<Link> {
        self.0.link()
    }
}

impl fmt::Debug for Amqp091 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Amqp091").field(&self.link().url()).finish()
    }
}

#[async_trait]
impl Transport for Amqp091 {
    fn url(&self) -> &str {
        self.link().url()
    }

    fn env(&self) -> &Env {
        self.link().env()
    }

    fn capabilities(&self) -> &Capabilities {
        self.link().capabilities()
    }

    async fn plan(&self, topology: &Topology) -> Result<Plan> {
        let deadline = self.link().operation_deadline();
        let session = self.link().session("plan", deadline).await?;
        Admin::new(&session, "plan", deadline).plan(topology).await
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        let deadline = self.link().operation_deadline();
        let session = self.link().session("declare", deadline).await?;
        Admin::new(&session, "declare", deadline).declare(topology).await?;
        let prune = {
            let mut record = self.link().record();
            record.add(topology);
            record.wants_pruning()
        };
        if prune {
            admin::prune(self.link(), &session, deadline).await?;
        }
        Ok(())
    }

    async fn remove(&self, topology: &Topology) -> Result<()> {
        let deadline = self.link().operation_deadline();
        let session = self.link().session("remove", deadline).await?;
        // First, so that a loss on the way does not bring back what was taken away.
        let known = self.link().record().topology().clone();
        self.link().record().remove(topology);
        let removed = Admin::new(&session, "remove", deadline).remove(topology).await;
        if removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::Locked) {
            self.link().record().add(&known);
        }
        removed
    }

    async fn queue_info(&self, queue: &str) -> Result<Option<QueueInfo>> {
        let deadline = self.link().operation_deadline();
        let session = self.link().session("queue_info", deadline).await?;
        Admin::new(&session, "queue_info", deadline).queue_info(queue).await
    }

    async fn purge(&self, queue: &str) -> Result<u64> {
        let deadline = self.link().operation_deadline();
        let session = self.link().session("purge", deadline).await?;
        Admin::new(&session, "purge", deadline).purge(queue).await
    }

    async fn publisher(&self, options: PublisherOptions) -> Result<Arc<dyn Publisher>> {
        let deadline = self.link().operation_deadline();
        self.link().session("publisher", deadline).await?;
        Ok(Arc::new(Amqp091Publisher::new(self.0.clone(), options)?))
    }

    async fn consumer(&self, queue: &str, options: ConsumerOptions) -> Result<Consumer> {
        let deadline = self.link().operation_deadline();
        let session = self.link().session("consume", deadline).await?;
        check_name("consume", queue)?;
        check_name("consume", options.name.as_deref().unwrap_or_default())?;
        if options.prefetch == 0 {
            return Err(Error::new(
                ErrorKind::Invalid,
                "consume",
                "a prefetch of 0 would be no limit; ask for at least 1",
            ));
        }
        let subscriber = Subscriber::new(&self.0, queue, options);
        self.link().subscribers().enter(&subscriber);
        if let Err(error) = subscriber.attach(&session).await {
            subscriber.stop();
            return Err(error);
        }
        Ok(Consumer::new(Deliveries::new(self.0.clone(), subscriber)))
    }

    fn events(&self) -> BoxStream<'static, TransportEvent> {
        self.link().events().subscribe()
    }

    fn health(&self) -> Health {
        self.link().health()
    }

    async fn close(&self, deadline: Duration) -> Result<()> {
        self.link().close(deadline).await
    }
}
