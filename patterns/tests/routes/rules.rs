//! Where messages go.

use postrider_core::{Address, Exchange, Message, Queue, Topology};
use postrider_patterns::{
    Codec, codes, headers,
    routing::{Condition, Field, Matching, Otherwise, Route, Router, Rule},
};
use serde_json::json;

use super::world::{World, code, comes_to, id, ids, int, json, message, stop};

pub(crate) async fn a_message_goes_where_the_first_rule_says(world: &World) {
    let transport = world.transport().await;
    for name in ["express", "large", "rest"] {
        world.declare(&*transport, name).await;
    }
    let large = Condition::at_least(Field::body("order.total"), 100);
    let router = Router::new(world.intake("orders"))
        .rule(Rule::new("express", Condition::has_header("express", true), [world.to("express")]))
        .rule(Rule::new("large", Condition::is_type("order").and(large), [world.to("large")]))
        .otherwise(Otherwise::Send(vec![world.to("rest")]))
        .start(&transport)
        .await
        .unwrap();
    for codec in [Codec::Json, Codec::MessagePack] {
        let order = |id, total| {
            let order = message(codec, id, &json!({"order": {"total": total}}));
            order.with_type("order").with_correlation_id("c").with_header("tenant", "north")
        };
        let sent = order("1", 100);
        world.put(&*transport, "orders", sent.clone()).await;
        let came = world.take(&*transport, "large").await;
        assert_eq!((&came.body, id(&came)), (&sent.body, "1"));
        assert_eq!(
            (&came.message_type, &came.correlation_id),
            (&sent.message_type, &sent.correlation_id)
        );
        assert_eq!(came.headers.get("tenant"), sent.headers.get("tenant"));
        assert_eq!(int(&came, headers::HOPS), Some(1));
        world.put(&*transport, "orders", order("2", 100).with_header("express", true)).await;
        assert_eq!(id(&world.take(&*transport, "express").await), "2");
        world.put(&*transport, "orders", order("3", 99)).await;
        assert_eq!(id(&world.take(&*transport, "rest").await), "3");
    }
    comes_to(&router, |stats| stats.run.acked == 6).await;
    comes_to(&router, |stats| stats.sent == 6).await;
    stop(router).await;
}

pub(crate) async fn every_rule_that_holds_may_be_followed(world: &World) {
    let transport = world.transport().await;
    for name in ["audit", "billing"] {
        world.declare(&*transport, name).await;
    }
    let events = Topology::new()
        .exchange(Exchange::topic(world.name("events")))
        .queue(Queue::durable(world.name("bound")))
        .bind(postrider_core::Binding::queue(world.name("events"), world.name("bound"), "#"));
    transport.declare(&events).await.unwrap();
    let paid = Condition::Exists(Field::body("paid"));
    let router = Router::new(world.intake("orders"))
        .matching(Matching::All)
        .rule(Rule::new("all", Condition::Always, [world.to("audit"), world.to("billing")]))
        .rule(Rule::new("paid", paid.clone(), [world.to("audit")]))
        .rule(Rule::new(
            "out",
            paid,
            [
                Route::exchange_as_it_came(world.name("events")),
                Route::exchange(world.name("events"), "order.paid"),
            ],
        ))
        .start(&transport)
        .await
        .unwrap();
    world.put(&*transport, "orders", json("1", r#"{"paid":true}"#)).await;
    // Whoever is named twice gets one copy.
    comes_to(&router, |stats| stats.run.acked == 1).await;
    comes_to(&router, |stats| stats.sent == 4).await;
    world.take(&*transport, "audit").await;
    world.take(&*transport, "billing").await;
    assert_eq!(world.take_many(&*transport, "bound", 2).await.len(), 2);
    assert_eq!(world.waiting(&*transport, "audit").await, 0);
    stop(router).await;
}

pub(crate) async fn recipients_are_computed(world: &World) {
    let transport = world.transport().await;
    for name in ["a", "b"] {
        world.declare(&*transport, name).await;
    }
    let prefix = world.prefix.clone();
    let router = Router::new(world.intake("orders"))
        .recipients(move |inbound| {
            let names: Vec<String> = inbound.decode()?;
            let address = |name| Address::queue(format!("{prefix}{name}"));
            Ok(names.into_iter().map(address).collect())
        })
        .start(&transport)
        .await
        .unwrap();
    world.put(&*transport, "orders", json("1", r#"["a","b","a"]"#)).await;
    assert_eq!(id(&world.take(&*transport, "a").await), "1");
    assert_eq!(id(&world.take(&*transport, "b").await), "1");
    world.put(&*transport, "orders", json("2", "[]")).await;
    assert_eq!(code(&world.dead(&*transport, "orders").await), codes::NO_ROUTE);
    world.put(&*transport, "orders", json("3", "7")).await;
    assert_eq!(code(&world.dead(&*transport, "orders").await), "INVALID");
    comes_to(&router, |stats| stats.sent == 2).await;
    stop(router).await;
}

pub(crate) async fn a_filter_drops_and_counts(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "good").await;
    let good = Condition::Above(Field::body("total"), 0.into());
    let router = Router::filter(world.intake("orders"), good, world.to("good"))
        .start(&transport)
        .await
        .unwrap();
    for (id, total) in [("1", 5), ("2", 0), ("3", -5), ("4", 1)] {
        let order = json(id, &format!(r#"{{"total":{total}}}"#));
        world.put(&*transport, "orders", order).await;
    }
    assert_eq!(ids(&world.take_many(&*transport, "good", 2).await), ["1", "4"]);
    comes_to(&router, |stats| stats.dropped == 2 && stats.run.acked == 4).await;
    stop(router).await;
}

pub(crate) async fn a_message_that_no_rule_is_for_is_kept(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "a").await;
    let router = Router::new(world.intake("orders"))
        .rule(Rule::new("a", Condition::is_type("a"), [world.to("a")]))
        .start(&transport)
        .await
        .unwrap();
    world.put(&*transport, "orders", json("1", "{}").with_type("b")).await;
    let dead = world.dead(&*transport, "orders").await;
    assert_eq!((id(&dead), code(&dead)), ("1", codes::NO_ROUTE));
    comes_to(&router, |stats| stats.run.dead_lettered == 1).await;
    stop(router).await;
}

pub(crate) async fn hostile_bodies_are_kept_and_hold_nobody_up(world: &World) {
    let transport = world.transport().await;
    for name in ["opaque", "good"] {
        world.declare(&*transport, name).await;
    }
    let opaque = Condition::equals(Field::ContentType, "image/png");
    let router = Router::new(world.intake("orders"))
        .rule(Rule::new("opaque", opaque, [world.to("opaque")]))
        .rule(Rule::new("good", Condition::Exists(Field::body("a")), [world.to("good")]))
        .start(&transport)
        .await
        .unwrap();
    let mut many = vec![0xdd];
    many.extend_from_slice(&1_000_000_u32.to_be_bytes());
    many.resize(1_000_005, 0xc0);
    let nested = format!("{}{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    let hostile = [
        ("application/json", nested.into_bytes()),
        ("application/msgpack", vec![0x91; 100_000]),
        ("application/msgpack", many),
        ("application/msgpack", vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
        ("application/json", br#"{"a":1"#.to_vec()),
        ("application/json", br#"{"a":1}{"a":2}"#.to_vec()),
        ("application/json", Vec::new()),
        ("text/plain", b"a".to_vec()),
    ];
    let number = hostile.len() as u64;
    for (content_type, body) in hostile {
        let message = Message::new(body.clone()).with_content_type(content_type);
        world.put(&*transport, "orders", message).await;
        let dead = world.dead(&*transport, "orders").await;
        assert_eq!(code(&dead), codes::UNDECODABLE, "{content_type}");
        assert_eq!(dead.body, body);
    }
    let png = Message::new("\u{89}PNG").with_content_type("image/png").with_message_id("png");
    world.put(&*transport, "orders", png).await;
    assert_eq!(id(&world.take(&*transport, "opaque").await), "png");
    world.put(&*transport, "orders", json("good", r#"{"a":1}"#)).await;
    assert_eq!(id(&world.take(&*transport, "good").await), "good");
    comes_to(&router, |stats| stats.run.dead_lettered == number).await;
    assert_eq!(router.stats().run.retried, 0);
    stop(router).await;
}

pub(crate) async fn a_panic_is_bounded(world: &World) {
    let transport = world.transport().await;
    let router = Router::new(world.intake("orders"))
        .recipients(|inbound| panic!("what is {}", inbound.queue()))
        .start(&transport)
        .await
        .unwrap();
    world.put(&*transport, "orders", json("1", "{}")).await;
    let dead = world.dead(&*transport, "orders").await;
    assert_eq!(code(&dead), codes::PANIC);
    assert_eq!(int(&dead, headers::ATTEMPTS), Some(3));
    assert!(router.is_running());
    stop(router).await;
}
