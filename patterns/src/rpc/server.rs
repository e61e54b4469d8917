use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use postrider_core::{
    Address, DeliveryInfo, Env, Envelope, Error, ErrorKind, Message, Publisher, PublisherOptions,
    Queue, Result, Topology, Transport,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use super::{
    Request,
    wire::{self, RequestHead},
};
use crate::{
    codec::{Codec, Limits},
    consuming::{Count, Counters, Disposition, Process, Runner, Running, Settings, catch_panic},
    handler::{Context, ErrorClass, HandlerError, codes},
    naming::Naming,
    resilience::{DeadLetters, dead_letter_topology},
};

/// How long the request queue outlives the last server of its service.
const QUEUE_EXPIRES: Duration = Duration::from_secs(60);

type Method = Arc<
    dyn Fn(Codec, Limits, Context) -> BoxFuture<'static, Result<Bytes, HandlerError>> + Send + Sync,
>;

/// Runs the methods of a service. Servers of one service share its requests.
///
/// A request is acknowledged after the broker has its reply. When the reply cannot be published,
/// or it is not known whether it was, the request goes back to its queue and is run again. Only a
/// reply that reaches no queue, because its caller is gone, or that the broker refuses is dropped
/// and counted in [`RunStats::replies_dropped`](crate::RunStats::replies_dropped).
///
/// A handler's error is an answer: its class, code and message go to the caller. What an error of class
/// [`Internal`](ErrorClass::Internal) says stays in the log, a panic's text included, unless
/// [`expose_details`](Self::expose_details) is set. A body whose method cannot be read is answered
/// where it can be and kept in the dead-letter queue. A request whose deadline has passed is not
/// run.
#[must_use = "call start"]
pub struct RpcServer {
    service: String,
    naming: Naming,
    limits: Limits,
    settings: Settings,
    expose_details: bool,
    methods: HashMap<String, Method>,
    duplicates: Vec<String>,
}

impl RpcServer {
    /// A server of `service` without methods.
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            naming: Naming::default(),
            limits: Limits::default(),
            settings: Settings::default(),
            expose_details: false,
            methods: HashMap::new(),
            duplicates: Vec::new(),
        }
    }

    /// Adds the method of a typed request.
    pub fn method<R, F, Fut>(self, handler: F) -> Self
    where
        R: Request,
        F: Fn(R, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Reply, HandlerError>> + Send + 'static,
    {
        self.method_named(R::METHOD, handler)
    }

    /// Adds a method by its name, with any parameters and reply.
    pub fn method_named<P, R, F, Fut>(mut self, name: impl Into<String>, handler: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(P, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        let name = name.into();
        let handler = Arc::new(handler);
        let method: Method = Arc::new(move |codec, limits, context: Context| {
            let handler = Arc::clone(&handler);
            Box::pin(async move {
                let params = wire::decode_params(codec, limits, &context.message().body).map_err(
                    |error| HandlerError::undecodable(&error).with_code(codes::INVALID_PARAMS),
                )?;
                let reply = handler(params, context).await?;
                wire::encode_success(codec, limits, &reply)
                    .map_err(|error| HandlerError::internal(error.to_string()))
            })
        });
        match self.methods.entry(name) {
            Entry::Occupied(first) => self.duplicates.push(first.key().clone()),
            Entry::Vacant(free) => {
                free.insert(method);
            }
        }
        self
    }

    /// How many requests are handled at once. Default: 16.
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.settings.concurrency = requests;
        self
    }

    /// How many requests are taken in advance, those at work included. Default: three times the
    /// concurrency, at most 1,000.
    pub fn prefetch(mut self, requests: u16) -> Self {
        self.settings.prefetch = Some(requests);
        self
    }

    /// The names of queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// How large bodies may be. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Tells callers what internal errors and panics say. Default: false.
    pub fn expose_details(mut self, expose: bool) -> Self {
        self.expose_details = expose;
        self
    }

    /// Declares the service's queue and its dead-letter queue, and begins to serve.
    ///
    /// Cancellation safe: when the future is dropped, nothing is served, and what was declared
    /// stays, the service's queue for 60 seconds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a server without methods, a method that was added twice or options
    /// out of range, and what [`Transport::declare`], [`Transport::publisher`] and
    /// [`Transport::consumer`] fail with.
    pub async fn start(self, transport: &Arc<dyn Transport>) -> Result<Running> {
        if self.methods.is_empty() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "start",
                "a server without methods would refuse every request; add one",
            )
            .with_context("service", self.service));
        }
        if !self.duplicates.is_empty() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "start",
                "a service has one handler for each method, and some were added twice",
            )
            .with_context("service", self.service)
            .with_context("methods", self.duplicates.join(", ")));
        }
        let queue = self.naming.rpc_queue(&self.service);
        let topology = Topology::new()
            .queue(Queue::classic(queue.clone()).with_expires(QUEUE_EXPIRES))
            .and(dead_letter_topology(&self.naming, &queue));
        transport.declare(&topology).await?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let counters = Arc::new(Counters::default());
        let runner = Runner {
            dead_letters: DeadLetters::new(transport, publisher.clone(), &self.naming, &queue),
            settings: self.settings,
            counters: Arc::clone(&counters),
            process: Serve {
                methods: self.methods,
                publisher,
                env: transport.env().clone(),
                limits: self.limits,
                expose_details: self.expose_details,
                counters,
            },
        };
        runner.start(transport, &queue).await
    }
}

impl fmt::Debug for RpcServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut methods: Vec<_> = self.methods.keys().collect();
        methods.sort_unstable();
        f.debug_struct("RpcServer")
            .field("service", &self.service)
            .field("methods", &methods)
            .finish_non_exhaustive()
    }
}

/// Whether a request has the reply that it can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replied {
    Done,
    Not,
}

impl Replied {
    /// After a publish that failed: whether the same reply may get through another time.
    const fn after(failure: ErrorKind) -> Self {
        match failure {
            ErrorKind::Closed
            | ErrorKind::Unavailable
            | ErrorKind::TimedOut
            | ErrorKind::Unknown
            | ErrorKind::Internal => Self::Not,
            // Nobody waits for it, or its queue or the broker will never take it.
            _ => Self::Done,
        }
    }
}

impl From<Replied> for Disposition {
    fn from(replied: Replied) -> Self {
        match replied {
            Replied::Done => Self::Ack,
            Replied::Not => Self::Release,
        }
    }
}

/// Answers one request after the other.
struct Serve {
    methods: HashMap<String, Method>,
    publisher: Arc<dyn Publisher>,
    env: Env,
    limits: Limits,
    expose_details: bool,
    counters: Arc<Counters>,
}

impl Process for Serve {
    async fn process(
        &self,
        envelope: &Arc<Envelope>,
        info: &DeliveryInfo,
        cancellation: &CancellationToken,
    ) -> Disposition {
        let request = &envelope.message;
        let (codec, method) = match self.read(request) {
            Ok(read) => read,
            Err(error) => {
                return match self.reply(request, Codec::Json, Err(&error)).await {
                    Replied::Done => Disposition::DeadLetter(error),
                    Replied::Not => Disposition::Release,
                };
            }
        };
        if request.deadline.is_some_and(|deadline| deadline <= self.env.timestamp()) {
            self.counters.add(Count::Expired);
            let late = HandlerError::new(
                ErrorClass::DeadlineExceeded,
                "the request's deadline had passed before it was handled",
            );
            return self.reply(request, codec, Err(&late)).await.into();
        }
        let outcome = match method {
            Ok(method) => {
                let context = Context::new(
                    Arc::clone(envelope),
                    info.clone(),
                    self.env.clone(),
                    cancellation,
                );
                let limits = self.limits;
                catch_panic(async move { method(codec, limits, context).await }).await
            }
            Err(unknown) => Err(unknown),
        };
        if let Err(error) = &outcome
            && error.class() == ErrorClass::Internal
        {
            tracing::error!(queue = %info.queue, %error, "a request failed");
        }
        self.reply(request, codec, outcome.as_ref()).await.into()
    }
}

impl Serve {
    /// The codec and the method of a request. What cannot be read at all is the outer error; a
    /// method that is not there is the inner one.
    #[allow(clippy::type_complexity)] // It is what the sentence above says.
    fn read(
        &self,
        request: &Message,
    ) -> Result<(Codec, Result<&Method, HandlerError>), HandlerError> {
        let codec = Codec::of(request.content_type.as_deref(), &request.body)
            .map_err(|error| HandlerError::undecodable(&error))?;
        let head: RequestHead<'_> = codec
            .read(&request.body, self.limits)
            .map_err(|error| HandlerError::undecodable(&error))?;
        let method = self.methods.get(&*head.method).ok_or_else(|| {
            HandlerError::unsupported(format!("there is no method '{}'", head.method))
                .with_code(codes::UNKNOWN_METHOD)
        });
        Ok((codec, method))
    }

    /// Publishes the reply and waits until the broker has it. A caller that is gone is no failure.
    async fn reply(
        &self,
        request: &Message,
        codec: Codec,
        outcome: Result<&Bytes, &HandlerError>,
    ) -> Replied {
        let Some(reply_to) = request.reply_to.clone() else {
            if let Err(error) = outcome {
                tracing::warn!(%error, "a request without reply-to failed");
            }
            return Replied::Done;
        };
        let reply = match outcome {
            Ok(body) => Message::new(body.clone()),
            Err(error) => match self.error_reply(codec, error) {
                Some(reply) => reply,
                None => return Replied::Done,
            },
        };
        let mut reply = reply
            .with_content_type(codec.content_type())
            .with_message_id(self.env.new_id().to_string())
            .with_timestamp(self.env.timestamp())
            // It is of no use after a restart of the broker: its queue is gone.
            .transient();
        reply.correlation_id.clone_from(&request.correlation_id);
        reply.causation_id.clone_from(&request.message_id);
        let envelope = Envelope::new(Address::Queue(reply_to), reply);
        let published = match self.publisher.send(envelope).await {
            Ok(confirm) => confirm.await.into_result(),
            Err(error) => Err(error),
        };
        let Err(error) = published else {
            return Replied::Done;
        };
        let replied = Replied::after(error.kind());
        match replied {
            Replied::Done => {
                self.counters.add(Count::RepliesDropped);
                tracing::debug!(%error, "a reply was dropped");
            }
            Replied::Not => {
                tracing::warn!(%error, "a reply was not published; its request is run again");
            }
        }
        replied
    }

    fn error_reply(&self, codec: Codec, error: &HandlerError) -> Option<Message> {
        let message = if error.class() == ErrorClass::Internal && !self.expose_details {
            "an internal error; the log of the service says why"
        } else {
            error.message()
        };
        match wire::encode_error(codec, self.limits, error.code(), message) {
            Ok(body) => Some(wire::mark_error(Message::new(body), error)),
            Err(failed) => {
                self.counters.add(Count::RepliesDropped);
                tracing::error!(%error, %failed, "an error reply cannot be encoded");
                None
            }
        }
    }
}
