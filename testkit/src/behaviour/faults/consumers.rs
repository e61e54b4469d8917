//! Consumers whose handlers do not do what they should, over faults.

use postrider_core::{Delivery, TransportEvent};

use super::{Behaviour, Need};
use crate::{Scene, harness::Fault, scene::text};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const LOSS: &[Need] = &[Need::Topology, Need::Fault(Fault::ConnectionLoss)];
    vec![
        Behaviour::new(handler_that_never_settles_holds_up_only_itself, LOSS),
        Behaviour::new(consumer_dropped_at_a_loss_stays_gone, LOSS),
    ]
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

async fn handler_that_never_settles_holds_up_only_itself(scene: Scene) {
    for queue in [scene.queue("quorum").await, scene.classic("classic").await] {
        let stuck = scene.connect().await;
        let mut stuck_reader = scene.read_on(&stuck.transport, &queue, 5).await;
        scene.publish(&queue, numbers(0..5)).await;
        let held = stuck_reader.take(5).await;
        let mut reader = scene.read(&queue, 5).await;
        scene.publish(&queue, numbers(5..200)).await;
        assert_eq!(reader.bodies(195).await, numbers(5..200), "others go on past '{queue}'");
        stuck_reader.is_silent().await;
        // What it held comes to others when its connection goes, and its own settling is stale.
        drop(stuck_reader);
        let mut events = stuck.transport.events();
        stuck.cut().await;
        let mut again = reader.bodies(5).await;
        again.sort();
        assert_eq!(again, numbers(0..5), "what was never settled comes again");
        scene.restored(&mut events, 2).await;
        held.into_iter().for_each(Delivery::ack);
        for _ in 0..5 {
            let stale = |event: &TransportEvent| {
                matches!(event, TransportEvent::StaleSettlement { .. }).then_some(())
            };
            scene.event(&mut events, "the event StaleSettlement", stale).await;
        }
        drop(reader);
        scene.settles_at(&queue, 0).await;
    }
}

async fn consumer_dropped_at_a_loss_stays_gone(scene: Scene) {
    let (kept, left) = (scene.queue("kept").await, scene.queue("left").await);
    let victim = scene.connect().await;
    let mut reader = scene.read_on(&victim.transport, &kept, 10).await;
    let mut leaving = scene.read_on(&victim.transport, &left, 10).await;
    scene.publish(&left, ["held", "waiting"]).await;
    let held = leaving.next().await;
    let mut events = victim.transport.events();
    victim.cut().await;
    drop(leaving);
    scene.restored(&mut events, 2).await;
    drop(held);
    scene.has_consumers(&left, 0).await;
    scene.settles_at(&left, 2).await;
    scene.publish(&kept, ["kept"]).await;
    assert_eq!(text(&reader.next().await), "kept", "the other consumer is back");
    let health = victim.transport.health();
    assert_eq!(health.consumers.len(), 1, "the dropped consumer is gone: {health:?}");
}
