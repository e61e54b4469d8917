use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use postrider_core::{Error, ErrorKind, Result, Transport};

use super::{
    health::{self, ServiceMonitor},
    part::{Part, Started},
    running::{Hosted, RunningService, stop_all},
};
use crate::{
    consuming::Settings,
    pubsub::{EventBus, Subscription},
    routing::Router,
    rpc::RpcServer,
    streaming::StreamReceiver,
    work_queue::Worker,
};

/// How long RabbitMQ lets a message be in hand, unless it is set otherwise.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Servers, subscriptions and workers that live in one process.
#[must_use = "call start"]
pub struct Service {
    name: String,
    transport: Arc<dyn Transport>,
    parts: Vec<Part>,
    stop_deadline: Duration,
    stalled_after: Duration,
    consumer_timeout: Duration,
}

impl Service {
    /// A service without parts. The name is for people.
    pub fn new(name: impl Into<String>, transport: &Arc<dyn Transport>) -> Self {
        Self {
            name: name.into(),
            transport: Arc::clone(transport),
            parts: Vec::new(),
            stop_deadline: Duration::from_secs(30),
            stalled_after: Duration::from_secs(60),
            consumer_timeout: CONSUMER_TIMEOUT,
        }
    }

    /// Adds a subscription, called `subscription` and its name.
    pub fn subscription(mut self, bus: &EventBus, subscription: Subscription) -> Self {
        let (queue, name) = bus.queue_of(&subscription);
        let (bus, settings) = (bus.clone(), subscription.settings());
        self.parts.push(Part {
            name: format!("subscription {name}"),
            queues: queue.into_iter().collect(),
            settings: Some(settings),
            start: Box::new(move |_transport| {
                Box::pin(async move { Ok(Started::One(bus.subscribe(subscription).await?)) })
            }),
        });
        self
    }

    /// Adds a worker, called `worker` and its queue.
    pub fn worker(mut self, worker: Worker) -> Self {
        let queue = worker.queue_name();
        self.parts.push(Part {
            name: format!("worker {queue}"),
            queues: vec![queue],
            settings: Some(worker.settings()),
            start: Box::new(move |transport| {
                Box::pin(async move { Ok(Started::One(worker.start(&transport).await?)) })
            }),
        });
        self
    }

    /// Adds an RPC server, called `rpc` and its service.
    pub fn rpc(mut self, server: RpcServer) -> Self {
        let described = server.describe();
        self.parts.push(Part {
            name: format!("rpc {}", described.service),
            queues: vec![described.queue],
            settings: Some(server.settings()),
            start: Box::new(move |transport| {
                Box::pin(async move { Ok(Started::One(server.start(&transport).await?)) })
            }),
        });
        self
    }

    /// Adds a router, called `router` and its queues.
    pub fn router(mut self, router: Router) -> Self {
        let queues = router.intake().queue_names().to_vec();
        self.parts.push(Part {
            name: format!("router {}", queues.join(", ")),
            queues,
            settings: Some(router.intake().settings()),
            start: Box::new(move |transport| {
                Box::pin(async move { Ok(Started::Flow(router.start(&transport).await?)) })
            }),
        });
        self
    }

    /// Adds a receiver of streams, called `streams` and its queue of offers.
    pub fn receiver(mut self, receiver: StreamReceiver) -> Self {
        let queue = receiver.queue_name();
        self.parts.push(Part {
            name: format!("streams {queue}"),
            queues: vec![queue],
            settings: None,
            start: Box::new(move |transport| {
                Box::pin(async move { Ok(Started::One(receiver.start(&transport).await?)) })
            }),
        });
        self
    }

    /// How long all parts together may take to drain when the service stops. Below the handler
    /// timeout of a part a warning is logged: its last messages may go back and run elsewhere.
    /// Default: 30 seconds.
    pub const fn stop_deadline(mut self, deadline: Duration) -> Self {
        self.stop_deadline = deadline;
        self
    }

    /// How long a part may get nothing, though it has room and messages wait in its queue, until it
    /// counts as stalled. The queue is looked at four times in that time, and only while nothing
    /// comes. Default: 60 seconds.
    pub const fn stalled_after(mut self, limit: Duration) -> Self {
        self.stalled_after = limit;
        self
    }

    /// How long the broker lets a message be in hand. A handler timeout above it is refused.
    /// Default: 30 minutes, that of RabbitMQ.
    pub const fn consumer_timeout(mut self, limit: Duration) -> Self {
        self.consumer_timeout = limit;
        self
    }

    /// Starts all parts in their order, or none: when one cannot start, those that did are stopped.
    /// A part handles messages as soon as it has started.
    ///
    /// Not cancellation safe: when the future is dropped, what had started stops at once, and what
    /// was declared stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] before anything is declared for a service without parts, two parts on
    /// one queue, two of one name, a prefetch below the concurrency, a handler timeout above the
    /// broker's consumer timeout or a stall limit of 0; else what the part fails with, its name
    /// beside it.
    pub async fn start(self) -> Result<RunningService> {
        self.check()?;
        let Self { name, transport, parts, stop_deadline, stalled_after, .. } = self;
        let mut hosted = Vec::with_capacity(parts.len());
        for part in parts {
            match (part.start)(Arc::clone(&transport)).await {
                Ok(started) => hosted.push(Hosted { name: part.name, started }),
                Err(error) => {
                    stop_all(hosted, stop_deadline).await;
                    return Err(error
                        .with_context("service", name)
                        .with_context("part", part.name));
                }
            }
        }
        let monitor = ServiceMonitor::new(&transport, &hosted);
        let watching = tokio::spawn(health::watch(monitor.clone(), stalled_after));
        Ok(RunningService::new(name, hosted, stop_deadline, monitor, watching))
    }

    fn check(&self) -> Result<()> {
        let refuse = |why: String| {
            let error = Error::new(ErrorKind::Invalid, "start", why);
            Err(error.with_context("service", self.name.clone()))
        };
        if self.parts.is_empty() {
            return refuse("a service without parts does nothing; add one".to_owned());
        }
        if self.stalled_after.is_zero() {
            return refuse(
                "after no time at all every part is stalled; set more than 0".to_owned(),
            );
        }
        let (mut names, mut owners) = (HashMap::new(), HashMap::new());
        for part in &self.parts {
            if names.insert(&part.name, ()).is_some() {
                return refuse(format!("two parts are '{}'", part.name));
            }
            for queue in &part.queues {
                if let Some(other) = owners.insert(queue, &part.name) {
                    let name = &part.name;
                    return refuse(format!(
                        "'{other}' and '{name}' would take each other's messages from '{queue}'"
                    ));
                }
            }
            if let Some(settings) = part.settings
                && let Some(why) = self.objection(settings)
            {
                return refuse(format!("'{}': {why}", part.name));
            }
            let timeout = part.settings.and_then(|settings| settings.handler_timeout);
            if timeout.is_some_and(|timeout| timeout > self.stop_deadline) {
                tracing::warn!(
                    part = part.name,
                    "the deadline of a stop is below its handler timeout: what it has in hand then \
                     may go back to the queue and run elsewhere"
                );
            }
        }
        Ok(())
    }

    fn objection(&self, settings: Settings) -> Option<String> {
        let (concurrency, prefetch) = (settings.concurrency, settings.prefetch());
        if usize::from(prefetch) < concurrency && settings.prefetch.is_some() {
            return Some(format!(
                "with a prefetch of {prefetch} only as many of its {concurrency} places are used"
            ));
        }
        let limit = self.consumer_timeout;
        settings.handler_timeout.filter(|timeout| *timeout > limit).map(|timeout| {
            format!(
                "its handler timeout of {timeout:?} is above the {limit:?} after which the broker \
                 takes a message back, so that it would run twice"
            )
        })
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("parts", &self.parts.iter().map(|part| &part.name).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
