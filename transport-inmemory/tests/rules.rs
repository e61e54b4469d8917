//! What the behaviour suite cannot ask of every broker.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use postrider_core::{
    Address, Binding, ConsumerOptions, DeadLetter, Envelope, ErrorKind, Exchange, Headers, Message,
    Publisher, PublisherExt, PublisherOptions, Queue, Topology, Transport, TransportEvent,
};
use postrider_transport_inmemory::{Broker, InMemory};

async fn publisher(transport: &InMemory) -> Arc<dyn Publisher> {
    transport.publisher(PublisherOptions::default()).await.expect("a publisher")
}

async fn publish(publisher: &dyn Publisher, address: Address, message: Message) {
    publisher.publish(Envelope::new(address, message)).await.expect("stored");
}

fn two_on_one_broker() -> (InMemory, InMemory) {
    let broker = Broker::new(postrider_core::Env::simulated(1));
    let connect = || InMemory::connect_to(&broker).expect("a running broker");
    (connect(), connect())
}

#[tokio::test(start_paused = true)]
async fn the_longest_retry_loses_nothing() {
    let transport = InMemory::connect("memory://").expect("a runtime");
    transport.declare(&Topology::new().queue(Queue::durable("q"))).await.expect("declared");
    let publisher = publisher(&transport).await;
    publish(&*publisher, Address::queue("q"), Message::new("patient")).await;
    let mut consumer = transport.consumer("q", ConsumerOptions::default()).await.expect("opened");
    consumer.recv().await.expect("goes on").expect("a delivery").retry(Duration::MAX);
    let info = transport.queue_info("q").await.expect("asked").expect("there");
    assert_eq!(info.delayed, Some(1));
    let again = consumer.recv().await.expect("goes on").expect("after 49 days");
    assert_eq!(again.info().attempt, 2);
    again.ack();
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_connection_had_waits_for_the_retry_delay() {
    let delay = Duration::from_secs(5);
    let transport = InMemory::connect("memory://").expect("a runtime");
    let queue = Queue::durable("q").with_retry_delay(delay, delay);
    transport.declare(&Topology::new().queue(queue)).await.expect("declared");
    let publisher = publisher(&transport).await;
    publish(&*publisher, Address::queue("q"), Message::new("x")).await;
    let mut consumer = transport.consumer("q", ConsumerOptions::default()).await.expect("opened");
    let _held = consumer.recv().await.expect("goes on").expect("a delivery");
    let began = transport.env().now();
    transport.drop_connection();
    let again = consumer.recv().await.expect("goes on").expect("a delivery");
    assert_eq!(again.info().failures, 1, "{:?}", again.info());
    assert!(transport.env().now() - began >= delay);
    again.ack();
}

#[tokio::test]
async fn times_that_no_broker_takes_are_refused() {
    let transport = InMemory::connect("memory://").expect("a runtime");
    for queue in [
        Queue::durable("q").with_expires(Duration::MAX),
        Queue::durable("q").with_message_ttl(Duration::MAX),
        Queue::durable("q").with_expires(Duration::ZERO),
        Queue::durable("q").with_retry_delay(Duration::ZERO, Duration::MAX),
        Queue::durable("q").with_retry_delay(Duration::from_secs(2), Duration::from_secs(1)),
        Queue::durable("q").with_retry_delay(Duration::from_secs(2), Duration::MAX),
    ] {
        let refused = transport.declare(&Topology::new().queue(queue)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    }
    assert_eq!(transport.queue_info("q").await.expect("asked"), None);
}

#[tokio::test]
async fn a_long_chain_of_dead_letters_is_followed_to_its_end() {
    const LENGTH: usize = 1_000;
    let transport = InMemory::connect("memory://").expect("a runtime");
    let name = |n: usize| format!("link-{n}");
    let mut topology = Topology::new().queue(Queue::durable(name(LENGTH)));
    for n in 0..LENGTH {
        let next = DeadLetter::to("").with_routing_key(name(n + 1));
        let link = Queue::classic(name(n)).with_max_length(0).with_dead_letter(next);
        topology = topology.queue(link);
    }
    transport.declare(&topology).await.expect("declared");
    let publisher = publisher(&transport).await;
    publish(&*publisher, Address::queue(name(0)), Message::new("falls")).await;
    let info = transport.queue_info(&name(LENGTH)).await.expect("asked").expect("there");
    assert_eq!(info.ready, 1);
}

#[tokio::test(start_paused = true)]
async fn one_thing_that_cannot_be_restored_keeps_no_other_back() {
    let (ours, theirs) = two_on_one_broker();
    let mut events = ours.events();
    let shared = Queue::classic("shared").auto_delete();
    ours.declare(
        &Topology::new()
            .exchange(Exchange::topic("events"))
            .queue(shared.clone())
            .queue(Queue::exclusive("mine"))
            .bind(Binding::queue("events", "mine", "#")),
    )
    .await
    .expect("declared");
    let mut mine = ours.consumer("mine", ConsumerOptions::default()).await.expect("opened");

    ours.lose_connection();
    let other_form = Topology::new().queue(shared.with_max_length(7));
    theirs.remove(&other_form).await.expect("removed");
    theirs.declare(&other_form).await.expect("declared in another form");
    ours.restore_connection();

    let mut failures = Vec::new();
    loop {
        match events.next().await.expect("events go on") {
            TransportEvent::NotRestored { entity, .. } => failures.push(entity),
            TransportEvent::Restored { .. } => break,
            _ => {}
        }
    }
    assert_eq!(failures, ["classic queue 'shared'"]);
    let publisher = publisher(&theirs).await;
    publish(&*publisher, Address::exchange("events", "any"), Message::new("heard")).await;
    let heard = mine.recv().await.expect("goes on").expect("a delivery");
    assert_eq!(heard.message().body, "heard");
    heard.ack();
}

#[tokio::test(start_paused = true)]
async fn what_others_deleted_meanwhile_stays_deleted() {
    let (ours, theirs) = two_on_one_broker();
    let topology = Topology::new()
        .exchange(Exchange::fanout("news"))
        .queue(Queue::durable("kept"))
        .queue(Queue::durable("gone"))
        .bind(Binding::queue("news", "kept", ""));
    ours.declare(&topology).await.expect("declared");
    ours.lose_connection();
    let gone =
        Topology::new().queue(Queue::durable("gone")).bind(Binding::queue("news", "kept", ""));
    theirs.remove(&gone).await.expect("removed");
    ours.restore_connection();
    assert_eq!(theirs.queue_info("gone").await.expect("asked"), None);
    assert!(theirs.queue_info("kept").await.expect("asked").is_some());
    let plan = theirs.plan(&topology).await.expect("planned").to_string();
    assert!(plan.contains("create binding"), "the binding was deleted too:\n{plan}");
}

#[tokio::test(start_paused = true)]
async fn a_consumer_of_a_deleted_queue_does_not_come_back() {
    let transport = InMemory::connect("memory://").expect("a runtime");
    let topology = Topology::new().queue(Queue::durable("q"));
    transport.declare(&topology).await.expect("declared");
    let mut consumer = transport.consumer("q", ConsumerOptions::default()).await.expect("opened");
    transport.remove(&topology).await.expect("removed");
    transport.declare(&topology).await.expect("another of that name");
    transport.drop_connection();
    let info = transport.queue_info("q").await.expect("asked").expect("there");
    assert_eq!(info.consumers, 0);
    let ended = consumer.recv().await.expect("it says why").expect_err("its queue is gone");
    assert_eq!(ended.kind(), ErrorKind::NotFound, "{ended}");
    assert!(consumer.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_queue_is_lost_with_what_would_come_back_to_it() {
    let transport = InMemory::connect("memory://").expect("a runtime");
    let dead = DeadLetter::to("").with_routing_key("dead");
    let mine = Queue::exclusive("mine").with_max_length(1).with_dead_letter(dead);
    let topology = Topology::new().queue(Queue::durable("dead")).queue(mine);
    transport.declare(&topology).await.expect("declared");
    let _consumer = transport.consumer("mine", ConsumerOptions::default()).await.expect("opened");
    let publisher = publisher(&transport).await;
    for body in ["1", "2"] {
        publish(&*publisher, Address::queue("mine"), Message::new(body)).await;
    }
    transport.drop_connection();
    let info = transport.queue_info("dead").await.expect("asked").expect("there");
    assert_eq!(info.ready, 0);
}

#[tokio::test]
async fn a_waiting_consumer_gets_what_has_no_time_to_live() {
    let transport = InMemory::connect("memory://").expect("a runtime");
    transport.declare(&Topology::new().queue(Queue::durable("q"))).await.expect("declared");
    let mut consumer = transport.consumer("q", ConsumerOptions::default()).await.expect("opened");
    let publisher = publisher(&transport).await;
    let message = Message::new("now or never").with_ttl(Duration::ZERO);
    publish(&*publisher, Address::queue("q"), message).await;
    let delivery = tokio::time::timeout(Duration::from_secs(5), consumer.recv()).await;
    delivery.expect("in time").expect("goes on").expect("a delivery").ack();
}

#[tokio::test]
async fn nothing_is_declared_when_a_part_cannot_be() {
    let transport = InMemory::connect("memory://").expect("a runtime");
    let half =
        Topology::new().queue(Queue::durable("q")).bind(Binding::queue("nowhere", "q", "key"));
    let refused = transport.declare(&half).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    assert_eq!(transport.queue_info("q").await.expect("asked"), None);

    let twice = Topology::new().queue(Queue::durable("q")).queue(Queue::classic("q"));
    let refused = transport.declare(&twice).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Mismatch, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn headers_count_toward_the_limit_of_memory() {
    let transport = InMemory::connect("memory://").expect("a runtime");
    transport.declare(&Topology::new().queue(Queue::durable("q"))).await.expect("declared");
    transport.broker().set_memory_limit(1 << 20);
    let options = PublisherOptions::default().with_timeout(Duration::from_secs(1));
    let publisher = transport.publisher(options).await.expect("a publisher");
    let mut nested = Headers::new();
    nested.set("inner", "x".repeat(60 * 1024));
    let blocked = async {
        for _ in 0..100 {
            let message = Message::new("").with_header("outer", nested.clone());
            let envelope = Envelope::new(Address::queue("q"), message);
            if let Err(error) = publisher.publish(envelope).await {
                return error.kind();
            }
        }
        panic!("5 MiB of headers fit under a limit of 1 MiB");
    };
    assert_eq!(blocked.await, ErrorKind::Unavailable);
    transport.purge("q").await.expect("purged");
    assert_eq!(transport.broker().memory_used(), 0);
}
