//! Priorities: the higher goes first, and the older first inside one.

use postrider_core::{Address, Envelope, Message, Queue};

use super::{Behaviour, Need};
use crate::Scene;

pub(super) fn behaviours() -> Vec<Behaviour> {
    const QUORUM: &[Need] = &[Need::Topology, Need::PriorityLevels(32)];
    vec![
        Behaviour::new(classic_queue_delivers_by_priority, &[Need::Topology]),
        Behaviour::new(priority_above_the_maximum_is_the_maximum, &[Need::Topology]),
        Behaviour::new(queue_without_priorities_ignores_them, &[Need::Topology]),
        Behaviour::new(quorum_queue_delivers_by_priority, QUORUM),
        Behaviour::new(later_high_priority_overtakes, QUORUM),
    ]
}

async fn publish_with(scene: &Scene, queue: &str, messages: &[(String, Option<u8>)]) {
    let address = Address::queue(queue.to_owned());
    let envelopes = messages.iter().map(|(body, priority)| {
        let mut message = Message::new(body.clone());
        message.priority = *priority;
        Envelope::new(address.clone(), message)
    });
    scene.publish_envelopes(envelopes).await;
}

/// 200 messages with priorities up to `highest` in no order, every tenth without one.
fn mixed(scene: &Scene, highest: u8) -> Vec<(String, Option<u8>)> {
    (0..200)
        .map(|n| {
            let drawn = scene.env().random() % (u64::from(highest) + 1);
            let priority = (n % 10 != 0).then_some(drawn as u8);
            (format!("{n}"), priority)
        })
        .collect()
}

/// The bodies in the order of their delivery: by priority, and inside one as they came.
fn by_priority(mut messages: Vec<(String, Option<u8>)>, default: u8) -> Vec<String> {
    messages.sort_by_key(|(_, priority)| std::cmp::Reverse(priority.unwrap_or(default)));
    messages.into_iter().map(|(body, _)| body).collect()
}

async fn classic_queue_delivers_by_priority(scene: Scene) {
    let queue = Queue::classic(scene.name("classic")).with_max_priority(9);
    let queue = scene.declare_queue(queue).await;
    let messages = mixed(&scene, 9);
    publish_with(&scene, &queue, &messages).await;
    // On a classic queue a message without a priority has the lowest.
    scene.holds(&queue, &by_priority(messages, 0)).await;
}

async fn priority_above_the_maximum_is_the_maximum(scene: Scene) {
    let queue = Queue::classic(scene.name("capped")).with_max_priority(3);
    let queue = scene.declare_queue(queue).await;
    let priorities = [0, 3, 200, 2, 255, 4, 3];
    let messages: Vec<_> = priorities.iter().map(|p| (p.to_string(), Some(*p))).collect();
    publish_with(&scene, &queue, &messages).await;
    scene.holds(&queue, &["3", "200", "255", "4", "3", "2", "0"]).await;
}

async fn queue_without_priorities_ignores_them(scene: Scene) {
    let queue = scene.classic("plain").await;
    let messages = mixed(&scene, 9);
    publish_with(&scene, &queue, &messages).await;
    let bodies: Vec<_> = messages.into_iter().map(|(body, _)| body).collect();
    scene.holds(&queue, &bodies).await;
}

async fn quorum_queue_delivers_by_priority(scene: Scene) {
    let queue = scene.queue("quorum").await;
    let messages = mixed(&scene, 31);
    publish_with(&scene, &queue, &messages).await;
    // On a quorum queue a message without a priority has AMQP's default.
    scene.holds(&queue, &by_priority(messages, 4)).await;
}

async fn later_high_priority_overtakes(scene: Scene) {
    let queue = scene.queue("overtaking").await;
    let low: Vec<_> = (0..10).map(|n| (format!("low-{n}"), Some(1))).collect();
    publish_with(&scene, &queue, &low).await;
    let mut reader = scene.read(&queue, 1).await;
    let first = reader.next().await;
    publish_with(&scene, &queue, &[("urgent".to_owned(), Some(9))]).await;
    first.ack();
    assert_eq!(reader.bodies(2).await, ["urgent", "low-1"], "a higher priority goes first");
    let rest: Vec<_> = (2..10).map(|n| format!("low-{n}")).collect();
    assert_eq!(reader.bodies(8).await, rest, "the others keep their order");
}
