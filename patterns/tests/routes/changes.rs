//! Rules that are changed while a router runs.

use std::{sync::Arc, time::Duration};

use postrider_core::{Queue, Topology, Transport};
use postrider_patterns::{
    ErrorClass, Gather, PartState, RpcClient, Service, codes,
    routing::{
        Change, ChangeRules, Condition, Field, Flow, InMemoryTables, ListRules, Otherwise, Router,
        Rule,
    },
};
use tokio::time::{sleep, timeout};

use super::world::{SOON, World, code, comes_to, id, ids, json, stop};

const SERVICE: &str = "orders-router";

fn rule(world: &World, name: &str) -> Rule {
    Rule::new(name, Condition::is_type(name.to_owned()), [world.to(name)])
}

fn add(world: &World, name: &str) -> Change {
    Change::Add { rule: rule(world, name), before: None }
}

fn router(world: &World) -> Router {
    Router::new(world.intake("orders")).rule(rule(world, "a")).controlled(world.name(SERVICE))
}

async fn start(world: &World, transport: &Arc<dyn Transport>) -> (Flow, RpcClient) {
    for name in ["a", "b"] {
        world.declare(&**transport, name).await;
    }
    (router(world).start(transport).await.unwrap(), client(world, transport).await)
}

async fn client(world: &World, transport: &Arc<dyn Transport>) -> RpcClient {
    let builder = RpcClient::builder(transport).naming(world.naming.clone());
    builder.connect().await.unwrap()
}

pub(crate) async fn rules_are_changed_while_it_runs(world: &World) {
    let transport = world.transport().await;
    let (running, client) = start(world, &transport).await;
    let service = world.name(SERVICE);
    world.put(&*transport, "orders", json("1", "{}").with_type("b")).await;
    assert_eq!(id(&world.dead(&*transport, "orders").await), "1");

    let change = ChangeRules::new([add(world, "b")]).if_version(0);
    assert_eq!(client.call(&service, &change).await.unwrap().version, 1);
    world.put(&*transport, "orders", json("2", "{}").with_type("b")).await;
    assert_eq!(id(&world.take(&*transport, "b").await), "2");

    let moved = Rule::new("b", Condition::is_type("b"), [world.to("a")]);
    let change = ChangeRules::new([Change::Replace(moved), Change::Otherwise(Otherwise::Drop)]);
    assert_eq!(client.call(&service, &change).await.unwrap().version, 2);
    world.put(&*transport, "orders", json("3", "{}").with_type("b")).await;
    assert_eq!(id(&world.take(&*transport, "a").await), "3");

    let change = ChangeRules::new([Change::Remove("b".to_owned())]);
    assert_eq!(client.call(&service, &change).await.unwrap().version, 3);
    let table = client.call(&service, &ListRules {}).await.unwrap();
    assert_eq!((table.version, &table.rules), (3, &vec![rule(world, "a")]));
    assert_eq!(*running.table().unwrap(), table);
    stop(running).await;
}

pub(crate) async fn a_change_that_is_refused_changes_nothing(world: &World) {
    let transport = world.transport().await;
    let (running, client) = start(world, &transport).await;
    let service = world.name(SERVICE);
    let before = running.table().unwrap();
    for (change, class, reason) in [
        (ChangeRules::new([add(world, "b"), add(world, "a")]), ErrorClass::Invalid, "'a'"),
        (ChangeRules::new([Change::Remove("c".to_owned())]), ErrorClass::Invalid, "no such rule"),
        (ChangeRules::new([add(world, "b")]).if_version(5), ErrorClass::Conflict, "version 0"),
    ] {
        let error = client.call(&service, &change).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    // What is no change at all.
    let wrong = serde_json::json!({"changes": [{"add": {"rule": {"name": "x", "to": []}}}]});
    let error = client.call_named::<_, u8>(&service, "change_rules", &wrong, Default::default());
    let error = error.await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Invalid, "{error}");
    assert!(error.to_string().contains("when"), "{error}");
    assert_eq!(running.table().unwrap(), before);
    world.put(&*transport, "orders", json("1", "{}").with_type("a")).await;
    assert_eq!(id(&world.take(&*transport, "a").await), "1");
    stop(running).await;
}

pub(crate) async fn all_routers_of_a_name_are_told(world: &World) {
    let transport = world.transport().await;
    let (one, client) = start(world, &transport).await;
    let other = router(world).start(&transport).await.unwrap();
    let change = ChangeRules::new([add(world, "b")]);
    let service = world.name(SERVICE);
    let told = client.gather(&service, &change, Gather::all().expecting(2));
    let told = told.await.unwrap();
    assert!(told.reached, "{told:?}");
    assert_eq!(one.table(), other.table());
    assert_eq!(one.table().unwrap().version, 1);
    stop(one).await;
    stop(other).await;
}

pub(crate) async fn a_table_that_is_kept_survives_a_restart(world: &World) {
    let transport = world.transport().await;
    for name in ["a", "b"] {
        world.declare(&*transport, name).await;
    }
    let client = client(world, &transport).await;
    let store = Arc::new(InMemoryTables::default());
    for expected in [1, 2] {
        let running = router(world).store(store.clone()).start(&transport).await.unwrap();
        let change = ChangeRules::new([Change::Otherwise(Otherwise::Drop)]);
        let changed = client.call(&world.name(SERVICE), &change).await.unwrap();
        assert_eq!(changed.version, expected);
        stop(running).await;
    }
    // Without it, the router begins anew.
    let running = router(world).start(&transport).await.unwrap();
    assert_eq!(running.table().unwrap().version, 0);
    stop(running).await;
}

/// One that has nothing to go by.
fn blank(world: &World) -> Router {
    Router::new(world.intake("orders")).controlled(world.name(SERVICE))
}

pub(crate) async fn a_router_without_rules_takes_nothing_before_they_come(world: &World) {
    let transport = world.transport().await;
    for name in ["a", "orders"] {
        world.declare(&*transport, name).await;
    }
    for id in ["1", "2"] {
        world.put(&*transport, "orders", json(id, "{}").with_type("a")).await;
    }
    let store = Arc::new(InMemoryTables::default());
    // The queue is there with other arguments.
    let router = || {
        let intake = world.intake("orders").declared_elsewhere();
        Router::new(intake).controlled(world.name(SERVICE)).store(store.clone())
    };
    let running = router().start(&transport).await.unwrap();
    let (client, service) = (client(world, &transport).await, world.name(SERVICE));
    assert_eq!(client.call(&service, &ListRules {}).await.unwrap().version, 0);
    assert!(running.is_held() && running.is_running() && running.is_controlled());
    world.comes_to_hold(&*transport, "orders", 2).await;

    // A change that is refused brings no rules.
    let refused = ChangeRules::new([Change::Remove("a".to_owned())]);
    client.call(&service, &refused).await.unwrap_err();
    assert!(running.is_held());
    client.call(&service, &ChangeRules::new([add(world, "a")])).await.unwrap();
    assert_eq!(ids(&world.take_many(&*transport, "a", 2).await), ["1", "2"]);
    assert!(!running.is_held());
    comes_to(&running, |stats| stats.run.acked == 2 && stats.run.dead_lettered == 0).await;

    // A table that was changed is one like others, with rules or without, and after a restart too.
    let without = ChangeRules::new([Change::Remove("a".to_owned())]);
    client.call(&service, &without).await.unwrap();
    world.put(&*transport, "orders", json("3", "{}").with_type("a")).await;
    assert_eq!(code(&world.dead(&*transport, "orders").await), codes::NO_ROUTE);
    stop(running).await;
    let running = router().start(&transport).await.unwrap();
    assert!(!running.is_held());
    world.put(&*transport, "orders", json("4", "{}").with_type("a")).await;
    assert_eq!(id(&world.dead(&*transport, "orders").await), "4");
    stop(running).await;
}

pub(crate) async fn a_router_may_begin_without_rules(world: &World) {
    let transport = world.transport().await;
    let running = blank(world).begin_blank().start(&transport).await.unwrap();
    assert!(!running.is_held());
    world.put(&*transport, "orders", json("1", "{}")).await;
    assert_eq!(code(&world.dead(&*transport, "orders").await), codes::NO_ROUTE);
    stop(running).await;
    // So does one whose program says what becomes of all.
    let running = blank(world).otherwise(Otherwise::Drop).start(&transport).await.unwrap();
    world.put(&*transport, "orders", json("2", "{}")).await;
    comes_to(&running, |stats| stats.dropped == 1).await;
    stop(running).await;
}

pub(crate) async fn a_held_router_stops_at_once(world: &World) {
    let transport = world.transport().await;
    let intake = world.intake("orders").and_queue(world.name("returns"));
    let router = Router::new(intake).controlled(world.name(SERVICE));
    let running = router.start(&transport).await.unwrap();
    for queue in ["orders", "returns"] {
        world.put(&*transport, queue, json(queue, "{}")).await;
    }
    assert!(running.is_held());
    let report = timeout(SOON, running.stop(2 * SOON)).await.expect("it has nothing in hand");
    assert_eq!((report.finished, report.released), (0, 0));
    for queue in ["orders", "returns"] {
        assert_eq!(id(&world.take(&*transport, queue).await), queue);
    }
}

pub(crate) async fn a_table_that_would_be_too_large_is_refused(world: &World) {
    let transport = world.transport().await;
    let (running, client) = start(world, &transport).await;
    let service = world.name(SERVICE);
    let heavy = |name: String, bytes: usize| {
        let text = Condition::equals(Field::Type, "x".repeat(bytes));
        Change::Add { rule: Rule::new(name, text, [world.to("b")]), before: None }
    };
    let before = running.table().unwrap();
    for (change, reason) in [
        (ChangeRules::new([heavy("large".to_owned(), 65_536)]), "a rule has at most 65536 bytes"),
        (
            ChangeRules::new((0..20).map(|number| heavy(number.to_string(), 60_000))),
            "a table has at most 1048576 bytes",
        ),
        // More than a table could take is not even read.
        (ChangeRules::new((0..80).map(|number| heavy(number.to_string(), 60_000))), "4194304"),
    ] {
        let error = client.call(&service, &change).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Invalid, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(running.table().unwrap(), before);
    }
    // What fits is taken, and given back whole, also where it is larger on the wire.
    let floats = |number: usize| {
        let values = vec![0.5.into(); 1_000];
        let when = Condition::OneOf(Field::Priority, values);
        let rule = Rule::new(number.to_string(), when, [world.to("b")]);
        Change::Add { rule, before: None }
    };
    let change = ChangeRules::new((0..230).map(floats));
    client.call(&service, &change).await.unwrap();
    let table = client.call(&service, &ListRules {}).await.unwrap();
    assert_eq!(table, *running.table().unwrap());
    world.put(&*transport, "orders", json("1", "{}").with_type("a")).await;
    assert_eq!(id(&world.take(&*transport, "a").await), "1");
    stop(running).await;
}

/// Takes away the queue of the requests.
async fn end_control(world: &World, transport: &dyn Transport) {
    let queue = world.naming.rpc_queue(&world.name(SERVICE));
    let topology = Topology::new().queue(Queue::durable(queue));
    transport.remove(&topology).await.unwrap();
}

pub(crate) async fn a_control_that_has_ended_is_seen_and_its_router_goes_on(world: &World) {
    let transport = world.transport().await;
    let (running, client) = start(world, &transport).await;
    client.call(&world.name(SERVICE), &ListRules {}).await.unwrap();
    comes_to(&running, |stats| stats.control.is_some_and(|control| control.acked == 1)).await;
    assert!(running.is_running() && running.is_controlled());
    end_control(world, &*transport).await;
    let _why = timeout(SOON, running.ended()).await.expect("it is told");
    assert!(!running.is_running() && !running.is_controlled());
    assert_eq!(running.stats().control, None);
    world.put(&*transport, "orders", json("1", "{}").with_type("a")).await;
    assert_eq!(id(&world.take(&*transport, "a").await), "1");
    stop(running).await;
}

pub(crate) async fn a_service_shows_a_router_that_waits_and_a_control_that_has_ended(
    world: &World,
) {
    let transport = world.transport().await;
    let service = Service::new("shop", &transport).router(blank(world)).start().await.unwrap();
    let health = service.monitor().health();
    assert!(matches!(health.parts[0].state, PartState::Held), "{health:?}");
    assert!(matches!(health.parts[1].state, PartState::Consuming), "{health:?}");
    assert!(health.is_live() && !health.is_ready());

    world.declare(&*transport, "a").await;
    let client = client(world, &transport).await;
    let change = ChangeRules::new([add(world, "a")]);
    client.call(&world.name(SERVICE), &change).await.unwrap();
    let monitor = service.monitor();
    let becomes = |is_it: fn(&PartState) -> bool, part: usize| {
        let monitor = monitor.clone();
        async move {
            while !is_it(&monitor.health().parts[part].state) {
                sleep(Duration::from_millis(10)).await;
            }
        }
    };
    let consuming = becomes(|state| matches!(state, PartState::Consuming), 0);
    timeout(SOON, consuming).await.expect("it has rules");
    assert!(monitor.health().is_ready());
    end_control(world, &*transport).await;
    let ended = becomes(|state| matches!(state, PartState::Ended(_)), 1);
    timeout(SOON, ended).await.expect("it has no control");
    assert!(!monitor.health().is_live());
    service.stop().await;
}
