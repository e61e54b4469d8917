//! The exclusive queues of a connection: the management tells everybody of them, and not whose they are.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The names of the exclusive queues that a connection declared and that may be there.
#[derive(Debug, Default)]
pub(crate) struct OwnQueues(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    names: HashMap<String, u64>,
    /// Counts declarations.
    declared: u64,
}

/// A moment, to tell what was declared before it from what was declared after.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(u64);

impl OwnQueues {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a queue was declared.
    pub(crate) fn note(&self, name: &str) {
        let mut known = self.lock();
        known.declared += 1;
        let declared = known.declared;
        known.names.insert(name.to_owned(), declared);
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.lock().names.contains_key(name)
    }

    /// The moment before a question to the broker, for [`forget`](Self::forget).
    pub(crate) fn now(&self) -> Moment {
        Moment(self.lock().declared)
    }

    /// Forgets a queue that was gone at some time after `asked`, unless it was declared again since.
    pub(crate) fn forget(&self, name: &str, asked: Moment) {
        let mut known = self.lock();
        if known.names.get(name).is_some_and(|declared| *declared <= asked.0) {
            known.names.remove(name);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().names.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_declared_again_is_not_forgotten() {
        let own = OwnQueues::default();
        own.note("q");
        let asked = own.now();
        own.note("q");
        own.forget("q", asked);
        assert!(own.contains("q"));
        own.forget("q", own.now());
        own.forget("other", own.now());
        assert!(!own.contains("q"));
        assert_eq!(own.len(), 0);
    }
}
