use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use postrider_core::{Result, Transport};

use crate::{
    consuming::{Gauge, Running, Settings, StopReport},
    routing::Flow,
};

type Start = Box<dyn FnOnce(Arc<dyn Transport>) -> BoxFuture<'static, Result<Started>> + Send>;

/// One thing that a service hosts, not yet started.
pub(super) struct Part {
    pub(super) name: String,
    /// The queues that it would consume, as far as they are known before the start.
    pub(super) queues: Vec<String>,
    /// `None` where it has rules of its own.
    pub(super) settings: Option<Settings>,
    pub(super) start: Start,
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

    pub(super) async fn stop(self, deadline: Duration) -> StopReport {
        match self {
            Self::One(running) => running.stop(deadline).await,
            Self::Flow(flow) => flow.stop(deadline).await,
        }
    }
}
