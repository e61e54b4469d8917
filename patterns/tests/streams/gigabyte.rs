//! A gigabyte whose connections are closed on its way.

use std::{
    io,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use postrider_patterns::{Incoming, Outgoing, StreamReceiver, StreamSender};
use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    sync::mpsc,
    time::timeout,
};

use super::world::{SOON, World, payload};

const GIGABYTE: u64 = 1 << 30;

/// How long it may take on a machine that does other things too.
const LONG: Duration = Duration::from_secs(300);

/// What the bytes repeat: a prime number of them, so that no two chunks are alike.
static PERIOD: LazyLock<Bytes> = LazyLock::new(|| payload(1_000_003, 11));

/// The bytes from `offset` on that are there in one piece.
fn bytes_at(offset: u64) -> &'static [u8] {
    &PERIOD[(offset % PERIOD.len() as u64) as usize..]
}

/// A source that is read once and takes no memory.
struct Source(u64);

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = bytes_at(self.0);
        let most = (GIGABYTE - self.0).min(buffer.remaining() as u64) as usize;
        let bytes = &bytes[..bytes.len().min(most)];
        buffer.put_slice(bytes);
        self.0 += bytes.len() as u64;
        Poll::Ready(Ok(()))
    }
}

/// Reads to the end and compares each byte with what was sent; how many there were.
async fn compare(incoming: &mut Incoming) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    loop {
        let size = incoming.read(&mut buffer).await?;
        let mut read = &buffer[..size];
        if read.is_empty() {
            return Ok(offset);
        }
        while !read.is_empty() {
            let expected = bytes_at(offset);
            let (piece, rest) = read.split_at(read.len().min(expected.len()));
            if piece != &expected[..piece.len()] {
                return Err(io::Error::other(format!("other bytes than were sent after {offset}")));
            }
            offset += piece.len() as u64;
            read = rest;
        }
    }
}

pub(crate) async fn a_gigabyte_survives_five_closes(world: World) {
    let (sending, receiving) = (world.connect().await, world.connect().await);
    let (tell, mut told) = mpsc::channel(1);
    let receiver = StreamReceiver::new(world.service.clone())
        .on(move |mut incoming: Incoming, _context| {
            let tell = tell.clone();
            async move {
                let compared = compare(&mut incoming).await;
                Ok(tell.send((compared, incoming.hash())).await?)
            }
        })
        .start(&receiving.transport)
        .await
        .unwrap();
    let sender = StreamSender::new(&sending.transport).await.unwrap();
    let mut transfer = sender.start(&world.service, Outgoing::reader(Source(0))).unwrap();
    for round in 1..=5 {
        let mut progress = transfer.progress();
        let far = progress.wait_for(|progress| progress.bytes >= GIGABYTE / 6 * round);
        timeout(LONG, far).await.expect("it goes on").expect("the transfer lives");
        match round {
            1 | 4 => sending.cut().await,
            2 | 5 => receiving.cut().await,
            _ => {
                sending.cut().await;
                receiving.cut().await;
            }
        }
    }
    let receipt = timeout(LONG, transfer.finish()).await.expect("in time").unwrap();
    let (compared, hash) = told.recv().await.unwrap();
    assert_eq!(compared.unwrap(), GIGABYTE);
    assert_eq!((receipt.length, Some(receipt.hash)), (GIGABYTE, hash));
    receiver.stop(SOON).await;
}
