//! The way of what a worker has to say to the submitters of its tasks.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use postrider_core::{
    Address, Confirm, DeliveryInfo, Env, Envelope, Error, ErrorKind, Message, Publisher,
    PublisherExt, Result,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::report::{self, REPORT, Said, within_bounds};
use crate::{
    codec::{Codec, CodecError, Limits},
    consuming::{Count, Counters},
    handler::{HandlerError, codes},
};

/// How much of what may be lost waits to be sent. More is lost.
const MOST_WAITING: usize = 1_024;

/// How long the end of a task waits that the broker did not take, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// At most four reports of progress a second.
const BETWEEN: Duration = Duration::from_millis(250);

/// What all tasks of one worker share.
#[derive(Debug)]
pub(super) struct Reports {
    publisher: Arc<dyn Publisher>,
    env: Env,
    limits: Limits,
    counters: Arc<Counters>,
    news: mpsc::Sender<Envelope>,
}

/// Whether the submitter of a task was told its end as far as that can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Done,
    /// The transport was closed first.
    Not,
}

impl Reports {
    /// A task of its own sends what may be lost, until this is dropped.
    pub(super) fn new(
        publisher: Arc<dyn Publisher>,
        env: Env,
        limits: Limits,
        counters: Arc<Counters>,
    ) -> Self {
        let (news, mut waiting) = mpsc::channel(MOST_WAITING);
        let sending = Arc::clone(&publisher);
        tokio::spawn(async move {
            while let Some(envelope) = waiting.recv().await {
                // Whether it arrives is not waited for.
                if let Err(error) = sending.send(envelope).await.map(drop::<Confirm>) {
                    tracing::debug!(%error, "a report was not sent");
                }
            }
        });
        Self { publisher, env, limits, counters, news }
    }

    /// Who is told of a task; nobody where it says no address or has no id.
    pub(super) fn of(
        self: &Arc<Self>,
        message: &Message,
        info: &DeliveryInfo,
        codec: Codec,
    ) -> Option<Reporter> {
        let (id, reply_to) = (message.message_id.as_deref()?, message.reply_to.as_deref()?);
        Some(Reporter {
            reports: Arc::clone(self),
            id: id.into(),
            reply_to: reply_to.into(),
            codec,
            attempt: info.attempt,
        })
    }
}

/// Reports of one delivery of a tracked task.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    reports: Arc<Reports>,
    id: Arc<str>,
    reply_to: Arc<str>,
    codec: Codec,
    attempt: u32,
}

impl Reporter {
    fn envelope(&self, body: Bytes) -> Envelope {
        let env = &self.reports.env;
        let message = Message::new(body)
            .with_content_type(self.codec.content_type())
            .with_type(REPORT)
            .with_message_id(env.new_id().to_string())
            .with_correlation_id(self.id.to_string())
            .with_timestamp(env.timestamp())
            // It is of no use after a restart of the broker: its queue is gone.
            .transient();
        Envelope::new(Address::queue(self.reply_to.to_string()), message)
    }

    /// Says what may be lost.
    pub(super) fn say(&self, said: Said<'_>) {
        match report::encode(self.codec, self.reports.limits, self.attempt, said) {
            Ok(body) => {
                if self.reports.news.try_send(self.envelope(body)).is_err() {
                    tracing::debug!(task = %self.id, "a report is lost: too many wait");
                }
            }
            Err(error) => tracing::debug!(%error, "a report cannot be written"),
        }
    }

    /// Says how the task ended, and waits until the broker has it, however long that takes. A
    /// submitter that is gone is no failure. Dropped, it may have said it.
    pub(super) async fn end(&self, said: Said<'_>) -> Told {
        match report::encode(self.codec, self.reports.limits, self.attempt, said) {
            Ok(body) => match self.publish(body).await {
                Ok(()) => Told::Done,
                Err(error) => self.failed(&error),
            },
            Err(error) => {
                self.reports.counters.add(Count::RepliesDropped);
                tracing::error!(%error, "the end of a task cannot be written");
                Told::Done
            }
        }
    }

    /// Says that the task is done, by a report that has its result; else as [`end`](Self::end). Of
    /// a result that cannot be sent it says so.
    pub(super) async fn done(&self, report: Result<Bytes, CodecError>) -> Told {
        let refused = match report {
            Ok(body) => match self.publish(body).await {
                Ok(()) => return Told::Done,
                Err(refused) if refused.kind() == ErrorKind::Invalid => refused.to_string(),
                Err(error) => return self.failed(&error),
            },
            Err(error) => error.to_string(),
        };
        let why = format!("the task is done, and its result cannot be sent: {refused}");
        let error = HandlerError::internal(why).with_code(codes::RESULT_UNSENDABLE);
        self.end(Said::Failed(&error)).await
    }

    /// The report that the task is done, without a result.
    pub(super) fn done_without_result(&self) -> Result<Bytes, CodecError> {
        report::encode_done::<()>(self.codec, self.reports.limits, self.attempt, None)
    }

    /// Publishes until the broker has it, because the other way is to run the task again. Twice is no
    /// harm: the first one counts.
    async fn publish(&self, body: Bytes) -> Result<()> {
        let envelope = self.envelope(body);
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(error) = self.reports.publisher.publish(envelope.clone()).await else {
                return Ok(());
            };
            match error.kind() {
                ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::Unknown => {
                    tracing::warn!(task = %self.id, %error, "the end of a task is not reported yet");
                }
                _ => return Err(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn failed(&self, error: &Error) -> Told {
        if error.kind() == ErrorKind::Closed {
            return Told::Not;
        }
        // Nobody waits for it, or its queue or the broker will never take it.
        self.reports.counters.add(Count::RepliesDropped);
        tracing::debug!(task = %self.id, %error, "nobody hears the end of a task");
        Told::Done
    }

    /// For the handler's own word.
    pub(super) fn progress(&self) -> ProgressReports {
        ProgressReports { reporter: self.clone(), last: Arc::default() }
    }
}

/// How a handler says how far it is.
#[derive(Debug, Clone)]
pub(crate) struct ProgressReports {
    reporter: Reporter,
    last: Arc<Mutex<Option<Instant>>>,
}

impl ProgressReports {
    pub(crate) fn report(&self, fraction: f64, message: &str) {
        let now = self.reporter.reports.env.now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| now.duration_since(last) >= BETWEEN) {
            *last = Some(now);
            drop(last);
            self.reporter.say(Said::Progress(within_bounds(fraction), message));
        }
    }
}
