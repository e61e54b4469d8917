//! The messages that wait in a queue, in the order they are to be delivered.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use postrider_core::{Envelope, QueueKind};
use tokio::time::Instant;

use crate::death::Deaths;

/// A message in a queue.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) envelope: Arc<Envelope>,
    /// What it counts toward the broker's limit of memory.
    pub(crate) weight: usize,
    /// Its place in the queue, given when it first became ready.
    pub(crate) position: u64,
    pub(crate) priority: u8,
    pub(crate) expires: Option<Instant>,
    /// How often it was delivered.
    pub(crate) attempts: u32,
    /// How many of the deliveries count as failures.
    pub(crate) failures: u32,
    /// When the first of them was settled.
    pub(crate) first_failed: Option<DateTime<Utc>>,
    pub(crate) deaths: Option<Box<Deaths>>,
}

impl Entry {
    pub(crate) fn bytes(&self) -> usize {
        self.envelope.message.body.len()
    }
}

/// The messages of one priority. What came back to a classic queue goes before what was never
/// delivered, since it was delivered from the front; among itself it keeps its old order.
#[derive(Debug, Default)]
struct Lane {
    returned: BTreeMap<u64, Entry>,
    fresh: VecDeque<Entry>,
}

impl Lane {
    fn front(&self) -> Option<&Entry> {
        self.returned.first_key_value().map(|(_, entry)| entry).or_else(|| self.fresh.front())
    }

    fn pop(&mut self) -> Option<Entry> {
        if self.returned.is_empty() {
            self.fresh.pop_front()
        } else {
            self.returned.pop_first().map(|(_, entry)| entry)
        }
    }
}

/// All messages that wait, the highest priority first.
#[derive(Debug)]
pub(crate) struct Lanes {
    kind: QueueKind,
    /// What came back to a quorum queue, in the order it came back. It goes before everything else,
    /// whatever its priority.
    returned: VecDeque<Entry>,
    /// Made when a priority is first seen, the highest first.
    lanes: Vec<(u8, Lane)>,
    len: usize,
    bytes: usize,
}

impl Lanes {
    /// Nothing, in the order of a queue of this kind.
    pub(crate) const fn new(kind: QueueKind) -> Self {
        Self { kind, returned: VecDeque::new(), lanes: Vec::new(), len: 0, bytes: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    fn lane(&mut self, priority: u8) -> &mut Lane {
        let index = match self.lanes.binary_search_by(|(known, _)| priority.cmp(known)) {
            Ok(index) => index,
            Err(index) => {
                self.lanes.insert(index, (priority, Lane::default()));
                index
            }
        };
        &mut self.lanes[index].1
    }

    /// Adds a message behind all of its priority.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.len += 1;
        self.bytes += entry.bytes();
        self.lane(entry.priority).fresh.push_back(entry);
    }

    /// Gives a message back: to the place it had in a classic queue, behind what came back before it
    /// in a quorum queue.
    pub(crate) fn give_back(&mut self, entry: Entry) {
        self.len += 1;
        self.bytes += entry.bytes();
        if self.kind == QueueKind::Quorum {
            self.returned.push_back(entry);
        } else {
            self.lane(entry.priority).returned.insert(entry.position, entry);
        }
    }

    /// Takes the next message to deliver.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let entry = match self.returned.pop_front() {
            Some(entry) => entry,
            None => self.lanes.iter_mut().find_map(|(_, lane)| lane.pop())?,
        };
        self.len -= 1;
        self.bytes -= entry.bytes();
        Some(entry)
    }

    /// Where messages expire, as in RabbitMQ: in a classic queue at its front, in a quorum queue at
    /// the front of each priority and of what came back.
    fn fronts(&self) -> impl Iterator<Item = &Entry> {
        let lanes = if self.kind == QueueKind::Quorum { usize::MAX } else { 1 };
        let fresh = self.lanes.iter().filter_map(|(_, lane)| lane.front()).take(lanes);
        self.returned.front().into_iter().chain(fresh)
    }

    /// Takes a message whose time is over and that is at a front.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<Entry> {
        let over = |entry: &Entry| entry.expires.is_some_and(|expires| expires <= now);
        let position = self.fronts().find(|entry| over(entry))?.position;
        let is_it = |front: &Entry| front.position == position;
        let entry = if self.returned.front().is_some_and(is_it) {
            self.returned.pop_front()?
        } else {
            let lane = self.lanes.iter_mut().find(|(_, lane)| lane.front().is_some_and(is_it))?;
            lane.1.pop()?
        };
        self.len -= 1;
        self.bytes -= entry.bytes();
        Some(entry)
    }

    /// When the next message expires.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.fronts().filter_map(|entry| entry.expires).min()
    }

    /// Keeps the messages that `keep` says and gives how many went, and their weight.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Entry) -> bool) -> (usize, usize) {
        let entries = |lanes: &Self| -> (usize, usize, usize) {
            let all = lanes.lanes.iter();
            let all = all.flat_map(|(_, lane)| lane.returned.values().chain(&lane.fresh));
            all.chain(&lanes.returned).fold((0, 0, 0), |(count, bytes, weight), entry| {
                (count + 1, bytes + entry.bytes(), weight + entry.weight)
            })
        };
        let (before, _, weight_before) = entries(self);
        self.returned.retain(&keep);
        for (_, lane) in &mut self.lanes {
            lane.returned.retain(|_, entry| keep(entry));
            lane.fresh.retain(&keep);
        }
        let (len, bytes, weight) = entries(self);
        (self.len, self.bytes) = (len, bytes);
        (before - len, weight_before - weight)
    }
}
