use std::time::Duration;

use postrider_core::{DeliveryInfo, Env};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Decision, RetryPolicy};
use crate::{
    consuming::{Disposition, catch_panic},
    handler::{Context, ErrorClass, HandlerError},
    middleware::Layers,
};

/// Carries out a retry policy for the messages of one queue.
#[derive(Debug)]
pub(crate) struct Retrying {
    policy: RetryPolicy,
    env: Env,
    by: By,
    handler_timeout: Option<Duration>,
}

/// Who keeps a message until its next try, and counts its failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The broker: the message goes back to its queue.
    Broker,
    /// This process: for queues that count nothing and belong to this process anyway.
    Process,
}

impl Retrying {
    pub(crate) fn new(
        policy: RetryPolicy,
        env: Env,
        by: By,
        handler_timeout: Option<Duration>,
    ) -> Self {
        Self { policy, env, by, handler_timeout }
    }

    /// Runs a handler, once or as often as the policy says, and tells what becomes of the message.
    /// `context` is given what tells the handler that it is given up. Each try passes through
    /// `layers`; one that did not end in its time has failed.
    pub(crate) async fn run_handler<F>(
        &self,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
        layers: &Layers,
        context: impl Fn(&CancellationToken) -> Context,
        handler: impl Fn(Context) -> F,
    ) -> Disposition
    where
        F: Future<Output = Result<(), HandlerError>> + Send,
    {
        let attempt = || self.try_once(cancellation, layers, &context, &handler);
        self.run(info, cancellation, attempt).await
    }

    /// Makes an attempt, once or as often as the policy says, and tells what becomes of the message.
    /// One that was given up and says that it was called off has not failed.
    pub(crate) async fn run<F>(
        &self,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
        attempt: impl Fn() -> F,
    ) -> Disposition
    where
        F: Future<Output = Result<(), HandlerError>>,
    {
        let mut failures = match self.by {
            By::Broker => info.failures,
            By::Process => 0,
        };
        loop {
            let Err(error) = attempt().await else {
                return Disposition::Ack;
            };
            let is_given_up = error.class() == ErrorClass::Cancelled && cancellation.is_cancelled();
            if is_given_up || error.is_given_back() {
                return Disposition::Release;
            }
            let decision = self.policy.decide(&error, failures, self.env.random_unit());
            tracing::warn!(queue = %info.queue, %error, failures, ?decision, "a handler failed");
            let after = match decision {
                Decision::RetryNow => Duration::ZERO,
                Decision::RetryAfter(after) => after,
                Decision::DeadLetter => return Disposition::DeadLetter(error),
            };
            if self.by == By::Broker {
                return Disposition::Retry(after);
            }
            failures += 1;
            // Another service's word of when to try again is no reason to hold a place for long.
            tokio::time::sleep(after.min(self.policy.max_delay)).await;
        }
    }

    /// One try. The handler's time does not run while a middleware waits.
    async fn try_once<F>(
        &self,
        cancellation: &CancellationToken,
        layers: &Layers,
        context: &impl Fn(&CancellationToken) -> Context,
        attempt: &impl Fn(Context) -> F,
    ) -> Result<(), HandlerError>
    where
        F: Future<Output = Result<(), HandlerError>> + Send,
    {
        let Some(limit) = self.handler_timeout else {
            let context = context(cancellation);
            if layers.is_empty() {
                return attempt(context).await;
            }
            return catch_panic(layers.run(&context, Box::pin(attempt(context.clone())))).await;
        };
        let given_up = cancellation.child_token();
        let context = context(&given_up);
        let handler = attempt(context.clone());
        if layers.is_empty() {
            return within(limit, &given_up, handler).await;
        }
        let handler = Box::pin(within(limit, &given_up, handler));
        catch_panic(layers.run(&context, handler)).await
    }
}

/// A handler that is dropped and told so when its time is over.
async fn within(
    limit: Duration,
    given_up: &CancellationToken,
    handler: impl Future<Output = Result<(), HandlerError>>,
) -> Result<(), HandlerError> {
    timeout(limit, handler).await.unwrap_or_else(|_elapsed| {
        given_up.cancel();
        Err(HandlerError::timed_out(limit))
    })
}
