//! Who is there, without keeping them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A list of those who are alive, in the order they came.
#[derive(Debug)]
pub struct Roster<T>(Mutex<Vec<Weak<T>>>);

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Roster<T> {
    fn members(&self) -> MutexGuard<'_, Vec<Weak<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters somebody.
    pub fn enter(&self, member: &Arc<T>) {
        let mut members = self.members();
        // Only when it would grow, so that each is looked at a bounded number of times.
        if members.len() == members.capacity() {
            members.retain(|known| known.strong_count() > 0);
        }
        members.push(Arc::downgrade(member));
    }

    /// Those who are alive.
    #[must_use]
    pub fn alive(&self) -> Vec<Arc<T>> {
        self.members().iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_who_is_gone_and_does_not_grow() {
        let roster = Roster::default();
        let stays = Arc::new(0);
        roster.enter(&stays);
        for n in 1..10_000 {
            roster.enter(&Arc::new(n));
        }
        assert_eq!(roster.alive().len(), 1);
        assert!(roster.members().capacity() < 64);
    }
}
