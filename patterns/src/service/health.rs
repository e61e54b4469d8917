use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use postrider_core::{ConnectionState, Error, Transport};
use tokio::{sync::watch, time::sleep};

use super::running::Hosted;
use crate::consuming::{Gauge, RunStats, State};

/// How many looks in a row find messages waiting and nothing coming before it is a stall. Between
/// the first and the last of them the whole limit passes.
const LOOKS: u32 = 5;

/// How a service fares. Cloning shares it.
#[derive(Debug, Clone)]
pub struct ServiceMonitor {
    service: Arc<str>,
    transport: Arc<dyn Transport>,
    watched: Arc<[Watched]>,
    phase: Arc<watch::Sender<ServicePhase>>,
}

/// The health of a service at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServiceHealth {
    /// How far it is in its life.
    pub phase: ServicePhase,
    /// How its connection stands.
    pub connection: ConnectionState,
    /// Its consume loops, in the order in which the parts were added; a part on several queues has
    /// one for each.
    pub parts: Vec<PartHealth>,
}

/// How far a service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ServicePhase {
    /// It takes messages.
    #[default]
    Running,
    /// It takes no more and finishes what it has in hand.
    Draining,
    /// It has ended.
    Stopped,
}

/// The health of one consume loop.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PartHealth {
    /// The part that it belongs to.
    pub part: String,
    /// The queue that it consumes.
    pub queue: String,
    /// How it stands.
    pub state: PartState,
    /// What it has done so far.
    pub stats: RunStats,
    /// Messages that its handlers have at work.
    pub in_hand: u64,
}

/// How a consume loop stands.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PartState {
    /// It consumes.
    Consuming,
    /// It takes nothing yet: a controlled router that waits for its first rules.
    Held,
    /// It gets nothing, though it has room and messages wait in its queue.
    Stalled,
    /// It consumes no more, and why, when it was for an error.
    Ended(Option<Arc<Error>>),
}

impl ServiceHealth {
    /// Whether all parts consume or wait for what lets them begin, or it drains, which has a
    /// deadline. When not, only a restart helps. A lost connection restores itself and does not
    /// count here.
    #[must_use]
    pub fn is_live(&self) -> bool {
        let lives = |state: &PartState| matches!(state, PartState::Consuming | PartState::Held);
        match self.phase {
            ServicePhase::Running => self.parts.iter().all(|part| lives(&part.state)),
            ServicePhase::Draining => true,
            ServicePhase::Stopped => false,
        }
    }

    /// Whether all parts consume over a connection that is open and not blocked.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase == ServicePhase::Running
            && self.parts.iter().all(|part| matches!(part.state, PartState::Consuming))
            && self.connection == ConnectionState::Connected
    }
}

#[derive(Debug)]
struct Watched {
    part: String,
    gauge: Gauge,
    /// How many messages it had taken at the last look.
    taken: AtomicU64,
    /// How many looks in a row found it without deliveries that it could have.
    starved: AtomicU32,
}

impl ServiceMonitor {
    pub(super) fn new(service: &str, transport: &Arc<dyn Transport>, hosted: &[Hosted]) -> Self {
        let watched = hosted.iter().flat_map(|Hosted { plan, started }| {
            started.gauges().into_iter().map(|mut gauge| {
                if plan.stands_by(&gauge.queue) {
                    // Another instance may be the one that takes: nothing comes by design.
                    gauge.places = None;
                }
                Watched::new(&plan.part, gauge)
            })
        });
        Self {
            service: service.into(),
            transport: Arc::clone(transport),
            watched: watched.collect(),
            phase: Arc::default(),
        }
    }

    /// The name of the service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// What sets the phase.
    pub(super) fn life(&self) -> Life {
        Life(Arc::clone(&self.phase))
    }

    /// Waits until no part consumes any more, and says which ended for an error, and for which.
    pub(super) async fn all_ended(&self) -> Option<(String, Arc<Error>)> {
        let ends = join_all(self.watched.iter().map(Watched::ended)).await;
        ends.into_iter().flatten().next()
    }

    /// How it fares now. It asks nobody and is cheap.
    #[must_use]
    pub fn health(&self) -> ServiceHealth {
        ServiceHealth {
            phase: *self.phase.borrow(),
            connection: self.transport.health().state,
            parts: self.watched.iter().map(Watched::health).collect(),
        }
    }
}

/// The life of a service, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Life(Arc<watch::Sender<ServicePhase>>);

impl Life {
    pub(super) fn drains(&self) {
        self.0.send_replace(ServicePhase::Draining);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.send_replace(ServicePhase::Stopped);
    }
}

/// Looks for stalls until it is aborted.
pub(super) async fn watch(monitor: ServiceMonitor, stalled_after: Duration) {
    loop {
        sleep(stalled_after / (LOOKS - 1)).await;
        for watched in &*monitor.watched {
            if !watched.could_take() {
                watched.starved.store(0, Ordering::Relaxed);
                continue;
            }
            let waiting = monitor.transport.queue_info(&watched.gauge.queue).await;
            // What the broker cannot be asked about is no stall, but a matter of the connection.
            let waits = waiting.is_ok_and(|info| info.is_some_and(|info| info.ready > 0));
            watched.note(waits && monitor.transport.health().is_ready());
        }
    }
}

impl Watched {
    fn new(part: &str, gauge: Gauge) -> Self {
        Self { part: part.to_owned(), gauge, taken: AtomicU64::new(0), starved: AtomicU32::new(0) }
    }

    async fn ended(&self) -> Option<(String, Arc<Error>)> {
        let mut state = self.gauge.state.clone();
        match state.wait_for(|state| matches!(state, State::Ended(_))).await.as_deref() {
            Ok(State::Ended(Some(error))) => Some((self.part.clone(), Arc::clone(error))),
            _ => None,
        }
    }

    /// Whether it has room and took nothing since the last look.
    fn could_take(&self) -> bool {
        let counters = &self.gauge.counters;
        let has_room = self
            .gauge
            .places
            .is_some_and(|all| counters.in_hand(&counters.stats()) < counters.places(all));
        let taken = counters.taken();
        let is_quiet = self.taken.swap(taken, Ordering::Relaxed) == taken;
        has_room && is_quiet && matches!(*self.gauge.state.borrow(), State::Running)
    }

    fn note(&self, starves: bool) {
        let before = self.starved.load(Ordering::Relaxed);
        let now = if starves { before.saturating_add(1) } else { 0 };
        self.starved.store(now, Ordering::Relaxed);
        if now == LOOKS {
            let (part, queue) = (&self.part, &*self.gauge.queue);
            tracing::error!(part, queue, "messages wait and none comes: it is stalled");
        }
    }

    fn health(&self) -> PartHealth {
        let counters = &self.gauge.counters;
        let stats = counters.stats();
        let state = match &*self.gauge.state.borrow() {
            State::Ended(error) => PartState::Ended(error.clone()),
            State::Held => PartState::Held,
            State::Running if self.starved.load(Ordering::Relaxed) >= LOOKS => PartState::Stalled,
            State::Running => PartState::Consuming,
        };
        PartHealth {
            part: self.part.clone(),
            queue: self.gauge.queue.to_string(),
            state,
            stats,
            in_hand: counters.in_hand(&stats),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::consuming::{Count, Counters};

    fn watched(places: u64) -> (Watched, watch::Sender<State>) {
        let (state, seen) = watch::channel(State::Running);
        let counters = Arc::new(Counters::default());
        let gauge = Gauge { queue: "q".into(), counters, state: seen, places: Some(places) };
        (Watched::new("worker q", gauge), state)
    }

    #[test]
    fn a_stall_is_seen_after_enough_looks_and_is_over_with_a_delivery() {
        let (part, _state) = watched(2);
        for look in 1..=LOOKS {
            assert!(part.could_take());
            part.note(true);
            assert_eq!(matches!(part.health().state, PartState::Stalled), look == LOOKS);
        }
        part.gauge.counters.add(Count::Taken);
        assert!(!part.could_take(), "something came");
        part.note(false);
        assert!(matches!(part.health().state, PartState::Consuming));
    }

    #[test]
    fn who_has_no_room_or_an_empty_queue_does_not_stall() {
        let (part, _state) = watched(1);
        part.note(true);
        part.note(false);
        assert_eq!(part.starved.load(Ordering::Relaxed), 0);
        part.gauge.counters.add(Count::Taken);
        for _ in 0..2 * LOOKS {
            assert!(!part.could_take(), "its place is taken");
        }
        assert_eq!(part.health().in_hand, 1);
    }

    #[test]
    fn who_takes_messages_one_by_one_is_busy_with_one() {
        let (part, _state) = watched(16);
        part.gauge.counters.set_careful(true);
        part.gauge.counters.add(Count::Taken);
        for _ in 0..2 * LOOKS {
            assert!(!part.could_take(), "its one place is taken");
        }
        part.gauge.counters.set_careful(false);
        assert!(part.could_take());
    }

    #[test]
    fn an_end_stays_whatever_the_queue_holds() {
        let (part, state) = watched(1);
        state.send_replace(State::Ended(None));
        assert!(!part.could_take());
        part.note(true);
        assert!(matches!(part.health().state, PartState::Ended(None)));
    }
}
