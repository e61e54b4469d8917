//! Dead letters are published again, or thrown away.

use std::time::Duration;

use postrider_core::{Address, ConsumerOptions, Delivery, ErrorKind, Queue, Topology, Transport};
use postrider_patterns::{
    Context, DeadLetterFilter, ErrorClass, HandlerError, RedriveOptions, headers,
};
use tokio::sync::mpsc;

use super::world::{Job, World, comes_to, ids, soon};

async fn take(transport: &dyn Transport, queue: &str, number: usize) -> Vec<Delivery> {
    let options = ConsumerOptions::default();
    let mut consumer = transport.consumer(queue, options).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..number {
        taken.push(soon(consumer.recv()).await.unwrap().unwrap());
    }
    taken
}

fn numbers(taken: &[Delivery]) -> Vec<u32> {
    let id = |one: &Delivery| one.message().message_id.as_deref().unwrap().parse().unwrap();
    taken.iter().map(id).collect()
}

pub(crate) async fn a_redriven_message_is_as_it_was_and_counted_anew(world: World) {
    let transport = world.transport().await;
    let letters = world.letters(&transport);
    let worker = || {
        let (sender, seen) = mpsc::channel(10);
        let worker = world.worker().on(move |job: Job, context: Context| {
            let sender = sender.clone();
            async move {
                sender.send((context.message().clone(), context.attempt())).await?;
                if job.number == 1 && context.attempt() < 3 {
                    return Err(HandlerError::transient("busy"));
                }
                Err(HandlerError::invalid("it is not fixed yet"))
            }
        });
        (worker, seen)
    };
    let (buggy, mut seen) = worker();
    let buggy = buggy.start(&transport).await.unwrap();
    let tasks = world.tasks(&transport).await;
    tasks.submit(&Job { number: 1 }).await.unwrap();
    let (before, first) = soon(seen.recv()).await.unwrap();
    assert_eq!(first, 1);
    comes_to(&letters, 1).await;
    buggy.stop(Duration::from_secs(5)).await;

    let report = letters.redrive(&DeadLetterFilter::all(), RedriveOptions::default()).await;
    let report = report.unwrap();
    assert_eq!((report.done, report.stayed, report.failed, report.unseen), (1, 0, 0, 0));
    assert_eq!(letters.count().await.unwrap(), 0);
    let [again] = &take(&*transport, &world.queue(), 1).await[..] else { panic!("there is one") };
    assert_eq!((again.info().attempt, again.info().failures), (1, 0));
    assert_eq!(*again.message(), before);
    assert_eq!(again.message().headers.get(headers::ERROR_CLASS), None);
}

pub(crate) async fn what_does_not_match_stays_in_its_order(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 10).await;
    let odd = DeadLetterFilter::all().code("ODD");
    let report = letters.redrive(&odd, RedriveOptions::default()).await.unwrap();
    assert_eq!((report.done, report.stayed, report.unseen), (5, 5, 0));
    assert_eq!(ids(&letters.peek(10).await.unwrap()), [0, 2, 4, 6, 8]);
    assert_eq!(numbers(&take(&*transport, &world.queue(), 5).await), [1, 3, 5, 7, 9]);
}

/// What fails again at once comes back behind the end of the run.
pub(crate) async fn a_redrive_does_not_chase_its_own_tail(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 3).await;
    let _running = world
        .worker()
        .on(|_job: Job, _| async { Err(HandlerError::invalid("never")) })
        .start(&transport)
        .await
        .unwrap();
    let slowly = RedriveOptions::default().with_rate(10);
    let report = letters.redrive(&DeadLetterFilter::all(), slowly).await.unwrap();
    assert_eq!((report.done, report.unseen), (3, 0));
    comes_to(&letters, 3).await;
    let again = letters.peek(10).await.unwrap();
    let mut numbers = ids(&again);
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
    assert!(again.iter().all(|dead| dead.error() == Some("never") && dead.attempts() == Some(1)));
}

pub(crate) async fn a_redrive_keeps_to_its_rate_and_to_its_number(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 8).await;
    let begun = transport.env().now();
    let options = RedriveOptions::default().with_rate(20).with_most(5);
    let report = letters.redrive(&DeadLetterFilter::all(), options).await.unwrap();
    assert_eq!((report.done, report.stayed, report.unseen), (5, 0, 3));
    // The first goes at once.
    assert!(transport.env().now() - begun >= Duration::from_millis(200));
    comes_to(&letters, 3).await;
    assert_eq!(ids(&letters.peek(10).await.unwrap()), [5, 6, 7]);

    let none = RedriveOptions::default().with_rate(0);
    let refused = letters.redrive(&DeadLetterFilter::all(), none).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let nothing = RedriveOptions::default().with_most(0);
    let report = letters.redrive(&DeadLetterFilter::all(), nothing).await.unwrap();
    assert_eq!((report.done, report.unseen), (0, 3));
}

pub(crate) async fn another_queue_may_have_them(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 2).await;
    let other = format!("{}other", world.prefix);
    transport.declare(&Topology::new().queue(Queue::durable(other.clone()))).await.unwrap();
    let options = RedriveOptions::default().with_address(Address::queue(other.clone()));
    let report = letters.redrive(&DeadLetterFilter::all(), options).await.unwrap();
    assert_eq!(report.done, 2);
    assert_eq!(numbers(&take(&*transport, &other, 2).await), [0, 1]);
}

pub(crate) async fn what_cannot_be_moved_stays_and_is_told(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 3).await;
    let nowhere = Address::queue(format!("{}nowhere", world.prefix));
    let options = RedriveOptions::default().with_address(nowhere);
    let report = letters.redrive(&DeadLetterFilter::all(), options).await.unwrap();
    assert_eq!((report.done, report.failed, report.unseen), (0, 3, 0));
    assert_eq!(report.failure.map(|error| error.kind()), Some(ErrorKind::Unroutable));
    assert_eq!(ids(&letters.peek(10).await.unwrap()), [0, 1, 2]);
}

pub(crate) async fn what_is_thrown_away_is_gone_and_the_rest_is_not(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 6).await;
    let even = DeadLetterFilter::all().code("EVEN");
    let report = letters.discard(&even).await.unwrap();
    assert_eq!((report.done, report.stayed, report.unseen), (3, 3, 0));
    assert_eq!(ids(&letters.peek(10).await.unwrap()), [1, 3, 5]);
    let internal = DeadLetterFilter::all().class(ErrorClass::Internal);
    assert_eq!(letters.discard(&internal).await.unwrap().done, 0);
    assert_eq!(letters.discard(&DeadLetterFilter::all()).await.unwrap().done, 3);
    assert_eq!(letters.count().await.unwrap(), 0);
}

pub(crate) async fn a_small_window_moves_many_and_says_what_it_did_not_see(world: World) {
    let transport = world.transport().await;
    let letters = world.bury(&transport, 10).await.with_window(3);
    let report = letters.discard(&DeadLetterFilter::all().message_id("9")).await.unwrap();
    assert_eq!((report.done, report.stayed, report.unseen), (0, 3, 7));
    assert_eq!(ids(&letters.peek(10).await.unwrap()), [0, 1, 2]);
    let report = letters.redrive(&DeadLetterFilter::all(), RedriveOptions::default()).await;
    assert_eq!(report.unwrap().done, 10);
    let all = take(&*transport, &world.queue(), 10).await;
    assert_eq!(numbers(&all), (0..10).collect::<Vec<_>>());
    assert_eq!(letters.count().await.unwrap(), 0);
}
