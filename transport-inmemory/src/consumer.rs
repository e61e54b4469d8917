//! The consuming side: a stream of deliveries, and the way back for their settlements.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use futures_util::Stream;
use postrider_core::{
    ConsumerOptions, Delivery, DeliveryInfo, Error, ErrorKind, EventSender, Result, Settlement,
    SettlementSink, TransportEvent,
};

use crate::{
    broker::Shared,
    connection::Connection,
    queue::{Ledger, Queue, Settled, Taken},
};

/// How many assignments a stream takes over from its queue under one lock.
const TAKE: usize = 64;

/// One stay of a consumer at a queue, from its attaching until it is cancelled or lost.
pub(crate) struct Stay {
    connection: Arc<Connection>,
    queue: Arc<Queue>,
    /// Its id at the queue.
    consumer: u64,
    ledger: Arc<Ledger>,
    /// How many deliveries were handed out; [`STOPPED`] is added when there shall be no more.
    progress: AtomicU64,
}

const STOPPED: u64 = 1 << 63;

impl fmt::Debug for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stay").field("queue", &self.queue.name).finish_non_exhaustive()
    }
}

impl Stay {
    /// Claims the next delivery for handing out; `None` when the stay is over.
    fn claim(&self) -> Option<u64> {
        let tag = self.progress.fetch_add(1, Ordering::AcqRel);
        (tag & STOPPED == 0).then_some(tag)
    }

    /// Ends the handing out and gives the first tag that was not handed out; `None` when it was
    /// ended before.
    fn stop(&self) -> Option<u64> {
        let before = self.progress.fetch_or(STOPPED, Ordering::AcqRel);
        (before & STOPPED == 0).then_some(before)
    }

    /// Deliveries handed out and not settled, and those that wait to be handed out.
    pub(crate) fn unsettled(&self) -> (usize, usize) {
        let handed_out = self.progress.load(Ordering::Acquire) & !STOPPED;
        self.queue.lock().unsettled_of(self.consumer, handed_out)
    }

    /// Takes no more messages, and gives back those that were not handed out.
    pub(crate) fn cancel(&self, shared: &Shared) {
        if let Some(kept) = self.stop() {
            shared.update(&self.queue, |state, effects| {
                state.cancel(self.consumer, kept, shared.env(), effects);
            });
        }
    }

    /// Takes no more messages from the queue.
    pub(crate) fn halt(&self, shared: &Shared) {
        shared.update(&self.queue, |state, _| state.halt(self.consumer));
    }

    /// Gives back everything that is unsettled, counted as failed when the connection was lost.
    pub(crate) fn detach(&self, shared: &Shared, failed: bool) {
        let _kept = self.stop();
        shared.update(&self.queue, |state, effects| {
            state.detach(self.consumer, failed, shared.env(), effects);
        });
    }
}

impl SettlementSink for Stay {
    fn settle(&self, tag: u64, settlement: Settlement) {
        let shared = self.connection.broker().shared();
        if settlement == Settlement::Ack
            && let Some(call) = self.ledger.ack(tag)
        {
            if call {
                shared.update(&self.queue, |state, effects| {
                    state.call(self.consumer, shared.env(), effects);
                });
            }
            return;
        }
        let queue = || self.queue.name.to_string();
        if settlement == Settlement::Abandon {
            self.connection.events().send(TransportEvent::Abandoned { queue: queue() });
        }
        if shared.settle(&self.queue, self.consumer, tag, settlement) == Settled::Stale {
            self.connection.events().send(TransportEvent::StaleSettlement { queue: queue() });
        }
        if self.progress.load(Ordering::Acquire) & STOPPED != 0 {
            self.connection.note_settled();
        }
    }
}

#[derive(Debug)]
enum Place {
    /// At its queue.
    Attached(Arc<Stay>),
    /// Waiting for the connection to be restored.
    Suspended,
    /// Gone, with what its stream still has to say.
    Ended { error: Option<Error> },
}

/// A consumer over all its stays.
#[derive(Debug)]
pub(crate) struct Subscriber {
    queue: String,
    prefetch: u16,
    exclusive: bool,
    place: Mutex<(Place, Option<Waker>)>,
}

impl Subscriber {
    pub(crate) fn new(queue: &str, options: &ConsumerOptions) -> Arc<Self> {
        Arc::new(Self {
            queue: queue.to_owned(),
            prefetch: options.prefetch,
            exclusive: options.exclusive,
            place: Mutex::new((Place::Suspended, None)),
        })
    }

    fn place(&self) -> MutexGuard<'_, (Place, Option<Waker>)> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches it to its queue, unless it has ended or is attached meanwhile.
    pub(crate) fn attach(&self, connection: &Arc<Connection>) -> Result<()> {
        let queue = connection.existing_queue("consume", &self.queue)?;
        let shared = connection.broker().shared();
        let (consumer, ledger) = shared
            .update(&queue, |state, effects| {
                state.attach(self.prefetch, self.exclusive, shared.env(), effects)
            })
            .map_err(|error| error.with_context("queue", &*self.queue))?;
        let roster = connection.stays();
        let connection = connection.clone();
        let stay =
            Arc::new(Stay { connection, queue, consumer, ledger, progress: AtomicU64::new(0) });
        roster.enter(&stay);
        if !self.leave_suspension(Place::Attached(stay.clone())) {
            stay.cancel(shared);
        }
        Ok(())
    }

    /// Moves to another place and wakes the stream to see it; `false` when it is not suspended.
    fn leave_suspension(&self, place: Place) -> bool {
        let mut guard = self.place();
        if !matches!(guard.0, Place::Suspended) {
            return false;
        }
        guard.0 = place;
        let waker = guard.1.take();
        drop(guard);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The connection is lost: the stream waits for it, unless its queue was deleted before. Then it
    /// has ended, whether or not it has seen that, and another queue of that name is none of its.
    pub(crate) fn suspend(&self, events: &EventSender) {
        let mut guard = self.place();
        let Place::Attached(stay) = &guard.0 else { return };
        guard.0 = if stay.queue.lock().is_deleted() {
            Place::Ended { error: Some(end_of_queue(&self.queue, events)) }
        } else {
            Place::Suspended
        };
    }

    /// The connection is back: attaches it again, or ends it when its queue is gone.
    pub(crate) fn resume(&self, connection: &Arc<Connection>) {
        if !matches!(self.place().0, Place::Suspended) {
            return;
        }
        if let Err(error) = self.attach(connection) {
            connection.events().send(TransportEvent::ConsumerCancelled {
                queue: self.queue.clone(),
                cause: error.to_string(),
            });
            self.leave_suspension(Place::Ended { error: Some(error) });
        }
    }

    /// Ends the stream and gives the stay that it leaves, which is to be cancelled.
    pub(crate) fn end(&self) -> Option<Arc<Stay>> {
        let mut guard = self.place();
        if matches!(guard.0, Place::Ended { .. }) {
            return None;
        }
        let left = std::mem::replace(&mut guard.0, Place::Ended { error: None });
        let waker = guard.1.take();
        drop(guard);
        if let Some(waker) = waker {
            waker.wake();
        }
        match left {
            Place::Attached(stay) => Some(stay),
            _ => None,
        }
    }

    /// Its queue, what it handed out unsettled, and what it holds in advance, while it lives.
    pub(crate) fn health(&self) -> Option<(String, usize, usize)> {
        let (unsettled, buffered) = match &self.place().0 {
            Place::Attached(stay) => stay.unsettled(),
            Place::Suspended => (0, 0),
            Place::Ended { .. } => return None,
        };
        Some((self.queue.clone(), unsettled, buffered))
    }
}

/// The stream of a consumer.
#[derive(Debug)]
pub(crate) struct Deliveries {
    connection: Arc<Connection>,
    subscriber: Arc<Subscriber>,
    /// The stay that the buffer belongs to.
    stay: Option<Arc<Stay>>,
    buffer: VecDeque<Taken>,
    ended: bool,
}

impl Deliveries {
    pub(crate) const fn new(connection: Arc<Connection>, subscriber: Arc<Subscriber>) -> Self {
        Self { connection, subscriber, stay: None, buffer: VecDeque::new(), ended: false }
    }

    /// The next delivery of the buffer; what is left of a stay that is over was given back.
    fn next_buffered(&mut self) -> Option<Delivery> {
        let stay = self.stay.as_ref()?;
        let taken = self.buffer.pop_front()?;
        let Some(tag) = stay.claim() else {
            self.stay = None;
            self.buffer.clear();
            return None;
        };
        let mut info = DeliveryInfo::first(stay.queue.name.clone());
        info.attempt = taken.attempt;
        info.failures = taken.failures;
        info.first_failed = taken.first_failed;
        info.redelivered = taken.attempt > 1;
        Some(Delivery::new(taken.envelope, info, tag, stay.clone()))
    }

    /// Fills the buffer from the queue, or sees to it that the task is woken when there is more.
    fn poll_fill(&mut self, waker: &Waker) -> Poll<Option<Result<()>>> {
        loop {
            if let Some(stay) = self.stay.clone() {
                let shared = self.connection.broker().shared();
                let (is_here, is_deleted) = shared.update(&stay.queue, |state, effects| {
                    let (consumer, buffer) = (stay.consumer, &mut self.buffer);
                    let here = state.take(consumer, TAKE, buffer, waker, shared.env(), effects);
                    (here, state.is_deleted())
                });
                if is_here && self.buffer.is_empty() {
                    return Poll::Pending;
                }
                if is_here {
                    return Poll::Ready(Some(Ok(())));
                }
                self.leave(is_deleted);
            }
            let mut guard = self.subscriber.place();
            match &mut guard.0 {
                Place::Attached(stay) => self.stay = Some(stay.clone()),
                Place::Suspended => {
                    guard.1 = Some(waker.clone());
                    return Poll::Pending;
                }
                Place::Ended { error } => return Poll::Ready(error.take().map(Err)),
            }
        }
    }

    /// Leaves a stay that is over. When its queue was deleted under it, that is the end.
    fn leave(&mut self, deleted: bool) {
        let Some(stay) = self.stay.take() else { return };
        let mut guard = self.subscriber.place();
        let current = matches!(&guard.0, Place::Attached(known) if Arc::ptr_eq(known, &stay));
        if !(current && deleted) {
            return;
        }
        let error = end_of_queue(&stay.queue.name, self.connection.events());
        guard.0 = Place::Ended { error: Some(error) };
    }
}

/// Tells that a consumer's queue was deleted, and gives the error that it ends with.
fn end_of_queue(queue: &str, events: &EventSender) -> Error {
    let cause = "the queue was deleted";
    events.send(TransportEvent::ConsumerCancelled { queue: queue.to_owned(), cause: cause.into() });
    Error::new(ErrorKind::NotFound, "consume", cause).with_context("queue", queue)
}

impl Stream for Deliveries {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // A queue that never runs dry must not keep its task from others.
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        while !self.ended {
            if let Some(delivery) = self.next_buffered() {
                budget.made_progress();
                return Poll::Ready(Some(Ok(delivery)));
            }
            match ready!(self.poll_fill(cx.waker())) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.ended = true,
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        if let Some(stay) = self.subscriber.end() {
            stay.cancel(self.connection.broker().shared());
        }
    }
}
