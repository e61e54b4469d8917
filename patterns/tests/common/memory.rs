//! The in-memory broker as suites that run on several brokers see it.

use std::sync::Arc;

use async_trait::async_trait;
use postrider_core::Result;
use postrider_testkit::harness::{Connection, Fault, TestBroker, Wire};
use postrider_transport_inmemory::{Broker, InMemory};

pub(crate) struct Memory(pub(crate) Broker);

#[async_trait]
impl TestBroker for Memory {
    async fn connect(&self) -> Result<Connection> {
        let transport = Arc::new(InMemory::connect_to(&self.0)?);
        Ok(Connection::new(transport.clone(), Arc::new(MemoryWire(transport))))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        assert_eq!(fault, Fault::Alarm);
        self.0.raise_alarm("low on memory");
        Ok(())
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        assert_eq!(fault, Fault::Alarm);
        self.0.clear_alarm();
        Ok(())
    }
}

struct MemoryWire(Arc<InMemory>);

#[async_trait]
impl Wire for MemoryWire {
    async fn cut(&self) -> Result<()> {
        self.0.drop_connection();
        Ok(())
    }
}
