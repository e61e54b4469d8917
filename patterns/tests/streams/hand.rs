//! Senders and receivers made by hand, which do what ours would not.

use std::sync::Arc;

use bytes::Bytes;
use postrider_core::{
    Address, Consumer, ConsumerOptions, Env, Envelope, HeaderValue, Message, PublisherExt,
    PublisherOptions, Queue, Topology, Transport,
};
use postrider_patterns::{Codec, ContentHash, headers};
use serde_json::{Value, json};

use super::world::{World, soon};

/// One side of a transfer: its queue, and the way to the other side.
pub(crate) struct Hand {
    pub(crate) transport: Arc<dyn Transport>,
    queue: String,
    consumer: Consumer,
    pub(crate) id: String,
    /// The queue of the other side, once it has spoken.
    pub(crate) other: String,
}

impl Hand {
    async fn new(world: &World, id: String) -> Self {
        let transport = world.connect().await.transport;
        let queue = format!("hand-{}", Env::system().new_id());
        let topology = Topology::new().queue(Queue::exclusive(queue.clone()));
        transport.declare(&topology).await.unwrap();
        let consumer = transport.consumer(&queue, ConsumerOptions::default()).await.unwrap();
        Self { transport, queue, consumer, id, other: String::new() }
    }

    /// A sender that has offered a stream of chunks of four bytes.
    pub(crate) async fn sender(world: &World, length: Option<u64>) -> Self {
        let mut hand = Self::new(world, Env::system().new_id().to_string()).await;
        hand.other = format!("stream_{}", world.service);
        hand.offer(json!({ "chunk_size": 4, "length": length })).await;
        hand
    }

    pub(crate) async fn offer(&self, body: Value) {
        self.say("stream.open", body).await;
    }

    /// The queue of the service's offers, before there is one.
    pub(crate) async fn offers(world: &World) -> Offers {
        let hand = Self::new(world, String::new()).await;
        let queue = format!("stream_{}", world.service);
        let topology = Topology::new().queue(Queue::exclusive(queue.clone()));
        hand.transport.declare(&topology).await.unwrap();
        let options = ConsumerOptions::default();
        let consumer = hand.transport.consumer(&queue, options).await.unwrap();
        Offers { hand, consumer }
    }

    /// The next frame: its type, and its body where that is no chunk.
    pub(crate) async fn hear(&mut self) -> (String, Value) {
        let delivery = soon(self.consumer.recv()).await.unwrap().unwrap();
        let message = delivery.message().clone();
        delivery.ack();
        if let Some(other) = &message.reply_to {
            self.other = other.to_string();
        }
        self.id = message.correlation_id.as_deref().unwrap().to_owned();
        let kind = message.message_type.as_deref().unwrap().to_owned();
        let body = match kind.as_str() {
            "stream.chunk" => message.headers.get(headers::STREAM_SEQ).unwrap().as_int().into(),
            _ if message.body.is_empty() => Value::Null,
            _ => Codec::decode(message.content_type.as_deref(), &message.body).unwrap(),
        };
        (kind, body)
    }

    /// The next frame of this type.
    pub(crate) async fn hear_of(&mut self, wanted: &str) -> Value {
        loop {
            let (kind, body) = self.hear().await;
            if kind == wanted {
                return body;
            }
        }
    }

    /// Waits until the receiver lets chunks be sent.
    pub(crate) async fn credit(&mut self) -> Value {
        loop {
            let credit = self.hear_of("stream.credit").await;
            if credit["until"] != 0 {
                return credit;
            }
        }
    }

    pub(crate) async fn say(&self, kind: &'static str, body: Value) {
        let body = Codec::Json.encode(&body).unwrap();
        self.send(Message::new(body).with_content_type("application/json").with_type(kind)).await;
    }

    pub(crate) async fn send(&self, message: Message) {
        let publisher = self.transport.publisher(PublisherOptions::default()).await.unwrap();
        let message = message
            .with_correlation_id(self.id.clone())
            .with_reply_to(self.queue.clone())
            .transient();
        let sent = publisher.publish(Envelope::new(Address::queue(self.other.clone()), message));
        // The other side may have ended already.
        let _verdict = sent.await;
    }

    pub(crate) async fn chunk(&self, seq: i64, offset: i64, body: &'static [u8]) {
        self.send(chunk(seq, offset, body)).await;
    }

    /// Sends the chunks of `payload` with these numbers.
    pub(crate) async fn chunks(&self, payload: &'static [u8], seqs: &[usize]) {
        for &seq in seqs {
            let body = payload.chunks(4).nth(seq).unwrap();
            self.chunk(seq as i64, seq as i64 * 4, body).await;
        }
    }

    pub(crate) async fn close(&self, payload: &[u8]) {
        let (chunks, length) = (payload.len().div_ceil(4), payload.len());
        let blake3 = ContentHash::of(payload).to_string();
        let body = json!({ "chunks": chunks, "length": length, "blake3": blake3 });
        self.say("stream.close", body).await;
    }
}

/// A receiver that has yet to take an offer.
pub(crate) struct Offers {
    hand: Hand,
    consumer: Consumer,
}

impl Offers {
    pub(crate) async fn take(mut self) -> Hand {
        std::mem::swap(&mut self.hand.consumer, &mut self.consumer);
        assert_eq!(self.hand.hear().await.0, "stream.open");
        std::mem::swap(&mut self.hand.consumer, &mut self.consumer);
        self.hand
    }
}

pub(crate) fn chunk(seq: i64, offset: i64, body: &'static [u8]) -> Message {
    Message::new(Bytes::from_static(body))
        .with_type("stream.chunk")
        .with_content_type("application/octet-stream")
        .with_header(headers::STREAM_SEQ, HeaderValue::Int(seq))
        .with_header(headers::STREAM_OFFSET, HeaderValue::Int(offset))
        .with_header(headers::STREAM_CRC32C, i64::from(crc32c::crc32c(body)))
}
