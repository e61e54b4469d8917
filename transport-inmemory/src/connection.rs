//! A connection: its state, what it owns, and how it is lost, restored and closed.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use postrider_core::{
    Capabilities, ConnectionState, ConsumerHealth, ConsumerOptions, Delay, Env, Error, ErrorKind,
    EventSender, Health, ReplyMode, Result, TransportEvent,
};
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle, time::timeout};

use crate::{
    broker::{Broker, Shared},
    consumer::{Stay, Subscriber},
    record::Record,
    roster::Roster,
    stage::{Stage, StageCell},
};

/// How long a call other than a publish waits for a lost connection.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest body: RabbitMQ's default, 16 MiB.
const MAX_MESSAGE_SIZE: u64 = 16 * 1024 * 1024;

pub(crate) struct Connection {
    id: u64,
    url: String,
    env: Env,
    broker: Broker,
    capabilities: Capabilities,
    stage: StageCell,
    /// Held while consumers are added, or all of them are suspended, resumed or ended.
    change: Mutex<()>,
    changed: Notify,
    epoch: AtomicU64,
    events: EventSender,
    record: Mutex<Record>,
    subscribers: Roster<Subscriber>,
    /// Also those of consumers that are gone and left deliveries unsettled.
    stays: Roster<Stay>,
    /// Told of each settlement while the connection closes.
    settled: Notify,
    clock: AbortHandle,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn open(broker: &Broker, url: String, env: Env) -> Result<Arc<Self>> {
        let runtime = Handle::try_current().map_err(|source| {
            Error::new(
                ErrorKind::Invalid,
                "connect",
                "a connection needs a tokio runtime to live in",
            )
            .with_source(source)
        })?;
        let shared = broker.shared();
        if shared.is_stopped() {
            return Err(Error::new(ErrorKind::Unavailable, "connect", "the broker is stopped")
                .with_context("url", url));
        }
        let connection = Arc::new(Self {
            id: shared.next_connection(),
            url,
            env,
            broker: broker.clone(),
            capabilities: capabilities(),
            stage: StageCell::new(Stage::Up),
            change: Mutex::new(()),
            changed: Notify::new(),
            epoch: AtomicU64::new(1),
            events: EventSender::default(),
            record: Mutex::default(),
            subscribers: Roster::default(),
            stays: Roster::default(),
            settled: Notify::new(),
            clock: runtime.spawn(shared.clone().keep_time()).abort_handle(),
        });
        shared.connections().enter(&connection);
        Ok(connection)
    }

    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) const fn env(&self) -> &Env {
        &self.env
    }

    pub(crate) const fn broker(&self) -> &Broker {
        &self.broker
    }

    /// What it declared, to be restored.
    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    pub(crate) const fn events(&self) -> &EventSender {
        &self.events
    }

    // State

    /// Whether publishes are taken: until it is closed, since handlers that finish while it drains
    /// have something to say.
    pub(crate) fn takes_publishes(&self) -> bool {
        matches!(self.stage.get(), Stage::Up | Stage::Closing)
            && !self.broker.shared().flow().is_blocked()
    }

    /// Waits until the connection is there; `Closed` when it will not be.
    async fn up(&self, operation: &'static str) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            match self.stage.get() {
                Stage::Up => return Ok(()),
                Stage::Closing | Stage::Closed => {
                    return Err(Error::new(
                        ErrorKind::Closed,
                        operation,
                        "the transport is closed",
                    ));
                }
                Stage::Down => changed.await,
            }
        }
    }

    /// Waits for the connection, within the time for operations.
    pub(crate) async fn ready(&self, operation: &'static str) -> Result<()> {
        timeout(OPERATION_TIMEOUT, self.up(operation)).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Unavailable,
                operation,
                "the connection was not restored in time",
            )
            .with_context("url", &*self.url))
        })
    }

    /// Waits until publishes are taken, at most for `limit`.
    pub(crate) async fn ready_to_publish(&self, limit: Duration) -> Result<()> {
        let flow = self.broker.shared().flow();
        let wait = async {
            loop {
                let changed = self.changed.notified();
                match self.stage.get() {
                    _ if self.takes_publishes() => return Ok(()),
                    Stage::Closed => return Err(closed("publish")),
                    Stage::Down => changed.await,
                    Stage::Up | Stage::Closing => tokio::select! {
                        () = flow.unblocked() => {}
                        () = changed => {}
                    },
                }
            }
        };
        timeout(limit, wait).await.unwrap_or_else(|_| {
            let why = flow.reason().map_or_else(
                || "the connection was not restored in time".to_owned(),
                |reason| format!("the broker takes no publishes ({reason})"),
            );
            Err(Error::new(ErrorKind::Unavailable, "publish", why).with_context("url", &*self.url))
        })
    }

    pub(crate) fn health(&self) -> Health {
        let state = match self.stage.get() {
            Stage::Up if self.broker.shared().flow().is_blocked() => ConnectionState::Blocked,
            Stage::Up | Stage::Closing => ConnectionState::Connected,
            Stage::Down => ConnectionState::Reconnecting,
            Stage::Closed => ConnectionState::Closed,
        };
        let consumers = self
            .subscribers
            .alive()
            .iter()
            .filter_map(|subscriber| subscriber.health())
            .map(|(queue, unsettled, buffered)| {
                ConsumerHealth::new(queue, buffered as u64, unsettled as u64)
            })
            .collect();
        Health::new(state, consumers)
    }

    // Consumers

    pub(crate) fn subscribe(
        self: &Arc<Self>,
        queue: &str,
        options: &ConsumerOptions,
    ) -> Result<Arc<Subscriber>> {
        // So that it is not attached behind the back of a loss or a close.
        let _nothing_else = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        match self.stage.get() {
            Stage::Up => {}
            Stage::Down => {
                let message = "the connection was lost just now";
                return Err(Error::new(ErrorKind::Unavailable, "consume", message));
            }
            Stage::Closing | Stage::Closed => return Err(closed("consume")),
        }
        let subscriber = Subscriber::new(queue, options);
        self.subscribers.enter(&subscriber);
        subscriber.attach(self)?;
        Ok(subscriber)
    }

    pub(crate) const fn stays(&self) -> &Roster<Stay> {
        &self.stays
    }

    /// Deliveries handed out and not settled.
    fn unsettled(&self) -> usize {
        self.stays.alive().iter().map(|stay| stay.unsettled().0).sum()
    }

    /// Notes a settlement, which a closing connection waits for.
    pub(crate) fn note_settled(&self) {
        self.settled.notify_waiters();
    }

    // Loss and recovery

    /// The connection breaks: what it had unsettled goes back as failed, its exclusive queues go.
    pub(crate) fn lose(&self, cause: &'static str) {
        let _nothing_else = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stage.step(Stage::Up, Stage::Down) {
            return;
        }
        let shared = self.broker.shared();
        self.record().prune(&shared.registry());
        // Before the subscribers let go of theirs.
        let stays = self.stays.alive();
        for subscriber in self.subscribers.alive() {
            subscriber.suspend(&self.events);
        }
        // With all they hold: what would come back to them is nobody's dead letter.
        self.drop_exclusive_queues();
        give_back(shared, &stays, true);
        shared.flow().forget_confirms(self.id, cause);
        self.events.send(TransportEvent::Lost { cause: cause.to_owned() });
    }

    /// Brings back what [`lose`](Self::lose) took.
    pub(crate) fn restore(self: &Arc<Self>) {
        let _nothing_else = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stage.get() != Stage::Down || self.broker.shared().is_stopped() {
            return;
        }
        let mortal = self.record().mortal();
        for (entity, cause) in self.restore_topology(&mortal) {
            tracing::error!(%entity, %cause, "not restored");
            self.events.send(TransportEvent::NotRestored { entity, cause });
        }
        for subscriber in self.subscribers.alive() {
            subscriber.resume(self);
        }
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        // Unless it was closed meanwhile.
        if self.stage.step(Stage::Down, Stage::Up) {
            self.changed.notify_waiters();
        }
        self.events.send(TransportEvent::Restored { epoch });
    }

    fn drop_exclusive_queues(&self) {
        let shared = self.broker.shared();
        let owned: Vec<_> = {
            let registry = shared.registry();
            registry.queues().filter(|queue| queue.owner == Some(self.id)).cloned().collect()
        };
        for queue in owned {
            shared.delete_queue(&queue);
        }
    }

    // Closing

    pub(crate) async fn close(&self, deadline: Duration) -> Result<()> {
        if self.stage.step(Stage::Down, Stage::Closing) {
            // What it had went back when it was lost.
            self.finish();
            return Ok(());
        }
        if !self.stage.step(Stage::Up, Stage::Closing) {
            return Ok(());
        }
        self.changed.notify_waiters();
        let shared = self.broker.shared();
        self.stop_consuming();
        let drained = async {
            loop {
                let settled = self.settled.notified();
                if self.unsettled() == 0 {
                    break;
                }
                settled.await;
            }
            shared.flow().confirmed(self.id).await;
        };
        let in_time = timeout(deadline, drained).await.is_ok();
        let left = self.unsettled();
        self.finish();
        if in_time {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::TimedOut,
            "close",
            format!("closed at the deadline with {left} deliveries unsettled; they come again"),
        )
        .with_context("url", &*self.url))
    }

    /// Ends all streams. What they handed out can still be settled; what they had in advance goes
    /// back when none of them takes it from another.
    fn stop_consuming(&self) {
        let _nothing_else = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = self.broker.shared();
        let subscribers = self.subscribers.alive();
        let ended: Vec<_> = subscribers.iter().filter_map(|subscriber| subscriber.end()).collect();
        for stay in &ended {
            stay.halt(shared);
        }
        for stay in &ended {
            stay.cancel(shared);
        }
    }

    /// Gives everything back and ends.
    fn finish(&self) {
        let shared = self.broker.shared();
        let stays = self.stays.alive();
        self.stop_consuming();
        give_back(shared, &stays, false);
        shared.flow().forget_confirms(self.id, "the transport was closed");
        self.drop_exclusive_queues();
        self.clock.abort();
        self.stage.set(Stage::Closed);
        self.changed.notify_waiters();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.stage.get() != Stage::Closed {
            self.finish();
        }
    }
}

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, "the transport is closed")
}

/// Gives back what these stays have unsettled. All are halted first, so that none gets what another
/// gives back.
fn give_back(shared: &Shared, stays: &[Arc<Stay>], failed: bool) {
    for stay in stays {
        stay.halt(shared);
    }
    for stay in stays {
        stay.detach(shared, failed);
    }
}

fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::minimal();
    capabilities.topology = true;
    capabilities.delayed_publish = Delay::Native;
    capabilities.delayed_retry = Delay::Native;
    capabilities.priority_levels = 32;
    capabilities.delivery_limit = true;
    capabilities.uncounted_release = true;
    capabilities.exact_attempts = true;
    capabilities.max_message_size = Some(MAX_MESSAGE_SIZE);
    capabilities.reply_mode = ReplyMode::ExclusiveQueue;
    capabilities.exclusive_consumers = true;
    capabilities.nested_headers = true;
    capabilities.reject_reason = true;
    capabilities
}
