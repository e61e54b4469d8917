//! Properties and typed headers: what is sent is what arrives.

use std::time::Duration;

use bytes::Bytes;
use chrono::DateTime;
use postrider_core::{
    Address, Envelope, ErrorKind, HeaderValue, Headers, MAX_HEADER_LEVELS, Message,
};

use super::{Behaviour, Need};
use crate::{Scene, scene::refused};

pub(super) fn behaviours() -> Vec<Behaviour> {
    vec![
        Behaviour::new(every_property_arrives, &[Need::Topology]),
        Behaviour::new(absent_properties_stay_absent, &[Need::Topology]),
        Behaviour::new(every_header_type_arrives, &[Need::Topology]),
        Behaviour::new(numbers_arrive_exactly, &[Need::Topology]),
        Behaviour::new(numbers_without_end_are_refused, &[Need::Topology]),
        Behaviour::new(headers_without_a_bottom_are_refused, &[Need::Topology]),
        Behaviour::new(nested_headers_arrive, &[Need::Topology, Need::NestedHeaders]),
        Behaviour::new(many_headers_arrive, &[Need::Topology]),
        Behaviour::new(properties_survive_a_redelivery, &[Need::Topology]),
    ]
}

/// Sees that a message arrived as it was sent. A broker may add headers of its own, whose names
/// begin with `x-`.
fn assert_same(got: &Message, sent: &Message) {
    let mut bare = got.clone();
    bare.headers = Headers::new();
    let mut wanted = sent.clone();
    wanted.headers = Headers::new();
    assert_eq!(bare, wanted, "body and properties arrive as they were sent");
    for (name, value) in sent.headers.iter() {
        assert_eq!(got.headers.get(name), Some(value), "the header '{name}'");
    }
    for (name, value) in got.headers.iter() {
        assert!(
            sent.headers.get(name).is_some() || name.starts_with("x-"),
            "nobody sent the header '{name}' with {value:?}"
        );
    }
}

/// Sends a message through a queue of each kind and sees it arrive as it was.
async fn round_trip(scene: &Scene, base: &str, message: Message) {
    let quorum = scene.queue(&format!("{base}-quorum")).await;
    let classic = scene.classic(&format!("{base}-classic")).await;
    for queue in [quorum, classic] {
        scene.publish_message(&queue, message.clone()).await;
        let delivery = scene.read(&queue, 1).await.next().await;
        assert_same(delivery.message(), &message);
        delivery.ack();
    }
}

fn full() -> Message {
    // Whole seconds: that is what AMQP 0.9.1 keeps.
    let moment = |seconds| DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    Message::new(r#"{"total": 1177}"#)
        .with_message_id("018f6f5e-0000-7000-8000-000000000001")
        .with_correlation_id("correlation with spaces and ünïcode")
        .with_causation_id("018f6f5e-0000-7000-8000-000000000000")
        .with_reply_to("answers")
        .with_content_type("application/json")
        .with_type("order.created")
        .with_timestamp(moment(1_767_225_600))
        .with_ttl(Duration::from_millis(600_123))
        .with_priority(7)
        .with_key("customer-7")
        .with_deadline(moment(4_102_444_800))
}

async fn every_property_arrives(scene: Scene) {
    round_trip(&scene, "full", full()).await;
    // A quorum queue stores every message durably, so only a classic one keeps this apart.
    let queue = scene.classic("transient").await;
    let message = full().transient();
    scene.publish_message(&queue, message.clone()).await;
    let delivery = scene.read(&queue, 1).await.next().await;
    assert_same(delivery.message(), &message);
    delivery.ack();
}

async fn absent_properties_stay_absent(scene: Scene) {
    round_trip(&scene, "bare", Message::new("bare")).await;
}

async fn every_header_type_arrives(scene: Scene) {
    let moment = DateTime::from_timestamp(1_767_225_600, 0).unwrap_or_default();
    let message = Message::new("typed")
        .with_header("bool-true", true)
        .with_header("bool-false", false)
        .with_header("int", 42)
        .with_header("float", 2.5)
        .with_header("text", "plain")
        .with_header("text-empty", "")
        .with_header("text-unicode", "Grüße, 世界 🐎")
        .with_header("text-long", "x".repeat(5_000))
        .with_header("bytes", Bytes::from_static(&[0, 159, 146, 150, 255]))
        .with_header("bytes-empty", Bytes::new())
        .with_header("moment", moment)
        .with_header("Case", "upper")
        .with_header("case", "lower");
    round_trip(&scene, "typed", message).await;
}

async fn numbers_arrive_exactly(scene: Scene) {
    let mut message = Message::new("numbers");
    let ints = [0, 1, -1, 127, 128, -128, 255, 256, 32_768, i64::from(i32::MIN), 1 << 31];
    for (n, int) in ints.into_iter().chain([i64::MAX, i64::MIN, (1 << 53) + 1]).enumerate() {
        message = message.with_header(format!("int-{n}"), int);
    }
    let floats = [0.0, -0.0, 1.0, 0.1, f64::MAX, f64::MIN_POSITIVE, f64::MAX / 3.0, 1e300];
    for (n, float) in floats.into_iter().enumerate() {
        message = message.with_header(format!("float-{n}"), float);
    }
    round_trip(&scene, "numbers", message).await;
}

/// RabbitMQ closes the connection over them.
async fn numbers_without_end_are_refused(scene: Scene) {
    let queue = scene.queue("endless").await;
    let publisher = scene.publisher().await;
    for float in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
        let list = vec![HeaderValue::Float(float)];
        let map: Headers = [("deep", HeaderValue::List(list))].into_iter().collect();
        for value in [HeaderValue::Float(float), HeaderValue::Map(map)] {
            let message = Message::new("endless").with_header("float", value);
            let envelope = Envelope::new(Address::queue(queue.clone()), message);
            let sent = publisher.send(envelope).await;
            refused(sent, &[ErrorKind::Invalid], &format!("a header that is {float}"));
        }
    }
    scene.publish(&queue, ["after"]).await;
    scene.holds(&queue, &["after"]).await;
}

/// Whoever reads them would go as deep.
async fn headers_without_a_bottom_are_refused(scene: Scene) {
    let queue = scene.queue("deep").await;
    let publisher = scene.publisher().await;
    let nested = |levels: usize| {
        (1..levels).fold(HeaderValue::Int(1), |inner, _| HeaderValue::List(vec![inner]))
    };
    for levels in [MAX_HEADER_LEVELS + 1, 1_000] {
        let message = Message::new("deep").with_header("x-deep", nested(levels));
        let sent = publisher.send(Envelope::new(Address::queue(queue.clone()), message)).await;
        refused(sent, &[ErrorKind::Invalid], &format!("a header of {levels} levels"));
    }
    scene.publish(&queue, ["after"]).await;
    scene.holds(&queue, &["after"]).await;
}

async fn nested_headers_arrive(scene: Scene) {
    let inner: Headers =
        [("a", HeaderValue::Int(1)), ("b", HeaderValue::Bool(true))].into_iter().collect();
    let list = vec![
        HeaderValue::from("text"),
        HeaderValue::from(7),
        HeaderValue::from(inner.clone()),
        HeaderValue::List(Vec::new()),
    ];
    let message = Message::new("nested")
        .with_header("list", list)
        .with_header("map", inner)
        .with_header("empty-list", Vec::<HeaderValue>::new())
        .with_header("empty-map", Headers::new());
    round_trip(&scene, "nested", message).await;
}

async fn many_headers_arrive(scene: Scene) {
    let message = (0..200).fold(Message::new("many"), |message, n| {
        message.with_header(format!("header-{n}"), format!("value-{n}"))
    });
    round_trip(&scene, "many", message).await;
}

async fn properties_survive_a_redelivery(scene: Scene) {
    let message = full().with_header("tenant", "north").with_header("size", 3);
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        scene.publish_message(&queue, message.clone()).await;
        let mut reader = scene.read(&queue, 1).await;
        reader.next().await.release();
        reader.next().await.retry(Duration::ZERO);
        let delivery = reader.next().await;
        assert_same(delivery.message(), &message);
        delivery.ack();
    }
}
