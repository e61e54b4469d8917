//! What waiting costs.

use std::time::Duration;

use postrider_core::{ConsumerOptions, Env, Exchange, Queue, Topology};
use postrider_patterns::{Event, EventBus, HandlerError, Subscription, dead_letter_topology};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{Bench, naming};

const CONSUMERS: usize = 20;
const SUBSCRIPTIONS: usize = 10;
const SUBSCRIPTION: &str = "never";

#[derive(Serialize, Deserialize)]
struct Never {}

impl Event for Never {
    const TYPE: &'static str = "bench.never";
}

/// Which part of one core 20 consumers and 10 subscriptions take that get nothing.
///
/// # Panics
///
/// When the broker refuses them.
pub async fn idle(bench: &Bench) -> f64 {
    let transport = bench.connect().await;
    let mut consumers = Vec::new();
    for _ in 0..CONSUMERS {
        let queue = format!("bench.{}", Env::system().new_id());
        let topology = Topology::new().queue(Queue::exclusive(queue.clone()));
        transport.declare(&topology).await.expect("declared");
        consumers.push(transport.consumer(&queue, ConsumerOptions::default()).await.expect("open"));
    }
    let naming = naming();
    let bus = EventBus::builder(&transport).naming(naming.clone()).connect().await.expect("open");
    let mut subscriptions = Vec::new();
    for _ in 0..SUBSCRIPTIONS {
        let subscription = Subscription::ephemeral(SUBSCRIPTION)
            .on(|_: Never, _| async { Ok::<(), HandlerError>(()) });
        subscriptions.push(bus.subscribe(subscription).await.expect("subscribed"));
    }
    let waiting = sleep(Duration::from_secs(bench.sizes.idle_seconds));
    let (cost, ()) = bench.meter.measure(1, waiting).await;
    drop((consumers, subscriptions));
    let topology = dead_letter_topology(&naming, SUBSCRIPTION)
        .exchange(Exchange::topic(naming.event_exchange()));
    transport.remove(&topology).await.expect("removed");
    cost.share_of_core()
}
