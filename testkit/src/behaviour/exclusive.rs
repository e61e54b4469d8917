//! Queues and consumers that are somebody's own, and queues that go by themselves.

use std::time::Duration;

use postrider_core::{
    Address, ConsumerOptions, DeadLetter, Envelope, ErrorKind, Message, PublisherExt,
    PublisherOptions, Queue, Topology,
};

use super::{Behaviour, Need};
use crate::{Scene, scene::refused};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    const CONSUMERS: &[Need] = &[Need::Topology, Need::ExclusiveConsumers];
    vec![
        Behaviour::new(exclusive_queue_is_locked_to_others, NEEDS),
        Behaviour::new(anyone_publishes_to_an_exclusive_queue, NEEDS),
        Behaviour::new(exclusive_queue_goes_with_its_connection, NEEDS),
        Behaviour::new(exclusive_consumer_keeps_others_out, CONSUMERS),
        Behaviour::new(exclusive_consumer_needs_an_unused_queue, CONSUMERS),
        Behaviour::new(a_single_active_consumer_is_not_exclusive, CONSUMERS),
        Behaviour::new(auto_delete_queue_goes_with_its_last_consumer, NEEDS),
        Behaviour::new(auto_delete_queue_takes_what_comes_back_with_it, NEEDS),
        Behaviour::new(auto_delete_queue_waits_for_its_first_consumer, NEEDS),
    ]
}

async fn exclusive_queue_is_locked_to_others(scene: Scene) {
    let spec = Queue::exclusive(scene.name("mine"));
    let queue = scene.declare_queue(spec.clone()).await;
    let other = scene.connect().await.transport;
    let wanted = Topology::new().queue(spec);
    refused(other.declare(&wanted).await, &[ErrorKind::Locked], "declaring another's queue");
    refused(other.remove(&wanted).await, &[ErrorKind::Locked], "removing another's queue");
    refused(other.queue_info(&queue).await, &[ErrorKind::Locked], "asking about another's queue");
    refused(other.purge(&queue).await, &[ErrorKind::Locked], "purging another's queue");
    let consumer = other.consumer(&queue, ConsumerOptions::default()).await;
    refused(consumer, &[ErrorKind::Locked], "consuming another's queue");
    // Its owner is not locked out, and may declare it again.
    scene.transport().declare(&wanted).await.expect("the owner declares it again");
    scene.publish(&queue, ["mine"]).await;
    assert_eq!(scene.read(&queue, 1).await.bodies(1).await, ["mine"], "the owner consumes");
}

async fn anyone_publishes_to_an_exclusive_queue(scene: Scene) {
    let queue = scene.declare_queue(Queue::exclusive(scene.name("inbox"))).await;
    let other = scene.connect().await.transport;
    let publisher = other.publisher(PublisherOptions::default()).await.expect("a publisher");
    let envelope = Envelope::new(Address::queue(queue.clone()), Message::new("hello"));
    publisher.publish(envelope).await.expect("replies go to exclusive queues of others");
    scene.holds(&queue, &["hello"]).await;
}

async fn exclusive_queue_goes_with_its_connection(scene: Scene) {
    let owner = scene.connect().await.transport;
    let spec = Queue::exclusive(scene.name("gone"));
    let queue = spec.name.to_string();
    let wanted = Topology::new().queue(spec);
    owner.declare(&wanted).await.expect("an exclusive queue");
    owner.close(Duration::from_secs(5)).await.expect("closing with nothing under way");
    scene.is_gone(&queue).await;
    // The name is free again.
    scene.declare(wanted).await;
}

async fn exclusive_consumer_keeps_others_out(scene: Scene) {
    // A replicated queue has a single active consumer instead.
    let queue = scene.classic("kept").await;
    let other = scene.connect().await.transport;
    let exclusive = ConsumerOptions::default().exclusive();
    let first = scene.transport().consumer(&queue, exclusive.clone()).await;
    let first = first.expect("the first consumer");
    for options in [ConsumerOptions::default(), exclusive] {
        let second = other.consumer(&queue, options.clone()).await;
        refused(second, &[ErrorKind::Locked], "a second consumer beside an exclusive one");
        let second = scene.transport().consumer(&queue, options).await;
        refused(second, &[ErrorKind::Locked], "a second consumer on the same connection");
    }
    drop(first);
    scene
        .eventually("others may consume when the exclusive one has gone", async || {
            let consumer = other.consumer(&queue, ConsumerOptions::default()).await;
            consumer.map(drop).map_err(|error| error.to_string())
        })
        .await;
}

async fn exclusive_consumer_needs_an_unused_queue(scene: Scene) {
    let queue = scene.classic("used").await;
    let _first = scene.read(&queue, 1).await;
    let second = scene.transport().consumer(&queue, ConsumerOptions::default().exclusive()).await;
    refused(second, &[ErrorKind::Locked], "an exclusive consumer beside another");
}

async fn a_single_active_consumer_is_not_exclusive(scene: Scene) {
    let queue = Queue::classic(scene.name("one")).single_active_consumer();
    let queue = scene.declare_queue(queue).await;
    let exclusive = ConsumerOptions::default().exclusive();
    let consumer = scene.transport().consumer(&queue, exclusive).await;
    refused(consumer, &[ErrorKind::Locked], "an exclusive consumer of a single active queue");
}

async fn auto_delete_queue_takes_what_comes_back_with_it(scene: Scene) {
    let dead = scene.queue("dead").await;
    let queue = Queue::classic(scene.name("auto"))
        .auto_delete()
        .with_max_length(1)
        .with_dead_letter(DeadLetter::to("").with_routing_key(dead.clone()));
    let queue = scene.declare_queue(queue).await;
    let reader = scene.read(&queue, 1).await;
    scene.publish(&queue, ["unread", "ready"]).await;
    drop(reader);
    scene.is_gone(&queue).await;
    scene.settles_at(&dead, 0).await;
}

async fn auto_delete_queue_goes_with_its_last_consumer(scene: Scene) {
    let queue = scene.declare_queue(Queue::classic(scene.name("auto")).auto_delete()).await;
    let other = scene.connect().await.transport;
    let first = scene.read(&queue, 1).await;
    let second = scene.read_on(&other, &queue, 1).await;
    drop(first);
    scene.has_consumers(&queue, 1).await;
    scene.publish(&queue, ["still here"]).await;
    drop(second);
    scene.is_gone(&queue).await;
}

async fn auto_delete_queue_waits_for_its_first_consumer(scene: Scene) {
    let queue = scene.declare_queue(Queue::classic(scene.name("unused")).auto_delete()).await;
    scene.publish(&queue, ["waiting"]).await;
    scene.settles_at(&queue, 1).await;
    let mut reader = scene.read(&queue, 1).await;
    assert_eq!(reader.bodies(1).await, ["waiting"], "what came before the first consumer");
    drop(reader);
    scene.is_gone(&queue).await;
}
