use std::{fmt, time::Duration};

use futures_util::future::join_all;
use postrider_core::{Error, ErrorKind, Result};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "admin")]
use super::admin::{Endpoint, Listener};
use super::{
    announced::{Announced, leave_all},
    health::{Life, ServiceMonitor},
    part::Started,
    plan::PartPlan,
    signals::Signals,
};
use crate::{consuming::StopReport, discovery::Announcer};

/// A part at work.
pub(super) struct Hosted {
    pub(super) plan: PartPlan,
    pub(super) started: Started,
}

/// A service at work.
///
/// Dropping it stops it at once: handlers are given up and their messages go back to their queues.
#[must_use = "dropping it stops the service at once"]
pub struct RunningService {
    parts: Vec<Hosted>,
    announced: Vec<Announced>,
    stop_deadline: Duration,
    monitor: ServiceMonitor,
    life: Life,
    watching: Watching,
    #[cfg(feature = "admin")]
    admin: Option<Endpoint>,
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
    pub(super) fn new(
        parts: Vec<Hosted>,
        stop_deadline: Duration,
        monitor: ServiceMonitor,
        watching: JoinHandle<()>,
    ) -> Self {
        Self {
            parts,
            announced: Vec::new(),
            stop_deadline,
            life: monitor.life(),
            monitor,
            watching: Watching(watching),
            #[cfg(feature = "admin")]
            admin: None,
        }
    }

    /// Keeps an announcement true from now on.
    pub(super) fn announced(&mut self, announcer: Announcer) {
        self.announced.push(Announced::new(announcer, self.monitor()));
    }

    #[cfg(feature = "admin")]
    pub(super) fn with_admin(mut self, listener: Listener) -> Self {
        self.admin = Some(listener.serve(self.monitor()));
        self
    }

    /// The name of the service.
    #[must_use]
    pub fn name(&self) -> &str {
        self.monitor.service()
    }

    /// What tells of its health, also while it stops and afterwards.
    #[must_use]
    pub fn monitor(&self) -> ServiceMonitor {
        self.monitor.clone()
    }

    /// Where [`Service::admin`](super::Service::admin) answers, with the port that it got.
    #[cfg(feature = "admin")]
    #[must_use]
    pub fn admin_address(&self) -> Option<std::net::SocketAddr> {
        self.admin.as_ref().map(Endpoint::address)
    }

    /// Runs until `shutdown` is done, such as the wait for a signal, and [stops](Self::stop). A
    /// part that ends before leaves the others at work; [`monitor`](Self::monitor) tells of it.
    ///
    /// When the future is dropped, the service stops at once.
    pub async fn run_until(self, shutdown: impl Future) -> ServiceReport {
        shutdown.await;
        self.stop().await
    }

    /// Runs until the process is told to end, by SIGTERM or SIGINT, or by Ctrl-C on Windows, and
    /// [stops](Self::stop). A second signal ends the drain at once, as if its deadline had come.
    /// Once this is polled, and until the process ends, these signals do not end it by themselves.
    ///
    /// When no part consumes any more (their queues were deleted, the transport was closed), there
    /// is nothing left to wait for, and it stops without a signal.
    ///
    /// When the future is dropped, the service stops at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when signals cannot be heard, and what ended the parts, when all
    /// of them ended and one did for an error. The service has been stopped then too.
    pub async fn run_until_signal(self) -> Result<ServiceReport> {
        let mut signals = match Signals::listen() {
            Ok(signals) => signals,
            Err(error) => {
                self.stop().await;
                let why = "signals that would end the service cannot be heard";
                return Err(Error::new(ErrorKind::Unavailable, "run", why).with_source(error));
            }
        };
        let monitor = self.monitor();
        let ended = tokio::select! {
            () = signals.next() => None,
            ended = monitor.all_ended() => ended,
        };
        let hurry = CancellationToken::new();
        let mut stop = std::pin::pin!(self.stop_or(&hurry));
        let report = tokio::select! {
            report = &mut stop => report,
            () = signals.next() => {
                tracing::warn!("a second signal: the rest goes back to the queues now");
                hurry.cancel();
                stop.await
            }
        };
        match ended {
            None => Ok(report),
            Some((part, error)) => {
                let why = format!("no part consumes any more: {}", error.message());
                Err(Error::new(error.kind(), "run", why)
                    .with_context("service", monitor.service().to_owned())
                    .with_context("part", part)
                    .with_source(error))
            }
        }
    }

    /// It leaves the registries and all parts stop taking messages; then those in hand are finished until the deadline of
    /// [`Service::stop_deadline`](super::Service::stop_deadline) has passed, and the rest goes back
    /// to the queues.
    ///
    /// When the future is dropped, it is as if the deadline had come.
    pub async fn stop(self) -> ServiceReport {
        self.stop_or(&CancellationToken::new()).await
    }

    /// As [`stop`](Self::stop); when `hurry` is cancelled, it is as if the deadline had come.
    async fn stop_or(self, hurry: &CancellationToken) -> ServiceReport {
        let Self { parts, announced, stop_deadline, life, watching, .. } = self;
        drop(watching);
        life.drains();
        let (parts, ()) = tokio::join!(
            stop_all(parts, stop_deadline, hurry),
            leave_all(announced, stop_deadline, hurry),
        );
        let report = ServiceReport { parts };
        for part in report.unfinished() {
            let StopReport { released, still_running, .. } = part.report;
            tracing::warn!(part = part.part, released, still_running, "not all was finished");
        }
        drop(life);
        #[cfg(feature = "admin")]
        if let Some(admin) = self.admin {
            admin.end().await;
        }
        report
    }
}

/// The first poll of each stop is what ends its taking, and all are polled before one is
/// waited for.
pub(super) async fn stop_all(
    parts: Vec<Hosted>,
    deadline: Duration,
    hurry: &CancellationToken,
) -> Vec<PartReport> {
    join_all(parts.into_iter().map(|Hosted { plan, started }| async move {
        let queues = started.gauges().iter().map(|gauge| gauge.queue.to_string()).collect();
        PartReport { part: plan.part, queues, report: started.stop(deadline, hurry).await }
    }))
    .await
}

impl fmt::Debug for RunningService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningService")
            .field("name", &self.name())
            .field("health", &self.monitor.health())
            .finish_non_exhaustive()
    }
}
