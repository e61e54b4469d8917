//! What the functions of the suite use.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::LocalBoxFuture;
use postrider_core::{Env, Exchange, Queue, Topology, Transport};
use postrider_patterns::{
    DeadLetters, Jitter, Naming, RetryPolicy, Task, WorkQueue, Worker, dead_letter_topology,
};
use postrider_testkit::harness::TestBroker;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::suite;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const SECOND: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
pub(crate) struct Email {
    pub(crate) to: u32,
}

impl Task for Email {
    const TYPE: &'static str = "email";
}

/// A broker, and names that nobody else has.
pub(crate) struct World {
    broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    prefix: String,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("middleware-{}.", Env::system().new_id());
        let naming = Naming::default().prefixed(&prefix);
        Self { broker, naming: naming.with_dead_letter_queue("{queue}.dead_letters"), prefix }
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn clear(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(async {
            let transport = self.transport().await;
            let topology = Topology::new()
                .queue(Queue::durable(self.queue()))
                .queue(Queue::durable(self.naming.task_queue("seen")))
                .exchange(Exchange::fanout(self.naming.task_exchange(Email::QUEUE)));
            let topology = topology.and(dead_letter_topology(&self.naming, &self.queue()));
            transport.remove(&topology).await.unwrap();
            transport.close(SOON).await.unwrap();
        })
    }
}

impl World {
    pub(crate) async fn transport(&self) -> Arc<dyn Transport> {
        self.broker.connect().await.unwrap().transport
    }

    pub(crate) fn queue(&self) -> String {
        self.naming.task_queue(Email::QUEUE)
    }

    /// A worker that tries three times, soon.
    pub(crate) fn worker(&self) -> Worker {
        let delay = Duration::from_millis(50);
        let policy = RetryPolicy::never()
            .with_immediate(1)
            .with_delayed(1)
            .with_delay(delay, 1.0, delay)
            .with_jitter(Jitter::None);
        Worker::new(Email::QUEUE).naming(self.naming.clone()).retry(policy)
    }

    pub(crate) async fn tasks(&self, transport: &Arc<dyn Transport>) -> WorkQueue {
        WorkQueue::builder(transport).naming(self.naming.clone()).connect().await.unwrap()
    }

    pub(crate) async fn submit(&self, transport: &Arc<dyn Transport>, to: &[u32]) {
        let emails: Vec<_> = to.iter().map(|to| Email { to: *to }).collect();
        self.tasks(transport).await.submit_all(&emails).await.unwrap();
    }

    pub(crate) fn letters(&self, transport: &Arc<dyn Transport>) -> DeadLetters {
        DeadLetters::of(transport, self.queue()).with_naming(self.naming.clone())
    }

    pub(crate) async fn ready(&self, transport: &Arc<dyn Transport>) -> u64 {
        transport.queue_info(&self.queue()).await.unwrap().map_or(0, |info| info.ready)
    }

    /// Waits until so many messages wait in the queue.
    pub(crate) async fn ready_comes_to(&self, transport: &Arc<dyn Transport>, wanted: u64) {
        let mut found = 0;
        let coming = timeout(SOON, async {
            loop {
                found = self.ready(transport).await;
                if found == wanted {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        let came = coming.await;
        assert!(came.is_ok(), "{found} messages wait where {wanted} should");
    }
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
