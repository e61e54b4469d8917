//! The task of one transfer, at the side of the handler.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use postrider_core::{
    Address, Consumer, ConsumerOptions, Delivery, Envelope, Queue, Result as CoreResult, Topology,
    TransportEvent, Verdict,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use super::{
    incoming::{Begin, End, Piece},
    offers::{Reopen, Shared},
};
use crate::{
    codec::Codec,
    handler::{ErrorClass, HandlerError},
    streaming::{
        Progress, StreamError, codes,
        integrity::Hasher,
        limits::KEEPALIVE,
        reassembly::{Accepted, Bounds, Reassembly},
        wire::{self, Close, Credit, Fail, Open, ToReceiver, ToSender},
    },
};

/// What a handler gives back.
pub(super) type Handled = Result<(), HandlerError>;

/// How long the last word of a receiver that stops may take.
const FAREWELL: Duration = Duration::from_millis(300);

/// When a handler whose sender is gone is looked after: there is nothing to do then.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What ties a session to its handler.
pub(super) struct Reader {
    pub(super) begin: oneshot::Receiver<Begin>,
    pub(super) pieces: mpsc::Sender<Piece>,
    pub(super) end: End,
    pub(super) progress: watch::Sender<Progress>,
}

pub(super) struct Session {
    shared: Arc<Shared>,
    id: Uuid,
    open: Arc<Open>,
    codec: Codec,
    queue: String,
    reply_to: String,
    window: u32,
    begin: Option<oneshot::Receiver<Begin>>,
    pieces: Option<mpsc::Sender<Piece>>,
    end: End,
    progress: watch::Sender<Progress>,
    reassembly: Option<Reassembly>,
    hasher: Hasher,
    /// The end of a stream whose hash was compared.
    complete: Option<Close>,
    /// The last word, from when it is known; it is repeated until the sender has heard it.
    outcome: Option<ToSender>,
    /// Whether the sender has nothing more to say or to hear.
    parted: bool,
    /// The credit that the sender was told of.
    granted: u64,
    heard: Instant,
    spoke: Instant,
    /// When the stream last came on.
    moved: Instant,
    /// How often what is missing was asked for since then.
    rounds: u32,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        (id, open, codec): (Uuid, Arc<Open>, Codec),
        reply_to: String,
        window: u32,
        reader: Reader,
    ) -> Self {
        let name = shared.transport.env().new_id().to_string();
        let queue = shared.settings.naming.transfer_queue(&shared.service, &name);
        let now = shared.transport.env().now();
        Self {
            shared,
            id,
            open,
            codec,
            queue,
            reply_to,
            window,
            begin: Some(reader.begin),
            pieces: Some(reader.pieces),
            end: reader.end,
            progress: reader.progress,
            reassembly: None,
            hasher: Hasher::default(),
            complete: None,
            outcome: None,
            parted: false,
            granted: 0,
            heard: now,
            spoke: now,
            moved: now,
            rounds: 0,
        }
    }

    /// Makes the queue of the transfer and tells the sender of it. Says whether the sender is there.
    pub(super) async fn begin(&mut self) -> CoreResult<Option<Consumer>> {
        let transport = &self.shared.transport;
        transport.declare(&self.topology()).await?;
        let prefetch = u16::try_from(self.window + 16).unwrap_or(u16::MAX);
        let options = ConsumerOptions::default().with_prefetch(prefetch);
        let consumer = transport.consumer(&self.queue, options).await?;
        let verdict = self.say(&ToSender::Credit(Credit::default())).await?;
        Ok(match verdict {
            Verdict::Unroutable => None,
            // A word that was lost is said again.
            _ => Some(consumer),
        })
    }

    fn topology(&self) -> Topology {
        Topology::new().queue(Queue::exclusive(self.queue.clone()))
    }

    /// Runs until the handler is done; what is to be told the sender is the outcome then.
    pub(super) async fn receive(
        &mut self,
        consumer: &mut Option<Consumer>,
        handler: JoinHandle<Handled>,
        reopens: &mut mpsc::Receiver<Reopen>,
        kill: &CancellationToken,
    ) {
        let mut handler = AbortOnDropHandle::new(handler);
        let mut events = self.shared.transport.events();
        loop {
            let passes = self.reassembly.as_ref().is_some_and(Reassembly::has_next);
            let place = self.pieces.clone().filter(|_| passes);
            let next_tick = self.next_tick();
            tokio::select! {
                biased;
                () = kill.cancelled() => return self.interrupt().await,
                handled = &mut handler => {
                    let handled = handled.unwrap_or_else(|error| {
                        Err(HandlerError::internal(error.to_string()))
                    });
                    self.conclude(handled);
                    return;
                }
                begin = begun(&mut self.begin) => self.begun(begin).await,
                Some(reopen) = reopens.recv() => self.reopened(reopen).await,
                Some(Ok(place)) = reserve(place) => self.pass_on(place).await,
                delivery = received(consumer) => self.hear(delivery, consumer).await,
                restored = restored(&mut events) => if restored { self.recover().await },
                () = sleep_until(next_tick) => self.tick().await,
            }
        }
    }

    /// Says the outcome until the sender has heard it, or nothing is heard of the sender. While it has
    /// its `place`, offers of the stream come to it.
    pub(super) async fn linger(
        mut self,
        mut consumer: Option<Consumer>,
        mut reopens: mpsc::Receiver<Reopen>,
        place: impl Send,
        stop: &CancellationToken,
    ) {
        let env = self.shared.transport.env().clone();
        let until = env.now() + self.shared.settings.idle_timeout;
        self.heard = env.now();
        self.reassembly = None;
        let mut events = self.shared.transport.events();
        self.repeat_outcome().await;
        while !self.parted && env.now() < until {
            let next_tick = (self.spoke + KEEPALIVE).min(until);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(reopen) = reopens.recv() => self.reopened(reopen).await,
                delivery = received(&mut consumer) => self.hear(delivery, &mut consumer).await,
                restored = restored(&mut events) => if restored { self.repeat_outcome().await },
                () = sleep_until(next_tick) => self.repeat_outcome().await,
            }
        }
        drop(place);
        // An offer that came in this moment is answered here, the next one by a session of its own.
        while let Ok(reopen) = reopens.try_recv() {
            self.reopened(reopen).await;
        }
        drop(consumer);
        self.remove_queue().await;
    }

    pub(super) async fn remove_queue(&self) {
        if let Err(error) = self.shared.transport.remove(&self.topology()).await {
            tracing::debug!(queue = %self.queue, %error, "the queue of a stream was not removed");
        }
    }

    pub(super) const fn is_done(&self) -> bool {
        matches!(self.outcome, Some(ToSender::Done { .. }))
    }

    /// The receiver stops: another one may go on.
    async fn interrupt(&mut self) {
        let stopped = StreamError::Interrupted("the receiver stops".to_owned());
        if self.outcome.is_none() {
            self.outcome = Some(ToSender::Fail(Fail::of(&stopped, true)));
        }
        self.end_reader(stopped);
        let _in_time = timeout(FAREWELL, self.repeat_outcome()).await;
    }

    /// What the handler's result means for the sender.
    fn conclude(&mut self, handled: Handled) {
        self.pieces = None;
        if self.outcome.is_some() || self.parted {
            return;
        }
        self.outcome = Some(match (handled, self.complete) {
            (Ok(()), Some(close)) => ToSender::Done { length: close.length, hash: close.hash },
            (Ok(()), None) => ToSender::Fail(Fail {
                code: codes::NOT_READ.to_owned(),
                class: ErrorClass::Cancelled,
                message: "the receiver ended before the stream did".to_owned(),
                again: false,
            }),
            (Err(error), _) => {
                tracing::warn!(id = %self.id, %error, "the handler of a stream failed");
                ToSender::Fail(Fail {
                    code: error.code().to_owned(),
                    class: error.class(),
                    message: told(&error),
                    again: error.code() == codes::BUSY,
                })
            }
        });
    }

    /// Ends the stream for its reader, and the sender is told why.
    fn break_off(&mut self, error: StreamError) {
        if self.complete.is_some() || self.outcome.is_some() {
            return;
        }
        tracing::warn!(id = %self.id, %error, "a stream ended early");
        self.outcome = Some(ToSender::Fail(Fail::of(&error, error.is_resumable())));
        self.end_reader(error);
    }

    fn end_reader(&mut self, error: StreamError) {
        self.end.set(Err(error));
        self.pieces = None;
        self.reassembly = None;
    }

    /// The handler reads: the sender may send.
    async fn begun(&mut self, begin: Begin) {
        let bounds = self.bounds();
        self.reassembly = Some(Reassembly::new(bounds, begin.chunks));
        self.hasher = begin.hasher;
        self.moved = self.shared.transport.env().now();
        self.progress.send_modify(|progress| {
            progress.bytes = begin.chunks * bounds.chunk_size;
            progress.resumed += u32::from(begin.chunks > 0);
        });
        self.credit(Vec::new()).await;
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            chunk_size: self.open.chunk_size.into(),
            window: self.window.into(),
            declared: self.open.length,
            max_length: self.shared.settings.max_length,
        }
    }

    /// The same stream is offered again: its sender was restarted, or has not heard of us.
    async fn reopened(&mut self, reopen: Reopen) {
        if *self.open != reopen.open {
            let busy = StreamError::Busy(format!("stream {}", self.id));
            let refusal = ToSender::Fail(Fail::of(&busy, false));
            self.shared.tell(self.id, reopen.codec, reopen.reply_to, None, &refusal).await;
            return;
        }
        if self.reply_to != reopen.reply_to {
            self.progress.send_modify(|progress| progress.resumed += 1);
        }
        (self.reply_to, self.codec) = (reopen.reply_to, reopen.codec);
        self.heard = self.shared.transport.env().now();
        // Who offers it again has parted before, and wants to hear how it ended.
        self.parted &= self.outcome.is_none();
        self.recover().await;
    }

    /// Says everything anew: what was on its way may be lost.
    async fn recover(&mut self) {
        let missing = self.reassembly.as_ref().map(Reassembly::lost);
        self.credit(missing.unwrap_or_default()).await;
    }

    /// Says what is here and what may be sent; or how it ended, when it has.
    async fn credit(&mut self, missing: Vec<(u64, u64)>) {
        if self.outcome.is_some() {
            return self.repeat_outcome().await;
        }
        let credit = match &self.reassembly {
            Some(reassembly) => {
                self.granted = reassembly.until();
                let (received, until) = (reassembly.received(), self.granted);
                Credit { received, until, missing }
            }
            // Nothing is granted before the handler reads.
            None => Credit::default(),
        };
        self.speak(&ToSender::Credit(credit)).await;
    }

    pub(super) async fn repeat_outcome(&mut self) {
        if !self.parted
            && let Some(outcome) = self.outcome.clone()
            && self.say(&outcome).await.is_err()
        {
            tracing::debug!(id = %self.id, "the outcome of a stream was not told; it is repeated");
        }
    }

    /// Says something and does not wait for the verdict: it is all said again.
    async fn speak(&mut self, frame: &ToSender) {
        self.spoke = self.shared.transport.env().now();
        match self.shared.publisher.send(self.envelope(frame)).await {
            Ok(_verdict) => {}
            Err(error) => tracing::debug!(id = %self.id, %error, "the sender was not told"),
        }
    }

    async fn say(&mut self, frame: &ToSender) -> CoreResult<Verdict> {
        self.spoke = self.shared.transport.env().now();
        Ok(self.shared.publisher.send(self.envelope(frame)).await?.await)
    }

    fn envelope(&self, frame: &ToSender) -> Envelope {
        let message = frame.message(self.id, self.codec).with_reply_to(self.queue.clone());
        Envelope::new(Address::queue(self.reply_to.clone()), message)
    }

    /// Hands the next chunk to the reader.
    async fn pass_on(&mut self, place: mpsc::OwnedPermit<Piece>) {
        let Some(reassembly) = &mut self.reassembly else { return };
        let Some(body) = reassembly.take() else { return };
        let (until, window) = (reassembly.until(), u64::from(self.window));
        self.hasher.update(&body);
        self.progress.send_modify(|progress| progress.bytes += body.len() as u64);
        place.send(Piece { body, prefix: self.hasher.so_far() });
        if !self.complete_if_all() && until - self.granted >= window.div_ceil(4) {
            self.credit(Vec::new()).await;
        }
    }

    /// Compares the hash once everything was handed out.
    fn complete_if_all(&mut self) -> bool {
        let Some(close) = self.reassembly.as_ref().and_then(Reassembly::end).copied() else {
            return false;
        };
        let hash = self.hasher.so_far();
        if hash == close.hash {
            self.end.set(Ok(close));
            (self.complete, self.pieces, self.reassembly) = (Some(close), None, None);
        } else {
            let message = format!("its hash is {hash}, and {} was sent", close.hash);
            self.break_off(StreamError::Corrupt(message));
        }
        true
    }

    async fn hear(
        &mut self,
        delivery: Option<CoreResult<Delivery>>,
        consumer: &mut Option<Consumer>,
    ) {
        let delivery = match delivery {
            Some(Ok(delivery)) => delivery,
            ended => {
                *consumer = None;
                self.break_off(match ended {
                    Some(Err(error)) => error.into(),
                    _ => StreamError::Interrupted("the transport was closed".to_owned()),
                });
                return self.repeat_outcome().await;
            }
        };
        let ours = wire::stream_id(delivery.message()) == Some(self.id);
        let frame = ToReceiver::read(delivery.message());
        delivery.ack();
        if !ours {
            return;
        }
        self.heard = self.shared.transport.env().now();
        let taken_in = match frame {
            Ok(Some(frame)) => self.take_in(frame).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = taken_in {
            self.break_off(error);
            self.repeat_outcome().await;
        }
    }

    async fn take_in(&mut self, frame: ToReceiver) -> Result<(), StreamError> {
        match frame {
            ToReceiver::Chunk(chunk) => {
                let Some(reassembly) = &mut self.reassembly else { return Ok(()) };
                let before = reassembly.received();
                if reassembly.accept(chunk)? == Accepted::Duplicate {
                    self.progress.send_modify(|progress| progress.repeated += 1);
                }
                if reassembly.received() > before {
                    (self.moved, self.rounds) = (self.heard, 0);
                }
            }
            ToReceiver::Alive { sent } => {
                if let Some(reassembly) = &mut self.reassembly {
                    reassembly.note_sent(sent);
                }
                self.answer_if_over().await;
            }
            ToReceiver::Close(close) => {
                if let Some(reassembly) = &mut self.reassembly {
                    reassembly.close(close)?;
                    if self.complete_if_all() && self.outcome.is_some() {
                        self.repeat_outcome().await;
                    }
                }
                self.answer_if_over().await;
            }
            ToReceiver::Abort { code, reason } => {
                self.parted = true;
                if self.complete.is_none() && self.outcome.is_none() {
                    let error = match code.as_str() {
                        codes::UNKNOWN_STREAM => StreamError::Interrupted(reason),
                        _ => StreamError::Aborted { reason },
                    };
                    tracing::debug!(id = %self.id, %error, "the sender ended a stream");
                    self.end_reader(error);
                }
            }
            ToReceiver::Bye => self.parted = true,
        }
        Ok(())
    }

    /// A sender that still speaks has not heard how it ended.
    async fn answer_if_over(&mut self) {
        if self.spoke + FAREWELL <= self.heard {
            self.repeat_outcome().await;
        }
    }

    fn next_tick(&self) -> Instant {
        let settings = &self.shared.settings;
        if self.parted {
            return self.heard + A_DAY;
        }
        let tick = (self.spoke + KEEPALIVE).min(self.heard + settings.idle_timeout);
        let waits = self.reassembly.as_ref().is_some_and(|chunks| !chunks.gaps().is_empty());
        if waits { tick.min(self.moved + settings.gap_timeout) } else { tick }
    }

    async fn tick(&mut self) {
        let now = self.shared.transport.env().now();
        let settings = &self.shared.settings;
        if self.parted {
            return;
        }
        if now >= self.heard + settings.idle_timeout {
            // Said once; what comes later is for the next tick.
            self.heard = now;
            self.break_off(StreamError::IdleTimeout { after: settings.idle_timeout });
            return self.repeat_outcome().await;
        }
        let gaps = self.reassembly.as_ref().map(Reassembly::gaps).unwrap_or_default();
        if let Some(&(first, _)) = gaps.first()
            && now >= self.moved + settings.gap_timeout
        {
            let (rounds, most) = (self.rounds, settings.gap_rounds);
            if rounds >= most {
                self.break_off(StreamError::ChunksMissing { first, rounds });
                return self.repeat_outcome().await;
            }
            (self.rounds, self.moved) = (rounds + 1, now);
            return self.credit(gaps).await;
        }
        if now >= self.spoke + KEEPALIVE {
            self.credit(Vec::new()).await;
        }
    }
}

/// What a sender is told of a handler's error: a fault of the program stays in its log.
fn told(error: &HandlerError) -> String {
    match error.class() {
        ErrorClass::Internal => "an internal error; the log of the receiver says why".to_owned(),
        _ => error.message().to_owned(),
    }
}

async fn begun(begin: &mut Option<oneshot::Receiver<Begin>>) -> Begin {
    if let Some(receiver) = begin {
        let begun = receiver.await;
        *begin = None;
        if let Ok(begun) = begun {
            return begun;
        }
    }
    std::future::pending().await
}

async fn reserve(
    pieces: Option<mpsc::Sender<Piece>>,
) -> Option<Result<mpsc::OwnedPermit<Piece>, mpsc::error::SendError<()>>> {
    Some(pieces?.reserve_owned().await)
}

async fn received(consumer: &mut Option<Consumer>) -> Option<CoreResult<Delivery>> {
    match consumer {
        Some(consumer) => consumer.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether what happened to the transport is that it is back.
async fn restored(events: &mut BoxStream<'static, TransportEvent>) -> bool {
    match events.next().await {
        Some(event) => matches!(event, TransportEvent::Restored { .. }),
        None => std::future::pending().await,
    }
}
