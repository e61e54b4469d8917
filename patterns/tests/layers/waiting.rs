//! Limits in number and rate, and what stopping does to what waits.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use postrider_core::Transport;
use postrider_patterns::{
    ConcurrencyLimit, Context, HandlerError, Middleware, Next, RateLimit, Running, Worker,
    middleware::LONGEST_WAIT,
};
use tokio::time::sleep;

use crate::{
    Email, by_params,
    common::{Log, SECOND, ready, transport},
    slow_worker, submit,
};

/// A worker that notes when it began with a task.
async fn timed(
    transport: &Arc<dyn Transport>,
    middleware: impl Middleware,
    log: &Log<Duration>,
) -> Running {
    let (log, env) = (log.clone(), transport.env().clone());
    let start = env.now();
    Worker::new("email")
        .on(move |_task: Email, _context| {
            log.push(env.now() - start);
            async { Ok(()) }
        })
        .with(middleware)
        .start(transport)
        .await
        .unwrap()
}

fn near(measured: Duration, expected: Duration) -> bool {
    measured.abs_diff(expected) <= Duration::from_millis(10)
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept_after_a_burst() {
    let (transport, log) = (transport(), Log::default());
    let limit = RateLimit::new(2, SECOND).burst(3);
    let running = timed(&transport, limit, &log).await;
    submit(&transport, &[1, 2, 3, 4, 5, 6]).await;
    sleep(10 * SECOND).await;
    let expected = [0, 0, 0, 500, 1_000, 1_500].map(Duration::from_millis);
    let measured = log.items();
    assert_eq!(measured.len(), 6);
    for (measured, expected) in measured.iter().zip(expected) {
        assert!(near(*measured, expected), "{measured:?} for {expected:?}");
    }
    assert_eq!((running.stats().acked, running.stats().retried), (6, 0));
}

#[tokio::test(start_paused = true)]
async fn a_rate_above_the_timers_exactness_is_reached_and_not_exceeded() {
    let (transport, log) = (transport(), Log::default());
    let _running = timed(&transport, RateLimit::new(5_000, SECOND), &log).await;
    submit(&transport, &(0..2_000).collect::<Vec<_>>()).await;
    sleep(10 * SECOND).await;
    let last = *log.items().last().unwrap();
    assert_eq!(log.items().len(), 2_000);
    assert!(last.abs_diff(Duration::from_millis(400)) < Duration::from_millis(20), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_shared_by_the_workers_that_it_is_added_to() {
    let (transport, log) = (transport(), Log::default());
    let limit = RateLimit::new(1, SECOND);
    let _one = timed(&transport, limit.clone(), &log).await;
    let _other = timed(&transport, limit, &log).await;
    submit(&transport, &[1, 2, 3, 4, 5, 6, 7, 8]).await;
    sleep(Duration::from_millis(3_500)).await;
    assert_eq!(log.items().len(), 4);
}

/// How long it takes to stop a worker whose first task takes a second, in which all others wait for
/// the middleware, and what comes of it.
async fn stop_while_waiting(middleware: impl Middleware, tasks: &[u32]) {
    let (transport, log) = (transport(), Log::default());
    let running = slow_worker(&transport, middleware, &log).await;
    submit(&transport, tasks).await;
    sleep(Duration::from_millis(500)).await;
    let (queue, start) = (running.queue().to_owned(), transport.env().now());
    let report = running.stop(60 * SECOND).await;
    let took = transport.env().now() - start;
    assert!(near(took, Duration::from_millis(500)), "{took:?}");
    let waited = tasks.len() as u64 - 1;
    assert_eq!((report.finished, report.released, report.still_running), (1, waited, 0));
    assert_eq!(ready(&*transport, &queue).await, waited);
    // Nothing is lost: another one takes them.
    let running = slow_worker(&transport, ConcurrencyLimit::new(9), &log).await;
    sleep(2 * SECOND).await;
    assert_eq!(running.stats().acked, waited);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_place_goes_back_when_its_worker_begins_to_stop() {
    stop_while_waiting(ConcurrencyLimit::new(1), &[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_turn_goes_back_when_its_worker_begins_to_stop() {
    stop_while_waiting(RateLimit::new(1, 60 * SECOND), &[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_waits_goes_back_when_its_worker_begins_to_stop() {
    stop_while_waiting(by_params(), &[1, 1, 1]).await;
}

#[tokio::test(start_paused = true)]
async fn what_goes_back_keeps_the_tries_that_its_policy_gives_it() {
    let (transport, log) = (transport(), Log::default());
    let limit = RateLimit::new(1, 4 * LONGEST_WAIT);
    let running = timed(&transport, limit, &log).await;
    submit(&transport, &[1, 2]).await;
    sleep(3 * LONGEST_WAIT + SECOND).await;
    // The second waits a fourth time.
    let stats = running.stats();
    assert_eq!((stats.acked, stats.released, stats.retried), (1, 3, 0));
    sleep(LONGEST_WAIT).await;
    let stats = running.stats();
    assert_eq!((stats.acked, stats.dead_lettered, log.items().len()), (2, 0, 2));
}

/// Gives back the first so many messages that come.
#[derive(Debug)]
struct GivesBack(std::sync::atomic::AtomicU32);

#[async_trait]
impl Middleware for GivesBack {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        use std::sync::atomic::Ordering;
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if left.is_ok() {
            return Err(next.give_back());
        }
        next.run(context).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_middleware_gives_a_message_back_without_a_failure() {
    let (transport, log) = (transport(), Log::default());
    let running = timed(&transport, GivesBack(30.into()), &log).await;
    submit(&transport, &[1]).await;
    sleep(SECOND).await;
    let stats = running.stats();
    // More often than its policy or the delivery limit lets it fail.
    assert_eq!((stats.released, stats.acked, stats.retried, stats.dead_lettered), (30, 1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_says_cancelled_has_failed_also_while_its_worker_stops() {
    let transport = transport();
    let running = Worker::new("email")
        .on(|_task: Email, _context| async {
            sleep(SECOND).await;
            Err(HandlerError::new(postrider_patterns::ErrorClass::Cancelled, "called off"))
        })
        .with(ConcurrencyLimit::new(4))
        .start(&transport)
        .await
        .unwrap();
    submit(&transport, &[1]).await;
    sleep(Duration::from_millis(500)).await;
    let report = running.stop(60 * SECOND).await;
    assert_eq!((report.finished, report.released), (1, 0));
}
