//! What stands for encryption in a build without it: nothing that can be had.

use std::io;

use lapin::tcp::AsyncTcpStream;
use postrider_core::{Error, ErrorKind, Result};

use postrider_rabbitmq::Tls;

#[derive(Clone)]
pub(crate) enum Encryption {}

impl Encryption {
    pub(crate) fn new(_: &Tls, _: &str) -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, "connect", "amqps:// needs the crate feature 'tls'"))
    }

    #[allow(clippy::unused_async)] // As the real one.
    pub(crate) async fn wrap<S>(&self, _: AsyncTcpStream<S>) -> io::Result<AsyncTcpStream<S>>
    where
        S: futures_util::AsyncRead + futures_util::AsyncWrite + Send + Unpin + 'static,
    {
        match *self {}
    }
}

pub(crate) fn explain(_: &io::Error) -> Option<(ErrorKind, String)> {
    None
}
