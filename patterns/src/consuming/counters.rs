use std::sync::atomic::{AtomicU64, Ordering};

/// What a consume loop has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunStats {
    /// Messages done with.
    pub acked: u64,
    /// Failed tries that are tried again.
    pub retried: u64,
    /// Messages kept in the dead-letter queue.
    pub dead_lettered: u64,
    /// Messages given back to the queue, uncounted.
    pub released: u64,
    /// Requests whose deadline had passed and that were not run. RPC servers only.
    pub expired: u64,
    /// Replies that were dropped because they reached nobody or were refused. RPC servers only.
    pub replies_dropped: u64,
    /// Requests whose callers gave them up: not run, or run without a reply. RPC servers only.
    pub cancelled: u64,
    /// Requests that had been handled before and got the reply that was stored. RPC servers only.
    pub replayed: u64,
}

impl RunStats {
    /// Of two loops together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            acked: self.acked + other.acked,
            retried: self.retried + other.retried,
            dead_lettered: self.dead_lettered + other.dead_lettered,
            released: self.released + other.released,
            expired: self.expired + other.expired,
            replies_dropped: self.replies_dropped + other.replies_dropped,
            cancelled: self.cancelled + other.cancelled,
            replayed: self.replayed + other.replayed,
        }
    }
}

/// One of the figures of [`RunStats`], or how many messages were taken in hand.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Count {
    Taken,
    Acked,
    Retried,
    DeadLettered,
    Released,
    Expired,
    RepliesDropped,
    Cancelled,
    Replayed,
}

#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; 9]);

impl Counters {
    pub(crate) fn add(&self, count: Count) {
        self.0[count as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> RunStats {
        RunStats {
            acked: self.get(Count::Acked),
            retried: self.get(Count::Retried),
            dead_lettered: self.get(Count::DeadLettered),
            released: self.get(Count::Released),
            expired: self.get(Count::Expired),
            replies_dropped: self.get(Count::RepliesDropped),
            cancelled: self.get(Count::Cancelled),
            replayed: self.get(Count::Replayed),
        }
    }

    pub(crate) fn taken(&self) -> u64 {
        self.get(Count::Taken)
    }

    /// How many of the messages that were taken in hand are not settled, by those figures.
    pub(crate) fn in_hand(&self, stats: &RunStats) -> u64 {
        let settled = stats.acked + stats.retried + stats.dead_lettered + stats.released;
        self.get(Count::Taken).saturating_sub(settled)
    }

    fn get(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }
}
