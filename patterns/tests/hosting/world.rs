//! What the functions of the suite use.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::LocalBoxFuture};
use postrider_core::{
    Address, Env, Envelope, Exchange, Message, PublisherExt, PublisherOptions, Queue, Topology,
    Transport,
};
use postrider_patterns::{
    Event, EventBus, Naming, RpcServer, Service, Subscription, Task, WorkQueue, Worker,
    discovery::{Announcement, Registry, Version},
    routing::Intake,
};
use postrider_testkit::harness::TestBroker;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};

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

#[derive(Serialize, Deserialize)]
pub(crate) struct Registered {}

impl Event for Registered {
    const TYPE: &'static str = "user.registered";
}

/// The queues that functions give names to by themselves.
const QUEUES: [&str; 5] = ["email", "inbox", "batches", "parts", "elsewhere"];

/// How many partitions an ordered subscription has.
pub(crate) const PARTITIONS: u32 = 2;

/// A broker, and names that nobody else has.
pub(crate) struct World {
    broker: Arc<dyn TestBroker>,
    pub(crate) naming: Naming,
    prefix: String,
}

impl suite::World for World {
    fn new(broker: Arc<dyn TestBroker>) -> Self {
        let prefix = format!("service-{}.", Env::system().new_id());
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
            let mut queues: Vec<_> = QUEUES.iter().map(|name| self.name(name)).collect();
            let ordered = naming.durable_subscription_queue("mail", "ordered");
            queues.extend((0..PARTITIONS).map(|n| naming.partition_queue(&ordered, n)));
            queues.extend([
                naming.durable_subscription_queue("mail", "welcome"),
                naming.rpc_queue("mail"),
                naming.rpc_queue("rules"),
                naming.stream_queue("mail"),
                ordered.clone(),
                self.name("news"),
            ]);
            let exchanges = [
                naming.event_exchange(),
                naming.dead_letter_exchange(),
                naming.discovery_exchange(),
                naming.rpc_exchange("mail"),
                naming.rpc_exchange("rules"),
                naming.task_exchange(Email::QUEUE),
                format!("{ordered}.of.{PARTITIONS}"),
                ordered,
            ];
            let mut topology = Topology::new();
            for queue in queues {
                let dead = naming.dead_letter_queue(&queue);
                topology = topology.queue(Queue::durable(queue)).queue(Queue::durable(dead));
            }
            for exchange in exchanges {
                topology = topology.exchange(Exchange::direct(exchange));
            }
            transport.remove(&topology).await.unwrap();
            transport.close(SOON).await.unwrap();
        }
        .boxed_local()
    }
}

impl World {
    pub(crate) async fn transport(&self) -> Arc<dyn Transport> {
        self.broker.connect().await.unwrap().transport
    }

    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) async fn bus(&self, transport: &Arc<dyn Transport>) -> EventBus {
        EventBus::builder(transport).naming(self.naming.clone()).connect().await.unwrap()
    }

    pub(crate) fn intake(&self, queue: &str) -> Intake {
        Intake::queue(self.name(queue)).naming(self.naming.clone())
    }

    pub(crate) fn worker(&self) -> Worker {
        Worker::new(Email::QUEUE).naming(self.naming.clone())
    }

    pub(crate) fn calls(&self) -> RpcServer {
        RpcServer::new("mail")
            .naming(self.naming.clone())
            .method_named("ping", |(): (), _| async { Ok("pong") })
    }

    pub(crate) fn announcement(&self) -> Announcement {
        Announcement::new("mail", Version::new(1, 2, 0)).naming(self.naming.clone())
    }

    /// What is there to be picked, of the service that is announced.
    pub(crate) async fn registry(&self) -> Registry {
        let transport = self.transport().await;
        let registry = Registry::builder(&transport).naming(self.naming.clone()).start();
        let registry = registry.await.unwrap();
        registry.current().await.unwrap();
        registry
    }

    pub(crate) async fn submit(&self, transport: &Arc<dyn Transport>, tasks: u32) {
        let queue = WorkQueue::builder(transport).naming(self.naming.clone()).connect();
        let queue = queue.await.unwrap();
        let emails: Vec<_> = (0..tasks).map(|to| Email { to }).collect();
        queue.submit_all(&emails).await.unwrap();
    }

    pub(crate) async fn publish(&self, transport: &Arc<dyn Transport>, queue: &str) {
        let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
        let address = Address::queue(self.name(queue));
        publisher.publish(Envelope::new(address, Message::new(""))).await.unwrap();
    }

    /// How many messages wait in a queue, and how many consumers it has.
    pub(crate) async fn queue(&self, transport: &Arc<dyn Transport>, name: &str) -> (u64, u32) {
        let info = transport.queue_info(&self.name(name)).await.unwrap();
        info.map_or((0, 0), |info| (info.ready, info.consumers))
    }

    /// Waits until a queue has messages and consumers as wanted. A quorum queue counts a consumer
    /// that was cancelled until its last message is settled, and may not count who stands by.
    pub(crate) async fn queue_comes_to(
        &self,
        transport: &Arc<dyn Transport>,
        name: &str,
        is_wanted: impl Fn(u64, u32) -> bool,
    ) {
        let mut found = (0, 0);
        let coming = timeout(SOON, async {
            loop {
                found = self.queue(transport, name).await;
                if is_wanted(found.0, found.1) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        let came = coming.await;
        assert!(came.is_ok(), "'{name}' has {found:?} messages and consumers");
    }
}

/// A worker whose handler tells that it began and ends when it is let go on.
pub(crate) struct Gated {
    pub(crate) begins: mpsc::UnboundedReceiver<u32>,
    pub(crate) open: Arc<Semaphore>,
}

impl Gated {
    pub(crate) fn worker(world: &World) -> (Worker, Self) {
        let (begun, begins) = mpsc::unbounded_channel();
        let open = Arc::new(Semaphore::new(0));
        let gate = Arc::clone(&open);
        let worker = world.worker().on(move |email: Email, _| {
            let (begun, gate) = (begun.clone(), Arc::clone(&gate));
            async move {
                begun.send(email.to)?;
                gate.acquire().await?.forget();
                Ok(())
            }
        });
        (worker, Self { begins, open })
    }

    pub(crate) async fn begun(&mut self, tasks: u32) {
        for _ in 0..tasks {
            soon(self.begins.recv()).await.unwrap();
        }
    }
}

pub(crate) fn welcome() -> Subscription {
    Subscription::durable("mail", "welcome").on(|_: Registered, _| async { Ok(()) })
}

pub(crate) fn service(transport: &Arc<dyn Transport>) -> Service {
    Service::new("mail", transport)
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

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("in time")
}
