//! The task that owns a consumer's link: takes what comes, and tells the broker what is settled.

use std::{future::pending, mem, pin::pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use fe2o3_amqp::{
    Delivery, Receiver,
    link::{RecvError, delivery::DeliveryInfo as Receipt, receiver::TerminalDeliveryState},
};
use fe2o3_amqp_types::{
    definitions,
    messaging::{Accepted, Body, Modified, Rejected, Released},
    primitives::{OrderedMap, Symbol, Timestamp, Value},
};
use futures_util::FutureExt;
use postrider_core::{DeliveryInfo, Error, ErrorKind, Result, Settlement};
use postrider_rabbitmq::delay::{DELIVERY_TIME, FIRST_FAILED};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    clock::until,
    connection::Connection,
    consumer::{Subscriber, Taken},
    error::{late, lost, of_receive},
    frames::ASKING,
    ladder, message,
    observed::Echo,
    sessions::Seat,
    stay::{Kept, Stay},
};

/// How long acks are gathered before they are sent, when there are few.
const GATHER: Duration = Duration::from_millis(1);

/// How many deliveries are taken in a row before settlements are looked at.
const RUN: usize = 64;

/// How long one frame may take to be handed on.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a broker may take to say that it has heard how much is wanted. One that does not say so has
/// heard of it by then.
const ECHO: Duration = Duration::from_millis(500);

/// How long what was on its way may take to come after no more was wanted.
const STRAGGLERS: Duration = Duration::from_millis(50);

/// How long ending a link may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a stay is over.
enum Over {
    /// The consumer was dropped and all its deliveries are settled.
    Settled,
    /// The connection is gone.
    Lost,
    /// The link is, by this error.
    Link(Error),
}

/// A link that consumes.
pub(crate) struct Consuming {
    pub(crate) receiver: Receiver,
    pub(crate) seat: Seat,
    pub(crate) prefetch: u16,
    /// Whether the queue has one consumer at a time. It keeps its place until it can give back all
    /// at once.
    pub(crate) keeps_order: bool,
    /// Whether each message has its place in a stream.
    pub(crate) is_stream: bool,
    /// Whether the broker settles what it sends: there is nothing to be told about it.
    pub(crate) is_settled: bool,
    /// Whether the broker delays a message that failed for as long as it is told.
    pub(crate) delays: bool,
    /// Whether what the end of the link gives back counts as failed, as in classic queues.
    pub(crate) counts_end: bool,
}

impl Consuming {
    /// Ends the link; what is unsettled goes back to the queue.
    async fn end(self, connection: &Connection) {
        let Self { receiver, seat, .. } = self;
        tokio::select! {
            biased;
            () = connection.over() => {}
            () = seat.over().cancelled() => {}
            left = timeout(LEAVE_TIMEOUT, receiver.close()) => if left.is_err() {
                seat.spoil();
            },
        }
    }
}

/// Waiting for the broker to say that it has heard how much is wanted.
struct Asked {
    echo: Echo,
    until: Instant,
}

/// Waits until the broker has said so, or its time is over. Cancellation safe.
async fn heard(asked: Option<&Asked>) {
    match asked {
        Some(Asked { echo, until }) => {
            let _late = timeout_at(*until, echo.heard()).await;
        }
        None => pending().await,
    }
}

/// The task that owns the link of a stay.
pub(crate) struct Owner {
    stay: Arc<Stay>,
    subscriber: Arc<Subscriber>,
    connection: Arc<Connection>,
    link: Consuming,
    /// Whether deliveries still come and are wanted.
    consuming: bool,
    /// The broker was told what is wanted and has not said that it heard of it. Until then there is no
    /// way for answers that it hands over and forgets.
    opening: Option<Asked>,
    /// The broker was told that no more is wanted and has not said that it heard of it. Until then
    /// nothing goes back: it might come here once more, and behind the rest.
    pausing: Option<Asked>,
    /// What was not handed out has yet to go back.
    leaving: bool,
    /// When what was on its way will have come, after no more is wanted.
    stragglers: Option<Instant>,
    /// What the broker may still send.
    credit: u32,
    /// How many acks are sent at once at the latest.
    enough: usize,
    flush_at: Option<Instant>,
    /// Delayed retries whose copy is not confirmed.
    retries: JoinSet<(u64, Result<()>)>,
    acks: Vec<Receipt>,
    /// Settlements and deliveries at work on, kept for their memory.
    orders: Vec<(u64, Settlement)>,
    taken: Vec<Taken>,
}

impl Owner {
    pub(crate) fn new(
        stay: Arc<Stay>,
        subscriber: Arc<Subscriber>,
        connection: Arc<Connection>,
        link: Consuming,
    ) -> Self {
        let enough = usize::from(link.prefetch / 2).max(1);
        Self {
            stay,
            subscriber,
            connection,
            link,
            consuming: true,
            opening: None,
            pausing: None,
            leaving: false,
            stragglers: None,
            credit: 0,
            enough,
            flush_at: None,
            retries: JoinSet::new(),
            acks: Vec::new(),
            orders: Vec::new(),
            taken: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        let over = self.serve().await;
        let Self { stay, subscriber, connection, link, consuming, .. } = self;
        match over {
            Over::Settled => link.end(&connection).await,
            Over::Lost => {}
            Over::Link(error) => {
                stay.lose();
                link.end(&connection).await;
                if !consuming || connection.is_over() {
                    return;
                }
                if error.kind() == ErrorKind::NotFound {
                    subscriber.end_deleted();
                    return;
                }
                tracing::warn!(%error, queue = %stay.queue(), "a consumer's link is gone");
                subscriber.reattach(&connection).await;
            }
        }
    }

    async fn serve(&mut self) -> Over {
        let connection = self.connection.clone();
        let mut over = pin!(connection.over());
        if let Err(error) = self.open().await {
            return self.why(error);
        }
        loop {
            if let Err(error) = self.obey().await {
                return self.why(error);
            }
            let (lost, settled) = {
                let book = self.stay.book();
                let told = if self.link.keeps_order {
                    book.handed_out == 0 && book.acked == 0
                } else {
                    book.ledger.open() == 0 && book.acked == 0
                };
                (book.lost, told && book.orders.is_empty())
            };
            if lost {
                return Over::Lost;
            }
            let is_quiet = self.pausing.is_none() && self.stragglers.is_none();
            if !self.consuming && settled && self.retries.is_empty() && is_quiet {
                return Over::Settled;
            }
            let (flush_at, stragglers) = (self.flush_at, self.stragglers);
            tokio::select! {
                biased;
                () = &mut over => return Over::Lost,
                () = self.stay.called() => {}
                Some(Ok((tag, copied))) = self.retries.join_next() => {
                    if let Err(error) = self.retried(tag, copied).await {
                        return self.why(error);
                    }
                }
                received = self.link.receiver.recv::<Body<Value>>() => {
                    if let Err(error) = self.take(received).await {
                        return self.why(error);
                    }
                }
                () = until(flush_at) => {
                    if let Err(error) = self.flush().await {
                        return self.why(error);
                    }
                }
                () = heard(self.opening.as_ref()) => {
                    self.opening = None;
                    self.subscriber.reachable(&self.stay);
                }
                () = heard(self.pausing.as_ref()) => {
                    self.pausing = None;
                    self.stragglers = Some(self.stay.link().env().now() + STRAGGLERS);
                }
                () = until(stragglers) => self.stragglers = None,
            }
        }
    }

    /// A link ends with the connection too, and may be told of it first.
    fn why(&self, error: Error) -> Over {
        if self.connection.is_over() { Over::Lost } else { Over::Link(error) }
    }

    /// Does what was ordered since it was last looked at.
    async fn obey(&mut self) -> Result<()> {
        let stop = {
            let mut book = self.stay.book();
            book.busy = true;
            mem::take(&mut book.stop)
        };
        if stop {
            self.pause().await?;
        }
        if self.pausing.is_some() {
            return Ok(());
        }
        let mut orders = mem::take(&mut self.orders);
        let unread = {
            let mut book = self.stay.book();
            mem::swap(&mut book.orders, &mut orders);
            // Most are acks, which need nothing but the ledger.
            orders.retain(|(tag, settlement)| {
                let is_ack = *settlement == Settlement::Ack;
                let is_done = is_ack || self.link.is_settled;
                if is_done && let Some(kept) = book.ledger.take(*tag) {
                    match kept.receipt {
                        Some(receipt) => self.acks.push(receipt),
                        None => book.handed_out = book.handed_out.saturating_sub(1),
                    }
                }
                !is_done
            });
            book.acked = self.acks.len();
            mem::take(&mut book.unread)
        };
        for (tag, settlement) in orders.drain(..) {
            self.apply(tag, settlement).await?;
        }
        self.orders = orders;
        if mem::take(&mut self.leaving) {
            self.give_back(unread).await?;
        }
        self.stay.book().busy = false;
        let waiting = self.acks.len();
        if waiting >= self.enough || (waiting > 0 && !self.consuming) {
            self.flush().await?;
        } else if waiting > 0 && self.flush_at.is_none() {
            self.flush_at = Some(self.stay.link().env().now() + GATHER);
        } else if waiting == 0 {
            self.stay.told();
        }
        self.top_up().await
    }

    async fn apply(&mut self, tag: u64, settlement: Settlement) -> Result<()> {
        match settlement {
            Settlement::Ack => self.ack(tag),
            Settlement::Retry { after } => return self.retry(tag, after).await,
            Settlement::Reject { reason } => {
                let error = definitions::Error::new(
                    definitions::AmqpError::InvalidField,
                    Some(reason.into_owned()),
                    None,
                );
                return self.settle(tag, Rejected { error: Some(error) }).await;
            }
            _ => return self.settle(tag, Released {}).await,
        }
        Ok(())
    }

    fn ack(&mut self, tag: u64) {
        let mut book = self.stay.book();
        let kept = book.ledger.take(tag);
        self.acks.extend(kept.and_then(|kept| kept.receipt));
        book.acked = self.acks.len();
    }

    async fn retry(&mut self, tag: u64, after: Duration) -> Result<()> {
        let kept = self.stay.book().ledger.get(tag).map(|kept| kept.delivered.clone());
        let Some(delivered) = kept else { return Ok(()) };
        if delivered.info.offset.is_some() {
            // A stream is the same for all who read it: nothing is taken out or put in.
            self.ack(tag);
            return Ok(());
        }
        let after = if after.is_zero() { self.own_delay(&delivered) } else { after };
        if after.is_zero() || self.link.delays {
            return self.fail(tag, after, delivered.info.first_failed).await;
        }
        let link = self.stay.link().clone();
        self.retries.spawn(async move { (tag, ladder::retry(&link, &delivered, after).await) });
        Ok(())
    }

    /// How long a message that fails is delayed by the queue's own rule, where the broker does not
    /// do that itself.
    fn own_delay(&self, delivered: &message::Delivered) -> Duration {
        if self.connection.version().delays_retries() {
            return Duration::ZERO;
        }
        let record = self.stay.link().record();
        let own = record.queue(self.stay.queue()).and_then(|queue| queue.retry_delay);
        own.map_or(Duration::ZERO, |delay| delay.after(delivered.info.failures.saturating_add(1)))
    }

    /// Back to the queue as a failure, to come again after a while.
    async fn fail(
        &self,
        tag: u64,
        after: Duration,
        first_failed: Option<DateTime<Utc>>,
    ) -> Result<()> {
        let now = self.stay.link().env().timestamp();
        let mut notes = OrderedMap::new();
        if !after.is_zero() {
            let due = Timestamp::from((now + after).timestamp_millis());
            notes.insert(Symbol::from(DELIVERY_TIME), Value::Timestamp(due));
        }
        if first_failed.is_none() && self.connection.dialect().foreign().is_none() {
            // A quorum queue keeps what it was told before.
            notes.insert(Symbol::from(FIRST_FAILED), Value::Long(now.timestamp_millis()));
        }
        let failed = Modified {
            delivery_failed: Some(true),
            undeliverable_here: None,
            message_annotations: (!notes.is_empty()).then_some(notes),
        };
        self.settle(tag, failed).await
    }

    /// A copy for later is stored, so the original is done with; or it is not, and then the
    /// message comes again at once rather than not at all.
    async fn retried(&mut self, tag: u64, copied: Result<()>) -> Result<()> {
        match copied {
            Ok(()) => {
                self.ack(tag);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, queue = %self.stay.queue(), "a retry could not be delayed");
                let kept = self.stay.book().ledger.get(tag).map(|kept| kept.delivered.clone());
                let first_failed = kept.and_then(|delivered| delivered.info.first_failed);
                self.fail(tag, Duration::ZERO, first_failed).await
            }
        }
    }

    /// Settles a delivery that was handed out, otherwise than by an ack.
    async fn settle(&self, tag: u64, state: impl Into<TerminalDeliveryState>) -> Result<()> {
        let kept = self.stay.book().ledger.take(tag);
        if let Some(receipt) = kept.and_then(|kept| kept.receipt) {
            self.dispose(vec![receipt], state).await?;
            let mut book = self.stay.book();
            book.handed_out = book.handed_out.saturating_sub(1);
        }
        self.stay.link().note_settled();
        Ok(())
    }

    async fn dispose(
        &self,
        receipts: Vec<Receipt>,
        state: impl Into<TerminalDeliveryState>,
    ) -> Result<()> {
        let state: TerminalDeliveryState = state.into();
        match timeout(WRITE_TIMEOUT, self.link.receiver.dispose_all(receipts, state)).await {
            Ok(disposed) => disposed.map_err(|error| lost("settle").with_source(error)),
            Err(_) => Err(late("settle")),
        }
    }

    /// Lets the broker send as much as may be unsettled, when half of it is used.
    async fn top_up(&mut self) -> Result<()> {
        let most = u32::from(self.link.prefetch);
        if !self.consuming || self.credit > most / 2 {
            return Ok(());
        }
        let unsettled = self.stay.book().ledger.open() + self.acks.len();
        let room = most.saturating_sub(u32::try_from(unsettled).unwrap_or(u32::MAX));
        if room <= self.credit {
            return Ok(());
        }
        self.grant(room).await
    }

    async fn grant(&mut self, credit: u32) -> Result<()> {
        match timeout(WRITE_TIMEOUT, self.link.receiver.set_credit(credit)).await {
            Ok(granted) => granted.map_err(|error| lost("consume").with_source(error))?,
            Err(_) => return Err(late("consume")),
        }
        self.credit = credit;
        Ok(())
    }

    /// Grants `credit` and asks the broker to say when it has heard of it.
    async fn grant_and_ask(&mut self, credit: u32) -> Result<Asked> {
        let echo = self.connection.echo(self.link.receiver.name(), credit);
        self.grant(ASKING + credit).await?;
        self.credit = credit;
        let until = self.stay.link().env().now() + ECHO;
        Ok(Asked { echo, until })
    }

    /// Begins to consume.
    async fn open(&mut self) -> Result<()> {
        if self.link.is_settled {
            // A broker throws away what it could not hand over at once.
            self.opening = Some(self.grant_and_ask(self.link.prefetch.into()).await?);
        } else {
            self.top_up().await?;
            self.subscriber.reachable(&self.stay);
        }
        Ok(())
    }

    /// Stops consuming.
    async fn pause(&mut self) -> Result<()> {
        self.consuming = false;
        self.leaving = true;
        // There is one question at a time.
        self.opening = None;
        if self.credit > 0 {
            self.pausing = Some(self.grant_and_ask(0).await?);
        }
        Ok(())
    }

    /// Gives back what nobody was handed.
    async fn give_back(&mut self, unread: Vec<u64>) -> Result<()> {
        if self.stay.book().handed_out == 0 && !self.link.counts_end {
            // The end of the link gives everything back at once.
            self.link.keeps_order = true;
        }
        if self.link.keeps_order {
            return Ok(());
        }
        let receipts: Vec<_> = {
            let mut book = self.stay.book();
            let unread = unread.into_iter().filter_map(|tag| book.ledger.take(tag));
            unread.filter_map(|kept| kept.receipt).collect()
        };
        if receipts.is_empty() {
            return Ok(());
        }
        self.dispose(receipts, Released {}).await
    }

    /// Takes what came from the broker, and what came with it.
    async fn take(&mut self, first: Result<Delivery<Body<Value>>, RecvError>) -> Result<()> {
        let mut next = Some(first);
        let mut failure = None;
        while let Some(received) = next.take() {
            match received {
                Ok(delivery) => {
                    let (receipt, wire) = delivery.into_parts();
                    let (dialect, queue) = (self.connection.dialect(), self.stay.queue());
                    let mut delivered = message::read(dialect, queue, wire, self.link.is_stream);
                    self.credit = self.credit.saturating_sub(1);
                    let is_settled = self.link.is_settled;
                    if is_settled {
                        delivered.info = DeliveryInfo::first(queue.clone());
                    }
                    let receipt = (!is_settled).then_some(receipt);
                    let kept = Kept { delivered: delivered.clone(), receipt };
                    let tag = {
                        let mut book = self.stay.book();
                        let after = delivered.info.offset.map(|offset| offset + 1);
                        book.next_offset = after.or(book.next_offset);
                        book.ledger.enter(kept)
                    };
                    self.taken.push(Taken { stay: self.stay.clone(), tag, delivered });
                }
                Err(RecvError::MessageDecode(error)) => {
                    // It would come again and again, so it goes where what nobody can read goes.
                    tracing::error!(?error, queue = %self.stay.queue(), "a message cannot be read");
                    self.credit = self.credit.saturating_sub(1);
                    let unreadable = Rejected { error: None };
                    self.dispose(vec![error.info], unreadable).await?;
                }
                Err(error) => {
                    failure = Some(of_receive("consume", &error));
                    break;
                }
            }
            if self.taken.len() < RUN {
                next = self.link.receiver.recv::<Body<Value>>().now_or_never();
            }
        }
        if !self.subscriber.push(&self.stay, &mut self.taken) {
            let unread = self.taken.drain(..).map(|taken| taken.tag).collect();
            self.stay.stop(unread);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Sends the acks that wait.
    async fn flush(&mut self) -> Result<()> {
        self.flush_at = None;
        let receipts = mem::take(&mut self.acks);
        let told = receipts.len();
        if told > 0 {
            self.dispose(receipts, Accepted {}).await?;
        }
        {
            let mut book = self.stay.book();
            book.acked = 0;
            book.handed_out = book.handed_out.saturating_sub(told);
        }
        self.stay.told();
        self.top_up().await
    }
}
