//! Which unique keys a worker is at, and which it is done with.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// How many keys that were done with are remembered, and for how long.
const MOST_KEYS: usize = 10_000;
const WINDOW: TimeDelta = TimeDelta::hours(1);

/// The unique keys of one worker.
///
/// A key that is done with stands in the way of the tasks that were submitted before that only, so
/// that the next one of the key is run; this is why it is no [`Seen`](crate::Seen).
#[derive(Debug, Default)]
pub(super) struct UniqueKeys(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The id of the task at work, by key.
    at_work: HashMap<Arc<str>, Arc<str>>,
    done: HashMap<Arc<str>, DateTime<Utc>>,
    oldest_first: VecDeque<(DateTime<Utc>, Arc<str>)>,
}

impl UniqueKeys {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the key of the task `id`; nothing for a duplicate. A task that comes again while it is
    /// at work is none.
    pub(super) fn claim(
        &self,
        key: &str,
        id: &str,
        submitted: DateTime<Utc>,
    ) -> Option<Claimed<'_>> {
        let mut known = self.known();
        let is_done = known.done.get(key).is_some_and(|done| submitted < *done);
        let holder = known.at_work.get(key);
        if is_done || holder.is_some_and(|holder| **holder != *id) {
            return None;
        }
        let (key, id): (Arc<str>, Arc<str>) = (key.into(), id.into());
        known.at_work.insert(Arc::clone(&key), Arc::clone(&id));
        Some(Claimed { keys: self, key, id })
    }
}

/// A key that is given back however its task ends.
#[derive(Debug)]
pub(super) struct Claimed<'a> {
    keys: &'a UniqueKeys,
    key: Arc<str>,
    id: Arc<str>,
}

impl Claimed<'_> {
    /// Its task is done. This is said before its submitter hears of it, who may submit the next one
    /// at once.
    pub(super) fn complete(&self, now: DateTime<Utc>) {
        // Tasks say to the millisecond when they were submitted. In doubt it is run.
        let now = now.trunc_subsecs(3);
        self.give_back();
        let mut known = self.keys.known();
        known.done.insert(Arc::clone(&self.key), now);
        known.oldest_first.push_back((now, Arc::clone(&self.key)));
        while let Some((since, key)) = known.oldest_first.front().cloned()
            && (known.oldest_first.len() > MOST_KEYS || now - since > WINDOW)
        {
            known.oldest_first.pop_front();
            // It may have been done again since.
            if known.done.get(&key) == Some(&since) {
                known.done.remove(&key);
            }
        }
    }

    /// Its task is not done after all, and comes again.
    pub(super) fn undo(&self) {
        self.keys.known().done.remove(&self.key);
    }

    fn give_back(&self) {
        let mut known = self.keys.known();
        if known.at_work.get(&self.key) == Some(&self.id) {
            known.at_work.remove(&self.key);
        }
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    #[test]
    fn one_of_a_key_is_at_work() {
        let keys = UniqueKeys::default();
        let first = keys.claim("key", "1", at(0)).unwrap();
        assert!(keys.claim("key", "2", at(1)).is_none());
        assert!(keys.claim("other", "3", at(1)).is_some());
        // It comes again after a lost connection.
        drop(keys.claim("key", "1", at(0)).unwrap());
        drop(first);
        assert!(keys.claim("key", "2", at(1)).is_some());
    }

    #[test]
    fn what_is_done_stands_in_the_way_of_what_was_queued_then() {
        let keys = UniqueKeys::default();
        keys.claim("key", "1", at(0)).unwrap().complete(at(10));
        assert!(keys.claim("key", "2", at(9)).is_none());
        assert!(keys.claim("key", "3", at(10)).is_some());
        keys.claim("key", "3", at(11)).unwrap().complete(at(20));
        assert!(keys.claim("key", "4", at(15)).is_none());
        // Forgotten after its time.
        keys.claim("other", "5", at(4_000)).unwrap().complete(at(4_000));
        assert!(keys.claim("key", "6", at(15)).is_some());
        assert_eq!(keys.known().done.len(), 1);
    }

    #[test]
    fn one_that_is_not_done_after_all_stands_in_nobodys_way() {
        let keys = UniqueKeys::default();
        let first = keys.claim("key", "1", at(0)).unwrap();
        first.complete(at(10));
        assert!(keys.claim("key", "2", at(9)).is_none());
        // The next one need not wait until the first is settled.
        assert!(keys.claim("key", "3", at(10)).is_some());
        first.undo();
        assert!(keys.claim("key", "1", at(0)).is_some());
    }

    #[test]
    fn keys_are_bounded() {
        let keys = UniqueKeys::default();
        for number in 0..MOST_KEYS + 5 {
            keys.claim(&number.to_string(), "1", at(0)).unwrap().complete(at(1));
        }
        let known = keys.known();
        assert_eq!((known.done.len(), known.oldest_first.len()), (MOST_KEYS, MOST_KEYS));
        assert!(known.at_work.is_empty());
    }
}
