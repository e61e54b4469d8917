//! The sides of a transfer, each for a process of its own: as a stream, and as plain messages by
//! lapin or fe2o3-amqp. In memory both sides are in one process.
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
use fe2o3_amqp_types::messaging::Data;
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Confirmation,
    options::{BasicAckOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use postrider_core::{Env, Queue, Topology, Transport};
use postrider_patterns::{ContentHash, Incoming, Outgoing, Running, StreamReceiver, StreamSender};
use postrider_transport_inmemory::InMemory;
use tokio::{
    io::{AsyncRead, AsyncSeek, ReadBuf},
    sync::mpsc,
};

use super::{Protocol, raw, raw_amqp10};

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
    /// As plain messages, each confirmed and acknowledged, by the client alone.
    Plain,
}

/// Runs one side of a transfer of `length` bytes, to its end.
///
/// # Panics
///
/// When it fails.
pub async fn run(role: Role, way: Way, protocol: Protocol, url: &str, name: &str, length: u64) {
    let start = resident("VmRSS:");
    // It is no part of what a transfer needs.
    block();
    let hash = match (way, role) {
        (Way::Stream, Role::Send) => {
            let transport = protocol.connect(url).await;
            println!("began");
            Some(send_stream(&transport, name, length).await)
        }
        (Way::Stream, Role::Receive) => {
            let transport = protocol.connect(url).await;
            let receiving = Receiving::start(&transport, name).await;
            println!("ready");
            let hash = receiving.hash().await;
            transport.close(CLOSE).await.expect("closed");
            Some(hash)
        }
        (Way::Plain, role) => {
            match (role, protocol) {
                (Role::Send, Protocol::Amqp091) => send_plain(url, name, length).await,
                (Role::Receive, Protocol::Amqp091) => receive_plain(url, name, length).await,
                (Role::Send, Protocol::Amqp10) => send_plain_amqp10(url, name, length).await,
                (Role::Receive, Protocol::Amqp10) => receive_plain_amqp10(url, name, length).await,
            }
            None
        }
    };
    tell_end(hash, start);
}

/// Transfers `length` bytes in memory, both sides in this process.
///
/// # Panics
///
/// When it fails, or when the two sides have different hashes.
pub async fn in_memory(name: &str, length: u64) {
    let start = resident("VmRSS:");
    block();
    let transport: Arc<dyn Transport> = Arc::new(InMemory::connect("memory://").expect("a broker"));
    let receiving = Receiving::start(&transport, name).await;
    println!("began");
    let sent = send_stream(&transport, name, length).await;
    let received = receiving.hash().await;
    assert_eq!(sent, received);
    tell_end(Some(sent), start);
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

async fn send_stream(transport: &Arc<dyn Transport>, name: &str, length: u64) -> ContentHash {
    let sender = StreamSender::builder(transport).chunk_size(CHUNK as u32).window(WINDOW.into());
    let sender = sender.connect().await.expect("a sender");
    let source = Outgoing::seekable(Source { length, position: 0 }).with_length(length);
    let receipt = sender.send(name, source).await.expect("a receipt");
    assert_eq!(receipt.length, length);
    receipt.hash
}

/// A receiver of one stream, whose bytes it drops.
struct Receiving {
    running: Running,
    told: mpsc::Receiver<ContentHash>,
}

impl Receiving {
    async fn start(transport: &Arc<dyn Transport>, name: &str) -> Self {
        let (tell, told) = mpsc::channel(1);
        let running = StreamReceiver::new(name)
            .window(WINDOW.into())
            .on(move |mut incoming: Incoming, _| {
                let tell = tell.clone();
                async move {
                    tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await?;
                    Ok(tell.send(incoming.hash().expect("it ended")).await?)
                }
            })
            .start(transport)
            .await
            .expect("a receiver");
        Self { running, told }
    }

    async fn hash(mut self) -> ContentHash {
        let hash = self.told.recv().await.expect("a stream");
        self.running.stop(CLOSE).await;
        hash
    }
}

/// The bytes at `offset` as the body of a plain message.
fn piece(offset: u64, length: u64) -> Vec<u8> {
    let size = CHUNK.min(length - offset) as usize;
    let mut body = Vec::with_capacity(size);
    while body.len() < size {
        body.extend_from_slice(bytes_at(offset + body.len() as u64, size - body.len()));
    }
    body
}

async fn send_plain(url: &str, name: &str, length: u64) {
    let connection = raw::connect(url).await;
    let channel = raw::confirm_channel(&connection).await;
    println!("began");
    let publish = async |offset: u64| {
        let body = piece(offset, length);
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

async fn send_plain_amqp10(url: &str, name: &str, length: u64) {
    let mut open = raw_amqp10::Open::connect(url).await;
    let mut sender = open.sender(name).await;
    println!("began");
    let pieces = (0..length).step_by(CHUNK as usize).map(|offset| piece(offset, length).into());
    raw_amqp10::publish_bodies(&mut sender, WINDOW.into(), pieces).await;
    sender.close().await.expect("closed");
    open.close().await;
}

async fn receive_plain_amqp10(url: &str, name: &str, length: u64) {
    let admin = Protocol::Amqp10.connect(url).await;
    let topology = Topology::new().queue(Queue::classic(name.to_owned()));
    admin.declare(&topology).await.expect("declared");
    let mut open = raw_amqp10::Open::connect(url).await;
    let mut receiver = open.receiver(name, WINDOW).await;
    println!("ready");
    let mut received = 0;
    while received < length {
        let delivery = receiver.recv::<Data>().await.expect("delivered");
        received += delivery.body().0.len() as u64;
        receiver.accept(&delivery).await.expect("accepted");
    }
    receiver.close().await.expect("closed");
    open.close().await;
    admin.remove(&topology).await.expect("removed");
}
