//! Acknowledgements without a lock.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Acknowledgements in the order of delivery, counted without the queue's lock.
///
/// Whoever holds the lock and needs to know collects them; nobody can see the queue otherwise. So
/// an acknowledgement costs one atomic step, and takes the lock only when messages wait for the
/// credit that it gives back.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// All tags below this are acknowledged. [`CLOSED`](Self::CLOSED) is added in the end.
    acked: AtomicU64,
    /// The count at which the consumer shall call at the queue, because messages wait.
    call_at: AtomicU64,
}

impl Ledger {
    const CLOSED: u64 = 1 << 63;

    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { acked: AtomicU64::new(0), call_at: AtomicU64::new(u64::MAX) })
    }

    /// Acknowledges `tag` if it is the next in order. `Some(true)` asks for a call at the queue,
    /// `None` says that the queue must settle it.
    pub(crate) fn ack(&self, tag: u64) -> Option<bool> {
        let order = Ordering::SeqCst;
        self.acked.compare_exchange(tag, tag + 1, order, order).ok()?;
        Some(tag + 1 >= self.call_at.load(order))
    }

    /// Takes no acknowledgements any more; they go to the queue.
    pub(super) fn close(&self) {
        self.acked.fetch_or(Self::CLOSED, Ordering::SeqCst);
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked.load(Ordering::SeqCst) & !Self::CLOSED
    }

    /// Counts up to `tag` what the queue has settled itself.
    pub(super) fn advance(&self, tag: u64) {
        // It fails when the ledger is closed or further on, and both are right.
        let acked = self.acked.load(Ordering::SeqCst);
        if acked < tag {
            let _ahead =
                self.acked.compare_exchange(acked, tag, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// Asks for a call at the next count `at`; `false` when it has been passed.
    pub(super) fn ask_for_call(&self, at: u64) -> bool {
        self.call_at.store(at, Ordering::SeqCst);
        self.acked() < at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_in_order_is_counted() {
        let ledger = Ledger::new();
        assert_eq!(ledger.ack(1), None);
        assert_eq!(ledger.ack(0), Some(false));
        assert_eq!(ledger.ack(0), None);
        ledger.advance(3);
        assert_eq!(ledger.ack(3), Some(false));
        assert_eq!(ledger.acked(), 4);
    }

    #[test]
    fn a_call_is_asked_for_at_the_count_and_a_closed_ledger_takes_nothing() {
        let ledger = Ledger::new();
        assert!(ledger.ask_for_call(2));
        assert_eq!(ledger.ack(0), Some(false));
        assert_eq!(ledger.ack(1), Some(true));
        assert!(!ledger.ask_for_call(2));
        ledger.close();
        assert_eq!(ledger.ack(2), None);
        assert_eq!(ledger.acked(), 2);
    }
}
