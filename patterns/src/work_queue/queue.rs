use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use postrider_core::{
    Address, Delay, Envelope, Error, ErrorKind, Message, Publisher, PublisherExt, PublisherOptions,
    Queue, Result, Topology, Transport, Verdict,
};

use super::{DEFAULT_PRIORITY, Task, wire};
use crate::{
    codec::{Codec, Limits},
    error::PublishError,
    handler::Context,
    middleware::{PublisherMiddleware, around_publisher},
    naming::Naming,
    publishing::{MessageId, publish_each},
    resilience::{dead_letter_route, dead_letter_topology},
};

/// How many queue names are remembered as declared; task types are few.
const MOST_QUEUES: usize = 1_024;

/// Submits tasks. Cloning shares it.
#[derive(Debug, Clone)]
pub struct WorkQueue {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Arc<dyn Transport>,
    publisher: Arc<dyn Publisher>,
    naming: Naming,
    codec: Codec,
    limits: Limits,
    declared: Mutex<HashSet<&'static str>>,
}

/// What one submission differs in.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SubmitOptions {
    /// The higher goes first. Default: [`DEFAULT_PRIORITY`]. How many the broker keeps apart is told
    /// by [`Capabilities::priority_levels`](postrider_core::Capabilities::priority_levels).
    pub priority: Option<u8>,
    /// How long the task may wait before it expires into the dead-letter queue, in whole
    /// milliseconds. Default: for ever.
    pub ttl: Option<Duration>,
    /// How long the task is held back first, in whole milliseconds. Default: not at all.
    pub delay: Option<Duration>,
    /// The handler that the task is submitted from. Default: none.
    pub cause: Option<Context>,
}

impl SubmitOptions {
    /// Sets [`priority`](Self::priority).
    #[must_use]
    pub const fn with_priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets [`ttl`](Self::ttl).
    #[must_use]
    pub const fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets [`delay`](Self::delay).
    #[must_use]
    pub const fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Sets [`cause`](Self::cause): the task's causation id is the id of that handler's message,
    /// its correlation id that message's conversation.
    #[must_use]
    pub fn caused_by(mut self, context: &Context) -> Self {
        self.cause = Some(context.clone());
        self
    }
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
    /// As [`submit`](Self::submit), and [`ErrorKind::Unsupported`] for a delay or a priority that
    /// the broker has no means for.
    pub async fn submit_with<T: Task>(
        &self,
        task: &T,
        options: SubmitOptions,
    ) -> Result<MessageId, PublishError> {
        self.inner.check(&options)?;
        match self.inner.submit(task, &options).await {
            // Somebody deleted the queue after it was declared.
            Err(PublishError::Transport(error)) if error.kind() == ErrorKind::Unroutable => {
                self.inner.forget(T::QUEUE);
                self.inner.submit(task, &options).await
            }
            result => result,
        }
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
    fn check(&self, options: &SubmitOptions) -> Result<()> {
        let capabilities = self.transport.capabilities();
        let refuse = |what| Err(Error::new(ErrorKind::Unsupported, "submit", what));
        if options.delay.is_some() && capabilities.delayed_publish == Delay::None {
            return refuse("this broker cannot hold a task back; submit it without a delay");
        }
        if options.priority.is_some() && capabilities.priority_levels == 0 {
            return refuse("this broker has no priorities; submit the task without one");
        }
        Ok(())
    }

    /// Declares the queue of a task once, so that the task waits for its first worker. A queue that
    /// is there is left as it is: its worker may have given it other limits.
    async fn declare(&self, name: &'static str) -> Result<()> {
        let declared = || self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        if declared().contains(name) {
            return Ok(());
        }
        let queue = self.naming.task_queue(name);
        if self.transport.queue_info(&queue).await?.is_none() {
            let topology = task_topology(&self.naming, &queue, Queue::DEFAULT_DELIVERY_LIMIT);
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

    async fn submit<T: Task>(
        &self,
        task: &T,
        options: &SubmitOptions,
    ) -> Result<MessageId, PublishError> {
        self.declare(T::QUEUE).await?;
        let (id, envelope) = self.envelope(task, options)?;
        self.publisher.publish(envelope).await?;
        Ok(id)
    }

    fn envelope<T: Task>(
        &self,
        task: &T,
        options: &SubmitOptions,
    ) -> Result<(MessageId, Envelope), PublishError> {
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
        match &options.cause {
            Some(context) => context.mark_caused(&mut message),
            // A task that nothing caused begins a conversation.
            None => message.correlation_id = Some(id.clone().into()),
        }
        let address = Address::queue(self.naming.task_queue(T::QUEUE));
        let envelope = Envelope::new(address, message).after(options.delay.unwrap_or_default());
        Ok((MessageId::new(id), envelope))
    }
}

/// The queue of tasks and the queue of its dead letters.
pub(super) fn task_topology(naming: &Naming, queue: &str, delivery_limit: u32) -> Topology {
    dead_letter_topology(naming, queue).queue(
        Queue::durable(queue.to_owned())
            .with_delivery_limit(delivery_limit)
            .with_dead_letter(dead_letter_route(naming, queue)),
    )
}

/// Sets up a [`WorkQueue`].
#[derive(Debug, Clone)]
#[must_use = "call connect"]
pub struct WorkQueueBuilder {
    transport: Arc<dyn Transport>,
    naming: Naming,
    codec: Codec,
    limits: Limits,
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

    /// How large submitted bodies may be. Default: 16 MiB.
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
                declared: Mutex::default(),
            }),
        })
    }
}
