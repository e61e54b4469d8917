use std::time::Duration;

use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::health::{PartState, ServiceHealth, ServiceMonitor};
use crate::discovery::{Announcer, InstanceHealth};

/// How often it is looked whether there is something else to say.
const LOOK: Duration = Duration::from_secs(1);

/// An instance in the registries that fares as its service does. It leaves when this is dropped.
pub(super) struct Announced {
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Announced {
    pub(super) fn new(announcer: Announcer, monitor: ServiceMonitor) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(tell(announcer, monitor, stop.clone()));
        Self { stop: stop.drop_guard(), task }
    }

    /// Leaves, and waits until the broker knows. Cancellation safe: it leaves all the same.
    pub(super) async fn leave(self) {
        let Self { stop, task } = self;
        drop(stop);
        let _panicked = task.await;
    }
}

/// Waits for all of them to leave, or for `limit`, or until `hurry` is cancelled.
pub(super) async fn leave_all(
    announced: Vec<Announced>,
    limit: Duration,
    hurry: &CancellationToken,
) {
    let all = futures_util::future::join_all(announced.into_iter().map(Announced::leave));
    tokio::select! {
        biased;
        _ = all => {}
        () = sleep(limit) => {}
        () = hurry.cancelled() => {}
    }
}

async fn tell(announcer: Announcer, monitor: ServiceMonitor, stop: CancellationToken) {
    let at_start = announcer.health();
    let telling = async {
        let mut told = None;
        loop {
            let health = match health_of(&monitor.health()) {
                InstanceHealth::Healthy => at_start.clone(),
                other => other,
            };
            if told.as_ref() != Some(&health) {
                // The names of its parts may be too long for the reason.
                let said = announcer.set_health(health.clone());
                if let Err(error) = said.or_else(|_| announcer.set_health(in_brief(&health))) {
                    tracing::warn!(%error, "the announcement is too large to say how it fares");
                }
                told = Some(health);
            }
            sleep(LOOK).await;
        }
    };
    stop.run_until_cancelled(telling).await;
    if let Err(error) = announcer.leave().await {
        tracing::warn!(%error, "the goodbye was not heard: the lease ends the announcement");
    }
}

/// The same, with less of a reason.
fn in_brief(health: &InstanceHealth) -> InstanceHealth {
    let reason = "see its own health".to_owned();
    match health {
        InstanceHealth::Healthy => InstanceHealth::Healthy,
        InstanceHealth::Degraded(_) => InstanceHealth::Degraded(reason),
        InstanceHealth::Unhealthy(_) => InstanceHealth::Unhealthy(reason),
    }
}

/// How an instance fares with such parts.
fn health_of(service: &ServiceHealth) -> InstanceHealth {
    let is_bad = |state: &PartState| matches!(state, PartState::Ended(_) | PartState::Stalled);
    let is_held = |state: &PartState| matches!(state, PartState::Held);
    let find = |is: fn(&PartState) -> bool| service.parts.iter().find(|part| is(&part.state));
    if let Some(part) = find(is_bad) {
        let how = match part.state {
            PartState::Stalled => "gets nothing while messages wait",
            _ => "consumes no more",
        };
        InstanceHealth::Unhealthy(format!("{} {how}", part.part))
    } else if let Some(part) = find(is_held) {
        InstanceHealth::Degraded(format!("{} waits for its rules", part.part))
    } else {
        InstanceHealth::Healthy
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::ConnectionState;

    use super::*;
    use crate::{
        consuming::RunStats,
        service::{PartHealth, ServicePhase},
    };

    fn fares(states: Vec<PartState>) -> InstanceHealth {
        let part = |(number, state)| PartHealth {
            part: format!("part {number}"),
            queue: String::new(),
            state,
            stats: RunStats::default(),
            in_hand: 0,
        };
        health_of(&ServiceHealth {
            phase: ServicePhase::Running,
            connection: ConnectionState::Connected,
            parts: states.into_iter().enumerate().map(part).collect(),
        })
    }

    #[test]
    fn the_worst_part_is_told() {
        use PartState::{Consuming, Ended, Held, Stalled};
        assert_eq!(fares(vec![Consuming, Consuming]), InstanceHealth::Healthy);
        let held = InstanceHealth::Degraded("part 1 waits for its rules".to_owned());
        assert_eq!(fares(vec![Consuming, Held]), held);
        let reason = fares(vec![Held, Stalled]).reason().map(str::to_owned);
        assert_eq!(reason.as_deref(), Some("part 1 gets nothing while messages wait"));
        let ended = InstanceHealth::Unhealthy("part 0 consumes no more".to_owned());
        assert_eq!(fares(vec![Ended(None), Stalled]), ended);
    }
}
