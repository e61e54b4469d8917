//! A consumer as its queue sees it.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use chrono::{DateTime, Utc};
use postrider_core::Envelope;

use super::{lane::Entry, ledger::Ledger};

/// What a consumer's stream takes over from its queue.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    pub(crate) first_failed: Option<DateTime<Utc>>,
}

/// One consumer: its credit, and what it has unsettled.
///
/// Messages are assigned to it as far as its prefetch goes, whether or not it asks, as a broker
/// pushes them over the wire. Tags number the assignments from 0.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) id: u64,
    pub(crate) exclusive: bool,
    /// It takes no more and goes when the last of its deliveries is settled.
    cancelled: bool,
    prefetch: usize,
    /// Assignments by tag, the first at `base`; settled ones are `None`.
    unsettled: VecDeque<Option<Entry>>,
    base: u64,
    /// The next tag that the stream will take.
    next_taken: u64,
    outstanding: usize,
    waker: Option<Waker>,
    ledger: Arc<Ledger>,
}

impl Attached {
    pub(crate) fn new(id: u64, prefetch: u16, exclusive: bool) -> Self {
        Self {
            id,
            exclusive,
            cancelled: false,
            prefetch: usize::from(prefetch),
            unsettled: VecDeque::new(),
            base: 0,
            next_taken: 0,
            outstanding: 0,
            waker: None,
            ledger: Ledger::new(),
        }
    }

    pub(crate) const fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Takes no more messages and hands every settlement to the queue.
    pub(crate) fn cancel(&mut self) {
        self.cancelled = true;
        self.ledger.close();
    }

    /// Takes out what was acknowledged since the last time.
    pub(crate) fn collect(&mut self, mut acked: impl FnMut(Entry)) {
        let until = self.ledger.acked();
        while self.base < until {
            if let Some(Some(entry)) = self.unsettled.pop_front() {
                self.outstanding -= 1;
                acked(entry);
            }
            self.base += 1;
        }
        self.next_taken = self.next_taken.max(self.base);
    }

    /// Asks to be called when a quarter of the prefetch is acknowledged. `false` when that has
    /// already happened.
    pub(crate) fn ask_for_call(&self) -> bool {
        self.ledger.ask_for_call(self.base + (self.prefetch as u64 / 4).max(1))
    }

    pub(crate) const fn has_credit(&self) -> bool {
        !self.cancelled && self.outstanding < self.prefetch
    }

    pub(crate) const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Gives it a message, and its waker if it waits for one.
    pub(crate) fn assign(&mut self, entry: Entry) -> Option<Waker> {
        self.unsettled.push_back(Some(entry));
        self.outstanding += 1;
        self.waker.take()
    }

    /// Moves up to `most` assignments to the stream, or remembers the waker when there are none.
    pub(crate) fn take(&mut self, most: usize, into: &mut VecDeque<Taken>, waker: &Waker) {
        let from = (self.next_taken - self.base) as usize;
        let taken = self.unsettled.range(from..).take(most).flatten();
        into.extend(taken.map(|entry| Taken {
            envelope: entry.envelope.clone(),
            attempt: entry.attempts,
            failures: entry.failures,
            first_failed: entry.first_failed,
        }));
        self.next_taken += into.len() as u64;
        if into.is_empty() && !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    /// Takes the message of `tag` out; `None` when it is not unsettled here.
    pub(crate) fn settle(&mut self, tag: u64) -> Option<Entry> {
        let index = usize::try_from(tag.checked_sub(self.base)?).ok()?;
        let entry = self.unsettled.get_mut(index)?.take()?;
        self.outstanding -= 1;
        while let Some(None) = self.unsettled.front() {
            self.unsettled.pop_front();
            self.base += 1;
        }
        self.ledger.advance(self.base);
        self.next_taken = self.next_taken.max(self.base);
        Some(entry)
    }

    /// Takes out all unsettled messages from `tag` on.
    pub(crate) fn take_back(&mut self, tag: u64) -> Vec<Entry> {
        let from = (tag.saturating_sub(self.base) as usize).min(self.unsettled.len());
        let entries: Vec<_> = self.unsettled.drain(from..).flatten().collect();
        self.outstanding -= entries.len();
        entries
    }

    /// The waker of a stream that waits.
    pub(crate) const fn wake(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    pub(crate) const fn is_cancelled(&self) -> bool {
        self.cancelled
    }

    /// Unsettled messages from `tag` on.
    pub(crate) fn unsettled_from(&self, tag: u64) -> usize {
        let from = (tag.saturating_sub(self.base) as usize).min(self.unsettled.len());
        self.unsettled.range(from..).flatten().count()
    }
}
