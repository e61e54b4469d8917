//! Connections are lost on the way.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use postrider_core::ConsumerOptions;
use postrider_patterns::{Context, DeadLetterFilter, DeadReason, RedriveOptions, RetryPolicy};
use tokio::{sync::mpsc, time::sleep};

use super::world::{Job, World, ids, one, soon};

/// Nobody settles it, so that no policy sees it; the broker's limit does.
pub(crate) async fn a_message_that_kills_its_process_comes_to_rest(world: World) {
    const LIMIT: u32 = 3;
    let watching = world.transport().await;
    let doomed = world.connect().await;
    let (begun, mut beginning) = mpsc::channel(10);
    let done = Arc::new(Mutex::new(Vec::new()));
    let good = Arc::clone(&done);
    let running = world
        .worker()
        .on(move |job: Job, context: Context| {
            let (begun, good) = (begun.clone(), Arc::clone(&good));
            async move {
                if job.number == 1 {
                    begun.send(context.attempt()).await?;
                    std::future::pending::<()>().await;
                }
                good.lock().unwrap().push(job.number);
                Ok(())
            }
        })
        .retry(RetryPolicy::never().with_immediate(2))
        .delivery_limit(LIMIT)
        .start(&doomed.transport)
        .await
        .unwrap();
    let tasks = world.tasks(&watching).await;
    tasks.submit_all(&[1, 2].map(|number| Job { number })).await.unwrap();
    for attempt in 1..=LIMIT + 1 {
        // It may be given back on the way, to be handled alone.
        assert!(soon(beginning.recv()).await.unwrap() >= attempt);
        doomed.cut().await;
    }
    let dead = one(&world.letters(&watching)).await;
    assert_eq!(dead.reason(), DeadReason::DeliveryLimit);
    assert_eq!(dead.origin_queue(), Some(world.queue()));
    assert_eq!(dead.deaths()[0].count, 1);
    // At least once: its acknowledgement may be lost with the connection.
    let mut done = done.lock().unwrap().clone();
    done.dedup();
    assert_eq!(done, [2]);
    assert!(running.is_running());
}

pub(crate) async fn a_redrive_over_lost_connections_loses_nothing(world: World) {
    const NUMBER: u32 = 200;
    let watching = world.transport().await;
    world.bury(&watching, NUMBER).await;
    let moving = world.connect().await;
    let letters = world.letters(&moving.transport);
    let options = RedriveOptions::default().with_rate(100);
    let losing = async {
        for _ in 0..3 {
            sleep(Duration::from_millis(400)).await;
            moving.cut().await;
        }
    };
    let filter = DeadLetterFilter::all().matching(|dead| !dead.message().body.ends_with(b"13}}"));
    let (report, ()) = tokio::join!(letters.redrive(&filter, options), losing);
    let report = report.unwrap();
    assert!(report.done >= 1, "{report:?}");
    // What was seen twice took the places of others, and what a lost connection had in hand may not be
    // back yet.
    let mut runs = 1;
    loop {
        let mut stayed = ids(&letters.peek(10).await.unwrap());
        stayed.sort_unstable();
        if stayed == [13, 113] {
            break;
        }
        let report = letters.redrive(&filter, RedriveOptions::default()).await.unwrap();
        assert_eq!(report.failed, 0, "{report:?}");
        runs += 1;
        assert!(runs < 20, "each run moves some, and {stayed:?} are left");
    }

    let options = ConsumerOptions::default().with_prefetch(1_000);
    let mut consumer = watching.consumer(&world.queue(), options).await.unwrap();
    let mut seen = BTreeSet::new();
    while seen.len() < NUMBER as usize - 2 {
        let delivery = soon(consumer.recv()).await.unwrap().unwrap();
        seen.insert(delivery.message().message_id.as_deref().unwrap().parse::<u32>().unwrap());
        delivery.ack();
    }
    assert!(!seen.contains(&13) && !seen.contains(&113));
}

pub(crate) async fn what_stays_over_a_lost_connection_is_counted_once(world: World) {
    let watching = world.transport().await;
    let letters = world.bury(&watching, 30).await;
    let moving = world.connect().await;
    let broken = world.letters(&moving.transport);
    let last = DeadLetterFilter::all().matching(|dead| {
        let id = dead.message().message_id.as_deref().and_then(|id| id.parse::<u32>().ok());
        id.is_some_and(|id| id >= 25)
    });
    let slowly = RedriveOptions::default().with_rate(5);
    let (report, ()) = tokio::join!(broken.redrive(&last, slowly), async {
        sleep(Duration::from_millis(500)).await;
        moving.cut().await;
    });
    let report = report.unwrap();
    assert_eq!(report.stayed, 25, "{report:?}");
    assert!(report.done >= 3, "{report:?}");
    let mut left = ids(&letters.peek(30).await.unwrap());
    left.sort_unstable();
    assert_eq!(left[..25], (0..25).collect::<Vec<_>>());
    // One or two of the others took a place twice.
    assert!(left.len() <= 25 + 2, "{left:?}");
}
