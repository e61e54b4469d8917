//! The in-memory broker, and its twins: the same work on tokio's channels.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::SecondsFormat;
use futures_util::future::join_all;
use postrider_core::{
    Address, ConsumerOptions, Env, Envelope, Message, PublisherOptions, Queue, Topology, Transport,
};
use postrider_patterns::{Codec, Request as _, RpcClient, RpcServer, Running};
use postrider_transport_inmemory::InMemory;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    BODY,
    echo::{Echo, EchoBody, EchoReply},
};

/// The capacity of the twin's channel and the prefetch of the consumer: as many messages are on
/// their way at most.
pub const WINDOW: u16 = 1_000;

/// The memory that the in-memory broker may hold before its publishers wait. It keeps a publisher
/// that is faster than its consumer in bounds, as the channel's capacity does.
pub const MEMORY_LIMIT: usize = 16 << 20;

/// An in-memory broker with queues to measure.
#[derive(Debug)]
pub struct Broker {
    transport: InMemory,
}

impl Broker {
    /// A private broker with queues `0` to `queues - 1`.
    ///
    /// # Panics
    ///
    /// When the broker refuses them, which would be its fault.
    pub async fn with_queues(queues: usize) -> Self {
        let transport = InMemory::connect("memory://").expect("a runtime");
        transport.broker().set_memory_limit(MEMORY_LIMIT);
        let topology =
            (0..queues).fold(Topology::new(), |all, n| all.queue(Queue::durable(n.to_string())));
        transport.declare(&topology).await.expect("declared");
        Self { transport }
    }

    /// Passes `messages` through queue `queue`, from one publisher task to one consumer task, each
    /// message confirmed and acknowledged.
    ///
    /// # Panics
    ///
    /// When a message is lost or refused.
    pub async fn pass(&self, queue: usize, messages: u64) {
        let name = queue.to_string();
        let publisher = self.transport.publisher(PublisherOptions::default()).await.expect("open");
        let options = ConsumerOptions::default().with_prefetch(WINDOW);
        let mut consumer = self.transport.consumer(&name, options).await.expect("open");
        let address = Address::queue(name);
        let sending = tokio::spawn(async move {
            for _ in 0..messages {
                let message = Message::new(Bytes::copy_from_slice(&BODY));
                let confirm = publisher.send(Envelope::new(address.clone(), message)).await;
                assert!(confirm.expect("sent").await.is_accepted());
            }
        });
        let receiving = tokio::spawn(async move {
            for _ in 0..messages {
                let delivery = consumer.recv().await.expect("goes on").expect("delivered");
                assert_eq!(delivery.message().body.len(), BODY.len());
                delivery.ack();
            }
        });
        sending.await.expect("sent");
        receiving.await.expect("received");
    }

    /// Passes `messages` through all of the first `queues` queues at once, shared among them.
    ///
    /// # Panics
    ///
    /// When a message is lost or refused.
    pub async fn pass_at_once(&self, queues: usize, messages: u64) {
        let each = messages / queues as u64;
        join_all((0..queues).map(|queue| self.pass(queue, each))).await;
    }

    /// As [`pass`](Self::pass), publishing in batches of `batch`.
    ///
    /// # Panics
    ///
    /// When a message is lost or refused.
    pub async fn pass_in_batches(&self, queue: usize, messages: u64, batch: u64) {
        let name = queue.to_string();
        let publisher = self.transport.publisher(PublisherOptions::default()).await.expect("open");
        let options = ConsumerOptions::default().with_prefetch(WINDOW);
        let mut consumer = self.transport.consumer(&name, options).await.expect("open");
        let address = Address::queue(name);
        let sending = tokio::spawn(async move {
            let mut left = messages;
            while left > 0 {
                let size = left.min(batch);
                left -= size;
                let envelopes = (0..size)
                    .map(|_| {
                        Envelope::new(address.clone(), Message::new(Bytes::copy_from_slice(&BODY)))
                    })
                    .collect();
                for confirm in publisher.send_batch(envelopes).await.expect("sent") {
                    assert!(confirm.await.is_accepted());
                }
            }
        });
        let receiving = tokio::spawn(async move {
            for _ in 0..messages {
                consumer.recv().await.expect("goes on").expect("delivered").ack();
            }
        });
        receiving.await.expect("received");
        sending.await.expect("sent");
    }
}

/// The twin: passes `messages` through a bounded channel, from one task to another.
///
/// # Panics
///
/// When a message is lost.
pub async fn pass_through_channel(messages: u64) {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(usize::from(WINDOW));
    let sending = tokio::spawn(async move {
        for _ in 0..messages {
            sender.send(Bytes::copy_from_slice(&BODY)).await.expect("open");
        }
    });
    let receiving = tokio::spawn(async move {
        for _ in 0..messages {
            assert_eq!(receiver.recv().await.expect("open").len(), BODY.len());
        }
    });
    sending.await.expect("sent");
    receiving.await.expect("received");
}

/// A service that echoes over the in-memory broker, and its client.
#[derive(Debug)]
pub struct EchoService {
    client: RpcClient,
    _server: Running,
}

impl EchoService {
    /// Serves and connects on a private broker.
    ///
    /// # Panics
    ///
    /// When the broker refuses, which would be its fault.
    pub async fn start() -> Self {
        let transport: Arc<dyn Transport> =
            Arc::new(InMemory::connect("memory://").expect("a runtime"));
        let server = RpcServer::new("echo")
            .method(|echo: Echo, _| async move { Ok(echo.body) })
            .start(&transport)
            .await
            .expect("served");
        Self { client: RpcClient::new(&transport).await.expect("connected"), _server: server }
    }

    /// Makes `calls` calls, one after the other.
    ///
    /// # Panics
    ///
    /// When a call fails.
    pub async fn call(&self, calls: u64) {
        let client = self.client.clone();
        let calling = tokio::spawn(async move {
            for _ in 0..calls {
                let echo = Echo { body: Bytes::copy_from_slice(&BODY) };
                let reply = client.call("echo", &echo).await.expect("answered");
                assert_eq!(reply.len(), BODY.len());
            }
        });
        calling.await.expect("called");
    }
}

/// The twin of a call that does the same work: two channels and a oneshot, with both messages
/// encoded and decoded, a handler that is a task of its own, and a time limit on the call.
///
/// # Panics
///
/// When a message is lost.
pub async fn call_through_channels_with_codec(calls: u64) {
    const LIMIT: Duration = Duration::from_secs(30);
    let codec = Codec::MessagePack;
    let (requests, mut inbox) = mpsc::channel::<(Bytes, oneshot::Sender<Bytes>)>(64);
    let (replies, mut outbox) = mpsc::channel::<(Bytes, oneshot::Sender<Bytes>)>(64);
    let serving = tokio::spawn(async move {
        while let Some((body, reply)) = inbox.recv().await {
            let replies = replies.clone();
            tokio::spawn(async move {
                let request: EchoBody =
                    Codec::decode(Some(codec.content_type()), &body).expect("decoded");
                assert_eq!(request.method, Echo::METHOD);
                let answer = EchoReply { status: "success".into(), data: request.params.body };
                let body = codec.encode(&answer).expect("encoded");
                replies.send((body, reply)).await.expect("open");
            });
        }
    });
    let answering = tokio::spawn(async move {
        while let Some((body, reply)) = outbox.recv().await {
            reply.send(body).expect("awaited");
        }
    });
    let env = Env::system();
    let calling = tokio::spawn(async move {
        for _ in 0..calls {
            let request = EchoBody {
                method: Echo::METHOD.into(),
                params: Echo { body: Bytes::copy_from_slice(&BODY) },
                timestamp: env.timestamp().to_rfc3339_opts(SecondsFormat::Millis, true),
            };
            let body = codec.encode(&request).expect("encoded");
            let (reply, answer) = oneshot::channel();
            requests.send((body, reply)).await.expect("open");
            let body = timeout(LIMIT, answer).await.expect("in time").expect("answered");
            let reply: EchoReply =
                Codec::decode(Some(codec.content_type()), &body).expect("decoded");
            assert_eq!(reply.data.len(), BODY.len());
        }
    });
    calling.await.expect("called");
    serving.await.expect("served");
    answering.await.expect("answered");
}

/// The barest twin of a call: two channels and a oneshot for each reply.
///
/// # Panics
///
/// When a message is lost.
pub async fn call_through_channels(calls: u64) {
    let (requests, mut inbox) = mpsc::channel::<(Bytes, oneshot::Sender<Bytes>)>(64);
    let (replies, mut outbox) = mpsc::channel::<(Bytes, oneshot::Sender<Bytes>)>(64);
    let serving = tokio::spawn(async move {
        while let Some(request) = inbox.recv().await {
            replies.send(request).await.expect("open");
        }
    });
    let answering = tokio::spawn(async move {
        while let Some((body, reply)) = outbox.recv().await {
            reply.send(body).expect("awaited");
        }
    });
    let calling = tokio::spawn(async move {
        for _ in 0..calls {
            let (reply, answer) = oneshot::channel();
            let body = Bytes::copy_from_slice(&BODY);
            requests.send((body, reply)).await.expect("open");
            assert_eq!(answer.await.expect("answered").len(), BODY.len());
        }
    });
    calling.await.expect("called");
    serving.await.expect("served");
    answering.await.expect("answered");
}
