//! What a service remembers, and the figures it shows.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    contract::OrderId,
    units::{Cents, Day},
};

/// What has happened in this run so far, each effect counted once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) completed: u64,
    pub(crate) refused_by_inventory: u64,
    pub(crate) refused_by_payment: u64,
    pub(crate) revenue: Cents,
    pub(crate) cds_reserved: u64,
    pub(crate) cds_shipped: u64,
    pub(crate) emails_sent: u64,
    pub(crate) email_bytes: u64,
    pub(crate) reports: u64,
    pub(crate) report_bytes: u64,
    /// The sum of all reports; they are written from events, revenue from charges.
    pub(crate) reported: Cents,
    pub(crate) best_day: Option<(Cents, Day)>,
    pub(crate) events_published: u64,
    /// The calls that orders took; one that was made again, because its reply was lost, is a
    /// duplicate to the service that was called.
    pub(crate) rpc_calls: u64,
    /// Messages that came again and changed nothing.
    pub(crate) duplicates: u64,
    /// Messages that an earlier run left at the broker.
    pub(crate) left_over: u64,
}

impl Figures {
    /// Orders that came to their end.
    pub(crate) const fn settled(&self) -> u64 {
        self.completed + self.refused_by_inventory + self.refused_by_payment
    }

    /// Whether everything happened that `orders` on `days` cause.
    pub(crate) const fn are_complete(&self, orders: u64, days: u64) -> bool {
        self.settled() == orders
            && self.emails_sent == orders
            && self.reports == days
            && self.events_due(orders) == 0
    }

    /// The events that have not been published, or whose publisher does not know that they were:
    /// who hears of them may be faster than the broker's confirm.
    pub(crate) const fn events_due(&self, placed: u64) -> u64 {
        (placed + self.settled() + self.completed).saturating_sub(self.events_published)
    }

    /// Checks what must be equal because different services counted the same.
    pub(crate) fn audit(&self) -> Result<(), String> {
        if self.cds_reserved != self.cds_shipped {
            let (reserved, shipped) = (self.cds_reserved, self.cds_shipped);
            return Err(format!("{reserved} CDs are reserved, but {shipped} were shipped"));
        }
        if self.revenue != self.reported {
            let (charged, reported) = (self.revenue, self.reported);
            return Err(format!("{charged} were charged, but the reports say {reported}"));
        }
        Ok(())
    }
}

/// The board on which the services show their figures, as a real one would to its monitoring.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<watch::Sender<Figures>>);

impl Board {
    pub(crate) fn note(&self, change: impl FnOnce(&mut Figures)) {
        self.0.send_modify(change);
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Figures> {
        self.0.subscribe()
    }
}

/// What a service knows of each order. It stands for a database table whose primary key is the
/// order id: messages are delivered at least once, and this is what makes their effects happen once.
#[derive(Debug)]
pub(crate) struct Book<T> {
    entries: Mutex<HashMap<OrderId, T>>,
    board: Board,
}

impl<T: Clone> Book<T> {
    pub(crate) fn new(board: Board) -> Self {
        Self { entries: Mutex::default(), board }
    }

    /// The entry of an order. `write` makes it when the order is new; for one that is known, the
    /// message was a duplicate and the answer is the same as the first time.
    pub(crate) fn once(&self, order: &OrderId, write: impl FnOnce() -> T) -> T {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(order) {
            self.board.note(|figures| figures.duplicates += 1);
            return entry.clone();
        }
        let entry = write();
        entries.insert(order.clone(), entry.clone());
        entry
    }

    /// Changes the entry of an order, if there is one.
    pub(crate) fn change(&self, order: &OrderId, change: impl FnOnce(&mut T)) {
        if let Some(entry) = self.entries().get_mut(order) {
            change(entry);
        }
    }

    pub(crate) fn knows(&self, order: &OrderId) -> bool {
        self.entries().contains_key(order)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<OrderId, T>> {
        // An entry is written in one step, so that a panic elsewhere leaves none half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
