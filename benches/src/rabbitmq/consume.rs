//! Consuming a queue that was filled before, and acknowledging each message.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::options::BasicAckOptions;
use postrider_core::{Address, ConsumerOptions, Envelope, Message, PublisherOptions, QueueKind};

use super::{
    ACKS_AT_ONCE, Bench, CLIENT, Cost, Manner, NewQueue, POSTRIDER, PREFETCH, Protocol, RATE, raw,
    raw_amqp10,
};
use crate::{
    BODY,
    rounds::{Contest, Goal},
};

/// How long a connection may take to close.
const CLOSE: Duration = Duration::from_secs(10);

/// Measures consuming with acknowledgements.
///
/// # Panics
///
/// When a message is lost, or one of a classic queue is not acknowledged in the end.
pub async fn consume(bench: &Bench, kind: QueueKind) -> Contest {
    let title = format!("consume and ack, {kind:?} queue, 256 B, prefetch {PREFETCH}");
    let [well, as_most] = bench.protocol.twins();
    let mut contest =
        Contest::new(title, bench.figures(), [POSTRIDER, well, as_most]).with_goals([
            Goal::at_least(well, RATE, 0.92),
            Goal::at_most(well, CLIENT, 1.15),
            Goal::at_least(as_most, RATE, 2.0),
        ]);
    let (many, few) = (bench.sizes.messages, bench.sizes.awaited);
    for _ in 0..bench.sizes.rounds {
        contest.note(0, consume_with_postrider(bench, kind, many).await.figures());
        let (well, as_most) = match bench.protocol {
            Protocol::Amqp091 => (
                consume_well_with_lapin(bench, kind, many).await,
                as_most_write_it(bench, kind, few).await,
            ),
            Protocol::Amqp10 => (
                consume_with_fe2o3(bench, kind, many, Manner::Well).await,
                consume_with_fe2o3(bench, kind, few, Manner::AsMost).await,
            ),
        };
        contest.note(1, well.figures());
        contest.note(2, as_most.figures());
    }
    contest
}

/// A queue with messages in it.
async fn filled_queue(bench: &Bench, kind: QueueKind, messages: u64) -> NewQueue {
    let queue = bench.queue(kind).await;
    let publisher = queue.admin.publisher(PublisherOptions::default()).await.expect("open");
    let address = Address::queue(queue.name.clone());
    for _ in 0..messages {
        let message = Message::new(Bytes::from_static(&BODY));
        let _confirm = publisher.send(Envelope::new(address.clone(), message)).await.expect("sent");
    }
    publisher.flush().await.expect("stored");
    queue
}

/// Consumes and acknowledges `messages`.
///
/// # Panics
///
/// When a message is lost, or one of a classic queue is not acknowledged in the end.
pub async fn consume_with_postrider(bench: &Bench, kind: QueueKind, messages: u64) -> Cost {
    let queue = filled_queue(bench, kind, messages).await;
    let transport = bench.connect().await;
    let options = ConsumerOptions::default().with_prefetch(PREFETCH);
    let mut consumer = transport.consumer(&queue.name, options).await.expect("open");
    let work = async move {
        for _ in 0..messages {
            let delivery = consumer.recv().await.expect("goes on").expect("delivered");
            assert_eq!(delivery.message().body.len(), BODY.len());
            delivery.ack();
        }
    };
    let (cost, ()) = bench.meter.measure(messages, work).await;
    transport.close(CLOSE).await.expect("closed");
    queue.delete_consumed(kind).await;
    cost
}

/// The twin: one acknowledgement for each hundred messages.
///
/// # Panics
///
/// When a message is lost, or one of a classic queue is not acknowledged in the end.
pub async fn consume_well_with_lapin(bench: &Bench, kind: QueueKind, messages: u64) -> Cost {
    let queue = filled_queue(bench, kind, messages).await;
    let connection = raw::connect(&bench.url).await;
    let (channel, mut consumer) = raw::consumer(&connection, &queue.name, PREFETCH).await;
    let work = async move {
        for number in 1..=messages {
            let delivery = consumer.next().await.expect("goes on").expect("delivered");
            assert_eq!(delivery.data.len(), BODY.len());
            if number % ACKS_AT_ONCE == 0 || number == messages {
                let options = BasicAckOptions { multiple: true };
                channel.basic_ack(delivery.delivery_tag, options).await.expect("acked");
            }
        }
        (channel, consumer)
    };
    let (cost, _open) = bench.meter.measure(messages, work).await;
    raw::close(&connection).await;
    queue.delete_consumed(kind).await;
    cost
}

async fn as_most_write_it(bench: &Bench, kind: QueueKind, messages: u64) -> Cost {
    let queue = filled_queue(bench, kind, messages).await;
    let connection = raw::connect(&bench.url).await;
    let (channel, mut consumer) = raw::consumer(&connection, &queue.name, PREFETCH).await;
    let work = async move {
        for _ in 0..messages {
            let delivery = consumer.next().await.expect("goes on").expect("delivered");
            assert_eq!(delivery.data.len(), BODY.len());
            assert!(delivery.ack(BasicAckOptions::default()).await.expect("acked"));
        }
        (channel, consumer)
    };
    let (cost, _open) = bench.meter.measure(messages, work).await;
    raw::close(&connection).await;
    queue.delete_consumed(kind).await;
    cost
}

async fn consume_with_fe2o3(bench: &Bench, kind: QueueKind, messages: u64, manner: Manner) -> Cost {
    let queue = filled_queue(bench, kind, messages).await;
    let mut open = raw_amqp10::Open::connect(&bench.url).await;
    let mut receiver = open.receiver(&queue.name, PREFETCH).await;
    let work = async move {
        match manner {
            Manner::Well => raw_amqp10::consume_well(&mut receiver, messages).await,
            Manner::AsMost => raw_amqp10::consume_each(&mut receiver, messages).await,
        }
        receiver
    };
    let (cost, receiver) = bench.meter.measure(messages, work).await;
    receiver.close().await.expect("closed");
    open.close().await;
    queue.delete_consumed(kind).await;
    cost
}
