//! What stands for encryption in a build without it: nothing that can be had.

use std::io;

use postrider_core::{Error, ErrorKind, Result};
use postrider_rabbitmq::Tls;
use tokio::net::TcpStream;

use crate::wire::Stream;

#[derive(Clone)]
pub(crate) enum Encryption {}

impl Encryption {
    pub(crate) fn new(_: &Tls, _: &str) -> Result<Self> {
        let why = "amqp10s:// needs the crate feature 'tls'";
        Err(Error::new(ErrorKind::Unsupported, "connect", why))
    }

    #[allow(clippy::unused_async)] // As the real one.
    pub(crate) async fn wrap(&self, _: TcpStream) -> Result<Box<dyn Stream>> {
        match *self {}
    }
}

pub(crate) const fn explain(_: &io::Error) -> Option<(ErrorKind, String)> {
    None
}
