//! The consume loop that keeps the order of each key.
//!
//! It takes all that the prefetch allows into [`Lanes`]. The first of each lane is tried, again and
//! again in its place, until it is done or given up; only then comes the next one of its key. A
//! retry through the broker would let the next one pass. When it is given up, its key is
//! [parked](super::parking): what comes of it is not tried, but kept behind it.
//!
//! Where deliveries go back, they go back the oldest first and all at once. After a lost connection
//! the broker gives everything to whoever is there, so what is in hand is forgotten then, and
//! handlers at work are given up at their await: two must not work on one key.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use postrider_core::{
    Consumer, Delivery, DeliveryInfo, Envelope, Error, ErrorKind, TransportEvent,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Count, Disposition, Outcome, Process,
    lanes::Lanes,
    parking::{self, Look, Parking, Place},
    runner::{PAUSE_BEFORE_RETRY, Work},
    running::State,
};
use crate::{
    dead_letters::DeadMessage,
    handler::{HandlerError, codes},
};

/// How long one event may keep its key waiting between its tries, in all. After that the tries
/// that are left come without a pause.
pub(crate) const LONGEST_BLOCK: Duration = Duration::from_secs(15 * 60);

/// How often a drain looks for letters that came while it was at work, and the pause between.
const MOST_DRAINS: usize = 100;
const PAUSE_BETWEEN_DRAINS: Duration = Duration::from_millis(100);

/// How long nothing must come before a stop takes it that nothing is on its way any more.
const QUIET: Duration = Duration::from_millis(50);

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Acked,
    DeadLettered,
    /// It could not be kept: the broker counts it and dead-letters it at the delivery limit. Its
    /// order is lost.
    Refused,
    Released,
}

/// What became of the tries of an event.
enum Tried {
    Done,
    GivenUp(HandlerError, DeliveryInfo),
    /// It goes back.
    Not,
}

/// What became of the letters of a key that were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    All,
    /// One failed again, and the key stays parked.
    Stays,
    /// It stops.
    Released,
}

/// Whether there may be room for another dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Maybe,
    /// It stops.
    NoMore,
}

type Key = Box<dyn Fn(&Arc<Envelope>) -> Option<String> + Send>;

/// What is in order: the key of a message, and the partitions by their queues.
pub(crate) struct Order {
    pub(crate) key: Key,
    pub(crate) partitions: HashMap<String, Arc<Parking>>,
}

/// One loop over an ordered queue, or several.
pub(super) struct Ordered<P> {
    work: Arc<Work<P>>,
    consumer: Consumer,
    events: BoxStream<'static, TransportEvent>,
    order: Order,
    stop: CancellationToken,
    lanes: Lanes<Delivery>,
    tasks: JoinSet<(u64, End)>,
    places: Arc<Semaphore>,
}

impl<P: Process> Ordered<P> {
    pub(super) fn new(
        work: Arc<Work<P>>,
        consumer: Consumer,
        events: BoxStream<'static, TransportEvent>,
        order: Order,
        stop: CancellationToken,
    ) -> Self {
        let places = Arc::new(Semaphore::new(work.runner.settings.concurrency));
        let (lanes, tasks) = (Lanes::default(), JoinSet::new());
        Self { work, consumer, events, order, stop, lanes, tasks, places }
    }

    pub(super) async fn run(mut self, state: watch::Sender<State>) {
        let stop = self.stop.clone();
        let ended = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break None,
                Some(event) = self.events.next() => self.hear(&event).await,
                Some(done) = self.tasks.join_next() => {
                    if let Ok((number, end)) = done {
                        self.settle(number, end);
                    }
                }
                delivery = self.consumer.recv() => match delivery {
                    Some(Ok(delivery)) => self.take(delivery).await,
                    Some(Err(error)) => {
                        tracing::error!(%error, "consuming ended");
                        break Some(Arc::new(error));
                    }
                    None => break None,
                },
            }
        };
        let is_asked = ended.is_none() && stop.is_cancelled();
        state.send_replace(State::Ended(ended));
        self.stop.cancel();
        self.work.runner.process.stopping();
        self.finish(is_asked).await;
    }

    /// Lets the handlers at work end, and gives the rest back.
    async fn finish(mut self, is_asked: bool) {
        let kill = self.work.kill.clone();
        loop {
            tokio::select! {
                biased;
                () = kill.cancelled() => break,
                Some(event) = self.events.next() => self.hear(&event).await,
                done = self.tasks.join_next() => match done {
                    Some(Ok((number, end))) => self.settle(number, end),
                    Some(Err(_given_up)) => {}
                    None => break,
                },
            }
        }
        self.tasks.shutdown().await;
        // What the broker has sent, it has sent after what is in hand, and must not give to others
        // before that.
        while is_asked && let Ok(Some(Ok(delivery))) = timeout(QUIET, self.consumer.recv()).await {
            self.work.runner.counters.add(Count::Taken);
            self.lanes.add(None, delivery);
        }
        // Before anything goes back: else the broker gives it to this consumer again, and the rest to
        // the next one.
        self.consumer = Consumer::new(stream::empty());
        self.give_back();
    }

    /// After a loss, or what may have been one, nothing in hand counts any more.
    async fn hear(&mut self, event: &TransportEvent) {
        let is_loss = matches!(
            event,
            TransportEvent::Lost { .. }
                | TransportEvent::ConsumerCancelled { .. }
                | TransportEvent::Missed { .. }
        );
        if is_loss {
            self.tasks.shutdown().await;
            self.give_back();
            for partition in self.order.partitions.values() {
                partition.forget().await;
            }
        }
    }

    fn give_back(&mut self) {
        for delivery in self.lanes.take_all() {
            self.work.runner.note(&delivery, Outcome::Released);
            delivery.release();
        }
    }

    async fn take(&mut self, delivery: Delivery) {
        // A loss was told before what came after it, and must not be heard after it.
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.hear(&event).await;
        }
        self.work.runner.counters.add(Count::Taken);
        let key = (self.order.key)(delivery.envelope());
        if let Some(number) = self.lanes.add(key, delivery) {
            self.begin(number);
        }
    }

    fn begin(&mut self, number: u64) {
        let Some(delivery) = self.lanes.get(number) else { return };
        let (envelope, info) = (Arc::clone(delivery.envelope()), delivery.info().clone());
        let Some(partition) = self.order.partitions.get(&*info.queue) else { return };
        let turn = Turn {
            work: Arc::clone(&self.work),
            key: self.lanes.key(number),
            partition: Arc::clone(partition),
            places: Arc::clone(&self.places),
            stop: self.stop.clone(),
        };
        self.tasks.spawn(async move {
            let end = AssertUnwindSafe(turn.take(&envelope, info)).catch_unwind().await;
            (number, end.unwrap_or(End::Refused))
        });
    }

    fn settle(&mut self, number: u64, end: End) {
        // What was at work goes back with what waits behind it.
        if end == End::Released && self.stop.is_cancelled() {
            return;
        }
        let Some((delivery, next)) = self.lanes.done(number) else { return };
        let note = |outcome| self.work.runner.note(&delivery, outcome);
        match end {
            End::Acked => {
                note(Outcome::Acked);
                delivery.ack();
            }
            End::DeadLettered => {
                note(Outcome::DeadLettered);
                delivery.ack();
            }
            End::Refused => {
                note(Outcome::Retried);
                delivery.retry(Duration::ZERO);
            }
            End::Released => {
                note(Outcome::Released);
                delivery.release();
            }
        }
        if let Some(next) = next
            && !self.stop.is_cancelled()
        {
            self.begin(next);
        }
    }
}

/// The turn of a delivery: those of its key that came before are settled.
struct Turn<P> {
    work: Arc<Work<P>>,
    key: Option<Arc<str>>,
    partition: Arc<Parking>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

impl<P: Process> Turn<P> {
    async fn take(&self, envelope: &Arc<Envelope>, info: DeliveryInfo) -> End {
        if let Some(key) = &self.key {
            if parking::is_drain(&envelope.message) {
                return self.drain(key, &info).await;
            }
            if let Some(end) = self.follow(key, envelope, &info).await {
                return end;
            }
        }
        if self.partition.is_last_chance(&info) {
            let why = "it was delivered as often as the queue allows, and not settled";
            let error = HandlerError::internal(why).with_code(codes::DELIVERY_LIMIT);
            return self.keep(envelope, &info, &error).await;
        }
        match self.tries(envelope, info).await {
            Tried::Done => End::Acked,
            Tried::Not => End::Released,
            Tried::GivenUp(error, info) => self.keep(envelope, &info, &error).await,
        }
    }

    /// Keeps an event behind those of its key that were given up; nothing when there are none.
    async fn follow(
        &self,
        key: &str,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
    ) -> Option<End> {
        let why = format!("an event of '{key}' before this one was given up");
        let error = HandlerError::transient(why).with_code(codes::KEY_PARKED);
        loop {
            let freed = self.partition.freed();
            match self.unless_stopped(self.partition.place(Some(key), true)).await {
                None => return Some(End::Released),
                Some(Place::NotParked) => return None,
                Some(Place::Number(number)) => {
                    return Some(self.keep_at(number, envelope, info, &error).await);
                }
                Some(Place::Full) => {
                    if self.make_room(info, freed).await == Room::NoMore {
                        return Some(End::Released);
                    }
                }
            }
        }
    }

    /// Waits a while for room, or makes some by draining the keys that are to be drained.
    async fn make_room(&self, info: &DeliveryInfo, freed: impl Future<Output = ()>) -> Room {
        match self.unless_stopped(self.partition.look_for_orders()).await {
            None => return Room::NoMore,
            Some(Look::Room) => {}
            Some(Look::Orders(keys, _looking)) => {
                for key in keys {
                    if self.drain(&key, info).await == End::Released {
                        return Room::NoMore;
                    }
                }
            }
            Some(Look::Nothing) => {
                if self.unless_stopped(freed).await.is_none() {
                    return Room::NoMore;
                }
            }
        }
        Room::Maybe
    }

    async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(future).await
    }

    /// Tries an event until it is done or given up. It has one of the places only while a handler
    /// is at work. A stop ends the waiting.
    async fn tries(&self, envelope: &Arc<Envelope>, mut info: DeliveryInfo) -> Tried {
        let runner = &self.work.runner;
        let mut left = LONGEST_BLOCK;
        loop {
            let Some(place) = self.unless_stopped(self.places.acquire()).await else {
                return Tried::Not;
            };
            let disposition = runner.process.process(envelope, &info, &self.work.kill).await;
            drop(place);
            match disposition {
                Disposition::Ack => return Tried::Done,
                Disposition::Release => return Tried::Not,
                Disposition::DeadLetter(error) => return Tried::GivenUp(error, info),
                Disposition::Retry(after) => {
                    // The try is over, and another one begins.
                    runner.counters.add(Count::Retried);
                    runner.counters.add(Count::Taken);
                    runner.process.settled(envelope, &info, Outcome::Retried);
                    let now = || self.partition.now();
                    info.first_failed = info.first_failed.or_else(|| Some(now()));
                    info.failures += 1;
                    info.attempt += 1;
                    let after = after.min(left);
                    left -= after;
                    if self.unless_stopped(sleep(after)).await.is_none() {
                        return Tried::Not;
                    }
                }
            }
        }
    }

    async fn keep(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) -> End {
        loop {
            let freed = self.partition.freed();
            match self.unless_stopped(self.partition.place(self.key.as_deref(), false)).await {
                None => return End::Released,
                Some(Place::Number(number)) => {
                    return self.keep_at(number, envelope, info, error).await;
                }
                Some(Place::Full | Place::NotParked) => {
                    if self.make_room(info, freed).await == Room::NoMore {
                        return End::Released;
                    }
                }
            }
        }
    }

    async fn keep_at(
        &self,
        number: i64,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        error: &HandlerError,
    ) -> End {
        let key = self.key.as_deref();
        match self.partition.keep(number, key, envelope, info, error).await {
            Ok(()) => {
                tracing::error!(queue = %info.queue, %error, "message dead-lettered");
                self.work.runner.process.dead_lettered(envelope, info, error).await;
                End::DeadLettered
            }
            Err(closed) if is_closed(&closed) => End::Released,
            Err(_refused) => {
                sleep(PAUSE_BEFORE_RETRY).await;
                End::Refused
            }
        }
    }

    /// Has the dead letters of a key handled in their order, up to the first that fails again. They
    /// are taken away after that, so that nobody's hands are full of them meanwhile; a crash in
    /// between has them handled again. When none is left, the key goes on.
    async fn drain(&self, key: &str, info: &DeliveryInfo) -> End {
        let turn = self.unless_stopped(self.partition.turn_to_drain()).await;
        let Some(_turn) = turn else { return End::Released };
        for _again in 0..MOST_DRAINS {
            match self.drain_once(key, info).await {
                Drained::Released => return End::Released,
                Drained::Stays => return End::Acked,
                Drained::All => {}
            }
            if self.partition.open(key).await {
                tracing::info!(queue = %info.queue, key, "the key goes on");
                return End::Acked;
            }
            // More of the key came meanwhile, or is on its way there.
            if self.unless_stopped(sleep(PAUSE_BETWEEN_DRAINS)).await.is_none() {
                return End::Released;
            }
        }
        tracing::error!(queue = %info.queue, key, "letters come faster than the key is drained");
        End::Acked
    }

    /// Has the letters of a key that are there now handled, and takes those away that were.
    async fn drain_once(&self, key: &str, info: &DeliveryInfo) -> Drained {
        let letters = self.unless_stopped(self.partition.letters_of(key)).await;
        let Some((letters, are_all)) = letters else { return Drained::Released };
        let runner = &self.work.runner;
        let (all, mut handled) = (letters.len(), Vec::<DeadMessage>::new());
        let mut is_stopped = false;
        for letter in letters {
            if is_copy(&letter, &handled) {
                // It was kept, and came once more before it was settled.
                handled.push(letter);
                continue;
            }
            let envelope = Parking::original(&letter, &info.queue);
            let mut first = DeliveryInfo::first(Arc::clone(&info.queue));
            first.redelivered = true;
            let outcome = match self.tries(&envelope, first).await {
                Tried::Done => Outcome::Acked,
                Tried::GivenUp(error, _) => {
                    tracing::error!(queue = %info.queue, key, %error, "the key stays parked");
                    Outcome::DeadLettered
                }
                Tried::Not => {
                    is_stopped = true;
                    Outcome::Released
                }
            };
            runner.counters.add(Count::Taken);
            runner.counters.add(outcome.into());
            runner.process.settled(&envelope, info, outcome);
            if outcome != Outcome::Acked {
                break;
            }
            handled.push(letter);
        }
        let removed = self.partition.remove(key, &handled, !is_stopped).await;
        let Ok(are_gone) = removed else { return Drained::Released };
        if is_stopped {
            return Drained::Released;
        }
        if handled.len() < all {
            return Drained::Stays;
        }
        if !are_all || !are_gone {
            tracing::error!(
                queue = %info.queue, key, "not all letters of the key were there: they are counted anew"
            );
            self.partition.recount(key).await;
        }
        Drained::All
    }
}

/// Whether a letter is another copy of one that was handled.
fn is_copy(letter: &DeadMessage, handled: &[DeadMessage]) -> bool {
    let id = &letter.message().message_id;
    let has_id = |other: &&DeadMessage| other.message().message_id == *id;
    id.is_some() && handled.iter().filter(has_id).any(|other| other.original() == letter.original())
}

fn is_closed(error: &Error) -> bool {
    error.kind() == ErrorKind::Closed
}
