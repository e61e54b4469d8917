//! The sessions in which publishers and consumers have their links.
//!
//! Each link has a session to itself while there are few, so that what ends one ends no other. A
//! broker has a limit of sessions (RabbitMQ: 64 a connection), and then they are shared. They are kept
//! for the next link: beginning one costs a round trip, and one that ends makes its channel unsafe for
//! a moment.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fe2o3_amqp::session::{Error as SessionError, SessionHandle};
use futures_util::future::BoxFuture;
use postrider_core::{Error, Result};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::error::{late, lost, told};

/// How many sessions are begun before links share them.
pub(crate) const OWN: usize = 32;

/// How many links may wait for their turn to be attached in one session.
const WAITING: usize = 16;

/// How long attaching a link may take before the next has its turn.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long ending a session may take.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Something that is done in a session.
type Work = Box<dyn for<'a> FnOnce(&'a mut SessionHandle<()>) -> BoxFuture<'a, ()> + Send>;

/// A session, owned by a task that attaches links in it and notices its end.
struct Session {
    work: mpsc::Sender<Work>,
    links: AtomicUsize,
    /// Whether a link of it could not be ended, so that no other may have its place.
    spoiled: AtomicBool,
    end: Arc<End>,
}

#[derive(Default)]
struct End {
    over: CancellationToken,
    cause: OnceLock<SessionError>,
}

impl Session {
    fn start(handle: SessionHandle<()>) -> Arc<Self> {
        let (work, waiting) = mpsc::channel(WAITING);
        let end = Arc::new(End::default());
        tokio::spawn(own(handle, waiting, end.clone()));
        Arc::new(Self { work, links: AtomicUsize::new(0), spoiled: AtomicBool::new(false), end })
    }

    fn is_usable(&self) -> bool {
        !self.end.over.is_cancelled() && !self.spoiled.load(Ordering::Acquire)
    }
}

/// Owns a session until it ends or nobody needs it.
async fn own(mut handle: SessionHandle<()>, mut waiting: mpsc::Receiver<Work>, end: Arc<End>) {
    loop {
        tokio::select! {
            biased;
            ended = handle.on_end() => {
                if let Err(error) = ended {
                    let _first = end.cause.set(error);
                }
                break;
            }
            work = waiting.recv() => match work {
                Some(work) => {
                    let _late = timeout(ATTACH_TIMEOUT, work(&mut handle)).await;
                }
                None => {
                    let _late = timeout(END_TIMEOUT, handle.end()).await;
                    break;
                }
            },
        }
    }
    end.over.cancel();
}

/// The sessions of a connection.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<Vec<Arc<Session>>>);

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sessions").field(&self.lock().len()).finish()
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat in a session that has no link; `None` when one must be begun.
    pub(crate) fn vacant(&self) -> Option<Seat> {
        let mut sessions = self.lock();
        sessions.retain(|session| session.is_usable());
        let least = sessions.iter().min_by_key(|session| session.links.load(Ordering::Acquire))?;
        let is_vacant = least.links.load(Ordering::Acquire) == 0;
        (is_vacant || sessions.len() >= OWN).then(|| Seat::take(least))
    }

    /// A seat beside other links, if there is a session at all.
    pub(crate) fn shared(&self) -> Option<Seat> {
        let mut sessions = self.lock();
        sessions.retain(|session| session.is_usable());
        let least = sessions.iter().min_by_key(|session| session.links.load(Ordering::Acquire))?;
        Some(Seat::take(least))
    }

    /// A seat in a session that was begun just now.
    pub(crate) fn enter(&self, handle: SessionHandle<()>) -> Seat {
        let session = Session::start(handle);
        let seat = Seat::take(&session);
        self.lock().push(session);
        seat
    }

    /// Lets go of all: each ends when its links have.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }
}

/// The seat of a link in a session, free again when it is dropped.
pub(crate) struct Seat(Arc<Session>);

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seat").field(&self.0.links).finish()
    }
}

impl Seat {
    fn take(session: &Arc<Session>) -> Self {
        session.links.fetch_add(1, Ordering::AcqRel);
        Self(session.clone())
    }

    /// Attaches a link.
    ///
    /// # Errors
    ///
    /// When the session is over, or it takes too long.
    pub(crate) async fn attach<T: Send + 'static>(
        &self,
        operation: &'static str,
        attach: impl for<'a> FnOnce(&'a mut SessionHandle<()>) -> BoxFuture<'a, T> + Send + 'static,
    ) -> Result<T> {
        let (answer, attached) = oneshot::channel();
        let work: Work = Box::new(move |session| {
            Box::pin(async move {
                // Who gave it up meanwhile has no use for it.
                let _gone = answer.send(attach(session).await);
            })
        });
        if self.0.work.send(work).await.is_err() {
            return Err(self.cause(operation));
        }
        attached.await.map_err(|_| match self.0.end.over.is_cancelled() {
            true => self.cause(operation),
            false => late(operation),
        })
    }

    /// Cancelled when the session is over.
    pub(crate) fn over(&self) -> &CancellationToken {
        &self.0.end.over
    }

    /// Why the session is over.
    pub(crate) fn cause(&self, operation: &'static str) -> Error {
        match self.0.end.cause.get() {
            Some(SessionError::RemoteEndedWithError(error)) => told(operation, error),
            _ => lost(operation),
        }
    }

    /// Keeps others from the session: a link of it could not be ended.
    pub(crate) fn spoil(&self) {
        self.0.spoiled.store(true, Ordering::Release);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.links.fetch_sub(1, Ordering::AcqRel);
    }
}
