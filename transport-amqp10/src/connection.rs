//! The connection of one epoch.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, OnceLock, PoisonError},
    time::Duration,
};

use fe2o3_amqp::{
    Session,
    connection::ConnectionHandle,
    session::{BeginError, SessionHandle},
};
use postrider_core::{Env, Error, ErrorKind, Result};
use postrider_rabbitmq::Version;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    dial::Dial,
    dialect::Dialect,
    error::{late, lost},
    frames::Observed,
    management::Management,
    sessions::{Seat, Sessions},
};

/// How long the broker may take to begin a session before another is tried: one that it ended just
/// now makes it pass over the next on the same channel.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long closing may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the consumers of a connection that is over may take to leave it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the broker may at least take to see that the last owner of a queue is gone.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// How much later than by its rule.
const LOCK_MARGIN: Duration = Duration::from_secs(5);

pub(crate) struct Connection {
    epoch: u64,
    dialect: Arc<Dialect>,
    env: Env,
    handle: Mutex<ConnectionHandle<()>>,
    observed: Arc<Observed>,
    management: OnceLock<Management>,
    sessions: Sessions,
    /// Those of links that may be refused, which can end them.
    asking: Sessions,
    /// The tasks that own its consumers' links.
    consumers: TaskTracker,
    /// The exclusive queues that were declared on it.
    own_queues: std::sync::Mutex<HashSet<String>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Connection {
    /// Opens the connection of an epoch.
    pub(crate) async fn open(dial: &Dial, epoch: u64) -> Result<Arc<Self>> {
        let (handle, observed) = dial.connect().await?;
        let dialect = Arc::new(Dialect::of(&dial.profile, &observed)?);
        let connection = Arc::new(Self {
            epoch,
            dialect,
            env: dial.env.clone(),
            handle: Mutex::new(handle),
            observed,
            management: OnceLock::new(),
            sessions: Sessions::default(),
            asking: Sessions::default(),
            consumers: TaskTracker::new(),
            own_queues: std::sync::Mutex::default(),
        });
        let management = Management::start(&connection);
        let _first = connection.management.set(management);
        Ok(connection)
    }

    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) const fn env(&self) -> &Env {
        &self.env
    }

    /// How the broker is spoken to.
    pub(crate) const fn dialect(&self) -> &Arc<Dialect> {
        &self.dialect
    }

    /// The broker's, if it is a RabbitMQ.
    pub(crate) fn version(&self) -> Version {
        self.dialect.version()
    }

    /// Waits until it is over. Cancellation safe.
    pub(crate) async fn over(&self) {
        self.observed.over().cancelled().await;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.observed.over().is_cancelled()
    }

    /// Ends all that runs on it.
    pub(crate) fn end(&self) {
        self.observed.end();
    }

    /// Why it is over.
    pub(crate) fn cause(&self) -> String {
        self.observed.cause().unwrap_or_else(|| "the connection was lost".to_owned())
    }

    /// How long the broker may take to see that another connection of its kind is dead. RabbitMQ
    /// advertises half of its `heartbeat`, counts three of those without a frame, and then waits one
    /// more for an answer to its close.
    pub(crate) fn lock_timeout(&self) -> Duration {
        let heartbeat = self.observed.patience().unwrap_or_default() * 2;
        LOCK_TIMEOUT.max(heartbeat * 4 + LOCK_MARGIN)
    }

    /// Whether the broker takes no transfers.
    pub(crate) fn blocked(&self) -> watch::Receiver<bool> {
        self.observed.blocked()
    }

    pub(crate) fn is_blocked(&self) -> bool {
        *self.observed.blocked().borrow()
    }

    /// Makes a management call until `deadline`.
    pub(crate) fn management(&self) -> Result<&Management> {
        self.management.get().ok_or_else(|| lost("declare"))
    }

    /// Notes that an exclusive queue is its own.
    pub(crate) fn note_own_queue(&self, name: &str) {
        let mut own = self.own_queues.lock().unwrap_or_else(PoisonError::into_inner);
        own.insert(name.to_owned());
    }

    pub(crate) fn owns_queue(&self, name: &str) -> bool {
        self.own_queues.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// A seat for a link in one of the sessions.
    pub(crate) async fn seat(&self, operation: &'static str, deadline: Instant) -> Result<Seat> {
        self.seat_in(&self.sessions, operation, deadline).await
    }

    /// A seat for a link that asks whether something is there, apart from links that last.
    pub(crate) async fn seat_to_ask(
        &self,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Seat> {
        self.seat_in(&self.asking, operation, deadline).await
    }

    async fn seat_in(
        &self,
        sessions: &Sessions,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Seat> {
        if let Some(seat) = sessions.vacant() {
            return Ok(seat);
        }
        match self.begin(operation, deadline).await {
            Ok(session) => Ok(sessions.enter(session)),
            // The broker has fewer sessions than were reckoned with.
            Err(error) if !self.is_over() => sessions.shared().ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Begins a session.
    pub(crate) async fn begin(
        &self,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<SessionHandle<()>> {
        loop {
            let begun = async {
                let mut handle = timeout_at(deadline, self.handle.lock()).await.ok()?;
                // It looks at its own clock: what waited for the lock has its time still.
                timeout(BEGIN_TIMEOUT, Session::begin(&mut handle)).await.ok()
            };
            let begun = tokio::select! {
                biased;
                () = self.over() => return Err(lost(operation)),
                begun = begun => begun,
            };
            match begun {
                Some(Ok(session)) => return Ok(session),
                Some(Err(
                    BeginError::LocalChannelMaxReached | BeginError::RemoteEndedWithError(_),
                )) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        operation,
                        "the connection has no session left; close publishers or consumers",
                    ));
                }
                Some(Err(error)) => {
                    return Err(lost(operation).with_source(error));
                }
                None if self.env.now() >= deadline => return Err(late(operation)),
                None => tracing::debug!("a session was not begun; another is tried"),
            }
        }
    }

    /// Gives a call until `deadline` or until the connection is over.
    pub(crate) async fn by<T>(
        &self,
        deadline: Instant,
        operation: &'static str,
        call: impl Future<Output = T>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            outcome = timeout_at(deadline, call) => outcome.map_err(|_| late(operation)),
            () = self.over() => Err(lost(operation)),
        }
    }

    /// Runs the task that owns a consumer's link.
    pub(crate) fn spawn(&self, owner: impl Future<Output = ()> + Send + 'static) {
        self.consumers.spawn(owner);
    }

    /// Waits until the tasks that own its consumers' links have ended.
    pub(crate) async fn consumers_gone(&self) {
        self.consumers.close();
        self.consumers.wait().await;
    }

    /// Closes it, within a time limit.
    pub(crate) async fn close(&self) {
        let was_over = self.is_over();
        self.end();
        self.sessions.clear();
        self.asking.clear();
        let _left = timeout(LEAVE_TIMEOUT, self.consumers_gone()).await;
        if was_over {
            return;
        }
        let closed = async {
            let mut handle = self.handle.lock().await;
            if !handle.is_closed() {
                let _told = handle.close().await;
            }
        };
        let _late = timeout(CLOSE_TIMEOUT, closed).await;
    }
}
