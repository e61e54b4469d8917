//! Opening and closing thousands of times: nothing is left over.

use std::time::Duration;

use futures_util::future;
use postrider_core::{
    Address, ConsumerOptions, Envelope, Message, PublisherExt, PublisherOptions, Queue, Topology,
};

use super::{Behaviour, Need};
use crate::Scene;

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(consumers_and_publishers_leave_nothing, NEEDS),
        Behaviour::new(auto_delete_queues_leave_nothing, NEEDS),
        Behaviour::new(connections_leave_nothing, NEEDS),
    ]
}

async fn consumers_and_publishers_leave_nothing(scene: Scene) {
    let cycles = scene.scaled(2_000);
    // Without a limit, because some brokers count what is given back unread.
    let queue = Queue::durable(scene.name("churn")).without_delivery_limit();
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, (0..10).map(|n| n.to_string())).await;
    let transport = scene.transport();
    for cycle in 0..cycles {
        let publisher = transport.publisher(PublisherOptions::default()).await;
        let publisher = publisher.expect("a publisher of many");
        let options = ConsumerOptions::default().with_prefetch(3);
        let mut consumer = transport.consumer(&queue, options).await.expect("a consumer of many");
        // Some are dropped unread, some with a delivery in hand, some after an exchange.
        if cycle % 3 == 1 {
            drop(scene.soon("a delivery", consumer.recv()).await);
        }
        if cycle % 10 == 2 {
            let delivery = scene.soon("a delivery", consumer.recv()).await;
            let delivery = delivery.expect("the consumer goes on").expect("a delivery");
            let again = Envelope::new(Address::queue(queue.clone()), delivery.message().clone());
            publisher.publish(again).await.expect("a publish of many");
            delivery.ack();
        }
    }
    scene.has_consumers(&queue, 0).await;
    let health = transport.health();
    assert!(health.consumers.is_empty(), "no consumer is left: {health:?}");
    scene.settles_at(&queue, 10).await;
    let info = scene.info(&queue).await;
    assert!(info.unsettled.is_none_or(|held| held == 0), "nothing is held: {info:?}");
    let mut bodies = scene.read(&queue, 100).await.bodies(10).await;
    bodies.sort();
    let expected: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    assert_eq!(bodies, expected, "no message was lost or doubled by {cycles} cycles");
}

async fn auto_delete_queues_leave_nothing(scene: Scene) {
    let cycles = scene.scaled(500);
    let transport = scene.transport();
    let mut last = String::new();
    for cycle in 0..cycles {
        last = scene.name(&format!("auto-{cycle}"));
        let queue = Queue::classic(last.clone()).auto_delete();
        transport.declare(&Topology::new().queue(queue)).await.expect("a queue of many");
        let consumer = transport.consumer(&last, ConsumerOptions::default()).await;
        drop(consumer.expect("a consumer of many"));
    }
    scene.is_gone(&last).await;
    for cycle in 0..cycles {
        scene.is_gone(&scene.name(&format!("auto-{cycle}"))).await;
    }
    assert!(transport.health().consumers.is_empty(), "no consumer is left");
}

async fn connections_leave_nothing(scene: Scene) {
    const AT_ONCE: usize = 50;
    let queue = scene.queue("connections").await;
    let rounds = scene.scaled(2_000).div_ceil(AT_ONCE);
    for round in 0..rounds {
        let open = (0..AT_ONCE.min(scene.scaled(2_000))).map(|n| {
            let (scene, queue) = (scene.clone(), queue.clone());
            tokio::spawn(async move {
                let transport = scene.connect_and_forget().await;
                let own = Queue::exclusive(scene.name(&format!("own-{round}-{n}")));
                let own_name = own.name.to_string();
                transport.declare(&Topology::new().queue(own)).await.expect("a queue of its own");
                let publisher = transport.publisher(PublisherOptions::default()).await;
                let publisher = publisher.expect("a publisher");
                let options = ConsumerOptions::default().with_prefetch(1);
                let shared = transport.consumer(&queue, options).await.expect("a consumer");
                let envelope = Envelope::new(Address::queue(own_name.clone()), Message::new("x"));
                publisher.publish(envelope).await.expect("a publish");
                // Every other one is not closed but dropped.
                if n % 2 == 0 {
                    transport.close(Duration::from_secs(10)).await.expect("closing");
                    drop(shared);
                } else {
                    drop((shared, publisher, transport));
                }
                own_name
            })
        });
        for task in future::join_all(open).await {
            let own = task.expect("a connection of many");
            scene.is_gone(&own).await;
        }
    }
    scene.has_consumers(&queue, 0).await;
    scene.publish(&queue, ["after"]).await;
    scene.holds(&queue, &["after"]).await;
}
