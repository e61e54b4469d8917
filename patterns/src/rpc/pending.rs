//! The calls that wait for their replies.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use postrider_core::Envelope;
use tokio::sync::oneshot;

use super::RpcError;

/// The reply to a call, or why there will be none.
pub(super) type Answer = Result<Arc<Envelope>, Arc<str>>;

/// A bounded table of calls by correlation id. A correlation id is never used twice.
#[derive(Debug)]
pub(super) struct Pending {
    state: Mutex<State>,
    max_in_flight: usize,
    late_replies: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    calls: HashMap<Arc<str>, Call>,
    closed: Option<Arc<str>>,
}

#[derive(Debug)]
struct Call {
    answer: oneshot::Sender<Answer>,
    sent: bool,
}

impl Pending {
    pub(super) fn new(max_in_flight: usize) -> Self {
        Self { state: Mutex::default(), max_in_flight, late_replies: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a call.
    pub(super) fn register(self: &Arc<Self>, id: &str) -> Result<Ticket, RpcError> {
        let mut state = self.state();
        if let Some(cause) = &state.closed {
            return Err(RpcError::Transport(
                postrider_core::Error::new(
                    postrider_core::ErrorKind::Closed,
                    "call",
                    "the client takes no replies any more",
                )
                .with_context("cause", cause.to_string()),
            ));
        }
        if state.calls.len() >= self.max_in_flight {
            return Err(RpcError::Throttled {
                reason: format!("this client has {} calls in flight", self.max_in_flight),
            });
        }
        let (answer, receiver) = oneshot::channel();
        let call = Call { answer, sent: false };
        let id: Arc<str> = id.into();
        state.calls.insert(Arc::clone(&id), call);
        Ok(Ticket { pending: Arc::clone(self), id, receiver })
    }

    /// Hands a reply to its call; without one, it came too late.
    pub(super) fn answer(&self, envelope: &Arc<Envelope>) {
        let id = envelope.message.correlation_id.as_deref();
        let call = id.and_then(|id| self.state().calls.remove(id));
        let late = match call {
            Some(call) => call.answer.send(Ok(Arc::clone(envelope))).is_err(),
            None => true,
        };
        if late {
            self.late_replies.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(correlation_id = ?id, "late reply dropped");
        }
    }

    /// Ends every call that was sent: its reply may be lost. What is not sent yet may still be.
    pub(super) fn lose(&self, cause: &str) {
        let cause: Arc<str> = cause.into();
        let lost: Vec<Call> =
            self.state().calls.extract_if(|_id, call| call.sent).map(|(_id, call)| call).collect();
        for call in lost {
            let _given_up = call.answer.send(Err(Arc::clone(&cause)));
        }
    }

    /// Ends every call and takes no more.
    pub(super) fn close(&self, cause: &str) {
        let cause: Arc<str> = cause.into();
        let calls = {
            let mut state = self.state();
            state.closed = Some(Arc::clone(&cause));
            std::mem::take(&mut state.calls)
        };
        for call in calls.into_values() {
            let _given_up = call.answer.send(Err(Arc::clone(&cause)));
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.state().calls.len()
    }

    pub(super) fn late_replies(&self) -> u64 {
        self.late_replies.load(Ordering::Relaxed)
    }
}

/// One call's place in the table; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Ticket {
    pending: Arc<Pending>,
    id: Arc<str>,
    receiver: oneshot::Receiver<Answer>,
}

impl Ticket {
    /// The request is on its way: from now on a lost connection makes the outcome unknown.
    pub(super) fn sent(&self) {
        if let Some(call) = self.pending.state().calls.get_mut(&*self.id) {
            call.sent = true;
        }
    }

    /// Waits for the answer. Cancellation safe.
    pub(super) async fn answer(&mut self) -> Answer {
        match (&mut self.receiver).await {
            Ok(answer) => answer,
            Err(_) => Err("the client ended first".into()),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pending.state().calls.remove(&*self.id);
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::{Address, Message};

    use super::*;

    fn reply(id: &'static str) -> Arc<Envelope> {
        let message = Message::new("").with_correlation_id(id);
        Arc::new(Envelope::new(Address::queue("replies"), message))
    }

    #[tokio::test]
    async fn a_call_given_up_leaves_nothing_and_its_reply_is_late() {
        let pending = Arc::new(Pending::new(1));
        let ticket = pending.register("1").unwrap();
        assert!(matches!(pending.register("2"), Err(RpcError::Throttled { .. })));
        drop(ticket);
        assert_eq!(pending.in_flight(), 0);
        pending.answer(&reply("1"));
        assert_eq!(pending.late_replies(), 1);

        let mut ticket = pending.register("2").unwrap();
        pending.answer(&reply("2"));
        assert!(ticket.answer().await.is_ok());
        assert_eq!(pending.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_lost_connection_ends_what_was_sent_and_a_close_ends_all() {
        let pending = Arc::new(Pending::new(10));
        let mut sent = pending.register("1").unwrap();
        let mut waiting = pending.register("2").unwrap();
        sent.sent();
        pending.lose("gone");
        assert_eq!(sent.answer().await.unwrap_err().as_ref(), "gone");
        assert_eq!(pending.in_flight(), 1);
        pending.close("closed");
        assert_eq!(waiting.answer().await.unwrap_err().as_ref(), "closed");
        assert!(pending.register("3").is_err());
    }
}
