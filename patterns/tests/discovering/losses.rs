//! Connections that are lost, heartbeats that are, and a broker that stands still.

use std::time::Duration;

use postrider_core::{Queue, Topology};
use postrider_patterns::discovery::{Change, RegistryState};
use postrider_testkit::harness::Fault;
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::world::{SECOND, SOON, World, announce, eventually, ids, next, now};

pub(crate) async fn a_registry_that_lost_its_connection_takes_nobody_for_dead(world: &World) {
    let living = world.transport().await;
    let doomed = world.connect().await;
    let mut announcers = Vec::new();
    for _ in 0..3 {
        announcers.push(world.announcement("stock", "1.0.0").start(&living).await.unwrap());
    }
    let registry = world.current(&doomed.transport).await;
    let mut changes = registry.changes();
    for _ in 0..3 {
        assert!(matches!(next(&mut changes).await, Change::Joined(_)));
    }
    for times in 1..=3 {
        doomed.cut().await;
        eventually("it says so", || registry.stats().out_of_touch == times).await;
        assert_eq!(registry.instances("stock").len(), 3, "they are remembered");
        timeout(SOON, registry.current()).await.unwrap().unwrap();
    }
    // Longer than the leases, which count again.
    let quiet = timeout(5 * SECOND, changes.next()).await;
    assert!(quiet.is_err(), "nobody was taken for dead: {quiet:?}");
    for announcer in announcers {
        announcer.leave().await.unwrap();
    }
}

pub(crate) async fn what_happened_meanwhile_is_noticed(world: &World) {
    let living = world.transport().await;
    let dying = world.transport().await;
    let doomed = world.connect().await;
    let staying = world.announcement("stock", "1.0.0").start(&living).await.unwrap();
    let leaving = world.announcement("stock", "1.0.0").start(&living).await.unwrap();
    let _dying = world.announcement("stock", "1.0.0").start(&dying).await.unwrap();
    let registry = world.current(&doomed.transport).await;
    assert_eq!(registry.instances("stock").len(), 3);
    doomed.cut().await;
    leaving.leave().await.unwrap();
    dying.close(SECOND).await.unwrap();
    let joining = world.announcement("stock", "1.0.0").start(&living).await.unwrap();
    let mut there = [staying.id().to_owned(), joining.id().to_owned()];
    there.sort_unstable();
    eventually("the living are known", || ids(&registry, "stock") == there).await;
    staying.leave().await.unwrap();
    joining.leave().await.unwrap();
}

pub(crate) async fn an_instance_that_lost_its_connection_comes_back(world: &World) {
    let watching = world.transport().await;
    let doomed = world.connect().await;
    let announcement = world.announcement("stock", "1.0.0").heartbeat(1_000 * SECOND);
    let announcer = announcement.lease(3_600 * SECOND).start(&doomed.transport).await.unwrap();
    let first = world.current(&watching).await;
    let heard = first.stats().announcements;
    doomed.cut().await;
    eventually("it says that it is back", || first.stats().announcements > heard).await;
    // It hears who asks again.
    let second = world.current(&watching).await;
    assert_eq!(ids(&second, "stock"), [announcer.id()]);
    announcer.leave().await.unwrap();
    eventually("it has left", || first.services().is_empty() && second.services().is_empty()).await;
}

pub(crate) async fn a_queue_that_was_deleted_is_made_again(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let announcer = world.announcement("stock", "1.0.0").start(&one).await.unwrap();
    let registry = world.current(&other).await;
    let health = other.health();
    let queue = &health.consumers[0].queue;
    let topology = Topology::new().queue(Queue::exclusive(queue.clone()).auto_delete());
    other.remove(&topology).await.unwrap();
    eventually("it notices", || registry.stats().out_of_touch == 1).await;
    timeout(SOON, registry.current()).await.unwrap().unwrap();
    assert_eq!(ids(&registry, "stock"), [announcer.id()]);
    announcer.leave().await.unwrap();
    eventually("it hears", || registry.services().is_empty()).await;
}

pub(crate) async fn lost_heartbeats_do_not_matter_within_the_lease(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let registry = world.current(&other).await;
    let mut changes = registry.changes();
    // Two of three heartbeats are lost, and what comes is out of order.
    for round in 0..200_u64 {
        for sequence in [3 * round + 3, 3 * round + 1] {
            let body = json!({
                "service": "s", "instance": "i", "sequence": sequence, "lease_ms": 3_500
            });
            world.say(&*one, "s", announce(&body)).await;
        }
        sleep(3 * SECOND).await;
    }
    assert!(matches!(next(&mut changes).await, Change::Joined(_)));
    let quiet = timeout(Duration::from_millis(1), changes.next()).await;
    assert!(quiet.is_err(), "ten minutes without a change: {quiet:?}");
    assert_eq!(registry.stats().stale, 200);
    assert!(matches!(next(&mut changes).await, Change::Expired(_)));
}

pub(crate) async fn a_broker_that_stands_still_kills_nobody(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let announcer = world.announcement("stock", "1.0.0").start(&one).await.unwrap();
    let registry = world.current(&other).await;
    let mut changes = registry.changes();
    assert!(matches!(next(&mut changes).await, Change::Joined(_)));
    for lasting in [SECOND / 2, 2 * SECOND, 60 * SECOND] {
        world.broker.begin(Fault::Alarm).await.unwrap();
        sleep(lasting).await;
        if lasting > 10 * SECOND {
            assert_eq!(registry.state(), RegistryState::OutOfTouch);
        }
        world.broker.end(Fault::Alarm).await.unwrap();
        timeout(SOON, registry.current()).await.unwrap().unwrap();
    }
    let quiet = timeout(60 * SECOND, changes.next()).await;
    assert!(quiet.is_err(), "nobody was taken for dead: {quiet:?}");
    announcer.leave().await.unwrap();
}

pub(crate) async fn clocks_do_not_matter(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let registry = world.current(&other).await;
    let body = json!({"service": "s", "instance": "i", "sequence": 1, "lease_ms": 5_000});
    let of_old = announce(&body).with_timestamp("2001-01-01T00:00:00Z".parse().unwrap());
    let heard = now();
    world.say(&*one, "s", of_old).await;
    eventually("it is there", || registry.services() == ["s"]).await;
    eventually("it is gone", || registry.services().is_empty()).await;
    let took = now() - heard;
    assert!((6 * SECOND..7 * SECOND).contains(&took), "a lease and a second: {took:?}");
}
