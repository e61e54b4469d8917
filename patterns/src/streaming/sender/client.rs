use std::{sync::Arc, time::Duration};

use postrider_core::{
    Address, Consumer, ConsumerOptions, Delivery, Envelope, Publisher, PublisherOptions, Queue,
    Result, Topology, Transport, check_name,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::{
    Outgoing, Receipt, Transfer,
    sending::{Plan, Sending},
    source::Chunks,
    transfer::{Abort, Heard, Routes},
};
use crate::{
    codec::Codec,
    naming::Naming,
    streaming::{
        Progress, StreamError,
        budget::Budget,
        codes, limits,
        wire::{self, Open, ToReceiver, ToSender},
    },
};

/// How long the answer to a frame of a transfer that is over may take to be sent.
const STRAY: Duration = Duration::from_secs(1);

/// Sends streams to services, many at once. It has one queue for what all their receivers say;
/// cloning shares it.
#[derive(Debug, Clone)]
pub struct StreamSender {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Arc<dyn Transport>,
    publisher: Arc<dyn Publisher>,
    routes: Routes,
    budget: Budget,
    reply_to: String,
    settings: Settings,
    _receiving: DropGuard,
}

#[derive(Debug, Clone)]
struct Settings {
    naming: Naming,
    codec: Codec,
    chunk_size: u32,
    window: u32,
    memory: u64,
    accept_timeout: Duration,
    idle_timeout: Duration,
}

impl StreamSender {
    /// A sender with the defaults of [`StreamSenderBuilder`]. Cancellation safe, as
    /// [`StreamSenderBuilder::connect`].
    ///
    /// # Errors
    ///
    /// As [`StreamSenderBuilder::connect`].
    pub async fn new(transport: &Arc<dyn Transport>) -> Result<Self> {
        Self::builder(transport).connect().await
    }

    /// A sender to be set up.
    pub fn builder(transport: &Arc<dyn Transport>) -> StreamSenderBuilder {
        StreamSenderBuilder {
            transport: Arc::clone(transport),
            name: "sender".to_owned(),
            settings: Settings {
                naming: Naming::default(),
                codec: Codec::default(),
                chunk_size: 256 * 1024,
                window: 16,
                memory: 64 * 1024 * 1024,
                accept_timeout: Duration::from_secs(30),
                idle_timeout: Duration::from_secs(30),
            },
        }
    }

    /// Sends a payload to `service` and waits until its receiver has all of it, has compared the
    /// hash, and is done with it.
    ///
    /// Lost connections are made good on both sides. A receiver that goes away is waited for, and
    /// after 5 seconds without a word from it the stream is offered to the other receivers of the
    /// service.
    ///
    /// When the future is dropped, the transfer is aborted.
    ///
    /// # Errors
    ///
    /// [`StreamError::Unavailable`] when nobody takes it, and what else a [`StreamError`] can be. An
    /// outcome that is lost leaves it open whether the receiver is done: a transfer that is sent
    /// again under its id may be received twice.
    pub async fn send(&self, service: &str, outgoing: Outgoing) -> Result<Receipt, StreamError> {
        self.start(service, outgoing)?.finish().await
    }

    /// Begins to send a payload to `service`, to watch its progress or to abort it; else as
    /// [`send`](Self::send).
    ///
    /// # Errors
    ///
    /// [`StreamError::Busy`] when this sender has a stream of the same id under way, and
    /// [`StreamError::Codec`] or [`StreamError::Transport`] for a description or a service that
    /// cannot be written.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(&self, service: &str, outgoing: Outgoing) -> Result<Transfer, StreamError> {
        let Inner { transport, publisher, routes, budget, reply_to, settings, .. } = &*self.inner;
        let env = transport.env().clone();
        let id = outgoing.id.unwrap_or_else(|| env.new_id());
        let chunk_size = settings.chunk_size;
        let (offers, codec) = (settings.naming.stream_queue(service), settings.codec);
        check_name("send", &offers)?;
        let open = Open {
            chunk_size,
            length: outgoing.length,
            name: outgoing.name,
            content_type: outgoing.content_type,
            metadata: outgoing.metadata,
            resumable: outgoing.source.is_seekable(),
        };
        wire::open(id, codec, &open)?;
        let inbox = routes.open(id).ok_or_else(|| StreamError::Busy(format!("stream {id}")))?;
        let initial = Progress { length: open.length, ..Progress::default() };
        let (progress, watched) = watch::channel(initial);
        let chunks = Chunks::new(outgoing.source, chunk_size, open.length);
        let window = budget.window(settings.window, chunk_size);
        let plan = Plan {
            id,
            service: service.to_owned(),
            offers,
            reply_to: reply_to.clone(),
            codec,
            open,
            window,
            accept_timeout: settings.accept_timeout,
            idle_timeout: settings.idle_timeout,
        };
        let sending = Sending::new(plan, env, Arc::clone(publisher), chunks, inbox, progress);
        let abort = Abort::default();
        let aborted = abort.clone();
        // It keeps the queue of the answers open.
        let sender = self.clone();
        let task = tokio::spawn(async move {
            let share = sender.inner.budget.share(window, chunk_size);
            let Some(_share) = aborted.token().run_until_cancelled(share).await else {
                return Err(aborted.error());
            };
            sending.run(aborted).await
        });
        Ok(Transfer::new(id, watched, abort, task))
    }
}

/// Sets up a [`StreamSender`].
#[derive(Debug, Clone)]
#[must_use = "call connect"]
pub struct StreamSenderBuilder {
    transport: Arc<dyn Transport>,
    name: String,
    settings: Settings,
}

impl StreamSenderBuilder {
    /// The sender's name, a part of its reply queue's. Default: `sender`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The names of queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.settings.naming = naming;
        self
    }

    /// The codec of everything but the chunks, which are plain bytes. Receivers answer in the same
    /// one. Default: MessagePack.
    pub const fn codec(mut self, codec: Codec) -> Self {
        self.settings.codec = codec;
        self
    }

    /// The bytes of a chunk. Default: 256 KiB. A transfer can be taken up again only with the size
    /// that it began with.
    pub const fn chunk_size(mut self, bytes: u32) -> Self {
        self.settings.chunk_size = bytes;
        self
    }

    /// How many chunks of one transfer may be sent and not yet received, up to 1,024; they are kept
    /// to be sent again. The receiver may allow fewer. Default: 16.
    pub const fn window(mut self, chunks: u32) -> Self {
        self.settings.window = chunks;
        self
    }

    /// How many bytes all transfers together may keep; each takes its window times its chunk size,
    /// and one that finds no room waits for it. Default: 64 MiB.
    pub const fn memory(mut self, bytes: u64) -> Self {
        self.settings.memory = bytes;
        self
    }

    /// How long to wait until a receiver takes the offer, longer than 0 and at most 30 days. Default:
    /// 30 seconds.
    pub const fn accept_timeout(mut self, timeout: Duration) -> Self {
        self.settings.accept_timeout = limits::bounded(timeout);
        self
    }

    /// After how long without a word from a receiver a transfer ends, at least 6 seconds and at most
    /// 30 days. A receiver that reads slowly says so every two seconds. Default: 30 seconds.
    pub const fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = limits::bounded(timeout);
        self
    }

    /// Declares the queue for what receivers say, which is exclusive to this connection, and begins
    /// to consume it.
    ///
    /// Cancellation safe: when the future is dropped, an empty queue may stay until the connection
    /// ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](postrider_core::ErrorKind::Invalid) for settings out of range, and what
    /// [`Transport::declare`], [`Transport::publisher`] and [`Transport::consumer`] fail with.
    pub async fn connect(self) -> Result<StreamSender> {
        let Self { transport, name, settings } = self;
        let most = transport.capabilities().max_message_size;
        limits::check_chunk_size("connect", settings.chunk_size, most)?;
        limits::check_window("connect", settings.window)?;
        limits::check_accept_timeout("connect", settings.accept_timeout)?;
        limits::check_idle_timeout("connect", settings.idle_timeout)?;
        let budget = Budget::new("connect", settings.memory)?;
        let id = transport.env().new_id().to_string();
        let reply_to = settings.naming.reply_queue(&name, &id);
        let replies = Topology::new().queue(Queue::exclusive(reply_to.clone()).auto_delete());
        transport.declare(&replies).await?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let consumer = transport.consumer(&reply_to, ConsumerOptions::default()).await?;
        let (routes, ended) = (Routes::default(), CancellationToken::new());
        let (until, receive) =
            (ended.clone(), receive(consumer, routes.clone(), Arc::clone(&publisher)));
        tokio::spawn(async move { until.run_until_cancelled_owned(receive).await });
        let _receiving = ended.drop_guard();
        let inner = Inner { transport, publisher, routes, budget, reply_to, settings, _receiving };
        Ok(StreamSender { inner: Arc::new(inner) })
    }
}

/// Hands what receivers say to its transfer, until the consumer ends.
async fn receive(mut consumer: Consumer, routes: Routes, publisher: Arc<dyn Publisher>) {
    while let Some(delivery) = consumer.recv().await {
        match delivery {
            Ok(delivery) => {
                hand_out(&delivery, &routes, &*publisher).await;
                delivery.ack();
            }
            Err(error) => {
                tracing::error!(%error, "what receivers say is not heard any more");
                break;
            }
        }
    }
    routes.close();
}

async fn hand_out(delivery: &Delivery, routes: &Routes, publisher: &dyn Publisher) {
    let message = delivery.message();
    let (Some(id), Some(from)) = (wire::stream_id(message), message.reply_to.as_deref()) else {
        tracing::debug!(?message, "no frame of a stream");
        return;
    };
    let frame = match ToSender::read(message) {
        Ok(Some(frame)) => frame,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(%id, %error, "a frame that cannot be read was dropped");
            return;
        }
    };
    let Some(stray) = routes.deliver(id, Heard { from: from.to_owned(), frame }) else { return };
    answer(id, stray, publisher).await;
}

/// Answers a receiver whose transfer is over: it may not have heard the end.
async fn answer(id: Uuid, stray: Heard, publisher: &dyn Publisher) {
    let answer = match stray.frame {
        ToSender::Credit(_) => ToReceiver::Abort {
            code: codes::UNKNOWN_STREAM.to_owned(),
            reason: "the sender has no such stream under way".to_owned(),
        },
        ToSender::Done { .. } | ToSender::Fail(_) => ToReceiver::Bye,
    };
    let message = answer.message(id, Codec::default());
    let envelope = Envelope::new(Address::queue(stray.from), message);
    // Whoever does not hear it says so again.
    if let Ok(Err(error)) = timeout(STRAY, publisher.send(envelope)).await {
        tracing::debug!(%id, %error, "a receiver was not answered");
    }
}
