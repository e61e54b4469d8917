//! The task of one transfer, at the side of the source.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use postrider_core::{Address, Env, Envelope, Message, Publisher, Verdict};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use uuid::Uuid;

use super::{
    source::{Chunks, Receipt},
    transfer::{Abort, Heard, Inbox},
    window::{Source, Window},
};
use crate::{
    codec::Codec,
    streaming::{
        ContentHash, Progress, StreamError, codes,
        limits::{KEEPALIVE, SILENCE},
        wire::{self, Chunk, Credit, Open, ToReceiver, ToSender},
    },
};

/// How long an abort or a farewell may take to be sent.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a sender waits before it offers again what a receiver gave back.
const PAUSE: Duration = Duration::from_millis(500);

/// What a verdict is about.
enum Sent {
    Offer,
    /// A chunk of a session, by its number.
    Chunk {
        seq: u64,
        session: u32,
    },
    Other {
        session: u32,
    },
}

/// The receiver that takes the stream.
struct Session {
    queue: String,
    number: u32,
    /// Whether it has said what it has.
    begun: bool,
    /// Whether its queue was gone when something was last sent to it.
    paused: bool,
}

/// How the transfer is set up.
pub(super) struct Plan {
    pub(super) id: Uuid,
    pub(super) service: String,
    /// The queue of the service's offers.
    pub(super) offers: String,
    pub(super) reply_to: String,
    pub(super) codec: Codec,
    pub(super) open: Open,
    pub(super) window: u32,
    pub(super) accept_timeout: Duration,
    pub(super) idle_timeout: Duration,
}

pub(super) struct Sending {
    plan: Plan,
    env: Env,
    publisher: Arc<dyn Publisher>,
    chunks: Chunks,
    window: Window,
    inbox: Inbox,
    progress: watch::Sender<Progress>,
    session: Option<Session>,
    sessions: u32,
    verdicts: FuturesUnordered<BoxFuture<'static, (Sent, Verdict)>>,
    /// Since when there has been no session.
    seeking: Instant,
    /// When the stream is to be offered again, if nothing is heard until then.
    offer_at: Instant,
    /// Whether an offer is out beside the session, which is silent.
    offered: bool,
    heard: Instant,
    spoke: Instant,
}

impl Sending {
    pub(super) fn new(
        plan: Plan,
        env: Env,
        publisher: Arc<dyn Publisher>,
        chunks: Chunks,
        inbox: Inbox,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let now = env.now();
        Self {
            window: Window::new(plan.window.into()),
            plan,
            env,
            publisher,
            chunks,
            inbox,
            progress,
            session: None,
            sessions: 0,
            verdicts: FuturesUnordered::new(),
            seeking: now,
            offer_at: now,
            offered: false,
            heard: now,
            spoke: now,
        }
    }

    /// Sends the stream, and tells the receiver how it ended.
    pub(super) async fn run(mut self, abort: Abort) -> Result<Receipt, StreamError> {
        let exchanged = abort.token().run_until_cancelled(self.exchange()).await;
        let result = exchanged.unwrap_or_else(|| Err(abort.error()));
        let farewell = match &result {
            Ok(_) | Err(StreamError::Refused { .. }) => ToReceiver::Bye,
            // What the receiver has of it is worth keeping.
            Err(error) if error.is_resumable() => return result,
            Err(error) => {
                let (code, reason) = (error.code().to_owned(), error.to_string());
                ToReceiver::Abort { code, reason }
            }
        };
        if let Some(session) = self.session.take() {
            self.part(session.queue, &farewell).await;
        }
        result
    }

    async fn exchange(&mut self) -> Result<Receipt, StreamError> {
        self.seeking = self.env.now();
        self.offer(self.plan.accept_timeout).await?;
        loop {
            while let Some(session) = self.ready()
                && let Some(chunk) = self.window.repeat()
            {
                self.send_chunk(session, chunk).await?;
            }
            let wants_next =
                self.ready().is_some() && self.chunks.close().is_none() && self.window.wants_next();
            let next_tick = self.next_tick();
            tokio::select! {
                biased;
                heard = self.inbox.recv() => match heard {
                    Some(heard) => if let Some(receipt) = self.hear(heard).await? {
                        return Ok(receipt);
                    },
                    None => {
                        let reason = "the transport was closed".to_owned();
                        return Err(StreamError::Interrupted(reason));
                    }
                },
                Some((sent, verdict)) = self.verdicts.next() => self.judge(&sent, verdict)?,
                () = sleep_until(next_tick) => self.tick().await?,
                chunk = self.chunks.next(), if wants_next => self.send_next(chunk?).await?,
            }
        }
    }

    /// The session, when it takes chunks.
    fn ready(&self) -> Option<u32> {
        let session = self.session.as_ref()?;
        (session.begun && !session.paused).then_some(session.number)
    }

    async fn send_next(&mut self, chunk: Option<Chunk>) -> Result<(), StreamError> {
        self.check_received(self.window.received())?;
        if let Some(chunk) = chunk
            && self.window.push(chunk.clone())
            && let Some(session) = self.ready()
        {
            self.send_chunk(session, chunk).await?;
        }
        self.close().await
    }

    async fn send_chunk(&mut self, session: u32, chunk: Chunk) -> Result<(), StreamError> {
        let seq = chunk.seq;
        self.say(ToReceiver::Chunk(chunk), Sent::Chunk { seq, session }).await
    }

    /// Says where the stream ends, when that is known.
    async fn close(&mut self) -> Result<(), StreamError> {
        match (self.chunks.close(), &self.session) {
            (Some(close), Some(session)) => {
                let (close, session) = (*close, session.number);
                self.say(ToReceiver::Close(close), Sent::Other { session }).await
            }
            _ => Ok(()),
        }
    }

    async fn say(&mut self, frame: ToReceiver, sent: Sent) -> Result<(), StreamError> {
        let Some(session) = &self.session else { return Ok(()) };
        let queue = session.queue.clone();
        let message = frame.message(self.plan.id, self.plan.codec);
        self.spoke = self.env.now();
        self.send(queue, message, sent).await
    }

    /// Sends a message, which may wait for the connection as long as nothing need be heard.
    async fn send(
        &mut self,
        queue: String,
        message: Message,
        sent: Sent,
    ) -> Result<(), StreamError> {
        let after = self.plan.idle_timeout;
        let envelope = Envelope::new(Address::queue(queue), message);
        let sending =
            timeout_at(self.heard.max(self.seeking) + after, self.publisher.send(envelope));
        match sending.await {
            Ok(Ok(confirm)) => {
                self.verdicts.push(confirm.map(move |verdict| (sent, verdict)).boxed());
                Ok(())
            }
            Ok(Err(error)) if error.is_retryable() && self.session.is_some() => {
                self.judge(&sent, Verdict::Unroutable)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_late) => Err(StreamError::IdleTimeout { after }),
        }
    }

    fn judge(&mut self, sent: &Sent, verdict: Verdict) -> Result<(), StreamError> {
        if verdict.is_accepted() {
            return Ok(());
        }
        // Only a lost connection leaves it open, and then the next send waits until it is restored.
        let pauses = !matches!(verdict, Verdict::Unknown(_));
        let current = self.session.as_mut().map(|session| (session.number, session));
        match (sent, current) {
            (Sent::Offer, None) if self.sessions == 0 && pauses => {
                let reason = match verdict {
                    Verdict::Rejected(reason) => format!("its queue takes no offer: {reason}"),
                    _ => format!("nobody receives (there is no queue '{}')", self.plan.offers),
                };
                return Err(self.unavailable(reason));
            }
            (Sent::Offer, _) => self.offer_at = self.env.now() + PAUSE,
            (Sent::Chunk { seq, session }, Some((number, current))) if *session == number => {
                current.paused |= pauses;
                self.window.lost(*seq);
            }
            (Sent::Other { session }, Some((number, current))) if *session == number => {
                current.paused |= pauses;
            }
            _ => {}
        }
        Ok(())
    }

    fn unavailable(&self, reason: String) -> StreamError {
        StreamError::Unavailable { service: self.plan.service.clone(), reason }
    }

    /// Takes in what a receiver says; gives the receipt when it is the last.
    async fn hear(&mut self, heard: Heard) -> Result<Option<Receipt>, StreamError> {
        let Heard { from, frame } = heard;
        let current = self.session.as_ref().is_some_and(|session| session.queue == from);
        if !current && !self.takes_over(&from, &frame).await {
            return Ok(None);
        }
        self.heard = self.env.now();
        self.offered = false;
        self.offer_at = self.heard + SILENCE;
        match frame {
            ToSender::Credit(credit) if credit.until == 0 => {}
            ToSender::Credit(credit) => self.credit(&credit).await?,
            ToSender::Done { length, hash } => return self.done(length, hash).await.map(Some),
            ToSender::Fail(fail) if fail.again => {
                tracing::debug!(id = %self.plan.id, ?fail, "the stream is offered again");
                if let Some(session) = self.session.take() {
                    self.part(session.queue, &ToReceiver::Bye).await;
                    if session.begun {
                        self.seeking = self.env.now();
                    }
                }
                self.offer_at = self.env.now() + PAUSE;
            }
            ToSender::Fail(fail) => return Err(fail.into()),
        }
        Ok(None)
    }

    /// Whether a queue that is not the session's becomes it.
    async fn takes_over(&mut self, from: &str, frame: &ToSender) -> bool {
        match (&self.session, frame) {
            (Some(_), _) if !self.offered => {
                self.supersede(from.to_owned()).await;
                return false;
            }
            // It may yet find that it cannot, while the silent session comes back.
            (Some(_), ToSender::Credit(credit)) if credit.until == 0 => {
                self.heard = self.env.now();
                self.offer_at = self.heard + SILENCE;
                return false;
            }
            (Some(_), ToSender::Fail(fail)) if fail.again => {
                self.part(from.to_owned(), &ToReceiver::Bye).await;
                self.offer_at = self.env.now() + PAUSE;
                return false;
            }
            _ => {}
        }
        self.sessions += 1;
        let (queue, number) = (from.to_owned(), self.sessions);
        let session = Session { queue, number, begun: false, paused: false };
        if let Some(former) = self.session.replace(session) {
            self.supersede(former.queue).await;
        }
        true
    }

    async fn credit(&mut self, credit: &Credit) -> Result<(), StreamError> {
        self.check_received(credit.received)?;
        let Some(session) = &mut self.session else { return Ok(()) };
        session.paused = false;
        let begins = !std::mem::replace(&mut session.begun, true);
        if begins {
            if let Source::Back(chunk) = self.window.begin(credit) {
                self.chunks.back_to(chunk).await?;
            }
        } else {
            self.window.credit(credit)?;
        }
        let (received, repeated) = (self.window.received(), self.window.repeated());
        let bytes = received.saturating_mul(self.plan.open.chunk_size.into());
        let most = self.chunks.close().map(|close| close.length).or(self.plan.open.length);
        let resumed = self.sessions - 1;
        self.progress.send_modify(|progress| {
            progress.bytes = most.map_or(bytes, |most| bytes.min(most));
            (progress.repeated, progress.resumed) = (repeated, resumed);
        });
        if begins || !credit.missing.is_empty() {
            // It may have been lost with the chunks.
            self.close().await?;
        }
        Ok(())
    }

    /// A receiver cannot have more chunks than there are, as far as that is known.
    fn check_received(&self, received: u64) -> Result<(), StreamError> {
        let chunk_size = u64::from(self.plan.open.chunk_size);
        let declared = || self.plan.open.length.map(|length| length.div_ceil(chunk_size));
        match self.chunks.close().map(|close| close.chunks).or_else(declared) {
            Some(chunks) if received > chunks => {
                let message = format!("the receiver has {received} chunks, and there are {chunks}");
                Err(StreamError::BrokenProtocol(message))
            }
            _ => Ok(()),
        }
    }

    /// The receiver has everything. A sender that was restarted meanwhile has yet to read what that
    /// was.
    async fn done(&mut self, length: u64, hash: ContentHash) -> Result<Receipt, StreamError> {
        let close = loop {
            match self.chunks.close() {
                Some(close) => break *close,
                None => drop(self.chunks.next().await?),
            }
        };
        if (close.length, close.hash) != (length, hash) {
            let message = format!("the receiver has {length} bytes with hash {hash}");
            return Err(StreamError::Corrupt(message));
        }
        self.progress.send_modify(|progress| progress.bytes = length);
        Ok(Receipt { id: self.plan.id, length, hash })
    }

    /// When something is to be done even if nothing happens.
    fn next_tick(&self) -> Instant {
        match &self.session {
            None => self.offer_at.min(self.seek_until()),
            Some(_) => {
                (self.spoke + KEEPALIVE).min(self.offer_at).min(self.heard + self.plan.idle_timeout)
            }
        }
    }

    fn seek_until(&self) -> Instant {
        let patience = match self.sessions {
            0 => self.plan.accept_timeout,
            _ => self.plan.idle_timeout,
        };
        self.seeking + patience
    }

    async fn tick(&mut self) -> Result<(), StreamError> {
        let now = self.env.now();
        if self.session.is_none() {
            if now >= self.seek_until() {
                let reason = format!("no receiver took it within {:?}", now - self.seeking);
                return Err(self.unavailable(reason));
            }
        } else if now >= self.heard + self.plan.idle_timeout {
            return Err(StreamError::IdleTimeout { after: self.plan.idle_timeout });
        }
        if now >= self.offer_at {
            let ttl = match self.sessions {
                0 => (self.seek_until() - now).max(Duration::from_millis(1)),
                _ => SILENCE,
            };
            self.offer(ttl).await?;
        }
        if now >= self.spoke + KEEPALIVE {
            match (self.chunks.close(), &self.session) {
                (Some(_), _) => self.close().await?,
                (None, Some(session)) => {
                    let session = session.number;
                    let alive = ToReceiver::Alive { sent: self.window.next() };
                    self.say(alive, Sent::Other { session }).await?;
                }
                _ => {}
            }
            self.spoke = now;
        }
        Ok(())
    }

    /// Offers the stream to the receivers of the service, for as long as `ttl`.
    async fn offer(&mut self, ttl: Duration) -> Result<(), StreamError> {
        let message = wire::open(self.plan.id, self.plan.codec, &self.plan.open)?
            .with_reply_to(self.plan.reply_to.clone())
            .with_message_id(self.env.new_id().to_string())
            .with_timestamp(self.env.timestamp())
            .with_ttl(Duration::from_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)));
        self.offer_at = self.env.now() + ttl;
        self.offered = true;
        self.send(self.plan.offers.clone(), message, Sent::Offer).await
    }

    /// Tells a session that another one has the stream.
    fn supersede(&self, queue: String) -> impl Future<Output = ()> + use<> {
        let (code, reason) = (codes::SUPERSEDED.to_owned(), "another receiver has it".to_owned());
        self.part(queue, &ToReceiver::Abort { code, reason })
    }

    /// Says the last thing to a session. It may be lost; what it says later is answered the same way.
    fn part(&self, queue: String, farewell: &ToReceiver) -> impl Future<Output = ()> + use<> {
        let (id, publisher) = (self.plan.id, Arc::clone(&self.publisher));
        let envelope = Envelope::new(Address::queue(queue), farewell.message(id, self.plan.codec));
        let until = self.env.now() + FAREWELL;
        async move {
            let told = async { publisher.send(envelope).await?.await.into_result() };
            match timeout_at(until, told).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%id, %error, "the receiver was not told"),
                Err(_late) => tracing::debug!(%id, "the receiver was not told in time"),
            }
        }
    }
}
