//! Calls over the in-memory broker.

mod common;

use std::{sync::Arc, time::Duration};

use common::{Log, SECOND, declare_queue, publish, take, text, transport, two_transports};
use futures_util::{StreamExt, stream};
use postrider_core::{Address, ErrorKind, Message, Queue, ReplyMode, Topology, Transport};
use postrider_patterns::{
    CallOptions, Codec, Context, ErrorClass, HandlerError, Request, RpcClient, RpcError, RpcServer,
    Running,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

#[derive(Serialize, Deserialize)]
struct Double {
    number: u64,
}

impl Request for Double {
    const METHOD: &'static str = "double";
    type Reply = u64;
}

async fn serve(transport: &Arc<dyn Transport>) -> Running {
    RpcServer::new("math")
        .method(|request: Double, _context| async move { Ok(request.number * 2) })
        .method_named("refuse", |(): (), _context| async {
            Err::<(), _>(HandlerError::rejected("TOO_ODD", "not this one"))
        })
        .method_named("panic", |(): (), _context| async { bug() })
        .method_named("fail", |(): (), _context| async {
            Err::<(), _>(std::io::Error::other("password is hunter2").into())
        })
        .start(transport)
        .await
        .unwrap()
}

fn bug() -> Result<(), HandlerError> {
    panic!("secret state")
}

async fn call(client: &RpcClient, method: &str) -> RpcError {
    let options = CallOptions::default();
    let called = client.call_named::<_, Value>("math", method, &(), options);
    called.await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_call_gets_its_reply_in_either_codec() {
    let transport = transport();
    let _server = serve(&transport).await;
    for codec in [Codec::MessagePack, Codec::Json] {
        let client = RpcClient::builder(&transport).codec(codec);
        let client = client.connect().await.unwrap();
        let reply = client.call("math", &Double { number: 21 }).await;
        assert_eq!(reply.unwrap(), 42);
        assert_eq!(client.stats().in_flight, 0);
    }
}

#[tokio::test]
async fn a_thousand_calls_at_once_each_get_their_own_reply() {
    let transport = transport();
    let _server = serve(&transport).await;
    let client = RpcClient::new(&transport).await.unwrap();
    let replies: Vec<_> = stream::iter(0..1_000)
        .map(|number| {
            let client = client.clone();
            async move { (number, client.call("math", &Double { number }).await) }
        })
        .buffer_unordered(1_000)
        .collect()
        .await;
    assert_eq!(replies.len(), 1_000);
    for (number, reply) in replies {
        assert_eq!(reply.unwrap(), number * 2);
    }
    assert_eq!(client.stats().in_flight, 0);
    assert_eq!(client.stats().late_replies, 0);
}

/// One worker thread for each side, so that replies come while others are given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_calls_lose_and_leak_nothing() {
    const CALLS: u64 = 100_000;
    let (theirs, ours) = two_transports();
    let (serving, calling): (Arc<dyn Transport>, Arc<dyn Transport>) = (theirs, ours);
    let server = RpcServer::new("math")
        .method(|request: Double, _context| async move { Ok(request.number * 2) })
        .method_named("fail", |number: u64, _context| async move {
            Err::<(), _>(HandlerError::rejected("NO", number.to_string()))
        })
        .concurrency(64)
        .start(&serving)
        .await
        .unwrap();
    let client = RpcClient::new(&calling).await.unwrap();
    let (mut answered, mut rejected, mut given_up) = (0, 0, 0);
    let mut calls = stream::iter(0..CALLS)
        .map(|number| {
            let client = client.clone();
            async move {
                match number % 100 {
                    // Some are rejected, and some given up when they were just begun.
                    7 => {
                        let options = CallOptions::default();
                        let call = client.call_named::<_, ()>("math", "fail", &number, options);
                        let error = call.await.unwrap_err();
                        assert_eq!(error.to_string(), format!("rejected, NO: {number}"));
                        (0, 1, 0)
                    }
                    13 => {
                        let call = client.call_async("math", &Double { number });
                        tokio::task::yield_now().await;
                        drop(call);
                        (0, 0, 1)
                    }
                    _ => {
                        let reply = client.call("math", &Double { number }).await;
                        assert_eq!(reply.unwrap(), number * 2);
                        (1, 0, 0)
                    }
                }
            }
        })
        .buffer_unordered(64);
    while let Some(one) = calls.next().await {
        answered += one.0;
        rejected += one.1;
        given_up += one.2;
    }
    assert_eq!((answered, rejected, given_up), (98_000, 1_000, 1_000));
    let deadline = calling.env().now() + 10 * SECOND;
    while client.stats().in_flight > 0 {
        assert!(calling.env().now() < deadline, "{}", client.stats());
        tokio::task::yield_now().await;
    }
    server.stop(10 * SECOND).await;
    let info = calling.queue_info("rpc_math").await.unwrap().unwrap();
    assert_eq!((info.ready, info.unsettled, info.consumers), (0, Some(0), 0));
}

#[tokio::test(start_paused = true)]
async fn failures_come_back_as_what_they_are() {
    let transport = transport();
    let _server = serve(&transport).await;
    let client = RpcClient::new(&transport).await.unwrap();

    let unknown = call(&client, "halve").await;
    assert_eq!((unknown.class(), unknown.code()), (ErrorClass::Unsupported, "UNKNOWN_METHOD"));
    let bad = call(&client, "double").await;
    assert_eq!((bad.class(), bad.code()), (ErrorClass::Invalid, "INVALID_PARAMS"));
    let refused = call(&client, "refuse").await;
    assert!(matches!(
        refused,
        RpcError::Rejected { code, message, .. } if code == "TOO_ODD" && message == "not this one"
    ));
    let panicked = call(&client, "panic").await;
    assert_eq!((panicked.class(), panicked.code()), (ErrorClass::Internal, "PANIC"));
    assert!(!panicked.to_string().contains("secret"));
    let failed = call(&client, "fail").await;
    assert_eq!(failed.class(), ErrorClass::Internal);
    assert!(!failed.to_string().contains("hunter2"));
    // The server goes on after all that.
    assert_eq!(client.call("math", &Double { number: 1 }).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_serving_is_told_at_once() {
    let transport = transport();
    let client = RpcClient::new(&transport).await.unwrap();
    let before = transport.env().now();
    let no_queue = client.call("math", &Double { number: 1 }).await;
    assert!(matches!(no_queue, Err(RpcError::Unavailable { .. })));

    declare_queue(&*transport, Queue::classic("rpc_math")).await;
    let no_consumer = client.call("math", &Double { number: 1 }).await;
    assert!(matches!(no_consumer, Err(RpcError::Unavailable { .. })));
    assert_eq!(transport.env().now(), before);
    assert_eq!(common::ready(&*transport, "rpc_math").await, 0);
    assert_eq!(client.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_went_away_is_noticed() {
    let transport = transport();
    let server = serve(&transport).await;
    let client = RpcClient::new(&transport).await.unwrap();
    client.call("math", &Double { number: 1 }).await.unwrap();
    server.stop(SECOND).await;
    tokio::time::advance(5 * SECOND).await;
    let before = transport.env().now();
    let gone = client.call("math", &Double { number: 1 }).await;
    assert!(matches!(gone, Err(RpcError::Unavailable { .. })));
    assert_eq!(transport.env().now(), before);
}

#[tokio::test(start_paused = true)]
async fn a_call_to_a_service_that_just_stopped_ends_soon() {
    let transport = transport();
    let server = serve(&transport).await;
    let client = RpcClient::new(&transport).await.unwrap();
    client.call("math", &Double { number: 1 }).await.unwrap();
    server.stop(SECOND).await;
    let before = transport.env().now();
    // It was heard of a moment ago, so the request is sent.
    let error = client.call("math", &Double { number: 1 }).await.unwrap_err();
    assert!(matches!(error, RpcError::Unavailable { sent: true, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Unknown);
    assert_eq!(transport.env().now() - before, Duration::from_millis(500));
    assert_eq!(
        error.to_string(),
        "service 'math' is unavailable: nobody serves it any more (queue 'rpc_math' has no \
         consumer); the request was sent, and a server that returns in time may run it"
    );
    assert_eq!(client.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_service_queue_is_deleted_ends_soon() {
    let transport = transport();
    let _server = RpcServer::new("math")
        .method(|_request: Double, _context| std::future::pending())
        .start(&transport)
        .await
        .unwrap();
    let client = RpcClient::new(&transport).await.unwrap();
    let before = transport.env().now();
    let queue = Topology::new().queue(Queue::classic("rpc_math"));
    let (error, ()) = tokio::join!(client.call("math", &Double { number: 1 }), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        transport.remove(&queue).await.unwrap();
    });
    assert!(matches!(error, Err(RpcError::Unavailable { sent: true, .. })), "{error:?}");
    // It was asked after 0.5 s and again 1 s later.
    assert_eq!(transport.env().now() - before, Duration::from_millis(1_500));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_cut_off_for_longer_than_its_queue_lives_goes_on() {
    let (ours, theirs) = two_transports();
    let serving: Arc<dyn Transport> = ours.clone();
    let calling: Arc<dyn Transport> = theirs;
    let server = serve(&serving).await;
    let client = RpcClient::new(&calling).await.unwrap();
    client.call("math", &Double { number: 1 }).await.unwrap();
    ours.lose_connection();
    tokio::time::sleep(61 * SECOND).await;
    assert_eq!(calling.queue_info("rpc_math").await.unwrap(), None);
    ours.restore_connection();
    assert!(server.is_running());
    assert_eq!(client.call("math", &Double { number: 2 }).await.unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_stopping_still_answers_what_it_has_in_hand() {
    let transport = transport();
    let server = RpcServer::new("math")
        .method(|request: Double, _context| async move {
            tokio::time::sleep(8 * SECOND).await;
            Ok(request.number)
        })
        .start(&transport)
        .await
        .unwrap();
    let client = RpcClient::new(&transport).await.unwrap();
    let (reply, report) = tokio::join!(client.call("math", &Double { number: 7 }), async {
        tokio::time::sleep(SECOND).await;
        server.stop(30 * SECOND).await
    });
    assert_eq!(reply.unwrap(), 7);
    assert_eq!(report.finished, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_behind_the_last_one_of_a_stopping_server_ends_after_it() {
    let transport = transport();
    let server = RpcServer::new("math")
        .method(|request: Double, _context| async move {
            tokio::time::sleep(8 * SECOND).await;
            Ok(request.number)
        })
        .concurrency(1)
        .start(&transport)
        .await
        .unwrap();
    let client = RpcClient::new(&transport).await.unwrap();
    let before = transport.env().now();
    let (first, second) = (Double { number: 1 }, Double { number: 2 });
    let (first, second, report) =
        tokio::join!(client.call("math", &first), client.call("math", &second), async {
            tokio::time::sleep(SECOND).await;
            server.stop(30 * SECOND).await
        });
    assert_eq!(first.unwrap(), 1);
    assert_eq!(report.finished, 1);
    assert!(matches!(second, Err(RpcError::Unavailable { sent: true, .. })), "{second:?}");
    // It looks after 0.5, 1.5, 3.5, 7.5 and 12.5 s.
    assert_eq!(transport.env().now() - before, Duration::from_millis(12_500));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_could_not_be_sent_in_time_says_so() {
    let (ours, _) = two_transports();
    let transport: Arc<dyn Transport> = ours.clone();
    let _server = serve(&transport).await;
    let client = RpcClient::new(&transport).await.unwrap();
    client.call("math", &Double { number: 1 }).await.unwrap();
    let options = || CallOptions::default().with_timeout(2 * SECOND);

    ours.broker().raise_alarm("disk");
    let before = transport.env().now();
    let error = client.call_with("math", &Double { number: 1 }, options()).await.unwrap_err();
    assert!(matches!(error, RpcError::Unavailable { sent: false, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Unavailable);
    assert_eq!(transport.env().now() - before, 2 * SECOND);
    ours.broker().clear_alarm();

    for wait in [Duration::ZERO, 6 * SECOND] {
        // Once while the service was just heard of, once when it must be asked for.
        client.call("math", &Double { number: 1 }).await.unwrap();
        tokio::time::advance(wait).await;
        ours.lose_connection();
        let error = client.call_with("math", &Double { number: 1 }, options()).await.unwrap_err();
        assert!(matches!(error, RpcError::Unavailable { sent: false, .. }), "{error}");
        ours.restore_connection();
    }
    assert_eq!(client.call("math", &Double { number: 2 }).await.unwrap(), 4);
    assert_eq!(client.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_time_is_not_sent() {
    let transport = transport();
    let server = serve(&transport).await;
    let client = RpcClient::new(&transport).await.unwrap();
    let options = CallOptions::default().with_timeout(Duration::ZERO);
    let error = client.call_with("math", &Double { number: 1 }, options).await.unwrap_err();
    assert!(matches!(error, RpcError::TimedOut { after: Duration::ZERO, .. }), "{error}");
    // What was sent before this call is handled before it.
    client.call("math", &Double { number: 1 }).await.unwrap();
    assert_eq!(server.stop(SECOND).await.released, 0);
    assert_eq!(client.stats().late_replies, 0);
}

#[tokio::test(start_paused = true)]
async fn errors_of_calls_say_once_what_they_are_about() {
    let transport = transport();
    let client = RpcClient::new(&transport).await.unwrap();
    let error = client.call("math", &Double { number: 1 }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service 'math' is unavailable: nobody serves it (there is no queue 'rpc_math')"
    );
    declare_queue(&*transport, Queue::classic("rpc_math")).await;
    let error = client.call("math", &Double { number: 1 }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service 'math' is unavailable: nobody serves it (queue 'rpc_math' has no consumer)"
    );
    // A name that no queue can have is the caller's mistake.
    let long = "m".repeat(300);
    let error = client.call(&long, &Double { number: 1 }).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Invalid, "{error}");
    assert!(error.to_string().starts_with("call: a name may have 255 bytes"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_call_past_its_timeout_leaves_nothing_and_its_reply_is_late() {
    let transport = transport();
    let (told, mut cancelled) = mpsc::channel(2);
    let release = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&release);
    let server = RpcServer::new("math")
        .method(move |request: Double, context: Context| {
            let (gate, told) = (Arc::clone(&gate), told.clone());
            async move {
                context.cancellation().cancelled().await;
                told.send(request.number).await?;
                let _open = gate.acquire().await?;
                Ok(request.number)
            }
        })
        .start(&transport)
        .await
        .unwrap();
    let client = RpcClient::new(&transport).await.unwrap();
    let options = CallOptions::default().with_timeout(2 * SECOND);
    let before = transport.env().now();
    let error = client.call_with("math", &Double { number: 1 }, options).await.unwrap_err();
    assert!(matches!(error, RpcError::TimedOut { after, .. } if after == 2 * SECOND));
    assert_eq!(transport.env().now() - before, 2 * SECOND);
    assert_eq!(client.stats().in_flight, 0);

    // A call whose future is dropped leaves nothing either, and its reply is not even sent.
    let options = CallOptions::default();
    let dropped =
        tokio::time::timeout(SECOND, client.call_with("math", &Double { number: 2 }, options));
    assert!(dropped.await.is_err());
    assert_eq!(client.stats().in_flight, 0);

    // Both handlers were told: one by its deadline, one by its caller.
    assert_eq!((cancelled.recv().await, cancelled.recv().await), (Some(1), Some(2)));
    release.add_permits(2);
    server.stop(SECOND).await;
    // The replies are on their way to the client's task; a round trip through it waits for them.
    let _server = serve(&transport).await;
    client.call("math", &Double { number: 3 }).await.unwrap();
    assert_eq!(client.stats().late_replies, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_past_its_deadline_is_not_run() {
    let transport = transport();
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    let server = serve(&transport).await;
    let past = transport.env().timestamp() - Duration::from_millis(1);
    let request = Message::new(r#"{"method":"double","params":{"number":1}}"#)
        .with_reply_to("mine")
        .with_deadline(past);
    publish(&*transport, Address::queue("rpc_math"), request).await;
    let reply = take(&*transport, "mine").await;
    assert_eq!(text(&reply, "postrider-error-class"), Some("DEADLINE_EXCEEDED"));
    assert_eq!(server.stats().expired, 1);
}

#[tokio::test(start_paused = true)]
async fn an_undecodable_body_is_answered_and_kept_with_its_reason() {
    let transport = transport();
    let _server = serve(&transport).await;
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    for (content_type, body) in [
        ("application/json", "{\"method\": "),
        ("application/json", "{\"params\": {}}"),
        ("text/plain", "double 21"),
    ] {
        let request = Message::new(body)
            .with_content_type(content_type)
            .with_reply_to("mine")
            .with_header("tenant", "north");
        publish(&*transport, Address::queue("rpc_math"), request).await;
        let reply = take(&*transport, "mine").await;
        let answer: Value = Codec::decode(reply.content_type.as_deref(), &reply.body).unwrap();
        assert_eq!(answer["code"], "UNDECODABLE");

        let dead = take(&*transport, "dead_letter_rpc_math").await;
        assert_eq!(dead.body, body);
        assert_eq!(dead.content_type.as_deref(), Some(content_type));
        assert_eq!(text(&dead, "tenant"), Some("north"));
        assert_eq!(text(&dead, "postrider-error-class"), Some("INVALID"));
        assert_eq!(text(&dead, "postrider-error-code"), Some("UNDECODABLE"));
        assert!(!text(&dead, "postrider-error-message").unwrap().is_empty());
        assert_eq!(text(&dead, "postrider-origin-queue"), Some("rpc_math"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_client_is_served() {
    let transport = transport();
    let _server = serve(&transport).await;
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    for timestamp in [json!("yesterday"), json!(1_767_225_600), json!(null)] {
        let body = json!({
            "method": "double", "params": {"number": 4, "extra": [1]}, "timestamp": timestamp,
        });
        let request = Message::new(body.to_string()).with_reply_to("mine").with_correlation_id("1");
        publish(&*transport, Address::queue("rpc_math"), request).await;
        let reply = take(&*transport, "mine").await;
        assert_eq!(reply.body, r#"{"status":"success","data":8}"#);
        assert_eq!(reply.correlation_id.as_deref(), Some("1"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_gone_costs_nothing() {
    let transport = transport();
    let server = serve(&transport).await;
    let body = r#"{"method":"double","params":{"number":4}}"#;
    let nobody = Message::new(body).with_reply_to("no_such_queue");
    publish(&*transport, Address::queue("rpc_math"), nobody).await;
    // No reply-to: nothing to answer.
    publish(&*transport, Address::queue("rpc_math"), Message::new(body)).await;
    declare_queue(&*transport, Queue::exclusive("mine")).await;
    let last = Message::new(body).with_reply_to("mine");
    publish(&*transport, Address::queue("rpc_math"), last).await;
    take(&*transport, "mine").await;
    server.stop(SECOND).await;
    assert_eq!(common::ready(&*transport, "rpc_math").await, 0);
}

/// A server whose method counts its runs and takes a second, and a request to it whose reply goes
/// to the queue `mine` of the other connection.
async fn slow(
    server: &Arc<dyn Transport>,
    caller: &Arc<dyn Transport>,
) -> (Running, mpsc::Receiver<u32>) {
    let (running, runs) = counting(server).await;
    declare_queue(&**caller, Queue::exclusive("mine")).await;
    let body = r#"{"method":"slow","params":null}"#;
    let request = Message::new(body).with_reply_to("mine");
    publish(&**caller, Address::queue("rpc_math"), request).await;
    (running, runs)
}

async fn counting(transport: &Arc<dyn Transport>) -> (Running, mpsc::Receiver<u32>) {
    let (begun, runs) = mpsc::channel(100);
    let server = RpcServer::new("math").method_named("slow", move |(): (), context: Context| {
        let begun = begun.clone();
        async move {
            begun.send(context.attempt()).await?;
            tokio::time::sleep(SECOND).await;
            Ok(())
        }
    });
    (server.start(transport).await.unwrap(), runs)
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_reply_cannot_be_published_is_run_again() {
    let (theirs, ours) = two_transports();
    let (server, caller): (Arc<dyn Transport>, Arc<dyn Transport>) = (theirs.clone(), ours);
    let (running, mut runs) = slow(&server, &caller).await;
    runs.recv().await.unwrap();
    theirs.broker().raise_alarm("disk");
    tokio::time::timeout(60 * SECOND, runs.recv()).await.unwrap().unwrap();
    assert_eq!((running.stats().acked, running.stats().released), (0, 1));
    theirs.broker().clear_alarm();
    let reply = take(&*caller, "mine").await;
    assert_eq!(reply.body, r#"{"status":"success","data":null}"#);
    running.stop(SECOND).await;
    assert!(runs.recv().await.is_none());
    assert_eq!(common::ready(&*caller, "rpc_math").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_closes_lets_a_server_answer_what_it_has_in_hand() {
    let (theirs, ours) = two_transports();
    let (server, caller): (Arc<dyn Transport>, Arc<dyn Transport>) = (theirs, ours);
    let (running, mut runs) = slow(&server, &caller).await;
    runs.recv().await.unwrap();
    server.close(10 * SECOND).await.unwrap();
    assert_eq!(running.stats().acked, 1);
    take(&*caller, "mine").await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_closes_too_soon_leaves_the_request_to_another_server() {
    let (theirs, ours) = two_transports();
    let (server, caller): (Arc<dyn Transport>, Arc<dyn Transport>) = (theirs, ours);
    let (running, mut runs) = slow(&server, &caller).await;
    runs.recv().await.unwrap();
    server.close(SECOND / 2).await.unwrap_err();
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(running.stats().acked, 0);
    let (_other, mut runs) = counting(&caller).await;
    runs.recv().await.unwrap();
    take(&*caller, "mine").await;
}

#[tokio::test(start_paused = true)]
async fn too_many_calls_are_refused_and_not_queued() {
    let transport = transport();
    let _server = RpcServer::new("math")
        .method(|_request: Double, _context| std::future::pending())
        .start(&transport)
        .await
        .unwrap();
    let client = RpcClient::builder(&transport).max_in_flight(2);
    let client = client.connect().await.unwrap();
    let request = Double { number: 1 };
    let (one, two) = (client.call("math", &request), client.call("math", &request));
    let third = async {
        while client.stats().in_flight < 2 {
            tokio::task::yield_now().await;
        }
        client.call("math", &request).await
    };
    tokio::select! {
        biased;
        _ = one => panic!("it waits"),
        _ = two => panic!("it waits"),
        refused = third => assert!(matches!(refused, Err(RpcError::Throttled { .. }))),
    }
    assert_eq!(client.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_ends_pending_calls_as_unknown_and_the_client_goes_on() {
    let (ours, theirs) = two_transports();
    let (started, mut waiting) = mpsc::channel(1);
    let server: Arc<dyn Transport> = theirs;
    let _server = RpcServer::new("math")
        .method_named("wait", move |(): (), _context| {
            let started = started.clone();
            async move {
                started.send(()).await?;
                std::future::pending::<Result<(), _>>().await
            }
        })
        .method(|request: Double, _context| async move { Ok(request.number * 2) })
        .start(&server)
        .await
        .unwrap();
    let transport: Arc<dyn Transport> = ours.clone();
    let client = RpcClient::new(&transport).await.unwrap();
    let (error, ()) = tokio::join!(call(&client, "wait"), async {
        waiting.recv().await.unwrap();
        ours.drop_connection();
    });
    assert!(matches!(error, RpcError::Unknown { .. }), "{error}");
    assert_eq!(client.call("math", &Double { number: 4 }).await.unwrap(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_closed_transport_ends_calls_with_an_error() {
    let transport = transport();
    let client = RpcClient::new(&transport).await.unwrap();
    transport.close(SECOND).await.unwrap();
    let error = client.call("math", &Double { number: 1 }).await.unwrap_err();
    assert!(matches!(error, RpcError::Transport(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_keeps_to_the_deadline_of_its_parent() {
    let transport = transport();
    let client = RpcClient::new(&transport).await.unwrap();
    let nested = client.clone();
    let log = Log::default();
    let seen = log.clone();
    let _inner = RpcServer::new("inner")
        .method_named("look", move |(): (), context: Context| {
            seen.push((context.remaining(), context.conversation_id().map(str::to_owned)));
            async { Ok(()) }
        })
        .start(&transport)
        .await
        .unwrap();
    let _outer = RpcServer::new("outer")
        .method_named("go", move |(): (), context: Context| {
            let nested = nested.clone();
            async move {
                let options = CallOptions::default().within(&context).with_timeout(60 * SECOND);
                let conversation = context.conversation_id().unwrap_or_default().to_owned();
                nested.call_named::<_, ()>("inner", "look", &(), options).await?;
                Ok(conversation)
            }
        })
        .start(&transport)
        .await
        .unwrap();
    let options = CallOptions::default().with_timeout(3 * SECOND);
    let conversation: String = client.call_named("outer", "go", &(), options).await.unwrap();
    // The parent keeps 50 ms to answer.
    assert_eq!(log.items(), [(Some(Duration::from_millis(2_950)), Some(conversation))]);
}

#[tokio::test(start_paused = true)]
async fn a_method_that_is_registered_twice_is_refused_at_the_start() {
    let transport = transport();
    let server = RpcServer::new("math")
        .method(|request: Double, _context| async move { Ok(request.number) })
        .method_named("double", |(): (), _context| async { Ok(()) });
    let error = server.start(&transport).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("double"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_without_methods_is_refused_at_the_start() {
    let transport = transport();
    let error = RpcServer::new("math").start(&transport).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(transport.queue_info("rpc_math").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_method_that_cannot_be_idempotent_is_refused_at_the_start() {
    let transport = transport();
    let streams = RpcServer::new("math")
        .stream_method_named("count", |to: u32, _context| async move {
            Ok(stream::iter((0..to).map(Ok)))
        })
        .idempotent("count");
    let missing = RpcServer::new("math")
        .method(|request: Double, _context| async move { Ok(request.number) })
        .idempotent("count");
    for server in [streams, missing] {
        let error = server.start(&transport).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("count"), "{error}");
    }
    assert!(transport.queue_info("rpc_math").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_server_describes_what_it_serves() {
    let server = RpcServer::new("math")
        .method(|request: Double, _context| async move { Ok(request.number) })
        .stream_method_named("count", |to: u32, _context| async move {
            Ok(stream::iter((0..to).map(Ok)))
        })
        .idempotent("double")
        .concurrency(4)
        .max_waiting(100);
    assert_eq!(
        serde_json::to_value(server.describe()).unwrap(),
        json!({
            "service": "math", "queue": "rpc_math", "concurrency": 4, "max_waiting": 100,
            "methods": [
                {"name": "count", "idempotent": false, "streams": true},
                {"name": "double", "idempotent": true, "streams": false},
            ],
        })
    );
}

#[tokio::test(start_paused = true)]
async fn a_reply_mode_that_the_transport_has_not_is_refused_at_the_start() {
    let transport = transport();
    let client = RpcClient::builder(&transport).reply_mode(ReplyMode::Direct);
    let error = client.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
