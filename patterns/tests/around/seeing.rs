//! What middleware sees of messages.

use async_trait::async_trait;
use postrider_core::{ConsumerOptions, Queue, Topology};
use postrider_patterns::{
    Codec, Context, Deduplicate, HandlerError, Middleware, Next, SubmitOptions, Task, Trace,
    TraceContext, codes, headers,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::world::{Email, Log, World, until};

/// By the parameters, so that a task that is submitted twice is a copy.
fn by_params() -> Deduplicate {
    Deduplicate::by(|context| {
        let message = context.message();
        let task: Value = Codec::decode(message.content_type.as_deref(), &message.body).ok()?;
        Some(task["params"].to_string())
    })
}

pub(crate) async fn a_copy_is_done_with_after_the_first_and_a_failed_message_is_no_duplicate(
    world: &World,
) {
    let transport = world.transport().await;
    let (log, once) = (Log::default(), by_params());
    let handled = log.clone();
    let running = world
        .worker()
        .on(move |email: Email, context: Context| {
            let attempt = context.attempt();
            handled.push((email.to, attempt));
            async move {
                match (email.to, attempt) {
                    (13, 1) => Err(HandlerError::transient("busy")),
                    _ => Ok(()),
                }
            }
        })
        .with(once.clone())
        .start(&transport)
        .await
        .unwrap();
    world.submit(&transport, &[1, 13, 1, 2]).await;
    until(|| running.stats().acked == 4, || format!("{:?}", running.stats())).await;
    let mut handled = log.items();
    handled.sort_unstable();
    assert_eq!(handled, [(1, 1), (2, 1), (13, 1), (13, 2)]);
    assert_eq!((once.duplicates(), running.stats().retried), (1, 1));
}

/// Notes when it is entered and left, and with which code.
#[derive(Debug)]
struct Noting(&'static str, Log<String>);

#[async_trait]
impl Middleware for Noting {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        let (name, log) = (self.0, &self.1);
        log.push(format!("{name} in, try {}", context.attempt()));
        let result = next.run(context).await;
        let code = result.as_ref().map_or_else(|error| error.code().to_owned(), |()| "ok".into());
        log.push(format!("{name} {code}"));
        result
    }
}

/// Gives way at the second try.
#[derive(Debug)]
struct Panics;

#[async_trait]
impl Middleware for Panics {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        assert!(context.attempt() != 2, "a layer gives way");
        next.run(context).await
    }
}

pub(crate) async fn each_try_passes_through_all_and_a_panic_among_them_is_a_failure(world: &World) {
    let transport = world.transport().await;
    let log = Log::default();
    let running = world
        .worker()
        .on(|_: Email, _| async { Err(HandlerError::transient("busy")) })
        .with(Noting("outer", log.clone()))
        .with(Panics)
        .with(Noting("inner", log.clone()))
        .start(&transport)
        .await
        .unwrap();
    world.submit(&transport, &[1]).await;
    until(|| running.stats().dead_lettered == 1, || format!("{:?}", running.stats())).await;
    let passed =
        |n| [format!("outer in, try {n}"), format!("inner in, try {n}"), "inner TRANSIENT".into()];
    let failed = |code: &str| format!("outer {code}");
    let mut expected = passed(1).to_vec();
    expected.extend([failed("TRANSIENT"), "outer in, try 2".to_owned()]);
    // A panic ends the layers around it too: the last word is the loop's.
    expected.extend(passed(3));
    expected.push(failed("TRANSIENT"));
    assert_eq!(log.items(), expected);
    let dead = world.letters(&transport).peek(1).await.unwrap();
    assert_eq!((dead[0].attempts(), dead[0].code()), (Some(3), Some("TRANSIENT")));
    assert_ne!(dead[0].code(), Some(codes::PANIC));
}

/// What a handler submits.
#[derive(Serialize, Deserialize)]
struct Seen {}

impl Task for Seen {
    const TYPE: &'static str = "seen";
}

pub(crate) async fn a_trace_goes_on_in_what_a_handler_publishes(world: &World) {
    let transport = world.transport().await;
    let tasks = world.tasks(&transport).await;
    let onward = tasks.clone();
    let contexts = Log::default();
    let log = contexts.clone();
    let running = world
        .worker()
        .on(move |_: Email, context: Context| {
            let (onward, log) = (onward.clone(), log.clone());
            async move {
                log.push(context.trace_context());
                let options = SubmitOptions::default().caused_by(&context);
                onward.submit_with(&Seen {}, options).await?;
                Ok(())
            }
        })
        .with(Trace::new("rabbitmq"))
        .start(&transport)
        .await
        .unwrap();
    let queue = world.naming.task_queue("seen");
    let topology = Topology::new().queue(Queue::durable(queue.clone()));
    transport.declare(&topology).await.unwrap();
    world.submit(&transport, &[1]).await;
    until(|| running.stats().acked == 1, || format!("{:?}", running.stats())).await;
    let mut consumer = transport.consumer(&queue, ConsumerOptions::default()).await.unwrap();
    let delivery = consumer.recv().await.unwrap().unwrap();
    let told = TraceContext::of(delivery.message()).expect("it is in the headers");
    let known = contexts.items()[0].expect("the handler has a trace");
    assert_eq!(told.trace_id(), known.trace_id(), "{:?}", delivery.message().headers);
    assert!(delivery.message().headers.get(headers::TRACEPARENT).is_some());
    delivery.ack();
}
