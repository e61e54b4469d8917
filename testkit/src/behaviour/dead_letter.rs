//! Dead letters: where they go, and what they say about how they died.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use postrider_core::{
    Address, Binding, DeadLetter, Delivery, Envelope, Exchange, HeaderValue, Headers, Message,
    Queue, Topology,
};
use tokio::time;

use super::{Behaviour, Need};
use crate::{Scene, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    vec![
        Behaviour::new(rejected_message_is_a_dead_letter, &[Need::Topology]),
        Behaviour::new(reason_of_a_reject_travels, &[Need::Topology, Need::RejectReason]),
        Behaviour::new(dead_letter_keeps_the_message, &[Need::Topology]),
        Behaviour::new(dead_letter_goes_under_its_own_key, &[Need::Topology]),
        Behaviour::new(dead_letter_goes_under_the_queues_key, &[Need::Topology]),
        Behaviour::new(dead_letter_exchange_routes_to_many, &[Need::Topology]),
        Behaviour::new(second_death_is_first_in_the_list, &[Need::Topology]),
        Behaviour::new(same_death_again_is_counted, &[Need::Topology]),
        Behaviour::new(cycle_without_a_reject_is_cut, &[Need::Topology]),
        Behaviour::new(cycle_after_a_reject_is_cut, &[Need::Topology]),
        Behaviour::new(missing_dead_letter_exchange_drops, &[Need::Topology]),
    ]
}

/// One entry of `x-death`.
#[derive(Debug, PartialEq)]
struct Death {
    queue: String,
    reason: String,
    count: i64,
    exchange: String,
    keys: Vec<String>,
    time: DateTime<Utc>,
}

fn field<'a>(death: &'a Headers, name: &str) -> &'a HeaderValue {
    death.get(name).unwrap_or_else(|| panic!("an entry of x-death must have '{name}': {death:?}"))
}

fn text_field(death: &Headers, name: &str) -> String {
    field(death, name)
        .as_text()
        .unwrap_or_else(|| panic!("'{name}' of x-death must be text: {death:?}"))
        .to_owned()
}

/// The deaths of a dead letter, the latest first.
fn deaths(message: &Message) -> Vec<Death> {
    let list = message.headers.get("x-death");
    let list = list.unwrap_or_else(|| panic!("a dead letter must have x-death: {message:?}"));
    let list = list.as_list();
    let list = list.unwrap_or_else(|| panic!("x-death must be a list: {message:?}"));
    list.iter()
        .map(|entry| {
            let death = entry.as_map();
            let death = death.unwrap_or_else(|| panic!("x-death must hold maps: {entry:?}"));
            let keys = field(death, "routing-keys").as_list();
            let keys = keys.unwrap_or_else(|| panic!("routing-keys must be a list: {death:?}"));
            let count = field(death, "count").as_int();
            let HeaderValue::Timestamp(time) = field(death, "time") else {
                panic!("'time' of x-death must be a timestamp: {death:?}");
            };
            Death {
                queue: text_field(death, "queue"),
                reason: text_field(death, "reason"),
                count: count.unwrap_or_else(|| panic!("'count' must be a number: {death:?}")),
                exchange: text_field(death, "exchange"),
                keys: keys.iter().filter_map(|key| key.as_text().map(ToOwned::to_owned)).collect(),
                time: *time,
            }
        })
        .collect()
}

fn header(message: &Message, name: &str) -> String {
    let value = message.headers.get(name).and_then(HeaderValue::as_text);
    value
        .unwrap_or_else(|| panic!("a dead letter must have '{name}' as text: {message:?}"))
        .to_owned()
}

/// Sees that a message died first in `queue` for `reason`, and only once, and that all headers
/// agree on it.
pub(super) fn assert_dead(delivery: &Delivery, queue: &str, reason: &str) {
    let message = delivery.message();
    let deaths = deaths(message);
    assert_eq!(deaths.len(), 1, "it died in one queue for one reason: {deaths:?}");
    let death = &deaths[0];
    assert_eq!((&*death.queue, &*death.reason), (queue, reason), "x-death: {death:?}");
    assert_eq!(death.count, 1, "it died once: {death:?}");
    for which in ["first", "last"] {
        let name = |what: &str| format!("x-{which}-death-{what}");
        assert_eq!(header(message, &name("queue")), queue, "{}", name("queue"));
        assert_eq!(header(message, &name("reason")), reason, "{}", name("reason"));
        assert_eq!(header(message, &name("exchange")), death.exchange, "{}", name("exchange"));
    }
}

/// A classic queue that sends its dead letters to the queue `dead`.
fn mortal(scene: &Scene, base: &str, dead: &str) -> Queue {
    Queue::classic(scene.name(base))
        .with_dead_letter(DeadLetter::to("").with_routing_key(dead.to_owned()))
}

async fn reject_next(scene: &Scene, queue: &str) {
    scene.read(queue, 1).await.next().await.reject("bad");
}

async fn rejected_message_is_a_dead_letter(scene: Scene) {
    let exchange = scene.name("source");
    let dead = scene.queue("dead").await;
    let quorum = Queue::durable(scene.name("quorum"))
        .with_dead_letter(DeadLetter::to("").with_routing_key(dead.clone()));
    for queue in [quorum, mortal(&scene, "classic", &dead)] {
        let queue = scene.declare_queue(queue).await;
        scene
            .declare(
                Topology::new().exchange(Exchange::direct(exchange.clone())).bind(Binding::queue(
                    exchange.clone(),
                    queue.clone(),
                    queue.clone(),
                )),
            )
            .await;
        // The times in x-death are whole seconds.
        let before = scene.env().timestamp() - TimeDelta::seconds(2);
        let address = Address::exchange(exchange.clone(), queue.clone());
        scene.publish_envelopes([Envelope::new(address, Message::new("bad"))]).await;
        reject_next(&scene, &queue).await;
        let letter = scene.read(&dead, 1).await.next().await;
        assert_dead(&letter, &queue, "rejected");
        let death = deaths(letter.message()).remove(0);
        assert_eq!(death.exchange, exchange, "where it had been published to: {death:?}");
        assert_eq!(death.keys, [&*queue], "the keys it had been published under: {death:?}");
        let after = scene.env().timestamp() + TimeDelta::seconds(2);
        assert!(before <= death.time && death.time <= after, "the time of death: {death:?}");
        let attempt = letter.info().attempt;
        let inexact = !scene.capabilities().exact_attempts;
        assert!(
            attempt == 1 || inexact && attempt == 2,
            "attempts count anew in another queue: {attempt}"
        );
        letter.ack();
        scene.settles_at(&queue, 0).await;
    }
}

async fn reason_of_a_reject_travels(scene: Scene) {
    let dead = scene.queue("dead").await;
    let queue = Queue::durable(scene.name("reasons"))
        .with_dead_letter(DeadLetter::to("").with_routing_key(dead.clone()));
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["bad"]).await;
    let reason = "the body is no order: line 1, column 7";
    scene.read(&queue, 1).await.next().await.reject(reason);
    let letter = scene.read(&dead, 1).await.next().await;
    assert_eq!(header(letter.message(), "postrider-reason"), reason, "the reason of the reject");
    letter.ack();
}

async fn dead_letter_keeps_the_message(scene: Scene) {
    let dead = scene.classic("dead").await;
    let queue = scene.declare_queue(mortal(&scene, "keeps", &dead)).await;
    let sent = Message::new("body")
        .with_message_id("id-1")
        .with_correlation_id("c-1")
        .with_content_type("text/plain")
        .with_type("order.created")
        .with_header("tenant", "north")
        .with_header("retries", 3);
    scene.publish_message(&queue, sent.clone()).await;
    reject_next(&scene, &queue).await;
    let letter = scene.read(&dead, 1).await.next().await;
    let got = letter.message();
    assert_eq!(got.body, sent.body, "the body of a dead letter");
    assert_eq!(got.message_id, sent.message_id, "its message id");
    assert_eq!(got.correlation_id, sent.correlation_id, "its correlation id");
    assert_eq!(got.content_type, sent.content_type, "its content type");
    assert_eq!(got.message_type, sent.message_type, "its type");
    for (name, value) in sent.headers.iter() {
        assert_eq!(got.headers.get(name), Some(value), "its header '{name}'");
    }
    letter.ack();
}

async fn dead_letter_goes_under_its_own_key(scene: Scene) {
    let (exchange, dead) = (scene.name("graves"), scene.classic("dead").await);
    let queue =
        Queue::classic(scene.name("own")).with_dead_letter(DeadLetter::to(exchange.clone()));
    let name = queue.name.to_string();
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::direct(exchange.clone()))
                .queue(queue)
                .bind(Binding::queue(exchange.clone(), dead.clone(), name.clone())),
        )
        .await;
    scene.publish(&name, ["bad"]).await;
    reject_next(&scene, &name).await;
    let letter = scene.read(&dead, 1).await.next().await;
    // Its address is that of its last routing, and the key is the one it was published under.
    assert_eq!(*letter.address(), Address::exchange(exchange, name), "a dead letter's address");
    letter.ack();
}

async fn dead_letter_goes_under_the_queues_key(scene: Scene) {
    let (exchange, dead) = (scene.name("graves"), scene.classic("dead").await);
    let letters = DeadLetter::to(exchange.clone()).with_routing_key("dead.orders");
    let queue = Queue::classic(scene.name("orders")).with_dead_letter(letters);
    let name = queue.name.to_string();
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::topic(exchange.clone()))
                .queue(queue)
                .bind(Binding::queue(exchange.clone(), dead.clone(), "dead.*")),
        )
        .await;
    scene.publish(&name, ["bad"]).await;
    reject_next(&scene, &name).await;
    let letter = scene.read(&dead, 1).await.next().await;
    let expected = Address::exchange(exchange, "dead.orders");
    assert_eq!(*letter.address(), expected, "a dead letter's address");
    assert_eq!(deaths(letter.message())[0].keys, [name], "x-death keeps the key from before");
    letter.ack();
}

async fn dead_letter_exchange_routes_to_many(scene: Scene) {
    let exchange = scene.name("graves");
    let graves = [scene.classic("dead-1").await, scene.classic("dead-2").await];
    let queue =
        Queue::classic(scene.name("fan")).with_dead_letter(DeadLetter::to(exchange.clone()));
    let name = queue.name.to_string();
    let mut topology = Topology::new().exchange(Exchange::fanout(exchange.clone())).queue(queue);
    for grave in &graves {
        topology = topology.bind(Binding::queue(exchange.clone(), grave.clone(), ""));
    }
    scene.declare(topology).await;
    scene.publish(&name, ["bad"]).await;
    reject_next(&scene, &name).await;
    for grave in &graves {
        let letter = scene.read(grave, 1).await.next().await;
        assert_dead(&letter, &name, "rejected");
        letter.ack();
    }
}

async fn second_death_is_first_in_the_list(scene: Scene) {
    let last = scene.classic("last").await;
    let second = scene.declare_queue(mortal(&scene, "second", &last)).await;
    let first = mortal(&scene, "first", &second).with_message_ttl(Duration::from_millis(100));
    let first = scene.declare_queue(first).await;
    scene.publish(&first, ["twice"]).await;
    reject_next(&scene, &second).await;
    let letter = scene.read(&last, 1).await.next().await;
    let message = letter.message();
    let list = deaths(message);
    let told: Vec<_> = list.iter().map(|d| (&*d.queue, &*d.reason, d.count)).collect();
    assert_eq!(
        told,
        [(&*second, "rejected", 1), (&*first, "expired", 1)],
        "x-death tells the latest death first"
    );
    assert_eq!(header(message, "x-first-death-queue"), first, "the first death stays");
    assert_eq!(header(message, "x-first-death-reason"), "expired", "the first death stays");
    assert_eq!(header(message, "x-last-death-queue"), second, "the last death is the latest");
    assert_eq!(header(message, "x-last-death-reason"), "rejected", "the last death is the latest");
    letter.ack();
}

async fn same_death_again_is_counted(scene: Scene) {
    let work = scene.name("work");
    let wait = Queue::classic(scene.name("wait"))
        .with_message_ttl(Duration::from_millis(100))
        .with_dead_letter(DeadLetter::to("").with_routing_key(work.clone()));
    let wait = scene.declare_queue(wait).await;
    let work =
        Queue::classic(work).with_dead_letter(DeadLetter::to("").with_routing_key(wait.clone()));
    let work = scene.declare_queue(work).await;
    scene.publish(&work, ["again"]).await;
    let mut reader = scene.read(&work, 1).await;
    for round in 0..3 {
        let delivery = reader.next().await;
        if round > 0 {
            let list = deaths(delivery.message());
            let mut told: Vec<_> = list.iter().map(|d| (&*d.reason, d.count)).collect();
            told.sort_unstable();
            assert_eq!(
                told,
                [("expired", round), ("rejected", round)],
                "the same death in the same queue is counted, not listed again: {list:?}"
            );
        }
        if round == 2 {
            delivery.ack();
        } else {
            delivery.reject("again");
        }
    }
}

async fn cycle_without_a_reject_is_cut(scene: Scene) {
    let ttl = Duration::from_millis(100);
    let (one, other) = (scene.name("one"), scene.name("other"));
    let ring = |name: &str, next: &str| {
        Queue::classic(name.to_owned())
            .with_message_ttl(ttl)
            .with_dead_letter(DeadLetter::to("").with_routing_key(next.to_owned()))
    };
    scene.declare(Topology::new().queue(ring(&one, &other)).queue(ring(&other, &one))).await;
    scene.publish(&one, ["round"]).await;
    time::sleep(ttl * 3 + scene.lateness()).await;
    // A message that went on in circles would be seen in one of them before long.
    for _ in 0..20 {
        for queue in [&one, &other] {
            let info = scene.info(queue).await;
            assert_eq!(info.ready, 0, "a message that only expires must not come back: {queue}");
        }
        time::sleep(Duration::from_millis(17)).await;
    }
}

/// A reject on the way into a ring does not excuse the ring.
async fn cycle_after_a_reject_is_cut(scene: Scene) {
    let ttl = Duration::from_millis(100);
    let ring = scene.name("ring");
    let to_ring = || DeadLetter::to("").with_routing_key(ring.clone());
    let work = Queue::classic(scene.name("work")).with_dead_letter(to_ring());
    let work = scene.declare_queue(work).await;
    let circle = Queue::classic(ring.clone()).with_message_ttl(ttl).with_dead_letter(to_ring());
    scene.declare_queue(circle).await;
    scene.publish(&work, ["rejected"]).await;
    scene.read(&work, 1).await.next().await.reject("into the ring");
    scene.settles_at(&work, 0).await;
    time::sleep(ttl * 3 + scene.lateness()).await;
    for _ in 0..20 {
        let ready = scene.info(&ring).await.ready;
        assert_eq!(ready, 0, "a message that only expires in the ring must not come back");
        time::sleep(Duration::from_millis(17)).await;
    }
}

async fn missing_dead_letter_exchange_drops(scene: Scene) {
    let letters = DeadLetter::to(scene.name("no-such-exchange"));
    let queue = Queue::classic(scene.name("nowhere")).with_dead_letter(letters);
    let queue = scene.declare_queue(queue).await;
    scene.publish(&queue, ["bad", "good"]).await;
    let mut reader = scene.read(&queue, 1).await;
    reader.next().await.reject("bad");
    let good = reader.next().await;
    assert_eq!(text(&good), "good", "a dead letter without a way is dropped");
    good.ack();
    drop(reader);
    scene.settles_at(&queue, 0).await;
}
