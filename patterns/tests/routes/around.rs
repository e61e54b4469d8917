//! What stands around a router, and what it looks at.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    thread::{self, ThreadId},
    time::Duration,
};

use async_trait::async_trait;
use postrider_core::{Address, DeliveryInfo, Envelope, Queue, Topology};
use postrider_patterns::{
    Codec, Context, Deduplicate, HandlerError, Middleware, Next, Outcome, RateLimit, codes,
    routing::{
        Aggregator, Completion, Condition, Field, Otherwise, Partitioner, Route, Router, Rule,
        Splitter,
    },
};
use serde_json::json;

use super::world::{World, code, comes_to, id, ids, json, message, stop};

/// Writes down what it sees, and fails the first try of each message.
#[derive(Debug, Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn note(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl Middleware for Notes {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        let (id, attempt) = (context.message_id().unwrap_or_default(), context.attempt());
        if attempt == 1 {
            self.note(format!("{id} fails"));
            return Err(HandlerError::transient("not yet"));
        }
        next.run(context).await?;
        self.note(format!("{id} passed"));
        Ok(())
    }

    fn settled(&self, envelope: &Envelope, _info: &DeliveryInfo, outcome: Outcome) {
        self.note(format!("{} {}", id(&envelope.message), outcome.as_str()));
    }
}

pub(crate) async fn middleware_stands_around_routers_and_splitters(world: &World) {
    let transport = world.transport().await;
    for name in ["a", "lines"] {
        world.declare(&*transport, name).await;
    }
    let expected = |id: &str| {
        ["fails", "retried", "passed", "acked"].map(|what| format!("{id} {what}")).to_vec()
    };
    let notes = Notes::default();
    let router = Router::new(world.intake("orders"))
        .otherwise(Otherwise::Send(vec![world.to("a")]))
        .with(notes.clone())
        .start(&transport)
        .await
        .unwrap();
    world.put(&*transport, "orders", json("1", "{}")).await;
    assert_eq!(id(&world.take(&*transport, "a").await), "1");
    comes_to(&router, |stats| stats.run.acked == 1).await;
    assert_eq!(notes.all(), expected("1"));
    stop(router).await;

    let notes = Notes::default();
    let splitter = Splitter::list(world.intake("whole"), Field::body(""), world.to("lines"))
        .with(notes.clone())
        .start(&transport)
        .await
        .unwrap();
    world.put(&*transport, "whole", json("2", "[1,2]")).await;
    world.take_many(&*transport, "lines", 2).await;
    comes_to(&splitter, |stats| stats.run.acked == 1).await;
    assert_eq!(notes.all(), expected("2"));
    stop(splitter).await;
}

pub(crate) async fn one_queue_that_ends_leaves_the_waiting_of_the_others(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "a").await;
    let router = Router::new(world.intake("orders").and_queue(world.name("returns")))
        .otherwise(Otherwise::Send(vec![world.to("a")]))
        .with(RateLimit::new(10, Duration::from_secs(1)))
        .start(&transport)
        .await
        .unwrap();
    let returns = Topology::new().queue(Queue::durable(world.name("returns")));
    transport.remove(&returns).await.unwrap();
    comes_to(&router, |_| !router.is_running()).await;
    for id in ["1", "2", "3", "4"] {
        world.put(&*transport, "orders", json(id, "{}")).await;
    }
    comes_to(&router, |stats| stats.run.acked == 4).await;
    assert_eq!(router.stats().run.released, 0, "none had to go back");
    stop(router).await;
}

pub(crate) async fn a_router_may_drop_duplicates(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "a").await;
    let once = Deduplicate::by_message_id();
    let router = Router::new(world.intake("orders"))
        .otherwise(Otherwise::Send(vec![world.to("a")]))
        .with(once.clone())
        .start(&transport)
        .await
        .unwrap();
    for id in ["1", "1", "2", "1"] {
        world.put(&*transport, "orders", json(id, "{}")).await;
    }
    comes_to(&router, |stats| stats.run.acked == 4).await;
    assert_eq!((once.duplicates(), router.stats().sent), (2, 2));
    assert_eq!(ids(&world.take_many(&*transport, "a", 2).await), ["1", "2"]);
    stop(router).await;
}

pub(crate) async fn large_bodies_are_looked_into_on_other_threads(world: &World) {
    let transport = world.transport().await;
    for name in ["large", "small"] {
        world.declare(&*transport, name).await;
    }
    let order = |id: &str, size: usize| {
        message(Codec::Json, id, &json!({"total": size, "note": "x".repeat(size)}))
    };
    // Rules that look into the body are followed whatever its size.
    let large = Condition::at_least(Field::body("total"), 1_000);
    let router = Router::new(world.intake("orders"))
        .rule(Rule::new("large", large, [world.to("large")]))
        .otherwise(Otherwise::Send(vec![world.to("small")]))
        .start(&transport)
        .await
        .unwrap();
    for size in [10, 1_000, 1_000_000] {
        world.put(&*transport, "orders", order(&size.to_string(), size)).await;
    }
    assert_eq!(ids(&world.take_many(&*transport, "large", 2).await), ["1000", "1000000"]);
    assert_eq!(ids(&world.take_many(&*transport, "small", 1).await), ["10"]);
    stop(router).await;

    let threads: Arc<Mutex<[HashSet<ThreadId>; 2]>> = Arc::default();
    let (seen, to) = (Arc::clone(&threads), Address::queue(world.name("large")));
    let router = Router::new(world.intake("computed")).recipients(move |inbound| {
        let is_large = inbound.message().body.len() > 200_000;
        let mut seen = seen.lock().unwrap();
        seen[usize::from(is_large)].insert(thread::current().id());
        drop(seen);
        assert!(inbound.message().content_type.is_some(), "no content type on its thread");
        Ok(vec![to.clone()])
    });
    let router = router.start(&transport).await.unwrap();
    for number in 0..5 {
        for size in [10, 250_000] {
            world.put(&*transport, "computed", order(&number.to_string(), size)).await;
        }
    }
    world.take_many(&*transport, "large", 10).await;
    // A panic there is one like others.
    let mut odd = order("odd", 250_000);
    odd.content_type = None;
    world.put(&*transport, "computed", odd).await;
    assert_eq!(code(&world.dead(&*transport, "computed").await), codes::PANIC);
    let [small, large] = threads.lock().unwrap().clone();
    assert!(!large.is_empty() && small.is_disjoint(&large), "{small:?} {large:?}");
    stop(router).await;
}

pub(crate) async fn a_look_that_costs_too_much_is_given_up(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "a").await;
    let searched = Condition::Contains(Field::body("text"), "needle".to_owned());
    let router = Router::new(world.intake("orders"))
        .rule(Rule::new("cheap", Condition::is_type("cheap"), [world.to("a")]))
        .rule(Rule::new("found", Condition::Any(vec![searched; 900]), [world.to("a")]))
        .otherwise(Otherwise::Send(vec![world.to("a")]))
        .start(&transport)
        .await
        .unwrap();
    let order =
        |id: &str, size: usize| message(Codec::Json, id, &json!({"text": "hay ".repeat(size / 4)}));
    world.put(&*transport, "orders", order("1", 1_000_000)).await;
    let dead = world.dead(&*transport, "orders").await;
    assert_eq!((id(&dead), code(&dead)), ("1", codes::TOO_COSTLY));
    // What costs much is looked at elsewhere; what costs nothing is not bounded by its size.
    world.put(&*transport, "orders", order("2", 100_000)).await;
    world.put(&*transport, "orders", order("3", 1_000_000).with_type("cheap")).await;
    assert_eq!(ids(&world.take_many(&*transport, "a", 2).await), ["2", "3"]);
    assert_eq!(router.stats().run.retried, 0);
    stop(router).await;
}

pub(crate) async fn an_empty_path_is_the_whole_body(world: &World) {
    let transport = world.transport().await;
    world.declare(&*transport, "gifts").await;
    let gift = Condition::equals(Field::body(""), "gift");
    let router =
        Router::new(world.intake("orders")).rule(Rule::new("g", gift, [world.to("gifts")]));
    let router = router.start(&transport).await.unwrap();
    world.put(&*transport, "orders", json("1", r#""gift""#)).await;
    assert_eq!(id(&world.take(&*transport, "gifts").await), "1");
    world.put(&*transport, "orders", json("2", r#"{"":"gift"}"#)).await;
    assert_eq!(code(&world.dead(&*transport, "orders").await), codes::NO_ROUTE);
    stop(router).await;
}

pub(crate) async fn fields_without_a_text_are_refused(world: &World) {
    let transport = world.transport().await;
    let (gap, to) = (|| Field::body("a..b"), || world.to("a"));
    let lanes = Partitioner::new("lanes", 2).unwrap();
    let rule = |field| Rule::new("r", Condition::Exists(field), [to()]);
    let router = || Router::new(world.intake("orders"));
    let ruled = router().rule(rule(gap())).start(&transport).await;
    let nameless = router().rule(rule(Field::header(""))).start(&transport).await;
    let parted = Otherwise::Send(vec![Route::partition(lanes, gap())]);
    let parted = router().otherwise(parted).start(&transport).await;
    let split = Splitter::list(world.intake("orders"), gap(), to()).start(&transport).await;
    let grouped = Aggregator::new(world.intake("orders"), Completion::Count(2), to()).by(gap());
    let grouped = grouped.start(&transport).await;
    for refused in [ruled, nameless, parted, split, grouped] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("field"), "{error}");
    }
    assert_eq!(transport.queue_info(&world.name("orders")).await.unwrap(), None);
}
