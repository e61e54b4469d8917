//! Each failure ends in the documented place after the documented number of tries.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use postrider_core::{
    Address, Binding, ConsumerOptions, Envelope, Message, Overflow, PublisherExt, PublisherOptions,
    Queue, Topology, Transport,
};
use postrider_patterns::{
    Context, DeadReason, ErrorClass, HandlerError, Jitter, RetryPolicy, Tries, codes, headers,
};
use tokio::sync::mpsc;

use super::world::{Job, SOON, World, comes_to, one, soon};

async fn publish(world: &World, transport: &Arc<dyn Transport>, message: Message) {
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    publisher.publish(Envelope::new(Address::queue(world.queue()), message)).await.unwrap();
}

pub(crate) async fn a_poison_message_is_kept_after_the_tries_of_its_policy(world: World) {
    let transport = world.transport().await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&attempts);
    let running = world
        .worker()
        .on(move |job: Job, context: Context| {
            let is_poison = job.number == 1;
            if is_poison {
                log.lock().unwrap().push(context.attempt());
            }
            async move {
                if is_poison {
                    let disk = std::io::Error::other("the disk is full");
                    let error = postrider_core::Error::new(
                        postrider_core::ErrorKind::Internal,
                        "save",
                        "it was not saved",
                    );
                    return Err(error.with_source(disk).into());
                }
                Ok(())
            }
        })
        .start(&transport)
        .await
        .unwrap();
    let tasks = world.tasks(&transport).await;
    let id = tasks.submit(&Job { number: 1 }).await.unwrap();
    tasks.submit(&Job { number: 2 }).await.unwrap();

    let letters = world.letters(&transport);
    let dead = one(&letters).await;
    assert_eq!(*attempts.lock().unwrap(), [1, 2, 3]);
    assert_eq!(dead.message().message_id.as_deref(), Some(id.as_str()));
    assert_eq!((dead.reason(), dead.attempts()), (DeadReason::Failed, Some(3)));
    assert_eq!((dead.class(), dead.code()), (Some(ErrorClass::Internal), Some("INTERNAL")));
    assert_eq!(dead.error(), Some("save: it was not saved: the disk is full"));
    assert_eq!(dead.host(), Some(transport.env().host()));
    assert_eq!(dead.origin_queue(), Some(world.queue()));
    assert_eq!(dead.origin_address(), Some(Address::queue(world.queue())));
    let published = dead.published_at().expect("its publisher says when");
    assert!(published <= dead.dead_lettered_at().expect("it is known"));
    assert_eq!(running.stats().acked, 1);
}

/// Nothing counts by ids.
pub(crate) async fn a_poison_message_without_an_id_is_bounded_too(world: World) {
    let transport = world.transport().await;
    let running = world
        .worker()
        .on(|_job: Job, _| async { Err(HandlerError::transient("never")) })
        .start(&transport)
        .await
        .unwrap();
    // Nor does it park a key that it names: nothing is in order here.
    let message = Message::new(r#"{"type":"job","params":{"number":1}}"#)
        .with_header(headers::PARKED_KEY, "a key");
    publish(&world, &transport, message).await;
    let dead = one(&world.letters(&transport)).await;
    assert_eq!((dead.attempts(), dead.message().message_id.as_deref()), (Some(3), None));
    assert!(dead.message().headers.get(headers::PARKED_KEY).is_none());
    assert_eq!(running.stats().retried, 2);
}

pub(crate) async fn a_class_may_have_other_tries(world: World) {
    let transport = world.transport().await;
    let policy = super::world::quick()
        .with_class(ErrorClass::Internal, Tries::NONE)
        .with_class(ErrorClass::NotFound, Tries::new(4, 0));
    let running = world
        .worker()
        .on(|job: Job, _| async move {
            Err(match job.number {
                0 => HandlerError::internal("a bug"),
                1 => HandlerError::not_found("not replicated yet"),
                _ => HandlerError::transient("busy"),
            })
        })
        .retry(policy)
        .start(&transport)
        .await
        .unwrap();
    let tasks = world.tasks(&transport).await;
    tasks.submit_all(&[0, 1, 2].map(|number| Job { number })).await.unwrap();
    let letters = world.letters(&transport);
    comes_to(&letters, 3).await;
    let mut attempts: Vec<_> = letters.peek(3).await.unwrap();
    attempts.sort_by_key(|dead| dead.class());
    let attempts: Vec<_> =
        attempts.iter().map(|dead| (dead.class().unwrap(), dead.attempts().unwrap())).collect();
    assert_eq!(
        attempts,
        [(ErrorClass::Transient, 3), (ErrorClass::NotFound, 5), (ErrorClass::Internal, 1)]
    );
    assert_eq!(running.stats().dead_lettered, 3);
}

pub(crate) async fn a_handler_that_panics_is_kept_after_its_tries(world: World) {
    let transport = world.transport().await;
    let running = world
        .worker()
        .on(|job: Job, _| async move {
            assert!(job.number > 1, "nobody has the number {}", job.number);
            Ok(())
        })
        .start(&transport)
        .await
        .unwrap();
    let tasks = world.tasks(&transport).await;
    tasks.submit_all(&[1, 2].map(|number| Job { number })).await.unwrap();
    let dead = one(&world.letters(&transport)).await;
    assert_eq!((dead.code(), dead.attempts()), (Some(codes::PANIC), Some(3)));
    assert!(dead.error().unwrap().ends_with("nobody has the number 1"), "{dead}");
    assert_eq!(running.stats().acked, 1);
}

pub(crate) async fn a_handler_that_never_returns_is_kept_after_its_tries(world: World) {
    let transport = world.transport().await;
    let (told, mut telling) = mpsc::channel(10);
    let running = world
        .worker()
        .on(move |job: Job, context: Context| {
            let told = told.clone();
            async move {
                if job.number == 1 {
                    told.send(context.cancellation().clone()).await?;
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        })
        .handler_timeout(Duration::from_millis(200))
        .start(&transport)
        .await
        .unwrap();
    let tasks = world.tasks(&transport).await;
    tasks.submit_all(&[1, 2].map(|number| Job { number })).await.unwrap();
    let dead = one(&world.letters(&transport)).await;
    assert_eq!((dead.code(), dead.attempts()), (Some(codes::HANDLER_TIMEOUT), Some(3)));
    assert_eq!(dead.class(), Some(ErrorClass::DeadlineExceeded));
    assert_eq!((running.stats().acked, running.stats().retried), (1, 2));
    for _ in 0..3 {
        soon(telling.recv()).await.unwrap().cancelled().await;
    }
}

pub(crate) async fn tries_are_counted_over_all_instances(world: World) {
    const INSTANCES: usize = 4;
    let tries = Arc::new(Mutex::new(Vec::new()));
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        let (transport, log) = (world.transport().await, Arc::clone(&tries));
        let worker = world.worker().on(move |_job: Job, context: Context| {
            log.lock().unwrap().push(context.attempt());
            async { Err(HandlerError::transient("never")) }
        });
        instances.push(worker.start(&transport).await.unwrap());
    }
    let transport = world.transport().await;
    world.tasks(&transport).await.submit(&Job { number: 1 }).await.unwrap();
    let dead = one(&world.letters(&transport)).await;
    assert_eq!(dead.attempts(), Some(3));
    let mut tries = tries.lock().unwrap().clone();
    tries.sort_unstable();
    assert_eq!(tries, [1, 2, 3]);
}

/// The broker counts, so that neither a new version nor a crash begins anew.
pub(crate) async fn tries_go_on_counting_in_another_worker(world: World) {
    let transport = world.transport().await;
    world.tasks(&transport).await.submit(&Job { number: 1 }).await.unwrap();
    // Time for a worker to stop in between, so that none is stopped with the message in hand.
    let delay = Duration::from_millis(500);
    let policy = RetryPolicy::never()
        .with_delayed(3)
        .with_delay(delay, 1.0, delay)
        .with_jitter(Jitter::None);
    for attempt in 1..=4 {
        let (failing, mut failed) = mpsc::channel(10);
        let running = world
            .worker()
            .on(move |_job: Job, context: Context| {
                let failing = failing.clone();
                async move {
                    failing.send(context.attempt()).await?;
                    Err(HandlerError::transient("never"))
                }
            })
            .retry(policy.clone())
            .start(&transport)
            .await
            .unwrap();
        assert_eq!(soon(failed.recv()).await, Some(attempt));
        while running.stats().retried + running.stats().dead_lettered == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.stop(Duration::ZERO).await;
    }
    let dead = one(&world.letters(&transport)).await;
    assert_eq!(dead.attempts(), Some(4));
    let first = dead.first_failed_at().expect("it was retried with a delay");
    let took = (dead.dead_lettered_at().unwrap() - first).to_std().unwrap();
    assert!(took >= 3 * delay && took < SOON, "three delays were between, not {took:?}");
    assert!(dead.original().headers.get(headers::FIRST_FAILED_AT).is_none());
}

pub(crate) async fn unknown_types_neither_jam_the_queue_nor_vanish(world: World) {
    let transport = world.transport().await;
    let (sender, mut done) = mpsc::channel(1);
    let running = world
        .worker()
        .on(move |job: Job, _| {
            let sender = sender.clone();
            async move { Ok(sender.send(job.number).await?) }
        })
        .concurrency(1)
        .prefetch(1)
        .start(&transport)
        .await
        .unwrap();
    for _ in 0..20 {
        publish(&world, &transport, Message::new(r#"{"type":"telegram"}"#)).await;
    }
    world.tasks(&transport).await.submit(&Job { number: 7 }).await.unwrap();
    assert_eq!(soon(done.recv()).await, Some(7));
    let letters = world.letters(&transport);
    comes_to(&letters, 20).await;
    let letters = letters.peek(100).await.unwrap();
    assert_eq!(letters.len(), 20);
    assert!(letters.iter().all(|dead| dead.code() == Some(codes::UNKNOWN_TASK)));
    assert!(letters.iter().all(|dead| dead.attempts() == Some(1)));
    assert_eq!(running.stats().dead_lettered, 20);
}

pub(crate) async fn what_cannot_be_decoded_is_kept_and_not_acknowledged_away(world: World) {
    let transport = world.transport().await;
    let _running =
        world.worker().on(|_job: Job, _| async { Ok(()) }).start(&transport).await.unwrap();
    let message = Message::new(vec![0xc1, 0, 255])
        .with_content_type("application/msgpack")
        .with_message_id("1")
        .with_header("tenant", "north");
    publish(&world, &transport, message.clone()).await;
    let dead = one(&world.letters(&transport)).await;
    assert_eq!((dead.code(), dead.attempts()), (Some(codes::UNDECODABLE), Some(1)));
    let original = dead.original();
    assert_eq!((original.body, original.headers), (message.body, message.headers));
}

pub(crate) async fn stopping_a_worker_dead_letters_nothing(world: World) {
    let transport = world.transport().await;
    let tasks = world.tasks(&transport).await;
    let numbers: Vec<_> = (0..10).map(|number| Job { number }).collect();
    tasks.submit_all(&numbers).await.unwrap();
    // More often than the limit, where giving back is not counted.
    let times = if transport.capabilities().uncounted_release { 25 } else { 15 };
    for _ in 0..times {
        let (begun, mut beginning) = mpsc::channel(10);
        let running = world
            .worker()
            .on(move |_job: Job, _| {
                let begun = begun.clone();
                async move {
                    begun.send(()).await?;
                    std::future::pending().await
                }
            })
            .start(&transport)
            .await
            .unwrap();
        soon(beginning.recv()).await.unwrap();
        let report = running.stop(Duration::ZERO).await;
        assert_eq!(report.still_running, 0);
    }
    let (sender, mut done) = mpsc::channel(10);
    let running = world
        .worker()
        .on(move |job: Job, context: Context| {
            let sender = sender.clone();
            async move { Ok(sender.send((job.number, context.attempt())).await?) }
        })
        .start(&transport)
        .await
        .unwrap();
    let mut numbers = Vec::new();
    for _ in 0..10 {
        numbers.push(soon(done.recv()).await.unwrap().0);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    assert_eq!(world.letters(&transport).count().await.unwrap(), 0);
    assert_eq!(running.stats().dead_lettered, 0);
}

pub(crate) async fn a_dead_letter_that_finds_no_room_waits_for_it(world: World) {
    let transport = world.transport().await;
    let (begun, mut begins) = mpsc::unbounded_channel();
    let running = world
        .worker()
        .on(move |_job: Job, _| {
            let told = begun.send(());
            async move {
                told?;
                Err(HandlerError::invalid("never"))
            }
        })
        .start(&transport)
        .await
        .unwrap();
    // Somebody else has made the queue of dead letters anew, and it is full.
    let dead = world.naming.dead_letter_queue(&world.queue());
    let full =
        Queue::classic(dead.clone()).with_max_length(1).with_overflow(Overflow::RejectPublish);
    transport.remove(&Topology::new().queue(full.clone())).await.unwrap();
    let bound = Binding::queue(world.naming.dead_letter_exchange(), dead.clone(), dead.clone());
    transport.declare(&Topology::new().queue(full).bind(bound)).await.unwrap();
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    let filling = Envelope::new(Address::queue(dead.clone()), Message::new("full"));
    publisher.publish(filling).await.unwrap();

    world.tasks(&transport).await.submit(&Job { number: 1 }).await.unwrap();
    soon(begins.recv()).await.unwrap();
    let options = ConsumerOptions::default().with_prefetch(1);
    let mut consumer = transport.consumer(&dead, options).await.unwrap();
    let first = soon(consumer.recv()).await.unwrap().unwrap();
    assert_eq!(first.message().body, "full");
    first.ack();
    // Its next try finds room; it was not handled again for that.
    let letter = soon(consumer.recv()).await.unwrap().unwrap();
    let why = letter.message().headers.get(headers::ERROR_MESSAGE).unwrap();
    assert_eq!(why.as_text(), Some("never"));
    letter.ack();
    drop(consumer);
    while running.stats().dead_lettered == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(begins.try_recv().is_err());
    running.stop(SOON).await;
    transport.remove(&Topology::new().queue(Queue::classic(dead))).await.unwrap();
}
