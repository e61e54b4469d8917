//! Turns a plain connection into an encrypted one. TLS begins at once, as RabbitMQ has it, and not by
//! the header of AMQP 1.0 part 5, section 5.2.

use postrider_core::Result;
use postrider_rabbitmq::{
    Tls,
    encryption::{client_config, server_name},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use crate::{error::of_io, wire::Stream};

pub(crate) use postrider_rabbitmq::encryption::explain;

/// The certificates of a connection, read and checked, and the name that the broker's must have.
#[derive(Clone)]
pub(crate) struct Encryption {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Encryption {
    pub(crate) fn new(tls: &Tls, host: &str) -> Result<Self> {
        Ok(Self { name: server_name(host)?, connector: client_config(tls)?.into() })
    }

    /// Encrypts a connection on which nothing was said yet.
    pub(crate) async fn wrap(&self, socket: TcpStream) -> Result<Box<dyn Stream>> {
        let encrypted = self.connector.connect(self.name.clone(), socket).await.map_err(of_io)?;
        Ok(Box::new(encrypted))
    }
}
