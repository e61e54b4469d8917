use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use postrider_core::{Address, DeliveryInfo, Env, Envelope, HeaderValue, Message};
use tokio_util::sync::CancellationToken;

use crate::{headers, trace_context::TraceContext, work_queue::ProgressReports};

/// The message that a handler works on, and what surrounds it. Cloning is cheap.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    envelope: Arc<Envelope>,
    info: DeliveryInfo,
    env: Env,
    deadline: Option<DateTime<Utc>>,
    /// Of all handlers; one of them must not cancel the others.
    given_up: CancellationToken,
    /// Its own, made when it asks.
    cancellation: OnceLock<CancellationToken>,
    /// Of a task whose submitter wants to hear of it.
    progress: Option<ProgressReports>,
    /// Of this try, where it is traced.
    span: OnceLock<TraceContext>,
}

impl Context {
    pub(crate) fn new(
        envelope: Arc<Envelope>,
        info: DeliveryInfo,
        env: Env,
        given_up: &CancellationToken,
    ) -> Self {
        let deadline = envelope.message.deadline;
        Self::until(deadline, envelope, info, env, given_up)
    }

    /// A context whose deadline is another than the message's own.
    pub(crate) fn until(
        deadline: Option<DateTime<Utc>>,
        envelope: Arc<Envelope>,
        info: DeliveryInfo,
        env: Env,
        given_up: &CancellationToken,
    ) -> Self {
        let (given_up, cancellation) = (given_up.clone(), OnceLock::new());
        let (progress, span) = (None, OnceLock::new());
        Self(Arc::new(Inner {
            envelope,
            info,
            env,
            deadline,
            given_up,
            cancellation,
            progress,
            span,
        }))
    }

    /// The same, just made, whose progress is reported.
    pub(crate) fn reporting(mut self, progress: Option<ProgressReports>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.progress = progress;
        }
        self
    }

    pub(crate) fn envelope(&self) -> &Arc<Envelope> {
        &self.0.envelope
    }

    /// Tells the handler that nobody waits for it any more.
    pub(crate) fn cancel(&self) {
        self.cancellation().cancel();
    }

    /// Whether two contexts are of one and the same delivery.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The message as it came: body, properties and headers.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.0.envelope.message
    }

    /// Where it was published to.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.0.envelope.address
    }

    /// The queue it was taken from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.0.info.queue
    }

    /// The how-manieth delivery of this message it is, from 1; see
    /// [`DeliveryInfo::attempt`].
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.0.info.attempt
    }

    /// The message's id; a plain client may send none.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        self.message().message_id.as_deref()
    }

    /// The correlation id of the message.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.message().correlation_id.as_deref()
    }

    /// The conversation that the message belongs to, which everything sent from this context
    /// belongs to as well: the header `postrider-conversation-id`, else the correlation id, else
    /// the message id.
    #[must_use]
    pub fn conversation_id(&self) -> Option<&str> {
        self.message()
            .headers
            .get(headers::CONVERSATION_ID)
            .and_then(HeaderValue::as_text)
            .or_else(|| self.correlation_id())
            .or_else(|| self.message_id())
    }

    /// When the answer is of no use any more.
    #[must_use]
    pub fn deadline(&self) -> Option<DateTime<Utc>> {
        self.0.deadline
    }

    /// How long until the [`deadline`](Self::deadline); zero when it has passed.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.deadline()? - self.0.env.timestamp();
        Some(left.to_std().unwrap_or(Duration::ZERO))
    }

    /// How long until an answer has to be on its way, to come before the deadline.
    pub(crate) fn time_to_answer(&self) -> Option<Duration> {
        self.remaining().map(|left| left - margin(left))
    }

    /// Time, randomness and identity of the transport.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.0.env
    }

    /// Cancelled when the work is of no use any more. In a server: when the caller gave up the call,
    /// or its deadline passed; the handler goes on unless it looks. Everywhere: when the handler
    /// itself is given up, because its server or worker stops; it is dropped at its next await
    /// then, and the token is for work that it started elsewhere. In a worker also when the task was
    /// [called off](crate::WorkQueue::cancel); the handler goes on unless it looks.
    #[must_use]
    pub fn cancellation(&self) -> &CancellationToken {
        self.0.cancellation.get_or_init(|| self.0.given_up.child_token())
    }

    /// Tells who tracks this task how far it is, from 0 to 1, and what it is at. It never waits and
    /// may be lost: at most four times a second are sent, and what comes between is dropped. For a
    /// message that is no tracked task it does nothing.
    pub fn progress(&self, fraction: f64, message: &str) {
        if let Some(progress) = &self.0.progress {
            progress.report(fraction, message);
        }
    }

    /// The trace that what is done for the message belongs to: with the middleware
    /// [`Trace`](crate::Trace) its span, else what the message came with.
    #[must_use]
    pub fn trace_context(&self) -> Option<TraceContext> {
        self.0.span.get().copied().or_else(|| TraceContext::of(self.message()))
    }

    /// Begins the span of this try, once.
    pub(crate) fn begin_span(&self) -> TraceContext {
        *self.0.span.get_or_init(|| match TraceContext::of(self.message()) {
            Some(parent) => parent.child(self.env()),
            None => TraceContext::new(self.env()),
        })
    }

    /// Marks `message` as part of the same trace.
    pub(crate) fn mark_traced(&self, message: &mut Message) {
        if let Some(here) = self.trace_context() {
            here.write(message);
        }
        // Without a trace of its message it says nothing.
        if TraceContext::of(self.message()).is_some() {
            TraceContext::copy_state(self.message(), message);
        }
    }

    /// Marks `message` as caused by this one and as part of its conversation and trace.
    pub(crate) fn mark_caused(&self, message: &mut Message) {
        if let Some(id) = self.message_id() {
            message.causation_id = Some(id.to_owned().into());
        }
        if let Some(id) = self.conversation_id() {
            message.correlation_id = Some(id.to_owned().into());
        }
        self.mark_traced(message);
    }
}

/// What an answer is given for its way.
fn margin(left: Duration) -> Duration {
    const MOST: Duration = Duration::from_millis(50);
    MOST.min(left / 10)
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("address", self.address())
            .field("info", &self.0.info)
            .field("message_id", &self.message_id())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_some_time_for_its_way() {
        let millis = |left| margin(Duration::from_millis(left)).as_millis();
        assert_eq!([millis(60_000), millis(500), millis(100), millis(0)], [50, 50, 10, 0]);
    }
}
