//! What the functions of the suite use.

use std::{sync::Arc, time::Duration};

use futures_util::future::LocalBoxFuture;
use postrider_core::{
    Address, Env, Envelope, Exchange, Message, PublisherExt, PublisherOptions, Queue, Topology,
    Transport,
};
use postrider_patterns::{
    Codec, Naming,
    config::{Config, ConfigBuilder, ConfigPublisher, ConfigReport},
};
use postrider_testkit::harness::{Connection, TestBroker};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::suite;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pricing {
    pub(crate) discount: u32,
}

pub(crate) fn discount(discount: u32) -> Pricing {
    Pricing { discount }
}

/// A broker, and names that nobody else has.
pub(crate) struct World {
    pub(crate) broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    prefix: String,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("config-{}.", Env::system().new_id());
        Self { broker, naming: Naming::default().prefixed(&prefix), prefix }
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn clear(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            let transport = self.transport().await;
            let topology = ["pricing", "other"].into_iter().fold(
                Topology::new().exchange(Exchange::direct(self.naming.config_exchange())),
                |topology, name| {
                    topology.queue(Queue::classic(self.naming.config_queue("orders", name)))
                },
            );
            transport.remove(&topology).await.unwrap();
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

    pub(crate) async fn publisher(
        &self,
        transport: &Arc<dyn Transport>,
    ) -> ConfigPublisher<Pricing> {
        let (naming, codec) = (self.naming.clone(), Codec::default());
        ConfigPublisher::with(transport, "orders", "pricing", naming, codec).await.unwrap()
    }

    pub(crate) fn builder(&self) -> ConfigBuilder<Pricing> {
        Config::builder("orders", "pricing").naming(self.naming.clone())
    }

    pub(crate) async fn reader(
        &self,
        transport: &Arc<dyn Transport>,
        instance: &str,
    ) -> Config<Pricing> {
        self.builder().instance(instance).start(transport).await.unwrap()
    }

    pub(crate) fn keeper(&self) -> String {
        self.naming.config_queue("orders", "pricing")
    }

    /// Publishes something to the exchange.
    pub(crate) async fn say(&self, transport: &dyn Transport, key: &str, message: Message) {
        let address = Address::exchange(self.naming.config_exchange(), key.to_owned());
        send(transport, address, message).await;
    }
}

pub(crate) async fn send(transport: &dyn Transport, address: Address, message: Message) {
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    publisher.publish(Envelope::new(address, message)).await.unwrap();
}

/// A value as another program would write it.
pub(crate) fn value(version: i64, body: &str) -> Message {
    Message::new(body.to_owned())
        .with_type("config.value")
        .with_content_type("application/json")
        .with_message_id(format!("by-hand-{version}"))
        .with_header("postrider-config-version", version)
}

/// The version and the discount in force.
pub(crate) fn in_force(config: &Config<Pricing>) -> Option<(u64, u32)> {
    config.current().map(|it| (it.version, it.value.discount))
}

/// Waits until a value is in force.
pub(crate) async fn comes_to(config: &Config<Pricing>, version: u64, discount: u32) {
    let mut values = config.watch();
    let reached = values.wait_for(|value| {
        value.as_ref().is_some_and(|it| (it.version, it.value.discount) == (version, discount))
    });
    let reached = timeout(SOON, reached).await;
    assert!(
        reached.is_ok_and(|it| it.is_ok()),
        "{version}: {discount}, not {:?}",
        in_force(config)
    );
}

/// Waits for a report of an instance.
pub(crate) async fn reported(
    publisher: &ConfigPublisher<Pricing>,
    instance: &str,
    is_so: impl Fn(&ConfigReport) -> bool,
) -> ConfigReport {
    let mut reports = publisher.reports();
    let reached = reports.wait_for(|reports| reports.get(instance).is_some_and(&is_so));
    let reached = timeout(SOON, reached).await.expect("a report").expect("the publisher goes on");
    reached[instance].clone()
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let waiting = timeout(SOON, async {
        while !is_so().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waiting.await.is_ok(), "{what}");
}
