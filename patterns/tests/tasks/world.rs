//! What the functions of the suite use.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::LocalBoxFuture};
use postrider_core::{Env, Exchange, Queue, Topology, Transport};
use postrider_patterns::{
    DeadLetters, Jitter, MessageId, Naming, RetryPolicy, RunStats, Running, SubmitOptions, Task,
    TaskHandle, TaskStatus, TaskWithResult, WorkQueue, Worker,
};
use postrider_testkit::harness::{Connection, TestBroker};
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

impl TaskWithResult for Job {
    type Output = u32;
}

/// A task of the same queue that no worker has a handler for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Strange {}

impl Task for Strange {
    const TYPE: &'static str = "strange";
    const QUEUE: &'static str = Job::QUEUE;
}

/// A broker, and names that nobody else has.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    pub(crate) prefix: String,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("tasks-{}.", Env::system().new_id());
        let naming =
            Naming::default().prefixed(&prefix).with_dead_letter_queue("{queue}.dead_letters");
        Self { broker, naming, prefix }
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn clear(&self) -> LocalBoxFuture<'_, ()> {
        async {
            let transport = self.transport().await;
            let dead = self.naming.dead_letter_queue(&self.queue());
            let topology = Topology::new()
                .exchange(Exchange::direct(self.naming.dead_letter_exchange()))
                .exchange(Exchange::fanout(self.naming.task_exchange(Job::QUEUE)))
                .queue(Queue::durable(self.queue()))
                .queue(Queue::durable(dead));
            transport.remove(&topology).await.unwrap();
            transport.close(SOON).await.unwrap();
        }
        .boxed_local()
    }
}

impl World {
    pub(crate) async fn connect(&self) -> Connection {
        self.broker.connect().await.unwrap()
    }

    pub(crate) async fn transport(&self) -> Arc<dyn Transport> {
        self.connect().await.transport
    }

    pub(crate) fn queue(&self) -> String {
        self.naming.task_queue(Job::QUEUE)
    }

    /// One that does one task at a time and takes none in advance.
    pub(crate) fn worker(&self) -> Worker {
        Worker::new(Job::QUEUE)
            .naming(self.naming.clone())
            .retry(quick())
            .concurrency(1)
            .prefetch(1)
    }

    pub(crate) async fn tasks(&self, transport: &Arc<dyn Transport>) -> WorkQueue {
        WorkQueue::builder(transport).naming(self.naming.clone()).connect().await.unwrap()
    }

    pub(crate) fn letters(&self, transport: &Arc<dyn Transport>) -> DeadLetters {
        DeadLetters::of(transport, self.queue()).with_naming(self.naming.clone())
    }

    /// Waits until so many tasks wait in the queue.
    pub(crate) async fn waiting(&self, transport: &Arc<dyn Transport>, number: u64) {
        let coming = timeout(SOON, async {
            while transport.queue_info(&self.queue()).await.unwrap().unwrap().ready != number {
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(coming.await.is_ok(), "{number} tasks wait");
    }

    /// RabbitMQ takes a queue away a little after its connection was closed.
    pub(crate) async fn no_queue_of_reports_is_left(&self) {
        let prefix = format!("{}reply_", self.prefix);
        let going = timeout(SOON, async {
            let is_queue = |left: &String| left.starts_with("queue ");
            while self.broker.left_over(&prefix).await.unwrap().iter().any(is_queue) {
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(going.await.is_ok(), "a queue of reports stays");
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

pub(crate) async fn submit(tasks: &WorkQueue, number: u32) -> TaskHandle<u32> {
    tasks.submit_for_result(&Job { number }, SubmitOptions::default()).await.unwrap()
}

pub(crate) async fn submit_plain(tasks: &WorkQueue, number: u32) -> MessageId {
    tasks.submit(&Job { number }).await.unwrap()
}

/// Waits until a handle stands so.
pub(crate) async fn stands<R>(handle: &TaskHandle<R>, wanted: &TaskStatus) {
    let mut watched = handle.watch();
    let coming = timeout(SOON, watched.wait_for(|state| state.status == *wanted));
    let came = coming.await.is_ok_and(|came| came.is_ok());
    assert!(came, "{handle:?} is not {wanted:?}");
}

/// Waits until a worker's figures are so.
pub(crate) async fn comes_to(running: &Running, wanted: impl Fn(&RunStats) -> bool) {
    let coming = timeout(SOON, async {
        while !wanted(&running.stats()) {
            sleep(Duration::from_millis(10)).await;
        }
    });
    let came = coming.await;
    assert!(came.is_ok(), "{:?}", running.stats());
}

/// Waits until there are so many dead letters.
pub(crate) async fn dead(letters: &DeadLetters, number: u64) {
    let coming = timeout(SOON, async {
        while letters.count().await.unwrap() != number {
            sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(coming.await.is_ok(), "{number} dead letters");
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("in time")
}
