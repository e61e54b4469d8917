//! What becomes of a value that comes: decisions without I/O.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use postrider_core::Message;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{
    ConfigStats, Rejection, Versioned,
    wire::{self, Stamp},
};
use crate::{codec::Codec, resilience::shorten};

pub(super) type Check<T> = dyn Fn(&T) -> Result<(), String> + Send + Sync;

/// What a handle can ask for.
#[derive(Debug, Default)]
pub(super) struct Facts(Mutex<(ConfigStats, Option<Rejection>)>);

impl Facts {
    pub(super) fn lock(&self) -> MutexGuard<'_, (ConfigStats, Option<Rejection>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Applied,
    Rejected,
    /// It is the one that was looked at last.
    Known,
    Stale,
    Nonsense,
}

pub(super) struct Applying<T> {
    values: watch::Sender<Option<Arc<Versioned<T>>>>,
    checks: Vec<Arc<Check<T>>>,
    facts: Arc<Facts>,
    /// The newest that was looked at, whether it is in force or was rejected.
    seen: Option<Stamp>,
}

impl<T> fmt::Debug for Applying<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applying").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl<T: DeserializeOwned> Applying<T> {
    pub(super) fn new(
        values: watch::Sender<Option<Arc<Versioned<T>>>>,
        checks: Vec<Arc<Check<T>>>,
        facts: Arc<Facts>,
    ) -> Self {
        Self { values, checks, facts, seen: None }
    }

    /// The version in force.
    pub(super) fn version(&self) -> Option<u64> {
        self.values.borrow().as_ref().map(|value| value.version).filter(|version| *version > 0)
    }

    pub(super) const fn has_seen_one(&self) -> bool {
        self.seen.is_some()
    }

    pub(super) fn rejection(&self) -> Option<Rejection> {
        self.facts.lock().1.clone()
    }

    /// Puts a value in force, if it is newer than what was seen and sound.
    pub(super) fn consider(&mut self, message: &Message) -> Outcome {
        let outcome = self.judge(message);
        let stats = &mut self.facts.lock().0;
        match outcome {
            Outcome::Applied => stats.applied += 1,
            Outcome::Rejected => stats.rejected += 1,
            Outcome::Stale => stats.stale += 1,
            Outcome::Nonsense => stats.invalid += 1,
            Outcome::Known => {}
        }
        outcome
    }

    fn judge(&mut self, message: &Message) -> Outcome {
        let Some(stamp) = Stamp::of(message) else { return Outcome::Nonsense };
        match self.seen.as_ref().map(|seen| stamp.cmp(seen)) {
            Some(std::cmp::Ordering::Less) => return Outcome::Stale,
            Some(std::cmp::Ordering::Equal) => return Outcome::Known,
            _ => {}
        }
        let version = stamp.version;
        self.seen = Some(stamp);
        match self.sound(message) {
            Ok(value) => {
                self.facts.lock().1 = None;
                self.values.send_replace(Some(Arc::new(Versioned { version, value })));
                Outcome::Applied
            }
            Err(reason) => {
                let reason = shorten(&reason).to_owned();
                tracing::warn!(version, reason, "a configuration is rejected; the old one stays");
                self.facts.lock().1 = Some(Rejection { version, reason });
                Outcome::Rejected
            }
        }
    }

    fn sound(&self, message: &Message) -> Result<T, String> {
        let content_type = message.content_type.as_deref();
        let value: T = Codec::decode_within(content_type, &message.body, wire::VALUES)
            .map_err(|error| error.to_string())?;
        let check = || self.checks.iter().try_for_each(|check| check(&value));
        // A check must not take the service with it.
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(Ok(())) => Ok(value),
            Ok(Err(reason)) => Err(reason),
            Err(_panic) => Err("the check panicked".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers;

    fn message(version: i64, id: &'static str, body: &'static str) -> Message {
        Message::new(body)
            .with_type("config.value")
            .with_message_id(id)
            .with_content_type("application/json")
            .with_header(headers::CONFIG_VERSION, version)
    }

    fn applying() -> Applying<u32> {
        let small: Arc<Check<u32>> = Arc::new(|value| match value {
            13 => panic!("unlucky"),
            0..=100 => Ok(()),
            _ => Err(format!("{value} is over 100")),
        });
        Applying::new(watch::Sender::new(None), vec![small], Arc::default())
    }

    #[test]
    fn only_newer_values_count() {
        let mut applying = applying();
        let values = applying.values.subscribe();
        let value = || values.borrow().as_deref().map(|it| (it.version, it.value));
        assert_eq!(applying.consider(&message(2, "b", "2")), Outcome::Applied);
        assert_eq!(applying.consider(&message(1, "c", "1")), Outcome::Stale);
        assert_eq!(applying.consider(&message(2, "b", "2")), Outcome::Known);
        assert_eq!(applying.consider(&message(2, "a", "3")), Outcome::Stale);
        assert_eq!(value(), Some((2, 2)));
        assert_eq!(applying.consider(&message(2, "c", "4")), Outcome::Applied);
        assert_eq!(value(), Some((2, 4)));
    }

    #[test]
    fn what_is_rejected_leaves_the_old_value() {
        let mut applying = applying();
        let values = applying.values.subscribe();
        assert_eq!(applying.consider(&message(1, "a", "7")), Outcome::Applied);
        for (version, body, reason) in [
            (2, "101", "101 is over 100"),
            (3, "13", "the check panicked"),
            (4, "\"text\"", "the body is not what was expected as json"),
        ] {
            assert_eq!(applying.consider(&message(version, "a", body)), Outcome::Rejected);
            let rejection = applying.rejection().unwrap();
            assert_eq!(rejection.version, u64::try_from(version).unwrap());
            assert!(rejection.reason.starts_with(reason), "{}", rejection.reason);
            assert_eq!(applying.version(), Some(1));
        }
        // It is not looked at twice, and what was older than it does not come after it.
        assert_eq!(applying.consider(&message(4, "a", "\"text\"")), Outcome::Known);
        assert_eq!(applying.consider(&message(3, "a", "8")), Outcome::Stale);
        assert_eq!(applying.consider(&message(5, "a", "9")), Outcome::Applied);
        assert_eq!(applying.rejection(), None);
        assert_eq!(values.borrow().as_deref().map(|it| it.value), Some(9));
        let stats = applying.facts.lock().0;
        assert_eq!((stats.applied, stats.rejected, stats.stale), (2, 3, 1));
    }

    #[test]
    fn nonsense_is_none_of_it() {
        let mut applying = applying();
        for nonsense in [
            Message::new("1"),
            Message::new("1").with_type("config.value"),
            message(0, "a", "1"),
            message(-1, "a", "1"),
            message(i64::MAX, "a", "1"),
            message(1, "a", "1").with_header(headers::CONFIG_VERSION, "one"),
        ] {
            assert_eq!(applying.consider(&nonsense), Outcome::Nonsense, "{nonsense:?}");
        }
        assert_eq!(applying.consider(&message(1, "a", "1")), Outcome::Applied);
        assert_eq!(applying.facts.lock().0.invalid, 6);
    }
}
