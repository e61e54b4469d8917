//! What publishers know of exchanges. A publish to one that is not there would close its channel,
//! and with it leave open what became of its neighbours; so each is looked for first.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How many exchanges are remembered.
const REMEMBERED: usize = 1_024;

/// How long an exchange that was missed is not looked for again: each look costs a channel.
const MISSED_FOR: Duration = Duration::from_millis(250);

/// Which exchanges are there, as far as is known.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    known: Mutex<Known>,
    /// Held while one is looked for, so that many who miss the same ask once.
    pub(crate) asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    there: HashSet<String>,
    missing: HashMap<String, Instant>,
}

impl Exchanges {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an exchange is there; `None` when it must be asked for.
    pub(crate) fn has(&self, name: &str, now: Instant) -> Option<bool> {
        let known = self.known();
        if name.is_empty() || known.there.contains(name) {
            return Some(true);
        }
        known.missing.get(name).is_some_and(|since| now < *since + MISSED_FOR).then_some(false)
    }

    /// Notes the answer of the broker.
    pub(crate) fn note(&self, name: &str, there: bool, now: Instant) {
        let mut known = self.known();
        if known.there.len() + known.missing.len() >= REMEMBERED {
            *known = Known::default();
        }
        if there {
            known.missing.remove(name);
            known.there.insert(name.to_owned());
        } else {
            known.there.remove(name);
            known.missing.insert(name.to_owned(), now);
        }
    }

    /// Forgets everything: something was declared or removed, or an exchange turned out missing.
    pub(crate) fn forget(&self) {
        *self.known() = Known::default();
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::Env;

    use super::*;

    #[test]
    fn what_is_there_stays_known_and_what_is_missing_is_asked_for_again() {
        let (exchanges, now) = (Exchanges::default(), Env::system().now());
        assert_eq!(exchanges.has("", now), Some(true), "the default exchange");
        assert_eq!(exchanges.has("x", now), None);
        exchanges.note("x", false, now);
        assert_eq!(exchanges.has("x", now), Some(false));
        assert_eq!(exchanges.has("x", now + MISSED_FOR), None);
        exchanges.note("x", true, now);
        assert_eq!(exchanges.has("x", now + MISSED_FOR), Some(true));
        exchanges.forget();
        assert_eq!(exchanges.has("x", now), None);
        for n in 0..3 * REMEMBERED {
            exchanges.note(&n.to_string(), n % 2 == 0, now);
        }
        assert!(exchanges.known().there.len() <= REMEMBERED);
    }
}
