//! Connections are lost and processes end on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use postrider_core::{
    Address, ConsumerOptions, Envelope, Message, PublisherExt, PublisherOptions, Transport,
};
use postrider_patterns::{
    Codec, headers,
    routing::{Aggregator, Completion, Field, Otherwise, Router, Splitter},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::world::{SOON, World, comes_to, id, int, json, message, stop};

/// Takes messages until `is_all` says that all are there; some may come twice.
async fn take_until(
    world: &World,
    transport: &dyn Transport,
    name: &str,
    mut is_all: impl FnMut(&Message) -> bool,
) {
    let queue = world.name(name);
    let mut consumer = transport.consumer(&queue, ConsumerOptions::default()).await.unwrap();
    let taking = timeout(2 * SOON, async {
        loop {
            let delivery = consumer.recv().await.unwrap().unwrap();
            let is_all = is_all(delivery.message());
            delivery.ack();
            if is_all {
                return;
            }
        }
    });
    assert!(taking.await.is_ok(), "all come to {queue}");
}

async fn put_all(transport: &dyn Transport, queue: &str, messages: impl Iterator<Item = Message>) {
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    for message in messages {
        let envelope = Envelope::new(Address::queue(queue.to_owned()), message);
        publisher.publish(envelope).await.unwrap();
    }
}

pub(crate) async fn routing_over_lost_connections_loses_nothing(world: &World) {
    const NUMBER: usize = 300;
    let watching = world.transport().await;
    for name in ["one", "two"] {
        world.declare(&*watching, name).await;
    }
    let doomed = world.connect().await;
    let intake = world.intake("orders").concurrency(4).prefetch(20);
    let router = Router::new(intake)
        .otherwise(Otherwise::Send(vec![world.to("one"), world.to("two")]))
        .start(&doomed.transport)
        .await
        .unwrap();
    let sending = async {
        let queue = world.name("orders");
        for from in (0..NUMBER).step_by(100) {
            let orders = (from..from + 100).map(|number| json(&number.to_string(), "{}"));
            put_all(&*watching, &queue, orders).await;
            doomed.cut().await;
        }
    };
    let taking = |name: &'static str| {
        let watching = Arc::clone(&watching);
        async move {
            let mut there = BTreeSet::new();
            take_until(world, &*watching, name, |order| {
                there.insert(id(order).to_owned());
                there.len() == NUMBER
            })
            .await;
        }
    };
    tokio::join!(sending, taking("one"), taking("two"));
    assert!(router.is_running());
    assert_eq!(router.stats().run.dead_lettered, 0);
    stop(router).await;
}

pub(crate) async fn a_router_that_is_dropped_leaves_all_to_the_next(world: &World) {
    const NUMBER: usize = 200;
    let transport = world.transport().await;
    world.declare(&*transport, "out").await;
    let router = || {
        let intake = world.intake("orders").concurrency(4).prefetch(50);
        Router::new(intake).otherwise(Otherwise::Send(vec![world.to("out")]))
    };
    let first = router().start(&transport).await.unwrap();
    let orders = (0..NUMBER).map(|number| json(&number.to_string(), "{}"));
    put_all(&*transport, &world.name("orders"), orders).await;
    comes_to(&first, |stats| stats.sent > 0).await;
    drop(first);
    let second = router().start(&transport).await.unwrap();
    let mut there = BTreeSet::new();
    take_until(world, &*transport, "out", |order| {
        there.insert(id(order).to_owned());
        there.len() == NUMBER
    })
    .await;
    stop(second).await;
}

/// One of the three parts of a message.
fn part(number: i64) -> Message {
    json(&format!("a/{number}"), &number.to_string())
        .with_header(headers::PART_OF, "a")
        .with_header(headers::PART, number)
        .with_header(headers::PARTS, 3)
}

pub(crate) async fn an_aggregator_that_is_dropped_leaves_its_parts_to_the_next(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator =
        || Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"));
    let first = aggregator().start(&transport).await.unwrap();
    for number in 0..2 {
        world.put(&*transport, "parts", part(number)).await;
    }
    // A part that came twice shows that the others were taken before it.
    world.put(&*transport, "parts", part(1)).await;
    comes_to(&first, |stats| stats.run.acked == 1).await;
    // One that stands by gets nothing while the first is there.
    let second = aggregator().start(&transport).await.unwrap();
    drop(first);
    world.put(&*transport, "parts", part(2)).await;
    let whole = world.take(&*transport, "whole").await;
    let numbers: Value = Codec::decode(whole.content_type.as_deref(), &whole.body).unwrap();
    assert_eq!(numbers, json!([0, 1, 2]));
    // Whether or not the broker has heard that the copy was done with.
    comes_to(&second, |stats| stats.complete == 1 && stats.run.acked >= 3).await;
    stop(second).await;
}

pub(crate) async fn an_aggregator_that_lost_its_parts_to_another_forgets_them(world: &World) {
    const PATIENCE: Duration = Duration::from_secs(6);
    let watching = world.transport().await;
    world.declare(&*watching, "whole").await;
    let doomed = world.connect().await;
    let aggregator = || {
        Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
            .timeout(PATIENCE)
    };
    let first = aggregator().start(&doomed.transport).await.unwrap();
    let second = aggregator().start(&watching).await.unwrap();
    for number in [0, 1, 1] {
        world.put(&*watching, "parts", part(number)).await;
    }
    comes_to(&first, |stats| stats.duplicates == 1).await;
    doomed.cut().await;
    world.put(&*watching, "parts", part(2)).await;
    world.take(&*watching, "whole").await;
    comes_to(&second, |stats| stats.complete == 1 && stats.run.acked >= 3).await;
    // What it had would be over by now.
    sleep(2 * PATIENCE).await;
    let stats = first.stats();
    assert_eq!((stats.incomplete, stats.run.dead_lettered), (0, 0));
    stop(first).await;
    stop(second).await;
}

pub(crate) async fn splitting_and_aggregating_over_lost_connections_loses_nothing(world: &World) {
    const ORDERS: usize = 30;
    const LINES: usize = 10;
    let watching = world.transport().await;
    world.declare(&*watching, "whole").await;
    let (splitting, aggregating) = (world.connect().await, world.connect().await);
    let splitter = Splitter::list(world.intake("orders"), Field::body("lines"), world.to("lines"));
    let splitter = splitter.start(&splitting.transport).await.unwrap();
    let aggregator = Aggregator::new(world.intake("lines"), Completion::Parts, world.to("whole"))
        .combine(|group| {
            let body = Codec::Json.encode(&group.parts.len())?;
            Ok(Message::new(body).with_header("order", group.key.clone()))
        });
    let aggregator = aggregator.start(&aggregating.transport).await.unwrap();
    let sending = async {
        for number in 0..ORDERS {
            let lines: Vec<_> = (0..LINES).collect();
            let order = message(Codec::Json, &number.to_string(), &json!({"lines": lines}));
            world.put(&*watching, "orders", order).await;
            match number % 10 {
                3 => splitting.cut().await,
                6 => aggregating.cut().await,
                _ => sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let taking = async {
        // An order that is put together twice has one id.
        let mut there: BTreeMap<String, String> = BTreeMap::new();
        take_until(world, &*watching, "whole", |whole| {
            assert_eq!(whole.body, LINES.to_string());
            assert_eq!(int(whole, headers::HOPS), Some(2));
            let order = whole.headers.get("order").and_then(|order| order.as_text()).unwrap();
            let known = there.entry(order.to_owned()).or_insert(id(whole).to_owned());
            assert_eq!(known, id(whole));
            there.len() == ORDERS
        })
        .await;
    };
    tokio::join!(sending, taking);
    assert!(splitter.is_running() && aggregator.is_running());
    assert_eq!(aggregator.stats().incomplete, 0);
    drop(aggregator);
    stop(splitter).await;
}
