use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::{StreamExt, stream::BoxStream};
use postrider_core::{
    Error, ErrorKind, PublisherOptions, Replies, ReplyMode, ReplyOptions, Result, Transport,
    TransportEvent,
};
use tokio_util::sync::CancellationToken;

use super::{RpcClient, exchange::Inner, outbox::Outbox, pending::Pending, presence::Presence};
use crate::{
    codec::{Codec, Limits},
    naming::Naming,
    rpc::check_limits,
};

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
    reply_mode: ReplyMode,
}

impl RpcClientBuilder {
    pub(super) fn new(transport: &Arc<dyn Transport>) -> Self {
        Self {
            transport: Arc::clone(transport),
            name: "client".to_owned(),
            naming: Naming::default(),
            codec: Codec::default(),
            limits: Limits::default(),
            timeout: Duration::from_secs(30),
            max_in_flight: 10_000,
            reply_mode: ReplyMode::ExclusiveQueue,
        }
    }

    /// The client's name, a part of its reply queue's, and the caller to whom its idempotency keys
    /// belong: programs that give such keys need names of their own, since those of the same name mean
    /// the same request by the same key. Default: `client`.
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

    /// How large bodies may be, at least one byte. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How long a call may take, longer than 0 and at most a day. The request's time to live and its deadline.
    /// Default: 30 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many calls may wait for replies at once, at least 1; more fail with
    /// [`RpcError::Throttled`](crate::RpcError::Throttled). Default: 10,000.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }

    /// How replies come. The lightest way that a broker has is
    /// [`Capabilities::reply_mode`](postrider_core::Capabilities::reply_mode); one that it has not is
    /// an error at the start. Default: [`ReplyMode::ExclusiveQueue`].
    ///
    /// By [`ReplyMode::Direct`] the broker hands a reply over or loses it. The client always has room
    /// for twice [`max_in_flight`](Self::max_in_flight), up to 65,535; what streamed replies and
    /// gathering bring on top of that should stay below it.
    pub fn reply_mode(mut self, mode: ReplyMode) -> Self {
        self.reply_mode = mode;
        self
    }

    fn check(&self) -> Result<()> {
        let why = if self.max_in_flight == 0 {
            "max_in_flight is at least 1; with 0 every call would be refused"
        } else if self.timeout.is_zero() {
            "the timeout is longer than 0; without any time no call would be sent"
        } else {
            return check_limits("connect", self.limits);
        };
        Err(Error::new(ErrorKind::Invalid, "connect", why).with_context("client", &*self.name))
    }

    /// Begins to take replies: by default it declares a queue, which is exclusive to this connection,
    /// and consumes it.
    ///
    /// Cancellation safe: when the future is dropped, an empty reply queue may stay until the
    /// connection ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a timeout, a number of calls or a size of 0,
    /// [`ErrorKind::Unsupported`] for a reply mode that the transport has not, and what [`Transport::replies`] and [`Transport::publisher`] fail with.
    pub async fn connect(self) -> Result<RpcClient> {
        self.check()?;
        let transport = self.transport;
        let id = transport.env().new_id().to_string();
        let mut options =
            ReplyOptions::new(self.naming.reply_queue(&self.name, &id)).with_mode(self.reply_mode);
        if self.reply_mode == ReplyMode::Direct {
            let room = u16::try_from(self.max_in_flight.saturating_mul(2)).unwrap_or(u16::MAX);
            options.prefetch = room.max(options.prefetch);
        }
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        // Before the replies, so that no loss of them is missed.
        let events = transport.events();
        let replies = transport.replies(options).await?;
        let address = replies.address().clone();
        let pending = Arc::new(Pending::new(&id, self.max_in_flight));
        let ended = CancellationToken::new();
        let outbox = Arc::new(Outbox::new(
            Arc::clone(&transport),
            Arc::clone(&publisher),
            self.naming.clone(),
            address.clone(),
        ));
        let receive = receive(replies, events, Arc::clone(&pending), Arc::clone(&outbox));
        let until = ended.clone();
        tokio::spawn(async move { until.run_until_cancelled_owned(receive).await });
        Ok(RpcClient {
            inner: Arc::new(Inner {
                presence: Presence::new(
                    Arc::clone(&transport),
                    Arc::clone(&publisher),
                    Arc::clone(&outbox),
                ),
                transport,
                publisher,
                pending,
                outbox,
                name: self.name,
                naming: self.naming,
                address,
                codec: self.codec,
                limits: self.limits,
                timeout: self.timeout,
                sent_again: AtomicU64::new(0),
                _receiving: ended.drop_guard(),
            }),
        })
    }
}

/// Hands replies to their calls until the consumer ends.
async fn receive(
    mut replies: Replies,
    mut events: BoxStream<'static, TransportEvent>,
    pending: Arc<Pending>,
    outbox: Arc<Outbox>,
) {
    let mut listening = true;
    let address = replies.address().clone();
    let mut known = None;
    let cause = loop {
        tokio::select! {
            // What has arrived is handed out before a loss ends the rest.
            biased;
            reply = replies.recv() => match reply {
                Some(Ok(reply)) => {
                    if !pending.answer(reply.envelope()) {
                        outbox.stray(reply.message());
                    }
                    reply.ack();
                }
                Some(Err(error)) => break error.to_string(),
                None => break "the transport was closed".to_owned(),
            },
            event = events.next(), if listening => match event {
                Some(TransportEvent::Lost { cause }) => {
                    pending.lose(&format!("the connection was lost: {cause}"));
                }
                Some(TransportEvent::Missed { .. }) => {
                    pending.lose("the connection may have been lost");
                }
                Some(_) => {}
                None => listening = false,
            },
            // It is lost with its link too, while the connection stays.
            now = address.changed(known.as_deref()) => {
                if known.is_some() {
                    pending.lose("the address of its reply was lost");
                }
                known = now;
            }
        }
    };
    tracing::debug!(%cause, "no more replies");
    pending.close(&cause);
}
