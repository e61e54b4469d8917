//! The network between client and broker, through a proxy that does to it what networks do.

use std::time::Duration;

use futures_util::{StreamExt, future, stream::BoxStream};
use postrider_core::{
    Address, ConnectionState, ErrorKind, Publisher, PublisherOptions, TransportEvent, Verdict,
};
use tokio::time;

use super::{
    Behaviour, Need,
    traffic::{Again, Traffic, WINDOW, numbered},
};
use crate::{
    Scene,
    harness::Fault,
    proxy::{Direction, FaultProxy},
    scene::{refused, text},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NETWORK: &[Need] = &[Need::Topology, Need::Fault(Fault::Network)];
    vec![
        Behaviour::new(traffic_survives_cuts_and_resets, NETWORK),
        Behaviour::new(silent_broker_leaves_verdicts_unknown, NETWORK),
        Behaviour::new(unheard_client_is_closed_and_comes_back, NETWORK),
        Behaviour::new(half_open_connection_is_noticed, NETWORK),
        Behaviour::new(late_network_is_a_network, NETWORK),
        Behaviour::new(dripping_network_is_a_network, NETWORK),
        Behaviour::new(network_that_comes_back_late_is_waited_for, NETWORK),
        Behaviour::new(closing_does_not_wait_for_who_is_silent, NETWORK),
        Behaviour::new(consumer_dropped_while_unheard_gives_back_in_order, NETWORK),
        Behaviour::new(idle_connection_stays_up, NETWORK),
        Behaviour::new(slow_handler_keeps_its_connection, NETWORK),
    ]
}

/// The shortest that brokers are happy with.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// A heartbeat that no behaviour here waits for.
const SLOW_HEARTBEAT: Duration = Duration::from_secs(30);

fn lost(event: &TransportEvent) -> Option<()> {
    matches!(event, TransportEvent::Lost { .. }).then_some(())
}

/// Sees that a connection was never lost.
async fn was_never_lost(mut events: BoxStream<'static, TransportEvent>) {
    while let Some(Some(event)) = future::FutureExt::now_or_never(events.next()) {
        assert_eq!(lost(&event), None, "nothing has happened to it: {event:?}");
    }
}

async fn traffic_survives_cuts_and_resets(scene: Scene) {
    const BREAKS: usize = 6;
    let (proxy, victim) = scene.connect_through_proxy(SLOW_HEARTBEAT).await;
    let (from, to) = (&victim.transport, &victim.transport);
    let mut traffic = Traffic::start(&scene, from, to, 7_000).await;
    for turn in 1..=BREAKS {
        traffic.is_sent(turn * 1_000).await;
        let mut events = victim.transport.events();
        if turn % 2 == 0 {
            proxy.cut();
        } else {
            proxy.reset();
        }
        scene.restored(&mut events, turn as u64 + 1).await;
    }
    traffic.ends(&scene, BREAKS * WINDOW, Again::Marked).await;
}

/// Sends some messages and gives their verdicts.
async fn verdicts(
    scene: &Scene,
    publisher: &dyn Publisher,
    queue: &str,
    numbers: std::ops::Range<usize>,
) -> Vec<Verdict> {
    let address = Address::queue(queue.to_owned());
    let mut confirms = Vec::new();
    for number in numbers {
        confirms.push(scene.send(publisher, numbered(&address, number)).await);
    }
    let mut verdicts = Vec::new();
    for confirm in confirms {
        verdicts.push(scene.verdict(confirm).await);
    }
    verdicts
}

/// Publishes through a network that has gone wrong: each message ends as unknown within the
/// publisher's timeout. Then it heals, and publisher and consumer go on.
async fn publishes_end_unknown(
    scene: &Scene,
    spoil: impl Fn(&FaultProxy),
    may_arrive: bool,
    is_lost: bool,
) {
    const TIMEOUT: Duration = Duration::from_secs(10);
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let (proxy, victim) = scene.connect_through_proxy(HEARTBEAT).await;
        let mut events = victim.transport.events();
        let mut reader = scene.read_on(&victim.transport, &queue, 10).await;
        let options = PublisherOptions::default().with_timeout(TIMEOUT);
        let publisher = victim.transport.publisher(options).await.expect("a publisher");
        let before = verdicts(scene, &*publisher, &queue, 0..10).await;
        assert_eq!(before, vec![Verdict::Accepted; 10], "before it goes wrong");
        let mut came = reader.bodies(10).await;
        spoil(&proxy);
        let began = scene.env().now();
        for verdict in verdicts(scene, &*publisher, &queue, 10..20).await {
            assert!(matches!(verdict, Verdict::Unknown(_)), "nobody answered, and: {verdict:?}");
        }
        let took = scene.env().now() - began;
        assert!(took <= TIMEOUT + scene.lateness(), "{TIMEOUT:?} at most, and it took {took:?}");
        if is_lost {
            scene.event(&mut events, "the event Lost", lost).await;
        }
        proxy.heal();
        scene
            .eventually("the connection is well again", async || {
                let health = victim.transport.health();
                if health.is_ready() { Ok(()) } else { Err(format!("{health:?}")) }
            })
            .await;
        let address = Address::queue(queue.clone());
        let confirm = scene.send(&*publisher, numbered(&address, 20)).await;
        assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "the publisher goes on");
        while came.last().is_none_or(|body| body != "20") {
            let delivery = reader.next().await;
            let again = came.contains(&text(&delivery));
            assert!(!again || delivery.info().redelivered, "a copy that nothing explains");
            came.push(text(&delivery));
            delivery.ack();
        }
        let unknown = came.iter().any(|body| (10..20).any(|number| *body == number.to_string()));
        assert!(may_arrive || !unknown, "what was swallowed has come: {came:?}");
        scene.has_consumers(&queue, 1).await;
        scene.settles_at(&queue, 0).await;
    }
}

async fn silent_broker_leaves_verdicts_unknown(scene: Scene) {
    publishes_end_unknown(&scene, |proxy| proxy.stall(Direction::ToClient), true, true).await;
}

/// The broker hears nothing of the client, not even heartbeats, and closes the connection.
async fn unheard_client_is_closed_and_comes_back(scene: Scene) {
    publishes_end_unknown(&scene, |proxy| proxy.stall(Direction::ToServer), true, true).await;
}

async fn half_open_connection_is_noticed(scene: Scene) {
    let swallow = |proxy: &FaultProxy| {
        proxy.swallow(Direction::ToServer);
        proxy.swallow(Direction::ToClient);
    };
    publishes_end_unknown(&scene, swallow, false, true).await;
}

/// With something left to be told to the broker, and with nothing.
async fn closing_does_not_wait_for_who_is_silent(scene: Scene) {
    let deadline = Duration::from_secs(1);
    // What a transport may take to say good-bye.
    let most = deadline + Duration::from_secs(3) + scene.lateness();
    for is_settling in [true, false] {
        let queue = scene.queue(if is_settling { "settling" } else { "waiting" }).await;
        let (proxy, victim) = scene.connect_through_proxy(SLOW_HEARTBEAT).await;
        let mut reader = scene.read_on(&victim.transport, &queue, 10).await;
        scene.publish(&queue, ["7"]).await;
        let delivery = reader.next().await;
        proxy.stall(Direction::ToClient);
        if is_settling {
            delivery.ack();
        } else {
            drop(delivery);
        }
        let began = scene.env().now();
        let closed = scene.soon("closing", victim.transport.close(deadline)).await;
        let took = scene.env().now() - began;
        assert!(took <= most, "it may take {most:?}, took {took:?} and gave {closed:?}");
        assert_eq!(victim.transport.health().state, ConnectionState::Closed, "it is closed");
        drop(reader);
        proxy.cut();
        scene.settles_at(&queue, u64::from(!is_settling)).await;
    }
}

/// A broker that hears at once that a consumer has room for more, that it wants no more, and what it
/// gives back, must not deliver that to it once more: it would be given back again, behind the rest.
async fn consumer_dropped_while_unheard_gives_back_in_order(scene: Scene) {
    const MESSAGES: usize = 60;
    const TAKEN: usize = 21;
    let moment = Duration::from_millis(50);
    let numbers: Vec<_> = (0..MESSAGES).map(|number| number.to_string()).collect();
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let (proxy, victim) = scene.connect_through_proxy(SLOW_HEARTBEAT).await;
        scene.publish(&queue, numbers.clone()).await;
        let mut reader = scene.read_on(&victim.transport, &queue, MESSAGES as u16).await;
        let mut taken = reader.take(TAKEN).await;
        scene.settles_at(&queue, 0).await;
        let last = taken.pop().expect("the last of them");
        proxy.stall(Direction::ToServer);
        for delivery in taken {
            delivery.ack();
        }
        // Until more is asked for, which nobody can see.
        time::sleep(moment).await;
        drop(reader);
        time::sleep(moment).await;
        proxy.heal();
        scene.settles_at(&queue, (MESSAGES - TAKEN) as u64).await;
        last.ack();
        scene.has_consumers(&queue, 0).await;
        scene.holds(&queue, &numbers[TAKEN..]).await;
    }
}

async fn late_network_is_a_network(scene: Scene) {
    let (proxy, connection) = scene.connect_through_proxy(SLOW_HEARTBEAT).await;
    let events = connection.transport.events();
    proxy.delay(Duration::from_millis(200));
    let (from, to) = (&connection.transport, &connection.transport);
    Traffic::start(&scene, from, to, 1_000).await.ends(&scene, 0, Again::Nothing).await;
    was_never_lost(events).await;
}

async fn dripping_network_is_a_network(scene: Scene) {
    let (proxy, connection) = scene.connect_through_proxy(SLOW_HEARTBEAT).await;
    let events = connection.transport.events();
    proxy.drip();
    let (from, to) = (&connection.transport, &connection.transport);
    Traffic::start(&scene, from, to, 200).await.ends(&scene, 0, Again::Nothing).await;
    was_never_lost(events).await;
}

/// Nobody is reached for a while: sends wait as long as they may, and a consumer that is dropped
/// meanwhile is not there afterwards.
async fn network_that_comes_back_late_is_waited_for(scene: Scene) {
    let timeout = Duration::from_secs(1);
    let (kept, left) = (scene.queue("kept").await, scene.queue("left").await);
    let (proxy, victim) = scene.connect_through_proxy(SLOW_HEARTBEAT).await;
    let mut reader = scene.read_on(&victim.transport, &kept, 10).await;
    let leaving = scene.read_on(&victim.transport, &left, 10).await;
    let patient = victim.transport.publisher(PublisherOptions::default()).await;
    let patient = patient.expect("a publisher");
    let options = PublisherOptions::default().with_timeout(timeout);
    let impatient = victim.transport.publisher(options).await.expect("a publisher");
    let mut events = victim.transport.events();
    proxy.refuse();
    proxy.cut();
    scene.event(&mut events, "the event Lost", lost).await;
    let state = victim.transport.health().state;
    assert_eq!(state, ConnectionState::Reconnecting, "while nobody is reached");
    drop(leaving);
    let address = Address::queue(kept.clone());
    let began = scene.env().now();
    let sent = scene.soon("a send's timeout", impatient.send(numbered(&address, 0))).await;
    refused(sent, &[ErrorKind::Unavailable], "a send while nobody is reached");
    let took = scene.env().now() - began;
    assert!(took >= timeout, "a send may wait {timeout:?} and was given up after {took:?}");
    let waiting = tokio::spawn(async move { patient.send(numbered(&address, 1)).await });
    time::sleep(scene.quiet()).await;
    assert!(!waiting.is_finished(), "a patient send waits");

    proxy.heal();
    scene.restored(&mut events, 2).await;
    let confirm = scene.soon("the send that waited", waiting).await.expect("its task");
    let confirm = confirm.expect("it was sent after all");
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "what waited");
    // `Unavailable` says that nothing was sent.
    assert_eq!(reader.bodies(1).await, ["1"], "the consumer that stayed");
    scene.has_consumers(&kept, 1).await;
    scene.has_consumers(&left, 0).await;
}

async fn idle_connection_stays_up(scene: Scene) {
    let queue = scene.queue("idle").await;
    let (_proxy, connection) = scene.connect_through_proxy(HEARTBEAT).await;
    let events = connection.transport.events();
    let mut reader = scene.read_on(&connection.transport, &queue, 10).await;
    // Nothing can be awaited here: it is the passing of time that is tested.
    time::sleep(4 * HEARTBEAT).await;
    scene.publish(&queue, ["after"]).await;
    assert_eq!(reader.bodies(1).await, ["after"], "after several heartbeats");
    was_never_lost(events).await;
}

async fn slow_handler_keeps_its_connection(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let (_proxy, connection) = scene.connect_through_proxy(HEARTBEAT).await;
        let events = connection.transport.events();
        let mut reader = scene.read_on(&connection.transport, &queue, 1).await;
        scene.publish(&queue, ["slow", "next"]).await;
        let slow = reader.next().await;
        time::sleep(3 * HEARTBEAT).await;
        slow.ack();
        let next = reader.next().await;
        assert_eq!((text(&next), next.info().redelivered), ("next".to_owned(), false));
        next.ack();
        was_never_lost(events).await;
        drop(reader);
        scene.settles_at(&queue, 0).await;
    }
}
