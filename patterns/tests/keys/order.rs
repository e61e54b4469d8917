//! Order while nothing fails.

use std::sync::Arc;

use postrider_core::{Address, Envelope, ErrorKind, Message, PublisherExt, PublisherOptions};
use postrider_patterns::Subscription;
use tokio::sync::Notify;

use crate::suite::World as _;

use super::world::{PARTITIONS, Seen, World, events, ledger, moved, noting, stop, until};

pub(crate) async fn each_key_keeps_its_order(world: &World) {
    let (_connection, bus) = world.connected().await;
    let seen = Seen::default();
    let running = bus.subscribe(noting(&seen)).await.unwrap();
    bus.publish_all(&events(20, 10)).await.unwrap();
    until("all are handled", || seen.number() == 200).await;
    for (account, numbers) in seen.first() {
        assert_eq!(seen.of(&account), numbers, "each once");
        assert_eq!(numbers, (0..10).collect::<Vec<_>>(), "{account}");
    }
    assert_eq!(seen.first().len(), 20);
    until("all are settled", || running.stats().acked == 200).await;
    stop(running).await;
}

pub(crate) async fn a_slow_key_holds_up_no_other(world: &World) {
    let (_connection, bus) = world.connected().await;
    let (seen, go_on) = (Seen::default(), Arc::new(Notify::new()));
    let (noted, waiting) = (seen.clone(), Arc::clone(&go_on));
    let subscription = ledger(move |event, _context| {
        let (seen, go_on) = (noted.clone(), Arc::clone(&waiting));
        async move {
            if event.account == "slow" && event.number == 0 {
                go_on.notified().await;
            }
            seen.push(event);
            Ok(())
        }
    });
    let running = bus.subscribe(subscription.concurrency(2)).await.unwrap();
    for number in 0..3 {
        bus.publish(&moved("slow", number)).await.unwrap();
    }
    bus.publish_all(&events(20, 2)).await.unwrap();
    until("the others are handled", || seen.number() == 40).await;
    assert_eq!(seen.of("slow"), [0; 0]);
    go_on.notify_one();
    until("the slow one is handled", || seen.number() == 43).await;
    assert_eq!(seen.of("slow"), [0, 1, 2]);
    stop(running).await;
}

pub(crate) async fn events_of_plain_clients_and_without_a_key_come_too(world: &World) {
    let (connection, bus) = world.connected().await;
    let seen = Seen::default();
    let running = bus.subscribe(noting(&seen)).await.unwrap();
    let publisher = connection.transport.publisher(PublisherOptions::default()).await.unwrap();
    let address = Address::exchange(world.naming.event_exchange(), "account.moved");
    for number in 0..10 {
        for (account, key) in [("plain", r#""plain""#), ("keyless", "null")] {
            let body = format!(
                r#"{{"aggregate_id":{key},"data":{{"account":"{account}","number":{number}}}}}"#
            );
            let message = Message::new(body).with_content_type("application/json");
            publisher.publish(Envelope::new(address.clone(), message)).await.unwrap();
        }
    }
    until("all are handled", || seen.number() == 20).await;
    assert_eq!(seen.of("plain"), (0..10).collect::<Vec<_>>());
    stop(running).await;
}

pub(crate) async fn what_cannot_keep_order_is_refused(world: &World) {
    let (_connection, bus) = world.connected().await;
    for number in [0, 65] {
        let refused = bus.subscribe(noting(&Seen::default()).ordered_by_key(number)).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid, "{number} partitions");
    }
    let alone =
        Subscription::ephemeral("watch").on_pattern("#", |_event, _context| async { Ok(()) });
    let refused = bus.subscribe(alone.ordered_by_key(4)).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid, "an ephemeral one");

    let plain = Subscription::durable("ledger", "accounts")
        .on_pattern("account.#", |_event, _context| async { Ok(()) });
    let before = bus.subscribe(plain).await.unwrap();
    let refused = bus.subscribe(noting(&Seen::default())).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Mismatch, "beside its queue from before");
    stop(before).await;

    // Of another name, so that it has no such queue; its exchanges and queues are cleared by hand.
    world.clear().await;
    let (_connection, bus) = world.connected().await;
    let running = bus.subscribe(noting(&Seen::default())).await.unwrap();
    let refused = bus.subscribe(noting(&Seen::default()).ordered_by_key(PARTITIONS - 1)).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Mismatch, "another number");
    stop(running).await;
}
