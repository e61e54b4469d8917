//! Connections, queues and messages that are lost.

use postrider_core::{Address, ConsumerOptions, Queue, Topology};
use postrider_patterns::config::ConfigError;
use postrider_testkit::harness::Fault;
use tokio::time::timeout;

use super::world::{
    SECOND, SOON, World, comes_to, discount, eventually, in_force, reported, send, value,
};

pub(crate) async fn a_reader_that_lost_its_connection_catches_up(world: &World) {
    let living = world.transport().await;
    let doomed = world.connect().await;
    let publisher = world.publisher(&living).await;
    publisher.publish(&discount(1)).await.unwrap();
    let config = world.reader(&doomed.transport, "i").await;
    for version in 2..=5_u64 {
        doomed.cut().await;
        let percent = u32::try_from(version).unwrap();
        assert_eq!(publisher.publish(&discount(percent)).await.unwrap(), version);
        comes_to(&config, version, percent).await;
        reported(&publisher, "i", |it| it.version == Some(version)).await;
    }
    assert_eq!(config.stats().stale, 0);
}

pub(crate) async fn a_publisher_that_lost_its_connection_goes_on(world: &World) {
    let living = world.transport().await;
    let doomed = world.connect().await;
    let publisher = world.publisher(&doomed.transport).await;
    let config = world.reader(&living, "i").await;
    let mut last = 0;
    for percent in 1..=4 {
        doomed.cut().await;
        // What was lost in the midst of it may be in force or not; then it is published again.
        let version = timeout(SOON, async {
            loop {
                match publisher.publish(&discount(percent)).await {
                    Ok(version) => return version,
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        });
        let version = version.await.expect("it goes on");
        assert!(version > last, "{version} after {last}");
        last = version;
        comes_to(&config, version, percent).await;
        reported(&publisher, "i", |it| it.version == Some(version)).await;
    }
    let late = world.reader(&living, "late").await;
    assert_eq!(in_force(&late), Some((last, 4)));
}

pub(crate) async fn a_keeper_that_was_deleted_does_not_begin_anew(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    let config = world.reader(&other, "i").await;
    for percent in [10, 20, 30] {
        publisher.publish(&discount(percent)).await.unwrap();
    }
    comes_to(&config, 3, 30).await;
    drop(publisher);
    other.remove(&Topology::new().queue(Queue::classic(world.keeper()))).await.unwrap();
    let newcomer = world.publisher(&one).await;
    assert!(newcomer.current().await.unwrap().is_none());
    assert_eq!(newcomer.publish(&discount(40)).await.unwrap(), 4, "the instances know");
    comes_to(&config, 4, 40).await;
    assert_eq!(newcomer.current().await.unwrap().unwrap().version, 4);
}

pub(crate) async fn what_was_missed_is_found(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let config = world.builder().refresh(SECOND).start(&other).await.unwrap();
    // Into the keeper alone: no instance hears of it.
    send(&*one, Address::queue(world.keeper()), value(7, r#"{"discount":70}"#)).await;
    comes_to(&config, 7, 70).await;
}

pub(crate) async fn a_value_that_was_held_does_not_come_back(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    publisher.publish(&discount(1)).await.unwrap();
    // Somebody looks at the value and stands still.
    let options = ConsumerOptions::default().with_prefetch(1);
    let mut consumer = other.consumer(&world.keeper(), options).await.unwrap();
    let held = timeout(SOON, consumer.recv()).await.unwrap().unwrap().unwrap();
    drop(consumer);
    // What a newcomer cannot see now it sees later.
    let reader = world.transport().await;
    let config = world.builder().refresh(SECOND).start(&reader).await.unwrap();
    assert_eq!(in_force(&config), None);
    assert_eq!(publisher.publish(&discount(2)).await.unwrap(), 2);
    comes_to(&config, 2, 2).await;
    held.release();
    eventually("the old one is dropped", async || {
        let info = one.queue_info(&world.keeper()).await.unwrap().unwrap();
        info.ready == 1 && publisher.current().await.unwrap().is_some_and(|it| it.version == 2)
    })
    .await;
    assert_eq!(in_force(&config), Some((2, 2)));
}

pub(crate) async fn a_broker_that_takes_nothing_is_told_of(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    let config = world.reader(&other, "i").await;
    publisher.publish(&discount(1)).await.unwrap();
    world.broker.begin(Fault::Alarm).await.unwrap();
    let refused = timeout(SOON, publisher.publish(&discount(2))).await.unwrap().unwrap_err();
    let ConfigError::Transport(error) = &refused else { panic!("{refused}") };
    assert!(error.is_retryable(), "{error}");
    world.broker.end(Fault::Alarm).await.unwrap();
    let version = timeout(SOON, publisher.publish(&discount(3))).await.unwrap().unwrap();
    comes_to(&config, version, 3).await;
}
