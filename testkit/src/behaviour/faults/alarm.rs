//! A broker that is low on memory: beyond what the room `flow` has, traffic over an alarm.

use std::time::Duration;

use postrider_core::{Address, ErrorKind, PublisherOptions};

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
