//! Messages and queues that live for a time.

use std::time::Duration;

use postrider_core::{DeadLetter, Message, Queue};
use tokio::time;

use super::{Behaviour, Need, dead_letter::assert_dead};
use crate::{Scene, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    vec![
        Behaviour::new(message_expires_by_its_own_ttl, &[Need::Topology]),
        Behaviour::new(message_expires_by_the_queues_ttl, &[Need::Topology]),
        Behaviour::new(lower_ttl_wins, &[Need::Topology]),
        Behaviour::new(own_ttl_is_taken_off_the_dead_letter, &[Need::Topology]),
        Behaviour::new(expired_message_without_dead_letter_is_gone, &[Need::Topology]),
        Behaviour::new(message_is_there_until_it_expires, &[Need::Topology]),
        Behaviour::new(message_in_hand_does_not_expire, &[Need::Topology]),
        Behaviour::new(ttl_zero_expires_at_once, &[Need::Topology]),
        Behaviour::new(unused_queue_expires, &[Need::Topology]),
        Behaviour::new(used_queue_does_not_expire, &[Need::Topology]),
    ]
}

const TTL: Duration = Duration::from_millis(800);

/// Both kinds of queue with `dead` as the queue of their dead letters.
fn mortals(scene: &Scene, dead: &str) -> [Queue; 2] {
    let letters = DeadLetter::to("").with_routing_key(dead.to_owned());
    [
        Queue::durable(scene.name("quorum")).with_dead_letter(letters.clone()),
        Queue::classic(scene.name("classic")).with_dead_letter(letters),
    ]
}

/// Publishes `message` and sees it die of age after `ttl`, not before and not much later.
async fn expires_after(scene: &Scene, queue: &str, dead: &str, message: Message, ttl: Duration) {
    let mut graves = scene.read(dead, 1).await;
    let began = scene.env().now();
    scene.publish_message(queue, message).await;
    let stored = scene.env().now();
    let letter = graves.next().await;
    let now = scene.env().now();
    assert_dead(&letter, queue, "expired");
    letter.ack();
    assert!(now - began >= ttl, "it expired after {:?}, before {ttl:?}", now - began);
    let bound = ttl + scene.lateness();
    assert!(now - stored <= bound, "it expired after {:?}, not by {bound:?}", now - stored);
    scene.settles_at(queue, 0).await;
}

async fn message_expires_by_its_own_ttl(scene: Scene) {
    let dead = scene.classic("dead").await;
    for queue in mortals(&scene, &dead) {
        let queue = scene.declare_queue(queue).await;
        expires_after(&scene, &queue, &dead, Message::new("old").with_ttl(TTL), TTL).await;
    }
}

async fn message_expires_by_the_queues_ttl(scene: Scene) {
    let dead = scene.classic("dead").await;
    for queue in mortals(&scene, &dead) {
        let queue = scene.declare_queue(queue.with_message_ttl(TTL)).await;
        expires_after(&scene, &queue, &dead, Message::new("old"), TTL).await;
    }
}

async fn lower_ttl_wins(scene: Scene) {
    let dead = scene.classic("dead").await;
    let long = Duration::from_secs(600);
    for queue in mortals(&scene, &dead) {
        let base = queue.name.to_string();
        let mut short_lived = queue.clone().with_message_ttl(TTL);
        short_lived.name = format!("{base}-short").into();
        let mut long_lived = queue.with_message_ttl(long);
        long_lived.name = format!("{base}-long").into();
        let short_lived = scene.declare_queue(short_lived).await;
        let long_lived = scene.declare_queue(long_lived).await;
        let old = Message::new("old");
        expires_after(&scene, &short_lived, &dead, old.clone().with_ttl(long), TTL).await;
        expires_after(&scene, &long_lived, &dead, old.with_ttl(TTL), TTL).await;
    }
}

async fn own_ttl_is_taken_off_the_dead_letter(scene: Scene) {
    let dead = scene.classic("dead").await;
    for queue in mortals(&scene, &dead) {
        let queue = scene.declare_queue(queue).await;
        let ttl = Duration::from_millis(100);
        scene.publish_message(&queue, Message::new("old").with_ttl(ttl)).await;
        // It must outlive its old time to live in the second queue.
        scene.settles_at(&dead, 1).await;
        let letter = scene.read(&dead, 1).await.next().await;
        assert_eq!(letter.message().ttl, None, "a dead letter's own TTL is taken off");
        letter.ack();
    }
}

async fn expired_message_without_dead_letter_is_gone(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let short = Message::new("old").with_ttl(Duration::from_millis(100));
        scene.publish_message(&queue, short).await;
        scene.publish(&queue, ["fresh"]).await;
        scene.settles_at(&queue, 1).await;
        scene.holds(&queue, &["fresh"]).await;
    }
}

async fn message_is_there_until_it_expires(scene: Scene) {
    let ttl = Duration::from_secs(30);
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        scene.publish_message(&queue, Message::new("fresh").with_ttl(ttl)).await;
        time::sleep(scene.quiet()).await;
        let delivery = scene.read(&queue, 1).await.next().await;
        assert_eq!(text(&delivery), "fresh", "a message is there until its time is over");
        assert_eq!(delivery.message().ttl, Some(ttl), "its TTL is told to the consumer");
        delivery.ack();
    }
}

async fn message_in_hand_does_not_expire(scene: Scene) {
    let ttl = Duration::from_millis(500);
    let dead = scene.classic("dead").await;
    for queue in mortals(&scene, &dead) {
        let queue = scene.declare_queue(queue.with_message_ttl(ttl)).await;
        // The consumer is there first, so that it has the message however slow the machine is.
        let mut reader = scene.read(&queue, 1).await;
        scene.publish(&queue, ["held"]).await;
        let held = reader.next().await;
        time::sleep(ttl * 2 + scene.lateness()).await;
        assert_eq!(scene.info(&dead).await.ready, 0, "a message in hand does not expire");
        held.ack();
        drop(reader);
        scene.settles_at(&queue, 0).await;
        assert_eq!(scene.info(&dead).await.ready, 0, "an acked message is no dead letter");
    }
}

async fn ttl_zero_expires_at_once(scene: Scene) {
    let dead = scene.classic("dead").await;
    let [_, queue] = mortals(&scene, &dead);
    let queue = scene.declare_queue(queue.with_message_ttl(Duration::ZERO)).await;
    expires_after(&scene, &queue, &dead, Message::new("now"), Duration::ZERO).await;
}

async fn unused_queue_expires(scene: Scene) {
    let expires = Duration::from_secs(1);
    let queue = Queue::classic(scene.name("unused")).with_expires(expires);
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["lost with it"]).await;
    // Asking for a queue may count as using it, so it is asked rarely.
    let mut rounds = 0;
    loop {
        time::sleep(expires * 2 + scene.lateness()).await;
        match scene.transport().queue_info(&queue).await {
            Ok(None) => break,
            other => {
                rounds += 1;
                assert!(rounds < 3, "'{queue}' is unused and must expire: {other:?}");
            }
        }
    }
}

async fn used_queue_does_not_expire(scene: Scene) {
    let expires = Duration::from_secs(1);
    let queue = Queue::classic(scene.name("used")).with_expires(expires);
    let queue = scene.declare_queue(queue).await;
    let mut reader = scene.read(&queue, 1).await;
    time::sleep(expires * 2 + scene.lateness()).await;
    scene.publish(&queue, ["still here"]).await;
    assert_eq!(reader.bodies(1).await, ["still here"], "a queue with a consumer is used");
    drop(reader);
    time::sleep(expires * 2 + scene.lateness()).await;
    scene.is_gone(&queue).await;
}
