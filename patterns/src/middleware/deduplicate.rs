use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use postrider_core::HeaderValue;

use super::{InMemorySeen, Middleware, Next, Seen, SeenClaim, SeenKey};
use crate::{
    handler::{Context, HandlerError},
    headers,
};

type KeyOf = Arc<dyn Fn(&Context) -> Option<String> + Send + Sync>;

/// Handles a message once of those that have the same key, within the window of what it remembers.
/// Its clones share what they remember.
///
/// A key is taken while its message is at work and completed after success, so that a message that
/// failed is never taken for a duplicate. A copy that comes while the first is at work waits in its
/// place for how that ends: to fail it would use up its tries. When the worker begins to stop, or
/// after [`LONGEST_WAIT`](super::LONGEST_WAIT), it goes back to its queue uncounted. A copy of a
/// completed message is acknowledged and [counted](Self::duplicates). A message without a key is
/// handled.
///
/// It has no answer for a copy of a request, so that around the methods of a service it ends one with
/// the code [`NOT_ANSWERED`](crate::codes::NOT_ANSWERED); declare such a method
/// [idempotent](crate::RpcServer::idempotent) instead.
///
/// It is no promise of exactly once: a process that dies between the effect and the completion has
/// its message handled again, and what [`InMemorySeen`] remembers is gone with the process and
/// unknown to others.
///
/// # Example
///
/// ```
/// use postrider_patterns::{Deduplicate, Worker};
///
/// let once = Deduplicate::by_message_id();
/// let worker = Worker::new("send_email").with(once.clone());
/// assert_eq!(once.duplicates(), 0);
/// # drop(worker);
/// ```
#[derive(Clone)]
pub struct Deduplicate {
    key: KeyOf,
    seen: Arc<dyn Seen>,
    duplicates: Arc<AtomicU64>,
}

impl Deduplicate {
    /// By the id of the message.
    #[must_use]
    pub fn by_message_id() -> Self {
        Self::by(|context| context.message_id().map(str::to_owned))
    }

    /// By the header `postrider-idempotency-key`, else the id of the message.
    #[must_use]
    pub fn by_idempotency_key() -> Self {
        Self::by(|context| {
            let headers = &context.message().headers;
            let text = |name| headers.get(name).and_then(HeaderValue::as_text);
            match text(headers::IDEMPOTENCY_KEY) {
                // Keys of different callers are different.
                Some(key) => Some(format!("{:?} {key}", text(headers::CALLER).unwrap_or_default())),
                None => context.message_id().map(str::to_owned),
            }
        })
    }

    /// By what `key` gives.
    pub fn by(key: impl Fn(&Context) -> Option<String> + Send + Sync + 'static) -> Self {
        Self {
            key: Arc::new(key),
            seen: Arc::new(InMemorySeen::default()),
            duplicates: Arc::default(),
        }
    }

    /// Where the keys are kept. Default: [`InMemorySeen::default`].
    #[must_use]
    pub fn seen(mut self, seen: impl Seen) -> Self {
        self.seen = Arc::new(seen);
        self
    }

    /// How many messages were acknowledged as duplicates.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Middleware for Deduplicate {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        let Some(key) = (self.key)(context) else { return next.run(context).await };
        let key = SeenKey::new(context.queue(), key);
        let env = context.env();
        let claim = next.wait_for(self.seen.claim(&key, env.timestamp())).await??;
        if claim == SeenClaim::Duplicate {
            self.duplicates.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(queue = context.queue(), key = key.key, "a duplicate");
            return Ok(());
        }
        let taken = Taken { seen: &*self.seen, key: &key };
        next.run(context).await?;
        if let Err(error) = self.seen.complete(taken.key, env.timestamp()).await {
            tracing::warn!(queue = context.queue(), %error, "a handled message is not remembered");
        }
        Ok(())
    }

    /// A message would be a copy of itself.
    fn held(&self) -> Option<usize> {
        Some(Arc::as_ptr(&self.seen).addr())
    }
}

impl fmt::Debug for Deduplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deduplicate")
            .field("seen", &self.seen)
            .field("duplicates", &self.duplicates())
            .finish_non_exhaustive()
    }
}

/// A key that is given back however its message ends; completed, it stays.
struct Taken<'a> {
    seen: &'a dyn Seen,
    key: &'a SeenKey,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.seen.release(self.key);
    }
}
