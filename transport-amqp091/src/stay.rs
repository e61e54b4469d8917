//! One stay of a consumer at its queue: a channel, and the task that owns it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions, BasicRejectOptions},
};
use postrider_core::{Error, ErrorKind, Result, Settlement, SettlementSink, TransportEvent};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    consumer::{Subscriber, Taken},
    delivered::{self, Delivered},
    error::translate,
    ledger::{Ack, Ledger},
    link::{Guard, Link},
    session::{Session, close_channel},
};

/// How long acks are gathered before they are sent.
const GATHER: Duration = Duration::from_millis(1);

/// How long one frame may take to be written, and a cancel to be answered.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a cancel may take on a connection that is over.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What was delivered and is not settled.
#[derive(Debug, Default)]
struct Book {
    ledger: Ledger<Delivered>,
    /// Settlements that the channel's owner has not seen.
    orders: Vec<(u64, Settlement)>,
    /// Deliveries handed out whose settlement the broker was not told.
    handed_out: usize,
    /// Deliveries handed out and not settled by their handlers.
    held: usize,
    /// Handlers have nothing to settle here any more.
    lost: bool,
    /// No more deliveries are wanted, which the channel's owner has not seen.
    stop: bool,
    /// Deliveries that were never handed out and go back.
    unread: Vec<u64>,
    /// The channel's owner has taken orders and is at work on them.
    busy: bool,
}

pub(crate) struct Stay {
    guard: Arc<Guard>,
    queue: Arc<str>,
    book: Mutex<Book>,
    /// Tells the channel's owner of orders, or that it is over.
    wake: Notify,
    /// Tells that the broker was told of everything.
    flushed: Notify,
}

impl fmt::Debug for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stay").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Stay {
    pub(crate) fn new(guard: Arc<Guard>, queue: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            guard,
            queue,
            book: Mutex::default(),
            wake: Notify::new(),
            flushed: Notify::new(),
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> &Arc<Link> {
        self.guard.link()
    }

    /// Hands a delivery out; `false` when it would be stale.
    pub(crate) fn hand_out(&self) -> bool {
        let mut book = self.book();
        if book.lost {
            return false;
        }
        book.handed_out += 1;
        book.held += 1;
        true
    }

    /// Deliveries handed out whose settlement the broker was not told.
    pub(crate) fn unsettled(&self) -> usize {
        self.book().handed_out
    }

    /// Deliveries that handlers hold.
    pub(crate) fn held(&self) -> usize {
        self.book().held
    }

    /// The connection or the channel is gone: what is settled from now on is stale.
    pub(crate) fn lose(&self) {
        {
            let mut book = self.book();
            *book = Book { lost: true, ..Book::default() };
        }
        self.wake.notify_one();
        self.flushed.notify_waiters();
        self.link().note_settled();
    }

    /// Wants no more deliveries and gives back those that were not handed out.
    pub(crate) fn stop(&self, unread: Vec<u64>) {
        {
            let mut book = self.book();
            book.stop = true;
            book.unread.extend(unread);
        }
        self.wake.notify_one();
    }

    /// Waits until the broker was told of everything that was settled or given back.
    pub(crate) async fn flushed(&self) {
        loop {
            let flushed = self.flushed.notified();
            {
                let book = self.book();
                let told = book.orders.is_empty()
                    && book.ledger.waiting() == 0
                    && !book.stop
                    && !book.busy;
                if book.lost || told {
                    return;
                }
            }
            flushed.await;
        }
    }
}

impl SettlementSink for Stay {
    fn settle(&self, tag: u64, settlement: Settlement) {
        let queue = || self.queue.to_string();
        if settlement == Settlement::Abandon {
            self.link().events().send(TransportEvent::Abandoned { queue: queue() });
        }
        let first = {
            let mut book = self.book();
            if book.lost {
                None
            } else {
                book.held = book.held.saturating_sub(1);
                book.orders.push((tag, settlement));
                Some(book.orders.len() == 1)
            }
        };
        match first {
            None => self.link().events().send(TransportEvent::StaleSettlement { queue: queue() }),
            Some(true) => self.wake.notify_one(),
            // Its owner was woken before and takes this along.
            Some(false) => {}
        }
    }
}

/// Why a stay is over.
enum Over {
    /// The consumer was dropped and all its deliveries are settled.
    Settled,
    /// The connection is gone.
    Lost,
    /// The channel is.
    Channel(Error),
}

/// The task that owns the channel of a stay.
pub(crate) struct Owner {
    stay: Arc<Stay>,
    subscriber: Arc<Subscriber>,
    session: Arc<Session>,
    channel: Channel,
    deliveries: lapin::Consumer,
    /// Whether deliveries still come and are wanted.
    consuming: bool,
    /// Whether the queue has one consumer at a time. A cancel would hand it to the next before this
    /// one has given back what it has, so it keeps its place until it can give back all at once.
    keeps_order: bool,
    /// How many acks are sent at once at the latest.
    enough: usize,
    flush_at: Option<Instant>,
    /// Delayed retries whose copy is not confirmed.
    retries: JoinSet<(u64, Result<()>)>,
    acks: Vec<Ack>,
}

impl Owner {
    pub(crate) fn new(
        stay: Arc<Stay>,
        subscriber: Arc<Subscriber>,
        session: Arc<Session>,
        channel: Channel,
        deliveries: lapin::Consumer,
        prefetch: u16,
        keeps_order: bool,
    ) -> Self {
        Self {
            stay,
            subscriber,
            session,
            channel,
            deliveries,
            consuming: true,
            keeps_order,
            enough: usize::from(prefetch / 10).max(1),
            flush_at: None,
            retries: JoinSet::new(),
            acks: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        match self.serve().await {
            Over::Settled => close_channel(&self.channel).await,
            Over::Lost => self.leave().await,
            Over::Channel(error) => {
                self.stay.lose();
                if self.consuming && !self.session.is_over() {
                    tracing::warn!(%error, queue = %self.stay.queue, "a consumer's channel is gone");
                    self.subscriber.reattach(&self.session).await;
                }
            }
        }
    }

    /// Stops consuming on a connection that is about to be closed and may be healthy: else what one
    /// of its channels gives back in closing would go to the next, and count as another failure.
    async fn leave(&self) {
        if self.keeps_order {
            close_channel(&self.channel).await;
        } else if self.consuming && self.channel.status().connected() {
            let cancel = self.channel.basic_cancel(self.deliveries.tag(), Default::default());
            let _left = timeout(LEAVE_TIMEOUT, cancel).await;
        }
    }

    async fn serve(&mut self) -> Over {
        loop {
            if let Err(error) = self.obey().await {
                return Over::Channel(error);
            }
            let (lost, settled) = {
                let book = self.stay.book();
                let told = if self.keeps_order {
                    book.handed_out == 0 && book.ledger.waiting() == 0
                } else {
                    book.ledger.is_settled()
                };
                (book.lost, told && book.orders.is_empty())
            };
            if lost {
                return Over::Lost;
            }
            if !self.consuming && settled && self.retries.is_empty() {
                return Over::Settled;
            }
            let flush_at = self.flush_at;
            tokio::select! {
                biased;
                () = self.session.over() => return Over::Lost,
                () = self.stay.wake.notified() => {}
                Some(Ok((tag, copied))) = self.retries.join_next() => {
                    if let Err(error) = self.retried(tag, copied).await {
                        return Over::Channel(error);
                    }
                }
                delivery = self.deliveries.next(), if self.consuming || self.keeps_order => {
                    if let Err(error) = self.take(delivery) {
                        return Over::Channel(error);
                    }
                }
                () = sleep_until(flush_at.unwrap_or_else(far_off)), if flush_at.is_some() => {
                    if let Err(error) = self.flush().await {
                        return Over::Channel(error);
                    }
                }
            }
        }
    }

    /// Does what was ordered since it was last looked at.
    async fn obey(&mut self) -> Result<()> {
        let (orders, stop, unread) = {
            let mut book = self.stay.book();
            book.busy = true;
            let stop = std::mem::take(&mut book.stop);
            (std::mem::take(&mut book.orders), stop, std::mem::take(&mut book.unread))
        };
        for (tag, settlement) in orders {
            self.apply(tag, settlement).await?;
        }
        if stop {
            self.give_back(unread).await?;
        }
        self.stay.book().busy = false;
        let waiting = self.stay.book().ledger.waiting();
        if waiting >= self.enough || (waiting > 0 && !self.consuming) {
            self.flush().await?;
        } else if waiting > 0 && self.flush_at.is_none() {
            self.flush_at = Some(self.stay.link().env().now() + GATHER);
        } else if waiting == 0 {
            self.told();
        }
        Ok(())
    }

    async fn apply(&mut self, tag: u64, settlement: Settlement) -> Result<()> {
        match settlement {
            Settlement::Ack => {
                self.stay.book().ledger.ack(tag);
                Ok(())
            }
            Settlement::Retry { after } if after.is_zero() => {
                self.done(tag);
                fail(&self.channel, tag).await
            }
            Settlement::Retry { after } => {
                let kept = self.stay.book().ledger.open(tag).map(|kept| kept.clone());
                let Some(kept) = kept else { return Ok(()) };
                let (link, queue) = (self.stay.link().clone(), self.stay.queue.clone());
                let copied = async move {
                    let copied = crate::ladder::retry(&link, &queue, &kept, after).await;
                    (tag, copied)
                };
                self.retries.spawn(copied);
                Ok(())
            }
            Settlement::Reject { .. } => {
                self.done(tag);
                let options = BasicNackOptions { multiple: false, requeue: false };
                write(self.channel.basic_nack(tag, options)).await
            }
            _ => {
                self.done(tag);
                requeue(&self.channel, tag).await
            }
        }
    }

    /// A copy for later is stored, so the original is done with; or it is not, and then the
    /// message comes again at once rather than not at all.
    async fn retried(&self, tag: u64, copied: Result<()>) -> Result<()> {
        match copied {
            Ok(()) => {
                self.stay.book().ledger.ack(tag);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, queue = %self.stay.queue, "a retry could not be delayed");
                self.done(tag);
                fail(&self.channel, tag).await
            }
        }
    }

    fn done(&self, tag: u64) {
        let mut book = self.stay.book();
        if book.ledger.done(tag).is_some() {
            book.handed_out = book.handed_out.saturating_sub(1);
        }
        drop(book);
        self.stay.link().note_settled();
    }

    /// Stops consuming and gives back what nobody was handed.
    async fn give_back(&mut self, mut unread: Vec<u64>) -> Result<()> {
        if self.keeps_order {
            // The end of the channel gives everything back in its order.
            self.consuming = false;
            return Ok(());
        }
        if self.consuming {
            self.consuming = false;
            let tag = self.deliveries.tag();
            let cancel = self.channel.basic_cancel(tag, BasicCancelOptions::default());
            write(cancel).await?;
            while let Some(Some(Ok(delivery))) = self.deliveries.next().now_or_never() {
                unread.push(delivery.delivery_tag);
                let kept = delivered::read(&self.stay.queue, delivery);
                self.stay.book().ledger.enter(*unread.last().unwrap_or(&0), kept);
            }
        }
        for tag in unread {
            let open = self.stay.book().ledger.done(tag).is_some();
            if open {
                requeue(&self.channel, tag).await?;
            }
        }
        Ok(())
    }

    /// Takes what came from the broker.
    fn take(&mut self, delivery: Option<lapin::Result<lapin::message::Delivery>>) -> Result<()> {
        match delivery {
            Some(Ok(delivery)) => {
                let tag = delivery.delivery_tag;
                let kept = delivered::read(&self.stay.queue, delivery);
                let taken = Taken { stay: self.stay.clone(), tag, delivered: kept.clone() };
                self.stay.book().ledger.enter(tag, kept);
                if !self.subscriber.push(taken) && !self.keeps_order {
                    self.stay.stop(vec![tag]);
                }
                Ok(())
            }
            Some(Err(error)) => Err(translate("consume", error)),
            None if self.channel.status().connected() => {
                self.consuming = false;
                self.keeps_order = false;
                self.subscriber.end_deleted();
                Ok(())
            }
            None => {
                Err(Error::new(ErrorKind::Unavailable, "consume", "the broker closed the channel"))
            }
        }
    }

    /// Sends the acks that wait.
    async fn flush(&mut self) -> Result<()> {
        self.flush_at = None;
        let mut acks = std::mem::take(&mut self.acks);
        let waiting = {
            let mut book = self.stay.book();
            let waiting = book.ledger.waiting();
            book.ledger.take_acks(&mut acks);
            waiting
        };
        for ack in acks.drain(..) {
            let options = BasicAckOptions { multiple: ack.multiple };
            write(self.channel.basic_ack(ack.tag, options)).await?;
        }
        self.acks = acks;
        {
            let mut book = self.stay.book();
            book.handed_out = book.handed_out.saturating_sub(waiting);
        }
        self.told();
        Ok(())
    }

    fn told(&self) {
        self.stay.flushed.notify_waiters();
        self.stay.link().note_settled();
    }
}

/// Back to the queue, not counted as a failure where the broker tells the two apart.
async fn requeue(channel: &Channel, tag: u64) -> Result<()> {
    let options = BasicNackOptions { multiple: false, requeue: true };
    write(channel.basic_nack(tag, options)).await
}

/// Back to the queue as a failure: a reject counts on every version, a nack does not since 4.3.
async fn fail(channel: &Channel, tag: u64) -> Result<()> {
    write(channel.basic_reject(tag, BasicRejectOptions { requeue: true })).await
}

/// Waits until a frame is written.
async fn write(frame: impl Future<Output = lapin::Result<()>>) -> Result<()> {
    match timeout(WRITE_TIMEOUT, frame).await {
        Ok(written) => written.map_err(|error| translate("settle", error)),
        Err(_) => Err(crate::error::late("settle")),
    }
}

/// A moment that is not waited for.
fn far_off() -> Instant {
    // Only evaluated where the branch is switched off.
    postrider_core::Env::system().now()
}
