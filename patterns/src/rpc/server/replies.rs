//! The way of replies to their callers.

use std::sync::Arc;

use bytes::Bytes;
use postrider_core::{
    Address, Confirm, Env, Envelope, Error, ErrorKind, Message, Publisher, Result, Transport,
    is_reserved_name,
};

use crate::{
    codec::{Codec, Limits},
    consuming::{Count, Counters, Disposition},
    handler::{ErrorClass, HandlerError},
    headers,
    rpc::wire,
};

/// Whether a request has the reply that it can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replied {
    Done,
    Not,
}

impl Replied {
    /// After a publish that failed: whether the same reply may get through another time.
    const fn after(failure: ErrorKind) -> Self {
        match failure {
            ErrorKind::Closed
            | ErrorKind::Unavailable
            | ErrorKind::TimedOut
            | ErrorKind::Unknown
            | ErrorKind::Internal => Self::Not,
            // Nobody waits for it, or its queue or the broker will never take it.
            _ => Self::Done,
        }
    }
}

impl From<Replied> for Disposition {
    fn from(replied: Replied) -> Self {
        match replied {
            Replied::Done => Self::Ack,
            Replied::Not => Self::Release,
        }
    }
}

/// What a caller is told of a reply that cannot be a message; nothing for other failures.
pub(super) fn unsendable(failure: &Error) -> Option<HandlerError> {
    let told = || HandlerError::internal(format!("the reply cannot be sent: {failure}"));
    (failure.kind() == ErrorKind::Invalid).then(told)
}

/// Writes replies and publishes them.
#[derive(Debug)]
pub(super) struct Replies {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) env: Env,
    pub(super) limits: Limits,
    pub(super) expose_details: bool,
    pub(super) counters: Arc<Counters>,
}

impl Replies {
    /// The body and headers of a reply; nothing for an error that cannot be written.
    pub(super) fn written(
        &self,
        codec: Codec,
        outcome: Result<&Bytes, &HandlerError>,
    ) -> Option<Message> {
        let reply = match outcome {
            Ok(body) => Message::new(body.clone()),
            Err(error) => self.error(codec, error)?,
        };
        Some(reply.with_content_type(codec.content_type()))
    }

    fn error(&self, codec: Codec, error: &HandlerError) -> Option<Message> {
        let internal = error.class() == ErrorClass::Internal;
        if internal {
            tracing::error!(%error, "a request failed");
        }
        let message = if internal && !self.expose_details {
            "an internal error; the log of the service says why"
        } else {
            error.message()
        };
        match wire::encode_error(codec, self.limits, error.code(), message) {
            Ok(body) => Some(wire::mark_error(Message::new(body), codec, error)),
            Err(failed) => {
                self.counters.add(Count::RepliesDropped);
                tracing::error!(%error, %failed, "an error reply cannot be encoded");
                None
            }
        }
    }

    /// Publishes what was written and waits until the broker has it. A caller that is gone is no
    /// failure. One whose reply no broker takes, because it is too large, is told so.
    pub(super) async fn publish(&self, codec: Codec, request: &Message, reply: Message) -> Replied {
        let instance = reply.headers.get(headers::INSTANCE).cloned();
        let mut published = self.published(request, reply).await;
        if let Err(refused) = &published
            && let Some(why) = unsendable(refused)
            && let Some(mut instead) = self.written(codec, Err(&why))
        {
            if let Some(instance) = instance {
                instead.headers.set(headers::INSTANCE, instance);
            }
            published = self.published(request, instead).await;
        }
        published.map_or_else(|error| self.failed(&error), |()| Replied::Done)
    }

    async fn published(&self, request: &Message, reply: Message) -> Result<()> {
        match self.send(request, reply).await? {
            Some(confirm) => confirm.await.into_result(),
            None => Ok(()),
        }
    }

    /// Sends what was written; nothing for a request that wants no reply.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub(super) async fn send(&self, request: &Message, reply: Message) -> Result<Option<Confirm>> {
        let Some(reply_to) = request.reply_to.clone() else { return Ok(None) };
        let mut reply = reply
            .with_message_id(self.env.new_id().to_string())
            .with_timestamp(self.env.timestamp())
            // It is of no use after a restart of the broker: its queue is gone.
            .transient();
        reply.correlation_id.clone_from(&request.correlation_id);
        reply.causation_id.clone_from(&request.message_id);
        self.publisher.send(Envelope::new(Address::Queue(reply_to), reply)).await.map(Some)
    }

    /// Whether nobody takes replies to a request any more, where no verdict tells: a broker may take
    /// what is sent to an address of its own making, whoever is there. Cancellation safe.
    pub(super) async fn are_unread(&self, request: &Message) -> bool {
        let Some(reply_to) = request.reply_to.as_deref() else { return false };
        is_reserved_name(reply_to) && matches!(self.transport.queue_info(reply_to).await, Ok(None))
    }

    /// What a reply that was not published means for its request.
    pub(super) fn failed(&self, error: &Error) -> Replied {
        let replied = Replied::after(error.kind());
        match replied {
            Replied::Done => {
                self.counters.add(Count::RepliesDropped);
                tracing::debug!(%error, "a reply was dropped");
            }
            Replied::Not => {
                tracing::warn!(%error, "a reply was not published; its request is run again");
            }
        }
        replied
    }
}
