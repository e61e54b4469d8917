//! How a value comes to the instances.

use postrider_core::ErrorKind;
use postrider_patterns::{
    Codec,
    config::{Config, ConfigError, ConfigPublisher},
};
use tokio::time::timeout;

use super::world::{SECOND, SOON, World, comes_to, discount, in_force};

pub(crate) async fn a_newcomer_gets_the_last_value(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    for percent in [10, 20, 30] {
        publisher.publish(&discount(percent)).await.unwrap();
    }
    // The broker keeps it without its publisher.
    drop(publisher);
    one.close(SOON).await.unwrap();
    for newcomer in ["a", "b", "c"] {
        let config = world.reader(&other, newcomer).await;
        assert_eq!(in_force(&config), Some((3, 30)), "at once");
        assert_eq!(config.instance(), newcomer);
    }
    let late = world.publisher(&other).await;
    let kept = late.current().await.unwrap().expect("a value");
    assert_eq!((kept.version, kept.value), (3, discount(30)));
}

pub(crate) async fn a_change_reaches_every_instance(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let publisher = world.publisher(&one).await;
    let mut instances = Vec::new();
    for (number, transport) in [&one, &other, &other].into_iter().enumerate() {
        instances.push(world.reader(transport, &format!("i-{number}")).await);
    }
    for config in &instances {
        assert_eq!(in_force(config), None);
    }
    assert_eq!(publisher.publish(&discount(10)).await.unwrap(), 1);
    for config in &instances {
        comes_to(config, 1, 10).await;
    }
    assert_eq!(publisher.publish(&discount(20)).await.unwrap(), 2);
    for config in &instances {
        comes_to(config, 2, 20).await;
        let stats = config.stats();
        assert_eq!((stats.applied, stats.rejected, stats.stale, stats.invalid), (2, 0, 0, 0));
        assert_eq!(config.rejection(), None);
    }
}

pub(crate) async fn a_default_holds_until_there_is_a_value(world: &World) {
    let transport = world.transport().await;
    let builder = world.builder().default_value(discount(5));
    let config = builder.start(&transport).await.unwrap();
    assert_eq!(in_force(&config), Some((0, 5)));
    let publisher = world.publisher(&transport).await;
    assert_eq!(publisher.publish_if(&discount(10), 0).await.unwrap(), 1);
    comes_to(&config, 1, 10).await;
}

pub(crate) async fn who_waits_for_the_first_value_gets_it(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let config = world.reader(&one, "i").await;
    let publisher = world.publisher(&other).await;
    let value = discount(10);
    let (first, published) = tokio::join!(timeout(SOON, config.ready()), publisher.publish(&value));
    let first = first.unwrap().unwrap();
    assert_eq!((first.version, first.value.discount), (published.unwrap(), 10));

    let waiting = Config::<u8>::builder("orders", "other").naming(world.naming.clone());
    let waiting = waiting.start(&one).await.unwrap();
    one.close(SOON).await.unwrap();
    let ended = timeout(SOON, waiting.ready()).await.unwrap().unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Closed);
}

pub(crate) async fn settings_do_not_mix(world: &World) {
    let transport = world.transport().await;
    let publisher = world.publisher(&transport).await;
    let (naming, codec) = (world.naming.clone(), Codec::default());
    let other = ConfigPublisher::with(&transport, "orders", "other", naming, codec);
    let other: ConfigPublisher<String> = other.await.unwrap();
    let config = world.reader(&transport, "i").await;
    let builder = Config::<String>::builder("orders", "other").naming(world.naming.clone());
    let other_config = builder.start(&transport).await.unwrap();
    assert_eq!(publisher.publish(&discount(10)).await.unwrap(), 1);
    assert_eq!(other.publish(&"text".to_owned()).await.unwrap(), 1);
    comes_to(&config, 1, 10).await;
    let text = timeout(SOON, other_config.ready()).await.unwrap().unwrap();
    assert_eq!((text.version, text.value.as_str()), (1, "text"));
    assert_eq!(config.stats().applied + config.stats().invalid, 1);
}

pub(crate) async fn both_codecs_meet(world: &World) {
    let transport = world.transport().await;
    let config = world.builder().codec(Codec::Json).start(&transport).await.unwrap();
    for (version, codec) in [(1, Codec::Json), (2, Codec::MessagePack)] {
        let naming = world.naming.clone();
        let publisher = ConfigPublisher::with(&transport, "orders", "pricing", naming, codec);
        let percent = u32::try_from(version).unwrap();
        assert_eq!(publisher.await.unwrap().publish(&discount(percent)).await.unwrap(), version);
        comes_to(&config, version, percent).await;
    }
}

pub(crate) async fn what_is_not_sound_is_refused(world: &World) {
    let transport = world.transport().await;
    for (service, name) in [("", "n"), ("s", ""), ("s", "a.b"), ("s.#", "n"), ("s", "a*")] {
        let publisher = ConfigPublisher::<u8>::new(&transport, service, name).await;
        assert_eq!(publisher.unwrap_err().kind(), ErrorKind::Invalid);
        let config = Config::<u8>::builder(service, name).start(&transport).await;
        assert_eq!(config.unwrap_err().kind(), ErrorKind::Invalid);
    }
    for builder in [
        world.builder().refresh(SECOND / 2),
        world.builder().instance(""),
        world.builder().default_value(discount(90)).check(|it| match it.discount {
            90 => Err("too much".to_owned()),
            _ => Ok(()),
        }),
    ] {
        assert_eq!(builder.start(&transport).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let (naming, codec) = (world.naming.clone(), Codec::default());
    let large = ConfigPublisher::with(&transport, "orders", "other", naming, codec).await.unwrap();
    let refused = large.publish(&"x".repeat(2_000_000)).await.unwrap_err();
    assert!(matches!(refused, ConfigError::Codec(_)), "{refused}");
    assert!(large.current().await.unwrap().is_none());
}
