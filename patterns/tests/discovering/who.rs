//! Coming, going, and what is told.

use std::time::Duration;

use postrider_core::ErrorKind;
use postrider_patterns::{
    Codec,
    discovery::{Announcement, Change, InstanceHealth, RegistryState, Version},
};

use super::world::{SECOND, SOON, World, eventually, ids, next, now};

pub(crate) async fn an_instance_is_known_with_all_it_says(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let registry = world.registry(&other).start().await.unwrap();
    let mut changes = registry.changes();
    let announcer = world
        .announcement("inventory", "1.4.2-rc.1+build.7")
        .methods(["reserve", "release"])
        .metadata("zone", "north")
        .health(InstanceHealth::Degraded("cold cache".into()))
        .start(&one)
        .await
        .unwrap();
    let Change::Joined(instance) = next(&mut changes).await else { panic!("it joins") };
    assert_eq!(instance.service, "inventory");
    assert_eq!(instance.id, announcer.id());
    assert_eq!(instance.version, Version::parse("1.4.2-rc.1+build.7").unwrap());
    assert_eq!(instance.methods, ["reserve", "release"]);
    assert_eq!(instance.metadata["zone"], "north");
    assert_eq!(instance.health, InstanceHealth::Degraded("cold cache".into()));
    assert_eq!(registry.services(), ["inventory"]);
    assert_eq!(registry.instances("inventory"), [instance]);
    assert!(registry.instances("invent").is_empty());
    announcer.leave().await.unwrap();
    for transport in [one, other] {
        transport.close(SOON).await.unwrap();
    }
    eventually("a registry is closed with its transport", || {
        registry.state() == RegistryState::Closed
    })
    .await;
    assert_eq!(registry.current().await.unwrap_err().kind(), ErrorKind::Closed);
}

pub(crate) async fn a_newcomer_learns_everybody_at_once(world: &World) {
    const NUMBER: usize = 20;
    let (one, other) = (world.transport().await, world.transport().await);
    let mut announcers = Vec::new();
    for number in 0..NUMBER {
        // Who is silent for an hour answers who asks.
        let announcement = world.announcement(&format!("service.{}", number % 3), "1.0.0");
        let announcement = announcement.heartbeat(1_000 * SECOND).lease(3_600 * SECOND);
        announcers.push(announcement.start(&one).await.unwrap());
    }
    let began = now();
    let registry = world.registry(&other).start().await.unwrap();
    assert_eq!(registry.state(), RegistryState::Asking);
    registry.current().await.unwrap();
    assert!(now() - began < 10 * SECOND, "it took {:?}", now() - began);
    let known: usize =
        registry.services().iter().map(|service| registry.instances(service).len()).sum();
    assert_eq!(known, NUMBER);
    assert_eq!(registry.services(), ["service.0", "service.1", "service.2"]);
    assert_eq!(registry.stats().stale, 0);
    for announcer in announcers {
        announcer.leave().await.unwrap();
    }
    eventually("all are gone", || registry.services().is_empty()).await;
    assert_eq!(registry.stats().left, NUMBER as u64);
}

pub(crate) async fn who_leaves_is_gone_at_once(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    // A lease of an hour would be waited for.
    let announcement = world.announcement("mail", "1.0.0").lease(3_600 * SECOND);
    let announcer = announcement.start(&one).await.unwrap();
    let registry = world.current(&other).await;
    let mut changes = registry.changes_of("mail");
    assert!(matches!(next(&mut changes).await, Change::Joined(_)));
    let id = announcer.id().to_owned();
    announcer.leave().await.unwrap();
    let Change::Left(gone) = next(&mut changes).await else { panic!("it left") };
    assert_eq!(gone.id, id);
    assert!(registry.services().is_empty());
}

pub(crate) async fn who_is_dropped_leaves_too(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let announcement = world.announcement("mail", "1.0.0").lease(3_600 * SECOND);
    let announcer = announcement.start(&one).await.unwrap();
    let registry = world.current(&other).await;
    let mut changes = registry.changes();
    assert!(matches!(next(&mut changes).await, Change::Joined(_)));
    drop(announcer);
    assert!(matches!(next(&mut changes).await, Change::Left(_)));
}

pub(crate) async fn who_dies_is_gone_after_its_lease(world: &World) {
    let (doomed, living, other) =
        (world.transport().await, world.transport().await, world.transport().await);
    let dying = world.announcement("mail", "1.0.0").start(&doomed).await.unwrap();
    let staying = world.announcement("mail", "1.0.0").start(&living).await.unwrap();
    let registry = world.current(&other).await;
    let mut changes = registry.changes();
    for _ in 0..2 {
        assert!(matches!(next(&mut changes).await, Change::Joined(_)));
    }
    // Nobody can say goodbye any more.
    doomed.close(SECOND).await.unwrap();
    let died = now();
    let Change::Expired(gone) = next(&mut changes).await else { panic!("its lease is over") };
    assert_eq!(gone.id, dying.id());
    let took = now() - died;
    // It was heard at most half a second before; a lease is two, and a second is added.
    assert!(took > 2 * SECOND && took < 10 * SECOND, "it took {took:?}");
    assert_eq!(ids(&registry, "mail"), [staying.id()]);
    assert_eq!(registry.stats().expired, 1);
    staying.leave().await.unwrap();
}

pub(crate) async fn health_is_told_at_once(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let announcement = world.announcement("mail", "1.0.0").heartbeat(1_000 * SECOND);
    let announcer = announcement.lease(3_600 * SECOND).start(&one).await.unwrap();
    let registry = world.current(&other).await;
    let mut changes = registry.changes();
    assert!(matches!(next(&mut changes).await, Change::Joined(_)));
    for health in [
        InstanceHealth::Unhealthy("no database".into()),
        InstanceHealth::Degraded("slow database".into()),
        InstanceHealth::Healthy,
    ] {
        announcer.set_health(health.clone()).unwrap();
        let Change::Changed(changed) = next(&mut changes).await else { panic!("it changed") };
        assert_eq!(changed.health, health);
    }
    // What is too much to be told is refused, and what was said stays.
    let too_long = InstanceHealth::Unhealthy("x".repeat(20_000));
    assert_eq!(announcer.set_health(too_long).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(registry.instances("mail")[0].health, InstanceHealth::Healthy);
    announcer.leave().await.unwrap();
}

pub(crate) async fn a_restart_is_another_instance(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let first = world.announcement("mail", "1.0.0").start(&one).await.unwrap();
    let registry = world.current(&other).await;
    let first_id = first.id().to_owned();
    first.leave().await.unwrap();
    let second = world.announcement("mail", "1.0.1").start(&one).await.unwrap();
    assert_ne!(second.id(), first_id);
    eventually("the second is there alone", || ids(&registry, "mail") == [second.id()]).await;
    second.leave().await.unwrap();
}

pub(crate) async fn some_services_are_heard_and_others_not(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let mut announcers = Vec::new();
    for service in ["mail", "mail.archive", "stock"] {
        let announcement = world.announcement(service, "1.0.0").heartbeat(1_000 * SECOND);
        announcers.push(announcement.lease(3_600 * SECOND).start(&one).await.unwrap());
    }
    let registry = world.registry(&other).services(["mail", "stock"]).start().await.unwrap();
    registry.current().await.unwrap();
    assert_eq!(registry.services(), ["mail", "stock"], "they were asked, and they alone");
    announcers.push(world.announcement("mail.archive", "1.0.0").start(&one).await.unwrap());
    announcers.push(world.announcement("stock", "1.0.0").start(&one).await.unwrap());
    eventually("one more", || registry.instances("stock").len() == 2).await;
    assert_eq!(registry.services(), ["mail", "stock"]);
    for announcer in announcers {
        announcer.leave().await.unwrap();
    }
}

pub(crate) async fn both_codecs_meet(world: &World) {
    let (one, other) = (world.transport().await, world.transport().await);
    let mut announcers = Vec::new();
    for codec in [Codec::Json, Codec::MessagePack] {
        let announcement = world.announcement("mail", "1.0.0").metadata("codec", codec.to_string());
        announcers.push(announcement.codec(codec).start(&one).await.unwrap());
    }
    let registry = world.current(&other).await;
    let mut codecs: Vec<_> = registry
        .instances("mail")
        .iter()
        .map(|instance| instance.metadata["codec"].clone())
        .collect();
    codecs.sort_unstable();
    assert_eq!(codecs, ["json", "msgpack"]);
    for announcer in announcers {
        announcer.leave().await.unwrap();
    }
}

pub(crate) async fn announcements_that_are_not_sound_are_refused(world: &World) {
    let transport = world.transport().await;
    let sound = |service: &str| {
        Announcement::new(service, Version::new(1, 0, 0)).naming(world.naming.clone())
    };
    for wrong in [
        sound(""),
        sound("mail.*"),
        sound("mail").lease(SECOND / 2),
        sound("mail").lease(4_000 * SECOND),
        sound("mail").heartbeat(8 * SECOND),
        sound("mail").heartbeat(Duration::ZERO),
        sound("mail").metadata("what", "x".repeat(17_000)),
    ] {
        let refused = wrong.clone().start(&transport).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{wrong:?}");
    }
    let many = (0..101).map(|number| number.to_string());
    let refused = world.registry(&transport).services(many).start().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let pattern = world.registry(&transport).services(["#"]).start().await.unwrap_err();
    assert_eq!(pattern.kind(), ErrorKind::Invalid);
}
