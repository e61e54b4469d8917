//! What the functions of the suite use.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::LocalBoxFuture};
use postrider_core::{
    Address, ConsumerOptions, Env, Envelope, Exchange, HeaderValue, Message, PublisherExt,
    PublisherOptions, Queue, Topology, Transport,
};
use postrider_patterns::{
    Codec, Jitter, Naming, RetryPolicy, headers,
    routing::{Flow, FlowStats, Intake, Route},
};
use postrider_testkit::harness::{Connection, TestBroker};
use serde::Serialize;
use tokio::time::{sleep, timeout};

use crate::suite;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A broker, and names that nobody else has.
pub(crate) struct World {
    pub(crate) broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    pub(crate) prefix: String,
    queues: Mutex<BTreeSet<String>>,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("routing-{}.", Env::system().new_id());
        let naming =
            Naming::default().prefixed(&prefix).with_dead_letter_queue("{queue}.dead_letters");
        let naming = naming.with_partition_queue("{queue}.{number}");
        Self { broker, naming, prefix, queues: Mutex::default() }
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn clear(&self) -> LocalBoxFuture<'_, ()> {
        async {
            let transport = self.transport().await;
            let mut topology =
                Topology::new().exchange(Exchange::direct(self.naming.dead_letter_exchange()));
            let names = self.queues.lock().unwrap().clone();
            for name in &names {
                let (dead, calls) =
                    (self.naming.dead_letter_queue(name), self.naming.rpc_queue(name));
                let dead_calls = self.naming.dead_letter_queue(&calls);
                topology = topology
                    .exchange(Exchange::topic(name.clone()))
                    .exchange(Exchange::direct(self.naming.rpc_exchange(name)));
                for queue in [name.clone(), dead, calls, dead_calls] {
                    topology = topology.queue(Queue::durable(queue));
                }
            }
            transport.remove(&topology).await.unwrap();
            transport.close(SOON).await.unwrap();
        }
        .boxed_local()
    }
}

impl World {
    pub(crate) async fn connect(&self) -> Connection {
        self.broker.connect().await.unwrap()
    }

    pub(crate) async fn transport(&self) -> Arc<dyn Transport> {
        self.connect().await.transport
    }

    /// The name of a queue, an exchange or a service, to be cleared away at the end.
    pub(crate) fn name(&self, name: &str) -> String {
        let name = format!("{}{name}", self.prefix);
        self.queues.lock().unwrap().insert(name.clone());
        name
    }

    pub(crate) fn intake(&self, name: &str) -> Intake {
        Intake::queue(self.name(name)).naming(self.naming.clone()).retry(quick())
    }

    pub(crate) fn to(&self, name: &str) -> Route {
        Route::queue(self.name(name))
    }

    /// Declares a queue that messages are to come to.
    pub(crate) async fn declare(&self, transport: &dyn Transport, name: &str) {
        let topology = Topology::new().queue(Queue::durable(self.name(name)));
        transport.declare(&topology).await.unwrap();
    }

    pub(crate) async fn put(&self, transport: &dyn Transport, name: &str, message: Message) {
        let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
        let envelope = Envelope::new(Address::queue(self.name(name)), message);
        publisher.publish(envelope).await.unwrap();
    }

    /// Waits for the next message of a queue and takes it.
    pub(crate) async fn take(&self, transport: &dyn Transport, name: &str) -> Message {
        let mut messages = self.take_many(transport, name, 1).await;
        messages.pop().unwrap()
    }

    pub(crate) async fn take_many(
        &self,
        transport: &dyn Transport,
        name: &str,
        number: usize,
    ) -> Vec<Message> {
        let options = ConsumerOptions::default().with_prefetch(1);
        let queue = self.name(name);
        let mut consumer = transport.consumer(&queue, options).await.unwrap();
        let mut messages = Vec::new();
        while messages.len() < number {
            let delivery = timeout(SOON, consumer.recv()).await;
            let delivery = delivery.unwrap_or_else(|_late| {
                panic!("{} of {number} messages came to {queue}", messages.len())
            });
            let delivery = delivery.unwrap().unwrap();
            messages.push(delivery.message().clone());
            delivery.ack();
        }
        messages
    }

    /// The next dead letter of a queue.
    pub(crate) async fn dead(&self, transport: &dyn Transport, name: &str) -> Message {
        self.take(transport, &format!("{name}.dead_letters")).await
    }

    pub(crate) async fn waiting(&self, transport: &dyn Transport, name: &str) -> u64 {
        transport.queue_info(&self.name(name)).await.unwrap().unwrap().ready
    }

    /// Waits until so many messages wait in a queue; brokers count late.
    pub(crate) async fn comes_to_hold(&self, transport: &dyn Transport, name: &str, number: u64) {
        let coming = timeout(SOON, async {
            while self.waiting(transport, name).await != number {
                sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(coming.await.is_ok(), "{number} messages wait in {name}");
    }
}

/// Three tries, without a long wait.
pub(crate) fn quick() -> RetryPolicy {
    let delay = Duration::from_millis(50);
    RetryPolicy::default()
        .with_immediate(1)
        .with_delayed(1)
        .with_delay(delay, 1.0, delay)
        .with_jitter(Jitter::None)
}

pub(crate) fn message<T: Serialize>(codec: Codec, id: &str, body: &T) -> Message {
    let body = codec.encode(body).unwrap();
    Message::new(body).with_content_type(codec.content_type()).with_message_id(id.to_owned())
}

pub(crate) fn json(id: &str, body: &str) -> Message {
    let message = Message::new(body.to_owned()).with_content_type("application/json");
    message.with_message_id(id.to_owned())
}

pub(crate) fn id(message: &Message) -> &str {
    message.message_id.as_deref().unwrap()
}

pub(crate) fn ids(messages: &[Message]) -> Vec<&str> {
    let mut ids: Vec<_> = messages.iter().map(id).collect();
    ids.sort_unstable();
    ids
}

pub(crate) fn int(message: &Message, header: &str) -> Option<i64> {
    message.headers.get(header).and_then(HeaderValue::as_int)
}

pub(crate) fn code(dead: &Message) -> &str {
    dead.headers.get(headers::ERROR_CODE).and_then(HeaderValue::as_text).unwrap_or("none")
}

/// Waits until a flow has done something.
pub(crate) async fn comes_to(flow: &Flow, is_there: impl Fn(FlowStats) -> bool) {
    let coming = timeout(SOON, async {
        while !is_there(flow.stats()) {
            sleep(Duration::from_millis(10)).await;
        }
    });
    let came = coming.await;
    assert!(came.is_ok(), "it came only to {:?}", flow.stats());
}

pub(crate) async fn stop(flow: Flow) {
    let report = timeout(SOON, flow.stop(SOON)).await.unwrap();
    assert_eq!((report.released, report.still_running), (0, 0));
}
