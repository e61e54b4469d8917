//! The consume loop that keeps the order of each key.
//!
//! It takes all that the prefetch allows into [`Lanes`]. The first of each lane is tried, again and
//! again in its place, until it is done or given up; only then comes the next one of its key. A
//! retry through the broker would let the next one pass.
//!
//! Where deliveries go back, they go back the oldest first and all at once. After a lost connection
//! the broker gives everything to whoever is there, so what is in hand is forgotten then, and
//! handlers at work are given up at their await: two must not work on one key.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

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
    runner::{PAUSE_BEFORE_RETRY, Work},
    running::State,
};

/// How long one event may keep its key waiting between its tries, in all. After that the tries
/// that are left come without a pause.
pub(crate) const LONGEST_BLOCK: Duration = Duration::from_secs(15 * 60);

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

type Key = Box<dyn Fn(&Arc<Envelope>) -> Option<String> + Send>;

/// One loop over an ordered queue, or several.
pub(super) struct Ordered<P> {
    work: Arc<Work<P>>,
    consumer: Consumer,
    events: BoxStream<'static, TransportEvent>,
    key: Key,
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
        key: Key,
        stop: CancellationToken,
    ) -> Self {
        let places = Arc::new(Semaphore::new(work.runner.settings.concurrency));
        let (lanes, tasks) = (Lanes::default(), JoinSet::new());
        Self { work, consumer, events, key, stop, lanes, tasks, places }
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
        let key = (self.key)(delivery.envelope());
        if let Some(number) = self.lanes.add(key, delivery) {
            self.begin(number);
        }
    }

    fn begin(&mut self, number: u64) {
        let Some(delivery) = self.lanes.get(number) else { return };
        let (envelope, info) = (Arc::clone(delivery.envelope()), delivery.info().clone());
        let (work, places) = (Arc::clone(&self.work), Arc::clone(&self.places));
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let tries = work.in_place(&envelope, info, &places, &stop);
            let end = AssertUnwindSafe(tries).catch_unwind().await;
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

impl<P: Process> Work<P> {
    /// Tries a delivery until it is done or given up. It has one of the places only while a handler
    /// is at work. A stop ends the waiting.
    async fn in_place(
        &self,
        envelope: &Arc<Envelope>,
        mut info: DeliveryInfo,
        places: &Semaphore,
        stop: &CancellationToken,
    ) -> End {
        let mut left = LONGEST_BLOCK;
        loop {
            let place = tokio::select! {
                biased;
                () = stop.cancelled() => return End::Released,
                place = places.acquire() => place,
            };
            let disposition = self.runner.process.process(envelope, &info, &self.kill).await;
            drop(place);
            match disposition {
                Disposition::Ack => return End::Acked,
                Disposition::Release => return End::Released,
                Disposition::DeadLetter(error) => {
                    return match self.runner.keeper.keep(envelope, &info, &error).await {
                        Ok(()) => {
                            tracing::error!(queue = %info.queue, %error, "message dead-lettered");
                            self.runner.process.dead_lettered(envelope, &info, &error).await;
                            End::DeadLettered
                        }
                        Err(closed) if is_closed(&closed) => End::Released,
                        Err(_refused) => {
                            sleep(PAUSE_BEFORE_RETRY).await;
                            End::Refused
                        }
                    };
                }
                Disposition::Retry(after) => {
                    // The try is over, and another one begins.
                    self.runner.counters.add(Count::Retried);
                    self.runner.counters.add(Count::Taken);
                    self.runner.process.settled(envelope, &info, Outcome::Retried);
                    info.failures += 1;
                    info.attempt += 1;
                    let after = after.min(left);
                    left -= after;
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return End::Released,
                        () = sleep(after) => {}
                    }
                }
            }
        }
    }
}

fn is_closed(error: &Error) -> bool {
    error.kind() == ErrorKind::Closed
}
