//! Routing: which queues get a message, and that each gets one copy.

use futures_util::{StreamExt, stream};
use postrider_core::{
    Address, Binding, Envelope, Exchange, HeaderValue, Message, PublisherExt, Queue, Topology,
    Verdict,
};

use super::{Behaviour, Need};
use crate::Scene;

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(default_exchange_routes_by_queue_name, NEEDS),
        Behaviour::new(direct_exchange_routes_by_equal_key, NEEDS),
        Behaviour::new(topic_exchange_matches_words, NEEDS),
        Behaviour::new(fanout_gives_each_queue_a_copy, NEEDS),
        Behaviour::new(headers_exchange_matches_all_or_any, NEEDS),
        Behaviour::new(headers_exchange_compares_types_and_x_names, NEEDS),
        Behaviour::new(two_matching_bindings_give_one_copy, NEEDS),
        Behaviour::new(alternate_exchange_gets_the_unroutable, NEEDS),
        Behaviour::new(exchanges_feed_exchanges, NEEDS),
        Behaviour::new(exchange_ring_ends, NEEDS),
        Behaviour::new(auto_delete_exchange_goes_with_its_last_binding, NEEDS),
        Behaviour::new(delivery_tells_its_address, NEEDS),
    ]
}

/// Sends each key to `exchange` and gives the keys that no queue got.
async fn unroutable(scene: &Scene, exchange: &str, keys: &[&'static str]) -> Vec<&'static str> {
    let publisher = scene.publisher().await;
    let exchange = exchange.to_owned();
    let envelopes = stream::iter(keys.to_vec())
        .map(|key| Envelope::new(Address::exchange(exchange.clone(), key), Message::new(key)));
    let verdicts: Vec<_> = publisher.publish_all(envelopes, 100).collect().await;
    let mut nowhere = Vec::new();
    for (key, verdict) in keys.iter().zip(verdicts) {
        match verdict.expect("a valid key") {
            Verdict::Accepted => {}
            Verdict::Unroutable => nowhere.push(*key),
            verdict => panic!("the verdict of key '{key}': {verdict:?}"),
        }
    }
    nowhere
}

async fn default_exchange_routes_by_queue_name(scene: Scene) {
    let queue = scene.queue("named").await;
    let by_exchange = Envelope::new(Address::exchange("", queue.clone()), Message::new("1"));
    let by_queue = Envelope::new(Address::queue(queue.clone()), Message::new("2"));
    scene.publish_envelopes([by_exchange, by_queue]).await;
    scene.holds(&queue, &["1", "2"]).await;
    let publisher = scene.publisher().await;
    let missing = Envelope::new(Address::queue(scene.name("missing")), Message::new("3"));
    let confirm = scene.send(&*publisher, missing).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Unroutable, "no queue has that name");
}

async fn direct_exchange_routes_by_equal_key(scene: Scene) {
    let exchange = scene.name("direct");
    let (red, blue) = (scene.classic("red").await, scene.classic("blue").await);
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::direct(exchange.clone()))
                .bind(Binding::queue(exchange.clone(), red.clone(), "red"))
                .bind(Binding::queue(exchange.clone(), red.clone(), "both"))
                .bind(Binding::queue(exchange.clone(), blue.clone(), "blue"))
                .bind(Binding::queue(exchange.clone(), blue.clone(), "both"))
                .bind(Binding::queue(exchange.clone(), blue.clone(), "")),
        )
        .await;
    let keys = ["red", "blue", "both", "", "Red", "red.", "#", "*"];
    let nowhere = unroutable(&scene, &exchange, &keys).await;
    assert_eq!(nowhere, ["Red", "red.", "#", "*"], "a direct exchange has no patterns");
    scene.holds(&red, &["red", "both"]).await;
    scene.holds(&blue, &["blue", "both", ""]).await;
}

/// Patterns of a topic exchange and which of `KEYS` they match.
const PATTERNS: &[(&str, &[&str])] = &[
    ("order.created", &["order.created"]),
    ("order.*", &["order.created", "order.", "order.paid"]),
    ("order.#", &["order", "order.created", "order.", "order.paid", "order.eu.created"]),
    ("*.created", &["order.created", "user.created"]),
    ("#.created", &["order.created", "user.created", "order.eu.created", "created"]),
    ("*.*.created", &["order.eu.created"]),
    ("order.#.created", &["order.created", "order.eu.created"]),
    ("*", &["order", "created", ""]),
    ("#", KEYS),
    ("#.*", KEYS),
    ("order.*.#", &["order.created", "order.", "order.paid", "order.eu.created"]),
    ("ord*", &[]),
];

const KEYS: &[&str] = &[
    "order",
    "order.created",
    "order.",
    "order.paid",
    "order.eu.created",
    "user.created",
    "created",
    "",
];

async fn topic_exchange_matches_words(scene: Scene) {
    let exchange = scene.name("topic");
    let mut topology = Topology::new().exchange(Exchange::topic(exchange.clone()));
    let mut queues = Vec::new();
    for (n, (pattern, _)) in PATTERNS.iter().enumerate() {
        let queue = scene.name(&format!("pattern-{n}"));
        topology = topology.queue(Queue::classic(queue.clone())).bind(Binding::queue(
            exchange.clone(),
            queue.clone(),
            *pattern,
        ));
        queues.push(queue);
    }
    scene.declare(topology).await;
    // An empty key has no words on some brokers and one empty word on others.
    let keys: Vec<_> = KEYS.iter().copied().filter(|key| !key.is_empty()).collect();
    let nowhere = unroutable(&scene, &exchange, &keys).await;
    assert!(nowhere.is_empty(), "the pattern # takes every key: {nowhere:?}");
    for (queue, (pattern, matches)) in queues.iter().zip(PATTERNS) {
        let matches: Vec<_> = matches.iter().filter(|key| !key.is_empty()).collect();
        let info = scene.info(queue).await;
        assert_eq!(info.ready, matches.len() as u64, "'{pattern}' matches {matches:?} alone");
        let mut bodies = scene.read(queue, 100).await.bodies(matches.len()).await;
        bodies.sort();
        let mut expected: Vec<_> = matches.iter().map(ToString::to_string).collect();
        expected.sort();
        assert_eq!(bodies, expected, "the keys that '{pattern}' matches");
    }
}

async fn fanout_gives_each_queue_a_copy(scene: Scene) {
    let exchange = scene.name("fanout");
    let mut topology = Topology::new().exchange(Exchange::fanout(exchange.clone()));
    let queues: Vec<_> = (0..50).map(|n| scene.name(&format!("copy-{n}"))).collect();
    for queue in &queues {
        topology = topology.queue(Queue::classic(queue.clone())).bind(Binding::queue(
            exchange.clone(),
            queue.clone(),
            "ignored",
        ));
    }
    scene.declare(topology).await;
    let nowhere = unroutable(&scene, &exchange, &["a", "", "b"]).await;
    assert!(nowhere.is_empty(), "a fanout exchange takes every key: {nowhere:?}");
    for queue in &queues {
        assert_eq!(scene.info(queue).await.ready, 3, "'{queue}' has one copy of each");
        let mut reader = scene.read(queue, 10).await;
        assert_eq!(reader.bodies(3).await, ["a", "", "b"], "the copies of '{queue}'");
    }
}

/// Publishes a message with these headers, named by `body`, to a headers exchange.
fn with_headers(
    exchange: &str,
    body: &'static str,
    headers: &[(&'static str, HeaderValue)],
) -> Envelope {
    let mut message = Message::new(body);
    for (name, value) in headers {
        message = message.with_header(*name, value.clone());
    }
    Envelope::new(Address::exchange(exchange.to_owned(), ""), message)
}

async fn headers_exchange_matches_all_or_any(scene: Scene) {
    let exchange = scene.name("headers");
    let names = ["all", "any", "unsaid", "nothing"];
    let mut topology = Topology::new().exchange(Exchange::headers(exchange.clone()));
    for name in names {
        let queue = scene.name(name);
        let mut binding = Binding::queue(exchange.clone(), queue.clone(), "");
        if name != "nothing" {
            binding = binding.with_argument("region", "eu").with_argument("size", 3);
        }
        if name != "unsaid" {
            let how = if name == "any" { "any" } else { "all" };
            binding = binding.with_argument("x-match", how);
        }
        topology = topology.queue(Queue::classic(queue)).bind(binding);
    }
    scene.declare(topology).await;
    let (eu, us) = (HeaderValue::from("eu"), HeaderValue::from("us"));
    let (three, four) = (HeaderValue::from(3), HeaderValue::from(4));
    let other = HeaderValue::from("x");
    scene
        .publish_envelopes([
            with_headers(&exchange, "both", &[("region", eu.clone()), ("size", three.clone())]),
            with_headers(
                &exchange,
                "more",
                &[("region", eu.clone()), ("size", three), ("other", other.clone())],
            ),
            with_headers(&exchange, "one", &[("region", eu)]),
            with_headers(&exchange, "wrong", &[("region", us), ("size", four)]),
            with_headers(&exchange, "none", &[("other", other)]),
        ])
        .await;
    let everything = ["both", "more", "one", "wrong", "none"];
    scene.holds(&scene.name("all"), &["both", "more"]).await;
    scene.holds(&scene.name("unsaid"), &["both", "more"]).await;
    scene.holds(&scene.name("any"), &["both", "more", "one"]).await;
    // All of no headers match.
    scene.holds(&scene.name("nothing"), &everything).await;
}

async fn headers_exchange_compares_types_and_x_names(scene: Scene) {
    let exchange = scene.name("headers");
    let bind = |base: &str, how: &'static str, name: &'static str, value: HeaderValue| {
        Binding::queue(exchange.clone(), scene.name(base), "")
            .with_argument("x-match", how)
            .with_argument(name, value)
            .with_argument("tenant", "north")
    };
    let mut topology = Topology::new().exchange(Exchange::headers(exchange.clone()));
    for base in ["typed", "plain", "with-x", "any-with-x"] {
        topology = topology.queue(Queue::classic(scene.name(base)));
    }
    let topology = topology
        .bind(bind("typed", "all", "flag", true.into()))
        .bind(bind("plain", "all", "x-kind", "a".into()))
        .bind(bind("with-x", "all-with-x", "x-kind", "a".into()))
        .bind(bind("any-with-x", "any-with-x", "x-kind", "a".into()));
    scene.declare(topology).await;
    let north = ("tenant", HeaderValue::from("north"));
    let south = ("tenant", HeaderValue::from("south"));
    let publisher = scene.publisher().await;
    for envelope in [
        with_headers(&exchange, "bool", &[("flag", true.into()), north.clone()]),
        with_headers(&exchange, "text", &[("flag", "true".into()), north.clone()]),
        with_headers(&exchange, "x-a", &[("x-kind", "a".into()), north]),
        with_headers(&exchange, "x-south", &[("x-kind", "a".into()), south]),
    ] {
        let confirm = scene.send(&*publisher, envelope).await;
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "each has a queue");
    }
    scene.holds(&scene.name("typed"), &["bool"]).await;
    // Names that begin with x- count for the modes that say so only.
    scene.holds(&scene.name("plain"), &["bool", "text", "x-a"]).await;
    scene.holds(&scene.name("with-x"), &["x-a"]).await;
    scene.holds(&scene.name("any-with-x"), &["bool", "text", "x-a", "x-south"]).await;
}

async fn two_matching_bindings_give_one_copy(scene: Scene) {
    let (exchange, queue) = (scene.name("topic"), scene.queue("twice").await);
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::topic(exchange.clone()))
                .bind(Binding::queue(exchange.clone(), queue.clone(), "order.*"))
                .bind(Binding::queue(exchange.clone(), queue.clone(), "*.created"))
                .bind(Binding::queue(exchange.clone(), queue.clone(), "#")),
        )
        .await;
    unroutable(&scene, &exchange, &["order.created", "order.paid"]).await;
    scene.holds(&queue, &["order.created", "order.paid"]).await;
}

async fn alternate_exchange_gets_the_unroutable(scene: Scene) {
    let (exchange, alternate) = (scene.name("main"), scene.name("alternate"));
    let (known, lost) = (scene.queue("known").await, scene.queue("lost").await);
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::fanout(alternate.clone()))
                .exchange(Exchange::direct(exchange.clone()).with_alternate(alternate.clone()))
                .bind(Binding::queue(exchange.clone(), known.clone(), "known"))
                .bind(Binding::queue(alternate.clone(), lost.clone(), "")),
        )
        .await;
    let nowhere = unroutable(&scene, &exchange, &["known", "unknown"]).await;
    assert!(nowhere.is_empty(), "what the alternate exchange routes is routed: {nowhere:?}");
    scene.holds(&known, &["known"]).await;
    scene.holds(&lost, &["unknown"]).await;
    let mut binding = Topology::new();
    binding.bindings.push(Binding::queue(alternate, lost, ""));
    scene.transport().remove(&binding).await.expect("removing a binding");
    let nowhere = unroutable(&scene, &exchange, &["known", "unknown"]).await;
    assert_eq!(nowhere, ["unknown"], "what the alternate cannot route either is unroutable");
    scene.holds(&known, &["known"]).await;
}

async fn exchanges_feed_exchanges(scene: Scene) {
    let (first, second) = (scene.name("first"), scene.name("second"));
    let (all, paid) = (scene.queue("all").await, scene.queue("paid").await);
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::topic(first.clone()))
                .exchange(Exchange::direct(second.clone()))
                .bind(Binding::exchange(first.clone(), second.clone(), "order.#"))
                .bind(Binding::queue(first.clone(), all.clone(), "#"))
                .bind(Binding::queue(second.clone(), paid.clone(), "order.paid"))
                // A second way to the same queue, which must not give a second copy.
                .bind(Binding::queue(second.clone(), all.clone(), "order.paid")),
        )
        .await;
    unroutable(&scene, &first, &["order.paid", "order.created", "user.created"]).await;
    scene.holds(&paid, &["order.paid"]).await;
    scene.holds(&all, &["order.paid", "order.created", "user.created"]).await;
}

async fn exchange_ring_ends(scene: Scene) {
    let (one, two, queue) = (scene.name("one"), scene.name("two"), scene.queue("ring").await);
    scene
        .declare(
            Topology::new()
                .exchange(Exchange::fanout(one.clone()))
                .exchange(Exchange::fanout(two.clone()))
                .bind(Binding::exchange(one.clone(), two.clone(), ""))
                .bind(Binding::exchange(two.clone(), one.clone(), ""))
                .bind(Binding::queue(two.clone(), queue.clone(), "")),
        )
        .await;
    let nowhere = unroutable(&scene, &one, &["round"]).await;
    assert!(nowhere.is_empty(), "the ring leads to a queue: {nowhere:?}");
    scene.holds(&queue, &["round"]).await;
}

async fn auto_delete_exchange_goes_with_its_last_binding(scene: Scene) {
    let (exchange, queue) = (scene.name("auto"), scene.queue("bound").await);
    let spec = Exchange::direct(exchange.clone()).auto_delete();
    let one = Binding::queue(exchange.clone(), queue.clone(), "one");
    let two = Binding::queue(exchange.clone(), queue.clone(), "two");
    let only = Topology::new().exchange(spec);
    scene.declare(only.clone().bind(one.clone()).bind(two.clone())).await;
    let transport = scene.transport();
    transport.remove(&Topology::new().bind(one)).await.expect("removing a binding");
    let plan = transport.plan(&only).await.expect("a plan");
    assert!(plan.is_settled(), "an exchange with a binding stays:\n{plan}");
    transport.remove(&Topology::new().bind(two)).await.expect("removing the last binding");
    let plan = transport.plan(&only).await.expect("a plan");
    assert!(!plan.is_settled(), "an auto-delete exchange goes with its last binding:\n{plan}");
}

async fn delivery_tells_its_address(scene: Scene) {
    let (exchange, queue) = (scene.name("events"), scene.queue("told").await);
    scene
        .declare(Topology::new().exchange(Exchange::topic(exchange.clone())).bind(Binding::queue(
            exchange.clone(),
            queue.clone(),
            "#",
        )))
        .await;
    unroutable(&scene, &exchange, &["order.created"]).await;
    scene.publish(&queue, ["direct"]).await;
    let mut reader = scene.read(&queue, 2).await;
    let event = reader.next().await;
    assert_eq!(event.address().exchange_name(), exchange, "the exchange it was published to");
    assert_eq!(event.address().routing_key(), "order.created", "its routing key");
    event.ack();
    let direct = reader.next().await;
    assert_eq!(direct.address().exchange_name(), "", "the default exchange has no name");
    assert_eq!(direct.address().routing_key(), queue, "there the key is the queue");
    direct.ack();
}
