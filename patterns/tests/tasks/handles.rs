//! What a handle tells.

use std::{sync::Arc, time::Duration};

use postrider_core::ErrorKind;
use postrider_patterns::{
    Context, ErrorClass, HandlerError, PublishError, SubmitOptions, TaskError, TaskState,
    TaskStatus, WorkQueue, codes,
};
use tokio::{sync::Notify, time::sleep};

use super::world::{Job, Strange, World, comes_to, dead, quick, soon, stands, submit};

pub(crate) async fn a_task_tells_its_progress_and_gives_its_result(world: World) {
    let transport = world.transport().await;
    let go = Arc::new(Notify::new());
    let gate = Arc::clone(&go);
    let running = world
        .worker()
        .on_result(move |job: Job, context: Context| {
            let gate = Arc::clone(&gate);
            async move {
                context.progress(0.25, "a quarter");
                // Too soon after the last to be sent.
                context.progress(0.5, "half");
                gate.notified().await;
                sleep(Duration::from_millis(300)).await;
                context.progress(7.0, "all");
                gate.notified().await;
                Ok(job.number * 2)
            }
        })
        .start(&transport)
        .await
        .unwrap();
    let tasks = world.tasks(&transport).await;
    let handle = submit(&tasks, 21).await;
    let mut watched = handle.watch();
    let heard = |fraction: f64| {
        move |state: &TaskState| {
            let progress = state.progress.as_ref();
            progress.is_some_and(|progress| (progress.fraction - fraction).abs() < 1e-9)
        }
    };
    soon(watched.wait_for(heard(0.25))).await.unwrap();
    assert_eq!(handle.status(), TaskStatus::Running { attempt: 1 });
    assert_eq!(handle.progress().unwrap().message, "a quarter");
    go.notify_one();
    soon(watched.wait_for(heard(1.0))).await.unwrap();
    assert_eq!(handle.progress().unwrap().message, "all");
    go.notify_one();
    assert_eq!(soon(handle.result()).await.unwrap(), 42);
    assert_eq!(handle.status(), TaskStatus::Done);
    // It may be asked again.
    assert_eq!(soon(handle.result()).await.unwrap(), 42);
    comes_to(&running, |stats| stats.acked == 1).await;
    assert_eq!(running.stats().replies_dropped, 0);
}

pub(crate) async fn a_plain_task_is_tracked_too(world: World) {
    let transport = world.transport().await;
    let worker = world.worker().on(|_job: Job, _context| async { Ok(()) });
    let _running = worker.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    let handle = tasks.submit_tracked(&Job { number: 1 }, SubmitOptions::default()).await.unwrap();
    soon(handle.result()).await.unwrap();
    // A worker that gives no result cannot be asked for one.
    let handle = submit(&tasks, 2).await;
    assert!(matches!(soon(handle.result()).await, Err(TaskError::Codec(_))));
    assert_eq!(handle.status(), TaskStatus::Done);
}

pub(crate) async fn a_task_that_is_given_up_says_why(world: World) {
    let transport = world.transport().await;
    let worker = world.worker().on_result(|_job: Job, _context| async {
        Err::<u32, _>(HandlerError::rejected("NO_PAPER", "the printer is empty"))
    });
    let _running = worker.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    let handle = submit(&tasks, 1).await;
    let Err(TaskError::Failed(error)) = soon(handle.result()).await else {
        panic!("{handle:?}");
    };
    assert_eq!((error.class(), error.code()), (ErrorClass::Rejected, "NO_PAPER"));
    assert_eq!(error.message(), "the printer is empty");
    dead(&world.letters(&transport), 1).await;
}

pub(crate) async fn a_task_that_is_tried_again_says_so(world: World) {
    let transport = world.transport().await;
    let worker = world.worker().on_result(|_job: Job, context: Context| async move {
        if context.attempt() < 3 {
            return Err(HandlerError::transient("not yet"));
        }
        Ok(context.attempt())
    });
    // Long enough to be seen.
    let delay = Duration::from_secs(2);
    let worker = worker.retry(quick().with_delay(delay, 1.0, delay));
    let _running = worker.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    let handle = submit(&tasks, 1).await;
    stands(&handle, &TaskStatus::Retrying { attempt: 2 }).await;
    assert_eq!(soon(handle.result()).await.unwrap(), 3);
}

pub(crate) async fn a_task_of_unknown_type_is_heard_of(world: World) {
    let transport = world.transport().await;
    let worker = world.worker().on(|_job: Job, _context| async { Ok(()) });
    let _running = worker.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    let handle = tasks.submit_tracked(&Strange {}, SubmitOptions::default()).await.unwrap();
    let Err(TaskError::Failed(error)) = soon(handle.result()).await else {
        panic!("{handle:?}");
    };
    assert_eq!(error.code(), codes::UNKNOWN_TASK);
    dead(&world.letters(&transport), 1).await;
}

pub(crate) async fn handles_are_bounded(world: World) {
    let transport = world.transport().await;
    let tasks = WorkQueue::builder(&transport).naming(world.naming.clone()).most_handles(2);
    let tasks = tasks.connect().await.unwrap();
    let (one, _two) = (submit(&tasks, 1).await, submit(&tasks, 2).await);
    let refused = tasks.submit_tracked(&Job { number: 3 }, SubmitOptions::default()).await;
    let Err(PublishError::Transport(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), ErrorKind::Rejected);
    drop(one);
    let _three = submit(&tasks, 3).await;
    world.waiting(&transport, 3).await;
}

pub(crate) async fn a_result_that_nobody_hears_is_dropped_and_counted(world: World) {
    let (working, submitting) = (world.transport().await, world.transport().await);
    let tasks = world.tasks(&submitting).await;
    let _handle = submit(&tasks, 1).await;
    submitting.close(Duration::from_secs(10)).await.unwrap();
    world.no_queue_of_reports_is_left().await;
    let worker = world.worker().on_result(|job: Job, _context| async move { Ok(job.number) });
    let running = worker.start(&working).await.unwrap();
    comes_to(&running, |stats| stats.acked == 1).await;
    assert_eq!(running.stats().replies_dropped, 1);
}
