//! What the functions of the suite use.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::LocalBoxFuture};
use postrider_core::{Env, Exchange, Queue, Topology, Transport};
use postrider_patterns::{
    Context, DeadLetterFilter, DeadLetters, Event, EventBus, HandlerError, Jitter, Naming,
    RetryPolicy, Running, Subscription,
};
use postrider_testkit::harness::{Connection, TestBroker};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use crate::suite;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// How many partitions the subscriptions have.
pub(crate) const PARTITIONS: u32 = 4;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub(crate) account: String,
    pub(crate) number: u32,
}

impl Event for Moved {
    const TYPE: &'static str = "account.moved";

    fn aggregate_id(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.account))
    }
}

pub(crate) fn moved(account: &str, number: u32) -> Moved {
    Moved { account: account.to_owned(), number }
}

/// What was handled, in that order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Moved>>>);

impl Seen {
    pub(crate) fn push(&self, event: Moved) {
        self.0.lock().unwrap().push(event);
    }

    /// The numbers of an account, in the order they were handled.
    pub(crate) fn of(&self, account: &str) -> Vec<u32> {
        let seen = self.0.lock().unwrap();
        seen.iter().filter(|event| event.account == account).map(|event| event.number).collect()
    }

    /// The numbers of each account, each where it was handled first.
    pub(crate) fn first(&self) -> BTreeMap<String, Vec<u32>> {
        let mut first: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for Moved { account, number } in self.0.lock().unwrap().iter() {
            let numbers = first.entry(account.clone()).or_default();
            if !numbers.contains(number) {
                numbers.push(*number);
            }
        }
        first
    }

    /// How many different events were handled.
    pub(crate) fn number(&self) -> usize {
        self.first().values().map(Vec::len).sum()
    }

    pub(crate) fn assert_in_order(&self) {
        for (account, numbers) in self.first() {
            assert!(numbers.is_sorted(), "{account} was handled as {numbers:?}");
        }
    }
}

/// A broker, and names that nobody else has.
pub(crate) struct World {
    pub(crate) broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    pub(crate) prefix: String,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("keyed-{}.", Env::system().new_id());
        let naming = Naming::default().prefixed(&prefix);
        let naming = naming.with_dead_letter_queue("{queue}.dead_letters");
        Self { broker, naming, prefix }
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn clear(&self) -> LocalBoxFuture<'_, ()> {
        async {
            let transport = self.connect().await.transport;
            let queue = self.queue();
            let others = (1..=64).map(|count| Exchange::fanout(format!("{queue}.of.{count}")));
            let mut topology = Topology::new()
                .exchange(Exchange::topic(self.naming.event_exchange()))
                .exchange(Exchange::direct(self.naming.dead_letter_exchange()))
                .exchange(Exchange::headers(queue.clone()))
                .queue(Queue::durable(self.naming.dead_letter_queue(&queue)))
                .queue(Queue::durable(queue.clone()));
            topology.exchanges.extend(others);
            for number in 0..PARTITIONS {
                let queue = self.naming.partition_queue(&queue, number);
                topology = topology
                    .queue(Queue::durable(self.naming.dead_letter_queue(&queue)))
                    .queue(Queue::durable(queue));
            }
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

    pub(crate) async fn bus(&self, transport: &Arc<dyn Transport>) -> EventBus {
        EventBus::builder(transport).naming(self.naming.clone()).connect().await.unwrap()
    }

    pub(crate) async fn connected(&self) -> (Connection, EventBus) {
        let connection = self.connect().await;
        let bus = self.bus(&connection.transport).await;
        (connection, bus)
    }

    /// The dead letters of each partition.
    pub(crate) fn letters(&self, transport: &Arc<dyn Transport>) -> Vec<DeadLetters> {
        let letters = |number| {
            let queue = self.naming.partition_queue(&self.queue(), number);
            DeadLetters::of(transport, queue).with_naming(self.naming.clone())
        };
        (0..PARTITIONS).map(letters).collect()
    }

    /// The numbers of an account that are among the dead letters, in the order they lie there.
    pub(crate) async fn parked(&self, transport: &Arc<dyn Transport>, account: &str) -> Vec<i64> {
        let mut numbers = Vec::new();
        for letters in self.letters(transport) {
            for letter in letters.list(&DeadLetterFilter::all().key(account)).await.unwrap() {
                let body: serde_json::Value =
                    rmp_serde::from_slice(&letter.message().body).unwrap();
                numbers.push(body["data"]["number"].as_i64().unwrap());
            }
        }
        numbers
    }

    pub(crate) fn queue(&self) -> String {
        self.naming.durable_subscription_queue("ledger", "accounts")
    }
}

/// The subscription of all functions, whose events `handle` is given.
pub(crate) fn ledger<F, Fut>(handle: F) -> Subscription
where
    F: Fn(Moved, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    let subscription = Subscription::durable("ledger", "accounts").on(handle);
    subscription.ordered_by_key(PARTITIONS).concurrency(8).retry(quick())
}

/// One that notes what it handles, each after a moment.
pub(crate) fn noting(seen: &Seen) -> Subscription {
    let seen = seen.clone();
    ledger(move |event, _context| {
        let seen = seen.clone();
        async move {
            sleep(Duration::from_millis(u64::from(event.number % 3))).await;
            seen.push(event);
            Ok(())
        }
    })
}

/// Four tries, without a long wait.
pub(crate) fn quick() -> RetryPolicy {
    let delay = Duration::from_millis(50);
    RetryPolicy::default()
        .with_immediate(1)
        .with_delayed(2)
        .with_delay(delay, 1.0, delay)
        .with_jitter(Jitter::None)
}

/// Events of `accounts` accounts, each with the numbers from 0.
pub(crate) fn events(accounts: u32, numbers: u32) -> Vec<Moved> {
    let all = (0..numbers)
        .flat_map(|number| (0..accounts).map(move |of| moved(&format!("account-{of}"), number)));
    all.collect()
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let coming = timeout(SOON, async {
        while !is_so() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(coming.await.is_ok(), "it did not come to this: {what}");
}

pub(crate) async fn stop(running: Running) {
    let report = timeout(2 * SOON, running.stop(SOON)).await.unwrap();
    assert_eq!(report.still_running, 0);
}

/// Subscribes; a broker that is busy may need another try.
pub(crate) async fn subscribed(bus: &EventBus, subscription: impl Fn() -> Subscription) -> Running {
    let subscribing = async {
        loop {
            match bus.subscribe(subscription()).await {
                Err(error) if error.is_retryable() => sleep(Duration::from_millis(100)).await,
                outcome => return outcome.unwrap(),
            }
        }
    };
    timeout(SOON, subscribing).await.expect("in time")
}
