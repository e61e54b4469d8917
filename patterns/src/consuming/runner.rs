use std::{any::Any, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    stream::{self, BoxStream},
};
use postrider_core::{
    Consumer, ConsumerOptions, Delivery, DeliveryInfo, Envelope, Error, ErrorKind, Result,
    Transport, TransportEvent,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Count, Counters, Outcome, Running,
    ordered::{Order, Ordered},
    running::State,
};
use crate::{handler::HandlerError, resilience::Keeper};

/// How long a message is held that the transport takes no copy of, before it is tried again.
pub(super) const PAUSE_BEFORE_RETRY: Duration = Duration::from_secs(1);

/// How long a message that may crash its process waits for the handlers of others: they may never end.
const MOST_PATIENCE: Duration = Duration::from_secs(30);

/// What is to be done with a message.
#[derive(Debug)]
pub(crate) enum Disposition {
    Ack,
    Retry(Duration),
    Release,
    DeadLetter(HandlerError),
}

/// What a pattern does with one message. It never settles by itself.
pub(crate) trait Process: Send + Sync + 'static {
    fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> impl Future<Output = Disposition> + Send;

    /// What a pattern does when a message is kept among the dead letters, before it is settled.
    fn dead_lettered(
        &self,
        _envelope: &Arc<Envelope>,
        _info: &DeliveryInfo,
        _error: &HandlerError,
    ) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// No more messages come. Those in hand may finish; one that only waits is to end its wait.
    fn stopping(&self) {}

    /// A message is about to be settled like this.
    fn settled(&self, _envelope: &Envelope, _info: &DeliveryInfo, _outcome: Outcome) {}
}

/// How much is done at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) concurrency: usize,
    pub(crate) prefetch: Option<u16>,
    pub(crate) handler_timeout: Option<Duration>,
    /// How often a message can have failed that did not crash its process.
    pub(crate) most_failures: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { concurrency: 16, prefetch: None, handler_timeout: None, most_failures: None }
    }
}

impl Settings {
    /// The prefetch that was asked for, else three messages for each handler: one at work, two on
    /// their way.
    pub(crate) fn prefetch(self) -> u16 {
        const MOST: u16 = 1_000;
        self.prefetch.unwrap_or_else(|| {
            let wanted = u16::try_from(self.concurrency.saturating_mul(3)).unwrap_or(MOST);
            let least = u16::try_from(self.concurrency).unwrap_or(u16::MAX);
            wanted.min(MOST).max(least)
        })
    }

    /// How many messages are in hand at once at most.
    pub(super) fn places(self) -> u64 {
        self.concurrency.min(self.prefetch().into()) as u64
    }

    pub(crate) fn options(self) -> ConsumerOptions {
        ConsumerOptions::default().with_prefetch(self.prefetch())
    }

    pub(crate) fn check(self) -> Result<()> {
        let refuse = |why| Err(Error::new(ErrorKind::Invalid, "start", why));
        if self.concurrency == 0 {
            return refuse("a concurrency of 0 would handle nothing; it is 1 or more");
        }
        if self.concurrency > Semaphore::MAX_PERMITS {
            return refuse("there are not so many places; name a smaller concurrency");
        }
        if self.handler_timeout.is_some_and(|limit| limit.is_zero()) {
            return refuse("a handler timeout of 0 would fail every message; leave it out");
        }
        Ok(())
    }
}

/// A consume loop to be started.
pub(crate) struct Runner<P> {
    pub(crate) process: P,
    pub(crate) keeper: Keeper,
    pub(crate) settings: Settings,
    pub(crate) counters: Arc<Counters>,
}

impl<P: Process> Runner<P> {
    /// Begins to consume `queue`, which must have been declared.
    pub(crate) async fn start(
        self,
        transport: &Arc<dyn Transport>,
        queue: &str,
    ) -> Result<Running> {
        self.settings.check()?;
        let consumer = transport.consumer(queue, self.settings.options()).await?;
        let (transport, name) = (Arc::clone(transport), queue.to_owned());
        let again = Again { transport, queue: name, is_careful: false };
        Ok(self.spawn(consumer, Some(again), queue))
    }

    /// Begins to handle what `consumer` gives, whose options are [`Settings::options`]; it takes from
    /// `queue`, and perhaps from others.
    pub(crate) fn run(self, consumer: Consumer, queue: &str) -> Running {
        self.spawn(consumer, None, queue)
    }

    /// Whether a message has failed more often than any policy would have let it.
    fn is_suspect(&self, delivery: &Delivery) -> bool {
        self.settings.most_failures.is_some_and(|most| delivery.info().failures > most)
    }

    fn spawn(self, consumer: Consumer, again: Option<Again>, queue: &str) -> Running {
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (state, watched) = watch::channel(State::Running);
        let counters = Arc::clone(&self.counters);
        let places = self.settings.places();
        let work = Arc::new(Work { runner: self, kill: kill.clone() });
        let task = tokio::spawn(run(work, consumer, again, state, stop.clone()));
        Running::new(queue.into(), counters, watched, stop, kill, task).with_places(places)
    }

    pub(super) fn note(&self, delivery: &Delivery, outcome: Outcome) {
        self.counters.add(outcome.into());
        self.process.settled(delivery.envelope(), delivery.info(), outcome);
    }

    /// As [`run`](Self::run), in order: of messages with the same key one is handled after the
    /// other, and one that fails is tried again in its place. `events` must have been listened to
    /// before there was a consumer.
    pub(crate) fn run_in_order(
        self,
        consumer: Consumer,
        events: BoxStream<'static, TransportEvent>,
        order: Order,
        queue: &str,
    ) -> Running {
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (state, watched) = watch::channel(State::Running);
        let counters = Arc::clone(&self.counters);
        let work = Arc::new(Work { runner: self, kill: kill.clone() });
        let ordered = Ordered::new(work, consumer, events, order, stop.clone());
        let task = tokio::spawn(ordered.run(state));
        Running::new(queue.into(), counters, watched, stop, kill, task)
    }
}

pub(super) struct Work<P> {
    pub(super) runner: Runner<P>,
    pub(super) kill: CancellationToken,
}

/// Where a consumer comes from.
pub(super) struct Again {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) queue: String,
    /// Whether messages are taken one by one, because those at the front may crash their process: what
    /// that has in hand counts as failed too.
    pub(super) is_careful: bool,
}

impl Again {
    /// Consumes anew, as soon as that is possible. Cancellation safe.
    pub(super) async fn consumer(&self, settings: &Settings) -> Result<Consumer> {
        loop {
            let mut options = settings.options();
            if self.is_careful {
                options = options.with_prefetch(1);
            }
            match self.transport.consumer(&self.queue, options).await {
                Err(error) if error.is_retryable() => sleep(PAUSE_BEFORE_RETRY).await,
                outcome => return outcome,
            }
        }
    }
}

pub(super) async fn run<P: Process>(
    work: Arc<Work<P>>,
    mut consumer: Consumer,
    mut again: Option<Again>,
    state: watch::Sender<State>,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(work.runner.settings.concurrency));
    let mut handlers = JoinSet::new();
    let ended = {
        let mut stopped = pin!(stop.cancelled());
        loop {
            // A handler that ends gives its place back and wakes nobody who does not wait for it.
            let place = tokio::select! {
                biased;
                () = &mut stopped => break None,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            let delivery = tokio::select! {
                biased;
                () = &mut stopped => break None,
                delivery = consumer.recv() => delivery,
            };
            match delivery {
                Some(Ok(delivery)) => {
                    let careful = match &again {
                        Some(again) if work.runner.is_suspect(&delivery) != again.is_careful => {
                            Some(!again.is_careful)
                        }
                        _ => None,
                    };
                    if careful == Some(true) {
                        // Whoever gets the others now does not pay for this one.
                        consumer = Consumer::new(stream::empty());
                        let others = timeout(MOST_PATIENCE, done(&mut handlers));
                        tokio::select! {
                            biased;
                            () = &mut stopped => break None,
                            _ended_or_late = others => {}
                        }
                        delivery.release();
                    } else {
                        let in_hand = InHand::new(&work, delivery);
                        handlers.spawn(async move {
                            in_hand.handle().await;
                            drop(place);
                        });
                    }
                    if let (Some(careful), Some(again)) = (careful, &mut again) {
                        again.is_careful = careful;
                        work.runner.counters.set_careful(careful);
                        let next = again.consumer(&work.runner.settings);
                        consumer = tokio::select! {
                            biased;
                            () = &mut stopped => break None,
                            next = next => match next {
                                Ok(next) => next,
                                Err(error) => break Some(Arc::new(error)),
                            },
                        };
                    }
                }
                Some(Err(error)) => {
                    tracing::error!(%error, "consuming ended");
                    break Some(Arc::new(error));
                }
                None => break None,
            }
            while handlers.try_join_next().is_some() {}
        }
    };
    work.runner.process.stopping();
    // What was taken in advance goes back now, so that others need not wait for our handlers.
    drop(consumer);
    state.send_replace(State::Ended(ended));
    loop {
        tokio::select! {
            biased;
            done = handlers.join_next() => if done.is_none() { return },
            () = work.kill.cancelled() => break,
        }
    }
    handlers.shutdown().await;
}

/// Waits until all handlers have ended.
async fn done(handlers: &mut JoinSet<()>) {
    while handlers.join_next().await.is_some() {}
}

/// A delivery whose handler is at work. When the handler is given up, it goes back to the queue.
struct InHand<P: Process> {
    work: Arc<Work<P>>,
    delivery: Option<Delivery>,
}

impl<P: Process> InHand<P> {
    fn new(work: &Arc<Work<P>>, delivery: Delivery) -> Self {
        work.runner.counters.add(Count::Taken);
        Self { work: Arc::clone(work), delivery: Some(delivery) }
    }

    async fn handle(self) {
        let Some(delivery) = &self.delivery else { return };
        let (envelope, info) = (Arc::clone(delivery.envelope()), delivery.info().clone());
        let Work { runner, kill } = &*self.work;
        match runner.process.process(&envelope, &info, kill).await {
            Disposition::Ack => self.settle(Outcome::Acked, Delivery::ack),
            Disposition::Retry(after) => self.retry(after),
            Disposition::Release => drop(self),
            Disposition::DeadLetter(error) => {
                match runner.keeper.keep(&envelope, &info, &error).await {
                    Ok(()) => {
                        tracing::error!(queue = %info.queue, %error, "message dead-lettered");
                        runner.process.dead_lettered(&envelope, &info, &error).await;
                        self.settle(Outcome::DeadLettered, Delivery::ack);
                    }
                    Err(closed) if closed.kind() == ErrorKind::Closed => drop(self),
                    // The broker itself dead-letters it at the delivery limit, without the reason.
                    Err(_refused) => {
                        sleep(PAUSE_BEFORE_RETRY).await;
                        self.retry(Duration::ZERO);
                    }
                }
            }
        }
    }

    fn retry(self, after: Duration) {
        self.settle(Outcome::Retried, |delivery| delivery.retry(after));
    }

    fn settle(mut self, outcome: Outcome, settle: impl FnOnce(Delivery)) {
        if let Some(delivery) = self.delivery.take() {
            self.work.runner.note(&delivery, outcome);
            settle(delivery);
        }
    }
}

impl<P: Process> Drop for InHand<P> {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            let Work { runner, kill } = &*self.work;
            if kill.is_cancelled()
                && let Some(id) = delivery.message().message_id.as_deref()
            {
                runner.counters.unfinished(id);
            }
            runner.note(&delivery, Outcome::Released);
            delivery.release();
        }
    }
}

/// Runs a handler; a panic in it becomes an error.
pub(crate) async fn catch_panic<T>(
    handler: impl Future<Output = Result<T, HandlerError>>,
) -> Result<T, HandlerError> {
    match AssertUnwindSafe(handler).catch_unwind().await {
        Ok(result) => result,
        Err(payload) => Err(HandlerError::panicked(panic_text(&*payload))),
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with a value that is no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_follows_concurrency() {
        let prefetch = |concurrency, prefetch| {
            Settings { concurrency, prefetch, ..Settings::default() }.prefetch()
        };
        assert_eq!(prefetch(1, None), 3);
        assert_eq!(prefetch(16, None), 48);
        assert_eq!(prefetch(600, None), 1_000);
        assert_eq!(prefetch(5_000, None), 5_000);
        assert_eq!(prefetch(1_000_000, None), u16::MAX);
        assert_eq!(prefetch(16, Some(1)), 1);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_text() {
        let panics = async { panic!("boom {}", 1) };
        let error = catch_panic::<()>(panics).await.unwrap_err();
        assert_eq!(error.to_string(), "PANIC: the handler panicked: boom 1");
    }
}
