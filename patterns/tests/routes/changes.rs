//! Rules that are changed while a router runs.

use std::sync::Arc;

use postrider_core::Transport;
use postrider_patterns::{
    ErrorClass, Gather, RpcClient,
    routing::{
        Change, ChangeRules, Condition, Flow, InMemoryTables, ListRules, Otherwise, Router, Rule,
    },
};

use super::world::{World, id, json, stop};

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
