//! The retry delay of a queue: how long it hides what failed, without being told each time.

use std::time::Duration;

use postrider_core::{DeadLetter, Delivery, Queue};

use super::{Behaviour, Need, dead_letter::assert_dead};
use crate::{Reader, Scene, scene::text};

const SHORTEST: Duration = Duration::from_millis(400);
const LONGEST: Duration = Duration::from_millis(1_000);

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology, Need::DeliveryLimit, Need::DelayedRetry];
    vec![
        Behaviour::new(retry_delay_grows_with_the_failures, NEEDS),
        Behaviour::new(retry_delay_hides_only_what_failed, NEEDS),
        Behaviour::new(delay_of_a_retry_goes_before_the_queues, NEEDS),
        Behaviour::new(last_failure_is_dead_without_delay, NEEDS),
    ]
}

/// Settles a delivery by `settle` and checks that its message comes again, and not before `after`.
async fn comes_again(
    scene: &Scene,
    reader: &mut Reader,
    delivery: Delivery,
    settle: impl FnOnce(Delivery),
    after: Duration,
) -> Delivery {
    let (body, attempt) = (text(&delivery), delivery.info().attempt);
    let began = scene.env().now();
    settle(delivery);
    let again = reader.next().await;
    let took = scene.env().now() - began;
    assert_eq!(text(&again), body, "what failed comes again");
    assert_eq!(again.info().attempt, attempt + 1, "counts: {:?}", again.info());
    assert!(took >= after, "it was to stay hidden for {after:?} and came after {took:?}");
    let bound = after + scene.lateness();
    assert!(took <= bound, "it was to stay hidden for {after:?} and came after {took:?}");
    again
}

fn retry(delivery: Delivery) {
    delivery.retry(Duration::ZERO);
}

async fn retry_delay_grows_with_the_failures(scene: Scene) {
    let queue = Queue::durable(scene.name("delayed")).with_retry_delay(SHORTEST, LONGEST);
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["x"]).await;
    let mut reader = scene.read(&queue, 1).await;
    let mut delivery = reader.next().await;
    for failures in 1..=4 {
        let after = (SHORTEST * failures).min(LONGEST);
        delivery = comes_again(&scene, &mut reader, delivery, retry, after).await;
        assert_eq!(delivery.info().failures, failures, "counts: {:?}", delivery.info());
    }
    delivery.ack();
    scene.settles_at(&queue, 0).await;
}

async fn retry_delay_hides_only_what_failed(scene: Scene) {
    let delay = Duration::from_secs(2);
    let queue = Queue::durable(scene.name("delayed")).with_retry_delay(delay, delay);
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["slow", "quick"]).await;
    let mut reader = scene.read(&queue, 1).await;
    retry(reader.next().await);
    let quick = reader.next().await;
    assert_eq!(text(&quick), "quick", "what failed blocks no other");
    // What is given back without having failed has nothing to wait for.
    quick.release();
    let quick = reader.next().await;
    assert_eq!(text(&quick), "quick", "a release comes back at once");
    quick.ack();
    let slow = reader.next().await;
    assert_eq!(text(&slow), "slow");
    slow.ack();
    scene.settles_at(&queue, 0).await;
}

async fn delay_of_a_retry_goes_before_the_queues(scene: Scene) {
    let long = Duration::from_secs(60);
    let queue = Queue::durable(scene.name("delayed")).with_retry_delay(long, long);
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["x"]).await;
    let mut reader = scene.read(&queue, 1).await;
    let delivery = reader.next().await;
    let own = |delivery: Delivery| delivery.retry(SHORTEST);
    comes_again(&scene, &mut reader, delivery, own, SHORTEST).await.ack();
    scene.settles_at(&queue, 0).await;
}

async fn last_failure_is_dead_without_delay(scene: Scene) {
    let long = Duration::from_secs(60);
    let dead = scene.classic("dead").await;
    let queue = Queue::durable(scene.name("delayed"))
        .with_delivery_limit(0)
        .with_retry_delay(long, long)
        .with_dead_letter(DeadLetter::to("").with_routing_key(dead.clone()));
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["x"]).await;
    let mut reader = scene.read(&queue, 1).await;
    let mut graves = scene.read(&dead, 1).await;
    retry(reader.next().await);
    let letter = graves.next().await;
    assert_dead(&letter, &queue, "delivery_limit");
    letter.ack();
    scene.settles_at(&queue, 0).await;
}
