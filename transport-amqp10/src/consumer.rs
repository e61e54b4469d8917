//! The consuming side: a stream of deliveries over all stays of a consumer.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use fe2o3_amqp::{Receiver, link::CreditMode};
use fe2o3_amqp_types::{
    definitions::{ReceiverSettleMode, SenderSettleMode},
    messaging::{FilterSet, Source},
    primitives::{Symbol, Timestamp, Value},
};
use futures_util::{Stream, future::BoxFuture};
use postrider_core::{
    ConsumerHealth, ConsumerOptions, Delivery, Error, ErrorKind, Queue, QueueKind, Result,
    StreamStart, TransportEvent,
};
use postrider_rabbitmq::queue_goes_by_itself;
use serde_amqp::{described::Described, descriptor::Descriptor};
use tokio::time::{Instant, sleep};

use crate::{
    admin::Admin,
    connection::Connection,
    error::{lost, of_receiver},
    link::Guard,
    message::Delivered,
    owner::{Consuming, Owner},
    provisioned,
    replies::{Dynamic, made},
    sessions::Seat,
    stay::Stay,
};

/// All outcomes: what a source does not list, it may not be given.
pub(crate) const OUTCOMES: [&str; 4] =
    ["amqp:accepted:list", "amqp:rejected:list", "amqp:released:list", "amqp:modified:list"];

/// The filter that says where a stream is read from, and its descriptor.
const STREAM_START: &str = "rabbitmq:stream-offset-spec";

/// How long to wait before a consumer whose link was ended consumes again.
const REATTACH_PAUSE: Duration = Duration::from_millis(200);

/// A delivery that waits to be handed out.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) stay: Arc<Stay>,
    pub(crate) tag: u64,
    pub(crate) delivered: Delivered,
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

#[derive(Debug)]
struct Inner {
    place: Place,
    /// Bounded by the prefetch: the broker sends no more.
    buffer: VecDeque<Taken>,
    waker: Option<Waker>,
    /// Where a stream is read on.
    next_offset: Option<u64>,
}

/// A consumer over all its stays.
#[derive(Debug)]
pub(crate) struct Subscriber {
    /// The queue's name; of answers by what the broker makes, what they are called.
    queue: Arc<str>,
    /// What the broker makes for it at each attach.
    dynamic: Option<Dynamic>,
    options: ConsumerOptions,
    /// Kept open by the consumer's stream and by its stays, not by this.
    guard: Weak<Guard>,
    inner: Mutex<Inner>,
}

impl Subscriber {
    pub(crate) fn new(guard: &Arc<Guard>, queue: &str, options: ConsumerOptions) -> Arc<Self> {
        Self::make(guard, queue, options, None)
    }

    /// A consumer of what the broker makes for it.
    pub(crate) fn of_replies(
        guard: &Arc<Guard>,
        name: &str,
        options: ConsumerOptions,
        dynamic: Dynamic,
    ) -> Arc<Self> {
        Self::make(guard, name, options, Some(dynamic))
    }

    fn make(
        guard: &Arc<Guard>,
        queue: &str,
        options: ConsumerOptions,
        dynamic: Option<Dynamic>,
    ) -> Arc<Self> {
        Arc::new(Self {
            queue: queue.into(),
            dynamic,
            options,
            guard: Arc::downgrade(guard),
            inner: Mutex::new(Inner {
                place: Place::Suspended,
                buffer: VecDeque::new(),
                waker: None,
                next_offset: None,
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to consume over a link of its own.
    pub(crate) async fn attach(self: &Arc<Self>, connection: &Arc<Connection>) -> Result<()> {
        let Some(guard) = self.guard.upgrade() else { return Ok(()) };
        let deadline = guard.link().operation_deadline();
        let in_context = |error: Error| error.with_context("queue", self.queue.to_string());
        let spec = guard.link().record().queue(&self.queue).cloned();
        let kind = match self.dynamic {
            Some(_) => Some(QueueKind::Classic),
            None => self.kind(connection, spec.as_ref(), deadline).await.map_err(in_context)?,
        };
        let keeps_order = spec.as_ref().is_some_and(|spec| spec.single_active_consumer);
        // What is given back first might leave it for where its dead letters go.
        let goes_with_it = spec.as_ref().is_some_and(|spec| spec.auto_delete);
        let seat = connection.seat("consume", deadline).await.map_err(in_context)?;
        let start = self.inner().next_offset.map(StreamStart::Offset).or(self.options.start);
        let receiver = connection.by(deadline, "consume", self.receiver(&guard, &seat, start));
        let receiver = receiver.await.and_then(|attached| attached).map_err(in_context)?;
        let queue = match &self.dynamic {
            Some(_) => made(connection.dialect(), &receiver).map_err(in_context)?,
            None => self.queue.clone(),
        };
        let stay = Stay::new(guard.clone(), queue);
        guard.link().stays().enter(&stay);
        if !self.leave_suspension(Place::Attached(stay.clone())) {
            stay.stop(Vec::new());
        }
        if connection.is_over() {
            // Whoever suspends consumers may have been here before it was attached.
            stay.lose();
            self.suspend();
            return Err(in_context(lost("consume")));
        }
        let consuming = Consuming {
            receiver,
            seat,
            prefetch: self.options.prefetch,
            keeps_order,
            is_stream: kind == Some(QueueKind::Stream),
            is_settled: self.dynamic.as_ref().is_some_and(|dynamic| dynamic.is_direct),
            delays: kind == Some(QueueKind::Quorum) && connection.version().delays_retries(),
            counts_end: kind == Some(QueueKind::Classic) && !goes_with_it,
        };
        let owner = Owner::new(stay, self.clone(), connection.clone(), consuming);
        connection.spawn(owner.run());
        Ok(())
    }

    /// What kind of queue it is. A refused link ends its session on older versions, so it is asked
    /// before.
    async fn kind(
        &self,
        connection: &Arc<Connection>,
        spec: Option<&Queue>,
        deadline: Instant,
    ) -> Result<Option<QueueKind>> {
        let known = match connection.dialect().foreign() {
            Some(_) => provisioned::known(connection, &self.queue, deadline).await.map(Some),
            None => Admin::new(connection, "consume", deadline).queue(&self.queue).await,
        };
        match known {
            Ok(Some(known)) => Ok(known.kind),
            Ok(None) => Err(Error::new(ErrorKind::NotFound, "consume", "the queue does not exist")),
            // Consuming goes on under an alarm, and the management does not.
            Err(_) if connection.is_blocked() => Ok(spec.map(|spec| spec.kind)),
            Err(error) => Err(error),
        }
    }

    async fn receiver(
        &self,
        guard: &Guard,
        seat: &Seat,
        start: Option<StreamStart>,
    ) -> Result<Receiver> {
        let id = guard.link().env().new_id().simple();
        let name = self.options.name.as_deref().unwrap_or("postrider");
        let mut source = match &self.dynamic {
            Some(dynamic) => dynamic.source(),
            None => Source::builder()
                .address(guard.link().dialect().queue(&self.queue))
                .outcomes(OUTCOMES.map(Symbol::from).to_vec())
                .build(),
        };
        source.filter = start.map(stream_filter);
        let settle_mode =
            self.dynamic.as_ref().map_or(SenderSettleMode::Unsettled, Dynamic::settle_mode);
        let receiver = Receiver::builder()
            .name(format!("{name} {id}"))
            .source(source)
            .sender_settle_mode(settle_mode)
            .receiver_settle_mode(ReceiverSettleMode::First)
            .credit_mode(CreditMode::Manual);
        let attached = seat.attach("consume", |session| Box::pin(receiver.attach(session))).await?;
        attached.map_err(|error| of_receiver("consume", &error))
    }

    /// The broker may send at this stay: answers find their way from now on.
    pub(crate) fn reachable(&self, stay: &Arc<Stay>) {
        let Some(dynamic) = &self.dynamic else { return };
        let inner = self.inner();
        // Under the lock, so that it is not told after it was lost.
        if matches!(&inner.place, Place::Attached(own) if Arc::ptr_eq(own, stay)) {
            dynamic.tell(Some(stay.queue().clone()));
        }
    }

    /// Answers find no way any more.
    fn unreachable(&self) {
        if let Some(dynamic) = &self.dynamic {
            dynamic.tell(None);
        }
    }

    /// Takes deliveries of `stay` into the buffer; `false` when nobody will read them.
    pub(crate) fn push(&self, stay: &Arc<Stay>, taken: &mut Vec<Taken>) -> bool {
        let mut inner = self.inner();
        let wanted = matches!(&inner.place, Place::Attached(own) if Arc::ptr_eq(own, stay));
        if wanted {
            inner.buffer.extend(taken.drain(..));
        }
        wake(inner);
        wanted
    }

    /// Moves to another place and wakes the stream to see it; `false` when it is not suspended.
    fn leave_suspension(&self, place: Place) -> bool {
        let mut inner = self.inner();
        if !matches!(inner.place, Place::Suspended) {
            return false;
        }
        inner.place = place;
        wake(inner);
        true
    }

    /// The connection is lost: the stream waits for it. What it had in advance comes again.
    pub(crate) fn suspend(&self) {
        let mut inner = self.inner();
        if let Place::Attached(stay) = &inner.place {
            inner.next_offset = stay.next_offset().or(inner.next_offset);
            inner.place = Place::Suspended;
            inner.buffer.clear();
            self.unreachable();
        }
    }

    /// The connection is back: attaches it again, or ends it when its queue is gone. A queue that goes
    /// by itself may have gone just now, and is made anew before the `last` attempt.
    ///
    /// # Errors
    ///
    /// When the connection is gone again.
    pub(crate) async fn resume(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        last: bool,
    ) -> Result<()> {
        if !matches!(self.inner().place, Place::Suspended) {
            return Ok(());
        }
        let Some(guard) = self.guard.upgrade() else { return Ok(()) };
        let unlocked_by = guard.link().env().now() + connection.lock_timeout();
        loop {
            match self.attach(connection).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_retryable() => return Err(error),
                // The broker may not have seen yet that the old consumer is gone.
                Err(error)
                    if error.kind() == ErrorKind::Locked
                        && !connection.is_over()
                        && guard.link().env().now() < unlocked_by =>
                {
                    if !matches!(self.inner().place, Place::Suspended) {
                        return Ok(());
                    }
                    sleep(REATTACH_PAUSE).await;
                }
                Err(error)
                    if error.kind() == ErrorKind::NotFound && !last && self.is_mortal(&guard) =>
                {
                    return Ok(());
                }
                Err(error) => {
                    self.end(error);
                    return Ok(());
                }
            }
        }
    }

    /// Whether its queue goes with its consumers, as far as is known.
    fn is_mortal(&self, guard: &Guard) -> bool {
        guard.link().record().queue(&self.queue).is_some_and(queue_goes_by_itself)
    }

    /// Its link is gone and the connection is not: consumes anew.
    // In a box, because the task that calls it is begun by what it calls.
    pub(crate) fn reattach<'a>(
        self: &'a Arc<Self>,
        connection: &'a Arc<Connection>,
    ) -> BoxFuture<'a, ()> {
        self.suspend();
        Box::pin(async move {
            while !connection.is_over() {
                sleep(REATTACH_PAUSE).await;
                if self.resume(connection, true).await.is_ok() {
                    return;
                }
            }
        })
    }

    /// Its queue was deleted under it.
    pub(crate) fn end_deleted(&self) {
        self.end(
            Error::new(ErrorKind::NotFound, "consume", "the queue was deleted")
                .with_context("queue", self.queue.to_string()),
        );
    }

    /// Ends the stream with an error.
    fn end(&self, error: Error) {
        let cause = error.to_string();
        let (unread, place) = {
            let mut inner = self.inner();
            if matches!(inner.place, Place::Ended { .. }) {
                return;
            }
            let place = std::mem::replace(&mut inner.place, Place::Ended { error: Some(error) });
            self.unreachable();
            let unread = std::mem::take(&mut inner.buffer);
            wake(inner);
            (unread, place)
        };
        give_back(&place, &unread);
        if let Some(guard) = self.guard.upgrade() {
            let queue = self.queue.to_string();
            guard.link().events().send(TransportEvent::ConsumerCancelled { queue, cause });
        }
    }

    /// Ends the stream; what it handed out can still be settled.
    pub(crate) fn stop(&self) {
        let (unread, place) = {
            let mut inner = self.inner();
            if matches!(inner.place, Place::Ended { .. }) {
                return;
            }
            let place = std::mem::replace(&mut inner.place, Place::Ended { error: None });
            self.unreachable();
            let unread = std::mem::take(&mut inner.buffer);
            wake(inner);
            (unread, place)
        };
        give_back(&place, &unread);
    }

    /// What it has in hand, while it lives.
    pub(crate) fn health(&self) -> Option<ConsumerHealth> {
        let inner = self.inner();
        let held = match &inner.place {
            Place::Attached(stay) => stay.held() as u64,
            Place::Suspended => 0,
            Place::Ended { .. } => return None,
        };
        Some(ConsumerHealth::new(self.queue.to_string(), inner.buffer.len() as u64, held))
    }
}

/// The filter of a source that reads a stream from `start`.
fn stream_filter(start: StreamStart) -> FilterSet {
    let value = match start {
        StreamStart::First => Value::String("first".to_owned()),
        StreamStart::Last => Value::String("last".to_owned()),
        StreamStart::Offset(offset) => Value::Ulong(offset),
        StreamStart::Time(time) => Value::Timestamp(Timestamp::from(time.timestamp_millis())),
        _ => Value::String("next".to_owned()),
    };
    let name = Symbol::from(STREAM_START);
    let described = Described { descriptor: Descriptor::Name(name.clone()), value };
    [(name, Value::Described(Box::new(described)))].into_iter().collect()
}

fn give_back(place: &Place, unread: &VecDeque<Taken>) {
    if let Place::Attached(stay) = place {
        stay.stop(unread.iter().map(|taken| taken.tag).collect());
    }
}

/// Wakes the stream, after the lock is free.
fn wake(mut inner: MutexGuard<'_, Inner>) {
    let waker = inner.waker.take();
    drop(inner);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The stream of a consumer.
#[derive(Debug)]
pub(crate) struct Deliveries {
    subscriber: Arc<Subscriber>,
    /// Keeps the connection open.
    _guard: Arc<Guard>,
    ended: bool,
}

impl Deliveries {
    pub(crate) const fn new(guard: Arc<Guard>, subscriber: Arc<Subscriber>) -> Self {
        Self { subscriber, _guard: guard, ended: false }
    }

    fn poll_taken(&self, waker: &Waker) -> Poll<Option<Result<Taken>>> {
        let mut inner = self.subscriber.inner();
        while let Some(taken) = inner.buffer.pop_front() {
            if taken.stay.hand_out() {
                return Poll::Ready(Some(Ok(taken)));
            }
        }
        if let Place::Ended { error } = &mut inner.place {
            return Poll::Ready(error.take().map(Err));
        }
        inner.waker = Some(waker.clone());
        Poll::Pending
    }
}

impl Stream for Deliveries {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // A queue that never runs dry must not keep its task from others.
        let budget = ready!(tokio::task::coop::poll_proceed(cx));
        let taken = ready!(self.poll_taken(cx.waker()));
        budget.made_progress();
        Poll::Ready(match taken {
            Some(Ok(Taken { stay, tag, delivered })) => {
                Some(Ok(Delivery::new(delivered.envelope, delivered.info, tag, stay)))
            }
            Some(Err(error)) => {
                self.ended = true;
                Some(Err(error))
            }
            None => {
                self.ended = true;
                None
            }
        })
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.subscriber.stop();
    }
}
