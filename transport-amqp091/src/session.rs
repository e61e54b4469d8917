//! The two connections of one epoch: one publishes, the other consumes and administers.
//!
//! A broker under an alarm stops reading from connections that publish, so nothing else is done on
//! those. Exclusive queues belong to a connection, so whoever declares them also consumes.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, future, stream::BoxStream};
use lapin::{Channel, Connection, Event};
use postrider_core::{Error, ErrorKind, Result};
use postrider_rabbitmq::Version;
use tokio::{
    sync::OnceCell,
    time::{Instant, interval, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    dial::Socket,
    error::{late, translate},
};

/// How long closing a channel or a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the consumers of a session that is over may take to leave it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How many channel numbers must be left on a connection, as far as half of them will do.
const NUMBERS_LEFT: u16 = 256;

/// How many channels are kept for the next administrative calls.
const SPARE_CHANNELS: usize = 4;

/// How often the state of the connections is looked at beside their events.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) struct Session {
    epoch: u64,
    version: Version,
    publishing: Connection,
    consuming: Connection,
    /// Cancelled when one of the connections is gone.
    over: CancellationToken,
    spare: Mutex<Vec<Channel>>,
    /// Channels that were left when it was over, until its connections are closed: the client
    /// library closes a channel that is dropped, and a task of its waits for ever when the
    /// connection is closed just then.
    retired: Mutex<Vec<Channel>>,
    closed: OnceCell<()>,
    /// Those of its connections, until they are closed.
    sockets: Mutex<Vec<Socket>>,
    /// The tasks that own its consumers' channels.
    consumers: TaskTracker,
    /// Channels that ended by an error.
    dead_channels: AtomicU16,
    /// Cancelled when there were too many of them.
    worn: CancellationToken,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// What connections tell.
#[derive(Debug)]
pub(crate) enum News {
    Lost(String),
    Blocked(String),
    Unblocked,
}

/// The events of both connections. There is one listener for each: they take events from each other.
pub(crate) struct Listener {
    publishing: BoxStream<'static, Event>,
    consuming: BoxStream<'static, Event>,
    look: tokio::time::Interval,
}

impl Listener {
    pub(crate) fn new(publishing: &Connection, consuming: &Connection) -> Self {
        Self {
            publishing: publishing.events_listener().boxed(),
            consuming: consuming.events_listener().boxed(),
            look: interval(LOOK),
        }
    }
}

impl Session {
    pub(crate) fn new(
        epoch: u64,
        version: Version,
        publishing: Connection,
        consuming: Connection,
        sockets: [Socket; 2],
    ) -> Self {
        Self {
            epoch,
            version,
            publishing,
            consuming,
            over: CancellationToken::new(),
            spare: Mutex::default(),
            retired: Mutex::default(),
            closed: OnceCell::new(),
            sockets: Mutex::new(sockets.into()),
            consumers: TaskTracker::new(),
            dead_channels: AtomicU16::new(0),
            worn: CancellationToken::new(),
        }
    }

    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The broker's.
    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    /// The largest frame that was agreed on, in bytes.
    pub(crate) fn frame_max(&self) -> u32 {
        self.publishing.configuration().frame_max()
    }

    /// Waits until it is over.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    pub(crate) fn end(&self) {
        self.over.cancel();
    }

    /// The next thing that the connections tell. Cancellation safe.
    pub(crate) async fn news(&self, listener: &mut Listener) -> News {
        loop {
            let (event, publishing) = tokio::select! {
                event = listener.publishing.next() => (event, true),
                event = listener.consuming.next() => (event, false),
                _ = listener.look.tick() => (None, false),
                () = self.worn.cancelled() => {
                    return News::Lost("too many of its channels had ended by errors".to_owned());
                }
            };
            match event {
                Some(Event::ConnectionBlocked(reason)) if publishing => {
                    return News::Blocked(reason);
                }
                Some(Event::ConnectionUnblocked) if publishing => return News::Unblocked,
                Some(Event::Error(error)) if !self.is_connected() => {
                    return News::Lost(error.to_string());
                }
                // The error of a channel, which whoever owns it hears of.
                Some(_) => {}
                None if !self.is_connected() => {
                    return News::Lost("the connection was closed".to_owned());
                }
                None => {}
            }
        }
    }

    fn is_connected(&self) -> bool {
        self.publishing.status().connected() && self.consuming.status().connected()
    }

    /// Opens a channel to publish on.
    pub(crate) async fn publishing_channel(
        &self,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Channel> {
        self.open_channel(&self.publishing, operation, deadline).await
    }

    /// Opens a channel to consume on.
    pub(crate) async fn consuming_channel(
        &self,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Channel> {
        self.open_channel(&self.consuming, operation, deadline).await
    }

    /// Opens a channel. The client library never forgets the error by which a channel ended, and
    /// gives it to every later channel of the same number; so another number is taken then.
    async fn open_channel(
        &self,
        connection: &Connection,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Channel> {
        loop {
            let opened = timeout_at(deadline, async {
                tokio::select! {
                    biased;
                    opened = connection.create_channel() => Some(opened),
                    () = self.over() => None,
                }
            });
            match opened.await.map_err(|_| late(operation))? {
                Some(Ok(channel)) => return Ok(channel),
                Some(Err(error)) if ends_a_channel(&error) && !self.is_over() => {}
                Some(Err(error)) => return Err(translate(operation, error)),
                None => return Err(lost(operation)),
            }
        }
    }

    /// Notes that a channel ended by an error. Its number cannot be used again, so a connection
    /// that runs out of numbers is replaced in time.
    pub(crate) fn note_dead_channel(&self) {
        let dead = self.dead_channels.fetch_add(1, Ordering::AcqRel);
        let numbers = self.consuming.configuration().channel_max();
        if dead >= numbers.saturating_sub(NUMBERS_LEFT).max(numbers / 2) {
            self.worn.cancel();
        }
    }

    /// A channel for one administrative call, to be [given back](Self::give_back).
    pub(crate) async fn admin_channel(
        &self,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Channel> {
        loop {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match spare {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => return self.consuming_channel(operation, deadline).await,
            }
        }
    }

    /// Keeps a channel for the next call, unless an error closed it.
    pub(crate) fn give_back(&self, channel: Channel) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if channel.status().connected() && spare.len() < SPARE_CHANNELS {
            spare.push(channel);
        }
    }

    /// Gives a call until `deadline` or until the session is over: the client library leaves some
    /// of those that a lost connection interrupts without an answer.
    pub(crate) async fn by<T>(
        &self,
        deadline: Instant,
        operation: &'static str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            outcome = timeout_at(deadline, call) => {
                outcome.map_err(|_| late(operation))?.map_err(|error| {
                    if ends_a_channel(&error) {
                        self.note_dead_channel();
                    }
                    translate(operation, error)
                })
            }
            () = self.over() => Err(lost(operation)),
        }
    }

    /// Closes one of its channels, within a time limit and while it is not over: then the channel
    /// goes with it.
    pub(crate) async fn close_channel(&self, channel: &Channel) {
        if !channel.status().connected() {
            return;
        }
        tokio::select! {
            biased;
            () = self.over() => self.retire(channel),
            _left = timeout(CLOSE_TIMEOUT, channel.close(200, "OK".into())) => {}
        }
    }

    /// Keeps a channel of a session that is over until its connections are closed.
    pub(crate) fn retire(&self, channel: &Channel) {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(channel.clone());
    }

    /// Runs the task that owns a consumer's channel.
    pub(crate) fn spawn(&self, owner: impl Future<Output = ()> + Send + 'static) {
        self.consumers.spawn(owner);
    }

    /// Waits until the tasks that own its consumers' channels have ended.
    pub(crate) async fn consumers_gone(&self) {
        self.consumers.close();
        self.consumers.wait().await;
    }

    /// Closes both connections, within a time limit. Whoever comes second waits for the first: a
    /// connection that is closed twice leaves a task of the client library waiting for ever.
    pub(crate) async fn close(&self) {
        let close = async || {
            self.end();
            let _left = timeout(LEAVE_TIMEOUT, self.consumers_gone()).await;
            let (publishing, consuming) = (&self.publishing, &self.consuming);
            future::join(close_connection(publishing), close_connection(consuming)).await;
            for channels in [&self.spare, &self.retired] {
                channels.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
        };
        self.closed.get_or_init(close).await;
    }
}

/// Whether it is the broker's answer to something wrong on one channel.
fn ends_a_channel(error: &lapin::Error) -> bool {
    error.is_amqp_soft_error()
}

fn lost(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the connection was lost meanwhile")
}

pub(crate) async fn close_connection(connection: &Connection) {
    if connection.status().connected() {
        // A connection that is blocked or half dead does not answer; then it is dropped as it is.
        let _left = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
    }
}
