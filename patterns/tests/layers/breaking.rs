//! The circuit breaker, over minutes of virtual time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use postrider_core::Transport;
use postrider_patterns::{
    CircuitBreaker, CircuitState, HandlerError, RetryPolicy, Running, Worker,
};
use tokio::time::sleep;

use crate::{
    Email,
    common::{Log, SECOND, ready, transport},
    submit,
};

/// What may be away.
#[derive(Clone, Default)]
struct Database {
    is_away: Arc<AtomicBool>,
    calls: Log<(u32, Duration)>,
}

impl Database {
    fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }
}

/// A worker with two places whose handlers call a database; task 13 is refused by it.
async fn worker(
    transport: &Arc<dyn Transport>,
    database: &Database,
    breaker: &CircuitBreaker,
) -> Running {
    let (database, env) = (database.clone(), transport.env().clone());
    let start = env.now();
    Worker::new("email")
        .on(move |task: Email, _context| {
            database.calls.push((task.to, env.now() - start));
            let is_away = database.is_away.load(Ordering::Relaxed);
            async move {
                if is_away {
                    return Err(HandlerError::transient("the database is away"));
                }
                if task.to == 13 {
                    return Err(HandlerError::rejected("NO", "not this one"));
                }
                Ok(())
            }
        })
        .retry(RetryPolicy::default())
        .concurrency(2)
        .prefetch(4)
        .with(breaker.clone())
        .start(transport)
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_pauses_consuming_and_fails_nothing() {
    let (transport, database) = (transport(), Database::default());
    let breaker = CircuitBreaker::after_failures(3).open_for(60 * SECOND);
    let running = worker(&transport, &database, &breaker).await;
    let mut states = breaker.watch();
    database.set_away(true);
    submit(&transport, &(1..=10).collect::<Vec<_>>()).await;
    states.wait_for(|state| *state == CircuitState::Open).await.unwrap();
    sleep(SECOND).await;
    // Of those that are not at work only the prefetch is taken.
    assert_eq!(ready(&*transport, running.queue()).await, 6);
    assert_eq!(database.calls.items().len(), 3);
    sleep(170 * SECOND).await;
    // A probe each minute.
    assert_eq!(database.calls.items().len(), 5);
    assert_eq!(breaker.state(), CircuitState::Open);
    database.set_away(false);
    sleep(20 * SECOND).await;
    let stats = running.stats();
    assert_eq!(breaker.state(), CircuitState::Closed);
    assert_eq!((stats.acked, stats.dead_lettered, stats.retried), (10, 0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_for_hours_dead_letters_nothing() {
    let (transport, database) = (transport(), Database::default());
    let breaker = CircuitBreaker::after_failures(1).open_for(1_800 * SECOND);
    let running = worker(&transport, &database, &breaker).await;
    database.set_away(true);
    submit(&transport, &(1..=6).collect::<Vec<_>>()).await;
    sleep(3 * 3_600 * SECOND).await;
    database.set_away(false);
    sleep(1_900 * SECOND).await;
    let stats = running.stats();
    assert_eq!((stats.acked, stats.dead_lettered), (6, 0));
    assert!(stats.released > 0, "held all the time");
    assert!(stats.retried <= 7, "more than the probes failed: {stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_is_no_failure_of_the_database() {
    let (transport, database) = (transport(), Database::default());
    let breaker = CircuitBreaker::after_failures(2);
    let running = worker(&transport, &database, &breaker).await;
    submit(&transport, &[13, 13, 13, 13, 1]).await;
    sleep(SECOND).await;
    assert_eq!((running.stats().dead_lettered, running.stats().acked), (4, 1));
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn several_workers_share_a_circuit() {
    let (transport, database) = (transport(), Database::default());
    let breaker = CircuitBreaker::at_ratio(0.5, 60 * SECOND, 3).open_for(10 * SECOND);
    let _one = worker(&transport, &database, &breaker).await;
    let _other = worker(&transport, &database, &breaker).await;
    database.set_away(true);
    submit(&transport, &(1..=8).collect::<Vec<_>>()).await;
    sleep(35 * SECOND).await;
    // What was under way when it opened, and a probe each ten seconds for both.
    let calls = database.calls.items();
    let late = calls.iter().filter(|(_, at)| *at > SECOND).count();
    assert!((3..=6).contains(&(calls.len() - late)), "{calls:?}");
    assert_eq!(late, 3, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_circuit_goes_back_when_its_worker_begins_to_stop() {
    let (transport, database) = (transport(), Database::default());
    let breaker = CircuitBreaker::after_failures(1).open_for(3_600 * SECOND);
    let running = worker(&transport, &database, &breaker).await;
    database.set_away(true);
    submit(&transport, &[1, 2, 3]).await;
    sleep(30 * SECOND).await;
    let (queue, start) = (running.queue().to_owned(), transport.env().now());
    let report = running.stop(60 * SECOND).await;
    let took = transport.env().now() - start;
    assert!(took < SECOND, "{took:?}");
    assert_eq!((report.finished, report.released), (0, 2));
    assert_eq!(ready(&*transport, &queue).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_given_up_is_followed_by_another() {
    let (transport, database) = (transport(), Database::default());
    let breaker = CircuitBreaker::after_failures(1).open_for(10 * SECOND);
    let running = worker(&transport, &database, &breaker).await;
    database.set_away(true);
    submit(&transport, &[1]).await;
    sleep(SECOND).await;
    drop(running);
    let hanging = Worker::new("email")
        .on(|_task: Email, _context| async {
            sleep(3_600 * SECOND).await;
            Ok(())
        })
        .with(breaker.clone())
        .start(&transport)
        .await
        .unwrap();
    sleep(20 * SECOND).await;
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    drop(hanging);
    database.set_away(false);
    let running = worker(&transport, &database, &breaker).await;
    sleep(SECOND).await;
    assert_eq!((running.stats().acked, breaker.state()), (1, CircuitState::Closed));
}
