//! Splitters and aggregators.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use postrider_core::{HeaderValue, Message};
use postrider_patterns::{
    Codec, HandlerError, codes, headers,
    routing::{Aggregator, Completion, Field, Incomplete, Partitioner, Route, Splitter},
};
use serde_json::{Value, json};

use super::world::{World, code, comes_to, id, int, json, message, quick, stop};

pub(crate) fn value(message: &Message) -> Value {
    Codec::decode(message.content_type.as_deref(), &message.body).unwrap()
}

/// A part as a splitter makes it.
pub(crate) fn part(of: &str, number: i64, count: i64) -> Message {
    json(&format!("{of}/{number}"), &number.to_string())
        .with_header(headers::PART_OF, of.to_owned())
        .with_header(headers::PART, number)
        .with_header(headers::PARTS, count)
}

pub(crate) async fn what_was_split_is_put_together(world: &World) {
    let transport = world.transport().await;
    for name in ["seen", "whole"] {
        world.declare(&*transport, name).await;
    }
    let splitter = Splitter::list(world.intake("orders"), Field::body("lines"), world.to("lines"));
    let splitter = splitter.start(&transport).await.unwrap();
    let aggregator = Aggregator::new(world.intake("lines"), Completion::Parts, world.to("whole"));
    let aggregator = aggregator.start(&transport).await.unwrap();
    for codec in [Codec::Json, Codec::MessagePack] {
        let lines: Vec<_> = (0..20).map(|number| json!({"sku": number, "note": null})).collect();
        let order = message(codec, &format!("order-{codec}"), &json!({"lines": lines}))
            .with_correlation_id("conversation")
            .with_key("customer-4")
            .with_header("tenant", "north");
        world.put(&*transport, "orders", order).await;
        let whole = world.take(&*transport, "whole").await;
        assert_eq!(value(&whole), Value::Array(lines));
        assert_eq!(whole.content_type.as_deref(), Some(codec.content_type()));
        assert_eq!(whole.correlation_id.as_deref(), Some("conversation"));
        assert_eq!(int(&whole, headers::HOPS), Some(2));
    }
    comes_to(&aggregator, |stats| stats.run.acked == 40).await;
    let stats = aggregator.stats();
    assert_eq!((stats.complete, stats.incomplete, stats.duplicates), (2, 0, 0));
    comes_to(&splitter, |stats| stats.sent == 40).await;
    stop(splitter).await;
    stop(aggregator).await;
}

pub(crate) async fn a_retry_makes_parts_with_the_same_ids(world: &World) {
    let transport = world.transport().await;
    let lanes = Partitioner::new(world.name("lanes"), 2).unwrap();
    for number in 0..2 {
        world.name(&format!("lanes.{number}"));
    }
    world.declare(&*transport, "lanes.0").await;
    // The parts are sent in one go, and some of them find no queue.
    let minutes = quick().with_delayed(9);
    let splitter = Splitter::list(
        world.intake("orders").retry(minutes),
        Field::body("lines"),
        Route::partition(lanes.clone(), Field::body("sku")),
    );
    let splitter = splitter.start(&transport).await.unwrap();
    let lines: Vec<_> = (0..12).map(|number| json!({"sku": number})).collect();
    let order = message(Codec::Json, "order", &json!({"lines": lines}));
    let order = order.with_header("x-broker", 1).with_header("tenant", "north").with_key("k");
    world.put(&*transport, "orders", order).await;
    comes_to(&splitter, |stats| stats.run.retried >= 2).await;
    world.declare(&*transport, "lanes.1").await;
    comes_to(&splitter, |stats| stats.run.acked == 1).await;
    let mut distinct = BTreeMap::new();
    for number in 0..2_u32 {
        let lane = format!("lanes.{number}");
        let there = world.waiting(&*transport, &lane).await;
        for part in world.take_many(&*transport, &lane, there as usize).await {
            let place = int(&part, headers::PART).unwrap();
            assert_eq!(lanes.partition(&place.to_string()), number);
            assert_eq!(value(&part), json!({"sku": place}));
            assert_eq!(distinct.entry(place).or_insert(id(&part).to_owned()), id(&part));
            assert_eq!(part.causation_id.as_deref(), Some("order"));
            assert_eq!(part.correlation_id.as_deref(), Some("order"));
            assert_eq!(part.key.as_deref(), Some("k"));
            assert_eq!(int(&part, headers::PARTS), Some(12));
            assert!(part.headers.get("x-broker").is_none());
            assert!(part.headers.get("tenant").is_some());
        }
    }
    // Some came more than once, under one id; no two parts have the same.
    assert_eq!(distinct.keys().copied().collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    assert_eq!(distinct.values().collect::<BTreeSet<_>>().len(), 12);
    comes_to(&splitter, |stats| stats.sent > 12).await;
    stop(splitter).await;
}

pub(crate) async fn what_cannot_be_split_is_kept(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "lines").await;
    let splitter = Splitter::list(world.intake("orders"), Field::body("lines"), world.to("lines"));
    let splitter = splitter.max_parts(2).start(&transport).await.unwrap();
    let mut nameless = json("", r#"{"lines":[1]}"#);
    nameless.message_id = None;
    for (order, expected) in [
        (json("1", r#"{"lines":[1,2,3]}"#), codes::TOO_MANY_PARTS),
        (json("2", r#"{"lines":7}"#), "INVALID"),
        (json("3", "{}"), "INVALID"),
        (json("4", "{"), codes::UNDECODABLE),
        (nameless, codes::NO_ID),
        (json("5", r#"{"lines":[1]}"#).with_header(headers::HOPS, 16), codes::TOO_MANY_HOPS),
    ] {
        world.put(&*transport, "orders", order).await;
        assert_eq!(code(&world.dead(&*transport, "orders").await), expected);
    }
    world.put(&*transport, "orders", json("6", r#"{"lines":[]}"#)).await;
    comes_to(&splitter, |stats| stats.dropped == 1 && stats.run.acked == 1).await;
    assert_eq!((splitter.stats().sent, splitter.stats().run.retried), (0, 0));
    stop(splitter).await;
}

pub(crate) async fn parts_that_come_twice_count_once(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"));
    let aggregator = aggregator.start(&transport).await.unwrap();
    for number in [0, 0, 2, 2, 2] {
        world.put(&*transport, "parts", part("a", number, 3)).await;
    }
    // Of each part one stays unacknowledged before there is something to show for it.
    comes_to(&aggregator, |stats| (stats.duplicates, stats.run.acked) == (3, 3)).await;
    assert_eq!(aggregator.stats().complete, 0);
    world.put(&*transport, "parts", part("a", 1, 3)).await;
    assert_eq!(value(&world.take(&*transport, "whole").await), json!([0, 1, 2]));
    comes_to(&aggregator, |stats| stats.run.acked == 6).await;
    // What comes after the end is known too.
    world.put(&*transport, "parts", part("a", 1, 3)).await;
    comes_to(&aggregator, |stats| stats.run.acked == 7).await;
    let stats = aggregator.stats();
    assert_eq!((stats.complete, stats.incomplete, stats.duplicates), (1, 0, 4));
    stop(aggregator).await;
}

pub(crate) async fn groups_end_by_count_or_by_what_is_in_them(world: &World) {
    let transport = world.transport().await;
    for name in ["pairs", "sums"] {
        world.declare(&*transport, name).await;
    }
    let pairs = Aggregator::new(world.intake("by_two"), Completion::Count(2), world.to("pairs"));
    let pairs = pairs.by(Field::Key).start(&transport).await.unwrap();
    for (id, key) in [("1", "x"), ("2", "y"), ("3", "x"), ("4", "y"), ("5", "x"), ("6", "x")] {
        world.put(&*transport, "by_two", json(id, id).with_key(key)).await;
    }
    let mut came: Vec<_> =
        world.take_many(&*transport, "pairs", 3).await.iter().map(value).collect();
    came.sort_by_key(|pair| pair[0].as_i64());
    assert_eq!(came, [json!([1, 3]), json!([2, 4]), json!([5, 6])]);
    stop(pairs).await;

    let number = |message: &Message| value(message).as_i64().unwrap();
    let full = Completion::when(move |parts| {
        let sum: i64 = parts.iter().map(|part| number(part.message())).sum();
        assert!(sum < 1_000, "nobody counts that far");
        sum >= 10
    });
    let sums = Aggregator::new(world.intake("numbers"), full, world.to("sums"))
        .by(Field::Key)
        .combine(move |group| {
            let sum: i64 = group.parts.iter().map(|part| number(part.message())).sum();
            Ok(Message::new(format!("{} {sum} {}", group.key, group.complete)))
        })
        .start(&transport)
        .await
        .unwrap();
    for (id, body) in [("1", "4"), ("2", "5"), ("3", "3")] {
        world.put(&*transport, "numbers", json(id, body).with_key("k")).await;
    }
    assert_eq!(world.take(&*transport, "sums").await.body, "k 12 true");
    world.put(&*transport, "numbers", json("4", "5000").with_key("k")).await;
    assert_eq!(code(&world.dead(&*transport, "numbers").await), codes::PANIC);
    stop(sums).await;
}

pub(crate) async fn what_is_not_complete_in_time_is_kept(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .timeout(Duration::from_secs(1))
        .start(&transport)
        .await
        .unwrap();
    for number in [0, 1] {
        world.put(&*transport, "parts", part("a", number, 3)).await;
    }
    for _ in 0..2 {
        let dead = world.dead(&*transport, "parts").await;
        assert_eq!(code(&dead), codes::INCOMPLETE);
        let class = dead.headers.get(headers::ERROR_CLASS).and_then(HeaderValue::as_text);
        assert_eq!(class, Some("DEADLINE_EXCEEDED"));
    }
    comes_to(&aggregator, |stats| stats.run.dead_lettered == 2).await;
    let stats = aggregator.stats();
    assert_eq!((stats.complete, stats.incomplete), (0, 1));
    stop(aggregator).await;
}

pub(crate) async fn what_is_not_complete_may_be_sent_as_it_is(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .timeout(Duration::from_secs(1))
        .incomplete(Incomplete::Publish)
        .start(&transport)
        .await
        .unwrap();
    for number in [2, 0] {
        world.put(&*transport, "parts", part("a", number, 3)).await;
    }
    let whole = world.take(&*transport, "whole").await;
    assert_eq!(value(&whole), json!([0, 2]));
    let incomplete = whole.headers.get(headers::INCOMPLETE).and_then(HeaderValue::as_bool);
    assert_eq!(incomplete, Some(true));
    comes_to(&aggregator, |stats| stats.run.acked == 2 && stats.incomplete == 1).await;
    stop(aggregator).await;
}

pub(crate) async fn parts_that_would_spoil_a_group_are_kept_alone(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"));
    let aggregator = aggregator.start(&transport).await.unwrap();
    world.put(&*transport, "parts", part("a", 0, 2)).await;
    let mut damaged = part("a", 1, 2);
    damaged.body = "{".into();
    for (spoilt, expected) in [
        (json("x", "1"), codes::NO_KEY),
        (json("x", "1").with_header(headers::PART_OF, "a"), "INVALID"),
        (part("a", 2, 2), "INVALID"),
        (part("a", -1, 2), "INVALID"),
        (damaged, codes::UNDECODABLE),
    ] {
        world.put(&*transport, "parts", spoilt).await;
        assert_eq!(code(&world.dead(&*transport, "parts").await), expected);
    }
    world.put(&*transport, "parts", part("a", 1, 2)).await;
    assert_eq!(value(&world.take(&*transport, "whole").await), json!([0, 1]));
    stop(aggregator).await;
}

pub(crate) async fn parts_that_contradict_each_other_make_no_group(world: &World) {
    let transport = world.transport().await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .timeout(Duration::from_secs(1))
        .start(&transport)
        .await
        .unwrap();
    for spoilt in [part("a", 0, 2), part("a", 2, 3)] {
        world.put(&*transport, "parts", spoilt).await;
    }
    for _ in 0..2 {
        assert_eq!(code(&world.dead(&*transport, "parts").await), codes::INCOMPLETE);
    }
    stop(aggregator).await;
}

pub(crate) async fn the_oldest_group_makes_room(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .max_parts(3)
        .start(&transport)
        .await
        .unwrap();
    for (of, number) in [("old", 0), ("old", 1), ("young", 0), ("young", 1)] {
        world.put(&*transport, "parts", part(of, number, 3)).await;
    }
    let mut old = Vec::new();
    for _ in 0..2 {
        let dead = world.dead(&*transport, "parts").await;
        assert_eq!(code(&dead), codes::INCOMPLETE);
        old.push(id(&dead).to_owned());
    }
    // Each is kept by itself.
    old.sort_unstable();
    assert_eq!(old, ["old/0", "old/1"]);
    world.put(&*transport, "parts", part("young", 2, 3)).await;
    assert_eq!(value(&world.take(&*transport, "whole").await), json!([0, 1, 2]));
    comes_to(&aggregator, |stats| stats.run.acked == 3).await;
    stop(aggregator).await;
}

pub(crate) async fn what_cannot_be_combined_is_kept(world: &World) {
    let transport = world.transport().await;
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .combine(move |group| {
            counted.fetch_add(1, Ordering::Relaxed);
            if group.key == "panics" {
                panic!("what is {}", group.key);
            }
            Err(HandlerError::rejected("ODD", "no such order"))
        })
        .start(&transport)
        .await
        .unwrap();
    for (key, expected) in [("panics", codes::PANIC), ("odd", "ODD")] {
        for number in 0..2 {
            world.put(&*transport, "parts", part(key, number, 2)).await;
        }
        for _ in 0..2 {
            assert_eq!(code(&world.dead(&*transport, "parts").await), expected);
        }
    }
    assert_eq!(tries.load(Ordering::Relaxed), 3 + 1);
    assert!(aggregator.is_running());
    stop(aggregator).await;
}

pub(crate) async fn an_aggregate_that_nobody_takes_leaves_its_parts(world: &World) {
    let transport = world.transport().await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("never"));
    let aggregator = aggregator.start(&transport).await.unwrap();
    for number in 0..3 {
        world.put(&*transport, "parts", part("a", number, 3)).await;
    }
    for _ in 0..3 {
        assert_eq!(code(&world.dead(&*transport, "parts").await), "TRANSIENT");
    }
    assert_eq!(aggregator.stats().run.acked, 0);
    stop(aggregator).await;
}
