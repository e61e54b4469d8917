//! Queues as their keepers see them: counts, purging, and deleting under a user's hands.

use postrider_core::{
    Address, ConsumerOptions, Envelope, Error, ErrorKind, Message, Queue, Topology, TransportEvent,
    Verdict,
};

use super::{Behaviour, Need};
use crate::{Scene, scene::refused};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(an_empty_name_is_no_queue, NEEDS),
        Behaviour::new(info_counts_messages_and_consumers, NEEDS),
        Behaviour::new(missing_queue_has_no_info, NEEDS),
        Behaviour::new(purge_removes_what_waits, NEEDS),
        Behaviour::new(consuming_a_missing_queue_is_not_found, NEEDS),
        Behaviour::new(deleted_queue_ends_its_consumers, NEEDS),
        Behaviour::new(deleted_queue_takes_no_publish, NEEDS),
        Behaviour::new(settling_after_deletion_is_harmless, NEEDS),
    ]
}

fn only(queue: &str) -> Topology {
    Topology::new().queue(Queue::durable(queue.to_owned()))
}

/// AMQP 0.9.1 means the queue last named on a channel by it.
async fn an_empty_name_is_no_queue(scene: Scene) {
    let queue = scene.queue("last").await;
    scene.publish(&queue, ["stays"]).await;
    let transport = scene.transport();
    scene.info(&queue).await;
    let purged = transport.purge("").await;
    let kind = purged.as_ref().err().map(Error::kind);
    assert_eq!(kind, Some(ErrorKind::NotFound), "purging the queue '': {purged:?}");
    scene.info(&queue).await;
    let consumer = transport.consumer("", ConsumerOptions::default()).await;
    refused(consumer, &[ErrorKind::NotFound], "consuming the queue ''");
    let nothing = Topology::new().queue(Queue::durable(""));
    transport.remove(&nothing).await.expect("what is not there needs no removing");
    scene.holds(&queue, &["stays"]).await;
}

async fn info_counts_messages_and_consumers(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let info = scene.info(&queue).await;
        assert_eq!((info.ready, info.consumers), (0, 0), "a new queue: {info:?}");
        scene.publish(&queue, (0..10).map(|n| n.to_string())).await;
        scene.settles_at(&queue, 10).await;
        let mut reader = scene.read(&queue, 3).await;
        let held = reader.take(3).await;
        scene.has_consumers(&queue, 1).await;
        scene.settles_at(&queue, 7).await;
        let info = scene.info(&queue).await;
        assert!(info.unsettled.is_none_or(|held| held == 3), "3 are unsettled: {info:?}");
        drop(held);
        drop(reader);
        scene.has_consumers(&queue, 0).await;
        scene.settles_at(&queue, 10).await;
        let info = scene.info(&queue).await;
        assert!(info.unsettled.is_none_or(|held| held == 0), "nothing is unsettled: {info:?}");
    }
}

async fn missing_queue_has_no_info(scene: Scene) {
    for round in 0..5 {
        let info = scene.transport().queue_info(&scene.name("missing")).await;
        let info = info.expect("asking for a missing queue is no error");
        assert_eq!(info, None, "a missing queue, asked for the {round}th time");
    }
    let queue = scene.queue("after").await;
    scene.publish(&queue, ["after"]).await;
    scene.holds(&queue, &["after"]).await;
}

async fn purge_removes_what_waits(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        scene.publish(&queue, (0..10).map(|n| n.to_string())).await;
        let mut reader = scene.read(&queue, 3).await;
        let held = reader.take(3).await;
        scene.settles_at(&queue, 7).await;
        let purged = scene.transport().purge(&queue).await.expect("purging");
        assert_eq!(purged, 7, "purging says how many waited in '{queue}'");
        scene.settles_at(&queue, 0).await;
        for delivery in held {
            delivery.release();
        }
        assert_eq!(reader.bodies(3).await.len(), 3, "what was unsettled stays");
        let purged = scene.transport().purge(&queue).await.expect("purging an empty queue");
        assert_eq!(purged, 0, "nothing waits any more");
    }
    let missing = scene.transport().purge(&scene.name("missing")).await;
    refused(missing, &[ErrorKind::NotFound], "purging a missing queue");
}

async fn consuming_a_missing_queue_is_not_found(scene: Scene) {
    let queue = scene.queue("there").await;
    let mut reader = scene.read(&queue, 1).await;
    let consumer =
        scene.transport().consumer(&scene.name("missing"), ConsumerOptions::default()).await;
    refused(consumer, &[ErrorKind::NotFound], "consuming a missing queue");
    // The failure is nobody else's.
    scene.publish(&queue, ["after"]).await;
    assert_eq!(reader.bodies(1).await, ["after"], "other consumers go on");
}

async fn deleted_queue_ends_its_consumers(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let mut events = scene.transport().events();
        scene.publish(&queue, ["held", "waiting"]).await;
        let mut busy = scene.read(&queue, 1).await;
        let held = busy.next().await;
        let other = scene.connect().await.transport;
        let mut idle = scene.read_on(&other, &queue, 10).await;
        // By a third party, as an operator would.
        let operator = scene.connect().await.transport;
        operator.remove(&only(&queue)).await.expect("deleting a queue that is in use");
        for reader in [&mut busy, &mut idle] {
            let error = reader.ends().await;
            let error = error.unwrap_or_else(|| panic!("'{queue}' is gone, and nothing says so"));
            assert_eq!(error.kind(), ErrorKind::NotFound, "why the consumer ended: {error}");
            assert!(reader.consumer().recv().await.is_none(), "after the error comes the end");
        }
        let told = scene
            .event(&mut events, "the event ConsumerCancelled", |event| match event {
                TransportEvent::ConsumerCancelled { queue, .. } => Some(queue.clone()),
                _ => None,
            })
            .await;
        assert_eq!(told, queue, "the event names the queue");
        drop(held);
        let health = scene.transport().health();
        let left = health.consumers.iter().any(|consumer| consumer.queue == queue);
        assert!(!left, "an ended consumer is not in health: {health:?}");
    }
}

async fn deleted_queue_takes_no_publish(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let publisher = scene.publisher().await;
        let mut before = Vec::new();
        for n in 0..200 {
            let message = Message::new(n.to_string());
            let envelope = Envelope::new(Address::queue(queue.clone()), message);
            before.push(scene.send(&*publisher, envelope).await);
        }
        let operator = scene.connect().await.transport;
        operator.remove(&only(&queue)).await.expect("deleting a queue that is written to");
        for confirm in before {
            // These raced with the deletion; each has some verdict and none hangs.
            let _any = scene.verdict(confirm).await;
        }
        for n in 0..200 {
            let message = Message::new(n.to_string());
            let envelope = Envelope::new(Address::queue(queue.clone()), message);
            let confirm = scene.send(&*publisher, envelope).await;
            let verdict = scene.verdict(confirm).await;
            assert_eq!(verdict, Verdict::Unroutable, "'{queue}' is deleted");
        }
        let other = scene.queue("other").await;
        scene.publish(&other, ["after"]).await;
        scene.holds(&other, &["after"]).await;
    }
}

async fn settling_after_deletion_is_harmless(scene: Scene) {
    let queue = scene.queue("deleted").await;
    let other = scene.queue("other").await;
    scene.publish(&queue, ["1", "2", "3"]).await;
    let mut reader = scene.read(&queue, 3).await;
    let mut others = scene.read(&other, 3).await;
    let held = reader.take(3).await;
    scene.transport().remove(&only(&queue)).await.expect("deleting");
    reader.ends().await;
    for (n, delivery) in held.into_iter().enumerate() {
        match n {
            0 => delivery.ack(),
            1 => delivery.release(),
            _ => delivery.reject("too late"),
        }
    }
    scene.publish(&other, ["after"]).await;
    assert_eq!(others.bodies(1).await, ["after"], "other consumers go on");
}
