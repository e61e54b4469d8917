//! Tasks with a unique key.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use postrider_patterns::{
    HandlerError, SubmitOptions, TaskError, TaskHandle, TaskStatus, WorkQueue,
};
use tokio::sync::mpsc;

use super::world::{Job, World, comes_to, dead, soon, stands};

async fn submit(tasks: &WorkQueue, number: u32) -> TaskHandle<u32> {
    let options = SubmitOptions::default().unique("the one");
    tasks.submit_for_result(&Job { number }, options).await.unwrap()
}

async fn submit_plain(tasks: &WorkQueue, number: u32) {
    let options = SubmitOptions::default().unique("the one");
    tasks.submit_with(&Job { number }, options).await.unwrap();
}

pub(crate) async fn of_those_that_wait_one_is_run(world: World) {
    let (transport, other) = (world.transport().await, world.transport().await);
    let tasks = world.tasks(&transport).await;
    submit_plain(&tasks, 1).await;
    submit_plain(&tasks, 2).await;
    let late = submit(&world.tasks(&other).await, 3).await;
    let ran = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ran);
    let worker = world.worker().on_result(move |job: Job, _context| {
        seen.lock().unwrap().push(job.number);
        async move {
            // It is done later than the others were submitted, by the clock.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(job.number)
        }
    });
    let running = worker.start(&transport).await.unwrap();
    assert!(matches!(soon(late.result()).await, Err(TaskError::Duplicate)));
    comes_to(&running, |stats| stats.acked == 3).await;
    assert_eq!(running.stats().duplicates, 2);
    assert_eq!(*ran.lock().unwrap(), [1]);
}

pub(crate) async fn the_next_one_is_run(world: World) {
    let transport = world.transport().await;
    let worker = world.worker().on_result(|job: Job, _context| async move { Ok(job.number) });
    let running = worker.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    for number in 1..=3 {
        let handle = submit(&tasks, number).await;
        assert_eq!(soon(handle.result()).await.unwrap(), number);
    }
    assert_eq!(running.stats().duplicates, 0);
}

pub(crate) async fn one_that_failed_stands_in_nobodys_way(world: World) {
    let transport = world.transport().await;
    let tasks = world.tasks(&transport).await;
    submit_plain(&tasks, 1).await;
    submit_plain(&tasks, 2).await;
    let worker = world.worker().on(|job: Job, _context| async move {
        if job.number == 1 {
            return Err(HandlerError::invalid("not this one"));
        }
        Ok(())
    });
    let running = worker.start(&transport).await.unwrap();
    comes_to(&running, |stats| stats.acked == 1).await;
    dead(&world.letters(&transport), 1).await;
    assert_eq!(running.stats().duplicates, 0);
}

pub(crate) async fn a_second_is_not_submitted(world: World) {
    let transport = world.transport().await;
    let tasks = world.tasks(&transport).await;
    let first = submit(&tasks, 1).await;
    let second = submit(&tasks, 2).await;
    assert_eq!((first.status(), second.status()), (TaskStatus::Queued, TaskStatus::Duplicate));
    second.cancel().await.unwrap();
    world.waiting(&transport, 1).await;
    // Who does not hear of the first any more cannot tell.
    drop(first);
    let third = submit(&tasks, 3).await;
    assert_eq!(third.status(), TaskStatus::Queued);
    world.waiting(&transport, 2).await;
}

pub(crate) async fn a_second_from_elsewhere_is_not_run_meanwhile(world: World) {
    let (transport, other) = (world.transport().await, world.transport().await);
    let (begun, mut beginning) = mpsc::channel(10);
    let gate = Arc::new(tokio::sync::Notify::new());
    let open = Arc::clone(&gate);
    let worker = world.worker().concurrency(2).prefetch(2);
    let worker = worker.on_result(move |job: Job, _context| {
        let (begun, open) = (begun.clone(), Arc::clone(&open));
        async move {
            begun.send(job.number).await?;
            open.notified().await;
            Ok(job.number)
        }
    });
    let running = worker.start(&transport).await.unwrap();
    let first = submit(&world.tasks(&transport).await, 1).await;
    assert_eq!(soon(beginning.recv()).await, Some(1));
    let second = submit(&world.tasks(&other).await, 2).await;
    stands(&second, &TaskStatus::Duplicate).await;
    gate.notify_one();
    assert_eq!(soon(first.result()).await.unwrap(), 1);
    comes_to(&running, |stats| stats.acked == 2).await;
    assert!(beginning.try_recv().is_err());
}
