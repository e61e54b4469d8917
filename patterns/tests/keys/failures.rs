//! Events fail, and their keys wait.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use postrider_core::Env;
use postrider_patterns::{
    DeadLetterFilter, HandlerError, KeyFailure, RedriveOptions, Subscription,
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::world::{
    SOON, Seen, World, events, ledger, moved, noting, quick, stop, subscribed, until,
};

pub(crate) async fn a_failing_event_holds_up_its_key_alone(world: &World) {
    let (_connection, bus) = world.connected().await;
    let (seen, is_well) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let (noted, well) = (seen.clone(), Arc::clone(&is_well));
    let subscription = ledger(move |event, context| {
        let (seen, is_well) = (noted.clone(), well.load(Ordering::SeqCst));
        async move {
            if event.account == "sick" && event.number == 1 && !is_well {
                return Err(HandlerError::transient("not yet"));
            }
            if event.account == "sick" {
                assert_eq!(context.attempt() > 1, event.number == 1);
            }
            seen.push(event);
            Ok(())
        }
    });
    let often = quick().with_immediate(0).with_delayed(10).with_delay(
        Duration::from_secs(1),
        1.0,
        Duration::from_secs(1),
    );
    // One place: what waits for its next try does not take it.
    let running = bus.subscribe(subscription.concurrency(1).prefetch(20).retry(often));
    let running = running.await.unwrap();
    for number in 0..4 {
        bus.publish(&moved("sick", number)).await.unwrap();
    }
    bus.publish_all(&events(10, 2)).await.unwrap();
    until("the others are handled", || seen.number() == 21).await;
    assert_eq!(seen.of("sick"), [0]);
    until("it is tried again", || running.stats().retried >= 1).await;
    is_well.store(true, Ordering::SeqCst);
    until("the key goes on", || seen.number() == 24).await;
    assert_eq!(seen.of("sick"), [0, 1, 2, 3]);
    stop(running).await;
}

/// Handles everything but what `number` it is told not to be well for.
fn sick_at(seen: &Seen, sick: &Arc<AtomicU32>) -> Subscription {
    let (seen, sick) = (seen.clone(), Arc::clone(sick));
    ledger(move |event, _context| {
        let (seen, is_sick) = (seen.clone(), sick.load(Ordering::SeqCst) == event.number);
        async move {
            if is_sick && event.account == "sick" {
                return Err(HandlerError::transient("not now"));
            }
            seen.push(event);
            Ok(())
        }
    })
}

const NONE: u32 = u32::MAX;

pub(crate) async fn a_given_up_event_parks_its_key_until_it_is_drained(world: &World) {
    let (connection, bus) = world.connected().await;
    let (seen, sick) = (Seen::default(), Arc::new(AtomicU32::new(1)));
    let running = bus.subscribe(sick_at(&seen, &sick)).await.unwrap();
    for number in 0..4 {
        bus.publish(&moved("sick", number)).await.unwrap();
    }
    bus.publish_all(&events(6, 3)).await.unwrap();
    until("it and those behind it are kept", || running.stats().dead_lettered == 3).await;
    until("the others go on", || seen.number() == 19).await;
    assert_eq!(seen.of("sick"), [0]);
    let letters = world.letters(&connection.transport);
    let mut codes = Vec::new();
    for letters in &letters {
        for letter in letters.list(&DeadLetterFilter::all()).await.unwrap() {
            assert_eq!(letter.original().headers.get("postrider-parked-key"), None);
            codes.push(letter.code().unwrap().to_owned());
        }
    }
    codes.sort_unstable();
    assert_eq!(codes, ["KEY_PARKED", "KEY_PARKED", "TRANSIENT"]);

    // It fails again, later on: what is before it is done with, and the rest stays.
    sick.store(2, Ordering::SeqCst);
    bus.drain_key("ledger", "accounts", "sick").await.unwrap();
    until("it is done up to there", || seen.of("sick") == [0, 1]).await;
    bus.publish(&moved("sick", 4)).await.unwrap();
    let patience = timeout(SOON, async {
        while world.parked(&connection.transport, "sick").await.len() != 3 {
            sleep(Duration::from_millis(20)).await;
        }
    });
    patience.await.expect("what was handled is no dead letter any more");

    sick.store(NONE, Ordering::SeqCst);
    bus.drain_key("ledger", "accounts", "sick").await.unwrap();
    bus.publish(&moved("sick", 5)).await.unwrap();
    until("all are handled", || seen.of("sick") == [0, 1, 2, 3, 4, 5]).await;
    stop(running).await;
    assert_eq!(world.parked(&connection.transport, "sick").await, [0; 0]);
}

pub(crate) async fn a_parked_key_stays_parked_for_the_next_instance(world: &World) {
    let (connection, bus) = world.connected().await;
    let (seen, sick) = (Seen::default(), Arc::new(AtomicU32::new(0)));
    let running = bus.subscribe(sick_at(&seen, &sick)).await.unwrap();
    bus.publish(&moved("sick", 0)).await.unwrap();
    until("it is kept", || running.stats().dead_lettered == 1).await;
    stop(running).await;

    sick.store(NONE, Ordering::SeqCst);
    let (doomed, own) = world.connected().await;
    let next = subscribed(&own, || sick_at(&seen, &sick)).await;
    for number in 1..3 {
        bus.publish(&moved("sick", number)).await.unwrap();
    }
    until("those behind it are kept", || next.stats().dead_lettered == 2).await;
    doomed.cut().await;
    bus.publish(&moved("sick", 3)).await.unwrap();
    until("after a loss too", || next.stats().dead_lettered >= 3).await;
    assert_eq!(seen.of("sick"), [0; 0]);

    // A redrive of its letters is the same as to drain it.
    let mut draining = 0;
    for letters in world.letters(&connection.transport) {
        let report = letters.redrive(&DeadLetterFilter::all(), RedriveOptions::default()).await;
        let report = report.unwrap();
        assert_eq!((report.done, report.failed), (0, 0));
        draining += report.draining;
    }
    assert!(draining >= 4, "{draining} letters");
    until("all are handled in order", || seen.of("sick") == [0, 1, 2, 3]).await;
    bus.publish(&moved("sick", 4)).await.unwrap();
    until("the key goes on", || seen.of("sick") == [0, 1, 2, 3, 4]).await;
    stop(next).await;
}

pub(crate) async fn a_stop_in_the_midst_of_draining_leaves_the_rest_in_order(world: &World) {
    let (connection, bus) = world.connected().await;
    let (seen, sick) = (Seen::default(), Arc::new(AtomicU32::new(0)));
    let running = bus.subscribe(sick_at(&seen, &sick)).await.unwrap();
    for number in 0..6 {
        bus.publish(&moved("sick", number)).await.unwrap();
    }
    until("all are kept", || running.stats().dead_lettered == 6).await;
    stop(running).await;

    let (noted, reached) = (seen.clone(), Arc::new(Notify::new()));
    let reaching = Arc::clone(&reached);
    let slow = ledger(move |event, _context| {
        let (seen, reached) = (noted.clone(), Arc::clone(&reaching));
        async move {
            if event.number == 2 {
                reached.notify_one();
                std::future::pending::<()>().await;
            }
            seen.push(event);
            Ok(())
        }
    });
    let slow = bus.subscribe(slow).await.unwrap();
    bus.drain_key("ledger", "accounts", "sick").await.unwrap();
    reached.notified().await;
    let report = slow.stop(Duration::from_millis(100)).await;
    assert_eq!(report.still_running, 0);

    let next = subscribed(&bus, || noting(&seen)).await;
    bus.publish(&moved("sick", 6)).await.unwrap();
    until("all are handled", || seen.number() == 7).await;
    seen.assert_in_order();
    stop(next).await;
    assert_eq!(world.parked(&connection.transport, "sick").await, [0; 0]);
}

pub(crate) async fn a_key_that_skips_ahead_leaves_what_failed_behind(world: &World) {
    let (connection, bus) = world.connected().await;
    let (seen, is_well) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let (noted, well) = (seen.clone(), Arc::clone(&is_well));
    let tried = Arc::new(Mutex::new(Vec::new()));
    let tries = Arc::clone(&tried);
    let subscription = ledger(move |event, context| {
        let (seen, is_well) = (noted.clone(), well.load(Ordering::SeqCst));
        let tries = Arc::clone(&tries);
        async move {
            if event.number == 1 && !is_well {
                tries.lock().unwrap().push(context.attempt());
                return Err(HandlerError::transient("never"));
            }
            seen.push(event);
            Ok(())
        }
    });
    let running = bus.subscribe(subscription.key_failure(KeyFailure::SkipAhead)).await.unwrap();
    for number in 0..3 {
        bus.publish(&moved("poisoned", number)).await.unwrap();
    }
    until("those behind it go on", || seen.number() == 2).await;
    assert_eq!(seen.of("poisoned"), [0, 2]);
    assert_eq!(*tried.lock().unwrap(), [1, 2, 3, 4]);
    until("it is kept", || running.stats().dead_lettered == 1).await;

    assert_eq!(world.parked(&connection.transport, "poisoned").await, [1]);
    is_well.store(true, Ordering::SeqCst);
    let mut done = 0;
    for letters in world.letters(&connection.transport) {
        let all = DeadLetterFilter::all();
        done += letters.redrive(&all, RedriveOptions::default()).await.unwrap().done;
    }
    assert_eq!(done, 1);
    until("it came back", || seen.number() == 3).await;
    assert_eq!(seen.of("poisoned"), [0, 2, 1]);
    stop(running).await;
}

pub(crate) async fn a_stop_ends_the_waiting_and_leaves_the_order_to_the_next(world: &World) {
    let (_connection, bus) = world.connected().await;
    let fails = ledger(|event, _context| async move {
        match event.number {
            0 => Err(HandlerError::transient("for an hour")),
            number => panic!("{number} came before 0"),
        }
    });
    let hour = Duration::from_secs(3_600);
    let patient = quick().with_immediate(0).with_delay(hour, 1.0, hour);
    let running = bus.subscribe(fails.retry(patient)).await.unwrap();
    bus.publish_all(&events(3, 5)).await.unwrap();
    until("each key waits", || running.stats().retried == 3).await;
    let report = running.stop(SOON).await;
    assert_eq!((report.finished, report.still_running), (0, 0));

    let seen = Seen::default();
    let next = bus.subscribe(noting(&seen)).await.unwrap();
    until("all are handled", || seen.number() == 15).await;
    for (account, numbers) in seen.first() {
        assert_eq!(numbers, [0, 1, 2, 3, 4], "{account}");
    }
    stop(next).await;
}

pub(crate) async fn random_failures_invert_no_key(world: &World) {
    let (_connection, bus) = world.connected().await;
    let (mut expected, seen) = (0, Seen::default());
    for seed in 0..3 {
        let (noted, random) = (seen.clone(), Arc::new(Env::simulated(seed)));
        let subscription = ledger(move |event, context| {
            let (seen, random) = (noted.clone(), Arc::clone(&random));
            async move {
                sleep(Duration::from_millis(3).mul_f64(random.random_unit())).await;
                // The last of its four tries does not fail, so that none is missing.
                if context.attempt() < 4 && random.random_unit() < 0.3 {
                    return Err(HandlerError::transient("by chance"));
                }
                seen.push(event);
                Ok(())
            }
        });
        let running = bus.subscribe(subscription).await.unwrap();
        let numbers = 5 * u32::try_from(seed).unwrap()..5 * u32::try_from(seed + 1).unwrap();
        let round: Vec<_> = numbers
            .flat_map(|number| (0..12).map(move |of| moved(&format!("account-{of}"), number)))
            .collect();
        bus.publish_all(&round).await.unwrap();
        expected += round.len();
        until("all are handled", || seen.number() == expected).await;
        stop(running).await;
    }
    seen.assert_in_order();
}
