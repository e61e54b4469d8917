//! The delivery limit: limit N is N + 1 deliveries, and then the message is dead.

use std::time::Duration;

use futures_util::future;
use postrider_core::{DeadLetter, Queue};

use super::{Behaviour, Need, dead_letter::assert_dead};
use crate::{Scene, harness::Fault, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology, Need::DeliveryLimit];
    vec![
        Behaviour::new(limit_n_is_n_plus_one_deliveries, NEEDS),
        Behaviour::new(limit_zero_is_one_delivery, NEEDS),
        Behaviour::new(limit_without_dead_letter_drops, NEEDS),
        Behaviour::new(
            delayed_retries_count_toward_the_limit,
            &[Need::Topology, Need::DeliveryLimit, Need::DelayedRetry],
        ),
        Behaviour::new(
            releases_do_not_count_toward_the_limit,
            &[Need::Topology, Need::DeliveryLimit, Need::UncountedRelease],
        ),
        Behaviour::new(no_limit_is_no_limit, NEEDS),
        Behaviour::new(
            crash_loop_reaches_the_limit,
            &[Need::Topology, Need::DeliveryLimit, Need::Fault(Fault::ConnectionLoss)],
        ),
        Behaviour::new(
            crash_counts_once_for_two_consumers,
            &[
                Need::Topology,
                Need::DeliveryLimit,
                Need::ExactAttempts,
                Need::Fault(Fault::ConnectionLoss),
            ],
        ),
    ]
}

/// A quorum queue with this limit, and the queue of its dead letters.
async fn limited(scene: &Scene, limit: u32) -> (String, String) {
    let dead = scene.classic("dead").await;
    let queue = Queue::durable(scene.name("limited"))
        .with_delivery_limit(limit)
        .with_dead_letter(DeadLetter::to("").with_routing_key(dead.clone()));
    (scene.declare_queue(queue).await, dead)
}

/// Fails every delivery until the message is dead, and says how often it came.
async fn deliveries_until_dead(scene: &Scene, queue: &str, dead: &str, after: Duration) -> u32 {
    let mut reader = scene.read(queue, 1).await;
    let mut graves = scene.read(dead, 1).await;
    let mut came = 0;
    loop {
        tokio::select! {
            delivery = reader.next() => {
                came += 1;
                let info = delivery.info();
                assert_eq!((info.attempt, info.failures), (came, came - 1), "counts: {info:?}");
                assert!(came < 50, "the limit of '{queue}' is not enforced");
                delivery.retry(after);
            }
            delivery = graves.next() => {
                assert_dead(&delivery, queue, "delivery_limit");
                assert_eq!(text(&delivery), "poison", "the dead letter's body");
                delivery.ack();
                return came;
            }
        }
    }
}

async fn limit_n_is_n_plus_one_deliveries(scene: Scene) {
    let (queue, dead) = limited(&scene, 3).await;
    scene.publish(&queue, ["poison"]).await;
    let came = deliveries_until_dead(&scene, &queue, &dead, Duration::ZERO).await;
    assert_eq!(came, 4, "a delivery limit of 3 is 4 deliveries");
    scene.settles_at(&queue, 0).await;
}

async fn limit_zero_is_one_delivery(scene: Scene) {
    let (queue, dead) = limited(&scene, 0).await;
    scene.publish(&queue, ["poison"]).await;
    let came = deliveries_until_dead(&scene, &queue, &dead, Duration::ZERO).await;
    assert_eq!(came, 1, "a delivery limit of 0 is 1 delivery");
}

async fn limit_without_dead_letter_drops(scene: Scene) {
    let queue = Queue::durable(scene.name("dropping")).with_delivery_limit(2);
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["poison", "good"]).await;
    let mut reader = scene.read(&queue, 1).await;
    let mut came = 0;
    loop {
        let delivery = reader.next().await;
        if text(&delivery) == "good" {
            delivery.ack();
            break;
        }
        came += 1;
        assert!(came <= 3, "a delivery limit of 2 is 3 deliveries");
        delivery.retry(Duration::ZERO);
    }
    // The other one may be let through between two attempts, so the count is taken at the end.
    while came < 3 {
        reader.next().await.retry(Duration::ZERO);
        came += 1;
    }
    reader.is_silent().await;
    scene.settles_at(&queue, 0).await;
}

async fn delayed_retries_count_toward_the_limit(scene: Scene) {
    let (queue, dead) = limited(&scene, 2).await;
    scene.publish(&queue, ["poison"]).await;
    let came = deliveries_until_dead(&scene, &queue, &dead, Duration::from_secs(1)).await;
    assert_eq!(came, 3, "a delivery limit of 2 is 3 deliveries, delayed or not");
}

async fn releases_do_not_count_toward_the_limit(scene: Scene) {
    let (queue, dead) = limited(&scene, 2).await;
    scene.publish(&queue, ["poison"]).await;
    let mut reader = scene.read(&queue, 1).await;
    for _ in 0..10 {
        let delivery = reader.next().await;
        assert_eq!(delivery.info().failures, 0, "a release is no failure: {:?}", delivery.info());
        delivery.release();
    }
    // Failures count from here, as if nothing had been before.
    for failures in 0..3 {
        let delivery = reader.next().await;
        assert_eq!(delivery.info().failures, failures, "failures: {:?}", delivery.info());
        delivery.retry(Duration::ZERO);
    }
    let letter = scene.read(&dead, 1).await.next().await;
    assert_dead(&letter, &queue, "delivery_limit");
    letter.ack();
}

async fn no_limit_is_no_limit(scene: Scene) {
    let queue = Queue::durable(scene.name("endless")).without_delivery_limit();
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["stubborn"]).await;
    let mut reader = scene.read(&queue, 1).await;
    // More often than the limit that a broker sets by itself.
    for attempt in 1..=30 {
        let delivery = reader.next().await;
        assert_eq!(delivery.info().attempt, attempt, "attempts: {:?}", delivery.info());
        delivery.retry(Duration::ZERO);
    }
    assert_eq!(reader.bodies(1).await, ["stubborn"], "without a limit it comes for ever");
}

/// A message that kills its consumer each time is never settled, and comes to rest all the same.
async fn crash_loop_reaches_the_limit(scene: Scene) {
    crash_loop(&scene, 1).await;
}

/// What one consumer loses with the connection must not count as a try of another on it. A broker
/// that closes a connection channel by channel gives it to that other one for a moment.
async fn crash_counts_once_for_two_consumers(scene: Scene) {
    crash_loop(&scene, 2).await;
}

async fn crash_loop(scene: &Scene, consumers: usize) {
    const LIMIT: u32 = 2;
    let (queue, dead) = limited(scene, LIMIT).await;
    scene.publish(&queue, ["poison"]).await;
    let victim = scene.connect().await;
    let mut losses = victim.transport.events();
    let mut readers = Vec::new();
    for _ in 0..consumers {
        readers.push(scene.read_on(&victim.transport, &queue, 1).await);
    }
    for attempt in 1..=LIMIT + 1 {
        let next = readers.iter_mut().map(|reader| Box::pin(reader.next()));
        let (delivery, _, _) = future::select_all(next).await;
        assert_eq!(delivery.info().attempt, attempt, "tries so far: {:?}", delivery.info());
        victim.cut().await;
        scene.restored(&mut losses, u64::from(attempt) + 1).await;
        // It belongs to a connection that is gone.
        drop(delivery);
    }
    let grave = scene.read(&dead, 1).await.next().await;
    assert_dead(&grave, &queue, "delivery_limit");
    grave.ack();
    scene.settles_at(&queue, 0).await;
}
