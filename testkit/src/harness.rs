//! How the suite reaches a broker, and what it can do to it.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use postrider_core::{Error, ErrorKind, Result, Transport};

/// Which clock behaviours run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Clock {
    /// The machine's, on a runtime with two worker threads.
    Real,
    /// Tokio's paused clock, on a runtime of one thread: time passes when everybody waits for it.
    /// For brokers that live in the process.
    Virtual,
}

/// Something bad that a harness can bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// A connection breaks, by [`Wire::cut`].
    ConnectionLoss,
    /// The broker takes no publishes, as RabbitMQ does under a memory or disk alarm.
    Alarm,
    /// The broker takes publishes and keeps its verdicts back.
    HeldConfirms,
    /// The broker is stopped; every connection is lost, and what is transient is gone.
    Outage,
    /// The broker dies with everything that it has not written, as by SIGKILL.
    Crash,
    /// The network to the broker fails: [`TestBroker::connect_by`] goes through a
    /// [`FaultProxy`](crate::proxy::FaultProxy) to [`TestBroker::address`].
    Network,
    /// A connection is refused for who makes it, by [`TestBroker::connect_by`], or loses its
    /// permissions, by [`Wire::permit`].
    Refusal,
}

impl Fault {
    /// Whether it touches everybody who uses the broker.
    pub(crate) fn is_broker_wide(self) -> bool {
        !matches!(self, Self::ConnectionLoss | Self::Network | Self::Refusal)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectionLoss => "a way to break a connection",
            Self::Alarm => "a way to raise an alarm",
            Self::HeldConfirms => "a way to hold confirms back",
            Self::Outage => "a way to stop and start the broker",
            Self::Crash => "a way to kill the broker",
            Self::Network => "a network that can fail",
            Self::Refusal => "users and permissions",
        })
    }
}

/// One transport under test with a kind of broker to run it on.
#[async_trait]
pub trait Harness: fmt::Debug + Send + Sync + 'static {
    /// What the tests' names begin with, for example `memory-virtual`.
    fn name(&self) -> &str;

    /// The clock that the behaviours run on.
    fn clock(&self) -> Clock;

    /// The faults that [`TestBroker`] and [`Wire`] can bring about. A behaviour that needs another
    /// is listed as not applicable.
    fn faults(&self) -> &[Fault];

    /// A broker to run a behaviour on that will ask for these faults. It may be one of its own or
    /// shared by all of them: behaviours that upset a whole broker never run beside others, and
    /// every name they use is theirs alone.
    ///
    /// # Errors
    ///
    /// When there is no broker; the message should say how to start one.
    async fn broker(&self, faults: &[Fault]) -> Result<Arc<dyn TestBroker>>;

    /// How long one behaviour may take by the machine's clock. Default: 60 seconds.
    fn time_limit(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// How much later than asked for something may happen when time itself is tested. Default: 5
    /// milliseconds on a virtual clock, 1 second on a real one.
    fn lateness(&self) -> Duration {
        match self.clock() {
            Clock::Virtual => Duration::from_millis(5),
            Clock::Real => Duration::from_secs(1),
        }
    }

    /// What the sizes of the largest behaviours (5,000 messages and more, thousands of connections)
    /// are divided by, for brokers that need it. Default: 1.
    fn divisor(&self) -> usize {
        1
    }
}

/// A broker as one behaviour sees it.
#[async_trait]
pub trait TestBroker: Send + Sync {
    /// A new connection to this broker.
    ///
    /// # Errors
    ///
    /// Those of the transport.
    async fn connect(&self) -> Result<Connection>;

    /// A new connection by another route; for [`Fault::Network`] and [`Fault::Refusal`].
    ///
    /// # Errors
    ///
    /// Those of the transport.
    async fn connect_by(&self, _route: &Route) -> Result<Connection> {
        Err(Error::new(ErrorKind::Unsupported, "connect", "there is one route to this broker"))
    }

    /// Where the broker listens; for [`Fault::Network`].
    fn address(&self) -> Option<SocketAddr> {
        None
    }

    /// What the broker still has when every connection was closed: connections made here, and
    /// queues whose name begins with `prefix`. It may take a moment until all are gone. Default:
    /// nothing.
    ///
    /// # Errors
    ///
    /// When the broker cannot be asked.
    async fn left_over(&self, _prefix: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Begins a fault that lasts and touches the whole broker, one of [`Harness::faults`].
    ///
    /// # Errors
    ///
    /// When it could not be brought about.
    async fn begin(&self, fault: Fault) -> Result<()>;

    /// Ends a fault. It is no error when it did not last any more.
    ///
    /// # Errors
    ///
    /// When it could not be ended.
    async fn end(&self, fault: Fault) -> Result<()>;
}

/// The means to break one connection.
#[async_trait]
pub trait Wire: Send + Sync {
    /// Breaks the connection without a word to the transport, which finds out and restores it.
    ///
    /// # Errors
    ///
    /// When it could not be brought about.
    async fn cut(&self) -> Result<()>;

    /// Breaks one of the network connections that a transport is made of, another each time.
    /// Default: as [`cut`](Self::cut), for transports that have one.
    ///
    /// # Errors
    ///
    /// When it could not be brought about.
    async fn cut_part(&self) -> Result<()> {
        self.cut().await
    }

    /// Takes every permission from the user of the connection, or gives it back; for
    /// [`Fault::Refusal`].
    ///
    /// # Errors
    ///
    /// When it could not be brought about.
    async fn permit(&self, _allowed: bool) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "permit", "there are no permissions here"))
    }
}

/// How to connect where it is not the usual way.
#[derive(Debug, Clone, Default)]
pub struct Route {
    /// To this address, a proxy's. Default: the broker's own.
    pub address: Option<SocketAddr>,
    /// How often either side must be heard of, in whole seconds. Default: the transport's.
    pub heartbeat: Option<Duration>,
    /// With this password. Default: the right one.
    pub password: Option<String>,
    /// To this virtual host. Default: the broker's default.
    pub virtual_host: Option<String>,
}

/// A connection and the means to break it.
#[derive(Clone)]
pub struct Connection {
    /// The connection as users have it.
    pub transport: Arc<dyn Transport>,
    wire: Arc<dyn Wire>,
}

impl Connection {
    /// A connection that `wire` breaks.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, wire: Arc<dyn Wire>) -> Self {
        Self { transport, wire }
    }

    /// Breaks it.
    ///
    /// # Panics
    ///
    /// When the harness cannot.
    pub async fn cut(&self) {
        let cut = self.wire.cut().await;
        assert!(cut.is_ok(), "the harness could not break the connection: {cut:?}");
    }

    /// Breaks one of the network connections that it is made of, another each time.
    ///
    /// # Panics
    ///
    /// When the harness cannot.
    pub async fn cut_part(&self) {
        let cut = self.wire.cut_part().await;
        assert!(cut.is_ok(), "the harness could not break a part of the connection: {cut:?}");
    }

    /// Takes every permission from its user, or gives it back.
    ///
    /// # Panics
    ///
    /// When the harness cannot.
    pub async fn permit(&self, allowed: bool) {
        let permitted = self.wire.permit(allowed).await;
        assert!(permitted.is_ok(), "the harness could not change permissions: {permitted:?}");
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("transport", &self.transport).finish_non_exhaustive()
    }
}
