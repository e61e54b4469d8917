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
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{table::RoutingTable, tap::Tap};
use crate::consuming::{Gauge, RunStats, Running, State, StopReport};

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
    /// What became of the requests by which its rules are changed and listed; `None` where it is
    /// not [controlled](super::Router::controlled), or not any more.
    pub control: Option<RunStats>,
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
    running: Vec<Running>,
    control: Option<Control>,
    counters: Arc<FlowCounters>,
    table: Option<watch::Receiver<Arc<RoutingTable>>>,
    tap: Option<Tap>,
    env: Env,
}

/// What takes the changes of the rules.
struct Control {
    /// Ends whoever would log its end; before it.
    watched: DropGuard,
    running: Running,
}

impl Flow {
    pub(super) fn new(running: Vec<Running>, counters: Arc<FlowCounters>, env: Env) -> Self {
        Self { running, control: None, counters, table: None, tap: None, env }
    }

    /// Shows the rules that it follows.
    pub(super) fn showing(mut self, table: watch::Receiver<Arc<RoutingTable>>) -> Self {
        self.table = Some(table);
        self
    }

    pub(super) fn tapped(mut self, tap: Option<Tap>) -> Self {
        self.tap = tap;
        self
    }

    /// Its rules are changed by this. To be called in a runtime.
    pub(super) fn controlled(mut self, running: Running) -> Self {
        let asked = CancellationToken::new();
        tokio::spawn(asked.clone().run_until_cancelled_owned(say_when_it_ends(running.gauge())));
        self.control = Some(Control { watched: asked.drop_guard(), running });
        self
    }

    /// All that consumes.
    fn loops(&self) -> impl Iterator<Item = &Running> {
        self.running.iter().chain(self.control.as_ref().map(|control| &control.running))
    }

    pub(crate) fn gauges(&self) -> Vec<Gauge> {
        self.loops().map(Running::gauge).collect()
    }

    /// The queues that it consumes.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.running.iter().map(Running::queue)
    }

    /// Whether it still consumes all of its queues, that of the requests to change its rules
    /// included. A controlled router that waits for its first rules [is held](Self::is_held), and
    /// still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.loops().all(Running::is_running)
    }

    /// Whether it takes nothing yet, because it is controlled and has no rules.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.running.iter().any(Running::is_held)
    }

    /// Whether its rules can be changed by messages. `false` for a flow that never was
    /// [controlled](super::Router::controlled), and for one whose control has ended: it goes on by
    /// the rules that it has, and only a restart makes it listen again.
    #[must_use]
    pub fn is_controlled(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.running.is_running())
    }

    /// Waits until it does not consume one of its queues any more, that of the requests to change
    /// its rules included. Cancellation safe.
    ///
    /// # Errors
    ///
    /// Why consuming ended, when it was for an error.
    pub async fn ended(&self) -> Result<(), Arc<postrider_core::Error>> {
        select_all(self.loops().map(|running| Box::pin(running.ended()))).await.0
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> FlowStats {
        let counters = &*self.counters;
        FlowStats {
            run: self.running.iter().map(Running::stats).fold(RunStats::default(), RunStats::plus),
            control: self
                .control
                .as_ref()
                .filter(|control| control.running.is_running())
                .map(|control| control.running.stats()),
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
        let control = control.map(|Control { watched, running }| {
            // It ends because it is asked to.
            drop(watched);
            running
        });
        let stops =
            running.into_iter().chain(control).map(|running| running.stop_or(deadline, hurry));
        let reports = join_all(stops).await;
        if let Some(tap) = tap {
            let _rest = hurry.run_until_cancelled(tap.stop(until)).await;
        }
        reports.into_iter().fold(StopReport::default(), StopReport::plus)
    }
}

/// Nobody may look at the health of a flow whose rules cannot be changed any more.
async fn say_when_it_ends(mut control: Gauge) {
    let ended = control.state.wait_for(|state| matches!(state, State::Ended(_))).await;
    let error = match ended.as_deref() {
        Ok(State::Ended(Some(error))) => error.to_string(),
        _ => "it has no more messages".to_owned(),
    };
    tracing::error!(
        queue = &*control.queue,
        error,
        "the control of a router has ended: it goes on by the rules that it has, and they cannot be \
         changed"
    );
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow")
            .field("queues", &self.queues().collect::<Vec<_>>())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
