use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{Middleware, Next};
use crate::handler::{Context, HandlerError};

/// Lets so many handlers run at once, over all subscriptions, workers and services that it is added
/// to. Its clones share the limit; two of them in one row are refused at the start.
///
/// A message that waits keeps its place in the concurrency of its worker; it neither fails nor is
/// counted. Who waits longest is next. When the worker begins to stop, or after
/// [`LONGEST_WAIT`](super::LONGEST_WAIT), it goes back to its queue uncounted. A request of a service
/// waits for as long as its caller, who is told just before that it was not begun.
///
/// A limit that is shared by what uses one resource is a bulkhead: however much there is to do, it
/// takes no more than its places, and what uses other resources goes on.
///
/// # Example: two workers, one database
///
/// ```
/// use postrider_patterns::{ConcurrencyLimit, Worker};
///
/// let database = ConcurrencyLimit::new(4);
/// let reports = Worker::new("reports").with(database.clone());
/// let imports = Worker::new("imports").with(database);
/// # drop((reports, imports));
/// ```
#[derive(Debug, Clone)]
pub struct ConcurrencyLimit(Arc<Semaphore>);

impl ConcurrencyLimit {
    /// A limit of `handlers` at once, from 1 to tokio's [`Semaphore::MAX_PERMITS`]; what is outside
    /// is taken as the nearest of them.
    #[must_use]
    pub fn new(handlers: usize) -> Self {
        Self(Arc::new(Semaphore::new(handlers.clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// How many more may run now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.available_permits()
    }
}

#[async_trait]
impl Middleware for ConcurrencyLimit {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        let _place = next.wait_for(self.0.acquire()).await??;
        next.run(context).await
    }

    fn held(&self) -> Option<usize> {
        Some(Arc::as_ptr(&self.0).addr())
    }
}
