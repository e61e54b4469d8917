//! From a publisher to a subscriber through a topic exchange, with encoding, decoding and a handler.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chrono::SecondsFormat;
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{BasicProperties, Confirmation, options::BasicAckOptions};
use postrider_core::{Binding, Env, Exchange, Queue, Topology, Transport};
use postrider_patterns::{
    Event, EventBus, HandlerError, Naming, Subscription, dead_letter_route, dead_letter_topology,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{ACKS_AT_ONCE, Bench, CLIENT, Cost, POSTRIDER, PREFETCH, RATE, naming, raw};
use crate::{
    BODY,
    rounds::{Contest, Goal},
};

/// As many publishes of one batch Postrider has without a verdict at once.
const WINDOW: usize = 256;

/// How long a subscription may take to stop.
const STOP: Duration = Duration::from_secs(10);

/// An event of 256 bytes.
#[derive(Serialize, Deserialize)]
struct Measured {
    body: Bytes,
}

impl Event for Measured {
    const TYPE: &'static str = "bench.measured";
}

fn measured() -> Measured {
    Measured { body: Bytes::copy_from_slice(&BODY) }
}

/// The event on the wire: what Postrider sends too.
#[derive(Serialize, Deserialize)]
struct EventBody {
    event_id: String,
    event_type: String,
    aggregate_id: Option<String>,
    data: Measured,
    timestamp: String,
    version: u32,
    metadata: Metadata,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    correlation_id: String,
}

/// Measures publishing to a durable subscription, from the first publish to the end of the last
/// handler.
///
/// # Panics
///
/// When an event is lost or refused.
pub async fn publish_to_subscriber(bench: &Bench) -> Contest {
    let title = format!(
        "publisher to subscriber through a topic exchange, quorum queue, 256 B, window {WINDOW}, \
         prefetch {PREFETCH}, MessagePack"
    );
    let [well, _] = bench.protocol.twins();
    let mut contest = Contest::new(title, bench.figures(), [POSTRIDER, well])
        .with_goals([Goal::at_least(well, RATE, 0.9), Goal::at_most(well, CLIENT, 1.15)]);
    for _ in 0..bench.sizes.rounds {
        contest.note(0, with_postrider(bench).await.figures());
        contest.note(1, well_with_lapin(bench).await.figures());
    }
    contest
}

async fn with_postrider(bench: &Bench) -> Cost {
    let events = bench.sizes.events;
    let transport = bench.connect().await;
    let naming = naming();
    let bus = EventBus::builder(&transport).naming(naming.clone()).connect().await.expect("open");
    let (handled, all) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let tell = all.clone();
    let subscription = Subscription::durable("bench", "measured").prefetch(PREFETCH).on(
        move |event: Measured, _| {
            assert_eq!(event.body.len(), BODY.len());
            if handled.fetch_add(1, Ordering::Relaxed) + 1 == events {
                tell.notify_one();
            }
            async { Ok::<(), HandlerError>(()) }
        },
    );
    let running = bus.subscribe(subscription).await.expect("subscribed");
    let queue = running.queue().to_owned();
    let work = async move {
        let batch: Vec<_> = (0..events).map(|_| measured()).collect();
        bus.publish_all(&batch).await.expect("published");
        all.notified().await;
    };
    let (cost, ()) = bench.meter.measure(events, work).await;
    let report = running.stop(STOP).await;
    assert_eq!(report.released, 0, "{report:?}");
    remove(&*transport, &naming, &queue).await;
    cost
}

/// Removes what a subscription declared.
async fn remove(transport: &dyn Transport, naming: &Naming, queue: &str) {
    let info = transport.queue_info(queue).await.expect("told").expect("there");
    assert_eq!(info.ready, 0, "events in the queue after the measurement");
    let topology = Topology::new()
        .exchange(Exchange::topic(naming.event_exchange()))
        .queue(Queue::durable(queue.to_owned()))
        .and(dead_letter_topology(naming, queue));
    transport.remove(&topology).await.expect("removed");
}

async fn well_with_lapin(bench: &Bench) -> Cost {
    let events = bench.sizes.events;
    let naming = naming();
    let admin = bench.connect().await;
    let (exchange, queue) =
        (naming.event_exchange(), naming.durable_subscription_queue("bench", "measured"));
    let route = dead_letter_route(&naming, &queue);
    let topology = dead_letter_topology(&naming, &queue)
        .exchange(Exchange::topic(exchange.clone()))
        .queue(Queue::durable(queue.clone()).with_dead_letter(route))
        .bind(Binding::queue(exchange.clone(), queue.clone(), Measured::TYPE));
    admin.declare(&topology).await.expect("declared");
    // Two connections, as Postrider has and RabbitMQ advises.
    let publishing = raw::connect(&bench.url).await;
    let consuming = raw::connect(&bench.url).await;
    let publisher = raw::confirm_channel(&publishing).await;
    let (channel, mut deliveries) = raw::consumer(&consuming, &queue, PREFETCH).await;
    let work = async move {
        let subscriber = tokio::spawn(async move {
            for number in 1..=events {
                let delivery = deliveries.next().await.expect("goes on").expect("delivered");
                let event: EventBody = rmp_serde::from_slice(&delivery.data).expect("decoded");
                assert_eq!(event.data.body.len(), BODY.len());
                if number % ACKS_AT_ONCE == 0 || number == events {
                    let options = BasicAckOptions { multiple: true };
                    channel.basic_ack(delivery.delivery_tag, options).await.expect("acked");
                }
            }
            (channel, deliveries)
        });
        let env = Env::system();
        let batch: VecDeque<_> = (0..events).map(|_| measured()).collect();
        let publish = async |event: Measured| {
            let (body, properties) = encode(&env, event);
            let exchange = exchange.as_str().into();
            let key = Measured::TYPE.into();
            publisher
                .basic_publish(exchange, key, raw::MANDATORY, &body, properties)
                .await
                .expect("sent")
                .await
                .expect("confirmed")
        };
        let mut under_way = FuturesUnordered::new();
        for event in batch {
            if under_way.len() == WINDOW
                && let Some(confirmation) = under_way.next().await
            {
                assert_eq!(confirmation, Confirmation::Ack(None));
            }
            under_way.push(publish(event));
        }
        while let Some(confirmation) = under_way.next().await {
            assert_eq!(confirmation, Confirmation::Ack(None));
        }
        drop(under_way);
        (publisher, subscriber.await.expect("handled"))
    };
    let (cost, _open) = bench.meter.measure(events, work).await;
    raw::close(&publishing).await;
    raw::close(&consuming).await;
    remove(&*admin, &naming, &queue).await;
    cost
}

/// An event as Postrider writes it, with the same properties.
fn encode(env: &Env, data: Measured) -> (Vec<u8>, BasicProperties) {
    let (id, now) = (env.new_id().to_string(), env.timestamp());
    let body = EventBody {
        event_id: id.clone(),
        event_type: Measured::TYPE.into(),
        aggregate_id: None,
        data,
        timestamp: now.to_rfc3339_opts(SecondsFormat::Millis, true),
        version: Measured::VERSION,
        metadata: Metadata { correlation_id: id.clone() },
    };
    let properties = raw::persistent()
        .with_content_type("application/msgpack".into())
        .with_message_id(id.as_str().into())
        .with_correlation_id(id.into())
        .with_type(Measured::TYPE.into())
        .with_timestamp(now.timestamp().cast_unsigned());
    (rmp_serde::to_vec_named(&body).expect("encoded"), properties)
}
