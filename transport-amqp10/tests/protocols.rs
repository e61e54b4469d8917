//! RabbitMQ over both protocols at once: what is published over AMQP 0.9.1 and consumed over AMQP 1.0,
//! and the other way, on RabbitMQ 4.3 and 4.0.

use std::{env, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::DateTime;
use postrider_core::{
    Address, Binding, Consumer, ConsumerOptions, DeadLetter, Delivery, Env, Envelope, ErrorKind,
    Exchange, HeaderValue, Headers, Message, PublisherExt, PublisherOptions, Queue, QueueKind,
    Topology, Transport,
};
use postrider_transport_amqp10::Amqp10;
use postrider_transport_amqp091::Amqp091;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// One way from one protocol to the other, on one broker.
struct Crossing {
    name: String,
    /// Whether it is from AMQP 0.9.1 to AMQP 1.0.
    to_newer: bool,
    publishing: Arc<dyn Transport>,
    consuming: Arc<dyn Transport>,
}

impl fmt::Display for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set; start the brokers by `eval \"$(scripts/brokers up --all)\"`")
    })
}

/// Runs a scenario on each broker, both ways.
async fn on_each(scenario: impl AsyncFn(&Crossing)) {
    for (broker, suffix) in [("4.3", ""), ("4.0", "_40")] {
        let old = Amqp091::connect(&variable(&format!("POSTRIDER_AMQP_URL{suffix}"))).await;
        let new = Amqp10::connect(&variable(&format!("POSTRIDER_AMQP10_URL{suffix}"))).await;
        let old: Arc<dyn Transport> = Arc::new(old.expect("connected over AMQP 0.9.1"));
        let new: Arc<dyn Transport> = Arc::new(new.expect("connected over AMQP 1.0"));
        for (way, to_newer, publishing, consuming) in
            [("0.9.1 to 1.0", true, &old, &new), ("1.0 to 0.9.1", false, &new, &old)]
        {
            let crossing = Crossing {
                name: format!("RabbitMQ {broker}, {way}"),
                to_newer,
                publishing: publishing.clone(),
                consuming: consuming.clone(),
            };
            scenario(&crossing).await;
        }
        old.close(PATIENCE).await.expect("closed in time");
        new.close(PATIENCE).await.expect("closed in time");
    }
}

impl Crossing {
    async fn declare(&self, topology: &Topology) {
        self.publishing.declare(topology).await.expect("declared");
    }

    /// A queue of its own of each kind, one after the other.
    async fn with_queues(&self, scenario: impl AsyncFn(&str, QueueKind)) {
        for kind in [QueueKind::Quorum, QueueKind::Classic] {
            let name = unique();
            let queue = match kind {
                QueueKind::Quorum => Queue::durable(name.clone()),
                _ => Queue::classic(name.clone()),
            };
            let topology = Topology::new().queue(queue);
            self.declare(&topology).await;
            scenario(&name, kind).await;
            self.publishing.remove(&topology).await.expect("removed");
        }
    }

    async fn publish(&self, envelope: Envelope) {
        publish(&*self.publishing, envelope).await;
    }

    async fn consume(&self, queue: &str) -> Consumer {
        consume(&*self.consuming, queue).await
    }
}

async fn publish(transport: &dyn Transport, envelope: Envelope) {
    let publisher = transport.publisher(PublisherOptions::default()).await.expect("a publisher");
    publisher.publish(envelope).await.expect("published");
}

async fn consume(transport: &dyn Transport, queue: &str) -> Consumer {
    transport.consumer(queue, ConsumerOptions::default()).await.expect("a consumer")
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = timeout(PATIENCE, consumer.recv()).await;
    next.expect("in time").expect("it goes on").expect("a delivery")
}

/// The next delivery of a consumer that is of no more use.
async fn take(mut consumer: Consumer) -> Delivery {
    next(&mut consumer).await
}

fn unique() -> String {
    format!("test-protocols-{}", Env::system().new_id())
}

fn to(queue: &str, message: Message) -> Envelope {
    Envelope::new(Address::queue(queue.to_owned()), message)
}

/// In whole seconds, as AMQP 0.9.1 has them.
fn moment(seconds: i64) -> HeaderValue {
    HeaderValue::Timestamp(DateTime::from_timestamp(seconds, 0).unwrap_or_default())
}

/// A message with every property.
fn full() -> Message {
    let moment = |seconds| DateTime::from_timestamp(seconds, 0).unwrap_or_default();
    Message::new(Bytes::from_static(b"\x00body\xff"))
        .with_message_id("018f6f5e-0000-7000-8000-000000000001")
        .with_correlation_id("correlation with spaces and \u{fc}n\u{ef}code")
        .with_causation_id("018f6f5e-0000-7000-8000-000000000000")
        .with_reply_to("answers/of mine")
        .with_content_type("application/json")
        .with_type("order.created")
        .with_timestamp(moment(1_767_225_600))
        .with_ttl(Duration::from_millis(600_123))
        .with_priority(7)
        .with_key("customer-7")
        .with_deadline(moment(4_102_444_800))
}

/// A message with headers of every type that each protocol has for its users.
fn typed() -> Message {
    Message::new("typed")
        .with_header("bool-true", true)
        .with_header("bool-false", false)
        .with_header("int", 42)
        .with_header("int-negative", -1)
        .with_header("int-least", i64::MIN)
        .with_header("int-most", i64::MAX)
        .with_header("float", 2.5)
        .with_header("float-negative", -0.0)
        .with_header("float-great", f64::MAX)
        .with_header("text", "plain")
        .with_header("text-empty", "")
        .with_header("text-long", "\u{4e16}".repeat(1_000))
        .with_header("bytes", Bytes::from_static(&[0, 159, 146, 150, 255]))
        .with_header("moment", moment(1_767_225_600))
        .with_header("Case", "upper")
        .with_header("case", "lower")
}

/// The headers that are no work of the broker's.
fn own_headers(message: &Message, sent: &Message) -> Vec<(String, HeaderValue)> {
    let is_own = |name: &str| !name.starts_with("x-") || sent.headers.get(name).is_some();
    let own = message.headers.iter().filter(|(name, _)| is_own(name));
    let mut own: Vec<_> = own.map(|(name, value)| (name.to_owned(), value.clone())).collect();
    own.sort_by(|one, other| one.0.cmp(&other.0));
    own
}

fn without_headers(message: &Message) -> Message {
    let mut bare = message.clone();
    bare.headers = Headers::new();
    bare
}

fn assert_same(got: &Message, sent: &Message, on: &str) {
    assert_eq!(without_headers(got), without_headers(sent), "{on}");
    assert_eq!(own_headers(got, sent), own_headers(sent, sent), "{on}");
}

/// Sends a message through a queue of each kind and sees it arrive as it was.
async fn arrives(crossing: &Crossing, sent: Message) {
    crossing
        .with_queues(async |queue, kind| {
            let mut consumer = crossing.consume(queue).await;
            crossing.publish(to(queue, sent.clone())).await;
            let delivery = next(&mut consumer).await;
            assert_same(delivery.message(), &sent, &format!("{crossing}, {kind:?}"));
            assert_eq!(delivery.address(), &Address::queue(queue.to_owned()), "{crossing}");
            let info = delivery.info();
            assert_eq!(
                (info.attempt, info.failures, info.redelivered),
                (1, 0, false),
                "{crossing}"
            );
            delivery.ack();
        })
        .await;
}

#[tokio::test]
async fn every_property_crosses() {
    on_each(async |crossing| arrives(crossing, full()).await).await;
}

#[tokio::test]
async fn absent_properties_stay_absent() {
    on_each(async |crossing| arrives(crossing, Message::new("bare")).await).await;
}

#[tokio::test]
async fn every_type_of_header_crosses() {
    on_each(async |crossing| arrives(crossing, typed()).await).await;
}

/// RabbitMQ keeps text and bytes apart over neither protocol: see `docs/amqp10.md`.
#[tokio::test]
async fn text_and_bytes_that_look_alike_change_places() {
    let text = "x".repeat(5_000);
    let sent = Message::new("alike")
        .with_header("long-text", text.clone())
        .with_header("bytes", Bytes::from_static(b"as text"));
    on_each(async |crossing| {
        crossing
            .with_queues(async |queue, _| {
                crossing.publish(to(queue, sent.clone())).await;
                let delivery = take(crossing.consume(queue).await).await;
                let [long, bytes] = ["long-text", "bytes"]
                    .map(|name| delivery.message().headers.get(name).cloned());
                let expected = if crossing.to_newer {
                    let long = Bytes::from(text.clone());
                    (HeaderValue::Bytes(long), HeaderValue::Bytes(Bytes::from_static(b"as text")))
                } else {
                    (HeaderValue::from(text.clone()), HeaderValue::from("as text"))
                };
                assert_eq!((long, bytes), (Some(expected.0), Some(expected.1)), "{crossing}");
                delivery.ack();
            })
            .await;
    })
    .await;
}

/// Application properties are simple, and RabbitMQ leaves out what is not.
#[tokio::test]
async fn lists_and_maps_of_other_names_do_not_cross() {
    on_each(async |crossing| {
        let topology = Topology::new().queue(Queue::durable(unique()));
        let queue = topology.queues[0].name.to_string();
        crossing.declare(&topology).await;
        let sent = Message::new("nested").with_header("list", vec![HeaderValue::Bool(true)]);
        let publisher = crossing.publishing.publisher(PublisherOptions::default()).await;
        let sent = publisher.expect("a publisher").publish(to(&queue, sent)).await;
        if crossing.to_newer {
            sent.expect("published");
            let delivery = take(crossing.consume(&queue).await).await;
            assert_eq!(delivery.message().headers.get("list"), None, "{crossing}");
            delivery.ack();
        } else {
            assert_eq!(sent.expect_err("refused").kind(), ErrorKind::Unsupported, "{crossing}");
        }
        crossing.publishing.remove(&topology).await.expect("removed");
    })
    .await;
}

#[tokio::test]
async fn large_and_empty_bodies_cross() {
    on_each(async |crossing| {
        arrives(crossing, Message::new(vec![0xa5; 3 << 20])).await;
        arrives(crossing, Message::new("")).await;
    })
    .await;
}

#[tokio::test]
async fn lists_and_maps_cross_under_names_that_begin_with_x() {
    let inner: Headers = [("a", HeaderValue::Int(-1)), ("b", true.into())].into_iter().collect();
    let sent = Message::new("nested")
        .with_header("x-list", vec![HeaderValue::Bool(true), "two".into(), HeaderValue::Int(3)])
        .with_header("x-map", inner)
        .with_header("x-text", "plain");
    on_each(async |crossing| arrives(crossing, sent.clone()).await).await;
}

#[tokio::test]
async fn what_need_not_be_kept_is_told() {
    on_each(async |crossing| {
        // A quorum queue keeps everything.
        let topology = Topology::new().queue(Queue::classic(unique()));
        let queue = topology.queues[0].name.to_string();
        crossing.declare(&topology).await;
        crossing.publish(to(&queue, full().transient())).await;
        let delivery = take(crossing.consume(&queue).await).await;
        assert_same(delivery.message(), &full().transient(), &crossing.name);
        delivery.ack();
        crossing.publishing.remove(&topology).await.expect("removed");
    })
    .await;
}

#[tokio::test]
async fn exchange_and_routing_key_are_told() {
    on_each(async |crossing| {
        let (exchange, queue) = (unique(), unique());
        let topology = Topology::new()
            .exchange(Exchange::topic(exchange.clone()))
            .queue(Queue::durable(queue.clone()))
            .bind(Binding::queue(exchange.clone(), queue.clone(), "a.#"));
        crossing.declare(&topology).await;
        let address = Address::exchange(exchange, "a.b/c \u{e9}");
        crossing.publish(Envelope::new(address.clone(), full())).await;
        let delivery = take(crossing.consume(&queue).await).await;
        assert_eq!(delivery.address(), &address, "{crossing}");
        delivery.ack();
        crossing.publishing.remove(&topology).await.expect("removed");
    })
    .await;
}

#[tokio::test]
async fn a_delay_is_over_for_whoever_consumes() {
    const DELAY: Duration = Duration::from_millis(600);
    let mut sent = full().with_header("number", 7);
    // Not together with a delay.
    sent.ttl = None;
    on_each(async |crossing| {
        crossing
            .with_queues(async |queue, kind| {
                let mut consumer = crossing.consume(queue).await;
                let began = crossing.consuming.env().now();
                crossing.publish(to(queue, sent.clone()).after(DELAY)).await;
                let delivery = next(&mut consumer).await;
                let took = crossing.consuming.env().now() - began;
                assert!(took >= DELAY, "{crossing}: after {took:?}");
                let on = format!("{crossing}, {kind:?}");
                assert_same(delivery.message(), &sent, &on);
                let info = delivery.info();
                assert_eq!((info.attempt, info.failures), (1, 0), "{on}");
                assert_eq!(delivery.message().headers.get("x-death"), None, "{on}");
                assert_eq!(delivery.address(), &Address::queue(queue.to_owned()), "{on}");
                delivery.ack();
            })
            .await;
    })
    .await;
}

#[tokio::test]
async fn retries_are_counted_whoever_retries() {
    let mut sent = full().with_header("number", 7);
    // A delayed retry of the transport's has none.
    sent.ttl = None;
    on_each(async |crossing| {
        let topology = Topology::new().queue(Queue::durable(unique()));
        let queue = topology.queues[0].name.to_string();
        crossing.declare(&topology).await;
        crossing.publish(to(&queue, sent.clone())).await;
        // At once and later, and each time the other protocol.
        let delays = [Duration::ZERO, Duration::from_millis(300)];
        let sides = [&crossing.consuming, &crossing.publishing];
        let turns = delays.into_iter().flat_map(|delay| sides.map(|side| (delay, side)));
        let mut first_failed = None;
        for (failures, (delay, side)) in (0..).zip(turns) {
            let on = format!("{crossing}, failure {failures}");
            let mut consumer = consume(&**side, &queue).await;
            let delivery = next(&mut consumer).await;
            assert_same(delivery.message(), &sent, &on);
            let info = delivery.info();
            assert_eq!((info.failures, info.attempt), (failures, failures + 1), "{on}");
            assert_eq!(info.redelivered, failures > 0, "{on}");
            // Without a delay only AMQP 1.0 notes it, and each protocol has had a turn by then.
            let dated = info.first_failed;
            assert!(dated.is_some() || failures < 2, "{on}");
            assert!(first_failed.is_none() || first_failed == dated, "{on}: {dated:?}");
            first_failed = dated;
            // Else it might come to this consumer once more.
            drop(consumer);
            delivery.retry(delay);
        }
        let delivery = take(crossing.consume(&queue).await).await;
        assert_same(delivery.message(), &sent, &crossing.name);
        assert_eq!((delivery.info().failures, delivery.info().attempt), (4, 5), "{crossing}");
        assert_eq!(delivery.info().first_failed, first_failed, "{crossing}");
        delivery.ack();
        crossing.publishing.remove(&topology).await.expect("removed");
    })
    .await;
}

#[tokio::test]
async fn dead_letters_tell_of_their_death() {
    let sent = full().with_header("number", 7);
    // Dead-lettering takes it away, so that it does not expire again.
    let mut dead_letter = sent.clone();
    dead_letter.ttl = None;
    on_each(async |crossing| {
        let (name, dead) = (unique(), unique());
        let letter = DeadLetter::to("").with_routing_key(dead.clone());
        let topology = Topology::new()
            .queue(Queue::durable(name.clone()).with_dead_letter(letter))
            .queue(Queue::classic(dead.clone()));
        crossing.declare(&topology).await;
        crossing.publish(to(&name, sent.clone())).await;
        take(crossing.consume(&name).await).await.reject("no good");
        // Each side reads it, the one that killed it last.
        for side in [&crossing.publishing, &crossing.consuming] {
            let delivery = take(consume(&**side, &dead).await).await;
            assert_same(delivery.message(), &dead_letter, &crossing.name);
            let deaths = delivery.message().headers.get("x-death");
            let deaths = deaths.and_then(HeaderValue::as_list).unwrap_or_default();
            let [HeaderValue::Map(death)] = deaths else { panic!("{crossing}: {deaths:?}") };
            let text = |name: &str| death.get(name).and_then(HeaderValue::as_text);
            assert_eq!(text("queue"), Some(&*name), "{crossing}: {death:?}");
            assert_eq!(text("reason"), Some("rejected"), "{crossing}: {death:?}");
            assert_eq!(text("exchange"), Some(""), "{crossing}: {death:?}");
            assert_eq!(text("original-expiration"), Some("600123"), "{crossing}: {death:?}");
            assert_eq!(death.get("count"), Some(&HeaderValue::Int(1)), "{crossing}: {death:?}");
            let key = HeaderValue::Text(name.clone().into());
            let keys = HeaderValue::List(vec![key]);
            assert_eq!(death.get("routing-keys"), Some(&keys), "{crossing}: {death:?}");
            let time = death.get("time");
            assert!(matches!(time, Some(HeaderValue::Timestamp(_))), "{crossing}: {death:?}");
            for (header, value) in [("queue", &*name), ("reason", "rejected"), ("exchange", "")] {
                for which in ["first", "last"] {
                    let header = format!("x-{which}-death-{header}");
                    let told = delivery.message().headers.get(&header);
                    let told = told.and_then(HeaderValue::as_text);
                    assert_eq!(told, Some(value), "{crossing}: {header}");
                }
            }
            delivery.release();
        }
        crossing.publishing.remove(&topology).await.expect("removed");
    })
    .await;
}

#[tokio::test]
async fn a_reply_goes_where_the_request_says() {
    on_each(async |crossing| {
        let requests = Queue::classic(unique());
        // Replies have a queue that goes with the requester.
        let replies = Queue::exclusive(format!("{}/\u{e9} 100%", unique()));
        let (to_server, to_client) = (requests.name.to_string(), replies.name.to_string());
        let topology = Topology::new().queue(requests).queue(replies);
        crossing.declare(&topology).await;
        let mut answers = consume(&*crossing.publishing, &to_client).await;
        let request = Message::new("6 * 7").with_message_id("1").with_reply_to(to_client.clone());
        crossing.publish(to(&to_server, request)).await;

        let request = take(crossing.consume(&to_server).await).await;
        let reply_to = request.message().reply_to.clone().expect("where to reply to");
        assert_eq!(reply_to, to_client, "{crossing}");
        let answer = Message::new("42").with_correlation_id("1");
        publish(&*crossing.consuming, to(&reply_to, answer)).await;
        request.ack();

        let answer = next(&mut answers).await;
        assert_eq!(answer.message().body, "42", "{crossing}");
        assert_eq!(answer.message().correlation_id.as_deref(), Some("1"), "{crossing}");
        answer.ack();
        crossing.publishing.remove(&topology).await.expect("removed");
    })
    .await;
}
