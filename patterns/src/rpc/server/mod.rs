mod calls;
mod describe;
mod inbox;
mod method;
mod replies;
mod serve;
mod streaming;

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    fmt,
    future::ready,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use postrider_core::{
    Consumer, ConsumerOptions, Error, ErrorKind, Overflow, PublisherOptions, Queue, Result,
    Topology, Transport,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use self::{calls::Calls, method::Method, replies::Replies, serve::Serve};
pub use self::{
    describe::{MethodDescription, ServiceDescription},
    inbox::{Claim, InMemoryInbox, Inbox, InboxKey, StoredReply},
};
use super::{Request, check_limits, control::Instance};
use crate::{
    codec::Limits,
    consuming::{Counters, Outline, Runner, Running, Settings},
    handler::{Context, HandlerError},
    middleware::{Layers, Middleware},
    naming::Naming,
    resilience::{Keeper, dead_letter_topology},
};

/// How long the request queue outlives the last server of its service.
const QUEUE_EXPIRES: Duration = Duration::from_secs(60);

/// How many control messages are taken in at once.
const CONTROL_PREFETCH: u16 = 1_000;

/// Runs the methods of a service. Servers of one service share its requests.
///
/// A request is acknowledged after the broker has its reply. When the reply cannot be published,
/// or it is not known whether it was, the request goes back to its queue and is run again; an
/// [idempotent](Self::idempotent) one gets the reply that was stored. Only a reply that reaches no
/// queue, because its caller is gone, or that the broker refuses is dropped and counted in
/// [`RunStats::replies_dropped`](crate::RunStats::replies_dropped).
///
/// A handler's error is an answer: its class, code and message go to the caller. What an error of class
/// [`Internal`](crate::ErrorClass::Internal) says stays in the log, a panic's text included, unless
/// [`expose_details`](Self::expose_details) is set. A body whose method cannot be read is answered
/// where it can be and kept in the dead-letter queue.
///
/// A request whose deadline has passed, or whose caller has given it up, is not run. A handler that
/// is at work then sees it by [`Context::cancellation`]; it goes on unless it looks.
#[must_use = "call start"]
pub struct RpcServer {
    service: String,
    naming: Naming,
    limits: Limits,
    settings: Settings,
    expose_details: bool,
    max_waiting: u64,
    clock_tolerance: Duration,
    inbox: Arc<dyn Inbox>,
    methods: BTreeMap<String, Method>,
    duplicates: Vec<String>,
    idempotent: Vec<String>,
    layers: Layers,
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
            max_waiting: 10_000,
            clock_tolerance: Duration::ZERO,
            inbox: Arc::new(InMemoryInbox::default()),
            methods: BTreeMap::new(),
            duplicates: Vec::new(),
            idempotent: Vec::new(),
            layers: Layers::default(),
        }
    }

    /// Adds the method of a typed request.
    pub fn method<R, F, Fut>(self, handler: F) -> Self
    where
        R: Request,
        F: Fn(R, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R::Reply, HandlerError>> + Send + 'static,
    {
        let added = self.method_named(R::METHOD, handler);
        if R::IDEMPOTENT { added.idempotent(R::METHOD) } else { added }
    }

    /// Adds a method by its name, with any parameters and reply.
    pub fn method_named<P, R, F, Fut>(self, name: impl Into<String>, handler: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(P, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        self.add(name.into(), Method::once(handler))
    }

    /// Adds the method of a typed request that is answered by a stream of items. They are sent as
    /// fast as the caller takes them, and an error ends them. When the caller gives the stream up or
    /// is gone, it is dropped. Until its end it takes one of the places of
    /// [`concurrency`](Self::concurrency).
    ///
    /// The request is acknowledged at the end of the stream. A broker ends a consumer that holds a
    /// message for too long (RabbitMQ after 30 minutes, unless it is set up otherwise), and the
    /// stream breaks off then.
    pub fn stream_method<R, S, F, Fut>(self, handler: F) -> Self
    where
        R: Request,
        S: Stream<Item = Result<R::Reply, HandlerError>> + Send + 'static,
        F: Fn(R, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        self.stream_method_named(R::METHOD, handler)
    }

    /// Adds a method by its name that answers by a stream of items; else as
    /// [`stream_method`](Self::stream_method).
    pub fn stream_method_named<P, R, S, F, Fut>(self, name: impl Into<String>, handler: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        S: Stream<Item = Result<R, HandlerError>> + Send + 'static,
        F: Fn(P, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, HandlerError>> + Send + 'static,
    {
        self.add(name.into(), Method::stream(handler))
    }

    fn add(mut self, name: String, method: Method) -> Self {
        match self.methods.entry(name) {
            Entry::Occupied(first) => self.duplicates.push(first.key().clone()),
            Entry::Vacant(free) => {
                free.insert(method);
            }
        }
        self
    }

    /// Declares the method of this name idempotent, as [`Request::IDEMPOTENT`] does for a type: a
    /// request that comes again, by its idempotency key or else its message id, gets the reply that
    /// is in the [inbox](Self::inbox). One that came to every server is run by every server.
    pub fn idempotent(mut self, method: impl Into<String>) -> Self {
        self.idempotent.push(method.into());
        self
    }

    /// Where the replies of idempotent methods are kept. Default: an [`InMemoryInbox`] of its own,
    /// which another server does not see and a crash empties.
    pub fn inbox(mut self, inbox: Arc<dyn Inbox>) -> Self {
        self.inbox = inbox;
        self
    }

    /// Puts a middleware around the methods, within those that were added before it. It sees each
    /// request whose method is run, and how that ends: of a streamed reply, how the stream does.
    ///
    /// Its error is the answer: the caller gets its class, code and message. What is kept from being
    /// run in time gets [`Throttled`](crate::ErrorClass::Throttled) with the code
    /// [`NOT_BEGUN`](crate::codes::NOT_BEGUN), before the caller's own time is over: at once by a
    /// [`RateLimit`](crate::RateLimit), else just before. When the server begins to stop, what waits
    /// goes back to the queue, as does what a middleware [gives back](crate::Next::give_back), for
    /// another server to answer. `Ok` without an answer is an error with the code
    /// [`NOT_ANSWERED`](crate::codes::NOT_ANSWERED).
    ///
    /// Requests that wait keep their places of [`concurrency`](Self::concurrency). What is answered
    /// without its method, such as an unknown one or a duplicate with a stored reply, passes by, and
    /// is told of by [`Middleware::settled`] alone.
    ///
    /// # Example: no more than a thousand at once, and those measured
    ///
    /// ```
    /// use std::time::Duration;
    /// use postrider_patterns::{Context, RateLimit, RpcServer, Trace};
    ///
    /// let server = RpcServer::new("search")
    ///     .method_named("find", |text: String, _: Context| async move { Ok(text) })
    ///     .with(Trace::new("rabbitmq"))
    ///     .with(RateLimit::new(1_000, Duration::from_secs(1)).burst(100));
    /// # drop(server);
    /// ```
    pub fn with(mut self, middleware: impl Middleware) -> Self {
        self.layers.push(middleware);
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

    /// How many requests may wait in the service's queue; more are refused, and their callers get
    /// [`RpcError::Throttled`](super::RpcError::Throttled). From 1 to 2^63 - 1. All servers of a service
    /// must say the same. Default: 10,000.
    pub fn max_waiting(mut self, requests: u64) -> Self {
        self.max_waiting = requests;
        self
    }

    /// How far callers' clocks may be behind this server's: a deadline counts as passed so much
    /// later. The time that a request was given holds whatever the clocks say. Default: zero.
    pub fn clock_tolerance(mut self, behind: Duration) -> Self {
        self.clock_tolerance = behind;
        self
    }

    /// The names of queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// How large bodies may be, at least one byte. Default: 16 MiB.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Tells callers what internal errors and panics say. Default: false.
    pub fn expose_details(mut self, expose: bool) -> Self {
        self.expose_details = expose;
        self
    }

    /// What it serves.
    #[must_use]
    pub fn describe(&self) -> ServiceDescription {
        let method = |(name, method): (&String, &Method)| MethodDescription {
            name: name.clone(),
            idempotent: method.idempotent || self.idempotent.contains(name),
            streams: method.streams,
        };
        ServiceDescription {
            service: self.service.clone(),
            queue: self.naming.rpc_queue(&self.service),
            concurrency: self.settings.concurrency,
            max_waiting: self.max_waiting,
            methods: self.methods.iter().map(method).collect(),
        }
    }

    pub(crate) fn outline(&self) -> Result<Outline> {
        self.check()?;
        let queue = self.naming.rpc_queue(&self.service);
        Ok(Outline::new(self.topology(Outline::ID), vec![queue], self.settings))
    }

    /// What the server `id` declares.
    pub(crate) fn topology(&self, id: &str) -> Topology {
        let queue = self.naming.rpc_queue(&self.service);
        let instance = Instance::new(&self.naming, &self.service, id.to_owned());
        let requests = Queue::classic(queue.clone())
            .with_expires(QUEUE_EXPIRES)
            .with_max_length(self.max_waiting)
            .with_overflow(Overflow::RejectPublish);
        Topology::new()
            .queue(requests)
            .and(dead_letter_topology(&self.naming, &queue))
            .and(instance.topology(&self.naming, &self.service, self.max_waiting))
    }

    /// Declares the service's queue and its dead-letter queue, the exchange that leads to all of its
    /// servers and this server's own two queues there, and begins to serve.
    ///
    /// Cancellation safe: when the future is dropped, nothing is served, and what was declared
    /// stays: the service's queue for 60 seconds, the server's own queues until the connection ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a server without methods, a method that was added twice, an
    /// idempotent method that it has not or that answers by a stream, a middleware that stands twice
    /// where it [must not](Middleware::held), or options out of range; and what [`Transport::declare`], [`Transport::publisher`] and [`Transport::consumer`] fail
    /// with.
    pub async fn start(mut self, transport: &Arc<dyn Transport>) -> Result<Running> {
        self.check()?;
        for name in &self.idempotent {
            if let Some(method) = self.methods.get_mut(name) {
                method.idempotent = true;
            }
        }
        let queue = self.naming.rpc_queue(&self.service);
        let id = transport.env().new_id().to_string();
        transport.declare(&self.topology(&id)).await?;
        let instance = Instance::new(&self.naming, &self.service, id);
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let counters = Arc::new(Counters::default());
        let calls = Arc::new(Calls::default());
        let control = ConsumerOptions::default().with_prefetch(CONTROL_PREFETCH);
        let control = transport.consumer(&instance.control, control).await?;
        let to_all = transport.consumer(&instance.all, self.settings.options()).await?;
        // Who asks all servers then misses this one, which goes on serving.
        let to_all = to_all.take_while(|delivery| {
            if let Err(error) = delivery {
                tracing::error!(%error, "requests to all servers are not taken any more");
            }
            ready(delivery.is_ok())
        });
        // The last, because a service with a consumer is one that can be called.
        let to_one = transport.consumer(&queue, self.settings.options()).await?;

        let ended = CancellationToken::new();
        let (until, listen) = (ended.clone(), calls::listen(control, Arc::clone(&calls)));
        tokio::spawn(async move { until.run_until_cancelled_owned(listen).await });
        let keeper = Keeper::new(transport, publisher.clone(), &self.naming, &queue);
        let replies = Replies {
            transport: Arc::clone(transport),
            publisher,
            env: transport.env().clone(),
            limits: self.limits,
            expose_details: self.expose_details,
            counters: Arc::clone(&counters),
        };
        let process = Serve {
            service: self.service,
            methods: HashMap::from_iter(self.methods),
            replies,
            inbox: self.inbox,
            calls,
            instance,
            clock_tolerance: self.clock_tolerance,
            layers: self.layers,
            _listening: ended.drop_guard(),
        };
        let runner = Runner { process, keeper, settings: self.settings, counters };
        Ok(runner.run(Consumer::new(stream::select(to_one, to_all)), &queue))
    }

    fn check(&self) -> Result<()> {
        self.settings.check()?;
        self.layers.check("start")?;
        if !(1..=i64::MAX as u64).contains(&self.max_waiting) {
            let why = "max_waiting is from 1 to 2^63 - 1; with 0 no request could wait to be taken";
            return Err(Error::new(ErrorKind::Invalid, "start", why)
                .with_context("max_waiting", self.max_waiting.to_string()));
        }
        check_limits("start", self.limits)?;
        let streamed = |name: &&String| self.methods.get(*name).is_none_or(|method| method.streams);
        let never_once: Vec<_> = self.idempotent.iter().filter(streamed).cloned().collect();
        let (why, methods) = if self.methods.is_empty() {
            ("a server without methods would refuse every request; add one", &Vec::new())
        } else if !self.duplicates.is_empty() {
            (
                "a service has one handler for each method, and some were added twice",
                &self.duplicates,
            )
        } else if !never_once.is_empty() {
            ("an idempotent method is one that was added and answers once", &never_once)
        } else {
            return Ok(());
        };
        let error = Error::new(ErrorKind::Invalid, "start", why)
            .with_context("service", self.service.clone());
        Err(if methods.is_empty() {
            error
        } else {
            error.with_context("methods", methods.join(", "))
        })
    }
}

impl fmt::Debug for RpcServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcServer")
            .field("service", &self.service)
            .field("methods", &self.methods.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
