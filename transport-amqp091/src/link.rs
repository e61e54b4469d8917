//! What transport, publishers and consumers share: the state of the connection over its epochs.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use postrider_core::{
    Capabilities, ConnectionState, Env, Error, ErrorKind, EventSender, Health, Result,
    TransportEvent,
};
use postrider_rabbitmq::{Record, Roster};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    consumer::Subscriber, error::closed, exchanges::Exchanges, ladder::Ladder, options::Options,
    session::Session, stay::Stay,
};

/// How long a closing connection may take at least to send what was settled before.
const LAST_FLUSH: Duration = Duration::from_secs(2);

/// How long it may take at least to take leave of the broker.
const LEAVE: Duration = Duration::from_secs(1);

/// What of a frame is not for the headers of a message, in bytes: its properties, and the deaths that
/// the broker writes into it.
const HEADER_MARGIN: usize = 16 * 1024;

#[derive(Debug, Clone)]
pub(crate) enum Stage {
    Up(Arc<Session>),
    Down,
    Closing(Option<Arc<Session>>),
    Closed,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) stage: Stage,
    /// Why the broker takes no publishes.
    pub(crate) blocked: Option<Arc<str>>,
}

impl State {
    fn takes_publishes(&self) -> bool {
        let session = match &self.stage {
            Stage::Up(session) | Stage::Closing(Some(session)) => session,
            Stage::Down | Stage::Closing(None) | Stage::Closed => return false,
        };
        self.blocked.is_none() && !session.is_over()
    }

    /// Whether there is no connection and will be none.
    fn is_over(&self) -> bool {
        match &self.stage {
            Stage::Up(_) | Stage::Down => false,
            Stage::Closing(Some(session)) => session.is_over(),
            Stage::Closing(None) | Stage::Closed => true,
        }
    }
}

pub(crate) struct Link {
    url: String,
    options: Options,
    capabilities: Capabilities,
    state: watch::Sender<State>,
    events: EventSender,
    record: Mutex<Record>,
    subscribers: Roster<Subscriber>,
    /// Also those of consumers that are gone and left deliveries unsettled.
    stays: Roster<Stay>,
    /// Messages without a verdict.
    in_flight: AtomicUsize,
    /// Told when a delivery is settled at the broker, or a verdict is given, while it closes.
    settled: Notify,
    ladder: Ladder,
    /// The most that the headers of a message may take, in bytes.
    header_limit: usize,
    exchanges: Exchanges,
    /// Ends everything that runs for this connection.
    shutdown: CancellationToken,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(url: String, options: Options, session: Arc<Session>) -> Arc<Self> {
        let capabilities = session.version().capabilities();
        let header_limit = (session.frame_max() as usize).saturating_sub(HEADER_MARGIN);
        let state = State { stage: Stage::Up(session), blocked: None };
        Arc::new(Self {
            url,
            options,
            capabilities,
            state: watch::Sender::new(state),
            events: EventSender::default(),
            record: Mutex::default(),
            subscribers: Roster::default(),
            stays: Roster::default(),
            in_flight: AtomicUsize::new(0),
            settled: Notify::new(),
            ladder: Ladder::default(),
            header_limit,
            exchanges: Exchanges::default(),
            shutdown: CancellationToken::new(),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) const fn env(&self) -> &Env {
        &self.options.env
    }

    pub(crate) const fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    pub(crate) const fn events(&self) -> &EventSender {
        &self.events
    }

    pub(crate) const fn subscribers(&self) -> &Roster<Subscriber> {
        &self.subscribers
    }

    pub(crate) const fn stays(&self) -> &Roster<Stay> {
        &self.stays
    }

    pub(crate) const fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    pub(crate) const fn exchanges(&self) -> &Exchanges {
        &self.exchanges
    }

    /// The most that the headers of a message may take, in bytes: they go in one frame, together with
    /// what the broker adds to them.
    pub(crate) const fn header_limit(&self) -> usize {
        self.header_limit
    }

    pub(crate) const fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // State

    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The session, while it is open.
    pub(crate) fn open_session(&self) -> Option<Arc<Session>> {
        match &self.state.borrow().stage {
            Stage::Up(session) | Stage::Closing(Some(session)) if !session.is_over() => {
                Some(session.clone())
            }
            _ => None,
        }
    }

    /// Whether publishes are taken now: also while it closes, since handlers that finish what they
    /// have in hand have something to say.
    pub(crate) fn takes_publishes(&self) -> bool {
        self.state.borrow().takes_publishes()
    }

    /// When a call that begins now must be over.
    pub(crate) fn operation_deadline(&self) -> Instant {
        self.env().deadline(self.options.operation_timeout)
    }

    /// Waits for the connection, until `deadline`.
    pub(crate) async fn session(
        &self,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<Arc<Session>> {
        match self.stage(operation, deadline).await? {
            Stage::Up(session) => Ok(session),
            _ => Err(closed(operation)),
        }
    }

    /// Waits for the connection as something to publish needs it: also while it closes.
    pub(crate) async fn session_to_publish(&self, deadline: Instant) -> Result<Arc<Session>> {
        match self.stage("publish", deadline).await? {
            Stage::Up(session) | Stage::Closing(Some(session)) => Ok(session),
            _ => Err(closed("publish")),
        }
    }

    async fn stage(&self, operation: &'static str, deadline: Instant) -> Result<Stage> {
        let mut watch = self.watch();
        let ready = watch.wait_for(|state| !matches!(state.stage, Stage::Down));
        match timeout_at(deadline, ready).await {
            Ok(Ok(state)) => Ok(state.stage.clone()),
            Ok(Err(_)) => Err(closed(operation)),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                operation,
                "the connection was not restored in time",
            )
            .with_context("url", &*self.url)),
        }
    }

    /// Waits until publishes are taken, until `deadline`.
    pub(crate) async fn ready_to_publish(&self, deadline: Instant) -> Result<()> {
        let mut watch = self.watch();
        let ready = watch.wait_for(|state| state.takes_publishes() || state.is_over());
        let taken = timeout_at(deadline, ready).await.map(|state| {
            // A sender that is gone went with everything else.
            state.is_ok_and(|state| state.takes_publishes())
        });
        match taken {
            Ok(true) => Ok(()),
            Ok(false) => Err(closed("publish")),
            Err(_) => {
                let why = self.state.borrow().blocked.as_ref().map_or_else(
                    || "the connection was not restored in time".to_owned(),
                    |reason| format!("the broker takes no publishes ({reason})"),
                );
                Err(Error::new(ErrorKind::Unavailable, "publish", why)
                    .with_context("url", &*self.url))
            }
        }
    }

    pub(crate) fn block(&self, reason: &str) {
        self.state.send_modify(|state| state.blocked = Some(reason.into()));
        self.events.send(TransportEvent::Blocked { reason: reason.to_owned() });
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.state.borrow().blocked.is_some()
    }

    pub(crate) fn unblock(&self) {
        self.state.send_modify(|state| state.blocked = None);
        self.events.send(TransportEvent::Unblocked);
    }

    /// Goes down with a lost session; `false` when it closes or is closed.
    pub(crate) fn go_down(&self) -> bool {
        self.state.send_if_modified(|state| {
            let stage = match &state.stage {
                Stage::Up(_) => Stage::Down,
                Stage::Closing(Some(_)) => Stage::Closing(None),
                Stage::Down | Stage::Closing(None) | Stage::Closed => return false,
            };
            *state = State { stage, blocked: None };
            true
        });
        matches!(self.state.borrow().stage, Stage::Down)
    }

    /// Comes up with a new session; `false` when it was closed meanwhile.
    pub(crate) fn come_up(&self, session: &Arc<Session>) -> bool {
        self.state.send_if_modified(|state| {
            let down = matches!(state.stage, Stage::Down);
            if down {
                state.stage = Stage::Up(session.clone());
            }
            down
        })
    }

    pub(crate) fn health(&self) -> Health {
        let connection = {
            let state = self.state.borrow();
            match (&state.stage, &state.blocked) {
                (Stage::Up(_), Some(_)) => ConnectionState::Blocked,
                (Stage::Up(_) | Stage::Closing(_), _) => ConnectionState::Connected,
                (Stage::Down, _) => ConnectionState::Reconnecting,
                (Stage::Closed, _) => ConnectionState::Closed,
            }
        };
        let consumers =
            self.subscribers.alive().iter().filter_map(|subscriber| subscriber.health()).collect();
        Health::new(connection, consumers)
    }

    // Closing

    /// Notes a message that waits for its verdict.
    pub(crate) fn note_sent(&self) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes a verdict.
    pub(crate) fn note_verdict(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
    }

    /// Notes settlements that the broker was told.
    pub(crate) fn note_settled(&self) {
        self.settled.notify_waiters();
    }

    /// Deliveries handed out whose settlement the broker was not told.
    fn unsettled(&self) -> usize {
        self.stays.alive().iter().map(|stay| stay.unsettled()).sum()
    }

    pub(crate) async fn close(&self, deadline: Duration) -> Result<()> {
        let end = self.env().deadline(deadline);
        let begun = self.state.send_if_modified(|state| {
            let session = match &state.stage {
                Stage::Up(session) => Some(session.clone()),
                Stage::Down => None,
                Stage::Closing(_) | Stage::Closed => return false,
            };
            state.stage = Stage::Closing(session);
            true
        });
        if !begun {
            return Ok(());
        }
        for subscriber in self.subscribers.alive() {
            subscriber.stop();
        }
        let drained = async {
            loop {
                let settled = self.settled.notified();
                if self.unsettled() == 0 && self.in_flight.load(Ordering::Acquire) == 0 {
                    return;
                }
                settled.await;
            }
        };
        let in_time = timeout_at(end, drained).await.is_ok();
        let left = self.unsettled();
        let waiting = self.in_flight.load(Ordering::Acquire);
        let session = self.open_session();
        // What was settled or given back in time is told to the broker before the connection goes.
        if let Some(session) = &session {
            let told = async {
                for stay in self.stays.alive() {
                    stay.flushed().await;
                }
                // The end of a channel is answered when all that was said on it is done.
                if in_time {
                    session.consumers_gone().await;
                }
            };
            let _left = timeout_at(end.max(self.env().deadline(LAST_FLUSH)), told).await;
        }
        self.finish();
        if let Some(session) = session {
            // A broker that does not answer is taken leave of after the deadline, by itself.
            let leaving = tokio::spawn(async move { session.close().await });
            let _left = timeout_at(end.max(self.env().deadline(LEAVE)), leaving).await;
        }
        if in_time {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::TimedOut,
            "close",
            format!(
                "closed at the deadline with {left} deliveries unsettled, which come again, and \
                 {waiting} messages without a verdict"
            ),
        )
        .with_context("url", &*self.url))
    }

    /// Ends everything at once.
    pub(crate) fn finish(&self) {
        self.state.send_modify(|state| *state = State { stage: Stage::Closed, blocked: None });
        for subscriber in self.subscribers.alive() {
            subscriber.stop();
        }
        for stay in self.stays.alive() {
            stay.lose();
        }
        self.shutdown.cancel();
    }
}

/// Held by the transport, its publishers and its consumers; the last to go ends the connection.
#[derive(Debug)]
pub(crate) struct Guard(Arc<Link>);

impl Guard {
    pub(crate) const fn new(link: Arc<Link>) -> Self {
        Self(link)
    }

    pub(crate) const fn link(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.finish();
    }
}
