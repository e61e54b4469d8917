//! The task that owns a sending link: sends in order, and gives each message its verdict.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use fe2o3_amqp::{
    Sendable, Sender,
    link::{SendError, delivery::DeliveryFut},
};
use fe2o3_amqp_types::{
    definitions::{ReceiverSettleMode, SenderSettleMode},
    messaging::{Outcome, Source, Target},
    primitives::Symbol,
};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use postrider_core::{ConfirmSender, Envelope, Error, ErrorKind, Result, Verdict};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use crate::{
    clock::until,
    connection::Connection,
    consumer::OUTCOMES,
    error::{of_send, of_sender},
    link::{Link, Stage},
    message, provisioned,
    sessions::Seat,
};

/// How long to wait before a link that could not be attached is tried again.
const LINK_PAUSE: Duration = Duration::from_millis(50);

/// How long attaching a link may take.
const LINK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long ending a link may take.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);

/// What the broker calls the exchange that has no name.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// How many messages are sent in a row before verdicts are looked at.
const RUN: usize = 64;

/// A message up to this size goes in one frame, so that it was sent or was not. In bytes.
const ONE_FRAME: usize = 64 * 1024;

/// A message with the place that it takes in the window until it has its verdict.
pub(crate) struct Job {
    envelope: Envelope,
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
        Self { envelope, deadline, verdict, permit, link }
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

/// A message under way, by its number.
struct UnderWay {
    number: u64,
    outcome: DeliveryFut<Result<Outcome, SendError>>,
}

impl Future for UnderWay {
    type Output = (u64, Result<Outcome, SendError>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = ready!(Pin::new(&mut self.outcome).poll(cx));
        Poll::Ready((self.number, outcome))
    }
}

/// Enters a message that is to be sent by its deadline. Who waited for a place in the window may come
/// after others that have more time; the messages of one task stay in their order.
fn enter(first: &mut VecDeque<Job>, job: Job) {
    let later = first.iter().rev().take_while(|other| other.deadline > job.deadline).count();
    first.insert(first.len() - later, job);
}

/// Tells the messages whose time is over that they were not sent.
fn expire(first: &mut VecDeque<Job>, now: Instant) {
    while first.front().is_some_and(|job| job.deadline <= now) {
        if let Some(job) = first.pop_front() {
            job.resolve(Verdict::Rejected("it could not be sent in time".into()));
        }
    }
}

/// Why a link is left.
enum Left {
    /// The publisher was dropped and every message has its verdict, or the connection is closed.
    Done,
    /// The connection is gone.
    Lost,
    /// The link is of no use any more.
    Link,
}

pub(crate) struct Pipeline {
    link: Arc<Link>,
    jobs: mpsc::Receiver<Job>,
    /// Messages that were not sent and go first, by their deadlines.
    first: VecDeque<Job>,
    window: usize,
    /// The address of all its messages; `None` when each has its own.
    target: Option<String>,
    /// Whether the publisher still hands over messages.
    open: bool,
}

/// What is under way on one link.
struct Run {
    sender: Sender,
    seat: Seat,
    next: u64,
    /// Messages without a verdict, in the order of sending.
    flight: BTreeMap<u64, Job>,
    /// Those of them that have less time than one that was sent before.
    early: BTreeSet<(Instant, u64)>,
    /// The last deadline of those that were sent.
    latest: Option<Instant>,
    under_way: FuturesUnordered<UnderWay>,
    /// Messages given up whose verdict may still come.
    overdue: usize,
    /// Why the link has ended.
    over: Option<Error>,
}

impl Pipeline {
    pub(crate) fn new(
        link: Arc<Link>,
        jobs: mpsc::Receiver<Job>,
        window: usize,
        target: Option<String>,
    ) -> Self {
        Self { link, jobs, first: VecDeque::new(), window, target, open: true }
    }

    /// Publishes over all epochs, until the publisher is dropped or the connection closed.
    pub(crate) async fn run(mut self) {
        let shutdown = self.link.shutdown().clone();
        while self.is_wanted().await
            && let Some(connection) = self.wait_for_connection().await
        {
            let (link, target) = (self.link.clone(), self.target.clone());
            let mut run = match self.meanwhile(attach(&link, &connection, target)).await {
                Some(Ok(run)) => run,
                Some(Err(error)) => {
                    tracing::debug!(%error, "no link to publish on yet");
                    self.refuse_first(&error);
                    let _pause = self.meanwhile(sleep(LINK_PAUSE)).await;
                    continue;
                }
                None => break,
            };
            let left = tokio::select! {
                left = self.serve(&connection, &mut run) => left,
                () = shutdown.cancelled() => Left::Done,
            };
            match left {
                Left::Done => {
                    run.give_up("the transport was closed");
                    run.end().await;
                    break;
                }
                Left::Lost => run.give_up("the connection was lost before the verdict"),
                Left::Link => {
                    run.blame();
                    run.give_up("the broker ended the link before the verdict");
                    // A broker that is silent does not answer, and others wait for their verdicts.
                    let mut ending = pin!(run.end());
                    if self.meanwhile(&mut ending).await.is_none() {
                        ending.await;
                    }
                }
            }
        }
        // What is left was never sent.
        self.jobs.close();
        self.first.extend(std::iter::from_fn(|| self.jobs.try_recv().ok()));
        for job in self.first {
            job.resolve(Verdict::Rejected("the transport was closed before it was sent".into()));
        }
    }

    /// Waits until there is a connection that takes publishes; `None` when there will be none.
    async fn wait_for_connection(&mut self) -> Option<Arc<Connection>> {
        let mut watch = self.link.watch();
        loop {
            {
                let state = watch.borrow_and_update();
                match &state.stage {
                    Stage::Up(connection) | Stage::Closing(Some(connection))
                        if !connection.is_over() && state.blocked.is_none() =>
                    {
                        return Some(connection.clone());
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
                    Some(job) => enter(&mut self.first, job),
                    None => self.open = false,
                },
                () = until(next) => self.expire_unsent(),
            }
            if !self.open && self.first.is_empty() {
                return None;
            }
        }
    }

    /// Waits until there is something to send, where a link is for one address: a broker that refuses
    /// the address is not asked again without need. `false` when there will be nothing.
    async fn is_wanted(&mut self) -> bool {
        if self.target.is_none() || !self.first.is_empty() {
            return true;
        }
        let shutdown = self.link.shutdown().clone();
        let job = tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            job = self.jobs.recv() => job,
        };
        self.first.extend(job);
        !self.first.is_empty()
    }

    /// Tells the first message that this user may not publish, or that there is no such address.
    fn refuse_first(&mut self, error: &Error) {
        let is_told = match error.kind() {
            ErrorKind::Unauthorized => true,
            ErrorKind::NotFound => self.target.is_some(),
            _ => false,
        };
        let Some(job) = is_told.then(|| self.first.pop_front()).flatten() else { return };
        let is_to_queue = job.envelope.address.exchange_name().is_empty();
        job.resolve(match error.kind() {
            ErrorKind::NotFound if is_to_queue => Verdict::Unroutable,
            _ => Verdict::Rejected(error.message().to_owned().into()),
        });
    }

    fn expire_unsent(&mut self) {
        expire(&mut self.first, self.link.env().now());
    }

    async fn serve(&mut self, connection: &Connection, run: &mut Run) -> Left {
        let mut watch = self.link.watch();
        // Made once, and not for each message: both are entered in lists under locks.
        let mut over = pin!(connection.over());
        let mut ended = pin!(run.seat.over().clone().cancelled_owned());
        let mut alarm = pin!(until(None));
        let mut set_for = None;
        loop {
            let takes = watch.borrow_and_update().blocked.is_none();
            while takes && let Some(job) = self.first.pop_front() {
                let Self { jobs, first, open, .. } = self;
                if let Err(unsent) = run.send(connection, job, jobs, first, open).await {
                    if let Some(job) = unsent {
                        self.first.push_front(job);
                    }
                    return if connection.is_over() { Left::Lost } else { Left::Link };
                }
            }
            // A link that owes a whole window of verdicts is of no use any more.
            if run.over.is_some() || run.overdue >= self.window {
                return if connection.is_over() { Left::Lost } else { Left::Link };
            }
            if !self.open && run.flight.is_empty() && self.first.is_empty() {
                return Left::Done;
            }
            // It may go off for a message that has its verdict, and is set anew then.
            let unsent = self.first.front().map(|job| job.deadline);
            if let Some(next) = run.waiting().next_deadline().into_iter().chain(unsent).min()
                && set_for.is_none_or(|moment| next < moment)
            {
                alarm.set(until(Some(next)));
                set_for = Some(next);
            }
            tokio::select! {
                biased;
                () = &mut over => return Left::Lost,
                Some(outcome) = run.under_way.next() => run.settle(outcome),
                // The client library leaves messages under way without an outcome.
                () = &mut ended => {
                    run.over.get_or_insert_with(|| run.seat.cause("publish"));
                }
                // Before more is taken: who publishes without a pause must not keep others waiting.
                () = &mut alarm, if set_for.is_some() => {
                    set_for = None;
                    self.expire_unsent();
                    run.waiting().expire(self.link.env().now());
                }
                job = self.jobs.recv(), if self.open => match job {
                    Some(job) => {
                        enter(&mut self.first, job);
                        // Other tasks that are about to publish go before, so that one write takes
                        // what all of them have.
                        yield_now().await;
                        let more = std::iter::from_fn(|| self.jobs.try_recv().ok());
                        more.take(RUN - 1).for_each(|job| enter(&mut self.first, job));
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
            }
        }
    }
}

impl Run {
    /// Sends a message. Gives it back when the link has ended and it was not sent.
    /// What comes meanwhile is entered in `first`, and has its verdict in time.
    async fn send(
        &mut self,
        connection: &Connection,
        job: Job,
        jobs: &mut mpsc::Receiver<Job>,
        first: &mut VecDeque<Job>,
        open: &mut bool,
    ) -> Result<(), Option<Job>> {
        let wire = message::write(&job.envelope, connection.dialect());
        let deadline = job.deadline;
        let number = self.next;
        self.next += 1;
        let sendable = Sendable::builder().message(wire).settled(false).build();
        let Self { sender, seat, under_way, flight, early, latest, overdue, over, .. } = self;
        let mut sending = pin!(sender.send_batchable(sendable));
        let mut waiting = Waiting { flight, early, overdue, over };
        let sent = match sending.as_mut().now_or_never() {
            Some(sent) => sent,
            // The broker gives no credit for now.
            None => loop {
                let overdue = waiting.next_deadline();
                let unsent = first.front().map(|job| job.deadline);
                tokio::select! {
                    biased;
                    sent = &mut sending => break sent,
                    () = connection.over() => return Err(Some(job)),
                    () = seat.over().cancelled() => return Err(Some(job)),
                    Some(outcome) = under_way.next() => waiting.settle(outcome),
                    () = until(Some(deadline)) => {
                        let in_one_frame = job.envelope.message.body.len() < ONE_FRAME;
                        job.resolve(Verdict::Rejected("it could not be sent in time".into()));
                        // Half a message on a link spoils what comes after it.
                        return if in_one_frame { Ok(()) } else { Err(None) };
                    }
                    () = until(overdue) => waiting.expire(connection.env().now()),
                    () = until(unsent) => expire(first, connection.env().now()),
                    job = jobs.recv(), if *open => match job {
                        Some(job) => enter(first, job),
                        None => *open = false,
                    },
                }
            },
        };
        match sent {
            Ok(outcome) => {
                if latest.is_some_and(|latest| deadline < latest) {
                    waiting.early.insert((deadline, number));
                } else {
                    *latest = Some(deadline);
                }
                waiting.flight.insert(number, job);
                under_way.push(UnderWay { number, outcome });
                Ok(())
            }
            Err(SendError::MessageSizeExceeded(_) | SendError::MessageEncodeError) => {
                job.resolve(Verdict::Rejected(
                    "the message cannot be encoded, or is too large".into(),
                ));
                Ok(())
            }
            Err(_) => Err(Some(job)),
        }
    }

    fn settle(&mut self, outcome: (u64, Result<Outcome, SendError>)) {
        let Self { flight, early, overdue, over, under_way, .. } = self;
        let mut waiting = Waiting { flight, early, overdue, over };
        waiting.settle(outcome);
        while let Some(Some(outcome)) = under_way.next().now_or_never() {
            waiting.settle(outcome);
        }
    }

    const fn waiting(&mut self) -> Waiting<'_> {
        let Self { flight, early, overdue, over, .. } = self;
        Waiting { flight, early, overdue, over }
    }

    /// Tells the message over which the broker ended the session, where it is the only one to the
    /// exchange that is named.
    fn blame(&mut self) {
        let Some(error) = self.over.take().filter(|error| error.kind() == ErrorKind::Unauthorized)
        else {
            return;
        };
        let Some(exchange) = accused(error.message()) else { return };
        let exchange = if exchange == DEFAULT_EXCHANGE { "" } else { exchange };
        let mut suspects =
            self.flight.iter().filter(|(_, job)| job.envelope.address.exchange_name() == exchange);
        let (Some((number, _)), None) = (suspects.next(), suspects.next()) else { return };
        let number = *number;
        if let Some(job) = self.flight.remove(&number) {
            job.resolve(Verdict::Rejected(error.message().to_owned().into()));
        }
    }

    /// Nothing will be known of what is under way.
    fn give_up(&mut self, cause: &'static str) {
        for (_, job) in std::mem::take(&mut self.flight) {
            job.resolve(Verdict::Unknown(cause.into()));
        }
    }

    async fn end(self) {
        let Self { sender, seat, .. } = self;
        let left = tokio::select! {
            biased;
            () = seat.over().cancelled() => return,
            left = timeout(DETACH_TIMEOUT, sender.close()) => left,
        };
        if left.is_err() {
            seat.spoil();
        }
    }
}

/// What waits for verdicts, apart from the link itself.
struct Waiting<'a> {
    flight: &'a mut BTreeMap<u64, Job>,
    early: &'a mut BTreeSet<(Instant, u64)>,
    overdue: &'a mut usize,
    over: &'a mut Option<Error>,
}

impl Waiting<'_> {
    /// The message whose time is over first.
    fn next(&self) -> Option<(Instant, u64)> {
        let first = self.flight.first_key_value().map(|(number, job)| (job.deadline, *number));
        first.into_iter().chain(self.early.first().copied()).min()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.next().map(|(deadline, _)| deadline)
    }

    /// Gives up on messages whose time is over.
    fn expire(&mut self, now: Instant) {
        while let Some((deadline, number)) = self.next().filter(|(deadline, _)| *deadline <= now) {
            self.early.remove(&(deadline, number));
            if let Some(job) = self.flight.remove(&number) {
                *self.overdue += 1;
                job.resolve(Verdict::Unknown("the broker did not confirm it in time".into()));
            }
        }
    }

    fn settle(&mut self, (number, outcome): (u64, Result<Outcome, SendError>)) {
        if let Err(error) = outcome {
            // Whose fault it was is found out when all have heard of it.
            self.over.get_or_insert_with(|| of_send("publish", &error));
            return;
        }
        let Some(job) = self.flight.remove(&number) else {
            *self.overdue = self.overdue.saturating_sub(1);
            return;
        };
        self.early.remove(&(job.deadline, number));
        job.resolve(verdict(outcome));
    }
}

/// The exchange that the broker names when it refuses a publish.
fn accused(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("exchange '")?;
    rest.split_once("' in vhost '").map(|(name, _)| name)
}

fn verdict(outcome: Result<Outcome, SendError>) -> Verdict {
    match outcome {
        Ok(Outcome::Accepted(_)) => Verdict::Accepted,
        Ok(Outcome::Released(_)) => Verdict::Unroutable,
        Ok(Outcome::Rejected(rejected)) => {
            let told = rejected.error.and_then(|error| error.description);
            Verdict::Rejected(told.unwrap_or_else(|| "a queue refused it".to_owned()).into())
        }
        Ok(Outcome::Modified(_)) => Verdict::Rejected("the broker cannot take it for now".into()),
        Err(_) => Verdict::Unknown("the link ended before the verdict".into()),
    }
}

async fn attach(link: &Link, connection: &Connection, target: Option<String>) -> Result<Run> {
    let deadline = link.env().now() + LINK_TIMEOUT;
    if let Some(target) = target.as_deref().filter(|_| connection.dialect().ends_sessions()) {
        provisioned::ask(connection, "publish", target, deadline).await?;
    }
    let seat = connection.seat("publish", deadline).await?;
    let source = Source::builder().outcomes(OUTCOMES.map(Symbol::from).to_vec()).build();
    let sender = Sender::builder()
        .name(format!("postrider {}", link.env().new_id().simple()))
        .source(source)
        .target(Target { address: target, ..Target::default() })
        .sender_settle_mode(SenderSettleMode::Unsettled)
        .receiver_settle_mode(ReceiverSettleMode::First);
    let attaching = seat.attach("publish", |session| Box::pin(sender.attach(session)));
    let sender = connection.by(deadline, "publish", attaching).await??;
    let sender = sender.map_err(|error| of_sender("publish", &error))?;
    Ok(Run {
        sender,
        seat,
        next: 0,
        flight: BTreeMap::new(),
        early: BTreeSet::new(),
        latest: None,
        under_way: FuturesUnordered::new(),
        overdue: 0,
        over: None,
    })
}
