use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::source::Receipt;
use crate::streaming::{Progress, StreamError, wire::ToSender};

/// How many frames of a receiver may wait for their transfer. One more is dropped: whatever a receiver
/// says, it says again.
const INBOX: usize = 64;

/// A stream that is being sent. Dropping it aborts the transfer.
#[derive(Debug)]
#[must_use = "dropping it aborts the transfer"]
pub struct Transfer {
    id: Uuid,
    progress: watch::Receiver<Progress>,
    abort: Abort,
    task: Option<JoinHandle<Result<Receipt, StreamError>>>,
}

impl Transfer {
    pub(super) const fn new(
        id: Uuid,
        progress: watch::Receiver<Progress>,
        abort: Abort,
        task: JoinHandle<Result<Receipt, StreamError>>,
    ) -> Self {
        Self { id, progress, abort, task: Some(task) }
    }

    /// The id of the stream, by which it can be taken up again.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// How far it is, now and whenever that changes.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Calls it off. The receiver is told `reason` and keeps nothing. Once it has ended, and a second
    /// time, this does nothing.
    pub fn abort(&self, reason: impl Into<String>) {
        self.abort.call(reason);
    }

    /// Waits until the receiver has all of it, has compared the hash, and its handler is done; after
    /// an [`abort`](Self::abort), until the receiver was told of it.
    ///
    /// Cancellation safe: when the future is dropped, the transfer goes on, and another call waits on.
    ///
    /// # Errors
    ///
    /// [`StreamError`]; [`is_resumable`](StreamError::is_resumable) says whether sending the
    /// same payload under the same id goes on where this ended. A call after that which gave the
    /// result fails with [`StreamError::Interrupted`].
    pub async fn finish(&mut self) -> Result<Receipt, StreamError> {
        let Some(task) = &mut self.task else {
            return Err(StreamError::Interrupted("its result was given before".to_owned()));
        };
        let result = task.await;
        self.task = None;
        match result {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(StreamError::Interrupted("the runtime ended".to_owned())),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.abort.call("the sender gave it up");
    }
}

/// The wish to end a transfer, with its first reason.
#[derive(Debug, Clone, Default)]
pub(super) struct Abort {
    token: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl Abort {
    fn call(&self, reason: impl Into<String>) {
        self.reason.get_or_init(|| reason.into());
        self.token.cancel();
    }

    pub(super) const fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub(super) fn error(&self) -> StreamError {
        let reason = self.reason.get().cloned().unwrap_or_default();
        StreamError::Aborted { reason }
    }
}

/// A frame, and the queue of the session that it comes from.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) from: String,
    pub(super) frame: ToSender,
}

/// The transfers under way, by their ids.
#[derive(Debug, Clone, Default)]
pub(super) struct Routes(Arc<Mutex<HashMap<Uuid, mpsc::Sender<Heard>>>>);

impl Routes {
    fn table(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::Sender<Heard>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A way for `id`; nothing when it is under way already.
    pub(super) fn open(&self, id: Uuid) -> Option<Inbox> {
        let (sender, frames) = mpsc::channel(INBOX);
        let mut table = self.table();
        if table.contains_key(&id) {
            return None;
        }
        table.insert(id, sender);
        Some(Inbox { routes: self.clone(), id, frames })
    }

    /// Hands a frame to its transfer; without one it comes back.
    pub(super) fn deliver(&self, id: Uuid, heard: Heard) -> Option<Heard> {
        let table = self.table();
        let Some(route) = table.get(&id) else { return Some(heard) };
        if let Err(mpsc::error::TrySendError::Full(_)) = route.try_send(heard) {
            tracing::debug!(%id, "a frame was dropped; its receiver will repeat it");
        }
        None
    }

    /// Ends every transfer: no frame will come any more.
    pub(super) fn close(&self) {
        self.table().clear();
    }
}

/// The frames for one transfer.
#[derive(Debug)]
pub(super) struct Inbox {
    routes: Routes,
    id: Uuid,
    frames: mpsc::Receiver<Heard>,
}

impl Inbox {
    pub(super) async fn recv(&mut self) -> Option<Heard> {
        self.frames.recv().await
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.routes.table().remove(&self.id);
    }
}
