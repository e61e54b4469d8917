//! What a connection declares, and may use.

use std::sync::Arc;

use postrider_core::{
    Action, Difference, Entity, Error, ErrorKind, Plan, QueueInfo, Result, Step, Target, Topology,
};

use crate::{connection::Connection, queue::Queue, registry::Registry, rules};

impl Connection {
    /// Finds a queue that this connection may use.
    pub(crate) fn queue(
        &self,
        registry: &Registry,
        operation: &'static str,
        name: &str,
    ) -> Result<Option<Arc<Queue>>> {
        match registry.queue(name) {
            Some(queue) if queue.owner.is_some_and(|owner| owner != self.id()) => Err(Error::new(
                ErrorKind::Locked,
                operation,
                "the queue is exclusive to another connection",
            )
            .with_context("queue", name)),
            queue => Ok(queue.cloned()),
        }
    }

    pub(crate) fn existing_queue(&self, operation: &'static str, name: &str) -> Result<Arc<Queue>> {
        self.queue(&self.broker().shared().registry(), operation, name)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, operation, "there is no such queue; declare it first")
                .with_context("queue", name)
        })
    }

    pub(crate) fn queue_info(&self, name: &str) -> Result<Option<QueueInfo>> {
        let shared = self.broker().shared();
        let queue = self.queue(&shared.registry(), "queue_info", name)?;
        Ok(queue
            .map(|queue| shared.update(&queue, |state, effects| state.info(shared.env(), effects))))
    }

    pub(crate) fn plan(&self, topology: &Topology) -> Result<Plan> {
        self.plan_for(&self.broker().shared().registry(), topology)
    }

    fn plan_for(&self, registry: &Registry, topology: &Topology) -> Result<Plan> {
        topology.check()?;
        let action = |found: bool, difference: Option<Difference>| match (found, difference) {
            (false, _) => Action::Create,
            (true, None) => Action::Keep,
            (true, Some(difference)) => Action::Conflict(difference),
        };
        let mut steps = Vec::new();
        for wanted in &topology.exchanges {
            let found = registry.exchange(&wanted.name);
            let difference = found.and_then(|found| Difference::of_exchanges(wanted, found));
            let action = action(found.is_some(), difference);
            steps.push(Step { entity: Entity::Exchange(wanted.clone()), action });
        }
        for wanted in &topology.queues {
            rules::check_queue(wanted)?;
            let found = self.queue(registry, "plan", &wanted.name)?;
            let difference =
                found.as_ref().and_then(|found| Difference::of_queues(wanted, &found.spec));
            let action = action(found.is_some(), difference);
            steps.push(Step { entity: Entity::Queue(Box::new(wanted.clone())), action });
        }
        for wanted in &topology.bindings {
            let exchange = |name: &str| {
                registry.exchange(name).is_some()
                    || topology.exchanges.iter().any(|exchange| exchange.name == name)
            };
            let has_ends = exchange(&wanted.exchange)
                && match &wanted.target {
                    Target::Exchange(name) => exchange(name),
                    Target::Queue(name) => {
                        self.queue(registry, "plan", name)?.is_some()
                            || topology.queues.iter().any(|queue| queue.name == *name)
                    }
                };
            if !has_ends {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "declare",
                    "an end of the binding does not exist; declare it too",
                )
                .with_context("binding", wanted.to_string()));
            }
            let action = action(registry.has_binding(wanted), None);
            steps.push(Step { entity: Entity::Binding(wanted.clone()), action });
        }
        Ok(Plan { steps })
    }

    /// Declares each part by itself, so that one that cannot be restored keeps no other back, and
    /// gives what could not be and why.
    pub(crate) fn restore_topology(&self, topology: &Topology) -> Vec<(String, String)> {
        let Topology { exchanges, queues, bindings } = topology.clone();
        let parts =
            exchanges
                .into_iter()
                .map(|exchange| {
                    (Entity::Exchange(exchange.clone()), Topology::new().exchange(exchange))
                })
                .chain(queues.into_iter().map(|queue| {
                    (Entity::Queue(Box::new(queue.clone())), Topology::new().queue(queue))
                }))
                .chain(bindings.into_iter().map(|binding| {
                    (Entity::Binding(binding.clone()), Topology::new().bind(binding))
                }));
        parts
            .filter_map(|(entity, part)| {
                let error = self.declare(&part).err()?;
                Some((entity.to_string(), error.to_string()))
            })
            .collect()
    }

    pub(crate) fn declare(&self, topology: &Topology) -> Result<()> {
        let shared = self.broker().shared();
        let now = self.env().now();
        let mut registry = shared.registry_mut();
        // The plan tells of whatever stands against it before anything is changed.
        let plan = self.plan_for(&registry, topology)?;
        if let Some((entity, difference)) = plan.differences().next() {
            return Err(difference.clone().into_error(entity));
        }
        for exchange in &topology.exchanges {
            if registry.exchange(&exchange.name).is_none() {
                registry.add_exchange(exchange.clone());
            }
        }
        let mut declared = Vec::new();
        for spec in &topology.queues {
            let queue = self.queue(&registry, "declare", &spec.name)?.unwrap_or_else(|| {
                let owner = spec.exclusive.then_some(self.id());
                let queue = Arc::new(Queue::new(spec.clone(), registry.next_number(), owner, now));
                registry.add_queue(queue.clone());
                queue
            });
            declared.push(queue);
        }
        for binding in &topology.bindings {
            if let Target::Queue(name) = &binding.target {
                self.queue(&registry, "declare", name)?;
            }
            registry.bind(binding.clone())?;
        }
        self.record().add(topology, &registry);
        drop(registry);
        for queue in declared {
            shared.update(&queue, |state, _| state.touch(now));
        }
        Ok(())
    }

    pub(crate) fn remove(&self, topology: &Topology) -> Result<()> {
        let shared = self.broker().shared();
        let mut queues = Vec::new();
        {
            let mut registry = shared.registry_mut();
            for queue in &topology.queues {
                queues.extend(self.queue(&registry, "remove", &queue.name)?);
            }
            for binding in &topology.bindings {
                registry.unbind(binding);
            }
            for exchange in &topology.exchanges {
                exchange.check()?;
                registry.remove_exchange(&exchange.name);
            }
        }
        for queue in queues {
            shared.delete_queue(&queue);
        }
        self.record().remove(topology);
        Ok(())
    }
}
