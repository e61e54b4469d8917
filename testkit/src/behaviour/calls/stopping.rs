//! Servers that stop with requests in hand.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use postrider_patterns::{
    CallOptions, Context, HandlerError, InMemoryInbox, Inbox, RpcError, StreamOptions,
    rpc::{Claim, InboxKey, StoredReply},
};
use tokio::sync::mpsc;

use super::service::{Double, DoubleOnce, Gate, MATH, Service, failed};
use crate::{
    Scene,
    behaviour::{Behaviour, Need},
};

pub(super) fn behaviours() -> Vec<Behaviour> {
    const NEEDS: &[Need] = &[Need::Topology];
    vec![
        Behaviour::new(what_a_stopping_server_has_in_hand_is_answered_and_the_rest_is_left, NEEDS),
        Behaviour::new(a_handler_that_a_stop_called_off_has_not_answered, NEEDS),
        Behaviour::new(a_copy_that_a_stop_called_off_is_not_done_with, NEEDS),
        Behaviour::new(a_stream_that_a_stop_called_off_is_not_done_with, NEEDS),
        Behaviour::new(a_queue_that_was_deleted_just_now_is_no_service, NEEDS),
    ]
}

async fn what_a_stopping_server_has_in_hand_is_answered_and_the_rest_is_left(scene: Scene) {
    let service = Service::new(scene.clone());
    let (gate, mut begun) = Gate::new();
    let at_gate = gate.clone();
    let server = service.server().concurrency(1).method(move |Double(number), _context| {
        let gate = at_gate.clone();
        async move { gate.pass(number).await }
    });
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let first = client.call_async(MATH, &Double(1));
    scene.soon("the first call is handled", begun.recv()).await;
    let second = client.call_async(MATH, &Double(2));
    scene.settles_at(&service.queue(), 0).await;
    let stopping = tokio::spawn(server.stop(Duration::from_secs(30)));
    scene.settles_at(&service.queue(), 1).await;
    // They ask for their service after 0.5 and 1.5 s.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!first.is_finished(), "a server has it in hand");
    gate.open(1);
    assert_eq!(scene.soon("the first call ends", first).await.expect("a reply"), 2);
    let left = |error: &RpcError| matches!(error, RpcError::Unavailable { sent: true, .. });
    failed(scene.soon("the second call ends", second).await, left, "nobody has it");
    let report = scene.soon("the server ends", stopping).await.expect("its task");
    assert_eq!((report.finished, gate.runs()), (1, 1));
}

async fn a_handler_that_a_stop_called_off_has_not_answered(scene: Scene) {
    let service = Service::new(scene.clone());
    let (client, _connection) = service.client().await;
    let (begin, mut begun) = mpsc::unbounded_channel();
    let never = move |(): (), _context: Context| {
        let begin = begin.clone();
        async move {
            begin.send(())?;
            pending::<Result<u64, HandlerError>>().await
        }
    };
    let nested = client.clone();
    let server = service.server().method_named("never", never.clone()).method(
        move |Double(_number), context| {
            let nested = nested.clone();
            async move {
                let options = CallOptions::default().within(&context);
                Ok(nested.call_named::<_, u64>(MATH, "never", &(), options).await?)
            }
        },
    );
    let server = service.start(server).await;
    let call = client.call_async(MATH, &Double(1));
    scene.soon("its nested call is handled", begun.recv()).await;
    let elsewhere = scene.connect().await;
    let other = service
        .server()
        .method_named("never", never)
        .method(|Double(number), _context| async move { Ok(number * 2) });
    let _other = service.start_on(&elsewhere.transport, other).await;
    server.stop(Duration::ZERO).await;
    assert_eq!(scene.soon("the call ends", call).await.expect("another server's reply"), 2);
}

/// An inbox that says when a request asks for its key.
#[derive(Debug)]
struct Asked {
    inbox: InMemoryInbox,
    asked: mpsc::UnboundedSender<()>,
}

impl Inbox for Asked {
    fn claim<'a>(&'a self, key: &'a InboxKey) -> BoxFuture<'a, Result<Claim, HandlerError>> {
        // A behaviour that has seen enough may have dropped its end.
        let _unheard = self.asked.send(());
        self.inbox.claim(key)
    }

    fn store<'a>(
        &'a self,
        key: &'a InboxKey,
        reply: StoredReply,
    ) -> BoxFuture<'a, Result<(), HandlerError>> {
        self.inbox.store(key, reply)
    }

    fn release(&self, key: &InboxKey) {
        self.inbox.release(key);
    }
}

async fn a_copy_that_a_stop_called_off_is_not_done_with(scene: Scene) {
    let service = Service::new(scene.clone());
    let (asked, mut asks) = mpsc::unbounded_channel();
    let inbox = Arc::new(Asked { inbox: InMemoryInbox::default(), asked });
    let server = service
        .server()
        .inbox(inbox)
        .method(|DoubleOnce(_number), _context| pending::<Result<u64, HandlerError>>());
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let calls = [(); 2].map(|()| {
        let options = CallOptions::default().with_idempotency_key("four");
        client.call_async_with(MATH, &DoubleOnce(4), options)
    });
    for _ in &calls {
        scene.soon("a copy asks for its key", asks.recv()).await;
    }
    let elsewhere = scene.connect().await;
    let runs = Arc::new(AtomicU32::new(0));
    let ran = Arc::clone(&runs);
    let other = service.server().method(move |DoubleOnce(number), _context| {
        ran.fetch_add(1, Ordering::Relaxed);
        async move { Ok(number * 2) }
    });
    let _other = service.start_on(&elsewhere.transport, other).await;
    let report = server.stop(Duration::ZERO).await;
    assert_eq!((report.finished, report.released), (0, 2));
    for call in calls {
        assert_eq!(scene.soon("the call ends", call).await.expect("a reply"), 8);
    }
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

async fn a_stream_that_a_stop_called_off_is_not_done_with(scene: Scene) {
    let service = Service::new(scene.clone());
    let (begin, mut begun) = mpsc::unbounded_channel();
    let server = service.server().stream_method(move |Double(items), _context| {
        let begin = begin.clone();
        async move {
            let first = stream::iter(0..items).map(Ok::<_, HandlerError>);
            let rest = stream::once(async move {
                begin.send(())?;
                pending().await
            });
            Ok(first.chain(rest))
        }
    });
    let server = service.start(server).await;
    let (client, _connection) = service.client().await;
    let mut streams: Vec<BoxStream<'_, _>> = Vec::new();
    for items in [0, 3] {
        let stream = client.call_stream(MATH, &Double(items), StreamOptions::default()).await;
        streams.push(stream.expect("a stream").boxed());
        scene.soon("it came to where it waits", begun.recv()).await;
    }
    for expected in 0..3 {
        let item = scene.soon("an item", streams[1].next()).await;
        assert_eq!(item.expect("an item").expect("no error"), expected);
    }
    let elsewhere = scene.connect().await;
    let other = service.server().stream_method(|Double(_items), _context| async {
        Ok(stream::iter([7, 8]).map(Ok::<_, HandlerError>))
    });
    let _other = service.start_on(&elsewhere.transport, other).await;
    let report = server.stop(Duration::ZERO).await;
    assert_eq!((report.finished, report.released), (0, 2));
    // Of the one nothing had come, and the other cannot be gone on with.
    let whole: Vec<_> = scene.soon("the first stream", streams[0].by_ref().collect()).await;
    let whole: Result<Vec<u64>, _> = whole.into_iter().collect();
    assert_eq!(whole.expect("another server's items"), [7, 8]);
    let broken = scene.soon("the second stream", streams[1].next()).await.expect("an error");
    let resume = |error: &RpcError| matches!(error, RpcError::StreamBroken { resume_from: 3, .. });
    failed(broken, resume, "its server is gone");
}

async fn a_queue_that_was_deleted_just_now_is_no_service(scene: Scene) {
    let service = Service::new(scene.clone());
    let server = service.doubling().await;
    let (client, _connection) = service.client().await;
    // From now on the service counts as there for a while.
    client.call(MATH, &Double(1)).await.expect("a reply");
    service.delete_queue().await;
    scene.soon("the server ends", server.ended()).await.expect_err("its queue was deleted");
    let before = scene.env().now();
    let unavailable = |error: &RpcError| matches!(error, RpcError::Unavailable { sent: false, .. });
    failed(client.call(MATH, &Double(1)).await, unavailable, "the broker returns the request");
    let took = scene.env().now() - before;
    assert!(took <= scene.lateness(), "it took {took:?}");
    assert_eq!(client.stats().in_flight, 0);
}
