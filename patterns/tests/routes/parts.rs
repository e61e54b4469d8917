//! Parts: their copies, the queues they come over, and what says which group is theirs.

use std::time::Duration;

use postrider_core::{ErrorKind, Message};
use postrider_patterns::{
    Codec, codes, headers,
    routing::{Aggregator, Completion, Field, Splitter},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    groups::{part, value},
    world::{SOON, World, code, comes_to, id, ids, json, message, stop},
};

pub(crate) async fn copies_of_a_part_take_no_room(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .max_parts(3)
        .max_groups(2)
        .start(&transport)
        .await
        .unwrap();
    for number in [0; 10].into_iter().chain([1; 10]).chain([2]) {
        world.put(&*transport, "parts", part("a", number, 3)).await;
    }
    assert_eq!(value(&world.take(&*transport, "whole").await), json!([0, 1, 2]));
    comes_to(&aggregator, |stats| stats.run.acked == 21).await;
    let stats = aggregator.stats();
    assert_eq!((stats.complete, stats.incomplete, stats.duplicates), (1, 0, 18));
    stop(aggregator).await;
}

pub(crate) async fn copies_of_a_part_take_no_bytes(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .max_bytes(2 * 10)
        .start(&transport)
        .await
        .unwrap();
    let heavy = |number: i64| {
        let mut part = part("a", number, 2);
        part.body = format!("{number:>10}").into();
        part
    };
    for number in [0, 0, 0, 0, 1] {
        world.put(&*transport, "parts", heavy(number)).await;
    }
    assert_eq!(value(&world.take(&*transport, "whole").await), json!([0, 1]));
    comes_to(&aggregator, |stats| stats.run.acked == 5).await;
    assert_eq!(aggregator.stats().incomplete, 0);
    stop(aggregator).await;
}

/// Whichever of two is settled, the other is not lost with the process or its connection.
pub(crate) async fn a_part_stays_at_the_broker_though_its_copy_was_settled(world: &World) {
    let watching = world.transport().await;
    world.declare(&*watching, "whole").await;
    let doomed = world.connect().await;
    let aggregator =
        || Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"));
    let first = aggregator().start(&doomed.transport).await.unwrap();
    for number in [0, 0, 1, 1] {
        world.put(&*watching, "parts", part("a", number, 3)).await;
    }
    comes_to(&first, |stats| (stats.duplicates, stats.run.acked) == (2, 2)).await;
    // The parts come again, and are their own copies as long as the loss is not noticed.
    doomed.cut().await;
    world.put(&*watching, "parts", part("a", 2, 3)).await;
    assert_eq!(value(&world.take(&*watching, "whole").await), json!([0, 1, 2]));
    comes_to(&first, |stats| stats.complete == 1 && stats.run.acked == stats.duplicates + 3).await;

    let before = first.stats().duplicates;
    for number in [0, 0, 1, 1] {
        world.put(&*watching, "parts", part("b", number, 3)).await;
    }
    comes_to(&first, |stats| {
        stats.duplicates == before + 2 && stats.run.acked == stats.duplicates + 3
    })
    .await;
    drop(first);
    let second = aggregator().start(&watching).await.unwrap();
    world.put(&*watching, "parts", part("b", 2, 3)).await;
    assert_eq!(value(&world.take(&*watching, "whole").await), json!([0, 1, 2]));
    comes_to(&second, |stats| stats.complete == 1 && stats.run.acked >= 3).await;
    world.comes_to_hold(&*watching, "parts", 0).await;
    stop(second).await;
}

pub(crate) async fn a_group_may_come_over_several_queues(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let intake = world.intake("web").and_queue(world.name("shop"));
    let aggregator = Aggregator::new(intake, Completion::Parts, world.to("whole"));
    let aggregator = aggregator.start(&transport).await.unwrap();
    for (queue, number) in [("web", 0), ("shop", 1), ("shop", 0), ("web", 2)] {
        world.put(&*transport, queue, part("a", number, 3)).await;
    }
    assert_eq!(value(&world.take(&*transport, "whole").await), json!([0, 1, 2]));
    comes_to(&aggregator, |stats| stats.run.acked == 4).await;
    let stats = aggregator.stats();
    assert_eq!((stats.complete, stats.duplicates, stats.run.released), (1, 1, 0));
    stop(aggregator).await;
    // Each was acknowledged where it came from.
    for queue in ["web", "shop"] {
        world.comes_to_hold(&*transport, queue, 0).await;
    }
}

pub(crate) async fn parts_are_kept_among_the_dead_letters_of_their_own_queue(world: &World) {
    let transport = world.transport().await;
    let intake = world.intake("web").and_queue(world.name("shop"));
    let aggregator = Aggregator::new(intake, Completion::Parts, world.to("whole"))
        .timeout(Duration::from_secs(1))
        .start(&transport)
        .await
        .unwrap();
    for (queue, number) in [("web", 0), ("shop", 1)] {
        world.put(&*transport, queue, part("a", number, 3)).await;
    }
    for (queue, expected) in [("web", "a/0"), ("shop", "a/1")] {
        let dead = world.dead(&*transport, queue).await;
        assert_eq!((id(&dead), code(&dead)), (expected, codes::INCOMPLETE));
    }
    stop(aggregator).await;
}

pub(crate) async fn an_aggregator_that_stops_gives_each_part_back_to_its_queue(world: &World) {
    let transport = world.transport().await;
    let intake = world.intake("web").and_queue(world.name("shop"));
    let aggregator = Aggregator::new(intake, Completion::Parts, world.to("whole"))
        .timeout(10 * SOON)
        .start(&transport)
        .await
        .unwrap();
    for (queue, number) in [("web", 0), ("web", 0), ("shop", 1), ("shop", 1)] {
        world.put(&*transport, queue, part("a", number, 3)).await;
    }
    // The copies show that the parts are in hand.
    comes_to(&aggregator, |stats| stats.run.acked == 2).await;
    // Nothing that could complete the group comes any more.
    let report = timeout(SOON, aggregator.stop(5 * SOON)).await.expect("it waits for nothing");
    assert_eq!((report.released, report.still_running), (2, 0));
    for (queue, expected) in [("web", "a/0"), ("shop", "a/1")] {
        assert_eq!(id(&world.take(&*transport, queue).await), expected);
    }
}

pub(crate) async fn parents_of_one_id_in_two_queues_do_not_mix(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("lines"), Completion::Parts, world.to("whole"));
    let aggregator = aggregator.start(&transport).await.unwrap();
    let splitter =
        |queue: &str| Splitter::list(world.intake(queue), Field::body("lines"), world.to("lines"));
    let web = splitter("web").start(&transport).await.unwrap();
    let shop = splitter("shop").start(&transport).await.unwrap();
    for (queue, lines) in [("web", json!([1, 2])), ("shop", json!([3, 4]))] {
        let order = message(Codec::Json, "order-1", &json!({"lines": lines}));
        world.put(&*transport, queue, order).await;
    }
    let wholes = world.take_many(&*transport, "whole", 2).await;
    assert_ne!(id(&wholes[0]), id(&wholes[1]));
    let mut wholes: Vec<Value> = wholes.iter().map(value).collect();
    wholes.sort_by_key(|whole| whole[0].as_i64());
    assert_eq!(wholes, [json!([1, 2]), json!([3, 4])]);
    comes_to(&aggregator, |stats| stats.run.acked == 4).await;
    assert_eq!(aggregator.stats().duplicates, 0);
    for flow in [web, shop, aggregator] {
        stop(flow).await;
    }
}

/// A worker that looks at the keys of parts must not take them for copies of one another.
pub(crate) async fn parts_carry_no_keys_of_their_parent(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "lines").await;
    let splitter = Splitter::by(world.intake("orders"), world.to("lines"), |_order| {
        let own = Message::new("1").with_header(headers::UNIQUE_KEY, "of the part");
        Ok(vec![Message::new("0"), own])
    });
    let splitter = splitter.start(&transport).await.unwrap();
    let keys = [headers::IDEMPOTENCY_KEY, headers::UNIQUE_KEY, headers::CALLER];
    let order = keys
        .into_iter()
        .fold(json("order", "{}"), |order, key| order.with_header(key, "of the whole"));
    world.put(&*transport, "orders", order.with_header("tenant", "north")).await;
    let parts = world.take_many(&*transport, "lines", 2).await;
    assert_eq!(ids(&parts).len(), 2);
    for part in &parts {
        let own = (part.body == "1").then_some("of the part");
        let keys = keys.map(|key| part.headers.get(key).and_then(|value| value.as_text()));
        assert_eq!(keys, [None, own, None]);
        assert!(part.headers.get("tenant").is_some());
    }
    stop(splitter).await;
}

pub(crate) async fn aggregators_that_are_not_sound_are_refused(world: &World) {
    let transport = world.transport().await;
    let of = |completion| Aggregator::new(world.intake("parts"), completion, world.to("whole"));
    for (aggregator, complaint) in [
        (of(Completion::Parts).by(Field::Key), "nothing else in common"),
        (of(Completion::Parts).by(Field::header("order")), "nothing else in common"),
        (of(Completion::Count(0)).by(Field::Key), "never begin"),
        (of(Completion::Count(4)).by(Field::Key).max_parts(3), "never be complete"),
        (of(Completion::Parts).max_parts(0), "at least one"),
        (of(Completion::Parts).timeout(Duration::ZERO), "at once"),
    ] {
        let error = aggregator.start(&transport).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(complaint), "{error}");
    }
    assert_eq!(transport.queue_info(&world.name("parts")).await.unwrap(), None);
}

pub(crate) async fn counts_that_cannot_be_met_are_refused(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "whole").await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .max_parts(3)
        .start(&transport)
        .await
        .unwrap();
    // They hold up nothing: not the room, and not the group that is under way.
    world.put(&*transport, "parts", part("a", 0, 3)).await;
    for (spoilt, expected) in [
        (part("a", 0, 0), "INVALID"),
        (part("a", 0, -1), "INVALID"),
        (part("a", 1, 4), codes::TOO_MANY_PARTS),
        (part("b", 0, i64::MAX), codes::TOO_MANY_PARTS),
    ] {
        world.put(&*transport, "parts", spoilt).await;
        assert_eq!(code(&world.dead(&*transport, "parts").await), expected);
    }
    for number in [1, 2] {
        world.put(&*transport, "parts", part("a", number, 3)).await;
    }
    assert_eq!(value(&world.take(&*transport, "whole").await), json!([0, 1, 2]));
    stop(aggregator).await;
}

pub(crate) async fn parts_that_disagree_on_their_count_are_all_kept(world: &World) {
    let transport = world.transport().await;
    let aggregator = Aggregator::new(world.intake("parts"), Completion::Parts, world.to("whole"))
        .timeout(Duration::from_secs(1))
        .start(&transport)
        .await
        .unwrap();
    // The same number: none of them is a copy of the other.
    for (name, count) in [("two", 2), ("three", 3)] {
        let part = part("a", 0, count).with_message_id(name);
        world.put(&*transport, "parts", part).await;
    }
    let dead = world.take_many(&*transport, "parts.dead_letters", 2).await;
    assert_eq!(ids(&dead), ["three", "two"]);
    assert!(dead.iter().all(|dead| code(dead) == codes::INCOMPLETE));
    assert_eq!((aggregator.stats().duplicates, aggregator.stats().complete), (0, 0));
    stop(aggregator).await;
}
