use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use postrider_core::Env;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

use super::{Middleware, Next};
use crate::handler::{Context, HandlerError};

/// How much of the time that a timer took too long is made up for. Without it, rates near and above
/// the milliseconds of the timer would not be reached.
const CATCH_UP: Duration = Duration::from_millis(5);

/// One a year is the slowest rate.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Lets messages begin at a rate, over all subscriptions, workers and services of this process that
/// it is added to. Its clones share the rate.
///
/// A message that is too early waits in its place, in the order of coming; it neither fails nor is
/// counted. When the worker begins to stop, or after [`LONGEST_WAIT`](super::LONGEST_WAIT), it goes
/// back to its queue uncounted. Each try of a message is one. To the timer's exactness, a rate is
/// kept over 5 milliseconds and more.
///
/// A request of a service that is too early does not wait: its caller gets
/// [`Throttled`](crate::ErrorClass::Throttled) at once, with the time after which it may come again.
/// Calls that are made at once are the rule there, so give the rate a [`burst`](Self::burst).
///
/// # Example: what a partner's service allows
///
/// ```
/// use std::time::Duration;
/// use postrider_patterns::{RateLimit, Worker};
///
/// let allowed = RateLimit::new(300, Duration::from_secs(60)).burst(10);
/// let worker = Worker::new("send_email").with(allowed);
/// # drop(worker);
/// ```
#[derive(Debug, Clone)]
pub struct RateLimit {
    interval: Duration,
    burst: Duration,
    /// Until when the rate is used up. Who waits longest holds it.
    used_until: Arc<Mutex<Option<Instant>>>,
}

impl RateLimit {
    /// So many messages in each `period`, evenly spread. No message is taken as one, a period of
    /// more than a year as a year, and a period of zero is no limit.
    #[must_use]
    pub fn new(messages: u32, period: Duration) -> Self {
        let interval = period.min(LONGEST) / messages.max(1);
        Self { interval, burst: Duration::ZERO, used_until: Arc::default() }
    }

    /// How many may begin at once after a quiet time. Default: 1. Call it before it is cloned.
    #[must_use]
    pub fn burst(mut self, messages: u32) -> Self {
        self.burst = self.interval.saturating_mul(messages.saturating_sub(1));
        self
    }

    /// The generic cell rate algorithm: when the next message may begin, if that must be waited for.
    fn earliest(&self, used_until: Option<Instant>) -> Option<Instant> {
        used_until.and_then(|until| until.checked_sub(self.burst))
    }

    fn use_up(&self, used_until: &mut Option<Instant>, now: Instant) {
        let quiet = now.checked_sub(CATCH_UP).unwrap_or(now);
        let from = used_until.map_or(now, |until| until.max(quiet));
        *used_until = Some(from.checked_add(self.interval).unwrap_or(from));
    }

    async fn turn(&self, env: &Env) {
        let mut used_until = self.used_until.lock().await;
        if let Some(earliest) = self.earliest(*used_until) {
            sleep_until(earliest).await;
        }
        self.use_up(&mut used_until, env.now());
    }

    /// Takes a turn that is there now, once those who wait have theirs.
    ///
    /// # Errors
    ///
    /// How long until there is one.
    async fn turn_now(&self, env: &Env) -> Result<(), Duration> {
        let mut used_until = self.used_until.lock().await;
        let now = env.now();
        let early = self.earliest(*used_until).map(|earliest| earliest.duration_since(now));
        if let Some(early) = early.filter(|early| !early.is_zero()) {
            return Err(early);
        }
        self.use_up(&mut used_until, now);
        Ok(())
    }
}

#[async_trait]
impl Middleware for RateLimit {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        if next.is_request() {
            next.wait_for(self.turn_now(context.env())).await?.map_err(|early| {
                let why = "the service takes no more requests for now";
                HandlerError::held_back(why).with_retry_after(early)
            })?;
        } else {
            next.wait_for(self.turn(context.env())).await?;
        }
        next.run(context).await
    }
}
