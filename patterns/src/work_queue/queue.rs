use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use postrider_core::{
    Address, Envelope, ErrorKind, Message, Publisher, PublisherExt, PublisherOptions, Queue,
    Result, Topology, Transport, Verdict,
};

use super::{DEFAULT_PRIORITY, SubmitOptions, Task, tracking::Tracker, wire};
use crate::{
    codec::{Codec, Limits},
    error::PublishError,
    headers,
    middleware::{PublisherMiddleware, around_publisher},
    naming::Naming,
    publishing::{MessageId, publish_each},
    resilience::{dead_letter_route, dead_letter_topology},
};

/// How many queue names are remembered as declared; task types are few.
const MOST_QUEUES: usize = 1_024;

/// How many handles of tracked tasks there may be, unless it is said.
const MOST_HANDLES: usize = 10_000;

/// Submits tasks. Cloning shares it.
#[derive(Debug, Clone)]
pub struct WorkQueue {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) naming: Naming,
    pub(super) limits: Limits,
    pub(super) most_handles: usize,
    /// Opened by the first tracked task.
    pub(super) tracker: tokio::sync::Mutex<Option<Arc<Tracker>>>,
    codec: Codec,
    declared: Mutex<HashSet<&'static str>>,
}

impl WorkQueue {
    /// A work queue with the defaults of [`WorkQueueBuilder`]. Cancellation safe.
    ///
    /// # Errors
    ///
    /// As [`WorkQueueBuilder::connect`].
    pub async fn new(transport: &Arc<dyn Transport>) -> Result<Self> {
        Self::builder(transport).connect().await
    }

    /// A work queue to be set up.
    pub fn builder(transport: &Arc<dyn Transport>) -> WorkQueueBuilder {
        WorkQueueBuilder {
            transport: Arc::clone(transport),
            naming: Naming::default(),
            codec: Codec::default(),
            limits: Limits::default(),
            most_handles: MOST_HANDLES,
            layers: Vec::new(),
        }
    }

    /// Submits a task and waits until its queue has it. The queue is declared where it is missing,
    /// also when it was deleted after earlier tasks.
    ///
    /// Not cancellation safe: when the future is dropped, the task may have been submitted.
    ///
    /// # Errors
    ///
    /// [`PublishError`]. After [`ErrorKind::Unknown`] it may be submitted all the same.
    pub async fn submit<T: Task>(&self, task: &T) -> Result<MessageId, PublishError> {
        self.submit_with(task, SubmitOptions::default()).await
    }

    /// Submits with options; else as [`submit`](Self::submit).
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit); [`ErrorKind::Unsupported`] for a delay or a priority that the
    /// broker has no means for; [`ErrorKind::Invalid`] for options that contradict each other.
    pub async fn submit_with<T: Task>(
        &self,
        task: &T,
        options: SubmitOptions,
    ) -> Result<MessageId, PublishError> {
        let (id, envelope) = self.inner.envelope(task, &options)?;
        self.inner.submit(T::QUEUE, envelope).await?;
        Ok(id)
    }

    /// Submits tasks of one type in their order, many at a time, and waits for all of them.
    ///
    /// Not cancellation safe: when the future is dropped, some may have been submitted.
    ///
    /// # Errors
    ///
    /// The first failure, after which no further task is sent; those before it are submitted.
    pub async fn submit_all<'a, T: Task>(
        &self,
        tasks: impl IntoIterator<Item = &'a T, IntoIter: Send>,
    ) -> Result<Vec<MessageId>, PublishError> {
        // One look is little beside many tasks, and none of them meets a queue that was deleted.
        self.inner.forget(T::QUEUE);
        self.inner.declare(T::QUEUE).await?;
        let mut ids = Vec::new();
        let envelopes = tasks.into_iter().map(|task| {
            let (id, envelope) = self.inner.envelope(task, &SubmitOptions::default())?;
            ids.push(id);
            Ok(envelope)
        });
        publish_each(&*self.inner.publisher, envelopes, Verdict::into_result).await?;
        Ok(ids)
    }
}

impl Inner {
    /// Declares the queue of a task once, so that the task waits for its first worker. A queue that
    /// is there is left as it is: its worker may have given it other limits.
    async fn declare(&self, name: &'static str) -> Result<()> {
        let declared = || self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        if declared().contains(name) {
            return Ok(());
        }
        let queue = self.naming.task_queue(name);
        if self.transport.queue_info(&queue).await?.is_none() {
            let topology = task_topology(&self.naming, &queue, QueueLimits::default());
            self.transport.declare(&topology).await?;
        }
        let mut declared = declared();
        if declared.len() < MOST_QUEUES {
            declared.insert(name);
        }
        Ok(())
    }

    /// The next submission must look whether the queue is there.
    fn forget(&self, name: &'static str) {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(super) async fn submit(&self, queue: &'static str, envelope: Envelope) -> Result<()> {
        self.declare(queue).await?;
        match self.publisher.publish(envelope.clone()).await {
            // Somebody deleted the queue after it was declared.
            Err(error) if error.kind() == ErrorKind::Unroutable => {
                self.forget(queue);
                self.declare(queue).await?;
                self.publisher.publish(envelope).await
            }
            result => result,
        }
    }

    pub(super) fn envelope<T: Task>(
        &self,
        task: &T,
        options: &SubmitOptions,
    ) -> Result<(MessageId, Envelope), PublishError> {
        options.check(self.transport.capabilities())?;
        let env = self.transport.env();
        let (id, now) = (env.new_id().to_string(), env.timestamp());
        let priority = options.priority.unwrap_or(DEFAULT_PRIORITY);
        let body = wire::encode(self.codec, self.limits, T::TYPE, task, now, priority)?;
        let mut message = Message::new(body)
            .with_content_type(self.codec.content_type())
            .with_message_id(id.clone())
            .with_type(T::TYPE)
            .with_timestamp(now)
            .with_priority(priority);
        message.ttl = options.ttl;
        if let Some(key) = &options.unique {
            message.headers.set(headers::UNIQUE_KEY, key.to_string());
        }
        match &options.cause {
            Some(context) => context.mark_caused(&mut message),
            // A task that nothing caused begins a conversation.
            None => message.correlation_id = Some(id.clone().into()),
        }
        let address = Address::queue(self.naming.task_queue(T::QUEUE));
        let envelope = Envelope::new(address, message).after(options.held_back(now));
        Ok((MessageId::new(id), envelope))
    }
}

/// What workers of one queue must agree on.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) delivery_limit: u32,
    pub(super) ttl: Option<Duration>,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { delivery_limit: Queue::DEFAULT_DELIVERY_LIMIT, ttl: None }
    }
}

/// The queue of tasks and the queue of its dead letters.
pub(super) fn task_topology(naming: &Naming, queue: &str, limits: QueueLimits) -> Topology {
    let mut tasks = Queue::durable(queue.to_owned())
        .with_delivery_limit(limits.delivery_limit)
        .with_dead_letter(dead_letter_route(naming, queue));
    tasks.message_ttl = limits.ttl;
    dead_letter_topology(naming, queue).queue(tasks)
}

/// Sets up a [`WorkQueue`].
#[derive(Debug, Clone)]
#[must_use = "call connect"]
pub struct WorkQueueBuilder {
    transport: Arc<dyn Transport>,
    naming: Naming,
    codec: Codec,
    limits: Limits,
    most_handles: usize,
    layers: Vec<Arc<dyn PublisherMiddleware>>,
}

impl WorkQueueBuilder {
    /// The names of queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// The codec of submitted tasks. Default: MessagePack.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How many handles of tracked tasks there may be at once. Default: 10,000.
    pub fn most_handles(mut self, handles: usize) -> Self {
        self.most_handles = handles;
        self
    }

    /// How large submitted bodies, and results, may be. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Puts a middleware around the publisher, within those that were added before it.
    pub fn with(mut self, middleware: impl PublisherMiddleware) -> Self {
        self.layers.push(Arc::new(middleware));
        self
    }

    /// Opens a publisher; queues are declared by the first tasks that go to them. Cancellation
    /// safe.
    ///
    /// # Errors
    ///
    /// What [`Transport::publisher`] fails with.
    pub async fn connect(self) -> Result<WorkQueue> {
        let options = PublisherOptions::default();
        let publisher = self.transport.publisher(options).await?;
        let publisher = around_publisher(&self.layers, publisher, self.transport.env());
        Ok(WorkQueue {
            inner: Arc::new(Inner {
                transport: self.transport,
                publisher,
                naming: self.naming,
                codec: self.codec,
                limits: self.limits,
                most_handles: self.most_handles,
                tracker: tokio::sync::Mutex::default(),
                declared: Mutex::default(),
            }),
        })
    }
}
