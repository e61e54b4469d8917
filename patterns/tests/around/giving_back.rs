//! What middleware gives back, or is made to.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use postrider_patterns::{ConcurrencyLimit, Context, HandlerError, Middleware, Next};
use tokio::sync::{Semaphore, mpsc};

use super::world::{Email, SOON, World, until};

/// Gives back the first so many messages that come.
#[derive(Debug)]
struct GivesBack(AtomicU32);

#[async_trait]
impl Middleware for GivesBack {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if left.is_ok() {
            return Err(next.give_back());
        }
        next.run(context).await
    }
}

pub(crate) async fn a_middleware_gives_a_message_back_without_a_failure(world: &World) {
    // More often than its policy lets it fail; RabbitMQ 4.0 counts what comes back as failed.
    const TIMES: u32 = 10;
    let transport = world.transport().await;
    let running = world
        .worker()
        .on(|_: Email, _| async { Ok(()) })
        .with(GivesBack(TIMES.into()))
        .start(&transport)
        .await
        .unwrap();
    world.submit(&transport, &[1]).await;
    until(|| running.stats().acked == 1, || format!("{:?}", running.stats())).await;
    let stats = running.stats();
    assert_eq!((stats.released, stats.retried, stats.dead_lettered), (TIMES.into(), 0, 0));
    assert_eq!(world.ready(&transport).await, 0);
}

pub(crate) async fn what_waits_goes_back_uncounted_when_its_worker_stops(world: &World) {
    let transport = world.transport().await;
    let (begun, mut begins) = mpsc::unbounded_channel();
    let (limit, gate) = (ConcurrencyLimit::new(1), Arc::new(Semaphore::new(0)));
    let open = Arc::clone(&gate);
    let running = world
        .worker()
        .on(move |_: Email, _| {
            let (begun, open) = (begun.clone(), Arc::clone(&open));
            async move {
                begun.send(())?;
                open.acquire().await?.forget();
                Ok(())
            }
        })
        .with(limit.clone())
        .start(&transport)
        .await
        .unwrap();
    world.submit(&transport, &[1, 2, 3]).await;
    begins.recv().await.unwrap();
    world.ready_comes_to(&transport, 0).await;
    let stop = tokio::spawn(running.stop(SOON));
    // They need not wait for the one that is at work.
    world.ready_comes_to(&transport, 2).await;
    gate.add_permits(1);
    let report = stop.await.unwrap();
    assert_eq!((report.finished, report.released), (1, 2), "{report:?}");
    assert_eq!(limit.free(), 1);
    let running =
        world.worker().on(|_: Email, _| async { Ok(()) }).start(&transport).await.unwrap();
    until(|| running.stats().acked == 2, || format!("{:?}", running.stats())).await;
    assert_eq!(running.stop(SOON).await.released, 0);
}
