//! What the functions of the suite use.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use postrider_core::{Env, Transport};
use postrider_patterns::{ContentHash, Incoming, Progress, Running, StreamReceiver, StreamSender};
use postrider_testkit::harness::{Connection, TestBroker};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncSeek, ReadBuf},
    sync::{mpsc, watch},
    time::timeout,
};

/// How long anything may take that is not to wait for a timeout of its own.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const CHUNK: usize = 16 * 1024;

/// A broker, a service that nobody else has, and a directory.
pub(crate) struct World {
    pub(crate) broker: Arc<dyn TestBroker>,
    pub(crate) service: String,
    directory: TempDir,
}

impl World {
    pub(crate) fn new(broker: Arc<dyn TestBroker>) -> Self {
        let service = format!("archive-{}", Env::system().new_id());
        Self { broker, service, directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.broker.connect().await.unwrap()
    }

    pub(crate) async fn sender(&self, transport: &Arc<dyn Transport>) -> StreamSender {
        let builder = StreamSender::builder(transport).chunk_size(CHUNK as u32);
        builder.connect().await.unwrap()
    }

    /// A receiver that reads each stream to its end and says what it was.
    pub(crate) async fn reader(&self, transport: &Arc<dyn Transport>) -> (Running, Reads) {
        let (tell, reads) = mpsc::channel(64);
        let receiver = StreamReceiver::new(self.service.clone()).on(move |incoming, _context| {
            let tell = tell.clone();
            async move {
                let read = read_all(incoming).await;
                let failed = read.as_ref().err().map(io::Error::kind);
                tell.send(read).await?;
                failed.map_or(Ok(()), |kind| Err(io::Error::from(kind).into()))
            }
        });
        (receiver.start(transport).await.unwrap(), reads)
    }

    /// A receiver that saves each stream under one name, and tells of each before it does.
    pub(crate) async fn saver(
        &self,
        transport: &Arc<dyn Transport>,
    ) -> (Running, mpsc::Receiver<watch::Receiver<Progress>>) {
        let (tell, saves) = mpsc::channel(64);
        let target = self.target();
        let receiver =
            StreamReceiver::new(self.service.clone()).on(move |incoming: Incoming, _context| {
                let (tell, target) = (tell.clone(), target.clone());
                async move {
                    tell.send(incoming.progress()).await?;
                    incoming.save_to(target).await?;
                    Ok(())
                }
            });
        (receiver.start(transport).await.unwrap(), saves)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where [`saver`](Self::saver) saves to.
    pub(crate) fn target(&self) -> PathBuf {
        self.directory().join("film.mp4")
    }

    /// The names in the directory, in order.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory()).unwrap();
        let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries.map(|entry| name(entry).into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub(crate) type Reads = mpsc::Receiver<io::Result<Read>>;

/// A stream that was read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) name: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) length: Option<u64>,
    pub(crate) body: Vec<u8>,
}

async fn read_all(mut incoming: Incoming) -> io::Result<Read> {
    let mut body = Vec::new();
    assert_eq!(incoming.hash(), None);
    incoming.read_to_end(&mut body).await?;
    assert_eq!(incoming.hash(), Some(ContentHash::of(&body)));
    Ok(Read {
        name: incoming.name().map(str::to_owned),
        content_type: incoming.content_type().map(str::to_owned),
        metadata: incoming.metadata().clone().into_iter().collect(),
        length: incoming.length(),
        body,
    })
}

/// Bytes without a pattern, the same for the same seed.
pub(crate) fn payload(length: usize, seed: u64) -> Bytes {
    let env = Env::simulated(seed);
    let words = std::iter::repeat_with(|| env.random().to_le_bytes());
    words.flatten().take(length).collect()
}

/// Waits until a transfer has come as far as `bytes`.
pub(crate) async fn comes_to(progress: &mut watch::Receiver<Progress>, bytes: u64) {
    let waiting = timeout(SOON, progress.wait_for(|progress| progress.bytes >= bytes));
    waiting.await.expect("it goes on").expect("the transfer lives");
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("in time")
}

/// A source that gives no more than it is let, and notes how much was asked of it.
#[derive(Clone)]
pub(crate) struct Gated {
    data: Bytes,
    position: u64,
    gate: Gate,
}

#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    open_to: u64,
    read: u64,
    waker: Option<Waker>,
}

impl Gate {
    pub(crate) fn open_to(&self, bytes: u64) {
        let mut state = self.0.lock().unwrap();
        state.open_to = bytes;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// The most that was read, from the start.
    pub(crate) fn read(&self) -> u64 {
        self.0.lock().unwrap().read
    }
}

pub(crate) fn gated(data: Bytes) -> (Gated, Gate) {
    let gate = Gate::default();
    (Gated { data, position: 0, gate: gate.clone() }, gate)
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.gate.clone();
        let mut state = gate.0.lock().unwrap();
        let end = state.open_to.min(self.data.len() as u64);
        if self.position >= end && end < self.data.len() as u64 {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let size = (end - self.position).min(buffer.remaining() as u64);
        let from = self.position as usize;
        buffer.put_slice(&self.data[from..from + size as usize]);
        self.position += size;
        state.read = state.read.max(self.position);
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for Gated {
    fn start_seek(mut self: Pin<&mut Self>, position: io::SeekFrom) -> io::Result<()> {
        match position {
            io::SeekFrom::Start(offset) => self.position = offset,
            other => panic!("a sender has no need of {other:?}"),
        }
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}
