//! What a submitter keeps of its tracked tasks, and how it hears of them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::BoxStream};
use postrider_core::{
    Envelope, Error, ErrorKind, Publisher, Replies, ReplyAddress, ReplyOptions, Result, Transport,
    TransportEvent,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    TaskState, TaskStatus, control,
    report::{self, Heard, REPORT},
};
use crate::{codec::Limits, naming::Naming};

/// One tracked task.
#[derive(Debug)]
pub(super) struct Entry {
    state: watch::Sender<TaskState>,
    attempt: AtomicU32,
    /// The report that it is done, there before its status says so.
    result: OnceLock<Arc<Envelope>>,
    called_off: AtomicBool,
    /// The exchange of its workers.
    exchange: String,
}

impl Entry {
    pub(super) fn new(exchange: String, status: TaskStatus) -> Self {
        Self {
            state: watch::Sender::new(TaskState { status, progress: None }),
            attempt: AtomicU32::new(0),
            result: OnceLock::new(),
            called_off: AtomicBool::new(false),
            exchange,
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<TaskState> {
        self.state.subscribe()
    }

    pub(super) fn state(&self) -> TaskState {
        self.state.borrow().clone()
    }

    pub(super) fn exchange(&self) -> &str {
        &self.exchange
    }

    pub(super) fn result(&self) -> Option<&Arc<Envelope>> {
        self.result.get()
    }

    /// Gives whether it was not called off before.
    pub(super) fn call_off(&self) -> bool {
        !self.called_off.swap(true, Ordering::Relaxed)
    }

    fn is_called_off(&self) -> bool {
        self.called_off.load(Ordering::Relaxed)
    }

    fn set(&self, status: TaskStatus) {
        self.set_if(|_before| true, status);
    }

    /// An end stays.
    fn set_if(&self, condition: impl FnOnce(&TaskStatus) -> bool, status: TaskStatus) {
        self.state.send_if_modified(|state| {
            let changes =
                !state.status.is_end() && state.status != status && condition(&state.status);
            if changes {
                state.status = status;
            }
            changes
        });
    }

    fn hear(&self, heard: Heard, report: &Arc<Envelope>) {
        match heard {
            Heard::Status(_, status) if status.is_end() => {
                if status == TaskStatus::Done {
                    let _second = self.result.set(Arc::clone(report));
                }
                self.set(status);
            }
            // What an earlier worker said may come after what a later one did.
            Heard::Status(attempt, _) | Heard::Progress(attempt, _)
                if attempt < self.attempt.fetch_max(attempt, Ordering::Relaxed) => {}
            Heard::Status(_, status) => self.set(status),
            Heard::Progress(_, progress) => {
                self.state.send_if_modified(|state| {
                    let changes = !state.status.is_end();
                    if changes {
                        state.progress = Some(progress);
                    }
                    changes
                });
            }
        }
    }

    /// Ends it as unknown after a time in which it has come to no end, if `condition` holds then.
    pub(super) fn lapse(
        self: &Arc<Self>,
        after: Duration,
        condition: fn(&TaskStatus) -> bool,
        cause: &'static str,
    ) {
        let mut watched = self.watch();
        let entry = Arc::downgrade(self);
        tokio::spawn(async move {
            let ended = watched.wait_for(|state| state.status.is_end());
            if timeout(after, ended).await.is_err()
                && let Some(entry) = entry.upgrade()
            {
                entry.set_if(condition, TaskStatus::Unknown(cause.to_owned()));
            }
        });
    }
}

/// The tracked tasks that have a handle.
#[derive(Debug)]
struct Table {
    most: usize,
    state: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<String, Arc<Entry>>,
    /// The id of the last task of each unique key, and of each queue.
    by_key: HashMap<(String, String), String>,
    closed: bool,
}

impl Table {
    fn state(&self) -> MutexGuard<'_, Entries> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, cause: &str) {
        let lost: Vec<_> = self.state().by_id.values().cloned().collect();
        for entry in lost {
            entry.set(TaskStatus::Unknown(cause.to_owned()));
        }
    }
}

/// Hears of the tracked tasks of one submitter, until it is dropped.
#[derive(Debug)]
pub(super) struct Tracker {
    table: Arc<Table>,
    address: ReplyAddress,
    _hearing: DropGuard,
}

impl Tracker {
    pub(super) async fn open(
        transport: &Arc<dyn Transport>,
        publisher: &Arc<dyn Publisher>,
        naming: &Naming,
        limits: Limits,
        most: usize,
    ) -> Result<Self> {
        let id = transport.env().new_id().to_string();
        // Before the replies, so that no loss of them is missed.
        let events = transport.events();
        let options = ReplyOptions::new(naming.reply_queue("tasks", &id));
        let replies = transport.replies(options).await?;
        let address = replies.address().clone();
        let table = Arc::new(Table { most, state: Mutex::default() });
        let ended = CancellationToken::new();
        let hearing = hear(replies, events, Arc::clone(&table), Arc::clone(publisher), limits);
        let until = ended.clone();
        tokio::spawn(async move { until.run_until_cancelled_owned(hearing).await });
        Ok(Self { table, address, _hearing: ended.drop_guard() })
    }

    /// Where reports go.
    pub(super) async fn address(&self) -> Result<Arc<str>> {
        self.address.get().await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.table.state().closed
    }

    /// Keeps a task until its [`Kept`] is dropped; nothing for one whose unique key another has that
    /// has not ended.
    pub(super) fn keep(
        &self,
        id: &str,
        queue: &str,
        key: Option<&str>,
        exchange: String,
    ) -> Result<Option<Kept>> {
        let mut entries = self.table.state();
        if entries.closed {
            let what = "the reply queue is gone; submit it again";
            return Err(Error::new(ErrorKind::Unavailable, "submit", what));
        }
        let key = key.map(|key| (queue.to_owned(), key.to_owned()));
        if let Some(key) = &key
            && let Some(other) = entries.by_key.get(key)
            && let Some(other) = entries.by_id.get(other)
            && !other.state.borrow().status.is_end()
        {
            return Ok(None);
        }
        if entries.by_id.len() >= self.table.most {
            let what = "too many tracked tasks have a handle; drop some, or track fewer";
            return Err(Error::new(ErrorKind::Rejected, "submit", what)
                .with_context("handles", self.table.most.to_string()));
        }
        let entry = Arc::new(Entry::new(exchange, TaskStatus::Queued));
        entries.by_id.insert(id.to_owned(), Arc::clone(&entry));
        if let Some(key) = &key {
            entries.by_key.insert(key.clone(), id.to_owned());
        }
        Ok(Some(Kept { table: Arc::clone(&self.table), id: id.to_owned(), key, entry }))
    }
}

/// A tracked task in its table, which it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    table: Arc<Table>,
    id: String,
    key: Option<(String, String)>,
    pub(super) entry: Arc<Entry>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut entries = self.table.state();
        entries.by_id.remove(&self.id);
        if let Some(key) = &self.key
            && entries.by_key.get(key) == Some(&self.id)
        {
            entries.by_key.remove(key);
        }
    }
}

/// Hands reports to their tasks until the consumer ends.
async fn hear(
    mut replies: Replies,
    mut events: BoxStream<'static, TransportEvent>,
    table: Arc<Table>,
    publisher: Arc<dyn Publisher>,
    limits: Limits,
) {
    let mut listening = true;
    let cause = loop {
        tokio::select! {
            // What has arrived is handed out before a loss ends the rest.
            biased;
            report = replies.recv() => match report {
                Some(Ok(delivery)) => {
                    take(&table, &publisher, delivery.envelope(), limits);
                    delivery.ack();
                }
                Some(Err(error)) => break error.to_string(),
                None => break "the transport was closed".to_owned(),
            },
            event = events.next(), if listening => match event {
                Some(TransportEvent::Lost { cause }) => {
                    table.lose(&format!("the connection was lost: {cause}"));
                }
                // What was submitted before the queue of reports was back.
                Some(TransportEvent::Restored { .. } | TransportEvent::Missed { .. }) => {
                    table.lose("the connection was lost while it was submitted");
                }
                Some(_) => {}
                None => listening = false,
            },
        }
    };
    tracing::debug!(%cause, "no more reports of tasks");
    table.state().closed = true;
    table.lose(&cause);
}

fn take(table: &Table, publisher: &Arc<dyn Publisher>, envelope: &Arc<Envelope>, limits: Limits) {
    let message = &envelope.message;
    if message.message_type.as_deref() != Some(REPORT) {
        return;
    }
    let Some(id) = message.correlation_id.as_deref() else { return };
    let Some(entry) = table.state().by_id.get(id).cloned() else { return };
    match report::decode(message, limits) {
        Ok(heard) => {
            let begins = matches!(heard, Heard::Status(_, TaskStatus::Running { .. }));
            entry.hear(heard, envelope);
            // Its worker began to listen after the others were told.
            if begins && entry.is_called_off() {
                let cancel = control::cancel(entry.exchange.clone(), id.to_owned());
                let publisher = Arc::clone(publisher);
                tokio::spawn(async move {
                    if let Err(error) = publisher.send(cancel).await.map(drop) {
                        tracing::debug!(%error, "a worker could not be told");
                    }
                });
            }
        }
        Err(error) => tracing::warn!(%error, task = id, "a report cannot be read"),
    }
}
