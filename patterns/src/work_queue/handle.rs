use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use postrider_core::Result;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{
    TaskError, TaskProgress, TaskState, TaskStatus, WorkQueue, report,
    tracking::{Entry, Kept, Tracker},
};
use crate::{codec::Limits, publishing::MessageId};

/// How long the end of a task that was called off is waited for.
const CANCEL_PATIENCE: Duration = Duration::from_secs(30);

/// A task that was submitted and that its submitter hears of.
///
/// A handle lives as long as it is held, and no longer than its process: the task goes on without
/// it, and its result is dropped then. It ends once, as [`TaskStatus::is_end`] says. When the
/// connection of its submitter is lost, it ends as [`TaskStatus::Unknown`], because reports go to a
/// queue that goes with the connection; the task is done all the same. So it does when the task was
/// given a time to live and is not begun 30 s after it, and 30 s after a [`cancel`](Self::cancel)
/// that came to no end. A task that expires, or that the broker itself gives up, is reported by
/// nobody: put a timeout around [`result`](Self::result) where that may happen.
#[must_use = "dropping it drops what is heard of the task"]
pub struct TaskHandle<R = ()> {
    id: MessageId,
    entry: Arc<Entry>,
    /// Nothing for a task that was not submitted.
    kept: Option<(Kept, Arc<Tracker>)>,
    tasks: WorkQueue,
    limits: Limits,
    result: PhantomData<fn() -> R>,
}

impl<R> TaskHandle<R> {
    pub(super) fn kept(
        id: MessageId,
        kept: Kept,
        tracker: Arc<Tracker>,
        tasks: WorkQueue,
        limits: Limits,
    ) -> Self {
        let entry = Arc::clone(&kept.entry);
        let kept = Some((kept, tracker));
        Self { id, entry, kept, tasks, limits, result: PhantomData }
    }

    pub(super) fn duplicate(id: MessageId, tasks: WorkQueue, limits: Limits) -> Self {
        let entry = Arc::new(Entry::new(String::new(), TaskStatus::Duplicate));
        Self { id, entry, kept: None, tasks, limits, result: PhantomData }
    }

    /// The id of the task.
    #[must_use]
    pub const fn id(&self) -> &MessageId {
        &self.id
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> TaskStatus {
        self.entry.state().status
    }

    /// How far it is; nothing until its handler has said so.
    #[must_use]
    pub fn progress(&self) -> Option<TaskProgress> {
        self.entry.state().progress
    }

    /// Tells of every change. A watcher that is slow sees the last one.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<TaskState> {
        self.entry.watch()
    }

    /// Calls the task off: a worker that has not begun it passes over it, and the handler of one
    /// that has sees it by its [`Context::cancellation`](crate::Context::cancellation). It may come
    /// too late, and then the task is done.
    ///
    /// The handle ends in any case: as [`TaskStatus::Cancelled`] when a worker says so, as what the
    /// worker says when it came too late, and as [`TaskStatus::Unknown`] when nothing is heard for
    /// 30 s, for example because there is no worker. One that takes the task after that runs it.
    ///
    /// Not cancellation safe: when the future is dropped, the workers may have been told.
    ///
    /// # Errors
    ///
    /// As [`WorkQueue::cancel`]. The handle ends all the same.
    pub async fn cancel(&self) -> Result<()> {
        if self.kept.is_none() || self.status().is_end() {
            return Ok(());
        }
        if self.entry.call_off() {
            self.entry.lapse(
                CANCEL_PATIENCE,
                |_status| true,
                "it was called off, and no worker said that it has ended",
            );
        }
        self.tasks.tell_cancelled(self.entry.exchange(), &self.id).await.map(|_told| ())
    }
}

impl<R: DeserializeOwned> TaskHandle<R> {
    /// Waits for the end of the task, and gives its result. Cancellation safe, and it may be asked
    /// again.
    ///
    /// # Errors
    ///
    /// [`TaskError`], when it came to another end than done or its result cannot be read.
    pub async fn result(&self) -> Result<R, TaskError> {
        let mut watched = self.watch();
        let ended = watched.wait_for(|state| state.status.is_end()).await;
        let status = ended.map(|state| state.status.clone());
        match status {
            Ok(TaskStatus::Failed(error)) => Err(TaskError::Failed(error)),
            Ok(TaskStatus::Cancelled) => Err(TaskError::Cancelled),
            Ok(TaskStatus::Duplicate) => Err(TaskError::Duplicate),
            Ok(TaskStatus::Unknown(cause)) => Err(TaskError::Unknown { cause }),
            _ => match self.entry.result() {
                Some(report) => Ok(report::decode_result(&report.message, self.limits)?),
                None => Err(TaskError::Unknown { cause: "its report is not there".to_owned() }),
            },
        }
    }
}

impl<R> fmt::Debug for TaskHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle")
            .field("id", &self.id)
            .field("state", &self.entry.state())
            .finish_non_exhaustive()
    }
}
