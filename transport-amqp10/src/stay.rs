//! One stay of a consumer at its queue: what was delivered, handed out and settled.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fe2o3_amqp::link::delivery::DeliveryInfo as Receipt;
use postrider_core::{Settlement, SettlementSink, TransportEvent};
use tokio::sync::Notify;

use crate::{
    ledger::Ledger,
    link::{Guard, Link},
    message::Delivered,
};

/// What is kept of a delivery until it is settled.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) delivered: Delivered,
    /// What the client library settles it by; `None` for what came settled.
    pub(crate) receipt: Option<Receipt>,
}

/// What was delivered and is not settled.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) ledger: Ledger<Kept>,
    /// Acks that the broker was not told.
    pub(crate) acked: usize,
    /// Settlements that the link's owner has not seen.
    pub(crate) orders: Vec<(u64, Settlement)>,
    /// Deliveries handed out whose settlement the broker was not told.
    pub(crate) handed_out: usize,
    /// Deliveries handed out and not settled by their handlers.
    held: usize,
    /// Of a stream: behind the last delivery; once it is lost, where to read on.
    pub(crate) next_offset: Option<u64>,
    /// Handlers have nothing to settle here any more.
    pub(crate) lost: bool,
    /// No more deliveries are wanted, which the link's owner has not seen.
    pub(crate) stop: bool,
    /// Deliveries that were never handed out and go back.
    pub(crate) unread: Vec<u64>,
    /// The link's owner has taken orders and is at work on them.
    pub(crate) busy: bool,
}

pub(crate) struct Stay {
    guard: Arc<Guard>,
    queue: Arc<str>,
    book: Mutex<Book>,
    /// Tells the link's owner of orders, or that it is over.
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

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        self.guard.link()
    }

    pub(crate) const fn queue(&self) -> &Arc<str> {
        &self.queue
    }

    /// Waits until there is something for the link's owner to do.
    pub(crate) async fn called(&self) {
        self.wake.notified().await;
    }

    /// Notes that the broker was told of what was settled.
    pub(crate) fn told(&self) {
        self.flushed.notify_waiters();
        self.link().note_settled();
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

    /// The connection or the link is gone: what is settled from now on is stale.
    pub(crate) fn lose(&self) {
        {
            let mut book = self.book();
            if book.lost {
                return;
            }
            let unsettled = book.ledger.first().and_then(|kept| kept.delivered.info.offset);
            let next_offset = unsettled.or(book.next_offset);
            *book = Book { lost: true, next_offset, ..Book::default() };
        }
        self.wake.notify_one();
        self.flushed.notify_waiters();
        self.link().note_settled();
    }

    /// Of a stream, after it was lost: where to read on.
    pub(crate) fn next_offset(&self) -> Option<u64> {
        self.book().next_offset
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
                let told = book.orders.is_empty() && book.acked == 0 && !book.stop && !book.busy;
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
