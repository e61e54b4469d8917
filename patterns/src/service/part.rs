use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use postrider_core::{Capabilities, Result, Transport};
use tokio_util::sync::CancellationToken;

use crate::{
    consuming::{Gauge, Outline, Running, StopReport},
    pubsub::{EventBus, Subscription},
    routing::{Aggregator, Flow, Router, Splitter},
    rpc::RpcServer,
    streaming::StreamReceiver,
    work_queue::Worker,
};

/// One thing that a service hosts, not yet started.
pub(super) trait Part: Send {
    fn name(&self) -> String;

    /// What it will declare and how it will consume; refuses what it cannot carry out.
    fn outline(&self, capabilities: &Capabilities) -> Result<Outline>;

    fn start(self: Box<Self>, transport: Arc<dyn Transport>)
    -> BoxFuture<'static, Result<Started>>;
}

impl Part for (EventBus, Subscription) {
    fn name(&self) -> String {
        format!("subscription {}", self.1.name())
    }

    fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        self.0.outline(&self.1, capabilities)
    }

    fn start(self: Box<Self>, _: Arc<dyn Transport>) -> BoxFuture<'static, Result<Started>> {
        Box::pin(async move { Ok(Started::One(self.0.subscribe(self.1).await?)) })
    }
}

impl Part for Worker {
    fn name(&self) -> String {
        format!("worker {}", self.queue_name())
    }

    fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        self.outline(capabilities)
    }

    fn start(
        self: Box<Self>,
        transport: Arc<dyn Transport>,
    ) -> BoxFuture<'static, Result<Started>> {
        Box::pin(async move { Ok(Started::One((*self).start(&transport).await?)) })
    }
}

impl Part for RpcServer {
    fn name(&self) -> String {
        format!("rpc {}", self.describe().service)
    }

    fn outline(&self, _: &Capabilities) -> Result<Outline> {
        self.outline()
    }

    fn start(
        self: Box<Self>,
        transport: Arc<dyn Transport>,
    ) -> BoxFuture<'static, Result<Started>> {
        Box::pin(async move { Ok(Started::One((*self).start(&transport).await?)) })
    }
}

impl Part for StreamReceiver {
    fn name(&self) -> String {
        format!("streams {}", self.queue_name())
    }

    fn outline(&self, _: &Capabilities) -> Result<Outline> {
        self.outline()
    }

    fn start(
        self: Box<Self>,
        transport: Arc<dyn Transport>,
    ) -> BoxFuture<'static, Result<Started>> {
        Box::pin(async move { Ok(Started::One((*self).start(&transport).await?)) })
    }
}

impl Part for Router {
    fn name(&self) -> String {
        format!("router {}", self.intake().queue_names().join(", "))
    }

    fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        self.outline(capabilities)
    }

    fn start(
        self: Box<Self>,
        transport: Arc<dyn Transport>,
    ) -> BoxFuture<'static, Result<Started>> {
        Box::pin(async move { Ok(Started::Flow((*self).start(&transport).await?)) })
    }
}

impl Part for Splitter {
    fn name(&self) -> String {
        format!("splitter {}", self.intake().queue_names().join(", "))
    }

    fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        self.outline(capabilities)
    }

    fn start(
        self: Box<Self>,
        transport: Arc<dyn Transport>,
    ) -> BoxFuture<'static, Result<Started>> {
        Box::pin(async move { Ok(Started::Flow((*self).start(&transport).await?)) })
    }
}

impl Part for Aggregator {
    fn name(&self) -> String {
        format!("aggregator {}", self.intake().queue_names().join(", "))
    }

    fn outline(&self, capabilities: &Capabilities) -> Result<Outline> {
        self.outline(capabilities)
    }

    fn start(
        self: Box<Self>,
        transport: Arc<dyn Transport>,
    ) -> BoxFuture<'static, Result<Started>> {
        Box::pin(async move { Ok(Started::Flow((*self).start(&transport).await?)) })
    }
}

/// What a part became.
pub(super) enum Started {
    One(Running),
    Flow(Flow),
}

impl Started {
    pub(super) fn gauges(&self) -> Vec<Gauge> {
        match self {
            Self::One(running) => vec![running.gauge()],
            Self::Flow(flow) => flow.gauges(),
        }
    }

    /// Stops it within `deadline`, or at once when `hurry` is cancelled.
    pub(super) async fn stop(self, deadline: Duration, hurry: &CancellationToken) -> StopReport {
        match self {
            Self::One(running) => running.stop_or(deadline, hurry).await,
            Self::Flow(flow) => flow.stop_or(deadline, hurry).await,
        }
    }
}
