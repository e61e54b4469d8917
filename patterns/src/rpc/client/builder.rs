use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::{StreamExt, stream::BoxStream};
use postrider_core::{
    Consumer, ConsumerOptions, Error, ErrorKind, PublisherOptions, Queue, ReplyMode, Result,
    Topology, Transport, TransportEvent,
};
use tokio_util::sync::CancellationToken;

use super::{RpcClient, exchange::Inner, outbox::Outbox, pending::Pending, presence::Presence};
use crate::{
    codec::{Codec, Limits},
    naming::Naming,
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
    /// belong. Default: `client`.
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

    /// How many calls may wait for replies at once; more fail with
    /// [`RpcError::Throttled`](crate::RpcError::Throttled). Default: 10,000.
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }

    /// How replies come. No transport gives them by direct reply-to so far, and asking for it is an
    /// error at the start. Default: [`ReplyMode::ExclusiveQueue`].
    pub fn reply_mode(mut self, mode: ReplyMode) -> Self {
        self.reply_mode = mode;
        self
    }

    /// Declares the reply queue, which is exclusive to this connection, and begins to consume it.
    ///
    /// Cancellation safe: when the future is dropped, an empty reply queue may stay until the
    /// connection ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for a reply mode that the transport has not, and what
    /// [`Transport::declare`], [`Transport::publisher`] and [`Transport::consumer`] fail with.
    pub async fn connect(self) -> Result<RpcClient> {
        let transport = self.transport;
        if self.reply_mode != ReplyMode::ExclusiveQueue {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "connect",
                "this transport gives no replies by direct reply-to; take an exclusive queue",
            )
            .with_context("url", transport.url()));
        }
        let id = transport.env().new_id().to_string();
        let reply_to = self.naming.reply_queue(&self.name, &id);
        let replies = Queue::exclusive(reply_to.clone()).auto_delete();
        transport.declare(&Topology::new().queue(replies)).await?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        // Before the consumer, so that no loss of it is missed.
        let events = transport.events();
        let consumer =
            transport.consumer(&reply_to, ConsumerOptions::default().with_prefetch(1_000)).await?;
        let pending = Arc::new(Pending::new(&id, self.max_in_flight));
        let ended = CancellationToken::new();
        let outbox = Arc::new(Outbox::new(
            Arc::clone(&transport),
            Arc::clone(&publisher),
            self.naming.clone(),
            reply_to.clone(),
        ));
        let receive = receive(consumer, events, Arc::clone(&pending), Arc::clone(&outbox));
        let until = ended.clone();
        tokio::spawn(async move { until.run_until_cancelled_owned(receive).await });
        Ok(RpcClient {
            inner: Arc::new(Inner {
                presence: Presence::new(Arc::clone(&transport)),
                transport,
                publisher,
                pending,
                outbox,
                name: self.name,
                naming: self.naming,
                reply_to,
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
    mut replies: Consumer,
    mut events: BoxStream<'static, TransportEvent>,
    pending: Arc<Pending>,
    outbox: Arc<Outbox>,
) {
    let mut listening = true;
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
                Some(_) => {}
                None => listening = false,
            },
        }
    };
    tracing::debug!(%cause, "no more replies");
    pending.close(&cause);
}
