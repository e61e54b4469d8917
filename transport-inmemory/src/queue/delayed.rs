//! Messages that are held back until their time.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use tokio::time::Instant;

use super::lane::Entry;

/// A message that is held back until its time.
#[derive(Debug)]
pub(crate) struct Delayed {
    pub(crate) due: Instant,
    order: u64,
    pub(crate) entry: Entry,
    /// Whether it had a place in the queue before.
    pub(crate) returns: bool,
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Delayed {}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

/// All that are held back, the next one first; of two for the same time, the one that came first.
#[derive(Debug, Default)]
pub(crate) struct HeldBack {
    heap: BinaryHeap<Reverse<Delayed>>,
    came: u64,
}

impl HeldBack {
    pub(crate) fn add(&mut self, entry: Entry, due: Instant, returns: bool) {
        self.came += 1;
        self.heap.push(Reverse(Delayed { due, order: self.came, entry, returns }));
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// When the next one is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(next)| next.due)
    }

    /// Takes the next one if it is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Delayed> {
        if self.next_due()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(over)| over)
    }

    /// Takes those out that `keep` does not want.
    pub(crate) fn drop_unless(&mut self, keep: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let (kept, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.heap).into_iter().partition(|held| keep(&held.0.entry));
        self.heap = kept.into();
        gone.into_iter().map(|Reverse(held)| held.entry).collect()
    }
}
