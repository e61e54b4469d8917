//! What the functions of the suite use.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::LocalBoxFuture};
use postrider_core::{Env, Exchange, Queue, Topology, Transport};
use postrider_patterns::{
    DeadLetters, Event, EventBus, Jitter, Naming, RetryPolicy, Task, WorkQueue, Worker,
};
use postrider_testkit::{
    harness::{Connection, Route, TestBroker},
    proxy::FaultProxy,
};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::suite;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) number: u32,
}

impl Task for Job {
    const TYPE: &'static str = "job";
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Paid {
    pub(crate) order: u32,
}

impl Event for Paid {
    const TYPE: &'static str = "order.paid";
}

/// The subscriptions that functions use.
const SUBSCRIPTIONS: [(&str, &str); 2] = [("billing", "paid"), ("shipping", "paid")];

/// A broker, and names that nobody else has.
pub(crate) struct World {
    broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    prefix: String,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("complaints-{}.", Env::system().new_id());
        let naming = Naming::default().prefixed(&prefix);
        Self { broker, naming: naming.with_dead_letter_queue("{queue}.dead_letters"), prefix }
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn clear(&self) -> LocalBoxFuture<'_, ()> {
        async {
            let transport = self.transport().await;
            let naming = &self.naming;
            let mut topology = Topology::new()
                .exchange(Exchange::topic(naming.event_exchange()))
                .exchange(Exchange::direct(naming.dead_letter_exchange()));
            let subscriptions = SUBSCRIPTIONS
                .map(|(service, name)| naming.durable_subscription_queue(service, name));
            for queue in subscriptions.into_iter().chain([self.queue()]) {
                let dead = naming.dead_letter_queue(&queue);
                topology = topology.queue(Queue::durable(queue)).queue(Queue::durable(dead));
            }
            transport.remove(&topology).await.unwrap();
            transport.close(SOON).await.unwrap();
        }
        .boxed_local()
    }
}

impl World {
    /// A connection whose network can be made to fail.
    pub(crate) async fn through_proxy(&self) -> (FaultProxy, Arc<dyn Transport>) {
        let broker = self.broker.address().expect("a broker behind a network");
        let proxy = FaultProxy::start(broker).await.unwrap();
        let route = Route { address: Some(proxy.address()), ..Route::default() };
        (proxy, self.broker.connect_by(&route).await.unwrap().transport)
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.broker.connect().await.unwrap()
    }

    pub(crate) async fn transport(&self) -> Arc<dyn Transport> {
        self.connect().await.transport
    }

    pub(crate) fn queue(&self) -> String {
        self.naming.task_queue(Job::QUEUE)
    }

    pub(crate) fn worker(&self) -> Worker {
        Worker::new(Job::QUEUE).naming(self.naming.clone()).retry(quick())
    }

    pub(crate) async fn tasks(&self, transport: &Arc<dyn Transport>) -> WorkQueue {
        WorkQueue::builder(transport).naming(self.naming.clone()).connect().await.unwrap()
    }

    pub(crate) async fn bus(&self, transport: &Arc<dyn Transport>) -> EventBus {
        EventBus::builder(transport).naming(self.naming.clone()).connect().await.unwrap()
    }

    pub(crate) fn letters(&self, transport: &Arc<dyn Transport>) -> DeadLetters {
        DeadLetters::of(transport, self.queue()).with_naming(self.naming.clone())
    }
}

/// Three tries, without a long wait.
pub(crate) fn quick() -> RetryPolicy {
    let delay = Duration::from_millis(50);
    RetryPolicy::default()
        .with_immediate(1)
        .with_delayed(1)
        .with_delay(delay, 1.0, delay)
        .with_jitter(Jitter::None)
}

/// How often each number was handled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handled(Arc<Mutex<BTreeMap<u32, u32>>>);

impl Handled {
    pub(crate) fn note(&self, number: u32) {
        *self.0.lock().unwrap().entry(number).or_default() += 1;
    }

    pub(crate) fn all(&self) -> BTreeMap<u32, u32> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn sum(&self) -> u32 {
        self.0.lock().unwrap().values().sum()
    }

    /// Waits until so many different numbers were handled.
    pub(crate) async fn comes_to(&self, numbers: usize) {
        until(|| self.all().len() == numbers, || format!("{:?}", self.all())).await;
    }
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

/// Waits until there are so many dead letters.
pub(crate) async fn letters_come_to(letters: &DeadLetters, number: u64) {
    let mut count = 0;
    let coming = timeout(SOON, async {
        loop {
            count = letters.count().await.unwrap();
            if count == number {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let came = coming.await;
    assert!(came.is_ok(), "{count} dead letters are not {number}");
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("in time")
}
