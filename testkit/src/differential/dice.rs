//! What a generator of programs draws from: chance, and what both sides can do.

use postrider_core::{Capabilities, Delay, Env};

use super::run::Protocol;

/// Random choices from a seed.
pub(super) struct Dice(Env);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Env::simulated(seed))
    }

    pub(super) fn below(&self, end: usize) -> usize {
        (self.0.random() % end as u64) as usize
    }

    pub(super) fn percent(&self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(super) fn pick<T: Clone>(&self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// What both sides can do, as far as programs depend on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means {
    /// Quorum queues keep as many priorities apart.
    pub(super) priorities: bool,
    /// A release does not count toward the delivery limit.
    pub(super) uncounted_release: bool,
    pub(super) delays: bool,
    /// A consumer can keep others from its queue.
    pub(super) exclusive_consumers: bool,
    /// A queue's size in bytes is that of its bodies.
    pub(super) sizes: bool,
}

impl Means {
    pub(super) fn of(reference: &Capabilities, subject: &Capabilities, protocol: Protocol) -> Self {
        let delays = |side: &Capabilities| {
            side.delayed_publish != Delay::None && side.delayed_retry != Delay::None
        };
        Self {
            priorities: reference.priority_levels == subject.priority_levels,
            uncounted_release: reference.uncounted_release == subject.uncounted_release,
            delays: delays(reference) && delays(subject),
            exclusive_consumers: reference.exclusive_consumers && subject.exclusive_consumers,
            sizes: protocol == Protocol::Amqp091,
        }
    }
}
