use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postrider_core::{Error, ErrorKind, Result, Transport};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Changes, Instance, Pick, Picked,
    following::Following,
    roster::{Bounds, Roster},
    wire,
};
use crate::{
    listening::{Listening, check_part},
    naming::Naming,
    telling::Telling,
};

/// Who is there, as far as this process has heard. Cloning shares it.
///
/// Dropping the last clone stops it.
#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

#[derive(Debug)]
pub(super) struct Shared {
    roster: Mutex<Roster>,
    pub(super) revision: watch::Sender<u64>,
    pub(super) state: watch::Sender<RegistryState>,
    pub(super) stats: Mutex<RegistryStats>,
}

impl Shared {
    pub(super) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, RegistryStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far what a registry says can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RegistryState {
    /// It has asked who is there, and the answers come. So it begins, for a second, and so it is
    /// again when it was out of touch.
    Asking,
    /// It hears what is said.
    Current,
    /// It hears nothing, since the connection is lost or the broker takes or gives nothing. It
    /// knows who was there, and takes nobody off.
    OutOfTouch,
    /// Its transport was closed.
    Closed,
}

/// What a registry has heard so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RegistryStats {
    /// Announcements that were believed.
    pub announcements: u64,
    /// Announcements that were older than what was known, or came from who had left.
    pub stale: u64,
    /// Words that could not be decoded, or were larger than 16 KiB.
    pub undecodable: u64,
    /// Words that make no sense, such as a lease of no time.
    pub invalid: u64,
    /// Announcements of instances or services beyond the bounds.
    pub beyond_bounds: u64,
    /// Instances that left.
    pub left: u64,
    /// Instances whose lease was over.
    pub expired: u64,
    /// How often it was out of touch.
    pub out_of_touch: u64,
}

impl Registry {
    /// A registry of all services, with the defaults of [`RegistryBuilder`].
    ///
    /// # Errors
    ///
    /// As [`RegistryBuilder::start`].
    pub async fn new(transport: &Arc<dyn Transport>) -> Result<Self> {
        Self::builder(transport).start().await
    }

    /// A registry to be set up.
    pub fn builder(transport: &Arc<dyn Transport>) -> RegistryBuilder {
        RegistryBuilder {
            transport: Arc::clone(transport),
            naming: Naming::default(),
            services: Vec::new(),
            bounds: Bounds { instances: 4_096, services: 512 },
        }
    }

    /// The live instances of a service, by their ids, in whatever health they are.
    #[must_use]
    pub fn instances(&self, service: &str) -> Vec<Arc<Instance>> {
        self.shared.roster().of(service).map(|member| Arc::clone(&member.instance)).collect()
    }

    /// The names of all services of which an instance is there, in their order.
    #[must_use]
    pub fn services(&self) -> Vec<String> {
        self.shared.roster().services()
    }

    /// Picks an instance of a service; nothing where none will do.
    #[must_use]
    pub fn pick(&self, service: &str, pick: &Pick) -> Option<Picked> {
        pick.of(service, &mut self.shared.roster())
    }

    /// What changes among all instances, beginning with those who are there.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::new(Arc::clone(&self.shared), None)
    }

    /// What changes among the instances of one service, beginning with those who are there.
    #[must_use]
    pub fn changes_of(&self, service: impl Into<String>) -> Changes {
        Changes::new(Arc::clone(&self.shared), Some(service.into()))
    }

    /// How far it can be relied on now.
    #[must_use]
    pub fn state(&self) -> RegistryState {
        *self.shared.state.borrow()
    }

    /// Whether it hears what is said: who is not there is not there.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.state() == RegistryState::Current
    }

    /// Waits until it [is current](Self::is_current), which it is about a second after its start.
    /// It waits as long as the connection is lost. Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] when the transport was closed.
    pub async fn current(&self) -> Result<()> {
        let mut state = self.shared.state.subscribe();
        let is_there =
            |state: &RegistryState| matches!(state, RegistryState::Current | RegistryState::Closed);
        match state.wait_for(is_there).await.as_deref() {
            Ok(RegistryState::Current) => Ok(()),
            _ => Err(Error::new(ErrorKind::Closed, "registry", "the transport was closed")),
        }
    }

    /// What it has heard so far.
    #[must_use]
    pub fn stats(&self) -> RegistryStats {
        *self.shared.stats()
    }
}

/// Sets up a [`Registry`].
#[derive(Debug, Clone)]
#[must_use = "call start"]
pub struct RegistryBuilder {
    transport: Arc<dyn Transport>,
    naming: Naming,
    services: Vec<String>,
    bounds: Bounds,
}

impl RegistryBuilder {
    /// Only these services: the broker sends it nothing of the others. Default: all.
    pub fn services<S: Into<String>>(mut self, services: impl IntoIterator<Item = S>) -> Self {
        self.services = services.into_iter().map(Into::into).collect();
        self
    }

    /// The names of exchanges and queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// How many instances there may be in all; announcements of more are counted and left. An
    /// announcement is 16 KiB at most. Default: 4,096.
    pub fn max_instances(mut self, instances: usize) -> Self {
        self.bounds.instances = instances;
        self
    }

    /// How many services there may be. Default: 512.
    pub fn max_services(mut self, services: usize) -> Self {
        self.bounds.services = services;
        self
    }

    /// Begins to listen and asks who is there. It does not wait for the answers;
    /// [`Registry::current`] does.
    ///
    /// Cancellation safe: when the future is dropped, a queue may stay until the connection ends.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a service's name that cannot be one or more than 100 of them, and
    /// what [`Transport::declare`], [`Transport::consumer`] and [`Transport::publisher`] fail with.
    pub async fn start(self) -> Result<Registry> {
        const MOST_SERVICES: usize = 100;
        self.services.iter().try_for_each(|service| check_part("service", service))?;
        if self.services.len() > MOST_SERVICES {
            let many = "more than 100 services are named; name none to hear of all";
            return Err(Error::new(ErrorKind::Invalid, "registry", many));
        }
        let transport = &self.transport;
        let id = transport.env().new_id().to_string();
        let queue = self.naming.discovery_queue("registry", &id);
        let most_waiting = self.bounds.instances as u64 * 4 + 1_000;
        let topology =
            wire::registry_topology(&self.naming, &id, &queue, &self.services, most_waiting);
        let listening = Listening::start(transport, topology, &queue).await?;
        let telling = Telling::start(transport).await?;
        let shared = Arc::new(Shared {
            roster: Mutex::new(Roster::new(self.bounds)),
            revision: watch::Sender::new(0),
            state: watch::Sender::new(RegistryState::Asking),
            stats: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let following = Following::new(
            Arc::clone(&shared),
            transport.env().clone(),
            self.naming,
            (id, queue),
            self.services,
            telling,
        );
        let until = stop.clone();
        tokio::spawn(
            async move { until.run_until_cancelled_owned(following.run(listening)).await },
        );
        Ok(Registry { shared, _stop: Arc::new(stop.drop_guard()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_be_a_pattern() {
        for wrong in ["", "a.#", "*", "a\nb", &"x".repeat(101)] {
            assert!(check_part("service", wrong).is_err(), "{wrong}");
        }
        check_part("service", "shop.inventory").unwrap();
    }
}
