//! Closing: what is settled in time counts, and the rest comes again elsewhere.

use std::time::Duration;

use postrider_core::{
    Address, ConnectionState, ConsumerOptions, Delivery, Envelope, ErrorKind, Message,
    PublisherOptions, Queue, Topology, Verdict,
};

use super::{Behaviour, Need};
use crate::{
    Scene,
    scene::{refused, text},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(close_waits_for_settlements, NEEDS),
        Behaviour::new(close_gives_up_at_its_deadline, NEEDS),
        Behaviour::new(close_waits_for_verdicts, NEEDS),
        Behaviour::new(close_gives_back_what_nobody_read, NEEDS),
        Behaviour::new(everything_is_closed_after_close, NEEDS),
        Behaviour::new(consumer_ends_at_close, NEEDS),
        Behaviour::new(waiting_consumer_ends_when_the_last_is_settled, NEEDS),
        Behaviour::new(publishes_are_taken_until_all_is_settled, NEEDS),
        Behaviour::new(second_close_returns_at_once, NEEDS),
        Behaviour::new(dropped_consumer_gives_back_what_it_had_taken, NEEDS),
        Behaviour::new(settling_after_close_is_harmless, NEEDS),
    ]
}

const GENEROUS: Duration = Duration::from_secs(15);

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn close_waits_for_settlements(scene: Scene) {
    let queue = scene.queue("drain").await;
    scene.publish(&queue, numbers(0..20)).await;
    let closing = scene.connect().await.transport;
    let mut reader = scene.read_on(&closing, &queue, 10).await;
    let mut held = reader.take(10).await;
    let last = held.pop();
    let close = {
        let closing = closing.clone();
        tokio::spawn(async move { closing.close(GENEROUS).await })
    };
    // Consuming has stopped: room in the prefetch brings nothing new.
    held.into_iter().for_each(Delivery::ack);
    tokio::time::sleep(scene.quiet()).await;
    assert!(!close.is_finished(), "closing waits for the last unsettled delivery");
    if let Some(last) = last {
        last.ack();
    }
    let closed = scene.soon("closing after the last settlement", close).await;
    closed.expect("the closing task").expect("all was settled in time");
    assert!(reader.ends().await.is_none(), "a consumer that is closed ends without an error");
    scene.settles_at(&queue, 10).await;
    scene.holds(&queue, &numbers(10..20)).await;
}

async fn close_gives_up_at_its_deadline(scene: Scene) {
    let deadline = Duration::from_secs(1);
    let queue = scene.queue("late").await;
    scene.publish(&queue, numbers(0..3)).await;
    let closing = scene.connect().await.transport;
    let mut reader = scene.read_on(&closing, &queue, 3).await;
    let mut held = reader.take(3).await;
    held.remove(1).ack();
    let began = scene.env().now();
    let closed = scene.soon("closing at its deadline", closing.close(deadline)).await;
    let took = scene.env().now() - began;
    refused(closed, &[ErrorKind::TimedOut], "closing with two deliveries unsettled");
    assert!(took >= deadline, "closing may wait {deadline:?} and gave up after {took:?}");
    assert_eq!(closing.health().state, ConnectionState::Closed, "it is closed all the same");
    let mut other = scene.read(&queue, 3).await;
    for expected in ["0", "2"] {
        let again = other.next().await;
        assert_eq!(text(&again), expected, "what was unsettled comes again, in order");
        assert!(again.info().redelivered, "it was delivered before: {:?}", again.info());
        again.ack();
    }
    // Too late: the message is another's now.
    held.into_iter().for_each(Delivery::ack);
    drop(other);
    scene.settles_at(&queue, 0).await;
}

async fn close_waits_for_verdicts(scene: Scene) {
    let queue = scene.queue("verdicts").await;
    let closing = scene.connect().await.transport;
    let publisher = closing.publisher(PublisherOptions::default()).await.expect("a publisher");
    let mut confirms = Vec::new();
    for body in numbers(0..500) {
        let envelope = Envelope::new(Address::queue(queue.clone()), Message::new(body));
        confirms.push(scene.send(&*publisher, envelope).await);
    }
    scene
        .soon("closing with verdicts under way", closing.close(GENEROUS))
        .await
        .expect("all verdicts came in time");
    for confirm in confirms {
        let verdict = scene.verdict(confirm).await;
        assert_eq!(verdict, Verdict::Accepted, "closing waits for verdicts");
    }
    scene.holds(&queue, &numbers(0..500)).await;
}

async fn close_gives_back_what_nobody_read(scene: Scene) {
    let queue = scene.queue("unread").await;
    scene.publish(&queue, numbers(0..10)).await;
    let closing = scene.connect().await.transport;
    let options = ConsumerOptions::default().with_prefetch(10);
    let consumer = closing.consumer(&queue, options).await.expect("a consumer");
    scene.settles_at(&queue, 0).await;
    // Nobody has them in hand, so there is nothing to wait for.
    let closed = scene.soon("closing an unread consumer", closing.close(GENEROUS)).await;
    closed.expect("nothing was unsettled");
    drop(consumer);
    scene.holds(&queue, &numbers(0..10)).await;
}

async fn everything_is_closed_after_close(scene: Scene) {
    let queue = scene.queue("closed").await;
    let closed = scene.connect().await.transport;
    let publisher = closed.publisher(PublisherOptions::default()).await.expect("a publisher");
    closed.close(GENEROUS).await.expect("closing with nothing under way");
    let envelope = || Envelope::new(Address::queue(queue.clone()), Message::new("late"));
    let kinds = &[ErrorKind::Closed];
    refused(publisher.send(envelope()).await, kinds, "a send after close");
    refused(publisher.send_batch(vec![envelope()]).await, kinds, "a batch after close");
    refused(closed.publisher(PublisherOptions::default()).await, kinds, "a publisher after close");
    refused(
        closed.consumer(&queue, ConsumerOptions::default()).await,
        kinds,
        "a consumer after close",
    );
    let topology = Topology::new().queue(Queue::durable(queue.clone()));
    refused(closed.declare(&topology).await, kinds, "a declare after close");
    refused(closed.queue_info(&queue).await, kinds, "a question after close");
    let health = closed.health();
    assert_eq!(health.state, ConnectionState::Closed, "health after close: {health:?}");
    assert!(health.consumers.is_empty(), "no consumers after close: {health:?}");
    assert!(!health.is_ready(), "a closed transport is not ready");
    assert_eq!(scene.info(&queue).await.ready, 0, "nothing was sent after close");
}

async fn consumer_ends_at_close(scene: Scene) {
    let queue = scene.queue("ends").await;
    let closing = scene.connect().await.transport;
    let mut waiting = scene.read_on(&closing, &queue, 1).await;
    let waiting = tokio::spawn(async move { waiting.ends().await });
    // Until it waits in `recv`, where nothing but the closing can wake it.
    tokio::time::sleep(scene.quiet()).await;
    closing.close(GENEROUS).await.expect("closing with nothing under way");
    let ended = scene.soon("the end of a waiting consumer", waiting).await;
    let error = ended.expect("the consuming task");
    assert!(error.is_none(), "a consumer that is closed ends without an error: {error:?}");
    scene.has_consumers(&queue, 0).await;
}

async fn waiting_consumer_ends_when_the_last_is_settled(scene: Scene) {
    let queue = scene.queue("busy").await;
    scene.publish(&queue, ["held"]).await;
    let closing = scene.connect().await.transport;
    let mut reader = scene.read_on(&closing, &queue, 10).await;
    let held = reader.next().await;
    let waiting = tokio::spawn(async move { reader.ends().await });
    let close = tokio::spawn(async move { closing.close(GENEROUS).await });
    // Until both wait: one for a delivery, one for the settlement.
    tokio::time::sleep(scene.quiet()).await;
    held.ack();
    scene.soon("closing", close).await.expect("its task").expect("all was settled in time");
    let ended = scene.soon("the end of the waiting consumer", waiting).await.expect("its task");
    assert!(ended.is_none(), "a consumer that is closed ends without an error: {ended:?}");
}

/// What a handler has in hand when its transport closes, it can finish, and that may mean to
/// publish first.
async fn publishes_are_taken_until_all_is_settled(scene: Scene) {
    let (requests, replies) = (scene.queue("requests").await, scene.queue("replies").await);
    scene.publish(&requests, ["request"]).await;
    let closing = scene.connect().await.transport;
    let publisher = closing.publisher(PublisherOptions::default()).await.expect("a publisher");
    let request = scene.read_on(&closing, &requests, 1).await.next().await;
    let close = tokio::spawn(async move { closing.close(GENEROUS).await });
    tokio::time::sleep(scene.quiet()).await;
    let reply = Envelope::new(Address::queue(replies.clone()), Message::new("reply"));
    let confirm = scene.send(&*publisher, reply).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "a reply while closing");
    request.ack();
    scene.soon("closing", close).await.expect("its task").expect("all was settled in time");
    scene.holds(&replies, &["reply"]).await;
}

async fn second_close_returns_at_once(scene: Scene) {
    let queue = scene.queue("twice").await;
    scene.publish(&queue, ["held"]).await;
    let closing = scene.connect().await.transport;
    let held = scene.read_on(&closing, &queue, 1).await.next().await;
    let first = closing.close(Duration::ZERO).await;
    refused(first, &[ErrorKind::TimedOut], "closing with a delivery unsettled");
    let began = scene.env().now();
    let second = scene.soon("a second close", closing.close(GENEROUS)).await;
    second.expect("what is closed can be closed again");
    let took = scene.env().now() - began;
    assert!(took < GENEROUS / 3, "a second close returns at once, not after {took:?}");
    drop(held);
    scene.holds(&queue, &["held"]).await;
}

async fn dropped_consumer_gives_back_what_it_had_taken(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        scene.publish(&queue, numbers(0..10)).await;
        let mut reader = scene.read(&queue, 10).await;
        let mut held = reader.take(3).await;
        drop(reader);
        scene.settles_at(&queue, 7).await;
        // What was handed out can be settled still, in every way.
        held.remove(0).ack();
        held.remove(0).release();
        held.remove(0).reject("no");
        scene.settles_at(&queue, 8).await;
        // Not before: a broker may count a consumer until all that it had is settled.
        scene.has_consumers(&queue, 0).await;
        let expected = [vec!["1".to_owned()], numbers(3..10)].concat();
        let mut bodies = scene.read(&queue, 100).await.bodies(8).await;
        bodies.sort_by_key(|body| body.parse::<usize>().unwrap_or(usize::MAX));
        assert_eq!(bodies, expected, "what is left in '{queue}'");
    }
}

async fn settling_after_close_is_harmless(scene: Scene) {
    let queue = scene.queue("after").await;
    scene.publish(&queue, numbers(0..4)).await;
    let closing = scene.connect().await.transport;
    let mut reader = scene.read_on(&closing, &queue, 4).await;
    let mut held = reader.take(4).await;
    refused(closing.close(Duration::ZERO).await, &[ErrorKind::TimedOut], "closing at once");
    drop(closing);
    let mut other = scene.read(&queue, 4).await;
    let again = other.take(4).await;
    held.remove(0).ack();
    held.remove(0).reject("late");
    held.remove(0).retry(Duration::ZERO);
    drop(held);
    other.is_silent().await;
    again.into_iter().for_each(Delivery::release);
    assert_eq!(other.bodies(4).await, numbers(0..4), "late settlements settle nothing");
}
