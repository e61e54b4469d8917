//! Middleware around the methods of a service, and what calls and streams refuse, on virtual time.

mod common;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use common::{Log, SECOND, transport};
use futures_util::{StreamExt, stream};
use postrider_core::{ErrorKind, Transport};
use postrider_patterns::{
    BatchOptions, CallOptions, CircuitBreaker, CircuitState, ConcurrencyLimit, Context,
    Deduplicate, ErrorClass, Gather, HandlerError, Limits, Middleware, Next, Outgoing, RateLimit,
    Request, RpcClient, RpcError, RpcServer, StreamError, StreamOptions, StreamReceiver,
    StreamSender, Task, Worker, codes,
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

#[derive(Serialize, Deserialize)]
struct Double(u64);

impl Request for Double {
    const METHOD: &'static str = "double";
    type Reply = u64;
}

impl Task for Double {
    const TYPE: &'static str = "double";
}

/// A server whose method takes a second.
fn slow() -> RpcServer {
    RpcServer::new("math").method(|Double(number), _context| async move {
        sleep(SECOND).await;
        Ok(number * 2)
    })
}

async fn client(transport: &Arc<dyn Transport>) -> RpcClient {
    RpcClient::new(transport).await.unwrap()
}

/// Notes the outcome of each request, with its code.
#[derive(Debug)]
struct Noting(Log<String>);

#[async_trait]
impl Middleware for Noting {
    async fn handle(&self, context: &Context, next: Next<'_>) -> Result<(), HandlerError> {
        assert!(next.is_request());
        let result = next.run(context).await;
        self.0.push(result.as_ref().map_or_else(|e| e.code().to_owned(), |()| "ok".to_owned()));
        result
    }
}

#[tokio::test(start_paused = true)]
async fn a_middleware_sees_how_requests_and_streams_end() {
    let (transport, log) = (transport(), Log::default());
    let _server = RpcServer::new("math")
        .method(|Double(number), _context| async move {
            assert!(number < 10, "a bug");
            if number == 3 { Err(HandlerError::rejected("ODD", "no")) } else { Ok(number * 2) }
        })
        .stream_method_named("count", |to: u64, _context| async move {
            Ok(stream::iter(0..=to).map(move |item| match item {
                2 => Err(HandlerError::rejected("FULL", "no more")),
                item => Ok(item),
            }))
        })
        .with(Noting(log.clone()))
        .start(&transport)
        .await
        .unwrap();
    let client = client(&transport).await;
    assert_eq!(client.call("math", &Double(2)).await.unwrap(), 4);
    assert_eq!(client.call("math", &Double(3)).await.unwrap_err().code(), "ODD");
    assert_eq!(client.call("math", &Double(10)).await.unwrap_err().code(), codes::PANIC);
    for (to, items) in [(1, 2), (5, 2)] {
        let options = StreamOptions::default();
        let stream = client.call_stream_named::<_, u64>("math", "count", &to, options).await;
        let came: Vec<_> = stream.unwrap().collect().await;
        assert_eq!(came.iter().filter(|item| item.is_ok()).count(), items);
    }
    sleep(SECOND).await;
    assert_eq!(log.items(), ["ok", "ODD", codes::PANIC, "ok", "FULL"]);
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_is_used_up_is_told_at_once() {
    let transport = transport();
    let limit = RateLimit::new(1, 10 * SECOND).burst(2);
    let _server = slow().with(limit).start(&transport).await.unwrap();
    let client = client(&transport).await;
    let calls = [1, 2, 3].map(|number| client.call_async("math", &Double(number)));
    let start = transport.env().now();
    let [one, two, three] = calls;
    let error = three.await.unwrap_err();
    assert!(transport.env().now() - start < SECOND);
    assert_eq!((error.class(), error.code()), (ErrorClass::Throttled, codes::NOT_BEGUN));
    let after = error.retry_after().unwrap();
    assert!(after > 9 * SECOND && after <= 10 * SECOND, "{after:?}");
    assert_eq!((one.await.unwrap(), two.await.unwrap()), (2, 4));
    sleep(after).await;
    assert_eq!(client.call("math", &Double(3)).await.unwrap(), 6);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_place_is_told_before_its_caller_gives_up() {
    let transport = transport();
    let _server = slow().with(ConcurrencyLimit::new(1)).start(&transport).await.unwrap();
    let client = client(&transport).await;
    let half = |number| {
        let options = CallOptions::default().with_timeout(1_500 * SECOND / 1_000);
        client.call_async_with("math", &Double(number), options)
    };
    let (first, second) = (half(1), half(2));
    assert_eq!(first.await.unwrap(), 2);
    // It begins after a second, and its time is over half a second later.
    assert!(matches!(second.await, Err(RpcError::TimedOut { .. })));
    sleep(SECOND).await;
    let long = client.call_async("math", &Double(1));
    tokio::task::yield_now().await;
    let options = CallOptions::default().with_timeout(SECOND / 2);
    let error = client.call_with("math", &Double(2), options).await.unwrap_err();
    assert_eq!((error.class(), error.code()), (ErrorClass::Throttled, codes::NOT_BEGUN));
    assert_eq!(long.await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_waits_goes_to_another_server_when_its_own_stops() {
    let transport = transport();
    let first = slow().with(ConcurrencyLimit::new(1)).start(&transport).await.unwrap();
    let client = client(&transport).await;
    let calls = [1, 2].map(|number| client.call_async("math", &Double(number)));
    sleep(SECOND / 2).await;
    let _other = slow().start(&transport).await.unwrap();
    let report = first.stop(60 * SECOND).await;
    assert_eq!((report.finished, report.released), (1, 1));
    let [one, two] = calls;
    assert_eq!((one.await.unwrap(), two.await.unwrap()), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn a_circuit_pauses_and_a_refused_request_does_not_open_it() {
    let transport = transport();
    let circuit = CircuitBreaker::after_failures(1).open_for(10 * SECOND);
    let _server = RpcServer::new("math")
        .method(|Double(number), _context| async move {
            if number == 0 { Err(HandlerError::transient("away")) } else { Ok(number * 2) }
        })
        .with(circuit.clone())
        .with(RateLimit::new(1, SECOND))
        .start(&transport)
        .await
        .unwrap();
    let client = client(&transport).await;
    assert_eq!(client.call("math", &Double(1)).await.unwrap(), 2);
    let refused = client.call("math", &Double(1)).await.unwrap_err();
    assert_eq!(refused.code(), codes::NOT_BEGUN);
    assert_eq!(circuit.state(), CircuitState::Closed);
    sleep(2 * SECOND).await;
    assert_eq!(client.call("math", &Double(0)).await.unwrap_err().class(), ErrorClass::Transient);
    assert_eq!(circuit.state(), CircuitState::Open);
    let before = transport.env().now();
    assert_eq!(client.call("math", &Double(2)).await.unwrap(), 4);
    assert!(transport.env().now() - before >= 9 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_has_no_answer_is_told_so() {
    let transport = transport();
    let once = Deduplicate::by(|_context| Some("the same".to_owned()));
    let _server = slow().with(once).start(&transport).await.unwrap();
    let client = client(&transport).await;
    assert_eq!(client.call("math", &Double(1)).await.unwrap(), 2);
    let error = client.call("math", &Double(1)).await.unwrap_err();
    assert_eq!((error.class(), error.code()), (ErrorClass::Unsupported, codes::NOT_ANSWERED));
}

#[tokio::test(start_paused = true)]
async fn a_middleware_that_would_wait_for_itself_is_refused() {
    let transport = transport();
    let limit = ConcurrencyLimit::new(1);
    let started = slow().with(limit.clone()).with(Arc::new(limit.clone())).start(&transport).await;
    assert_eq!(started.unwrap_err().kind(), ErrorKind::Invalid);
    let circuit = CircuitBreaker::after_failures(1);
    let worker = Worker::new("double").on(|_task: Double, _context| async { Ok(()) });
    let started = worker.with(circuit.clone()).with(circuit).start(&transport).await;
    assert_eq!(started.unwrap_err().kind(), ErrorKind::Invalid);
    let two = slow().with(limit).with(ConcurrencyLimit::new(1));
    two.start(&transport).await.unwrap().stop(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn options_by_which_nothing_could_run_are_refused() {
    let transport = transport();
    let nothing = Limits::default().with_max_body_bytes(0);
    for server in [slow().max_waiting(0), slow().max_waiting(u64::MAX), slow().limits(nothing)] {
        assert_eq!(server.start(&transport).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let builder = || RpcClient::builder(&transport);
    let builders =
        [builder().max_in_flight(0), builder().timeout(Duration::ZERO), builder().limits(nothing)];
    for builder in builders {
        assert_eq!(builder.connect().await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let sender = StreamSender::builder(&transport).accept_timeout(Duration::ZERO).connect().await;
    assert_eq!(sender.unwrap_err().kind(), ErrorKind::Invalid);
    let receiver = StreamReceiver::new("files").on(|_incoming, _context| async { Ok(()) });
    let receiver = receiver.max_length(0).start(&transport).await;
    assert_eq!(receiver.unwrap_err().kind(), ErrorKind::Invalid);
    let _server = slow().start(&transport).await.unwrap();
    let options = StreamOptions::default().with_idle(Duration::ZERO);
    let stream = client(&transport).await.call_stream("math", &Double(1), options).await;
    assert_eq!(stream.unwrap_err().class(), ErrorClass::Invalid);
}

#[tokio::test(start_paused = true)]
async fn chunks_that_cannot_be_sent_are_refused() {
    let transport = transport();
    let most = u32::try_from(transport.capabilities().max_message_size.unwrap()).unwrap();
    for bytes in [0, most, u32::MAX] {
        let sender = StreamSender::builder(&transport).chunk_size(bytes).connect().await;
        let error = sender.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.message().contains("chunk"), "{error}");
    }
    StreamSender::builder(&transport).chunk_size(most - 4_096).connect().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_longest_times_are_long_ones() {
    let transport = transport();
    let server = slow()
        .clock_tolerance(Duration::MAX)
        .stream_method_named("count", |to: u64, _context| async move {
            Ok(stream::iter(0..to).map(Ok::<_, HandlerError>))
        });
    let server = server.start(&transport).await.unwrap();
    let client = RpcClient::builder(&transport).timeout(Duration::MAX).connect().await.unwrap();
    assert_eq!(client.call("math", &Double(1)).await.unwrap(), 2);
    let options = CallOptions::default().with_timeout(Duration::MAX);
    assert_eq!(client.call_with("math", &Double(1), options).await.unwrap(), 2);
    let options = BatchOptions::default().with_timeout(Duration::MAX);
    assert_eq!(client.call_batch("math", [Double(1)], options).await.len(), 1);
    let gather = Gather::all().with_timeout(Duration::MAX);
    assert!(client.gather("math", &Double(1), gather).await.unwrap().reached);
    let options = StreamOptions::default().with_idle(Duration::MAX).with_timeout(Duration::MAX);
    let stream = client.call_stream_named::<_, u64>("math", "count", &3_u64, options).await;
    assert_eq!(stream.unwrap().collect::<Vec<_>>().await.len(), 3);
    server.stop(SECOND).await;

    let receiver = StreamReceiver::new("files")
        .on(|mut incoming, _context| async move {
            tokio::io::copy(&mut incoming, &mut tokio::io::sink()).await?;
            Ok(())
        })
        .idle_timeout(Duration::MAX)
        .gaps(Duration::MAX, 5);
    let _receiver = receiver.start(&transport).await.unwrap();
    let sender = StreamSender::builder(&transport)
        .accept_timeout(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .connect()
        .await
        .unwrap();
    let source = Outgoing::seekable(std::io::Cursor::new("bytes"));
    assert_eq!(sender.send("files", source).await.unwrap().length, 5);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_has_no_more_time_than_its_stream() {
    let transport = transport();
    let server = RpcServer::new("math")
        .stream_method_named("count", |(): (), _context| async move {
            Ok(stream::iter(0_u64..).map(Ok::<_, HandlerError>))
        });
    let _server = server.start(&transport).await.unwrap();
    let options = StreamOptions::default().with_timeout(3 * SECOND);
    let client = client(&transport).await;
    let stream = client.call_stream_named::<_, u64>("math", "count", &(), options).await;
    let mut stream = stream.unwrap();
    let mut items = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => items += 1,
            Err(error) => break error,
        }
        sleep(SECOND).await;
    };
    assert!(matches!(error, RpcError::TimedOut { .. }), "{error}");
    assert_eq!(items, 3);
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_large_says_how_large_it_may_be() {
    let transport = transport();
    let _server = slow().start(&transport).await.unwrap();
    let limits = Limits::default().with_max_body_bytes(usize::MAX);
    let client = RpcClient::builder(&transport).limits(limits).connect().await.unwrap();
    let most = transport.capabilities().max_message_size.unwrap();
    let large = "x".repeat(usize::try_from(most).unwrap());
    let options = CallOptions::default();
    let error = client.call_named::<_, ()>("math", "double", &large, options).await.unwrap_err();
    assert!(matches!(error, RpcError::TooLarge { .. }), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Invalid);
    assert!(error.to_string().contains(&most.to_string()), "{error}");
    assert_eq!(client.stats().in_flight, 0);
}

#[tokio::test]
async fn only_a_file_is_sent_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let sent = Outgoing::file(directory.path()).await;
    assert!(matches!(sent, Err(StreamError::Io { .. })));
    #[cfg(unix)]
    {
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [&*pipe, std::path::Path::new("/dev/zero")] {
            let sent = tokio::time::timeout(10 * SECOND, Outgoing::file(path)).await.unwrap();
            assert!(sent.unwrap_err().to_string().contains(path.to_str().unwrap()));
        }
    }
}
