//! The transport that users hold.

use std::{error, fmt, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use postrider_core::{
    Capabilities, Consumer, ConsumerOptions, Env, Error, ErrorKind, Health, Plan, Publisher,
    PublisherOptions, QueueInfo, QueueKind, Result, Topology, Transport, TransportEvent,
    check_name,
};
use postrider_rabbitmq::check_connection_name;
use tokio::{runtime::Handle, time::sleep};

use crate::{
    admin::{self, Admin},
    consumer::{Deliveries, Subscriber},
    dial::Dial,
    encryption::Encryption,
    link::{Guard, Link},
    options::Options,
    publisher::Amqp091Publisher,
    session::{Listener, Session},
    supervisor, uri, version,
};

/// How often a connection that the broker resets is tried.
const ATTEMPTS: u32 = 4;

/// How long to wait before the next try, at least.
const RESET_PAUSE: Duration = Duration::from_millis(100);

/// A connection to RabbitMQ over AMQP 0.9.1, which restores itself when it is lost.
///
/// It is two connections to the broker: one publishes, the other consumes and administers. When it,
/// its publishers and its consumers are dropped, it closes as by [`close`](Transport::close)
/// without time to drain.
pub struct Amqp091(Arc<Guard>);

impl Amqp091 {
    /// Connects to the broker of a URL such as `amqp://user:password@host:5672/vhost`. Without a
    /// path the virtual host is `/`; names in it are percent-encoded. Its options `heartbeat`
    /// (seconds, 30 by default), `connection_timeout` (milliseconds, in the place of
    /// [`Options::connect_timeout`]), `connection_name` (as
    /// [`Options::name`]), `frame_max`, `channel_max` and `auth_mechanism` are honoured. `amqps` needs the crate feature `tls`.
    ///
    /// It must be called inside a tokio runtime. Not cancellation safe: a connection may be left
    /// that the broker closes when it gets no heartbeat.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for another URL and outside a runtime, [`ErrorKind::Unavailable`] when
    /// the broker cannot be reached in time, [`ErrorKind::Unauthorized`] for credentials, a
    /// client certificate or a virtual host that it refuses, and when its own certificate is not
    /// to be trusted, [`ErrorKind::NotFound`] for a virtual host that is not there,
    /// [`ErrorKind::Unsupported`] for a server that is no RabbitMQ, for a port where the other of
    /// `amqp` and `amqps` is spoken, and for `amqps` without the crate feature `tls`. With options
    /// [`ErrorKind::Invalid`] also means certificates that cannot be used.
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
        let encryption = match uri.encrypted {
            true => Some(Encryption::new(&options.tls, &uri.broker.authority.host)),
            false => None,
        };
        let encryption = encryption.transpose().map_err(in_context)?;
        let limit = uri
            .broker
            .query
            .connection_timeout
            .map_or(options.connect_timeout, Duration::from_millis);
        let name = options.name.clone().or(uri.name);
        let name = name.unwrap_or_else(|| format!("postrider {}", options.env.new_id()));
        check_connection_name(&name).map_err(in_context)?;
        let dial = Dial { uri: uri.broker, encryption, name, limit };
        let mut attempt = 1;
        let (session, listener) = loop {
            match open(&dial).await {
                Ok(opened) => break opened,
                // A broker that is greeted by many at once resets some.
                Err(error) if attempt < ATTEMPTS && was_reset(&error) => {
                    attempt += 1;
                    sleep(RESET_PAUSE.mul_f64(1.0 + options.env.random_unit())).await;
                }
                Err(error) => return Err(in_context(error)),
            }
        };
        let link = Link::new(uri.shown, options, session.clone());
        tokio::spawn(supervisor::supervise(link.clone(), dial, session, listener));
        Ok(Self(Arc::new(Guard::new(link))))
    }

    fn link(&self) -> &Arc<Link> {
        self.0.link()
    }
}

async fn open(dial: &Dial) -> Result<(Arc<Session>, Listener)> {
    let version = version::ask(dial).await?;
    dial.session(1, version).await
}

/// Whether the broker took a connection and dropped it, for which one that is stopped or refuses
/// does not stand.
fn was_reset(error: &Error) -> bool {
    let mut source = error::Error::source(error);
    while let Some(cause) = source {
        let io = cause.downcast_ref::<io::Error>().or_else(|| {
            match cause.downcast_ref::<lapin::Error>()?.kind() {
                lapin::ErrorKind::IOError(io) => Some(&**io),
                _ => None,
            }
        });
        if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionReset) {
            return true;
        }
        source = cause.source();
    }
    false
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
        self.link().exchanges().forget();
        let prune = {
            let mut record = self.link().record();
            record.add(topology);
            record.wants_pruning()
        };
        if prune && let Err(error) = admin::prune(self.link(), &session, deadline).await {
            // It is declared all the same, and the next declaration prunes.
            tracing::debug!(%error, "what is gone was not looked for");
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
        self.link().exchanges().forget();
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
        options.check()?;
        let spec = self.link().record().queue(queue).cloned();
        if options.start.is_some()
            && spec.as_ref().is_some_and(|spec| spec.kind != QueueKind::Stream)
        {
            let why = "only a stream is read from a position";
            return Err(Error::new(ErrorKind::Invalid, "consume", why).with_context("queue", queue));
        }
        if options.exclusive && spec.is_some_and(|spec| spec.kind == QueueKind::Quorum) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "consume",
                "RabbitMQ has no exclusive consumers on quorum queues; declare a single active \
                 consumer instead",
            )
            .with_context("queue", queue));
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
