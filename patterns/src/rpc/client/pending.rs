//! The calls that wait for their replies.

use std::{
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use postrider_core::Envelope;
use tokio::sync::{mpsc, oneshot};

use crate::rpc::{RpcError, control};

/// A reply to a call, or why there will be none.
pub(super) type Answer = Result<Arc<Envelope>, Arc<str>>;

/// A bounded table of calls.
///
/// A call has a slot, and its correlation id names the client, the slot and how often the slot was
/// taken before. So a reply finds its call without a search, and a late one never another call that
/// has the slot by then.
#[derive(Debug)]
pub(super) struct Pending {
    client: Box<str>,
    state: Mutex<State>,
    max_in_flight: usize,
    late_replies: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Slot>,
    free: Vec<usize>,
    closed: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// How often it was given back.
    generation: u64,
    call: Option<Call>,
}

#[derive(Debug)]
struct Call {
    answers: Answers,
    sent: bool,
}

/// Where the replies to a call go.
#[derive(Debug)]
enum Answers {
    One(oneshot::Sender<Answer>),
    Many(mpsc::Sender<Answer>),
}

impl Answers {
    /// Whether somebody was there to take it.
    fn send(self, answer: Answer) -> bool {
        match self {
            Self::One(sender) => sender.send(answer).is_ok(),
            Self::Many(sender) => sender.try_send(answer).is_ok(),
        }
    }
}

impl State {
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn call(&mut self, place: Place) -> Option<&mut Call> {
        let slot = self.slots.get_mut(place.slot)?;
        slot.call.as_mut().filter(|_| slot.generation == place.generation)
    }

    /// Gives a slot back, unless that was done before.
    fn take(&mut self, place: Place) -> Option<Call> {
        self.call(place)?;
        let slot = &mut self.slots[place.slot];
        slot.generation += 1;
        self.free.push(place.slot);
        slot.call.take()
    }
}

/// One use of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: usize,
    generation: u64,
}

impl Pending {
    /// A table whose correlation ids begin with `client`, which no other client has.
    pub(super) fn new(client: &str, max_in_flight: usize) -> Self {
        Self {
            client: client.into(),
            state: Mutex::default(),
            max_in_flight,
            late_replies: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a call with one reply.
    pub(super) fn register(self: &Arc<Self>) -> Result<(Ticket, Reply), RpcError> {
        let (sender, receiver) = oneshot::channel();
        Ok((self.enter(Answers::One(sender))?, Reply(receiver)))
    }

    /// Makes room for a call with several replies, `most` of which may wait to be read.
    pub(super) fn register_many(
        self: &Arc<Self>,
        most: usize,
    ) -> Result<(Ticket, Replies), RpcError> {
        let (sender, receiver) = mpsc::channel(most.max(1));
        Ok((self.enter(Answers::Many(sender))?, Replies(receiver)))
    }

    fn enter(self: &Arc<Self>, answers: Answers) -> Result<Ticket, RpcError> {
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
        if state.in_flight() >= self.max_in_flight {
            return Err(RpcError::Throttled {
                reason: format!("this client has {} calls in flight", self.max_in_flight),
            });
        }
        let slot = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::default());
            state.slots.len() - 1
        });
        let place = Place { slot, generation: state.slots[slot].generation };
        state.slots[slot].call = Some(Call { answers, sent: false });
        Ok(Ticket { pending: Arc::clone(self), place, reply_to: OnceLock::new() })
    }

    fn id(&self, place: Place) -> String {
        let Place { slot, generation } = place;
        // Two dots, and two numbers that are short in all but the longest lives.
        let mut id = String::with_capacity(self.client.len() + 16);
        // Writing to a string does not fail.
        let _written = write!(id, "{}.{slot}.{generation}", self.client);
        id
    }

    fn place(&self, id: &str) -> Option<Place> {
        let place = id.strip_prefix(&*self.client)?.strip_prefix('.')?;
        let (slot, generation) = place.split_once('.')?;
        Some(Place { slot: slot.parse().ok()?, generation: generation.parse().ok()? })
    }

    /// Hands a reply to its call, and says whether there is one; without, it came too late.
    pub(super) fn answer(&self, envelope: &Arc<Envelope>) -> bool {
        let id = envelope.message.correlation_id.as_deref();
        let answers = id.and_then(|id| self.place(id)).and_then(|place| {
            let mut state = self.state();
            match &state.call(place)?.answers {
                Answers::Many(sender) => Some(Answers::Many(sender.clone())),
                Answers::One(_) => state.take(place).map(|call| call.answers),
            }
        });
        if let Some(Answers::Many(waiting)) = &answers
            && waiting.capacity() < waiting.max_capacity()
            && control::is_sign_of_life(&envelope.message)
        {
            // What waits to be read is a sign of life itself, and keeps its room.
            return true;
        }
        let taken = answers.is_some_and(|answers| answers.send(Ok(Arc::clone(envelope))));
        if !taken {
            self.late_replies.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(correlation_id = ?id, "late reply dropped");
        }
        taken
    }

    /// Ends every call that was sent: its reply may be lost. What is not sent yet may still be.
    pub(super) fn lose(&self, cause: &str) {
        self.end(cause, |call| call.sent);
    }

    /// Ends every call and takes no more.
    pub(super) fn close(&self, cause: &str) {
        self.state().closed = Some(cause.into());
        self.end(cause, |_call| true);
    }

    fn end(&self, cause: &str, which: impl Fn(&Call) -> bool) {
        let cause: Arc<str> = cause.into();
        let mut state = self.state();
        let places: Vec<_> = state
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.call.as_ref().is_some_and(&which))
            .map(|(slot, taken)| Place { slot, generation: taken.generation })
            .collect();
        let ended: Vec<_> = places.into_iter().filter_map(|place| state.take(place)).collect();
        drop(state);
        for call in ended {
            let _given_up = call.answers.send(Err(Arc::clone(&cause)));
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.state().in_flight()
    }

    pub(super) fn late_replies(&self) -> u64 {
        self.late_replies.load(Ordering::Relaxed)
    }
}

/// One call's place in the table; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Ticket {
    pending: Arc<Pending>,
    place: Place,
    reply_to: OnceLock<Arc<str>>,
}

impl Ticket {
    /// The request is about to be sent, to be answered there.
    pub(super) fn answered_at(&self, reply_to: Arc<str>) {
        // It is sent once.
        let _first = self.reply_to.set(reply_to);
    }

    /// Where the replies go; `None` while nothing was sent.
    pub(super) fn reply_to(&self) -> Option<&Arc<str>> {
        self.reply_to.get()
    }

    /// The call's correlation id.
    pub(super) fn id(&self) -> String {
        self.pending.id(self.place)
    }

    /// The request is on its way: from now on a lost connection makes the outcome unknown.
    pub(super) fn sent(&self) {
        if let Some(call) = self.pending.state().call(self.place) {
            call.sent = true;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pending.state().take(self.place);
    }
}

/// The one reply to a call.
#[derive(Debug)]
pub(super) struct Reply(oneshot::Receiver<Answer>);

impl Reply {
    /// Waits for it. Cancellation safe.
    pub(super) async fn recv(&mut self) -> Answer {
        (&mut self.0).await.unwrap_or_else(|_ended| Err("the client ended first".into()))
    }
}

/// The replies to a call, as many as there will be.
#[derive(Debug)]
pub(super) struct Replies(mpsc::Receiver<Answer>);

impl Replies {
    /// The next one. Cancellation safe.
    pub(super) async fn recv(&mut self) -> Answer {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        // A cause that found no room is told by the end itself.
        let ended = || Err("the connection was lost, or the client ended".into());
        self.0.poll_recv(cx).map(|answer| answer.unwrap_or_else(ended))
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::{Address, Message};

    use super::*;

    fn reply(id: String) -> Arc<Envelope> {
        let message = Message::new("").with_correlation_id(id);
        Arc::new(Envelope::new(Address::queue("replies"), message))
    }

    fn pending(max_in_flight: usize) -> Arc<Pending> {
        Arc::new(Pending::new("me", max_in_flight))
    }

    #[tokio::test]
    async fn a_call_given_up_leaves_nothing_and_its_reply_is_late() {
        let pending = pending(1);
        let (ticket, _) = pending.register().unwrap();
        let first = ticket.id();
        assert!(matches!(pending.register(), Err(RpcError::Throttled { .. })));
        drop(ticket);
        assert_eq!(pending.in_flight(), 0);
        pending.answer(&reply(first.clone()));
        assert_eq!(pending.late_replies(), 1);

        // The next call has the same slot, and does not get what was meant for the first.
        let (ticket, mut answer) = pending.register().unwrap();
        pending.answer(&reply(first));
        assert_eq!(pending.late_replies(), 2);
        assert!(matches!(answer.0.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        pending.answer(&reply(ticket.id()));
        assert!(answer.recv().await.is_ok());
        assert_eq!(pending.in_flight(), 0);
        // A second reply is late, and its slot is not given back twice.
        pending.answer(&reply(ticket.id()));
        drop(ticket);
        assert_eq!((pending.in_flight(), pending.late_replies()), (0, 3));
    }

    #[test]
    fn what_is_no_id_of_ours_is_late() {
        let pending = pending(1);
        let (ticket, _answer) = pending.register().unwrap();
        let id = ticket.id();
        for odd in
            ["", "me", "me.", "me.0", "me.0.x", "me.7.0", "you.0.0", "me.0.18446744073709551616"]
        {
            pending.answer(&reply(odd.to_owned()));
        }
        assert_eq!((pending.in_flight(), pending.late_replies()), (1, 8));
        assert_eq!(id, "me.0.0");
    }

    #[tokio::test]
    async fn a_lost_connection_ends_what_was_sent_and_a_close_ends_all() {
        let pending = pending(10);
        let (sent, mut lost) = pending.register().unwrap();
        let (_waiting, mut closed) = pending.register().unwrap();
        sent.sent();
        pending.lose("gone");
        assert_eq!(lost.recv().await.unwrap_err().as_ref(), "gone");
        assert_eq!(pending.in_flight(), 1);
        pending.close("closed");
        assert_eq!(closed.recv().await.unwrap_err().as_ref(), "closed");
        assert!(pending.register().is_err());
    }

    #[tokio::test]
    async fn a_call_with_many_replies_gets_them_in_order_until_it_is_given_up() {
        let pending = pending(1);
        let (ticket, mut replies) = pending.register_many(2).unwrap();
        for _ in 0..3 {
            pending.answer(&reply(ticket.id()));
        }
        // The third found no room.
        assert_eq!((pending.in_flight(), pending.late_replies()), (1, 1));
        assert!(replies.recv().await.is_ok());
        assert!(replies.recv().await.is_ok());
        ticket.sent();
        pending.lose("gone");
        assert_eq!(replies.recv().await.unwrap_err().as_ref(), "gone");
        assert_eq!(pending.in_flight(), 0);
    }
}
