//! What stands around the handlers of a subscription or a worker, a router or a splitter.
//!
//! A [`Middleware`] is given the [`Context`] of a message and [`Next`], by which it calls what is
//! within it. The first that is added is the outermost. Each try of a message passes through all
//! of them, so that the retry policy sees their errors. A panic in a handler reaches them as an
//! error with the code [`PANIC`](crate::codes::PANIC); a panic in a middleware is one too. The time
//! of `handler_timeout` runs only while the handler does.
//!
//! # Example: a middleware that notes failures
//!
//! ```
//! use async_trait::async_trait;
//! use postrider_patterns::{Context, HandlerError, Middleware, Next, Worker};
//!
//! #[derive(Debug)]
//! struct NoteFailures;
//!
//! #[async_trait]
//! impl Middleware for NoteFailures {
//!     async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
//!         let result = next.run(context).await;
//!         if let Err(error) = &result {
//!             eprintln!("{}: try {} failed: {error}", context.queue(), context.attempt());
//!         }
//!         result
//!     }
//! }
//!
//! let worker = Worker::new("send_email").with(NoteFailures);
//! # drop(worker);
//! ```

mod circuit;
mod circuit_breaker;
mod concurrency_limit;
mod deduplicate;
#[cfg(feature = "metrics")]
mod measure;
mod publisher;
mod rate_limit;
mod seen;
mod trace;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
pub use circuit::CircuitState;
pub use circuit_breaker::CircuitBreaker;
pub use concurrency_limit::ConcurrencyLimit;
pub use deduplicate::Deduplicate;
use futures_util::future::BoxFuture;
#[cfg(feature = "metrics")]
pub use measure::Measure;
use postrider_core::{DeliveryInfo, Envelope};
pub use publisher::PublisherMiddleware;
pub(crate) use publisher::around_publisher;
pub use rate_limit::RateLimit;
pub use seen::{InMemorySeen, Seen, SeenClaim, SeenKey};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
pub use trace::Trace;

use crate::{
    consuming::Outcome,
    handler::{Context, HandlerError},
};

/// How long a message waits before its handler at most, 5 minutes; then it is given back and comes
/// again. A broker takes back a message that is held too long, as a failure: RabbitMQ after 30
/// minutes, and what was taken in advance is held too.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Stands around what handles a message. An `Arc` of one is one too, and may stand around several
/// subscriptions and workers.
#[async_trait]
pub trait Middleware: fmt::Debug + Send + Sync + 'static {
    /// Handles a message, most often by [`Next::run`]. `Ok` without it means that the message is
    /// done with.
    ///
    /// The future is dropped at an await when the subscription or worker stops and its deadline has
    /// passed; the message goes back to its queue uncounted then. What was taken must be given back
    /// by a `Drop`.
    ///
    /// # Errors
    ///
    /// Why the try has failed. The retry policy decides what becomes of the message; one that was
    /// [given back](Next::give_back) has not failed.
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError>;

    /// Told of every message of the subscription or worker when it is settled, and how, also of
    /// those that came to no handler because they cannot be decoded. It must not block. Default:
    /// does nothing.
    fn settled(&self, _envelope: &Envelope, _info: &DeliveryInfo, _outcome: Outcome) {}
}

#[async_trait]
impl<M: Middleware + ?Sized> Middleware for Arc<M> {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        (**self).handle(context, next).await
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        (**self).settled(envelope, info, outcome);
    }
}

type Handler<'a> = BoxFuture<'a, Result<(), HandlerError>>;

/// What is within a middleware: the next one, or the handler.
#[must_use = "a message whose handler is not run is taken as done"]
pub struct Next<'a> {
    rest: &'a [Arc<dyn Middleware>],
    stopping: &'a CancellationToken,
    handler: Handler<'a>,
}

impl<'a> Next<'a> {
    /// Runs it, once. When the future is dropped, the handler is given up at its await.
    ///
    /// # Errors
    ///
    /// Why the handler, or a middleware within, has failed.
    pub async fn run(self, context: &Context) -> Result<(), HandlerError> {
        match self.rest.split_first() {
            Some((first, rest)) => first.handle(context, Next { rest, ..self }).await,
            None => self.handler.await,
        }
    }

    /// Awaits what has to come before the handler may run: a place, a moment, a lock. The wait ends
    /// when the subscription or worker begins to stop, and after [`LONGEST_WAIT`]. `waited` is
    /// dropped then. Cancellation safe where `waited` is.
    ///
    /// # Errors
    ///
    /// When the wait has ended without it. Return the error as it is: the message is
    /// [given back](Self::give_back).
    pub fn wait_for<F>(
        &self,
        waited: F,
    ) -> impl Future<Output = Result<F::Output, HandlerError>> + Send + use<'a, F>
    where
        F: Future<Output: Send> + Send,
    {
        let stopping = self.stopping;
        async move {
            tokio::select! {
                biased;
                output = waited => Ok(output),
                () = stopping.cancelled() => Err(HandlerError::given_back()),
                () = sleep(LONGEST_WAIT) => Err(HandlerError::given_back()),
            }
        }
    }

    /// Leaves the handler: when this error is returned, and those around pass it on as it is, the
    /// message goes back to its queue uncounted, and it or another instance takes it again. Where
    /// nothing was awaited before, that is at once.
    #[must_use = "return it as the error"]
    pub fn give_back(self) -> HandlerError {
        HandlerError::given_back()
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// The middleware of one subscription or worker, outermost first.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    list: Vec<Arc<dyn Middleware>>,
    stopping: CancellationToken,
}

impl Layers {
    pub(crate) fn push(&mut self, middleware: impl Middleware) {
        self.list.push(Arc::new(middleware));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) async fn run(
        &self,
        context: &Context,
        handler: Handler<'_>,
    ) -> Result<(), HandlerError> {
        Next { rest: &self.list, stopping: &self.stopping, handler }.run(context).await
    }

    /// Ends what waits.
    pub(crate) fn stop(&self) {
        self.stopping.cancel();
    }

    pub(crate) fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        for middleware in &self.list {
            let told = AssertUnwindSafe(|| middleware.settled(envelope, info, outcome));
            // The message must be settled all the same.
            if catch_unwind(told).is_err() {
                tracing::error!(?middleware, "a middleware panicked when a message was settled");
            }
        }
    }
}
