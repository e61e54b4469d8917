use std::{borrow::Cow, sync::Arc};

use async_trait::async_trait;
use postrider_core::{Address, Confirm, Env, Envelope, Message, Publisher, Result, Verdict};
use tracing::{Instrument, Span, field::Empty};

use super::{
    Middleware, Next, PublisherMiddleware,
    publisher::{destination, observed, verdict_text},
};
use crate::{
    handler::{Context, HandlerError, class_of},
    trace_context::TraceContext,
};

/// A [`tracing`] span for each try of a message, and, around a publisher, for each message that is
/// published until its verdict.
///
/// The trace goes on from the header `traceparent` of the message, by W3C Trace Context, or begins
/// where there is none, and is handed on, with `tracestate`, to what is published or called from
/// the [`Context`]. It reaches messages that are published without the context only where a
/// publisher has this middleware, and they begin a trace there.
///
/// Spans have level `INFO` and are named `process` and `send`. Their fields are those of the
/// OpenTelemetry semantic conventions for messaging: `messaging.system`,
/// `messaging.operation.type`, `messaging.operation.name`, `messaging.destination.name` (the queue
/// of a consumer, the exchange or queue of a publisher), `messaging.message.id`,
/// `messaging.message.conversation_id`, `messaging.message.body.size`, `error.type` (the class of
/// the error, or the verdict); with `otel.name`, `otel.kind` and `otel.status_code` as
/// `tracing-opentelemetry` reads them; and `trace_id`, `span_id`, `parent_span_id`,
/// `postrider.message.type`, `postrider.attempt`.
///
/// The ids are ours: a bridge to OpenTelemetry makes ids of its own for the spans that it exports,
/// and finds ours in the fields.
///
/// # Example: from the publisher to the handler and on
///
/// ```
/// # use std::sync::Arc;
/// # use postrider_core::Transport;
/// use postrider_patterns::{EventBus, Trace, Worker};
///
/// # async fn run(transport: Arc<dyn Transport>) -> Result<(), postrider_core::Error> {
/// let trace = Trace::new("rabbitmq");
/// let bus = EventBus::builder(&transport).with(trace.clone()).connect().await?;
/// let worker = Worker::new("send_email").with(trace);
/// # drop((bus, worker));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Trace {
    system: Cow<'static, str>,
}

impl Trace {
    /// With the name of the broker for `messaging.system`, such as `rabbitmq`.
    pub fn new(system: impl Into<Cow<'static, str>>) -> Self {
        Self { system: system.into() }
    }

    fn process_span(&self, context: &Context, here: TraceContext) -> Span {
        let message = context.message();
        tracing::info_span!(
            "process",
            otel.name = format!("process {}", context.queue()),
            otel.kind = "consumer",
            otel.status_code = Empty,
            messaging.system = &*self.system,
            "messaging.operation.type" = "process",
            messaging.operation.name = "process",
            messaging.destination.name = context.queue(),
            messaging.message.id = context.message_id(),
            messaging.message.conversation_id = context.conversation_id(),
            messaging.message.body.size = message.body.len(),
            "error.type" = Empty,
            trace_id = here.trace_id(),
            span_id = here.span_id(),
            parent_span_id = TraceContext::of(message).map(|parent| parent.span_id()),
            "postrider.message.type" = message.message_type.as_deref(),
            postrider.attempt = context.attempt(),
        )
    }

    fn send_span(
        &self,
        address: &Address,
        message: &Message,
        here: TraceContext,
        parent: Option<TraceContext>,
    ) -> Span {
        let destination = destination(address);
        tracing::info_span!(
            "send",
            otel.name = format!("send {destination}"),
            otel.kind = "producer",
            otel.status_code = Empty,
            messaging.system = &*self.system,
            "messaging.operation.type" = "send",
            messaging.operation.name = "send",
            messaging.destination.name = destination,
            messaging.message.id = message.message_id.as_deref(),
            messaging.message.conversation_id = message.correlation_id.as_deref(),
            messaging.message.body.size = message.body.len(),
            "error.type" = Empty,
            trace_id = here.trace_id(),
            span_id = here.span_id(),
            parent_span_id = parent.map(|parent| parent.span_id()),
            "postrider.message.type" = message.message_type.as_deref(),
        )
    }
}

fn has_failed(span: &Span, why: &str) {
    span.record("otel.status_code", "ERROR").record("error.type", why);
}

#[async_trait]
impl Middleware for Trace {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        let here = context.begin_span();
        let span = self.process_span(context, here);
        let result = next.run(context).instrument(span.clone()).await;
        if let Err(error) = &result
            && !error.is_given_back()
        {
            has_failed(&span, error.class().as_str());
        }
        result
    }
}

impl PublisherMiddleware for Trace {
    fn around(&self, publisher: Arc<dyn Publisher>, env: &Env) -> Arc<dyn Publisher> {
        Arc::new(Tracing { trace: self.clone(), publisher, env: env.clone() })
    }
}

#[derive(Debug)]
struct Tracing {
    trace: Trace,
    publisher: Arc<dyn Publisher>,
    env: Env,
}

impl Tracing {
    /// The span of a message, which is handed on with it.
    fn begin(&self, envelope: &mut Envelope) -> Span {
        let parent = TraceContext::of(&envelope.message);
        let here = match parent {
            Some(parent) => parent.child(&self.env),
            None => TraceContext::new(&self.env),
        };
        here.write(&mut envelope.message);
        self.trace.send_span(&envelope.address, &envelope.message, here, parent)
    }
}

fn until_verdict(span: Span, confirm: Confirm) -> Confirm {
    observed(confirm, move |verdict| match verdict {
        Verdict::Accepted => drop(span),
        other => has_failed(&span, verdict_text(other)),
    })
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Publisher for Tracing {
    async fn send(&self, mut envelope: Envelope) -> Result<Confirm> {
        let span = self.begin(&mut envelope);
        let sent = self.publisher.send(envelope).instrument(span.clone()).await;
        sent.inspect_err(|error| has_failed(&span, class_of(error.kind()).as_str()))
            .map(|confirm| until_verdict(span, confirm))
    }

    async fn send_batch(&self, mut envelopes: Vec<Envelope>) -> Result<Vec<Confirm>> {
        let spans: Vec<_> = envelopes.iter_mut().map(|envelope| self.begin(envelope)).collect();
        match self.publisher.send_batch(envelopes).await {
            Ok(confirms) => {
                let pairs = spans.into_iter().zip(confirms);
                Ok(pairs.map(|(span, confirm)| until_verdict(span, confirm)).collect())
            }
            Err(error) => {
                spans.iter().for_each(|span| has_failed(span, class_of(error.kind()).as_str()));
                Err(error)
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        self.publisher.flush().await
    }
}
