//! Who asks: so many at once, and each only while it says something.

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
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How many connections there are at once; more wait to be taken.
pub(super) const MOST: usize = 64;

/// How long a connection may say nothing until it is closed.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// A socket that takes connections one after the other.
pub(super) struct Guests {
    socket: TcpListener,
    places: Arc<Semaphore>,
    ended: CancellationToken,
}

impl Guests {
    /// No connection is asked for more once `ended` is cancelled.
    pub(super) fn new(socket: TcpListener, ended: CancellationToken) -> Self {
        Self { socket, places: Arc::new(Semaphore::new(MOST)), ended }
    }
}

impl Listener for Guests {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.socket).await;
        let silence = Box::pin(sleep(PATIENCE));
        let ended = Box::pin(self.ended.clone().cancelled_owned());
        (Guest { stream, silence, ended, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// A connection.
pub(super) struct Guest {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.silence.set(sleep(PATIENCE));
            return read;
        }
        let is_over = self.ended.as_mut().poll(context).is_ready()
            || self.silence.as_mut().poll(context).is_ready();
        // Nothing read is the end of what it says; what it asked before is still answered.
        if is_over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
