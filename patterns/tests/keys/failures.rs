//! Events fail, and their keys wait.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use postrider_core::Env;
use postrider_patterns::{DeadLetterFilter, DeadLetters, HandlerError, RedriveOptions};
use tokio::time::sleep;

use super::world::{SOON, Seen, World, events, ledger, moved, noting, quick, stop, until};

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

pub(crate) async fn what_is_given_up_is_kept_alone_and_can_come_back(world: &World) {
    let (connection, bus) = world.connected().await;
    let (seen, is_well) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let (noted, well) = (seen.clone(), Arc::clone(&is_well));
    let tried = Arc::new(Mutex::new(Vec::new()));
    let tries = Arc::clone(&tried);
    let running = bus.subscribe(ledger(move |event, context| {
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
    }));
    let running = running.await.unwrap();
    for number in 0..3 {
        bus.publish(&moved("poisoned", number)).await.unwrap();
    }
    until("those behind it go on", || seen.number() == 2).await;
    assert_eq!(seen.of("poisoned"), [0, 2]);
    assert_eq!(*tried.lock().unwrap(), [1, 2, 3, 4]);
    until("it is kept", || running.stats().dead_lettered == 1).await;

    let letters =
        DeadLetters::of(&connection.transport, world.queue()).with_naming(world.naming.clone());
    let kept = letters.peek(10).await.unwrap();
    assert_eq!(kept.len(), 1);
    is_well.store(true, Ordering::SeqCst);
    let report =
        letters.redrive(&DeadLetterFilter::all(), RedriveOptions::default()).await.unwrap();
    assert_eq!((report.done, report.failed), (1, 0));
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
