//! Recovery: what comes back after a lost connection or a stopped broker, and what is never lost.

use std::{collections::BTreeSet, time::Duration};

use postrider_core::{
    Address, Binding, ConnectionState, ConsumerOptions, Envelope, ErrorKind, Exchange, Message,
    Publisher, PublisherExt, PublisherOptions, Queue, Topology, TransportEvent, Verdict,
};

use super::{Behaviour, Need};
use crate::{
    Scene,
    harness::Fault,
    scene::{refused, text},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const LOSS: &[Need] = &[Need::Topology, Need::Fault(Fault::ConnectionLoss)];
    const OUTAGE: &[Need] = &[Need::Topology, Need::Fault(Fault::Outage)];
    vec![
        Behaviour::new(loss_and_recovery_are_events, LOSS),
        Behaviour::new(consumer_goes_on_after_a_loss, LOSS),
        Behaviour::new(unsettled_messages_are_redelivered_after_a_loss, LOSS),
        Behaviour::new(publisher_goes_on_after_a_loss, LOSS),
        Behaviour::new(exclusive_queue_comes_back_after_a_loss, LOSS),
        Behaviour::new(rapid_losses_are_survived, LOSS),
        Behaviour::new(loss_of_one_connection_is_nobody_elses, LOSS),
        Behaviour::new(accepted_messages_survive_losses, LOSS),
        Behaviour::new(closing_while_it_comes_back_leaves_nothing, LOSS),
        Behaviour::new(durable_things_survive_an_outage, OUTAGE),
        Behaviour::new(publish_waits_for_the_end_of_an_outage, OUTAGE),
        Behaviour::new(publish_fails_when_an_outage_lasts, OUTAGE),
        Behaviour::new(closing_during_an_outage_does_not_hang, OUTAGE),
    ]
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn loss_and_recovery_are_events(scene: Scene) {
    let connection = scene.connect().await;
    let mut events = connection.transport.events();
    for epoch in 2..=4 {
        connection.cut().await;
        let cause = scene
            .event(&mut events, "the event Lost", |event| match event {
                TransportEvent::Lost { cause } => Some(cause.clone()),
                _ => None,
            })
            .await;
        assert!(!cause.is_empty(), "the event says why the connection was lost");
        scene.restored(&mut events, epoch).await;
        let health = connection.transport.health();
        assert_eq!(health.state, ConnectionState::Connected, "health after recovery: {health:?}");
    }
}

async fn consumer_goes_on_after_a_loss(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let connection = scene.connect().await;
        let mut events = connection.transport.events();
        let mut reader = scene.read_on(&connection.transport, &queue, 10).await;
        scene.publish(&queue, ["before"]).await;
        assert_eq!(reader.bodies(1).await, ["before"], "before the loss");
        scene.has_consumers(&queue, 1).await;
        connection.cut().await;
        scene.restored(&mut events, 2).await;
        scene.publish(&queue, numbers(0..20)).await;
        // The ack from before may not have arrived; then its message comes again, marked so.
        let mut got = Vec::new();
        while got.len() < 20 {
            let delivery = reader.next().await;
            let body = text(&delivery);
            if body == "before" {
                assert!(delivery.info().redelivered, "only what was delivered comes again");
            } else {
                got.push(body);
            }
            delivery.ack();
        }
        assert_eq!(got, numbers(0..20), "the consumer of '{queue}' goes on in order");
        scene.has_consumers(&queue, 1).await;
    }
}

async fn unsettled_messages_are_redelivered_after_a_loss(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        scene.publish(&queue, numbers(0..10)).await;
        let connection = scene.connect().await;
        let mut events = connection.transport.events();
        let mut reader = scene.read_on(&connection.transport, &queue, 5).await;
        let held = reader.take(5).await;
        connection.cut().await;
        scene.restored(&mut events, 2).await;
        let mut came = Vec::new();
        for _ in 0..10 {
            let delivery = reader.next().await;
            let number: usize = text(&delivery).parse().expect("a number");
            let info = delivery.info().clone();
            assert_eq!(info.redelivered, number < 5, "message {number}: {info:?}");
            assert_eq!(info.attempt > 1, number < 5, "message {number}: {info:?}");
            came.push(text(&delivery));
            delivery.ack();
        }
        assert_eq!(came, numbers(0..10), "what was unsettled goes first, in order");
        drop(held);
        drop(reader);
        scene.settles_at(&queue, 0).await;
    }
}

async fn publisher_goes_on_after_a_loss(scene: Scene) {
    let queue = scene.queue("publisher").await;
    let connection = scene.connect().await;
    let publisher = connection.transport.publisher(PublisherOptions::default()).await;
    let publisher = publisher.expect("a publisher");
    let mut stored = Vec::new();
    for n in 0..5 {
        // At once after the loss: the send waits until the connection is back.
        connection.cut().await;
        publish_until_accepted(&scene, &*publisher, &queue, n).await;
        stored.push(n.to_string());
    }
    let there: BTreeSet<_> = drain(&scene, &queue).await.into_iter().collect();
    assert_eq!(there, stored.into_iter().collect(), "what was accepted after each loss is there");
}

/// Publishes again and again until the broker says that it has it: at least once.
async fn publish_until_accepted(scene: &Scene, publisher: &dyn Publisher, queue: &str, n: usize) {
    for _ in 0..50 {
        let message = Message::new(n.to_string()).with_message_id(n.to_string());
        let envelope = Envelope::new(Address::queue(queue.to_owned()), message);
        match scene.soon("a send", publisher.send(envelope)).await {
            Ok(confirm) => match scene.verdict(confirm).await {
                Verdict::Accepted => return,
                Verdict::Unknown(_) => {}
                verdict => panic!("message {n} during losses: {verdict:?}"),
            },
            Err(error) => assert!(error.is_retryable(), "message {n} during losses: {error}"),
        }
    }
    panic!("message {n} was not accepted in 50 tries");
}

/// Everything that a queue holds, acked.
async fn drain(scene: &Scene, queue: &str) -> Vec<String> {
    let mut reader = scene.read(queue, 200).await;
    let mut bodies = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(1), reader.consumer().recv()).await {
            Ok(Some(delivery)) => {
                let delivery = delivery.expect("a delivery of a healthy queue");
                bodies.push(text(&delivery));
                delivery.ack();
            }
            Ok(None) => panic!("the consumer of '{queue}' ended"),
            Err(_) => return bodies,
        }
    }
}

async fn exclusive_queue_comes_back_after_a_loss(scene: Scene) {
    let connection = scene.connect().await;
    let (exchange, queue) = (scene.name("events"), scene.name("inbox"));
    let topology = Topology::new()
        .exchange(Exchange::topic(exchange.clone()))
        .queue(Queue::exclusive(queue.clone()))
        .bind(Binding::queue(exchange.clone(), queue.clone(), "order.*"));
    scene.remember(topology.clone());
    connection.transport.declare(&topology).await.expect("an exclusive queue with a binding");
    let mut events = connection.transport.events();
    let mut reader = scene.read_on(&connection.transport, &queue, 10).await;
    for epoch in 2..=3 {
        // The queue goes with its connection, and this with it.
        scene.publish(&queue, ["in hand"]).await;
        let held = reader.next().await;
        connection.cut().await;
        scene.restored(&mut events, epoch).await;
        drop(held);
        let address = Address::exchange(exchange.clone(), "order.created");
        let event = Envelope::new(address, Message::new(epoch.to_string()));
        scene.publish_envelopes([event]).await;
        assert_eq!(
            reader.bodies(1).await,
            [epoch.to_string()],
            "an exclusive queue comes back with its binding and its consumer"
        );
    }
    let other = scene.transport().consumer(&queue, ConsumerOptions::default()).await;
    refused(other, &[ErrorKind::Locked], "consuming it from elsewhere");
}

async fn rapid_losses_are_survived(scene: Scene) {
    let queue = scene.queue("rapid").await;
    let connection = scene.connect().await;
    let mut reader = scene.read_on(&connection.transport, &queue, 10).await;
    for _ in 0..5 {
        connection.cut().await;
        tokio::task::yield_now().await;
    }
    scene
        .eventually("the connection is back", async || {
            let health = connection.transport.health();
            if health.is_ready() { Ok(()) } else { Err(format!("{health:?}")) }
        })
        .await;
    scene.publish(&queue, numbers(0..50)).await;
    assert_eq!(reader.bodies(50).await, numbers(0..50), "after five losses in a row");
    scene.has_consumers(&queue, 1).await;
    let health = connection.transport.health();
    assert_eq!(health.consumers.len(), 1, "one consumer, however often it came back: {health:?}");
}

async fn loss_of_one_connection_is_nobody_elses(scene: Scene) {
    let queue = scene.queue("bystander").await;
    let (victim, bystander) = (scene.connect().await, scene.connect().await);
    let mut lost = victim.transport.events();
    let mut reader = scene.read_on(&bystander.transport, &queue, 5).await;
    scene.publish(&queue, numbers(0..5)).await;
    let held = reader.take(5).await;
    victim.cut().await;
    scene.restored(&mut lost, 2).await;
    let health = bystander.transport.health();
    assert_eq!(health.state, ConnectionState::Connected, "another connection: {health:?}");
    reader.is_silent().await;
    for delivery in held {
        delivery.ack();
    }
    drop(reader);
    scene.settles_at(&queue, 0).await;
}

/// The invariant of the whole framework: what was accepted is received, whatever happened.
async fn accepted_messages_survive_losses(scene: Scene) {
    let count = scene.scaled(10_000);
    let queue = scene.queue("invariant").await;
    let connection = scene.connect().await;
    let options = PublisherOptions::default().with_window(500);
    let publisher = connection.transport.publisher(options).await.expect("a publisher");
    let mut pending: BTreeSet<usize> = (0..count).collect();
    let mut round = 0;
    while !pending.is_empty() {
        round += 1;
        assert!(round < 50, "{} messages are never accepted", pending.len());
        let mut confirms = Vec::new();
        for (sent, n) in pending.iter().copied().enumerate() {
            if round <= 5 && sent == count / 20 * round {
                connection.cut().await;
            }
            let message = Message::new(n.to_string());
            let envelope = Envelope::new(Address::queue(queue.clone()), message);
            match scene.soon("a send", publisher.send(envelope)).await {
                Ok(confirm) => confirms.push((n, confirm)),
                Err(error) => assert!(error.is_retryable(), "message {n}: {error}"),
            }
        }
        for (n, confirm) in confirms {
            match scene.verdict(confirm).await {
                Verdict::Accepted => {
                    pending.remove(&n);
                }
                Verdict::Unknown(_) => {}
                verdict => panic!("message {n} during losses: {verdict:?}"),
            }
        }
    }
    let received: BTreeSet<usize> =
        drain(&scene, &queue).await.iter().map(|body| body.parse().expect("a number")).collect();
    let lost: Vec<_> = (0..count).filter(|n| !received.contains(n)).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
}

/// A connection that is made while its transport is closed is nobody's: the suite counts what is left.
async fn closing_while_it_comes_back_leaves_nothing(scene: Scene) {
    let queue = scene.queue("closing").await;
    // From the first pause before reconnecting to some time after everything is back.
    for moment in (0..300).step_by(30).map(Duration::from_millis) {
        let connection = scene.connect().await;
        let transport = &connection.transport;
        let topology = (0..5).fold(Topology::new(), |topology, n| {
            topology.queue(Queue::exclusive(scene.name(&format!("exclusive-{n}"))))
        });
        transport.declare(&topology).await.expect("declared");
        let reader = scene.read_on(transport, &queue, 1).await;
        connection.cut().await;
        tokio::time::sleep(moment).await;
        drop(reader);
        scene.soon("closing", transport.close(Duration::from_secs(5))).await.expect("closed");
        assert_eq!(transport.health().state, ConnectionState::Closed, "closed after {moment:?}");
    }
}

async fn outage(scene: &Scene) {
    scene.begin(Fault::Outage).await;
    scene
        .eventually("the transport notices the outage", async || {
            let state = scene.transport().health().state;
            if state == ConnectionState::Reconnecting { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;
}

async fn durable_things_survive_an_outage(scene: Scene) {
    let (quorum, classic) = (scene.queue("quorum").await, scene.classic("classic").await);
    let exclusive = scene.declare_queue(Queue::exclusive(scene.name("exclusive"))).await;
    let exchange = scene.name("exchange");
    scene
        .declare(Topology::new().exchange(Exchange::direct(exchange.clone())).bind(Binding::queue(
            exchange.clone(),
            quorum.clone(),
            "k",
        )))
        .await;
    for queue in [&quorum, &classic, &exclusive] {
        scene.publish(queue, ["durable"]).await;
    }
    scene.publish_message(&classic, Message::new("transient").transient()).await;
    let mut reader = scene.read(&quorum, 10).await;
    let held = reader.next().await;
    let mut events = scene.transport().events();
    outage(&scene).await;
    scene.end(Fault::Outage).await;
    scene.restored(&mut events, 2).await;

    let again = reader.next().await;
    assert_eq!(text(&again), "durable", "a durable message outlives the broker's restart");
    assert!(again.info().redelivered, "it was delivered before: {:?}", again.info());
    again.ack();
    drop(held);
    scene.holds(&classic, &["durable"]).await;
    // The exclusive queue is declared anew, and what it held went with the old one.
    assert_eq!(scene.info(&exclusive).await.ready, 0, "an exclusive queue is made anew");
    let address = Address::exchange(exchange, "k");
    scene.publish_envelopes([Envelope::new(address, Message::new("bound"))]).await;
    assert_eq!(reader.bodies(1).await, ["bound"], "durable bindings outlive a restart");
}

async fn publish_waits_for_the_end_of_an_outage(scene: Scene) {
    let queue = scene.queue("patient").await;
    let publisher = scene.publisher().await;
    outage(&scene).await;
    let waiting = {
        let queue = queue.clone();
        tokio::spawn(async move {
            // How long the broker is away is not its matter, so nothing here is timed.
            let envelope = || Envelope::new(Address::queue(queue.clone()), Message::new("7"));
            while publisher.publish(envelope()).await.is_err() {}
        })
    };
    tokio::time::sleep(scene.quiet()).await;
    assert!(!waiting.is_finished(), "nothing is accepted during an outage");
    scene.end(Fault::Outage).await;
    scene.soon("the publish after the outage", waiting).await.expect("the publishing task");
    let there = drain(&scene, &queue).await;
    assert!(there.contains(&"7".to_owned()), "what waited is stored: {there:?}");
}

async fn publish_fails_when_an_outage_lasts(scene: Scene) {
    let timeout = Duration::from_secs(1);
    let queue = scene.queue("impatient").await;
    let options = PublisherOptions::default().with_timeout(timeout);
    let publisher = scene.publisher_with(options).await;
    let mut events = scene.transport().events();
    outage(&scene).await;
    let began = scene.env().now();
    let envelope = Envelope::new(Address::queue(queue.clone()), Message::new("never"));
    let sent = scene.soon("a send's timeout", publisher.send(envelope)).await;
    refused(sent, &[ErrorKind::Unavailable], "a send while there is no broker");
    let took = scene.env().now() - began;
    assert!(took >= timeout, "a send may wait {timeout:?} and was given up after {took:?}");
    scene.end(Fault::Outage).await;
    scene.restored(&mut events, 2).await;
    scene.publish(&queue, ["after"]).await;
    // `Unavailable` says that nothing was sent.
    scene.holds(&queue, &["after"]).await;
}

async fn closing_during_an_outage_does_not_hang(scene: Scene) {
    let queue = scene.queue("closing").await;
    let other = scene.connect().await.transport;
    let mut waiting = scene.read_on(&other, &queue, 1).await;
    let waiting = tokio::spawn(async move { waiting.ends().await });
    outage(&scene).await;
    let closed = scene.soon("closing without a broker", other.close(Duration::from_secs(1))).await;
    if let Err(error) = closed {
        assert_eq!(error.kind(), ErrorKind::TimedOut, "closing without a broker: {error}");
    }
    scene.soon("the end of a waiting consumer", waiting).await.expect("the consuming task");
    assert_eq!(other.health().state, ConnectionState::Closed, "it is closed");
    let mut events = scene.transport().events();
    scene.end(Fault::Outage).await;
    scene.restored(&mut events, 2).await;
    assert_eq!(other.health().state, ConnectionState::Closed, "what is closed stays closed");
}
