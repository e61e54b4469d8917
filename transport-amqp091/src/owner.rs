//! The task that owns a consumer's channel: takes what comes, and tells the broker what is settled.

use std::{mem, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions, BasicRejectOptions},
};
use postrider_core::{Error, ErrorKind, Result, Settlement};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    admin::Admin,
    clock::until,
    consumer::{Subscriber, Taken},
    delivered::{self, Delivered},
    error::{late, translate},
    ladder,
    ledger::Ack,
    session::Session,
    stay::Stay,
};

/// How long acks are gathered before they are sent, when there are few. Each that is sent wakes three
/// threads, so a consumer of a trickle would spend more on its acks than on its messages.
const GATHER: Duration = Duration::from_millis(5);

/// How many deliveries are taken in a row before settlements are looked at.
const RUN: usize = 64;

/// How long one frame may take to be written, and a cancel to be answered.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a failed message is held here at most, when a delay is not to be had of the broker.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// How long a cancel may take on a connection that is over.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What is known of the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// Whether it has one consumer at a time.
    pub(crate) keeps_order: bool,
    pub(crate) is_stream: bool,
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
    is_stream: bool,
    /// How many acks are sent at once at the latest.
    enough: usize,
    flush_at: Option<Instant>,
    /// Delayed retries whose copy is not confirmed.
    retries: JoinSet<(u64, Result<()>)>,
    acks: Vec<Ack>,
    /// Settlements and deliveries at work on, kept for their memory.
    orders: Vec<(u64, Settlement)>,
    taken: Vec<Taken>,
}

impl Owner {
    pub(crate) fn new(
        stay: Arc<Stay>,
        subscriber: Arc<Subscriber>,
        session: Arc<Session>,
        channel: Channel,
        deliveries: lapin::Consumer,
        prefetch: u16,
        kind: Kind,
    ) -> Self {
        Self {
            stay,
            subscriber,
            session,
            channel,
            deliveries,
            consuming: true,
            keeps_order: kind.keeps_order,
            is_stream: kind.is_stream,
            enough: usize::from(prefetch / 4).max(1),
            flush_at: None,
            retries: JoinSet::new(),
            acks: Vec::new(),
            orders: Vec::new(),
            taken: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self) {
        match self.serve().await {
            Over::Settled => self.session.close_channel(&self.channel).await,
            Over::Lost => self.leave().await,
            Over::Channel(error) => {
                self.session.note_dead_channel();
                self.stay.lose();
                self.session.close_channel(&self.channel).await;
                if self.consuming && !self.session.is_over() {
                    tracing::warn!(%error, queue = %self.stay.queue(), "a consumer's channel is gone");
                    self.subscriber.reattach(&self.session).await;
                }
            }
        }
    }

    /// Stops consuming on a connection that is about to be closed and may be healthy: else what one
    /// of its channels gives back in closing would go to the next, and count as another failure.
    async fn leave(&self) {
        if !self.channel.status().connected() {
            return;
        }
        if self.keeps_order {
            let _left = timeout(LEAVE_TIMEOUT, self.channel.close(200, "OK".into())).await;
        } else if self.consuming {
            let cancel = self.channel.basic_cancel(self.deliveries.tag(), Default::default());
            let _left = timeout(LEAVE_TIMEOUT, cancel).await;
        }
        self.session.retire(&self.channel);
    }

    async fn serve(&mut self) -> Over {
        // Made once: it is entered in a list under a lock.
        let session = self.session.clone();
        let mut over = pin!(session.over());
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
                () = &mut over => return Over::Lost,
                () = self.stay.called() => {}
                Some(Ok((tag, copied))) = self.retries.join_next() => {
                    if let Err(error) = self.retried(tag, copied).await {
                        return Over::Channel(error);
                    }
                }
                delivery = self.deliveries.next(), if self.consuming || self.keeps_order => {
                    if let Err(error) = self.take(delivery).await {
                        return Over::Channel(error);
                    }
                }
                () = until(flush_at) => {
                    if let Err(error) = self.flush().await {
                        return Over::Channel(error);
                    }
                }
            }
        }
    }

    /// Does what was ordered since it was last looked at.
    async fn obey(&mut self) -> Result<()> {
        let mut orders = mem::take(&mut self.orders);
        let (stop, mut unread) = {
            let mut book = self.stay.book();
            book.busy = true;
            mem::swap(&mut book.orders, &mut orders);
            // Most are acks, which need nothing but the ledger.
            orders.retain(|(tag, settlement)| {
                let is_ack = *settlement == Settlement::Ack;
                if is_ack {
                    book.ledger.ack(*tag);
                }
                !is_ack
            });
            (mem::take(&mut book.stop), mem::take(&mut book.unread))
        };
        if stop {
            // A broker that does not answer a cancel may still hear what was acknowledged.
            self.flush().await?;
            // Before what fails, which would come here again.
            self.cancel(&mut unread).await?;
        }
        for (tag, settlement) in orders.drain(..) {
            self.apply(tag, settlement).await?;
        }
        self.orders = orders;
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
            self.stay.told();
        }
        Ok(())
    }

    async fn apply(&mut self, tag: u64, settlement: Settlement) -> Result<()> {
        match settlement {
            Settlement::Ack => {
                self.stay.book().ledger.ack(tag);
                Ok(())
            }
            Settlement::Retry { after } => {
                let kept = self.stay.book().ledger.open(tag).map(|kept| kept.clone());
                let Some(kept) = kept else { return Ok(()) };
                if kept.info.offset.is_some() {
                    // A stream is the same for all who read it: nothing is taken out or put in.
                    self.stay.book().ledger.ack(tag);
                    return Ok(());
                }
                let after = if after.is_zero() { self.own_delay(&kept) } else { after };
                if after.is_zero() {
                    self.done(tag);
                    return fail(&self.channel, tag).await;
                }
                let link = self.stay.link().clone();
                let copied = async move {
                    let copied = ladder::retry(&link, &kept, after).await;
                    if copied.is_err() {
                        // It waits here instead: else it would fail again at once, and again.
                        sleep(after.min(LONGEST_HOLD)).await;
                    }
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

    /// How long a message that fails is delayed by the queue's own rule, where the broker does not
    /// do that itself.
    fn own_delay(&self, kept: &Delivered) -> Duration {
        if self.session.version().delays_retries() {
            return Duration::ZERO;
        }
        let record = self.stay.link().record();
        let own = record.queue(self.stay.queue()).and_then(|queue| queue.retry_delay);
        own.map_or(Duration::ZERO, |delay| delay.after(kept.info.failures.saturating_add(1)))
    }

    /// A copy for later is stored, so the original is done with; or it is not, and then the
    /// message comes again sooner rather than not at all.
    async fn retried(&self, tag: u64, copied: Result<()>) -> Result<()> {
        match copied {
            Ok(()) => {
                self.stay.book().ledger.ack(tag);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, queue = %self.stay.queue(), "a retry could not be delayed");
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

    /// Stops consuming; what came in the meantime is unread too.
    async fn cancel(&mut self, unread: &mut Vec<u64>) -> Result<()> {
        let was_consuming = mem::replace(&mut self.consuming, false);
        // Else the end of the channel gives everything back in its order.
        if was_consuming && !self.keeps_order {
            let tag = self.deliveries.tag();
            let cancel = self.channel.basic_cancel(tag, BasicCancelOptions::default());
            write(cancel).await?;
            while let Some(Some(Ok(delivery))) = self.deliveries.next().now_or_never() {
                unread.push(delivery.delivery_tag);
                let kept = self.read(delivery);
                self.stay.book().ledger.enter(*unread.last().unwrap_or(&0), kept);
            }
        }
        Ok(())
    }

    fn read(&self, delivery: lapin::message::Delivery) -> Delivered {
        delivered::read(self.stay.queue(), self.is_stream, self.session.version(), delivery)
    }

    /// Gives back what nobody was handed.
    async fn give_back(&self, unread: Vec<u64>) -> Result<()> {
        if self.keeps_order {
            return Ok(());
        }
        for tag in unread {
            let open = self.stay.book().ledger.done(tag).is_some();
            if open {
                requeue(&self.channel, tag).await?;
            }
        }
        Ok(())
    }

    /// Takes what came from the broker, and what came with it.
    async fn take(&mut self, first: Option<lapin::Result<lapin::message::Delivery>>) -> Result<()> {
        let mut next = Some(first);
        while let Some(Some(Ok(delivery))) = next {
            let tag = delivery.delivery_tag;
            let delivered = self.read(delivery);
            self.taken.push(Taken { stay: self.stay.clone(), tag, delivered });
            next =
                if self.taken.len() < RUN { self.deliveries.next().now_or_never() } else { None };
        }
        self.hand_over();
        match next {
            None | Some(Some(Ok(_))) => Ok(()),
            Some(Some(Err(error))) => Err(translate("consume", error)),
            Some(None) if self.channel.status().connected() => self.cancelled().await,
            Some(None) => {
                Err(Error::new(ErrorKind::Unavailable, "consume", "the broker closed the channel"))
            }
        }
    }

    /// Enters what was taken and puts it before the consumer.
    fn hand_over(&mut self) {
        {
            let mut book = self.stay.book();
            for taken in &self.taken {
                book.next_offset = taken.delivered.info.offset.map(|offset| offset + 1);
                book.ledger.enter(taken.tag, taken.delivered.clone());
            }
        }
        if !self.subscriber.push(&self.stay, &mut self.taken) {
            let unread = self.taken.drain(..).map(|taken| taken.tag).collect();
            if !self.keeps_order {
                self.stay.stop(unread);
            }
        }
    }

    /// The broker ended the consumer and not its channel: mostly because the queue was deleted.
    /// RabbitMQ 4.3 and later also does it to the consumer of a quorum queue that leaves a delivery
    /// unsettled for longer than the broker's consumer timeout, by default 30 minutes.
    async fn cancelled(&mut self) -> Result<()> {
        let deadline = self.stay.link().operation_deadline();
        let admin = Admin::new(&self.session, "consume", deadline);
        let may_be_slow = self.session.version().cancels_slow_consumers() && {
            let book = self.stay.book();
            book.orders.is_empty() && book.ledger.first_open().is_some()
        };
        if may_be_slow && admin.queue_info(self.stay.queue()).await?.is_some() {
            let why = "the broker cancelled the consumer; a delivery may have been unsettled for \
                       longer than its consumer timeout";
            return Err(Error::new(ErrorKind::Unavailable, "consume", why));
        }
        self.consuming = false;
        self.keeps_order = false;
        self.subscriber.end_deleted();
        Ok(())
    }

    /// Sends the acks that wait.
    async fn flush(&mut self) -> Result<()> {
        self.flush_at = None;
        let mut acks = mem::take(&mut self.acks);
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
        self.stay.told();
        Ok(())
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
        Err(_) => Err(late("settle")),
    }
}
