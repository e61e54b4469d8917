use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use postrider_core::{
    ConsumerOptions, Error, ErrorKind, PublisherOptions, Queue, Result, Topology, Transport,
    check_name,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Incoming,
    offers::{self, Handler, Sessions, Settings, Shared},
    orphans,
};
use crate::{
    consuming::{self, Counters, Outline, Running, State},
    handler::{Context, HandlerError},
    naming::Naming,
    streaming::{budget::Budget, limits},
};

/// How long the queue of offers outlives the last receiver of its service.
const QUEUE_EXPIRES: Duration = Duration::from_secs(60);

/// One offer in advance: what it holds, no other receiver can have.
const PREFETCH: u16 = 1;

/// How many streams for each that is received may be over and wait for their senders to say that they
/// know.
const LINGERING: usize = 4;

/// Receives the streams that are sent to a service. Receivers of one service share the offers, each
/// stream goes to one of them.
///
/// The handler gets each stream as [`Incoming`]. When it returns `Ok` and the stream was read to its
/// verified end, the sender has its receipt; a handler that returns an error, panics, or ends before
/// the stream refuses it, and the sender has the error's class, code and message. What an error of
/// class [`Internal`](crate::ErrorClass::Internal) says stays in the log.
///
/// [`RunStats::acked`](crate::RunStats::acked) of [`Running::stats`] counts the streams whose
/// handlers are done, however they ended, and [`released`](crate::RunStats::released) those that
/// were given up when it stopped: their senders offer them to other receivers.
///
/// A stream may come twice: when the outcome is lost with a connection for longer than the idle
/// timeout, or the receiver ends before the sender has heard it. It has the same
/// [`id`](Incoming::id) then.
#[must_use = "call start"]
pub struct StreamReceiver {
    service: String,
    settings: Settings,
    handler: Option<Handler>,
    sweeps: Vec<(PathBuf, Duration)>,
}

impl StreamReceiver {
    /// A receiver for `service` without a handler.
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            settings: Settings {
                naming: Naming::default(),
                concurrency: 16,
                window: 16,
                memory: 64 * 1024 * 1024,
                max_chunk_size: 1024 * 1024,
                max_length: 64 * 1024 * 1024 * 1024,
                idle_timeout: Duration::from_secs(30),
                gap_timeout: Duration::from_secs(1),
                gap_rounds: 5,
            },
            handler: None,
            sweeps: Vec::new(),
        }
    }

    /// Sets what is done with each stream.
    pub fn on<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Incoming, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.handler =
            Some(Arc::new(move |incoming, context| Box::pin(handler(incoming, context))));
        self
    }

    /// The names of queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.settings.naming = naming;
        self
    }

    /// How many streams are received at once. Four times as many that are over may wait, for the idle
    /// timeout at most, until their senders say that they know. Default: 16.
    pub const fn concurrency(mut self, streams: usize) -> Self {
        self.settings.concurrency = streams;
        self
    }

    /// How many chunks of one stream may be on their way or wait for their reader, up to 1,024. The
    /// sender may send fewer ahead. Default: 16.
    pub const fn window(mut self, chunks: u32) -> Self {
        self.settings.window = chunks;
        self
    }

    /// How many bytes all streams together may hold; each takes its window times its chunk size, and
    /// one that finds no room waits for it. Default: 64 MiB.
    pub const fn memory(mut self, bytes: u64) -> Self {
        self.settings.memory = bytes;
        self
    }

    /// The largest chunk that a sender may choose, in bytes, at least 1. Default: 1 MiB.
    pub const fn max_chunk_size(mut self, bytes: u32) -> Self {
        self.settings.max_chunk_size = bytes;
        self
    }

    /// The most bytes of a stream, at least 1: one that says or proves to be longer is refused. Default: 64 GiB.
    pub const fn max_length(mut self, bytes: u64) -> Self {
        self.settings.max_length = bytes;
        self
    }

    /// After how long without a word from its sender a stream ends, at least 6 seconds. A sender
    /// whose source is slow says so every two seconds. Default: 30 seconds.
    pub const fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = limits::bounded(timeout);
        self
    }

    /// How long a chunk may be missing before it is asked for again, and how often it is asked for
    /// until the stream ends with
    /// [`StreamError::ChunksMissing`](crate::StreamError::ChunksMissing). Default: 1 second, 5
    /// times.
    pub const fn gaps(mut self, timeout: Duration, rounds: u32) -> Self {
        (self.settings.gap_timeout, self.settings.gap_rounds) = (limits::bounded(timeout), rounds);
        self
    }

    /// Removes from `directory`, at the start, what transfers have left there that nobody took up
    /// again within `age`: files of [`Incoming::save_to`] whose names end in a stream's id and
    /// `.part` or `.part-state`. What a transfer of any process is writing stays. Default: nothing
    /// is removed.
    pub fn sweep(mut self, directory: impl Into<PathBuf>, age: Duration) -> Self {
        self.sweeps.push((directory.into(), age));
        self
    }

    pub(crate) fn queue_name(&self) -> String {
        self.settings.naming.stream_queue(&self.service)
    }

    pub(crate) fn outline(&self) -> Result<Outline> {
        self.checked()?;
        let settings = consuming::Settings {
            concurrency: self.settings.concurrency,
            ..consuming::Settings::default()
        };
        let mut outline = Outline::new(self.topology(), vec![self.queue_name()], settings);
        outline.prefetch = PREFETCH;
        Ok(outline)
    }

    /// What is declared at the start; each stream has a queue of its own beside it.
    fn topology(&self) -> Topology {
        Topology::new().queue(Queue::classic(self.queue_name()).with_expires(QUEUE_EXPIRES))
    }

    /// Refuses what cannot be carried out.
    fn checked(&self) -> Result<(Handler, Budget)> {
        let Some(handler) = &self.handler else {
            let message = "a receiver without a handler would refuse every stream; set one";
            return Err(Error::new(ErrorKind::Invalid, "start", message)
                .with_context("service", self.service.clone()));
        };
        check(&self.settings)?;
        Ok((Arc::clone(handler), Budget::new("start", self.settings.memory)?))
    }

    /// Declares the queue of offers and begins to take them.
    ///
    /// Not cancellation safe: the queue may have been declared, and leftovers swept.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a receiver without a handler, settings out of range, a service
    /// whose queues would have too long a name or a directory that cannot be swept, and what
    /// [`Transport::declare`], [`Transport::publisher`] and [`Transport::consumer`] fail with.
    pub async fn start(self, transport: &Arc<dyn Transport>) -> Result<Running> {
        let (handler, budget) = self.checked()?;
        let (topology, queue) = (self.topology(), self.queue_name());
        let Self { service, settings, sweeps, .. } = self;
        let now = transport.env().timestamp().into();
        for (directory, age) in sweeps {
            orphans::sweep(directory, age, now).await?;
        }
        // Better now than with each offer.
        let one = transport.env().new_id().to_string();
        check_name("start", &settings.naming.transfer_queue(&service, &one))?;
        transport.declare(&topology).await?;
        let publisher = transport.publisher(PublisherOptions::default()).await?;
        let options = ConsumerOptions::default().with_prefetch(PREFETCH);
        let consumer = transport.consumer(&queue, options).await?;
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (state, watched) = watch::channel(State::Running);
        let counters = Arc::new(Counters::default());
        let lingering = settings.concurrency.saturating_mul(LINGERING);
        let lingering = Arc::new(Semaphore::new(lingering.min(Semaphore::MAX_PERMITS)));
        let shared = Arc::new(Shared {
            transport: Arc::clone(transport),
            publisher,
            service,
            settings,
            handler,
            budget,
            counters: Arc::clone(&counters),
            sessions: Sessions::default(),
            lingering,
            stop: stop.clone(),
            kill: kill.clone(),
        });
        let task = tokio::spawn(offers::run(shared, consumer, state));
        Ok(Running::new(queue.into(), counters, watched, stop, kill, task))
    }
}

fn check(settings: &Settings) -> Result<()> {
    limits::check_window("start", settings.window)?;
    limits::check_idle_timeout("start", settings.idle_timeout)?;
    let wrong = if !(1..=Semaphore::MAX_PERMITS).contains(&settings.concurrency) {
        "a concurrency of 0 would receive nothing, and there is a largest; it is 1 or more"
    } else if settings.max_chunk_size == 0 {
        "chunks have at least one byte"
    } else if settings.max_length == 0 {
        "a greatest length of 0 would refuse every stream with a byte; it is 1 or more"
    } else if settings.gap_timeout.is_zero() {
        "what is missing for no time at all is not missing; the gap timeout is longer than 0"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, "start", wrong))
}

impl fmt::Debug for StreamReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReceiver")
            .field("service", &self.service)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
