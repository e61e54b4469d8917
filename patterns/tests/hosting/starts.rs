//! All parts start, or none.

use std::time::Duration;

use postrider_core::{ErrorKind, Queue, Topology};
use postrider_patterns::{
    RetryPolicy, Subscription,
    routing::{Aggregator, Completion, Condition, Route, Router},
};
use tokio::sync::mpsc;

use super::world::{Email, Gated, Registered, SECOND, World, service, soon, until};

pub(crate) async fn parts_of_all_patterns_run_and_drain_together(world: &World) {
    let transport = world.transport().await;
    let bus = world.bus(&transport).await;
    let (worker, mut gated) = Gated::worker(world);
    let (seen, mut events) = mpsc::unbounded_channel();
    let subscription = Subscription::durable("mail", "welcome").on(move |_: Registered, _| {
        let seen = seen.clone();
        async move { Ok(seen.send(())?) }
    });
    let elsewhere = Route::queue(world.name("elsewhere"));
    let router = Router::filter(world.intake("inbox"), Condition::is_type("email"), elsewhere);
    let running = service(&transport)
        .worker(worker)
        .subscription(&bus, subscription)
        .rpc(world.calls())
        .router(router)
        .start()
        .await
        .unwrap();
    let monitor = running.monitor();
    assert!(monitor.health().is_ready());
    world.submit(&transport, 2).await;
    gated.begun(2).await;
    bus.publish(&Registered {}).await.unwrap();
    soon(events.recv()).await.unwrap();
    assert_eq!(monitor.health().parts[0].in_hand, 2);
    until(|| monitor.health().parts[1].stats.acked == 1, || format!("{:?}", monitor.health()))
        .await;

    let stop = tokio::spawn(running.run_until(async {}));
    until(|| !monitor.health().is_ready(), || format!("{:?}", monitor.health())).await;
    assert!(monitor.health().is_live(), "what drains needs no restart");
    gated.open.add_permits(2);
    let report = soon(stop).await.unwrap();
    assert!(report.is_clean());
    let parts: Vec<_> =
        report.parts.iter().map(|part| part.part.replace(&world.name(""), "")).collect();
    assert_eq!(parts, ["worker email", "subscription mail.welcome", "rpc mail", "router inbox"]);
    assert_eq!(report.parts[0].report.finished, 2);
    assert!(!monitor.health().is_live(), "a service that was stopped does not consume");
}

pub(crate) async fn a_part_that_cannot_start_stops_those_that_did(world: &World) {
    let transport = world.transport().await;
    let other = Queue::durable(world.name("email")).with_delivery_limit(27);
    transport.declare(&Topology::new().queue(other)).await.unwrap();
    let (worker, _gated) = Gated::worker(world);
    let error = service(&transport).rpc(world.calls()).worker(worker).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("worker"), "{error}");
    world.queue_comes_to(&transport, "rpc_mail", |_, consumers| consumers == 0).await;
}

pub(crate) async fn unsafe_combinations_are_refused_before_anything_is_declared(world: &World) {
    let transport = world.transport().await;
    let bus = world.bus(&transport).await;
    let worker = || Gated::worker(world).0;
    let alone = || service(&transport);
    let with_calls = || alone().rpc(world.calls());
    let elsewhere = || Route::queue(world.name("elsewhere"));
    let router =
        |queue: &str| Router::filter(world.intake(queue), Condition::is_type("email"), elsewhere());
    let slow = RetryPolicy::default().with_delay(600 * SECOND, 1.0, 600 * SECOND);
    let news = Subscription::ephemeral("news").on(|_: Registered, _| async { Ok(()) });
    let groups = Aggregator::new(world.intake("parts"), Completion::Parts, elsewhere());
    let cases = [
        (alone(), "without parts"),
        (with_calls().worker(worker()).worker(worker()), "two parts"),
        (with_calls().worker(worker()).router(router("email")), "each other's messages"),
        // The rules of a router are changed by calls, which these servers would share.
        (with_calls().router(router("inbox").controlled("mail")), "each other's messages"),
        // Dead letters are kept without a delivery limit, work is not.
        (with_calls().worker(worker()).router(router("email.dead_letters")), "in one form only"),
        (with_calls().worker(worker().concurrency(8).prefetch(2)), "prefetch of 2"),
        (with_calls().worker(worker().handler_timeout(3_600 * SECOND)), "handler timeout"),
        (with_calls().subscription(&bus, news.retry(slow)), "keep a message in hand"),
        (with_calls().aggregator(groups.timeout(3_600 * SECOND)), "keep a message in hand"),
        (with_calls().stalled_after(Duration::ZERO), "stalled"),
        // What a part refuses by itself is refused before another one is declared.
        (with_calls().worker(worker().delivery_limit(2)), "delivery limit"),
        (with_calls().worker(world.worker()), "no handlers"),
    ];
    for (service, reason) in cases {
        let planned = service.plan().unwrap_err();
        assert!(planned.to_string().contains(reason), "{reason}: {planned}");
        let error = service.start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(error.to_string(), planned.to_string());
    }
    for queue in ["rpc_mail", "email", "inbox"] {
        assert_eq!(transport.queue_info(&world.name(queue)).await.unwrap(), None);
    }
    let patient = with_calls()
        .worker(world.worker().on(|_: Email, _| async { Ok(()) }).handler_timeout(3_600 * SECOND))
        .consumer_timeout(7_200 * SECOND);
    assert!(patient.start().await.unwrap().stop().await.is_clean());
}
