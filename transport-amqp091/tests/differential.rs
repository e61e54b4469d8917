//! Generated programs on the in-memory broker and on RabbitMQ, on each broker that the environment
//! names; where they may differ is in `docs/differences.md`.
//!
//! `POSTRIDER_DIFFERENTIAL_PROGRAMS` is how many are run on each, and `POSTRIDER_DIFFERENTIAL_SEED`
//! runs the program of that seed again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use postrider_core::{Env, Error, ErrorKind, Result};
use postrider_testkit::{
    differential::{self, Pair, Plan},
    harness::{Connection, Fault, TestBroker, Wire},
    proxy::FaultProxy,
};
use postrider_transport_amqp091::{Amqp091, Options};
use postrider_transport_inmemory::{Broker, InMemory};

/// How many programs are run where the environment does not say: what two brokers do within about
/// two minutes.
const PROGRAMS: u64 = 400;

fn failed(what: &'static str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, "connect", format!("{what}: {error}"))
}

fn unknown(fault: Fault) -> Error {
    Error::new(ErrorKind::Unsupported, "inject", format!("programs have no fault {fault:?}"))
}

struct Memory(Broker);

struct MemoryWire(Arc<InMemory>);

#[async_trait]
impl Wire for MemoryWire {
    async fn cut(&self) -> Result<()> {
        self.0.drop_connection();
        Ok(())
    }
}

#[async_trait]
impl TestBroker for Memory {
    async fn connect(&self) -> Result<Connection> {
        let transport = Arc::new(InMemory::connect_to(&self.0)?);
        Ok(Connection::new(transport.clone(), Arc::new(MemoryWire(transport))))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        Err(unknown(fault))
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        Err(unknown(fault))
    }
}

struct RabbitMq(String);

struct ProxyWire(FaultProxy);

#[async_trait]
impl Wire for ProxyWire {
    async fn cut(&self) -> Result<()> {
        self.0.cut();
        Ok(())
    }
}

#[async_trait]
impl TestBroker for RabbitMq {
    /// Each connection goes through a proxy of its own, which can break it.
    async fn connect(&self) -> Result<Connection> {
        let (head, host) = self.0.rsplit_once('@').unwrap_or(("amqp://guest:guest", &self.0));
        let server: SocketAddr = host
            .trim_end_matches('/')
            .parse()
            .map_err(|error| failed("the broker's URL needs an address and a port", error))?;
        let proxy = FaultProxy::start(server).await.map_err(|error| failed("no proxy", error))?;
        let options = Options::default().with_reconnect_pause(Duration::from_secs(1));
        let url = format!("{head}@{}", proxy.address());
        let transport = Arc::new(Amqp091::connect_with(&url, options).await?);
        Ok(Connection::new(transport, Arc::new(ProxyWire(proxy))))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        Err(unknown(fault))
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        Err(unknown(fault))
    }
}

struct MemoryAndRabbitMq {
    name: &'static str,
    url: String,
}

#[async_trait]
impl Pair for MemoryAndRabbitMq {
    fn name(&self) -> &str {
        self.name
    }

    async fn reference(&self) -> Result<Arc<dyn TestBroker>> {
        Ok(Arc::new(Memory(Broker::new(Env::system()))))
    }

    async fn subject(&self) -> Result<Arc<dyn TestBroker>> {
        Ok(Arc::new(RabbitMq(self.url.clone())))
    }
}

fn compare(name: &'static str, variable: &str) {
    let url = std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set; start the brokers by `eval \"$(scripts/brokers up --all)\"`")
    });
    differential::run(&MemoryAndRabbitMq { name, url }, Plan::from_env(PROGRAMS));
}

#[test]
fn memory_and_rabbitmq_4_3_do_the_same() {
    compare("memory and rabbitmq-4.3", "POSTRIDER_AMQP_URL");
}

#[test]
fn memory_and_rabbitmq_4_0_do_the_same() {
    compare("memory and rabbitmq-4.0", "POSTRIDER_AMQP_URL_40");
}
