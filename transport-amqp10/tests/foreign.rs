//! AMQP 1.0 with brokers of other kinds, as far as they go: RabbitMQ 3.10 by its plugin, and Qpid
//! Proton's example broker.
//!
//! `scripts/brokers up --foreign` starts them, and `scripts/brokers env` prints the variables.

use std::{env, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::join_all};
use postrider_core::{
    Address, Binding, Capabilities, Consumer, ConsumerOptions, DeadLetter, Delivery, Envelope,
    ErrorKind, Exchange, Message, Publisher, PublisherExt, PublisherOptions, Queue, StreamStart,
    Topology, Transport, TransportEvent, Verdict,
};
use postrider_testkit::proxy::{Direction, FaultProxy};
use postrider_transport_amqp10::{Amqp10, Broker, Options, Profile};
use postrider_transport_amqp091::Amqp091;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set; start the brokers by `eval \"$(scripts/brokers up --foreign)\"`")
    })
}

fn rabbitmq3() -> String {
    variable("POSTRIDER_AMQP10_URL_310")
}

fn proton() -> String {
    variable("POSTRIDER_PROTON_URL")
}

async fn connect(url: &str) -> Amqp10 {
    connect_as(url, Profile::default()).await
}

async fn connect_as(url: &str, profile: Profile) -> Amqp10 {
    let options = Options::default().with_profile(profile);
    Amqp10::connect_with(url, options).await.expect("connected")
}

/// Makes a topology on RabbitMQ 3.10, by another protocol.
async fn provision(topology: &Topology) -> Amqp091 {
    let url = variable("POSTRIDER_AMQP_URL_310");
    let operator = Amqp091::connect(&url).await.expect("connected over AMQP 0.9.1");
    operator.declare(topology).await.expect("declared over AMQP 0.9.1");
    operator
}

fn unique(name: &str) -> String {
    format!("test-{name}-{}", postrider_core::Env::system().new_id())
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = timeout(PATIENCE, consumer.recv()).await;
    next.expect("in time").expect("it goes on").expect("a delivery")
}

fn rich() -> Message {
    Message::new("body")
        .with_message_id("id-1")
        .with_correlation_id("correlation-1")
        .with_content_type("application/json")
        .with_type("order.new")
        .with_key("key-1")
        .with_causation_id("cause-1")
        .with_priority(3)
        .with_header("text", "a")
        .with_header("number", 7)
        .with_header("flag", true)
        .with_header("float", 0.5)
}

async fn publisher(transport: &Amqp10) -> Arc<dyn Publisher> {
    transport.publisher(PublisherOptions::default()).await.expect("a publisher")
}

/// A consumer, at the second attempt if need be: RabbitMQ 3.10.8 breaks a connection itself once in some
/// thousands of links (`internal error in channel … noproc` in its log), and the transport comes back.
async fn consumer(transport: &Amqp10, queue: &str) -> Consumer {
    let consume = || transport.consumer(queue, ConsumerOptions::default());
    match consume().await {
        Err(error) if error.is_retryable() => consume().await.expect("a consumer after a loss"),
        consumer => consumer.expect("a consumer"),
    }
}

fn to(queue: &str, body: impl Into<Bytes>) -> Envelope {
    Envelope::new(Address::queue(queue.to_owned()), Message::new(body))
}

async fn a_message_comes_as_it_was_sent(transport: &Amqp10, queue: &str) {
    let mut consumer = consumer(transport, queue).await;
    let envelope = Envelope::new(Address::queue(queue.to_owned()), rich());
    publisher(transport).await.publish(envelope).await.expect("published");
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.message(), &rich());
    assert_eq!((delivery.info().attempt, delivery.info().failures), (1, 0));
    assert_eq!(delivery.address(), &Address::queue(queue.to_owned()));
    delivery.ack();
    transport.close(PATIENCE).await.expect("closed in time");
}

#[tokio::test]
async fn rabbitmq3_gives_a_message_as_it_was_sent() {
    let queue = unique("rich/é");
    let topology = Topology::new().queue(Queue::classic(queue.clone()));
    let operator = provision(&topology).await;
    a_message_comes_as_it_was_sent(&connect(&rabbitmq3()).await, &queue).await;
    operator.remove(&topology).await.expect("removed");
}

#[tokio::test]
async fn proton_gives_a_message_as_it_was_sent() {
    a_message_comes_as_it_was_sent(&connect(&proton()).await, &unique("rich")).await;
}

#[tokio::test]
async fn the_profile_says_how_queues_are_addressed() {
    let queue = unique("profile");
    let profile = Profile::default().with_queue_address("queue://{queue}?x=1");
    a_message_comes_as_it_was_sent(&connect_as(&proton(), profile).await, &queue).await;
}

/// Each message has its verdict, and each queue its messages in their order and once.
async fn many_messages_go_to_many_addresses(transport: &Amqp10, queues: &[String]) {
    const EACH: u32 = 40;
    const AT_ONCE: u32 = 20;
    let publisher = publisher(transport).await;
    let mut confirms = Vec::new();
    for first in (0..EACH).step_by(AT_ONCE as usize) {
        for queue in queues {
            for number in first..first + AT_ONCE {
                let envelope = to(queue, number.to_string());
                confirms.push(publisher.send(envelope).await.expect("sent"));
            }
        }
    }
    for verdict in timeout(PATIENCE, join_all(confirms)).await.expect("verdicts in time") {
        assert_eq!(verdict, Verdict::Accepted);
    }
    for queue in queues {
        let mut consumer = consumer(transport, queue).await;
        for number in 0..EACH {
            let delivery = next(&mut consumer).await;
            assert_eq!(delivery.message().body, number.to_string(), "of '{queue}'");
            delivery.ack();
        }
    }
    transport.close(PATIENCE).await.expect("closed in time");
}

#[tokio::test]
async fn rabbitmq3_takes_many_messages_to_many_addresses() {
    let queues: Vec<_> = (0..20).map(|number| unique(&format!("many-{number}"))).collect();
    let topology = queues
        .iter()
        .fold(Topology::new(), |topology, queue| topology.queue(Queue::classic(queue.clone())));
    let operator = provision(&topology).await;
    many_messages_go_to_many_addresses(&connect(&rabbitmq3()).await, &queues).await;
    operator.remove(&topology).await.expect("removed");
}

/// More addresses than a publisher has links.
#[tokio::test]
async fn proton_takes_many_messages_to_many_addresses() {
    let queues: Vec<_> = (0..66).map(|number| unique(&format!("many-{number}"))).collect();
    many_messages_go_to_many_addresses(&connect(&proton()).await, &queues).await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused() {
    for url in [rabbitmq3(), proton()] {
        let transport = connect(&url).await;
        assert_eq!(transport.capabilities(), &Capabilities::minimal());
        let topology = Topology::new().queue(Queue::classic("some"));
        let from_first = ConsumerOptions::default().starting_at(StreamStart::First);
        for error in [
            transport.declare(&topology).await.unwrap_err(),
            transport.plan(&topology).await.unwrap_err(),
            transport.remove(&topology).await.unwrap_err(),
            transport.queue_info("some").await.unwrap_err(),
            transport.purge("some").await.unwrap_err(),
            transport.consumer("some", from_first).await.unwrap_err(),
            publisher(&transport)
                .await
                .send(to("some", "later").after(Duration::from_secs(1)))
                .await
                .unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        }
        let as_rabbitmq4 = Profile::default().with_broker(Broker::RabbitMq);
        let options = Options::default().with_profile(as_rabbitmq4);
        let error = Amqp10::connect_with(&url, options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.message().contains("no RabbitMQ 4"), "{error}");
    }
}

#[tokio::test]
async fn what_an_operator_made_is_checked() {
    let (queue, exchange) = (unique("made"), unique("made"));
    let topology = Topology::new()
        .exchange(Exchange::topic(exchange.clone()))
        .queue(Queue::durable(queue.clone()))
        .bind(Binding::queue(exchange.clone(), queue.clone(), "a.*"));
    let operator = provision(&topology).await;
    let transport = connect(&format!("{}?topology=provisioned", rabbitmq3())).await;
    transport.declare(&topology).await.expect("all of it is there");
    assert!(transport.plan(&topology).await.expect("a plan").differences().next().is_none());
    let missing = unique("missing");
    for topology in [
        Topology::new().queue(Queue::durable(missing.clone())),
        Topology::new().exchange(Exchange::topic(missing.clone())),
    ] {
        let error = transport.declare(&topology).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains(&missing), "{error}");
    }
    let own = Topology::new().queue(Queue::exclusive(missing));
    assert_eq!(transport.declare(&own).await.unwrap_err().kind(), ErrorKind::Unsupported);
    operator.remove(&topology).await.expect("removed");

    // Whatever is named is there.
    let transport = connect_as(&proton(), Profile::default().provisioned()).await;
    transport.declare(&topology).await.expect("it is there");
}

#[tokio::test]
async fn rabbitmq3_routes_by_exchange_and_key() {
    let (queue, exchange) = (unique("routed"), unique("routing"));
    let topology = Topology::new()
        .exchange(Exchange::topic(exchange.clone()))
        .queue(Queue::classic(queue.clone()))
        .bind(Binding::queue(exchange.clone(), queue.clone(), "order.*"));
    let operator = provision(&topology).await;
    let transport = connect(&rabbitmq3()).await;
    let mut consumer = consumer(&transport, &queue).await;
    let publisher = publisher(&transport).await;
    let send = |exchange: &str, key: &'static str| {
        let address = Address::exchange(exchange.to_owned(), key);
        publisher.send(Envelope::new(address, Message::new(key)))
    };
    let verdict = send(&exchange, "order.new").await.expect("sent").await;
    assert_eq!(verdict, Verdict::Accepted);
    // The plugin does not tell what no binding takes.
    let verdict = send(&exchange, "invoice.new").await.expect("sent").await;
    assert_eq!(verdict, Verdict::Accepted);
    let verdict = send(&unique("missing"), "order.new").await.expect("sent").await;
    assert!(matches!(&verdict, Verdict::Rejected(why) if why.contains("missing")), "{verdict:?}");
    let verdict = send(&exchange, "order.old").await.expect("sent").await;
    assert_eq!(verdict, Verdict::Accepted);
    for key in ["order.new", "order.old"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message().body, key);
        delivery.ack();
    }
    operator.remove(&topology).await.expect("removed");
}

#[tokio::test]
async fn rabbitmq3_tells_what_is_missing_at_once() {
    let queue = unique("there");
    let topology = Topology::new().queue(Queue::classic(queue.clone()));
    let operator = provision(&topology).await;
    let transport = connect(&rabbitmq3()).await;
    let missing = unique("missing");
    let error = transport.consumer(&missing, ConsumerOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains(&missing), "{error}");
    let publisher = publisher(&transport).await;
    for _ in 0..3 {
        let sent = publisher.send(to(&missing, "lost")).await.expect("sent");
        let verdict = timeout(Duration::from_secs(5), sent).await.expect("at once");
        assert_eq!(verdict, Verdict::Unroutable);
        publisher.publish(to(&queue, "found")).await.expect("the publisher goes on");
    }
    // Once it is there it takes messages over the same publisher.
    let late = Topology::new().queue(Queue::classic(missing.clone()));
    operator.declare(&late).await.expect("declared");
    publisher.publish(to(&missing, "found")).await.expect("it is there now");
    operator.remove(&late).await.expect("removed");
    operator.remove(&topology).await.expect("removed");
}

#[tokio::test]
async fn rabbitmq3_takes_every_settlement() {
    let (queue, dead) = (unique("settled"), unique("dead"));
    let letters = DeadLetter::to("").with_routing_key(dead.clone());
    let topology = Topology::new()
        .queue(Queue::classic(queue.clone()).with_dead_letter(letters))
        .queue(Queue::classic(dead.clone()));
    let operator = provision(&topology).await;
    let transport = connect(&rabbitmq3()).await;
    let mut deliveries = consumer(&transport, &queue).await;
    publisher(&transport).await.publish(to(&queue, "once")).await.expect("published");

    next(&mut deliveries).await.release();
    let again = next(&mut deliveries).await;
    assert!(again.info().redelivered && again.info().attempt > 1, "{:?}", again.info());
    again.retry(Duration::ZERO);
    let begun = transport.env().now();
    let delay = Duration::from_millis(700);
    next(&mut deliveries).await.retry(delay);
    let again = next(&mut deliveries).await;
    assert!(begun.elapsed() >= delay, "it came after {:?}", begun.elapsed());
    again.reject("of no use");
    let mut letters = consumer(&transport, &dead).await;
    let letter = next(&mut letters).await;
    assert_eq!(letter.message().body, "once");
    letter.ack();
    transport.close(PATIENCE).await.expect("closed in time");
    for queue in [&queue, &dead] {
        let left = operator.queue_info(queue).await.expect("asked").expect("it is there");
        assert_eq!(left.ready, 0, "in '{queue}'");
    }
    operator.remove(&topology).await.expect("removed");
}

/// A proxy before a broker, and the URL of the broker through it.
async fn behind_proxy(url: &str) -> (FaultProxy, String) {
    let (scheme_and_user, rest) = match url.rsplit_once('@') {
        Some((user, rest)) => (format!("{user}@"), rest),
        None => ("amqp10://".to_owned(), url.strip_prefix("amqp10://").expect("its scheme")),
    };
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let server: SocketAddr = address.parse().expect("an address");
    let proxy = FaultProxy::start(server).await.expect("a proxy");
    let url = format!("{scheme_and_user}{}?{query}", proxy.address());
    (proxy, url)
}

/// A connection is lost: everything goes on over the next.
async fn a_lost_connection_comes_back(url: &str, queue: &str, comes_again: bool) {
    let (proxy, url) = behind_proxy(url).await;
    let transport = connect(&url).await;
    let mut events = transport.events();
    let mut deliveries = consumer(&transport, queue).await;
    let publisher = publisher(&transport).await;
    publisher.publish(to(queue, "held")).await.expect("published");
    let held = next(&mut deliveries).await;
    proxy.reset();
    let restored = async {
        while let Some(event) = events.next().await {
            if matches!(event, TransportEvent::Restored { .. }) {
                return;
            }
        }
        panic!("the events ended");
    };
    timeout(PATIENCE, restored).await.expect("restored in time");
    held.ack();
    publisher.publish(to(queue, "after")).await.expect("published");
    if comes_again {
        let again = next(&mut deliveries).await;
        assert_eq!(again.message().body, "held");
        assert!(again.info().redelivered);
        again.ack();
    }
    let after = next(&mut deliveries).await;
    assert_eq!(after.message().body, "after");
    after.ack();
    transport.close(PATIENCE).await.expect("closed in time");
}

#[tokio::test]
async fn rabbitmq3_comes_back() {
    let queue = unique("back");
    let topology = Topology::new().queue(Queue::classic(queue.clone()));
    let operator = provision(&topology).await;
    a_lost_connection_comes_back(&rabbitmq3(), &queue, true).await;
    operator.remove(&topology).await.expect("removed");
}

/// It settles what it sends as it sends it, so nothing comes again.
#[tokio::test]
async fn proton_comes_back() {
    a_lost_connection_comes_back(&proton(), &unique("back"), false).await;
}

/// RabbitMQ 3 ends the session of a link that it refuses, and there are fewer sessions than links.
#[tokio::test]
async fn rabbitmq3_refuses_a_link_and_no_other_suffers() {
    let (queue, other) = (unique("crowded"), unique("crowded"));
    let topology =
        Topology::new().queue(Queue::classic(queue.clone())).queue(Queue::classic(other.clone()));
    let operator = provision(&topology).await;
    let transport = connect(&rabbitmq3()).await;
    let mut events = transport.events();
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(consumer(&transport, &other).await);
    }
    let mut deliveries = consumer(&transport, &queue).await;
    let publisher = publisher(&transport).await;
    publisher.publish(to(&queue, "held")).await.expect("published");
    let held = next(&mut deliveries).await;
    let missing = unique("missing");
    let refused = transport.consumer(&missing, ConsumerOptions::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    for address in [Address::queue(missing.clone()), Address::exchange(missing.clone(), "key")] {
        let sent = publisher.send(Envelope::new(address, Message::new("lost"))).await;
        let verdict = sent.expect("sent").await;
        assert!(matches!(verdict, Verdict::Unroutable | Verdict::Rejected(_)), "{verdict:?}");
    }
    held.ack();
    publisher.publish(to(&queue, "after")).await.expect("published");
    let after = next(&mut deliveries).await;
    assert_eq!(after.message().body, "after");
    after.ack();
    transport.close(PATIENCE).await.expect("closed in time");
    let left = operator.queue_info(&queue).await.expect("asked").expect("it is there");
    assert_eq!(left.ready, 0, "everything was settled");
    let told: Vec<_> = std::iter::from_fn(|| events.next().now_or_never().flatten()).collect();
    assert!(told.is_empty(), "{told:?}");
    operator.remove(&topology).await.expect("removed");
}

/// A broker that stops in the middle owes a verdict, and the message is told so in time.
#[tokio::test]
async fn a_frozen_broker_leaves_no_message_without_its_verdict() {
    let queue = unique("frozen");
    let topology = Topology::new().queue(Queue::classic(queue.clone()));
    let operator = provision(&topology).await;
    for url in [rabbitmq3(), proton()] {
        let (proxy, url) = behind_proxy(&url).await;
        let transport = connect(&url).await;
        let limit = Duration::from_secs(2);
        let options = PublisherOptions::default().with_timeout(limit);
        let publisher = transport.publisher(options).await.expect("a publisher");
        publisher.publish(to(&queue, "before")).await.expect("published");
        proxy.stall(Direction::ToClient);
        let begun = transport.env().now();
        let sent = publisher.send(to(&queue, "lost")).await.expect("sent");
        let verdict = timeout(PATIENCE, sent).await.expect("in time");
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        assert!(begun.elapsed() >= limit, "it came after {:?}", begun.elapsed());
    }
    operator.remove(&topology).await.expect("removed");
}
