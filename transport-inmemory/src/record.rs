//! What a connection declared, to be restored after it was lost.

use postrider_core::Topology;

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
        for exchange in &topology.exchanges {
            if !exchanges.iter().any(|known| known.name == exchange.name) {
                exchanges.push(exchange.clone());
            }
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

    pub(crate) const fn topology(&self) -> &Topology {
        &self.topology
    }
}
