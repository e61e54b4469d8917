//! A broker that takes no publishes for a while.

use std::time::Duration;

use postrider_core::{
    Address, ConnectionState, Envelope, ErrorKind, Message, PublisherOptions, TransportEvent,
    Verdict,
};

use super::{Behaviour, Need};
use crate::{Scene, harness::Fault, scene::refused};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology, Need::Fault(Fault::Alarm)];
    vec![
        Behaviour::new(alarm_holds_publishes_and_lets_consumers_go_on, NEEDS),
        Behaviour::new(blocked_send_fails_after_its_timeout, NEEDS),
        Behaviour::new(closing_under_an_alarm_does_not_hang, NEEDS),
    ]
}

/// Raises the alarm and publishes `body` in the background, because a broker tells a connection
/// about an alarm when it publishes.
async fn blocked_publish(
    scene: &Scene,
    queue: &str,
    body: &'static str,
) -> tokio::task::JoinHandle<Verdict> {
    let publisher = scene.publisher_with(PublisherOptions::default()).await;
    scene.begin(Fault::Alarm).await;
    let envelope = Envelope::new(Address::queue(queue.to_owned()), Message::new(body));
    tokio::spawn(async move {
        match publisher.send(envelope).await {
            Ok(confirm) => confirm.await,
            Err(error) => panic!("a send that waits for the end of an alarm: {error}"),
        }
    })
}

async fn alarm_holds_publishes_and_lets_consumers_go_on(scene: Scene) {
    let queue = scene.queue("alarm").await;
    scene.publish(&queue, ["1", "2", "3"]).await;
    let mut events = scene.transport().events();
    let mut reader = scene.read(&queue, 1).await;
    let waiting = blocked_publish(&scene, &queue, "4").await;
    scene
        .event(&mut events, "the event Blocked", |event| {
            matches!(event, TransportEvent::Blocked { .. }).then_some(())
        })
        .await;
    let health = scene.transport().health();
    assert_eq!(health.state, ConnectionState::Blocked, "health under an alarm: {health:?}");
    assert!(!health.is_ready(), "a blocked transport is not ready to publish");

    assert_eq!(reader.bodies(3).await, ["1", "2", "3"], "consumers go on under an alarm");
    reader.is_silent().await;
    assert!(!waiting.is_finished(), "no publish may come through an alarm");

    scene.end(Fault::Alarm).await;
    scene
        .event(&mut events, "the event Unblocked", |event| {
            (*event == TransportEvent::Unblocked).then_some(())
        })
        .await;
    let verdict = scene.soon("the publish after the alarm", waiting).await;
    assert_eq!(verdict.expect("it was sent"), Verdict::Accepted, "what waited for the alarm's end");
    assert_eq!(reader.bodies(1).await, ["4"], "what waited arrives once");
    let health = scene.transport().health();
    assert_eq!(health.state, ConnectionState::Connected, "health after an alarm: {health:?}");
    scene.publish(&queue, ["5"]).await;
    assert_eq!(reader.bodies(1).await, ["5"], "publishing goes on after an alarm");
}

async fn blocked_send_fails_after_its_timeout(scene: Scene) {
    let timeout = Duration::from_secs(1);
    let queue = scene.queue("timeout").await;
    let mut events = scene.transport().events();
    let impatient = scene.publisher_with(PublisherOptions::default().with_timeout(timeout)).await;
    let waiting = blocked_publish(&scene, &queue, "patient").await;
    scene
        .event(&mut events, "the event Blocked", |event| {
            matches!(event, TransportEvent::Blocked { .. }).then_some(())
        })
        .await;
    let began = scene.env().now();
    let envelope = Envelope::new(Address::queue(queue.clone()), Message::new("impatient"));
    let sent = scene.soon("a blocked send's timeout", impatient.send(envelope.clone())).await;
    refused(sent, &[ErrorKind::Unavailable], "a send under an alarm after its timeout");
    let took = scene.env().now() - began;
    assert!(took >= timeout, "a send may wait {timeout:?} and was given up after {took:?}");
    let sent = scene.soon("a blocked batch's timeout", impatient.send_batch(vec![envelope])).await;
    refused(sent, &[ErrorKind::Unavailable], "a batch under an alarm after its timeout");

    scene.end(Fault::Alarm).await;
    let verdict = scene.soon("the publish after the alarm", waiting).await;
    assert_eq!(verdict.expect("it was sent"), Verdict::Accepted, "what waited for the alarm's end");
    // `Unavailable` says that nothing was sent.
    scene.holds(&queue, &["patient"]).await;
}

async fn closing_under_an_alarm_does_not_hang(scene: Scene) {
    let queue = scene.queue("closing").await;
    scene.begin(Fault::Alarm).await;
    let other = scene.connect().await.transport;
    let publisher = other.publisher(PublisherOptions::default()).await;
    let publisher = publisher.expect("a publisher under an alarm");
    let envelope = Envelope::new(Address::queue(queue), Message::new("stuck"));
    let stuck = tokio::spawn(async move {
        match publisher.send(envelope).await {
            Ok(confirm) => confirm.await.into_result(),
            Err(error) => Err(error),
        }
    });
    tokio::time::sleep(scene.quiet()).await;
    let closed = scene.soon("closing under an alarm", other.close(Duration::from_secs(1))).await;
    if let Err(error) = closed {
        assert_eq!(error.kind(), ErrorKind::TimedOut, "closing under an alarm: {error}");
    }
    let outcome = scene.soon("the end of a blocked publish", stuck).await;
    let outcome = outcome.expect("the publishing task");
    assert!(outcome.is_err(), "a publish that an alarm held back was not stored: {outcome:?}");
}
