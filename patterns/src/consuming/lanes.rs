//! What is in hand of an ordered queue, in lanes by key.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// Items in the order they came. Of each key the first may be at work, and the rest wait for it;
/// items without a key wait for nothing.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    next: u64,
    held: BTreeMap<u64, Held<T>>,
    lanes: HashMap<Arc<str>, VecDeque<u64>>,
}

#[derive(Debug)]
struct Held<T> {
    item: T,
    key: Option<Arc<str>>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { next: 0, held: BTreeMap::new(), lanes: HashMap::new() }
    }
}

impl<T> Lanes<T> {
    /// Takes an item in. Gives its number when it may begin.
    pub(super) fn add(&mut self, key: Option<String>, item: T) -> Option<u64> {
        let number = self.next;
        self.next += 1;
        let key: Option<Arc<str>> = key.map(Into::into);
        let is_first = key.as_ref().is_none_or(|key| {
            let lane = self.lanes.entry(Arc::clone(key)).or_default();
            lane.push_back(number);
            lane.len() == 1
        });
        self.held.insert(number, Held { item, key });
        is_first.then_some(number)
    }

    pub(super) fn get(&self, number: u64) -> Option<&T> {
        self.held.get(&number).map(|held| &held.item)
    }

    pub(super) fn key(&self, number: u64) -> Option<Arc<str>> {
        self.held.get(&number).and_then(|held| held.key.clone())
    }

    /// Gives an item out that is done with, if it is still held, and the number of the one that may
    /// begin after it.
    pub(super) fn done(&mut self, number: u64) -> Option<(T, Option<u64>)> {
        let Held { item, key } = self.held.remove(&number)?;
        let Some(key) = key else { return Some((item, None)) };
        let lane = self.lanes.get_mut(&key)?;
        lane.retain(|waiting| *waiting != number);
        let next = lane.front().copied();
        if next.is_none() {
            self.lanes.remove(&key);
        }
        Some((item, next))
    }

    /// Gives everything out, the oldest first. Numbers are not used again.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.lanes.clear();
        std::mem::take(&mut self.held).into_values().map(|held| held.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_at_work_and_what_has_no_key_waits_for_nothing() {
        let mut lanes = Lanes::default();
        let key = |key: &str| Some(key.to_owned());
        assert_eq!(lanes.add(key("a"), "a1"), Some(0));
        assert_eq!(lanes.add(key("a"), "a2"), None);
        assert_eq!(lanes.add(key("b"), "b1"), Some(2));
        assert_eq!(lanes.add(None, "x"), Some(3));
        assert_eq!(lanes.add(None, "y"), Some(4));
        assert_eq!(lanes.get(1), Some(&"a2"));
        assert_eq!(lanes.done(0), Some(("a1", Some(1))));
        assert_eq!(lanes.done(0), None);
        assert_eq!(lanes.done(3), Some(("x", None)));
        assert_eq!(lanes.take_all().collect::<Vec<_>>(), ["a2", "b1", "y"]);
        assert_eq!(lanes.done(1), None);
        assert_eq!(lanes.add(key("a"), "a2 again"), Some(5));
        assert_eq!(lanes.done(5), Some(("a2 again", None)));
        assert!(lanes.lanes.is_empty() && lanes.held.is_empty());
    }
}
