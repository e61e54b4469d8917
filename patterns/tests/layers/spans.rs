//! Spans, and the trace that goes from message to message.

use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use postrider_core::Address;
use postrider_patterns::{
    CallOptions, Context, Event as _, EventBus, HandlerError, Naming, RpcClient, RpcServer,
    SubmitOptions, Subscription, Trace, TraceContext, WorkQueue, Worker, headers,
};
use tokio::time::sleep;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

use crate::{
    Email, Paid,
    common::{Log, SECOND, publish, take, text, transport},
    submit,
};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The fields of a span, or one of them that was recorded later, with the number of the span.
type Fields = BTreeMap<String, String>;

/// Notes the spans of the middleware.
#[derive(Default, Clone)]
struct Spans {
    next: std::sync::Arc<AtomicU64>,
    log: Log<(u64, Fields)>,
}

impl Spans {
    /// The spans of one kind, complete.
    fn of(&self, kind: &str) -> Vec<Fields> {
        let mut spans = BTreeMap::<u64, Fields>::new();
        for (number, fields) in self.log.items() {
            spans.entry(number).or_default().extend(fields);
        }
        let is_kind = |span: &Fields| span.get("otel.kind").is_some_and(|it| it == kind);
        spans.into_values().filter(is_kind).collect()
    }
}

struct Reading(Fields);

impl Visit for Reading {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("postrider_patterns::middleware")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut reading = Reading(Fields::new());
        span.record(&mut reading);
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.log.push((number, reading.0));
        Id::from_u64(number)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut reading = Reading(Fields::new());
        values.record(&mut reading);
        self.log.push((span.into_u64(), reading.0));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn field<'a>(span: &'a Fields, name: &str) -> Option<&'a str> {
    span.get(name).map(String::as_str)
}

#[tokio::test(start_paused = true)]
async fn each_try_has_a_span_with_the_names_of_the_conventions() {
    let spans = Spans::default();
    let _here = tracing::subscriber::set_default(spans.clone());
    let transport = transport();
    let running = Worker::new("email")
        .on(|_task: Email, context: Context| async move {
            if context.attempt() == 1 {
                return Err(HandlerError::transient("busy"));
            }
            Ok(())
        })
        .with(Trace::new("memory"))
        .start(&transport)
        .await
        .unwrap();
    submit(&transport, &[1]).await;
    sleep(SECOND).await;
    assert_eq!(running.stats().acked, 1);
    let tries = spans.of("consumer");
    assert_eq!(tries.len(), 2);
    let (failed, done) = (&tries[0], &tries[1]);
    let queue = running.queue();
    let process = format!("process {queue}");
    for (name, value) in [
        ("otel.name", &*process),
        ("messaging.system", "memory"),
        ("messaging.operation.type", "process"),
        ("messaging.operation.name", "process"),
        ("messaging.destination.name", queue),
        ("postrider.message.type", "email"),
    ] {
        assert_eq!(field(failed, name), Some(value), "{name}");
    }
    assert!(failed.contains_key("messaging.message.id"));
    assert!(failed.contains_key("messaging.message.body.size"));
    assert_eq!(field(failed, "error.type"), Some("TRANSIENT"));
    assert_eq!(field(failed, "otel.status_code"), Some("ERROR"));
    assert_eq!((field(done, "error.type"), field(done, "postrider.attempt")), (None, Some("2")));
}

#[tokio::test(start_paused = true)]
async fn the_trace_of_a_message_goes_on_in_what_its_handler_publishes() {
    let spans = Spans::default();
    let _here = tracing::subscriber::set_default(spans.clone());
    let transport = transport();
    let bus = EventBus::builder(&transport).with(Trace::new("memory")).connect().await.unwrap();
    let queue = WorkQueue::new(&transport).await.unwrap();
    let subscription = Subscription::durable("ledger", "paid")
        .on(move |event: Paid, context: Context| {
            let queue = queue.clone();
            async move {
                let options = SubmitOptions::default().caused_by(&context);
                queue.submit_with(&Email { to: event.order }, options).await?;
                Ok(())
            }
        })
        .with(Trace::new("memory"));
    let _running = bus.subscribe(subscription).await.unwrap();

    // One that comes with a trace of another system, and one that begins a trace.
    bus.publish(&Paid { order: 1 }).await.unwrap();
    let tasks = Naming::default().task_queue("email");
    sleep(SECOND).await;
    let began = take(&*transport, &tasks).await;
    let template = {
        let names = Naming::default();
        let address = Address::exchange(names.event_exchange(), Paid::TYPE);
        let body = br#"{"event_id":"7","event_type":"order.paid","data":{"order":2},"timestamp":"2026-01-01T00:00:00Z","version":1}"#;
        let message = postrider_core::Message::new(body.as_slice())
            .with_content_type("application/json")
            .with_type(Paid::TYPE)
            .with_header(headers::TRACEPARENT, PARENT)
            .with_header(headers::TRACESTATE, "rojo=1");
        (address, message)
    };
    publish(&*transport, template.0, template.1).await;
    let continued = take(&*transport, &tasks).await;

    let context = TraceContext::of(&continued).unwrap();
    assert_eq!(
        (&*context.trace_id(), text(&continued, headers::TRACESTATE)),
        (TRACE, Some("rojo=1"))
    );
    let tries = spans.of("consumer");
    let span = tries.iter().find(|span| field(span, "trace_id") == Some(TRACE)).unwrap();
    assert_eq!(field(span, "parent_span_id"), Some("00f067aa0ba902b7"));
    assert_eq!(field(span, "span_id"), Some(&*context.span_id()));

    // The publisher's span is the parent of the handler's, in one new trace.
    let began = TraceContext::of(&began).unwrap();
    let sent = &spans.of("producer")[0];
    assert_eq!(field(sent, "trace_id"), Some(&*began.trace_id()));
    assert_eq!(field(sent, "parent_span_id"), None);
    let span = tries.iter().find(|span| field(span, "trace_id") != Some(TRACE)).unwrap();
    assert_eq!(field(span, "parent_span_id"), field(sent, "span_id"));
    assert_eq!(field(span, "span_id"), Some(&*began.span_id()));
}

#[tokio::test(start_paused = true)]
async fn a_trace_goes_through_calls_and_through_handlers_that_trace_nothing() {
    let (transport, seen) = (transport(), Log::default());
    let noted = seen.clone();
    let _server = RpcServer::new("books")
        .method_named("note", move |(): (), context| {
            noted.push(context.trace_context());
            async { Ok(()) }
        })
        .start(&transport)
        .await
        .unwrap();
    let client = RpcClient::new(&transport).await.unwrap();
    let _running = Worker::new("email")
        .on(move |_task: Email, context: Context| {
            let client = client.clone();
            async move {
                let options = CallOptions::default().within(&context);
                let _: () = client.call_named("books", "note", &(), options).await?;
                Ok(())
            }
        })
        .start(&transport)
        .await
        .unwrap();
    submit(&transport, &[1]).await;
    sleep(SECOND).await;
    assert_eq!(seen.items(), [None]);
    let tasks = Naming::default().task_queue("email");
    let body = br#"{"task_type":"email","params":{"to":1}}"#;
    let task = postrider_core::Message::new(body.as_slice())
        .with_content_type("application/json")
        .with_type("email")
        .with_header(headers::TRACEPARENT, PARENT);
    publish(&*transport, Address::queue(tasks), task).await;
    sleep(SECOND).await;
    assert_eq!(seen.items()[1], PARENT.parse().ok());
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_reaches_no_queue_is_a_span_with_an_error() {
    let spans = Spans::default();
    let _here = tracing::subscriber::set_default(spans.clone());
    let transport = transport();
    let bus = EventBus::builder(&transport).with(Trace::new("memory")).connect().await.unwrap();
    bus.publish(&Paid { order: 1 }).await.unwrap();
    let sent = spans.of("producer");
    assert_eq!(field(&sent[0], "error.type"), Some("unroutable"));
    let exchange = Naming::default().event_exchange();
    assert_eq!(field(&sent[0], "messaging.destination.name"), Some(&*exchange));
}
