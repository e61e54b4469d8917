//! Splitters, aggregators and partitions with generated input, in memory on virtual time. What
//! fails is printed with its seed, which is part of the input.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use postrider_core::{
    Address, ConsumerOptions, Env, Envelope, Message, PublisherExt, PublisherOptions, Queue,
    Topology, Transport,
};
use postrider_patterns::{
    Codec, Jitter, RetryPolicy,
    routing::{Aggregator, Completion, Field, Intake, Route, Splitter, Value},
};
use postrider_transport_inmemory::{Broker, InMemory};
use proptest::{
    collection::vec,
    prelude::{ProptestConfig, any, proptest},
    test_runner::Config,
};
use tokio::{runtime::Builder, time::timeout};

const SOON: Duration = Duration::from_secs(600);

fn intake(queue: &str) -> Intake {
    let policy = RetryPolicy::default().with_jitter(Jitter::None);
    Intake::queue(queue).retry(policy)
}

/// Splits orders, sends their parts on shuffled, some of them twice, and puts them together. The
/// connection of the aggregator is lost in between.
async fn through(seed: u64, orders: Vec<Vec<i64>>, codec: Codec, again: usize, cut: usize) {
    let broker = Broker::new(Env::simulated(seed));
    let transport: Arc<dyn Transport> = Arc::new(InMemory::connect_to(&broker).unwrap());
    let doomed = Arc::new(InMemory::connect_to(&broker).unwrap());
    let topology = Topology::new().queue(Queue::durable("lines")).queue(Queue::durable("whole"));
    transport.declare(&topology).await.unwrap();
    let splitter = Splitter::list(intake("orders"), Field::body("lines"), Route::queue("lines"));
    let _splitter = splitter.start(&transport).await.unwrap();
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    let publish = |queue: &'static str, message: Message| {
        let envelope = Envelope::new(Address::queue(queue), message);
        publisher.publish(envelope)
    };
    let mut expected = BTreeMap::new();
    for (number, lines) in orders.iter().enumerate() {
        let body = codec.encode(&BTreeMap::from([("lines", lines)])).unwrap();
        let order = Message::new(body).with_content_type(codec.content_type());
        publish("orders", order.with_message_id(number.to_string())).await.unwrap();
        if !lines.is_empty() {
            expected.insert(number.to_string(), lines.clone());
        }
    }
    let number: usize = orders.iter().map(Vec::len).sum();
    let mut consumer = transport.consumer("lines", ConsumerOptions::default()).await.unwrap();
    let mut parts = Vec::new();
    while parts.len() < number {
        let delivery = timeout(SOON, consumer.recv()).await.expect("all parts").unwrap().unwrap();
        parts.push(delivery.message().clone());
        delivery.ack();
    }
    for _ in 0..again.min(number) {
        let one = env_index(transport.env(), parts.len());
        parts.push(parts[one].clone());
    }
    for place in (1..parts.len()).rev() {
        parts.swap(place, env_index(transport.env(), place + 1));
    }

    let connection: Arc<dyn Transport> = doomed.clone();
    let aggregator = Aggregator::new(intake("parts"), Completion::Parts, Route::queue("whole"));
    let aggregator = aggregator.start(&connection).await.unwrap();
    for (place, part) in parts.into_iter().enumerate() {
        if place == cut {
            doomed.drop_connection();
        }
        publish("parts", part).await.unwrap();
    }
    let mut whole = transport.consumer("whole", ConsumerOptions::default()).await.unwrap();
    let mut ids = BTreeMap::new();
    while ids.len() < expected.len() {
        let delivery = timeout(SOON, whole.recv()).await.expect("all orders").unwrap().unwrap();
        let message = delivery.message();
        let order = message.correlation_id.clone().unwrap().into_owned();
        let content_type = message.content_type.as_deref();
        let lines: Vec<i64> = Codec::decode(content_type, &message.body).unwrap();
        assert_eq!(expected[&order], lines);
        // Put together twice, it has one id.
        let id = message.message_id.clone().unwrap();
        assert_eq!(*ids.entry(order).or_insert(id.clone()), id);
        delivery.ack();
    }
    assert_eq!((aggregator.stats().incomplete, aggregator.stats().run.dead_lettered), (0, 0));
}

fn env_index(env: &Env, below: usize) -> usize {
    (env.random() % below as u64) as usize
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Config::default() })]

    #[test]
    fn what_was_split_is_put_together_whatever_comes_between(
        seed: u64,
        orders in vec(vec(any::<i64>(), 0..12), 1..8),
        json: bool,
        again in 0_usize..12,
        cut in 0_usize..80,
    ) {
        let codec = if json { Codec::Json } else { Codec::MessagePack };
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(through(seed, orders, codec, again, cut));
    }

    #[test]
    fn no_body_makes_a_value_panic_or_change(body: Vec<u8>, json: bool) {
        let codec = if json { Codec::Json } else { Codec::MessagePack };
        if let Ok(value) = Codec::decode::<Value>(Some(codec.content_type()), &body) {
            let written = codec.encode(&value).unwrap();
            let again: Value = Codec::decode(Some(codec.content_type()), &written).unwrap();
            // NaN is not itself.
            assert_eq!(format!("{again:?}"), format!("{value:?}"));
        }
    }
}
