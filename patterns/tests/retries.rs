//! Retries over hours, on virtual time, and what bounds them.

mod common;

use std::{sync::Arc, time::Duration};

use common::{Log, SECOND, deliver, ready, take, transport};
use postrider_core::{
    Binding, ErrorKind, HeaderValue, Message, Overflow, Queue, Topology, Transport,
};
use postrider_patterns::{
    Context, DeadLetters, DeadReason, ErrorClass, Event, EventBus, HandlerError, Jitter, Naming,
    RetryPolicy, Subscription, Task, Tries, WorkQueue, Worker, codes,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Serialize, Deserialize)]
struct Email {
    to: u32,
}

impl Task for Email {
    const TYPE: &'static str = "email";
}

#[derive(Serialize, Deserialize)]
struct Paid {
    order: u32,
}

impl Event for Paid {
    const TYPE: &'static str = "order.paid";
}

/// A worker that fails each time, and the minutes at which it did.
fn failing(transport: &Arc<dyn Transport>, error: HandlerError) -> (Worker, Log<i64>) {
    let log = Log::default();
    let (minutes, start) = (log.clone(), transport.env().timestamp());
    let worker = Worker::new("email").on(move |_task: Email, context: Context| {
        minutes.push((context.env().timestamp() - start).num_minutes());
        let error = error.clone();
        async { Err(error) }
    });
    (worker, log)
}

#[tokio::test(start_paused = true)]
async fn hours_of_backoff_are_kept_to_the_minute() {
    let transport = transport();
    let policy = RetryPolicy::default()
        .with_immediate(0)
        .with_delayed(9)
        .with_delay(MINUTE, 2.0, 2 * HOUR)
        .with_jitter(Jitter::None);
    let (worker, minutes) = failing(&transport, HandlerError::transient("down for the night"));
    let _running = worker.retry(policy).start(&transport).await.unwrap();
    WorkQueue::new(&transport).await.unwrap().submit(&Email { to: 1 }).await.unwrap();
    let dead = take(&*transport, "dead_letter_email").await;
    // 1, 2, 4, 8, 16, 32, 64, and at most 120 minutes in between.
    assert_eq!(minutes.items(), [0, 1, 3, 7, 15, 31, 63, 127, 247, 367]);
    let attempts = dead.headers.get("postrider-attempts").and_then(HeaderValue::as_int);
    assert_eq!(attempts, Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_delay_of_hours_neither_duplicates_nor_vanishes() {
    let transport = transport();
    let policy = RetryPolicy::never()
        .with_class(ErrorClass::Unavailable, Tries::new(0, 1))
        .with_delay(24 * HOUR, 1.0, 24 * HOUR)
        .with_jitter(Jitter::None);
    let log = Log::default();
    let tries = log.clone();
    let worker = Worker::new("email").on(move |_task: Email, context: Context| {
        tries.push(context.attempt());
        async move {
            match context.attempt() {
                1 => Err(HandlerError::new(ErrorClass::Unavailable, "closed on Sundays")),
                _ => Ok(()),
            }
        }
    });
    let running = worker.retry(policy).start(&transport).await.unwrap();
    WorkQueue::new(&transport).await.unwrap().submit(&Email { to: 1 }).await.unwrap();
    tokio::time::sleep(23 * HOUR).await;
    assert_eq!(log.items(), [1]);
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(log.items(), [1, 2]);
    tokio::time::sleep(100 * HOUR).await;
    assert_eq!(log.items(), [1, 2]);
    assert_eq!(running.stats().acked, 1);
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_what_failed_together() {
    let transport = transport();
    let policy = RetryPolicy::never().with_delayed(1).with_delay(HOUR, 1.0, HOUR);
    let (worker, minutes) = failing(&transport, HandlerError::transient("busy"));
    let _running = worker.retry(policy).start(&transport).await.unwrap();
    let tasks: Vec<_> = (0..40).map(|to| Email { to }).collect();
    WorkQueue::new(&transport).await.unwrap().submit_all(&tasks).await.unwrap();
    tokio::time::sleep(2 * HOUR).await;
    let mut again = minutes.items().split_off(40);
    assert_eq!(again.len(), 40);
    assert!(again.iter().all(|minute| *minute < 60));
    again.sort_unstable();
    again.dedup();
    assert!(again.len() > 20, "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_returns_holds_its_place_no_longer_than_its_time() {
    let transport = transport();
    let bus = EventBus::new(&transport).await.unwrap();
    let (sender, mut paid) = mpsc::channel(1);
    let subscription = Subscription::durable("ledger", "paid")
        .on(move |event: Paid, _context| {
            let sender = sender.clone();
            async move {
                if event.order == 1 {
                    std::future::pending::<()>().await;
                }
                Ok(sender.send(event.order).await?)
            }
        })
        .concurrency(1)
        .retry(RetryPolicy::never())
        .handler_timeout(10 * MINUTE);
    let running = bus.subscribe(subscription).await.unwrap();
    let begun = transport.env().now();
    bus.publish_all(&[Paid { order: 1 }, Paid { order: 2 }]).await.unwrap();
    assert_eq!(paid.recv().await, Some(2));
    assert_eq!(transport.env().now() - begun, 10 * MINUTE);
    let letters = DeadLetters::of(&transport, running.queue()).peek(10).await.unwrap();
    assert_eq!(letters[0].code(), Some(codes::HANDLER_TIMEOUT));
    assert_eq!(letters[0].error(), Some("the handler did not end within 600s"));
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_subscription_has_a_timeout_for_each_try() {
    let transport = transport();
    let bus = EventBus::new(&transport).await.unwrap();
    let log = Log::default();
    let tokens = log.clone();
    let subscription = Subscription::ephemeral("screen")
        .on(move |_event: Paid, context: Context| {
            // A try that is over does not cancel the next.
            assert!(!context.cancellation().is_cancelled());
            tokens.push(context.cancellation().clone());
            std::future::pending()
        })
        .retry(RetryPolicy::never().with_immediate(2))
        .handler_timeout(MINUTE);
    let running = bus.subscribe(subscription).await.unwrap();
    bus.publish(&Paid { order: 1 }).await.unwrap();
    take(&*transport, "dead_letter_screen").await;
    assert_eq!(log.items().len(), 3);
    assert!(log.items().iter().all(tokio_util::sync::CancellationToken::is_cancelled));
    assert_eq!(running.stats().dead_lettered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_cannot_be_kept_is_held_for_as_long_as_it_takes() {
    let transport = transport();
    let (worker, minutes) = failing(&transport, HandlerError::invalid("never"));
    let naming = Naming::default();
    let running = worker.start(&transport).await.unwrap();
    // Somebody else has made the queue of dead letters anew, and it is full.
    let full = Queue::durable("dead_letter_email")
        .without_delivery_limit()
        .with_max_length(1)
        .with_overflow(Overflow::RejectPublish);
    let old = Topology::new().queue(full.clone());
    transport.remove(&old).await.unwrap();
    let exchange = naming.dead_letter_exchange();
    let again = Topology::new().queue(full).bind(Binding::queue(
        exchange,
        "dead_letter_email",
        "dead_letter_email",
    ));
    transport.declare(&again).await.unwrap();
    let address = postrider_core::Address::queue("dead_letter_email");
    common::publish(&*transport, address, Message::new("full")).await;

    WorkQueue::new(&transport).await.unwrap().submit(&Email { to: 1 }).await.unwrap();
    tokio::time::sleep(100 * HOUR).await;
    assert_eq!(minutes.items(), [0], "it is not handled again for that");
    let info = transport.queue_info("email").await.unwrap().unwrap();
    assert_eq!((info.ready, info.unsettled), (0, Some(1)));
    assert_eq!(running.stats().dead_lettered, 0);

    assert_eq!(take(&*transport, "dead_letter_email").await.body, "full");
    let dead = take(&*transport, "dead_letter_email").await;
    assert_eq!(common::text(&dead, "postrider-error-message"), Some("never"));
    assert_eq!(ready(&*transport, "email").await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_goes_back_when_its_worker_stops() {
    let transport = transport();
    let (worker, _minutes) = failing(&transport, HandlerError::invalid("never"));
    let running = worker.start(&transport).await.unwrap();
    let queue = Queue::durable("dead_letter_email")
        .with_max_length(0)
        .with_overflow(Overflow::RejectPublish);
    transport.remove(&Topology::new().queue(queue.clone())).await.unwrap();
    let bound = Binding::queue("dead_letter_exchange", "dead_letter_email", "dead_letter_email");
    transport.declare(&Topology::new().queue(queue).bind(bound)).await.unwrap();
    WorkQueue::new(&transport).await.unwrap().submit(&Email { to: 1 }).await.unwrap();
    tokio::time::sleep(HOUR).await;
    let report = running.stop(SECOND).await;
    assert_eq!((report.released, report.still_running), (1, 0));
    assert_eq!(deliver(&*transport, "email").await.info().failures, 0);
}

/// A policy that could reach the broker's limit would lose its reasons, or its messages.
#[tokio::test(start_paused = true)]
async fn a_policy_that_reaches_the_delivery_limit_is_refused_at_start() {
    let transport = transport();
    let error = HandlerError::transient("busy");
    let refused = |policy, limit| {
        let (worker, _) = failing(&transport, error.clone());
        let transport = Arc::clone(&transport);
        async move {
            let started = worker.retry(policy).delivery_limit(limit).start(&transport).await;
            started.map(drop).err().map(|error| error.kind())
        }
    };
    let patient = RetryPolicy::never().with_class(ErrorClass::Unavailable, Tries::new(0, 30));
    assert_eq!(refused(RetryPolicy::default(), 8).await, Some(ErrorKind::Invalid));
    assert_eq!(refused(patient.clone(), 30).await, Some(ErrorKind::Invalid));
    assert_eq!(refused(patient.clone(), 31).await, None);
    // The queue is there now, with the limit that it has.
    assert_eq!(refused(patient.clone(), 40).await, Some(ErrorKind::Mismatch));
    assert_eq!(
        refused(RetryPolicy::default().with_delayed(u32::MAX), 31).await,
        Some(ErrorKind::Invalid)
    );

    let bus = EventBus::new(&transport).await.unwrap();
    let subscription = Subscription::durable("ledger", "paid")
        .on(|_event: Paid, _context| async { Ok(()) })
        .retry(patient);
    assert_eq!(bus.subscribe(subscription).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_nothing_is_refused() {
    let transport = transport();
    let (worker, _) = failing(&transport, HandlerError::transient("busy"));
    let error = worker.handler_timeout(Duration::ZERO).start(&transport).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("handler timeout"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_policy_whose_every_try_is_spent_by_crashes_leaves_the_last_word_to_the_broker() {
    let (ours, other) = common::two_transports();
    let (doomed, watching): (Arc<dyn Transport>, Arc<dyn Transport>) = (ours.clone(), other);
    let (begun, mut beginning) = mpsc::channel(1);
    let worker = Worker::new("email").on(move |_task: Email, _context| {
        let begun = begun.clone();
        async move {
            begun.send(()).await?;
            std::future::pending().await
        }
    });
    // The process lives on, with a handler for each delivery that was lost.
    let _running = worker.concurrency(32).start(&doomed).await.unwrap();
    WorkQueue::new(&watching).await.unwrap().submit(&Email { to: 1 }).await.unwrap();
    for _ in 0..=Queue::DEFAULT_DELIVERY_LIMIT {
        beginning.recv().await.unwrap();
        ours.drop_connection();
    }
    let letters = DeadLetters::of(&watching, "email");
    while letters.count().await.unwrap() == 0 {
        tokio::time::sleep(SECOND).await;
    }
    let dead = letters.peek(1).await.unwrap().remove(0);
    assert_eq!(
        (dead.reason(), dead.origin_queue().as_deref()),
        (DeadReason::DeliveryLimit, Some("email"))
    );
}
