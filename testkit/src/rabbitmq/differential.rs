//! Generated programs on the in-memory broker and on RabbitMQ, for every transport that reaches it.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use postrider_core::{Env, Error, ErrorKind, Result};
use postrider_transport_inmemory::{Broker, InMemory};

use super::{Connect, Login, Release, address, credentials, failed, variable};
use crate::{
    differential::{self, Pair, Plan, Protocol},
    harness::{Connection, Fault, TestBroker, Wire},
    proxy::FaultProxy,
};

/// How many programs are run where the environment does not say: what two brokers do within about
/// two minutes.
const PROGRAMS: u64 = 400;

/// Runs programs on the in-memory broker and on a RabbitMQ, and compares what is seen; for a test of
/// its own for each release. [`Plan::from_env`] says how many. Transports should reconnect with pauses
/// of a second at most.
///
/// # Panics
///
/// As [`differential::run`], and when the environment does not say where the broker is.
pub fn compare(release: Release, protocol: Protocol, connect: Connect) {
    let where_it_is = variable(release.url_variable).and_then(|url| {
        let (user, password) = credentials(&url);
        Ok(RabbitMq { address: address(&url)?, user, password, connect })
    });
    let broker = where_it_is.unwrap_or_else(|error| panic!("{error}"));
    let name = format!("memory and {}", release.name);
    differential::run(&MemoryAndRabbitMq { name, broker, protocol }, Plan::from_env(PROGRAMS));
}

struct MemoryAndRabbitMq {
    name: String,
    broker: RabbitMq,
    protocol: Protocol,
}

#[async_trait]
impl Pair for MemoryAndRabbitMq {
    fn name(&self) -> &str {
        &self.name
    }

    async fn reference(&self) -> Result<Arc<dyn TestBroker>> {
        Ok(Arc::new(Memory(Broker::new(Env::system()))))
    }

    async fn subject(&self) -> Result<Arc<dyn TestBroker>> {
        Ok(Arc::new(self.broker.clone()))
    }

    fn protocol(&self) -> Protocol {
        self.protocol
    }
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

#[derive(Clone)]
struct RabbitMq {
    address: SocketAddr,
    user: String,
    password: String,
    connect: Connect,
}

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
        let proxy = FaultProxy::start(self.address).await;
        let proxy = proxy.map_err(|error| failed("starting a proxy", error))?;
        let login = Login {
            address: proxy.address(),
            user: self.user.clone(),
            password: self.password.clone(),
            virtual_host: "/".to_owned(),
            heartbeat: None,
        };
        let transport = (self.connect)(login).await?;
        Ok(Connection::new(transport, Arc::new(ProxyWire(proxy))))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        Err(unknown(fault))
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        Err(unknown(fault))
    }
}
