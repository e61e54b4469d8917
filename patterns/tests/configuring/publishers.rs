//! Several who publish.

use std::time::Duration;

use futures_util::future::join_all;
use postrider_core::{ErrorKind, Queue, Topology};
use postrider_patterns::config::ConfigError;
use tokio::time::timeout;

use super::world::{SECOND, SOON, World, comes_to, discount, eventually, in_force};

pub(crate) async fn versions_grow_by_one(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let config = world.reader(&other, "i").await;
    let (first, second) = (world.publisher(&one).await, world.publisher(&other).await);
    for version in 1..=10_u64 {
        let publisher = if version % 3 == 0 { &second } else { &first };
        let percent = u32::try_from(version).unwrap();
        assert_eq!(publisher.publish(&discount(percent)).await.unwrap(), version);
    }
    // Who reads slowly misses steps, and not the last.
    comes_to(&config, 10, 10).await;
    eventually("only the last is kept", async || {
        other.queue_info(&world.keeper()).await.unwrap().unwrap().ready == 1
    })
    .await;
}

pub(crate) async fn publishers_take_turns(world: &World) {
    const EACH: u32 = 4;
    let (one, other) = (world.transport().await, world.transport().await);
    // Two of them share a connection, and the first two find nothing that is kept.
    let publishers =
        [world.publisher(&one).await, world.publisher(&one).await, world.publisher(&other).await];
    let config = world.reader(&other, "i").await;
    let publishing = publishers.iter().enumerate().map(|(who, publisher)| async move {
        let mut versions = Vec::new();
        for number in 0..EACH {
            let percent = u32::try_from(who).unwrap() * EACH + number;
            versions.push((publisher.publish(&discount(percent)).await.unwrap(), percent));
        }
        versions
    });
    let mut versions = join_all(publishing).await.concat();
    versions.sort_unstable();
    let numbers: Vec<_> = versions.iter().map(|(version, _)| *version).collect();
    assert_eq!(numbers, (1..=u64::from(3 * EACH)).collect::<Vec<_>>(), "none twice, none left out");
    let (version, percent) = versions[versions.len() - 1];
    comes_to(&config, version, percent).await;
    let kept = publishers[0].current().await.unwrap().unwrap();
    assert_eq!((kept.version, kept.value.discount), (version, percent));
}

pub(crate) async fn a_version_is_compared_and_set(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let (first, second) = (world.publisher(&one).await, world.publisher(&other).await);
    let config = world.reader(&other, "i").await;
    let (left, right) = (discount(1), discount(2));
    let outcomes = tokio::join!(first.publish_if(&left, 0), second.publish_if(&right, 0));
    let percent = match outcomes {
        (Ok(1), Err(ConfigError::Conflict { current: 1 })) => 1,
        (Err(ConfigError::Conflict { current: 1 }), Ok(1)) => 2,
        other => panic!("one of them: {other:?}"),
    };
    comes_to(&config, 1, percent).await;
    for stale in [0, 2, 7] {
        let refused = second.publish_if(&discount(9), stale).await.unwrap_err();
        assert!(matches!(refused, ConfigError::Conflict { current: 1 }), "{refused}");
    }
    assert_eq!(second.publish_if(&discount(3), 1).await.unwrap(), 2);
    comes_to(&config, 2, 3).await;
    assert_eq!(config.stats().applied, 2, "what was refused was not sent");
}

pub(crate) async fn a_publish_that_is_given_up_is_done_all_the_same(world: &World) {
    let transport = world.transport().await;
    let publisher = world.publisher(&transport).await;
    publisher.publish(&discount(1)).await.unwrap();
    let config = world.reader(&transport, "i").await;
    let given_up = timeout(Duration::ZERO, publisher.publish(&discount(2))).await;
    assert!(given_up.is_err(), "it takes longer than no time");
    comes_to(&config, 2, 2).await;
    assert_eq!(timeout(SOON, publisher.publish(&discount(3))).await.unwrap().unwrap(), 3);
    comes_to(&config, 3, 3).await;
    drop(publisher);
    eventually("it has only the last", async || in_force(&config) == Some((3, 3))).await;
}

/// What a publisher owns while it publishes.
fn turn(world: &World) -> Queue {
    Queue::exclusive(world.naming.config_instance_queue("turn", "orders.pricing"))
}

pub(crate) async fn a_turn_goes_with_its_connection(world: &World) {
    let (one, dying) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    dying.declare(&Topology::new().queue(turn(world))).await.unwrap();
    let value = discount(1);
    let mut publishing = Box::pin(publisher.publish(&value));
    let waiting = timeout(SECOND, &mut publishing).await;
    assert!(waiting.is_err(), "it waits for its turn");
    dying.close(SOON).await.unwrap();
    assert_eq!(timeout(SOON, publishing).await.unwrap().unwrap(), 1);
}

pub(crate) async fn a_turn_that_is_not_given_back_is_free_in_the_end(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    let expiring = Topology::new().queue(turn(world).with_expires(30 * SECOND));
    other.declare(&expiring).await.unwrap();
    assert_eq!(timeout(SOON, publisher.publish(&discount(1))).await.unwrap().unwrap(), 1);
    // One that never goes: whoever wants to publish is told.
    other.declare(&Topology::new().queue(turn(world))).await.unwrap();
    let refused = timeout(SOON, publisher.publish(&discount(2))).await.unwrap().unwrap_err();
    let ConfigError::Transport(error) = &refused else { panic!("{refused}") };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(publisher.current().await.unwrap().unwrap().version, 1);
}
