//! The groups that an aggregator holds: no I/O, no clock.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};

use super::inbound::Inbound;
use crate::handler::HandlerError;

/// How many parts of ended groups are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// How much is held at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) groups: usize,
    pub(super) parts: usize,
    pub(super) bytes: usize,
}

/// What becomes of each part of a group.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// What was made of them is stored.
    Done,
    /// They go back to their queue, uncounted.
    Back,
    /// They are given up.
    Dead(HandlerError),
}

pub(super) type Waiting = oneshot::Receiver<Outcome>;

/// A group that gets no more parts. Dropped without an end, its parts learn that nobody sees to it.
#[derive(Debug)]
pub(super) struct Ending {
    groups: Arc<Groups>,
    pub(super) key: String,
    pub(super) parts: Vec<Arc<Inbound>>,
}

impl Ending {
    /// Tells every part what becomes of it. Their room is free then.
    pub(super) fn end(self, outcome: &Outcome) {
        let waiting = self.groups.forget(&self.key, matches!(outcome, Outcome::Done));
        for part in waiting {
            // One that was given up meanwhile has gone back.
            let _gone = part.send(outcome.clone());
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        drop(self.groups.forget(&self.key, false));
    }
}

/// How a part was taken.
#[derive(Debug)]
pub(super) enum Taken {
    /// It is the first of its group, whose end is its business: when its time is over or the notice
    /// comes.
    First(Waiting, Arc<Notify>),
    /// There are others.
    Next(Waiting),
    /// It is there already, and shares the fate of the first.
    Again(Waiting),
    /// Its group has ended with it.
    Past,
    /// There is no room yet, and the oldest group was told to end; or the one before it with the
    /// same key is about to end.
    NotYet,
}

#[derive(Debug)]
pub(super) struct Groups {
    bounds: Bounds,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<String, Held>,
    /// The keys of groups that still get parts, by the time at which they began.
    by_age: BTreeMap<u64, String>,
    next: u64,
    parts: usize,
    bytes: usize,
    past: HashSet<(String, String)>,
    oldest_first: VecDeque<(String, String)>,
}

#[derive(Debug)]
struct Held {
    number: u64,
    parts: Vec<Arc<Inbound>>,
    known: HashSet<String>,
    waiting: Vec<oneshot::Sender<Outcome>>,
    full: Arc<Notify>,
    bytes: usize,
    is_ending: bool,
}

impl Groups {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, state: Mutex::default(), freed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a part, when there is room; one that comes alone is taken however large it is. Two
    /// parts with the same `identity` are one.
    pub(super) fn take(&self, key: &str, part: &Arc<Inbound>, identity: Option<&str>) -> Taken {
        let size = part.message().body.len();
        let mut state = self.state();
        let state = &mut *state;
        let (sender, waiting) = oneshot::channel();
        if let Some(id) = identity {
            if state.past.contains(&(key.to_owned(), id.to_owned())) {
                return Taken::Past;
            }
            if let Some(group) = state.held.get_mut(key).filter(|group| group.known.contains(id)) {
                group.waiting.push(sender);
                return Taken::Again(waiting);
            }
        }
        if state.held.get(key).is_some_and(|group| group.is_ending) {
            return Taken::NotYet;
        }
        if !state.has_room(key, size, self.bounds) {
            let oldest = state.by_age.first_key_value().and_then(|(_, key)| state.held.get(key));
            if let Some(oldest) = oldest {
                oldest.full.notify_one();
            }
            return Taken::NotYet;
        }
        state.parts += 1;
        state.bytes += size;
        let is_first = !state.held.contains_key(key);
        if is_first {
            state.begin(key);
        }
        let Some(group) = state.held.get_mut(key) else { return Taken::NotYet };
        group.bytes += size;
        group.parts.push(Arc::clone(part));
        group.known.extend(identity.map(str::to_owned));
        group.waiting.push(sender);
        if is_first { Taken::First(waiting, Arc::clone(&group.full)) } else { Taken::Next(waiting) }
    }

    /// Gives a group to whoever ends it, when it is ready; it gets no more parts then.
    pub(super) fn close_if(
        self: &Arc<Self>,
        key: &str,
        ready: impl FnOnce(&[Arc<Inbound>]) -> bool,
    ) -> Option<Ending> {
        let mut state = self.state();
        let group = state.held.get_mut(key).filter(|group| !group.is_ending)?;
        if !ready(&group.parts) {
            return None;
        }
        group.is_ending = true;
        let (parts, number) = (group.parts.clone(), group.number);
        state.by_age.remove(&number);
        Some(Ending { groups: Arc::clone(self), key: key.to_owned(), parts })
    }

    /// Takes out a group that is ending. What was made of it is remembered, for parts that come
    /// again.
    fn forget(&self, key: &str, remember: bool) -> Vec<oneshot::Sender<Outcome>> {
        let mut state = self.state();
        let is_ending = state.held.get(key).is_some_and(|group| group.is_ending);
        let Some(group) = is_ending.then(|| state.held.remove(key)).flatten() else {
            return Vec::new();
        };
        state.parts -= group.parts.len();
        state.bytes -= group.bytes;
        if remember {
            state.remember(key, group.known);
        }
        drop(state);
        self.freed.notify_waiters();
        group.waiting
    }

    /// Gives back the parts of every group that nobody is ending.
    pub(super) fn give_back(self: &Arc<Self>) {
        let open: Vec<_> = self.state().by_age.values().cloned().collect();
        for key in open {
            if let Some(ending) = self.close_if(&key, |_parts| true) {
                ending.end(&Outcome::Back);
            }
        }
    }

    /// Waits until something was given back since the future was made.
    pub(super) fn freed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.freed.notified()
    }
}

impl State {
    fn has_room(&self, key: &str, size: usize, bounds: Bounds) -> bool {
        self.parts < bounds.parts
            && (self.parts == 0 || self.bytes.saturating_add(size) <= bounds.bytes)
            && (self.held.contains_key(key) || self.held.len() < bounds.groups)
    }

    fn begin(&mut self, key: &str) {
        let group = Held {
            number: self.next,
            parts: Vec::new(),
            known: HashSet::new(),
            waiting: Vec::new(),
            full: Arc::default(),
            bytes: 0,
            is_ending: false,
        };
        self.by_age.insert(self.next, key.to_owned());
        self.held.insert(key.to_owned(), group);
        self.next += 1;
    }

    fn remember(&mut self, key: &str, known: HashSet<String>) {
        for id in known {
            let entry = (key.to_owned(), id);
            if self.past.insert(entry.clone()) {
                self.oldest_first.push_back(entry);
            }
        }
        while self.oldest_first.len() > MAX_REMEMBERED {
            if let Some(oldest) = self.oldest_first.pop_front() {
                self.past.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::{Address, DeliveryInfo, Envelope, Message};

    use super::*;
    use crate::codec::Limits;

    fn part(size: usize) -> Arc<Inbound> {
        let envelope = Envelope::new(Address::queue("q"), Message::new(vec![0; size]));
        let info = DeliveryInfo::first("q".into());
        Arc::new(Inbound::new(&Arc::new(envelope), &info, Limits::default()))
    }

    fn groups(groups: usize, parts: usize, bytes: usize) -> Arc<Groups> {
        Groups::new(Bounds { groups, parts, bytes })
    }

    #[test]
    fn the_oldest_group_makes_room() {
        for (groups, size) in [(groups(1, 9, 99), 1), (groups(9, 1, 99), 1), (groups(9, 9, 10), 10)]
        {
            let Taken::First(_waiting, full) = groups.take("a", &part(size), Some("1")) else {
                panic!("the first part of a group")
            };
            assert!(matches!(groups.take("b", &part(size), Some("2")), Taken::NotYet));
            let told = std::pin::pin!(full.notified());
            assert!(futures_util::FutureExt::now_or_never(told).is_some());
            groups.close_if("a", |_| true).unwrap().end(&Outcome::Back);
            assert!(matches!(groups.take("b", &part(size), Some("2")), Taken::First(..)));
        }
    }

    #[test]
    fn a_part_that_is_larger_than_all_room_is_taken_alone() {
        let groups = groups(9, 9, 10);
        assert!(matches!(groups.take("a", &part(11), None), Taken::First(..)));
        assert!(matches!(groups.take("a", &part(1), None), Taken::NotYet));
    }

    #[test]
    fn parts_that_come_again_share_the_end_and_then_are_past() {
        let groups = groups(9, 9, 99);
        let Taken::First(mut first, _) = groups.take("a", &part(1), Some("1")) else { panic!() };
        let Taken::Again(mut again) = groups.take("a", &part(1), Some("1")) else { panic!() };
        let ending = groups.close_if("a", |parts| parts.len() == 1).unwrap();
        assert!(groups.close_if("a", |_| true).is_none());
        let Taken::Again(mut late) = groups.take("a", &part(1), Some("1")) else { panic!() };
        assert!(matches!(groups.take("a", &part(1), Some("2")), Taken::NotYet));
        ending.end(&Outcome::Done);
        for waiting in [&mut first, &mut again, &mut late] {
            assert!(matches!(waiting.try_recv(), Ok(Outcome::Done)));
        }
        assert!(matches!(groups.take("a", &part(1), Some("1")), Taken::Past));
        assert!(matches!(groups.take("a", &part(1), Some("2")), Taken::First(..)));
    }

    #[test]
    fn what_is_given_back_is_neither_held_nor_past() {
        let groups = groups(9, 9, 99);
        let Taken::First(mut open, _) = groups.take("a", &part(1), Some("1")) else { panic!() };
        let Taken::First(mut ending, _) = groups.take("b", &part(1), Some("1")) else { panic!() };
        let held = groups.close_if("b", |_| true).unwrap();
        groups.give_back();
        assert!(matches!(open.try_recv(), Ok(Outcome::Back)));
        assert!(ending.try_recv().is_err());
        held.end(&Outcome::Done);
        assert!(matches!(groups.take("a", &part(1), Some("1")), Taken::First(..)));
    }

    #[test]
    fn an_end_that_is_given_up_frees_the_room() {
        let groups = groups(1, 1, 9);
        let Taken::First(mut waiting, _) = groups.take("a", &part(1), None) else { panic!() };
        drop(groups.close_if("a", |_| true).unwrap());
        assert!(waiting.try_recv().is_err());
        assert!(matches!(groups.take("b", &part(1), None), Taken::First(..)));
    }
}
