//! Sending: batches, streams, sizes, and what is refused before it is sent.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use postrider_core::{
    Address, Binding, ConsumerOptions, DeadLetter, Envelope, ErrorKind, Exchange, HeaderValue,
    MAX_HEADER_BYTES, Message, PublisherExt, PublisherOptions, Queue, Topology, Verdict,
};

use super::{Behaviour, Need};
use crate::{Scene, scene::refused};

pub(super) fn behaviours() -> Vec<Behaviour> {
    vec![
        Behaviour::new(accepted_messages_are_stored, &[Need::Topology]),
        Behaviour::new(send_batch_keeps_order, &[Need::Topology]),
        Behaviour::new(publish_all_gives_verdicts_in_order, &[Need::Topology]),
        Behaviour::new(flush_waits_for_every_verdict, &[Need::Topology]),
        Behaviour::new(dropped_confirm_loses_no_message, &[Need::Topology]),
        Behaviour::new(names_that_cannot_be_are_refused_before_sending, &[Need::Topology]),
        Behaviour::new(refused_batch_sends_nothing, &[Need::Topology]),
        Behaviour::new(options_out_of_range_are_refused, &[Need::Topology]),
        Behaviour::new(missing_exchange_leaves_publisher_usable, &[Need::Topology]),
        Behaviour::new(missing_exchange_harms_no_neighbour, &[Need::Topology]),
        Behaviour::new(internal_exchange_takes_no_publish, &[Need::Topology]),
        Behaviour::new(verdicts_are_not_swapped_by_headers, &[Need::Topology]),
        Behaviour::new(endless_timeouts_are_long_ones, &[Need::Topology]),
        Behaviour::new(empty_and_large_bodies_arrive, &[Need::Topology]),
        Behaviour::new(large_bodies_arrive_with_any_header, &[Need::Topology]),
        Behaviour::new(headers_arrive_up_to_their_limit, &[Need::Topology]),
        Behaviour::new(body_over_the_limit_is_refused, &[Need::Topology, Need::MaxMessageSize]),
    ]
}

fn numbered(queue: &str, count: usize) -> Vec<Envelope> {
    (0..count)
        .map(|n| Envelope::new(Address::queue(queue.to_owned()), Message::new(n.to_string())))
        .collect()
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

async fn accepted_messages_are_stored(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let publisher = scene.publisher().await;
        publisher
            .publish(Envelope::new(Address::queue(queue.clone()), Message::new("one")))
            .await
            .expect("a publish to a queue that is there");
        // Stored means visible to others by the time of the verdict, not some time after it.
        let other = scene.connect().await;
        let mut reader = scene.read_on(&other.transport, &queue, 1).await;
        assert_eq!(reader.bodies(1).await, ["one"], "what was accepted by '{queue}'");
    }
}

async fn send_batch_keeps_order(scene: Scene) {
    let queue = scene.queue("batch").await;
    let publisher = scene.publisher().await;
    let confirms = publisher.send_batch(numbered(&queue, 500)).await.expect("a valid batch");
    assert_eq!(confirms.len(), 500, "a batch gives a confirm for each message");
    for confirm in confirms {
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "each message of a batch");
    }
    let none = publisher.send_batch(Vec::new()).await.expect("an empty batch");
    assert!(none.is_empty(), "an empty batch has no confirms");
    scene.holds(&queue, &numbers(500)).await;
}

async fn publish_all_gives_verdicts_in_order(scene: Scene) {
    let queue = scene.queue("stream").await;
    let missing = scene.name("missing");
    let publisher = scene.publisher().await;
    let to = |n: usize| if n.is_multiple_of(3) { missing.clone() } else { queue.clone() };
    let envelopes: Vec<_> = (0..600)
        .map(|n| Envelope::new(Address::queue(to(n)), Message::new(n.to_string())))
        .collect();
    let all = publisher.publish_all(stream::iter(envelopes), 100).collect::<Vec<_>>();
    let verdicts = scene.soon("600 verdicts", all).await;
    assert_eq!(verdicts.len(), 600, "publish_all gives a verdict for each message");
    for (n, verdict) in verdicts.into_iter().enumerate() {
        let expected = if n.is_multiple_of(3) { Verdict::Unroutable } else { Verdict::Accepted };
        assert_eq!(verdict.expect("each was sent"), expected, "the verdict of message {n}");
    }
    let stored: Vec<_> =
        (0..600).filter(|n: &usize| !n.is_multiple_of(3)).map(|n| n.to_string()).collect();
    scene.holds(&queue, &stored).await;
}

async fn flush_waits_for_every_verdict(scene: Scene) {
    let queue = scene.queue("flush").await;
    let publisher = scene.publisher_with(PublisherOptions::default()).await;
    let mut confirms = Vec::new();
    for envelope in numbered(&queue, 500) {
        confirms.push(scene.send(&*publisher, envelope).await);
    }
    publisher.flush().await.expect("a flush on a healthy broker");
    for (n, confirm) in confirms.into_iter().enumerate() {
        // A verdict that is there needs no waiting: it is the first thing the confirm says.
        let verdict = futures_util::FutureExt::now_or_never(confirm);
        assert_eq!(verdict, Some(Verdict::Accepted), "verdict {n} after a flush");
    }
    publisher.flush().await.expect("a flush with nothing under way");
}

async fn dropped_confirm_loses_no_message(scene: Scene) {
    let queue = scene.queue("dropped").await;
    let publisher = scene.publisher().await;
    for envelope in numbered(&queue, 100) {
        drop(scene.send(&*publisher, envelope).await);
    }
    publisher.flush().await.expect("a flush counts dropped confirms too");
    scene.holds(&queue, &numbers(100)).await;
}

async fn names_that_cannot_be_are_refused_before_sending(scene: Scene) {
    let queue = scene.queue("names").await;
    let publisher = scene.publisher().await;
    let long = "x".repeat(256);
    for address in [
        Address::queue(long.clone()),
        Address::exchange(long.clone(), "key"),
        Address::exchange("", long.clone()),
        Address::queue("two\nlines"),
        Address::queue(""),
        Address::exchange("", ""),
    ] {
        let sent = publisher.send(Envelope::new(address.clone(), Message::new("x"))).await;
        refused(sent, &[ErrorKind::Invalid], &format!("a send to {address}"));
    }
    // 255 bytes are allowed, in whatever characters; nobody has such a queue.
    let longest = "é".repeat(127) + "e";
    let longest = Envelope::new(Address::queue(longest), Message::new("x"));
    let confirm = scene.send(&*publisher, longest).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Unroutable, "a name of 255 bytes is valid");
    scene.publish(&queue, ["after"]).await;
    scene.holds(&queue, &["after"]).await;
}

async fn refused_batch_sends_nothing(scene: Scene) {
    let queue = scene.queue("all-or-none").await;
    let publisher = scene.publisher().await;
    let mut batch = numbered(&queue, 3);
    batch[2].address = Address::queue("x".repeat(256));
    let sent = publisher.send_batch(batch).await;
    refused(sent, &[ErrorKind::Invalid], "a batch with an invalid name");
    scene.publish(&queue, ["after"]).await;
    scene.holds(&queue, &["after"]).await;
}

async fn options_out_of_range_are_refused(scene: Scene) {
    let queue = scene.queue("options").await;
    let transport = scene.transport();
    let publisher = transport.publisher(PublisherOptions::default().with_window(0)).await;
    refused(publisher, &[ErrorKind::Invalid], "a publisher with window 0");
    let options = ConsumerOptions::default().with_prefetch(0);
    let consumer = transport.consumer(&queue, options).await;
    refused(consumer, &[ErrorKind::Invalid], "a consumer with prefetch 0");
}

/// What is sent to an exchange that takes nothing is refused in one of the ways that the contract
/// has for it, and never said to be stored.
async fn is_not_stored(scene: &Scene, address: Address) {
    let publisher = scene.publisher().await;
    let envelope = Envelope::new(address.clone(), Message::new("lost"));
    match scene.soon("a send", publisher.send(envelope)).await {
        Ok(confirm) => {
            let verdict = scene.verdict(confirm).await;
            assert!(
                matches!(verdict, Verdict::Unroutable | Verdict::Rejected(_)),
                "the verdict of a publish to {address}: {verdict:?}"
            );
        }
        error @ Err(_) => {
            refused(
                error,
                &[ErrorKind::NotFound, ErrorKind::Invalid, ErrorKind::Unauthorized],
                &format!("a send to {address}"),
            );
        }
    }
}

async fn missing_exchange_leaves_publisher_usable(scene: Scene) {
    let queue = scene.queue("usable").await;
    let nowhere = scene.name("no-exchange");
    for round in 0..5 {
        is_not_stored(&scene, Address::exchange(nowhere.clone(), "key")).await;
        scene.publish(&queue, [round.to_string()]).await;
    }
    scene.holds(&queue, &numbers(5)).await;
}

async fn missing_exchange_harms_no_neighbour(scene: Scene) {
    let queue = scene.queue("neighbour").await;
    let publisher = scene.publisher().await;
    let nowhere = scene.name("no-exchange");
    let mut confirms = Vec::new();
    for n in 0..200 {
        if n % 20 == 10 {
            let address = Address::exchange(nowhere.clone(), "key");
            let lost = publisher.send(Envelope::new(address, Message::new("lost"))).await;
            if let Ok(confirm) = lost {
                confirms.push((None, confirm));
            }
        } else {
            let address = Address::queue(queue.clone());
            let envelope = Envelope::new(address, Message::new(n.to_string()));
            confirms.push((Some(n), scene.send(&*publisher, envelope).await));
        }
    }
    let mut accepted = Vec::new();
    for (n, confirm) in confirms {
        match (n, scene.verdict(confirm).await) {
            (Some(n), Verdict::Accepted) => accepted.push(n.to_string()),
            // A channel that dies under other publishes may leave their fate open.
            (Some(_), Verdict::Unknown(_)) => {}
            (None, Verdict::Unroutable | Verdict::Rejected(_)) => {}
            (n, verdict) => panic!("message {n:?} beside a missing exchange: {verdict:?}"),
        }
    }
    let stored = usize::try_from(scene.info(&queue).await.ready).expect("a small number");
    let there = scene.read(&queue, 100).await.bodies(stored).await;
    for body in accepted {
        assert!(there.contains(&body), "message {body} was accepted and is not in '{queue}'");
    }
    scene.publish(&queue, ["after"]).await;
}

async fn internal_exchange_takes_no_publish(scene: Scene) {
    let (inner, queue) = (scene.name("inner"), scene.queue("behind").await);
    let (outer, key) = (scene.name("outer"), "k");
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::direct(inner.clone()).internal())
                .exchange(Exchange::direct(outer.clone()))
                .bind(Binding::queue(inner.clone(), queue.clone(), key))
                .bind(Binding::exchange(outer.clone(), inner.clone(), key)),
        )
        .await;
    is_not_stored(&scene, Address::exchange(inner, key)).await;
    let through = Envelope::new(Address::exchange(outer, key), Message::new("through"));
    scene.publish_envelopes([through]).await;
    scene.holds(&queue, &["through"]).await;
}

async fn empty_and_large_bodies_arrive(scene: Scene) {
    const LARGE: usize = 8 << 20;
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        // A pattern whose period is prime to every frame size, so that swapped frames show.
        let large: Bytes = (0..LARGE).map(|n| (n % 251) as u8).collect();
        let bodies = [Bytes::new(), large.clone(), large, Bytes::new()];
        let address = Address::queue(queue.clone());
        // What is said of a message may take room in a frame, so half of them have more to say.
        let envelopes = bodies.iter().enumerate().map(|(number, body)| {
            let message = Message::new(body.clone());
            let message = if number % 2 == 0 { message } else { message.transient() };
            let message = if number == 2 { message.with_priority(4) } else { message };
            Envelope::new(address.clone(), message)
        });
        scene.publish_envelopes(envelopes).await;
        let mut reader = scene.read(&queue, 10).await;
        for (number, sent) in bodies.into_iter().enumerate() {
            let delivery = reader.next().await;
            assert_eq!(delivery.message().durable, number % 2 == 0, "message {number}");
            let got = &delivery.message().body;
            assert_eq!(got.len(), sent.len(), "the size of a body through '{queue}'");
            assert!(*got == sent, "a body of {} bytes through '{queue}' changed", sent.len());
            delivery.ack();
        }
    }
}

/// Protocols cut what is large into frames, and the first of them also has the header, which a
/// transport may write in another way than its library does.
async fn large_bodies_arrive_with_any_header(scene: Scene) {
    const LARGE: usize = 300_000;
    let dead = scene.classic("dead").await;
    for queue in [Queue::durable(scene.name("quorum")), Queue::classic(scene.name("classic"))] {
        let queue = queue.with_dead_letter(DeadLetter::to("").with_routing_key(dead.clone()));
        let queue = scene.declare_queue(queue).await;
        for (transient, priority, ttl) in [
            (false, None, None),
            (true, None, None),
            (false, Some(4), None),
            (true, Some(4), Some(Duration::from_secs(600))),
            (true, Some(3), None),
        ] {
            let what =
                format!("transient {transient}, priority {priority:?}, time to live {ttl:?}");
            let body: Bytes = (0..LARGE).map(|n| (n % 251) as u8).collect();
            let mut message = Message::new(body.clone());
            (message.priority, message.ttl) = (priority, ttl);
            let message = if transient { message.transient() } else { message };
            scene.publish_message(&queue, message).await;
            let delivery = scene.read(&queue, 1).await.next().await;
            assert!(delivery.message().body == body, "{what}: the body changed");
            delivery.reject("bad");
            let delivery = scene.read(&dead, 1).await.next().await;
            assert!(delivery.message().body == body, "{what}: the body changed by dying");
            delivery.ack();
        }
    }
}

/// By way of the dead letters too, for which the broker adds some.
async fn headers_arrive_up_to_their_limit(scene: Scene) {
    let dead = scene.classic("dead").await;
    let queue = Queue::durable(scene.name("large"));
    let queue = queue.with_dead_letter(DeadLetter::to("").with_routing_key(dead.clone()));
    let queue = scene.declare_queue(queue).await;
    let with = |bytes: usize| {
        let few = (0..10).map(|n| (format!("few-{n}"), "y".repeat(1_000)));
        let mut message = Message::new("body").with_header("large", "x".repeat(bytes));
        few.for_each(|(name, value)| message.headers.set(name, value));
        message
    };
    let room = MAX_HEADER_BYTES - with(0).headers.wire_bytes();
    scene.publish_message(&queue, with(room)).await;
    let delivery = scene.read(&queue, 1).await.next().await;
    assert!(delivery.message().headers.get("large").is_some(), "{:?}", delivery.info());
    delivery.reject("bad");
    let delivery = scene.read(&dead, 1).await.next().await;
    let expected = with(room);
    for (name, value) in expected.headers.iter() {
        assert_eq!(delivery.message().headers.get(name), Some(value), "header {name}");
    }
    delivery.ack();
    let many: Vec<HeaderValue> = (0..7_000).map(HeaderValue::Int).collect();
    let list = Message::new("list").with_header("x-list", HeaderValue::List(many.clone()));
    scene.publish_message(&queue, list).await;
    let delivery = scene.read(&queue, 1).await.next().await;
    assert_eq!(delivery.message().headers.get("x-list"), Some(&HeaderValue::List(many)));
    delivery.ack();
    let publisher = scene.publisher().await;
    let envelope = Envelope::new(Address::queue(queue), with(room + 1));
    refused(publisher.send(envelope).await, &[ErrorKind::Invalid], "headers one byte too large");
}

async fn body_over_the_limit_is_refused(scene: Scene) {
    let Some(limit) = scene.capabilities().max_message_size else {
        panic!("the runner checks that there is a limit");
    };
    let queue = scene.queue("limit").await;
    let publisher = scene.publisher().await;
    let size = usize::try_from(limit).expect("a limit that fits in memory") + 1;
    let envelope = Envelope::new(Address::queue(queue.clone()), Message::new(vec![0; size]));
    let sent = publisher.send(envelope).await;
    refused(sent, &[ErrorKind::Invalid], "a body one byte over the limit");
    // Where properties count too, it is refused before the broker would end the link for it.
    let purged = scene.classic("nearly").await;
    for less in [1, 300, 800] {
        let envelope =
            Envelope::new(Address::queue(purged.clone()), Message::new(vec![0; size - less]));
        match publisher.send(envelope).await {
            Ok(confirm) => assert_eq!(scene.verdict(confirm).await, Verdict::Accepted),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{error}"),
        }
    }
    scene.publish(&queue, ["after"]).await;
    scene.holds(&queue, &["after"]).await;
}

/// A transport may tell messages apart by a header; users who write it get their own verdicts.
async fn verdicts_are_not_swapped_by_headers(scene: Scene) {
    let queue = scene.queue("own").await;
    let publisher = scene.publisher().await;
    let mut confirms = Vec::new();
    for n in 0..20_i64 {
        let nowhere = scene.name("nowhere");
        let address = Address::queue(if n % 2 == 0 { queue.clone() } else { nowhere });
        let message = Message::new(n.to_string()).with_header("postrider-publish-id", n - 1);
        confirms.push((n, scene.send(&*publisher, Envelope::new(address, message)).await));
    }
    for (n, confirm) in confirms {
        let expected = if n % 2 == 0 { Verdict::Accepted } else { Verdict::Unroutable };
        assert_eq!(scene.verdict(confirm).await, expected, "message {n}");
    }
}

async fn endless_timeouts_are_long_ones(scene: Scene) {
    let queue = scene.queue("patient").await;
    let transport = scene.connect().await.transport;
    let options = PublisherOptions::default().with_timeout(Duration::MAX);
    let publisher = transport.publisher(options).await.expect("a publisher without a time limit");
    let envelope = Envelope::new(Address::queue(queue.clone()), Message::new("x"));
    publisher.publish(envelope).await.expect("a publish without a time limit");
    publisher.flush().await.expect("a flush without a time limit");
    transport.close(Duration::MAX).await.expect("closing with nothing under way");
    scene.holds(&queue, &["x"]).await;
}
