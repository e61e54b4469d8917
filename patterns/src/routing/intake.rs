use std::sync::Arc;

use futures_util::future::{self, BoxFuture};
use postrider_core::{
    Capabilities, Error, ErrorKind, Publisher, Queue, Result, Topology, Transport,
};

use crate::{
    codec::Limits,
    consuming::{Counters, Outline, Process, Runner, Running, Settings, Shared},
    naming::Naming,
    resilience::{By, Keeper, RetryPolicy, Retrying, dead_letter_route, dead_letter_topology},
};

/// How many routers a message may come through.
const MAX_HOPS: u32 = 16;

/// What consuming waits for: whether it may begin, or never will.
pub(super) type Begin = future::Shared<BoxFuture<'static, bool>>;

/// Where a router, splitter or aggregator takes its messages from, and how.
///
/// The queue is a quorum queue with a delivery limit and a dead-letter queue, as that of a worker;
/// it is declared at the start. A name alone is one with the defaults.
///
/// # Example: two queues, and one try more after a minute
///
/// ```
/// use std::time::Duration;
/// use postrider_patterns::{RetryPolicy, routing::Intake};
///
/// let minute = Duration::from_secs(60);
/// let retry = RetryPolicy::default().with_delayed(1).with_delay(minute, 1.0, minute);
/// let _intake = Intake::queue("web_orders").and_queue("shop_orders").retry(retry).concurrency(4);
/// ```
#[derive(Debug, Clone)]
#[must_use = "pass it to a router, splitter or aggregator"]
pub struct Intake {
    pub(super) queues: Vec<String>,
    pub(super) naming: Naming,
    pub(super) limits: Limits,
    pub(super) settings: Settings,
    pub(super) retry: RetryPolicy,
    pub(super) max_hops: u32,
    delivery_limit: u32,
    declared: bool,
}

impl Intake {
    /// One queue.
    pub fn queue(name: impl Into<String>) -> Self {
        Self {
            queues: vec![name.into()],
            naming: Naming::default(),
            limits: Limits::default(),
            settings: Settings::default(),
            retry: RetryPolicy::default(),
            max_hops: MAX_HOPS,
            delivery_limit: Queue::DEFAULT_DELIVERY_LIMIT,
            declared: false,
        }
    }

    /// Adds a queue: a fan-in. Each has the concurrency and the dead-letter queue of its own. See
    /// [`Aggregator`](super::Aggregator) on what that means for groups.
    pub fn and_queue(mut self, name: impl Into<String>) -> Self {
        self.queues.push(name.into());
        self
    }

    /// The queues are there: they are declared elsewhere, such as those of a subscription, and may
    /// have other arguments. Only their dead-letter queues are declared. Give the delivery limit
    /// that they have.
    ///
    /// They may count no failures, as classic queues of RabbitMQ do. Where the broker does not
    /// count [everywhere](Capabilities::exact_attempts), what failed is therefore tried again in
    /// its place, in this process, and keeps its place there until it is done or given up.
    pub fn declared_elsewhere(mut self) -> Self {
        self.declared = true;
        self
    }

    pub(crate) fn queue_names(&self) -> &[String] {
        &self.queues
    }

    /// How many messages of each queue are in hand at once. Default: 16; of an aggregator, as many
    /// as it may [hold](super::Aggregator::max_parts).
    pub fn concurrency(mut self, messages: usize) -> Self {
        self.settings.concurrency = messages;
        self
    }

    /// How many messages are taken in advance, those in hand included. Default: three times the
    /// concurrency, at most 1,000.
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.settings.prefetch = Some(messages);
        self
    }

    /// When a message that could not be sent on is tried again. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// How many failed deliveries the broker itself allows; see
    /// [`Worker::delivery_limit`](crate::Worker::delivery_limit). Default: 20.
    pub fn delivery_limit(mut self, failures: u32) -> Self {
        self.delivery_limit = failures;
        self
    }

    /// How many routers, splitters and aggregators a message may have come through; one that came
    /// through more is dead-lettered, so that those that go in a circle end. Default: 16.
    pub fn max_hops(mut self, routers: u32) -> Self {
        self.max_hops = routers;
        self
    }

    /// The names of queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// How large bodies may be that are looked into. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who counts the failures of a message: a queue that this intake declared, or nobody else.
    pub(super) const fn by(&self, capabilities: &Capabilities) -> By {
        if self.declared && !capabilities.exact_attempts { By::Process } else { By::Broker }
    }

    pub(super) fn retrying(&self, transport: &Arc<dyn Transport>, by: By) -> Retrying {
        Retrying::new(self.retry.clone(), transport.env().clone(), by, None)
    }

    /// Refuses what cannot be carried out.
    pub(super) fn check(&self, capabilities: &Capabilities) -> Result<()> {
        self.settings.check()?;
        self.retry.check(self.delivery_limit, capabilities)?;
        let mut names = self.queues.clone();
        names.sort_unstable();
        names.dedup();
        if names.len() < self.queues.len() {
            let why = "a queue is taken from once; it was named twice";
            return Err(Error::new(ErrorKind::Invalid, "start", why)
                .with_context("queues", self.queues.join(", ")));
        }
        Ok(())
    }

    /// What is declared; `single` is for those of which one at a time takes.
    fn topology(&self, single: bool) -> Topology {
        self.queues.iter().fold(Topology::new(), |topology, name| {
            let topology = topology.and(dead_letter_topology(&self.naming, name));
            if self.declared {
                return topology;
            }
            let queue = Queue::durable(name.clone())
                .with_delivery_limit(self.delivery_limit)
                .with_dead_letter(dead_letter_route(&self.naming, name));
            topology.queue(if single { queue.single_active_consumer() } else { queue })
        })
    }

    pub(super) fn outline(&self, single: bool, capabilities: &Capabilities) -> Outline {
        let outline = Outline::new(self.topology(single), self.queues.clone(), self.settings);
        let outline = outline.with_retry(&self.retry);
        match self.by(capabilities) {
            By::Broker => outline,
            By::Process => outline.held(self.retry.longest_wait()),
        }
    }

    /// Declares the queues and begins to consume them, at once or after `begin`.
    pub(super) async fn start<P: Process>(
        self,
        transport: &Arc<dyn Transport>,
        publisher: &Arc<dyn Publisher>,
        process: P,
        single: bool,
        begin: Option<Begin>,
    ) -> Result<Vec<Running>> {
        transport.declare(&self.topology(single)).await?;
        let mut running = Vec::new();
        for (name, process) in self.queues.iter().zip(Shared::among(process, self.queues.len())) {
            let runner = Runner {
                process,
                keeper: Keeper::new(transport, Arc::clone(publisher), &self.naming, name),
                settings: self.settings,
                counters: Arc::new(Counters::default()),
            };
            running.push(match &begin {
                Some(begin) => runner.start_after(begin.clone(), transport, name)?,
                None => runner.start(transport, name).await?,
            });
        }
        Ok(running)
    }
}

impl From<&str> for Intake {
    fn from(name: &str) -> Self {
        Self::queue(name)
    }
}

impl From<String> for Intake {
    fn from(name: String) -> Self {
        Self::queue(name)
    }
}
