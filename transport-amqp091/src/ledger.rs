//! Which deliveries of a channel are settled, and which acks say so.

use std::collections::VecDeque;

/// One delivery.
#[derive(Debug)]
enum Slot<T> {
    /// Delivered and unsettled, with what is kept of it.
    Open(T),
    /// To be acknowledged.
    Acked,
    /// Settled at the broker.
    Done,
}

/// An ack to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    /// Whether it speaks for every earlier delivery too.
    pub(crate) multiple: bool,
}

/// The deliveries of one channel from the first that is not settled at the broker.
#[derive(Debug)]
pub(crate) struct Ledger<T> {
    /// The tag of the first slot.
    base: u64,
    slots: VecDeque<Slot<T>>,
    open: usize,
    acked: usize,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        // The tags of a channel begin at 1.
        Self { base: 1, slots: VecDeque::new(), open: 0, acked: 0 }
    }
}

impl<T> Ledger<T> {
    /// Enters a delivery. A channel counts its tags without gaps; one that was skipped is no
    /// delivery of ours.
    pub(crate) fn enter(&mut self, tag: u64, kept: T) {
        while self.base + (self.slots.len() as u64) < tag {
            self.slots.push_back(Slot::Done);
        }
        self.slots.push_back(Slot::Open(kept));
        self.open += 1;
    }

    fn slot(&mut self, tag: u64) -> Option<&mut Slot<T>> {
        let index = usize::try_from(tag.checked_sub(self.base)?).ok()?;
        self.slots.get_mut(index)
    }

    fn leave(&mut self, tag: u64, into: Slot<T>) -> Option<T> {
        let slot = self.slot(tag)?;
        if !matches!(slot, Slot::Open(_)) {
            return None;
        }
        let Slot::Open(kept) = std::mem::replace(slot, into) else { return None };
        self.open -= 1;
        Some(kept)
    }

    /// Marks a delivery to be acknowledged and gives what was kept; `None` when it is settled.
    pub(crate) fn ack(&mut self, tag: u64) -> Option<T> {
        let kept = self.leave(tag, Slot::Acked)?;
        self.acked += 1;
        Some(kept)
    }

    /// Marks a delivery as settled at the broker otherwise than by an ack.
    pub(crate) fn done(&mut self, tag: u64) -> Option<T> {
        self.leave(tag, Slot::Done)
    }

    /// What is kept of an unsettled delivery.
    pub(crate) fn open(&mut self, tag: u64) -> Option<&mut T> {
        match self.slot(tag)? {
            Slot::Open(kept) => Some(kept),
            _ => None,
        }
    }

    /// The first delivery that is unsettled.
    pub(crate) fn first_open(&self) -> Option<&T> {
        self.slots.iter().find_map(|slot| match slot {
            Slot::Open(kept) => Some(kept),
            _ => None,
        })
    }

    /// Deliveries whose ack was not taken yet.
    pub(crate) const fn waiting(&self) -> usize {
        self.acked
    }

    /// Whether everything is settled and taken.
    pub(crate) const fn is_settled(&self) -> bool {
        self.open == 0 && self.acked == 0
    }

    /// The acks to send now: one for the settled deliveries at the front, if any of them wants one,
    /// and one for each behind the first that is unsettled.
    pub(crate) fn take_acks(&mut self, acks: &mut Vec<Ack>) {
        if self.acked > 0 {
            let front = self.slots.iter().take_while(|slot| !matches!(slot, Slot::Open(_))).count();
            let wanting = |slot: &Slot<T>| matches!(slot, Slot::Acked);
            let count = self.slots.iter().take(front).filter(|slot| wanting(slot)).count();
            if let Some(last) = self.slots.iter().take(front).rposition(wanting) {
                acks.push(Ack { tag: self.base + last as u64, multiple: count > 1 });
            }
            for (index, slot) in self.slots.iter_mut().enumerate().skip(front) {
                if matches!(slot, Slot::Acked) {
                    *slot = Slot::Done;
                    acks.push(Ack { tag: self.base + index as u64, multiple: false });
                }
            }
            self.acked = 0;
            for slot in self.slots.iter_mut().take(front) {
                *slot = Slot::Done;
            }
        }
        while matches!(self.slots.front(), Some(Slot::Done)) {
            self.slots.pop_front();
            self.base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(deliveries: u64) -> Ledger<u64> {
        let mut ledger = Ledger::default();
        (1..=deliveries).for_each(|tag| ledger.enter(tag, tag));
        ledger
    }

    fn acks(ledger: &mut Ledger<u64>) -> Vec<(u64, bool)> {
        let mut acks = Vec::new();
        ledger.take_acks(&mut acks);
        acks.into_iter().map(|ack| (ack.tag, ack.multiple)).collect()
    }

    #[test]
    fn one_ack_speaks_for_the_settled_front_and_none_reaches_past_an_unsettled_delivery() {
        let mut ledger = ledger(10);
        for tag in [1, 2, 3, 5, 7] {
            assert_eq!(ledger.ack(tag), Some(tag));
        }
        assert_eq!(acks(&mut ledger), [(3, true), (5, false), (7, false)]);
        assert_eq!(acks(&mut ledger), []);
        assert_eq!(ledger.ack(4), Some(4));
        assert_eq!(ledger.done(6), Some(6));
        assert_eq!(acks(&mut ledger), [(4, false)]);
        for tag in [8, 9, 10] {
            ledger.ack(tag);
        }
        assert!(!ledger.is_settled());
        assert_eq!(acks(&mut ledger), [(10, true)]);
        assert!(ledger.is_settled());
    }

    #[test]
    fn what_is_settled_is_settled_once() {
        let mut ledger = ledger(2);
        assert_eq!(ledger.done(1), Some(1));
        assert_eq!((ledger.done(1), ledger.ack(1)), (None, None));
        assert_eq!((ledger.ack(3), ledger.ack(0)), (None, None));
        assert_eq!(ledger.ack(2), Some(2));
        assert_eq!(ledger.ack(2), None);
        assert_eq!(acks(&mut ledger), [(2, false)]);
        assert_eq!(ledger.done(1), None, "the past is gone");
    }

    #[test]
    fn an_ack_at_the_end_of_the_front_goes_over_what_was_settled_otherwise() {
        let mut ledger = ledger(4);
        ledger.ack(1);
        ledger.done(2);
        ledger.ack(3);
        ledger.done(4);
        assert_eq!(acks(&mut ledger), [(3, true)]);
        assert!(ledger.is_settled());
    }
}
