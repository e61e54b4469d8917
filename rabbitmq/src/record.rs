//! What a connection declared, to be restored after it was lost.

use postrider_core::{Exchange, Queue, Target, Topology};

/// How many entities may be recorded before those that are gone are looked for.
const PRUNE_FROM: usize = 256;

/// The topology that a connection declared, without what is known to be gone.
#[derive(Debug, Default)]
pub struct Record {
    topology: Topology,
    /// The size after the last pruning: growing to twice that is when to prune again.
    pruned: usize,
}

impl Record {
    fn len(&self) -> usize {
        let Topology { exchanges, queues, bindings } = &self.topology;
        exchanges.len() + queues.len() + bindings.len()
    }

    /// Enters what was declared, in the place of what had the same name.
    pub fn add(&mut self, topology: &Topology) {
        let Topology { exchanges, queues, bindings } = &mut self.topology;
        for exchange in &topology.exchanges {
            exchanges.retain(|known| known.name != exchange.name);
            exchanges.push(exchange.clone());
        }
        for queue in &topology.queues {
            queues.retain(|known| known.name != queue.name);
            queues.push(queue.clone());
        }
        for binding in &topology.bindings {
            if !bindings.contains(binding) {
                bindings.push(binding.clone());
            }
        }
    }

    /// Whether it has grown so much that what is gone should be looked for.
    #[must_use]
    pub fn wants_pruning(&self) -> bool {
        self.len() > 2 * self.pruned + PRUNE_FROM
    }

    /// Notes that what is gone was looked for.
    pub fn note_pruned(&mut self) {
        self.pruned = self.len();
    }

    /// Takes out what was removed, with its bindings.
    pub fn remove(&mut self, topology: &Topology) {
        self.topology.bindings.retain(|known| !topology.bindings.contains(known));
        for exchange in &topology.exchanges {
            self.forget_exchange(&exchange.name);
        }
        for queue in &topology.queues {
            self.forget_queue(&queue.name);
        }
    }

    /// Forgets an exchange with its bindings.
    pub fn forget_exchange(&mut self, name: &str) {
        let Topology { exchanges, bindings, .. } = &mut self.topology;
        exchanges.retain(|known| known.name != name);
        bindings.retain(|known| {
            known.exchange != name
                && !matches!(&known.target, Target::Exchange(target) if target == name)
        });
    }

    /// Forgets a queue with its bindings.
    pub fn forget_queue(&mut self, name: &str) {
        let Topology { queues, bindings, .. } = &mut self.topology;
        queues.retain(|known| known.name != name);
        bindings.retain(|known| !matches!(&known.target, Target::Queue(target) if target == name));
    }

    /// The queue of this name, as it was declared.
    #[must_use]
    pub fn queue(&self, name: &str) -> Option<&Queue> {
        self.topology.queues.iter().find(|known| known.name == name)
    }

    /// All of it.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }
}

/// Whether a queue goes with its connection or its consumers, or some time after them, so that it is
/// made anew after a loss.
#[must_use]
pub const fn queue_goes_by_itself(queue: &Queue) -> bool {
    queue.exclusive || queue.auto_delete || queue.expires.is_some()
}

/// Whether an exchange goes by itself.
#[must_use]
pub const fn exchange_goes_by_itself(exchange: &Exchange) -> bool {
    exchange.auto_delete || !exchange.durable
}

#[cfg(test)]
mod tests {
    use postrider_core::Binding;

    use super::*;

    #[test]
    fn what_is_forgotten_takes_its_bindings_along() {
        let mut record = Record::default();
        let topology = Topology::new()
            .exchange(Exchange::topic("x"))
            .exchange(Exchange::topic("y"))
            .queue(Queue::durable("q"))
            .bind(Binding::queue("x", "q", "k"))
            .bind(Binding::exchange("x", "y", "k"));
        record.add(&topology);
        record.add(&topology);
        assert_eq!(record.topology(), &topology);
        record.forget_queue("q");
        assert_eq!(record.topology().bindings.len(), 1);
        record.forget_exchange("y");
        assert!(record.topology().bindings.is_empty());
        record.remove(&topology);
        assert_eq!(record.topology(), &Topology::new());
    }
}
