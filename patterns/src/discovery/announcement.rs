use std::{collections::BTreeMap, sync::Arc, time::Duration};

use postrider_core::{Error, ErrorKind, Result, Transport};
use semver::Version;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Instance, InstanceHealth,
    announcing::Announcing,
    wire::{self, Announce, DEFAULT_LEASE, LONGEST_LEASE, SHORTEST_LEASE},
};
use crate::{
    codec::Codec,
    consuming::{Outline, Settings},
    listening::{Listening, check_part},
    naming::Naming,
    telling::Telling,
};

/// What an instance of a service says of itself, and how often.
#[derive(Debug, Clone)]
#[must_use = "call start"]
pub struct Announcement {
    service: String,
    version: Version,
    methods: Vec<String>,
    metadata: BTreeMap<String, String>,
    health: InstanceHealth,
    heartbeat: Duration,
    lease: Duration,
    naming: Naming,
    codec: Codec,
}

impl Announcement {
    /// An instance of `service` that runs `version` of it.
    pub fn new(service: impl Into<String>, version: Version) -> Self {
        Self {
            service: service.into(),
            version,
            methods: Vec::new(),
            metadata: BTreeMap::new(),
            health: InstanceHealth::Healthy,
            heartbeat: Duration::from_secs(5),
            lease: DEFAULT_LEASE,
            naming: Naming::default(),
            codec: Codec::default(),
        }
    }

    /// Adds what can be called there.
    pub fn methods<M: Into<String>>(mut self, methods: impl IntoIterator<Item = M>) -> Self {
        self.methods.extend(methods.into_iter().map(Into::into));
        self
    }

    /// Adds something that others should know, for example its zone.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// How it fares at the start. Default: healthy.
    pub fn health(mut self, health: InstanceHealth) -> Self {
        self.health = health;
        self
    }

    /// How often it says that it is there, give or take a tenth. At most half of the lease.
    /// Default: 5 seconds.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = interval;
        self
    }

    /// How long it is taken for alive without a heartbeat: from a second to an hour, in whole
    /// milliseconds. Default: 15 seconds, so that two heartbeats in a row may be lost.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The names of exchanges and queues. Default: those of the wire format.
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// The codec of what is said. Default: MessagePack.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Announces the instance under a new id, and goes on to say that it is there and to answer who
    /// asks. When it returns, the broker has the first announcement.
    ///
    /// Cancellation safe: when the future is dropped, the instance may have been announced; it
    /// leaves then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a name, a lease or a heartbeat out of range or an announcement of
    /// more than 16 KiB, and what [`Transport::declare`], [`Transport::consumer`] and
    /// [`Transport::publisher`] fail with.
    pub async fn start(self, transport: &Arc<dyn Transport>) -> Result<Announcer> {
        self.check()?;
        let id = transport.env().new_id().to_string();
        let queue = self.naming.discovery_queue("instance", &id);
        let first = self.first(id);
        // The number of an announcement grows, and so does its reason.
        first.message(self.codec).map_err(too_large)?;
        let topology = wire::announcer_topology(&self.naming, &first.instance.service, &queue);
        let listening = Listening::start(transport, topology, &queue).await?;
        let telling = Telling::start(transport).await?;
        let instance = Arc::new(first.instance.clone());
        let (health, told) = watch::channel(first.instance.health.clone());
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let mut announcing = Announcing {
            announce: first,
            heartbeat: self.heartbeat,
            naming: self.naming,
            codec: self.codec,
            env: transport.env().clone(),
            telling,
            listening,
            health: told,
            stop,
        };
        announcing.begin().await?;
        let task = tokio::spawn(announcing.run());
        Ok(Announcer { instance, codec: self.codec, health, stop: guard, task })
    }

    /// The service that is announced.
    pub(crate) fn service_name(&self) -> &str {
        &self.service
    }

    /// What it will declare. It refuses what [`start`](Self::start) does before that.
    pub(crate) fn outline(&self) -> Result<Outline> {
        self.check()?;
        let first = self.first(Outline::ID.to_owned());
        first.message(self.codec).map_err(too_large)?;
        let queue = self.naming.discovery_queue("instance", Outline::ID);
        let topology = wire::announcer_topology(&self.naming, &self.service, &queue);
        Ok(Outline::new(topology, Vec::new(), Settings::default()))
    }

    /// What is said before anything, by the instance `id`.
    fn first(&self, id: String) -> Announce {
        let instance = Instance {
            service: self.service.clone(),
            id,
            version: self.version.clone(),
            methods: self.methods.clone(),
            metadata: self.metadata.clone(),
            health: self.health.clone(),
        };
        Announce { instance, sequence: 0, lease: self.lease }
    }

    fn check(&self) -> Result<()> {
        check_part("service", &self.service)?;
        let complaint = if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&self.lease) {
            format!("a lease is from {SHORTEST_LEASE:?} to {LONGEST_LEASE:?}")
        } else if self.heartbeat.is_zero() || self.heartbeat * 2 > self.lease {
            "there must be at least two heartbeats in a lease".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Invalid, "announce", complaint)
            .with_context("service", self.service.clone()))
    }
}

fn too_large(error: crate::codec::CodecError) -> Error {
    Error::new(ErrorKind::Invalid, "announce", "the announcement is too large").with_source(error)
}

/// An instance that is announced.
///
/// [`leave`](Self::leave) tells the others at once. Dropping it tries to, in a task of its own;
/// when the program or its connection ends first, the others notice when the lease is over.
#[derive(Debug)]
#[must_use = "dropping it takes the instance away"]
pub struct Announcer {
    instance: Arc<Instance>,
    codec: Codec,
    health: watch::Sender<InstanceHealth>,
    stop: DropGuard,
    task: JoinHandle<Result<()>>,
}

impl Announcer {
    /// The id of the instance.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.instance.id
    }

    /// How the instance says that it fares.
    pub(crate) fn health(&self) -> InstanceHealth {
        self.health.borrow().clone()
    }

    /// Says how the instance fares from now on. It is told at once, and with each heartbeat.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] when the announcement would be larger than 16 KiB with this reason;
    /// nothing changes then.
    pub fn set_health(&self, health: InstanceHealth) -> Result<()> {
        let mut instance = Instance::clone(&self.instance);
        instance.health = health.clone();
        let announce = Announce { instance, sequence: u64::MAX, lease: LONGEST_LEASE };
        announce.message(self.codec).map_err(too_large)?;
        self.health.send_if_modified(|known| {
            let is_new = *known != health;
            *known = health;
            is_new
        });
        Ok(())
    }

    /// Leaves: everybody who hears it takes the instance off at once, and nothing brings it back.
    ///
    /// Cancellation safe: when the future is dropped, it leaves all the same.
    ///
    /// # Errors
    ///
    /// When the broker did not take the goodbye within seconds; the lease ends it then.
    pub async fn leave(self) -> Result<()> {
        let Self { stop, task, .. } = self;
        drop(stop);
        task.await.unwrap_or(Ok(()))
    }
}
