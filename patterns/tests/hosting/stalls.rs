//! Who gets nothing though messages wait.

use std::time::Duration;

use postrider_core::{ConsumerOptions, Queue, Topology};
use postrider_patterns::{
    HandlerError, Jitter, PartState, RetryPolicy,
    routing::{Aggregator, Completion, Condition, Route, Router},
};
use tokio::time::sleep;

use super::world::{Email, Gated, SECOND, World, service, until};

/// Long enough for five looks, and short enough for a machine's clock.
const LIMIT: Duration = Duration::from_secs(2);

pub(crate) async fn a_worker_whose_places_are_all_taken_is_not_stalled(world: &World) {
    let transport = world.transport().await;
    let (worker, mut gated) = Gated::worker(world);
    let running = service(&transport)
        .worker(worker.concurrency(1).prefetch(1))
        .stalled_after(LIMIT)
        .start()
        .await
        .unwrap();
    world.submit(&transport, 5).await;
    gated.begun(1).await;
    sleep(100 * SECOND).await;
    assert_eq!(world.queue(&transport, "email").await, (4, 1));
    assert!(running.monitor().health().is_ready());
}

pub(crate) async fn a_part_that_gets_nothing_while_messages_wait_is_stalled_until_it_does(
    world: &World,
) {
    let transport = world.transport().await;
    // Of a queue with a single active consumer that nobody told the host of, the second one gets
    // nothing.
    let inbox = Queue::durable(world.name("inbox")).single_active_consumer();
    transport.declare(&Topology::new().queue(inbox)).await.unwrap();
    let options = ConsumerOptions::default().with_prefetch(1);
    let mut first = transport.consumer(&world.name("inbox"), options).await.unwrap();
    let intake = world.intake("inbox").declared_elsewhere();
    let elsewhere = Route::queue(world.name("elsewhere"));
    let running = service(&transport)
        .router(Router::filter(intake, Condition::is_type("email"), elsewhere))
        .stalled_after(LIMIT)
        .start()
        .await
        .unwrap();
    let monitor = running.monitor();
    let state = || monitor.health().parts[0].state.clone();
    sleep(2 * LIMIT).await;
    assert!(matches!(state(), PartState::Consuming), "nothing waits");

    let before = transport.env().now();
    for _ in 0..2 {
        world.publish(&transport, "inbox").await;
    }
    let held = first.recv().await.unwrap().unwrap();
    until(|| matches!(state(), PartState::Stalled), || format!("{:?}", state())).await;
    assert!(transport.env().now() - before >= LIMIT, "not before its time");
    assert!(!monitor.health().is_live());

    held.ack();
    drop(first);
    world.queue_comes_to(&transport, "inbox", |ready, _| ready == 0).await;
    until(|| monitor.health().is_ready(), || format!("{:?}", state())).await;
    assert!(running.stop().await.is_clean());
}

pub(crate) async fn a_queue_whose_messages_wait_for_their_next_try_is_no_stall(world: &World) {
    let transport = world.transport().await;
    let delay = 4 * LIMIT;
    let later = RetryPolicy::never()
        .with_delayed(1)
        .with_delay(delay, 1.0, delay)
        .with_jitter(Jitter::None);
    let worker = world.worker().retry(later).on(|_: Email, context| async move {
        match context.attempt() {
            1 => Err(HandlerError::transient("not yet")),
            _ => Ok(()),
        }
    });
    let running = service(&transport).worker(worker).stalled_after(LIMIT).start().await.unwrap();
    let monitor = running.monitor();
    world.submit(&transport, 3).await;
    let stats = || monitor.health().parts[0].stats;
    until(|| stats().retried == 3, || format!("{:?}", stats())).await;
    let told = || format!("{:?}", monitor.health());
    // All the time that they wait for.
    until(
        || {
            assert!(monitor.health().is_live(), "{}", told());
            stats().acked == 3
        },
        told,
    )
    .await;
    assert!(running.stop().await.is_clean());
}

pub(crate) async fn who_stands_by_is_not_stalled(world: &World) {
    let transport = world.transport().await;
    let elsewhere = Route::queue(world.name("elsewhere"));
    let groups = Aggregator::new(world.intake("parts"), Completion::Parts, elsewhere);
    let planned = service(&transport).aggregator(groups).stalled_after(LIMIT);
    transport.declare(&planned.plan().unwrap().topology()).await.unwrap();
    // As another instance, which is the one that gets messages.
    let options = ConsumerOptions::default().with_prefetch(1);
    let mut first = transport.consumer(&world.name("parts"), options).await.unwrap();
    let running = planned.start().await.unwrap();
    for _ in 0..2 {
        world.publish(&transport, "parts").await;
    }
    let held = first.recv().await.unwrap().unwrap();
    world.queue_comes_to(&transport, "parts", |ready, _| ready == 1).await;
    sleep(3 * LIMIT).await;
    assert!(running.monitor().health().is_live(), "{:?}", running.monitor().health());
    held.ack();
    assert!(running.stop().await.is_clean());
}
