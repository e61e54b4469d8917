//! Declaring: what is idempotent, what conflicts, and what no broker takes.

use std::time::Duration;

use postrider_core::{
    Action, Address, Binding, DeadLetter, Entity, Envelope, ErrorKind, Exchange, Message, Overflow,
    Queue, Topology, Verdict,
};

use super::{Behaviour, Need};
use crate::{Scene, scene::refused};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(declaring_again_changes_nothing, NEEDS),
        Behaviour::new(inequivalent_queue_names_the_argument, NEEDS),
        Behaviour::new(a_queue_is_not_made_exclusive_later, NEEDS),
        Behaviour::new(inequivalent_exchange_names_the_argument, NEEDS),
        Behaviour::new(plan_tells_and_changes_nothing, NEEDS),
        Behaviour::new(plan_tells_conflicts, NEEDS),
        Behaviour::new(reserved_and_invalid_names_are_refused, NEEDS),
        Behaviour::new(queues_that_no_broker_takes_are_refused, NEEDS),
        Behaviour::new(binding_needs_both_ends, NEEDS),
        Behaviour::new(default_exchange_cannot_be_bound, NEEDS),
        Behaviour::new(removing_is_idempotent, NEEDS),
        Behaviour::new(removing_a_binding_keeps_its_ends, NEEDS),
        Behaviour::new(removing_an_exchange_removes_its_bindings, NEEDS),
    ]
}

fn shop(scene: &Scene) -> Topology {
    let (exchange, queue) = (scene.name("events"), scene.name("billing"));
    Topology::new()
        .exchange(Exchange::topic(exchange.clone()))
        .queue(
            Queue::durable(queue.clone())
                .with_delivery_limit(5)
                .with_message_ttl(Duration::from_secs(3_600))
                .with_max_length(1_000)
                .with_overflow(Overflow::RejectPublish)
                .with_dead_letter(DeadLetter::to("").with_routing_key("graves")),
        )
        .bind(Binding::queue(exchange, queue, "order.*"))
}

async fn declaring_again_changes_nothing(scene: Scene) {
    let topology = shop(&scene);
    scene.declare(topology.clone()).await;
    let queue = topology.queues[0].name.to_string();
    scene.publish(&queue, ["kept"]).await;
    let other = scene.connect().await.transport;
    for transport in [scene.transport(), &other] {
        for _ in 0..3 {
            transport.declare(&topology).await.expect("declaring again");
        }
    }
    scene.holds(&queue, &["kept"]).await;
    // One binding, however often it was declared: one copy.
    let event = Address::exchange(topology.exchanges[0].name.clone(), "order.new");
    let message = Message::new("once");
    scene.publish_envelopes([Envelope::new(event, message)]).await;
    scene.holds(&queue, &["once"]).await;
}

/// Declares `there`, then `wanted`, and sees the error name `argument` and do no harm.
async fn conflicts(scene: &Scene, there: Topology, wanted: &Topology, argument: &str) {
    scene.declare(there.clone()).await;
    let error = refused(
        scene.transport().declare(wanted).await,
        &[ErrorKind::Mismatch],
        &format!("declaring with another {argument}"),
    );
    let named = error.context().any(|(name, value)| name == "argument" && value == argument);
    assert!(named, "the error must name the argument '{argument}': {error:?}");
    assert!(error.to_string().contains(argument), "people must see it too: {error}");
    scene.transport().declare(&there).await.expect("the one that is there is as it was");
}

async fn inequivalent_queue_names_the_argument(scene: Scene) {
    let name = |base: &str| scene.name(base);
    let short = Duration::from_secs(60);
    let letters = DeadLetter::to(scene.name("graves"));
    type Change = (&'static str, fn(Queue, &DeadLetter, Duration) -> Queue);
    let changes: [Change; 7] = [
        ("message_ttl", |queue, _, ttl| queue.with_message_ttl(ttl)),
        ("expires", |queue, _, ttl| queue.with_expires(ttl * 60)),
        ("max_length", |queue, _, _| queue.with_max_length(10)),
        ("max_length_bytes", |queue, _, _| queue.with_max_length_bytes(10)),
        ("dead_letter", |queue, letters, _| queue.with_dead_letter(letters.clone())),
        ("max_priority", |queue, _, _| queue.with_max_priority(5)),
        ("single_active_consumer", |queue, _, _| queue.single_active_consumer()),
    ];
    for (argument, change) in changes {
        let there = Queue::classic(name(argument));
        let wanted = change(there.clone(), &letters, short);
        let (there, wanted) = (Topology::new().queue(there), Topology::new().queue(wanted));
        conflicts(&scene, there, &wanted, argument).await;
    }
    let there = Queue::classic(name("kind"));
    let wanted = Queue::durable(name("kind")).without_delivery_limit();
    let (there, wanted) = (Topology::new().queue(there), Topology::new().queue(wanted));
    conflicts(&scene, there, &wanted, "kind").await;
    // Nobody's connection or publisher suffers from it.
    let queue = scene.queue("after").await;
    scene.publish(&queue, ["after"]).await;
    scene.holds(&queue, &["after"]).await;
}

async fn a_queue_is_not_made_exclusive_later(scene: Scene) {
    let name = scene.name("everybodys");
    let there = Topology::new().queue(Queue::classic(name.clone()));
    let mut wanted = Queue::classic(name);
    wanted.exclusive = true;
    conflicts(&scene, there, &Topology::new().queue(wanted), "exclusive").await;
}

async fn inequivalent_exchange_names_the_argument(scene: Scene) {
    let there = Exchange::direct(scene.name("kind"));
    let wanted = Exchange::topic(scene.name("kind"));
    let (there, wanted) = (Topology::new().exchange(there), Topology::new().exchange(wanted));
    conflicts(&scene, there, &wanted, "kind").await;
    let there = Exchange::direct(scene.name("internal"));
    let wanted = there.clone().internal();
    let (there, wanted) = (Topology::new().exchange(there), Topology::new().exchange(wanted));
    conflicts(&scene, there, &wanted, "internal").await;
    let there = Exchange::direct(scene.name("alternate"));
    let wanted = there.clone().with_alternate(scene.name("elsewhere"));
    let (there, wanted) = (Topology::new().exchange(there), Topology::new().exchange(wanted));
    conflicts(&scene, there, &wanted, "alternate").await;
}

async fn plan_tells_and_changes_nothing(scene: Scene) {
    let topology = shop(&scene);
    scene.remember(topology.clone());
    let transport = scene.transport();
    for _ in 0..2 {
        let plan = transport.plan(&topology).await.expect("a plan of what is missing");
        assert_eq!(plan.steps.len(), 3, "a step for each entity:\n{plan}");
        assert!(!plan.is_settled(), "there is something to do:\n{plan}");
        for step in &plan.steps {
            let expected = match step.entity {
                Entity::Exchange(_) | Entity::Queue(_) => matches!(step.action, Action::Create),
                // A broker may not tell of bindings.
                Entity::Binding(_) => matches!(step.action, Action::Create | Action::Ensure),
            };
            assert!(expected, "what is missing would be created:\n{plan}");
        }
        let queue = &topology.queues[0].name;
        let info = transport.queue_info(queue).await.expect("asking for a missing queue");
        assert_eq!(info, None, "a plan creates nothing");
    }
    transport.declare(&topology).await.expect("declaring what was planned");
    let plan = transport.plan(&topology).await.expect("a plan of what is there");
    assert!(plan.is_settled(), "after declaring there is nothing to do:\n{plan}");
}

async fn plan_tells_conflicts(scene: Scene) {
    let there = Queue::classic(scene.name("ttl"));
    let wanted = there.clone().with_message_ttl(Duration::from_secs(60));
    scene.declare_queue(there).await;
    let missing = Queue::durable(scene.name("missing"));
    let topology = Topology::new().queue(wanted).queue(missing.clone());
    let plan = scene.transport().plan(&topology).await.expect("a conflict is part of the plan");
    let differences: Vec<_> = plan.differences().collect();
    assert_eq!(differences.len(), 1, "one queue differs:\n{plan}");
    let (entity, difference) = differences[0];
    assert_eq!(difference.argument, "message_ttl", "the argument that differs:\n{plan}");
    assert_ne!(difference.wanted, difference.found, "both values are told:\n{plan}");
    let Entity::Queue(queue) = entity else {
        panic!("the entity that differs is a queue:\n{plan}");
    };
    assert_eq!(queue.name, scene.name("ttl"), "the queue that differs:\n{plan}");
    assert!(!plan.is_settled(), "a conflict is not settled:\n{plan}");
    let info = scene.transport().queue_info(&missing.name).await.expect("asking");
    assert_eq!(info, None, "a plan creates nothing");
}

async fn reserved_and_invalid_names_are_refused(scene: Scene) {
    let declare = async |topology: Topology, kind: ErrorKind, what: &str| {
        refused(scene.transport().declare(&topology).await, &[kind], what);
    };
    let queue = |name: String| Topology::new().queue(Queue::classic(name));
    let exchange = |name: String| Topology::new().exchange(Exchange::direct(name));
    let reserved = format!("amq.{}", scene.name("mine"));
    declare(queue(reserved.clone()), ErrorKind::Unauthorized, "a queue named amq.…").await;
    declare(exchange(reserved), ErrorKind::Unauthorized, "an exchange named amq.…").await;
    declare(queue("x".repeat(256)), ErrorKind::Invalid, "a queue name of 256 bytes").await;
    declare(exchange("x".repeat(256)), ErrorKind::Invalid, "an exchange name of 256 bytes").await;
    declare(queue(String::new()), ErrorKind::Invalid, "a queue without a name").await;
    declare(exchange(String::new()), ErrorKind::Invalid, "an exchange without a name").await;
    // 255 bytes are allowed.
    let mut longest = scene.name("longest");
    longest.push_str(&"x".repeat(255 - longest.len()));
    scene.classic_named(&longest).await;
}

async fn queues_that_no_broker_takes_are_refused(scene: Scene) {
    let name = scene.name("wrong");
    let mut exclusive_quorum = Queue::durable(name.clone());
    exclusive_quorum.exclusive = true;
    for (queue, what) in [
        (Queue::classic(name.clone()).transient(), "a transient queue that is not exclusive"),
        (exclusive_quorum, "an exclusive quorum queue"),
        (Queue::durable(name.clone()).transient(), "a quorum queue that is not durable"),
        (Queue::classic(name.clone()).with_expires(Duration::ZERO), "a queue that lives no time"),
    ] {
        let declared = scene.transport().declare(&Topology::new().queue(queue)).await;
        refused(declared, &[ErrorKind::Invalid], what);
        let info = scene.transport().queue_info(&name).await.expect("asking");
        assert_eq!(info, None, "{what} must not be there");
    }
}

async fn binding_needs_both_ends(scene: Scene) {
    let (exchange, queue) = (scene.name("exchange"), scene.classic("queue").await);
    scene.declare(Topology::new().exchange(Exchange::direct(exchange.clone()))).await;
    let missing = scene.name("missing");
    for binding in [
        Binding::queue(exchange.clone(), missing.clone(), "k"),
        Binding::queue(missing.clone(), queue.clone(), "k"),
        Binding::exchange(exchange.clone(), missing.clone(), "k"),
        Binding::exchange(missing.clone(), exchange.clone(), "k"),
    ] {
        let what = format!("declaring the binding {binding}");
        let declared = scene.transport().declare(&Topology::new().bind(binding)).await;
        refused(declared, &[ErrorKind::NotFound], &what);
    }
}

async fn default_exchange_cannot_be_bound(scene: Scene) {
    let queue = scene.classic("queue").await;
    let binding = Binding::queue("", queue, "another-name");
    let declared = scene.transport().declare(&Topology::new().bind(binding)).await;
    let kinds = [ErrorKind::Invalid, ErrorKind::Unauthorized];
    refused(declared, &kinds, "a binding of the default exchange");
}

async fn removing_is_idempotent(scene: Scene) {
    let topology = shop(&scene);
    let transport = scene.transport();
    transport.remove(&topology).await.expect("removing what was never there");
    scene.declare(topology.clone()).await;
    let queue = topology.queues[0].name.to_string();
    scene.publish(&queue, ["lost"]).await;
    for _ in 0..2 {
        transport.remove(&topology).await.expect("removing");
        let info = transport.queue_info(&queue).await.expect("asking");
        assert_eq!(info, None, "a removed queue is gone");
    }
    // Declared again it is new and empty, and may have other arguments.
    scene.declare(Topology::new().queue(Queue::classic(queue.clone()))).await;
    assert_eq!(scene.info(&queue).await.ready, 0, "a queue declared anew is empty");
}

async fn removing_a_binding_keeps_its_ends(scene: Scene) {
    let topology = shop(&scene);
    scene.declare(topology.clone()).await;
    let mut binding = Topology::new();
    binding.bindings.clone_from(&topology.bindings);
    scene.transport().remove(&binding).await.expect("removing a binding");
    let queue = topology.queues[0].name.to_string();
    scene.publish(&queue, ["direct"]).await;
    scene.holds(&queue, &["direct"]).await;
    assert_unroutable(&scene, &topology.exchanges[0].name).await;
}

async fn assert_unroutable(scene: &Scene, exchange: &str) {
    let publisher = scene.publisher().await;
    let address = Address::exchange(exchange.to_owned(), "order.new");
    let envelope = Envelope::new(address, Message::new("nobody"));
    let confirm = scene.send(&*publisher, envelope).await;
    let verdict = scene.verdict(confirm).await;
    assert_eq!(verdict, Verdict::Unroutable, "the binding of '{exchange}' is gone");
}

async fn removing_an_exchange_removes_its_bindings(scene: Scene) {
    let topology = shop(&scene);
    scene.declare(topology.clone()).await;
    let mut exchange = Topology::new();
    exchange.exchanges.clone_from(&topology.exchanges);
    scene.transport().remove(&exchange).await.expect("removing an exchange");
    scene.transport().declare(&exchange).await.expect("declaring it anew");
    assert_unroutable(&scene, &topology.exchanges[0].name).await;
}
