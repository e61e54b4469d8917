//! Settling: what each settlement does to the message, its place and its counts.

use std::time::Duration;

use postrider_core::{Delivery, Message, Queue, TransportEvent};
use tokio::time;

use super::{Behaviour, Need};
use crate::{Scene, harness::Fault, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const LOSS: &[Need] = &[Need::Topology, Need::Fault(Fault::ConnectionLoss)];
    vec![
        Behaviour::new(ack_removes_the_message, &[Need::Topology]),
        Behaviour::new(unacked_neighbours_come_back, &[Need::Topology]),
        Behaviour::new(release_gives_back_to_the_old_place, &[Need::Topology]),
        Behaviour::new(release_gives_back_uncounted, &[Need::Topology, Need::UncountedRelease]),
        Behaviour::new(retry_comes_back_counted, &[Need::Topology]),
        Behaviour::new(
            attempts_are_exact_on_classic_queues,
            &[Need::Topology, Need::ExactAttempts],
        ),
        Behaviour::new(delayed_retry_is_hidden_and_counted, &[Need::Topology, Need::DelayedRetry]),
        Behaviour::new(first_failure_is_dated, &[Need::Topology, Need::DelayedRetry]),
        Behaviour::new(longest_retry_stays_hidden, &[Need::Topology, Need::DelayedRetry]),
        Behaviour::new(headers_of_brokers_are_nobodys_word, &[Need::Topology]),
        Behaviour::new(reject_without_dead_letter_drops, &[Need::Topology]),
        Behaviour::new(dropped_delivery_comes_back_with_an_event, &[Need::Topology]),
        Behaviour::new(settlement_after_a_loss_is_stale, LOSS),
    ]
}

/// A queue of each kind, so that a behaviour holds on both.
async fn both_kinds(scene: &Scene) -> [String; 2] {
    [scene.queue("quorum").await, scene.classic("classic").await]
}

fn assert_counts(delivery: &Delivery, attempt: u32, failures: u32) {
    let info = delivery.info();
    assert_eq!(info.attempt, attempt, "the attempt of '{}': {info:?}", text(delivery));
    assert_eq!(info.failures, failures, "the failures of '{}': {info:?}", text(delivery));
    assert_eq!(info.redelivered, attempt > 1, "redelivered of '{}': {info:?}", text(delivery));
}

async fn ack_removes_the_message(scene: Scene) {
    for queue in both_kinds(&scene).await {
        scene.publish(&queue, ["a", "b"]).await;
        let mut reader = scene.read(&queue, 10).await;
        for delivery in reader.take(2).await {
            assert_eq!(*delivery.info().queue, *queue, "the queue of a delivery");
            assert_counts(&delivery, 1, 0);
            delivery.ack();
        }
        drop(reader);
        scene.settles_at(&queue, 0).await;
        let other = scene.connect().await;
        scene.read_on(&other.transport, &queue, 10).await.is_silent().await;
    }
}

/// A coalesced ack must never reach past a delivery that is still unsettled.
async fn unacked_neighbours_come_back(scene: Scene) {
    for queue in both_kinds(&scene).await {
        let victim = scene.connect().await;
        scene.publish(&queue, (0..100).map(|n| n.to_string())).await;
        let mut reader = scene.read_on(&victim.transport, &queue, 100).await;
        let mut held: Vec<_> = reader.take(100).await.into_iter().map(Some).collect();
        // Acks from the end, from the middle and from the beginning, and leaves every fifth.
        let mut kept = Vec::new();
        for n in (60..100).chain((20..60).rev()).chain(0..20) {
            if n % 5 == 3 {
                kept.push(n);
            } else if let Some(delivery) = held[n].take() {
                delivery.ack();
            }
        }
        kept.sort_unstable();
        // Nothing tells when an ack has arrived; what is unsettled shows it where the broker says.
        scene
            .eventually("the acks arrive", async || match scene.info(&queue).await.unsettled {
                Some(unsettled) if unsettled != 20 => Err(format!("{unsettled} unsettled")),
                _ => Ok(()),
            })
            .await;
        time::sleep(scene.quiet()).await;
        drop(reader);
        let closed = victim.transport.close(Duration::ZERO).await;
        assert!(closed.is_err(), "closing with unsettled deliveries says so");
        drop(held);
        let mut bodies = scene.read(&queue, 100).await.bodies(kept.len()).await;
        bodies.sort_by_key(|body| body.parse::<usize>().unwrap_or(usize::MAX));
        let kept: Vec<_> = kept.iter().map(ToString::to_string).collect();
        assert_eq!(bodies, kept, "exactly the unacked messages of '{queue}' come back");
        scene.settles_at(&queue, 0).await;
    }
}

async fn release_gives_back_to_the_old_place(scene: Scene) {
    for queue in both_kinds(&scene).await {
        scene.publish(&queue, ["1", "2", "3"]).await;
        let mut reader = scene.read(&queue, 1).await;
        reader.next().await.release();
        let again = reader.next().await;
        assert_eq!(text(&again), "1", "a released message goes back to its old place");
        assert!(again.info().redelivered, "a released message is redelivered: {:?}", again.info());
        assert!(again.info().attempt >= 2, "the second attempt: {:?}", again.info());
        again.ack();
        assert_eq!(reader.bodies(2).await, ["2", "3"], "the others of '{queue}' keep their order");
    }
}

async fn release_gives_back_uncounted(scene: Scene) {
    let queue = scene.queue("released").await;
    scene.publish(&queue, ["x"]).await;
    let mut reader = scene.read(&queue, 1).await;
    for attempt in 1..=5 {
        let delivery = reader.next().await;
        assert_counts(&delivery, attempt, 0);
        delivery.release();
    }
    reader.next().await.ack();
    scene.settles_at(&queue, 0).await;
}

async fn retry_comes_back_counted(scene: Scene) {
    let queue = scene.queue("retried").await;
    scene.publish(&queue, ["1", "2"]).await;
    let mut reader = scene.read(&queue, 1).await;
    for attempt in 1..=4 {
        let delivery = reader.next().await;
        assert_eq!(text(&delivery), "1", "a retried message goes back to its old place");
        assert_counts(&delivery, attempt, attempt - 1);
        delivery.retry(Duration::ZERO);
    }
    let last = reader.next().await;
    assert_counts(&last, 5, 4);
    last.ack();
    assert_eq!(reader.bodies(1).await, ["2"], "the one behind it");
    scene.settles_at(&queue, 0).await;
}

async fn attempts_are_exact_on_classic_queues(scene: Scene) {
    let queue = scene.classic("attempts").await;
    scene.publish(&queue, ["x"]).await;
    let mut reader = scene.read(&queue, 1).await;
    for attempt in 1..=5 {
        let delivery = reader.next().await;
        assert_counts(&delivery, attempt, attempt - 1);
        delivery.retry(Duration::ZERO);
    }
    reader.next().await.ack();
}

async fn delayed_retry_is_hidden_and_counted(scene: Scene) {
    let after = Duration::from_secs(1);
    let queue = scene.queue("later").await;
    scene.publish(&queue, ["slow", "quick"]).await;
    let mut reader = scene.read(&queue, 1).await;
    let slow = reader.next().await;
    assert_eq!(text(&slow), "slow");
    let began = scene.env().now();
    slow.retry(after);
    // The delay holds back this message and no other, and takes no room of the prefetch.
    assert_eq!(reader.bodies(1).await, ["quick"], "a delayed retry must not block the others");
    let again = reader.next().await;
    let took = scene.env().now() - began;
    assert_eq!(text(&again), "slow", "what was retried comes again");
    assert!(took >= after, "a retry after {after:?} came after {took:?}");
    let bound = after + scene.lateness();
    assert!(took <= bound, "a retry after {after:?} came after {took:?}, later than {bound:?}");
    assert_eq!(again.info().attempt, 2, "a delayed retry counts: {:?}", again.info());
    assert_eq!(again.info().failures, 1, "a delayed retry is a failure: {:?}", again.info());
    again.ack();
    scene.settles_at(&queue, 0).await;
    reader.is_silent().await;
}

async fn first_failure_is_dated(scene: Scene) {
    let after = Duration::from_millis(100);
    for queue in both_kinds(&scene).await {
        scene.publish(&queue, ["x"]).await;
        let mut reader = scene.read(&queue, 1).await;
        let began = scene.env().timestamp();
        let mut delivery = reader.next().await;
        assert_eq!(delivery.info().first_failed, None, "{queue}");
        let mut dates = Vec::new();
        for _failure in 0..3 {
            delivery.retry(after);
            delivery = reader.next().await;
            assert!(delivery.message().headers.is_empty(), "the note of it is no header");
            dates.push((delivery.info().first_failed, scene.env().timestamp()));
        }
        let (first, came) = dates[0];
        let first = first.unwrap_or_else(|| panic!("{queue}: a failure without a date"));
        let began = began - Duration::from_millis(1);
        assert!(began <= first && first <= came, "{queue}: {first} is not from {began} to {came}");
        assert!(dates.iter().all(|(date, _)| *date == Some(first)), "{queue}: {dates:?}");
        delivery.ack();
    }
}

async fn reject_without_dead_letter_drops(scene: Scene) {
    for queue in both_kinds(&scene).await {
        scene.publish(&queue, ["bad", "good"]).await;
        let mut reader = scene.read(&queue, 1).await;
        reader.next().await.reject("no use");
        assert_eq!(reader.bodies(1).await, ["good"], "a rejected message of '{queue}' is dropped");
        reader.is_silent().await;
        scene.settles_at(&queue, 0).await;
    }
}

async fn dropped_delivery_comes_back_with_an_event(scene: Scene) {
    for queue in both_kinds(&scene).await {
        scene.publish(&queue, ["x"]).await;
        let mut events = scene.transport().events();
        let mut reader = scene.read(&queue, 1).await;
        drop(reader.next().await);
        let told = scene
            .event(&mut events, "the event Abandoned", |event| match event {
                TransportEvent::Abandoned { queue } => Some(queue.clone()),
                _ => None,
            })
            .await;
        assert_eq!(told, queue, "the event names the queue");
        let again = reader.next().await;
        assert!(again.info().redelivered, "a dropped delivery comes again: {:?}", again.info());
        if scene.capabilities().uncounted_release {
            assert_eq!(again.info().failures, 0, "dropping is no failure: {:?}", again.info());
        }
        again.ack();
        scene.settles_at(&queue, 0).await;
    }
}

async fn settlement_after_a_loss_is_stale(scene: Scene) {
    for queue in [
        scene.queue("quorum").await,
        scene.declare_queue(Queue::classic(scene.name("classic"))).await,
    ] {
        scene.publish(&queue, ["first", "second"]).await;
        let connection = scene.connect().await;
        let mut events = connection.transport.events();
        let mut reader = scene.read_on(&connection.transport, &queue, 2).await;
        let old = reader.take(2).await;
        connection.cut().await;
        scene.restored(&mut events, 2).await;

        let new = reader.take(2).await;
        for delivery in &new {
            assert!(
                delivery.info().redelivered && delivery.info().attempt >= 2,
                "what was unsettled at the loss is redelivered: {:?}",
                delivery.info()
            );
        }
        // The old tags mean nothing now: each is reported, and no new delivery is settled by them.
        for delivery in old {
            delivery.ack();
            let told = scene
                .event(&mut events, "the event StaleSettlement", |event| match event {
                    TransportEvent::StaleSettlement { queue } => Some(queue.clone()),
                    _ => None,
                })
                .await;
            assert_eq!(told, queue, "the event names the queue");
        }
        for delivery in new {
            delivery.release();
        }
        let mut bodies = reader.bodies(2).await;
        bodies.sort();
        assert_eq!(bodies, ["first", "second"], "a stale ack must settle nothing in '{queue}'");
        drop(reader);
        scene.settles_at(&queue, 0).await;
    }
}

/// A delay that is longer than the broker can have is a long one, and not none.
async fn longest_retry_stays_hidden(scene: Scene) {
    let queue = scene.queue("hidden").await;
    scene.publish(&queue, ["later"]).await;
    let mut reader = scene.read(&queue, 10).await;
    reader.next().await.retry(Duration::MAX);
    reader.is_silent().await;
}

/// Whoever publishes can write what a broker writes; that changes nothing in how it is settled.
async fn headers_of_brokers_are_nobodys_word(scene: Scene) {
    let queue =
        scene.declare_queue(Queue::durable(scene.name("forged")).with_delivery_limit(5)).await;
    let message = Message::new("forged")
        .with_header("x-stream-offset", 7_i64)
        .with_header("postrider-attempt", 1_000_i64)
        .with_header("postrider-failures", 1_000_i64)
        .with_header("x-delivery-count", 1_000_i64)
        .with_header("x-acquired-count", 1_000_i64);
    scene.publish_message(&queue, message).await;
    let mut reader = scene.read(&queue, 10).await;
    let first = reader.next().await;
    assert_eq!(first.info().offset, None, "it comes from no stream: {:?}", first.info());
    assert_counts(&first, 1, 0);
    first.retry(Duration::ZERO);
    let second = reader.next().await;
    assert_counts(&second, 2, 1);
    second.ack();
    // A broker that has counted no failure may write none over it, and then it has been returned.
    let message = Message::new("released").with_header("x-delivery-count", 1_000_i64);
    scene.publish_message(&queue, message).await;
    reader.next().await.release();
    let second = reader.next().await;
    assert_eq!(second.info().attempt, 2, "{:?}", second.info());
    assert!(second.info().failures <= 1, "{:?}", second.info());
    second.ack();
}
