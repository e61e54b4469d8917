//! Connections are lost, and instances come and go.

use std::{sync::Arc, time::Duration};

use postrider_patterns::DeadLetterFilter;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::world::{SOON, Seen, World, events, ledger, moved, noting, stop, subscribed, until};

const ACCOUNTS: u32 = 12;
const ROUNDS: u32 = 8;

pub(crate) async fn instances_come_and_go_and_the_order_stays(world: &World) {
    let (_connection, bus) = world.connected().await;
    let seen = Seen::default();
    let mut instances = Vec::new();
    for round in 0..ROUNDS {
        let (connection, own) = world.connected().await;
        let running = subscribed(&own, || noting(&seen)).await;
        instances.push((connection, running));
        for number in 5 * round..5 * (round + 1) {
            for of in 0..ACCOUNTS {
                bus.publish(&moved(&format!("account-{of}"), number)).await.unwrap();
            }
        }
        if round % 2 == 1 {
            // The one that takes the partitions goes in the midst of it.
            let (_connection, running) = instances.remove(0);
            stop(running).await;
        }
    }
    let expected = (ACCOUNTS * 5 * ROUNDS) as usize;
    until("all are handled", || seen.number() == expected).await;
    seen.assert_in_order();
    for (_connection, running) in instances {
        stop(running).await;
    }
}

pub(crate) async fn lost_connections_invert_no_key(world: &World) {
    let (_connection, bus) = world.connected().await;
    let seen = Seen::default();
    let (doomed, own) = world.connected().await;
    let running = own.subscribe(noting(&seen)).await.unwrap();
    let (_other, others) = world.connected().await;
    let standby = others.subscribe(noting(&seen)).await.unwrap();
    let all = events(ACCOUNTS, 5 * ROUNDS);
    for part in all.chunks(all.len() / 4) {
        bus.publish_all(part).await.unwrap();
        sleep(Duration::from_millis(2)).await;
        doomed.cut().await;
    }
    until("all are handled", || seen.number() == all.len()).await;
    seen.assert_in_order();
    stop(running).await;
    stop(standby).await;
}

pub(crate) async fn what_is_lost_is_given_up_before_another_has_it(world: &World) {
    let (_connection, bus) = world.connected().await;
    let (doomed, own) = world.connected().await;
    let late = Seen::default();
    let (noted, go_on) = (late.clone(), Arc::new(Notify::new()));
    let (waiting, begun) = (Arc::clone(&go_on), Arc::new(Notify::new()));
    let begins = Arc::clone(&begun);
    let subscription = ledger(move |event, _context| {
        let (late, go_on, begun) = (noted.clone(), Arc::clone(&waiting), Arc::clone(&begins));
        async move {
            begun.notify_one();
            go_on.notified().await;
            late.push(event);
            Ok(())
        }
    });
    let running = own.subscribe(subscription).await.unwrap();
    let (_other, others) = world.connected().await;
    let seen = Seen::default();
    let standby = others.subscribe(noting(&seen)).await.unwrap();
    bus.publish_all(&events(1, 3)).await.unwrap();
    begun.notified().await;
    doomed.cut().await;
    until("another has them", || seen.number() == 3).await;
    go_on.notify_waiters();
    stop(running).await;
    assert_eq!((late.number(), seen.of("account-0")), (0, vec![0, 1, 2]));
    stop(standby).await;
}

pub(crate) async fn what_ends_its_process_each_time_parks_its_key_too(world: &World) {
    let (connection, bus) = world.connected().await;
    let (doomed, own) = world.connected().await;
    let begun = Arc::new(Notify::new());
    let begins = Arc::clone(&begun);
    let subscription = ledger(move |_event, _context| {
        begins.notify_one();
        std::future::pending()
    });
    let running = own.subscribe(subscription.delivery_limit(5)).await.unwrap();
    bus.publish_all(&events(1, 2)).await.unwrap();
    for _ in 0..5 {
        timeout(SOON, begun.notified()).await.unwrap();
        doomed.cut().await;
    }
    until("it is given up, and what follows it", || running.stats().dead_lettered == 2).await;
    let mut codes = Vec::new();
    for letters in world.letters(&connection.transport) {
        for letter in letters.list(&DeadLetterFilter::all()).await.unwrap() {
            codes.push(letter.code().unwrap().to_owned());
        }
    }
    assert_eq!(codes, ["DELIVERY_LIMIT", "KEY_PARKED"]);
    stop(running).await;
}
