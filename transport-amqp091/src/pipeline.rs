//! The task that owns a confirm channel: publishes in order, and gives each message its verdict.

use std::{
    collections::VecDeque,
    future::ready,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use futures_util::{FutureExt, StreamExt, poll, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use postrider_core::{ConfirmSender, Envelope, Result, Verdict};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::yield_now,
    time::{Duration, Instant, sleep},
};

use crate::{
    clock::until,
    error::reply,
    flight::Flight,
    link::{Link, Stage},
    properties,
    session::Session,
};

/// How long to wait before a channel that could not be opened is tried again.
const CHANNEL_PAUSE: Duration = Duration::from_millis(50);

/// How long opening a channel may take.
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(10);

/// How many messages are sent in a row before verdicts are looked at.
const RUN: usize = 64;

/// A message with the place that it takes in the window until it has its verdict.
pub(crate) struct Job {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) deadline: Instant,
    verdict: ConfirmSender,
    permit: OwnedSemaphorePermit,
    link: Arc<Link>,
}

impl Job {
    pub(crate) fn new(
        envelope: Envelope,
        deadline: Instant,
        verdict: ConfirmSender,
        permit: OwnedSemaphorePermit,
        link: Arc<Link>,
    ) -> Self {
        link.note_sent();
        Self { envelope: Arc::new(envelope), deadline, verdict, permit, link }
    }

    /// Ends a message that nobody takes any more; its sender is told by an error.
    pub(crate) fn refuse(self) {
        self.resolve(Verdict::Rejected("the publisher has ended".into()));
    }

    fn resolve(self, verdict: Verdict) {
        self.verdict.resolve(verdict);
        // After the verdict: whoever gets the place finds it given.
        drop(self.permit);
        self.link.note_verdict();
    }
}

/// A publish from its first byte to its confirm.
type Publish = Pin<Box<dyn Future<Output = (u64, lapin::Result<Confirmation>)> + Send>>;

/// Why a channel is left.
enum Left {
    /// The publisher was dropped and every message has its verdict, or the connection is closed.
    Done,
    /// The connection is gone.
    Lost,
    /// The channel is of no use any more.
    Channel,
}

pub(crate) struct Pipeline {
    link: Arc<Link>,
    jobs: mpsc::Receiver<Job>,
    /// Messages that were not sent and go first.
    first: VecDeque<Job>,
    window: usize,
    /// Whether the publisher still hands over messages.
    open: bool,
}

/// What is under way on one channel.
struct Run {
    /// Shared as a whole, because a clone of a channel is a clone of each of its many parts.
    channel: Arc<Channel>,
    flight: Flight<Job>,
    publishing: FuturesUnordered<Publish>,
    /// Deadlines in the order of sending; those whose verdict has come are passed over.
    deadlines: VecDeque<(Instant, u64)>,
    /// Messages given up whose confirm may still come.
    overdue: usize,
    failure: Option<lapin::Error>,
}

impl Pipeline {
    pub(crate) fn new(link: Arc<Link>, jobs: mpsc::Receiver<Job>, window: usize) -> Self {
        Self { link, jobs, first: VecDeque::new(), window, open: true }
    }

    /// Publishes over all epochs, until the publisher is dropped or the connection closed.
    pub(crate) async fn run(mut self) {
        let shutdown = self.link.shutdown().clone();
        let ended = async {
            while let Some(session) = self.wait_for_session().await {
                let link = self.link.clone();
                let channel = match self.meanwhile(confirm_channel(&link, &session)).await {
                    Some(Ok(channel)) => channel,
                    Some(Err(error)) => {
                        tracing::debug!(%error, "no channel to publish on yet");
                        let _pause = self.meanwhile(sleep(CHANNEL_PAUSE)).await;
                        continue;
                    }
                    None => break,
                };
                let mut run = Run::new(channel);
                let left = tokio::select! {
                    left = self.serve(&session, &mut run) => left,
                    () = shutdown.cancelled() => Left::Done,
                };
                match left {
                    Left::Done => {
                        run.give_up("the transport was closed");
                        session.close_channel(&run.channel).await;
                        return;
                    }
                    Left::Lost => {
                        run.give_up("the connection was lost before the verdict");
                        session.retire(&run.channel);
                    }
                    Left::Channel => {
                        session.note_dead_channel();
                        self.blame(run);
                    }
                }
            }
        };
        ended.await;
        // What is left was never sent.
        self.jobs.close();
        self.first.extend(std::iter::from_fn(|| self.jobs.try_recv().ok()));
        for job in self.first {
            job.resolve(Verdict::Rejected("the transport was closed before it was sent".into()));
        }
    }

    /// Waits until there is a session that takes publishes; `None` when there will be none.
    async fn wait_for_session(&mut self) -> Option<Arc<Session>> {
        let mut watch = self.link.watch();
        loop {
            {
                let state = watch.borrow_and_update();
                match &state.stage {
                    Stage::Up(session) | Stage::Closing(Some(session))
                        if !session.is_over() && state.blocked.is_none() =>
                    {
                        return Some(session.clone());
                    }
                    Stage::Closed | Stage::Closing(None) => return None,
                    _ => {}
                }
            }
            self.meanwhile(watch.changed()).await?.ok()?;
        }
    }

    /// Waits for something that is needed before anything can be sent; what waits too long
    /// meanwhile is told so. `None` when the publisher was dropped and nothing is left to be sent.
    async fn meanwhile<T>(&mut self, needed: impl Future<Output = T>) -> Option<T> {
        let mut needed = pin!(needed);
        loop {
            let next = self.first.front().map(|job| job.deadline);
            tokio::select! {
                biased;
                outcome = &mut needed => return Some(outcome),
                job = self.jobs.recv(), if self.open => match job {
                    Some(job) => self.first.push_back(job),
                    None => self.open = false,
                },
                () = until(next) => self.expire_unsent(),
            }
            if !self.open && self.first.is_empty() {
                return None;
            }
        }
    }

    /// Tells the messages whose time is over that they were not sent.
    fn expire_unsent(&mut self) {
        let now = self.link.env().now();
        while self.first.front().is_some_and(|job| job.deadline <= now) {
            if let Some(job) = self.first.pop_front() {
                job.resolve(Verdict::Rejected("it could not be sent in time".into()));
            }
        }
    }

    async fn serve(&mut self, session: &Session, run: &mut Run) -> Left {
        let mut watch = self.link.watch();
        // Made once, and not for each message: both are entered in lists under locks.
        let mut over = pin!(session.over());
        let mut alarm = pin!(until(None));
        let mut is_set = false;
        loop {
            let takes = watch.borrow_and_update().blocked.is_none();
            while takes && let Some(job) = self.first.pop_front() {
                if let Err(job) = publish(run, job).await {
                    // The channel has closed. Why is heard below, and this one waits for the next.
                    self.first.push_front(job);
                    break;
                }
            }
            if !self.open && run.flight.is_empty() && self.first.is_empty() {
                return Left::Done;
            }
            // It may go off for a message that has its verdict, and is set anew then.
            let unsent = self.first.front().map(|job| job.deadline);
            if !is_set && let Some(next) = run.next_deadline().into_iter().chain(unsent).min() {
                alarm.set(until(Some(next)));
                is_set = true;
            }
            tokio::select! {
                biased;
                () = &mut over => return Left::Lost,
                Some(outcome) = run.publishing.next() => {
                    run.settle(outcome).await;
                    if run.failure.is_some() || !run.channel.status().connected() {
                        return Left::Channel;
                    }
                }
                job = self.jobs.recv(), if self.open => match job {
                    Some(job) => {
                        self.first.push_back(job);
                        // Other tasks that are about to publish go before, so that one write takes
                        // what all of them have.
                        yield_now().await;
                        let more = std::iter::from_fn(|| self.jobs.try_recv().ok());
                        self.first.extend(more.take(RUN - 1));
                    }
                    None => self.open = false,
                },
                changed = watch.changed() => {
                    if changed.is_err() {
                        return Left::Done;
                    }
                    // Before what waited for the end of an alarm is sent.
                    self.expire_unsent();
                }
                () = &mut alarm, if is_set => {
                    is_set = false;
                    self.expire_unsent();
                    run.expire(self.link.env().now());
                    // A channel that owes a whole window of confirms is of no use any more.
                    if run.overdue >= self.window {
                        return Left::Channel;
                    }
                }
            }
        }
    }

    /// Finds out what the end of a channel means for each message that was under way on it.
    fn blame(&mut self, mut run: Run) {
        let told = run.failure.take();
        let told = told.as_ref().and_then(reply);
        let Some((named, text)) = told.and_then(|(code, text)| Some((accused(code, text)?, text)))
        else {
            run.give_up("the broker closed the channel before the verdict");
            return;
        };
        self.link.exchanges().forget();
        let named = if named == "amq.default" { "" } else { named };
        let blame = run.flight.blame(|job| job.envelope.address.exchange_name() == named);
        if let Some(job) = blame.guilty {
            job.resolve(Verdict::Rejected(text.to_owned().into()));
        }
        for job in blame.unknown {
            let cause = format!("the broker closed the channel before the verdict: {text}");
            job.resolve(Verdict::Unknown(cause.into()));
        }
        // In front of what came back unsent later.
        for job in blame.untouched.into_iter().rev() {
            self.first.push_front(job);
        }
    }
}

impl Run {
    fn new(channel: Channel) -> Self {
        Self {
            channel: Arc::new(channel),
            flight: Flight::default(),
            publishing: FuturesUnordered::new(),
            deadlines: VecDeque::new(),
            overdue: 0,
            failure: None,
        }
    }

    fn channel_is_gone(&self) {
        if self.publishing.is_empty() {
            // Nothing else tells of it.
            self.publishing.push(Box::pin(async {
                (u64::MAX, Err(lapin::ErrorKind::FutureCompleted.into()))
            }));
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Gives verdicts after a confirm has come: only when no other is left that came with it, and
    /// may have brought back a message that is not its own.
    async fn settle(&mut self, outcome: (u64, lapin::Result<Confirmation>)) {
        let mut decided = Vec::new();
        self.gather(outcome, &mut decided);
        self.gather_ready(&mut decided);
        // Taking the client's lock once waits for a batch that it is still working on.
        let batch = {
            let mut touch = pin!(self.channel.wait_for_confirms());
            poll!(&mut touch)
        };
        if let Poll::Ready(Ok(returned)) = batch {
            for message in returned {
                self.flight.note_returned(&message.delivery.properties);
            }
        }
        self.gather_ready(&mut decided);
        for (number, accepted) in decided {
            let Some((job, returned)) = self.flight.leave(number) else {
                self.overdue = self.overdue.saturating_sub(1);
                continue;
            };
            job.resolve(match (returned, accepted) {
                (true, _) => Verdict::Unroutable,
                (false, true) => Verdict::Accepted,
                (false, false) => Verdict::Rejected("a queue refused it".into()),
            });
        }
        while let Some((_, number)) = self.deadlines.front() {
            if self.flight.is_waiting(*number) {
                break;
            }
            self.deadlines.pop_front();
        }
    }

    fn gather_ready(&mut self, decided: &mut Vec<(u64, bool)>) {
        while let Some(Some(outcome)) = self.publishing.next().now_or_never() {
            self.gather(outcome, decided);
        }
    }

    fn gather(
        &mut self,
        (number, outcome): (u64, lapin::Result<Confirmation>),
        decided: &mut Vec<(u64, bool)>,
    ) {
        let (accepted, returned) = match outcome {
            Ok(Confirmation::Ack(returned)) => (true, returned),
            Ok(Confirmation::Nack(returned)) => (false, returned),
            Ok(Confirmation::NotRequested) => (false, None),
            Err(error) => {
                // The first tells most.
                if self.failure.as_ref().and_then(reply).is_none() {
                    self.failure = Some(error);
                }
                return;
            }
        };
        if let Some(message) = returned {
            self.flight.note_returned(&message.delivery.properties);
        }
        decided.push((number, accepted));
    }

    /// Gives up on messages whose time is over.
    fn expire(&mut self, now: Instant) {
        while let Some((deadline, number)) = self.deadlines.front().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_front();
            if let Some((job, _)) = self.flight.leave(number) {
                self.overdue += 1;
                job.resolve(Verdict::Unknown("the broker did not confirm it in time".into()));
            }
        }
    }

    /// Nothing will be known of what is under way.
    fn give_up(&mut self, cause: &'static str) {
        for job in self.flight.take_all() {
            job.resolve(Verdict::Unknown(cause.into()));
        }
    }
}

/// Begins a publish. No await lies between its number and its place on the wire, so that the
/// order of the one is the order of the other. Gives the message back when the channel has closed.
async fn publish(run: &mut Run, job: Job) -> Result<(), Job> {
    // Asked here, because the error of a publish does not tell whether it was written before.
    if !run.channel.status().connected() {
        run.channel_is_gone();
        return Err(job);
    }
    let envelope = job.envelope.clone();
    let deadline = job.deadline;
    let mut properties = properties::write(&envelope.message);
    let number = run.flight.enter(job, &mut properties);
    run.deadlines.push_back((deadline, number));
    let channel = run.channel.clone();
    let mut publish: Publish = Box::pin(async move {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let Envelope { address, message, .. } = &*envelope;
        let (exchange, key) = (address.exchange_name(), address.routing_key());
        let sent = channel
            .basic_publish(exchange.into(), key.into(), options, &message.body, properties)
            .await;
        match sent {
            Ok(confirm) => (number, confirm.await),
            Err(error) => (number, Err(error)),
        }
    });
    let begun = poll!(&mut publish);
    run.publishing.push(match begun {
        Poll::Pending => publish,
        Poll::Ready(outcome) => Box::pin(ready(outcome)),
    });
    Ok(())
}

async fn confirm_channel(link: &Link, session: &Session) -> Result<Channel> {
    let deadline = link.env().now() + CHANNEL_TIMEOUT;
    let channel = session.publishing_channel("publish", deadline).await?;
    let options = ConfirmSelectOptions::default();
    session.by(deadline, "publish", channel.confirm_select(options)).await?;
    Ok(channel)
}

/// The exchange over which the broker closed a channel: one that is not there, or that this user or
/// nobody may publish to.
fn accused(code: u16, text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("exchange '").filter(|_| matches!(code, 403 | 404))?;
    rest.split_once("' in vhost '").map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_names_the_exchange() {
        assert_eq!(accused(404, "NOT_FOUND - no exchange 'x' in vhost '/'"), Some("x"));
        let topic = "ACCESS_REFUSED - write access to topic 'orders' in exchange 'audit' in vhost '/' \
                     refused for user 'anna'";
        assert_eq!(accused(403, topic), Some("audit"));
        assert_eq!(accused(320, "CONNECTION_FORCED - no exchange 'x' in vhost '/'"), None);
        assert_eq!(accused(406, "PRECONDITION_FAILED - fast reply"), None);
    }
}
