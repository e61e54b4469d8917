//! Several parts in one process, over the in-memory broker.

mod common;

use std::{future::pending, sync::Arc, time::Duration};

use common::{SECOND, declare_queue, publish, ready, transport};
use postrider_core::{
    Address, ConnectionState, ConsumerOptions, ErrorKind, Message, Queue, Topology, Transport,
};
use postrider_patterns::{
    Event, EventBus, PartState, RpcServer, Service, Subscription, Task, WorkQueue, Worker,
    routing::{Condition, Intake, Route, Router},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

#[derive(Serialize, Deserialize)]
struct Email {
    to: u32,
}

impl Task for Email {
    const TYPE: &'static str = "email";
}

#[derive(Serialize, Deserialize)]
struct Registered {}

impl Event for Registered {
    const TYPE: &'static str = "user.registered";
}

/// A worker whose handler tells the test that it began and then takes `time`.
fn taking(time: Duration) -> (Worker, mpsc::UnboundedReceiver<u32>) {
    let (begun, begins) = mpsc::unbounded_channel();
    let worker = Worker::new("email").on(move |task: Email, _context| {
        let begun = begun.clone();
        async move {
            begun.send(task.to)?;
            tokio::time::sleep(time).await;
            Ok(())
        }
    });
    (worker, begins)
}

fn calls() -> RpcServer {
    RpcServer::new("mail").method_named("ping", |(): (), _context| async { Ok("pong") })
}

async fn submit(transport: &Arc<dyn Transport>, tasks: u32) {
    let queue = WorkQueue::new(transport).await.unwrap();
    for to in 0..tasks {
        queue.submit(&Email { to }).await.unwrap();
    }
}

async fn consumers(transport: &Arc<dyn Transport>, queue: &str) -> u32 {
    transport.queue_info(queue).await.unwrap().map_or(0, |info| info.consumers)
}

#[tokio::test(start_paused = true)]
async fn parts_of_all_patterns_run_and_drain_together() {
    let transport = transport();
    let bus = EventBus::new(&transport).await.unwrap();
    let (worker, mut begins) = taking(10 * SECOND);
    let (seen, mut events) = mpsc::unbounded_channel();
    let subscription =
        Subscription::durable("mail", "welcome").on(move |_event: Registered, _context| {
            let seen = seen.clone();
            async move { Ok(seen.send(())?) }
        });
    let router = Router::filter("inbox", Condition::is_type("email"), Route::queue("email"));
    let running = Service::new("mail", &transport)
        .worker(worker)
        .subscription(&bus, subscription)
        .rpc(calls())
        .router(router)
        .start()
        .await
        .unwrap();
    let monitor = running.monitor();
    assert!(monitor.health().is_ready());
    submit(&transport, 2).await;
    begins.recv().await.unwrap();
    begins.recv().await.unwrap();
    bus.publish(&Registered {}).await.unwrap();
    events.recv().await.unwrap();
    assert_eq!(monitor.health().parts[0].in_hand, 2);

    let report = running.run_until(async {}).await;
    assert!(report.is_clean());
    let parts: Vec<_> = report.parts.iter().map(|part| part.part.as_str()).collect();
    assert_eq!(parts, ["worker email", "subscription mail.welcome", "rpc mail", "router inbox"]);
    assert_eq!(report.parts[0].report.finished, 2);
    assert!(!monitor.health().is_live(), "a service that was stopped does not consume");
}

#[tokio::test(start_paused = true)]
async fn all_parts_stop_taking_before_one_is_drained() {
    let transport = transport();
    let (worker, mut begins) = taking(20 * SECOND);
    let running = Service::new("mail", &transport).worker(worker).rpc(calls());
    let running = running.start().await.unwrap();
    submit(&transport, 1).await;
    begins.recv().await.unwrap();
    let stop = tokio::spawn(running.stop());
    // Long before the handler is done.
    tokio::time::sleep(SECOND).await;
    assert!(!stop.is_finished());
    assert_eq!(consumers(&transport, "rpc_mail").await, 0);
    assert_eq!(consumers(&transport, "email").await, 0);
    assert!(stop.await.unwrap().is_clean());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_done_by_the_deadline_is_reported_and_given_back() {
    let transport = transport();
    let (begun, mut begins) = mpsc::unbounded_channel();
    let worker = Worker::new("email").on(move |_task: Email, _context| {
        let begun = begun.clone();
        async move {
            begun.send(())?;
            pending().await
        }
    });
    let running = Service::new("mail", &transport)
        .rpc(calls())
        .worker(worker)
        .stop_deadline(5 * SECOND)
        .start()
        .await
        .unwrap();
    submit(&transport, 3).await;
    for _ in 0..3 {
        begins.recv().await.unwrap();
    }
    let before = transport.env().now();
    let report = running.stop().await;
    assert!(transport.env().now() - before < 6 * SECOND);
    let left: Vec<_> = report.unfinished().collect();
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].part.as_str(), left[0].report.released), ("worker email", 3));
    assert_eq!(left[0].queues, ["email"]);
    assert_eq!(ready(&*transport, "email").await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_cannot_start_stops_those_that_did() {
    let transport = transport();
    declare_queue(&*transport, Queue::durable("email").with_delivery_limit(7)).await;
    let (worker, _begins) = taking(SECOND);
    let service = Service::new("mail", &transport).rpc(calls()).worker(worker);
    let error = service.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("worker email"), "{error}");
    assert_eq!(consumers(&transport, "rpc_mail").await, 0);
}

#[tokio::test(start_paused = true)]
async fn unsafe_combinations_are_refused_before_anything_is_declared() {
    let transport = transport();
    let worker = || taking(SECOND).0;
    let service = || Service::new("mail", &transport).rpc(calls());
    let cases = [
        (Service::new("mail", &transport), "without parts"),
        (service().worker(worker()).worker(worker()), "two parts"),
        (
            service().worker(worker()).router(Router::filter(
                "email",
                Condition::is_type("email"),
                Route::queue("elsewhere"),
            )),
            "each other's messages",
        ),
        (service().worker(worker().concurrency(8).prefetch(2)), "prefetch of 2"),
        (service().worker(worker().handler_timeout(3_600 * SECOND)), "handler timeout"),
        (service().stalled_after(Duration::ZERO), "stalled"),
    ];
    for (service, reason) in cases {
        let error = service.start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(reason), "{error}");
    }
    for queue in ["rpc_mail", "email"] {
        assert_eq!(transport.queue_info(queue).await.unwrap(), None);
    }
    let patient =
        service().worker(worker().handler_timeout(3_600 * SECOND)).consumer_timeout(7_200 * SECOND);
    assert!(patient.start().await.unwrap().stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_part_that_ended_is_named_and_the_others_go_on() {
    let transport = transport();
    let (worker, _begins) = taking(SECOND);
    let running = Service::new("mail", &transport).worker(worker).rpc(calls());
    let running = running.start().await.unwrap();
    let monitor = running.monitor();
    transport.remove(&Topology::new().queue(Queue::durable("email"))).await.unwrap();
    while monitor.health().is_live() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let health = monitor.health();
    assert_eq!(health.connection, ConnectionState::Connected);
    let PartState::Ended(Some(error)) = &health.parts[0].state else {
        panic!("{:?}", health.parts[0]);
    };
    assert!(error.to_string().contains("email"), "{error}");
    assert!(matches!(health.parts[1].state, PartState::Consuming));
    assert!(running.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_places_are_all_taken_is_not_stalled() {
    let transport = transport();
    let (worker, mut begins) = taking(1_000 * SECOND);
    let running = Service::new("mail", &transport)
        .worker(worker.concurrency(1).prefetch(1))
        .stalled_after(8 * SECOND)
        .start()
        .await
        .unwrap();
    submit(&transport, 5).await;
    begins.recv().await.unwrap();
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(ready(&*transport, "email").await, 4);
    assert!(running.monitor().health().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_part_that_gets_nothing_while_messages_wait_is_stalled_until_it_does() {
    let transport = transport();
    // Of a queue with a single active consumer, the second one gets nothing.
    declare_queue(&*transport, Queue::durable("inbox").single_active_consumer()).await;
    let options = ConsumerOptions::default().with_prefetch(1);
    let mut first = transport.consumer("inbox", options).await.unwrap();
    let intake = Intake::queue("inbox").declared_elsewhere();
    let running = Service::new("mail", &transport)
        .router(Router::filter(intake, Condition::is_type("email"), Route::queue("elsewhere")))
        .stalled_after(8 * SECOND)
        .start()
        .await
        .unwrap();
    let monitor = running.monitor();
    let state = || monitor.health().parts[0].state.clone();
    tokio::time::sleep(100 * SECOND).await;
    assert!(matches!(state(), PartState::Consuming), "nothing waits");

    for _ in 0..2 {
        publish(&*transport, Address::queue("inbox"), Message::new("")).await;
    }
    let held = first.recv().await.unwrap().unwrap();
    tokio::time::sleep(7 * SECOND).await;
    assert!(matches!(state(), PartState::Consuming), "not for long enough");
    tokio::time::sleep(4 * SECOND).await;
    assert!(matches!(state(), PartState::Stalled));
    assert!(!monitor.health().is_live());

    held.ack();
    drop(first);
    tokio::time::sleep(4 * SECOND).await;
    assert_eq!(ready(&*transport, "inbox").await, 0);
    assert!(monitor.health().is_ready());
    assert!(running.stop().await.is_clean());
}
