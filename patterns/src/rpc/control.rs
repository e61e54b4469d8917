//! What clients tell servers beside requests: that a call was given up, and how far a stream may go.

use std::{hash::Hash, sync::Arc, time::Duration};

use postrider_core::{
    Address, Binding, Envelope, Exchange, HeaderValue, Message, Overflow, Queue, Topology,
};

use crate::{headers, naming::Naming};

/// The type of a message that says that a call was given up.
const CANCEL: &str = "postrider.cancel";

/// The type of a message that says nothing: whether it arrives is the answer.
const HELLO: &str = "postrider.hello";

/// The type of a message that says how far a stream may go.
const CREDIT: &str = "postrider.credit";

/// How long such a message is worth something.
const TTL: Duration = Duration::from_secs(60);

/// How many such messages may wait for one server.
const MOST_WAITING: u64 = 10_000;

/// The routing keys of a service's exchange.
pub(super) const KEY_ALL: &str = "all";
const KEY_CANCEL: &str = "cancel";

/// The exchange that leads to every server of `service`.
pub(super) fn exchange(naming: &Naming, service: &str) -> Topology {
    Topology::new().exchange(Exchange::direct(naming.rpc_exchange(service)))
}

/// What one server has for itself: a queue for requests to all servers, one for control messages.
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) all: String,
    pub(super) control: String,
}

impl Instance {
    pub(super) fn new(naming: &Naming, service: &str, id: String) -> Self {
        let queue = |purpose| naming.rpc_instance_queue(service, purpose, &id);
        Self { all: queue("all"), control: queue("control"), id }
    }

    pub(super) fn topology(&self, naming: &Naming, service: &str, max_waiting: u64) -> Topology {
        let name = naming.rpc_exchange(service);
        let all = Queue::exclusive(self.all.clone())
            .auto_delete()
            .with_max_length(max_waiting)
            .with_overflow(Overflow::RejectPublish);
        // What is told is a favour; the oldest is worth the least.
        let control =
            Queue::exclusive(self.control.clone()).auto_delete().with_max_length(MOST_WAITING);
        exchange(naming, service)
            .queue(all)
            .queue(control)
            .bind(Binding::queue(name.clone(), self.all.clone(), KEY_ALL))
            .bind(Binding::queue(name, self.control.clone(), KEY_CANCEL))
    }
}

/// Which call a control message or a request is about: its correlation id, and where its replies go.
///
/// It is the message itself, so that to remember it costs nothing.
#[derive(Debug, Clone)]
pub(super) struct CallKey(Arc<Envelope>);

impl CallKey {
    /// `None` for a message that tells no call from another.
    pub(super) fn of(envelope: &Arc<Envelope>) -> Option<Self> {
        let message = &envelope.message;
        (message.correlation_id.is_some() && message.reply_to.is_some())
            .then(|| Self(Arc::clone(envelope)))
    }

    /// The same without the rest of its message, to be remembered for long.
    pub(super) fn alone(&self) -> Self {
        let Envelope { address, message, .. } = &*self.0;
        let mut ids = Message::new("");
        ids.correlation_id.clone_from(&message.correlation_id);
        ids.reply_to.clone_from(&message.reply_to);
        Self(Arc::new(Envelope::new(address.clone(), ids)))
    }

    fn parts(&self) -> (Option<&str>, Option<&str>) {
        let message = &self.0.message;
        (message.correlation_id.as_deref(), message.reply_to.as_deref())
    }
}

impl PartialEq for CallKey {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for CallKey {}

impl Hash for CallKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

/// What a control message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    GivenUp,
    /// So many frames may be sent, counted from the start of the stream.
    Credit(u64),
}

impl Told {
    pub(super) fn read(message: &Message) -> Option<Self> {
        match message.message_type.as_deref()? {
            CANCEL => Some(Self::GivenUp),
            CREDIT => credit_of(message).map(Self::Credit),
            _ => None,
        }
    }
}

/// The credit in a request for a stream, or in a control message.
pub(super) fn credit_of(message: &Message) -> Option<u64> {
    let credit = message.headers.get(headers::STREAM_CREDIT).and_then(HeaderValue::as_int)?;
    u64::try_from(credit).ok()
}

pub(super) fn count_header(credit: u64) -> HeaderValue {
    HeaderValue::Int(i64::try_from(credit).unwrap_or(i64::MAX))
}

/// Whether a message is a frame of a stream that only says that its server is there.
pub(super) fn is_sign_of_life(message: &Message) -> bool {
    message.headers.get(headers::STREAM_RUN).is_some()
        && message.headers.get(headers::STREAM_SEQ).is_none()
}

fn about(kind: &'static str, correlation_id: String, reply_to: &str) -> Message {
    Message::new("")
        .with_type(kind)
        .with_correlation_id(correlation_id)
        .with_reply_to(reply_to.to_owned())
        .with_ttl(TTL)
        .transient()
}

/// To every server of a service, because a client does not know which of them has its request.
pub(super) fn cancel(exchange: String, correlation_id: String, reply_to: &str) -> Envelope {
    Envelope::new(Address::exchange(exchange, KEY_CANCEL), about(CANCEL, correlation_id, reply_to))
}

/// To every server of a service, by which a client finds out whether there is one.
pub(super) fn hello(exchange: String) -> Envelope {
    let message = Message::new("").with_type(HELLO).with_ttl(TTL).transient();
    Envelope::new(Address::exchange(exchange, KEY_CANCEL), message)
}

/// To the server whose stream nobody reads.
pub(super) fn cancel_at(control_queue: String, correlation_id: String, reply_to: &str) -> Envelope {
    Envelope::new(Address::queue(control_queue), about(CANCEL, correlation_id, reply_to))
}

/// To the server that sends a stream.
pub(super) fn credit(
    control_queue: String,
    correlation_id: String,
    reply_to: &str,
    credit: u64,
) -> Envelope {
    let message = about(CREDIT, correlation_id, reply_to)
        .with_header(headers::STREAM_CREDIT, count_header(credit));
    Envelope::new(Address::queue(control_queue), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_say_which_call_they_are_about() {
        let request = Message::new("").with_correlation_id("7").with_reply_to("mine");
        let request = Arc::new(Envelope::new(Address::queue("rpc_math"), request));
        let cancel = cancel("rpc_math".into(), "7".into(), "mine");
        assert_eq!(Told::read(&cancel.message), Some(Told::GivenUp));
        assert_eq!(CallKey::of(&request), CallKey::of(&Arc::new(cancel)));
        let credit = credit("rpc_math.control.1".into(), "7".into(), "mine", 40);
        assert_eq!(Told::read(&credit.message), Some(Told::Credit(40)));
        assert_eq!(CallKey::of(&request), CallKey::of(&Arc::new(credit)));
        // A request is no control message, and another client may use the same id.
        assert_eq!(Told::read(&request.message), None);
        assert_eq!(Told::read(&hello("rpc_math".into()).message), None);
        let other = Message::new("").with_correlation_id("7").with_reply_to("theirs");
        let other = Arc::new(Envelope::new(Address::queue("rpc_math"), other));
        assert_ne!(CallKey::of(&request), CallKey::of(&other));
    }
}
