use std::{fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use postrider_core::{
    DeliveryInfo, Envelope, Error, ErrorKind, Message, PublisherOptions, Result, Transport,
    TransportEvent,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    copies::Copies,
    field::Field,
    flow::{Flow, FlowCounters},
    groups::{Bounds, Ending, Groups, Outcome, Taken, Waiting},
    ids::derived,
    inbound::Inbound,
    intake::Intake,
    table::Route,
};
use crate::{
    consuming::{Disposition, Process, catch_panic},
    handler::{ErrorClass, HandlerError, codes},
    headers,
    resilience::{By, Retrying},
};

type Combine = Arc<dyn Fn(&Group) -> Result<Message, HandlerError> + Send + Sync>;
type Ready = Arc<dyn Fn(&[Arc<Inbound>]) -> bool + Send + Sync>;

/// The parts that are made into one message.
#[derive(Debug)]
#[non_exhaustive]
pub struct Group {
    /// What they have in common.
    pub key: String,
    /// The parts: by their numbers where they have some, else in the order in which they came.
    pub parts: Vec<Arc<Inbound>>,
    /// Whether all are there.
    pub complete: bool,
}

/// When a group is complete.
#[derive(Clone)]
#[non_exhaustive]
pub enum Completion {
    /// When it has as many parts as each says there are, in `postrider-parts`: what a
    /// [`Splitter`](super::Splitter) made of one message.
    Parts,
    /// When it has so many parts.
    Count(usize),
    /// When this says so of the parts in the order in which they came. It is asked after each part,
    /// must not block, and a panic in it ends the group: its parts are dead-lettered.
    When(Ready),
}

impl Completion {
    /// When a function says so of the parts that are there, in the order in which they came.
    pub fn when(ready: impl Fn(&[Arc<Inbound>]) -> bool + Send + Sync + 'static) -> Self {
        Self::When(Arc::new(ready))
    }

    fn is_reached(&self, parts: &[Arc<Inbound>]) -> bool {
        match self {
            Self::Count(count) => parts.len() >= *count,
            Self::When(ready) => ready(parts),
            Self::Parts => {
                let said = |part: &Arc<Inbound>| part.int(headers::PARTS);
                let first = parts.first().and_then(said);
                let count = first.and_then(|count| usize::try_from(count).ok());
                // One that says otherwise belongs to something else: the group is not to be trusted.
                count.is_some_and(|count| parts.len() >= count)
                    && parts.iter().all(|part| said(part) == first)
            }
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parts => f.write_str("Parts"),
            Self::Count(count) => f.debug_tuple("Count").field(count).finish(),
            Self::When(_) => f.write_str("When"),
        }
    }
}

/// What becomes of a group that is not complete when its time is over, or that makes room for
/// others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Incomplete {
    /// Its parts are dead-lettered, with the code [`INCOMPLETE`](crate::codes::INCOMPLETE).
    #[default]
    DeadLetter,
    /// What is there is combined, and the message has the header `postrider-incomplete`.
    Publish,
}

/// Makes one message of the many that belong together.
///
/// The parts of a group stay unacknowledged until the broker has what was made of them: after a crash
/// they come again, and the message that is made of them then has the same id. A part that is there
/// already, by its id, shares the fate of the first and is counted. What is not complete in time ends
/// as [`Incomplete`] says. After a crash in the moment of acknowledging, when some parts of a group
/// are gone and the rest come again, that is the end of the rest too.
///
/// One process at a time aggregates a queue, since its consumer is the only active one; others stand
/// by. Use a [`Partitioner`](super::Partitioner) to spread the work. A broker takes back what is not
/// acknowledged for long, RabbitMQ after 30 minutes, so a group must have an end before.
///
/// # Example: the lines of an order, together again
///
/// ```
/// use postrider_patterns::routing::{Aggregator, Completion, Route};
///
/// let _aggregator = Aggregator::new("picked_lines", Completion::Parts, Route::queue("picked_orders"));
/// ```
#[must_use = "call start"]
pub struct Aggregator {
    intake: Intake,
    by: Field,
    completion: Completion,
    combine: Option<Combine>,
    to: Route,
    timeout: Duration,
    incomplete: Incomplete,
    bounds: Bounds,
}

impl Aggregator {
    /// An aggregator whose groups are those of `postrider-part-of`, and whose messages are lists of
    /// the bodies.
    pub fn new(intake: impl Into<Intake>, completion: Completion, to: Route) -> Self {
        Self {
            intake: intake.into(),
            by: Field::header(headers::PART_OF),
            completion,
            combine: None,
            to,
            timeout: Duration::from_secs(60),
            incomplete: Incomplete::default(),
            bounds: Bounds { groups: 1_000, parts: 1_000, bytes: 64 * 1024 * 1024 },
        }
    }

    /// What the parts of a group have in common. A part that has it not is dead-lettered. Default:
    /// the header `postrider-part-of`.
    pub fn by(mut self, key: Field) -> Self {
        self.by = key;
        self
    }

    /// How one message is made of a group. It must make the same of the same parts. Id, hop count and
    /// conversation are set on what it gives. An error or a panic is treated as that of a handler, for
    /// all parts. Default: a list of the bodies, in the codec of the first.
    pub fn combine<F>(mut self, combine: F) -> Self
    where
        F: Fn(&Group) -> Result<Message, HandlerError> + Send + Sync + 'static,
    {
        self.combine = Some(Arc::new(combine));
        self
    }

    /// How long a group may take from its first part. Default: 60 seconds.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = time;
        self
    }

    /// What becomes of groups that are not complete. Default: their parts are dead-lettered.
    pub fn incomplete(mut self, incomplete: Incomplete) -> Self {
        self.incomplete = incomplete;
        self
    }

    /// How many parts are held at once, of all groups. When there is no room for the next one, the
    /// oldest group ends as if its time were over. Default: 1,000; at most 65,000.
    pub fn max_parts(mut self, parts: usize) -> Self {
        self.bounds.parts = parts;
        self
    }

    /// How many groups are held at once; else as [`max_parts`](Self::max_parts). Default: 1,000.
    pub fn max_groups(mut self, groups: usize) -> Self {
        self.bounds.groups = groups;
        self
    }

    /// How many bytes of bodies are held at once; else as [`max_parts`](Self::max_parts). Default:
    /// 64 MiB.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.bounds.bytes = bytes;
        self
    }

    /// Declares the queue and its dead-letter queue, and begins to aggregate. Where messages go is
    /// not declared.
    ///
    /// Cancellation safe: when the future is dropped, nothing is aggregated, and what was declared
    /// stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for bounds or a completion of 0 and for a route that no broker has, and
    /// what [`Worker::start`](crate::Worker::start) fails with.
    pub async fn start(mut self, transport: &Arc<dyn Transport>) -> Result<Flow> {
        // One more than is held, so that there is one for which room is made.
        let places = u16::try_from(self.bounds.parts).ok().and_then(|parts| parts.checked_add(1));
        let bounds = self.bounds;
        let is_zero = bounds.parts == 0 || bounds.groups == 0 || bounds.bytes == 0;
        let (Some(places), false) = (places, is_zero) else {
            let why =
                "an aggregator holds at least one part, group and byte, and at most 65,000 parts";
            return Err(Error::new(ErrorKind::Invalid, "start", why));
        };
        if matches!(self.completion, Completion::Count(0)) {
            let why = "a group that is complete without a part would never begin";
            return Err(Error::new(ErrorKind::Invalid, "start", why));
        }
        self.intake = self.intake.concurrency(places.into()).prefetch(places);
        self.intake.check(transport)?;
        self.to.check()?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let counters = Arc::new(FlowCounters::default());
        let intake = self.intake.clone();
        let env = transport.env().clone();
        let groups = Groups::new(bounds);
        let ended = CancellationToken::new();
        let (until, listen) = (ended.clone(), listen(transport.events(), Arc::clone(&groups)));
        tokio::spawn(async move { until.run_until_cancelled_owned(listen).await });
        let process = Aggregating {
            groups,
            _listening: ended.drop_guard(),
            retrying: intake.retrying(transport, By::Process),
            copies: Copies {
                publisher: Arc::clone(&publisher),
                max_hops: intake.max_hops,
                counters: Arc::clone(&counters),
            },
            env: env.clone(),
            spec: self,
        };
        let running = intake.start(transport, &publisher, process, true).await?;
        Ok(Flow { running, control: None, counters, table: None, tap: None, env })
    }
}

impl fmt::Debug for Aggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aggregator")
            .field("intake", &self.intake)
            .field("by", &self.by)
            .field("completion", &self.completion)
            .field("to", &self.to)
            .field("timeout", &self.timeout)
            .field("incomplete", &self.incomplete)
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

/// After a loss the parts come again, and perhaps to another process: what is held of them is void. If
/// it stayed, it would end as incomplete here though it was completed there.
async fn listen(mut events: BoxStream<'static, TransportEvent>, groups: Arc<Groups>) {
    while let Some(event) = events.next().await {
        if matches!(
            event,
            TransportEvent::Lost { .. }
                | TransportEvent::Restored { .. }
                | TransportEvent::ConsumerCancelled { .. }
        ) {
            groups.give_back();
        }
    }
}

struct Aggregating {
    _listening: DropGuard,
    spec: Aggregator,
    groups: Arc<Groups>,
    retrying: Retrying,
    copies: Copies,
    env: postrider_core::Env,
}

impl Process for Aggregating {
    /// Lasts until the group of the part has ended, so that the part is in hand as long.
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let part = Arc::new(Inbound::new(envelope, info, self.spec.intake.limits));
        let key = match catch_panic(async { self.key(&part) }).await {
            Ok(key) => key,
            Err(error) => return Disposition::DeadLetter(error),
        };
        let identity = self.identity(&part);
        let taken = loop {
            // Before the look, so that no room that is given back after it is missed.
            let freed = self.groups.freed();
            match self.groups.take(&key, &part, identity.as_deref()) {
                Taken::NotYet => freed.await,
                taken => break taken,
            }
        };
        let end = self.env.deadline(self.spec.timeout);
        let doing = Doing { key: &key, info, cancellation };
        let outcome = match taken {
            Taken::First(waiting, full) => {
                self.complete(doing).await;
                self.see_to_its_end(doing, waiting, &full, end).await
            }
            Taken::Next(waiting) => {
                self.complete(doing).await;
                waiting.await.ok()
            }
            Taken::Again(waiting) => {
                self.copies.counters.duplicates.add(1);
                waiting.await.ok()
            }
            Taken::Past | Taken::NotYet => {
                self.copies.counters.duplicates.add(1);
                Some(Outcome::Done)
            }
        };
        match outcome {
            Some(Outcome::Done) => Disposition::Ack,
            Some(Outcome::Dead(error)) => Disposition::DeadLetter(error),
            // Whoever would have ended the group was given up.
            Some(Outcome::Back) | None => Disposition::Release,
        }
    }
}

/// The group that is looked at, for the sake of which part.
#[derive(Clone, Copy)]
struct Doing<'a> {
    key: &'a str,
    info: &'a DeliveryInfo,
    cancellation: &'a CancellationToken,
}

impl Aggregating {
    /// What group a part belongs to; refuses those that would spoil it.
    fn key(&self, part: &Inbound) -> Result<String, HandlerError> {
        self.copies.next_hop(part)?;
        let by = &self.spec.by;
        let key = by.key(part)?.ok_or_else(|| {
            HandlerError::invalid(format!("it has no {by} that could be the key of its group"))
                .with_code(codes::NO_KEY)
        })?;
        if matches!(self.spec.completion, Completion::Parts) {
            let (number, count) = (part.int(headers::PART), part.int(headers::PARTS));
            if !matches!((number, count), (Some(number), Some(count)) if (0..count).contains(&number))
            {
                let why = "it does not say which part of how many it is";
                return Err(HandlerError::invalid(why));
            }
        }
        if self.spec.combine.is_none() {
            part.body()?;
        }
        Ok(key)
    }

    /// What makes two parts of a group one: the number where there are numbers, else the id.
    fn identity(&self, part: &Inbound) -> Option<String> {
        match self.spec.completion {
            Completion::Parts => part.int(headers::PART).map(|number| number.to_string()),
            _ => part.message().message_id.as_deref().map(str::to_owned),
        }
    }

    async fn complete(&self, doing: Doing<'_>) {
        let mut panicked = None;
        let ready = |parts: &[Arc<Inbound>]| {
            let reached = catch_panic(async { Ok(self.spec.completion.is_reached(parts)) });
            match reached.now_or_never() {
                Some(Err(error)) => {
                    panicked = Some(error);
                    true
                }
                reached => matches!(reached, Some(Ok(true))),
            }
        };
        let Some(group) = self.groups.close_if(doing.key, ready) else { return };
        match panicked {
            None => self.end(group, true, doing).await,
            // It would panic again.
            Some(error) => group.end(&Outcome::Dead(error)),
        }
    }

    /// Ends the group when its time is over or others need its room, unless it ends before.
    async fn see_to_its_end(
        &self,
        doing: Doing<'_>,
        mut waiting: Waiting,
        full: &Notify,
        end: Instant,
    ) -> Option<Outcome> {
        tokio::select! {
            biased;
            outcome = &mut waiting => return outcome.ok(),
            () = full.notified() => {}
            () = sleep_until(end) => {}
        }
        if let Some(group) = self.groups.close_if(doing.key, |_parts| true) {
            self.end(group, false, doing).await;
        }
        waiting.await.ok()
    }

    async fn end(&self, group: Ending, complete: bool, doing: Doing<'_>) {
        let FlowCounters { complete: completed, incomplete, .. } = &*self.copies.counters;
        if complete { completed } else { incomplete }.add(1);
        if !complete && self.spec.incomplete == Incomplete::DeadLetter {
            let parts = group.parts.len();
            let why =
                format!("its group '{}' had {parts} parts and did not become complete", doing.key);
            let error = HandlerError::new(ErrorClass::DeadlineExceeded, why);
            return group.end(&Outcome::Dead(error.with_code(codes::INCOMPLETE)));
        }
        let mut parts = group.parts.clone();
        parts.sort_by_key(|part| part.int(headers::PART).unwrap_or(i64::MAX));
        let whole = Group { key: group.key.clone(), parts, complete };
        let attempt = || catch_panic(self.publish(&whole));
        let outcome = match self.retrying.run(doing.info, doing.cancellation, attempt).await {
            Disposition::Ack => Outcome::Done,
            Disposition::DeadLetter(error) => Outcome::Dead(error),
            Disposition::Release | Disposition::Retry(_) => Outcome::Back,
        };
        group.end(&outcome);
    }

    async fn publish(&self, group: &Group) -> Result<(), HandlerError> {
        let mut message = match &self.spec.combine {
            Some(combine) => combine(group)?,
            None => self.list(group)?,
        };
        let mut hop = 0;
        for part in &group.parts {
            hop = hop.max(self.copies.next_hop(part)?);
        }
        message.message_id = Some(self.id(group).into());
        let first = group.parts.first().ok_or_else(|| HandlerError::internal("an empty group"))?;
        let conversation = first.conversation().map(|id| id.to_owned().into());
        message.correlation_id = message.correlation_id.or(conversation);
        message.headers.set(headers::HOPS, hop);
        if !group.complete {
            message.headers.set(headers::INCOMPLETE, true);
        }
        let info = DeliveryInfo::first(first.queue().into());
        let envelope = Envelope::new(first.address().clone(), message);
        let seen = Inbound::new(&Arc::new(envelope), &info, self.spec.intake.limits);
        let address = self.spec.to.address(&seen, &self.spec.intake.naming)?;
        let envelope = Envelope::new(address, seen.message().clone());
        Ok(self.copies.send(std::iter::once(envelope)).await?)
    }

    /// Follows from the parts, in whatever order they came.
    fn id(&self, group: &Group) -> String {
        let mut parts: Vec<&[u8]> = group
            .parts
            .iter()
            .map(|part| {
                let id = part.message().message_id.as_deref();
                id.map_or(&*part.message().body, str::as_bytes)
            })
            .collect();
        parts.sort_unstable();
        let queues = self.spec.intake.queues.join("\0");
        derived([queues.as_bytes(), group.key.as_bytes()].into_iter().chain(parts)).to_string()
    }

    fn list(&self, group: &Group) -> Result<Message, HandlerError> {
        let bodies: Vec<_> =
            group.parts.iter().map(|part| part.body()).collect::<Result<_, _>>()?;
        let codec = group.parts.first().map(|part| part.codec()).transpose()?.unwrap_or_default();
        let body = codec.encode_within(&bodies, self.spec.intake.limits)?;
        Ok(Message::new(body).with_content_type(codec.content_type()))
    }
}
