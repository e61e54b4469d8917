//! A request and the wait for its reply.

use std::{
    borrow::Cow,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use postrider_core::{
    Address, Confirm, Env, Envelope, Message, Publisher, ReplyAddress, Transport, Verdict,
    check_name,
};
use serde::Serialize;
use tokio::time::{sleep, timeout_at};
use tokio_util::sync::DropGuard;

use super::{
    CallOptions,
    call::Call,
    outbox::Outbox,
    pending::{Pending, Reply, Ticket},
    presence::{Answer, Patience, Presence},
};
use crate::{
    codec::{Codec, Limits},
    handler::Context,
    headers,
    naming::Naming,
    rpc::{RpcError, wire},
};

/// How long an idempotent call waits before it is sent again, twice as long each time up to the
/// other. The transport itself waits for the connection.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
const AGAIN_AT_MOST_AFTER: Duration = Duration::from_millis(500);

/// What all clones of a client share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) pending: Arc<Pending>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) presence: Presence,
    pub(super) name: String,
    pub(super) naming: Naming,
    pub(super) address: ReplyAddress,
    pub(super) codec: Codec,
    pub(super) limits: Limits,
    pub(super) timeout: Duration,
    pub(super) sent_again: AtomicU64,
    pub(super) _receiving: DropGuard,
}

impl Inner {
    pub(super) fn env(&self) -> &Env {
        self.transport.env()
    }

    /// A call to be made now.
    pub(super) fn call<'a>(
        &self,
        service: &'a str,
        method: &'a str,
        options: &CallOptions,
    ) -> Result<Call<'a>, RpcError> {
        let timeout = options.time(self.timeout);
        let queue = self.naming.rpc_queue(service);
        check_name("call", &queue)?;
        let call = Call {
            service: Cow::Borrowed(service),
            method: Cow::Borrowed(method),
            queue,
            timeout,
            until: self.env().now() + timeout,
            idempotent: options.idempotent.unwrap_or(false),
        };
        if timeout.is_zero() { Err(call.timed_out()) } else { Ok(call) }
    }

    /// The request of a call, without what belongs to one try of it.
    pub(super) fn request<P: Serialize + ?Sized>(
        &self,
        call: &Call<'_>,
        params: &P,
        options: &CallOptions,
    ) -> Result<Message, RpcError> {
        let Call { method, timeout, .. } = call;
        let now = self.env().timestamp();
        let body = wire::encode_request(self.codec, self.limits, method, params, now)?;
        self.check_size(body.len() as u64)?;
        let mut message = Message::new(body)
            .with_content_type(self.codec.content_type())
            .with_message_id(self.env().new_id().to_string())
            .with_type(method.to_string())
            .with_timestamp(now)
            .with_deadline(now + *timeout)
            // It dies with its deadline and need not outlive a restart of the broker.
            .transient();
        if let Some(key) = &options.idempotency_key {
            message.headers.set(headers::IDEMPOTENCY_KEY, key.clone());
            message.headers.set(headers::CALLER, self.name.clone());
        }
        if let Some(context) = &options.parent {
            message.causation_id = context.message_id().map(|id| id.to_owned().into());
            if let Some(conversation) = context.conversation_id() {
                message.headers.set(headers::CONVERSATION_ID, conversation.to_owned());
            }
            context.mark_traced(&mut message);
        }
        Ok(message)
    }

    /// Not every transport looks at the size before the broker does.
    fn check_size(&self, bytes: u64) -> Result<(), RpcError> {
        match self.transport.capabilities().max_message_size {
            Some(most) if bytes > most => {
                Err(RpcError::TooLarge { bytes, reason: format!("the broker takes {most}") })
            }
            _ => Ok(()),
        }
    }

    /// Sends a request and waits for its reply, within its parent.
    pub(super) async fn exchange(
        &self,
        call: &Call<'_>,
        request: Message,
        parent: Option<&Context>,
    ) -> Result<Arc<Envelope>, RpcError> {
        let Some(parent) = parent else { return self.persevere(call, request).await };
        tokio::select! {
            biased;
            () = parent.cancellation().cancelled() => Err(RpcError::Cancelled),
            outcome = self.persevere(call, request) => outcome,
        }
    }

    /// Sends an idempotent request again when its outcome is unknown. From then on it may have been
    /// handled, whatever becomes of the later tries.
    async fn persevere(
        &self,
        call: &Call<'_>,
        request: Message,
    ) -> Result<Arc<Envelope>, RpcError> {
        if !call.idempotent {
            return self.attempt(call, request).await;
        }
        let mut unknown = None;
        let mut wait = AGAIN_AFTER;
        loop {
            match self.attempt(call, request.clone()).await {
                Err(error @ RpcError::Unknown { .. }) => unknown = Some(error),
                // Its servers may be on their way back as well.
                Err(RpcError::Unavailable { .. } | RpcError::Throttled { .. })
                    if unknown.is_some() => {}
                outcome => return outcome,
            }
            if let Some(unknown) = unknown.take_if(|_| self.env().now() + wait >= call.until) {
                return Err(unknown);
            }
            tracing::debug!(service = %call.service, "a call is sent again");
            sleep(wait).await;
            self.sent_again.fetch_add(1, Ordering::Relaxed);
            wait = (wait * 2).min(AGAIN_AT_MOST_AFTER);
        }
    }

    async fn attempt(
        &self,
        call: &Call<'_>,
        mut request: Message,
    ) -> Result<Arc<Envelope>, RpcError> {
        let (ticket, mut reply) = self.pending.register()?;
        request.correlation_id = Some(ticket.id().into());
        request.ttl = Some(whole_millis(call.until - self.env().now()));
        let address = Address::queue(call.queue.clone());
        let bytes = request.body.len() as u64;
        // From here on the request may be on its way when the future is dropped.
        let mut given_up = GivenUp { inner: self, call, ticket: &ticket, ended: false };
        let confirm = match self.send(call, &ticket, Envelope::new(address, request)).await {
            Ok(confirm) => confirm,
            Err(not_sent) => {
                given_up.ended = true;
                return Err(not_sent);
            }
        };
        if let Err(lost) = self.sent(&ticket) {
            given_up.ended = true;
            return Err(lost);
        }
        let waiting = timeout_at(call.until, self.reply(call, bytes, confirm, &mut reply));
        let outcome = waiting.await.unwrap_or_else(|_late| Err(call.timed_out()));
        // It has its reply, or its server knows its deadline.
        given_up.ended = true;
        if outcome.is_ok() {
            self.presence.heard(&call.queue);
        }
        outcome
    }

    /// Sends a request within the call's time, unless nobody serves it.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        ticket: &Ticket,
        envelope: Envelope,
    ) -> Result<Confirm, RpcError> {
        let sending = async {
            match self.presence.check(call).await {
                Answer::Served => self.publish(ticket, envelope).await,
                Answer::NoQueue => Err(call.no_queue()),
                Answer::NoConsumer { .. } => Err(call.no_consumer()),
            }
        };
        timeout_at(call.until, sending)
            .await
            .unwrap_or_else(|_late| Err(call.not_sent_within(call.timeout)))
    }

    /// Publishes a request, to be answered at the address of the moment.
    pub(super) async fn publish(
        &self,
        ticket: &Ticket,
        mut envelope: Envelope,
    ) -> Result<Confirm, RpcError> {
        let reply_to = self.address.get().await?;
        envelope.message.reply_to = Some(reply_to.to_string().into());
        ticket.answered_at(reply_to);
        Ok(self.publisher.send(envelope).await?)
    }

    /// Notes that a request is on its way.
    ///
    /// # Errors
    ///
    /// [`RpcError::Unknown`] when it went with an address that was lost before it was sent: it may be
    /// handled, and its reply will not come.
    pub(super) fn sent(&self, ticket: &Ticket) -> Result<(), RpcError> {
        ticket.sent();
        match ticket.reply_to() {
            Some(reply_to) if !self.address.is(reply_to) => Err(RpcError::Unknown {
                cause: "the connection was lost while it was sent".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// What the broker's verdict on a request of so many bytes means for its call; nothing when it has
    /// it.
    pub(super) fn verdict(
        &self,
        call: &Call<'_>,
        bytes: u64,
        verdict: Verdict,
    ) -> Result<(), RpcError> {
        match verdict {
            Verdict::Accepted => Ok(()),
            Verdict::Unroutable => {
                self.presence.forget(&call.queue);
                Err(call.no_queue())
            }
            Verdict::Rejected(reason) | Verdict::Unknown(reason) if is_of_size(&reason) => {
                let most = self.transport.capabilities().max_message_size;
                let most = most.map_or_else(String::new, |most| {
                    format!(" (a broker of this kind takes {most} unless it is set up otherwise)")
                });
                Err(RpcError::TooLarge { bytes, reason: format!("{reason}{most}") })
            }
            Verdict::Rejected(reason) => Err(RpcError::Throttled {
                reason: format!("the service's queue takes no more: {reason}"),
            }),
            Verdict::Unknown(cause) => Err(RpcError::Unknown { cause: cause.into_owned() }),
        }
    }

    /// Waits for the reply to a request that was sent, as long as one may come.
    async fn reply(
        &self,
        call: &Call<'_>,
        bytes: u64,
        confirm: Confirm,
        reply: &mut Reply,
    ) -> Result<Arc<Envelope>, RpcError> {
        let mut confirm = confirm.fuse();
        let mut abandoned = pin!(self.abandoned(call));
        loop {
            tokio::select! {
                biased;
                // The reply may come before the broker's verdict does.
                answer = reply.recv() => {
                    return answer.map_err(|cause| RpcError::Unknown { cause: cause.to_string() });
                }
                verdict = &mut confirm => self.verdict(call, bytes, verdict)?,
                error = &mut abandoned => return Err(error),
            }
        }
    }

    /// Ends when no reply to a request that was sent can be expected any more.
    async fn abandoned(&self, call: &Call<'_>) -> RpcError {
        let mut patience = Patience::new();
        loop {
            sleep(patience.next()).await;
            match self.presence.check_again(call).await {
                Answer::Served | Answer::NoConsumer { left: false } => {}
                Answer::NoConsumer { left: true } => return call.left(),
                Answer::NoQueue => return call.queue_gone(),
            }
        }
    }
}

/// Whether a broker refused a message for its size. A verdict has no other means to say it than its
/// words, which are those of RabbitMQ and of this workspace's transports.
fn is_of_size(reason: &str) -> bool {
    ["larger than configured max size", "larger than max size", "too large", "size-exceeded"]
        .iter()
        .any(|words| reason.contains(words))
}

/// Tells the server when a call is dropped before it has ended.
pub(super) struct GivenUp<'a> {
    pub(super) inner: &'a Inner,
    pub(super) call: &'a Call<'a>,
    pub(super) ticket: &'a Ticket,
    pub(super) ended: bool,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.inner.outbox.given_up(&self.call.service, self.ticket);
        }
    }
}

/// Brokers count in milliseconds; a time to live must not be shorter than the call.
pub(super) fn whole_millis(time: Duration) -> Duration {
    let millis = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    Duration::from_millis(millis.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_the_size_is_told_from_a_full_queue() {
        let said = "PRECONDITION_FAILED - message size 20 is larger than configured max size 16";
        assert!(is_of_size(said));
        assert!(is_of_size("the message cannot be encoded, or is too large"));
        assert!(!is_of_size("a queue refused it") && !is_of_size("queue 'rpc_x' is full"));
    }

    #[test]
    fn a_time_to_live_is_never_shorter_than_the_call() {
        let millis = |nanos| whole_millis(Duration::from_nanos(nanos)).as_millis();
        assert_eq!(millis(0), 1);
        assert_eq!(millis(1_000_000), 1);
        assert_eq!(millis(1_000_001), 2);
    }
}
