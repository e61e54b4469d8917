//! What passes between client and broker when many messages are acknowledged, on each broker that the
//! environment names.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use postrider_core::{
    Address, ConsumerOptions, Env, Envelope, Message, PublisherOptions, Queue, Topology, Transport,
};
use postrider_transport_amqp10::Amqp10;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// How a frame with a disposition begins, after its header: AMQP 1.0 part 2, section 2.7.6.
const DISPOSITION: [u8; 3] = [0x00, 0x53, 0x15];

/// How long a frame's header is, in bytes.
const HEADER: usize = 8;

/// Passes what one client says and counts its dispositions.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: Arc<AtomicUsize>) {
    let mut header = [0; HEADER];
    while from.read_exact(&mut header).await.is_ok() {
        let [a, b, c, d, ..] = header;
        // Headers of the protocol are as long as those of frames.
        let size = if header.starts_with(b"AMQP") { 8 } else { u32::from_be_bytes([a, b, c, d]) };
        let mut body = vec![0; size as usize - HEADER];
        from.read_exact(&mut body).await.expect("a whole frame");
        if body.starts_with(&DISPOSITION) {
            count.fetch_add(1, Ordering::AcqRel);
        }
        to.write_all(&header).await.expect("the broker takes it");
        to.write_all(&body).await.expect("the broker takes it");
    }
}

/// Listens for one client of the broker; gives the port and the count of its dispositions.
async fn counting(broker: String) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.expect("a client");
        let server = TcpStream::connect(broker).await.expect("the broker");
        let (from_client, mut to_client) = client.into_split();
        let (mut from_server, to_server) = server.into_split();
        tokio::spawn(pass(from_client, to_server, counted));
        let _ended = copy(&mut from_server, &mut to_client).await;
    });
    (port, count)
}

#[tokio::test]
async fn many_acks_are_told_in_few_frames() {
    const MESSAGES: usize = 2_000;
    const PREFETCH: u16 = 200;
    for variable in ["POSTRIDER_AMQP10_URL", "POSTRIDER_AMQP10_URL_40"] {
        let url = env::var(variable).unwrap_or_else(|_| {
            panic!("{variable} is not set; run eval \"$(scripts/brokers up --all)\" first")
        });
        let (credentials, broker) = url.rsplit_once('@').expect("a user in the URL");
        let (port, count) = counting(broker.to_owned()).await;
        let url = format!("{credentials}@127.0.0.1:{port}");
        let transport = Amqp10::connect(&url).await.expect("a connection");
        let queue = format!("test-dispositions-{}", Env::system().new_id());
        let topology = Topology::new().queue(Queue::durable(queue.clone()));
        transport.declare(&topology).await.expect("a queue");
        let publisher =
            transport.publisher(PublisherOptions::default()).await.expect("a publisher");
        let envelopes = (0..MESSAGES).map(|number| {
            Envelope::new(Address::queue(queue.clone()), Message::new(number.to_string()))
        });
        for confirm in publisher.send_batch(envelopes.collect()).await.expect("sent") {
            confirm.await.into_result().expect("stored");
        }
        let options = ConsumerOptions::default().with_prefetch(PREFETCH);
        let mut consumer = transport.consumer(&queue, options).await.expect("a consumer");
        let before = count.load(Ordering::Acquire);
        for _ in 0..MESSAGES {
            let delivery = timeout(PATIENCE, consumer.recv()).await.expect("in time");
            delivery.expect("it goes on").expect("a delivery").ack();
        }
        drop(consumer);
        let settled = async {
            loop {
                let info = transport.queue_info(&queue).await.expect("an answer");
                if info.is_some_and(|info| info.ready == 0 && info.consumers == 0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, settled).await.expect("all are settled in time");
        let told = count.load(Ordering::Acquire) - before;
        assert!(told >= 1, "the broker was told");
        assert!(told <= MESSAGES / 20, "{MESSAGES} acks took {told} dispositions");
        transport.remove(&topology).await.expect("removed");
        transport.close(PATIENCE).await.expect("closed");
    }
}
