//! How workers are told that a task is called off, and what they remember of it.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use postrider_core::{
    Address, Binding, Consumer, Env, Envelope, Exchange, Message, Queue, Topology,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{handler::Context, naming::Naming};

/// The type of a message that calls a task off.
const CANCEL: &str = "postrider.task.cancel";

/// How long such a message is worth something.
const TTL: Duration = Duration::from_secs(60);

/// How many such messages may wait for one worker; the oldest are dropped.
const MOST_WAITING: u64 = 10_000;

/// How many ids of tasks that were called off a worker remembers, and for how long.
const MOST_IDS: usize = 10_000;
const WINDOW: Duration = Duration::from_secs(3_600);

/// The exchange that leads to every worker of a queue.
pub(super) fn exchange(name: &str) -> Topology {
    Topology::new().exchange(Exchange::fanout(name.to_owned()))
}

/// To every worker, because nobody knows which of them has the task.
pub(super) fn cancel(exchange: String, id: String) -> Envelope {
    let message =
        Message::new("").with_type(CANCEL).with_correlation_id(id).with_ttl(TTL).transient();
    Envelope::new(Address::exchange(exchange, ""), message)
}

/// By what the worker `id` of `queue` is told.
pub(super) fn topology(naming: &Naming, queue: &str, id: &str) -> Topology {
    let own = naming.task_instance_queue(queue, id);
    let exchange_name = naming.task_exchange(queue);
    exchange(&exchange_name)
        .queue(Queue::exclusive(own.clone()).auto_delete().with_max_length(MOST_WAITING))
        .bind(Binding::queue(exchange_name, own, ""))
}

/// Takes in what a worker is told, until the worker has ended.
pub(super) async fn hear(
    mut consumer: Consumer,
    called_off: Weak<CalledOff>,
    env: Env,
    ended: CancellationToken,
) {
    while let Some(Some(told)) = ended.run_until_cancelled(consumer.recv()).await {
        let delivery = match told {
            Ok(delivery) => delivery,
            Err(error) => {
                tracing::error!(%error, "this worker is not told any more what is called off");
                return;
            }
        };
        let Some(called_off) = called_off.upgrade() else { return };
        let message = delivery.message();
        if message.message_type.as_deref() == Some(CANCEL)
            && let Some(id) = message.correlation_id.as_deref()
        {
            called_off.add(id, env.now());
        }
        delivery.ack();
    }
}

/// The tasks at work in one worker, and the ids of those that were called off.
#[derive(Debug, Default)]
pub(super) struct CalledOff(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    at_work: Vec<Context>,
    ids: HashSet<Arc<str>>,
    oldest_first: VecDeque<(Instant, Arc<str>)>,
}

impl Known {
    fn forget(&mut self, now: Instant) {
        while let Some((since, _)) = self.oldest_first.front()
            && (self.ids.len() > MOST_IDS || now.duration_since(*since) > WINDOW)
            && let Some((_, id)) = self.oldest_first.pop_front()
        {
            self.ids.remove(&id);
        }
    }
}

impl CalledOff {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the handler of a task, and remembers that it is not to be run.
    fn add(&self, id: &str, now: Instant) {
        let mut known = self.known();
        if known.ids.insert(id.into()) {
            known.oldest_first.push_back((now, id.into()));
        }
        known.forget(now);
        let at_work = known.at_work.iter();
        let told: Vec<_> =
            at_work.filter(|context| context.message_id() == Some(id)).cloned().collect();
        // Whoever waits for it is woken when the lock is free.
        drop(known);
        told.iter().for_each(Context::cancel);
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.known().ids.contains(id)
    }

    /// A task that is about to be at work.
    pub(super) const fn enter(&self) -> AtWork<'_> {
        AtWork { called_off: self, context: OnceLock::new() }
    }
}

/// A task at work, whose handler is told when it is called off.
pub(super) struct AtWork<'a> {
    called_off: &'a CalledOff,
    context: OnceLock<Context>,
}

impl AtWork<'_> {
    /// Its handler begins.
    pub(super) fn begin(&self, context: &Context) {
        if self.context.set(context.clone()).is_ok() {
            let mut known = self.called_off.known();
            known.at_work.push(context.clone());
            let is_called_off = context.message_id().is_some_and(|id| known.ids.contains(id));
            drop(known);
            if is_called_off {
                context.cancel();
            }
        }
    }

    /// Whether it was called off.
    pub(super) fn is_called_off(&self) -> bool {
        let id = self.context.get().and_then(Context::message_id);
        id.is_some_and(|id| self.called_off.contains(id))
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        if let Some(context) = self.context.get() {
            let mut known = self.called_off.known();
            if let Some(place) = known.at_work.iter().position(|other| other.is(context)) {
                known.at_work.swap_remove(place);
            }
        }
    }
}
