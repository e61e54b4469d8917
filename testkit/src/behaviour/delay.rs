//! Delayed publishing: never early, and late by little.

use std::time::Duration;

use postrider_core::{Address, Binding, Envelope, Exchange, Message, Topology, Verdict};

use super::{Behaviour, Need};
use crate::{Scene, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology, Need::DelayedPublish];
    vec![
        Behaviour::new(delayed_publish_is_never_early, NEEDS),
        Behaviour::new(shorter_delay_arrives_first, NEEDS),
        Behaviour::new(delayed_publish_goes_through_exchanges, NEEDS),
        Behaviour::new(delay_does_not_hide_a_missing_exchange, NEEDS),
        Behaviour::new(delay_changes_no_message, NEEDS),
        Behaviour::new(many_delays_keep_their_times, NEEDS),
    ]
}

fn delayed(queue: &str, body: impl Into<String>, delay: Duration) -> Envelope {
    let message = Message::new(body.into());
    Envelope::new(Address::queue(queue.to_owned()), message).after(delay)
}

async fn delayed_publish_is_never_early(scene: Scene) {
    let delay = Duration::from_secs(2);
    let queue = scene.queue("delayed").await;
    let mut reader = scene.read(&queue, 1).await;
    let began = scene.env().now();
    scene.publish_envelopes([delayed(&queue, "later", delay)]).await;
    let stored = scene.env().now();
    let info = scene.info(&queue).await;
    assert_eq!(info.ready, 0, "a delayed message is not ready: {info:?}");
    // A message without a delay is not held up by one that has one.
    scene.publish(&queue, ["now"]).await;
    assert_eq!(reader.bodies(1).await, ["now"], "a delay holds back its own message only");
    let delivery = reader.next().await;
    let now = scene.env().now();
    assert_eq!(text(&delivery), "later", "the delayed message");
    delivery.ack();
    assert!(now - began >= delay, "a delay of {delay:?} was over after {:?}", now - began);
    let bound = delay + scene.lateness();
    assert!(now - stored <= bound, "a delay of {delay:?} took {:?}", now - stored);
    reader.is_silent().await;
}

async fn shorter_delay_arrives_first(scene: Scene) {
    let queue = scene.queue("order").await;
    let second = Duration::from_secs(1);
    scene
        .publish_envelopes([
            delayed(&queue, "third", second * 4),
            delayed(&queue, "second", second * 3),
            delayed(&queue, "first", second),
        ])
        .await;
    let bodies = scene.read(&queue, 10).await.bodies(3).await;
    assert_eq!(bodies, ["first", "second", "third"], "delays end in the order of their times");
}

async fn delayed_publish_goes_through_exchanges(scene: Scene) {
    let (exchange, queue) = (scene.name("events"), scene.queue("bound").await);
    scene
        .declare(Topology::new().exchange(Exchange::topic(exchange.clone())).bind(Binding::queue(
            exchange.clone(),
            queue.clone(),
            "order.*",
        )))
        .await;
    let address = Address::exchange(exchange, "order.created");
    let envelope = Envelope::new(address.clone(), Message::new("event"));
    scene.publish_envelopes([envelope.after(Duration::from_secs(1))]).await;
    let delivery = scene.read(&queue, 1).await.next().await;
    assert_eq!(text(&delivery), "event", "a delayed message is routed when its time has come");
    delivery.ack();
}

async fn delay_does_not_hide_a_missing_exchange(scene: Scene) {
    let publisher = scene.publisher().await;
    let address = Address::exchange(scene.name("missing"), "key");
    let envelope = Envelope::new(address, Message::new("x")).after(Duration::from_secs(1));
    let confirm = scene.send(&*publisher, envelope).await;
    let verdict = scene.verdict(confirm).await;
    assert!(matches!(verdict, Verdict::Rejected(_)), "no such exchange: {verdict:?}");
}

async fn delay_changes_no_message(scene: Scene) {
    let queue = scene.queue("intact").await;
    let sent = Message::new("body")
        .with_message_id("id")
        .with_type("reminder")
        .with_header("tenant", "north");
    let envelope = Envelope::new(Address::queue(queue.clone()), sent.clone());
    scene.publish_envelopes([envelope.after(Duration::from_secs(1))]).await;
    let delivery = scene.read(&queue, 1).await.next().await;
    let got = delivery.message();
    assert_eq!(got.body, sent.body, "the body of a delayed message");
    assert_eq!(got.message_id, sent.message_id, "its id");
    assert_eq!(got.message_type, sent.message_type, "its type");
    assert_eq!(got.headers.get("tenant"), sent.headers.get("tenant"), "its header");
    assert_eq!(got.ttl, None, "a delay is no time to live");
    assert!(delivery.envelope().delay.is_zero(), "sent on, it is not delayed again");
    assert_eq!(delivery.info().attempt, 1, "waiting is no attempt: {:?}", delivery.info());
    delivery.ack();
}

async fn many_delays_keep_their_times(scene: Scene) {
    const COUNT: usize = 300;
    let queue = scene.queue("many").await;
    let mut reader = scene.read(&queue, 200).await;
    let began = scene.env().now();
    let delays: Vec<_> =
        (0..COUNT).map(|_| Duration::from_secs(1 + scene.env().random() % 4)).collect();
    let envelopes: Vec<_> = (0..COUNT).map(|n| delayed(&queue, n.to_string(), delays[n])).collect();
    scene.publish_envelopes(envelopes).await;
    let stored = scene.env().now();
    let mut seen = vec![false; COUNT];
    for _ in 0..COUNT {
        let delivery = reader.next().await;
        let now = scene.env().now();
        let n: usize = text(&delivery).parse().expect("a number");
        assert!(!std::mem::replace(&mut seen[n], true), "message {n} came twice");
        assert!(now - began >= delays[n], "{:?} was over after {:?}", delays[n], now - began);
        let bound = delays[n] + scene.lateness();
        assert!(now - stored <= bound, "{:?} took {:?}", delays[n], now - stored);
        delivery.ack();
    }
    reader.is_silent().await;
}
