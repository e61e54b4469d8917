//! What every behaviour has in hand: a broker, connections, names of its own, and the shortcuts that
//! say what was expected when it does not come.

mod publishing;
mod reader;
mod waiting;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use postrider_core::{
    Capabilities, ConsumerOptions, Env, Error, ErrorKind, Publisher, Queue, QueueInfo, Result,
    Topology, Transport,
};
use tokio::{sync::OnceCell, time};

pub use self::reader::Reader;
pub(crate) use self::reader::text;
use crate::{
    harness::{Connection, Fault, Harness, Route, TestBroker},
    proxy::FaultProxy,
};

/// A broker under test as one behaviour uses it. Cloning shares it.
#[derive(Clone)]
pub struct Scene(Arc<Inner>);

struct Inner {
    broker: Arc<dyn TestBroker>,
    lateness: Duration,
    divisor: usize,
    prefix: String,
    main: Connection,
    publisher: OnceCell<Arc<dyn Publisher>>,
    others: Mutex<Vec<Arc<dyn Transport>>>,
    declared: Mutex<Topology>,
    #[cfg(feature = "patterns")]
    reply_mode: std::sync::OnceLock<postrider_core::ReplyMode>,
}

impl Scene {
    pub(crate) async fn open(harness: &dyn Harness, broker: Arc<dyn TestBroker>) -> Result<Self> {
        let main = broker.connect().await?;
        let id = main.transport.env().new_id().simple().to_string();
        Ok(Self(Arc::new(Inner {
            broker,
            lateness: harness.lateness(),
            divisor: harness.divisor().max(1),
            // The tail of a UUIDv7 is its random part.
            prefix: format!("test-{}", &id[20..]),
            main,
            publisher: OnceCell::new(),
            others: Mutex::default(),
            declared: Mutex::default(),
            #[cfg(feature = "patterns")]
            reply_mode: std::sync::OnceLock::new(),
        })))
    }

    /// The behaviour's first connection.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.main.transport
    }

    /// The first connection with the means to break it.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.0.main
    }

    /// Time, randomness and ids of the transport under test.
    #[must_use]
    pub fn env(&self) -> &Env {
        self.transport().env()
    }

    /// What the transport under test says it can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        self.transport().capabilities()
    }

    /// Callers get their replies by this from now on.
    #[cfg(feature = "patterns")]
    pub(crate) fn reply_by(&self, mode: postrider_core::ReplyMode) {
        let set = self.0.reply_mode.set(mode);
        assert!(set.is_ok(), "callers get their replies by one means in a behaviour");
    }

    /// How callers get their replies.
    #[cfg(feature = "patterns")]
    pub(crate) fn reply_mode(&self) -> postrider_core::ReplyMode {
        let chosen = self.0.reply_mode.get().copied();
        chosen.unwrap_or(postrider_core::ReplyMode::ExclusiveQueue)
    }

    /// A further connection to the same broker, closed after the behaviour.
    ///
    /// # Panics
    ///
    /// When the broker gives none.
    pub async fn connect(&self) -> Connection {
        self.try_connect().await.expect("a further connection to the broker")
    }

    /// A connection by another route, closed after the behaviour.
    ///
    /// # Errors
    ///
    /// Those of the transport.
    pub async fn connect_by(&self, route: &Route) -> Result<Connection> {
        let connection = self.0.broker.connect_by(route).await?;
        lock(&self.0.others).push(connection.transport.clone());
        Ok(connection)
    }

    /// A connection through a proxy of its own, with this heartbeat.
    ///
    /// # Panics
    ///
    /// When the broker gives none.
    pub async fn connect_through_proxy(&self, heartbeat: Duration) -> (FaultProxy, Connection) {
        let broker = self.0.broker.address().expect("a network to the broker has an address");
        let proxy = FaultProxy::start(broker).await.expect("a proxy on a free port");
        let route = Route {
            address: Some(proxy.address()),
            heartbeat: Some(heartbeat),
            ..Route::default()
        };
        let connection = self.connect_by(&route).await;
        (proxy, connection.expect("a connection through the proxy"))
    }

    /// An attempt to connect as usual, for a broker that may refuse it.
    ///
    /// # Errors
    ///
    /// Those of the transport.
    pub async fn try_connect(&self) -> Result<Connection> {
        let connection = self.0.broker.connect().await?;
        lock(&self.0.others).push(connection.transport.clone());
        Ok(connection)
    }

    /// A connection that is not remembered, for behaviours that open thousands and close them.
    ///
    /// # Panics
    ///
    /// When the broker gives none.
    pub async fn connect_and_forget(&self) -> Arc<dyn Transport> {
        let connection = self.0.broker.connect().await;
        connection.expect("one connection of many").transport
    }

    /// Begins a fault that lasts.
    ///
    /// # Panics
    ///
    /// When the harness cannot.
    pub async fn begin(&self, fault: Fault) {
        let begun = self.0.broker.begin(fault).await;
        assert!(begun.is_ok(), "the harness could not begin {fault:?}: {begun:?}");
    }

    /// Ends a fault.
    ///
    /// # Panics
    ///
    /// When the harness cannot.
    pub async fn end(&self, fault: Fault) {
        let ended = self.0.broker.end(fault).await;
        assert!(ended.is_ok(), "the harness could not end {fault:?}: {ended:?}");
    }

    /// A name that no other behaviour and no other run uses.
    #[must_use]
    pub fn name(&self, base: &str) -> String {
        format!("{}.{base}", self.0.prefix)
    }

    /// `count` for a broker in the process, less where the harness says that its broker needs it.
    #[must_use]
    pub fn scaled(&self, count: usize) -> usize {
        (count / self.0.divisor).max(1)
    }

    /// How long something that must happen may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        // Less than the publisher's default timeout, so that nothing passes by running into it.
        Duration::from_secs(20)
    }

    /// How long is waited to see that something does not happen.
    #[must_use]
    pub fn quiet(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// How much later than asked for something may happen.
    #[must_use]
    pub fn lateness(&self) -> Duration {
        self.0.lateness
    }

    /// Declares `topology` and remembers it for cleaning up.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn declare(&self, topology: Topology) {
        self.remember(topology.clone());
        let declared = self.transport().declare(&topology).await;
        assert!(declared.is_ok(), "declaring {topology:?} must succeed: {declared:?}");
    }

    /// Takes `topology` away after the behaviour.
    pub fn remember(&self, topology: Topology) {
        let mut declared = lock(&self.0.declared);
        *declared = std::mem::take(&mut *declared).and(topology);
    }

    /// Declares a queue and gives its name.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn declare_queue(&self, queue: Queue) -> String {
        let name = queue.name.to_string();
        self.declare(Topology::new().queue(queue)).await;
        name
    }

    /// Declares a durable quorum queue of a name of its own.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn queue(&self, base: &str) -> String {
        self.declare_queue(Queue::durable(self.name(base))).await
    }

    /// Declares a durable classic queue of a name of its own.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn classic(&self, base: &str) -> String {
        self.classic_named(&self.name(base)).await
    }

    /// Declares a durable classic queue of this very name.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn classic_named(&self, name: &str) -> String {
        self.declare_queue(Queue::classic(name.to_owned())).await
    }

    /// Consumes a queue on the first connection with this prefetch.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn read(&self, queue: &str, prefetch: u16) -> Reader {
        self.read_on(self.transport(), queue, prefetch).await
    }

    /// Consumes a queue on `transport` with this prefetch.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub async fn read_on(
        &self,
        transport: &Arc<dyn Transport>,
        queue: &str,
        prefetch: u16,
    ) -> Reader {
        let options = ConsumerOptions::default().with_prefetch(prefetch);
        let consumer = transport.consumer(queue, options).await;
        let consumer = consumer.unwrap_or_else(|error| panic!("consuming '{queue}': {error}"));
        Reader::new(self.clone(), queue.to_owned(), consumer)
    }

    /// What a queue holds.
    ///
    /// # Panics
    ///
    /// When it is not there.
    pub async fn info(&self, queue: &str) -> QueueInfo {
        let info = self.transport().queue_info(queue).await;
        let info = info.unwrap_or_else(|error| panic!("asking about '{queue}': {error}"));
        info.unwrap_or_else(|| panic!("the queue '{queue}' must be there"))
    }

    /// Removes what the behaviour declared and closes its connections.
    pub(crate) async fn clean_up(&self) -> Result<()> {
        let declared = std::mem::take(&mut *lock(&self.0.declared));
        let others = std::mem::take(&mut *lock(&self.0.others));
        for transport in others {
            swallow_left_over(transport.close(Duration::from_secs(1)).await)?;
        }
        swallow_left_over(self.transport().close(Duration::from_secs(1)).await)?;
        // The first connection may have been closed by the behaviour itself.
        let sweeper = self.0.broker.connect().await?.transport;
        let deadline = sweeper.env().now() + self.patience();
        let removed = loop {
            match sweeper.remove(&declared).await {
                // A broker may take a while to see that an exclusive queue's connection is gone.
                Err(error)
                    if error.kind() == ErrorKind::Locked && sweeper.env().now() < deadline =>
                {
                    time::sleep(Duration::from_millis(50)).await;
                }
                outcome => break outcome,
            }
        };
        sweeper.close(Duration::from_secs(5)).await?;
        removed?;
        self.leaves_nothing(deadline).await
    }

    /// Waits until the broker has nothing left of the behaviour.
    async fn leaves_nothing(&self, deadline: time::Instant) -> Result<()> {
        loop {
            let left = self.0.broker.left_over(&self.0.prefix).await?;
            if left.is_empty() {
                return Ok(());
            }
            if self.env().now() > deadline {
                let why = format!("the broker still has {}", left.join(", "));
                return Err(Error::new(ErrorKind::Internal, "clean up", why));
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A behaviour may leave deliveries unsettled; then closing is late and all the same done.
fn swallow_left_over(closed: Result<()>) -> Result<()> {
    match closed {
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(()),
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sees that a call failed with one of these kinds, and gives the error.
///
/// # Panics
///
/// When it succeeded or failed otherwise.
pub(crate) fn refused<T: fmt::Debug>(result: Result<T>, kinds: &[ErrorKind], what: &str) -> Error {
    match result {
        Ok(value) => panic!("{what} must fail as {kinds:?}, and it gave {value:?}"),
        Err(error) => {
            assert!(
                kinds.contains(&error.kind()),
                "{what} must fail as {kinds:?}, and it failed as {:?}: {error}",
                error.kind()
            );
            error
        }
    }
}

impl fmt::Debug for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scene")
            .field("prefix", &self.0.prefix)
            .field("transport", self.transport())
            .finish_non_exhaustive()
    }
}
