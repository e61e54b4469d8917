//! What RabbitMQ alone does: refused connections, streams, and what this protocol has no means for.

use std::time::Duration;

use postrider_core::{
    Address, ConsumerOptions, Envelope, Error, ErrorKind, Message, PublisherExt, PublisherOptions,
    Queue, QueueKind, Topology, Transport,
};
use postrider_transport_amqp091::{Amqp091, Options};

fn url() -> String {
    std::env::var("POSTRIDER_AMQP_URL").expect(
        "POSTRIDER_AMQP_URL is not set; start the brokers by `eval \"$(scripts/brokers up)\"`",
    )
}

/// The broker's URL with other credentials and another path.
fn altered(credentials: &str, path: &str) -> String {
    let url = url();
    let host = url.rsplit_once('@').map_or(&*url, |(_, host)| host);
    let host = host.trim_start_matches("amqp://").split('/').next().unwrap_or_default();
    format!("amqp://{credentials}@{host}{path}")
}

async fn refused(url: &str, kind: ErrorKind) -> Error {
    let options = Options::default().with_connect_timeout(Duration::from_secs(20));
    let error = Amqp091::connect_with(url, options).await.expect_err("it must be refused");
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(!format!("{error} {error:?}").contains("s3cret"), "the password is told: {error:?}");
    error
}

#[tokio::test]
async fn refused_connections_say_why_and_never_the_password() {
    refused(&altered("guest:s3cret", ""), ErrorKind::Unauthorized).await;
    refused(&altered("guest:guest", "/missing"), ErrorKind::NotFound).await;
    refused("amqp://guest:s3cret@127.0.0.1:1", ErrorKind::Unavailable).await;
    refused("http://guest:s3cret@127.0.0.1", ErrorKind::Invalid).await;
}

#[tokio::test]
async fn the_url_is_shown_without_its_password() {
    let transport = Amqp091::connect(&altered("guest:guest", "")).await.expect("a connection");
    assert!(!transport.url().contains(":guest"), "{}", transport.url());
    assert!(!format!("{transport:?}").contains(":guest"));
    transport.close(Duration::from_secs(5)).await.expect("closing");
}

#[tokio::test]
async fn what_the_protocol_has_no_means_for_is_an_error() {
    let transport = Amqp091::connect(&url()).await.expect("a connection");
    let name = format!("test-means-{}", transport.env().new_id());
    let topology = Topology::new().queue(Queue::durable(name.clone()));
    assert_eq!(topology.queues[0].kind, QueueKind::Quorum);
    transport.declare(&topology).await.expect("a queue");
    let publisher = transport.publisher(PublisherOptions::default()).await.expect("a publisher");
    let message = Message::new("x").with_ttl(Duration::from_secs(9));
    let both = Envelope::new(Address::queue(name.clone()), message).after(Duration::from_secs(1));
    let error = publisher.publish(both).await.expect_err("a delay and a time to live");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let exclusive = ConsumerOptions::default().exclusive();
    let error = transport.consumer(&name, exclusive).await.expect_err("an exclusive consumer");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    transport.remove(&topology).await.expect("removing");
    transport.close(Duration::from_secs(5)).await.expect("closing");
}

#[tokio::test]
async fn what_a_crash_had_waits_for_the_retry_delay_at_the_broker() {
    let delay = Duration::from_secs(2);
    let crashing = Amqp091::connect(&url()).await.expect("a connection");
    let name = format!("test-retry-delay-{}", crashing.env().new_id());
    let topology =
        Topology::new().queue(Queue::durable(name.clone()).with_retry_delay(delay, delay));
    crashing.declare(&topology).await.expect("a queue");
    let publisher = crashing.publisher(PublisherOptions::default()).await.expect("a publisher");
    let envelope = Envelope::new(Address::queue(name.clone()), Message::new("x"));
    publisher.publish(envelope).await.expect("a publish");
    let mut consumer = crashing.consumer(&name, ConsumerOptions::default()).await.expect("opened");
    let held = consumer.recv().await.expect("it goes on").expect("a delivery");
    let began = crashing.env().now();
    crashing.close(Duration::ZERO).await.expect_err("one delivery is unsettled");
    drop(held);

    let transport = Amqp091::connect(&url()).await.expect("a connection");
    let mut consumer = transport.consumer(&name, ConsumerOptions::default()).await.expect("opened");
    let again = tokio::time::timeout(Duration::from_secs(20), consumer.recv()).await;
    let again = again.expect("in time").expect("it goes on").expect("a delivery");
    assert_eq!(again.info().failures, 1, "{:?}", again.info());
    let took = transport.env().now() - began;
    assert!(took >= delay, "it came after {took:?}");
    again.ack();
    transport.remove(&topology).await.expect("removing");
    transport.close(Duration::from_secs(5)).await.expect("closing");

    // What another connection declared differently is told by our name of it.
    let other = Amqp091::connect(&url()).await.expect("a connection");
    other.declare(&topology).await.expect("a queue");
    let plain = Topology::new().queue(Queue::durable(name.clone()));
    let error = other.declare(&plain).await.expect_err("another retry delay");
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains("retry_delay"), "{error}");
    other.remove(&topology).await.expect("removing");
    other.close(Duration::from_secs(5)).await.expect("closing");
}
