//! Which instance is picked.

use std::{collections::BTreeMap, sync::Arc};

use postrider_core::Transport;
use postrider_patterns::discovery::{
    Announcer, InstanceHealth, Pick, Picked, Registry, VersionReq,
};

use super::world::{World, eventually, ids};

async fn several(world: &World, versions: &[&str]) -> (Vec<Announcer>, Registry) {
    let (one, other): (Arc<dyn Transport>, _) = (world.transport().await, world.transport().await);
    let mut announcers = Vec::new();
    for version in versions {
        announcers.push(world.announcement("stock", version).start(&one).await.unwrap());
    }
    let registry = world.current(&other).await;
    assert_eq!(registry.instances("stock").len(), versions.len());
    (announcers, registry)
}

async fn leave(announcers: Vec<Announcer>) {
    for announcer in announcers {
        announcer.leave().await.unwrap();
    }
}

fn pick(registry: &Registry, pick: &Pick) -> Picked {
    registry.pick("stock", pick).expect("somebody")
}

pub(crate) async fn turns_go_round(world: &World) {
    let (mut announcers, registry) = several(world, &["1.0.0"; 3]).await;
    let ids_now = ids(&registry, "stock");
    let turn = || pick(&registry, &Pick::round_robin()).id.clone();
    let turns: Vec<_> = (0..7).map(|_| turn()).collect();
    for (number, id) in turns.iter().enumerate() {
        assert_eq!(*id, ids_now[number % 3]);
    }
    let gone = announcers.remove(0);
    gone.leave().await.unwrap();
    eventually("two are left", || registry.instances("stock").len() == 2).await;
    let turns: Vec<_> = (0..4).map(|_| turn()).collect();
    assert_eq!(turns[0], turns[2]);
    assert_eq!(turns[1], turns[3]);
    assert_ne!(turns[0], turns[1]);
    assert!(registry.pick("nobody", &Pick::round_robin()).is_none());
    leave(announcers).await;
}

pub(crate) async fn the_least_pending_is_picked(world: &World) {
    let (announcers, registry) = several(world, &["1.0.0"; 3]).await;
    let least = Pick::least_pending();
    let mut held: Vec<_> = (0..6).map(|_| pick(&registry, &least)).collect();
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for picked in &held {
        *shares.entry(picked.id.clone()).or_default() += 1;
    }
    assert!(shares.len() == 3 && shares.values().all(|share| *share == 2), "{shares:?}");
    let freed = held.remove(1);
    let id = freed.id.clone();
    drop(freed);
    let next = pick(&registry, &least);
    assert_eq!(next.id, id);
    assert!(!next.is_gone());
    leave(announcers).await;
    eventually("it is gone", || next.is_gone()).await;
}

pub(crate) async fn a_key_stays_with_its_instance(world: &World) {
    let (mut announcers, registry) = several(world, &["1.0.0"; 4]).await;
    let keys: Vec<_> = (0..200).map(|number| format!("customer-{number}")).collect();
    let map = || -> BTreeMap<&str, String> {
        keys.iter().map(|key| (&**key, pick(&registry, &Pick::by_key(key)).id.clone())).collect()
    };
    let before = map();
    assert_eq!(before, map());
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for id in before.values() {
        *shares.entry(id).or_default() += 1;
    }
    assert!(shares.len() == 4 && shares.values().all(|share| *share > 20), "{shares:?}");
    let gone = announcers.remove(2);
    let gone_id = gone.id().to_owned();
    gone.leave().await.unwrap();
    eventually("three are left", || registry.instances("stock").len() == 3).await;
    for (key, id) in map() {
        assert!(before[key] == id || before[key] == gone_id, "only the keys of who left move");
        assert_ne!(id, gone_id);
    }
    leave(announcers).await;
}

pub(crate) async fn a_version_is_required(world: &World) {
    let (announcers, registry) = several(world, &["1.3.9", "1.4.0", "1.9.2", "2.0.0-rc.1"]).await;
    let versions = |requirement: &str| {
        let requirement = VersionReq::parse(requirement).unwrap();
        let wanted = Pick::round_robin().version(requirement);
        let mut versions: Vec<_> = (0..8)
            .filter_map(|_| registry.pick("stock", &wanted))
            .map(|picked| picked.version.to_string())
            .collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    };
    assert_eq!(versions("^1.4"), ["1.4.0", "1.9.2"]);
    assert_eq!(versions("<1.4"), ["1.3.9"]);
    assert_eq!(versions(">=2.0.0-rc.0"), ["2.0.0-rc.1"]);
    assert_eq!(versions("^3"), [""; 0]);
    leave(announcers).await;
}

pub(crate) async fn health_decides(world: &World) {
    let (announcers, registry) = several(world, &["1.0.0"; 2]).await;
    let [first, second] = &announcers[..] else { panic!("two") };
    let picked = || -> Vec<String> {
        let picks = (0..4).filter_map(|_| registry.pick("stock", &Pick::round_robin()));
        let mut ids: Vec<_> = picks.map(|picked| picked.id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    first.set_health(InstanceHealth::Degraded("slow".into())).unwrap();
    eventually("only the healthy one", || picked() == [second.id()]).await;
    second.set_health(InstanceHealth::Unhealthy("broken".into())).unwrap();
    eventually("only the degraded one", || picked() == [first.id()]).await;
    first.set_health(InstanceHealth::Unhealthy("broken".into())).unwrap();
    eventually("nobody", || picked().is_empty()).await;
    assert_eq!(registry.instances("stock").len(), 2, "they are there all the same");
    leave(announcers).await;
}
