//! The loop that takes offers, and the transfers under way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use postrider_core::{
    Address, Consumer, Delivery, Envelope, Error, ErrorKind, Publisher, Transport,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Incoming,
    incoming::End,
    session::{Handled, Reader, Session},
};
use crate::{
    codec::Codec,
    consuming::{Count, Counters, State, catch_panic},
    handler::Context,
    naming::Naming,
    streaming::{
        Progress, StreamError,
        budget::Budget,
        wire::{self, Fail, Open, ToSender},
    },
};

/// How long a receiver without room keeps an offer before it gives it to another one.
const HOLD: Duration = Duration::from_secs(1);

/// How long sessions may take to say that they stop.
const PARTING: Duration = Duration::from_millis(400);

pub(super) type Handler =
    Arc<dyn Fn(Incoming, Context) -> BoxFuture<'static, Handled> + Send + Sync>;

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) naming: Naming,
    pub(super) concurrency: usize,
    pub(super) window: u32,
    pub(super) memory: u64,
    pub(super) max_chunk_size: u32,
    pub(super) max_length: u64,
    pub(super) idle_timeout: Duration,
    pub(super) gap_timeout: Duration,
    pub(super) gap_rounds: u32,
}

/// What all transfers of one receiver share.
pub(super) struct Shared {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) service: String,
    pub(super) settings: Settings,
    pub(super) handler: Handler,
    pub(super) budget: Budget,
    pub(super) counters: Arc<Counters>,
    pub(super) sessions: Sessions,
    /// Places for transfers whose handlers are done and whose senders have not said that they know.
    pub(super) lingering: Arc<Semaphore>,
    /// No more offers are taken.
    pub(super) stop: CancellationToken,
    /// The transfers under way are given up.
    pub(super) kill: CancellationToken,
}

/// A second offer of a stream that is under way.
#[derive(Debug)]
pub(super) struct Reopen {
    pub(super) open: Open,
    pub(super) codec: Codec,
    pub(super) reply_to: String,
}

/// The transfers under way, by the ids of their streams.
#[derive(Debug, Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<HashMap<Uuid, mpsc::Sender<Reopen>>>>);

impl Sessions {
    fn table(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::Sender<Reopen>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an offer to its session; without one, a place for it and the offer.
    fn enter(&self, id: Uuid, reopen: Reopen) -> Option<(Entered, Reopen)> {
        let mut table = self.table();
        if let Some(session) = table.get(&id) {
            // One that it has not looked at yet says the same.
            let _said = session.try_send(reopen);
            return None;
        }
        let (sender, reopens) = mpsc::channel(4);
        table.insert(id, sender);
        Some((Entered { sessions: self.clone(), id, reopens }, reopen))
    }
}

/// A session's place in the table.
struct Entered {
    sessions: Sessions,
    id: Uuid,
    reopens: mpsc::Receiver<Reopen>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.sessions.table().remove(&self.id);
    }
}

/// Takes offers while there is room for their transfers.
pub(super) async fn run(shared: Arc<Shared>, mut consumer: Consumer, state: watch::Sender<State>) {
    let places = Arc::new(Semaphore::new(shared.settings.concurrency));
    let mut transfers = JoinSet::new();
    let ended = loop {
        let delivery = tokio::select! {
            biased;
            () = shared.stop.cancelled() => break None,
            delivery = consumer.recv() => delivery,
        };
        match delivery {
            Some(Ok(offer)) => {
                // Another receiver may have room; the queue must keep its consumer all the same.
                match timeout(HOLD, Arc::clone(&places).acquire_owned()).await {
                    Ok(Ok(place)) => {
                        transfers.spawn(serve(Arc::clone(&shared), offer, place));
                    }
                    _ => offer.release(),
                }
            }
            Some(Err(error)) => {
                tracing::error!(%error, "taking offers ended");
                break Some(Arc::new(error));
            }
            None => break None,
        }
        while transfers.try_join_next().is_some() {}
    };
    drop(consumer);
    state.send_replace(State::Ended(ended));
    loop {
        tokio::select! {
            biased;
            done = transfers.join_next() => if done.is_none() { return },
            () = shared.kill.cancelled() => break,
        }
    }
    let parting = async { while transfers.join_next().await.is_some() {} };
    let _in_time = timeout(PARTING, parting).await;
    transfers.shutdown().await;
}

/// One transfer, from its offer to its end.
async fn serve(shared: Arc<Shared>, offer: Delivery, place: OwnedSemaphorePermit) {
    let message = offer.message();
    let reply_to = message.reply_to.clone().map(String::from);
    let (read, id) = (wire::read_open(message), wire::stream_id(message));
    let (Some(reply_to), Some(id)) = (reply_to, id) else {
        tracing::warn!(message_id = ?message.message_id, "an offer without a sender was dropped");
        return offer.ack();
    };
    let (codec, open) = match read {
        Ok((_, codec, open)) => (codec, open),
        Err(error) => return shared.refuse(offer, id, Codec::Json, reply_to, &error).await,
    };
    if let Err(error) = shared.check(&open) {
        return shared.refuse(offer, id, codec, reply_to, &error).await;
    }
    let Some((mut entered, Reopen { open, codec, reply_to })) =
        shared.sessions.enter(id, Reopen { open, codec, reply_to })
    else {
        return offer.ack();
    };
    let window = shared.budget.window(shared.settings.window, open.chunk_size);
    let share = shared.kill.run_until_cancelled(shared.budget.share(window, open.chunk_size));
    let Some(share) = share.await else { return };

    let open = Arc::new(open);
    let (begin, begun) = oneshot::channel();
    let (pieces, passed) = mpsc::channel(1);
    let initial = Progress { length: open.length, ..Progress::default() };
    let (progress, watched) = watch::channel(initial);
    let end = End::new(shared.kill.clone());
    let reader = Reader { begin: begun, pieces, end: end.clone(), progress };
    let described = (id, Arc::clone(&open), codec);
    let mut session = Session::new(Arc::clone(&shared), described, reply_to, window, reader);
    let mut consumer = match session.begin().await {
        Ok(Some(consumer)) => Some(consumer),
        Ok(None) => {
            tracing::debug!(%id, "the sender of a stream is gone");
            session.remove_queue().await;
            return offer.ack();
        }
        Err(error) => {
            tracing::warn!(%id, %error, "an offer goes back: its queue could not be made");
            session.remove_queue().await;
            return give_back(&shared, offer, &error).await;
        }
    };

    let info = offer.info().clone();
    let env = shared.transport.env().clone();
    let context = Context::new(Arc::clone(offer.envelope()), info, env, &shared.kill);
    // From here on the sender knows whom to ask; what becomes of this receiver it finds out.
    offer.ack();
    shared.counters.add(Count::Taken);
    let incoming = Incoming::new(id, open, begin, passed, end, watched);
    let handler = Arc::clone(&shared.handler);
    let handling = catch_panic(async move { handler(incoming, context).await });
    let handling = tokio::spawn(handling);
    session.receive(&mut consumer, handling, &mut entered.reopens, &shared.kill).await;
    drop(share);
    // When many senders are gone without a word, those that come wait.
    let _place = Arc::clone(&shared.lingering).try_acquire_owned().unwrap_or(place);
    if shared.kill.is_cancelled() {
        shared.counters.add(Count::Released);
        drop(consumer);
        return session.remove_queue().await;
    }
    shared.counters.add(Count::Acked);
    let (_, never) = mpsc::channel(1);
    let reopens = std::mem::replace(&mut entered.reopens, never);
    // An offer that comes again is answered by what became of a stream that is done; of one that
    // failed, only those that are here by now.
    let entered = session.is_done().then_some(entered);
    session.linger(consumer, reopens, entered, &shared.stop).await;
}

/// Gives an offer back, not so fast that the broker is asked, and refuses, without a pause.
async fn give_back(shared: &Shared, offer: Delivery, error: &Error) {
    if error.kind() != ErrorKind::Closed {
        shared.kill.run_until_cancelled(sleep(HOLD)).await;
    }
    offer.release();
}

impl Shared {
    /// Whether a stream is one that is taken, as far as its offer tells.
    fn check(&self, open: &Open) -> Result<(), StreamError> {
        let (most, limit) = (self.settings.max_chunk_size, self.settings.max_length);
        if open.chunk_size == 0 || open.chunk_size > most {
            let message = format!("chunks have from 1 to {most} bytes, not {}", open.chunk_size);
            return Err(StreamError::BrokenProtocol(message));
        }
        match open.length {
            Some(length) if length > limit => Err(StreamError::TooLarge { limit }),
            _ => Ok(()),
        }
    }

    async fn refuse(
        &self,
        offer: Delivery,
        id: Uuid,
        codec: Codec,
        reply_to: String,
        error: &StreamError,
    ) {
        tracing::warn!(%id, %error, "an offer of a stream was refused");
        // A sender needs a queue to part from, and this stream has none.
        let from = offer.info().queue.to_string();
        let refusal = ToSender::Fail(Fail::of(error, false));
        self.tell(id, codec, reply_to, Some(from), &refusal).await;
        offer.ack();
    }

    /// Says something to a sender that has no session. A sender that does not hear it times out.
    pub(super) async fn tell(
        &self,
        id: Uuid,
        codec: Codec,
        reply_to: String,
        from: Option<String>,
        frame: &ToSender,
    ) {
        let mut message = frame.message(id, codec);
        message.reply_to = from.map(Into::into);
        let envelope = Envelope::new(Address::queue(reply_to), message);
        match self.publisher.send(envelope).await {
            Ok(confirm) => drop(confirm.await),
            Err(error) => tracing::debug!(%id, %error, "a sender was not told"),
        }
    }
}
