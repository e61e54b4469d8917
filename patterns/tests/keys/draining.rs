//! What a drain does when others have their hands in the dead letters, and when there is no room.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use postrider_core::{Address, ConsumerOptions, Envelope, Message, PublisherExt, PublisherOptions};
use postrider_patterns::{
    DeadLetterFilter, DeadLetters, HandlerError, RedriveOptions, RetryPolicy, Subscription,
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::world::{SOON, Seen, World, ledger, moved, stop, until};

/// Gives up at once while it is not well.
fn while_well(seen: &Seen, is_well: &Arc<AtomicBool>) -> Subscription {
    let (seen, is_well) = (seen.clone(), Arc::clone(is_well));
    let subscription = ledger(move |event, _context| {
        let (seen, is_well) = (seen.clone(), is_well.load(Ordering::SeqCst));
        async move {
            if !is_well {
                return Err(HandlerError::transient("not now"));
            }
            seen.push(event);
            Ok(())
        }
    });
    subscription.retry(RetryPolicy::never())
}

/// Waits for a number of letters; those that somebody looks at are not there meanwhile.
async fn come_to(letters: &[DeadLetters], wanted: u64) {
    let mut found = 0;
    let coming = timeout(SOON, async {
        loop {
            found = 0;
            for letters in letters {
                found += letters.count().await.unwrap();
            }
            if found == wanted {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let came = coming.await;
    assert!(came.is_ok(), "there are {found} dead letters, not {wanted}");
}

/// Nothing comes out of a full partition, not even an order to drain it.
pub(crate) async fn a_full_partition_is_drained_by_a_redrive(world: &World) {
    const EVENTS: u32 = 1_050;
    let (connection, bus) = world.connected().await;
    let (seen, is_well) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let subscription = while_well(&seen, &is_well).ordered_by_key(1).prefetch(10).concurrency(2);
    let running = bus.subscribe(subscription).await.unwrap();
    let accounts = ["a", "b", "c"];
    let account = |number| accounts[number as usize % accounts.len()];
    let events: Vec<_> = (0..EVENTS).map(|number| moved(account(number), number)).collect();
    bus.publish_all(&events).await.unwrap();
    let letters = &world.letters(&connection.transport)[..1];
    come_to(letters, 1_000).await;
    is_well.store(true, Ordering::SeqCst);
    let mut draining = 0;
    for letters in letters {
        draining += letters
            .redrive(&DeadLetterFilter::all(), RedriveOptions::default())
            .await
            .unwrap()
            .draining;
    }
    assert_eq!(draining, 1_000);
    let patience = async {
        while seen.number() < EVENTS as usize {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(3 * SOON, patience).await.expect("all are handled");
    for (first, account) in (0..).zip(accounts) {
        let expected: Vec<_> = (first..EVENTS).step_by(accounts.len()).collect();
        assert_eq!(seen.of(account), expected);
    }
    come_to(letters, 0).await;
    stop(running).await;
}

/// Its letters are handled, and one of them is in somebody's hands when they are to be taken away.
pub(crate) async fn a_key_goes_on_when_its_letters_are_gone_and_not_before(world: &World) {
    let (connection, bus) = world.connected().await;
    let transport = &connection.transport;
    let (seen, is_well) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let gate = Arc::new(Semaphore::new(0));
    let (noted, well, open) = (seen.clone(), Arc::clone(&is_well), Arc::clone(&gate));
    let subscription = ledger(move |event, _context| {
        let (seen, is_well) = (noted.clone(), well.load(Ordering::SeqCst));
        let open = Arc::clone(&open);
        async move {
            if !is_well {
                return Err(HandlerError::transient("not now"));
            }
            open.acquire().await?.forget();
            seen.push(event);
            Ok(())
        }
    });
    let running = bus.subscribe(subscription.retry(RetryPolicy::never())).await.unwrap();
    for number in 0..3 {
        bus.publish(&moved("sick", number)).await.unwrap();
    }
    let letters = world.letters(transport);
    come_to(&letters, 3).await;
    is_well.store(true, Ordering::SeqCst);
    bus.drain_key("ledger", "accounts", "sick").await.unwrap();
    gate.add_permits(2);
    until("the first two are done", || seen.of("sick") == [0, 1]).await;
    let mut held = None;
    for letters in &letters {
        if letters.count().await.unwrap() > 0 {
            let options = ConsumerOptions::default().with_prefetch(1);
            let mut consumer = transport.consumer(letters.queue(), options).await.unwrap();
            let delivery = timeout(SOON, consumer.recv()).await.unwrap().unwrap().unwrap();
            drop(consumer);
            held = Some(delivery);
        }
    }
    bus.publish(&moved("sick", 3)).await.unwrap();
    gate.add_permits(2);
    until("the third is done", || seen.of("sick") == [0, 1, 2]).await;
    // The rest is taken away, and the one that is held is waited for.
    come_to(&letters, 0).await;
    assert_eq!(seen.of("sick"), [0, 1, 2]);
    held.expect("a letter").release();
    until("the key goes on", || seen.of("sick") == [0, 1, 2, 3]).await;
    come_to(&letters, 0).await;
    stop(running).await;
}

pub(crate) async fn different_events_of_one_id_are_both_drained(world: &World) {
    let (connection, bus) = world.connected().await;
    let transport = &connection.transport;
    let (seen, is_well) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let running = bus.subscribe(while_well(&seen, &is_well)).await.unwrap();
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    // A plain client whose ids begin anew; the last one is a copy.
    for number in [0, 1, 1] {
        let body = format!(
            r#"{{"event_type":"account.moved","aggregate_id":"sick",
                "data":{{"account":"sick","number":{number}}}}}"#
        );
        let message = Message::new(body)
            .with_content_type("application/json")
            .with_key("sick")
            .with_message_id("1");
        let address = Address::exchange(world.naming.event_exchange(), "account.moved");
        publisher.publish(Envelope::new(address, message)).await.unwrap();
    }
    let letters = world.letters(transport);
    come_to(&letters, 3).await;
    is_well.store(true, Ordering::SeqCst);
    bus.drain_key("ledger", "accounts", "sick").await.unwrap();
    until("both are handled", || seen.of("sick").len() == 2).await;
    come_to(&letters, 0).await;
    assert_eq!(seen.of("sick"), [0, 1]);
    stop(running).await;
}

pub(crate) async fn a_redrive_of_one_drains_one_key(world: &World) {
    let (connection, bus) = world.connected().await;
    let (seen, is_well) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let running = bus.subscribe(while_well(&seen, &is_well)).await.unwrap();
    let publish = async |number| {
        for account in ["a", "b", "c", "d", "e"] {
            bus.publish(&moved(account, number)).await.unwrap();
        }
    };
    publish(0).await;
    publish(1).await;
    let all = world.letters(&connection.transport);
    come_to(&all, 10).await;
    is_well.store(true, Ordering::SeqCst);
    let mut handled = 0;
    for letters in &all {
        if letters.count().await.unwrap() == 0 {
            continue;
        }
        let report = letters
            .redrive(&DeadLetterFilter::all(), RedriveOptions::default().with_most(1))
            .await
            .unwrap();
        assert_eq!((report.done, report.draining), (0, 1), "{report:?}");
        handled += 2;
        until("a key is drained", || seen.number() == handled).await;
        come_to(&all, 10 - handled as u64).await;
    }
    assert!(handled >= 2);
    for letters in &all {
        let report = letters.redrive(&DeadLetterFilter::all(), RedriveOptions::default()).await;
        assert_eq!(report.unwrap().failed, 0);
    }
    until("all are handled", || seen.number() == 10).await;
    seen.assert_in_order();
    stop(running).await;
}
