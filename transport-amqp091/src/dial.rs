//! Opening the two connections of a session.

use std::{
    io,
    net::Shutdown,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{AsyncRead, AsyncWrite, future};
use lapin::{
    Connection, ConnectionProperties,
    tcp::{AMQPUriTcpExt, AsyncTcpStream, TLSConfig},
    uri::AMQPUri,
};
use postrider_core::Result;
use postrider_rabbitmq::Version;
use socket2::SockRef;
use tokio::time::timeout;

use crate::{
    encryption::Encryption,
    error::{late, translate},
    session::{Listener, Session, close_connection},
};

/// Shuts the socket of a connection when it is dropped, whatever the client library does with it: a
/// connection that the broker closes in the moment it is opened is left open and unread by it.
pub(crate) struct Socket(socket2::Socket);

impl Drop for Socket {
    fn drop(&mut self) {
        // Mostly it is closed already, which is an error to the system.
        let _closed = self.0.shutdown(Shutdown::Both);
    }
}

/// How to connect.
#[derive(Clone)]
pub(crate) struct Dial {
    pub(crate) uri: AMQPUri,
    pub(crate) encryption: Option<Encryption>,
    pub(crate) name: String,
    pub(crate) limit: Duration,
}

impl Dial {
    async fn connect(&self, role: &str) -> Result<(Connection, Socket)> {
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{} ({role})", self.name).into())
            .with_client_property("product".into(), "Postrider".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let runtime =
            lapin::runtime::default_runtime().map_err(|error| translate("connect", error))?;
        let connecting = async {
            // Before the client library is asked: it leaves tasks behind for each connection that
            // cannot be opened, which would add up while a broker is down.
            let stream = self.uri.connect_with_config_async(TLSConfig::default(), &runtime).await?;
            let AsyncTcpStream::Plain(plain) = &stream else {
                return Err(io::Error::from(io::ErrorKind::Unsupported).into());
            };
            let socket = Socket(SockRef::from(plain.get_ref()).try_clone()?);
            let stream = Mutex::new(Some(self.encrypt(stream).await?));
            let open = async move |_: AMQPUri, _| {
                let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                Ok(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?)
            };
            let opened = Connection::connector(self.uri.clone(), runtime.clone(), open, properties);
            Ok::<_, lapin::Error>((opened.await?, socket))
        };
        timeout(self.limit, connecting)
            .await
            .map_err(|_| late("connect"))?
            .map_err(|error| translate("connect", error))
    }

    /// Encrypts a connection on which nothing was said yet, where the URL wants it.
    pub(crate) async fn encrypt<S>(
        &self,
        stream: AsyncTcpStream<S>,
    ) -> io::Result<AsyncTcpStream<S>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match &self.encryption {
            Some(encryption) => encryption.wrap(stream).await,
            None => Ok(stream),
        }
    }

    /// Opens both connections.
    pub(crate) async fn session(
        &self,
        epoch: u64,
        version: Version,
    ) -> Result<(Arc<Session>, Listener)> {
        let (publishing, consuming) =
            future::join(self.connect("publishing"), self.connect("consuming")).await;
        let (publishing, consuming) = match (publishing, consuming) {
            (Ok(publishing), Ok(consuming)) => (publishing, consuming),
            (Ok((lonely, _socket)), Err(error)) | (Err(error), Ok((lonely, _socket))) => {
                close_connection(&lonely).await;
                return Err(error);
            }
            (Err(error), Err(_)) => return Err(error),
        };
        let ((publishing, one), (consuming, other)) = (publishing, consuming);
        let listener = Listener::new(&publishing, &consuming);
        let session = Session::new(epoch, version, publishing, consuming, [one, other]);
        Ok((Arc::new(session), listener))
    }
}
