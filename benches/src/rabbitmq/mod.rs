//! RabbitMQ through Postrider, beside lapin or fe2o3-amqp on the same broker: once used well, once as
//! most programs use it.
//!
//! Both do the same work: bodies of 256 bytes that are made for each message, mandatory and
//! persistent publishes, the same window, prefetch, queue and codec. Queues are new for each
//! measurement and deleted after it. What is set up before and checked after is not measured.

mod broker;
mod consume;
mod idle;
mod meter;
mod protocol;
mod publish;
mod pubsub;
mod raw;
mod raw_amqp10;
mod rpc;
mod rpc_raw;
pub mod streams;

use std::sync::Arc;

use postrider_core::{Env, Queue, QueueKind, Topology, Transport};
use postrider_patterns::Naming;

pub use self::{
    broker::Broker,
    consume::{consume, consume_well_with_lapin, consume_with_postrider},
    idle::idle,
    meter::{Cost, Meter},
    protocol::Protocol,
    publish::{publish, publish_well_with_lapin, publish_with_postrider},
    pubsub::publish_to_subscriber,
    rpc::{many_calls_at_once, one_call_at_a_time},
};
use crate::rounds::Figure;

/// How many messages may be without a verdict at once.
const WINDOW: usize = 1_000;

/// How many messages a consumer has unacknowledged at most.
const PREFETCH: u16 = 200;

/// How many deliveries a twin that is used well acknowledges at once.
const ACKS_AT_ONCE: u64 = 100;

const POSTRIDER: &str = "Postrider";

/// How a client is used.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Well,
    AsMost,
}

const RATE: &str = "per second";
const CLIENT: &str = "client CPU, µs each";
const BROKER: &str = "broker CPU, µs each";

/// How much is done in each round.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rounds of each workload.
    pub rounds: usize,
    /// Messages published or consumed by whoever has many under way.
    pub messages: u64,
    /// Messages published or consumed by whoever awaits each.
    pub awaited: u64,
    /// Events published to a subscriber.
    pub events: u64,
    /// Calls made one after the other.
    pub calls: u64,
    /// Calls made with 128 under way.
    pub calls_at_once: u64,
    /// Seconds without work.
    pub idle_seconds: u64,
}

impl Sizes {
    /// Sizes for figures to be quoted. It takes some minutes.
    pub const FULL: Self = Self {
        rounds: 5,
        messages: 60_000,
        awaited: 6_000,
        events: 30_000,
        calls: 3_000,
        calls_at_once: 25_000,
        idle_seconds: 10,
    };

    /// Sizes that show that everything runs. It takes some seconds.
    pub const QUICK: Self = Self {
        rounds: 1,
        messages: 1_500,
        awaited: 150,
        events: 1_000,
        calls: 50,
        calls_at_once: 500,
        idle_seconds: 1,
    };
}

/// Where is measured, and how much.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The broker.
    pub url: String,
    /// What it is spoken to.
    pub protocol: Protocol,
    /// Measures time and CPU.
    pub meter: Meter,
    /// How much is done.
    pub sizes: Sizes,
}

impl Bench {
    /// The figures of a workload whose throughput counts.
    fn figures(&self) -> Vec<Figure> {
        let mut figures = vec![Figure::new(RATE, 0)];
        figures.extend(self.costs());
        figures
    }

    /// The CPU time of client and broker, as far as it can be known.
    fn costs(&self) -> Vec<Figure> {
        let mut figures = vec![Figure::new(CLIENT, 1)];
        if self.meter.sees_broker() {
            figures.push(Figure::new(BROKER, 1));
        }
        figures
    }

    async fn connect(&self) -> Arc<dyn Transport> {
        self.protocol.connect(&self.url).await
    }

    /// A new queue, and the connection that declared it.
    async fn queue(&self, kind: QueueKind) -> NewQueue {
        let admin = self.connect().await;
        let name = format!("bench.{}", Env::system().new_id());
        let queue = match kind {
            QueueKind::Classic => Queue::classic(name.clone()),
            _ => Queue::durable(name.clone()),
        };
        let topology = Topology::new().queue(queue);
        admin.declare(&topology).await.expect("declared");
        NewQueue { admin, topology, name }
    }
}

/// Names for one measurement, so that nothing of another is in its way.
fn naming() -> Naming {
    Naming::default().prefixed(&format!("bench.{}.", Env::system().new_id()))
}

/// A queue that is there for one measurement.
struct NewQueue {
    admin: Arc<dyn Transport>,
    topology: Topology,
    name: String,
}

impl NewQueue {
    /// Deletes it after its consumer was closed that had acknowledged everything.
    async fn delete_consumed(self, kind: QueueKind) {
        if kind == QueueKind::Classic {
            return self.delete_with(0).await;
        }
        // A quorum queue has the last acknowledgements applied some time after they were written,
        // and what a connection closes before may be there again, with lapin alone too.
        self.admin.remove(&self.topology).await.expect("removed");
    }

    /// Deletes it, after it was made sure that it holds as many messages.
    async fn delete_with(self, messages: u64) {
        let info = self.admin.queue_info(&self.name).await.expect("told").expect("there");
        assert_eq!(info.ready, messages, "messages in the queue after the measurement");
        self.admin.remove(&self.topology).await.expect("removed");
    }
}
