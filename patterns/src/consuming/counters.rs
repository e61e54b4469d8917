use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

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
    /// Replies of RPC servers, and results of workers, that were dropped because they reached nobody
    /// or were refused.
    pub replies_dropped: u64,
    /// Requests whose callers gave them up: not run, or run without a reply. Tasks that were called
    /// off: not run, or run without success. Of RPC servers and workers.
    pub cancelled: u64,
    /// Requests that had been handled before and got the reply that was stored. RPC servers only.
    pub replayed: u64,
    /// Tasks that were not run because one of the same unique key was. Workers only.
    pub duplicates: u64,
    /// Events that no handler takes and that were acknowledged all the same, as
    /// [`UnknownEvents::Ignore`](crate::UnknownEvents) says. Subscriptions only.
    pub ignored: u64,
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
            duplicates: self.duplicates + other.duplicates,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// How a message that was taken is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It is done with.
    Acked,
    /// It failed and is tried again.
    Retried,
    /// It is kept in the dead-letter queue.
    DeadLettered,
    /// It goes back to its queue, uncounted.
    Released,
}

impl Outcome {
    /// Its text, as in [`RunStats`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Retried => "retried",
            Self::DeadLettered => "dead_lettered",
            Self::Released => "released",
        }
    }
}

impl From<Outcome> for Count {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Acked => Self::Acked,
            Outcome::Retried => Self::Retried,
            Outcome::DeadLettered => Self::DeadLettered,
            Outcome::Released => Self::Released,
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
    Duplicates,
    Ignored,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    figures: [AtomicU64; 11],
    unfinished: Mutex<Vec<String>>,
    /// Whether messages are taken one by one for now.
    is_careful: AtomicBool,
}

impl Counters {
    pub(crate) fn add(&self, count: Count) {
        self.figures[count as usize].fetch_add(1, Ordering::Relaxed);
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
            duplicates: self.get(Count::Duplicates),
            ignored: self.get(Count::Ignored),
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

    pub(crate) fn set_careful(&self, is_careful: bool) {
        self.is_careful.store(is_careful, Ordering::Relaxed);
    }

    /// How many of `all` places may be taken now.
    pub(crate) fn places(&self, all: u64) -> u64 {
        if self.is_careful.load(Ordering::Relaxed) { all.min(1) } else { all }
    }

    /// Notes a message whose handler was given up.
    pub(crate) fn unfinished(&self, id: &str) {
        self.noted().push(id.to_owned());
    }

    pub(crate) fn take_unfinished(&self) -> Vec<String> {
        mem::take(&mut *self.noted())
    }

    fn noted(&self) -> MutexGuard<'_, Vec<String>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, count: Count) -> u64 {
        self.figures[count as usize].load(Ordering::Relaxed)
    }
}
