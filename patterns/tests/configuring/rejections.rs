//! What is not put in force, and who knows of it.

use std::sync::Arc;

use postrider_core::Transport;
use postrider_patterns::{
    Codec,
    config::{Config, ConfigPublisher},
};
use tokio::time::timeout;

use super::world::{Pricing, SOON, World, comes_to, discount, in_force, reported};

async fn careful(world: &World, transport: &Arc<dyn Transport>) -> Config<Pricing> {
    let builder = world.builder().instance("careful").check(|pricing| match pricing.discount {
        0..=50 => Ok(()),
        percent => Err(format!("nobody gives {percent} percent")),
    });
    builder.start(transport).await.unwrap()
}

pub(crate) async fn an_invalid_value_is_rejected_with_its_reason(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    let config = careful(world, &other).await;
    publisher.publish(&discount(10)).await.unwrap();
    comes_to(&config, 1, 10).await;
    publisher.publish(&discount(90)).await.unwrap();
    let report = reported(&publisher, "careful", |it| it.rejected.is_some()).await;
    assert_eq!(report.version, Some(1), "the old one stays in force");
    let rejection = report.rejected.expect("a rejection");
    assert_eq!((rejection.version, &*rejection.reason), (2, "nobody gives 90 percent"));
    assert_eq!(config.rejection(), Some(rejection.clone()));
    assert_eq!(in_force(&config), Some((1, 10)));

    // Who asks later is told the same, and so is an instance that starts with it.
    let later = world.publisher(&other).await;
    let answers = later.ask().await.unwrap();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].rejected, Some(rejection));
    let late = careful(world, &one).await;
    assert_eq!(in_force(&late), None, "there is no older one for it");
    assert_eq!(late.rejection().map(|it| it.version), Some(2));
    drop(late);

    publisher.publish(&discount(20)).await.unwrap();
    comes_to(&config, 3, 20).await;
    let report = reported(&publisher, "careful", |it| it.version == Some(3)).await;
    assert_eq!(report.rejected, None);
    assert_eq!(config.rejection(), None);
    assert_eq!(config.stats().rejected, 1);
}

pub(crate) async fn a_value_of_another_type_is_rejected(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    let config = world.reader(&other, "old").await;
    publisher.publish(&discount(10)).await.unwrap();
    comes_to(&config, 1, 10).await;
    let (naming, codec) = (world.naming.clone(), Codec::Json);
    let newer = ConfigPublisher::with(&one, "orders", "pricing", naming, codec);
    let newer: ConfigPublisher<Vec<String>> = newer.await.unwrap();
    assert_eq!(newer.publish(&vec!["ten".to_owned()]).await.unwrap(), 2);
    let report = reported(&publisher, "old", |it| it.rejected.is_some()).await;
    let reason = report.rejected.expect("a rejection").reason;
    assert!(reason.starts_with("the body is not what was expected as json"), "{reason}");
    assert_eq!(in_force(&config), Some((1, 10)));
    assert!(publisher.current().await.is_err(), "nor can its publisher read it");
}

pub(crate) async fn who_runs_what_is_known(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let dying = world.transport().await;
    let publisher = world.publisher(&one).await;
    publisher.publish(&discount(10)).await.unwrap();
    let mut configs = Vec::new();
    for (instance, transport) in [("a", &one), ("b", &other), ("c", &dying)] {
        configs.push(world.reader(transport, instance).await);
        reported(&publisher, instance, |it| it.version == Some(1)).await;
    }
    publisher.publish(&discount(20)).await.unwrap();
    for instance in ["a", "b", "c"] {
        reported(&publisher, instance, |it| it.version == Some(2)).await;
    }
    // One leaves and says so; one dies, and is not there when all are asked.
    drop(configs.remove(0));
    let mut reports = publisher.reports();
    let gone = reports.wait_for(|reports| !reports.contains_key("a"));
    timeout(SOON, gone).await.expect("it says so").expect("the publisher goes on");
    dying.close(SOON).await.unwrap();
    let answers = publisher.ask().await.unwrap();
    let answers: Vec<_> = answers.iter().map(|it| (it.instance.as_str(), it.version)).collect();
    assert_eq!(answers, [("b", Some(2))]);
}
