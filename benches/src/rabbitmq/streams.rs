//! The sides of a transfer, each for a process of its own: as a stream, and as plain messages by
//! lapin.
//!
//! A receiver prints `ready`, a sender `began`, and either when it is done `ended`, the hash where
//! there is one, and its resident memory in KiB: at its start and the most.

use std::{
    fs, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Confirmation,
    options::{BasicAckOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use postrider_core::{Env, Transport};
use postrider_patterns::{ContentHash, Incoming, Outgoing, StreamReceiver, StreamSender};
use postrider_transport_amqp091::Amqp091;
use tokio::{
    io::{AsyncRead, AsyncSeek, ReadBuf},
    sync::mpsc,
};

use super::raw;

/// The bytes of a chunk, and of a plain message.
pub const CHUNK: u64 = 256 * 1024;

/// How many chunks, or plain messages, are under way.
const WINDOW: u16 = 16;

const CLOSE: Duration = Duration::from_secs(10);

/// What the bytes repeat: a prime, so that no two chunks are alike.
const PERIOD: usize = 1_000_003;

/// The same bytes for each transfer.
fn block() -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let env = Env::simulated(7);
        let words = std::iter::repeat_with(|| env.random().to_le_bytes());
        words.flatten().take(PERIOD).collect()
    })
}

/// As many of the bytes at `offset` as are there in one piece, at most `most`.
fn bytes_at(offset: u64, most: usize) -> &'static [u8] {
    let from = (offset % PERIOD as u64) as usize;
    let rest = &block()[from..];
    &rest[..rest.len().min(most)]
}

/// A source of `length` bytes that takes no memory.
struct Source {
    length: u64,
    position: u64,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = (self.length - self.position).min(buffer.remaining() as u64);
        let bytes = bytes_at(self.position, most as usize);
        buffer.put_slice(bytes);
        self.position += bytes.len() as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for Source {
    fn start_seek(mut self: Pin<&mut Self>, position: io::SeekFrom) -> io::Result<()> {
        let io::SeekFrom::Start(offset) = position else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.position = offset.min(self.length);
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that has the bytes.
    Send,
    /// The one that gets them.
    Receive,
}

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As a stream.
    Stream,
    /// As plain messages, each confirmed and acknowledged, by lapin.
    Plain,
}

/// Runs one side of a transfer of `length` bytes, to its end.
///
/// # Panics
///
/// When it fails.
pub async fn run(role: Role, way: Way, url: &str, name: &str, length: u64) {
    let start = resident("VmRSS:");
    // It is no part of what a transfer needs.
    block();
    let hash = match (way, role) {
        (Way::Stream, Role::Send) => Some(send_stream(url, name, length).await),
        (Way::Stream, Role::Receive) => return receive_stream(url, name, start).await,
        (Way::Plain, Role::Send) => {
            send_plain(url, name, length).await;
            None
        }
        (Way::Plain, Role::Receive) => {
            receive_plain(url, name, length).await;
            None
        }
    };
    tell_end(hash, start);
}

fn tell_end(hash: Option<ContentHash>, start: u64) {
    let hash = hash.map_or_else(|| "-".to_owned(), |hash| hash.to_string());
    println!("ended {hash} {start} {}", resident("VmHWM:"));
}

/// Resident memory in KiB, as Linux tells.
fn resident(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with(what)).expect("a resident size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

async fn connect(url: &str) -> Arc<dyn Transport> {
    Arc::new(Amqp091::connect(url).await.expect("a broker at POSTRIDER_AMQP_URL"))
}

async fn send_stream(url: &str, name: &str, length: u64) -> ContentHash {
    let transport = connect(url).await;
    let sender = StreamSender::builder(&transport).chunk_size(CHUNK as u32).window(WINDOW.into());
    let sender = sender.connect().await.expect("a sender");
    println!("began");
    let source = Outgoing::seekable(Source { length, position: 0 }).with_length(length);
    let receipt = sender.send(name, source).await.expect("a receipt");
    assert_eq!(receipt.length, length);
    receipt.hash
}

async fn receive_stream(url: &str, name: &str, start: u64) {
    let transport = connect(url).await;
    let (tell, mut told) = mpsc::channel(1);
    let receiver = StreamReceiver::new(name)
        .window(WINDOW.into())
        .on(move |mut incoming: Incoming, _| {
            let tell = tell.clone();
            async move {
                tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await?;
                Ok(tell.send(incoming.hash()).await?)
            }
        })
        .start(&transport)
        .await
        .expect("a receiver");
    println!("ready");
    let hash = told.recv().await.expect("a stream");
    tell_end(hash, start);
    receiver.stop(CLOSE).await;
    transport.close(CLOSE).await.expect("closed");
}

async fn send_plain(url: &str, name: &str, length: u64) {
    let connection = raw::connect(url).await;
    let channel = raw::confirm_channel(&connection).await;
    println!("began");
    let publish = async |offset: u64| {
        let size = CHUNK.min(length - offset) as usize;
        let mut body = Vec::with_capacity(size);
        while body.len() < size {
            body.extend_from_slice(bytes_at(offset + body.len() as u64, size - body.len()));
        }
        let properties = BasicProperties::default();
        let sent = channel.basic_publish("".into(), name.into(), raw::MANDATORY, &body, properties);
        sent.await.expect("sent").await.expect("confirmed")
    };
    let mut under_way = FuturesUnordered::new();
    for offset in (0..length).step_by(CHUNK as usize) {
        if under_way.len() == usize::from(WINDOW)
            && let Some(confirmation) = under_way.next().await
        {
            assert_eq!(confirmation, Confirmation::Ack(None));
        }
        under_way.push(publish(offset));
    }
    while let Some(confirmation) = under_way.next().await {
        assert_eq!(confirmation, Confirmation::Ack(None));
    }
    drop(under_way);
    raw::close(&connection).await;
}

async fn receive_plain(url: &str, name: &str, length: u64) {
    let connection = raw::connect(url).await;
    let channel = connection.create_channel().await.expect("a channel");
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(name.into(), options, FieldTable::default());
    declared.await.expect("declared");
    let (acks, mut consumer) = raw::consumer(&connection, name, WINDOW).await;
    println!("ready");
    let mut received = 0;
    while received < length {
        let delivery = consumer.next().await.expect("goes on").expect("delivered");
        received += Bytes::from(delivery.data).len() as u64;
        acks.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.expect("acked");
    }
    let deleted = channel.queue_delete(name.into(), QueueDeleteOptions::default());
    deleted.await.expect("deleted");
    raw::close(&connection).await;
}
