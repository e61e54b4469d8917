//! A thousand instances.

use std::{sync::Arc, time::Duration};

use postrider_core::{ConsumerOptions, Transport};
use postrider_patterns::discovery::{Announcer, Pick};
use tokio::time::sleep;

use super::world::{SECOND, World, now};

const MANY: usize = 1_000;

async fn crowd(world: &World, transport: &Arc<dyn Transport>) -> Vec<Announcer> {
    let mut announcers = Vec::new();
    for number in 0..MANY {
        let announcement = world.announcement(&format!("service-{}", number % 10), "1.0.0");
        let announcement = announcement.heartbeat(5 * SECOND).lease(15 * SECOND);
        announcers.push(announcement.start(transport).await.unwrap());
    }
    announcers
}

pub(crate) async fn a_thousand_answer_in_their_turn(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let announcers = crowd(world, &one).await;
    // A registry made by hand, which writes down when each answer came.
    let queue = postrider_core::Queue::exclusive("by-hand").auto_delete();
    other.declare(&postrider_core::Topology::new().queue(queue)).await.unwrap();
    let options = ConsumerOptions::default().with_prefetch(2_000);
    let mut consumer = other.consumer("by-hand", options).await.unwrap();
    let probe = postrider_core::Message::new("").with_type("discovery.probe");
    let publisher = other.publisher(postrider_core::PublisherOptions::default()).await.unwrap();
    let address = postrider_core::Address::exchange(world.naming.discovery_exchange(), "probe");
    let envelope = postrider_core::Envelope::new(address, probe.with_reply_to("by-hand"));
    let asked = now();
    publisher.send(envelope).await.unwrap().await.into_result().unwrap();
    let mut tenths = [0; 6];
    for _ in 0..MANY {
        consumer.recv().await.unwrap().unwrap().ack();
        let tenth = (now() - asked).as_millis() / 100;
        tenths[usize::try_from(tenth).unwrap().min(5)] += 1;
    }
    // Spread over half a second, none of them in a rush.
    assert!(tenths[..5].iter().all(|share| (130..270).contains(share)), "{tenths:?}");

    let registry = world.current(&other).await;
    assert_eq!(registry.services().len(), 10);
    for service in registry.services() {
        assert_eq!(registry.instances(&service).len(), MANY / 10);
        assert!(registry.pick(&service, &Pick::least_pending()).is_some());
    }
    sleep(120 * SECOND).await;
    assert_eq!(registry.stats().expired, 0);
    assert_eq!(registry.stats().out_of_touch, 0);
    // Heartbeats are spread too: two minutes of them, one each five seconds.
    let heard = registry.stats().announcements;
    assert!((23_000..27_500).contains(&heard), "{heard}");
    drop(announcers);
    sleep(SECOND).await;
    assert!(registry.services().is_empty());
}

pub(crate) async fn a_thousand_die_at_once(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let _announcers = crowd(world, &one).await;
    let registry = world.current(&other).await;
    one.close(SECOND).await.unwrap();
    sleep(10 * SECOND).await;
    assert!(registry.is_current());
    assert!(!registry.services().is_empty(), "the leases are not over");
    sleep(Duration::from_secs(7)).await;
    assert!(registry.services().is_empty());
    assert_eq!(registry.stats().expired, MANY as u64);
}
