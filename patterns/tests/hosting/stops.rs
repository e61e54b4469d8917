//! How a service ends, and how its parts do.

use postrider_core::{ConnectionState, Queue, Topology};
use postrider_patterns::{PartHealth, PartState};

use super::world::{Gated, SECOND, SOON, World, service, soon, until};

pub(crate) async fn all_parts_stop_taking_before_one_is_drained(world: &World) {
    let transport = world.transport().await;
    let (worker, mut gated) = Gated::worker(world);
    let running = service(&transport).worker(worker).rpc(world.calls()).stop_deadline(SOON);
    let running = running.start().await.unwrap();
    world.submit(&transport, 1).await;
    gated.begun(1).await;
    let monitor = running.monitor();
    let stop = tokio::spawn(running.stop());
    let is_over = |part: &PartHealth| matches!(part.state, PartState::Ended(None));
    let told = || format!("{:?}", monitor.health());
    until(|| monitor.health().parts.iter().all(is_over), told).await;
    // What comes now is for another one, though the worker is not done.
    world.submit(&transport, 1).await;
    world.queue_comes_to(&transport, "email", |ready, _| ready == 1).await;
    world.queue_comes_to(&transport, "rpc_mail", |_, consumers| consumers == 0).await;
    assert!(!stop.is_finished() && gated.begins.try_recv().is_err());
    gated.open.add_permits(1);
    assert!(soon(stop).await.unwrap().is_clean());
}

pub(crate) async fn what_is_not_done_by_the_deadline_is_reported_and_given_back(world: &World) {
    let transport = world.transport().await;
    let (worker, mut gated) = Gated::worker(world);
    let running = service(&transport)
        .rpc(world.calls())
        .worker(worker)
        .stop_deadline(SECOND)
        .start()
        .await
        .unwrap();
    world.submit(&transport, 3).await;
    gated.begun(3).await;
    let before = transport.env().now();
    let report = running.stop().await;
    let took = transport.env().now() - before;
    assert!(took >= SECOND && took < 4 * SECOND, "{took:?}");
    let left: Vec<_> = report.unfinished().collect();
    assert_eq!(left.len(), 1);
    let email = world.name("email");
    assert_eq!((&left[0].part, left[0].report.released), (&format!("worker {email}"), 3));
    assert_eq!(left[0].queues, [email]);
    world.queue_comes_to(&transport, "email", |ready, _| ready == 3).await;
}

pub(crate) async fn a_part_that_ended_is_named_and_the_others_go_on(world: &World) {
    let transport = world.transport().await;
    let (worker, _gated) = Gated::worker(world);
    let running = service(&transport).worker(worker).rpc(world.calls()).start().await.unwrap();
    let monitor = running.monitor();
    let email = Topology::new().queue(Queue::durable(world.name("email")));
    world.transport().await.remove(&email).await.unwrap();
    until(|| !monitor.health().is_live(), || format!("{:?}", monitor.health())).await;
    let health = monitor.health();
    assert_eq!(health.connection, ConnectionState::Connected);
    let PartState::Ended(Some(error)) = &health.parts[0].state else {
        panic!("{:?}", health.parts[0]);
    };
    assert!(error.to_string().contains("email"), "{error}");
    assert!(matches!(health.parts[1].state, PartState::Consuming));
    assert!(running.stop().await.is_clean());
}

pub(crate) async fn a_service_without_a_part_at_work_ends_by_itself(world: &World) {
    let transport = world.transport().await;
    let (worker, _gated) = Gated::worker(world);
    let running = service(&transport).worker(worker).start().await.unwrap();
    let ended = tokio::spawn(running.run_until_signal());
    let email = Topology::new().queue(Queue::durable(world.name("email")));
    world.transport().await.remove(&email).await.unwrap();
    let error = soon(ended).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no part consumes"), "{error}");
}
