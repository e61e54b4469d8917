//! When tasks are run, and when no more.

use std::time::Duration;

use chrono::TimeDelta;
use postrider_patterns::{Context, DeadReason, SubmitOptions, TaskStatus};
use tokio::sync::mpsc;

use super::world::{Job, World, dead, soon, stands, submit, submit_plain};

pub(crate) async fn a_task_waits_for_its_time(world: World) {
    let transport = world.transport().await;
    let worker = world.worker().on_result(|_job: Job, context: Context| async move {
        Ok(u32::try_from(context.env().timestamp().timestamp_millis() % 1_000_000_000)?)
    });
    let _running = worker.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    let at = transport.env().timestamp() + TimeDelta::seconds(3);
    let later = SubmitOptions::default().at(at);
    let later = tasks.submit_for_result(&Job { number: 1 }, later).await.unwrap();
    let past = SubmitOptions::default().at(at - TimeDelta::hours(1));
    let now = tasks.submit_for_result(&Job { number: 2 }, past).await.unwrap();
    let first = soon(now.result()).await.unwrap();
    assert_eq!(later.status(), TaskStatus::Queued);
    let second = soon(later.result()).await.unwrap();
    let wanted = u32::try_from(at.timestamp_millis() % 1_000_000_000).unwrap();
    assert!(first < wanted && second >= wanted, "{first} < {wanted} <= {second}");
}

pub(crate) async fn a_queue_has_its_own_time_to_live(world: World) {
    let transport = world.transport().await;
    let (begun, mut beginning) = mpsc::channel(10);
    let worker = world.worker().ttl(Duration::from_secs(2)).on(move |job: Job, _context| {
        let begun = begun.clone();
        async move {
            begun.send(job.number).await?;
            std::future::pending().await
        }
    });
    let running = worker.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    submit_plain(&tasks, 1).await;
    assert_eq!(soon(beginning.recv()).await, Some(1));
    let waits = submit_plain(&tasks, 2).await;
    let letters = world.letters(&transport);
    dead(&letters, 1).await;
    let letter = letters.peek(1).await.unwrap().pop().unwrap();
    assert_eq!(letter.reason(), DeadReason::Expired);
    assert_eq!(letter.message().message_id.as_deref(), Some(waits.as_str()));
    // It was begun in its time.
    assert_eq!(running.stop(Duration::ZERO).await.released, 1);
}

pub(crate) async fn a_drain_names_what_it_did_not_finish(world: World) {
    let transport = world.transport().await;
    let worker = world.worker().concurrency(2).prefetch(2);
    let worker = worker.on_result(|job: Job, context: Context| async move {
        if job.number == 1 {
            std::future::pending::<()>().await;
        }
        context.cancellation().cancelled().await;
        Ok(job.number)
    });
    let running = worker.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    let (stuck, ready) = (submit(&tasks, 1).await, submit(&tasks, 2).await);
    stands(&stuck, &TaskStatus::Running { attempt: 1 }).await;
    stands(&ready, &TaskStatus::Running { attempt: 1 }).await;
    let stopping = running.stop(Duration::from_secs(3));
    let (report, ()) = tokio::join!(stopping, async { ready.cancel().await.unwrap() });
    assert_eq!((report.finished, report.released), (1, 1));
    assert_eq!(report.unfinished, [stuck.id().as_str()]);
    assert_eq!(soon(ready.result()).await.unwrap(), 2);
    assert_eq!(stuck.status(), TaskStatus::Running { attempt: 1 });
}
