//! What the functions of the suite use.

use std::{sync::Arc, time::Duration};

use futures_util::future::LocalBoxFuture;
use postrider_core::{
    Address, Env, Envelope, Exchange, Message, PublisherExt, PublisherOptions, Topology, Transport,
};
use postrider_patterns::{
    Naming,
    discovery::{Announcement, Change, Changes, Registry, RegistryBuilder, Version},
};
use postrider_testkit::harness::{Connection, TestBroker};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::suite;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A broker, and names that nobody else has.
pub(crate) struct World {
    pub(crate) broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    prefix: String,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("discovery-{}.", Env::system().new_id());
        Self { broker, naming: Naming::default().prefixed(&prefix), prefix }
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn clear(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            let transport = self.transport().await;
            let exchange = Exchange::topic(self.naming.discovery_exchange());
            transport.remove(&Topology::new().exchange(exchange)).await.unwrap();
            transport.close(SOON).await.unwrap();
        })
    }
}

impl World {
    pub(crate) async fn connect(&self) -> Connection {
        self.broker.connect().await.unwrap()
    }

    pub(crate) async fn transport(&self) -> Arc<dyn Transport> {
        self.connect().await.transport
    }

    /// An instance with a lease of two seconds.
    pub(crate) fn announcement(&self, service: &str, version: &str) -> Announcement {
        Announcement::new(service, Version::parse(version).unwrap())
            .naming(self.naming.clone())
            .heartbeat(SECOND / 2)
            .lease(2 * SECOND)
    }

    pub(crate) fn registry(&self, transport: &Arc<dyn Transport>) -> RegistryBuilder {
        Registry::builder(transport).naming(self.naming.clone())
    }

    /// A registry that has heard the answers.
    pub(crate) async fn current(&self, transport: &Arc<dyn Transport>) -> Registry {
        let registry = self.registry(transport).start().await.unwrap();
        timeout(SOON, registry.current()).await.unwrap().unwrap();
        registry
    }

    /// Says something to all registries.
    pub(crate) async fn say(&self, transport: &dyn Transport, service: &str, message: Message) {
        let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
        let key = format!("announce.{service}");
        let address = Address::exchange(self.naming.discovery_exchange(), key);
        publisher.publish(Envelope::new(address, message)).await.unwrap();
    }
}

/// An announcement as another program would write it.
pub(crate) fn announce(body: &Value) -> Message {
    Message::new(body.to_string())
        .with_type("discovery.announce")
        .with_content_type("application/json")
}

pub(crate) fn leave(body: &Value) -> Message {
    Message::new(body.to_string())
        .with_type("discovery.leave")
        .with_content_type("application/json")
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waiting = timeout(SOON, async {
        while !is_so() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waiting.await.is_ok(), "{what}");
}

pub(crate) async fn next(changes: &mut Changes) -> Change {
    timeout(SOON, changes.next()).await.expect("a change").expect("the registry goes on")
}

pub(crate) fn ids(registry: &Registry, service: &str) -> Vec<String> {
    registry.instances(service).iter().map(|instance| instance.id.clone()).collect()
}

/// What time it is, by the clock that the functions run on.
pub(crate) fn now() -> Instant {
    Env::system().now()
}
