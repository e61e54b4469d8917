//! Where a subscription takes its events from, and what is declared for that.

use std::{borrow::Cow, time::Duration};

use postrider_core::{Binding, Capabilities, Error, ErrorKind, Exchange, Queue, Result, Topology};

use super::{Subscription, partitions::Partitions, subscription::Kind};
use crate::{
    consuming::{LONGEST_BLOCK, Outline},
    naming::Naming,
    resilience::{By, dead_letter_route, dead_letter_topology},
};

/// The queue of a subscription, or several.
pub(super) struct Place {
    pub(super) queue: String,
    /// Whose dead letters are its own.
    pub(super) parked_as: String,
    /// Who keeps a message until its next try.
    pub(super) by: By,
    pub(super) partitions: Option<Partitions>,
}

impl Place {
    /// That of `subscription`; `id` is for what belongs to one instance alone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a number of partitions that cannot be.
    pub(super) fn of(
        subscription: &Subscription,
        naming: &Naming,
        id: impl FnOnce() -> String,
    ) -> Result<Self> {
        let (queue, parked_as, by) = match &subscription.kind {
            Kind::Durable { service, name } => {
                let queue = naming.durable_subscription_queue(service, name);
                (queue.clone(), queue, By::Broker)
            }
            Kind::Ephemeral { name } => {
                (naming.ephemeral_subscription_queue(name, &id()), name.clone(), By::Process)
            }
        };
        let partitions = subscription.partitions.map(|n| Partitions::new(naming, &queue, n));
        Ok(Self { partitions: partitions.transpose()?, queue, parked_as, by })
    }

    /// What is declared for `subscription`.
    pub(super) fn topology(&self, subscription: &Subscription, naming: &Naming) -> Topology {
        let declared = match self.by {
            By::Broker => Queue::durable(self.queue.clone())
                .with_delivery_limit(subscription.delivery_limit)
                .with_dead_letter(dead_letter_route(naming, &self.parked_as)),
            By::Process => Queue::exclusive(self.queue.clone()).auto_delete(),
        };
        let keys = subscription.handlers.iter().map(|handler| handler.key.as_str());
        if let Some(partitions) = &self.partitions {
            // Each has dead letters of its own, which say what of its keys may go on.
            let letters = partitions.queues().iter();
            let letters = letters.map(|queue| dead_letter_topology(naming, queue));
            let queue = |name: String| {
                let mut queue = declared.clone().with_dead_letter(dead_letter_route(naming, &name));
                queue.name = Cow::Owned(name);
                queue
            };
            return letters
                .fold(Topology::new(), Topology::and)
                .and(partitions.topology(keys, queue));
        }
        let topology = dead_letter_topology(naming, &self.parked_as);
        let exchange = naming.event_exchange();
        let mut topology = topology.exchange(Exchange::topic(exchange.clone())).queue(declared);
        for key in keys {
            let binding = Binding::queue(exchange.clone(), self.queue.clone(), key.to_owned());
            if !topology.bindings.contains(&binding) {
                topology = topology.bind(binding);
            }
        }
        topology
    }

    fn queues(&self) -> Vec<String> {
        match &self.partitions {
            Some(partitions) => partitions.queues().to_vec(),
            None => vec![self.queue.clone()],
        }
    }
}

pub(super) fn outline(
    subscription: &Subscription,
    naming: &Naming,
    capabilities: &Capabilities,
) -> Result<Outline> {
    check(subscription, capabilities)?;
    let place = Place::of(subscription, naming, || Outline::ID.to_owned())?;
    let waits = subscription.retry.longest_wait();
    let held = match (&place.partitions, place.by) {
        (Some(_), _) => waits.min(LONGEST_BLOCK),
        (None, By::Process) => waits,
        (None, By::Broker) => Duration::ZERO,
    };
    let topology = place.topology(subscription, naming);
    let outline = Outline::new(topology, place.queues(), subscription.settings);
    Ok(outline.with_retry(&subscription.retry).held(held))
}

/// Refuses what makes no sense, or what the broker cannot carry out.
pub(super) fn check(subscription: &Subscription, capabilities: &Capabilities) -> Result<()> {
    check_alone(subscription)?;
    subscription.settings.check()?;
    subscription.layers.check("subscribe")?;
    match subscription.kind {
        Kind::Durable { .. } => subscription.retry.check(subscription.delivery_limit, capabilities),
        Kind::Ephemeral { .. } => subscription.retry.check_alone(),
    }
}

fn check_alone(subscription: &Subscription) -> Result<()> {
    let refuse = |message: String| {
        let error = Error::new(ErrorKind::Invalid, "subscribe", message);
        Err(error.with_context("subscription", format!("{subscription:?}")))
    };
    if subscription.handlers.is_empty() {
        return refuse("a subscription without handlers would only collect events".to_owned());
    }
    if subscription.on_gap.is_some() && matches!(subscription.kind, Kind::Durable { .. }) {
        return refuse("a durable subscription has no gaps to tell of".to_owned());
    }
    if matches!(&subscription.kind, Kind::Durable { service, .. } if service.contains('.')) {
        let why = "the name of a service has no dot: its queues could be those of another one";
        return refuse(why.to_owned());
    }
    if subscription.partitions.is_some() && matches!(subscription.kind, Kind::Ephemeral { .. }) {
        return refuse("only a durable subscription can be ordered by key".to_owned());
    }
    match subscription.handlers.iter().find(|one| !one.is_sound()) {
        Some(odd) => refuse(format!("the event type '{}' is a pattern; use on_pattern", odd.key)),
        None => Ok(()),
    }
}
