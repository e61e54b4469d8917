use std::{fmt, sync::Arc};

use postrider_core::{
    Capabilities, DeliveryInfo, Env, Envelope, Message, PublisherOptions, Result, Transport,
};
use tokio_util::sync::CancellationToken;

use super::{
    copies::Copies,
    field::Field,
    flow::{Flow, FlowCounters},
    inbound::Inbound,
    intake::Intake,
    route::Route,
};
use crate::{
    consuming::{Disposition, Outcome, Outline, Process, catch_panic},
    derived::derived,
    handler::{Context, HandlerError, codes},
    headers,
    middleware::{Layers, Middleware},
    resilience::Retrying,
};

const MAX_PARTS: usize = 10_000;

type Split = Arc<dyn Fn(&Inbound) -> Result<Vec<Message>, HandlerError> + Send + Sync>;

/// Makes many messages of one, and sends each to the same route.
///
/// | in a part | what it is |
/// |---|---|
/// | message id | a UUID that follows from the queue, the parent's id and the part's number: a retry gives the same |
/// | causation id, `postrider-part-of` | the parent's id |
/// | correlation id | the conversation of the parent |
/// | `postrider-part` | its number, from 0 |
/// | `postrider-parts` | how many there are |
///
/// The other headers of the parent are carried over, but those that begin with `x-`, and so are its
/// ordering key, priority, deadline, time to live and durability, where the part has none of its
/// own. The parent is acknowledged when the broker has all parts; until then a retry sends all of
/// them again. A parent without an id is dead-lettered, since its parts would be others on each
/// try. One with no parts is done with and counted as dropped.
///
/// # Example: the lines of an order
///
/// ```
/// use postrider_patterns::routing::{Field, Route, Splitter};
///
/// let _splitter = Splitter::list("orders", Field::body("lines"), Route::queue("order_lines"));
/// ```
#[must_use = "call start"]
pub struct Splitter {
    intake: Intake,
    split: Split,
    to: Route,
    max_parts: usize,
    /// What its list is, where that is all it splits by.
    list: Option<Field>,
    layers: Layers,
}

impl Splitter {
    /// A part for each item of a list in the body, in the codec of the parent.
    pub fn list(intake: impl Into<Intake>, list: Field, to: Route) -> Self {
        let intake = intake.into();
        let (limits, looked_at) = (intake.limits, list.clone());
        let splitter = Self::by(intake, to, move |inbound| {
            let items = list
                .value(inbound)?
                .and_then(super::Value::as_list)
                .ok_or_else(|| HandlerError::invalid(format!("it has no list in {list}")))?;
            let codec = inbound.codec()?;
            let part = |item| {
                let body = codec.encode_within(item, limits)?;
                Ok(Message::new(body).with_content_type(codec.content_type()))
            };
            items.iter().map(part).collect()
        });
        Self { list: Some(looked_at), ..splitter }
    }

    /// The parts that a function makes of a message. It must make the same ones of the same
    /// message, in the same order: their ids follow from their places.
    pub fn by<F>(intake: impl Into<Intake>, to: Route, split: F) -> Self
    where
        F: Fn(&Inbound) -> Result<Vec<Message>, HandlerError> + Send + Sync + 'static,
    {
        let (intake, split, layers) = (intake.into(), Arc::new(split), Layers::default());
        Self { intake, split, to, max_parts: MAX_PARTS, list: None, layers }
    }

    /// Puts a middleware around the splitting, within those that were added before it. Each try of
    /// a message passes through all of them.
    pub fn with(mut self, middleware: impl Middleware) -> Self {
        self.layers.push(middleware);
        self
    }

    /// How many parts one message may have; one with more is dead-lettered. Default: 10,000.
    pub fn max_parts(mut self, parts: usize) -> Self {
        self.max_parts = parts;
        self
    }

    pub(crate) const fn intake(&self) -> &Intake {
        &self.intake
    }

    pub(crate) fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        self.check(capabilities)?;
        Ok(self.intake.outline(false, capabilities))
    }

    fn check(&self, capabilities: &Capabilities) -> Result<()> {
        self.intake.check(capabilities)?;
        self.layers.check("start")?;
        self.list.as_ref().map_or(Ok(()), Field::check)?;
        self.to.check()
    }

    /// Declares the queue and its dead-letter queue, and begins to split. Where parts go is not
    /// declared.
    ///
    /// Cancellation safe: when the future is dropped, nothing is split, and what was declared
    /// stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](postrider_core::ErrorKind::Invalid) for a list that has no text form,
    /// for a route that no broker has, and what [`Worker::start`](crate::Worker::start) fails with.
    pub async fn start(self, transport: &Arc<dyn Transport>) -> Result<Flow> {
        self.check(transport.capabilities())?;
        let Self { intake, split, to, max_parts, layers, .. } = self;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let counters = Arc::new(FlowCounters::default());
        let process = Splitting {
            split,
            to,
            max_parts,
            layers,
            env: transport.env().clone(),
            retrying: intake.retrying(transport, intake.by(transport.capabilities())),
            copies: Copies {
                publisher: Arc::clone(&publisher),
                max_hops: intake.max_hops,
                counters: Arc::clone(&counters),
            },
            intake: intake.clone(),
        };
        let running = intake.start(transport, &publisher, process, false, None).await?;
        Ok(Flow::new(running, counters, transport.env().clone()))
    }
}

impl fmt::Debug for Splitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splitter")
            .field("intake", &self.intake)
            .field("to", &self.to)
            .field("max_parts", &self.max_parts)
            .finish_non_exhaustive()
    }
}

struct Splitting {
    intake: Intake,
    split: Split,
    to: Route,
    max_parts: usize,
    layers: Layers,
    env: Env,
    retrying: Retrying,
    copies: Copies,
}

impl Process for Splitting {
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let inbound = Inbound::new(envelope, info, self.intake.limits);
        let context = |given_up: &CancellationToken| {
            Context::new(Arc::clone(envelope), info.clone(), self.env.clone(), given_up)
        };
        let attempt = |_context| catch_panic(self.split(&inbound, info));
        self.retrying.run_handler(info, cancellation, &self.layers, context, attempt).await
    }

    fn stopping(&self) {
        self.layers.stop();
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        self.layers.settled(envelope, info, outcome);
    }
}

impl Splitting {
    async fn split(&self, parent: &Inbound, info: &DeliveryInfo) -> Result<(), HandlerError> {
        let hop = self.copies.next_hop(parent)?;
        if parent.message().message_id.is_none() {
            let why = "it has no message id, and its parts would be others on each try";
            return Err(HandlerError::invalid(why).with_code(codes::NO_ID));
        }
        let parts = (self.split)(parent)?;
        let count = parts.len();
        if count > self.max_parts {
            let why = format!("it has {count} parts, and at most {} are made", self.max_parts);
            return Err(HandlerError::invalid(why).with_code(codes::TOO_MANY_PARTS));
        }
        if count == 0 {
            self.copies.counters.dropped.add(1);
            return Ok(());
        }
        let mut envelopes = Vec::with_capacity(count);
        for (number, part) in parts.into_iter().enumerate() {
            let mut part = of(parent, part, number, count);
            part.headers.set(headers::HOPS, hop);
            // A partition is chosen by the part and not by its parent.
            let part = Arc::new(Envelope::new(parent.address().clone(), part));
            let seen = Inbound::new(&part, info, self.intake.limits);
            let address = self.to.address(&seen, &self.intake.naming)?;
            envelopes.push(Envelope::new(address, part.message.clone()));
        }
        Ok(self.copies.send(envelopes.into_iter()).await?)
    }
}

/// What tells a message from others, and would make duplicates of its parts.
const OF_THE_WHOLE: [&str; 3] = [headers::IDEMPOTENCY_KEY, headers::UNIQUE_KEY, headers::CALLER];

/// A part with what it has of its parent.
fn of(parent: &Inbound, mut part: Message, number: usize, count: usize) -> Message {
    let whole = parent.message();
    let parent_id = whole.message_id.as_deref().unwrap_or_default();
    let place = (number as u64).to_le_bytes();
    let id = derived([parent.queue().as_bytes(), parent_id.as_bytes(), &place]);
    part.message_id = Some(id.to_string().into());
    part.causation_id = Some(parent_id.to_owned().into());
    part.correlation_id = parent.conversation().map(|id| id.to_owned().into());
    part.key = part.key.or_else(|| whole.key.clone());
    part.priority = part.priority.or(whole.priority);
    part.deadline = part.deadline.or(whole.deadline);
    part.ttl = part.ttl.or(whole.ttl);
    part.timestamp = part.timestamp.or(whole.timestamp);
    part.durable &= whole.durable;
    for (name, value) in whole.headers.iter() {
        let is_carried = !name.starts_with("x-") && !OF_THE_WHOLE.contains(&name);
        if is_carried && part.headers.get(name).is_none() {
            part.headers.set(name.to_owned(), value.clone());
        }
    }
    let whole_number = |number| i64::try_from(number).unwrap_or(i64::MAX);
    part.headers.set(headers::PART_OF, parent_id.to_owned());
    part.headers.set(headers::PART_FROM, parent.queue().to_owned());
    part.headers.set(headers::PART, whole_number(number));
    part.headers.set(headers::PARTS, whole_number(count));
    part
}
