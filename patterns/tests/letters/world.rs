//! What the functions of the suite use.

use std::{sync::Arc, time::Duration};

use postrider_core::{
    Address, Env, Envelope, Exchange, HeaderValue, Headers, Message, PublisherExt,
    PublisherOptions, Queue, Topology, Transport,
};
use postrider_patterns::{
    DeadLetters, DeadMessage, Jitter, Naming, RetryPolicy, Task, WorkQueue, Worker, headers,
};
use postrider_testkit::harness::{Connection, TestBroker};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) number: u32,
}

impl Task for Job {
    const TYPE: &'static str = "job";
}

/// A broker, and names that nobody else has.
pub(crate) struct World {
    pub(crate) broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    pub(crate) prefix: String,
}

impl World {
    pub(crate) fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("letters-{}.", Env::system().new_id());
        let naming =
            Naming::default().prefixed(&prefix).with_dead_letter_queue("{queue}.dead_letters");
        Self { broker, naming, prefix }
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

    pub(crate) fn letters(&self, transport: &Arc<dyn Transport>) -> DeadLetters {
        DeadLetters::of(transport, self.queue()).with_naming(self.naming.clone())
    }

    /// Puts dead letters in place, numbered from 0, as if they had failed: the odd ones for a
    /// reason of their own.
    pub(crate) async fn bury(&self, transport: &Arc<dyn Transport>, number: u32) -> DeadLetters {
        let letters = self.letters(transport);
        let tasks = self.tasks(transport).await;
        tasks.submit(&Job { number: 0 }).await.unwrap();
        transport.purge(&self.queue()).await.unwrap();
        let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
        for number in 0..number {
            let code = if number % 2 == 1 { "ODD" } else { "EVEN" };
            let message =
                Message::new(format!(r#"{{"type":"job","params":{{"number":{number}}}}}"#))
                    .with_content_type("application/json")
                    .with_message_id(number.to_string())
                    .with_header(headers::ERROR_CLASS, "INVALID")
                    .with_header(headers::ERROR_CODE, code)
                    .with_header(headers::ORIGIN_QUEUE, self.queue());
            let address = Address::queue(letters.queue().to_owned());
            publisher.publish(Envelope::new(address, message)).await.unwrap();
        }
        comes_to(&letters, u64::from(number)).await;
        letters
    }

    /// Takes away what a function may have made.
    pub(crate) async fn clear(&self, transport: &Arc<dyn Transport>) {
        let mut topology =
            Topology::new().exchange(Exchange::direct(self.naming.dead_letter_exchange()));
        for queue in [self.queue(), format!("{}other", self.prefix)] {
            let dead = self.naming.dead_letter_queue(&queue);
            topology = topology.queue(Queue::durable(queue)).queue(Queue::durable(dead));
        }
        transport.remove(&topology).await.unwrap();
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

/// Waits until there are so many dead letters.
pub(crate) async fn comes_to(letters: &DeadLetters, number: u64) {
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

/// The one dead letter that is to come.
pub(crate) async fn one(letters: &DeadLetters) -> DeadMessage {
    comes_to(letters, 1).await;
    letters.peek(10).await.unwrap().pop().expect("one dead letter")
}

pub(crate) fn ids(letters: &[DeadMessage]) -> Vec<u32> {
    let id = |dead: &DeadMessage| dead.message().message_id.as_deref().unwrap().parse().unwrap();
    letters.iter().map(id).collect()
}

/// Not every protocol keeps the order of headers.
pub(crate) fn sorted(headers: &Headers) -> Vec<(String, HeaderValue)> {
    let mut sorted: Vec<_> =
        headers.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    sorted.sort_by(|(one, _), (other, _)| one.cmp(other));
    sorted
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("in time")
}
