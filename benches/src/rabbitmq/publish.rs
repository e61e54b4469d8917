//! Confirmed publishing to one queue.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::Confirmation;
use postrider_core::{Address, Confirm, Envelope, Message, PublisherOptions, QueueKind};

use super::{Bench, CLIENT, Cost, Manner, POSTRIDER, Protocol, RATE, WINDOW, raw, raw_amqp10};
use crate::{
    BODY,
    rounds::{Contest, Goal},
};

/// Measures confirmed publishing.
///
/// # Panics
///
/// When a message is lost or refused.
pub async fn publish(bench: &Bench, kind: QueueKind) -> Contest {
    let title = format!("confirmed publish, {kind:?} queue, 256 B, window {WINDOW}");
    let [well, as_most] = bench.protocol.twins();
    let mut contest =
        Contest::new(title, bench.figures(), [POSTRIDER, well, as_most]).with_goals([
            Goal::at_least(well, RATE, 0.92),
            Goal::at_most(well, CLIENT, 1.15),
            Goal::at_least(as_most, RATE, 5.0),
        ]);
    let (many, few) = (bench.sizes.messages, bench.sizes.awaited);
    for _ in 0..bench.sizes.rounds {
        contest.note(0, publish_with_postrider(bench, kind, many).await.figures());
        let (well, as_most) = match bench.protocol {
            Protocol::Amqp091 => (
                publish_well_with_lapin(bench, kind, many).await,
                as_most_write_it(bench, kind, few).await,
            ),
            Protocol::Amqp10 => (
                publish_with_fe2o3(bench, kind, many, Manner::Well).await,
                publish_with_fe2o3(bench, kind, few, Manner::AsMost).await,
            ),
        };
        contest.note(1, well.figures());
        contest.note(2, as_most.figures());
    }
    contest
}

/// Publishes `messages`, a window of them under way.
///
/// # Panics
///
/// When a message is lost or refused.
pub async fn publish_with_postrider(bench: &Bench, kind: QueueKind, messages: u64) -> Cost {
    let queue = bench.queue(kind).await;
    let transport = bench.connect().await;
    let options = PublisherOptions::default().with_window(WINDOW);
    let publisher = transport.publisher(options).await.expect("open");
    let address = Address::queue(queue.name.clone());
    let work = async move {
        let mut under_way: VecDeque<Confirm> = VecDeque::with_capacity(WINDOW);
        for _ in 0..messages {
            if under_way.len() == WINDOW
                && let Some(confirm) = under_way.pop_front()
            {
                assert!(confirm.await.is_accepted());
            }
            let message = Message::new(Bytes::copy_from_slice(&BODY));
            let envelope = Envelope::new(address.clone(), message);
            under_way.push_back(publisher.send(envelope).await.expect("sent"));
        }
        for confirm in under_way {
            assert!(confirm.await.is_accepted());
        }
    };
    let (cost, ()) = bench.meter.measure(messages, work).await;
    queue.delete_with(messages).await;
    cost
}

/// The twin: one task and its channel, a window of messages under way.
///
/// # Panics
///
/// When a message is lost or refused.
pub async fn publish_well_with_lapin(bench: &Bench, kind: QueueKind, messages: u64) -> Cost {
    let queue = bench.queue(kind).await;
    let connection = raw::connect(&bench.url).await;
    let channel = raw::confirm_channel(&connection).await;
    let name = queue.name.clone();
    let work = async move {
        let publish = async || {
            let body = BODY.to_vec();
            let (key, properties) = (name.as_str().into(), raw::persistent());
            let sent = channel.basic_publish("".into(), key, raw::MANDATORY, &body, properties);
            sent.await.expect("sent").await.expect("confirmed")
        };
        let mut under_way = FuturesUnordered::new();
        for _ in 0..messages {
            if under_way.len() == WINDOW
                && let Some(confirmation) = under_way.next().await
            {
                assert_eq!(confirmation, Confirmation::Ack(None));
            }
            under_way.push(publish());
        }
        while let Some(confirmation) = under_way.next().await {
            assert_eq!(confirmation, Confirmation::Ack(None));
        }
        drop(under_way);
        channel
    };
    let (cost, _channel) = bench.meter.measure(messages, work).await;
    raw::close(&connection).await;
    queue.delete_with(messages).await;
    cost
}

async fn as_most_write_it(bench: &Bench, kind: QueueKind, messages: u64) -> Cost {
    let queue = bench.queue(kind).await;
    let connection = raw::connect(&bench.url).await;
    let channel = raw::confirm_channel(&connection).await;
    let name = queue.name.clone();
    let work = async move {
        for _ in 0..messages {
            let body = BODY.to_vec();
            let (key, properties) = (name.as_str().into(), raw::persistent());
            let sent = channel.basic_publish("".into(), key, raw::MANDATORY, &body, properties);
            let confirmation = sent.await.expect("sent").await.expect("confirmed");
            assert_eq!(confirmation, Confirmation::Ack(None));
        }
        channel
    };
    let (cost, _channel) = bench.meter.measure(messages, work).await;
    raw::close(&connection).await;
    queue.delete_with(messages).await;
    cost
}

async fn publish_with_fe2o3(bench: &Bench, kind: QueueKind, messages: u64, manner: Manner) -> Cost {
    let queue = bench.queue(kind).await;
    let mut open = raw_amqp10::Open::connect(&bench.url).await;
    let mut sender = open.sender(&queue.name).await;
    let work = async move {
        match manner {
            Manner::Well => raw_amqp10::publish_well(&mut sender, messages).await,
            Manner::AsMost => raw_amqp10::publish_each(&mut sender, messages).await,
        }
        sender
    };
    let (cost, sender) = bench.meter.measure(messages, work).await;
    sender.close().await.expect("closed");
    open.close().await;
    queue.delete_with(messages).await;
    cost
}
