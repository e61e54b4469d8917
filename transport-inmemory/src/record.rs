//! What a connection declared, to be restored after it was lost.

use std::collections::HashSet;

use postrider_core::{Target, Topology};

use crate::registry::Registry;

#[derive(Debug, Default)]
pub(crate) struct Record {
    topology: Topology,
    /// The size after the last pruning: growing to twice that is when to prune again.
    pruned: usize,
}

impl Record {
    fn len(&self) -> usize {
        let Topology { exchanges, queues, bindings } = &self.topology;
        exchanges.len() + queues.len() + bindings.len()
    }

    pub(crate) fn add(&mut self, topology: &Topology, registry: &Registry) {
        let Topology { exchanges, queues, bindings } = &mut self.topology;
        let new: HashSet<_> = topology.exchanges.iter().map(|exchange| &exchange.name).collect();
        exchanges.retain(|known| !new.contains(&known.name));
        exchanges.extend(topology.exchanges.iter().cloned());
        let new: HashSet<_> = topology.queues.iter().map(|queue| &queue.name).collect();
        queues.retain(|known| !new.contains(&known.name));
        queues.extend(topology.queues.iter().cloned());
        for binding in &topology.bindings {
            if !bindings.contains(binding) {
                bindings.push(binding.clone());
            }
        }
        if self.len() > 2 * self.pruned + 64 {
            self.prune(registry);
        }
    }

    pub(crate) fn remove(&mut self, topology: &Topology) {
        let Topology { exchanges, queues, bindings } = &mut self.topology;
        exchanges.retain(|known| !topology.exchanges.iter().any(|gone| gone.name == known.name));
        queues.retain(|known| !topology.queues.iter().any(|gone| gone.name == known.name));
        bindings.retain(|known| !topology.bindings.contains(known));
    }

    /// Forgets what is not there any more, so that what others deleted does not reappear.
    pub(crate) fn prune(&mut self, registry: &Registry) {
        let Topology { exchanges, queues, bindings } = &mut self.topology;
        exchanges.retain(|known| registry.exchange(&known.name).is_some());
        queues.retain(|known| registry.queue(&known.name).is_some());
        bindings.retain(|known| registry.has_binding(known));
        self.pruned = self.len();
    }

    /// What a loss of the connection or a restart of the broker can have taken. The rest is there,
    /// or somebody deleted it, and then it stays deleted.
    pub(crate) fn mortal(&self) -> Topology {
        let Topology { exchanges, queues, bindings } = &self.topology;
        let exchanges: Vec<_> = exchanges
            .iter()
            .filter(|exchange| exchange.auto_delete || !exchange.durable)
            .cloned()
            .collect();
        let queues: Vec<_> = queues
            .iter()
            .filter(|queue| {
                let passing = queue.exclusive || queue.auto_delete || queue.expires.is_some();
                passing || !queue.durable
            })
            .cloned()
            .collect();
        let exchange = |name: &str| exchanges.iter().any(|known| known.name == name);
        let bindings = bindings
            .iter()
            .filter(|binding| {
                exchange(&binding.exchange)
                    || match &binding.target {
                        Target::Exchange(name) => exchange(name),
                        Target::Queue(name) => queues.iter().any(|known| known.name == *name),
                    }
            })
            .cloned()
            .collect();
        Topology { exchanges, queues, bindings }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postrider_core::{Binding, Exchange, Queue};

    use super::*;

    #[test]
    fn only_what_a_loss_can_take_is_restored() {
        let declared = Topology::new()
            .exchange(Exchange::topic("events"))
            .exchange(Exchange::fanout("passing").transient())
            .queue(Queue::durable("orders"))
            .queue(Queue::exclusive("replies"))
            .queue(Queue::durable("requests").with_expires(Duration::from_secs(60)))
            .bind(Binding::queue("events", "orders", "order.*"))
            .bind(Binding::queue("events", "replies", "reply.*"))
            .bind(Binding::queue("passing", "orders", ""));
        let record = Record { topology: declared, pruned: 0 };
        let mortal = record.mortal();
        assert_eq!(mortal.exchanges, [Exchange::fanout("passing").transient()]);
        let names: Vec<_> = mortal.queues.iter().map(|queue| &*queue.name).collect();
        assert_eq!(names, ["replies", "requests"]);
        assert_eq!(
            mortal.bindings,
            [
                Binding::queue("events", "replies", "reply.*"),
                Binding::queue("passing", "orders", ""),
            ]
        );
    }
}
