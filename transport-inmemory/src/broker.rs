//! The broker: what its connections share.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use postrider_core::{Env, Envelope, Settlement, TransportEvent, Verdict};

use crate::{
    connection::Connection,
    death::{Deaths, dead_letter},
    flow::{Flow, FlowChange},
    queue::{Admission, Dead, Effects, Queue, Settled, State},
    registry::Registry,
    roster::Roster,
    timer::Timer,
};

/// Bodies and bookkeeping that a broker holds before its publishers must wait: 1 GiB.
const DEFAULT_MEMORY_LIMIT: usize = 1 << 30;

/// The brokers of this process that have a name.
static NAMED: LazyLock<Mutex<HashMap<String, Broker>>> = LazyLock::new(Mutex::default);

/// A broker inside this process. Clones are the same broker.
///
/// [`InMemory::connect`](crate::InMemory::connect) finds it by its name; this type is for tests
/// that make its life hard.
///
/// # Example: a publish waits out an alarm
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), postrider_core::Error> {
/// use std::time::Duration;
/// use postrider_core::{Address, ErrorKind, Envelope, Message, PublisherOptions, Transport};
/// use postrider_transport_inmemory::InMemory;
///
/// let transport = InMemory::connect("memory://")?;
/// let options = PublisherOptions::default().with_timeout(Duration::from_secs(5));
/// let publisher = transport.publisher(options).await?;
///
/// transport.broker().raise_alarm("disk");
/// let sent = publisher.send(Envelope::new(Address::queue("orders"), Message::new("1"))).await;
/// assert_eq!(sent.unwrap_err().kind(), ErrorKind::Unavailable);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Broker(Arc<Shared>);

/// Names are for people; two brokers are the same when their clones are.
impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("name", &self.0.name).finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    name: String,
    env: Env,
    registry: RwLock<Registry>,
    /// Grows with each change of the registry, so that a publisher knows when a route it remembers
    /// is out of date.
    version: AtomicU64,
    flow: Flow,
    timer: Timer,
    connections: Roster<Connection>,
    next_connection: AtomicU64,
    stopped: AtomicBool,
}

impl Broker {
    /// A broker that only its clones know.
    #[must_use]
    pub fn new(env: Env) -> Self {
        Self::named_with("", env)
    }

    fn named_with(name: &str, env: Env) -> Self {
        Self(Arc::new(Shared {
            name: name.to_owned(),
            env,
            registry: RwLock::new(Registry::new()),
            version: AtomicU64::new(0),
            flow: Flow::new(DEFAULT_MEMORY_LIMIT),
            timer: Timer::default(),
            connections: Roster::default(),
            next_connection: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
        }))
    }

    /// The broker of this process with that name; it is made with `env` when it is first asked for,
    /// and lives as long as the process.
    #[must_use]
    pub fn named(name: &str, env: &Env) -> Self {
        NAMED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.to_owned())
            .or_insert_with(|| Self::named_with(name, env.clone()))
            .clone()
    }

    /// Lets publishers wait, as a broker low on disk or memory does; consuming goes on.
    pub fn raise_alarm(&self, reason: &str) {
        self.0.announce(self.0.flow.raise(reason));
    }

    /// Ends the alarm of [`raise_alarm`](Self::raise_alarm).
    pub fn clear_alarm(&self) {
        self.0.announce(self.0.flow.clear());
    }

    /// Sets how many bytes the broker holds, bookkeeping included, before publishers must wait
    /// until a fifth of it is free again. Default: 1 GiB. Queues report in steps of 64 KiB.
    pub fn set_memory_limit(&self, bytes: usize) {
        self.0.announce(self.0.flow.set_memory_limit(bytes));
    }

    /// The bytes that queues hold now, bookkeeping included: 0 when all of them are empty.
    #[must_use]
    pub fn memory_used(&self) -> usize {
        let queues: Vec<_> = self.0.registry().queues().cloned().collect();
        let unreported: isize = queues.iter().map(|queue| queue.lock().unreported()).sum();
        self.0.flow.memory_used().saturating_add_signed(unreported)
    }

    /// Stores messages without telling their publishers, as a broker with a slow disk does. When
    /// the connection is lost meanwhile, their verdict is `Unknown`.
    pub fn hold_confirms(&self) {
        self.0.flow.hold_confirms();
    }

    /// Tells publishers what [`hold_confirms`](Self::hold_confirms) kept back, and holds no more.
    pub fn release_confirms(&self) {
        self.0.flow.release_confirms();
    }

    /// Stops the broker: all connections are lost, and with them what does not outlive a restart:
    /// exclusive and transient queues, transient exchanges, and the transient messages of classic
    /// queues.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        for connection in self.0.connections.alive() {
            connection.lose("the broker was stopped");
        }
        let (transient, durable): (_, Vec<_>) = {
            let mut registry = self.0.registry_mut();
            let transient = registry.restart();
            (transient, registry.queues().cloned().collect())
        };
        for queue in transient {
            self.0.bury_queue(&queue);
        }
        for queue in durable {
            self.0.update(&queue, |state, _| state.restart());
        }
    }

    /// Starts it again: the connections restore themselves.
    pub fn start(&self) {
        self.0.stopped.store(false, Ordering::Release);
        for connection in self.0.connections.alive() {
            connection.restore();
        }
    }

    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Shared {
    pub(crate) const fn env(&self) -> &Env {
        &self.env
    }

    pub(crate) const fn flow(&self) -> &Flow {
        &self.flow
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn registry_mut(&self) -> RwLockWriteGuard<'_, Registry> {
        let guard = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: whoever reads the new version and then the registry sees the change.
        self.version.fetch_add(1, Ordering::AcqRel);
        guard
    }

    // Connections

    pub(crate) fn next_connection(&self) -> u64 {
        self.next_connection.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) const fn connections(&self) -> &Roster<Connection> {
        &self.connections
    }

    fn announce(&self, change: Option<FlowChange>) {
        let event = match change {
            Some(FlowChange::Blocked(reason)) => TransportEvent::Blocked { reason },
            Some(FlowChange::Unblocked) => TransportEvent::Unblocked,
            None => return,
        };
        for connection in self.connections.alive() {
            connection.events().send(event.clone());
        }
    }

    /// Keeps the appointments of all queues, for ever.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        loop {
            self.timer.next_due().await;
            for queue in self.timer.take_due(self.env.now()) {
                if let Some(queue) = queue.upgrade() {
                    self.update(&queue, |state, effects| state.tick(&self.env, effects));
                }
            }
        }
    }

    // Queues

    /// Changes a queue under its lock, and does what follows from it when the lock is free.
    pub(crate) fn update<T>(
        &self,
        queue: &Arc<Queue>,
        change: impl FnOnce(&mut State, &mut Effects) -> T,
    ) -> T {
        let (result, effects) = changed(queue, change);
        self.apply(queue, effects);
        result
    }

    /// Does what follows from a change. Dead letters change other queues, from which more follows:
    /// that is done in turn and not in depth, since the chain may be long.
    fn apply(&self, queue: &Arc<Queue>, effects: Effects) {
        let mut more = Vec::new();
        self.apply_one(queue, effects, &mut more);
        while let Some((queue, effects)) = more.pop() {
            self.apply_one(&queue, effects, &mut more);
        }
    }

    fn apply_one(
        &self,
        queue: &Arc<Queue>,
        effects: Effects,
        more: &mut Vec<(Arc<Queue>, Effects)>,
    ) {
        for waker in effects.wakers {
            waker.wake();
        }
        for dead in effects.dead {
            self.dead_letter(queue, dead, more);
        }
        if let Some(at) = effects.timer {
            self.timer.schedule(at, queue);
        }
        if effects.memory != 0 {
            self.announce(self.flow.account(effects.memory));
        }
        if effects.delete {
            self.delete_queue(queue);
        }
    }

    /// Stores a message in each of its queues, hidden for `delay`. `reclaim` is filled with messages that were
    /// acknowledged there, for their memory.
    pub(crate) fn publish(
        &self,
        envelope: &Arc<Envelope>,
        delay: Duration,
        queues: &[Arc<Queue>],
        mut reclaim: Option<&mut Vec<Arc<Envelope>>>,
    ) -> Verdict {
        let mut verdict = Verdict::Unroutable;
        for queue in queues {
            let admit = |state: &mut State, effects: &mut Effects| {
                if let Some(reclaimed) = reclaim.take() {
                    state.reclaim(reclaimed);
                }
                state.admit(envelope.clone(), delay, None, &self.env, effects)
            };
            match self.update(queue, admit) {
                Admission::Stored if verdict == Verdict::Unroutable => verdict = Verdict::Accepted,
                Admission::Refused => {
                    verdict = Verdict::Rejected(format!("queue '{}' is full", queue.name).into());
                }
                Admission::Stored | Admission::Gone => {}
            }
        }
        verdict
    }

    /// Sends a dead message on. Without a dead-letter exchange it is dropped, and so it is when the
    /// target refuses it: dead-lettering inside the broker is at most once, as RabbitMQ's default.
    fn dead_letter(&self, queue: &Arc<Queue>, dead: Dead, more: &mut Vec<(Arc<Queue>, Effects)>) {
        let Dead { entry, reason, text } = dead;
        let Some(target) = &queue.spec.dead_letter else {
            tracing::debug!(queue = %queue.name, ?reason, "dropped: no dead-letter exchange");
            return;
        };
        let (envelope, deaths) =
            dead_letter(&entry, &queue.name, target, reason, text, self.env.timestamp());
        let targets = self.registry().route_within(&envelope.address, &envelope.message.headers);
        let envelope = Arc::new(envelope);
        for target in targets.iter().filter(|target| !deaths.is_cycle(&target.name)) {
            let deaths: Option<Box<Deaths>> = Some(Box::new(deaths.clone()));
            let (_admission, effects) = changed(target, |state, effects| {
                state.admit(envelope.clone(), Duration::ZERO, deaths, &self.env, effects)
            });
            more.push((target.clone(), effects));
        }
    }

    pub(crate) fn settle(
        &self,
        queue: &Arc<Queue>,
        consumer: u64,
        tag: u64,
        settlement: Settlement,
    ) -> Settled {
        self.update(queue, |state, effects| {
            state.settle(consumer, tag, settlement, &self.env, effects)
        })
    }

    /// Deletes a queue with its messages and bindings, unless another of its name took its place.
    pub(crate) fn delete_queue(&self, queue: &Arc<Queue>) {
        let mut registry = self.registry_mut();
        if registry.queue(&queue.name).is_some_and(|known| Arc::ptr_eq(known, queue)) {
            registry.remove_queue(&queue.name);
        }
        drop(registry);
        self.bury_queue(queue);
    }

    fn bury_queue(&self, queue: &Arc<Queue>) {
        self.update(queue, |state, effects| state.delete(effects));
    }
}

/// Changes a queue under its lock and gives what follows from it.
fn changed<T>(queue: &Queue, change: impl FnOnce(&mut State, &mut Effects) -> T) -> (T, Effects) {
    let mut effects = Effects::default();
    let mut state = queue.lock();
    let result = change(&mut state, &mut effects);
    state.report(&mut effects);
    (result, effects)
}
