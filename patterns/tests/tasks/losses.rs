//! Connections are lost on the way.

use std::sync::Arc;

use futures_util::StreamExt;
use postrider_core::TransportEvent;
use postrider_patterns::{Context, TaskError};
use tokio::sync::{Notify, mpsc};

use super::world::{Job, World, comes_to, soon, submit};

pub(crate) async fn the_submitters_loss_ends_its_handles_and_not_the_tasks(world: World) {
    let working = world.transport().await;
    let submitting = world.connect().await;
    let gate = Arc::new(Notify::new());
    let open = Arc::clone(&gate);
    let (begun, mut beginning) = mpsc::channel(10);
    let worker = world.worker().on_result(move |job: Job, _context| {
        let (open, begun) = (Arc::clone(&open), begun.clone());
        async move {
            begun.send(job.number).await?;
            open.notified().await;
            Ok(job.number)
        }
    });
    let running = worker.start(&working).await.unwrap();
    let tasks = world.tasks(&submitting.transport).await;
    let handle = submit(&tasks, 1).await;
    assert_eq!(soon(beginning.recv()).await, Some(1));
    let mut events = submitting.transport.events();
    submitting.cut().await;
    let Err(TaskError::Unknown { cause }) = soon(handle.result()).await else {
        panic!("{handle:?}");
    };
    assert!(cause.contains("lost"), "{cause}");
    gate.notify_one();
    comes_to(&running, |stats| stats.acked == 1).await;
    let restored = |event: TransportEvent| matches!(event, TransportEvent::Restored { .. });
    while !restored(soon(events.next()).await.expect("an event")) {}
    // The queue of reports is back; who hears of that a moment later ends one more handle.
    for number in 2.. {
        let result = soon(async {
            let handle = submit(&tasks, number).await;
            assert_eq!(beginning.recv().await, Some(number));
            gate.notify_one();
            handle.result().await
        });
        match result.await {
            Ok(result) => return assert_eq!(result, number),
            Err(TaskError::Unknown { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

pub(crate) async fn a_worker_that_is_lost_costs_a_try(world: World) {
    let submitting = world.transport().await;
    let doomed = world.connect().await;
    let (begun, mut beginning) = mpsc::channel(10);
    let worker = world.worker().on_result(move |_job: Job, context: Context| {
        let begun = begun.clone();
        async move {
            begun.send(()).await?;
            if context.attempt() == 1 {
                std::future::pending::<()>().await;
            }
            Ok(context.attempt())
        }
    });
    let running = worker.concurrency(2).start(&doomed.transport).await.unwrap();
    let tasks = world.tasks(&submitting).await;
    let handle = submit(&tasks, 1).await;
    soon(beginning.recv()).await.unwrap();
    doomed.cut().await;
    assert_eq!(soon(handle.result()).await.unwrap(), 2);
    assert!(running.is_running());
}
