//! What others say that makes no sense, comes late, or is too much.

use postrider_core::Message;
use postrider_patterns::discovery::InstanceHealth;
use serde_json::json;

use super::world::{World, announce, eventually, ids, leave};

pub(crate) async fn nonsense_is_counted_and_left(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let registry = world.current(&other).await;
    let huge =
        json!({"service": "s", "instance": "i", "sequence": 1, "methods": ["x".repeat(20_000)]});
    let deep = "[".repeat(10_000);
    let undecodable = [
        announce(&huge),
        Message::new("{").with_type("discovery.announce"),
        Message::new(deep).with_type("discovery.announce"),
        Message::new("{}").with_type("discovery.announce").with_content_type("image/png"),
        announce(&json!({"service": "s", "instance": "i", "sequence": -1})),
        announce(&json!({"service": "s", "instance": "i"})),
        leave(&json!({"service": "s"})),
    ];
    let part = |name: &str, value| {
        let mut body = json!({"service": "s", "instance": "i", "sequence": 1});
        body[name] = value;
        announce(&body)
    };
    let invalid = [
        part("service", json!("")),
        part("service", json!("a.#")),
        part("instance", json!("x".repeat(101))),
        part("version", json!("one")),
        part("lease_ms", json!(0)),
        part("lease_ms", json!(u64::MAX)),
        part("health", json!("splendid")),
        leave(&json!({"service": "", "instance": "i", "sequence": 1})),
        Message::new("").with_type("discovery.echo"),
        Message::new("").with_type("discovery.echo").with_header("postrider-echo", -5),
    ];
    let counts = (undecodable.len() as u64, invalid.len() as u64);
    for message in undecodable.into_iter().chain(invalid) {
        world.say(&*one, "s", message).await;
    }
    // Words of a later version, and somebody else's echo, are no nonsense.
    world.say(&*one, "s", Message::new("").with_type("discovery.dance")).await;
    world.say(&*one, "s", Message::new("")).await;
    let echo = Message::new("").with_type("discovery.echo").with_header("postrider-echo", 9_999);
    world.say(&*one, "s", echo).await;
    world.say(&*one, "s", part("instance", json!("plain"))).await;
    eventually("what makes sense is heard", || ids(&registry, "s") == ["plain"]).await;
    let stats = registry.stats();
    assert_eq!((stats.undecodable, stats.invalid), counts);
    assert_eq!((stats.announcements, stats.out_of_touch), (1, 0));
    let plain = &registry.instances("s")[0];
    assert_eq!(plain.version.to_string(), "0.0.0");
    assert_eq!((&plain.health, plain.methods.len()), (&InstanceHealth::Healthy, 0));
    assert!(registry.is_current());
}

pub(crate) async fn an_old_heartbeat_brings_nobody_back(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let registry = world.current(&other).await;
    let word = |sequence: u64, health: &str| {
        announce(&json!({"service": "s", "instance": "i", "sequence": sequence, "health": health}))
    };
    world.say(&*one, "s", word(7, "degraded")).await;
    world.say(&*one, "s", word(5, "healthy")).await;
    world.say(&*one, "s", word(7, "healthy")).await;
    eventually("two are old", || registry.stats().stale == 2).await;
    assert!(matches!(registry.instances("s")[0].health, InstanceHealth::Degraded(_)));
    world.say(&*one, "s", leave(&json!({"service": "s", "instance": "i", "sequence": 8}))).await;
    world.say(&*one, "s", word(6, "healthy")).await;
    world.say(&*one, "s", word(9, "healthy")).await;
    eventually("four are old", || registry.stats().stale == 4).await;
    assert!(registry.services().is_empty(), "who left stays away");
    assert_eq!(registry.stats().left, 1);
}

pub(crate) async fn there_are_bounds(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let registry = world.registry(&other).max_instances(10).max_services(3).start().await.unwrap();
    registry.current().await.unwrap();
    for number in 0..30 {
        for service in ["a", "b", "c", "d"] {
            let body = json!({"service": service, "instance": number.to_string(), "sequence": 1});
            world.say(&*one, service, announce(&body)).await;
        }
    }
    eventually("all were heard", || {
        let stats = registry.stats();
        stats.announcements + stats.beyond_bounds == 120
    })
    .await;
    assert_eq!(registry.stats().announcements, 10);
    assert_eq!(registry.services(), ["a", "b", "c"]);
    // Who leaves makes room.
    let goodbye = leave(&json!({"service": "a", "instance": "0", "sequence": 2}));
    world.say(&*one, "a", goodbye).await;
    let body = json!({"service": "b", "instance": "late", "sequence": 1});
    world.say(&*one, "b", announce(&body)).await;
    eventually("there was room", || ids(&registry, "b").contains(&"late".to_owned())).await;
}
