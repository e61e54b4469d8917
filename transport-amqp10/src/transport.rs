//! The transport that users hold.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use postrider_core::{
    Address, Capabilities, Consumer, ConsumerOptions, Env, Error, ErrorKind, Health, Plan,
    Publisher, PublisherOptions, QueueInfo, QueueKind, Replies, ReplyAddress, ReplyMode,
    ReplyOptions, Result, Topology, Transport, TransportEvent, check_name,
};
use postrider_rabbitmq::check_connection_name;
use tokio::runtime::Handle;

use crate::{
    admin::Admin,
    connection::Connection,
    consumer::{Deliveries, Subscriber},
    dial::Dial,
    encryption::Encryption,
    link::{Guard, Link},
    options::Options,
    provisioned,
    publisher::Amqp10Publisher,
    replies::Dynamic,
    restoring, supervisor, uri,
};

/// A connection to RabbitMQ over AMQP 1.0, which restores itself when it is lost.
///
/// When it, its publishers and its consumers are dropped, it closes as by
/// [`close`](Transport::close) without time to drain.
pub struct Amqp10(Arc<Guard>);

impl Amqp10 {
    /// Connects to the broker of a URL such as `amqp10://user:password@host:5672/vhost`. Without
    /// credentials they are those of `guest`, without a path the virtual host is the broker's
    /// default; names in it are percent-encoded. Its options are `heartbeat` (seconds, 30 by default
    /// and 2 at least), `connection_timeout` (milliseconds, in the place of
    /// [`Options::connect_timeout`]), `connection_name` (as [`Options::name`]) and `auth_mechanism`
    /// (`plain`, `anonymous`, or `external` for the client certificate of [`Options::tls`]).
    ///
    /// What kind of broker it is follows from what it says of itself, or from `profile` (`rabbitmq`,
    /// `rabbitmq3` or `generic`), `topology` (`provisioned`), `queue_address` and `exchange_address`,
    /// as [`Profile`](crate::Profile) has them.
    ///
    /// `amqp10s://` is encrypted, with 5671 as the default port, and needs the crate feature `tls`.
    ///
    /// It must be called inside a tokio runtime. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for another URL and outside a runtime, [`ErrorKind::Unavailable`] when
    /// the broker cannot be reached in time, [`ErrorKind::Unauthorized`] for credentials or a
    /// virtual host that it refuses, [`ErrorKind::Unsupported`] for a server of another protocol or kind.
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
        let encryption = uri.encrypted.then(|| Encryption::new(&options.tls, &uri.host));
        let encryption = encryption.transpose().map_err(in_context)?;
        let limit = uri.connect_timeout.unwrap_or(options.connect_timeout);
        let name = options.name.clone().or_else(|| uri.name.clone());
        let name = name.unwrap_or_else(|| format!("postrider {}", options.env.new_id()));
        check_connection_name(&name).map_err(in_context)?;
        let env = options.env.clone();
        let profile = options.profile.clone().overridden_by(&uri.profile);
        profile.check().map_err(in_context)?;
        let dial = Dial { uri, encryption, profile, name, limit, env };
        let connection = Connection::open(&dial, 1).await.map_err(in_context)?;
        let link = Link::new(shown, options, connection.clone());
        tokio::spawn(supervisor::supervise(link.clone(), dial, connection));
        Ok(Self(Arc::new(Guard::new(link))))
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        self.0.link()
    }

    async fn subscribe(
        &self,
        connection: &Arc<Connection>,
        subscriber: Arc<Subscriber>,
    ) -> Result<Consumer> {
        self.link().subscribers().enter(&subscriber);
        if let Err(error) = subscriber.attach(connection).await {
            subscriber.stop();
            return Err(error);
        }
        Ok(Consumer::new(Deliveries::new(self.0.clone(), subscriber)))
    }
}

impl fmt::Debug for Amqp10 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Amqp10").field(&self.link().url()).finish()
    }
}

#[async_trait]
impl Transport for Amqp10 {
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
        let connection = self.link().connection("plan", deadline).await?;
        if let Some(foreign) = connection.dialect().foreign() {
            return provisioned::plan(&connection, foreign, "plan", topology, deadline).await;
        }
        Admin::new(&connection, "plan", deadline).plan(topology).await
    }

    async fn declare(&self, topology: &Topology) -> Result<()> {
        let deadline = self.link().operation_deadline();
        let connection = self.link().connection("declare", deadline).await?;
        if let Some(foreign) = connection.dialect().foreign() {
            let there = provisioned::plan(&connection, foreign, "declare", topology, deadline);
            return there.await.map(drop);
        }
        Admin::new(&connection, "declare", deadline).declare(topology).await?;
        let prune = {
            let mut record = self.link().record();
            record.add(topology);
            record.wants_pruning()
        };
        if prune && let Err(error) = restoring::prune(self.link(), &connection, deadline).await {
            // It is declared all the same, and the next declaration prunes.
            tracing::debug!(%error, "what is gone was not looked for");
        }
        Ok(())
    }

    async fn remove(&self, topology: &Topology) -> Result<()> {
        let deadline = self.link().operation_deadline();
        let connection = self.link().connection("remove", deadline).await?;
        if connection.dialect().foreign().is_some() {
            return Err(provisioned::unsupported("remove"));
        }
        // First, so that a loss on the way does not bring back what was taken away.
        let known = self.link().record().topology().clone();
        self.link().record().remove(topology);
        let removed = Admin::new(&connection, "remove", deadline).remove(topology).await;
        if removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::Locked) {
            self.link().record().add(&known);
        }
        removed
    }

    async fn queue_info(&self, queue: &str) -> Result<Option<QueueInfo>> {
        let deadline = self.link().operation_deadline();
        let connection = self.link().connection("queue_info", deadline).await?;
        if connection.dialect().foreign().is_some() {
            return Err(provisioned::unsupported("queue_info"));
        }
        Admin::new(&connection, "queue_info", deadline).queue_info(queue).await
    }

    async fn purge(&self, queue: &str) -> Result<u64> {
        let deadline = self.link().operation_deadline();
        let connection = self.link().connection("purge", deadline).await?;
        if connection.dialect().foreign().is_some() {
            return Err(provisioned::unsupported("purge"));
        }
        Admin::new(&connection, "purge", deadline).purge(queue).await
    }

    async fn publisher(&self, options: PublisherOptions) -> Result<Arc<dyn Publisher>> {
        let deadline = self.link().operation_deadline();
        self.link().connection("publisher", deadline).await?;
        Ok(Arc::new(Amqp10Publisher::new(self.0.clone(), options)?))
    }

    async fn consumer(&self, queue: &str, options: ConsumerOptions) -> Result<Consumer> {
        let deadline = self.link().operation_deadline();
        let connection = self.link().connection("consume", deadline).await?;
        check_name("consume", queue)?;
        connection.dialect().check("consume", &Address::queue(queue.to_owned()))?;
        options.check()?;
        let spec = self.link().record().queue(queue).cloned();
        if options.start.is_some()
            && spec.as_ref().is_some_and(|spec| spec.kind != QueueKind::Stream)
        {
            let why = "only a stream is read from a position";
            return Err(Error::new(ErrorKind::Invalid, "consume", why).with_context("queue", queue));
        }
        if options.start.is_some() && connection.dialect().foreign().is_some() {
            let why = "this broker has no streams that are known of";
            let error = Error::new(ErrorKind::Unsupported, "consume", why);
            return Err(error.with_context("queue", queue));
        }
        if options.exclusive {
            let why = "over AMQP 1.0 RabbitMQ has no exclusive consumers; declare a single active \
                       consumer instead";
            let error = Error::new(ErrorKind::Unsupported, "consume", why);
            return Err(error.with_context("queue", queue));
        }
        self.subscribe(&connection, Subscriber::new(&self.0, queue, options)).await
    }

    async fn replies(&self, options: ReplyOptions) -> Result<Replies> {
        if options.mode == ReplyMode::ExclusiveQueue {
            return Replies::by_exclusive_queue(self, options).await;
        }
        let deadline = self.link().operation_deadline();
        let connection = self.link().connection("replies", deadline).await?;
        let consuming = options.consumer().with_name(options.name.clone());
        consuming.check()?;
        let (sender, address) = ReplyAddress::changing();
        let dynamic = Dynamic::new(connection.dialect(), options.mode, sender)?;
        let subscriber = Subscriber::of_replies(&self.0, &options.name, consuming, dynamic);
        let consumer = self.subscribe(&connection, subscriber).await?;
        Ok(Replies::new(consumer, address))
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
