//! Queues with a maximum length, in messages and in bytes.

use postrider_core::{Address, DeadLetter, Envelope, Message, Overflow, Queue, QueueKind, Verdict};

use super::{Behaviour, Need, dead_letter::assert_dead};
use crate::{Scene, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(oldest_goes_at_the_maximum_length, NEEDS),
        Behaviour::new(oldest_goes_at_the_maximum_size, NEEDS),
        Behaviour::new(what_goes_for_length_is_a_dead_letter, NEEDS),
        Behaviour::new(full_queue_rejects_publishes, NEEDS),
        Behaviour::new(queue_full_of_bytes_rejects_publishes, NEEDS),
        Behaviour::new(unsettled_messages_take_no_room, NEEDS),
    ]
}

fn both_kinds(scene: &Scene) -> [Queue; 2] {
    [Queue::durable(scene.name("quorum")), Queue::classic(scene.name("classic"))]
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{n:03}")).collect()
}

async fn oldest_goes_at_the_maximum_length(scene: Scene) {
    for queue in both_kinds(&scene) {
        let queue = scene.declare_queue(queue.with_max_length(10)).await;
        scene.publish(&queue, numbers(0..25)).await;
        scene.settles_at(&queue, 10).await;
        scene.holds(&queue, &numbers(15..25)).await;
    }
}

/// A body of 10,000 bytes, beside which what else a broker may count of a message is little.
fn large(n: usize) -> String {
    format!("{n:010000}")
}

async fn oldest_goes_at_the_maximum_size(scene: Scene) {
    for queue in both_kinds(&scene) {
        let queue = scene.declare_queue(queue.with_max_length_bytes(105_000)).await;
        scene.publish(&queue, (0..25).map(large)).await;
        scene.settles_at(&queue, 10).await;
        scene.holds(&queue, &(15..25).map(large).collect::<Vec<_>>()).await;
    }
}

async fn what_goes_for_length_is_a_dead_letter(scene: Scene) {
    for queue in both_kinds(&scene) {
        let dead = scene.classic(&format!("dead-{}", queue.kind)).await;
        let letters = DeadLetter::to("").with_routing_key(dead.clone());
        let queue = scene.declare_queue(queue.with_max_length(2).with_dead_letter(letters)).await;
        scene.publish(&queue, numbers(0..5)).await;
        let mut graves = scene.read(&dead, 10).await;
        for expected in numbers(0..3) {
            let letter = graves.next().await;
            assert_eq!(text(&letter), expected, "the oldest goes first");
            assert_dead(&letter, &queue, "maxlen");
            letter.ack();
        }
        scene.holds(&queue, &numbers(3..5)).await;
    }
}

/// Publishes until the queue refuses, and gives what it took.
async fn fill(scene: &Scene, queue: &str, body: impl Fn(usize) -> String) -> Vec<String> {
    let publisher = scene.publisher().await;
    let mut taken = Vec::new();
    loop {
        let body = body(taken.len());
        let envelope = Envelope::new(Address::queue(queue.to_owned()), Message::new(body.clone()));
        let confirm = scene.send(&*publisher, envelope).await;
        match scene.verdict(confirm).await {
            Verdict::Accepted => taken.push(body),
            Verdict::Rejected(reason) => {
                assert!(!reason.is_empty(), "a reject says why");
                return taken;
            }
            verdict => panic!("a publish to a full queue: {verdict:?}"),
        }
        assert!(taken.len() < 200, "'{queue}' never refuses");
    }
}

/// Fills a queue, makes room for one, and sees that it takes messages again.
async fn rejects_until_there_is_room(scene: &Scene, queue: Queue, body: fn(usize) -> String) {
    let exact = queue.kind == QueueKind::Classic;
    let queue = scene.declare_queue(queue.with_overflow(Overflow::RejectPublish)).await;
    let taken = fill(scene, &queue, body).await;
    // A replicated queue may take a few more before its publishers hear that it is full.
    assert!(taken.len() >= 3, "'{queue}' refused after {} messages", taken.len());
    if exact {
        assert_eq!(taken.len(), 5, "'{queue}' has room for 5 messages");
    }
    scene.holds(&queue, &taken).await;
    scene
        .eventually("an emptied queue takes messages again", async || {
            let publisher = scene.publisher().await;
            let address = Address::queue(queue.clone());
            let envelope = Envelope::new(address, Message::new("again"));
            let confirm = scene.send(&*publisher, envelope).await;
            match scene.verdict(confirm).await {
                Verdict::Accepted => Ok(()),
                verdict => Err(format!("{verdict:?}")),
            }
        })
        .await;
    scene.holds(&queue, &["again"]).await;
}

async fn full_queue_rejects_publishes(scene: Scene) {
    for queue in both_kinds(&scene) {
        rejects_until_there_is_room(&scene, queue.with_max_length(5), |n| n.to_string()).await;
    }
}

async fn queue_full_of_bytes_rejects_publishes(scene: Scene) {
    for queue in both_kinds(&scene) {
        let queue = queue.with_max_length_bytes(52_500);
        rejects_until_there_is_room(&scene, queue, large).await;
    }
}

/// The maximum is of messages that wait, not of those that a consumer has.
async fn unsettled_messages_take_no_room(scene: Scene) {
    let queue = Queue::classic(scene.name("in-hand")).with_max_length(3);
    let queue = scene.declare_queue(queue).await;
    let mut reader = scene.read(&queue, 3).await;
    scene.publish(&queue, numbers(0..3)).await;
    let held = reader.take(3).await;
    scene.publish(&queue, numbers(3..6)).await;
    scene.settles_at(&queue, 3).await;
    for delivery in held {
        delivery.ack();
    }
    assert_eq!(reader.bodies(3).await, numbers(3..6), "nothing of '{queue}' was dropped");
}
