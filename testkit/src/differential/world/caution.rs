//! What a program must leave alone, because the two sides are known to differ there.

use std::collections::BTreeSet;

use postrider_core::{Address, Message, Overflow, Queue, QueueKind, Topology};

use super::{Reader, World};
use crate::differential::{observe::Counts, program::SHORT, run::Protocol};

impl World<'_> {
    pub(super) fn is_single_active(&self, queue: &str) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.single_active_consumer)
    }

    /// Whether a dropped consumer leaves the same on both sides: what it gives back lives, see
    /// `deaths-by-drop`, and the queue goes or does not, see `kept-by-dropped`.
    pub(super) fn may_drop(&self, reader: &Reader) -> bool {
        let holds = self.held.iter().any(|held| held.reader == reader.id);
        let goes = |queue: &Queue| queue.auto_delete || queue.expires == Some(SHORT);
        let keeps = self.protocol == Protocol::Amqp10 && holds;
        let queue = &*reader.queue;
        let spec = self.queues.get(queue);
        let stays_behind = keeps && spec.is_some_and(goes);
        !(self.is_single_active(queue) || spec.is_some_and(drops_head) || stays_behind)
    }

    /// Whether a queue would be declared that is gone, and a consumer of it has not seen that; see
    /// `declared-again`.
    pub(super) fn replaces_what_is_read(&self, topology: &Topology) -> bool {
        topology.queues.iter().any(|queue| {
            let is_read = |reader: &Reader| !reader.ended && reader.queue == *queue.name;
            !self.there.contains(&*queue.name) && self.readers.iter().any(is_read)
        })
    }

    /// Whether a delayed publish has the same verdict on both sides.
    pub(super) fn may_delay(&self, address: &Address) -> bool {
        let queue = self.queues.get(address.routing_key());
        self.there.contains(address.routing_key())
            && queue.is_some_and(|queue| queue.overflow == Overflow::DropHead)
            && !queue.is_some_and(|queue| self.forgets_deliveries(queue))
    }

    /// Whether the subject does not tell later that a message which was delayed comes again; see
    /// `delayed-on-classic`.
    fn forgets_deliveries(&self, queue: &Queue) -> bool {
        self.protocol == Protocol::Amqp10
            && !self.subject.capabilities().uncounted_release
            && queue.kind == QueueKind::Classic
    }

    /// Whether it may expire before what waits in front of it; see `overtaking-expiry` and
    /// `expiry-behind-returned`.
    pub(super) async fn overtakes(&self, address: &Address, message: &Message) -> bool {
        let name = address.routing_key();
        let Some(queue) = self.queues.get(name) else { return false };
        let is_short = message.ttl.is_some_and(|ttl| ttl <= SHORT);
        let by_priority = queue.max_priority.is_some() && message.priority.is_some();
        let behind_returned =
            !self.subject.capabilities().uncounted_release && queue.kind == QueueKind::Quorum;
        is_short && (by_priority || behind_returned && self.counts(0, name).await.0.ready() > 0)
    }

    /// Whether a delivery that is given back may push out another, or go itself; see
    /// `returned-into-full`.
    pub(super) async fn pushes_out(&self, index: usize) -> bool {
        let queue = &self.held[index].queue;
        self.protocol == Protocol::Amqp10
            && self.queues.get(queue).is_some_and(drops_head)
            && self.counts(0, queue).await.0.ready() > 0
    }

    /// Whether a delayed retry comes back as the same message in the same place on both sides.
    pub(super) async fn may_retry_later(&self, index: usize) -> bool {
        let held = &self.held[index];
        let alone = self.held.iter().filter(|other| other.queue == held.queue).count() == 1;
        let by_name = held.seen.exchange.is_empty() && held.seen.routing_key == held.queue;
        let endless = held.seen.ttl.is_none()
            && self.queues.get(&held.queue).is_some_and(|queue| {
                queue.message_ttl.is_none() && !self.forgets_deliveries(queue)
            });
        let readers = self.readers.iter().filter(|reader| reader.queue == held.queue).count();
        let is_dead = held.seen.headers.iter().any(|(name, _)| name == "x-death");
        alone
            && !is_dead
            && by_name
            && endless
            && readers < 2
            && self.counts(0, &held.queue).await.0.ready() == 0
    }

    /// Whether what a loss gives back to a queue may die there in another order; see
    /// `deaths-by-loss`.
    fn buries_out_of_order(&self, queue: &str) -> bool {
        !self.subject.capabilities().uncounted_release
            && self.queues.get(queue).is_some_and(|queue| {
                queue.kind == QueueKind::Quorum
                    && queue.max_length.is_some()
                    && queue.dead_letter.is_some()
            })
    }

    /// Whether what comes again after a loss comes in one order and as often on both sides.
    pub(super) async fn may_lose(&self, connection: usize) -> bool {
        if connection == 0 && self.lacks_mortal_things() {
            return false;
        }
        let takes_queues = connection == 0 && self.queues.values().any(is_mortal);
        let reading =
            self.readers.iter().map(|reader| (reader.connection, &reader.queue, reader.id));
        let holding = self.held.iter().map(|held| (held.connection, &held.queue, held.reader));
        let users: BTreeSet<_> = reading.chain(holding).collect();
        for (_, queue, reader) in users.iter().filter(|(known, ..)| *known == connection) {
            let is_shared = users.iter().any(|(_, other, id)| other == queue && id != reader);
            if is_shared
                || takes_queues && self.has_dead_letters(queue)
                || self.buries_out_of_order(queue)
                || self.counts(0, queue).await.0.ready() > 0
            {
                return false;
            }
        }
        true
    }

    /// Whether something may have gone that the subject would declare again.
    fn lacks_mortal_things(&self) -> bool {
        self.mortal_exchanges
            || self
                .queues
                .iter()
                .any(|(name, queue)| is_mortal(queue) && !self.there.contains(name))
    }

    fn has_dead_letters(&self, queue: &str) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.dead_letter.is_some())
    }

    /// The reference's counts as the subject tells them, as far as the two are known to differ.
    pub(super) fn as_told(&self, queue: &str, counts: Counts) -> Counts {
        let Counts::There { ready, mut consumers } = counts else { return counts };
        let is_quorum = self.queues.get(queue).is_some_and(|queue| queue.kind == QueueKind::Quorum);
        if is_quorum || self.protocol == Protocol::Amqp10 {
            if is_quorum && self.is_single_active(queue) {
                consumers = consumers.min(1);
            }
            let leaving = self.leaving.iter().filter(|(_, known)| known == queue).count();
            consumers += u32::try_from(leaving).unwrap_or(u32::MAX);
        }
        Counts::There { ready, consumers }
    }
}

/// Whether a queue drops messages when it is too long.
fn drops_head(queue: &Queue) -> bool {
    queue.overflow == Overflow::DropHead
        && (queue.max_length.is_some() || queue.max_length_bytes.is_some())
}

/// Whether a queue may go with the connection that declared it.
const fn is_mortal(queue: &Queue) -> bool {
    queue.exclusive || queue.auto_delete
}
