//! Handles of tasks over the in-memory broker, where time is virtual; what they do over any broker is in
//! `tracked_tasks`.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use common::{SECOND, declare_queue, publish, take, transport};
use postrider_core::{Address, Env, Message, Queue, Topology, Transport};
use postrider_patterns::{
    Context, Deduplicate, HandlerError, Jitter, Limits, RetryPolicy, SubmitOptions, Task,
    TaskError, TaskHandle, TaskStatus, TaskWithResult, WorkQueue, Worker,
};
use postrider_transport_inmemory::{Broker, InMemory};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

#[derive(Serialize, Deserialize)]
struct Email {
    to: u32,
}

impl Task for Email {
    const TYPE: &'static str = "email";
}

impl TaskWithResult for Email {
    type Output = u32;
}

/// The end of a handle, or a failure instead of a test that hangs.
async fn end_of(handle: &TaskHandle<u32>) -> Result<u32, TaskError> {
    timeout(3_600 * SECOND, handle.result()).await.expect("an end")
}

async fn track(tasks: &WorkQueue, options: SubmitOptions) -> TaskHandle<u32> {
    tasks.submit_for_result(&Email { to: 1 }, options).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_task_that_nobody_ends_has_a_handle_that_ends() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let before = transport.env().now();
    let called_off = track(&tasks, SubmitOptions::default()).await;
    let options = SubmitOptions::default().with_delay(40 * SECOND).with_ttl(10 * SECOND);
    let expired = track(&tasks, options).await;
    called_off.cancel().await.unwrap();
    for (handle, after, cause) in [(called_off, 30, "called off"), (expired, 80, "time to live")] {
        let ended = handle.result().await.unwrap_err();
        assert_eq!((transport.env().now() - before).as_secs(), after);
        assert!(matches!(&ended, TaskError::Unknown { cause: why } if why.contains(cause)));
    }
    // A task expires at the front of its queue.
    take(&*transport, "email").await;
    take(&*transport, "dead_letter_email").await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_begun_in_its_time_may_take_longer() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let worker = Worker::new("email").on_result(|task: Email, _context| async move {
        tokio::time::sleep(3_600 * SECOND).await;
        Ok(task.to)
    });
    let _running = worker.start(&transport).await.unwrap();
    let handle = track(&tasks, SubmitOptions::default().with_ttl(SECOND)).await;
    assert_eq!(handle.result().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_four_times_a_second_at_most() {
    let transport = transport();
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    let worker = Worker::new("email").on(|_task: Email, context: Context| async move {
        for step in 0..200_u32 {
            context.progress(f64::from(step) / 200.0, "on its way");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    });
    let running = worker.start(&transport).await.unwrap();
    let task = Message::new(r#"{"type":"email","params":{"to":1}}"#)
        .with_message_id("7")
        .with_reply_to("mine");
    publish(&*transport, Address::queue("email"), task).await;
    let mut steps = Vec::new();
    loop {
        let report = take(&*transport, "mine").await;
        assert_eq!(report.correlation_id.as_deref(), Some("7"));
        let report: serde_json::Value = serde_json::from_slice(&report.body).unwrap();
        match report["state"].as_str().unwrap() {
            "running" => {}
            "progress" => steps.push(report["progress"].as_f64().unwrap()),
            state => {
                assert_eq!(state, "done");
                break;
            }
        }
    }
    assert_eq!(steps, [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]);
    assert_eq!(running.stats().replies_dropped, 0);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_cannot_be_sent_is_told_and_its_task_done() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let worker = Worker::new("email")
        .on_result(|task: Email, _context| async move { Ok(task.to) })
        .on(|_task: Spacious, _context| async { Ok(()) });
    assert!(worker.start(&transport).await.is_err(), "it is of another queue");
    let worker = Worker::new("spacious")
        .on_result(|_task: Spacious, _context| async { Ok("x".repeat(1_000)) });
    let limits = Limits::default().with_max_body_bytes(500);
    let running = worker.limits(limits).start(&transport).await.unwrap();
    let handle = tasks.submit_for_result(&Spacious {}, SubmitOptions::default()).await.unwrap();
    let Err(TaskError::Failed(error)) = handle.result().await else { panic!("{handle:?}") };
    assert_eq!(error.code(), "RESULT_UNSENDABLE");
    while running.stats().acked == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(running.stats().dead_lettered, 0);
}

#[derive(Serialize, Deserialize)]
struct Spacious {}

impl Task for Spacious {
    const TYPE: &'static str = "spacious";
}

impl TaskWithResult for Spacious {
    type Output = String;
}

#[tokio::test(start_paused = true)]
async fn a_reply_queue_that_is_gone_ends_the_handles_and_another_is_made() {
    let (transport, other) = common::two_transports();
    let transport: Arc<dyn Transport> = transport;
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let handle = track(&tasks, SubmitOptions::default()).await;
    let task = take(&*other, "email").await;
    let replies = Queue::exclusive(task.reply_to.unwrap());
    transport.remove(&Topology::new().queue(replies)).await.unwrap();
    assert!(matches!(handle.result().await, Err(TaskError::Unknown { .. })));
    let worker = Worker::new("email").on_result(|task: Email, _context| async move { Ok(task.to) });
    let _running = worker.start(&transport).await.unwrap();
    let handle = track(&tasks, SubmitOptions::default()).await;
    assert_eq!(handle.result().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn closing_the_transport_ends_the_handles() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let handle = track(&tasks, SubmitOptions::default()).await;
    transport.close(SECOND).await.unwrap();
    assert!(matches!(handle.result().await, Err(TaskError::Unknown { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_report_that_comes_late_or_is_none_changes_nothing() {
    let (transport, other) = common::two_transports();
    let transport: Arc<dyn Transport> = transport;
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let handle = track(&tasks, SubmitOptions::default()).await;
    let task = take(&*other, "email").await;
    let report = |body: &'static str| {
        let report = Message::new(body)
            .with_type("postrider.task.report")
            .with_correlation_id(task.message_id.clone().unwrap());
        publish(&*other, Address::queue(task.reply_to.clone().unwrap()), report)
    };
    let mut watched = handle.watch();
    report(r#"{"state":"running","attempt":2}"#).await;
    watched.wait_for(|state| state.status == TaskStatus::Running { attempt: 2 }).await.unwrap();
    report(r#"{"state":"retrying","attempt":1}"#).await;
    report(r#"{"state":"progress","attempt":1,"progress":0.9}"#).await;
    report(r#"{"state":"dancing"}"#).await;
    report("nonsense").await;
    report(r#"{"state":"progress","attempt":2,"progress":0.1}"#).await;
    watched.wait_for(|state| state.progress.is_some()).await.unwrap();
    assert_eq!(handle.status(), TaskStatus::Running { attempt: 2 });
    assert!(handle.progress().unwrap().fraction < 0.5);
    report(r#"{"state":"done","attempt":2,"result":5}"#).await;
    report(r#"{"state":"failed","attempt":3}"#).await;
    assert_eq!(handle.result().await.unwrap(), 5);
    // Time stands still until everything has been taken in.
    tokio::time::sleep(SECOND).await;
    assert_eq!(handle.status(), TaskStatus::Done);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_broker_does_not_take_yet_is_held_and_its_task_not_run_again() {
    let broker = Broker::new(Env::simulated(7));
    let transport: Arc<dyn Transport> = Arc::new(InMemory::connect_to(&broker).unwrap());
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let (alarmed, counted) = (broker.clone(), Arc::clone(&runs));
    let worker = Worker::new("email").on_result(move |task: Email, _context| {
        counted.fetch_add(1, Ordering::Relaxed);
        alarmed.raise_alarm("low on memory");
        async move { Ok(task.to) }
    });
    let running = worker.start(&transport).await.unwrap();
    let handle = track(&tasks, SubmitOptions::default()).await;
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!((running.stats().acked, running.stats().released), (0, 0));
    broker.clear_alarm();
    assert_eq!(handle.result().await.unwrap(), 1);
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_called_off_between_two_tries_has_no_other() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let worker = Worker::new("email").on_result(move |_task: Email, _context| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Err::<u32, _>(HandlerError::transient("not yet")) }
    });
    let delay = 20 * SECOND;
    let policy = RetryPolicy::default()
        .with_jitter(Jitter::None)
        .with_immediate(0)
        .with_delay(delay, 1.0, delay);
    let running = worker.retry(policy).start(&transport).await.unwrap();
    let handle = track(&tasks, SubmitOptions::default()).await;
    let mut watched = handle.watch();
    watched.wait_for(|state| state.status == TaskStatus::Retrying { attempt: 1 }).await.unwrap();
    handle.cancel().await.unwrap();
    assert!(matches!(handle.result().await, Err(TaskError::Cancelled)));
    assert_eq!((tries.load(Ordering::Relaxed), running.stats().cancelled), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_a_middleware_has_done_with_is_done_without_a_result() {
    let transport = transport();
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let once = Deduplicate::by(|_context| Some("the same".to_owned()));
    let worker = Worker::new("email").with(once).on(|_task: Email, _context| async { Ok(()) });
    let _running = worker.start(&transport).await.unwrap();
    for _ in 0..2 {
        let handle = tasks.submit_tracked(&Email { to: 1 }, SubmitOptions::default());
        handle.await.unwrap().result().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_loss_ends_the_handles_of_before_and_of_meanwhile() {
    let (transport, other) = common::two_transports();
    let connection = Arc::clone(&transport);
    let transport: Arc<dyn Transport> = transport;
    let tasks = WorkQueue::new(&transport).await.unwrap();
    let before = track(&tasks, SubmitOptions::default()).await;
    connection.lose_connection();
    let Err(TaskError::Unknown { cause }) = end_of(&before).await else { panic!("{before:?}") };
    assert!(cause.contains("the connection was lost: "), "{cause}");
    let restoring = async { connection.restore_connection() };
    let (meanwhile, ()) = tokio::join!(track(&tasks, SubmitOptions::default()), restoring);
    let ended = end_of(&meanwhile).await.unwrap_err();
    assert!(ended.to_string().contains("while it was submitted"), "{ended}");
    // The tasks are there all the same.
    assert_eq!(common::ready(&*other, "email").await, 2);
}
