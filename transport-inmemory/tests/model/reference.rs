//! The model: the rules of a broker in their plainest form, on vectors.

use proptest::{prelude::*, sample::Index};
use proptest_state_machine::ReferenceStateMachine;

/// A queue of the test, with the rule that it is there for.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) ttl: Option<u64>,
    pub(crate) max_length: Option<usize>,
    pub(crate) reject_publish: bool,
    pub(crate) delivery_limit: Option<u32>,
    /// Declared priorities of a classic queue; the others are quorum queues.
    pub(crate) max_priority: Option<u8>,
    pub(crate) single_active: bool,
    /// The queue of its dead letters.
    pub(crate) dead: Option<usize>,
}

const PLAIN: Spec = Spec {
    name: "",
    ttl: None,
    max_length: None,
    reject_publish: false,
    delivery_limit: Some(20),
    max_priority: None,
    single_active: false,
    dead: None,
};

pub(crate) const QUEUES: [Spec; 9] = [
    Spec { name: "limited", delivery_limit: Some(2), dead: Some(6), ..PLAIN },
    Spec { name: "ttl", ttl: Some(100), dead: Some(7), ..PLAIN },
    Spec { name: "short", max_length: Some(3), dead: Some(8), ..PLAIN },
    Spec { name: "full", max_length: Some(3), reject_publish: true, ..PLAIN },
    Spec {
        name: "priority",
        max_priority: Some(3),
        max_length: Some(4),
        delivery_limit: None,
        ..PLAIN
    },
    Spec { name: "single", single_active: true, ..PLAIN },
    Spec { name: "limited.dead", ..PLAIN },
    Spec { name: "ttl.dead", ..PLAIN },
    Spec { name: "short.dead", ..PLAIN },
];

/// The queues that the fanout exchange leads to, in the order they were bound.
pub(crate) const FANOUT: [usize; 3] = [0, 1, 3];

#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    Ack,
    Retry(u64),
    Reject,
    Release,
    Abandon,
}

#[derive(Clone, Debug)]
pub(crate) enum Transition {
    /// To one queue, or to the fanout exchange.
    Publish {
        queue: Option<usize>,
        priority: Option<u8>,
        ttl: Option<u64>,
        delay: u64,
    },
    Attach {
        connection: usize,
        queue: usize,
        prefetch: u16,
    },
    Drop {
        consumer: Index,
    },
    Receive {
        consumer: Index,
    },
    Settle {
        held: Index,
        how: How,
    },
    Lose {
        connection: usize,
    },
    Advance {
        millis: u64,
    },
    Purge {
        queue: usize,
    },
}

/// What a transition shows to whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Nothing,
    Verdict { accepted: bool },
    Delivery { id: u32, attempt: u32, failures: u32 },
    NoDelivery,
    Purged(u64),
}

#[derive(Clone, Debug)]
struct Entry {
    id: u32,
    position: u64,
    /// When it came back to a quorum queue.
    returned: Option<u64>,
    priority: u8,
    ttl: Option<u64>,
    asked_priority: Option<u8>,
    expires: Option<u64>,
    attempts: u32,
    failures: u32,
}

#[derive(Clone, Debug)]
struct Unsettled {
    tag: u64,
    entry: Entry,
    handed_out: bool,
}

#[derive(Clone, Debug)]
struct Stay {
    /// The consumer of the program that it belongs to.
    consumer: usize,
    connection: usize,
    /// Tells the stays of one consumer apart.
    number: u64,
    prefetch: usize,
    cancelled: bool,
    next_tag: u64,
    unsettled: Vec<Unsettled>,
}

#[derive(Clone, Debug)]
struct Delayed {
    due: u64,
    order: u64,
    entry: Entry,
    returns: bool,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    ready: Vec<Entry>,
    delayed: Vec<Delayed>,
    stays: Vec<Stay>,
    turn: usize,
    next: u64,
    dying: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Held {
    queue: usize,
    stay: u64,
    tag: u64,
}

#[derive(Clone, Debug)]
struct Consumer {
    connection: usize,
    queue: usize,
    prefetch: u16,
    id: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    now: u64,
    queues: Vec<Queue>,
    consumers: Vec<Consumer>,
    held: Vec<Held>,
    next_message: u32,
    next_consumer: usize,
    next_stay: u64,
    pub(crate) shown: Shown,
}

impl Entry {
    fn new(id: u32, priority: Option<u8>, ttl: Option<u64>) -> Self {
        Self {
            id,
            position: 0,
            returned: None,
            priority: 0,
            ttl,
            asked_priority: priority,
            expires: None,
            attempts: 0,
            failures: 0,
        }
    }
}

impl Queue {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Gives back to its old place, or in a quorum queue behind what came back before it.
    fn give_back(&mut self, spec: &Spec, mut entry: Entry) {
        entry.returned = spec.max_priority.is_none().then(|| self.number());
        self.ready.push(entry);
    }

    /// The place of the next message to deliver: in a quorum queue what came back goes first.
    fn front(&self) -> Option<usize> {
        let order = |entry: &Entry| {
            (entry.returned.is_none(), entry.returned, u8::MAX - entry.priority, entry.position)
        };
        (0..self.ready.len()).min_by_key(|index| order(&self.ready[*index]))
    }

    fn admit(&mut self, spec: &Spec, mut entry: Entry, delay: u64, now: u64) -> bool {
        let full = spec.max_length.is_some_and(|most| self.ready.len() + 1 > most);
        if spec.reject_publish && full {
            return false;
        }
        entry.priority = match spec.max_priority {
            Some(highest) => entry.asked_priority.unwrap_or(0).min(highest),
            None => entry.asked_priority.unwrap_or(4).min(31),
        };
        if delay == 0 {
            self.enqueue(spec, entry, now);
        } else {
            let order = self.number();
            self.delayed.push(Delayed { due: now + delay, order, entry, returns: false });
        }
        true
    }

    fn enqueue(&mut self, spec: &Spec, mut entry: Entry, now: u64) {
        entry.position = self.number();
        let ttl = entry.ttl.into_iter().chain(spec.ttl).min();
        entry.expires = ttl.map(|ttl| now + ttl);
        self.ready.push(entry);
        self.dispatch(spec, now);
        self.enforce_length(spec);
        if ttl.is_some() {
            self.expire(spec, now);
        }
    }

    fn enforce_length(&mut self, spec: &Spec) {
        while !spec.reject_publish && spec.max_length.is_some_and(|most| self.ready.len() > most) {
            let Some(front) = self.front() else { return };
            let entry = self.ready.remove(front);
            self.dying.push(entry);
        }
    }

    fn next_stay(&self, spec: &Spec) -> Option<usize> {
        let free = |index: &usize| {
            let stay = &self.stays[*index];
            !stay.cancelled && stay.unsettled.len() < stay.prefetch
        };
        if spec.single_active {
            return (!self.stays.is_empty()).then_some(0).filter(free);
        }
        (self.turn..self.stays.len()).chain(0..self.turn.min(self.stays.len())).find(free)
    }

    fn dispatch(&mut self, spec: &Spec, now: u64) {
        while let (Some(front), Some(index)) = (self.front(), self.next_stay(spec)) {
            let mut entry = self.ready.remove(front);
            if entry.expires.is_some_and(|expires| expires < now) {
                self.dying.push(entry);
                continue;
            }
            entry.attempts += 1;
            let stay = &mut self.stays[index];
            stay.unsettled.push(Unsettled { tag: stay.next_tag, entry, handed_out: false });
            stay.next_tag += 1;
            self.turn = index + 1;
        }
    }

    /// Where messages expire: at the front of a classic queue, and in a quorum queue at the front of
    /// each priority and of what came back.
    fn fronts(&self, spec: &Spec) -> Vec<usize> {
        if spec.max_priority.is_some() {
            return self.front().into_iter().collect();
        }
        let all = || 0..self.ready.len();
        let of_priority = |priority| {
            let fresh = |index: &usize| {
                self.ready[*index].returned.is_none() && self.ready[*index].priority == priority
            };
            all().filter(fresh).min_by_key(|index| self.ready[*index].position)
        };
        let returned = all().filter(|index| self.ready[*index].returned.is_some());
        let returned = returned.min_by_key(|index| self.ready[*index].returned);
        returned.into_iter().chain((0..=u8::MAX).rev().filter_map(of_priority)).collect()
    }

    fn expire(&mut self, spec: &Spec, now: u64) {
        let over = |entry: &Entry| entry.expires.is_some_and(|expires| expires <= now);
        while let Some(front) =
            self.fronts(spec).into_iter().find(|index| over(&self.ready[*index]))
        {
            let entry = self.ready.remove(front);
            self.dying.push(entry);
        }
    }

    /// What came back is given out; a classic queue drops what is too much before that.
    fn redispatch(&mut self, spec: &Spec, now: u64) {
        if spec.max_priority.is_some() {
            self.enforce_length(spec);
        }
        self.dispatch(spec, now);
        self.enforce_length(spec);
    }

    fn fail(&mut self, spec: &Spec, mut entry: Entry, after: u64, now: u64) {
        entry.failures += 1;
        if spec.delivery_limit.is_some_and(|limit| entry.failures > limit) {
            self.dying.push(entry);
        } else if after == 0 {
            self.give_back(spec, entry);
        } else {
            let order = self.number();
            self.delayed.push(Delayed { due: now + after, order, entry, returns: true });
        }
    }

    fn settle(&mut self, spec: &Spec, stay: u64, tag: u64, how: How, now: u64) {
        let Some(index) = self.stays.iter().position(|known| known.number == stay) else { return };
        let unsettled = &mut self.stays[index].unsettled;
        let Some(at) = unsettled.iter().position(|known| known.tag == tag) else { return };
        let entry = unsettled.remove(at).entry;
        match how {
            How::Ack => {}
            How::Retry(after) => self.fail(spec, entry, after, now),
            How::Reject => self.dying.push(entry),
            How::Release | How::Abandon => self.give_back(spec, entry),
        }
        self.finish_stay(index);
        self.redispatch(spec, now);
    }

    fn finish_stay(&mut self, index: usize) {
        let stay = &self.stays[index];
        if stay.cancelled && stay.unsettled.is_empty() {
            self.stays.remove(index);
            if index < self.turn {
                self.turn -= 1;
            }
        }
    }

    fn next_event(&self, spec: &Spec) -> Option<u64> {
        let fronts = self.fronts(spec).into_iter().filter_map(|index| self.ready[index].expires);
        fronts.chain(self.delayed.iter().map(|delayed| delayed.due)).min()
    }

    fn tick(&mut self, spec: &Spec, now: u64) {
        self.delayed.sort_by_key(|delayed| (delayed.due, delayed.order));
        while self.delayed.first().is_some_and(|delayed| delayed.due <= now) {
            let Delayed { entry, returns, .. } = self.delayed.remove(0);
            if returns {
                self.give_back(spec, entry);
                self.redispatch(spec, now);
            } else {
                self.enqueue(spec, entry, now);
            }
        }
        self.expire(spec, now);
    }
}

impl Model {
    pub(crate) fn counts(&self, queue: usize) -> (u64, u64, u64, u32) {
        let queue = &self.queues[queue];
        let unsettled: usize = queue.stays.iter().map(|stay| stay.unsettled.len()).sum();
        let live = queue.stays.iter().filter(|stay| !stay.cancelled).count();
        (queue.ready.len() as u64, unsettled as u64, queue.delayed.len() as u64, live as u32)
    }

    /// All messages of all queues.
    pub(crate) fn messages(&self) -> u64 {
        let counts = (0..QUEUES.len()).map(|queue| self.counts(queue));
        counts.map(|(ready, unsettled, delayed, _)| ready + unsettled + delayed).sum()
    }

    pub(crate) fn consumer(&self, index: &Index) -> Option<usize> {
        (!self.consumers.is_empty()).then(|| index.index(self.consumers.len()))
    }

    pub(crate) fn held(&self, index: &Index) -> Option<usize> {
        (!self.held.is_empty()).then(|| index.index(self.held.len()))
    }

    /// Sends what died in a queue to its dead letters.
    fn bury(&mut self, queue: usize) {
        for dead in std::mem::take(&mut self.queues[queue].dying) {
            if let Some(target) = QUEUES[queue].dead {
                let mut entry = Entry::new(dead.id, dead.asked_priority, None);
                entry.failures = dead.failures;
                self.queues[target].admit(&QUEUES[target], entry, 0, self.now);
            }
        }
    }

    fn pass_time(&mut self, until: u64) {
        loop {
            let next = (0..QUEUES.len())
                .filter_map(|queue| Some((self.queues[queue].next_event(&QUEUES[queue])?, queue)))
                .min()
                .filter(|(at, _)| *at <= until);
            let Some((at, queue)) = next else { break };
            self.now = self.now.max(at);
            self.queues[queue].tick(&QUEUES[queue], self.now);
            self.bury(queue);
        }
        self.now = until;
    }

    fn attach(&mut self, consumer: &Consumer) {
        let queue = &mut self.queues[consumer.queue];
        queue.stays.push(Stay {
            consumer: consumer.id,
            connection: consumer.connection,
            number: self.next_stay,
            prefetch: usize::from(consumer.prefetch),
            cancelled: false,
            next_tag: 0,
            unsettled: Vec::new(),
        });
        self.next_stay += 1;
        queue.dispatch(&QUEUES[consumer.queue], self.now);
        self.bury(consumer.queue);
    }

    fn publish(&mut self, queue: Option<usize>, entry: &Entry, delay: u64) {
        let targets: Vec<_> = queue.map_or(FANOUT.to_vec(), |queue| vec![queue]);
        let mut accepted = true;
        for target in targets {
            accepted &= self.queues[target].admit(&QUEUES[target], entry.clone(), delay, self.now);
            self.bury(target);
        }
        self.shown = Shown::Verdict { accepted };
    }

    fn drop_consumer(&mut self, index: usize) {
        let Consumer { queue, id, .. } = self.consumers.remove(index);
        let (state, spec) = (&mut self.queues[queue], &QUEUES[queue]);
        let live = |stay: &Stay| stay.consumer == id && !stay.cancelled;
        let Some(at) = state.stays.iter().position(live) else { return };
        state.stays[at].cancelled = true;
        let unsettled = std::mem::take(&mut state.stays[at].unsettled);
        let (kept, back): (Vec<_>, Vec<_>) =
            unsettled.into_iter().partition(|unsettled| unsettled.handed_out);
        state.stays[at].unsettled = kept;
        for unsettled in back {
            state.give_back(spec, unsettled.entry);
        }
        state.finish_stay(at);
        state.redispatch(spec, self.now);
        self.bury(queue);
    }

    fn receive(&mut self, index: usize) {
        let Consumer { queue, id, .. } = self.consumers[index];
        let stays = &mut self.queues[queue].stays;
        let stay = stays.iter_mut().find(|stay| stay.consumer == id && !stay.cancelled);
        self.shown = Shown::NoDelivery;
        let Some(stay) = stay else { return };
        let number = stay.number;
        let Some(next) = stay.unsettled.iter_mut().find(|next| !next.handed_out) else { return };
        next.handed_out = true;
        let Entry { id, attempts, failures, .. } = next.entry;
        self.shown = Shown::Delivery { id, attempt: attempts, failures };
        self.held.push(Held { queue, stay: number, tag: next.tag });
    }

    fn lose(&mut self, connection: usize) {
        let mut stays: Vec<(u64, usize)> = Vec::new();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            for stay in queue.stays.iter_mut().filter(|stay| stay.connection == connection) {
                stay.cancelled = true;
                stays.push((stay.number, index));
            }
        }
        stays.sort_unstable();
        for (number, index) in stays {
            let (queue, spec) = (&mut self.queues[index], &QUEUES[index]);
            let Some(at) = queue.stays.iter().position(|stay| stay.number == number) else {
                continue;
            };
            for unsettled in std::mem::take(&mut queue.stays[at].unsettled) {
                queue.fail(spec, unsettled.entry, 0, self.now);
            }
            queue.finish_stay(at);
            queue.redispatch(spec, self.now);
            self.bury(index);
        }
        for consumer in self.consumers.clone() {
            if consumer.connection == connection {
                self.attach(&consumer);
            }
        }
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self {
            now: 0,
            queues: vec![Queue::default(); QUEUES.len()],
            consumers: Vec::new(),
            held: Vec::new(),
            next_message: 0,
            next_consumer: 0,
            next_stay: 0,
            shown: Shown::Nothing,
        })
        .boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Transition> {
        let queue = || 0..QUEUES.len();
        let how = prop_oneof![
            3 => Just(How::Ack),
            2 => prop::sample::select(vec![0, 30, 70]).prop_map(How::Retry),
            1 => Just(How::Reject),
            1 => Just(How::Release),
            1 => Just(How::Abandon),
        ];
        let priority = prop::option::of(prop::sample::select(vec![0, 1, 3, 4, 9, 40]));
        let ttl = prop::option::weighted(0.3, prop::sample::select(vec![0, 20, 50, 150]));
        let delay = prop_oneof![4 => Just(0_u64), 1 => prop::sample::select(vec![10, 40])];
        prop_oneof![
            8 => (prop::option::weighted(0.85, 0..6_usize), priority, ttl, delay).prop_map(
                |(queue, priority, ttl, delay)| Transition::Publish { queue, priority, ttl, delay }
            ),
            3 => (0..2_usize, queue(), 1..6_u16).prop_map(|(connection, queue, prefetch)| {
                Transition::Attach { connection, queue, prefetch }
            }),
            1 => any::<Index>().prop_map(|consumer| Transition::Drop { consumer }),
            8 => any::<Index>().prop_map(|consumer| Transition::Receive { consumer }),
            6 => (any::<Index>(), how).prop_map(|(held, how)| Transition::Settle { held, how }),
            1 => (0..2_usize).prop_map(|connection| Transition::Lose { connection }),
            3 => prop::sample::select(vec![5, 20, 45, 120])
                .prop_map(|millis| Transition::Advance { millis }),
            1 => queue().prop_map(|queue| Transition::Purge { queue }),
        ]
        .boxed()
    }

    fn preconditions(state: &Self, transition: &Transition) -> bool {
        match transition {
            Transition::Drop { .. } | Transition::Receive { .. } => !state.consumers.is_empty(),
            Transition::Settle { .. } => !state.held.is_empty(),
            _ => true,
        }
    }

    fn apply(mut state: Self, transition: &Transition) -> Self {
        state.shown = Shown::Nothing;
        match transition {
            Transition::Publish { queue, priority, ttl, delay } => {
                let entry = Entry::new(state.next_message, *priority, *ttl);
                state.next_message += 1;
                state.publish(*queue, &entry, *delay);
            }
            Transition::Attach { connection, queue, prefetch } => {
                let (connection, queue, prefetch) = (*connection, *queue, *prefetch);
                let consumer = Consumer { connection, queue, prefetch, id: state.next_consumer };
                state.next_consumer += 1;
                state.attach(&consumer);
                state.consumers.push(consumer);
            }
            Transition::Drop { consumer } => {
                if let Some(index) = state.consumer(consumer) {
                    state.drop_consumer(index);
                }
            }
            Transition::Receive { consumer } => {
                if let Some(index) = state.consumer(consumer) {
                    state.receive(index);
                }
            }
            Transition::Settle { held, how } => {
                if let Some(index) = state.held(held) {
                    let Held { queue, stay, tag } = state.held.remove(index);
                    let spec = &QUEUES[queue];
                    state.queues[queue].settle(spec, stay, tag, *how, state.now);
                    state.bury(queue);
                }
            }
            Transition::Lose { connection } => state.lose(*connection),
            Transition::Advance { millis } => state.pass_time(state.now + millis),
            Transition::Purge { queue } => {
                let ready = std::mem::take(&mut state.queues[*queue].ready);
                state.shown = Shown::Purged(ready.len() as u64);
            }
        }
        // What fell due by it, such as a message given back after its time was over.
        state.pass_time(state.now);
        state
    }
}
