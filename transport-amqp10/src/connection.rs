//! The connection of one epoch.

use std::{
    fmt,
    sync::{Arc, OnceLock},
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
    management::Management,
    observed::{Echo, Observed},
    own_queues::OwnQueues,
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
    own_queues: OwnQueues,
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
        let dialect = Dialect::of(&dial.profile, &observed)?;
        let connection = Self::made(epoch, dialect, dial.env.clone(), handle, observed);
        let management = Management::start(&connection);
        let _first = connection.management.set(management);
        Ok(connection)
    }

    fn made(
        epoch: u64,
        dialect: Dialect,
        env: Env,
        handle: ConnectionHandle<()>,
        observed: Arc<Observed>,
    ) -> Arc<Self> {
        Arc::new(Self {
            epoch,
            dialect: Arc::new(dialect),
            env,
            handle: Mutex::new(handle),
            observed,
            management: OnceLock::new(),
            sessions: Sessions::default(),
            asking: Sessions::default(),
            consumers: TaskTracker::new(),
            own_queues: OwnQueues::default(),
        })
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

    /// The exclusive queues that were declared on it.
    pub(crate) const fn own_queues(&self) -> &OwnQueues {
        &self.own_queues
    }

    /// The broker's answer to a grant of `credit` over a link, which is asked for from now on.
    pub(crate) fn echo(&self, link: &str, credit: u32) -> Echo {
        self.observed.echo(link, credit)
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

#[cfg(test)]
mod tests {
    use fe2o3_amqp_types::performatives::{Begin, Open};
    use serde::Serialize;
    use serde_amqp::{from_slice, to_vec};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::{profile::Profile, wire::Wire};

    /// How long a frame's header is, in bytes.
    const HEADER: usize = 8;

    /// A broker that overlooks the first session, as RabbitMQ does one that is begun on the channel
    /// of another that it ended just now.
    struct Overlooking(DuplexStream);

    impl Overlooking {
        async fn write(&mut self, channel: u16, body: &impl Serialize) {
            let body = to_vec(body).unwrap();
            let size = u32::try_from(HEADER + body.len()).unwrap();
            let [high, low] = channel.to_be_bytes();
            let frame = [&size.to_be_bytes()[..], &[2, 0, high, low], &body].concat();
            self.0.write_all(&frame).await.unwrap();
        }

        /// The next frame with a body: its channel and that.
        async fn read(&mut self) -> (u16, Vec<u8>) {
            loop {
                let mut header = [0; HEADER];
                self.0.read_exact(&mut header).await.unwrap();
                let [a, b, c, d, _, _, high, low] = header;
                let size = u32::from_be_bytes([a, b, c, d]) as usize;
                let mut body = vec![0; size - HEADER];
                self.0.read_exact(&mut body).await.unwrap();
                if !body.is_empty() {
                    return (u16::from_be_bytes([high, low]), body);
                }
            }
        }

        /// Gives the channels on which sessions were begun, and itself to be kept open.
        async fn serve(mut self) -> ([u16; 2], Self) {
            let mut header = [0; HEADER];
            self.0.read_exact(&mut header).await.unwrap();
            self.0.write_all(&header).await.unwrap();
            let (_, open) = self.read().await;
            self.write(0, &from_slice::<Open>(&open).unwrap()).await;
            let (overlooked, _) = self.read().await;
            let (channel, begin) = self.read().await;
            let mut begin: Begin = from_slice(&begin).unwrap();
            begin.remote_channel = Some(channel);
            self.write(channel, &begin).await;
            ([overlooked, channel], self)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_the_broker_overlooks_is_begun_again() {
        let (here, there) = duplex(64 * 1024);
        let broker = tokio::spawn(Overlooking(there).serve());
        let observed = Arc::new(Observed::default());
        let wire = Wire::new(Box::new(here), observed.clone());
        let handle =
            fe2o3_amqp::Connection::builder().container_id("client").open_with_stream(wire);
        let handle = handle.await.unwrap();
        let dialect = Dialect::of(&Profile::default(), &observed).unwrap();
        let env = Env::system();
        let connection = Connection::made(1, dialect, env.clone(), handle, observed);
        let began = env.now();
        let deadline = env.deadline(10 * BEGIN_TIMEOUT);
        let _session = connection.begin("test", deadline).await.unwrap();
        assert!(env.now() - began < 2 * BEGIN_TIMEOUT, "it is not waited for long");
        let ([overlooked, channel], _broker) = broker.await.unwrap();
        assert_ne!(overlooked, channel, "the other session has another channel");
    }
}
