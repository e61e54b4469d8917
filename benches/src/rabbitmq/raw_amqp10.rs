//! The twins on fe2o3-amqp.

use bytes::Bytes;
use fe2o3_amqp::{
    Connection, Receiver, Sender, Session,
    connection::ConnectionHandle,
    link::{delivery::DeliveryInfo, receiver::CreditMode},
    sasl_profile::SaslProfile,
    session::SessionHandle,
};
use fe2o3_amqp_types::{
    messaging::{Data, Header, Message, Outcome},
    primitives::Binary,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::net::TcpStream;
use url::Url;

use super::{ACKS_AT_ONCE, PREFETCH, WINDOW};
use crate::BODY;

/// The largest frame that RabbitMQ takes, in bytes.
const FRAME_MAX: u32 = 131_072;

/// A connection with its one session.
pub(super) struct Open {
    session: SessionHandle<()>,
    connection: ConnectionHandle<()>,
}

impl Open {
    /// Connects on a socket that sends at once, which fe2o3-amqp's own does not.
    pub(super) async fn connect(url: &str) -> Self {
        let url = Url::parse(url).expect("a URL");
        let host = url.host_str().expect("a host");
        let socket = TcpStream::connect((host, url.port().expect("a port"))).await;
        let socket = socket.expect("connected");
        socket.set_nodelay(true).expect("a socket that sends at once");
        let login = SaslProfile::Plain {
            username: url.username().to_owned(),
            password: url.password().unwrap_or_default().to_owned(),
        };
        let connecting = Connection::builder()
            .container_id("bench")
            .hostname(host)
            .max_frame_size(FRAME_MAX)
            .sasl_profile(login)
            .open_with_stream(socket);
        let mut connection = connecting.await.expect("open");
        let session = Session::begin(&mut connection).await.expect("a session");
        Self { session, connection }
    }

    pub(super) async fn sender(&mut self, queue: &str) -> Sender {
        let address = format!("/queues/{queue}");
        Sender::attach(&mut self.session, "bench-sender", address).await.expect("attached")
    }

    pub(super) async fn receiver(&mut self, queue: &str, credit: u16) -> Receiver {
        let attaching = Receiver::builder()
            .name("bench-receiver")
            .source(format!("/queues/{queue}"))
            .credit_mode(CreditMode::Auto(credit.into()))
            .attach(&mut self.session);
        attaching.await.expect("attached")
    }

    pub(super) async fn close(mut self) {
        self.session.end().await.expect("ended");
        self.connection.close().await.expect("closed");
    }
}

/// A message that outlives a restart of the broker.
pub(super) fn durable(body: Bytes) -> Message<Data> {
    Message::builder()
        .header(Header { durable: true, ..Header::default() })
        .data(Binary::from(body))
        .build()
}

fn body() -> Bytes {
    Bytes::copy_from_slice(&BODY)
}

fn accepted(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

/// Sends `messages`, a window of them under way.
pub(super) async fn publish_well(sender: &mut Sender, messages: u64) {
    publish_bodies(sender, WINDOW, (0..messages).map(|_| body())).await;
}

/// Sends bodies, as many under way as the window takes.
pub(super) async fn publish_bodies(
    sender: &mut Sender,
    window: usize,
    bodies: impl Iterator<Item = Bytes>,
) {
    let mut under_way = FuturesUnordered::new();
    for body in bodies {
        if under_way.len() == window
            && let Some(outcome) = under_way.next().await
        {
            accepted(&Result::expect(outcome, "an outcome"));
        }
        under_way.push(sender.send_batchable(durable(body)).await.expect("sent"));
    }
    while let Some(outcome) = under_way.next().await {
        accepted(&outcome.expect("an outcome"));
    }
}

/// Sends `messages`, each when the one before has its outcome.
pub(super) async fn publish_each(sender: &mut Sender, messages: u64) {
    for _ in 0..messages {
        accepted(&sender.send(durable(body())).await.expect("an outcome"));
    }
}

/// Receives `messages` and accepts a hundred at once, or half of the credit where that is less.
pub(super) async fn consume_well(receiver: &mut Receiver, messages: u64) {
    let at_once = ACKS_AT_ONCE.min(u64::from(PREFETCH / 2));
    let mut received: Vec<DeliveryInfo> = Vec::new();
    for number in 1..=messages {
        let delivery = receiver.recv::<Data>().await.expect("delivered");
        assert_eq!(delivery.body().0.len(), BODY.len());
        received.push(delivery.into());
        if number % at_once == 0 || number == messages {
            receiver.accept_all(received.drain(..)).await.expect("accepted");
        }
    }
}

/// Receives `messages` and accepts each.
pub(super) async fn consume_each(receiver: &mut Receiver, messages: u64) {
    for _ in 0..messages {
        let delivery = receiver.recv::<Data>().await.expect("delivered");
        assert_eq!(delivery.body().0.len(), BODY.len());
        receiver.accept(&delivery).await.expect("accepted");
    }
}
