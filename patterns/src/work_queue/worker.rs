use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use postrider_core::{
    DeliveryInfo, Env, Envelope, Error, ErrorKind, PublisherOptions, Queue, Result, Transport,
};
use tokio_util::sync::CancellationToken;

use super::{Task, queue::task_topology, wire};
use crate::{
    codec::{Codec, Limits},
    consuming::{Counters, Disposition, Process, Runner, Running, Settings, catch_panic},
    handler::{Context, HandlerError, codes},
    middleware::{Layers, Middleware},
    naming::Naming,
    resilience::{By, Keeper, RetryPolicy, Retrying},
};

type Handler = Arc<
    dyn Fn(Codec, Limits, Context) -> BoxFuture<'static, Result<(), HandlerError>> + Send + Sync,
>;

/// Does the tasks of one queue. Workers of one queue share its tasks.
#[must_use = "call start"]
pub struct Worker {
    queue: String,
    naming: Naming,
    limits: Limits,
    layers: Layers,
    settings: Settings,
    retry: RetryPolicy,
    delivery_limit: u32,
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
            delivery_limit: Queue::DEFAULT_DELIVERY_LIMIT,
            handlers: HashMap::new(),
            complaints: Vec::new(),
        }
    }

    /// Adds the handler for one type of tasks.
    pub fn on<T, F, Fut>(mut self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        if T::QUEUE != self.queue {
            let complaint = format!("tasks '{}' go to queue '{}'", T::TYPE, T::QUEUE);
            self.complaints.push(complaint);
        }
        let handler = Arc::new(handler);
        let handler: Handler = Arc::new(move |codec, limits, context: Context| {
            let handler = Arc::clone(&handler);
            Box::pin(async move {
                let task = wire::decode_params(codec, limits, &context.message().body)
                    .map_err(|error| HandlerError::undecodable(&error))?;
                handler(task, context).await
            })
        });
        if self.handlers.insert(T::TYPE, handler).is_some() {
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
        self.delivery_limit = failures;
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

    pub(crate) const fn settings(&self) -> Settings {
        self.settings
    }

    /// Declares the queue and its dead-letter queue, and begins to work.
    ///
    /// Cancellation safe: when the future is dropped, no work is begun, and what was declared stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a worker without handlers, with two for one type or with one
    /// for tasks of another queue, and for options out of range; [`ErrorKind::Unsupported`] for a
    /// retry policy that the broker cannot carry out; [`ErrorKind::Mismatch`] when the queue exists
    /// with another delivery limit; and what [`Transport::declare`], [`Transport::publisher`] and
    /// [`Transport::consumer`] fail with.
    pub async fn start(mut self, transport: &Arc<dyn Transport>) -> Result<Running> {
        if self.handlers.is_empty() {
            self.complaints.push("it has no handlers".to_owned());
        }
        if !self.complaints.is_empty() {
            let complaint = format!("the worker is not sound: {}", self.complaints.join("; "));
            return Err(Error::new(ErrorKind::Invalid, "start", complaint)
                .with_context("queue", self.queue));
        }
        self.retry.check(self.delivery_limit, transport.capabilities())?;
        let queue = self.naming.task_queue(&self.queue);
        let topology = task_topology(&self.naming, &queue, self.delivery_limit);
        transport.declare(&topology).await?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let env = transport.env().clone();
        let runner = Runner {
            keeper: Keeper::new(transport, publisher, &self.naming, &queue),
            settings: self.settings,
            counters: Arc::new(Counters::default()),
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

struct Work {
    handlers: HashMap<&'static str, Handler>,
    limits: Limits,
    layers: Layers,
    retrying: Retrying,
    env: Env,
}

impl Process for Work {
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let (codec, task_type) = match wire::decode_head(&envelope.message, self.limits) {
            Ok((codec, task_type)) => (codec, task_type.unwrap_or_default()),
            Err(error) => return Disposition::DeadLetter(HandlerError::undecodable(&error)),
        };
        let Some(handler) = self.handlers.get(&*task_type) else {
            return Disposition::DeadLetter(
                HandlerError::unsupported(format!("no handler does tasks of type '{task_type}'"))
                    .with_code(codes::UNKNOWN_TASK),
            );
        };
        let context = |given_up: &CancellationToken| {
            Context::new(Arc::clone(envelope), info.clone(), self.env.clone(), given_up)
        };
        let attempt = |context| {
            let (handler, limits) = (Arc::clone(handler), self.limits);
            catch_panic(async move { handler(codec, limits, context).await })
        };
        self.retrying.run_handler(info, cancellation, &self.layers, context, attempt).await
    }
}
