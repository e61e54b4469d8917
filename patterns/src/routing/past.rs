use std::collections::{HashSet, VecDeque};

use uuid::Uuid;

use crate::derived::derived;

/// How many parts of ended groups are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// The parts of ended groups, the latest ones: hashes, because keys and ids may be long.
#[derive(Debug, Default)]
pub(super) struct Past {
    known: HashSet<Uuid>,
    oldest_first: VecDeque<Uuid>,
}

impl Past {
    pub(super) fn contains(&self, key: &str, id: &str) -> bool {
        self.known.contains(&short(key, id))
    }

    pub(super) fn remember<'a>(&mut self, key: &str, ids: impl Iterator<Item = &'a String>) {
        for id in ids {
            let part = short(key, id);
            if self.known.insert(part) {
                self.oldest_first.push_back(part);
            }
        }
        while self.oldest_first.len() > MAX_REMEMBERED {
            if let Some(oldest) = self.oldest_first.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

fn short(key: &str, id: &str) -> Uuid {
    derived([key.as_bytes(), id.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_long_ids_are_kept_short() {
        let mut past = Past::default();
        let ids: Vec<_> = (0..=MAX_REMEMBERED).map(|number| number.to_string()).collect();
        past.remember("k", ids.iter());
        assert!(!past.contains("k", "0"));
        assert!(past.contains("k", "1") && past.contains("k", &MAX_REMEMBERED.to_string()));
        assert!(!past.contains("k1", ""));
        let mut past = Past::default();
        past.remember("k", [&"x".repeat(1_000_000)].into_iter());
        // Whatever is kept is shown.
        assert!(format!("{past:?}").len() < 1_000);
    }
}
