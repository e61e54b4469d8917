use std::{fmt, time::Duration};

use futures_util::future::join_all;
use tokio::task::JoinHandle;

use super::{health::ServiceMonitor, part::Started};
use crate::consuming::StopReport;

/// A part at work.
pub(super) struct Hosted {
    pub(super) name: String,
    pub(super) started: Started,
}

/// A service at work.
///
/// Dropping it stops it at once: handlers are given up and their messages go back to their queues.
#[must_use = "dropping it stops the service at once"]
pub struct RunningService {
    name: String,
    parts: Vec<Hosted>,
    stop_deadline: Duration,
    monitor: ServiceMonitor,
    watching: Watching,
}

/// Ends the watch with the service.
struct Watching(JoinHandle<()>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a stop did, part by part.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceReport {
    /// In the order in which the parts were added.
    pub parts: Vec<PartReport>,
}

/// What a stop did with the messages that one part had in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartReport {
    /// The name of the part.
    pub part: String,
    /// The queues that it consumed.
    pub queues: Vec<String>,
    /// What became of the messages.
    pub report: StopReport,
}

impl ServiceReport {
    /// Whether all that was in hand was finished.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unfinished().next().is_none()
    }

    /// The parts that gave messages back or still have some.
    pub fn unfinished(&self) -> impl Iterator<Item = &PartReport> {
        let is_left = |report: &StopReport| report.released + report.still_running > 0;
        self.parts.iter().filter(move |part| is_left(&part.report))
    }
}

impl RunningService {
    pub(super) const fn new(
        name: String,
        parts: Vec<Hosted>,
        stop_deadline: Duration,
        monitor: ServiceMonitor,
        watching: JoinHandle<()>,
    ) -> Self {
        Self { name, parts, stop_deadline, monitor, watching: Watching(watching) }
    }

    /// The name of the service.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells of its health, also while it stops and afterwards.
    #[must_use]
    pub fn monitor(&self) -> ServiceMonitor {
        self.monitor.clone()
    }

    /// Runs until `shutdown` is done, such as the wait for a signal, and [stops](Self::stop). A
    /// part that ends before leaves the others at work; [`monitor`](Self::monitor) tells of it.
    ///
    /// When the future is dropped, the service stops at once.
    pub async fn run_until(self, shutdown: impl Future) -> ServiceReport {
        shutdown.await;
        self.stop().await
    }

    /// All parts stop taking messages; then those in hand are finished until the deadline of
    /// [`Service::stop_deadline`](super::Service::stop_deadline) has passed, and the rest goes back
    /// to the queues.
    ///
    /// When the future is dropped, it is as if the deadline had come.
    pub async fn stop(self) -> ServiceReport {
        let Self { parts, stop_deadline, watching, .. } = self;
        drop(watching);
        let report = ServiceReport { parts: stop_all(parts, stop_deadline).await };
        for part in report.unfinished() {
            let StopReport { released, still_running, .. } = part.report;
            tracing::warn!(part = part.part, released, still_running, "not all was finished");
        }
        report
    }
}

/// The first poll of each stop is what ends its taking, and all are polled before one is
/// waited for.
pub(super) async fn stop_all(parts: Vec<Hosted>, deadline: Duration) -> Vec<PartReport> {
    join_all(parts.into_iter().map(|Hosted { name, started }| async move {
        let queues = started.gauges().iter().map(|gauge| gauge.queue.to_string()).collect();
        PartReport { part: name, queues, report: started.stop(deadline).await }
    }))
    .await
}

impl fmt::Debug for RunningService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningService")
            .field("name", &self.name)
            .field("health", &self.monitor.health())
            .finish_non_exhaustive()
    }
}
