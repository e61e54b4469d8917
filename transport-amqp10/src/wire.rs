//! The stream under a connection: what the client library cannot be asked for is read off the frames
//! that pass, and one link is renamed in them.
//!
//! RabbitMQ's management wants two links of one name in one session, which AMQP allows and
//! fe2o3-amqp 0.18.4 does not: it keys links by their name alone. So the second has another name on
//! this side. What else is changed stands in `frames.rs` and `sections.rs`, and makes frames longer:
//! the limits that each side tells the other leave room for it.
//!
//! Frames: AMQP 1.0 part 2, section 2.3. Performatives: part 2, section 2.7.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf, split},
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::io::poll_read_buf;

use crate::{
    frames::{Direction, Frames},
    observed::Observed,
};

/// How much may wait to be written before the client library is held back, in bytes.
const UNWRITTEN: usize = 256 * 1024;

/// How much is read at once, in bytes.
const READ: usize = 64 * 1024;

/// How long what was written before the end may take to leave.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// What a connection is made over: a socket, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// The client library's end of a stream. What it writes is gathered and written by a task of its
/// own, so that one call to the system takes all frames that are there.
pub(crate) struct Wire {
    reader: ReadHalf<Box<dyn Stream>>,
    incoming: Frames,
    outgoing: Frames,
    unwritten: Arc<Unwritten>,
    observed: Arc<Observed>,
}

#[derive(Default)]
struct Unwritten {
    state: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    bytes: BytesMut,
    /// Of the client library, when too much waits.
    waker: Option<Waker>,
    /// Nothing more will come.
    closed: bool,
    failure: Option<io::ErrorKind>,
}

impl Unwritten {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.state().closed = true;
        self.wake.notify_one();
    }

    /// Takes what waits; `None` at the end. Cancellation safe.
    async fn take(&self) -> Option<BytesMut> {
        loop {
            {
                let mut state = self.state();
                if !state.bytes.is_empty() {
                    if let Some(waker) = state.waker.take() {
                        waker.wake();
                    }
                    return Some(state.bytes.split());
                }
                if state.closed {
                    return None;
                }
            }
            self.wake.notified().await;
        }
    }

    /// Waits until nothing more will come. Cancellation safe.
    async fn closed(&self) {
        while !self.state().closed {
            self.wake.notified().await;
        }
        // It was not for this one alone.
        self.wake.notify_one();
    }

    fn fail(&self, error: &io::Error) {
        let mut state = self.state();
        state.failure = Some(error.kind());
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl Wire {
    /// Begins to carry frames over `stream`. What is seen is noted in `observed`, also its end.
    pub(crate) fn new(stream: Box<dyn Stream>, observed: Arc<Observed>) -> Self {
        let (reader, writer) = split(stream);
        let unwritten = Arc::new(Unwritten::default());
        tokio::spawn(write(writer, unwritten.clone()));
        Self {
            reader,
            incoming: Frames::new(Direction::Incoming),
            outgoing: Frames::new(Direction::Outgoing),
            unwritten,
            observed,
        }
    }
}

async fn write(mut writer: WriteHalf<Box<dyn Stream>>, unwritten: Arc<Unwritten>) {
    while let Some(bytes) = unwritten.take().await {
        // A peer that takes nothing any more must not keep this when the connection is given up.
        let given_up = async {
            unwritten.closed().await;
            sleep(LAST_WRITE).await;
        };
        let writing = async {
            writer.write_all(&bytes).await?;
            // What is encrypted may wait for the socket.
            writer.flush().await
        };
        let written = tokio::select! {
            biased;
            written = writing => written,
            () = given_up => return,
        };
        if let Err(error) = written {
            unwritten.fail(&error);
            return;
        }
    }
    let _closed = timeout(LAST_WRITE, writer.shutdown()).await;
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.incoming.ready() == 0 {
            let buffer = this.incoming.buffer(READ);
            if ready!(poll_read_buf(Pin::new(&mut this.reader), cx, buffer))? == 0 {
                return Poll::Ready(Ok(()));
            }
            this.incoming.scan(&this.observed)?;
        }
        let count = this.incoming.ready().min(buffer.remaining());
        buffer.put_slice(&this.incoming.take(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut state = this.unwritten.state();
        if let Some(failure) = state.failure {
            return Poll::Ready(Err(failure.into()));
        }
        if state.bytes.len() >= UNWRITTEN {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        this.outgoing.buffer(bytes.len()).extend_from_slice(bytes);
        this.outgoing.scan(&this.observed)?;
        let count = this.outgoing.ready();
        let first = state.bytes.is_empty() && count > 0;
        state.bytes.unsplit(this.outgoing.take(count));
        drop(state);
        if first {
            this.unwritten.wake.notify_one();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// What was written is on its way, and whether it arrives is told by what comes back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let failure = self.unwritten.state().failure;
        Poll::Ready(failure.map_or(Ok(()), |failure| Err(failure.into())))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unwritten.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.unwritten.close();
        self.observed.end();
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}
