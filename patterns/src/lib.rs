//! The messaging patterns of Postrider: calls, events and tasks over any transport.
//!
//! | room | what it is for |
//! |---|---|
//! | [`rpc`] | a request to a service and its reply |
//! | [`pubsub`] | events for every subscription, ordered by key where wanted |
//! | [`work_queue`] | tasks for one of many workers, with handles that tell how they fare |
//! | [`streaming`] | large payloads in chunks, to a reader or a file |
//! | [`routing`] | routers, splitters, aggregators and partitions between queues |
//! | [`discovery`] | who is there: instances of services, announced and picked |
//! | [`config`] | settings of a service, published to all its instances |
//! | [`middleware`] | what stands around handlers: limits, a circuit breaker, traces, figures |
//! | [`service`] | several of these in one process: started together, watched, drained |
//! | [`resilience`] | retries, and what becomes of a message that is given up |
//! | [`dead_letters`] | seeing, moving back and throwing away what was given up |
//! | [`consuming`] | the consume loop under them, and how it is stopped |
//! | [`handler`] | what a handler is given and gives back |
//! | [`codec`] | values to bytes and back |
//! | [`naming`] | the names of queues and exchanges |
//! | [`headers`] | the names of headers |
//!
//! Everything here is written against [`postrider_core::Transport`]; no broker is known. The wire
//! formats are open to any client in any language and fixed by tests.
//!
//! # Example: an event, handled
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use postrider_core::Transport;
//! use postrider_patterns::{Event, EventBus, Subscription};
//! use postrider_transport_inmemory::InMemory;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct UserRegistered { name: String }
//!
//! impl Event for UserRegistered {
//!     const TYPE: &'static str = "user.registered";
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://")?);
//! let bus = EventBus::new(&transport).await?;
//! let (welcome, mut welcomed) = tokio::sync::mpsc::channel(8);
//! let subscription = Subscription::durable("mailer", "welcome")
//!     .on(move |event: UserRegistered, context| {
//!         let welcome = welcome.clone();
//!         async move { Ok(welcome.send((event.name, context.attempt())).await?) }
//!     });
//! let running = bus.subscribe(subscription).await?;
//! bus.publish(&UserRegistered { name: "Ann".into() }).await?;
//! assert_eq!(welcomed.recv().await, Some(("Ann".to_owned(), 1)));
//! running.stop(Duration::from_secs(5)).await;
//! # Ok(())
//! # }
//! ```

pub mod codec;
pub mod config;
pub mod consuming;
pub mod dead_letters;
mod derived;
pub mod discovery;
mod error;
pub mod handler;
pub mod headers;
mod listening;
pub mod middleware;
pub mod naming;
mod publishing;
pub mod pubsub;
pub mod resilience;
pub mod routing;
pub mod rpc;
pub mod service;
pub mod streaming;
mod telling;
mod trace_context;
mod wire_time;
pub mod work_queue;

pub use codec::{Codec, CodecError, Limits};
pub use config::{Config, ConfigPublisher};
pub use consuming::{KeyFailure, Outcome, RunStats, Running, StopReport};
pub use dead_letters::{
    DeadLetterFilter, DeadLetterReport, DeadLetters, DeadMessage, DeadReason, Death, RedriveOptions,
};
pub use discovery::{Announcement, Announcer, Pick, Registry};
pub use error::PublishError;
pub use handler::{Context, ErrorClass, HandlerError, codes};
#[cfg(feature = "metrics")]
pub use middleware::Measure;
pub use middleware::{
    CircuitBreaker, CircuitState, ConcurrencyLimit, Deduplicate, InMemorySeen, Middleware, Next,
    PublisherMiddleware, RateLimit, Seen, SeenClaim, SeenKey, Trace,
};
pub use naming::Naming;
pub use publishing::MessageId;
pub use pubsub::{
    Event, EventBus, EventBusBuilder, EventSet, EventVariant, Gap, RawEvent, Subscription,
    UnknownEvents,
};
pub use resilience::{
    Decision, Jitter, RetryPolicy, Tries, dead_letter_route, dead_letter_topology,
};
pub use rpc::{
    BatchOptions, CallHandle, CallOptions, DomainError, Gather, Gathered, InMemoryInbox, Inbox,
    ReplyStream, Request, RpcClient, RpcClientBuilder, RpcClientStats, RpcError, RpcServer,
    ServiceDescription, StreamOptions,
};
pub use service::{
    PartHealth, PartPlan, PartReport, PartState, RunningService, Service, ServiceHealth,
    ServiceMonitor, ServicePhase, ServicePlan, ServiceReport,
};
pub use streaming::{
    ContentHash, Incoming, Outgoing, Progress, Receipt, Saved, StreamError, StreamReceiver,
    StreamSender, StreamSenderBuilder, Transfer,
};
pub use trace_context::{NoTraceContext, TraceContext};
pub use work_queue::{
    DEFAULT_PRIORITY, SubmitOptions, Task, TaskError, TaskHandle, TaskProgress, TaskState,
    TaskStatus, TaskWithResult, WorkQueue, WorkQueueBuilder, Worker,
};
