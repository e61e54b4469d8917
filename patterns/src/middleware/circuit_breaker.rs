use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use postrider_core::Env;
use tokio::{
    sync::{Notify, watch},
    time::sleep_until,
};

use super::{
    CircuitState, Middleware, Next,
    circuit::{Circuit, Permit, Told, Trip, Turn},
};
use crate::handler::{Context, ErrorClass, HandlerError};

/// A year, as good as for ever.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

type Counts = Arc<dyn Fn(&HandlerError) -> bool + Send + Sync>;

/// Lets no message pass while what the handlers depend on does not work. Its clones are one
/// circuit, so that several subscriptions and workers can guard one dependency.
///
/// While it is closed, messages pass. Too many failures open it. Open, it pauses consuming:
/// messages wait in their places, neither failed nor counted, and no more are taken than the
/// prefetch of the worker. When it has been open for its time, one message is the probe: it closes
/// the circuit by a success and opens it anew by a failure. A message that waits goes back to its
/// queue uncounted when the worker begins to stop, or after [`LONGEST_WAIT`](super::LONGEST_WAIT);
/// it comes again then. A request of a service waits for as long as its caller, who is told just
/// before that it was not begun.
///
/// A failure is an error of a class that is tried again, panics and handlers that took too long
/// included, but for [`Conflict`](ErrorClass::Conflict) and [`Cancelled`](ErrorClass::Cancelled).
/// Other errors, such as of an invalid message, say nothing about the dependency: they neither open
/// nor close it, and after a probe with such an error the next message is the probe.
///
/// Give handlers a `handler_timeout`: while a probe hangs, everything waits for it.
///
/// # Example: a database that may be away
///
/// ```
/// use std::time::Duration;
/// use postrider_patterns::{CircuitBreaker, CircuitState, Worker};
///
/// let database = CircuitBreaker::after_failures(5).open_for(Duration::from_secs(20));
/// let reports = Worker::new("reports").with(database.clone());
/// let imports = Worker::new("imports").with(database.clone());
/// assert_eq!(database.state(), CircuitState::Closed);
/// # drop((reports, imports));
/// ```
#[derive(Clone)]
pub struct CircuitBreaker {
    shared: Arc<Shared>,
    counts: Counts,
}

struct Shared {
    circuit: Mutex<Circuit>,
    state: watch::Sender<CircuitState>,
    /// Something else may be had by asking again.
    asking_helps: Notify,
}

impl CircuitBreaker {
    /// Opens after so many failures in a row, 0 taken as 1, for 30 seconds.
    #[must_use]
    pub fn after_failures(in_a_row: u32) -> Self {
        Self::new(Trip::Consecutive(in_a_row.max(1)))
    }

    /// Opens when `failed` of the messages of the last `window` have failed, a part of 1.0, and
    /// they are at least `least`, for 30 seconds. The window moves on in tenths; messages whose
    /// errors say nothing about the dependency are not in it.
    #[must_use]
    pub fn at_ratio(failed: f64, window: Duration, least: u32) -> Self {
        let failed = if failed.is_nan() { 1.0 } else { failed };
        Self::new(Trip::Ratio { failed, window: window.min(LONGEST), least })
    }

    fn new(trip: Trip) -> Self {
        let circuit = Circuit::new(trip, Duration::from_secs(30));
        let shared = Shared {
            state: watch::Sender::new(circuit.state()),
            circuit: Mutex::new(circuit),
            asking_helps: Notify::new(),
        };
        Self { shared: Arc::new(shared), counts: Arc::new(is_failure) }
    }

    /// How long it is open before a message is tried, at most a year. Of all clones. Default: 30
    /// seconds.
    #[must_use]
    pub fn open_for(self, time: Duration) -> Self {
        self.shared.circuit().set_open_for(time.min(LONGEST));
        self
    }

    /// Which errors are failures of what is guarded, of this clone. Default: as said above.
    #[must_use]
    pub fn counting(
        mut self,
        is_failure: impl Fn(&HandlerError) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.counts = Arc::new(is_failure);
        self
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> CircuitState {
        *self.shared.state.borrow()
    }

    /// How it stands, to be told when that changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<CircuitState> {
        self.shared.state.subscribe()
    }
}

/// Whether an error tells that something does not work, rather than something about the message.
fn is_failure(error: &HandlerError) -> bool {
    let class = error.class();
    class.is_retryable() && !matches!(class, ErrorClass::Conflict | ErrorClass::Cancelled)
}

#[async_trait]
impl Middleware for CircuitBreaker {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        let mut passing = next.wait_for(self.shared.pass(context.env())).await?;
        let result = next.run(context).await;
        passing.told = match &result {
            Ok(()) => Told::Works,
            Err(error) if !error.is_held_back() && (self.counts)(error) => Told::Fails,
            Err(_) => Told::Nothing,
        };
        result
    }

    /// A probe would wait for itself.
    fn held(&self) -> Option<usize> {
        Some(Arc::as_ptr(&self.shared).addr())
    }
}

impl Shared {
    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the circuit, and tells of it when it stands differently.
    fn change<T>(&self, change: impl FnOnce(&mut Circuit) -> T) -> T {
        let mut circuit = self.circuit();
        let done = change(&mut circuit);
        // While it is locked, so that states are told in their order.
        let now = circuit.state();
        let has_changed = self.state.send_if_modified(|state| std::mem::replace(state, now) != now);
        drop(circuit);
        if has_changed {
            tracing::warn!(state = ?now, "a circuit breaker changed");
        }
        done
    }

    /// Waits until a message may pass.
    async fn pass(&self, env: &Env) -> Passing<'_> {
        loop {
            // Before the question, so that no change after it is missed.
            let asking_helps = self.asking_helps.notified();
            match self.change(|circuit| circuit.ask(env.now())) {
                Turn::Go(permit) => {
                    let env = env.clone();
                    return Passing { shared: self, permit, env, told: Told::Nothing };
                }
                Turn::WaitUntil(moment) => sleep_until(moment).await,
                Turn::WaitForProbe => asking_helps.await,
            }
        }
    }
}

/// A message on its way. One that is dropped on the way tells nothing.
struct Passing<'a> {
    shared: &'a Shared,
    permit: Permit,
    env: Env,
    told: Told,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let now = self.env.now();
        self.shared.change(|circuit| circuit.tell(self.permit, self.told, now));
        self.shared.asking_helps.notify_waiters();
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker").field("state", &self.state()).finish_non_exhaustive()
    }
}
