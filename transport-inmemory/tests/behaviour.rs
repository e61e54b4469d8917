//! The behaviour suite on the in-memory broker, on virtual and on real time.
//!
//! `cargo test -p postrider-transport-inmemory --test behaviour -- priority` runs what has
//! `priority` in its name, and `-- memory-virtual` what runs on virtual time.

use std::{process::ExitCode, sync::Arc};

use async_trait::async_trait;
use postrider_core::{Env, Error, ErrorKind, Result};
use postrider_testkit::{
    behaviour,
    harness::{Clock, Connection, Fault, Harness, TestBroker, Wire},
};
use postrider_transport_inmemory::{Broker, InMemory};

/// What the simulated runs begin from; any number is as good.
const SEED: u64 = 20_260_101;

#[derive(Debug)]
struct Memory(Clock);

#[async_trait]
impl Harness for Memory {
    fn name(&self) -> &str {
        match self.0 {
            Clock::Virtual => "memory-virtual",
            Clock::Real => "memory-real",
        }
    }

    fn clock(&self) -> Clock {
        self.0
    }

    fn faults(&self) -> &[Fault] {
        &[Fault::ConnectionLoss, Fault::Alarm, Fault::HeldConfirms, Fault::Outage]
    }

    /// Each behaviour has a broker of its own, because a broker keeps the time of one runtime.
    async fn broker(&self, _faults: &[Fault]) -> Result<Arc<dyn TestBroker>> {
        let env = match self.0 {
            Clock::Virtual => Env::simulated(SEED),
            Clock::Real => Env::system(),
        };
        Ok(Arc::new(MemoryBroker(Broker::new(env))))
    }
}

struct MemoryBroker(Broker);

#[async_trait]
impl TestBroker for MemoryBroker {
    async fn connect(&self) -> Result<Connection> {
        let transport = Arc::new(InMemory::connect_to(&self.0)?);
        Ok(Connection::new(transport.clone(), Arc::new(MemoryWire(transport))))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Alarm => self.0.raise_alarm("low on memory"),
            Fault::HeldConfirms => self.0.hold_confirms(),
            Fault::Outage => self.0.stop(),
            other => return Err(unknown(other)),
        }
        Ok(())
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Alarm => self.0.clear_alarm(),
            Fault::HeldConfirms => self.0.release_confirms(),
            Fault::Outage => self.0.start(),
            other => return Err(unknown(other)),
        }
        Ok(())
    }
}

fn unknown(fault: Fault) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "inject",
        format!("the in-memory broker knows no fault {fault:?}"),
    )
}

struct MemoryWire(Arc<InMemory>);

#[async_trait]
impl Wire for MemoryWire {
    async fn cut(&self) -> Result<()> {
        self.0.drop_connection();
        Ok(())
    }
}

fn main() -> ExitCode {
    behaviour::main(&[Arc::new(Memory(Clock::Virtual)), Arc::new(Memory(Clock::Real))])
}
