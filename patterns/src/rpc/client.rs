use std::{fmt, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use postrider_core::{
    Address, Confirm, Consumer, ConsumerOptions, Envelope, Message, Publisher, PublisherOptions,
    Queue, Result, Topology, Transport, TransportEvent, Verdict, check_name,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout_at;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Request, RpcError,
    call::Call,
    pending::{Pending, Ticket},
    presence::{Answer, Patience, Presence},
    wire,
};
use crate::{
    codec::{Codec, Limits},
    handler::Context,
    headers,
    naming::Naming,
};

/// The longest a call may take; a longer timeout is cut to it.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Calls services. It has one reply queue for all of its calls; cloning shares it.
///
/// When the connection is lost, calls whose requests were sent end with [`RpcError::Unknown`]; the
/// client itself goes on as soon as the transport is restored.
#[derive(Debug, Clone)]
pub struct RpcClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Arc<dyn Transport>,
    publisher: Arc<dyn Publisher>,
    pending: Arc<Pending>,
    presence: Presence,
    naming: Naming,
    reply_to: String,
    codec: Codec,
    limits: Limits,
    timeout: Duration,
    _receiving: DropGuard,
}

/// What one call differs in.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CallOptions {
    /// How long the call may take, at most a day. Default: the client's timeout.
    pub timeout: Option<Duration>,
    /// The handler that the call is made from. Default: none.
    pub parent: Option<Context>,
}

impl CallOptions {
    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets [`parent`](Self::parent): the call belongs to the conversation of that handler's
    /// message, and does not outlast its deadline.
    #[must_use]
    pub fn within(mut self, context: &Context) -> Self {
        self.parent = Some(context.clone());
        self
    }
}

/// What an [`RpcClient`] has in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RpcClientStats {
    /// Calls that wait for their replies.
    pub in_flight: usize,
    /// Replies that came when nobody waited for them any more.
    pub late_replies: u64,
}

impl RpcClient {
    /// A client with the defaults of [`RpcClientBuilder`]. Cancellation safe, as
    /// [`RpcClientBuilder::connect`].
    ///
    /// # Errors
    ///
    /// As [`RpcClientBuilder::connect`].
    pub async fn new(transport: &Arc<dyn Transport>) -> Result<Self> {
        Self::builder(transport).connect().await
    }

    /// A client to be set up.
    pub fn builder(transport: &Arc<dyn Transport>) -> RpcClientBuilder {
        RpcClientBuilder {
            transport: Arc::clone(transport),
            name: "client".to_owned(),
            naming: Naming::default(),
            codec: Codec::default(),
            limits: Limits::default(),
            timeout: Duration::from_secs(30),
            max_in_flight: 10_000,
        }
    }

    /// Calls the method of `request` at `service` and waits for its reply.
    ///
    /// A service that nobody serves is told before anything is sent; what was heard of a service
    /// counts for 5 seconds. One whose last server went away meanwhile is noticed after 500
    /// milliseconds without a reply, or at the next look: 1, 2, 4 and then every 5 seconds later. A
    /// server that is stopping may still answer what it has in hand, and is waited for.
    ///
    /// When the future is dropped, the call is given up: the request may still be handled, and its
    /// reply is dropped.
    ///
    /// # Errors
    ///
    /// [`RpcError`], whose cases say what is known about the request:
    /// [`Unavailable`](RpcError::Unavailable) when nobody serves it or it could not be sent in time,
    /// [`TimedOut`](RpcError::TimedOut) when it was sent and no reply came in time.
    pub async fn call<R: Request>(&self, service: &str, request: &R) -> Result<R::Reply, RpcError> {
        self.call_with(service, request, CallOptions::default()).await
    }

    /// Calls with options; else as [`call`](Self::call).
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn call_with<R: Request>(
        &self,
        service: &str,
        request: &R,
        options: CallOptions,
    ) -> Result<R::Reply, RpcError> {
        self.call_named(service, R::METHOD, request, options).await
    }

    /// Calls a method by its name, for services whose requests have no type here; else as
    /// [`call`](Self::call).
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn call_named<P, R>(
        &self,
        service: &str,
        method: &str,
        params: &P,
        options: CallOptions,
    ) -> Result<R, RpcError>
    where
        P: Serialize + Sync + ?Sized,
        R: DeserializeOwned,
    {
        let timeout = self.inner.timeout_of(&options);
        let call = Call {
            service,
            method,
            queue: self.inner.naming.rpc_queue(service),
            timeout,
            until: self.inner.transport.env().now() + timeout,
        };
        let reply = self.inner.exchange(&call, params, options.parent.as_ref()).await?;
        wire::decode_reply(&reply.message, self.inner.limits)
    }

    /// What the client has in hand.
    #[must_use]
    pub fn stats(&self) -> RpcClientStats {
        RpcClientStats {
            in_flight: self.inner.pending.in_flight(),
            late_replies: self.inner.pending.late_replies(),
        }
    }
}

impl Inner {
    fn timeout_of(&self, options: &CallOptions) -> Duration {
        let own = options.timeout.unwrap_or(self.timeout).min(LONGEST);
        let parent = options.parent.as_ref().and_then(Context::remaining);
        parent.map_or(own, |left| own.min(left))
    }

    /// Sends a request and waits for its reply.
    async fn exchange<P: Serialize + Sync + ?Sized>(
        &self,
        call: &Call<'_>,
        params: &P,
        parent: Option<&Context>,
    ) -> Result<Arc<Envelope>, RpcError> {
        check_name("call", &call.queue)?;
        if call.timeout.is_zero() {
            return Err(call.timed_out());
        }
        let id = self.transport.env().new_id().to_string();
        let mut ticket = self.pending.register(&id)?;
        let message = self.request(id, call, params, parent)?;
        let sending = timeout_at(call.until, self.send(call, message));
        let confirm = sending.await.unwrap_or_else(|_late| Err(call.not_sent()))?;
        ticket.sent();
        let waiting = timeout_at(call.until, self.reply(call, confirm, &mut ticket));
        let reply = waiting.await.unwrap_or_else(|_late| Err(call.timed_out()))?;
        self.presence.heard(&call.queue);
        Ok(reply)
    }

    /// Sends a request, unless nobody serves it.
    async fn send(&self, call: &Call<'_>, message: Message) -> Result<Confirm, RpcError> {
        match self.presence.check(&call.queue).await {
            Answer::Served => {}
            Answer::NoQueue => return Err(call.no_queue()),
            Answer::NoConsumer { .. } => return Err(call.no_consumer()),
        }
        let envelope = Envelope::new(Address::queue(call.queue.clone()), message);
        Ok(self.publisher.send(envelope).await?)
    }

    /// Waits for the reply to a request that was sent, as long as one may come.
    async fn reply(
        &self,
        call: &Call<'_>,
        confirm: Confirm,
        ticket: &mut Ticket,
    ) -> Result<Arc<Envelope>, RpcError> {
        let mut confirm = confirm.fuse();
        let mut abandoned = pin!(self.abandoned(call));
        loop {
            tokio::select! {
                biased;
                // The reply may come before the broker's verdict does.
                answer = ticket.answer() => {
                    return answer.map_err(|cause| RpcError::Unknown { cause: cause.to_string() });
                }
                verdict = &mut confirm => match verdict {
                    Verdict::Accepted => {}
                    Verdict::Unroutable => {
                        self.presence.forget(&call.queue);
                        return Err(call.no_queue());
                    }
                    Verdict::Rejected(reason) => return Err(RpcError::Throttled {
                        reason: format!("the service's queue takes no more: {reason}"),
                    }),
                    Verdict::Unknown(cause) => {
                        return Err(RpcError::Unknown { cause: cause.into_owned() });
                    }
                },
                error = &mut abandoned => return Err(error),
            }
        }
    }

    /// Ends when no reply to a request that was sent can be expected any more.
    async fn abandoned(&self, call: &Call<'_>) -> RpcError {
        let mut patience = Patience::new();
        loop {
            tokio::time::sleep(patience.next()).await;
            match self.presence.check_again(&call.queue).await {
                Answer::Served | Answer::NoConsumer { left: false } => {}
                Answer::NoConsumer { left: true } => return call.left(),
                Answer::NoQueue => return call.queue_gone(),
            }
        }
    }

    fn request<P: Serialize + ?Sized>(
        &self,
        id: String,
        call: &Call<'_>,
        params: &P,
        parent: Option<&Context>,
    ) -> Result<Message, RpcError> {
        let Call { method, timeout, .. } = *call;
        let now = self.transport.env().timestamp();
        let body = wire::encode_request(self.codec, self.limits, method, params, now)?;
        let mut message = Message::new(body)
            .with_content_type(self.codec.content_type())
            .with_message_id(id.clone())
            .with_correlation_id(id)
            .with_reply_to(self.reply_to.clone())
            .with_type(method.to_owned())
            .with_timestamp(now)
            .with_deadline(now + timeout)
            .with_ttl(whole_millis(timeout))
            // It dies with its deadline and need not outlive a restart of the broker.
            .transient();
        if let Some(context) = parent {
            message.causation_id = context.message_id().map(|id| id.to_owned().into());
            if let Some(conversation) = context.conversation_id() {
                message.headers.set(headers::CONVERSATION_ID, conversation.to_owned());
            }
        }
        Ok(message)
    }
}

/// Brokers count in milliseconds; a time to live must not be shorter than the call.
fn whole_millis(time: Duration) -> Duration {
    let millis = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    Duration::from_millis(millis.max(1))
}

/// Sets up an [`RpcClient`].
#[derive(Debug, Clone)]
#[must_use = "call connect"]
pub struct RpcClientBuilder {
    transport: Arc<dyn Transport>,
    name: String,
    naming: Naming,
    codec: Codec,
    limits: Limits,
    timeout: Duration,
    max_in_flight: usize,
}

impl RpcClientBuilder {
    /// The client's name, a part of its reply queue's. Default: `client`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The names of queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// The codec of requests; replies come in the same one. Default: MessagePack.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How large bodies may be. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How long a call may take, at most a day. The request's time to live and its deadline.
    /// Default: 30 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many calls may wait for replies at once; more fail with [`RpcError::Throttled`].
    /// Default: 10,000.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }

    /// Declares the reply queue, which is exclusive to this connection, and begins to consume it.
    ///
    /// Cancellation safe: when the future is dropped, an empty reply queue may stay until the
    /// connection ends.
    ///
    /// # Errors
    ///
    /// What [`Transport::declare`], [`Transport::publisher`] and [`Transport::consumer`] fail with.
    pub async fn connect(self) -> Result<RpcClient> {
        let transport = self.transport;
        let id = transport.env().new_id().to_string();
        let reply_to = self.naming.reply_queue(&self.name, &id);
        let replies = Topology::new().queue(Queue::exclusive(reply_to.clone()).auto_delete());
        transport.declare(&replies).await?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        // Before the consumer, so that no loss of it is missed.
        let events = transport.events();
        let consumer =
            transport.consumer(&reply_to, ConsumerOptions::default().with_prefetch(1_000)).await?;
        let pending = Arc::new(Pending::new(self.max_in_flight));
        let ended = CancellationToken::new();
        let receive = receive(consumer, events, Arc::clone(&pending));
        let until = ended.clone();
        tokio::spawn(async move { until.run_until_cancelled_owned(receive).await });
        Ok(RpcClient {
            inner: Arc::new(Inner {
                presence: Presence::new(Arc::clone(&transport)),
                transport,
                publisher,
                pending,
                naming: self.naming,
                reply_to,
                codec: self.codec,
                limits: self.limits,
                timeout: self.timeout,
                _receiving: ended.drop_guard(),
            }),
        })
    }
}

/// Hands replies to their calls until the consumer ends.
async fn receive(
    mut replies: Consumer,
    mut events: BoxStream<'static, TransportEvent>,
    pending: Arc<Pending>,
) {
    let mut listening = true;
    let cause = loop {
        tokio::select! {
            // What has arrived is handed out before a loss ends the rest.
            biased;
            reply = replies.recv() => match reply {
                Some(Ok(reply)) => {
                    pending.answer(reply.envelope());
                    reply.ack();
                }
                Some(Err(error)) => break error.to_string(),
                None => break "the transport was closed".to_owned(),
            },
            event = events.next(), if listening => match event {
                Some(TransportEvent::Lost { cause }) => {
                    pending.lose(&format!("the connection was lost: {cause}"));
                }
                Some(_) => {}
                None => listening = false,
            },
        }
    };
    tracing::debug!(%cause, "no more replies");
    pending.close(&cause);
}

impl fmt::Display for RpcClientStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} calls in flight, {} late replies", self.in_flight, self.late_replies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_never_shorter_than_the_call() {
        let millis = |nanos| whole_millis(Duration::from_nanos(nanos)).as_millis();
        assert_eq!(millis(0), 1);
        assert_eq!(millis(1_000_000), 1);
        assert_eq!(millis(1_000_001), 2);
    }
}
