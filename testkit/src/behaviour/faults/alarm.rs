//! A broker that is low on memory: beyond what the room `flow` has, traffic over an alarm.

use std::time::Duration;

use postrider_core::{
    Address, ErrorKind, PublisherExt, PublisherOptions, Queue, Topology, TransportEvent, Verdict,
};
use tokio::time;

use super::{
    Behaviour, Need,
    traffic::{Again, Traffic, WINDOW, numbered},
};
use crate::{Scene, harness::Fault, scene::refused};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const ALARM: &[Need] = &[Need::Topology, Need::Fault(Fault::Alarm)];
    vec![
        Behaviour::new(traffic_goes_on_after_an_alarm, ALARM),
        Behaviour::new(connecting_under_an_alarm_works, ALARM),
        Behaviour::new(
            loss_under_an_alarm_is_survived,
            &[Need::Topology, Need::Fault(Fault::Alarm), Need::Fault(Fault::ConnectionLoss)],
        ),
        Behaviour::new(
            alarm_that_ends_during_a_loss_is_over,
            &[Need::Topology, Need::Fault(Fault::Alarm), Need::Fault(Fault::Network)],
        ),
    ]
}

async fn traffic_goes_on_after_an_alarm(scene: Scene) {
    let (publishing, consuming) = (scene.connect().await, scene.connect().await);
    let (from, to) = (&publishing.transport, &consuming.transport);
    let mut traffic = Traffic::start(&scene, from, to, 10_000).await;
    traffic.is_sent(2_000).await;
    scene.begin(Fault::Alarm).await;
    // What was taken before goes on to its consumers.
    traffic.has_come(2_000).await;
    scene.end(Fault::Alarm).await;
    traffic.ends(&scene, 0, Again::Nothing).await;
}

async fn connecting_under_an_alarm_works(scene: Scene) {
    let timeout = Duration::from_secs(1);
    let queue = scene.queue("alarm").await;
    scene.publish(&queue, ["before"]).await;
    scene.begin(Fault::Alarm).await;
    let newcomer = scene.connect().await;
    let mut reader = scene.read_on(&newcomer.transport, &queue, 10).await;
    assert_eq!(reader.bodies(1).await, ["before"], "a newcomer consumes under an alarm");
    let options = PublisherOptions::default().with_timeout(timeout);
    let publisher = newcomer.transport.publisher(options).await.expect("a publisher");
    let address = Address::queue(queue.clone());
    // A broker may tell of the alarm only when something is published, which is then unknown.
    if let Ok(confirm) = publisher.send(numbered(&address, 0)).await {
        let verdict = scene.verdict(confirm).await.into_result();
        refused(verdict, &[ErrorKind::Unknown, ErrorKind::Rejected], "a publish under an alarm");
    }
    let sent = scene.soon("a blocked send's timeout", publisher.send(numbered(&address, 1))).await;
    refused(sent, &[ErrorKind::Unavailable], "a send that knows of the alarm");
    scene.end(Fault::Alarm).await;
    let confirm = scene.send(&*publisher, numbered(&address, 2)).await;
    scene.verdict(confirm).await.into_result().expect("a publish after the alarm");
    let mut came = Vec::new();
    while came.last().is_none_or(|body| body != "2") {
        came.extend(reader.bodies(1).await);
    }
    assert!(!came.contains(&"1".to_owned()), "what was not sent cannot come: {came:?}");
}

async fn loss_under_an_alarm_is_survived(scene: Scene) {
    let victim = scene.connect().await;
    let (from, to) = (&victim.transport, &victim.transport);
    let mut traffic = Traffic::start(&scene, from, to, 5_000).await;
    traffic.is_sent(1_000).await;
    scene.begin(Fault::Alarm).await;
    let mut events = from.events();
    victim.cut().await;
    scene.restored(&mut events, 2).await;
    scene.end(Fault::Alarm).await;
    traffic.ends(&scene, 2 * WINDOW, Again::Marked).await;
}

/// A connection hears of the alarm and is lost, and the next hears of none: nobody tells it that the
/// alarm is over. Where an exclusive queue cannot be declared under an alarm, the first is lost while
/// it is still being restored.
async fn alarm_that_ends_during_a_loss_is_over(scene: Scene) {
    let (proxy, victim) = scene.connect_through_proxy(Duration::from_secs(30)).await;
    let own = scene.name("own");
    let topology = Topology::new().queue(Queue::exclusive(own.clone()));
    scene.remember(topology.clone());
    victim.transport.declare(&topology).await.expect("an exclusive queue");
    let publisher = victim.transport.publisher(PublisherOptions::default()).await;
    let publisher = publisher.expect("a publisher");
    // A broker may tell of an alarm only when something is published.
    let steady = {
        let (publisher, address) = (publisher.clone(), Address::queue(own.clone()));
        tokio::spawn(async move {
            loop {
                // Under an alarm and over losses: any verdict will do.
                let _any = publisher.publish(numbered(&address, 0)).await;
                time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    let blocked =
        |event: &TransportEvent| matches!(event, TransportEvent::Blocked { .. }).then_some(());
    let lost = |event: &TransportEvent| matches!(event, TransportEvent::Lost { .. }).then_some(());
    let mut events = victim.transport.events();
    scene.begin(Fault::Alarm).await;
    scene.event(&mut events, "the event Blocked", blocked).await;
    proxy.cut();
    scene.event(&mut events, "the event Lost", lost).await;
    scene.event(&mut events, "the event Blocked after a loss", blocked).await;
    proxy.refuse();
    proxy.cut();
    scene.end(Fault::Alarm).await;
    proxy.heal();
    scene
        .eventually("the connection is well again", async || {
            let health = victim.transport.health();
            if health.is_ready() { Ok(()) } else { Err(format!("{health:?}")) }
        })
        .await;
    let confirm = scene.send(&*publisher, numbered(&Address::queue(own), 1)).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "publishing goes on");
    steady.abort();
}
