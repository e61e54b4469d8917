//! What stands around the handlers of a subscription or a worker, the methods of a service, a router
//! or a splitter.
//!
//! A [`Middleware`] is given the [`Context`] of a message and [`Next`], by which it calls what is
//! within it. The first that is added is the outermost. Each try of a message passes through all
//! of them, so that the retry policy sees their errors. A panic in a handler reaches them as an
//! error with the code [`PANIC`](crate::codes::PANIC); a panic in a middleware is one too. The time
//! of `handler_timeout` runs only while the handler does.
//!
//! Around the methods of an [`RpcServer`](crate::RpcServer) somebody waits for each answer, so that
//! what would wait for longer than its caller is refused with a word
//! ([`RpcServer::with`](crate::RpcServer::with)).
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
    future::pending,
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
use postrider_core::{DeliveryInfo, Envelope, Error, ErrorKind};
pub use publisher::PublisherMiddleware;
pub(crate) use publisher::around_publisher;
pub use rate_limit::RateLimit;
pub use seen::{InMemorySeen, Seen, SeenClaim, SeenKey};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
pub use trace::Trace;

use crate::{
    consuming::Outcome,
    handler::{Context, ErrorClass, HandlerError},
};

/// How long a message waits before its handler at most, 5 minutes; then it is given back and comes
/// again. A broker takes back a message that is held too long, as a failure: RabbitMQ after 30
/// minutes, and what was taken in advance is held too.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Stands around what handles a message. An `Arc` of one is one too, and may stand around several
/// subscriptions, workers and services.
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

    /// Told of every message of the subscription, worker or service when it is settled, and how,
    /// also of those that came to no handler because they cannot be decoded. It must not block.
    /// Default: does nothing.
    fn settled(&self, _envelope: &Envelope, _info: &DeliveryInfo, _outcome: Outcome) {}

    /// What a message holds while it is within, where it cannot be held a second time: a number that
    /// clones share and nothing else has. Of middleware with the same number only one may stand in a
    /// row, as the inner one would wait for the outer one; the start refuses more. Default: nothing.
    fn held(&self) -> Option<usize> {
        None
    }
}

#[async_trait]
impl<M: Middleware + ?Sized> Middleware for Arc<M> {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        (**self).handle(context, next).await
    }

    fn settled(&self, envelope: &Envelope, info: &DeliveryInfo, outcome: Outcome) {
        (**self).settled(envelope, info, outcome);
    }

    fn held(&self) -> Option<usize> {
        (**self).held()
    }
}

type Handler<'a> = BoxFuture<'a, Result<(), HandlerError>>;

/// What is within a middleware: the next one, or the handler.
#[must_use = "a message whose handler is not run is taken as done"]
pub struct Next<'a> {
    rest: &'a [Arc<dyn Middleware>],
    stopping: &'a CancellationToken,
    /// Of a request: somebody waits for its answer.
    request: Option<&'a Context>,
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

    /// Whether it is a request, for whose answer somebody waits.
    #[must_use]
    pub const fn is_request(&self) -> bool {
        self.request.is_some()
    }

    /// Awaits what has to come before the handler may run: a place, a moment, a lock. The wait ends
    /// when the subscription, worker or service begins to stop, and after [`LONGEST_WAIT`]; that of
    /// a request also when its caller gives up, and just before the caller would. `waited` is
    /// dropped then. Cancellation safe where `waited` is.
    ///
    /// # Errors
    ///
    /// When the wait has ended without it. Return the error as it is: the message is
    /// [given back](Self::give_back), or its caller told that it was not begun in time.
    pub fn wait_for<F>(
        &self,
        waited: F,
    ) -> impl Future<Output = Result<F::Output, HandlerError>> + Send + use<'a, F>
    where
        F: Future<Output: Send> + Send,
    {
        let (stopping, request) = (self.stopping, self.request);
        async move {
            tokio::select! {
                biased;
                output = waited => Ok(output),
                () = stopping.cancelled() => Err(HandlerError::given_back()),
                error = left_by_caller(request) => Err(error),
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

/// Ends when the caller of a request need not be kept waiting any longer.
async fn left_by_caller(request: Option<&Context>) -> HandlerError {
    let Some(context) = request else { return pending().await };
    let in_time = async {
        match context.time_to_answer() {
            Some(time) => sleep(time).await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        () = context.cancellation().cancelled() => {
            HandlerError::new(ErrorClass::Cancelled, "nobody waits for it any more")
        }
        () = in_time => HandlerError::held_back(
            "the request waited for a middleware of its server until its time was nearly over",
        ),
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// The middleware of one subscription, worker or service, outermost first.
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

    /// Refuses a row in which a message would wait for itself.
    pub(crate) fn check(&self, operation: &'static str) -> Result<(), Error> {
        let held: Vec<_> = self.list.iter().filter_map(|middleware| middleware.held()).collect();
        let is_twice = |(at, number): (usize, &usize)| held[..at].contains(number);
        if !held.iter().enumerate().any(is_twice) {
            return Ok(());
        }
        let why = "a middleware stands twice in one row: its inner copy would wait for what the \
                   outer one holds; add it once";
        Err(Error::new(ErrorKind::Invalid, operation, why))
    }

    pub(crate) async fn run(
        &self,
        context: &Context,
        handler: Handler<'_>,
    ) -> Result<(), HandlerError> {
        let stopping = &self.stopping;
        Next { rest: &self.list, stopping, request: None, handler }.run(context).await
    }

    /// Runs what answers a request.
    pub(crate) async fn run_request(
        &self,
        context: &Context,
        handler: Handler<'_>,
    ) -> Result<(), HandlerError> {
        let (stopping, request) = (&self.stopping, Some(context));
        Next { rest: &self.list, stopping, request, handler }.run(context).await
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
