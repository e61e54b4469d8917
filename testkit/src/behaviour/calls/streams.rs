//! Replies of many items.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use postrider_patterns::{ErrorClass, HandlerError, RpcError, RpcServer, StreamOptions};
use tokio::sync::oneshot;

use super::service::{Double, MATH, Service, failed};
use crate::{
    Scene,
    behaviour::{Behaviour, Need},
    harness::Fault,
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    const LOSS: &[Need] = &[Need::Topology, Need::Fault(Fault::ConnectionLoss)];
    vec![
        Behaviour::new(a_stream_gives_every_item_in_order, NEEDS),
        Behaviour::new(a_stream_stays_within_its_window, NEEDS),
        Behaviour::new(a_stream_given_up_is_dropped_by_its_server, NEEDS),
        Behaviour::new(a_stream_whose_reader_is_gone_is_dropped_by_its_server, LOSS),
        Behaviour::new(a_stream_that_fails_ends_with_its_error, NEEDS),
        Behaviour::new(a_stream_that_is_silent_breaks_off_and_one_that_is_slow_does_not, NEEDS),
        Behaviour::new(a_stream_of_a_lost_connection_breaks_off, LOSS),
        Behaviour::new(calls_and_streams_are_told_apart, NEEDS),
    ]
}

/// How far the streams of a server have come, and when one of them is dropped.
#[derive(Debug, Clone, Default)]
struct Source {
    given: Arc<AtomicU64>,
}

struct Dropped(Option<oneshot::Sender<()>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        if let Some(dropped) = self.0.take() {
            // A behaviour that has seen enough may have dropped its end.
            let _unheard = dropped.send(());
        }
    }
}

impl Source {
    fn counting(&self, items: u64) -> impl Stream<Item = Result<u64, HandlerError>> + use<> {
        let given = Arc::clone(&self.given);
        stream::iter(0..items).map(move |item| {
            given.fetch_add(1, Ordering::Relaxed);
            Ok(item)
        })
    }

    fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }
}

/// A server that counts: from 0 up to the number, or without an end.
fn counting(service: &Service, source: &Source) -> (RpcServer, oneshot::Receiver<()>) {
    let (dropped, was_dropped) = oneshot::channel();
    let dropped = std::sync::Mutex::new(Some(dropped));
    let source = source.clone();
    let server = service.server().stream_method(move |Double(items), _context| {
        let guard = Dropped(dropped.lock().expect("nobody panicked").take());
        let items = source.counting(items).map(move |item| {
            let _held = &guard;
            item
        });
        async move { Ok(items) }
    });
    (server, was_dropped)
}

async fn a_stream_gives_every_item_in_order(scene: Scene) {
    let service = Service::new(scene.clone());
    let (server, _) = counting(&service, &Source::default());
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    for (items, window) in [(0, 32), (1, 32), (500, 32), (100, 1), (100, 3)] {
        let options = StreamOptions::default().with_window(window);
        let stream = client.call_stream(MATH, &Double(items), options).await;
        let came: Vec<_> = scene.soon("the stream", stream.expect("a stream").collect()).await;
        let came: Result<Vec<_>, _> = came.into_iter().collect();
        assert_eq!(came.expect("no error"), (0..items).collect::<Vec<_>>());
        assert_eq!(client.stats().in_flight, 0);
    }
    assert_eq!(client.stats().late_replies, 0);
}

async fn a_stream_stays_within_its_window(scene: Scene) {
    let service = Service::new(scene.clone());
    let source = Source::default();
    let (server, _) = counting(&service, &source);
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let options = StreamOptions::default().with_window(8);
    let stream = client.call_stream(MATH, &Double(1_000), options).await;
    let mut stream = stream.expect("a stream");
    // One more is made and waits for credit.
    let stops_at = async |most: u64| {
        scene
            .eventually("the source stops", async || match source.given() {
                given if given == most => Ok(()),
                given => Err(format!("{given} items were taken from it")),
            })
            .await;
        tokio::time::sleep(scene.quiet()).await;
        assert_eq!(source.given(), most, "no more than the window is taken");
    };
    stops_at(8 + 1).await;
    for expected in 0..4 {
        let item = scene.soon("an item", stream.next()).await;
        assert_eq!(item.expect("an item").expect("no error"), expected);
    }
    // Half of the window was read, and a whole one is granted anew.
    stops_at(4 + 8 + 1).await;
}

async fn a_stream_given_up_is_dropped_by_its_server(scene: Scene) {
    let service = Service::new(scene.clone());
    let (server, dropped) = counting(&service, &Source::default());
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let stream = client.call_stream(MATH, &Double(u64::MAX), StreamOptions::default()).await;
    let mut stream = stream.expect("a stream");
    for expected in 0..100 {
        let item = scene.soon("an item", stream.next()).await;
        assert_eq!(item.expect("an item").expect("no error"), expected);
    }
    drop(stream);
    scene.soon("the source is dropped", dropped).await.expect("it is told");
    assert_eq!(client.stats().in_flight, 0);
    scene
        .eventually("its request is done with", async || match server.stats().acked {
            1 => Ok(()),
            acked => Err(format!("{acked} acked")),
        })
        .await;
}

async fn a_stream_whose_reader_is_gone_is_dropped_by_its_server(scene: Scene) {
    let service = Service::new(scene.clone());
    let (server, dropped) = counting(&service, &Source::default());
    let _server = service.start(server).await;
    let (client, connection) = service.client().await;
    let stream = client.call_stream(MATH, &Double(u64::MAX), StreamOptions::default()).await;
    let mut stream = stream.expect("a stream");
    scene.soon("an item", stream.next()).await.expect("an item").expect("no error");
    // Nobody tells the server; it finds out by what it sends into nothing.
    connection.transport.close(Duration::from_secs(1)).await.expect("it closes");
    scene.soon("the source is dropped", dropped).await.expect("it is found out");
    let broken = scene.soon("the stream ends", stream.collect::<Vec<_>>()).await;
    let last = broken.into_iter().next_back().expect("an error at the end");
    failed(last, |error| matches!(error, RpcError::StreamBroken { .. }), "it is not complete");
}

async fn a_stream_that_fails_ends_with_its_error(scene: Scene) {
    let service = Service::new(scene.clone());
    let server = service.server().stream_method(|Double(number), _context| async move {
        if number == 0 {
            return Err(HandlerError::rejected("NOTHING", "zero items"));
        }
        Ok(stream::iter(0..=number).map(move |item| {
            assert!(item < number || number != 3, "a bug");
            if item < number { Ok(item) } else { Err(HandlerError::rejected("FULL", "no more")) }
        }))
    });
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    for (number, code) in [(0, "NOTHING"), (2, "FULL"), (3, "PANIC")] {
        let stream = client.call_stream(MATH, &Double(number), StreamOptions::default()).await;
        let came: Vec<_> = scene.soon("the stream", stream.expect("a stream").collect()).await;
        let (last, items) = came.split_last().expect("an error at the end");
        assert_eq!(items.len() as u64, number);
        assert_eq!(last.as_ref().expect_err("an error at the end").code(), code);
    }
    assert_eq!(client.stats().in_flight, 0);
}

async fn a_stream_that_is_silent_breaks_off_and_one_that_is_slow_does_not(scene: Scene) {
    let service = Service::new(scene.clone());
    // A server that says it is there, and has an item every 6 seconds.
    let server = service.server().stream_method(|Double(items), _context| async move {
        Ok(stream::iter(0..items).then(|item| async move {
            tokio::time::sleep(Duration::from_secs(6)).await;
            Ok(item)
        }))
    });
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    // Between two signs of life are 5 seconds.
    let options = StreamOptions::default().with_idle(Duration::from_millis(5_500));
    let stream = client.call_stream(MATH, &Double(2), options.clone()).await;
    let slow = stream.expect("a stream").collect::<Vec<_>>();
    let came = scene.soon("the slow stream", slow).await;
    assert_eq!(came.into_iter().filter_map(Result::ok).collect::<Vec<_>>(), [0, 1]);
    // A server that stops hangs up without a word.
    let stream = client.call_stream(MATH, &Double(2), options).await;
    let silent = stream.expect("a stream");
    drop(server);
    let came = scene.soon("the silent stream", silent.collect::<Vec<_>>()).await;
    let last = came.into_iter().next_back().expect("an error at the end");
    let broken = |error: &RpcError| matches!(error, RpcError::StreamBroken { resume_from: 0, .. });
    assert_eq!(failed(last, broken, "nothing came").class(), ErrorClass::Unknown);
}

async fn a_stream_of_a_lost_connection_breaks_off(scene: Scene) {
    let service = Service::new(scene.clone());
    let (server, dropped) = counting(&service, &Source::default());
    let _server = service.start(server).await;
    let (client, connection) = service.client().await;
    let mut events = connection.transport.events();
    let stream = client.call_stream(MATH, &Double(u64::MAX), StreamOptions::default()).await;
    let mut stream = stream.expect("a stream");
    for expected in 0..40 {
        let item = scene.soon("an item", stream.next()).await;
        assert_eq!(item.expect("an item").expect("no error"), expected);
    }
    connection.cut().await;
    let mut next = 40;
    let error = loop {
        match scene.soon("what is left", stream.next()).await.expect("an error at the end") {
            Ok(item) => {
                assert_eq!(item, next, "what comes is whole");
                next += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, RpcError::StreamBroken { resume_from, .. } if resume_from == next),
        "{error:?} after {next} items"
    );
    assert!(stream.next().await.is_none());
    scene.restored(&mut events, 2).await;
    scene.soon("the source is dropped", dropped).await.expect("the server is told");
}

async fn calls_and_streams_are_told_apart(scene: Scene) {
    let service = Service::new(scene.clone());
    let server = service
        .server()
        .stream_method(
            |Double(items), _context| async move { Ok(stream::iter((0..items).map(Ok))) },
        )
        .method_named("one", |number: u64, _context| async move { Ok(number) });
    let _server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let error = client.call(MATH, &Double(3)).await.expect_err("it answers by a stream");
    assert_eq!((error.class(), error.code()), (ErrorClass::Unsupported, "STREAM_REQUIRED"));
    let options = StreamOptions::default();
    let stream = client.call_stream_named::<_, u64>(MATH, "one", &7_u64, options).await;
    let came: Vec<_> = scene.soon("a stream of one", stream.expect("a stream").collect()).await;
    assert_eq!(came.into_iter().filter_map(Result::ok).collect::<Vec<_>>(), [7]);
}
