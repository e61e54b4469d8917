//! Tasks over the in-memory broker.

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use common::{Log, SECOND, publish, take, text, transport};
use postrider_core::{Address, ErrorKind, HeaderValue, Message, Queue, Topology, Transport};
use postrider_patterns::{
    Codec, Context, ErrorClass, HandlerError, Jitter, PublishError, RetryPolicy, SubmitOptions,
    Task, WorkQueue, Worker,
};
use postrider_transport_inmemory::InMemory;
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
struct Report {}

impl Task for Report {
    const TYPE: &'static str = "report";
}

/// A worker that hands what it does to the test, one task at a time.
fn sending() -> (Worker, mpsc::Receiver<u32>) {
    let (sender, receiver) = mpsc::channel(100);
    let worker = Worker::new("email").on(move |task: Email, _context| {
        let sender = sender.clone();
        async move { Ok(sender.send(task.to).await?) }
    });
    (worker.concurrency(1).prefetch(1), receiver)
}

fn steady() -> RetryPolicy {
    RetryPolicy::default().with_jitter(Jitter::None)
}

#[tokio::test(start_paused = true)]
async fn tasks_wait_for_their_first_worker_and_go_by_priority() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    for (to, priority) in [(1, 1), (2, 9), (3, 1), (4, 9), (5, 5)] {
        let options = SubmitOptions::default().with_priority(priority);
        tasks.submit_with(&Email { to }, options).await.unwrap();
    }
    tasks.submit(&Email { to: 6 }).await.unwrap();
    let (worker, mut sent) = sending();
    let _running = worker.start(&transport).await.unwrap();
    for to in [2, 4, 5, 6, 1, 3] {
        assert_eq!(sent.recv().await, Some(to));
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_comes_when_its_time_has_come() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let (worker, mut sent) = sending();
    let _running = worker.start(&transport).await.unwrap();
    let before = transport.env().now();
    let later = SubmitOptions::default().with_delay(3_600 * SECOND);
    tasks.submit_with(&Email { to: 1 }, later).await.unwrap();
    tasks.submit(&Email { to: 2 }).await.unwrap();
    assert_eq!(sent.recv().await, Some(2));
    assert_eq!(transport.env().now(), before);
    assert_eq!(sent.recv().await, Some(1));
    assert_eq!((transport.env().now() - before).as_secs(), 3_600);
}

#[tokio::test(start_paused = true)]
async fn a_failed_task_is_tried_again() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let (sender, mut sent) = mpsc::channel(1);
    let worker = Worker::new("email")
        .on(move |task: Email, context: Context| {
            let sender = sender.clone();
            async move {
                if context.attempt() < 6 {
                    return Err(HandlerError::transient("the mail server is busy"));
                }
                Ok(sender.send((task.to, context.attempt())).await?)
            }
        })
        .retry(steady());
    let running = worker.start(&transport).await.unwrap();
    let before = transport.env().now();
    tasks.submit(&Email { to: 1 }).await.unwrap();
    assert_eq!(sent.recv().await, Some((1, 6)));
    assert_eq!((transport.env().now() - before).as_secs(), 3);
    assert_eq!(running.stats().retried, 5);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_is_bounded() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let worker = Worker::new("email").on(|task: Email, _context| async move {
        assert!(task.to > 1, "nobody is {}", task.to);
        Ok(())
    });
    let running = worker.start(&transport).await.unwrap();
    tasks.submit(&Email { to: 1 }).await.unwrap();
    tasks.submit(&Email { to: 2 }).await.unwrap();
    let dead = take(&*transport, "dead_letter_email").await;
    assert_eq!(text(&dead, "postrider-error-code"), Some("PANIC"));
    let reason = text(&dead, "postrider-error-message").unwrap();
    assert!(reason.contains("nobody is 1"), "{reason}");
    let attempts = dead.headers.get("postrider-attempts");
    assert_eq!(attempts.and_then(HeaderValue::as_int), Some(9));
    assert_eq!(running.stats().acked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_calls_itself_off_is_bounded() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let tries = AtomicU32::new(0);
    let worker = Worker::new("email").on(move |_task: Email, _context| {
        let class = match tries.fetch_add(1, Ordering::Relaxed) {
            0..100 => ErrorClass::Cancelled,
            // It would go on for ever.
            _ => ErrorClass::Invalid,
        };
        async move { Err(HandlerError::new(class, "not today")) }
    });
    let running = worker.retry(steady()).start(&transport).await.unwrap();
    tasks.submit(&Email { to: 1 }).await.unwrap();
    let dead = take(&*transport, "dead_letter_email").await;
    assert_eq!(text(&dead, "postrider-error-class"), Some("CANCELLED"));
    assert_eq!((running.stats().retried, running.stats().released), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ends_because_it_is_given_up_is_not_counted() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let (begun, mut beginning) = mpsc::channel(1);
    let worker = Worker::new("email").on(move |_task: Email, context: Context| {
        let begun = begun.clone();
        async move {
            begun.send(()).await?;
            context.cancellation().cancelled().await;
            Err(HandlerError::new(ErrorClass::Cancelled, "the worker stops"))
        }
    });
    let running = worker.start(&transport).await.unwrap();
    tasks.submit(&Email { to: 1 }).await.unwrap();
    beginning.recv().await.unwrap();
    let report = running.stop(SECOND).await;
    assert_eq!((report.finished, report.released, report.still_running), (0, 1, 0));
    assert_eq!(common::deliver(&*transport, "email").await.info().failures, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_does_not_hold_the_stop() {
    let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://").unwrap());
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let (begun, mut beginning) = mpsc::channel(1);
    let (unblock, gate) = std::sync::mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let worker = Worker::new("email").on(move |_task: Email, _context| {
        let (begun, gate) = (begun.clone(), Arc::clone(&gate));
        async move {
            begun.send(()).await?;
            tokio::task::block_in_place(|| gate.lock().unwrap().recv())?;
            Ok(())
        }
    });
    let running = worker.start(&transport).await.unwrap();
    tasks.submit(&Email { to: 1 }).await.unwrap();
    beginning.recv().await.unwrap();
    let report = running.stop(Duration::from_millis(10)).await;
    assert_eq!((report.finished, report.released, report.still_running), (0, 0, 1));
    // It has the task still, and is done with it in its own time.
    unblock.send(()).unwrap();
    let mut rest = transport.queue_info("email").await.unwrap().unwrap();
    while rest.unsettled != Some(0) {
        tokio::task::yield_now().await;
        rest = transport.queue_info("email").await.unwrap().unwrap();
    }
    assert_eq!(rest.ready, 0);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_was_deleted_is_declared_again() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let queue = Topology::new().queue(Queue::durable("email"));
    tasks.submit(&Email { to: 1 }).await.unwrap();
    transport.remove(&queue).await.unwrap();
    let id = tasks.submit(&Email { to: 2 }).await.unwrap();
    let kept = take(&*transport, "email").await;
    assert_eq!(kept.message_id.as_deref(), Some(id.as_str()));
    transport.remove(&queue).await.unwrap();
    tasks.submit_all(&[3, 4].map(|to| Email { to })).await.unwrap();
    assert_eq!(common::ready(&*transport, "email").await, 2);
}

#[tokio::test(start_paused = true)]
async fn unknown_and_undecodable_tasks_are_kept_with_the_reason() {
    let transport = transport();
    let (worker, mut sent) = sending();
    let running = worker.start(&transport).await.unwrap();
    for (body, code) in [
        (r#"{"type":"telegram","params":{"to":1}}"#, "UNKNOWN_TASK"),
        (r#"{"params":{"to":1}}"#, "UNKNOWN_TASK"),
        (r#"{"type":"email","params":{"to":"everyone"}}"#, "UNDECODABLE"),
        (r#"{"type":"email"}"#, "UNDECODABLE"),
        ("email", "UNDECODABLE"),
    ] {
        publish(&*transport, Address::queue("email"), Message::new(body)).await;
        let dead = take(&*transport, "dead_letter_email").await;
        assert_eq!(dead.body, body);
        assert_eq!(text(&dead, "postrider-error-code"), Some(code), "{body}");
    }
    // What a plain client must send, and what it may leave to the properties.
    let plain = Message::new(r#"{"type":"email","params":{"to":7},"timestamp":null}"#);
    publish(&*transport, Address::queue("email"), plain).await;
    assert_eq!(sent.recv().await, Some(7));
    let typed = Message::new(r#"{"params":{"to":8}}"#).with_type("email");
    publish(&*transport, Address::queue("email"), typed).await;
    assert_eq!(sent.recv().await, Some(8));
    assert_eq!(running.stats().dead_lettered, 5);
}

#[tokio::test(start_paused = true)]
async fn an_expired_task_is_kept_too() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let soon = SubmitOptions::default().with_ttl(SECOND);
    let id = tasks.submit_with(&Email { to: 1 }, soon).await.unwrap();
    let dead = take(&*transport, "dead_letter_email").await;
    assert_eq!(dead.message_id.as_deref(), Some(id.as_str()));
}

#[tokio::test(start_paused = true)]
async fn stopping_drains_and_gives_the_rest_back() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let started = Log::default();
    let log = started.clone();
    let (begun, mut beginning) = mpsc::channel(10);
    let worker = Worker::new("email")
        .on(move |task: Email, context: Context| {
            log.push(task.to);
            let begun = begun.clone();
            async move {
                begun.send(context.cancellation().clone()).await?;
                if task.to == 1 {
                    tokio::time::sleep(3 * SECOND).await;
                } else {
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        })
        .concurrency(3)
        .prefetch(6);
    let running = worker.start(&transport).await.unwrap();
    tasks.submit_all(&[1, 2, 3, 4, 5].map(|to| Email { to })).await.unwrap();
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(beginning.recv().await.unwrap());
    }
    let before = transport.env().now();
    let report = running.stop(10 * SECOND).await;
    assert_eq!(transport.env().now() - before, 10 * SECOND);
    assert_eq!((report.finished, report.released, report.still_running), (1, 2, 0));
    assert_eq!(started.items(), [1, 2, 3]);
    assert!(tokens.iter().all(|token| token.is_cancelled()));

    // Two that were given up, two that were only taken in advance; none counted as failed.
    let (worker, mut sent) = sending();
    let _running = worker.start(&transport).await.unwrap();
    let mut rest = Vec::new();
    for _ in 0..4 {
        rest.push(sent.recv().await.unwrap());
    }
    rest.sort_unstable();
    assert_eq!(rest, [2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_handle_gives_the_messages_back_at_once() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let (begun, mut beginning) = mpsc::channel(1);
    let worker = Worker::new("email").on(move |_task: Email, _context| {
        let begun = begun.clone();
        async move {
            begun.send(()).await?;
            std::future::pending().await
        }
    });
    let running = worker.start(&transport).await.unwrap();
    tasks.submit(&Email { to: 1 }).await.unwrap();
    beginning.recv().await.unwrap();
    drop(running);
    let delivery = common::deliver(&*transport, "email").await;
    assert_eq!(delivery.info().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_place_for_dead_letters_that_was_deleted_is_made_again() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let worker = Worker::new("email")
        .on(|_task: Email, _context| async { Err(HandlerError::invalid("never")) });
    let running = worker.start(&transport).await.unwrap();
    // Without its binding the dead-letter exchange routes nowhere.
    let naming = postrider_patterns::Naming::default();
    let mut keeping = postrider_patterns::dead_letter_topology(&naming, "email");
    keeping.queues.clear();
    keeping.exchanges.clear();
    transport.remove(&keeping).await.unwrap();
    tasks.submit(&Email { to: 1 }).await.unwrap();
    let dead = take(&*transport, "dead_letter_email").await;
    assert_eq!(text(&dead, "postrider-error-message"), Some("never"));
    assert_eq!(running.stats().retried, 0, "it is not handled again for that");
}

#[tokio::test(start_paused = true)]
async fn both_codecs_meet_on_one_queue() {
    let transport = transport();
    let (worker, mut sent) = sending();
    let _running = worker.start(&transport).await.unwrap();
    for (to, codec) in [(1, Codec::Json), (2, Codec::MessagePack)] {
        let tasks = WorkQueue::builder(&transport).codec(codec);
        let tasks = tasks.connect().await.unwrap();
        tasks.submit(&Email { to }).await.unwrap();
        assert_eq!(sent.recv().await, Some(to));
    }
}

#[tokio::test(start_paused = true)]
async fn workers_that_cannot_work_are_refused() {
    let transport = transport();
    let handler = |_task: Email, _context| async { Ok(()) };
    let other = |_task: Report, _context| async { Ok(()) };
    for (worker, complaint) in [
        (Worker::new("email"), "no handlers"),
        (Worker::new("email").on(handler).on(handler), "two handlers"),
        (Worker::new("email").on(other), "queue 'report'"),
        (Worker::new("email").on(handler).delivery_limit(8), "delivery limit"),
        (Worker::new("email").on(handler).concurrency(0), "concurrency"),
    ] {
        let error = worker.start(&transport).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(complaint), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_closed_transport_refuses_tasks() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    transport.close(SECOND).await.unwrap();
    let error = tasks.submit(&Email { to: 1 }).await.unwrap_err();
    assert!(matches!(error, PublishError::Transport(error) if error.kind() == ErrorKind::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_queue_with_another_time_to_live_is_no_queue_for_the_worker() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    tasks.submit(&Email { to: 1 }).await.unwrap();
    let (worker, _sent) = sending();
    let error = worker.ttl(SECOND).start(&transport).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

#[tokio::test(start_paused = true)]
async fn priorities_and_times_that_the_broker_has_not_are_refused() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let now = transport.env().timestamp();
    for (options, kind) in [
        (SubmitOptions::default().with_priority(32), ErrorKind::Unsupported),
        (SubmitOptions::default().with_delay(SECOND).at(now), ErrorKind::Invalid),
        (SubmitOptions::default().at(now + chrono::TimeDelta::days(50)), ErrorKind::Invalid),
    ] {
        let refused = tasks.submit_with(&Email { to: 1 }, options).await;
        let Err(PublishError::Transport(error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.kind(), kind, "{error}");
    }
    let highest = SubmitOptions::default().with_priority(31);
    tasks.submit_with(&Email { to: 1 }, highest).await.unwrap();
    assert_eq!(take(&*transport, "email").await.priority, Some(31));
}
