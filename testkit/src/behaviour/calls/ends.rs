//! How calls end: with a reply, late, given up, unserved, too late to be run.

use std::{future::pending, time::Duration};

use futures_util::{StreamExt, stream};
use postrider_patterns::{
    BatchOptions, CallOptions, Context, ErrorClass, Limits, RpcError, StreamOptions,
};
use tokio::sync::mpsc;

use super::service::{Double, Gate, MATH, Service, failed, plain, within};
use crate::{
    Scene,
    behaviour::{Behaviour, Need},
};

/// Long enough for a call that must not time out before a request is handled, and soon over.
const SHORT: Duration = Duration::from_millis(500);

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(handles_end_when_their_replies_come, NEEDS),
        Behaviour::new(a_batch_has_an_outcome_for_each_call_in_order, NEEDS),
        Behaviour::new(a_timeout_frees_the_call_and_its_handler_sees_it, NEEDS),
        Behaviour::new(a_late_reply_is_counted_and_reaches_no_other_call, NEEDS),
        Behaviour::new(
            a_reply_larger_than_the_broker_takes_is_told,
            &[Need::Topology, Need::MaxMessageSize],
        ),
        Behaviour::new(a_call_given_up_is_told_to_its_handler, NEEDS),
        Behaviour::new(a_call_given_up_before_it_was_handled_is_not_run, NEEDS),
        Behaviour::new(nobody_serving_is_told_at_once, NEEDS),
        Behaviour::new(what_was_asked_for_a_call_that_is_over_is_not_believed, NEEDS),
        Behaviour::new(a_request_dies_in_the_broker_with_its_time, NEEDS),
        Behaviour::new(a_request_that_waited_too_long_is_not_run, NEEDS),
        Behaviour::new(a_nested_call_has_less_time_than_its_parent, NEEDS),
        Behaviour::new(clocks_that_differ_neither_kill_nor_prolong_a_request, NEEDS),
    ]
}

async fn handles_end_when_their_replies_come(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().method(move |Double(number), _context| {
        let gate = at_gate.clone();
        async move { gate.pass(number).await }
    });
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let (one, two) = (client.call_async(MATH, &Double(1)), client.call_async(MATH, &Double(2)));
    let cancelled = client.call_async(MATH, &Double(3));
    for _ in 0..3 {
        scene.soon("a call is handled that nobody awaits", begun.recv()).await;
    }
    assert!(!one.is_finished() && !two.is_finished());
    cancelled.cancel();
    failed(cancelled.await, |error| matches!(error, RpcError::Cancelled), "it was cancelled");
    gate.open(3);
    let replies = async { (two.await.expect("a reply"), one.await.expect("a reply")) };
    assert_eq!(scene.soon("both replies", replies).await, (4, 2));
    assert_eq!(client.stats().in_flight, 0);
}

async fn a_batch_has_an_outcome_for_each_call_in_order(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().concurrency(50).method(move |Double(number), _context| {
        let gate = at_gate.clone();
        async move { if number == 7 { gate.pass(number).await } else { Ok(number * 2) } }
    });
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let options = BatchOptions::default().with_in_flight(8).with_timeout(4 * SHORT);
    let batch = client.call_batch(MATH, (0..40).map(Double), options);
    let outcomes = scene.soon("the batch", batch).await;
    assert_eq!(outcomes.len(), 40);
    for (number, outcome) in (0..).zip(outcomes) {
        match outcome {
            Ok(reply) => assert_eq!(reply, number * 2),
            Err(error) => {
                assert_eq!(number, 7, "one call takes too long: {error}");
                assert!(matches!(error, RpcError::TimedOut { .. }), "{error}");
            }
        }
    }
    assert_eq!((begun.recv().await, gate.runs()), (Some(7), 1));
    assert_eq!(client.stats().in_flight, 0);
}

async fn a_timeout_frees_the_call_and_its_handler_sees_it(scene: Scene) {
    let service = Service::new(scene.clone());
    let (told, mut cancelled) = mpsc::unbounded_channel();
    let server = service.server().method(move |Double(number), context: Context| {
        let told = told.clone();
        async move {
            context.cancellation().cancelled().await;
            told.send(number)?;
            // By another clock it may still be in time to answer.
            pending().await
        }
    });
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let before = scene.env().now();
    let outcome = client.call_with(MATH, &Double(1), within(SHORT)).await;
    let error =
        failed(outcome, |error| matches!(error, RpcError::TimedOut { .. }), "no reply came");
    assert_eq!(error.class(), ErrorClass::DeadlineExceeded);
    let took = scene.env().now() - before;
    assert!(took >= SHORT && took <= SHORT + scene.lateness(), "it took {took:?}");
    assert_eq!(client.stats().in_flight, 0);
    assert_eq!(scene.soon("the handler sees the deadline", cancelled.recv()).await, Some(1));
}

async fn a_late_reply_is_counted_and_reaches_no_other_call(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().method(move |Double(number), _context| {
        let gate = at_gate.clone();
        async move { gate.pass(number).await }
    });
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let outcome = client.call_with(MATH, &Double(1), within(SHORT)).await;
    failed(outcome, |error| matches!(error, RpcError::TimedOut { .. }), "no reply came");
    // The next call has the place of the first, and must not get its reply.
    let next = client.call_async(MATH, &Double(21));
    for _ in 0..2 {
        scene.soon("both are handled", begun.recv()).await;
    }
    gate.open(2);
    assert_eq!(scene.soon("the second reply", next).await.expect("its own reply"), 42);
    scene
        .eventually("the first reply is late", async || match client.stats().late_replies {
            1 => Ok(()),
            late => Err(format!("{late} late replies")),
        })
        .await;
}

async fn a_reply_larger_than_the_broker_takes_is_told(scene: Scene) {
    let Some(limit) = scene.capabilities().max_message_size else {
        panic!("the runner checks that there is a limit");
    };
    let size = usize::try_from(limit).expect("a limit that fits in memory");
    let service = Service::new(scene.clone());
    let large = move || "x".repeat(size);
    let server = service
        .server()
        .limits(Limits::default().with_max_body_bytes(usize::MAX))
        .method_named("once", move |(): (), _context| async move { Ok(large()) })
        .stream_method_named("items", move |(): (), _context| async move {
            Ok(stream::iter([Ok(String::new()), Ok(large()), Ok(String::new())]))
        })
        .method(|Double(number), _context| async move { Ok(number * 2) });
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let internal = |error: &RpcError| error.class() == ErrorClass::Internal;
    let once = client.call_named::<_, String>(MATH, "once", &(), CallOptions::default());
    failed(scene.soon("the error", once).await, internal, "the reply is too large");
    let items = client.call_stream_named::<_, String>(MATH, "items", &(), StreamOptions::default());
    let mut items = items.await.expect("a stream");
    let first = scene.soon("the first item", items.next()).await;
    assert_eq!(first.expect("an item").expect("an item"), "");
    let second = scene.soon("the error", items.next()).await.expect("an error");
    failed(second, internal, "the item is too large");
    assert!(items.next().await.is_none());
    assert_eq!(client.call(MATH, &Double(2)).await.expect("a reply"), 4);
    assert_eq!(server.stats().released, 0, "nothing is run again");
}

async fn a_call_given_up_is_told_to_its_handler(scene: Scene) {
    let service = Service::new(scene.clone());
    let (told, mut seen) = mpsc::unbounded_channel();
    let server = service.server().method(move |Double(number), context: Context| {
        let told = told.clone();
        async move {
            told.send("begun")?;
            context.cancellation().cancelled().await;
            told.send("given up")?;
            Ok(number)
        }
    });
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let call = client.call_async(MATH, &Double(1));
    assert_eq!(scene.soon("the handler begins", seen.recv()).await, Some("begun"));
    drop(call);
    assert_eq!(scene.soon("the handler is told", seen.recv()).await, Some("given up"));
    scene
        .eventually("its request is done with, without a reply", async || {
            let stats = server.stats();
            if (stats.cancelled, stats.acked) == (1, 1) {
                Ok(())
            } else {
                Err(format!("{stats:?}"))
            }
        })
        .await;
    assert_eq!(client.stats().in_flight, 0);
}

async fn a_call_given_up_before_it_was_handled_is_not_run(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let (told, mut third_is) = mpsc::unbounded_channel();
    let at_gate = gate.clone();
    let server = service.server().concurrency(2).method(move |Double(number), context: Context| {
        let (gate, told) = (at_gate.clone(), told.clone());
        async move {
            if number == 3 {
                told.send("begun")?;
                context.cancellation().cancelled().await;
                told.send("given up")?;
                return Ok(0);
            }
            gate.pass(number).await
        }
    });
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let first = client.call_async(MATH, &Double(1));
    scene.soon("the first call is handled", begun.recv()).await;
    let third = client.call_async(MATH, &Double(3));
    assert_eq!(scene.soon("the third call is handled", third_is.recv()).await, Some("begun"));
    // A stream is begun when the broker has its request, so the second one is behind both.
    let second = client.call_stream(MATH, &Double(2), StreamOptions::default()).await;
    let second = second.expect("it is sent");
    drop(second);
    drop(third);
    // Who hears of the third has heard of the second.
    assert_eq!(scene.soon("the third is told", third_is.recv()).await, Some("given up"));
    gate.open(1);
    assert_eq!(scene.soon("the first reply", first).await.expect("a reply"), 2);
    scene
        .eventually("the second is not run", async || {
            let stats = server.stats();
            if (stats.cancelled, stats.acked) == (2, 3) {
                Ok(())
            } else {
                Err(format!("{stats:?}"))
            }
        })
        .await;
    assert_eq!(gate.runs(), 1);
}

async fn nobody_serving_is_told_at_once(scene: Scene) {
    let service = Service::new(scene.clone());
    let (client, _connection) = service.client().await;
    let before = scene.env().now();
    let unavailable = |error: &RpcError| matches!(error, RpcError::Unavailable { sent: false, .. });
    failed(client.call(MATH, &Double(1)).await, unavailable, "there is no queue");
    scene.classic_named(&service.queue()).await;
    failed(client.call(MATH, &Double(1)).await, unavailable, "there is no consumer");
    let took = scene.env().now() - before;
    assert!(took <= scene.lateness(), "it took {took:?}");
    scene.settles_at(&service.queue(), 0).await;
}

/// Whether anybody serves is asked before a call; the answer may come when the call is over.
async fn what_was_asked_for_a_call_that_is_over_is_not_believed(scene: Scene) {
    let service = Service::new(scene.clone());
    let connection = scene.connect().await;
    for micros in [1, 50, 100, 200, 400, 800] {
        let client = service.client_on(&connection.transport).connect().await;
        let client = client.expect("a client connects");
        let brief = CallOptions::default().with_timeout(Duration::from_micros(micros));
        let early = client.call_with(MATH, &Double(1), brief).await;
        failed(early, |_| true, "nobody serves it");
        let server = service.doubling().await;
        let reply = scene.soon("the reply", client.call(MATH, &Double(2))).await;
        assert_eq!(reply.expect("it is served now"), 4, "after a call of {micros} µs");
        server.stop(Duration::from_secs(1)).await;
        // It outlives its servers, and the next early call is to find nothing.
        service.delete_queue().await;
    }
}

async fn a_request_dies_in_the_broker_with_its_time(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server =
        service.server().concurrency(1).prefetch(1).method(move |Double(number), _context| {
            let gate = at_gate.clone();
            async move { gate.pass(number).await }
        });
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let first = client.call_async(MATH, &Double(1));
    scene.soon("the first call is handled", begun.recv()).await;
    let outcome = client.call_with(MATH, &Double(2), within(SHORT)).await;
    failed(outcome, |error| matches!(error, RpcError::TimedOut { .. }), "it waits in the queue");
    scene.settles_at(&service.queue(), 0).await;
    gate.open(2);
    assert_eq!(scene.soon("the first reply", first).await.expect("a reply"), 2);
    assert_eq!((gate.runs(), server.stats().expired), (1, 0));
}

async fn a_request_that_waited_too_long_is_not_run(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server =
        service.server().concurrency(1).prefetch(2).method(move |Double(number), _context| {
            let gate = at_gate.clone();
            async move { gate.pass(number).await }
        });
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let first = client.call_async(MATH, &Double(1));
    scene.soon("the first call is handled", begun.recv()).await;
    let outcome = client.call_with(MATH, &Double(2), within(SHORT)).await;
    failed(outcome, |error| matches!(error, RpcError::TimedOut { .. }), "the server is busy");
    gate.open(2);
    assert_eq!(scene.soon("the first reply", first).await.expect("a reply"), 2);
    scene
        .eventually("the second is found too late", async || match server.stats().expired {
            1 => Ok(()),
            expired => Err(format!("{expired} expired")),
        })
        .await;
    assert_eq!(gate.runs(), 1);
}

async fn a_nested_call_has_less_time_than_its_parent(scene: Scene) {
    let service = Service::new(scene.clone());
    let (client, _connection) = service.client().await;
    let (log, mut logged) = mpsc::unbounded_channel();
    let (inner, outer) = (log.clone(), log);
    let server = service
        .server()
        .method_named("inner", move |(): (), context: Context| {
            let log = inner.clone();
            async move {
                log.send(context.deadline())?;
                pending::<Result<(), _>>().await
            }
        })
        .method_named("outer", move |(): (), context: Context| {
            let (log, client) = (outer.clone(), client.clone());
            async move {
                log.send(context.deadline())?;
                let options = CallOptions::default().within(&context);
                let late = client.call_named::<_, ()>(MATH, "inner", &(), options).await;
                // The parent has time to say so.
                Ok(late.unwrap_err().class())
            }
        });
    let _server = service.start(server).await;
    let (caller, _connection) = service.client().await;
    let options = within(8 * SHORT);
    let class = caller.call_named::<_, ErrorClass>(MATH, "outer", &(), options).await;
    match class {
        Ok(class) => assert_eq!(class, ErrorClass::DeadlineExceeded),
        // It has 50 ms for its answer, which a busy machine may take away.
        Err(error) => {
            let late = matches!(error, RpcError::TimedOut { .. }) && scene.lateness() >= SHORT;
            assert!(late, "the parent answers in time: {error}");
        }
    }
    let (outer, inner) = (logged.recv().await, logged.recv().await);
    let (outer, inner) = (outer.flatten().unwrap(), inner.flatten().unwrap());
    assert!(inner < outer, "the deadline {inner} of the nested call is before {outer}");
}

async fn clocks_that_differ_neither_kill_nor_prolong_a_request(scene: Scene) {
    let service = Service::new(scene.clone());
    let (log, mut logged) = mpsc::unbounded_channel();
    let server = service.server().concurrency(1).clock_tolerance(Duration::from_secs(60)).method(
        move |Double(number), context: Context| {
            let log = log.clone();
            async move {
                log.send((number, context.remaining()))?;
                Ok(number)
            }
        },
    );
    let server = service.start(server).await;
    let hour = Duration::from_secs(3_600);
    let now = scene.env().timestamp();
    let budget = Duration::from_secs(10);
    let requests = [
        // Its clock is an hour ahead: the time that it was given holds.
        plain("double", 1).with_deadline(now + hour).with_ttl(budget),
        // It is half a minute behind, less than is tolerated.
        plain("double", 2).with_deadline(now - Duration::from_secs(30)).with_ttl(budget),
        // It is behind by more, or late.
        plain("double", 3).with_deadline(now - hour).with_ttl(budget),
    ];
    for request in requests {
        scene.publish_message(&service.queue(), request).await;
    }
    for expected in [1, 2] {
        let (number, left) = scene.soon("a request is run", logged.recv()).await.unwrap();
        assert_eq!(number, expected);
        assert!(left.is_some_and(|left| left <= budget), "{left:?} are left");
    }
    scene
        .eventually("the third is not run", async || match server.stats().expired {
            1 => Ok(()),
            expired => Err(format!("{expired} expired")),
        })
        .await;
}
