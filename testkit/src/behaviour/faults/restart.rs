//! The broker itself goes: in an orderly way, or killed.

use postrider_core::{Address, ErrorKind, PublisherOptions};

use super::{
    Behaviour, Need,
    traffic::{Again, Publishing, Traffic, WINDOW},
};
use crate::{Scene, harness::Fault, scene::refused};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const OUTAGE: &[Need] = &[Need::Topology, Need::Fault(Fault::Outage)];
    const CRASH: &[Need] = &[Need::Topology, Need::Fault(Fault::Outage), Need::Fault(Fault::Crash)];
    vec![
        Behaviour::new(traffic_survives_a_restart, OUTAGE),
        Behaviour::new(traffic_survives_a_crash, CRASH),
        Behaviour::new(connecting_to_a_stopped_broker_is_unavailable, OUTAGE),
    ]
}

async fn traffic_survives_a_restart(scene: Scene) {
    traffic_survives(scene, Fault::Outage).await;
}

async fn traffic_survives_a_crash(scene: Scene) {
    traffic_survives(scene, Fault::Crash).await;
}

/// Traffic during the fault, and messages at rest, which nobody consumes before it.
async fn traffic_survives(scene: Scene, fault: Fault) {
    const RESTING: usize = 500;
    let mut resting = Vec::new();
    for queue in [scene.queue("resting-quorum").await, scene.classic("resting-classic").await] {
        let publisher = scene.publisher_with(PublisherOptions::default()).await;
        let address = Address::queue(queue.clone());
        let outcomes = Publishing::start(publisher, address, 0..RESTING).outcomes().await;
        outcomes.are_accepted_but(0);
        resting.push(queue);
    }
    // RabbitMQ keeps in memory for a while which quorum queues a node has. It forgets one that was
    // declared just before a crash, with all that it confirmed for it.
    Traffic::queues(&scene).await;
    scene.begin(Fault::Outage).await;
    scene.end(Fault::Outage).await;
    let (publishing, consuming) = (scene.connect().await, scene.connect().await);
    let (from, to) = (&publishing.transport, &consuming.transport);
    let mut traffic = Traffic::start(&scene, from, to, 5_000).await;
    traffic.is_sent(1_000).await;
    scene.begin(fault).await;
    scene.end(fault).await;
    // How long a broker needs until every queue has a leader again is its own affair, within limits.
    traffic.ends(&scene, WINDOW, Again::MarkedUnlessForgotten).await;
    let expected: Vec<_> = (0..RESTING).map(|number| number.to_string()).collect();
    for queue in resting {
        scene.holds(&queue, &expected).await;
    }
}

async fn connecting_to_a_stopped_broker_is_unavailable(scene: Scene) {
    let queue = scene.queue("later").await;
    let mut events = scene.transport().events();
    scene.begin(Fault::Outage).await;
    let connected = scene.soon("an answer from nobody", scene.try_connect()).await;
    refused(connected, &[ErrorKind::Unavailable], "connecting to a stopped broker");
    scene.end(Fault::Outage).await;
    let later = scene.connect().await;
    scene.restored(&mut events, 2).await;
    scene.publish(&queue, ["after"]).await;
    let mut reader = scene.read_on(&later.transport, &queue, 1).await;
    assert_eq!(reader.bodies(1).await, ["after"], "a later connection works");
}
