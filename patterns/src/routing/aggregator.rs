use std::{fmt, sync::Arc, time::Duration};

use postrider_core::{
    Capabilities, Error, ErrorKind, Message, PublisherOptions, Result, Transport,
};
use tokio_util::sync::CancellationToken;

use super::{
    aggregating::{Aggregating, listen},
    copies::Copies,
    field::Field,
    flow::{Flow, FlowCounters},
    groups::{Bounds, Groups},
    inbound::Inbound,
    intake::Intake,
    route::Route,
};
use crate::{consuming::Outline, handler::HandlerError, headers, resilience::By};

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

    pub(super) fn is_reached(&self, parts: &[Arc<Inbound>]) -> bool {
        match self {
            Self::Count(count) => parts.len() >= *count,
            Self::When(ready) => ready(parts),
            Self::Parts => {
                let said = |part: &Arc<Inbound>| part.int(headers::PARTS);
                let first = parts.first().and_then(said);
                let count = first.and_then(|count| usize::try_from(count).ok());
                // One that says otherwise belongs to something else: the group is not to be
                // trusted.
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
/// The parts of a group stay unacknowledged until the broker has what was made of them: after a
/// crash they come again, and the message that is made of them then has the same id. A part that is
/// there already, by its number or id, takes the place of the first, which is acknowledged and
/// counted as a duplicate: so copies take no room, and the one that stays is at the broker
/// whichever of them was lost. What is not complete in time ends as [`Incomplete`] says. After a
/// crash in the moment of acknowledging, when some parts of a group are gone and the rest come
/// again, that is the end of the rest too.
///
/// One process at a time aggregates a queue, since its consumer is the only active one; others
/// stand by. Use a [`Partitioner`](super::Partitioner) to spread the work. Of several queues
/// ([`Intake::and_queue`](super::Intake::and_queue)) each has an active consumer of its own: groups
/// whose parts come over several of them need all of those in one process. Run one instance then,
/// or let a router bring the parts into one queue. When it stops, groups that are not complete go
/// back at once. A broker takes back what is not acknowledged for long, RabbitMQ after 30 minutes,
/// so a group must have an end before.
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
    pub(super) intake: Intake,
    pub(super) by: Field,
    pub(super) completion: Completion,
    pub(super) combine: Option<Combine>,
    pub(super) to: Route,
    pub(super) timeout: Duration,
    pub(super) incomplete: Incomplete,
    pub(super) bounds: Bounds,
}

impl Aggregator {
    /// An aggregator whose groups are those of `postrider-part-of`, and whose messages are lists of
    /// the bodies.
    pub fn new(intake: impl Into<Intake>, completion: Completion, to: Route) -> Self {
        Self {
            intake: intake.into(),
            by: part_of(),
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

    /// How one message is made of a group. It must make the same of the same parts. Id, hop count
    /// and conversation are set on what it gives. An error or a panic is treated as that of a
    /// handler, for all parts. Default: a list of the bodies, in the codec of the first.
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

    /// How many parts are held at once, of all groups. A part whose group would have more is
    /// dead-lettered, with the code [`TOO_MANY_PARTS`](crate::codes::TOO_MANY_PARTS). When there is
    /// no room for the next one, the oldest group ends as if its time were over. Default: 1,000; at
    /// most 65,000.
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

    pub(crate) const fn intake(&self) -> &Intake {
        &self.intake
    }

    pub(crate) fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        let intake = self.checked(capabilities)?;
        let held = self.timeout.saturating_add(intake.retry.longest_wait());
        Ok(intake.outline(true, capabilities).held(held))
    }

    /// Refuses what cannot be carried out, and says how it takes its messages.
    fn checked(&self, capabilities: &Capabilities) -> Result<Intake> {
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
        if matches!(self.completion, Completion::Count(parts) if parts > bounds.parts) {
            let why = "a group of more parts than are held would never be complete";
            return Err(Error::new(ErrorKind::Invalid, "start", why));
        }
        if matches!(self.completion, Completion::Parts) && self.by != part_of() {
            let why = "parts are numbered within their parent, so they have nothing else in common";
            return Err(Error::new(ErrorKind::Invalid, "start", why));
        }
        if self.timeout.is_zero() {
            let why = "a group that ends at once has no second part";
            return Err(Error::new(ErrorKind::Invalid, "start", why));
        }
        let intake = self.intake.clone().concurrency(places.into()).prefetch(places);
        intake.check(capabilities)?;
        self.by.check()?;
        self.to.check()?;
        Ok(intake)
    }

    /// Declares the queue and its dead-letter queue, and begins to aggregate. Where messages go is
    /// not declared.
    ///
    /// Cancellation safe: when the future is dropped, nothing is aggregated, and what was declared
    /// stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for bounds, a timeout or a completion of 0, for a count above the parts
    /// that are held, for [`Completion::Parts`] by anything but the parent, for a field that has no
    /// text and for a route that no broker has, and what [`Worker::start`](crate::Worker::start) fails with.
    pub async fn start(mut self, transport: &Arc<dyn Transport>) -> Result<Flow> {
        self.intake = self.checked(transport.capabilities())?;
        let bounds = self.bounds;
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
        let running = intake.start(transport, &publisher, process, true, None).await?;
        Ok(Flow::new(running, counters, env))
    }
}

/// What the parts of a message have in common.
fn part_of() -> Field {
    Field::header(headers::PART_OF)
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
