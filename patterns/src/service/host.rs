use std::{fmt, sync::Arc, time::Duration};

use postrider_core::{Error, ErrorKind, Result, Transport};

use tokio_util::sync::CancellationToken;

#[cfg(feature = "admin")]
use super::admin;
use super::{
    check,
    health::{self, ServiceMonitor},
    part::Part,
    plan::{PartPlan, ServicePlan},
    running::{Hosted, RunningService, stop_all},
};
use crate::{
    discovery::Announcement,
    pubsub::{EventBus, Subscription},
    routing::{Aggregator, Router, Splitter},
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
    parts: Vec<Box<dyn Part>>,
    announcements: Vec<Announcement>,
    stop_deadline: Duration,
    stalled_after: Duration,
    consumer_timeout: Duration,
    #[cfg(feature = "admin")]
    admin: Option<std::net::SocketAddr>,
}

impl Service {
    /// A service without parts. The name is for people.
    pub fn new(name: impl Into<String>, transport: &Arc<dyn Transport>) -> Self {
        Self {
            name: name.into(),
            transport: Arc::clone(transport),
            parts: Vec::new(),
            announcements: Vec::new(),
            stop_deadline: Duration::from_secs(30),
            stalled_after: Duration::from_secs(60),
            consumer_timeout: CONSUMER_TIMEOUT,
            #[cfg(feature = "admin")]
            admin: None,
        }
    }

    /// Adds a subscription, called `subscription` and its name.
    pub fn subscription(self, bus: &EventBus, subscription: Subscription) -> Self {
        self.add((bus.clone(), subscription))
    }

    /// Adds a worker, called `worker` and its queue.
    pub fn worker(self, worker: Worker) -> Self {
        self.add(worker)
    }

    /// Adds an RPC server, called `rpc` and its service.
    pub fn rpc(self, server: RpcServer) -> Self {
        self.add(server)
    }

    /// Adds a router, called `router` and its queues.
    pub fn router(self, router: Router) -> Self {
        self.add(router)
    }

    /// Adds a splitter, called `splitter` and its queues.
    pub fn splitter(self, splitter: Splitter) -> Self {
        self.add(splitter)
    }

    /// Adds an aggregator, called `aggregator` and its queues.
    pub fn aggregator(self, aggregator: Aggregator) -> Self {
        self.add(aggregator)
    }

    /// Adds a receiver of streams, called `streams` and its queue of offers.
    pub fn receiver(self, receiver: StreamReceiver) -> Self {
        self.add(receiver)
    }

    /// Announces it to the registries of discovery, called `announcement` and the service that is
    /// announced. It joins once all parts have started, and leaves as the drain begins. It is
    /// unhealthy there while a part has ended or is stalled, degraded while a router waits for
    /// its first rules, and else as the announcement says; a change is told within a second.
    /// One service may be announced under several names.
    pub fn announce(mut self, announcement: Announcement) -> Self {
        self.announcements.push(announcement);
        self
    }

    fn add(mut self, part: impl Part + 'static) -> Self {
        self.parts.push(Box::new(part));
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
    /// counts as stalled. The queue is looked at five times, a quarter of that time apart, and only
    /// while nothing comes. Default: 60 seconds.
    pub const fn stalled_after(mut self, limit: Duration) -> Self {
        self.stalled_after = limit;
        self
    }

    /// How long the broker lets a message be in hand. A handler timeout above it is refused, and so
    /// is a part that itself keeps messages for longer: an ephemeral or ordered subscription between
    /// tries, an aggregator until a group is whole. Default: 30 minutes, that of RabbitMQ.
    pub const fn consumer_timeout(mut self, limit: Duration) -> Self {
        self.consumer_timeout = limit;
        self
    }

    /// Answers `GET` for `/health`, `/ready` and `/metrics` over HTTP at this address, from the start
    /// until the service has stopped; port 0 is any that is free, and
    /// [`RunningService::admin_address`] tells it. It asks for no password: bind it to an address
    /// that only your orchestrator reaches. Default: nowhere.
    #[cfg(feature = "admin")]
    pub const fn admin(mut self, address: std::net::SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// What it will declare and how it will consume. It asks and changes nothing.
    ///
    /// # Errors
    ///
    /// What [`start`](Self::start) fails with before anything is declared.
    pub fn plan(&self) -> Result<ServicePlan> {
        let refuse = |why: String| {
            let error = Error::new(ErrorKind::Invalid, "start", why);
            Err(error.with_context("service", self.name.clone()))
        };
        if self.stalled_after.is_zero() {
            return refuse(
                "after no time at all every part is stalled; set more than 0".to_owned(),
            );
        }
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let name = part.name();
            let outline = part.outline(self.transport.capabilities());
            let outline = outline
                .and_then(|outline| outline.topology.check().map(|()| outline))
                .map_err(|error| failed(&self.name, &name, error))?;
            parts.push((name, outline));
        }
        if parts.is_empty() {
            return refuse("a service without parts does nothing; add one".to_owned());
        }
        for announcement in &self.announcements {
            let name = announcement_name(announcement);
            let outline = announcement.outline();
            let outline = outline.map_err(|error| failed(&self.name, &name, error))?;
            parts.push((name, outline));
        }
        if let Some(why) = check::objection(&parts, self.consumer_timeout) {
            return refuse(why);
        }
        let parts = parts.into_iter().map(|(name, outline)| PartPlan::new(name, outline));
        let (service, stop_deadline) = (self.name.clone(), self.stop_deadline);
        Ok(ServicePlan { service, stop_deadline, parts: parts.collect() })
    }

    /// Starts all parts in their order, or none: when one cannot start, those that did are stopped.
    /// A part handles messages as soon as it has started.
    ///
    /// Not cancellation safe: when the future is dropped, what had started stops at once, and what
    /// was declared stays.
    ///
    /// # Errors
    ///
    /// Before anything is declared: [`ErrorKind::Invalid`] for a service without parts, two parts
    /// of one name, two that take from one queue or need one queue or exchange in two forms, a
    /// prefetch below the concurrency, a stall limit of 0, and a message that may be in hand for
    /// longer than the broker's consumer timeout; and what a part refuses by itself. After that,
    /// what the part fails with, its name beside it.
    pub async fn start(self) -> Result<RunningService> {
        let plan = self.plan()?;
        for part in &plan.parts {
            if part.handler_timeout.is_some_and(|timeout| timeout > self.stop_deadline) {
                tracing::warn!(
                    part = part.part,
                    "the deadline of a stop is below its handler timeout: what it has in hand then \
                     may go back to the queue and run elsewhere"
                );
            }
        }
        // Before anything is declared: the port may be taken.
        #[cfg(feature = "admin")]
        let listener = match self.admin {
            Some(address) => Some(admin::Listener::bind(address).await?),
            None => None,
        };
        let Self { name, transport, parts, announcements, stop_deadline, stalled_after, .. } = self;
        let mut hosted = Vec::with_capacity(parts.len());
        for (part, plan) in parts.into_iter().zip(plan.parts) {
            match part.start(Arc::clone(&transport)).await {
                Ok(started) => hosted.push(Hosted { plan, started }),
                Err(error) => {
                    stop_all(hosted, stop_deadline, &CancellationToken::new()).await;
                    return Err(failed(&name, &plan.part, error));
                }
            }
        }
        let monitor = ServiceMonitor::new(&name, &transport, &hosted);
        let watching = tokio::spawn(health::watch(monitor.clone(), stalled_after));
        let mut running = RunningService::new(hosted, stop_deadline, monitor, watching);
        for announcement in announcements {
            let part = announcement_name(&announcement);
            match announcement.start(&transport).await {
                Ok(announcer) => running.announced(announcer),
                Err(error) => {
                    running.stop().await;
                    return Err(failed(&name, &part, error));
                }
            }
        }
        #[cfg(feature = "admin")]
        let running = match listener {
            Some(listener) => running.with_admin(listener),
            None => running,
        };
        Ok(running)
    }
}

fn announcement_name(announcement: &Announcement) -> String {
    format!("announcement {}", announcement.service_name())
}

fn failed(service: &str, part: &str, error: Error) -> Error {
    error.with_context("service", service.to_owned()).with_context("part", part.to_owned())
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("parts", &self.parts.iter().map(|part| part.name()).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
