use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use postrider_core::{
    Capabilities, ConsumerOptions, Error, ErrorKind, PublisherOptions, Result, Topology, Transport,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    Task, TaskWithResult,
    control::{self, CalledOff},
    queue::{QueueLimits, task_topology},
    reporting::Reports,
    unique::UniqueKeys,
    work::{self, Handler, Work},
};
use crate::{
    codec::Limits,
    consuming::{Counters, Outline, Runner, Running, Settings},
    handler::{Context, HandlerError},
    middleware::{Layers, Middleware},
    naming::Naming,
    resilience::{By, Keeper, RetryPolicy, Retrying},
};

/// Does the tasks of one queue. Workers of one queue share its tasks.
#[must_use = "call start"]
pub struct Worker {
    queue: String,
    naming: Naming,
    limits: Limits,
    layers: Layers,
    settings: Settings,
    retry: RetryPolicy,
    queue_limits: QueueLimits,
    handlers: HashMap<&'static str, Handler>,
    complaints: Vec<String>,
}

impl Worker {
    /// A worker on `queue` without handlers.
    pub fn new(queue: impl Into<String>) -> Self {
        Self {
            queue: queue.into(),
            naming: Naming::default(),
            limits: Limits::default(),
            layers: Layers::default(),
            settings: Settings::default(),
            retry: RetryPolicy::default(),
            queue_limits: QueueLimits::default(),
            handlers: HashMap::new(),
            complaints: Vec::new(),
        }
    }

    /// Adds the handler for one type of tasks.
    pub fn on<T, F, Fut>(self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.add::<T, (), F, Fut>(handler)
    }

    /// Adds the handler for one type of tasks whose results go to who tracks them. When a result
    /// cannot be encoded or is too large, the task is done all the same, and its handle ends as
    /// failed with the code [`RESULT_UNSENDABLE`](crate::codes::RESULT_UNSENDABLE).
    pub fn on_result<T, F, Fut>(self, handler: F) -> Self
    where
        T: TaskWithResult,
        F: Fn(T, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T::Output, HandlerError>> + Send + 'static,
    {
        self.add::<T, T::Output, F, Fut>(handler)
    }

    fn add<T, R, F, Fut>(mut self, handler: F) -> Self
    where
        T: Task,
        R: Serialize + Send + Sync + 'static,
        F: Fn(T, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        if T::QUEUE != self.queue {
            let complaint = format!(
                "tasks '{}' go to queue '{}'; name the worker so, or set the task's QUEUE",
                T::TYPE,
                T::QUEUE
            );
            self.complaints.push(complaint);
        }
        if self.handlers.insert(T::TYPE, work::handler(handler)).is_some() {
            let complaint = format!("tasks '{}' have two handlers", T::TYPE);
            self.complaints.push(complaint);
        }
        self
    }

    /// Puts a middleware around the handlers, within those that were added before it. Each try of
    /// a task passes through all of them.
    pub fn with(mut self, middleware: impl Middleware) -> Self {
        self.layers.push(middleware);
        self
    }

    /// How many tasks are done at once. Default: 16.
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.settings.concurrency = tasks;
        self
    }

    /// How many tasks are taken in advance, those at work included. What is taken in advance is out
    /// of reach of other workers and of tasks with a higher priority. Default: three times the
    /// concurrency, at most 1,000.
    pub fn prefetch(mut self, tasks: u16) -> Self {
        self.settings.prefetch = Some(tasks);
        self
    }

    /// How long a handler may take with one task. When the time is over the handler is given up at
    /// its await, its [`Context::cancellation`] tells what it started elsewhere, and the task has
    /// failed with the class [`DeadlineExceeded`](crate::ErrorClass::DeadlineExceeded) and the code
    /// [`HANDLER_TIMEOUT`](crate::codes::HANDLER_TIMEOUT). A handler that holds its thread cannot be
    /// given up. Default: as long as it takes, though RabbitMQ itself takes a message back after its
    /// consumer timeout, 30 minutes unless it is set otherwise.
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.settings.handler_timeout = Some(limit);
        self
    }

    /// When failed tasks are tried again. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// How many failed deliveries the broker itself allows, for tasks that kill their process. It is
    /// above what the retry policy uses, and the same in every worker of the queue. Default: 20;
    /// with another one, start a worker before the first task is submitted.
    pub fn delivery_limit(mut self, failures: u32) -> Self {
        self.queue_limits.delivery_limit = failures;
        self
    }

    /// How long tasks may wait in the queue, in whole milliseconds, before they expire into its
    /// dead-letter queue; the shorter of this and their own time holds. It is the same in every
    /// worker of the queue. Default: for ever; with another one, start a worker before the first
    /// task is submitted.
    pub fn ttl(mut self, time: Duration) -> Self {
        self.queue_limits.ttl = Some(time);
        self
    }

    /// The names of queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// How large bodies may be. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub(crate) fn queue_name(&self) -> String {
        self.naming.task_queue(&self.queue)
    }

    pub(crate) fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        self.check(capabilities)?;
        let topology = self.topology(Outline::ID, capabilities);
        let outline = Outline::new(topology, vec![self.queue_name()], self.settings);
        Ok(outline.with_retry(&self.retry))
    }

    /// What the worker `id` declares.
    fn topology(&self, id: &str, capabilities: &Capabilities) -> Topology {
        let tasks = task_topology(&self.naming, &self.queue_name(), self.queue_limits);
        if capabilities.topology {
            tasks.and(control::topology(&self.naming, &self.queue, id))
        } else {
            tasks
        }
    }

    fn check(&self, capabilities: &Capabilities) -> Result<()> {
        let mut complaints = self.complaints.clone();
        if self.handlers.is_empty() {
            complaints.push("it has no handlers".to_owned());
        }
        if !complaints.is_empty() {
            let complaint = format!("the worker is not sound: {}", complaints.join("; "));
            return Err(Error::new(ErrorKind::Invalid, "start", complaint)
                .with_context("queue", self.queue.clone()));
        }
        self.settings.check()?;
        self.layers.check("start")?;
        self.retry.check(self.queue_limits.delivery_limit, capabilities)
    }

    /// Declares the queue and its dead-letter queue, and begins to work.
    ///
    /// Cancellation safe: when the future is dropped, no work is begun, and what was declared stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a worker without handlers, with two for one type or with one
    /// for tasks of another queue, for a middleware that stands twice where it
    /// [must not](crate::Middleware::held), and for options out of range; [`ErrorKind::Unsupported`] for a
    /// retry policy that the broker cannot carry out; [`ErrorKind::Mismatch`] when the queue exists
    /// with another delivery limit or time to live; and what [`Transport::declare`], [`Transport::publisher`] and
    /// [`Transport::consumer`] fail with.
    pub async fn start(mut self, transport: &Arc<dyn Transport>) -> Result<Running> {
        let capabilities = transport.capabilities();
        self.check(capabilities)?;
        let queue = self.queue_name();
        let id = transport.env().new_id().to_string();
        transport.declare(&self.topology(&id, capabilities)).await?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let env = transport.env().clone();
        let counters = Arc::new(Counters::default());
        let called_off = Arc::new(CalledOff::default());
        let ended = CancellationToken::new();
        if capabilities.topology {
            let own = self.naming.task_instance_queue(&self.queue, &id);
            let told = transport.consumer(&own, ConsumerOptions::default()).await?;
            let known = Arc::downgrade(&called_off);
            tokio::spawn(control::hear(told, known, env.clone(), ended.clone()));
        }
        let reports =
            Reports::new(Arc::clone(&publisher), env.clone(), self.limits, Arc::clone(&counters));
        self.settings.most_failures = self.retry.most_failures(capabilities);
        let runner = Runner {
            keeper: Keeper::new(transport, publisher, &self.naming, &queue),
            settings: self.settings,
            counters: Arc::clone(&counters),
            process: Work {
                handlers: self.handlers,
                limits: self.limits,
                layers: self.layers,
                retrying: Retrying::new(
                    self.retry,
                    env.clone(),
                    By::Broker,
                    self.settings.handler_timeout,
                ),
                env,
                counters,
                reports: Arc::new(reports),
                called_off,
                unique: UniqueKeys::default(),
                _listening: ended.drop_guard(),
            },
        };
        runner.start(transport, &queue).await
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tasks: Vec<_> = self.handlers.keys().collect();
        tasks.sort_unstable();
        f.debug_struct("Worker")
            .field("queue", &self.queue)
            .field("tasks", &tasks)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
