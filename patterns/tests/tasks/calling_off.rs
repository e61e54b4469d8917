//! Tasks that are called off.

use std::sync::Arc;

use postrider_core::Transport;
use postrider_patterns::{
    Context, ErrorClass, HandlerError, MessageId, Running, TaskError, TaskStatus,
};
use tokio::sync::mpsc;

use super::world::{Job, World, comes_to, soon, stands, submit, submit_plain};

/// A worker whose handler says that it has begun, waits until it is called off, and ends so.
async fn until_called_off(
    world: &World,
    transport: &Arc<dyn Transport>,
    end: fn() -> Result<u32, HandlerError>,
) -> (Running, mpsc::Receiver<u32>) {
    let (begun, beginning) = mpsc::channel(10);
    let worker = world.worker().on_result(move |job: Job, context: Context| {
        let begun = begun.clone();
        async move {
            begun.send(job.number).await?;
            context.cancellation().cancelled().await;
            end()
        }
    });
    (worker.start(transport).await.unwrap(), beginning)
}

fn called_off() -> Result<u32, HandlerError> {
    Err(HandlerError::new(ErrorClass::Cancelled, "called off"))
}

pub(crate) async fn a_task_that_is_not_begun_is_passed_over(world: World) {
    let transport = world.transport().await;
    let (running, mut begun) = until_called_off(&world, &transport, called_off).await;
    let tasks = world.tasks(&transport).await;
    let first = submit(&tasks, 1).await;
    assert_eq!(soon(begun.recv()).await, Some(1));
    let second = submit(&tasks, 2).await;
    let third = submit(&tasks, 3).await;
    second.cancel().await.unwrap();
    first.cancel().await.unwrap();
    assert!(matches!(soon(first.result()).await, Err(TaskError::Cancelled)));
    assert!(matches!(soon(second.result()).await, Err(TaskError::Cancelled)));
    assert_eq!(soon(begun.recv()).await, Some(3));
    third.cancel().await.unwrap();
    stands(&third, &TaskStatus::Cancelled).await;
    comes_to(&running, |stats| stats.acked == 3).await;
    assert_eq!(running.stats().cancelled, 3);
}

pub(crate) async fn a_running_task_sees_that_it_is_called_off(world: World) {
    let transport = world.transport().await;
    let (running, mut begun) = until_called_off(&world, &transport, called_off).await;
    let tasks = world.tasks(&transport).await;
    let handle = submit(&tasks, 1).await;
    assert_eq!(soon(begun.recv()).await, Some(1));
    handle.cancel().await.unwrap();
    assert!(matches!(soon(handle.result()).await, Err(TaskError::Cancelled)));
    // Once it has ended, there is nothing to call off.
    handle.cancel().await.unwrap();
    comes_to(&running, |stats| stats.acked == 1).await;
    assert_eq!((running.stats().cancelled, running.stats().retried), (1, 0));
}

pub(crate) async fn one_that_finishes_all_the_same_is_done(world: World) {
    let transport = world.transport().await;
    let (running, mut begun) = until_called_off(&world, &transport, || Ok(7)).await;
    let tasks = world.tasks(&transport).await;
    let handle = submit(&tasks, 1).await;
    assert_eq!(soon(begun.recv()).await, Some(1));
    handle.cancel().await.unwrap();
    assert_eq!(soon(handle.result()).await.unwrap(), 7);
    comes_to(&running, |stats| stats.acked == 1).await;
    assert_eq!(running.stats().cancelled, 0);
}

pub(crate) async fn one_that_fails_then_is_not_tried_again(world: World) {
    let transport = world.transport().await;
    let fails = || Err(HandlerError::transient("half done"));
    let (running, mut begun) = until_called_off(&world, &transport, fails).await;
    let tasks = world.tasks(&transport).await;
    let handle = submit(&tasks, 1).await;
    assert_eq!(soon(begun.recv()).await, Some(1));
    handle.cancel().await.unwrap();
    stands(&handle, &TaskStatus::Cancelled).await;
    comes_to(&running, |stats| stats.acked == 1).await;
    assert_eq!((running.stats().retried, running.stats().dead_lettered), (0, 0));
}

pub(crate) async fn who_did_not_submit_it_may_call_it_off(world: World) {
    let (transport, other) = (world.transport().await, world.transport().await);
    let tasks = world.tasks(&transport).await;
    let elsewhere = world.tasks(&other).await;
    let nobody: MessageId = submit_plain(&tasks, 1).await;
    assert!(!elsewhere.cancel::<Job>(&nobody).await.unwrap(), "there is no worker to tell");
    let (running, mut begun) = until_called_off(&world, &transport, called_off).await;
    assert_eq!(soon(begun.recv()).await, Some(1));
    assert!(elsewhere.cancel::<Job>(&nobody).await.unwrap());
    comes_to(&running, |stats| stats.cancelled == 1).await;
}

pub(crate) async fn a_worker_that_comes_later_is_told(world: World) {
    let transport = world.transport().await;
    let tasks = world.tasks(&transport).await;
    let handle = submit(&tasks, 1).await;
    handle.cancel().await.unwrap();
    let (_running, mut begun) = until_called_off(&world, &transport, called_off).await;
    assert_eq!(soon(begun.recv()).await, Some(1));
    stands(&handle, &TaskStatus::Cancelled).await;
}
