//! How messages get there.

use std::sync::Arc;

use postrider_core::{Address, Binding, ErrorKind, Exchange, Queue, Topology};
use postrider_patterns::{
    codes, headers,
    routing::{
        Condition, Field, InMemoryTables, Intake, Otherwise, Partitioner, Route, Router, Rule,
        Splitter,
    },
};

use super::world::{World, code, comes_to, id, ids, int, json, quick, stop};

fn everything(to: Route) -> Otherwise {
    Otherwise::Send(vec![to])
}

pub(crate) async fn several_queues_flow_into_one(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "all").await;
    let intake = world.intake("web").and_queue(world.name("shop"));
    let from_web = Condition::equals(Field::Queue, world.name("web"));
    let router = Router::new(intake)
        .rule(Rule::new("web", from_web, [world.to("all")]))
        .rule(Rule::new("good", Condition::Exists(Field::Type), [world.to("all")]))
        .start(&transport)
        .await
        .unwrap();
    assert_eq!(router.queues().collect::<Vec<_>>(), [world.name("web"), world.name("shop")]);
    world.put(&*transport, "web", json("1", "{}")).await;
    world.put(&*transport, "shop", json("2", "{}").with_type("order")).await;
    assert_eq!(ids(&world.take_many(&*transport, "all", 2).await), ["1", "2"]);
    // Each queue has dead letters of its own.
    world.put(&*transport, "shop", json("3", "{}")).await;
    assert_eq!(id(&world.dead(&*transport, "shop").await), "3");
    stop(router).await;
}

pub(crate) async fn a_missing_destination_is_waited_for_and_then_given_up(world: &World) {
    let transport = world.transport().await;
    let minutes = quick().with_delayed(9);
    let intake = Intake::queue(world.name("orders")).naming(world.naming.clone()).retry(minutes);
    let router = Router::new(intake).otherwise(everything(world.to("late"))).start(&transport);
    let router = router.await.unwrap();
    world.put(&*transport, "orders", json("1", "{}")).await;
    comes_to(&router, |stats| stats.run.retried >= 2).await;
    world.declare(&*transport, "late").await;
    assert_eq!(id(&world.take(&*transport, "late").await), "1");
    stop(router).await;

    let intake = world.intake("orders");
    let router = Router::new(intake).otherwise(everything(world.to("never"))).start(&transport);
    let router = router.await.unwrap();
    world.put(&*transport, "orders", json("2", "{}")).await;
    let dead = world.dead(&*transport, "orders").await;
    assert_eq!((id(&dead), code(&dead)), ("2", "TRANSIENT"));
    assert_eq!(int(&dead, headers::ATTEMPTS), Some(3));
    let why = dead.headers.get(headers::ERROR_MESSAGE).and_then(|why| why.as_text()).unwrap();
    assert!(why.contains(&world.name("never")), "{why}");
    stop(router).await;
}

/// A classic queue of RabbitMQ counts no failures: what comes back to it has failed never.
pub(crate) async fn a_queue_that_counts_nothing_is_no_endless_loop(world: &World) {
    let transport = world.transport().await;
    let queue = Topology::new().queue(Queue::classic(world.name("elsewhere")));
    transport.declare(&queue).await.unwrap();
    let intake = || world.intake("elsewhere").declared_elsewhere();
    let router = Router::new(intake()).otherwise(everything(world.to("never")));
    let router = router.start(&transport).await.unwrap();
    world.put(&*transport, "elsewhere", json("1", "{}")).await;
    let dead = world.dead(&*transport, "elsewhere").await;
    assert_eq!((id(&dead), code(&dead)), ("1", "TRANSIENT"));
    stop(router).await;

    let items = Field::body("items");
    let splitter = Splitter::list(intake(), items, world.to("never")).start(&transport);
    let splitter = splitter.await.unwrap();
    world.put(&*transport, "elsewhere", json("2", r#"{"items":[1,2]}"#)).await;
    let dead = world.dead(&*transport, "elsewhere").await;
    assert_eq!((id(&dead), code(&dead)), ("2", "TRANSIENT"));
    stop(splitter).await;
    transport.remove(&queue).await.unwrap();
}

pub(crate) async fn routers_in_a_circle_end(world: &World) {
    let transport = world.transport().await;
    let one = Router::new(world.intake("one")).otherwise(everything(world.to("two")));
    let one = one.start(&transport).await.unwrap();
    let two = Router::new(world.intake("two")).otherwise(everything(world.to("one")));
    let two = two.start(&transport).await.unwrap();
    world.put(&*transport, "one", json("1", "{}")).await;
    let dead = world.dead(&*transport, "one").await;
    assert_eq!((id(&dead), code(&dead)), ("1", codes::TOO_MANY_HOPS));
    assert_eq!(int(&dead, headers::HOPS), Some(16));
    comes_to(&one, |stats| stats.sent == 8).await;
    comes_to(&two, |stats| stats.sent == 8).await;
    // What a sender makes up takes nothing away from the bound.
    world.put(&*transport, "one", json("2", "{}").with_header(headers::HOPS, -1_000)).await;
    assert_eq!(id(&world.dead(&*transport, "one").await), "2");
    comes_to(&one, |stats| stats.sent == 16).await;
    comes_to(&two, |stats| stats.sent == 16).await;
    stop(one).await;
    stop(two).await;
}

pub(crate) async fn the_broker_routes_by_headers(world: &World) {
    let transport = world.transport().await;
    let exchange = world.name("by_headers");
    let bind = |queue: &str, tenant: &'static str| {
        Binding::queue(exchange.clone(), world.name(queue), "").with_argument("tenant", tenant)
    };
    let topology = Topology::new()
        .exchange(Exchange::headers(exchange.clone()))
        .queue(Queue::durable(world.name("north")))
        .queue(Queue::durable(world.name("south")))
        .bind(bind("north", "north"))
        .bind(bind("south", "south"));
    transport.declare(&topology).await.unwrap();
    let to = Route::exchange_as_it_came(exchange);
    let router = Router::new(world.intake("orders")).otherwise(everything(to));
    let router = router.start(&transport).await.unwrap();
    for (id, tenant) in [("1", "north"), ("2", "south")] {
        world.put(&*transport, "orders", json(id, "{}").with_header("tenant", tenant)).await;
    }
    assert_eq!(id(&world.take(&*transport, "north").await), "1");
    assert_eq!(id(&world.take(&*transport, "south").await), "2");
    stop(router).await;
}

pub(crate) async fn a_key_has_its_partition(world: &World) {
    let transport = world.transport().await;
    let partitions = Partitioner::new(world.name("lanes"), 3).unwrap();
    transport.declare(&partitions.topology(&world.naming)).await.unwrap();
    let to = Route::partition(partitions.clone(), Field::Key);
    // One at a time, so that what follows shows the order.
    let intake = world.intake("orders").concurrency(1).prefetch(1);
    let router = Router::new(intake).otherwise(everything(to)).start(&transport).await.unwrap();
    let mut expected = vec![Vec::new(); 3];
    for number in 0..30 {
        let (id, key) = (format!("{number:02}"), format!("customer-{}", number % 7));
        world.put(&*transport, "orders", json(&id, "{}").with_key(key.clone())).await;
        expected[partitions.partition(&key) as usize].push(id);
    }
    for (number, expected) in expected.iter().enumerate() {
        let lane = format!("lanes.{number}");
        let came = world.take_many(&*transport, &lane, expected.len()).await;
        assert_eq!(came.iter().map(id).collect::<Vec<_>>(), *expected);
        world.name(&lane);
    }
    world.put(&*transport, "orders", json("none", "{}")).await;
    assert_eq!(code(&world.dead(&*transport, "orders").await), codes::NO_KEY);
    stop(router).await;
}

pub(crate) async fn a_tap_gets_copies(world: &World) {
    let transport = world.transport().await;
    for name in ["out", "tap"] {
        world.declare(&*transport, name).await;
    }
    let router = Router::new(world.intake("orders"))
        .rule(Rule::new("good", Condition::Exists(Field::Type), [world.to("out")]))
        .tap(Address::queue(world.name("tap")))
        .start(&transport)
        .await
        .unwrap();
    world.put(&*transport, "orders", json("bad", "{}")).await;
    world.dead(&*transport, "orders").await;
    for id in ["1", "2"] {
        world.put(&*transport, "orders", json(id, "{}").with_type("order")).await;
    }
    let copies = world.take_many(&*transport, "tap", 2).await;
    assert_eq!(ids(&copies), ["1", "2"]);
    assert!(copies.iter().all(|copy| copy.headers.get(headers::HOPS).is_none()));
    comes_to(&router, |stats| stats.tapped == 2).await;
    comes_to(&router, |stats| stats.sent == 2).await;
    stop(router).await;
}

pub(crate) async fn a_tap_that_goes_nowhere_fails_nothing(world: &World) {
    const NUMBER: u64 = 50;
    let transport = world.transport().await;
    world.declare(&*transport, "out").await;
    let router = Router::new(world.intake("orders"))
        .otherwise(everything(world.to("out")))
        .tap(Address::queue(world.name("nowhere")))
        .start(&transport)
        .await
        .unwrap();
    for number in 0..NUMBER {
        world.put(&*transport, "orders", json(&number.to_string(), "{}")).await;
    }
    world.take_many(&*transport, "out", NUMBER as usize).await;
    comes_to(&router, |stats| stats.tap_dropped == NUMBER).await;
    comes_to(&router, |stats| stats.run.acked == NUMBER).await;
    let stats = router.stats();
    assert_eq!((stats.run.retried, stats.tapped), (0, 0));
    stop(router).await;
}

pub(crate) async fn routers_that_are_not_sound_are_refused(world: &World) {
    let transport = world.transport().await;
    let rule = || Rule::new("a", Condition::Always, [world.to("a")]);
    let nowhere = |_: &postrider_patterns::routing::Inbound| Ok(Vec::new());
    let ruled = || Router::new(world.intake("orders")).rule(rule());
    for (router, complaint) in [
        (Router::new(world.intake("orders")), "no rules"),
        (ruled().rule(rule()), "name of its own"),
        (ruled().recipients(nowhere), "one of both"),
        (Router::new(world.intake("orders")).recipients(nowhere).controlled("x"), "no rules"),
        (ruled().store(Arc::new(InMemoryTables::default())), "controlled"),
        (ruled().tap(Address::queue("x".repeat(256))), "255"),
        (Router::new(world.intake("orders").and_queue(world.name("orders"))).rule(rule()), "twice"),
        (Router::new(world.intake("orders").concurrency(0)).rule(rule()), "concurrency"),
        (Router::new(world.intake("orders").delivery_limit(2)).rule(rule()), "delivery limit"),
    ] {
        let error = router.start(&transport).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(complaint), "{error}");
    }
    assert_eq!(transport.queue_info(&world.name("orders")).await.unwrap(), None);
}
