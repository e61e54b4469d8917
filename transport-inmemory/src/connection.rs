//! A connection: its state, what it owns, and how it is lost, restored and closed.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use postrider_core::{
    Action, Capabilities, ConnectionState, ConsumerHealth, ConsumerOptions, Delay, Difference,
    Entity, Env, Error, ErrorKind, EventSender, Health, Plan, QueueInfo, ReplyMode, Result, Step,
    Topology, TransportEvent,
};
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle, time::timeout};

use crate::{
    broker::{Broker, Shared},
    consumer::{Stay, Subscriber},
    queue::Queue,
    record::Record,
    registry::Registry,
    roster::Roster,
    rules,
};

/// How long a call other than a publish waits for a lost connection.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest body: RabbitMQ's default, 16 MiB.
const MAX_MESSAGE_SIZE: u64 = 16 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Up,
    Down,
    Closing,
    Closed,
}

/// The stage of a connection; read for each publish, so it is one atomic number.
#[derive(Debug)]
struct StageCell(AtomicU8);

impl StageCell {
    const fn new(stage: Stage) -> Self {
        Self(AtomicU8::new(stage as u8))
    }

    fn get(&self) -> Stage {
        const ALL: [Stage; 4] = [Stage::Up, Stage::Down, Stage::Closing, Stage::Closed];
        ALL[usize::from(self.0.load(Ordering::Acquire))]
    }

    /// Steps from one stage to another; `false` when it is at a third.
    fn step(&self, from: Stage, to: Stage) -> bool {
        let order = Ordering::AcqRel;
        self.0.compare_exchange(from as u8, to as u8, order, Ordering::Acquire).is_ok()
    }

    fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Release);
    }
}

pub(crate) struct Connection {
    id: u64,
    url: String,
    env: Env,
    broker: Broker,
    capabilities: Capabilities,
    stage: StageCell,
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub(crate) const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    pub(crate) const fn events(&self) -> &EventSender {
        &self.events
    }

    // State

    /// Whether it is open and publishes are taken.
    pub(crate) fn takes_publishes(&self) -> bool {
        self.stage.get() == Stage::Up && !self.broker.shared().flow().is_blocked()
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
                self.up("publish").await?;
                tokio::select! {
                    () = flow.unblocked() => {}
                    () = changed => {}
                }
                if self.takes_publishes() {
                    return Ok(());
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

    // Topology

    /// Finds a queue that this connection may use.
    pub(crate) fn queue(
        &self,
        registry: &Registry,
        operation: &'static str,
        name: &str,
    ) -> Result<Option<Arc<Queue>>> {
        match registry.queue(name) {
            Some(queue) if queue.owner.is_some_and(|owner| owner != self.id) => Err(Error::new(
                ErrorKind::Locked,
                operation,
                "the queue is exclusive to another connection",
            )
            .with_context("queue", name)),
            queue => Ok(queue.cloned()),
        }
    }

    pub(crate) fn existing_queue(&self, operation: &'static str, name: &str) -> Result<Arc<Queue>> {
        self.queue(&self.broker.shared().registry(), operation, name)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, operation, "there is no such queue; declare it first")
                .with_context("queue", name)
        })
    }

    pub(crate) fn queue_info(&self, name: &str) -> Result<Option<QueueInfo>> {
        let shared = self.broker.shared();
        let queue = self.queue(&shared.registry(), "queue_info", name)?;
        Ok(queue
            .map(|queue| shared.update(&queue, |state, effects| state.info(shared.env(), effects))))
    }

    pub(crate) fn plan(&self, topology: &Topology) -> Result<Plan> {
        let registry = self.broker.shared().registry();
        let action = |found: bool, difference: Option<Difference>| match (found, difference) {
            (false, _) => Action::Create,
            (true, None) => Action::Keep,
            (true, Some(difference)) => Action::Conflict(difference),
        };
        let mut steps = Vec::new();
        for wanted in &topology.exchanges {
            wanted.check()?;
            let found = registry.exchange(&wanted.name);
            let difference = found.and_then(|found| Difference::of_exchanges(wanted, found));
            let action = action(found.is_some(), difference);
            steps.push(Step { entity: Entity::Exchange(wanted.clone()), action });
        }
        for wanted in &topology.queues {
            rules::check_queue(wanted)?;
            let found = self.queue(&registry, "plan", &wanted.name)?;
            let difference =
                found.as_ref().and_then(|found| Difference::of_queues(wanted, &found.spec));
            let action = action(found.is_some(), difference);
            steps.push(Step { entity: Entity::Queue(Box::new(wanted.clone())), action });
        }
        for wanted in &topology.bindings {
            wanted.check()?;
            let action = action(registry.has_binding(wanted), None);
            steps.push(Step { entity: Entity::Binding(wanted.clone()), action });
        }
        Ok(Plan { steps })
    }

    pub(crate) fn declare(&self, topology: &Topology) -> Result<()> {
        let shared = self.broker.shared();
        // The plan tells of whatever stands against it before anything is changed.
        let plan = self.plan(topology)?;
        if let Some((entity, difference)) = plan.differences().next() {
            return Err(difference.clone().into_error(entity));
        }
        let now = self.env.now();
        let mut registry = shared.registry_mut();
        for exchange in &topology.exchanges {
            if registry.exchange(&exchange.name).is_none() {
                registry.add_exchange(exchange.clone());
            }
        }
        let mut declared = Vec::new();
        for spec in &topology.queues {
            let queue = self.queue(&registry, "declare", &spec.name)?.unwrap_or_else(|| {
                let owner = spec.exclusive.then_some(self.id);
                let queue = Arc::new(Queue::new(spec.clone(), owner, now));
                registry.add_queue(queue.clone());
                queue
            });
            declared.push(queue);
        }
        for binding in &topology.bindings {
            if let postrider_core::Target::Queue(name) = &binding.target {
                self.queue(&registry, "declare", name)?;
            }
            registry.bind(binding.clone())?;
        }
        locked(&self.record).add(topology, &registry);
        drop(registry);
        for queue in declared {
            shared.update(&queue, |state, _| state.touch(now));
        }
        Ok(())
    }

    pub(crate) fn remove(&self, topology: &Topology) -> Result<()> {
        let shared = self.broker.shared();
        let mut queues = Vec::new();
        {
            let mut registry = shared.registry_mut();
            for queue in &topology.queues {
                queues.extend(self.queue(&registry, "remove", &queue.name)?);
            }
            for binding in &topology.bindings {
                registry.unbind(binding);
            }
            for exchange in &topology.exchanges {
                exchange.check()?;
                registry.remove_exchange(&exchange.name);
            }
        }
        for queue in queues {
            shared.delete_queue(&queue);
        }
        locked(&self.record).remove(topology);
        Ok(())
    }

    // Consumers

    pub(crate) fn subscribe(
        self: &Arc<Self>,
        queue: &str,
        options: &ConsumerOptions,
    ) -> Result<Arc<Subscriber>> {
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
        if !self.stage.step(Stage::Up, Stage::Down) {
            return;
        }
        let shared = self.broker.shared();
        locked(&self.record).prune(&shared.registry());
        // Before the subscribers let go of theirs.
        let stays = self.stays.alive();
        for subscriber in self.subscribers.alive() {
            subscriber.suspend();
        }
        give_back(shared, &stays, true);
        shared.flow().forget_confirms(self.id, cause);
        self.drop_exclusive_queues();
        self.events.send(TransportEvent::Lost { cause: cause.to_owned() });
    }

    /// Brings back what [`lose`](Self::lose) took.
    pub(crate) fn restore(self: &Arc<Self>) {
        if self.stage.get() != Stage::Down || self.broker.shared().is_stopped() {
            return;
        }
        let topology = locked(&self.record).topology().clone();
        if let Err(error) = self.declare(&topology) {
            tracing::error!(%error, "the topology could not be restored");
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
        let begun = self.stage.step(Stage::Up, Stage::Closing)
            || self.stage.step(Stage::Down, Stage::Closing);
        if !begun {
            return Ok(());
        }
        self.changed.notify_waiters();
        let shared = self.broker.shared();
        for stay in self.stays.alive() {
            stay.halt(shared);
        }
        for subscriber in self.subscribers.alive() {
            subscriber.stop(shared);
        }
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

    /// Gives everything back and ends.
    fn finish(&self) {
        let shared = self.broker.shared();
        let stays = self.stays.alive();
        for subscriber in self.subscribers.alive() {
            subscriber.stop(shared);
        }
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
    capabilities.nested_headers = true;
    capabilities.reject_reason = true;
    capabilities
}
