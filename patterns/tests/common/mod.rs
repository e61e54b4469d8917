//! What the tests of all patterns share.
#![allow(dead_code)] // Each test file uses a part of it.

pub(crate) mod memory;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use postrider_core::{
    Address, ConsumerOptions, Delivery, Env, Envelope, HeaderValue, Message, PublisherExt,
    PublisherOptions, Queue, Topology, Transport,
};
use postrider_patterns::Codec;
use postrider_transport_inmemory::{Broker, InMemory};
use serde_json::Value;

/// The moment at which every simulated clock starts, as it stands on the wire.
pub(crate) const START: &str = "2026-01-01T00:00:00.000Z";

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A broker of the test's own on a simulated clock, and one connection to it.
pub(crate) fn transport() -> Arc<dyn Transport> {
    Arc::new(InMemory::connect_with("memory://", Env::simulated(7)).unwrap())
}

/// Two connections to one broker.
pub(crate) fn two_transports() -> (Arc<InMemory>, Arc<InMemory>) {
    let broker = Broker::new(Env::simulated(7));
    let connect = || Arc::new(InMemory::connect_to(&broker).unwrap());
    (connect(), connect())
}

/// Waits for the next message of a queue and takes it.
pub(crate) async fn take(transport: &dyn Transport, queue: &str) -> Message {
    let delivery = deliver(transport, queue).await;
    let message = delivery.message().clone();
    delivery.ack();
    message
}

pub(crate) async fn deliver(transport: &dyn Transport, queue: &str) -> Delivery {
    let options = ConsumerOptions::default().with_prefetch(1);
    let mut consumer = transport.consumer(queue, options).await.unwrap();
    consumer.recv().await.unwrap().unwrap()
}

pub(crate) async fn publish(transport: &dyn Transport, address: Address, message: Message) {
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    publisher.publish(Envelope::new(address, message)).await.unwrap();
}

pub(crate) async fn declare_queue(transport: &dyn Transport, queue: Queue) {
    let topology = Topology::new().queue(queue);
    transport.declare(&topology).await.unwrap();
}

pub(crate) async fn ready(transport: &dyn Transport, queue: &str) -> u64 {
    transport.queue_info(queue).await.unwrap().unwrap().ready
}

pub(crate) fn text<'a>(message: &'a Message, header: &str) -> Option<&'a str> {
    message.headers.get(header).and_then(HeaderValue::as_text)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares the body with its JSON text, or, in MessagePack, with its hex form and its value.
pub(crate) fn assert_body(message: &Message, codec: Codec, json: &str, msgpack: &str) {
    assert_eq!(message.content_type.as_deref(), Some(codec.content_type()));
    match codec {
        Codec::Json => assert_eq!(std::str::from_utf8(&message.body).unwrap(), json),
        _ => {
            assert_eq!(hex(&message.body), msgpack);
            let value: Value = Codec::decode(Some(codec.content_type()), &message.body).unwrap();
            assert_eq!(value, serde_json::from_str::<Value>(json).unwrap());
        }
    }
}

pub(crate) const BOTH: [Codec; 2] = [Codec::Json, Codec::MessagePack];

/// A list that handlers write to and the test reads.
#[derive(Debug)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone> Log<T> {
    pub(crate) fn push(&self, item: T) {
        self.0.lock().unwrap().push(item);
    }

    pub(crate) fn items(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}
