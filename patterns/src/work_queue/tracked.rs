//! Submitting with a handle, and calling off.

use std::{sync::Arc, time::Duration};

use postrider_core::{ErrorKind, Result, Verdict};

use super::{
    SubmitOptions, Task, TaskHandle, TaskStatus, TaskWithResult, WorkQueue, control, queue::Inner,
    tracking::Tracker,
};
use crate::{error::PublishError, publishing::MessageId};

/// How long after its time to live a task that nobody has begun is waited for.
const TTL_PATIENCE: Duration = Duration::from_secs(30);

impl WorkQueue {
    /// Submits a task and gives a handle that tells how it fares; else as
    /// [`submit_with`](Self::submit_with).
    ///
    /// A task whose unique key another has whose handle has not ended is not submitted: its handle
    /// is [`Duplicate`](TaskStatus::Duplicate) from the start.
    ///
    /// # Errors
    ///
    /// As [`submit_with`](Self::submit_with); [`ErrorKind::Rejected`] when there are as many handles
    /// as there may be; and what [`Transport::replies`](postrider_core::Transport::replies) fails
    /// with: the first tracked task declares the queue that reports go to.
    pub async fn submit_tracked<T: Task>(
        &self,
        task: &T,
        options: SubmitOptions,
    ) -> Result<TaskHandle, PublishError> {
        self.track(task, options).await
    }

    /// Submits a task and gives a handle that tells its result too; else as
    /// [`submit_tracked`](Self::submit_tracked).
    ///
    /// # Errors
    ///
    /// As [`submit_tracked`](Self::submit_tracked).
    pub async fn submit_for_result<T: TaskWithResult>(
        &self,
        task: &T,
        options: SubmitOptions,
    ) -> Result<TaskHandle<T::Output>, PublishError> {
        self.track(task, options).await
    }

    async fn track<T: Task, R>(
        &self,
        task: &T,
        options: SubmitOptions,
    ) -> Result<TaskHandle<R>, PublishError> {
        let inner = &*self.inner;
        let (id, mut envelope) = inner.envelope(task, &options)?;
        let tracker = inner.tracker().await?;
        let exchange = inner.naming.task_exchange(T::QUEUE);
        let kept = tracker.keep(id.as_str(), T::QUEUE, options.unique.as_deref(), exchange)?;
        let Some(kept) = kept else {
            return Ok(TaskHandle::duplicate(id, self.clone(), inner.limits));
        };
        envelope.message.reply_to = Some(tracker.address().await?.to_string().into());
        let delay = envelope.delay;
        inner.submit(T::QUEUE, envelope).await?;
        if let Some(ttl) = options.ttl {
            kept.entry.lapse(
                delay.saturating_add(ttl).saturating_add(TTL_PATIENCE),
                |status| *status == TaskStatus::Queued,
                "nobody began it within its time to live; it may have expired",
            );
        }
        Ok(TaskHandle::kept(id, kept, tracker, self.clone(), inner.limits))
    }

    /// Calls a task of type `T` off that was submitted here or anywhere. Every worker of its queue
    /// is told: one that has not begun it passes over it, and the handler of one that has sees it by
    /// its [`Context::cancellation`](crate::Context::cancellation). Gives whether there was a worker
    /// to tell.
    ///
    /// It is a favour that may come late or be lost: a worker that starts later is not told, and
    /// workers remember the last 10,000 ids for an hour. What became of the task is told by its
    /// [handle](TaskHandle).
    ///
    /// Not cancellation safe: when the future is dropped, the workers may have been told.
    ///
    /// # Errors
    ///
    /// What declaring the exchange of the workers and publishing to it fail with.
    pub async fn cancel<T: Task>(&self, id: &MessageId) -> Result<bool> {
        self.tell_cancelled(&self.inner.naming.task_exchange(T::QUEUE), id).await
    }

    pub(super) async fn tell_cancelled(&self, exchange: &str, id: &MessageId) -> Result<bool> {
        let Inner { transport, publisher, .. } = &*self.inner;
        // A publish to an exchange that is not there would be an error.
        transport.declare(&control::exchange(exchange)).await?;
        let cancel = control::cancel(exchange.to_owned(), id.as_str().to_owned());
        match publisher.send(cancel).await?.await {
            Verdict::Accepted => Ok(true),
            verdict => match verdict.into_result() {
                Err(error) if error.kind() != ErrorKind::Unroutable => Err(error),
                _ => Ok(false),
            },
        }
    }
}

impl Inner {
    /// The tracker there is; another where its queue was taken from it.
    async fn tracker(&self) -> Result<Arc<Tracker>> {
        let mut tracker = self.tracker.lock().await;
        if let Some(open) = tracker.as_ref().filter(|open| !open.is_closed()) {
            return Ok(Arc::clone(open));
        }
        let Self { transport, publisher, naming, .. } = self;
        let opening = Tracker::open(transport, publisher, naming, self.limits, self.most_handles);
        let open = Arc::new(opening.await?);
        *tracker = Some(Arc::clone(&open));
        Ok(open)
    }
}
