//! Stream queues of RabbitMQ: read from any position, and read on after a loss.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::StreamExt;
use postrider_core::{
    Address, Consumer, ConsumerOptions, Delivery, Envelope, ErrorKind, Message, Publisher,
    PublisherExt, PublisherOptions, Queue, StreamStart, Topology, Transport, TransportEvent,
};
use postrider_testkit::proxy::FaultProxy;
use postrider_transport_amqp091::Amqp091;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// A stream on each broker that runs.
struct Stream {
    transport: Amqp091,
    url: String,
    topology: Topology,
    name: String,
    publisher: Arc<dyn Publisher>,
}

impl Stream {
    async fn each() -> Vec<Self> {
        let mut streams = Vec::new();
        let variables = ["POSTRIDER_AMQP_URL", "POSTRIDER_AMQP_URL_40"];
        for url in variables.iter().filter_map(|name| std::env::var(name).ok()) {
            let transport = Amqp091::connect(&url).await.expect("a connection");
            let name = format!("test-stream-{}", transport.env().new_id());
            let topology = Topology::new().queue(Queue::stream(name.clone()));
            transport.declare(&topology).await.expect("a stream");
            let options = PublisherOptions::default();
            let publisher = transport.publisher(options).await.expect("a publisher");
            streams.push(Self { transport, url, topology, name, publisher });
        }
        assert!(!streams.is_empty(), "no broker; run: eval \"$(scripts/brokers up --all)\"");
        streams
    }

    async fn publish(&self, numbers: std::ops::Range<u64>) {
        for n in numbers {
            let message = Message::new(n.to_string());
            let envelope = Envelope::new(Address::queue(self.name.clone()), message);
            self.publisher.publish(envelope).await.expect("a publish to a stream");
        }
    }

    async fn read(&self, start: StreamStart) -> Consumer {
        let options = ConsumerOptions::default().with_prefetch(5).starting_at(start);
        self.transport.consumer(&self.name, options).await.expect("a reader")
    }

    async fn remove(self) {
        self.transport.remove(&self.topology).await.expect("removing");
        self.transport.close(Duration::from_secs(5)).await.expect("closing");
    }
}

async fn next(reader: &mut Consumer) -> Delivery {
    let delivery = timeout(SOON, reader.recv()).await.expect("in time");
    delivery.expect("it goes on").expect("a delivery")
}

/// Checks that the next deliveries are these numbers, at these offsets, and settles them.
async fn reads(reader: &mut Consumer, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let delivery = next(reader).await;
        assert_eq!(delivery.message().body, n.to_string());
        assert_eq!(delivery.info().offset, Some(n));
        delivery.ack();
    }
}

#[tokio::test]
async fn a_stream_is_read_from_any_position_and_nothing_is_taken_from_it() {
    for stream in Stream::each().await {
        stream.publish(0..10).await;
        let mut next_only = stream.read(StreamStart::Next).await;
        for _ in 0..2 {
            let mut all = stream.read(StreamStart::First).await;
            reads(&mut all, 0..10).await;
        }
        let mut some = stream.read(StreamStart::Offset(7)).await;
        reads(&mut some, 7..10).await;
        stream.publish(10..12).await;
        reads(&mut some, 10..12).await;
        reads(&mut next_only, 10..12).await;
        // The last part that was written may hold more than the last message.
        let mut last = stream.read(StreamStart::Last).await;
        loop {
            let delivery = next(&mut last).await;
            let offset = delivery.info().offset.expect("its place in the stream");
            delivery.ack();
            if offset == 11 {
                break;
            }
        }
        let mut old = stream.read(StreamStart::Time(chrono::DateTime::UNIX_EPOCH)).await;
        reads(&mut old, 0..12).await;
        stream.remove().await;
    }
}

#[tokio::test]
async fn a_reader_goes_on_after_a_loss_with_the_first_that_was_not_settled() {
    for stream in Stream::each().await {
        stream.publish(0..20).await;
        let server = stream.url.rsplit_once('@').expect("a URL with credentials").1;
        let server: SocketAddr = server.parse().expect("an address of the loopback");
        let proxy = FaultProxy::start(server).await.expect("a proxy");
        let through = stream.url.replace(&server.to_string(), &proxy.address().to_string());
        let lost = Amqp091::connect(&through).await.expect("a connection through the proxy");
        let mut events = lost.events();
        let options =
            ConsumerOptions::default().with_prefetch(5).starting_at(StreamStart::Offset(3));
        let mut reader = lost.consumer(&stream.name, options).await.expect("a reader");
        reads(&mut reader, 3..10).await;
        let held = next(&mut reader).await;
        assert_eq!(held.info().offset, Some(10));
        next(&mut reader).await.ack();

        proxy.cut();
        stream.publish(20..22).await;
        loop {
            let event = timeout(SOON, events.next()).await.expect("in time").expect("an event");
            if matches!(event, TransportEvent::Restored { .. }) {
                break;
            }
        }
        held.ack();
        // From the one that was held, because it was not settled when the connection was lost.
        reads(&mut reader, 10..22).await;
        drop(reader);
        lost.close(Duration::from_secs(5)).await.expect("closing");
        stream.remove().await;
    }
}

#[tokio::test]
async fn only_a_stream_is_read_from_a_position() {
    for stream in Stream::each().await {
        let topology = Topology::new()
            .queue(Queue::durable(format!("{}-quorum", stream.name)))
            .queue(Queue::classic(format!("{}-classic", stream.name)));
        stream.transport.declare(&topology).await.expect("queues");
        let stranger = Amqp091::connect(&stream.url).await.expect("a connection");
        for queue in &topology.queues {
            for transport in [&stream.transport, &stranger] {
                let options = ConsumerOptions::default().starting_at(StreamStart::First);
                let refused = transport.consumer(&queue.name, options).await;
                let error = refused.expect_err("a position in a queue");
                assert_eq!(error.kind(), ErrorKind::Invalid, "{queue:?}: {error}");
            }
        }
        stranger.close(Duration::from_secs(5)).await.expect("closing");
        stream.transport.remove(&topology).await.expect("removing");
        stream.remove().await;
    }
}
