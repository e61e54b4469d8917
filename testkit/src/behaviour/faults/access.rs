//! Who may connect, and what becomes of one whose permissions are taken away.

use postrider_core::{
    Address, ConsumerOptions, ErrorKind, PublisherOptions, Queue, Topology, TransportEvent, Verdict,
};

use super::{Behaviour, Need, traffic::numbered};
use crate::{
    Scene,
    harness::{Fault, Route},
    scene::refused,
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology, Need::Fault(Fault::Refusal)];
    vec![
        Behaviour::new(strangers_are_refused_with_the_reason, NEEDS),
        Behaviour::new(revoked_permissions_are_errors_until_given_back, NEEDS),
        Behaviour::new(consumer_without_permission_ends_at_its_return, NEEDS),
    ]
}

async fn strangers_are_refused_with_the_reason(scene: Scene) {
    let wrong = "a-wrong-secret";
    let route = Route { password: Some(wrong.to_owned()), ..Route::default() };
    let connected = scene.soon("an answer", scene.connect_by(&route)).await;
    let error = refused(connected, &[ErrorKind::Unauthorized], "a wrong password");
    assert!(!format!("{error} {error:?}").contains(wrong), "the password is told");
    let route = Route { virtual_host: Some(scene.name("nowhere")), ..Route::default() };
    let connected = scene.soon("an answer", scene.connect_by(&route)).await;
    // Some brokers give strangers no reason.
    let kinds = &[ErrorKind::NotFound, ErrorKind::Unauthorized];
    refused(connected, kinds, "a virtual host that is not there");
}

async fn revoked_permissions_are_errors_until_given_back(scene: Scene) {
    let queue = scene.queue("queue").await;
    let other = Topology::new().queue(Queue::durable(scene.name("other")));
    scene.remember(other.clone());
    let address = Address::queue(queue.clone());
    let user = scene.connect().await;
    let mut reader = scene.read_on(&user.transport, &queue, 10).await;
    user.permit(false).await;

    let kinds = &[ErrorKind::Unauthorized];
    refused(user.transport.declare(&other).await, kinds, "declaring without permission");
    let consumer = user.transport.consumer(&queue, ConsumerOptions::default()).await;
    refused(consumer, kinds, "consuming without permission");
    // A new publisher: a broker may remember for a while what an old one was allowed.
    let publisher = user.transport.publisher(PublisherOptions::default()).await;
    let publisher = publisher.expect("a publisher");
    let confirm = scene.send(&*publisher, numbered(&address, 0)).await;
    let verdict = scene.verdict(confirm).await;
    assert!(matches!(verdict, Verdict::Rejected(_)), "a publish without permission: {verdict:?}");

    user.permit(true).await;
    user.transport.declare(&other).await.expect("declaring with permission");
    let confirm = scene.send(&*publisher, numbered(&address, 1)).await;
    assert_eq!(scene.verdict(confirm).await, Verdict::Accepted, "the publisher is usable again");
    assert_eq!(reader.bodies(1).await, ["1"], "the consumer never noticed");
}

/// A consumer comes back after a loss to a queue that it may no longer read: it says so and ends.
async fn consumer_without_permission_ends_at_its_return(scene: Scene) {
    let queue = scene.queue("queue").await;
    let user = scene.connect().await;
    let mut reader = scene.read_on(&user.transport, &queue, 10).await;
    let mut events = user.transport.events();
    user.permit(false).await;
    user.cut().await;
    let error = reader.ends().await.expect("it may not go on, and something says so");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "why the consumer ended: {error}");
    let told = |event: &TransportEvent| match event {
        TransportEvent::ConsumerCancelled { queue, .. } => Some(queue.clone()),
        _ => None,
    };
    let told = scene.event(&mut events, "the event ConsumerCancelled", told).await;
    assert_eq!(told, queue, "the event names the queue");
    user.permit(true).await;
    scene
        .eventually("the connection is back", async || {
            let health = user.transport.health();
            if health.is_ready() { Ok(()) } else { Err(format!("{health:?}")) }
        })
        .await;
    scene.publish(&queue, ["after"]).await;
    let mut reader = scene.read_on(&user.transport, &queue, 10).await;
    assert_eq!(reader.bodies(1).await, ["after"], "with its permission it consumes again");
}
