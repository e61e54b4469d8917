//! One complaint each, named with where it was made.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use postrider_core::{
    Address, Envelope, ErrorKind, Exchange, HeaderValue, Headers, Message, PublisherExt,
    PublisherOptions, Queue, Topology, Transport, TransportEvent,
};
use postrider_patterns::{
    Context, Deduplicate, HandlerError, RetryPolicy, RpcServer, Service, SubmitOptions,
    Subscription,
};
use tokio::{
    sync::{Barrier, Semaphore, mpsc},
    time::timeout,
};

use crate::world::{Handled, Job, Paid, SOON, World, letters_come_to, soon, until};

async fn publish(world: &World, transport: &Arc<dyn Transport>, message: Message) {
    let publisher = transport.publisher(PublisherOptions::default()).await.unwrap();
    publisher.publish(Envelope::new(Address::queue(world.queue()), message)).await.unwrap();
}

fn job(number: u32) -> Message {
    Message::new(format!(r#"{{"type":"job","params":{{"number":{number}}}}}"#))
        .with_content_type("application/json")
}

/// Watermill 568 and 678, Dapr 9619: a shutdown cancels handlers, loses their messages, or
/// dead-letters them.
pub(crate) async fn a_stop_loses_nothing_and_repeats_nothing(world: &World) {
    const TASKS: u32 = 60;
    let (first, second) = (world.transport().await, world.transport().await);
    let (handled, open) = (Handled::default(), Arc::new(Semaphore::new(0)));
    let worker = || {
        let (handled, open) = (handled.clone(), Arc::clone(&open));
        world.worker().concurrency(4).prefetch(20).on(move |job: Job, _| {
            let (handled, open) = (handled.clone(), Arc::clone(&open));
            async move {
                handled.note(job.number);
                // The first ones are at work when the stop comes, and end after it.
                open.acquire().await?.forget();
                Ok(())
            }
        })
    };
    let stopping = worker().start(&first).await.unwrap();
    let tasks = world.tasks(&second).await;
    tasks.submit_all(&(0..TASKS).map(|number| Job { number }).collect::<Vec<_>>()).await.unwrap();
    handled.comes_to(4).await;
    let stopped = tokio::spawn(stopping.stop(SOON));
    let staying = worker().start(&second).await.unwrap();
    open.add_permits(TASKS as usize);
    let report = soon(stopped).await.unwrap();
    assert_eq!((report.finished, report.released), (4, 0));
    handled.comes_to(TASKS as usize).await;
    until(|| staying.stats().acked == u64::from(TASKS - 4), || format!("{:?}", staying.stats()))
        .await;
    assert_eq!(handled.sum(), TASKS, "none is handled twice: {handled:?}");
    // What only waited in the hands of the first has not failed.
    assert_eq!(staying.stats().retried, 0);
    assert_eq!(world.letters(&second).count().await.unwrap(), 0);
}

/// Watermill-amqp 547, 558 and 586: one message at a time, whatever the prefetch.
pub(crate) async fn as_many_are_handled_at_once_as_was_asked_for(world: &World) {
    const AT_ONCE: usize = 8;
    let transport = world.transport().await;
    let together = Arc::new(Barrier::new(AT_ONCE));
    let running = world
        .worker()
        .concurrency(AT_ONCE)
        .on(move |_job: Job, _| {
            let together = Arc::clone(&together);
            async move {
                together.wait().await;
                Ok(())
            }
        })
        .start(&transport)
        .await
        .unwrap();
    let tasks = world.tasks(&transport).await;
    let jobs: Vec<_> = (0..AT_ONCE as u32).map(|number| Job { number }).collect();
    tasks.submit_all(&jobs).await.unwrap();
    until(|| running.stats().acked == AT_ONCE as u64, || format!("{:?}", running.stats())).await;
}

/// Spring Cloud Stream 2939, spring-amqp 3435, `FastStream` 1603: tries that are counted by what
/// clients send, or for ever.
pub(crate) async fn a_forged_count_takes_no_try_away(world: &World) {
    let transport = world.transport().await;
    let running = world
        .worker()
        .on(|_job: Job, _| async { Err(HandlerError::transient("never")) })
        .start(&transport)
        .await
        .unwrap();
    let mut death = Headers::new();
    death.set("queue", world.queue());
    death.set("reason", "rejected");
    death.set("count", 99);
    let death = HeaderValue::Map(death);
    let forged = job(1)
        .with_header("x-death", HeaderValue::List(vec![death]))
        .with_header("x-delivery-count", 99)
        .with_header("x-acquired-count", 99)
        .with_header("postrider-failures", 99);
    publish(world, &transport, forged).await;
    let letters = world.letters(&transport);
    letters_come_to(&letters, 1).await;
    let dead = letters.peek(1).await.unwrap();
    assert_eq!(dead[0].attempts(), Some(3));
    assert_eq!(running.stats().retried, 2);
}

/// Nest 2413 and 3981: events are shared out among services instead of copied to each.
pub(crate) async fn each_subscription_has_a_copy_and_its_instances_share_it(world: &World) {
    const EVENTS: u32 = 20;
    let mut running = Vec::new();
    let mut services = Vec::new();
    for service in ["billing", "shipping"] {
        let handled = Handled::default();
        for _ in 0..2 {
            let (bus, handled) = (world.bus(&world.transport().await).await, handled.clone());
            let subscription = Subscription::durable(service, "paid")
                .prefetch(1)
                .concurrency(1)
                .on(move |paid: Paid, _| {
                    handled.note(paid.order);
                    async { Ok(()) }
                });
            running.push(bus.subscribe(subscription).await.unwrap());
        }
        services.push(handled);
    }
    let bus = world.bus(&world.transport().await).await;
    for order in 0..EVENTS {
        bus.publish(&Paid { order }).await.unwrap();
    }
    for (handled, instances) in services.iter().zip(running.chunks(2)) {
        handled.comes_to(EVENTS as usize).await;
        assert_eq!(handled.sum(), EVENTS, "{handled:?}");
        let shares = || instances.iter().map(|one| one.stats().acked).collect::<Vec<_>>();
        until(|| shares().iter().sum::<u64>() == u64::from(EVENTS), || format!("{:?}", shares()))
            .await;
        assert!(shares().iter().all(|share| *share > 0), "{:?}", shares());
    }
}

/// Watermill's default marshaler: a header that is no string sends its message round for ever.
pub(crate) async fn headers_of_any_type_jam_nothing(world: &World) {
    let transport = world.transport().await;
    let (tell, mut told) = mpsc::channel(10);
    let running = world
        .worker()
        .on(move |job: Job, context: Context| {
            let tell = tell.clone();
            let count = context.message().headers.get("count").cloned();
            async move { Ok(tell.send((job.number, count)).await?) }
        })
        .start(&transport)
        .await
        .unwrap();
    let odd = job(1)
        .with_header("count", 7)
        .with_header("ratio", 0.5)
        .with_header("raw", HeaderValue::Bytes(vec![0, 159, 146, 150].into()))
        .with_header("x-list", HeaderValue::List(vec![HeaderValue::Bool(true)]));
    publish(world, &transport, odd).await;
    assert_eq!(soon(told.recv()).await, Some((1, Some(HeaderValue::Int(7)))));
    until(|| running.stats().acked == 1, || format!("{:?}", running.stats())).await;
}

/// Moleculer 648 and 803: events are gone for who does not listen at the moment.
pub(crate) async fn what_is_published_while_its_subscriber_is_away_waits_for_it(world: &World) {
    let transport = world.transport().await;
    let bus = world.bus(&transport).await;
    let handled = Handled::default();
    let subscription = || {
        let handled = handled.clone();
        Subscription::durable("billing", "paid").on(move |paid: Paid, _| {
            handled.note(paid.order);
            async { Ok(()) }
        })
    };
    let running = bus.subscribe(subscription()).await.unwrap();
    bus.publish(&Paid { order: 1 }).await.unwrap();
    handled.comes_to(1).await;
    running.stop(SOON).await;
    for order in 2..=10 {
        bus.publish(&Paid { order }).await.unwrap();
    }
    let _running = bus.subscribe(subscription()).await.unwrap();
    handled.comes_to(10).await;
    assert_eq!(handled.sum(), 10);
}

/// Eventuate 194, omniqueue without confirms, nats.rs 182: a publish that went nowhere looks well.
pub(crate) async fn a_bus_without_its_exchange_says_so(world: &World) {
    let transport = world.transport().await;
    let bus = world.bus(&transport).await;
    bus.publish(&Paid { order: 1 }).await.unwrap();
    let exchange = Topology::new().exchange(Exchange::topic(world.naming.event_exchange()));
    transport.remove(&exchange).await.unwrap();
    let lost = soon(bus.publish(&Paid { order: 2 })).await;
    assert!(lost.is_err(), "nobody can have it");
}

/// Celery 8030 and 10302, `MassTransit` 2072 and 5692, Wolverine 1439 and 1878: after trouble with the
/// broker the process runs and consumes nothing.
pub(crate) async fn a_worker_goes_on_after_every_loss(world: &World) {
    let watching = world.transport().await;
    let working = world.connect().await;
    let handled = Handled::default();
    let note = handled.clone();
    let running = world
        .worker()
        .on(move |job: Job, _| {
            note.note(job.number);
            async { Ok(()) }
        })
        .start(&working.transport)
        .await
        .unwrap();
    let tasks = world.tasks(&watching).await;
    for loss in 1..=4 {
        tasks.submit(&Job { number: loss }).await.unwrap();
        handled.comes_to(loss as usize).await;
        working.cut().await;
    }
    assert!(running.is_running());
}

/// iii-hq 1958: a process without a consumer calls itself healthy.
pub(crate) async fn a_worker_whose_queue_is_gone_says_so(world: &World) {
    let transport = world.transport().await;
    let running =
        world.worker().on(|_job: Job, _| async { Ok(()) }).start(&transport).await.unwrap();
    let other = world.transport().await;
    other.remove(&Topology::new().queue(Queue::durable(world.queue()))).await.unwrap();
    let ended = soon(running.ended()).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::NotFound);
    assert!(!running.is_running());
}

/// Celery 2481, 3270 and 9882: long delays come twice, or not at all.
pub(crate) async fn a_delayed_task_comes_once_and_not_early(world: &World) {
    const DELAY: Duration = Duration::from_secs(2);
    let transport = world.transport().await;
    let handled = Handled::default();
    let note = handled.clone();
    let working = world.connect().await;
    let running = world
        .worker()
        .on(move |job: Job, _| {
            note.note(job.number);
            async { Ok(()) }
        })
        .start(&working.transport)
        .await
        .unwrap();
    let tasks = world.tasks(&transport).await;
    let before = transport.env().now();
    let delayed = SubmitOptions::default().with_delay(DELAY);
    tasks.submit_with(&Job { number: 1 }, delayed).await.unwrap();
    // A worker that comes and goes has nothing of it in hand.
    working.cut().await;
    handled.comes_to(1).await;
    assert!(transport.env().now() - before >= DELAY);
    until(|| running.stats().acked == 1, || format!("{:?}", running.stats())).await;
    tokio::time::sleep(DELAY).await;
    assert_eq!(handled.sum(), 1);
}

/// Watermill's deduplicator: a message that failed is dropped as a duplicate of itself.
pub(crate) async fn a_failed_message_is_not_taken_for_a_duplicate(world: &World) {
    let transport = world.transport().await;
    let failed = Arc::new(AtomicBool::new(false));
    let deduplicate = Deduplicate::by_message_id();
    let running = world
        .worker()
        .with(deduplicate.clone())
        .on(move |_job: Job, _| {
            let first = !failed.swap(true, Ordering::Relaxed);
            async move { if first { Err(HandlerError::transient("not yet")) } else { Ok(()) } }
        })
        .start(&transport)
        .await
        .unwrap();
    for _ in 0..2 {
        publish(world, &transport, job(1).with_message_id("one")).await;
    }
    until(|| running.stats().acked == 2, || format!("{:?}", running.stats())).await;
    assert_eq!((running.stats().retried, deduplicate.duplicates()), (1, 1));
}

/// `NServiceBus` 1550 and 1688: the broker's own limit ends what the policy would try again.
pub(crate) async fn a_policy_beyond_the_brokers_limit_is_refused(world: &World) {
    let transport = world.transport().await;
    let refused = world
        .worker()
        .on(|_job: Job, _| async { Ok(()) })
        .retry(RetryPolicy::default().with_immediate(30))
        .start(&transport)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    // Nothing was declared for it.
    assert_eq!(transport.queue_info(&world.queue()).await.unwrap(), None);
}

/// Nest's pull 12974: one message that is not answered freezes what comes behind it.
pub(crate) async fn a_slow_task_holds_up_only_its_own_place(world: &World) {
    const TASKS: u32 = 30;
    let transport = world.transport().await;
    let handled = Handled::default();
    let note = handled.clone();
    let running = world
        .worker()
        .concurrency(2)
        .prefetch(2)
        .on(move |job: Job, _| {
            let note = note.clone();
            async move {
                if job.number == 0 {
                    std::future::pending::<()>().await;
                }
                note.note(job.number);
                Ok(())
            }
        })
        .start(&transport)
        .await
        .unwrap();
    let tasks = world.tasks(&transport).await;
    let jobs: Vec<_> = (0..=TASKS).map(|number| Job { number }).collect();
    tasks.submit_all(&jobs).await.unwrap();
    handled.comes_to(TASKS as usize).await;
    let report = running.stop(Duration::ZERO).await;
    assert_eq!(report.released, 1);
}

/// `MassTransit` 1760, 2260, 2722 and 6191: a start or a publish waits for ever, and hears no call to
/// end.
pub(crate) async fn nothing_hangs_that_starts_or_publishes_while_the_broker_is_away(world: &World) {
    // The transports' own limit is 30 seconds.
    const IN_TIME: Duration = Duration::from_secs(45);
    let (proxy, transport) = world.through_proxy().await;
    let (bus, tasks) = (world.bus(&transport).await, world.tasks(&transport).await);
    let worker = || world.worker().on(|_job: Job, _| async { Ok(()) });
    let paid = || Subscription::durable("billing", "paid").on(|_: Paid, _| async { Ok(()) });
    let calls = RpcServer::new("idle").naming(world.naming.clone());
    let calls = calls.method_named("ping", |(): (), _| async { Ok("pong") });
    let service = Service::new("service", &transport).worker(worker());
    let mut events = transport.events();
    proxy.refuse();
    proxy.cut();
    let is_lost =
        async { while !matches!(events.next().await, Some(TransportEvent::Lost { .. })) {} };
    soon(is_lost).await;
    let is_away = |error: postrider_core::Error| assert!(error.is_retryable(), "{error}");
    // Whoever does not wait for the end is free to go.
    if let Ok(ended) = timeout(Duration::from_millis(10), worker().start(&transport)).await {
        is_away(ended.unwrap_err());
    }
    let (job, event) = (Job { number: 1 }, Paid { order: 1 });
    let all = async {
        tokio::join!(
            async { is_away(worker().start(&transport).await.unwrap_err()) },
            async { is_away(bus.subscribe(paid()).await.unwrap_err()) },
            async { is_away(calls.start(&transport).await.unwrap_err()) },
            async { is_away(service.start().await.unwrap_err()) },
            async { assert!(bus.publish(&event).await.is_err()) },
            async { assert!(tasks.submit(&job).await.is_err()) },
        )
    };
    timeout(IN_TIME, all).await.expect("each has its end in time");
    proxy.heal();
    let running = timeout(SOON, async {
        loop {
            match worker().start(&transport).await {
                Ok(running) => return running,
                Err(error) => is_away(error),
            }
        }
    });
    let running = running.await.expect("in time");
    timeout(SOON, tasks.submit(&job)).await.expect("in time").unwrap();
    until(|| running.stats().acked >= 1, || format!("{:?}", running.stats())).await;
}
