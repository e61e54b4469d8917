//! Turns a plain connection into an encrypted one.
//!
//! lapin could do it by itself, but it reads the certificates anew for each connection, passes over
//! authorities that it cannot read, and needs some of the platform even where others are given.

use std::{io, sync::Arc};

use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use postrider_core::Result;
use postrider_rabbitmq::{
    Tls,
    encryption::{client_config, server_name},
};

pub(crate) use postrider_rabbitmq::encryption::explain;

/// The certificates of a connection, read and checked, and the host that must show its own.
#[derive(Clone)]
pub(crate) struct Encryption {
    connector: RustlsConnector,
    host: Arc<str>,
}

impl Encryption {
    pub(crate) fn new(tls: &Tls, host: &str) -> Result<Self> {
        server_name(host)?;
        Ok(Self { connector: client_config(tls)?.into(), host: host.into() })
    }

    /// Encrypts a connection on which nothing was said yet.
    pub(crate) async fn wrap<S>(&self, stream: AsyncTcpStream<S>) -> io::Result<AsyncTcpStream<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        stream.into_rustls(&self.connector, &self.host).await
    }
}
