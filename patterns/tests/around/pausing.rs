//! What middleware makes wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use postrider_patterns::{
    CircuitBreaker, CircuitState, ConcurrencyLimit, HandlerError, RateLimit, RetryPolicy,
};
use tokio::time::sleep;

use super::world::{Email, SECOND, World, until};

/// How exact timers are.
const TICK: Duration = Duration::from_millis(10);

pub(crate) async fn an_open_circuit_pauses_consuming_and_fails_nothing(world: &World) {
    let transport = world.transport().await;
    let is_away = Arc::new(AtomicBool::new(true));
    let breaker = CircuitBreaker::after_failures(3).open_for(SECOND);
    let away = Arc::clone(&is_away);
    let running = world
        .worker()
        .on(move |_: Email, _| {
            let is_away = away.load(Ordering::Relaxed);
            async move {
                if is_away { Err(HandlerError::transient("the database is away")) } else { Ok(()) }
            }
        })
        .retry(RetryPolicy::default())
        .concurrency(2)
        .prefetch(4)
        .with(breaker.clone())
        .start(&transport)
        .await
        .unwrap();
    let mut states = breaker.watch();
    let began = transport.env().now();
    world.submit(&transport, &(1..=10).collect::<Vec<_>>()).await;
    states.wait_for(|state| *state == CircuitState::Open).await.unwrap();
    // Three failed, and one may have been under way. After that a probe fails each second.
    until(|| running.stats().retried >= 6, || format!("{:?}", running.stats())).await;
    let took = transport.env().now() - began;
    assert!(took >= 2 * SECOND - TICK, "two probes after {took:?}");
    // Of what is not at work only the prefetch is taken.
    assert!(world.ready(&transport).await >= 4, "it takes nothing meanwhile");
    is_away.store(false, Ordering::Relaxed);
    until(|| running.stats().acked == 10, || format!("{:?}", running.stats())).await;
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!(running.stats().dead_lettered, 0);
}

pub(crate) async fn a_rate_and_a_number_are_kept_and_fail_nothing(world: &World) {
    const TASKS: u32 = 6;
    let transport = world.transport().await;
    let (at_work, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let running = world
        .worker()
        .on(move |_: Email, _| {
            let (at_work, seen) = (Arc::clone(&at_work), Arc::clone(&seen));
            async move {
                seen.fetch_max(at_work.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
                sleep(Duration::from_millis(200)).await;
                at_work.fetch_sub(1, Ordering::AcqRel);
                Ok(())
            }
        })
        // Less than they wait, which is not theirs.
        .handler_timeout(Duration::from_millis(1_500))
        .with(ConcurrencyLimit::new(2))
        .with(RateLimit::new(2, SECOND))
        .start(&transport)
        .await
        .unwrap();
    let began = transport.env().now();
    world.submit(&transport, &(0..TASKS).collect::<Vec<_>>()).await;
    until(|| running.stats().acked == u64::from(TASKS), || format!("{:?}", running.stats())).await;
    let took = transport.env().now() - began;
    assert!(took >= 2 * SECOND, "two at once, and then one each half second, not {took:?}");
    assert!(most.load(Ordering::Acquire) <= 2, "{most:?} at once");
    let stats = running.stats();
    assert_eq!((stats.retried, stats.dead_lettered), (0, 0));
}
