//! How a service is known to the registries.

use postrider_core::{ErrorKind, Queue, Topology};
use postrider_patterns::discovery::{Change, InstanceHealth};

use super::world::{Gated, SECOND, SOON, World, service, soon, until};

pub(crate) async fn a_service_is_in_the_registry_from_its_start_to_its_stop(world: &World) {
    let registry = world.registry().await;
    let mut changes = registry.changes_of("mail");
    let transport = world.transport().await;
    let (worker, mut gated) = Gated::worker(world);
    let methods = world.calls().describe().methods.into_iter().map(|method| method.name);
    let running = service(&transport)
        .worker(worker)
        .rpc(world.calls())
        .announce(world.announcement().methods(methods))
        .stop_deadline(SOON)
        .start()
        .await
        .unwrap();
    let Some(Change::Joined(instance)) = soon(changes.next()).await else {
        panic!("it has not joined");
    };
    assert_eq!((&*instance.service, &instance.methods[..]), ("mail", &["ping".to_owned()][..]));
    assert_eq!(instance.health, InstanceHealth::Healthy);
    world.submit(&transport, 1).await;
    gated.begun(1).await;
    let stop = tokio::spawn(running.stop());
    // Nobody picks it any more while it finishes what it has in hand.
    let left = soon(changes.next()).await;
    assert!(matches!(&left, Some(Change::Left(gone)) if gone.id == instance.id), "{left:?}");
    assert!(!stop.is_finished());
    gated.open.add_permits(1);
    assert!(soon(stop).await.unwrap().is_clean());
}

pub(crate) async fn a_service_is_announced_as_its_parts_fare(world: &World) {
    let registry = world.registry().await;
    let transport = world.transport().await;
    let (worker, _gated) = Gated::worker(world);
    let cold = InstanceHealth::Degraded("the cache is cold".to_owned());
    let running = service(&transport)
        .worker(worker)
        .rpc(world.calls())
        .announce(world.announcement().health(cold.clone()))
        .start()
        .await
        .unwrap();
    let health = || {
        let known = registry.instances("mail");
        known.first().map(|instance| instance.health.clone())
    };
    let told = || format!("{:?}", health());
    until(|| health().as_ref() == Some(&cold), told).await;
    let email = Topology::new().queue(Queue::durable(world.name("email")));
    world.transport().await.remove(&email).await.unwrap();
    let reason = format!("worker {} consumes no more", world.name("email"));
    until(|| health() == Some(InstanceHealth::Unhealthy(reason.clone())), told).await;
    drop(running);
    until(|| health().is_none(), told).await;
}

pub(crate) async fn an_announcement_that_cannot_be_is_refused(world: &World) {
    let transport = world.transport().await;
    let hasty = world.announcement().heartbeat(10 * SECOND);
    let hasty = service(&transport).rpc(world.calls()).announce(hasty);
    let twice = [world.announcement(), world.announcement()];
    let [first, second] = twice;
    let twice = service(&transport).rpc(world.calls()).announce(first).announce(second);
    let alone = service(&transport).announce(world.announcement());
    let refused = [
        (hasty, "two heartbeats"),
        (twice, "two parts are 'announcement mail'"),
        (alone, "without parts"),
    ];
    for (service, why) in refused {
        let planned = service.plan().unwrap_err();
        let error = service.start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(planned.to_string(), error.to_string());
    }
    assert_eq!(world.queue(&transport, "rpc_mail").await, (0, 0), "nothing was declared");
}
