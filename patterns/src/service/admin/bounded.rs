//! A socket that takes a bounded number of connections, each for a bounded time.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How many connections there are at once. Further ones wait in the backlog of the socket.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection, which is for one question, may take.
const LONGEST: Duration = Duration::from_secs(10);

pub(super) struct Bounded {
    socket: TcpListener,
    places: Arc<Semaphore>,
    /// Cuts what is connected.
    cut: CancellationToken,
}

impl Bounded {
    pub(super) fn new(socket: TcpListener, cut: CancellationToken) -> Self {
        Self { socket, places: Arc::new(Semaphore::new(MOST_CONNECTIONS)), cut }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let (stream, address) = Listener::accept(&mut self.socket).await;
        let cut = self.cut.clone().cancelled_owned();
        let end = Box::pin(async move {
            // Whichever it is, it is the end.
            let _time_is_up = timeout(LONGEST, cut).await;
        });
        // The semaphore is never closed.
        (Connection { stream, end, has_ended: false, _place: place.ok() }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// A connection that fails once its time is up.
pub(super) struct Connection {
    stream: TcpStream,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_ended: bool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    fn alive(&mut self, task: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        self.has_ended = self.has_ended || self.end.as_mut().poll(task).is_ready();
        if self.has_ended {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Pin::new(&mut self.stream))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive(task)?.poll_read(task, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.alive(task)?.poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(task)?.poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}
