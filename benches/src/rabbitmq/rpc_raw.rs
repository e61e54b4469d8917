//! Calls on lapin: a server and a client as one would write them well.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::SecondsFormat;
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions},
    types::FieldTable,
};
use postrider_core::Env;
use postrider_patterns::Request;
use tokio::{sync::oneshot, time::timeout};

use super::raw;
use crate::{
    BODY,
    echo::{Echo, EchoBody, EchoReply},
};

const TRANSIENT: u8 = 1;

/// How long a call may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Where replies go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Replies {
    /// RabbitMQ's direct reply-to.
    Direct,
    /// A queue of the client's own.
    ExclusiveQueue,
}

fn properties() -> BasicProperties {
    BasicProperties::default()
        .with_delivery_mode(TRANSIENT)
        .with_content_type("application/msgpack".into())
        .with_timestamp(Env::system().timestamp().timestamp().cast_unsigned())
}

/// Answers the requests of `queue`, many at once, until its connection is closed.
pub(super) async fn serve(url: &str, queue: &str, at_once: u16) -> (Connection, Channel) {
    let connection = raw::connect(url).await;
    let (open, requests) = raw::consumer(&connection, queue, 3 * at_once).await;
    let channel = open.clone();
    tokio::spawn(requests.for_each_concurrent(usize::from(at_once), move |request| {
        let channel = channel.clone();
        async move {
            // The connection is closed when the measurement is over.
            let Ok(request) = request else { return };
            answer(&channel, request).await;
        }
    }));
    (connection, open)
}

async fn answer(channel: &Channel, request: Delivery) {
    let asked: EchoBody = rmp_serde::from_slice(&request.data).expect("decoded");
    assert_eq!(asked.method, Echo::METHOD);
    let reply = EchoReply { status: "success".into(), data: asked.params.body };
    let body = rmp_serde::to_vec_named(&reply).expect("encoded");
    let (to, id) = (request.properties.reply_to(), request.properties.correlation_id());
    let (to, id) = (to.clone().expect("an address"), id.clone().expect("an id"));
    let properties = properties().with_correlation_id(id);
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), to, options, &body, properties).await.expect("replied");
    request.ack(BasicAckOptions::default()).await.expect("acked");
}

/// Calls a server.
pub(super) struct Client {
    connection: Connection,
    channel: Channel,
    queue: String,
    reply_to: String,
    waiting: Arc<Mutex<HashMap<String, oneshot::Sender<Vec<u8>>>>>,
    next: AtomicU64,
}

impl Client {
    pub(super) async fn connect(url: &str, queue: &str, replies: Replies) -> Arc<Self> {
        let connection = raw::connect(url).await;
        let channel = connection.create_channel().await.expect("a channel");
        let reply_to = match replies {
            Replies::Direct => "amq.rabbitmq.reply-to".to_owned(),
            Replies::ExclusiveQueue => {
                let name = format!("bench.replies.{}", Env::system().new_id());
                let options = QueueDeclareOptions {
                    exclusive: true,
                    auto_delete: true,
                    ..QueueDeclareOptions::default()
                };
                let declared =
                    channel.queue_declare(name.as_str().into(), options, FieldTable::default());
                declared.await.expect("declared");
                name
            }
        };
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut answers = channel
            .basic_consume(reply_to.as_str().into(), "".into(), options, FieldTable::default())
            .await
            .expect("consuming");
        let client = Arc::new(Self {
            connection,
            channel,
            queue: queue.to_owned(),
            reply_to,
            waiting: Arc::default(),
            next: AtomicU64::new(0),
        });
        let waiting = client.waiting.clone();
        tokio::spawn(async move {
            while let Some(Ok(answer)) = answers.next().await {
                let id = answer.properties.correlation_id().as_ref().expect("an id").as_str();
                let call = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
                call.expect("a call").send(answer.data).expect("awaited");
            }
        });
        client
    }

    /// Makes a call.
    pub(super) async fn call(&self) {
        let request = EchoBody {
            method: Echo::METHOD.into(),
            params: super::rpc::echo(),
            timestamp: Env::system().timestamp().to_rfc3339_opts(SecondsFormat::Millis, true),
        };
        let body = rmp_serde::to_vec_named(&request).expect("encoded");
        let id = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let (sender, answer) = oneshot::channel();
        let properties = properties()
            .with_correlation_id(id.as_str().into())
            .with_reply_to(self.reply_to.as_str().into())
            .with_expiration(LIMIT.as_millis().to_string().into());
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let options = BasicPublishOptions::default();
        let key = self.queue.as_str().into();
        self.channel.basic_publish("".into(), key, options, &body, properties).await.expect("sent");
        let body = timeout(LIMIT, answer).await.expect("in time").expect("answered");
        let reply: EchoReply = rmp_serde::from_slice(&body).expect("decoded");
        assert_eq!((reply.status.as_str(), reply.data.len()), ("success", BODY.len()));
    }

    pub(super) async fn close(&self) {
        raw::close(&self.connection).await;
    }
}
