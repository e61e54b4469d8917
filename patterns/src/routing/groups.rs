//! The groups that an aggregator holds: no I/O, no clock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{inbound::Inbound, past::Past};
use crate::handler::HandlerError;

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
    /// It is the first of its group, whose end is its business.
    First(Waiting, Term),
    /// There are others.
    Next(Waiting),
    /// It is there already, and takes the place of the one before it, which learns that it is done.
    /// The end of the group is its business now, if it was that of the other.
    Again(Waiting, Option<Term>),
    /// Its group has ended with it.
    Past,
    /// No parts are taken any more.
    Over,
    /// There is no room yet, and the oldest group was told to end; or the one before it with the
    /// same key is about to end.
    NotYet,
}

/// When a group ends that is not complete: at its time, or when the notice comes.
#[derive(Debug, Clone)]
pub(super) struct Term {
    pub(super) end: Instant,
    pub(super) full: Arc<Notify>,
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
    past: Past,
    is_over: bool,
}

#[derive(Debug)]
struct Held {
    number: u64,
    parts: Vec<Arc<Inbound>>,
    /// The place of each part that has an identity.
    known: HashMap<String, usize>,
    /// Of each part, by its place.
    waiting: Vec<oneshot::Sender<Outcome>>,
    term: Term,
    bytes: usize,
    is_ending: bool,
}

impl Held {
    /// Lets a part take the place of the one that is the same. Both are messages at the broker, or
    /// both are one: in either case what is acknowledged now is not the only one. Were it the other
    /// way round, a redelivery after a loss could be acknowledged for the sake of what is lost.
    fn replace(&mut self, place: usize, part: &Arc<Inbound>) -> Taken {
        let (sender, waiting) = oneshot::channel();
        self.parts[place] = Arc::clone(part);
        // One that was given up meanwhile has gone back.
        let _gone = std::mem::replace(&mut self.waiting[place], sender).send(Outcome::Done);
        Taken::Again(waiting, (place == 0).then(|| self.term.clone()))
    }
}

impl Groups {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, state: Mutex::default(), freed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a part, when there is room; one that comes alone is taken however large it is. Two
    /// parts with the same `identity` are one, and take the room of one. A group that it begins
    /// ends at `end`.
    pub(super) fn take(
        &self,
        key: &str,
        part: &Arc<Inbound>,
        identity: Option<&str>,
        end: Instant,
    ) -> Taken {
        let size = part.message().body.len();
        let mut state = self.state();
        let state = &mut *state;
        if state.is_over {
            return Taken::Over;
        }
        if identity.is_some_and(|id| state.past.contains(key, id)) {
            return Taken::Past;
        }
        let known = identity.and_then(|id| state.place(key, id));
        let before = known.map_or(0, |(_, bytes)| bytes);
        let others = state.bytes - before;
        let fits = others == 0 || others.saturating_add(size) <= self.bounds.bytes;
        if let Some((place, before)) = known
            && (fits || size <= before)
            && let Some(group) = state.held.get_mut(key)
        {
            state.bytes = others + size;
            group.bytes = group.bytes - before + size;
            return group.replace(place, part);
        }
        if known.is_none() && state.held.get(key).is_some_and(|group| group.is_ending) {
            return Taken::NotYet;
        }
        if known.is_some() || !fits || !state.has_place(key, self.bounds) {
            let oldest = state.by_age.first_key_value().and_then(|(_, key)| state.held.get(key));
            if let Some(oldest) = oldest {
                oldest.term.full.notify_one();
            }
            return Taken::NotYet;
        }
        let (sender, waiting) = oneshot::channel();
        state.parts += 1;
        state.bytes += size;
        let is_first = !state.held.contains_key(key);
        if is_first {
            state.begin(key, end);
        }
        let Some(group) = state.held.get_mut(key) else { return Taken::NotYet };
        group.bytes += size;
        group.parts.push(Arc::clone(part));
        group.known.extend(identity.map(|id| (id.to_owned(), group.waiting.len())));
        group.waiting.push(sender);
        if is_first { Taken::First(waiting, group.term.clone()) } else { Taken::Next(waiting) }
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
            state.past.remember(key, group.known.keys());
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

    /// Takes no more parts, since none come that could complete a group, and gives back those that
    /// it has of groups that nobody is ending.
    pub(super) fn close(self: &Arc<Self>) {
        self.state().is_over = true;
        self.give_back();
        self.freed.notify_waiters();
    }

    /// Waits until something was given back since the future was made.
    pub(super) fn freed(&self) -> impl Future<Output = ()> + Send + '_ {
        self.freed.notified()
    }
}

impl State {
    /// Where a part is held already, and its bytes.
    fn place(&self, key: &str, id: &str) -> Option<(usize, usize)> {
        let group = self.held.get(key)?;
        let place = *group.known.get(id)?;
        Some((place, group.parts[place].message().body.len()))
    }

    fn has_place(&self, key: &str, bounds: Bounds) -> bool {
        self.parts < bounds.parts
            && (self.held.contains_key(key) || self.held.len() < bounds.groups)
    }

    fn begin(&mut self, key: &str, end: Instant) {
        let group = Held {
            number: self.next,
            parts: Vec::new(),
            known: HashMap::new(),
            waiting: Vec::new(),
            term: Term { end, full: Arc::default() },
            bytes: 0,
            is_ending: false,
        };
        self.by_age.insert(self.next, key.to_owned());
        self.held.insert(key.to_owned(), group);
        self.next += 1;
    }
}

#[cfg(test)]
mod tests;
