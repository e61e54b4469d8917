use postrider_core::{DeliveryInfo, Env};
use tokio_util::sync::CancellationToken;

use super::{Decision, RetryPolicy};
use crate::{
    consuming::Disposition,
    handler::{ErrorClass, HandlerError},
};

/// Carries out a retry policy for the messages of one queue.
#[derive(Debug)]
pub(crate) struct Retrying {
    policy: RetryPolicy,
    env: Env,
    by: By,
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
    pub(crate) fn new(policy: RetryPolicy, env: Env, by: By) -> Self {
        Self { policy, env, by }
    }

    /// Runs a handler, once or as often as the policy says, and tells what becomes of the message.
    /// A handler that was given up and says that it was called off has not failed.
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
            if error.class() == ErrorClass::Cancelled && cancellation.is_cancelled() {
                return Disposition::Release;
            }
            let decision = self.policy.decide(&error, failures, self.env.random_unit());
            tracing::warn!(queue = %info.queue, %error, failures, ?decision, "a handler failed");
            let after = match decision {
                Decision::RetryNow => std::time::Duration::ZERO,
                Decision::RetryAfter(after) => after,
                Decision::DeadLetter => return Disposition::DeadLetter(error),
            };
            if self.by == By::Broker {
                return Disposition::Retry(after);
            }
            failures += 1;
            tokio::time::sleep(after).await;
        }
    }
}
