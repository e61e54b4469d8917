//! Connections and queues that are lost.

use postrider_core::{ErrorKind, Queue, Topology};
use postrider_patterns::Subscription;
use tokio::{sync::mpsc, time::timeout};

use super::world::{Created, Log, SOON, World, durable, seeing, until};

pub(crate) async fn an_ephemeral_subscription_is_told_of_each_gap_and_goes_on(world: &World) {
    let (connection, bus) = world.connected().await;
    let (_other, others) = world.connected().await;
    let (log, (tell, mut gaps)) = (Log::default(), mpsc::unbounded_channel());
    let subscription = seeing(Subscription::ephemeral(world.dashboard()), &log);
    let subscription = subscription.on_gap(move |gap| {
        let told = tell.send(gap);
        async move { Ok(told?) }
    });
    let running = bus.subscribe(subscription).await.unwrap();
    for order in 1..4 {
        others.publish(&Created { order }).await.unwrap();
        until(|| log.items().last() == Some(&order), || format!("{log:?}")).await;
        assert!(gaps.try_recv().is_err(), "no gap without a loss");
        connection.cut().await;
        let gap = timeout(SOON, gaps.recv()).await.expect("in time").expect("a gap");
        assert!(!gap.cause.is_empty() && gap.restored_at >= gap.lost_at, "{gap:?}");
    }
    others.publish(&Created { order: 4 }).await.unwrap();
    until(|| log.items() == [1, 2, 3, 4], || format!("{log:?}")).await;
    assert!(running.is_running());
}

pub(crate) async fn a_durable_subscription_goes_on_and_tells_when_its_queue_is_gone(world: &World) {
    let (connection, bus) = world.connected().await;
    let (other, others) = world.connected().await;
    let log = Log::default();
    let running = bus.subscribe(seeing(durable("orders"), &log)).await.unwrap();
    for order in 1..4 {
        connection.cut().await;
        others.publish(&Created { order }).await.unwrap();
        until(|| log.items().contains(&order), || format!("{log:?}")).await;
    }
    assert!(running.is_running());
    let queue = Topology::new().queue(Queue::durable(world.queue("orders")));
    other.transport.remove(&queue).await.unwrap();
    let why = timeout(SOON, running.ended()).await.expect("in time").unwrap_err();
    assert_eq!(why.kind(), ErrorKind::NotFound);
    assert!(!running.is_running());
}
