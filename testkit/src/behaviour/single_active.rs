//! Single active consumer: one gets everything, and the next takes over where it ended.

use std::time::Duration;

use postrider_core::{Queue, Topology};

use super::{Behaviour, Need};
use crate::{Scene, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(one_consumer_gets_everything, NEEDS),
        Behaviour::new(next_consumer_takes_over_in_order, NEEDS),
        Behaviour::new(next_connection_takes_over, NEEDS),
    ]
}

fn queues(scene: &Scene) -> [Queue; 2] {
    [
        Queue::durable(scene.name("quorum")).single_active_consumer(),
        Queue::classic(scene.name("classic")).single_active_consumer(),
    ]
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn one_consumer_gets_everything(scene: Scene) {
    for queue in queues(&scene) {
        let queue = scene.declare_queue(queue).await;
        let mut active = scene.read(&queue, 10).await;
        let mut waiting = scene.read(&queue, 10).await;
        scene.publish(&queue, numbers(0..50)).await;
        assert_eq!(active.bodies(50).await, numbers(0..50), "the active consumer of '{queue}'");
        waiting.is_silent().await;
        active.is_silent().await;
    }
}

async fn next_consumer_takes_over_in_order(scene: Scene) {
    for queue in queues(&scene) {
        let queue = scene.declare_queue(queue).await;
        scene.publish(&queue, numbers(0..30)).await;
        let mut first = scene.read(&queue, 5).await;
        let mut second = scene.read(&queue, 5).await;
        let mut third = scene.read(&queue, 5).await;
        assert_eq!(first.bodies(10).await, numbers(0..10), "the first consumer");
        drop(first);
        assert_eq!(second.bodies(10).await, numbers(10..20), "the second goes on in order");
        third.is_silent().await;
        drop(second);
        assert_eq!(third.bodies(10).await, numbers(20..30), "the third goes on in order");
        drop(third);
        scene.settles_at(&queue, 0).await;
    }
}

async fn next_connection_takes_over(scene: Scene) {
    for queue in queues(&scene) {
        let first = scene.connect().await.transport;
        // It declares what it consumes, as services do: a protocol may not tell it of the rule.
        first.declare(&Topology::new().queue(queue.clone())).await.expect("declaring the queue");
        let queue = scene.declare_queue(queue).await;
        scene.publish(&queue, numbers(0..4)).await;
        let mut active = scene.read_on(&first, &queue, 1).await;
        let mut waiting = scene.read(&queue, 1).await;
        assert_eq!(active.bodies(1).await, ["0"], "the active consumer");
        let held = active.next().await;
        assert_eq!(text(&held), "1", "the next in order");
        // What the active one had unsettled comes first when its connection goes.
        let closed = first.close(Duration::ZERO).await;
        assert!(closed.is_err(), "closing with an unsettled delivery says so");
        drop(held);
        let again = waiting.next().await;
        assert_eq!(text(&again), "1", "the unsettled message is redelivered first");
        assert!(again.info().redelivered, "it was delivered before: {:?}", again.info());
        again.ack();
        assert_eq!(waiting.bodies(2).await, ["2", "3"], "and the rest in order");
    }
}
