//! What stands around the handlers of a subscription or a worker.
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

mod concurrency_limit;
mod deduplicate;
mod seen;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
pub use concurrency_limit::ConcurrencyLimit;
pub use deduplicate::Deduplicate;
use futures_util::future::BoxFuture;
pub use seen::{InMemorySeen, Seen, SeenClaim, SeenKey};

use crate::handler::{Context, HandlerError};

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
    /// Why the try has failed. The retry policy decides what becomes of the message.
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError>;
}

#[async_trait]
impl<M: Middleware + ?Sized> Middleware for Arc<M> {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        (**self).handle(context, next).await
    }
}

type Handler<'a> = BoxFuture<'a, Result<(), HandlerError>>;

/// What is within a middleware: the next one, or the handler.
#[must_use = "a message whose handler is not run is taken as done"]
pub struct Next<'a> {
    rest: &'a [Arc<dyn Middleware>],
    handler: Handler<'a>,
}

impl Next<'_> {
    /// Runs it, once. When the future is dropped, the handler is given up at its await.
    ///
    /// # Errors
    ///
    /// Why the handler, or a middleware within, has failed.
    pub async fn run(self, context: &Context) -> Result<(), HandlerError> {
        match self.rest.split_first() {
            Some((first, rest)) => {
                first.handle(context, Next { rest, handler: self.handler }).await
            }
            None => self.handler.await,
        }
    }
}

impl fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// The middleware of one subscription or worker, outermost first.
#[derive(Debug, Default)]
pub(crate) struct Layers(Vec<Arc<dyn Middleware>>);

impl Layers {
    pub(crate) fn push(&mut self, middleware: impl Middleware) {
        self.0.push(Arc::new(middleware));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) async fn run(
        &self,
        context: &Context,
        handler: Handler<'_>,
    ) -> Result<(), HandlerError> {
        Next { rest: &self.0, handler }.run(context).await
    }
}
