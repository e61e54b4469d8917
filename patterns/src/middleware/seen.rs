use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{derived::derived, handler::HandlerError};

/// What makes two messages copies of one another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SeenKey {
    /// The queue that they come from: each subscription handles its own copy.
    pub queue: String,
    /// The key.
    pub key: String,
}

impl SeenKey {
    /// A key from its parts.
    pub fn new(queue: impl Into<String>, key: impl Into<String>) -> Self {
        Self { queue: queue.into(), key: key.into() }
    }
}

/// What is to be done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenClaim {
    /// Handle it. The key is taken until it is [completed](Seen::complete) or
    /// [released](Seen::release).
    Handle,
    /// A copy of it was handled.
    Duplicate,
}

/// Remembers the keys of the messages that were handled, for
/// [`Deduplicate`](super::Deduplicate).
pub trait Seen: fmt::Debug + Send + Sync + 'static {
    /// Takes a key, or tells that it was completed. While somebody else has taken it, it waits.
    /// Cancellation safe: a key that is not given to the caller is not taken.
    ///
    /// # Errors
    ///
    /// When it cannot tell; the try has failed with that error and the handler has not run.
    fn claim<'a>(
        &'a self,
        key: &'a SeenKey,
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<SeenClaim, HandlerError>>;

    /// Notes that the message of a taken key was handled.
    ///
    /// # Errors
    ///
    /// When it cannot; the message has been handled all the same, and a copy will be again.
    fn complete<'a>(
        &'a self,
        key: &'a SeenKey,
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), HandlerError>>;

    /// Gives a key back that was taken: its message was not handled, or failed. It does nothing to
    /// a key that was completed.
    fn release(&self, key: &SeenKey);
}

/// [`Seen`] in memory: of this process alone, and gone with it. It keeps a hash of 16 bytes in
/// place of each key, so that long keys take no more room than others.
#[derive(Debug)]
pub struct InMemorySeen {
    most: usize,
    window: TimeDelta,
    state: Mutex<Keys>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Keys {
    /// A key that is not completed is taken.
    known: HashMap<Uuid, bool>,
    oldest_first: VecDeque<(DateTime<Utc>, Uuid)>,
}

/// What is kept of a key.
fn short(key: &SeenKey) -> Uuid {
    derived([key.queue.as_bytes(), key.key.as_bytes()])
}

impl Keys {
    fn forget_until(&mut self, moment: Option<DateTime<Utc>>, most: usize) {
        while let Some((completed, _)) = self.oldest_first.front() {
            if self.oldest_first.len() <= most && moment.is_none_or(|moment| *completed > moment) {
                break;
            }
            if let Some((_, key)) = self.oldest_first.pop_front() {
                self.known.remove(&key);
            }
        }
    }
}

impl Default for InMemorySeen {
    /// 100,000 keys for 10 minutes.
    fn default() -> Self {
        Self::bounded(100_000, Duration::from_secs(600))
    }
}

impl InMemorySeen {
    /// One that keeps at most so many completed keys, each for `window` after it was completed: the
    /// oldest go first. Keys at work are as many as handlers at most.
    #[must_use]
    pub fn bounded(keys: usize, window: Duration) -> Self {
        let window = TimeDelta::from_std(window).unwrap_or(TimeDelta::MAX);
        Self { most: keys, window, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, Keys> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing while somebody else has the key.
    fn try_claim(&self, key: Uuid, now: DateTime<Utc>) -> Option<SeenClaim> {
        let mut state = self.state();
        state.forget_until(now.checked_sub_signed(self.window), self.most);
        match state.known.get(&key) {
            Some(true) => Some(SeenClaim::Duplicate),
            Some(false) => None,
            None => {
                state.known.insert(key, false);
                Some(SeenClaim::Handle)
            }
        }
    }
}

impl Seen for InMemorySeen {
    fn claim<'a>(
        &'a self,
        key: &'a SeenKey,
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<SeenClaim, HandlerError>> {
        let key = short(key);
        async move {
            loop {
                // Before the look, so that no change after it is missed.
                let changed = self.changed.notified();
                if let Some(claim) = self.try_claim(key, now) {
                    return Ok(claim);
                }
                changed.await;
            }
        }
        .boxed()
    }

    fn complete<'a>(
        &'a self,
        key: &'a SeenKey,
        now: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), HandlerError>> {
        let key = short(key);
        let mut state = self.state();
        if state.known.insert(key, true) != Some(true) {
            state.oldest_first.push_back((now, key));
        }
        state.forget_until(now.checked_sub_signed(self.window), self.most);
        drop(state);
        self.changed.notify_waiters();
        async { Ok(()) }.boxed()
    }

    fn release(&self, key: &SeenKey) {
        let key = short(key);
        let mut state = self.state();
        if let Some(false) = state.known.get(&key) {
            state.known.remove(&key);
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_key_takes_no_more_room_than_a_short_one() {
        let (seen, now) = (InMemorySeen::default(), DateTime::UNIX_EPOCH);
        let long = |end: &str| SeenKey::new("q", "k".repeat(1_000_000) + end);
        for key in [long("1"), long("2"), SeenKey::new("ab", "c"), SeenKey::new("a", "bc")] {
            assert_eq!(seen.claim(&key, now).await.unwrap(), SeenClaim::Handle);
            seen.complete(&key, now).await.unwrap();
            assert_eq!(seen.claim(&key, now).await.unwrap(), SeenClaim::Duplicate);
        }
        let taken = long("3");
        assert_eq!(seen.claim(&taken, now).await.unwrap(), SeenClaim::Handle);
        // Whatever is kept is shown.
        assert!(format!("{seen:?}").len() < 10_000);
        seen.release(&taken);
        assert_eq!(seen.claim(&taken, now).await.unwrap(), SeenClaim::Handle);
    }
}
