//! Opening a connection.

use std::{io, sync::Arc};

use fe2o3_amqp::connection::ConnectionHandle;
use postrider_core::{Env, Error, ErrorKind, Result};
use tokio::{
    net::{TcpStream, ToSocketAddrs},
    time::timeout,
};

use crate::{
    encryption::Encryption,
    error::{late, of_io, of_open},
    observed::Observed,
    profile::Profile,
    sasl,
    uri::Uri,
    wire::{Stream, Wire},
};

/// The largest frame, in bytes: what RabbitMQ takes. It tells of errors in frames that are larger
/// than a small limit allows.
const FRAME_MAX: u32 = 131_072;

/// A socket over which small frames leave at once. The system gathers them else, and waits up to 40 ms
/// for more.
async fn socket(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// How to connect.
#[derive(Clone)]
pub(crate) struct Dial {
    pub(crate) uri: Uri,
    pub(crate) encryption: Option<Encryption>,
    pub(crate) profile: Profile,
    pub(crate) name: String,
    pub(crate) limit: std::time::Duration,
    pub(crate) env: Env,
}

impl Dial {
    /// Opens a connection within its time limit.
    pub(crate) async fn connect(&self) -> Result<(ConnectionHandle<()>, Arc<Observed>)> {
        timeout(self.limit, self.open()).await.unwrap_or_else(|_| Err(late("connect")))
    }

    async fn open(&self) -> Result<(ConnectionHandle<()>, Arc<Observed>)> {
        let address = (&*self.uri.host, self.uri.port);
        let socket = socket(address).await.map_err(of_io)?;
        let mut stream: Box<dyn Stream> = match &self.encryption {
            Some(encryption) => encryption.wrap(socket).await?,
            None => Box::new(socket),
        };
        sasl::log_in(&mut stream, &self.uri).await?;
        let observed = Arc::new(Observed::default());
        let wire = Wire::new(stream, observed.clone());
        let hostname = match &self.uri.virtual_host {
            Some(name) => format!("vhost:{name}"),
            None => self.uri.host.clone(),
        };
        // Either side sends something within half of what the other waits for.
        let idle = u32::try_from(self.uri.heartbeat.as_millis()).unwrap_or(u32::MAX);
        let opened = fe2o3_amqp::Connection::builder()
            .container_id(self.name.clone())
            .hostname(&*hostname)
            .max_frame_size(FRAME_MAX)
            .idle_time_out(idle)
            .open_with_stream(wire)
            .await;
        match opened {
            Ok(handle) => Ok((handle, observed)),
            Err(error) if observed.is_turned_away() && observed.cause().is_none() => {
                // RabbitMQ closes the connection without a word.
                let why = "the broker knows the user and gave no reason to close the connection: \
                           there may be no such virtual host, or the user may not use it";
                Err(Error::new(ErrorKind::Unauthorized, "connect", why).with_source(error))
            }
            Err(error) => Err(of_open(error, observed.cause())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn small_frames_are_not_kept_back_by_the_system() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = socket(listener.local_addr().unwrap()).await.unwrap();
        assert!(socket.nodelay().unwrap());
    }
}
