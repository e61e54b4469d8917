use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::{join_all, select_all};
use postrider_core::Env;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{table::RoutingTable, tap::Tap};
use crate::consuming::{Gauge, RunStats, Running, StopReport};

/// A figure that grows.
#[derive(Debug, Default)]
pub(super) struct Figure(AtomicU64);

impl Figure {
    pub(super) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct FlowCounters {
    pub(super) sent: Figure,
    pub(super) dropped: Figure,
    pub(super) tapped: Figure,
    pub(super) tap_dropped: Figure,
    pub(super) duplicates: Figure,
    pub(super) complete: Figure,
    pub(super) incomplete: Figure,
}

/// What a router, splitter or aggregator has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct FlowStats {
    /// What became of the messages it took.
    pub run: RunStats,
    /// Messages that it sent and the broker has.
    pub sent: u64,
    /// Messages that it took and sent nowhere, because its rules say so.
    pub dropped: u64,
    /// Copies that the wire tap has delivered.
    pub tapped: u64,
    /// Copies that the wire tap has not delivered: there was no room, or the broker did not take
    /// them.
    pub tap_dropped: u64,
    /// Parts that an aggregator had already. Aggregators only.
    pub duplicates: u64,
    /// Groups that were completed. Aggregators only.
    pub complete: u64,
    /// Groups that were ended before they were complete. Aggregators only.
    pub incomplete: u64,
}

/// A router, splitter or aggregator at work.
///
/// Dropping it stops it at once: what it has in hand goes back to its queue. Use
/// [`stop`](Self::stop) to let it finish.
#[must_use = "dropping it stops it at once"]
pub struct Flow {
    pub(super) running: Vec<Running>,
    pub(super) control: Option<Running>,
    pub(super) counters: Arc<FlowCounters>,
    pub(super) table: Option<watch::Receiver<Arc<RoutingTable>>>,
    pub(super) tap: Option<Tap>,
    pub(super) env: Env,
}

impl Flow {
    pub(crate) fn gauges(&self) -> Vec<Gauge> {
        self.running.iter().chain(&self.control).map(Running::gauge).collect()
    }

    /// The queues that it consumes.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.running.iter().map(Running::queue)
    }

    /// Whether it still consumes all of its queues.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.iter().all(Running::is_running)
    }

    /// Waits until it does not consume one of its queues any more. Cancellation safe.
    ///
    /// # Errors
    ///
    /// Why consuming ended, when it was for an error.
    pub async fn ended(&self) -> Result<(), Arc<postrider_core::Error>> {
        select_all(self.running.iter().map(|running| Box::pin(running.ended()))).await.0
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> FlowStats {
        let counters = &*self.counters;
        FlowStats {
            run: self.running.iter().map(Running::stats).fold(RunStats::default(), RunStats::plus),
            sent: counters.sent.get(),
            dropped: counters.dropped.get(),
            tapped: counters.tapped.get(),
            tap_dropped: counters.tap_dropped.get(),
            duplicates: counters.duplicates.get(),
            complete: counters.complete.get(),
            incomplete: counters.incomplete.get(),
        }
    }

    /// The rules that a router follows now; `None` for one whose recipients are computed, a
    /// splitter and an aggregator.
    #[must_use]
    pub fn table(&self) -> Option<Arc<RoutingTable>> {
        self.table.as_ref().map(|table| Arc::clone(&table.borrow()))
    }

    /// Stops consuming, lets what is in hand finish until `deadline` has passed, and gives the rest
    /// back to the queues. The wire tap gets what is left of that time.
    ///
    /// When the future is dropped, it is as if the deadline had come.
    pub async fn stop(self, deadline: Duration) -> StopReport {
        self.stop_or(deadline, &CancellationToken::new()).await
    }

    /// As [`stop`](Self::stop); when `hurry` is cancelled, it is as if the deadline had come.
    pub(crate) async fn stop_or(self, deadline: Duration, hurry: &CancellationToken) -> StopReport {
        let until = self.env.deadline(deadline);
        let Self { running, control, tap, .. } = self;
        let stops =
            running.into_iter().chain(control).map(|running| running.stop_or(deadline, hurry));
        let reports = join_all(stops).await;
        if let Some(tap) = tap {
            let _rest = hurry.run_until_cancelled(tap.stop(until)).await;
        }
        reports.into_iter().fold(StopReport::default(), StopReport::plus)
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow")
            .field("queues", &self.queues().collect::<Vec<_>>())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
