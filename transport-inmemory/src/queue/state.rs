//! The rules of a queue, under its lock.

use std::{collections::VecDeque, sync::Arc, task::Waker, time::Duration};

use postrider_core::{
    Env, Envelope, Error, ErrorKind, HeaderValue, Overflow, QueueInfo, QueueKind, Result,
    Settlement,
};
use tokio::time::Instant;

use super::{
    Dead, Effects, Taken,
    attached::Attached,
    delayed::HeldBack,
    lane::{Entry, Lanes},
    ledger::Ledger,
    spent::Spent,
};
use crate::death::{Deaths, Reason};

/// What a message costs in memory beside its body and texts, roughly.
const ENTRY_BYTES: usize = 640;

/// Memory is reported to the broker in steps of this many bytes, so that queues on different cores
/// do not write one counter for each message.
const MEMORY_STEP: isize = 64 * 1024;

/// The priority of a message that has none, on a quorum queue; RabbitMQ's and AMQP 1.0's default.
const QUORUM_DEFAULT_PRIORITY: u8 = 4;

/// The highest priority of a quorum queue of RabbitMQ 4.3.
const QUORUM_MAX_PRIORITY: u8 = 31;

/// Whether a queue took a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Stored,
    /// It is full and refuses publishes.
    Refused,
    /// It was deleted.
    Gone,
}

/// Whether a settlement met its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Done,
    /// The delivery belongs to a consumer that is gone; the message was given back then.
    Stale,
}

#[derive(Debug)]
pub(crate) struct State {
    spec: postrider_core::Queue,
    ready: Lanes,
    delayed: HeldBack,
    /// In the order they came, which is also the order of their ids.
    consumers: Vec<Attached>,
    /// Whose turn it is among the consumers.
    turn: usize,
    next_position: u64,
    next_consumer: u64,
    had_consumer: bool,
    deleted: bool,
    /// When it last had a consumer or was declared.
    used: Instant,
    /// Whether anything here depends on time.
    timed: bool,
    /// When the broker's timer will look here next.
    scheduled: Option<Instant>,
    unreported: isize,
    spent: Spent,
}

impl State {
    pub(super) fn new(spec: postrider_core::Queue, now: Instant) -> Self {
        Self {
            timed: spec.expires.is_some(),
            ready: Lanes::new(spec.kind),
            spec,
            delayed: HeldBack::default(),
            consumers: Vec::new(),
            turn: 0,
            next_position: 0,
            next_consumer: 0,
            had_consumer: false,
            deleted: false,
            used: now,
            scheduled: None,
            unreported: 0,
            spent: Spent::default(),
        }
    }

    // Publishing

    /// Takes a message in, or holds it back for `delay`.
    pub(crate) fn admit(
        &mut self,
        envelope: Arc<Envelope>,
        delay: Duration,
        deaths: Option<Box<Deaths>>,
        env: &Env,
        effects: &mut Effects,
    ) -> Admission {
        if self.deleted {
            return Admission::Gone;
        }
        if self.spec.overflow == Overflow::RejectPublish && self.would_overflow(&envelope) {
            return Admission::Refused;
        }
        let weight = weight(&envelope);
        self.unreported += weight as isize;
        let entry = Entry {
            weight,
            priority: self.priority(&envelope),
            position: 0,
            expires: None,
            attempts: 0,
            failures: deaths.as_ref().map_or(0, |deaths| deaths.failures),
            first_failed: None,
            deaths,
            envelope,
        };
        if delay.is_zero() {
            self.enqueue(entry, env, effects);
        } else {
            self.hold_back(entry, env.now() + delay, false);
        }
        Admission::Stored
    }

    /// Gives what was acknowledged, for its memory.
    pub(crate) fn reclaim(&mut self, into: &mut Vec<Arc<Envelope>>) {
        *into = self.spent.take();
    }

    fn priority(&self, envelope: &Envelope) -> u8 {
        let asked = envelope.message.priority;
        match (self.spec.kind, self.spec.max_priority) {
            (QueueKind::Quorum, _) => {
                asked.unwrap_or(QUORUM_DEFAULT_PRIORITY).min(QUORUM_MAX_PRIORITY)
            }
            (_, Some(highest)) => asked.unwrap_or(0).min(highest),
            _ => 0,
        }
    }

    fn would_overflow(&self, envelope: &Envelope) -> bool {
        let (messages, bytes) = (self.ready.len() + 1, self.ready.bytes());
        self.exceeds(messages, bytes + envelope.message.body.len())
    }

    fn exceeds(&self, messages: usize, bytes: usize) -> bool {
        self.spec.max_length.is_some_and(|most| messages as u64 > most)
            || self.spec.max_length_bytes.is_some_and(|most| bytes as u64 > most)
    }

    /// Puts a message at the end of the queue; its time to live begins.
    fn enqueue(&mut self, mut entry: Entry, env: &Env, effects: &mut Effects) {
        entry.position = self.next_position;
        self.next_position += 1;
        let own = entry.envelope.message.ttl;
        let ttl = match (own, self.spec.message_ttl) {
            (Some(own), Some(queue)) => Some(own.min(queue)),
            (own, queue) => own.or(queue),
        };
        let now = ttl.map(|ttl| {
            let now = env.now();
            entry.expires = now.checked_add(ttl);
            self.timed = true;
            now
        });
        self.ready.push(entry);
        // A consumer that waits gets it even with no time to live at all, as in RabbitMQ.
        self.dispatch_at(now, env, effects);
        // In this order: one without time to live pushes another out before it expires.
        self.enforce_length(effects);
        if let Some(now) = now {
            self.expire(now, effects);
        }
    }

    fn enforce_length(&mut self, effects: &mut Effects) {
        while self.spec.overflow == Overflow::DropHead
            && self.exceeds(self.ready.len(), self.ready.bytes())
        {
            let Some(entry) = self.ready.pop() else {
                return;
            };
            self.bury(entry, Reason::MaxLength, effects);
        }
    }

    // Delivering

    /// Assigns what waits to consumers with credit, each in its turn.
    fn dispatch(&mut self, env: &Env, effects: &mut Effects) {
        self.dispatch_at(None, env, effects);
    }

    /// As [`dispatch`](Self::dispatch), at a moment that was read before.
    fn dispatch_at(&mut self, now: Option<Instant>, env: &Env, effects: &mut Effects) {
        while self.ready.len() > 0 {
            let Some(index) = self.next_consumer().or_else(|| self.next_after_collecting()) else {
                return;
            };
            let Some(mut entry) = self.ready.pop() else { return };
            if entry.expires.is_some_and(|expires| expires < now.unwrap_or_else(|| env.now())) {
                self.bury(entry, Reason::Expired, effects);
                continue;
            }
            entry.attempts = entry.attempts.saturating_add(1);
            effects.wakers.extend(self.consumers[index].assign(entry));
            self.turn = index + 1;
        }
    }

    /// Assigns what came back. A classic queue that is too long by it drops first, a quorum queue
    /// last.
    fn redispatch(&mut self, env: &Env, effects: &mut Effects) {
        if self.deleted {
            // An auto-delete queue goes with what its last consumer gave back.
            return;
        }
        if self.spec.kind == QueueKind::Classic {
            self.enforce_length(effects);
        }
        self.dispatch(env, effects);
        self.enforce_length(effects);
    }

    /// Frees the credit of what was acknowledged. When there is none, each consumer is asked to
    /// call as soon as there is.
    fn next_after_collecting(&mut self) -> Option<usize> {
        loop {
            for index in 0..self.consumers.len() {
                self.collect(index);
            }
            let next = self.next_consumer();
            if next.is_some() || self.consumers.iter().all(Attached::ask_for_call) {
                return next;
            }
        }
    }

    /// Takes out what a consumer has acknowledged.
    fn collect(&mut self, index: usize) {
        let Self { consumers, spent, unreported, .. } = self;
        consumers[index].collect(|entry| {
            *unreported -= entry.weight as isize;
            spent.add(entry.envelope);
        });
    }

    fn next_consumer(&self) -> Option<usize> {
        if self.spec.single_active_consumer {
            // A cancelled one stays first until it has settled everything, which keeps the order.
            return self.consumers.first().filter(|first| first.has_credit()).map(|_| 0);
        }
        let count = self.consumers.len();
        (self.turn..count)
            .chain(0..self.turn.min(count))
            .find(|index| self.consumers[*index].has_credit())
    }

    // Consuming

    /// Adds a consumer; gives its id and the ledger of its acknowledgements.
    pub(crate) fn attach(
        &mut self,
        prefetch: u16,
        exclusive: bool,
        env: &Env,
        effects: &mut Effects,
    ) -> Result<(u64, Arc<Ledger>)> {
        let locked = |message| Err(Error::new(ErrorKind::Locked, "consume", message));
        if self.deleted {
            return Err(Error::new(ErrorKind::NotFound, "consume", "the queue was just deleted"));
        }
        let live = || self.consumers.iter().filter(|consumer| !consumer.is_cancelled());
        if exclusive && self.spec.single_active_consumer {
            return locked("a queue with a single active consumer has no exclusive one");
        }
        if exclusive && live().next().is_some() {
            return locked("exclusive use was asked for, and the queue has a consumer");
        }
        if live().any(|consumer| consumer.exclusive) {
            return locked("the queue has an exclusive consumer");
        }
        let id = self.next_consumer;
        self.next_consumer += 1;
        self.had_consumer = true;
        let attached = Attached::new(id, prefetch, exclusive);
        let ledger = attached.ledger().clone();
        self.consumers.push(attached);
        self.dispatch(env, effects);
        Ok((id, ledger))
    }

    fn find(&self, consumer: u64) -> Option<usize> {
        self.consumers.binary_search_by_key(&consumer, |attached| attached.id).ok()
    }

    /// Moves assigned messages to a consumer's stream. `false` when the consumer is not here.
    pub(crate) fn take(
        &mut self,
        consumer: u64,
        most: usize,
        into: &mut VecDeque<Taken>,
        waker: &Waker,
        env: &Env,
        effects: &mut Effects,
    ) -> bool {
        match self.find(consumer) {
            Some(index) if !self.deleted => {
                self.call(consumer, env, effects);
                self.consumers[index].take(most, into, waker);
                true
            }
            _ => false,
        }
    }

    /// A consumer calls because it has acknowledged: its credit is given out anew.
    pub(crate) fn call(&mut self, consumer: u64, env: &Env, effects: &mut Effects) {
        if let Some(index) = self.find(consumer)
            && !self.deleted
        {
            self.collect(index);
            self.dispatch(env, effects);
        }
    }

    pub(crate) fn settle(
        &mut self,
        consumer: u64,
        tag: u64,
        settlement: Settlement,
        env: &Env,
        effects: &mut Effects,
    ) -> Settled {
        if self.deleted {
            return Settled::Done;
        }
        let Some(index) = self.find(consumer) else {
            return Settled::Stale;
        };
        let Some(entry) = self.consumers[index].settle(tag) else {
            return Settled::Stale;
        };
        match settlement {
            Settlement::Ack => {
                self.forget(&entry);
                self.spent.add(entry.envelope);
            }
            Settlement::Retry { after } => {
                let mut entry = entry;
                entry.first_failed.get_or_insert_with(|| env.timestamp());
                self.fail(entry, after, env, effects);
            }
            Settlement::Reject { reason } => {
                self.forget(&entry);
                effects.dead.push(Dead { entry, reason: Reason::Rejected, text: Some(reason) });
            }
            _ => self.ready.give_back(entry),
        }
        self.drop_if_done(index, env, effects);
        self.redispatch(env, effects);
        Settled::Done
    }

    /// Gives a message back as a failure, at once or later, unless it has failed too often.
    fn fail(&mut self, mut entry: Entry, after: Duration, env: &Env, effects: &mut Effects) {
        entry.failures = entry.failures.saturating_add(1);
        let own = self.spec.retry_delay.filter(|_| after.is_zero());
        let after = own.map_or(after, |delay| delay.after(entry.failures));
        if self.spec.delivery_limit.is_some_and(|limit| entry.failures > limit) {
            self.bury(entry, Reason::DeliveryLimit, effects);
        } else if after.is_zero() {
            self.ready.give_back(entry);
        } else {
            self.hold_back(entry, env.now() + after, true);
        }
    }

    /// Assigns a consumer no more messages.
    pub(crate) fn halt(&mut self, consumer: u64) {
        if let Some(index) = self.find(consumer) {
            self.consumers[index].cancel();
        }
    }

    /// Stops a consumer. What it has from tag `kept` on goes back; what it handed out before can
    /// still be settled.
    pub(crate) fn cancel(&mut self, consumer: u64, kept: u64, env: &Env, effects: &mut Effects) {
        let Some(index) = self.find(consumer) else {
            return;
        };
        self.consumers[index].cancel();
        self.collect(index);
        effects.wakers.extend(self.consumers[index].wake());
        for entry in self.consumers[index].take_back(kept) {
            self.ready.give_back(entry);
        }
        self.drop_if_done(index, env, effects);
        self.redispatch(env, effects);
    }

    /// Takes a consumer away with all that it has unsettled, which counts as failed when its
    /// connection was lost.
    pub(crate) fn detach(&mut self, consumer: u64, failed: bool, env: &Env, effects: &mut Effects) {
        let Some(index) = self.find(consumer) else {
            return;
        };
        self.consumers[index].cancel();
        self.collect(index);
        effects.wakers.extend(self.consumers[index].wake());
        for entry in self.consumers[index].take_back(0) {
            if failed {
                self.fail(entry, Duration::ZERO, env, effects);
            } else {
                self.ready.give_back(entry);
            }
        }
        self.drop_if_done(index, env, effects);
        self.redispatch(env, effects);
    }

    fn drop_if_done(&mut self, index: usize, env: &Env, effects: &mut Effects) {
        let consumer = &self.consumers[index];
        if consumer.is_cancelled() && consumer.outstanding() == 0 {
            // Its stream may have asked again since it was cancelled.
            effects.wakers.extend(self.consumers.remove(index).wake());
            if index < self.turn {
                self.turn -= 1;
            }
            self.used = env.now();
        }
        if self.spec.auto_delete
            && self.had_consumer
            && self.consumers.iter().all(Attached::is_cancelled)
        {
            self.close(effects);
        }
    }

    /// Unsettled messages of a consumer: those below tag `tag`, and those from it on.
    pub(crate) fn unsettled_of(&mut self, consumer: u64, tag: u64) -> (usize, usize) {
        self.find(consumer).map_or((0, 0), |index| {
            self.collect(index);
            let attached = &self.consumers[index];
            let later = attached.unsettled_from(tag);
            (attached.outstanding() - later, later)
        })
    }

    // Time

    fn hold_back(&mut self, entry: Entry, due: Instant, returns: bool) {
        self.timed = true;
        self.delayed.add(entry, due, returns);
    }

    /// Does what is due: delays that are over, messages that expired, the queue's own expiry.
    pub(crate) fn tick(&mut self, env: &Env, effects: &mut Effects) {
        if self.deleted {
            return;
        }
        self.scheduled = None;
        let now = env.now();
        while let Some(over) = self.delayed.pop_due(now) {
            if over.returns {
                self.ready.give_back(over.entry);
                self.redispatch(env, effects);
            } else {
                self.enqueue(over.entry, env, effects);
            }
        }
        self.expire(now, effects);
        if self.expiry().is_some_and(|expiry| expiry <= now) {
            self.close(effects);
        }
    }

    /// Lets nobody in any more; the broker will take the queue away.
    fn close(&mut self, effects: &mut Effects) {
        self.deleted = true;
        effects.delete = true;
    }

    fn expire(&mut self, now: Instant, effects: &mut Effects) {
        while let Some(entry) = self.ready.pop_expired(now) {
            self.bury(entry, Reason::Expired, effects);
        }
    }

    /// When the queue goes because nobody uses it.
    fn expiry(&self) -> Option<Instant> {
        self.spec.expires.filter(|_| self.consumers.is_empty()).map(|unused| self.used + unused)
    }

    /// Notes that somebody declared it again.
    pub(crate) fn touch(&mut self, now: Instant) {
        self.used = now;
    }

    /// To be called when a change is complete: says what the broker's timer and memory need to know.
    pub(crate) fn report(&mut self, effects: &mut Effects) {
        if self.timed && !self.deleted {
            let next = [self.ready.next_expiry(), self.delayed.next_due(), self.expiry()];
            if let Some(next) = next.into_iter().flatten().min()
                && self.scheduled.is_none_or(|scheduled| next < scheduled)
            {
                self.scheduled = Some(next);
                effects.timer = Some(next);
            }
        }
        if self.unreported.abs() >= MEMORY_STEP {
            effects.memory = std::mem::take(&mut self.unreported);
        }
    }

    // Leaving the queue

    fn forget(&mut self, entry: &Entry) {
        self.unreported -= entry.weight as isize;
    }

    fn bury(&mut self, entry: Entry, reason: Reason, effects: &mut Effects) {
        self.forget(&entry);
        effects.dead.push(Dead { entry, reason, text: None });
    }

    /// Drops what waits and says how many messages that were.
    pub(crate) fn purge(&mut self) -> u64 {
        self.drop_unless(|_| false)
    }

    /// Drops what a restart of the broker loses in a durable queue of this kind.
    pub(crate) fn restart(&mut self) {
        if self.spec.kind == QueueKind::Classic {
            self.drop_unless(|entry| entry.envelope.message.durable);
            self.drop_delayed_unless(|entry| entry.envelope.message.durable);
        }
    }

    fn drop_delayed_unless(&mut self, keep: impl Fn(&Entry) -> bool) {
        for entry in self.delayed.drop_unless(keep) {
            self.forget(&entry);
        }
    }

    fn drop_unless(&mut self, keep: impl Fn(&Entry) -> bool) -> u64 {
        let (messages, weight) = self.ready.retain(keep);
        self.unreported -= weight as isize;
        messages as u64
    }

    /// Marks it deleted and gives back its memory; consumers that wait are woken to see it.
    pub(crate) fn delete(&mut self, effects: &mut Effects) {
        self.deleted = true;
        for consumer in &mut self.consumers {
            consumer.cancel();
            effects.wakers.extend(consumer.wake());
            for entry in consumer.take_back(0) {
                self.unreported -= entry.weight as isize;
            }
        }
        self.purge();
        self.spent = Spent::default();
        self.drop_delayed_unless(|_| false);
        effects.memory = std::mem::take(&mut self.unreported);
    }

    /// The memory taken since the last report, with what was acknowledged given back.
    pub(crate) fn unreported(&mut self) -> isize {
        for index in 0..self.consumers.len() {
            self.collect(index);
        }
        self.unreported
    }

    // Looking

    pub(crate) const fn is_deleted(&self) -> bool {
        self.deleted
    }

    pub(crate) fn info(&mut self, env: &Env, effects: &mut Effects) -> QueueInfo {
        for index in 0..self.consumers.len() {
            self.collect(index);
        }
        self.dispatch(env, effects);
        let live = self.consumers.iter().filter(|consumer| !consumer.is_cancelled()).count();
        let unsettled: usize = self.consumers.iter().map(Attached::outstanding).sum();
        let mut info =
            QueueInfo::new(self.ready.len() as u64, u32::try_from(live).unwrap_or(u32::MAX));
        info.unsettled = Some(unsettled as u64);
        info.delayed = Some(self.delayed.len() as u64);
        info
    }
}

/// What a message takes in memory.
fn weight(envelope: &Envelope) -> usize {
    let message = &envelope.message;
    let headers: usize =
        message.headers.iter().map(|(name, value)| name.len() + weight_of(value)).sum();
    ENTRY_BYTES + message.body.len() + headers
}

fn weight_of(value: &HeaderValue) -> usize {
    match value {
        HeaderValue::Text(text) => text.len(),
        HeaderValue::Bytes(bytes) => bytes.len(),
        HeaderValue::List(items) => items.iter().map(weight_of).sum(),
        HeaderValue::Map(headers) => {
            headers.iter().map(|(name, value)| name.len() + weight_of(value)).sum()
        }
        _ => size_of::<HeaderValue>(),
    }
}
