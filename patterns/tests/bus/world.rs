//! What the functions of the suite use.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::LocalBoxFuture;
use postrider_core::{
    Address, Env, Envelope, Exchange, Message, PublisherExt, PublisherOptions, Queue, Topology,
    Transport,
};
use postrider_patterns::{
    DeadLetterFilter, DeadLetters, DeadMessage, Event, EventBus, Jitter, Naming, RetryPolicy,
    Subscription, dead_letter_topology,
};
use postrider_testkit::harness::{Connection, TestBroker};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::suite;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Created {
    pub(crate) order: u64,
}

impl Event for Created {
    const TYPE: &'static str = "order.created";

    fn aggregate_id(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Paid {
    pub(crate) order: u64,
}

impl Event for Paid {
    const TYPE: &'static str = "order.paid";
}

/// A broker, and names that nobody else has.
pub(crate) struct World {
    broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    prefix: String,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("events-{}.", Env::system().new_id());
        let naming = Naming::default().prefixed(&prefix);
        Self { broker, naming: naming.with_dead_letter_queue("{queue}.dead_letters"), prefix }
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn clear(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            let transport = self.connect().await.transport;
            let mut topology =
                Topology::new().exchange(Exchange::topic(self.naming.event_exchange()));
            for name in ["orders", "all", "paid"] {
                let queue = self.queue(name);
                topology = topology
                    .and(dead_letter_topology(&self.naming, &queue))
                    .queue(Queue::durable(queue));
            }
            let dashboard = dead_letter_topology(&self.naming, &self.dashboard());
            transport.remove(&topology.and(dashboard)).await.unwrap();
            transport.close(SOON).await.unwrap();
        })
    }
}

impl World {
    pub(crate) async fn connect(&self) -> Connection {
        self.broker.connect().await.unwrap()
    }

    pub(crate) async fn connected(&self) -> (Connection, EventBus) {
        let connection = self.connect().await;
        let naming = self.naming.clone();
        let bus = EventBus::builder(&connection.transport).naming(naming).connect().await.unwrap();
        (connection, bus)
    }

    /// The queue of a durable subscription.
    pub(crate) fn queue(&self, name: &str) -> String {
        self.naming.durable_subscription_queue("billing", name)
    }

    /// The name of an ephemeral subscription.
    pub(crate) fn dashboard(&self) -> String {
        format!("{}dashboard", self.prefix)
    }

    pub(crate) async fn publish(
        &self,
        transport: &Arc<dyn Transport>,
        key: &'static str,
        message: Message,
    ) {
        let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
        let address = Address::exchange(self.naming.event_exchange(), key);
        publisher.publish(Envelope::new(address, message)).await.unwrap();
    }

    /// Waits until so many letters of `queue` are kept, and gives them.
    pub(crate) async fn letters(
        &self,
        transport: &Arc<dyn Transport>,
        queue: &str,
        wanted: u64,
    ) -> Vec<DeadMessage> {
        let letters = DeadLetters::of(transport, queue).with_naming(self.naming.clone());
        let mut found = 0;
        let coming = timeout(SOON, async {
            while found != wanted {
                sleep(Duration::from_millis(20)).await;
                found = letters.count().await.unwrap();
            }
        });
        let came = coming.await;
        assert!(came.is_ok(), "{queue} has {found} dead letters, not {wanted}");
        letters.list(&DeadLetterFilter::all()).await.unwrap()
    }
}

pub(crate) fn durable(name: &str) -> Subscription {
    Subscription::durable("billing", name).retry(quick())
}

/// Three tries, soon.
pub(crate) fn quick() -> RetryPolicy {
    let delay = Duration::from_millis(50);
    let policy = RetryPolicy::never().with_immediate(1).with_delayed(1);
    policy.with_delay(delay, 1.0, delay).with_jitter(Jitter::None)
}

/// A list that handlers write to and the test reads.
#[derive(Debug)]
pub(crate) struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone> Log<T> {
    pub(crate) fn push(&self, item: T) {
        self.0.lock().unwrap().push(item);
    }

    pub(crate) fn items(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}

/// Notes the orders that come.
pub(crate) fn seeing(subscription: Subscription, log: &Log<u64>) -> Subscription {
    let log = log.clone();
    subscription.on(move |event: Created, _context| {
        log.push(event.order);
        async { Ok(()) }
    })
}

/// Waits until something is so.
pub(crate) async fn until(is_so: impl Fn() -> bool, what: impl Fn() -> String) {
    let coming = timeout(SOON, async {
        while !is_so() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    let came = coming.await;
    assert!(came.is_ok(), "it came to {}", what());
}
