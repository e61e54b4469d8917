//! Which deliveries of a link are unsettled.

use std::collections::VecDeque;

/// The unsettled deliveries of one link, by tags that count from 1 in the order they came.
#[derive(Debug)]
pub(crate) struct Ledger<T> {
    /// The tag of the first slot.
    base: u64,
    slots: VecDeque<Option<T>>,
    open: usize,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self { base: 1, slots: VecDeque::new(), open: 0 }
    }
}

impl<T> Ledger<T> {
    /// Enters a delivery and gives its tag.
    pub(crate) fn enter(&mut self, kept: T) -> u64 {
        self.slots.push_back(Some(kept));
        self.open += 1;
        self.base + self.slots.len() as u64 - 1
    }

    /// Takes a delivery that is settled; `None` when it was before.
    pub(crate) fn take(&mut self, tag: u64) -> Option<T> {
        let kept = self.slot(tag)?.take()?;
        self.open -= 1;
        while matches!(self.slots.front(), Some(None)) {
            self.slots.pop_front();
            self.base += 1;
        }
        Some(kept)
    }

    /// What is kept of an unsettled delivery.
    pub(crate) fn get(&mut self, tag: u64) -> Option<&T> {
        self.slot(tag)?.as_ref()
    }

    fn slot(&mut self, tag: u64) -> Option<&mut Option<T>> {
        let index = usize::try_from(tag.checked_sub(self.base)?).ok()?;
        self.slots.get_mut(index)
    }

    /// The first that is unsettled.
    pub(crate) fn first(&self) -> Option<&T> {
        self.slots.front()?.as_ref()
    }

    /// How many are unsettled.
    pub(crate) const fn open(&self) -> usize {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_settled_once_and_makes_room() {
        let mut ledger = Ledger::default();
        for kept in ["a", "b", "c"] {
            ledger.enter(kept);
        }
        assert_eq!((ledger.take(2), ledger.take(2)), (Some("b"), None));
        assert_eq!((ledger.first(), ledger.open()), (Some(&"a"), 2));
        assert_eq!(ledger.take(1), Some("a"));
        assert_eq!(ledger.first(), Some(&"c"));
        assert_eq!(ledger.get(3), Some(&"c"));
        assert_eq!((ledger.take(1), ledger.take(0), ledger.take(4)), (None, None, None));
        assert_eq!(ledger.take(3), Some("c"));
        assert_eq!((ledger.enter("d"), ledger.slots.len()), (4, 1));
    }
}
