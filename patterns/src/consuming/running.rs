use std::{sync::Arc, time::Duration};

use postrider_core::Error;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Counters, RunStats};

/// How long handlers that are given up may take to end.
const GRACE: Duration = Duration::from_millis(500);

/// A server, subscription or worker at work.
///
/// Dropping it stops it at once: handlers are given up and their messages go back to the queue. Use
/// [`stop`](Self::stop) to let them finish.
#[derive(Debug)]
#[must_use = "dropping it stops the handlers at once"]
pub struct Running {
    queue: Arc<str>,
    counters: Arc<Counters>,
    places: Option<u64>,
    state: watch::Receiver<State>,
    stop: CancellationToken,
    kill: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// What a consume loop shows to whoever watches it, while it runs and afterwards.
#[derive(Debug, Clone)]
pub(crate) struct Gauge {
    pub(crate) queue: Arc<str>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) state: watch::Receiver<State>,
    /// How many messages it has in hand when it can take no more; `None` where it does not say.
    pub(crate) places: Option<u64>,
}

/// How a consume loop stands.
#[derive(Debug, Clone, Default)]
pub(crate) enum State {
    #[default]
    Running,
    /// It waits for something before it takes anything.
    Held,
    Ended(Option<Arc<Error>>),
}

/// What a stop did with the messages in hand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StopReport {
    /// Messages whose handlers finished while it stopped.
    pub finished: u64,
    /// Messages whose handlers did not finish; they went back to the queue, uncounted.
    pub released: u64,
    /// The ids of the messages whose handlers were given up, those of [`released`](Self::released)
    /// that have one.
    pub unfinished: Vec<String>,
    /// Messages whose handlers could not be given up, because they hold their threads: they compute
    /// or block without an await. Each is settled when its handler comes to its next await or its
    /// end; until then it is in hand.
    pub still_running: u64,
}

impl StopReport {
    /// Of two loops together.
    pub(crate) fn plus(self, other: Self) -> Self {
        let mut unfinished = self.unfinished;
        unfinished.extend(other.unfinished);
        Self {
            finished: self.finished + other.finished,
            released: self.released + other.released,
            unfinished,
            still_running: self.still_running + other.still_running,
        }
    }
}

impl Running {
    pub(crate) fn new(
        queue: Arc<str>,
        counters: Arc<Counters>,
        state: watch::Receiver<State>,
        stop: CancellationToken,
        kill: CancellationToken,
        task: JoinHandle<()>,
    ) -> Self {
        Self { queue, counters, places: None, state, stop, kill, task: Some(task) }
    }

    /// Says how many messages it can have in hand at once.
    pub(crate) fn with_places(mut self, places: u64) -> Self {
        self.places = Some(places);
        self
    }

    pub(crate) fn gauge(&self) -> Gauge {
        Gauge {
            queue: Arc::clone(&self.queue),
            counters: Arc::clone(&self.counters),
            state: self.state.clone(),
            places: self.places,
        }
    }

    /// The queue that it consumes.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Whether it still consumes, or will.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !matches!(*self.state.borrow(), State::Ended(_))
    }

    /// Whether it waits for something before it consumes.
    pub(crate) fn is_held(&self) -> bool {
        matches!(*self.state.borrow(), State::Held)
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> RunStats {
        self.counters.stats()
    }

    /// Waits until it consumes no more, which nobody may have asked for: a queue may be deleted, a
    /// transport closed. Cancellation safe.
    ///
    /// # Errors
    ///
    /// Why consuming ended, when it was for an error.
    pub async fn ended(&self) -> Result<(), Arc<Error>> {
        let mut state = self.state.clone();
        match state.wait_for(|state| matches!(state, State::Ended(_))).await.as_deref() {
            Ok(State::Ended(Some(error))) => Err(Arc::clone(error)),
            _ => Ok(()),
        }
    }

    /// Stops consuming, lets the handlers in hand finish until `deadline` has passed, and gives the
    /// rest back to the queue.
    ///
    /// A handler is given up at an await. For one that holds its thread it waits at most half a
    /// second beyond the deadline, and reports it as
    /// [`still_running`](StopReport::still_running).
    ///
    /// When the future is dropped, it is as if the deadline had come.
    pub async fn stop(self, deadline: Duration) -> StopReport {
        self.stop_or(deadline, &CancellationToken::new()).await
    }

    /// As [`stop`](Self::stop); when `hurry` is cancelled, it is as if the deadline had come.
    pub(crate) async fn stop_or(
        mut self,
        deadline: Duration,
        hurry: &CancellationToken,
    ) -> StopReport {
        let before = self.stats();
        self.stop.cancel();
        if let Some(mut task) = self.task.take()
            && !matches!(
                hurry.run_until_cancelled(timeout(deadline, &mut task)).await,
                Some(Ok(_ended))
            )
        {
            self.kill.cancel();
            // Handlers end at their next await, if they come to one.
            let _ended = timeout(GRACE, task).await;
        }
        let after = self.stats();
        let finished = |stats: RunStats| stats.acked + stats.retried + stats.dead_lettered;
        StopReport {
            finished: finished(after) - finished(before),
            released: after.released - before.released,
            unfinished: self.counters.take_unfinished(),
            still_running: self.counters.in_hand(&after),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.kill.cancel();
    }
}
