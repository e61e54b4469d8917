//! Middleware around handlers, on virtual time.

mod common;
mod layers;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use common::{Log, SECOND, publish, ready, take, transport};
use postrider_core::{Address, Message, Transport};
use postrider_patterns::{
    Codec, ConcurrencyLimit, Context, Deduplicate, Event, EventBus, HandlerError, InMemorySeen,
    Middleware, Naming, Next, RetryPolicy, Running, Subscription, Task, WorkQueue, Worker, codes,
    headers,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::sleep;

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

async fn submit(transport: &Arc<dyn Transport>, to: &[u32]) {
    let tasks: Vec<_> = to.iter().map(|to| Email { to: *to }).collect();
    WorkQueue::new(transport).await.unwrap().submit_all(&tasks).await.unwrap();
}

/// Notes when it is entered and left, and with which code.
#[derive(Debug)]
struct Noting(&'static str, Log<String>);

#[async_trait]
impl Middleware for Noting {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        self.1.push(format!("{} in", self.0));
        let result = next.run(context).await;
        let code = result.as_ref().map_or_else(|error| error.code().to_owned(), |()| "ok".into());
        self.1.push(format!("{} {code}", self.0));
        result
    }
}

#[derive(Debug)]
struct Panics;

#[async_trait]
impl Middleware for Panics {
    async fn handle(&self, _: &Context, _: Next<'_>) -> Result<(), HandlerError> {
        panic!("a layer gives way")
    }
}

/// By the parameters, so that a task that is submitted twice is a copy.
fn by_params() -> Deduplicate {
    Deduplicate::by(|context| {
        let message = context.message();
        let task: Value = Codec::decode(message.content_type.as_deref(), &message.body).ok()?;
        Some(task["params"].to_string())
    })
}

#[tokio::test(start_paused = true)]
async fn the_first_is_outermost_and_each_try_passes_through_all() {
    let transport = transport();
    let log = Log::default();
    let running = Worker::new("email")
        .on(|_task: Email, context: Context| async move {
            assert!(context.attempt() > 1, "a handler that panics");
            Ok(())
        })
        .with(Noting("outer", log.clone()))
        .with(Noting("inner", log.clone()))
        .start(&transport)
        .await
        .unwrap();
    submit(&transport, &[1]).await;
    sleep(SECOND).await;
    let panic = [format!("inner {}", codes::PANIC), format!("outer {}", codes::PANIC)];
    let first = ["outer in", "inner in", &panic[0], &panic[1]];
    let second = ["outer in", "inner in", "inner ok", "outer ok"];
    assert_eq!(log.items(), [first, second].concat());
    assert_eq!((running.stats().retried, running.stats().acked), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_middleware_is_a_failure_of_the_message() {
    let transport = transport();
    let bus = EventBus::new(&transport).await.unwrap();
    let subscription = Subscription::durable("ledger", "paid")
        .on(|_event: Paid, _context| async { Ok(()) })
        .retry(RetryPolicy::never())
        .with(Panics);
    let running = bus.subscribe(subscription).await.unwrap();
    bus.publish(&Paid { order: 1 }).await.unwrap();
    sleep(SECOND).await;
    assert_eq!((running.stats().acked, running.stats().dead_lettered), (0, 1));
}

/// A worker whose handler takes a second, fails the first try of task 13, and notes what it did.
async fn slow_worker(
    transport: &Arc<dyn Transport>,
    middleware: impl Middleware,
    log: &Log<(u32, u32)>,
) -> Running {
    let log = log.clone();
    Worker::new("email")
        .on(move |task: Email, context: Context| {
            let log = log.clone();
            async move {
                sleep(SECOND).await;
                log.push((task.to, context.attempt()));
                if task.to == 13 && context.attempt() == 1 {
                    return Err(HandlerError::transient("busy"));
                }
                Ok(())
            }
        })
        .handler_timeout(2 * SECOND)
        .with(middleware)
        .start(transport)
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_copy_waits_for_the_first_and_is_acknowledged_after_it() {
    let transport = transport();
    let (log, once) = (Log::default(), by_params());
    let running = slow_worker(&transport, once.clone(), &log).await;
    submit(&transport, &[1, 1, 2]).await;
    sleep(10 * SECOND).await;
    assert_eq!(log.items(), [(1, 1), (2, 1)]);
    assert_eq!((once.duplicates(), running.stats().acked), (1, 3));
}

/// Publishes copies of one task, each changed, to a worker, and tells how many it handled.
async fn handled(once: &Deduplicate, copies: Vec<fn(Message) -> Message>) -> usize {
    let transport = transport();
    submit(&transport, &[1]).await;
    let queue = Naming::default().task_queue("email");
    let message = take(&*transport, &queue).await;
    for change in copies {
        publish(&*transport, Address::queue(queue.clone()), change(message.clone())).await;
    }
    let log = Log::default();
    let _running = slow_worker(&transport, once.clone(), &log).await;
    sleep(10 * SECOND).await;
    log.items().len()
}

#[tokio::test(start_paused = true)]
async fn copies_are_known_by_their_message_id() {
    let once = Deduplicate::by_message_id();
    let without = |mut message: Message| {
        message.message_id = None;
        message
    };
    let copies: Vec<fn(Message) -> Message> =
        vec![|same| same, |same| same, |other| other.with_message_id("other"), without, without];
    assert_eq!((handled(&once, copies).await, once.duplicates()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn copies_are_known_by_the_idempotency_key_of_one_caller() {
    let once = Deduplicate::by_idempotency_key();
    let of_ann = |message: Message| {
        message.with_header(headers::IDEMPOTENCY_KEY, "7").with_header(headers::CALLER, "ann")
    };
    let again = |message: Message| {
        message
            .with_message_id("again")
            .with_header(headers::IDEMPOTENCY_KEY, "7")
            .with_header(headers::CALLER, "ann")
    };
    let of_bob = |message: Message| {
        message.with_header(headers::IDEMPOTENCY_KEY, "7").with_header(headers::CALLER, "bob")
    };
    let copies: Vec<fn(Message) -> Message> = vec![of_ann, again, of_bob];
    assert_eq!((handled(&once, copies).await, once.duplicates()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failed_message_is_no_duplicate() {
    let transport = transport();
    let (log, once) = (Log::default(), by_params());
    let running = slow_worker(&transport, once.clone(), &log).await;
    submit(&transport, &[13]).await;
    sleep(10 * SECOND).await;
    assert_eq!(log.items(), [(13, 1), (13, 2)]);
    assert_eq!((once.duplicates(), running.stats().acked), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded_by_time_and_number() {
    let transport = transport();
    let log = Log::default();
    let once = by_params().seen(InMemorySeen::bounded(2, Duration::from_secs(60)));
    let _running = slow_worker(&transport, once.clone(), &log).await;
    // The third key pushes the first out; after a minute all are forgotten.
    for to in [1, 2, 2, 3, 1] {
        submit(&transport, &[to]).await;
        sleep(2 * SECOND).await;
    }
    sleep(60 * SECOND).await;
    submit(&transport, &[1]).await;
    sleep(2 * SECOND).await;
    let handled: Vec<_> = log.items().into_iter().map(|(to, _)| to).collect();
    assert_eq!((handled, once.duplicates()), (vec![1, 2, 3, 1, 1], 1));
}

#[tokio::test(start_paused = true)]
async fn a_limit_makes_messages_wait_and_fails_none_by_the_time_of_handlers() {
    let transport = transport();
    let log = Log::default();
    let running = slow_worker(&transport, ConcurrencyLimit::new(1), &log).await;
    submit(&transport, &[1, 2, 3, 4, 5]).await;
    sleep(Duration::from_millis(3_500)).await;
    assert_eq!(log.items().len(), 3);
    sleep(3 * SECOND).await;
    assert_eq!(log.items().len(), 5);
    assert_eq!((running.stats().retried, running.stats().acked), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_shared_by_the_workers_that_it_is_added_to() {
    let transport = transport();
    let (log, limit) = (Log::default(), ConcurrencyLimit::new(1));
    let _one = slow_worker(&transport, limit.clone(), &log).await;
    let _other = slow_worker(&transport, limit, &log).await;
    submit(&transport, &[1, 2, 3, 4]).await;
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(log.items().len(), 2);
    sleep(2 * SECOND).await;
    assert_eq!(log.items().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_waits_when_the_worker_stops_goes_back_uncounted() {
    let transport = transport();
    let (log, limit) = (Log::default(), ConcurrencyLimit::new(1));
    let running = slow_worker(&transport, limit.clone(), &log).await;
    submit(&transport, &[1, 2, 3]).await;
    sleep(Duration::from_millis(500)).await;
    let queue = running.queue().to_owned();
    let report = running.stop(SECOND).await;
    assert_eq!((report.finished, report.released), (1, 2));
    assert_eq!((ready(&*transport, &queue).await, limit.free()), (2, 1));
}
