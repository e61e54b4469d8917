//! Queues and exchanges that somebody deletes under traffic.

use std::{collections::BTreeSet, sync::Arc};

use postrider_core::{
    Address, Binding, Confirm, ErrorKind, Exchange, Publisher, Queue, Topology, Transport,
    TransportEvent, Verdict,
};

use super::{
    Behaviour, Need,
    traffic::{Publishing, numbered},
};
use crate::Scene;

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(queue_deleted_and_declared_again_under_publishes, NEEDS),
        Behaviour::new(exchange_deleted_and_declared_again_under_publishes, NEEDS),
        Behaviour::new(queue_may_come_back_with_other_arguments, NEEDS),
    ]
}

/// How many messages are under way when something is deleted.
const UNDER_WAY: usize = 500;

async fn send_all(
    scene: &Scene,
    publisher: &dyn Publisher,
    address: &Address,
    numbers: std::ops::Range<usize>,
) -> Vec<Confirm> {
    let mut confirms = Vec::new();
    for number in numbers {
        confirms.push(scene.send(publisher, numbered(address, number)).await);
    }
    confirms
}

async fn verdicts(scene: &Scene, confirms: Vec<Confirm>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for confirm in confirms {
        verdicts.push(scene.verdict(confirm).await);
    }
    verdicts
}

/// By a third party, as an operator would.
async fn operator(scene: &Scene) -> Arc<dyn Transport> {
    scene.connect().await.transport
}

async fn queue_deleted_and_declared_again_under_publishes(scene: Scene) {
    let operator = operator(&scene).await;
    for queue in [Queue::durable(scene.name("quorum")), Queue::classic(scene.name("classic"))] {
        let only = Topology::new().queue(queue.clone());
        let name = scene.declare_queue(queue).await;
        let address = Address::queue(name.clone());
        let publisher = scene.publisher().await;
        let racing = send_all(&scene, &*publisher, &address, 0..UNDER_WAY).await;
        operator.remove(&only).await.expect("deleting a queue that is written to");
        let gone = send_all(&scene, &*publisher, &address, UNDER_WAY..2 * UNDER_WAY).await;
        // Those sent before may have been stored and deleted with the queue, and refused by a
        // quorum queue that goes. RabbitMQ 4.0.5 may even lose the channel that publishes to a
        // quorum queue while it is deleted, which leaves unknown what was under way.
        verdicts(&scene, racing).await;
        for verdict in verdicts(&scene, gone).await {
            let honest = matches!(verdict, Verdict::Unroutable | Verdict::Unknown(_));
            assert!(honest, "'{name}' is deleted: {verdict:?}");
        }
        operator.declare(&only).await.expect("declaring it again");
        let again = send_all(&scene, &*publisher, &address, 0..UNDER_WAY).await;
        for verdict in verdicts(&scene, again).await {
            assert_eq!(verdict, Verdict::Accepted, "'{name}' is there again");
        }
        let expected: Vec<_> = (0..UNDER_WAY).map(|number| number.to_string()).collect();
        scene.holds(&name, &expected).await;
    }
}

async fn exchange_deleted_and_declared_again_under_publishes(scene: Scene) {
    let operator = operator(&scene).await;
    let (exchange, queue) = (scene.name("exchange"), scene.queue("bound").await);
    let alone = Topology::new().exchange(Exchange::direct(exchange.clone()));
    let bound = alone.clone().bind(Binding::queue(exchange.clone(), queue.clone(), "k"));
    scene.declare(bound.clone()).await;
    let address = Address::exchange(exchange.clone(), "k");
    let publisher = scene.publisher().await;
    let mut racing = Publishing::start(publisher.clone(), address.clone(), 0..4_000);
    racing.reaches(500).await;
    operator.remove(&alone).await.expect("deleting an exchange that is written to");
    let confirm = scene.send(&*publisher, numbered(&address, 4_000)).await;
    let verdict = scene.verdict(confirm).await;
    assert_ne!(verdict, Verdict::Accepted, "'{exchange}' is deleted");
    let outcomes = racing.outcomes().await;
    assert!(outcomes.unsent.is_empty(), "each was sent: {:?}", outcomes.unsent.len());
    let confirm = scene.send(&*publisher, numbered(&address, 4_001)).await;
    let verdict = scene.verdict(confirm).await;
    assert!(matches!(verdict, Verdict::Rejected(_)), "'{exchange}' is deleted: {verdict:?}");

    operator.declare(&bound).await.expect("declaring it again");
    // Another connection may see it a moment later.
    scene
        .eventually("the exchange takes publishes again", async || {
            let confirm = scene.send(&*publisher, numbered(&address, 4_002)).await;
            match scene.verdict(confirm).await {
                Verdict::Accepted => Ok(()),
                verdict => Err(format!("{verdict:?}")),
            }
        })
        .await;
    // What was accepted is in the queue, and nothing but that and what is unknown.
    let mut reader = scene.read(&queue, 100).await;
    let mut came = BTreeSet::new();
    loop {
        let number: usize = reader.bodies(1).await[0].parse().expect("a number");
        if number == 4_002 {
            break;
        }
        assert!(came.insert(number), "message {number} came twice");
    }
    let lost = outcomes.accepted.difference(&came).next();
    assert_eq!(lost, None, "accepted and lost");
    let strange = came
        .iter()
        .find(|number| !outcomes.accepted.contains(number) && !outcomes.unknown.contains(number));
    assert_eq!(strange, None, "it was refused and came all the same");
}

async fn queue_may_come_back_with_other_arguments(scene: Scene) {
    let operator = operator(&scene).await;
    let name = scene.name("changing");
    let kinds = [Queue::durable(name.clone()), Queue::classic(name.clone()).with_max_length(1_000)];
    scene.remember(Topology::new().queue(kinds[0].clone()));
    let publisher = scene.publisher().await;
    let address = Address::queue(name.clone());
    scene.transport().declare(&Topology::new().queue(kinds[0].clone())).await.expect("the first");
    for turn in 0..4 {
        let mut events = scene.transport().events();
        let mut reader = scene.read(&name, 10).await;
        let confirm = scene.send(&*publisher, numbered(&address, turn)).await;
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "turn {turn}");
        assert_eq!(reader.bodies(1).await, [turn.to_string()], "turn {turn}");
        let (old, new) = (&kinds[turn % 2], &kinds[(turn + 1) % 2]);
        operator.remove(&Topology::new().queue(old.clone())).await.expect("deleting it");
        operator.declare(&Topology::new().queue(new.clone())).await.expect("another of its name");
        let error = reader.ends().await.expect("its queue is gone, and something says so");
        assert_eq!(error.kind(), ErrorKind::NotFound, "why the consumer ended: {error}");
        let told = |event: &TransportEvent| match event {
            TransportEvent::ConsumerCancelled { queue, .. } => Some(queue.clone()),
            _ => None,
        };
        let told = scene.event(&mut events, "the event ConsumerCancelled", told).await;
        assert_eq!(told, name, "the event names the queue");
    }
}
